//! The internet in virtual time: machines, the NATs in front of them, and what happens to a packet on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::gateway::{Gateway, Habits};
use super::kind::NatKind;

/// Routers that the internet has between two places, as in the laboratory: a packet of a shorter life does not arrive.
const HOPS: u8 = 8;
/// The life of an ordinary packet.
pub(super) const LIFE: u8 = 64;
/// From one machine of a LAN to another.
const LAN: Duration = Duration::from_micros(300);
/// The longest UDP payload that fits the 1,500 bytes of an Ethernet, over either family.
const LONGEST: usize = 1_452;
/// One way from each place into the internet.
const ACCESS: Duration = Duration::from_millis(2);
/// No place is further from another than this, one way, besides.
const FURTHEST: f64 = 0.060;

/// What a way does to packets, in one direction.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// How long each takes at least.
    pub delay: Duration,
    /// How much longer at most, at random for each: packets overtake each other.
    pub jitter: Duration,
    /// The share that is lost.
    pub loss: f64,
}

/// A machine with one UDP socket.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) kind: NatKind,
    pub(super) v4: Option<Ipv4Addr>,
    pub(super) v6: Option<Ipv6Addr>,
    pub(super) port: u16,
    /// The NATs in front of it, its own first.
    pub(super) gateways: Vec<usize>,
}

impl Host {
    /// The address that a packet to `to` leaves with; `None` where the family is missing, or does not work.
    fn source(&self, to: IpAddr) -> Option<SocketAddr> {
        let broken = match to {
            IpAddr::V4(_) => self.kind == NatKind::BrokenIpv4,
            IpAddr::V6(_) => self.kind == NatKind::BrokenIpv6,
        };
        let ip = match to {
            IpAddr::V4(_) => self.v4.map(IpAddr::from),
            IpAddr::V6(_) => self.v6.map(IpAddr::from),
        };
        ip.filter(|_| !broken).map(|ip| (ip, self.port).into())
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.v4.map(IpAddr::from) == Some(ip) || self.v6.map(IpAddr::from) == Some(ip)
    }

    pub(super) fn interfaces(&self) -> BTreeSet<IpAddr> {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain(self.v6.map(IpAddr::from)).collect()
    }
}

/// How a packet left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// To a machine of the same LAN, or to itself.
    Near(usize, SocketAddr, Duration),
    /// Into the internet, with this source.
    Far(SocketAddr, Duration),
    /// It will not arrive.
    Lost,
}

/// Whether an address means nothing outside of a LAN.
pub(super) fn is_private(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_private() || v4.octets()[..2] == [100, 64])
}

/// Machines, NATs and ways.
#[derive(Debug)]
pub(super) struct Net {
    pub(super) hosts: Vec<Host>,
    pub(super) gateways: Vec<Gateway>,
    /// What every way has besides its length.
    pub(super) plain: Line,
    /// Ways between two public addresses that are otherwise.
    pub(super) lines: BTreeMap<(IpAddr, IpAddr), Line>,
    /// How far from one end of the world each address is, seconds.
    places: BTreeMap<IpAddr, f64>,
    pub(super) rng: SmallRng,
}

impl Net {
    pub(super) fn new(rng: SmallRng) -> Net {
        let plain = Line { delay: Duration::ZERO, jitter: Duration::ZERO, loss: 0.0 };
        let (lines, places) = Default::default();
        Net { hosts: Vec::new(), gateways: Vec::new(), plain, lines, places, rng }
    }

    /// How a NAT of this net behaves.
    pub(super) fn habits(&mut self) -> Habits {
        Habits {
            keeps_ports: self.rng.random_bool(0.7),
            lifetime: Duration::from_secs(self.rng.random_range(30..300)),
            inbound_refreshes: self.rng.random(),
        }
    }

    /// Machines of this kind at one place, whose public addresses have the number `octet`: several are one LAN.
    pub(super) fn home(&mut self, kind: NatKind, octet: u8, machines: usize) -> Vec<usize> {
        let (v4, v6) = public(octet);
        self.place(v4.into(), None);
        self.place(v6.into(), Some(v4.into()));
        let habits = self.habits();
        let chain = Gateway::chain(kind, v4, habits);
        let gateways: Vec<usize> = (self.gateways.len()..).take(chain.len()).collect();
        self.gateways.extend(chain);
        let first = self.hosts.len();
        for n in 0..machines {
            // As a home router does, each LAN has the same addresses; ports meet, too.
            let inner = Ipv4Addr::new(192, 168, 1, 10 + n as u8);
            let has_v6 =
                matches!(kind, NatKind::Ipv6Only | NatKind::BrokenIpv4 | NatKind::BrokenIpv6);
            let v4 = if gateways.is_empty() { v4 } else { inner };
            self.hosts.push(Host {
                kind,
                v4: (kind != NatKind::Ipv6Only).then_some(v4),
                v6: has_v6.then_some(v6),
                port: 5_000,
                gateways: gateways.clone(),
            });
        }
        (first..self.hosts.len()).collect()
    }

    /// Gives an address its place: at random, or where another one is.
    pub(super) fn place(&mut self, ip: IpAddr, at: Option<IpAddr>) {
        let known = at.and_then(|other| self.places.get(&other).copied());
        let place = known.unwrap_or_else(|| self.rng.random_range(0.0..FURTHEST));
        self.places.insert(ip, place);
    }

    /// What the way between two public addresses does.
    pub(super) fn line(&self, from: IpAddr, to: IpAddr) -> Line {
        let given = self.lines.get(&(from, to)).copied();
        given.unwrap_or_else(|| Line { delay: self.distance(from, to), ..self.plain })
    }

    /// How long a packet takes at least.
    pub(super) fn distance(&self, from: IpAddr, to: IpAddr) -> Duration {
        let place = |ip| self.places.get(&ip).copied().unwrap_or_default();
        ACCESS * 2 + Duration::from_secs_f64((place(from) - place(to)).abs())
    }

    /// The time that a packet of this length takes; `None` when it is lost.
    pub(super) fn takes(&mut self, from: IpAddr, to: IpAddr, length: usize) -> Option<Duration> {
        let line = self.line(from, to);
        if length > LONGEST || self.rng.random_bool(line.loss) {
            return None;
        }
        Some(line.delay + line.jitter.mul_f64(self.rng.random()))
    }

    /// A machine sends.
    pub(super) fn leave(
        &mut self,
        host: usize,
        to: SocketAddr,
        (length, life): (usize, u8),
        now: Duration,
    ) -> Left {
        let Some(source) = self.hosts[host].source(to.ip()) else { return Left::Lost };
        let gateways = self.hosts[host].gateways.clone();
        let mut same_lan = (0..self.hosts.len()).filter(|other| {
            *other == host || (!gateways.is_empty() && self.hosts[*other].gateways == gateways)
        });
        if let Some(near) = same_lan.find(|other| self.hosts[*other].has(to.ip())) {
            return if self.hosts[near].port == to.port() {
                Left::Near(near, source, LAN)
            } else {
                Left::Lost
            };
        }
        let (mut source, mut life) = (source, life);
        for gateway in gateways {
            let turned_round = to.ip() == IpAddr::from(self.gateways[gateway].external);
            if life <= 1 || turned_round {
                return Left::Lost;
            }
            life -= 1;
            let mapped = self.gateways[gateway].outbound(source, to, now, &mut self.rng);
            let Some(mapped) = mapped else { return Left::Lost };
            source = mapped;
        }
        if life < HOPS || is_private(to.ip()) {
            return Left::Lost;
        }
        match self.takes(source.ip(), to.ip(), length) {
            Some(time) => Left::Far(source, time),
            None => Left::Lost,
        }
    }

    /// The machine that a packet arrives at; `None` where a NAT keeps it out, or nobody is there.
    pub(super) fn enter(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        now: Duration,
    ) -> Option<usize> {
        let at_home = |host: &Host| host.source(from.ip()) == Some(to) && host.gateways.is_empty();
        if let Some(host) = self.hosts.iter().position(at_home) {
            return Some(host);
        }
        let is_outer = |host: &&Host| {
            let outer = host.gateways.last().map(|last| self.gateways[*last].external);
            outer.map(IpAddr::from) == Some(to.ip())
        };
        let chain = self.hosts.iter().find(is_outer)?.gateways.clone();
        let mut inner = to;
        for gateway in chain.iter().rev() {
            inner = self.gateways[*gateway].inbound(from, inner.port(), now)?;
        }
        self.hosts.iter().position(|host| {
            host.gateways == chain && host.has(inner.ip()) && host.port == inner.port()
        })
    }
}

/// The public addresses of this number.
pub(super) fn public(octet: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(203, 0, 113, octet), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, octet.into()))
}
