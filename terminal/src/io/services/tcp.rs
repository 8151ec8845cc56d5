//! TCP: a connection is a stream; FIN, reset and half-close are carried as what they are.

use std::io::{self, ErrorKind};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tasuki_proto::dial::{Dialler, Place};
use tasuki_proto::session::Begin;
use tokio::net::TcpStream;

use super::ends::Ends;
use super::lanes::Fan;
use super::pipe::{self, Broken};
use super::vanished::Watch;
use crate::config::Endpoint;

/// Makes the kernel answer with a reset when the socket is closed.
pub(crate) fn reset_on_close(tcp: &TcpStream) {
    let _ = socket2::SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// A connection that is reset when it is dropped before both directions ended, also when its task is aborted: a
/// cut stream must never look like a whole one.
#[derive(Debug)]
struct Carried {
    tcp: TcpStream,
    whole: bool,
}

impl Carried {
    fn new(tcp: TcpStream) -> Self {
        let _ = tcp.set_nodelay(true);
        Self { tcp, whole: false }
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        if !self.whole {
            reset_on_close(&self.tcp);
        }
    }
}

/// Runs a connection until it is over, or its local end has not answered for too long. Then it is as with a reset.
async fn unless_vanished(
    run: impl Future<Output = Result<(), Broken>>,
    watch: &Watch,
) -> Result<(), Broken> {
    tokio::select! {
        result = run => result,
        () = watch.vanished() => Err(Broken::Local(ErrorKind::TimedOut.into())),
    }
}

/// Serves a stream by a connection to the service at `endpoint`.
pub(crate) async fn serve(
    endpoint: &Endpoint,
    (ends, dialler): (&Ends, &Dialler),
    mut send: SendStream,
    mut recv: RecvStream,
    fan: Fan<'_>,
) {
    let place = Place { target: 0, host: endpoint.host.clone(), port: endpoint.port };
    let mut carried = match dialler.tcp(place).await {
        Ok(tcp) => Carried::new(tcp),
        Err(error) => {
            // The caller does not learn the addresses behind this terminal.
            tracing::debug!(%endpoint, %error, "the service cannot be reached");
            let refusal = match error.os_error {
                Some(number) => ends.refusal(endpoint, &io::Error::from_raw_os_error(number)),
                None => ends.refusal_in_words(endpoint, error.brief),
            };
            return pipe::refuse(&mut send, &mut recv, refusal).await;
        }
    };
    let watch = ends.watch(&carried.tcp);
    let (mut reader, mut writer) = carried.tcp.split();
    let run = pipe::run_served(&mut reader, &mut writer, &mut send, &mut recv, fan);
    match unless_vanished(run, &watch).await {
        Ok(()) => carried.whole = true,
        Err(error) => {
            tracing::debug!(%endpoint, %error, "connection broke");
            pipe::reset(&mut send, &mut recv);
        }
    }
}

/// Carries a local connection over a stream of its own.
///
/// # Errors
/// [`Broken`]; the local connection is reset. Where the session was over before anything was carried, the
/// connection is handed back.
pub(crate) async fn carry(
    tcp: TcpStream,
    watch: &Watch,
    fan: Fan<'_>,
    begin: &Begin,
) -> Result<(), (Broken, Option<TcpStream>)> {
    let (mut send, mut recv) = match pipe::open(fan.connection, begin).await {
        Ok(stream) => stream,
        Err(error) => return Err((error, Some(tcp))),
    };
    let mut carried = Carried::new(tcp);
    let (mut reader, mut writer) = carried.tcp.split();
    let run = pipe::run_opened(&mut reader, &mut writer, &mut send, &mut recv, fan);
    let result = unless_vanished(run, watch).await;
    carried.whole = result.is_ok();
    if !carried.whole {
        pipe::reset(&mut send, &mut recv);
    }
    result.map_err(|error| (error, None))
}
