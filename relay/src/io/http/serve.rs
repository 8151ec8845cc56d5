//! Connections of the status endpoint: how many, how long, how much.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, SockAddr, Socket, Type};
use tasuki_proto::limits;
use tokio::net::{UnixListener, UnixStream, unix};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ServeError;

/// The group whose members may use the local socket.
const GROUP: &str = "tasuki";
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// How long responses under way may take when the relay goes down.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

/// What a client can take of the endpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Connections at once.
    pub(super) connections: usize,
    /// For a request's header, and between requests.
    pub(super) header: Duration,
    /// For a request, its body included.
    pub(super) request: Duration,
    /// Until a connection takes no further request.
    pub(super) connection: Duration,
    /// For its last response.
    pub(super) grace: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: limits::HTTP_CONNECTIONS,
            header: limits::HTTP_HEADER_TIME,
            request: limits::HTTP_REQUEST_TIME,
            connection: limits::HTTP_CONNECTION_TIME,
            grace: limits::HTTP_GRACE_TIME,
        }
    }
}

/// Serves until `shutdown`, then lets responses under way end for up to [`SHUTDOWN_TIME`].
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            (stream, _) = listener.accept(), if connections.len() < bounds.connections => {
                connections.spawn(connection(stream, router.clone(), bounds, closed.clone()));
            }
        }
    }
    drop(listener);
    closing.send_replace(true);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(SHUTDOWN_TIME, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// One connection. What it holds is bounded: one request at a time, buffers of [`limits::HTTP_BUFFER_BYTES`],
/// one response; and it ends, whatever the client does or does not do, after `connection` and `grace`.
async fn connection<S>(stream: S, router: Router, bounds: Bounds, mut closed: watch::Receiver<bool>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header)
        .max_headers(limits::HTTP_HEADER_FIELDS)
        .max_header_size(limits::HTTP_HEADER_BYTES)
        .max_buf_size(limits::HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut http = pin!(http);
    tokio::select! {
        ended = http.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "status connection ended");
            }
            return;
        }
        () = sleep(bounds.connection) => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
    http.as_mut().graceful_shutdown();
    if timeout(bounds.grace, http).await.is_err() {
        tracing::debug!("status connection cut: its client is too slow");
    }
}

/// The listening local socket. Its file goes when it is dropped.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// Listens at `path` with mode 0660, for the group `tasuki` where this machine has it and lets us. Replaces
    /// a socket that nobody serves. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ServeError::Taken`] when a relay answers there; [`ServeError::Socket`] when the system refuses, or
    /// something else than a socket is in the way.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let shown = || path.display().to_string();
        match Self::is_served(path) {
            Ok(false) => Self::replace(path),
            Ok(true) => return Err(ServeError::Taken(shown())),
            Err(error) => Err(error),
        }
        .map_err(|error| ServeError::Socket { path: shown(), error })
    }

    /// Whether a process listens there, even one too busy to accept.
    fn is_served(path: &Path) -> io::Result<bool> {
        let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        probe.set_nonblocking(true)?;
        match probe.connect(&SockAddr::unix(path)?) {
            Ok(()) => Ok(true),
            Err(error) => Ok(error.kind() == io::ErrorKind::WouldBlock),
        }
    }

    fn replace(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("something else than a socket is in its place")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Nobody can connect before it listens, so nobody slips in before the mode is set.
        if let Some(group) = group_id(&std::fs::read_to_string("/etc/group").unwrap_or_default())
            && let Err(error) = std::os::unix::fs::chown(path, None, Some(group))
        {
            tracing::debug!(%error, "the local socket stays with this user's group");
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self { listener, path: path.to_owned() })
    }
}

/// The id of [`GROUP`] in the text of `/etc/group` (group(5)).
fn group_id(groups: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(GROUP)).then(|| fields.nth(1)?.parse().ok())?
    })
}

impl Listener for LocalSocket {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, unix::SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.listener.local_addr()
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_by_its_name() {
        assert_eq!(group_id("root:x:0:\ntasuki:x:987:a,b\n"), Some(987));
        assert_eq!(group_id("tasuki2:x:1:\nx:tasuki:2:\n"), None);
        assert_eq!(group_id("tasuki:x:\ntasuki"), None);
    }
}
