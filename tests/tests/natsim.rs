//! NATs of all kinds in virtual time: for every seed, what each pair of them can have, and what becomes of a session when
//! a NAT, a way or a terminal's place changes under it (D1, D2).
//!
//! `TASUKI_NAT_SEEDS` says how many seeds each property is tried with; a failure names its seed, and `TASUKI_NAT_SEED`
//! runs that one alone. `TASUKI_NAT_TRACE` prints what paths do meanwhile.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tasuki_tests::natsim::World;
use tasuki_tests::natsim::kind::NatKind::{self, *};
use tasuki_tests::natsim::kind::Outcome;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The seeds of a property that is tried with so many unless the environment says otherwise.
fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    match number("TASUKI_NAT_SEED") {
        Some(one) => one..one + 1,
        None => {
            let from = number("TASUKI_NAT_FROM").unwrap_or_default();
            from..from.saturating_add(number("TASUKI_NAT_SEEDS").unwrap_or(most))
        }
    }
}

/// Other seeds in each run, unless the environment says which.
fn new_seeds(most: u64) -> std::ops::Range<u64> {
    let known = seeds(most);
    let said =
        ["TASUKI_NAT_SEED", "TASUKI_NAT_FROM"].iter().any(|name| std::env::var_os(name).is_some());
    let from = if said { known.start } else { rand::rng().random_range(0..1 << 40) };
    println!("TASUKI_NAT_FROM={from}");
    from..from + (known.end - known.start)
}

/// Runs a property for every seed; the ones that fail are printed.
fn for_seeds(most: u64, property: impl Fn(u64) -> Result<(), String>) {
    check_seeds(seeds(most), property);
}

fn check_seeds(seeds: std::ops::Range<u64>, property: impl Fn(u64) -> Result<(), String>) {
    let all = seeds.end - seeds.start;
    let wrong: Vec<u64> = seeds
        .filter(|&seed| match property(seed) {
            Ok(()) => false,
            Err(why) => {
                println!("TASUKI_NAT_SEED={seed}: {why}");
                true
            }
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {all} seeds fail: {wrong:?}", wrong.len());
}

/// How soon a pair that can be direct is so, at last. Where a probe came to a plain masquerade too early (an opener was
/// lost, or the NAT has forgotten what it let in), that takes until nobody has probed for 30 s: a go or two more.
fn at_last(kinds: [NatKind; 2], otherwise: Duration) -> Duration {
    match kinds[0].expected(kinds[1]) {
        Outcome::Race => 450 * SECOND,
        _ => otherwise,
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Two terminals at two relays, attached.
fn pair(seed: u64, kinds: [NatKind; 2]) -> Result<World, String> {
    let mut world = World::new(seed, 2);
    world.set_pace(50 * MS);
    for (kind, octet, relay) in [(kinds[0], 101, 0), (kinds[1], 151, 1)] {
        world.terminal(kind, octet, &[relay]);
    }
    attach(&mut world, 2)?;
    Ok(world)
}

fn attach(world: &mut World, terminals: usize) -> Result<(), String> {
    let all = |world: &World| (0..terminals).all(|n| world.is_attached(n));
    world.run_until(30 * SECOND, all).map(drop)
}

/// Calls, and waits until the session is as this pair of kinds can be.
fn expect(world: &mut World, kinds: [NatKind; 2], within: Duration) -> Result<Duration, String> {
    let call = world.call(0, 1);
    let wrong = |why: String| format!("{} calls {}: {why}", kinds[0].name(), kinds[1].name());
    if kinds[0].expected(kinds[1]) == Outcome::Relayed {
        world.run(4 * SECOND);
        ensure(world.is_relayed(call) && world.moves(call) == 0, || wrong(world.state()))?;
        world.check().map_err(wrong)?;
        return Ok(Duration::ZERO);
    }
    let took = world.run_until(within, |w| w.is_direct(call)).map_err(wrong)?;
    world.run(SECOND);
    ensure(world.is_direct(call), || wrong(world.state()))?;
    world.check().map_err(wrong)?;
    Ok(took)
}

/// Every ordered pair has what the laboratory's table says, in the first go.
#[test]
fn every_pair_of_kinds_has_what_it_can_have() {
    let begun = std::time::Instant::now();
    for_seeds(2, |seed| {
        let mut slowest = Duration::ZERO;
        for from in NatKind::ALL {
            for to in NatKind::ALL {
                let mut world = pair(seed, [from, to])?;
                slowest = slowest.max(expect(&mut world, [from, to], 2 * SECOND)?);
            }
        }
        println!("seed {seed}: direct after {slowest:?} at most");
        Ok(())
    });
    println!("{:?}", begun.elapsed());
}

/// A pair of kinds that can be direct, or any pair.
fn any_pair(seed: u64, direct: bool) -> [NatKind; 2] {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let kinds = [(); 2].map(|()| NatKind::ALL[rng.random_range(0..NatKind::ALL.len())]);
        if !direct || kinds[0].expected(kinds[1]) != Outcome::Relayed {
            return kinds;
        }
    }
}

/// Two terminals with two relays each, and a session between them that is direct, or as this pair can be. The relays tell
/// terminals when their mapped addresses change, which those that ship do not: without that a pair of NATs that let in
/// only what they know finds no direct path after one of them gave other ports.
fn running(seed: u64, kinds: [NatKind; 2]) -> Result<(World, usize), String> {
    let mut world = World::new(seed, 3);
    world.set_pace(40 * MS);
    world.tell_moves(true);
    for (kind, octet, relays) in [(kinds[0], 101, [0, 2]), (kinds[1], 151, [1, 2])] {
        world.terminal(kind, octet, &relays);
    }
    attach(&mut world, 2)?;
    let call = world.call(0, 1);
    let direct = kinds[0].expected(kinds[1]) != Outcome::Relayed;
    if direct {
        world.run_until(2 * SECOND, |w| w.is_direct(call))?;
    }
    world.run(5 * SECOND);
    ensure(world.is_direct(call) == direct, || world.state())?;
    Ok((world, call))
}

/// Until then the way of a session is left that went quiet: three probes, a round trip and a half, and what the other
/// end takes to follow.
const SWITCH: Duration = Duration::from_millis(700);

/// What was lost was lost in the moment after `from`.
fn ensure_nothing_else_is_lost(world: &World, call: usize, from: Duration) -> Result<(), String> {
    match world.lost_since(call, Duration::ZERO) {
        Some((first, last)) => ensure(first + 300 * MS >= from && last <= from + SWITCH, || {
            format!("lost from {first:?} to {last:?}, though it happened at {from:?}")
        }),
        None => Ok(()),
    }
}

#[test]
fn loss_and_reordering_delay_a_direct_path_and_do_not_prevent_it() {
    for_seeds(60, |seed| {
        let kinds = any_pair(seed, false);
        let mut rng = SmallRng::seed_from_u64(!seed);
        let mut world = pair(seed, kinds)?;
        world.impair(MS * rng.random_range(0..30), rng.random_range(0.0..0.05));
        let call = world.call(0, 1);
        if kinds[0].expected(kinds[1]) == Outcome::Relayed {
            world.run(15 * SECOND);
            ensure(world.moves_data(call, SECOND), || format!("{kinds:?}: {}", world.state()))?;
        } else {
            let within = at_last(kinds, 30 * SECOND);
            let direct = world.run_until(within, |w| w.is_direct(call));
            direct.map_err(|why| format!("{kinds:?}: {why}"))?;
        }
        world.check()
    });
}

/// All machines of all homes have the same private addresses and ports: nobody takes another for its peer.
#[test]
fn machines_of_one_lan_are_direct_by_their_private_addresses_alone() {
    for_seeds(20, |seed| {
        let mut rng = SmallRng::seed_from_u64(seed);
        let kinds = [
            FullCone,
            AddressRestricted,
            PortRestricted,
            Symmetric,
            Masquerade,
            CarrierGrade,
            UdpBlocked,
        ];
        let mut world = World::new(seed, 2);
        for octet in [101, 151] {
            let kind = kinds[rng.random_range(0..kinds.len())];
            world.home(kind, octet, &[&[0, 1], &[1, 0]]);
        }
        attach(&mut world, 4)?;
        let calls = [world.call(0, 1), world.call(2, 3), world.call(0, 2), world.call(3, 1)];
        for lan in &calls[..2] {
            world.run_until(2 * SECOND, |w| w.is_direct(*lan))?;
        }
        world.run(5 * SECOND);
        for lan in &calls[..2] {
            ensure(world.is_direct(*lan), || world.state())?;
        }
        for call in calls {
            ensure(world.moves_data(call, SECOND), || world.state())?;
        }
        world.check()
    });
}

/// A NAT forgets after 30 s what nothing left by.
#[test]
fn a_session_at_rest_keeps_its_direct_path() {
    for_seeds(10, |seed| {
        let kinds = any_pair(seed, true);
        let (mut world, call) = running(seed, kinds)?;
        world.set_busy(call, false);
        let moves = world.moves(call);
        world.run(600 * SECOND);
        world.set_busy(call, true);
        world.mark(call);
        world.run(3 * SECOND);
        let same = world.is_direct(call) && world.moves(call) == moves;
        ensure(same && world.stall(call) < 300 * MS, || {
            format!("{kinds:?}: stood still for {:?}: {}", world.stall(call), world.state())
        })?;
        world.check()
    });
}

/// A NAT restarts, or gives other ports from one moment to the next.
#[test]
fn a_nat_that_forgets_costs_a_moment_and_the_session_is_direct_again() {
    for_seeds(60, |seed| {
        let kinds = any_pair(seed, true);
        let mut rng = SmallRng::seed_from_u64(!seed);
        let (mut world, call) = running(seed, kinds)?;
        let (which, rebinds) = (rng.random_range(0..3), rng.random());
        world.mark(call);
        let when = world.now();
        for terminal in [0, 1].into_iter().filter(|terminal| which != 1 - terminal) {
            if rebinds {
                world.rebind_nat(terminal);
            } else {
                world.restart_nat(terminal);
            }
        }
        let what = format!("{kinds:?}, of {which}, other ports: {rebinds}");
        world.run(5 * SECOND);
        let stall = world.stall(call);
        ensure(stall < SWITCH, || format!("{what}: stood still for {stall:?}: {}", world.state()))?;
        ensure_nothing_else_is_lost(&world, call, when).map_err(|why| format!("{what}: {why}"))?;
        let again = world.run_until(at_last(kinds, 30 * SECOND), |w| w.is_direct(call));
        again.map_err(|why| format!("{what}: {why}"))?;
        world.check()
    });
}

/// Another network, another NAT, another address.
#[test]
fn a_terminal_that_roams_keeps_its_session_and_is_direct_where_it_can_be() {
    for_seeds(50, |seed| {
        let kinds = any_pair(seed, false);
        let mut rng = SmallRng::seed_from_u64(!seed);
        let (mut world, call) = running(seed, kinds)?;
        let roams = usize::from(rng.random::<bool>());
        let mut now = kinds;
        now[roams] = NatKind::ALL[rng.random_range(0..NatKind::ALL.len())];
        world.roam(roams, now[roams], 201);
        let what = format!("{kinds:?} become {now:?}");
        world.run(10 * SECOND);
        ensure(world.moves_data(call, SECOND), || format!("{what}: {}", world.state()))?;
        if now[0].expected(now[1]) == Outcome::Relayed {
            world.run(10 * SECOND);
            ensure(world.is_relayed(call), || format!("{what}: {}", world.state()))?;
        } else {
            let again = world.run_until(at_last(now, 60 * SECOND), |w| w.is_direct(call));
            again.map_err(|why| format!("{what}: {why}"))?;
        }
        world.check()
    });
}

#[test]
fn a_direct_path_that_dies_one_way_is_left_by_both_and_found_again() {
    for_seeds(20, |seed| {
        let kinds = any_pair(seed, true);
        let (mut world, call) = running(seed, kinds)?;
        let from = usize::from(seed % 2 == 0);
        world.mark(call);
        let when = world.now();
        world.cut(from, 1 - from);
        world.run_until(SECOND, |w| w.is_relayed(call))?;
        let stall = world.stall(call);
        ensure(stall < SWITCH, || format!("stood still for {stall:?}"))?;
        world.run(5 * SECOND);
        ensure(world.is_relayed(call), || world.state())?;
        ensure_nothing_else_is_lost(&world, call, when)?;
        world.heal();
        let again = world.run_until(70 * SECOND, |w| w.is_direct(call));
        again.map_err(|why| format!("{kinds:?}: {why}"))?;
        world.check()
    });
}

#[test]
fn a_direct_path_that_gets_lossy_or_slow_one_way_is_left() {
    for_seeds(20, |seed| {
        let (mut world, call) = running(seed, any_pair(seed, true))?;
        let from = usize::from(seed % 2 == 0);
        if seed % 3 == 0 {
            world.slow(from, 1 - from, 300 * MS);
        } else {
            world.lose(from, 1 - from, 0.4);
        }
        world.run_until(15 * SECOND, |w| w.is_relayed(call))?;
        world.heal();
        world.run_until(70 * SECOND, |w| w.is_direct(call))?;
        world.check()
    });
}

/// From the moment on that relays could carry a session's data again, until they do.
const BACK: Duration = Duration::from_secs(12);

/// One thing that goes wrong, or right again.
fn trouble(
    world: &mut World,
    rng: &mut SmallRng,
    relays: usize,
    frozen: &mut BTreeSet<usize>,
) -> String {
    let (relay, other) = (rng.random_range(0..relays), rng.random_range(0..relays));
    let terminal = rng.random_range(0..2);
    let what = rng.random_range(0..13);
    match what {
        0 | 1 if frozen.remove(&relay) => world.thaw_relay(relay),
        0 | 1 if !world.is_up(relay) => world.start_relay(relay),
        0 => world.kill_relay(relay),
        1 => {
            frozen.insert(relay);
            world.freeze_relay(relay);
        }
        2 if relay != other => world.part_relays(relay, other),
        3 if relay != other => world.join_relays(relay, other),
        4 => world.detach(terminal, rng.random_range(0..2)),
        5 => world.rebind_nat(terminal),
        6 => world.cut(terminal, 1 - terminal),
        7 => world.lose(terminal, 1 - terminal, 0.3),
        8..12 if world.is_up(relay) && !world.stays(relay) => world.undrain_relay(relay),
        8 | 9 if world.is_up(relay) => world.drain_relay(relay, None, false),
        10 | 11 if world.is_up(relay) => {
            let within = MS * rng.random_range(0..30_000);
            world.drain_relay(relay, Some(within), rng.random());
        }
        _ => world.heal(),
    }
    let stays: Vec<usize> = (0..relays).filter(|relay| world.stays(*relay)).collect();
    format!("{:?}: {what}: relays {relay} {other}, t{terminal}; {stays:?} stay", world.now())
}

/// Relays die, freeze, drain, end, come back and are parted, attachments break, NATs forget and direct ways die, at random.
#[test]
fn whatever_dies_a_session_lives_on_or_ends_at_both_ends() {
    check_seeds(new_seeds(20), |seed| {
        let mut rng = SmallRng::seed_from_u64(!seed);
        let relays = rng.random_range(2..6);
        let mut world = World::new(seed, relays);
        world.set_pace(100 * MS);
        world.tell_moves(true);
        world.impair(MS * rng.random_range(0..10), rng.random_range(0.0..0.01));
        for (kind, octet) in any_pair(seed, false).into_iter().zip([101, 151]) {
            let mut all: Vec<usize> = (0..relays).collect();
            all.rotate_left(rng.random_range(0..relays));
            world.terminal(kind, octet, &all);
        }
        attach(&mut world, 2)?;
        let call = world.call(0, 1);
        world.run(2 * SECOND);
        let mut frozen = BTreeSet::new();
        let mut history = Vec::new();
        let mut possible = Duration::ZERO;
        let watch = |world: &mut World, time: Duration, possible: &mut Duration| {
            let until = world.now() + time;
            while world.now() < until {
                world.run(250 * MS);
                let carried = !world.could_be_relayed(call) || world.moves_data(call, SECOND);
                *possible = if carried { Duration::ZERO } else { *possible + 250 * MS };
                let over = world.over(call) != [None; 2];
                ensure(over || *possible < BACK, || {
                    format!("no data for {BACK:?}: {}", world.state())
                })?;
            }
            Ok(())
        };
        let tell = |why: String, history: &[String]| format!("{why}\n  {}", history.join("\n  "));
        for _ in 0..rng.random_range(3..12) {
            history.push(trouble(&mut world, &mut rng, relays, &mut frozen));
            let time = MS * rng.random_range(50..8_000);
            watch(&mut world, time, &mut possible).map_err(|why| tell(why, &history))?;
        }
        let drain = rng.random::<bool>();
        for relay in 0..relays {
            if frozen.contains(&relay) {
                world.thaw_relay(relay);
            } else if !world.is_up(relay) {
                world.start_relay(relay);
            }
            if !world.stays(relay) && drain {
                world.drain_relay(relay, None, false);
            } else {
                world.undrain_relay(relay);
            }
        }
        for (a, b) in (0..relays).flat_map(|a| (0..a).map(move |b| (a, b))) {
            world.join_relays(a, b);
        }
        world.heal();
        watch(&mut world, 65 * SECOND, &mut possible).map_err(|why| tell(why, &history))?;
        let over = world.over(call);
        let same = over[0].is_some() == over[1].is_some();
        ensure(same, || tell(format!("{over:?}: {}", world.state()), &history))?;
        if over[0].is_none() {
            world.check().map_err(|why| tell(why, &history))?;
            // A path over a relay that drains is asked to be another once a minute.
            let left = (0..relays).any(|relay| world.stays(relay));
            watch(&mut world, 65 * SECOND, &mut possible).map_err(|why| tell(why, &history))?;
            ensure(!left || !world.takes_draining(call), || {
                tell(format!("a relay that drains is on a path: {}", world.state()), &history)
            })?;
            world.hang_up(call);
            world.run(5 * SECOND);
        }
        let (ends, labels) = (world.over(call), world.known(call).1);
        ensure(ends.iter().all(Option::is_some) && labels == 0, || {
            tell(format!("{ends:?}, {labels} labels are left: {}", world.state()), &history)
        })
    });
}

/// Relays drain, end and come back, and nothing else goes wrong: no packet is lost, and every relay is left in time.
#[test]
fn relays_that_drain_are_left_and_nothing_is_lost() {
    check_seeds(new_seeds(20), |seed| {
        let mut rng = SmallRng::seed_from_u64(!seed);
        let relays = rng.random_range(3..7);
        let mut world = World::new(seed, relays);
        world.set_pace(50 * MS);
        world.impair(MS * rng.random_range(0..10), 0.0);
        for (kind, octet) in any_pair(seed, false).into_iter().zip([101, 151]) {
            let mut all: Vec<usize> = (0..relays).collect();
            all.rotate_left(rng.random_range(0..relays));
            world.terminal(kind, octet, &all);
        }
        attach(&mut world, 2)?;
        let call = world.call(0, 1);
        world.run(2 * SECOND);
        world.mark(call);
        let begun = world.now();
        let mut history = Vec::new();
        for _ in 0..rng.random_range(3..10) {
            let relay = rng.random_range(0..relays);
            let stay = (0..relays).filter(|relay| world.stays(*relay)).count();
            let what = match (world.is_up(relay), world.stays(relay)) {
                (true, true) if stay > 2 && rng.random() => {
                    world.drain_relay(relay, None, false);
                    "drains"
                }
                (true, true) if stay > 2 => {
                    world.drain_relay(relay, Some(60 * SECOND), true);
                    "drains and ends"
                }
                (true, false) => {
                    world.undrain_relay(relay);
                    "drains no more"
                }
                _ => "is left alone",
            };
            history.push(format!("{:?}: relay {relay} {what}", world.now()));
            world.run(MS * rng.random_range(10..25_000));
        }
        world.run(70 * SECOND);
        let tell = |why: String| format!("{why}: {}\n  {}", world.state(), history.join("\n  "));
        let lost = world.lost_since(call, begun);
        ensure(lost.is_none(), || tell(format!("lost {lost:?}")))?;
        ensure(world.stall(call) < SWITCH, || {
            tell(format!("stood still: {:?}", world.stall(call)))
        })?;
        ensure(world.ended()[1] == 0, || tell(format!("ended {:?}", world.ended())))?;
        ensure(!world.takes_draining(call), || tell("a path takes a relay that drains".into()))?;
        world.check()
    });
}
