//! What half works: packets that are lost one way while nothing is closed, and a disk that is full.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tasuki_tests::lab::mesh::{Disk, Terminal};
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, paths};

const SEED: u64 = 11;
const LIMIT: Duration = Duration::from_secs(60);
/// More than lies in buffers on the way.
const GOES_ON: u64 = 8_000_000;
/// The longest that a transfer stands still when a link of its path dies one way.
const STALL: Duration = Duration::from_secs(1);
/// How soon a call finds the way round a link that is dead one way: relays notice silence after 8 s, and the call before
/// may have waited its time.
const AROUND: Duration = Duration::from_secs(20);
/// The last part of the addresses.
const RELAYS: [(&str, u8); 3] = [("r1", 11), ("r2", 12), ("r3", 13)];
const TERMINALS: [(&str, u8); 2] = [("a", 101), ("b", 102)];

/// One test at a time: they measure times on a machine of few cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address(name: &str) -> IpAddr {
    let all = RELAYS.iter().chain(&TERMINALS);
    let (_, octet) = all.into_iter().find(|(known, _)| *known == name).unwrap();
    Wan::address(*octet).into()
}

/// Three relays, linked with each other, and a transfer from `a` to `b` over them.
struct Running {
    mesh: Mesh,
    receiver: Receiver,
    sender: Sender,
    _forward: Process,
    _hosts: Vec<Namespace>,
    wan: Wan,
}

impl Running {
    /// `a` and `b` attach where they are told to.
    fn start(what: &str, at: [&[&str]; 2]) -> Option<Running> {
        let wan = Wan::new(what)?;
        let mut hosts = Vec::new();
        let mut spec = MeshSpec::new();
        for (name, octet) in RELAYS {
            let host = wan.host(name, octet);
            let others: Vec<&str> =
                RELAYS.map(|(other, _)| other).into_iter().filter(|o| *o != name).collect();
            spec = spec.relay(
                RelaySpec::new(name).links(&others).quick_silence().on(&host, Wan::address(octet)),
            );
            hosts.push(host);
        }
        let [a, b] = TERMINALS.map(|(name, octet)| wan.host(name, octet));
        let receiver = Receiver::start(Some(&b), SEED);
        let terminal = |name: &str, at: &[&str], host: &Namespace| {
            TerminalSpec::new(name).at(at).on(host).quick_silence().flags(&["--direct", "never"])
        };
        let callee =
            terminal("b", at[1], &b).offers("bulk", &format!("tcp://{}", receiver.address()));
        let mesh = spec.terminal(callee).terminal(terminal("a", at[0], &a)).start();
        let (_forward, listens) = mesh.terminal("a").forward("b/bulk");
        let sender = Sender::start(Some(&a), listens, SEED, u64::MAX).unwrap();
        receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
        hosts.extend([a, b]);
        Some(Running { mesh, receiver, sender, _forward, _hosts: hosts, wan })
    }

    fn route(&self) -> Vec<String> {
        paths::relays(&paths::row(self.mesh.terminal("a"), "b").unwrap())
    }

    /// Waits until the session has a second path: it comes a while after the attachments that it takes.
    fn wait_for_second_path(&self) {
        eventually("a second path", LIMIT, || {
            let row = paths::row(self.mesh.terminal("a"), "b")?;
            if row["relayed_paths"].as_u64() >= Some(2) { Ok(()) } else { Err(row.to_string()) }
        });
    }

    fn attached(&self, name: &str) -> Result<Vec<String>, String> {
        let row = self.mesh.registrar().row(name)?;
        let all = row["attachments"].as_array().cloned().unwrap_or_default();
        Ok(all.iter().filter_map(|one| one["relay"].as_str().map(str::to_owned)).collect())
    }

    /// Loses what goes from one to another, and waits until the session takes a way that is not `broken`; then
    /// for how long the transfer stood still.
    fn cut(&self, from: &str, to: &str, broken: impl Fn(&[String]) -> bool) {
        let before = self.route();
        self.receiver.mark();
        self.wan.block_one_way(address(from), address(to));
        eventually(&format!("another way than {before:?}"), SOON, || {
            let route = self.route();
            if broken(&route) { Err(format!("{route:?}")) } else { Ok(()) }
        });
        self.receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
        let stall = self.receiver.seen().longest_gap;
        println!("{from} to {to} is dead: {before:?}, then {:?}, stall {stall:?}", self.route());
        assert!(stall <= STALL, "{stall:?}");
    }

    fn finish(self) {
        let total = self.sender.finish(&self.receiver, LIMIT).unwrap();
        println!("{total} bytes, each the right one");
    }
}

/// C3: both sides notice, whichever of them still hears the other; the session does not wait for that.
#[test]
fn a_terminal_link_that_is_dead_one_way_is_left_and_noticed() {
    let _alone = alone();
    let all = &["r1", "r2", "r3"][..];
    let Some(running) = Running::start("half-open terminal links", [all, all]) else { return };
    for outwards in [true, false] {
        eventually("two attachments", LIMIT, || match running.attached("a")?.len() {
            2 => Ok(()),
            other => Err(other.to_string()),
        });
        running.wait_for_second_path();
        running.receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
        let relay = running.route()[0].clone();
        let (from, to) = if outwards { ("a", relay.as_str()) } else { (relay.as_str(), "a") };
        running.cut(from, to, |route| route.first() == Some(&relay));
        eventually("the dead attachment is noticed", SOON, || {
            let attached = running.attached("a")?;
            if attached.contains(&relay) { Err(format!("{attached:?}")) } else { Ok(()) }
        });
        running.wan.allow();
    }
    running.finish();
}

/// The terminals have one attachment each, and the relays take the link for good for seconds.
#[test]
fn a_relay_link_that_is_dead_one_way_is_left_before_the_relays_notice() {
    let _alone = alone();
    let Some(running) = Running::start("half-open relay links", [&["r1"], &["r2"]]) else { return };
    for backwards in [false, true] {
        let route = running.route();
        let (from, to) = if backwards { (&route[1], &route[0]) } else { (&route[0], &route[1]) };
        let broken = |other: &[String]| other.windows(2).any(|pair| *pair == route[..2]);
        running.cut(from, to, broken);
        running.wan.allow();
        running.mesh.wait_for_links();
    }
    running.finish();
}

/// C3 and C8, with the periods of a relay that nobody configured: a call has no second path that would show it.
#[test]
fn calls_go_round_a_relay_link_that_is_dead_one_way_after_seconds() {
    let _alone = alone();
    let Some(wan) = Wan::new("calls over half-open relay links") else { return };
    let hosts = RELAYS.map(|(name, octet)| wan.host(name, octet));
    let mut spec = MeshSpec::new();
    for ((name, octet), host) in RELAYS.into_iter().zip(&hosts) {
        spec = spec.relay(RelaySpec::new(name).on(host, Wan::address(octet)));
    }
    let [a, b] = TERMINALS.map(|(name, octet)| wan.host(name, octet));
    let echo = TcpService::echo(Some(&b));
    let pinned = |name: &str, at: &str, host: &Namespace| {
        TerminalSpec::new(name).at(&[at]).on(host).flags(&["--direct", "never"])
    };
    let callee = pinned("b", "r2", &b).offers("echo", &format!("tcp://{}", echo.address()));
    let callers = ["a", "c"].map(|name| pinned(name, "r1", &a));
    let mesh = callers.into_iter().fold(spec.terminal(callee), MeshSpec::terminal).start();
    mesh.wait_for_links();
    // Each calls for the first time: a session that runs would go round by itself.
    for (caller, from, to) in [("a", "r1", "r2"), ("c", "r2", "r1")] {
        wan.block_one_way(address(from), address(to));
        let begun = Instant::now();
        eventually("a call that goes round", LIMIT, || {
            let mut dial = mesh.terminal(caller).dial("b/echo");
            dial.write(b"12345678").map_err(|error| error.to_string())?;
            dial.read_exact(8, SOON).map(drop)
        });
        let took = begun.elapsed();
        println!("{from} to {to} is dead: a call got through after {took:.1?}");
        assert!(took < AROUND, "{took:?}");
        wan.allow();
        mesh.wait_for_links();
    }
}

fn echoes(from: &Terminal, target: &str) {
    let mut dial = from.dial(target);
    dial.write(b"12345678").unwrap();
    let heard = dial.read_exact(8, SOON).unwrap_or_else(|e| panic!("{e}: {}", dial.stderr()));
    assert_eq!(heard, b"12345678");
}

#[test]
fn a_relay_with_a_full_disk_says_so_and_forwards() {
    let _alone = alone();
    if !Disk::is_possible("a full disk") {
        return;
    }
    let (receiver, echo) = (Receiver::start(None, SEED), TcpService::echo(None));
    let pinned = |name: &str| TerminalSpec::new(name).at(&["r2"]).flags(&["--direct", "never"]);
    let b = pinned("b")
        .offers("bulk", &format!("tcp://{}", receiver.address()))
        .offers("echo", &format!("tcp://{}", echo.address()));
    let mut mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .relay(RelaySpec::new("r2").disk(4 << 20))
        .terminal(b)
        .terminal(pinned("a"))
        .terminal(pinned("c"))
        .expect_error("could not be kept")
        .expect_error("the store cannot")
        .start();
    let (_forward, address) = mesh.terminal("a").forward("b/bulk");
    let sender = Sender::start(None, address, SEED, u64::MAX).unwrap();
    receiver.wait_for_more(GOES_ON, LIMIT).unwrap();

    mesh.relay("r2").disk().fill();
    // Each session that ends is to be written down.
    eventually("the relay says what is wrong", SOON, || {
        echoes(mesh.terminal("c"), "b/echo");
        let log = mesh.relay("r2").log_text();
        let said = log.lines().any(|line| line.contains("ERROR") && line.contains("full"));
        if said { Ok(()) } else { Err("nothing yet".to_owned()) }
    });
    // What others write arrives all the same, and a newcomer is let in.
    mesh.add_terminal(pinned("d"));
    mesh.wait_state("d", "logged-in", SOON);
    echoes(mesh.terminal("d"), "b/echo");
    receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
    assert_eq!(mesh.relay("r2").api.get("/healthz").unwrap().status, 200);

    mesh.relay("r2").disk().free();
    // What was to be written before that has failed once the end of a later session is written.
    echoes(mesh.terminal("c"), "b/echo");
    eventually("only the transfer runs", SOON, || {
        let running = mesh.relay("r2").running_sessions()?;
        if running.len() == 1 { Ok(()) } else { Err(format!("{running:?}")) }
    });
    let errors = |mesh: &Mesh| mesh.relay("r2").log_text().matches("ERROR").count();
    let before = errors(&mesh);
    for _ in 0..3 {
        echoes(mesh.terminal("c"), "b/echo");
    }
    sender.finish(&receiver, LIMIT).unwrap();
    drop(_forward);
    mesh.wait_no_sessions(SOON);
    assert_eq!(errors(&mesh), before, "it goes on by itself when there is room");
    mesh.relay("r2").kill();
    mesh.relay("r2").start();
    mesh.wait_state("d", "logged-in", LIMIT);
}
