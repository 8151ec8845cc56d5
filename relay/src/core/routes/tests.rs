use super::*;
use proptest::prelude::*;
use tasuki_proto::rows::LinkState;

#[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
fn now() -> Instant {
    Instant::now()
}

fn row(links: &[(u64, u32)]) -> LinksRow {
    let links = links.iter().map(|&(peer, rtt_us)| LinkState { peer: RelayId(peer), rtt_us });
    LinksRow { links: links.collect() }
}

/// The routes of relay 1 in a graph of confirmed links.
fn routes(links: &[(u64, u64, u32)]) -> Routes {
    let mut said = BTreeMap::<u64, Vec<(u64, u32)>>::new();
    for &(a, b, rtt) in links {
        said.entry(a).or_default().push((b, rtt));
        said.entry(b).or_default().push((a, rtt));
    }
    let mut routes = Routes::new(RelayId(1));
    for (relay, links) in said {
        routes.handle(Input::Links(RelayId(relay), row(&links)), now());
    }
    routes
}

fn route(routes: &mut Routes, from: u64, to: u64) -> Option<Vec<u64>> {
    Some(routes.route(RelayId(from), RelayId(to))?.into_iter().map(|r| r.0).collect())
}

fn changes(routes: &mut Routes) -> Vec<(u64, bool)> {
    std::iter::from_fn(|| routes.poll_output()).map(|c| (c.relay.0, c.reachable)).collect()
}

#[test]
fn line() {
    let links: Vec<_> = (1..20).map(|n| (n, n + 1, 1000)).collect();
    let mut routes = routes(&links);
    assert_eq!(route(&mut routes, 1, 1), Some(vec![1]));
    assert_eq!(route(&mut routes, 1, 3), Some(vec![1, 2, 3]));
    assert_eq!(route(&mut routes, 1, 16).map(|r| r.len()), Some(limits::ROUTE_RELAYS));
    assert!(routes.is_reachable(RelayId(17)));
    assert_eq!(route(&mut routes, 1, 17), None, "longer than a route may be");
    assert_eq!(route(&mut routes, 20, 5).map(|r| r.len()), Some(16));
}

#[test]
fn ring_goes_the_shorter_way_round() {
    let links: Vec<_> = (1..=10).map(|n| (n, n % 10 + 1, 1000)).collect();
    let mut routes = routes(&links);
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 2, 3, 4]));
    assert_eq!(route(&mut routes, 1, 8), Some(vec![1, 10, 9, 8]));
}

#[test]
fn star_goes_over_its_centre() {
    let links: Vec<_> = (2..=30).map(|n| (100, n, 500)).chain([(1, 100, 500)]).collect();
    let mut routes = routes(&links);
    assert_eq!(route(&mut routes, 1, 17), Some(vec![1, 100, 17]));
    assert_eq!(route(&mut routes, 30, 2), Some(vec![30, 100, 2]));
}

#[test]
fn a_bounded_route_is_taken_where_the_cheapest_is_too_long() {
    let mut links: Vec<_> = (1..20).map(|n| (n, n + 1, 1)).collect();
    links.push((1, 20, 1_000_000));
    assert_eq!(route(&mut routes(&links), 1, 20), Some(vec![1, 20]));
}

#[test]
fn a_link_counts_only_when_both_ends_list_it() {
    let mut routes = Routes::new(RelayId(1));
    routes.handle(Input::Links(RelayId(1), row(&[(2, 10)])), now());
    assert_eq!(changes(&mut routes), []);
    assert_eq!(route(&mut routes, 1, 2), None);
    routes.handle(Input::Links(RelayId(2), row(&[(1, 10), (3, 10)])), now());
    assert_eq!(changes(&mut routes), [(2, true)]);
    routes.handle(Input::Links(RelayId(3), row(&[(2, 10), (3, 1)])), now());
    assert_eq!(changes(&mut routes), [(3, true)]);
    // One small row marks all behind it.
    routes.handle(Input::Links(RelayId(1), row(&[])), now());
    assert_eq!(changes(&mut routes), [(2, false), (3, false)]);
    assert_eq!(route(&mut routes, 1, 3), None);
    assert_eq!(route(&mut routes, 2, 3), Some(vec![2, 3]));
    routes.handle(Input::Forgotten(RelayId(3)), now());
    assert_eq!(route(&mut routes, 2, 3), None);
}

#[test]
fn load_and_draining_turn_routes_away_but_do_not_cut() {
    let mut routes = routes(&[(1, 2, 1000), (2, 4, 1000), (1, 3, 1100), (3, 4, 1100)]);
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 2, 4]));
    let load = |draining, terminals| LoadRow { draining, terminals };
    routes.handle(Input::Load(RelayId(2), load(true, 0)), now());
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 3, 4]));
    routes.handle(Input::Load(RelayId(3), load(true, 0)), now());
    assert!(route(&mut routes, 1, 4).is_some());
    assert_eq!(route(&mut routes, 1, 2), Some(vec![1, 2]), "its own terminals are still reached");
    routes.handle(Input::Load(RelayId(2), load(false, 100_000)), now());
    routes.handle(Input::Load(RelayId(3), load(false, 0)), now());
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 3, 4]));
}

#[test]
fn the_link_between_two_ends_is_avoided_where_there_is_a_way_round() {
    let routes =
        routes(&[(1, 2, 1_000), (1, 3, 90_000), (3, 2, 90_000), (3, 4, 1_000), (4, 2, 1_000)]);
    let avoid = |relays: &[u64]| relays.iter().map(|&relay| RelayId(relay)).collect();
    let apart = |relays: &[u64]| {
        let (shared, _, route) =
            routes.route_apart(RelayId(1), RelayId(2), &avoid(relays)).unwrap();
        (shared, route.into_iter().map(|relay| relay.0).collect::<Vec<_>>())
    };
    assert_eq!(apart(&[]), (0, vec![1, 2]));
    // A path of these two went quiet: their link may be why.
    assert_eq!(apart(&[1, 2]), (1, vec![1, 3, 4, 2]));
    // One more relay of the old path is worse than its link.
    assert_eq!(apart(&[1, 2, 3]), (1, vec![1, 2]));
}

#[test]
fn a_route_stays_while_another_is_better_by_little_only() {
    let mut routes = routes(&[(1, 2, 10_000), (2, 4, 10_000), (1, 3, 11_000), (3, 4, 11_000)]);
    let say = |routes: &mut Routes, rtt| {
        routes.handle(Input::Links(RelayId(3), row(&[(1, rtt), (4, rtt)])), now());
        routes.handle(Input::Links(RelayId(1), row(&[(2, 10_000), (3, rtt)])), now());
        routes.handle(Input::Links(RelayId(4), row(&[(2, 10_000), (3, rtt)])), now());
    };
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 2, 4]));
    // It flaps around equal: the choice does not.
    for rtt in [9_000, 11_000, 9_000, 8_500, 12_000, 9_500] {
        say(&mut routes, rtt);
        assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 2, 4]));
    }
    say(&mut routes, 5_000);
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 3, 4]));
    for rtt in [9_000, 11_000, 12_000] {
        say(&mut routes, rtt);
        assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 3, 4]));
    }
    // A route that does not work is left at once.
    routes.handle(Input::Links(RelayId(3), row(&[(1, 12_000)])), now());
    assert_eq!(route(&mut routes, 1, 4), Some(vec![1, 2, 4]));
}

#[test]
fn two_hundred_relays_are_cheap() {
    let links: Vec<_> = (1..=200_u64)
        .flat_map(|n| (1..=7).map(move |k| (n, (n * 31 + k * 17) % 200 + 1, (n * k) as u32 + 50)))
        .filter(|(a, b, _)| a != b)
        .collect();
    let mut routes = routes(&links);
    let begun = now();
    for to in 1..=200 {
        assert!(route(&mut routes, 1, to).is_some());
    }
    assert_eq!(routes.tree_by_source.len(), 1, "one tree serves all targets");
    println!("200 routes in a debug build: {:?}", begun.elapsed());
}

/// The cheapest route by trying all of them.
fn brute_force(routes: &Routes, route: &mut Vec<RelayId>, to: RelayId, best: &mut Option<u64>) {
    let Some(&at) = route.last() else { return };
    if at == to {
        let cost = routes.cost(route);
        *best = [*best, cost].into_iter().flatten().min();
        return;
    }
    let next: Vec<_> = routes.neighbours(at).map(|(peer, _)| peer).collect();
    for peer in next {
        if !route.contains(&peer) && route.len() < limits::ROUTE_RELAYS {
            route.push(peer);
            brute_force(routes, route, to, best);
            route.pop();
        }
    }
}

proptest! {
    #[test]
    fn random_graphs_agree_with_brute_force(
        said in proptest::collection::vec((1_u64..8, 1_u64..8, 0_u32..5000), 0..40),
        loads in proptest::collection::vec((1_u64..8, any::<bool>(), 0_u32..100_000), 0..6),
    ) {
        let mut routes = Routes::new(RelayId(1));
        let mut rows = BTreeMap::<u64, BTreeMap<u64, u32>>::new();
        for (a, b, rtt) in said {
            rows.entry(a).or_default().insert(b, rtt);
        }
        for (relay, links) in rows {
            let links: Vec<_> = links.into_iter().collect();
            routes.handle(Input::Links(RelayId(relay), row(&links)), now());
        }
        for (relay, draining, terminals) in loads {
            routes.handle(Input::Load(RelayId(relay), LoadRow { draining, terminals }), now());
        }
        for from in 1..8 {
            for to in 1..8 {
                let mut best = None;
                brute_force(&routes, &mut vec![RelayId(from)], RelayId(to), &mut best);
                let found = routes.route(RelayId(from), RelayId(to));
                prop_assert_eq!(found.as_ref().and_then(|r| routes.cost(r)), best);
                if let Some(found) = &found {
                    prop_assert_eq!((found[0].0, found[found.len() - 1].0), (from, to));
                    let mut unique = found.clone();
                    unique.sort();
                    unique.dedup();
                    prop_assert_eq!(unique.len(), found.len());
                }
                if from == 1 {
                    prop_assert_eq!(routes.is_reachable(RelayId(to)), found.is_some());
                }
            }
        }
    }
}
