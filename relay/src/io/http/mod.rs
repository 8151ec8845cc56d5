//! The status endpoint, and the same over the local socket for the relay's own verbs.
//!
//! Both serve one router (`api`); what differs is who is let in (`door`). Requests read the core's views and
//! send commands through the same inbox as everybody.
//!
//! | over | reads | actions |
//! |---|---|---|
//! | a loopback address | free, with a `Host` of this machine | `Authorization: Bearer` with `admin.token` |
//! | `relay.sock` | who can open it | who can open it |

mod api;
mod console;
mod door;
mod metrics;
mod params;
mod problem;
mod serve;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use axum::serve::ListenerExt;
use futures_util::future::BoxFuture;
use tasuki_proto::{Refusal, RelayName, TerminalId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::core::admin::{AdminReply, AdminRequest};

pub use door::{AdminToken, WeakToken};
pub use metrics::{Exposition, MetricSource};
pub use problem::Problem;
pub use serve::LocalSocket;

use door::Door;
use serve::Bounds;

/// A request to the core and where its answer goes.
pub type AdminCall = (AdminRequest, oneshot::Sender<AdminReply>);

/// Asks the core, through the same inbox as everybody.
#[derive(Debug, Clone)]
pub struct Admin(mpsc::Sender<AdminCall>);

impl Admin {
    /// Requests go to `inbox`.
    pub fn new(inbox: mpsc::Sender<AdminCall>) -> Self {
        Self(inbox)
    }

    /// Asks; `None` when the relay is going down.
    pub async fn ask(&self, request: AdminRequest) -> Option<AdminReply> {
        let (reply, answer) = oneshot::channel();
        self.0.send((request, reply)).await.ok()?;
        answer.await.ok()
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
    #[error(
        "status address {0}: TLS for it is not built, so it would be open to the network: use a loopback address \
         such as 127.0.0.1:8433, and an SSH tunnel or a reverse proxy (that sends 'Host: localhost') to reach it"
    )]
    NotLoopback(SocketAddr),
    /// The system refused.
    #[error("local socket {path}: {error}: see who owns its directory, or choose a shorter --data")]
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

/// Whether the status endpoint may be bound to `address`.
///
/// # Errors
/// [`ServeError::NotLoopback`].
pub fn check_address(address: SocketAddr) -> Result<(), ServeError> {
    if address.ip().to_canonical().is_loopback() {
        Ok(())
    } else {
        Err(ServeError::NotLoopback(address))
    }
}

fn router(service: Service, door: Door, extra: Router, bounds: Bounds) -> Router {
    let guard = middleware::from_fn_with_state((Arc::new(door), bounds.request), door::guard);
    api::routes(service, extra).layer(guard)
}

/// Serves the status endpoint until `shutdown`.
///
/// # Errors
/// At once, when the listener is not on a loopback address.
pub async fn serve_tcp(
    listener: TcpListener,
    service: Service,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    serve_tcp_within(listener, service, Bounds::default(), shutdown).await
}

async fn serve_tcp_within(
    listener: TcpListener,
    service: Service,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    check_address(listener.local_addr().map_err(ServeError::Listener)?)?;
    let door = Door::Tcp(service.token.clone());
    let listener = listener.tap_io(|stream| {
        // Without it responses are slower, not wrong.
        let _ = stream.set_nodelay(true);
    });
    serve::serve(listener, router(service, door, Router::new(), bounds), bounds, shutdown).await;
    Ok(())
}

/// Serves the same over the local socket, with the routes of `extra`, until `shutdown`.
pub async fn serve_unix(
    socket: LocalSocket,
    service: Service,
    extra: Router,
    shutdown: impl Future<Output = ()>,
) {
    let bounds = Bounds::default();
    serve::serve(socket, router(service, Door::Local, extra, bounds), bounds, shutdown).await;
}
