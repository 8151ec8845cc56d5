//! Whether attachments are what their terminals signed, checked at first use and remembered.
//!
//! A signature costs about 50 µs, and a table holds hundreds of thousands of them. So one is checked when the row is used,
//! and the result is kept as one number: a keyed hash of everything that the check depended on, which are the terminal's
//! id, the key in its account, what it said and the signature. A row whose address or count changes has the same number;
//! one of another log-in, or after a change of the account's key, has another, and is checked anew.

use std::hash::{DefaultHasher, Hash, Hasher};

use rustc_hash::FxHashSet;
use tasuki_proto::attest::Attestation;
use tasuki_proto::identity::PublicKey;
use tasuki_proto::{LoginEpoch, MeshId, RelayId, limits};

/// The newest numbers that were used, in two generations: the older one goes when the younger is full.
#[derive(Debug)]
struct Memory {
    young: FxHashSet<u64>,
    old: FxHashSet<u64>,
    most: usize,
}

impl Memory {
    fn new(most: usize) -> Self {
        Self { young: FxHashSet::default(), old: FxHashSet::default(), most }
    }

    fn contains(&mut self, number: u64) -> bool {
        if self.young.contains(&number) {
            return true;
        }
        let is_old = self.old.remove(&number);
        if is_old {
            self.insert(number);
        }
        is_old
    }

    fn insert(&mut self, number: u64) {
        if self.young.len() >= self.most {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(number);
    }

    fn is_empty(&self) -> bool {
        self.young.is_empty() && self.old.is_empty()
    }
}

/// What is known of signatures.
#[derive(Debug)]
pub(super) struct Attested {
    own: RelayId,
    mesh: MeshId,
    /// Nobody else knows it, so nobody can make a row that has the number of another.
    secret: [u64; 2],
    genuine: Memory,
    forged: Memory,
    found_forged: u64,
}

/// The terminal whose attachments are judged, and the key in its account.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder<'a> {
    pub(super) id: &'a [u8],
    pub(super) key: PublicKey,
}

impl Attested {
    pub(super) fn new(own: RelayId, mesh: MeshId, secret: [u64; 2]) -> Self {
        let genuine = Memory::new(limits::ATTACHMENTS_CHECKED);
        let forged = Memory::new(limits::ATTACHMENTS_REFUTED);
        Self { own, mesh, secret, genuine, forged, found_forged: 0 }
    }

    /// How often a signature was found not to hold.
    pub(super) fn found_forged(&self) -> u64 {
        self.found_forged
    }

    fn number(&self, holder: &Holder<'_>, said: &Attestation) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.secret.hash(&mut hasher);
        hasher.write(&holder.key.0);
        hasher.write(said.signature.as_bytes());
        let presence = &said.presence;
        hasher.write_u64(presence.relay.0);
        hasher.write_u64(presence.epoch.0);
        hasher.write_u64(presence.instance);
        hasher.write_u8(presence.role as u8);
        hasher.write(holder.id);
        hasher.finish()
    }

    /// Returns whether the terminal signed this. Checks the signature unless that was done, as long as `checks` are left;
    /// then the answer is no. This relay's own rows were checked at the log-in.
    pub(super) fn is_genuine(
        &mut self,
        holder: &Holder<'_>,
        said: &Attestation,
        checks: &mut usize,
    ) -> bool {
        if said.presence.relay == self.own {
            return true;
        }
        if said.presence.epoch.0 > limits::EPOCH_MOST {
            return false;
        }
        let number = self.number(holder, said);
        if self.genuine.contains(number) {
            return true;
        }
        if self.forged.contains(number) || *checks == 0 {
            return false;
        }
        *checks -= 1;
        if said.is_signed_by(&self.mesh, holder.id, &holder.key) {
            self.genuine.insert(number);
            return true;
        }
        self.forged.insert(number);
        self.found_forged += 1;
        tracing::debug!(
            terminal = %holder.id.escape_ascii(),
            relay = %said.presence.relay,
            "an attachment that its terminal did not sign"
        );
        false
    }

    /// Returns whether reading this would have to check a signature first.
    pub(super) fn is_unchecked(&mut self, holder: &Holder<'_>, said: &Attestation) -> bool {
        if said.presence.relay == self.own {
            return false;
        }
        let number = self.number(holder, said);
        !self.genuine.contains(number) && !self.forged.contains(number)
    }

    /// Returns whether it is known that the terminal did not sign this; checks nothing.
    pub(super) fn is_refuted(&mut self, holder: &Holder<'_>, said: &Attestation) -> bool {
        !self.forged.is_empty() && {
            let number = self.number(holder, said);
            self.forged.contains(number)
        }
    }

    /// Whether anything was found forged and is remembered: only then is [`Attested::is_refuted`] worth asking.
    pub(super) fn has_refuted(&self) -> bool {
        !self.forged.is_empty()
    }
}

/// Leaves out log-ins whose epoch lies further than [`limits::EPOCH_JUMP`] above the next lower one: a relay would have
/// refused such a log-in.
pub(super) fn without_jumps<T>(logins: &mut Vec<T>, epoch: impl Fn(&T) -> LoginEpoch) {
    let mut epochs: Vec<u64> = logins.iter().map(|login| epoch(login).0).collect();
    epochs.sort_unstable();
    let jump = epochs.windows(2).find(|pair| pair[1] - pair[0] > limits::EPOCH_JUMP);
    if let Some(jump) = jump {
        let highest = jump[0];
        logins.retain(|login| epoch(login).0 <= highest);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tasuki_proto::TerminalId;
    use tasuki_proto::attest::Presence;
    use tasuki_proto::identity::NodeKey;
    use tasuki_proto::rows::AttachmentRole;

    use super::*;

    const MESH: MeshId = MeshId([1; 16]);

    fn said(key: &NodeKey, relay: u64, epoch: u64) -> Attestation {
        let role = AttachmentRole::Primary;
        let presence =
            Presence { relay: RelayId(relay), epoch: LoginEpoch(epoch), instance: 7, role };
        presence.sign(&MESH, &TerminalId::new("a").unwrap(), key)
    }

    #[test]
    fn a_signature_is_checked_once_and_again_under_another_key() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let mut attested = Attested::new(RelayId(1), MESH, [1, 2]);
        let holder = Holder { id: b"a", key: PublicKey(key.public()) };
        let good = said(&key, 2, 4);
        let mut checks = 1;
        assert!(attested.is_unchecked(&holder, &good));
        assert!(attested.is_genuine(&holder, &good, &mut checks));
        assert_eq!(checks, 0);
        assert!(attested.is_genuine(&holder, &good, &mut checks), "remembered");
        assert!(!attested.is_genuine(&holder, &said(&key, 2, 5), &mut checks), "no check left");
        // Another machine enrolled in its place.
        let holder = Holder { key: PublicKey(other.public()), ..holder };
        assert!(attested.is_unchecked(&holder, &good));
        checks = 5;
        assert!(!attested.is_genuine(&holder, &good, &mut checks));
        assert!(!attested.is_genuine(&holder, &good, &mut checks));
        assert_eq!((checks, attested.found_forged()), (4, 1), "a forged one is remembered too");
        assert!(attested.is_refuted(&holder, &good));
    }

    #[test]
    fn what_is_used_is_remembered_and_the_rest_makes_room() {
        let mut memory = Memory::new(4);
        for number in 0..100 {
            memory.insert(number);
            assert!(memory.contains(0), "used after each {number}");
            assert!(memory.young.len() + memory.old.len() <= 8);
        }
        assert!(!memory.contains(50));
    }

    proptest! {
        #[test]
        fn no_login_lies_far_above_the_others(
            epochs in prop::collection::vec(
                prop_oneof![0..50_u64, (1_u64 << 40)..(1 << 41), Just(u64::MAX)], 0..8
            )
        ) {
            let mut kept = epochs.clone();
            without_jumps(&mut kept, |epoch| LoginEpoch(*epoch));
            kept.sort_unstable();
            prop_assert_eq!(kept.first(), epochs.iter().min());
            prop_assert!(kept.windows(2).all(|pair| pair[1] - pair[0] <= limits::EPOCH_JUMP));
            let top = kept.last().copied().unwrap_or(0);
            let left_out = epochs.iter().filter(|epoch| !kept.contains(epoch));
            prop_assert!(left_out.into_iter().all(|epoch| *epoch > top));
        }
    }
}
