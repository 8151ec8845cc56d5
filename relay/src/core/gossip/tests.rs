//! Two or three cores joined by hand, message by message. Whole meshes are in `tests/tests/gossip.rs`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tasuki_proto::gossip::{GossipMessage, Rows, Span, Want, Watermarks};
use tasuki_proto::record::{Draft, Record, RecordKind, Version};
use tasuki_proto::{Incarnation, MeshId, RefusalCode, RelayId, limits};

use super::{Config, Gossip, Input, Output, Write};
use crate::core::LinkId;

const MESH: MeshId = MeshId([1; 16]);
const ME: RelayId = RelayId(1);
const PEER: RelayId = RelayId(2);
const FAR: RelayId = RelayId(9);
const LINK: LinkId = LinkId(1);
const OTHER: LinkId = LinkId(2);

fn core() -> (Gossip, Instant) {
    #[allow(clippy::disallowed_methods, reason = "only differences are used")]
    let now = Instant::now();
    (Gossip::new(Config::new(ME, Incarnation(1), MESH, 5), now), now)
}

fn outputs(gossip: &mut Gossip) -> Vec<Output> {
    std::iter::from_fn(|| gossip.poll_output()).collect()
}

fn sends(gossip: &mut Gossip) -> Vec<(LinkId, GossipMessage)> {
    outputs(gossip)
        .into_iter()
        .filter_map(|output| match output {
            Output::Send(link, message) => Some((link, message)),
            _ => None,
        })
        .collect()
}

fn write(key: &str, payload: Option<&str>, lifetime_secs: u32) -> Input {
    Input::Write(Write {
        kind: RecordKind::ATTACHMENT,
        key: Bytes::copy_from_slice(key.as_bytes()),
        payload: payload.map(|p| Bytes::copy_from_slice(p.as_bytes())),
        lifetime_secs,
        wall_ms: 7,
        scope: 0,
    })
}

fn draft(origin: RelayId, incarnation: u64, sequence: u64, key: &'static str) -> Draft<'static> {
    Draft {
        origin,
        kind: RecordKind::ATTACHMENT,
        key: key.as_bytes(),
        version: Version { incarnation: Incarnation(incarnation), sequence },
        wall_ms: 7,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: b"p",
    }
}

fn span(from: u64, to: u64, horizon: u64) -> Span {
    Span { origin: FAR, incarnation: Incarnation(1), from, to, horizon, last: true }
}

fn rows(span: Span, records: &[Record]) -> GossipMessage {
    let records: Vec<u8> = records.iter().flat_map(|r| r.as_bytes().to_vec()).collect();
    GossipMessage::Rows(Rows { span, records: records.into() })
}

fn far(sequence: u64, key: &'static str) -> Record {
    Record::new(&draft(FAR, 1, sequence, key))
}

fn has(gossip: &Gossip, key: &str) -> bool {
    gossip.table().live(RecordKind::ATTACHMENT, key.as_bytes()).next().is_some()
}

#[test]
fn a_storm_on_one_row_costs_one_send() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let want = Want { origin: ME, incarnation: Incarnation(0), watermark: 0 };
    gossip.handle(Input::Message(LINK, GossipMessage::Want(want)), now);
    outputs(&mut gossip);
    for number in 0..100 {
        gossip.handle(write("k", Some(&number.to_string()), 0), now);
    }
    // What was sent before the network was full, and no queue behind it.
    let sent = sends(&mut gossip).len();
    assert!(sent <= gossip.config.sends_in_flight, "{sent}");
    for _ in 0..sent {
        gossip.handle(Input::Sent(LINK), now);
    }
    let later = sends(&mut gossip);
    let [(_, GossipMessage::Rows(message))] = &later[..] else { panic!("{later:?}") };
    assert_eq!(message.span.to, 100);
    assert_eq!(message.parse().unwrap()[0].payload(), b"99");
    assert_eq!(message.parse().unwrap().len(), 1);
}

#[test]
fn a_clock_that_jumps_a_day_changes_no_order_and_no_lifetime() {
    const DAY_MS: u64 = 86_400_000;
    let (mut gossip, now) = core();
    let at = |sequence, wall_ms, lifetime_secs| {
        Record::new(&Draft { wall_ms, lifetime_secs, ..draft(FAR, 1, sequence, "k") })
    };
    gossip.handle(Input::LinkUp(LINK, FAR), now);
    // Forwards and back: the later version counts, whatever the time beside it.
    let times = [10 * DAY_MS, 11 * DAY_MS, 9 * DAY_MS, 0, u64::MAX];
    for (sequence, wall_ms) in (1..).zip(times) {
        let message = rows(span(sequence - 1, sequence, 0), &[at(sequence, wall_ms, 60)]);
        gossip.handle(Input::Message(LINK, message), now);
        let row = gossip.table().live(RecordKind::ATTACHMENT, b"k").next().unwrap();
        assert_eq!((row.version().sequence, row.wall_ms()), (sequence, wall_ms));
    }
    // Its lifetime is what passes here.
    gossip.handle(Input::Tick, now + Duration::from_secs(59));
    assert!(has(&gossip, "k"));
    gossip.handle(Input::Tick, now + Duration::from_secs(61));
    assert!(!has(&gossip, "k"));
}

#[test]
fn a_write_that_changes_nothing_is_left_out() {
    let (mut gossip, now) = core();
    gossip.handle(write("k", Some("v"), 0), now);
    gossip.handle(write("k", Some("v"), 0), now);
    gossip.handle(write("unknown", None, 60), now);
    assert_eq!(gossip.table().watermark(ME).sequence, 1);
}

#[test]
fn rows_come_once_and_go_on_but_not_back() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::LinkUp(OTHER, RelayId(3)), now);
    let want = Want { origin: FAR, incarnation: Incarnation(0), watermark: 0 };
    for link in [LINK, OTHER] {
        gossip.handle(Input::Message(link, GossipMessage::Want(want)), now);
    }
    outputs(&mut gossip);
    let message = rows(span(0, 1, 0), &[far(1, "a")]);
    gossip.handle(Input::Message(LINK, message.clone()), now);
    assert_eq!(sends(&mut gossip), [(OTHER, message.clone())]);
    gossip.handle(Input::Message(OTHER, message), now);
    let answer = sends(&mut gossip);
    assert!(matches!(answer[..], [(OTHER, GossipMessage::Prune(_))]), "{answer:?}");
    assert_eq!(gossip.counters().stale, 1);
}

#[test]
fn a_gap_is_answered_with_want() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    gossip.handle(Input::Message(LINK, rows(span(5, 6, 0), &[far(6, "a")])), now);
    let want = Want { origin: FAR, incarnation: Incarnation(0), watermark: 0 };
    assert_eq!(sends(&mut gossip), [(LINK, GossipMessage::Want(want))]);
    assert!(!has(&gossip, "a"));
}

#[test]
fn below_the_horizon_absence_deletes_at_the_end() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let first = [far(1, "a"), far(2, "b"), far(3, "c")];
    gossip.handle(Input::Message(LINK, rows(span(0, 3, 0), &first)), now);
    // Meanwhile b was deleted (4, discarded), and a written again (5).
    gossip.handle(Input::Message(LINK, rows(span(3, 5, 4), &[far(5, "a")])), now);
    assert!(has(&gossip, "b"), "what does not begin at 0 cannot tell of a discarded deletion");
    outputs(&mut gossip);
    let part = Span { last: false, ..span(0, 3, 4) };
    gossip.handle(Input::Message(LINK, rows(part, &[far(3, "c")])), now);
    assert!(has(&gossip, "a") && has(&gossip, "b"), "nothing flaps");
    gossip.handle(Input::Message(LINK, rows(span(3, 5, 4), &[far(5, "a")])), now);
    assert!(has(&gossip, "a") && !has(&gossip, "b") && has(&gossip, "c"));
    assert_eq!(gossip.table().horizon(FAR), 4);
    assert_eq!(gossip.table().watermark(FAR).sequence, 5);
}

#[test]
fn a_discarded_tombstone_makes_lagging_peers_begin_anew() {
    let (mut gossip, now) = core();
    gossip.handle(write("a", Some("v"), 0), now);
    gossip.handle(write("b", Some("v"), 0), now);
    gossip.handle(write("a", None, 10), now);
    let later = now + Duration::from_secs(30);
    gossip.handle(Input::Tick, later);
    assert_eq!(gossip.table().horizon(ME), 3);
    gossip.handle(Input::LinkUp(LINK, PEER), later);
    outputs(&mut gossip);
    let want = Want { origin: ME, incarnation: Incarnation(1), watermark: 2 };
    gossip.handle(Input::Message(LINK, GossipMessage::Want(want)), later);
    let sent = sends(&mut gossip);
    let [(_, GossipMessage::Rows(message))] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!((message.span.from, message.span.to, message.span.horizon), (0, 3, 3));
    assert_eq!(message.parse().unwrap().len(), 1);
}

#[test]
fn a_newer_life_of_this_relay_is_outlived() {
    let (mut gossip, now) = core();
    gossip.handle(write("a", Some("v"), 0), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    let version = Version { incarnation: Incarnation(7), sequence: 40 };
    let marks = Watermarks { origins: vec![(ME, version)] };
    gossip.handle(Input::Message(LINK, GossipMessage::Watermarks(marks)), now);
    assert!(outputs(&mut gossip).contains(&Output::OwnIncarnation(Incarnation(8))));
    assert_eq!(gossip.incarnation(), Incarnation(8));
    assert!(has(&gossip, "a"));
}

#[test]
fn a_greater_incarnation_voids_and_a_smaller_is_dropped() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::Message(LINK, rows(span(0, 2, 0), &[far(1, "a"), far(2, "b")])), now);
    let newer = Span { incarnation: Incarnation(2), ..span(0, 1, 0) };
    let record = Record::new(&draft(FAR, 2, 1, "c"));
    gossip.handle(Input::Message(LINK, rows(newer, &[record])), now);
    assert!(!has(&gossip, "a") && !has(&gossip, "b") && has(&gossip, "c"));
    gossip.handle(Input::Message(LINK, rows(span(2, 3, 0), &[far(3, "a")])), now);
    assert!(!has(&gossip, "a") && has(&gossip, "c"));
}

#[test]
fn what_was_announced_and_does_not_come_is_asked_for_elsewhere() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::LinkUp(OTHER, RelayId(3)), now);
    gossip.handle(Input::Message(LINK, rows(span(0, 1, 0), &[far(1, "a")])), now);
    outputs(&mut gossip);
    let version = Version { incarnation: Incarnation(1), sequence: 2 };
    let marks = GossipMessage::Watermarks(Watermarks { origins: vec![(FAR, version)] });
    gossip.handle(Input::Message(OTHER, marks), now);
    assert_eq!(sends(&mut gossip), []);
    let due = gossip.poll_timeout().unwrap();
    assert_eq!(due, now + gossip.config.graft_delay);
    gossip.handle(Input::Tick, due);
    let sent = sends(&mut gossip);
    assert!(matches!(sent[..], [(OTHER, GossipMessage::Want(_))]), "{sent:?}");
}

#[test]
fn unsound_rows_cut_the_link() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    let stranger = Record::new(&draft(RelayId(77), 1, 1, "a"));
    gossip.handle(Input::Message(LINK, rows(span(0, 1, 0), &[stranger])), now);
    assert_eq!(outputs(&mut gossip), [Output::Cut(LINK, RefusalCode::ProtocolError)]);
    assert!(gossip.table().is_empty());
}

#[test]
fn origins_are_bounded() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let version = Version { incarnation: Incarnation(1), sequence: 1 };
    for block in 0..3 {
        let first = 100 + block * limits::GOSSIP_WATERMARKS as u64;
        let origins = (first..first + limits::GOSSIP_WATERMARKS as u64)
            .map(|origin| (RelayId(origin), version))
            .collect();
        let marks = GossipMessage::Watermarks(Watermarks { origins });
        gossip.handle(Input::Message(LINK, marks), now);
        sends(&mut gossip);
    }
    assert!(gossip.table().origin_count() <= limits::GOSSIP_ORIGINS);
    let link = &gossip.links[&LINK];
    assert!(
        link.cursors.len() <= limits::GOSSIP_ORIGINS && link.words.len() <= limits::GOSSIP_ORIGINS
    );
    assert!(gossip.counters().origin_limit > 0);
}

#[test]
fn lifetimes_of_replaced_rows_do_not_pile_up() {
    let (mut gossip, now) = core();
    for number in 0..200_000 {
        gossip.handle(write("k", Some(&number.to_string()), 3600), now);
        outputs(&mut gossip);
    }
    assert!(gossip.lifetime_count < 70_000, "{}", gossip.lifetime_count);
    gossip.handle(Input::Tick, now + Duration::from_secs(3700));
    assert!(!has(&gossip, "k"));
}

#[test]
fn only_a_key_makes_a_term_and_persisted_rows_need_no_check() {
    let (mut gossip, now) = core();
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let mut key = [0; 32];
    key.copy_from_slice(pair.public_key().as_ref());
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let record = |sequence, name| {
        let draft = draft(RelayId::AUTHORITY, 1, sequence, name);
        Record::signed(&Draft { kind: RecordKind::ACCOUNT, ..draft }, &MESH, &pair)
    };
    let span = Span { origin: RelayId::AUTHORITY, ..span(0, 2, 0) };
    let message = rows(span, &[record(1, "a"), record(2, "b")]);
    gossip.handle(Input::Message(LINK, message.clone()), now);
    assert_eq!(gossip.counters().unknown_terms, 1);
    assert!(gossip.table().is_empty());
    gossip.handle(Input::AuthorityKey(Incarnation(1), key), now);
    gossip.handle(Input::Message(LINK, message), now);
    let verified = outputs(&mut gossip);
    assert_eq!(verified.iter().filter(|o| matches!(o, Output::Verified(_))).count(), 2);
    assert!(gossip.table_mut().authority_row(RecordKind::ACCOUNT, b"a").is_some());

    let (mut restarted, now) = core();
    restarted.handle(Input::Authority(record(2, "b")), now);
    assert_eq!(restarted.table().ready(RelayId::AUTHORITY), 2);
    assert_eq!(restarted.table().horizon(RelayId::AUTHORITY), 1);
    assert_eq!(restarted.next_authority_version(Incarnation(1)).sequence, 3);
}

#[test]
fn equal_tables_have_equal_hashes_whatever_the_order() {
    let (mut one, now) = core();
    let (mut two, _) = core();
    for gossip in [&mut one, &mut two] {
        gossip.handle(Input::LinkUp(LINK, PEER), now);
    }
    let records = [far(1, "a"), far(2, "b"), far(3, "c")];
    one.handle(Input::Message(LINK, rows(span(0, 3, 0), &records)), now);
    for (index, record) in records.iter().enumerate() {
        let at = index as u64;
        let message = rows(span(at, at + 1, 0), std::slice::from_ref(record));
        two.handle(Input::Message(LINK, message), now);
    }
    assert_eq!(one.table().hash(), two.table().hash());
    two.handle(Input::Message(LINK, rows(span(3, 4, 0), &[far(4, "d")])), now);
    assert_ne!(one.table().hash(), two.table().hash());
}

#[test]
fn silence_forgets_and_a_grave_keeps_it_so() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::Message(LINK, rows(span(0, 1, 0), &[far(1, "a")])), now);
    gossip.handle(Input::Reachable(BTreeSet::from([PEER])), now);
    let later = now + gossip.config.silence;
    gossip.handle(Input::Tick, later);
    assert!(!has(&gossip, "a"));
    gossip.handle(Input::Message(LINK, rows(span(0, 1, 0), &[far(1, "a")])), later);
    assert!(!has(&gossip, "a"), "what was forgotten does not come back");
    gossip.handle(Input::Message(LINK, rows(span(0, 2, 0), &[far(1, "a"), far(2, "b")])), later);
    assert!(has(&gossip, "a") && has(&gossip, "b"), "something newer does");
}

#[test]
fn an_unknown_term_is_told_but_not_with_every_message() {
    let (mut gossip, now) = core();
    gossip.handle(Input::AuthorityKey(Incarnation(1), [1; 32]), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let mut told = |term: u64, at: Duration| {
        let version = Version { incarnation: Incarnation(term), sequence: 1 };
        let marks = Watermarks { origins: vec![(RelayId::AUTHORITY, version)] };
        gossip.handle(Input::Message(LINK, GossipMessage::Watermarks(marks)), now + at);
        let terms = outputs(&mut gossip).into_iter().filter_map(|output| match output {
            Output::UnknownTerm(term) => Some(term.0),
            _ => None,
        });
        terms.collect::<Vec<_>>()
    };
    assert!(told(1, Duration::ZERO).is_empty(), "its key is known");
    assert_eq!(told(2, Duration::ZERO), [2]);
    assert!(told(2, Duration::from_secs(9)).is_empty());
    assert!(told(3, Duration::from_secs(9)).is_empty(), "another one too");
    assert_eq!(told(2, Duration::from_secs(11)), [2], "a lie in between does not hide it");
}
