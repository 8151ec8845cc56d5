//! Lists that terminals ask for: each page is work for the core, so they are answered at a rate, in the order in which each
//! terminal's own rate lets them. A terminal that asks without end waits for itself, and the others wait for little of it:
//! no terminal has more than [`limits::PAGES_PER_TERMINAL`] pages waiting, since it is not read meanwhile.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tasuki_proto::control::List;
use tasuki_proto::{TerminalId, limits};

use super::ConnId;

/// A rate with a burst, as the time at which all that was given is paid for (GCRA, ITU-T I.371).
#[derive(Debug, Clone, Copy)]
struct Paid(Instant);

impl Paid {
    /// When one more is due; it counts as given then.
    fn give(&mut self, rate: (u32, u32), now: Instant) -> Instant {
        let due = self.due(rate).map_or(now, |due| due.max(now));
        self.0 = self.0.max(now) + period(rate.0);
        due
    }

    /// `None`: at any time.
    fn due(&self, (per_second, burst): (u32, u32)) -> Option<Instant> {
        self.0.checked_sub(period(per_second) * burst.saturating_sub(1))
    }
}

fn period(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}

const OF_TERMINAL: (u32, u32) =
    (limits::PAGES_PER_SECOND_AND_TERMINAL, limits::PAGES_AT_ONCE_PER_TERMINAL);
const OF_ALL: (u32, u32) = (limits::PAGES_PER_SECOND, limits::PAGES_PER_SECOND);
/// Terminals whose rate is remembered before those whose rate has recovered are swept out.
const REMEMBERED: usize = 1_024;

/// Lists that wait for their turn.
#[derive(Debug, Default)]
pub struct Lists {
    /// By the time at which the terminal's own rate lets it have the page.
    waiting: BTreeMap<(Instant, u64), (ConnId, List)>,
    next: u64,
    paid: BTreeMap<TerminalId, Paid>,
    paid_all: Option<Paid>,
    sweep_at: usize,
}

impl Lists {
    /// A terminal asks.
    pub fn handle(&mut self, conn: ConnId, terminal: &TerminalId, list: List, now: Instant) {
        if self.paid.len() >= self.sweep_at.max(REMEMBERED) {
            self.paid.retain(|_, paid| paid.0 > now);
            self.sweep_at = 2 * self.paid.len();
        }
        let due = self.paid.entry(terminal.clone()).or_insert(Paid(now)).give(OF_TERMINAL, now);
        self.waiting.insert((due, self.next), (conn, list));
        self.next += 1;
    }

    /// The next list whose turn has come.
    pub fn poll_due(&mut self, now: Instant) -> Option<(ConnId, List)> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.paid_all.get_or_insert(Paid(now)).give(OF_ALL, now);
        self.waiting.pop_first().map(|(_, list)| list)
    }

    /// When the next turn comes.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let &(due, _) = self.waiting.first_key_value()?.0;
        let of_all = self.paid_all.and_then(|paid| paid.due(OF_ALL));
        Some(of_all.map_or(due, |of_all| of_all.max(due)))
    }

    /// What a connection asked for that is gone is not answered.
    pub fn handle_gone(&mut self, conn: ConnId) {
        if !self.waiting.is_empty() {
            self.waiting.retain(|_, (asked, _)| *asked != conn);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need an instant to start from")]
mod tests {
    use super::*;

    fn list(request: u64) -> List {
        List { request, filter: Default::default(), after: None, limit: 1000 }
    }

    #[test]
    fn who_asks_without_end_waits_and_the_others_do_not() {
        let name = |n: u64| TerminalId::new(&format!("t{n}")).unwrap();
        let (mut lists, mut now) = (Lists::default(), Instant::now());
        let start = now;
        let (mut greedy, mut honest, mut asked) = (0, 0, 0);
        for ms in 0..10_000_u64 {
            now = start + Duration::from_millis(ms);
            // Terminal 1 always has as many waiting as it may; terminal 2 asks once a second.
            while asked < greedy + limits::PAGES_PER_TERMINAL {
                lists.handle(ConnId(1), &name(1), list(0), now);
                asked += 1;
            }
            if ms % 1_000 == 0 {
                lists.handle(ConnId(2), &name(2), list(ms), now);
            }
            while let Some((conn, page)) = lists.poll_due(now) {
                match conn {
                    ConnId(1) => greedy += 1,
                    _ => {
                        assert!(ms - page.request <= 100, "{ms}: waited since {}", page.request);
                        honest += 1;
                    }
                }
            }
            assert!(lists.poll_timeout().is_none_or(|due| due > now));
        }
        assert_eq!(honest, 10);
        let most = limits::PAGES_AT_ONCE_PER_TERMINAL + 10 * limits::PAGES_PER_SECOND_AND_TERMINAL;
        assert!(greedy <= most as usize && greedy + 2 > most as usize, "{greedy} of {most}");
        lists.handle_gone(ConnId(1));
        assert!(lists.waiting.is_empty());
    }

    #[test]
    fn all_together_get_so_many() {
        let (mut lists, start) = (Lists::default(), Instant::now());
        let mut pages = 0;
        for n in 0..4_000 {
            let terminal = TerminalId::new(&format!("t{n}")).unwrap();
            lists.handle(ConnId(n), &terminal, list(0), start);
        }
        for ms in 0..5_000 {
            let now = start + Duration::from_millis(ms);
            pages += std::iter::from_fn(|| lists.poll_due(now)).count();
        }
        assert!((1_190..=1_201).contains(&pages), "{pages}");
    }
}
