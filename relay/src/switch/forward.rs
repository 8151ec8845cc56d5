//! What happens to a received batch: pure, so that tests and profiles run it without a socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::udp::EcnCodepoint;
use tasuki_proto::Label;
use tasuki_proto::frame::{self, FrameKind};
use tasuki_proto::net::{CidClass, class_of};

use super::neighbour::{Address, Neighbour};
use super::table::Table;
use crate::core::sessions::Counters;

macro_rules! drops {
    ($($(#[$doc:meta])* $field:ident $word:literal;)+) => {
        /// Frames that went nowhere, by reason, since the start.
        #[derive(Debug, Default)]
        pub struct Drops { $($(#[$doc])* pub $field: AtomicU64,)+ }

        impl Drops {
            /// The counters with their names.
            pub fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$(($word, self.$field.load(Ordering::Relaxed))),+]
            }
        }
    };
}

drops! {
    /// Neither frame nor QUIC packet.
    malformed "malformed";
    /// Nobody was given this label.
    unknown_label "unknown-label";
    /// The label was given to another neighbour, or this address is not proven.
    wrong_neighbour "wrong-neighbour";
    /// The session is faster than the operator lets sessions be.
    over_rate "over-rate";
    /// The next neighbour has proven no address.
    no_address "no-address";
    /// The socket's buffer is full.
    send_full "send-full";
    /// The kernel refused to send.
    send_error "send-error";
    /// An echo that proves nothing, or a challenge of nobody we know.
    bad_proof "bad-proof";
}

impl Drops {
    pub(super) fn add(counter: &AtomicU64, frames: usize) {
        counter.fetch_add(frames as u64, Ordering::Relaxed);
    }
}

/// Frames that one thread forwarded, since the start.
#[derive(Debug, Default)]
pub struct Traffic(Counters);

impl Traffic {
    fn add(&self, to_callee: bool, frames: usize, bytes: usize) {
        let counter = if to_callee { &self.0.to_callee } else { &self.0.to_caller };
        counter.packets.fetch_add(frames as u64, Ordering::Relaxed);
        counter.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Packets and bytes towards callees, and towards callers.
    pub fn read(&self) -> [(u64, u64); 2] {
        [&self.0.to_callee, &self.0.to_caller].map(|counter| {
            (counter.packets.load(Ordering::Relaxed), counter.bytes.load(Ordering::Relaxed))
        })
    }
}

/// Datagrams from one address, joined by the kernel: each is `stride` bytes, the last may be shorter.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Where they came from.
    pub source: Address,
    /// Their ECN bits (RFC 3168), carried across.
    pub ecn: Option<EcnCodepoint>,
    /// The datagrams, rewritten in place.
    pub bytes: &'a mut [u8],
    /// The length of each but the last.
    pub stride: usize,
}

/// Where datagrams go.
pub trait Sink {
    /// Frames of one label to a neighbour at its current address.
    fn forward(
        &mut self,
        to: &Arc<Neighbour>,
        at: Address,
        ecn: Option<EcnCodepoint>,
        frames: &[u8],
        stride: usize,
    );
    /// A challenge or an echo.
    fn reply(&mut self, to: Address, frame: &[u8]);
    /// A neighbour proved that it is elsewhere.
    fn moved(&mut self, neighbour: &Arc<Neighbour>, to: Address);
    /// A QUIC packet for one of the relay's own endpoints.
    fn own(&mut self, class: CidClass, from: Address, ecn: Option<EcnCodepoint>, packet: &[u8]);
}

/// Decides on frames.
#[derive(Debug)]
pub struct Forwarder {
    table: Arc<Table>,
    drops: Arc<Drops>,
    traffic: Arc<Traffic>,
    secret: ring::hmac::Key,
}

impl Forwarder {
    /// Decides by `table`. `secret` makes cookies: random, new with every process.
    pub fn new(table: Arc<Table>, drops: Arc<Drops>, secret: &[u8; 32]) -> Self {
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        Self { table, drops, traffic: Arc::default(), secret }
    }

    /// What it forwards.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// Handles a batch.
    pub fn handle(&self, batch: &mut Batch<'_>, now_ms: u64, sink: &mut impl Sink) {
        let stride = batch.stride.max(1);
        let mut at = 0;
        while at < batch.bytes.len() {
            let end = (at + stride).min(batch.bytes.len());
            let datagram = &batch.bytes[at..end];
            if !frame::is_frame(datagram[0]) {
                sink.own(class_of(datagram), batch.source, batch.ecn, datagram);
                at = end;
                continue;
            }
            at = match frame::parse(datagram) {
                Some((kind @ (FrameKind::Data | FrameKind::Probe), label)) => {
                    let end = frame::run_end(batch.bytes, at, stride);
                    let frames = &mut batch.bytes[at..end];
                    self.data((kind, label), batch.source, batch.ecn, frames, stride, now_ms, sink);
                    end
                }
                Some((FrameKind::Knock, label)) => {
                    match self.table.take_knock(label) {
                        Some(heard) => heard(),
                        None => Drops::add(&self.drops.unknown_label, 1),
                    }
                    end
                }
                Some((FrameKind::Challenge, handle)) => {
                    self.challenged(handle, batch.source, datagram, sink);
                    end
                }
                Some((FrameKind::Echo, handle)) => {
                    self.echoed(handle, batch.source, datagram, now_ms, sink);
                    end
                }
                None => {
                    Drops::add(&self.drops.malformed, 1);
                    end
                }
            };
        }
    }

    /// Frames of one label.
    #[allow(clippy::too_many_arguments, reason = "a batch, taken apart once per run")]
    fn data(
        &self,
        (kind, label): (FrameKind, Label),
        source: Address,
        ecn: Option<EcnCodepoint>,
        frames: &mut [u8],
        stride: usize,
        now_ms: u64,
        sink: &mut impl Sink,
    ) {
        let mut count = frames.len().div_ceil(stride);
        let Some(entry) = self.table.entry(label) else {
            Drops::add(&self.drops.unknown_label, count);
            return;
        };
        if !entry.from.is_current(source) {
            // Another proven address: the neighbour may have moved back. An unproven one: it may have moved.
            // Never more than three times what came (invariant 4).
            if frames.len() * 3 >= frame::PROOF_FRAME
                && let Some(challenge) = entry.from.challenge(source, &self.secret, now_ms)
            {
                sink.reply(source, &challenge);
            }
            if !entry.from.has_proven(source) {
                Drops::add(&self.drops.wrong_neighbour, count);
                return;
            }
        }
        let Some(to) = entry.to.current() else {
            Drops::add(&self.drops.no_address, count);
            return;
        };
        let due_ns = &entry.counter().due_ns;
        let (shape, probe) = ((frames.len(), stride), kind == FrameKind::Probe);
        let passes = self.table.pace.take(due_ns, shape, probe, now_ms * 1_000_000);
        let frames = &mut frames[..passes];
        let all = std::mem::replace(&mut count, passes.div_ceil(stride));
        if count < all {
            Drops::add(&self.drops.over_rate, all - count);
            if count == 0 {
                return;
            }
        }
        for datagram in frames.chunks_mut(stride) {
            frame::relabel(datagram, entry.label_out);
        }
        entry.count(count, frames.len());
        self.traffic.add(entry.to_callee, count, frames.len());
        sink.forward(&entry.to, to, ecn, frames, stride);
    }

    /// Another relay wants us to prove who we are.
    fn challenged(&self, handle: Label, source: Address, datagram: &[u8], sink: &mut impl Sink) {
        match (frame::parse_proof(datagram), self.table.challenger(handle)) {
            (Some((cookie, _)), Some(key)) => {
                sink.reply(source, &frame::echo(handle, cookie, &key));
            }
            _ => Drops::add(&self.drops.bad_proof, 1),
        }
    }

    /// A neighbour proves an address.
    fn echoed(
        &self,
        handle: Label,
        source: Address,
        datagram: &[u8],
        now_ms: u64,
        sink: &mut impl Sink,
    ) {
        let (Some((cookie, proof)), Some(neighbour)) =
            (frame::parse_proof(datagram), self.table.neighbour(handle))
        else {
            return Drops::add(&self.drops.bad_proof, 1);
        };
        match neighbour.echoed(source, &cookie, &proof, &self.secret, now_ms) {
            Some(true) => sink.moved(&neighbour, source),
            Some(false) => {}
            None => Drops::add(&self.drops.bad_proof, 1),
        }
    }

    /// Challenges the addresses that connections hinted at and that are not proven.
    pub fn challenge_hints(&self, now_ms: u64, sink: &mut impl Sink) {
        for (neighbour, hint) in self.table.due_hints() {
            if let Some(challenge) = neighbour.challenge(hint, &self.secret, now_ms) {
                sink.reply(hint, &challenge);
            }
        }
    }
}
