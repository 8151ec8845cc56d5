//! One UDP socket for everything: frames below quinn's session endpoint, QUIC packets to the attachment endpoint.
//!
//! quinn sees one virtual IPv6 address per session ([`virtual_address`]). Below it the path table says to which
//! address and with which label a packet leaves, and which virtual address an arriving label stands for. The
//! session endpoint's driver is the socket's only reader; it takes the heads off frames in place, and answers probes
//! at once, so that their round trips are the network's.
//!
//! What quinn does with a socket's errors decides what this one may return: any error but `WouldBlock` from
//! `try_send` ends the connection without a reason, and any error from `poll_recv` but `ConnectionReset` ends the
//! endpoint. So a packet without a path is dropped and counts as sent, and errors of the network are taken for
//! the loss that they are.

mod table;

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use dashmap::DashMap;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use rustc_hash::FxBuildHasher;
use serde::Serialize;
use tasuki_proto::Label;
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::net::{
    AsyncUdp, CidClass, EndpointKeys, Inbox, Packet, UdpIo, canonical, send_within,
};
use tasuki_proto::path::{PROBE_FRAME, PathKey, Probe, ProbeOf};
use tokio::sync::mpsc;

use self::table::{Leaving, Table, as_kernel};
pub use self::table::{Path, SocketEvent};
use super::turn::{self, Run};
use crate::core::paths::{Heard, PathId};

/// The address that stands for session number `n` of this process: in a prefix of unique local addresses
/// (RFC 4193), never on the wire.
pub fn virtual_address(n: u64) -> SocketAddr {
    let [a, b, c, d] = [n >> 48, n >> 32, n >> 16, n].map(|part| part as u16);
    let ip = Ipv6Addr::new(0xfd74, 0x6173, 0x756b, 0x6900, a, b, c, d);
    SocketAddrV6::new(ip, 1, 0, 0).into()
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
    /// A probe that the session's peer did not make.
    pub bad_probe: AtomicU64,
}

/// The counters of [`Drops`], as they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DropsView {
    /// Frames whose label stands for no session, or that came from elsewhere than its relay.
    pub unknown_label: u64,
    /// Packets of a session that has no path.
    pub no_path: u64,
    /// Neither frames nor QUIC packets.
    pub malformed: u64,
    /// Challenges of nobody we know.
    pub unknown_challenge: u64,
    /// Probes that the session's peer did not make.
    pub bad_probe: u64,
}

impl Drops {
    /// The counters at this moment.
    pub fn view(&self) -> DropsView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DropsView {
            unknown_label: read(&self.unknown_label),
            no_path: read(&self.no_path),
            malformed: read(&self.malformed),
            unknown_challenge: read(&self.unknown_challenge),
            bad_probe: read(&self.bad_probe),
        }
    }
}

/// Packets up to this length are always let through: with all heads they fit the 1,500 bytes of an Ethernet.
pub(crate) const PLAIN_BYTES: usize = 1_444;
/// A session that sent so many bytes may try larger packets. For a short one the search would cost more than it
/// brings: quinn takes the padding of each probe apart byte by byte, which halved the rate of calls.
const BULK_BYTES: u64 = 1024 * 1024;

/// A packet of at most this length is an acknowledgement or a keep-alive; a longer one is data.
const QUIET_BYTES: usize = 64;

/// The socket, its path table, and the keys that answer challenges.
pub struct Socket {
    udp: Arc<AsyncUdp>,
    attachments: Arc<Inbox>,
    table: Table,
    local: SocketAddr,
    events: mpsc::Sender<SocketEvent>,
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
        f.debug_struct("Socket").field("sessions", &self.table.len()).finish()
    }
}

impl Socket {
    /// Binds to `address`; needs a running tokio. `keys` are those of the attachment endpoint. What it hears of paths goes to `events`, as far as there is room.
    ///
    /// # Errors
    /// The system's.
    pub fn bind(
        address: SocketAddr,
        keys: &EndpointKeys,
        events: mpsc::Sender<SocketEvent>,
    ) -> io::Result<Socket> {
        let io = Arc::new(UdpIo::bind(address, false)?);
        let one_by_one = io.gso_segments() < 2;
        let local = io.local_addr()?;
        Ok(Socket {
            udp: Arc::new(AsyncUdp::new(io)?),
            attachments: Arc::new(Inbox::dialling(CidClass::Terminals, keys)),
            table: Table::default(),
            local,
            events,
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

    /// The address it is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The session at `session` has this path; the first one takes its data. Returns it as the kernel writes it.
    pub fn add_path(&self, session: SocketAddr, id: PathId, path: Path) -> Path {
        let path = Path { to: as_kernel(path.to, self.local), ..path };
        self.table.add(session, id, path);
        path
    }

    /// The session at `session` has that path no more.
    pub fn remove_path(&self, session: SocketAddr, id: PathId) {
        self.table.remove(session, id);
    }

    /// The session at `session` has no path at all.
    pub fn close(&self, session: SocketAddr) {
        self.table.close(session);
    }

    /// Data of a session takes this path, beginning with what was sent last; returns it.
    pub fn use_path(&self, session: SocketAddr, id: PathId, epoch: u32) -> Option<Path> {
        let path = self.table.use_path(session, id, epoch)?;
        self.resend(session, path);
        Some(path)
    }

    /// Data of a session takes this path too, beginning with what was sent last; or none but its own.
    pub fn duplicate(&self, session: SocketAddr, id: Option<PathId>) {
        if let Some(path) = self.table.duplicate(session, id) {
            self.resend(session, path);
        }
    }

    /// Probes of this session's peer are answered.
    pub fn set_key(&self, session: SocketAddr, key: PathKey) {
        self.table.set_key(session, key);
    }

    /// Direct frames with this label belong to the session.
    pub fn listen(&self, session: SocketAddr, label: Label) {
        self.table.listen(session, label);
    }

    /// Longer packets of the session do not leave.
    pub fn set_ceiling(&self, session: SocketAddr, bytes: usize) {
        self.table.set_ceiling(session, bytes);
    }

    /// [`SocketEvent::Busy`] tells when the session sends or receives data next.
    pub fn watch(&self, session: SocketAddr) {
        self.table.watch(session);
    }

    /// Sends a probe as a frame of `length` bytes, to be discarded after so many hops where they are given.
    pub fn probe(
        &self,
        session: SocketAddr,
        id: PathId,
        probe: Probe,
        (length, hops): (usize, Option<u8>),
    ) {
        let sealed = self.table.with(session, |leaving| {
            let key = leaving.key.as_ref()?;
            let (_, path) = leaving.paths.iter().find(|(known, _)| *known == id)?;
            Some((path.to, key.seal(path.label_out, id.probe_of(), probe, length)))
        });
        // A full buffer or a line that takes no such length loses it: that is what it finds out.
        let _ = match (sealed.flatten(), hops) {
            (None, _) => return,
            (Some((to, frame)), None) => self.udp.io().send(to, None, None, &frame, None),
            (Some((to, frame)), Some(hops)) => send_within(self.udp.io(), to, &frame, hops),
        };
    }

    /// How many sessions have a path.
    pub fn sessions(&self) -> usize {
        self.table.len()
    }

    /// Sends a session's last packets again: where the first try was lost with the path, they show it to QUIC within a
    /// round trip.
    fn resend(&self, session: SocketAddr, path: Path) {
        let Some(packets) = self.table.with(session, Leaving::recent) else { return };
        for packet in packets.iter().filter(|packet| !packet.is_empty()) {
            let frame = [&frame::head(FrameKind::Data, path.label_out)[..], packet].concat();
            let _ = self.udp.io().send(path.to, None, None, &frame, None);
        }
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
                    if let Some(session) = self.session_of(label, source, end - at) {
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
                Some((FrameKind::Probe, label)) => self.probed(label, meta, datagram),
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

    /// The session of a run of frames so long.
    fn session_of(&self, label: Label, source: SocketAddr, length: usize) -> Option<SocketAddr> {
        let found = self.table.arriving(label, |arriving| {
            arriving.path_from(source)?;
            Some((arriving.session, length > QUIET_BYTES + frame::HEAD && begins(&arriving.busy)))
        });
        let Some((session, begins)) = found.flatten() else {
            count(&self.drops.unknown_label);
            return None;
        };
        if begins {
            self.tell_busy(session);
        }
        Some(session)
    }

    fn tell_busy(&self, session: SocketAddr) {
        if self.events.try_send(SocketEvent::Busy(session)).is_err() {
            // Nobody heard it: the next packet says it again.
            self.table.watch(session);
        }
    }

    /// A probe of a session's peer, or what somebody made up. The answer is as long as the shortest probe, and goes
    /// back the way that it came.
    fn probed(&self, label: Label, meta: &RecvMeta, datagram: &[u8]) {
        let source = meta.addr;
        let found = self.table.arriving(label, |arriving| {
            let id = arriving.path_from(source);
            (id.is_some() || arriving.is_direct()).then_some((arriving.session, id))
        });
        let Some((session, id)) = found.flatten() else {
            return count(&self.drops.unknown_label);
        };
        let opened = self.table.with(session, |leaving| {
            let key = leaving.key.as_ref()?;
            // Whoever sends from an address that is no path yet has a direct one at most.
            let of = id.map_or(ProbeOf::Direct, PathId::probe_of);
            let probe = key.open(of, datagram)?;
            // A stranger to the session is answered once its address is a path of its own.
            let path = id.and_then(|id| leaving.paths.iter().find(|(known, _)| *known == id));
            let answer = path.filter(|_| !probe.answer).map(|(id, path)| {
                let in_use = leaving.id == *id;
                let (epoch, number) = (leaving.epoch, probe.number);
                let answer = Probe { number, echo: 0, epoch, answer: true, in_use, stalled: false };
                key.seal(path.label_out, of, answer, PROBE_FRAME)
            });
            Some((probe, answer))
        });
        let Some((probe, answer)) = opened.flatten() else {
            return count(&self.drops.bad_probe);
        };
        if let Some(frame) = answer {
            let _ = self.udp.io().send(source, meta.dst_ip, None, &frame, None);
        }
        let heard = id.map_or_else(|| Heard::From(canonical(source)), Heard::On);
        let at = Instant::now();
        let _ = self.events.try_send(SocketEvent::Heard { session, heard, probe, at });
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
        let Some((path, also)) = self.path_for(transmit) else { return Ok(()) };
        if let Some(also) = also {
            self.send_copy(also, transmit);
        }
        let head = frame::head(FrameKind::Data, path.label_out);
        turn::with_run(|run, in_turn| {
            if !run.takes(path.to, transmit) {
                self.flush(run)?;
            }
            run.push(path.to, head, transmit);
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

    /// The path that a transmit takes, and a second one; `None` where there is none, or where its packets are to count
    /// as lost.
    fn path_for(&self, transmit: &Transmit<'_>) -> Option<(Path, Option<Path>)> {
        let session = transmit.destination;
        let length = transmit.contents.len();
        let segment = transmit.segment_size.unwrap_or(length);
        let found = self.table.with(session, |leaving| {
            let sent = leaving.sent.fetch_add(length as u64, Ordering::Relaxed);
            let begins = length > QUIET_BYTES && begins(&leaving.busy);
            // Larger ones are probes of quinn's search so far.
            let fits = segment <= PLAIN_BYTES || (sent >= BULK_BYTES && segment <= leaving.ceiling);
            (begins, fits.then_some((leaving.path, leaving.also)))
        });
        let Some((begins, path)) = found else {
            count(&self.drops.no_path);
            return None;
        };
        if begins {
            self.tell_busy(session);
        }
        path
    }

    /// Sends the packets of a transmit by a second path too, without waiting for room.
    fn send_copy(&self, path: Path, transmit: &Transmit<'_>) {
        let head = frame::head(FrameKind::Data, path.label_out);
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(segment) {
            let frame = [&head[..], packet].concat();
            let _ = self.udp.io().send(path.to, None, transmit.ecn, &frame, None);
        }
    }

    /// Sends a run of frames and empties it.
    ///
    /// # Errors
    /// `WouldBlock`, with the run as it was.
    pub(crate) fn flush(&self, run: &mut Run) -> io::Result<()> {
        let (Some(to), Some(session)) = (run.to(), run.session()) else { return Ok(()) };
        let (bytes, stride) = (run.bytes(), run.stride());
        self.send_run(to, run)?;
        self.table.with(session, |leaving| leaving.remember(bytes, stride, frame::HEAD));
        run.clear();
        Ok(())
    }

    fn send_run(&self, to: SocketAddr, run: &Run) -> io::Result<()> {
        let (bytes, stride, ecn) = (run.bytes(), run.stride(), run.ecn());
        let mut refused = false;
        if bytes.len() > stride && !self.one_by_one.load(Ordering::Relaxed) {
            match self.udp.try_send(|io| io.send(to, None, ecn, bytes, Some(stride))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(error) if is_offload_error(&error) => refused = true,
                _ => return Ok(()),
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
        Ok(())
    }
}

/// Whether this is the first data since the session was last watched.
fn begins(busy: &AtomicBool) -> bool {
    !busy.load(Ordering::Relaxed) && !busy.swap(true, Ordering::Relaxed)
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
