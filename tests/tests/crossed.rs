//! Two terminals that call each other at the same instant, on real relays (D3, D4). `glare.rs` has every interleaving
//! of the two cores; this has the sockets, the relays and the clock. `tasuki-bench glare` has more rounds.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::time::Instant;

use tasuki_tests::lab::crossed::Crossed;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, TerminalSpec};

const ROUNDS: u32 = 1_000;

/// Terminals `a` and `b`, enrolled; their agents run in this process.
fn mesh(relays: MeshSpec) -> Mesh {
    relays
        .terminal(TerminalSpec::new("a").stays_off())
        .terminal(TerminalSpec::new("b").stays_off())
        .start()
}

/// Descriptors that this process has open: sockets among them.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn meet_over(relays: &[&str]) {
    let mesh = mesh(MeshSpec::line(relays));
    let ends = [relays[0], relays[relays.len() - 1]];
    let crossed = Crossed::start(&mesh, ["a", "b"], ends, [true; 2]).unwrap();
    crossed.meet(1).unwrap();
    let (before, begun) = (descriptors(), Instant::now());
    crossed.meet(ROUNDS).unwrap();
    println!("{ROUNDS} rounds over {} relays: {:?}", relays.len(), begun.elapsed());
    assert!(descriptors() <= before, "{} descriptors, {before} before", descriptors());
    mesh.wait_no_sessions(SOON);
}

#[test]
fn calls_at_the_same_instant_over_one_relay_are_one_session() {
    meet_over(&["r1"]);
}

#[test]
fn calls_at_the_same_instant_over_three_relays_are_one_session() {
    meet_over(&["r1", "r2", "r3"]);
}
