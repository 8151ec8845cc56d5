//! Runs the core: inputs in, outputs performed. It decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::Connection;
use rand::Rng;
use tasuki_proto::control::RelayContact;
use tasuki_proto::frame::NeighbourKey;
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::identity::{Identity, PublicKey, locked_out};
use tasuki_proto::mesh::{LinkHello, ToPeer};
use tasuki_proto::net::canonical;
use tasuki_proto::traces::{Place, Span, Traces};
use tasuki_proto::{Incarnation, Label, RefusalCode, RelayId, RelayName, limits, version};
use tokio::sync::{mpsc, oneshot, watch};

use super::endpoint::{Context, Endpoints};
use super::event::{Event, LinkUp, TerminalOrder, TerminalUp, Waiting};
use super::requests::Way;
use super::terminals::close;
use super::{links, selftest, store};
use crate::core::admin::{AdminReply, ForwardedView, SessionState, SessionView, StatusView};
use crate::core::sessions::{Finished, Forwarding, Neighbour as Next};
use crate::core::{ConnId, Input, LinkId, Output, Relay};
use crate::switch::{Address, Entry, Neighbour, Switch};

/// How long a link that another one replaced is still read.
const DUPLICATE_REST: Duration = Duration::from_millis(200);

/// What is to be kept.
#[derive(Debug)]
pub enum Keep {
    /// A row of the authority.
    Record(tasuki_proto::record::Record),
    /// The head that proves the rows of the authority before it.
    Head(tasuki_proto::gossip::Head),
    /// A session that is over.
    Session(Box<Finished>),
    /// This relay's incarnation.
    Incarnation(Incarnation),
    /// The answer to a command, once all before it is kept.
    Done(oneshot::Sender<AdminReply>),
}

struct Terminal {
    connection: Connection,
    orders: mpsc::Sender<TerminalOrder>,
    waiting: Arc<Mutex<Waiting>>,
    neighbour: Arc<Neighbour>,
}

impl Terminal {
    /// Hands over an order; an error if too many wait.
    fn order(&self, order: TerminalOrder) -> Result<(), ()> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.enter(&order) { self.orders.try_send(order).map_err(drop) } else { Err(()) }
    }
}

struct Link {
    connection: Connection,
    calls: mpsc::Sender<ToPeer>,
    gossip: mpsc::Sender<GossipMessage>,
    neighbour: Arc<Neighbour>,
    /// The handle of the peer's challenges to us.
    challenger: Label,
}

/// How the process is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// When everybody has left, within this time.
    Drained(Duration),
    /// At once.
    Now,
}

/// What every Hello to another relay says; the driver keeps the incarnation true.
#[derive(Debug)]
pub struct HelloMaker {
    /// Where this relay can be dialled.
    pub addresses: Vec<String>,
    /// Its incarnation.
    pub incarnation: AtomicU64,
    /// Which process it is, chosen at random.
    pub instance: u64,
}

impl HelloMaker {
    /// Hello, but for the handle, which each link has of its own.
    pub fn hello(&self) -> LinkHello {
        LinkHello {
            protocol: version::PROTOCOL,
            software: version::SOFTWARE.to_owned(),
            incarnation: Incarnation(self.incarnation.load(Ordering::Relaxed)),
            instance: self.instance,
            handle: Label::from_random(1),
            addresses: self.addresses.clone(),
        }
    }
}

/// Owns the core and performs what it says.
pub struct Driver {
    core: Relay,
    store: store::Store,
    context: Arc<Context>,
    endpoints: Endpoints,
    switch: Arc<Switch>,
    hello: Arc<HelloMaker>,
    way: Arc<Way>,
    terminals: HashMap<ConnId, Terminal>,
    conn_by_handle: HashMap<Label, ConnId>,
    links: BTreeMap<LinkId, Link>,
    replies: BTreeMap<u64, oneshot::Sender<AdminReply>>,
    next_reply: u64,
    contacts: watch::Sender<Vec<RelayContact>>,
    keep: mpsc::Sender<Keep>,
    traces: Traces,
    /// The core said that the process may end.
    over: bool,
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Driver {
    /// Ready to run. The task that keeps rows is started here and ends with the driver.
    pub fn new(
        core: Relay,
        context: Arc<Context>,
        (endpoints, switch): (Endpoints, Arc<Switch>),
        hello: Arc<HelloMaker>,
        way: Arc<Way>,
        (store, traces): (store::Store, Traces),
        contacts: watch::Sender<Vec<RelayContact>>,
    ) -> Self {
        let (keep, kept) = mpsc::channel(limits::STORE_BACKLOG);
        tokio::spawn(keep_all(store.clone(), kept));
        Self {
            store,
            core,
            context,
            endpoints,
            switch,
            hello,
            way,
            terminals: HashMap::new(),
            conn_by_handle: HashMap::new(),
            links: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_reply: 1,
            contacts,
            keep,
            traces,
            over: false,
        }
    }

    /// Runs until it is told to stop, or an operator has drained the relay; then says goodbye to everybody.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, mut stop: mpsc::Receiver<Stop>) {
        self.perform().await;
        while !self.over {
            let due = self.core.poll_timeout();
            tokio::select! {
                biased;
                told = stop.recv() => match told {
                    Some(Stop::Drained(within)) => self.give(Input::Stop(within)),
                    Some(Stop::Now) | None => break,
                },
                () = sleep_until(due) => self.give(Input::Timeout),
                event = events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => break,
                },
            }
            self.perform().await;
        }
        for terminal in self.terminals.values() {
            close(&terminal.connection, RefusalCode::ShuttingDown);
        }
        for link in self.links.values() {
            close(&link.connection, RefusalCode::ShuttingDown);
        }
    }

    fn give(&mut self, input: Input) {
        self.core.handle(input, Instant::now(), wall_ms());
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::TerminalUp(up) => self.terminal_up(*up),
            Event::Terminal(conn, message) => {
                if self.terminals.contains_key(&conn) {
                    self.give(Input::Terminal(conn, message));
                }
            }
            Event::TerminalDown(conn) => {
                if let Some(terminal) = self.terminals.remove(&conn) {
                    self.switch.table.remove_neighbour(terminal.neighbour.handle());
                    self.conn_by_handle.remove(&terminal.neighbour.handle());
                }
                self.give(Input::TerminalDown(conn));
            }
            Event::Moved(handle, to) => {
                if let Some(&conn) = self.conn_by_handle.get(&handle) {
                    self.give(Input::TerminalMoved(conn, canonical(to)));
                }
            }
            Event::LinkUp(up) => self.link_up(*up),
            Event::DialFailed(relay) => self.give(Input::DialFailed(relay)),
            Event::Peer(link, message) => self.give(Input::Peer(link, message)),
            Event::Gossip(link, message) => self.give(Input::Gossip(link, message)),
            Event::GossipSent(link) => self.give(Input::GossipSent(link)),
            Event::LinkRtt(link, us) => self.give(Input::LinkRtt(link, us)),
            Event::LinkDown(link, code) => {
                if let Some(gone) = self.links.remove(&link) {
                    self.switch.table.remove_neighbour(gone.neighbour.handle());
                    self.switch.table.remove_challenger(gone.challenger);
                }
                self.give(Input::LinkDown(link, code));
            }
            Event::Authority(record) => self.give(Input::Authority(record)),
            Event::Renewed(term, key) => self.give(Input::AuthorityKey(term, key)),
            Event::Knocked(label) => self.give(Input::Knocked(label)),
            Event::KnockSent(link, label, sent) => self.give(Input::KnockSent(link, label, sent)),
            Event::Settings(settings) => {
                let (links, limits) = *settings;
                for admission in [&self.context.terminals, &self.context.links] {
                    admission.set_per_address(limits.per_address);
                }
                self.switch.table.pace.set(limits.session_mbit_s);
                let (links, terminals, sessions) =
                    (links.choice(), limits.terminals, limits.sessions);
                self.give(Input::Settings { links, terminals, sessions });
            }
            Event::FromLedger(ticket, session, explain, found) => {
                let found = found.map(|view| *view);
                self.give(Input::FromLedger { ticket, session, explain, found });
            }
            Event::Admin((request, reply)) => {
                let ticket = self.next_reply;
                self.next_reply += 1;
                self.replies.insert(ticket, reply);
                self.give(Input::Admin(ticket, request));
            }
        }
    }

    fn terminal_up(&mut self, up: TerminalUp) {
        let handle = Label::from_random(rand::rng().random());
        let Some(neighbour) = neighbour(&up.connection, handle) else {
            return close(&up.connection, RefusalCode::ProtocolError);
        };
        self.switch.table.add_neighbour(neighbour.clone());
        let address = canonical(up.connection.remote_address());
        let (connection, orders, waiting) = (up.connection, up.orders, up.waiting);
        let terminal = Terminal { connection, orders, waiting, neighbour };
        self.terminals.insert(up.conn, terminal);
        self.conn_by_handle.insert(handle, up.conn);
        self.give(Input::TerminalUp {
            conn: up.conn,
            terminal: up.terminal,
            key: up.peer.key,
            address,
            handle,
        });
    }

    fn link_up(&mut self, up: LinkUp) {
        let (Some(neighbour), Some(key)) =
            (neighbour(&up.connection, up.handle), exported_key(&up.connection))
        else {
            return close(&up.connection, RefusalCode::ProtocolError);
        };
        self.switch.table.add_neighbour(neighbour.clone());
        self.switch.table.add_challenger(up.hello.handle, key);
        let address = canonical(up.connection.remote_address());
        let link = Link {
            connection: up.connection,
            calls: up.calls,
            gossip: up.gossip,
            neighbour,
            challenger: up.hello.handle,
        };
        self.links.insert(up.link, link);
        if let Some((term, key)) = up.authority
            && term > self.context.identity.get().authority_key().0
        {
            // The root certified a newer issuer than this relay's: its records count from here on.
            self.give(Input::AuthorityKey(term, PublicKey(key)));
            self.context.identity.renew_early();
        }
        self.give(Input::LinkUp {
            link: up.link,
            name: up.name,
            key: up.key,
            dialled_here: up.dialled_here,
            incarnation: up.hello.incarnation,
            instance: up.hello.instance,
            address,
        });
    }

    async fn perform(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::ToTerminal(conn, message) => {
                    self.order(conn, TerminalOrder::Say(Box::new(message)));
                }
                Output::CloseTerminal(conn, code) => self.order(conn, TerminalOrder::Close(code)),
                Output::OfferTerminal(conn, (hop, asker), message) => {
                    let offer = TerminalOrder::Offer(Box::new((asker, message)));
                    let terminal = self.terminals.get(&conn);
                    if terminal.is_none_or(|terminal| terminal.order(offer).is_err()) {
                        self.give(Input::NoRoom(hop));
                    }
                }
                Output::OfferPeer(link, hop, message) => {
                    let calls = self.links.get(&link).map(|link| &link.calls);
                    let waiting =
                        |calls: &&mpsc::Sender<_>| calls.max_capacity() - calls.capacity();
                    let sent = calls
                        .filter(|calls| waiting(calls) < limits::LINK_OFFERS)
                        .is_some_and(|calls| calls.try_send(message).is_ok());
                    if !sent {
                        self.give(Input::NoRoom(hop));
                    }
                }
                Output::ToPeer(link, message) => {
                    if let Some(link) = self.links.get(&link)
                        && link.calls.try_send(message).is_err()
                    {
                        close(&link.connection, RefusalCode::TooSlow);
                    }
                }
                Output::Gossip(link, message) => {
                    if let Some(link) = self.links.get(&link)
                        && link.gossip.try_send(message).is_err()
                    {
                        close(&link.connection, RefusalCode::TooSlow);
                    }
                }
                Output::CloseLink(link, code) => self.close_link(link, code),
                Output::Dial { relay, name, addresses } => self.dial(relay, name, addresses),
                Output::Install(forwarding) => self.install(forwarding),
                Output::Remove(label) => self.switch.table.remove(label),
                Output::Persist(record) => self.keep(Keep::Record(record)).await,
                Output::PersistHead(head) => self.keep(Keep::Head(head)).await,
                Output::Incarnation(incarnation) => {
                    self.hello.incarnation.store(incarnation.0, Ordering::Relaxed);
                    self.keep(Keep::Incarnation(incarnation)).await;
                }
                Output::UnknownTerm(term) => {
                    tracing::info!(
                        term = term.0,
                        "another issuer is heard of; asking for a certificate of it"
                    );
                    self.context.identity.renew_early();
                }
                Output::Revoked(key) => {
                    self.context.revoked.rcu(|keys| {
                        let mut keys = (**keys).clone();
                        keys.insert(key);
                        keys
                    });
                }
                Output::Contacts(contacts) => {
                    self.contacts.send_replace(contacts);
                }
                Output::Registrar(name, link) => self.set_way(name, link),
                Output::Finished(finished) => {
                    let identity = self.context.identity.get();
                    self.traces.note(|| span(&finished, &identity));
                    self.keep(Keep::Session(finished)).await;
                }
                Output::End => self.over = true,
                Output::ExpectKnock(label) => {
                    let events = self.context.events.clone();
                    // Where the inbox is full the knock counts as lost, and is tried again.
                    let heard = move || drop(events.try_send(Event::Knocked(label)));
                    self.switch.table.expect_knock(label, Box::new(heard));
                }
                Output::ForgetKnock(label) => self.switch.table.forget_knock(label),
                Output::Knock { link, address, label, loopback } => {
                    let (events, dialler) =
                        (self.context.events.clone(), self.context.dialler.clone());
                    tokio::spawn(async move {
                        let sent = selftest::knock(&dialler, &address, label, loopback).await;
                        let _ = events.send(Event::KnockSent(link, label, sent)).await;
                    });
                }
                Output::AskLedger { ticket, session, explain } => {
                    let (store, events) = (self.store.clone(), self.context.events.clone());
                    tokio::spawn(async move {
                        let found = store.session(session).await.unwrap_or_else(|error| {
                            tracing::warn!(%error, "the ledger could not be read");
                            None
                        });
                        let found = found.map(|entry| Box::new(ledger_view(entry)));
                        let _ =
                            events.send(Event::FromLedger(ticket, session, explain, found)).await;
                    });
                }
                Output::Reply(ticket, reply) => {
                    match (self.replies.remove(&ticket), *reply) {
                        (None, _) => {}
                        // What was done may be to be kept: whoever hears that it is done finds it after a crash too.
                        (Some(waiting), AdminReply::Done) => self.keep(Keep::Done(waiting)).await,
                        (Some(waiting), reply) => drop(waiting.send(self.complete(reply))),
                    }
                }
            }
        }
    }

    /// Adds to a status what only the switch knows.
    fn complete(&self, reply: AdminReply) -> AdminReply {
        match reply {
            AdminReply::Status(mut status) => {
                for (reason, count) in self.switch.drops.read() {
                    status.drops.insert(reason.to_owned(), count);
                }
                let inboxes = self.switch.links.dropped() + self.switch.terminals.dropped();
                status.drops.insert("endpoint-queue-full".to_owned(), inboxes);
                let made_up = self.switch.links.made_up() + self.switch.terminals.made_up();
                status.drops.insert("unknown-connection".to_owned(), made_up);
                for (reason, count) in self.context.requests.refused() {
                    status.drops.insert(reason.to_owned(), count);
                }
                status.labels = self.switch.table.len();
                let [to_callee, to_caller] = self.switch.traffic();
                status.forwarded = ForwardedView {
                    packets_to_callee: to_callee.0,
                    bytes_to_callee: to_callee.1,
                    packets_to_caller: to_caller.0,
                    bytes_to_caller: to_caller.1,
                };
                self.complete_certificate(&mut status);
                for admission in [&self.context.terminals, &self.context.links] {
                    let (handshakes, connections) = admission.len();
                    status.handshakes += handshakes;
                    status.connections += connections;
                    for (reason, count) in admission.refused() {
                        *status.drops.entry(reason.word().to_owned()).or_default() += count;
                        status.handshakes_refused += count;
                    }
                }
                AdminReply::Status(status)
            }
            reply => reply,
        }
    }

    async fn keep(&self, what: Keep) {
        if self.keep.send(what).await.is_err() {
            tracing::error!("the store has stopped; restart the relay and look at its disk");
        }
    }

    fn close_link(&self, link: LinkId, code: RefusalCode) {
        let Some(link) = self.links.get(&link) else { return };
        if code != RefusalCode::DuplicateLink {
            return close(&link.connection, code);
        }
        // The peer may be about to say something on it.
        let connection = link.connection.clone();
        tokio::spawn(async move {
            tokio::time::sleep(DUPLICATE_REST).await;
            close(&connection, code);
        });
    }

    fn order(&mut self, conn: ConnId, order: TerminalOrder) {
        let Some(terminal) = self.terminals.get(&conn) else { return };
        if terminal.order(order).is_err() {
            // It does not read: its task sees the closed connection and ends.
            close(&terminal.connection, RefusalCode::TooSlow);
        }
    }

    /// Adds how long the certificate lasts, and what keeps it from being renewed.
    fn complete_certificate(&self, status: &mut StatusView) {
        let cell = &self.context.identity;
        status.certificate_until = cell.get().not_after();
        status.renewal = cell.renewal_trouble();
        status.renewal_failures = cell.renewal_failures();
        let now = self.context.clock.now_secs();
        if let Some(why) = locked_out(status.certificate_until, status.renewal.as_ref(), now) {
            status.not_ready = Some(why.to_string());
        }
    }

    fn dial(&self, relay: RelayId, name: RelayName, addresses: Vec<String>) {
        let (endpoint, context) = (self.endpoints.links.clone(), self.context.clone());
        let hello = self.hello.hello();
        tokio::spawn(links::dial(endpoint, relay, name, addresses, hello, context));
    }

    /// Requests to the registrar leave over this link.
    fn set_way(&self, name: Option<RelayName>, link: Option<LinkId>) {
        let connection = link.and_then(|link| self.links.get(&link)).map(|l| l.connection.clone());
        self.way.set_next(name, connection);
    }

    fn install(&self, forwarding: Forwarding) {
        let (Some(from), Some(to)) = (self.next(forwarding.from), self.next(forwarding.to)) else {
            return;
        };
        let entry = Entry {
            from,
            to,
            label_out: forwarding.label_out,
            counters: forwarding.counters,
            to_callee: forwarding.to_callee,
        };
        self.switch.table.install(forwarding.label, entry);
    }

    /// The switch's view of a neighbour, told where its connection is.
    fn next(&self, next: Next) -> Option<Arc<Neighbour>> {
        let (connection, neighbour) = match next {
            Next::Terminal(conn) => {
                let terminal = self.terminals.get(&conn)?;
                (&terminal.connection, &terminal.neighbour)
            }
            Next::Link(link) => {
                let link = self.links.get(&link)?;
                (&link.connection, &link.neighbour)
            }
        };
        self.switch.table.hint(neighbour, address(connection));
        Some(neighbour.clone())
    }
}

fn address(connection: &Connection) -> Address {
    Address { remote: connection.remote_address(), local: connection.local_ip() }
}

fn exported_key(connection: &Connection) -> Option<NeighbourKey> {
    let mut material = [0; 32];
    connection
        .export_keying_material(&mut material, NeighbourKey::EXPORTER_LABEL, b"")
        .ok()
        .map(|()| NeighbourKey::new(&material))
}

fn neighbour(connection: &Connection, handle: Label) -> Option<Arc<Neighbour>> {
    let key = exported_key(connection)?;
    Some(Arc::new(Neighbour::new(handle, key, address(connection))))
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// What this relay saw of a session.
fn span(finished: &Finished, own: &Identity) -> Span {
    let view = &finished.view;
    let is_callers = own
        .relay_name()
        .is_some_and(|name| RelayId::of(&own.mesh_id(), name) == finished.session.edge);
    let place = if is_callers { Place::CallersRelay } else { Place::Other };
    Span {
        session: finished.session,
        place,
        began_ms: view.started_at,
        ended_ms: view.ended_at.unwrap_or(view.started_at),
        code: finished.code,
        attributes: vec![
            ("tasuki.caller", view.caller.as_str().into()),
            ("tasuki.callee", view.callee.as_str().into()),
            ("tasuki.service", view.service.as_str().into()),
            ("tasuki.path", view.path.as_str().into()),
            ("tasuki.route", view.route.iter().map(RelayName::as_str).collect()),
            ("tasuki.bytes_to_callee", view.bytes_to_callee.into()),
            ("tasuki.bytes_to_caller", view.bytes_to_caller.into()),
        ],
    }
}

fn ledger_entry(finished: Finished) -> store::FinishedSession {
    let view = finished.view;
    store::FinishedSession {
        id: finished.session,
        caller: view.caller,
        callee: view.callee,
        service: view.service,
        started_ms: view.started_at,
        ended_ms: view.ended_at.unwrap_or(view.started_at),
        code: finished.code,
        route: view.route,
        counters: store::Counters {
            bytes_to_callee: view.bytes_to_callee,
            packets_to_callee: view.packets_to_callee,
            bytes_to_caller: view.bytes_to_caller,
            packets_to_caller: view.packets_to_caller,
        },
    }
}

fn ledger_view(entry: store::FinishedSession) -> SessionView {
    SessionView {
        id: entry.id.to_string(),
        caller: entry.caller,
        callee: entry.callee,
        service: entry.service,
        state: SessionState::Ended,
        started_at: entry.started_ms,
        ended_at: Some(entry.ended_ms),
        reason: Some(entry.code.to_string()),
        route: entry.route,
        path: "relayed".to_owned(),
        bytes_to_callee: entry.counters.bytes_to_callee,
        packets_to_callee: entry.counters.packets_to_callee,
        bytes_to_caller: entry.counters.bytes_to_caller,
        packets_to_caller: entry.counters.packets_to_caller,
    }
}

/// Writes what is to be kept, in batches: one transaction for what waits.
async fn keep_all(store: store::Store, mut kept: mpsc::Receiver<Keep>) {
    let mut batch = Vec::new();
    // What the disk did not take is tried again with what comes next: a revocation must not be lost.
    let (mut owed, mut head) = (Vec::new(), None);
    while kept.recv_many(&mut batch, limits::STORE_BATCH).await > 0 {
        let (mut records, mut sessions, mut done) =
            (std::mem::take(&mut owed), Vec::new(), Vec::new());
        for keep in batch.drain(..) {
            match keep {
                Keep::Record(record) => records.push(record),
                Keep::Head(latest) => head = Some(latest),
                Keep::Session(finished) if !finished.edge => {}
                Keep::Session(finished) => sessions.push(ledger_entry(*finished)),
                Keep::Done(waiting) => done.push(waiting),
                Keep::Incarnation(incarnation) => {
                    if let Err(error) = store.raise_incarnation(incarnation).await {
                        tracing::error!(%error, "the incarnation could not be kept");
                    }
                }
            }
        }
        if let Err(error) = store.put_records(records.clone(), head).await {
            let excess = records.len().saturating_sub(limits::STORE_BACKLOG);
            tracing::error!(%error, left_out = excess, "rows of the authority could not be kept yet");
            // Gossip brings the oldest again after the next start, since the head does not fit without them.
            owed = records.split_off(excess);
        } else {
            head = None;
        }
        if let Err(error) = store.put_sessions(sessions).await {
            tracing::error!(%error, "finished sessions could not be kept");
        }
        for waiting in done {
            let _ = waiting.send(AdminReply::Done);
        }
    }
}
