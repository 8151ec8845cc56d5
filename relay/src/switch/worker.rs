//! The threads of the switch: one a socket, apart from tokio.
#![allow(clippy::disallowed_methods, reason = "the switch's threads read the clock")]

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quinn::udp::{BATCH_SIZE, EcnCodepoint, RecvMeta};
use tasuki_proto::Label;
use tasuki_proto::net::{CidClass, EndpointKeys, Inbox, Packet, UdpIo, run_in_batches};

use super::forward::{Batch, Drops, Forwarder, Sink, Traffic};
use super::neighbour::{Address, Neighbour};
use super::table::Table;

/// The largest batch that the kernel joins, in bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// The threads of the switch come before others by so many steps of niceness (sched(7)): each is worth five times a thread
/// that is not, where processors are short.
const AHEAD: i32 = 7;
/// How often a thread looks whether it shall end and whether a hint is due.
const TICK: Duration = Duration::from_millis(50);

/// Hears of the handle of a neighbour that moved, and where to.
pub type Moved = Arc<dyn Fn(Label, SocketAddr) + Send + Sync>;

/// A running switch.
#[derive(Debug)]
pub struct Switch {
    /// What the core programs.
    pub table: Arc<Table>,
    /// What was dropped.
    pub drops: Arc<Drops>,
    /// Packets for the endpoint of links.
    pub links: Arc<Inbox>,
    /// Packets for the endpoint of terminals.
    pub terminals: Arc<Inbox>,
    sockets: Vec<Arc<UdpIo>>,
    traffic: Vec<Arc<Traffic>>,
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Switch {
    /// Binds `threads` sockets to `listen` and starts a thread on each. `secret` makes cookies, and
    /// `keys` are those of the relay's endpoints. `moved` hears of neighbours that proved to be elsewhere; it must not
    /// wait.
    ///
    /// # Errors
    /// The system's, with the address in its text.
    pub fn start(
        listen: SocketAddr,
        threads: usize,
        (secret, keys): (&[u8; 32], &EndpointKeys),
        moved: Moved,
    ) -> io::Result<Switch> {
        // Alone first: a shared port would silently be shared with another process too.
        let mut sockets = vec![Arc::new(UdpIo::bind(listen, false)?)];
        if threads > 1 {
            let address = sockets[0].local_addr()?;
            sockets.clear();
            for _ in 0..threads {
                sockets.push(Arc::new(UdpIo::bind(address, true)?));
            }
        }
        let mut switch = Switch {
            table: Arc::default(),
            drops: Arc::default(),
            links: Arc::new(Inbox::listening(CidClass::Links, keys)),
            terminals: Arc::new(Inbox::listening(CidClass::Terminals, keys)),
            sockets,
            traffic: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for (number, socket) in switch.sockets.iter().enumerate() {
            let worker = Worker {
                forwarder: Forwarder::new(switch.table.clone(), switch.drops.clone(), secret),
                out: Out {
                    socket: socket.clone(),
                    drops: switch.drops.clone(),
                    links: switch.links.clone(),
                    terminals: switch.terminals.clone(),
                    moved: moved.clone(),
                },
                stop: switch.stop.clone(),
                challenges_hints: number == 0,
            };
            switch.traffic.push(worker.forwarder.traffic().clone());
            let name = format!("switch-{number}");
            switch.threads.push(std::thread::Builder::new().name(name).spawn(|| worker.run())?);
        }
        Ok(switch)
    }

    /// What was forwarded since the start: packets and bytes towards callees, and towards callers.
    pub fn traffic(&self) -> [(u64, u64); 2] {
        let threads = self.traffic.iter().map(|thread| thread.read());
        threads.fold([(0, 0); 2], |sum, one| {
            [0, 1].map(|at| (sum[at].0 + one[at].0, sum[at].1 + one[at].1))
        })
    }

    /// The socket that the relay's own endpoints send on.
    pub fn socket(&self) -> &Arc<UdpIo> {
        &self.sockets[0]
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Worker {
    forwarder: Forwarder,
    out: Out,
    stop: Arc<AtomicBool>,
    challenges_hints: bool,
}

impl Worker {
    fn run(mut self) {
        // Packets wait for no log-in, no gossip and no question of an admin. Who may not do that goes with the others.
        let own = rustix::process::getpriority_process(None).unwrap_or_default();
        let _ = rustix::process::setpriority_process(None, own - AHEAD);
        // But each packet for itself would be the dearest way to forward them.
        run_in_batches();
        let started = Instant::now();
        let mut storage = vec![0_u8; BATCH_BYTES * BATCH_SIZE];
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        let mut next_tick = started;
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            // 0 stands for "never".
            let now_ms = now.duration_since(started).as_millis() as u64 + 1;
            if now >= next_tick {
                next_tick = now + TICK;
                if self.challenges_hints {
                    self.forwarder.challenge_hints(now_ms, &mut self.out);
                }
            }
            match self.receive(&mut storage, &mut meta) {
                Ok(count) => {
                    let buffers = storage.chunks_mut(BATCH_BYTES);
                    for (buffer, meta) in buffers.zip(&meta[..count]) {
                        let mut batch = Batch {
                            source: Address { remote: meta.addr, local: meta.dst_ip },
                            ecn: meta.ecn,
                            bytes: &mut buffer[..meta.len],
                            stride: meta.stride,
                        };
                        self.forwarder.handle(&mut batch, now_ms, &mut self.out);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = self.out.socket.wait_readable(TICK);
                }
                // An error of an earlier send, told by ICMP; the neighbour's silence will show.
                Err(_) => {}
            }
        }
    }

    fn receive(&self, storage: &mut [u8], meta: &mut [RecvMeta]) -> io::Result<usize> {
        let mut chunks = storage.chunks_mut(BATCH_BYTES);
        let mut buffers: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        self.out.socket.recv(&mut buffers, meta)
    }
}

struct Out {
    socket: Arc<UdpIo>,
    drops: Arc<Drops>,
    links: Arc<Inbox>,
    terminals: Arc<Inbox>,
    moved: Moved,
}

impl Sink for Out {
    fn forward(
        &mut self,
        to: &Arc<Neighbour>,
        at: Address,
        ecn: Option<EcnCodepoint>,
        frames: &[u8],
        stride: usize,
    ) {
        let mut refused = false;
        if frames.len() > stride && !to.sends_one_by_one() {
            match self.socket.send(at.remote, at.local, ecn, frames, Some(stride)) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Drops::add(&self.drops.send_full, frames.len().div_ceil(stride));
                    return;
                }
                Err(_) => refused = true,
            }
        }
        for datagram in frames.chunks(stride) {
            match self.socket.send(at.remote, at.local, ecn, datagram, None) {
                // Joined they were refused, alone they are not. Judged per destination: other neighbours keep
                // segmented sends. Where both are refused, the frames are too long for the way.
                Ok(()) if refused => to.set_one_by_one(),
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Drops::add(&self.drops.send_full, 1);
                }
                Err(_) => Drops::add(&self.drops.send_error, 1),
            }
        }
    }

    fn reply(&mut self, to: Address, frame: &[u8]) {
        if self.socket.send(to.remote, to.local, None, frame, None).is_err() {
            Drops::add(&self.drops.send_error, 1);
        }
    }

    fn moved(&mut self, neighbour: &Arc<Neighbour>, to: Address) {
        (self.moved)(neighbour.handle(), to.remote);
    }

    fn own(&mut self, class: CidClass, from: Address, ecn: Option<EcnCodepoint>, packet: &[u8]) {
        let inbox = match class {
            CidClass::Links => &self.links,
            CidClass::Terminals => &self.terminals,
        };
        inbox.push(Packet { source: from.remote, local: from.local, ecn, bytes: packet.into() });
    }
}
