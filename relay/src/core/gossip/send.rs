//! From what links are owed to messages: cursors, announcements, requests.

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use tasuki_proto::gossip::{GossipMessage, Heads, Prune, Rows, Span, Want};
use tasuki_proto::record::Version;
use tasuki_proto::{RelayId, limits};

use super::link::{Link, Word};
use super::{Gossip, Output, Timer};
use crate::core::LinkId;

impl Gossip {
    pub(super) fn link_up(&mut self, link: LinkId, peer: RelayId, now: Instant) {
        self.links.insert(link, Link::new(peer, now));
        self.refresh(link, now);
    }

    pub(super) fn link_down(&mut self, link: LinkId, now: Instant) {
        self.links.remove(&link);
        self.stirred.remove(&link);
        self.timers.clear(Timer::Announce(link));
        self.timers.clear(Timer::Refresh(link));
        let orphans: Vec<RelayId> = self
            .routes
            .iter()
            .filter(|(_, route)| {
                let tells = route.stage.as_ref().is_some_and(|stage| stage.link == link);
                route.parent == Some(link) || tells
            })
            .map(|(origin, _)| *origin)
            .collect();
        for origin in orphans {
            if let Some(route) = self.routes.get_mut(&origin) {
                route.stage.take_if(|stage| stage.link == link);
                route.missed.take_if(|missed| *missed == link);
                route.parent.take_if(|parent| *parent == link);
            }
            self.look_for_missing(origin, now);
        }
    }

    /// Says all heads on a link: at its beginning (the digest), and from time to time.
    pub(super) fn refresh(&mut self, link: LinkId, now: Instant) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.marks.extend(self.table.origins().map(|origin| (origin, true)));
        self.stirred.insert(link);
        self.timers.set(Timer::Refresh(link), now + self.config.refresh);
    }

    /// This origin has more than before: every link that lacks it is owed rows or a head.
    pub(super) fn spread(&mut self, origin: RelayId) {
        let version = self.ready(origin);
        for (id, link) in &mut self.links {
            let cursor = link.cursors.entry(origin).or_default();
            if cursor.at >= version {
                continue;
            }
            if !cursor.eager {
                link.marks.entry(origin).or_default();
            } else if !cursor.queued {
                cursor.queued = true;
                link.rows.push_back(origin);
            }
            self.stirred.insert(*id);
        }
    }

    /// The version up to which an origin's rows may be passed on.
    pub(super) fn ready(&self, origin: RelayId) -> Version {
        self.table.head(origin).map_or_else(Version::default, |head| head.version)
    }

    /// Asks a link for an origin's rows, from here on; not twice for the same within [`super::Config::ask_again`].
    pub(super) fn ask(&mut self, link: LinkId, origin: RelayId, now: Instant) {
        let at = self.table.watermark(origin);
        let Some(state) = self.links.get_mut(&link) else { return };
        let again = self.config.ask_again;
        let cursor = state.cursors.entry(origin).or_default();
        if !cursor.asked.is_some_and(|(what, when)| what == at && now < when + again) {
            cursor.asked = Some((at, now));
            cursor.pruned = None;
            state.words.insert(origin, Word::Want);
            self.stirred.insert(link);
        }
        self.routes.entry(origin).or_default().parent = Some(link);
        self.timers.set(Timer::Graft(origin), now + again);
    }

    /// Asks a link for all rows of an origin, since those behind the watermark do not fit what is held.
    pub(super) fn ask_all(&mut self, link: LinkId, origin: RelayId, now: Instant) {
        let Some(state) = self.links.get_mut(&link) else { return };
        state.words.insert(origin, Word::WantAll);
        self.stirred.insert(link);
        let route = self.routes.entry(origin).or_default();
        route.parent = Some(link);
        route.stage = None;
        self.timers.set(Timer::Graft(origin), now + self.config.ask_again);
    }

    /// Tells a link to send heads of this origin only.
    pub(super) fn prune(&mut self, link: LinkId, origin: RelayId, now: Instant) {
        let Some(state) = self.links.get_mut(&link) else { return };
        let cursor = state.cursors.entry(origin).or_default();
        let again = self.config.ask_again;
        if cursor.pruned.is_some_and(|when| now < when + again) || state.words.contains_key(&origin)
        {
            return;
        }
        cursor.pruned = Some(now);
        cursor.asked = None;
        state.words.insert(origin, Word::Prune);
        self.stirred.insert(link);
    }

    /// Sees to it that somebody is asked for what is announced of an origin: at once where no parent is expected to
    /// bring it, else after a while.
    pub(super) fn look_for_missing(&mut self, origin: RelayId, now: Instant) {
        if self.best_source(origin, None).is_none() {
            self.timers.clear(Timer::Graft(origin));
            return;
        }
        match self.routes.get(&origin).and_then(|route| route.parent) {
            Some(_) => self.timers.start(Timer::Graft(origin), now + self.config.graft_delay),
            None => {
                if let Some(link) = self.best_source(origin, None) {
                    self.ask(link, origin, now);
                }
            }
        }
    }

    /// What was announced has not come: asks another link. The parent itself is not asked again for what it is
    /// sending, however slowly, unless nothing at all came for long.
    pub(super) fn graft(&mut self, origin: RelayId, now: Instant) {
        let parent = self.routes.get(&origin).and_then(|route| route.parent);
        if let Some(link) = self.best_source(origin, parent) {
            self.end_stage(origin);
            self.counters.grafts += 1;
            self.ask(link, origin, now);
        } else if let Some(link) = self.best_source(origin, None) {
            let asked = self.links.get(&link).and_then(|state| state.cursors.get(&origin)?.asked);
            if asked.is_none_or(|(_, when)| now >= when + self.config.refresh) {
                self.end_stage(origin);
                self.ask(link, origin, now);
            }
            self.timers.set(Timer::Graft(origin), now + self.config.refresh);
        }
    }

    /// The link, other than `not`, whose peer is furthest ahead of this relay.
    fn best_source(&self, origin: RelayId, not: Option<LinkId>) -> Option<LinkId> {
        if origin == self.config.relay {
            return None;
        }
        let known = self.table.watermark(origin);
        self.links
            .iter()
            .filter(|(id, link)| Some(**id) != not && link.has(origin) > known)
            .max_by_key(|(id, link)| {
                (link.has(origin), link.peer == origin, std::cmp::Reverse(**id))
            })
            .map(|(id, _)| *id)
    }

    fn end_stage(&mut self, origin: RelayId) {
        if let Some(route) = self.routes.get_mut(&origin) {
            route.stage = None;
        }
    }

    /// Turns what is owed into messages, as far as the network takes them.
    pub(super) fn pump(&mut self, now: Instant) {
        while let Some(id) = self.stirred.pop_first() {
            while let Some(message) = self.next_message(id, now) {
                if let Some(link) = self.links.get_mut(&id) {
                    link.in_flight += 1;
                }
                self.outputs.push_back(Output::Send(id, message));
            }
        }
    }

    fn next_message(&mut self, id: LinkId, now: Instant) -> Option<GossipMessage> {
        let link = self.links.get_mut(&id)?;
        if link.in_flight >= self.config.sends_in_flight {
            return None;
        }
        if let Some((origin, word)) = link.words.pop_first() {
            return Some(self.say(origin, word));
        }
        if !link.marks.is_empty() {
            if link.marks_from <= now {
                if let Some(message) = self.announce(id, now) {
                    return Some(message);
                }
            } else {
                self.timers.start(Timer::Announce(id), link.marks_from);
            }
        }
        loop {
            let origin = self.links.get_mut(&id)?.rows.pop_front()?;
            if let Some(rows) = self.next_rows(id, origin, now) {
                return Some(GossipMessage::Rows(rows));
            }
        }
    }

    fn say(&mut self, origin: RelayId, word: Word) -> GossipMessage {
        match word {
            Word::Want | Word::WantAll => {
                self.counters.wants += 1;
                let at = self.table.watermark(origin);
                let watermark = if word == Word::WantAll { 0 } else { at.sequence };
                GossipMessage::Want(Want { origin, incarnation: at.incarnation, watermark })
            }
            Word::Prune => {
                self.counters.prunes += 1;
                GossipMessage::Prune(Prune { origin })
            }
        }
    }

    /// The heads that a link waits for.
    fn announce(&mut self, id: LinkId, now: Instant) -> Option<GossipMessage> {
        let mut heads = Vec::new();
        while heads.len() < limits::GOSSIP_HEADS {
            let link = self.links.get_mut(&id)?;
            let Some((origin, always)) = link.marks.pop_first() else { break };
            let at = link.at(origin);
            let Some(head) = self.table.head(origin) else { continue };
            if always || at < head.version {
                heads.push(*head);
            }
        }
        if heads.is_empty() {
            return None;
        }
        let link = self.links.get_mut(&id)?;
        if link.marks.is_empty() {
            link.marks_from = now + self.config.announce_interval;
        }
        self.counters.head_messages += 1;
        Some(GossipMessage::Heads(Heads { heads }))
    }

    /// The next rows of an origin that a link is owed, and moves its cursor behind them.
    fn next_rows(&mut self, id: LinkId, origin: RelayId, now: Instant) -> Option<Rows> {
        self.sign(origin, now);
        let link = self.links.get_mut(&id)?;
        let cursor = link.cursors.get_mut(&origin)?;
        cursor.queued = false;
        if self.routes.get(&origin).is_some_and(|route| route.proven.is_some()) {
            // What is held is between two heads. Once it is not, the link is owed rows again.
            return None;
        }
        let head = *self.table.head(origin)?;
        let (ready, horizon) = (head.version, head.horizon);
        if cursor.at >= ready {
            return None;
        }
        if !cursor.eager {
            link.marks.entry(origin).or_default();
            self.stirred.insert(id);
            return None;
        }
        if cursor.at.incarnation < ready.incarnation {
            cursor.at = Version { incarnation: ready.incarnation, sequence: 0 };
            cursor.retold_at = 0;
        }
        if cursor.at.sequence < horizon && cursor.retold_at < horizon {
            cursor.at.sequence = 0;
            cursor.retold_at = ready.sequence;
        }
        let from = cursor.at.sequence;
        let (records, to, count) = self.table.chunk(origin, from, ready.sequence);
        cursor.at.sequence = to;
        let last = to == ready.sequence;
        if !last {
            cursor.queued = true;
            link.rows.push_back(origin);
        }
        self.counters.sent += count;
        self.counters.rows_messages += 1;
        Some(Rows { head, span: Span { from, to }, records })
    }
}

impl super::Table {
    /// Rows in `(from, to]`, as many as one message takes: their bytes, up to which sequence, how many.
    fn chunk(&self, origin: RelayId, from: u64, to: u64) -> (Bytes, u64, u64) {
        let mut bytes = BytesMut::new();
        let mut reached = from;
        let mut count = 0;
        for row in self.rows_between(origin, from, to) {
            if bytes.len() >= limits::GOSSIP_CHUNK_BYTES {
                return (bytes.freeze(), reached, count);
            }
            bytes.extend_from_slice(row.as_bytes());
            reached = row.version().sequence;
            count += 1;
        }
        (bytes.freeze(), to, count)
    }
}
