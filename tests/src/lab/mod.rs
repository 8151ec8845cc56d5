//! The laboratory: real processes of relays and agents, real programs, real namespaces.
//!
//! - [`mesh`] starts relays and agents on loopback or in namespaces and asks them how they are;
//! - [`netns`] makes network namespaces with NATs of all kinds between them;
//! - [`forwarder`] is a bad line: a UDP forwarder with delay, loss and a rate;
//! - [`programs`] are the applications that sessions carry: sshd, a web server, iperf3, echoes;
//! - [`gateway`] is a router that maps ports when it is asked;
//! - [`agents`] are agents as a library, and [`crossed`] two of them that call each other at the same instant;
//! - [`pairs`] are terminals behind NATs of all kinds that call each other;
//! - [`transfer`] is a transfer that is checked byte by byte, and its stalls; [`paths`] says which way it takes;
//! - [`workload`] is the main job: all of them at once;
//! - [`raw`] speaks the wire by hand, to say what an honest peer never says;
//! - [`bad_terminal`] is a terminal, and a relay, that asks for all that it can get; [`bad_frames`] is one that sends frames
//!   by hand;
//! - [`observer`] has no key and copies what it sees.
//!
//! Rules that hold everywhere here: nothing sleeps to wait for a state, it is polled with a deadline
//! ([`wait`]); every process dies with its owner, also when a test panics ([`process`]); traffic stays on
//! loopback or in namespaces that the test made.

pub mod agents;
pub mod bad_frames;
pub mod bad_relay;
pub mod bad_terminal;
pub mod bins;
pub mod crossed;
pub mod forwarder;
pub mod gateway;
pub mod http;
pub mod mesh;
pub mod middle;
pub mod netns;
pub mod observer;
pub mod pairs;
pub mod paths;
pub mod process;
pub mod programs;
pub mod raw;
mod sys;
pub mod transfer;
pub mod wait;
pub mod workload;

pub use mesh::{Mesh, MeshSpec, RelaySpec, TerminalSpec};
pub use wait::{eventually, timed};

use std::sync::OnceLock;

/// Whether `program` can be found in `PATH`. Where it cannot, says loudly that `what` is left out.
pub fn have(program: &str, what: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).is_file())
    });
    if !found {
        left_out(&format!("{what}: {program} is not installed"));
    }
    found
}

/// Says loudly that a test, or a part of one, was left out.
///
/// # Panics
/// When `TASUKI_TESTS_COMPLETE` is set: where a machine is meant to run everything, nothing is left out.
pub fn left_out(what: &str) {
    static COMPLETE: OnceLock<bool> = OnceLock::new();
    eprintln!("LEFT OUT: {what}");
    assert!(
        !*COMPLETE.get_or_init(|| std::env::var_os("TASUKI_TESTS_COMPLETE").is_some()),
        "nothing may be left out here: {what}"
    );
}
