//! Two attachments of a terminal: which relays it takes, and what happens when they die (C1, architecture 6).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tasuki_tests::lab::mesh::{Relay, Terminal};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

/// Both attachments stand within this of a start, or of a relay's return (interfaces).
const BOTH: Duration = Duration::from_secs(5);
/// The silence after which agents and relays of this test give up (4 s), and what gossip and a slow machine add: less
/// than with the periods that nobody configured.
const SILENCE: Duration = Duration::from_secs(12);

/// The relays of the primary and of the standby, as a table shows them.
fn shown(relay: &Relay, terminal: &str) -> Result<(String, Option<String>), String> {
    let row = relay.row(terminal)?;
    let of = |role: &str| -> Vec<String> {
        let all = row["attachments"].as_array().cloned().unwrap_or_default();
        let with = all.iter().filter(|one| one["role"] == role);
        with.filter_map(|one| one["relay"].as_str().map(str::to_owned)).collect()
    };
    match (&of("primary")[..], &of("standby")[..]) {
        ([primary], []) => Ok((primary.clone(), None)),
        ([primary], [standby]) => Ok((primary.clone(), Some(standby.clone()))),
        _ => Err(row.to_string()),
    }
}

/// The same by the agent's own `status`.
fn status(mesh: &Mesh, terminal: &str) -> Result<(String, Option<String>), String> {
    let done = mesh.terminal(terminal).verb(&["status", "--json"]);
    if done.code != 0 {
        return Err(done.stderr);
    }
    let status = done.json();
    let relay = |n: usize, role: &str| {
        let one = &status["attachments"][n];
        if one["role"] == role { one["relay"].as_str().map(str::to_owned) } else { None }
    };
    relay(0, "primary").map(|primary| (primary, relay(1, "standby"))).ok_or(status.to_string())
}

/// Waits until every table shows the same two attachments as the agent; which they are.
fn wait_both(mesh: &Mesh, terminal: &str, limit: Duration) -> (String, String) {
    let start = Instant::now();
    let both = eventually("both attachments stand, in every table", limit, || {
        let own = status(mesh, terminal)?;
        for relay in mesh.running_relays() {
            let shown = shown(relay, terminal)?;
            if shown != own {
                return Err(format!("{}: {shown:?}, not {own:?}", relay.name()));
            }
        }
        match own {
            (primary, Some(standby)) => Ok((primary, standby)),
            one => Err(format!("{one:?}")),
        }
    });
    println!("both attachments, in every table: {:?} {both:?}", start.elapsed());
    both
}

fn three_relays() -> Mesh {
    MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2"))
        .relay(RelaySpec::new("r3"))
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").quick_silence().stays_off())
        .start()
}

#[test]
fn the_standby_takes_over_and_is_replaced() {
    let mesh = three_relays();
    mesh.wait_tables_equal(SOON);
    mesh.terminal("a").start();
    let (primary, standby) = wait_both(&mesh, "a", BOTH);
    assert_ne!(primary, standby);

    // The relay of the primary dies without a word.
    mesh.relay(&primary).kill();
    let start = Instant::now();
    eventually("the standby is the primary", SILENCE, || {
        let (now, _) = status(&mesh, "a")?;
        if now == standby { Ok(()) } else { Err(now) }
    });
    println!("kill -9 of the primary's relay, the standby is the primary: {:?}", start.elapsed());
    let (promoted, replacement) = wait_both(&mesh, "a", BOTH);
    assert_eq!(promoted, standby);
    assert!(replacement != primary && replacement != standby);

    // The standby's relay dies: one is left, until the first relay is back.
    mesh.relay(&replacement).kill();
    mesh.wait_everywhere("one attachment is left", SILENCE, |relay| {
        let shown = shown(relay, "a")?;
        if shown == (standby.clone(), None) { Ok(()) } else { Err(format!("{shown:?}")) }
    });
    mesh.relay(&primary).start();
    let (kept, returned) = wait_both(&mesh, "a", BOTH);
    assert_eq!((kept, returned), (standby.clone(), primary.clone()));

    // All relays die and return.
    for relay in ["r1", "r2", "r3"] {
        mesh.relay(relay).kill();
    }
    for relay in ["r1", "r2", "r3"] {
        mesh.relay(relay).start();
    }
    wait_both(&mesh, "a", SILENCE + BOTH);
    mesh.wait_tables_equal(SOON);

    mesh.terminal("a").verb(&["logout"]).ok();
    let took = mesh.wait_state("a", "logged-out", SOON);
    println!("log-out of both, every table: {took:?}");
}

#[test]
fn a_draining_relay_is_left_for_another() {
    let mesh = three_relays();
    mesh.terminal("a").start();
    let (primary, standby) = wait_both(&mesh, "a", SOON);
    mesh.relay(&primary).verb(&["drain"]).ok();
    let start = Instant::now();
    // It is left within 5 s, once another stands, and 5 s later.
    let limit = Duration::from_secs(15);
    mesh.wait_everywhere("the draining relay is left", limit, |relay| {
        let (now, other) = shown(relay, "a")?;
        let other = other.ok_or("one attachment")?;
        if now == standby && other != primary && other != standby {
            Ok(())
        } else {
            Err(format!("{now} {other}"))
        }
    });
    println!("a draining relay is left: {:?}", start.elapsed());
    assert_eq!(mesh.relay(&standby).row("a").unwrap()["state"], "logged-in");

    // An operator cuts an attachment at its relay: the other stands, and it comes back.
    mesh.relay(&standby).verb(&["kick", "a"]).ok();
    wait_both(&mesh, "a", SOON);
}

/// Calls that ring at the attachment of a process that is gone hear what helps: the next call reaches the new one.
#[test]
fn two_agents_that_died_and_restarted_reach_each_other_at_once() {
    const ROUNDS: u32 = 4;
    let service = TcpService::echo(None);
    let url = format!("tcp://{}", service.address());
    let relays = ["r1", "r2", "r3", "r4"].map(RelaySpec::new).into_iter();
    let spec = relays.fold(MeshSpec::new(), MeshSpec::relay);
    let callee = TerminalSpec::new("b").relayed().offers("echo", &url);
    let mesh = spec.terminal(TerminalSpec::new("a").relayed()).terminal(callee).start();
    let mut slowest = Duration::ZERO;
    for round in 0..ROUNDS {
        let (caller, callee) = (mesh.terminal("a"), mesh.terminal("b"));
        [caller, callee].into_iter().for_each(Terminal::kill);
        [caller, callee].into_iter().for_each(Terminal::start);
        eventually("the agent answers", SOON, || match caller.verb(&["status"]) {
            done if done.code == 0 => Ok(()),
            done => Err(done.stderr),
        });
        let begun = Instant::now();
        let (_forward, address) = caller.forward("b/echo");
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut heard = [0; 4];
        let carried = stream.write_all(b"echo").and_then(|()| stream.read_exact(&mut heard));
        carried.unwrap_or_else(|error| panic!("round {round}: {error}"));
        slowest = slowest.max(begun.elapsed());
    }
    println!("both restarted, {ROUNDS} times: reached within {slowest:?}");
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}
