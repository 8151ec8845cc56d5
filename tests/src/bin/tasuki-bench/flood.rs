//! A transfer without an end, and how it gets on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tasuki_tests::lab::programs::TcpService;

const BLOCK: usize = 128 * 1024;
/// How often the transfer is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// What a paced transfer writes at once takes no longer than this at its pace.
const SLICE: Duration = Duration::from_millis(1);
/// How far a paced transfer may be behind its pace and catch up: longer than its thread waits for a processor, so that
/// the pace is kept, and short, so that what one measurement lost does not speed up the next.
const CATCH_UP: Duration = Duration::from_millis(100);

/// Takes what comes, counts it and lets it go.
pub(crate) fn sink() -> (TcpService, Meter) {
    let received = Arc::new(Received::new());
    let meter = Meter { received: received.clone() };
    let service = TcpService::start(None, move |mut stream: TcpStream| {
        let mut block = vec![0; BLOCK];
        while let count @ 1.. = stream.read(&mut block)? {
            received.note(count as u64);
        }
        Ok(())
    });
    (service, meter)
}

/// What has come, and how long nothing did.
struct Received {
    begun: Instant,
    bytes: AtomicU64,
    /// When the last byte came, ns since it began.
    last: AtomicU64,
    /// The longest time between two reads, ns.
    longest: AtomicU64,
}

impl Received {
    fn new() -> Received {
        let [bytes, last, longest] = [(); 3].map(|()| AtomicU64::new(0));
        Received { begun: Instant::now(), bytes, last, longest }
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }

    fn note(&self, count: u64) {
        self.bytes.fetch_add(count, Ordering::Relaxed);
        let now = self.now();
        let last = self.last.swap(now, Ordering::Relaxed);
        self.longest.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
    }

    /// From here on the longest time counts, also of a pause that lasts already.
    fn forget_stalls(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
        self.longest.store(0, Ordering::Relaxed);
    }

    /// The longest time without a byte, also where it has not ended.
    fn stall(&self) -> Duration {
        let silent = self.now().saturating_sub(self.last.load(Ordering::Relaxed));
        Duration::from_nanos(silent.max(self.longest.load(Ordering::Relaxed)))
    }
}

/// When a paced transfer may write.
struct Pace {
    bytes_per_s: f64,
    due: Instant,
}

impl Pace {
    fn new(gbit_per_s: f64) -> Pace {
        Pace { bytes_per_s: gbit_per_s * 1e9 / 8.0, due: Instant::now() }
    }

    /// How many bytes are written at once.
    fn slice(&self) -> usize {
        ((self.bytes_per_s * SLICE.as_secs_f64()) as usize).clamp(1, BLOCK)
    }

    /// Waits until so many bytes more were due.
    fn wait(&mut self, bytes: usize) {
        self.due += Duration::from_secs_f64(bytes as f64 / self.bytes_per_s);
        let now = Instant::now();
        std::thread::sleep(self.due.saturating_duration_since(now));
        self.due = now.checked_sub(CATCH_UP).map_or(self.due, |least| self.due.max(least));
    }
}

/// Writes as fast as it can, or at a pace. Dropping it ends it.
pub(crate) struct Flood {
    stream: TcpStream,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Connects and begins.
    pub(crate) fn start(address: SocketAddr) -> Result<Flood> {
        Self::paced(address, None)
    }

    /// As [`Flood::start`], at no more than so many Gbit/s where that is given.
    pub(crate) fn paced(address: SocketAddr, gbit_per_s: Option<f64>) -> Result<Flood> {
        let stream = TcpStream::connect(address).context("the forwarded port")?;
        let mut writing = stream.try_clone()?;
        let over = Arc::new(AtomicBool::new(false));
        let done = over.clone();
        let thread = std::thread::spawn(move || {
            let mut pace = gbit_per_s.map(Pace::new);
            let block = vec![0x5a; pace.as_ref().map_or(BLOCK, Pace::slice)];
            while writing.write_all(&block).is_ok() {
                if let Some(pace) = &mut pace {
                    pace.wait(block.len());
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        Ok(Flood { stream, over, thread: Some(thread) })
    }

    /// Whether nothing broke it.
    pub(crate) fn runs(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What a sink has received.
pub(crate) struct Meter {
    received: Arc<Received>,
}

/// What a transfer did in a while.
pub(crate) struct Watched {
    pub(crate) gbit_per_s: f64,
    /// The longest time without a byte, as far as looking shows.
    pub(crate) gap: Duration,
    /// The same as the sink saw it, read by read: no coarser than its thread gets a processor.
    pub(crate) stall: Duration,
}

impl Meter {
    /// Waits for the first byte.
    pub(crate) fn wait_for_first(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while self.received.bytes() == 0 {
            ensure!(begun.elapsed() < limit, "the bulk transfer does not begin");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Watches the transfer while `action` runs.
    pub(crate) fn watch(&self, action: impl FnOnce()) -> Watched {
        let (over, received) = (Arc::new(AtomicBool::new(false)), self.received.clone());
        let (begun, first) = (Instant::now(), self.received.bytes());
        self.received.forget_stalls();
        let stop = over.clone();
        let watching = std::thread::spawn(move || {
            let (mut last, mut since, mut gap) = (first, Instant::now(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                let next = received.bytes();
                gap = gap.max(since.elapsed());
                if next != last {
                    (last, since) = (next, Instant::now());
                }
            }
            gap
        });
        action();
        let (bytes, elapsed) = (self.received.bytes() - first, begun.elapsed());
        let stall = self.received.stall();
        over.store(true, Ordering::Relaxed);
        let gap = watching.join().unwrap_or_default();
        Watched { gbit_per_s: bytes as f64 * 8e-9 / elapsed.as_secs_f64(), gap, stall }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paced_transfer_keeps_its_pace_and_a_pause_is_seen() {
        let (sink, meter) = sink();
        let flood = Flood::paced(sink.address(), Some(0.01)).unwrap();
        meter.wait_for_first(Duration::from_secs(20)).unwrap();
        let watched = meter.watch(|| std::thread::sleep(Duration::from_millis(500)));
        // Far less than without a pace; what a busy sink left before comes within this time too.
        assert!(watched.gbit_per_s < 0.05, "{}", watched.gbit_per_s);
        assert!(watched.gbit_per_s > 0.0 && flood.runs());
        drop(flood);
        let pause = Duration::from_millis(60);
        assert!(meter.watch(|| std::thread::sleep(pause)).stall >= pause / 2);
    }

    #[test]
    fn slices_are_of_a_millisecond_at_most() {
        assert_eq!(Pace::new(1.0).slice(), 125_000);
        assert_eq!((Pace::new(100.0).slice(), Pace::new(1e-9).slice()), (BLOCK, 1));
    }

    #[test]
    fn what_was_lost_long_ago_is_not_caught_up_with() {
        let mut pace = Pace::new(1.0);
        std::thread::sleep(CATCH_UP * 2);
        let before = Instant::now();
        pace.wait(1);
        assert!(pace.due + CATCH_UP >= before);
    }
}
