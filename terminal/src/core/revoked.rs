//! Which keys are revoked: what relays hand over counts only with the authority's signature.
//!
//! A record of this node's own term is checked with the key of its own issuer, one of a later term with that of the chain
//! that the relay showed, which leads to the same root. Where that chain is older, the record waits until this node's own
//! certificate is renewed. One of an earlier term is void: the issuer of that term was replaced.

use std::collections::HashSet;

use tasuki_proto::identity::KeyFingerprint;
use tasuki_proto::record::{Record, RecordKind};
use tasuki_proto::{Incarnation, MeshId, RelayId, limits};

/// The term of an issuer, and the key that signs its records.
pub type AuthorityKey = (Incarnation, [u8; 32]);

/// A relay handed over what the authority did not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forged;

/// The revoked keys that this terminal knows.
#[derive(Debug)]
pub struct Revoked {
    mesh: MeshId,
    keys: HashSet<KeyFingerprint>,
    /// Of a later term, whose key is not known.
    waiting: Vec<Record>,
    left_out: u64,
}

impl Revoked {
    /// None is known.
    pub fn new(mesh: MeshId) -> Self {
        Self { mesh, keys: HashSet::new(), waiting: Vec::new(), left_out: 0 }
    }

    /// All that are known.
    pub fn keys(&self) -> &HashSet<KeyFingerprint> {
        &self.keys
    }

    /// Revocations that were left out since there was no room.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Whether revocations of a later term wait for its key.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes what a relay handed over, and gives the keys that are new. `own` is this node's authority, `shown` the one of
    /// the relay's chain.
    ///
    /// # Errors
    /// [`Forged`] when one of the records is not the authority's; then none of them counts.
    pub fn take(
        &mut self,
        records: Vec<Record>,
        own: AuthorityKey,
        shown: impl FnOnce() -> Option<AuthorityKey>,
    ) -> Result<Vec<KeyFingerprint>, Forged> {
        let later = records.iter().any(|record| record.version().incarnation > own.0);
        let shown = if later { shown() } else { None };
        let (mut new, mut waiting) = (HashSet::new(), Vec::new());
        for record in records {
            let key = key_of(&record).ok_or(Forged)?;
            if record.is_tombstone() || self.keys.contains(&key) || new.contains(&key) {
                continue;
            }
            let term = record.version().incarnation;
            let known = [Some(own), shown].into_iter().flatten().find(|(of, _)| *of == term);
            match known {
                _ if term < own.0 => {}
                Some((_, public)) if record.is_signed_by(&self.mesh, &public) => {
                    new.insert(key);
                }
                Some(_) => return Err(Forged),
                None => waiting.push(record),
            }
        }
        for record in waiting {
            if self.waiting.contains(&record) {
            } else if self.waiting.len() < limits::REVOCATIONS_UNPROVEN {
                self.waiting.push(record);
            } else {
                self.left_out += 1;
            }
        }
        Ok(self.keep(new))
    }

    /// This node's certificate was renewed: checks what waited for the key of its term, and gives the keys that are new.
    pub fn handle_renewed(&mut self, own: AuthorityKey) -> Vec<KeyFingerprint> {
        let (due, later) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|record| record.version().incarnation <= own.0);
        self.waiting = later;
        let genuine = due.into_iter().filter(|record| {
            record.version().incarnation == own.0 && record.is_signed_by(&self.mesh, &own.1)
        });
        let new = genuine.filter_map(|record| key_of(&record)).collect();
        self.keep(new)
    }

    fn keep(&mut self, new: HashSet<KeyFingerprint>) -> Vec<KeyFingerprint> {
        let room = limits::REVOKED_KEYS_KEPT.saturating_sub(self.keys.len());
        self.left_out += new.len().saturating_sub(room) as u64;
        let kept: Vec<_> =
            new.into_iter().filter(|key| !self.keys.contains(key)).take(room).collect();
        self.keys.extend(&kept);
        kept
    }
}

/// The revoked key, where this can be a revocation.
fn key_of(record: &Record) -> Option<KeyFingerprint> {
    let of_authority =
        record.origin() == RelayId::AUTHORITY && record.kind() == RecordKind::REVOCATION;
    let key = <[u8; 32]>::try_from(record.key()).ok()?;
    of_authority.then_some(KeyFingerprint(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tasuki_proto::identity::NodeKey;
    use tasuki_proto::record::{Draft, Version};

    use super::*;

    const MESH: MeshId = MeshId([1; 16]);

    fn revocation(term: u64, key: u8, signer: &NodeKey) -> Record {
        let draft = Draft {
            origin: RelayId::AUTHORITY,
            kind: RecordKind::REVOCATION,
            key: &[key; 32],
            version: Version { incarnation: Incarnation(term), sequence: 1 },
            wall_ms: 1,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload: b"",
        };
        Record::signed(&draft, &MESH, signer.signer())
    }

    fn authority(term: u64, key: &NodeKey) -> AuthorityKey {
        (Incarnation(term), key.public())
    }

    fn keys(revoked: &Revoked) -> Vec<u8> {
        let mut keys: Vec<u8> = revoked.keys().iter().map(|key| key.0[0]).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn only_what_the_authority_signed_counts_and_one_forged_record_voids_its_list() {
        let (issuer, enemy) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let own = authority(2, &issuer);
        let mut revoked = Revoked::new(MESH);
        let new = revoked.take(vec![revocation(2, 7, &issuer)], own, || None).unwrap();
        assert_eq!(new, [KeyFingerprint([7; 32])]);
        let list = vec![revocation(2, 8, &issuer), revocation(2, 9, &enemy)];
        assert_eq!(revoked.take(list, own, || None), Err(Forged));
        assert_eq!(keys(&revoked), [7]);
        // What is known is not checked again, and is not told again.
        assert_eq!(revoked.take(vec![revocation(2, 7, &enemy)], own, || None), Ok(vec![]));
        // A row of another kind is no revocation.
        let other = Record::from_bytes(revocation(2, 5, &issuer).as_bytes().clone()).unwrap();
        let mut bytes = other.as_bytes().to_vec();
        bytes[3] = 16;
        let other = Record::from_bytes(bytes.into()).unwrap();
        assert_eq!(revoked.take(vec![other], own, || None), Err(Forged));
    }

    #[test]
    fn a_later_term_counts_by_the_relays_chain_or_waits_and_an_earlier_one_is_void() {
        let [old, issuer, next] = [1, 2, 3].map(|_| NodeKey::generate().unwrap());
        let own = authority(2, &issuer);
        let mut revoked = Revoked::new(MESH);
        let list = |key| vec![revocation(1, key, &old), revocation(3, key + 1, &next)];
        assert_eq!(revoked.take(list(10), own, || Some(authority(1, &old))), Ok(vec![]));
        assert!(revoked.is_waiting());
        let shown = || Some(authority(3, &next));
        assert_eq!(revoked.take(list(20), own, shown).unwrap(), [KeyFingerprint([21; 32])]);
        let new = revoked.handle_renewed(authority(3, &next));
        assert_eq!(new, [KeyFingerprint([11; 32])]);
        assert!(!revoked.is_waiting());
        assert_eq!(keys(&revoked), [11, 21]);
    }

    #[test]
    fn what_waits_is_bounded_and_counted() {
        let next = NodeKey::generate().unwrap();
        let own = authority(1, &next);
        let mut revoked = Revoked::new(MESH);
        for term in 0..limits::REVOCATIONS_UNPROVEN as u64 + 5 {
            revoked.take(vec![revocation(2 + term, 1, &next)], own, || None).unwrap();
        }
        assert_eq!(revoked.waiting.len(), limits::REVOCATIONS_UNPROVEN);
        assert_eq!(revoked.left_out(), 5);
    }

    proptest! {
        #[test]
        fn no_list_of_an_enemy_revokes_anything(
            rows in prop::collection::vec((0..5_u64, any::<u8>()), 0..6),
            shows in proptest::option::of(0..5_u64),
        ) {
            let (issuer, enemy) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
            let mut revoked = Revoked::new(MESH);
            let rows = rows.iter().map(|(term, key)| revocation(*term, *key, &enemy)).collect();
            // Only the root can certify an issuer, so the enemy shows a chain with another's key.
            let shown = || shows.map(|term| authority(term, &issuer));
            let _ = revoked.take(rows, authority(2, &issuer), shown);
            prop_assert!(revoked.keys().is_empty());
            prop_assert!(revoked.handle_renewed(authority(4, &issuer)).is_empty());
        }
    }
}
