//! The connection to a relay: dialling, identity, the control stream.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{Hello, RelayContact, ToRelay, ToTerminal};
use tasuki_proto::dial::{Dialler, Manner, Place, Problem};
use tasuki_proto::frame::NeighbourKey;
use tasuki_proto::identity::{
    Clock, IdentityCell, KeyFingerprint, NodeName, connection_refusal, identify_connection,
};
use tasuki_proto::net::canonical;
use tasuki_proto::{Refusal, RefusalCode, limits, version};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::socket::Socket;
use crate::core::login::AttachId;

/// Saying Hello over a connection that stands may take this long.
const HELLO: Duration = Duration::from_secs(5);
/// The last words to a relay may take this long.
const FAREWELL: Duration = Duration::from_millis(500);

/// What goes to an attachment's task.
#[derive(Debug)]
pub enum Order {
    /// Say it.
    Say(ToRelay),
    /// Let what was said go out, then close.
    Close(RefusalCode),
}

/// What an attachment's task tells.
#[derive(Debug)]
pub enum Event {
    /// The relay answered Hello. Everything it says later comes as [`Event::Said`].
    Connected {
        /// Which try.
        attach: AttachId,
        /// The connection.
        connection: Connection,
    },
    /// The relay said something.
    Said(AttachId, ToTerminal),
    /// Not reached, or broken.
    Lost(AttachId, Refusal),
}

/// What every attachment needs.
#[derive(Debug)]
pub struct Context {
    /// Who this terminal is.
    pub identity: IdentityCell,
    /// The time of certificates.
    pub clock: Clock,
    /// QUIC for attachments.
    pub endpoint: Endpoint,
    /// Reaches relays by their names.
    pub dialler: Dialler,
    /// Answers challenges.
    pub socket: Arc<Socket>,
    /// Which process this is, chosen at random.
    pub instance: u64,
    /// Revoked keys; the driver keeps them.
    pub revoked: RwLock<HashSet<KeyFingerprint>>,
    /// Gets a copy of every byte that control streams carry to relays.
    pub overheard: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Context {
    /// The bytes of a message, as they go into the stream.
    fn bytes(&self, message: &ToRelay) -> Bytes {
        let bytes = message.to_envelope().to_bytes();
        if let Some(overheard) = &self.overheard {
            overheard.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes);
        }
        bytes
    }
}

/// Dials a relay, says Hello, and carries messages until either side is done.
pub async fn run(
    attach: AttachId,
    relay: RelayContact,
    context: Arc<Context>,
    events: mpsc::Sender<Event>,
    mut orders: mpsc::Receiver<Order>,
) {
    let opened = tokio::select! {
        opened = open(&relay, &context) => opened,
        code = told_to_close(&mut orders) => Err(code.into()),
    };
    let refusal = match opened {
        Ok((connection, send, recv)) => {
            let tell = (attach, events.clone());
            converse(tell, &connection, send, recv, orders, &context).await
        }
        Err(refusal) => refusal,
    };
    let _ = events.send(Event::Lost(attach, refusal)).await;
}

/// Waits until the driver does not want the attachment any longer. There is nobody yet to say anything else to.
async fn told_to_close(orders: &mut mpsc::Receiver<Order>) -> RefusalCode {
    loop {
        match orders.recv().await {
            Some(Order::Say(_)) => {}
            Some(Order::Close(code)) => return code,
            None => return RefusalCode::ShuttingDown,
        }
    }
}

/// Reaches the relay at any of its addresses and says Hello.
async fn open(
    relay: &RelayContact,
    context: &Context,
) -> Result<(Connection, SendStream, RecvStream), Refusal> {
    let addresses = relay.addresses.iter().take(limits::RELAY_ADDRESSES);
    let places = addresses.filter_map(|address| Place::parse(0, address)).collect();
    let connecting = |_, address| connect(address, relay, context);
    let mut dialling = context.dialler.dial(places, Manner::RELAY, connecting);
    let mut worst = None;
    while let Some((_, connection)) = dialling.next().await {
        let at = canonical(connection.remote_address());
        match timeout(HELLO, hello(&connection, context)).await {
            Ok(Ok((send, recv))) => return Ok((connection, send, recv)),
            Ok(Err(code)) => worst = Some(Refusal::new(code, format!("{} at {at}", relay.name))),
            Err(_) => {
                let silent = RefusalCode::Silent;
                worst = Some(Refusal::new(silent, format!("{} at {at}", relay.name)));
            }
        }
    }
    // A refusal says more than silence.
    for failure in dialling.failures() {
        if let Problem::Failed(code) = &failure.problem
            && *code != RefusalCode::Silent
        {
            let at = dialling.shown(failure);
            worst.get_or_insert_with(|| Refusal::new(*code, format!("{} at {at}", relay.name)));
        }
    }
    let silent = || {
        let detail = format!("{}: {}", relay.name, dialling.summary());
        Refusal::new(RefusalCode::Silent, detail)
    };
    Err(worst.unwrap_or_else(silent))
}

/// A connection with the relay at `address`, once the relay proved who it is.
async fn connect(
    address: SocketAddr,
    relay: &RelayContact,
    context: &Context,
) -> Result<Connection, RefusalCode> {
    let expected = NodeName::Relay(relay.name.clone());
    let identity = context.identity.get();
    let server = expected.dns_name(identity.mesh());
    let connection = context
        .endpoint
        .connect(address, &server)
        .map_err(|_| RefusalCode::BadRequest)?
        .await
        .map_err(|error| failed(&error))?;
    let now = context.clock.now_secs();
    let revoked = |key: &KeyFingerprint| {
        context.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(key)
    };
    identify_connection(&connection, &identity, Some(&expected), &revoked, now)?;
    Ok(connection)
}

fn failed(error: &quinn::ConnectionError) -> RefusalCode {
    connection_refusal(error).unwrap_or(RefusalCode::Silent)
}

async fn hello(
    connection: &Connection,
    context: &Context,
) -> Result<(SendStream, RecvStream), RefusalCode> {
    let (mut send, recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
    let hello = Hello {
        protocol: version::PROTOCOL,
        software: version::SOFTWARE.to_owned(),
        instance: context.instance,
    };
    let written = send.write_chunk(context.bytes(&ToRelay::Hello(hello))).await;
    // A client certificate that the relay refuses shows only now (RFC 8446, section 4.4.2.4).
    if written.is_err() {
        return Err(connection.close_reason().map_or(RefusalCode::Silent, |error| failed(&error)));
    }
    Ok((send, recv))
}

async fn converse(
    (attach, events): (AttachId, mpsc::Sender<Event>),
    connection: &Connection,
    mut send: SendStream,
    mut recv: RecvStream,
    mut orders: mpsc::Receiver<Order>,
    context: &Context,
) -> Refusal {
    let socket = &context.socket;
    let gone = || Refusal::from(RefusalCode::ShuttingDown);
    let connected = Event::Connected { attach, connection: connection.clone() };
    if events.send(connected).await.is_err() {
        return gone();
    }
    let mut unread = BytesMut::new();
    let mut handle = None;
    let refusal = loop {
        tokio::select! {
            chunk = recv.read_chunk(limits::CONTROL_MESSAGE_BYTES, true) => {
                let Ok(Some(chunk)) = chunk else { break ended(connection) };
                unread.extend_from_slice(&chunk.bytes);
                match take(&mut unread) {
                    Ok(messages) => for message in messages {
                        if let ToTerminal::Welcome(welcome) = &message
                            && let Some(key) = neighbour_key(connection)
                        {
                            socket.add_challenger(welcome.handle, key);
                            handle = Some(welcome.handle);
                        }
                        if events.send(Event::Said(attach, message)).await.is_err() {
                            break;
                        }
                    },
                    Err(code) => break code.into(),
                }
            }
            order = orders.recv() => match order {
                Some(Order::Say(message)) => {
                    if send.write_chunk(context.bytes(&message)).await.is_err() {
                        break ended(connection);
                    }
                }
                Some(Order::Close(code)) => {
                    if send.finish().is_ok() {
                        let _ = timeout(FAREWELL, send.stopped()).await;
                    }
                    break code.into();
                }
                None => break gone(),
            },
        }
    };
    if let Some(handle) = handle {
        socket.remove_challenger(handle);
    }
    let code = refusal.code;
    connection.close(u32::from(code.value()).into(), code.word().as_bytes());
    refusal
}

/// What the relay closed the connection with, or what broke it.
fn ended(connection: &Connection) -> Refusal {
    let remote = canonical(connection.remote_address());
    let code = connection
        .close_reason()
        .and_then(|error| connection_refusal(&error))
        .unwrap_or(RefusalCode::Silent);
    Refusal::new(code, format!("relay at {remote}"))
}

fn neighbour_key(connection: &Connection) -> Option<NeighbourKey> {
    let mut material = [0; 32];
    connection
        .export_keying_material(&mut material, NeighbourKey::EXPORTER_LABEL, b"")
        .ok()
        .map(|()| NeighbourKey::new(&material))
}

fn take(unread: &mut BytesMut) -> Result<Vec<ToTerminal>, RefusalCode> {
    let mut messages = Vec::new();
    let broken = |_| RefusalCode::ProtocolError;
    while let Some(envelope) =
        Envelope::take(unread, limits::CONTROL_MESSAGE_BYTES).map_err(broken)?
    {
        match ToTerminal::from_envelope(&envelope).map_err(broken)? {
            Some(message) => messages.push(message),
            // A newer relay may say what this version does not know.
            None => tracing::debug!(kind = envelope.kind, "unknown control message skipped"),
        }
    }
    Ok(messages)
}
