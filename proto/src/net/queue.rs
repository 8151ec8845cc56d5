//! A socket for a quinn endpoint that does not read the network itself: somebody else does, and hands it the
//! packets that are for it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};

use super::cid::{CidClass, ClassCids, Standing};
use super::quic::EndpointKeys;
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

/// The packets that wait for one endpoint, in queues of [`limits::ENDPOINT_QUEUE`], each dropping at its end: those of
/// established connections go first, then those of handshakes under way, then those that begin one. So a storm of
/// newcomers delays newcomers, and what was begun is brought to its end.
///
/// A packet belongs to a connection only if it carries a connection id that the endpoint issued; whatever else a stranger
/// makes up is dropped and counted before it waits. Of one connection only a share may wait, so that whoever got an id
/// honestly takes no place from the others either.
#[derive(Debug)]
pub struct Inbox {
    cids: ClassCids,
    queues: [ArrayQueue<(Packet, Option<usize>)>; 3],
    /// Packets that may be stateless resets, for an endpoint that dials; last in turn.
    resets: Option<ArrayQueue<(Packet, Option<usize>)>>,
    /// Waiting packets by connection id; ids share a place by chance alone.
    waiting: Box<[AtomicUsize]>,
    /// What may wait of one connection.
    share: usize,
    waker: AtomicWaker,
    dropped: AtomicU64,
    made_up: AtomicU64,
}

/// Places in which the waiting packets of a listening endpoint are counted by connection.
const PLACES: usize = 16 * 1024;
/// As [`PLACES`], of an endpoint that dials.
const PLACES_DIALLING: usize = 256;

/// Which queue a packet waits in, where it does not begin a connection.
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
    /// For an endpoint that listens. `class` and `keys` are those of the endpoint.
    pub fn listening(class: CidClass, keys: &EndpointKeys) -> Self {
        Self::new(class, keys, PLACES, None)
    }

    /// For an endpoint that only dials: its peers may have restarted and say so by stateless resets.
    pub fn dialling(class: CidClass, keys: &EndpointKeys) -> Self {
        let resets = ArrayQueue::new(limits::RESET_QUEUE);
        Self::new(class, keys, PLACES_DIALLING, Some(resets))
    }

    fn new(
        class: CidClass,
        keys: &EndpointKeys,
        places: usize,
        resets: Option<ArrayQueue<(Packet, Option<usize>)>>,
    ) -> Self {
        Inbox {
            cids: keys.cids(class),
            queues: std::array::from_fn(|_| ArrayQueue::new(limits::ENDPOINT_QUEUE)),
            resets,
            waiting: std::iter::repeat_with(AtomicUsize::default).take(places).collect(),
            share: match class {
                CidClass::Links => limits::PACKETS_PER_LINK,
                CidClass::Terminals => limits::PACKETS_PER_CONNECTION,
            },
            waker: AtomicWaker::new(),
            dropped: AtomicU64::new(0),
            made_up: AtomicU64::new(0),
        }
    }

    /// Hands over a packet; drops it, counted, when its queue is full, its connection has its share, no endpoint takes
    /// one so long, or no connection can be meant.
    pub fn push(&self, packet: Packet) {
        if packet.bytes.len() > limits::OWN_PACKET_BYTES {
            return self.drop_one(&self.dropped);
        }
        let (queue, place) = match self.cids.standing(&packet.bytes) {
            Standing::Issued(number) => {
                let places = self.waiting.len() as u64;
                (&self.queues[stage(&packet.bytes)], Some((number % places) as usize))
            }
            Standing::Begins => (&self.queues[2], None),
            Standing::Reset => match &self.resets {
                Some(resets) => (resets, None),
                None => return self.drop_one(&self.made_up),
            },
            Standing::MadeUp => return self.drop_one(&self.made_up),
        };
        if let Some(place) = place
            && self.waiting[place].fetch_add(1, Ordering::Relaxed) >= self.share
        {
            self.leave(Some(place));
            return self.drop_one(&self.dropped);
        }
        if queue.push((packet, place)).is_err() {
            self.leave(place);
            return self.drop_one(&self.dropped);
        }
        self.waker.wake();
    }

    fn drop_one(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self, place: Option<usize>) {
        if let Some(place) = place {
            self.waiting[place].fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Packets dropped since the start for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Packets dropped since the start that belong to no connection and cannot begin one.
    pub fn made_up(&self) -> u64 {
        self.made_up.load(Ordering::Relaxed)
    }

    fn pop(&self) -> Option<Packet> {
        let mut queues = self.queues.iter().chain(&self.resets);
        let (packet, place) = queues.find_map(ArrayQueue::pop)?;
        self.leave(place);
        Some(packet)
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
    use quinn_proto::ConnectionIdGenerator;

    use super::*;

    fn initial(cid: &[u8], token: &[u8], payload: usize, after: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc0, 0, 0, 0, 1, cid.len() as u8];
        packet.extend_from_slice(cid);
        packet.extend_from_slice(&[0, 0x40, token.len() as u8]);
        packet.extend_from_slice(token);
        packet.extend_from_slice(&(payload as u16 | 0x4000).to_be_bytes());
        packet.extend(std::iter::repeat_n(0xee, payload));
        packet.extend_from_slice(after);
        packet
    }

    fn keys() -> EndpointKeys {
        EndpointKeys::random()
    }

    fn push(inbox: &Inbox, bytes: &[u8]) {
        let source = "127.0.0.1:1".parse().unwrap();
        inbox.push(Packet { source, local: None, ecn: None, bytes: bytes.into() });
    }

    fn short(cid: &[u8], length: usize) -> Vec<u8> {
        let mut packet = [&[0x40][..], cid].concat();
        packet.resize(length, 7);
        packet
    }

    #[test]
    fn what_was_begun_goes_before_what_begins() {
        let keys = keys();
        let inbox = Inbox::listening(CidClass::Terminals, &keys);
        let cid = keys.cids(CidClass::Terminals).generate_cid();
        let short = short(&cid, 60);
        let handshake = [&[0xe0, 0, 0, 0, 1, 12][..], &cid].concat();
        let begins = initial(&[5; 12], &[5; 40], 1_200, &[]);
        let answers = initial(&cid, &[5; 40], 30, &handshake);
        for bytes in [&begins, &handshake, &answers, &short] {
            push(&inbox, bytes);
        }
        let order: Vec<_> = std::iter::from_fn(|| inbox.pop()).map(|p| p.bytes.to_vec()).collect();
        assert_eq!(order, [short, handshake, answers, begins]);
        assert_eq!((inbox.dropped(), inbox.made_up()), (0, 0));
    }

    #[test]
    fn what_no_endpoint_takes_holds_no_memory() {
        let keys = keys();
        let inbox = Inbox::listening(CidClass::Terminals, &keys);
        let cid = keys.cids(CidClass::Terminals).generate_cid();
        for length in [limits::OWN_PACKET_BYTES, limits::OWN_PACKET_BYTES + 1, 65_507] {
            push(&inbox, &short(&cid, length));
        }
        assert_eq!(
            (inbox.dropped(), inbox.pop().map(|p| p.bytes.len())),
            (2, Some(limits::OWN_PACKET_BYTES))
        );
        assert!(inbox.pop().is_none());
    }

    #[test]
    fn packets_that_are_made_up_take_no_place() {
        let keys = keys();
        let (relay, terminal) = (
            Inbox::listening(CidClass::Terminals, &keys),
            Inbox::dialling(CidClass::Terminals, &keys),
        );
        let cid = keys.cids(CidClass::Terminals).generate_cid();
        for inbox in [&relay, &terminal] {
            for n in 0..3 * limits::ENDPOINT_QUEUE {
                let kind = [0x40, 0xe0, 0xc0, 0xf0][n % 4];
                push(inbox, &[&[kind, 0, 0, 0, 1, 12][..], &[2; 54]].concat());
            }
            push(inbox, &short(&cid, 60));
            assert_eq!(inbox.pop().map(|p| p.bytes.to_vec()), Some(short(&cid, 60)));
        }
        assert_eq!(relay.made_up(), 3 * limits::ENDPOINT_QUEUE as u64);
        assert!(relay.pop().is_none());
        // What may be a reset waits behind all else, and only a little of it.
        assert_eq!(std::iter::from_fn(|| terminal.pop()).count(), limits::RESET_QUEUE);
    }

    #[test]
    fn one_connection_takes_its_share_and_no_more() {
        let keys = keys();
        let inbox = Inbox::listening(CidClass::Terminals, &keys);
        let mut cids = keys.cids(CidClass::Terminals);
        let (greedy, other) = (cids.generate_cid(), cids.generate_cid());
        for _ in 0..2 * limits::ENDPOINT_QUEUE {
            push(&inbox, &short(&greedy, 60));
        }
        push(&inbox, &short(&other, 60));
        let waiting = std::iter::from_fn(|| inbox.pop()).count();
        assert_eq!(waiting, limits::PACKETS_PER_CONNECTION + 1);
        // What was taken makes room again.
        push(&inbox, &short(&greedy, 60));
        assert!(inbox.pop().is_some());
    }

    #[test]
    fn a_cut_off_packet_begins_something_at_most() {
        let whole = initial(&[7; 2], &[5; 40], 30, &[0xe0, 0, 0, 0, 1]);
        for end in 1..whole.len() - 5 {
            assert_eq!(stage(&whole[..end]), 2, "{end}");
        }
        assert_eq!(stage(&whole), 1);
        assert_eq!(stage(&[0xff; 64]), 1);
        assert_eq!(stage(&[0xc0; 64]), 2);
    }
}
