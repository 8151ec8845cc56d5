use quinn::AsyncUdpSocket;
use tasuki_proto::Generation;

use super::*;

const RELAY: &str = "127.0.0.1:4433";

fn label(n: u64) -> Label {
    Label::new(n).unwrap()
}

const FIRST: PathId = PathId::Relayed(Generation::CALL);

fn bind() -> (Socket, mpsc::Receiver<SocketEvent>) {
    let (events, heard) = mpsc::channel(16);
    let keys = EndpointKeys::random();
    (Socket::bind("127.0.0.1:0".parse().unwrap(), &keys, events).unwrap(), heard)
}

fn socket() -> Socket {
    let (socket, _) = bind();
    for n in 1..=2 {
        let path =
            Path { to: RELAY.parse().unwrap(), label_in: label(n), label_out: label(100 + n) };
        socket.add_path(virtual_address(n), FIRST, path);
    }
    socket
}

/// Session 1 by way of a relay that can be read: frames to it carry label 7.
fn session_to_relay() -> (std::net::UdpSocket, Path, SessionSocket) {
    let relay = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let socket = socket();
    let path = Path { to: relay.local_addr().unwrap(), label_in: label(1), label_out: label(7) };
    socket.add_path(virtual_address(1), FIRST, path);
    socket.use_path(virtual_address(1), FIRST, 0);
    (relay, path, SessionSocket(Arc::new(socket)))
}

fn data(n: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::head(FrameKind::Data, label(n))[..], payload].concat()
}

fn meta(bytes: &[u8], stride: usize, source: &str) -> RecvMeta {
    RecvMeta { addr: source.parse().unwrap(), len: bytes.len(), stride, ..RecvMeta::default() }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test]
async fn heads_are_taken_off_in_place() {
    let socket = socket();
    let mut bytes = [data(1, b"aaaa"), data(1, b"bbbb"), data(1, b"cc")].concat();
    let mut about = meta(&bytes, 12, RELAY);
    assert!(socket.sort(&mut bytes, &mut about, &mut false));
    assert_eq!((about.addr, about.len, about.stride), (virtual_address(1), 10, 4));
    assert_eq!(&bytes[..10], b"aaaabbbbcc");
}

#[tokio::test]
async fn a_mixed_batch_is_sorted_and_nothing_of_it_is_lost() {
    let socket = socket();
    let quic = [0x40; 12];
    let mut bytes = [
        quic.to_vec(),
        data(2, b"xxxx"),
        data(1, b"aaaa"),
        data(9, b"none"),
        data(1, b"bbbb"),
        vec![0; 12],
        data(2, b"y"),
    ]
    .concat();
    let mut about = meta(&bytes, 12, RELAY);
    assert!(socket.sort(&mut bytes, &mut about, &mut false));
    assert_eq!((about.addr, &bytes[..about.len]), (virtual_address(2), &b"xxxx"[..]));

    let mut storage = vec![[0; 64]; 8];
    let mut bufs: Vec<IoSliceMut<'_>> = storage.iter_mut().map(|b| IoSliceMut::new(b)).collect();
    let mut metas = vec![RecvMeta::default(); 8];
    let filled = socket.unspill(&mut bufs, &mut metas);
    let got: Vec<(SocketAddr, &[u8])> =
        (0..filled).map(|n| (metas[n].addr, &bufs[n][..metas[n].len])).collect();
    let one = virtual_address(1);
    assert_eq!(got, [(one, &b"aaaa"[..]), (one, b"bbbb"), (virtual_address(2), b"y")]);
    assert_eq!(read(&socket.drops.unknown_label), 1);
    assert_eq!(read(&socket.drops.malformed), 1);
}

#[tokio::test]
async fn a_label_counts_only_from_its_relay() {
    let socket = socket();
    let mut bytes = data(1, b"forged");
    let mut about = meta(&bytes, 14, "127.0.0.1:6666");
    assert!(!socket.sort(&mut bytes, &mut about, &mut false));
    assert_eq!(read(&socket.drops.unknown_label), 1);
}

#[tokio::test]
async fn a_removed_path_neither_sends_nor_receives() {
    let socket = socket();
    socket.close(virtual_address(1));
    let mut bytes = data(1, b"late");
    let mut about = meta(&bytes, 12, RELAY);
    assert!(!socket.sort(&mut bytes, &mut about, &mut false));
    let session = SessionSocket(Arc::new(socket));
    let transmit = Transmit {
        destination: virtual_address(1),
        ecn: None,
        contents: b"lost",
        segment_size: None,
        src_ip: None,
    };
    // quinn would end the connection on an error.
    assert!(session.try_send(&transmit).is_ok());
    assert_eq!(read(&session.0.drops.no_path), 1);
    assert_eq!(session.0.sessions(), 1);
}

#[tokio::test]
async fn segments_leave_as_frames_of_the_path() {
    let (relay, _, session) = session_to_relay();
    let transmit = Transmit {
        destination: virtual_address(1),
        ecn: None,
        contents: b"aaaabbbbcc",
        segment_size: Some(4),
        src_ip: None,
    };
    session.try_send(&transmit).unwrap();
    let mut buffer = [0; 64];
    for payload in [&b"aaaa"[..], b"bbbb", b"cc"] {
        let length = relay.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], &data(7, payload)[..]);
    }
}

#[tokio::test]
async fn only_a_busy_session_tries_large_packets() {
    let (relay, path, session) = session_to_relay();
    let mut buffer = [0; 9000];
    let send = |length: usize| {
        let transmit = Transmit {
            destination: virtual_address(1),
            ecn: None,
            contents: &vec![0; length],
            segment_size: None,
            src_ip: None,
        };
        session.try_send(&transmit).unwrap();
    };
    send(PLAIN_BYTES + 1);
    send(PLAIN_BYTES);
    assert_eq!(relay.recv(&mut buffer).unwrap(), PLAIN_BYTES + frame::HEAD);
    for _ in 0..BULK_BYTES as usize / PLAIN_BYTES {
        send(PLAIN_BYTES);
        relay.recv(&mut buffer).unwrap();
    }
    // Another path of the same session knows that it is busy.
    let second = PathId::Relayed(Generation(1));
    let other = Path { label_in: label(3), label_out: label(8), ..path };
    session.0.add_path(virtual_address(1), second, other);
    session.0.use_path(virtual_address(1), second, 1);
    // What was sent last comes again.
    for _ in 0..2 {
        assert_eq!(relay.recv(&mut buffer).unwrap(), PLAIN_BYTES + frame::HEAD);
        assert_eq!(frame::parse(&buffer), Some((FrameKind::Data, label(8))));
    }
    send(8_944);
    assert_eq!(relay.recv(&mut buffer).unwrap(), 8_944 + frame::HEAD);
    // Another path may not take so much.
    session.0.set_ceiling(virtual_address(1), PLAIN_BYTES);
    send(8_944);
    send(9);
    assert_eq!(relay.recv(&mut buffer).unwrap(), 9 + frame::HEAD);
}

#[tokio::test]
async fn data_takes_two_paths_while_one_is_suspect() {
    let (relay, path, session) = session_to_relay();
    let (one, second) = (virtual_address(1), PathId::Relayed(Generation(1)));
    let other = Path { label_in: label(3), label_out: label(8), ..path };
    session.0.add_path(one, second, other);
    let send = |contents: &[u8], segment_size| {
        let transmit =
            Transmit { destination: one, ecn: None, contents, segment_size, src_ip: None };
        session.try_send(&transmit).unwrap();
    };
    let mut buffer = [0; 64];
    let mut next = || {
        let length = relay.recv(&mut buffer).unwrap();
        let (_, label) = frame::parse(&buffer[..length]).unwrap();
        (label.get(), buffer[frame::HEAD..length].to_vec())
    };
    send(b"aabbc", Some(2));
    assert_eq!([next(), next(), next()].map(|(label, _)| label), [7; 3]);
    session.0.duplicate(one, Some(second));
    // The last two, on the second path.
    assert_eq!(next(), (8, b"bb".to_vec()));
    assert_eq!(next(), (8, b"c".to_vec()));
    send(b"dd", None);
    let mut both = [next(), next()];
    both.sort();
    assert_eq!(both, [(7, b"dd".to_vec()), (8, b"dd".to_vec())]);
    session.0.duplicate(one, None);
    send(b"ee", None);
    assert_eq!(next(), (7, b"ee".to_vec()));
    session.0.use_path(one, second, 1);
    assert_eq!(next(), (8, b"dd".to_vec()));
    assert_eq!(next(), (8, b"ee".to_vec()));
}

#[tokio::test]
async fn a_session_tells_when_it_begins_to_send_data() {
    let (socket, mut heard) = bind();
    let one = virtual_address(1);
    let path = Path { to: RELAY.parse().unwrap(), label_in: label(1), label_out: label(7) };
    socket.add_path(one, FIRST, path);
    let session = SessionSocket(Arc::new(socket));
    let send = |heard: &mut mpsc::Receiver<SocketEvent>, length: usize| {
        let contents = vec![0; length];
        let transmit = Transmit {
            destination: one,
            ecn: None,
            contents: &contents,
            segment_size: None,
            src_ip: None,
        };
        session.try_send(&transmit).unwrap();
        heard.try_recv().is_ok()
    };
    assert!(!send(&mut heard, 100), "nobody watches");
    session.0.watch(one);
    assert!(!send(&mut heard, QUIET_BYTES), "an acknowledgement");
    assert!(send(&mut heard, QUIET_BYTES + 1));
    assert!(!send(&mut heard, 100), "said once");
    // What arrives counts too.
    session.0.watch(one);
    for (length, tells) in [(QUIET_BYTES, false), (QUIET_BYTES + 1, true)] {
        let mut frame = data(1, &vec![0; length]);
        let mut about = meta(&frame, frame.len(), RELAY);
        assert!(session.0.sort(&mut frame, &mut about, &mut false));
        assert_eq!(heard.try_recv().is_ok(), tells);
    }
}

/// A terminal with one session, and its peer.
fn probed() -> (std::net::UdpSocket, Socket, mpsc::Receiver<SocketEvent>, PathKey) {
    let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    peer.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let (socket, heard) = bind();
    let path = Path { to: peer.local_addr().unwrap(), label_in: label(1), label_out: label(7) };
    socket.add_path(virtual_address(1), FIRST, path);
    socket.set_key(virtual_address(1), PathKey::new(&[1; 32], true));
    (peer, socket, heard, PathKey::new(&[1; 32], false))
}

const PROBE: Probe =
    Probe { number: 5, echo: 0, epoch: 3, answer: false, in_use: true, stalled: false };

#[tokio::test]
async fn a_probe_is_answered_by_the_path_it_came_by() {
    let (peer, socket, mut heard, key) = probed();
    let source = peer.local_addr().unwrap();
    socket.use_path(virtual_address(1), FIRST, 9);
    let of = FIRST.probe_of();
    let mut frame = key.seal(label(1), of, PROBE, 200);
    let mut about = meta(&frame, 200, &source.to_string());
    assert!(!socket.sort(&mut frame, &mut about, &mut false));
    let mut buffer = [0; 300];
    let length = peer.recv(&mut buffer).unwrap();
    assert_eq!(length, PROBE_FRAME, "never longer than what was asked");
    let answer = key.open(of, &buffer[..length]).unwrap();
    assert_eq!(answer, Probe { epoch: 9, answer: true, ..PROBE });
    let Ok(SocketEvent::Heard { heard: Heard::On(FIRST), probe: PROBE, .. }) = heard.try_recv()
    else {
        panic!("not told");
    };
    // An answer is told and not answered.
    let mut frame = key.seal(label(1), of, Probe { answer: true, ..PROBE }, 0);
    let mut about = meta(&frame, 200, &source.to_string());
    socket.sort(&mut frame, &mut about, &mut false);
    assert!(matches!(heard.try_recv(), Ok(SocketEvent::Heard { .. })));
    assert!(peer.recv(&mut buffer).is_err(), "an answer is answered");
}

#[tokio::test]
async fn what_the_peer_did_not_make_is_neither_answered_nor_told() {
    let (peer, socket, mut heard, key) = probed();
    let source = peer.local_addr().unwrap().to_string();
    let of = FIRST.probe_of();
    let forged = PathKey::new(&[2; 32], false).seal(label(1), of, PROBE, 0);
    let copied = key.seal(label(1), PathId::Relayed(Generation(1)).probe_of(), PROBE, 0);
    let elsewhere = key.seal(label(1), of, PROBE, 0);
    for (mut frame, source) in [
        (forged, source.as_str()),
        (copied, source.as_str()),
        (elsewhere, "127.0.0.1:9"),
        (vec![4; 9], source.as_str()),
    ] {
        let mut about = meta(&frame, frame.len(), source);
        assert!(!socket.sort(&mut frame, &mut about, &mut false));
    }
    assert!(heard.try_recv().is_err());
    assert!(peer.recv(&mut [0; 99]).is_err());
    assert_eq!(read(&socket.drops.bad_probe), 2);
    assert_eq!(read(&socket.drops.unknown_label), 2);
}

#[tokio::test]
async fn direct_frames_count_from_addresses_that_are_paths() {
    let (_, socket, mut heard, key) = probed();
    let one = virtual_address(1);
    socket.listen(one, label(20));
    let mut early = data(20, b"early");
    let mut about = meta(&early, 13, "127.0.0.1:5555");
    assert!(!socket.sort(&mut early, &mut about, &mut false));
    // Its probes are told, so that a path may be made of it.
    let mut frame = key.seal(label(20), ProbeOf::Direct, PROBE, 0);
    let mut about = meta(&frame, PROBE_FRAME, "127.0.0.1:5555");
    socket.sort(&mut frame, &mut about, &mut false);
    let from = "127.0.0.1:5555".parse().unwrap();
    let told = heard.try_recv();
    assert!(matches!(told, Ok(SocketEvent::Heard { heard: Heard::From(a), .. }) if a == from));
    let direct = PathId::Direct(1);
    socket.add_path(one, direct, Path { to: from, label_in: label(20), label_out: label(30) });
    let mut frame = data(20, b"direct");
    let mut about = meta(&frame, 14, "127.0.0.1:5555");
    assert!(socket.sort(&mut frame, &mut about, &mut false));
    assert_eq!(about.addr, one);
    socket.remove_path(one, direct);
    let mut frame = data(20, b"late");
    let mut about = meta(&frame, 12, "127.0.0.1:5555");
    assert!(!socket.sort(&mut frame, &mut about, &mut false));
    socket.close(one);
    assert_eq!(socket.table.len(), 0);
    assert!(socket.table.arriving(label(20), |_| ()).is_none(), "a label is left");
}

#[tokio::test]
async fn challenges_are_answered_for_known_handles_only() {
    let relay = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let source = relay.local_addr().unwrap().to_string();
    let socket = socket();
    let key = NeighbourKey::new(&[5; 32]);
    socket.add_challenger(label(8), key.clone());
    for handle in [9, 8] {
        let mut challenge = frame::challenge(label(handle), [3; 16]);
        let mut about = meta(&challenge, 40, &source);
        assert!(!socket.sort(&mut challenge, &mut about, &mut false));
    }
    let mut buffer = [0; 64];
    let length = relay.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], frame::echo(label(8), [3; 16], &key));
    assert_eq!(read(&socket.drops.unknown_challenge), 1);
}

#[test]
fn virtual_addresses_differ() {
    assert_ne!(virtual_address(1), virtual_address(1 << 16));
    assert!(virtual_address(u64::MAX).is_ipv6());
}
