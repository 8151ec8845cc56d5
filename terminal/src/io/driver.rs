//! Runs the lower half of the agent: log-in, calls, sessions. Inputs in, outputs performed; it decides nothing.

mod candidates;
mod paths;
mod sessions;
mod trust;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quinn::Connection;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::control::{List, Page, RelayContact, ToRelay, ToTerminal};
use tasuki_proto::dial::Dialler;
use tasuki_proto::identity::{Clock, IdentityCell, locked_out};
use tasuki_proto::net::{Periods, canonical};
use tasuki_proto::traces::{Place, Span, Traces};
use tasuki_proto::{
    Label, LoginEpoch, Refusal, RefusalCode, RelayId, RelayName, ServiceName, SessionId,
    TerminalId, limits, version,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use self::sessions::{SessionEvent, Sessions};
use super::attachment::{self, Order};
use super::portmap::PortMap;
use super::socket::SocketEvent;
use crate::agent::{
    Agent, AgentRequest, AttachmentStatus, Released, Releases, Session, SessionView, StatusView,
    Upper,
};
use crate::core::calls::{self, Calls, RequestId};
use crate::core::login::{self, AttachId, Login, RelayChoice};
use crate::core::paths::{self as paths_core, Paths};
use crate::core::revoked::Revoked;

/// What the lower half needs to know.
pub struct Settings {
    /// Who this terminal is.
    pub identity: IdentityCell,
    /// The time of certificates.
    pub clock: Clock,
    /// Reaches relays by their names; the same one renews the certificate.
    pub dialler: Dialler,
    /// The relays known from disk.
    pub contacts: Vec<RelayContact>,
    /// Which of them may be attached to.
    pub relays: RelayChoice,
    /// Keep-alive and idle time.
    pub periods: Periods,
    /// How sessions find and keep their paths.
    pub paths: paths_core::Config,
    /// Whether the gateway is asked for a port, where there is a NAT and direct paths are taken.
    pub port_mapping: bool,
    /// Where to bind the one UDP socket; usually `[::]:0`.
    pub listen: SocketAddr,
    /// The relays of the mesh, to be kept for the next start.
    pub kept_contacts: watch::Sender<Vec<RelayContact>>,
    /// The highest epoch of a log-in that this terminal used, to be kept for the next start; at first what an earlier
    /// process kept.
    pub kept_epoch: watch::Sender<LoginEpoch>,
    /// Where traces of sessions go.
    pub traces: Traces,
    /// Gets a copy of every byte that control streams carry to relays: for those who want to see what relays are told.
    pub overheard: Option<Arc<Mutex<Vec<u8>>>>,
}

/// What this terminal saw of a session.
fn span(session: SessionId, code: RefusalCode, view: &SessionView) -> Span {
    Span {
        session,
        place: Place::Other,
        began_ms: view.started_at,
        ended_ms: view.ended_at.unwrap_or(view.started_at),
        code,
        attributes: vec![
            ("tasuki.caller", view.caller.as_str().into()),
            ("tasuki.callee", view.callee.as_str().into()),
            ("tasuki.service", view.service.as_str().into()),
            ("tasuki.path", view.path.into()),
            ("tasuki.route", view.route.iter().map(RelayName::as_str).collect()),
            ("tasuki.bytes_to_callee", view.bytes_to_callee.into()),
            ("tasuki.bytes_to_caller", view.bytes_to_caller.into()),
        ],
    }
}

type Inboxes =
    (mpsc::Receiver<attachment::Event>, mpsc::Receiver<SessionEvent>, mpsc::Receiver<SocketEvent>);

/// An attachment that is being made or stands.
struct Attachment {
    /// The relay that is dialled.
    name: RelayName,
    orders: mpsc::Sender<Order>,
    relay: Option<(RelayId, RelayName)>,
    seen_as: Option<SocketAddr>,
    connection: Option<Connection>,
    since_ms: u64,
    /// Relays of the mesh that the relay named, until it has named all.
    told: Vec<RelayContact>,
}

struct Driver {
    settings: Settings,
    context: Arc<attachment::Context>,
    login: Login,
    calls: Calls,
    state: login::State,
    attachments: BTreeMap<AttachId, Attachment>,
    revoked: Revoked,
    /// Attachments that are being closed.
    leaving: BTreeSet<AttachId>,
    logouts: Vec<oneshot::Sender<()>>,
    attachment_events: mpsc::Sender<attachment::Event>,
    sessions: Sessions,
    paths: Paths,
    port_map: Option<PortMap>,
    /// The addresses of this machine, as they were seen last; `None` before the first look.
    interfaces: Option<BTreeSet<IpAddr>>,
    /// Says that they are to be looked at.
    look: Arc<Notify>,
    /// Calls that were made over an attachment and have no proven session yet.
    calling: BTreeMap<SessionId, AttachId>,
    /// Attachments that were asked whether they live, and until when an answer is waited for.
    doubted: BTreeMap<AttachId, Instant>,
    /// Calls that wait for an attachment, and until when.
    waiting: VecDeque<(Instant, RequestId, TerminalId, ServiceName)>,
    upper: Upper,
    releases: Releases,
    answers: BTreeMap<RequestId, oneshot::Sender<Result<Session, Refusal>>>,
    /// Questions, and the attachment that each was asked on.
    lists: BTreeMap<u64, (AttachId, oneshot::Sender<Result<Page, Refusal>>)>,
    next_list: u64,
    ended: VecDeque<SessionView>,
}

/// Opens the socket and starts the lower half; it runs until every clone of the agent is dropped.
///
/// # Errors
/// When the socket cannot be opened or the identity is unusable.
pub fn start(settings: Settings, upper: Upper) -> anyhow::Result<Agent> {
    let (heard, socket_inbox) = mpsc::channel(limits::SOCKET_EVENTS);
    let (socket, session_endpoint, attachment_endpoint) =
        sessions::open_endpoints(&settings, heard)?;
    let instance = rand::rng().random::<u64>().max(1);
    let (inbox, requests) = mpsc::channel(limits::AGENT_INBOX);
    let releases = Releases::default();
    let released = releases.watch();
    let (attachment_events, attachment_inbox) = mpsc::channel(limits::AGENT_INBOX);
    let (session_events, session_inbox) = mpsc::channel(limits::AGENT_INBOX);
    let context = Arc::new(attachment::Context {
        identity: settings.identity.clone(),
        clock: settings.clock.clone(),
        endpoint: attachment_endpoint,
        dialler: settings.dialler.clone(),
        socket: socket.clone(),
        instance,
        revoked: RwLock::default(),
        overheard: settings.overheard.clone(),
    });
    let me = settings.identity.get().terminal_id().cloned().ok_or_else(|| {
        anyhow::anyhow!("the data directory holds a relay's identity, not a terminal's")
    })?;
    let rng = || SmallRng::from_rng(&mut rand::rng());
    let mut login = Login::new(instance, settings.relays.clone(), rng());
    login.remember(*settings.kept_epoch.borrow());
    let paths = Paths::new(settings.paths.clone(), rng());
    let sessions = Sessions::new(
        me.clone(),
        socket,
        session_endpoint,
        settings.identity.clone(),
        settings.clock.clone(),
        session_events,
    );
    let driver = Driver {
        context,
        login,
        calls: Calls::new(me),
        state: login::State::LoggedOut,
        attachments: BTreeMap::new(),
        revoked: Revoked::new(settings.identity.get().mesh_id()),
        leaving: BTreeSet::new(),
        logouts: Vec::new(),
        attachment_events,
        sessions,
        paths,
        port_map: (settings.port_mapping && settings.paths.direct).then(PortMap::start),
        interfaces: None,
        look: Arc::default(),
        calling: BTreeMap::new(),
        doubted: BTreeMap::new(),
        waiting: VecDeque::new(),
        upper,
        releases: releases.clone(),
        answers: BTreeMap::new(),
        lists: BTreeMap::new(),
        next_list: 1,
        ended: VecDeque::new(),
        settings,
    };
    let inboxes = (attachment_inbox, session_inbox, socket_inbox);
    tokio::spawn(driver.run(requests, released, inboxes));
    Ok(Agent::new(inbox, releases))
}

fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Driver {
    async fn run(
        mut self,
        mut requests: mpsc::Receiver<AgentRequest>,
        mut released: watch::Receiver<Released>,
        (mut attachments, mut sessions, mut socket): Inboxes,
    ) {
        let contacts = self.settings.contacts.clone();
        self.login.handle(login::Input::Contacts(contacts), Instant::now());
        self.login.handle(login::Input::Login, Instant::now());
        let mut renewals = self.settings.identity.subscribe();
        let mut interfaces = candidates::watch(self.sessions.local_addr(), self.look.clone());
        loop {
            self.perform();
            let due = [
                self.login.poll_timeout(),
                self.calls.poll_timeout(),
                self.paths.poll_timeout(),
                self.waiting.front().map(|(until, ..)| *until),
                self.doubted.values().min().copied(),
            ];
            let due = due.into_iter().flatten().min();
            tokio::select! {
                event = attachments.recv() => match event {
                    Some(event) => self.handle_attachment(event),
                    None => break,
                },
                event = sessions.recv() => match event {
                    Some(event) => self.handle_session(event),
                    None => break,
                },
                event = socket.recv() => match event {
                    Some(event) => self.handle_socket(event),
                    None => break,
                },
                Ok(()) = interfaces.changed() => {
                    self.interfaces.clone_from(&interfaces.borrow_and_update());
                    self.find_candidates();
                }
                () = port_map_changed(&mut self.port_map) => {
                    self.find_candidates();
                    self.confirm_logouts();
                }
                Ok(()) = renewals.changed() => self.handle_renewed(),
                Ok(()) = released.changed() => self.handle_released(),
                request = requests.recv() => match request {
                    Some(request) => self.handle_request(request),
                    None => break,
                },
                () = sleep_until(due) => self.handle_timeout(),
            }
        }
        self.farewell().await;
    }

    fn handle_timeout(&mut self) {
        let now = Instant::now();
        if self.login.poll_timeout().is_some_and(|due| due <= now) {
            self.measure_attachments(now);
            self.login.handle(login::Input::Timeout, now);
        }
        if self.calls.poll_timeout().is_some_and(|due| due <= now) {
            self.calls.handle(calls::Input::Timeout, now);
        }
        if self.paths.poll_timeout().is_some_and(|due| due <= now) {
            self.paths.handle(paths_core::Input::Timeout, now);
        }
        self.give_up_waiting(now);
        self.give_up_doubted(now);
    }

    fn handle_released(&mut self) {
        let released = self.releases.take();
        for (session, code) in released.ended {
            self.calls.handle(calls::Input::End { session, code }, Instant::now());
        }
        for request in released.done {
            self.answers.remove(&request);
            self.waiting.retain(|(_, waiting, ..)| *waiting != request);
            self.calls.handle(calls::Input::Done(request), Instant::now());
        }
    }

    /// Logs out before the process ends, so that the mesh need not wait for silence.
    async fn farewell(mut self) {
        self.login.handle(login::Input::Logout, Instant::now());
        self.perform();
        let endpoint = self.context.endpoint.clone();
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), endpoint.wait_idle()).await;
    }

    fn perform(&mut self) {
        loop {
            if let Some(output) = self.login.poll_output() {
                self.perform_login(output);
            } else if let Some(output) = self.calls.poll_output() {
                self.perform_calls(output, None);
            } else if let Some(output) = self.paths.poll_output() {
                self.perform_paths(output);
            } else {
                return;
            }
        }
    }

    fn perform_login(&mut self, output: login::Output) {
        match output {
            login::Output::Attach { attach, relay } => {
                let (orders, inbox) = mpsc::channel(limits::TERMINAL_MESSAGES);
                let attachment = Attachment {
                    name: relay.name.clone(),
                    orders,
                    relay: None,
                    seen_as: None,
                    connection: None,
                    since_ms: wall_ms(),
                    told: Vec::new(),
                };
                self.attachments.insert(attach, attachment);
                let (context, events) = (self.context.clone(), self.attachment_events.clone());
                tokio::spawn(attachment::run(attach, relay, context, events, inbox));
            }
            login::Output::Login { attach, epoch, role } => {
                self.say_login(attach, epoch, role);
            }
            login::Output::Detach { attach, code } => {
                if code == RefusalCode::LoggedOut {
                    self.say(attach, ToRelay::Logout(tasuki_proto::control::Logout {}));
                }
                if let Some(attachment) = self.forget(attach, code)
                    && attachment.orders.try_send(Order::Close(code)).is_ok()
                {
                    self.leaving.insert(attach);
                }
            }
            login::Output::State(state) => self.change_state(state),
            login::Output::Draining(draining) => {
                let draining = paths_core::Input::Draining(draining);
                self.paths.handle(draining, Instant::now());
            }
        }
    }

    fn change_state(&mut self, state: login::State) {
        match &state {
            login::State::LoggedIn { primary, standby } => {
                let standby = standby.as_ref().map(|standby| standby.relay.as_str());
                tracing::info!(primary = %primary.relay, standby, "logged in");
            }
            login::State::LoggedOut => tracing::info!("logged out"),
            login::State::Parked(refusal) => tracing::warn!(%refusal, "parked"),
            login::State::Connecting(Some(refusal)) => tracing::info!(%refusal, "not logged in"),
            login::State::Connecting(None) => {}
        }
        let over = match &state {
            login::State::LoggedOut => Some(RefusalCode::LoggedOut),
            login::State::Parked(refusal) => Some(refusal.code),
            // Sessions wait for the next attachment.
            login::State::Connecting(_) | login::State::LoggedIn { .. } => None,
        };
        if let Some(code) = over {
            self.calls.handle(calls::Input::Detached(code), Instant::now());
        }
        self.state = state;
        self.attachments_changed();
    }

    /// An attachment is over: nobody answers what was asked on it.
    fn forget(&mut self, attach: AttachId, code: RefusalCode) -> Option<Attachment> {
        if let login::State::LoggedIn { primary, standby } = &self.state
            && let Some(ended) = [Some(primary), standby.as_ref()]
                .into_iter()
                .flatten()
                .find(|one| one.attach == attach)
        {
            tracing::info!(relay = %ended.relay, %code, "attachment ended");
        }
        let asked_on = |(_, (on, _)): &(u64, (AttachId, _))| *on == attach;
        let (unanswered, others): (BTreeMap<_, _>, _) =
            std::mem::take(&mut self.lists).into_iter().partition(asked_on);
        self.lists = others;
        let code = if code == RefusalCode::EndedByCaller { RefusalCode::RouteLost } else { code };
        for (_, reply) in unanswered.into_values() {
            let _ = reply.send(Err(code.into()));
        }
        let forgotten = self.attachments.remove(&attach);
        self.doubted.remove(&attach);
        if forgotten.is_some() {
            self.attachments_changed();
        }
        forgotten
    }

    fn measure_attachments(&mut self, now: Instant) {
        for (&attach, attachment) in &self.attachments {
            if let Some(connection) = &attachment.connection {
                self.login.handle(login::Input::Rtt { attach, rtt_us: rtt_us(connection) }, now);
            }
        }
    }

    /// `via` is the attachment that brought what this answers.
    fn perform_calls(&mut self, output: calls::Output, via: Option<AttachId>) {
        match output {
            calls::Output::Send(ToRelay::End(end)) => {
                self.calling.remove(&end.session);
                // Whichever relay knows the session passes it on; others ignore it.
                for attach in self.standing_attachments() {
                    self.say(attach, ToRelay::End(end.clone()));
                }
            }
            calls::Output::Send(message) => {
                if let Some(attach) = via.or_else(|| self.primary()) {
                    if let ToRelay::Call(call) = &message {
                        self.calling.insert(call.session, attach);
                    }
                    self.say(attach, message);
                }
            }
            calls::Output::Open(opened) => self.open(opened, via),
            calls::Output::Close { session, code, .. } => {
                self.calling.remove(&session);
                self.paths.handle(paths_core::Input::Closed(session), Instant::now());
                if let Some(view) = self.sessions.close(session, code, wall_ms()) {
                    self.settings.traces.note(|| span(session, code, &view));
                    self.ended.push_back(view);
                    while self.ended.len() > limits::ENDED_SESSIONS_SHOWN_BY_AGENT {
                        self.ended.pop_front();
                    }
                }
            }
            // Labels are random and stand nowhere until a path is installed.
            calls::Output::Free(_) => {}
            calls::Output::Answer { request, result } => self.answer(request, result),
            calls::Output::Redial { request, target, service } => {
                self.call(request, target, service);
            }
            calls::Output::Offer(session) => {
                if let Some(session) = self.sessions.handle_for(session, None, &self.releases) {
                    let incoming = self.upper.incoming.clone();
                    tokio::spawn(async move {
                        let _ = incoming.send(session).await;
                    });
                }
            }
            calls::Output::Use { session, using } => self.sessions.tell_use(session, using),
        }
    }

    fn answer(&mut self, request: RequestId, result: Result<SessionId, Refusal>) {
        let Some(reply) = self.answers.remove(&request) else { return };
        let result = result.and_then(|session| {
            self.sessions
                .handle_for(session, Some(request), &self.releases)
                .ok_or_else(|| RefusalCode::PeerLost.into())
        });
        // Where nobody waits any more, the session's guard says so as it is dropped.
        let _ = reply.send(result);
    }

    fn fail(&mut self, session: SessionId, code: RefusalCode) {
        self.calls.handle(calls::Input::Failed { session, code }, Instant::now());
    }

    fn primary(&self) -> Option<AttachId> {
        match &self.state {
            login::State::LoggedIn { primary, .. } => Some(primary.attach),
            _ => None,
        }
    }

    fn say(&mut self, attach: AttachId, message: ToRelay) {
        let Some(attachment) = self.attachments.get(&attach) else { return };
        if attachment.orders.try_send(Order::Say(message)).is_err() {
            // The relay does not read: as good as gone.
            let refusal = Refusal::from(RefusalCode::TooSlow);
            self.forget(attach, RefusalCode::RouteLost);
            self.login.handle(login::Input::Lost { attach, refusal }, Instant::now());
        }
    }

    fn call(&mut self, request: RequestId, target: TerminalId, service: ServiceName) {
        let relay = self
            .primary()
            .and_then(|attach| self.attachments.get(&attach)?.relay.as_ref())
            .map(|(id, _)| *id);
        let Some(edge) = relay else { return self.wait_to_call(request, target, service) };
        let mut rng = rand::rng();
        let input = calls::Input::Call {
            request,
            session: SessionId { edge, nonce: rng.random() },
            target,
            service,
            tie_break: Some(rng.random()),
            label: Label::from_random(rng.random()),
        };
        self.calls.handle(input, Instant::now());
    }

    fn handle_attachment(&mut self, event: attachment::Event) {
        let now = Instant::now();
        match event {
            attachment::Event::Connected { attach, connection } => {
                if let Some(attachment) = self.attachments.get_mut(&attach) {
                    attachment.connection = Some(connection);
                }
            }
            attachment::Event::Said(attach, message) => {
                if self.attachments.contains_key(&attach) {
                    self.handle_said(attach, message, now);
                }
            }
            attachment::Event::Lost(attach, refusal) => {
                self.leaving.remove(&attach);
                self.confirm_logouts();
                if self.forget(attach, RefusalCode::RouteLost).is_some() {
                    self.login.handle(login::Input::Lost { attach, refusal }, now);
                }
            }
        }
    }

    fn handle_said(&mut self, attach: AttachId, message: ToTerminal, now: Instant) {
        match message {
            ToTerminal::Welcome(welcome) => {
                if !self.is_dialled(attach, &welcome) {
                    return self.distrust(attach, "says that it is another one", now);
                }
                let highest = self.claim(attach, welcome.highest);
                let Some(attachment) = self.attachments.get_mut(&attach) else { return };
                attachment.relay = Some((welcome.relay, welcome.name));
                attachment.seen_as = Some(welcome.address);
                let input = login::Input::Welcome {
                    attach,
                    highest,
                    terminals: welcome.terminals,
                    rtt_us: attachment.connection.as_ref().map_or(u32::MAX, rtt_us),
                };
                self.login.handle(input, now);
            }
            ToTerminal::Seen(seen) => {
                if let Some(attachment) = self.attachments.get_mut(&attach) {
                    attachment.seen_as = Some(canonical(seen.address));
                }
                self.look.notify_one();
                self.find_candidates();
            }
            ToTerminal::LoggedIn(_) => self.login.handle(login::Input::LoggedIn(attach), now),
            ToTerminal::Refused(refused) => {
                let by = self.claim(attach, refused.by);
                self.forget(attach, refused.refusal.code);
                let input = login::Input::Refused {
                    attach,
                    refusal: refused.refusal,
                    retry_after_ms: refused.retry_after_ms,
                    by,
                };
                self.login.handle(input, now);
            }
            ToTerminal::Incoming(call) => {
                let verdict = self.upper.access.check(&call.caller, &call.service);
                let label = Label::from_random(rand::rng().random());
                self.calls.handle(calls::Input::Incoming { call, verdict, label }, now);
                self.perform_answers(attach);
            }
            ToTerminal::Accepted(accepted) => {
                self.calls.handle(calls::Input::Accepted(accepted), now);
                self.perform_answers(attach);
            }
            ToTerminal::CallRefused(refused) => {
                self.calling.remove(&refused.session);
                self.calls.handle(calls::Input::CallRefused(refused), now);
            }
            ToTerminal::Resuming(resuming) => {
                self.paths.handle(paths_core::Input::Resuming { attach, resuming }, now);
            }
            ToTerminal::Resumed(resumed) => {
                self.paths.handle(paths_core::Input::Resumed { attach, resumed }, now);
            }
            ToTerminal::PathEnded(end) => self.path_ended(end, now),
            ToTerminal::Pong(_) => {
                self.doubted.remove(&attach);
            }
            ToTerminal::Ended(end) => {
                self.calling.remove(&end.session);
                self.calls.handle(calls::Input::Ended(end), now);
            }
            ToTerminal::Page(page) => {
                if let Some((_, reply)) = self.lists.remove(&page.request) {
                    let _ = reply.send(Ok(page));
                }
            }
            ToTerminal::Relays(relays) => self.handle_relays(attach, relays, now),
            ToTerminal::Revoked(revoked) => self.handle_revoked(attach, revoked, now),
        }
    }

    fn handle_session(&mut self, event: SessionEvent) {
        let now = Instant::now();
        match event {
            SessionEvent::Arrived(incoming) => self.sessions.arrived(*incoming),
            SessionEvent::Proven { session, connection, key } => {
                let rtt = connection.rtt();
                if let Some(most) = self.sessions.proven(session, connection, key) {
                    self.calling.remove(&session);
                    self.calls.handle(calls::Input::Proven(session), now);
                    self.paths.handle(paths_core::Input::Proven { session, most, rtt }, now);
                }
            }
            SessionEvent::Failed { session, code } => self.fail(session, code),
            SessionEvent::Word { session, word } => self.handle_word(session, word, now),
        }
    }

    fn handle_request(&mut self, request: AgentRequest) {
        match request {
            AgentRequest::Call(request, target, service, reply) => {
                self.answers.insert(request, reply);
                self.call(request, target, service);
            }
            AgentRequest::List(filter, after, limit, reply) => {
                let Some(attach) = self.primary() else {
                    let _ = reply.send(Err(self.not_attached()));
                    return;
                };
                let request = self.next_list;
                self.next_list += 1;
                self.lists.retain(|_, (_, waiting)| !waiting.is_closed());
                self.lists.insert(request, (attach, reply));
                self.say(attach, ToRelay::List(List { request, filter, after, limit }));
            }
            AgentRequest::Status(reply) => {
                let _ = reply.send(self.status());
            }
            AgentRequest::Sessions(reply) => {
                let mut views = self.sessions.views(&self.calls, &self.paths);
                views.extend(self.ended.iter().cloned());
                views.sort_by(|a, b| a.id.cmp(&b.id));
                let _ = reply.send(views);
            }
            AgentRequest::Paths(reply) => {
                let _ = reply.send(self.sessions.paths(&self.paths));
            }
            AgentRequest::EndSession(session, reply) => {
                let known = self.sessions.contains(session);
                let code = if self.sessions.is_outgoing(session) {
                    RefusalCode::EndedByCaller
                } else {
                    RefusalCode::EndedByCallee
                };
                self.calls.handle(calls::Input::End { session, code }, Instant::now());
                let _ = reply.send(if known {
                    Ok(())
                } else {
                    Err(Refusal::new(RefusalCode::UnknownSession, session.to_string()))
                });
            }
            AgentRequest::Logout(reply) => {
                self.login.handle(login::Input::Logout, Instant::now());
                self.perform();
                self.logouts.push(reply);
                self.confirm_logouts();
            }
            AgentRequest::Login(reply) => {
                self.login.handle(login::Input::Login, Instant::now());
                let _ = reply.send(());
            }
        }
    }

    /// A log-out is done when the relays were told and the gateway has its port back.
    fn confirm_logouts(&mut self) {
        let idle = self.port_map.as_ref().is_none_or(PortMap::is_idle);
        if self.leaving.is_empty() && idle {
            for reply in self.logouts.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    /// Why no relay lets this terminal in, once its certificate ended.
    fn locked_out(&self) -> Option<Refusal> {
        let identity = &self.settings.identity;
        let now = self.settings.clock.now_secs();
        locked_out(identity.get().not_after(), identity.renewal_trouble().as_ref(), now)
    }

    fn not_attached(&self) -> Refusal {
        if let login::State::Connecting(_) = &self.state
            && let Some(refusal) = self.locked_out()
        {
            return refusal;
        }
        match &self.state {
            login::State::Connecting(Some(refusal)) | login::State::Parked(refusal) => {
                refusal.clone()
            }
            login::State::LoggedOut => {
                Refusal::new(RefusalCode::LoggedOut, "use 'tasuki-agent login'")
            }
            _ => Refusal::new(RefusalCode::RouteLost, "no relay is attached"),
        }
    }

    fn status(&self) -> StatusView {
        let identity = self.settings.identity.get();
        let (state, why) = match &self.state {
            login::State::LoggedIn { .. } => ("logged-in", None),
            login::State::LoggedOut => ("logged-out", None),
            login::State::Connecting(refusal) => {
                // Without a certificate no relay lets it in, whatever else a relay says.
                let refusal = self.locked_out().or_else(|| refusal.clone());
                ("connecting", refusal.as_ref().map(Refusal::to_string))
            }
            login::State::Parked(refusal) => ("parked", Some(refusal.to_string())),
        };
        let roles = match &self.state {
            login::State::LoggedIn { primary, standby } => {
                [Some((primary, "primary")), standby.as_ref().map(|standby| (standby, "standby"))]
            }
            _ => [None, None],
        };
        let attachments = roles
            .into_iter()
            .flatten()
            .filter_map(|(attached, role)| {
                let attachment = self.attachments.get(&attached.attach)?;
                let connection = attachment.connection.as_ref()?;
                Some(AttachmentStatus {
                    relay: attached.relay.clone(),
                    role,
                    address: canonical(connection.remote_address()),
                    seen_as: attachment.seen_as?,
                    rtt_us: connection.rtt().as_micros() as u64,
                    since: attachment.since_ms,
                })
            })
            .collect();
        StatusView {
            id: self.sessions.me().clone(),
            mesh: identity.mesh().to_string(),
            version: version::SOFTWARE.to_owned(),
            state,
            why,
            attachments,
            sessions: self.sessions.len(),
            certificate_until: identity.not_after(),
            renewal: self.settings.identity.renewal_trouble(),
            nat: self.nat(),
            mapped: self.port_map.as_ref().and_then(PortMap::mapped),
            direct: self.paths.counts(),
            dropped: self.context.socket.drops.view(),
            traces: self.settings.traces.shown(),
        }
    }
}

fn rtt_us(connection: &Connection) -> u32 {
    u32::try_from(connection.rtt().as_micros()).unwrap_or(u32::MAX)
}

async fn port_map_changed(port_map: &mut Option<PortMap>) {
    match port_map {
        Some(port_map) => port_map.changed().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
