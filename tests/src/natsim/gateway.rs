//! A NAT in virtual time: how it maps ports (RFC 4787, section 4), what it lets in (section 5), how long it remembers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::kind::{Behaviour, Filtering, NatKind};

/// For how long Linux remembers a packet that was not answered, whichever way it went: `nf_conntrack_udp_timeout`.
const UNANSWERED: Duration = Duration::from_secs(30);
/// Ports that are given where the machine's own cannot be kept.
const PORTS: std::ops::Range<u16> = 1_024..u16::MAX;

/// What differs between NATs of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Gives a mapping the machine's own port where that is free.
    pub keeps_ports: bool,
    /// A mapping is forgotten when nothing left by it for so long.
    pub lifetime: Duration,
    /// What comes in refreshes a mapping too.
    pub inbound_refreshes: bool,
}

/// Who a mapping is for: everybody, or one remote address and port alone.
type Key = (SocketAddr, Option<SocketAddr>);

#[derive(Debug)]
struct Mapping {
    port: u16,
    until: Duration,
    /// Something came in by it.
    answered: bool,
    /// What the machine sent to by it, and until when answers are let in.
    contacted: BTreeMap<SocketAddr, Duration>,
}

/// A NAT with one outer IPv4 address. It turns no packet round.
#[derive(Debug)]
pub struct Gateway {
    /// Its outer address.
    pub external: Ipv4Addr,
    behaviour: Behaviour,
    habits: Habits,
    relays_only: bool,
    mappings: BTreeMap<Key, Mapping>,
    /// Flows that came unasked and that a plain masquerade takes for its own: its port and the sender, until when.
    unasked: BTreeMap<(u16, SocketAddr), Duration>,
    /// Changes the ports that are kept: another value after each rebinding.
    shift: u16,
}

impl Gateway {
    /// The NATs of a machine of this kind, its own one first; none where it has none. Only the last one has the
    /// address `external`.
    pub(super) fn chain(kind: NatKind, external: Ipv4Addr, habits: Habits) -> Vec<Gateway> {
        let port_restricted = Behaviour {
            independent_mapping: true,
            filtering: Filtering::AddressAndPort,
            moves: false,
        };
        let gateway = |external, behaviour, relays_only| Gateway {
            external,
            behaviour,
            habits,
            relays_only,
            mappings: BTreeMap::new(),
            unasked: BTreeMap::new(),
            shift: 0,
        };
        match kind {
            NatKind::Public | NatKind::Ipv6Only | NatKind::BrokenIpv6 | NatKind::BrokenIpv4 => {
                Vec::new()
            }
            NatKind::UdpBlocked => vec![gateway(external, port_restricted, true)],
            NatKind::CarrierGrade => {
                let shared = Ipv4Addr::new(100, 64, 0, external.octets()[3]);
                vec![
                    gateway(shared, port_restricted, false),
                    gateway(external, port_restricted, false),
                ]
            }
            _ => vec![gateway(external, kind.ipv4().unwrap_or(port_restricted), false)],
        }
    }

    /// The outer address and port by which a packet from `inner` to `remote` leaves; `None` where it may not.
    pub(super) fn outbound(
        &mut self,
        inner: SocketAddr,
        remote: SocketAddr,
        now: Duration,
        rng: &mut SmallRng,
    ) -> Option<SocketAddr> {
        if self.relays_only && !is_relay(remote.ip()) {
            return None;
        }
        self.forget_old(now);
        // Linux maps each flow by itself, to the same port where nothing is in the way.
        let by_flow = !self.behaviour.independent_mapping || self.behaviour.moves;
        let key = (inner, by_flow.then_some(remote));
        if !self.mappings.contains_key(&key) {
            let port = self.free_port(&key, rng);
            let contacted = BTreeMap::new();
            let mapping = Mapping { port, until: now, answered: false, contacted };
            self.mappings.insert(key, mapping);
        }
        let mapping = self.mappings.get_mut(&key)?;
        let lifetime = if self.behaviour.moves && !mapping.answered {
            UNANSWERED
        } else {
            self.habits.lifetime
        };
        mapping.until = now + lifetime;
        mapping.contacted.insert(remote, now + self.habits.lifetime);
        Some((self.external, mapping.port).into())
    }

    fn free_port(&self, key: &Key, rng: &mut SmallRng) -> u16 {
        // Linux always does; without that a mapping by flow is a symmetric one.
        let keeps =
            self.behaviour.moves || (self.behaviour.independent_mapping && self.habits.keeps_ports);
        let own = key.0.port() ^ self.shift;
        if keeps && self.is_free(own, key) {
            return own;
        }
        loop {
            let port = rng.random_range(PORTS);
            if port != own && self.is_free(port, key) {
                return port;
            }
        }
    }

    fn is_free(&self, port: u16, key: &Key) -> bool {
        let meets = |other: &Key| match (other.1, key.1) {
            (Some(theirs), Some(ours)) => theirs == ours,
            _ => true,
        };
        let taken = self.mappings.iter().any(|(other, m)| m.port == port && meets(other));
        let spoilt = key.1.is_some_and(|remote| self.unasked.contains_key(&(port, remote)));
        !taken && !spoilt
    }

    /// The inner address that a packet from `remote` to the outer `port` is for; `None` where it is not let in.
    pub(super) fn inbound(
        &mut self,
        remote: SocketAddr,
        port: u16,
        now: Duration,
    ) -> Option<SocketAddr> {
        self.forget_old(now);
        let filtering = self.behaviour.filtering;
        let admits = |key: &Key, mapping: &Mapping| match (key.1, filtering) {
            (Some(only), _) => only == remote,
            (None, Filtering::Independent) => true,
            (None, Filtering::Address) => {
                mapping.contacted.keys().any(|known| known.ip() == remote.ip())
            }
            (None, Filtering::AddressAndPort) => mapping.contacted.contains_key(&remote),
        };
        let mut found = self.mappings.iter_mut();
        let Some((key, mapping)) = found.find(|(key, m)| m.port == port && admits(key, m)) else {
            if self.behaviour.moves {
                self.unasked.insert((port, remote), now + UNANSWERED);
            }
            return None;
        };
        mapping.answered = true;
        if self.habits.inbound_refreshes {
            mapping.until = now + self.habits.lifetime;
            if let Some(until) = mapping.contacted.get_mut(&remote) {
                *until = now + self.habits.lifetime;
            }
        }
        Some(key.0)
    }

    fn forget_old(&mut self, now: Duration) {
        self.mappings.retain(|_, mapping| mapping.until > now);
        for mapping in self.mappings.values_mut() {
            mapping.contacted.retain(|_, until| *until > now);
        }
        self.unasked.retain(|_, until| *until > now);
    }

    /// Forgets everything, as a restart does. A NAT that keeps ports gives the same ones again.
    pub(super) fn restart(&mut self) {
        self.mappings.clear();
        self.unasked.clear();
    }

    /// Forgets everything and gives other ports.
    pub(super) fn rebind(&mut self) {
        self.restart();
        self.shift = self.shift % 0x3ff + 1;
    }
}

/// Relays have the lowest addresses.
pub(super) fn is_relay(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [203, 0, 113] && v4.octets()[3] < 64,
        IpAddr::V6(v6) => v6.segments()[7] < 64,
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    struct Nat(Gateway, SmallRng);

    impl Nat {
        fn new(kind: NatKind) -> Nat {
            let habits = Habits {
                keeps_ports: true,
                lifetime: Duration::from_secs(60),
                inbound_refreshes: false,
            };
            let chain = Gateway::chain(kind, Ipv4Addr::new(203, 0, 113, 101), habits);
            Nat(chain.into_iter().last().unwrap(), SmallRng::seed_from_u64(1))
        }

        fn out(&mut self, from: &str, to: &str) -> SocketAddr {
            self.0.outbound(address(from), address(to), NOW, &mut self.1).unwrap()
        }

        fn lets_in(&mut self, from: &str, to: SocketAddr) -> bool {
            self.0.inbound(address(from), to.port(), NOW).is_some()
        }
    }

    const MACHINE: &str = "192.168.1.10:5000";
    const PEER: &str = "203.0.113.102:7000";
    const PEERS_OTHER_PORT: &str = "203.0.113.102:7001";
    const STRANGER: &str = "203.0.113.103:7000";

    #[test]
    fn each_kind_maps_and_filters_as_it_is_named() {
        use NatKind::*;
        for (kind, same_port, other_port, stranger) in [
            (FullCone, true, true, true),
            (AddressRestricted, true, true, false),
            (PortRestricted, true, false, false),
            (Masquerade, true, false, false),
            (Symmetric, false, false, false),
        ] {
            let mut nat = Nat::new(kind);
            let mapped = nat.out(MACHINE, PEER);
            assert_eq!(nat.out(MACHINE, STRANGER) == mapped, same_port, "{kind:?}");
            let mut nat = Nat::new(kind);
            let mapped = nat.out(MACHINE, PEER);
            assert!(nat.lets_in(PEER, mapped), "{kind:?}");
            assert_eq!(nat.lets_in(PEERS_OTHER_PORT, mapped), other_port, "{kind:?}");
            assert_eq!(nat.lets_in(STRANGER, mapped), stranger, "{kind:?}");
        }
    }

    #[test]
    fn an_early_packet_makes_a_plain_masquerade_move_the_port() {
        let mut nat = Nat::new(NatKind::Masquerade);
        let mapped = nat.out(MACHINE, STRANGER);
        assert!(!nat.lets_in(PEER, mapped));
        assert_ne!(nat.out(MACHINE, PEER), mapped);
        let mut nat = Nat::new(NatKind::PortRestricted);
        let mapped = nat.out(MACHINE, STRANGER);
        assert!(!nat.lets_in(PEER, mapped));
        assert_eq!(nat.out(MACHINE, PEER), mapped);
    }

    #[test]
    fn two_machines_with_one_port_do_not_share_it() {
        for kind in [NatKind::FullCone, NatKind::PortRestricted, NatKind::Masquerade] {
            let mut nat = Nat::new(kind);
            let (one, other) = (nat.out(MACHINE, PEER), nat.out("192.168.1.11:5000", PEER));
            assert_ne!(one, other, "{kind:?}");
        }
    }

    #[test]
    fn what_is_not_used_is_forgotten_and_a_rebinding_gives_another_port() {
        let mut nat = Nat::new(NatKind::FullCone);
        let mapped = nat.out(MACHINE, PEER);
        let later = NOW + Duration::from_secs(61);
        assert_eq!(nat.0.inbound(address(PEER), mapped.port(), later), None);
        let mapped = nat.out(MACHINE, PEER);
        nat.0.restart();
        assert_eq!(nat.out(MACHINE, PEER), mapped);
        nat.0.rebind();
        assert_ne!(nat.out(MACHINE, PEER), mapped);
    }
}
