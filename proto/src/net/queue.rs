//! A socket for a quinn endpoint that does not read the network itself: somebody else does, and hands it the
//! packets that are for it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

use super::udp::AsyncUdp;
use crate::limits;

/// A QUIC packet on its way to an endpoint.
#[derive(Debug)]
pub struct Packet {
    /// Where it came from.
    pub source: SocketAddr,
    /// The local address it came to.
    pub local: Option<IpAddr>,
    /// Its ECN bits.
    pub ecn: Option<EcnCodepoint>,
    /// One UDP payload.
    pub bytes: Box<[u8]>,
}

/// The packets that wait for one endpoint, in three queues of [`limits::ENDPOINT_QUEUE`], each dropping at its end:
/// those of established connections go first, then those of handshakes under way, last those that begin one. So
/// a storm of newcomers delays newcomers, and what was begun is brought to its end.
#[derive(Debug)]
pub struct Inbox {
    queues: [ArrayQueue<Packet>; 3],
    waker: AtomicWaker,
    dropped: AtomicU64,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox {
            queues: std::array::from_fn(|_| ArrayQueue::new(limits::ENDPOINT_QUEUE)),
            waker: AtomicWaker::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

/// Which queue a packet waits in.
fn stage(packet: &[u8]) -> usize {
    // RFC 9000, section 17.2: the highest bit marks a long header, so a connection that is being set up; the next
    // but one are its type, 0 for Initial.
    match packet.first() {
        Some(first) if first & 0x80 == 0 => 0,
        Some(first) if first & 0x30 == 0 && !is_followed(packet).unwrap_or(false) => 2,
        _ => 1,
    }
}

/// Whether another packet follows an Initial packet in the same datagram (RFC 9000, section 12.2): only with keys for
/// it, so in a handshake that the server has answered. `None` where it is cut off.
fn is_followed(initial: &[u8]) -> Option<bool> {
    // First byte and version; destination and source connection ids; token; length.
    let mut rest = initial.get(5..)?;
    for _ in 0..2 {
        let (&length, after) = rest.split_first()?;
        rest = after.get(usize::from(length)..)?;
    }
    let token = take_varint(&mut rest)?;
    rest = rest.get(usize::try_from(token).ok()?..)?;
    let length = take_varint(&mut rest)?;
    Some(u64::try_from(rest.len()).ok()? > length)
}

/// RFC 9000, section 16.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut value = u64::from(first & 0x3f);
    for _ in 1..1 << (first >> 6) {
        let (&next, after) = rest.split_first()?;
        value = value << 8 | u64::from(next);
        rest = after;
    }
    *bytes = rest;
    Some(value)
}

impl Inbox {
    /// Hands over a packet; drops it, counted, when its queue is full or no endpoint takes one so long.
    pub fn push(&self, packet: Packet) {
        let fits = packet.bytes.len() <= limits::OWN_PACKET_BYTES;
        if !fits || self.queues[stage(&packet.bytes)].push(packet).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waker.wake();
        }
    }

    /// Packets dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn pop(&self) -> Option<Packet> {
        self.queues.iter().find_map(ArrayQueue::pop)
    }
}

/// A quinn socket that receives from an [`Inbox`] and sends on a shared UDP socket.
#[derive(Debug)]
pub struct QueueSocket {
    udp: Arc<AsyncUdp>,
    inbox: Arc<Inbox>,
}

impl QueueSocket {
    /// Sends on `udp`, receives from `inbox`.
    pub fn new(udp: Arc<AsyncUdp>, inbox: Arc<Inbox>) -> Self {
        Self { udp, inbox }
    }

    fn fill(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut count = 0;
        let room = bufs.len().min(meta.len());
        while count < room {
            let Some(packet) = self.inbox.pop() else { break };
            let Some(buffer) = bufs[count].get_mut(..packet.bytes.len()) else { continue };
            buffer.copy_from_slice(&packet.bytes);
            meta[count] = RecvMeta {
                addr: packet.source,
                len: packet.bytes.len(),
                stride: packet.bytes.len(),
                ecn: packet.ecn,
                dst_ip: packet.local,
            };
            count += 1;
        }
        count
    }
}

impl quinn::AsyncUdpSocket for QueueSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        self.udp.clone().poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.udp.try_send(|io| io.send_for_quinn(transmit))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut count = self.fill(bufs, meta);
        if count == 0 {
            self.inbox.waker.register(cx.waker());
            // A packet may have come between the look and the registration.
            count = self.fill(bufs, meta);
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.io().local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(token: &[u8], payload: usize, after: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc0, 0, 0, 0, 1, 2, 7, 7, 0, 0x40, token.len() as u8];
        packet.extend_from_slice(token);
        packet.extend_from_slice(&(payload as u16 | 0x4000).to_be_bytes());
        packet.extend(std::iter::repeat_n(0xee, payload));
        packet.extend_from_slice(after);
        packet
    }

    #[test]
    fn what_was_begun_goes_before_what_begins() {
        let (short, handshake) = (vec![0x40, 1], vec![0xe0, 0, 0, 0, 1]);
        let begins = initial(&[5; 40], 1100, &[]);
        let answers = initial(&[5; 40], 30, &handshake);
        let inbox = Inbox::default();
        for bytes in [&begins, &handshake, &answers, &short] {
            let bytes = bytes.clone().into();
            let source = "127.0.0.1:1".parse().unwrap();
            inbox.push(Packet { source, local: None, ecn: None, bytes });
        }
        let order: Vec<_> = std::iter::from_fn(|| inbox.pop()).map(|p| p.bytes.to_vec()).collect();
        assert_eq!(order, [short, handshake, answers, begins]);
    }

    #[test]
    fn what_no_endpoint_takes_holds_no_memory() {
        let inbox = Inbox::default();
        for length in [limits::OWN_PACKET_BYTES, limits::OWN_PACKET_BYTES + 1, 65_507] {
            let source = "127.0.0.1:1".parse().unwrap();
            let bytes = vec![0xc0; length].into();
            inbox.push(Packet { source, local: None, ecn: None, bytes });
        }
        assert_eq!(
            (inbox.dropped(), inbox.pop().map(|p| p.bytes.len())),
            (2, Some(limits::OWN_PACKET_BYTES))
        );
        assert!(inbox.pop().is_none());
    }

    #[test]
    fn a_cut_off_packet_begins_something_at_most() {
        let whole = initial(&[5; 40], 30, &[0xe0, 0, 0, 0, 1]);
        for end in 1..whole.len() - 5 {
            assert_eq!(stage(&whole[..end]), 2, "{end}");
        }
        assert_eq!(stage(&whole), 1);
        assert_eq!(stage(&[0xff; 64]), 1);
        assert_eq!(stage(&[0xc0; 64]), 2);
    }
}
