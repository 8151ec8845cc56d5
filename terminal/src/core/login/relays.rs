//! The relays of the mesh as a terminal knows them, and when each may be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tasuki_proto::control::RelayContact;
use tasuki_proto::{RelayName, limits};

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
    /// Addresses at which it was attached to, whatever relays say of it meanwhile.
    proven: Vec<String>,
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
    ///
    /// Whoever says so may lie. So a relay that this terminal was attached to stays known, and so do the addresses at which
    /// it was, behind those that are told.
    pub(super) fn learn(&mut self, contacts: Vec<RelayContact>) {
        // A mesh without relays cannot have said so.
        if contacts.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.relay_by_name);
        for mut contact in contacts {
            let name = contact.name.clone();
            let known = before.remove(&name);
            let proven = known.as_ref().map(|known| known.proven.clone()).unwrap_or_default();
            for address in &proven {
                if !contact.addresses.contains(address) {
                    contact.addresses.push(address.clone());
                }
            }
            let known = known.filter(|known| known.contact.addresses == contact.addresses);
            let (failures, not_before) =
                known.map_or((0, None), |relay| (relay.failures, relay.not_before));
            let relay = Relay { contact, failures, not_before, proven };
            self.relay_by_name.insert(name, relay);
        }
        let left_out = before.into_iter().filter(|(_, relay)| !relay.proven.is_empty());
        self.relay_by_name.extend(left_out.take(limits::RELAYS));
    }

    /// This terminal is attached to a relay: its present addresses count from here on.
    pub(super) fn proven(&mut self, name: &RelayName) {
        if let Some(relay) = self.relay_by_name.get_mut(name) {
            let addresses = relay.contact.addresses.iter().take(limits::RELAY_ADDRESSES);
            relay.proven = addresses.cloned().collect();
        }
    }

    /// All of them, ordered by name.
    pub(super) fn known(&self) -> Vec<RelayContact> {
        self.relay_by_name.values().map(|relay| relay.contact.clone()).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(name: &str, address: &str) -> RelayContact {
        let name = RelayName::new(name).unwrap();
        RelayContact { name, addresses: vec![address.to_owned()], draining: false }
    }

    #[test]
    fn a_list_that_lies_does_not_make_a_relay_unknown_that_was_attached_to() {
        let mut relays = Relays::new(RelayChoice::Auto);
        relays.learn(vec![
            contact("r1", "good:1"),
            contact("r2", "good:2"),
            contact("r3", "new:3"),
        ]);
        for name in ["r1", "r2"] {
            relays.proven(&RelayName::new(name).unwrap());
        }
        relays.learn(vec![contact("r2", "bad:2"), contact("ghost", "bad:9")]);
        let known: Vec<_> = relays
            .known()
            .into_iter()
            .map(|r| (r.name.to_string(), r.addresses.join(" ")))
            .collect();
        let expected = [("ghost", "bad:9"), ("r1", "good:1"), ("r2", "bad:2 good:2")];
        assert_eq!(known, expected.map(|(name, at)| (name.to_owned(), at.to_owned())));
        // However often it is told.
        relays.learn(vec![contact("r2", "bad:2")]);
        assert_eq!(relays.known()[1].addresses, ["bad:2", "good:2"]);
    }
}
