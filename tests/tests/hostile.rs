//! What strangers and strange peers send (invariants 3, 4 and 9): memory stays bounded, sessions go on, no
//! unproven address is answered with more than came from it, unknown messages are passed over.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tasuki_proto::control::{List, ToRelay, ToTerminal};
use tasuki_proto::frame::{FrameKind, PROOF_FRAME, head};
use tasuki_proto::id::{Incarnation, Label};
use tasuki_proto::limits;
use tasuki_proto::mesh::{LinkHello, LinkStream, ToPeer};
use tasuki_proto::version::{Alpn, PROTOCOL};
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually, raw};

const MIB: u64 = 1024 * 1024;
/// What strangers may make a relay hold on to, all attacks of this file together.
const GROWTH: u64 = 96 * MIB;
/// The longest time that one round trip of a session may take while strangers shout.
const STALL: Duration = Duration::from_secs(5);

fn socket(target: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(target).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Bytes that came back.
fn drain(socket: &UdpSocket) -> u64 {
    let mut buffer = [0; 65_536];
    let mut sum = 0;
    while let Ok(n) = socket.recv(&mut buffer) {
        sum += n as u64;
    }
    sum
}

/// First packets of `count` real handshakes, caught at a socket that never answers.
fn first_packets(count: usize) -> Vec<Vec<u8>> {
    let trap = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = trap.local_addr().unwrap();
    trap.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = raw::endpoint(None, Alpn::Enrolment);
        // By connection id: what is sent again counts once. They stay until the end, or each would take leave.
        let mut packets = BTreeMap::new();
        let mut connecting = Vec::new();
        let mut buffer = [0; 2048];
        while packets.len() < count {
            if connecting.len() < packets.len() + 50 && connecting.len() < count {
                connecting.push(endpoint.connect(address, "r1.relay.lab.tasuki").unwrap());
            }
            match trap.recv(&mut buffer) {
                // A long header with the fixed bit, padded: a first packet (RFC 9000, 14.1 and 17.2).
                Ok(n) if n >= 1200 && buffer[0] & 0xf0 == 0xc0 => {
                    let id = buffer[6..6 + usize::from(buffer[5])].to_vec();
                    packets.entry(id).or_insert_with(|| buffer[..n].to_vec());
                }
                Ok(_) => {}
                // The endpoint's driver sends meanwhile.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        packets.into_values().collect()
    })
}

/// Garbage, a million labels that nobody issued, and 1,000 half-open handshakes against the relay that carries a
/// session.
#[test]
fn strangers_cost_little_and_disturb_nobody() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::line(&["r1"])
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(
            TerminalSpec::new("b")
                .relayed()
                .at(&["r1"])
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    let relay = mesh.relay("r1");
    let target = relay.listen();
    let mut dial = mesh.terminal("a").dial("b/echo");
    dial.write(b"warm").unwrap();
    dial.read_exact(4, SOON).unwrap();
    let before = relay.rss();
    let packets = first_packets(1000);

    let quiet = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // A session goes on all the time.
        let session = scope.spawn(|| {
            let (mut rounds, mut longest) = (0_u32, Duration::ZERO);
            while !quiet.load(Ordering::Relaxed) {
                let start = Instant::now();
                dial.write(&[rounds as u8; 1000]).unwrap();
                let back = dial.read_exact(1000, STALL).unwrap_or_else(|e| panic!("stall: {e}"));
                assert_eq!(back, vec![rounds as u8; 1000]);
                longest = longest.max(start.elapsed());
                rounds += 1;
            }
            println!("{rounds} round trips meanwhile, the longest {longest:?}");
            assert!(rounds > 10);
        });
        let finish = Finish(&quiet);
        answer_to_a_first_packet(target, &packets[0]);
        garbage(&mut rng, target, &packets);
        println!("after garbage: {} KiB more", relay.rss().saturating_sub(before) / 1024);
        unknown_labels(&mut rng, target);
        println!("after a million labels: {} KiB more", relay.rss().saturating_sub(before) / 1024);
        half_open(target, &packets);
        let grown = relay.rss().saturating_sub(before);
        println!("after 1,000 half-open handshakes: {} KiB more", grown / 1024);
        assert!(grown < GROWTH, "{} MiB more", grown / MIB);
        // The same again costs nothing more.
        half_open(target, &packets);
        unknown_labels(&mut rng, target);
        let again = relay.rss().saturating_sub(before);
        println!("all again: {} KiB more", again / 1024);
        assert!(again < grown + GROWTH / 4, "it grows on: {} MiB", again / MIB);
        drop(finish);
        session.join().unwrap();
    });
    // Honest ones still get in, and the drops are counted by reason.
    let mut fresh = mesh.terminal("a").dial("b/echo");
    fresh.write(b"fresh").unwrap();
    assert_eq!(fresh.read_exact(5, SOON).unwrap(), b"fresh");
    let status = relay.api.json("/api/v1/status").unwrap();
    println!("drops: {}", status["drops"]);
    let dropped: u64 =
        status["drops"].as_object().unwrap().values().filter_map(|v| v.as_u64()).sum();
    assert!(dropped > 10_000, "{}", status["drops"]);
}

/// Lets the session rest, also when an assertion fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Random bytes of all lengths, and what looks like QUIC or a frame but is cut, stretched or bent.
fn garbage(rng: &mut StdRng, target: SocketAddr, packets: &[Vec<u8>]) {
    let stranger = socket(target);
    let (mut sent, mut received) = (0_u64, 0_u64);
    let mut buffer = vec![0; 65_507];
    for round in 0..20_000_usize {
        let length = match round % 200 {
            0 => rng.random_range(2_000..buffer.len()),
            _ => rng.random_range(1..1_500),
        };
        let datagram = &mut buffer[..length];
        match round % 4 {
            // Noise.
            0 => rng.fill_bytes(datagram),
            // A frame, real in its head or too short for one.
            1 => {
                rng.fill_bytes(datagram);
                datagram[0] = rng.random_range(0..0x40);
            }
            // A QUIC packet of a connection that does not exist.
            2 => {
                rng.fill_bytes(datagram);
                datagram[0] |= 0x40;
            }
            // A real first packet, cut or with some bits turned.
            _ => {
                let real = &packets[rng.random_range(0..packets.len())];
                let n = length.min(real.len());
                datagram[..n].copy_from_slice(&real[..n]);
                let at = rng.random_range(0..n);
                datagram[at] ^= 1 << rng.random_range(0..8);
            }
        }
        if stranger.send(datagram).is_ok() {
            sent += length as u64;
        }
        received += drain(&stranger);
    }
    settle(|| received += drain(&stranger));
    println!("garbage: {sent} bytes sent, {received} came back");
    assert!(received <= sent, "amplification");
}

/// Labels that nobody issued, in data frames and in proofs that nobody asked for.
fn unknown_labels(rng: &mut StdRng, target: SocketAddr) {
    let stranger = socket(target);
    let mut received = 0;
    let mut frame = [0; 200];
    for round in 0..1_000_000_u32 {
        let kind = match round % 16 {
            0 => FrameKind::Echo,
            1 => FrameKind::Challenge,
            _ => FrameKind::Data,
        };
        let length = if kind == FrameKind::Data { frame.len() } else { PROOF_FRAME };
        frame[..8].copy_from_slice(&head(kind, Label::from_random(rng.next_u64())));
        let _ = stranger.send(&frame[..length]);
        if round % 1024 == 0 {
            received += drain(&stranger);
        }
    }
    settle(|| received += drain(&stranger));
    // Who does not know a label learns nothing: not one byte.
    assert_eq!(received, 0, "an unknown label is answered");
}

/// First packets of 1,000 handshakes, from many ports, that never go on.
fn half_open(target: SocketAddr, packets: &[Vec<u8>]) {
    let mut strangers: Vec<(UdpSocket, u64, u64)> = Vec::new();
    for some in packets.chunks(8) {
        let stranger = socket(target);
        let sent = some.iter().map(|packet| stranger.send(packet).unwrap() as u64).sum();
        strangers.push((stranger, sent, 0));
    }
    // What the relay sends again, since nobody goes on, counts too.
    settle(|| strangers.iter_mut().for_each(|(socket, _, received)| *received += drain(socket)));
    let total: u64 = strangers.iter().map(|(_, _, received)| received).sum();
    let worst = strangers.iter().map(|(_, s, r)| *r as f64 / *s as f64).fold(0.0, f64::max);
    println!("half-open: {total} bytes came back, at most {worst:.2} times what was sent");
    assert!(worst <= 1.0, "amplification of {worst}");
}

/// How many bytes come back for each that a stranger sends as the first packet of a handshake: its address is not
/// proven, so that may be a Retry and no more (invariant 4, docs/adr/0016-retry.md).
fn answer_to_a_first_packet(target: SocketAddr, packet: &[u8]) {
    let stranger = socket(target);
    let sent = stranger.send(packet).unwrap() as u64;
    let mut received = 0;
    eventually("the first packet is answered", SOON, || {
        received += drain(&stranger);
        if received > 0 { Ok(()) } else { Err("nothing came back".into()) }
    });
    settle(|| received += drain(&stranger));
    let ratio = received as f64 / sent as f64;
    println!("a first packet: {sent} bytes sent, {received} came back: amplification {ratio:.3}");
    assert!(ratio <= 1.0, "amplification of {ratio}");
}

/// Keeps looking for two seconds: what is to be seen is that nothing more comes.
fn settle(mut look: impl FnMut()) {
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        look();
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Invariant 9: a message of a kind that nobody knows keeps an attachment and a link; one that is larger than
/// allowed ends it, and nothing else.
#[test]
fn unknown_messages_are_passed_over_and_oversized_ones_end_the_connection() {
    let mesh = MeshSpec::line(&["r1", "r2"])
        .each_relay(RelaySpec::quick_silence)
        .terminal(TerminalSpec::new("a").relayed().at(&["r1"]))
        .terminal(TerminalSpec::new("x").relayed().at(&["r1"]).stays_off())
        .start();
    let r1 = mesh.relay("r1");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = "r1.relay.lab.tasuki";
    runtime.block_on(async {
        let mut x = raw::log_in(r1.listen(), server, mesh.terminal("x").data()).await.unwrap();
        for _ in 0..3 {
            x.say(&raw::unknown_message()).await.unwrap();
        }
        let list = List { request: 5, filter: Default::default(), after: None, limit: 10 };
        x.say(&ToRelay::List(list).to_envelope()).await.unwrap();
        let page = loop {
            if let ToTerminal::Page(page) = x.hear_relay().await.unwrap() {
                break page;
            }
        };
        assert_eq!((page.request, page.items.len()), (5, 2), "{page:?}");
        // A length that no message may have.
        x.say_bytes(&[0, 3, 0xff, 0xff, 0xff, 0xff]).await.unwrap();
        let gone = tokio::time::timeout(SOON, x.connection.closed()).await;
        println!("an oversized message: {:?}", gone.unwrap());
    });
    mesh.wait_state("x", "logged-out", SOON);

    // A relay by hand, with the identity of r2, which is away.
    let r2 = mesh.relay("r2");
    r2.kill();
    eventually("the old link is gone", Duration::from_secs(35), || {
        let links = r1.api.json("/api/v1/status")?["links"].clone();
        if links.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(links.to_string()) }
    });
    runtime.block_on(async {
        let mut link =
            raw::RawStream::connect(r1.listen(), server, r2.data(), Alpn::Link).await.unwrap();
        link.say_bytes(&[LinkStream::Calls as u8]).await.unwrap();
        let mut gossip = Vec::new();
        for _ in 0..limits::GOSSIP_STREAMS {
            let mut stream = link.connection.open_bi().await.unwrap();
            stream.0.write_all(&[LinkStream::Gossip as u8]).await.unwrap();
            gossip.push(stream);
        }
        let hello = LinkHello {
            // Of a later version: the link speaks what both know.
            protocol: PROTOCOL + 6,
            software: "raw".into(),
            incarnation: Incarnation(u64::from(u32::MAX)),
            instance: 1,
            handle: Label::from_random(7),
            addresses: vec![r2.listen().to_string()],
        };
        link.say(&ToPeer::Hello(hello).to_envelope()).await.unwrap();
        let answer = ToPeer::from_envelope(&link.hear().await.unwrap()).unwrap();
        assert!(matches!(answer, Some(ToPeer::Hello(_))), "{answer:?}");
        for kind in [0xeffe, 0xefff] {
            let unknown = tasuki_proto::codec::Envelope { kind, body: Bytes::from_static(b"?") };
            link.say(&unknown).await.unwrap();
        }
        // Still up after a while of its keep-alives.
        let closed = tokio::time::timeout(Duration::from_secs(3), link.connection.closed()).await;
        assert!(closed.is_err(), "an unknown message ended the link: {closed:?}");
    });
    assert!(r1.is_running());
    mesh.wait_state("a", "logged-in", SOON);
}
