//! When a core wants to be called again: at most one deadline for each timer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Deadlines by timer.
#[derive(Debug)]
pub(super) struct Timers<T> {
    by_time: BTreeSet<(Instant, T)>,
    by_timer: BTreeMap<T, Instant>,
}

impl<T: Copy + Ord> Timers<T> {
    pub(super) fn new() -> Self {
        Self { by_time: BTreeSet::new(), by_timer: BTreeMap::new() }
    }

    /// Sets the timer, also where it was set.
    pub(super) fn set(&mut self, timer: T, at: Instant) {
        self.clear(timer);
        self.by_time.insert((at, timer));
        self.by_timer.insert(timer, at);
    }

    /// Sets the timer unless it is set.
    pub(super) fn start(&mut self, timer: T, at: Instant) {
        if !self.is_set(timer) {
            self.set(timer, at);
        }
    }

    pub(super) fn is_set(&self, timer: T) -> bool {
        self.by_timer.contains_key(&timer)
    }

    pub(super) fn clear(&mut self, timer: T) {
        if let Some(at) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(at, timer));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the earliest timer that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<T> {
        let (at, timer) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}
