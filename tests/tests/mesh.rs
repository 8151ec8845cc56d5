//! The table on running relays: who is logged in, everywhere, whatever dies (C1 to C6, C11).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::time::{Duration, Instant};

use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually};

/// A log-out or a revocation is in every table within this (issue: on loopback).
const AT_ONCE: Duration = Duration::from_secs(1);
/// An agent with [`TerminalSpec::quick_silence`] that dies without a packet is noticed within this: twice its 3 s of
/// silence, since they begin anew with the first packet that is sent to it (RFC 9000, section 10.1), and a moment for
/// gossip.
const SILENCE: Duration = Duration::from_secs(7);
/// A relay that dies without a packet is noticed by its neighbours within this.
const DEAD_RELAY: Duration = Duration::from_secs(35);

/// C1 to C6, C11 on a line r1-r2-r3: log-in, log-out, kill -9 of an agent and revocation are in every table, and
/// the tables are equal.
#[test]
fn a_line_shows_every_change_everywhere() {
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .terminal(
            TerminalSpec::new("a")
                .at(&["r1"])
                .quick_silence()
                .token_flags(&["--type", "camera", "--attr", "floor=3"]),
        )
        .terminal(TerminalSpec::new("b").at(&["r3"]))
        .terminal(TerminalSpec::new("c").at(&["r2"]).stays_off())
        .start();
    println!("equal tables after log-in: {:?}", mesh.wait_tables_equal(SOON));

    // C4: types, attributes, relays; accounts that never logged in are rows too.
    for relay in mesh.running_relays() {
        let a = relay.row("a").unwrap();
        assert_eq!((&a["type"], &a["attributes"]["floor"]), (&"camera".into(), &"3".into()));
        assert_eq!(a["attachments"][0]["relay"], "r1", "{a}");
        assert_eq!(a["attachments"][0]["role"], "primary", "{a}");
        let c = relay.row("c").unwrap();
        assert_eq!(
            (&c["state"], c["attachments"].as_array().map(Vec::len)),
            (&"logged-out".into(), Some(0))
        );
        let ids: Vec<_> = relay.api.items("/api/v1/terminals").unwrap();
        let ids: Vec<_> = ids.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["a", "b", "c"]);
        let filtered = relay.api.items("/api/v1/terminals?type=camera&state=logged-in").unwrap();
        assert_eq!(filtered.len(), 1, "{filtered:?}");
    }
    // r1 and r3 are not linked, and reach each other all the same.
    let row = mesh.relay("r1").relay_row("r3").unwrap();
    assert_eq!((&row["reachable"], row["links"].as_array().map(Vec::len)), (&true.into(), Some(1)));

    // C11, on the terminal's wish.
    mesh.terminal("b").verb(&["logout"]).ok();
    let took = mesh.wait_state("b", "logged-out", SOON);
    println!("log-out, every table: {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(mesh.terminal("b").is_running(), "logout leaves the daemon up");
    mesh.terminal("b").verb(&["login"]).ok();
    println!("log-in, every table: {:?}", mesh.wait_state("b", "logged-in", SOON));

    // Without a packet.
    mesh.terminal("a").kill();
    let took = mesh.wait_state("a", "logged-out", SILENCE);
    println!("kill -9 of an agent, every table: {took:?}");
    mesh.terminal("a").start();
    println!("its return, every table: {:?}", mesh.wait_state("a", "logged-in", SOON));

    // C2: revocation cuts what is live.
    mesh.registrar().verb(&["revoke", "b"]).ok();
    let took = mesh.wait_state("b", "logged-out", SOON);
    println!("revocation, every table: {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    let status = eventually("the agent knows why", SOON, || {
        let status = mesh.terminal("b").verb(&["status", "--json"]).ok().json();
        let why = status["why"].as_str().unwrap_or_default().to_owned();
        if why.contains("revoked") { Ok(status) } else { Err(status.to_string()) }
    });
    assert_ne!(status["state"], "logged-in");
    println!("equal tables at the end: {:?}", mesh.wait_tables_equal(SOON));
}

/// A new log-in with the same identity supersedes the old one and never waits for it (C3, architecture 6).
#[test]
fn a_restarted_agent_does_not_wait_for_its_ghost() {
    let mesh = MeshSpec::line(&["r1", "r2"]).terminal(TerminalSpec::new("a").at(&["r1"])).start();
    let since =
        |relay: &str| mesh.relay(relay).row("a").unwrap()["attachments"][0]["since"].clone();
    for _ in 0..3 {
        let before = since("r2");
        mesh.terminal("a").kill();
        mesh.terminal("a").start();
        let start = Instant::now();
        mesh.wait_everywhere("the new log-in", SOON, |relay| {
            let row = relay.row("a")?;
            let newer = row["attachments"][0]["since"].as_u64() > before.as_u64();
            if row["state"] == "logged-in" && newer { Ok(()) } else { Err(row.to_string()) }
        });
        println!("restart of an agent, every table: {:?}", start.elapsed());
        // With the default silence of 30 s the ghost of the killed one still stood.
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    mesh.wait_tables_equal(SOON);
}

/// C3, C4: a killed relay makes its terminals unreachable in all other tables; on its return with its data
/// directory, and no other help, they are back. The same for the relay in the middle.
#[test]
fn relays_that_die_come_back_with_their_terminals() {
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").at(&["r1"]).quick_silence())
        .terminal(TerminalSpec::new("b").at(&["r3"]).quick_silence())
        .start();

    mesh.relay("r3").kill();
    let took = mesh.wait_state("b", "unreachable", DEAD_RELAY);
    println!("kill -9 of a relay, its terminal unreachable elsewhere: {took:?}");
    let took = mesh.relay("r3").start();
    println!("restart of a relay, healthy: {took:?}");
    assert!(
        took < Duration::from_secs(5),
        "interfaces: /healthz within 5 s of its start, {took:?}"
    );
    let took = mesh.wait_state("b", "logged-in", DEAD_RELAY);
    println!("and its terminal is back in every table: {took:?}");

    // The middle one: nobody dies with it, but no path is left.
    mesh.relay("r2").kill();
    mesh.wait_everywhere("the far terminal is unreachable", DEAD_RELAY, |relay| {
        let (near, far) = if relay.name() == "r1" { ("a", "b") } else { ("b", "a") };
        let (near, far) = (relay.row(near)?, relay.row(far)?);
        let seen = (near["state"].as_str(), far["state"].as_str());
        if seen == (Some("logged-in"), Some("unreachable")) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    // What changes while the mesh is split arrives when it heals.
    mesh.terminal("a").verb(&["logout"]).ok();
    mesh.relay("r2").start();
    mesh.wait_state("b", "logged-in", DEAD_RELAY);
    println!("a healed split: {:?}", mesh.wait_state("a", "logged-out", DEAD_RELAY));
    println!("equal tables: {:?}", mesh.wait_tables_equal(SOON));

    // An orderly end is known at once.
    mesh.relay("r3").signal(tasuki_tests::lab::process::Signal::Terminate);
    eventually("r3 ends", SOON, || {
        if mesh.relay("r3").is_running() { Err("it runs".to_owned()) } else { Ok(()) }
    });
    println!("end of a relay: {:?}", mesh.wait_state("b", "unreachable", DEAD_RELAY));
}

/// C6 over other topologies: loops do not let updates live for ever, and a broken ring is a line.
#[test]
fn rings_and_stars_agree() {
    let mesh = MeshSpec::ring(&["r1", "r2", "r3", "r4"])
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .terminal(TerminalSpec::new("b").at(&["r3"]))
        .start();
    println!("ring of 4, equal tables: {:?}", mesh.wait_tables_equal(SOON));
    mesh.relay("r2").kill();
    mesh.terminal("b").verb(&["logout"]).ok();
    println!("broken ring, log-out: {:?}", mesh.wait_state("b", "logged-out", SOON));
    mesh.relay("r2").start();
    eventually("r2 has caught up", DEAD_RELAY, || {
        let row = mesh.relay("r2").row("b")?;
        if row["state"] == "logged-out" { Ok(()) } else { Err(row.to_string()) }
    });
    mesh.wait_tables_equal(DEAD_RELAY);
    drop(mesh);

    let mesh = MeshSpec::star(&["hub", "s1", "s2", "s3"])
        .terminal(TerminalSpec::new("a").at(&["s1"]))
        .terminal(TerminalSpec::new("b").at(&["s3"]))
        .start();
    println!("star of 4, equal tables: {:?}", mesh.wait_tables_equal(SOON));
    mesh.terminal("a").verb(&["logout"]).ok();
    println!("star, log-out: {:?}", mesh.wait_state("a", "logged-out", SOON));
}

/// Relays that are told nothing find and link each other, and with two of them an agent has both attachments
/// where the build offers standbys (C1, interfaces: `--links auto`).
#[test]
fn relays_without_configuration_find_each_other() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2"))
        .relay(RelaySpec::new("r3"))
        .terminal(TerminalSpec::new("a"))
        .start();
    let took = mesh.wait_everywhere("a full mesh", SOON, |relay| {
        let status = relay.api.json("/api/v1/status")?;
        match status["links"].as_array().map(Vec::len) {
            Some(2) => Ok(()),
            _ => Err(status["links"].to_string()),
        }
    });
    println!("full mesh of 3: {took:?}");
    mesh.wait_tables_equal(SOON);
    for relay in mesh.running_relays() {
        assert_eq!(relay.api.get("/readyz").unwrap().status, 200, "{}", relay.name());
        let metrics = relay.api.get("/metrics").unwrap();
        let metrics = String::from_utf8(metrics.body).unwrap();
        let samples = metrics.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
        assert!(samples.clone().count() > 5 && samples.clone().all(|l| l.starts_with("tasuki_")));
    }
}

/// A revoked relay is cut off at once, its links too, and is not let in again; its terminals become unreachable.
#[test]
fn a_revoked_relay_is_cut_off() {
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .terminal(TerminalSpec::new("b").at(&["r3"]))
        .start();
    mesh.wait_tables_equal(SOON);
    let linked = || -> Result<Vec<String>, String> {
        let status = mesh.relay("r2").api.json("/api/v1/status")?;
        let links = status["links"].as_array().ok_or("no links")?.clone();
        Ok(links.iter().filter_map(|link| link["relay"].as_str().map(str::to_owned)).collect())
    };
    assert_eq!(linked().unwrap(), ["r1", "r3"]);
    let start = Instant::now();
    mesh.registrar().verb(&["revoke", "r3", "--relay"]).ok();
    let cut = || match linked()? {
        links if links == ["r1"] => Ok(()),
        links => Err(format!("{links:?}")),
    };
    eventually("r2 has cut its link with r3", AT_ONCE, cut);
    println!("a revoked relay's link is cut after {:?}", start.elapsed());
    // Every row of a revoked relay is dropped: its terminals are logged in nowhere until they find another relay.
    eventually("its terminal is logged in nowhere", SOON, || {
        let row = mesh.relay("r1").row("b")?;
        let nowhere = row["attachments"].as_array().is_some_and(Vec::is_empty);
        if nowhere && row["state"] == "logged-out" { Ok(()) } else { Err(row.to_string()) }
    });
    // Long enough for r3 to have dialled again several times.
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        cut().unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
}
