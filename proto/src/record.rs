//! A record: the unit of the connection-info table and of gossip (architecture 4, C4 to C6).
//!
//! A record is kept, compared and passed on **verbatim**, so that a relay can carry what it does not understand.
//! Only this file knows its layout (big endian):
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format, 1 |
//! | 1 | 1 | flags: 1 signed, 2 tombstone |
//! | 2 | 2 | kind |
//! | 4 | 8 | origin |
//! | 12 | 8 | incarnation |
//! | 20 | 8 | sequence |
//! | 28 | 8 | wall-clock time of the update, ms since 1970, for people |
//! | 36 | 4 | scope, 0: whole mesh |
//! | 40 | 4 | lifetime in s after which a holder forgets it, 0: none |
//! | 44 | 1 | length of the key, k |
//! | 45 | 4 | length of the payload, p |
//! | 49 | k | key |
//! | 49+k | p | payload: sections |
//! | 49+k+p | 64 | Ed25519 signature, where signed |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;
use crate::id::{Incarnation, MeshId, RelayId};
use crate::limits;

/// When its origin wrote a record: strictly increasing, whatever the clock does (invariant 5).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Version {
    /// Which life of the origin.
    pub incarnation: Incarnation,
    /// Counts the origin's updates within one incarnation, from 1.
    pub sequence: u64,
}

/// What a record is about. A number that is not known here is carried all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKind(pub u16);

impl RecordKind {
    /// A relay's static part; key: empty; written by that relay.
    pub const RELAY: Self = Self(1);
    /// A relay's live links; key: empty.
    pub const LINKS: Self = Self(2);
    /// A relay's load and whether it drains; key: empty.
    pub const LOAD: Self = Self(3);
    /// A terminal's attachment to the relay that writes it; key: the terminal's id.
    pub const ATTACHMENT: Self = Self(4);
    /// A registered terminal; key: its id; written by the authority.
    pub const ACCOUNT: Self = Self(16);
    /// A relay that joined; key: its name; written by the authority.
    pub const RELAY_ACCOUNT: Self = Self(17);
    /// A revoked key; key: the key's fingerprint; written by the authority.
    pub const REVOCATION: Self = Self(18);
    /// The mesh's policy.
    pub const POLICY: Self = Self(19);
    /// A time-limited permission.
    pub const GRANT: Self = Self(20);
    /// The authority's high-water mark, so that withheld revocations show.
    pub const HEARTBEAT: Self = Self(21);
}

const FORMAT: u8 = 1;
const SIGNED: u8 = 1;
const TOMBSTONE: u8 = 2;
const HEAD: usize = 49;
const SIGNATURE: usize = 64;
/// The longest record, in bytes.
pub const LONGEST: usize = HEAD + u8::MAX as usize + limits::RECORD_PAYLOAD_BYTES + SIGNATURE;
const DOMAIN: &[u8] = b"tasuki record v1\0";

/// What goes into a new record.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// Who writes it.
    pub origin: RelayId,
    /// What it is about.
    pub kind: RecordKind,
    /// Which one of its kind and origin; at most 255 bytes.
    pub key: &'a [u8],
    /// Greater than that of every earlier record of the origin.
    pub version: Version,
    /// ms since 1970, for people only.
    pub wall_ms: u64,
    /// 0: the whole mesh; others are reserved for groups (M7).
    pub scope: u32,
    /// Seconds until a holder forgets it; 0: never.
    pub lifetime_secs: u32,
    /// Says that the row is gone.
    pub tombstone: bool,
    /// Sections.
    pub payload: &'a [u8],
}

/// A record, verbatim. It is sound in shape; what its payload means is for [`crate::rows`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Record(Bytes);

impl Record {
    /// Writes an unsigned record.
    ///
    /// # Panics
    /// When the key is longer than 255 bytes or the payload longer than [`limits::RECORD_PAYLOAD_BYTES`].
    pub fn new(draft: &Draft<'_>) -> Record {
        Record(Self::head_and_content(draft, 0).into())
    }

    /// Writes a record signed with `key` for `mesh`.
    ///
    /// # Panics
    /// As [`Record::new`].
    pub fn signed(
        draft: &Draft<'_>,
        mesh: &MeshId,
        key: &ring::signature::Ed25519KeyPair,
    ) -> Record {
        let mut bytes = Self::head_and_content(draft, SIGNED);
        let signature = key.sign(&Self::to_sign(mesh, &bytes));
        bytes.extend_from_slice(signature.as_ref());
        Record(bytes.into())
    }

    fn head_and_content(draft: &Draft<'_>, flags: u8) -> Vec<u8> {
        assert!(draft.key.len() <= usize::from(u8::MAX), "a record's key is too long");
        assert!(
            draft.payload.len() <= limits::RECORD_PAYLOAD_BYTES,
            "a record's payload is too long"
        );
        let mut out = Vec::with_capacity(HEAD + draft.key.len() + draft.payload.len() + SIGNATURE);
        out.push(FORMAT);
        out.push(flags | if draft.tombstone { TOMBSTONE } else { 0 });
        out.extend_from_slice(&draft.kind.0.to_be_bytes());
        out.extend_from_slice(&draft.origin.0.to_be_bytes());
        out.extend_from_slice(&draft.version.incarnation.0.to_be_bytes());
        out.extend_from_slice(&draft.version.sequence.to_be_bytes());
        out.extend_from_slice(&draft.wall_ms.to_be_bytes());
        out.extend_from_slice(&draft.scope.to_be_bytes());
        out.extend_from_slice(&draft.lifetime_secs.to_be_bytes());
        out.push(draft.key.len() as u8);
        out.extend_from_slice(&(draft.payload.len() as u32).to_be_bytes());
        out.extend_from_slice(draft.key);
        out.extend_from_slice(draft.payload);
        out
    }

    fn to_sign(mesh: &MeshId, bytes: &[u8]) -> Vec<u8> {
        [DOMAIN, &mesh.0, bytes].concat()
    }

    /// Takes bytes that are exactly one record.
    ///
    /// # Errors
    /// [`DecodeError`] when they are not sound in shape or over a limit.
    pub fn from_bytes(bytes: Bytes) -> Result<Record, DecodeError> {
        let length = RecordRef::measure(&bytes)?;
        if bytes.len() == length { Ok(Record(bytes)) } else { Err(DecodeError::Length) }
    }

    /// Takes one record off the front of `bytes`, sharing their memory.
    ///
    /// # Errors
    /// [`DecodeError`] when no sound record stands there.
    pub fn take(bytes: &mut Bytes) -> Result<Record, DecodeError> {
        let length = RecordRef::measure(bytes)?;
        if bytes.len() < length {
            return Err(DecodeError::Length);
        }
        Ok(Record(bytes.split_to(length)))
    }

    /// The record as it stands on the wire and in stores.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// The same record, borrowed.
    pub fn by_ref(&self) -> RecordRef<'_> {
        RecordRef(&self.0)
    }

    /// See [`RecordRef::origin`].
    pub fn origin(&self) -> RelayId {
        self.by_ref().origin()
    }

    /// See [`RecordRef::kind`].
    pub fn kind(&self) -> RecordKind {
        self.by_ref().kind()
    }

    /// See [`RecordRef::version`].
    pub fn version(&self) -> Version {
        self.by_ref().version()
    }

    /// See [`RecordRef::wall_ms`].
    pub fn wall_ms(&self) -> u64 {
        self.by_ref().wall_ms()
    }

    /// See [`RecordRef::scope`].
    pub fn scope(&self) -> u32 {
        self.by_ref().scope()
    }

    /// See [`RecordRef::lifetime_secs`].
    pub fn lifetime_secs(&self) -> u32 {
        self.by_ref().lifetime_secs()
    }

    /// See [`RecordRef::is_tombstone`].
    pub fn is_tombstone(&self) -> bool {
        self.by_ref().is_tombstone()
    }

    /// See [`RecordRef::key`].
    pub fn key(&self) -> &[u8] {
        self.by_ref().key()
    }

    /// See [`RecordRef::payload`].
    pub fn payload(&self) -> &[u8] {
        self.by_ref().payload()
    }

    /// See [`RecordRef::is_signed_by`].
    pub fn is_signed_by(&self, mesh: &MeshId, key: &[u8]) -> bool {
        self.by_ref().is_signed_by(mesh, key)
    }
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.by_ref().fmt(f)
    }
}

/// A record whose bytes lie elsewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a>(&'a [u8]);

impl<'a> RecordRef<'a> {
    /// The record that `bytes` begin with.
    ///
    /// # Errors
    /// [`DecodeError`] when no sound record stands there.
    pub fn first(bytes: &'a [u8]) -> Result<RecordRef<'a>, DecodeError> {
        let length = Self::measure(bytes)?;
        bytes.get(..length).map(RecordRef).ok_or(DecodeError::Length)
    }

    /// The record in memory of its own.
    pub fn to_record(self) -> Record {
        Record(Bytes::copy_from_slice(self.0))
    }

    /// How long the record is whose head stands at the front of `bytes`.
    fn measure(bytes: &[u8]) -> Result<usize, DecodeError> {
        let head = bytes.first_chunk::<HEAD>().ok_or(DecodeError::Length)?;
        if head[0] != FORMAT || head[1] & !(SIGNED | TOMBSTONE) != 0 {
            return Err(DecodeError::Malformed);
        }
        let payload = u32::from_be_bytes([head[45], head[46], head[47], head[48]]) as usize;
        if payload > limits::RECORD_PAYLOAD_BYTES {
            return Err(DecodeError::TooLarge);
        }
        let signature = if head[1] & SIGNED != 0 { SIGNATURE } else { 0 };
        Ok(HEAD + usize::from(head[44]) + payload + signature)
    }

    fn u64_at(self, at: usize) -> u64 {
        let mut out = [0; 8];
        out.copy_from_slice(&self.0[at..at + 8]);
        u64::from_be_bytes(out)
    }

    fn u32_at(self, at: usize) -> u32 {
        let mut out = [0; 4];
        out.copy_from_slice(&self.0[at..at + 4]);
        u32::from_be_bytes(out)
    }

    /// The record as it stands on the wire and in stores.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Who wrote it.
    pub fn origin(self) -> RelayId {
        RelayId(self.u64_at(4))
    }

    /// What it is about.
    pub fn kind(self) -> RecordKind {
        RecordKind(u16::from_be_bytes([self.0[2], self.0[3]]))
    }

    /// Its version.
    pub fn version(self) -> Version {
        Version { incarnation: Incarnation(self.u64_at(12)), sequence: self.u64_at(20) }
    }

    /// When it was written by its origin's clock, ms since 1970; for people only.
    pub fn wall_ms(self) -> u64 {
        self.u64_at(28)
    }

    /// Its scope; 0 is the whole mesh.
    pub fn scope(self) -> u32 {
        self.u32_at(36)
    }

    /// Seconds after which a holder forgets it; 0: never.
    pub fn lifetime_secs(self) -> u32 {
        self.u32_at(40)
    }

    /// Whether it says that the row is gone.
    pub fn is_tombstone(self) -> bool {
        self.0[1] & TOMBSTONE != 0
    }

    /// Which one of its kind and origin.
    pub fn key(self) -> &'a [u8] {
        &self.0[HEAD..HEAD + usize::from(self.0[44])]
    }

    /// Its payload.
    pub fn payload(self) -> &'a [u8] {
        let start = HEAD + usize::from(self.0[44]);
        &self.0[start..start + self.u32_at(45) as usize]
    }

    /// Whether it carries a valid signature for `mesh` under the Ed25519 public key `key` (32 bytes).
    pub fn is_signed_by(self, mesh: &MeshId, key: &[u8]) -> bool {
        if self.0[1] & SIGNED == 0 {
            return false;
        }
        let (content, signature) = self.0.split_at(self.0.len() - SIGNATURE);
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key)
            .verify(&Record::to_sign(mesh, content), signature)
            .is_ok()
    }
}

impl std::fmt::Debug for RecordRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let version = self.version();
        write!(
            f,
            "Record(origin {} kind {} key {} version {}.{}{})",
            self.origin(),
            self.kind().0,
            self.key().escape_ascii(),
            version.incarnation,
            version.sequence,
            if self.is_tombstone() { " tombstone" } else { "" },
        )
    }
}

impl Serialize for Record {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Record::from_bytes(bytes.into()).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use ring::signature::KeyPair;

    fn draft<'a>(key: &'a [u8], payload: &'a [u8]) -> Draft<'a> {
        Draft {
            origin: RelayId(7),
            kind: RecordKind::ATTACHMENT,
            key,
            version: Version { incarnation: Incarnation(3), sequence: 9 },
            wall_ms: 1_700_000_000_000,
            scope: 0,
            lifetime_secs: 60,
            tombstone: false,
            payload,
        }
    }

    proptest! {
        #[test]
        fn every_field_comes_back(key in prop::collection::vec(any::<u8>(), 0..=255),
                                  payload in prop::collection::vec(any::<u8>(), 0..2000)) {
            let record = Record::new(&draft(&key, &payload));
            let again = Record::from_bytes(record.as_bytes().clone()).unwrap();
            prop_assert_eq!(again.key(), &key[..]);
            prop_assert_eq!(again.payload(), &payload[..]);
            prop_assert_eq!(again.version().sequence, 9);
            prop_assert_eq!(again.lifetime_secs(), 60);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(record) = Record::from_bytes(bytes.into()) {
                let _ = (record.key(), record.payload(), record.version(), record.is_signed_by(&MeshId([0; 16]), &[0; 32]));
            }
        }
    }

    #[test]
    fn a_signature_binds_mesh_key_and_content() {
        let pair =
            |seed: u8| ring::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let (one, two) = (pair(1), pair(2));
        let mesh = MeshId([1; 16]);
        let record = Record::signed(&draft(b"k", b"p"), &mesh, &one);
        assert!(record.is_signed_by(&mesh, one.public_key().as_ref()));
        assert!(!record.is_signed_by(&mesh, two.public_key().as_ref()));
        assert!(!record.is_signed_by(&MeshId([2; 16]), one.public_key().as_ref()));
        let mut bytes = record.as_bytes().to_vec();
        bytes[HEAD] ^= 1;
        let forged = Record::from_bytes(bytes.into()).unwrap();
        assert!(!forged.is_signed_by(&mesh, one.public_key().as_ref()));
        assert!(!Record::new(&draft(b"k", b"p")).is_signed_by(&mesh, one.public_key().as_ref()));
    }
}
