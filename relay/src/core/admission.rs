//! Which handshakes begin at an endpoint: so many at once, and no address more than its share (invariants 3 and 4).
//!
//! Two budgets are common to all addresses. A *place* belongs to a handshake from its begin until it is over, at most
//! for [`PLACE`]: what has a place is being worked on, so places bound the work. Whoever does not go on in that time is
//! left aside and is only *under way*, which costs memory and no work.
//!
//! Both are shared so that an address with many stalled handshakes loses to one that has none: an address takes no
//! more places than are free, so that one alone may have half of them, and `n` that want all leave one in `n + 1`; and
//! where too many are under way, the oldest of the address that has most of them is given up.
//!
//! An address is an IPv4 address or an IPv6 /64, which is what one customer gets. It must have proven that it receives
//! (docs/adr/0016-retry.md), else strangers could use up each other's share. What an address refused is not
//! remembered, so refusals cost no memory; an address is forgotten when it has no connection and its rate has
//! recovered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use tasuki_proto::limits;

use super::bucket::Bucket;

/// A handshake whose client does not go on for this long makes place for another.
pub const PLACE: Duration = Duration::from_millis(500);
/// A handshake must be over within this time.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Whom limits count: an IPv4 address or an IPv6 /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    /// Takes v4-mapped addresses for what they stand for.
    fn from(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
            v4 => v4,
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            IpAddr::V4(ip) => write!(f, "{ip}"),
            IpAddr::V6(ip) => write!(f, "{ip}/64"),
        }
    }
}

/// What one address may take of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerAddress {
    /// Connections, handshakes included.
    pub connections: u32,
    /// Handshakes under way, stalled ones included.
    pub handshakes: u32,
    /// Connections that begin per second, on average.
    pub per_second: u32,
    /// Connections that begin at once.
    pub burst: u32,
}

impl Default for PerAddress {
    fn default() -> Self {
        Self {
            connections: limits::CONNECTIONS_PER_ADDRESS,
            handshakes: limits::HANDSHAKES_PER_ADDRESS,
            per_second: limits::CONNECTS_PER_SECOND_AND_ADDRESS,
            burst: limits::CONNECTS_AT_ONCE_PER_ADDRESS,
        }
    }
}

/// Why a handshake does not begin, or is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// There is no place for anybody.
    NoPlace,
    /// The address has as many under way as it may, or has places enough.
    AddressHandshakes,
    /// The address begins too many per second.
    AddressRate,
    /// The address has as many connections as it may.
    AddressConnections,
    /// It stalled, and made room for one of an address that has fewer.
    MadeRoom,
    /// It took longer than [`HANDSHAKE`].
    TooLong,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 6] = [
        Reason::NoPlace,
        Reason::AddressHandshakes,
        Reason::AddressRate,
        Reason::AddressConnections,
        Reason::MadeRoom,
        Reason::TooLong,
    ];

    /// Its name among the reasons of drops.
    pub fn word(self) -> &'static str {
        match self {
            Reason::NoPlace => "handshakes-at-once",
            Reason::AddressHandshakes => "address-handshakes",
            Reason::AddressRate => "address-rate",
            Reason::AddressConnections => "address-connections",
            Reason::MadeRoom => "handshake-made-room",
            Reason::TooLong => "handshake-too-long",
        }
    }
}

/// A connection, by a number that is never used twice; the later begun has the higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number(u64);

/// What is to be done with a newcomer whose address is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its handshake begins. The other one is given up for it.
    Begin(Number, Option<Number>),
    /// It is not answered, and asks again by itself.
    Ignore(Reason),
    /// It is told no: it will not get in soon.
    Refuse(Reason),
}

/// What an address has.
#[derive(Debug)]
struct Held {
    /// Connections, handshakes included.
    connections: u32,
    /// Its handshakes, the oldest first.
    under_way: BTreeSet<Number>,
    places: usize,
    rate: Bucket,
}

/// Decides who begins a handshake at one endpoint.
#[derive(Debug)]
pub struct Admission {
    per_address: PerAddress,
    next: u64,
    held_by_source: BTreeMap<Source, Held>,
    source_by_number: BTreeMap<Number, Source>,
    places: BTreeMap<Number, Instant>,
    /// Who has how many under way.
    crowds: BTreeSet<(usize, Source)>,
    under_way: usize,
    /// Addresses to be remembered before the next look for those that need not be.
    sweep_at: usize,
    refused: BTreeMap<Reason, u64>,
}

impl Admission {
    /// Nobody is there.
    pub fn new(per_address: PerAddress) -> Self {
        Self {
            per_address,
            next: 1,
            held_by_source: BTreeMap::new(),
            source_by_number: BTreeMap::new(),
            places: BTreeMap::new(),
            crowds: BTreeSet::new(),
            under_way: 0,
            sweep_at: limits::ADDRESSES_REMEMBERED,
            refused: BTreeMap::new(),
        }
    }

    /// What one address may take from here on; what it has taken stays.
    pub fn set_per_address(&mut self, per_address: PerAddress) {
        self.per_address = per_address;
    }

    /// Decides on a newcomer from `source`. What begins ends with [`Admission::handle_closed`], whatever becomes of it.
    pub fn decide(&mut self, source: Source, now: Instant) -> Decision {
        self.free_places(now);
        let most = self.per_address;
        let held = self.held_by_source.get(&source);
        let (connections, handshakes, places) =
            held.map_or((0, 0, 0), |held| (held.connections, held.under_way.len(), held.places));
        let free = limits::HANDSHAKES_AT_ONCE.saturating_sub(self.places.len());
        if connections >= most.connections {
            return Decision::Refuse(self.count(Reason::AddressConnections));
        }
        if free == 0 {
            return Decision::Ignore(self.count(Reason::NoPlace));
        }
        if places >= free || handshakes >= most.handshakes as usize {
            return Decision::Ignore(self.count(Reason::AddressHandshakes));
        }
        let Ok(instead) = self.room_under_way(handshakes) else {
            return Decision::Ignore(self.count(Reason::NoPlace));
        };
        self.sweep(now);
        let held = self.held_by_source.entry(source).or_insert_with(|| Held {
            connections: 0,
            under_way: BTreeSet::new(),
            places: 0,
            rate: Bucket::full(most.burst, now),
        });
        if !held.rate.take(most.per_second, most.burst, now) {
            return Decision::Ignore(self.count(Reason::AddressRate));
        }
        if let Some(number) = instead {
            self.count(Reason::MadeRoom);
            self.handle_over(number);
        }
        Decision::Begin(self.begin(source, now), instead)
    }

    fn begin(&mut self, source: Source, now: Instant) -> Number {
        let number = Number(self.next);
        self.next += 1;
        if let Some(held) = self.held_by_source.get_mut(&source) {
            self.crowds.remove(&(held.under_way.len(), source));
            held.under_way.insert(number);
            self.crowds.insert((held.under_way.len(), source));
            held.connections += 1;
            held.places += 1;
            self.places.insert(number, now);
            self.under_way += 1;
            self.source_by_number.insert(number, source);
        }
        number
    }

    /// The handshake that makes room for one of an address that has `own` under way, where one must; an error where
    /// nobody has more than would be fair.
    fn room_under_way(&self, own: usize) -> Result<Option<Number>, ()> {
        if self.under_way < limits::INCOMING_HANDSHAKES {
            return Ok(None);
        }
        let &(most, source) = self.crowds.last().ok_or(())?;
        if most <= own + 1 {
            return Err(());
        }
        let oldest = self.held_by_source.get(&source).and_then(|held| held.under_way.first());
        oldest.copied().map(Some).ok_or(())
    }

    /// A handshake is over: the connection stands, or its end follows.
    pub fn handle_over(&mut self, number: Number) {
        self.free_place(number);
        let Some(&source) = self.source_by_number.get(&number) else { return };
        let Some(held) = self.held_by_source.get_mut(&source) else { return };
        let before = held.under_way.len();
        if held.under_way.remove(&number) {
            self.under_way -= 1;
            self.crowds.remove(&(before, source));
            if before > 1 {
                self.crowds.insert((before - 1, source));
            }
        }
    }

    /// A handshake took too long.
    pub fn handle_too_long(&mut self, number: Number) {
        self.count(Reason::TooLong);
        self.handle_over(number);
    }

    /// A connection is gone, whether its handshake was over or not.
    pub fn handle_closed(&mut self, number: Number) {
        self.handle_over(number);
        let Some(source) = self.source_by_number.remove(&number) else { return };
        if let Some(held) = self.held_by_source.get_mut(&source) {
            held.connections -= 1;
        }
    }

    /// How many handshakes are under way, and how many connections there are with them.
    pub fn len(&self) -> (usize, usize) {
        (self.under_way, self.source_by_number.len())
    }

    /// What was refused since the start, by reason.
    pub fn refused(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .into_iter()
            .map(|reason| (reason, self.refused.get(&reason).copied().unwrap_or(0)))
    }

    fn count(&mut self, reason: Reason) -> Reason {
        *self.refused.entry(reason).or_default() += 1;
        reason
    }

    fn free_place(&mut self, number: Number) {
        if self.places.remove(&number).is_some()
            && let Some(source) = self.source_by_number.get(&number)
            && let Some(held) = self.held_by_source.get_mut(source)
        {
            held.places -= 1;
        }
    }

    fn free_places(&mut self, now: Instant) {
        while let Some((&number, &since)) = self.places.first_key_value()
            && now.saturating_duration_since(since) >= PLACE
        {
            self.free_place(number);
        }
    }

    /// Forgets addresses whose memory says nothing, whenever there are twice as many as at the last time; those that
    /// have no connection altogether where they are too many.
    fn sweep(&mut self, now: Instant) {
        if self.held_by_source.len() < self.sweep_at {
            return;
        }
        let PerAddress { per_second, burst, .. } = self.per_address;
        let live = |held: &Held| held.connections > 0;
        self.held_by_source
            .retain(|_, held| live(held) || !held.rate.is_full(per_second, burst, now));
        let idle = self.held_by_source.values().filter(|held| !live(held)).count();
        if idle > limits::ADDRESSES_REMEMBERED / 2 {
            self.held_by_source.retain(|_, held| live(held));
        }
        self.sweep_at = (self.held_by_source.len() * 2).max(limits::ADDRESSES_REMEMBERED);
    }
}

#[cfg(test)]
mod tests;
