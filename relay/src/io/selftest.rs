//! Sends a knock for a neighbour that wants to know whether it is reached ([`crate::core::selftest`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tasuki_proto::Label;
use tasuki_proto::frame::{FrameKind, head};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long the look-up of a name may take.
const LOOKUP: Duration = Duration::from_secs(4);

/// Sends one knock, the head of a frame, to the first address of `address` that may be knocked at, from a socket of its
/// own; whether it left. With `loopback` only a loopback address may, otherwise none.
pub(super) async fn knock(address: &str, label: Label, loopback: bool) -> bool {
    let Ok(Ok(found)) = timeout(LOOKUP, tokio::net::lookup_host(address)).await else {
        return false;
    };
    for to in found.filter(|to| may_knock(*to, loopback)) {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        // Connected: it hears nobody else, and a family without a route fails here.
        if socket.connect(to).await.is_ok()
            && socket.send(&head(FrameKind::Knock, label)).await.is_ok()
        {
            return true;
        }
    }
    false
}

fn may_knock(to: SocketAddr, loopback: bool) -> bool {
    let ip = to.ip().to_canonical();
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    ip.is_loopback() == loopback && !ip.is_multicast() && !ip.is_unspecified() && !is_broadcast
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_knock_is_one_small_packet_and_stays_on_its_side_of_loopback() {
        let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = relay.local_addr().unwrap().to_string();
        let label = Label::new(0x0102_0304).unwrap();
        assert!(
            !knock(&address, label, false).await,
            "a neighbour elsewhere names a loopback address"
        );
        assert!(
            !knock("192.0.2.1:4433", label, true).await,
            "a neighbour here names one elsewhere"
        );
        assert!(!knock("nobody.invalid:4433", label, true).await);
        assert!(knock(&address, label, true).await);
        let mut buffer = [0; 100];
        let (length, from) = relay.recv_from(&mut buffer).await.unwrap();
        assert_eq!(tasuki_proto::frame::parse(&buffer[..length]), Some((FrameKind::Knock, label)));
        assert_eq!(length, 8);
        assert_ne!(from, relay.local_addr().unwrap());
    }

    #[test]
    fn nobody_else_is_knocked_at() {
        for address in ["224.0.0.1:1", "[ff02::1]:1", "0.0.0.0:1", "[::]:1", "255.255.255.255:1"] {
            assert!(!may_knock(address.parse().unwrap(), false), "{address}");
        }
        assert!(!may_knock("[::ffff:127.0.0.1]:1".parse().unwrap(), false));
    }
}
