//! Kinds of NAT in the terms of RFC 4787, and which pairs of them let a direct path through: one table for the
//! laboratory of real namespaces and for the simulator.

/// Where a machine stands in the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NatKind {
    /// A public IPv4 address, no NAT, no firewall.
    Public,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// Address- and port-dependent mapping with random ports, and filtering.
    Symmetric,
    /// Linux masquerade as it comes: a port-restricted NAT, until an early probe makes it move the port.
    Masquerade,
    /// Two NATs, one behind the other, both port-restricted.
    CarrierGrade,
    /// A port-restricted NAT that lets UDP through between the machine and relays only.
    UdpBlocked,
    /// A public IPv6 address and none of IPv4.
    Ipv6Only,
    /// Public addresses of both families, but IPv6 packets vanish.
    BrokenIpv6,
    /// Public addresses of both families, but IPv4 packets vanish.
    BrokenIpv4,
}

/// What a pair of machines can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A direct path can be had without guessing a port.
    Direct,
    /// None can.
    Relayed,
    /// A direct path, unless a probe comes to a plain masquerade before its own machine has probed: then that
    /// gateway moves the port, and the other side lets no other port in.
    ///
    /// In the laboratory packets take no time and so never cross: whose first probe comes first decides. If that is
    /// the caller's, a caller behind plain masquerade reaches a port-restricted callee directly, a callee behind it
    /// is reached through relays, and so are two of them. All of them are direct if both sides first open their
    /// mappings with packets of a short life, which leave their own NAT and die before the other's.
    Race,
}

/// How a NAT treats IPv4 in the terms of RFC 4787 (4.1, 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Behaviour {
    /// The mapping is the same for all destinations.
    pub(super) independent_mapping: bool,
    pub(super) filtering: Filtering,
    /// An early probe from an address moves the mapping towards that address.
    pub(super) moves: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filtering {
    Independent,
    Address,
    AddressAndPort,
}

impl Behaviour {
    pub(super) const fn cone(filtering: Filtering) -> Option<Behaviour> {
        Some(Behaviour { independent_mapping: true, filtering, moves: false })
    }

    /// Whether what comes from a port of the other side that nobody knew is let in, once the machine has sent to
    /// another port of that address.
    fn admits_other_ports(self) -> bool {
        self.filtering < Filtering::AddressAndPort
    }
}

impl NatKind {
    /// All kinds.
    pub const ALL: [NatKind; 11] = [
        NatKind::Public,
        NatKind::FullCone,
        NatKind::AddressRestricted,
        NatKind::PortRestricted,
        NatKind::Symmetric,
        NatKind::Masquerade,
        NatKind::CarrierGrade,
        NatKind::UdpBlocked,
        NatKind::Ipv6Only,
        NatKind::BrokenIpv6,
        NatKind::BrokenIpv4,
    ];

    /// A short name.
    pub const fn name(self) -> &'static str {
        match self {
            NatKind::Public => "public",
            NatKind::FullCone => "full-cone",
            NatKind::AddressRestricted => "address-restricted",
            NatKind::PortRestricted => "port-restricted",
            NatKind::Symmetric => "symmetric",
            NatKind::Masquerade => "masquerade",
            NatKind::CarrierGrade => "carrier-grade",
            NatKind::UdpBlocked => "udp-blocked",
            NatKind::Ipv6Only => "ipv6-only",
            NatKind::BrokenIpv6 => "broken-ipv6",
            NatKind::BrokenIpv4 => "broken-ipv4",
        }
    }

    /// What a call from a machine of this kind to one of `other`'s can have.
    ///
    /// Two machines that IPv6 works for are direct: no kind here filters it. Over IPv4, with both mappings
    /// endpoint-independent each side's probes open its own filter for exactly what the other side sends: direct.
    /// With one endpoint-dependent mapping nobody knows the port that this side's probes come from, so the other
    /// side must admit any port of an address that it has probed; with two, there is no port to send to at all.
    /// The order of caller and callee does not matter to a NAT; it matters to who probes first ([`Outcome::Race`]).
    pub fn expected(self, other: NatKind) -> Outcome {
        if self.has_ipv6() && other.has_ipv6() {
            return Outcome::Direct;
        }
        let (Some(a), Some(b)) = (self.ipv4(), other.ipv4()) else { return Outcome::Relayed };
        match (a.independent_mapping, b.independent_mapping) {
            (false, false) => Outcome::Relayed,
            (true, false) if a.admits_other_ports() => Outcome::Direct,
            (false, true) if b.admits_other_ports() => Outcome::Direct,
            (true, true) => {
                let spoilt = |a: Behaviour, b: Behaviour| a.moves && !b.admits_other_ports();
                if spoilt(a, b) || spoilt(b, a) { Outcome::Race } else { Outcome::Direct }
            }
            _ => Outcome::Relayed,
        }
    }

    /// How it treats UDP over IPv4 past the relays; `None` where there is no way.
    pub(super) const fn ipv4(self) -> Option<Behaviour> {
        use Filtering::{Address, AddressAndPort, Independent};
        match self {
            NatKind::Public | NatKind::FullCone | NatKind::BrokenIpv6 => {
                Behaviour::cone(Independent)
            }
            NatKind::AddressRestricted => Behaviour::cone(Address),
            NatKind::PortRestricted | NatKind::CarrierGrade => Behaviour::cone(AddressAndPort),
            NatKind::Symmetric => Some(Behaviour {
                independent_mapping: false,
                filtering: AddressAndPort,
                moves: false,
            }),
            NatKind::Masquerade => Some(Behaviour {
                independent_mapping: true,
                filtering: AddressAndPort,
                moves: true,
            }),
            NatKind::UdpBlocked | NatKind::Ipv6Only | NatKind::BrokenIpv4 => None,
        }
    }

    /// Whether IPv6 works for it.
    pub(super) const fn has_ipv6(self) -> bool {
        matches!(self, NatKind::Ipv6Only | NatKind::BrokenIpv4)
    }
}
