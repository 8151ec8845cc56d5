//! Relay and relay: the messages that spread the table (architecture 4, C5, C6), on the link's gossip streams
//! ([`crate::mesh::LinkStream::Gossip`], [`GossipMessage::stream`]).
//!
//! | kind | message | section 1 | section 2 | section 3 |
//! |---|---|---|---|---|
//! | 1 | [`Rows`] | [`Span`] | records, verbatim, one after the other | the [`Head`] they lead to |
//! | 2 | [`Want`] | itself | | |
//! | 3 | [`Heads`] | | | heads, one after the other |
//! | 4 | [`Prune`] | itself | | |
//!
//! A reader skips kinds that it does not know. Every message is smaller than
//! [`limits::MESH_MESSAGE_BYTES`]; writers split by [`limits::GOSSIP_CHUNK_BYTES`] and
//! [`limits::GOSSIP_HEADS`].

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, Envelope, SectionWriter};
use crate::id::{Incarnation, MeshId, RelayId};
use crate::identity::{PublicKey, Signer};
use crate::limits;
use crate::record::{Record, Version};

/// An origin's signed word on all its rows: what the set of current rows is at a version (ADR 38).
///
/// The digest covers every row, so rows can neither be changed nor added nor left out without the origin's key.
/// It stands on the wire in [`Head::BYTES`] bytes, big endian:
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 8 | origin |
/// | 8 | 8 | incarnation |
/// | 16 | 8 | sequence |
/// | 24 | 8 | horizon |
/// | 32 | 8 | number of rows |
/// | 40 | 8 | bytes of all rows |
/// | 48 | 32 | digest of the set of rows |
/// | 80 | 64 | Ed25519 signature (RFC 8032) |
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Whose rows.
    pub origin: RelayId,
    /// The version of the last row written.
    pub version: Version,
    /// Rows with a lifetime and a sequence up to this one are gone. A relay that is below it cannot learn of a deletion
    /// from later rows, and must be told everything from 0.
    pub horizon: u64,
    /// Current rows, tombstones behind the horizon included.
    pub rows: u64,
    /// The bytes of these rows.
    pub bytes: u64,
    /// The digest of the set of these rows.
    pub digest: [u8; 32],
    /// The origin's signature.
    pub signature: [u8; 64],
}

const HEAD_DOMAIN: &[u8] = b"tasuki head v1\0";
const HEAD_SIGNED: usize = 80;

impl Head {
    /// The length of a head on the wire.
    pub const BYTES: usize = HEAD_SIGNED + 64;

    /// Signs this head for `mesh`; the present signature is replaced.
    pub fn sign(&mut self, mesh: &MeshId, signer: &Signer) {
        self.signature = signer.sign(&self.to_sign(mesh));
    }

    /// Returns whether the signature is that of `key`.
    pub fn is_signed_by(&self, mesh: &MeshId, key: &PublicKey) -> bool {
        key.has_signed(&self.to_sign(mesh), &self.signature)
    }

    fn to_sign(self, mesh: &MeshId) -> Vec<u8> {
        [HEAD_DOMAIN, &mesh.0, &self.to_bytes()[..HEAD_SIGNED]].concat()
    }

    /// The head as it stands on the wire and in stores.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        let numbers = [
            self.origin.0,
            self.version.incarnation.0,
            self.version.sequence,
            self.horizon,
            self.rows,
            self.bytes,
        ];
        for (place, number) in out.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        out[48..HEAD_SIGNED].copy_from_slice(&self.digest);
        out[HEAD_SIGNED..].copy_from_slice(&self.signature);
        out
    }

    /// Reads a head.
    ///
    /// # Errors
    /// [`DecodeError`] when `bytes` is not as long as a head, or its horizon is behind its sequence.
    pub fn from_bytes(bytes: &[u8]) -> Result<Head, DecodeError> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| DecodeError::Length)?;
        let number = |at: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(out)
        };
        let mut head = Head {
            origin: RelayId(number(0)),
            version: Version { incarnation: Incarnation(number(8)), sequence: number(16) },
            horizon: number(24),
            rows: number(32),
            bytes: number(40),
            digest: [0; 32],
            signature: [0; 64],
        };
        head.digest.copy_from_slice(&bytes[48..HEAD_SIGNED]);
        head.signature.copy_from_slice(&bytes[HEAD_SIGNED..]);
        if head.horizon > head.version.sequence { Err(DecodeError::Malformed) } else { Ok(head) }
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Version { incarnation, sequence } = self.version;
        write!(f, "Head(origin {} version {incarnation}.{sequence}", self.origin)?;
        write!(f, " horizon {} rows {} bytes {})", self.horizon, self.rows, self.bytes)
    }
}

/// Which part of the rows that a head stands for is in a [`Rows`] message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Rows with a greater sequence ...
    pub from: u64,
    /// ... and at most this one are in the message, all of them that are current.
    pub to: u64,
}

/// All current rows of one origin with a sequence in `(from, to]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// What they lead to. `to` is its sequence in the last of several messages.
    pub head: Head,
    /// What the message covers.
    pub span: Span,
    /// Records in ascending order of sequence, one after the other.
    pub records: Bytes,
}

impl Rows {
    /// Returns whether nothing follows up to the head.
    pub fn is_last(&self) -> bool {
        self.span.to == self.head.version.sequence
    }

    /// Returns the records, checked against the span and the head.
    ///
    /// # Errors
    /// [`DecodeError`] when one is unsound, is of another origin or incarnation, lies outside the span, or does not
    /// follow its predecessor; and when the span ends behind the head, or a message that is not the last is shorter
    /// than writers make them.
    pub fn parse(&self) -> Result<Vec<Record>, DecodeError> {
        let Span { from, to } = self.span;
        let short = !self.is_last() && self.records.len() < limits::GOSSIP_CHUNK_BYTES;
        if from > to || to > self.head.version.sequence || short {
            return Err(DecodeError::Malformed);
        }
        let mut rest = self.records.clone();
        let mut records = Vec::new();
        let mut before = from;
        while !rest.is_empty() {
            let record = Record::take(&mut rest)?;
            let version = record.version();
            let fits = record.origin() == self.head.origin
                && version.incarnation == self.head.version.incarnation
                && version.sequence > before
                && version.sequence <= to;
            if !fits {
                return Err(DecodeError::Malformed);
            }
            before = version.sequence;
            records.push(record);
        }
        Ok(records)
    }
}

/// Asks for an origin's rows behind a watermark, and for later ones as they come (graft).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Whose rows.
    pub origin: RelayId,
    /// The newest life of the origin that the sender knows; 0 when it knows none.
    pub incarnation: Incarnation,
    /// The sender has everything up to this sequence; 0 asks for everything.
    pub watermark: u64,
}

/// What the sender has: for each origin the head up to which it has everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heads {
    /// At most [`limits::GOSSIP_HEADS`].
    pub heads: Vec<Head>,
}

/// Rows of this origin came twice: from here on heads are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prune {
    /// Whose rows.
    pub origin: RelayId,
}

/// A message of the gossip streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GossipMessage {
    /// Rows.
    Rows(Rows),
    /// A request for rows.
    Want(Want),
    /// What the sender has.
    Heads(Heads),
    /// No more rows of an origin, please.
    Prune(Prune),
}

const ROWS: u16 = 1;
const WANT: u16 = 2;
const HEADS: u16 = 3;
const PRUNE: u16 = 4;

impl GossipMessage {
    /// Which of the link's gossip streams carries it. What is said of one origin stays in order; beyond that a packet
    /// that was lost holds up only the origins of its stream.
    pub fn stream(&self) -> usize {
        let origin = match self {
            Self::Rows(rows) => rows.head.origin,
            Self::Want(want) => want.origin,
            Self::Prune(prune) => prune.origin,
            Self::Heads(_) => return 0,
        };
        (origin.0 % limits::GOSSIP_STREAMS as u64) as usize
    }

    /// The message in its envelope.
    pub fn to_envelope(&self) -> Envelope {
        let (kind, body) = match self {
            Self::Rows(rows) => (
                ROWS,
                SectionWriter::new()
                    .with(1, &rows.span)
                    .with_bytes(2, &rows.records)
                    .with_bytes(3, &rows.head.to_bytes()),
            ),
            Self::Want(want) => (WANT, SectionWriter::new().with(1, want)),
            Self::Heads(heads) => {
                let mut bytes = BytesMut::with_capacity(heads.heads.len() * Head::BYTES);
                for head in &heads.heads {
                    bytes.extend_from_slice(&head.to_bytes());
                }
                (HEADS, SectionWriter::new().with_bytes(3, &bytes))
            }
            Self::Prune(prune) => (PRUNE, SectionWriter::new().with(1, prune)),
        };
        Envelope { kind, body: body.finish() }
    }

    /// The message in an envelope; `None` when its kind is not known here. Records share the envelope's memory.
    ///
    /// # Errors
    /// [`DecodeError`] when the kind is known and the body is not sound.
    pub fn from_envelope(envelope: &Envelope) -> Result<Option<Self>, DecodeError> {
        let body = &envelope.body;
        let bytes = |section| codec::section(body, section)?.ok_or(DecodeError::Missing);
        Ok(Some(match envelope.kind {
            ROWS => Self::Rows(Rows {
                span: codec::required(body, 1)?,
                records: body.slice_ref(bytes(2)?),
                head: Head::from_bytes(bytes(3)?)?,
            }),
            WANT => Self::Want(codec::required(body, 1)?),
            HEADS => Self::Heads(read_heads(bytes(3)?)?),
            PRUNE => Self::Prune(codec::required(body, 1)?),
            _ => return Ok(None),
        }))
    }
}

fn read_heads(bytes: &[u8]) -> Result<Heads, DecodeError> {
    if !bytes.len().is_multiple_of(Head::BYTES) {
        return Err(DecodeError::Length);
    }
    if bytes.len() / Head::BYTES > limits::GOSSIP_HEADS {
        return Err(DecodeError::TooLarge);
    }
    let heads = bytes.chunks_exact(Head::BYTES).map(Head::from_bytes).collect::<Result<_, _>>()?;
    Ok(Heads { heads })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Draft, RecordKind};
    use proptest::prelude::*;

    fn record(origin: u64, sequence: u64) -> Record {
        Record::new(&Draft {
            origin: RelayId(origin),
            kind: RecordKind::LOAD,
            key: b"",
            version: Version { incarnation: Incarnation(2), sequence },
            wall_ms: 0,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload: b"p",
        })
    }

    fn head(sequence: u64) -> Head {
        Head {
            origin: RelayId(7),
            version: Version { incarnation: Incarnation(2), sequence },
            horizon: 1,
            rows: 2,
            bytes: 300,
            digest: [3; 32],
            signature: [4; 64],
        }
    }

    fn rows(from: u64, to: u64, records: &[Record]) -> Rows {
        Rows {
            head: head(to),
            span: Span { from, to },
            records: records.iter().flat_map(|r| r.as_bytes().to_vec()).collect::<Vec<_>>().into(),
        }
    }

    #[test]
    fn every_message_comes_back() {
        let messages = [
            GossipMessage::Rows(rows(3, 9, &[record(7, 4), record(7, 9)])),
            GossipMessage::Want(Want {
                origin: RelayId(1),
                incarnation: Incarnation(2),
                watermark: 3,
            }),
            GossipMessage::Heads(Heads { heads: vec![head(5), head(u64::MAX)] }),
            GossipMessage::Prune(Prune { origin: RelayId(9) }),
        ];
        for message in messages {
            assert_eq!(GossipMessage::from_envelope(&message.to_envelope()), Ok(Some(message)));
        }
        let unknown = Envelope { kind: 999, body: Bytes::from_static(b"later") };
        assert_eq!(GossipMessage::from_envelope(&unknown), Ok(None));
    }

    /// The wire format of protocol 1; a change needs a new protocol number (style, rule 20).
    #[test]
    fn golden_vectors() {
        let hex = |m: &GossipMessage| data_encoding::HEXLOWER.encode(&m.to_envelope().to_bytes());
        let want = Want { origin: RelayId(1), incarnation: Incarnation(2), watermark: 300 };
        assert_eq!(
            hex(&GossipMessage::Want(want)),
            "0002000000".to_owned() + "0a0100000005" + "0102fb2c01"
        );
        let signed = "0000000000000007".to_owned()
            + "0000000000000002"
            + "0000000000000009"
            + "0000000000000001"
            + "0000000000000002"
            + "000000000000012c"
            + &"03".repeat(32)
            + &"04".repeat(64);
        assert_eq!(
            hex(&GossipMessage::Heads(Heads { heads: vec![head(9)] })),
            "000300000095".to_owned() + "0300000090" + &signed
        );
        assert_eq!(
            hex(&GossipMessage::Rows(rows(3, 9, &[]))),
            "0001000000a1".to_owned()
                + "0100000002"
                + "0309"
                + "0200000000"
                + "0300000090"
                + &signed
        );
        assert_eq!(
            hex(&GossipMessage::Prune(Prune { origin: RelayId(9) })),
            "000400000006010000000109"
        );
    }

    #[test]
    fn a_signature_binds_mesh_key_and_every_field() {
        let signer = |seed: u8| Signer::from_seed(&[seed; 32]);
        let mesh = MeshId([1; 16]);
        let mut signed = head(9);
        signed.sign(&mesh, &signer(1));
        assert!(signed.is_signed_by(&mesh, &signer(1).public()));
        assert!(!signed.is_signed_by(&mesh, &signer(2).public()));
        assert!(!signed.is_signed_by(&MeshId([2; 16]), &signer(1).public()));
        for at in 0..Head::BYTES {
            let mut bytes = signed.to_bytes();
            bytes[at] ^= 1;
            let Ok(forged) = Head::from_bytes(&bytes) else { continue };
            assert!(!forged.is_signed_by(&mesh, &signer(1).public()), "byte {at}");
        }
    }

    #[test]
    fn a_horizon_behind_the_sequence_is_malformed() {
        let ahead = Head { horizon: 10, ..head(9) };
        assert_eq!(Head::from_bytes(&ahead.to_bytes()), Err(DecodeError::Malformed));
    }

    #[test]
    fn records_must_fit_their_span() {
        assert_eq!(rows(3, 9, &[record(7, 4), record(7, 9)]).parse().map(|r| r.len()), Ok(2));
        let beyond = Rows { span: Span { from: 3, to: 10 }, ..rows(3, 9, &[]) };
        let short = Rows { span: Span { from: 3, to: 8 }, ..rows(3, 9, &[record(7, 4)]) };
        for bad in [
            rows(3, 9, &[record(8, 4)]),
            rows(3, 9, &[record(7, 3)]),
            rows(3, 9, &[record(7, 10)]),
            rows(3, 9, &[record(7, 5), record(7, 5)]),
            rows(9, 3, &[]),
            beyond,
            short,
        ] {
            assert_eq!(bad.parse(), Err(DecodeError::Malformed));
        }
        let mut cut = rows(3, 9, &[record(7, 4)]);
        cut.records.truncate(20);
        assert_eq!(cut.parse(), Err(DecodeError::Length));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in 0_u16..6, body in prop::collection::vec(any::<u8>(), 0..200)) {
            let envelope = Envelope { kind, body: body.into() };
            if let Ok(Some(GossipMessage::Rows(rows))) = GossipMessage::from_envelope(&envelope) {
                let _ = rows.parse();
            }
        }
    }
}
