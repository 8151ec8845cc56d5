use quinn::AsyncUdpSocket;

use super::*;

const RELAY: &str = "127.0.0.1:4433";

fn label(n: u64) -> Label {
    Label::new(n).unwrap()
}

fn socket() -> Socket {
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    for n in 1..=2 {
        let path =
            Path { relay: RELAY.parse().unwrap(), label_in: label(n), label_out: label(100 + n) };
        socket.set_path(virtual_address(n), path);
    }
    socket
}

/// Session 1 by way of a relay that can be read: frames to it carry label 7.
fn session_to_relay() -> (std::net::UdpSocket, Path, SessionSocket) {
    let relay = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let socket = socket();
    let path = Path { relay: relay.local_addr().unwrap(), label_in: label(1), label_out: label(7) };
    socket.set_path(virtual_address(1), path);
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
    socket.remove_path(virtual_address(1));
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
    assert_eq!(session.0.paths(), 1);
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
    session.0.set_path(virtual_address(1), Path { label_out: label(8), ..path });
    send(8_944);
    assert_eq!(relay.recv(&mut buffer).unwrap(), 8_944 + frame::HEAD);
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
