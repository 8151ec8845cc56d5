//! Lanes: more streams for one pipe of bytes, where one stream's window is too small for the line (architecture 7).
//!
//! A stream has at most 2.25 MiB under way ([`crate::io::transport`]), which are 190 Mbit/s at a round trip of 100 ms. So the
//! sender of a direction that fills its window on a long line opens [`LANES`] streams more, and each is answered once the
//! receiver of that direction holds it. Then, whenever it likes, the sender ends the pipe's own stream, and its bytes go
//! on in the lanes, a block of [`BLOCK`] bytes in each in turn. The direction is over where a lane ends.
//!
//! The receiver needs to know no more than that: where a pipe's stream ends and lanes were given to it, the lanes follow;
//! a sender that did not use them ends them empty. A peer that knows no lanes refuses them, and the pipe stays as it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use quinn::{Connection, RecvStream, SendStream, StreamId, VarInt};
use tasuki_proto::session::{Answer, Begin, OpenLane, Opened};
use tasuki_proto::{Refusal, RefusalCode};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;

use super::backlog::{Holdings, Source};
use super::pause::{Pausable, Pauses};
use super::pipe::{self, Broken};
use crate::io::transport::{Room, STREAM_WINDOW};

/// Streams that a pipe gets: with their windows the connection's is filled.
const LANES: u8 = 8;
/// Bytes that go into one lane at a time.
const BLOCK: usize = 64 * 1024;
/// A direction that moved so much may get lanes; it is looked at each time that it moved so much again.
const BULK: u64 = 4 * 1024 * 1024;
/// A receiver is ready for lanes once it got so much.
const READY: usize = 1024 * 1024;
/// Below this round trip a stream's window moves more than 1 Gbit/s.
const LONG: Duration = Duration::from_millis(15);
/// How often a direction asks for lanes.
const TRIES: u8 = 3;

pub(super) fn number(stream: StreamId) -> u64 {
    VarInt::from(stream).into_inner()
}

/// A lane as the peer opened it.
#[derive(Debug)]
struct Lane {
    number: u8,
    /// How many there are to be.
    of: u8,
    recv: RecvStream,
}

/// Where streams that the peer opened for a pipe find it; one for each session.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    pipes: Mutex<HashMap<u64, mpsc::Sender<Lane>>>,
    /// Where pauses find the direction that they are for.
    pub(crate) pauses: Pauses,
    /// What waits for local ends.
    pub(super) holdings: Holdings,
    /// The session's windows.
    pub(crate) room: Room,
}

impl Desk {
    fn pipes(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Lane>>> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a lane to its pipe, and says so to the peer.
    pub(super) async fn serve(&self, open: OpenLane, mut send: SendStream, recv: RecvStream) {
        let pipe = self.pipes().get(&open.pipe).cloned();
        let lane = Lane { number: open.lane, of: open.lanes, recv };
        let left = match pipe {
            Some(pipe) => pipe.try_send(lane).map_err(TrySendError::into_inner).err(),
            None => Some(lane),
        };
        match left {
            // Who does not hear it does not use the lane.
            None => drop(pipe::say(&mut send, &Answer::Opened(Opened {})).await),
            Some(mut lane) => {
                let refusal = Refusal::new(RefusalCode::Busy, "no lanes for this stream");
                pipe::refuse(&mut send, &mut lane.recv, refusal).await;
            }
        }
    }
}

/// Lanes that a pipe's direction was given by its peer; it gets no more once this is dropped.
#[derive(Debug)]
struct Given {
    desk: Arc<Desk>,
    pipe: u64,
    lanes: mpsc::Receiver<Lane>,
}

impl Drop for Given {
    fn drop(&mut self) {
        self.desk.pipes().remove(&self.pipe);
    }
}

/// What the two directions of a pipe need for lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fan<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) desk: &'a Arc<Desk>,
}

/// The receiving direction of a pipe: its own stream, then the lanes that it was given.
#[derive(Debug)]
pub(super) struct Incoming<'a> {
    recv: &'a mut RecvStream,
    desk: &'a Arc<Desk>,
    moved: usize,
    given: Option<Given>,
    lanes: Vec<RecvStream>,
    at: usize,
    left: usize,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(recv: &'a mut RecvStream, desk: &'a Arc<Desk>) -> Self {
        Self { recv, desk, moved: 0, given: None, lanes: Vec::new(), at: 0, left: BLOCK }
    }

    /// So many bytes arrived on the pipe's own stream.
    fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
        if self.moved >= READY && self.given.is_none() {
            let (sender, lanes) = mpsc::channel(LANES.into());
            let (desk, pipe) = (self.desk.clone(), number(self.recv.id()));
            desk.pipes().insert(pipe, sender);
            self.given = Some(Given { desk, pipe, lanes });
        }
    }

    /// The pipe's own stream ended: the lanes whose bytes follow.
    fn take_lanes(&mut self) -> Vec<RecvStream> {
        let Some(mut given) = self.given.take() else { return Vec::new() };
        let mut lanes = BTreeMap::new();
        while let Ok(lane) = given.lanes.try_recv() {
            lanes.insert(lane.number, lane);
        }
        drop(given);
        // The sender uses none before all were answered, and all are here that were.
        if lanes.values().next().is_none_or(|lane| lanes.len() != usize::from(lane.of)) {
            return Vec::new();
        }
        lanes.into_values().map(|lane| lane.recv).collect()
    }
}

impl Source for Incoming<'_> {
    async fn next(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, Broken> {
        if self.lanes.is_empty() {
            if let Some(count) = self.recv.read_chunks(chunks).await? {
                self.moved(chunks[..count].iter().map(Bytes::len).sum());
                return Ok(Some(count));
            }
            self.lanes = self.take_lanes();
        }
        let Some(lane) = self.lanes.get_mut(self.at) else { return Ok(None) };
        let count = read(lane, chunks, &mut self.left).await?;
        if self.left == 0 {
            (self.at, self.left) = ((self.at + 1) % self.lanes.len(), BLOCK);
        }
        Ok((count > 0).then_some(count))
    }
}

/// Reads what is there, but not beyond `left`; none at the end.
async fn read(
    lane: &mut RecvStream,
    chunks: &mut [Bytes],
    left: &mut usize,
) -> Result<usize, Broken> {
    let mut count = 0;
    while *left > 0 && count < chunks.len() {
        let next = match count {
            0 => Some(lane.read_chunk(*left, true).await?),
            // A lane that is over or broken says so again at the next read.
            _ => lane.read_chunk(*left, true).now_or_never().and_then(Result::ok),
        };
        let Some(Some(chunk)) = next else { break };
        *left -= chunk.bytes.len();
        chunks[count] = chunk.bytes;
        count += 1;
    }
    Ok(count)
}

/// The sending direction of a pipe: its own stream, and lanes where it gets them.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    fan: Fan<'a>,
    pausable: Pausable<'a>,
    moved: u64,
    /// When it began with what it moves before it is looked at again.
    since: Option<Instant>,
    tries: u8,
    asked: Option<JoinHandle<Option<Vec<SendStream>>>>,
    lanes: Vec<SendStream>,
    at: usize,
    left: usize,
}

impl<'a> Outgoing<'a> {
    pub(super) fn new(pipe: StreamId, fan: Fan<'a>) -> Self {
        let pausable = fan.desk.pauses.pausable(pipe);
        let (asked, lanes) = (None, Vec::new());
        Self { fan, pausable, moved: 0, since: None, tries: 0, asked, lanes, at: 0, left: BLOCK }
    }

    /// Sends bytes by the stream, or the lanes.
    pub(super) async fn write(
        &mut self,
        send: &mut SendStream,
        bytes: Bytes,
    ) -> Result<(), Broken> {
        self.pausable.ready().await;
        if let Some(asked) = self.asked.take_if(|asked| asked.is_finished())
            && let Ok(Some(lanes)) = asked.await
        {
            let _ = send.finish();
            self.lanes = lanes;
        }
        if self.lanes.is_empty() {
            self.moved += bytes.len() as u64;
            send.write_chunk(bytes).await?;
            if self.moved >= BULK {
                self.look(number(send.id()));
            }
            return Ok(());
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let part = bytes.split_to(self.left.min(bytes.len()));
            self.left -= part.len();
            self.lanes[self.at].write_chunk(part).await?;
            if self.left == 0 {
                (self.at, self.left) = ((self.at + 1) % self.lanes.len(), BLOCK);
            }
        }
        Ok(())
    }

    /// Asks for lanes where the line is long and the stream's window about full.
    #[allow(clippy::disallowed_methods, reason = "how fast it goes is what is asked")]
    fn look(&mut self, pipe: u64) {
        self.moved = 0;
        let now = Instant::now();
        let since = self.since.replace(now);
        if self.tries == TRIES || self.asked.is_some() {
            return;
        }
        let rtt = self.fan.connection.rtt();
        // Half of what the window moves.
        let windows = u32::try_from(BULK / u64::from(STREAM_WINDOW)).unwrap_or(1) + 1;
        if rtt >= LONG && since.is_some_and(|since| now - since <= rtt * windows * 2) {
            self.ask(pipe);
        }
    }

    fn ask(&mut self, pipe: u64) {
        self.tries += 1;
        self.asked = Some(tokio::spawn(open(self.fan.connection.clone(), pipe)));
    }

    /// The direction is over: its stream and lanes end, and the lanes' last bytes arrive.
    pub(super) async fn finish(mut self, send: &mut SendStream) {
        let _ = send.finish();
        if let Some(asked) = self.asked.take() {
            // Lanes that are there already end as they are dropped, empty.
            asked.abort();
        }
        let mut lanes = std::mem::take(&mut self.lanes);
        for lane in &mut lanes {
            let _ = lane.finish();
        }
        join_all(lanes.iter().map(pipe::delivered)).await;
    }
}

/// A direction that did not finish is broken, also when its task is cancelled: quinn would end the lanes as if they were
/// whole. The stream is the caller's.
impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        for lane in &mut self.lanes {
            let _ = lane.reset(pipe::RESET);
        }
    }
}

/// Opens lanes for a pipe; all or none.
async fn open(connection: Connection, pipe: u64) -> Option<Vec<SendStream>> {
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let begin = Begin::Lane(OpenLane { pipe, lane, lanes: LANES });
        lanes.push(pipe::open(&connection, &begin).await.ok()?);
    }
    let answers = lanes.iter_mut().map(|(_, recv)| pipe::read_opened(recv));
    let all = join_all(answers).await.into_iter().all(|answer| answer.is_ok());
    all.then(|| lanes.into_iter().map(|(send, _)| send).collect())
}

#[cfg(test)]
mod tests;
