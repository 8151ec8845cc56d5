//! UDP: a flow per client, its packets are QUIC datagrams, so nothing is repeated or put in order.
//!
//! The largest payload is what fits into one packet of the session: 46 bytes less than a packet, so 1,398 bytes where
//! an Ethernet's 1,500 fit, and at least 1,154 on the narrowest path (1,200). Larger ones are dropped and counted.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendDatagramError, SendStream};
use tasuki_proto::dial::{Dialler, Manner, Place};
use tasuki_proto::session::{Answer, Begin, FlowTag, MAX_FLOW, OpenFlow, Opened};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, limits};
use tokio::io::ReadBuf;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::pipe::{self, Broken};
use crate::config::Endpoint;

/// More than any session's packet holds: what fills it is too large.
const RECEIVE_BYTES: usize = 2048;
/// How long one of several addresses of a service may stay silent until the next one is tried.
const UNANSWERED: Duration = Duration::from_secs(1);

/// What was dropped, by reason.
#[derive(Debug, Default)]
pub struct UdpDrops {
    /// Did not fit into one packet of the session.
    pub too_large: AtomicU64,
    /// Of no open flow, or malformed.
    pub no_flow: AtomicU64,
    /// The local socket took no more.
    pub socket_full: AtomicU64,
    /// More clients than [`limits::FLOWS_PER_SESSION`].
    pub too_many_flows: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where a flow's datagrams go locally.
#[derive(Debug, Clone)]
struct Sink {
    socket: Arc<UdpSocket>,
    /// `None`: the socket is connected.
    to: Option<SocketAddr>,
    touched: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Table {
    /// Flows that the peer opened and this side serves.
    served: HashMap<u32, Sink>,
    /// Flows that this side opened.
    opened: HashMap<u32, Sink>,
    /// Datagrams that came before their flow.
    early: VecDeque<(u32, Bytes)>,
    next: u32,
}

impl Table {
    fn sinks(&mut self, served: bool) -> &mut HashMap<u32, Sink> {
        if served { &mut self.served } else { &mut self.opened }
    }
}

/// The flows of one session.
#[derive(Debug)]
pub(crate) struct Flows {
    connection: quinn::Connection,
    table: Mutex<Table>,
    drops: Arc<UdpDrops>,
}

/// A flow's entry in the table; dropping it removes the entry.
#[derive(Debug)]
struct Entry {
    flows: Arc<Flows>,
    flow: u32,
    served: bool,
    touched: Arc<AtomicBool>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.flows.lock().sinks(self.served).remove(&self.flow);
    }
}

impl Flows {
    pub(crate) fn new(connection: quinn::Connection, drops: Arc<UdpDrops>) -> Self {
        Self { connection, table: Mutex::default(), drops }
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A datagram arrived in the session.
    pub(crate) fn handle_datagram(&self, mut datagram: Bytes) {
        let Some(tag) = FlowTag::take(&mut datagram) else {
            return count(&self.drops.no_flow);
        };
        let sink = {
            let mut table = self.lock();
            let sink = table.sinks(!tag.to_opener).get(&tag.flow).cloned();
            if sink.is_none() && !tag.to_opener {
                if table.early.len() >= limits::EARLY_DATAGRAMS {
                    table.early.pop_front();
                    count(&self.drops.no_flow);
                }
                table.early.push_back((tag.flow, datagram));
                return;
            }
            sink
        };
        match sink {
            Some(sink) => self.deliver(&sink, &datagram),
            None => count(&self.drops.no_flow),
        }
    }

    fn deliver(&self, sink: &Sink, payload: &[u8]) {
        sink.touched.store(true, Ordering::Relaxed);
        let sent = match sink.to {
            Some(to) => sink.socket.try_send_to(payload, to),
            None => sink.socket.try_send(payload),
        };
        // Other errors are echoes of earlier packets (ICMP): the service is down, which is the client's to notice.
        if sent.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            count(&self.drops.socket_full);
        }
    }

    /// Sends one packet of a flow to the peer.
    fn send(&self, tag: FlowTag, payload: &[u8]) -> Result<(), Broken> {
        match self.connection.send_datagram(tag.datagram(payload)) {
            Ok(()) => Ok(()),
            Err(SendDatagramError::ConnectionLost(_)) => Err(Broken::Lost),
            Err(_) => {
                count(&self.drops.too_large);
                Ok(())
            }
        }
    }

    /// Enters a flow that the peer opened, and delivers what came early.
    fn serve(self: &Arc<Self>, flow: u32, socket: Arc<UdpSocket>) -> Result<Entry, Refusal> {
        let touched = Arc::new(AtomicBool::new(true));
        let sink = Sink { socket, to: None, touched: touched.clone() };
        let early: Vec<Bytes> = {
            let mut table = self.lock();
            if flow > MAX_FLOW || table.served.contains_key(&flow) {
                return Err(Refusal::new(RefusalCode::BadRequest, "flow number"));
            }
            if table.served.len() >= limits::FLOWS_PER_SESSION {
                return Err(Refusal::new(RefusalCode::Busy, "flows"));
            }
            table.served.insert(flow, sink.clone());
            let (mine, rest) = std::mem::take(&mut table.early)
                .into_iter()
                .partition(|(number, _)| *number == flow);
            table.early = rest;
            let mine: VecDeque<(u32, Bytes)> = mine;
            mine.into_iter().map(|(_, payload)| payload).collect()
        };
        early.iter().for_each(|payload| self.deliver(&sink, payload));
        Ok(Entry { flows: self.clone(), flow, served: true, touched })
    }

    /// Enters a flow of this side's; `None` when there are too many.
    fn begin(self: &Arc<Self>, socket: Arc<UdpSocket>, to: SocketAddr) -> Option<Entry> {
        let touched = Arc::new(AtomicBool::new(true));
        let mut table = self.lock();
        if table.opened.len() >= limits::FLOWS_PER_SESSION {
            count(&self.drops.too_many_flows);
            return None;
        }
        let flow = loop {
            table.next = (table.next + 1) & MAX_FLOW;
            if !table.opened.contains_key(&table.next) {
                break table.next;
            }
        };
        table.opened.insert(flow, Sink { socket, to: Some(to), touched: touched.clone() });
        drop(table);
        Some(Entry { flows: self.clone(), flow, served: false, touched })
    }
}

impl Entry {
    /// Ends when no datagram passed for [`limits::FLOW_IDLE`], twice that at the latest.
    async fn idle(&self) {
        loop {
            tokio::time::sleep(limits::FLOW_IDLE).await;
            if !self.touched.swap(false, Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// A socket that is ready to send: `try_send` works only after the first readiness was seen.
async fn ready(socket: UdpSocket) -> std::io::Result<Arc<UdpSocket>> {
    socket.writable().await?;
    Ok(Arc::new(socket))
}

async fn connect(address: SocketAddr) -> std::io::Result<Arc<UdpSocket>> {
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
    flow: u32,
    (endpoint, dialler): (&Endpoint, &Dialler),
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let place = Place { target: 0, host: endpoint.host.clone(), port: endpoint.port };
    let found = dialler.addresses(&place, Manner::SERVICE).await;
    let addresses = found.unwrap_or_else(|why| {
        tracing::debug!(%endpoint, why, "the service's name does not resolve");
        Vec::new()
    });
    let on_trial = if addresses.len() > 1 { &addresses[..] } else { &[] };
    let mut turns: VecDeque<_> = on_trial.iter().map(|address| (*address, Turn::Trial)).collect();
    turns.extend(addresses.first().map(|address| (*address, Turn::Waits)));
    let (mut is_opened, mut sockets) = (false, Sockets::new());
    while let Some((address, turn)) = turns.pop_front() {
        let Ok(socket) = socket_of(&mut sockets, address).await else {
            dialler.note(address, false);
            continue;
        };
        let entry = match flows.serve(flow, socket) {
            Ok(entry) => entry,
            Err(refusal) if !is_opened => return pipe::refuse(&mut send, &mut recv, refusal).await,
            Err(_) => break,
        };
        if !is_opened && pipe::say(&mut send, &Answer::Opened(Opened {})).await.is_err() {
            return;
        }
        is_opened = true;
        let back = tokio::select! {
            back = carry_back(&entry, &sockets, turn) => back,
            () = life_line(&mut recv) => Back::Over,
            () = entry.idle() => Back::Over,
        };
        match back {
            Back::Over => break,
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
        pipe::refuse(&mut send, &mut recv, RefusalCode::ServiceDown.into()).await;
    }
}

/// The socket towards `address`, made when there is none.
async fn socket_of(sockets: &mut Sockets, address: SocketAddr) -> std::io::Result<Arc<UdpSocket>> {
    if let Some((_, socket)) = sockets.iter().find(|(known, _)| *known == address) {
        return Ok(socket.clone());
    }
    let socket = connect(address).await?;
    sockets.push((address, socket.clone()));
    Ok(socket)
}

/// Carries what the service sends to the peer, from whichever of the sockets, as long as the turn lasts.
async fn carry_back(entry: &Entry, sockets: &Sockets, turn: Turn) -> Back {
    let flows = &entry.flows;
    let mut buffer = [0; RECEIVE_BYTES];
    let tag = FlowTag { flow: entry.flow, to_opener: true };
    loop {
        let receive = receive(sockets, &mut buffer);
        let (from, received) = match turn {
            Turn::Trial => match tokio::time::timeout(UNANSWERED, receive).await {
                Ok(received) => received,
                Err(_) => return Back::Silent,
            },
            Turn::Waits | Turn::Settled => receive.await,
        };
        match received {
            Ok(RECEIVE_BYTES) => count(&flows.drops.too_large),
            Ok(length) => {
                entry.touched.store(true, Ordering::Relaxed);
                if flows.send(tag, &buffer[..length]).is_err() {
                    return Back::Over;
                }
            }
            // Nobody is there (ICMP): the next address has its turn, and with the last one the client notices.
            Err(error) => {
                tracing::debug!(address = %from, %error, "UDP service");
                if turn == Turn::Trial && sockets.last().is_some_and(|(last, _)| *last == from) {
                    return Back::Silent;
                }
                continue;
            }
        }
        if turn != Turn::Settled {
            return Back::Heard(from);
        }
    }
}

/// The next datagram, or error, of any of the sockets.
async fn receive(sockets: &Sockets, buffer: &mut [u8]) -> (SocketAddr, std::io::Result<usize>) {
    std::future::poll_fn(|context| {
        for (address, socket) in sockets {
            let mut read = ReadBuf::new(buffer);
            if let Poll::Ready(result) = socket.poll_recv(context, &mut read) {
                return Poll::Ready((*address, result.map(|()| read.filled().len())));
            }
        }
        Poll::Pending
    })
    .await
}

/// Keeps one flow of this side open until it is idle or the peer ends it.
async fn keep(entry: Entry, service: ServiceName) -> Result<(), Broken> {
    let begin = Begin::Flow(OpenFlow { service, flow: entry.flow });
    let (mut send, mut recv) = pipe::open(&entry.flows.connection, &begin).await?;
    pipe::read_opened(&mut recv).await?;
    tokio::select! {
        () = life_line(&mut recv) => {}
        () = entry.idle() => {}
    }
    let _ = send.finish();
    Ok(())
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
) -> Broken {
    let mut clients: HashMap<SocketAddr, (u32, Arc<AtomicBool>)> = HashMap::new();
    let mut keepers: JoinSet<(SocketAddr, u32, Result<(), Broken>)> = JoinSet::new();
    let mut buffer = [0; RECEIVE_BYTES];
    let closed = flows.connection.closed();
    tokio::pin!(closed);
    loop {
        let (length, client) = tokio::select! {
            _ = &mut closed => return Broken::Lost,
            Some(Ok((client, flow, result))) = keepers.join_next() => {
                if clients.get(&client).is_some_and(|(current, _)| *current == flow) {
                    clients.remove(&client);
                }
                match result {
                    Err(Broken::Refused(refusal)) if !refusal.code.retry_helps() => {
                        return Broken::Refused(refusal);
                    }
                    Err(Broken::Lost) => return Broken::Lost,
                    Ok(()) | Err(_) => continue,
                }
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Broken::Local(error),
            },
        };
        if length == RECEIVE_BYTES {
            count(&flows.drops.too_large);
            continue;
        }
        let flow = match clients.get(&client) {
            Some((flow, touched)) => {
                touched.store(true, Ordering::Relaxed);
                *flow
            }
            None => {
                let Some(entry) = flows.begin(socket.clone(), client) else { continue };
                let flow = entry.flow;
                clients.insert(client, (flow, entry.touched.clone()));
                let service = service.clone();
                keepers.spawn(async move { (client, flow, keep(entry, service).await) });
                flow
            }
        };
        if let Err(broken) = flows.send(FlowTag { flow, to_opener: false }, &buffer[..length]) {
            return broken;
        }
    }
}

/// Binds the local port of a forwarded UDP service.
///
/// # Errors
/// As binding does.
pub(crate) async fn listen(address: SocketAddr) -> std::io::Result<Arc<UdpSocket>> {
    ready(UdpSocket::bind(address).await?).await
}
