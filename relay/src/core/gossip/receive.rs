//! What peers say.

use std::time::Instant;

use tasuki_proto::gossip::{GossipMessage, Rows, Span, Want};
use tasuki_proto::record::{Record, Version};
use tasuki_proto::{RefusalCode, RelayId, limits};

use super::{Gossip, Output, Retelling, Timer};
use crate::core::LinkId;

impl Gossip {
    pub(super) fn handle_message(&mut self, link: LinkId, message: GossipMessage, now: Instant) {
        if !self.links.contains_key(&link) {
            return;
        }
        match message {
            GossipMessage::Rows(rows) => self.handle_rows(link, &rows, now),
            GossipMessage::Want(want) => self.handle_want(link, want, now),
            GossipMessage::Watermarks(marks) => {
                for (origin, version) in marks.origins {
                    self.hear_of(link, origin, version, now);
                }
            }
            GossipMessage::Prune(prune) => {
                if let Some(cursor) =
                    self.links.get_mut(&link).and_then(|l| l.cursors.get_mut(&prune.origin))
                {
                    cursor.eager = false;
                }
            }
        }
    }

    fn cut(&mut self, link: LinkId) {
        self.outputs.push_back(Output::Cut(link, RefusalCode::ProtocolError));
    }

    /// Whether a version is believable, and there is room for its origin.
    fn admit(&mut self, origin: RelayId, version: Version) -> bool {
        let known = self.table.watermark(origin);
        let highest = if known.incarnation.0 == 0 {
            limits::FIRST_INCARNATION
        } else {
            known.incarnation.0.saturating_add(limits::VERSION_JUMP)
        };
        let base = if version.incarnation == known.incarnation { known.sequence } else { 0 };
        if version.incarnation.0 > highest
            || version.sequence > base.saturating_add(limits::VERSION_JUMP)
        {
            self.counters.version_jumps += 1;
            return false;
        }
        if !self.table.knows(origin) && self.table.origin_count() >= limits::GOSSIP_ORIGINS {
            self.counters.origin_limit += 1;
            return false;
        }
        true
    }

    /// The peer has everything of an origin up to a version. Whether this relay may care.
    fn note(&mut self, link: LinkId, origin: RelayId, version: Version, now: Instant) -> bool {
        if !self.admit(origin, version) {
            return false;
        }
        if origin == self.config.relay {
            self.hear_of_self(version, now);
        }
        if origin == RelayId::AUTHORITY {
            self.hear_of_term(version.incarnation, now);
        }
        let grave = self.graves.get(&origin).copied().unwrap_or_default();
        if !self.table.knows(origin) && version <= grave {
            return false;
        }
        if let Some(state) = self.links.get_mut(&link) {
            state.cursors.entry(origin).or_default().raise(version);
        }
        origin != self.config.relay
    }

    /// An announcement.
    fn hear_of(&mut self, link: LinkId, origin: RelayId, version: Version, now: Instant) {
        if !self.note(link, origin, version, now) {
            return;
        }
        let newer = self.is_newer(origin, version);
        if newer {
            self.meet(origin, now);
        }
        let served = self.routes.get(&origin).is_some_and(|route| route.parent.is_some());
        if newer && served {
            // An origin next door is asked for its rows once what is on its way has come.
            self.look_for_missing(origin, now);
        } else if !self.prefer(link, origin, now) && newer {
            self.look_for_missing(origin, now);
        }
    }

    /// Asks an origin that is a neighbour for its own rows, once in the life of the link. Whether it did.
    fn prefer(&mut self, link: LinkId, origin: RelayId, now: Instant) -> bool {
        let Some(state) = self.links.get_mut(&link) else { return false };
        if state.peer != origin || state.asked_for_own {
            return false;
        }
        state.asked_for_own = true;
        self.ask(link, origin, now);
        true
    }

    fn handle_want(&mut self, link: LinkId, want: Want, now: Instant) {
        let at = Version { incarnation: want.incarnation, sequence: want.watermark };
        let cares = self.note(link, want.origin, at, now);
        let known = self.ready(want.origin);
        let Some(state) = self.links.get_mut(&link) else { return };
        if !self.table.knows(want.origin) && state.cursors.len() > limits::GOSSIP_ORIGINS {
            return;
        }
        let cursor = state.cursors.entry(want.origin).or_default();
        cursor.eager = true;
        cursor.at = at;
        cursor.retold_at = 0;
        if at < known && !cursor.queued {
            cursor.queued = true;
            state.rows.push_back(want.origin);
            self.stirred.insert(link);
        }
        if cares && self.is_newer(want.origin, at) {
            self.meet(want.origin, now);
            self.look_for_missing(want.origin, now);
        }
    }

    fn handle_rows(&mut self, link: LinkId, rows: &Rows, now: Instant) {
        let Ok(records) = rows.parse() else {
            self.counters.malformed += 1;
            self.cut(link);
            return;
        };
        self.counters.received += records.len() as u64;
        let span = rows.span;
        let origin = span.origin;
        let to = Version { incarnation: span.incarnation, sequence: span.to };
        let stale = |gossip: &mut Self| gossip.counters.stale += records.len() as u64;
        if !self.note(link, origin, to, now) {
            return stale(self);
        }
        let known = self.table.watermark(origin);
        if span.incarnation < known.incarnation {
            // The peer is behind; it hears of the newer life.
            stale(self);
            return self.spread(origin);
        }
        if span.incarnation > known.incarnation {
            if span.from != 0 {
                return self.ask(link, origin, now);
            }
            if origin == RelayId::AUTHORITY && !self.proves_term(link, &records) {
                return;
            }
            self.meet(origin, now);
            self.begin_incarnation(origin, span.incarnation);
        }
        if self.table.origin_len(origin) + records.len() > limits::GOSSIP_ROWS_PER_ORIGIN {
            self.counters.malformed += 1;
            return self.cut(link);
        }
        if self.take_rows(link, &span, &records, now) {
            if span.last {
                let next_door =
                    self.links.iter().find(|(_, state)| state.peer == origin).map(|(id, _)| *id);
                if !next_door.is_some_and(|link| self.prefer(link, origin, now)) {
                    self.look_for_missing(origin, now);
                }
            } else {
                self.timers.set(Timer::Graft(origin), now + self.config.ask_again);
            }
        }
    }

    /// Rows of the incarnation that is known: takes them where they join on to what is held. Whether they did.
    fn take_rows(&mut self, link: LinkId, span: &Span, records: &[Record], now: Instant) -> bool {
        let origin = span.origin;
        let watermark = self.table.watermark(origin).sequence;
        let route = self.routes.entry(origin).or_default();
        let retelling = route.retelling.as_ref();
        let continues = retelling.is_some_and(|r| r.link == link && r.reached == span.from);
        if !continues && watermark >= span.horizon {
            if span.from > watermark {
                self.ask(link, origin, now);
                return false;
            }
            if span.to <= watermark {
                self.counters.stale += records.len() as u64;
                if route.parent != Some(link) {
                    self.prune(link, origin, now);
                }
                return false;
            }
        } else if !continues {
            if retelling.is_some_and(|r| r.link != link) {
                self.counters.stale += records.len() as u64;
                self.prune(link, origin, now);
                return false;
            }
            if span.from != 0 {
                self.ask(link, origin, now);
                return false;
            }
            self.end_retelling(origin);
            let route = self.routes.entry(origin).or_default();
            route.retelling = Some(Retelling { link, reached: 0, absent: Vec::new() });
        }
        if !self.apply(link, span, records, now) {
            return false;
        }
        self.adopt(link, origin, now);
        self.advance_retelling(span, records);
        self.table.set_watermark(origin, watermark.max(span.to));
        self.timers.clear(Timer::Graft(origin));
        if origin == RelayId::AUTHORITY {
            self.table.authority.came_from(link, span.to);
            if !self.timers.is_set(Timer::Check) {
                self.check_authority(now);
            }
        } else {
            self.spread(origin);
        }
        true
    }

    /// This link was the first to bring rows: it is the origin's parent, unless it was told to stop.
    fn adopt(&mut self, link: LinkId, origin: RelayId, now: Instant) {
        let cursor = self.links.get(&link).and_then(|state| state.cursors.get(&origin));
        let stopped = cursor.is_some_and(|cursor| cursor.pruned.is_some());
        let parent = &mut self.routes.entry(origin).or_default().parent;
        if !stopped {
            *parent = Some(link);
        } else if parent.is_none() {
            self.ask(link, origin, now);
        }
    }

    /// Puts the rows that are newer than the watermark into the table. `false` when one that would take the place of
    /// another is forged; then the link is cut and the rest is left.
    fn apply(&mut self, link: LinkId, span: &Span, records: &[Record], now: Instant) -> bool {
        let origin = span.origin;
        let watermark = self.table.watermark(origin).sequence;
        for record in records {
            let sequence = record.version().sequence;
            if sequence <= watermark {
                self.counters.stale += 1;
                continue;
            }
            if origin == RelayId::AUTHORITY
                && self.table.get(origin, record.kind(), record.key()).is_some()
            {
                if !self.table.authority.verify(record.by_ref()) {
                    self.counters.forged += 1;
                    self.cut(link);
                    return false;
                }
                self.table.authority.mark_checked(sequence);
            }
            self.put(record, now);
            self.counters.applied += 1;
        }
        true
    }

    /// Inserts a row and says so.
    pub(super) fn put(&mut self, record: &Record, now: Instant) {
        let old = self.table.insert(record);
        self.start_lifetime(record, now);
        self.outputs.push_back(Output::Changed { old, new: Some(record.clone()) });
    }

    /// Removes a row and says so.
    pub(super) fn take_out(&mut self, origin: RelayId, sequence: u64) {
        if let Some(old) = self.table.remove(origin, sequence) {
            self.outputs.push_back(Output::Changed { old: Some(old), new: None });
        }
    }

    /// Voids everything that earlier lives of an origin wrote.
    pub(super) fn begin_incarnation(
        &mut self,
        origin: RelayId,
        incarnation: tasuki_proto::Incarnation,
    ) {
        if let Some(route) = self.routes.get_mut(&origin) {
            route.retelling = None;
        }
        self.take_out_all(origin);
        self.table.begin_incarnation(origin, incarnation);
    }

    fn advance_retelling(&mut self, span: &Span, records: &[Record]) {
        let Some(route) = self.routes.get_mut(&span.origin) else { return };
        let Some(retelling) = &mut route.retelling else { return };
        let mut told = records.iter().map(|record| record.version().sequence).peekable();
        for held in self.table.rows_between(span.origin, span.from, span.to) {
            let held = held.version().sequence;
            while told.next_if(|sequence| *sequence < held).is_some() {}
            if told.peek() != Some(&held) {
                retelling.absent.push(held);
            }
        }
        retelling.reached = span.to;
        self.table.raise_horizon(span.origin, span.horizon);
        if span.last {
            self.end_retelling(span.origin);
        }
    }

    /// Drops what was held and not told. Also where the telling broke off: each part of it is true by itself.
    pub(super) fn end_retelling(&mut self, origin: RelayId) {
        let retelling = self.routes.get_mut(&origin).and_then(|route| route.retelling.take());
        for sequence in retelling.into_iter().flat_map(|retelling| retelling.absent) {
            self.take_out(origin, sequence);
        }
    }
}
