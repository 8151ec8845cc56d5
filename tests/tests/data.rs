//! What sessions carry: real programs over three relays, correct by hash or content (C9; the main job).
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::process::{Process, Signal};
use tasuki_tests::lab::programs::{TcpService, hash_file, random_file};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::workload::{Workload, find_file};
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

const MB: usize = 1_000_000;
/// For a transfer by debug builds that share two cores.
const LONG: Duration = Duration::from_secs(120);

/// A service of b at r2, for a at r1.
fn across(name: &str, service: &TcpService) -> Mesh {
    let url = format!("tcp://{}", service.address());
    MeshSpec::line(&["r1", "r2"])
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("b").relayed().at(&["r2"]).offers(name, &url))
        .start()
}

/// How many bytes, and their SHA-256.
fn summary(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    format!("{} {}", bytes.len(), data_encoding::HEXLOWER.encode(hash.as_ref()))
}

/// The main job on r1-r2-r3 (r1 and r3 not linked): 100 MB by scp through `ProxyCommand tasuki-agent dial`, curl
/// from a web server, iperf3 and a UDP echo through `forward`, and `send`, in five sessions at once; then `ping`.
#[test]
fn real_programs_cross_three_relays() {
    let work = Workload::start(None, 100 * MB);
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(work.exposed_by(TerminalSpec::new("b").relayed().at(&["r3"])))
        .start();
    work.run(&mesh, "a", "b");
    // All went the whole way.
    let sessions = mesh.relay("r2").sessions().unwrap();
    assert!(sessions.len() >= 5, "{sessions:?}");
    let routes = sessions.iter().all(|s| s["route"] == serde_json::json!(["r1", "r2", "r3"]));
    assert!(routes, "{sessions:?}");
    eventually("the relay in the middle has counted what it carried", SOON, || {
        let sessions = mesh.relay("r2").sessions()?;
        let carried: u64 = sessions
            .iter()
            .flat_map(|s| [&s["bytes_to_callee"], &s["bytes_to_caller"]])
            .filter_map(serde_json::Value::as_u64)
            .sum();
        if carried > 200 * MB as u64 { Ok(()) } else { Err(format!("{carried} bytes")) }
    });

    let ping = mesh.terminal("a").verb(&["ping", "b", "-c", "5", "--json"]).ok().json();
    assert_eq!((&ping["sent"], &ping["received"]), (&5.into(), &5.into()), "{ping}");
    assert!(ping["rtt_us"]["p50"].as_u64() > Some(0), "{ping}");
    println!("ping over three relays: {ping}");
    println!("nothing left: {:?}", mesh.wait_no_sessions(SOON));
}

/// `send` goes on where it was cut: the second run carries less than the whole file, and the hash is right.
#[test]
fn a_broken_send_is_resumed() {
    const SIZE: usize = 64 * MB;
    // A line of 120 Mbit/s, so that there is a middle to break it in.
    let line = Impairment { rate: Some(120_000_000), ..Impairment::NONE };
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").links(&["r2"]))
        .relay(RelaySpec::new("r2").links(&["r1", "r3"]))
        .relay(RelaySpec::new("r3").links(&["r2"]).behind(line))
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("b").relayed().at(&["r3"]).flags(&["--allow", "inbox=*"]))
        .start();
    let file = mesh.path("big.bin");
    random_file(&file, SIZE, 11);
    let name = file.to_str().unwrap();

    let carried = |session: &serde_json::Value| session["bytes_to_callee"].as_u64().unwrap_or(0);
    let mut command = mesh.terminal("a").command();
    command.args(["send", name, "b:"]);
    let log = mesh.path("send.log");
    let mut first = Process::spawn("send", &mut command, &log);
    eventually("half has gone", LONG, || {
        let sessions = mesh.relay("r2").running_sessions()?;
        let most = sessions.iter().map(carried).max().unwrap_or(0);
        assert!(first.status().is_none(), "send ended: {}", first.output());
        if most > SIZE as u64 / 2 { Ok(()) } else { Err(format!("{most} bytes")) }
    });
    first.kill();
    mesh.wait_no_sessions(SOON);
    let before: Vec<_> =
        mesh.relay("r2").sessions().unwrap().iter().map(|s| s["id"].clone()).collect();
    assert!(find_file(mesh.terminal("b").data(), "big.bin").is_none_or(|path| {
        path.metadata().unwrap().len() < SIZE as u64 || hash_file(&path) != hash_file(&file)
    }));

    let done = mesh.terminal("a").verb_within(&["send", name, "b:"], LONG).ok();
    let landed = find_file(mesh.terminal("b").data(), "big.bin").expect("it landed");
    assert_eq!(hash_file(&landed), hash_file(&file));
    let sessions = mesh.relay("r2").sessions().unwrap();
    let second: u64 = sessions.iter().filter(|s| !before.contains(&s["id"])).map(carried).sum();
    println!("resumed: {second} of {SIZE} bytes in {:?}", done.took);
    assert!(second < SIZE as u64 * 3 / 4, "the second run carried {second} bytes");

    // A third time there is nothing to carry, and nothing is spoilt.
    mesh.terminal("a").verb_within(&["send", name, "b:"], LONG).ok();
    assert_eq!(hash_file(&landed), hash_file(&file));
}

/// Interfaces: `forward` and `dial` carry a half-close in each direction by itself; a refused `dial` ends at once
/// while its stdin is open; `forward` waits for a target that is not there yet, and opens its session again.
#[test]
fn half_closes_cross_and_forwards_stay() {
    let digest = TcpService::digest(None);
    let (first, heard) = TcpService::talks_first(b"greeting");
    let url = |service: &TcpService| format!("tcp://{}", service.address());
    let mesh = MeshSpec::line(&["r1", "r2"])
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .at(&["r2"])
                .offers("digest", &url(&digest))
                .offers("first", &url(&first)),
        )
        .start();
    let payload = vec![7; 3 * MB];
    let want = summary(&payload);

    // From the caller, by dial and by forward: the answer comes only after the end of the input.
    let mut dial = mesh.terminal("a").dial("b/digest");
    dial.write(&payload).unwrap();
    dial.close_stdin();
    assert_eq!(String::from_utf8_lossy(&dial.read_to_end(LONG).unwrap()), want);
    assert!(dial.process().wait(SOON).success());
    let (_digests, address) = mesh.terminal("a").forward("b/digest");
    let ask = || {
        let mut stream = TcpStream::connect(address).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&payload).map_err(|e| e.to_string())?;
        stream.shutdown(Shutdown::Write).map_err(|e| e.to_string())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
        if answer == want { Ok(()) } else { Err(answer) }
    };
    ask().unwrap();

    // From the callee: its end arrives, and the other direction still carries.
    let mut dial = mesh.terminal("a").dial("b/first");
    assert_eq!(dial.read_to_end(SOON).unwrap(), b"greeting");
    assert!(dial.process().status().is_none(), "the other direction is open");
    dial.write(&[1; 1000]).unwrap();
    dial.close_stdin();
    assert!(dial.process().wait(SOON).success());
    eventually("what came after the end", SOON, || match heard.load(Ordering::SeqCst) {
        1000 => Ok(()),
        other => Err(format!("{other}")),
    });

    // A session that ended is opened again, after the callee's agent was away.
    mesh.terminal("b").kill();
    mesh.terminal("b").start();
    eventually("the forward is back", Duration::from_secs(60), ask);
    // Ctrl-C ends it.
    let (mut forward, _) = mesh.terminal("a").forward("b/first");
    forward.signal(Signal::Interrupt);
    forward.wait(SOON);
    mesh.relay("r1").running_sessions().unwrap();
}

/// A service that is not there, a client that resets, and many short connections at once over one session.
#[test]
fn a_forward_takes_many_connections() {
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::line(&["r1", "r2"])
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .at(&["r2"])
                .offers("echo", &format!("tcp://{}", echo.address()))
                .offers("gone", "tcp://127.0.0.1:1"),
        )
        .start();
    let (forward, address) = mesh.terminal("a").forward("b/echo");
    let round = |number: usize| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let text = format!("connection {number}");
        stream.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text.as_bytes());
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for lane in 0..8 {
            scope.spawn(move || (0..25).for_each(|n| round(lane * 25 + n)));
        }
    });
    println!("200 connections, 8 at once: {:?}", start.elapsed());
    assert_eq!(mesh.relay("r1").running_sessions().unwrap().len(), 1, "over one session");

    let (_gone, address) = mesh.terminal("a").forward("b/gone");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    // Closed or reset, but not left hanging.
    assert!(matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_)));
    assert!(!forward.output().contains("panicked"));
}

/// Small messages for a service that stands still: quinn gives a connection up whose stream holds too many pieces, so
/// their sender has to wait, and the session goes on when the service does.
#[test]
fn small_messages_wait_for_a_service_that_stands_still() {
    let (go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    let still = TcpService::start(None, move |mut stream| {
        let _ = wait.lock().unwrap().recv();
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(summary(&all).as_bytes())
    });
    let mesh = across("still", &still);
    let mut dial = mesh.terminal("a").dial("b/still");
    let sent = AtomicUsize::new(0);
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Nothing has moved for two seconds: everything between is full, or waits.
            let (mut before, mut since) = (0, Instant::now());
            while since.elapsed() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(100));
                let now = sent.load(Ordering::SeqCst);
                if now != before {
                    (before, since) = (now, Instant::now());
                }
            }
            println!("{before} bytes wait");
            go.send(()).unwrap();
        });
        for number in 0..30_000_u32 {
            // One in three is larger: quinn keeps such a row apart.
            let message = vec![number as u8; if number % 3 == 0 { 1_000 } else { 100 }];
            dial.write(&message).unwrap();
            sent.fetch_add(message.len(), Ordering::SeqCst);
            all.extend_from_slice(&message);
            std::thread::sleep(Duration::from_micros(200));
        }
    });
    dial.close_stdin();
    assert_eq!(String::from_utf8_lossy(&dial.read_to_end(LONG).unwrap()), summary(&all));
}

/// Connections whose readers stand still, as a player's that has enough: others of the same session go on.
#[test]
fn connections_that_nobody_reads_do_not_hold_up_others() {
    let either = TcpService::start(None, |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first)?;
        let block = vec![first[0]; 64 * 1024];
        loop {
            match first[0] {
                0 => stream.write_all(&block)?,
                byte => {
                    stream.write_all(&[byte])?;
                    stream.read_exact(&mut first)?;
                }
            }
        }
    });
    let mesh = across("either", &either);
    let (_forward, address) = mesh.terminal("a").forward("b/either");
    let connect = |first: u8| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(&[first]).unwrap();
        stream
    };
    let mut still: Vec<TcpStream> = (0..40).map(|_| connect(0)).collect();
    // Until nothing moves any more.
    std::thread::sleep(Duration::from_secs(5));
    let mut echo = connect(1);
    for round in 1..=100 {
        let mut back = [0];
        echo.read_exact(&mut back).unwrap_or_else(|e| panic!("round {round}: {e}"));
        echo.write_all(&[round]).unwrap();
    }
    assert_eq!(mesh.relay("r1").running_sessions().unwrap().len(), 1, "over one session");
    // Each goes on when it is read again.
    let mut block = vec![0; 100_000];
    for (number, stream) in still.iter_mut().enumerate() {
        for _ in 0..100 {
            stream.read_exact(&mut block).unwrap_or_else(|e| panic!("connection {number}: {e}"));
        }
    }
}

/// A program that reads at its own pace, over a line with a long delay: its sender is let wait and goes on in time.
#[test]
fn a_slow_reader_on_a_long_line_gets_what_it_takes() {
    const PIECE: usize = 80_000;
    const PACE: Duration = Duration::from_millis(20);
    let flood = TcpService::start(None, |mut stream| {
        let block = vec![7; 64 * 1024];
        while stream.write_all(&block).is_ok() {}
        Ok(())
    });
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").links(&["r2"]))
        .relay(
            RelaySpec::new("r2")
                .links(&["r1"])
                .behind(Impairment::delayed(Duration::from_millis(40))),
        )
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .at(&["r2"])
                .offers("flood", &format!("tcp://{}", flood.address())),
        )
        .start();
    let mut dial = mesh.terminal("a").dial("b/flood");
    dial.read_exact(4 * MB, LONG).unwrap();
    // Everything between is full, and the sender waits.
    std::thread::sleep(Duration::from_secs(1));
    let (begun, mut late) = (Instant::now(), Duration::ZERO);
    for number in 0..300_u32 {
        let due = PACE * number;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        dial.read_exact(PIECE, LONG).unwrap();
        late = late.max(begun.elapsed().saturating_sub(due));
    }
    let rate = (300 * PIECE) as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("{rate:.2} MB/s, late by {late:?} at most");
    assert!(rate > 0.85 * PIECE as f64 / PACE.as_secs_f64() / 1e6, "{rate} MB/s");
}
