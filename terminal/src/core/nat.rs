//! What the addresses that relays see say about the NAT in front of this terminal.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tasuki_proto::path::NatKind;

/// Guesses from the addresses of the machine's interfaces and those that relays see, canonical.
pub fn guess(interfaces: &BTreeSet<IpAddr>, seen_as: &[SocketAddr]) -> NatKind {
    let outer: Vec<&SocketAddr> = outer(interfaces, seen_as).collect();
    if outer.is_empty() {
        return if seen_as.is_empty() { NatKind::Unknown } else { NatKind::None };
    }
    let mut pairs = outer.windows(2).filter(|two| two[0].is_ipv4() == two[1].is_ipv4());
    match pairs.next() {
        None => NatKind::Unknown,
        Some(two) if two[0] == two[1] => NatKind::EndpointIndependent,
        Some(_) => NatKind::EndpointDependent,
    }
}

/// The addresses that relays see and no interface has.
pub fn outer<'a>(
    interfaces: &'a BTreeSet<IpAddr>,
    seen_as: &'a [SocketAddr],
) -> impl Iterator<Item = &'a SocketAddr> {
    seen_as.iter().filter(|seen| !seen.ip().is_loopback() && !interfaces.contains(&seen.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess_of(seen_as: &[&str]) -> NatKind {
        let interfaces = ["127.0.0.1", "192.168.1.10", "2001:db8::9"];
        let interfaces = interfaces.iter().map(|ip| ip.parse().unwrap()).collect();
        let seen_as: Vec<SocketAddr> = seen_as.iter().map(|a| a.parse().unwrap()).collect();
        guess(&interfaces, &seen_as)
    }

    #[test]
    fn two_relays_tell_how_a_nat_maps() {
        let (one, other) = ("203.0.113.9:700", "203.0.113.9:701");
        assert_eq!(guess_of(&[one, one]), NatKind::EndpointIndependent);
        assert_eq!(guess_of(&[one, other]), NatKind::EndpointDependent);
        assert_eq!(guess_of(&[one, "203.0.113.10:700"]), NatKind::EndpointDependent);
    }

    #[test]
    fn without_two_of_one_family_nothing_is_told() {
        assert_eq!(guess_of(&[]), NatKind::Unknown);
        assert_eq!(guess_of(&["203.0.113.9:700"]), NatKind::Unknown);
        assert_eq!(guess_of(&["203.0.113.9:700", "[2001:db8:1::9]:700"]), NatKind::Unknown);
        assert_eq!(guess_of(&["203.0.113.9:700", "[2001:db8::9]:700"]), NatKind::Unknown);
    }

    #[test]
    fn an_own_address_and_loopback_are_no_nat() {
        assert_eq!(guess_of(&["192.168.1.10:7", "192.168.1.10:7"]), NatKind::None);
        assert_eq!(guess_of(&["[2001:db8::9]:7"]), NatKind::None);
        assert_eq!(guess_of(&["127.0.0.1:7", "[::1]:7"]), NatKind::None);
    }
}
