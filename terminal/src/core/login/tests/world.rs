//! An agent among relays that come and go, in virtual time.
//!
//! The relays do what `relay/src/core/login.rs` does: they refuse older epochs, and cut what stands when they hear of a
//! newer one. They hear of each other after a while, or not while they are down.

use rand::Rng;

use super::*;

const RELAYS: usize = 5;
/// After this a relay notices that it lost a terminal.
const SILENCE: Duration = Duration::from_secs(29);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    /// The relay takes a connection.
    Hello(AttachId),
    /// The terminal gives up dialling.
    NotReached(AttachId),
    /// Login arrives at the relay.
    Login(AttachId, LoginEpoch, AttachmentRole),
    /// The relay's answer arrives.
    Answer(AttachId),
    Superseded(AttachId),
    /// The relay notices that nobody is there.
    Silent(AttachId),
    /// A relay hears of the row of another.
    Gossip(usize, LoginEpoch),
}

#[derive(Debug, Clone)]
struct Conn {
    relay: usize,
    /// What the relay holds of it.
    row: Option<(LoginEpoch, AttachmentRole)>,
    /// The agent still counts on it.
    open: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Node {
    up: bool,
    draining: bool,
    rtt_us: u32,
    highest: LoginEpoch,
}

struct World {
    agent: Agent,
    rng: SmallRng,
    nodes: [Node; RELAYS],
    conns: BTreeMap<AttachId, Conn>,
    events: Vec<(Instant, Event)>,
    tries: Vec<Instant>,
    logins: Vec<(Instant, AttachId)>,
    changes: usize,
    noise: f64,
}

impl World {
    fn new(seed: u64, relays: usize) -> Self {
        let names: Vec<String> = (0..relays).map(|n| format!("r{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut agent = agent(RelayChoice::Auto, &names);
        agent.login.rng = SmallRng::seed_from_u64(seed);
        let node = Node { up: true, rtt_us: 10_000, ..Node::default() };
        let mut world = Self {
            agent,
            rng: SmallRng::seed_from_u64(seed ^ 1),
            nodes: [node; RELAYS],
            conns: BTreeMap::new(),
            events: Vec::new(),
            tries: Vec::new(),
            logins: Vec::new(),
            changes: 0,
            noise: 0.0,
        };
        for node in &mut world.nodes[relays..] {
            node.up = false;
        }
        world.feed(Input::Login);
        world
    }

    fn rtt(&mut self, relay: usize) -> u32 {
        let noise = 1.0 + self.noise * self.rng.random_range(-1.0..=1.0);
        (f64::from(self.nodes[relay].rtt_us) * noise) as u32
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.events.push((self.agent.now + wait, event));
    }

    fn feed(&mut self, input: Input) {
        let before = self.agent.login.epoch();
        for output in self.agent.feed(input) {
            self.perform(output);
        }
        assert!(self.agent.login.epoch() >= before, "epochs never decrease");
        self.check();
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Attach { attach, relay } => {
                let relay = relay.name.as_str()[1..].parse().unwrap();
                assert!(
                    !self.conns.values().any(|c| c.open && c.relay == relay),
                    "two on one relay"
                );
                self.conns.insert(attach, Conn { relay, row: None, open: true });
                self.tries.push(self.agent.now);
                let rtt = Duration::from_micros(self.rtt(relay).into());
                if self.nodes[relay].up {
                    self.after(rtt * 4, Event::Hello(attach));
                } else {
                    self.after(Duration::from_secs(5), Event::NotReached(attach));
                }
            }
            Output::Login { attach, epoch, role } => {
                self.logins.push((self.agent.now, attach));
                let rtt = self.rtt(self.conns[&attach].relay);
                self.after(
                    Duration::from_micros(rtt.into()) / 2,
                    Event::Login(attach, epoch, role),
                );
            }
            Output::Detach { attach, .. } => {
                self.conns.remove(&attach);
            }
            Output::State(state) => {
                assert!(!matches!(state, State::Parked(_)), "there is no other process");
                self.changes += 1;
            }
            Output::Draining(_) => {}
        }
    }

    fn check(&self) {
        let stands = |attempt: &&Try| matches!(attempt.stage, Stage::Standing { .. });
        assert!(self.agent.login.try_by_id.values().filter(stands).count() <= 2);
        let login = &self.agent.login;
        assert!(login.primary.is_some() || login.standby.is_none());
        let relays: Vec<_> = login.try_by_id.values().map(|attempt| &attempt.relay).collect();
        assert_eq!(relays.len(), relays.iter().collect::<BTreeSet<_>>().len());
        assert!(relays.len() <= TRIES_IN_ALL + 4);
    }

    fn happen(&mut self, event: Event) {
        let lost = |attach| Input::Lost { attach, refusal: RefusalCode::Silent.into() };
        match event {
            Event::NotReached(attach) => self.close(attach, lost(attach)),
            Event::Hello(attach) => {
                let Some(conn) = self.conns.get(&attach).cloned() else { return };
                let node = self.nodes[conn.relay];
                if !node.up {
                    return self.close(attach, lost(attach));
                }
                if node.draining {
                    let refusal = RefusalCode::Draining.into();
                    return self.close(
                        attach,
                        Input::Refused { attach, refusal, retry_after_ms: 0, by: Claim::None },
                    );
                }
                let rtt_us = self.rtt(conn.relay);
                let highest = claim(node.highest.0, if node.highest.0 == 0 { 0 } else { ME });
                let welcome = Input::Welcome { attach, highest, terminals: 0, rtt_us };
                self.feed(welcome);
            }
            Event::Login(attach, epoch, role) => {
                let Some(conn) = self.conns.get_mut(&attach) else { return };
                let node = &mut self.nodes[conn.relay];
                if !node.up {
                    return;
                }
                let back = Duration::from_micros(node.rtt_us.into()) / 2;
                if epoch < node.highest {
                    return self.after(back, Event::Superseded(attach));
                }
                node.highest = epoch;
                conn.row = Some((epoch, role));
                self.after(back, Event::Answer(attach));
                for relay in 0..RELAYS {
                    let wait = Duration::from_millis(self.rng.random_range(0..50));
                    self.after(wait, Event::Gossip(relay, epoch));
                }
            }
            Event::Answer(attach) => {
                if self.conns.get(&attach).is_some_and(|conn| conn.open) {
                    self.feed(Input::LoggedIn(attach));
                }
            }
            Event::Superseded(attach) => {
                let refusal = RefusalCode::Superseded.into();
                let Some(conn) = self.conns.get(&attach) else { return };
                let by = claim(self.nodes[conn.relay].highest.0, ME);
                self.close(attach, Input::Refused { attach, refusal, retry_after_ms: 0, by });
            }
            Event::Silent(attach) => {
                self.conns.remove(&attach);
            }
            Event::Gossip(relay, epoch) => {
                if !self.nodes[relay].up || self.nodes[relay].highest >= epoch {
                    return;
                }
                self.nodes[relay].highest = epoch;
                let cut = self.conns.iter().filter(|(_, conn)| conn.relay == relay);
                let cut = cut.filter(|(_, conn)| conn.row.is_some_and(|(held, _)| held < epoch));
                for attach in cut.map(|(attach, _)| *attach).collect::<Vec<_>>() {
                    self.after(Duration::from_millis(5), Event::Superseded(attach));
                }
            }
        }
    }

    /// The agent hears of the end of a connection.
    fn close(&mut self, attach: AttachId, input: Input) {
        if self.conns.remove(&attach).is_some_and(|conn| conn.open) {
            self.feed(input);
        }
    }

    /// The agent loses a connection; its relay does not notice.
    fn half_open(&mut self, attach: AttachId) {
        if let Some(conn) = self.conns.get_mut(&attach).filter(|conn| conn.open) {
            conn.open = false;
            self.after(SILENCE, Event::Silent(attach));
            self.feed(Input::Lost { attach, refusal: RefusalCode::Silent.into() });
        }
    }

    fn set_up(&mut self, relay: usize, up: bool) {
        self.nodes[relay].up = up;
        if up {
            // It learns of the table before it takes terminals.
            let highest = self.nodes.iter().filter(|node| node.up).map(|node| node.highest).max();
            self.nodes[relay].highest = highest.unwrap_or_default();
            return;
        }
        self.nodes[relay].highest = LoginEpoch(0);
        let gone = self.conns.iter().filter(|(_, conn)| conn.relay == relay && conn.row.is_some());
        for attach in gone.map(|(attach, _)| *attach).collect::<Vec<_>>() {
            self.close(attach, Input::Lost { attach, refusal: RefusalCode::Silent.into() });
        }
    }

    fn set_draining(&mut self, draining: [bool; RELAYS]) {
        for (node, draining) in self.nodes.iter_mut().zip(draining) {
            node.draining = draining;
        }
        let contacts =
            draining.iter().enumerate().map(|(n, drains)| contact(&format!("r{n}"), *drains));
        self.feed(Input::Contacts(contacts.collect()));
    }

    fn run(&mut self, time: Duration) {
        let until = self.agent.now + time;
        loop {
            let first = self.events.iter().enumerate().min_by_key(|(n, (at, _))| (*at, *n));
            let first = first.map(|(n, (at, _))| (*at, n));
            let timer = self.agent.login.poll_timeout();
            let next = first.map(|(at, _)| at).into_iter().chain(timer).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.agent.now = next.max(self.agent.now);
            match first {
                Some((at, n)) if at <= next => {
                    let (_, event) = self.events.remove(n);
                    self.happen(event);
                }
                _ => {
                    let standing = self.agent.login.try_by_id.iter();
                    let standing = standing.filter(|(_, attempt)| !attempt.is_open());
                    for attach in standing.map(|(attach, _)| *attach).collect::<Vec<_>>() {
                        if let Some(relay) = self.conns.get(&attach).map(|conn| conn.relay) {
                            let rtt_us = self.rtt(relay);
                            self.feed(Input::Rtt { attach, rtt_us });
                        }
                    }
                    self.feed(Input::Timeout);
                    let again = self.agent.login.poll_timeout();
                    assert!(
                        again.is_none_or(|at| at > self.agent.now),
                        "a timer that is never done"
                    );
                }
            }
        }
        self.agent.now = until;
    }

    /// Lets what is being said come to its end.
    fn settle(&mut self, time: Duration) {
        self.run(time);
        for _ in 0..10 {
            if self.agent.login.asked.is_some() {
                self.run(Duration::from_millis(500));
            }
        }
    }

    fn relays(&self) -> (Option<usize>, Option<usize>) {
        let number = |name: Option<String>| name.map(|name| name[1..].parse().unwrap());
        let (primary, standby) = self.agent.roles();
        (number(primary), number(standby))
    }

    /// What every table shows: the rows of the highest epoch at relays that are up.
    fn table(&self) -> BTreeMap<usize, AttachmentRole> {
        let rows = || self.conns.values().filter(|conn| self.nodes[conn.relay].up);
        let rows = || rows().filter_map(|conn| Some((conn.relay, conn.row?)));
        let highest = rows().map(|(_, (epoch, _))| epoch).max();
        let current = rows().filter(|(_, (epoch, _))| Some(*epoch) == highest);
        current.map(|(relay, (_, role))| (relay, role)).collect()
    }

    /// Both stand, and every table shows it. What was replaced and lost before it was left may still be shown as a
    /// standby.
    fn assert_both(&self, strict: bool) {
        let (Some(primary), Some(standby)) = self.relays() else {
            panic!("{:?}: {:?}", self.agent.login.state(), self.agent.login);
        };
        let shown = BTreeMap::from([
            (primary, AttachmentRole::Primary),
            (standby, AttachmentRole::Standby),
        ]);
        let mut table = self.table();
        if !strict {
            table.retain(|relay, role| {
                shown.contains_key(relay) || *role == AttachmentRole::Primary
            });
        }
        assert_eq!(table, shown);
    }

    fn most_in(times: impl Iterator<Item = Instant>, window: Duration) -> usize {
        let times: Vec<_> = times.collect();
        let within =
            |at: &Instant| times.iter().filter(|t| **t >= *at && **t < *at + window).count();
        times.iter().map(within).max().unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Relays die, return, drain, become slow, and lose the terminal without noticing. At any time at most two
    /// attachments stand, on different relays; epochs never decrease; nothing is tried in a storm; no relay hears of more
    /// changes than it takes. When two relays or more behave, both attachments stand within seconds, and the table says so.
    #[test]
    fn it_always_gets_to_two(
        seed in any::<u64>(),
        steps in proptest::collection::vec((0_u8..10, 0..RELAYS, 0_u32..8_000), 0..60),
        good in proptest::collection::btree_set(0..RELAYS, 2..=RELAYS),
    ) {
        let mut world = World::new(seed, RELAYS);
        let mut draining = [false; RELAYS];
        for (what, which, number) in steps {
            match what {
                0..=2 => world.set_up(which, !world.nodes[which].up),
                3 => {
                    draining[which] = !draining[which];
                    world.set_draining(draining);
                }
                4..=5 => {
                    let standing = world.conns.iter().filter(|(_, conn)| conn.row.is_some());
                    let attach = standing.map(|(attach, _)| *attach).nth(which % 2);
                    if let Some(attach) = attach {
                        world.half_open(attach);
                    }
                }
                6 => world.nodes[which].rtt_us = 1_000 + number * 20,
                _ => {}
            }
            world.run(Duration::from_millis(number.into()));
        }
        world.set_draining([false; RELAYS]);
        for relay in 0..RELAYS {
            let up = good.contains(&relay);
            if world.nodes[relay].up != up {
                world.set_up(relay, up);
            }
        }
        // A try at a relay that was down takes 5 s, and the next comes after the back-off.
        world.run(Duration::from_secs(9));
        world.settle(GRACE + Duration::from_secs(1));
        world.assert_both(false);
        world.settle(SILENCE);
        world.assert_both(true);
        let tries = World::most_in(world.tries.iter().copied(), Duration::from_secs(60));
        prop_assert!(tries <= RELAYS * 40, "{} tries in a minute", tries);
        for &(_, attach) in &world.logins {
            let times = world.logins.iter().filter(|(_, a)| *a == attach).map(|(at, _)| *at);
            let most = limits::ROLE_CHANGES_AT_ONCE as usize;
            prop_assert!(World::most_in(times, Duration::from_secs(2)) <= most);
        }
    }

    /// Equal relays whose round-trip times are noisy: nobody changes his place for noise. A relay that is far better is
    /// found.
    #[test]
    fn noise_moves_nobody(seed in any::<u64>(), rtt_us in 500_u32..60_000) {
        let mut world = World::new(seed, 3);
        for node in &mut world.nodes {
            node.rtt_us = rtt_us;
        }
        world.noise = 0.15;
        world.run(Duration::from_secs(10));
        world.assert_both(true);
        let changes = world.changes;
        world.run(Duration::from_secs(24 * 3_600));
        prop_assert_eq!(world.changes, changes);
        let (_, Some(standby)) = world.relays() else { panic!() };
        world.nodes[standby].rtt_us = 400_000;
        world.run(Duration::from_secs(2 * 3_600));
        prop_assert!(world.relays().1 != Some(standby));
        prop_assert!(world.changes <= changes + 2);
    }

    /// Whatever the noise, places change at a bounded rate.
    #[test]
    fn wild_noise_moves_seldom(seed in any::<u64>()) {
        let mut world = World::new(seed, 4);
        world.noise = 0.95;
        for (n, node) in world.nodes.iter_mut().enumerate() {
            node.rtt_us = 40_000 + 10_000 * n as u32;
        }
        world.run(Duration::from_secs(12 * 3_600));
        prop_assert!(world.changes <= 2 * 12 * 6 + 10, "{}", world.changes);
    }
}

#[test]
fn a_drained_mesh_moves_relay_by_relay() {
    let mut world = World::new(7, RELAYS);
    world.run(Duration::from_secs(2));
    for drained in 0..RELAYS {
        world.set_draining(std::array::from_fn(|n| n == drained));
        world.run(DRAIN_JITTER + GRACE + Duration::from_secs(3));
        world.assert_both(true);
        let (primary, standby) = world.relays();
        assert!(primary != Some(drained) && standby != Some(drained));
    }
    assert_eq!(world.agent.login.epoch(), LoginEpoch(1), "nothing was lost");
}
