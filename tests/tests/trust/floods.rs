//! Terminals and relays that ask a relay for everything: who asks is refused, and nobody else loses anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tasuki_proto::id::RelayId;
use tasuki_proto::identity::Identity;
use tasuki_proto::limits;
use tasuki_tests::lab::bad_terminal::{BadRelay, BadTerminal, Tally};
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::process::{Piped, Signal};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

const MIB: u64 = 1024 * 1024;
/// The longest time that one round trip of a session, and a new call, may take beside an attack.
const STALL: Duration = Duration::from_secs(5);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn relay_id(relay: &Relay) -> RelayId {
    let id = relay.api.json("/api/v1/status").unwrap()["id"].as_str().unwrap().to_owned();
    RelayId(u64::from_str_radix(&id, 16).unwrap())
}

/// What a relay counted under this reason.
pub(crate) fn dropped(relay: &Relay, reason: &str) -> u64 {
    let status = relay.api.json("/api/v1/status").unwrap();
    status["drops"][reason].as_u64().unwrap_or(0)
}

fn round_trip(dial: &mut Piped, limit: Duration) {
    dial.write(b"ping").unwrap();
    let back = dial.read_exact(4, limit);
    assert_eq!(back.unwrap_or_else(|error| panic!("stall: {error}")), b"ping");
}

/// A session goes on while `act` runs, and new calls go through.
pub(crate) fn honest_beside(mesh: &Mesh, act: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let mut dial = mesh.terminal("a").dial("b/echo");
    round_trip(&mut dial, SOON);
    std::thread::scope(|scope| {
        let session = scope.spawn(|| {
            let (mut rounds, mut longest) = (0, Duration::ZERO);
            loop {
                let last = over.load(Ordering::Relaxed);
                let begun = Instant::now();
                round_trip(&mut dial, STALL);
                if rounds % 20 == 0 {
                    round_trip(&mut mesh.terminal("h").dial("b/echo"), STALL);
                }
                longest = longest.max(begun.elapsed());
                rounds += 1;
                if last {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            println!("{rounds} honest round trips, the longest {longest:?}");
            assert!(rounds >= 5);
        });
        let finish = Finish(&over);
        act();
        drop(finish);
        session.join().unwrap();
    });
    round_trip(&mut mesh.terminal("h").dial("b/echo"), STALL);
}

struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Honest terminals a, b and h, and others of which tests have the identities.
fn mesh(echo: &TcpService, relay: RelaySpec, bad: &[&str]) -> Mesh {
    let url = format!("tcp://{}", echo.address());
    let mut spec = MeshSpec::new()
        .relay(relay)
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("b").relayed().at(&["r1"]).offers("echo", &url))
        .terminal(TerminalSpec::new("h").relayed().at(&["r1"]));
    for name in bad {
        spec = spec.terminal(TerminalSpec::new(name).stays_off());
    }
    spec.start()
}

async fn bad(mesh: &Mesh, name: &str) -> BadTerminal {
    let relay = mesh.relay("r1");
    let at = (relay.listen(), "r1", relay_id(relay));
    BadTerminal::log_in(at, mesh.terminal(name).data()).await.unwrap()
}

fn sessions(relay: &Relay) -> u64 {
    relay.api.json("/api/v1/status").unwrap()["sessions"].as_u64().unwrap()
}

/// Paths for sessions that never were, to terminals that do not answer: each would hold a place for twelve seconds.
#[test]
fn resumes_for_new_ids_count_as_calls() {
    const ASKED: u64 = 6_000;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relay.toml");
    std::fs::write(&config, "sessions = 3000\n").unwrap();
    let echo = TcpService::echo(None);
    let relay = RelaySpec::new("r1").run_flags(&["--config", config.to_str().unwrap()]);
    let mesh = mesh(&echo, relay, &["x", "y", "z", "w"]);
    let relay = mesh.relay("r1");
    let before = relay.rss();
    honest_beside(&mesh, || {
        runtime().block_on(async {
            let _silent = [bad(&mesh, "y").await, bad(&mesh, "z").await, bad(&mesh, "w").await];
            let mut x = bad(&mesh, "x").await;
            x.resume("y", ASKED as usize).await.unwrap();
            let most = limits::SESSIONS_PER_PAIR as u64;
            let tally = x.wait(SOON, |told| told.busy + most >= ASKED).await.unwrap();
            println!("one pair: {tally:?}, {} sessions", sessions(relay));
            // Those of the honest beside it.
            assert!(sessions(relay) <= most + 10);
            for target in ["z", "w"] {
                x.resume(target, ASKED as usize).await.unwrap();
            }
            let most = limits::SESSIONS_PER_TERMINAL as u64;
            let tally = x.wait(SOON, |told| told.busy + most >= 3 * ASKED).await.unwrap();
            println!("three pairs: {tally:?}, {} sessions", sessions(relay));
            assert!(sessions(relay) <= most + 10);
            assert!(!tally.cut);
        });
    });
    assert!(dropped(relay, "sessions-over-share") + dropped(relay, "calls-over-rate") > ASKED);
    let grown = relay.rss().saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB more", grown / MIB);
}

/// A callee that hangs for a moment has more calls than it can take: they are refused, and it is not cut.
#[test]
fn a_burst_of_calls_never_cuts_the_callee() {
    let echo = TcpService::echo(None);
    let mesh = mesh(&echo, RelaySpec::new("r1"), &["x", "y"]);
    let relay = mesh.relay("r1");
    let mut dial = mesh.terminal("a").dial("b/echo");
    round_trip(&mut dial, SOON);
    let runtime = runtime();
    runtime.block_on(async {
        let (mut x, mut y) = (bad(&mesh, "x").await, bad(&mesh, "y").await);
        mesh.terminal("b").signal(Signal::Stop);
        // Some that stay, and many that are withdrawn at once: each is two messages to the callee.
        x.call("b", 250, false).await.unwrap();
        for _ in 0..40 {
            if y.call("b", 200, true).await.is_err() {
                // It does not read as fast as it asks, and is cut for it.
                y = bad(&mesh, "y").await;
            }
        }
        eventually("calls are refused", SOON, || {
            let refused = dropped(relay, "callee-queue-full") + dropped(relay, "calls-over-rate");
            if refused > 1_000 { Ok(()) } else { Err(refused.to_string()) }
        });
        mesh.terminal("b").signal(Signal::Continue);
        // What was offered is answered by the callee.
        let all = |told: &Tally| told.busy + told.refused + told.accepted >= 250;
        let told = x.wait(SOON, all).await;
        println!("the caller that stays: {told:?}, the other: {:?}", y.tally());
        assert!(told.is_ok_and(|told| !told.cut && told.accepted > 0));
    });
    round_trip(&mut dial, SOON);
    eventually("a call goes through again", SOON, || {
        let mut fresh = mesh.terminal("h").dial("b/echo");
        let _ = fresh.write(b"ping");
        fresh.read_exact(4, STALL).map(drop)
    });
    let log = relay.log_text();
    let cut = log.lines().find(|line| line.contains("logged out") && line.contains("terminal=b"));
    assert_eq!(cut, None, "the callee was cut");
    let log = mesh.terminal("b").log_text();
    assert!(!log.contains("too-slow"), "the callee gave its attachment up");
    let [queue, rate] = ["callee-queue-full", "calls-over-rate"].map(|why| dropped(relay, why));
    println!("{queue} refused since the callee has much to read, {rate} over a rate");
}

/// Calls that a neighbour relay begins in names that it makes up: they fill neither the callee nor the relay.
#[test]
fn calls_begun_by_a_relay_leave_the_callee_to_others() {
    let echo = TcpService::echo(None);
    let url = format!("tcp://{}", echo.address());
    let mesh = MeshSpec::line(&["r1", "r2"])
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("b").relayed().at(&["r1"]).offers("echo", &url))
        .terminal(TerminalSpec::new("h").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("y").stays_off())
        .start();
    let (r1, r2) = (mesh.relay("r1"), mesh.relay("r2"));
    r2.kill();
    eventually("the old link is gone", SOON, || {
        let links = r1.api.json("/api/v1/status")?["links"].clone();
        if links.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(links.to_string()) }
    });
    let id = Identity::load(r2.data()).unwrap().unwrap().mesh_id();
    let before = r1.rss();
    honest_beside(&mesh, || {
        runtime().block_on(async {
            let y = bad(&mesh, "y").await;
            let mut relay =
                BadRelay::link(id, (r1.listen(), "r1"), ("r2", r2.data())).await.unwrap();
            for _ in 0..6 {
                relay.call("y", 5_000).await.unwrap();
                relay.call("b", 500).await.unwrap();
            }
            let begun = Instant::now();
            while relay.tally().busy < 25_000 && begun.elapsed() < SOON {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (told, held) = (relay.tally(), sessions(r1));
            println!("the relay: {told:?}; y: {:?}; {held} sessions", y.tally());
            assert!(told.busy >= 25_000, "{told:?}");
            assert!(!told.cut && !y.tally().cut);
            assert!(y.tally().offered < limits::SESSIONS_PER_TERMINAL as u64, "no place is left");
        });
    });
    let grown = r1.rss().saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
}

/// Lists without end, each read: they come at a rate, and another terminal's list comes at once.
#[test]
fn lists_without_end_come_at_a_rate() {
    const TIME: Duration = Duration::from_secs(4);
    let echo = TcpService::echo(None);
    let mesh = mesh(&echo, RelaySpec::new("r1"), &["x"]);
    honest_beside(&mesh, || {
        runtime().block_on(async {
            let mut x = bad(&mesh, "x").await;
            let begun = Instant::now();
            // More than it gets; where it is not read, the write waits.
            let asks = tokio::time::timeout(TIME, x.list(50_000)).await;
            let rest = TIME.saturating_sub(begun.elapsed());
            let told = x.wait(rest, |told| told.pages == 50_000).await;
            println!("asked: {asks:?}; told: {told:?}");
            let (pages, time) = (x.tally().pages, begun.elapsed().as_secs_f64());
            let rate = f64::from(limits::PAGES_PER_SECOND_AND_TERMINAL);
            let most = f64::from(limits::PAGES_AT_ONCE_PER_TERMINAL) + rate * time + 10.0;
            assert!(pages as f64 <= most, "{pages} pages in {time} s");
            assert!(pages >= 100, "only {pages} pages");
            assert!(!x.tally().cut, "it was cut");
        });
        let (done, time) = tasuki_tests::lab::timed(|| mesh.terminal("a").verb(&["ls", "--json"]));
        done.ok();
        println!("an honest list took {time:?}");
        assert!(time < STALL, "{time:?}");
    });
}
