//! Calls and sessions on running agents (C7 to C13, D3, D4).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::time::{Duration, Instant};

use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::process::Piped;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

/// Writes to a dialled echo and reads it back.
fn echoes(dial: &mut Piped, text: &str) {
    dial.write(text.as_bytes()).unwrap_or_else(|e| panic!("{e}: {}", dial.stderr()));
    let back = dial.read_exact(text.len(), SOON);
    let back = back.unwrap_or_else(|e| panic!("{e}\n{}", dial.stderr()));
    assert_eq!(String::from_utf8_lossy(&back), text);
}

fn wait_running(mesh: &Mesh, relay: &str, count: usize) -> Vec<serde_json::Value> {
    eventually(&format!("{count} sessions over {relay}"), SOON, || {
        let sessions = mesh.relay(relay).running_sessions()?;
        if sessions.len() == count { Ok(sessions) } else { Err(format!("{sessions:?}")) }
    })
}

fn wait_sessions_in_table(mesh: &Mesh, terminal: &str, count: u64) -> Duration {
    mesh.wait_everywhere(&format!("{terminal} has {count} sessions"), SOON, |relay| {
        let row = relay.row(terminal)?;
        let state = if count == 0 { "logged-in" } else { "in-communication" };
        if row["sessions"] == count && row["state"] == state {
            Ok(())
        } else {
            Err(row.to_string())
        }
    })
}

/// C7 to C10, C12, C13: calls by user id over one, two and three relays, several at once, each seen exactly by
/// the relays of its route, ended by the caller, by the callee's log-out, by an operator.
#[test]
fn sessions_cross_relays_and_leave_nothing_behind() {
    let echo = TcpService::echo(None);
    let url = format!("tcp://{}", echo.address());
    let terminal = |name: &str, relay: &str| {
        TerminalSpec::new(name).at(&[relay]).offers("echo", &url).quick_silence()
    };
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .terminal(terminal("a", "r1"))
        .terminal(terminal("a2", "r1"))
        .terminal(terminal("b", "r2"))
        .terminal(terminal("c", "r3"))
        .start();

    // C12: a terminal sees the others before it calls.
    let rows = mesh.terminal("a").list("ls");
    let seen: Vec<_> = rows.iter().map(|r| (r["id"].as_str(), r["state"].as_str())).collect();
    let on = Some("logged-in");
    assert_eq!(seen, [(Some("a"), on), (Some("a2"), on), (Some("b"), on), (Some("c"), on)]);

    // C13: the same relay, and no other one.
    let start = Instant::now();
    let mut near = mesh.terminal("a").dial("a2/echo");
    echoes(&mut near, "on one relay");
    println!("first echo over one relay, process start included: {:?}", start.elapsed());
    wait_running(&mesh, "r1", 1);
    for other in ["r2", "r3"] {
        assert!(mesh.relay(other).sessions().unwrap().is_empty(), "{other} sees it");
    }
    // C9: a terminal in communication takes and makes further calls.
    let mut two = mesh.terminal("a").dial("b/echo");
    echoes(&mut two, "over two relays");
    let start = Instant::now();
    let mut three = mesh.terminal("a").dial("c/echo");
    echoes(&mut three, "over three relays");
    println!("first echo over three relays, process start included: {:?}", start.elapsed());
    let mut back = mesh.terminal("c").dial("a/echo");
    echoes(&mut back, "and from there");
    let mut again = mesh.terminal("a").dial("c/echo");
    echoes(&mut again, "twice to the same");
    wait_running(&mesh, "r1", 5);
    wait_running(&mesh, "r2", 4);
    let far = wait_running(&mesh, "r3", 3);
    for session in &far {
        assert_eq!(session["route"].as_array().map(Vec::len), Some(3), "{session}");
        assert_eq!(session["state"], "active");
    }
    wait_sessions_in_table(&mesh, "a", 5);
    wait_sessions_in_table(&mesh, "c", 3);
    for dial in [&mut near, &mut two, &mut three, &mut back, &mut again] {
        echoes(dial, "all at once");
    }

    // C10, by the caller: the end of its input, then a kill of the verb.
    two.close_stdin();
    assert_eq!(two.read_to_end(SOON).unwrap(), b"");
    assert!(two.process().wait(SOON).success(), "{}", two.stderr());
    wait_running(&mesh, "r2", 3);
    three.process().kill();
    wait_running(&mesh, "r3", 2);
    echoes(&mut again, "others go on");

    // By an operator, at a relay in the middle.
    let back_id = wait_running(&mesh, "r2", 2);
    let back_id = back_id.iter().find(|s| s["caller"] == "c").unwrap()["id"].clone();
    mesh.relay("r2").verb(&["end", back_id.as_str().unwrap()]).ok();
    assert!(!back.process().wait(SOON).success(), "an ended session fails its dial");
    let ended = mesh.relay("r2").sessions().unwrap();
    let ended = ended.iter().find(|s| s["id"] == back_id).unwrap();
    assert_eq!(ended["reason"], "ended-by-operator", "{ended}");

    // C11: log-out of the callee ends all its sessions.
    mesh.terminal("c").verb(&["logout"]).ok();
    assert!(!again.process().wait(SOON).success());
    mesh.wait_state("c", "logged-out", SOON);
    wait_running(&mesh, "r2", 0);
    echoes(&mut near, "still there");

    // A callee that dies without a word: the relay notices, and tells.
    mesh.terminal("a2").kill();
    near.process().wait(SOON);
    wait_sessions_in_table(&mesh, "a", 0);
    println!("nothing left: {:?}", mesh.wait_no_sessions(SOON));
    for relay in mesh.running_relays() {
        for session in relay.sessions().unwrap() {
            assert!(session["reason"].is_string(), "a coded reason: {session}");
            assert!(session["ended_at"].is_u64(), "{session}");
        }
    }
}

/// D3, D4: two terminals call each other at the same instant, over a line long enough that the calls do meet:
/// each time both get their echo over exactly one session, and nothing of the other stays behind.
#[test]
fn calls_that_meet_become_one_session() {
    const ROUNDS: usize = 20;
    let echo = TcpService::echo(None);
    let url = format!("tcp://{}", echo.address());
    let long = Impairment::delayed(Duration::from_millis(40));
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").links(&["r2"]).behind(long))
        .relay(RelaySpec::new("r2").links(&["r1"]).behind(long))
        .terminal(TerminalSpec::new("a").at(&["r1"]).offers("echo", &url))
        .terminal(TerminalSpec::new("b").at(&["r2"]).offers("echo", &url))
        .start();
    let merged = || -> Result<usize, String> {
        let all = mesh.relay("r1").sessions()?;
        Ok(all.iter().filter(|s| s["reason"] == "merged").count())
    };
    let mut met = 0;
    for round in 0..ROUNDS {
        let mut from_a = mesh.terminal("a").dial("b/echo");
        let mut from_b = mesh.terminal("b").dial("a/echo");
        echoes(&mut from_a, &format!("a {round}"));
        echoes(&mut from_b, &format!("b {round}"));
        // Where the calls met, one session serves both; where one was answered before the other began, two do.
        let one = eventually("one session, or two that never met", SOON, || {
            let running = mesh.relay("r1").running_sessions()?;
            // One that is to be merged is not active before.
            let active = running.iter().all(|session| session["state"] == "active");
            match (merged()? - met, running.len()) {
                (1, 1) => Ok(true),
                (0, 2) if active => Ok(false),
                (_, _) => Err(format!("round {round}: {running:?}")),
            }
        });
        met += usize::from(one);
        from_a.close_stdin();
        assert!(from_a.process().wait(SOON).success(), "round {round}: {}", from_a.stderr());
        // The session serves the other until it is done, whoever of the two called.
        echoes(&mut from_b, "still");
        from_b.close_stdin();
        assert!(from_b.process().wait(SOON).success(), "round {round}: {}", from_b.stderr());
        mesh.wait_no_sessions(SOON);
    }
    println!("{met} of {ROUNDS} pairs of calls met");
    assert!(met >= ROUNDS / 4, "the calls hardly ever met: the test shows nothing ({met})");
    mesh.wait_tables_equal(SOON);
}
