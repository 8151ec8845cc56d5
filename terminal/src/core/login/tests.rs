use super::*;
use proptest::prelude::*;
use rand::SeedableRng;

const ME: u64 = 7;

struct Agent {
    login: Login,
    now: Instant,
}

fn contact(name: &str, draining: bool) -> RelayContact {
    let name = RelayName::new(name).unwrap();
    RelayContact { addresses: vec![format!("{name}.example:4433")], name, draining }
}

#[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
fn agent(choice: RelayChoice, relays: &[&str]) -> Agent {
    let mut login = Login::new(ME, choice, SmallRng::seed_from_u64(1));
    let now = Instant::now();
    login.handle(Input::Contacts(relays.iter().map(|r| contact(r, false)).collect()), now);
    Agent { login, now }
}

impl Agent {
    fn feed(&mut self, input: Input) -> Vec<Output> {
        self.login.handle(input, self.now);
        std::iter::from_fn(|| self.login.poll_output()).collect()
    }

    /// Lets time pass until there is something to do.
    fn next(&mut self) -> Vec<Output> {
        loop {
            self.now = self.login.poll_timeout().unwrap().max(self.now);
            let outputs = self.feed(Input::Timeout);
            if !outputs.is_empty() {
                return outputs;
            }
        }
    }

    /// The next try, its relay and the wait for it.
    fn next_try(&mut self) -> (AttachId, String, Duration) {
        let begun = self.now;
        loop {
            if let Some((attach, relay)) = attached(&self.next()) {
                return (attach, relay, self.now - begun);
            }
        }
    }

    fn log_in(&mut self) -> (AttachId, String) {
        let (attach, relay) = attached(&self.feed(Input::Login)).unwrap();
        let outputs = self.welcome(attach, 0, 0);
        assert!(matches!(outputs[..], [Output::Login { .. }]));
        self.feed(Input::LoggedIn(attach));
        (attach, relay)
    }

    fn welcome(&mut self, attach: AttachId, epoch: u64, instance: u64) -> Vec<Output> {
        self.feed(Input::Welcome { attach, epoch: LoginEpoch(epoch), instance })
    }

    fn refused(&mut self, attach: AttachId, code: RefusalCode, retry_after_ms: u32) -> Vec<Output> {
        self.feed(Input::Refused { attach, refusal: code.into(), retry_after_ms })
    }
}

fn attached(outputs: &[Output]) -> Option<(AttachId, String)> {
    outputs.iter().find_map(|output| match output {
        Output::Attach { attach, relay } => Some((*attach, relay.name.as_str().to_owned())),
        _ => None,
    })
}

fn epoch_of(outputs: &[Output]) -> Option<u64> {
    outputs.iter().find_map(|output| match output {
        Output::Login { epoch, .. } => Some(epoch.0),
        _ => None,
    })
}

#[test]
fn logs_in_with_one_more_than_the_highest_epoch() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    assert_eq!(a.login.state(), &State::Connecting(None));
    assert_eq!(epoch_of(&a.welcome(attach, 41, 99)), Some(42));
    a.feed(Input::LoggedIn(attach));
    assert!(matches!(a.login.state(), State::LoggedIn { .. }));
    assert_eq!(a.login.poll_timeout(), None);
    // The relay lost its table: the process's own last epoch counts too.
    a.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() });
    let (attach, _, _) = a.next_try();
    assert_eq!(epoch_of(&a.welcome(attach, 0, 0)), Some(43));
}

#[test]
fn a_dead_relay_costs_one_stagger() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2", "r3", "r4"]);
    let (first, one) = attached(&a.feed(Input::Login)).unwrap();
    let (second, two, waited) = a.next_try();
    assert_eq!(waited, STAGGER);
    let (third, three, _) = a.next_try();
    assert_eq!(BTreeSet::from([one, two, three]).len(), 3);
    // No fourth at the same time; the second answers first.
    assert_eq!(a.login.poll_timeout().map(|at| at - a.now), Some(ATTACH_TIMEOUT - 2 * STAGGER));
    assert!(epoch_of(&a.welcome(second, 0, 0)).is_some());
    assert_eq!(a.welcome(third, 0, 0), [], "one log-in at a time");
    let outputs = a.feed(Input::LoggedIn(second));
    for attach in [first, third] {
        assert!(outputs.contains(&Output::Detach { attach, code: RefusalCode::EndedByCaller }));
    }
}

#[test]
fn a_refused_login_goes_on_with_the_next_welcome() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (first, _) = attached(&a.feed(Input::Login)).unwrap();
    let (second, _, _) = a.next_try();
    a.welcome(first, 0, 0);
    a.welcome(second, 0, 0);
    assert_eq!(epoch_of(&a.refused(first, RefusalCode::Draining, 0)), Some(2));
}

#[test]
fn waits_for_relays_that_do_not_exist_yet_and_takes_no_others() {
    let names = BTreeSet::from([RelayName::new("r9").unwrap()]);
    let mut a = agent(RelayChoice::Names(names), &["r1", "r2"]);
    assert_eq!(attached(&a.feed(Input::Login)), None);
    assert_eq!(a.login.poll_timeout(), None);
    let outputs = a.feed(Input::Contacts(vec![contact("r1", false), contact("r9", false)]));
    assert_eq!(attached(&outputs).map(|(_, relay)| relay), Some("r9".to_owned()));
    a.feed(Input::Contacts(Vec::new()));
    assert_eq!(a.login.relay_by_name.len(), 2, "an empty list is not believed");
}

#[test]
fn draining_relays_come_last() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    a.feed(Input::Contacts(vec![contact("r1", true), contact("r2", false), contact("r3", true)]));
    assert_eq!(attached(&a.feed(Input::Login)).map(|(_, relay)| relay), Some("r2".to_owned()));
}

#[test]
fn back_off_doubles_and_forgets_only_after_a_stable_time() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (mut attach, _) = a.log_in();
    let mut waits = Vec::new();
    for _ in 0..8 {
        // Accepts and drops at once.
        a.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() });
        let (next, _, waited) = a.next_try();
        waits.push(waited);
        a.welcome(next, 0, 0);
        a.feed(Input::LoggedIn(next));
        attach = next;
    }
    assert!(waits[0] <= BACKOFF_MIN * 3, "{waits:?}");
    assert!(waits[7] >= BACKOFF_MAX.mul_f64(0.75), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= BACKOFF_MAX.mul_f64(1.25)), "{waits:?}");
    a.now += STABLE;
    a.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() });
    assert!(a.next_try().2 <= BACKOFF_MIN * 2);
}

#[test]
fn a_relays_hint_is_kept_and_cut() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    a.refused(attach, RefusalCode::Overloaded, 20_000);
    let (attach, _, waited) = a.next_try();
    assert!(waited >= Duration::from_secs(15), "{waited:?}");
    a.refused(attach, RefusalCode::Overloaded, u32::MAX);
    assert!(a.next_try().2 <= limits::PEER_DELAY.mul_f64(1.25));
}

#[test]
fn hopeless_refusals_are_told_and_tried_slowly() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    a.refused(attach, RefusalCode::Revoked, 0);
    assert_eq!(a.login.state(), &State::Connecting(Some(RefusalCode::Revoked.into())));
    assert!(a.next_try().2 >= BACKOFF_HOPELESS.mul_f64(0.75));
}

#[test]
fn a_superseded_process_is_parked_until_its_user_says_login() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = a.log_in();
    let outputs = a.refused(attach, RefusalCode::Superseded, 0);
    assert_eq!(outputs, [Output::State(State::Parked(RefusalCode::Superseded.into()))]);
    assert_eq!(a.login.poll_timeout(), None);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    assert_eq!(epoch_of(&a.welcome(attach, 9, 99)), Some(10), "told by its user, it takes over");
}

#[test]
fn a_process_that_comes_back_does_not_take_over_from_a_newer_one() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = a.log_in();
    a.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() });
    let (attach, _, _) = a.next_try();
    let outputs = a.welcome(attach, 2, 99);
    assert!(outputs.contains(&Output::State(State::Parked(RefusalCode::Superseded.into()))));
    assert!(outputs.iter().any(|o| matches!(o, Output::Detach { .. })));
    assert_eq!(a.login.poll_timeout(), None);
}

#[test]
fn an_absurd_epoch_does_not_lock_the_terminal_out() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    let outputs = a.welcome(attach, u64::MAX, 99);
    assert!(outputs.contains(&Output::Detach { attach, code: RefusalCode::ProtocolError }));
    let (attach, _, _) = a.next_try();
    assert_eq!(epoch_of(&a.welcome(attach, 3, 99)), Some(4));
}

#[test]
fn logout_ends_the_attachment_and_stays() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = a.log_in();
    let outputs = a.feed(Input::Logout);
    let detach = Output::Detach { attach, code: RefusalCode::LoggedOut };
    assert_eq!(outputs, [detach, Output::State(State::LoggedOut)]);
    a.feed(Input::Contacts(vec![contact("r3", false)]));
    assert_eq!(a.login.poll_timeout(), None);
    assert!(attached(&a.feed(Input::Login)).is_some());
}

proptest! {
    /// Whatever relays answer: never two log-ins at once, never a try without a wish, a finite number of tries in a
    /// given time, and once all relays behave the agent is logged in within seconds.
    #[test]
    fn it_always_gets_there(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0_u8..9, 0_u8..4, any::<u32>()), 0..80),
    ) {
        let mut a = agent(RelayChoice::Auto, &["r1", "r2", "r3"]);
        a.login.rng = SmallRng::seed_from_u64(seed);
        let mut outputs = a.feed(Input::Login);
        let mut open = BTreeMap::new();
        for (what, which, number) in steps {
            for output in outputs.drain(..) {
                match output {
                    Output::Attach { attach, .. } => { open.insert(attach, ()); }
                    Output::Detach { attach, .. } => { open.remove(&attach); }
                    _ => {}
                }
            }
            prop_assert!(open.len() <= TRIES);
            let at_once = a.login.try_by_id.values();
            let at_once = at_once.filter(|t| matches!(t.stage, Stage::LoggingIn | Stage::LoggedIn(_)));
            prop_assert!(at_once.count() <= 1);
            let Some(&attach) = open.keys().nth(which.into()) else {
                a.now += Duration::from_millis(u64::from(number % 10_000));
                outputs = a.feed(Input::Timeout);
                continue;
            };
            let codes = [RefusalCode::Overloaded, RefusalCode::NotYetKnown, RefusalCode::Kicked];
            outputs = match what {
                0..=2 => a.welcome(attach, number.into(), ME),
                3..=5 => a.feed(Input::LoggedIn(attach)),
                6 => { open.remove(&attach); a.refused(attach, codes[number as usize % 3], number) }
                7 => {
                    open.remove(&attach);
                    a.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() })
                }
                _ => { a.now += Duration::from_millis(u64::from(number % 10_000)); a.feed(Input::Timeout) }
            };
        }
        let latest = a.now + limits::PEER_DELAY.mul_f64(1.25) + ATTACH_TIMEOUT * 2;
        while !matches!(a.login.state(), State::LoggedIn { .. }) {
            let tries: Vec<_> = a.login.try_by_id.iter().map(|(id, t)| (*id, t.stage)).collect();
            for (attach, stage) in tries {
                match stage {
                    Stage::Attaching => a.welcome(attach, 0, 0),
                    Stage::LoggingIn => a.feed(Input::LoggedIn(attach)),
                    _ => Vec::new(),
                };
            }
            if !matches!(a.login.state(), State::LoggedIn { .. }) {
                a.now = a.login.poll_timeout().unwrap().max(a.now);
                a.feed(Input::Timeout);
            }
            prop_assert!(a.now <= latest);
        }
    }
}
