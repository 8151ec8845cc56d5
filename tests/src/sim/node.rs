//! One relay of a simulated mesh: its cores, its clock, and what survives a restart.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tasuki_proto::gossip::Head;
use tasuki_proto::record::{Record, Version};
use tasuki_proto::{Incarnation, RelayId, RelayName};
use tasuki_relay::core::directory::Directory;
use tasuki_relay::core::gossip::Gossip;

/// A relay's clock: off by an offset, and too fast or too slow by some parts per million.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) base: Instant,
    pub(super) drift_ppm: i32,
    pub(super) wall_ms: i64,
}

impl Clock {
    pub(super) fn local(&self, now: Duration) -> Instant {
        self.base + now.mul_f64(1.0 + f64::from(self.drift_ppm) * 1e-6)
    }

    /// The first time of the mesh at which the relay's clock shows `at` or later.
    pub(super) fn global(&self, at: Instant) -> Duration {
        let local = at.saturating_duration_since(self.base);
        local.mul_f64(1.0 / (1.0 + f64::from(self.drift_ppm) * 1e-6)) + Duration::from_micros(1)
    }

    pub(super) fn wall(&self, now: Duration) -> u64 {
        (1_700_000_000_000 + now.as_millis() as i64 + self.wall_ms).max(0) as u64
    }
}

/// The version that each row had last, as [`tasuki_relay::core::gossip::Output::Changed`] told.
pub(super) type Shadow = BTreeMap<(RelayId, u16, Vec<u8>), Version>;

/// A relay.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: RelayName,
    pub(super) id: RelayId,
    pub(super) clock: Clock,
    /// `None` while it is down.
    pub(super) cores: Option<(Gossip, Directory)>,
    /// Counts lives, so that wake-ups of an earlier one are void.
    pub(super) life: u64,
    /// Reachability is about to be computed.
    pub(super) routes_pending: bool,
    /// When it is woken next.
    pub(super) wake_at: Option<Duration>,
    pub(super) shadow: Option<Shadow>,
    /// Survives: its incarnation, and the authority's rows that were verified.
    pub(super) incarnation: Incarnation,
    pub(super) disk: BTreeMap<(u16, Vec<u8>), Record>,
    /// The head that proves them.
    pub(super) disk_head: Option<Head>,
}

impl Node {
    /// Follows a change to the table and checks that it is one from what was there to something newer.
    pub(super) fn follow(&mut self, old: Option<&Record>, new: Option<&Record>) {
        if let (Some(old), Some(new)) = (old, new) {
            assert!(new.version() > old.version(), "{}: {old:?} replaced by {new:?}", self.name);
        }
        let Some(shadow) = &mut self.shadow else { return };
        let Some(row) = new.or(old) else { return };
        let key = (row.origin(), row.kind().0, row.key().to_vec());
        let held = match new {
            Some(new) => shadow.insert(key, new.version()),
            None => shadow.remove(&key),
        };
        assert_eq!(held, old.map(Record::version), "{}: change of {row:?}", self.name);
    }
}
