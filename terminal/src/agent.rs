//! The running agent as the rest of the program sees it: call, be called, list, log in and out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tasuki_proto::control::Page;
use tasuki_proto::identity::RenewalTrouble;
use tasuki_proto::path::NatKind;
use tasuki_proto::traces;
use tasuki_proto::view::TerminalFilter;
use tasuki_proto::{Refusal, RefusalCode, RelayName, ServiceName, SessionId, TerminalId};
use tokio::sync::{mpsc, watch};

use crate::core::access::AccessRules;
use crate::core::calls::RequestId;
use crate::core::paths::DirectCounts;
use crate::io::services::lanes::Desk;
use crate::io::socket::DropsView;

/// An accepted session with its proven peer: one QUIC connection end to end.
///
/// Either side opens streams on it; the side that serves a stream authorises it by peer and service. The
/// session ends with [`Session::end`], or when the last clone of its last user is dropped.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Who is at the other end, proven in the handshake.
    pub peer: TerminalId,
    /// What the call named. Streams name their service themselves.
    pub service: ServiceName,
    /// Whether this terminal called.
    pub outgoing: bool,
    /// The connection.
    pub connection: quinn::Connection,
    /// Becomes `Some` when the session is over.
    pub ended: watch::Receiver<Option<RefusalCode>>,
    /// Where further streams of its pipes arrive.
    pub(crate) lanes: Arc<Desk>,
    pub(crate) guard: Arc<SessionGuard>,
}

/// What the holders of sessions and calls gave back and nobody has taken yet: each once, however often it is said.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// Sessions that somebody here ends for all their users.
    pub(crate) ended: BTreeMap<SessionId, RefusalCode>,
    /// Requests whose local user needs nothing more.
    pub(crate) done: BTreeSet<RequestId>,
}

/// Where it is given back. Nobody waits, since a drop cannot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Releases(watch::Sender<Released>);

impl Releases {
    /// Shows that something was given back, and that nobody can any more.
    pub(crate) fn watch(&self) -> watch::Receiver<Released> {
        self.0.subscribe()
    }

    /// Takes what was given back.
    pub(crate) fn take(&self) -> Released {
        let mut taken = Released::default();
        self.0.send_if_modified(|released| {
            taken = std::mem::take(released);
            false
        });
        taken
    }

    fn done(&self, request: RequestId) {
        self.0.send_modify(|released| {
            released.done.insert(request);
        });
    }

    pub(crate) fn end(&self, session: SessionId, code: RefusalCode) {
        self.0.send_modify(|released| {
            released.ended.entry(session).or_insert(code);
        });
    }
}

/// Tells when the local user of a request is done.
#[derive(Debug)]
pub(crate) struct SessionGuard {
    /// The call that the session answers; `None` for a session that the other side uses.
    pub(crate) request: Option<RequestId>,
    pub(crate) releases: Releases,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.releases.done(request);
        }
    }
}

impl Session {
    /// Ends the session on both sides, for all its users. A user that is merely done drops the session instead.
    pub fn end(&self, code: RefusalCode) {
        self.guard.releases.end(self.id, code);
    }
}

/// One row of `paths`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathView {
    /// The session.
    pub session: String,
    /// The terminal at the other end.
    pub peer: TerminalId,
    /// What the call named.
    pub service: ServiceName,
    /// `relayed` or `direct`.
    pub path: &'static str,
    /// From this terminal's relay to the peer's.
    pub relays: Vec<RelayName>,
    /// Round-trip time, µs.
    pub rtt_us: u64,
    /// Share of packets lost, 0 to 1.
    pub loss: f64,
    /// Since when on this path, ms since 1970.
    pub since: u64,
    /// Why this path.
    pub why: String,
    /// Relayed paths that stand, the one in use among them or ready for it.
    pub relayed_paths: usize,
}

/// One row of `sessions`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Who called.
    pub caller: TerminalId,
    /// Whom.
    pub callee: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// `calling`, `active` or `ended`.
    pub state: &'static str,
    /// ms since 1970.
    pub started_at: u64,
    /// ms since 1970.
    pub ended_at: Option<u64>,
    /// The code it ended with.
    pub reason: Option<String>,
    /// From the caller's relay to the callee's.
    pub route: Vec<RelayName>,
    /// `relayed` or `direct`.
    pub path: &'static str,
    /// Bytes from caller to callee, end to end.
    pub bytes_to_callee: u64,
    /// Packets from caller to callee, end to end.
    pub packets_to_callee: u64,
    /// Bytes from callee to caller, end to end.
    pub bytes_to_caller: u64,
    /// Packets from callee to caller, end to end.
    pub packets_to_caller: u64,
}

/// The agent's state.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// This terminal.
    pub id: TerminalId,
    /// The mesh's name.
    pub mesh: String,
    /// The software's version.
    pub version: String,
    /// `logged-in`, `logged-out`, `connecting` or `parked` (another agent with this identity took over).
    pub state: &'static str,
    /// Why, where it is not `logged-in`.
    pub why: Option<String>,
    /// Its attachments.
    pub attachments: Vec<AttachmentStatus>,
    /// Running sessions.
    pub sessions: usize,
    /// When the certificate ends, s since 1970.
    pub certificate_until: u64,
    /// Why the certificate is not renewed, when that is due and fails.
    pub renewal: Option<RenewalTrouble>,
    /// The NAT in front of it, as far as its relays can tell.
    pub nat: NatKind,
    /// The address that its gateway mapped to it.
    pub mapped: Option<SocketAddr>,
    /// What was done for direct paths since the start.
    pub direct: DirectCounts,
    /// Packets that its socket dropped since the start, by reason.
    pub dropped: DropsView,
    /// What became of traces since the start; none where no collector is told.
    pub traces: Option<traces::Shown>,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttachmentStatus {
    /// To which relay.
    pub relay: RelayName,
    /// `primary` or `standby`.
    pub role: &'static str,
    /// The relay's address.
    pub address: SocketAddr,
    /// This terminal's address as the relay sees it.
    pub seen_as: SocketAddr,
    /// Round-trip time, µs.
    pub rtt_us: u64,
    /// Since when, ms since 1970.
    pub since: u64,
}

/// A handle on the running agent; clones share it.
#[derive(Debug, Clone)]
pub struct Agent {
    pub(crate) inbox: mpsc::Sender<AgentRequest>,
    pub(crate) releases: Releases,
    pub(crate) requests: Arc<AtomicU64>,
}

/// What [`Agent`]'s methods ask of the driver.
#[derive(Debug)]
pub(crate) enum AgentRequest {
    Call(
        RequestId,
        TerminalId,
        ServiceName,
        tokio::sync::oneshot::Sender<Result<Session, Refusal>>,
    ),
    List(
        TerminalFilter,
        Option<TerminalId>,
        u16,
        tokio::sync::oneshot::Sender<Result<Page, Refusal>>,
    ),
    Status(tokio::sync::oneshot::Sender<StatusView>),
    Sessions(tokio::sync::oneshot::Sender<Vec<SessionView>>),
    Paths(tokio::sync::oneshot::Sender<Vec<PathView>>),
    EndSession(SessionId, tokio::sync::oneshot::Sender<Result<(), Refusal>>),
    Logout(tokio::sync::oneshot::Sender<()>),
    Login(tokio::sync::oneshot::Sender<()>),
}

impl Agent {
    pub(crate) fn new(inbox: mpsc::Sender<AgentRequest>, releases: Releases) -> Self {
        Self { inbox, releases, requests: Arc::new(AtomicU64::new(1)) }
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(tokio::sync::oneshot::Sender<T>) -> AgentRequest,
    ) -> Result<T, Refusal> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let gone = |_| Refusal::from(RefusalCode::ShuttingDown);
        self.inbox.send(make(reply)).await.map_err(|_| Refusal::from(RefusalCode::ShuttingDown))?;
        answer.await.map_err(gone)
    }

    /// Calls `target` for `service` and waits for the session with its proven peer. Where both call each other at
    /// the same time, both get the one session that results (D3). Dropping the future withdraws the call.
    ///
    /// # Errors
    /// The refusal; `no-answer` after [`tasuki_proto::limits::CALL_TIMEOUT`].
    pub async fn call(&self, target: TerminalId, service: ServiceName) -> Result<Session, Refusal> {
        let request = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        // Withdraws the call when this future is dropped before its answer.
        let mut guard = SessionGuard { request: Some(request), releases: self.releases.clone() };
        let answer = self.ask(|reply| AgentRequest::Call(request, target, service, reply)).await?;
        guard.request = None;
        answer
    }

    /// A page of the mesh's terminals (C12).
    ///
    /// # Errors
    /// When no relay is attached.
    pub async fn list(
        &self,
        filter: TerminalFilter,
        after: Option<TerminalId>,
        limit: u16,
    ) -> Result<Page, Refusal> {
        self.ask(|reply| AgentRequest::List(filter, after, limit, reply)).await?
    }

    /// The agent's state.
    ///
    /// # Errors
    /// When the agent is going down.
    pub async fn status(&self) -> Result<StatusView, Refusal> {
        self.ask(AgentRequest::Status).await
    }

    /// Running sessions and those that ended a short while ago.
    ///
    /// # Errors
    /// When the agent is going down.
    pub async fn sessions(&self) -> Result<Vec<SessionView>, Refusal> {
        self.ask(AgentRequest::Sessions).await
    }

    /// The present path of each running session.
    ///
    /// # Errors
    /// When the agent is going down.
    pub async fn paths(&self) -> Result<Vec<PathView>, Refusal> {
        self.ask(AgentRequest::Paths).await
    }

    /// Ends a session (C10).
    ///
    /// # Errors
    /// `unknown-session`.
    pub async fn end_session(&self, session: SessionId) -> Result<(), Refusal> {
        self.ask(|reply| AgentRequest::EndSession(session, reply)).await?
    }

    /// Ends all sessions and attachments and stays logged out (C11).
    ///
    /// # Errors
    /// When the agent is going down.
    pub async fn logout(&self) -> Result<(), Refusal> {
        self.ask(AgentRequest::Logout).await
    }

    /// Logs in again after [`Agent::logout`], or after another agent took over.
    ///
    /// # Errors
    /// When the agent is going down.
    pub async fn login(&self) -> Result<(), Refusal> {
        self.ask(AgentRequest::Login).await
    }
}

/// What the lower half needs from the upper: the rules, and where accepted sessions go.
#[derive(Debug)]
pub struct Upper {
    /// Decides on each incoming call.
    pub access: Arc<AccessRules>,
    /// Sessions that others began, with their peer proven.
    pub incoming: mpsc::Sender<Session>,
}
