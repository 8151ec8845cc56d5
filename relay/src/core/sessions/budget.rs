//! Who may begin sessions here, how fast, and how many of the places they get.
//!
//! A session that is new to this relay is charged once, to whoever asks for it, whether by a call or by a path of a session
//! that began elsewhere: nobody gets more by the second way than by the first.
//!
//! | what | limit |
//! |---|---|
//! | calls and paths of a terminal, of a neighbour relay, of a pair | a rate each |
//! | sessions that a terminal begins, and those that it is called for | `SESSIONS_PER_TERMINAL` each |
//! | of those that it is called for | a caller takes no more places than are free, a neighbour relay three times as many |
//! | sessions of a pair | `SESSIONS_PER_PAIR` |
//! | sessions over this relay | a terminal takes no more places than are free, a neighbour relay three times as many |
//!
//! Rates belong to the terminal's name, so that they last over a new log-in. Names in calls over a link are the neighbour
//! relay's word: pairs that it makes up are bounded by its own rate and share.

use std::collections::BTreeMap;
use std::time::Instant;

use tasuki_proto::{TerminalId, limits};

use super::Neighbour;
use crate::core::bucket::Bucket;
use crate::core::shares::Shares;
use crate::core::{ConnId, LinkId};

/// A neighbour relay speaks for many terminals: its share of places is so many times what is free.
const LINK_TIMES: usize = 3;
/// Rates remembered before those that have recovered are swept out.
const REMEMBERED: usize = 4_096;

/// Who asks for a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asker {
    /// A terminal attached here.
    Terminal(TerminalId),
    /// A neighbour relay.
    Link(LinkId),
}

impl Asker {
    /// Its share of places is so many times what is free.
    pub fn times(&self) -> usize {
        match self {
            Asker::Terminal(_) => 1,
            Asker::Link(_) => LINK_TIMES,
        }
    }
}

/// What a session was charged to; given back when it is over.
#[derive(Debug, Clone)]
pub(super) struct Charge {
    pub(super) asker: Asker,
    /// The callee's connection, if it is attached here.
    callee: Option<ConnId>,
    /// Caller and callee.
    pub(super) pair: (TerminalId, TerminalId),
}

impl Charge {
    pub(super) fn new(
        asker: Asker,
        next: Neighbour,
        caller: &TerminalId,
        callee: &TerminalId,
    ) -> Self {
        let pair = (caller.clone(), callee.clone());
        let callee = match next {
            Neighbour::Terminal(conn) => Some(conn),
            Neighbour::Link(_) => None,
        };
        Self { asker, callee, pair }
    }
}

/// Requests refused with `busy` since the start, by what was at its limit.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Refused {
    pub(super) rate: u64,
    pub(super) share: u64,
    pub(super) queue: u64,
}

/// All budgets for sessions of one relay. The maps are ordered, since peers choose the names in them: a hash that they know
/// would let them choose ones that collide.
#[derive(Debug, Default)]
pub(super) struct Budget {
    rates: BTreeMap<Asker, Bucket>,
    pair_rates: BTreeMap<(TerminalId, TerminalId), Bucket>,
    sweep_at: usize,
    places: Shares<Asker>,
    pairs: BTreeMap<(TerminalId, TerminalId), usize>,
    callees: BTreeMap<ConnId, Shares<Asker>>,
    pub(super) refused: Refused,
}

impl Budget {
    /// Whether one more call or path may be asked for; what is not refused counts.
    pub(super) fn may_ask(
        &mut self,
        asker: &Asker,
        (caller, callee): (&TerminalId, &TerminalId),
        now: Instant,
    ) -> bool {
        self.sweep(now);
        let (rate, burst) = rate_of(asker);
        let own = self.rates.entry(asker.clone()).or_insert_with(|| Bucket::full(burst, now));
        let may = own.take(rate, burst, now) && {
            let pair = (caller.clone(), callee.clone());
            let burst = limits::PAIR_CALLS_AT_ONCE;
            let pair = self.pair_rates.entry(pair).or_insert_with(|| Bucket::full(burst, now));
            pair.take(limits::PAIR_CALLS_PER_SECOND, burst, now)
        };
        self.refused.rate += u64::from(!may);
        may
    }

    /// Whether there are places for a session that would be charged so, of `most` at this relay.
    pub(super) fn has_room(&mut self, charge: &Charge, most: usize) -> bool {
        let Charge { asker, callee, pair } = charge;
        let own = match asker {
            Asker::Terminal(_) => self.places.held(asker) < limits::SESSIONS_PER_TERMINAL,
            Asker::Link(_) => true,
        };
        let of_callee = callee.and_then(|conn| self.callees.get(&conn)).is_none_or(|shares| {
            shares.has_room(asker, limits::SESSIONS_PER_TERMINAL, asker.times())
        });
        let room = own
            && of_callee
            && self.pairs.get(pair).is_none_or(|held| *held < limits::SESSIONS_PER_PAIR)
            && self.places.has_room(asker, most, asker.times());
        self.refused.share += u64::from(!room);
        room
    }

    pub(super) fn take(&mut self, charge: &Charge) {
        self.places.take(&charge.asker);
        *self.pairs.entry(charge.pair.clone()).or_default() += 1;
        if let Some(callee) = charge.callee {
            self.callees.entry(callee).or_default().take(&charge.asker);
        }
    }

    pub(super) fn give(&mut self, charge: &Charge) {
        self.places.give(&charge.asker);
        if let Some(held) = self.pairs.get_mut(&charge.pair) {
            *held -= 1;
            if *held == 0 {
                self.pairs.remove(&charge.pair);
            }
        }
        if let Some(callee) = charge.callee
            && let Some(shares) = self.callees.get_mut(&callee)
        {
            shares.give(&charge.asker);
            if shares.is_empty() {
                self.callees.remove(&callee);
            }
        }
    }

    /// A link takes the place of another one with the same relay: so does its rate. Its sessions are charged anew by the
    /// caller.
    pub(super) fn handle_moved(&mut self, from: LinkId, to: LinkId) {
        if let Some(rate) = self.rates.remove(&Asker::Link(from)) {
            self.rates.insert(Asker::Link(to), rate);
        }
    }

    /// Whether nothing is charged to anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.pairs.is_empty() && self.callees.is_empty()
    }

    /// Forgets rates that have recovered: they say what new ones say.
    fn sweep(&mut self, now: Instant) {
        if self.rates.len() + self.pair_rates.len() < self.sweep_at.max(REMEMBERED) {
            return;
        }
        self.rates.retain(|asker, bucket| {
            let (rate, burst) = rate_of(asker);
            !bucket.is_full(rate, burst, now)
        });
        let (rate, burst) = (limits::PAIR_CALLS_PER_SECOND, limits::PAIR_CALLS_AT_ONCE);
        self.pair_rates.retain(|_, bucket| !bucket.is_full(rate, burst, now));
        self.sweep_at = 2 * (self.rates.len() + self.pair_rates.len());
    }
}

fn rate_of(asker: &Asker) -> (u32, u32) {
    match asker {
        Asker::Terminal(_) => (limits::CALLS_PER_SECOND, limits::CALLS_PER_SECOND),
        Asker::Link(_) => (limits::LINK_CALLS_PER_SECOND, limits::LINK_CALLS_AT_ONCE),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need an instant to start from")]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> TerminalId {
        TerminalId::new(text).unwrap()
    }

    #[test]
    fn pairs_that_a_relay_makes_up_cost_no_memory_and_no_more_than_its_rate() {
        let mut budget = Budget::default();
        let start = Instant::now();
        let link = Asker::Link(LinkId(1));
        let (mut passed, seconds) = (0_u32, 3);
        for ms in 0..1_000 * seconds {
            let now = start + Duration::from_millis(ms);
            for n in 0..50 {
                let caller = name(&format!("t{ms}x{n}"));
                passed += u32::from(budget.may_ask(&link, (&caller, &name("b")), now));
            }
        }
        let most = limits::LINK_CALLS_AT_ONCE + limits::LINK_CALLS_PER_SECOND * seconds as u32;
        assert!(passed <= most && passed > most / 2, "{passed} of {most}");
        assert!(budget.pair_rates.len() < 4 * REMEMBERED, "{}", budget.pair_rates.len());
        // A terminal beside it is asked for nothing of this.
        let own = Asker::Terminal(name("a"));
        assert!(budget.may_ask(&own, (&name("a"), &name("b")), start + Duration::from_secs(3)));
    }

    #[test]
    fn places_are_shared_by_asker_callee_and_pair() {
        const MOST: usize = 3_000;
        let mut budget = Budget::default();
        let callee = Neighbour::Terminal(ConnId(9));
        let fill = |budget: &mut Budget, charge: Charge| {
            let mut taken = 0;
            while budget.has_room(&charge, MOST) {
                budget.take(&charge);
                taken += 1;
            }
            taken
        };
        // One pair, then the same caller to everybody: it leaves most of the relay.
        let asker = Asker::Terminal(name("a"));
        let charge = Charge::new(asker.clone(), callee, &name("a"), &name("b"));
        assert_eq!(fill(&mut budget, charge.clone()), limits::SESSIONS_PER_PAIR);
        let mut all = limits::SESSIONS_PER_PAIR;
        for n in 0..100 {
            let other = Charge::new(
                asker.clone(),
                Neighbour::Link(LinkId(3)),
                &name("a"),
                &name(&format!("c{n}")),
            );
            all += fill(&mut budget, other);
        }
        assert_eq!(all, limits::SESSIONS_PER_TERMINAL);
        // A neighbour relay that makes names up fills neither the callee nor the relay.
        let link = Asker::Link(LinkId(1));
        for n in 0..100 {
            let caller = name(&format!("x{n}"));
            all += fill(&mut budget, Charge::new(link.clone(), callee, &caller, &name("b")));
        }
        for n in 0..100 {
            let target = name(&format!("y{n}"));
            let next = Neighbour::Link(LinkId(3));
            all += fill(&mut budget, Charge::new(link.clone(), next, &name("x"), &target));
        }
        assert!(all < MOST, "{all}");
        let honest = Asker::Terminal(name("h"));
        let charge = Charge::new(honest, callee, &name("h"), &name("b"));
        assert!(budget.has_room(&charge, MOST), "the callee's places are gone");
    }
}
