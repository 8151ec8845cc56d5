//! The congestion window of one path: Cubic, told which losses are congestion.
//!
//! Cubic takes every loss for a full queue. On lines that lose packets by chance, radio links for one, it is left with a
//! small part of the rate: 7 of 100 Mbit/s with a round trip of 50 ms and one loss in a thousand. So a loss reaches Cubic
//! only with another sign of congestion:
//!
//! - a **queue**: the round trips of the present round are all longer than the least of the path, by a thirty-second, half a
//!   millisecond, and the time of ten packets;
//! - **many** losses: more than 2 % of the latest packets (as BBRv3 has it, draft-ietf-ccwg-bbr, `BBR.LossThresh`), and
//!   more than chance makes of 2 %;
//! - a mark of ECN (RFC 3168), or persistent congestion (RFC 9002, section 7.6).
//!
//! Slow start ends when a queue begins (as HyStart++ does, RFC 9406), not when it overflows.
//!
//! **Near peers.** Where the least round trip is below [`NEAR`], a window much larger than what is under way does nothing
//! but fill socket buffers, and everything else of the two terminals waits behind it. There it is at most [`NEAR_BYTES`]
//! and what [`NEAR_RATE`] moves in the least round trip; unless round trips became longer than [`NOT_NEAR`] all the same.

use std::time::{Duration, Instant};

use quinn::congestion::{Controller, Cubic};
use quinn_proto::RttEstimator;

/// What is a queue besides a part of the least round trip.
const QUEUE: Duration = Duration::from_micros(500);
/// The part of the least round trip that is one.
const QUEUE_PART: u32 = 32;
/// Packets that arrive, or are acknowledged, in one go.
const BATCH: u64 = 10;
/// The share of lost packets above which a path is congested.
const LOST_PART: f64 = 0.02;
/// By how many standard deviations (of the number of lost packets) it has to be more.
const LOST_DEVIATIONS: f64 = 2.0;
/// Packets that the share is taken of: the older count for half each time that there are so many.
const LOST_OF: f64 = 1_024.0;
/// A round with fewer acknowledged packets tells nothing of a queue: one acknowledgement waits for ten of them.
const ROUND_LEAST: u32 = 20;
/// The queue that ends slow start: an eighth of the least round trip, in these bounds (RFC 9406, section 4.3).
const SLOW_START_QUEUE: (Duration, Duration) =
    (Duration::from_millis(4), Duration::from_millis(16));

/// Round trips below this are those of one machine, or of one network.
const NEAR: Duration = Duration::from_millis(4);
/// This long they are not with the bounded window, unless the line is slow or the path became another.
const NOT_NEAR: Duration = Duration::from_millis(20);
/// Bytes under way to a near peer, however near.
const NEAR_BYTES: u64 = 1024 * 1024;
/// And what this moves in the least round trip, bytes per millisecond: 10 Gbit/s.
const NEAR_RATE: u64 = 1_250_000;

/// From a packet to the first acknowledgement of one that was sent after it was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Round {
    begun: Instant,
    /// The least round trip.
    least: Option<Duration>,
    acks: u32,
}

impl Round {
    fn begin(now: Instant) -> Round {
        Round { begun: now, least: None, acks: 0 }
    }
}

/// The window of one path; see the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Window {
    cubic: Cubic,
    mtu: u64,
    /// The least round trip ever; where a path became longer, every loss counts, as with Cubic alone.
    least: Option<Duration>,
    round: Round,
    before: Round,
    /// Packets of late that arrived, and that were lost.
    arrived: f64,
    lost: f64,
}

impl Window {
    pub(super) fn new(cubic: Cubic, now: Instant, mtu: u16) -> Window {
        let round = Round::begin(now);
        let (mtu, least) = (u64::from(mtu), None);
        Window { cubic, mtu, least, round, before: round, arrived: 0.0, lost: 0.0 }
    }

    pub(super) fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.measure(now, sent);
        self.arrived += bytes as f64 / self.mtu as f64;
        // What is never sent because of the bound proves nothing of a larger window.
        let bound = self.near_bytes().is_some_and(|most| self.cubic.window() >= most);
        self.cubic.on_ack(now, sent, bytes, app_limited || bound, rtt);
    }

    fn measure(&mut self, now: Instant, sent: Instant) {
        let took = now.saturating_duration_since(sent);
        self.least = Some(self.least.map_or(took, |least| least.min(took)));
        if sent >= self.round.begun {
            self.before = self.round;
            self.round = Round::begin(now);
            if self.arrived + self.lost > LOST_OF {
                (self.arrived, self.lost) = (self.arrived / 2.0, self.lost / 2.0);
            }
            self.leave_slow_start(now);
        }
        let round = &mut self.round;
        round.least = Some(round.least.map_or(took, |least| least.min(took)));
        round.acks += 1;
    }

    /// A queue began in the round that ended.
    fn leave_slow_start(&mut self, now: Instant) {
        let slow = self.cubic.metrics().ssthresh.is_none_or(|at| self.cubic.window() < at);
        let (Some(least), Some(here)) = (self.least, self.before.least) else { return };
        let (from, to) = SLOW_START_QUEUE;
        if slow && self.before.acks >= ROUND_LEAST && here > least + (least / 8).clamp(from, to) {
            self.cubic.on_congestion_event(now, now, false, 0);
        }
    }

    pub(super) fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        persistent: bool,
        lost: u64,
    ) {
        self.lost += lost as f64 / self.mtu as f64;
        let many = self.loses_many();
        if many {
            // What was answered once is not answered again.
            (self.arrived, self.lost) = (0.0, 0.0);
        }
        if persistent || lost == 0 || many || self.has_queue() {
            self.cubic.on_congestion_event(now, sent, persistent, lost);
        }
    }

    fn has_queue(&self) -> bool {
        let (Some(least), Some(here)) = (self.least, self.recent()) else { return true };
        // Packets that one acknowledgement waits for, or that leave in one go, are no queue.
        let batch = (BATCH * self.mtu) as f64 / self.cubic.window().max(1) as f64;
        here > least + least / QUEUE_PART + least.mul_f64(batch.min(1.0)) + QUEUE
    }

    fn loses_many(&self) -> bool {
        let chance = (self.arrived + self.lost) * LOST_PART;
        self.lost > chance + LOST_DEVIATIONS * chance.max(1.0).sqrt()
    }

    /// The least round trip of late. An acknowledgement that waited for more packets says nothing, so a round counts alone
    /// only when it heard of some.
    fn recent(&self) -> Option<Duration> {
        let (here, before) = (self.round.least, self.before.least);
        if self.round.acks >= ROUND_LEAST { here } else { here.into_iter().chain(before).min() }
    }

    /// The bound of a near peer's window.
    fn near_bytes(&self) -> Option<u64> {
        let (least, here) = (self.least?, self.recent()?);
        let micros = u64::try_from(least.as_micros()).ok()?;
        (least < NEAR && here < NOT_NEAR).then(|| NEAR_BYTES + NEAR_RATE * micros / 1_000)
    }

    pub(super) fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu);
        self.cubic.on_mtu_update(mtu);
    }

    pub(super) fn window(&self) -> u64 {
        let window = self.cubic.window();
        self.near_bytes().map_or(window, |most| window.min(most))
    }

    pub(super) fn cubic(&self) -> &Cubic {
        &self.cubic
    }
}
