//! Two terminals that call each other at the same instant, on real relays (D3, D4). `glare.rs` has every interleaving
//! of the two cores; this has the sockets, the relays and the clock. `tasuki-bench glare` has more rounds.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::RefusalCode;
use tasuki_terminal::agent::Session;
use tasuki_tests::lab::crossed::{Crossed, came_to};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, TerminalSpec, agents, eventually};

const ROUNDS: u32 = 1_000;

/// Descriptors are those of all tests of this process: who counts them is alone.
static COUNTED: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    COUNTED.write().unwrap_or_else(PoisonError::into_inner)
}

fn beside_others() -> RwLockReadGuard<'static, ()> {
    COUNTED.read().unwrap_or_else(PoisonError::into_inner)
}

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
    let _alone = alone();
    let mesh = mesh(MeshSpec::line(relays));
    let ends = [relays[0], relays[relays.len() - 1]];
    let crossed = Crossed::start(&mesh, ["a", "b"], ends, [true; 2]).unwrap();
    crossed.meet(1).unwrap();
    let (before, begun) = (descriptors(), Instant::now());
    let met = crossed.meet(ROUNDS).unwrap();
    let took = begun.elapsed();
    println!("{ROUNDS} rounds over {} relays, {met} met: {took:?}", relays.len());
    assert!(met >= ROUNDS - ROUNDS / 100, "they met {met} times only: this shows little");
    // The agents open one for a moment whenever they look at this machine's addresses.
    eventually("no descriptor is left", SOON, || {
        let now = descriptors();
        if now <= before { Ok(()) } else { Err(format!("{now} descriptors, {before} before")) }
    });
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

/// A moment within which calls of a mesh on loopback are under way.
fn moment(rng: &mut SmallRng) -> Duration {
    Duration::from_micros(rng.random_range(0..12_000))
}

fn rng() -> SmallRng {
    let seed = rand::random();
    println!("seed {seed}");
    SmallRng::seed_from_u64(seed)
}

/// Whoever withdraws gets nothing; the other gets its session, whoever's call was the larger, and it is whole.
#[test]
fn a_call_withdrawn_while_it_crosses_another_leaves_the_other_its_session() {
    const ROUNDS: usize = 100;
    let _beside = beside_others();
    let mesh = mesh(MeshSpec::line(&["r1", "r2"]));
    let crossed = Crossed::start(&mesh, ["a", "b"], ["r1", "r2"], [true; 2]).unwrap();
    let mut rng = rng();
    for round in 0..ROUNDS {
        let (pair, patience) = (crossed.pair.clone(), moment(&mut rng));
        let went = crossed.run(async move {
            let given_up = tokio::time::timeout(patience, pair.call(0));
            let (first, second) = tokio::join!(given_up, pair.call(1));
            let second = second?.context("the one who stayed was refused")?;
            drop(first);
            pair.hold(&[&second]).await?;
            drop(second);
            pair.wait_until_over().await
        });
        went.unwrap_or_else(|error| {
            panic!("round {round}, withdrawn after {patience:?}: {error:#}")
        });
    }
    mesh.wait_no_sessions(SOON);
}

/// `b` lets nobody in and `a` lets `b` in: `b` has its session, and `a` the same one or the refusal of `b`'s rules.
#[test]
fn calls_of_which_one_is_refused_leave_one_session() {
    const ROUNDS: usize = 100;
    let _beside = beside_others();
    let mesh = mesh(MeshSpec::line(&["r1", "r2"]));
    let crossed = Crossed::start(&mesh, ["a", "b"], ["r1", "r2"], [true, false]).unwrap();
    let mut refused = 0;
    for round in 0..ROUNDS {
        let pair = crossed.pair.clone();
        let went = crossed.run(async move {
            let (first, second) = tokio::join!(pair.call(0), pair.call(1));
            let (first, second) = (first?, second?.context("refused by who lets it in")?);
            let was_refused = match &first {
                Ok(session) => {
                    ensure!(session.id == second.id, "two sessions");
                    pair.hold(&[session, &second]).await?;
                    false
                }
                Err(refusal) => {
                    ensure!(refusal.code == RefusalCode::ServiceNotExposed, "{refusal}");
                    pair.hold(&[&second]).await?;
                    true
                }
            };
            drop((first, second));
            pair.wait_until_over().await?;
            anyhow::Ok(was_refused)
        });
        refused += usize::from(went.unwrap_or_else(|error| panic!("round {round}: {error:#}")));
    }
    println!("{refused} of {ROUNDS} refused");
    mesh.wait_no_sessions(SOON);
}

/// One logs out while both call: whatever each was told, both end without a session.
#[test]
fn a_log_out_that_crosses_calls_leaves_nothing() {
    const ROUNDS: usize = 25;
    let _beside = beside_others();
    let mesh = mesh(MeshSpec::line(&["r1", "r2"]));
    let crossed = Crossed::start(&mesh, ["a", "b"], ["r1", "r2"], [true; 2]).unwrap();
    let mut rng = rng();
    for round in 0..ROUNDS {
        let (pair, at) = (crossed.pair.clone(), moment(&mut rng));
        let went = crossed.run(async move {
            let leave = async {
                tokio::time::sleep(at).await;
                pair.agents[0].logout().await
            };
            // The one that stays hears that the other is logged out, or that its session is over.
            let (first, second, left) = tokio::join!(pair.call(0), pair.call(1), leave);
            left?;
            let (first, second) = (first?, second?);
            pair.wait_until_over().await?;
            for session in [&first, &second].into_iter().flatten() {
                ensure!(session.ended.borrow().is_some(), "{} has not ended", session.id);
            }
            pair.agents[0].login().await?;
            agents::wait_state(&pair.agents[0], "logged-in").await
        });
        went.unwrap_or_else(|error| panic!("round {round}, logged out after {at:?}: {error:#}"));
        mesh.wait_state("a", "logged-in", SOON);
    }
    mesh.wait_no_sessions(SOON);
}

/// A relay on the way dies while both call, and comes back: each call has an answer, and a session that one has is a
/// session of the other too, with data both ways.
#[test]
fn a_relay_that_dies_under_crossing_calls_leaves_no_half_of_a_session() {
    let _beside = beside_others();
    let mesh = mesh(MeshSpec::line(&["r1", "r2", "r3"]));
    let crossed = Crossed::start(&mesh, ["a", "b"], ["r1", "r3"], [true; 2]).unwrap();
    let mut rng = rng();
    for relay in ["r1", "r2", "r3", "r2"] {
        let (pair, at) = (crossed.pair.clone(), moment(&mut rng));
        let calls = std::thread::scope(|scope| {
            let calls = scope
                .spawn(|| crossed.run(async move { tokio::join!(pair.call(0), pair.call(1)) }));
            std::thread::sleep(at);
            mesh.relay(relay).kill();
            mesh.relay(relay).start();
            calls.join().unwrap()
        });
        let called = [calls.0.unwrap(), calls.1.unwrap()];
        println!("{relay} died after {at:?}: {:?}", came_to([&called[0], &called[1]]));
        mesh.wait_for_links();
        let pair = crossed.pair.clone();
        let went = crossed.run(async move {
            let held: Vec<&Session> = called.iter().flatten().collect();
            pair.hold(&held).await?;
            drop(called);
            pair.wait_until_over().await
        });
        went.unwrap_or_else(|error| panic!("{relay} died after {at:?}: {error:#}"));
        for terminal in ["a", "b"] {
            mesh.wait_state(terminal, "logged-in", SOON);
        }
    }
    mesh.wait_no_sessions(SOON);
}
