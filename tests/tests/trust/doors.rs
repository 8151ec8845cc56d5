//! Doors open to strangers: enrolment, the status endpoint, packets that nobody asked for.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tasuki_proto::control::RelayContact;
use tasuki_proto::dial::Dialler;
use tasuki_proto::enrolment::{Enrol, ToRegistrar, renew, send};
use tasuki_proto::id::RelayName;
use tasuki_proto::identity::{Clock, Identity, TokenId};
use tasuki_proto::limits;
use tasuki_proto::version::Alpn;
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually, raw};

use crate::floods::{dropped, honest_beside, runtime};

const SERVER: &str = "r1.relay.lab.tasuki";
/// Another address of this machine than the honest have.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Ends the flood, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a stranger's connection for enrolment does.
#[derive(Clone, Copy)]
enum Stranger {
    /// Nothing.
    Silent,
    /// Asks with a token that nobody made.
    Asks,
}

/// Keeps `count` connections for enrolment open from one address, until `over`; returns how many it began.
async fn strangers(relay: SocketAddr, count: usize, what: Stranger, over: &AtomicBool) -> u64 {
    let endpoint = raw::endpoint_at(STRANGER, None, Alpn::Enrolment);
    let begun = AtomicU64::new(0);
    let one = || async {
        while !over.load(Ordering::Relaxed) {
            let Ok(connecting) = endpoint.connect(relay, SERVER) else { break };
            let Ok(connection) = connecting.await else { continue };
            begun.fetch_add(1, Ordering::Relaxed);
            if matches!(what, Stranger::Asks)
                && let Ok((mut to, _from)) = connection.open_bi().await
            {
                let enrol = Enrol { token: TokenId([7; 16]), newcomer: vec![1], proof: [2; 32] };
                let _ = send(&mut to, &ToRegistrar::Enrol(enrol).to_envelope()).await;
            }
            while !over.load(Ordering::Relaxed) && connection.close_reason().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    futures_of(count, one).await;
    begun.into_inner()
}

/// Runs `count` of the same at once.
async fn futures_of<F: Future<Output = ()>>(count: usize, make: impl Fn() -> F) {
    let mut all: Vec<_> = (0..count).map(|_| Box::pin(make())).collect();
    std::future::poll_fn(|context| {
        all.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

fn contact(relay: &Relay) -> RelayContact {
    RelayContact {
        name: RelayName::new(relay.name()).unwrap(),
        addresses: vec![relay.listen().to_string()],
        draining: false,
    }
}

/// Connections that ask for nothing, and requests that come to nothing, from one address: newcomers elsewhere enrol, and
/// nodes renew their certificates.
#[test]
fn strangers_at_the_door_keep_no_newcomer_and_no_renewal_out() {
    let mut mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("t").stays_off())
        .start();
    let address = mesh.relay("r1").listen();
    for what in [Stranger::Silent, Stranger::Asks] {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = Stop(&over);
            let flood = scope.spawn(|| {
                let count = limits::ENROLMENT_CONNECTIONS + 50;
                runtime().block_on(strangers(address, count, what, &over))
            });
            eventually("the door is full", SOON, || {
                let connections =
                    mesh.relay("r1").api.json("/api/v1/status")?["connections"].clone();
                let full = limits::ENROLMENT_CONNECTIONS as u64 - 10;
                let is_full = connections.as_u64().is_some_and(|count| count >= full);
                let refused = dropped(mesh.relay("r1"), "enrolments-over-limit") > 0;
                if is_full || refused { Ok(()) } else { Err(connections.to_string()) }
            });
            let own = Identity::load(mesh.terminal("t").data()).unwrap().unwrap();
            let relays = [contact(mesh.relay("r1"))];
            for n in 0..6 {
                let kind = if matches!(what, Stranger::Silent) { "s" } else { "q" };
                mesh.add_terminal(TerminalSpec::new(&format!("new-{kind}{n}")).stays_off());
                let renewed = runtime().block_on(renew(
                    &own,
                    &relays,
                    &Dialler::default(),
                    &Clock::system(0),
                ));
                renewed.unwrap_or_else(|error| panic!("renewal {n}: {error}"));
            }
            drop(stop);
            println!("{} connections of strangers", flood.join().unwrap());
        });
    }
    let relay = mesh.relay("r1");
    let made_room = dropped(relay, "enrolment-made-room");
    let refused = dropped(relay, "enrolments-over-limit");
    println!("{made_room} made room, {refused} requests refused");
    assert!(made_room > 0 && refused > 0, "the door was never full");
    assert_eq!(dropped(relay, "renewals-over-limit"), 0);
}

/// Small packets that look as if they belonged to connections: they take no place from packets that do.
#[test]
fn packets_of_no_connection_push_out_none_of_those_that_are() {
    const FLOOD: Duration = Duration::from_secs(6);
    let echo = TcpService::echo(None);
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").relayed())
        .terminal(
            TerminalSpec::new("b").relayed().offers("echo", &format!("tcp://{}", echo.address())),
        )
        .terminal(TerminalSpec::new("h").relayed())
        .start();
    let relay = mesh.relay("r1");
    let before = relay.rss();
    honest_beside(&mesh, || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(relay.listen()).unwrap();
        let (begun, mut sent) = (Instant::now(), 0_u64);
        // A short header, a handshake, a first packet that is too short, for each of a relay's two endpoints.
        let kinds = [0x40, 0x41, 0xe0, 0xc0].map(|first| {
            [1_u8, 2].map(|class| {
                let mut packet = [0x5a; 60];
                packet[..7].copy_from_slice(&[first, 0, 0, 0, 1, 12, class]);
                if first & 0x80 == 0 {
                    packet[1] = class;
                }
                packet
            })
        });
        while begun.elapsed() < FLOOD {
            for packet in kinds.iter().flatten() {
                let mut packet = *packet;
                packet[12..20].copy_from_slice(&sent.to_le_bytes());
                sent += u64::from(socket.send(&packet).is_ok());
            }
        }
        println!("{sent} packets sent");
    });
    let (full, made_up) =
        (dropped(relay, "endpoint-queue-full"), dropped(relay, "unknown-connection"));
    println!("{made_up} belonged to no connection, {full} found their queue full");
    assert!(made_up > 10_000, "{made_up}");
    assert_eq!(full, 0, "packets waited that nobody wants");
    let grown = relay.rss().saturating_sub(before) / 1024;
    assert!(grown < 32 * 1024, "{grown} KiB more");
}

/// A stateless reset carries no connection id: agents take it all the same, and learn that their relay restarted long before
/// silence would tell them.
#[test]
fn a_relay_that_restarted_is_noticed_by_its_reset() {
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1"))
        .terminal(TerminalSpec::new("a").at(&["r1"]))
        .start();
    let relay = mesh.relay("r1");
    relay.kill();
    let begun = Instant::now();
    relay.start();
    eventually("a is logged in again", Duration::from_secs(15), || {
        // What it asks draws the reset.
        mesh.terminal("a").verb(&["ls"]);
        let row = relay.row("a")?;
        if row["state"] == "logged-in" { Ok(()) } else { Err(row.to_string()) }
    });
    println!("noticed within {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15));
}

/// Connections to the status endpoint and to the local socket that ask for nothing, or stop within a request: whoever asks
/// is answered at once.
#[test]
fn idle_connections_do_not_hold_the_status_endpoint_up() {
    let mesh = MeshSpec::new().relay(RelaySpec::new("r1")).start();
    let relay = mesh.relay("r1");
    let many = 2 * limits::HTTP_CONNECTIONS;
    let heads: [&[u8]; 3] = [
        b"",
        b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nX-Wait: ",
        b"POST /api/v1/terminals/nobody/kick HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    ];
    for head in heads {
        let mut tcp: Vec<TcpStream> =
            (0..many).map(|_| TcpStream::connect(relay.api.address).unwrap()).collect();
        let local = relay.data().join("relay.sock");
        // Its backlog is short: what cannot connect at once is no idle connection.
        let unix: Vec<UnixStream> =
            (0..many).filter_map(|_| UnixStream::connect(&local).ok()).collect();
        for stream in &mut tcp {
            let _ = stream.write_all(head);
        }
        for mut stream in &unix {
            let _ = stream.write_all(head);
        }
        let begun = Instant::now();
        let status = relay.api.get("/healthz").unwrap().status;
        let over_tcp = begun.elapsed();
        let begun = Instant::now();
        relay.verb(&["status"]).ok();
        let over_unix = begun.elapsed();
        println!("{} bytes of a request: {over_tcp:?} and {over_unix:?}", head.len());
        assert_eq!(status, 200);
        let most = Duration::from_secs(2);
        assert!(over_tcp < most && over_unix < most, "{over_tcp:?}, {over_unix:?}");
    }
    // One that says nothing is closed long before it would have to end its request.
    let mut silent = TcpStream::connect(relay.api.address).unwrap();
    let most = limits::HTTP_FIRST_BYTE_TIME + Duration::from_secs(3);
    silent.set_read_timeout(Some(most)).unwrap();
    let closed = silent.read(&mut [0; 16]);
    assert!(matches!(closed, Ok(0)), "{closed:?}");
}

/// Whoever acts in the operator's name is found in the log: what was done, over which door, and what came of it.
#[test]
fn actions_are_logged_with_where_they_came_from() {
    let mesh = MeshSpec::new().relay(RelaySpec::new("r1")).start();
    let relay = mesh.relay("r1");
    let token = std::fs::read_to_string(relay.data().join("admin.token")).unwrap();
    let path = "/api/v1/terminals/nobody/kick";
    let refused = relay.api.post(path, Some("not the token, but long enough")).unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(relay.api.post(path, Some(token.trim())).unwrap().status, 404);
    relay.verb(&["drain"]).ok();
    relay.verb(&["undrain"]).ok();
    let log = relay.log_text();
    let actions: Vec<&str> = log.lines().filter(|line| line.contains("action taken")).collect();
    let has =
        |parts: [&str; 3]| actions.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has([path, "from=127.0.0.1", "status=404"]), "{actions:?}");
    assert!(has(["/api/v1/drain", "from=local user", "status=2"]), "{actions:?}");
    // A stranger's try fills no log.
    assert_eq!(actions.len(), 3, "{actions:?}");
    assert!(!log.contains(token.trim()), "the token is in the log");
}
