//! Whose signature a head must carry.

use std::collections::BTreeMap;

use tasuki_proto::gossip::Head;
use tasuki_proto::identity::PublicKey;
use tasuki_proto::{Incarnation, RelayId};

/// The keys of the origins: the authority's by term, a relay's as its account says.
#[derive(Debug, Default)]
pub(super) struct Keys {
    by_term: BTreeMap<Incarnation, PublicKey>,
    by_relay: BTreeMap<RelayId, PublicKey>,
}

impl Keys {
    /// Learns the key of a term of the authority. Of two issuers of one term, made by mistake, the first counts.
    pub(super) fn set_term(&mut self, term: Incarnation, key: PublicKey) {
        self.by_term.entry(term).or_insert(key);
    }

    /// Learns the key of a relay, or that it has none. Returns whether that changed.
    pub(super) fn set_relay(&mut self, relay: RelayId, key: Option<PublicKey>) -> bool {
        let before = match key {
            Some(key) => self.by_relay.insert(relay, key),
            None => self.by_relay.remove(&relay),
        };
        before != key
    }

    /// Returns whether the key of this term of the authority is known.
    pub(super) fn has_term(&self, term: Incarnation) -> bool {
        self.by_term.contains_key(&term)
    }

    /// The key that this head must be signed with.
    pub(super) fn of(&self, head: &Head) -> Option<&PublicKey> {
        if head.origin == RelayId::AUTHORITY {
            self.by_term.get(&head.version.incarnation)
        } else {
            self.by_relay.get(&head.origin)
        }
    }
}
