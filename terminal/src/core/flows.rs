//! Which flow of datagrams makes room for a new one when a session has no place left.
//!
//! A flow that looks like a DNS query, few questions and as many answers, is most likely over: it goes first, however
//! short a time ago that was. Next is a flow that has been idle for a while. Of the flows of a kind the one that is idle
//! for longest goes. A flow that is in use stays: then the new one finds no place.

use std::cmp::Reverse;
use std::time::Duration;

use tasuki_proto::limits;

/// A flow with more questions than this is a conversation, which goes on after an answer.
const QUESTIONS: u64 = 4;
/// A question that got one answer gets the others within this time: a resolver that answers A may still look for AAAA.
const FURTHER_ANSWERS: Duration = Duration::from_secs(2);

/// How a flow has been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Since its last datagram.
    pub idle: Duration,
    /// Datagrams from its opener to the service.
    pub asked: u64,
    /// Datagrams from the service to its opener.
    pub answered: u64,
}

impl Use {
    /// How soon the flow makes room: less is sooner; `None` when it stays.
    fn rank(self) -> Option<u8> {
        let is_query = self.answered > 0 && self.asked <= QUESTIONS;
        if is_query && self.answered >= self.asked {
            Some(0)
        } else if self.idle >= limits::FLOW_MAKES_ROOM || (is_query && self.idle >= FURTHER_ANSWERS)
        {
            Some(1)
        } else {
            None
        }
    }
}

/// The flow that makes room; `None` when all are in use.
pub fn makes_room<K>(flows: impl Iterator<Item = (K, Use)>) -> Option<K> {
    flows
        .filter_map(|(flow, used)| Some((flow, (used.rank()?, Reverse(used.idle)))))
        .min_by_key(|(_, order)| *order)
        .map(|(flow, _)| flow)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn used(idle_ms: u64, asked: u64, answered: u64) -> Use {
        Use { idle: Duration::from_millis(idle_ms), asked, answered }
    }

    fn first(flows: &[Use]) -> Option<usize> {
        makes_room(flows.iter().copied().enumerate())
    }

    #[test]
    fn an_answered_query_goes_before_an_idle_conversation() {
        assert_eq!(first(&[used(60_000, 500, 500), used(1, 1, 1)]), Some(1));
        assert_eq!(first(&[used(60_000, 500, 500), used(11_000, 9, 0)]), Some(0));
    }

    #[test]
    fn the_oldest_of_a_kind_goes_first() {
        assert_eq!(first(&[used(5, 1, 1), used(7, 2, 2), used(6, 1, 1)]), Some(1));
        assert_eq!(first(&[used(20_000, 9, 9), used(30_000, 9, 0)]), Some(1));
    }

    #[test]
    fn a_flow_in_use_stays() {
        assert_eq!(first(&[used(9_999, 5, 5), used(0, 1, 0), used(0, 0, 0)]), None);
        // The second of two questions is not answered yet.
        assert_eq!(first(&[used(1_999, 2, 1)]), None);
        assert_eq!(first(&[used(2_000, 2, 1)]), Some(0));
        // A service that speaks without being asked.
        assert_eq!(first(&[used(0, 0, 3)]), Some(0));
        assert_eq!(first(&[]), None);
    }

    proptest! {
        #[test]
        fn whatever_goes_is_answered_or_idle(
            flows in prop::collection::vec((0..200_000_u64, 0..10_u64, 0..10_u64), 0..50),
        ) {
            let flows: Vec<Use> = flows.into_iter().map(|(i, q, a)| used(i, q, a)).collect();
            match first(&flows) {
                None => prop_assert!(flows.iter().all(|flow| flow.idle < limits::FLOW_MAKES_ROOM)),
                Some(at) => {
                    let gone = flows[at];
                    prop_assert!(gone.answered > 0 || gone.idle >= limits::FLOW_MAKES_ROOM);
                    let same = flows.iter().filter(|flow| flow.rank() == gone.rank());
                    prop_assert_eq!(same.map(|flow| flow.idle).max(), Some(gone.idle));
                }
            }
        }
    }
}
