//! The wire format as bytes: what this build writes and reads is what `tests/golden/*.hex` say.
//!
//! A line of such a file is a name and the bytes in hex. The files change only when the wire changes on purpose:
//! with `proto/src/version.rs` and an ADR in the same commit. Then
//!
//! ```text
//! TASUKI_GOLDEN=write cargo test -p tasuki-tests --test golden
//! ```
//!
//! writes them anew, with the seeds of the fuzz targets (`fuzz/corpus/TARGET/golden-NAME`); `git diff` shows what
//! a peer of the version before would trip over. A family of messages is one `family!` below; it fails as long as a
//! kind of the family has no vector.
#![allow(clippy::unwrap_used, reason = "tests act")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use ring::signature::{Ed25519KeyPair, KeyPair};
use tasuki_proto::attest::{Attestation, SIGNATURE_BYTES, Signature};
use tasuki_proto::codec::{self, Envelope, SectionWriter};
use tasuki_proto::control::{self, ToRelay, ToTerminal};
use tasuki_proto::enrolment::{self, FromRegistrar, ToRegistrar};
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::gossip::{self, GossipMessage, Head};
use tasuki_proto::identity::{
    KeyFingerprint, NodeName, PublicKey, Token, TokenFor, TokenId, TokenSecret,
};
use tasuki_proto::mesh::{self, LinkStream, ToPeer};
use tasuki_proto::path::{NatKind, PathKey, PathNews, Probe, ProbeOf};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::rows::{self, AttachmentRole};
use tasuki_proto::session::{self, Answer, Begin, Closing, FlowTag, Word};
use tasuki_proto::version::Alpn;
use tasuki_proto::view::{AttachmentView, TerminalFilter, TerminalState, TerminalView};
use tasuki_proto::{
    Generation, Incarnation, Label, LoginEpoch, MeshId, MeshName, Refusal, RefusalCode, RelayId,
    RelayName, ServiceName, SessionId, TerminalId, limits,
};

// ---- The files ------------------------------------------------------------------------------------------------

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[allow(clippy::disallowed_methods, reason = "the one switch of this test")]
fn writes() -> bool {
    std::env::var("TASUKI_GOLDEN").is_ok_and(|value| value == "write")
}

type Vectors = Vec<(&'static str, Vec<u8>)>;

fn read_file(text: &str) -> BTreeMap<String, Vec<u8>> {
    let hex = data_encoding::HEXLOWER_PERMISSIVE;
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut out = BTreeMap::new();
    for line in lines {
        let (name, bytes) = line.split_once(' ').unwrap_or((line, ""));
        let bytes = hex.decode(bytes.as_bytes()).unwrap_or_else(|e| panic!("line of {name}: {e}"));
        assert!(out.insert(name.to_owned(), bytes).is_none(), "{name} stands twice");
    }
    out
}

fn show(file: &str, vectors: &Vectors) -> String {
    let mut out =
        format!("# {file}: see tests/tests/golden.rs for what this is and when it may change.\n");
    for (name, bytes) in vectors {
        writeln!(out, "{name} {}", data_encoding::HEXLOWER.encode(bytes)).unwrap();
    }
    out
}

/// What differs between the file and what this build writes; empty when nothing does.
fn differences(file: &BTreeMap<String, Vec<u8>>, built: &Vectors) -> Vec<String> {
    let mut out = Vec::new();
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    for (name, bytes) in built {
        match file.get(*name) {
            None => out.push(format!("{name}: has no vector in the file")),
            Some(golden) if golden != bytes => {
                out.push(format!("{name}:\n  file  {}\n  build {}", hex(golden), hex(bytes)));
            }
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = built.iter().map(|(name, _)| *name).collect();
    out.extend(
        file.keys()
            .filter(|name| !names.contains(name.as_str()))
            .map(|name| format!("{name}: only in the file")),
    );
    out
}

/// Compares `built` with `tests/golden/FILE.hex`, or writes that file and the seeds of the fuzz target `seeds`.
fn compare(file: &str, seeds: Option<&str>, built: &Vectors) {
    let path = root().join(format!("tests/golden/{file}.hex"));
    if writes() {
        std::fs::write(&path, show(file, built)).unwrap();
        if let Some(target) = seeds {
            let folder = root().join("fuzz/corpus").join(target);
            std::fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in built {
                std::fs::write(folder.join(format!("golden-{name}")), bytes).unwrap();
            }
        }
    }
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let different = differences(&read_file(&text), built);
    assert!(
        different.is_empty(),
        "the wire differs from tests/golden/{file}.hex (see tests/tests/golden.rs):\n{}",
        different.join("\n")
    );
}

/// A family of messages: its vectors are written and read, and each kind that it knows has one.
macro_rules! family {
    ($file:literal, $seeds:expr, $family:ident { $($name:literal => $message:expr,)+ }) => {{
        let messages: Vec<(&'static str, $family)> = vec![$(($name, $message)),+];
        let built: Vectors = messages
            .iter()
            .map(|(name, message)| (*name, message.to_envelope().to_bytes().to_vec()))
            .collect();
        compare($file, $seeds, &built);
        for ((name, message), (_, bytes)) in messages.iter().zip(&built) {
            let envelope = envelope_of(bytes);
            assert_eq!($family::from_envelope(&envelope).unwrap().as_ref(), Some(message), "{name}");
        }
        let with_vector: BTreeSet<u16> =
            messages.iter().map(|(_, message)| message.to_envelope().kind).collect();
        let known: BTreeSet<u16> = (0..=u16::MAX)
            .filter(|kind| {
                !matches!(
                    $family::from_envelope(&Envelope { kind: *kind, body: Bytes::new() }),
                    Ok(None)
                )
            })
            .collect();
        assert_eq!(with_vector, known, "each kind of {} has a vector", stringify!($family));
    }};
}

fn envelope_of(bytes: &[u8]) -> Envelope {
    let mut buffer = BytesMut::from(bytes);
    let envelope = Envelope::take(&mut buffer, limits::MESH_MESSAGE_BYTES).unwrap().unwrap();
    assert!(buffer.is_empty(), "bytes are left over");
    envelope
}

// ---- Values that stand for themselves -------------------------------------------------------------------------

fn label(number: u64) -> Label {
    Label::new(number).unwrap()
}

fn terminal(name: &str) -> TerminalId {
    TerminalId::new(name).unwrap()
}

fn relay(name: &str) -> RelayName {
    RelayName::new(name).unwrap()
}

fn service() -> ServiceName {
    ServiceName::new("ssh").unwrap()
}

fn session() -> SessionId {
    SessionId { edge: RelayId(0x0102_0304_0506_0708), nonce: 0x1112_1314_1516_1718 }
}

fn v4() -> SocketAddr {
    "192.0.2.7:4433".parse().unwrap()
}

fn v6() -> SocketAddr {
    "[2001:db8::7]:4433".parse().unwrap()
}

fn refused() -> control::CallRefused {
    control::CallRefused {
        session: session(),
        refusal: Refusal::new(RefusalCode::ServiceNotExposed, "ssh"),
        winner: None,
    }
}

fn path_end() -> control::PathEnd {
    let code = RefusalCode::RouteLost;
    control::PathEnd { session: session(), generation: Generation(3), code }
}

fn end() -> control::End {
    control::End { session: session(), code: RefusalCode::EndedByCaller }
}

fn draft<'a>(kind: RecordKind, key: &'a [u8], payload: &'a [u8]) -> Draft<'a> {
    Draft {
        origin: RelayId(0x0102_0304_0506_0708),
        kind,
        key,
        version: Version { incarnation: Incarnation(3), sequence: 9 },
        wall_ms: 1_700_000_000_000,
        scope: 0,
        lifetime_secs: 60,
        tombstone: false,
        payload,
    }
}

fn attachment_row() -> rows::AttachmentRow {
    rows::AttachmentRow {
        role: AttachmentRole::Primary,
        epoch: LoginEpoch(4),
        instance: 5,
        address: v4(),
        since_ms: 1_700_000_000_000,
        sessions: 2,
        signature: signature(),
    }
}

fn signature() -> Signature {
    Signature::new([0xa5; SIGNATURE_BYTES])
}

fn attestation() -> Attestation {
    attachment_row().attestation(RelayId(7))
}

fn revocation() -> Record {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let row = rows::RevocationRow { name: "plant7".into(), revoked_ms: 1_700_000_000_000 };
    let payload = rows::payload(&row);
    Record::signed(&draft(RecordKind::REVOCATION, &[8; 32], &payload), &MeshId([6; 16]), &key)
}

// ---- The vectors ----------------------------------------------------------------------------------------------

#[test]
fn frames() {
    let handle = label(0x00a1_a2a3_a4a5_a6a7);
    let key = NeighbourKey::new(&[7; 32]);
    let mut data = frame::head(FrameKind::Data, label(0x0001_0203_0405_0607)).to_vec();
    data.extend_from_slice(b"payload");
    let built: Vectors = vec![
        ("data", data.clone()),
        ("challenge", frame::challenge(handle, [9; 16]).to_vec()),
        ("echo", frame::echo(handle, [9; 16], &key).to_vec()),
        ("knock", frame::head(FrameKind::Knock, label(49)).to_vec()),
    ];
    compare("frame", Some("frame"), &built);

    assert_eq!(frame::parse(&data), Some((FrameKind::Data, label(0x0001_0203_0405_0607))));
    assert_eq!(frame::parse(&built[1].1), Some((FrameKind::Challenge, handle)));
    assert_eq!(frame::parse(&built[2].1), Some((FrameKind::Echo, handle)));
    let (cookie, proof) = frame::parse_proof(&built[2].1).unwrap();
    assert!(key.verify(handle, &cookie, &proof));
}

#[test]
fn records() {
    let mesh = MeshId([6; 16]);
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let payload = rows::payload(&attachment_row());
    let unsigned = Record::new(&draft(RecordKind::ATTACHMENT, b"plant7", &payload));
    let signed = Record::signed(&draft(RecordKind::ACCOUNT, b"plant7", &payload), &mesh, &key);
    let gone =
        Record::new(&Draft { tombstone: true, ..draft(RecordKind::ATTACHMENT, b"plant7", &[]) });
    let unknown = Record::new(&draft(RecordKind(60_000), b"\xff", b"\x09\0\0\0\x01?"));
    let built: Vectors = [&unsigned, &signed, &gone, &unknown]
        .into_iter()
        .zip(["unsigned", "signed", "tombstone", "unknown-kind"])
        .map(|(record, name)| (name, record.as_bytes().to_vec()))
        .collect();
    compare("record", Some("record"), &built);

    for (record, (name, bytes)) in [unsigned, signed.clone(), gone, unknown].iter().zip(&built) {
        let again = Record::from_bytes(Bytes::from(bytes.clone())).unwrap();
        assert_eq!(&again, record, "{name}");
        assert_eq!(again.as_bytes(), record.as_bytes(), "{name} is kept verbatim");
    }
    assert!(signed.is_signed_by(&mesh, key.public_key().as_ref()));
    assert_eq!(rows::read::<rows::AttachmentRow>(signed.payload()), Ok(attachment_row()));
}

/// The payload of each kind of row.
#[test]
fn row_payloads() {
    fn row<T>(name: &'static str, row: &T) -> (&'static str, Vec<u8>)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let bytes = rows::payload(row);
        assert_eq!(rows::read::<T>(&bytes).as_ref(), Ok(row), "{name}");
        (name, bytes.to_vec())
    }
    let fingerprint = KeyFingerprint([8; 32]);
    let links = vec![rows::LinkState { peer: RelayId(2), rtt_us: 1_250 }];
    let built: Vectors = vec![
        row(
            "relay",
            &rows::RelayRow {
                name: relay("r1"),
                addresses: vec!["relay.example:4433".into()],
                registrar: true,
                software: "0.1.0".into(),
            },
        ),
        row("links", &rows::LinksRow { links }),
        row("load", &rows::LoadRow { draining: false, terminals: 1_200 }),
        row("attachment", &attachment_row()),
        row(
            "account",
            &rows::AccountRow {
                kind: "camera".into(),
                attributes: [("site".to_owned(), "north".to_owned())].into(),
                groups: vec!["g1".into()],
                key: Some(PublicKey(fingerprint.0)),
                registered_ms: 1_700_000_000_000,
            },
        ),
        row(
            "relay-account",
            &rows::RelayAccountRow {
                key: PublicKey(fingerprint.0),
                addresses: vec!["relay.example:4433".into()],
                registrar: false,
                registered_ms: 1_700_000_000_000,
            },
        ),
        row(
            "revocation",
            &rows::RevocationRow { name: "plant7".into(), revoked_ms: 1_700_000_000_000 },
        ),
    ];
    compare("row", Some("row"), &built);
}

#[test]
fn control_messages_to_the_relay() {
    family!("control-to-relay", Some("control"), ToRelay {
        "to-relay-hello" => ToRelay::Hello(control::Hello {
            protocol: 1, software: "0.1.0".into(), instance: 5,
        }),
        "to-relay-login" => ToRelay::Login(control::Login {
            epoch: LoginEpoch(4), role: AttachmentRole::Standby, signature: signature(),
        }),
        "to-relay-logout" => ToRelay::Logout(control::Logout {}),
        "to-relay-call" => ToRelay::Call(control::Call {
            session: session(), target: terminal("plant7"), service: service(),
            tie_break: Some(77), label: label(21),
        }),
        "to-relay-accept" => ToRelay::Accept(control::Accept { session: session(), label: label(22) }),
        "to-relay-refuse" => ToRelay::Refuse(refused()),
        "to-relay-end" => ToRelay::End(end()),
        "to-relay-list" => ToRelay::List(control::List {
            request: 3,
            filter: TerminalFilter {
                state: Some(TerminalState::LoggedIn), kind: None, text: Some("plant".into()),
            },
            after: Some(terminal("plant6")),
            limit: 100,
        }),
        "to-relay-resume" => ToRelay::Resume(control::Resume {
            session: session(), generation: Generation(3), target: terminal("plant7"),
            service: service(), label: label(41), avoid: vec![relay("r1"), relay("r2")],
        }),
        "to-relay-accept-path" => ToRelay::AcceptPath(control::AcceptPath {
            session: session(), generation: Generation(3), label: label(42),
        }),
        "to-relay-end-path" => ToRelay::EndPath(path_end()),
        "to-relay-ping" => ToRelay::Ping(control::Ping { number: 9 }),
        "to-relay-path-report" => ToRelay::PathReport(control::PathReport {
            session: session(),
            news: PathNews::NoDirect,
            nat: NatKind::EndpointIndependent,
            peer_nat: NatKind::EndpointDependent,
        }),
    });
}

#[test]
fn control_messages_to_the_terminal() {
    family!("control-to-terminal", Some("control"), ToTerminal {
        "to-terminal-welcome" => ToTerminal::Welcome(control::Welcome {
            protocol: 1, software: "0.1.0".into(), relay: RelayId(7), name: relay("r1"),
            highest: Some(attestation()), address: v6(), handle: label(23),
            terminals: 120,
        }),
        "to-terminal-refused" => ToTerminal::Refused(control::Refused {
            refusal: RefusalCode::Superseded.into(), retry_after_ms: 1_500,
            by: Some(attestation()),
        }),
        "to-terminal-logged-in" => ToTerminal::LoggedIn(control::LoggedIn {}),
        "to-terminal-incoming" => ToTerminal::Incoming(control::Incoming {
            session: session(), caller: terminal("desk1"), service: service(),
            tie_break: None, label: label(24), caller_address: Some(v4()), route: vec![relay("r1")],
        }),
        "to-terminal-accepted" => ToTerminal::Accepted(control::Accepted {
            session: session(), label: label(25), callee_address: Some(v6()),
            route: vec![relay("r1"), relay("r2")],
        }),
        "to-terminal-call-refused" => ToTerminal::CallRefused(control::CallRefused {
            refusal: RefusalCode::Merged.into(),
            winner: Some(SessionId { edge: RelayId(9), nonce: 10 }),
            ..refused()
        }),
        "to-terminal-ended" => ToTerminal::Ended(end()),
        "to-terminal-page" => ToTerminal::Page(control::Page {
            request: 3,
            items: vec![TerminalView {
                id: terminal("plant7"), kind: "plc".into(),
                attributes: [("site".to_owned(), "north".to_owned())].into(),
                state: TerminalState::InCommunication, sessions: 2,
                attachments: vec![AttachmentView {
                    relay: relay("r1"), role: AttachmentRole::Primary,
                    since: 1_700_000_000_000, address: v4(),
                }],
                updated_at: 1_700_000_000_001,
            }],
            next: Some(terminal("plant7")),
        }),
        "to-terminal-relays" => ToTerminal::Relays(control::Relays {
            relays: vec![control::RelayContact {
                name: relay("r1"), addresses: vec!["relay.example:4433".into()], draining: true,
            }],
            more: true,
        }),
        "to-terminal-revoked" => ToTerminal::Revoked(
            control::Revoked::of([revocation(), revocation()]).remove(0),
        ),
        "to-terminal-resuming" => ToTerminal::Resuming(control::Resuming {
            session: session(), generation: Generation(3), caller: terminal("desk1"),
            label: label(43), route: vec![relay("r1"), relay("r2")],
        }),
        "to-terminal-resumed" => ToTerminal::Resumed(control::Resumed {
            session: session(), generation: Generation(3), label: label(44),
            route: vec![relay("r1"), relay("r2")],
        }),
        "to-terminal-path-ended" => ToTerminal::PathEnded(path_end()),
        "to-terminal-pong" => ToTerminal::Pong(control::Ping { number: 9 }),
        "to-terminal-seen" => ToTerminal::Seen(control::Seen { address: v6() }),
    });
}

#[test]
fn mesh_messages() {
    family!("mesh", Some("mesh"), ToPeer {
        "hello" => ToPeer::Hello(mesh::LinkHello {
            protocol: 1, software: "0.1.0".into(), incarnation: Incarnation(3), instance: 5,
            handle: label(26),
            addresses: vec!["relay.example:4433".into()],
        }),
        "call" => ToPeer::Call(mesh::RoutedCall {
            session: session(),
            route: vec![RelayId(1), RelayId(2), RelayId(3)],
            names: vec![relay("r1"), relay("r2"), relay("r3")],
            caller: terminal("desk1"), target: terminal("plant7"), service: service(),
            tie_break: Some(77), label: label(27), caller_address: Some(v4()),
        }),
        "accept" => ToPeer::Accept(mesh::RoutedAccept {
            session: session(), label: label(28), callee_address: None,
        }),
        "refuse" => ToPeer::Refuse(refused()),
        "end" => ToPeer::End(end()),
        "resume" => ToPeer::Resume(mesh::RoutedResume {
            session: session(), generation: Generation(3),
            route: vec![RelayId(1), RelayId(2)], names: vec![relay("r1"), relay("r2")],
            caller: terminal("desk1"), target: terminal("plant7"), service: service(),
            label: label(45),
        }),
        "resumed" => ToPeer::Resumed(mesh::RoutedResumed {
            session: session(), generation: Generation(3), label: label(46),
        }),
        "end-path" => ToPeer::EndPath(path_end()),
        "try-address" => ToPeer::TryAddress(mesh::TryAddress {
            address: "relay.example:4433".into(), label: label(49),
        }),
        "tried" => ToPeer::Tried(mesh::Tried { label: label(49), sent: true }),
        "twin" => ToPeer::Twin(mesh::Twin { address: v4() }),
    });
}

#[test]
fn gossip_messages() {
    let origin = RelayId(0x0102_0304_0506_0708);
    let first = Record::new(&draft(RecordKind::LOAD, b"", b""));
    let second = Record::new(&Draft {
        version: Version { sequence: 10, ..first.version() },
        ..draft(RecordKind::LINKS, b"", b"")
    });
    let head = Head {
        origin,
        version: Version { incarnation: Incarnation(3), sequence: 10 },
        horizon: 2,
        rows: 5,
        bytes: 700,
        digest: [0xd1; 32],
        signature: [0x5e; 64],
    };
    let rows = gossip::Rows {
        head,
        span: gossip::Span { from: 8, to: 10 },
        records: [first.as_bytes().as_ref(), second.as_bytes()].concat().into(),
    };
    assert_eq!(rows.parse(), Ok(vec![first, second]));
    let authority = Head { origin: RelayId::AUTHORITY, ..head };
    family!("gossip", Some("gossip"), GossipMessage {
        "rows" => GossipMessage::Rows(rows.clone()),
        "want" => GossipMessage::Want(gossip::Want {
            origin, incarnation: Incarnation(3), watermark: 9,
        }),
        "heads" => GossipMessage::Heads(gossip::Heads { heads: vec![head, authority] }),
        "prune" => GossipMessage::Prune(gossip::Prune { origin }),
    });
}

/// How many streams of a link carry gossip, and which of them carries what.
#[test]
fn streams_of_gossip() {
    let origin = RelayId(0x0102_0304_0506_0708);
    let head = Head {
        origin,
        version: Version { incarnation: Incarnation(3), sequence: 9 },
        horizon: 0,
        rows: 1,
        bytes: 50,
        digest: [0; 32],
        signature: [0; 64],
    };
    let span = gossip::Span { from: 8, to: 9 };
    let want = |origin| gossip::Want { origin, incarnation: Incarnation(3), watermark: 9 };
    let heads = gossip::Heads { heads: vec![head] };
    let messages = [
        ("rows", GossipMessage::Rows(gossip::Rows { head, span, records: Bytes::new() })),
        ("want", GossipMessage::Want(want(origin))),
        ("prune", GossipMessage::Prune(gossip::Prune { origin })),
        ("heads", GossipMessage::Heads(heads)),
        ("of-the-authority", GossipMessage::Want(want(RelayId::AUTHORITY))),
        ("of-the-first-relay", GossipMessage::Want(want(RelayId(1)))),
        ("of-the-sixteenth-relay", GossipMessage::Want(want(RelayId(16)))),
        ("of-the-last-relay", GossipMessage::Want(want(RelayId(u64::MAX)))),
    ];
    let mut built: Vectors = vec![("streams", vec![limits::GOSSIP_STREAMS as u8])];
    built.extend(messages.iter().map(|(name, message)| (*name, vec![message.stream() as u8])));
    compare("gossip-stream", None, &built);
}

#[test]
fn enrolment_messages() {
    let newcomer = enrolment::Newcomer {
        signing_request: vec![0x30, 0],
        name: NodeName::Terminal(terminal("plant7")),
        addresses: vec![],
    };
    let relays = vec![control::RelayContact {
        name: relay("r1"),
        addresses: vec!["relay.example:4433".into()],
        draining: false,
    }];
    family!("enrolment-request", Some("enrolment"), ToRegistrar {
        "request-enrol" => ToRegistrar::Enrol(enrolment::Enrol {
            token: TokenId([2; 16]),
            newcomer: codec::encode(&newcomer),
            proof: TokenSecret::from_bytes([3; 32])
                .prove(&MeshId([6; 16]), &TokenId([2; 16]), &codec::encode(&newcomer)),
        }),
        "request-renew" => ToRegistrar::Renew(enrolment::Renew {
            chain: vec![vec![0x30, 0], vec![0x30, 1, 0]], signature: vec![4; 64],
        }),
    });
    family!("enrolment-answer", Some("enrolment"), FromRegistrar {
        "answer-certified" => FromRegistrar::Certified(enrolment::Certified {
            chain: vec![vec![0x30, 0], vec![0x30, 1, 0]], root: vec![0x30, 2, 0, 0], relays: relays.clone(),
        }),
        "answer-refused" => FromRegistrar::Refused(RefusalCode::TokenExpired.into()),
    });
}

#[test]
fn session_messages() {
    family!("session-begin", Some("session"), Begin {
        "begin-bytes" => Begin::Bytes(session::OpenBytes { service: service() }),
        "begin-flow" => Begin::Flow(session::OpenFlow { service: service(), flow: 300 }),
        "begin-ping" => Begin::Ping(session::OpenPing {}),
        "begin-offer" => Begin::Offer(session::Offer {
            transfer: 7, folder: "reports/may".into(), name: "a.txt".into(), size: 5_000_000,
            mode: 0o640, overwrite: false,
        }),
        "begin-part" => Begin::Part(session::Part { transfer: 7, index: 1 }),
        "begin-lane" => Begin::Lane(session::OpenLane { pipe: 4, lane: 1, lanes: 8 }),
        "begin-pause" => Begin::Pause(session::PausePipe { pipe: 4 }),
    });
    family!("session-closing", Some("session"), Closing {
        "closing-finish" => Closing::Finish(session::Finish { root: [5; 32] }),
    });
    family!("session-answer", Some("session"), Answer {
        "answer-opened" => Answer::Opened(session::Opened {}),
        "answer-refused" => Answer::Refused(Refusal::new(RefusalCode::CallerNotAllowed, "ssh")),
        "answer-have" => Answer::Have(session::Have { hashes: vec![[6; 32], [7; 32]] }),
        "answer-stored" => Answer::Stored(session::Stored { path: "reports/may/a.txt".into() }),
    });
    family!("session-word", Some("session"), Word {
        "word-use" => Word::Use(session::Use { using: true }),
        "word-addresses" => Word::Addresses(session::Addresses {
            label: label(47), addresses: vec![v4(), v6()],
        }),
        "word-attachments" => Word::Attachments(session::Attachments {
            relays: vec![relay("r1"), relay("r2")],
        }),
        "word-nat" => Word::Nat(session::Nat { kind: NatKind::EndpointIndependent }),
    });
    let key = |caller| PathKey::new(&[7; 32], caller);
    let (number, echo) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
    let probe = Probe { number, echo, epoch: 9, answer: false, in_use: true, stalled: false };
    let answer = Probe { echo: 0, answer: true, ..probe };
    let moved = Probe { stalled: true, ..probe };
    let first = ProbeOf::Relayed(Generation::CALL);
    let probes: Vectors = vec![
        ("probe", key(true).seal(label(48), first, probe, 0)),
        ("probe-padded", key(false).seal(label(48), ProbeOf::Direct, probe, 64)),
        ("probe-answer", key(false).seal(label(48), first, answer, 0)),
        ("probe-moved", key(true).seal(label(48), ProbeOf::Relayed(Generation(7)), moved, 0)),
    ];
    compare("probe", Some("frame"), &probes);
    let tag = |flow, to_opener| FlowTag { flow, to_opener };
    let piece = session::Piece { message: 0x01_0203, index: 0, of: 2 };
    let last = session::Piece { message: session::Piece::MAX_MESSAGE, index: 3, of: 4 };
    let datagrams: Vectors = vec![
        ("to-server", tag(1, false).datagram(b"payload").to_vec()),
        ("to-opener", tag(300, true).datagram(b"payload").to_vec()),
        ("largest-flow", tag(session::MAX_FLOW, true).datagram(b"").to_vec()),
        ("piece", tag(300, true).piece(piece, b"payload").to_vec()),
        ("last-piece", tag(session::MAX_FLOW, false).piece(last, b"").to_vec()),
    ];
    compare("datagram", Some("datagram"), &datagrams);
    let mut bytes = Bytes::from(datagrams[3].1.clone());
    assert_eq!(FlowTag::take(&mut bytes), Some((tag(300, true), Some(piece))));
    assert_eq!(&bytes[..], b"payload");
    let mut bytes = Bytes::from(datagrams[1].1.clone());
    assert_eq!(FlowTag::take(&mut bytes), Some((tag(300, true), None)));
    assert_eq!(&bytes[..], b"payload");
}

/// What stands in a token, and what is signed or proven without being sent.
#[test]
fn tokens_and_proofs() {
    let token = |made_for| Token {
        root: KeyFingerprint([8; 32]),
        mesh: MeshName::new("example").unwrap(),
        id: TokenId([2; 16]),
        secret: TokenSecret::from_bytes([3; 32]),
        made_for,
        relays: vec![control::RelayContact {
            name: relay("r1"),
            addresses: vec!["relay.example:4433".into()],
            draining: false,
        }],
    };
    let words = [token(TokenFor::Relay), token(TokenFor::Terminal(terminal("plant7")))]
        .map(|token| token.to_word().as_bytes().to_vec());
    for word in &words {
        let text = std::str::from_utf8(word).unwrap();
        assert_eq!(Token::from_word(text).unwrap().to_word().as_bytes(), word);
    }
    let [for_relay, for_terminal] = words;
    compare("token", Some("token"), &vec![("relay", for_relay), ("terminal", for_terminal)]);
    let signed = enrolment::renewal_to_sign(&MeshId([6; 16]), &[0x30, 0]);
    compare("renewal", None, &vec![("to-sign", signed)]);
}

/// Small numbers and words that stand on the wire by themselves.
#[test]
fn numbers_and_words() {
    let codes: Vectors = RefusalCode::ALL
        .iter()
        .map(|code| (code.word(), code.value().to_be_bytes().to_vec()))
        .collect();
    compare("refusal", None, &codes);

    let stream = |stream: LinkStream| vec![stream as u8];
    let words: Vectors = vec![
        ("alpn-link", Alpn::Link.wire().to_vec()),
        ("alpn-attachment", Alpn::Attachment.wire().to_vec()),
        ("alpn-session", Alpn::Session.wire().to_vec()),
        ("alpn-enrolment", Alpn::Enrolment.wire().to_vec()),
        ("stream-calls", stream(LinkStream::Calls)),
        ("stream-gossip", stream(LinkStream::Gossip)),
        ("stream-request", stream(LinkStream::Request)),
        ("relay-id-of-r1", RelayId::of(&MeshId([6; 16]), &relay("r1")).0.to_be_bytes().to_vec()),
    ];
    compare("word", None, &words);
}

// ---- What lets two versions live in one mesh (invariant 9) ------------------------------------------------------

/// A body with a section from a later version, in an envelope.
#[test]
fn an_unknown_section_is_skipped() {
    let (epoch, role) = (LoginEpoch(4), AttachmentRole::Primary);
    let login = control::Login { epoch, role, signature: signature() };
    let later = |body: SectionWriter| body.with(9, &"of a later version");
    let before = later(SectionWriter::new()).with(1, &login).finish();
    let behind = later(SectionWriter::new().with(1, &login)).finish();
    let built: Vectors = vec![
        ("unknown-section-before", Envelope { kind: 2, body: before }.to_bytes().to_vec()),
        ("unknown-section-behind", Envelope { kind: 2, body: behind }.to_bytes().to_vec()),
        (
            "unknown-kind",
            Envelope { kind: 60_000, body: Bytes::from_static(b"?") }.to_bytes().to_vec(),
        ),
    ];
    compare("envelope", Some("envelope"), &built);
    for (name, bytes) in &built[..2] {
        let message = ToRelay::from_envelope(&envelope_of(bytes)).unwrap();
        assert_eq!(message, Some(ToRelay::Login(login.clone())), "{name}");
        assert_eq!(codec::optional::<u64>(&envelope_of(bytes).body, 7), Ok(0), "{name}");
    }
}

/// A message that only a later version knows, between two that everybody knows: the stream goes on behind it.
#[tokio::test]
async fn an_unknown_message_kind_is_skipped() {
    let logout = ToRelay::Logout(control::Logout {});
    let mut stream = BytesMut::new();
    logout.to_envelope().put(&mut stream);
    Envelope { kind: 60_000, body: Bytes::from_static(b"\xff\xff not even sections") }
        .put(&mut stream);
    logout.to_envelope().put(&mut stream);

    let mut bytes = &stream[..];
    let mut read = Vec::new();
    while let Some(envelope) =
        Envelope::read(&mut bytes, limits::CONTROL_MESSAGE_BYTES).await.unwrap()
    {
        read.push(ToRelay::from_envelope(&envelope).unwrap());
        assert_eq!(
            ToTerminal::from_envelope(&Envelope { kind: 60_000, ..envelope.clone() }),
            Ok(None)
        );
        assert_eq!(ToPeer::from_envelope(&Envelope { kind: 60_000, ..envelope }), Ok(None));
    }
    assert_eq!(read, [Some(logout.clone()), None, Some(logout)]);
}

/// A record of a kind, with a section, that only a later version knows: carried byte for byte.
#[test]
fn an_unknown_record_is_carried_verbatim() {
    let payload = SectionWriter::new().with(1, &attachment_row()).with(9, &"later").finish();
    let record = Record::new(&draft(RecordKind(60_000), b"plant7", &payload));
    let mut stream = Bytes::from([record.as_bytes().as_ref(), record.as_bytes()].concat());
    let (first, second) = (Record::take(&mut stream).unwrap(), Record::take(&mut stream).unwrap());
    assert!(stream.is_empty());
    assert_eq!((first.as_bytes(), second.as_bytes()), (record.as_bytes(), record.as_bytes()));
    assert_eq!(rows::read::<rows::AttachmentRow>(first.payload()), Ok(attachment_row()));
}

/// The comparison itself can fail.
#[test]
fn a_changed_a_missing_and_a_left_over_vector_are_noticed() {
    let file = read_file("# comment\nsame 00\nchanged 01\nleft-over 02\nempty \n");
    let built: Vectors =
        vec![("same", vec![0]), ("changed", vec![9]), ("missing", vec![3]), ("empty", vec![])];
    let different = differences(&file, &built);
    assert_eq!(different.len(), 3, "{different:?}");
    assert!(differences(&file, &vec![("same", vec![0])]).len() == 3);
    assert!(differences(&read_file("same 00\n"), &vec![("same", vec![0])]).is_empty());
}
