//! Terminals: where one is, how it is shown, lists of them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Bound;

use tasuki_proto::attest::Attestation;
use tasuki_proto::record::{RecordKind, RecordRef};
use tasuki_proto::rows::{self, AccountRow, AttachmentRole, AttachmentRow};
use tasuki_proto::view::{AttachmentView, TerminalFilter, TerminalState, TerminalView};
use tasuki_proto::{LoginEpoch, RelayId, TerminalId, limits};

use super::attest::{Holder, without_jumps};
use super::{Directory, key_in};
use crate::core::admin::TerminalCounts;
use crate::core::gossip::table::Table;

/// Signatures after which one page of a list ends; the next page goes on.
const CHECKS_PER_PAGE: usize = 64;
/// Terminals that are passed on the way to the next one found, before it is looked up instead.
const NEAR: usize = 8;

/// Where a terminal is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// To this relay.
    pub relay: RelayId,
    /// In this log-in.
    pub epoch: LoginEpoch,
    /// By this process of the agent.
    pub instance: u64,
    /// As primary or standby.
    pub role: AttachmentRole,
    /// The terminal's address as the relay sees it.
    pub address: SocketAddr,
}

/// What the table says about a terminal (C7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// Not registered.
    Unknown,
    /// The table does not hold its account, but shows that it may come.
    NotYetKnown,
    /// Registered, and attached nowhere.
    LoggedOut,
    /// Attached to relays that cannot be reached.
    Unreachable,
    /// Attached here; where it has several current attachments, the primary.
    At(Location),
}

/// A page of a list, as it fills.
struct Page<'a> {
    filter: &'a TerminalFilter,
    limit: usize,
    items: Vec<TerminalView>,
    /// Signatures that were checked for it.
    checks: usize,
}

/// A live attachment.
struct Attachment<'a> {
    relay: RelayId,
    reachable: bool,
    record: RecordRef<'a>,
    row: AttachmentRow,
}

impl Directory {
    /// Where a terminal is. Current is the highest log-in among the attachments at reachable relays.
    pub fn lookup(&self, table: &Table, id: &TerminalId) -> Lookup {
        let key = id.as_str().as_bytes();
        let (mut known, mut attached) = (false, false);
        let mut holder = None;
        for row in table.live_of_key(key) {
            if row.kind() == RecordKind::ACCOUNT && row.origin() == RelayId::AUTHORITY {
                known = true;
                holder = key_in(row).map(|key| Holder { id: id.as_str().as_bytes(), key });
            } else if row.kind() == RecordKind::ATTACHMENT {
                attached = true;
            }
        }
        if !known {
            let empty = table.origin_len(RelayId::AUTHORITY) == 0;
            return if attached || empty { Lookup::NotYetKnown } else { Lookup::Unknown };
        }
        match holder.filter(|_| attached) {
            Some(holder) => self.best_of(table, &holder),
            None => Lookup::LoggedOut,
        }
    }

    /// The best attachment of a terminal whose account is known.
    fn best_of(&self, table: &Table, holder: &Holder<'_>) -> Lookup {
        let mut attested = self.attested.borrow_mut();
        let mut checks = limits::CHECKS_PER_LOOKUP;
        let mut best: Option<Location> = None;
        let mut epochs: Option<(LoginEpoch, LoginEpoch)> = None;
        for row in table.live_of_key(holder.id) {
            if row.kind() != RecordKind::ATTACHMENT {
                continue;
            }
            let Ok(read) = rows::read::<AttachmentRow>(row.payload()) else { continue };
            if !attested.is_genuine(holder, &read.attestation(row.origin()), &mut checks) {
                continue;
            }
            let (lowest, highest) = epochs.unwrap_or((read.epoch, read.epoch));
            epochs = Some((lowest.min(read.epoch), highest.max(read.epoch)));
            let here = location(row.origin(), &read);
            if best.is_none_or(|best| rank(&here) > rank(&best)) && self.is_reachable(here.relay) {
                best = Some(here);
            }
        }
        if epochs.is_some_and(|(lowest, highest)| highest.0 - lowest.0 > limits::EPOCH_JUMP) {
            drop(attested);
            let found = self.attachments(table, holder.id);
            let reachable = found.iter().filter(|one| one.reachable);
            best = reachable.map(|one| location(one.relay, &one.row)).max_by_key(rank);
        }
        match best {
            Some(location) => Lookup::At(location),
            None if epochs.is_some() => Lookup::Unreachable,
            None => Lookup::LoggedOut,
        }
    }

    /// The key of a terminal; `None` while its account is not proven.
    fn holder<'a>(&self, table: &Table, key: &'a [u8]) -> Option<Holder<'a>> {
        let account = table.authority_row(RecordKind::ACCOUNT, key)?;
        Some(Holder { id: key, key: key_in(account)? })
    }

    /// The attachments that the terminal signed.
    fn attachments<'a>(&self, table: &'a Table, key: &'a [u8]) -> Vec<Attachment<'a>> {
        let Some(holder) = self.holder(table, key) else { return Vec::new() };
        let mut attested = self.attested.borrow_mut();
        let mut checks = limits::CHECKS_PER_LOOKUP;
        let mut found: Vec<Attachment<'a>> = self
            .claimed(table, key)
            .filter(|one| {
                attested.is_genuine(&holder, &one.row.attestation(one.relay), &mut checks)
            })
            .collect();
        without_jumps(&mut found, |one| one.row.epoch);
        found
    }

    /// The attachments that relays claim; each may be forged.
    fn claimed<'a>(
        &self,
        table: &'a Table,
        key: &'a [u8],
    ) -> impl Iterator<Item = Attachment<'a>> + use<'a, '_> {
        table.live(RecordKind::ATTACHMENT, key).filter_map(|record| {
            let row = rows::read(record.payload()).ok()?;
            let relay = record.origin();
            Some(Attachment { relay, reachable: self.is_reachable(relay), record, row })
        })
    }

    /// The current attachments of a terminal at reachable relays, the primary first.
    pub fn locations(&self, table: &Table, id: &TerminalId) -> Vec<Location> {
        let found = self.attachments(table, id.as_str().as_bytes());
        let reachable = found.iter().filter(|one| one.reachable);
        let mut all: Vec<Location> = reachable.map(|one| location(one.relay, &one.row)).collect();
        all.sort_by_key(|location| Reverse(rank(location)));
        if let Some(first) = all.first().copied() {
            all.retain(|other| (other.epoch, other.instance) == (first.epoch, first.instance));
        }
        all
    }

    /// The highest log-in known of a terminal, at a relay that can be reached or not.
    pub fn highest_login(&self, table: &Table, id: &TerminalId) -> Option<Attestation> {
        let found = self.attachments(table, id.as_str().as_bytes());
        let highest = found.iter().max_by_key(|one| rank(&location(one.relay, &one.row)))?;
        Some(highest.row.attestation(highest.relay))
    }

    /// The account of a terminal.
    pub fn account_of(&self, table: &Table, id: &TerminalId) -> Option<AccountRow> {
        let row = table.authority_row(RecordKind::ACCOUNT, id.as_str().as_bytes())?;
        rows::read(row.payload()).ok()
    }

    /// How many terminals have an account.
    pub fn terminal_count(&self) -> usize {
        self.terminals.len()
    }

    /// How a terminal is shown.
    pub fn terminal_view(&self, table: &Table, id: &TerminalId) -> Option<TerminalView> {
        let account = table.authority_row(RecordKind::ACCOUNT, id.as_str().as_bytes())?;
        let mut updated_at = account.wall_ms();
        let account: AccountRow = rows::read(account.payload()).ok()?;
        let key = id.as_str().as_bytes();
        let mut found = self.attachments(table, key);
        let unreachable = !found.is_empty() && !found.iter().any(|one| one.reachable);
        found.retain(|one| unreachable || one.reachable);
        let current = found.iter().map(|one| (one.row.epoch, one.row.instance)).max();
        found.retain(|one| Some((one.row.epoch, one.row.instance)) == current);
        // A session has a way over each of them.
        let sessions = found.iter().map(|one| one.row.sessions).max().unwrap_or(0);
        for one in &found {
            updated_at = updated_at.max(one.record.wall_ms());
        }
        let mut attachments: Vec<AttachmentView> = found
            .iter()
            .filter_map(|one| {
                Some(AttachmentView {
                    relay: self.name_of(one.relay)?,
                    role: one.row.role,
                    since: one.row.since_ms,
                    address: one.row.address,
                })
            })
            .collect();
        attachments.sort_by(|a, b| a.relay.cmp(&b.relay));
        let state = if unreachable {
            TerminalState::Unreachable
        } else if found.is_empty() {
            TerminalState::LoggedOut
        } else if sessions == 0 {
            TerminalState::LoggedIn
        } else {
            TerminalState::InCommunication
        };
        if found.is_empty() {
            updated_at = updated_at.max(table.last_tombstone(RecordKind::ATTACHMENT, key));
        }
        Some(TerminalView {
            id: id.clone(),
            kind: account.kind,
            attributes: account.attributes,
            state,
            sessions,
            attachments,
            updated_at,
        })
    }

    /// How many signatures of attachments showing this terminal would have to check first.
    pub fn unchecked(&self, table: &Table, id: &TerminalId) -> usize {
        let key = id.as_str().as_bytes();
        let Some(holder) = self.holder(table, key) else { return 0 };
        let mut attested = self.attested.borrow_mut();
        let unchecked = self
            .claimed(table, key)
            .filter(|one| attested.is_unchecked(&holder, &one.row.attestation(one.relay)));
        unchecked.count().min(limits::CHECKS_PER_LOOKUP)
    }

    /// The state of a terminal that has an account, without the rest of its row. Signatures may wait for their check; only
    /// what is known to be forged is left out.
    fn state(&self, table: &Table, id: &TerminalId) -> TerminalState {
        let key = id.as_str().as_bytes();
        let mut attested = self.attested.borrow_mut();
        let holder = if attested.has_refuted() { self.holder(table, key) } else { None };
        let mut attached = false;
        let mut current = None;
        for one in self.claimed(table, key) {
            let said = one.row.attestation(one.relay);
            if holder.is_some_and(|holder| attested.is_refuted(&holder, &said)) {
                continue;
            }
            attached = true;
            if one.reachable {
                // Of one log-in the most sessions count, as in the row.
                current = current.max(Some((one.row.epoch, one.row.instance, one.row.sessions)));
            }
        }
        match current {
            None if attached => TerminalState::Unreachable,
            None => TerminalState::LoggedOut,
            Some((.., 0)) => TerminalState::LoggedIn,
            Some(_) => TerminalState::InCommunication,
        }
    }

    /// A page of terminals behind `after`, ordered by id, and where the next page begins. Looks at no more than
    /// [`limits::PAGE_SCAN`] terminals, with a text at no more that contain it, among [`limits::SEARCH_BYTES`] of ids;
    /// so it may hold fewer than `limit` although more follow.
    pub fn list(
        &self,
        table: &Table,
        filter: &TerminalFilter,
        after: Option<&TerminalId>,
        limit: usize,
    ) -> (Vec<TerminalView>, Option<TerminalId>) {
        if filter.kind.as_ref().is_some_and(|kind| !self.kinds.contains(kind)) {
            return (Vec::new(), None);
        }
        let limit = limit.clamp(1, limits::PAGE);
        let mut page = Page { filter, limit, items: Vec::new(), checks: 0 };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.terminals.range::<TerminalId, _>((from, Bound::Unbounded));
        if let Some(text) = &filter.text {
            let mut search = self.names.search(text, after);
            for name in search.by_ref().take(limits::PAGE_SCAN) {
                let near = range.by_ref().take(NEAR).find(|(id, _)| id.as_str() >= name);
                let found = near.or_else(|| {
                    range = self.terminals.range(TerminalId::new(name).ok()?..);
                    range.next()
                });
                if found.is_some_and(|(id, kind)| self.put_on_page(&mut page, table, id, kind)) {
                    break;
                }
            }
            let next = search.reached().and_then(|id| TerminalId::new(id).ok());
            return (page.items, next);
        }
        let mut last = None;
        for (id, kind) in range.by_ref().take(limits::PAGE_SCAN) {
            last = Some(id);
            if self.put_on_page(&mut page, table, id, kind) {
                break;
            }
        }
        let next = if range.next().is_some() { last.cloned() } else { None };
        (page.items, next)
    }

    /// Puts a terminal of this type on a page if it has what is wanted besides a text. Whether the page is full then.
    fn put_on_page(&self, page: &mut Page<'_>, table: &Table, id: &TerminalId, kind: &str) -> bool {
        let filter = page.filter;
        let may_match = filter.kind.as_ref().is_none_or(|wanted| *wanted == *kind)
            && filter.state.is_none_or(|state| state == self.state(table, id));
        if !may_match {
            return false;
        }
        page.checks += self.unchecked(table, id);
        if let Some(view) = self.terminal_view(table, id)
            && filter.state.is_none_or(|state| state == view.state)
            && filter.kind.as_ref().is_none_or(|kind| *kind == view.kind)
        {
            page.items.push(view);
        }
        page.items.len() == page.limit || page.checks >= CHECKS_PER_PAGE
    }

    /// Counts at most [`limits::PAGE_SCAN`] terminals behind `after`, and says where the next part begins.
    pub fn count(
        &self,
        table: &Table,
        after: Option<&TerminalId>,
    ) -> (TerminalCounts, Option<TerminalId>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut counts = TerminalCounts::default();
        let mut range = self.terminals.range::<TerminalId, _>((from, Bound::Unbounded));
        let mut last = None;
        for (id, _) in range.by_ref().take(limits::PAGE_SCAN) {
            last = Some(id);
            counts.add(self.state(table, id));
        }
        let next = if range.next().is_some() { last.cloned() } else { None };
        (counts, next)
    }

    /// Every type of terminal, and how many have it.
    pub fn types(&self) -> BTreeMap<String, u64> {
        self.kinds.iter().map(|(kind, terminals)| (kind.to_owned(), terminals)).collect()
    }
}

/// The place that a row of an attachment tells of.
fn location(relay: RelayId, row: &AttachmentRow) -> Location {
    let (epoch, instance, role, address) = (row.epoch, row.instance, row.role, row.address);
    Location { relay, epoch, instance, role, address }
}

/// Attachments in the order of preference: the newest log-in, in it the primary, and among equals the same one at
/// every relay.
fn rank(location: &Location) -> impl Ord + use<> {
    (location.epoch, location.instance, Reverse(location.role), Reverse(location.relay))
}
