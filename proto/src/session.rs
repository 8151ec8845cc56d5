//! Terminal and terminal, end to end: what the streams and datagrams of a session carry.
//!
//! A session is symmetrical: whoever called, both sides open bidirectional streams, and the side that serves a
//! stream authorises it by (proven peer, service), each one anew. Two calls that meet become one session (D3), so
//! what the call named gives no right.
//!
//! ```text
//! opener                            server
//!    | Begin                           |
//!    | raw bytes, without waiting      |
//!    |-------------------------------> |
//!    |              Opened, raw bytes  |   or Refused, and the stream ends
//!    | <-------------------------------|
//! ```
//!
//! The opener's first bytes travel right behind [`Begin`], so a new TCP connection through a running session
//! costs no round trip of its own. A `Begin` of an unknown kind is refused with `bad-request`: a stream whose
//! purpose is unknown cannot be skipped.
//!
//! **Bytes.** The end of a direction is the end (FIN) of the stream's direction; a TCP reset is a stream reset.
//! A side that stops reading also resets or ends what it sends.
//!
//! **Lanes.** Who sends a direction of bytes that its stream's window holds back opens lanes, streams that begin with
//! [`OpenLane`]. Each is answered with [`Answer::Opened`] once the receiver holds it. After all answers the sender may end
//! the direction of the pipe's own stream at any time; its bytes go on in the lanes, 65,536 in each in turn from lane 0,
//! and are over where a lane ends. Lanes that are not used end empty.
//!
//! **Pauses.** Who cannot hand on what comes on a pipe opens a stream that begins with [`PausePipe`]. The other side
//! resets its direction of the stream with code 2, since there may be no window for an answer, and writes nothing more to
//! the pipe or its lanes until the stream ends.
//!
//! **Flow.** The stream is the flow's life line: it carries nothing behind the answer, and its end is the flow's
//! end. The packets are QUIC datagrams (RFC 9221): a variable-length integer (RFC 9000, section 16), then the
//! payload. The integer is the flow's number times two, plus one from the server to the opener. Flow numbers
//! are the opener's; both sides of a session may use the same. Datagrams may overtake the `Begin` and are kept
//! for it, a few.
//!
//! **Pieces.** A payload that does not fit into one datagram travels in 2 to [`limits::DATAGRAM_PIECES`] of them. The
//! integer of a piece takes eight bytes, however small its value is: the 30 bits of the flow and its direction, then the
//! message's number (24 bits), the piece's place from 0 (4 bits) and the number of pieces (4 bits). The sender counts
//! its messages, so that two of a flow which are under way at once have different numbers. The receiver joins the pieces
//! when it has all of them, and drops those of a message that stays incomplete.
//!
//! **Ping.** After the answer every byte comes back as it was.
//!
//! **Files.** A file is cut into [`segment_bytes`] long segments. The control stream says [`Offer`]; the answer
//! [`Have`] lists the hash of each segment that the receiver still has from an earlier try. Each segment that it
//! does not have travels on a stream of its own ([`Part`]), several at once, since one stream's window is
//! bounded: exactly the segment's bytes, then their SHA-256. [`Answer::Opened`] says that it was written and
//! its hash was right. Then the control stream says [`Finish`] with the SHA-256 over all segments' hashes; the
//! receiver checks it against what it holds, gives the file its name, and answers [`Stored`].

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::codec::Envelope;
use crate::id::{Label, RelayName, ServiceName};
use crate::limits;
use crate::path::NatKind;
use crate::refusal::Refusal;
use crate::text::shown;

/// The service that measures round trips. Open to every terminal of the mesh unless a rule narrows it: it shows
/// no more than the table does.
pub const PING: &str = "ping";
/// The service that takes files. Closed unless a rule opens it.
pub const INBOX: &str = "inbox";

/// Bytes to and from a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenBytes {
    /// Which.
    pub service: ServiceName,
}

/// A flow of datagrams to and from a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFlow {
    /// Which.
    pub service: ServiceName,
    /// The opener's number for it, at most [`MAX_FLOW`]; not used by another live flow of the opener.
    pub flow: u32,
}

/// Echo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPing {}

/// A file is offered to the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Chosen by the sender; names the transfer in this session.
    pub transfer: u64,
    /// The folder below the inbox, `/` between its parts; empty: the inbox itself.
    pub folder: String,
    /// The file's name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits (the lowest nine).
    pub mode: u32,
    /// Whether a file of that name may be replaced.
    pub overwrite: bool,
}

/// One segment of an offered file: its bytes and their SHA-256 follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Of which transfer.
    pub transfer: u64,
    /// Which segment, from 0.
    pub index: u32,
}

/// One more stream for the opener's direction of a pipe of bytes (**Lanes**).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenLane {
    /// The number of the pipe's own QUIC stream (RFC 9000, section 2.1).
    pub pipe: u64,
    /// Which lane, from 0.
    pub lane: u8,
    /// How many there will be.
    pub lanes: u8,
}

/// The opener cannot hand on what comes on a pipe of bytes: a pause, until the stream ends (**Pauses**).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausePipe {
    /// The number of the pipe's own QUIC stream (RFC 9000, section 2.1).
    pub pipe: u64,
}

/// The sender has sent everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// SHA-256 over the SHA-256 of every segment in order.
    pub root: [u8; 32],
}

/// The stream goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {}

/// What the receiver has of an offered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// SHA-256 of each segment from the front, as far as it has any; a segment whose hash differs from the
    /// sender's is sent again.
    pub hashes: Vec<[u8; 32]>,
}

/// The file is in the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its path below the inbox.
    pub path: String,
}

crate::messages! {
    /// The first message of a stream: what it is for.
    pub enum Begin {
        /// Bytes to a service.
        1 => Bytes(OpenBytes),
        /// Datagrams to a service.
        2 => Flow(OpenFlow),
        /// Echo.
        3 => Ping(OpenPing),
        /// A file for the inbox.
        4 => Offer(Offer),
        /// A segment of it.
        5 => Part(Part),
        /// One more stream for a pipe of bytes.
        6 => Lane(OpenLane),
        /// Nothing more on a pipe of bytes while this stream is open.
        7 => Pause(PausePipe),
    }
}

crate::messages! {
    /// What the opener says later on the control stream of a transfer.
    pub enum Closing {
        /// Everything was sent.
        1 => Finish(Finish),
    }
}

/// Whether the sender uses the session (architecture decision 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// Whether it does.
    pub using: bool,
}

/// Where the sender may be reached directly (D1, D2): known to the ends of the session alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Direct frames to the sender carry it.
    pub label: Label,
    /// The addresses, at most [`limits::CANDIDATES`]; none: the sender takes no direct path.
    pub addresses: Vec<SocketAddr>,
}

/// The relays that the sender is attached to, so that the caller knows what paths are worth asking for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachments {
    /// Their names, the primary first; at most two count.
    pub relays: Vec<RelayName>,
}

/// What the sender knows of its own NAT, for what is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nat {
    /// How it maps.
    pub kind: NatKind,
}

crate::messages! {
    /// What the ends of a session tell each other about it, each on one unidirectional stream.
    pub enum Word {
        /// Whether the sender uses the session.
        1 => Use(Use),
        /// Where the sender may be reached directly.
        2 => Addresses(Addresses),
        /// Where the sender is attached.
        3 => Attachments(Attachments),
        /// What the sender is behind.
        4 => Nat(Nat),
    }
}

crate::messages! {
    /// The server's answers.
    pub enum Answer {
        /// It goes on, raw bytes follow; or the segment is written.
        1 => Opened(Opened),
        /// It does not; the stream ends.
        2 => Refused(Refusal),
        /// To an offer.
        3 => Have(Have),
        /// To the end of a transfer.
        4 => Stored(Stored),
    }
}

impl Begin {
    /// The service by which the stream is authorised; `None` for a segment, a lane or a pause, which belongs to an
    /// authorised offer or stream of the same session.
    pub fn service(&self) -> Option<ServiceName> {
        match self {
            Begin::Bytes(open) => Some(open.service.clone()),
            Begin::Flow(open) => Some(open.service.clone()),
            Begin::Ping(_) => ServiceName::new(PING).ok(),
            Begin::Offer(_) => ServiceName::new(INBOX).ok(),
            Begin::Part(_) | Begin::Lane(_) | Begin::Pause(_) => None,
        }
    }

    /// The message as it stands on the stream.
    pub fn to_bytes(&self) -> Bytes {
        self.to_envelope().to_bytes()
    }
}

impl Answer {
    /// The message as it stands on the stream. A refusal's detail is cut to what fits.
    pub fn to_bytes(&self) -> Bytes {
        let envelope = match self {
            Answer::Refused(refusal) => {
                let detail = refusal.detail.chars().take(REFUSAL_DETAIL_CHARS).collect::<String>();
                Answer::Refused(Refusal::new(refusal.code, detail)).to_envelope()
            }
            other => other.to_envelope(),
        };
        envelope.to_bytes()
    }

    /// The answer in an envelope.
    ///
    /// # Errors
    /// `bad-request` when it cannot be understood.
    pub fn from_peer(envelope: &Envelope) -> Result<Answer, Refusal> {
        match Answer::from_envelope(envelope) {
            Ok(Some(Answer::Refused(refusal))) => Ok(Answer::Refused(Refusal::new(
                refusal.code,
                shown(&refusal.detail, REFUSAL_DETAIL_CHARS),
            ))),
            Ok(Some(answer)) => Ok(answer),
            _ => Err(Refusal::new(crate::RefusalCode::ProtocolError, "answer not understood")),
        }
    }
}

const REFUSAL_DETAIL_CHARS: usize = 200;

/// The largest flow number: with its direction bit it fits a variable-length integer of four bytes.
pub const MAX_FLOW: u32 = (1 << 29) - 1;

/// Which flow a datagram belongs to, and which way it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowTag {
    /// The opener's number.
    pub flow: u32,
    /// From the flow's server to its opener.
    pub to_opener: bool,
}

/// Which part of a payload a datagram carries, when it does not carry all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The sender's number for the payload, at most [`Piece::MAX_MESSAGE`].
    pub message: u32,
    /// Its place, from 0.
    pub index: u8,
    /// The number of pieces, from 2 to [`limits::DATAGRAM_PIECES`].
    pub of: u8,
}

impl Piece {
    /// The largest number of a payload; the sender goes on with 0.
    pub const MAX_MESSAGE: u32 = (1 << 24) - 1;

    fn from_bits(bits: u32) -> Option<Piece> {
        let piece =
            Piece { message: bits >> 8, index: (bits >> 4 & 0xf) as u8, of: (bits & 0xf) as u8 };
        let is_sound = (2..=limits::DATAGRAM_PIECES).contains(&usize::from(piece.of));
        (is_sound && piece.index < piece.of).then_some(piece)
    }

    fn bits(self) -> u32 {
        (self.message & Self::MAX_MESSAGE) << 8
            | u32::from(self.index & 0xf) << 4
            | u32::from(self.of & 0xf)
    }
}

impl FlowTag {
    /// The most bytes that the tag of a whole payload takes.
    pub const MAX_BYTES: usize = 4;
    /// The bytes that the tag of a piece takes.
    pub const PIECE_BYTES: usize = 8;

    fn value(self) -> u32 {
        (self.flow & MAX_FLOW) << 1 | u32::from(self.to_opener)
    }

    /// The datagram that carries all of `payload`. Numbers above [`MAX_FLOW`] lose their high bits.
    pub fn datagram(self, payload: &[u8]) -> Bytes {
        let value = self.value();
        let mut out = BytesMut::with_capacity(Self::MAX_BYTES + payload.len());
        match value {
            0..=0x3f => out.put_u8(value as u8),
            0x40..=0x3fff => out.put_u16(0x4000 | value as u16),
            _ => out.put_u32(0x8000_0000 | value),
        }
        out.put_slice(payload);
        out.freeze()
    }

    /// The datagram that carries `part`, a piece of a payload.
    pub fn piece(self, piece: Piece, part: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::PIECE_BYTES + part.len());
        out.put_u32(0xc000_0000 | self.value());
        out.put_u32(piece.bits());
        out.put_slice(part);
        out.freeze()
    }

    /// Takes the tag off a datagram, and which piece it carries unless it carries the whole payload; `None` when the
    /// datagram is malformed.
    pub fn take(datagram: &mut Bytes) -> Option<(FlowTag, Option<Piece>)> {
        let mut piece = None;
        let value = match datagram.first()? >> 6 {
            0 => u32::from(datagram.try_get_u8().ok()?),
            1 => u32::from(datagram.try_get_u16().ok()? & 0x3fff),
            2 => datagram.try_get_u32().ok()? & 0x3fff_ffff,
            _ => {
                let value = datagram.try_get_u32().ok()? & 0x3fff_ffff;
                piece = Some(Piece::from_bits(datagram.try_get_u32().ok()?)?);
                value
            }
        };
        Some((FlowTag { flow: value >> 1, to_opener: value & 1 == 1 }, piece))
    }
}

/// The length of every segment but the last of a file of `size` bytes: at least [`limits::FILE_SEGMENT_BYTES`], a
/// power of two, and such that there are at most [`limits::FILE_SEGMENTS`] of them.
pub fn segment_bytes(size: u64) -> u64 {
    size.div_ceil(limits::FILE_SEGMENTS as u64)
        .clamp(limits::FILE_SEGMENT_BYTES, 1 << 62)
        .next_power_of_two()
}

/// How many segments a file of `size` bytes has; an empty file has none.
pub fn segments(size: u64) -> u32 {
    size.div_ceil(segment_bytes(size)) as u32
}

/// Where segment `index` of a file of `size` bytes begins, and how long it is; `None` when there is no such one.
pub fn segment(size: u64, index: u32) -> Option<(u64, u64)> {
    let start = u64::from(index).checked_mul(segment_bytes(size)).filter(|start| *start < size)?;
    Some((start, segment_bytes(size).min(size - start)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::RefusalCode;

    #[test]
    fn golden_vectors_of_the_first_messages() {
        let ssh = ServiceName::new("ssh").unwrap();
        assert_eq!(
            &Begin::Bytes(OpenBytes { service: ssh.clone() }).to_bytes()[..],
            b"\0\x01\0\0\0\x09\x01\0\0\0\x04\x03ssh"
        );
        assert_eq!(
            &Begin::Flow(OpenFlow { service: ssh, flow: 7 }).to_bytes()[..],
            b"\0\x02\0\0\0\x0a\x01\0\0\0\x05\x03ssh\x07"
        );
        assert_eq!(&Begin::Ping(OpenPing {}).to_bytes()[..], b"\0\x03\0\0\0\x05\x01\0\0\0\0");
        assert_eq!(
            &Begin::Lane(OpenLane { pipe: 4, lane: 1, lanes: 8 }).to_bytes()[..],
            b"\0\x06\0\0\0\x08\x01\0\0\0\x03\x04\x01\x08"
        );
        assert_eq!(
            &Begin::Pause(PausePipe { pipe: 4 }).to_bytes()[..],
            b"\0\x07\0\0\0\x06\x01\0\0\0\x01\x04"
        );
        assert_eq!(&Answer::Opened(Opened {}).to_bytes()[..], b"\0\x01\0\0\0\x05\x01\0\0\0\0");
        assert_eq!(
            &Answer::Refused(Refusal::new(RefusalCode::Busy, "x")).to_bytes()[..],
            b"\0\x02\0\0\0\x08\x01\0\0\0\x03\x1b\x01x"
        );
    }

    #[test]
    fn golden_vectors_of_datagrams() {
        let tag = |flow, to_opener| FlowTag { flow, to_opener };
        assert_eq!(&tag(1, false).datagram(b"x")[..], b"\x02x");
        assert_eq!(&tag(31, true).datagram(b"")[..], b"\x3f");
        assert_eq!(&tag(32, false).datagram(b"x")[..], b"\x40\x40x");
        assert_eq!(&tag(MAX_FLOW, true).datagram(b"x")[..], b"\xbf\xff\xff\xffx");
        let piece = Piece { message: 0x01_0203, index: 1, of: 2 };
        assert_eq!(&tag(1, false).piece(piece, b"x")[..], b"\xc0\0\0\x02\x01\x02\x03\x12x");
    }

    #[test]
    fn every_refusal_fits_an_answer() {
        let long = Answer::Refused(Refusal::new(RefusalCode::Busy, "é".repeat(10_000))).to_bytes();
        assert!(long.len() <= limits::SESSION_ANSWER_BYTES);
        let all = Answer::Have(Have { hashes: vec![[0xff; 32]; limits::FILE_SEGMENTS] }).to_bytes();
        assert!(all.len() <= limits::SESSION_HAVE_BYTES);
    }

    #[test]
    fn a_peers_refusal_cannot_steer_a_screen() {
        let evil = Refusal::new(RefusalCode::Busy, "a\u{1b}[2J\u{202e}\n");
        let heard = Answer::from_peer(&Answer::Refused(evil).to_envelope()).unwrap();
        assert_eq!(
            heard,
            Answer::Refused(Refusal::new(RefusalCode::Busy, "a\\u{1b}[2J\\u{202e}\\n"))
        );
    }

    proptest! {
        #[test]
        fn tags_come_back(flow in 0..=MAX_FLOW, to_opener: bool, payload: Vec<u8>) {
            let tag = FlowTag { flow, to_opener };
            let mut datagram = tag.datagram(&payload);
            prop_assert_eq!(FlowTag::take(&mut datagram), Some((tag, None)));
            prop_assert_eq!(&datagram[..], &payload[..]);
        }

        #[test]
        fn pieces_come_back(
            flow in 0..=MAX_FLOW,
            to_opener: bool,
            message in 0..=Piece::MAX_MESSAGE,
            of in 2..=limits::DATAGRAM_PIECES as u8,
            index: u8,
            part: Vec<u8>,
        ) {
            let (tag, piece) = (FlowTag { flow, to_opener }, Piece { message, index: index % of, of });
            let mut datagram = tag.piece(piece, &part);
            prop_assert_eq!(datagram.len(), FlowTag::PIECE_BYTES + part.len());
            prop_assert_eq!(FlowTag::take(&mut datagram), Some((tag, Some(piece))));
            prop_assert_eq!(&datagram[..], &part[..]);
        }

        #[test]
        fn no_datagram_panics(bytes: Vec<u8>) {
            let _ = FlowTag::take(&mut Bytes::from(bytes));
        }

        #[test]
        fn no_envelope_panics(kind in 0_u16..9, body: Vec<u8>) {
            let envelope = Envelope { kind, body: body.into() };
            let _ = Begin::from_envelope(&envelope);
            let _ = Answer::from_peer(&envelope);
            let _ = Closing::from_envelope(&envelope);
        }

        #[test]
        fn segments_cover_a_file_exactly(size in 0..(1_u64 << 46)) {
            let count = segments(size);
            prop_assert!(count as usize <= limits::FILE_SEGMENTS);
            let mut at = 0;
            for index in 0..count {
                let (start, length) = segment(size, index).unwrap();
                prop_assert_eq!(start, at);
                at += length;
            }
            prop_assert_eq!(at, size);
            prop_assert_eq!(segment(size, count), None);
        }

        #[test]
        fn segments_of_absurd_files_do_not_overflow(size: u64, index: u32) {
            if let Some((start, length)) = segment(size, index) {
                prop_assert!(start.checked_add(length).is_some_and(|end| end <= size));
            }
        }
    }
}
