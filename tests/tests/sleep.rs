//! A machine sleeps and wakes: its agent stands still (SIGSTOP) while the other side keeps a forward open. A session goes on
//! after a short sleep, ends on both sides after a long one, and `forward` then makes another by itself.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

/// For an answer that has to come.
const ANSWER: Duration = Duration::from_secs(20);

/// How long machines sleep, and how patient sessions are.
#[derive(Debug, Clone, Copy)]
struct Times {
    flags: &'static [&'static str],
    quick_relays: bool,
    /// Shorter than a session waits for a path.
    short: Duration,
    /// Longer.
    long: Duration,
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut heard = [0; 64];
    stream.write_all(&[0x5a; 64])?;
    stream.read_exact(&mut heard)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream
}

/// The machine sleeps: what is to be seen is what this much time does.
fn sleep(mesh: &Mesh, who: &str, time: Duration) {
    mesh.terminal(who).signal(Signal::Stop);
    std::thread::sleep(time);
    mesh.terminal(who).signal(Signal::Continue);
}

fn sleeps_and_wakes(who: &str, times: Times) {
    let service = TcpService::echo(None);
    let relay = |name: &str| match times.quick_relays {
        true => RelaySpec::new(name).quick_silence(),
        false => RelaySpec::new(name),
    };
    let mesh = MeshSpec::new()
        .relay(relay("r1"))
        .relay(relay("r2"))
        .terminal(TerminalSpec::new("a").relayed().flags(times.flags))
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .flags(times.flags)
                .offers("echo", &format!("tcp://{}", service.address())),
        )
        .start();
    let (_forward, address) = mesh.terminal("a").forward("b/echo");
    let mut stream = connect(address);
    echo(&mut stream).unwrap();

    sleep(&mesh, who, times.short);
    let woken = Instant::now();
    echo(&mut stream).unwrap_or_else(|error| panic!("{who} slept {:?}: {error}", times.short));
    println!("{who} slept {:?}: goes on after {:?}", times.short, woken.elapsed());
    mesh.wait_state(who, "in-communication", SOON);

    sleep(&mesh, who, times.long);
    let woken = Instant::now();
    let ended = echo(&mut stream);
    println!("{who} slept {:?}: {ended:?} after {:?}", times.long, woken.elapsed());
    assert!(ended.is_err(), "a session outlived {:?} without a path", times.long);
    let timed_out = |error: &std::io::Error| {
        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    };
    assert!(!ended.as_ref().is_err_and(timed_out), "nobody is told: {ended:?}");
    eventually("forward reaches the other side again", SOON, || {
        echo(&mut connect(address)).map_err(|error| error.to_string())
    });
    println!("{who} slept {:?}: reached again after {:?}", times.long, woken.elapsed());
    drop(stream);
    mesh.terminal("a").signal(Signal::Terminate);
    mesh.wait_no_sessions(SOON);
}

const QUICK: Times = Times {
    flags: &["--keep-alive", "1", "--idle", "3", "--resume", "12"],
    quick_relays: true,
    short: Duration::from_secs(6),
    long: Duration::from_secs(22),
};

#[test]
fn the_called_machine_sleeps() {
    sleeps_and_wakes("b", QUICK);
}

#[test]
fn the_calling_machine_sleeps() {
    sleeps_and_wakes("a", QUICK);
}

/// With the times that ship; three minutes.
#[test]
#[ignore = "takes three minutes; the same with shorter times runs always"]
fn both_with_the_times_that_ship() {
    let (short, long) = (Duration::from_secs(40), Duration::from_secs(100));
    let times = Times { flags: &[], quick_relays: false, short, long };
    std::thread::scope(|scope| {
        let runs = ["a", "b"].map(|who| scope.spawn(move || sleeps_and_wakes(who, times)));
        for run in runs {
            run.join().unwrap();
        }
    });
}
