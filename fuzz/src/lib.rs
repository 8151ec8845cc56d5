//! What must hold for any bytes: one function for each fuzz target.
//!
//! Each takes what a peer may send and panics when a property is broken. `fuzz/run` looks for such bytes;
//! `tests/tests/corpus.rs` compiles this file too and runs it over the bytes that are committed, so that what was
//! found once stays fixed.
//!
//! A new target is a function here (for a family of messages one line of `families!`), a file in `fuzz_targets/`,
//! its `[[bin]]`, its place in [`TARGETS`], and a folder of seeds in `corpus/`; a test holds these together.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tasuki_proto::codec::{self, Envelope};
use tasuki_proto::control::{ToRelay, ToTerminal};
use tasuki_proto::enrolment::{FromRegistrar, ToRegistrar};
use tasuki_proto::frame::{self, NeighbourKey};
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::identity::{KeyFingerprint, Signer, Token};
use tasuki_proto::mesh::ToPeer;
use tasuki_proto::path::{PathKey, ProbeOf};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::session::{Answer, Begin, Closing, FlowTag, Word};
use tasuki_proto::{
    Incarnation, Label, MeshId, MeshName, RelayId, RelayName, ServiceName, SessionId, TerminalId,
    limits, rows,
};
use tasuki_relay::core::admin::{AdminReply, AdminRequest};
use tasuki_relay::core::links::LinkChoice;
use tasuki_relay::core::{Config, ConnId, Input, LinkId, Output, Relay};

/// All targets.
pub const TARGETS: [fn(&[u8]); 13] = [
    control, datagram, enrolment, envelope, frame, gossip, mesh, name, record, relay, row, session,
    token,
];

/// A target for each family of messages, or for several that meet the same bytes: a stream of envelopes, each of
/// which is refused, skipped, or read and written again without loss.
macro_rules! families {
    ($($target:ident: $($family:ident)+;)+) => {$(
        #[doc = concat!("Messages of the families ", $(stringify!($family), " "),+, "in their envelopes.")]
        pub fn $target(bytes: &[u8]) {
            let mut stream = BytesMut::from(bytes);
            while let Ok(Some(envelope)) = Envelope::take(&mut stream, limits::MESH_MESSAGE_BYTES) {
                $(
                    if let Ok(Some(message)) = $family::from_envelope(&envelope) {
                        let again = $family::from_envelope(&message.to_envelope());
                        assert_eq!(again.as_ref(), Ok(&Some(message)));
                    }
                )+
            }
        }
    )+};
}

families! {
    control: ToRelay ToTerminal;
    enrolment: ToRegistrar FromRegistrar;
    mesh: ToPeer;
    session: Begin Closing Answer Word;
}

/// Messages of the gossip stream, and the records in them.
pub fn gossip(bytes: &[u8]) {
    let mut stream = BytesMut::from(bytes);
    while let Ok(Some(envelope)) = Envelope::take(&mut stream, limits::MESH_MESSAGE_BYTES) {
        let Ok(Some(message)) = GossipMessage::from_envelope(&envelope) else { continue };
        assert_eq!(
            GossipMessage::from_envelope(&message.to_envelope()).as_ref(),
            Ok(&Some(message.clone()))
        );
        match message {
            GossipMessage::Rows(rows) => {
                let Ok(records) = rows.parse() else { continue };
                let verbatim: Vec<u8> =
                    records.iter().flat_map(|record| record.as_bytes().to_vec()).collect();
                assert_eq!(verbatim, rows.records, "records are kept verbatim");
                let sequences: Vec<u64> =
                    records.iter().map(|record| record.version().sequence).collect();
                assert!(sequences.is_sorted_by(|one, next| one < next));
                assert!(sequences.iter().all(|s| rows.span.from < *s && *s <= rows.span.to));
            }
            GossipMessage::Heads(heads) => {
                assert!(heads.heads.len() <= limits::GOSSIP_HEADS);
            }
            GossipMessage::Want(_) | GossipMessage::Prune(_) => {}
        }
    }
}

/// Sends the messages of a hostile terminal and a hostile relay to a relay, in any order. The relay's core answers each
/// message with a bounded number of outputs, and keeps the rows of the authority.
///
/// Each step is a byte that says who speaks, or that time passes, and what is said.
pub fn relay(bytes: &[u8]) {
    const OUTPUTS: usize = 10_000;
    let mut world = Victim::new();
    let mut stream = BytesMut::from(bytes);
    while !stream.is_empty() {
        let who = stream.split_to(1)[0] % 4;
        let input = if who == 0 {
            if stream.is_empty() {
                return;
            }
            world.now += Duration::from_millis(u64::from(stream.split_to(1)[0]) * 40);
            Some(Input::Timeout)
        } else {
            let Ok(Some(envelope)) = Envelope::take(&mut stream, limits::MESH_MESSAGE_BYTES) else {
                return;
            };
            match who {
                1 => {
                    let message = ToRelay::from_envelope(&envelope).ok().flatten();
                    message.map(|message| Input::Terminal(CONN, message))
                }
                2 => {
                    let message = ToPeer::from_envelope(&envelope).ok().flatten();
                    message.map(|message| Input::Peer(LINK, message))
                }
                _ => {
                    let message = GossipMessage::from_envelope(&envelope).ok().flatten();
                    message.map(|message| Input::Gossip(LINK, message))
                }
            }
        };
        let Some(input) = input else { continue };
        let outputs = world.give(input);
        assert!(outputs.len() <= OUTPUTS, "{} outputs", outputs.len());
        // The driver would have cut them for lies; they come back at once.
        if outputs.iter().any(|output| matches!(output, Output::CloseLink(..))) {
            world.give(Input::LinkDown(LINK, None));
            world.link();
        }
        if outputs.iter().any(|output| matches!(output, Output::CloseTerminal(..))) {
            world.give(Input::TerminalDown(CONN));
            world.terminal();
        }
        let victim = TerminalId::new("victim").expect("a name");
        let asked = world.give(Input::Admin(7, AdminRequest::Terminal(victim)));
        let is_there = asked.iter().any(|output| match output {
            Output::Reply(7, reply) => matches!(**reply, AdminReply::Terminal(_)),
            _ => false,
        });
        assert!(is_there, "an account is lost");
    }
}

const CONN: ConnId = ConnId(1);
const LINK: LinkId = LinkId(1);

/// A relay with two accounts, a connected terminal and a link.
struct Victim {
    relay: Relay,
    now: Instant,
}

impl Victim {
    #[allow(clippy::disallowed_methods, reason = "only differences are used")]
    fn new() -> Self {
        let now = Instant::now();
        let authority = Signer::from_seed(&[1; 32]);
        let config = Config {
            name: RelayName::new("r1").expect("a name"),
            mesh: MeshName::new("m").expect("a name"),
            mesh_id: MeshId([2; 16]),
            addresses: Vec::new(),
            registrar: true,
            incarnation: Incarnation(3),
            authority: (Incarnation(1), authority.public()),
            signer: Signer::from_seed(&[3; 32]),
            links: LinkChoice::Auto,
            terminals: 10,
            sessions: 10,
            seed: [4; 32],
            started_ms: 1,
        };
        let mut world = Self { relay: Relay::new(config, now), now };
        let account = rows::payload(&rows::AccountRow {
            key: Some(Signer::from_seed(&[5; 32]).public()),
            kind: "plc".to_owned(),
            attributes: Default::default(),
            groups: Vec::new(),
            registered_ms: 1,
        });
        let relay = rows::payload(&rows::RelayAccountRow {
            key: Signer::from_seed(&[6; 32]).public(),
            addresses: Vec::new(),
            registrar: false,
            registered_ms: 1,
        });
        let made = [
            (RecordKind::ACCOUNT, &b"victim"[..], &account),
            (RecordKind::ACCOUNT, b"a", &account),
            (RecordKind::RELAY_ACCOUNT, b"r2", &relay),
        ];
        for (sequence, (kind, key, payload)) in (1..).zip(made) {
            world.give(Input::Authority(Record::new(&Draft {
                origin: RelayId::AUTHORITY,
                kind,
                key,
                version: Version { incarnation: Incarnation(1), sequence },
                wall_ms: 1,
                scope: 0,
                lifetime_secs: 0,
                tombstone: false,
                payload,
            })));
        }
        world.give(Input::Issuer(Incarnation(1), authority));
        world.link();
        world.terminal();
        world
    }

    fn link(&mut self) {
        self.give(Input::LinkUp {
            link: LINK,
            name: RelayName::new("r2").expect("a name"),
            key: KeyFingerprint([6; 32]),
            dialled_here: true,
            incarnation: Incarnation(1),
            instance: 1,
            address: "192.0.2.2:4433".parse().expect("an address"),
        });
    }

    fn terminal(&mut self) {
        self.give(Input::TerminalUp {
            conn: CONN,
            terminal: TerminalId::new("a").expect("a name"),
            key: Signer::from_seed(&[5; 32]).public().fingerprint(),
            address: "192.0.2.1:9".parse().expect("an address"),
            handle: Label::from_random(9),
        });
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        self.relay.handle(input, self.now, 1);
        std::iter::from_fn(|| self.relay.poll_output()).collect()
    }
}

/// Datagrams of a session, with the tag of their flow, whole or in pieces.
pub fn datagram(bytes: &[u8]) {
    let mut payload = Bytes::copy_from_slice(bytes);
    if let Some((tag, piece)) = FlowTag::take(&mut payload) {
        let mut again = match piece {
            None => tag.datagram(&payload),
            Some(piece) => {
                assert!(piece.index < piece.of && usize::from(piece.of) <= limits::DATAGRAM_PIECES);
                tag.piece(piece, &payload)
            }
        };
        assert!(again.len() <= bytes.len(), "a tag is written as short as it can be");
        assert_eq!(FlowTag::take(&mut again), Some((tag, piece)));
        assert_eq!(again, payload);
    }
}

/// Words that somebody pastes as a token: the bytes themselves, and the bytes as what a right checksum covers.
pub fn token(bytes: &[u8]) {
    fn read(word: &str) {
        if let Ok(token) = Token::from_word(word) {
            assert!(token.relays.len() <= limits::TOKEN_RELAYS);
            let word = token.to_word();
            assert_eq!(Token::from_word(&word).map(|again| again.to_word() == word), Ok(true));
        }
    }
    if let Ok(word) = std::str::from_utf8(bytes) {
        read(word);
    }
    let check = ring::digest::digest(&ring::digest::SHA256, bytes);
    let sealed = [bytes, &check.as_ref()[..4]].concat();
    read(&format!("tk1{}", data_encoding::BASE32_NOPAD.encode(&sealed)));
}

/// Datagrams that begin like a frame.
pub fn frame(bytes: &[u8]) {
    if let Some((kind, label)) = frame::parse(bytes) {
        assert!(frame::is_frame(bytes[0]), "a frame could be a QUIC packet");
        let mut written = frame::head(kind, label);
        written[0] |= bytes[0] & 0x30;
        assert_eq!(written, bytes[..frame::HEAD]);
        let mut relabelled = bytes.to_vec();
        frame::relabel(&mut relabelled, label);
        assert_eq!(relabelled, bytes);
        if let Some((cookie, proof)) = frame::parse_proof(bytes) {
            let key = NeighbourKey::new(&[7; 32]);
            let valid = key.verify(label, &cookie, &proof);
            assert_eq!(valid, frame::echo(label, cookie, &key)[frame::HEAD + 16..] == proof);
        }
        // Whatever is taken for a probe is what its maker would have sealed.
        for caller in [true, false] {
            let of = ProbeOf::Direct;
            if let Some(probe) = PathKey::new(&[7; 32], !caller).open(of, bytes) {
                let sealed = PathKey::new(&[7; 32], caller).seal(label, of, probe, bytes.len());
                assert_eq!(sealed[frame::HEAD..][..16], bytes[frame::HEAD..][..16]);
            }
        }
    }
}

/// An Ed25519 public key (RFC 8032, section 7.1, test 1) with which nobody signs records. A weak one, such as 32
/// zeros, would not do: signatures under a point of small order can be made without a secret.
const SOMEBODYS_KEY: [u8; 32] = [
    0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a,
    0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
];

/// Records, one behind the other.
pub fn record(bytes: &[u8]) {
    let mut rest = Bytes::copy_from_slice(bytes);
    while !rest.is_empty() {
        let before = rest.clone();
        let Ok(record) = Record::take(&mut rest) else { break };
        let verbatim = record.as_bytes();
        assert_eq!(verbatim, &before[..verbatim.len()], "a record is kept verbatim");
        assert_eq!(Record::from_bytes(verbatim.clone()).as_ref(), Ok(&record));
        let again = Record::new(&Draft {
            origin: record.origin(),
            kind: record.kind(),
            key: record.key(),
            version: record.version(),
            wall_ms: record.wall_ms(),
            scope: record.scope(),
            lifetime_secs: record.lifetime_secs(),
            tombstone: record.is_tombstone(),
            payload: record.payload(),
        });
        let content = again.as_bytes().len();
        assert_eq!(again.as_bytes()[2..], verbatim[2..content], "each byte has its field");
        assert!(verbatim.len() == content || verbatim.len() == content + 64);
        assert!(!record.is_signed_by(&MeshId([0; 16]), &SOMEBODYS_KEY), "it is not signed for it");
    }
}

/// Payloads of records, as each kind of row.
pub fn row(bytes: &[u8]) {
    fn read<T>(bytes: &[u8])
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        if let Ok(row) = rows::read::<T>(bytes) {
            assert_eq!(rows::read::<T>(&rows::payload(&row)), Ok(row));
        }
    }
    read::<rows::RelayRow>(bytes);
    read::<rows::LinksRow>(bytes);
    read::<rows::LoadRow>(bytes);
    read::<rows::AttachmentRow>(bytes);
    read::<rows::AccountRow>(bytes);
    read::<rows::RelayAccountRow>(bytes);
    read::<rows::RevocationRow>(bytes);
}

/// A stream of envelopes: however it is read, the same envelopes come out, and none is larger than the limit.
pub fn envelope(bytes: &[u8]) {
    const LIMIT: usize = 256;
    let mut buffer = BytesMut::from(bytes);
    let mut stream = bytes;
    loop {
        let taken = Envelope::take(&mut buffer, LIMIT);
        let read = at_once(Envelope::read(&mut stream, LIMIT));
        match (taken, read) {
            (Ok(Some(one)), Ok(Some(other))) => {
                assert_eq!(one, other);
                assert!(one.body.len() <= LIMIT);
                for id in [0, 1, 9, u8::MAX] {
                    let _ = codec::section(&one.body, id);
                }
            }
            (Ok(None), Ok(None)) => return assert!(buffer.is_empty()),
            (Ok(None), Err(_)) => return assert!(!buffer.is_empty()),
            (Err(_), Err(_)) => return,
            (taken, read) => panic!("taken {taken:?}, read {read:?}"),
        }
    }
}

/// Names and ids as text and as bincode bytes.
pub fn name(bytes: &[u8]) {
    if let Ok(id) = codec::decode::<TerminalId>(bytes) {
        assert!(TerminalId::new(id.as_str()).is_ok(), "a decoded name is a name");
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match TerminalId::new(text) {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            assert!(RelayName::new(text).is_ok() && ServiceName::new(text).is_ok());
            assert_eq!(codec::decode::<TerminalId>(&codec::encode(&id)), Ok(id));
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 1024, "what a peer sent is cut");
            assert!(!shown.contains(char::is_control), "what a peer sent is escaped");
        }
    }
    if let Ok(session) = text.parse::<SessionId>() {
        assert_eq!(session.to_string(), text.to_ascii_lowercase());
    }
}

/// The value of a future that never waits.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("memory does not wait"),
    }
}
