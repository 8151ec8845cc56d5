//! The relays of the mesh as a terminal knows them, and when each may be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tasuki_proto::RelayName;
use tasuki_proto::control::RelayContact;

use super::{BACKOFF_MAX, BACKOFF_MIN, RelayChoice};

/// Whether a relay drains, as the relays of the attachments said last, each with those that drain. Each knows best of
/// itself; of another, that it drains, as soon as one has heard so.
pub fn drains(relay: &RelayName, said: &[(&RelayName, &BTreeSet<RelayName>)]) -> bool {
    match said.iter().find(|(by, _)| *by == relay) {
        Some((_, draining)) => draining.contains(relay),
        None => said.iter().any(|(_, draining)| draining.contains(relay)),
    }
}

#[derive(Debug)]
struct Relay {
    contact: RelayContact,
    /// Failures since it was last good, its loss included.
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Relays {
    choice: RelayChoice,
    relay_by_name: BTreeMap<RelayName, Relay>,
}

impl Relays {
    pub(super) fn new(choice: RelayChoice) -> Self {
        Self { choice, relay_by_name: BTreeMap::new() }
    }

    /// Takes the relays of the mesh; what is known of those at the same addresses stays.
    pub(super) fn learn(&mut self, contacts: Vec<RelayContact>) {
        // A mesh without relays cannot have said so.
        if contacts.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.relay_by_name);
        for contact in contacts {
            let name = contact.name.clone();
            let known = before.remove(&name).filter(|r| r.contact.addresses == contact.addresses);
            let (failures, not_before) =
                known.map_or((0, None), |relay| (relay.failures, relay.not_before));
            self.relay_by_name.insert(name, Relay { contact, failures, not_before });
        }
    }

    /// All may be tried at once.
    pub(super) fn forgive(&mut self) {
        for relay in self.relay_by_name.values_mut() {
            relay.not_before = None;
        }
    }

    /// A try or an attachment failed, which was `good` before; the next comes after the back-off, at least `least`,
    /// times `jitter`.
    pub(super) fn failed(
        &mut self,
        name: &RelayName,
        good: bool,
        least: Duration,
        jitter: f64,
        now: Instant,
    ) {
        let Some(relay) = self.relay_by_name.get_mut(name) else { return };
        relay.failures = if good { 1 } else { relay.failures.saturating_add(1) };
        let doubled = BACKOFF_MIN.saturating_mul(1 << (relay.failures - 1).min(8));
        relay.not_before = Some(now + doubled.min(BACKOFF_MAX).max(least).mul_f64(jitter));
    }

    pub(super) fn is_draining(&self, name: &RelayName) -> bool {
        self.relay_by_name.get(name).is_some_and(|relay| relay.contact.draining)
    }

    /// Those that drain.
    pub(super) fn draining(&self) -> BTreeSet<RelayName> {
        let draining = self.relay_by_name.iter().filter(|(_, relay)| relay.contact.draining);
        draining.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn set_draining(&mut self, drains: impl Fn(&RelayName) -> bool) {
        for (name, relay) in &mut self.relay_by_name {
            relay.contact.draining = drains(name);
        }
    }

    /// Those that may be attached to and are `free`; if `lasting`, without those that drain.
    fn candidates(
        &self,
        free: impl Fn(&RelayName) -> bool,
        lasting: bool,
    ) -> impl Iterator<Item = &Relay> {
        self.relay_by_name.values().filter(move |relay| {
            let name = &relay.contact.name;
            let chosen = match &self.choice {
                RelayChoice::Auto => true,
                RelayChoice::Names(names) => names.contains(name),
            };
            chosen && free(name) && !(lasting && relay.contact.draining)
        })
    }

    /// The best of these that may be tried at `now`, equals of each other: those that do not drain and failed least.
    pub(super) fn ready(
        &self,
        free: impl Fn(&RelayName) -> bool,
        lasting: bool,
        now: Instant,
    ) -> Vec<&RelayContact> {
        let mut best = Vec::new();
        let mut least = (true, u32::MAX);
        let ready = self.candidates(free, lasting);
        for relay in ready.filter(|r| r.not_before.is_none_or(|at| at <= now)) {
            let order = (relay.contact.draining, relay.failures);
            if order < least {
                best.clear();
                least = order;
            }
            if order == least {
                best.push(&relay.contact);
            }
        }
        best
    }

    /// When the first of these may be tried, where there are any; `Some(None)`: at any time.
    pub(super) fn next_ready(
        &self,
        free: impl Fn(&RelayName) -> bool,
        lasting: bool,
    ) -> Option<Option<Instant>> {
        self.candidates(free, lasting).map(|relay| relay.not_before).min()
    }
}
