//! How a link treats messages: as one QUIC stream does, reliable and in order. Loss shows as delay of what was lost
//! and of everything behind it.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// Payload bytes of a packet.
const PACKET: usize = 1200;
/// QUIC waits this much longer than a round trip for an acknowledgement (RFC 9002, section 6.2: max_ack_delay).
const ACK_DELAY: Duration = Duration::from_millis(25);
/// From a message's end on the wire to the report that the network took it.
const DRIVER: Duration = Duration::from_micros(20);

/// The properties of a link, the same in both directions.
#[derive(Debug, Clone, Copy)]
pub struct LinkModel {
    /// One-way delay.
    pub delay: Duration,
    /// Up to this much more, at random for each message.
    pub jitter: Duration,
    /// The share of packets that are lost once, 0 to 1.
    pub loss: f64,
    /// Bytes per second; 0: without limit.
    pub bandwidth: u64,
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Direction {
    wire_free_at: Duration,
    /// The usual time between two messages, a moving average.
    gap: Duration,
    last_sent: Duration,
    last_arrival: Duration,
}

/// When the network has taken a message, and when it arrives.
pub(super) struct Passage {
    pub(super) taken: Duration,
    pub(super) arrives: Duration,
}

impl LinkModel {
    /// Sends `bytes` at `now`.
    pub(super) fn send(
        &self,
        direction: &mut Direction,
        bytes: usize,
        now: Duration,
        rng: &mut StdRng,
    ) -> Passage {
        direction.gap = (direction.gap * 7 + (now - direction.last_sent)) / 8;
        direction.last_sent = now;
        // A lost packet is noticed when three later ones are acknowledged, or after a probe time-out (RFC 9002, 6.1
        // and 6.2).
        let probe = self.delay / 2 + self.jitter * 4 + ACK_DELAY;
        let noticed = (direction.gap * 3).min(probe);
        let mut taken = now.max(direction.wire_free_at);
        if self.bandwidth > 0 {
            taken += Duration::from_secs_f64(bytes as f64 / self.bandwidth as f64);
        }
        direction.wire_free_at = taken;
        let mut arrives = taken + self.delay + self.jitter.mul_f64(rng.random::<f64>());
        for _ in 0..bytes.div_ceil(PACKET) {
            let mut packet = taken + self.delay;
            while self.loss > 0.0 && rng.random::<f64>() < self.loss {
                packet += self.delay * 2 + self.jitter + noticed;
            }
            arrives = arrives.max(packet);
        }
        arrives = arrives.max(direction.last_arrival);
        direction.last_arrival = arrives;
        Passage { taken: taken + DRIVER, arrives }
    }
}
