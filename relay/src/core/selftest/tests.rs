use super::*;

const LINKS: [u64; 2] = [1, 2];

struct World {
    test: SelfTest,
    now: Instant,
    asked: Vec<(LinkId, TryAddress)>,
    forgotten: Vec<Label>,
}

impl World {
    #[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
    fn new(addresses: &[&str]) -> Self {
        let addresses: Vec<String> = addresses.iter().map(|one| (*one).to_owned()).collect();
        let now = Instant::now();
        let test = SelfTest::new(&addresses, [7; 32], now);
        Self { test, now, asked: Vec::new(), forgotten: Vec::new() }
    }

    fn linked(addresses: &[&str]) -> Self {
        let mut world = Self::new(addresses);
        for number in LINKS {
            let name = RelayName::new(&format!("r{number}")).unwrap();
            world.test.handle_up(LinkId(number), name, world.now);
        }
        world.drain();
        world
    }

    fn drain(&mut self) {
        while let Some(ask) = self.test.poll_output() {
            match ask {
                Ask::Try(link, wanted) => self.asked.push((link, wanted)),
                Ask::Forget(label) => self.forgotten.push(label),
            }
        }
    }

    /// Lets time pass until the test wants something.
    fn next(&mut self) {
        self.now = self.test.poll_timeout().expect("something is due").max(self.now);
        self.test.handle_timeout(self.now, 77);
        self.drain();
    }

    fn answer(&mut self, sent: bool) {
        let (link, wanted) = self.asked.last().expect("somebody was asked").clone();
        self.test.handle_tried(link, Tried { label: wanted.label, sent }, self.now);
        self.drain();
    }

    fn states(&self) -> Vec<Reached> {
        self.test.views().into_iter().map(|view| view.reachable).collect()
    }
}

#[test]
fn a_relay_alone_asks_nobody() {
    let mut world = World::new(&["a:1"]);
    assert_eq!(world.test.poll_timeout(), None);
    world.test.handle_timeout(world.now, 0);
    world.drain();
    assert!(world.asked.is_empty());
    assert_eq!(world.states(), [Reached::Unknown]);
}

#[test]
fn a_knock_that_arrives_proves_the_address() {
    let mut world = World::linked(&["a:1", "b:2"]);
    assert_eq!(world.asked.len(), 1, "one at a time");
    let first = world.asked[0].1.clone();
    world.test.handle_knock(Label::new(99).unwrap(), world.now, 5);
    assert_eq!(world.states(), [Reached::Unknown; 2], "another label proves nothing");
    world.test.handle_knock(first.label, world.now, 5);
    world.drain();
    let view = world.test.views()[0].clone();
    assert_eq!((view.reachable, view.since), (Reached::Yes, Some(5)));
    assert_eq!(view.by, Some(RelayName::new("r1").unwrap()));
    assert_eq!(world.asked[1].1.address, "b:2", "the other one follows at once");
    assert_eq!(world.asked[1].0, LinkId(2), "by another neighbour");
    assert_ne!(world.asked[1].1.label, first.label);
    // A late Tried changes nothing.
    world.test.handle_tried(LinkId(1), Tried { label: first.label, sent: true }, world.now);
    assert_eq!(world.states(), [Reached::Yes, Reached::Unknown]);
}

#[test]
fn two_lost_knocks_from_two_neighbours_say_no_and_one_that_arrives_says_yes_again() {
    let mut world = World::linked(&["a:1"]);
    world.answer(true);
    world.next();
    assert_eq!(world.states(), [Reached::Unknown], "one may get lost");
    assert_eq!(world.forgotten.len(), 1, "the first is expected no more");
    world.next();
    world.answer(true);
    world.next();
    assert_eq!(world.states(), [Reached::No]);
    assert_ne!(world.asked[0].0, world.asked[1].0);
    world.next();
    let label = world.asked.last().unwrap().1.label;
    world.test.handle_knock(label, world.now, 9);
    assert_eq!(world.states(), [Reached::Yes]);
}

#[test]
fn a_neighbour_that_cannot_try_or_does_not_answer_proves_nothing() {
    let mut world = World::linked(&["a:1"]);
    world.answer(false);
    for _ in 0..40 {
        world.next();
    }
    assert_eq!(world.states(), [Reached::Unknown]);
    let before = world.asked.len();
    let begun = world.now;
    while world.now - begun < Duration::from_secs(3600) {
        world.next();
    }
    assert!(world.asked.len() - before <= 61, "asks seldom: {}", world.asked.len() - before);
}

#[test]
fn a_neighbour_gets_few_knocks() {
    let mut world = World::linked(&["a:1"]);
    let knocks = |world: &mut World| {
        (0..1000).filter(|_| world.test.may_knock(LinkId(1), world.now)).count()
    };
    assert_eq!(knocks(&mut world), limits::KNOCKS_AT_ONCE as usize);
    world.now += Duration::from_secs(1);
    assert_eq!(knocks(&mut world), limits::KNOCKS_PER_SECOND as usize);
}
