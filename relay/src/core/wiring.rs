//! How the relay's cores feed each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::{SmallRng, StdRng};
use rand::{Rng, SeedableRng};
use tasuki_proto::control::{self, RelayContact, ToRelay, ToTerminal};
use tasuki_proto::identity::KeyFingerprint;
use tasuki_proto::mesh::{ToPeer, Twin};
use tasuki_proto::record::{Record, RecordKind};
use tasuki_proto::rows::{self, LoadRow, RelayRow};
use tasuki_proto::{
    Generation, Incarnation, Refusal, RefusalCode, RelayId, RelayName, TerminalId, limits, version,
};

use super::bucket::Bucket;
use super::changes::{Changes, Key};
use super::directory::{self, Directory};
use super::gossip::table::Table;
use super::gossip::{self, Gossip};
use super::history::History;
use super::links::{self, Links};
use super::lists::Lists;
use super::login::{self, Known, Login};
use super::routes::{self, Routes};
use super::selftest::SelfTest;
use super::sessions::{self, HopId, Neighbour, Place, Sessions};
use super::twins::Twins;
use super::{Config, ConnId, LinkId, Output, Relay};

/// A departed terminal's row is remembered as gone for this long, s.
const GONE_SECS: u32 = 300;
/// This relay's load is written at most this often.
const LOAD_PERIOD: Duration = Duration::from_secs(1);
/// Updates over which gossip's lag is shown.
const LAG_SAMPLES: usize = 1000;

/// How long the sessions of a link that was closed as a duplicate wait for the link that stays.
const ORPHAN: Duration = Duration::from_secs(2);

/// What is left of a link that was closed as a duplicate.
#[derive(Debug)]
pub(super) struct Orphan {
    link: LinkId,
    incarnation: Incarnation,
    pub(super) until: Instant,
    /// What its sessions had to say meanwhile, at most [`limits::LINK_QUEUE`] messages.
    unsaid: Vec<ToPeer>,
}

/// When this relay's load is written.
#[derive(Debug, Default)]
pub(super) struct Load {
    written: LoadRow,
    wanted: LoadRow,
    not_before: Option<Instant>,
}

impl Load {
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (self.wanted != self.written).then_some(self.not_before).flatten()
    }
}

/// `count` with its two highest digits, so that it does not change with every terminal.
pub(super) fn rounded(count: usize) -> u32 {
    let mut unit = 1;
    while count / unit >= 100 {
        unit *= 10;
    }
    u32::try_from(count / unit * unit).unwrap_or(u32::MAX)
}

/// The authority's record of a revoked key, whose signature the directory has seen.
fn revocation(table: &Table, key: &KeyFingerprint) -> Option<Record> {
    let row = table.get(RelayId::AUTHORITY, RecordKind::REVOCATION, &key.0)?;
    (!row.is_tombstone()).then(|| row.to_record())
}

impl Relay {
    /// A relay that knows nothing but itself; its own rows are written at once.
    pub fn new(config: Config, now: Instant) -> Self {
        let own = RelayId::of(&config.mesh_id, &config.name);
        let mut rng = StdRng::from_seed(config.seed);
        let (mesh, seed) = (config.mesh_id, rng.random());
        let signer = config.signer.clone();
        let mut gossip =
            Gossip::new(gossip::Config::new(own, config.incarnation, mesh, signer, seed), now);
        let (term, key) = config.authority;
        gossip.handle(gossip::Input::AuthorityKey(term, key), now);
        let mut relay = Self {
            own,
            gossip,
            directory: Directory::new(own, mesh, rng.random()),
            links: Links::new(own, config.links.clone(), SmallRng::from_rng(&mut rng)),
            routes: Routes::new(own),
            login: Login::new(own, mesh, config.name.clone(), config.terminals),
            sessions: Sessions::new(own, config.sessions, rng.random()),
            lists: Lists::default(),
            selftest: SelfTest::new(&config.addresses, rng.random(), now),
            peers: BTreeMap::new(),
            link_by_relay: BTreeMap::new(),
            orphan_by_relay: BTreeMap::new(),
            contacts_changed: false,
            contacts_untold: false,
            contacts_rate: Bucket::full(limits::CONTACTS_AT_ONCE, now),
            contacts_due: None,
            contacts: Vec::new(),
            registrar: (None, None),
            load: Load::default(),
            ends_at: None,
            stopping: false,
            lag_ms: VecDeque::new(),
            changes: Changes::default(),
            history: History::default(),
            twins: Twins::default(),
            outputs: VecDeque::new(),
            config,
        };
        let row = RelayRow {
            name: relay.config.name.clone(),
            addresses: relay.config.addresses.clone(),
            registrar: relay.config.registrar,
            software: version::SOFTWARE.to_owned(),
        };
        let wall_ms = relay.config.started_ms;
        relay.write(RecordKind::RELAY, &[], Some(rows::payload(&row)), now, wall_ms);
        let load = rows::payload(&LoadRow::default());
        relay.write(RecordKind::LOAD, &[], Some(load), now, wall_ms);
        relay.links.handle(links::Input::Timeout, now);
        relay.settle(now, wall_ms);
        relay
    }

    /// Writes one of this relay's own rows, or that it is gone.
    fn write(
        &mut self,
        kind: RecordKind,
        key: &[u8],
        payload: Option<Bytes>,
        now: Instant,
        wall_ms: u64,
    ) {
        let lifetime_secs = if payload.is_none() { GONE_SECS } else { 0 };
        let key = Bytes::copy_from_slice(key);
        let write = gossip::Write { kind, key, payload, lifetime_secs, wall_ms, scope: 0 };
        self.gossip.handle(gossip::Input::Write(write), now);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        let due = |timeout: Option<Instant>| timeout.is_some_and(|due| due <= now);
        if due(self.gossip.poll_timeout()) {
            self.gossip.handle(gossip::Input::Tick, now);
        }
        if due(self.links.poll_timeout()) {
            self.links.handle(links::Input::Timeout, now);
        }
        if due(self.login.poll_timeout()) {
            self.login.handle_timeout(now);
        }
        self.answer_lists(now);
        if due(self.selftest.poll_timeout()) {
            self.selftest.handle_timeout(now, wall_ms);
        }
        if due(self.sessions.poll_timeout()) {
            self.sessions.handle_timeout(now, wall_ms);
        }
        let late = |orphan: &Orphan| orphan.until <= now;
        let lost: Vec<RelayId> = self
            .orphan_by_relay
            .iter()
            .filter(|(_, orphan)| late(orphan))
            .map(|(relay, _)| *relay)
            .collect();
        for relay in lost {
            self.lose_orphan(relay, now, wall_ms);
        }
    }

    /// A link that counted is closed as a duplicate: its sessions wait for the one that stays. Both ends close it,
    /// and either may hear of that before the other link is up.
    pub(super) fn orphan_link(&mut self, link: LinkId, now: Instant) {
        let Some(peer) = self.peers.get(&link) else { return };
        if self.link_by_relay.get(&peer.relay) != Some(&link) {
            return;
        }
        let (relay, incarnation) = (peer.relay, peer.incarnation);
        self.link_by_relay.remove(&relay);
        self.selftest.handle_down(link);
        self.gossip.handle(gossip::Input::LinkDown(link), now);
        let orphan = Orphan { link, incarnation, until: now + ORPHAN, unsaid: Vec::new() };
        self.orphan_by_relay.insert(relay, orphan);
    }

    fn lose_orphan(&mut self, relay: RelayId, now: Instant, wall_ms: u64) {
        if let Some(orphan) = self.orphan_by_relay.remove(&relay) {
            let lost = Neighbour::Link(orphan.link);
            self.sessions.handle(sessions::Input::Lost(lost, RefusalCode::RouteLost), now, wall_ms);
        }
    }

    /// The link that stays takes over the sessions of the one that was closed, unless the peer restarted.
    fn adopt_orphan(&mut self, link: LinkId, now: Instant, wall_ms: u64) {
        let Some(peer) = self.peers.get(&link) else { return };
        let (relay, incarnation) = (peer.relay, peer.incarnation);
        match self.orphan_by_relay.get(&relay) {
            Some(orphan) if orphan.incarnation == incarnation => {
                let Some(orphan) = self.orphan_by_relay.remove(&relay) else { return };
                let (from, to) = (Neighbour::Link(orphan.link), Neighbour::Link(link));
                self.sessions.handle(sessions::Input::Moved { from, to }, now, wall_ms);
                let unsaid = orphan.unsaid.into_iter();
                self.outputs.extend(unsaid.map(|message| Output::ToPeer(link, message)));
            }
            Some(_) => self.lose_orphan(relay, now, wall_ms),
            None => {}
        }
    }

    /// A link that counted is gone, and with it the paths over it.
    pub(super) fn lose_link(&mut self, link: LinkId, now: Instant, wall_ms: u64) {
        let Some(peer) = self.peers.remove(&link) else { return };
        if self.link_by_relay.get(&peer.relay) == Some(&link) {
            self.link_by_relay.remove(&peer.relay);
            tracing::info!(relay = %peer.name, "link lost");
            self.selftest.handle_down(link);
            self.gossip.handle(gossip::Input::LinkDown(link), now);
            let lost = sessions::Input::Lost(Neighbour::Link(link), RefusalCode::RouteLost);
            self.sessions.handle(lost, now, wall_ms);
        }
    }

    pub(super) fn handle_terminal(
        &mut self,
        conn: ConnId,
        message: ToRelay,
        now: Instant,
        wall_ms: u64,
    ) {
        let from = Neighbour::Terminal(conn);
        let input = match message {
            ToRelay::Hello(hello) => {
                self.login.set_given_way(self.has_given_way());
                let known = self.known(conn);
                self.login.handle(login::Input::Hello(conn, hello, known), now, wall_ms);
                return;
            }
            ToRelay::Login(login) => {
                let known = self.known(conn);
                self.login.handle(login::Input::Login(conn, login, known), now, wall_ms);
                return;
            }
            ToRelay::Logout(_) => {
                self.login.handle(login::Input::Logout(conn), now, wall_ms);
                return;
            }
            ToRelay::List(list) => {
                if let Some((terminal, _)) = self.login.terminal_of(conn) {
                    self.lists.handle(conn, terminal, list, now);
                    self.answer_lists(now);
                }
                return;
            }
            ToRelay::Ping(ping) => {
                self.outputs.push_back(Output::ToTerminal(conn, ToTerminal::Pong(ping)));
                return;
            }
            ToRelay::Call(call) => {
                let Some((caller, address)) = self.login.terminal_of(conn) else { return };
                let caller = caller.clone();
                let place = self.place(&call.target);
                sessions::Input::Call { from: conn, caller, address, call, place }
            }
            ToRelay::Accept(accept) => {
                let address = self.login.terminal_of(conn).map(|(_, address)| address);
                let hop = HopId { session: accept.session, generation: Generation::CALL };
                sessions::Input::Accept { from, hop, label: accept.label, address }
            }
            ToRelay::Refuse(refused) => sessions::Input::Refuse { from, refused },
            ToRelay::End(end) => sessions::Input::End { from, end },
            ToRelay::Resume(resume) => {
                let Some((caller, _)) = self.login.terminal_of(conn) else { return };
                let caller = caller.clone();
                let place = self.place_apart(&resume.target, &resume.avoid);
                sessions::Input::Resume { from: conn, caller, resume, place }
            }
            ToRelay::AcceptPath(accept) => {
                let hop = HopId { session: accept.session, generation: accept.generation };
                sessions::Input::Accept { from, hop, label: accept.label, address: None }
            }
            ToRelay::EndPath(end) => sessions::Input::EndPath { from, end },
            ToRelay::PathReport(report) => sessions::Input::PathReport { from: conn, report },
        };
        self.sessions.handle(input, now, wall_ms);
    }

    fn known(&mut self, conn: ConnId) -> Known {
        let Some(terminal) = self.login.connected(conn).cloned() else { return Known::default() };
        let account = self.directory.account_of(self.gossip.table(), &terminal);
        Known {
            key: account.and_then(|account| account.key),
            highest: self.directory.highest_login(self.gossip.table(), &terminal),
        }
    }

    /// Answers the lists whose turn has come.
    fn answer_lists(&mut self, now: Instant) {
        while let Some((conn, list)) = self.lists.poll_due(now) {
            let limit = usize::from(list.limit).clamp(1, limits::PAGE);
            let (table, after) = (self.gossip.table(), list.after.as_ref());
            let (items, next) = self.directory.list(table, &list.filter, after, limit);
            let page = control::Page { request: list.request, items, next };
            self.outputs.push_back(Output::ToTerminal(conn, ToTerminal::Page(page)));
        }
    }

    /// Where a target is, and the way there (C7): by this relay's own table, without asking anybody.
    pub(super) fn place(&mut self, target: &TerminalId) -> Result<Place, Refusal> {
        let relay = self.where_is(target, RefusalCode::UnknownTarget)?;
        let route = self.routes.route(self.own, relay).ok_or_else(|| {
            let far = self.routes.is_reachable(relay);
            let code = if far { RefusalCode::HopLimit } else { RefusalCode::TargetUnreachable };
            Refusal::new(code, target.as_str())
        })?;
        self.place_by(route, target)
    }

    /// One more way to the callee of a running session, over any of its relays: with the fewest of the relays that
    /// its other path takes, among those the cheapest.
    fn place_apart(&mut self, target: &TerminalId, avoid: &[RelayName]) -> Result<Place, Refusal> {
        let first = self.where_is(target, RefusalCode::UnknownTarget)?;
        let avoid: BTreeSet<RelayId> =
            avoid.iter().take(limits::ROUTE_RELAYS).map(|name| self.id_of(name)).collect();
        let locations = self.directory.locations(self.gossip.table(), target);
        let relays = locations.iter().map(|location| location.relay).chain([first]);
        let routes = relays.filter_map(|relay| self.routes.route_apart(self.own, relay, &avoid));
        let best = routes.min_by_key(|(shared, cost, _)| (*shared, *cost));
        let (_, _, route) =
            best.ok_or_else(|| Refusal::new(RefusalCode::TargetUnreachable, target.as_str()))?;
        self.place_by(route, target)
    }

    fn place_by(&self, route: Vec<RelayId>, target: &TerminalId) -> Result<Place, Refusal> {
        let names = route.iter().filter_map(|&relay| self.directory.name_of(relay)).collect();
        let next = self.next_hop(&route, 0, target)?;
        Ok(Place { route, names, next })
    }

    /// The neighbour behind position `at` of a route.
    fn next_hop(
        &self,
        route: &[RelayId],
        at: usize,
        target: &TerminalId,
    ) -> Result<Neighbour, Refusal> {
        match route.get(at + 1) {
            Some(relay) => self
                .link_by_relay
                .get(relay)
                .map(|&link| Neighbour::Link(link))
                .ok_or_else(|| RefusalCode::RouteLost.into()),
            None => self
                .login
                .conn_of(target)
                .map(Neighbour::Terminal)
                .ok_or_else(|| Refusal::new(RefusalCode::TargetLoggedOut, target.as_str())),
        }
    }

    pub(super) fn handle_peer(
        &mut self,
        link: LinkId,
        message: ToPeer,
        now: Instant,
        wall_ms: u64,
    ) {
        let Some(peer) = self.peers.get(&link) else { return };
        // What a link that was replaced still says counts as said by the one that stayed.
        let link = self.link_by_relay.get(&peer.relay).copied().unwrap_or(link);
        let from = Neighbour::Link(link);
        let input = match message {
            // Said once, before the link was handed over.
            ToPeer::Hello(_) => return,
            ToPeer::Twin(twin) => return self.handle_twin(link, twin, now, wall_ms),
            ToPeer::Call(call) => {
                let next = match call.route.first() {
                    // The session's id says where its call began.
                    Some(first) if *first == call.session.edge => {
                        self.check_route(peer.relay, (&call.route, &call.names), &call.target)
                    }
                    _ => Err(RefusalCode::BadRequest.into()),
                };
                sessions::Input::Routed { from: link, call, next }
            }
            ToPeer::Accept(accept) => {
                let hop = HopId { session: accept.session, generation: Generation::CALL };
                let (label, address) = (accept.label, accept.callee_address);
                sessions::Input::Accept { from, hop, label, address }
            }
            ToPeer::Refuse(refused) => sessions::Input::Refuse { from, refused },
            ToPeer::End(end) => sessions::Input::End { from, end },
            ToPeer::Resume(resume) => {
                let way = (&resume.route[..], &resume.names[..]);
                let next = self.check_route(peer.relay, way, &resume.target);
                sessions::Input::RoutedResume { from: link, resume, next }
            }
            ToPeer::Resumed(resumed) => {
                let hop = HopId { session: resumed.session, generation: resumed.generation };
                sessions::Input::Accept { from, hop, label: resumed.label, address: None }
            }
            ToPeer::EndPath(end) => sessions::Input::EndPath { from, end },
            ToPeer::TryAddress(wanted) => return self.handle_try_address(link, wanted, now),
            ToPeer::Tried(tried) => return self.selftest.handle_tried(link, tried, now),
        };
        self.sessions.handle(input, now, wall_ms);
    }

    /// Whether a call or path may come from this peer by its route: this relay stands on it right behind the peer, and
    /// nobody stands on it twice.
    fn check_route(
        &self,
        peer: RelayId,
        (route, names): (&[RelayId], &[RelayName]),
        target: &TerminalId,
    ) -> Result<Neighbour, Refusal> {
        if route.len() > limits::ROUTE_RELAYS || names.len() > limits::ROUTE_RELAYS {
            return Err(RefusalCode::HopLimit.into());
        }
        let at = route.iter().position(|&relay| relay == self.own);
        let twice = route.iter().enumerate().any(|(n, relay)| route[..n].contains(relay));
        match at {
            Some(at) if at > 0 && route[at - 1] == peer && !twice => {
                self.next_hop(route, at, target)
            }
            _ => Err(RefusalCode::BadRequest.into()),
        }
    }

    /// Feeds the cores with each other's outputs until all are quiet.
    pub(super) fn settle(&mut self, now: Instant, wall_ms: u64) {
        loop {
            if let Some(output) = self.gossip.poll_output() {
                self.on_gossip(output, wall_ms);
            } else if let Some(output) = self.links.poll_output() {
                self.on_links(output, now, wall_ms);
            } else if self.on_reachable(now, wall_ms) {
            } else if let Some(output) = self.directory.poll_output() {
                self.on_directory(output, now, wall_ms);
            } else if let Some(output) = self.login.poll_output() {
                self.on_login(output, now, wall_ms);
            } else if let Some(output) = self.sessions.poll_output() {
                self.on_sessions(output, now, wall_ms);
            } else if let Some(session) = self.sessions.poll_changed() {
                self.changes.push(Key::Session(session));
            } else if self.on_selftest() {
            } else if self.contacts_changed {
                self.contacts_changed = false;
                self.take_contacts(now);
            } else if self.contacts_untold && self.may_tell_contacts(now) {
                self.contacts_untold = false;
                self.tell_contacts();
            } else if !self.write_load(now, wall_ms) {
                break;
            }
        }
        self.find_registrar();
    }

    /// Keeps the way to the registrar.
    fn find_registrar(&mut self) {
        if self.config.registrar {
            return;
        }
        let Some(registrar) = self.directory.registrar() else { return };
        let name = self.directory.name_of(registrar);
        let by = self
            .routes
            .route(self.own, registrar)
            .and_then(|route| self.link_by_relay.get(route.get(1)?).copied());
        if (&name, &by) != (&self.registrar.0, &self.registrar.1) {
            self.registrar = (name.clone(), by);
            self.outputs.push_back(Output::Registrar(name, by));
        }
    }

    fn on_gossip(&mut self, output: gossip::Output, wall_ms: u64) {
        match output {
            gossip::Output::Send(link, message) => {
                self.outputs.push_back(Output::Gossip(link, message));
            }
            gossip::Output::Changed { old, new } => {
                if let Some(record) = &new
                    && record.origin() != self.own
                    && record.origin() != RelayId::AUTHORITY
                {
                    if self.lag_ms.len() == LAG_SAMPLES {
                        self.lag_ms.pop_front();
                    }
                    let lag = wall_ms.saturating_sub(record.wall_ms());
                    self.lag_ms.push_back(u32::try_from(lag).unwrap_or(u32::MAX));
                }
                let table = self.gossip.table();
                self.directory.handle_change(old.as_ref(), new.as_ref(), table);
                self.note_row(old.as_ref(), new.as_ref(), wall_ms);
            }
            gossip::Output::Verified(record) => self.outputs.push_back(Output::Persist(record)),
            gossip::Output::AuthorityHead(head) => {
                self.outputs.push_back(Output::PersistHead(head))
            }
            gossip::Output::Cut(link, code) => {
                self.outputs.push_back(Output::CloseLink(link, code));
            }
            gossip::Output::UnknownTerm(term) => self.outputs.push_back(Output::UnknownTerm(term)),
            gossip::Output::OwnIncarnation(incarnation) => {
                self.outputs.push_back(Output::Incarnation(incarnation));
            }
        }
    }

    fn on_links(&mut self, output: links::Output, now: Instant, wall_ms: u64) {
        match output {
            links::Output::Dial { peer, name, addresses } => {
                self.outputs.push_back(Output::Dial { relay: peer, name, addresses });
            }
            links::Output::Close(link, code) => {
                self.outputs.push_back(Output::CloseLink(link, code));
                if code == RefusalCode::DuplicateLink {
                    // It may have something to say until it is closed.
                    self.orphan_link(link, now);
                } else {
                    self.lose_link(link, now, wall_ms);
                }
            }
            links::Output::Accepted(link, _) => {
                let Some(peer) = self.peers.get(&link) else { return };
                tracing::info!(relay = %peer.name, address = %peer.address, "link up");
                self.link_by_relay.insert(peer.relay, link);
                self.selftest.handle_up(link, peer.name.clone(), now);
                self.gossip.handle(gossip::Input::LinkUp(link, peer.relay), now);
                self.adopt_orphan(link, now, wall_ms);
            }
            links::Output::Twins { kept, refused } => self.on_twins(kept, refused, now, wall_ms),
            links::Output::GivenWay(by) => {
                let what = format!(
                    "another process with this relay's identity is linked with {by}: this one gives way"
                );
                if self.twins.note(self.config.name.clone(), what, now, wall_ms) {
                    tracing::warn!(%by, "another process with this relay's identity is linked in this one's place");
                }
                self.login.set_given_way(self.has_given_way());
            }
            links::Output::Announce(row) => {
                self.write(RecordKind::LINKS, &[], Some(rows::payload(&row)), now, wall_ms);
            }
        }
    }

    /// Whether another process with this relay's identity is linked in its place, and this one is linked with nobody.
    pub(super) fn has_given_way(&self) -> bool {
        self.links.is_cut_off() && self.links.has_given_way()
    }

    /// Two processes have the identity of a neighbour.
    fn on_twins(&mut self, kept: LinkId, refused: LinkId, now: Instant, wall_ms: u64) {
        let (Some(one), Some(other)) = (self.peers.get(&kept), self.peers.get(&refused)) else {
            return;
        };
        let (name, kept_at, address) = (one.name.clone(), one.address, other.address);
        let told = ToPeer::Twin(Twin { address });
        self.outputs.push_back(Output::ToPeer(kept, told));
        let what = format!("the one at {kept_at} is linked, the one at {address} was refused");
        if self.twins.note(name.clone(), what, now, wall_ms) {
            tracing::warn!(
                relay = %name, linked = %kept_at, refused = %address,
                "two processes run with the identity of one relay: stop one of them, and join it under its own name"
            );
        }
    }

    /// A neighbour says that another process has this relay's identity.
    fn handle_twin(&mut self, link: LinkId, twin: Twin, now: Instant, wall_ms: u64) {
        let Some(by) = self.peers.get(&link).map(|peer| peer.name.clone()) else { return };
        let address = twin.address;
        let what = format!("{by} refused another process with this relay's identity at {address}");
        if self.twins.note(self.config.name.clone(), what, now, wall_ms) {
            tracing::warn!(%by, %address, "another process with this relay's identity was refused");
        }
    }

    /// Tells which relays came within reach or left it, all at once; whether there were any.
    fn on_reachable(&mut self, now: Instant, wall_ms: u64) -> bool {
        let reached: Vec<_> = std::iter::from_fn(|| self.routes.poll_output()).collect();
        if reached.is_empty() {
            return false;
        }
        self.directory.set_reachable(self.routes.reachable());
        for one in reached {
            self.note_reachable(one, wall_ms);
            self.links.handle(links::Input::Reachable(one.relay, one.reachable), now);
        }
        self.gossip.handle(gossip::Input::Reachable(self.routes.reachable().clone()), now);
        true
    }

    fn on_directory(&mut self, output: directory::Output, now: Instant, wall_ms: u64) {
        match output {
            directory::Output::LinksChanged(relay) => {
                let row = self.directory.links_of(relay).clone();
                self.routes.handle(routes::Input::Links(relay, row), now);
            }
            directory::Output::LoadChanged(relay) => {
                let row = self.directory.load(relay);
                self.routes.handle(routes::Input::Load(relay, row), now);
            }
            directory::Output::ContactsChanged => self.contacts_changed = true,
            directory::Output::NewerLogin { terminal, there } => {
                self.login.handle(login::Input::Elsewhere(terminal, there), now, wall_ms);
            }
            directory::Output::RelayKey(relay, key) => {
                self.gossip.handle(gossip::Input::RelayKey(relay, key), now);
            }
            directory::Output::Revoked(key) => {
                self.outputs.push_back(Output::Revoked(key));
                self.login.handle(login::Input::Revoked(key), now, wall_ms);
                let relays: Vec<RelayId> =
                    self.peers.values().filter(|p| p.key == key).map(|p| p.relay).collect();
                for relay in relays {
                    let code = RefusalCode::Revoked;
                    self.links.handle(links::Input::Gone(relay, code), now);
                }
                for told in control::Revoked::of(revocation(self.gossip.table(), &key)) {
                    for conn in self.login.logged_in() {
                        let told = ToTerminal::Revoked(told.clone());
                        self.outputs.push_back(Output::ToTerminal(conn, told));
                    }
                }
            }
        }
    }

    fn on_login(&mut self, output: login::Output, now: Instant, wall_ms: u64) {
        match output {
            login::Output::Send(conn, message) => {
                self.outputs.push_back(Output::ToTerminal(conn, message));
            }
            login::Output::Close(conn, code) => {
                self.outputs.push_back(Output::CloseTerminal(conn, code));
            }
            login::Output::Attached(conn, terminal) => {
                tracing::info!(%terminal, "logged in");
                for relays in control::Relays::of(&self.directory.contacts()) {
                    self.outputs.push_back(Output::ToTerminal(conn, ToTerminal::Relays(relays)));
                }
                let table = self.gossip.table();
                let revoked = self.directory.revoked();
                for told in control::Revoked::of(revoked.filter_map(|key| revocation(table, &key)))
                {
                    self.outputs.push_back(Output::ToTerminal(conn, ToTerminal::Revoked(told)));
                }
            }
            login::Output::Detached(conn, terminal, code) => {
                if code == RefusalCode::Superseded {
                    tracing::warn!(%terminal, "another agent logged in with the same identity");
                } else {
                    tracing::info!(%terminal, %code, "logged out");
                }
                let lost = sessions::Input::Lost(Neighbour::Terminal(conn), code);
                self.sessions.handle(lost, now, wall_ms);
            }
            login::Output::Write(terminal, row) => {
                let key = terminal.as_str().as_bytes();
                let payload = Some(rows::payload(&row));
                self.write(RecordKind::ATTACHMENT, key, payload, now, wall_ms);
            }
            login::Output::Remove(terminal) => {
                let key = terminal.as_str().as_bytes();
                self.write(RecordKind::ATTACHMENT, key, None, now, wall_ms);
            }
        }
    }

    fn on_sessions(&mut self, output: sessions::Output, now: Instant, wall_ms: u64) {
        self.outputs.push_back(match output {
            sessions::Output::ToTerminal(conn, message) => Output::ToTerminal(conn, message),
            sessions::Output::OfferTerminal(conn, hop, message) => {
                Output::OfferTerminal(conn, hop, message)
            }
            sessions::Output::OfferPeer(link, hop, message) => {
                let mut orphans = self.orphan_by_relay.values_mut();
                match orphans.find(|orphan| orphan.link == link) {
                    Some(orphan) if orphan.unsaid.len() < limits::LINK_OFFERS => {
                        orphan.unsaid.push(message);
                        return;
                    }
                    Some(_) => {
                        self.sessions.handle(sessions::Input::NoRoom(hop), now, wall_ms);
                        return;
                    }
                    None => Output::OfferPeer(link, hop, message),
                }
            }
            sessions::Output::ToPeer(link, message) => {
                let mut orphans = self.orphan_by_relay.values_mut();
                match orphans.find(|orphan| orphan.link == link) {
                    Some(orphan) => {
                        if orphan.unsaid.len() < limits::LINK_QUEUE {
                            orphan.unsaid.push(message);
                        } else {
                            // As a link that is too slow: its sessions end at once.
                            orphan.until = now;
                        }
                        return;
                    }
                    None => Output::ToPeer(link, message),
                }
            }
            sessions::Output::Install(forwarding) => Output::Install(forwarding),
            sessions::Output::Remove(label) => Output::Remove(label),
            sessions::Output::Finished(finished) => Output::Finished(finished),
            sessions::Output::Communicating(conn, sessions) => {
                self.login.handle(login::Input::Communicating(conn, sessions), now, wall_ms);
                return;
            }
        });
    }

    pub(super) fn learn_contacts(&mut self, contacts: &[RelayContact], now: Instant) {
        for contact in contacts {
            let relay = self.id_of(&contact.name);
            if relay != self.own {
                let (name, addresses) = (contact.name.clone(), contact.addresses.clone());
                self.links.handle(links::Input::Known { relay, name, addresses }, now);
            }
        }
    }

    /// Whether all terminals may be told of the relays again: one relay that drains and does not, without end, is told of
    /// at a rate, and the last word is told when its time has come.
    fn may_tell_contacts(&mut self, now: Instant) -> bool {
        let (rate, burst) = (limits::CONTACTS_PER_SECOND, limits::CONTACTS_AT_ONCE);
        let may = self.contacts_rate.take(rate, burst, now);
        self.contacts_due = (!may).then(|| now + self.contacts_rate.wait(rate));
        may
    }

    /// The relays of the mesh changed.
    fn take_contacts(&mut self, now: Instant) {
        let relays = self.directory.contacts();
        if relays == self.contacts {
            return;
        }
        self.contacts.clone_from(&relays);
        self.learn_contacts(&relays, now);
        self.outputs.push_back(Output::Contacts(relays));
        self.contacts_untold = true;
    }

    /// Tells the terminals of the relays of the mesh.
    fn tell_contacts(&mut self) {
        let told = control::Relays::of(&self.contacts);
        for conn in self.login.logged_in() {
            let told = told.iter().cloned().map(ToTerminal::Relays);
            self.outputs.extend(told.map(|told| Output::ToTerminal(conn, told)));
        }
    }

    /// Writes this relay's load when it changed and its time has come; whether it did.
    fn write_load(&mut self, now: Instant, wall_ms: u64) -> bool {
        self.load.wanted =
            LoadRow { draining: self.login.is_draining(), terminals: rounded(self.login.len()) };
        // That it drains is said at once: others have to hear of it before it ends.
        let early = self.load.not_before.is_some_and(|at| at > now)
            && self.load.wanted.draining == self.load.written.draining;
        if self.load.wanted == self.load.written || early {
            return false;
        }
        self.load.written = self.load.wanted;
        self.load.not_before = Some(now + LOAD_PERIOD);
        let payload = Some(rows::payload(&self.load.written));
        self.write(RecordKind::LOAD, &[], payload, now, wall_ms);
        true
    }
}
