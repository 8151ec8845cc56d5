//! The status endpoint, and the same over the local socket for the relay's own verbs.
//!
//! Both serve one router (`api`); what differs is who is let in (`door`). Requests read the core's views and
//! send commands through the same inbox as everybody.
//!
//! | over | reads | actions |
//! |---|---|---|
//! | a loopback address, with or without TLS | free, with a `Host` of this machine | `Authorization: Bearer` with `admin.token` |
//! | any other address, always with TLS | the same token; without it only `/healthz`, `/readyz` and the console's files | the same |
//! | `relay.sock` | who can open it | who can open it |

mod api;
mod console;
mod door;
mod events;
mod metrics;
mod openapi;
mod params;
mod problem;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt;
use futures_util::future::BoxFuture;
use tasuki_proto::identity::IdentityCell;
use tasuki_proto::{Refusal, RelayName, TerminalId, limits};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::core::admin::{AdminReply, AdminRequest};

pub use door::{AdminToken, WeakToken};
pub use events::Events;
pub use metrics::{Exposition, MetricSource};
pub use problem::Problem;
pub use serve::LocalSocket;
pub use tls::{Certificate, CertificateError, CertificateFiles};

use door::Door;
use serve::Bounds;
use tls::Tls;

/// A request to the core and where its answer goes.
pub type AdminCall = (AdminRequest, oneshot::Sender<AdminReply>);

/// Asks the core, through the same inbox as everybody, and no more than [`limits::HTTP_QUESTIONS`] at once: whatever
/// operators ask for, a call waits for that many answers at most.
#[derive(Debug, Clone)]
pub struct Admin {
    inbox: mpsc::Sender<AdminCall>,
    turns: Arc<Semaphore>,
}

impl Admin {
    /// Requests go to `inbox`.
    pub fn new(inbox: mpsc::Sender<AdminCall>) -> Self {
        Self { inbox, turns: Arc::new(Semaphore::new(limits::HTTP_QUESTIONS)) }
    }

    /// Asks; `None` when the relay is going down. Who gives up waiting for the answer keeps the turn until it is given.
    pub async fn ask(&self, request: AdminRequest) -> Option<AdminReply> {
        let turn = self.turns.clone().acquire_owned().await.ok()?;
        let inbox = self.inbox.clone();
        let asked = tokio::spawn(async move {
            let (reply, answer) = oneshot::channel();
            inbox.send((request, reply)).await.ok()?;
            let answer = answer.await.ok();
            drop(turn);
            answer
        });
        asked.await.ok()?
    }
}

/// Whose identity is revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A terminal's.
    Terminal(TerminalId),
    /// A relay's.
    Relay(RelayName),
}

/// Revokes identities: the registrar, or what refuses in its place with its name.
pub trait Revoker: Send + Sync {
    /// Revokes. The caller may give up waiting; what was begun is then finished or not begun.
    fn revoke(&self, node: Node) -> BoxFuture<'_, Result<(), Refusal>>;
}

/// What the endpoint is made of.
#[derive(Clone)]
pub struct Service {
    /// The core.
    pub admin: Admin,
    /// Tells watchers what changes.
    pub events: Events,
    /// What actions over TCP need.
    pub token: AdminToken,
    /// Revokes.
    pub revoker: Arc<dyn Revoker>,
    /// What `/metrics` shows beside the status.
    pub metrics: Vec<Arc<dyn MetricSource>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("metrics", &self.metrics.len()).finish_non_exhaustive()
    }
}

/// Why the endpoint does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Closed by default: other machines would read and act without encryption.
    #[error("status address {0}: it is open to the network and has no TLS: report this as a bug")]
    NotEncrypted(SocketAddr),
    /// The system refused.
    #[error("local socket {path}: {error}: {}", tasuki_proto::advice::file(error))]
    Socket {
        /// Where it should be.
        path: String,
        /// Why it is not.
        error: io::Error,
    },
    /// Another process serves it.
    #[error("local socket {0}: a relay is already running here: stop it first")]
    Taken(String),
    /// The listener has no address.
    #[error("status listener: {0}: restart the relay")]
    Listener(io::Error),
}

/// How the status endpoint is reached over TCP: whether by this machine alone, and with which certificate.
#[derive(Debug, Clone)]
pub struct Security {
    network: bool,
    tls: Option<Tls>,
}

impl Security {
    /// Addresses other than loopback always have TLS: with the certificate in `files`, else the relay's own in `cell`.
    /// Loopback has it where files are given. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn new(
        address: SocketAddr,
        files: Option<&CertificateFiles>,
        cell: &IdentityCell,
    ) -> Result<Self, CertificateError> {
        let network = !is_loopback(address);
        let certificate = match files {
            Some(files) => Some(Certificate::Files(files.clone())),
            None => network.then(|| Certificate::Mesh(cell.clone())),
        };
        let tls = certificate.as_ref().map(Tls::new).transpose()?;
        Ok(Self { network, tls })
    }

    /// By this machine alone, without TLS.
    pub fn loopback() -> Self {
        Self { network: false, tls: None }
    }

    /// The scheme of its URLs.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn router(service: Service, door: Door, extra: Router, bounds: Bounds) -> Router {
    api::routes(service, extra, door, bounds.request)
}

/// Serves the status endpoint until `shutdown`.
///
/// # Errors
/// At once, when the listener is on an address that `security` is not for.
pub async fn serve_tcp(
    listener: TcpListener,
    service: Service,
    security: Security,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    serve_tcp_within(listener, service, security, Bounds::default(), shutdown).await
}

async fn serve_tcp_within(
    listener: TcpListener,
    service: Service,
    Security { network, tls }: Security,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Listener)?;
    if !(is_loopback(address) || network && tls.is_some()) {
        return Err(ServeError::NotEncrypted(address));
    }
    let token = service.token.clone();
    let door = if network { Door::Network(token) } else { Door::Loopback(token) };
    let bounds = if network { bounds } else { Bounds { per_source: usize::MAX, ..bounds } };
    let listener = listener.tap_io(|stream| {
        // Without it responses are slower, not wrong.
        let _ = stream.set_nodelay(true);
    });
    let routes = router(service, door, Router::new(), bounds);
    serve::serve(listener, tls, routes, bounds, shutdown).await;
    Ok(())
}

/// Serves the same over the local socket, with the routes of `extra`, until `shutdown`.
pub async fn serve_unix(
    socket: LocalSocket,
    service: Service,
    extra: Router,
    shutdown: impl Future<Output = ()>,
) {
    let bounds = Bounds { per_source: usize::MAX, ..Bounds::default() };
    let routes = router(service, Door::Local, extra, bounds);
    serve::serve(socket, None, routes, bounds, shutdown).await;
}
