use super::*;
use proptest::prelude::*;
use rand::SeedableRng;
use tasuki_proto::limits;

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

    /// Logs in to a mesh of which only one relay answers.
    fn log_in(&mut self) -> (AttachId, String) {
        let (attach, relay) = attached(&self.feed(Input::Login)).unwrap();
        let mut outputs = self.welcome(attach, 0, 0);
        while epoch_of(&outputs).is_none() {
            outputs = self.next();
        }
        self.feed(Input::LoggedIn(attach));
        (attach, relay)
    }

    /// Lets time pass until a Login is said.
    fn next_login(&mut self) -> (AttachId, u64, AttachmentRole) {
        loop {
            let login = self.next().into_iter().find_map(|output| match output {
                Output::Login { attach, epoch, role } => Some((attach, epoch.0, role)),
                _ => None,
            });
            if let Some(login) = login {
                return login;
            }
        }
    }

    fn welcome(&mut self, attach: AttachId, epoch: u64, instance: u64) -> Vec<Output> {
        self.near(attach, epoch, instance, 1_000)
    }

    fn near(&mut self, attach: AttachId, epoch: u64, instance: u64, rtt_us: u32) -> Vec<Output> {
        let highest = claim(epoch, instance);
        self.feed(Input::Welcome { attach, highest, terminals: 0, rtt_us })
    }

    fn lost(&mut self, attach: AttachId) -> Vec<Output> {
        self.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() })
    }

    fn roles(&self) -> (Option<String>, Option<String>) {
        match self.login.state() {
            State::LoggedIn { primary, standby } => {
                let name = |attached: &Attached| attached.relay.as_str().to_owned();
                (Some(name(primary)), standby.as_ref().map(name))
            }
            _ => (None, None),
        }
    }

    fn refused(&mut self, attach: AttachId, code: RefusalCode, retry_after_ms: u32) -> Vec<Output> {
        let by = Claim::None;
        self.feed(Input::Refused { attach, refusal: code.into(), retry_after_ms, by })
    }

    /// A relay says that another log-in took over, and shows it or does not.
    fn superseded(&mut self, attach: AttachId, by: Claim) -> Vec<Output> {
        let refusal = RefusalCode::Superseded.into();
        self.feed(Input::Refused { attach, refusal, retry_after_ms: 0, by })
    }

    fn is_parked(&self) -> bool {
        matches!(self.login.state(), State::Parked(refusal) if refusal.code == RefusalCode::Superseded)
    }
}

fn claim(epoch: u64, instance: u64) -> Claim {
    match instance {
        0 => Claim::None,
        instance => Claim::Proven { epoch: LoginEpoch(epoch), instance },
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
fn the_cheapest_that_answer_in_time_become_primary_and_standby() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2", "r3", "r4"]);
    let (first, one) = attached(&a.feed(Input::Login)).unwrap();
    let (second, two, waited) = a.next_try();
    assert!(waited <= STAGGER.mul_f64(1.5), "{waited:?}");
    let (third, three, _) = a.next_try();
    assert_eq!(BTreeSet::from([one, two.clone(), three.clone()]).len(), 3);
    let begun = a.now;
    assert_eq!(a.near(first, 4, 99, 90_000), []);
    assert_eq!(a.near(second, 5, 99, 50_000), []);
    assert_eq!(a.near(third, 0, 0, 20_000), []);
    assert_eq!(a.next_login(), (third, 6, AttachmentRole::Primary));
    assert_eq!(a.now - begun, SETTLE);
    let outputs = a.feed(Input::LoggedIn(third));
    let (epoch, role) = (LoginEpoch(6), AttachmentRole::Standby);
    assert!(outputs.contains(&Output::Login { attach: second, epoch, role }), "{outputs:?}");
    assert_eq!(a.roles(), (Some(three.clone()), None), "it stands before the second does");
    let outputs = a.feed(Input::LoggedIn(second));
    assert_eq!(a.roles(), (Some(three), Some(two)));
    assert!(outputs.contains(&Output::Detach { attach: first, code: RefusalCode::EndedByCaller }));
}

#[test]
fn load_counts_where_round_trips_are_equal() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (first, _) = attached(&a.feed(Input::Login)).unwrap();
    let (second, _, _) = a.next_try();
    for (attach, terminals) in [(first, 9_000), (second, 100)] {
        a.feed(Input::Welcome { attach, highest: Claim::None, terminals, rtt_us: 2_000 });
    }
    let primary = match a.login.asked.as_ref() {
        Some(asked) => asked.attach,
        None => a.next_login().0,
    };
    assert_eq!(primary, second);
}

#[test]
fn slow_relays_are_not_waited_for_and_make_place() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2", "r3", "r4", "r5"]);
    attached(&a.feed(Input::Login)).unwrap();
    a.next_try();
    a.next_try();
    let (fourth, name, waited) = a.next_try();
    assert!(waited >= PATIENCE - 3 * STAGGER && waited <= PATIENCE, "{waited:?}");
    a.welcome(fourth, 0, 0);
    assert_eq!(a.next_login().0, fourth);
    a.feed(Input::LoggedIn(fourth));
    assert_eq!(a.roles(), (Some(name), None));
}

#[test]
fn a_refused_login_goes_on_with_the_next_welcome() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (first, _) = attached(&a.feed(Input::Login)).unwrap();
    let (second, _, _) = a.next_try();
    a.welcome(first, 0, 0);
    assert_eq!(epoch_of(&a.welcome(second, 0, 0)), Some(1), "nobody is left to wait for");
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
    let relay = RelayName::new("r9").unwrap();
    assert_eq!(
        a.login.relays.next_ready(|name| *name == relay, false),
        Some(None),
        "an empty list is not believed"
    );
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
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = a.log_in();
    let outputs = a.superseded(attach, claim(2, 99));
    assert!(matches!(outputs[..], [Output::State(State::Parked(_))]), "{outputs:?}");
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    assert_eq!(epoch_of(&a.welcome(attach, 9, 99)), Some(10), "told by its user, it takes over");
}

#[test]
fn a_relay_that_shows_no_newer_log_in_parks_nobody_and_is_left_alone() {
    for by in [Claim::None, Claim::Forged, claim(0, 99)] {
        let (mut a, (first, one), (_, two)) = on_two(&["r1", "r2"]);
        a.superseded(first, by);
        assert_eq!(a.roles(), (Some(two), None), "{by:?}: the other goes on");
        let until = a.now + BACKOFF_HOPELESS / 2;
        while let Some(due) = a.login.poll_timeout().filter(|due| *due <= until) {
            a.now = due.max(a.now);
            let tried = attached(&a.feed(Input::Timeout));
            assert!(tried.is_none_or(|(_, relay)| relay != one), "{by:?}");
            if a.login.asked.is_some() {
                let attach = a.login.asked.as_ref().map(|asked| asked.attach).unwrap();
                a.feed(Input::LoggedIn(attach));
            }
        }
    }
    // Nor does one that shows a forged log-in in its Welcome.
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    let highest = Claim::Forged;
    let outputs = a.feed(Input::Welcome { attach, highest, terminals: 0, rtt_us: 1 });
    assert!(outputs.contains(&Output::Detach { attach, code: RefusalCode::ProtocolError }));
    assert!(!a.is_parked());
    let (attach, _, _) = a.next_try();
    assert_eq!(epoch_of(&a.welcome(attach, 0, 0)), Some(1));
}

impl Agent {
    /// The next look of a parked process.
    fn next_look(&mut self) -> (AttachId, String, Duration) {
        assert!(self.is_parked());
        let look = self.next_try();
        assert!(self.is_parked(), "it looks, and stays parked");
        look
    }

    /// It sees this log-in there.
    fn sees(&mut self, attach: AttachId, highest: Claim) -> Vec<Output> {
        let outputs = self.feed(Input::Welcome { attach, highest, terminals: 0, rtt_us: 1 });
        assert_eq!(epoch_of(&outputs), None, "a look never logs in");
        assert!(outputs.iter().any(|o| matches!(o, Output::Detach { .. })), "{outputs:?}");
        outputs
    }
}

#[test]
fn a_parked_process_looks_ever_more_seldom_while_the_other_is_there() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = a.log_in();
    a.superseded(attach, claim(2, 99));
    let (mut waits, mut before) = (Vec::new(), String::new());
    for epoch in 2..10 {
        let (attach, relay, waited) = a.next_look();
        assert_ne!(relay, before, "another relay each time");
        (before, _) = (relay, waits.push(waited));
        a.sees(attach, claim(epoch, 99));
    }
    assert!(waits[0] <= parked::LOOK_MIN.mul_f64(1.25), "{waits:?}");
    assert!(waits[7] >= parked::LOOK_MAX.mul_f64(0.75), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= parked::LOOK_MAX.mul_f64(1.25)), "{waits:?}");
}

#[test]
fn a_parked_process_comes_back_once_nobody_else_is_there_and_takes_over_from_nobody() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2", "r3"]);
    let (attach, _) = a.log_in();
    a.now += STABLE;
    a.feed(Input::Timeout);
    a.superseded(attach, claim(2, 99));
    let parked_at = a.now;
    let (attach, ..) = a.next_look();
    a.sees(attach, claim(5, 99));
    // One relay that knows nothing is not enough, nor one that lies or cannot be reached.
    let (attach, first, _) = a.next_look();
    a.sees(attach, Claim::None);
    let (attach, ..) = a.next_look();
    a.sees(attach, Claim::Forged);
    let (attach, ..) = a.next_look();
    a.lost(attach);
    let (attach, ..) = a.next_look();
    a.sees(attach, claim(5, 99));
    for last in [false, true] {
        let (attach, relay, _) = a.next_look();
        assert!(last || relay != first || a.login.relays.next_ready(|_| true, false).is_some());
        // Its own row from before, at a relay that did not notice.
        a.sees(attach, if last { claim(1, ME) } else { Claim::None });
        assert_eq!(a.is_parked(), !last);
    }
    assert!(a.now - parked_at < Duration::from_secs(240), "{:?}", a.now - parked_at);
    let attach = match a.login.try_by_id.keys().next() {
        Some(attach) => *attach,
        None => a.next_try().0,
    };
    // The other is there after all.
    a.welcome(attach, 6, 99);
    assert!(a.is_parked(), "no fight");
    let mut attach = a.next_look().0;
    a.sees(attach, Claim::None);
    attach = a.next_look().0;
    a.sees(attach, Claim::None);
    let attach = match a.login.try_by_id.keys().next() {
        Some(attach) => *attach,
        None => a.next_try().0,
    };
    let mut outputs = a.welcome(attach, 0, 0);
    while epoch_of(&outputs).is_none() {
        outputs = a.next();
    }
    assert_eq!(epoch_of(&outputs), Some(7), "above what the other used");
}

#[test]
fn two_parked_processes_come_back_without_a_fight() {
    // The other one was quicker: the relay refuses this one's log-in and shows that one's.
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = a.log_in();
    a.superseded(attach, claim(2, 99));
    for _ in 0..2 {
        let (attach, ..) = a.next_look();
        a.sees(attach, Claim::None);
    }
    let attach = match a.login.try_by_id.keys().next() {
        Some(attach) => *attach,
        None => a.next_try().0,
    };
    let mut outputs = a.welcome(attach, 0, 0);
    while epoch_of(&outputs).is_none() {
        outputs = a.next();
    }
    assert_eq!(epoch_of(&outputs), Some(3));
    a.superseded(attach, claim(3, 98));
    assert!(a.is_parked());
}

#[test]
fn a_parked_process_that_is_logged_out_looks_no_more() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = a.log_in();
    a.superseded(attach, claim(2, 99));
    let (attach, ..) = a.next_look();
    let outputs = a.feed(Input::Logout);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Detach { attach: ended, .. } if *ended == attach))
    );
    assert_eq!(a.login.state(), &State::LoggedOut);
    assert_eq!(a.login.poll_timeout(), None);
}

#[test]
fn a_process_that_comes_back_does_not_take_over_from_a_newer_one() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (attach, _) = a.log_in();
    a.now += STABLE;
    a.lost(attach);
    let (attach, _, _) = a.next_try();
    let outputs = a.welcome(attach, 2, 99);
    assert!(outputs.iter().any(|o| matches!(o, Output::State(State::Parked(_)))), "{outputs:?}");
    assert!(outputs.iter().any(|o| matches!(o, Output::Detach { .. })));
    assert!(a.is_parked());
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
fn a_log_in_of_an_earlier_process_that_is_shown_again_parks_nobody() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    a.login.remember(LoginEpoch(40));
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    let mut outputs = a.welcome(attach, 0, 0);
    while epoch_of(&outputs).is_none() {
        outputs = a.next();
    }
    assert_eq!(epoch_of(&outputs), Some(41));
    a.feed(Input::LoggedIn(attach));
    a.now += STABLE;
    a.feed(Input::Timeout);
    let (attach, ..) = a.next_try();
    a.welcome(attach, 40, 99);
    assert!(!a.is_parked());
    // What was kept is followed only as far as a relay that knows of nothing takes it.
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    a.login.remember(LoginEpoch(u64::MAX));
    let (attach, _) = attached(&a.feed(Input::Login)).unwrap();
    let mut outputs = a.welcome(attach, 0, 0);
    while epoch_of(&outputs).is_none() {
        outputs = a.next();
    }
    assert!(epoch_of(&outputs).unwrap() <= limits::EPOCH_JUMP);
}

#[test]
fn logout_ends_the_attachment_and_stays() {
    let mut a = agent(RelayChoice::Auto, &["r1"]);
    let (attach, _) = a.log_in();
    let outputs = a.feed(Input::Logout);
    let detach = Output::Detach { attach, code: RefusalCode::LoggedOut };
    assert_eq!(outputs, [detach, Output::State(State::LoggedOut)]);
    a.feed(Input::Contacts(vec![contact("r3", false)]));
    assert_eq!(a.login.poll_timeout(), None);
    assert!(attached(&a.feed(Input::Login)).is_some());
}

/// An agent on two relays: the primary and the standby.
fn on_two(relays: &[&str]) -> (Agent, (AttachId, String), (AttachId, String)) {
    let mut a = agent(RelayChoice::Auto, relays);
    let (first, one) = attached(&a.feed(Input::Login)).unwrap();
    let (second, two, _) = a.next_try();
    let mut outputs = a.near(first, 0, 0, 10_000);
    outputs.extend(a.near(second, 0, 0, 20_000));
    while epoch_of(&outputs).is_none() {
        outputs = a.next();
    }
    a.feed(Input::LoggedIn(first));
    a.feed(Input::LoggedIn(second));
    assert_eq!(a.roles(), (Some(one.clone()), Some(two.clone())));
    a.now += STABLE;
    (a, (first, one), (second, two))
}

#[test]
fn the_standby_becomes_the_primary_at_once_in_the_next_epoch() {
    let (mut a, (first, one), (second, two)) = on_two(&["r1", "r2", "r3"]);
    let outputs = a.lost(first);
    assert_eq!(a.roles(), (Some(two.clone()), None));
    let (epoch, role) = (LoginEpoch(2), AttachmentRole::Primary);
    assert_eq!(outputs[0], Output::Login { attach: second, epoch, role });
    // Nobody joins the epoch before the primary is in it.
    let (third, three, waited) = a.next_try();
    assert!(three != two && waited <= CALM, "{three} after {waited:?}");
    a.welcome(third, 1, ME);
    a.now += SETTLE;
    assert_eq!(epoch_of(&a.feed(Input::Timeout)), None);
    let outputs = a.feed(Input::LoggedIn(second));
    let login = Output::Login { attach: third, epoch, role: AttachmentRole::Standby };
    let joins = outputs.contains(&login) || a.next_login() == (third, 2, AttachmentRole::Standby);
    assert!(joins);
    a.feed(Input::LoggedIn(third));
    assert_eq!(a.roles(), (Some(two), Some(three)));
    assert_ne!(Some(one), a.roles().1);
}

#[test]
fn a_lost_standby_is_void_and_replaced() {
    let (mut a, (first, one), (second, _)) = on_two(&["r1", "r2"]);
    let outputs = a.lost(second);
    assert_eq!(a.roles(), (Some(one), None));
    let (epoch, role) = (LoginEpoch(2), AttachmentRole::Primary);
    assert_eq!(outputs[0], Output::Login { attach: first, epoch, role });
    a.feed(Input::LoggedIn(first));
    let (again, _, _) = a.next_try();
    a.welcome(again, 1, ME);
    assert_eq!(a.login.asked.as_ref().map(|asked| asked.epoch), Some(epoch));
}

#[test]
fn superseded_by_its_own_newer_epoch_is_no_reason_to_park() {
    let (mut a, (first, _), (second, _)) = on_two(&["r1", "r2", "r3"]);
    a.lost(first);
    // The relay of the second heard of a newer epoch before it was told.
    a.superseded(second, claim(2, ME));
    assert!(matches!(a.login.state(), State::Connecting(_) | State::LoggedIn { .. }));
    assert!(a.login.poll_timeout().is_some());

    let (mut a, (_, _), (second, _)) = on_two(&["r1", "r2", "r3"]);
    a.superseded(second, claim(1, 99));
    assert!(matches!(a.login.state(), State::Parked(_)), "in the present epoch it is another one");
}

#[test]
fn who_was_just_told_to_log_in_goes_above_a_ghost_that_one_relay_knows() {
    let mut a = agent(RelayChoice::Auto, &["r1", "r2"]);
    let (first, _) = a.log_in();
    let (second, _, _) = a.next_try();
    let outputs = a.welcome(second, 41, 99);
    let (epoch, role) = (LoginEpoch(42), AttachmentRole::Primary);
    assert!(outputs.contains(&Output::Login { attach: first, epoch, role }), "{outputs:?}");
    let outputs = a.feed(Input::LoggedIn(first));
    assert_eq!(epoch_of(&outputs), Some(42), "{outputs:?}");
}

#[test]
fn a_relay_that_invents_an_epoch_of_this_process_is_left_alone() {
    let (mut a, (first, _), (_, _)) = on_two(&["r1", "r2"]);
    a.lost(first);
    let (again, _, _) = a.next_try();
    let outputs = a.welcome(again, 9, ME);
    assert!(outputs.contains(&Output::Detach { attach: again, code: RefusalCode::ProtocolError }));
    assert_eq!(a.login.epoch(), LoginEpoch(2));
}

#[test]
fn a_scout_takes_the_standbys_place_only_where_it_is_clearly_better() {
    for (rtt_us, better) in [(13_000, true), (15_500, false), (30_000, false)] {
        let (mut a, (_, one), (second, two)) = on_two(&["r1", "r2", "r3"]);
        let (scout, three, waited) = a.next_try();
        assert!(waited >= SCOUT.mul_f64(0.7) && waited <= SCOUT.mul_f64(1.3), "{waited:?}");
        let mut outputs = a.near(scout, 1, ME, rtt_us);
        if !better {
            while outputs.is_empty() {
                outputs = a.next();
            }
            let code = RefusalCode::EndedByCaller;
            assert_eq!(outputs, [Output::Detach { attach: scout, code }]);
            assert_eq!(a.roles(), (Some(one), Some(two)));
            continue;
        }
        while epoch_of(&outputs).is_none() {
            outputs = a.next();
        }
        assert_eq!(epoch_of(&outputs), Some(1), "nothing was lost");
        assert_eq!(a.roles().1, Some(two), "it stays until the other stands");
        a.feed(Input::LoggedIn(scout));
        assert_eq!(a.roles(), (Some(one), Some(three)));
        let replaced = a.now;
        let outputs = a.next();
        assert_eq!(outputs, [Output::Detach { attach: second, code: RefusalCode::EndedByCaller }]);
        assert_eq!(a.now - replaced, GRACE);
    }
}

#[test]
fn roles_change_within_the_epoch_and_the_new_primary_first() {
    let (mut a, (first, one), (second, two)) = on_two(&["r1", "r2"]);
    for _ in 0..20 {
        a.feed(Input::Rtt { attach: first, rtt_us: 80_000 });
    }
    let (attach, epoch, role) = a.next_login();
    assert_eq!((attach, epoch, role), (second, 1, AttachmentRole::Primary));
    assert_eq!(a.roles(), (Some(two), Some(one)));
    let outputs = a.feed(Input::LoggedIn(second));
    let (epoch, role) = (LoginEpoch(1), AttachmentRole::Standby);
    assert_eq!(outputs, [Output::Login { attach: first, epoch, role }]);
}

#[test]
fn a_draining_relay_is_left_after_another_stands() {
    let (mut a, (first, one), (second, two)) = on_two(&["r1", "r2", "r3"]);
    let contacts = |draining: &[&String]| {
        let all = ["r1", "r2", "r3"].map(str::to_owned);
        all.iter().map(|name| contact(name, draining.contains(&name))).collect::<Vec<_>>()
    };
    let draining = BTreeSet::from([RelayName::new(&one).unwrap()]);
    assert_eq!(a.feed(Input::Contacts(contacts(&[&one]))), [Output::Draining(draining)]);
    let told = a.now;
    assert_eq!(a.next_login(), (second, 1, AttachmentRole::Primary));
    assert!(a.now - told <= DRAIN_JITTER);
    a.feed(Input::LoggedIn(second));
    a.feed(Input::LoggedIn(first));
    let third = match a.login.try_by_id.iter().find(|(_, attempt)| attempt.is_attaching()) {
        Some((&third, _)) => third,
        None => a.next_try().0,
    };
    a.near(third, 1, ME, 200_000);
    while a.login.asked.is_none() {
        a.next();
    }
    assert_eq!(a.roles(), (Some(two.clone()), Some(one)));
    a.feed(Input::LoggedIn(third));
    assert_eq!(a.roles().0, Some(two));
    let outputs = a.next();
    assert_eq!(outputs, [Output::Detach { attach: first, code: RefusalCode::EndedByCaller }]);
}

#[test]
fn where_there_is_no_other_relay_a_draining_one_is_not_left() {
    let (mut a, (_, one), (second, two)) = on_two(&["r1", "r2"]);
    let drains = vec![contact("r1", true), contact("r2", true)];
    a.feed(Input::Contacts(drains));
    let until = a.now + Duration::from_secs(3_600);
    let mut steps = 0;
    while let Some(due) = a.login.poll_timeout().filter(|due| *due <= until) {
        assert!(due >= a.now);
        a.now = due;
        a.feed(Input::Timeout);
        steps += 1;
    }
    assert!(steps < 200, "{steps}");
    assert_eq!(a.roles(), (Some(one.clone()), Some(two)));
    a.lost(second);
    assert_eq!(a.roles(), (Some(one), None));
}

/// Two relays are parted, one of them drains, ends and comes back: the other never heard of the drain, so it has nothing to
/// tell when they are joined again.
#[test]
fn a_relay_that_drained_and_ended_is_tried_again_though_no_other_heard_of_its_drain() {
    let (mut a, (first, one), (second, two)) = on_two(&["r1", "r2"]);
    let draining = |outputs: Vec<Output>| {
        outputs.into_iter().rev().find_map(|output| match output {
            Output::Draining(relays) => Some(relays.len()),
            _ => None,
        })
    };
    let told = |a: &mut Agent, by, drain: [bool; 2]| {
        draining(a.feed(Input::Told(by, vec![contact(&one, drain[0]), contact(&two, drain[1])])))
    };
    assert_eq!(told(&mut a, first, [false; 2]), None);
    assert_eq!(told(&mut a, second, [false; 2]), None);
    assert_eq!(told(&mut a, second, [false, true]), Some(1));
    // What another says of who speaks for himself counts for nothing.
    assert_eq!(told(&mut a, first, [false; 2]), None);
    assert_eq!(draining(a.lost(second)), Some(0));
    a.feed(Input::LoggedIn(first));
    assert_eq!(a.next_try().1, two);
}

#[test]
fn logout_ends_both_and_says_so_to_both() {
    let (mut a, (first, _), (second, _)) = on_two(&["r1", "r2", "r3"]);
    let outputs = a.feed(Input::Logout);
    for attach in [first, second] {
        assert!(outputs.contains(&Output::Detach { attach, code: RefusalCode::LoggedOut }));
    }
    assert_eq!(a.login.state(), &State::LoggedOut);
    assert_eq!(a.login.poll_timeout(), None);
}

#[test]
fn an_unanswered_change_of_roles_is_a_loss() {
    let (mut a, (first, _), (second, _)) = on_two(&["r1", "r2", "r3"]);
    a.lost(first);
    while a.roles().0.is_some() {
        a.next();
    }
    assert!(!a.login.try_by_id.contains_key(&second));
}

mod world;
