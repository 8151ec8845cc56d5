//! Connections with other relays: dialling, handshake, identity, Hello, the streams.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rand::Rng;
use tasuki_proto::codec::Envelope;
use tasuki_proto::dial::{Manner, Place};
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::identity::{
    KeyFingerprint, NodeName, Peer, connection_authority, connection_refusal, identify_connection,
};
use tasuki_proto::mesh::{LinkHello, LinkStream, ToPeer};
use tasuki_proto::{Label, RefusalCode, RelayId, RelayName, limits, version};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use super::admission::Handshake;
use super::endpoint::Context;
use super::event::{Event, LinkUp};
use super::reading::Reading;
use super::terminals::close;
use crate::core::LinkId;

/// The streams after a handshake, and the greeting, may take this long each.
const SETUP: Duration = Duration::from_secs(5);
/// Gossip messages on their way to the network, per link.
pub const GOSSIP_IN_FLIGHT: usize = 4;
/// How often a link's round-trip time is told.
const RTT_PERIOD: Duration = Duration::from_secs(1);

/// Takes links until the endpoint is closed.
pub async fn accept(
    endpoint: Endpoint,
    hello: Arc<dyn Fn() -> LinkHello + Send + Sync>,
    context: Arc<Context>,
) {
    while let Some(incoming) = endpoint.accept().await {
        if let Some(handshake) = context.links.admit(incoming) {
            let (hello, context) = (hello(), context.clone());
            tokio::spawn(async move { accepted(handshake, hello, &context).await });
        }
    }
}

async fn accepted(handshake: Handshake, hello: LinkHello, context: &Arc<Context>) {
    let Some((connection, _admitted)) = handshake.finish().await else { return };
    let peer = match identify(&connection, None, context) {
        Ok(peer) => peer,
        Err(code) => return close(&connection, code),
    };
    let Ok(Ok(streams)) = timeout(SETUP, answer(&connection)).await else {
        return close(&connection, RefusalCode::ProtocolError);
    };
    run(connection, peer, None, hello, streams, context).await;
}

/// Dials a relay at its addresses; ends with [`Event::LinkUp`] or [`Event::DialFailed`].
pub async fn dial(
    endpoint: Endpoint,
    relay: RelayId,
    name: RelayName,
    addresses: Vec<String>,
    hello: LinkHello,
    context: Arc<Context>,
) {
    let addresses = addresses.iter().take(limits::RELAY_ADDRESSES);
    let places = addresses.filter_map(|address| Place::parse(0, address)).collect();
    let connecting = |_, address| connect(&endpoint, address, &name, &context);
    let mut dialling = context.dialler.dial(places, Manner::RELAY, connecting);
    while let Some((_, (connection, peer))) = dialling.next().await {
        if let Ok(Ok(streams)) = timeout(SETUP, ask(&connection)).await {
            drop(dialling);
            return run(connection, peer, Some(relay), hello, streams, &context).await;
        }
        close(&connection, RefusalCode::ProtocolError);
    }
    tracing::debug!(relay = %name, why = dialling.summary(), "dial failed");
    drop(dialling);
    let _ = context.events.send(Event::DialFailed(relay)).await;
}

struct Streams {
    calls: (SendStream, RecvStream),
    /// [`limits::GOSSIP_STREAMS`].
    gossip: Vec<(SendStream, RecvStream)>,
}

async fn connect(
    endpoint: &Endpoint,
    address: SocketAddr,
    name: &RelayName,
    context: &Context,
) -> Result<(Connection, Peer), RefusalCode> {
    let expected = NodeName::Relay(name.clone());
    let server = expected.dns_name(context.identity.get().mesh());
    let connecting = endpoint.connect(address, &server).map_err(|_| RefusalCode::BadRequest)?;
    let connection = connecting
        .await
        .map_err(|error| connection_refusal(&error).unwrap_or(RefusalCode::Silent))?;
    let peer = identify(&connection, Some(&expected), context)
        .inspect_err(|&code| close(&connection, code))?;
    Ok((connection, peer))
}

fn identify(
    connection: &Connection,
    expected: Option<&NodeName>,
    context: &Context,
) -> Result<Peer, RefusalCode> {
    let revoked = |key: &_| context.is_revoked(key);
    let now = context.clock.now_secs();
    identify_connection(connection, &context.identity.get(), expected, &revoked, now)
        .map(|(_, peer)| peer)
}

/// The dialling side opens the streams.
async fn ask(connection: &Connection) -> anyhow::Result<Streams> {
    let mut calls = connection.open_bi().await?;
    calls.0.write_all(&[LinkStream::Calls as u8]).await?;
    let mut gossip = Vec::with_capacity(limits::GOSSIP_STREAMS);
    for _ in 0..limits::GOSSIP_STREAMS {
        let mut stream = connection.open_bi().await?;
        stream.0.write_all(&[LinkStream::Gossip as u8]).await?;
        gossip.push(stream);
    }
    Ok(Streams { calls, gossip })
}

/// The dialled side takes them in whatever order they come.
async fn answer(connection: &Connection) -> anyhow::Result<Streams> {
    let (mut calls, mut gossip) = (None, Vec::with_capacity(limits::GOSSIP_STREAMS));
    loop {
        let mut stream = connection.accept_bi().await?;
        match LinkStream::from_byte(stream.1.read_u8().await?) {
            Some(LinkStream::Calls) if calls.is_none() => calls = Some(stream),
            Some(LinkStream::Gossip) if gossip.len() < limits::GOSSIP_STREAMS => {
                gossip.push(stream)
            }
            _ => anyhow::bail!("a stream out of order"),
        }
        if gossip.len() == limits::GOSSIP_STREAMS
            && let Some(calls) = calls.take()
        {
            return Ok(Streams { calls, gossip });
        }
    }
}

/// Exchanges Hello and runs the link until it ends.
async fn run(
    connection: Connection,
    peer: Peer,
    dialled: Option<RelayId>,
    mut hello: LinkHello,
    mut streams: Streams,
    context: &Arc<Context>,
) {
    let handle = Label::from_random(rand::rng().random());
    hello.handle = handle;
    let name = peer.relay().cloned();
    let theirs = timeout(SETUP, greet(&mut streams.calls, hello)).await;
    let (Some(name), Ok(Ok(theirs))) = (name, theirs) else {
        return fail(&connection, dialled, RefusalCode::ProtocolError, context).await;
    };
    if theirs.protocol < version::PROTOCOL_MIN {
        return fail(&connection, dialled, RefusalCode::ProtocolTooOld, context).await;
    }
    let link = LinkId(context.number());
    let lifetime = Duration::from_secs(peer.not_after.saturating_sub(context.clock.now_secs()));
    let (calls, calls_inbox) = mpsc::channel(limits::LINK_QUEUE);
    let (gossip, gossip_inbox) = mpsc::channel(GOSSIP_IN_FLIGHT);
    let up = LinkUp {
        link,
        name,
        hello: theirs,
        dialled_here: dialled.is_some(),
        handle,
        key: peer.key,
        authority: connection_authority(&connection, &context.identity.get()),
        connection: connection.clone(),
        calls,
        gossip,
    };
    if context.events.send(Event::LinkUp(Box::new(up))).await.is_err() {
        return close(&connection, RefusalCode::ShuttingDown);
    }
    let (calls_send, calls_recv) = streams.calls;
    let (gossip_send, gossip_recv): (Vec<_>, Vec<_>) = streams.gossip.into_iter().unzip();
    let events = &context.events;
    let calls_reading = Reading::new(limits::LINK_MESSAGES_PER_SECOND);
    let code = tokio::select! {
        code = read(calls_recv, |envelope| Ok(ToPeer::from_envelope(envelope)?.map(|m| Event::Peer(link, m))), Some(calls_reading), events) => code,
        code = read_gossip(gossip_recv, link, events) => code,
        code = write_calls(calls_send, calls_inbox) => code,
        code = write_gossip(gossip_send, gossip_inbox, link, events) => code,
        code = serve_requests(&connection, peer.key, context) => code,
        code = tell_rtt(&connection, link, events) => code,
        () = tokio::time::sleep(lifetime) => RefusalCode::CertificateExpired,
    };
    // What the peer said last, where it said something.
    let said = connection.close_reason().and_then(|error| connection_refusal(&error));
    close(&connection, code);
    let _ = context.events.send(Event::LinkDown(link, said)).await;
}

async fn fail(
    connection: &Connection,
    dialled: Option<RelayId>,
    code: RefusalCode,
    context: &Context,
) {
    close(connection, code);
    if let Some(relay) = dialled {
        let _ = context.events.send(Event::DialFailed(relay)).await;
    }
}

async fn greet(
    calls: &mut (SendStream, RecvStream),
    hello: LinkHello,
) -> anyhow::Result<LinkHello> {
    calls.0.write_chunk(ToPeer::Hello(hello).to_envelope().to_bytes()).await?;
    let envelope = Envelope::read(&mut calls.1, limits::CONTROL_MESSAGE_BYTES).await?;
    match envelope.as_ref().map(ToPeer::from_envelope) {
        Some(Ok(Some(ToPeer::Hello(hello)))) => Ok(hello),
        _ => anyhow::bail!("no hello"),
    }
}

/// Reads messages until the stream ends. Kinds that this version does not know are skipped.
async fn read(
    mut stream: RecvStream,
    decode: impl Fn(&Envelope) -> Result<Option<Event>, tasuki_proto::codec::DecodeError>,
    mut reading: Option<Reading>,
    events: &mpsc::Sender<Event>,
) -> RefusalCode {
    loop {
        let envelope = match Envelope::read(&mut stream, limits::MESH_MESSAGE_BYTES).await {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return RefusalCode::ShuttingDown,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return RefusalCode::ProtocolError;
            }
            Err(_) => return RefusalCode::RouteLost,
        };
        if let Some(reading) = &mut reading {
            reading.pause().await;
        }
        match decode(&envelope) {
            Ok(Some(event)) => {
                if events.send(event).await.is_err() {
                    return RefusalCode::ShuttingDown;
                }
            }
            Ok(None) => tracing::debug!(kind = envelope.kind, "unknown link message skipped"),
            Err(_) => return RefusalCode::ProtocolError,
        }
    }
}

async fn write_calls(mut stream: SendStream, mut inbox: mpsc::Receiver<ToPeer>) -> RefusalCode {
    while let Some(message) = inbox.recv().await {
        let mut bytes = BytesMut::new();
        message.to_envelope().put(&mut bytes);
        while bytes.len() < 64 * 1024 {
            let Ok(message) = inbox.try_recv() else { break };
            message.to_envelope().put(&mut bytes);
        }
        if stream.write_chunk(bytes.freeze()).await.is_err() {
            return RefusalCode::RouteLost;
        }
    }
    // The driver closed it, and the code is with the connection.
    RefusalCode::ShuttingDown
}

/// Reads all gossip streams until one of them ends.
async fn read_gossip(
    streams: Vec<RecvStream>,
    link: LinkId,
    events: &mpsc::Sender<Event>,
) -> RefusalCode {
    let readers = streams.into_iter().map(|stream| {
        let decode = |envelope: &Envelope| {
            Ok(GossipMessage::from_envelope(envelope)?.map(|m| Event::Gossip(link, m)))
        };
        Box::pin(read(stream, decode, None, events))
    });
    futures_util::future::select_all(readers).await.0
}

/// Writes each message to the stream of its origin ([`GossipMessage::stream`]).
async fn write_gossip(
    mut streams: Vec<SendStream>,
    mut inbox: mpsc::Receiver<GossipMessage>,
    link: LinkId,
    events: &mpsc::Sender<Event>,
) -> RefusalCode {
    while let Some(message) = inbox.recv().await {
        let Some(stream) = streams.get_mut(message.stream()) else { break };
        if stream.write_chunk(message.to_envelope().to_bytes()).await.is_err() {
            return RefusalCode::RouteLost;
        }
        if events.send(Event::GossipSent(link)).await.is_err() {
            break;
        }
    }
    RefusalCode::ShuttingDown
}

/// Serves requests to the registrar that the peer passes on.
async fn serve_requests(
    connection: &Connection,
    peer: KeyFingerprint,
    context: &Arc<Context>,
) -> RefusalCode {
    loop {
        let Ok((send, mut recv)) = connection.accept_bi().await else {
            return RefusalCode::RouteLost;
        };
        let context = context.clone();
        tokio::spawn(async move {
            let kind = timeout(SETUP, recv.read_u8()).await;
            if let Ok(Ok(byte)) = kind
                && LinkStream::from_byte(byte) == Some(LinkStream::Request)
            {
                context.requests.serve_stream(peer, send, recv).await;
            }
        });
    }
}

async fn tell_rtt(
    connection: &Connection,
    link: LinkId,
    events: &mpsc::Sender<Event>,
) -> RefusalCode {
    let mut ticks = tokio::time::interval(RTT_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let us = u32::try_from(connection.rtt().as_micros()).unwrap_or(u32::MAX);
        if events.send(Event::LinkRtt(link, us)).await.is_err() {
            return RefusalCode::ShuttingDown;
        }
    }
}
