//! Which rows changed lately, for those who watch the table (the event stream of the status endpoint).
//!
//! Not a log of changes but a cursor over rows, as in gossip (architecture 4): each row stands once, at its latest
//! change. So a row that changes often takes one place, a watcher reads the row as it is, and one that comes back with
//! the number it saw last gets what changed since.
//!
//! Invariant: `key_by_seq` and `seq_by_key` hold the same pairs, at most [`limits::CHANGES`]; the oldest makes room, and
//! who asks for what lies before it is told that something was missed.

use std::collections::BTreeMap;

use tasuki_proto::{RelayId, SessionId, TerminalId, limits};

/// A row that is shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Terminal(TerminalId),
    Relay(RelayId),
    Session(SessionId),
}

/// Changed rows in the order of their latest change.
#[derive(Debug, Default)]
pub(super) struct Changes {
    key_by_seq: BTreeMap<u64, Key>,
    /// Ordered, since peers choose some keys: a hash that they know would let them choose ones that collide.
    seq_by_key: BTreeMap<Key, u64>,
    /// The number of the latest change.
    head: u64,
    /// What changed up to here is not known any longer.
    floor: u64,
}

impl Changes {
    /// A row came, changed or went.
    pub(super) fn push(&mut self, key: Key) {
        self.head += 1;
        if let Some(before) = self.seq_by_key.insert(key.clone(), self.head) {
            self.key_by_seq.remove(&before);
        } else if self.key_by_seq.len() == limits::CHANGES
            && let Some((oldest, key)) = self.key_by_seq.pop_first()
        {
            self.seq_by_key.remove(&key);
            self.floor = oldest;
        }
        self.key_by_seq.insert(self.head, key);
    }

    /// More changed at once than anybody should be told row by row.
    pub(super) fn push_many(&mut self) {
        self.head += 1;
        self.floor = self.head;
        self.key_by_seq.clear();
        self.seq_by_key.clear();
    }

    /// The number of the latest change.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// What changed after number `seq`, oldest first; `None` where that is not known.
    pub(super) fn after(&self, seq: u64) -> Option<impl Iterator<Item = (u64, &Key)>> {
        let known = (self.floor..=self.head).contains(&seq);
        known.then(|| self.key_by_seq.range(seq + 1..).map(|(seq, key)| (*seq, key)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key::Relay(RelayId(number))
    }

    fn after(changes: &Changes, seq: u64) -> Option<Vec<(u64, Key)>> {
        Some(changes.after(seq)?.map(|(seq, key)| (seq, key.clone())).collect())
    }

    #[test]
    fn a_row_stands_once_at_its_latest_change() {
        let mut changes = Changes::default();
        for number in [1, 2, 1, 3, 1] {
            changes.push(key(number));
        }
        assert_eq!(after(&changes, 0).unwrap(), [(2, key(2)), (4, key(3)), (5, key(1))]);
        assert_eq!(after(&changes, 4).unwrap(), [(5, key(1))]);
        assert_eq!(after(&changes, 5).unwrap(), []);
        assert_eq!(after(&changes, 6), None, "from another life");
    }

    #[test]
    fn the_oldest_makes_room_and_who_needs_it_is_told() {
        let mut changes = Changes::default();
        let most = limits::CHANGES as u64;
        for number in 0..most + 10 {
            changes.push(key(number));
        }
        assert_eq!(changes.key_by_seq.len(), limits::CHANGES);
        assert_eq!(changes.seq_by_key.len(), limits::CHANGES);
        assert_eq!(after(&changes, 9), None);
        assert_eq!(after(&changes, 10).unwrap().len(), limits::CHANGES);
        changes.push_many();
        assert_eq!(after(&changes, most + 10), None);
        assert_eq!(after(&changes, changes.head()).unwrap(), []);
        changes.push(key(1));
        assert_eq!(after(&changes, changes.head() - 1).unwrap().len(), 1);
    }
}
