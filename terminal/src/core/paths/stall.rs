//! Data that stands still on a path whose probes are answered.
//!
//! A relay on the path can pass probes and drop data. So a path is also held against what becomes of the data itself:
//!
//! - **Nothing arrives**: something that the peer has to acknowledge is under way, nothing more was acknowledged for a
//!   second or four round trips of probes, and QUIC tried at least [`TRIES`] times meanwhile; or for twice as long, and QUIC
//!   tried [`TRIES_SELDOM`] times.
//! - **Next to nothing arrives**: in two periods in a row of a second or four round trips, more than four times as many
//!   bytes were lost as were acknowledged. Congestion does not do that for so long, and chance would hit probes too.
//!
//! Then the data moves to another path that works, and tells the peer why. Both ends use the path that was left only in
//! need, for 30 s at first and up to ten minutes when data stands still there again. Where no other path works, the data
//! stays, another path is asked for, and each further suspicion takes twice as long.

use std::time::{Duration, Instant};

use tasuki_proto::RelayName;

use super::event::{DataCounts, PathId};
use super::session::{Session, Terminal, Why};

/// How long nothing may be acknowledged, besides four round trips.
const PATIENCE: Duration = Duration::from_secs(1);
/// Frames that QUIC sends meanwhile at least: one may be lost by chance, and its repetition too.
const TRIES: u64 = 3;
/// As [`TRIES`], where twice the time passed.
const TRIES_SELDOM: u64 = 2;
/// The longest patience, in times of the first one.
const PATIENCE_MOST: u32 = 16;
/// Lost bytes in a period that say something.
const LOST_LEAST: u64 = 9_600;
/// Lost bytes for each acknowledged one that are too many.
const LOST_PART: u64 = 4;
/// Periods in a row with too many.
const PERIODS: u32 = 2;
/// How long a path is distrusted, by how often data stood still on it.
const DISTRUST: [Duration; 3] =
    [Duration::from_secs(30), Duration::from_secs(120), Duration::from_secs(600)];

/// What is known of the data on the path in use.
#[derive(Debug)]
pub(super) struct Stall {
    /// The latest counts; `None` since the last move.
    last: Option<DataCounts>,
    /// What was asked when something was acknowledged last.
    asked: u64,
    /// Since when something is under way of which nothing was acknowledged.
    since: Option<Instant>,
    /// The present period: when it began, and the counts then.
    period: Option<(Instant, DataCounts)>,
    bad_periods: u32,
    /// Grows while there is no other path.
    patience: u32,
}

impl Default for Stall {
    fn default() -> Self {
        Self { last: None, asked: 0, since: None, period: None, bad_periods: 0, patience: 1 }
    }
}

impl Stall {
    /// The data takes another path.
    pub(super) fn moved(&mut self) {
        *self = Self { patience: self.patience, ..Self::default() };
    }

    /// This process stood still: the data did not.
    pub(super) fn forgive(&mut self, late: Duration) {
        for at in
            [self.since.as_mut(), self.period.as_mut().map(|(at, _)| at)].into_iter().flatten()
        {
            *at += late;
        }
    }

    /// Whether something is under way that may stand still.
    pub(super) fn waits(&self) -> bool {
        self.since.is_some()
    }

    /// Takes in the counts of `now`.
    fn measured(&mut self, data: DataCounts, now: Instant) {
        let before = self.last.replace(data);
        if before.is_none_or(|before| before.acked != data.acked) {
            if before.is_some() {
                self.patience = 1;
            }
            self.asked = data.asked;
            self.since = None;
        } else if data.asked > self.asked {
            self.since.get_or_insert(now);
        }
    }

    fn pause(&self, rtt: Duration) -> Duration {
        PATIENCE.max(rtt * 4 + PATIENCE / 4) * self.patience
    }

    /// Whether the data stands still on a path of this round trip.
    fn stands_still(&mut self, rtt: Duration, now: Instant) -> bool {
        let Some(data) = self.last else { return false };
        let pause = self.pause(rtt);
        let (begun, then) = *self.period.get_or_insert((now, data));
        if now >= begun + pause {
            let (lost, acked) =
                (data.lost - then.lost.min(data.lost), data.acked - then.acked.min(data.acked));
            let bad = lost >= LOST_LEAST && lost > acked * LOST_PART;
            self.bad_periods = if bad { self.bad_periods + 1 } else { 0 };
            self.period = Some((now, data));
        }
        let tries = data.asked.saturating_sub(self.asked);
        // QUIC's own estimate of the round trip may be long, and then it seldom repeats what it asked.
        let nothing = self.since.is_some_and(|since| {
            (tries >= TRIES && now >= since + pause)
                || (tries >= TRIES_SELDOM && now >= since + pause * 2)
        });
        nothing || self.bad_periods >= PERIODS
    }

    /// There is no other path: the next suspicion takes longer.
    fn bear(&mut self) {
        let patience = (self.patience * 2).min(PATIENCE_MOST);
        *self = Self { patience, ..Self::default() };
    }
}

impl Session {
    /// Takes in what became of the data.
    pub(super) fn measured(&mut self, data: DataCounts, now: Instant, t: &mut Terminal<'_>) {
        self.stall.measured(data, now);
        if self.stall.waits()
            && let Some(path) = self.paths.get_mut(&self.current)
        {
            path.hurry_after(t.hello, now);
        }
    }

    /// A path is used only in need for a while.
    pub(super) fn distrust(&mut self, id: PathId, now: Instant) {
        let Some(path) = self.paths.get_mut(&id) else { return };
        let wait = DISTRUST[(path.strikes as usize).min(DISTRUST.len() - 1)];
        path.strikes = path.strikes.saturating_add(1);
        path.distrusted_until = Some(now + wait);
    }

    /// Leaves a current path that answers probes and on which data stands still.
    pub(super) fn leave_stalled(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let Some(current) = self.paths.get(&self.current) else { return };
        if !current.works() {
            // That the probes tell already.
            return self.stall.moved();
        }
        if !self.stall.stands_still(current.rtt.unwrap_or_default(), now) {
            return;
        }
        let other = self.best_other(t.standing, now);
        let trusted = |id: &PathId| self.paths.get(id).is_some_and(|path| !path.is_distrusted(now));
        let other = other.filter(trusted);
        let route: Vec<RelayName> = current.route().to_vec();
        let id = self.current;
        self.distrust(id, now);
        match other {
            Some(other) => {
                self.shun(&route, now);
                self.move_to(other, Why::Stalled, now, t);
            }
            None => {
                self.ask.shun(route.iter(), now);
                self.ask.anew();
                self.stall.bear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);
    const STEP: Duration = Duration::from_millis(50);

    #[allow(clippy::disallowed_methods, reason = "any point in time does")]
    fn begin() -> (Stall, Instant) {
        (Stall::default(), Instant::now())
    }

    /// When data stands still, with what `counts` says at each step.
    fn stands_still_after(
        rtt: Duration,
        steps: u32,
        counts: impl Fn(u64) -> DataCounts,
    ) -> Option<Duration> {
        let (mut stall, start) = begin();
        (0..steps).map(|n| STEP * n).find(|passed| {
            let n = (passed.as_millis() / STEP.as_millis()) as u64;
            stall.measured(counts(n), start + *passed);
            stall.stands_still(rtt, start + *passed)
        })
    }

    #[test]
    fn nothing_acknowledged_is_noticed_after_a_second() {
        let counts = |n| DataCounts { asked: 10 + n / 4, acked: 5_000, lost: 0 };
        let after = stands_still_after(RTT, 100, counts).unwrap();
        assert!((1_000..=1_500).contains(&after.as_millis()), "{after:?}");
        let far = stands_still_after(Duration::from_secs(1), 200, counts).unwrap();
        assert!((4_000..=5_000).contains(&far.as_millis()), "{far:?}");
    }

    #[test]
    fn rest_and_slow_progress_are_no_suspicion() {
        let rests = |_| DataCounts { asked: 10, acked: 5_000, lost: 0 };
        assert_eq!(stands_still_after(RTT, 1_000, rests), None);
        let slow = |n| DataCounts { asked: n, acked: n / 16 * 100, lost: 0 };
        assert_eq!(stands_still_after(RTT, 1_000, slow), None);
        let once = |n: u64| DataCounts { asked: 10 + (n / 200).min(1), acked: 5_000, lost: 0 };
        assert_eq!(stands_still_after(RTT, 1_000, once), None, "one frame is not three");
    }

    #[test]
    fn congestion_and_chance_are_no_suspicion() {
        for share in [1, 10, 50] {
            let counts = |n: u64| DataCounts {
                asked: n * 50,
                acked: n * 60_000 * (100 - share) / 100,
                lost: n * 60_000 * share / 100,
            };
            assert_eq!(stands_still_after(RTT, 2_000, counts), None, "{share} %");
        }
        // Slow start filled a queue: nearly all of two round trips is lost.
        let burst = |n: u64| {
            let lost = if n < 20 { 0 } else { 3_000_000 };
            DataCounts { asked: n * 50, acked: n * 10_000, lost }
        };
        assert_eq!(stands_still_after(RTT, 2_000, burst), None);
    }

    #[test]
    fn next_to_nothing_acknowledged_is_noticed() {
        let counts = |n| DataCounts { asked: n, acked: n * 100, lost: n * 2_400 };
        let after = stands_still_after(RTT, 200, counts).unwrap();
        assert!(after < Duration::from_secs(3), "{after:?}");
    }

    #[test]
    fn a_move_begins_anew_and_a_pause_of_this_process_counts_for_nothing() {
        let (mut stall, start) = begin();
        let data = |asked| DataCounts { asked, acked: 9, lost: 0 };
        stall.measured(data(1), start);
        stall.measured(data(9), start);
        stall.forgive(Duration::from_secs(5));
        assert!(!stall.stands_still(RTT, start + Duration::from_secs(5)));
        assert!(stall.stands_still(RTT, start + Duration::from_secs(7)));
        stall.moved();
        assert!(!stall.stands_still(RTT, start + Duration::from_secs(9)));
    }
}
