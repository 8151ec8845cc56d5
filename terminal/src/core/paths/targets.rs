//! How many probes go to addresses that never answered. A peer may name anybody's, and many sessions the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use tasuki_proto::limits;

use crate::core::budget::Budget;

/// What the sessions of a terminal may send to addresses without an answer: in total, and to each.
#[derive(Debug, Default)]
pub(super) struct Targets {
    all: Option<Budget>,
    budget_by_ip: BTreeMap<IpAddr, Budget>,
}

impl Targets {
    /// Whether one more probe may go to this address. At most [`limits::STRANGER_TARGETS`] addresses are remembered.
    pub(super) fn may_probe(&mut self, ip: IpAddr, now: Instant) -> bool {
        let of = |per_second: u32, at_once| Budget::with_burst(per_second.into(), at_once, now);
        if !self.budget_by_ip.contains_key(&ip)
            && self.budget_by_ip.len() >= limits::STRANGER_TARGETS
        {
            self.budget_by_ip.retain(|_, budget| !budget.is_full(now));
            if self.budget_by_ip.len() >= limits::STRANGER_TARGETS {
                return false;
            }
        }
        let each = || {
            let per_second = limits::STRANGER_PROBES_PER_SECOND_AND_TARGET;
            of(per_second, limits::STRANGER_PROBES_AT_ONCE_PER_TARGET)
        };
        let all = || of(limits::STRANGER_PROBES_PER_SECOND, limits::STRANGER_PROBES_AT_ONCE);
        self.budget_by_ip.entry(ip).or_insert_with(each).take(now)
            && self.all.get_or_insert_with(all).take(now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any point in time does")]
    fn probes_are_bounded_to_each_and_to_all() {
        let (mut targets, start) = (Targets::default(), Instant::now());
        let ip = |n: u32| IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n));
        let mut sent = |of: u32, at| (0..10_000).filter(|_| targets.may_probe(ip(of), at)).count();
        assert_eq!(sent(0, start), limits::STRANGER_PROBES_AT_ONCE_PER_TARGET as usize);
        let second = start + Duration::from_secs(1);
        assert_eq!(sent(0, second), limits::STRANGER_PROBES_PER_SECOND_AND_TARGET as usize);
        let all: usize = (1..20_000).map(|n| usize::from(targets.may_probe(ip(n), second))).sum();
        assert!(all <= limits::STRANGER_PROBES_AT_ONCE as usize, "{all}");
        assert!(targets.budget_by_ip.len() <= limits::STRANGER_TARGETS);
        let later = start + Duration::from_secs(60);
        assert!(targets.may_probe(ip(30_000), later), "who was not probed for a while makes room");
    }
}
