//! Requests to the registrar, as any relay takes them: from newcomers and nodes by their address, and from neighbour relays
//! that pass them on.
//!
//! Enrolments and renewals have budgets apart, so that no crowd of newcomers keeps a node from renewing. A request counts as a
//! renewal only after its signature was checked against the mesh's root, and then also against the rate of its own node.
//! Each budget is a rate and a number of requests being answered; whoever asks gets a part of both.

use std::collections::BTreeMap;
use std::time::Instant;

use tasuki_proto::identity::KeyFingerprint;
use tasuki_proto::limits;

use super::admission::Source;
use super::bucket::Bucket;
use super::shares::Shares;

/// Askers and nodes remembered before those whose rate has recovered are swept out.
const REMEMBERED: usize = 1_024;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// Somebody at an address.
    Address(Source),
    /// The neighbour relay with this key.
    Relay(KeyFingerprint),
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A first certificate, or what cannot be understood.
    Enrolment,
    /// A new certificate for the key whose signature was checked.
    Renewal(KeyFingerprint),
}

/// The budget of one kind.
#[derive(Debug, Default)]
struct Part {
    all: Option<Bucket>,
    rates: BTreeMap<Asker, Bucket>,
    places: Shares<Asker>,
}

const ALL: (u32, u32) =
    (limits::ENROLMENTS_PER_SECOND, limits::ENROLMENTS_PER_SECOND + limits::ENROLMENTS_AT_ONCE);
const EACH: (u32, u32) = (limits::ENROLMENTS_PER_SECOND / 2, limits::ENROLMENTS_AT_ONCE);

impl Part {
    fn begin(&mut self, asker: Asker, now: Instant) -> bool {
        if self.rates.len() >= REMEMBERED {
            self.rates.retain(|_, bucket| !bucket.is_full(EACH.0, EACH.1, now));
        }
        if !self.places.has_room(&asker, limits::ENROLMENT_REQUESTS, 1) {
            return false;
        }
        let own = self.rates.entry(asker).or_insert_with(|| Bucket::full(EACH.1, now));
        let may = own.take(EACH.0, EACH.1, now)
            && self.all.get_or_insert(Bucket::full(ALL.1, now)).take(ALL.0, ALL.1, now);
        if may {
            self.places.take(&asker);
        }
        may
    }
}

/// All budgets of one relay.
#[derive(Debug, Default)]
pub struct Requests {
    enrolments: Part,
    renewals: Part,
    looks: BTreeMap<Asker, Bucket>,
    nodes: BTreeMap<KeyFingerprint, Bucket>,
    refused: [u64; 2],
}

impl Requests {
    /// Whether a request may be looked at, to learn its kind: to check a signature is work too.
    pub fn may_look(&mut self, asker: Asker, now: Instant) -> bool {
        let rate = limits::REQUESTS_LOOKED_AT_PER_SECOND;
        if self.looks.len() >= REMEMBERED {
            self.looks.retain(|_, bucket| !bucket.is_full(rate, rate, now));
        }
        let look = self.looks.entry(asker).or_insert_with(|| Bucket::full(rate, now));
        let may = look.take(rate, rate, now);
        self.refused[0] += u64::from(!may);
        may
    }

    /// Whether a request may go to the registrar; if so, [`Requests::handle_done`] follows.
    pub fn begin(&mut self, asker: Asker, kind: Kind, now: Instant) -> bool {
        let may = match kind {
            Kind::Enrolment => self.enrolments.begin(asker, now),
            Kind::Renewal(key) => self.may_renew(key, now) && self.renewals.begin(asker, now),
        };
        if !may {
            self.refused[usize::from(kind != Kind::Enrolment)] += 1;
        }
        may
    }

    /// A node that renews in a loop, and whoever repeats its request, takes nothing from other nodes.
    fn may_renew(&mut self, key: KeyFingerprint, now: Instant) -> bool {
        let (rate, burst) =
            (limits::RENEWALS_PER_SECOND_AND_NODE, limits::RENEWALS_AT_ONCE_PER_NODE);
        if self.nodes.len() >= REMEMBERED {
            self.nodes.retain(|_, bucket| !bucket.is_full(rate, burst, now));
        }
        let node = self.nodes.entry(key).or_insert_with(|| Bucket::full(burst, now));
        node.take(rate, burst, now)
    }

    /// A request that began is answered, or given up.
    pub fn handle_done(&mut self, asker: Asker, kind: Kind) {
        match kind {
            Kind::Enrolment => self.enrolments.places.give(&asker),
            Kind::Renewal(_) => self.renewals.places.give(&asker),
        }
    }

    /// Requests refused since the start, by the reason under which operators see them.
    pub fn refused(&self) -> [(&'static str, u64); 2] {
        [("enrolments-over-limit", self.refused[0]), ("renewals-over-limit", self.refused[1])]
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need an instant to start from")]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;

    fn at(n: u8) -> Asker {
        Asker::Address(IpAddr::from(Ipv4Addr::new(10, 0, 0, n)).into())
    }

    fn key(n: u8) -> KeyFingerprint {
        KeyFingerprint([n; 32])
    }

    #[test]
    fn a_flood_of_one_address_or_relay_leaves_enrolments_and_renewals_to_others() {
        let start = Instant::now();
        for greedy in [at(1), Asker::Relay(key(9))] {
            let mut requests = Requests::default();
            let (mut passed, mut refused) = (0, 0);
            for ms in 0..10_000 {
                let now = start + Duration::from_millis(ms);
                for _ in 0..5 {
                    if requests.begin(greedy, Kind::Enrolment, now) {
                        requests.handle_done(greedy, Kind::Enrolment);
                        passed += 1;
                    }
                }
                // Somebody else every tenth of a second, and a node that renews every second.
                if ms % 100 == 0 {
                    let may = requests.begin(at(2), Kind::Enrolment, now);
                    refused += u32::from(!may);
                    requests.handle_done(at(2), Kind::Enrolment);
                }
                if ms % 1_000 == 0 {
                    let renewal = Kind::Renewal(key((ms / 1_000) as u8));
                    assert!(requests.begin(greedy, renewal, now), "{ms}");
                    requests.handle_done(greedy, renewal);
                }
            }
            assert_eq!(refused, 0);
            let most = EACH.1 + 10 * EACH.0;
            assert!(passed <= most && passed + 2 > most, "{passed} of {most}");
        }
    }

    #[test]
    fn signatures_are_checked_at_a_rate() {
        let (mut requests, now) = (Requests::default(), Instant::now());
        let looks = (0..10_000).filter(|_| requests.may_look(at(1), now)).count();
        assert_eq!(looks, limits::REQUESTS_LOOKED_AT_PER_SECOND as usize);
        assert!(requests.may_look(at(2), now));
    }

    #[test]
    fn requests_that_hang_take_half_of_the_places_at_most() {
        let (mut requests, start) = (Requests::default(), Instant::now());
        let mut hang = 0;
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            hang += (0..100).filter(|_| requests.begin(at(1), Kind::Enrolment, now)).count();
        }
        assert_eq!(hang, limits::ENROLMENT_REQUESTS / 2);
        assert!(requests.begin(at(2), Kind::Enrolment, start + Duration::from_secs(60)));
    }

    #[test]
    fn a_node_that_renews_in_a_loop_takes_nothing_from_others() {
        let (mut requests, now) = (Requests::default(), Instant::now());
        let passed = (0..1_000)
            .filter(|_| {
                let may = requests.begin(at(1), Kind::Renewal(key(1)), now);
                if may {
                    requests.handle_done(at(1), Kind::Renewal(key(1)));
                }
                may
            })
            .count();
        assert_eq!(passed, limits::RENEWALS_AT_ONCE_PER_NODE as usize);
        assert!(requests.begin(at(1), Kind::Renewal(key(2)), now));
        assert!(requests.refused()[1].1 > 900);
    }
}
