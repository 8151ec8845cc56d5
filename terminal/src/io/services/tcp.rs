//! TCP: a connection is a stream; FIN, reset and half-close are carried as what they are.

use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tasuki_proto::session::{Answer, Begin, Opened};
use tasuki_proto::{Refusal, RefusalCode, limits};
use tokio::net::TcpStream;

use super::pipe::{self, Broken};
use crate::config::Endpoint;

/// Makes the kernel answer with a reset when the socket is closed.
pub(crate) fn reset_on_close(tcp: &TcpStream) {
    let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// Serves a stream by a connection to the service at `endpoint`.
pub(crate) async fn serve(endpoint: &Endpoint, mut send: SendStream, mut recv: RecvStream) {
    let connect = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
    let connected = tokio::time::timeout(limits::SERVICE_CONNECT_TIMEOUT, connect).await;
    let mut tcp = match connected {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => {
            tracing::debug!(%endpoint, %error, "the service cannot be reached");
            return pipe::refuse(&mut send, &mut recv, RefusalCode::ServiceDown.into()).await;
        }
        Err(_) => {
            let refusal = Refusal::new(RefusalCode::ServiceDown, "no answer");
            return pipe::refuse(&mut send, &mut recv, refusal).await;
        }
    };
    let _ = tcp.set_nodelay(true);
    let result = match pipe::say(&mut send, &Answer::Opened(Opened {})).await {
        Ok(()) => {
            let (mut reader, mut writer) = tcp.split();
            pipe::run_served(&mut reader, &mut writer, &mut send, &mut recv).await
        }
        Err(error) => {
            pipe::reset(&mut send, &mut recv);
            Err(error)
        }
    };
    if let Err(error) = result {
        tracing::debug!(%endpoint, %error, "connection broke");
        reset_on_close(&tcp);
    }
}

/// Carries a local connection over a stream of its own.
///
/// # Errors
/// [`Broken`]; the local connection is reset. [`Broken::Lost`] with `tcp` handed back when the session was
/// over before anything was carried.
pub(crate) async fn carry(
    mut tcp: TcpStream,
    connection: &quinn::Connection,
    begin: &Begin,
) -> Result<(), (Broken, Option<TcpStream>)> {
    let _ = tcp.set_nodelay(true);
    let (mut send, mut recv) = match pipe::open(connection, begin).await {
        Ok(stream) => stream,
        Err(error) => return Err((error, Some(tcp))),
    };
    let (mut reader, mut writer) = tcp.split();
    match pipe::run_opened(&mut reader, &mut writer, &mut send, &mut recv).await {
        Ok(()) => Ok(()),
        Err(error) => {
            reset_on_close(&tcp);
            Err((error, None))
        }
    }
}
