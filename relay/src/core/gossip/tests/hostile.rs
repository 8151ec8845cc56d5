//! Relays that lie about the table (`docs/security.md`): what is said of another origin changes nothing, and what a
//! relay says of itself is bounded.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tasuki_proto::codec::Envelope;
use tasuki_proto::gossip::Prune;

use super::*;

const BAD: LinkId = LinkId(7);
const BAD_RELAY: RelayId = RelayId(66);

/// A relay with two accounts and a row of [`FAR`], linked with an honest relay and a bad one that has an account.
struct World {
    gossip: Gossip,
    registrar: Gossip,
    far: Gossip,
    bad: Gossip,
    now: Instant,
}

impl World {
    fn new() -> World {
        let (mut gossip, now) = core();
        let mut registrar = registrar(&["a", "b"], now);
        let (mut far, mut bad) = (far(1, now), core_of(BAD_RELAY, 1, 66, now));
        gossip.handle(Input::AuthorityKey(Incarnation(1), signer(3).public()), now);
        gossip.handle(Input::RelayKey(BAD_RELAY, Some(signer(66).public())), now);
        gossip.handle(Input::LinkUp(LINK, PEER), now);
        gossip.handle(Input::LinkUp(BAD, BAD_RELAY), now);
        far.handle(write("x", Some("v"), 0), now);
        bad.handle(write("y", Some("v"), 0), now);
        gossip.handle(Input::Message(LINK, from_authority(&mut registrar, 0, now)), now);
        gossip.handle(Input::Message(LINK, message(&mut far, 0, now)), now);
        gossip.handle(Input::Message(BAD, message(&mut bad, 0, now)), now);
        outputs(&mut gossip);
        let world = World { gossip, registrar, far, bad, now };
        world.is_whole();
        world
    }

    fn is_whole(&self) {
        assert!(is_account(&self.gossip, "a") && is_account(&self.gossip, "b"));
        assert!(has(&self.gossip, "x"));
    }

    /// The bad relay says something; returns whether its link was cut.
    fn says(&mut self, message: GossipMessage) -> bool {
        self.gossip.handle(Input::Message(BAD, message), self.now);
        self.is_whole();
        outputs(&mut self.gossip).contains(&Output::Cut(BAD, RefusalCode::ProtocolError))
    }

    /// An honest revocation arrives after everything that the bad relay did.
    fn still_hears(&mut self) {
        let next = self.registrar.table().watermark(RelayId::AUTHORITY).sequence + 1;
        self.registrar.handle(Input::Authority(account(next, "revocation")), self.now);
        self.far.handle(write("z", Some("v"), 0), self.now);
        let known = self.gossip.table().watermark(RelayId::AUTHORITY).sequence;
        let message_of_authority = from_authority(&mut self.registrar, known, self.now);
        self.gossip.handle(Input::Message(LINK, message_of_authority), self.now);
        let known = self.gossip.table().watermark(FAR).sequence;
        self.gossip.handle(Input::Message(LINK, message(&mut self.far, known, self.now)), self.now);
        assert!(is_account(&self.gossip, "revocation"));
        assert!(has(&self.gossip, "z"));
        self.is_whole();
    }

    fn authority_head(&mut self) -> Head {
        *self.gossip.table().head(RelayId::AUTHORITY).unwrap()
    }
}

fn rows(head: Head, from: u64, records: Vec<u8>) -> GossipMessage {
    let to = head.version.sequence;
    GossipMessage::Rows(Rows { head, span: Span { from, to }, records: records.into() })
}

#[test]
fn a_horizon_of_the_authority_that_it_did_not_sign_erases_nothing() {
    let mut world = World::new();
    let real = world.authority_head();
    let version = Version { sequence: 1 << 38, ..real.version };
    let forged = Head { version, horizon: 1 << 38, rows: 0, bytes: 0, ..real };
    assert!(world.says(rows(forged, 0, Vec::new())));
    assert_eq!(world.gossip.counters().forged, 1);
    world.still_hears();
}

#[test]
fn a_watermark_of_the_authority_that_it_did_not_sign_makes_nobody_deaf() {
    let mut world = World::new();
    let real = world.authority_head();
    let version = Version { sequence: real.version.sequence + (1 << 39), ..real.version };
    assert!(world.says(rows(Head { version, ..real }, real.version.sequence, Vec::new())));
    let heads = vec![Head { version, ..real }];
    assert!(world.says(GossipMessage::Heads(Heads { heads })));
    world.still_hears();
}

#[test]
fn a_record_that_was_left_out_is_noticed() {
    let mut world = World::new();
    // The authority revokes and says more; the bad relay passes on the later record only.
    for (sequence, key) in [(3, "revoked"), (4, "heartbeat")] {
        world.registrar.handle(Input::Authority(account(sequence, key)), world.now);
    }
    let GossipMessage::Rows(honest) = from_authority(&mut world.registrar, 2, world.now) else {
        unreachable!()
    };
    let later = honest.parse().unwrap().pop().unwrap().as_bytes().to_vec();
    assert!(
        !world.says(rows(honest.head, 2, later.clone())),
        "it may be an honest misunderstanding"
    );
    assert!(!is_account(&world.gossip, "heartbeat"));
    assert!(world.says(rows(honest.head, 0, later)), "the whole shows who lies");
    assert_eq!(world.gossip.counters().unproven, 2);
    world.gossip.handle(Input::Message(LINK, GossipMessage::Rows(honest)), world.now);
    assert!(is_account(&world.gossip, "revoked"));
    world.registrar.handle(Input::Tick, world.now);
    assert!(is_account(&world.gossip, "heartbeat"));
}

#[test]
fn rows_of_another_relay_need_its_key() {
    let mut world = World::new();
    // Everything that the bad relay can sign in the name of another one.
    let mut forger = core_of(FAR, 9, 66, world.now);
    forger.handle(write("x", None, 60), world.now);
    forger.handle(write("fake", Some("v"), 0), world.now);
    let message = message(&mut forger, 0, world.now);
    assert!(world.says(message));
    // An own incarnation too.
    let mut forger = core_of(ME, 9, 66, world.now);
    forger.handle(write("fake", Some("v"), 0), world.now);
    let message = super::message(&mut forger, 0, world.now);
    assert!(world.says(message));
    assert_eq!(world.gossip.incarnation(), Incarnation(1));
    assert!(!has(&world.gossip, "fake"));
    world.still_hears();
}

#[test]
fn rows_of_relays_without_an_account_do_not_count() {
    let mut world = World::new();
    for id in 1000..1100 {
        let mut ghost = core_of(RelayId(id), 1, 66, world.now);
        ghost.handle(write("ghost", Some(&"x".repeat(59_000)), 0), world.now);
        let message = message(&mut ghost, 0, world.now);
        world.says(message);
    }
    assert!(!has(&world.gossip, "ghost"));
    assert_eq!(world.gossip.table().origin_count(), 4);
}

#[test]
fn a_relay_fills_its_own_share_and_no_more() {
    let mut world = World::new();
    let big = "x".repeat(60_000);
    for number in 0..600 {
        world.bad.handle(write(&format!("k{number}"), Some(&big), 0), world.now);
    }
    let parts = told(&mut world.bad, BAD_RELAY, 0, world.now);
    for part in parts {
        world.says(GossipMessage::Rows(part));
    }
    assert!(world.gossip.counters().over_budget > 0);
    assert_eq!(world.gossip.table().origin_len(BAD_RELAY), 1);
    // A head that admits to fewer rows than it comes with.
    let GossipMessage::Rows(first) = message(&mut world.bad, 599, world.now) else {
        unreachable!()
    };
    let mut head = Head { rows: 2, bytes: 200, ..first.head };
    head.sign(&MESH, &signer(66));
    let record = |number: u64| {
        Record::new(&Draft {
            origin: BAD_RELAY,
            kind: RecordKind::ATTACHMENT,
            key: &number.to_be_bytes(),
            version: Version { incarnation: Incarnation(1), sequence: number },
            wall_ms: 0,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload: &[0; 2000],
        })
    };
    let records = (2..42).flat_map(|number| record(number).as_bytes().to_vec()).collect();
    assert!(world.says(rows(head, 1, records)));
    world.still_hears();
}

#[test]
fn an_origin_that_signs_two_tables_costs_no_honest_link() {
    let mut world = World::new();
    // The bad relay shows this relay one table and the honest peer another one of the same version.
    let mut twin = core_of(BAD_RELAY, 1, 66, world.now);
    twin.handle(write("other", Some("v"), 0), world.now);
    let head = head(&mut twin, world.now);
    world
        .gossip
        .handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads: vec![head] })), world.now);
    assert_eq!(world.gossip.counters().equivocations, 1);
    // It goes on with that one, which the honest peer passes on.
    twin.handle(write("more", Some("v"), 0), world.now);
    let part = message(&mut twin, 1, world.now);
    world.gossip.handle(Input::Message(LINK, part), world.now);
    let asked = sends(&mut world.gossip);
    let whole = |(link, m): &(LinkId, GossipMessage)| {
        *link == LINK && matches!(m, GossipMessage::Want(want) if want.watermark == 0)
    };
    assert!(asked.iter().any(whole), "{asked:?}");
    let all = message(&mut twin, 0, world.now);
    world.gossip.handle(Input::Message(LINK, all), world.now);
    let cut = |output: &Output| matches!(output, Output::Cut(..));
    assert!(!outputs(&mut world.gossip).iter().any(cut));
    assert!(has(&world.gossip, "more") && has(&world.gossip, "other") && !has(&world.gossip, "y"));
}

#[test]
fn a_link_that_tells_slowly_does_not_keep_others_from_telling() {
    let (mut gossip, mut now) = core();
    let mut origin = far(1, now);
    let big = "x".repeat(1000);
    for number in 0..400 {
        origin.handle(write(&format!("k{number}"), Some(&big), 0), now);
    }
    let parts = told(&mut origin, FAR, 0, now);
    gossip.handle(Input::LinkUp(BAD, BAD_RELAY), now);
    gossip.handle(Input::LinkUp(LINK, PEER), now);
    let heads = vec![parts[0].head];
    gossip.handle(Input::Message(BAD, GossipMessage::Rows(parts[0].clone())), now);
    gossip.handle(Input::Message(LINK, GossipMessage::Heads(Heads { heads })), now);
    outputs(&mut gossip);
    let mut asked = false;
    for part in &parts[1..parts.len() - 1] {
        now += Duration::from_millis(900) * 5;
        gossip.handle(Input::Message(BAD, GossipMessage::Rows(part.clone())), now);
        asked |= sends(&mut gossip)
            .iter()
            .any(|(link, m)| *link == LINK && matches!(m, GossipMessage::Want(_)));
    }
    assert!(asked);
    for part in parts {
        gossip.handle(Input::Message(LINK, GossipMessage::Rows(part)), now);
    }
    assert_eq!(gossip.table().hash(), origin.table().hash());
}

/// One thing that a bad relay says.
#[derive(Debug, Clone)]
enum Lie {
    /// A head of one of four origins, by its own key or with a signature that was copied.
    Head {
        origin: u8,
        incarnation: u8,
        sequence: u8,
        horizon: u8,
        own_key: bool,
        rows: bool,
        from: u8,
    },
    /// A message that was honest once, with some of it left out.
    Replay {
        origin: u8,
        since: u8,
        keep: u8,
        from: u8,
    },
    Want {
        origin: u8,
        incarnation: u8,
        watermark: u64,
    },
    Prune {
        origin: u8,
    },
    Bytes {
        kind: u16,
        body: Vec<u8>,
    },
    Time {
        ms: u32,
    },
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        (0..5_u8, 0..4_u8, 0..12_u8, 0..12_u8, any::<bool>(), any::<bool>(), 0..12_u8).prop_map(
            |(origin, incarnation, sequence, horizon, own_key, rows, from)| Lie::Head {
                origin,
                incarnation,
                sequence,
                horizon,
                own_key,
                rows,
                from,
            }
        ),
        (0..5_u8, 0..6_u8, 0..6_u8, 0..6_u8).prop_map(|(origin, since, keep, from)| Lie::Replay {
            origin,
            since,
            keep,
            from
        }),
        (0..5_u8, 0..4_u8, any::<u64>()).prop_map(|(origin, incarnation, watermark)| Lie::Want {
            origin,
            incarnation,
            watermark
        }),
        (0..5_u8).prop_map(|origin| Lie::Prune { origin }),
        (0..6_u16, prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(kind, body)| Lie::Bytes { kind, body }),
        (1..5000_u32).prop_map(|ms| Lie::Time { ms }),
    ]
}

const ORIGINS: [RelayId; 5] = [RelayId::AUTHORITY, ME, FAR, BAD_RELAY, RelayId(77)];

impl World {
    fn lie(&mut self, lie: &Lie) {
        let now = self.now;
        let message = match lie {
            Lie::Head { origin, incarnation, sequence, horizon, own_key, rows: with, from } => {
                let origin = ORIGINS[usize::from(*origin)];
                let mut head = self.authority_head();
                head.origin = origin;
                head.version = Version {
                    incarnation: Incarnation((*incarnation).into()),
                    sequence: (*sequence).into(),
                };
                head.horizon = u64::from(*horizon).min(head.version.sequence);
                if *own_key {
                    head.sign(&MESH, &signer(66));
                }
                if *with {
                    let from = u64::from(*from).min(head.version.sequence);
                    rows(head, from, Vec::new())
                } else {
                    GossipMessage::Heads(Heads { heads: vec![head] })
                }
            }
            Lie::Replay { origin, since, keep, from } => {
                let source = match origin {
                    0 => told(&mut self.registrar, RelayId::AUTHORITY, (*since).into(), now),
                    3 => told(&mut self.bad, BAD_RELAY, (*since).into(), now),
                    _ => told(&mut self.far, FAR, (*since).into(), now),
                };
                let Some(honest) = source.into_iter().next() else { return };
                let records = honest.parse().unwrap();
                let kept = records.iter().take((*keep).into());
                let records: Vec<u8> = kept.flat_map(|r| r.as_bytes().to_vec()).collect();
                rows(honest.head, u64::from(*from).min(honest.span.to), records)
            }
            Lie::Want { origin, incarnation, watermark } => GossipMessage::Want(Want {
                origin: ORIGINS[usize::from(*origin)],
                incarnation: Incarnation((*incarnation).into()),
                watermark: *watermark,
            }),
            Lie::Prune { origin } => {
                GossipMessage::Prune(Prune { origin: ORIGINS[usize::from(*origin)] })
            }
            Lie::Bytes { kind, body } => {
                let envelope = Envelope { kind: *kind, body: body.clone().into() };
                match GossipMessage::from_envelope(&envelope) {
                    Ok(Some(message)) => message,
                    _ => return,
                }
            }
            Lie::Time { ms } => {
                self.now += Duration::from_millis((*ms).into());
                self.gossip.handle(Input::Tick, self.now);
                return;
            }
        };
        self.gossip.handle(Input::Message(BAD, message), now);
    }

    /// What the table holds of each origin but the bad relay and the authority, whose rows are compared one by one.
    fn others(&self) -> BTreeMap<RelayId, Version> {
        [ME, FAR].map(|origin| (origin, self.gossip.table().watermark(origin))).into()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever a relay with an account says in whatever order: no row of the authority is lost, no row of another
    /// origin changes, memory stays bounded, and what honest relays say arrives.
    #[test]
    fn no_sequence_of_lies_changes_what_others_wrote(lies in prop::collection::vec(lie(), 1..60)) {
        let mut world = World::new();
        let before = world.others();
        for lie in &lies {
            world.lie(lie);
            // The driver cuts a link for its lies; a worse relay dials again at once.
            if outputs(&mut world.gossip).contains(&Output::Cut(BAD, RefusalCode::ProtocolError)) {
                world.gossip.handle(Input::LinkDown(BAD), world.now);
                world.gossip.handle(Input::LinkUp(BAD, BAD_RELAY), world.now);
            }
            world.is_whole();
            prop_assert_eq!(&before, &world.others());
            prop_assert!(world.gossip.table().origin_count() <= ORIGINS.len());
            let link = &world.gossip.links[&BAD];
            prop_assert!(link.cursors.len() <= ORIGINS.len() + 3 && link.waiting.len() <= ORIGINS.len() + 3);
        }
        world.still_hears();
    }
}
