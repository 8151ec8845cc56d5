//! Relays that are drained and restarted while they carry data: nothing is lost, and no call fails.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tasuki_tests::lab::mesh::{Relay, Terminal};
use tasuki_tests::lab::process::{Process, Signal};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, paths};

const SEED: u64 = 5;
const LIMIT: Duration = Duration::from_secs(60);
/// More than lies in buffers on the way.
const GOES_ON: u64 = 8_000_000;
/// The longest that a transfer stands still when a relay that carries it is drained.
const STALL: Duration = Duration::from_secs(1);
/// How long SIGTERM drains unless told otherwise (5 s), and what a slow machine adds.
const STOPPED: Duration = Duration::from_secs(10);

/// One test at a time: they measure times on a machine of few cores.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn has_ended(relay: &Relay, limit: Duration) -> Duration {
    let begun = Instant::now();
    eventually(&format!("{} ends", relay.name()), limit, || {
        if relay.is_running() { Err("it runs".to_owned()) } else { Ok(()) }
    });
    begun.elapsed()
}

fn is_draining(relay: &Relay) {
    eventually("it drains", SOON, || {
        let status = relay.api.json("/api/v1/status")?;
        if status["draining"] == true { Ok(()) } else { Err(status.to_string()) }
    });
}

/// Waits until every terminal has as many attachments as it can have, and every table says so.
fn all_attached(mesh: &Mesh, names: &[&str], count: usize) {
    mesh.wait_everywhere("all attached", SOON * 2, |relay| {
        for name in names {
            let row = relay.row(name)?;
            let attached = row["attachments"].as_array().map_or(0, Vec::len);
            if attached != count || row["state"] == "unreachable" {
                return Err(row.to_string());
            }
        }
        Ok(())
    });
}

/// One call with a session of its own: eight bytes there and back.
fn call(from: &Terminal, number: u32) -> Result<(), String> {
    let mut dial = from.dial("callee/echo");
    let sent = u64::from(number).to_be_bytes();
    let done = dial.write(&sent).map_err(|e| e.to_string());
    let heard = done.and_then(|()| dial.read_exact(8, SOON));
    match heard {
        Ok(bytes) if bytes == sent => Ok(()),
        other => Err(format!("call {number}: {other:?}: {}", dial.stderr())),
    }
}

/// Makes calls until told to stop; how many, and what went wrong.
fn calls(from: &Terminal, stop: &AtomicBool, made: &AtomicU32) -> Vec<String> {
    let mut wrong = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let number = made.fetch_add(1, Ordering::Relaxed);
        wrong.extend(call(from, number).err());
    }
    wrong
}

/// A transfer from `caller` to `callee`.
struct Load {
    receiver: Receiver,
    sender: Sender,
    _forward: Process,
}

impl Load {
    fn begin(mesh: &Mesh, receiver: Receiver) -> Load {
        let (_forward, address) = mesh.terminal("caller").forward("callee/bulk");
        let sender = Sender::start(None, address, SEED, u64::MAX).unwrap();
        receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
        Load { receiver, sender, _forward }
    }

    fn finish(self) {
        let total = self.sender.finish(&self.receiver, LIMIT).unwrap();
        println!("{total} bytes, each the right one");
    }
}

/// The callee offers an echo and takes the transfer; nobody goes direct.
fn terminals(spec: MeshSpec, receiver: &Receiver, echo: &TcpService) -> MeshSpec {
    let never = |name: &str| TerminalSpec::new(name).flags(&["--direct", "never"]);
    let callee = never("callee")
        .offers("bulk", &format!("tcp://{}", receiver.address()))
        .offers("echo", &format!("tcp://{}", echo.address()));
    spec.terminal(callee).terminal(never("caller")).terminal(never("prober"))
}

#[test]
fn a_rolling_restart_loses_no_byte_and_fails_no_call() {
    let _alone = alone();
    let (receiver, echo) = (Receiver::start(None, SEED), TcpService::echo(None));
    let relays = ["r1", "r2", "r3"].map(RelaySpec::new).into_iter();
    let spec = relays.fold(MeshSpec::new(), MeshSpec::relay);
    let mesh = terminals(spec, &receiver, &echo).start();
    let names = ["callee", "caller", "prober"];
    all_attached(&mesh, &names, 2);
    let load = Load::begin(&mesh, receiver);
    let (stop, made) = (AtomicBool::new(false), AtomicU32::new(0));
    let wrong = std::thread::scope(|scope| {
        let prober = scope.spawn(|| calls(mesh.terminal("prober"), &stop, &made));
        for name in ["r1", "r2", "r3"] {
            let relay = mesh.relay(name);
            load.receiver.mark();
            let before = made.load(Ordering::Relaxed);
            relay.signal(Signal::Terminate);
            let took = has_ended(relay, STOPPED);
            relay.start();
            all_attached(&mesh, &names, 2);
            load.receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
            let (stall, calls) = (load.receiver.seen().longest_gap, made.load(Ordering::Relaxed));
            println!("{name}: ended after {took:.1?}, stall {stall:?}, {} calls", calls - before);
            assert!(stall <= STALL, "{stall:?}");
        }
        stop.store(true, Ordering::Relaxed);
        prober.join().unwrap()
    });
    println!("{} calls", made.load(Ordering::Relaxed));
    assert!(wrong.is_empty(), "{wrong:?}");
    load.finish();
    mesh.wait_no_sessions(SOON);
}

/// Sessions for which the relay is in the middle move too, before it ends.
#[test]
fn a_relay_in_the_middle_ends_when_the_sessions_have_moved() {
    let _alone = alone();
    let (receiver, echo) = (Receiver::start(None, SEED), TcpService::echo(None));
    let links = [
        ("left", "upper,lower"),
        ("right", "upper,lower"),
        ("upper", "left,right"),
        ("lower", "left,right"),
    ];
    let relays = links.map(|(name, others)| RelaySpec::new(name).links(&[others])).into_iter();
    let spec = relays.fold(MeshSpec::new(), MeshSpec::relay);
    let callee = TerminalSpec::new("callee").at(&["right"]).flags(&["--direct", "never"]);
    let callee = callee.offers("bulk", &format!("tcp://{}", receiver.address()));
    let caller = TerminalSpec::new("caller").at(&["left"]).flags(&["--direct", "never"]);
    let mesh = spec.terminal(callee).terminal(caller).start();
    drop(echo);
    let load = Load::begin(&mesh, receiver);
    for _ in 0..2 {
        let route = paths::relays(&paths::row(mesh.terminal("caller"), "callee").unwrap());
        let [_, middle, _] = &route[..] else { panic!("no relay in the middle of {route:?}") };
        load.receiver.mark();
        let relay = mesh.relay(middle);
        let drained = relay.verb(&["drain", "--exit", "--deadline", "20s"]).ok();
        let text = drained.text();
        assert!(text.starts_with("draining: ") && text.ends_with("\nended"), "{text}");
        assert!(drained.took < SOON / 2, "not at its deadline: {:?}", drained.took);
        has_ended(relay, SOON);
        load.receiver.wait_for_more(GOES_ON, LIMIT).unwrap();
        let row = paths::row(mesh.terminal("caller"), "callee").unwrap();
        assert!(row["why"].as_str().unwrap().contains("being left"), "it moved in time: {row}");
        let stall = load.receiver.seen().longest_gap;
        println!("{middle}: {:?}, stall {stall:?}: {}", drained.took, text.replace('\n', "; "));
        assert!(stall <= STALL, "{stall:?}");
        relay.start();
        mesh.wait_for_links();
        mesh.wait_everywhere("it drains no more", SOON, |other| {
            let row = other.relay_row(middle)?;
            if row["draining"] == false { Ok(()) } else { Err(row.to_string()) }
        });
    }
    load.finish();
    mesh.wait_no_sessions(SOON);
}

/// A terminal that cannot go elsewhere stays until the deadline, a second signal, or the end of the drain.
#[test]
fn a_drain_ends_at_its_deadline_or_not_at_all() {
    let _alone = alone();
    // Who ends sooner than that did not wait.
    let patient = |name: &str| RelaySpec::new(name).run_flags(&["--stop-time", "60"]);
    let mesh = MeshSpec::new()
        .relay(patient("r1"))
        .relay(patient("r2"))
        .terminal(TerminalSpec::new("pinned").at(&["r2"]))
        .start();
    let relay = mesh.relay("r2");
    let said = relay.verb(&["drain"]).ok().text();
    assert_eq!(said, "draining: 1 terminals, 0 sessions");
    let ready = relay.api.get("/readyz").unwrap();
    assert_eq!(ready.status, 503);
    relay.verb(&["undrain"]).ok();

    let drained = relay.verb(&["drain", "--exit", "--deadline", "1s", "--json"]).ok();
    assert!(drained.text().ends_with("{\"ended\":true}"), "{}", drained.text());
    assert!(drained.took >= Duration::from_secs(1), "{:?}", drained.took);
    has_ended(relay, SOON);
    relay.start();
    mesh.wait_state("pinned", "logged-in", SOON * 2);

    // Who says undrain is obeyed.
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| relay.verb(&["drain", "--exit", "--deadline", "10m"]));
        is_draining(relay);
        relay.verb(&["undrain"]).ok();
        let drained = drain.join().unwrap();
        assert_eq!(drained.code, 1, "{drained:?}");
        assert!(drained.stderr.contains("undrained: "), "{}", drained.stderr);
    });
    assert!(relay.is_running());

    // SIGTERM waits; a second one does not.
    relay.signal(Signal::Terminate);
    is_draining(relay);
    let undrained = relay.verb(&["undrain"]);
    assert_eq!(undrained.code, 1, "it was told to end: {undrained:?}");
    assert!(relay.is_running());
    relay.signal(Signal::Terminate);
    has_ended(relay, SOON);
    relay.start();
    mesh.wait_state("pinned", "logged-in", SOON * 2);
    relay.signal(Signal::Interrupt);
    has_ended(relay, SOON);
    // A relay alone has nobody to wait for.
    mesh.relay("r1").signal(Signal::Terminate);
    has_ended(mesh.relay("r1"), SOON);
    for (arguments, code) in
        [(&["drain", "--deadline", "1s"][..], 2), (&["drain", "--exit", "--deadline", "2d"], 2)]
    {
        assert_eq!(relay.verb(arguments).code, code, "{arguments:?}");
    }
}
