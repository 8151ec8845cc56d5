//! Observers and relays on the path of a session.

use std::time::{Duration, Instant};

use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually, paths};

/// The longest that a session may stand still because a relay on its path drops its data.
const STALL: Duration = Duration::from_secs(5);
/// How long it is watched afterwards.
const AFTER: Duration = Duration::from_secs(6);

/// A relay that passes probes and drops data loses the session to the second path, and does not get it back.
#[test]
fn a_relay_that_drops_data_and_passes_probes_is_left() {
    let echo = TcpService::echo(None);
    let relay =
        |name: &str, other: &str| RelaySpec::new(name).links(&[other]).behind(Impairment::NONE);
    let terminal = |name: &str| TerminalSpec::new(name).at(&["r1", "r2"]).relayed();
    let mesh = MeshSpec::new()
        .relay(relay("r1", "r2"))
        .relay(relay("r2", "r1"))
        .terminal(terminal("a"))
        .terminal(terminal("b").offers("echo", &format!("tcp://{}", echo.address())))
        .start();
    let a = mesh.terminal("a");
    let mut dial = a.dial("b/echo");
    let mut round = |limit| {
        dial.write(b"12345678").unwrap();
        dial.read_exact(8, limit).unwrap_or_else(|error| panic!("not within {limit:?}: {error}"));
    };
    round(SOON);
    eventually("a second path", SOON, || {
        let row = paths::row(a, "b")?;
        if row["relayed_paths"] == 2 { Ok(()) } else { Err(row.to_string()) }
    });
    let bad = paths::relays(&paths::row(a, "b").unwrap())[0].clone();
    let line = mesh.relay(&bad).line();
    line.set_both(Impairment { drops_data: true, ..Impairment::NONE });
    let begun = Instant::now();
    round(STALL);
    println!("{bad} dropped data: {:?} until the next echo", begun.elapsed());
    let end = Instant::now() + AFTER;
    while Instant::now() < end {
        round(Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(20));
    }
    let row = paths::row(a, "b").unwrap();
    assert!(!paths::relays(&row).contains(&bad), "{row}");
}
