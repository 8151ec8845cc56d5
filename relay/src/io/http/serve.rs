//! Connections of the status endpoint: how many, how long, how much.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, SockAddr, Socket, Type};
use tasuki_proto::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Sleep, sleep, timeout};

use super::ServeError;
use super::tls::Tls;
use crate::core::admission::Source;
use crate::core::room::{Entry, Room, Seat};

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
    /// Connections of one address.
    pub(super) per_source: usize,
    /// For a TLS handshake.
    pub(super) handshake: Duration,
    /// For the first byte.
    pub(super) first_byte: Duration,
    /// For a request's header, and between requests.
    pub(super) header: Duration,
    /// For a request, its body included.
    pub(super) request: Duration,
    /// Until a connection takes no further request.
    pub(super) connection: Duration,
    /// For its last response.
    pub(super) grace: Duration,
    /// For a response that is not read.
    pub(super) stall: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections: limits::HTTP_CONNECTIONS,
            per_source: limits::HTTP_CONNECTIONS_PER_ADDRESS,
            handshake: limits::HTTP_HANDSHAKE_TIME,
            first_byte: limits::HTTP_FIRST_BYTE_TIME,
            header: limits::HTTP_HEADER_TIME,
            request: limits::HTTP_REQUEST_TIME,
            connection: limits::HTTP_CONNECTION_TIME,
            grace: limits::HTTP_GRACE_TIME,
            stall: limits::HTTP_STALL_TIME,
        }
    }
}

/// Serves until `shutdown`, then lets responses under way end for up to [`SHUTDOWN_TIME`]. When all places are taken, a
/// connection without a request under way makes room ([`Room`]).
pub(super) async fn serve<L: Listener<Addr: Peer>>(
    mut listener: L,
    tls: Option<Tls>,
    router: Router,
    bounds: Bounds,
    shutdown: impl Future<Output = ()>,
) {
    let (closing, closed) = watch::channel(false);
    let mut connections = JoinSet::new();
    let guests = Guests::new(bounds);
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            // Those that made room are about to go.
            (stream, peer) = listener.accept(), if connections.len() < 4 * bounds.connections => {
                let origin = peer.origin();
                let entered = guests.enter(origin);
                let parked = guests.park(&entered, bounds.connections);
                if matches!(entered, Entered::Refused) || parked.is_none() {
                    tracing::debug!(%origin, "status connection refused: there are too many");
                    continue;
                }
                let (guests, router) = (guests.clone(), router.clone());
                let (tls, closed) = (tls.clone(), closed.clone());
                connections.spawn(async move {
                    let Some((guest, gone)) = guests.wait(entered, origin).await else { return };
                    drop(parked);
                    let stream = Patient::new(stream, bounds);
                    let served = async {
                        match tls {
                            None => connection(stream, router, bounds, guest, closed).await,
                            Some(tls) => secured(tls, stream, router, bounds, guest, closed).await,
                        }
                    };
                    tokio::select! {
                        () = served => {}
                        Ok(()) = gone => tracing::debug!(%origin, "status connection made room"),
                    }
                });
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

/// Where a connection comes from: whom limits count, and whom the log names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// An address.
    Address(Source),
    /// A user of this machine, by the number that the kernel gives; none if it gives none.
    User(Option<u32>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Address(source) => write!(f, "{source}"),
            Origin::User(Some(user)) => write!(f, "local user {user}"),
            Origin::User(None) => f.write_str("local user"),
        }
    }
}

/// The other end of a connection.
pub(super) trait Peer {
    /// Where it is.
    fn origin(&self) -> Origin;
}

impl Peer for SocketAddr {
    fn origin(&self) -> Origin {
        Origin::Address(self.ip().into())
    }
}

impl Peer for User {
    fn origin(&self) -> Origin {
        Origin::User(self.0)
    }
}

/// The connections that are in.
#[derive(Clone)]
struct Guests(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    per_source: usize,
    /// Somebody left or is idle.
    freed: Notify,
}

struct State {
    room: Room<Origin>,
    /// Who is sent a word makes room.
    gone: BTreeMap<Seat, oneshot::Sender<()>>,
    /// How many wait for a place.
    parked: usize,
}

/// Counts as one that waits for a place.
struct Parked(Option<Guests>);

impl Drop for Parked {
    fn drop(&mut self) {
        if let Some(guests) = &self.0 {
            guests.lock().parked -= 1;
        }
    }
}

/// What becomes of a connection that comes in.
enum Entered {
    /// It is in; it makes room when it is told so.
    In(Guest, oneshot::Receiver<()>),
    /// All places are at work.
    Busy,
    /// Its address has as many as it may.
    Refused,
}

impl Guests {
    fn new(bounds: Bounds) -> Self {
        let state = State { room: Room::new(bounds.connections), gone: BTreeMap::new(), parked: 0 };
        let (state, per_source) = (Mutex::new(state), bounds.per_source);
        Self(Arc::new(Shared { state, per_source, freed: Notify::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, origin: Origin) -> Entered {
        let mut state = self.lock();
        if state.room.of(&origin) >= self.0.per_source {
            return Entered::Refused;
        }
        let is_user = matches!(origin, Origin::User(_));
        if is_user && state.room.busy_of(&origin) >= limits::HTTP_REQUESTS_PER_USER {
            return Entered::Busy;
        }
        let Entry::In(seat, other) = state.room.enter(origin) else { return Entered::Busy };
        if let Some(other) = other.and_then(|other| state.gone.remove(&other)) {
            let _ = other.send(());
        }
        let (told, gone) = oneshot::channel();
        state.gone.insert(seat, told);
        Entered::In(Guest { guests: self.clone(), seat, origin }, gone)
    }

    /// Counts a connection that has to wait, if fewer than `most` do; one that is in waits for nothing.
    fn park(&self, entered: &Entered, most: usize) -> Option<Parked> {
        if !matches!(entered, Entered::Busy) {
            return Some(Parked(None));
        }
        let mut state = self.lock();
        let fits = state.parked < most;
        state.parked += usize::from(fits);
        fits.then(|| Parked(Some(self.clone())))
    }

    /// Waits for a place while all are at work, for as long as an answer may take.
    async fn wait(
        &self,
        mut entered: Entered,
        origin: Origin,
    ) -> Option<(Guest, oneshot::Receiver<()>)> {
        let waiting = async {
            loop {
                match entered {
                    Entered::In(guest, gone) => return Some((guest, gone)),
                    Entered::Refused => return None,
                    Entered::Busy => {}
                }
                let mut freed = pin!(self.0.freed.notified());
                // From here on no word is missed.
                freed.as_mut().enable();
                entered = self.enter(origin);
                if matches!(entered, Entered::Busy) {
                    freed.await;
                    entered = self.enter(origin);
                }
            }
        };
        timeout(limits::HTTP_ANSWER_TIME, waiting).await.ok().flatten()
    }
}

/// A connection's place; given back when it is dropped.
struct Guest {
    guests: Guests,
    seat: Seat,
    origin: Origin,
}

impl Guest {
    fn set_idle(&self, idle: bool) {
        self.guests.lock().room.set_idle(self.seat, idle);
        if idle {
            self.guests.0.freed.notify_waiters();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut state = self.guests.lock();
        state.room.leave(self.seat);
        state.gone.remove(&self.seat);
        drop(state);
        self.guests.0.freed.notify_waiters();
    }
}

/// A connection behind a TLS handshake, which has to be done in time.
async fn secured<S>(
    tls: Tls,
    stream: S,
    router: Router,
    bounds: Bounds,
    guest: Guest,
    mut closed: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shaken = tokio::select! {
        shaken = timeout(bounds.handshake, tls.accept(stream)) => shaken,
        _ = closed.wait_for(|closed| *closed) => return,
    };
    match shaken {
        Ok(Ok(stream)) => connection(stream, router, bounds, guest, closed).await,
        Ok(Err(error)) => tracing::debug!(%error, "status connection without TLS"),
        Err(_) => tracing::debug!("status connection cut: its handshake is too slow"),
    }
}

/// How long a connection may last; a request carries it to the route that serves it.
#[derive(Debug, Clone, Default)]
pub(super) struct Lifetime(Arc<AtomicBool>);

impl Lifetime {
    /// The response has no end of its own: the connection lasts as long as its client reads.
    pub(super) fn extend(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_extended(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One connection. What it holds is bounded: one request at a time, buffers of [`limits::HTTP_BUFFER_BYTES`],
/// one response; and it ends, whatever the client does or does not do, after `connection` and `grace`; with a response
/// without end, when that was not read for `stall`, and with the relay.
async fn connection<S>(
    stream: S,
    router: Router,
    bounds: Bounds,
    guest: Guest,
    mut closed: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (lifetime, guest) = (Lifetime::default(), Arc::new(guest));
    let (routes, extension) = (TowerToHyperService::new(router), lifetime.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(extension.clone());
        request.extensions_mut().insert(guest.origin);
        guest.set_idle(false);
        let (guest, lifetime, answer) = (guest.clone(), extension.clone(), routes.call(request));
        async move {
            let answer = answer.await;
            // A response without end is one that its client waits for.
            guest.set_idle(!lifetime.is_extended());
            answer
        }
    });
    let http = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header)
        .max_headers(limits::HTTP_HEADER_FIELDS)
        .max_header_size(limits::HTTP_HEADER_BYTES)
        .max_buf_size(limits::HTTP_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut http = pin!(http);
    let ended = |result: Result<(), hyper::Error>| {
        if let Err(error) = result {
            tracing::debug!(%error, "status connection ended");
        }
    };
    tokio::select! {
        result = http.as_mut() => return ended(result),
        () = sleep(bounds.connection) => {}
        _ = closed.wait_for(|closed| *closed) => {}
    }
    http.as_mut().graceful_shutdown();
    if lifetime.is_extended() {
        tokio::select! {
            result = http.as_mut() => return ended(result),
            _ = closed.wait_for(|closed| *closed) => return,
        }
    }
    if timeout(bounds.grace, http).await.is_err() {
        tracing::debug!("status connection cut: its client is too slow");
    }
}

/// A stream whose writes fail when the other end takes nothing for `most`, and whose first read fails when nothing comes.
struct Patient<S> {
    stream: S,
    most: Duration,
    /// Runs until the first byte.
    silent: Option<Pin<Box<Sleep>>>,
    /// Runs while something waits to be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, bounds: Bounds) -> Self {
        let silent = Some(Box::pin(sleep(bounds.first_byte)));
        Self { stream, most: bounds.stall, silent, stalled: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut task::Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let most = self.most;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(most)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            self.silent = None;
        }
        match &mut self.silent {
            Some(silent) => silent.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, shut)
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

/// The user at the other end of a local connection, as the kernel gives it.
#[derive(Debug, Clone, Copy)]
pub struct User(Option<u32>);

impl Listener for LocalSocket {
    type Io = UnixStream;
    type Addr = User;

    async fn accept(&mut self) -> (UnixStream, User) {
        let (stream, _) = Listener::accept(&mut self.listener).await;
        let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
        (stream, User(user))
    }

    fn local_addr(&self) -> io::Result<User> {
        Ok(User(None))
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
