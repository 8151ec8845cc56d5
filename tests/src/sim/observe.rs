//! What a run shows: copies of each update, and how long each took to be known everywhere.

use std::collections::HashMap;
use std::time::Duration;

use tasuki_proto::record::Version;
use tasuki_proto::{Incarnation, RelayId};

/// Counts over the observed part of a run.
#[derive(Debug, Default)]
pub struct Observed {
    relays: usize,
    /// Of each origin: its incarnation, the sequence before the first observed update, and the updates behind it.
    origins: HashMap<RelayId, (Incarnation, u64, Vec<Update>)>,
    /// From "changed at one" to "known at all", of updates known everywhere.
    pub spread: Vec<Duration>,
    /// Messages delivered.
    pub messages: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Rows delivered.
    pub rows: u64,
}

#[derive(Debug)]
struct Update {
    made: Duration,
    known: u32,
    copies: Vec<u8>,
}

impl Observed {
    pub(super) fn new(relays: usize) -> Observed {
        Observed { relays, ..Observed::default() }
    }

    /// An origin wrote a row.
    pub(super) fn made(&mut self, origin: RelayId, version: Version, now: Duration) {
        let (incarnation, before, updates) = self
            .origins
            .entry(origin)
            .or_insert_with(|| (version.incarnation, version.sequence - 1, Vec::new()));
        if *incarnation == version.incarnation
            && *before + updates.len() as u64 + 1 == version.sequence
        {
            updates.push(Update { made: now, known: 0, copies: vec![0; self.relays] });
        }
    }

    /// A copy of a row arrived at a relay.
    pub(super) fn copy(&mut self, relay: usize, origin: RelayId, version: Version) {
        self.rows += 1;
        let Some((incarnation, before, updates)) = self.origins.get_mut(&origin) else { return };
        if *incarnation == version.incarnation
            && version.sequence > *before
            && let Some(update) = updates.get_mut((version.sequence - *before - 1) as usize)
        {
            update.copies[relay] = update.copies[relay].saturating_add(1);
        }
    }

    /// A relay's watermark moved.
    pub(super) fn knows(&mut self, origin: RelayId, from: Version, to: Version, now: Duration) {
        let relays = self.relays as u32;
        let Some((incarnation, before, updates)) = self.origins.get_mut(&origin) else { return };
        if *incarnation != to.incarnation {
            return;
        }
        let from =
            if from.incarnation == to.incarnation { from.sequence.max(*before) } else { *before };
        for sequence in from + 1..=to.sequence {
            if let Some(update) = updates.get_mut((sequence - *before - 1) as usize) {
                update.known += 1;
                if update.known == relays - 1 {
                    self.spread.push(now - update.made);
                }
            }
        }
    }

    /// Updates made.
    pub fn updates(&self) -> usize {
        self.origins.values().map(|(_, _, updates)| updates.len()).sum()
    }

    /// The mean number of copies that a relay received of an update of which it received any, and the largest.
    pub fn copies(&self) -> (f64, u8) {
        let (mut sum, mut count, mut most) = (0_u64, 0_u64, 0);
        for update in self.origins.values().flat_map(|(_, _, updates)| updates) {
            for copies in update.copies.iter().filter(|copies| **copies > 0) {
                sum += u64::from(*copies);
                count += 1;
                most = most.max(*copies);
            }
        }
        (if count == 0 { 0.0 } else { sum as f64 / count as f64 }, most)
    }

    /// The share `p` (0 to 1) of updates was known everywhere after at most this long.
    pub fn percentile(&mut self, p: f64) -> Duration {
        self.spread.sort_unstable();
        let last = self.spread.len().saturating_sub(1);
        self.spread.get((last as f64 * p).round() as usize).copied().unwrap_or_default()
    }
}
