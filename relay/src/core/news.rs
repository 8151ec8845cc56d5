//! What operators are told of as it happens: which rows changed, and what became of terminals and relays.

use std::collections::BTreeSet;

use tasuki_proto::record::{Record, RecordKind};
use tasuki_proto::rows::{self, AttachmentRow, LinksRow, LoadRow};
use tasuki_proto::{RefusalCode, RelayId, RelayName, TerminalId, limits};

use super::admin::{AdminReply, Changed, ChangedRow, RowKind, Summary};
use super::answers::refused;
use super::changes::Key;
use super::history::{What, Whose};
use super::{Relay, routes};

/// Signatures after which an answer to what changed ends; the rest comes with the next one.
const CHECKS_AT_ONCE: usize = 64;

impl Relay {
    /// A row of the table came, changed or went; the directory knows of it.
    pub(super) fn note_row(&mut self, old: Option<&Record>, new: Option<&Record>, wall_ms: u64) {
        let Some(row) = new.or(old) else { return };
        let at = new.map_or(wall_ms, Record::wall_ms);
        let old = old.filter(|record| !record.is_tombstone());
        let new = new.filter(|record| !record.is_tombstone());
        let (origin, kind) = (row.origin(), row.kind());
        match kind {
            RecordKind::ATTACHMENT | RecordKind::ACCOUNT => {
                let Some(terminal) = named(row.key(), TerminalId::new) else { return };
                if kind == RecordKind::ACCOUNT {
                    self.note_account((old, new), &terminal, at);
                } else {
                    self.note_attachment((origin, old, new), &terminal, at);
                }
                self.changes.push(Key::Terminal(terminal));
            }
            RecordKind::RELAY_ACCOUNT => {
                if let Some(name) = named(row.key(), RelayName::new) {
                    self.note_relay(self.id_of(&name));
                }
            }
            RecordKind::RELAY | RecordKind::LINKS | RecordKind::LOAD => {
                self.note_relay_row((origin, kind), (old, new), at);
            }
            _ => {}
        }
    }

    fn note_account(
        &mut self,
        (old, new): (Option<&Record>, Option<&Record>),
        terminal: &TerminalId,
        at: u64,
    ) {
        let what = match (old, new) {
            (None, Some(_)) => What::Registered,
            (Some(_), None) => What::AccountRemoved,
            (Some(old), Some(new)) if old.payload() != new.payload() => What::AccountChanged,
            _ => return,
        };
        self.history.note(Whose::Terminal(terminal.clone()), at, what);
    }

    fn note_attachment(
        &mut self,
        (relay, old, new): (RelayId, Option<&Record>, Option<&Record>),
        terminal: &TerminalId,
        at: u64,
    ) {
        if old.is_some() != new.is_some() {
            // It shows how many are attached.
            self.changes.push(Key::Relay(relay));
        }
        let read = |row: Option<&Record>| rows::read::<AttachmentRow>(row?.payload()).ok();
        let mut note = |what| self.history.note(Whose::Terminal(terminal.clone()), at, what);
        match (read(old), read(new)) {
            (Some(_), None) => note(What::LoggedOut(relay)),
            (None, Some(new)) => {
                note(What::LoggedIn(relay, new.role));
                if new.sessions > 0 {
                    note(What::Communicates(relay, new.sessions));
                }
            }
            (Some(old), Some(new)) => {
                if old.instance != new.instance {
                    note(What::LoggedIn(relay, new.role));
                } else if old.role != new.role {
                    note(What::RoleChanged(relay, new.role));
                }
                if old.address != new.address {
                    note(What::Moved(relay, new.address));
                }
                match (old.sessions, new.sessions) {
                    (0, 1..) => note(What::Communicates(relay, new.sessions)),
                    (1.., 0) => note(What::CommunicatesNot(relay)),
                    _ => {}
                }
            }
            (None, None) => {}
        }
    }

    fn note_relay_row(
        &mut self,
        (relay, kind): (RelayId, RecordKind),
        (old, new): (Option<&Record>, Option<&Record>),
        at: u64,
    ) {
        let mut note = |what| self.history.note(Whose::Relay(relay), at, what);
        if kind == RecordKind::RELAY {
            match (old, new) {
                (None, Some(_)) => note(What::Started),
                (Some(_), None) => note(What::Forgotten),
                (Some(old), Some(new)) if old.payload() != new.payload() => note(What::Changed),
                _ => {}
            }
        } else if kind == RecordKind::LINKS {
            let (before, after) = (linked(old), linked(new));
            before.difference(&after).for_each(|peer| note(What::LinkLost(*peer)));
            after.difference(&before).for_each(|peer| note(What::Linked(*peer)));
        } else {
            match (drains(old), drains(new)) {
                (false, true) => note(What::Draining),
                (true, false) if new.is_some() => note(What::DrainingEnded),
                _ => {}
            }
        }
        self.note_relay(relay);
    }

    /// A relay's own row changed, and with its name perhaps the rows that show it as the other end of a link.
    fn note_relay(&mut self, relay: RelayId) {
        self.changes.push(Key::Relay(relay));
        let peers = self.directory.links_of(relay).links.iter().map(|link| link.peer);
        for peer in peers.take(limits::LINKS) {
            self.changes.push(Key::Relay(peer));
        }
    }

    /// A relay came or went out of reach, and with it the state of its terminals changed. The directory knows of it.
    pub(super) fn note_reachable(&mut self, reached: routes::Reachable, wall_ms: u64) {
        let what = if reached.reachable { What::Reachable } else { What::Unreachable };
        self.history.note(Whose::Relay(reached.relay), wall_ms, what);
        let table = self.gossip.table();
        if table.origin_len(reached.relay) > limits::CHANGES_BY_REACH {
            self.changes.push_many();
        } else {
            for row in table.rows_between(reached.relay, 0, u64::MAX) {
                if row.kind() == RecordKind::ATTACHMENT
                    && let Some(terminal) = named(row.key(), TerminalId::new)
                {
                    self.changes.push(Key::Terminal(terminal));
                }
            }
        }
        self.changes.push(Key::Relay(reached.relay));
    }

    /// What changed after number `after`: at most [`limits::CHANGES_AT_ONCE`] rows, as they are.
    pub(super) fn changed(&mut self, after: Option<u64>) -> Changed {
        let head = self.changes.head();
        let mut told =
            Changed { incarnation: self.config.incarnation.0, upto: head, ..Changed::default() };
        let Some(after) = after else { return told };
        let Some(changed) = self.changes.after(after) else {
            told.missed = true;
            return told;
        };
        let keys: Vec<(u64, Key)> = changed
            .take(limits::CHANGES_AT_ONCE + 1)
            .map(|(seq, key)| (seq, key.clone()))
            .collect();
        let mut checks = 0;
        for (shown, (seq, key)) in keys.into_iter().enumerate() {
            if shown == limits::CHANGES_AT_ONCE || checks >= CHECKS_AT_ONCE {
                told.more = true;
                told.upto = told.rows.last().map_or(after, |(seq, _)| *seq);
                break;
            }
            if let Key::Terminal(id) = &key {
                checks += self.directory.unchecked(self.gossip.table(), id);
            }
            let row = self.changed_row(key);
            told.rows.push((seq, row));
        }
        told
    }

    fn changed_row(&mut self, key: Key) -> ChangedRow {
        match key {
            Key::Terminal(id) => match self.terminal_view(&id) {
                Some(view) => ChangedRow::Terminal(Box::new(view)),
                None => ChangedRow::Gone(RowKind::Terminal, id.to_string()),
            },
            Key::Relay(id) => match self.directory.relay(id) {
                Some(view) => ChangedRow::Relay(Box::new(view)),
                None => ChangedRow::Gone(RowKind::Relay, id.to_string()),
            },
            Key::Session(id) => match self.sessions.view(&id) {
                Some(view) => ChangedRow::Session(Box::new(view)),
                None => ChangedRow::Gone(RowKind::Session, id.to_string()),
            },
        }
    }

    /// Counts over at most [`limits::PAGE_SCAN`] terminals behind `after`; what is not of terminals is whole in each part.
    pub(super) fn summary(&self, after: Option<&TerminalId>) -> AdminReply {
        let (terminals, next) = self.directory.count(self.gossip.table(), after);
        let (types, relays) = (self.directory.types(), self.directory.relay_counts());
        AdminReply::Summary(Box::new(Summary { terminals, types, relays }), next)
    }

    pub(super) fn terminal_history(&mut self, id: &TerminalId) -> AdminReply {
        let items =
            self.history.of(&Whose::Terminal(id.clone()), |relay| self.directory.name_of(relay));
        if items.is_empty() && self.terminal_view(id).is_none() {
            return refused(RefusalCode::UnknownTarget, id.as_str());
        }
        AdminReply::History(items)
    }

    pub(super) fn relay_history(&self, name: &RelayName) -> AdminReply {
        let id = self.id_of(name);
        let items = self.history.of(&Whose::Relay(id), |relay| self.directory.name_of(relay));
        if items.is_empty() && self.directory.relay(id).is_none() {
            return AdminReply::UnknownRelay(name.clone());
        }
        AdminReply::History(items)
    }
}

fn named<T, E>(key: &[u8], parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
    parse(std::str::from_utf8(key).ok()?).ok()
}

fn linked(row: Option<&Record>) -> BTreeSet<RelayId> {
    let row: Option<LinksRow> = row.and_then(|row| rows::read(row.payload()).ok());
    row.into_iter().flat_map(|row| row.links).map(|link| link.peer).collect()
}

fn drains(row: Option<&Record>) -> bool {
    row.and_then(|row| rows::read::<LoadRow>(row.payload()).ok()).is_some_and(|row| row.draining)
}

#[cfg(test)]
mod tests;
