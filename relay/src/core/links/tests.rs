use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};

struct Relay {
    links: Links,
    now: Instant,
}

fn name(id: u64) -> RelayName {
    RelayName::new(&format!("r{id}")).unwrap()
}

#[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
fn relay(me: u64, choice: LinkChoice) -> Relay {
    let links = Links::new(RelayId(me), choice, SmallRng::seed_from_u64(me));
    Relay { links, now: Instant::now() }
}

fn known(id: u64) -> Input {
    let addresses = vec![format!("r{id}.example:4433")];
    Input::Known { relay: RelayId(id), name: name(id), addresses }
}

fn up(link: u64, peer: u64, dialled_here: bool, incarnation: u64) -> Input {
    process_up(link, peer, dialled_here, (incarnation, 1))
}

fn process_up(
    link: u64,
    peer: u64,
    dialled_here: bool,
    (incarnation, instance): (u64, u64),
) -> Input {
    let incarnation = Incarnation(incarnation);
    Input::Up {
        link: LinkId(link),
        peer: RelayId(peer),
        name: name(peer),
        dialled_here,
        incarnation,
        instance,
    }
}

fn row(peers: &[u64]) -> Output {
    let links = peers.iter().map(|&peer| LinkState { peer: RelayId(peer), rtt_us: 100 });
    Output::Announce(LinksRow { links: links.collect() })
}

fn dialled(outputs: &[Output]) -> Vec<u64> {
    let dials = outputs.iter().filter_map(|output| match output {
        Output::Dial { peer, .. } => Some(peer.0),
        _ => None,
    });
    dials.collect()
}

impl Relay {
    fn feed(&mut self, input: Input) -> Vec<Output> {
        self.links.handle(input, self.now);
        std::iter::from_fn(|| self.links.poll_output()).collect()
    }

    fn wait(&mut self, by: Duration) -> Vec<Output> {
        self.now += by;
        self.feed(Input::Timeout)
    }

    /// Lets time pass until there is something to do; how long that was.
    fn next(&mut self) -> (Duration, Vec<Output>) {
        let begun = self.now;
        loop {
            self.now = self.links.poll_timeout().unwrap().max(self.now);
            let outputs = self.feed(Input::Timeout);
            if !outputs.is_empty() {
                return (self.now - begun, outputs);
            }
        }
    }
}

#[test]
fn the_lower_id_dials_at_once_and_the_first_link_is_said_at_once() {
    let mut r = relay(1, LinkChoice::Auto);
    assert_eq!(r.feed(Input::Timeout), [row(&[])]);
    assert_eq!(dialled(&r.feed(known(2))), [2]);
    assert_eq!(r.feed(up(1, 2, true, 1)), [Output::Accepted(LinkId(1), RelayId(2)), row(&[2])]);
    assert_eq!(r.feed(Input::Down(LinkId(1), None)), [row(&[])]);
    let mut r = relay(3, LinkChoice::Auto);
    assert!(dialled(&r.feed(known(2))).is_empty());
    let (waited, outputs) = r.next();
    assert_eq!((waited, dialled(&outputs)), (YIELD, vec![2]));
    assert!(dialled(&r.feed(known(3))).is_empty(), "not itself");
}

#[test]
fn names_count_in_both_directions() {
    let mut r = relay(1, LinkChoice::Names(BTreeSet::from([name(2)])));
    assert!(dialled(&r.feed(known(3))).is_empty());
    let outputs = r.feed(up(7, 3, false, 1));
    assert_eq!(outputs, [Output::Close(LinkId(7), RefusalCode::LinkNotWanted)]);
    assert!(!r.feed(up(8, 2, false, 1)).is_empty());
    assert_eq!(r.links.link_with(RelayId(2)), Some(LinkId(8)));
    assert!(!r.links.is_cut_off());
    r.feed(Input::Down(LinkId(8), None));
    assert!(r.links.is_cut_off());
}

#[test]
fn of_two_connections_the_one_that_the_lower_id_dialled_stays() {
    let duplicate = |link| Output::Close(LinkId(link), RefusalCode::DuplicateLink);
    for ours_first in [true, false] {
        let mut r = relay(1, LinkChoice::Auto);
        let order = if ours_first { [(10, true), (20, false)] } else { [(20, false), (10, true)] };
        let mut outputs = Vec::new();
        for (link, dialled_here) in order {
            outputs.extend(r.feed(up(link, 2, dialled_here, 1)));
        }
        assert!(outputs.contains(&duplicate(20)));
        assert_eq!(r.links.link_with(RelayId(2)), Some(LinkId(10)));
        assert_eq!(r.feed(Input::Down(LinkId(20), None)), []);
    }
}

#[test]
fn a_restarted_peer_replaces_its_earlier_connection() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(up(10, 2, true, 5));
    let outputs = r.feed(up(20, 2, false, 6));
    assert!(outputs.contains(&Output::Close(LinkId(10), RefusalCode::DuplicateLink)));
    assert!(outputs.contains(&Output::Accepted(LinkId(20), RelayId(2))));
    assert!(!outputs.iter().any(|o| matches!(o, Output::Announce(_))), "the row stays");
    let outputs = r.feed(up(30, 2, true, 5));
    assert_eq!(outputs, [Output::Close(LinkId(30), RefusalCode::DuplicateLink)]);
    // The same side dialled again: it gave up on the earlier one.
    r.feed(up(40, 2, false, 6));
    assert_eq!(r.links.link_with(RelayId(2)), Some(LinkId(40)));
}

#[test]
fn back_off_doubles_and_begins_anew_only_after_a_stable_time() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(known(2));
    let mut waits = Vec::new();
    for n in 0..8 {
        // Accepts and drops at once.
        r.feed(up(n, 2, true, 1));
        r.feed(Input::Down(LinkId(n), None));
        let begun = r.now;
        while dialled(&r.next().1).is_empty() {}
        waits.push(r.now - begun);
    }
    assert!(waits[0] <= BACKOFF_MIN.mul_f64(1.25), "{waits:?}");
    assert!(waits[7] >= BACKOFF_MAX.mul_f64(0.75), "{waits:?}");
    r.feed(up(9, 2, true, 1));
    r.wait(STABLE);
    r.feed(Input::Down(LinkId(9), None));
    let begun = r.now;
    while dialled(&r.next().1).is_empty() {}
    assert!(r.now - begun <= BACKOFF_MIN.mul_f64(1.25));
}

#[test]
fn a_flapping_link_is_said_later_each_time() {
    let mut r = relay(1, LinkChoice::Auto);
    let mut waits = Vec::new();
    for n in 0..9 {
        let begun = r.now;
        let mut outputs = r.feed(up(n, 2, false, 1));
        while !outputs.contains(&row(&[2])) {
            outputs = r.next().1;
        }
        waits.push((r.now - begun).as_secs());
        assert_eq!(r.feed(Input::Down(LinkId(n), None)), [row(&[])]);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 0]);
}

#[test]
fn a_peer_that_restarts_often_is_said_after_a_second() {
    let mut r = relay(1, LinkChoice::Auto);
    for life in 1..6 {
        let begun = r.now;
        let mut outputs = r.feed(up(life, 2, false, life));
        while !outputs.contains(&row(&[2])) {
            outputs = r.next().1;
        }
        assert_eq!((r.now - begun).as_secs(), u64::from(life > 1));
        assert_eq!(r.feed(Input::Down(LinkId(life), None)), [row(&[])]);
    }
}

#[test]
fn round_trips_move_the_row_in_steps_and_not_often() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(up(1, 2, false, 1));
    r.wait(RTT_HOLD);
    assert!(matches!(&r.feed(Input::Rtt(LinkId(1), 20_000))[..], [Output::Announce(_)]));
    for _ in 0..100 {
        assert_eq!(r.feed(Input::Rtt(LinkId(1), 21_000)), []);
        assert_eq!(r.feed(Input::Rtt(LinkId(1), u32::MAX)).len(), 0, "held");
    }
    let (waited, outputs) = r.next();
    assert!(waited <= RTT_HOLD && matches!(outputs[..], [Output::Announce(_)]));
}

#[test]
fn a_kick_cuts_and_the_peer_may_come_back() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(known(2));
    r.feed(up(1, 2, true, 1));
    let outputs = r.feed(Input::Kick(name(2)));
    assert_eq!(outputs, [Output::Close(LinkId(1), RefusalCode::Kicked), row(&[])]);
    assert_eq!(dialled(&r.next().1), [2]);
    r.feed(up(2, 2, true, 1));
    let outputs = r.feed(Input::Gone(RelayId(2), RefusalCode::Revoked));
    assert!(outputs.contains(&Output::Close(LinkId(2), RefusalCode::Revoked)));
    assert_eq!(r.links.poll_timeout(), None);
}

#[test]
fn another_choice_closes_what_is_not_wanted_and_dials_what_is() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(known(2));
    r.feed(known(3));
    r.feed(up(1, 2, true, 1));
    r.feed(up(2, 3, true, 1));
    let only = |id: u64| Input::Choose(LinkChoice::Names(BTreeSet::from([name(id)])));
    let outputs = r.feed(only(3));
    assert_eq!(outputs, [Output::Close(LinkId(1), RefusalCode::LinkNotWanted), row(&[3])]);
    assert_eq!(r.links.poll_timeout(), None, "the other one is not dialled");
    let outputs = r.feed(up(3, 2, false, 1));
    assert_eq!(outputs, [Output::Close(LinkId(3), RefusalCode::LinkNotWanted)]);
    r.feed(Input::Choose(LinkChoice::Auto));
    assert_eq!(dialled(&r.next().1), [2]);
}

#[test]
fn what_others_dial_is_limited() {
    let mut r = relay(1, LinkChoice::Auto);
    for n in 0..limits::LINKS as u64 {
        r.feed(up(n, n + 2, false, 1));
    }
    let outputs = r.feed(up(900, 900, false, 1));
    assert_eq!(outputs, [Output::Close(LinkId(900), RefusalCode::Overloaded)]);
}

/// A mesh of relays with connections that take their time.
struct Mesh {
    relays: Vec<Relay>,
    /// When, where, what.
    queue: BTreeMap<(Instant, u64), (usize, Input)>,
    /// The two ends of each connection, by link.
    ends: BTreeMap<LinkId, [usize; 2]>,
    next: u64,
    rng: SmallRng,
}

impl Mesh {
    fn new(count: usize, seed: u64) -> Self {
        let relays = (1..=count as u64).map(|id| relay(id, LinkChoice::Auto)).collect();
        let rng = SmallRng::seed_from_u64(seed);
        let mut mesh = Self { relays, queue: BTreeMap::new(), ends: BTreeMap::new(), next: 0, rng };
        let begun = mesh.relays[0].now;
        for relay in &mut mesh.relays {
            relay.now = begun;
        }
        mesh
    }

    fn everybody_knows_everybody(&mut self) {
        let count = self.relays.len();
        for at in 0..count {
            for id in 1..=count as u64 {
                let after = self.delay();
                self.post(after, at, known(id));
            }
        }
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(self.rng.random_range(1_000..60_000))
    }

    fn post(&mut self, after: Duration, at: usize, input: Input) {
        self.next += 1;
        self.queue.insert((self.relays[0].now + after, self.next), (at, input));
    }

    fn run(&mut self, span: Duration) {
        let until = self.relays[0].now + span;
        loop {
            let timers = self.relays.iter().enumerate();
            let timer = timers.filter_map(|(n, r)| Some((r.links.poll_timeout()?, n))).min();
            let event = self.queue.first_key_value().map(|(key, _)| *key);
            let (now, at, input) = match (timer, event) {
                (Some((time, at)), Some((other, _))) if time <= other => (time, at, Input::Timeout),
                (Some((time, at)), None) => (time, at, Input::Timeout),
                (_, Some((time, _))) => {
                    let (_, (at, input)) = self.queue.pop_first().unwrap();
                    (time, at, input)
                }
                (None, None) => return,
            };
            let now = now.max(self.relays[0].now);
            for relay in &mut self.relays {
                relay.now = now;
            }
            if now > until {
                return;
            }
            for output in self.relays[at].feed(input) {
                self.perform(at, output);
            }
        }
    }

    fn perform(&mut self, at: usize, output: Output) {
        match output {
            Output::Dial { peer, .. } => {
                self.next += 1;
                let (link, there) = (self.next, peer.0 as usize - 1);
                self.ends.insert(LinkId(link), [at, there]);
                let (one, other) = (self.delay(), self.delay());
                self.post(one, at, up(link, peer.0, true, 1));
                self.post(other, there, up(link, at as u64 + 1, false, 1));
            }
            Output::Close(link, code) => {
                let [one, other] = self.ends[&link];
                let after = Duration::from_millis(60) + self.delay();
                let there = if one == at { other } else { one };
                self.post(after, there, Input::Down(link, Some(code)));
            }
            Output::Accepted(link, _) => {
                let us = self.rng.random_range(200..80_000);
                self.post(Duration::from_secs(1), at, Input::Rtt(link, us));
            }
            Output::Announce(_) => {}
            Output::Twins { .. } | Output::GivenWay(_) => panic!("each has one process"),
        }
    }

    /// Links per relay; panics where the two ends disagree.
    fn degrees(&self) -> Vec<usize> {
        let mut degrees = Vec::new();
        for (at, relay) in self.relays.iter().enumerate() {
            for info in relay.links.links() {
                let there = &self.relays[info.peer.0 as usize - 1];
                let back = there.links.link_with(RelayId(at as u64 + 1));
                assert_eq!(back, Some(info.link), "r{} and {}", at + 1, info.name);
            }
            degrees.push(relay.links.links().count());
        }
        degrees
    }

    fn parts(&self) -> usize {
        let mut part: Vec<usize> = (0..self.relays.len()).collect();
        for (at, relay) in self.relays.iter().enumerate() {
            for info in relay.links.links() {
                let (one, other) = (part[at], part[info.peer.0 as usize - 1]);
                part.iter_mut().filter(|p| **p == other).for_each(|p| *p = one);
            }
        }
        part.into_iter().collect::<BTreeSet<_>>().len()
    }
}

#[test]
fn a_small_mesh_is_full() {
    let mut mesh = Mesh::new(limits::FULL_MESH_RELAYS, 1);
    mesh.everybody_knows_everybody();
    mesh.run(Duration::from_secs(5));
    assert!(mesh.degrees().iter().all(|links| *links == limits::FULL_MESH_RELAYS - 1));
}

#[test]
fn a_large_mesh_is_connected_by_few_links() {
    let mut mesh = Mesh::new(40, 7);
    mesh.everybody_knows_everybody();
    for at in 0..40 {
        for id in 1..=40 {
            mesh.post(Duration::from_secs(2), at, Input::Reachable(RelayId(id), true));
        }
    }
    mesh.run(Duration::from_secs(150));
    let degrees = mesh.degrees();
    assert_eq!(mesh.parts(), 1);
    assert!(degrees.iter().all(|links| (NEAR..=30).contains(links)), "{degrees:?}");
    println!("links per relay: {degrees:?}");
}

#[test]
fn parts_of_a_large_mesh_find_each_other_again() {
    let mut mesh = Mesh::new(30, 3);
    // Each half knows itself only.
    for at in 0..30 {
        for id in 1..=30_u64 {
            if (at < 15) == (id <= 15) {
                mesh.post(Duration::ZERO, at, known(id));
                mesh.post(Duration::from_secs(1), at, Input::Reachable(RelayId(id), true));
            }
        }
    }
    mesh.run(Duration::from_secs(30));
    assert_eq!(mesh.parts(), 2);
    mesh.everybody_knows_everybody();
    mesh.run(Duration::from_secs(30));
    assert_eq!(mesh.parts(), 1);
    for at in 0..30 {
        for id in 1..=30_u64 {
            mesh.post(Duration::from_secs(1), at, Input::Reachable(RelayId(id), true));
        }
    }
    mesh.run(Duration::from_secs(150));
    assert_eq!(mesh.parts(), 1, "and stay together");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whoever dials when: both ends of each link agree on one connection, and everybody is linked.
    #[test]
    fn both_ends_keep_the_same_connection(seed in any::<u64>(), count in 2_usize..6) {
        let mut mesh = Mesh::new(count, seed);
        mesh.everybody_knows_everybody();
        mesh.run(Duration::from_secs(20));
        prop_assert!(mesh.degrees().iter().all(|links| *links == count - 1));
    }
}

fn closed(outputs: &[Output]) -> Vec<(u64, RefusalCode)> {
    let closed = outputs.iter().filter_map(|output| match output {
        Output::Close(link, code) => Some((link.0, *code)),
        _ => None,
    });
    closed.collect()
}

#[test]
fn of_two_processes_with_one_identity_the_newer_stays_linked_until_it_is_gone() {
    let mut r = relay(1, LinkChoice::Auto);
    r.feed(process_up(1, 2, false, (5, 100)));
    // As a restart: the other gives its place.
    let outputs = r.feed(process_up(2, 2, false, (6, 200)));
    assert_eq!(closed(&outputs), [(1, RefusalCode::DuplicateLink)]);
    // The one that was replaced is there, whatever its incarnation has become meanwhile.
    for (link, incarnation) in [(3, 5), (4, 7), (5, 900)] {
        let outputs = r.feed(process_up(link, 2, false, (incarnation, 100)));
        assert_eq!(closed(&outputs), [(link, RefusalCode::Superseded)]);
        let twins = Output::Twins { kept: LinkId(2), refused: LinkId(link) };
        assert!(outputs.contains(&twins), "{outputs:?}");
        assert_eq!(r.feed(Input::Down(LinkId(link), None)), []);
    }
    // A third one that is no newer.
    let outputs = r.feed(process_up(6, 2, false, (6, 300)));
    assert_eq!(closed(&outputs), [(6, RefusalCode::Superseded)]);
    // The newer one is gone, the other takes its place; another link of the same process is no twin.
    r.feed(Input::Down(LinkId(2), None));
    assert_eq!(closed(&r.feed(process_up(7, 2, false, (7, 100)))), []);
    let outputs = r.feed(process_up(8, 2, false, (7, 100)));
    assert_eq!(closed(&outputs), [(7, RefusalCode::DuplicateLink)]);
}

#[test]
fn who_hears_of_another_process_in_its_place_gives_way_longer_each_time() {
    let mut r = relay(1, LinkChoice::Auto);
    let mut outputs = r.feed(known(2));
    let mut waits = Vec::new();
    for link in 0..8 {
        assert_eq!(dialled(&outputs), [2]);
        r.feed(up(link, 2, true, 1));
        outputs = r.feed(Input::Down(LinkId(link), Some(RefusalCode::Superseded)));
        assert!(outputs.contains(&Output::GivenWay(name(2))), "{outputs:?}");
        assert!(r.links.has_given_way());
        let begun = r.now;
        while dialled(&outputs).is_empty() {
            outputs = r.next().1;
        }
        waits.push(r.now - begun);
    }
    assert!(waits[0] >= GIVE_WAY_MIN.mul_f64(0.75) && waits[0] <= GIVE_WAY_MIN.mul_f64(1.25));
    assert!(waits[7] >= GIVE_WAY_MAX.mul_f64(0.75), "{waits:?}");
    r.feed(up(20, 2, true, 1));
    r.now += STABLE;
    r.feed(Input::Down(LinkId(20), None));
    assert!(!r.links.has_given_way());
}
