//! Two terminals call each other at the same time (D3, D4): every interleaving, up to bounds, ends in one session or a
//! clean failure on both sides, every request is answered once, no label and no relay state stays behind.

use tasuki_tests::glare::{Budget, Scenario, explore};

const NONE: Budget =
    Budget { repeats: 0, losses: 0, timers: 0, failures: 0, dones: 0, ends: 0, detaches: 0 };
const OPEN: [bool; 2] = [false; 2];

/// Explores a scenario with one call of each side, for each relation of their tie-breaks.
fn for_all_ties(what: &str, budget: Budget, closed: [bool; 2]) {
    let ties =
        [(Some(2), Some(1)), (Some(1), Some(2)), (Some(1), Some(1)), (None, Some(0)), (None, None)];
    for (a, b) in ties {
        run(&format!("{what}, ties {a:?} {b:?}"), &[a], &[b], Some(3), budget, closed);
    }
}

/// The same for a larger tie-break of either side: the others differ in nothing that the trouble can see.
fn for_both_winners(what: &str, budget: Budget) {
    run(&format!("{what}, a wins"), &[Some(1)], &[None], Some(3), budget, OPEN);
    run(&format!("{what}, b wins"), &[Some(1)], &[Some(1)], None, budget, OPEN);
}

fn run(
    what: &str,
    a: &[Option<u64>],
    b: &[Option<u64>],
    redial_tie: Option<u64>,
    budget: Budget,
    closed: [bool; 2],
) {
    let calls = [a.to_vec(), b.to_vec()];
    let seen = explore(&Scenario { calls, redial_tie, closed, budget })
        .unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
    println!(
        "{what}: {} states, {} transitions, {} ends",
        seen.states, seen.transitions, seen.ends
    );
}

#[test]
fn two_calls_that_cross_become_one_session() {
    for_all_ties("no trouble", NONE, OPEN);
}

#[test]
fn several_calls_of_each_side() {
    run("two and one", &[Some(3), Some(1)], &[Some(2)], None, NONE, OPEN);
    run("two and one, equal", &[Some(1), Some(1)], &[Some(1)], None, NONE, OPEN);
}

#[test]
fn access_rules_that_refuse() {
    for closed in [[true, false], [false, true], [true, true]] {
        for_all_ties(&format!("closed {closed:?}"), NONE, closed);
        let done = Budget { dones: 1, ..NONE };
        run("closed and done", &[Some(1)], &[Some(2)], None, done, closed);
    }
}

#[test]
fn a_message_is_lost_with_its_route() {
    for_all_ties("loss", Budget { losses: 1, ..NONE }, OPEN);
}

#[test]
fn messages_come_twice() {
    for_both_winners("repeats", Budget { repeats: 2, ..NONE });
}

#[test]
fn timers_fire_early_and_handshakes_fail() {
    for_both_winners("timers", Budget { timers: 1, ..NONE });
    for_both_winners("failures", Budget { failures: 1, ..NONE });
}

#[test]
fn users_are_done_and_sessions_are_ended_at_any_moment() {
    for_all_ties("one done", Budget { dones: 1, ..NONE }, OPEN);
    run("both done", &[Some(1)], &[Some(2)], Some(3), Budget { dones: 2, ..NONE }, OPEN);
    for_both_winners("end", Budget { ends: 1, ..NONE });
}

#[test]
fn an_attachment_is_lost_at_any_moment() {
    for_both_winners("detach", Budget { detaches: 1, ..NONE });
}

#[test]
fn troubles_meet() {
    let done_and_loss = Budget { losses: 1, dones: 1, ..NONE };
    run("done and loss", &[Some(1)], &[Some(2)], Some(0), done_and_loss, OPEN);
}
