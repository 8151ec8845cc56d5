//! The table as calls and lists need it: who is where, in which state (C4, C7, C12).
//!
//! The rows themselves lie in [`Table`]; the directory keeps what cannot be read off a single row: the order of
//! terminals, what is known of each relay, revoked keys, reachability. It is told of each change
//! ([`Directory::handle_change`]) and reads the table as it stands, so hearing of a change late does no harm.
//!
//! The table holds proven rows only ([`super::gossip`]). A relay's name counts only where the relay's id is made from it;
//! an attachment counts only if its terminal signed it (`attest.rs`).

mod attest;
mod kinds;
mod names;
mod terminals;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tasuki_proto::attest::Attestation;
use tasuki_proto::control::RelayContact;
use tasuki_proto::identity::{KeyFingerprint, PublicKey};
use tasuki_proto::record::{Record, RecordKind, RecordRef};
use tasuki_proto::rows::{self, AttachmentRow, LinksRow, LoadRow, RelayAccountRow, RelayRow};
use tasuki_proto::{MeshId, RelayId, RelayName, TerminalId, limits};

use self::attest::{Attested, Holder};
use self::kinds::Kinds;
use self::names::Names;
pub use self::terminals::{Location, Lookup};
use super::admin::{RelayCounts, RelayLinkView, RelayView, TableView};
use super::gossip::table::Table;

/// What others react to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A terminal that is attached to this relay logged in again elsewhere: its attachment here is superseded.
    NewerLogin {
        /// The terminal.
        terminal: TerminalId,
        /// The newer log-in, in the terminal's own words.
        there: Attestation,
    },
    /// A key was revoked.
    Revoked(KeyFingerprint),
    /// The key in a relay's account; `None` without an account, or once the key is revoked.
    RelayKey(RelayId, Option<PublicKey>),
    /// [`Directory::contacts`] changed.
    ContactsChanged,
    /// The links of this relay changed.
    LinksChanged(RelayId),
    /// The load of this relay, or whether it drains, changed.
    LoadChanged(RelayId),
}

/// What is known of a relay.
#[derive(Debug, Default)]
struct Relay {
    /// Its proven name.
    name: Option<RelayName>,
    account: Option<RelayAccountRow>,
    /// The key that others were told last.
    key: Option<PublicKey>,
    row: Option<RelayRow>,
    links: LinksRow,
    load: LoadRow,
    /// Rows of attachments.
    attached: usize,
    /// The latest wall-clock time of its rows on itself, by kind.
    updated: BTreeMap<RecordKind, u64>,
}

/// The key in an account.
fn key_in(account: RecordRef<'_>) -> Option<PublicKey> {
    rows::key_of_account(account.payload()).ok().flatten()
}

impl Relay {
    fn is_empty(&self) -> bool {
        self.account.is_none() && self.attached == 0 && self.updated.is_empty()
    }

    fn addresses(&self) -> &[String] {
        match (&self.row, &self.account) {
            (Some(row), _) => &row.addresses,
            (None, Some(account)) => &account.addresses,
            (None, None) => &[],
        }
    }
}

/// Cuts `text`, which is at most as long as a record, to `bytes` at the end of a character.
fn truncate(text: &mut String, bytes: usize) {
    while text.len() > bytes {
        text.pop();
    }
}

/// The directory; see the module's documentation.
#[derive(Debug)]
pub struct Directory {
    me: RelayId,
    mesh: MeshId,
    relays: BTreeMap<RelayId, Relay>,
    reachable: BTreeSet<RelayId>,
    /// Terminals with an account, in the order of lists, with their type.
    terminals: BTreeMap<TerminalId, Arc<str>>,
    /// Their ids, for searches.
    names: Names,
    kinds: Kinds,
    revoked: BTreeSet<KeyFingerprint>,
    /// Whoever reads fills it.
    attested: RefCell<Attested>,
    outputs: VecDeque<Output>,
}

impl Directory {
    /// The directory of this relay, of an empty table. `secret` is known to nobody else.
    pub fn new(me: RelayId, mesh: MeshId, secret: [u64; 2]) -> Directory {
        Directory {
            me,
            mesh,
            relays: BTreeMap::new(),
            reachable: BTreeSet::from([me]),
            terminals: BTreeMap::new(),
            names: Names::new(),
            kinds: Kinds::default(),
            revoked: BTreeSet::new(),
            attested: RefCell::new(Attested::new(me, mesh, secret)),
            outputs: VecDeque::new(),
        }
    }

    /// Hears of a change to the table ([`super::gossip::Output::Changed`]).
    pub fn handle_change(&mut self, old: Option<&Record>, new: Option<&Record>, table: &Table) {
        let Some(row) = new.or(old) else { return };
        let live = |record: Option<&Record>| record.is_some_and(|record| !record.is_tombstone());
        match row.kind() {
            RecordKind::ACCOUNT if row.origin() == RelayId::AUTHORITY => {
                self.account(row, table);
                self.attachments_elsewhere(row.key(), table);
            }
            RecordKind::REVOCATION | RecordKind::RELAY_ACCOUNT
                if row.origin() == RelayId::AUTHORITY =>
            {
                self.authority_row(row.kind(), row.key(), table);
            }
            RecordKind::ATTACHMENT => {
                let relay = self.relays.entry(row.origin()).or_default();
                match (live(old), live(new)) {
                    (false, true) => relay.attached += 1,
                    (true, false) => relay.attached = relay.attached.saturating_sub(1),
                    _ => {}
                }
                if let Some(new) = new.filter(|record| !record.is_tombstone()) {
                    self.attachment(new.by_ref(), table);
                }
                self.drop_if_empty(row.origin());
            }
            RecordKind::RELAY | RecordKind::LINKS | RecordKind::LOAD if row.key().is_empty() => {
                self.relay_row(row.origin(), row.kind(), table);
            }
            _ => {}
        }
    }

    /// Takes the relays that can be reached; this one is always among them.
    pub fn set_reachable(&mut self, relays: &BTreeSet<RelayId>) {
        self.reachable.clone_from(relays);
        self.reachable.insert(self.me);
    }

    /// The next thing that others should hear of.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn account(&mut self, row: &Record, table: &Table) {
        let id = std::str::from_utf8(row.key()).ok().and_then(|word| TerminalId::new(word).ok());
        let Some(id) = id else { return };
        let held = table.get(RelayId::AUTHORITY, RecordKind::ACCOUNT, row.key());
        let before = match held.filter(|held| !held.is_tombstone()) {
            Some(held) => {
                self.names.insert(&id);
                let kind = rows::type_of_account(held.payload()).unwrap_or_default();
                self.terminals.insert(id, self.kinds.take(&kind))
            }
            None => {
                self.names.remove(&id);
                self.terminals.remove(&id)
            }
        };
        if let Some(before) = before {
            self.kinds.give_back(&before);
        }
    }

    fn authority_row(&mut self, kind: RecordKind, key: &[u8], table: &Table) {
        let payload = table.authority_row(kind, key).map(RecordRef::payload);
        if kind == RecordKind::REVOCATION {
            self.revocation(key, payload.is_some());
        } else {
            self.relay_account(key, payload.and_then(|payload| rows::read(payload).ok()));
        }
    }

    fn revocation(&mut self, key: &[u8], stands: bool) {
        let Ok(fingerprint) = <[u8; 32]>::try_from(key).map(KeyFingerprint) else { return };
        if !stands {
            self.revoked.remove(&fingerprint);
        } else if self.revoked.insert(fingerprint) {
            self.outputs.push_back(Output::Revoked(fingerprint));
        }
        let is_it = |relay: &Relay| {
            relay.account.as_ref().is_some_and(|account| account.key.fingerprint() == fingerprint)
        };
        let hit = self.relays.iter().filter(|(_, relay)| is_it(relay)).map(|(id, _)| *id);
        for id in hit.collect::<Vec<_>>() {
            self.tell_key(id);
        }
    }

    /// Tells which key a relay signs with, where that changed.
    fn tell_key(&mut self, id: RelayId) {
        let Some(relay) = self.relays.get_mut(&id) else { return };
        let key = relay.account.as_ref().map(|account| account.key);
        let key = key.filter(|key| !self.revoked.contains(&key.fingerprint()));
        if relay.key != key {
            relay.key = key;
            self.outputs.push_back(Output::RelayKey(id, key));
        }
    }

    fn relay_account(&mut self, key: &[u8], account: Option<RelayAccountRow>) {
        let name = std::str::from_utf8(key).ok().and_then(|word| RelayName::new(word).ok());
        let Some(name) = name else { return };
        let id = RelayId::of(&self.mesh, &name);
        let relay = self.relays.entry(id).or_default();
        if relay.account != account {
            relay.account = account;
            relay.name = Some(name);
            self.outputs.push_back(Output::ContactsChanged);
        }
        self.tell_key(id);
        self.drop_if_empty(id);
    }

    fn relay_row(&mut self, origin: RelayId, kind: RecordKind, table: &Table) {
        let held = table.get(origin, kind, &[]).filter(|row| !row.is_tombstone());
        let relay = self.relays.entry(origin).or_default();
        match held {
            Some(row) => relay.updated.insert(kind, row.wall_ms()),
            None => relay.updated.remove(&kind),
        };
        let payload = held.map(RecordRef::payload);
        if kind == RecordKind::RELAY {
            let row = payload.and_then(|payload| rows::read::<RelayRow>(payload).ok());
            let mut row = row.filter(|row| RelayId::of(&self.mesh, &row.name) == origin);
            if let Some(row) = &mut row {
                row.addresses.truncate(limits::RELAY_ADDRESSES);
                row.addresses.retain(|address| address.len() <= limits::RELAY_ADDRESS_BYTES);
                truncate(&mut row.software, limits::SOFTWARE_BYTES);
            }
            if relay.row != row {
                if let Some(row) = &row {
                    relay.name = Some(row.name.clone());
                }
                relay.row = row;
                self.outputs.push_back(Output::ContactsChanged);
            }
        } else if kind == RecordKind::LINKS {
            let mut links: LinksRow =
                payload.and_then(|payload| rows::read(payload).ok()).unwrap_or_default();
            links.links.truncate(limits::LINKS);
            if relay.links != links {
                relay.links = links;
                self.outputs.push_back(Output::LinksChanged(origin));
            }
        } else {
            let load: LoadRow =
                payload.and_then(|payload| rows::read(payload).ok()).unwrap_or_default();
            if relay.load.draining != load.draining {
                self.outputs.push_back(Output::ContactsChanged);
            }
            if relay.load != load {
                relay.load = load;
                self.outputs.push_back(Output::LoadChanged(origin));
            }
        }
        self.drop_if_empty(origin);
    }

    fn drop_if_empty(&mut self, id: RelayId) {
        if self.relays.get(&id).is_some_and(Relay::is_empty) {
            self.relays.remove(&id);
        }
    }

    /// An attachment came or changed: does it supersede one here?
    fn attachment(&mut self, new: RecordRef<'_>, table: &Table) {
        if new.origin() == self.me {
            return;
        }
        let Some(here) = table.get(self.me, RecordKind::ATTACHMENT, new.key()) else { return };
        if here.is_tombstone() {
            return;
        }
        let read = |payload: &[u8]| rows::read::<AttachmentRow>(payload).ok();
        let (Some(here), Some(there)) = (read(here.payload()), read(new.payload())) else { return };
        if (there.epoch, there.instance) <= (here.epoch, here.instance)
            || there.epoch.0.saturating_sub(here.epoch.0) > limits::EPOCH_JUMP
        {
            return;
        }
        let Some(key) = table.authority_row(RecordKind::ACCOUNT, new.key()).and_then(key_in) else {
            return;
        };
        let there = there.attestation(new.origin());
        let holder = Holder { id: new.key(), key };
        if !self.attested.borrow_mut().is_genuine(&holder, &there, &mut 1) {
            return;
        }
        let id = std::str::from_utf8(new.key()).ok().and_then(|word| TerminalId::new(word).ok());
        if let Some(terminal) = id {
            self.outputs.push_back(Output::NewerLogin { terminal, there });
        }
    }

    /// The account of a terminal changed, perhaps its key: is one that is attached here superseded by what could not be
    /// proven before?
    fn attachments_elsewhere(&mut self, key: &[u8], table: &Table) {
        let here = table.get(self.me, RecordKind::ATTACHMENT, key);
        if here.is_none_or(RecordRef::is_tombstone) {
            return;
        }
        let elsewhere: Vec<Record> =
            table.live(RecordKind::ATTACHMENT, key).map(RecordRef::to_record).collect();
        for record in elsewhere {
            self.attachment(record.by_ref(), table);
        }
    }

    /// How often an attachment was found that its terminal had not signed.
    pub fn forged_attachments(&self) -> u64 {
        self.attested.borrow().found_forged()
    }

    /// Whether a key was revoked.
    pub fn is_revoked(&self, key: &KeyFingerprint) -> bool {
        self.revoked.contains(key)
    }

    /// All revoked keys.
    pub fn revoked(&self) -> impl Iterator<Item = KeyFingerprint> + '_ {
        self.revoked.iter().copied()
    }

    /// The relay's name.
    pub fn name_of(&self, relay: RelayId) -> Option<RelayName> {
        self.relays.get(&relay).and_then(|relay| relay.name.clone())
    }

    /// Where a relay says that it can be dialled: `HOST:PORT`, UDP.
    pub fn addresses_of(&self, relay: RelayId) -> &[String] {
        self.relays.get(&relay).map_or(&[], Relay::addresses)
    }

    /// The account of a relay that joined.
    pub fn account_of_relay(&self, relay: RelayId) -> Option<&RelayAccountRow> {
        self.relays.get(&relay).and_then(|relay| relay.account.as_ref())
    }

    /// Whether a path over live links leads to this relay.
    pub fn is_reachable(&self, relay: RelayId) -> bool {
        self.reachable.contains(&relay)
    }

    /// The links that each relay says it has, ordered by relay.
    pub fn links(&self) -> impl Iterator<Item = (RelayId, &LinksRow)> + '_ {
        self.relays.iter().map(|(id, relay)| (*id, &relay.links))
    }

    /// The relay with the registrar role, as far as the authority's rows say.
    pub fn registrar(&self) -> Option<RelayId> {
        let is_registrar = |relay: &Relay| relay.account.as_ref().is_some_and(|a| a.registrar);
        self.relays.iter().find(|(_, relay)| is_registrar(relay)).map(|(id, _)| *id)
    }

    /// The links that a relay says it has.
    pub fn links_of(&self, relay: RelayId) -> &LinksRow {
        static NONE: LinksRow = LinksRow { links: Vec::new() };
        self.relays.get(&relay).map_or(&NONE, |relay| &relay.links)
    }

    /// The load of a relay.
    pub fn load(&self, relay: RelayId) -> LoadRow {
        self.relays.get(&relay).map_or_else(LoadRow::default, |relay| relay.load)
    }

    /// How to reach every relay that ever joined, ordered by name.
    pub fn contacts(&self) -> Vec<RelayContact> {
        let mut contacts: Vec<RelayContact> = self
            .relays
            .values()
            .filter_map(|relay| {
                Some(RelayContact {
                    name: relay.name.clone()?,
                    addresses: relay.addresses().to_vec(),
                    draining: relay.load.draining,
                })
            })
            .collect();
        contacts.sort_by(|a, b| a.name.cmp(&b.name));
        contacts
    }

    /// Every relay, reachable or not, ordered by name.
    pub fn relays(&self) -> Vec<RelayView> {
        let mut views: Vec<RelayView> =
            self.relays.iter().filter_map(|(id, relay)| self.relay_view(*id, relay)).collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        views
    }

    /// One relay, reachable or not.
    pub fn relay(&self, id: RelayId) -> Option<RelayView> {
        self.relays.get(&id).and_then(|relay| self.relay_view(id, relay))
    }

    /// How many relays there are.
    pub fn relay_counts(&self) -> RelayCounts {
        let mut counts = RelayCounts::default();
        for (id, relay) in self.relays.iter().filter(|(_, relay)| relay.name.is_some()) {
            counts.total += 1;
            counts.reachable += u64::from(self.is_reachable(*id));
            counts.draining += u64::from(relay.load.draining);
        }
        counts
    }

    fn relay_view(&self, id: RelayId, relay: &Relay) -> Option<RelayView> {
        let mut links: Vec<RelayLinkView> = relay
            .links
            .links
            .iter()
            .filter_map(|link| {
                Some(RelayLinkView { relay: self.name_of(link.peer)?, rtt_us: link.rtt_us })
            })
            .collect();
        links.sort_by(|a, b| a.relay.cmp(&b.relay));
        let registered = relay.account.as_ref().map_or(0, |account| account.registered_ms);
        Some(RelayView {
            id: id.to_string(),
            name: relay.name.clone()?,
            addresses: relay.addresses().to_vec(),
            version: relay.row.as_ref().map(|row| row.software.clone()).unwrap_or_default(),
            registrar: relay.account.as_ref().is_some_and(|account| account.registrar),
            reachable: self.is_reachable(id),
            draining: relay.load.draining,
            terminals: relay.attached,
            links,
            updated_at: relay.updated.values().copied().max().unwrap_or(registered),
        })
    }

    /// The size of the table, and its hash.
    pub fn table_view(&self, table: &Table) -> TableView {
        TableView {
            rows: table.len(),
            relays: self.relays.values().filter(|relay| relay.name.is_some()).count(),
            terminals: self.terminals.len(),
            hash: format!("{:016x}", table.hash()),
        }
    }
}
