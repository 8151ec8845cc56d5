//! Round trips on the end-to-end connection.

use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tasuki_proto::session::{Answer, Begin, OpenPing, Opened};
use tasuki_proto::{Refusal, limits};

use super::pipe::{self, Broken};
use crate::core::budget::Budget;

/// How long an echo may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends back what comes, up to [`limits::PINGS_PER_SECOND`] pieces of [`limits::PING_BYTES`], until nothing comes or
/// goes for [`limits::PING_IDLE`].
pub(crate) async fn serve(mut send: SendStream, mut recv: RecvStream) {
    let echo = async {
        pipe::say(&mut send, &Answer::Opened(Opened {})).await?;
        let mut pings = Budget::new(limits::PINGS_PER_SECOND, Instant::now());
        loop {
            let piece = async {
                let chunk = recv.read_chunk(limits::PING_BYTES, true).await?;
                if let Some(chunk) = chunk {
                    send.write_chunk(chunk.bytes).await?;
                    return Ok::<bool, Broken>(true);
                }
                Ok(false)
            };
            let piece = tokio::time::timeout(limits::PING_IDLE, piece).await;
            if !piece.map_err(|_| Broken::Lost)?? {
                break;
            }
            while !pings.take(Instant::now()) {
                tokio::time::sleep(Duration::from_secs(1) / limits::PINGS_PER_SECOND).await;
            }
        }
        let _ = send.finish();
        Ok::<(), Broken>(())
    };
    if echo.await.is_err() {
        pipe::reset(&mut send, &mut recv);
    }
}

/// An open echo stream.
#[derive(Debug)]
pub(crate) struct Pinger {
    send: SendStream,
    recv: RecvStream,
    sequence: u64,
}

impl Pinger {
    /// Opens the stream and waits for the answer.
    ///
    /// # Errors
    /// The peer's refusal, or why the session broke.
    pub(crate) async fn open(connection: &quinn::Connection) -> Result<Self, Refusal> {
        let opened = async {
            let (send, mut recv) = pipe::open(connection, &Begin::Ping(OpenPing {})).await?;
            pipe::read_opened(&mut recv).await?;
            Ok(Self { send, recv, sequence: 0 })
        };
        opened.await.map_err(Broken::refusal)
    }

    /// One round trip; `None` when the echo took too long, after which the stream is of no use.
    ///
    /// # Errors
    /// Why the session broke.
    pub(crate) async fn round_trip(&mut self) -> Result<Option<Duration>, Refusal> {
        self.sequence += 1;
        let sent = self.sequence.to_be_bytes();
        let start = Instant::now();
        let trip = async {
            self.send.write_all(&sent).await?;
            let mut back = [0; 8];
            self.recv.read_exact(&mut back).await.map_err(|_| Broken::Lost)?;
            Ok::<bool, Broken>(back == sent)
        };
        match tokio::time::timeout(PATIENCE, trip).await {
            Ok(Ok(true)) => Ok(Some(start.elapsed())),
            Ok(Ok(false)) => Err(tasuki_proto::RefusalCode::ProtocolError.into()),
            Ok(Err(broken)) => Err(broken.refusal()),
            Err(_) => Ok(None),
        }
    }
}
