//! Connections with terminals and newcomers: handshake, identity, the control stream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use quinn::{Connection, RecvStream, SendStream};
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{ToRelay, ToTerminal};
use tasuki_proto::identity::{connection_alpn, identify_connection};
use tasuki_proto::version::Alpn;
use tasuki_proto::{RefusalCode, limits};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::admission::Handshake;
use super::endpoint::Context;
use super::event::{Event, TerminalOrder, TerminalUp, Waiting};
use super::reading::Reading;
use crate::core::ConnId;

/// The first stream after a handshake must be there within this time.
const SETUP: Duration = Duration::from_secs(10);
/// The last words to a terminal may take this long.
const FAREWELL: Duration = Duration::from_secs(1);

/// Takes connections until the endpoint is closed.
pub async fn accept(endpoint: quinn::Endpoint, context: Arc<Context>) {
    while let Some(incoming) = endpoint.accept().await {
        if let Some(handshake) = context.terminals.admit(incoming) {
            let context = context.clone();
            tokio::spawn(async move { serve(handshake, &context).await });
        }
    }
}

async fn serve(handshake: Handshake, context: &Arc<Context>) {
    let Some((connection, _admitted)) = handshake.finish().await else { return };
    match connection_alpn(&connection) {
        Ok(Alpn::Enrolment) => context.requests.serve_connection(connection).await,
        Ok(Alpn::Attachment) => attach(connection, context).await,
        _ => close(&connection, RefusalCode::ProtocolError),
    }
}

/// Closes a connection with a code of ours.
pub fn close(connection: &Connection, code: RefusalCode) {
    connection.close(u32::from(code.value()).into(), code.word().as_bytes());
}

async fn attach(connection: Connection, context: &Arc<Context>) {
    let identified = identify_connection(
        &connection,
        &context.identity.get(),
        None,
        &|key| context.is_revoked(key),
        context.clock.now_secs(),
    );
    let peer = match identified {
        Ok((_, peer)) => peer,
        Err(code) => {
            tracing::debug!(%code, remote = %connection.remote_address(), "terminal refused");
            return close(&connection, code);
        }
    };
    let Some(terminal) = peer.terminal().cloned() else {
        return close(&connection, RefusalCode::WrongRole);
    };
    let Ok(Ok((send, recv))) = timeout(SETUP, connection.accept_bi()).await else {
        return close(&connection, RefusalCode::ProtocolError);
    };
    let conn = ConnId(context.number());
    let (orders, inbox) = mpsc::channel(limits::TERMINAL_MESSAGES);
    let waiting = Arc::<Mutex<Waiting>>::default();
    let orders_left = Orders { inbox, waiting: waiting.clone() };
    let lifetime = Duration::from_secs(peer.not_after.saturating_sub(context.clock.now_secs()));
    let up = TerminalUp { conn, terminal, peer, connection: connection.clone(), orders, waiting };
    if context.events.send(Event::TerminalUp(Box::new(up))).await.is_err() {
        return close(&connection, RefusalCode::ShuttingDown);
    }
    let code = tokio::select! {
        code = converse(conn, send, recv, orders_left, &context.events) => code,
        () = tokio::time::sleep(lifetime) => RefusalCode::CertificateExpired,
    };
    close(&connection, code);
    let _ = context.events.send(Event::TerminalDown(conn)).await;
}

/// Reads and writes the control stream until either side is done; returns the code to close with.
async fn converse(
    conn: ConnId,
    mut send: SendStream,
    mut recv: RecvStream,
    mut orders: Orders,
    events: &mpsc::Sender<Event>,
) -> RefusalCode {
    let mut reading = Reading::new(limits::TERMINAL_MESSAGES_PER_SECOND);
    let mut unread = BytesMut::new();
    // Pages that were asked for and are not written. A terminal that reads none asks in vain for more.
    let mut pages = 0;
    loop {
        tokio::select! {
            chunk = recv.read_chunk(limits::CONTROL_MESSAGE_BYTES, true),
                if pages < limits::PAGES_PER_TERMINAL =>
            {
                let Ok(Some(chunk)) = chunk else { return RefusalCode::PeerLost };
                unread.extend_from_slice(&chunk.bytes);
                if let Err(code) = deliver(conn, &mut unread, &mut pages, &mut reading, events).await {
                    return code;
                }
            }
            order = orders.recv() => {
                // The driver forgets a terminal by dropping its orders.
                let Some(order) = order else { return RefusalCode::ShuttingDown };
                match write(&mut send, order, &mut pages, &mut orders).await {
                    Ok(None) => {
                        let more = deliver(conn, &mut unread, &mut pages, &mut reading, events);
                        if let Err(code) = more.await {
                            return code;
                        }
                    }
                    Ok(Some(code)) => {
                        // Closing at once would drop what was said last.
                        if send.finish().is_ok() {
                            let _ = timeout(FAREWELL, send.stopped()).await;
                        }
                        return code;
                    }
                    Err(_) => return RefusalCode::PeerLost,
                }
            }
        }
    }
}

/// Hands over whole messages; where [`limits::PAGES_PER_TERMINAL`] are asked for, the rest waits for them.
async fn deliver(
    conn: ConnId,
    unread: &mut BytesMut,
    pages: &mut usize,
    reading: &mut Reading,
    events: &mpsc::Sender<Event>,
) -> Result<(), RefusalCode> {
    while *pages < limits::PAGES_PER_TERMINAL {
        let envelope = match Envelope::take(unread, limits::CONTROL_MESSAGE_BYTES) {
            Ok(Some(envelope)) => envelope,
            Ok(None) => break,
            Err(_) => return Err(RefusalCode::ProtocolError),
        };
        match ToRelay::from_envelope(&envelope) {
            Ok(Some(message)) => {
                *pages += usize::from(matches!(message, ToRelay::List(_)));
                reading.pause().await;
                let event = Event::Terminal(conn, message);
                events.send(event).await.map_err(|_| RefusalCode::ShuttingDown)?;
            }
            // A newer terminal may say what this version does not know.
            Ok(None) => tracing::debug!(kind = envelope.kind, "unknown control message skipped"),
            Err(_) => return Err(RefusalCode::ProtocolError),
        }
    }
    if unread.is_empty() {
        // An idle terminal holds no buffer.
        *unread = BytesMut::new();
    }
    Ok(())
}

/// What waits for a terminal.
struct Orders {
    inbox: mpsc::Receiver<TerminalOrder>,
    /// As in [`TerminalUp`].
    waiting: Arc<Mutex<Waiting>>,
}

impl Orders {
    async fn recv(&mut self) -> Option<TerminalOrder> {
        let order = self.inbox.recv().await;
        order.inspect(|order| self.leave(order))
    }

    fn try_recv(&mut self) -> Option<TerminalOrder> {
        let order = self.inbox.try_recv().ok();
        order.inspect(|order| self.leave(order))
    }

    fn leave(&self, order: &TerminalOrder) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).leave(order);
    }
}

/// Writes an order and what waits behind it; the code when one of them says to close.
async fn write(
    send: &mut SendStream,
    first: TerminalOrder,
    pages: &mut usize,
    orders: &mut Orders,
) -> Result<Option<RefusalCode>, quinn::WriteError> {
    let mut bytes = BytesMut::new();
    let mut close = None;
    let mut next = Some(first);
    while let Some(order) = next {
        match order {
            TerminalOrder::Say(message) => {
                let is_page = matches!(*message, ToTerminal::Page(_));
                *pages = pages.saturating_sub(usize::from(is_page));
                message.to_envelope().put(&mut bytes);
            }
            TerminalOrder::Offer(offer) => offer.1.to_envelope().put(&mut bytes),
            TerminalOrder::Close(code) => {
                close = Some(code);
                break;
            }
        }
        next = if bytes.len() < 64 * 1024 { orders.try_recv() } else { None };
    }
    send.write_chunk(bytes.freeze()).await?;
    Ok(close)
}
