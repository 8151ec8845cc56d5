//! Gossip in the simulator: properties that hold for every topology, seed and fault (C5, C6; invariants 2 and 5).
//!
//! `TASUKI_SIM_SEEDS` says how many seeds each property is tried with.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests act"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::gossip::{GossipMessage, Head, Heads, Rows, Span};
use tasuki_proto::record::{Draft, Record, RecordKind, RecordRef, Version};
use tasuki_proto::{Incarnation, RelayId, TerminalId};
use tasuki_relay::core::directory::Lookup;
use tasuki_tests::sim::topology::Topology;
use tasuki_tests::sim::{Mesh, MeshModel};

const ALL: [Topology; 6] = [
    Topology::Line,
    Topology::Ring,
    Topology::Star,
    Topology::Full,
    Topology::Regular(4),
    Topology::Tree(3),
];
const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("TASUKI_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    0..count
}

fn model(seed: u64, relays: usize, topology: Topology) -> MeshModel {
    let links = topology.links(relays, &mut StdRng::seed_from_u64(seed));
    println!("seed {seed}: {relays} relays, {topology:?}");
    MeshModel {
        seed,
        relays,
        links,
        delay: MS..40 * MS,
        jitter: 2 * MS,
        loss: 0.01,
        detect: 300 * MS,
        shadow: true,
    }
}

fn started(model: &MeshModel, tune: fn(&mut tasuki_relay::core::gossip::Config)) -> Mesh {
    let mut mesh = Mesh::new(model);
    mesh.tune = tune;
    mesh.start_all();
    mesh.run_until_equal(20 * SECOND);
    mesh
}

fn key(number: u64) -> Vec<u8> {
    format!("t-{number}").into_bytes()
}

/// Writes `count` rows at random relays among `range`: some again, some deleted.
fn churn(mesh: &mut Mesh, count: usize, keys: u64) {
    for _ in 0..count {
        let relays = mesh.relays();
        let node = mesh.rng().random_range(0..relays);
        if mesh.is_up(node) {
            let number = mesh.rng().random_range(0..keys);
            let dies = mesh.rng().random_bool(0.3);
            let payload = (!dies).then(|| Bytes::from(format!("at {:?}", mesh.now())));
            mesh.write(
                node,
                RecordKind::ATTACHMENT,
                &key(number),
                payload,
                if dies { 5 } else { 0 },
            );
        }
        mesh.run(MS);
    }
}

#[test]
fn all_tables_become_equal_in_every_topology() {
    for seed in seeds() {
        for (index, topology) in ALL.into_iter().enumerate() {
            let relays = [3, 8, 20, 9, 30, 25][index];
            let mut mesh = started(&model(seed, relays, topology), |_| {});
            churn(&mut mesh, 300, 40);
            mesh.run_until_equal(5 * SECOND);
            assert!(mesh.gossip(0).table().len() > relays);
        }
    }
}

#[test]
fn two_hundred_relays_agree() {
    let mut model = model(1, 200, Topology::Regular(6));
    model.shadow = false;
    let mut mesh = started(&model, |_| {});
    mesh.observe();
    churn(&mut mesh, 200, 1000);
    mesh.run_until_equal(5 * SECOND);
    let (mean, most) = mesh.observed.copies();
    println!("{mean:.3} copies, at most {most}");
    assert!(mean < 1.3, "{mean}");
}

#[test]
fn no_message_without_end() {
    for topology in ALL {
        let mut mesh = started(&model(5, 12, topology), |config| config.refresh = 60 * SECOND);
        churn(&mut mesh, 100, 20);
        mesh.run_until_equal(5 * SECOND);
        mesh.run(20 * SECOND);
        mesh.observe();
        mesh.run(600 * SECOND);
        let links = topology.links(12, &mut StdRng::seed_from_u64(5)).len() as u64;
        assert_eq!(mesh.observed.rows, 0, "{topology:?}");
        assert!(
            mesh.observed.messages <= links * 2 * 11,
            "{topology:?}: {}",
            mesh.observed.messages
        );
    }
}

#[test]
fn few_copies_of_each_update() {
    for seed in seeds() {
        let mut model = model(seed, 30, Topology::Regular(6));
        model.shadow = false;
        let mut mesh = started(&model, |_| {});
        churn(&mut mesh, 500, 1000);
        mesh.run(5 * SECOND);
        mesh.observe();
        churn(&mut mesh, 2000, 1000);
        mesh.run_until_equal(5 * SECOND);
        let (mean, most) = mesh.observed.copies();
        println!("{mean:.3} copies, at most {most}");
        assert!(mean <= 1.2, "mean {mean}");
        assert!(most <= 3, "most {most}");
    }
}

#[test]
fn a_healed_partition_resurrects_nothing() {
    for seed in seeds() {
        for lifetime in [3, 1000] {
            let mut mesh = started(&model(seed, 10, Topology::Regular(4)), |_| {});
            for number in 0..50 {
                let payload = Some(Bytes::from_static(b"here"));
                mesh.write(1, RecordKind::ATTACHMENT, &key(number), payload, 0);
            }
            mesh.run_until_equal(5 * SECOND);
            let before = mesh.gossip(9).table().len();
            mesh.want_links(|a, b| (a < 5) == (b < 5));
            mesh.run(SECOND);
            // With the short lifetime nobody can tell of these deletions any more when the partition heals.
            for number in 0..20 {
                mesh.write(1, RecordKind::ATTACHMENT, &key(number), None, lifetime);
            }
            mesh.run(30 * SECOND);
            mesh.want_links(|_, _| true);
            let healed = mesh.run_until_equal(2 * SECOND);
            println!("equal {healed:?} after the heal");
            let table = mesh.gossip(9).table();
            assert_eq!(table.len(), before - 20);
            assert!(table.live(RecordKind::ATTACHMENT, &key(7)).next().is_none());
            assert!(table.live(RecordKind::ATTACHMENT, &key(27)).next().is_some());
        }
    }
}

#[test]
fn a_relay_without_its_state_comes_back_above_its_old_incarnation() {
    for seed in seeds() {
        let mut mesh = started(&model(seed, 6, Topology::Ring), |_| {});
        for _ in 0..3 {
            mesh.crash(2);
            mesh.run(SECOND);
            mesh.start(2, true);
        }
        for number in 0..20 {
            mesh.write(
                2,
                RecordKind::ATTACHMENT,
                &key(number),
                Some(Bytes::from_static(b"old")),
                0,
            );
        }
        mesh.run_until_equal(5 * SECOND);
        let old = mesh.gossip(0).table().watermark(mesh.id(2));
        mesh.crash(2);
        mesh.run(5 * SECOND);
        mesh.start(2, false);
        mesh.write(2, RecordKind::ATTACHMENT, &key(3), Some(Bytes::from_static(b"new")), 0);
        mesh.run_until_equal(5 * SECOND);
        let now = mesh.gossip(0).table().watermark(mesh.id(2));
        assert!(now.incarnation > old.incarnation, "{now:?} {old:?}");
        let rows: Vec<RecordRef<'_>> =
            mesh.gossip(0).table().live(RecordKind::ATTACHMENT, b"t-3").collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].payload(), b"new");
        assert!(mesh.gossip(0).table().live(RecordKind::ATTACHMENT, b"t-4").next().is_none());
    }
}

#[test]
fn a_silent_origin_is_forgotten_by_all_for_good() {
    for seed in seeds() {
        let mut mesh =
            started(&model(seed, 8, Topology::Regular(4)), |config| config.silence = 60 * SECOND);
        mesh.write(3, RecordKind::ATTACHMENT, b"t-1", Some(Bytes::from_static(b"p")), 0);
        mesh.run_until_equal(5 * SECOND);
        mesh.crash(3);
        mesh.run(30 * SECOND);
        assert!(mesh.gossip(0).table().watermark(mesh.id(3)) > Version::default());
        mesh.run(40 * SECOND);
        for _ in 0..30 {
            for node in (0..8).filter(|node| *node != 3) {
                let known = mesh.gossip(node).table().watermark(mesh.id(3));
                assert_eq!(known, Version::default(), "relay {node} at {:?}", mesh.now());
            }
            mesh.run(10 * SECOND);
        }
        mesh.start(3, true);
        mesh.run_until_equal(5 * SECOND);
        assert!(mesh.gossip(0).table().watermark(mesh.id(3)) > Version::default());
    }
}

#[test]
fn a_slow_link_costs_a_cursor_and_no_more() {
    let mut mesh = started(&model(3, 3, Topology::Line), |_| {});
    mesh.set_links(|ends, link| {
        if ends == (1, 2) {
            link.bandwidth = 4_000;
        }
    });
    mesh.observe();
    // Two thousand updates of ten rows: the slow link carries each row a few times only.
    churn(&mut mesh, 2000, 10);
    mesh.run_until_equal(60 * SECOND);
    let counters = mesh.gossip(1).counters();
    assert!(mesh.gossip(2).counters().received < 500, "{counters:?}");
}

#[test]
fn a_newcomer_takes_the_whole_table_once() {
    let mut mesh = Mesh::new(&model(4, 6, Topology::Full));
    for node in 0..5 {
        mesh.start(node, true);
    }
    mesh.run_until_equal(5 * SECOND);
    for number in 0..3000 {
        let payload = Some(Bytes::from(vec![b'x'; 100]));
        mesh.write((number % 5) as usize, RecordKind::ATTACHMENT, &key(number), payload, 0);
    }
    mesh.run_until_equal(10 * SECOND);
    mesh.start(5, true);
    mesh.run_until_equal(5 * SECOND);
    let counters = mesh.gossip(5).counters();
    assert!(counters.received < 4000, "{counters:?}");
}

#[test]
fn rows_that_their_origin_did_not_sign_are_neither_used_nor_passed_on() {
    let mut mesh = started(&model(6, 5, Topology::Ring), |_| {});
    for number in 0..10 {
        mesh.register(&TerminalId::new(&format!("t-{number}")).unwrap());
    }
    mesh.run_until_equal(5 * SECOND);
    let head = *mesh.gossip(3).table().head(RelayId::AUTHORITY).unwrap();
    let from = head.version.sequence;
    let next = Version { sequence: from + 1, ..head.version };
    let forge = |key: &[u8]| {
        Record::new(&Draft {
            origin: RelayId::AUTHORITY,
            kind: RecordKind::ACCOUNT,
            key,
            version: next,
            wall_ms: 1,
            scope: 0,
            lifetime_secs: 0,
            tombstone: false,
            payload: b"",
        })
    };
    // One forgery registers somebody, the other takes the place of a genuine row, the third erases all of them.
    for (name, victim) in [(Some("mallory"), 3), (Some("t-4"), 1), (None, 3)] {
        let records = name.map(|name| forge(name.as_bytes()).as_bytes().clone());
        let horizon = if name.is_none() { next.sequence } else { 0 };
        let head = Head { version: next, horizon, ..head };
        let span = Span { from: if name.is_none() { 0 } else { from }, to: next.sequence };
        let rows = Rows { head, span, records: records.unwrap_or_default() };
        mesh.forge(2, victim, &GossipMessage::Rows(rows));
        mesh.run(2 * SECOND);
        assert!(mesh.cuts.contains(&(victim, 2)), "{name:?}: {:?}", mesh.cuts);
        for node in 0..5 {
            let (gossip, directory) = mesh.cores(node);
            let mallory = TerminalId::new("mallory").unwrap();
            assert_eq!(directory.lookup(gossip.table(), &mallory), Lookup::Unknown);
            let genuine = TerminalId::new("t-4").unwrap();
            assert_eq!(directory.lookup(gossip.table(), &genuine), Lookup::LoggedOut);
        }
        mesh.cuts.clear();
        mesh.want_links(|_, _| true);
        mesh.run_until_equal(5 * SECOND);
    }
}

#[test]
fn whatever_happens_tables_agree_afterwards() {
    for seed in seeds().map(|seed| seed + 100) {
        let mut rng = StdRng::seed_from_u64(seed);
        let topology = ALL[rng.random_range(0..ALL.len())];
        let relays = rng.random_range(3..14);
        let mut mesh = started(&model(seed, relays, topology), |config| {
            config.silence = 40 * SECOND;
            config.refresh = 20 * SECOND;
        });
        // What each relay's present life wrote last.
        let mut written: Vec<BTreeMap<Vec<u8>, Option<Bytes>>> = vec![BTreeMap::new(); relays];
        for step in 0..150 {
            let node = rng.random_range(0..relays);
            match rng.random_range(0..12) {
                0 if mesh.is_up(node) => {
                    mesh.crash(node);
                    written[node].clear();
                }
                1 | 2 if !mesh.is_up(node) => mesh.start(node, rng.random_bool(0.6)),
                3 => {
                    let (a, b) = (rng.random_range(0..relays), rng.random_range(0..relays));
                    mesh.want_links(|x, y| (x, y) != (a, b) && (y, x) != (a, b));
                }
                4 => {
                    let side: u32 = rng.random();
                    mesh.want_links(|a, b| side & (1 << a) == side & (1 << b));
                }
                5 => mesh.want_links(|_, _| true),
                6 if mesh.is_up(0) => {
                    mesh.register(&TerminalId::new(&format!("a-{step}")).unwrap());
                }
                _ if mesh.is_up(node) => {
                    for _ in 0..rng.random_range(1..20) {
                        let key = key(rng.random_range(0..15));
                        let payload = rng.random_bool(0.6).then(|| Bytes::from(format!("{step}")));
                        let lifetime = if payload.is_none() { 4 } else { 0 };
                        mesh.write(node, RecordKind::ATTACHMENT, &key, payload.clone(), lifetime);
                        written[node].insert(key, payload);
                    }
                }
                _ => {}
            }
            mesh.run(Duration::from_millis(rng.random_range(1..1500)));
        }
        mesh.want_links(|_, _| true);
        for node in 0..relays {
            if !mesh.is_up(node) {
                mesh.start(node, true);
            }
        }
        mesh.run_until_equal(60 * SECOND);
        for (node, rows) in written.iter().enumerate() {
            for (key, payload) in rows {
                let row = mesh.gossip(0).table().get(mesh.id(node), RecordKind::ATTACHMENT, key);
                let held = row.filter(|row| !row.is_tombstone()).map(RecordRef::payload);
                assert_eq!(held, payload.as_deref(), "seed {seed}, relay {node}");
            }
        }
    }
}

#[test]
fn an_incarnation_that_jumps_too_far_is_not_believed() {
    let mut mesh = started(&model(8, 3, Topology::Line), |_| {});
    let head = *mesh.gossip(1).table().head(mesh.id(0)).unwrap();
    let version = Version { incarnation: Incarnation(u64::MAX), sequence: 1 };
    let heads = vec![Head { version, horizon: 0, ..head }];
    mesh.forge(2, 1, &GossipMessage::Heads(Heads { heads }));
    mesh.run(SECOND);
    assert_eq!(mesh.gossip(1).counters().version_jumps, 1);
    mesh.write(0, RecordKind::ATTACHMENT, b"t", Some(Bytes::from_static(b"p")), 0);
    mesh.run_until_equal(2 * SECOND);
}
