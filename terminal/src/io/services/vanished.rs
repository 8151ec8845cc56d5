//! TCP connections whose other end vanished while data was under way.
//!
//! TCP keep-alive finds out about silent connections only. With data under way the kernel sends it again, and gives up after
//! a quarter of an hour. A time-out for data that is not acknowledged (`TCP_USER_TIMEOUT`) would be sooner, but Linux
//! applies it also to a program that reads nothing for a while, whose kernel answers all the time. So this looks at the
//! kernel's table of sockets: at what was sent again and was not answered at all.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::core::unanswered::Unanswered;

/// How often it is looked, as a part of the time after which a connection ends.
const LOOKS: u32 = 5;
const LOOK: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// What was sent again at least so often is on its way for longer than any usual loss takes.
const SENT_AGAIN: u32 = 2;

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, (Arc<Notify>, Unanswered)>,
    is_watched: bool,
}

/// The connections that are watched. One task looks at all of them, as long as there are any.
#[derive(Debug)]
pub(crate) struct Watchdog {
    limit: Option<Duration>,
    table: Mutex<Table>,
}

/// A connection that is watched until this is dropped.
#[derive(Debug)]
pub(crate) struct Watch(Option<(Arc<Watchdog>, u64, Arc<Notify>)>);

impl Watch {
    /// Waits until the other end has not answered for too long.
    pub(crate) async fn vanished(&self) {
        match &self.0 {
            Some((_, _, vanished)) => vanished.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((watchdog, inode, _)) = &self.0 {
            watchdog.lock().connections.remove(inode);
        }
    }
}

impl Watchdog {
    /// Connections end after so much time without an answer; `None`: never.
    pub(crate) fn new(limit: Option<Duration>) -> Arc<Self> {
        Arc::new(Self { limit, table: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a connection.
    pub(crate) fn watch(self: &Arc<Self>, tcp: &TcpStream) -> Watch {
        let (Some(limit), Some(inode)) = (self.limit, inode_of(tcp)) else { return Watch(None) };
        let vanished = Arc::new(Notify::new());
        let mut table = self.lock();
        table.connections.insert(inode, (vanished.clone(), Unanswered::default()));
        if !std::mem::replace(&mut table.is_watched, true) {
            tokio::spawn(look_again_and_again(Arc::downgrade(self), limit));
        }
        Watch(Some((self.clone(), inode, vanished)))
    }

    /// Looks once. Returns whether there is anything to look at later.
    fn look(&self, limit: Duration) -> bool {
        let sockets = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
            .map(|table| std::fs::read_to_string(table).unwrap_or_default());
        let unanswered: Vec<u64> = sockets.iter().flat_map(|table| unanswered(table)).collect();
        let now = Instant::now();
        let mut table = self.lock();
        for (inode, (vanished, seen)) in &mut table.connections {
            if seen.handle(unanswered.contains(inode), limit, now) {
                vanished.notify_one();
            }
        }
        table.is_watched = !table.connections.is_empty();
        table.is_watched
    }
}

async fn look_again_and_again(watchdog: Weak<Watchdog>, limit: Duration) {
    let pause = (limit / LOOKS).clamp(*LOOK.start(), *LOOK.end());
    loop {
        tokio::time::sleep(pause).await;
        let Some(watchdog) = watchdog.upgrade() else { return };
        // A machine with very many sockets takes a while for its table.
        let look = tokio::task::spawn_blocking(move || watchdog.look(limit));
        if !matches!(look.await, Ok(true)) {
            return;
        }
    }
}

fn inode_of(socket: &impl AsRawFd) -> Option<u64> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).ok()?;
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The inodes of sockets that sent something again and got no answer (`Documentation/networking/proc_net_tcp.rst`): data, or
/// questions for room at a peer that had none. The count goes back to 0 with each answer.
fn unanswered(table: &str) -> impl Iterator<Item = u64> {
    table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (timer, _) = fields.get(5)?.split_once(':')?;
        let sent_again = match timer {
            "01" => u32::from_str_radix(fields.get(6)?, 16).ok()?,
            "04" => fields.get(8)?.parse().ok()?,
            _ => return None,
        };
        if sent_again < SENT_AGAIN {
            return None;
        }
        fields.get(9)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_understood() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1C20 0100007F:A1B2 01 00000400:00000000 01:00000014 00000009     0        0 101 2 0 20 4 30 10 -1\n\
             1: 0100007F:1C20 0100007F:A1B3 01 00000400:00000000 01:00000014 00000001     0        0 102 2 0 20 4 30 10 -1\n\
             2: 0100007F:1C20 0100007F:A1B4 01 00000400:00000000 04:00000014 00000000     0        0 103 2 0 20 4 30 10 -1\n\
             3: 0100007F:1C20 0100007F:A1B5 01 00000400:00000000 04:00000014 00000000     0        3 104 2 0 20 4 30 10 -1\n\
             4: 0100007F:1C20 0100007F:A1B6 01 00000000:00000000 02:00000014 00000000     0        0 105 2 0 20 4 30 10 -1\n\
             5: short\n";
        assert_eq!(unanswered(table).collect::<Vec<_>>(), [101, 104]);
    }

    #[tokio::test]
    async fn a_program_that_reads_nothing_has_not_vanished() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (_still, _) = listener.accept().await.unwrap();
        let watchdog = Watchdog::new(Some(Duration::from_secs(2)));
        let watch = watchdog.watch(&tcp);
        // Fills all buffers, so that the kernel asks for room.
        while tcp.try_write(&[0; 64 * 1024]).is_ok() {}
        let vanished = tokio::time::timeout(Duration::from_secs(5), watch.vanished()).await;
        assert!(vanished.is_err(), "its kernel answers");
        drop(watch);
        assert!(watchdog.lock().connections.is_empty());
    }
}
