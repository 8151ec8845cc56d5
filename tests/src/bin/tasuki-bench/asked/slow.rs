//! Slow clients of the status endpoint: they take its connections and hold what the relay keeps for each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tasuki_proto::limits;

use super::Named;

/// A client that types or sips moves one byte each time.
const TICK: Duration = Duration::from_millis(100);
/// From the end of a connection until its client opens another one.
const AGAIN: Duration = Duration::from_secs(1);
/// For a connection on loopback. All clients share a thread, so it is short.
const CONNECT: Duration = Duration::from_millis(200);
/// A client that hardly reads does not see that it was cut: the end waits behind what it did not read. It reads all when
/// the relay has had the time to cut it.
const LOOKS: Duration = limits::HTTP_STALL_TIME.saturating_add(Duration::from_secs(5));
/// Questions of a connection whose answers are not read: more than kernels hold for both ends.
const AT_ONCE: usize = 32;
/// A request whose header has no end: what follows are letters.
const ENDLESS: &[u8] = b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: ";
const PAGE: &str = "GET /api/v1/terminals?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
const EVENTS: &str = "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// In which way a client is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Habit {
    /// Sends a request without an end, byte by byte.
    Types,
    /// Asks for the largest pages and reads byte by byte.
    Sips,
    /// Asks for as much and reads nothing.
    Stares,
    /// Opens a stream of events and reads byte by byte.
    Watches,
}

const HABITS: [Habit; 4] = [Habit::Types, Habit::Sips, Habit::Stares, Habit::Watches];

/// What came of all connections.
#[derive(Debug, Default)]
struct Seen {
    ticks: usize,
    /// Connections that were open, summed over the ticks.
    open: usize,
    opened: usize,
    closed: usize,
    refused: usize,
}

/// Keeps so many connections busy until it is over, a quarter of them with each habit; how many were open on average,
/// and how many the relay took, closed and refused.
pub(super) fn dawdle(api: SocketAddr, clients: usize, over: &AtomicBool) -> Named {
    let mut clients: Vec<Client> =
        HABITS.into_iter().cycle().take(clients).map(Client::new).collect();
    let (mut seen, begun) = (Seen::default(), Instant::now());
    while !over.load(Ordering::Relaxed) {
        for client in &mut clients {
            client.tick(api, &mut seen);
        }
        seen.ticks += 1;
        seen.open += clients.iter().filter(|client| client.stream.is_some()).count();
        std::thread::sleep((TICK * seen.ticks as u32).saturating_sub(begun.elapsed()));
    }
    vec![
        ("connections", seen.open as f64 / seen.ticks.max(1) as f64),
        ("opened_connections", seen.opened as f64),
        ("closed_connections", seen.closed as f64),
        ("refused_connections", seen.refused as f64),
    ]
}

/// One client, which has a connection or waits until it opens the next.
struct Client {
    habit: Habit,
    stream: Option<TcpStream>,
    /// When its connection began, or ended.
    since: Option<Instant>,
    typed: usize,
}

impl Client {
    fn new(habit: Habit) -> Client {
        Client { habit, stream: None, since: None, typed: 0 }
    }

    fn age(&self) -> Duration {
        self.since.map_or(Duration::MAX, |since| since.elapsed())
    }

    fn tick(&mut self, api: SocketAddr, seen: &mut Seen) {
        if let Some(stream) = self.stream.take() {
            match self.go_on(&stream) {
                Ok(()) => self.stream = Some(stream),
                Err(_) => {
                    seen.closed += 1;
                    self.since = Some(Instant::now());
                }
            }
        } else if self.age() >= AGAIN {
            self.stream = self.open(api).ok();
            self.since = Some(Instant::now());
            let count = if self.stream.is_some() { &mut seen.opened } else { &mut seen.refused };
            *count += 1;
        }
    }

    fn open(&mut self, api: SocketAddr) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&api, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.typed = 0;
        match self.habit {
            Habit::Types => {}
            Habit::Sips | Habit::Stares => stream.write_all(PAGE.repeat(AT_ONCE).as_bytes())?,
            Habit::Watches => stream.write_all(EVENTS.as_bytes())?,
        }
        Ok(stream)
    }

    /// Does what it does each time; an error when the relay has closed the connection.
    fn go_on(&mut self, stream: &TcpStream) -> std::io::Result<()> {
        match self.habit {
            Habit::Types => {
                let byte = ENDLESS.get(self.typed).copied().unwrap_or(b'a');
                self.typed += again_later((&mut &*stream).write(&[byte]))?.unwrap_or(0);
                // Only an end comes, perhaps after a word about it.
                read(stream, 4096)
            }
            Habit::Sips | Habit::Stares if self.age() > LOOKS => read(stream, 1 << 20),
            Habit::Sips | Habit::Watches => read(stream, 1),
            Habit::Stares => Ok(()),
        }
    }
}

/// Reads at most so many bytes, where some are there; an error at the end of the stream.
fn read(mut stream: &TcpStream, most: usize) -> std::io::Result<()> {
    match again_later(stream.read(&mut vec![0; most]))? {
        Some(0) => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// `None` where the stream would have to be waited for.
fn again_later(done: std::io::Result<usize>) -> std::io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn a_client_that_was_cut_comes_again_but_not_at_once() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let api = listener.local_addr().unwrap();
        let (mut client, mut seen) = (Client::new(Habit::Watches), Seen::default());
        client.tick(api, &mut seen);
        assert_eq!((seen.opened, seen.closed, client.stream.is_some()), (1, 0, true));
        drop(listener.accept().unwrap());
        let begun = Instant::now();
        while client.stream.is_some() {
            assert!(begun.elapsed() < Duration::from_secs(20), "the end is not seen");
            client.tick(api, &mut seen);
        }
        client.tick(api, &mut seen);
        assert_eq!((seen.opened, seen.closed, client.stream.is_some()), (1, 1, false));
        client.since = client.since.and_then(|since| since.checked_sub(AGAIN));
        client.tick(api, &mut seen);
        assert_eq!((seen.opened, seen.closed, client.stream.is_some()), (2, 1, true));
        drop(listener);
        (client.stream, client.since) = (None, None);
        client.tick(api, &mut seen);
        assert_eq!((seen.opened, seen.refused), (2, 1));
    }
}
