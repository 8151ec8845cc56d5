//! Sessions and agents without a mesh, for tests: plain QUIC on loopback under the seam of [`crate::agent`].

#![allow(clippy::disallowed_methods, reason = "the seam has such a channel for ends")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig, VarInt};
use rustls_pki_types::PrivateKeyDer;
use tasuki_proto::control::Page;
use tasuki_proto::dial::Dialler;
use tasuki_proto::view::{TerminalState, TerminalView};
use tasuki_proto::{Refusal, RefusalCode, RelayId, ServiceName, SessionId, TerminalId, limits};
use tokio::sync::{mpsc, watch};

use crate::agent::{
    Agent, AgentRequest, PathView, Releases, Session, SessionGuard, SessionView, StatusView,
};
use crate::config::{Config, RawConfig};
use crate::core::calls::RequestId;
use crate::core::inbox::Quota;
use crate::io::services::{KeepAlive, Services};

/// How long a test waits for a state.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for `state` with a deadline.
pub(crate) async fn until(what: &str, mut state: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !state() {
        assert!(start.elapsed() < DEADLINE, "not reached: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What comes of `work`, in time.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work).await.expect("not done in time")
}

pub(crate) fn terminal(name: &str) -> TerminalId {
    TerminalId::new(name).unwrap()
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(limits::QUIC_STREAMS_PER_SESSION));
    transport.max_idle_timeout(Some(Duration::from_secs(30).try_into().unwrap()));
    Arc::new(transport)
}

/// Two ends of QUIC connections on loopback.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    client: Endpoint,
    server: Endpoint,
    address: SocketAddr,
}

impl Wire {
    pub(crate) fn new() -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["peer".to_owned()]).unwrap();
        let secret = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let mut server =
            ServerConfig::with_single_cert(vec![key.cert.der().clone()], secret).unwrap();
        server.transport_config(transport());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(key.cert.der().clone()).unwrap();
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        client.transport_config(transport());
        let server = Endpoint::server(server, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut dialer = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        dialer.set_default_client_config(client);
        let address = server.local_addr().unwrap();
        Self { client: dialer, server, address }
    }

    async fn connect(&self) -> (Connection, Connection) {
        let dial = async { self.client.connect(self.address, "peer").unwrap().await.unwrap() };
        let accept = async { self.server.accept().await.unwrap().await.unwrap() };
        tokio::join!(dial, accept)
    }
}

fn end(
    id: SessionId,
    peer: &TerminalId,
    service: &ServiceName,
    outgoing: bool,
    connection: Connection,
) -> Session {
    let releases = Releases::default();
    let mut wanted = releases.watch();
    let (over, ended) = watch::channel(None);
    let wire = connection.clone();
    tokio::spawn(async move {
        let code = tokio::select! {
            _ = wanted.changed() => {
                let code = wanted.borrow().ended.get(&id).copied();
                Some(code.unwrap_or(RefusalCode::EndedByCaller))
            }
            _ = wire.closed() => Some(RefusalCode::PeerLost),
        };
        wire.close(VarInt::from_u32(0), b"");
        over.send_replace(code);
    });
    let guard = Arc::new(SessionGuard { request: outgoing.then_some(RequestId(0)), releases });
    let (peer, service) = (peer.clone(), service.clone());
    let lanes = Arc::default();
    Session { id, peer, service, outgoing, connection, ended, lanes, guard }
}

/// A session's two ends: the caller's, the callee's.
pub(crate) async fn pair(
    wire: &Wire,
    caller: &str,
    callee: &str,
    name: &str,
) -> (Session, Session) {
    let (here, there) = wire.connect().await;
    let id = SessionId { edge: RelayId(1), nonce: rand::random() };
    let (caller, callee, name) = (terminal(caller), terminal(callee), service(name));
    (end(id, &callee, &name, true, here), end(id, &caller, &name, false, there))
}

/// One terminal of the fake mesh.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) agent: Agent,
    pub(crate) services: Arc<Services>,
    pub(crate) folder: tempfile::TempDir,
}

impl Node {
    pub(crate) fn data(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn inbox(&self) -> PathBuf {
        self.data().join("inbox")
    }
}

type Calls = mpsc::Sender<Session>;

/// A mesh that connects whoever calls, by the rules of the called.
#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    wire: Wire,
    places: Arc<Mutex<BTreeMap<TerminalId, (Config, Calls)>>>,
    /// Live sessions at their callers' ends.
    pub(crate) live: Arc<Mutex<Vec<(SessionId, Connection)>>>,
    calling: Arc<tokio::sync::Mutex<()>>,
    /// Reaches services.
    pub(crate) dialler: Dialler,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        Self {
            wire: Wire::new(),
            places: Arc::default(),
            live: Arc::default(),
            calling: Arc::default(),
            dialler: Dialler::default(),
        }
    }

    /// Adds a terminal with this TOML configuration.
    pub(crate) fn node(&self, name: &str, config: &str) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let config = RawConfig::parse(config).unwrap().check(folder.path().into()).unwrap();
        let access = Arc::new(config.access.clone());
        let inbox = (folder.path().join("inbox"), Quota::default());
        let keep_alive = KeepAlive::new(config.tcp_keep_alive);
        let dialler = self.dialler.clone();
        let services =
            Services::with_dialler(access, config.exposed.clone(), inbox, keep_alive, dialler);
        let (calls, incoming) = mpsc::channel(16);
        tokio::spawn(services.clone().run(incoming));
        self.places.lock().unwrap().insert(terminal(name), (config, calls));
        let (inbox, requests) = mpsc::channel(16);
        tokio::spawn(self.clone().drive(terminal(name), requests));
        let agent = Agent::new(inbox, Releases::default());
        Node { agent, services, folder }
    }

    /// Cuts every live session.
    pub(crate) fn cut(&self) {
        for (_, connection) in self.live.lock().unwrap().drain(..) {
            connection.close(VarInt::from_u32(1), b"cut");
        }
    }

    pub(crate) fn live(&self) -> usize {
        self.live.lock().unwrap().iter().filter(|(_, c)| c.close_reason().is_none()).count()
    }

    async fn drive(self, name: TerminalId, mut requests: mpsc::Receiver<AgentRequest>) {
        while let Some(request) = requests.recv().await {
            match request {
                AgentRequest::Call(_, target, service, reply) => {
                    let (mesh, name) = (self.clone(), name.clone());
                    tokio::spawn(async move {
                        let _ = reply.send(mesh.call(&name, target, service).await);
                    });
                }
                AgentRequest::List(filter, _, _, reply) => {
                    let items: Vec<_> = self.places.lock().unwrap().keys().map(view).collect();
                    let wanted = |row: &TerminalView| {
                        filter.text.as_ref().is_none_or(|text| row.id.as_str().contains(text))
                    };
                    let items = items.into_iter().filter(wanted).collect();
                    let _ = reply.send(Ok(Page { request: 0, items, next: None }));
                }
                AgentRequest::Status(reply) => drop(reply.send(status(&name))),
                AgentRequest::Sessions(reply) => drop(reply.send(vec![session_view(&name)])),
                AgentRequest::Paths(reply) => drop(reply.send(vec![path_view()])),
                AgentRequest::EndSession(id, reply) => {
                    let live = self.live.lock().unwrap();
                    let found = live.iter().find(|(other, _)| *other == id);
                    let _ = reply.send(match found {
                        Some((_, connection)) => {
                            connection.close(VarInt::from_u32(2), b"ended");
                            Ok(())
                        }
                        None => Err(Refusal::new(RefusalCode::UnknownSession, id.to_string())),
                    });
                }
                AgentRequest::Logout(reply) | AgentRequest::Login(reply) => drop(reply.send(())),
            }
        }
    }

    async fn call(
        &self,
        caller: &TerminalId,
        target: TerminalId,
        service: ServiceName,
    ) -> Result<Session, Refusal> {
        let place = self.places.lock().unwrap().get(&target).cloned();
        let (config, calls) =
            place.ok_or_else(|| Refusal::new(RefusalCode::UnknownTarget, target.as_str()))?;
        config.access.check(caller, &service)?;
        let both = {
            // Two handshakes at once could be handed to each other's call.
            let _one = self.calling.lock().await;
            pair(&self.wire, caller.as_str(), target.as_str(), service.as_str()).await
        };
        self.live.lock().unwrap().push((both.0.id, both.0.connection.clone()));
        calls.send(both.1).await.map_err(|_| Refusal::from(RefusalCode::PeerLost))?;
        Ok(both.0)
    }
}

fn view(id: &TerminalId) -> TerminalView {
    TerminalView {
        id: id.clone(),
        kind: "user".into(),
        attributes: BTreeMap::new(),
        state: TerminalState::LoggedIn,
        sessions: 0,
        attachments: Vec::new(),
        updated_at: 1,
    }
}

fn status(id: &TerminalId) -> StatusView {
    StatusView {
        id: id.clone(),
        mesh: "fake".into(),
        version: "0".into(),
        state: "logged-in",
        why: None,
        attachments: Vec::new(),
        sessions: 0,
        certificate_until: 0,
        renewal: None,
        nat: tasuki_proto::path::NatKind::Unknown,
        mapped: None,
        direct: crate::core::paths::DirectCounts::default(),
        dropped: crate::io::socket::DropsView::default(),
        traces: None,
    }
}

fn session_view(id: &TerminalId) -> SessionView {
    SessionView {
        id: "0".repeat(32),
        caller: id.clone(),
        callee: terminal("other"),
        service: service("ssh"),
        state: "active",
        started_at: 1,
        ended_at: None,
        reason: None,
        route: Vec::new(),
        path: "relayed",
        bytes_to_callee: 1,
        packets_to_callee: 1,
        bytes_to_caller: 1,
        packets_to_caller: 1,
    }
}

fn path_view() -> PathView {
    PathView {
        session: "0".repeat(32),
        peer: terminal("other"),
        service: service("ssh"),
        path: "relayed",
        relays: Vec::new(),
        rtt_us: 1,
        loss: 0.0,
        since: 1,
        why: "relayed: the path of the call".into(),
        relayed_paths: 1,
    }
}
