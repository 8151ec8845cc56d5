//! What earlier look-ups and tries found.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::limits;

/// After this time a failure no longer counts against an address.
pub const FORGIVEN: Duration = Duration::from_secs(600);

/// How an address did the last time it was tried. Lower values are tried first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answered.
    Worked,
    /// Nothing is known of it, or its last failure is forgiven.
    New,
    /// It failed at this time; what failed longest ago is tried first.
    Failed(Instant),
}

#[derive(Debug)]
struct Answer {
    addresses: Vec<IpAddr>,
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Outcome {
    worked: bool,
    at: Instant,
}

/// The last good answer for each name, and the last outcome for each address.
///
/// Holds at most [`limits::NAMES_REMEMBERED`] names and [`limits::DIALLED_REMEMBERED`] addresses; the oldest makes room.
#[derive(Debug, Default)]
pub struct Memory {
    answers: BTreeMap<String, Answer>,
    outcomes: BTreeMap<SocketAddr, Outcome>,
}

impl Memory {
    /// Keeps the answer of a look-up. An empty answer changes nothing: the last good one stays.
    pub fn answered(&mut self, name: &str, mut addresses: Vec<IpAddr>, now: Instant) {
        if addresses.is_empty() {
            return;
        }
        addresses.truncate(limits::ADDRESSES_PER_NAME);
        self.answers.insert(name.to_owned(), Answer { addresses, at: now });
        if self.answers.len() > limits::NAMES_REMEMBERED {
            let oldest = self.answers.iter().min_by_key(|(_, answer)| answer.at);
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.answers.remove(&name);
            }
        }
    }

    /// The last good answer for `name`, unless it is older than `keep`; none: empty.
    pub fn remembered(&self, name: &str, keep: Option<Duration>, now: Instant) -> Vec<IpAddr> {
        let answer = self.answers.get(name).filter(|answer| {
            keep.is_none_or(|keep| now.saturating_duration_since(answer.at) <= keep)
        });
        answer.map(|answer| answer.addresses.clone()).unwrap_or_default()
    }

    /// Notes how a try at `address` ended.
    pub fn tried(&mut self, address: SocketAddr, worked: bool, now: Instant) {
        self.outcomes.insert(address, Outcome { worked, at: now });
        if self.outcomes.len() > limits::DIALLED_REMEMBERED {
            let oldest = self.outcomes.iter().min_by_key(|(_, outcome)| outcome.at);
            if let Some(address) = oldest.map(|(address, _)| *address) {
                self.outcomes.remove(&address);
            }
        }
    }

    /// How `address` did last.
    pub fn standing(&self, address: SocketAddr, now: Instant) -> Standing {
        match self.outcomes.get(&address) {
            Some(Outcome { worked: true, .. }) => Standing::Worked,
            Some(Outcome { at, .. }) if now.saturating_duration_since(*at) < FORGIVEN => {
                Standing::Failed(*at)
            }
            Some(_) | None => Standing::New,
        }
    }
}
