//! Kinds of NAT, in the terms of RFC 4787, made of nftables, and which pairs of them let a direct path through.
//!
//! All masquerade keeps the port of the machine where it can, so that the mapping is endpoint-independent, and a
//! router drops what comes to it unasked before the kernel remembers it. These two make a **port-restricted** NAT.
//! The other kinds are that with changes:
//!
//! - **Full cone**: each packet that leaves notes (external port -> machine and its port) in a dynamic map; whatever
//!   comes in to a noted port is translated by that map.
//! - **Address-restricted**: the same, but only for senders whose address, with that port, is in a dynamic set of
//!   what was contacted.
//! - **Symmetric**: the kernel draws a random port for each flow, that is for each destination address and port.
//! - **Plain masquerade**: the router does not drop what comes to it unasked. It takes it for itself, remembers the
//!   flow for 30 s, and since that flow has the port that the machine's own packet to the same address would get,
//!   that packet gets another port. So its mapping is endpoint-independent only as long as the other side was silent.
//! - **Carrier-grade**: a port-restricted router of the carrier (100.64.0.0/10 inside) before the one at home.
//! - **UDP blocked**: UDP leaves for relays only.
//!
//! A mapping is rebound without a word by changing bits of the machine's port before the kernel's connection
//! tracking sees it, and changing them back behind it: old flows lead nowhere, and new ones have another port.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::{LIMIT, Namespace, RELAYS, Wan, veth};
use crate::lab::process::run;
pub use crate::natsim::kind::{NatKind, Outcome};

/// For how many seconds a cone keeps a port open that nothing leaves by.
const OPEN_SECONDS: u32 = 300;
/// Bits of a port that a rebinding changes: low enough that no port falls below 1024.
const REBOUND_BITS: u16 = 0x3ff;

impl NatKind {
    /// The rules of its router; `None` where there is none.
    fn rules(self) -> Option<String> {
        let note = "oifname \"wan0\" meta l4proto udp ct direction original \
                    update @open { udp sport : ct original ip saddr . ct original proto-src }";
        let translate = "dnat ip to udp dport map @open";
        let router = Router::default();
        let router = match self {
            NatKind::Public | NatKind::Ipv6Only | NatKind::BrokenIpv6 | NatKind::BrokenIpv4 => {
                return None;
            }
            NatKind::PortRestricted | NatKind::CarrierGrade => router,
            NatKind::Symmetric => Router { masquerade: "masquerade random,fully-random", ..router },
            NatKind::Masquerade => Router { takes_unasked: true, ..router },
            NatKind::UdpBlocked => Router {
                forbid: format!(
                    "meta l4proto udp iifname \"lan0\" ip daddr != {} drop;",
                    RELAYS[0]
                ),
                ..router
            },
            NatKind::FullCone => {
                Router { note: note.into(), translate: translate.into(), ..router }
            }
            NatKind::AddressRestricted => Router {
                note: format!("{note} update @contacted {{ ip daddr . udp sport }}"),
                translate: format!("ip saddr . udp dport @contacted {translate}"),
                ..router
            },
        };
        Some(router.rules())
    }
}

/// What differs between routers.
#[derive(Debug)]
struct Router {
    masquerade: &'static str,
    /// What is noted of a packet that has left.
    note: String,
    /// How a packet that comes in from outside is let through unasked.
    translate: String,
    /// What may not be passed on, above all else.
    forbid: String,
    /// Whether the kernel remembers what came to the router unasked.
    takes_unasked: bool,
}

impl Default for Router {
    fn default() -> Self {
        let none = String::new;
        Router {
            masquerade: "masquerade",
            note: none(),
            translate: none(),
            forbid: none(),
            takes_unasked: false,
        }
    }
}

impl Router {
    fn rules(&self) -> String {
        let rule = |condition: &str, rule: &str| match rule {
            "" => String::new(),
            rule => format!("{condition} {rule};"),
        };
        let (masquerade, forbid) = (self.masquerade, &self.forbid);
        let note = rule("", &self.note);
        let translate = rule("iifname \"wan0\" meta l4proto udp", &self.translate);
        let drop = if self.takes_unasked { "" } else { "iifname \"wan0\" ct state new drop;" };
        format!(
            "table ip nat {{
               map open {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout;
                 size 4096; timeout {OPEN_SECONDS}s; }}
               set contacted {{ type ipv4_addr . inet_service; flags dynamic,timeout;
                 size 4096; timeout {OPEN_SECONDS}s; }}
               chain out {{ type nat hook postrouting priority srcnat; oifname \"wan0\" {masquerade}; }}
               chain noted {{ type filter hook postrouting priority 150; {note} }}
               chain back {{ type nat hook prerouting priority dstnat; {translate} }}
               chain through {{ type filter hook forward priority filter; policy drop; {forbid}
                 iifname \"lan0\" accept; ct state established,related accept; ct status dnat accept; }}
               chain in {{ type filter hook input priority filter; {drop} }}
             }}"
        )
    }
}

/// A machine at its place in the internet.
#[derive(Debug, Clone)]
pub struct Natted {
    /// The machine, on `eth0`: 192.168.1.10 or above behind a NAT.
    pub machine: Namespace,
    /// Its router: `wan0` outside, `lan0` inside. Without a NAT: the machine itself.
    pub router: Namespace,
    /// The router of its carrier, where that has one.
    pub carrier: Option<Namespace>,
    kind: NatKind,
    public: IpAddr,
    /// Which bits of the machine's ports are changed.
    bits: Arc<AtomicU16>,
}

impl Natted {
    /// Of which kind it is.
    pub fn kind(&self) -> NatKind {
        self.kind
    }

    /// The public address that it was given.
    pub fn public(&self) -> IpAddr {
        self.public
    }

    /// Moves every UDP mapping of its router to another port, as a restart of the router would: the old ports are
    /// dead, and what the machine sends next leaves by others.
    ///
    /// # Panics
    /// Without a NAT, or when the rules are not accepted.
    pub fn rebind(&self) {
        assert!(self.kind.rules().is_some(), "{} has no mappings", self.kind.name());
        // Never the same twice in a row, never none.
        let bits = self.bits.fetch_add(1, Ordering::Relaxed) % REBOUND_BITS + 1;
        self.router.nft(&format!(
            "table ip rebound {{}}
             delete table ip rebound
             table ip rebound {{
               chain before {{ type filter hook prerouting priority -300;
                 iifname \"lan0\" meta l4proto udp udp sport set udp sport ^ {bits}; }}
               chain behind {{ type filter hook postrouting priority 350;
                 oifname \"lan0\" meta l4proto udp udp dport set udp dport ^ {bits}; }}
             }}"
        ));
    }
}

impl Wan {
    /// A machine behind a port-restricted NAT at 203.0.113.`octet`.
    pub fn natted(&self, name: &str, octet: u8) -> Natted {
        self.place(NatKind::PortRestricted, name, octet)
    }

    /// A machine at a place of this kind; its public address has the number `octet`, which is above those of relays.
    pub fn place(&self, kind: NatKind, name: &str, octet: u8) -> Natted {
        let [placed] = self.home(kind, [name], octet);
        placed
    }

    /// Machines of one LAN behind one NAT of this kind.
    ///
    /// # Panics
    /// When there are several and the kind has no router.
    pub fn home<const N: usize>(&self, kind: NatKind, names: [&str; N], octet: u8) -> [Natted; N] {
        let Some(rules) = kind.rules() else {
            assert_eq!(N, 1, "{} is no LAN", kind.name());
            return names.map(|name| self.without_nat(kind, name, octet));
        };
        let first = names.first().copied().unwrap_or_default();
        let router = self.namespace(&format!("{first}-nat"));
        let carrier = (kind == NatKind::CarrierGrade)
            .then(|| self.carrier(&router, &format!("{first}-carrier"), octet, &rules));
        if carrier.is_none() {
            self.plug(&router, "wan0", octet);
        }
        router.ip(&["link", "add", "lan0", "type", "bridge"]);
        router.ip(&["link", "set", "lan0", "up"]);
        router.ip(&["addr", "add", "192.168.1.1/24", "dev", "lan0"]);
        forward(&router, &rules);
        let bits = Arc::new(AtomicU16::new(0));
        let mut host = 10;
        names.map(|name| {
            let machine = self.namespace(name);
            let port = format!("lan{host}");
            veth(&machine, "eth0", &router, &port);
            router.ip(&["link", "set", &port, "master", "lan0"]);
            machine.ip(&["addr", "add", &format!("192.168.1.{host}/24"), "dev", "eth0"]);
            machine.ip(&["route", "add", "default", "via", "192.168.1.1"]);
            host += 1;
            Natted {
                machine,
                router: router.clone(),
                carrier: carrier.clone(),
                kind,
                public: Wan::address(octet).into(),
                bits: bits.clone(),
            }
        })
    }

    /// A carrier's NAT in front of `router`.
    fn carrier(&self, router: &Namespace, name: &str, octet: u8, rules: &str) -> Namespace {
        let carrier = self.namespace(name);
        self.plug(&carrier, "wan0", octet);
        veth(router, "wan0", &carrier, "lan0");
        router.ip(&["addr", "add", "100.64.0.10/24", "dev", "wan0"]);
        carrier.ip(&["addr", "add", "100.64.0.1/24", "dev", "lan0"]);
        router.ip(&["route", "add", "default", "via", "100.64.0.1"]);
        forward(&carrier, rules);
        carrier
    }

    fn without_nat(&self, kind: NatKind, name: &str, octet: u8) -> Natted {
        let machine = self.namespace(name);
        let vanish = |family: &str| {
            machine.nft(&format!(
                "table {family} broken {{
                   chain in {{ type filter hook input priority -300; iifname \"eth0\" drop; }}
                   chain out {{ type filter hook output priority -300; oifname \"eth0\" drop; }}
                 }}"
            ));
        };
        let v4: Ipv4Addr = Wan::address(octet);
        let (v4, v6) = (IpAddr::from(v4), IpAddr::from(Wan::address6(octet)));
        if kind == NatKind::Ipv6Only {
            self.wire(&machine, "eth0");
        } else {
            self.plug(&machine, "eth0", octet);
        }
        if kind != NatKind::Public {
            self.plug6(&machine, "eth0", octet);
        }
        let public = match kind {
            NatKind::BrokenIpv6 => {
                vanish("ip6");
                v4
            }
            NatKind::BrokenIpv4 => {
                vanish("ip");
                v6
            }
            NatKind::Ipv6Only => v6,
            _ => v4,
        };
        let router = machine.clone();
        Natted { machine, router, carrier: None, kind, public, bits: Arc::default() }
    }
}

/// Makes a router of a namespace.
fn forward(router: &Namespace, rules: &str) {
    let forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    run(router.command("sh").args(["-c", forwarding]), LIMIT).ok();
    router.nft(rules);
}
