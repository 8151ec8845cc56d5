//! Somebody who sees the packets of a network and has no key: copies the frames that two nodes send each other, and sends
//! the copies from an address of its own.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tasuki_proto::frame::{self, FrameKind, HEAD};

use super::netns::Namespace;

/// How soon its threads notice that it is dropped.
const TICK: Duration = Duration::from_millis(50);
/// The number of UDP in IPv4 packets.
const UDP: u8 = 17;
/// The heads of IPv4 without options, and of UDP.
const HEADS: (usize, usize) = (20, 8);
/// Earlier frames without data that it sends again beside each new one.
const REPLAYED: usize = 4;

/// What the observer did, and what came to its address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Copies of probes and of other frames without data that it sent, replays included.
    pub control_sent: u64,
    /// Bytes of these.
    pub control_bytes_sent: u64,
    /// Copies of data that it sent.
    pub data_sent: u64,
    /// Bytes that came to its address.
    pub bytes_heard: u64,
    /// Frames of sessions' data among them.
    pub data_heard: u64,
}

#[derive(Debug, Default)]
struct Tally {
    control_sent: AtomicU64,
    control_bytes_sent: AtomicU64,
    data_sent: AtomicU64,
    bytes_heard: AtomicU64,
    data_heard: AtomicU64,
}

/// The observer. It ends when it is dropped.
#[derive(Debug)]
pub struct Observer {
    tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A frame on its way.
struct Seen<'a> {
    to: SocketAddr,
    kind: FrameKind,
    frame: &'a [u8],
}

impl Observer {
    /// Sees all packets of the machine `at`, and copies the frames between the addresses `ends` of two nodes, in both
    /// directions, from the machine `from`.
    ///
    /// # Panics
    /// When the machines take no sockets.
    pub fn start(at: &Namespace, from: &Namespace, ends: [Ipv4Addr; 2]) -> Observer {
        let tap = at.enter(tap).expect("root may see packets");
        let own = from.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("a socket");
        own.set_read_timeout(Some(TICK)).expect("a socket option");
        let own = Arc::new(own);
        let (tally, stop) = (Arc::<Tally>::default(), Arc::new(AtomicBool::new(false)));
        let copies = {
            let (own, tally, stop) = (own.clone(), tally.clone(), stop.clone());
            move || copy(tap, &own, ends, &tally, &stop)
        };
        let hears = {
            let (tally, stop) = (tally.clone(), stop.clone());
            move || hear(&own, &tally, &stop)
        };
        let threads = vec![std::thread::spawn(copies), std::thread::spawn(hears)];
        Observer { tally, stop, threads }
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            control_sent: read(&self.tally.control_sent),
            control_bytes_sent: read(&self.tally.control_bytes_sent),
            data_sent: read(&self.tally.data_sent),
            bytes_heard: read(&self.tally.bytes_heard),
            data_heard: read(&self.tally.data_heard),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A socket that gets every packet of the machine, both ways, from its IP head on.
fn tap() -> io::Result<Socket> {
    let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(all))?;
    socket.set_read_timeout(Some(TICK))?;
    Ok(socket)
}

fn copy(mut tap: Socket, own: &UdpSocket, ends: [Ipv4Addr; 2], tally: &Tally, stop: &AtomicBool) {
    let mut buffer = vec![0; 128 * 1024];
    let mut kept: VecDeque<(SocketAddr, Vec<u8>)> = VecDeque::new();
    let add = |counter: &AtomicU64, n: usize| {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    };
    let send_control = |to: SocketAddr, frame: &[u8]| {
        if own.send_to(frame, to).is_ok() {
            add(&tally.control_sent, 1);
            add(&tally.control_bytes_sent, frame.len());
        }
    };
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = tap.read(&mut buffer) else { continue };
        let Some(seen) = see(&buffer[..length], ends) else { continue };
        match seen.kind {
            FrameKind::Data if own.send_to(seen.frame, seen.to).is_ok() => add(&tally.data_sent, 1),
            FrameKind::Data => {}
            _ => {
                send_control(seen.to, seen.frame);
                kept.iter().for_each(|(to, frame)| send_control(*to, frame));
                kept.push_back((seen.to, seen.frame.to_vec()));
                kept.drain(..kept.len().saturating_sub(REPLAYED));
            }
        }
    }
}

fn hear(own: &UdpSocket, tally: &Tally, stop: &AtomicBool) {
    let mut buffer = vec![0; 64 * 1024];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, _)) = own.recv_from(&mut buffer) else { continue };
        tally.bytes_heard.fetch_add(length as u64, Ordering::Relaxed);
        if matches!(frame::parse(&buffer[..length]), Some((FrameKind::Data, _))) {
            tally.data_heard.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The frame in an IPv4 packet between these two; the first one where the sender's system joined several.
fn see(packet: &[u8], ends: [Ipv4Addr; 2]) -> Option<Seen<'_>> {
    let head: &[u8; HEADS.0] = packet.first_chunk()?;
    if head[0] != 0x45 || head[9] != UDP {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    let (from, to) = (address(12), address(16));
    if ![from, to].iter().all(|address| ends.contains(address)) {
        return None;
    }
    let udp = &packet[HEADS.0..];
    let port = u16::from_be_bytes(udp.get(2..4)?.try_into().ok()?);
    let payload = udp.get(HEADS.1..)?;
    let (kind, _) = frame::parse(payload)?;
    let (first, rest) = payload.split_at_checked(HEAD)?;
    let next = rest.windows(HEAD).position(|bytes| bytes == first);
    let frame = &payload[..next.map_or(payload.len(), |at| at + HEAD)];
    Some(Seen { to: SocketAddr::new(IpAddr::V4(to), port), kind, frame })
}
