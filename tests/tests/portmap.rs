//! Ports that gateways map when agents ask: NAT-PMP, PCP and UPnP-IGD, in namespaces with a gateway of the test's own.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::Value;
use tasuki_tests::lab::gateway::{Gateway, Speaks};
use tasuki_tests::lab::mesh::Terminal;
use tasuki_tests::lab::netns::nat::NatKind::*;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::pairs::{Echo, public_relays};
use tasuki_tests::lab::paths::{self, DIRECT_WITHIN};
use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, TerminalSpec, eventually};

/// Short, so that the test sees it renewed.
const LIFETIME: u32 = 4;

fn status(terminal: &Terminal) -> Value {
    terminal.verb(&["status", "--json"]).ok().json()
}

/// A mesh in which `a` and `b` are behind symmetric NATs, and `a` may use the relays of both names.
fn mesh(wan: &Wan, machines: [&Namespace; 2], url: &str, flags: &[&str]) -> (Mesh, [Namespace; 2]) {
    let (mesh, hosts) = public_relays(wan);
    let mesh = mesh
        .terminal(TerminalSpec::new("a").on(machines[0]).flags(flags).offers("echo", url))
        .terminal(TerminalSpec::new("b").on(machines[1]).flags(flags))
        .start();
    (mesh, hosts)
}

/// Without the mapped port these two have no direct path: neither NAT shows a port that the other could send to.
fn becomes_direct(speaks: Speaks) {
    let Some(wan) = Wan::new(&format!("a port mapped by {speaks:?}")) else { return };
    let (a, b) = (wan.place(Symmetric, "a", 101), wan.place(Symmetric, "b", 102));
    let IpAddr::V4(outer) = a.public() else { panic!("a public IPv4 address") };
    let gateway = Gateway::start(&a.router, speaks, outer, LIFETIME);
    let echo = TcpService::echo(Some(&a.machine));
    let url = format!("tcp://{}", echo.address());
    let (mesh, _hosts) = mesh(&wan, [&a.machine, &b.machine], &url, &[]);
    let terminal = mesh.terminal("a");
    let mapped = eventually("a port is mapped", SOON, || {
        let status = status(terminal);
        status["mapped"].as_str().map(str::to_owned).ok_or(status.to_string())
    });
    println!("{speaks:?}: {mapped} leads to {:?}", gateway.mappings());
    assert!(mapped.starts_with(&format!("{outer}:")), "{mapped}");
    let (_forward, address) = mesh.terminal("b").forward("a/echo");
    let mut echo = Echo::connect(Some(&b.machine), address).unwrap();
    echo.round().unwrap();
    let took = paths::wait_for(mesh.terminal("b"), "a", "direct", DIRECT_WITHIN).unwrap();
    println!("{speaks:?}: direct after {took:?}");
    echo.round().unwrap();
    eventually("both relays tell the NAT", SOON, || {
        let status = status(mesh.terminal("b"));
        let count = |what: &str| status["direct"][what].as_u64().unwrap_or_default();
        // A path that a slow machine lost is found again.
        let found = (1..=1 + count("lost")).contains(&count("successes"));
        if found && status["nat"] == "endpoint-dependent" {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
    // UPnP has a life of its own choice.
    if speaks != Speaks::Upnp {
        let granted = gateway.granted();
        eventually("the mapping is renewed", SOON, || {
            if gateway.granted() > granted { Ok(()) } else { Err(format!("{granted}")) }
        });
    }
    terminal.signal(Signal::Terminate);
    eventually("the mapping is given back", SOON, || {
        let left = gateway.mappings();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

#[test]
fn nat_pmp_makes_a_direct_path() {
    becomes_direct(Speaks::NatPmp);
}

#[test]
fn pcp_makes_a_direct_path() {
    becomes_direct(Speaks::Pcp);
}

#[test]
fn upnp_makes_a_direct_path() {
    becomes_direct(Speaks::Upnp);
}

/// A gateway behind another NAT, or one that lies: what it maps is not offered, and it gets it back.
#[test]
fn a_mapping_elsewhere_than_relays_see_is_not_taken() {
    let Some(wan) = Wan::new("a mapping that leads nowhere") else { return };
    let (a, b) = (wan.place(Symmetric, "a", 101), wan.place(Public, "b", 102));
    let elsewhere = Ipv4Addr::new(203, 0, 113, 200);
    let gateway = Gateway::start(&a.router, Speaks::Pcp, elsewhere, LIFETIME);
    let (mesh, _hosts) = mesh(&wan, [&a.machine, &b.machine], "tcp://127.0.0.1:9", &[]);
    eventually("it was asked and got its port back", SOON, || {
        let (granted, left) = (gateway.granted(), gateway.mappings());
        if granted > 0 && left.is_empty() { Ok(()) } else { Err(format!("{granted} {left:?}")) }
    });
    assert_eq!(status(mesh.terminal("a"))["mapped"], Value::Null);
    eventually("an own address is no NAT", SOON, || {
        let nat = status(mesh.terminal("b"))["nat"].clone();
        if nat == "none" { Ok(()) } else { Err(nat.to_string()) }
    });
}

/// Whoever says never, of mapping or of direct paths, asks nobody.
#[test]
fn a_gateway_is_not_asked_where_that_is_off() {
    for flags in [["--port-mapping", "never"], ["--direct", "never"]] {
        let Some(wan) = Wan::new("no port mapping") else { return };
        let (a, b) = (wan.place(PortRestricted, "a", 101), wan.place(Public, "b", 102));
        let IpAddr::V4(outer) = a.public() else { panic!("a public IPv4 address") };
        let gateway = Gateway::start(&a.router, Speaks::NatPmp, outer, LIFETIME);
        let (mesh, _hosts) = mesh(&wan, [&a.machine, &b.machine], "tcp://127.0.0.1:9", &flags);
        eventually("both relays tell the NAT", SOON, || {
            let nat = status(mesh.terminal("a"))["nat"].clone();
            if nat == "endpoint-independent" { Ok(()) } else { Err(nat.to_string()) }
        });
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(gateway.granted(), 0, "{flags:?}");
    }
}
