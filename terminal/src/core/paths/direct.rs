//! Direct paths (D1, D2): which addresses of the peer are tried, how often, and what came of it.
//!
//! Both ends tell each other their addresses inside the end-to-end connection and send probes to the other's. A NAT
//! that sees one leave lets the other's in. The first one is an *opener*: it leaves this side's NATs and dies before it
//! gets to the other's, since some NATs (Linux masquerading among them) take a packet that comes unasked amiss: they give
//! what leaves for its sender another port. No address is tried more than [`ROUNDS`] times a go; a go that found
//! nothing is repeated after a while, by both ends at the same time, and at once when either end's addresses change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::path::{NatKind, PathNews};
use tasuki_proto::session::{Addresses, Nat, Word};
use tasuki_proto::{Label, limits};

use super::event::{Candidate, Output, PathId};
use super::health::Path;
use super::session::{Session, Terminal};
use crate::core::budget::Budget;
use crate::core::login::AttachId;

/// Probes to one address in a go, behind the opener.
pub(super) const ROUNDS: u32 = 3;
/// An opener is discarded after so many hops: it passes the NATs of this side, two of them where the provider has one,
/// and not those of the other.
pub(super) const OPENER_HOPS: u8 = 4;
/// From the opener to the first round, besides a round trip: the other side's opener shall be out by then.
const OPENER_PAUSE: Duration = Duration::from_millis(100);
/// From one round to the next.
const ROUND_PACE: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(450)];
/// What the answers to the last round may take.
const LAST_ANSWER: Duration = Duration::from_millis(1_500);
/// After a go that found nothing, until the next.
const AGAIN: [Duration; 4] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(900),
];

/// From the probe of number `tries` to the next one, or to the end of the path; `rtt` is that of the relayed path.
pub(super) fn pace(tries: u32, rtt: Duration) -> Duration {
    match tries {
        0 => Duration::ZERO,
        1 => OPENER_PAUSE + rtt.min(Duration::from_secs(1)),
        n if n <= ROUNDS => ROUND_PACE[n as usize - 2],
        _ => LAST_ANSWER,
    }
}

/// The callee begins a further go by itself so much later than the caller, from which it hears of it.
const CALLEE_LATER: Duration = Duration::from_secs(2);
/// A go that the peer's word begins is made up for after this long.
const WORDS_PERIOD: Duration = Duration::from_secs(5);
/// A path to an address that the peer did not name is made up for after this long.
const UNNAMED_PERIOD: Duration = Duration::from_secs(2);
/// Services of machines have lower ports, and terminals have not.
const LEAST_PORT: u16 = 1_024;
/// From one go to the next at least, whatever the peer says.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// What is known of a session's direct paths.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// Direct frames to this terminal carry it.
    pub(super) label: Option<Label>,
    /// Where the peer may be reached.
    pub(super) peer: Option<Addresses>,
    /// What the peer is behind, as it says.
    pub(super) peer_nat: NatKind,
    next_id: u32,
    goes: usize,
    again: Option<Instant>,
    last_go: Option<Instant>,
    tried: usize,
    /// A go is under way and was counted.
    pub(super) trying: bool,
    /// Bounds the goes that the peer's words begin.
    words: Option<Budget>,
    /// Bounds the paths to addresses that the peer did not name.
    unnamed: Option<Budget>,
}

impl Direct {
    pub(super) fn due(&self) -> Option<Instant> {
        self.again
    }

    /// The direct path to this address.
    pub(super) fn path_to(
        &self,
        paths: &BTreeMap<PathId, Path>,
        address: SocketAddr,
    ) -> Option<PathId> {
        let mut found = paths.iter().filter(|(_, path)| path.is_direct() && path.to == address);
        found.next().map(|(id, _)| *id)
    }

    /// The id of one more direct path, unless there are too many.
    pub(super) fn room(&mut self, paths: &BTreeMap<PathId, Path>) -> Option<PathId> {
        if paths.values().filter(|path| path.is_direct()).count() >= limits::DIRECT_PATHS {
            return None;
        }
        self.next_id = self.next_id.wrapping_add(1);
        Some(PathId::Direct(self.next_id))
    }

    /// Whether a probe from an address that the peer did not name may make a path. Anybody who sees a probe can send a
    /// copy from anywhere, so there are few.
    pub(super) fn may_come_from(
        &mut self,
        address: SocketAddr,
        own: &[Candidate],
        now: Instant,
    ) -> bool {
        let fresh = || Budget::slow(UNNAMED_PERIOD, limits::UNNAMED_PATHS, now);
        is_worth_a_try(address, own) && self.unnamed.get_or_insert_with(fresh).take(now)
    }

    /// A direct path that stood went quiet.
    pub(super) fn lost(&mut self, now: Instant) {
        self.goes = 0;
        self.again = Some(now + AGAIN[0]);
    }

    /// Why there is none, for people.
    pub(super) fn explain(&self, allowed: bool, paths: &BTreeMap<PathId, Path>) -> String {
        let direct = || paths.values().filter(|path| path.is_direct());
        if !allowed {
            return "direct paths are off here (--direct never)".to_owned();
        }
        match &self.peer {
            None => "the other terminal has not said where it may be reached directly".to_owned(),
            Some(peer) if peer.addresses.is_empty() => {
                "the other terminal takes no direct path".to_owned()
            }
            Some(_) if direct().any(Path::works) => "the direct path is not better".to_owned(),
            Some(_) if direct().next().is_some() => "a direct path is being tried".to_owned(),
            Some(_) => {
                format!("none of {} addresses of the other terminal answered directly", self.tried)
            }
        }
    }
}

impl Session {
    /// The peer said where it may be reached. It may say so often, for a path to anybody: that begins few goes.
    pub(super) fn peer_addresses(
        &mut self,
        mut addresses: Addresses,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        addresses.addresses.truncate(limits::CANDIDATES);
        for address in &mut addresses.addresses {
            address.set_ip(address.ip().to_canonical());
        }
        self.direct.peer = Some(addresses);
        let fresh = || Budget::slow(WORDS_PERIOD, limits::ADDRESS_WORDS, now);
        if self.direct.words.get_or_insert_with(fresh).take(now) {
            self.try_addresses(now, t);
        } else {
            let again = now + WORDS_PERIOD;
            self.direct.again = Some(self.direct.again.map_or(again, |at| at.min(again)));
        }
    }

    /// Tells the peer where this terminal may be reached.
    pub(super) fn offer_addresses(&mut self, t: &mut Terminal<'_>) {
        if !self.is_begun() {
            return;
        }
        let label = match self.direct.label {
            Some(label) => label,
            None => {
                let label = Self::label(t);
                if !self.relayed_only {
                    t.out.push_back(Output::Listen { session: self.id, label });
                }
                *self.direct.label.insert(label)
            }
        };
        self.tell_addresses(label, t);
        self.direct.goes = 0;
        self.direct.again = None;
    }

    fn tell_addresses(&self, label: Label, t: &mut Terminal<'_>) {
        let offered = if self.relayed_only { &[] } else { t.candidates };
        let mut addresses: Vec<SocketAddr> = offered.iter().map(|c| c.address).collect();
        addresses.truncate(limits::CANDIDATES);
        let word = Word::Addresses(Addresses { label, addresses });
        t.out.push_back(Output::Tell(self.id, word));
        if !self.relayed_only {
            t.out.push_back(Output::Tell(self.id, Word::Nat(Nat { kind: t.nat })));
        }
    }

    /// Begins a go over the peer's addresses, but for those that answered.
    pub(super) fn try_addresses(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let Some(peer) = self.direct.peer.clone() else { return };
        if self.relayed_only || t.candidates.is_empty() || self.direct.label.is_none() {
            return;
        }
        if let Some(at) = self.direct.last_go.map(|at| at + LEAST_PAUSE)
            && at > now
        {
            self.direct.again = Some(at);
            return;
        }
        self.direct.last_go = Some(now);
        let unproven: Vec<PathId> = self
            .paths
            .iter()
            .filter(|(_, path)| path.is_direct() && !path.proven)
            .map(|(id, _)| *id)
            .collect();
        for id in unproven {
            self.remove(id, t);
        }
        let addresses = peer.addresses.iter().take(limits::CANDIDATES);
        let addresses: Vec<SocketAddr> =
            addresses.copied().filter(|address| is_worth_a_try(*address, t.candidates)).collect();
        self.direct.tried = addresses.len();
        self.count_go(peer.addresses.is_empty(), t);
        for to in addresses {
            if self.direct.path_to(&self.paths, to).is_none()
                && let Some(path) = self.direct_path(to, now)
                && let Some(id) = self.direct.room(&self.paths)
            {
                self.install(id, path, t);
            }
        }
        let wait = AGAIN[self.direct.goes.min(AGAIN.len() - 1)];
        self.direct.goes += 1;
        // The caller's word begins the next one of both.
        let later = if self.is_caller() { Duration::ZERO } else { CALLEE_LATER };
        self.direct.again = Some(now + wait + later);
    }

    /// A go begins, or cannot.
    fn count_go(&mut self, peer_never: bool, t: &mut Terminal<'_>) {
        if self.direct.trying || self.paths.values().any(|path| path.is_direct() && path.proven) {
            return;
        }
        match self.direct.tried {
            // Said once, however often it is tried again.
            0 if self.direct.goes > 0 => {}
            0 if peer_never => t.counts.failures.peer_never += 1,
            0 => t.counts.failures.no_address += 1,
            _ => {
                t.counts.attempts += 1;
                self.direct.trying = true;
            }
        }
    }

    /// What came of a go, as soon as that is known.
    fn count_outcome(&mut self, t: &mut Terminal<'_>) {
        if !self.direct.trying {
            return;
        }
        let mut direct = self.paths.values().filter(|path| path.is_direct());
        let found = direct.clone().any(|path| path.proven);
        if !found && direct.next().is_some() {
            return;
        }
        self.direct.trying = false;
        t.counts.went((t.nat, self.direct.peer_nat), found);
        if !found {
            self.say_news(PathNews::NoDirect, |_| true, t);
        }
    }

    /// Tells the relays of this session which did not hear it yet whether its data takes a direct path.
    pub(super) fn report(&mut self, t: &mut Terminal<'_>) {
        let direct = self.paths.get(&self.current).is_some_and(Path::is_direct);
        let news = if direct { PathNews::Direct } else { PathNews::Relayed };
        self.say_news(news, |path| path.told_direct != direct, t);
        let told = self.paths.values_mut().filter(|path| path.proven);
        told.for_each(|path| path.told_direct = direct);
    }

    fn say_news(&self, news: PathNews, to: impl Fn(&Path) -> bool, t: &mut Terminal<'_>) {
        let relayed = self.paths.values().filter(|path| path.proven && to(path));
        let attachments: BTreeSet<AttachId> = relayed.filter_map(Path::attach).collect();
        let (session, nat, peer_nat) = (self.id, t.nat, self.direct.peer_nat);
        for attach in attachments {
            let report = control::PathReport { session, news, nat, peer_nat };
            t.out.push_back(Output::Say(attach, ToRelay::PathReport(report)));
        }
    }

    pub(super) fn step_direct(&mut self, now: Instant, t: &mut Terminal<'_>) {
        self.count_outcome(t);
        if self.direct.again.is_none_or(|at| at > now) {
            return;
        }
        self.direct.again = None;
        let stands = self.paths.values().any(|path| path.is_direct() && path.works());
        if stands {
            self.direct.goes = 0;
        } else {
            // The peer tries when it hears this: a side whose opener comes after the other's probes would open nothing.
            if let Some(label) = self.direct.label.filter(|_| self.is_caller()) {
                self.tell_addresses(label, t);
            }
            self.try_addresses(now, t);
        }
    }
}

/// Whether an address that the peer named may be sent a few probes: a unicast one; on loopback only where this
/// terminal is there too; and none that is outside of this terminal's own NAT, whose hairpin is not to be trusted.
fn is_worth_a_try(address: SocketAddr, own: &[Candidate]) -> bool {
    let ip = address.ip();
    let loopback_here = own.iter().all(|one| one.address.ip().is_loopback());
    // "This network" (RFC 791) and what is reserved (RFC 1112), the broadcast address among it.
    let nobody = matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 240);
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let hairpin = own.iter().any(|one| !one.local && one.address.ip() == ip)
        && !own.iter().any(|one| one.local && one.address.ip() == ip);
    address.port() >= LEAST_PORT
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && !nobody
        && !link_local
        && !hairpin
        && ip.is_loopback() == loopback_here
}
