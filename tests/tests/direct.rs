//! Direct paths between terminals behind NATs of all kinds (D1, D2), and what becomes of a session while its path
//! changes. `tasuki-bench nat` has every ordered pair.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tasuki_tests::lab::netns::Wan;
use tasuki_tests::lab::netns::nat::NatKind::{self, *};
use tasuki_tests::lab::netns::nat::{Natted, Outcome};
use tasuki_tests::lab::pairs::{Echo, Pairs, Went, public_relays};
use tasuki_tests::lab::paths::{self, DIRECT_WITHIN};
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, TerminalSpec, eventually};

const SEED: u64 = 42;
/// What a transfer carries at least in each state of the path: with four of them 1 GB, or 100 MB of a debug build.
const PART: u64 = if cfg!(debug_assertions) { 25_000_000 } else { 250_000_000 };
/// The longest that a transfer stands still when its path changes.
const STALL: Duration = Duration::from_secs(1);
/// So many parts are timed, and the best counts.
const PARTS: usize = 4;
/// What a session whose path changed moves over a direct path, of what one moves that was never elsewhere. Two of the same
/// kind differ by up to a fifth.
const ALIKE: f64 = 0.75;
/// How soon a path that has become possible again is found.
const FOUND_AGAIN: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(60);

/// Pairs of which nobody can have a direct path without guessing ports.
const RELAYED: [(NatKind, NatKind); 8] = [
    (Symmetric, Symmetric),
    (Symmetric, PortRestricted),
    (PortRestricted, Symmetric),
    (Masquerade, Symmetric),
    (UdpBlocked, Public),
    (Public, UdpBlocked),
    (Ipv6Only, Public),
    (BrokenIpv6, BrokenIpv4),
];

/// Pairs that can.
const DIRECT: [(NatKind, NatKind); 16] = [
    (Public, Public),
    (Public, Symmetric),
    (Symmetric, FullCone),
    (Symmetric, AddressRestricted),
    (AddressRestricted, Symmetric),
    (PortRestricted, PortRestricted),
    (PortRestricted, Public),
    (CarrierGrade, PortRestricted),
    (CarrierGrade, CarrierGrade),
    (Masquerade, AddressRestricted),
    (FullCone, Masquerade),
    // An early probe would spoil these.
    (Masquerade, Masquerade),
    (PortRestricted, Masquerade),
    (Ipv6Only, Ipv6Only),
    (BrokenIpv4, Ipv6Only),
    (BrokenIpv6, PortRestricted),
];

/// One test at a time: they measure times on a machine of few cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kinds that occur in `pairs`.
fn kinds(pairs: &[(NatKind, NatKind)]) -> Vec<NatKind> {
    let mut kinds: Vec<NatKind> = pairs.iter().flat_map(|&(a, b)| [a, b]).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[test]
fn pairs_that_cannot_be_direct_stay_relayed_and_carry_data() {
    let _alone = alone();
    assert!(RELAYED.iter().all(|(a, b)| a.expected(*b) == Outcome::Relayed));
    let Some(pairs) = Pairs::start("relayed pairs of NATs", &kinds(&RELAYED)) else { return };
    // All at once: most of the time is waiting.
    std::thread::scope(|scope| {
        for (from, to) in RELAYED {
            let pairs = &pairs;
            scope.spawn(move || {
                let went = pairs.call(from, to, DIRECT_WITHIN);
                assert_eq!(went, Ok(Went::Relayed), "{from:?} calls {to:?}");
            });
        }
    });
}

#[test]
fn pairs_that_can_be_direct_are_so_soon() {
    let _alone = alone();
    assert!(DIRECT.iter().all(|(a, b)| a.expected(*b) != Outcome::Relayed));
    let Some(pairs) = Pairs::start("direct pairs of NATs", &kinds(&DIRECT)) else { return };
    let mut others = Vec::new();
    for (from, to) in DIRECT {
        let went = pairs.call(from, to, DIRECT_WITHIN);
        println!("{} calls {}: {went:?}", from.name(), to.name());
        if !matches!(went, Ok(Went::Direct(_))) {
            others.push((from, to, went));
        }
    }
    assert!(others.is_empty(), "not direct: {others:?}");
}

#[test]
fn two_machines_of_one_lan_are_direct_without_their_gateway() {
    let _alone = alone();
    let Some(wan) = Wan::new("a direct path within a LAN") else { return };
    // The gateway turns no packet round, and its NAT lets nobody else's in: only private addresses can do.
    let [a, b] = wan.home(Symmetric, ["a", "b"], 101);
    let echo = TcpService::echo(Some(&b.machine));
    let (mesh, _hosts) = public_relays(&wan);
    let mesh = mesh
        .terminal(TerminalSpec::new("a").at(&["r1"]).on(&a.machine))
        .terminal(
            TerminalSpec::new("b")
                .at(&["r2"])
                .on(&b.machine)
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    let (_forward, address) = mesh.terminal("a").forward("b/echo");
    let mut echo = Echo::connect(Some(&a.machine), address).unwrap();
    echo.round().unwrap();
    let took = paths::wait_for(mesh.terminal("a"), "b", "direct", DIRECT_WITHIN).unwrap();
    println!("direct in the LAN after {took:?}");
    // It has a session of its own, which begins relayed.
    eventually("a ping ends on a direct path", SOON, || {
        let ping = mesh.terminal("a").verb(&["ping", "b", "-c", "3", "--json"]).ok().json();
        assert_eq!(ping["received"], 3, "{ping}");
        if ping["path"] == "direct" { Ok(()) } else { Err(ping.to_string()) }
    });
    // Both ends' relays show it, since the terminals say so.
    for relay in ["r1", "r2"] {
        eventually("the relays show a direct path", SOON, || {
            let sessions = mesh.relay(relay).sessions()?;
            let direct =
                |row: &serde_json::Value| row["service"] == "echo" && row["path"] == "direct";
            if sessions.iter().any(direct) { Ok(()) } else { Err(format!("{sessions:?}")) }
        });
    }
    a.router.drop_outgoing("wan0", "");
    echo.round().unwrap();
}

/// D1, from the other side: who says never is probed by nobody, although nothing stands in the way.
#[test]
fn one_terminal_that_says_never_is_enough() {
    let _alone = alone();
    let Some(wan) = Wan::new("terminals without direct paths") else { return };
    let (a, b) = (wan.place(Public, "a", 101), wan.place(Public, "b", 102));
    let echo = TcpService::echo(Some(&b.machine));
    let (mesh, _hosts) = public_relays(&wan);
    let mesh = mesh
        .terminal(TerminalSpec::new("a").at(&["r1"]).on(&a.machine))
        .terminal(
            TerminalSpec::new("b")
                .at(&["r2"])
                .on(&b.machine)
                .flags(&["--direct", "never"])
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    // Whatever passes between the two from here on is counted.
    let counter = wan.count_direct();
    let (_forward, address) = mesh.terminal("a").forward("b/echo");
    let mut echo = Echo::connect(Some(&a.machine), address).unwrap();
    echo.round().unwrap();
    let direct = paths::wait_for(mesh.terminal("a"), "b", "direct", DIRECT_WITHIN);
    assert!(direct.is_err(), "direct after {direct:?}");
    echo.round().unwrap();
    assert_eq!(counter.udp_packets(), 0, "packets between the two");
}

/// The same for one service of the callee, and for one that the caller names; another service goes direct meanwhile.
#[test]
fn a_service_that_is_never_direct_stays_relayed_beside_one_that_is() {
    let _alone = alone();
    let Some(wan) = Wan::new("services without direct paths") else { return };
    let (a, b) = (wan.place(Public, "a", 101), wan.place(Public, "b", 102));
    let echo = TcpService::echo(Some(&b.machine));
    let url = format!("tcp://{}", echo.address());
    let (mesh, _hosts) = public_relays(&wan);
    let mesh = mesh
        .terminal(
            TerminalSpec::new("a").at(&["r1"]).on(&a.machine).flags(&["--direct-never", "mine"]),
        )
        .terminal(
            TerminalSpec::new("b")
                .at(&["r2"])
                .on(&b.machine)
                .flags(&["--direct-never", "other,theirs"])
                .offers("mine", &url)
                .offers("theirs", &url)
                .offers("open", &url),
        )
        .start();
    let terminal = mesh.terminal("a");
    let path = |service: &str| {
        let rows = terminal.list("paths");
        let row = rows.into_iter().find(|row| row["service"] == service).unwrap();
        (row["path"].as_str().unwrap().to_owned(), row["why"].as_str().unwrap().to_owned())
    };
    let calls = ["mine", "theirs", "open"].map(|service| {
        let (forward, address) = terminal.forward(&format!("b/{service}"));
        let mut echo = Echo::connect(Some(&a.machine), address).unwrap();
        echo.round().unwrap();
        (forward, echo)
    });
    eventually("the open service is direct", DIRECT_WITHIN, || {
        let (path, why) = path("open");
        if path == "direct" { Ok(()) } else { Err(why) }
    });
    for (service, reason) in [("mine", "--direct-never"), ("theirs", "takes no direct path")] {
        // The other side says so after its session stands.
        eventually(&format!("{service} stays relayed for its reason"), SOON, || {
            let (path, why) = path(service);
            assert_eq!(path, "relayed", "{service}");
            if why.contains(reason) { Ok(()) } else { Err(why) }
        });
    }
    eventually("what came of each is counted", SOON, || {
        let counts = terminal.verb(&["status", "--json"]).ok().json()["direct"].clone();
        let counted =
            counts["successes"] == 1 && counts["failures"]["peer_never"].as_u64() >= Some(1);
        if counted { Ok(()) } else { Err(counts.to_string()) }
    });
    drop(calls);
}

/// Two terminals, and a transfer from `a` to `b` that runs until it is ended.
struct Running {
    a: Natted,
    b: Natted,
    mesh: Mesh,
    receiver: Receiver,
    sender: Sender,
    _forward: Process,
    wan: Wan,
}

impl Running {
    /// `flags` are those of both agents; `prepare` changes the ways before anybody calls.
    fn start(
        what: &str,
        kinds: [NatKind; 2],
        flags: &[&str],
        prepare: impl FnOnce(&Wan),
    ) -> Option<Running> {
        let wan = Wan::new(what)?;
        prepare(&wan);
        let (a, b) = (wan.place(kinds[0], "a", 101), wan.place(kinds[1], "b", 102));
        let receiver = Receiver::start(Some(&b.machine), SEED);
        let url = format!("tcp://{}", receiver.address());
        let (mesh, _hosts) = public_relays(&wan);
        let mesh = mesh
            .terminal(TerminalSpec::new("a").at(&["r1"]).on(&a.machine).flags(flags))
            .terminal(
                TerminalSpec::new("b").at(&["r2"]).on(&b.machine).flags(flags).offers("bulk", &url),
            )
            .start();
        let (_forward, address) = mesh.terminal("a").forward("b/bulk");
        let sender = Sender::start(Some(&a.machine), address, SEED, u64::MAX).unwrap();
        Some(Running { a, b, mesh, receiver, sender, _forward, wan })
    }

    /// Waits until the session takes this path and carries a part of the transfer over it. Where it left the path
    /// meanwhile, as it may when the machine stands still for a moment, the part does not count.
    fn carries(&self, path: &str, limit: Duration) {
        let terminal = self.mesh.terminal("a");
        let took = paths::wait_for(terminal, "b", path, limit).unwrap();
        eventually(&format!("a part of the transfer, {path}"), LIMIT, || {
            paths::wait_for(terminal, "b", path, limit)?;
            let begun = Instant::now();
            self.receiver.wait_for_more(PART, LIMIT).unwrap();
            let rate = PART as f64 * 8e-9 / begun.elapsed().as_secs_f64();
            paths::wait_for(terminal, "b", path, Duration::ZERO)?;
            println!("{path} after {took:.1?}, {rate:.2} Gbit/s; {:?}", self.receiver.seen());
            Ok(())
        });
    }

    /// Gbit/s over the path that the transfer has at the moment: the best of some parts, since others use the machine too.
    fn rate(&self) -> f64 {
        let part = || {
            let begun = Instant::now();
            self.receiver.wait_for_more(PART, LIMIT).unwrap();
            PART as f64 * 8e-9 / begun.elapsed().as_secs_f64()
        };
        (0..PARTS).map(|_| part()).fold(0.0, f64::max)
    }

    /// A transfer in a session of its own, between the same terminals, after the present one has ended.
    fn anew(self) -> Running {
        let Running { a, b, mesh, receiver, sender, _forward: before, wan } = self;
        sender.finish(&receiver, LIMIT).unwrap();
        drop(before);
        eventually("the session is over", SOON, || match paths::row(mesh.terminal("a"), "b") {
            Ok(row) => Err(row.to_string()),
            Err(_) => Ok(()),
        });
        receiver.again();
        let (_forward, address) = mesh.terminal("a").forward("b/bulk");
        let sender = Sender::start(Some(&a.machine), address, SEED, u64::MAX).unwrap();
        Running { a, b, mesh, receiver, sender, _forward, wan }
    }

    /// Begins to look at stalls: what was before does not count.
    fn mark(&self) {
        self.receiver.mark();
    }

    /// How long the transfer stood still at most since [`Running::mark`].
    fn stall(&self) -> Duration {
        self.receiver.seen().longest_gap
    }

    /// Ends the transfer: every byte has arrived and is right.
    fn finish(self) {
        let total = self.sender.finish(&self.receiver, LIMIT).unwrap();
        println!("{total} bytes, each the right one");
    }
}

#[test]
fn a_transfer_goes_on_while_its_path_is_relayed_direct_relayed_direct() {
    let _alone = alone();
    let kinds = [PortRestricted, AddressRestricted];
    let what = "a transfer over paths that come and go";
    let Some(running) = Running::start(what, kinds, &[], Wan::block_direct) else { return };
    running.carries("relayed", SOON);
    running.mark();
    running.wan.allow();
    running.carries("direct", FOUND_AGAIN);
    running.wan.block_direct();
    running.carries("relayed", DIRECT_WITHIN);
    running.wan.allow();
    running.carries("direct", FOUND_AGAIN);
    let stall = running.stall();
    assert!(stall <= STALL, "{stall:?}");
    let changed = running.rate();
    // A session that knows no other path: relayed for its first quarter of a second.
    let running = running.anew();
    running.carries("direct", DIRECT_WITHIN);
    let plain = running.rate();
    println!(
        "direct after changes {changed:.2}, directly from the start {plain:.2} Gbit/s: {:.2}",
        changed / plain
    );
    assert!(changed >= plain * ALIKE, "{changed} and {plain} Gbit/s");
    running.finish();
}

#[test]
fn one_dead_or_lossy_direction_sends_a_session_back_to_its_relays() {
    let _alone = alone();
    let kinds = [Public, Public];
    let what = "a direct path of one direction";
    let Some(running) = Running::start(what, kinds, &[], |_| ()) else { return };
    let (a, b) = (running.a.public(), running.b.public());
    for (from, to) in [(a, b), (b, a)] {
        running.carries("direct", FOUND_AGAIN);
        running.mark();
        running.wan.block_one_way(from, to);
        running.carries("relayed", DIRECT_WITHIN);
        let stall = running.stall();
        assert!(stall <= STALL, "{stall:?}");
        running.wan.allow();
    }
    running.carries("direct", FOUND_AGAIN);
    running.wan.lose(a, b, 40);
    running.carries("relayed", SOON);
    running.finish();
}

#[test]
fn a_direct_path_follows_a_mapping_that_is_rebound() {
    let _alone = alone();
    // The second pair finds no other path than by the address that relays see anew: neither NAT lets a stranger in.
    for kinds in [[PortRestricted, Public], [PortRestricted, PortRestricted]] {
        let what = "rebinding under a direct path";
        let Some(running) = Running::start(what, kinds, &[], |_| ()) else { return };
        running.carries("direct", SOON);
        for _ in 0..2 {
            running.mark();
            running.a.rebind();
            running.receiver.wait_for_more(PART, LIMIT).unwrap();
            let stall = running.stall();
            assert!(stall <= STALL, "{stall:?}");
            running.carries("direct", FOUND_AGAIN);
        }
        running.finish();
    }
}

#[test]
fn a_terminal_roams_in_mid_transfer() {
    let _alone = alone();
    let kinds = [Public, PortRestricted];
    let Some(running) = Running::start("roaming", kinds, &[], |_| ()) else { return };
    running.carries("direct", SOON);
    running.mark();
    running.a.machine.change_address("eth0", "203.0.113.201/24", None);
    running.receiver.wait_for_more(PART, LIMIT).unwrap();
    let stall = running.stall();
    assert!(stall <= STALL, "{stall:?}");
    running.carries("direct", FOUND_AGAIN);
    running.finish();
}

/// The same without direct paths: both NATs rebind, and one terminal gets another address.
#[test]
fn a_relayed_transfer_survives_rebinding_and_roaming() {
    let _alone = alone();
    let kinds = [Symmetric, Public];
    let what = "a relayed transfer over changing addresses";
    let Some(running) = Running::start(what, kinds, &["--direct", "never"], |_| ()) else {
        return;
    };
    running.carries("relayed", SOON);
    running.a.rebind();
    running.carries("relayed", SOON);
    running.b.machine.change_address("eth0", "203.0.113.201/24", None);
    running.carries("relayed", SOON);
    // What is blocked here is not on the way of anything.
    running.wan.block_direct();
    running.carries("relayed", SOON);
    running.finish();
}
