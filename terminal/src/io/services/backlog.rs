//! What waits for a local end that takes nothing (decision 37).
//!
//! Bytes that nobody reads stay in quinn, and there they harm others: they use up the connection's window, so that a few
//! connections which stand still stop all others of the session, and quinn gives the whole connection up when one stream
//! holds more than 1,024 pieces of different sizes. So who hands a pipe on reads on while the local end is blocked, into
//! memory of its own. Once that is the pipe's share it lets the sender wait ([`super::pause`]), and reads what was on its
//! way. A local end that keeps up has none of this.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, StreamId};
use tasuki_proto::limits;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, sleep};

use super::lanes::{Fan, number};
use super::pause::Pause;
use super::pipe::{self, Broken, CHUNKS};
use crate::io::transport::STREAM_WINDOW;

/// A local end that takes nothing for this long is behind.
const BLOCKED: Duration = Duration::from_millis(10);
/// A stream's window holds no more pieces of this size than quinn takes.
const PIECE: usize = 1_152;
/// So many smaller pieces in a row that were there already when they were read: the local end is behind, unless they
/// are few among larger ones.
const SMALL: usize = 256;
const FEW: usize = 4;
/// What waits is copied into blocks of up to this size, so that a small piece does not keep the packets around it.
const BLOCK: usize = 64 * 1024;
const FIRST_BLOCK: usize = 4 * 1024;
/// A pipe holds at least this before its sender waits, and what a stream's window moves in its round trip.
const HELD: usize = 256 * 1024;
/// With as much as a window at this round trip.
const LONG: Duration = Duration::from_millis(100);
/// The pipes of a session hold this together; their shares get smaller, down to the least.
const SHARED: usize = 32 * 1024 * 1024;
const LEAST: usize = 16 * 1024;

/// What the pipes of this process hold.
static UNREAD: AtomicUsize = AtomicUsize::new(0);

/// What the pipes of a session hold.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    pipes: AtomicUsize,
    bytes: AtomicUsize,
}

/// Bytes that wait, in order.
#[derive(Debug)]
struct Queue<'a> {
    all: &'a Holdings,
    blocks: VecDeque<Bytes>,
    last: BytesMut,
    bytes: usize,
}

impl<'a> Queue<'a> {
    fn new(all: &'a Holdings) -> Self {
        all.pipes.fetch_add(1, Ordering::Relaxed);
        Self { all, blocks: VecDeque::new(), last: BytesMut::new(), bytes: 0 }
    }

    fn push(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        self.all.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        UNREAD.fetch_add(bytes.len(), Ordering::Relaxed);
        while !bytes.is_empty() {
            if self.last.capacity() == self.last.len() {
                self.close();
                self.last = BytesMut::with_capacity(self.bytes.clamp(FIRST_BLOCK, BLOCK));
            }
            let room = self.last.capacity() - self.last.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.last.extend_from_slice(now);
            bytes = later;
        }
    }

    fn close(&mut self) {
        let last = self.last.split().freeze();
        if !last.is_empty() {
            self.blocks.push_back(last);
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether there is memory for what was sent before the sender waited.
    fn may_grow(&self) -> bool {
        self.all.bytes.load(Ordering::Relaxed) < limits::SESSION_UNREAD_BYTES
            && UNREAD.load(Ordering::Relaxed) < limits::UNREAD_BYTES
    }

    /// What this pipe may hold before its sender waits.
    fn share(&self, rtt: Duration) -> usize {
        let line =
            STREAM_WINDOW as usize * rtt.min(LONG).as_micros() as usize / LONG.as_micros() as usize;
        let pipes = self.all.pipes.load(Ordering::Relaxed).max(1);
        line.max(HELD).min(SHARED / pipes).max(LEAST)
    }

    /// Writes once; how much of the queue went.
    fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut W,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.blocks.len() < CHUNKS {
            self.close();
        }
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        let count = self.blocks.len().min(CHUNKS);
        for (slice, block) in slices.iter_mut().zip(&self.blocks) {
            *slice = IoSlice::new(block);
        }
        let written = Pin::new(writer).poll_write_vectored(context, &slices[..count]);
        written.map(|written| {
            let mut written = match written? {
                0 => return Err(std::io::ErrorKind::WriteZero.into()),
                written => written,
            };
            self.bytes -= written;
            self.all.bytes.fetch_sub(written, Ordering::Relaxed);
            UNREAD.fetch_sub(written, Ordering::Relaxed);
            while let Some(first) = self.blocks.front_mut() {
                let step = written.min(first.len());
                first.advance(step);
                written -= step;
                if !first.is_empty() {
                    break;
                }
                self.blocks.pop_front();
            }
            Ok(())
        })
    }
}

impl Drop for Queue<'_> {
    fn drop(&mut self) {
        self.all.pipes.fetch_sub(1, Ordering::Relaxed);
        self.all.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        UNREAD.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where the bytes of a pipe come from.
pub(crate) trait Source {
    /// Reads what is there into `chunks`, at least a byte; `None` at the end. It has taken nothing where it is dropped.
    ///
    /// # Errors
    /// [`Broken`].
    fn next(
        &mut self,
        chunks: &mut [Bytes],
    ) -> impl Future<Output = Result<Option<usize>, Broken>> + Send;
}

impl Source for RecvStream {
    async fn next(&mut self, chunks: &mut [Bytes]) -> Result<Option<usize>, Broken> {
        Ok(self.read_chunks(chunks).await?)
    }
}

/// What goes to the local end before so many bytes.
pub(crate) type Head = fn(bytes: usize) -> Bytes;

/// For a local end that takes bytes as they are.
pub(crate) fn plain(_: usize) -> Bytes {
    Bytes::new()
}

/// The receiving direction of a pipe.
pub(crate) struct Backlog<'a> {
    fan: Fan<'a>,
    pipe: u64,
    head: Head,
    pieces: usize,
    small: usize,
}

impl<'a> Backlog<'a> {
    pub(crate) fn new(pipe: StreamId, fan: Fan<'a>, head: Head) -> Self {
        Self { fan, pipe: number(pipe), head, pieces: 0, small: 0 }
    }

    /// Hands on all that comes.
    ///
    /// # Errors
    /// [`Broken`]; what came before the source broke was handed on.
    pub(crate) async fn hand_on<S: Source, W: AsyncWrite + Unpin>(
        mut self,
        source: &mut S,
        writer: &mut W,
    ) -> Result<(), Broken> {
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        while let Some(count) = self.read(source.next(&mut chunks[1..])).await? {
            let is_behind = self.count(&chunks[1..=count]);
            chunks[0] = (self.head)(chunks[1..=count].iter().map(Bytes::len).sum());
            let chunks = &mut chunks[..=count];
            if !is_behind {
                let write = pipe::write_chunks(writer, chunks);
                if let Ok(written) = tokio::time::timeout(BLOCKED, write).await {
                    written.map_err(Broken::Local)?;
                    continue;
                }
            }
            if self.catch_up(source, writer, chunks, is_behind).await? {
                break;
            }
        }
        Ok(())
    }

    /// Reads; where it has to wait, the local end has kept up.
    async fn read<T>(&mut self, read: impl Future<Output = T>) -> T {
        let mut read = pin!(read);
        poll_fn(|context| {
            let polled = read.as_mut().poll(context);
            if polled.is_pending() {
                (self.pieces, self.small) = (0, 0);
            }
            polled
        })
        .await
    }

    /// Counts what was read; whether the local end is behind.
    fn count(&mut self, chunks: &[Bytes]) -> bool {
        self.pieces += chunks.len();
        self.small += chunks.iter().filter(|chunk| chunk.len() < PIECE).count();
        self.small >= SMALL && self.small * FEW >= self.pieces
    }

    /// Hands on `chunks`, and what comes while the local end takes nothing or all the time, until nothing waits. Whether
    /// the source ended.
    async fn catch_up<S: Source, W: AsyncWrite + Unpin>(
        &mut self,
        source: &mut S,
        writer: &mut W,
        chunks: &mut [Bytes],
        all_the_time: bool,
    ) -> Result<bool, Broken> {
        let mut queue = Queue::new(&self.fan.desk.holdings);
        for chunk in chunks {
            queue.push(&std::mem::take(chunk));
        }
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let (mut pause, mut end): (Option<Pause>, _) = (None, None);
        let (mut is_blocked, mut patience) = (true, pin!(sleep(BLOCKED)));
        loop {
            let share = queue.share(self.fan.connection.rtt());
            let is_more = queue.bytes > share;
            if is_more && end.is_none() {
                pause.get_or_insert_with(|| Pause::new(self.fan.connection, self.pipe));
            } else if queue.bytes <= share / 2 {
                pause = None;
            }
            // What is on its way stays in quinn until the sender waits: it is bounded there.
            let is_settled = pause.as_ref().is_some_and(Pause::is_settled);
            let has_room = if is_settled { queue.may_grow() } else { !is_more };
            let may_read = end.is_none() && is_blocked && has_room;
            let settled = async {
                match &mut pause {
                    Some(pause) if !is_settled => pause.settled().await,
                    _ => std::future::pending().await,
                }
            };
            let read = tokio::select! {
                biased;
                written = poll_fn(|context| queue.poll_write(writer, context)) => {
                    written.map_err(Broken::Local)?;
                    if queue.is_empty() {
                        return end.unwrap_or(Ok(false));
                    }
                    is_blocked = all_the_time;
                    patience.as_mut().reset(Instant::now() + BLOCKED);
                    continue;
                }
                read = source.next(&mut chunks), if may_read => read,
                () = settled => continue,
                () = patience.as_mut(), if !is_blocked => {
                    is_blocked = true;
                    continue;
                }
            };
            match read {
                Ok(Some(count)) => {
                    let chunks = &mut chunks[..count];
                    queue.push(&(self.head)(chunks.iter().map(Bytes::len).sum()));
                    for chunk in chunks {
                        queue.push(&std::mem::take(chunk));
                    }
                }
                Ok(None) => end = Some(Ok(true)),
                Err(error) => end = Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
