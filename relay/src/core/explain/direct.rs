//! Whether two terminals can reach each other without relays, judged by the addresses at which relays see them.
//!
//! A terminal speaks to all its relays from one UDP port. Where two relays see different ports, its NAT gives each
//! destination another one (symmetric, RFC 4787), and nobody can tell which one the other terminal would meet.
//! What relays do not see: private addresses, firewalls, ports that a gateway mapped, `--direct never`.

use std::net::{IpAddr, SocketAddr};

use tasuki_proto::TerminalId;

use super::{Direct, Possible};

/// How relays see a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    addresses: Vec<IpAddr>,
    ports: Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Ports {
    /// There are not two relays to compare.
    #[default]
    Unknown,
    /// All see the same.
    Same,
    /// They see different ones.
    Different,
}

impl Seen {
    /// By the addresses of its current attachments.
    pub(super) fn of(places: &[SocketAddr]) -> Self {
        let canonical = |at: &SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
        let places: Vec<SocketAddr> = places.iter().map(canonical).collect();
        let mut ports = Ports::Unknown;
        for (at, one) in places.iter().enumerate() {
            for other in places[..at].iter().filter(|other| other.is_ipv4() == one.is_ipv4()) {
                if one != other {
                    ports = Ports::Different;
                } else if ports == Ports::Unknown {
                    ports = Ports::Same;
                }
            }
        }
        let mut addresses: Vec<IpAddr> = places.iter().map(SocketAddr::ip).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self { addresses, ports }
    }

    fn is_loopback(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_loopback)
    }
}

/// Judges a direct path between two terminals.
pub(super) fn judge([(a, seen_a), (b, seen_b)]: [(&TerminalId, &Seen); 2]) -> Direct {
    let direct = |possible, why: String| Direct { possible, why };
    let families = |seen: &Seen, v4: bool| seen.addresses.iter().any(|ip| ip.is_ipv4() == v4);
    if seen_a.is_loopback() != seen_b.is_loopback() {
        let inner = if seen_a.is_loopback() { a } else { b };
        let why = format!("{inner} reaches its relay over loopback and tries nothing else");
        return direct(Possible::Unlikely, why);
    }
    if seen_a.is_loopback() {
        let why = "both reach their relays over loopback: they are on one machine".to_owned();
        return direct(Possible::Likely, why);
    }
    if seen_a.addresses.iter().any(|ip| seen_b.addresses.contains(ip)) {
        let why = "relays see both at one address: one machine, or behind one NAT, where they try their private \
                   addresses"
            .to_owned();
        return direct(Possible::Likely, why);
    }
    if ![true, false].iter().any(|&v4| families(seen_a, v4) && families(seen_b, v4)) {
        let why = "relays see one over IPv4 only and the other over IPv6 only".to_owned();
        return direct(Possible::Unlikely, why);
    }
    match (seen_a.ports, seen_b.ports) {
        (Ports::Different, Ports::Different) => direct(
            Possible::Unlikely,
            "each is behind a NAT that gives every destination another port (symmetric)".to_owned(),
        ),
        (Ports::Different, _) | (_, Ports::Different) => {
            let (hard, other) = if seen_a.ports == Ports::Different { (a, b) } else { (b, a) };
            let why = format!(
                "the NAT of {hard} gives every destination another port (symmetric): only possible if {other} has a \
                 public address or an open NAT"
            );
            direct(Possible::Unknown, why)
        }
        (Ports::Same, Ports::Same) => direct(
            Possible::Likely,
            "each has the same address and port at all its relays; only a firewall or --direct never would hinder it"
                .to_owned(),
        ),
        _ => direct(
            Possible::Unknown,
            "there are not two relays that see the same terminal, so its NAT is not known".to_owned(),
        ),
    }
}
