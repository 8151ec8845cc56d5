//! UDP: a flow per client, its packets are QUIC datagrams, so nothing is repeated or put in order.
//!
//! A payload that fits into one packet of the session travels in one datagram: up to 1,398 bytes where an Ethernet's
//! 1,500 fit, and at least 1,154 on the narrowest path (1,200). A larger one travels in up to
//! [`limits::DATAGRAM_PIECES`] pieces, so what an Ethernet carries always passes. What needs more is dropped, counted and
//! said with its size.
//!
//! When a session has no place for another flow, one that is over or idle makes room ([`crate::core::flows`]).

mod table;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tasuki_proto::dial::{Dialler, Manner, Place};
use tasuki_proto::session::{Answer, Begin, FlowTag, OpenFlow, Opened};
use tasuki_proto::{ServiceName, limits};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use self::table::Entry;
pub(crate) use self::table::Flows;
use super::ends::{Ends, overruns};
use super::forward::Teller;
use super::pipe::{self, Broken};
use crate::config::Endpoint;

/// More than the largest UDP payload.
const RECEIVE_BYTES: usize = 65_536;
/// What the kernel is asked to hold of what arrives at a local socket.
const SOCKET_BYTES: usize = 1024 * 1024;
/// How long one of several addresses of a service may stay silent until the next one is tried.
const UNANSWERED: Duration = Duration::from_secs(1);
/// Payloads that are taken from a socket before others get their turn.
const BATCH: usize = 32;
/// The side that serves a flow keeps it this much longer than its opener, so that the opener knows first that it ended.
const FLOW_GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether a payload that waits finds a flow.
const RETRY: Duration = Duration::from_millis(5);
/// How often the kernel is asked what it had no room for.
const OVERRUN_PERIOD: Duration = Duration::from_secs(5);
/// A served flow with fewer answers is not worth the question.
const OVERRUN_WORTH: u64 = 100;

thread_local! {
    /// Where payloads are received, one at a time: it is used without waiting.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; RECEIVE_BYTES]);
}

/// A socket that is ready to send: `try_send` works only after the first readiness was seen.
async fn ready(socket: UdpSocket) -> io::Result<Arc<UdpSocket>> {
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BYTES);
    socket.writable().await?;
    Ok(Arc::new(socket))
}

async fn connect(address: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let local: SocketAddr =
        if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    ready(socket).await
}

/// Waits until the other side ends the flow's stream.
async fn life_line(recv: &mut RecvStream) {
    while let Ok(Some(_)) = recv.read_chunk(RECEIVE_BYTES, true).await {}
}

/// How long one address of a service is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Until it was silent for [`UNANSWERED`].
    Trial,
    /// Until something comes: all addresses were silent, and the service may well be one that never answers.
    Waits,
    /// It answered.
    Settled,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Back {
    /// The flow or its session is over.
    Over,
    /// Nothing came.
    Silent,
    /// This address answered.
    Heard(SocketAddr),
}

type Sockets = Vec<(SocketAddr, Arc<UdpSocket>)>;

/// Serves a flow by sockets of its own towards the service.
///
/// UDP has no handshake that would show which address of a name is alive: an address that says nothing for
/// [`UNANSWERED`] makes room for the next one. The first one that answers stays, also when it answers late; when none
/// does, the first one stays.
pub(crate) async fn serve(
    flows: &Arc<Flows>,
    (ends, dialler): (&Ends, &Dialler),
    flow: u32,
    endpoint: &Endpoint,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let place = Place { target: 0, host: endpoint.host.clone(), port: endpoint.port };
    let found = dialler.addresses(&place, Manner::SERVICE).await;
    let mut last_error = io::Error::from(ErrorKind::NotFound);
    let addresses = found.unwrap_or_else(|why| {
        tracing::debug!(%endpoint, why, "the service's name does not resolve");
        Vec::new()
    });
    let on_trial = if addresses.len() > 1 { &addresses[..] } else { &[] };
    let mut turns: VecDeque<_> = on_trial.iter().map(|address| (*address, Turn::Trial)).collect();
    turns.extend(addresses.first().map(|address| (*address, Turn::Waits)));
    let (mut is_opened, mut sockets) = (false, Sockets::new());
    while let Some((address, turn)) = turns.pop_front() {
        let socket = match socket_of(&mut sockets, address).await {
            Ok(socket) => socket,
            Err(error) => {
                dialler.note(address, false);
                last_error = error;
                continue;
            }
        };
        let entry = match flows.serve(flow, socket) {
            Ok(entry) => entry,
            Err(refusal) if !is_opened => {
                flows.forget_early(flow);
                return pipe::refuse(&mut send, &mut recv, refusal).await;
            }
            Err(_) => break,
        };
        if !is_opened && pipe::say(&mut send, &Answer::Opened(Opened {})).await.is_err() {
            return;
        }
        is_opened = true;
        let back = tokio::select! {
            back = answers(&entry, &sockets, turn, endpoint) => back,
            () = life_line(&mut recv) => Back::Over,
            () = entry.over(limits::FLOW_IDLE + FLOW_GRACE) => Back::Over,
        };
        match back {
            Back::Over => {
                say_overruns(&entry, endpoint);
                break;
            }
            Back::Silent => tracing::debug!(%endpoint, %address, "no answer from the UDP service"),
            Back::Heard(from) => {
                sockets.iter().for_each(|(address, _)| dialler.note(*address, *address == from));
                sockets.retain(|(address, _)| *address == from);
                turns = [(from, Turn::Settled)].into();
            }
        }
    }
    if is_opened {
        let _ = send.finish();
    } else {
        flows.forget_early(flow);
        let refusal = ends.refusal(endpoint, &last_error);
        pipe::refuse(&mut send, &mut recv, refusal).await;
    }
}

/// Says how many answers of a service the kernel had no room for.
fn say_overruns(entry: &Entry, endpoint: &Endpoint) {
    if entry.flow.answers() >= OVERRUN_WORTH
        && let Some(lost) = overruns(&entry.flow.socket)
        && let Some(count) = entry.flows.reached().udp_port_overrun.reach_times(lost)
    {
        tracing::warn!(
            limit = "net.core.rmem_max", %endpoint, count,
            "UDP payloads of a service came faster than they were taken and are dropped"
        );
    }
}

/// The socket towards `address`, made when there is none.
async fn socket_of(sockets: &mut Sockets, address: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    if let Some((_, socket)) = sockets.iter().find(|(known, _)| *known == address) {
        return Ok(socket.clone());
    }
    let socket = connect(address).await?;
    sockets.push((address, socket.clone()));
    Ok(socket)
}

/// What one look at a socket found.
enum Taken {
    Answer,
    Nothing,
    Failed,
    Over,
}

/// Passes on what the service says, from whichever of the sockets, as long as the turn lasts.
async fn answers(entry: &Entry, sockets: &Sockets, turn: Turn, endpoint: &Endpoint) -> Back {
    let tag = FlowTag { flow: entry.number, to_opener: true };
    loop {
        let ready = readable(sockets);
        let (from, socket) = match turn {
            Turn::Trial => match tokio::time::timeout(UNANSWERED, ready).await {
                Ok(ready) => ready,
                Err(_) => return Back::Silent,
            },
            Turn::Waits | Turn::Settled => ready.await,
        };
        for _ in 0..BATCH {
            let taken = BUFFER.with_borrow_mut(|buffer| match socket.try_recv(buffer) {
                Ok(length) => {
                    entry.flow.answered();
                    let sent = entry.flows.send(tag, &buffer[..length]);
                    if sent.is_ok() { Taken::Answer } else { Taken::Over }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => Taken::Nothing,
                // Nobody is there (ICMP): the next address has its turn, and with the last one the client notices.
                Err(error) => {
                    tracing::debug!(%endpoint, address = %from, %error, "UDP service");
                    Taken::Failed
                }
            });
            let is_latest = || sockets.last().is_some_and(|(last, _)| *last == from);
            match taken {
                Taken::Answer if turn != Turn::Settled => return Back::Heard(from),
                Taken::Failed if turn == Turn::Trial && is_latest() => return Back::Silent,
                Taken::Answer | Taken::Failed => {}
                Taken::Nothing => break,
                Taken::Over => return Back::Over,
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The next of the sockets that something arrived at.
async fn readable(sockets: &Sockets) -> (SocketAddr, &UdpSocket) {
    std::future::poll_fn(|context| {
        for (address, socket) in sockets {
            if socket.poll_recv_ready(context).is_ready() {
                return Poll::Ready((*address, &**socket));
            }
        }
        Poll::Pending
    })
    .await
}

/// Keeps one flow of this side open until it is idle, makes room, or the peer ends it.
async fn keep(entry: Entry, service: ServiceName) -> Result<(), Broken> {
    let opened = async {
        let begin = Begin::Flow(OpenFlow { service, flow: entry.number });
        let (mut send, mut recv) = pipe::open(entry.flows.connection(), &begin).await?;
        pipe::read_opened(&mut recv).await?;
        life_line(&mut recv).await;
        let _ = send.finish();
        Ok(())
    };
    tokio::select! {
        result = opened => result,
        // The stream ends as it is dropped.
        () = entry.over(limits::FLOW_IDLE) => Ok(()),
    }
}

/// A payload that waits for a flow.
struct Waiting {
    client: SocketAddr,
    payload: Bytes,
    since: Instant,
}

type Client = (u32, Arc<table::Flow>);
type Kept = (SocketAddr, u32, Result<(), Broken>);

/// A forwarded port in one session.
struct Port<'a> {
    socket: Arc<UdpSocket>,
    flows: Arc<Flows>,
    service: ServiceName,
    clients: HashMap<SocketAddr, Client>,
    keepers: JoinSet<Kept>,
    /// Payloads of clients that found no flow yet.
    waiting: VecDeque<Waiting>,
    teller: &'a mut Teller,
}

/// Forwards what arrives at `socket` over the session of `flows`, until the session ends.
///
/// # Errors
/// [`Broken::Refused`] when the peer refused a flow for a reason that will not pass by itself; `Broken::Local`
/// when the socket fails.
pub(crate) async fn forward(
    socket: Arc<UdpSocket>,
    flows: Arc<Flows>,
    service: ServiceName,
    teller: &mut Teller,
) -> Broken {
    let connection = flows.connection().clone();
    let closed = connection.closed();
    tokio::pin!(closed);
    let (clients, keepers) = (HashMap::new(), JoinSet::new());
    let waiting = VecDeque::new();
    let mut port = Port { socket, flows, service, clients, keepers, waiting, teller };
    let [mut ticks, mut retry] = [OVERRUN_PERIOD, RETRY].map(|period| {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks
    });
    loop {
        let done = tokio::select! {
            _ = &mut closed => Err(Broken::Lost),
            Some(kept) = port.keepers.join_next() => match kept {
                Ok(kept) => port.handle_end(kept),
                Err(_) => Ok(()),
            },
            ready = port.socket.readable() => match ready {
                Ok(()) => port.take_batch(),
                Err(error) => Err(Broken::Local(error)),
            },
            _ = retry.tick(), if !port.waiting.is_empty() => port.serve_waiting(),
            _ = ticks.tick() => {
                port.look_for_overruns();
                Ok(())
            }
        };
        if let Err(broken) = done {
            return broken;
        }
        tokio::task::yield_now().await;
    }
}

impl Port<'_> {
    fn handle_end(&mut self, (client, number, result): Kept) -> Result<(), Broken> {
        if self.clients.get(&client).is_some_and(|(current, _)| *current == number) {
            self.clients.remove(&client);
        }
        match result {
            Err(Broken::Refused(refusal)) if !refusal.code.retry_helps() => {
                Err(Broken::Refused(refusal))
            }
            Err(Broken::Refused(refusal)) => {
                let peer = self.flows.peer();
                if let Some(count) = self.flows.reached().udp_flows_refused.reach() {
                    tracing::warn!(%peer, service = %self.service, %refusal, count, "UDP flows refused");
                }
                self.teller.refused(refusal);
                Ok(())
            }
            Err(Broken::Lost) => Err(Broken::Lost),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn take_batch(&mut self) -> Result<(), Broken> {
        for _ in 0..BATCH {
            let goes_on =
                BUFFER.with_borrow_mut(|buffer| match self.socket.try_recv_from(buffer) {
                    Ok((length, client)) => self.pass_on(client, &buffer[..length]).map(|()| true),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
                    Err(error) => Err(Broken::Local(error)),
                })?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn pass_on(&mut self, client: SocketAddr, payload: &[u8]) -> Result<(), Broken> {
        match self.flow_of(client, self.waiting.is_empty()) {
            Some((number, flow)) => self.send(number, &flow, payload),
            None if self.waiting.len() < limits::WAITING_PAYLOADS => {
                let payload = Bytes::copy_from_slice(payload);
                self.waiting.push_back(Waiting { client, payload, since: Instant::now() });
                Ok(())
            }
            None => {
                self.found_no_flow();
                Ok(())
            }
        }
    }

    /// The flow of a client; a new one if it has none, `may_begin` and there is a place.
    fn flow_of(&mut self, client: SocketAddr, may_begin: bool) -> Option<Client> {
        let known = self.clients.get(&client).filter(|(_, flow)| !flow.is_over());
        if let Some(known) = known {
            return Some(known.clone());
        }
        let entry = may_begin.then(|| self.flows.begin(self.socket.clone(), client)).flatten()?;
        let (number, flow) = (entry.number, entry.flow.clone());
        self.clients.insert(client, (number, flow.clone()));
        let service = self.service.clone();
        self.keepers.spawn(async move { (client, number, keep(entry, service).await) });
        Some((number, flow))
    }

    fn send(&mut self, flow: u32, used: &table::Flow, payload: &[u8]) -> Result<(), Broken> {
        used.asked();
        if let Some(most) = self.flows.send(FlowTag { flow, to_opener: false }, payload)? {
            let bytes = payload.len();
            self.teller.limit("DATAGRAM_PIECES", |count| {
                format!(
                    "{count} UDP payloads dropped, the last one of {bytes} bytes: at most {most} bytes pass"
                )
            });
        }
        Ok(())
    }

    /// Sends what waits for flows, in order, as far as there are places.
    fn serve_waiting(&mut self) -> Result<(), Broken> {
        while let Some(first) = self.waiting.front() {
            let (client, waited) = (first.client, first.since.elapsed());
            let flow = self.flow_of(client, true);
            if flow.is_none() && waited < limits::FLOW_WAIT {
                break;
            }
            let Some(first) = self.waiting.pop_front() else { break };
            match flow {
                Some((number, flow)) => self.send(number, &flow, &first.payload)?,
                None => self.found_no_flow(),
            }
        }
        Ok(())
    }

    fn found_no_flow(&mut self) {
        self.flows.refused("FORWARDED_FLOWS");
        self.teller.limit("FORWARDED_FLOWS", |count| {
            let most = limits::FORWARDED_FLOWS;
            format!("all {most} UDP flows of the session are in use: {count} payloads of further clients dropped")
        });
    }

    fn look_for_overruns(&mut self) {
        let Some(overruns) = overruns(&self.socket) else { return };
        let lost = overruns.saturating_sub(self.teller.overruns);
        self.teller.overruns = overruns;
        if lost == 0 {
            return;
        }
        if let Some(count) = self.flows.reached().udp_port_overrun.reach_times(lost) {
            tracing::warn!(
                limit = "net.core.rmem_max", service = %self.service, count,
                "UDP payloads came faster than they were taken from a forwarded port and are dropped"
            );
        }
        self.teller.limit("net.core.rmem_max", |_| {
            format!("{lost} UDP payloads came faster than they were taken and are dropped")
        });
    }
}

/// Binds the local port of a forwarded UDP service.
///
/// # Errors
/// As binding does.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    ready(UdpSocket::bind(address).await?).await
}

/// Takes the datagrams of a session until it ends.
pub(crate) async fn take_datagrams(flows: &Flows) {
    /// How often it is looked whether some were dropped before they were taken.
    const LOOK: Duration = Duration::from_secs(1);
    let connection = flows.connection();
    let (mut taken, mut missed) = (0_u64, 0_u64);
    let (mut due, mut looked) = (None, Instant::now());
    loop {
        let arrived = (looked.elapsed() >= LOOK).then(|| {
            looked = Instant::now();
            connection.stats().frame_rx.datagram
        });
        let next = connection.read_datagram();
        tokio::pin!(next);
        if let Some(arrived) = arrived
            && futures_util::poll!(&mut next).is_pending()
        {
            // Nothing waits, so all that had arrived was taken or dropped.
            let now_missed = arrived.saturating_sub(taken);
            flows.queue_full(
                "a session's datagrams were not taken in time",
                now_missed - missed.min(now_missed),
            );
            missed = missed.max(now_missed);
        }
        tokio::select! {
            datagram = next => match datagram {
                Ok(datagram) => {
                    taken += 1;
                    due = flows.handle_datagram(datagram);
                }
                Err(_) => return,
            },
            () = sleep_until(due) => due = flows.handle_timeout(),
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
