//! Nothing is kept without end: silent origins, and origins whose key is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tasuki_proto::identity::PublicKey;
use tasuki_proto::{Incarnation, RelayId, limits};

use super::{Gossip, Output, Timer};

/// An unknown term of the authority is told at most this often.
const TERM_PERIOD: Duration = Duration::from_secs(10);

impl Gossip {
    /// Something newer of an origin is about: there is a place for it, and a limit to its silence.
    pub(super) fn meet(&mut self, origin: RelayId, now: Instant) {
        self.graves.remove(&origin);
        self.timers.clear(Timer::Grave(origin));
        if !self.table.knows(origin) {
            self.table.add_origin(origin);
            self.watch(origin, now);
        }
    }

    fn is_silent(&self, origin: RelayId) -> bool {
        origin != self.config.relay
            && origin != RelayId::AUTHORITY
            && self.reachable.as_ref().is_some_and(|relays| !relays.contains(&origin))
    }

    fn watch(&mut self, origin: RelayId, now: Instant) {
        if self.is_silent(origin) {
            self.timers.start(Timer::Silence(origin), now + self.config.silence);
        } else {
            self.timers.clear(Timer::Silence(origin));
        }
    }

    pub(super) fn set_reachable(&mut self, relays: BTreeSet<RelayId>, now: Instant) {
        self.reachable = Some(relays);
        let origins: Vec<RelayId> = self.table.origins().collect();
        for origin in origins {
            self.watch(origin, now);
        }
    }

    /// The account of a relay says which key signs its heads. Everything that another key signed is void.
    pub(super) fn set_relay_key(&mut self, relay: RelayId, key: Option<PublicKey>, now: Instant) {
        if relay == self.config.relay {
            // It always believes itself; whether others do is their decision.
            return;
        }
        if !self.keys.set_relay(relay, key) {
            return;
        }
        if self.table.knows(relay) {
            self.drop_origin(relay);
        }
        if key.is_some() {
            self.recall(relay, now);
        }
    }

    /// Drops an origin that was silent for too long.
    pub(super) fn forget(&mut self, origin: RelayId, now: Instant) {
        let version = self.table.watermark(origin);
        self.drop_origin(origin);
        // Nobody remembers it longer than the silence that each waits, from when each first missed it.
        self.graves.insert(origin, version);
        self.timers.set(Timer::Grave(origin), now + self.config.silence);
        if self.graves.len() > limits::GOSSIP_ORIGINS
            && let Some((first, _)) = self.graves.pop_first()
        {
            self.timers.clear(Timer::Grave(first));
        }
    }

    /// Drops an origin as a whole.
    fn drop_origin(&mut self, origin: RelayId) {
        self.counters.forgotten += self.table.origin_len(origin) as u64;
        self.routes.remove(&origin);
        for timer in [Timer::Graft(origin), Timer::Apply(origin), Timer::Silence(origin)] {
            self.timers.clear(timer);
        }
        self.take_out_all(origin);
        self.table.remove_origin(origin);
        for link in self.links.values_mut() {
            link.cursors.remove(&origin);
            link.rows.retain(|queued| *queued != origin);
            link.marks.remove(&origin);
            link.words.remove(&origin);
        }
    }

    pub(super) fn take_out_all(&mut self, origin: RelayId) {
        let rows: Vec<u64> = self
            .table
            .rows_between(origin, 0, u64::MAX)
            .map(|row| row.version().sequence)
            .collect();
        for sequence in rows {
            self.take_out(origin, sequence);
        }
    }

    /// A link has records of this term. Where its key is not known, that is said, but not with every message: it may be a
    /// lie.
    pub(super) fn hear_of_term(&mut self, term: Incarnation, now: Instant) {
        let known = self.table.watermark(RelayId::AUTHORITY).incarnation;
        if term <= known || self.keys.has_term(term) {
            return;
        }
        if self.term_told.is_none_or(|told| now.duration_since(told) >= TERM_PERIOD) {
            self.term_told = Some(now);
            self.outputs.push_back(Output::UnknownTerm(term));
        }
    }
}
