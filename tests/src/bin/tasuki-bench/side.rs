//! A side of a comparison: a tunnel that leads to the callee's services.

use std::any::Any;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use tasuki_tests::lab::wait::SOON;

use crate::site::Site;

/// For one connection or one answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// A running tunnel.
pub(crate) struct Side {
    /// Its name in the figures.
    pub(crate) name: String,
    /// Where the caller reaches iperf3.
    pub(crate) bulk: SocketAddr,
    /// Where the caller reaches the echo.
    pub(crate) echo: SocketAddr,
    /// Where the caller reaches the UDP echo, where datagrams are carried.
    pub(crate) udp: Option<SocketAddr>,
    /// Caller and callee, where they are terminals of ours.
    pub(crate) terminals: Option<(String, String)>,
    /// The processes in the middle, and those at the ends.
    pub(crate) relays: Vec<u32>,
    pub(crate) ends: Vec<u32>,
    /// What ends with the tunnel.
    pub(crate) _keep: Vec<Box<dyn Any + Send + Sync>>,
}

impl Side {
    /// Waits until an echo comes back through it.
    pub(crate) fn wait(&self, site: &Site) -> Result<()> {
        let begun = std::time::Instant::now();
        loop {
            match site.at_caller(|| echo_once(self.echo)) {
                Ok(()) => return Ok(()),
                Err(error) if begun.elapsed() > SOON => {
                    return Err(error).with_context(|| format!("{}: no echo", self.name));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// A connection to an echo.
pub(crate) fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, ANSWER)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// A new connection with one echo of 64 bytes.
pub(crate) fn echo_once(address: SocketAddr) -> std::io::Result<()> {
    echo(&mut connect(address)?)
}

/// One echo of 64 bytes.
pub(crate) fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let sent = [0x5a; 64];
    let mut heard = [0; 64];
    stream.write_all(&sent)?;
    stream.read_exact(&mut heard)?;
    if heard == sent { Ok(()) } else { Err(std::io::Error::other("another echo")) }
}
