//! Sessions that are over, or that never began here, so that what still arrives about them is understood.

use std::collections::{BTreeMap, VecDeque};

use tasuki_proto::SessionId;
use tasuki_proto::limits::{FINISHED_SESSIONS, MERGED_CALLS};

/// The last [`FINISHED_SESSIONS`] finished sessions, and which one took the place of those that were merged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Finished {
    by_session: BTreeMap<SessionId, Option<SessionId>>,
    oldest_first: VecDeque<SessionId>,
}

/// Where a merged call ended up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    /// In this session, of which no end is known.
    At(SessionId),
    /// In one that is over.
    Over,
}

impl Finished {
    /// Remembers that `session` is over and which one took its place. The first word on a session counts.
    pub(super) fn insert(&mut self, session: SessionId, instead: Option<SessionId>) {
        if self.by_session.contains_key(&session) {
            return;
        }
        if self.oldest_first.len() >= FINISHED_SESSIONS
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.by_session.remove(&oldest);
        }
        self.by_session.insert(session, instead);
        self.oldest_first.push_back(session);
    }

    /// Whether `session` is over.
    pub(super) fn contains(&self, session: &SessionId) -> bool {
        self.by_session.contains_key(session)
    }

    /// Whether `session` was merged into another.
    pub(super) fn is_merged(&self, session: &SessionId) -> bool {
        matches!(self.by_session.get(session), Some(Some(_)))
    }

    /// Follows the merges from `session` on.
    pub(super) fn trace(&self, session: SessionId) -> Trace {
        let mut at = session;
        for _ in 0..MERGED_CALLS {
            match self.by_session.get(&at) {
                None => return Trace::At(at),
                Some(None) => return Trace::Over,
                Some(Some(instead)) => at = *instead,
            }
        }
        Trace::Over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_proto::RelayId;

    fn id(nonce: u64) -> SessionId {
        SessionId { edge: RelayId(1), nonce }
    }

    #[test]
    fn merges_are_followed_and_a_circle_ends() {
        let mut finished = Finished::default();
        finished.insert(id(1), Some(id(2)));
        finished.insert(id(2), Some(id(3)));
        assert_eq!(finished.trace(id(1)), Trace::At(id(3)));
        assert!(finished.is_merged(&id(1)) && !finished.is_merged(&id(3)));
        finished.insert(id(3), None);
        assert_eq!(finished.trace(id(1)), Trace::Over);
        finished.insert(id(4), Some(id(5)));
        finished.insert(id(5), Some(id(4)));
        assert_eq!(finished.trace(id(4)), Trace::Over);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut finished = Finished::default();
        for nonce in 0..2 * FINISHED_SESSIONS as u64 {
            finished.insert(id(nonce), None);
        }
        assert_eq!(finished.by_session.len(), FINISHED_SESSIONS);
        assert!(!finished.contains(&id(0)));
        assert!(finished.contains(&id(2 * FINISHED_SESSIONS as u64 - 1)));
    }
}
