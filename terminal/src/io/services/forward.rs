//! A local port that leads to a service of another terminal.
//!
//! It listens as soon as it runs, opens its session at once, keeps it also while no connection is open, and
//! calls again when it ended. What connects before that waits, [`limits::FORWARD_WAIT`] at most.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::session::{Begin, OpenBytes};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, TerminalId, limits};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::lanes::Fan;
use super::pipe::Broken;
use super::vanished::Watch;
use super::{Services, ends, tcp, udp};
use crate::agent::{Agent, Session};
use crate::config::Protocol;
use crate::core::notice::Notice;
use crate::core::retry::{Retry, Verdict};

/// Connections that the kernel keeps while this side is busy.
const BACKLOG: u32 = 1024;

/// What a forwarded port has to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ForwardEvent {
    /// It listens here.
    Listening(SocketAddr),
    /// The session is there.
    Connected,
    /// There is no session; it calls again after this long.
    Waiting(Refusal, Duration),
    /// A connection was refused by the other terminal, or found no place here in time.
    Refused(Refusal),
    /// A limit was reached: its name, and what came of it.
    Limit(String),
}

/// Tells the user of a forwarded port of limits that were reached, each at once and then at most every ten seconds.
#[derive(Debug)]
pub(crate) struct Teller {
    events: mpsc::Sender<ForwardEvent>,
    notices: HashMap<&'static str, Notice>,
    /// What the kernel had dropped at the port when it was last asked.
    pub(crate) overruns: u64,
}

impl Teller {
    fn new(events: mpsc::Sender<ForwardEvent>) -> Self {
        Self { events, notices: HashMap::new(), overruns: 0 }
    }

    /// `limit` was reached once more; `what` is told, with how often since it was last told. Nobody waits for the user.
    pub(crate) fn limit(&mut self, limit: &'static str, what: impl FnOnce(u64) -> String) {
        if let Some(count) = self.notices.entry(limit).or_default().handle(Instant::now()) {
            let text = format!("{limit}: {}", what(count));
            let _ = self.events.try_send(ForwardEvent::Limit(text));
        }
    }

    /// A flow was refused by the other terminal.
    pub(crate) fn refused(&mut self, refusal: Refusal) {
        if self.notices.entry("refused").or_default().handle(Instant::now()).is_some() {
            let _ = self.events.try_send(ForwardEvent::Refused(refusal));
        }
    }
}

/// Why a forwarded port cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The local port.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The call, in a way that calling again cannot change.
    #[error("{0}")]
    Refused(Refusal),
}

/// A forwarded port. Dropping its future closes the port and ends its session and connections.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) agent: Agent,
    pub(crate) services: Arc<Services>,
    pub(crate) protocol: Protocol,
    pub(crate) listen: SocketAddr,
    pub(crate) target: TerminalId,
    pub(crate) service: ServiceName,
    pub(crate) events: mpsc::Sender<ForwardEvent>,
}

type Current = watch::Receiver<Option<Session>>;

impl Forward {
    /// Runs until it is dropped, or cannot go on.
    pub(crate) async fn run(self) -> ForwardError {
        let (publish, current) = watch::channel(None);
        let failed = |error| ForwardError::Listen(self.listen, error);
        match self.protocol {
            Protocol::Tcp => match listen_tcp(self.listen).and_then(|l| Ok((l.local_addr()?, l))) {
                Ok((address, listener)) => {
                    self.tell(ForwardEvent::Listening(address)).await;
                    tokio::select! {
                        error = self.keep_session(publish) => error,
                        error = self.accept(listener, current) => failed(error),
                    }
                }
                Err(error) => failed(error),
            },
            Protocol::Udp => match udp::listen(self.listen).await {
                Ok(socket) => {
                    let address = socket.local_addr().unwrap_or(self.listen);
                    self.tell(ForwardEvent::Listening(address)).await;
                    tokio::select! {
                        error = self.keep_session(publish) => error,
                        error = self.forward_datagrams(socket, current) => error,
                    }
                }
                Err(error) => failed(error),
            },
        }
    }

    async fn tell(&self, event: ForwardEvent) {
        let _ = self.events.send(event).await;
    }

    /// Calls, publishes the session, waits for its end, calls again.
    async fn keep_session(&self, publish: watch::Sender<Option<Session>>) -> ForwardError {
        let mut retry = Retry::default();
        loop {
            let (refusal, wait) =
                match self.agent.call(self.target.clone(), self.service.clone()).await {
                    Ok(session) => {
                        let began = Instant::now();
                        self.services.attend(&session);
                        publish.send_replace(Some(session.clone()));
                        self.tell(ForwardEvent::Connected).await;
                        let code = wait_for_end(session).await;
                        publish.send_replace(None);
                        (code.into(), retry.handle_end(began.elapsed(), jitter()))
                    }
                    Err(refusal) => match retry.handle_refusal(refusal.code, jitter()) {
                        Verdict::Again(wait) => (refusal, wait),
                        Verdict::GiveUp => return ForwardError::Refused(refusal),
                    },
                };
            tracing::info!(target_terminal = %self.target, service = %self.service, %refusal, "no session");
            self.tell(ForwardEvent::Waiting(refusal, wait)).await;
            tokio::time::sleep(wait).await;
        }
    }

    async fn accept(&self, listener: TcpListener, current: Current) -> std::io::Error {
        const MOST: usize = limits::FORWARD_CONNECTIONS + limits::FORWARD_WAITING;
        let mut connections: JoinSet<Option<Refusal>> = JoinSet::new();
        let begin = Begin::Bytes(OpenBytes { service: self.service.clone() });
        let places = Arc::new(Semaphore::new(limits::FORWARD_CONNECTIONS));
        let (mut said, mut teller) = (Notice::default(), Teller::new(self.events.clone()));
        loop {
            tokio::select! {
                // What does not even find a place to wait stays in the kernel's backlog.
                accepted = listener.accept(), if connections.len() < MOST => match accepted {
                    Ok((tcp, _)) => {
                        if places.available_permits() == 0 {
                            self.wait_for_place(&mut teller);
                        }
                        let watch = self.services.ends.watch(&tcp);
                        let (begin, current) = (begin.clone(), current.clone());
                        connections.spawn(carry((tcp, watch), begin, current, places.clone()));
                    }
                    // Out of files, or the client left already: the listener itself is sound.
                    Err(error) => {
                        self.not_accepted(&error, &mut said, &mut teller);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(done) = connections.join_next() => {
                    if let Ok(Some(refusal)) = done {
                        self.tell_refused(refusal);
                    }
                }
            }
        }
    }

    fn wait_for_place(&self, teller: &mut Teller) {
        const LIMIT: &str = "FORWARD_CONNECTIONS";
        let most = limits::FORWARD_CONNECTIONS;
        if let Some(count) = self.services.reached.connections_waited.reach() {
            tracing::warn!(
                limit = LIMIT, port = %self.listen, most, count,
                "all places of a forwarded port are taken, further connections wait"
            );
        }
        teller.limit(LIMIT, |count| {
            let seconds = limits::FORWARD_WAIT.as_secs();
            format!("{most} connections are open, {count} more wait for one of them to end, up to {seconds} s")
        });
    }

    fn not_accepted(&self, error: &std::io::Error, said: &mut Notice, teller: &mut Teller) {
        let count = if ends::is_file_limit(error) {
            teller.limit("RLIMIT_NOFILE", |_| format!("connections wait to be accepted: {error}"));
            self.services.reached.out_of_files.reach()
        } else {
            said.handle(Instant::now())
        };
        if let Some(count) = count {
            tracing::warn!(%error, port = %self.listen, count, "connections cannot be accepted");
        }
    }

    /// Tells the user, as long as one is fast enough to read it.
    fn tell_refused(&self, refusal: Refusal) {
        if refusal.detail.starts_with(NO_PLACE)
            && let Some(count) = self.services.reached.connections_reset.reach()
        {
            tracing::warn!(
                limit = "FORWARD_CONNECTIONS", port = %self.listen, count,
                "connections found no place in time and are reset"
            );
        }
        let _ = self.events.try_send(ForwardEvent::Refused(refusal));
    }

    async fn forward_datagrams(
        &self,
        socket: Arc<UdpSocket>,
        mut current: Current,
    ) -> ForwardError {
        let mut teller = Teller::new(self.events.clone());
        loop {
            // While there is no session the kernel keeps what arrives, as much as its buffer takes.
            let session = current.wait_for(Option::is_some).await.map(|now| now.clone());
            let Ok(Some(session)) = session else { return std::future::pending().await };
            let flows = self.services.attend(&session);
            match udp::forward(socket.clone(), flows, self.service.clone(), &mut teller).await {
                Broken::Local(error) => return ForwardError::Listen(self.listen, error),
                Broken::Refused(refusal) => {
                    self.tell(ForwardEvent::Refused(refusal)).await;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Broken::Reset | Broken::Lost => {
                    let gone =
                        |now: &Option<Session>| now.as_ref().is_none_or(|now| now.id != session.id);
                    let _ = current.wait_for(gone).await;
                }
            }
        }
    }
}

fn jitter() -> f64 {
    rand::rng().random_range(0.0..1.0)
}

fn listen_tcp(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Waits until the session is over; says why.
pub(crate) async fn wait_for_end(session: Session) -> RefusalCode {
    let mut ended = session.ended.clone();
    tokio::select! {
        code = ended.wait_for(Option::is_some) => {
            code.ok().and_then(|code| *code).unwrap_or(RefusalCode::PeerLost)
        }
        _ = session.connection.closed() => {
            (*session.ended.borrow()).unwrap_or(RefusalCode::PeerLost)
        }
    }
}

/// How the detail of a refusal begins when all places of the port stayed taken.
const NO_PLACE: &str = "FORWARD_CONNECTIONS";

/// Waits for a place and the session, and carries one connection over it. Gives the refusal when the other terminal
/// refused, or when there was no place or no session in time.
async fn carry(
    (tcp, watch): (TcpStream, Watch),
    begin: Begin,
    mut current: Current,
    places: Arc<Semaphore>,
) -> Option<Refusal> {
    let deadline = tokio::time::Instant::now() + limits::FORWARD_WAIT;
    let Ok(Ok(_place)) = tokio::time::timeout_at(deadline, places.acquire_owned()).await else {
        tcp::reset_on_close(&tcp);
        let most = limits::FORWARD_CONNECTIONS;
        let detail = format!("{NO_PLACE}: {most} connections of this port are open");
        return Some(Refusal::new(RefusalCode::Busy, detail));
    };
    let mut waiting = Some(tcp);
    while let Some(tcp) = waiting.take() {
        let session = tokio::time::timeout_at(deadline, current.wait_for(Option::is_some)).await;
        let Some(session) = session.ok().and_then(Result::ok).and_then(|now| now.clone()) else {
            tcp::reset_on_close(&tcp);
            return Some(RefusalCode::NoAnswer.into());
        };
        let fan = Fan { connection: &session.connection, desk: &session.lanes };
        match tcp::carry(tcp, &watch, fan, &begin).await {
            Ok(()) => return None,
            Err((Broken::Refused(refusal), _)) => return Some(refusal),
            Err((_, None)) => return None,
            Err((_, back)) => waiting = back,
        }
        // The session was over before anything was carried: the next one will do.
        let gone = |now: &Option<Session>| now.as_ref().is_none_or(|now| now.id != session.id);
        let _ = tokio::time::timeout_at(deadline, current.wait_for(gone)).await;
    }
    None
}
