//! One UDP socket for everything: frames below quinn's session endpoint, QUIC packets to the attachment endpoint.
//!
//! quinn sees one virtual IPv6 address per session ([`virtual_address`]). Below it the path table says by which
//! relay and with which label a packet leaves, and which virtual address an arriving label stands for. The
//! session endpoint's driver is the socket's only reader; it takes the heads off frames in place.
//!
//! What quinn does with a socket's errors decides what this one may return: any error but `WouldBlock` from
//! `try_send` ends the connection without a reason, and any error from `poll_recv` but `ConnectionReset` ends the
//! endpoint. So a packet without a path is dropped and counts as sent, and errors of the network are taken for
//! the loss that they are.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use dashmap::{DashMap, Entry};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use rustc_hash::FxBuildHasher;
use tasuki_proto::Label;
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::net::{AsyncUdp, Inbox, Packet, UdpIo};

use super::turn::{self, Run};

/// The address that stands for session number `n` of this process: in a prefix of unique local addresses
/// (RFC 4193), never on the wire.
pub fn virtual_address(n: u64) -> SocketAddr {
    let [a, b, c, d] = [n >> 48, n >> 32, n >> 16, n].map(|part| part as u16);
    let ip = Ipv6Addr::new(0xfd74, 0x6173, 0x756b, 0x6900, a, b, c, d);
    SocketAddrV6::new(ip, 1, 0, 0).into()
}

/// The way of a session's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The relay's address, as the kernel writes it.
    pub relay: SocketAddr,
    /// Frames to this terminal carry it.
    pub label_in: Label,
    /// Frames from this terminal carry it.
    pub label_out: Label,
}

/// What was dropped here, by reason, since the start.
#[derive(Debug, Default)]
pub struct Drops {
    /// A frame whose label stands for no session, or that came from elsewhere than its relay.
    pub unknown_label: AtomicU64,
    /// A packet of a session that has no path.
    pub no_path: AtomicU64,
    /// Neither frame nor QUIC packet.
    pub malformed: AtomicU64,
    /// A challenge of nobody we know.
    pub unknown_challenge: AtomicU64,
}

/// Packets up to this length are always let through: with all heads they fit the 1,500 bytes of an Ethernet.
pub(crate) const PLAIN_BYTES: usize = 1_444;
/// A session that sent so many bytes may try larger packets. For a short one the search would cost more than it
/// brings: quinn takes the padding of each probe apart byte by byte, which halved the rate of calls.
const BULK_BYTES: u64 = 1024 * 1024;

/// How a session's packets leave.
struct Leaving {
    path: Path,
    /// Bytes sent, over all its paths.
    sent: AtomicU64,
}

struct Arriving {
    session: SocketAddr,
    relay: SocketAddr,
}

/// The socket, its path table, and the keys that answer challenges.
pub struct Socket {
    udp: Arc<AsyncUdp>,
    attachments: Arc<Inbox>,
    arriving_by_label: DashMap<Label, Arriving, FxBuildHasher>,
    paths_by_session: DashMap<SocketAddr, Leaving, FxBuildHasher>,
    challengers: DashMap<Label, NeighbourKey, FxBuildHasher>,
    /// What did not fit in place because the kernel joined packets of several sessions, in order. It is emptied
    /// before the socket is read again, so it holds at most one receive.
    spill: Mutex<VecDeque<(RecvMeta, Vec<u8>)>>,
    one_by_one: AtomicBool,
    /// What was dropped.
    pub drops: Drops,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("sessions", &self.paths_by_session.len()).finish()
    }
}

impl Socket {
    /// Binds to `address`; needs a running tokio.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(address: SocketAddr) -> io::Result<Socket> {
        let io = Arc::new(UdpIo::bind(address, false)?);
        let one_by_one = io.gso_segments() < 2;
        Ok(Socket {
            udp: Arc::new(AsyncUdp::new(io)?),
            attachments: Arc::default(),
            arriving_by_label: DashMap::default(),
            paths_by_session: DashMap::default(),
            challengers: DashMap::default(),
            spill: Mutex::default(),
            one_by_one: AtomicBool::new(one_by_one),
            drops: Drops::default(),
        })
    }

    /// What the attachment endpoint sends on.
    pub fn udp(&self) -> Arc<AsyncUdp> {
        self.udp.clone()
    }

    /// Where the attachment endpoint's packets arrive.
    pub fn attachments(&self) -> Arc<Inbox> {
        self.attachments.clone()
    }

    /// The packets of the session at `session` take this path.
    pub fn set_path(&self, session: SocketAddr, path: Path) {
        self.arriving_by_label.insert(path.label_in, Arriving { session, relay: path.relay });
        let old = match self.paths_by_session.entry(session) {
            Entry::Occupied(mut known) => Some(std::mem::replace(&mut known.get_mut().path, path)),
            Entry::Vacant(vacant) => {
                vacant.insert(Leaving { path, sent: AtomicU64::new(0) });
                None
            }
        };
        if let Some(old) = old
            && old.label_in != path.label_in
        {
            self.arriving_by_label.remove(&old.label_in);
        }
    }

    /// The session at `session` has no path.
    pub fn remove_path(&self, session: SocketAddr) {
        if let Some((_, leaving)) = self.paths_by_session.remove(&session) {
            self.arriving_by_label.remove(&leaving.path.label_in);
        }
    }

    /// How many sessions have a path.
    pub fn paths(&self) -> usize {
        self.paths_by_session.len()
    }

    /// A relay's challenges with `handle` are answered with `key`.
    pub fn add_challenger(&self, handle: Label, key: NeighbourKey) {
        self.challengers.insert(handle, key);
    }

    /// They are not answered any more.
    pub fn remove_challenger(&self, handle: Label) {
        self.challengers.remove(&handle);
    }

    /// Takes a received batch apart. The first run of session packets stays in `buffer`, without its heads, and
    /// `meta` describes it; returns whether there is one. Whatever follows it is spilled, and so is all once
    /// something of this receive was: a session's packets keep their order.
    fn sort(&self, buffer: &mut [u8], meta: &mut RecvMeta, spilled: &mut bool) -> bool {
        let (source, ecn, stride) = (meta.addr, meta.ecn, meta.stride.max(1));
        let length = meta.len;
        let mut first: Option<(SocketAddr, usize)> = None;
        let mut at = 0;
        while at < length {
            let end = (at + stride).min(length);
            let datagram = &buffer[at..end];
            if !frame::is_frame(datagram[0]) {
                self.attachments.push(Packet {
                    source,
                    local: meta.dst_ip,
                    ecn,
                    bytes: datagram.into(),
                });
                at = end;
                continue;
            }
            match frame::parse(datagram) {
                Some((FrameKind::Data, label)) => {
                    let end = frame::run_end(&buffer[..length], at, stride);
                    if let Some(session) = self.session_of(label, source) {
                        if first.is_none() && !*spilled {
                            first = Some((session, take_heads(buffer, at..end, stride)));
                        } else {
                            self.spill(session, ecn, &buffer[at..end], stride);
                            *spilled = true;
                        }
                    }
                    at = end;
                    continue;
                }
                Some((FrameKind::Challenge, handle)) => self.challenged(handle, meta, datagram),
                _ => count(&self.drops.malformed),
            }
            at = end;
        }
        let Some((session, packed)) = first else { return false };
        *meta = RecvMeta {
            addr: session,
            len: packed,
            stride: (stride - frame::HEAD).min(packed),
            ecn,
            dst_ip: None,
        };
        true
    }

    fn session_of(&self, label: Label, source: SocketAddr) -> Option<SocketAddr> {
        let found = self
            .arriving_by_label
            .get(&label)
            .and_then(|arriving| (arriving.relay == source).then_some(arriving.session));
        if found.is_none() {
            count(&self.drops.unknown_label);
        }
        found
    }

    fn spill(&self, session: SocketAddr, ecn: Option<EcnCodepoint>, run: &[u8], stride: usize) {
        let mut bytes = run.to_vec();
        let length = bytes.len();
        let packed = take_heads(&mut bytes, 0..length, stride);
        bytes.truncate(packed);
        let meta = RecvMeta {
            addr: session,
            len: packed,
            stride: (stride - frame::HEAD).min(packed),
            ecn,
            dst_ip: None,
        };
        self.spill.lock().unwrap_or_else(PoisonError::into_inner).push_back((meta, bytes));
    }

    fn challenged(&self, handle: Label, meta: &RecvMeta, datagram: &[u8]) {
        let key = self.challengers.get(&handle).map(|key| key.clone());
        match (frame::parse_proof(datagram), key) {
            (Some((cookie, _)), Some(key)) => {
                let echo = frame::echo(handle, cookie, &key);
                // A full buffer loses it; the relay asks again.
                let _ = self.udp.io().send(meta.addr, meta.dst_ip, None, &echo, None);
            }
            _ => count(&self.drops.unknown_challenge),
        }
    }

    /// Fills the buffers with what waits from earlier batches.
    fn unspill(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut spill = self.spill.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filled = 0;
        while filled < bufs.len().min(meta.len()) {
            let Some((about, bytes)) = spill.pop_front() else { break };
            let Some(room) = bufs[filled].get_mut(..bytes.len()) else { continue };
            room.copy_from_slice(&bytes);
            meta[filled] = about;
            filled += 1;
        }
        filled
    }

    /// Sends a session's packets as frames, or joins them with what this turn sends already.
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(path) = self.path_for(transmit) else { return Ok(()) };
        let head = frame::head(FrameKind::Data, path.label_out);
        turn::with_run(|run, in_turn| {
            if !run.takes(path.relay, transmit) {
                self.flush(run)?;
            }
            run.push(path.relay, head, transmit);
            if !in_turn {
                let sent = self.flush(run);
                run.clear();
                return sent;
            }
            if run.is_full() {
                // What does not fit stays in the run, and the next call is told so.
                let _ = self.flush(run);
            }
            Ok(())
        })
    }

    /// The path that a transmit takes; `None` where there is none, or where its packets are to count as lost.
    fn path_for(&self, transmit: &Transmit<'_>) -> Option<Path> {
        let Some(leaving) = self.paths_by_session.get(&transmit.destination) else {
            count(&self.drops.no_path);
            return None;
        };
        let length = transmit.contents.len();
        let sent = leaving.sent.fetch_add(length as u64, Ordering::Relaxed);
        let segment = transmit.segment_size.unwrap_or(length);
        // Larger ones are probes of quinn's search so far.
        (segment <= PLAIN_BYTES || sent >= BULK_BYTES).then_some(leaving.path)
    }

    /// Sends a run of frames and empties it.
    ///
    /// # Errors
    /// `WouldBlock`, with the run as it was.
    pub(crate) fn flush(&self, run: &mut Run) -> io::Result<()> {
        let Some(to) = run.to() else { return Ok(()) };
        let (bytes, stride, ecn) = (run.bytes(), run.stride(), run.ecn());
        let mut refused = false;
        if bytes.len() > stride && !self.one_by_one.load(Ordering::Relaxed) {
            match self.udp.try_send(|io| io.send(to, None, ecn, bytes, Some(stride))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) if is_offload_error(&error) => refused = true,
                _ => {
                    run.clear();
                    return Ok(());
                }
            }
        }
        for (n, datagram) in bytes.chunks(stride).enumerate() {
            match self.udp.try_send(|io| io.send(to, None, ecn, datagram, None)) {
                // Joined they were refused, alone they are not; where both are, they are too long for the way.
                Ok(()) if refused => self.one_by_one.store(true, Ordering::Relaxed),
                // Once a part is out, the rest counts as lost: all of it would go again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && n == 0 => {
                    return Err(error);
                }
                _ => {}
            }
        }
        run.clear();
        Ok(())
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn is_offload_error(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// Moves the payloads of a run of frames to the front of `buffer`; returns their length.
fn take_heads(buffer: &mut [u8], run: std::ops::Range<usize>, stride: usize) -> usize {
    let mut packed = 0;
    let mut at = run.start;
    while at < run.end {
        let end = (at + stride).min(run.end);
        buffer.copy_within(at + frame::HEAD..end, packed);
        packed += end - at - frame::HEAD;
        at = end;
    }
    packed
}

/// The session endpoint's view of the socket.
#[derive(Debug, Clone)]
pub struct SessionSocket(pub Arc<Socket>);

impl quinn::AsyncUdpSocket for SessionSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        self.0.udp.clone().poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let waiting = self.0.unspill(bufs, meta);
        if waiting > 0 {
            return Poll::Ready(Ok(waiting));
        }
        loop {
            let received = match ready!(self.0.udp.poll_recv(cx, bufs, meta)) {
                Ok(received) => received,
                // An error of an earlier send, told by ICMP: silence will show what it means.
                Err(_) => continue,
            };
            let (mut kept, mut spilled) = (0, false);
            for n in 0..received {
                let mut about = meta[n];
                if self.0.sort(&mut bufs[n], &mut about, &mut spilled) {
                    if kept != n {
                        let (left, right) = bufs.split_at_mut(n);
                        left[kept][..about.len].copy_from_slice(&right[0][..about.len]);
                    }
                    meta[kept] = about;
                    kept += 1;
                }
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
            let waiting = self.0.unspill(bufs, meta);
            if waiting > 0 {
                return Poll::Ready(Ok(waiting));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // quinn refuses IPv6 destinations on a socket that says it is IPv4.
        Ok(virtual_address(0))
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.udp.io().gso_segments().min(turn::QUINN_FRAMES)
    }

    fn max_receive_segments(&self) -> usize {
        self.0.udp.io().gro_segments()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
