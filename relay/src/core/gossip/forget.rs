//! Nothing is kept for ever: lifetimes, silent origins, and rows whose signature does not hold.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tasuki_proto::record::{Record, Version};
use tasuki_proto::{Incarnation, RefusalCode, RelayId, limits};

use super::{Gossip, Output, Timer};
use crate::core::LinkId;

/// Lifetimes end in steps of this.
const STEP: Duration = Duration::from_secs(1);
/// An unknown term of the authority is told at most this often.
const TERM_PERIOD: Duration = Duration::from_secs(10);

impl Gossip {
    pub(super) fn start_lifetime(&mut self, record: &Record, now: Instant) {
        if record.lifetime_secs() == 0 {
            return;
        }
        let age = now.saturating_duration_since(self.epoch).as_secs() + 1;
        let end = self.epoch + STEP * (age.min(u64::from(u32::MAX)) as u32);
        let end = end + Duration::from_secs(u64::from(record.lifetime_secs()));
        self.lifetimes.entry(end).or_default().push((record.origin(), record.version().sequence));
        self.lifetime_count += 1;
        if self.lifetime_count > 2 * self.table.row_count() + limits::GOSSIP_LOOSE_LIFETIMES {
            self.sweep_lifetimes();
        }
        if let Some(first) = self.lifetimes.first_key_value() {
            self.timers.set(Timer::Lifetimes, *first.0);
        }
    }

    /// Leaves out the lifetimes of rows that were replaced, so that there are never many more than rows.
    fn sweep_lifetimes(&mut self) {
        let table = &self.table;
        self.lifetimes.retain(|_, ends| {
            ends.retain(|(origin, sequence)| table.at(*origin, *sequence).is_some());
            !ends.is_empty()
        });
        self.lifetime_count = self.lifetimes.values().map(Vec::len).sum();
    }

    pub(super) fn end_lifetimes(&mut self, now: Instant) {
        while let Some(entry) = self.lifetimes.first_entry() {
            if *entry.key() > now {
                self.timers.set(Timer::Lifetimes, *entry.key());
                return;
            }
            for (origin, sequence) in entry.remove() {
                self.lifetime_count -= 1;
                // A row that was replaced, or is of another life, is not found under its sequence and lifetime.
                if self.table.at(origin, sequence).is_some_and(|row| row.lifetime_secs() > 0) {
                    self.take_out(origin, sequence);
                    self.table.raise_horizon(origin, sequence);
                }
            }
        }
    }

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

    /// Drops an origin as a whole.
    pub(super) fn forget(&mut self, origin: RelayId, now: Instant) {
        let version = self.table.watermark(origin);
        self.counters.forgotten += self.table.origin_len(origin) as u64;
        self.routes.remove(&origin);
        self.timers.clear(Timer::Graft(origin));
        self.take_out_all(origin);
        self.table.remove_origin(origin);
        for link in self.links.values_mut() {
            link.cursors.remove(&origin);
            link.rows.retain(|queued| *queued != origin);
            link.marks.remove(&origin);
            link.words.remove(&origin);
        }
        // Nobody remembers it longer than the silence that each waits, from when each first missed it.
        self.graves.insert(origin, version);
        self.timers.set(Timer::Grave(origin), now + self.config.silence);
        if self.graves.len() > limits::GOSSIP_ORIGINS
            && let Some((first, _)) = self.graves.pop_first()
        {
            self.timers.clear(Timer::Grave(first));
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

    /// Whether rows of this origin can be judged at all.
    pub(super) fn may_take(&self, origin: RelayId) -> bool {
        origin != RelayId::AUTHORITY
            || self
                .links
                .values()
                .any(|link| self.table.authority.has_key(link.at(RelayId::AUTHORITY).incarnation))
    }

    /// A link has records of this term. Where its key is not known, that is said, but not with every message: it may be a
    /// lie.
    pub(super) fn hear_of_term(&mut self, term: Incarnation, now: Instant) {
        let known = self.table.watermark(RelayId::AUTHORITY).incarnation;
        if term <= known || self.table.authority.has_key(term) {
            return;
        }
        if self.term_told.is_none_or(|told| now.duration_since(told) >= TERM_PERIOD) {
            self.term_told = Some(now);
            self.outputs.push_back(Output::UnknownTerm(term));
        }
    }

    /// Whether the first of these rows proves that the authority's new term is genuine: only that voids the old one.
    pub(super) fn proves_term(&mut self, link: LinkId, records: &[Record]) -> bool {
        let Some(first) = records.first() else { return false };
        if !self.table.authority.has_key(first.version().incarnation) {
            self.counters.unknown_terms += 1;
            return false;
        }
        let genuine = self.table.authority.verify(first.by_ref());
        if !genuine {
            self.counters.forged += 1;
            self.outputs.push_back(Output::Cut(link, RefusalCode::ProtocolError));
        }
        genuine
    }

    /// Checks some signatures, and sees to it that the others are checked later.
    pub(super) fn check_authority(&mut self, now: Instant) {
        if let Some(bad) = self.table.authority.refuted() {
            return self.drop_unchecked(bad, now);
        }
        let (good, bad) = self.table.check_authority(self.config.checks);
        let found = !good.is_empty();
        self.outputs.extend(good.into_iter().map(Output::Verified));
        if found {
            self.spread(RelayId::AUTHORITY);
        }
        if let Some(bad) = bad {
            self.drop_unchecked(bad, now);
        } else if self.table.has_unchecked() {
            self.timers.start(Timer::Check, now + self.config.check_interval);
        }
    }

    /// A row's signature does not hold: cuts the link that brought it, drops all that is not checked, and asks others.
    fn drop_unchecked(&mut self, bad: u64, now: Instant) {
        self.counters.forged += 1;
        let origin = RelayId::AUTHORITY;
        if let Some(link) = self.table.authority.source_of(bad) {
            self.outputs.push_back(Output::Cut(link, RefusalCode::ProtocolError));
            if let Some(state) = self.links.get_mut(&link) {
                state.cursors.remove(&origin);
            }
        }
        let prefix = self.table.authority.prefix();
        let rows: Vec<u64> = self
            .table
            .rows_between(origin, prefix, u64::MAX)
            .map(|row| row.version().sequence)
            .collect();
        for sequence in rows {
            self.take_out(origin, sequence);
        }
        self.table.authority.forget_unchecked();
        self.table.set_watermark(origin, prefix);
        let route = self.routes.entry(origin).or_default();
        route.parent = None;
        route.retelling = None;
        self.look_for_missing(origin, now);
    }

    /// A record of the authority that needs no check.
    pub(super) fn take_authority(&mut self, record: &Record, now: Instant) {
        let (origin, version) = (RelayId::AUTHORITY, record.version());
        let known = self.table.watermark(origin);
        if record.origin() != origin || version <= known || version.incarnation < known.incarnation
        {
            return;
        }
        if version.incarnation > known.incarnation {
            self.begin_incarnation(origin, version.incarnation);
        }
        let Version { sequence: before, .. } = self.table.watermark(origin);
        if version.sequence > before + 1 {
            // Between the two stood something that is not held any more: it may have been a tombstone.
            self.table.raise_horizon(origin, version.sequence - 1);
        }
        let all_checked = self.table.authority.prefix() >= before;
        self.put(record, now);
        self.table.set_watermark(origin, version.sequence);
        if all_checked {
            self.table.authority.advance(version.sequence);
        } else {
            self.table.authority.mark_checked(version.sequence);
        }
        self.spread(origin);
    }

    /// The version that the authority's next record must at least have.
    pub fn next_authority_version(&self, term: Incarnation) -> Version {
        let known = self.table.watermark(RelayId::AUTHORITY);
        let sequence = if known.incarnation == term { known.sequence + 1 } else { 1 };
        Version { incarnation: term.max(known.incarnation), sequence }
    }
}
