//! Pauses: the sender of a pipe waits while its receiver wants no more ([`super::backlog`], decision 37).
//!
//! The receiver opens a stream that says [`PausePipe`], and ends it when the sender may go on. That the sender waits is
//! said by a reset of the stream's other direction, since what was sent before may have used up the window for words. A
//! peer that knows no pauses refuses them, and sends on.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ReadError, RecvStream, SendStream, StreamId, VarInt};
use tasuki_proto::RefusalCode;
use tasuki_proto::session::{Begin, PausePipe};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lanes::number;
use super::pipe;

/// The application error code by which a sender says that it waits.
const STANDS: VarInt = VarInt::from_u32(2);
/// A sender that does not say so in this time knows no pauses, or has no window to be asked.
const PATIENCE: Duration = Duration::from_secs(1);

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
        let _ = send.reset(STANDS);
        let _ = recv.read_chunk(1, true).await;
    }

    /// Whether a direction is paused now.
    #[cfg(test)]
    pub(crate) fn any(&self) -> bool {
        self.pipes().values().any(|count| *count.borrow() > 0)
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

/// A pause that the receiver asks for; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Pause {
    since: Instant,
    answer: watch::Receiver<bool>,
    _task: JoinSet<()>,
}

impl Pause {
    /// Asks the peer to send nothing more on `pipe`.
    pub(super) fn new(connection: &Connection, pipe: u64) -> Self {
        let connection = connection.clone();
        let (answered, answer) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let begin = Begin::Pause(PausePipe { pipe });
            let mut opened = pipe::open(&connection, &begin).await;
            if let Ok((_, recv)) = &mut opened
                && let Err(ReadError::Reset(STANDS)) = recv.read_chunk(1, true).await
            {
                answered.send_replace(true);
            }
            // Refused or lost it says nothing more, and it ends with this task.
            std::future::pending::<()>().await;
        });
        Self { since: Instant::now(), answer, _task: task }
    }

    /// Whether the sender waits, so that what it sent before is all that still comes, or does not answer.
    pub(super) fn is_settled(&self) -> bool {
        *self.answer.borrow() || self.since.elapsed() >= PATIENCE
    }

    /// Waits until it is settled.
    pub(super) async fn settled(&mut self) {
        let left = PATIENCE.saturating_sub(self.since.elapsed());
        let _ = tokio::time::timeout(left, self.answer.wait_for(|stands| *stands)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::{Wire, pair, within};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn pauses_overlap_and_end_with_their_streams() {
        let (here, _there) = pair(&Wire::new(), "a", "b", "bulk").await;
        let (send, _recv) = here.connection.open_bi().await.unwrap();
        let mut pausable = here.lanes.pauses.pausable(send.id());
        let count = here.lanes.pauses.pipes()[&number(send.id())].clone();
        let (first, second) = (Paused::new(count.clone()), Paused::new(count));
        drop(first);
        assert!(here.lanes.pauses.any());
        let waited = tokio::time::timeout(Duration::from_millis(50), pausable.ready()).await;
        assert!(waited.is_err(), "one still stands");
        drop(second);
        within(pausable.ready()).await;
        drop(pausable);
        assert!(here.lanes.pauses.pipes().is_empty(), "the pipe left its place");
    }
}
