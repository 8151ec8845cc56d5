//! The flows of one session: where the datagrams of each go, how each has been used, and which one makes room.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::SendDatagramError;
use tasuki_proto::session::{FlowTag, MAX_FLOW, Piece};
use tasuki_proto::{Refusal, RefusalCode, TerminalId, limits};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::super::pipe::Broken;
use super::super::reached::Reached;
use crate::core::flows::{Use, makes_room};
use crate::core::pieces::Pieces;

/// How often a payload is cut anew when the size of a packet changes meanwhile.
const CUTS: usize = 3;

/// A flow: where its datagrams go locally, and how it has been used.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) socket: Arc<UdpSocket>,
    /// `None`: the socket is connected.
    to: Option<SocketAddr>,
    born: Instant,
    /// When the last datagram passed, in ms since `born`.
    last_ms: AtomicU64,
    asked: AtomicU64,
    answered: AtomicU64,
    is_over: AtomicBool,
    over: Notify,
}

impl Flow {
    fn new(socket: Arc<UdpSocket>, to: Option<SocketAddr>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            to,
            born: Instant::now(),
            last_ms: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            over: Notify::new(),
        })
    }

    fn touch(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.last_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// A datagram passed from the opener to the service.
    pub(super) fn asked(&self) {
        self.touch(&self.asked);
    }

    /// A datagram passed from the service to the opener.
    pub(super) fn answered(&self) {
        self.touch(&self.answered);
    }

    pub(super) fn answers(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    fn used(&self) -> Use {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        Use {
            idle: self.born.elapsed().saturating_sub(last),
            asked: self.asked.load(Ordering::Relaxed),
            answered: self.answers(),
        }
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.over.notify_one();
    }

    /// Whether it made room for another one.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn deliver(&self, payload: &[u8]) -> std::io::Result<()> {
        let send = || match self.to {
            Some(to) => self.socket.try_send_to(payload, to),
            None => self.socket.try_send(payload),
        };
        let sent = match send() {
            // The echo of an earlier packet (ICMP) is told instead of sending this one: it is sent now.
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => send(),
            sent => sent,
        };
        sent.map(|_| ())
    }
}

#[derive(Debug)]
struct Early {
    flow: u32,
    payload: Bytes,
}

#[derive(Debug, Default)]
struct Table {
    /// Flows that the peer opened and this side serves.
    served: HashMap<u32, Arc<Flow>>,
    /// Flows that this side opened.
    opened: HashMap<u32, Arc<Flow>>,
    /// Payloads that came before their flow.
    early: VecDeque<Early>,
    early_bytes: usize,
    pieces: Pieces,
    next: u32,
}

impl Table {
    fn flows(&mut self, served: bool) -> &mut HashMap<u32, Arc<Flow>> {
        if served { &mut self.served } else { &mut self.opened }
    }

    /// Ends the flow that makes room, when there is one.
    fn make_room(&mut self, served: bool) -> bool {
        let flows = self.flows(served);
        let first = makes_room(flows.iter().map(|(number, flow)| (*number, flow.used())));
        let Some(flow) = first.and_then(|number| flows.remove(&number)) else { return false };
        flow.end();
        true
    }

    /// Keeps a payload for its flow; how many others made room.
    fn keep_early(&mut self, flow: u32, payload: &[u8]) -> u64 {
        let mut dropped = 0;
        self.early_bytes += payload.len();
        self.early.push_back(Early { flow, payload: Bytes::copy_from_slice(payload) });
        while self.early.len() > limits::EARLY_DATAGRAMS
            || self.early_bytes > limits::EARLY_DATAGRAM_BYTES
        {
            let Some(oldest) = self.early.pop_front() else { break };
            self.early_bytes -= oldest.payload.len();
            dropped += 1;
        }
        dropped
    }

    fn take_early(&mut self, flow: u32) -> Vec<Bytes> {
        let mut mine = Vec::new();
        self.early.retain(|early| {
            let is_mine = early.flow == flow;
            if is_mine {
                mine.push(early.payload.clone());
            }
            !is_mine
        });
        self.early_bytes -= mine.iter().map(Bytes::len).sum::<usize>();
        mine
    }
}

/// The flows of one session.
#[derive(Debug)]
pub(crate) struct Flows {
    connection: quinn::Connection,
    peer: TerminalId,
    table: Mutex<Table>,
    reached: Arc<Reached>,
    /// Numbers of payloads in pieces.
    messages: AtomicU32,
}

/// A flow's entry in the table; dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) flows: Arc<Flows>,
    pub(super) number: u32,
    pub(super) flow: Arc<Flow>,
    served: bool,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.flow.end();
        let mut table = self.flows.lock();
        let flows = table.flows(self.served);
        if flows.get(&self.number).is_some_and(|there| Arc::ptr_eq(there, &self.flow)) {
            flows.remove(&self.number);
        }
    }
}

impl Entry {
    /// Waits until no datagram has passed for so long, or the flow makes room for another one.
    pub(super) async fn over(&self, idle: Duration) {
        let is_idle = async {
            loop {
                let left = idle.saturating_sub(self.flow.used().idle);
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            () = is_idle => {}
            () = self.flow.over.notified() => {}
        }
    }
}

impl Flows {
    pub(crate) fn new(
        connection: quinn::Connection,
        peer: TerminalId,
        reached: Arc<Reached>,
    ) -> Self {
        Self { connection, peer, table: Mutex::default(), reached, messages: AtomicU32::new(0) }
    }

    pub(crate) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    pub(super) fn peer(&self) -> &TerminalId {
        &self.peer
    }

    pub(super) fn reached(&self) -> &Reached {
        &self.reached
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A datagram arrived in the session. Returns when [`Flows::handle_timeout`] is due.
    pub(super) fn handle_datagram(&self, mut datagram: Bytes) -> Option<Instant> {
        let Some((tag, piece)) = FlowTag::take(&mut datagram) else {
            self.without_flow();
            return self.lock().pieces.poll_timeout();
        };
        let mut table = self.lock();
        if let Some(piece) = piece {
            let whole = table.pieces.handle(tag, piece, &datagram, Instant::now());
            self.incomplete(table.pieces.take_lost());
            match whole {
                Some(whole) => datagram = whole,
                None => return table.pieces.poll_timeout(),
            }
        }
        let due = table.pieces.poll_timeout();
        let flow = table.flows(!tag.to_opener).get(&tag.flow).cloned();
        if flow.is_none() && !tag.to_opener {
            let dropped = table.keep_early(tag.flow, &datagram);
            drop(table);
            self.early_dropped(dropped);
            return due;
        }
        drop(table);
        match flow {
            Some(flow) => {
                if tag.to_opener {
                    flow.answered();
                } else {
                    flow.asked();
                }
                self.deliver(&flow, &datagram);
            }
            None => self.without_flow(),
        }
        due
    }

    /// Drops what has been incomplete for too long. Returns when it is due again.
    pub(super) fn handle_timeout(&self) -> Option<Instant> {
        let mut table = self.lock();
        table.pieces.handle_timeout(Instant::now());
        self.incomplete(table.pieces.take_lost());
        table.pieces.poll_timeout()
    }

    fn without_flow(&self) {
        if let Some(count) = self.reached.udp_without_flow.reach() {
            tracing::debug!(peer = %self.peer, count, "datagrams of no open flow are dropped");
        }
    }

    fn incomplete(&self, lost: u64) {
        if let Some(count) = self.reached.udp_incomplete.reach_times(lost) {
            tracing::info!(
                limit = "INCOMPLETE_DATAGRAM_TIME", peer = %self.peer, count,
                "UDP payloads are dropped since a piece of them got lost"
            );
        }
    }

    fn early_dropped(&self, dropped: u64) {
        if let Some(count) = self.reached.udp_early.reach_times(dropped) {
            tracing::warn!(
                limit = "EARLY_DATAGRAMS", peer = %self.peer, count,
                "UDP payloads are dropped since too many wait for their flows to be opened"
            );
        }
    }

    pub(super) fn queue_full(&self, what: &str, times: u64) {
        if let Some(count) = self.reached.udp_queue_full.reach_times(times) {
            tracing::warn!(limit = "DATAGRAM_BYTES", peer = %self.peer, count, "{what}: the oldest are dropped");
        }
    }

    fn deliver(&self, flow: &Flow, payload: &[u8]) {
        if let Err(error) = flow.deliver(payload)
            && let Some(count) = self.reached.udp_not_delivered.reach()
        {
            let to = flow.to.or_else(|| flow.socket.peer_addr().ok());
            let to = to.map_or_else(String::new, |to| to.to_string());
            tracing::warn!(peer = %self.peer, to, %error, count, "UDP payloads could not be delivered");
        }
    }

    /// Sends one payload of a flow to the peer. When it is too large it is dropped, and the largest size that passes at
    /// this time is returned.
    pub(super) fn send(&self, tag: FlowTag, payload: &[u8]) -> Result<Option<usize>, Broken> {
        let mut most = 0;
        for _ in 0..CUTS {
            let packet = self.connection.max_datagram_size().unwrap_or(0);
            if payload.len() + FlowTag::MAX_BYTES <= packet {
                if self.send_datagram(tag.datagram(payload))? {
                    return Ok(None);
                }
                continue;
            }
            let room = packet.saturating_sub(FlowTag::PIECE_BYTES);
            most = room * limits::DATAGRAM_PIECES;
            if payload.len() > most {
                break;
            }
            if self.send_pieces(tag, payload, room)? {
                return Ok(None);
            }
        }
        if let Some(count) = self.reached.udp_too_large.reach() {
            tracing::warn!(
                limit = "DATAGRAM_PIECES", peer = %self.peer, bytes = payload.len(), most, count,
                "UDP payloads are too large for the path and are dropped"
            );
        }
        Ok(Some(most))
    }

    /// Whether the payload was sent; it was not when a packet of the session takes less than it did.
    fn send_pieces(&self, tag: FlowTag, payload: &[u8], room: usize) -> Result<bool, Broken> {
        // Pieces of one size, so that all of them still fit when the packets get smaller by a little.
        let size = payload.len().div_ceil(payload.len().div_ceil(room)).max(1);
        let of = payload.len().div_ceil(size) as u8;
        let message = self.messages.fetch_add(1, Ordering::Relaxed) & Piece::MAX_MESSAGE;
        for (index, part) in payload.chunks(size).enumerate() {
            let piece = Piece { message, index: index as u8, of };
            if !self.send_datagram(tag.piece(piece, part))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<bool, Broken> {
        let is_full = self.connection.datagram_send_buffer_space() < datagram.len();
        match self.connection.send_datagram(datagram) {
            Ok(()) => {
                self.queue_full("a session's datagrams wait for the line", u64::from(is_full));
                Ok(true)
            }
            Err(SendDatagramError::ConnectionLost(_)) => Err(Broken::Lost),
            Err(_) => Ok(false),
        }
    }

    /// Makes room in a full table; whether there is a place.
    fn has_room(&self, table: &mut Table, served: bool, most: usize, limit: &str) -> bool {
        if table.flows(served).len() < most {
            return true;
        }
        if !table.make_room(served) {
            return false;
        }
        if let Some(count) = self.reached.udp_flows_made_room.reach() {
            let peer = &self.peer;
            tracing::info!(limit, %peer, count, "UDP flows that were answered or idle made room");
        }
        true
    }

    /// Counts and logs that a flow found no place, or a payload no flow.
    pub(super) fn refused(&self, limit: &str) {
        if let Some(count) = self.reached.udp_flows_refused.reach() {
            let peer = &self.peer;
            tracing::warn!(limit, %peer, count, "all UDP flows are in use, a new one found no place");
        }
    }

    /// Enters a flow that the peer opened, and delivers what came early.
    pub(super) fn serve(
        self: &Arc<Self>,
        number: u32,
        socket: Arc<UdpSocket>,
    ) -> Result<Entry, Refusal> {
        let flow = Flow::new(socket, None);
        let early = {
            let mut table = self.lock();
            if number > MAX_FLOW || table.served.contains_key(&number) {
                return Err(Refusal::new(RefusalCode::BadRequest, "flow number"));
            }
            if !self.has_room(&mut table, true, limits::FLOWS_PER_SESSION, "FLOWS_PER_SESSION") {
                self.refused("FLOWS_PER_SESSION");
                let most = limits::FLOWS_PER_SESSION;
                let detail =
                    format!("FLOWS_PER_SESSION: {most} UDP flows of one session are in use");
                return Err(Refusal::new(RefusalCode::Busy, detail));
            }
            table.served.insert(number, flow.clone());
            table.take_early(number)
        };
        for payload in &early {
            flow.asked();
            self.deliver(&flow, payload);
        }
        Ok(Entry { flows: self.clone(), number, flow, served: true })
    }

    /// Drops what came early for a flow that is refused.
    pub(super) fn forget_early(&self, number: u32) {
        let early = self.lock().take_early(number);
        for _ in early {
            self.without_flow();
        }
    }

    /// Enters a flow of this side's; `None` when all are in use.
    pub(super) fn begin(self: &Arc<Self>, socket: Arc<UdpSocket>, to: SocketAddr) -> Option<Entry> {
        let mut table = self.lock();
        if !self.has_room(&mut table, false, limits::FORWARDED_FLOWS, "FORWARDED_FLOWS") {
            return None;
        }
        let number = loop {
            table.next = (table.next + 1) & MAX_FLOW;
            if !table.opened.contains_key(&table.next) {
                break table.next;
            }
        };
        let flow = Flow::new(socket, Some(to));
        table.opened.insert(number, flow.clone());
        drop(table);
        Some(Entry { flows: self.clone(), number, flow, served: false })
    }
}
