//! Lanes over real QUIC connections on loopback, asked for at once instead of on a long line.

use std::sync::atomic::AtomicBool;

use tasuki_proto::codec::Envelope;
use tasuki_proto::limits;
use tasuki_proto::session::OpenBytes;

use super::*;
use crate::agent::Session;
use crate::io::testing::{Wire, pair, service, until, within};

/// What is sent before lanes are asked for, so that the receiver is ready.
const BEFORE: usize = READY + 1_000_000;

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 + at / 65_521) as u8).collect()
}

/// Takes one pipe and its lanes, until the pipe's direction is over. One that `knows` no lanes refuses them.
async fn receive(session: Session, knows: bool) -> (Vec<u8>, Result<(), Broken>) {
    let (_send, mut recv) = session.connection.accept_bi().await.unwrap();
    Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await.unwrap();
    let serve_lanes = async {
        while let Ok((mut send, mut recv)) = session.connection.accept_bi().await {
            let begin = Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await;
            let begin = Begin::from_envelope(&begin.unwrap().unwrap()).unwrap().unwrap();
            match begin {
                Begin::Lane(open) if knows => session.lanes.serve(open, send, recv).await,
                _ => pipe::refuse(&mut send, &mut recv, RefusalCode::BadRequest.into()).await,
            }
        }
        std::future::pending::<()>().await;
    };
    let (mut sink, ended) = (std::io::Cursor::new(Vec::new()), AtomicBool::new(false));
    let fan = Fan { connection: &session.connection, desk: &session.lanes };
    let result = tokio::select! {
        result = pipe::downstream(&mut recv, &mut sink, &ended, fan) => result,
        () = serve_lanes => unreachable!("it waits for ever"),
    };
    assert!(session.lanes.pipes().is_empty(), "the pipe left its place");
    (sink.into_inner(), result)
}

struct Sender {
    session: Session,
    send: SendStream,
    _recv: RecvStream,
}

impl Sender {
    async fn begin(session: Session) -> Sender {
        let begin = Begin::Bytes(OpenBytes { service: service("bulk") });
        let (send, _recv) = pipe::open(&session.connection, &begin).await.unwrap();
        Sender { session, send, _recv }
    }

    /// Sends `data`, and asks for lanes behind its first bytes; they are there or refused when the rest is sent.
    async fn send(&mut self, data: &[u8], receiver: &Desk, outgoing: &mut Outgoing<'_>) {
        let (before, after) = data.split_at(BEFORE);
        outgoing.write(&mut self.send, Bytes::copy_from_slice(before)).await.unwrap();
        until("ready for lanes", || !receiver.pipes().is_empty()).await;
        outgoing.ask(number(self.send.id()));
        until("answered", || outgoing.asked.as_ref().is_some_and(JoinHandle::is_finished)).await;
        for part in after.chunks(100_000) {
            outgoing.write(&mut self.send, Bytes::copy_from_slice(part)).await.unwrap();
        }
    }
}

async fn carried(after: usize, knows: bool) -> usize {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let desk = there.lanes.clone();
    let receiver = tokio::spawn(receive(there, knows));
    let mut sender = Sender::begin(here).await;
    let data = pattern(BEFORE + after);
    let session = sender.session.clone();
    let fan = Fan { connection: &session.connection, desk: &session.lanes };
    let mut outgoing = Outgoing::new(sender.send.id(), fan);
    within(sender.send(&data, &desk, &mut outgoing)).await;
    let lanes = outgoing.lanes.len();
    within(outgoing.finish(&mut sender.send)).await;
    let (got, result) = within(receiver).await.unwrap();
    assert!(result.is_ok(), "{after}: {result:?}");
    assert!(got == data, "{after}: {} of {} bytes, or others", got.len(), data.len());
    lanes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_in_order_wherever_the_end_is() {
    let all = BLOCK * usize::from(LANES);
    for after in [1, BLOCK - 1, BLOCK, BLOCK + 1, all - 1, all, all + 1, 3 * all + 77_777] {
        assert_eq!(carried(after, true).await, usize::from(LANES));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_are_not_used_change_nothing() {
    assert_eq!(carried(0, true).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_knows_no_lanes_gets_all_by_the_stream() {
    assert_eq!(carried(1_000_000, false).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_direction_never_looks_whole() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let desk = there.lanes.clone();
    let receiver = tokio::spawn(receive(there, true));
    let mut sender = Sender::begin(here).await;
    let session = sender.session.clone();
    let fan = Fan { connection: &session.connection, desk: &session.lanes };
    let mut outgoing = Outgoing::new(sender.send.id(), fan);
    within(sender.send(&pattern(BEFORE + 3 * BLOCK), &desk, &mut outgoing)).await;
    assert_eq!(outgoing.lanes.len(), usize::from(LANES));
    // As when the other direction failed and its task is cancelled.
    drop(outgoing);
    let (_, result) = within(receiver).await.unwrap();
    assert!(matches!(result, Err(Broken::Reset)), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_for_a_stream_that_is_none_are_refused() {
    let (here, there) = pair(&Wire::new(), "a", "b", "bulk").await;
    let serve = tokio::spawn(async move {
        for number in 0_u8.. {
            let Ok((send, mut recv)) = there.connection.accept_bi().await else { break };
            Envelope::read(&mut recv, limits::SESSION_MESSAGE_BYTES).await.unwrap();
            let open = OpenLane { pipe: 4_000, lane: number, lanes: LANES };
            there.lanes.serve(open, send, recv).await;
        }
    });
    assert!(within(open(here.connection.clone(), 4_000)).await.is_none());
    here.connection.close(VarInt::from_u32(0), b"");
    within(serve).await.unwrap();
}
