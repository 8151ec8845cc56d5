//! Terminals behind NATs of their own that reach only the relays (C1; the main job).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::time::{Duration, Instant};

use tasuki_tests::lab::netns::Wan;
use tasuki_tests::lab::process::Piped;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::workload::Workload;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually};

/// scp, curl, iperf3, UDP and `send` between two machines, each behind a masquerading NAT that lets nothing in
/// unasked, over three relays with a public address each.
#[test]
fn real_programs_cross_two_nats() {
    let Some(wan) = Wan::new("the main job behind two NATs") else { return };
    let hosts = [wan.host("r1", 11), wan.host("r2", 12), wan.host("r3", 13)];
    let (a, b) = (wan.natted("a", 101), wan.natted("b", 102));
    let work = Workload::start(Some(&b.machine), 100_000_000);
    let relay = |n: usize, links: &[&str]| {
        let address = Wan::address(10 + n as u8);
        RelaySpec::new(&format!("r{n}")).links(links).on(&hosts[n - 1], address)
    };
    let mesh = MeshSpec::new()
        .relay(relay(1, &["r2"]))
        .relay(relay(2, &["r1", "r3"]))
        .relay(relay(3, &["r2"]))
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]).on(&a.machine))
        .terminal(work.exposed_by(TerminalSpec::new("b").relayed().at(&["r3"]).on(&b.machine)))
        .start();
    // The relay sees the NAT, not the machine.
    let row = mesh.relay("r2").row("b").unwrap();
    let seen = row["attachments"][0]["address"].as_str().unwrap();
    assert!(seen.starts_with("203.0.113.102:"), "{row}");
    work.run(&mesh, "a", "b");
    println!("nothing left: {:?}", mesh.wait_no_sessions(SOON));
}

/// C3 and label binding: the NAT gives an agent another address while a session runs; a half-open line is
/// noticed by both sides although nobody closes anything.
#[test]
fn addresses_change_and_lines_go_silent() {
    let Some(wan) = Wan::new("NAT rebinding and silence") else { return };
    let hosts = [wan.host("r1", 11), wan.host("r2", 12)];
    let (a, b) = (wan.natted("a", 101), wan.natted("b", 102));
    let echo = TcpService::echo(Some(&b.machine));
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").links(&["r2"]).on(&hosts[0], Wan::address(11)))
        .relay(RelaySpec::new("r2").links(&["r1"]).on(&hosts[1], Wan::address(12)))
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]).on(&a.machine).quick_silence())
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .at(&["r2"])
                .on(&b.machine)
                .quick_silence()
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    let round = |dial: &mut Piped, text: &str| {
        dial.write(text.as_bytes()).unwrap();
        let back = dial.read_exact(text.len(), SOON).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(back, text.as_bytes());
    };
    let mut dial = mesh.terminal("a").dial("b/echo");
    round(&mut dial, "before");
    a.router.change_address("wan0", "203.0.113.111/24", None);
    a.router.forget_mappings("wan0");
    let start = Instant::now();
    round(&mut dial, "after the address changed");
    println!("echo after a NAT rebinding: {:?}", start.elapsed());
    mesh.wait_everywhere("the table shows the new address", SOON, |relay| {
        let row = relay.row("a")?;
        let address = row["attachments"][0]["address"].as_str().unwrap_or_default();
        if address.starts_with("203.0.113.111:") { Ok(()) } else { Err(row.to_string()) }
    });

    // Nothing reaches b any more, though b still sends: the relay hears it, so b has to notice.
    b.router.drop_incoming("wan0", "meta l4proto udp");
    let took = mesh.wait_state("b", "logged-out", Duration::from_secs(20));
    println!("one direction cut, every table: {took:?}");
    eventually("the caller's dial ends", Duration::from_secs(20), || {
        dial.process().status().map(drop).ok_or_else(|| "it runs".to_owned())
    });
    eventually("the agent behind the cut line knows", SOON, || {
        let status = mesh.terminal("b").verb(&["status", "--json"]).ok().json();
        if status["state"] == "logged-in" { Err(status.to_string()) } else { Ok(()) }
    });
    b.router.heal();
    println!("healed, every table: {:?}", mesh.wait_state("b", "logged-in", SOON));
    let mut dial = mesh.terminal("a").dial("b/echo");
    round(&mut dial, "again");
}
