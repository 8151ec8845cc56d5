//! A UDP hop in front of one target, with an address of its own: a test decides what comes back over it, and sends to
//! the target as if it were the client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon its threads notice that it is dropped.
const TICK: Duration = Duration::from_millis(50);

/// The hop, for one client. It ends when it is dropped.
#[derive(Debug)]
pub struct Middle {
    address: SocketAddr,
    upstream: Arc<UdpSocket>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Middle {
    /// Dials `target` from `from`. `passes` sees each datagram of the target, with the socket that leads to it, and
    /// says whether the client gets it.
    ///
    /// # Errors
    /// The system's.
    pub fn start(
        from: IpAddr,
        target: SocketAddr,
        mut passes: impl FnMut(&[u8], &UdpSocket) -> bool + Send + 'static,
    ) -> io::Result<Middle> {
        let front = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
        let upstream = Arc::new(UdpSocket::bind((from, 0))?);
        upstream.connect(target)?;
        front.set_read_timeout(Some(TICK))?;
        upstream.set_read_timeout(Some(TICK))?;
        let client: Arc<Mutex<Option<SocketAddr>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let address = front.local_addr()?;
        let there = {
            let (front, upstream) = (front.clone(), upstream.clone());
            let (client, stop) = (client.clone(), stop.clone());
            move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((n, from)) = front.recv_from(&mut buffer) else { continue };
                    *client.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
                    // What gets lost here is sent again.
                    let _ = upstream.send(&buffer[..n]);
                }
            }
        };
        let back = {
            let (upstream, stop) = (upstream.clone(), stop.clone());
            move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok(n) = upstream.recv(&mut buffer) else { continue };
                    let to = *client.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(to) = to
                        && passes(&buffer[..n], &upstream)
                    {
                        let _ = front.send_to(&buffer[..n], to);
                    }
                }
            }
        };
        let threads = vec![std::thread::spawn(there), std::thread::spawn(back)];
        Ok(Middle { address, upstream, stop, threads })
    }

    /// Where the client dials.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// To the target, from the hop's address.
    pub fn upstream(&self) -> &UdpSocket {
        &self.upstream
    }
}

impl Drop for Middle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
