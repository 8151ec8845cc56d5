//! A bad line: forwards UDP with delay, jitter, loss, a rate with a bounded queue, and cuts in one direction.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::frame::{self, FrameKind};

use super::netns::Namespace;

/// How soon threads notice that the forwarder is dropped.
const TICK: Duration = Duration::from_millis(50);
/// Clients that one forwarder serves; further ones are not heard.
const CLIENTS: usize = 256;
/// Packets that wait for their time, both directions; beyond: dropped and counted.
const WAITING: usize = 100_000;
/// Bytes that a socket buffers, as far as the system allows.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// What one direction of the line does to packets.
#[derive(Debug, Clone, Copy)]
pub struct Impairment {
    /// Each packet is late by this.
    pub delay: Duration,
    /// And by up to this much more, evenly distributed, so packets overtake each other.
    pub jitter: Duration,
    /// The share of packets that is lost, 0 to 1.
    pub loss: f64,
    /// Bits per second; `None`: no limit.
    pub rate: Option<u64>,
    /// Bytes that wait for the rate; beyond: dropped.
    pub queue_bytes: u64,
    /// Loses everything.
    pub cut: bool,
    /// Loses the frames that carry data of sessions, and passes probes and all else.
    pub drops_data: bool,
}

impl Impairment {
    /// A perfect line.
    pub const NONE: Impairment = Impairment {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        rate: None,
        queue_bytes: 1024 * 1024,
        cut: false,
        drops_data: false,
    };

    /// A line that is perfect but long.
    pub const fn delayed(delay: Duration) -> Impairment {
        Impairment { delay, ..Self::NONE }
    }
}

/// What happened to packets, both directions together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent on.
    pub forwarded: u64,
    /// Lost by chance or by a cut.
    pub lost: u64,
    /// Dropped for the rate, or since too many waited.
    pub overflowed: u64,
}

/// A direction of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the target.
    Up,
    /// From the target to clients.
    Down,
}

struct Packet {
    due: Instant,
    order: u64,
    socket: Arc<UdpSocket>,
    to: Option<SocketAddr>,
    bytes: Vec<u8>,
}

impl PartialEq for Packet {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Packet {}
impl PartialOrd for Packet {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Packet {
    /// The greatest is the next to be sent: due first, then in order of arrival.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

struct State {
    rng: StdRng,
    up: Impairment,
    down: Impairment,
    /// When the rate of each direction lets the next packet go.
    free_at: [Instant; 2],
    waiting: BinaryHeap<Packet>,
    order: u64,
    counts: Counts,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn offer(
        &self,
        direction: Direction,
        socket: &Arc<UdpSocket>,
        to: Option<SocketAddr>,
        bytes: &[u8],
    ) {
        let now = Instant::now();
        let mut state = self.lock();
        let (line, side) = match direction {
            Direction::Up => (state.up, 0),
            Direction::Down => (state.down, 1),
        };
        let is_data = matches!(frame::parse(bytes), Some((FrameKind::Data, _)));
        let dropped = line.cut || (line.drops_data && is_data);
        if dropped || (line.loss > 0.0 && state.rng.random_bool(line.loss.min(1.0))) {
            state.counts.lost += 1;
            return;
        }
        let mut due = now;
        if let Some(rate) = line.rate {
            let start = state.free_at[side].max(now);
            let backlog = start.saturating_duration_since(now).as_secs_f64() * rate as f64 / 8.0;
            if backlog > line.queue_bytes as f64 {
                state.counts.overflowed += 1;
                return;
            }
            due = start + Duration::from_secs_f64(bytes.len() as f64 * 8.0 / rate as f64);
            state.free_at[side] = due;
        }
        due += line.delay;
        if !line.jitter.is_zero() {
            let share: f64 = state.rng.random();
            due += line.jitter.mul_f64(share);
        }
        if state.waiting.len() >= WAITING {
            state.counts.overflowed += 1;
            return;
        }
        let order = state.order;
        state.order += 1;
        let socket = Arc::clone(socket);
        state.waiting.push(Packet { due, order, socket, to, bytes: bytes.to_vec() });
        drop(state);
        self.changed.notify_one();
    }

    /// Sends packets when they are due, until the forwarder stops.
    fn send_due(&self) {
        let mut state = self.lock();
        while !self.stopped() {
            let now = Instant::now();
            let next = state.waiting.peek().map(|packet| packet.due);
            match next {
                Some(due) if due <= now => {
                    let Some(packet) = state.waiting.pop() else { continue };
                    state.counts.forwarded += 1;
                    drop(state);
                    // A full or closed socket loses the packet, as a network does.
                    let _ = match packet.to {
                        Some(to) => packet.socket.send_to(&packet.bytes, to),
                        None => packet.socket.send(&packet.bytes),
                    };
                    state = self.lock();
                }
                _ => {
                    let pause = next.map_or(TICK, |due| (due - now).min(TICK));
                    let waited = self.changed.wait_timeout(state, pause);
                    state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
                }
            }
        }
    }
}

/// A UDP forwarder with threads of its own. Clients keep apart: each gets an own port towards the target.
pub struct Forwarder {
    shared: Arc<Shared>,
    address: SocketAddr,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forwarder({})", self.address)
    }
}

impl Forwarder {
    /// Forwards what comes to `listen` to `target`, perfectly at first. Chance comes from `seed`.
    ///
    /// # Errors
    /// When `listen` cannot be bound.
    pub fn start(listen: SocketAddr, target: SocketAddr, seed: u64) -> io::Result<Forwarder> {
        let front = UdpSocket::bind(listen)?;
        prepare(&front)?;
        let front = Arc::new(front);
        let address = front.local_addr()?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                rng: StdRng::seed_from_u64(seed),
                up: Impairment::NONE,
                down: Impairment::NONE,
                free_at: [now; 2],
                waiting: BinaryHeap::new(),
                order: 0,
                counts: Counts::default(),
            }),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let sender = Arc::clone(&shared);
        let reader = Arc::clone(&shared);
        let threads = vec![
            std::thread::spawn(move || sender.send_due()),
            std::thread::spawn(move || receive_from_clients(&reader, &front, target)),
        ];
        Ok(Forwarder { shared, address, threads })
    }

    /// As [`Forwarder::start`], inside a namespace.
    ///
    /// # Errors
    /// When `listen` cannot be bound there.
    pub fn start_in(
        namespace: &Namespace,
        listen: SocketAddr,
        target: SocketAddr,
        seed: u64,
    ) -> io::Result<Forwarder> {
        // Threads inherit the namespace of the thread that starts them.
        namespace.enter(|| Forwarder::start(listen, target, seed))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What one direction does from here on; packets on their way are not touched.
    pub fn set(&self, direction: Direction, line: Impairment) {
        let mut state = self.shared.lock();
        match direction {
            Direction::Up => state.up = line,
            Direction::Down => state.down = line,
        }
    }

    /// Both directions alike.
    pub fn set_both(&self, line: Impairment) {
        self.set(Direction::Up, line);
        self.set(Direction::Down, line);
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn receive_from_clients(shared: &Arc<Shared>, front: &Arc<UdpSocket>, target: SocketAddr) {
    let mut upstream: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut threads = Vec::new();
    let mut buffer = vec![0; 65_536];
    while !shared.stopped() {
        let Ok((length, client)) = front.recv_from(&mut buffer) else { continue };
        if !upstream.contains_key(&client) {
            if upstream.len() >= CLIENTS {
                continue;
            }
            let Ok(socket) = open_upstream(target) else { continue };
            let (shared, front, inner) =
                (Arc::clone(shared), Arc::clone(front), Arc::clone(&socket));
            threads.push(std::thread::spawn(move || {
                receive_from_target(&shared, &front, &inner, client);
            }));
            upstream.insert(client, socket);
        }
        shared.offer(Direction::Up, &upstream[&client], None, &buffer[..length]);
    }
    for thread in threads {
        let _ = thread.join();
    }
}

fn open_upstream(target: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    prepare(&socket)?;
    Ok(Arc::new(socket))
}

/// Bursts wait in the line's own queue, not in the socket's: its buffer is as large as the system allows.
fn prepare(socket: &UdpSocket) -> io::Result<()> {
    socket2::SockRef::from(socket).set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.set_read_timeout(Some(TICK))
}

fn receive_from_target(
    shared: &Shared,
    front: &Arc<UdpSocket>,
    upstream: &UdpSocket,
    client: SocketAddr,
) {
    let mut buffer = vec![0; 65_536];
    while !shared.stopped() {
        if let Ok(length) = upstream.recv(&mut buffer) {
            shared.offer(Direction::Down, front, Some(client), &buffer[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::eventually;
    use crate::lab::programs::UdpEcho;
    use crate::lab::wait::SOON;

    fn line() -> (UdpEcho, Forwarder, UdpSocket) {
        let echo = UdpEcho::start("127.0.0.1:0".parse().unwrap());
        let forwarder =
            Forwarder::start("127.0.0.1:0".parse().unwrap(), echo.address(), 7).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(forwarder.address()).unwrap();
        client.set_read_timeout(Some(SOON)).unwrap();
        (echo, forwarder, client)
    }

    fn round(client: &UdpSocket, byte: u8) -> bool {
        let mut answer = [0; 8];
        client.send(&[byte]).unwrap();
        client.recv(&mut answer).is_ok_and(|n| answer[..n] == [byte])
    }

    #[test]
    fn a_line_delays_each_direction() {
        let (_echo, forwarder, client) = line();
        assert!(round(&client, 1));
        forwarder.set(Direction::Up, Impairment::delayed(Duration::from_millis(30)));
        forwarder.set(Direction::Down, Impairment::delayed(Duration::from_millis(50)));
        let start = Instant::now();
        assert!(round(&client, 2));
        assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
    }

    #[test]
    fn a_cut_direction_is_silent_and_the_other_goes_on() {
        let (echo, forwarder, client) = line();
        forwarder.set(Direction::Down, Impairment { cut: true, ..Impairment::NONE });
        client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        assert!(!round(&client, 1));
        eventually("the way up is whole and the way down is cut", SOON, || {
            match (echo.count(), forwarder.counts().lost) {
                (1, 1) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        forwarder.set_both(Impairment::NONE);
        client.set_read_timeout(Some(SOON)).unwrap();
        assert!(round(&client, 2));
        assert_eq!(forwarder.counts().lost, 1);
    }

    #[test]
    fn loss_and_rate_keep_what_they_promise() {
        let (_echo, forwarder, client) = line();
        forwarder.set(Direction::Up, Impairment { loss: 0.3, ..Impairment::NONE });
        forwarder.set(Direction::Down, Impairment { cut: true, ..Impairment::NONE });
        // In small batches, so that no socket's buffer overflows and what is lost is the line's doing: each
        // packet once, on its way up or, as an echo, on its way down.
        for batch in 1..=40 {
            for _ in 0..50 {
                client.send(&[1; 16]).unwrap();
            }
            eventually("the fate of all", SOON, || {
                let counts = forwarder.counts();
                if counts.lost == batch * 50 { Ok(()) } else { Err(format!("{counts:?}")) }
            });
        }
        // 600 of the way up and all 1,400 echoes of the way down; four standard deviations are 82.
        let up_lost = 2000 - forwarder.counts().forwarded as i64;
        assert!((518..=682).contains(&up_lost), "{:?}", forwarder.counts());

        let line = Impairment { rate: Some(800_000), queue_bytes: 10_000, ..Impairment::NONE };
        forwarder.set_both(line);
        let before = forwarder.counts();
        eventually("the queue is bounded", SOON, || {
            // Faster than the rate, unless this machine stands still between two of them.
            for _ in 0..100 {
                client.send(&[1; 1000]).unwrap();
            }
            let dropped = forwarder.counts().overflowed - before.overflowed;
            if dropped >= 80 { Ok(()) } else { Err(format!("{dropped}")) }
        });
    }
}
