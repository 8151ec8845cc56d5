//! The addresses by which this machine may be reached directly (D2).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use tasuki_proto::limits;

use super::paths::Candidate;

/// What there is to offer: the addresses that relays saw, the one that the gateway mapped, and those of the machine's
/// interfaces, with the port of the one socket. Where a relay is reached over loopback, loopback addresses and nothing
/// else; otherwise none of them.
pub fn candidates(
    port: u16,
    interfaces: &BTreeSet<IpAddr>,
    seen_as: &[SocketAddr],
    mapped: Option<SocketAddr>,
) -> Vec<Candidate> {
    let on_loopback = seen_as.iter().any(|address| address.ip().is_loopback());
    let mut found: Vec<Candidate> = seen_as
        .iter()
        .filter(|address| address.ip().is_loopback() == on_loopback)
        .map(|&address| Candidate { address, local: interfaces.contains(&address.ip()) })
        .collect();
    if !on_loopback && !seen_as.is_empty() {
        found.extend(mapped.map(|address| Candidate { address, local: false }));
        let own = interfaces.iter().filter(|ip| is_worth_offering(**ip));
        found.extend(own.map(|&ip| Candidate { address: (ip, port).into(), local: true }));
    }
    let mut known = BTreeSet::new();
    found.retain(|candidate| known.insert(candidate.address));
    found.truncate(limits::CANDIDATES);
    found
}

/// Link-local addresses mean nothing without their interface.
fn is_worth_offering(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(port: u16, interfaces: &[&str], seen_as: &[&str]) -> Vec<String> {
        with_mapped(port, interfaces, seen_as, None)
    }

    fn with_mapped(
        port: u16,
        interfaces: &[&str],
        seen_as: &[&str],
        mapped: Option<&str>,
    ) -> Vec<String> {
        let interfaces = interfaces.iter().map(|ip| ip.parse().unwrap()).collect();
        let seen_as: Vec<SocketAddr> = seen_as.iter().map(|a| a.parse().unwrap()).collect();
        let mapped = mapped.map(|a| a.parse().unwrap());
        let found = candidates(port, &interfaces, &seen_as, mapped);
        found.iter().map(|one| format!("{} {}", one.address, one.local)).collect()
    }

    #[test]
    fn loopback_and_the_rest_of_the_world_do_not_mix() {
        let interfaces = ["127.0.0.1", "::1", "192.168.1.10", "fe80::1", "2001:db8::1"];
        assert_eq!(addresses(7, &interfaces, &["127.0.0.1:7"]), ["127.0.0.1:7 true"]);
        assert_eq!(
            addresses(7, &interfaces, &["203.0.113.9:700"]),
            ["203.0.113.9:700 false", "192.168.1.10:7 true", "[2001:db8::1]:7 true"]
        );
        assert!(addresses(7, &interfaces, &[]).is_empty(), "not attached");
    }

    #[test]
    fn a_mapped_address_is_offered_but_not_among_loopback_addresses() {
        let (interfaces, mapped) = (["192.168.1.10"], Some("203.0.113.9:7"));
        assert_eq!(
            with_mapped(7, &interfaces, &["203.0.113.9:700"], mapped),
            ["203.0.113.9:700 false", "203.0.113.9:7 false", "192.168.1.10:7 true"]
        );
        assert_eq!(with_mapped(7, &["127.0.0.1"], &["127.0.0.1:7"], mapped), ["127.0.0.1:7 true"]);
    }

    #[test]
    fn a_public_address_is_offered_once_and_no_more_than_agreed() {
        let interfaces = ["203.0.113.9"];
        assert_eq!(addresses(7, &interfaces, &["203.0.113.9:7"]), ["203.0.113.9:7 true"]);
        let many: Vec<String> = (1..40).map(|n| format!("10.0.0.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(addresses(7, &many, &["203.0.113.9:7"]).len(), limits::CANDIDATES);
    }
}
