//! Bytes between something local and a stream of a session: few copies, each direction ends by itself.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Answer, Begin, Opened};
use tasuki_proto::{Refusal, RefusalCode, limits};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::backlog::{self, Backlog};
use super::lanes::{Fan, Incoming, Outgoing};

/// The application error code of a stream that was reset since the connection behind it was.
pub(crate) const RESET: VarInt = VarInt::from_u32(1);

/// A read begins with this much memory, so that an idle connection costs little.
const FIRST_READ: usize = 4 * 1024;
/// Reads that fill their memory get twice as much, up to this.
const LARGEST_READ: usize = 256 * 1024;
/// What a service says within this time goes out with the word that its stream is open.
const FIRST_BYTES: Duration = Duration::from_millis(5);
/// Chunks (about a packet each) that go to a local socket in one system call.
pub(crate) const CHUNKS: usize = 64;

/// Why a pipe broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The side that serves the stream refused it.
    #[error("{0}")]
    Refused(Refusal),
    /// The local end failed.
    #[error("{0}")]
    Local(std::io::Error),
    /// The peer reset the stream: its own local end failed.
    #[error("connection reset by the peer")]
    Reset,
    /// The session ended.
    #[error("the session ended")]
    Lost,
}

impl From<ReadError> for Broken {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(_) => Broken::Reset,
            _ => Broken::Lost,
        }
    }
}

impl From<WriteError> for Broken {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(_) => Broken::Reset,
            _ => Broken::Lost,
        }
    }
}

impl Broken {
    /// What it is called towards people and scripts.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Broken::Refused(refusal) => refusal,
            Broken::Local(error) => Refusal::new(RefusalCode::ServiceDown, error.to_string()),
            Broken::Reset => Refusal::new(RefusalCode::ServiceDown, "connection reset"),
            Broken::Lost => RefusalCode::PeerLost.into(),
        }
    }
}

/// Opens a stream and says what it is for; the caller may write on at once.
///
/// # Errors
/// [`Broken::Lost`] when the session is over.
pub(crate) async fn open(
    connection: &quinn::Connection,
    begin: &Begin,
) -> Result<(SendStream, RecvStream), Broken> {
    let (mut send, recv) = connection.open_bi().await.map_err(|_| Broken::Lost)?;
    send.write_chunk(begin.to_bytes()).await?;
    Ok((send, recv))
}

/// Reads an answer of at most `limit` bytes.
///
/// # Errors
/// The refusal, where it is one.
pub(crate) async fn read_answer(recv: &mut RecvStream, limit: usize) -> Result<Answer, Broken> {
    let envelope = match Envelope::read(recv, limit).await {
        Ok(Some(envelope)) => envelope,
        Ok(None) => return Err(Broken::Reset),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
            return Err(Broken::Reset);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotConnected => return Err(Broken::Lost),
        Err(_) => return Err(Broken::Refused(RefusalCode::ProtocolError.into())),
    };
    match Answer::from_peer(&envelope) {
        Ok(Answer::Refused(refusal)) | Err(refusal) => Err(Broken::Refused(refusal)),
        Ok(answer) => Ok(answer),
    }
}

/// Reads the answer that lets a stream go on.
///
/// # Errors
/// The refusal, where it is one.
pub(crate) async fn read_opened(recv: &mut RecvStream) -> Result<(), Broken> {
    match read_answer(recv, limits::SESSION_ANSWER_BYTES).await? {
        Answer::Opened(_) => Ok(()),
        _ => Err(Broken::Refused(RefusalCode::ProtocolError.into())),
    }
}

/// Says `answer` on a stream.
///
/// # Errors
/// When the opener left.
pub(crate) async fn say(send: &mut SendStream, answer: &Answer) -> Result<(), Broken> {
    Ok(send.write_chunk(answer.to_bytes()).await?)
}

/// Refuses a stream and ends it.
pub(crate) async fn refuse(send: &mut SendStream, recv: &mut RecvStream, refusal: Refusal) {
    let _ = recv.stop(RESET);
    if say(send, &Answer::Refused(refusal)).await.is_ok() {
        let _ = send.finish();
    }
}

/// Breaks both directions of a stream.
pub(crate) fn reset(send: &mut SendStream, recv: &mut RecvStream) {
    let _ = send.reset(RESET);
    let _ = recv.stop(RESET);
}

/// How long the last bytes of a stream may take to arrive before its session is let go.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// Waits until the peer's side holds all that was sent on this stream: ending a session drops what is on its
/// way. Take the future before the stream is used, await it after the stream ended.
pub(crate) fn delivered(send: &SendStream) -> impl Future<Output = ()> + Send + 'static {
    let stopped = send.stopped();
    async move {
        let _ = tokio::time::timeout(LAST_BYTES, stopped).await;
    }
}

/// Carries bytes from `reader` to the stream, with lanes where they help, until the reader ends, then ends the
/// stream's direction, and says so in `ended`.
///
/// # Errors
/// [`Broken`], with the stream's direction left open for the caller to reset.
pub(crate) async fn upstream<R: AsyncRead + Unpin>(
    reader: &mut R,
    send: &mut SendStream,
    ended: &AtomicBool,
    fan: Fan<'_>,
) -> Result<(), Broken> {
    let mut outgoing = Outgoing::new(send.id(), fan);
    read_all(reader, send, &mut outgoing).await?;
    ended.store(true, Ordering::Relaxed);
    outgoing.finish(send).await;
    Ok(())
}

async fn read_all<R: AsyncRead + Unpin>(
    reader: &mut R,
    send: &mut SendStream,
    outgoing: &mut Outgoing<'_>,
) -> Result<(), Broken> {
    let mut size = FIRST_READ;
    let mut buffer = BytesMut::with_capacity(size);
    loop {
        if buffer.capacity() < size / 4 {
            buffer = BytesMut::with_capacity(size);
        }
        let room = buffer.capacity();
        let count = reader.read_buf(&mut buffer).await.map_err(Broken::Local)?;
        if count == 0 {
            return Ok(());
        }
        if count == room {
            size = (size * 2).min(LARGEST_READ);
        }
        outgoing.write(send, buffer.split().freeze()).await?;
    }
}

/// Carries bytes from the stream to `writer` until the stream's direction ends, then shuts the writer down; where the
/// other direction has `ended` before, closing the local end will do that, with one system call less.
///
/// # Errors
/// [`Broken`].
pub(crate) async fn downstream<W: AsyncWrite + Unpin>(
    recv: &mut RecvStream,
    writer: &mut W,
    ended: &AtomicBool,
    fan: Fan<'_>,
) -> Result<(), Broken> {
    let backlog = Backlog::new(recv.id(), fan, backlog::plain);
    backlog.hand_on(&mut Incoming::new(recv, fan.desk), writer).await?;
    let end =
        if ended.load(Ordering::Relaxed) { writer.flush().await } else { writer.shutdown().await };
    end.map_err(Broken::Local)
}

/// Writes all of `chunks`, in as few calls as the writer allows, and empties them.
pub(crate) async fn write_chunks<W: AsyncWrite + Unpin>(
    writer: &mut W,
    mut chunks: &mut [Bytes],
) -> std::io::Result<()> {
    while let Some(first) = chunks.first() {
        if first.is_empty() {
            chunks = &mut std::mem::take(&mut chunks)[1..];
            continue;
        }
        let mut slices = [IoSlice::new(&[]); CHUNKS];
        let count = chunks.len().min(CHUNKS);
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = IoSlice::new(chunk);
        }
        let mut written = writer.write_vectored(&slices[..count]).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        for chunk in chunks.iter_mut() {
            let step = written.min(chunk.len());
            chunk.advance(step);
            written -= step;
            if written == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Runs both directions of a stream that this side opened, its answer included, until both ended. When it
/// fails both directions are reset.
///
/// # Errors
/// [`Broken`]; a refusal wins over what it causes on the way up.
pub(crate) async fn run_opened<R, W>(
    reader: &mut R,
    writer: &mut W,
    send: &mut SendStream,
    recv: &mut RecvStream,
    fan: Fan<'_>,
) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let ended = AtomicBool::new(false);
    let up = async { wait_for_verdict(upstream(reader, send, &ended, fan).await) };
    let down = async {
        read_opened(recv).await?;
        downstream(recv, writer, &ended, fan).await
    };
    let result = tokio::try_join!(up, down).map(|_| ());
    if result.is_err() {
        reset(send, recv);
    }
    result
}

/// A peer that stops reading also answers, resets or ends its own direction: that says more.
pub(crate) fn wait_for_verdict(up: Result<(), Broken>) -> Result<(), Broken> {
    match up {
        Err(Broken::Reset) => Ok(()),
        other => other,
    }
}

/// Says that a stream is open, together with what the service says soon: in one packet where the service is quick. The
/// opener waits for it with nothing, and what it has written goes to the service meanwhile.
async fn say_opened<R: AsyncRead + Unpin>(
    reader: &mut R,
    send: &mut SendStream,
) -> Result<(), Broken> {
    let mut buffer = BytesMut::with_capacity(FIRST_READ);
    buffer.extend_from_slice(&Answer::Opened(Opened {}).to_bytes());
    if let Ok(read) = tokio::time::timeout(FIRST_BYTES, reader.read_buf(&mut buffer)).await {
        read.map_err(Broken::Local)?;
    }
    Ok(send.write_chunk(buffer.freeze()).await?)
}

/// Runs both directions of a stream that this side serves, and says that it is open, until both ended. When it fails both
/// directions are reset.
///
/// # Errors
/// [`Broken`].
pub(crate) async fn run_served<R, W>(
    reader: &mut R,
    writer: &mut W,
    send: &mut SendStream,
    recv: &mut RecvStream,
    fan: Fan<'_>,
) -> Result<(), Broken>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let ended = AtomicBool::new(false);
    let up = async {
        say_opened(reader, send).await?;
        upstream(reader, send, &ended, fan).await
    };
    let result = tokio::try_join!(up, downstream(recv, writer, &ended, fan)).map(|_| ());
    if result.is_err() {
        reset(send, recv);
    }
    result
}
