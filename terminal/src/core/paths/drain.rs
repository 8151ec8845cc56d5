//! Paths over relays that drain: left without haste, before the relay ends.
//!
//! The table tells each relay which others drain, and each relay its terminals. A path that was made before is left within
//! [`DRAIN_JITTER`]; one that is made later takes such a relay only where there is no other way, and stays until there is:
//! it is asked for ever more seldom. An end of a path is left here only where the terminal at that end is attached elsewhere
//! too; where not, its attachment moves first, and the path follows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::{RefusalCode, RelayName};

use super::DRAIN_JITTER;
use super::event::PathId;
use super::health::Path;
use super::session::{Session, Terminal};

/// A path that was left is kept for this long after the data moved, since the peer moves a little later.
const KEPT: Duration = Duration::from_secs(1);

impl Session {
    /// Relays ceased to drain, or began to: paths over these are looked at.
    pub(super) fn relays_drain(
        &mut self,
        relays: &BTreeSet<RelayName>,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        let at = now + DRAIN_JITTER.mul_f64(t.rng.random_range(0.0..1.0));
        let leave: BTreeSet<PathId> = self
            .paths
            .iter()
            .filter(|(_, path)| self.can_leave(path, relays, t))
            .map(|(id, _)| *id)
            .collect();
        for (id, path) in &mut self.paths {
            if leave.contains(id) {
                path.leaves_at = Some(path.leaves_at.map_or(at, |known| known.min(at)));
            } else if !crosses(path, t.draining) {
                (path.leaves_at, path.leaving) = (None, false);
            }
        }
        if relays.is_empty() {
            self.ask.anew();
        } else {
            self.ask.relays_drain();
        }
    }

    /// Whether a path takes one of these relays and another path may do without all of them.
    pub(super) fn can_leave(
        &self,
        path: &Path,
        relays: &BTreeSet<RelayName>,
        t: &Terminal<'_>,
    ) -> bool {
        let stays = |relay: &RelayName| !t.draining.contains(relay);
        let (first, last) = (path.route().first(), path.route().last());
        let (mine, theirs) = if self.is_caller() { (first, last) } else { (last, first) };
        let drains = |relay: Option<&RelayName>| relay.is_some_and(|relay| !stays(relay));
        let i_may = t.standing.iter().any(|one| !one.leaving && stays(&one.relay));
        let they_may = self.peer_relays.iter().any(stays);
        crosses(path, relays) && (!drains(mine) || i_may) && (!drains(theirs) || they_may)
    }

    /// Keeps a path that was about to be left until `until`, where this one, made in its place, takes as many relays that
    /// drain. Whether there is one.
    pub(super) fn keep_like(
        &mut self,
        other: &Path,
        until: Instant,
        draining: &BTreeSet<RelayName>,
    ) -> bool {
        let drained = |path: &Path| path.route().iter().filter(|r| draining.contains(*r)).count();
        let ends = |path: &Path| (path.attach(), path.route().last().cloned());
        let (most, same) = (drained(other), ends(other));
        let kept = self.paths.values_mut().find(|path| {
            path.leaving && path.works() && ends(path) == same && drained(path) <= most
        });
        if let Some(path) = kept {
            (path.leaves_at, path.leaving) = (Some(until), false);
            return true;
        }
        false
    }

    pub(super) fn notice_leaving(&mut self, now: Instant) {
        for path in self.paths.values_mut() {
            path.leaving |= path.leaves_at.is_some_and(|at| at <= now);
        }
    }

    /// Gives up the paths that are left, since there are others; the caller of the session does.
    pub(super) fn drop_left(&mut self, now: Instant, t: &mut Terminal<'_>) {
        if self.drop_left_at().is_none_or(|at| at > now) {
            return;
        }
        let left: Vec<PathId> = self.left().collect();
        let stays = |path: &Path| !path.is_direct() && path.works() && !path.leaving;
        if self.paths.values().any(stays) {
            for id in left {
                self.give_up(id, RefusalCode::Moved, t);
            }
        }
    }

    /// Until then a path that data left is kept: the peer hears of the move later, and its packets are under way.
    pub(super) fn kept_until(&self) -> Option<Instant> {
        self.moved_at.map(|at| at + KEPT)
    }

    /// When paths may be given up that are left.
    pub(super) fn drop_left_at(&self) -> Option<Instant> {
        self.left().next()?;
        let leaving = self.paths.values().filter(|path| path.leaving);
        let since = leaving.filter_map(|path| path.leaves_at).max();
        Some(self.moved_at.max(since)? + KEPT)
    }

    /// Paths that are left and carry no data.
    fn left(&self) -> impl Iterator<Item = PathId> {
        let left = self.paths.iter().filter(|(id, path)| path.leaving && **id != self.current);
        left.map(|(id, _)| *id)
    }
}

fn crosses(path: &Path, relays: &BTreeSet<RelayName>) -> bool {
    path.route().iter().any(|relay| relays.contains(relay))
}
