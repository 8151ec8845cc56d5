//! The cores in virtual time, and the acting part with look-ups of the test's own.
#![allow(clippy::disallowed_methods, reason = "tests act")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use proptest::prelude::*;
use tokio::sync::watch;

use super::memory::{FORGIVEN, Memory, Standing};
use super::race::{ANSWER_DELAY, Input, LOOKUPS, Output, Race, TryId};
use super::{Dialler, Manner, Place, Problem};
use crate::limits;

const MANNER: Manner = Manner::RELAY;

fn v4(last: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, last), 4433).into()
}

fn v6(last: u16) -> SocketAddr {
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last), 4433).into()
}

fn new(addresses: &[SocketAddr]) -> Vec<(SocketAddr, Standing)> {
    addresses.iter().map(|address| (*address, Standing::New)).collect()
}

fn named(names: &[&str]) -> Vec<Place> {
    names.iter().map(|name| Place::parse(0, &format!("{name}:4433")).unwrap()).collect()
}

/// What an address does in a world of virtual time.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Nothing,
    FailsAfter(u64),
    AnswersAfter(u64),
}

/// What a look-up finds, and after how many ms.
#[derive(Debug, Clone)]
struct LookUp {
    after: u64,
    finds: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Ran {
    /// When each try began, ms.
    starts: Vec<(u64, SocketAddr)>,
    won: Option<(u64, SocketAddr)>,
    /// When there was nothing left, ms.
    over: Option<u64>,
    most_open: usize,
}

/// Runs a race against a world until it is won or over.
fn run(
    places: &[Place],
    look_ups: &[LookUp],
    remembered: &BTreeMap<usize, Vec<SocketAddr>>,
    does: impl Fn(SocketAddr) -> Does,
) -> Ran {
    let begin = Instant::now();
    let ms = |now: Instant| now.duration_since(begin).as_millis() as u64;
    let (mut now, mut ran) = (begin, Ran::default());
    let mut race = Race::new(places, MANNER, |_| Standing::New, now);
    let mut answers: Vec<(Instant, usize)> = Vec::new();
    let mut open: BTreeMap<TryId, (Option<Instant>, bool, SocketAddr)> = BTreeMap::new();
    for _ in 0..10_000 {
        while let Some(output) = race.poll_output() {
            match output {
                Output::LookUp(place) => {
                    answers.push((now + Duration::from_millis(look_ups[place].after), place));
                    let known = remembered.get(&place).cloned().unwrap_or_default();
                    race.handle(Input::Remembered(place, new(&known)), now);
                }
                Output::Start { id, address, .. } => {
                    ran.starts.push((ms(now), address));
                    let (ends, works) = match does(address) {
                        Does::Nothing => (None, false),
                        Does::FailsAfter(after) => (Some(after), false),
                        Does::AnswersAfter(after) => (Some(after), true),
                    };
                    let ends = ends.map(|after| now + Duration::from_millis(after));
                    open.insert(id, (ends, works, address));
                    ran.most_open = ran.most_open.max(open.len());
                }
                Output::Cancel(id) => assert!(open.remove(&id).is_some(), "{id:?} is not open"),
                Output::NoAnswer(_) => {}
            }
        }
        if race.is_over() {
            assert!(open.is_empty());
            ran.over = Some(ms(now));
            return ran;
        }
        let ends = open.iter().filter_map(|(id, (ends, ..))| Some(((*ends)?, *id)));
        let end = ends.min();
        let answer = answers.iter().copied().min();
        let due = race.poll_timeout();
        let next = [end.map(|(at, _)| at), answer.map(|(at, _)| at), due].into_iter().flatten();
        let at = next.min().expect("something is to come");
        assert!(due.is_none_or(|due| due > now), "a busy loop");
        now = now.max(at);
        if let Some((at, id)) = end
            && at <= now
        {
            let (_, works, address) = open.remove(&id).unwrap();
            if works {
                ran.won = Some((ms(now), address));
                return ran;
            }
            race.handle(Input::Ended(id), now);
        } else if let Some((at, place)) = answer
            && at <= now
        {
            answers.retain(|(_, waiting)| *waiting != place);
            race.handle(Input::Found(place, new(&look_ups[place].finds)), now);
        } else {
            race.handle(Input::Timeout, now);
        }
    }
    panic!("the race goes on and on: {ran:?}");
}

fn at_once(finds: &[SocketAddr]) -> LookUp {
    LookUp { after: 0, finds: finds.to_vec() }
}

#[test]
fn a_dead_family_costs_a_quarter_of_a_second() {
    let does = |address: SocketAddr| {
        if address.is_ipv6() { Does::Nothing } else { Does::AnswersAfter(20) }
    };
    let found = at_once(&[v6(1), v6(2), v6(3), v4(1)]);
    let ran = run(&named(&["relay.example"]), &[found], &BTreeMap::new(), does);
    assert_eq!(ran.starts, [(0, v6(1)), (250, v4(1))], "families alternate");
    assert_eq!(ran.won, Some((270, v4(1))));
}

#[test]
fn what_fails_at_once_delays_nothing() {
    let does = |address| if address == v4(9) { Does::AnswersAfter(5) } else { Does::FailsAfter(1) };
    let found = at_once(&[v4(1), v4(2), v4(3), v4(9)]);
    let ran = run(&named(&["relay.example"]), &[found], &BTreeMap::new(), does);
    assert_eq!(ran.won, Some((8, v4(9))));
}

#[test]
fn each_try_has_its_own_time_and_all_are_tried() {
    let dead: Vec<SocketAddr> = (1..=9).map(v4).collect();
    let ran =
        run(&named(&["relay.example"]), &[at_once(&dead)], &BTreeMap::new(), |_| Does::Nothing);
    assert_eq!(ran.starts.len(), 9);
    assert_eq!(ran.over, Some(8 * 250 + 5_000), "the last one has its five seconds too");
}

#[test]
fn names_take_turns() {
    let places = named(&["dead.example", "good.example"]);
    let look_ups = [at_once(&[v4(1), v4(2), v4(3)]), at_once(&[v4(9)])];
    let does = |address| if address == v4(9) { Does::AnswersAfter(5) } else { Does::Nothing };
    let ran = run(&places, &look_ups, &BTreeMap::new(), does);
    assert_eq!(ran.won, Some((255, v4(9))));
}

#[test]
fn a_slow_name_holds_up_no_other_and_takes_nothing_of_the_connection_s_time() {
    let places = named(&["slow.example", "quick.example"]);
    let look_ups = [LookUp { after: 5_000, finds: vec![v4(1)] }, at_once(&[v4(2)])];
    let quick = run(&places, &look_ups, &BTreeMap::new(), |_| Does::AnswersAfter(10));
    assert_eq!(quick.won, Some((10, v4(2))));
    // The connection takes nearly all the time that a try has.
    let slow = run(&places[..1], &look_ups[..1], &BTreeMap::new(), |_| Does::AnswersAfter(4_990));
    assert_eq!(slow.won, Some((9_990, v4(1))));
}

#[test]
fn an_earlier_answer_serves_when_the_fresh_one_is_late_or_fails() {
    let places = named(&["relay.example"]);
    let earlier = BTreeMap::from([(0, vec![v4(7)])]);
    let delay = ANSWER_DELAY.as_millis() as u64;
    let does = |_| Does::AnswersAfter(10);
    let late = run(&places, &[LookUp { after: 60_000, finds: vec![v4(1)] }], &earlier, does);
    assert_eq!(late.won, Some((delay + 10, v4(7))));
    let failed = run(&places, &[LookUp { after: 30, finds: vec![] }], &earlier, does);
    assert_eq!(failed.won, Some((40, v4(7))));
    let moved = run(&places, &[LookUp { after: 30, finds: vec![v4(1)] }], &earlier, does);
    assert_eq!(moved.won, Some((40, v4(1))), "a fresh answer comes first");
    let wrong = |address| if address == v4(7) { Does::AnswersAfter(10) } else { Does::Nothing };
    let wrong = run(&places, &[LookUp { after: 30, finds: vec![v4(1)] }], &earlier, wrong);
    assert_eq!(wrong.won, Some((290, v4(7))), "and the earlier one is tried behind it");
}

#[test]
fn a_look_up_that_never_ends_is_given_up() {
    let forever = [LookUp { after: 1_000_000, finds: vec![] }];
    let ran = run(&named(&["x.example"]), &forever, &BTreeMap::new(), |_| Does::Nothing);
    assert_eq!(ran.over, Some(MANNER.look_up.as_millis() as u64));
    assert_eq!(run(&[], &[], &BTreeMap::new(), |_| Does::Nothing).over, Some(0));
}

#[test]
fn many_names_are_looked_up_a_few_at_once() {
    let names: Vec<String> = (0..50).map(|n| format!("r{n}.example:1")).collect();
    let places: Vec<Place> =
        names.iter().enumerate().map(|(at, name)| Place::parse(at, name).unwrap()).collect();
    let mut race = Race::new(&places, MANNER, |_| Standing::New, Instant::now());
    let asked = std::iter::from_fn(|| race.poll_output()).count();
    assert_eq!(asked, LOOKUPS);
    // All fail: in the end all were asked.
    let look_ups = vec![LookUp { after: 1, finds: vec![] }; 50];
    assert!(run(&places, &look_ups, &BTreeMap::new(), |_| Does::Nothing).over.is_some());
}

#[test]
fn places_are_names_or_addresses_with_a_port() {
    let place = Place::parse(0, "relay.example:4433").unwrap();
    assert_eq!((place.host.as_str(), place.port, place.address()), ("relay.example", 4433, None));
    let place = Place::parse(0, "[2001:db8::1]:1").unwrap();
    assert_eq!(place.address(), Some("[2001:db8::1]:1".parse().unwrap()));
    let mapped = Place::parse(0, "[::ffff:192.0.2.1]:4433").unwrap();
    assert_eq!(mapped.address(), Some(v4(1)));
    for bad in ["", "x", ":1", "x:", "x:70000", "[]:1"] {
        assert_eq!(Place::parse(0, bad), None, "{bad}");
    }
}

#[test]
fn what_worked_is_first_and_what_failed_is_last_until_it_is_forgiven() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    memory.tried(v4(1), false, now);
    memory.tried(v4(2), true, now);
    let later = now + Duration::from_secs(1);
    memory.tried(v4(3), false, later);
    let mut all = [v4(3), v4(1), v4(4), v4(2)];
    all.sort_by_key(|address| memory.standing(*address, later));
    assert_eq!(all, [v4(2), v4(4), v4(1), v4(3)]);
    assert_eq!(memory.standing(v4(1), now + FORGIVEN), Standing::New);
    assert_eq!(memory.standing(v4(2), now + 2 * FORGIVEN), Standing::Worked);
}

#[test]
fn a_failed_look_up_leaves_the_last_good_answer() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    memory.answered("x", vec![v4(1).ip()], now);
    memory.answered("x", vec![], now);
    let hour = Duration::from_secs(3600);
    assert_eq!(memory.remembered("x", None, now + 1000 * hour), [v4(1).ip()]);
    assert_eq!(memory.remembered("x", Some(hour), now + hour), [v4(1).ip()]);
    assert!(memory.remembered("x", Some(hour), now + 2 * hour).is_empty());
    assert!(memory.remembered("y", None, now).is_empty());
}

#[test]
fn the_memory_is_bounded_and_the_oldest_makes_room() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    let at = |n: usize| now + Duration::from_millis(n as u64);
    for n in 0..=limits::NAMES_REMEMBERED {
        memory.answered(&n.to_string(), vec![v4(1).ip(); 1_000], at(n));
    }
    assert!(memory.remembered("0", None, at(5_000)).is_empty());
    assert_eq!(memory.remembered("1", None, at(5_000)).len(), limits::ADDRESSES_PER_NAME);
    let address = |n: usize| SocketAddr::from((Ipv4Addr::LOCALHOST, 1 + n as u16));
    for n in 0..=limits::DIALLED_REMEMBERED {
        memory.tried(address(n), true, at(n));
    }
    assert_eq!(memory.standing(address(0), at(5_000)), Standing::New);
    assert_eq!(memory.standing(address(1), at(5_000)), Standing::Worked);
}

fn any_address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![(1..12_u8).prop_map(v4), (1..12_u16).prop_map(v6)]
}

fn any_look_up() -> impl Strategy<Value = LookUp> {
    (0..20_000_u64, prop::collection::vec(any_address(), 0..6))
        .prop_map(|(after, finds)| LookUp { after, finds })
}

proptest! {
    /// Whatever names find and addresses do: an address that answers in time is reached, no address is tried twice, tries
    /// keep their distance, and a race without a winner ends.
    #[test]
    fn one_live_address_is_enough(
        look_ups in prop::collection::vec(any_look_up(), 1..5),
        remembered in prop::collection::btree_map(0..5_usize, prop::collection::vec(any_address(), 0..4), 0..5),
        live in prop::collection::btree_set(any_address(), 0..3),
        quick_to_fail in prop::collection::btree_set(any_address(), 0..6),
        answer in 1..4_900_u64,
    ) {
        let names: Vec<String> = (0..look_ups.len()).map(|n| format!("n{n}.example")).collect();
        let places = named(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let does = |address| match () {
            () if live.contains(&address) => Does::AnswersAfter(answer),
            () if quick_to_fail.contains(&address) => Does::FailsAfter(3),
            () => Does::Nothing,
        };
        let ran = run(&places, &look_ups, &remembered, does);
        let waited = MANNER.look_up.as_millis() as u64;
        let earlier = || remembered.iter().filter(|(at, _)| **at < look_ups.len()).flat_map(|(_, all)| all);
        let all: BTreeSet<SocketAddr> =
            look_ups.iter().flat_map(|one| &one.finds).chain(earlier()).copied().collect();
        // What is found in time; what comes later is taken as long as other tries go on.
        let in_time = look_ups.iter().filter(|one| one.after <= waited);
        let sure: BTreeSet<SocketAddr> =
            in_time.flat_map(|one| &one.finds).chain(earlier()).copied().collect();
        if !sure.is_disjoint(&live) {
            prop_assert!(ran.won.is_some());
        }
        if let Some((_, address)) = ran.won {
            prop_assert!(live.contains(&address));
        }
        let tried: BTreeSet<_> = ran.starts.iter().map(|(_, address)| *address).collect();
        prop_assert_eq!(tried.len(), ran.starts.len());
        prop_assert!(tried.is_subset(&all));
        if ran.won.is_none() {
            prop_assert!(sure.is_subset(&tried));
            let longest = 20_000 + 5_000 + 250 * all.len() as u64 + 5_000;
            prop_assert!(ran.over.unwrap() <= longest);
        }
        prop_assert!(ran.most_open <= 21);
    }
}

/// Look-ups that end when the test says so.
fn told_to(answer: watch::Receiver<Option<super::Answer>>) -> (Dialler, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let dialler = Dialler::with_resolver(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        let mut answer = answer.clone();
        async move { answer.wait_for(Option::is_some).await.unwrap().clone().unwrap() }.boxed()
    });
    (dialler, asked)
}

#[tokio::test]
async fn a_late_answer_serves_the_next_dial_and_a_failed_look_up_leaves_it() {
    let (tell, answer) = watch::channel(None);
    let (dialler, asked) = told_to(answer);
    let manner = Manner { look_up: Duration::from_millis(50), ..Manner::RELAY };
    let connect = |_, address: SocketAddr| async move { Ok::<_, String>(address) };
    let mut first = dialler.dial(named(&["relay.example"]), manner, connect);
    assert!(first.next().await.is_none());
    assert!(matches!(first.failures()[0].problem, Problem::SlowLookUp));
    drop(first);
    let mut second = dialler.dial(named(&["relay.example"]), manner, connect);
    assert!(second.next().await.is_none());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the first look-up goes on, and serves both");

    let good: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    let mut third = dialler.dial(named(&["relay.example"]), Manner::RELAY, connect);
    tell.send_replace(Some(Ok(vec![good])));
    assert_eq!(third.next().await, Some((0, v4(1))));
    tell.send_replace(Some(Err("the server is gone".into())));
    let mut fourth = dialler.dial(named(&["relay.example"]), Manner::RELAY, connect);
    assert_eq!(fourth.next().await, Some((0, v4(1))), "the last good answer");
    assert_eq!(dialler.addresses(&named(&["relay.example"])[0], manner).await, Ok(vec![v4(1)]));
}

#[tokio::test]
async fn after_a_useless_connection_the_other_addresses_are_tried() {
    let found: super::Answer = Ok(vec![v4(1).ip(), v4(2).ip()]);
    let (_tell, answer) = watch::channel(Some(found));
    let (dialler, _) = told_to(answer);
    let connect = |_, address: SocketAddr| async move { Ok::<_, String>(address) };
    let mut dialling = dialler.dial(named(&["relay.example"]), Manner::RELAY, connect);
    assert_eq!(dialling.next().await, Some((0, v4(1))));
    assert_eq!(dialling.next().await, Some((0, v4(2))));
    assert_eq!(dialling.next().await, None);
}

#[tokio::test]
async fn failures_are_told_in_one_line_with_the_address_of_each() {
    let found: super::Answer = Ok(vec![v4(1).ip(), v6(2).ip()]);
    let (_tell, answer) = watch::channel(Some(found));
    let (dialler, _) = told_to(answer);
    let manner = Manner { each: Duration::from_millis(50), ..Manner::RELAY };
    let connect = |_, address: SocketAddr| async move {
        match address.is_ipv4() {
            true => std::future::pending::<Result<(), &str>>().await,
            false => Err("closed"),
        }
    };
    let mut dialling = dialler.dial(named(&["relay.example"]), manner, connect);
    assert!(dialling.next().await.is_none());
    let line = dialling.summary();
    assert!(line.contains("relay.example:4433 (192.0.2.1): no answer"), "{line}");
    assert!(line.contains("relay.example:4433 (2001:db8::2): closed"), "{line}");
    // What failed comes last the next time: here both did, the quick one after the silent one.
    let place = &named(&["relay.example"])[0];
    assert_eq!(dialler.addresses(place, manner).await, Ok(vec![v4(1), v6(2)]));
}
