//! Pauses: who cannot hand on what comes on a pipe lets its sender wait (decision 37).
//!
//! quinn gives a whole connection up when one stream holds more than 1,024 pieces of different sizes that nobody reads,
//! with or without gaps. A stream's window ([`crate::io::transport`]) keeps full packets below that, but not small
//! messages, each in a packet of its own, for a service that stands still. So the receiver opens a stream that says
//! [`PausePipe`], and ends it once it has read all that came. Nothing on the way of the bytes waits for it. A peer that
//! knows no pauses refuses them, and sends on.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, StreamId};
use tasuki_proto::RefusalCode;
use tasuki_proto::session::{Begin, PausePipe};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lanes::number;
use super::pipe;

/// The local end takes nothing for this long: a pause.
const BLOCKED: Duration = Duration::from_millis(50);
/// A stream's window holds no more pieces of this size than quinn takes.
const PIECE: usize = 1_152;
/// So many smaller pieces in a row that were already there when they were read: a pause, where they are not few among
/// larger ones.
const SMALL: usize = 512;
const FEW: usize = 4;

/// Directions that their receivers may pause; one for each session.
#[derive(Debug, Default)]
pub(crate) struct Pauses(Mutex<HashMap<u64, watch::Sender<usize>>>);

impl Pauses {
    fn pipes(&self) -> MutexGuard<'_, HashMap<u64, watch::Sender<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sending direction of a pipe.
    pub(crate) fn pausable(&self, pipe: StreamId) -> Pausable<'_> {
        let (sender, count) = watch::channel(0);
        self.pipes().insert(number(pipe), sender);
        Pausable { pauses: self, pipe: number(pipe), count }
    }

    /// Holds a pipe's direction until the peer ends this stream.
    pub(super) async fn serve(&self, pause: PausePipe, mut send: SendStream, mut recv: RecvStream) {
        let found = self.pipes().get(&pause.pipe).cloned();
        let Some(count) = found else {
            return pipe::refuse(&mut send, &mut recv, RefusalCode::BadRequest.into()).await;
        };
        let _paused = Paused::new(count);
        let _ = recv.read_chunk(1, true).await;
    }
}

/// A pause that stands. There may be several, since streams overtake each other.
struct Paused(watch::Sender<usize>);

impl Paused {
    fn new(count: watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The sending direction of a pipe.
#[derive(Debug)]
pub(crate) struct Pausable<'a> {
    pauses: &'a Pauses,
    pipe: u64,
    count: watch::Receiver<usize>,
}

impl Pausable<'_> {
    /// Waits while the receiver wants no more.
    pub(crate) async fn ready(&mut self) {
        let _ = self.count.wait_for(|count| *count == 0).await;
    }
}

impl Drop for Pausable<'_> {
    fn drop(&mut self) {
        self.pauses.pipes().remove(&self.pipe);
    }
}

/// The receiving direction of a pipe: how far the local end is behind.
#[derive(Debug)]
pub(crate) struct Backlog<'a> {
    connection: Option<&'a Connection>,
    pipe: u64,
    pieces: usize,
    small: usize,
    pause: Option<JoinSet<()>>,
}

impl<'a> Backlog<'a> {
    pub(crate) fn new(pipe: StreamId, connection: Option<&'a Connection>) -> Self {
        Self { connection, pipe: number(pipe), pieces: 0, small: 0, pause: None }
    }

    /// Reads; where it has to wait, nothing is left and the sender may go on.
    pub(crate) async fn read<T>(&mut self, read: impl Future<Output = T>) -> T {
        let mut read = pin!(read);
        poll_fn(|context| {
            let polled = read.as_mut().poll(context);
            if polled.is_pending() {
                (self.pieces, self.small, self.pause) = (0, 0, None);
            }
            polled
        })
        .await
    }

    /// These were read.
    pub(crate) fn took(&mut self, chunks: &[Bytes]) {
        self.pieces += chunks.len();
        self.small += chunks.iter().filter(|chunk| chunk.len() < PIECE).count();
        if self.small >= SMALL && self.small * FEW >= self.pieces {
            self.pause();
        }
    }

    /// Hands on what was read.
    pub(crate) async fn write<T>(&mut self, write: impl Future<Output = T>) -> T {
        let mut write = pin!(write);
        if let Ok(written) = tokio::time::timeout(BLOCKED, write.as_mut()).await {
            return written;
        }
        self.pause();
        write.await
    }

    fn pause(&mut self) {
        let (None, Some(connection)) = (&self.pause, self.connection) else { return };
        let (connection, pipe) = (connection.clone(), self.pipe);
        let task = async move {
            let begin = Begin::Pause(PausePipe { pipe });
            let Ok((_send, mut recv)) = pipe::open(&connection, &begin).await else { return };
            // It ends when this task does, or was refused.
            let _ = recv.read_chunk(1, true).await;
        };
        self.pause.insert(JoinSet::new()).spawn(task);
    }
}

#[cfg(test)]
mod tests;
