//! How fast an operator lets a session be.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::time::{Duration, Instant};

use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually};

const SEED: u64 = 7;
/// What is set.
const MBIT_S: u32 = 40;
/// How long the rate is watched.
const WATCHED: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(60);

/// Two transfers in sessions of their own: each has the rate that is set for one, also after SIGHUP; what is more
/// is counted, and nothing is lost to the transfer.
#[test]
fn a_session_is_as_fast_as_the_operator_lets_it_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("relay.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(&format!("session_mbit_s = {MBIT_S}\n"));
    let receivers = [Receiver::start(None, SEED), Receiver::start(None, SEED)];
    let [one, two] = [0, 1].map(|n: usize| format!("tcp://{}", receivers[n].address()));
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").run_flags(&["--config", file.to_str().unwrap()]))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(TerminalSpec::new("b").relayed().offers("one", &one).offers("two", &two))
        .start();
    let (relay, most) = (mesh.relay("r1"), f64::from(MBIT_S));
    let forwards = ["b/one", "b/two"].map(|target| mesh.terminal("a").forward(target));
    let senders =
        [0, 1].map(|n: usize| Sender::start(None, forwards[n].1, SEED, u64::MAX).unwrap());
    for receiver in &receivers {
        receiver.wait_for_more(1, SOON).unwrap();
    }
    // What a bucket holds in the beginning is over.
    std::thread::sleep(Duration::from_secs(1));
    let before = [0, 1].map(|n: usize| receivers[n].seen().bytes);
    let begun = Instant::now();
    std::thread::sleep(WATCHED);
    let elapsed = begun.elapsed().as_secs_f64();
    for (receiver, before) in receivers.iter().zip(before) {
        let rate = (receiver.seen().bytes - before) as f64 * 8e-6 / elapsed;
        println!("{rate:.1} of {MBIT_S} Mbit/s");
        // Each of two sessions has its own. A tenth is for what waited in buffers.
        assert!(rate <= most * 1.1, "{rate} Mbit/s");
        assert!(rate >= most * 0.5, "{rate} Mbit/s");
    }
    let dropped = relay.api.json("/api/v1/status").unwrap()["drops"]["over-rate"].as_u64();
    assert!(dropped > Some(0), "{dropped:?}");

    write("");
    relay.signal(Signal::Hangup);
    eventually("without a limit they are faster by far", SOON * 2, || {
        let (before, begun) = (receivers[0].seen().bytes, Instant::now());
        std::thread::sleep(Duration::from_millis(500));
        let rate =
            (receivers[0].seen().bytes - before) as f64 * 8e-6 / begun.elapsed().as_secs_f64();
        if rate >= most * 2.0 { Ok(()) } else { Err(format!("{rate} Mbit/s")) }
    });
    for (sender, receiver) in senders.into_iter().zip(&receivers) {
        sender.finish(receiver, LIMIT).unwrap();
    }
}
