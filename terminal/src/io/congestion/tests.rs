//! quinn makes no estimate of a round-trip time for others, so what an acknowledgement does to a window is quinn's to
//! test; here it is tested which path's window it reaches.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

use tasuki_proto::Label;

const MTU: u16 = 1_200;

fn path(number: u64) -> Path {
    let label = |number| Label::new(number).unwrap();
    Path {
        to: ([127, 0, 0, 1], 4_000).into(),
        label_in: label(number + 1),
        label_out: label(number + 1_000),
    }
}

struct Setup {
    start: Instant,
    current: CurrentPath,
    controller: PathController,
}

impl Setup {
    fn new() -> Setup {
        let (start, current) = (Instant::now(), CurrentPath::default());
        current.switch(path(0), start);
        let built = current.controllers().build(start, MTU).into_any();
        let controller = *built.downcast::<PathController>().unwrap();
        Setup { start, current, controller }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn switch(&self, number: u64, ms: u64) {
        self.current.switch(path(number), self.at(ms));
    }

    /// A packet that was sent at that time is lost.
    fn lose(&mut self, sent: u64, now: u64, persistent: bool) {
        let (sent, now) = (self.at(sent), self.at(now));
        self.controller.on_congestion_event(now, sent, persistent, u64::from(MTU));
    }

    /// The path that is told of an acknowledgement of what was sent at that time.
    fn acknowledged(&mut self, sent: u64, now: u64) -> Option<Path> {
        let (sent, now) = (self.at(sent), self.at(now));
        self.controller.path_of(now, sent).map(|one| {
            one.answers = true;
            one.path
        })
    }

    fn window_of(&self, number: u64) -> Option<u64> {
        let one = self.controller.paths.iter().find(|one| one.path == path(number));
        one.map(|one| one.window.window())
    }
}

#[test]
fn a_switch_back_restores_the_earlier_window() {
    let mut setup = Setup::new();
    let initial = setup.controller.initial_window();
    setup.lose(1, 10, false);
    let first = setup.controller.window();
    assert!(first < initial);
    setup.switch(1, 20);
    assert_eq!(setup.controller.window(), initial, "another path begins anew");
    setup.lose(21, 30, false);
    setup.lose(31, 40, false);
    let second = setup.controller.window();
    assert!(second < first);
    setup.switch(0, 50);
    assert_eq!(setup.controller.window(), first);
    setup.switch(1, 60);
    assert_eq!(setup.controller.window(), second);
}

#[test]
fn news_of_packets_from_before_a_switch_count_for_the_path_they_took() {
    let mut setup = Setup::new();
    let initial = setup.controller.initial_window();
    setup.switch(1, 20);
    setup.lose(19, 30, false);
    assert_eq!(setup.controller.window(), initial, "losses of the path before");
    assert!(setup.window_of(0).unwrap() < initial);
    assert_eq!(setup.acknowledged(19, 40), Some(path(0)));
    assert_eq!(setup.acknowledged(20, 40), Some(path(1)));
    setup.switch(0, 50);
    assert_eq!(setup.acknowledged(49, 60), Some(path(1)));
    assert_eq!(setup.acknowledged(50, 60), Some(path(0)));
}

#[test]
fn losses_of_the_path_before_are_no_persistent_congestion_of_the_next() {
    let mut setup = Setup::new();
    let least = 2 * u64::from(MTU);
    setup.switch(1, 1_000);
    setup.lose(1_001, 2_000, true);
    assert!(
        setup.controller.window() > least,
        "the time without an answer began before the switch"
    );
    assert_eq!(setup.acknowledged(2_001, 2_100), Some(path(1)));
    setup.lose(2_101, 4_000, true);
    assert_eq!(setup.controller.window(), least);
}

#[test]
fn the_path_left_longest_ago_is_forgotten_first() {
    let mut setup = Setup::new();
    let initial = setup.controller.initial_window();
    let paths = limits::SESSION_PATHS as u64 + 1;
    for number in 0..paths {
        setup.switch(number, 10 * number);
        setup.lose(10 * number + 1, 10 * number + 5, false);
    }
    assert_eq!(setup.controller.paths.len(), limits::SESSION_PATHS);
    assert_eq!(setup.window_of(0), None);
    assert_eq!(setup.acknowledged(2, 100), None, "news of it change nothing");
    setup.switch(1, 110);
    assert!(setup.controller.window() < initial);
    setup.switch(0, 120);
    assert_eq!(setup.controller.window(), initial);
}

#[test]
fn all_paths_learn_of_another_mtu() {
    let mut setup = Setup::new();
    setup.switch(1, 10);
    setup.acknowledged(11, 12);
    setup.controller.on_mtu_update(60_000);
    setup.switch(2, 20);
    for number in [1, 0, 2] {
        setup.switch(number, 30);
        assert!(setup.controller.window() >= 120_000, "path {number}");
    }
}

#[test]
fn setting_the_same_path_again_is_no_switch() {
    let setup = Setup::new();
    setup.switch(0, 10);
    assert_eq!(setup.current.switches.borrow().count, 1);
}

proptest! {
    /// Whatever comes in whatever order: memory is bounded, only the path that a packet took changes, and the window
    /// is that of the current path.
    #[test]
    fn an_event_changes_the_path_of_its_packet_only(
        steps in prop::collection::vec((any::<bool>(), 0..7_u64, 0..50_u64), 1..200)
    ) {
        let mut setup = Setup::new();
        let (mut now, mut history) = (0, vec![(0, 0)]);
        for (switches, number, back) in steps {
            now += 1;
            if switches {
                setup.switch(number, now);
                if history.last().is_none_or(|(_, last)| *last != number) {
                    history.push((now, number));
                }
                continue;
            }
            // What was switched before is taken in before the windows are compared.
            setup.acknowledged(now, now);
            let sent = now.saturating_sub(back);
            let taken = history.iter().rev().find(|(since, _)| *since <= sent).unwrap().1;
            let before: Vec<Option<u64>> = (0..7).map(|number| setup.window_of(number)).collect();
            setup.lose(sent, now, false);
            for other in (0..7).filter(|number| *number != taken) {
                prop_assert_eq!(setup.window_of(other), before[other as usize]);
            }
            let current = history.last().unwrap().1;
            prop_assert_eq!(Some(setup.controller.window()), setup.window_of(current));
            prop_assert!(setup.controller.paths.len() <= limits::SESSION_PATHS);
            prop_assert!(setup.controller.switches.latest.len() <= SWITCHES);
        }
    }
}
