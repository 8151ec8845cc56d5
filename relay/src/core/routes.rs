//! Shortest routes over the graph of links that both ends confirm (architecture 5).
//!
//! **Graph.** A link counts when both of its ends list it in their [`LinksRow`]s, this relay's own row included. So
//! one row, written by a neighbour of a dead relay, takes the dead relay out of everybody's graph.
//!
//! **Cost** of a route, µs: the round-trip time of each link (the greater of what its ends say) plus
//! [`HOP_COST`], and for each relay that passes frames on: a share of its load and, while it drains,
//! [`DRAINING_COST`].
//!
//! **Choice.** The cheapest route of at most [`limits::ROUTE_RELAYS`] relays: Bellman's equations, one round for each
//! further link, so that the bound on relays is exact. All costs are positive, so none stands on a route twice. Among
//! equal routes the one with fewer relays, then the one over smaller ids, so the choice depends on nothing else.
//! A route of this relay stays while it works and costs at most a quarter more than the cheapest.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use tasuki_proto::RelayId;
use tasuki_proto::limits;
use tasuki_proto::rows::{LinksRow, LoadRow};

/// Added for each link, µs: of two routes of about the same time the shorter one costs fewer relays their work.
pub const HOP_COST: u64 = 200;
/// Added for a relay on the way that drains, µs.
pub const DRAINING_COST: u64 = 1_000_000;
/// Terminals on a relay that add one µs to each route over it.
pub const TERMINALS_PER_US: u64 = 16;

/// Added for a relay that is to be avoided, µs: more than any route without it.
const AVOIDED_COST: u64 = 1 << 42;
/// Added for a link between two relays that are to be avoided, µs: more than any route without such a link, and sixteen of
/// them less than a relay.
const AVOIDED_LINK_COST: u64 = 1 << 37;

/// What happens to the graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A relay's links, this relay's own included; replaces what it said before.
    Links(RelayId, LinksRow),
    /// A relay's load.
    Load(RelayId, LoadRow),
    /// Nothing of this relay is known any longer.
    Forgotten(RelayId),
}

/// A relay became reachable from this one, or unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reachable {
    /// Which relay.
    pub relay: RelayId,
    /// Whether a path over confirmed links leads to it.
    pub reachable: bool,
}

/// The cheapest way to a relay with a given number of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Step {
    cost: u64,
    before: RelayId,
}

/// The cheapest ways from one relay: `rounds[n]` holds what is cheapest with exactly n+1 links where that is cheaper
/// than with fewer.
type Tree = Vec<BTreeMap<RelayId, Step>>;

/// The graph as this relay sees it, and its routes.
#[derive(Debug)]
pub struct Routes {
    me: RelayId,
    /// What each relay says: peer and round-trip time, µs.
    said_by_relay: BTreeMap<RelayId, BTreeMap<RelayId, u32>>,
    load_by_relay: BTreeMap<RelayId, LoadRow>,
    reachable: BTreeSet<RelayId>,
    /// Emptied with each change.
    tree_by_source: BTreeMap<RelayId, Tree>,
    /// The routes of this relay in use.
    chosen_by_target: BTreeMap<RelayId, Vec<RelayId>>,
    outputs: VecDeque<Reachable>,
}

impl Routes {
    /// A graph of this relay alone.
    pub fn new(me: RelayId) -> Self {
        Self {
            me,
            said_by_relay: BTreeMap::new(),
            load_by_relay: BTreeMap::new(),
            reachable: BTreeSet::from([me]),
            tree_by_source: BTreeMap::new(),
            chosen_by_target: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes in a change; drain [`Routes::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, _now: Instant) {
        match input {
            Input::Links(relay, row) => {
                let said = row.links.iter().map(|l| (l.peer, l.rtt_us)).collect();
                if self.said_by_relay.get(&relay) == Some(&said) {
                    return;
                }
                self.said_by_relay.insert(relay, said);
                self.update_reachable();
            }
            Input::Load(relay, row) => {
                if self.load_by_relay.insert(relay, row) == Some(row) {
                    return;
                }
            }
            Input::Forgotten(relay) => {
                self.said_by_relay.remove(&relay);
                self.load_by_relay.remove(&relay);
                self.update_reachable();
            }
        }
        self.tree_by_source.clear();
    }

    /// The next change of what can be reached.
    pub fn poll_output(&mut self) -> Option<Reachable> {
        self.outputs.pop_front()
    }

    /// Nothing here depends on time.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether a path over confirmed links leads from this relay to `relay`. It may be longer than a route.
    pub fn is_reachable(&self, relay: RelayId) -> bool {
        self.reachable.contains(&relay)
    }

    /// All relays that can be reached, this one included.
    pub fn reachable(&self) -> &BTreeSet<RelayId> {
        &self.reachable
    }

    /// The route from one relay to another, both included; `None` where there is none of at most
    /// [`limits::ROUTE_RELAYS`] relays. Routes of this relay have hysteresis, others are the cheapest.
    pub fn route(&mut self, from: RelayId, to: RelayId) -> Option<Vec<RelayId>> {
        if from == to {
            return Some(vec![from]);
        }
        let cheapest = self.cheapest(from, to);
        if from != self.me {
            return cheapest.map(|(route, _)| route);
        }
        let Some((cheapest, cost)) = cheapest else {
            self.chosen_by_target.remove(&to);
            return None;
        };
        if let Some(chosen) = self.chosen_by_target.get(&to)
            && self.cost(chosen).is_some_and(|chosen| chosen <= cost.saturating_add(cost / 4))
        {
            return Some(chosen.clone());
        }
        self.chosen_by_target.insert(to, cheapest.clone());
        Some(cheapest)
    }

    /// The route from one relay to another with the fewest of the relays in `avoid`, among those the cheapest: how many
    /// of them it has (the first relay aside, where there are others), its cost in µs, and the route.
    pub fn route_apart(
        &self,
        from: RelayId,
        to: RelayId,
        avoid: &BTreeSet<RelayId>,
    ) -> Option<(usize, u64, Vec<RelayId>)> {
        if from == to {
            return Some((usize::from(avoid.contains(&to)), 0, vec![from]));
        }
        let (route, _) = best_in(&self.tree(from, avoid), to)?;
        let shared = route[1..].iter().filter(|relay| avoid.contains(relay)).count();
        Some((shared, self.cost(&route)?, route))
    }

    /// The round-trip time of a confirmed link, µs: the greater of what its ends say.
    pub fn link_rtt_us(&self, a: RelayId, b: RelayId) -> Option<u32> {
        let there = self.said_by_relay.get(&a)?.get(&b)?;
        let back = self.said_by_relay.get(&b)?.get(&a)?;
        (a != b).then_some(*there.max(back))
    }

    fn neighbours(&self, relay: RelayId) -> impl Iterator<Item = (RelayId, u32)> {
        let said = self.said_by_relay.get(&relay);
        said.into_iter()
            .flatten()
            .filter_map(move |(&peer, _)| Some((peer, self.link_rtt_us(relay, peer)?)))
    }

    /// What it costs to pass through a relay, µs.
    fn passing(&self, relay: RelayId) -> u64 {
        let load = self.load_by_relay.get(&relay).copied().unwrap_or_default();
        let draining = if load.draining { DRAINING_COST } else { 0 };
        draining + u64::from(load.terminals) / TERMINALS_PER_US
    }

    /// The cost of a route, µs; `None` when it does not work.
    fn cost(&self, route: &[RelayId]) -> Option<u64> {
        let mut cost = 0_u64;
        for (at, pair) in route.windows(2).enumerate() {
            let passing = if at == 0 { 0 } else { self.passing(pair[0]) };
            let link = u64::from(self.link_rtt_us(pair[0], pair[1])?);
            cost = cost.saturating_add(link + HOP_COST + passing);
        }
        Some(cost)
    }

    fn cheapest(&mut self, from: RelayId, to: RelayId) -> Option<(Vec<RelayId>, u64)> {
        if !self.tree_by_source.contains_key(&from) {
            let tree = self.tree(from, &BTreeSet::new());
            self.tree_by_source.insert(from, tree);
        }
        best_in(self.tree_by_source.get(&from)?, to)
    }

    /// Each of the relays in `avoid` costs more than any route without it; and of routes that take as many of them, those
    /// without the links between them, since such a link may be what went quiet.
    fn tree(&self, from: RelayId, avoid: &BTreeSet<RelayId>) -> Tree {
        let mut best = BTreeMap::from([(from, 0_u64)]);
        let mut tree = Tree::new();
        let mut front = BTreeMap::from([(from, 0_u64)]);
        while !front.is_empty() && tree.len() + 1 < limits::ROUTE_RELAYS {
            let mut round = BTreeMap::<RelayId, Step>::new();
            for (&before, &so_far) in &front {
                let passing = if before == from { 0 } else { self.passing(before) };
                for (peer, rtt) in self.neighbours(before) {
                    let avoided = match (avoid.contains(&before), avoid.contains(&peer)) {
                        (true, true) => AVOIDED_COST + AVOIDED_LINK_COST,
                        (false, true) => AVOIDED_COST,
                        _ => 0,
                    };
                    let cost = so_far.saturating_add(u64::from(rtt) + HOP_COST + passing + avoided);
                    let step = Step { cost, before };
                    let worse = best.get(&peer).is_some_and(|&known| known <= cost)
                        || round.get(&peer).is_some_and(|&known| known <= step);
                    if !worse {
                        round.insert(peer, step);
                    }
                }
            }
            front = round.iter().map(|(&relay, step)| (relay, step.cost)).collect();
            best.extend(front.iter().map(|(&relay, &cost)| (relay, cost)));
            tree.push(round);
        }
        tree
    }

    fn update_reachable(&mut self) {
        let mut found = BTreeSet::from([self.me]);
        let mut front = vec![self.me];
        while let Some(relay) = front.pop() {
            let fresh: Vec<_> = self
                .neighbours(relay)
                .map(|(peer, _)| peer)
                .filter(|p| !found.contains(p))
                .collect();
            found.extend(&fresh);
            front.extend(fresh);
        }
        let changed = found.symmetric_difference(&self.reachable);
        let changed = changed.map(|&relay| Reachable { relay, reachable: found.contains(&relay) });
        self.outputs.extend(changed.collect::<Vec<_>>());
        self.chosen_by_target.retain(|target, _| found.contains(target));
        self.reachable = found;
    }
}

/// The cheapest way to a relay, and its cost.
fn best_in(tree: &Tree, to: RelayId) -> Option<(Vec<RelayId>, u64)> {
    // The last round that improved it holds the cheapest.
    let last = tree.iter().rposition(|round| round.contains_key(&to))?;
    let cost = tree[last].get(&to)?.cost;
    let mut route = vec![to];
    let mut at = to;
    for round in tree[..=last].iter().rev() {
        at = round.get(&at)?.before;
        route.push(at);
    }
    route.reverse();
    Some((route, cost))
}

#[cfg(test)]
mod tests;
