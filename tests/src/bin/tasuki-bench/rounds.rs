//! Rounds: both sides of every comparison in turn, and what came of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::report::Report;

/// How often everything is measured.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RoundFlags {
    /// Rounds: in each, every side is measured once, in turn.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Begin rounds for this many minutes, however many that makes, instead of a number of rounds.
    #[arg(long)]
    pub(crate) minutes: Option<u64>,
}

impl RoundFlags {
    /// The numbers of the rounds, until enough were made or the time is over.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + use<> {
        let begun = Instant::now();
        let limit = self.minutes.map(|minutes| Duration::from_secs(minutes * 60));
        let rounds = self.rounds.max(1);
        (0..).take_while(move |&round| match limit {
            Some(limit) => round == 0 || begun.elapsed() < limit,
            None => round < rounds,
        })
    }
}

/// The middle and the ends of a figure over rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of nothing. The median of an even number is the mean of the middle two.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let half = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[half - 1], sorted[half]),
            _ => sorted[half],
        };
        Some(Spread { median, min, max })
    }
}

/// The value below which `share` of the sorted values lie; 0 of nothing.
pub(crate) fn percentile<T: Copy + Default>(sorted: &[T], share: f64) -> T {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// Figures of several sides over several rounds. A figure carries its unit at the end of its name.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    order: Vec<(String, String)>,
    values: BTreeMap<(String, String), BTreeMap<usize, f64>>,
}

impl Figures {
    /// Notes what a side reached in a round.
    pub(crate) fn put(&mut self, round: usize, side: &str, figure: &str, value: f64) {
        let key = (side.to_owned(), figure.to_owned());
        if !self.values.contains_key(&key) {
            self.order.push(key.clone());
        }
        self.values.entry(key).or_default().insert(round, value);
    }

    fn get(&self, side: &str, figure: &str) -> Option<&BTreeMap<usize, f64>> {
        self.values.get(&(side.to_owned(), figure.to_owned()))
    }

    /// By how much a figure is higher in the last round than in the second: the first still fills what stays.
    pub(crate) fn change(&self, side: &str, figure: &str) -> Option<f64> {
        let values = self.get(side, figure)?;
        Some(values.values().next_back()? - values.values().nth(1)?)
    }

    /// The spread of the ratio of two sides, taken round by round.
    fn ratio(&self, side: &str, base: &str, figure: &str) -> Option<Spread> {
        let (ours, theirs) = (self.get(side, figure)?, self.get(base, figure)?);
        Spread::of(ours.iter().filter_map(|(round, value)| {
            theirs.get(round).filter(|base| **base > 0.0).map(|base| value / base)
        }))
    }

    /// Adds the median of each figure as `SIDE_FIGURE`, and its ends as `SIDE_min_FIGURE` and `SIDE_max_FIGURE`.
    pub(crate) fn report(&self, report: Report) -> Report {
        self.order.iter().fold(report, |report, (side, figure)| {
            let values = self.get(side, figure).into_iter().flat_map(BTreeMap::values);
            match Spread::of(values.copied()) {
                Some(spread) => report
                    .with(&format!("{side}_{figure}"), spread.median)
                    .with(&format!("{side}_min_{figure}"), spread.min)
                    .with(&format!("{side}_max_{figure}"), spread.max),
                None => report,
            }
        })
    }

    /// Adds ratios, each the median over the rounds with its ends: of the first of our sides to every peer, and of our
    /// other sides to the first, as `SIDE_per_BASE_NAME_ratio`.
    pub(crate) fn report_ratios(
        &self,
        mut report: Report,
        ours: &[String],
        figure: &str,
        name: &str,
    ) -> Report {
        let Some((first, others)) = ours.split_first() else { return report };
        let sides = self.order.iter().filter(|(_, other)| other == figure).map(|(side, _)| side);
        let peers = sides.filter(|side| !ours.contains(side));
        let pairs = peers.map(|peer| (first, peer)).chain(others.iter().map(|side| (side, first)));
        for (side, base) in pairs {
            if let Some(spread) = self.ratio(side, base, figure) {
                report = report
                    .with(&format!("{side}_per_{base}_{name}_ratio"), spread.median)
                    .with(&format!("{side}_per_{base}_{name}_min_ratio"), spread.min)
                    .with(&format!("{side}_per_{base}_{name}_max_ratio"), spread.max);
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_ends() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 9.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (3.0, 1.0, 9.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn percentiles_stay_within() {
        assert_eq!(percentile::<u64>(&[], 0.5), 0);
        let values: Vec<u64> = (0..=100).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (50, 99));
        assert_eq!(percentile(&[7], 0.99), 7);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let mut figures = Figures::default();
        for (round, (ours, theirs)) in
            [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)].into_iter().enumerate()
        {
            figures.put(round, "a", "gbit_per_s", ours);
            figures.put(round, "b", "gbit_per_s", theirs);
        }
        // A round that one side missed counts for neither.
        figures.put(3, "a", "gbit_per_s", 100.0);
        let ratio = figures.ratio("a", "b", "gbit_per_s").unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (3.0, 2.0, 4.0));
        assert_eq!(figures.ratio("a", "c", "gbit_per_s"), None);
    }

    #[test]
    fn change_leaves_the_first_round_out() {
        let mut figures = Figures::default();
        figures.put(0, "a", "rss_mib", 1.0);
        assert_eq!(figures.change("a", "rss_mib"), None);
        figures.put(1, "a", "rss_mib", 5.0);
        figures.put(2, "a", "rss_mib", 5.5);
        assert_eq!(figures.change("a", "rss_mib"), Some(0.5));
    }

    #[test]
    fn there_is_always_a_first_round() {
        let rounds = |rounds, minutes| RoundFlags { rounds, minutes }.iter().count();
        assert_eq!((rounds(3, None), rounds(0, None), rounds(9, Some(0))), (3, 1, 1));
    }
}
