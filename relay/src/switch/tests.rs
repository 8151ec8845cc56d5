use std::sync::Arc;

use quinn::udp::EcnCodepoint;
use tasuki_proto::Label;
use tasuki_proto::frame::{self, FrameKind, NeighbourKey};
use tasuki_proto::net::CidClass;

use super::*;
use crate::core::sessions::Counters;

#[derive(Default)]
struct Seen {
    forwarded: Vec<(Address, Vec<u8>, usize)>,
    replies: Vec<(Address, Vec<u8>)>,
    own: Vec<(CidClass, Vec<u8>)>,
    moved: Vec<Address>,
}

impl Sink for Seen {
    fn forward(
        &mut self,
        _to: &Arc<Neighbour>,
        at: Address,
        _ecn: Option<EcnCodepoint>,
        frames: &[u8],
        stride: usize,
    ) {
        self.forwarded.push((at, frames.to_vec(), stride));
    }

    fn reply(&mut self, to: Address, frame: &[u8]) {
        self.replies.push((to, frame.to_vec()));
    }

    fn moved(&mut self, _: &Arc<Neighbour>, to: Address) {
        self.moved.push(to);
    }

    fn own(&mut self, class: CidClass, _: Address, _: Option<EcnCodepoint>, packet: &[u8]) {
        self.own.push((class, packet.to_vec()));
    }
}

fn address(port: u16) -> Address {
    Address { remote: ([127, 0, 0, 1], port).into(), local: None }
}

fn label(n: u64) -> Label {
    Label::new(n).unwrap()
}

fn key(n: u8) -> NeighbourKey {
    NeighbourKey::new(&[n; 32])
}

fn data(n: u64, payload: &[u8]) -> Vec<u8> {
    [&frame::head(FrameKind::Data, label(n))[..], payload].concat()
}

struct World {
    table: Arc<Table>,
    drops: Arc<Drops>,
    forwarder: Forwarder,
    from: Arc<Neighbour>,
    counters: Arc<Counters>,
    now_ms: u64,
}

impl World {
    /// Label 1 from neighbour `from` (port 1000, handle 11) leaves as label 2 to a neighbour at port 2000.
    fn new() -> World {
        let table = Arc::new(Table::default());
        let drops = Arc::new(Drops::default());
        let forwarder = Forwarder::new(table.clone(), drops.clone(), &[9; 32]);
        let from = Arc::new(Neighbour::new(label(11), key(1), address(1000)));
        let to = Arc::new(Neighbour::new(label(12), key(2), address(2000)));
        let counters = Arc::new(Counters::default());
        table.add_neighbour(from.clone());
        table.add_neighbour(to.clone());
        let entry = Entry {
            from: from.clone(),
            to,
            label_out: label(2),
            counters: counters.clone(),
            to_callee: true,
        };
        table.install(label(1), entry);
        let mut world = World { table, drops, forwarder, from, counters, now_ms: 1000 };
        let mut seen = Seen::default();
        world.forwarder.challenge_hints(world.now_ms, &mut seen);
        assert_eq!(seen.replies.len(), 2);
        for (to, challenge) in seen.replies {
            let n = if to == address(1000) { 1 } else { 2 };
            world.echo(to, &challenge, &key(n));
        }
        world
    }

    fn echo(&mut self, from: Address, challenge: &[u8], key: &NeighbourKey) -> Seen {
        let (cookie, _) = frame::parse_proof(challenge).unwrap();
        let (_, handle) = frame::parse(challenge).unwrap();
        let mut echo = frame::echo(handle, cookie, key);
        let stride = echo.len();
        self.give(from, &mut echo, stride)
    }

    fn give(&mut self, source: Address, bytes: &mut [u8], stride: usize) -> Seen {
        let mut seen = Seen::default();
        self.now_ms += 100;
        let mut batch = Batch { source, ecn: None, bytes, stride };
        self.forwarder.handle(&mut batch, self.now_ms, &mut seen);
        seen
    }

    fn dropped(&self, name: &str) -> u64 {
        self.drops.read().iter().find(|(n, _)| *n == name).unwrap().1
    }
}

#[test]
fn frames_leave_with_the_next_label_and_runs_stay_together() {
    let mut world = World::new();
    let mut bytes = [data(1, b"aaaa"), data(1, b"bbbb"), data(1, b"cc")].concat();
    let seen = world.give(address(1000), &mut bytes, 12);
    let expected = [data(2, b"aaaa"), data(2, b"bbbb"), data(2, b"cc")].concat();
    assert_eq!(seen.forwarded, [(address(2000), expected, 12)]);
    let counted = &world.counters.to_callee;
    assert_eq!(counted.packets.load(std::sync::atomic::Ordering::Relaxed), 3);
    assert_eq!(counted.bytes.load(std::sync::atomic::Ordering::Relaxed), 34);
}

#[test]
fn a_batch_may_mix_labels_garbage_and_quic_packets() {
    let mut world = World::new();
    let quic = [&[0x40, 1][..], &[7; 10]].concat();
    let mut bytes =
        [data(1, b"aaaa"), data(77, b"bbbb"), quic.clone(), vec![0; 12], data(1, b"cccc"), vec![1]]
            .concat();
    let seen = world.give(address(1000), &mut bytes, 12);
    assert_eq!(seen.forwarded.len(), 2);
    assert_eq!(seen.own, [(CidClass::Links, quic)]);
    assert_eq!(world.dropped("unknown-label"), 1);
    assert_eq!(world.dropped("malformed"), 2);
}

#[test]
fn a_label_from_another_address_is_challenged_and_not_forwarded() {
    let mut world = World::new();
    let seen = world.give(address(6666), &mut data(1, b"stolen"), 100);
    assert!(seen.forwarded.is_empty());
    assert_eq!(world.dropped("wrong-neighbour"), 1);
    let (to, challenge) = &seen.replies[0];
    assert_eq!(*to, address(6666));
    assert!(challenge.len() <= 48);
    // Who has not the key gains nothing by echoing.
    world.echo(address(6666), challenge, &key(3));
    assert!(world.give(address(6666), &mut data(1, b"a packet"), 100).forwarded.is_empty());
}

#[test]
fn a_neighbour_that_moved_goes_on_after_one_echo() {
    let mut world = World::new();
    let seen = world.give(address(1001), &mut data(1, b"a packet"), 100);
    let challenge = seen.replies[0].1.clone();
    let seen = world.echo(address(1001), &challenge, &key(1));
    assert_eq!(seen.moved, [address(1001)]);
    assert_eq!(world.from.current(), Some(address(1001)));
    assert_eq!(world.give(address(1001), &mut data(1, b"a packet"), 100).forwarded.len(), 1);
    // The earlier address is still his, and asks again where he is.
    let seen = world.give(address(1000), &mut data(1, b"a packet"), 100);
    assert_eq!((seen.forwarded.len(), seen.replies.len()), (1, 1));
}

#[test]
fn echoes_that_are_repeated_move_nobody() {
    let mut world = World::new();
    let there = world.give(address(1001), &mut data(1, b"a packet"), 100).replies[0].1.clone();
    assert_eq!(world.echo(address(1001), &there, &key(1)).moved, [address(1001)]);
    world.now_ms += 30;
    let back = world.give(address(1000), &mut data(1, b"a packet"), 100).replies[0].1.clone();
    assert_eq!(world.echo(address(1000), &back, &key(1)).moved, [address(1000)]);
    let before = world.dropped("bad-proof");
    for _ in 0..100 {
        for (from, challenge) in [(1001, &there), (1000, &back)] {
            assert_eq!(world.echo(address(from), challenge, &key(1)).moved, []);
        }
    }
    assert_eq!(world.dropped("bad-proof"), before + 200);
    assert_eq!(world.from.current(), Some(address(1000)));
}

#[test]
fn an_echo_is_good_for_its_address_and_its_time_only() {
    let mut world = World::new();
    let challenge = world.give(address(1001), &mut data(1, b"a packet"), 100).replies[0].1.clone();
    world.echo(address(1002), &challenge, &key(1));
    assert_eq!(world.from.current(), Some(address(1000)));
    world.now_ms += 30_000;
    world.echo(address(1001), &challenge, &key(1));
    assert_eq!(world.from.current(), Some(address(1000)));
    assert_eq!(world.dropped("bad-proof"), 2);
}

#[test]
fn challenges_are_rare_and_never_larger_than_their_cause_allows() {
    let mut world = World::new();
    let mut bytes = [data(1, b"aaaa"), data(99, b"bbbb")].concat().repeat(50);
    let seen = world.give(address(6666), &mut bytes, 12);
    assert!(seen.replies.is_empty(), "12 bytes do not earn 40");
    let mut bytes = [data(1, b"a packet"), data(99, b"a packet")].concat().repeat(50);
    let seen = world.give(address(6666), &mut bytes, 16);
    assert_eq!(seen.replies.len(), 1, "one challenge in 20 ms");
}

#[test]
fn proven_addresses_are_bounded() {
    let mut world = World::new();
    for port in 3000..3100 {
        let seen = world.give(address(port), &mut data(1, b"a packet"), 100);
        let challenge = seen.replies[0].1.clone();
        world.echo(address(port), &challenge, &key(1));
    }
    let proven = (1000..4000).filter(|&p| world.from.has_proven(address(p))).count();
    assert_eq!(proven, tasuki_proto::limits::NEIGHBOUR_ADDRESSES);
}

#[test]
fn another_relays_challenge_is_answered_only_when_it_is_a_neighbour() {
    let mut world = World::new();
    world.table.add_challenger(label(50), key(5));
    let mut challenge = frame::challenge(label(50), [3; 16]);
    let seen = world.give(address(7), &mut challenge, 40);
    assert_eq!(seen.replies, [(address(7), frame::echo(label(50), [3; 16], &key(5)).to_vec())]);
    let mut unknown = frame::challenge(label(51), [3; 16]);
    assert!(world.give(address(7), &mut unknown, 40).replies.is_empty());
}

#[test]
fn a_session_above_its_rate_loses_the_end_of_a_batch_with_a_reason() {
    let mut world = World::new();
    world.table.pace.set(Some(1));
    // The bucket holds 64 KiB, of which 100 ms give 12,500 bytes back.
    let batch = data(1, &[7; 992]).repeat(60);
    assert_eq!(world.give(address(1000), &mut batch.clone(), 1000).forwarded[0].1.len(), 60_000);
    let seen = world.give(address(1000), &mut batch.clone(), 1000);
    assert_eq!(seen.forwarded[0].1, data(2, &[7; 992]).repeat(18));
    assert!(world.give(address(1000), &mut batch.clone(), 1000).forwarded[0].1.len() <= 13_000);
    assert_eq!(world.counters.to_callee.packets.load(std::sync::atomic::Ordering::Relaxed), 90);
    assert_eq!(world.dropped("over-rate"), 90);
}

#[test]
fn a_removed_label_is_unknown() {
    let mut world = World::new();
    world.table.remove(label(1));
    assert!(world.give(address(1000), &mut data(1, b"a packet"), 100).forwarded.is_empty());
    assert!(world.table.is_empty());
}
