//! The local ends of what sessions carry: why a service cannot be reached, and what the kernel drops.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use tasuki_proto::{Refusal, RefusalCode};
use tokio::net::UdpSocket;

use super::reached::Reached;
use crate::config::Endpoint;

/// What the local ends of all sessions have in common.
#[derive(Debug, Clone)]
pub(crate) struct Ends {
    reached: Arc<Reached>,
}

impl Ends {
    pub(crate) fn new(reached: Arc<Reached>) -> Self {
        Self { reached }
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

    #[tokio::test]
    async fn what_the_kernel_drops_is_known() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        assert_eq!(overruns(&socket), Some(0));
        socket2::SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        assert!(overruns(&socket) > Some(50), "{:?}", overruns(&socket));
    }

    #[test]
    fn the_refusal_names_what_ran_out() {
        let ends = Ends::new(Arc::default());
        let endpoint: Endpoint = "tcp://127.0.0.1:22".parse().unwrap();
        let refusal = ends.refusal(&endpoint, &io::Error::from_raw_os_error(libc::EMFILE));
        assert_eq!(refusal.code, RefusalCode::ServiceDown);
        assert!(refusal.detail.contains("RLIMIT_NOFILE"), "{refusal}");
        assert_eq!(ends.reached.out_of_files.count(), 1);
        let refusal = ends.refusal(&endpoint, &io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refusal.detail, "connection refused");
    }
}
