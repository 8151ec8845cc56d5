//! Pauses over real QUIC connections on loopback.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tasuki_proto::codec::Envelope;
use tasuki_proto::limits;
use tasuki_proto::session::OpenBytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use super::*;
use crate::agent::Session;
use crate::io::services::lanes::Fan;
use crate::io::testing::{Wire, pair, service, until, within};

/// Messages of the sizes that quinn keeps apart, each in a packet of its own.
fn message(number: usize) -> Vec<u8> {
    vec![number as u8; if number.is_multiple_of(3) { 1_000 } else { 100 }]
}

/// More than are on their way before the pause.
const MESSAGES: usize = 1_500;

/// Serves one pipe, whose bytes go to the far end of what this gives.
async fn receive(there: Session) -> (DuplexStream, JoinHandle<()>) {
    let (mut near, far) = tokio::io::duplex(1_000);
    let (_send, mut recv) = there.connection.accept_bi().await.unwrap();
    Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await.unwrap();
    let task = tokio::spawn(async move {
        // Whole, since a session ends with what holds it.
        let (there, _send) = (there, _send);
        let fan = Fan { connection: &there.connection, desk: &there.lanes };
        let ended = AtomicBool::new(false);
        let down = pipe::downstream(&mut recv, &mut near, &ended, Some(fan)).await;
        assert!(down.is_ok(), "{down:?}: {:?}", there.connection.close_reason());
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

struct Pair {
    here: Session,
    send: SendStream,
    _recv: RecvStream,
    far: DuplexStream,
    received: JoinHandle<()>,
}

async fn begin(knows: bool) -> Pair {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let begin = Begin::Bytes(OpenBytes { service: service("bulk") });
    let (send, _recv) = pipe::open(&here.connection, &begin).await.unwrap();
    let (far, received) = within(receive(there)).await;
    tokio::spawn(serve_pauses(here.clone(), knows));
    Pair { here, send, _recv, far, received }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_messages_wait_for_who_does_not_read() {
    let mut pair = begin(true).await;
    let desk = pair.here.lanes.clone();
    let (mut local, mut reader) = tokio::io::duplex(1_000);
    let mut send = pair.send;
    let up = tokio::spawn(async move {
        let here = pair.here;
        let fan = Fan { connection: &here.connection, desk: &here.lanes };
        let ended = AtomicBool::new(false);
        pipe::upstream(&mut reader, &mut send, &ended, Some(fan)).await.unwrap();
    });
    let written = tokio::spawn(async move {
        for number in 0..MESSAGES {
            local.write_all(&message(number)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let paused = || desk.pauses.pipes().values().any(|count| *count.borrow() > 0);
    until("a pause", paused).await;
    tokio::time::sleep(BLOCKED * 4).await;
    assert!(paused() && !written.is_finished(), "it stands while nothing is read");
    let mut all = Vec::new();
    within(pair.far.read_to_end(&mut all)).await.unwrap();
    assert!(all == (0..MESSAGES).flat_map(message).collect::<Vec<_>>(), "{} bytes", all.len());
    within(async { tokio::try_join!(up, written, pair.received) }).await.unwrap();
    assert!(desk.pauses.pipes().is_empty(), "the pipe left its place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_knows_no_pauses_sends_on() {
    let mut pair = begin(false).await;
    let data = vec![7; 1_000_000];
    let sent = data.clone();
    let mut send = pair.send;
    let up = tokio::spawn(async move {
        send.write_all(&sent).await.unwrap();
        send.finish().unwrap();
        pipe::delivered(&send).await;
    });
    tokio::time::sleep(BLOCKED * 4).await;
    let mut all = Vec::new();
    within(pair.far.read_to_end(&mut all)).await.unwrap();
    assert!(all == data);
    within(async { tokio::try_join!(up, pair.received) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_overlap_and_end_with_their_streams() {
    let pair = begin(true).await;
    let mut pausable = pair.here.lanes.pauses.pausable(pair.send.id());
    let count = pausable.count.clone();
    let [first, second] = [0, 1]
        .map(|_| Paused::new(pair.here.lanes.pauses.pipes()[&number(pair.send.id())].clone()));
    drop(first);
    assert_eq!(*count.borrow(), 1);
    let waited = tokio::time::timeout(BLOCKED, pausable.ready()).await;
    assert!(waited.is_err(), "one pause still stands");
    drop(second);
    within(pausable.ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_pieces_that_are_always_there_are_a_pause_and_others_are_not() {
    let pair = begin(true).await;
    let pieces = |bytes: usize, count: usize| vec![Bytes::from(vec![0; bytes]); count];
    let mut backlog = Backlog::new(pair.send.id(), Some(&pair.here.connection));
    backlog.took(&pieces(PIECE, 10 * SMALL));
    backlog.took(&pieces(PIECE - 1, SMALL));
    assert!(backlog.pause.is_none(), "few among larger ones");
    backlog.took(&pieces(PIECE - 1, 10 * SMALL / (FEW - 1)));
    assert!(backlog.pause.is_some());
    let mut tries = 0;
    let next = backlog.read(poll_fn(|context| {
        tries += 1;
        context.waker().wake_by_ref();
        if tries == 1 { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    }));
    next.await;
    assert!(backlog.pause.is_none() && backlog.small == 0, "it caught up");
    let begun = Instant::now();
    backlog.write(tokio::time::sleep(BLOCKED * 2)).await;
    assert!(backlog.pause.is_some() && begun.elapsed() >= BLOCKED * 2);
}
