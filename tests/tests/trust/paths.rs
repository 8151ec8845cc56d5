//! Observers and relays on the path of a session.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use ring::digest::{Context, SHA256};
use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::observer::Observer;
use tasuki_tests::lab::programs::{TcpService, inside};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually, paths};

/// The longest that a session may stand still because a relay on its path drops its data.
const STALL: Duration = Duration::from_secs(5);
/// How long it is watched afterwards.
const AFTER: Duration = Duration::from_secs(6);

/// A relay that passes probes and drops data loses the session to the second path, and does not get it back.
#[test]
fn a_relay_that_drops_data_and_passes_probes_is_left() {
    let echo = TcpService::echo(None);
    let relay =
        |name: &str, other: &str| RelaySpec::new(name).links(&[other]).behind(Impairment::NONE);
    let terminal = |name: &str| TerminalSpec::new(name).at(&["r1", "r2"]).relayed();
    let mesh = MeshSpec::new()
        .relay(relay("r1", "r2"))
        .relay(relay("r2", "r1"))
        .terminal(terminal("a"))
        .terminal(terminal("b").offers("echo", &format!("tcp://{}", echo.address())))
        .start();
    let a = mesh.terminal("a");
    let mut dial = a.dial("b/echo");
    let mut round = |limit| {
        dial.write(b"12345678").unwrap();
        dial.read_exact(8, limit).unwrap_or_else(|error| panic!("not within {limit:?}: {error}"));
    };
    round(SOON);
    eventually("a second path", SOON, || {
        let row = paths::row(a, "b")?;
        if row["relayed_paths"] == 2 { Ok(()) } else { Err(row.to_string()) }
    });
    let bad = paths::relays(&paths::row(a, "b").unwrap())[0].clone();
    let line = mesh.relay(&bad).line();
    line.set_both(Impairment { drops_data: true, ..Impairment::NONE });
    let begun = Instant::now();
    round(STALL);
    println!("{bad} dropped data: {:?} until the next echo", begun.elapsed());
    let end = Instant::now() + AFTER;
    while Instant::now() < end {
        round(Duration::from_secs(2));
        std::thread::sleep(Duration::from_millis(20));
    }
    let row = paths::row(a, "b").unwrap();
    assert!(!paths::relays(&row).contains(&bad), "{row}");
}

/// The last part of the addresses.
const R1: u8 = 11;
const A: u8 = 101;
const B: u8 = 102;
const OBSERVER: u8 = 201;
/// The pace and the time of a transfer that somebody watches.
const PACE: usize = 2_000_000;
const WATCHED: Duration = Duration::from_secs(6);
/// What it is sent in.
const BLOCK: usize = 64 * 1024;
/// How much longer than that it may take, and how long it may stand still.
const LATE: Duration = Duration::from_secs(2);
/// What comes to an observer at most, bytes: answers to its copies, probes of its address and challenges. That is less than
/// the transfer's bytes of 50 ms.
const ANSWERS: u64 = 96 * 1024;

/// Sends `total` bytes to an echo at a pace and reads them back; how long it took, and the longest time without a byte.
fn paced_echo(mut stream: TcpStream, total: usize) -> (Duration, Duration) {
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    let mut writing = stream.try_clone().unwrap();
    let begun = Instant::now();
    let (sent, heard, longest) = std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let (mut hash, mut rng) = (Context::new(&SHA256), StdRng::seed_from_u64(23));
            let mut block = vec![0; BLOCK];
            for n in 0..total / BLOCK {
                let due = begun + Duration::from_secs_f64((n * BLOCK) as f64 / PACE as f64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                rng.fill_bytes(&mut block);
                hash.update(&block);
                writing.write_all(&block).unwrap();
            }
            writing.shutdown(Shutdown::Write).unwrap();
            hash.finish()
        });
        let (mut hash, mut block) = (Context::new(&SHA256), vec![0; BLOCK]);
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            let length = stream.read(&mut block).unwrap();
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if length == 0 {
                break;
            }
            hash.update(&block[..length]);
        }
        (sender.join().unwrap(), hash.finish(), longest)
    });
    assert_eq!(sent.as_ref(), heard.as_ref(), "other bytes came back");
    (begun.elapsed(), longest)
}

/// Somebody without a key sees what the machine of `a` and another one send each other during a transfer, and sends copies of
/// it to both, from an address of its own.
fn watched_transfer(path: &str, other: u8) {
    let Some(wan) = Wan::new("an observer that copies packets") else { return };
    let [at_r1, at_a, at_b, elsewhere] = [("r1", R1), ("a", A), ("b", B), ("o", OBSERVER)]
        .map(|(name, octet)| wan.host(name, octet));
    let echo = TcpService::echo(Some(&at_b));
    let offered = format!("tcp://{}", echo.address());
    let terminal = |name: &str, at: &Namespace| {
        let terminal = TerminalSpec::new(name).at(&["r1"]).on(at);
        if path == "direct" { terminal } else { terminal.relayed() }
    };
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").on(&at_r1, Wan::address(R1)))
        .terminal(terminal("a", &at_a))
        .terminal(terminal("b", &at_b).offers("echo", &offered))
        .start();
    let a = mesh.terminal("a");
    let observer = Observer::start(&at_a, &elsewhere, [A, other].map(Wan::address));
    let (_forward, address) = a.forward("b/echo");
    let connect = || inside(Some(&at_a), || TcpStream::connect(address)).unwrap();
    paced_echo(connect(), BLOCK);
    paths::wait_for(a, "b", path, SOON).unwrap();
    let total = PACE * WATCHED.as_secs() as usize / BLOCK * BLOCK;
    let (took, longest) = paced_echo(connect(), total);
    let counts = observer.counts();
    println!("{path}: {took:?}, at most {longest:?} without a byte; {counts:?}");
    assert!(counts.control_sent > 100 && counts.data_sent > 500, "it did little: {counts:?}");
    assert_eq!(counts.data_heard, 0, "data went to the observer: {counts:?}");
    assert!(counts.bytes_heard < ANSWERS, "{counts:?}");
    assert!(counts.bytes_heard <= counts.control_bytes_sent, "more than it sent: {counts:?}");
    assert!(took < WATCHED + LATE && longest < LATE, "{took:?}, {longest:?} without a byte");
    assert_eq!(paths::row(a, "b").unwrap()["path"], path);
}

#[test]
fn an_observer_of_a_direct_path_that_copies_it_gets_no_data() {
    watched_transfer("direct", B);
}

#[test]
fn an_observer_of_a_relayed_path_that_copies_it_gets_no_data() {
    watched_transfer("relayed", R1);
}
