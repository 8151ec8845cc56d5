//! The end-to-end connections of sessions: handshake over the session's own virtual address, proof of the peer,
//! and what is known of each.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{ClientConfig, Connection, Endpoint, Incoming, ServerConfig, TokioRuntime, VarInt};
use tasuki_proto::codec::Envelope;
use tasuki_proto::identity::{
    Clock, IdentityCell, KeyFingerprint, NodeName, Peer, connection_refusal, identify_connection,
    quinn_client_config, quinn_server_config,
};
use tasuki_proto::net::{
    CidClass, EndpointKeys, QueueSocket, attachment_transport, client_config, endpoint_config,
};
use tasuki_proto::path::PathKey;
use tasuki_proto::session::{PING, Use, Word};
use tasuki_proto::version::Alpn;
use tasuki_proto::{Generation, RefusalCode, SessionId, TerminalId, limits};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::Settings;
use crate::agent::{PathView, Releases, Session, SessionGuard, SessionView};
use crate::core::budget::Budget;
use crate::core::calls::{Calls, Opened, RequestId, SessionState};
use crate::core::handshakes::Handshakes;
use crate::core::paths::{self, DataCounts, PathId, Paths};
use crate::io::congestion::CurrentPath;
use crate::io::services::lanes::Desk;
use crate::io::socket::{Path, SessionSocket, Socket, SocketEvent, virtual_address};
use crate::io::transport;
use crate::io::turn::Runtime;

/// What the tasks of sessions tell.
#[derive(Debug)]
pub(super) enum SessionEvent {
    /// Somebody begins a handshake over a virtual address.
    Arrived(Box<Incoming>),
    /// The peer of a session is who it has to be.
    Proven { session: SessionId, connection: Connection, key: KeyFingerprint },
    /// The handshake failed, or the connection is over.
    Failed { session: SessionId, code: RefusalCode },
    /// The peer said something about the session.
    Word { session: SessionId, word: Word },
}

struct Entry {
    opened: Opened,
    address: SocketAddr,
    path: CurrentPath,
    started_ms: u64,
    /// Stops the handshake that is under way; it ends with the session.
    handshake: Option<AbortHandle>,
    connection: Option<Connection>,
    key: Option<KeyFingerprint>,
    ended: watch::Sender<Option<RefusalCode>>,
    lanes: Arc<Desk>,
    /// Since when the data takes its present path.
    path_since_ms: u64,
    /// What the peer is told, once there is something to tell.
    words: Option<watch::Sender<Words>>,
}

/// The latest of each kind of word to the peer.
#[derive(Debug, Clone, Default, PartialEq)]
struct Words {
    using: Option<Word>,
    addresses: Option<Word>,
    attachments: Option<Word>,
    nat: Option<Word>,
}

impl Words {
    fn set(&mut self, word: Word) {
        let slot = match word {
            Word::Use(_) => &mut self.using,
            Word::Addresses(_) => &mut self.addresses,
            Word::Attachments(_) => &mut self.attachments,
            Word::Nat(_) => &mut self.nat,
        };
        *slot = Some(word);
    }

    /// What is said here and was not said in `before`.
    fn since(&self, before: &Words) -> Vec<Word> {
        [
            (&self.using, &before.using),
            (&self.addresses, &before.addresses),
            (&self.attachments, &before.attachments),
            (&self.nat, &before.nat),
        ]
        .into_iter()
        .filter(|(now, before)| now != before)
        .filter_map(|(now, _)| now.clone())
        .collect()
    }
}

/// The opened sessions of this terminal.
pub(super) struct Sessions {
    me: TerminalId,
    socket: Arc<Socket>,
    endpoint: Endpoint,
    configs: Configs,
    identity: IdentityCell,
    clock: Clock,
    events: mpsc::Sender<SessionEvent>,
    handshakes: Handshakes,
    revoked: Arc<HashSet<KeyFingerprint>>,
    entries: BTreeMap<SessionId, Entry>,
    session_by_address: BTreeMap<SocketAddr, SessionId>,
    next_address: u64,
    doors: Doors,
}

/// The virtual addresses at which a peer may begin its handshake: once for each session that it called. A terminal
/// takes no second one, however many first packets arrive, so a session costs one handshake at most.
#[derive(Debug, Clone, Default)]
struct Doors(Arc<Mutex<HashSet<SocketAddr>>>);

impl Doors {
    fn lock(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, address: SocketAddr) {
        self.lock().insert(address);
    }

    /// Whether a handshake may begin there; the next one may not.
    fn enter(&self, address: &SocketAddr) -> bool {
        self.lock().remove(address)
    }

    fn close(&self, address: &SocketAddr) {
        self.lock().remove(address);
    }
}

/// What the connections of sessions have in common; each gets a transport of its own, with its congestion control.
#[derive(Debug)]
pub(super) struct Configs {
    client: ClientConfig,
    server: ServerConfig,
}

impl Configs {
    fn client(&self, path: &CurrentPath) -> ClientConfig {
        let mut config = self.client.clone();
        config.transport_config(transport::of(path));
        config
    }

    fn server(&self, path: &CurrentPath) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.transport_config(transport::of(path));
        Arc::new(config)
    }
}

/// One UDP socket, and the two endpoints over it: sessions, which sees only virtual addresses and so never a
/// stranger, and attachments, which only dials.
pub(super) fn open_endpoints(
    settings: &Settings,
    heard: mpsc::Sender<SocketEvent>,
) -> anyhow::Result<(Arc<Socket>, (Endpoint, Configs), Endpoint)> {
    let keys = EndpointKeys::random();
    let socket = Arc::new(Socket::bind(settings.listen, &keys, heard)?);
    let mut server = quinn_server_config(&settings.identity, &[Alpn::Session], &settings.clock)?;
    server
        .migration(false)
        .max_incoming(limits::SESSION_HANDSHAKES)
        .incoming_buffer_size(limits::INCOMING_HANDSHAKE_BYTES)
        .incoming_buffer_size_total(limits::INCOMING_TOTAL_BYTES);
    let client = quinn_client_config(&settings.identity, Alpn::Session, &settings.clock)?;
    let mut config = endpoint_config(CidClass::Terminals, &keys);
    config.max_udp_payload_size(transport::MOST)?;
    let sessions = Endpoint::new_with_abstract_socket(
        config,
        Some(server.clone()),
        Arc::new(SessionSocket(socket.clone())),
        Arc::new(Runtime(socket.clone())),
    )?;

    let mut attachments = Endpoint::new_with_abstract_socket(
        endpoint_config(CidClass::Terminals, &keys),
        None,
        Arc::new(QueueSocket::new(socket.udp(), socket.attachments())),
        Arc::new(TokioRuntime),
    )?;
    let tls = tasuki_proto::identity::client_config(
        &settings.identity,
        Alpn::Attachment,
        &settings.clock,
    )?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    attachments.set_default_client_config(client_config(
        Arc::new(crypto),
        CidClass::Terminals,
        attachment_transport(settings.periods),
    ));
    Ok((socket, (sessions, Configs { client, server }), attachments))
}

impl Sessions {
    pub(super) fn new(
        me: TerminalId,
        socket: Arc<Socket>,
        (endpoint, configs): (Endpoint, Configs),
        identity: IdentityCell,
        clock: Clock,
        events: mpsc::Sender<SessionEvent>,
    ) -> Self {
        let (accepting, arrived) = (endpoint.clone(), events.clone());
        let doors = Doors::default();
        let let_in = doors.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                if !let_in.enter(&incoming.remote_address()) {
                    incoming.ignore();
                    continue;
                }
                if arrived.send(SessionEvent::Arrived(Box::new(incoming))).await.is_err() {
                    break;
                }
            }
        });
        Self {
            me,
            socket,
            endpoint,
            configs,
            identity,
            clock,
            events,
            handshakes: Handshakes::default(),
            revoked: Arc::default(),
            entries: BTreeMap::new(),
            session_by_address: BTreeMap::new(),
            next_address: 1,
            doors,
        }
    }

    pub(super) fn me(&self) -> &TerminalId {
        &self.me
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, session: SessionId) -> bool {
        self.entries.contains_key(&session)
    }

    pub(super) fn is_outgoing(&self, session: SessionId) -> bool {
        self.entries.get(&session).is_some_and(|entry| entry.opened.outgoing)
    }

    pub(super) fn set_revoked(&mut self, revoked: &HashSet<KeyFingerprint>) {
        self.revoked = Arc::new(revoked.clone());
    }

    /// Running sessions whose peer proved one of these keys.
    pub(super) fn with_keys(&self, keys: &[KeyFingerprint]) -> Vec<SessionId> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.key.is_some_and(|key| keys.contains(&key)))
            .map(|(session, _)| *session)
            .collect()
    }

    /// Installs the path of a session's call, to this address; its caller begins the handshake.
    pub(super) fn open(&mut self, opened: Opened, to: SocketAddr, wall_ms: u64) {
        let address = virtual_address(self.next_address);
        self.next_address += 1;
        let (label_in, label_out) = (opened.label_in, opened.label_out);
        let path = CurrentPath::default();
        let first = Path { to, label_in, label_out };
        let first = self.socket.add_path(address, PathId::Relayed(Generation::CALL), first);
        path.switch(first, Instant::now());
        let session = opened.session;
        self.session_by_address.insert(address, session);
        let handshake = if opened.outgoing {
            let expected = NodeName::Terminal(opened.peer.clone());
            let connecting = self
                .endpoint
                .connect_with(
                    self.configs.client(&path),
                    address,
                    &expected.dns_name(self.identity.get().mesh()),
                )
                .map_err(|_| RefusalCode::BadRequest);
            let proof = self.proof(session, expected);
            let handshake = tokio::spawn(async move {
                match connecting {
                    Ok(connecting) => proof.run(connecting).await,
                    Err(code) => proof.fail(code).await,
                }
            });
            Some(handshake.abort_handle())
        } else {
            self.doors.open(address);
            None
        };
        let entry = Entry {
            opened,
            address,
            path,
            started_ms: wall_ms,
            handshake,
            connection: None,
            key: None,
            ended: watch::Sender::new(None),
            lanes: Arc::default(),
            path_since_ms: wall_ms,
            words: None,
        };
        self.entries.insert(session, entry);
    }

    /// The address that the one socket is bound to.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// The session that a virtual address stands for.
    pub(super) fn session_at(&self, address: SocketAddr) -> Option<SessionId> {
        self.session_by_address.get(&address).copied()
    }

    /// Whether its peer is proven.
    pub(super) fn is_proven(&self, session: SessionId) -> bool {
        self.entries.get(&session).is_some_and(|entry| entry.connection.is_some())
    }

    /// Performs what the paths of a session want of the socket.
    pub(super) fn direct(&mut self, output: paths::Output, wall_ms: u64) {
        use paths::Output;
        let session = match &output {
            Output::Install { session, .. }
            | Output::Remove { session, .. }
            | Output::Use { session, .. }
            | Output::Duplicate { session, .. }
            | Output::Probe { session, .. }
            | Output::Ceiling { session, .. }
            | Output::Listen { session, .. }
            | Output::Watch(session)
            | Output::Measure(session)
            | Output::Tell(session, _)
            | Output::Changed(session)
            | Output::Failed { session, .. } => *session,
            Output::Say(..) | Output::Doubt(_) => return,
        };
        let Some(entry) = self.entries.get_mut(&session) else { return };
        let (socket, address) = (&self.socket, entry.address);
        match output {
            Output::Install { path, to, label_in, label_out, .. } => {
                socket.add_path(address, path, Path { to, label_in, label_out });
            }
            Output::Remove { path, .. } => socket.remove_path(address, path),
            Output::Use { path, epoch, .. } => {
                if let Some(path) = socket.use_path(address, path, epoch) {
                    entry.path.switch(path, Instant::now());
                    entry.path_since_ms = wall_ms;
                }
            }
            Output::Duplicate { path, .. } => socket.duplicate(address, path),
            Output::Probe { path, probe, length, hops, .. } => {
                socket.probe(address, path, probe, (length, hops));
            }
            Output::Ceiling { bytes, .. } => {
                // QUIC may have found more since the paths were told.
                let mtu = entry.mtu();
                let bytes = bytes.map_or(usize::MAX, |bytes| usize::from(bytes.max(mtu)));
                socket.set_ceiling(address, bytes);
            }
            Output::Listen { label, .. } => socket.listen(address, label),
            Output::Watch(_) => socket.watch(address),
            Output::Tell(_, word) => entry.tell(word),
            Output::Changed(_)
            | Output::Measure(_)
            | Output::Failed { .. }
            | Output::Say(..)
            | Output::Doubt(_) => {}
        }
    }

    /// The largest QUIC packets that a session sends at present, bytes.
    pub(super) fn mtu(&self, session: SessionId) -> Option<u16> {
        self.entries.get(&session).map(Entry::mtu)
    }

    /// What became of the data that a session sent since it moved to its present path.
    pub(super) fn data(&self, session: SessionId) -> Option<DataCounts> {
        let entry = self.entries.get(&session)?;
        let sent = entry.connection.as_ref()?.stats().frame_tx;
        // What a connection with nothing to say sends too, and the peer acknowledges.
        let asked = sent.stream
            + sent.datagram
            + sent.ping
            + sent.max_data
            + sent.max_stream_data
            + sent.max_streams_bidi
            + sent.reset_stream
            + sent.stop_sending;
        let (acked, lost) = entry.path.progress();
        Some(DataCounts { asked, acked, lost })
    }

    /// The handshake of a session begins over its virtual address: the only one that [`Doors`] let in.
    pub(super) fn arrived(&mut self, incoming: Incoming) {
        let session = self.session_by_address.get(&incoming.remote_address()).copied();
        let entry = session.and_then(|session| self.entries.get(&session));
        let Some((session, entry)) = session.zip(entry) else { return incoming.ignore() };
        if !self.handshakes.begin(&entry.opened.peer, Instant::now()) {
            tracing::debug!(peer = %entry.opened.peer, "too many handshakes that prove nothing");
            return incoming.refuse();
        }
        let proof = self.proof(session, NodeName::Terminal(entry.opened.peer.clone()));
        let config = self.configs.server(&entry.path);
        let handshake = tokio::spawn(async move {
            match incoming.accept_with(config) {
                Ok(connecting) => proof.run(connecting).await,
                Err(_) => proof.fail(RefusalCode::PeerNotProven).await,
            }
        });
        if let Some(entry) = self.entries.get_mut(&session) {
            entry.handshake = Some(handshake.abort_handle());
        }
    }

    fn proof(&self, session: SessionId, expected: NodeName) -> Proof {
        Proof {
            session,
            expected,
            identity: self.identity.clone(),
            clock: self.clock.clone(),
            revoked: self.revoked.clone(),
            events: self.events.clone(),
        }
    }

    /// Keeps a proven connection, and gives the largest packets that are worth a try on it; `None` when the session is
    /// gone or has one.
    pub(super) fn proven(
        &mut self,
        session: SessionId,
        connection: Connection,
        key: KeyFingerprint,
    ) -> Option<u16> {
        let mut material = [0; 32];
        let exported =
            connection.export_keying_material(&mut material, PathKey::EXPORTER_LABEL, b"");
        let entry = self.entries.get_mut(&session).filter(|entry| entry.connection.is_none());
        let Some(entry) = entry.filter(|_| exported.is_ok()) else {
            connection.close(close_code(RefusalCode::UnknownSession), b"");
            return None;
        };
        self.socket.set_key(entry.address, PathKey::new(&material, entry.opened.outgoing));
        entry.connection = Some(connection.clone());
        entry.handshake = None;
        if !entry.opened.outgoing {
            self.handshakes.finish(&entry.opened.peer);
        }
        entry.key = Some(key);
        tokio::spawn(watch_connection(session, connection, self.events.clone()));
        Some(transport::packet_bytes(&entry.path))
    }

    /// Removes a session's path and closes its connection; returns what to show of it.
    pub(super) fn close(
        &mut self,
        session: SessionId,
        code: RefusalCode,
        wall_ms: u64,
    ) -> Option<SessionView> {
        let entry = self.entries.remove(&session)?;
        let mut view = entry.view(&self.me, "ended");
        view.ended_at = Some(wall_ms);
        view.reason = Some(code.to_string());
        entry.ended.send_replace(Some(code));
        self.doors.close(&entry.address);
        if let Some(handshake) = &entry.handshake {
            handshake.abort();
            if !entry.opened.outgoing {
                self.handshakes.give_up(entry.opened.peer.clone(), Instant::now());
            }
        }
        if let Some(connection) = &entry.connection {
            connection.close(close_code(code), b"");
        }
        self.session_by_address.remove(&entry.address);
        // The closing packet leaves with the next turn of the endpoint.
        let (socket, address) = (self.socket.clone(), entry.address);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            socket.close(address);
        });
        Some(view)
    }

    /// A handle on a proven session for one user.
    pub(super) fn handle_for(
        &self,
        session: SessionId,
        request: Option<RequestId>,
        releases: &Releases,
    ) -> Option<Session> {
        let guard = Arc::new(SessionGuard { request, releases: releases.clone() });
        let entry = self.entries.get(&session)?;
        if let Some(connection) = entry.connection.as_ref().filter(|_| request.is_some())
            && entry.opened.service.as_str() != PING
        {
            entry.lanes.room.widen(connection, &entry.opened.peer);
        }
        Some(Session {
            id: session,
            peer: entry.opened.peer.clone(),
            service: entry.opened.service.clone(),
            outgoing: entry.opened.outgoing,
            connection: entry.connection.clone()?,
            ended: entry.ended.subscribe(),
            lanes: entry.lanes.clone(),
            guard,
        })
    }

    /// Tells the peer whether this side uses the session.
    pub(super) fn tell_use(&mut self, session: SessionId, using: bool) {
        if let Some(entry) = self.entries.get_mut(&session) {
            entry.tell(Word::Use(Use { using }));
        }
    }

    pub(super) fn views(&self, calls: &Calls, paths: &Paths) -> Vec<SessionView> {
        let show = |(id, entry): (&SessionId, &Entry)| {
            let mut view = entry.view(&self.me, "active");
            if let Some(info) = paths.info(*id) {
                view.path = if info.direct { "direct" } else { "relayed" };
                view.route = info.relays;
                if !entry.opened.outgoing {
                    view.route.reverse();
                }
            }
            view
        };
        let mut views: Vec<SessionView> = self.entries.iter().map(show).collect();
        let calling = calls.sessions().filter(|info| info.state == SessionState::Calling);
        views.extend(calling.map(|info| SessionView {
            id: info.session.to_string(),
            caller: self.me.clone(),
            callee: info.peer.clone(),
            service: info.service.clone(),
            state: "calling",
            started_at: 0,
            ended_at: None,
            reason: None,
            route: Vec::new(),
            path: "relayed",
            bytes_to_callee: 0,
            packets_to_callee: 0,
            bytes_to_caller: 0,
            packets_to_caller: 0,
        }));
        views
    }

    pub(super) fn paths(&self, paths: &Paths) -> Vec<PathView> {
        self.entries
            .iter()
            .filter_map(|(session, entry)| {
                let connection = entry.connection.as_ref()?;
                let info = paths.info(*session)?;
                let rtt_us = info.rtt_us.unwrap_or(connection.rtt().as_micros() as u64);
                Some(PathView {
                    session: session.to_string(),
                    peer: entry.opened.peer.clone(),
                    service: entry.opened.service.clone(),
                    path: if info.direct { "direct" } else { "relayed" },
                    relays: info.relays,
                    rtt_us,
                    loss: info.loss,
                    since: entry.path_since_ms,
                    why: info.why,
                    relayed_paths: info.relayed_paths,
                })
            })
            .collect()
    }
}

impl Entry {
    fn mtu(&self) -> u16 {
        self.connection.as_ref().map_or(0, |connection| connection.stats().path.current_mtu)
    }

    /// Tells the peer, in order and reliably; of several words of one kind that follow each other faster than they
    /// leave, the last.
    fn tell(&mut self, word: Word) {
        let Some(connection) = &self.connection else { return };
        if let Some(words) = &self.words {
            words.send_modify(|words| words.set(word));
        } else {
            let mut first = Words::default();
            first.set(word);
            let (words, told) = watch::channel(first);
            tokio::spawn(write_words(connection.clone(), told));
            self.words = Some(words);
        }
    }

    fn view(&self, me: &TerminalId, state: &'static str) -> SessionView {
        let opened = &self.opened;
        let (caller, callee) = if opened.outgoing {
            (me.clone(), opened.peer.clone())
        } else {
            (opened.peer.clone(), me.clone())
        };
        let stats = self.connection.as_ref().map(Connection::stats).unwrap_or_default();
        let (sent, received) = (stats.udp_tx, stats.udp_rx);
        let (to_callee, to_caller) =
            if opened.outgoing { (sent, received) } else { (received, sent) };
        SessionView {
            id: opened.session.to_string(),
            caller,
            callee,
            service: opened.service.clone(),
            state,
            started_at: self.started_ms,
            ended_at: None,
            reason: None,
            route: opened.route.clone(),
            path: "relayed",
            bytes_to_callee: to_callee.bytes,
            packets_to_callee: to_callee.datagrams,
            bytes_to_caller: to_caller.bytes,
            packets_to_caller: to_caller.datagrams,
        }
    }
}

fn close_code(code: RefusalCode) -> VarInt {
    VarInt::from_u32(u32::from(code.value()))
}

/// Proves the peer of one handshake: the name at the other end must be the one that was called, or announced.
struct Proof {
    session: SessionId,
    expected: NodeName,
    identity: IdentityCell,
    clock: Clock,
    revoked: Arc<HashSet<KeyFingerprint>>,
    events: mpsc::Sender<SessionEvent>,
}

impl Proof {
    async fn run(self, handshake: quinn::Connecting) {
        let connection = match handshake.await {
            Ok(connection) => connection,
            Err(error) => {
                let code = connection_refusal(&error).unwrap_or(RefusalCode::PeerNotProven);
                return self.fail(code).await;
            }
        };
        match self.identify(&connection) {
            Ok(peer) => {
                let (session, key) = (self.session, peer.key);
                let proven = SessionEvent::Proven { session, connection, key };
                let _ = self.events.send(proven).await;
            }
            Err(code) => {
                connection.close(close_code(code), b"");
                self.fail(code).await;
            }
        }
    }

    fn identify(&self, connection: &Connection) -> Result<Peer, RefusalCode> {
        let revoked = |key: &KeyFingerprint| self.revoked.contains(key);
        let now = self.clock.now_secs();
        let identity = self.identity.get();
        identify_connection(connection, &identity, Some(&self.expected), &revoked, now)
            .map(|(_, peer)| peer)
    }

    async fn fail(self, code: RefusalCode) {
        let _ = self.events.send(SessionEvent::Failed { session: self.session, code }).await;
    }
}

/// Tells what the peer says of the session, and the end of the connection.
async fn watch_connection(
    session: SessionId,
    connection: Connection,
    events: mpsc::Sender<SessionEvent>,
) {
    let words = async {
        let Ok(mut stream) = connection.accept_uni().await else { return };
        let mut said = Budget::with_burst(
            limits::WORDS_PER_SECOND.into(),
            limits::WORDS_AT_ONCE,
            Instant::now(),
        );
        while let Ok(Some(envelope)) =
            Envelope::read(&mut stream, limits::SESSION_MESSAGE_BYTES).await
        {
            // A peer that says more waits: its words are not read.
            while !said.take(Instant::now()) {
                tokio::time::sleep(Duration::from_secs(1) / limits::WORDS_PER_SECOND).await;
            }
            let word = match Word::from_envelope(&envelope) {
                Ok(Some(word)) => word,
                // A newer peer may say what this version does not know.
                Ok(None) => continue,
                Err(_) => return,
            };
            if events.send(SessionEvent::Word { session, word }).await.is_err() {
                return;
            }
        }
    };
    let closed = connection.closed();
    tokio::pin!(words, closed);
    let error = tokio::select! {
        error = &mut closed => error,
        () = words => closed.await,
    };
    let code = match &error {
        quinn::ConnectionError::TimedOut => RefusalCode::SessionTimeout,
        error => connection_refusal(error).unwrap_or(RefusalCode::PeerLost),
    };
    let _ = events.send(SessionEvent::Failed { session, code }).await;
}

async fn write_words(connection: Connection, mut words: watch::Receiver<Words>) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    let mut said = Words::default();
    loop {
        let latest = words.borrow_and_update().clone();
        for word in latest.since(&said) {
            if stream.write_chunk(word.to_envelope().to_bytes()).await.is_err() {
                return;
            }
        }
        said = latest;
        if words.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_that_was_called_has_one_handshake() {
        let (doors, [one, other]) = (Doors::default(), [1, 2].map(virtual_address));
        assert!(!doors.enter(&one), "nobody called");
        doors.open(one);
        assert_eq!((0..6_000).filter(|_| doors.enter(&one)).count(), 1);
        doors.open(other);
        doors.close(&other);
        assert!(!doors.enter(&other), "it is over");
    }
}
