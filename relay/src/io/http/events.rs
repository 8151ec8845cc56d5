//! The event stream: one task asks the core what changed, renders each row once, and hands it to every watcher.
//!
//! It asks only while somebody watches, at most each [`limits::HTTP_EVENT_PERIOD`], in bounded answers. What waits for one
//! watcher is bounded ([`limits::HTTP_WATCHER_BYTES`]): one that falls behind loses events and is told so with `resync` as
//! soon as it has room; one that stays behind for [`limits::HTTP_STALL_TIME`] is cut. The format is that of
//! server-sent events (HTML standard, section 9.2).

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tasuki_proto::{RefusalCode, RelayName, limits};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::Admin;
use super::problem::Problem;
use crate::core::admin::{AdminReply, AdminRequest, Changed, ChangedRow, RowKind};

/// Answers of the core in one period: a hundred times the changes that a mesh is made for. What is more waits.
const ANSWERS_PER_PERIOD: usize = 16;
/// Answers that one watcher who comes back may cost; where more changed it reads the lists again.
const ANSWERS_TO_RESUME: usize = 4;
/// Events are handed over in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;

/// Where a stream stands: `INCARNATION-SEQ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventId {
    incarnation: u64,
    seq: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.incarnation, self.seq)
    }
}

impl FromStr for EventId {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        let (incarnation, seq) = word.split_once('-').ok_or(())?;
        let number = |word: &str| word.parse().map_err(|_| ());
        Ok(Self { incarnation: number(incarnation)?, seq: number(seq)? })
    }
}

/// A set of kinds of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds(u8);

impl Kinds {
    const ALL: Kinds = Kinds(0b111);

    fn contains(self, kind: RowKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

/// A comma-separated list of kinds (`?types=`).
pub(super) fn kinds(value: &str) -> Result<Kinds, String> {
    let mut kinds = Kinds(0);
    for word in value.split(',') {
        let kind: RowKind = super::params::word(word)?;
        kinds.0 |= 1 << kind as u8;
    }
    Ok(kinds)
}

/// What one watcher wants.
#[derive(Debug)]
pub(super) struct Wanted {
    kinds: Kinds,
    after: Option<EventId>,
}

impl Wanted {
    /// What the query and `Last-Event-ID` ask for. An id that makes no sense is one that nobody knows.
    pub(super) fn new(kinds: Option<Kinds>, headers: &HeaderMap) -> Self {
        let after = headers.get("last-event-id").map(|value| {
            let id = value.to_str().ok().and_then(|word| word.trim().parse().ok());
            id.unwrap_or(EventId { incarnation: 0, seq: 0 })
        });
        Self { kinds: kinds.unwrap_or(Kinds::ALL), after }
    }
}

struct Subscribe {
    wanted: Wanted,
    reply: oneshot::Sender<Result<Stream, Problem>>,
}

/// A watcher's end of its queue.
struct Stream {
    pieces: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// Where watchers come in.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Subscribe>);

impl Events {
    /// Starts the task, which ends when the last copy of this is dropped. `relay` is named in `hello`. Needs a tokio
    /// runtime.
    pub fn start(admin: Admin, relay: RelayName) -> Self {
        let (subscribe, inbox) = mpsc::channel(limits::HTTP_WATCHERS);
        let hub = Hub { admin, relay, at: None, watchers: Vec::new() };
        tokio::spawn(hub.run(inbox));
        Self(subscribe)
    }

    /// The stream as a response.
    pub(super) async fn watch(&self, wanted: Wanted) -> Result<Response, Problem> {
        let gone = || Problem::from(RefusalCode::ShuttingDown);
        let (reply, answer) = oneshot::channel();
        self.0.send(Subscribe { wanted, reply }).await.map_err(|_| gone())?;
        let stream = answer.await.map_err(|_| gone())??;
        let body = Body::from_stream(stream::unfold(stream, |mut stream| async move {
            let piece = match timeout(limits::HTTP_COMMENT_PERIOD, stream.pieces.recv()).await {
                Ok(piece) => piece?,
                Err(_) => Bytes::from_static(b":\n\n"),
            };
            let _ = stream.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                Some(waiting.saturating_sub(piece.len()))
            });
            Some((Ok::<_, Infallible>(piece), stream))
        }));
        let kind = [(header::CONTENT_TYPE, "text/event-stream")];
        // A proxy in between is not to wait for more (nginx's own header field).
        Ok((kind, [("x-accel-buffering", "no")], body).into_response())
    }
}

/// One who watches.
struct Watcher {
    kinds: Kinds,
    pieces: mpsc::Sender<Bytes>,
    /// Bytes in the queue.
    waiting: Arc<AtomicUsize>,
    /// Since when events were left out that it was not told of.
    behind: Option<Instant>,
}

impl Watcher {
    /// Whether it is still there, and not behind for too long.
    fn is_well(&self) -> bool {
        let stalled = self.behind.is_some_and(|since| since.elapsed() >= limits::HTTP_STALL_TIME);
        !self.pieces.is_closed() && !stalled
    }

    /// Hands a piece over, or leaves it out where there is no room.
    fn send(&mut self, piece: &Bytes) {
        if !piece.is_empty() && self.behind.is_none() && !self.has_room(piece) {
            self.behind = Some(Instant::now());
        }
    }

    fn has_room(&self, piece: &Bytes) -> bool {
        let waiting = self.waiting.load(Ordering::Relaxed);
        // One piece always fits, so that a large row does not keep a watcher behind for ever.
        if waiting > 0 && waiting + piece.len() > limits::HTTP_WATCHER_BYTES {
            return false;
        }
        self.waiting.fetch_add(piece.len(), Ordering::Relaxed);
        let sent = self.pieces.try_send(piece.clone()).is_ok();
        if !sent {
            self.waiting.fetch_sub(piece.len(), Ordering::Relaxed);
        }
        sent
    }

    /// Tells one that is behind, once it has read most of what waited.
    fn catch_up(&mut self, at: EventId) {
        if self.behind.is_some()
            && self.waiting.load(Ordering::Relaxed) <= limits::HTTP_WATCHER_BYTES / 4
            && self.has_room(&resync(at, "the events came faster than they were read"))
        {
            self.behind = None;
        }
    }
}

struct Hub {
    admin: Admin,
    relay: RelayName,
    /// What the watchers were told of so far; `None` while nobody watches.
    at: Option<EventId>,
    watchers: Vec<Watcher>,
}

impl Hub {
    async fn run(mut self, mut inbox: mpsc::Receiver<Subscribe>) {
        let mut ticks = interval(limits::HTTP_EVENT_PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                subscribe = inbox.recv() => {
                    let Some(Subscribe { wanted, reply }) = subscribe else { return };
                    let _ = reply.send(self.subscribe(wanted).await);
                }
                _ = ticks.tick(), if !self.watchers.is_empty() => {
                    if self.poll().await.is_none() {
                        // The relay goes down, or is too busy to be watched.
                        self.watchers.clear();
                    }
                }
            }
            self.watchers.retain(Watcher::is_well);
            if self.watchers.is_empty() {
                self.at = None;
            }
        }
    }

    async fn ask(&self, after: Option<u64>) -> Option<Changed> {
        let ask = self.admin.ask(AdminRequest::Changes(after));
        match timeout(limits::HTTP_ANSWER_TIME, ask).await {
            Ok(Some(AdminReply::Changes(changed))) => Some(*changed),
            _ => None,
        }
    }

    async fn subscribe(&mut self, wanted: Wanted) -> Result<Stream, Problem> {
        self.watchers.retain(Watcher::is_well);
        if self.watchers.len() >= limits::HTTP_WATCHERS {
            let detail = format!(
                "{} event streams are open, as many as there may be: close one, or try again later",
                limits::HTTP_WATCHERS
            );
            return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-watchers", detail));
        }
        let busy = || Problem::from(RefusalCode::Overloaded);
        if self.at.is_none() {
            let Changed { incarnation, upto, .. } = self.ask(None).await.ok_or_else(busy)?;
            self.at = Some(EventId { incarnation, seq: upto });
        }
        let at = self.at.ok_or_else(busy)?;
        let (pieces, receiver) = mpsc::channel(limits::HTTP_WATCHER_PIECES);
        let waiting = Arc::new(AtomicUsize::new(0));
        let stream = Stream { pieces: receiver, waiting: waiting.clone() };
        let mut watcher = Watcher { kinds: wanted.kinds, pieces, waiting, behind: None };
        watcher.send(&self.hello(at));
        if let Some(after) = wanted.after {
            self.resume(&mut watcher, after, at).await;
        }
        self.watchers.push(watcher);
        Ok(stream)
    }

    fn hello(&self, at: EventId) -> Bytes {
        #[derive(Serialize)]
        struct Hello<'a> {
            relay: &'a RelayName,
            incarnation: u64,
            seq: u64,
        }
        let hello = Hello { relay: &self.relay, incarnation: at.incarnation, seq: at.seq };
        let mut piece = Vec::new();
        put(&mut piece, at, "hello", &hello);
        piece.into()
    }

    /// Tells one that comes back what changed between `after` and `at`, where all watchers stand.
    async fn resume(&self, watcher: &mut Watcher, after: EventId, at: EventId) {
        let known = after.incarnation == at.incarnation && after.seq <= at.seq;
        if !known || self.replay(watcher, after.seq, at).await.is_none() {
            watcher.send(&resync(at, "this relay does not know what changed since that event"));
        }
    }

    /// `None` where something is not known, or it would be too much.
    async fn replay(&self, watcher: &mut Watcher, mut seq: u64, at: EventId) -> Option<()> {
        for _ in 0..ANSWERS_TO_RESUME {
            if seq >= at.seq {
                return Some(());
            }
            let mut changed = self.ask(Some(seq)).await.filter(|changed| !changed.missed)?;
            seq = changed.upto;
            // What changed after `at` is everybody's, and comes to this watcher with them.
            changed.rows.retain(|(seq, _)| *seq <= at.seq);
            for batch in Batch::of(&changed) {
                watcher.send(&batch.piece(watcher.kinds));
            }
        }
        (seq >= at.seq).then_some(())
    }

    /// Tells every watcher what changed. `None` when the core does not answer.
    async fn poll(&mut self) -> Option<()> {
        let mut at = self.at?;
        for watcher in &mut self.watchers {
            watcher.catch_up(at);
        }
        for _ in 0..ANSWERS_PER_PERIOD {
            let changed = self.ask(Some(at.seq)).await?;
            at = EventId { incarnation: changed.incarnation, seq: changed.upto };
            self.at = Some(at);
            if changed.missed {
                let piece = resync(at, "too much changed at once to tell row by row");
                self.watchers.iter_mut().for_each(|watcher| watcher.send(&piece));
            }
            for batch in Batch::of(&changed) {
                let mut pieces: Vec<(Kinds, Bytes)> = Vec::new();
                for watcher in &mut self.watchers {
                    let made = pieces.iter().position(|(kinds, _)| *kinds == watcher.kinds);
                    let at = made.unwrap_or_else(|| {
                        pieces.push((watcher.kinds, batch.piece(watcher.kinds)));
                        pieces.len() - 1
                    });
                    watcher.send(&pieces[at].1);
                }
            }
            if !changed.more {
                break;
            }
        }
        Some(())
    }
}

/// Events under way, each rendered once.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    /// Which kind each event is of, and where it ends in `text`.
    ends: Vec<(RowKind, usize)>,
}

impl Batch {
    /// The rows in pieces of about [`PIECE_BYTES`], in their order.
    fn of(changed: &Changed) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut batch = Batch::default();
        for (seq, row) in &changed.rows {
            let id = EventId { incarnation: changed.incarnation, seq: *seq };
            let kind = match row {
                ChangedRow::Terminal(view) => {
                    put(&mut batch.text, id, "terminal", view);
                    RowKind::Terminal
                }
                ChangedRow::Relay(view) => {
                    put(&mut batch.text, id, "relay", view);
                    RowKind::Relay
                }
                ChangedRow::Session(view) => {
                    put(&mut batch.text, id, "session", view);
                    RowKind::Session
                }
                ChangedRow::Gone(kind, name) => {
                    put(&mut batch.text, id, "gone", &Gone { kind: *kind, id: name });
                    *kind
                }
            };
            batch.ends.push((kind, batch.text.len()));
            if batch.text.len() >= PIECE_BYTES {
                batches.push(std::mem::take(&mut batch));
            }
        }
        if !batch.text.is_empty() {
            batches.push(batch);
        }
        batches
    }

    /// What a watcher of these kinds gets; it may be empty.
    fn piece(&self, kinds: Kinds) -> Bytes {
        let mut begin = 0;
        let mut piece = Vec::new();
        for (kind, end) in &self.ends {
            if kinds.contains(*kind) {
                piece.extend_from_slice(&self.text[begin..*end]);
            }
            begin = *end;
        }
        piece.into()
    }
}

#[derive(Serialize)]
struct Gone<'a> {
    kind: RowKind,
    id: &'a str,
}

#[derive(Serialize)]
struct Resync<'a> {
    why: &'a str,
}

fn resync(at: EventId, why: &str) -> Bytes {
    let mut piece = Vec::new();
    put(&mut piece, at, "resync", &Resync { why });
    piece.into()
}

/// Appends one event. JSON has no line breaks outside of its strings, and in them they are escaped.
fn put(text: &mut Vec<u8>, id: EventId, event: &str, data: &impl Serialize) {
    let begin = text.len();
    text.extend_from_slice(format!("id: {id}\nevent: {event}\ndata: ").as_bytes());
    if let Err(error) = serde_json::to_writer(&mut *text, data) {
        tracing::error!(%error, event, "a row cannot be shown");
        return text.truncate(begin);
    }
    text.extend_from_slice(b"\n\n");
}
