//! Two terminals, their relays and the lines between them, in virtual time.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use tasuki_proto::control::Resumed;
use tasuki_proto::path::{PathNews, Probe};
use tasuki_proto::session::Addresses;
use tasuki_proto::{Generation, Label, RelayId, ServiceName, TerminalId};

use super::*;
use crate::core::calls::Opened;
use crate::core::login::AttachId;

const CALLER: usize = 0;
const CALLEE: usize = 1;

/// What a line does to frames, one way.
#[derive(Debug, Clone, Copy)]
struct Line {
    delay: Duration,
    loss: f64,
    longest: usize,
}

const GOOD: Line = Line { delay: Duration::from_millis(10), loss: 0.0, longest: usize::MAX };
const DEAD: Line = Line { loss: 1.0, ..GOOD };

#[derive(Debug)]
enum Event {
    Frame { to: usize, path: PathId, from: SocketAddr, probe: Probe },
    Message { to: usize, input: Input },
}

struct End {
    paths: Paths,
    current: PathId,
    epoch: u32,
    also: Option<PathId>,
    moves: usize,
    data: DataCounts,
    address: SocketAddr,
    installed: BTreeMap<PathId, SocketAddr>,
    failed: Option<RefusalCode>,
    /// Its attachments: id and relay.
    attached: Vec<(AttachId, &'static str)>,
}

struct World {
    ends: [End; 2],
    now: Instant,
    events: BTreeMap<(Instant, u64), Event>,
    count: u64,
    rng: SmallRng,
    /// By path generation (of the caller's numbering) and direction; direct lines by `u32::MAX`.
    lines: BTreeMap<(u32, usize), Line>,
    /// Relays that pass probes and drop data.
    droppers: BTreeSet<&'static str>,
    /// Direct paths drop data.
    direct_drops: bool,
    /// Whether the session has data under way at all times.
    bulk: bool,
    /// Relays that carry nothing.
    dead_relays: BTreeSet<&'static str>,
    routes: BTreeMap<u32, Vec<&'static str>>,
    /// Relays between those of the two ends, where there are any: each path takes one.
    middles: Vec<&'static str>,
    /// Paths that the caller asked for.
    asked: usize,
    draining: BTreeSet<RelayName>,
    probes: usize,
    /// How often something was due.
    steps: usize,
    /// What relays were told of the session's data: by whom, to which attachment, what.
    reports: Vec<(usize, AttachId, PathNews)>,
}

const DIRECT: u32 = u32::MAX;

fn id() -> SessionId {
    SessionId { edge: RelayId(1), nonce: 7 }
}

fn relay(name: &str) -> RelayName {
    RelayName::new(name).unwrap()
}

fn opened(outgoing: bool, route: [&str; 2]) -> Opened {
    Opened {
        session: id(),
        peer: TerminalId::new(if outgoing { "b" } else { "a" }).unwrap(),
        outgoing,
        label_in: Label::new(1).unwrap(),
        label_out: Label::new(2).unwrap(),
        service: ServiceName::new("ssh").unwrap(),
        route: route.map(relay).to_vec(),
        peer_address: None,
    }
}

impl World {
    fn new(seed: u64, direct: bool) -> World {
        Self::attached(seed, direct, [["r1", "r2"], ["r3", "r4"]])
    }

    /// The two ends are attached to these relays, the primary first.
    #[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
    fn attached(seed: u64, direct: bool, relays: [[&'static str; 2]; 2]) -> World {
        let now = Instant::now();
        let attached =
            relays.map(|[first, second]| vec![(AttachId(1), first), (AttachId(2), second)]);
        let route = [relays[CALLER][0], relays[CALLEE][0]];
        let config = Config { direct, ..Config::default() };
        let ends = attached.map(|attached| End {
            paths: Paths::new(config.clone(), SmallRng::seed_from_u64(seed)),
            current: PathId::Relayed(Generation::CALL),
            epoch: 0,
            also: None,
            moves: 0,
            data: DataCounts::default(),
            address: format!("198.51.100.{}:5000", attached[1].1.as_bytes()[1]).parse().unwrap(),
            installed: BTreeMap::new(),
            failed: None,
            attached,
        });
        let mut world = World {
            ends,
            now,
            events: BTreeMap::new(),
            count: 0,
            rng: SmallRng::seed_from_u64(seed),
            lines: BTreeMap::new(),
            droppers: BTreeSet::new(),
            direct_drops: false,
            bulk: false,
            dead_relays: BTreeSet::new(),
            routes: BTreeMap::from([(0, route.to_vec())]),
            middles: Vec::new(),
            asked: 0,
            draining: BTreeSet::new(),
            probes: 0,
            steps: 0,
            reports: Vec::new(),
        };
        for end in [CALLER, CALLEE] {
            world.tell_attachments(end);
            let address = world.ends[end].address;
            let candidates = vec![Candidate { address, local: true }];
            world.give(end, Input::Candidates(candidates));
            let opened = opened(end == CALLER, route);
            world.give(end, Input::Opened { opened, attach: AttachId(1) });
        }
        let rtt = GOOD.delay * 2;
        for end in [CALLER, CALLEE] {
            world.give(end, Input::Proven { session: id(), most: 8_944, rtt });
        }
        world
    }

    fn tell_attachments(&mut self, end: usize) {
        let address = "203.0.113.1:4433".parse().unwrap();
        let standing = self.ends[end]
            .attached
            .iter()
            .map(|(attach, name)| Standing {
                attach: *attach,
                relay: relay(name),
                address,
                leaving: false,
            })
            .collect();
        self.give(end, Input::Attachments(standing));
    }

    fn at(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    fn message(&mut self, to: usize, input: Input) {
        self.at(Duration::from_millis(15), Event::Message { to, input });
    }

    fn give(&mut self, end: usize, input: Input) {
        self.ends[end].paths.handle(input, self.now);
        while let Some(output) = self.ends[end].paths.poll_output() {
            self.perform(end, output);
        }
    }

    fn perform(&mut self, end: usize, output: Output) {
        let other = 1 - end;
        match output {
            Output::Say(attach, message) => self.relay(end, attach, message),
            Output::Install { path, to, .. } => {
                self.ends[end].installed.insert(path, to);
            }
            Output::Remove { path, .. } => {
                self.ends[end].installed.remove(&path);
            }
            Output::Use { path, epoch, .. } => {
                let end = &mut self.ends[end];
                assert!(epoch >= end.epoch, "epochs do not go back");
                (end.current, end.epoch) = (path, epoch);
                end.moves += 1;
            }
            Output::Duplicate { path, .. } => self.ends[end].also = path,
            Output::Probe { path, probe, length, hops, .. } => {
                self.probes += 1;
                if hops.is_none() {
                    self.send(end, path, probe, length);
                }
            }
            Output::Tell(_, Word::Addresses(addresses)) => {
                self.message(other, Input::PeerAddresses(id(), addresses));
            }
            Output::Tell(_, Word::Attachments(attachments)) => {
                self.message(other, Input::PeerAttachments(id(), attachments));
            }
            Output::Tell(_, Word::Nat(nat)) => self.message(other, Input::PeerNat(id(), nat.kind)),
            Output::Failed { code, .. } => self.ends[end].failed = Some(code),
            Output::Watch(session) => {
                self.ends[end].paths.handle(Input::Mtu { session, mtu: 1_444 }, self.now);
            }
            Output::Measure(session) => {
                let data = self.data(end);
                self.ends[end].paths.handle(Input::Data { session, data }, self.now);
            }
            Output::Tell(..)
            | Output::Doubt(_)
            | Output::Ceiling { .. }
            | Output::Listen { .. }
            | Output::Changed(_) => {}
        }
    }

    /// What the session's connection counts: data arrives, and its acknowledgement comes back by the peer's own path.
    fn data(&mut self, end: usize) -> DataCounts {
        let drops = |path: PathId| match path {
            PathId::Relayed(generation) => {
                let route = self.routes.get(&generation.0).map(Vec::as_slice).unwrap_or_default();
                route.iter().any(|relay| self.droppers.contains(relay))
            }
            PathId::Direct(_) => self.direct_drops,
        };
        let arrives = [end, 1 - end].iter().all(|&end| !drops(self.ends[end].current));
        let data = &mut self.ends[end].data;
        if self.bulk {
            data.asked += 2;
            data.acked += if arrives { 2_400 } else { 0 };
        }
        *data
    }

    /// The mesh: a path leads to the callee's relay that is to be avoided least.
    fn relay(&mut self, end: usize, attach: AttachId, message: ToRelay) {
        let name = self.ends[end].attached.iter().find(|(a, _)| *a == attach).map(|(_, n)| *n);
        let Some(name) = name.filter(|name| !self.dead_relays.contains(name)) else { return };
        match message {
            ToRelay::Resume(resume) => {
                assert_eq!(end, CALLER, "only the caller asks");
                let generation = resume.generation.0;
                let mut there: Vec<(AttachId, &str)> = self.ends[CALLEE].attached.clone();
                there.sort_by_key(|(_, name)| resume.avoid.contains(&relay(name)));
                let Some((to, last)) = there.first().copied() else {
                    let code = RefusalCode::TargetLoggedOut;
                    let end =
                        control::PathEnd { session: id(), generation: resume.generation, code };
                    return self.message(CALLER, Input::PathEnded(end));
                };
                self.asked += 1;
                if self.dead_relays.contains(last) {
                    // Nobody knows yet.
                    return;
                }
                // As routes cost: avoided relays more than draining ones.
                let avoided = |name: &&&str| {
                    let name = relay(name);
                    (resume.avoid.contains(&name), self.draining.contains(&name))
                };
                let middle = self.middles.iter().min_by_key(avoided).copied();
                if middle.is_some_and(|middle| self.dead_relays.contains(middle)) {
                    return;
                }
                let mut route: Vec<&str> =
                    [Some(name), middle, Some(last)].into_iter().flatten().collect();
                route.dedup();
                self.routes.insert(generation, route.clone());
                let resuming = control::Resuming {
                    session: id(),
                    generation: resume.generation,
                    caller: TerminalId::new("a").unwrap(),
                    label: Label::new(90).unwrap(),
                    route: route.into_iter().map(relay).collect(),
                };
                self.message(CALLEE, Input::Resuming { attach: to, resuming });
            }
            ToRelay::AcceptPath(accept) => {
                let route = self.routes[&accept.generation.0].iter().map(|n| relay(n)).collect();
                let resumed = Resumed {
                    session: id(),
                    generation: accept.generation,
                    label: accept.label,
                    route,
                };
                let name = self.routes[&accept.generation.0][0];
                let attach = self.ends[CALLER].attached.iter().find(|(_, n)| *n == name);
                if let Some((attach, _)) = attach.copied() {
                    self.message(CALLER, Input::Resumed { attach, resumed });
                }
            }
            ToRelay::EndPath(path) => self.message(1 - end, Input::PathEnded(path)),
            ToRelay::PathReport(report) => self.reports.push((end, attach, report.news)),
            other => panic!("{other:?}"),
        }
    }

    fn line(&self, path: PathId, from: usize) -> Line {
        let key = match path {
            PathId::Relayed(generation) => generation.0,
            PathId::Direct(_) => DIRECT,
        };
        let route = self.routes.get(&key).map(Vec::as_slice).unwrap_or_default();
        if route.iter().any(|relay| self.dead_relays.contains(relay)) {
            return DEAD;
        }
        let direct = key == DIRECT && !self.lines.contains_key(&(key, from));
        if direct { DEAD } else { self.lines.get(&(key, from)).copied().unwrap_or(GOOD) }
    }

    fn send(&mut self, from: usize, path: PathId, probe: Probe, length: usize) {
        let line = self.line(path, from);
        if !self.ends[from].installed.contains_key(&path)
            && path != PathId::Relayed(Generation::CALL)
        {
            return;
        }
        if self.rng.random_bool(line.loss) || length > line.longest {
            return;
        }
        let jitter = line.delay.mul_f64(self.rng.random_range(0.0..0.2));
        let source = self.ends[from].address;
        let frame = Event::Frame { to: 1 - from, path, from: source, probe };
        self.at(line.delay + jitter, frame);
    }

    fn arrive(&mut self, to: usize, path: PathId, from: SocketAddr, probe: Probe) {
        let here = match path {
            PathId::Relayed(_) => Some(path),
            PathId::Direct(_) => {
                let mut known = self.ends[to].installed.iter();
                known.find(|(p, a)| matches!(p, PathId::Direct(_)) && **a == from).map(|(p, _)| *p)
            }
        };
        if !probe.answer
            && let Some(here) = here
        {
            let end = &self.ends[to];
            let in_use = end.current == here;
            let (number, epoch) = (probe.number, end.epoch);
            let answer = Probe { number, echo: 0, epoch, answer: true, in_use, stalled: false };
            self.send(to, here, answer, 40);
        }
        let heard = here.map_or(Heard::From(from), Heard::On);
        let (session, at) = (id(), self.now);
        self.give(to, Input::Heard { session, heard, probe, at });
    }

    /// Lets time pass; both sessions are busy meanwhile when `busy`.
    fn run(&mut self, time: Duration, busy: bool) {
        let until = self.now + time;
        loop {
            if busy {
                for end in [CALLER, CALLEE] {
                    self.give(end, Input::Busy(id()));
                }
            }
            let event = self.events.first_key_value().map(|((at, _), _)| *at);
            let timers = self.ends.iter().filter_map(|end| end.paths.poll_timeout()).min();
            let next = event.into_iter().chain(timers).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = next.max(self.now);
            self.steps += 1;
            if event == Some(next) {
                match self.events.pop_first().unwrap().1 {
                    Event::Frame { to, path, from, probe } => self.arrive(to, path, from, probe),
                    Event::Message { to, input } => self.give(to, input),
                }
            } else {
                for end in [CALLER, CALLEE] {
                    if self.ends[end].paths.poll_timeout().is_some_and(|due| due <= self.now) {
                        self.give(end, Input::Timeout);
                    }
                }
            }
        }
    }

    /// Runs until `done`, and says how long it took.
    fn run_until(&mut self, most: Duration, busy: bool, done: impl Fn(&World) -> bool) -> Duration {
        let begun = self.now;
        while !done(self) {
            assert!(self.now < begun + most, "not within {most:?}: {}", self.state());
            self.run(Duration::from_millis(5), busy);
        }
        self.now - begun
    }

    fn state(&self) -> String {
        let of =
            |end: &End| format!("{:?} epoch {} {:?}", end.current, end.epoch, end.paths.info(id()));
        format!("caller {}; callee {}", of(&self.ends[0]), of(&self.ends[1]))
    }

    fn relayed_paths(&self, end: usize) -> usize {
        self.ends[end].paths.info(id()).map_or(0, |info| info.relayed_paths)
    }

    fn agree(&self) -> bool {
        match (self.ends[CALLER].current, self.ends[CALLEE].current) {
            (PathId::Direct(_), PathId::Direct(_)) => true,
            (a, b) => a == b,
        }
    }

    fn kill(&mut self, generation: u32, ways: &[usize]) {
        for &way in ways {
            self.lines.insert((generation, way), DEAD);
        }
    }

    fn route(&self, end: usize) -> Vec<String> {
        let relays = self.ends[end].paths.info(id()).unwrap().relays;
        relays.iter().map(ToString::to_string).collect()
    }
}

const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_session_gets_a_second_path_over_other_relays() {
    let mut world = World::new(1, false);
    let took = world
        .run_until(SOON, true, |w| w.relayed_paths(CALLER) == 2 && w.relayed_paths(CALLEE) == 2);
    assert!(took < Duration::from_secs(1), "{took:?}");
    world.run(Duration::from_secs(5), true);
    assert_eq!(world.routes[&1], ["r2", "r4"]);
    assert_eq!((world.relayed_paths(CALLER), world.ends[CALLER].moves), (2, 0));
    assert_eq!(world.route(CALLER), ["r1", "r3"]);
    assert_eq!(world.route(CALLEE), ["r3", "r1"], "from its own relay");
}

#[test]
fn a_quiet_path_is_left_by_both_sides_at_once_whoever_sees_it() {
    for ways in [&[CALLER, CALLEE][..], &[CALLER], &[CALLEE]] {
        let mut world = World::new(2, false);
        world.run(SOON, true);
        world.kill(0, ways);
        let both =
            |w: &World| w.agree() && w.ends[CALLER].current != PathId::Relayed(Generation(0));
        let took = world.run_until(SOON, true, both);
        assert!(took < Duration::from_millis(400), "{ways:?}: {took:?}");
        assert_eq!(world.ends[CALLER].also, None);
        // The dead path is given up and another one is there.
        world.run(Duration::from_secs(6), true);
        assert_eq!(world.relayed_paths(CALLER), 2, "{}", world.state());
        assert!(!world.ends[CALLER].installed.contains_key(&PathId::Relayed(Generation(0))));
    }
}

#[test]
fn data_takes_both_paths_before_it_moves() {
    let mut world = World::new(3, false);
    for generation in 1..9 {
        for way in [CALLER, CALLEE] {
            let slow = Line { delay: Duration::from_millis(200), ..GOOD };
            world.lines.insert((generation, way), slow);
        }
    }
    world.run(Duration::from_secs(5), true);
    world.kill(0, &[CALLER, CALLEE]);
    let took = world.run_until(SOON, true, |w| w.ends.iter().all(|end| end.also.is_some()));
    assert!(took < Duration::from_millis(300), "{took:?}");
    // It heals before the other answers: nothing moves.
    world.lines.retain(|(generation, _), _| *generation != 0);
    world.run_until(SOON, true, |w| w.ends.iter().all(|end| end.also.is_none()));
    assert_eq!(world.ends[CALLER].moves + world.ends[CALLEE].moves, 0);
}

#[test]
fn an_idle_session_notices_within_seconds_and_sends_little() {
    let mut world = World::new(4, false);
    world.run(Duration::from_secs(10), false);
    let before = world.probes;
    world.run(Duration::from_secs(600), false);
    let each = (world.probes - before) as f64 / 600.0;
    assert!(each < 0.5, "{each} probes a second over two paths and two ends");
    world.kill(0, &[CALLER, CALLEE]);
    world.run_until(Duration::from_secs(12), false, |w| {
        w.agree() && w.ends[CALLER].current != PathId::Relayed(Generation(0))
    });
}

#[test]
fn a_path_that_a_relay_ends_is_left_at_once() {
    let mut world = World::new(5, false);
    world.run(SOON, true);
    let end =
        control::PathEnd { session: id(), generation: Generation(0), code: RefusalCode::RouteLost };
    world.give(CALLER, Input::PathEnded(end));
    assert_eq!(world.ends[CALLER].current, PathId::Relayed(Generation(1)));
    world.run_until(SOON, true, |w| w.agree() && w.relayed_paths(CALLER) == 2);
}

#[test]
fn a_lost_attachment_moves_and_a_new_one_brings_a_second_path() {
    for end in [CALLER, CALLEE] {
        let mut world = World::new(6, false);
        world.run(SOON, true);
        let dead = world.ends[end].attached.remove(0);
        world.dead_relays.insert(dead.1);
        world.tell_attachments(end);
        world.run_until(SOON, true, World::agree);
        world.run(Duration::from_secs(1), true);
        world.ends[end].attached.push((AttachId(9), "r9"));
        world.tell_attachments(end);
        world.run_until(SOON, true, |w| {
            let paths = &w.ends[end].installed;
            let other: Vec<_> = w.routes.values().filter(|r| r.contains(&"r9")).collect();
            paths.len() >= 2 && !other.is_empty() && w.relayed_paths(CALLER) == 2
        });
        world.run(Duration::from_secs(5), true);
        assert!(world.agree() && world.relayed_paths(CALLEE) == 2, "{}", world.state());
    }
}

/// Whatever pair of relays each is attached to: no relay carries both paths where that can be, and the death of any one
/// that carries the data costs little.
#[test]
fn no_relay_is_on_both_paths_where_that_can_be() {
    let pairs = [["r1", "r2"], ["r2", "r1"], ["r2", "r3"], ["r3", "r1"], ["r3", "r4"]];
    for mine in pairs {
        for theirs in pairs {
            if mine[1] == theirs[1] && mine != theirs {
                // The world tells its ends apart by their standbys.
                continue;
            }
            let mut world = World::attached(20, false, [mine, theirs]);
            world.run(Duration::from_secs(8), true);
            let installed: Vec<u32> = world.ends[CALLER]
                .installed
                .keys()
                .chain([&world.ends[CALLER].current])
                .filter_map(|path| match path {
                    PathId::Relayed(generation) => Some(generation.0),
                    PathId::Direct(_) => None,
                })
                .collect();
            let routes: BTreeSet<_> = installed.iter().map(|g| world.routes[g].clone()).collect();
            let shared = |a: &Vec<&str>, b: &Vec<&str>| a.iter().any(|relay| b.contains(relay));
            let routes: Vec<_> = routes.into_iter().collect();
            assert_eq!(routes.len(), 2, "{mine:?} {theirs:?}: {routes:?}");
            assert!(!shared(&routes[0], &routes[1]), "{mine:?} {theirs:?}: {routes:?}");
            let carrying = world.route(CALLER)[0].clone();
            let dead = mine.iter().chain(&theirs).find(|relay| **relay == carrying).unwrap();
            world.dead_relays.insert(dead);
            let before = world.ends[CALLER].current;
            let moved = |w: &World| w.agree() && w.ends[CALLER].current != before;
            let took = world.run_until(SOON, true, moved);
            assert!(took < Duration::from_millis(400), "{mine:?} {theirs:?}: {took:?}");
        }
    }
}

#[test]
fn one_attachment_each_is_enough_and_the_session_waits_for_another() {
    let mut world = World::new(7, false);
    for end in [CALLER, CALLEE] {
        world.ends[end].attached.truncate(1);
        world.tell_attachments(end);
    }
    world.run(Duration::from_secs(20), true);
    assert_eq!(world.relayed_paths(CALLER), 1);
    // Both lose it, and attach elsewhere half a minute later.
    for end in [CALLER, CALLEE] {
        world.dead_relays.insert(world.ends[end].attached.remove(0).1);
        world.tell_attachments(end);
    }
    world.run(Duration::from_secs(30), true);
    assert_eq!(world.ends[CALLER].failed, None);
    world.ends[CALLER].attached.push((AttachId(8), "r8"));
    world.ends[CALLEE].attached.push((AttachId(9), "r9"));
    world.tell_attachments(CALLEE);
    world.tell_attachments(CALLER);
    let back = |w: &World| w.agree() && w.route(CALLER) == ["r8", "r9"];
    world.run_until(SOON, true, back);
    world.run(Duration::from_secs(5), true);
    assert_eq!(world.relayed_paths(CALLER), 1);
}

/// Its relays stand and nobody answers: no packet, no timer of a path wakes it.
#[test]
fn a_session_without_a_path_never_stops_to_ask() {
    let mut world = World::new(25, false);
    world.run(SOON, true);
    world.dead_relays.extend(["r3", "r4"]);
    for generation in 0..2 {
        for end in [CALLER, CALLEE] {
            let (generation, code) = (Generation(generation), RefusalCode::RouteLost);
            let lost = control::PathEnd { session: id(), generation, code };
            world.give(end, Input::PathEnded(lost));
        }
    }
    world.run(Duration::from_secs(6), false);
    while world.ends[CALLER].failed.is_none() {
        let asked = world.asked;
        world.run(Duration::from_secs(4), false);
        let over = world.ends[CALLER].failed.is_some();
        assert!(over || world.asked > asked, "it stopped: {}", world.state());
    }
}

/// A relay in the middle hangs for a minute and comes back; no attachment changes for that.
#[test]
fn a_second_path_that_could_not_be_had_is_asked_for_again() {
    let mut world = World::new(24, false);
    world.run(SOON, true);
    for generation in 1..200 {
        world.kill(generation, &[CALLER, CALLEE]);
    }
    world.run(Duration::from_secs(60), true);
    assert_eq!(world.ends[CALLER].current, PathId::Relayed(Generation(0)));
    let asked = world.asked;
    assert!(asked < 20, "{asked} questions in a minute");
    world.lines.clear();
    let back = |w: &World| {
        let works =
            |end: &End| end.paths.session_by_id[&id()].paths.values().filter(|p| p.works()).count();
        w.ends.iter().all(|end| works(end) == 2)
    };
    world.run_until(Duration::from_secs(40), true, back);
}

#[test]
fn a_session_without_a_path_ends_in_time_on_both_sides() {
    let mut world = World::new(8, false);
    world.run(SOON, true);
    for end in [CALLER, CALLEE] {
        world.ends[end].attached.clear();
        world.tell_attachments(end);
    }
    world.run(limits::RESUME_TIME - Duration::from_secs(1), true);
    assert_eq!(world.ends[CALLER].failed, None);
    world.run(Duration::from_secs(4), true);
    for end in [CALLER, CALLEE] {
        assert_eq!(world.ends[end].failed, Some(RefusalCode::RouteLost));
    }
}

#[test]
fn a_callee_that_knows_nothing_of_the_session_ends_it() {
    let mut world = World::new(9, false);
    world.run(SOON, true);
    // It restarted: other process, other sessions.
    let fresh = Paths::new(Config::default(), SmallRng::seed_from_u64(1));
    world.ends[CALLEE].paths = fresh;
    world.tell_attachments(CALLEE);
    world.kill(0, &[CALLEE]);
    world.kill(1, &[CALLEE]);
    world.run_until(Duration::from_secs(5), true, |w| w.ends[CALLER].failed.is_some());
    assert_eq!(world.ends[CALLER].failed, Some(RefusalCode::PeerLost));
}

/// Each of the two relays of a terminal hears of a change once, and one that joins later hears how it is.
#[test]
fn relays_hear_how_the_data_goes() {
    let mut world = World::new(10, true);
    world.give(CALLER, Input::Nat(NatKind::EndpointIndependent));
    world.give(CALLEE, Input::Nat(NatKind::EndpointDependent));
    for way in [CALLER, CALLEE] {
        world.lines.insert((DIRECT, way), Line { delay: Duration::from_millis(2), ..GOOD });
    }
    let direct = |w: &World| w.ends.iter().all(|end| matches!(end.current, PathId::Direct(_)));
    world.run_until(Duration::from_secs(5), true, direct);
    world.run(Duration::from_secs(5), true);
    let of = |world: &World, end: usize| -> Vec<(u64, PathNews)> {
        let own = world.reports.iter().filter(|(by, ..)| *by == end);
        own.map(|(_, attach, news)| (attach.0, *news)).collect()
    };
    let mut both = of(&world, CALLER);
    both.sort_unstable();
    assert_eq!(both, [(1, PathNews::Direct), (2, PathNews::Direct)]);
    world.reports.clear();
    for end in [CALLER, CALLEE] {
        let (generation, code) = (Generation(1), RefusalCode::RouteLost);
        let lost = control::PathEnd { session: id(), generation, code };
        world.give(end, Input::PathEnded(lost));
    }
    world.run(Duration::from_secs(5), true);
    assert_eq!(of(&world, CALLER), [(2, PathNews::Direct)], "the path that came in its place");
    world.reports.clear();
    world.kill(DIRECT, &[CALLER, CALLEE]);
    world.run_until(SOON, true, |w| w.agree() && !direct(w));
    world.run(Duration::from_secs(5), true);
    let mut both = of(&world, CALLEE);
    both.sort_unstable();
    assert_eq!(both, [(1, PathNews::Relayed), (2, PathNews::Relayed)]);
    let counts = world.ends[CALLER].paths.counts();
    let nats = (NatKind::EndpointIndependent, NatKind::EndpointDependent);
    assert_eq!(counts.by_nat[&nats].successes, counts.successes);
    world.reports.clear();
    world.run(Duration::from_secs(60), true);
    assert!(of(&world, CALLER).contains(&(1, PathNews::NoDirect)), "{:?}", world.reports);
    let counts = world.ends[CALLER].paths.counts();
    assert!(counts.by_nat[&nats].failures > 0, "{counts:?}");
}

#[test]
fn a_direct_path_is_found_used_lost_and_found_again() {
    let mut world = World::new(10, true);
    let fast = Line { delay: Duration::from_millis(2), ..GOOD };
    for way in [CALLER, CALLEE] {
        world.lines.insert((DIRECT, way), fast);
    }
    let direct = |w: &World| w.ends.iter().all(|end| matches!(end.current, PathId::Direct(_)));
    let took = world.run_until(Duration::from_secs(5), true, direct);
    assert!(took < SOON, "{took:?}");
    assert!(world.ends[CALLER].paths.info(id()).unwrap().direct);
    assert_eq!(world.route(CALLER), ["r1", "r3"], "the relays that would serve");
    world.run(Duration::from_secs(5), true);
    world.kill(DIRECT, &[CALLEE]);
    let took = world.run_until(SOON, true, |w| w.agree() && !direct(w));
    assert!(took < Duration::from_millis(400), "{took:?}");
    world.lines.insert((DIRECT, CALLEE), fast);
    world.run_until(Duration::from_secs(30), true, direct);
}

/// The relay of a session dies in its first moments, before a probe came back, and while the second path is made.
#[test]
fn a_relay_may_die_when_the_session_has_just_begun() {
    let mut slowest = Duration::ZERO;
    for ms in (0..400).step_by(5) {
        for dies in ["r1", "r3"] {
            let mut world = World::new(ms, false);
            world.run(Duration::from_millis(ms), true);
            world.dead_relays.insert(dies);
            let works = |w: &World| {
                let PathId::Relayed(generation) = w.ends[CALLER].current else { return false };
                w.agree() && !w.routes[&generation.0].contains(&dies)
            };
            let took = world.run_until(Duration::from_secs(20), true, works);
            slowest = slowest.max(took);
            if took > Duration::from_millis(900) {
                println!("{dies} dies after {ms} ms: {took:?}");
            }
        }
    }
    println!("the slowest: {slowest:?}");
    assert!(slowest < Duration::from_millis(900), "{slowest:?}");
}

/// One attachment each, and two relays between them of which one dies, comes back, and then the other dies.
#[test]
fn relays_between_may_die_in_turn() {
    for seed in 0..20 {
        let mut world = World::attached(seed, false, [["r1", "r1"], ["r3", "r3"]]);
        attach(&mut world, &[(AttachId(1), "r1")], &[(AttachId(1), "r3")]);
        world.middles = vec!["m1", "m2"];
        world.run(SOON, true);
        world.kill(0, &[CALLER, CALLEE]);
        let over = |name: &'static str| {
            move |w: &World| {
                let PathId::Relayed(generation) = w.ends[CALLER].current else { return false };
                w.agree() && w.routes[&generation.0].contains(&name)
            }
        };
        world.run_until(SOON, true, over("m1"));
        world.run(SOON, true);
        for (dies, other) in [("m1", "m2"), ("m2", "m1"), ("m1", "m2")] {
            world.dead_relays.insert(dies);
            let took = world.run_until(SOON, true, over(other));
            assert!(took < Duration::from_millis(400), "seed {seed}: {took:?}");
            world.run(Duration::from_secs(3), true);
            world.dead_relays.clear();
            world.run(Duration::from_secs(2), true);
        }
    }
}

/// Both terminals are attached to these from now on.
fn attach(
    world: &mut World,
    caller: &[(AttachId, &'static str)],
    callee: &[(AttachId, &'static str)],
) {
    world.ends[CALLER].attached = caller.to_vec();
    world.ends[CALLEE].attached = callee.to_vec();
    for end in [CALLER, CALLEE] {
        world.tell_attachments(end);
    }
}

/// A relay that was lost and is attached to again is as good as another, so that the two paths need not share one.
#[test]
fn a_relay_that_is_back_is_trusted() {
    let mut world = World::attached(3, false, [["r1", "r2"], ["r1", "r2"]]);
    world.run(SOON, true);
    let apart = |w: &World| {
        let caller = &w.ends[CALLER];
        let routes = caller.installed.keys().filter_map(|path| match path {
            PathId::Relayed(generation) => Some(&w.routes[&generation.0]),
            PathId::Direct(_) => None,
        });
        let routes: Vec<_> = routes.collect();
        routes.contains(&&vec!["r1"]) && routes.contains(&&vec!["r2"])
    };
    world.dead_relays.insert("r1");
    world.run(Duration::from_secs(4), true);
    let left = [(AttachId(2), "r2")];
    attach(&mut world, &left, &left);
    world.run(Duration::from_secs(2), true);
    world.dead_relays.clear();
    let back = [(AttachId(2), "r2"), (AttachId(3), "r1")];
    attach(&mut world, &back, &back);
    let took = world.run_until(SOON, true, apart);
    println!("two paths apart after {took:?}");
}

/// Its relay and the link to it seem to stand for seconds; whatever was asked of it comes to nothing.
#[test]
fn a_relay_at_both_ends_may_die_at_any_moment() {
    let mut slowest = Duration::ZERO;
    for ms in (0..1_500).step_by(10) {
        for relays in [
            [["r1", "r2"], ["r2", "r4"]],
            [["r2", "r1"], ["r4", "r2"]],
            [["r2", "r1"], ["r2", "r4"]],
        ] {
            let mut world = World::attached(30 + ms, false, relays);
            world.run(Duration::from_millis(ms), true);
            world.dead_relays.insert("r2");
            let works = |w: &World| {
                let end = &w.ends[CALLER];
                let PathId::Relayed(generation) = end.current else { return false };
                w.agree() && !w.routes[&generation.0].contains(&"r2")
            };
            let took = world.run_until(Duration::from_secs(20), true, works);
            slowest = slowest.max(took);
        }
    }
    println!("the slowest: {slowest:?}");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

/// Attachments change faster than paths do, as when several relays drain in turn: the callee keeps what the caller uses,
/// the caller what the callee's data still takes, and a path that was just made is not given up for the next.
#[test]
fn paths_that_are_made_in_a_hurry_do_not_push_each_other_out() {
    let mut asked = 0;
    for ms in (40..700).step_by(20) {
        let mut world = World::new(30 + ms, false);
        world.run(Duration::from_secs(5), true);
        let before = world.asked;
        let names = [["r5", "r7", "r9"], ["r6", "r8", "ra"]];
        for (round, end) in (0..3).flat_map(|round| [(round, CALLER), (round, CALLEE)]) {
            let mut attached = world.ends[end].attached.clone();
            attached.push((AttachId(round as u64 + 3), names[end][round]));
            world.ends[end].attached.clone_from(&attached);
            world.tell_attachments(end);
            let known = attached[attached.len() - 3].1;
            world.draining.insert(relay(known));
            let draining: Vec<String> = world.draining.iter().map(ToString::to_string).collect();
            tell_draining(&mut world, &draining.iter().map(String::as_str).collect::<Vec<_>>());
            let until = world.now + Duration::from_millis(ms);
            while world.now < until {
                world.run(Duration::from_millis(5), true);
                let current = world.ends[CALLER].current;
                let call = current == PathId::Relayed(Generation::CALL);
                let known = call || world.ends[CALLEE].installed.contains_key(&current);
                assert!(known, "{ms} ms: {}", world.state());
                // The callee's data follows later, and comes here until then.
                let theirs = world.ends[CALLEE].current;
                let call = theirs == PathId::Relayed(Generation::CALL);
                let known = call || world.ends[CALLER].installed.contains_key(&theirs);
                assert!(known, "{ms} ms: {}", world.state());
            }
        }
        asked = asked.max(world.asked - before);
    }
    println!("{asked} more paths at most");
    assert!(asked <= 9, "{asked} more paths");
}

/// An answer comes just after the caller's data moved: what it left is the callee's for a moment yet, and is not what is
/// given up to make room.
#[test]
fn an_answer_does_not_push_out_what_data_just_left() {
    for (since, gone) in [(Duration::from_millis(2), 1), (Duration::from_secs(1), 0)] {
        let mut world = World::new(3, false);
        world.run(Duration::from_secs(5), true);
        let now = world.now;
        world.ends[CALLER].paths.with(id(), now, |session, t| {
            let generations = [0, 1, 2].map(|n| PathId::Relayed(Generation(n)));
            assert!(session.paths.keys().eq(&generations[..2]));
            let way = health::Way::Relayed { attach: AttachId(2), route: vec![relay("r2")] };
            let label = session::Session::label(t);
            let to = session.paths[&generations[0]].to;
            let mut path = health::Path::new(way, to, (label, label), now);
            path.proven = true;
            session.install(generations[2], path, t);
            (session.current, session.left) = (generations[2], Some(generations[0]));
            session.moved_at = Some(now);
            session.make_room(now + since, t);
            let left = (0..3).filter(|n| *n != gone).map(|n| generations[n]);
            assert!(session.paths.keys().copied().eq(left), "after {since:?}");
        });
    }
}

/// Tells both ends which relays drain.
fn tell_draining(world: &mut World, names: &[&str]) {
    world.draining = names.iter().map(|name| relay(name)).collect();
    for end in [CALLER, CALLEE] {
        world.give(end, Input::Draining(world.draining.clone()));
    }
}

/// Whether a path takes this relay, in the caller's eyes.
fn takes(world: &World, name: &str) -> bool {
    let caller = &world.ends[CALLER];
    caller.installed.keys().any(|path| match path {
        PathId::Relayed(generation) => world.routes[&generation.0].contains(&name),
        PathId::Direct(_) => false,
    })
}

#[test]
fn a_draining_relay_in_the_middle_is_left_and_nothing_is_lost() {
    for busy in [true, false] {
        let mut world = World::new(20, false);
        world.middles = vec!["m1", "m2"];
        // The first path has no middle; the second one shows that paths take them.
        world.run(SOON, true);
        assert_eq!(world.routes[&1], ["r2", "m1", "r4"]);
        let dead = world.ends[CALLEE].attached.remove(0);
        world.dead_relays.insert(dead.1);
        world.ends[CALLEE].attached.push((AttachId(9), "r9"));
        world.tell_attachments(CALLEE);
        world.run(Duration::from_secs(10), true);
        assert!(world.relayed_paths(CALLER) == 2 && takes(&world, "m1"), "{}", world.state());
        world.run(Duration::from_secs(20), busy);
        tell_draining(&mut world, &["m1"]);
        let most = if busy { DRAIN_JITTER + SOON } else { DRAIN_JITTER + SOON * 2 };
        world.run_until(most, busy, |w| w.agree() && !takes(w, "m1"));
        assert!(world.relayed_paths(CALLEE) >= 1, "{}", world.state());
        world.run(Duration::from_secs(5), busy);
        assert_eq!((world.relayed_paths(CALLER), world.relayed_paths(CALLEE)), (2, 2));
        let why = world.ends[CALLER].paths.info(id()).unwrap().why;
        assert!(!why.contains("quiet"), "it moved before anything was lost: {why}");
    }
}

#[test]
fn the_only_way_is_not_left_because_it_drains() {
    let mut world = World::new(21, false);
    world.middles = vec!["m1"];
    world.run(Duration::from_secs(10), true);
    let asked = world.asked;
    let moves = |world: &World| world.ends[CALLER].moves;
    tell_draining(&mut world, &["m1", "r1", "r2", "r3", "r4"]);
    world.run(Duration::from_secs(60), true);
    assert!(world.asked <= asked + 2, "{} more paths", world.asked - asked);
    assert!(world.agree() && world.relayed_paths(CALLER) >= 1, "{}", world.state());
    assert_eq!(world.ends[CALLER].failed, None);

    // Only the relay in the middle drains: it may be done without, so another way is asked for, ever more seldom.
    let mut world = World::new(21, false);
    world.middles = vec!["m1"];
    world.ends[CALLER].attached.truncate(1);
    world.ends[CALLEE].attached.truncate(1);
    for end in [CALLER, CALLEE] {
        world.tell_attachments(end);
    }
    world.kill(0, &[CALLER, CALLEE]);
    world.run(Duration::from_secs(10), true);
    assert_eq!(world.route(CALLER), ["r1", "m1", "r3"]);
    let (asked, moved) = (world.asked, moves(&world));
    tell_draining(&mut world, &["m1"]);
    world.run(Duration::from_secs(600), true);
    assert_eq!(moves(&world), moved, "{}", world.state());
    let more = world.asked - asked;
    assert!((8..=18).contains(&more), "{more} more paths");
    // A way without it is taken soon after there is one.
    world.middles.push("m2");
    let long = Duration::from_secs(62);
    world.run_until(long, true, |w| w.agree() && !takes(w, "m1"));
    tell_draining(&mut world, &["m2"]);
    world.run(Duration::from_secs(10), true);
    assert_eq!(world.route(CALLER), ["r1", "m1", "r3"], "{}", world.state());
    assert_eq!(world.ends[CALLER].failed, None);
}

#[test]
fn data_leaves_a_draining_end_where_there_is_another() {
    for (drains, end) in [("r1", CALLER), ("r3", CALLEE)] {
        let mut world = World::new(22, false);
        world.run(Duration::from_secs(5), true);
        assert_eq!(world.route(CALLER), ["r1", "r3"]);
        tell_draining(&mut world, &[drains]);
        let left =
            |w: &World| w.agree() && w.ends[CALLER].current == PathId::Relayed(Generation(1));
        world.run_until(DRAIN_JITTER + SOON, true, left);
        world.run(Duration::from_secs(5), true);
        assert_eq!(world.route(CALLER), ["r2", "r4"]);
        let asked = world.asked;
        world.run(Duration::from_secs(30), true);
        assert_eq!(world.asked, asked, "it rests");
        // The relay ends: nothing moves for that.
        let moves = world.ends[CALLER].moves;
        world.dead_relays.insert(drains);
        world.ends[end].attached.remove(0);
        world.tell_attachments(end);
        world.run(SOON, true);
        assert_eq!(world.ends[CALLER].moves, moves);
    }
}

#[test]
fn a_path_that_was_asked_for_before_a_relay_drained_is_left_too() {
    let mut world = World::new(23, false);
    world.middles = vec!["m1", "m2"];
    world.run_until(SOON, true, |w| w.asked == 1);
    tell_draining(&mut world, &["m1"]);
    world.run(Duration::from_secs(10), true);
    assert_eq!(world.routes[&1], ["r2", "m1", "r4"]);
    assert!(!takes(&world, "m1"), "{}", world.state());
    assert_eq!(world.relayed_paths(CALLER), 2);
}

#[test]
fn what_goes_one_way_only_is_not_used_as_a_direct_path() {
    let mut world = World::new(11, true);
    world.lines.insert((DIRECT, CALLER), GOOD);
    world.run(Duration::from_secs(60), true);
    assert_eq!(world.ends[CALLER].moves + world.ends[CALLEE].moves, 0);
    let why = world.ends[CALLER].paths.info(id()).unwrap().why;
    assert!(why.contains("answered directly") || why.contains("tried"), "{why}");
}

#[test]
fn a_path_too_narrow_for_the_session_is_taken_in_need_only() {
    let mut world = World::new(12, true);
    for way in [CALLER, CALLEE] {
        let line = Line { delay: Duration::from_millis(1), longest: 1_300, ..GOOD };
        world.lines.insert((DIRECT, way), line);
    }
    world.run(Duration::from_secs(10), true);
    assert_eq!(world.ends[CALLER].moves, 0, "{}", world.state());
    for generation in 0..9 {
        world.kill(generation, &[CALLER, CALLEE]);
    }
    world.run_until(SOON, true, |w| matches!(w.ends[CALLER].current, PathId::Direct(_)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Loss and jitter alone move nothing for long: probes miss, data may take both paths, but there is no flapping.
    #[test]
    fn losses_do_not_make_it_flap(seed: u64, loss in 0.0..0.1_f64) {
        let mut world = World::new(seed, false);
        for generation in 0..3 {
            for way in [CALLER, CALLEE] {
                world.lines.insert((generation, way), Line { loss, ..GOOD });
            }
        }
        world.run(Duration::from_secs(60), true);
        let moves = world.ends[CALLER].moves + world.ends[CALLEE].moves;
        prop_assert!(moves <= 12, "{} moves in a minute at a loss of {}", moves, loss);
        prop_assert_eq!(world.ends[CALLER].failed, None);
    }

    /// Whatever dies and heals: both sides end on one path that works, and two paths stand.
    #[test]
    fn after_any_failures_both_sides_agree(seed: u64, steps in proptest::collection::vec((0_u32..6, 0_usize..3, 10_u64..1_500), 1..25)) {
        let mut world = World::new(seed, seed % 2 == 0);
        for way in [CALLER, CALLEE] {
            world.lines.insert((DIRECT, way), GOOD);
        }
        world.run(SOON, true);
        for (generation, what, ms) in steps {
            let key = if generation == 5 { DIRECT } else { generation };
            match what {
                0 => world.kill(key, &[CALLER, CALLEE]),
                1 => world.kill(key, &[seed as usize % 2]),
                _ => {
                    for way in [CALLER, CALLEE] {
                        world.lines.insert((key, way), GOOD);
                    }
                }
            }
            world.run(Duration::from_millis(ms), true);
        }
        for line in world.lines.values_mut() {
            *line = GOOD;
        }
        let (before, probes) = (world.steps, world.probes);
        world.run(Duration::from_secs(15), true);
        // Each probe is sent, heard and answered; the rest is timers.
        let (steps, probes) = (world.steps - before, world.probes - probes);
        prop_assert!(steps < 8 * probes + 200, "{} steps for {} probes", steps, probes);
        prop_assert!(probes < 15 * 200, "{} probes", probes);
        prop_assert!(world.agree(), "{}", world.state());
        prop_assert_eq!(world.ends[CALLER].failed, None);
        prop_assert!(world.relayed_paths(CALLER) >= 1 && world.relayed_paths(CALLER) <= 3);
        prop_assert!(world.ends[CALLER].installed.len() <= limits::DIRECT_PATHS + limits::PATHS_PER_SESSION);
    }
}

/// A session with two relayed paths and bulk data.
fn bulk(seed: u64, direct: bool) -> World {
    let mut world = World::new(seed, direct);
    world.bulk = true;
    world.run_until(SOON, true, |w| w.relayed_paths(CALLER) == 2 && w.relayed_paths(CALLEE) == 2);
    world.run(Duration::from_secs(2), true);
    world
}

#[test]
fn a_relay_that_passes_probes_and_drops_data_is_left_and_not_returned_to() {
    for seed in 0..20 {
        let mut world = bulk(seed, false);
        assert_eq!(world.route(CALLER), ["r1", "r3"]);
        world.droppers.insert("r1");
        let gone = |w: &World| w.agree() && !w.route(CALLER).contains(&"r1".to_owned());
        let took = world.run_until(Duration::from_secs(3), true, gone);
        assert!(took < Duration::from_millis(1_800), "{took:?}");
        let moves = world.ends[CALLER].moves;
        world.run(Duration::from_secs(29), true);
        assert_eq!(world.ends[CALLER].moves, moves, "it flaps: {}", world.state());
        assert!(gone(&world));
        // Whatever becomes of the other path, the session has the one that it left.
        world.kill(1, &[CALLER, CALLEE]);
        world.run(Duration::from_secs(1), true);
        assert_ne!(world.ends[CALLER].moves, moves, "{}", world.state());
        assert_eq!(world.ends[CALLER].failed, None);
    }
}

#[test]
fn direct_data_that_stands_still_goes_by_relays_and_tries_again_ever_later() {
    let mut world = World::new(7, true);
    world.bulk = true;
    for end in [CALLER, CALLEE] {
        world.lines.insert((DIRECT, end), GOOD);
    }
    let direct = |w: &World| w.ends.iter().all(|end| matches!(end.current, PathId::Direct(_)));
    world.run_until(Duration::from_secs(10), true, direct);
    world.direct_drops = true;
    let relayed = |w: &World| w.ends.iter().all(|end| matches!(end.current, PathId::Relayed(_)));
    let took = world.run_until(Duration::from_secs(3), true, relayed);
    assert!(took < Duration::from_millis(1_800), "{took:?}");
    let moves = world.ends[CALLER].moves;
    world.run(Duration::from_secs(300), true);
    let more = world.ends[CALLER].moves - moves;
    assert!(more <= 6, "{more} moves in five minutes");
    world.direct_drops = false;
    world.run_until(Duration::from_secs(601), true, direct);
}

#[test]
fn data_that_stands_still_on_every_path_moves_seldom() {
    let mut world = bulk(3, false);
    world.droppers.extend(["r1", "r2"]);
    let before = world.ends[CALLER].moves;
    world.run(Duration::from_secs(60), true);
    let moves = world.ends[CALLER].moves - before;
    assert!(moves <= 12 && world.asked <= 60, "{moves} moves, {} questions", world.asked);
    world.droppers.clear();
    world.run(Duration::from_secs(20), true);
    assert_eq!(world.ends[CALLER].failed, None);
}

#[test]
fn lossy_lines_do_not_make_data_that_arrives_suspect() {
    for (seed, delay, loss) in [(1, 25, 0.01), (2, 50, 0.01), (3, 50, 0.1)] {
        let mut world = bulk(seed, false);
        let line = Line { delay: Duration::from_millis(delay), loss, ..GOOD };
        for (generation, way) in [(0, CALLER), (0, CALLEE), (1, CALLER), (1, CALLEE)] {
            world.lines.insert((generation, way), line);
        }
        world.run(Duration::from_secs(120), true);
        for end in &world.ends {
            assert!(
                !matches!(end.paths.info(id()), Some(info) if info.why.contains("stood still"))
            );
        }
    }
}

/// A probe of the caller, as its socket would take it.
fn question(number: u64, echo: u64, epoch: u32, stalled: bool) -> Probe {
    Probe { number, echo, epoch, answer: false, in_use: true, stalled }
}

#[test]
fn a_copied_probe_moves_no_data_and_makes_few_paths() {
    let mut world = World::new(5, true);
    for end in [CALLER, CALLEE] {
        world.lines.insert((DIRECT, end), GOOD);
    }
    let direct = |w: &World| w.ends.iter().all(|end| matches!(end.current, PathId::Direct(_)));
    world.run_until(Duration::from_secs(10), true, direct);
    let (kept, epoch) = (world.ends[CALLEE].current, world.ends[CALLEE].epoch);
    let mut installed = BTreeSet::new();
    // Copies of all that the caller may say, with every number that it ever saw, from anywhere.
    for n in 0..500_u32 {
        let from: SocketAddr = format!("192.0.2.{}:7000", n % 250 + 1).parse().unwrap();
        let known = world.ends[CALLEE].installed.iter().find(|(_, to)| **to == from);
        let heard = known.map_or(Heard::From(from), |(path, _)| Heard::On(*path));
        let probe = Probe { answer: n % 3 == 0, ..question(n.into(), n.into(), epoch + 9, true) };
        let at = world.now;
        world.give(CALLEE, Input::Heard { session: id(), heard, probe, at });
        world.run(Duration::from_millis(10), true);
        let strange = world.ends[CALLEE].installed.iter().filter(|(_, to)| to.ip() == from.ip());
        installed.extend(strange.map(|(path, _)| *path));
        assert_eq!(world.ends[CALLEE].current, kept, "after copy {n}");
    }
    assert!(installed.len() <= 8, "{} paths in 5 s", installed.len());
    assert!(direct(&world));
}

#[test]
fn a_probe_counts_for_a_path_by_which_its_number_left() {
    let mut world = bulk(9, false);
    let other = PathId::Relayed(Generation(1));
    let at = world.now;
    let say = |world: &mut World, probe| {
        let heard = Heard::On(other);
        world.give(CALLEE, Input::Heard { session: id(), heard, probe, at });
    };
    for echo in [0, 1, u64::MAX] {
        say(&mut world, question(3, echo, 7, false));
        assert_eq!(world.ends[CALLEE].current, PathId::Relayed(Generation::CALL));
    }
    assert_eq!(world.ends[CALLEE].moves, 0);
}

#[test]
fn a_path_whose_answers_are_copies_goes_quiet() {
    let mut world = bulk(11, false);
    world.kill(1, &[CALLER, CALLEE]);
    let other = PathId::Relayed(Generation(1));
    for n in 0..100 {
        let probe = Probe { answer: true, in_use: false, ..question(n, 0, 0, false) };
        let at = world.now;
        world.give(CALLER, Input::Heard { session: id(), heard: Heard::On(other), probe, at });
        world.run(Duration::from_millis(50), true);
    }
    assert!(!world.ends[CALLER].installed.contains_key(&other), "{}", world.state());
}

#[test]
fn a_peer_that_names_others_makes_few_probes() {
    let mut world = World::new(13, true);
    world.run(Duration::from_secs(1), true);
    let before = world.probes;
    for n in 0..2_000_u32 {
        let address =
            |port: u16| SocketAddr::from(([192, 0, 2, (n % 250) as u8 + 1], 2_000 + port));
        let addresses = (0..40).map(address).collect();
        let addresses = Addresses { label: Label::new(5).unwrap(), addresses };
        world.give(CALLEE, Input::PeerAddresses(id(), addresses));
        world.run(Duration::from_millis(10), false);
    }
    // Twenty seconds: eight tries and four more, each with four probes to each of eight addresses.
    let sent = world.probes - before;
    assert!(sent < 12 * 4 * limits::CANDIDATES + 200, "{sent} probes");
}

#[test]
fn addresses_that_are_nobodys_are_not_probed() {
    let named = [
        "0.0.0.1:7000",
        "255.255.255.255:7000",
        "240.0.0.1:7000",
        "224.0.0.1:7000",
        "169.254.1.1:7000",
        "127.0.0.1:7000",
        "[::ffff:127.0.0.1]:7000",
        "[::ffff:224.0.0.251]:5353",
        "[ff02::fb]:5353",
        "192.0.2.1:53",
        "192.0.2.1:0",
    ];
    for address in named {
        let mut world = World::new(13, true);
        world.run(Duration::from_secs(1), true);
        let addresses = vec![address.parse().unwrap()];
        let addresses = Addresses { label: Label::new(5).unwrap(), addresses };
        world.give(CALLEE, Input::PeerAddresses(id(), addresses));
        world.run(Duration::from_secs(3), true);
        let paths = world.ends[CALLEE].installed.values();
        let tried: Vec<_> = paths.filter(|to| to.ip() != world.ends[CALLER].address.ip()).collect();
        let tried: Vec<_> = tried.into_iter().filter(|to| to.port() != 4433).collect();
        assert!(tried.is_empty(), "{address}: {tried:?}");
    }
}
