//! Sends a knock for a neighbour that wants to know whether it is reached ([`crate::core::selftest`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tasuki_proto::dial::{Dialler, Manner, Place};
use tasuki_proto::frame::{FrameKind, head};
use tasuki_proto::{Label, limits};
use tokio::net::UdpSocket;

/// How long the look-up of a name may take; the answer to a later one serves the next knock.
const MANNER: Manner = Manner { look_up: Duration::from_secs(4), ..Manner::RELAY };

/// Sends one knock, the head of a frame, to each of the first [`limits::KNOCKED_ADDRESSES`] addresses of `address` that
/// may be knocked at, from sockets of their own: like everybody who dials the relay, it takes the name for reached when one of
/// its addresses is. Returns whether a knock left. With `loopback` only a loopback address may be knocked at, otherwise
/// none.
pub(super) async fn knock(dialler: &Dialler, address: &str, label: Label, loopback: bool) -> bool {
    let Some(place) = Place::parse(0, address) else { return false };
    let Ok(found) = dialler.addresses(&place, MANNER).await else { return false };
    let may = found.into_iter().filter(|to| may_knock(*to, loopback));
    let mut left = false;
    for to in may.take(limits::KNOCKED_ADDRESSES) {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let Ok(socket) = UdpSocket::bind((any, 0)).await else { continue };
        // Connected: it hears nobody else, and a family without a route fails here.
        if socket.connect(to).await.is_ok()
            && socket.send(&head(FrameKind::Knock, label)).await.is_ok()
        {
            left = true;
        }
    }
    left
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
        let dialler = Dialler::default();
        assert!(
            !knock(&dialler, &address, label, false).await,
            "a neighbour elsewhere names a loopback address"
        );
        assert!(
            !knock(&dialler, "192.0.2.1:4433", label, true).await,
            "a neighbour here names one elsewhere"
        );
        assert!(!knock(&dialler, "nobody.invalid:4433", label, true).await);
        assert!(knock(&dialler, &address, label, true).await);
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

    #[tokio::test]
    async fn each_address_of_a_name_is_knocked_at() {
        let relays: Vec<UdpSocket> = {
            let first = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = first.local_addr().unwrap().port();
            let second = UdpSocket::bind(("127.0.0.2", port)).await.unwrap();
            vec![first, second]
        };
        let port = relays[0].local_addr().unwrap().port();
        let found = ["127.0.0.3", "127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().unwrap());
        let dialler = Dialler::with_resolver(move |_| Box::pin(async move { Ok(found.to_vec()) }));
        let label = Label::new(7).unwrap();
        assert!(knock(&dialler, &format!("r1.example:{port}"), label, true).await);
        for relay in relays {
            let mut buffer = [0; 100];
            let read = tokio::time::timeout(Duration::from_secs(5), relay.recv(&mut buffer));
            assert_eq!(read.await.expect("a knock").unwrap(), 8);
        }
    }
}
