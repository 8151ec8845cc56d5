//! Relay and relay: the messages that spread the table (architecture 4, C5, C6), on the link's gossip streams
//! ([`crate::mesh::LinkStream::Gossip`], [`GossipMessage::stream`]).
//!
//! | kind | message | section 1 | section 2 |
//! |---|---|---|---|
//! | 1 | [`Rows`] | [`Span`] | records, verbatim, one after the other |
//! | 2 | [`Want`] | itself | |
//! | 3 | [`Watermarks`] | | 24 bytes an origin: origin, incarnation, sequence, big endian |
//! | 4 | [`Prune`] | itself | |
//!
//! A reader skips kinds that it does not know. Every message is smaller than
//! [`limits::MESH_MESSAGE_BYTES`]; writers split by [`limits::GOSSIP_CHUNK_BYTES`] and
//! [`limits::GOSSIP_WATERMARKS`].

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError, Envelope, SectionWriter};
use crate::id::{Incarnation, RelayId};
use crate::limits;
use crate::record::{Record, Version};

/// What a [`Rows`] message covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// Whose rows.
    pub origin: RelayId,
    /// Of which of its lives.
    pub incarnation: Incarnation,
    /// Rows with a greater sequence ...
    pub from: u64,
    /// ... and at most this one are in the message, all of them that are current.
    pub to: u64,
    /// The highest sequence that the sender has discarded at the end of a lifetime. Who is below it cannot hear of
    /// that deletion any more and must be told everything from 0.
    pub horizon: u64,
    /// The sender has nothing of this origin behind `to`.
    pub last: bool,
}

/// All current rows of one origin with a sequence in `(from, to]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// What it covers.
    pub span: Span,
    /// Records in ascending order of sequence, one after the other.
    pub records: Bytes,
}

impl Rows {
    /// The records, checked against the span.
    ///
    /// # Errors
    /// [`DecodeError`] when one is unsound, is of another origin or incarnation, lies outside the span, or does not
    /// follow its predecessor.
    pub fn parse(&self) -> Result<Vec<Record>, DecodeError> {
        let mut rest = self.records.clone();
        let mut records = Vec::new();
        let mut before = self.span.from;
        while !rest.is_empty() {
            let record = Record::take(&mut rest)?;
            let version = record.version();
            let fits = record.origin() == self.span.origin
                && version.incarnation == self.span.incarnation
                && version.sequence > before
                && version.sequence <= self.span.to;
            if !fits {
                return Err(DecodeError::Malformed);
            }
            before = version.sequence;
            records.push(record);
        }
        if self.span.from > self.span.to { Err(DecodeError::Malformed) } else { Ok(records) }
    }
}

/// Asks for an origin's rows behind a watermark, and for later ones as they come (graft).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Whose rows.
    pub origin: RelayId,
    /// The newest life of the origin that the sender knows; 0 when it knows none.
    pub incarnation: Incarnation,
    /// The sender has everything up to this sequence.
    pub watermark: u64,
}

/// What the sender has: for each origin everything up to a version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watermarks {
    /// At most [`limits::GOSSIP_WATERMARKS`].
    pub origins: Vec<(RelayId, Version)>,
}

/// Rows of this origin came twice: from here on watermarks are enough.
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
    Watermarks(Watermarks),
    /// No more rows of an origin, please.
    Prune(Prune),
}

const ROWS: u16 = 1;
const WANT: u16 = 2;
const WATERMARKS: u16 = 3;
const PRUNE: u16 = 4;
const WATERMARK_BYTES: usize = 24;

impl GossipMessage {
    /// Which of the link's gossip streams carries it. What is said of one origin stays in order; beyond that a packet
    /// that was lost holds up only the origins of its stream.
    pub fn stream(&self) -> usize {
        let origin = match self {
            Self::Rows(rows) => rows.span.origin,
            Self::Want(want) => want.origin,
            Self::Prune(prune) => prune.origin,
            Self::Watermarks(_) => return 0,
        };
        (origin.0 % limits::GOSSIP_STREAMS as u64) as usize
    }

    /// The message in its envelope.
    pub fn to_envelope(&self) -> Envelope {
        let (kind, body) = match self {
            Self::Rows(rows) => {
                (ROWS, SectionWriter::new().with(1, &rows.span).with_bytes(2, &rows.records))
            }
            Self::Want(want) => (WANT, SectionWriter::new().with(1, want)),
            Self::Watermarks(marks) => {
                let mut bytes = BytesMut::with_capacity(marks.origins.len() * WATERMARK_BYTES);
                for (origin, version) in &marks.origins {
                    for number in [origin.0, version.incarnation.0, version.sequence] {
                        bytes.extend_from_slice(&number.to_be_bytes());
                    }
                }
                (WATERMARKS, SectionWriter::new().with_bytes(2, &bytes))
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
        Ok(Some(match envelope.kind {
            ROWS => {
                let records = codec::section(body, 2)?.ok_or(DecodeError::Missing)?;
                Self::Rows(Rows {
                    span: codec::required(body, 1)?,
                    records: body.slice_ref(records),
                })
            }
            WANT => Self::Want(codec::required(body, 1)?),
            WATERMARKS => {
                let bytes = codec::section(body, 2)?.ok_or(DecodeError::Missing)?;
                Self::Watermarks(read_watermarks(bytes)?)
            }
            PRUNE => Self::Prune(codec::required(body, 1)?),
            _ => return Ok(None),
        }))
    }
}

fn read_watermarks(bytes: &[u8]) -> Result<Watermarks, DecodeError> {
    if !bytes.len().is_multiple_of(WATERMARK_BYTES) {
        return Err(DecodeError::Length);
    }
    if bytes.len() / WATERMARK_BYTES > limits::GOSSIP_WATERMARKS {
        return Err(DecodeError::TooLarge);
    }
    let number = |at: &[u8]| {
        let mut out = [0; 8];
        out.copy_from_slice(at);
        u64::from_be_bytes(out)
    };
    let origins = bytes
        .chunks_exact(WATERMARK_BYTES)
        .map(|one| {
            let incarnation = Incarnation(number(&one[8..16]));
            (RelayId(number(&one[..8])), Version { incarnation, sequence: number(&one[16..]) })
        })
        .collect();
    Ok(Watermarks { origins })
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

    fn rows(from: u64, to: u64, records: &[Record]) -> Rows {
        let origin = RelayId(7);
        let incarnation = Incarnation(2);
        Rows {
            span: Span { origin, incarnation, from, to, horizon: 1, last: true },
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
            GossipMessage::Watermarks(Watermarks {
                origins: vec![(
                    RelayId(5),
                    Version { incarnation: Incarnation(1), sequence: u64::MAX },
                )],
            }),
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
        let marks = Watermarks {
            origins: vec![(RelayId(1), Version { incarnation: Incarnation(2), sequence: 3 })],
        };
        assert_eq!(
            hex(&GossipMessage::Watermarks(marks)),
            "00030000001d0200000018000000000000000100000000000000020000000000000003"
        );
        assert_eq!(
            hex(&GossipMessage::Rows(rows(3, 9, &[]))),
            "000100000010010000000607020309010102".to_owned() + "00000000"
        );
        assert_eq!(
            hex(&GossipMessage::Prune(Prune { origin: RelayId(9) })),
            "000400000006010000000109"
        );
    }

    #[test]
    fn records_must_fit_their_span() {
        assert_eq!(rows(3, 9, &[record(7, 4), record(7, 9)]).parse().map(|r| r.len()), Ok(2));
        for bad in [
            rows(3, 9, &[record(8, 4)]),
            rows(3, 9, &[record(7, 3)]),
            rows(3, 9, &[record(7, 10)]),
            rows(3, 9, &[record(7, 5), record(7, 5)]),
            rows(9, 3, &[]),
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
