#![allow(clippy::disallowed_methods, reason = "tests need an instant and a seed to start from")]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Generous, so that a test's own limit is the one that is met.
const WIDE: PerAddress = PerAddress {
    connections: 1_000_000,
    handshakes: 1_000_000,
    per_second: 1_000_000,
    burst: 1_000_000,
};
const AT_ONCE: usize = limits::HANDSHAKES_AT_ONCE;
const UNDER_WAY: usize = limits::INCOMING_HANDSHAKES;

struct World {
    admission: Admission,
    now: Instant,
}

fn source(n: u32) -> Source {
    IpAddr::from(n.to_be_bytes()).into()
}

impl World {
    fn new(per_address: PerAddress) -> Self {
        Self { admission: Admission::new(per_address), now: Instant::now() }
    }

    fn decide(&mut self, from: u32) -> Decision {
        self.admission.decide(source(from), self.now)
    }

    fn begins(&mut self, from: u32) -> Option<Number> {
        match self.decide(from) {
            Decision::Begin(number, _) => Some(number),
            _ => None,
        }
    }

    /// As many as are let in, which then stall.
    fn stall(&mut self, from: u32) -> usize {
        std::iter::from_fn(|| self.begins(from)).take(UNDER_WAY + 1).count()
    }

    /// Stalls until `count` are under way; places fall free meanwhile.
    fn stall_slowly(&mut self, from: u32, count: usize) {
        let mut stalled = 0;
        while stalled < count {
            match self.begins(from) {
                Some(_) => stalled += 1,
                None => self.now += PLACE,
            }
        }
    }

    fn connects(&mut self, from: u32) -> Result<Number, Decision> {
        match self.decide(from) {
            Decision::Begin(number, _) => {
                self.admission.handle_over(number);
                Ok(number)
            }
            refused => Err(refused),
        }
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.admission.refused().find(|(one, _)| *one == reason).unwrap().1
    }
}

impl Admission {
    /// The sums agree.
    fn check(&self) {
        let held = || self.held_by_source.values();
        assert_eq!(held().map(|h| h.under_way.len()).sum::<usize>(), self.under_way);
        assert_eq!(held().map(|h| h.places).sum::<usize>(), self.places.len());
        assert_eq!(
            held().map(|h| h.connections as usize).sum::<usize>(),
            self.source_by_number.len()
        );
        assert_eq!(self.crowds.len(), held().filter(|h| !h.under_way.is_empty()).count());
        assert!(self.places.len() <= AT_ONCE && self.under_way <= UNDER_WAY);
    }
}

#[test]
fn an_ipv6_customer_is_one_source_and_a_mapped_address_is_an_ipv4_one() {
    let of = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
    assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff:ffff:ffff:ffff"));
    assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
    assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
}

#[test]
fn one_address_has_at_most_half_of_the_places_and_others_always_find_some() {
    let mut world = World::new(WIDE);
    assert_eq!(world.stall(1), AT_ONCE / 2);
    assert_eq!(world.refused(Reason::AddressHandshakes), 1);
    // Who has none gets in, however often the other asks in between.
    for other in 2..8 {
        assert!(world.begins(other).is_some(), "{other}");
        assert_eq!(world.decide(1), Decision::Ignore(Reason::AddressHandshakes));
    }
    // What is over makes place at once, what stalls after half a second.
    world.now += PLACE - Duration::from_millis(1);
    assert_eq!(world.begins(1), None);
    world.now += Duration::from_millis(1);
    assert!(world.begins(1).is_some());
}

#[test]
fn several_that_want_all_leave_places_for_others() {
    let mut world = World::new(WIDE);
    // They ask in turn, all the time; after the first places fell free their shares are even.
    for _ in 0..50 {
        for from in (1..=9).cycle().take(9 * AT_ONCE) {
            world.decide(from);
        }
        world.now += PLACE / 10;
    }
    assert!(world.begins(100).is_some(), "{} places are taken", world.admission.places.len());
    let most = world.admission.held_by_source.values().map(|held| held.places).max();
    assert!(most <= Some(AT_ONCE / 9 + 1), "{most:?}");
}

#[test]
fn without_a_free_place_nobody_gets_in() {
    let mut world = World::new(WIDE);
    let numbers: Vec<Number> =
        (0..AT_ONCE as u32).map(|from| world.begins(from).unwrap()).collect();
    assert_eq!(world.decide(1_000), Decision::Ignore(Reason::NoPlace));
    world.admission.handle_over(numbers[7]);
    assert!(world.begins(1_000).is_some());
    assert_eq!(world.decide(1_001), Decision::Ignore(Reason::NoPlace));
    assert_eq!(world.refused(Reason::NoPlace), 2);
}

#[test]
fn an_address_has_so_many_handshakes_under_way_and_no_more() {
    let mut world = World::new(PerAddress { handshakes: 300, ..WIDE });
    world.stall_slowly(1, 300);
    world.now += PLACE;
    assert_eq!(world.decide(1), Decision::Ignore(Reason::AddressHandshakes));
    assert!(world.begins(2).is_some());
}

#[test]
fn where_too_many_are_under_way_the_oldest_of_the_largest_crowd_is_given_up() {
    let mut world = World::new(WIDE);
    let first = world.begins(1).unwrap();
    world.stall_slowly(1, 1_199);
    world.stall_slowly(2, 800);
    world.now += PLACE;
    assert_eq!(world.admission.len(), (UNDER_WAY, UNDER_WAY));
    // The largest crowd itself gains nothing.
    assert_eq!(world.decide(1), Decision::Ignore(Reason::NoPlace));
    assert!(matches!(world.decide(3), Decision::Begin(_, Some(given_up)) if given_up == first));
    assert_eq!(world.refused(Reason::MadeRoom), 1);
    // It counts as a connection until it is gone.
    assert_eq!(world.admission.len(), (UNDER_WAY, UNDER_WAY + 1));
    world.admission.handle_closed(first);
    assert_eq!(world.admission.len(), (UNDER_WAY, UNDER_WAY));
    world.admission.check();
}

#[test]
fn a_burst_begins_and_then_the_rate() {
    let most = PerAddress { per_second: 256, burst: 1_024, ..WIDE };
    let mut world = World::new(most);
    for _ in 0..1_024 {
        world.connects(1).unwrap();
    }
    assert_eq!(world.connects(1), Err(Decision::Ignore(Reason::AddressRate)));
    assert!(world.connects(2).is_ok(), "another address has a rate of its own");
    world.now += Duration::from_secs(1);
    let begun = (0..1_000).filter(|_| world.connects(1).is_ok()).count();
    assert!((255..=257).contains(&begun), "{begun}");
    // Those refused cost it nothing.
    world.now += Duration::from_secs(4);
    assert_eq!((0..2_000).filter(|_| world.connects(1).is_ok()).count(), 1_024);
}

#[test]
fn an_address_has_so_many_connections_and_is_told_when_there_are_more() {
    let mut world = World::new(PerAddress { connections: 100, ..WIDE });
    let numbers: Vec<Number> = (0..100).map(|_| world.connects(1).unwrap()).collect();
    assert_eq!(world.connects(1), Err(Decision::Refuse(Reason::AddressConnections)));
    assert!(world.connects(2).is_ok());
    world.admission.handle_closed(numbers[0]);
    // Said twice, it counts once.
    world.admission.handle_closed(numbers[0]);
    assert!(world.connects(1).is_ok());
    assert_eq!(world.connects(1), Err(Decision::Refuse(Reason::AddressConnections)));
}

#[test]
fn what_is_remembered_of_addresses_is_bounded() {
    // The rate recovers in half an hour, so it is not by itself that they are forgotten.
    let mut world = World::new(PerAddress { per_second: 1, burst: 2_000, ..WIDE });
    let mut most = 0;
    for from in 0..3 * limits::ADDRESSES_REMEMBERED as u32 {
        let number = world.admission.decide(source(from), world.now);
        let Decision::Begin(number, None) = number else { panic!("{number:?}") };
        world.admission.handle_closed(number);
        most = most.max(world.admission.held_by_source.len());
    }
    world.admission.check();
    assert!(most <= limits::ADDRESSES_REMEMBERED, "{most}");
    // Who asks in vain is not remembered at all.
    let mut world = World::new(WIDE);
    assert_eq!((0..AT_ONCE as u32).filter_map(|from| world.begins(from)).count(), AT_ONCE);
    assert_eq!((1_000..5_000).find_map(|from| world.begins(from)), None);
    assert_eq!(world.admission.held_by_source.len(), AT_ONCE);
}

#[test]
fn an_address_with_connections_is_never_forgotten() {
    let mut world = World::new(PerAddress { connections: 2, ..WIDE });
    world.connects(7).unwrap();
    world.connects(7).unwrap();
    for from in 100..100 + 3 * limits::ADDRESSES_REMEMBERED as u32 {
        let number = world.connects(from).unwrap();
        world.admission.handle_closed(number);
    }
    assert_eq!(world.connects(7), Err(Decision::Refuse(Reason::AddressConnections)));
}

#[test]
fn the_sums_agree_whatever_happens() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let most = PerAddress { connections: 400, handshakes: 300, per_second: 200, burst: 300 };
    let mut world = World::new(most);
    let mut numbers = Vec::new();
    for _ in 0..5_000 {
        match rng.random_range(0..10) {
            0..6 => {
                // A few ask often, many seldom.
                let crowd = if rng.random_bool(0.8) { 5 } else { 200 };
                let from = rng.random_range(0..crowd);
                if let Decision::Begin(number, instead) = world.decide(from) {
                    numbers.push(number);
                    numbers.extend(instead);
                }
            }
            6 => world.now += Duration::from_millis(rng.random_range(0..100)),
            _ if numbers.is_empty() => {}
            what => {
                let at = rng.random_range(0..numbers.len());
                match what {
                    7 => world.admission.handle_over(numbers[at]),
                    8 if rng.random_bool(0.2) => {
                        world.admission.handle_closed(numbers.swap_remove(at))
                    }
                    _ => {}
                }
            }
        }
        world.admission.check();
    }
    numbers.into_iter().for_each(|number| world.admission.handle_closed(number));
    assert_eq!(world.admission.len(), (0, 0));
    world.admission.check();
}
