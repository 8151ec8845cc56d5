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

/// Takes what comes, counts it and lets it go.
pub(crate) fn sink() -> (TcpService, Meter) {
    let received = Arc::new(AtomicU64::new(0));
    let meter = Meter { received: received.clone() };
    let service = TcpService::start(None, move |mut stream: TcpStream| {
        let mut block = vec![0; BLOCK];
        while let count @ 1.. = stream.read(&mut block)? {
            received.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    (service, meter)
}

/// Writes as fast as it can. Dropping it ends it.
pub(crate) struct Flood {
    stream: TcpStream,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Connects and begins.
    pub(crate) fn start(address: SocketAddr) -> Result<Flood> {
        let stream = TcpStream::connect(address).context("the forwarded port")?;
        let mut writing = stream.try_clone()?;
        let over = Arc::new(AtomicBool::new(false));
        let done = over.clone();
        let thread = std::thread::spawn(move || {
            let block = vec![0x5a; BLOCK];
            while writing.write_all(&block).is_ok() {}
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
    received: Arc<AtomicU64>,
}

/// What a transfer did in a while.
pub(crate) struct Watched {
    pub(crate) gbit_per_s: f64,
    /// The longest time without a byte, as far as looking shows.
    pub(crate) gap: Duration,
}

impl Meter {
    /// Waits for the first byte.
    pub(crate) fn wait_for_first(&self, limit: Duration) -> Result<()> {
        let begun = Instant::now();
        while self.received.load(Ordering::Relaxed) == 0 {
            ensure!(begun.elapsed() < limit, "the bulk transfer does not begin");
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Watches the transfer while `action` runs.
    pub(crate) fn watch(&self, action: impl FnOnce()) -> Watched {
        let (over, received) = (Arc::new(AtomicBool::new(false)), self.received.clone());
        let (begun, first) = (Instant::now(), self.received.load(Ordering::Relaxed));
        let stop = over.clone();
        let watching = std::thread::spawn(move || {
            let (mut last, mut since, mut gap) = (first, Instant::now(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(LOOK);
                let next = received.load(Ordering::Relaxed);
                gap = gap.max(since.elapsed());
                if next != last {
                    (last, since) = (next, Instant::now());
                }
            }
            gap
        });
        action();
        let (bytes, elapsed) = (self.received.load(Ordering::Relaxed) - first, begun.elapsed());
        over.store(true, Ordering::Relaxed);
        let gap = watching.join().unwrap_or_default();
        Watched { gbit_per_s: bytes as f64 * 8e-9 / elapsed.as_secs_f64(), gap }
    }
}
