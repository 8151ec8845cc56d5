//! The daemon's end of the socket.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use serde::Serialize;
use tasuki_proto::advice;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Begin, OpenBytes, PING};
use tasuki_proto::view::{TerminalFilter, TerminalView};
use tasuki_proto::{Refusal, RefusalCode, ServiceName, SessionId, TerminalId, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use super::{
    DATA_BYTES, Failure, ForwardNews, PingNews, PingResult, Request, RoundTrips, kind, socket_path,
};
use crate::agent::{Agent, Session, StatusView};
use crate::config::Protocol;
use crate::core::notice::Notice;
use crate::io::services::Services;
use crate::io::services::backlog::Backlog;
use crate::io::services::forward::{Forward, ForwardError, ForwardEvent, wait_for_end};
use crate::io::services::lanes::Fan;
use crate::io::services::pause::Pausable;
use crate::io::services::ping::Pinger;
use crate::io::services::pipe::{self, Broken};
use crate::io::services::reached::ReachedView;

/// The group whose members may use the system's daemon.
const GROUP: &str = "tasuki";
/// The pause between two pings.
const PING_PAUSE: Duration = Duration::from_millis(500);
/// Pings of one request.
const PINGS: u32 = 100_000;

/// The daemon's socket, locked: one daemon per data directory. Dropping it removes the socket.
#[derive(Debug)]
pub struct IpcListener {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Drop for IpcListener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The id of the group of this name, by `/etc/group`.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

impl IpcListener {
    /// Takes the data directory for this daemon and listens in it. A socket that a dead daemon left is replaced.
    ///
    /// The socket is 0660 and, for root, of the group `tasuki` where there is one; the directory then lets that
    /// group through (0710), since all its files have modes of their own.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceBusy`] when another daemon runs on it, or what the file system says.
    pub fn bind(data: &Path, is_root: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let lock = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data.join("agent.lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => ErrorKind::ResourceBusy.into(),
            TryLockError::Error(error) => error,
        })?;
        let path = socket_path(data);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o660))?;
        if let Some(group) = group_id(GROUP).filter(|_| is_root) {
            std::os::unix::fs::chown(&path, None, Some(group))?;
            std::os::unix::fs::chown(data, None, Some(group))?;
            std::fs::set_permissions(data, Permissions::from_mode(0o710))?;
        }
        Ok(Self { listener, path, _lock: lock })
    }

    /// Serves verbs until it is dropped.
    pub async fn serve(self, agent: Agent, services: Arc<Services>) {
        let daemon = Arc::new(Daemon { agent, services, sessions: Mutex::default() });
        let (mut verbs, mut said) = (JoinSet::new(), Notice::default());
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if verbs.len() < limits::IPC_CONNECTIONS => {
                        let daemon = daemon.clone();
                        verbs.spawn(async move { daemon.handle(stream).await });
                    }
                    Ok((stream, _)) => refuse_at_limit(&stream),
                    Err(error) => {
                        if let Some(count) = said.handle(Instant::now()) {
                            tracing::warn!(%error, count, "verbs cannot be accepted");
                        }
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = verbs.join_next() => {}
            }
        }
    }
}

/// Tells a verb that there are too many; what does not fit into the socket's buffer is left unsaid.
fn refuse_at_limit(stream: &UnixStream) {
    let refusal = Refusal::new(RefusalCode::Busy, "IPC_CONNECTIONS: too many verbs at once");
    if let Ok(body) = serde_json::to_vec(&Failure::from(refusal)) {
        let _ = stream.try_write(&Envelope { kind: kind::FAILURE, body: body.into() }.to_bytes());
    }
}

/// The writing half towards a verb.
struct Out(OwnedWriteHalf);

impl Out {
    async fn say(&mut self, kind: u16, value: &impl Serialize) -> io::Result<()> {
        let body = Bytes::from(serde_json::to_vec(value)?);
        self.0.write_all(&Envelope { kind, body }.to_bytes()).await
    }

    async fn event(&mut self, value: &impl Serialize) -> io::Result<()> {
        self.say(kind::EVENT, value).await
    }
}

/// A request's failure: told to the verb, or the verb is gone.
enum Failed {
    Told(Failure),
    Gone,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Failed::Told(refusal.into())
    }
}

impl From<io::Error> for Failed {
    fn from(_: io::Error) -> Self {
        Failed::Gone
    }
}

/// What the verbs are served with.
#[derive(Debug)]
struct Daemon {
    agent: Agent,
    services: Arc<Services>,
    /// Sessions that verbs opened for streams of their own.
    sessions: Mutex<HashMap<String, Session>>,
}

/// What `status` shows.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    status: StatusView,
    /// How often limits of forwarded ports and served streams were reached since the start.
    limits: ReachedView,
}

/// Ends when the verb hangs up; what it still says is ignored.
async fn hang_up(reader: &mut OwnedReadHalf) {
    let mut scrap = [0; 1024];
    while reader.read(&mut scrap).await.is_ok_and(|count| count > 0) {}
}

impl Daemon {
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, stream: UnixStream) {
        let (mut reader, writer) = stream.into_split();
        let mut out = Out(writer);
        let request = Envelope::read(&mut reader, limits::IPC_REQUEST_BYTES).await;
        let Ok(Some(Envelope { kind: kind::REQUEST, body })) = request else { return };
        let result = match serde_json::from_slice(&body) {
            Ok(Request::Dial { target, service }) => {
                self.dial(target, service, &mut reader, &mut out).await
            }
            Ok(Request::Stream { session }) => self.stream(&session, &mut reader, &mut out).await,
            Ok(request) => tokio::select! {
                result = self.answer(request, &mut out) => result,
                () = hang_up(&mut reader) => Err(Failed::Gone),
            },
            Err(error) => Err(Refusal::new(RefusalCode::BadRequest, error.to_string()).into()),
        };
        if let Err(Failed::Told(failure)) = result {
            let _ = out.say(kind::FAILURE, &failure).await;
        }
    }

    async fn answer(&self, request: Request, out: &mut Out) -> Result<(), Failed> {
        match request {
            Request::Status {} => {
                let (status, limits) = (self.agent.status().await?, self.services.reached.view());
                let mut status = serde_json::to_value(Shown { status, limits })
                    .map_err(|error| Refusal::new(RefusalCode::BadRequest, error.to_string()))?;
                if let (Some(inbox), Some(fields)) =
                    (self.services.inbox().await, status.as_object_mut())
                {
                    fields.insert("inbox".to_owned(), serde_json::json!(inbox));
                }
                self.result(out, &status).await
            }
            Request::List { filter } => self.result(out, &self.list(filter).await?).await,
            Request::Sessions {} => self.result(out, &self.agent.sessions().await?).await,
            Request::Paths {} => self.result(out, &self.agent.paths().await?).await,
            Request::End { session } => {
                let id: SessionId = session
                    .parse()
                    .map_err(|_| Refusal::new(RefusalCode::UnknownSession, session.as_str()))?;
                self.agent.end_session(id).await?;
                self.result(out, &()).await
            }
            Request::Logout {} => {
                self.agent.logout().await?;
                self.result(out, &()).await
            }
            Request::Login {} => {
                self.agent.login().await?;
                self.result(out, &()).await
            }
            Request::Forward { udp, listen, target, service } => {
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                let (events, news) = mpsc::channel(64);
                let (agent, services) = (self.agent.clone(), self.services.clone());
                let forward =
                    Forward { agent, services, protocol, listen, target, service, events };
                forward_for(forward, news, out).await
            }
            Request::Ping { target, count } => self.ping(target, count.clamp(1, PINGS), out).await,
            Request::Session { target, service } => self.hold_session(target, service, out).await,
            Request::Dial { .. } | Request::Stream { .. } => {
                Err(Refusal::from(RefusalCode::BadRequest).into())
            }
        }
    }

    async fn result(&self, out: &mut Out, value: &impl Serialize) -> Result<(), Failed> {
        Ok(out.say(kind::RESULT, value).await?)
    }

    async fn list(&self, filter: TerminalFilter) -> Result<Vec<TerminalView>, Refusal> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.agent.list(filter.clone(), after.clone(), limits::PAGE as u16).await?;
            all.extend(page.items);
            let Some(next) = page.next else { return Ok(all) };
            // A relay could go on for ever.
            if !goes_on(after.as_ref(), &next) || all.len() > limits::LISTED_TERMINALS {
                let detail = "the relay's list does not end";
                return Err(Refusal::new(RefusalCode::ProtocolError, detail));
            }
            after = Some(next);
        }
    }

    async fn call(&self, target: TerminalId, service: ServiceName) -> Result<Session, Refusal> {
        let session = self.agent.call(target, service).await?;
        self.services.attend(&session);
        Ok(session)
    }

    async fn ping(&self, target: TerminalId, count: u32, out: &mut Out) -> Result<(), Failed> {
        let service = ServiceName::new(PING).map_err(|_| Refusal::from(RefusalCode::BadRequest))?;
        let session = self.call(target.clone(), service).await?;
        let mut pinger = Pinger::open(&session.connection).await?;
        let mut trips = Vec::new();
        let mut sent = 0;
        while sent < count {
            if sent > 0 {
                tokio::time::sleep(PING_PAUSE).await;
            }
            sent += 1;
            let trip = match pinger.round_trip().await {
                Ok(trip) => trip,
                Err(refusal) if trips.is_empty() => return Err(refusal.into()),
                Err(_) => break,
            };
            let rtt_us = trip.map(|trip| trip.as_micros() as u64);
            let path = self.path_of(&session).await;
            out.event(&PingNews { sequence: sent, rtt_us, path }).await?;
            match rtt_us {
                Some(rtt_us) => trips.push(rtt_us),
                None => pinger = Pinger::open(&session.connection).await?,
            }
        }
        let path = self.path_of(&session).await;
        let received = trips.len() as u32;
        let rtt_us = RoundTrips::of(trips);
        self.result(out, &PingResult { target, sent, received, rtt_us, path }).await
    }

    /// `relayed` or `direct`.
    async fn path_of(&self, session: &Session) -> String {
        let id = session.id.to_string();
        let paths = self.agent.paths().await.unwrap_or_default();
        let row = paths.iter().find(|row| row.session == id);
        row.map_or("relayed", |row| row.path).to_owned()
    }

    /// Keeps a session for a verb's own streams until the verb hangs up or the session ends.
    async fn hold_session(
        &self,
        target: TerminalId,
        service: ServiceName,
        out: &mut Out,
    ) -> Result<(), Failed> {
        struct Entry<'a>(&'a Daemon, String);
        impl Drop for Entry<'_> {
            fn drop(&mut self) {
                self.0.sessions().remove(&self.1);
            }
        }
        let session = self.call(target, service).await?;
        let entry = Entry(self, session.id.to_string());
        self.sessions().insert(entry.1.clone(), session.clone());
        self.result(out, &serde_json::json!({ "session": entry.1 })).await?;
        wait_for_end(session).await;
        Ok(())
    }

    async fn stream(
        &self,
        session: &str,
        reader: &mut OwnedReadHalf,
        out: &mut Out,
    ) -> Result<(), Failed> {
        let session = self.sessions().get(session).cloned();
        let session = session.ok_or(Refusal::from(RefusalCode::PeerLost))?;
        let opened = session.connection.open_bi().await;
        let (send, recv) = opened.map_err(|_| Refusal::from(RefusalCode::PeerLost))?;
        self.result(out, &()).await?;
        carry(reader, out, &session, (send, recv), false).await
    }

    async fn dial(
        &self,
        target: TerminalId,
        service: ServiceName,
        reader: &mut OwnedReadHalf,
        out: &mut Out,
    ) -> Result<(), Failed> {
        let session = self.call(target, service.clone()).await?;
        let begin = Begin::Bytes(OpenBytes { service });
        let opened = pipe::open(&session.connection, &begin).await;
        let (send, recv) = opened.map_err(Broken::refusal)?;
        carry(reader, out, &session, (send, recv), true).await
    }
}

/// Whether a list that went on behind `after` goes on behind `next`: each page begins later than the one before.
fn goes_on(after: Option<&TerminalId>, next: &TerminalId) -> bool {
    after.is_none_or(|after| next > after)
}

async fn forward_for(
    forward: Forward,
    mut news: mpsc::Receiver<ForwardEvent>,
    out: &mut Out,
) -> Result<(), Failed> {
    let run = forward.run();
    tokio::pin!(run);
    loop {
        let event = tokio::select! {
            error = &mut run => return Err(match error {
                ForwardError::Refused(refusal) => refusal.into(),
                ForwardError::Listen(address, error) => {
                    let (code, advice) = ("cannot-listen".to_owned(), advice::port(address, &error));
                    let message = format!("{code}: cannot listen on {address}: {error}: {advice}");
                    Failed::Told(Failure { message, code })
                }
            }),
            Some(event) = news.recv() => event,
        };
        let event = match event {
            ForwardEvent::Listening(address) => ForwardNews::Listening { address },
            ForwardEvent::Connected => ForwardNews::Connected {},
            ForwardEvent::Waiting(refusal, wait) => {
                ForwardNews::Waiting { why: refusal.to_string(), retry_ms: wait.as_millis() as u64 }
            }
            ForwardEvent::Refused(refusal) => ForwardNews::Refused { why: refusal.to_string() },
            ForwardEvent::Limit(why) => ForwardNews::Limit { why },
        };
        out.event(&event).await?;
    }
}

/// Carries a stream's bytes between a verb and the session until both directions ended.
async fn carry(
    reader: &mut OwnedReadHalf,
    out: &mut Out,
    session: &Session,
    (mut send, mut recv): (SendStream, RecvStream),
    answered: bool,
) -> Result<(), Failed> {
    let mut pausable = session.lanes.pauses.pausable(send.id());
    let fan = Fan { connection: &session.connection, desk: &session.lanes };
    let backlog = Backlog::new(recv.id(), fan, data_head);
    let ended = Notify::new();
    let delivered = pipe::delivered(&send);
    let up = async {
        pipe::wait_for_verdict(framed_upstream(reader, &mut send, &mut pausable).await)?;
        ended.notify_one();
        hang_up(reader).await;
        Err(Broken::Local(ErrorKind::UnexpectedEof.into()))
    };
    let down = async {
        if answered {
            pipe::read_opened(&mut recv).await?;
            out.say(kind::RESULT, &()).await.map_err(Broken::Local)?;
        }
        backlog.hand_on(&mut recv, &mut out.0).await?;
        let end = Envelope { kind: kind::END, body: Bytes::new() };
        out.0.write_all(&end.to_bytes()).await.map_err(Broken::Local)?;
        ended.notified().await;
        delivered.await;
        Ok(())
    };
    let result: Result<(), Broken> = tokio::select! {
        result = up => result,
        result = down => result,
    };
    match result {
        Ok(()) => Ok(()),
        Err(broken) => {
            pipe::reset(&mut send, &mut recv);
            match broken {
                Broken::Local(_) => Err(Failed::Gone),
                broken => Err(broken.refusal().into()),
            }
        }
    }
}

/// Takes data envelopes apart as they arrive, without waiting for whole ones.
async fn framed_upstream(
    reader: &mut OwnedReadHalf,
    send: &mut SendStream,
    pausable: &mut Pausable<'_>,
) -> Result<(), Broken> {
    let unsound = || Broken::Local(ErrorKind::InvalidData.into());
    let mut buffer = BytesMut::new();
    let mut left = 0;
    loop {
        if left > 0 && !buffer.is_empty() {
            let piece = buffer.split_to(buffer.len().min(left)).freeze();
            left -= piece.len();
            pausable.ready().await;
            send.write_chunk(piece).await?;
        } else if left == 0 && buffer.len() >= Envelope::HEAD {
            let (kind, length) = (buffer.get_u16(), buffer.get_u32() as usize);
            match kind {
                kind::DATA if length <= DATA_BYTES => left = length,
                kind::END if length == 0 => {
                    let _ = send.finish();
                    return Ok(());
                }
                _ => return Err(unsound()),
            }
        } else {
            if buffer.capacity() - buffer.len() < DATA_BYTES / 16 {
                buffer.reserve(DATA_BYTES);
            }
            if reader.read_buf(&mut buffer).await.map_err(Broken::Local)? == 0 {
                return Err(Broken::Local(ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// What stands before so many bytes of data towards a verb.
fn data_head(bytes: usize) -> Bytes {
    let mut head = BytesMut::with_capacity(Envelope::HEAD);
    head.extend_from_slice(&kind::DATA.to_be_bytes());
    head.extend_from_slice(&(bytes as u32).to_be_bytes());
    head.freeze()
}

#[cfg(test)]
mod tests;
