//! Limits that hold under fire (invariant 3): of an address that takes all it can get, and of a terminal of the mesh
//! that lies. Others notice nothing.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tasuki_proto::control::{Accept, Call, List, ToRelay, ToTerminal};
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::id::{Label, RelayId, ServiceName, SessionId, TerminalId};
use tasuki_proto::version::Alpn;
use tasuki_proto::{RefusalCode, limits};
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::middle::Middle;
use tasuki_tests::lab::process::Piped;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::raw::{self, RawStream};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

const MIB: u64 = 1024 * 1024;
const SERVER: &str = "r1.relay.lab.tasuki";
/// The longest time that one round trip of a session may take meanwhile.
const STALL: Duration = Duration::from_secs(5);

fn runtime() -> tokio::runtime::Runtime {
    // Connections go on while a test waits.
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn dropped(relay: &Relay, reason: &str) -> u64 {
    relay.api.json("/api/v1/status").unwrap()["drops"][reason].as_u64().unwrap()
}

fn wait_dropped(relay: &Relay, reason: &str, least: u64) {
    eventually(&format!("{least} drops are counted as {reason}"), SOON, || {
        let drops = relay.api.json("/api/v1/status")?["drops"].clone();
        if drops[reason].as_u64() >= Some(least) { Ok(()) } else { Err(drops.to_string()) }
    });
}

/// One address proves itself in more handshakes than the relay carries out at once, and stalls them all. Another gets
/// in at once, each time, and so does a terminal.
#[test]
fn who_stalls_handshakes_keeps_nobody_else_out() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("late").stays_off())
        .start();
    let relay = mesh.relay("r1");
    let staller = Ipv4Addr::new(127, 0, 0, 2);
    // Nothing gets through to it but the Retry (RFC 9000, section 17.2.5): so each handshake begins and goes no further.
    let middle =
        Middle::start(staller.into(), relay.listen(), |packet, _| packet[0] & 0xf0 == 0xf0)
            .unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            runtime().block_on(async {
                let endpoint = raw::endpoint(None, Alpn::Enrolment);
                // They stay until the end, or each would take leave.
                let mut stalled = Vec::new();
                while !stop.load(Ordering::Relaxed) && stalled.len() < 6_000 {
                    stalled.push(endpoint.connect(middle.address(), SERVER).unwrap());
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                while !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        let _stop = Stop(&stop);
        // It takes all that it may.
        wait_dropped(relay, "address-handshakes", 100);
        let mut longest = Duration::ZERO;
        runtime().block_on(async {
            for _ in 0..20 {
                let endpoint = raw::endpoint_at(Ipv4Addr::new(127, 0, 0, 3), None, Alpn::Enrolment);
                let begun = Instant::now();
                let connecting = endpoint.connect(relay.listen(), SERVER).unwrap();
                let done = tokio::time::timeout(SOON, connecting).await;
                done.expect("another address is kept out").unwrap();
                longest = longest.max(begun.elapsed());
            }
        });
        let begun = Instant::now();
        mesh.terminal("late").start();
        mesh.wait_state("late", "logged-in", SOON);
        let status = relay.api.json("/api/v1/status").unwrap();
        println!(
            "handshakes of another address: {longest:.0?} at most; a terminal: {:.0?}; {} under way; {}",
            begun.elapsed(),
            status["handshakes"],
            status["drops"]
        );
        assert!(longest < Duration::from_secs(3), "{longest:?}");
        assert!(status["handshakes"].as_u64() >= Some(64), "the attack was none");
        // So many under way, and no more.
        wait_dropped(relay, "address-handshakes", 500);
        let most = u64::from(limits::HANDSHAKES_PER_ADDRESS) + 20;
        let under_way = relay.api.json("/api/v1/status").unwrap()["handshakes"].as_u64();
        assert!(under_way <= Some(most), "{under_way:?}");
    });
    // Nothing stays behind.
    drop(middle);
    eventually("the stalled handshakes are given up", 2 * SOON, || {
        match relay.api.metric("tasuki_handshakes") {
            Some(0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(dropped(relay, "handshake-too-long") > 0);
    assert!(relay.api.metric("tasuki_handshakes_refused_total") > Some(500.0));
}

/// Ends what runs meanwhile, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The limits of connections and of their rate, as the flags set them, at the limit.
#[test]
fn an_address_has_so_many_connections_at_such_a_rate() {
    let flags = ["--address-connections", "8", "--address-burst", "12", "--address-rate", "1"];
    let mesh = MeshSpec::new().relay(RelaySpec::new("r1").run_flags(&flags)).start();
    let relay = mesh.relay("r1");
    let connect = async |from: u8| {
        let endpoint = raw::endpoint_at(Ipv4Addr::new(127, 0, 0, from), None, Alpn::Enrolment);
        let connecting = endpoint.connect(relay.listen(), SERVER).unwrap();
        let done = tokio::time::timeout(SOON, connecting).await;
        done.map_err(|_| None)?.map(|connection| (connection, endpoint)).map_err(Some)
    };
    runtime().block_on(async {
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(connect(2).await.unwrap());
        }
        // The ninth is told at once.
        let mut begun = Instant::now();
        let refused = loop {
            match connect(2).await {
                Err(refused) => break refused,
                // Who asks nothing for five seconds is let go: on a slow machine one of the eight already was.
                Ok(more) => held.push(more),
            }
            held.retain(|(connection, _)| connection.close_reason().is_none());
            assert!(held.len() <= 8, "the ninth gets in");
            begun = Instant::now();
        };
        assert!(
            matches!(refused, Some(quinn::ConnectionError::ConnectionClosed(_))),
            "{refused:?}"
        );
        let took = begun.elapsed();
        assert!(took < SOON / 2, "{took:?}");
        // Who hears nothing for a second asks again, and is counted again.
        let (counted, again) =
            (dropped(relay, "address-connections"), took > Duration::from_millis(900));
        assert!(counted == 1 || (counted > 1 && again), "{counted} after {took:?}");
        connect(3).await.expect("another address gets in");
        for (connection, _) in &held {
            connection.close(0_u32.into(), b"");
        }
        for (_, endpoint) in held {
            endpoint.wait_idle().await;
        }
        // One after the other, so that only the rate is met; who is not answered asks again and gets in.
        // Nobody waits for a farewell to be over: on a slow machine that takes as long as the rate asks for.
        let mut rounds = 0;
        let mut left = Vec::new();
        while dropped(relay, "address-rate") == 0 {
            let (connection, endpoint) = connect(2).await.expect("the rate only delays");
            connection.close(0_u32.into(), b"");
            left.push(endpoint);
            rounds += 1;
            assert!(rounds < 60, "the rate is never met");
        }
    });
}

/// A session that goes on while `act` runs, each round trip within [`STALL`].
fn while_a_session_runs(dial: &mut Piped, act: impl FnOnce()) {
    let quiet = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let session = scope.spawn(|| {
            let (mut rounds, mut longest) = (0_u32, Duration::ZERO);
            while !quiet.load(Ordering::Relaxed) {
                let begun = Instant::now();
                dial.write(&[rounds as u8; 1000]).unwrap();
                let back = dial.read_exact(1000, STALL).unwrap_or_else(|e| panic!("stall: {e}"));
                assert_eq!(back, vec![rounds as u8; 1000]);
                longest = longest.max(begun.elapsed());
                rounds += 1;
            }
            println!("{rounds} round trips meanwhile, the longest {longest:?}");
            assert!(rounds > 10);
        });
        let stop = Stop(&quiet);
        act();
        drop(stop);
        session.join().unwrap();
    });
}

/// Terminals a and b with a session, and x and y of which tests have the identities.
fn mesh(echo: &TcpService) -> (Mesh, Piped) {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a"))
        .terminal(TerminalSpec::new("b").offers("echo", &format!("tcp://{}", echo.address())))
        .terminal(TerminalSpec::new("x").stays_off())
        .terminal(TerminalSpec::new("y").stays_off())
        .start();
    let mut dial = mesh.terminal("a").dial("b/echo");
    dial.write(b"warm").unwrap();
    dial.read_exact(4, SOON).unwrap();
    (mesh, dial)
}

fn relay_id(relay: &Relay) -> RelayId {
    let id = relay.api.json("/api/v1/status").unwrap()["id"].as_str().unwrap().to_owned();
    RelayId(u64::from_str_radix(&id, 16).unwrap())
}

fn call(edge: RelayId, nonce: u64, target: &str) -> Call {
    Call {
        session: SessionId { edge, nonce },
        target: TerminalId::new(target).unwrap(),
        service: ServiceName::new("echo").unwrap(),
        tie_break: None,
        label: Label::from_random(rand::random()),
    }
}

/// Calls and lists without end, streams that it may not open, and no look at any answer.
#[test]
fn a_terminal_that_floods_and_never_reads_costs_little_and_is_cut() {
    let echo = TcpService::echo(None);
    let (mesh, mut dial) = mesh(&echo);
    let relay = mesh.relay("r1");
    let edge = relay_id(relay);
    let before = relay.rss();
    while_a_session_runs(&mut dial, || {
        runtime().block_on(async {
            // Lists: it is not read while it does not read.
            let mut x =
                raw::log_in(relay.listen(), SERVER, mesh.terminal("x").data()).await.unwrap();
            let list = List { request: 1, filter: Default::default(), after: None, limit: 1000 };
            let lists = ToRelay::List(list).to_envelope().to_bytes().repeat(1_000);
            let mut asked = 0;
            let unread = loop {
                let said = tokio::time::timeout(Duration::from_secs(1), x.say_bytes(&lists));
                match said.await {
                    Ok(said) => said.unwrap(),
                    Err(_) => break asked,
                }
                asked += 1_000;
                assert!(asked < 200_000, "it is read for ever");
            };
            println!("not read after {unread} lists");
            let more = tokio::time::timeout(Duration::from_secs(1), x.connection.open_bi()).await;
            // One more stream may be open, of which nothing is read, and no third.
            let third = tokio::time::timeout(Duration::from_secs(1), x.connection.open_bi()).await;
            assert!(third.is_err(), "a third stream: {third:?} after {more:?}");
            let uni = tokio::time::timeout(Duration::from_secs(1), x.connection.open_uni()).await;
            assert!(uni.is_err(), "a stream of one direction: {uni:?}");

            // Calls: answered until nobody takes the answers, then it is cut.
            let mut y =
                raw::log_in(relay.listen(), SERVER, mesh.terminal("y").data()).await.unwrap();
            let mut nonce = 0;
            let cut = tokio::time::timeout(SOON, async {
                loop {
                    let mut calls = Vec::new();
                    for _ in 0..500 {
                        nonce += 1;
                        let call = call(edge, nonce, "nobody");
                        calls.extend_from_slice(&ToRelay::Call(call).to_envelope().to_bytes());
                    }
                    if let Err(why) = y.say_bytes(&calls).await {
                        break why;
                    }
                }
            });
            match cut.await {
                Ok(why) => println!("cut after {nonce} calls: {why}"),
                Err(_) => println!("not read any more after {nonce} calls"),
            }
        });
        let grown = relay.rss().saturating_sub(before);
        println!("{} KiB more", grown / 1024);
        assert!(grown < 32 * MIB, "{} MiB", grown / MIB);
    });
}

/// Who takes his answers may go on; calls beyond the rate are refused as busy.
#[test]
fn calls_beyond_the_rate_are_refused_as_busy() {
    let echo = TcpService::echo(None);
    let (mesh, mut dial) = mesh(&echo);
    let relay = mesh.relay("r1");
    let edge = relay_id(relay);
    while_a_session_runs(&mut dial, || {
        runtime().block_on(async {
            let mut x =
                raw::log_in(relay.listen(), SERVER, mesh.terminal("x").data()).await.unwrap();
            let (mut busy, mut other) = (0_u32, 0_u32);
            for nonce in 1..=40_000 {
                let call = ToRelay::Call(call(edge, nonce, "nobody"));
                x.say(&call.to_envelope()).await.unwrap();
                // A hundred wait for their answer at most.
                while u64::from(busy + other) + 100 < nonce {
                    let ToTerminal::CallRefused(refused) = x.hear_relay().await.unwrap() else {
                        continue;
                    };
                    match refused.refusal.code {
                        RefusalCode::Busy => busy += 1,
                        RefusalCode::UnknownTarget => other += 1,
                        code => panic!("{code}"),
                    }
                }
                if busy > 0 {
                    break;
                }
            }
            println!("{other} calls were looked at, then {busy} refused as busy");
            // On a machine too slow to call so often the rate is not met.
            assert!(busy > 0 || other > limits::CALLS_PER_SECOND);
        });
    });
}

/// What a lying end of a session does with the frames that it gets.
#[derive(Default)]
struct Liar {
    key: Option<NeighbourKey>,
    /// Its frames to the other end carry it.
    forward: Option<Label>,
    reflected: u64,
}

impl Liar {
    /// Answers challenges, and sends each frame back three times; the client gets QUIC packets only.
    fn passes(&mut self, datagram: &[u8], relay: &UdpSocket) -> bool {
        match frame::parse(datagram) {
            None => return true,
            Some((FrameKind::Challenge, handle)) => {
                if let (Some(key), Some((cookie, _))) = (&self.key, frame::parse_proof(datagram)) {
                    let _ = relay.send(&frame::echo(handle, cookie, key));
                }
            }
            Some((FrameKind::Data, _)) => {
                let Some(forward) = self.forward else { return false };
                let mut back = datagram.to_vec();
                frame::relabel(&mut back, forward);
                for _ in 0..3 {
                    self.reflected += u64::from(relay.send(&back).is_ok());
                }
            }
            Some(_) => {}
        }
        false
    }
}

async fn hear_incoming(x: &mut RawStream) -> tasuki_proto::control::Incoming {
    loop {
        if let ToTerminal::Incoming(incoming) = x.hear_relay().await.unwrap() {
            return incoming;
        }
    }
}

/// x takes a call and reflects and replays its frames; y sends frames with labels that x was given. Neither gets
/// anything into a session, and none of them disturbs that of others.
#[test]
fn reflected_replayed_and_foreign_frames_come_to_nothing() {
    let echo = TcpService::echo(None);
    let (mesh, mut dial) = mesh(&echo);
    let relay = mesh.relay("r1");
    let before = relay.rss();
    let liar: Arc<Mutex<Liar>> = Arc::default();
    let seen = liar.clone();
    let passes = move |datagram: &[u8], to: &UdpSocket| seen.lock().unwrap().passes(datagram, to);
    let middle = Middle::start(Ipv4Addr::LOCALHOST.into(), relay.listen(), passes).unwrap();
    while_a_session_runs(&mut dial, || {
        runtime().block_on(async {
            let mut x =
                raw::log_in(middle.address(), SERVER, mesh.terminal("x").data()).await.unwrap();
            let mut material = [0; 32];
            let label = NeighbourKey::EXPORTER_LABEL;
            x.connection.export_keying_material(&mut material, label, b"").unwrap();
            liar.lock().unwrap().key = Some(NeighbourKey::new(&material));
            eventually("x is in the table", SOON, || match relay.row("x") {
                Ok(row) if row["state"] == "logged-in" => Ok(()),
                other => Err(format!("{other:?}")),
            });
            let mut lied_to = mesh.terminal("a").dial("x/echo");
            let _ = lied_to.write(b"hello");
            let incoming = hear_incoming(&mut x).await;
            liar.lock().unwrap().forward = Some(incoming.label);
            let own = Label::from_random(rand::random());
            let accept = Accept { session: incoming.session, label: own };
            x.say(&ToRelay::Accept(accept).to_envelope()).await.unwrap();
            eventually("frames are reflected", SOON, || match liar.lock().unwrap().reflected {
                0..10 => Err("not yet".into()),
                _ => Ok(()),
            });

            // y has the label of x, and an address of its own that it proved.
            let y_at =
                Middle::start(Ipv4Addr::LOCALHOST.into(), relay.listen(), |_, _| true).unwrap();
            let _y = raw::log_in(y_at.address(), SERVER, mesh.terminal("y").data()).await.unwrap();
            let counted = |row: &serde_json::Value| row["packets_to_caller"].as_u64().unwrap();
            let id = incoming.session.to_string();
            let foreign = dropped(relay, "wrong-neighbour");
            let mut frame = [7; 1_000];
            frame[..8].copy_from_slice(&frame::head(FrameKind::Data, incoming.label));
            // Before the relay's count: what x sends between the two counts as x's own.
            let reflected = liar.lock().unwrap().reflected;
            let earlier = relay.api.json(&format!("/api/v1/sessions/{id}")).unwrap();
            // So few at once that they all wait in the kernel where the relay is slow to take them.
            eventually("1,000 foreign frames are counted", SOON, || {
                for _ in 0..50 {
                    y_at.upstream().send(&frame).unwrap();
                }
                let count = dropped(relay, "wrong-neighbour") - foreign;
                if count >= 1_000 { Ok(()) } else { Err(format!("{count}")) }
            });
            let later = relay.api.json(&format!("/api/v1/sessions/{id}")).unwrap();
            let passed = counted(&later) - counted(&earlier);
            let most = liar.lock().unwrap().reflected - reflected + 10;
            assert!(passed <= most, "{passed} frames passed, {most} were x's own");

            // The session that was lied to proves nothing, and ends with a code on the caller's side.
            let end = tokio::task::spawn_blocking(move || {
                lied_to.process().wait(2 * SOON);
                lied_to.stderr()
            });
            let stderr = end.await.unwrap();
            assert!(stderr.contains("error: "), "{stderr}");
            println!("{} reflected; the caller says: {stderr}", liar.lock().unwrap().reflected);
        });
    });
    let grown = relay.rss().saturating_sub(before);
    assert!(grown < 32 * MIB, "{} MiB", grown / MIB);
}
