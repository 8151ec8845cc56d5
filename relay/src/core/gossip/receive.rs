//! What peers say.

use std::time::{Duration, Instant};

use tasuki_proto::gossip::{GossipMessage, Head, Rows, Span, Want};
use tasuki_proto::record::{Record, Version};
use tasuki_proto::{RefusalCode, RelayId, limits};

use super::stage::{Proven, Stage};
use super::{Gossip, Output, Timer};
use crate::core::LinkId;

/// How long one link may take to tell an origin, while others could; twice as long after each that did not finish.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// From one part of many proven rows to the next: others get their turn.
const APPLY_INTERVAL: Duration = Duration::from_millis(1);

impl Gossip {
    pub(super) fn handle_message(&mut self, link: LinkId, message: GossipMessage, now: Instant) {
        if !self.links.contains_key(&link) {
            return;
        }
        match message {
            GossipMessage::Rows(rows) => self.handle_rows(link, &rows, now),
            GossipMessage::Want(want) => self.handle_want(link, want, now),
            GossipMessage::Heads(heads) => {
                for head in &heads.heads {
                    self.hear_of(link, head, now);
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

    pub(super) fn cut(&mut self, link: LinkId) {
        self.outputs.push_back(Output::Cut(link, RefusalCode::ProtocolError));
    }

    /// Returns whether a head is believable, and there is room for its origin and rows. Its signature is another matter.
    fn admit(&mut self, head: &Head) -> bool {
        let (origin, version) = (head.origin, head.version);
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
        let accounts = self.table.origin_len(RelayId::AUTHORITY) as u64;
        let (rows, bytes) = if origin == RelayId::AUTHORITY {
            (limits::GOSSIP_AUTHORITY_ROWS, limits::GOSSIP_AUTHORITY_BYTES)
        } else {
            (
                limits::GOSSIP_RELAY_ROWS + 2 * accounts,
                limits::GOSSIP_RELAY_BYTES + limits::GOSSIP_ROW_BYTES * accounts,
            )
        };
        if head.rows > rows || head.bytes > bytes {
            self.counters.over_budget += 1;
            return false;
        }
        true
    }

    /// The peer has everything of an origin up to a head. Returns whether that is newer than what is held here, and
    /// proven.
    fn note(&mut self, link: LinkId, head: &Head, now: Instant) -> bool {
        let (origin, version) = (head.origin, head.version);
        let known = self.table.watermark(origin);
        if version <= known {
            // What a peer says to have that it has not, it will not get: nobody else is hurt.
            if self.table.knows(origin)
                && let Some(state) = self.links.get_mut(&link)
            {
                state.cursors.entry(origin).or_default().raise(version);
            }
            let held = self.table.head(origin);
            if held.is_some_and(|held| held.version == version && held.digest != head.digest)
                && self
                    .keys
                    .of(head)
                    .is_some_and(|key| (self.config.check)(head, &self.config.mesh, key))
            {
                self.counters.equivocations += 1;
            }
            return false;
        }
        let grave = self.graves.get(&origin).copied().unwrap_or_default();
        if !self.table.knows(origin) && version <= grave || !self.admit(head) {
            return false;
        }
        let Some(key) = self.keys.of(head) else {
            self.wait_for_key(link, head, now);
            return false;
        };
        let seen = self.routes.get(&origin).is_some_and(|route| route.newest == Some(*head));
        if !seen && !(self.config.check)(head, &self.config.mesh, key) {
            self.counters.forged += 1;
            self.cut(link);
            return false;
        }
        if origin == self.config.relay {
            self.hear_of_self(version, now);
            return false;
        }
        self.meet(origin, now);
        let route = self.routes.entry(origin).or_default();
        if route.newest.is_none_or(|newest| newest.version < version) {
            route.newest = Some(*head);
        }
        if let Some(state) = self.links.get_mut(&link) {
            let cursor = state.cursors.entry(origin).or_default();
            cursor.has = cursor.has.max(version);
            cursor.raise(version);
        }
        true
    }

    /// Remembers a head of an origin whose key is not known, for when it is.
    fn wait_for_key(&mut self, link: LinkId, head: &Head, now: Instant) {
        if head.origin == RelayId::AUTHORITY {
            self.hear_of_term(head.version.incarnation, now);
        }
        self.counters.unknown_keys += 1;
        if let Some(state) = self.links.get_mut(&link)
            && (state.waiting.len() < limits::GOSSIP_HEADS_WAITING
                || state.waiting.contains_key(&head.origin))
        {
            state.waiting.insert(head.origin, *head);
        }
    }

    /// The key of an origin is known: what links said of it before can be checked.
    pub(super) fn recall(&mut self, origin: RelayId, now: Instant) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            let state = self.links.get_mut(&link);
            if let Some(head) = state.and_then(|state| state.waiting.remove(&origin)) {
                self.hear_of(link, &head, now);
            }
        }
    }

    /// An announcement.
    fn hear_of(&mut self, link: LinkId, head: &Head, now: Instant) {
        let origin = head.origin;
        let newer = self.note(link, head, now);
        if origin == self.config.relay || !self.table.knows(origin) {
            return;
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

    /// The watermark is the peer's word alone: it says what this link sends, and nothing of the table.
    fn handle_want(&mut self, link: LinkId, want: Want, now: Instant) {
        let at = Version { incarnation: want.incarnation, sequence: want.watermark };
        self.sign(want.origin, now);
        let known = self.ready(want.origin);
        let Some(state) = self.links.get_mut(&link) else { return };
        if !self.table.knows(want.origin) && state.cursors.len() >= limits::GOSSIP_ORIGINS {
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
        self.look_for_missing(want.origin, now);
    }

    fn handle_rows(&mut self, link: LinkId, rows: &Rows, now: Instant) {
        let Ok(records) = rows.parse() else {
            self.counters.malformed += 1;
            self.cut(link);
            return;
        };
        self.counters.received += records.len() as u64;
        let head = &rows.head;
        let origin = head.origin;
        if !self.note(link, head, now) {
            self.counters.stale += records.len() as u64;
            let known = self.table.watermark(origin);
            if head.version.incarnation < known.incarnation {
                // The peer is behind; it hears of the newer life.
                self.spread(origin);
            } else if head.version <= known
                && origin != self.config.relay
                && self.routes.get(&origin).is_none_or(|route| route.parent != Some(link))
            {
                self.prune(link, origin, now);
            }
            return;
        }
        if let Some(route) = self.routes.get_mut(&origin)
            && route.proven.is_some()
        {
            // They are asked for again once what is proven has its place.
            route.missed = Some(link);
            return;
        }
        self.stage(link, rows, records, now);
    }

    /// Takes rows that join on to what is held, or to what the link told before.
    fn stage(&mut self, link: LinkId, rows: &Rows, records: Vec<Record>, now: Instant) {
        let (head, Span { from, to }) = (rows.head, rows.span);
        let origin = head.origin;
        let known = self.table.watermark(origin);
        let route = self.routes.entry(origin).or_default();
        let staged = route.stage.as_ref();
        let continues = staged.is_some_and(|stage| {
            stage.link == link
                && stage.reached == from
                && stage.head.version <= head.version
                && stage.head.version.incarnation == head.version.incarnation
                && (stage.whole || head.horizon <= known.sequence)
        });
        let mut stage = if continues {
            route.stage.take().unwrap_or_else(|| unreachable!("it was looked at"))
        } else {
            let joins = head.version.incarnation == known.incarnation
                && from <= known.sequence
                && head.horizon <= known.sequence;
            if from != 0 && !joins {
                self.counters.stale += records.len() as u64;
                return self.ask(link, origin, now);
            }
            if !rows.is_last() && staged.is_some_and(|stage| stage.link != link) {
                self.counters.stale += records.len() as u64;
                return self.prune(link, origin, now);
            }
            Stage::new(link, head, from == 0, &self.table, now)
        };
        stage.head = head;
        stage.reached = to;
        self.counters.stale += stage.add(records, &self.table);
        if stage.is_too_much() {
            self.counters.malformed += 1;
            return self.cut(link);
        }
        if !rows.is_last() {
            self.timers.set(Timer::Graft(origin), now + self.config.ask_again);
            let began = stage.began;
            if let Some(route) = self.routes.get_mut(&origin) {
                route.stage = Some(stage);
                if now.duration_since(began) > route.patience {
                    route.patience *= 2;
                    self.graft(origin, now);
                }
            }
            return;
        }
        let whole = stage.whole;
        match stage.prove(&self.table) {
            Some(proven) => self.take_proven(proven, now),
            None if whole => {
                self.counters.unproven += 1;
                self.cut(link);
            }
            None => {
                // The peer lies, or the origin told it other rows than this relay: the whole shows which.
                self.counters.unproven += 1;
                self.ask_all(link, origin, now);
            }
        }
    }

    /// These are an origin's rows: what is held makes room for them.
    fn take_proven(&mut self, proven: Proven, now: Instant) {
        let Proven { link, head, whole, .. } = proven;
        let origin = head.origin;
        self.adopt(link, origin, now);
        if head.version.incarnation > self.table.watermark(origin).incarnation {
            self.begin_incarnation(origin, head.version.incarnation);
        } else if whole || head.horizon > self.table.horizon(origin) {
            for sequence in proven.gone(&self.table) {
                self.take_out(origin, sequence);
            }
        }
        let route = self.routes.entry(origin).or_default();
        route.stage = None;
        route.patience = PATIENCE;
        route.proven = Some(proven);
        self.apply(origin, now);
    }

    /// Puts some of the proven rows into the table, and sees to it that the others follow.
    pub(super) fn apply(&mut self, origin: RelayId, now: Instant) {
        let Some(route) = self.routes.get_mut(&origin) else { return };
        let Some(mut proven) = route.proven.take() else { return };
        for _ in 0..limits::GOSSIP_APPLIED_AT_ONCE {
            let Some((_, record)) = proven.rows.pop_first() else { break };
            let held = self.table.get(origin, record.kind(), record.key());
            if held.is_some_and(|held| held.version() == record.version()) {
                continue;
            }
            self.put(&record);
            self.counters.applied += 1;
            if origin == RelayId::AUTHORITY {
                self.outputs.push_back(Output::Verified(record));
            }
        }
        if !proven.rows.is_empty() {
            self.timers.set(Timer::Apply(origin), now + APPLY_INTERVAL);
            if let Some(route) = self.routes.get_mut(&origin) {
                route.proven = Some(proven);
            }
            return;
        }
        self.table.set_head(proven.head, proven.sum);
        self.timers.clear(Timer::Graft(origin));
        if origin == RelayId::AUTHORITY {
            self.outputs.push_back(Output::AuthorityHead(proven.head));
        }
        self.spread(origin);
        let missed = self.routes.get_mut(&origin).and_then(|route| route.missed.take());
        if let Some(link) = missed {
            self.ask(link, origin, now);
        }
        let next_door =
            self.links.iter().find(|(_, state)| state.peer == origin).map(|(id, _)| *id);
        if !next_door.is_some_and(|link| self.prefer(link, origin, now)) {
            self.look_for_missing(origin, now);
        }
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

    /// Inserts a row and says so.
    fn put(&mut self, record: &Record) {
        let old = self.table.insert(record);
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
        self.take_out_all(origin);
        self.table.begin_incarnation(origin, incarnation);
        if origin == self.config.relay {
            self.table.sign_here(origin);
        } else {
            // A registrar whose role another relay took over with a greater term.
            self.signed.remove(&origin);
        }
    }
}
