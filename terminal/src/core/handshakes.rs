//! How many end-to-end handshakes others may have begun here. One that was given up goes on costing memory for a while:
//! QUIC keeps its connection for three probe time-outs (RFC 9000, section 10.2). So it counts until then, or a peer that
//! calls, begins and ends without pause would cost far more than its sessions.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tasuki_proto::{TerminalId, limits};

/// How long a handshake that was given up still counts.
const REST: Duration = Duration::from_secs(3);

/// The handshakes that others began and did not finish.
#[derive(Debug, Default)]
pub struct Handshakes {
    by_peer: BTreeMap<TerminalId, usize>,
    all: usize,
    resting: VecDeque<(Instant, TerminalId)>,
}

impl Handshakes {
    /// Returns whether this peer may begin one more handshake, and counts it.
    pub fn begin(&mut self, peer: &TerminalId, now: Instant) -> bool {
        while let Some((until, _)) = self.resting.front()
            && *until <= now
        {
            if let Some((_, peer)) = self.resting.pop_front() {
                self.finish(&peer);
            }
        }
        let its = self.by_peer.get(peer).copied().unwrap_or_default();
        if its >= limits::UNPROVEN_HANDSHAKES_PER_PEER || self.all >= limits::UNPROVEN_HANDSHAKES {
            return false;
        }
        *self.by_peer.entry(peer.clone()).or_default() += 1;
        self.all += 1;
        true
    }

    /// A handshake proved its peer.
    pub fn finish(&mut self, peer: &TerminalId) {
        if let Some(its) = self.by_peer.get_mut(peer) {
            *its -= 1;
            self.all -= 1;
            if *its == 0 {
                self.by_peer.remove(peer);
            }
        }
    }

    /// A handshake ended before it proved its peer.
    pub fn give_up(&mut self, peer: TerminalId, now: Instant) {
        self.resting.push_back((now + REST, peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str) -> TerminalId {
        TerminalId::new(name).unwrap()
    }

    #[test]
    fn a_peer_that_gives_up_without_pause_has_its_share_and_others_have_theirs() {
        #[allow(clippy::disallowed_methods, reason = "only differences are used")]
        let start = Instant::now();
        let mut handshakes = Handshakes::default();
        let mut begun = 0;
        for n in 0..2_000 {
            let now = start + Duration::from_millis(n);
            if handshakes.begin(&peer("bad"), now) {
                begun += 1;
                handshakes.give_up(peer("bad"), now);
            }
        }
        assert_eq!(begun, limits::UNPROVEN_HANDSHAKES_PER_PEER);
        let now = start + Duration::from_secs(2);
        assert!(handshakes.begin(&peer("good"), now));
        handshakes.finish(&peer("good"));
        assert!(handshakes.begin(&peer("bad"), now + REST));
        for n in 0..2 * limits::UNPROVEN_HANDSHAKES {
            handshakes.begin(&peer(&format!("p{n}")), now + REST);
        }
        assert!(handshakes.all <= limits::UNPROVEN_HANDSHAKES);
    }

    #[test]
    fn handshakes_that_prove_their_peer_cost_no_share() {
        #[allow(clippy::disallowed_methods, reason = "only differences are used")]
        let now = Instant::now();
        let mut handshakes = Handshakes::default();
        for _ in 0..10 * limits::UNPROVEN_HANDSHAKES {
            assert!(handshakes.begin(&peer("a"), now));
            handshakes.finish(&peer("a"));
        }
        assert!(handshakes.by_peer.is_empty());
    }
}
