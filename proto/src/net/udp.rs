//! One UDP socket with its offloads (GSO, GRO, ECN, packet info).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Wanted size of a socket's buffers in bytes. The kernel may give less (`net.core.rmem_max`, `wmem_max`).
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A UDP socket. Non-blocking; any number of threads may send on it.
#[derive(Debug)]
pub struct UdpIo {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl UdpIo {
    /// Binds to `address`. `[::]` takes IPv4 too, and falls back to `0.0.0.0` on a machine without IPv6. With
    /// `shared`, several sockets may bind to the same address and the kernel spreads remote addresses over them.
    ///
    /// # Errors
    /// The system's, with the address in its text.
    pub fn bind(address: SocketAddr, shared: bool) -> io::Result<UdpIo> {
        let bound = Self::bind_exactly(address, shared).or_else(|error| {
            let no_v6 =
                matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL));
            if address.is_ipv6() && address.ip().is_unspecified() && no_v6 {
                let fallback = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                Self::bind_exactly(fallback, shared)
            } else {
                Err(error)
            }
        });
        bound.map_err(|error| io::Error::new(error.kind(), format!("UDP {address}: {error}")))
    }

    fn bind_exactly(address: SocketAddr, shared: bool) -> io::Result<UdpIo> {
        use socket2::{Domain, Protocol, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if shared {
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        // Best effort: a smaller buffer works too, and is warned about.
        let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
        let _ = socket.set_send_buffer_size(BUFFER_BYTES);
        socket.bind(&address.into())?;
        // The kernel reports twice what it will use for data.
        let receive = socket.recv_buffer_size()? / 2;
        if receive < BUFFER_BYTES {
            tracing::warn!(
                wanted = BUFFER_BYTES,
                got = receive,
                "small UDP receive buffer: raise net.core.rmem_max for full speed"
            );
        }
        let socket = UdpSocket::from(socket);
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        Ok(UdpIo { socket, state })
    }

    /// The address it is bound to.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// How many datagrams the kernel may join in one receive.
    pub fn gro_segments(&self) -> usize {
        self.state.gro_segments()
    }

    /// How many datagrams one send may carry.
    pub fn gso_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Receives up to as many batches as there are buffers.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; the system's otherwise.
    pub fn recv(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<usize> {
        self.state.recv(UdpSockRef::from(&self.socket), bufs, meta)
    }

    /// Sends `contents`, in datagrams of `segment` bytes where given (the last may be shorter), from the local
    /// address `source` where given.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; the system's otherwise (RFC 768 has no acknowledgement: an
    /// error tells about this send or an earlier one to the same address).
    pub fn send(
        &self,
        destination: SocketAddr,
        source: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
        contents: &[u8],
        segment: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit {
            destination,
            ecn,
            contents,
            segment_size: segment.filter(|&size| size < contents.len()),
            src_ip: source,
        };
        self.state.try_send(UdpSockRef::from(&self.socket), &transmit)
    }

    /// Sends what quinn wants to send.
    ///
    /// # Errors
    /// Only `WouldBlock`: quinn ends the connection on any other error, so these count as lost packets.
    pub fn send_for_quinn(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.try_send(UdpSockRef::from(&self.socket), transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until the socket is readable or `timeout` is over; for a thread of its own.
    ///
    /// # Errors
    /// The system's.
    pub fn wait_readable(&self, timeout: std::time::Duration) -> io::Result<bool> {
        let mut fds = [rustix::event::PollFd::new(&self.socket, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for UdpIo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

struct Registered(OwnedFd);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// What tokio shall wake for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// Another thread reads the socket.
    Writable,
    /// Reads and writes.
    Both,
}

/// A UDP socket that tokio watches.
pub struct AsyncUdp {
    io: Arc<UdpIo>,
    fd: AsyncFd<Registered>,
}

impl std::fmt::Debug for AsyncUdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.io.fmt(f)
    }
}

impl AsyncUdp {
    /// Registers the socket with the running tokio.
    ///
    /// # Errors
    /// The system's.
    pub fn new(io: Arc<UdpIo>, wake: Wake) -> io::Result<AsyncUdp> {
        let copy = io.as_fd().try_clone_to_owned()?;
        let interest = match wake {
            Wake::Writable => Interest::WRITABLE,
            Wake::Both => Interest::READABLE | Interest::WRITABLE,
        };
        // Deprecated since a caller may hand in a descriptor that dies early; this one is owned and private.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(Registered(copy), interest)?;
        Ok(AsyncUdp { io, fd })
    }

    /// The socket.
    pub fn io(&self) -> &Arc<UdpIo> {
        &self.io
    }

    /// Receives, or has the task woken when something is there.
    ///
    /// # Errors
    /// The system's.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|_| self.io.recv(bufs, meta)) {
                return Poll::Ready(result);
            }
        }
    }

    /// Runs `send`; when it would block, readiness is cleared so that [`AsyncUdp::poller`] waits.
    ///
    /// # Errors
    /// What `send` gives.
    pub fn try_send(&self, send: impl FnOnce(&UdpIo) -> io::Result<()>) -> io::Result<()> {
        match send(&self.io) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.fd.try_io(Interest::WRITABLE, |_| Err(error))
            }
            result => result,
        }
    }

    /// Waits for writability on behalf of one quinn connection.
    pub fn poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(Poller { socket: self, waiting: None })
    }
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

struct Poller {
    socket: Arc<AsyncUdp>,
    waiting: Option<Writable>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poller")
    }
}

impl quinn::UdpPoller for Poller {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this.waiting.get_or_insert_with(|| {
            let socket = this.socket.clone();
            Box::pin(async move { socket.fd.writable().await.map(|_| ()) })
        });
        let result = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(result)
    }
}
