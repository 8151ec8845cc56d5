//! The local ends of what sessions carry: TCP keep-alive, and why a service cannot be reached.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tasuki_proto::{Refusal, RefusalCode};
use tokio::net::{TcpStream, UdpSocket};

use super::reached::Reached;
use super::vanished::{Watch, Watchdog};
use crate::config::Endpoint;

/// Silence after which a TCP connection is asked whether its other end is still there, unless configured.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Questions without an answer after which the connection ends.
const PROBES: u32 = 6;
/// The pause between two questions is this part of the silence before the first.
const INTERVALS: u32 = 4;

/// TCP keep-alive at local connections, so that one whose other end vanished does not stay.
///
/// It asks at silent connections. Those with data under way are watched for as long (`vanished.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive(Option<Periods>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Periods {
    time: Duration,
    interval: Duration,
    probes: u32,
}

impl KeepAlive {
    /// As configured: the silence before the first question, zero for no questions at all. When nothing is configured a
    /// minute, or what the system's settings say when that is less.
    pub fn new(configured: Option<Duration>) -> Self {
        match configured {
            Some(time) if time.is_zero() => Self(None),
            Some(time) => Self(Some(Periods::of(time))),
            None => Self(Some(Periods::of(KEEP_ALIVE).at_most(Periods::of_system()))),
        }
    }

    /// The time after which a connection without any answer ends.
    pub(crate) fn limit(self) -> Option<Duration> {
        self.0.map(|Periods { time, interval, probes }| time + interval * probes)
    }

    fn apply(self, tcp: &TcpStream) {
        let Some(Periods { time, interval, probes }) = self.0 else { return };
        let keep_alive = TcpKeepalive::new().with_time(time).with_interval(interval);
        if let Err(error) = SockRef::from(tcp).set_tcp_keepalive(&keep_alive.with_retries(probes)) {
            tracing::debug!(%error, "no TCP keep-alive");
        }
    }
}

impl Periods {
    fn of(time: Duration) -> Self {
        let interval = (time / INTERVALS).max(Duration::from_secs(1));
        Self { time, interval, probes: PROBES }
    }

    /// Those of the system, which a fresh socket has; `None` where it does not say.
    fn of_system() -> Option<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).ok()?;
        Some(Self {
            time: socket.tcp_keepalive_time().ok()?,
            interval: socket.tcp_keepalive_interval().ok()?,
            probes: socket.tcp_keepalive_retries().ok()?,
        })
    }

    /// These, or those of the system where they are shorter.
    fn at_most(self, system: Option<Self>) -> Self {
        let Some(system) = system else { return self };
        let second = Duration::from_secs(1);
        Self {
            time: self.time.min(system.time.max(second)),
            interval: self.interval.min(system.interval.max(second)),
            probes: self.probes.min(system.probes.max(1)),
        }
    }
}

/// What the local ends of all sessions have in common.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    keep_alive: KeepAlive,
    watchdog: Arc<Watchdog>,
    reached: Arc<Reached>,
}

impl Ends {
    pub(crate) fn new(keep_alive: KeepAlive, reached: Arc<Reached>) -> Self {
        Self { keep_alive, watchdog: Watchdog::new(keep_alive.limit()), reached }
    }

    /// Takes care that a connection ends some time after its other end vanished.
    pub(crate) fn watch(&self, tcp: &TcpStream) -> Watch {
        self.keep_alive.apply(tcp);
        self.watchdog.watch(tcp)
    }

    /// Why the service at `endpoint` was not reached, for the terminal that asked for it. What is wrong with this machine
    /// is logged here.
    pub(crate) fn refusal(&self, endpoint: &Endpoint, error: &io::Error) -> Refusal {
        let detail = match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => self.out_of_files(endpoint, error),
            // A name is looked up with files too, and what fails then is the look-up.
            None if is_out_of_files() => self.out_of_files(endpoint, error),
            Some(libc::EADDRNOTAVAIL) => "no local port is left there".to_owned(),
            Some(libc::ENOBUFS | libc::ENOMEM) => "the system there is out of memory".to_owned(),
            _ => error.kind().to_string(),
        };
        tracing::debug!(%endpoint, %error, "the service cannot be reached");
        Refusal::new(RefusalCode::ServiceDown, detail)
    }

    /// As [`Ends::refusal`], for a service that was not reached without an error of the system: a look-up fails too when no
    /// open file is left.
    pub(crate) fn refusal_in_words(&self, endpoint: &Endpoint, why: &'static str) -> Refusal {
        let detail = if is_out_of_files() {
            self.out_of_files(endpoint, &io::Error::from_raw_os_error(libc::EMFILE))
        } else {
            why.to_owned()
        };
        Refusal::new(RefusalCode::ServiceDown, detail)
    }

    fn out_of_files(&self, endpoint: &Endpoint, error: &io::Error) -> String {
        if let Some(count) = self.reached.out_of_files.reach() {
            tracing::warn!(
                limit = "RLIMIT_NOFILE", %endpoint, %error, count,
                "out of open files: connections to a service could not be made; raise the limit \
                 (ulimit -n, LimitNOFILE)"
            );
        }
        "the agent there is out of open files (RLIMIT_NOFILE)".to_owned()
    }
}

fn is_out_of_files() -> bool {
    std::fs::File::open("/dev/null").is_err_and(|error| is_file_limit(&error))
}

/// How many datagrams the kernel dropped at this socket, since it was full; `None` where the kernel does not say.
pub(crate) fn overruns(socket: &UdpSocket) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
    ["/proc/self/net/udp", "/proc/self/net/udp6"].into_iter().find_map(|table| {
        let table = std::fs::read_to_string(table).ok()?;
        drops_of(&table, &inode)
    })
}

/// The last column of the socket's line (`Documentation/networking/proc_net_tcp.rst` has the first ones).
fn drops_of(table: &str, inode: &str) -> Option<u64> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|fields| fields.get(9) == Some(&inode))?;
    line.get(12)?.parse().ok()
}

/// Whether this process or the system has no open files left.
pub(crate) fn is_file_limit(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_of_ours_and_the_systems_counts() {
        let ours = Periods::of(KEEP_ALIVE);
        assert_eq!(ours.interval, Duration::from_secs(15));
        let of = |time, interval, probes| {
            let [time, interval] = [time, interval].map(Duration::from_secs);
            Some(Periods { time, interval, probes })
        };
        assert_eq!(ours.at_most(of(7_200, 75, 9)), ours);
        assert_eq!(ours.at_most(None), ours);
        assert_eq!(Some(ours.at_most(of(5, 2, 3))), of(5, 2, 3));
        assert_eq!(Some(ours.at_most(of(0, 0, 0))), of(1, 1, 1));
        assert!(Periods::of_system().is_some(), "a fresh socket says what the system's are");
    }

    #[tokio::test]
    async fn it_is_set_at_the_socket() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        KeepAlive::new(Some(Duration::ZERO)).apply(&tcp);
        let socket = SockRef::from(&tcp);
        assert!(!socket.keepalive().unwrap());
        KeepAlive::new(Some(Duration::from_secs(40))).apply(&tcp);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(40));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
    }

    #[tokio::test]
    async fn what_the_kernel_drops_is_known() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(overruns(&socket), Some(0));
        SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        assert!(overruns(&socket) > Some(50), "{:?}", overruns(&socket));
    }

    #[test]
    fn the_refusal_names_what_ran_out() {
        let ends = Ends::new(KeepAlive::new(None), Arc::default());
        let endpoint: Endpoint = "tcp://127.0.0.1:22".parse().unwrap();
        let refusal = ends.refusal(&endpoint, &io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(refusal.code, RefusalCode::ServiceDown);
        assert!(refusal.detail.contains("RLIMIT_NOFILE"), "{refusal}");
        assert_eq!(ends.reached.out_of_files.count(), 1);
        let refusal = ends.refusal(&endpoint, &io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refusal.detail, "connection refused");
    }
}
