//! UDP payloads that arrive in pieces ([`tasuki_proto::session`]).
//!
//! A peer can make this hold [`limits::INCOMPLETE_DATAGRAMS`] payloads and [`limits::INCOMPLETE_DATAGRAM_BYTES`] for each
//! session, for [`limits::INCOMPLETE_DATAGRAM_TIME`]. The oldest incomplete payload makes room.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tasuki_proto::limits;
use tasuki_proto::session::{FlowTag, Piece};

/// A payload of which pieces are missing.
#[derive(Debug)]
struct Incomplete {
    tag: FlowTag,
    message: u32,
    of: u8,
    parts: [Option<Bytes>; limits::DATAGRAM_PIECES],
    since: Instant,
}

impl Incomplete {
    fn bytes(&self) -> usize {
        self.parts.iter().flatten().map(Bytes::len).sum()
    }

    fn is_complete(&self) -> bool {
        self.parts.iter().flatten().count() == usize::from(self.of)
    }
}

/// Joins the pieces of one session's payloads.
#[derive(Debug, Default)]
pub struct Pieces {
    /// In the order of their first pieces.
    waiting: VecDeque<Incomplete>,
    bytes: usize,
    lost: u64,
}

impl Pieces {
    /// A piece arrived. Returns the payload when this was the last missing one.
    ///
    /// Pieces that contradict each other are dropped, and so are those that arrive twice.
    pub fn handle(
        &mut self,
        tag: FlowTag,
        piece: Piece,
        part: &[u8],
        now: Instant,
    ) -> Option<Bytes> {
        self.handle_timeout(now);
        // The pieces of a payload arrive close together, so it is most likely among the last.
        let known = self
            .waiting
            .iter()
            .rposition(|known| known.tag == tag && known.message == piece.message);
        let at = known.unwrap_or_else(|| {
            let (message, of) = (piece.message, piece.of);
            let parts = Default::default();
            self.waiting.push_back(Incomplete { tag, message, of, parts, since: now });
            self.waiting.len() - 1
        });
        let incomplete = self.waiting.get_mut(at)?;
        let slot = incomplete.parts.get_mut(usize::from(piece.index))?;
        if incomplete.of != piece.of || slot.is_some() {
            return None;
        }
        // A copy, since the part of a receive buffer would keep all of it.
        *slot = Some(Bytes::copy_from_slice(part));
        self.bytes += part.len();
        if incomplete.is_complete() {
            let complete = self.remove(at)?;
            let mut payload = BytesMut::with_capacity(complete.bytes());
            complete.parts.iter().flatten().for_each(|part| payload.extend_from_slice(part));
            return Some(payload.freeze());
        }
        while self.waiting.len() > limits::INCOMPLETE_DATAGRAMS
            || self.bytes > limits::INCOMPLETE_DATAGRAM_BYTES
        {
            self.lose_first();
        }
        None
    }

    /// Drops what has been incomplete for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.poll_timeout().is_some_and(|due| due <= now) {
            self.lose_first();
        }
    }

    /// When [`Pieces::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.front().map(|first| first.since + limits::INCOMPLETE_DATAGRAM_TIME)
    }

    /// How many payloads were dropped since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn lose_first(&mut self) {
        self.lost += u64::from(self.remove(0).is_some());
    }

    fn remove(&mut self, at: usize) -> Option<Incomplete> {
        let removed = self.waiting.remove(at)?;
        self.bytes -= removed.bytes();
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[allow(clippy::disallowed_methods, reason = "any point in time does")]
    fn start() -> Instant {
        Instant::now()
    }

    fn tag(flow: u32) -> FlowTag {
        FlowTag { flow, to_opener: false }
    }

    fn piece(message: u32, index: u8, of: u8) -> Piece {
        Piece { message, index, of }
    }

    #[test]
    fn pieces_are_joined_in_any_order_and_once() {
        let (mut pieces, now) = (Pieces::default(), start());
        assert_eq!(pieces.handle(tag(1), piece(1, 1, 2), b"b", now), None);
        assert_eq!(pieces.handle(tag(1), piece(1, 1, 2), b"x", now), None, "twice");
        assert_eq!(pieces.handle(tag(2), piece(1, 0, 2), b"y", now), None, "another flow");
        assert_eq!(pieces.handle(tag(1), piece(2, 0, 2), b"z", now), None, "another payload");
        assert_eq!(pieces.handle(tag(1), piece(1, 0, 3), b"w", now), None, "a contradiction");
        assert_eq!(pieces.handle(tag(1), piece(1, 0, 2), b"a", now).as_deref(), Some(&b"ab"[..]));
        assert_eq!(pieces.waiting.len(), 2);
        assert_eq!(pieces.bytes, 2);
    }

    #[test]
    fn what_stays_incomplete_is_dropped_and_counted() {
        let (mut pieces, now) = (Pieces::default(), start());
        assert_eq!(pieces.poll_timeout(), None);
        pieces.handle(tag(1), piece(1, 0, 2), b"a", now);
        let due = pieces.poll_timeout().unwrap();
        pieces.handle_timeout(due - Duration::from_millis(1));
        assert_eq!(pieces.take_lost(), 0);
        pieces.handle_timeout(due);
        assert_eq!((pieces.take_lost(), pieces.take_lost()), (1, 0));
        assert_eq!(pieces.handle(tag(1), piece(1, 1, 2), b"b", due), None, "too late");
    }

    #[test]
    fn the_oldest_makes_room() {
        let (mut pieces, now) = (Pieces::default(), start());
        for message in 0..=limits::INCOMPLETE_DATAGRAMS as u32 {
            assert_eq!(pieces.handle(tag(1), piece(message, 0, 2), b"a", now), None);
        }
        assert_eq!(pieces.take_lost(), 1);
        assert_eq!(pieces.handle(tag(1), piece(0, 1, 2), b"b", now), None, "it was dropped");
        assert!(pieces.handle(tag(1), piece(2, 1, 2), b"b", now).is_some());
    }

    proptest! {
        #[test]
        fn no_peer_makes_it_hold_more_than_the_limits(
            arriving in prop::collection::vec(
                (0..3_u32, 0..400_u32, 0..4_u8, 2..=4_u8, 0..20_000_usize, 0..50_u64), 0..600),
        ) {
            let mut pieces = Pieces::default();
            let (mut now, mut came, mut joined) = (start(), 0_usize, 0_usize);
            for (flow, message, index, of, length, wait) in arriving {
                now += Duration::from_millis(wait);
                came += length;
                let part = vec![0; length];
                if let Some(whole) = pieces.handle(tag(flow), piece(message, index % of, of), &part, now) {
                    joined += whole.len();
                }
                prop_assert!(pieces.waiting.len() <= limits::INCOMPLETE_DATAGRAMS);
                prop_assert!(pieces.bytes <= limits::INCOMPLETE_DATAGRAM_BYTES);
                let held: usize = pieces.waiting.iter().map(Incomplete::bytes).sum();
                prop_assert_eq!(pieces.bytes, held);
                prop_assert!(pieces.poll_timeout().is_none_or(|due| due > now));
            }
            prop_assert!(joined <= came);
            pieces.handle_timeout(now + limits::INCOMPLETE_DATAGRAM_TIME);
            prop_assert!(pieces.waiting.is_empty() && pieces.bytes == 0);
        }

        #[test]
        fn every_payload_arrives_as_it_was(payload in prop::collection::vec(any::<u8>(), 4..6_000), of in 2..=4_u8) {
            let mut pieces = Pieces::default();
            let now = start();
            let size = payload.len().div_ceil(usize::from(of));
            let parts: Vec<&[u8]> = payload.chunks(size).collect();
            let of = parts.len() as u8;
            let mut whole = None;
            for (index, part) in parts.iter().enumerate().rev() {
                whole = pieces.handle(tag(7), piece(9, index as u8, of), part, now);
            }
            prop_assert_eq!(whole.as_deref(), Some(&payload[..]));
        }
    }
}
