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

/// The packets that wait for one endpoint. Those of established connections come first and have a queue of
/// their own, so that a storm of handshakes delays only handshakes; at [`limits::ENDPOINT_QUEUE`] they drop.
#[derive(Debug)]
pub struct Inbox {
    established: ArrayQueue<Packet>,
    handshakes: ArrayQueue<Packet>,
    waker: AtomicWaker,
    dropped: AtomicU64,
}

impl Default for Inbox {
    fn default() -> Self {
        Inbox {
            established: ArrayQueue::new(limits::ENDPOINT_QUEUE),
            handshakes: ArrayQueue::new(limits::ENDPOINT_QUEUE),
            waker: AtomicWaker::new(),
            dropped: AtomicU64::new(0),
        }
    }
}

impl Inbox {
    /// Hands over a packet; drops it, counted, when the queue is full.
    pub fn push(&self, packet: Packet) {
        // RFC 9000, section 17.2: the highest bit marks a long header, so a connection that is being set up.
        let handshake = packet.bytes.first().is_some_and(|byte| byte & 0x80 != 0);
        let queue = if handshake { &self.handshakes } else { &self.established };
        if queue.push(packet).is_err() {
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
        self.established.pop().or_else(|| self.handshakes.pop())
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
