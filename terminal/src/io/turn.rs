//! Joins what one turn of a connection sends.
//!
//! quinn sends at most ten datagrams a call, and twenty before its task yields. Each call costs a system
//! call here, and another two at every relay, so a [`Runtime`] of ours runs the tasks of quinn: it polls a
//! connection's task as long as that goes on by itself, collects the frames in a [`Run`] meanwhile, and sends
//! them with one call when the task rests or the run is full. Nothing waits: a turn ends before its thread does
//! anything else. And a turn begins after those of the tasks that are ready at the same time: what several of them write
//! to streams of one connection leaves in one packet.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use quinn::udp::{EcnCodepoint, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, TokioRuntime, UdpPoller};
use tasuki_proto::frame::HEAD;

use super::socket::Socket;

/// The largest UDP payload that one segmented send may carry (IPv4).
const RUN_BYTES: usize = 65_507;
/// The most datagrams that one segmented send may carry (`UDP_MAX_SEGMENTS` of Linux before 6.8).
const RUN_FRAMES: usize = 64;
/// The most datagrams that quinn may hand over at once: as many of the largest (9,000 bytes with all heads) as fit.
pub(crate) const QUINN_FRAMES: usize = 7;
/// A task is polled until it sent a run, and this often at most, before others get their turn: quinn sends 20 datagrams
/// each time.
const POLLS: usize = 4;

/// Frames that leave with one system call: of one session, to one address, all of one length but the last.
#[derive(Debug, Default)]
pub(crate) struct Run {
    to: Option<SocketAddr>,
    /// The virtual address of their session.
    session: Option<SocketAddr>,
    ecn: Option<EcnCodepoint>,
    stride: usize,
    frames: usize,
    bytes: Vec<u8>,
    /// Something was sent since the turn began.
    sent: bool,
}

impl Run {
    pub(crate) fn to(&self) -> Option<SocketAddr> {
        self.to
    }

    pub(crate) fn session(&self) -> Option<SocketAddr> {
        self.session
    }

    pub(crate) fn ecn(&self) -> Option<EcnCodepoint> {
        self.ecn
    }

    /// The length of each frame but the last.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets the frames: they are sent, or count as lost.
    pub(crate) fn clear(&mut self) {
        self.sent = true;
        self.to = None;
        self.frames = 0;
        self.bytes.clear();
    }

    /// Whether `transmit` may follow what is there.
    pub(crate) fn takes(&self, to: SocketAddr, transmit: &Transmit<'_>) -> bool {
        let Some(here) = self.to else { return true };
        let (segment, count) = shape(transmit);
        here == to
            && self.session == Some(transmit.destination)
            && self.ecn == transmit.ecn
            && self.bytes.len().is_multiple_of(self.stride)
            && (segment + HEAD == self.stride || (count == 1 && segment + HEAD < self.stride))
            && self.frames + count <= RUN_FRAMES
            && self.bytes.len() + transmit.contents.len() + count * HEAD <= RUN_BYTES
    }

    /// Appends the packets of `transmit`, each behind `head`. The run must take it.
    pub(crate) fn push(&mut self, to: SocketAddr, head: [u8; HEAD], transmit: &Transmit<'_>) {
        let (segment, count) = shape(transmit);
        if self.to.is_none() {
            self.to = Some(to);
            self.session = Some(transmit.destination);
            self.ecn = transmit.ecn;
            self.stride = segment + HEAD;
        }
        self.frames += count;
        for packet in transmit.contents.chunks(segment) {
            self.bytes.extend_from_slice(&head);
            self.bytes.extend_from_slice(packet);
        }
    }

    /// Whether another call of quinn's would not fit any more.
    pub(crate) fn is_full(&self) -> bool {
        !self.bytes.len().is_multiple_of(self.stride)
            || self.frames + QUINN_FRAMES > RUN_FRAMES
            || self.bytes.len() + QUINN_FRAMES * self.stride > RUN_BYTES
    }
}

/// The length of a transmit's packets, and their number.
fn shape(transmit: &Transmit<'_>) -> (usize, usize) {
    let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
    (segment, transmit.contents.len().div_ceil(segment))
}

#[derive(Default)]
struct Turn {
    /// Whether a task of quinn's runs on this thread.
    running: bool,
    run: Run,
}

thread_local! {
    static TURN: RefCell<Turn> = RefCell::default();
}

/// Gives `work` this thread's run, and whether a turn will send what it leaves there.
pub(crate) fn with_run<T>(work: impl FnOnce(&mut Run, bool) -> T) -> T {
    TURN.with_borrow_mut(|turn| work(&mut turn.run, turn.running))
}

/// This thread is in a turn while it exists.
struct InTurn;

impl InTurn {
    /// Begins with what the socket did not take at the end of the task's last turn.
    fn begin(left: Option<Run>) -> InTurn {
        TURN.with_borrow_mut(|turn| {
            turn.running = true;
            match left {
                Some(left) => turn.run = left,
                None => turn.run.clear(),
            }
            turn.run.sent = false;
        });
        InTurn
    }

    /// Sends what the turn collected; gives what the socket did not take.
    fn end(self, socket: &Socket) -> Option<Run> {
        with_run(|run, _| socket.flush(run).is_err().then(|| std::mem::take(run)))
    }
}

impl Drop for InTurn {
    fn drop(&mut self) {
        TURN.with_borrow_mut(|turn| turn.running = false);
    }
}

/// Runs quinn's tasks on tokio, in turns.
#[derive(Debug)]
pub(crate) struct Runtime(pub(crate) Arc<Socket>);

impl quinn::Runtime for Runtime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(Task {
            task,
            socket: self.0.clone(),
            signal: Arc::default(),
            left: None,
            poller: None,
            last: false,
        });
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}

const RESTING: u8 = 0;
const RUNNING: u8 = 1;
const WOKEN: u8 = 2;

/// Hears a task's wake-ups, and passes on those that do not fall into its turn.
#[derive(Default)]
struct Signal {
    state: AtomicU8,
    outer: Mutex<Option<Waker>>,
}

impl Signal {
    fn set_outer(&self, waker: &Waker) {
        let mut outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *outer {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == RESTING {
            let outer = self.outer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(outer) = outer {
                outer.wake();
            }
        }
    }
}

struct Task {
    task: Pin<Box<dyn Future<Output = ()> + Send>>,
    socket: Arc<Socket>,
    signal: Arc<Signal>,
    /// What the socket did not take at the end of the last turn.
    left: Option<Run>,
    poller: Option<Pin<Box<dyn UdpPoller>>>,
    /// It went behind all tasks that were ready when it was woken.
    last: bool,
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.last {
            // A task that wakes itself goes to the end of tokio's queue; woken by others it would come next.
            this.last = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.last = false;
        this.signal.set_outer(cx.waker());
        let waker = Waker::from(this.signal.clone());
        let mut inner = Context::from_waker(&waker);
        let turn = InTurn::begin(this.left.take());
        let mut done = Poll::Pending;
        for _ in 0..POLLS {
            this.signal.state.store(RUNNING, Ordering::Release);
            done = this.task.as_mut().poll(&mut inner);
            let woken = this.signal.state.load(Ordering::Acquire) == WOKEN;
            if done.is_ready() || !woken || with_run(|run, _| run.sent) {
                break;
            }
        }
        this.left = turn.end(&this.socket);
        if done.is_ready() {
            return done;
        }
        if this.left.is_some() {
            let poller = this.poller.get_or_insert_with(|| this.socket.udp().poller());
            if poller.as_mut().poll_writable(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        let rested = this.signal.state.compare_exchange(
            RUNNING,
            RESTING,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if rested.is_err() {
            this.signal.state.store(RESTING, Ordering::Release);
            this.last = true;
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
