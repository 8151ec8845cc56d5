//! Local ends that stand still, behind real QUIC connections on loopback.

use std::sync::atomic::AtomicBool;

use quinn::SendStream;
use tasuki_proto::RefusalCode;
use tasuki_proto::codec::Envelope;
use tasuki_proto::session::{Begin, OpenBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::agent::Session;
use crate::io::testing::{Wire, pair, service, until, within};
use crate::io::transport::CONNECTION_WINDOW;

/// Longer than a local end may take before it is behind.
const WHILE: Duration = BLOCKED.saturating_mul(20);
const MOST: usize = limits::SESSION_UNREAD_BYTES;

/// Serves one pipe, whose bytes go to the far end of what this gives.
async fn receive(there: &Session) -> (DuplexStream, JoinHandle<Result<(), Broken>>) {
    let (mut near, far) = tokio::io::duplex(1_000);
    let (send, mut recv) = there.connection.accept_bi().await.unwrap();
    Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await.unwrap();
    let there = there.clone();
    let task = tokio::spawn(async move {
        // Whole, since a session ends with what holds it.
        let (there, _send) = (there, send);
        let fan = Fan { connection: &there.connection, desk: &there.lanes };
        pipe::downstream(&mut recv, &mut near, &AtomicBool::new(false), fan).await
    });
    (far, task)
}

/// Serves the pauses that the peer opens, until the connection ends; one that does not know them refuses.
async fn serve_pauses(here: Session, knows: bool) {
    while let Ok((mut send, mut recv)) = here.connection.accept_bi().await {
        let begin = Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await;
        match Begin::from_envelope(&begin.unwrap().unwrap()).unwrap().unwrap() {
            Begin::Pause(pause) if knows => {
                let desk = here.lanes.clone();
                tokio::spawn(async move { desk.pauses.serve(pause, send, recv).await });
            }
            _ => pipe::refuse(&mut send, &mut recv, RefusalCode::BadRequest.into()).await,
        }
    }
}

async fn open(here: &Session) -> (SendStream, RecvStream) {
    let begin = Begin::Bytes(OpenBytes { service: service("bulk") });
    pipe::open(&here.connection, &begin).await.unwrap()
}

/// Sends all of a local end by a pipe.
fn send(here: &Session, mut stream: SendStream) -> (DuplexStream, JoinHandle<Result<(), Broken>>) {
    let (local, mut reader) = tokio::io::duplex(BLOCK);
    let here = here.clone();
    let up = tokio::spawn(async move {
        let here = here;
        let fan = Fan { connection: &here.connection, desk: &here.lanes };
        pipe::upstream(&mut reader, &mut stream, &AtomicBool::new(false), fan).await
    });
    (local, up)
}

fn held(session: &Session) -> usize {
    session.lanes.holdings.bytes.load(Ordering::Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sender_waits_for_who_takes_nothing_and_nothing_is_lost() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    tokio::spawn(serve_pauses(here.clone(), true));
    let (stream, _recv) = open(&here).await;
    let (mut far, down) = within(receive(&there)).await;
    let (mut local, up) = send(&here, stream);
    let data: Vec<u8> = (0..20_000_000_usize).map(|at| (at * 31 + at / 65_521) as u8).collect();
    let sent = data.clone();
    let written = tokio::spawn(async move { local.write_all(&sent).await });
    until("a pause", || here.lanes.pauses.any()).await;
    tokio::time::sleep(WHILE).await;
    assert!(here.lanes.pauses.any() && !written.is_finished(), "it stands while nothing is read");
    let most = HELD + 2 * STREAM_WINDOW as usize;
    assert!((HELD..most).contains(&held(&there)), "{} bytes are held", held(&there));
    let mut all = Vec::new();
    within(far.read_to_end(&mut all)).await.unwrap();
    assert!(all == data, "{} bytes, or others", all.len());
    let (up, written, down) = within(async { tokio::join!(up, written, down) }).await;
    assert!(matches!((up, written, down), (Ok(Ok(())), Ok(Ok(())), Ok(Ok(())))));
    assert!(!here.lanes.pauses.any());
    assert_eq!(held(&there), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_stand_still_leave_the_window_to_others() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    there.connection.set_receive_window(CONNECTION_WINDOW.into());
    tokio::spawn(serve_pauses(here.clone(), true));
    let mut still = Vec::new();
    for _ in 0..40 {
        let (stream, recv) = open(&here).await;
        let received = within(receive(&there)).await;
        let (mut local, up) = send(&here, stream);
        let written = tokio::spawn(async move {
            let block = vec![0; BLOCK];
            while local.write_all(&block).await.is_ok() {}
        });
        still.push((recv, received, up, written));
    }
    within(async {
        let mut before = (0, 1);
        while before.0 != before.1 {
            tokio::time::sleep(WHILE).await;
            before = (before.1, held(&there));
        }
    })
    .await;
    println!("{} bytes are held", held(&there));
    assert!((40 * LEAST..MOST).contains(&held(&there)));
    let (mut stream, _recv) = open(&here).await;
    let (mut far, _down) = within(receive(&there)).await;
    within(stream.write_all(&[7; 1_000_000])).await.unwrap();
    stream.finish().unwrap();
    let mut all = Vec::new();
    within(far.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 1_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_knows_no_pauses_sends_on_up_to_a_limit() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    tokio::spawn(serve_pauses(here.clone(), false));
    let (stream, _recv) = open(&here).await;
    let (mut far, down) = within(receive(&there)).await;
    let (mut local, up) = send(&here, stream);
    // As if others of the session held the most of it.
    const LEFT: usize = 32 * 1024 * 1024;
    there.lanes.holdings.bytes.fetch_add(MOST - LEFT, Ordering::Relaxed);
    let blocks = LEFT / BLOCK + 1_000;
    let written = tokio::spawn(async move {
        for number in 0..blocks {
            local.write_all(&vec![number as u8; BLOCK]).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    until("the limit", || held(&there) >= MOST).await;
    tokio::time::sleep(WHILE).await;
    assert!(held(&there) < MOST + 4 * BLOCK * CHUNKS, "{} bytes are held", held(&there));
    let (mut block, mut number) = (vec![0; BLOCK], 0);
    while within(far.read_exact(&mut block)).await.is_ok() {
        assert!(block.iter().all(|byte| *byte == number as u8), "block {number}");
        number += 1;
    }
    assert_eq!(number, blocks);
    let (up, written, down) = within(async { tokio::join!(up, written, down) }).await;
    assert!(matches!((up, written, down), (Ok(Ok(())), Ok(Ok(())), Ok(Ok(())))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_before_a_reset_is_handed_on() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let (mut stream, _recv) = open(&here).await;
    let (mut far, down) = within(receive(&there)).await;
    stream.write_all(&[7; 100_000]).await.unwrap();
    until("it is held", || held(&there) > 90_000).await;
    stream.reset(pipe::RESET).unwrap();
    tokio::time::sleep(WHILE).await;
    let mut all = Vec::new();
    within(far.read_to_end(&mut all)).await.unwrap();
    assert_eq!(all.len(), 100_000);
    assert!(matches!(within(down).await.unwrap(), Err(Broken::Reset)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_pieces_that_are_always_there_are_noticed_and_others_are_not() {
    let (here, _there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let (stream, _recv) = open(&here).await;
    let fan = Fan { connection: &here.connection, desk: &here.lanes };
    let mut backlog = Backlog::new(stream.id(), fan, plain);
    let pieces = |bytes: usize, count: usize| vec![Bytes::from(vec![0; bytes]); count];
    assert!(!backlog.count(&pieces(PIECE, 10 * SMALL)));
    assert!(!backlog.count(&pieces(PIECE - 1, SMALL)), "few among larger ones");
    assert!(backlog.count(&pieces(PIECE - 1, 10 * SMALL / (FEW - 1))));
    let mut waited = false;
    let read = poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
    });
    backlog.read(read).await;
    assert!(!backlog.count(&pieces(1, 1)), "it had kept up");
}

#[test]
fn a_queue_gives_back_what_it_got_in_few_blocks() {
    let all = Holdings::default();
    let mut queue = Queue::new(&all);
    let mut expected = Vec::new();
    for number in 0..10_000_u32 {
        let piece = vec![number as u8; (number % 97) as usize];
        queue.push(&piece);
        expected.extend_from_slice(&piece);
    }
    assert_eq!(all.bytes.load(Ordering::Relaxed), expected.len());
    assert!(queue.blocks.len() < expected.len() / BLOCK + 8);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut got = std::io::Cursor::new(Vec::new());
    while !queue.is_empty() {
        assert!(queue.poll_write(&mut got, &mut context).is_ready());
    }
    assert!(got.into_inner() == expected);
    queue.push(b"left");
    drop(queue);
    assert_eq!(all.bytes.load(Ordering::Relaxed) + all.pipes.load(Ordering::Relaxed), 0);
}
