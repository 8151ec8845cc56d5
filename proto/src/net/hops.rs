//! Datagrams that die after a few hops.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use super::{UdpIo, canonical};

/// Sends a datagram that is discarded after so many hops (RFC 791 "time to live", RFC 8200 "hop limit"): far enough to
/// pass this machine's own NATs, and not as far as somebody else's. Other datagrams of the socket are not touched.
///
/// # Errors
/// The system's.
pub fn send_within(io: &UdpIo, to: SocketAddr, contents: &[u8], hops: u8) -> io::Result<()> {
    let hops = i32::from(hops);
    // On a dual-stack socket too, IPv4 takes the options of IPv4.
    let control = match canonical(to) {
        SocketAddr::V4(_) => ControlMessage::Ipv4Ttl(&hops),
        SocketAddr::V6(_) => ControlMessage::Ipv6HopLimit(&hops),
    };
    let to = SockaddrStorage::from(to);
    let contents = [IoSlice::new(contents)];
    sendmsg(io.as_fd().as_raw_fd(), &contents, &[control], MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_sent_on_every_kind_of_socket() {
        for (bind, to) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "::ffff:127.0.0.1"), ("[::1]:0", "::1")]
        {
            let io = UdpIo::bind(bind.parse().unwrap(), false).unwrap();
            let there = std::net::UdpSocket::bind((to.replace("::ffff:", "").as_str(), 0)).unwrap();
            there.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            let to = SocketAddr::new(to.parse().unwrap(), there.local_addr().unwrap().port());
            send_within(&io, to, b"short", 1).unwrap();
            let mut buffer = [0; 16];
            assert_eq!(there.recv(&mut buffer).unwrap(), 5, "{bind}");
        }
    }
}
