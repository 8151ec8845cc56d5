use std::future::poll_fn;
use std::net::UdpSocket;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use quinn::Runtime as _;
use tasuki_proto::frame::{self, FrameKind};
use tasuki_proto::{Generation, Label};

use super::super::socket::{Path, SessionSocket, virtual_address};
use super::*;
use crate::core::paths::PathId;

const TO: &str = "127.0.0.1:4433";

fn transmit(contents: &[u8], segment: Option<usize>) -> Transmit<'_> {
    Transmit {
        destination: virtual_address(1),
        ecn: None,
        contents,
        segment_size: segment,
        src_ip: None,
    }
}

fn label(n: u64) -> Label {
    Label::new(n).unwrap()
}

fn push(run: &mut Run, transmit: &Transmit<'_>) -> bool {
    let to = TO.parse().unwrap();
    let takes = run.takes(to, transmit);
    if takes {
        run.push(to, frame::head(FrameKind::Data, label(7)), transmit);
    }
    takes
}

#[test]
fn a_run_is_one_length_with_a_shorter_end() {
    let mut run = Run::default();
    assert!(push(&mut run, &transmit(b"aaaabbbb", Some(4))));
    assert!(push(&mut run, &transmit(b"cccc", None)));
    assert!(!push(&mut run, &transmit(b"ddddd", None)), "longer than the others");
    assert!(!push(&mut run, &transmit(b"ddeeff", Some(2))), "several shorter ones");
    let other = "127.0.0.1:4434".parse().unwrap();
    assert!(!run.takes(other, &transmit(b"dddd", None)), "another relay");
    let marked = Transmit { ecn: Some(EcnCodepoint::Ce), ..transmit(b"dddd", None) };
    assert!(!run.takes(TO.parse().unwrap(), &marked), "another mark");
    assert!(push(&mut run, &transmit(b"ee", None)));
    assert!(run.is_full() && !push(&mut run, &transmit(b"ff", None)), "nothing follows the end");
    let head = frame::head(FrameKind::Data, label(7));
    let frames = [&b"aaaa"[..], b"bbbb", b"cccc", b"ee"].map(|p| [&head[..], p].concat());
    assert_eq!((run.bytes(), run.stride()), (&frames.concat()[..], 12));
    run.clear();
    assert!(push(&mut run, &transmit(b"longer than before", None)));
}

#[test]
fn a_run_keeps_to_what_the_kernel_takes() {
    for length in [100, 1200, 1444, 9000] {
        let payload = vec![1; length * 5];
        let mut run = Run::default();
        while !run.is_full() {
            assert!(push(&mut run, &transmit(&payload, Some(length))));
        }
        assert!(run.bytes().len() <= RUN_BYTES && run.frames <= RUN_FRAMES, "{length}");
        let frames = run.frames;
        while push(&mut run, &transmit(&payload, Some(length))) {}
        assert!(run.bytes().len() <= RUN_BYTES && run.frames <= RUN_FRAMES, "{length}");
        assert!(run.frames < frames + QUINN_FRAMES);
    }
}

fn world() -> (UdpSocket, SessionSocket) {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    relay.set_nonblocking(true).unwrap();
    let (events, _) = tokio::sync::mpsc::channel(1);
    let keys = tasuki_proto::net::EndpointKeys::random();
    let socket = Arc::new(Socket::bind("127.0.0.1:0".parse().unwrap(), &keys, events).unwrap());
    let path = Path { to: relay.local_addr().unwrap(), label_in: label(1), label_out: label(7) };
    socket.add_path(virtual_address(1), PathId::Relayed(Generation::CALL), path);
    (relay, SessionSocket(socket))
}

fn received(relay: &UdpSocket) -> usize {
    let mut buffer = [0; 64];
    std::iter::from_fn(|| relay.recv(&mut buffer).ok()).count()
}

async fn wait_for(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline, "it did not come");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_a_task_sends_leaves_at_the_end_of_its_turn() {
    let (relay, session) = world();
    let relay = Arc::new(relay);
    let (early, polls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let task = {
        let (relay, session) = (relay.clone(), session.clone());
        let (early, polls) = (early.clone(), polls.clone());
        poll_fn(move |cx| {
            session.try_send(&transmit(b"a packet", None)).unwrap();
            early.fetch_add(received(&relay), Ordering::Relaxed);
            if polls.fetch_add(1, Ordering::Relaxed) == 1 {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    };
    Runtime(session.0.clone()).spawn(Box::pin(task));
    let after = AtomicUsize::new(0);
    wait_for(|| after.fetch_add(received(&relay), Ordering::Relaxed) >= 2).await;
    assert_eq!((early.load(Ordering::Relaxed), polls.load(Ordering::Relaxed)), (0, 2));
    // Outside of a turn nothing is kept back.
    session.try_send(&transmit(b"a packet", None)).unwrap();
    assert_eq!(received(&relay), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_several_tasks_write_at_the_same_time_is_one_turn() {
    let (_relay, session) = world();
    let (turns, waker) = (Arc::new(AtomicUsize::new(0)), Arc::<Mutex<Option<Waker>>>::default());
    let task = {
        let (turns, waker) = (turns.clone(), waker.clone());
        poll_fn(move |cx| {
            turns.fetch_add(1, Ordering::AcqRel);
            *waker.lock().unwrap() = Some(cx.waker().clone());
            Poll::Pending
        })
    };
    Runtime(session.0.clone()).spawn(Box::pin(task));
    wait_for(|| waker.lock().unwrap().is_some()).await;
    let (ready, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let (ready, go, waker) = (ready.clone(), go.clone(), waker.clone());
            tokio::spawn(async move {
                let go = go.notified();
                ready.fetch_add(1, Ordering::AcqRel);
                go.await;
                let now = waker.lock().unwrap().clone().unwrap();
                now.wake();
            })
        })
        .collect();
    wait_for(|| ready.load(Ordering::Acquire) == 8).await;
    // From a task of the same thread, as when the network made them ready together.
    tokio::spawn(async move { go.notify_waiters() }).await.unwrap();
    for writer in writers {
        writer.await.unwrap();
    }
    wait_for(|| turns.load(Ordering::Acquire) == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_and_a_busy_task_lets_others_run() {
    let (_relay, session) = world();
    let (wanted, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let waker: Arc<Mutex<Option<Waker>>> = Arc::default();
    let task = {
        let (wanted, seen, waker) = (wanted.clone(), seen.clone(), waker.clone());
        poll_fn(move |cx| {
            *waker.lock().unwrap() = Some(cx.waker().clone());
            let now = wanted.load(Ordering::Acquire);
            seen.store(now, Ordering::Release);
            if now.is_multiple_of(3) {
                cx.waker().wake_by_ref();
            }
            if now == usize::MAX { Poll::Ready(()) } else { Poll::Pending }
        })
    };
    Runtime(session.0.clone()).spawn(Box::pin(task));
    wait_for(|| waker.lock().unwrap().is_some()).await;
    for n in 1..20_000 {
        wanted.store(n, Ordering::Release);
        let now = waker.lock().unwrap().clone().unwrap();
        now.wake();
        if n.is_multiple_of(7) {
            wait_for(|| seen.load(Ordering::Acquire) == n).await;
        }
    }
    wait_for(|| seen.load(Ordering::Acquire) == 19_999).await;
    wanted.store(usize::MAX, Ordering::Release);
    let now = waker.lock().unwrap().clone().unwrap();
    now.wake();
    wait_for(|| seen.load(Ordering::Acquire) == usize::MAX).await;
}
