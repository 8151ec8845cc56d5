//! Two or three cores joined by hand, message by message. Whole meshes are in `tests/tests/gossip.rs`, sequences of
//! hostile messages in `hostile.rs`.

mod hostile;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ring::signature::Ed25519KeyPair;
use tasuki_proto::gossip::{GossipMessage, Head, Heads, Rows, Span, Want};
use tasuki_proto::identity::{PublicKey, Signer};
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

fn start() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "only differences are used")]
    Instant::now()
}

fn signer(seed: u8) -> Signer {
    Signer::from_seed(&[seed; 32])
}

/// The core of a relay whose key is made from `seed`.
fn core_of(id: RelayId, incarnation: u64, seed: u8, now: Instant) -> Gossip {
    let config = Config::new(id, Incarnation(incarnation), MESH, signer(seed), [5, 6]);
    Gossip::new(config, now)
}

/// The core under test, which knows the key of [`FAR`].
fn core() -> (Gossip, Instant) {
    let now = start();
    let mut gossip = core_of(ME, 1, 1, now);
    gossip.handle(Input::RelayKey(FAR, Some(signer(9).public())), now);
    (gossip, now)
}

/// The origin [`FAR`] itself.
fn far(incarnation: u64, now: Instant) -> Gossip {
    core_of(FAR, incarnation, 9, now)
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

/// What a relay tells of `origin` to a link that has everything up to `since`.
fn told(gossip: &mut Gossip, origin: RelayId, since: u64, now: Instant) -> Vec<Rows> {
    let link = LinkId(1000);
    gossip.handle(Input::LinkUp(link, RelayId(1000)), now);
    let incarnation = gossip.table().watermark(origin).incarnation;
    let want = Want { origin, incarnation, watermark: since };
    gossip.handle(Input::Message(link, GossipMessage::Want(want)), now);
    let mut rows = Vec::new();
    loop {
        let sent = sends(gossip);
        if sent.is_empty() {
            break;
        }
        for (_, message) in sent {
            gossip.handle(Input::Sent(link), now);
            if let GossipMessage::Rows(part) = message {
                rows.push(part);
            }
        }
    }
    gossip.handle(Input::LinkDown(link), now);
    rows
}

/// As [`told`], in one message.
fn message(gossip: &mut Gossip, since: u64, now: Instant) -> GossipMessage {
    let mut rows = told(gossip, gossip.config.relay, since, now);
    assert_eq!(rows.len(), 1);
    GossipMessage::Rows(rows.remove(0))
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

fn has(gossip: &Gossip, key: &str) -> bool {
    gossip.table().live(RecordKind::ATTACHMENT, key.as_bytes()).next().is_some()
}

/// The head of an origin as it is signed after everything that was written.
fn head(gossip: &mut Gossip, now: Instant) -> Head {
    let origin = gossip.config.relay;
    told(gossip, origin, 0, now).pop().expect("rows").head
}

/// A record of the authority.
fn account(sequence: u64, key: &str) -> Record {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let draft = Draft {
        origin: RelayId::AUTHORITY,
        kind: RecordKind::ACCOUNT,
        key: key.as_bytes(),
        version: Version { incarnation: Incarnation(1), sequence },
        wall_ms: 7,
        scope: 0,
        lifetime_secs: 0,
        tombstone: false,
        payload: b"p",
    };
    Record::signed(&draft, &MESH, &pair)
}

/// A registrar with these accounts.
fn registrar(accounts: &[&str], now: Instant) -> Gossip {
    let mut gossip = core_of(PEER, 1, 2, now);
    for (sequence, key) in (1..).zip(accounts) {
        gossip.handle(Input::Authority(account(sequence, key)), now);
    }
    gossip.handle(Input::Issuer(Incarnation(1), signer(3)), now);
    outputs(&mut gossip);
    gossip
}

fn from_authority(gossip: &mut Gossip, since: u64, now: Instant) -> GossipMessage {
    GossipMessage::Rows(told(gossip, RelayId::AUTHORITY, since, now).remove(0))
}

fn is_account(gossip: &Gossip, key: &str) -> bool {
    gossip.table().authority_row(RecordKind::ACCOUNT, key.as_bytes()).is_some()
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
    // The first row left at once; the others wait for the next head.
    assert_eq!(sends(&mut gossip).len(), 1);
    gossip.handle(Input::Sent(LINK), now);
    let due = gossip.poll_timeout().unwrap();
    assert_eq!(due, now + gossip.config.head_interval);
    gossip.handle(Input::Tick, due);
    let later = sends(&mut gossip);
    let [(_, GossipMessage::Rows(message))] = &later[..] else { panic!("{later:?}") };
    assert_eq!(message.span.to, 100);
    assert_eq!(message.parse().unwrap()[0].payload(), b"99");
    assert_eq!(message.parse().unwrap().len(), 1);
}

#[test]
fn a_clock_that_jumps_a_day_changes_no_order() {
    const DAY_MS: u64 = 86_400_000;
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    gossip.handle(Input::LinkUp(LINK, FAR), now);
    // Forwards and back: the later version counts, whatever the time beside it.
    let times = [10 * DAY_MS, 11 * DAY_MS, 9 * DAY_MS, 0, u64::MAX];
    for (sequence, wall_ms) in (1..).zip(times) {
        let Input::Write(row) = write("k", Some(&sequence.to_string()), 0) else { unreachable!() };
        origin.handle(Input::Write(Write { wall_ms, ..row }), now);
        gossip.handle(Input::Message(LINK, message(&mut origin, sequence - 1, now)), now);
        let row = gossip.table().live(RecordKind::ATTACHMENT, b"k").next().unwrap();
        assert_eq!((row.version().sequence, row.wall_ms()), (sequence, wall_ms));
    }
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
    let mut origin = far(1, now);
    origin.handle(write("a", Some("v"), 0), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::LinkUp(OTHER, RelayId(3)), now);
    let want = Want { origin: FAR, incarnation: Incarnation(0), watermark: 0 };
    for link in [LINK, OTHER] {
        gossip.handle(Input::Message(link, GossipMessage::Want(want)), now);
    }
    outputs(&mut gossip);
    let message = message(&mut origin, 0, now);
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
    let mut origin = far(1, now);
    origin.handle(write("a", Some("v"), 0), now);
    origin.handle(write("b", Some("v"), 0), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    gossip.handle(Input::Message(LINK, message(&mut origin, 1, now)), now);
    let want = Want { origin: FAR, incarnation: Incarnation(0), watermark: 0 };
    assert_eq!(sends(&mut gossip), [(LINK, GossipMessage::Want(want))]);
    assert!(!has(&gossip, "b"));
}

#[test]
fn below_the_horizon_absence_deletes_at_the_end() {
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    for key in ["a", "b", "c"] {
        origin.handle(write(key, Some("v"), 0), now);
    }
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    // b was deleted and the tombstone discarded, a was written again.
    origin.handle(write("b", None, 10), now);
    let later = now + Duration::from_secs(11);
    origin.handle(write("a", Some("w"), 0), later);
    let whole = message(&mut origin, 3, later);
    let GossipMessage::Rows(rows) = &whole else { unreachable!() };
    assert_eq!((rows.span.from, rows.span.to, rows.head.horizon), (0, 5, 4));
    // What does not begin at 0 cannot tell of a discarded deletion.
    let records = rows.parse().unwrap().pop().unwrap().as_bytes().clone();
    let part = Rows { span: Span { from: 3, to: 5 }, records, ..*rows };
    outputs(&mut gossip);
    gossip.handle(Input::Message(LINK, GossipMessage::Rows(part)), later);
    assert!(has(&gossip, "b"));
    assert!(matches!(sends(&mut gossip)[..], [(LINK, GossipMessage::Want(_))]));
    gossip.handle(Input::Message(LINK, whole), later);
    assert!(has(&gossip, "a") && !has(&gossip, "b") && has(&gossip, "c"));
    assert_eq!(gossip.table().horizon(FAR), 4);
    assert_eq!(gossip.table().watermark(FAR).sequence, 5);
    assert_eq!(gossip.counters().unproven, 0);
}

#[test]
fn a_tombstone_ends_everywhere_with_the_head_that_says_so() {
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    origin.handle(write("a", Some("v"), 0), now);
    origin.handle(write("b", Some("v"), 0), now);
    origin.handle(write("a", None, 10), now);
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    assert_eq!(gossip.table().origin_len(FAR), 2);
    let later = now + Duration::from_secs(30);
    gossip.handle(Input::Tick, later);
    assert_eq!(gossip.table().origin_len(FAR), 2, "its lifetime is the origin's to end");
    origin.handle(write("c", Some("v"), 0), later);
    gossip.handle(Input::Message(LINK, message(&mut origin, 3, later)), later);
    assert_eq!(gossip.table().origin_len(FAR), 2);
    assert_eq!(gossip.table().horizon(FAR), 3);
    assert_eq!(gossip.table().hash(), origin.table().hash());
}

#[test]
fn a_discarded_tombstone_makes_lagging_peers_begin_anew() {
    let (mut gossip, now) = core();
    gossip.handle(write("a", Some("v"), 0), now);
    gossip.handle(write("b", Some("v"), 0), now);
    gossip.handle(write("a", None, 10), now);
    let later = now + Duration::from_secs(30);
    gossip.handle(write("b", Some("w"), 0), later);
    let rows = told(&mut gossip, ME, 2, later);
    let [rows] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((rows.span.from, rows.span.to, rows.head.horizon), (0, 4, 3));
    assert_eq!(rows.parse().unwrap().len(), 1);
}

#[test]
fn a_newer_life_of_this_relay_is_outlived() {
    let (mut gossip, now) = core();
    gossip.handle(write("a", Some("v"), 0), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    let mut earlier = core_of(ME, 7, 1, now);
    earlier.handle(write("old", Some("v"), 0), now);
    let heads = vec![head(&mut earlier, now)];
    gossip.handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads })), now);
    assert!(outputs(&mut gossip).contains(&Output::OwnIncarnation(Incarnation(8))));
    assert_eq!(gossip.incarnation(), Incarnation(8));
    assert!(has(&gossip, "a") && !has(&gossip, "old"));
    // Another process with this relay's key moves it once a second at most.
    let mut twin = core_of(ME, 20, 1, now);
    twin.handle(write("x", Some("v"), 0), now);
    let heads = vec![head(&mut twin, now)];
    gossip.handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads })), now);
    assert_eq!(gossip.incarnation(), Incarnation(8));
    gossip.handle(Input::Tick, now + Duration::from_secs(1));
    assert_eq!(gossip.incarnation(), Incarnation(21));
}

#[test]
fn a_greater_incarnation_voids_and_a_smaller_is_dropped() {
    let (mut gossip, now) = core();
    let (mut first, mut second) = (far(1, now), far(2, now));
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    first.handle(write("a", Some("v"), 0), now);
    first.handle(write("b", Some("v"), 0), now);
    gossip.handle(Input::Message(LINK, message(&mut first, 0, now)), now);
    second.handle(write("c", Some("v"), 0), now);
    gossip.handle(Input::Message(LINK, message(&mut second, 0, now)), now);
    assert!(!has(&gossip, "a") && !has(&gossip, "b") && has(&gossip, "c"));
    first.handle(write("a", Some("w"), 0), now);
    gossip.handle(Input::Message(LINK, message(&mut first, 2, now)), now);
    assert!(!has(&gossip, "a") && has(&gossip, "c"));
}

#[test]
fn what_was_announced_and_does_not_come_is_asked_for_elsewhere() {
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::LinkUp(OTHER, RelayId(3)), now);
    origin.handle(write("a", Some("v"), 0), now);
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    outputs(&mut gossip);
    origin.handle(write("b", Some("v"), 0), now);
    let heads = vec![head(&mut origin, now)];
    gossip.handle(Input::Message(OTHER, GossipMessage::Heads(Heads { heads })), now);
    assert_eq!(sends(&mut gossip), []);
    let due = now + gossip.config.graft_delay;
    gossip.handle(Input::Tick, due);
    let sent = sends(&mut gossip);
    let asked =
        |(link, m): &(LinkId, GossipMessage)| *link == OTHER && matches!(m, GossipMessage::Want(_));
    assert!(sent.iter().any(asked), "{sent:?}");
}

#[test]
fn unsound_rows_cut_the_link() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    outputs(&mut gossip);
    let (mut origin, mut stranger) = (far(1, now), core_of(RelayId(77), 1, 7, now));
    origin.handle(write("a", Some("v"), 0), now);
    stranger.handle(write("a", Some("v"), 0), now);
    let head = head(&mut origin, now);
    let GossipMessage::Rows(rows) = message(&mut stranger, 0, now) else { unreachable!() };
    gossip.handle(Input::Message(LINK, GossipMessage::Rows(Rows { head, ..rows })), now);
    assert_eq!(outputs(&mut gossip), [Output::Cut(LINK, RefusalCode::ProtocolError)]);
    assert!(gossip.table().is_empty());
}

#[test]
fn heads_without_a_known_key_wait_for_it_and_are_bounded() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let mut origin = core_of(RelayId(77), 1, 7, now);
    origin.handle(write("a", Some("v"), 0), now);
    let real = head(&mut origin, now);
    let told = |gossip: &mut Gossip, heads| {
        gossip.handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads })), now);
        sends(gossip)
    };
    told(&mut gossip, vec![real]);
    for block in 0..3 * limits::GOSSIP_HEADS_WAITING as u64 / 100 {
        let first = 10_000 + block * 100;
        let heads = (first..first + 100).map(|id| Head { origin: RelayId(id), ..real });
        told(&mut gossip, heads.collect());
    }
    assert_eq!(gossip.links[&LINK].waiting.len(), limits::GOSSIP_HEADS_WAITING);
    assert_eq!(gossip.table().origin_count(), 1, "only its own");
    assert!(gossip.links[&LINK].cursors.len() <= 2);
    // The account arrives.
    gossip.handle(Input::RelayKey(RelayId(77), Some(signer(7).public())), now);
    let sent = sends(&mut gossip);
    assert!(matches!(sent[..], [(LINK, GossipMessage::Want(_))]), "{sent:?}");
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    assert!(has(&gossip, "a"));
    // It is revoked: everything it said is void, and it is not heard any longer.
    gossip.handle(Input::RelayKey(RelayId(77), None), now);
    assert!(!has(&gossip, "a"));
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    assert!(!has(&gossip, "a"));
}

#[test]
fn lifetimes_of_replaced_rows_do_not_pile_up() {
    let (mut gossip, mut now) = core();
    for number in 0..5_000 {
        gossip.handle(write("k", Some(&number.to_string()), 3600), now);
        outputs(&mut gossip);
        now += gossip.config.head_interval;
        gossip.handle(Input::Tick, now);
    }
    assert!(gossip.own_ends.len() < 10, "{}", gossip.own_ends.len());
}

#[test]
fn only_a_key_makes_a_term_and_kept_rows_need_their_head() {
    let (mut gossip, now) = core();
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let mut registrar = registrar(&["a", "b"], now);
    let message = from_authority(&mut registrar, 0, now);
    gossip.handle(Input::Message(LINK, message.clone()), now);
    assert_eq!(gossip.counters().unknown_keys, 1);
    assert!(gossip.table().is_empty());
    gossip.handle(Input::AuthorityKey(Incarnation(1), signer(3).public()), now);
    gossip.handle(Input::Message(LINK, message), now);
    let found = outputs(&mut gossip);
    let kept: Vec<Record> = found
        .iter()
        .filter_map(|output| match output {
            Output::Verified(record) => Some(record.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(kept.len(), 2);
    let head = *gossip.table().head(RelayId::AUTHORITY).unwrap();
    assert!(found.contains(&Output::AuthorityHead(head)));
    assert!(is_account(&gossip, "a"));

    // After a restart they are used at once, and passed on only when they are all there.
    for (records, sequence) in [(&kept[..], 2), (&kept[..1], 0)] {
        let (mut restarted, now) = core();
        restarted.handle(Input::AuthorityKey(Incarnation(1), signer(3).public()), now);
        for record in records {
            restarted.handle(Input::Authority(record.clone()), now);
        }
        restarted.handle(Input::AuthorityHead(head), now);
        assert!(is_account(&restarted, "a"));
        assert_eq!(restarted.table().watermark(RelayId::AUTHORITY).sequence, sequence);
    }
}

#[test]
fn equal_tables_have_equal_hashes_whatever_the_order() {
    let (mut one, now) = core();
    let (mut two, _) = core();
    let mut origin = far(1, now);
    for gossip in [&mut one, &mut two] {
        gossip.handle(Input::LinkUp(LINK, PEER), now);
    }
    for (at, key) in ["a", "b", "c"].into_iter().enumerate() {
        origin.handle(write(key, Some("v"), 0), now);
        two.handle(Input::Message(LINK, message(&mut origin, at as u64, now)), now);
    }
    one.handle(Input::Message(LINK, message(&mut origin, 0, now)), now);
    assert_eq!(one.table().hash(), two.table().hash());
    assert_eq!(one.table().hash(), origin.table().hash());
    origin.handle(write("d", Some("v"), 0), now);
    two.handle(Input::Message(LINK, message(&mut origin, 3, now)), now);
    assert_ne!(one.table().hash(), two.table().hash());
}

#[test]
fn silence_forgets_and_a_grave_keeps_it_so() {
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    origin.handle(write("a", Some("v"), 0), now);
    let first = message(&mut origin, 0, now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    gossip.handle(Input::Message(LINK, first.clone()), now);
    gossip.handle(Input::Reachable(BTreeSet::from([PEER])), now);
    let later = now + gossip.config.silence;
    gossip.handle(Input::Tick, later);
    assert!(!has(&gossip, "a"));
    gossip.handle(Input::Message(LINK, first), later);
    assert!(!has(&gossip, "a"), "what was forgotten does not come back");
    origin.handle(write("b", Some("v"), 0), later);
    gossip.handle(Input::Message(LINK, message(&mut origin, 0, later)), later);
    assert!(has(&gossip, "a") && has(&gossip, "b"), "something newer does");
}

#[test]
fn an_unknown_term_is_told_but_not_with_every_message() {
    let (mut gossip, now) = core();
    gossip.handle(Input::AuthorityKey(Incarnation(1), PublicKey([1; 32])), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let mut registrar = registrar(&["a"], now);
    let real = told(&mut registrar, RelayId::AUTHORITY, 0, now).remove(0).head;
    let mut told = |term: u64, at: Duration| {
        let version = Version { incarnation: Incarnation(term), sequence: 1 };
        let heads = vec![Head { version, ..real }];
        gossip.handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads })), now + at);
        let terms = outputs(&mut gossip).into_iter().filter_map(|output| match output {
            Output::UnknownTerm(term) => Some(term.0),
            _ => None,
        });
        terms.collect::<Vec<_>>()
    };
    assert_eq!(told(2, Duration::ZERO), [2]);
    assert!(told(2, Duration::from_secs(9)).is_empty());
    assert!(told(3, Duration::from_secs(9)).is_empty(), "another one too");
    assert_eq!(told(2, Duration::from_secs(11)), [2], "a lie in between does not hide it");
}

#[test]
fn many_rows_come_in_parts_also_while_the_origin_goes_on() {
    let (mut gossip, mut now) = core();
    let mut origin = far(1, now);
    let big = "x".repeat(1000);
    for number in 0..400 {
        origin.handle(write(&format!("k{number}"), Some(&big), 0), now);
    }
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    origin.handle(Input::LinkUp(LINK, ME), now);
    let want = Want { origin: FAR, incarnation: Incarnation(0), watermark: 0 };
    origin.handle(Input::Message(LINK, GossipMessage::Want(want)), now);
    let mut parts = 0;
    let mut rest: Vec<_> = sends(&mut origin).into_iter().map(|(_, message)| message).collect();
    while let Some(message) = (!rest.is_empty()).then(|| rest.remove(0)) {
        if matches!(message, GossipMessage::Rows(_)) && parts < 6 {
            parts += 1;
            // Rows that were told, and rows that were not, change or go.
            origin.handle(write(&format!("k{parts}"), Some("changed"), 0), now);
            origin.handle(write(&format!("k{}", 399 - parts), None, 300), now);
            now += origin.config.head_interval;
            origin.handle(Input::Tick, now);
        }
        gossip.handle(Input::Message(LINK, message), now);
        origin.handle(Input::Sent(LINK), now);
        rest.extend(sends(&mut origin).into_iter().map(|(_, message)| message));
    }
    assert!(parts > 5, "{parts}");
    let counters = *gossip.counters();
    assert_eq!((counters.unproven, counters.malformed), (0, 0), "{counters:?}");
    assert_eq!(gossip.table().hash(), origin.table().hash());
    assert!(!has(&gossip, "k398"));
}

#[test]
fn many_proven_rows_take_their_turns() {
    let (mut gossip, now) = core();
    let mut origin = far(1, now);
    let rows = 2 * limits::GOSSIP_APPLIED_AT_ONCE + 10;
    for number in 0..rows {
        origin.handle(write(&format!("k{number}"), Some("v"), 0), now);
    }
    outputs(&mut origin);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    for part in told(&mut origin, FAR, 0, now) {
        gossip.handle(Input::Message(LINK, GossipMessage::Rows(part)), now);
    }
    assert_eq!(gossip.table().origin_len(FAR), limits::GOSSIP_APPLIED_AT_ONCE);
    assert_eq!(gossip.table().watermark(FAR).sequence, 0);
    // What comes meanwhile is asked for afterwards.
    origin.handle(write("late", Some("v"), 0), now);
    gossip.handle(Input::Message(LINK, message(&mut origin, rows as u64, now)), now);
    outputs(&mut gossip);
    let mut later = now;
    for _ in 0..2 {
        later = gossip.poll_timeout().unwrap();
        gossip.handle(Input::Tick, later);
    }
    assert_eq!(gossip.table().origin_len(FAR), rows);
    let sent = sends(&mut gossip);
    let asked = |(_, m): &(LinkId, GossipMessage)| matches!(m, GossipMessage::Want(want) if want.watermark == rows as u64);
    assert!(sent.iter().any(asked), "{sent:?}");
    gossip.handle(Input::Message(LINK, message(&mut origin, rows as u64, later)), later);
    assert_eq!(gossip.table().hash(), origin.table().hash());
}

#[test]
fn a_registrar_that_was_replaced_signs_no_more() {
    let now = start();
    let mut old = registrar(&["a"], now);
    let mut new = core_of(RelayId(5), 1, 5, now);
    new.handle(Input::Issuer(Incarnation(2), signer(4)), now);
    let pair = Ed25519KeyPair::from_seed_unchecked(&[4; 32]).unwrap();
    let record = |sequence, key: &str| {
        Record::signed(
            &Draft {
                origin: RelayId::AUTHORITY,
                kind: RecordKind::ACCOUNT,
                key: key.as_bytes(),
                version: Version { incarnation: Incarnation(2), sequence },
                wall_ms: 7,
                scope: 0,
                lifetime_secs: 0,
                tombstone: false,
                payload: b"p",
            },
            &MESH,
            &pair,
        )
    };
    new.handle(Input::Authority(record(1, "b")), now);
    old.handle(Input::AuthorityKey(Incarnation(2), signer(4).public()), now);
    old.handle(Input::LinkUp(LINK, RelayId(5)), now);
    old.handle(Input::Message(LINK, from_authority(&mut new, 0, now)), now);
    assert!(!is_account(&old, "a") && is_account(&old, "b"));
    old.handle(Input::Authority(account(2, "c")), now);
    assert!(!is_account(&old, "c"));
    new.handle(Input::Authority(record(2, "d")), now);
    old.handle(Input::Message(LINK, from_authority(&mut new, 1, now)), now);
    assert!(is_account(&old, "d"));
    assert_eq!(old.table().hash(), {
        let head = new.table().head(RelayId::AUTHORITY).unwrap();
        u64::from_be_bytes(head.digest[..8].try_into().unwrap())
    });
}
