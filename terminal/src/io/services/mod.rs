//! What sessions carry: served streams and flows, forwarded ports, pings, files.
//!
//! A task per session takes its streams and datagrams, authorises each stream by (peer, service) and serves it,
//! whichever side called, since calls that meet become one session (D3).

pub(crate) mod backlog;
pub(crate) mod ends;
pub(crate) mod forward;
pub(crate) mod inbox;
pub(crate) mod lanes;
pub(crate) mod pause;
pub(crate) mod ping;
pub(crate) mod pipe;
pub mod reached;
pub(crate) mod tcp;
pub(crate) mod udp;
pub(crate) mod vanished;

pub use self::ends::KeepAlive;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tasuki_proto::codec::Envelope;
use tasuki_proto::dial::Dialler;
use tasuki_proto::session::{Begin, PING};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, SessionId, TerminalId, limits};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::ends::Ends;
use self::lanes::Fan;
use self::reached::Reached;
use crate::agent::{Session, SessionGuard};
use crate::config::{Endpoint, Protocol};
use crate::core::access::AccessRules;
use crate::core::budget::Budget;
use crate::core::inbox::Quota;
use crate::core::shares::Shares;

/// How long a service may take for the last bytes of a session that is over.
const HAND_ON: Duration = Duration::from_secs(30);

/// The upper half of the daemon: serves the sessions of one agent.
#[derive(Debug)]
pub struct Services {
    access: Arc<AccessRules>,
    exposed: BTreeMap<ServiceName, Endpoint>,
    inbox: Arc<inbox::Inbox>,
    /// Reaches services by their names.
    dialler: Dialler,
    pub(crate) ends: Ends,
    /// How often limits were reached, over all sessions.
    pub reached: Arc<Reached>,
    attended: Mutex<HashMap<SessionId, Arc<Attended>>>,
    streams: Arc<Mutex<Shares>>,
    pings: Arc<Mutex<Shares>>,
}

/// One of what a peer may hold; given back when dropped.
#[derive(Debug)]
struct Share {
    of: Arc<Mutex<Shares>>,
    peer: TerminalId,
}

impl Share {
    fn take(of: &Arc<Mutex<Shares>>, peer: &TerminalId) -> Option<Self> {
        let taken = of.lock().unwrap_or_else(PoisonError::into_inner).take(peer, 1);
        taken.then(|| Self { of: of.clone(), peer: peer.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.lock().unwrap_or_else(PoisonError::into_inner).give(&self.peer, 1);
    }
}

/// A session that is being served.
#[derive(Debug)]
struct Attended {
    peer: TerminalId,
    flows: Arc<udp::Flows>,
    transfers: inbox::Transfers,
    connection: quinn::Connection,
    lanes: Arc<lanes::Desk>,
    hold: Mutex<Hold>,
}

impl Attended {
    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a session for as long as its peer may use it.
#[derive(Debug)]
enum Hold {
    /// The peer uses the session, since it called or its call was merged into this one (D3): it ends with the peer's
    /// last use.
    Always(Arc<SessionGuard>),
    /// Only this terminal uses it: it ends with the last use of it, served streams included.
    WhileUsed(Weak<SessionGuard>),
}

impl Hold {
    fn guard(&self) -> Option<Arc<SessionGuard>> {
        match self {
            Hold::Always(guard) => Some(guard.clone()),
            Hold::WhileUsed(guard) => guard.upgrade(),
        }
    }

    fn of(guard: &Arc<SessionGuard>) -> Self {
        match guard.request {
            Some(_) => Hold::WhileUsed(Arc::downgrade(guard)),
            None => Hold::Always(guard.clone()),
        }
    }
}

fn shares(each: usize, all: usize) -> Arc<Mutex<Shares>> {
    Arc::new(Mutex::new(Shares::new(each as u64, all as u64)))
}

impl Services {
    /// Serves `exposed` by the rules of `access`, and takes files below the folder `inbox`, as many as its quota says. TCP
    /// connections of services and of forwarded ports have this keep-alive.
    pub fn new(
        access: Arc<AccessRules>,
        exposed: BTreeMap<ServiceName, Endpoint>,
        inbox: (PathBuf, Quota),
        keep_alive: KeepAlive,
    ) -> Arc<Self> {
        Self::with_dialler(access, exposed, inbox, keep_alive, Dialler::default())
    }

    /// As [`Services::new`]; services are reached by `dialler`.
    pub(crate) fn with_dialler(
        access: Arc<AccessRules>,
        exposed: BTreeMap<ServiceName, Endpoint>,
        (inbox, quota): (PathBuf, Quota),
        keep_alive: KeepAlive,
        dialler: Dialler,
    ) -> Arc<Self> {
        let reached = Arc::new(Reached::default());
        Arc::new(Self {
            access,
            exposed,
            inbox: inbox::Inbox::new(inbox, quota),
            dialler,
            ends: Ends::new(keep_alive, reached.clone()),
            reached,
            attended: Mutex::default(),
            streams: shares(limits::STREAMS_PER_PEER, limits::STREAMS),
            pings: shares(limits::PINGS_PER_PEER, limits::PINGS),
        })
    }

    /// What the inbox holds, where it was ever used.
    pub(crate) async fn inbox(&self) -> Option<inbox::InboxView> {
        self.inbox.view().await
    }

    fn attended(&self) -> MutexGuard<'_, HashMap<SessionId, Arc<Attended>>> {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves every session that others begin, until the agent is gone.
    pub async fn run(self: Arc<Self>, mut incoming: mpsc::Receiver<Session>) {
        while let Some(session) = incoming.recv().await {
            self.attend(&session);
        }
    }

    /// Serves what the peer opens in this session, once however often it is asked for; gives its flows.
    pub(crate) fn attend(self: &Arc<Self>, session: &Session) -> Arc<udp::Flows> {
        let mut attended = self.attended();
        if let Some(there) = attended.get(&session.id) {
            if session.guard.request.is_none() {
                *there.hold() = Hold::of(&session.guard);
            }
            return there.flows.clone();
        }
        let this = Arc::new(Attended {
            peer: session.peer.clone(),
            flows: Arc::new(udp::Flows::new(
                session.connection.clone(),
                session.peer.clone(),
                self.reached.clone(),
            )),
            transfers: inbox::Transfers::default(),
            connection: session.connection.clone(),
            lanes: session.lanes.clone(),
            hold: Mutex::new(Hold::of(&session.guard)),
        });
        attended.insert(session.id, this.clone());
        drop(attended);
        let (services, id) = (self.clone(), session.id);
        let (connection, mut ended) = (session.connection.clone(), session.ended.clone());
        let flows = this.flows.clone();
        let is_ping = session.service.as_str() == PING;
        let releases = session.guard.releases.clone();
        tokio::spawn(async move {
            let mut streams = JoinSet::new();
            tokio::select! {
                () = udp::take_datagrams(&this.flows) => {}
                () = services.serve_session(&connection, &this, &mut streams, is_ping) => {
                    if connection.close_reason().is_none() {
                        releases.end(id, RefusalCode::EndedByCallee);
                    }
                }
                _ = ended.wait_for(Option::is_some) => {}
            }
            services.attended().remove(&id);
            // What arrived before the end is still handed on; a service that does not take it is cut.
            let rest = async { while streams.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(HAND_ON, rest).await;
            tracing::debug!(session = %id, peer = %this.peer, "session is served no more");
        });
        flows
    }

    /// Takes what the peer opens until the connection ends, or until a session that was called for pings, and serves
    /// nothing else, rests for [`limits::PING_IDLE`]; served streams run in `streams`.
    async fn serve_session(
        self: &Arc<Self>,
        connection: &quinn::Connection,
        session: &Arc<Attended>,
        streams: &mut JoinSet<()>,
        is_ping: bool,
    ) {
        let mut rests = tokio::time::interval(limits::PING_IDLE);
        rests.reset();
        let mut is_used = true;
        let mut opens = Budget::new(limits::STREAM_OPENS_PER_SECOND, Instant::now());
        // QUIC bounds them: a stream counts until its refusal was sent.
        let mut refusals = JoinSet::new();
        loop {
            tokio::select! {
                _ = rests.tick(), if is_ping => {
                    while streams.try_join_next().is_some() {}
                    let is_others = matches!(*session.hold(), Hold::WhileUsed(_));
                    let holds = is_others || session.lanes.room.is_wide() || !streams.is_empty();
                    if !std::mem::replace(&mut is_used, holds) && !holds {
                        return;
                    }
                }
                stream = connection.accept_bi() => {
                    let Ok((mut send, mut recv)) = stream else { return };
                    is_used = true;
                    while streams.try_join_next().is_some() {}
                    while refusals.try_join_next().is_some() {}
                    let held = session.hold().guard();
                    let Some(guard) = held else {
                        pipe::reset(&mut send, &mut recv);
                        continue;
                    };
                    let share = match self.admit(session, streams.len(), &mut opens) {
                        Ok(share) => share,
                        Err(refusal) => {
                            // Others do not wait until the peer takes it.
                            refusals.spawn(async move {
                                pipe::refuse(&mut send, &mut recv, refusal).await;
                            });
                            continue;
                        }
                    };
                    let (services, session) = (self.clone(), session.clone());
                    let delivered = matches!(*session.hold(), Hold::WhileUsed(_))
                        .then(|| pipe::delivered(&send));
                    streams.spawn(async move {
                        let is_said = services.serve_stream(&session, send, recv).await;
                        if let Some(delivered) = delivered.filter(|_| is_said) {
                            delivered.await;
                        }
                        drop((guard, share));
                    });
                }
            }
        }
    }

    /// Gives one more stream of a session its place, or says which limit has none.
    fn admit(&self, session: &Attended, open: usize, opens: &mut Budget) -> Result<Share, Refusal> {
        let refused = |limit, most| Err(self.stream_refusal(&session.peer, limit, most));
        if open >= limits::STREAMS_PER_SESSION {
            return refused("STREAMS_PER_SESSION", limits::STREAMS_PER_SESSION);
        }
        if !opens.take(Instant::now()) {
            return refused("STREAM_OPENS_PER_SECOND", limits::STREAM_OPENS_PER_SECOND as usize);
        }
        let share = Share::take(&self.streams, &session.peer);
        share.map_or_else(|| refused("STREAMS_PER_PEER", limits::STREAMS_PER_PEER), Ok)
    }

    /// Counts and logs that a stream is refused at a limit.
    fn stream_refusal(&self, peer: &TerminalId, limit: &str, most: usize) -> Refusal {
        if let Some(count) = self.reached.streams_refused.reach() {
            tracing::warn!(limit, %peer, most, count, "streams of another terminal are refused");
        }
        Refusal::new(RefusalCode::Busy, format!("{limit}: at most {most}"))
    }

    /// Whether something was said on the stream that has to arrive. What was only reset has not: of that quinn tells
    /// nothing.
    async fn serve_stream(
        &self,
        session: &Arc<Attended>,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> bool {
        let begin = Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES);
        let envelope = match tokio::time::timeout(limits::STREAM_BEGIN_TIMEOUT, begin).await {
            Ok(Ok(Some(envelope))) => envelope,
            _ => {
                pipe::reset(&mut send, &mut recv);
                return false;
            }
        };
        let begin = match Begin::from_envelope(&envelope) {
            Ok(Some(begin)) => begin,
            _ => {
                let refusal = Refusal::new(RefusalCode::BadRequest, "stream of an unknown kind");
                pipe::refuse(&mut send, &mut recv, refusal).await;
                return true;
            }
        };
        let is_said = !matches!(begin, Begin::Pause(_));
        match self.authorise(&session.peer, &begin) {
            Ok(endpoint) => {
                if begin.service().is_some_and(|service| service.as_str() != PING) {
                    session.lanes.room.widen(&session.connection, &session.peer);
                }
                self.serve(session, begin, endpoint, send, recv).await;
            }
            Err(refusal) => {
                tracing::info!(peer = %session.peer, %refusal, "stream refused");
                pipe::refuse(&mut send, &mut recv, refusal).await;
            }
        }
        is_said
    }

    /// Whether `peer` may do what `begin` asks, and with which address behind it.
    fn authorise(&self, peer: &TerminalId, begin: &Begin) -> Result<Option<&Endpoint>, Refusal> {
        let Some(service) = begin.service() else { return Ok(None) };
        self.access.check(peer, &service)?;
        let wanted = match begin {
            Begin::Bytes(_) => Protocol::Tcp,
            Begin::Flow(_) => Protocol::Udp,
            Begin::Ping(_)
            | Begin::Offer(_)
            | Begin::Part(_)
            | Begin::Lane(_)
            | Begin::Pause(_) => return Ok(None),
        };
        let endpoint = self.exposed.get(&service).filter(|endpoint| endpoint.protocol == wanted);
        endpoint.map(Some).ok_or_else(|| {
            let detail = format!("{service} over {}", wanted.word());
            Refusal::new(RefusalCode::ServiceNotExposed, detail)
        })
    }

    async fn serve(
        &self,
        session: &Arc<Attended>,
        begin: Begin,
        endpoint: Option<&Endpoint>,
        mut send: SendStream,
        mut recv: RecvStream,
    ) {
        match (begin, endpoint) {
            (Begin::Bytes(_), Some(endpoint)) => {
                let fan = Fan { connection: &session.connection, desk: &session.lanes };
                tcp::serve(endpoint, (&self.ends, &self.dialler), send, recv, fan).await;
            }
            (Begin::Lane(lane), _) => session.lanes.serve(lane, send, recv).await,
            (Begin::Pause(pause), _) => session.lanes.pauses.serve(pause, send, recv).await,
            (Begin::Flow(open), Some(endpoint)) => {
                let (number, near) = (open.flow, (&self.ends, &self.dialler));
                udp::serve(&session.flows, near, number, endpoint, send, recv).await;
            }
            (Begin::Offer(offer), _) => {
                self.inbox.serve_offer(&session.transfers, &session.peer, offer, send, recv).await;
            }
            (Begin::Part(part), _) => session.transfers.serve_part(part, send, recv).await,
            (Begin::Ping(_) | Begin::Bytes(_) | Begin::Flow(_), _) => {
                match Share::take(&self.pings, &session.peer) {
                    Some(share) => {
                        ping::serve(send, recv).await;
                        drop(share);
                    }
                    None => {
                        let refusal = Refusal::new(RefusalCode::Busy, "pings of one peer");
                        pipe::refuse(&mut send, &mut recv, refusal).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
