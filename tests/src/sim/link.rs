//! How a link treats messages: as the streams of one QUIC connection do, each reliable and in order. Loss shows as
//! delay of what was lost and of everything behind it on the same stream.
//!
//! What is written at one instant shares packets, whatever the stream, as quinn fills them. A lost packet is noticed as RFC 9002 says
//! (section 6.1): by the acknowledgement of a packet three or more behind it, or by that of any later packet once
//! 9/8 of a round trip have passed since it was sent; where no acknowledgement comes, by a probe time-out (6.2).
//! Acknowledgements are lost like packets, and are sent at once behind a gap (RFC 9000, 13.2.1). A packet sent again
//! can be lost again. Left out: congestion control, and the numbers that packets of acknowledgements take, which
//! would let losses be noticed sooner.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::StdRng;
use tasuki_proto::limits::GOSSIP_STREAMS;

/// Payload bytes of a packet.
const PACKET: usize = 1200;
/// RFC 9002, 6.1.1: kPacketThreshold.
const PACKET_THRESHOLD: u64 = 3;
/// The longest that an acknowledgement is held back (RFC 9000, 18.2: max_ack_delay).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// From a message's end on the wire to the report that the network took it.
const DRIVER: Duration = Duration::from_micros(20);

/// The properties of a link, the same in both directions.
#[derive(Debug, Clone, Copy)]
pub struct LinkModel {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much more, at random for each packet.
    pub jitter: Duration,
    /// The share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Bytes per second; 0: without limit.
    pub bandwidth: u64,
}

impl LinkModel {
    fn round_trip(&self) -> Duration {
        self.delay * 2 + self.jitter
    }

    /// RFC 9002, 6.2.1, with half of the jitter as the variation.
    fn probe_timeout(&self) -> Duration {
        self.round_trip() + (self.jitter * 2).max(Duration::from_millis(1)) + ACK_DELAY
    }
}

/// A message on the way.
#[derive(Debug)]
struct Passing {
    stream: usize,
    bytes: Bytes,
    /// It lies in these chunks of packet size ...
    chunks: RangeInclusive<u64>,
    /// ... of which so many are lost and not sent again with success; the others arrive until then.
    missing: u64,
    arrives: Duration,
}

/// A chunk that was lost, and the packet that it was lost in.
#[derive(Debug, Clone, Copy)]
struct Lost {
    chunk: u64,
    packet: u64,
    sent: Duration,
    /// Probe time-outs in a row.
    probes: u32,
    /// An acknowledgement showed the loss; else `due` is that of a probe.
    seen: bool,
    /// When it is sent again.
    due: Duration,
}

/// The last packet, where more still fits in.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    at: Duration,
    room: usize,
    /// `None` where it is lost.
    arrives: Option<Duration>,
}

/// One direction of a link.
#[derive(Debug, Default)]
pub(super) struct Direction {
    wire_free_at: Duration,
    /// Packets sent, repeated ones included.
    packets: u64,
    /// Chunks sent.
    chunks: u64,
    open: Open,
    /// In the order of sending.
    passing: VecDeque<Passing>,
    lost: Vec<Lost>,
    /// When [`Self::resend`] is going to be called.
    planned: Option<Duration>,
    last_arrivals: [Duration; GOSSIP_STREAMS],
}

impl Direction {
    /// Writes a message. Gives the time when the network has taken it; what arrives shows in [`Self::next_arrival`],
    /// and [`Self::next_resend`] says when to call [`Self::resend`].
    pub(super) fn send(
        &mut self,
        model: &LinkModel,
        (stream, bytes): (usize, Bytes),
        now: Duration,
        rng: &mut StdRng,
    ) -> Duration {
        let mut taken = now.max(self.wire_free_at);
        if model.bandwidth > 0 {
            taken += Duration::from_secs_f64(bytes.len() as f64 / model.bandwidth as f64);
        }
        self.wire_free_at = taken;
        let joins = self.open.at == taken && self.open.room > 0;
        let first = if joins { self.chunks } else { self.chunks + 1 };
        let (mut missing, mut arrives) = (0, taken);
        let mut count = |outcome: Option<Duration>| match outcome {
            Some(at) => arrives = arrives.max(at),
            None => missing += 1,
        };
        let mut left = bytes.len();
        if joins {
            let joining = left.min(self.open.room);
            left -= joining;
            self.open.room -= joining;
            count(self.open.arrives);
        }
        while left > 0 {
            self.chunks += 1;
            let arrives = self.put(model, self.chunks, taken, 0, rng);
            let filled = left.min(PACKET);
            left -= filled;
            self.open = Open { at: taken, room: PACKET - filled, arrives };
            count(arrives);
        }
        let chunks = first..=self.chunks;
        self.passing.push_back(Passing { stream, bytes, chunks, missing, arrives });
        taken + DRIVER
    }

    /// Sends a packet with this chunk. When it arrives, unless it is lost.
    fn put(
        &mut self,
        model: &LinkModel,
        chunk: u64,
        now: Duration,
        probes: u32,
        rng: &mut StdRng,
    ) -> Option<Duration> {
        self.packets += 1;
        let packet = self.packets;
        let mut is_lost = || model.loss > 0.0 && rng.random::<f64>() < model.loss;
        let (lost, ack_lost) = (is_lost(), is_lost());
        if lost {
            let due = now + model.probe_timeout() * (1 << probes.min(6));
            // Each packet sent puts off the probe.
            for other in self.lost.iter_mut().filter(|other| !other.seen) {
                other.due = due;
            }
            self.lost.push(Lost { chunk, packet, sent: now, probes, seen: false, due });
            return None;
        }
        let arrives = now + model.delay + model.jitter.mul_f64(rng.random::<f64>());
        if !ack_lost {
            let acked = arrives + model.delay;
            for other in &mut self.lost {
                let behind = packet - other.packet >= PACKET_THRESHOLD;
                let late = other.sent + model.round_trip() * 9 / 8;
                let noticed = if behind { acked } else { acked.max(late) };
                other.due = other.due.min(noticed);
                other.seen = true;
            }
        }
        Some(arrives)
    }

    /// When [`Self::resend`] is to be called, where that is earlier than what was said before.
    pub(super) fn next_resend(&mut self) -> Option<Duration> {
        let due = self.lost.iter().map(|lost| lost.due).min()?;
        let sooner = self.planned.is_none_or(|planned| due < planned);
        sooner.then(|| *self.planned.insert(due))
    }

    /// Sends again what is due.
    pub(super) fn resend(&mut self, model: &LinkModel, now: Duration, rng: &mut StdRng) {
        if self.planned.is_some_and(|planned| planned <= now) {
            self.planned = None;
        }
        while let Some(at) = self.lost.iter().position(|lost| lost.due <= now) {
            let lost = self.lost.remove(at);
            let probes = if lost.seen { 0 } else { lost.probes + 1 };
            let Some(arrives) = self.put(model, lost.chunk, now, probes, rng) else { continue };
            for message in self.passing.iter_mut().filter(|m| m.chunks.contains(&lost.chunk)) {
                message.missing -= 1;
                message.arrives = message.arrives.max(arrives);
            }
        }
    }

    /// The next message whose arrival is certain, and when it arrives.
    pub(super) fn next_arrival(&mut self) -> Option<(Duration, Bytes)> {
        let mut blocked = [false; GOSSIP_STREAMS];
        let free = self.passing.iter().position(|message| {
            let waits = &mut blocked[message.stream];
            *waits |= message.missing > 0;
            !*waits
        })?;
        let message = self.passing.remove(free)?;
        let last = &mut self.last_arrivals[message.stream];
        *last = message.arrives.max(*last);
        Some((*last, message.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const MS: Duration = Duration::from_millis(1);
    const LINK: LinkModel = LinkModel {
        delay: Duration::from_millis(10),
        jitter: Duration::ZERO,
        loss: 0.0,
        bandwidth: 0,
    };
    const LOSES: LinkModel = LinkModel { loss: 1.0, ..LINK };

    /// Loses what is sent first, to stream 0; then sends to the given streams, 1 ms apart. Arrivals in their order, in
    /// tenths of a ms: (stream, time).
    fn arrivals(streams: &[usize]) -> Vec<(u8, u128)> {
        let mut rng = StdRng::seed_from_u64(1);
        let mut way = Direction::default();
        let message = |stream: usize| (stream, Bytes::from(vec![stream as u8; 100]));
        way.send(&LOSES, message(0), MS, &mut rng);
        for (after, stream) in streams.iter().enumerate() {
            way.send(&LINK, message(*stream), MS * (after as u32 + 2), &mut rng);
        }
        let mut found = Vec::new();
        loop {
            while let Some((at, bytes)) = way.next_arrival() {
                found.push((bytes[0], at.as_micros() / 100));
            }
            way.planned = None;
            let Some(due) = way.next_resend() else { return found };
            way.resend(&LINK, due, &mut rng);
        }
    }

    #[test]
    fn a_lost_packet_holds_up_its_stream_only() {
        assert_eq!(arrivals(&[1, 0]), [(1, 120), (0, 335), (0, 335)]);
    }

    #[test]
    fn a_loss_is_noticed_by_time_or_by_three_later_packets() {
        // 9/8 of a round trip after it was sent.
        assert_eq!(arrivals(&[1, 1, 1]).last(), Some(&(0, 335)));
        // Nothing later: a probe after a round trip, 1 ms and the delay of acknowledgements.
        assert_eq!(arrivals(&[]), [(0, 570)]);
    }

    #[test]
    fn what_is_written_at_once_shares_a_packet() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut way = Direction::default();
        for stream in [3, 4, 3] {
            way.send(&LINK, (stream, Bytes::from(vec![0; 600])), MS, &mut rng);
        }
        assert_eq!(way.packets, 2);
        assert_eq!(std::iter::from_fn(|| way.next_arrival()).count(), 3);
    }
}
