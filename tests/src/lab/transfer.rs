//! A bulk transfer of which each byte is checked as it arrives, and how long it stood still.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::netns::Namespace;
use super::programs::{TcpService, inside};
use super::wait::POLL;

const BLOCK: usize = 64 * 1024;
const CONNECT: Duration = Duration::from_secs(5);

/// The bytes of a transfer: each depends on the seed and on its position, so that one that is lost, doubled, or
/// taken from another place does not fit.
#[derive(Debug, Clone, Copy)]
struct Pattern(u64);

impl Pattern {
    /// SplitMix64 of the word's number.
    const fn word(self, number: u64) -> [u8; 8] {
        let mut z = self.0 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// Fills `out` with the bytes that begin at `position`.
    fn fill(self, position: u64, out: &mut [u8]) {
        let (mut number, skip) = (position / 8, (position % 8) as usize);
        let (head, rest) = out.split_at_mut(out.len().min((8 - skip) % 8));
        if !head.is_empty() {
            let count = head.len();
            head.copy_from_slice(&self.word(number)[skip..skip + count]);
            number += 1;
        }
        for part in rest.chunks_mut(8) {
            part.copy_from_slice(&self.word(number)[..part.len()]);
            number += 1;
        }
    }
}

/// What a receiver has seen of a transfer.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Bytes that arrived and are what they should be.
    pub bytes: u64,
    /// The longest time without a byte since [`Receiver::mark`], the one that still lasts included.
    pub longest_gap: Duration,
    /// What is wrong: a byte that is another, or a connection that broke.
    pub fault: Option<String>,
    /// The sender ended it in good order.
    pub ended: bool,
}

#[derive(Debug, Default)]
struct State {
    seen: Seen,
    last: Option<Instant>,
}

/// The receiving end: a TCP service for one transfer.
#[derive(Debug)]
pub struct Receiver {
    service: TcpService,
    state: Arc<Mutex<State>>,
}

impl Receiver {
    /// Listens on a free port of loopback, in a namespace or here.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(namespace: Option<&Namespace>, seed: u64) -> Receiver {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let service =
            TcpService::start(namespace, move |stream| receive(stream, Pattern(seed), &shared));
        Receiver { service, state }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.service.address()
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        let state = lock(&self.state);
        let mut seen = state.seen.clone();
        if let (Some(last), false) = (state.last, seen.ended) {
            seen.longest_gap = seen.longest_gap.max(last.elapsed());
        }
        seen
    }

    /// Forgets what it has seen, for a transfer that begins anew; the one before is over.
    pub fn again(&self) {
        *lock(&self.state) = State::default();
    }

    /// Looks for the longest gap from here on.
    pub fn mark(&self) {
        lock(&self.state).seen.longest_gap = Duration::ZERO;
    }

    /// Waits for `count` more bytes.
    ///
    /// # Errors
    /// What is wrong with the transfer, or that they do not come within `limit`.
    pub fn wait_for_more(&self, count: u64, limit: Duration) -> Result<(), String> {
        let (begun, first) = (Instant::now(), self.seen().bytes);
        loop {
            let seen = self.seen();
            if let Some(fault) = seen.fault {
                return Err(fault);
            }
            if seen.bytes >= first + count {
                return Ok(());
            }
            if begun.elapsed() > limit {
                return Err(format!("{} of {count} bytes in {limit:?}", seen.bytes - first));
            }
            std::thread::sleep(POLL / 4);
        }
    }

    /// Waits until the sender has ended the transfer, with `total` bytes.
    ///
    /// # Errors
    /// What is wrong with the transfer, or that it does not end within `limit`.
    pub fn wait_for_end(&self, total: u64, limit: Duration) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let seen = self.seen();
            match (seen.fault, seen.ended) {
                (Some(fault), _) => return Err(fault),
                (None, true) if seen.bytes == total => return Ok(()),
                (None, true) => return Err(format!("{} bytes, not {total}", seen.bytes)),
                (None, false) if begun.elapsed() > limit => {
                    return Err(format!("no end in {limit:?}, {} of {total} bytes", seen.bytes));
                }
                (None, false) => std::thread::sleep(POLL / 4),
            }
        }
    }
}

fn receive(mut stream: TcpStream, pattern: Pattern, state: &Mutex<State>) -> std::io::Result<()> {
    let (mut block, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut position = 0;
    loop {
        let read = stream.read(&mut block);
        let now = Instant::now();
        if let Ok(count) = read {
            pattern.fill(position, &mut expected[..count]);
        }
        let mut state = lock(state);
        match read {
            Ok(0) => {
                state.seen.ended = true;
                return Ok(());
            }
            Ok(count) if block[..count] == expected[..count] => {
                position += count as u64;
                state.seen.bytes = position;
                let gap = state.last.map_or(Duration::ZERO, |last| now.duration_since(last));
                state.seen.longest_gap = state.seen.longest_gap.max(gap);
                state.last = Some(now);
            }
            Ok(_) => {
                state.seen.fault = Some(format!("a wrong byte after {position}"));
                return Ok(());
            }
            Err(error) => {
                state.seen.fault = Some(format!("the connection broke after {position}: {error}"));
                return Err(error);
            }
        }
    }
}

/// The sending end: writes as fast as it is let. Dropping it breaks the transfer off.
#[derive(Debug)]
pub struct Sender {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Connects, from a namespace or from here, and begins; it ends by itself after `total` bytes.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn start(
        namespace: Option<&Namespace>,
        address: SocketAddr,
        seed: u64,
        total: u64,
    ) -> std::io::Result<Sender> {
        Self::begin(namespace, address, seed, total, None)
    }

    /// As [`Sender::start`], without an end of its own, and at most so many bytes a second.
    ///
    /// # Errors
    /// When the connection is refused.
    pub fn paced(
        namespace: Option<&Namespace>,
        address: SocketAddr,
        seed: u64,
        bytes_per_second: u64,
    ) -> std::io::Result<Sender> {
        Self::begin(namespace, address, seed, u64::MAX, Some(bytes_per_second))
    }

    fn begin(
        namespace: Option<&Namespace>,
        address: SocketAddr,
        seed: u64,
        total: u64,
        pace: Option<u64>,
    ) -> std::io::Result<Sender> {
        let stream = inside(namespace, || TcpStream::connect_timeout(&address, CONNECT))?;
        let mut writing = stream.try_clone()?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counter) = (stop.clone(), sent.clone());
        let thread = std::thread::spawn(move || {
            let mut block = vec![0; BLOCK];
            let mut position = 0;
            while position < total && !stopped.load(Ordering::Relaxed) {
                let count = (total - position).min(BLOCK as u64) as usize;
                Pattern(seed).fill(position, &mut block[..count]);
                if writing.write_all(&block[..count]).is_err() {
                    return;
                }
                position += count as u64;
                counter.store(position, Ordering::Relaxed);
                if let Some(pace) = pace {
                    std::thread::sleep(Duration::from_secs_f64(count as f64 / pace as f64));
                }
            }
            let _ = writing.shutdown(Shutdown::Write);
        });
        Ok(Sender { stream, stop, sent, thread: Some(thread) })
    }

    /// Bytes written so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the transfer after the present block, and waits until `receiver` has all of it.
    ///
    /// # Errors
    /// When not everything arrives within `limit`.
    pub fn finish(mut self, receiver: &Receiver, limit: Duration) -> Result<u64, String> {
        let begun = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if begun.elapsed() > limit {
                return Err(format!("the sender is stuck after {} bytes", self.sent()));
            }
            std::thread::sleep(POLL / 4);
        }
        let _ = self.thread.take().map(JoinHandle::join);
        receiver.wait_for_end(self.sent(), limit.saturating_sub(begun.elapsed()))?;
        Ok(self.sent())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::wait::{SOON, eventually};

    #[test]
    fn the_pattern_is_the_same_however_it_is_cut() {
        let mut whole = vec![0; 100];
        Pattern(7).fill(0, &mut whole);
        for from in 0..40 {
            for len in 0..30 {
                let mut part = vec![0; len];
                Pattern(7).fill(from as u64, &mut part);
                assert_eq!(part, whole[from..from + len], "{from} {len}");
            }
        }
        let mut other = vec![0; 100];
        Pattern(8).fill(0, &mut other);
        assert_ne!(whole, other);
    }

    #[test]
    fn a_transfer_arrives_whole_and_its_gaps_are_seen() {
        let receiver = Receiver::start(None, 3);
        let sender = Sender::start(None, receiver.address(), 3, u64::MAX).unwrap();
        receiver.wait_for_more(1_000_000, SOON).unwrap();
        let total = sender.finish(&receiver, SOON).unwrap();
        assert_eq!(receiver.seen().bytes, total);
        assert!(total >= 1_000_000);

        let receiver = Receiver::start(None, 3);
        let mut stream = TcpStream::connect(receiver.address()).unwrap();
        let mut bytes = vec![0; 20];
        Pattern(3).fill(0, &mut bytes);
        stream.write_all(&bytes[..10]).unwrap();
        eventually("the first bytes", SOON, || match receiver.seen().bytes {
            10 => Ok(()),
            other => Err(other.to_string()),
        });
        // This is the gap.
        std::thread::sleep(Duration::from_millis(30));
        stream.write_all(&bytes[10..]).unwrap();
        eventually("the gap", SOON, || {
            let seen = receiver.seen();
            let whole = seen.bytes == 20 && seen.longest_gap >= Duration::from_millis(20);
            if whole { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    #[test]
    fn a_wrong_byte_and_an_early_end_are_noticed() {
        let receiver = Receiver::start(None, 3);
        let sender = Sender::start(None, receiver.address(), 4, 1_000_000).unwrap();
        assert!(receiver.wait_for_more(1, SOON).unwrap_err().contains("wrong byte"));
        drop(sender);

        let receiver = Receiver::start(None, 3);
        let _sender = Sender::start(None, receiver.address(), 3, 1000).unwrap();
        let error = receiver.wait_for_end(2000, SOON).unwrap_err();
        assert_eq!(error, "1000 bytes, not 2000");
    }
}
