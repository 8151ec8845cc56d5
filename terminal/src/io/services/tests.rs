//! Streams, flows, pings and files through real QUIC connections on loopback.

use std::time::Duration;

use tasuki_proto::session::{INBOX, OpenBytes, OpenPing, PING, PausePipe};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;
use crate::io::testing::{DEADLINE, Mesh, Node, service, terminal, until, within};

/// A TCP service that echoes, on its own port.
async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tcp.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    port
}

/// A running `forward`, with what it told.
struct Forwarded {
    address: std::net::SocketAddr,
    events: mpsc::Receiver<forward::ForwardEvent>,
    task: tokio::task::JoinHandle<forward::ForwardError>,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forwarded(node: &Node, protocol: Protocol, target: &str, name: &str) -> Forwarded {
    let (events, mut told) = mpsc::channel(64);
    let task = tokio::spawn(
        forward::Forward {
            agent: node.agent.clone(),
            services: node.services.clone(),
            protocol,
            listen: "127.0.0.1:0".parse().unwrap(),
            target: terminal(target),
            service: service(name),
            events,
        }
        .run(),
    );
    let Some(forward::ForwardEvent::Listening(address)) = within(told.recv()).await else {
        panic!("does not listen");
    };
    Forwarded { address, events: told, task }
}

fn exposing(port: u16) -> String {
    format!(
        "[expose]\necho = \"tcp://127.0.0.1:{port}\"\nshut = \"tcp://127.0.0.1:{port}\"\n\
         [allow]\necho = \"*\"\nshut = \"nobody\"\ninbox = \"a\"\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_megabytes_come_back_as_they_were() {
    let mesh = Mesh::new();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(echo_server().await)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    let (mut reader, mut writer) =
        TcpStream::connect(forwarded.address).await.unwrap().into_split();
    const BYTES: usize = 50_000_000;
    let up = tokio::spawn(async move {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let mut block = vec![0_u8; 100_000];
        for number in 0..BYTES / block.len() {
            block.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 31 + number) as u8);
            hash.update(&block);
            writer.write_all(&block).await.unwrap();
        }
        writer.shutdown().await.unwrap();
        hash.finish()
    });
    let down = async {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let (mut block, mut total) = (vec![0_u8; 100_000], 0);
        loop {
            match reader.read(&mut block).await.unwrap() {
                0 => return (hash.finish(), total),
                count => {
                    hash.update(&block[..count]);
                    total += count;
                }
            }
        }
    };
    let (back, total) = tokio::time::timeout(Duration::from_secs(60), down).await.unwrap();
    assert_eq!(total, BYTES);
    assert_eq!(back.as_ref(), up.await.unwrap().as_ref());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_a_service_resets_keep_no_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::new();
    let port = listener.local_addr().unwrap().port();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(port)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    // More than a forwarded port may have at a time.
    for number in 0..=limits::FORWARD_CONNECTIONS {
        let mut client = TcpStream::connect(forwarded.address).await.unwrap();
        let (mut server, _) = tokio::time::timeout(Duration::from_secs(10), listener.accept())
            .await
            .unwrap_or_else(|_| panic!("connection {number} does not come"))
            .unwrap();
        // It stands at every end before it breaks.
        server.write_all(b"!").await.unwrap();
        within(client.read_u8()).await.unwrap();
        super::tcp::reset_on_close(&server);
        drop(server);
        within(client.read_u8()).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_by_itself() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::new();
    let port = listener.local_addr().unwrap().port();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(port)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;

    // The client ends first and still hears the answer.
    let mut client = TcpStream::connect(forwarded.address).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    let mut heard = String::new();
    within(server.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut heard = String::new();
    within(client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "answer");

    // The server ends first and still hears the client.
    let mut client = TcpStream::connect(forwarded.address).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.write_all(b"greeting").await.unwrap();
    server.shutdown().await.unwrap();
    let mut heard = String::new();
    within(client.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "greeting");
    client.write_all(b"late").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    within(server.read_to_string(&mut heard)).await.unwrap();
    assert_eq!(heard, "late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_carried_as_a_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::new();
    let port = listener.local_addr().unwrap().port();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(port)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    let mut client = TcpStream::connect(forwarded.address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    within(server.read_u8()).await.unwrap();
    tcp::reset_on_close(&server);
    drop(server);
    let error = within(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

async fn first_answer(session: &Session, begin: &Begin) -> Result<(), pipe::Broken> {
    let (_send, mut recv) = pipe::open(&session.connection, begin).await?;
    pipe::read_opened(&mut recv).await
}

fn code(result: Result<(), pipe::Broken>) -> Option<RefusalCode> {
    match result {
        Ok(()) => None,
        Err(pipe::Broken::Refused(refusal)) => Some(refusal.code),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stream_is_authorised_whichever_side_opens_it() {
    let mesh = Mesh::new();
    let port = echo_server().await;
    let (a, b) = (mesh.node("a", &exposing(port)), mesh.node("b", &exposing(1)));
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    a.services.attend(&session);
    let bytes = |name: &str| Begin::Bytes(OpenBytes { service: service(name) });

    // The call was for ping; what it named gives no right to the rest.
    assert_eq!(code(first_answer(&session, &Begin::Ping(OpenPing {})).await), None);
    let refused = code(first_answer(&session, &bytes("shut")).await);
    assert_eq!(refused, Some(RefusalCode::CallerNotAllowed));
    let refused = code(first_answer(&session, &bytes("absent")).await);
    assert_eq!(refused, Some(RefusalCode::ServiceNotExposed));
    let flow = Begin::Flow(tasuki_proto::session::OpenFlow { service: service("echo"), flow: 1 });
    let refused = code(first_answer(&session, &flow).await);
    assert_eq!(refused, Some(RefusalCode::ServiceNotExposed), "a TCP service is not a UDP one");
    let refused = code(first_answer(&session, &bytes("echo")).await);
    assert_eq!(refused, Some(RefusalCode::ServiceDown), "nothing listens on port 1");
    assert!(a.agent.call(terminal("b"), service("shut")).await.is_err());

    // The called side opens streams too, by the rules of the caller's.
    let back = b.services.attended().get(&session.id).unwrap().flows.clone();
    let other = Session { connection: back.connection().clone(), ..session.clone() };
    assert_eq!(code(first_answer(&other, &bytes("echo")).await), None);
    let refused = code(first_answer(&other, &bytes("shut")).await);
    assert_eq!(refused, Some(RefusalCode::CallerNotAllowed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_stream_is_refused_and_harms_nothing() {
    let mesh = Mesh::new();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", ""));
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    for bytes in [&b"\xff\xff\xff\xff\xff\xff"[..], b"\0\x63\0\0\0\0", b"\0\x01\0\0\0\x01\xff", b""]
    {
        let (mut send, mut recv) = session.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let _ = send.finish();
        let answer = within(pipe::read_opened(&mut recv)).await;
        assert!(answer.is_err(), "{bytes:?}");
    }
    assert_eq!(code(first_answer(&session, &Begin::Ping(OpenPing {})).await), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_streams_and_flows_are_refused_and_the_rest_goes_on() {
    let mesh = Mesh::new();
    let config = "[expose]\ndns = \"udp://127.0.0.1:9\"\n[allow]\ndns = \"a\"\n";
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", config));
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    let mut held = Vec::new();
    for number in 0..=limits::FLOWS_PER_SESSION as u32 {
        let open = tasuki_proto::session::OpenFlow { service: service("dns"), flow: number };
        let (send, mut recv) = pipe::open(&session.connection, &Begin::Flow(open)).await.unwrap();
        let refused = code(within(pipe::read_opened(&mut recv)).await);
        let full = number as usize == limits::FLOWS_PER_SESSION;
        assert_eq!(refused, full.then_some(RefusalCode::Busy), "{number}");
        held.push((send, recv));
    }
    held.clear();
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    for _ in 0..limits::STREAMS_PER_SESSION {
        let begin = Begin::Ping(OpenPing {});
        let (send, mut recv) = pipe::open(&session.connection, &begin).await.unwrap();
        assert_eq!(code(within(pipe::read_opened(&mut recv)).await), None);
        held.push((send, recv));
    }
    let refused = code(first_answer(&session, &Begin::Ping(OpenPing {})).await);
    assert_eq!(refused, Some(RefusalCode::Busy));
    held.clear();
    let mut refused = Some(RefusalCode::Busy);
    let start = Instant::now();
    while refused.is_some() {
        assert!(start.elapsed() < DEADLINE, "streams that ended are still counted");
        refused = code(first_answer(&session, &Begin::Ping(OpenPing {})).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_service_gets_what_arrived_before_the_session_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mesh = Mesh::new();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(port)));
    let session = a.agent.call(terminal("b"), service("echo")).await.unwrap();
    let begin = Begin::Bytes(OpenBytes { service: service("echo") });
    let (mut send, mut recv) = pipe::open(&session.connection, &begin).await.unwrap();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    pipe::read_opened(&mut recv).await.unwrap();
    server.shutdown().await.unwrap();
    let sent = vec![7; 1_000_000];
    let delivered = pipe::delivered(&send);
    send.write_all(&sent).await.unwrap();
    send.finish().unwrap();
    within(delivered).await;
    drop(session);
    mesh.cut();
    let mut heard = Vec::new();
    within(server.read_to_end(&mut heard)).await.unwrap();
    assert!(heard == sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_ends_with_its_last_use() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.node("a", ""), mesh.node("b", &exposing(echo_server().await)));
    let mut forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    assert_eq!(within(forwarded.events.recv()).await, Some(forward::ForwardEvent::Connected));
    let mut client = TcpStream::connect(forwarded.address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
    drop(forwarded);
    until("the session ended", || mesh.live() == 0).await;
    until("nobody serves it", || {
        a.services.attended().is_empty() && b.services.attended().is_empty()
    })
    .await;
    assert!(within(client.read_u8()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_over_does_not_hold_the_session() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.node("a", ""), mesh.node("b", &exposing(echo_server().await)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    let mut client = TcpStream::connect(forwarded.address).await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
    let connection = b.services.attended().values().next().unwrap().connection.clone();
    for _ in 0..20 {
        // The first stream that the caller opened.
        let begin = Begin::Pause(PausePipe { pipe: 0 });
        let (mut send, mut recv) = within(pipe::open(&connection, &begin)).await.unwrap();
        send.finish().unwrap();
        let stands = within(recv.read_chunk(1, true)).await;
        assert!(matches!(stands, Err(quinn::ReadError::Reset(_))), "{stands:?}");
    }
    let begun = Instant::now();
    drop((client, forwarded));
    until("the session ended", || mesh.live() == 0).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forwarded_port_calls_again_and_early_connections_wait() {
    let mesh = Mesh::new();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(echo_server().await)));
    let forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    for _ in 0..3 {
        let mut client = TcpStream::connect(forwarded.address).await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(within(client.read_u8()).await.unwrap(), b'x');
        mesh.cut();
        let error = within(client.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "a cut is no clean end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hopeless_first_call_ends_the_forward() {
    let mesh = Mesh::new();
    let a = mesh.node("a", "");
    let mut forwarded = forwarded(&a, Protocol::Tcp, "nobody", "echo").await;
    let error = within(&mut forwarded.task).await.unwrap();
    assert!(error.to_string().starts_with("unknown-target: nobody: "), "{error}");
}

/// A UDP service that echoes, on its own port.
async fn udp_echo_server() -> u16 {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_536];
        while let Ok((length, from)) = server.recv_from(&mut buffer).await {
            let _ = server.send_to(&buffer[..length], from).await;
        }
    });
    port
}

fn exposing_udp(port: u16) -> String {
    format!("[expose]\ndns = \"udp://127.0.0.1:{port}\"\n[allow]\ndns = \"a\"\n")
}

/// Sends a payload from a socket, again while nothing comes back, and compares what does.
async fn round(client: &UdpSocket, payload: &[u8]) {
    let mut buffer = vec![0; 65_536];
    within(async {
        loop {
            client.send(payload).await.unwrap();
            // What comes late of an earlier round is passed over.
            let heard = async {
                loop {
                    let heard = client.recv(&mut buffer).await.unwrap();
                    if &buffer[..heard] == payload {
                        return;
                    }
                }
            };
            if tokio::time::timeout(Duration::from_secs(2), heard).await.is_ok() {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_reach_a_udp_service_and_come_back() {
    let mesh = Mesh::new();
    let config = exposing_udp(udp_echo_server().await);
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &config));
    let mut forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    let clients = [UdpSocket::bind("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await];
    for (number, client) in clients.into_iter().enumerate() {
        let client = client.unwrap();
        client.connect(forwarded.address).await.unwrap();
        // The last ones travel in pieces.
        for length in [0, 1, 1000, 1154, 1452, 1472, 1600, 4096] {
            let payload: Vec<u8> = (0..length).map(|at| (at + number) as u8).collect();
            round(&client, &payload).await;
        }
        client.send(&[0; 9_000]).await.unwrap();
    }
    let reached = &a.services.reached;
    until("the large ones are counted", || reached.udp_too_large.count() == 2).await;
    let told = within(async {
        loop {
            match forwarded.events.recv().await.unwrap() {
                forward::ForwardEvent::Limit(text) => return text,
                _ => continue,
            }
        }
    });
    let told = told.await;
    assert!(told.starts_with("DATAGRAM_PIECES: ") && told.contains("9000 bytes"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_got_their_answers_make_room() {
    let mesh = Mesh::new();
    let config = exposing_udp(udp_echo_server().await);
    let (a, b) = (mesh.node("a", ""), mesh.node("b", &config));
    let forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    // A conversation stays, as long as its last datagram is not long ago.
    let talk = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    talk.connect(forwarded.address).await.unwrap();
    for _ in 0..10 {
        round(&talk, b"talk").await;
    }
    for number in 0..limits::FLOWS_PER_SESSION * 2 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(forwarded.address).await.unwrap();
        round(&client, &number.to_be_bytes()).await;
    }
    let made_room = a.services.reached.udp_flows_made_room.count();
    assert!(made_room as usize > limits::FLOWS_PER_SESSION, "{made_room}");
    for node in [&a, &b] {
        let view = node.services.reached.view();
        assert_eq!(view.udp_flows_refused, 0, "{view:?}");
    }
    round(&talk, b"still there").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_that_are_in_use_stay_and_the_user_is_told() {
    let mesh = Mesh::new();
    let config = exposing_udp(udp_echo_server().await);
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &config));
    let mut forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    let mut clients = Vec::new();
    for _ in 0..limits::FORWARDED_FLOWS {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(forwarded.address).await.unwrap();
        for _ in 0..5 {
            round(&client, b"talk").await;
        }
        clients.push(client);
    }
    // Keeps all of them in use on machines on which this takes long.
    for client in &clients {
        client.send(b"on").await.unwrap();
    }
    let late = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    late.connect(forwarded.address).await.unwrap();
    late.send(b"late").await.unwrap();
    for client in &clients {
        client.send(b"on").await.unwrap();
    }
    until("the late one is counted", || a.services.reached.udp_flows_refused.count() == 1).await;
    let told = within(async {
        loop {
            if let forward::ForwardEvent::Limit(text) = forwarded.events.recv().await.unwrap() {
                return text;
            }
        }
    })
    .await;
    assert!(told.starts_with("FORWARDED_FLOWS: all 224"), "{told}");
    for client in clients.iter().take(3) {
        round(client, b"still there").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_clients_waits_for_flows_that_get_their_answers() {
    let mesh = Mesh::new();
    let config = exposing_udp(udp_echo_server().await);
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &config));
    let forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    let mut clients = Vec::new();
    for _ in 0..limits::FORWARDED_FLOWS + limits::WAITING_PAYLOADS / 2 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(forwarded.address).await.unwrap();
        clients.push(client);
    }
    for client in &clients {
        client.send(b"all at once").await.unwrap();
    }
    for client in &clients {
        within(client.recv(&mut [0; 16])).await.unwrap();
    }
    assert_eq!(a.services.reached.udp_flows_refused.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pieces_of_a_hostile_peer_hold_little_and_harm_nothing() {
    use tasuki_proto::session::{FlowTag, Piece};
    let mesh = Mesh::new();
    let config = exposing_udp(udp_echo_server().await);
    let (a, b) = (mesh.node("a", ""), mesh.node("b", &config));
    let session = a.agent.call(terminal("b"), service("dns")).await.unwrap();
    let tag = FlowTag { flow: 1, to_opener: false };
    for message in 0..5_000 {
        let piece = Piece { message, index: 0, of: 4 };
        session.connection.send_datagram(tag.piece(piece, &[7; 1_000])).unwrap();
        session
            .connection
            .send_datagram(bytes::Bytes::from_static(b"\xc0\0\0\x02\0\0\0\xff"))
            .unwrap();
        if message % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let reached = &b.services.reached;
    until("the incomplete and the malformed are counted", || {
        reached.udp_incomplete.count() > 1_000 && reached.udp_without_flow.count() > 1_000
    })
    .await;
    let forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(forwarded.address).await.unwrap();
    round(&client, &[1; 2_000]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_finds_no_place_waits_for_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::new();
    let port = listener.local_addr().unwrap().port();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &exposing(port)));
    let mut forwarded = forwarded(&a, Protocol::Tcp, "b", "echo").await;
    let mut open = Vec::new();
    for _ in 0..limits::FORWARD_CONNECTIONS {
        let client = TcpStream::connect(forwarded.address).await.unwrap();
        let (mut server, _) = within(listener.accept()).await.unwrap();
        server.write_all(b"!").await.unwrap();
        open.push((client, server));
    }
    for (client, _) in &mut open {
        assert_eq!(within(client.read_u8()).await.unwrap(), b'!');
    }
    let mut late = TcpStream::connect(forwarded.address).await.unwrap();
    let told = within(async {
        loop {
            if let forward::ForwardEvent::Limit(text) = forwarded.events.recv().await.unwrap() {
                return text;
            }
        }
    })
    .await;
    assert!(told.starts_with("FORWARD_CONNECTIONS: 1000 "), "{told}");
    assert_eq!(a.services.reached.connections_waited.count(), 1);
    open.pop();
    let (mut server, _) = within(listener.accept()).await.unwrap();
    server.write_all(b"?").await.unwrap();
    assert_eq!(within(late.read_u8()).await.unwrap(), b'?');
}

/// One address of the service's name is silent, the other takes longer than an address has on trial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_udp_service_is_heard_after_another_address_had_its_turn() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let slow = UdpSocket::bind(("127.0.0.2", port)).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        let (length, from) = slow.recv_from(&mut buffer).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        let _ = slow.send_to(&buffer[..length], from).await;
    });
    let mut mesh = Mesh::new();
    // The slow one has its turn first.
    let found = ["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse().unwrap());
    mesh.dialler = Dialler::with_resolver(move |_| Box::pin(async move { Ok(found.to_vec()) }));
    let config = format!("[expose]\ndns = \"udp://dns.example:{port}\"\n[allow]\ndns = \"a\"\n");
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", &config));
    let forwarded = forwarded(&a, Protocol::Udp, "b", "dns").await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(forwarded.address).await.unwrap();
    let asking = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(300));
        loop {
            ticks.tick().await;
            client.send(b"asked").await.unwrap();
        }
    };
    let mut buffer = [0; 64];
    let heard = tokio::select! {
        heard = within(client.recv(&mut buffer)) => heard.unwrap(),
        () = asking => unreachable!("it asks on and on"),
    };
    assert_eq!(&buffer[..heard], b"asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echoes_come_back() {
    let mesh = Mesh::new();
    let (a, _b) = (mesh.node("a", ""), mesh.node("b", ""));
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    let mut pinger = ping::Pinger::open(&session.connection).await.unwrap();
    for _ in 0..3 {
        assert!(within(pinger.round_trip()).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inbox_is_closed_unless_a_rule_opens_it() {
    let mesh = Mesh::new();
    let (a, b) = (mesh.node("a", ""), mesh.node("b", ""));
    let refused = a.agent.call(terminal("b"), service(INBOX)).await.unwrap_err();
    assert_eq!(refused.code, RefusalCode::ServiceNotExposed);
    let session = a.agent.call(terminal("b"), service(PING)).await.unwrap();
    let offer = Begin::Offer(tasuki_proto::session::Offer {
        transfer: 1,
        folder: String::new(),
        name: "x".into(),
        size: 0,
        mode: 0,
        overwrite: false,
    });
    let refused = code(first_answer(&session, &offer).await);
    assert_eq!(refused, Some(RefusalCode::ServiceNotExposed));
    assert!(!b.inbox().exists());
}
