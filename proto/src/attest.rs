//! What a terminal signs at each log-in: which of its processes is attached to which relay, in which epoch and role.
//!
//! The relay keeps the signature in its row of the attachment, so that everybody can check it against the key in the
//! terminal's account, and hands it back when it says that another process took over. A relay cannot make one up: it
//! can only withhold one, or be late.

use serde::{Deserialize, Serialize};

use crate::id::{LoginEpoch, MeshId, RelayId, TerminalId};
use crate::identity::{NodeKey, PublicKey};
use crate::rows::AttachmentRole;

/// What is signed begins with this.
const DOMAIN: &[u8] = b"tasuki attachment v1\0";

/// Bytes of an Ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// An Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Signature([[u8; SIGNATURE_BYTES / 2]; 2]);

impl Signature {
    /// The signature with these bytes.
    pub fn new(bytes: [u8; SIGNATURE_BYTES]) -> Self {
        let mut halves = [[0; SIGNATURE_BYTES / 2]; 2];
        halves.as_flattened_mut().copy_from_slice(&bytes);
        Self(halves)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_flattened()
    }
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [first, second, ..] = self.0[0];
        write!(f, "Signature({first:02x}{second:02x}..)")
    }
}

/// A terminal's word about one of its attachments, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Presence {
    /// The relay that it is attached to.
    pub relay: RelayId,
    /// Which log-in; the highest is current.
    pub epoch: LoginEpoch,
    /// Which process of the agent, chosen at random at its start.
    pub instance: u64,
    /// Primary or standby.
    pub role: AttachmentRole,
}

impl Presence {
    /// Signs it as `terminal` of `mesh`, with the key of the terminal's certificate.
    pub fn sign(self, mesh: &MeshId, terminal: &TerminalId, key: &NodeKey) -> Attestation {
        let signature = key.signer().sign(&self.to_sign(mesh, terminal.as_str().as_bytes()));
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(signature.as_ref());
        Attestation { presence: self, signature: Signature::new(bytes) }
    }

    /// `DOMAIN`, the mesh's id, the length of the terminal's id (1 byte) and the id; relay, epoch and instance (8 bytes
    /// each, big-endian); the role (1 byte).
    fn to_sign(self, mesh: &MeshId, terminal: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(DOMAIN.len() + 16 + 1 + terminal.len() + 25);
        out.extend_from_slice(DOMAIN);
        out.extend_from_slice(&mesh.0);
        out.push(u8::try_from(terminal.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(terminal);
        for number in [self.relay.0, self.epoch.0, self.instance] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.push(match self.role {
            AttachmentRole::Primary => 0,
            AttachmentRole::Standby => 1,
        });
        out
    }
}

/// A terminal's word about one of its attachments, with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attestation {
    /// What the terminal says.
    pub presence: Presence,
    /// Its signature.
    pub signature: Signature,
}

impl Attestation {
    /// Returns whether `key` signed this as the terminal of `mesh` with the id `terminal`. Takes about 50 µs.
    pub fn is_signed_by(&self, mesh: &MeshId, terminal: &[u8], key: &PublicKey) -> bool {
        key.has_signed(&self.presence.to_sign(mesh, terminal), self.signature.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MESH: MeshId = MeshId([3; 16]);

    fn presence(relay: u64, epoch: u64, instance: u64, standby: bool) -> Presence {
        let role = if standby { AttachmentRole::Standby } else { AttachmentRole::Primary };
        Presence { relay: RelayId(relay), epoch: LoginEpoch(epoch), instance, role }
    }

    #[test]
    fn a_signature_holds_for_what_was_signed_and_nothing_else() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let (public, other) = (PublicKey(key.public()), PublicKey(other.public()));
        let said = presence(1, 2, 3, false);
        let signed = said.sign(&MESH, &TerminalId::new("a").unwrap(), &key);
        assert!(signed.is_signed_by(&MESH, b"a", &public));
        assert!(!signed.is_signed_by(&MESH, b"a", &other));
        assert!(!signed.is_signed_by(&MESH, b"b", &public));
        assert!(!signed.is_signed_by(&MeshId([4; 16]), b"a", &public));
        for presence in [
            Presence { relay: RelayId(9), ..said },
            Presence { epoch: LoginEpoch(9), ..said },
            Presence { instance: 9, ..said },
            Presence { role: AttachmentRole::Standby, ..said },
        ] {
            let forged = Attestation { presence, ..signed };
            assert!(!forged.is_signed_by(&MESH, b"a", &public), "{presence:?}");
        }
    }

    proptest! {
        #[test]
        fn no_two_statements_have_the_same_bytes(
            a in (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>(), "[a-z]{1,9}"),
            b in (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>(), "[a-z]{1,9}"),
        ) {
            let bytes = |(relay, epoch, instance, standby, id): &(u64, u64, u64, bool, String)| {
                presence(*relay, *epoch, *instance, *standby).to_sign(&MESH, id.as_bytes())
            };
            prop_assert_eq!(a == b, bytes(&a) == bytes(&b));
        }
    }
}
