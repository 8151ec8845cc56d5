//! One UDP socket with its offloads (GSO, GRO, ECN, packet info).

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use quinn::udp::{EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Wanted size of a socket's buffers in bytes. The kernel may give less (`net.core.rmem_max`, `wmem_max`).
pub const BUFFER_BYTES: usize = 4 * 1024 * 1024;

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

/// The largest IP packet that this machine can send towards `address`, in bytes; nothing is sent to learn it. `None`
/// where the system does not say.
pub fn mtu_towards(address: SocketAddr) -> Option<u16> {
    let address = super::canonical(address);
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(address).ok()?;
    let mtu = match address {
        SocketAddr::V4(_) => rustix::net::sockopt::ip_mtu(&socket),
        SocketAddr::V6(_) => rustix::net::sockopt::ipv6_mtu(&socket),
    };
    Some(u16::try_from(mtu.ok()?).unwrap_or(u16::MAX))
}

struct Registered(OwnedFd);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Has tokio watch a copy of the socket's descriptor.
fn watch(io: &UdpIo, interest: Interest) -> io::Result<AsyncFd<Registered>> {
    let copy = io.as_fd().try_clone_to_owned()?;
    // Deprecated since a caller may hand in a descriptor that dies early; this one is owned and private.
    #[allow(deprecated)]
    AsyncFd::with_interest(Registered(copy), interest)
}

/// A UDP socket for tasks of tokio.
///
/// The kernel tells of writability each time that a sent packet leaves its buffer, which would wake tokio some
/// ten thousand times a second for nothing. So that is watched only while a send did not fit.
pub struct AsyncUdp {
    io: Arc<UdpIo>,
    /// `None` where another thread reads the socket.
    readable: Option<AsyncFd<Registered>>,
    /// The last send did not fit.
    blocked: AtomicBool,
}

impl std::fmt::Debug for AsyncUdp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.io.fmt(f)
    }
}

impl AsyncUdp {
    /// A socket that tasks read and write; needs a running tokio.
    ///
    /// # Errors
    /// The system's.
    pub fn new(io: Arc<UdpIo>) -> io::Result<AsyncUdp> {
        let readable = Some(watch(&io, Interest::READABLE)?);
        Ok(AsyncUdp { io, readable, blocked: AtomicBool::new(false) })
    }

    /// A socket that tasks only write, and a thread of its own reads.
    pub fn write_only(io: Arc<UdpIo>) -> AsyncUdp {
        AsyncUdp { io, readable: None, blocked: AtomicBool::new(false) }
    }

    /// The socket.
    pub fn io(&self) -> &Arc<UdpIo> {
        &self.io
    }

    /// Receives, or has the task woken when something is there; never, on a socket that is only written.
    ///
    /// # Errors
    /// The system's.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let Some(readable) = &self.readable else { return Poll::Pending };
        loop {
            let mut guard = ready!(readable.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|_| self.io.recv(bufs, meta)) {
                return Poll::Ready(result);
            }
        }
    }

    /// Runs `send`; when it would block, [`AsyncUdp::poller`] waits.
    ///
    /// # Errors
    /// What `send` gives.
    pub fn try_send(&self, send: impl FnOnce(&UdpIo) -> io::Result<()>) -> io::Result<()> {
        let result = send(&self.io);
        if matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.blocked.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Waits for writability on behalf of one task.
    pub fn poller(self: Arc<Self>) -> Pin<Box<dyn quinn::UdpPoller>> {
        Box::pin(Poller { socket: self, writable: None })
    }
}

struct Poller {
    socket: Arc<AsyncUdp>,
    /// There while a send did not fit.
    writable: Option<AsyncFd<Registered>>,
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Poller")
    }
}

impl quinn::UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.socket.blocked.load(Ordering::Relaxed) {
            this.writable = None;
            return Poll::Ready(Ok(()));
        }
        let writable = match &this.writable {
            Some(writable) => writable,
            // Where the socket is writable by now, its registration says so at once.
            None => match watch(&this.socket.io, Interest::WRITABLE) {
                Ok(writable) => this.writable.insert(writable),
                // Out of files. quinn would end the connection on an error.
                Err(_) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            },
        };
        let _ = ready!(writable.poll_write_ready(cx))?;
        this.writable = None;
        this.socket.blocked.store(false, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_takes_more_than_an_ethernet() {
        for address in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            let mtu = mtu_towards(address.parse().unwrap());
            // A machine may have no IPv6.
            assert!(mtu.is_none_or(|mtu| mtu > 1_500), "{address}: {mtu:?}");
        }
        assert!(mtu_towards("127.0.0.1:1".parse().unwrap()).is_some());
    }
}
