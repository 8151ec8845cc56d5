//! Whether this relay's advertised addresses are reached from outside (docs/adr/0029-knocks.md).
//!
//! A relay cannot tell by itself: its firewall lets answers in, and a router may forward the port to nobody. So it asks
//! a neighbour, over their link, to send one *knock* to one of its advertised addresses, from a socket that has nothing
//! to do with the link. The knock carries a random label that only the two know, so its arrival proves that the
//! neighbour's packet came in at that address, and nobody answers it.
//!
//! ```text
//! r1                                  r2
//!   | TryAddress(address, label) ----->|   over the link
//!   |<============ knock(label) =======|   UDP, from a socket of its own
//!   |<------------------ Tried(label) -|   over the link: it was sent, or could not be
//! ```
//!
//! | what r1 sees | the address is |
//! |---|---|
//! | the knock | reached: `yes` |
//! | `Tried`, sent, and no knock for [`ARRIVAL`]; twice in a row, where possible from two neighbours | not reached: `no` |
//! | `Tried`, not sent; or no answer for [`ANSWER`]: the neighbour does not know the message | as before |
//!
//! **No reflector.** A relay knocks for a neighbour only, only at an address that the neighbour's own row advertises, one
//! packet of 8 bytes for a longer message, or [`limits::KNOCKED_ADDRESSES`] when its name has several addresses,
//! [`limits::KNOCKS_AT_ONCE`] at once and one a second; at a loopback address
//! only for a neighbour on this machine, and for that one nowhere else.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use serde::Serialize;
use tasuki_proto::mesh::{ToPeer, Tried, TryAddress};
use tasuki_proto::{Label, RelayName, limits};

use super::bucket::Bucket;
use super::{LinkId, Output, Relay};

/// How long a neighbour may take to answer.
pub const ANSWER: Duration = Duration::from_secs(8);
/// How long a knock that was sent may take.
pub const ARRIVAL: Duration = Duration::from_secs(2);
/// Between two tries while an address is in doubt.
pub const SOON: Duration = Duration::from_secs(2);
/// Between two tries of a round that found nothing new.
pub const SELDOM: Duration = Duration::from_secs(60);
/// Tries in doubt before they become seldom.
const PATIENCE: u32 = 6;
/// Knocks in a row that have to be lost until an address counts as not reached.
const LOST: u32 = 2;

/// What is known of an advertised address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressView {
    /// `HOST:PORT`, as advertised.
    pub address: String,
    /// Whether another relay's packet came in.
    pub reachable: Reached,
    /// Since when that is so, ms since 1970.
    pub since: Option<u64>,
    /// The relay that tried last.
    pub by: Option<RelayName>,
}

/// Whether an address is reached from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reached {
    /// A neighbour's packet came in.
    Yes,
    /// Neighbours' packets did not.
    No,
    /// Nobody has tried.
    #[default]
    Unknown,
}

#[derive(Debug)]
struct Address {
    view: AddressView,
    /// Knocks lost in a row.
    lost: u32,
    tries: u32,
    due: Instant,
}

/// A knock that is waited for.
#[derive(Debug)]
struct Pending {
    label: Label,
    address: usize,
    link: LinkId,
    by: RelayName,
    sent: bool,
    deadline: Instant,
}

/// What the relay has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// Say it to a neighbour, and expect a knock with its label.
    Try(LinkId, TryAddress),
    /// Expect this knock no more.
    Forget(Label),
}

/// This relay's advertised addresses, and whether they are reached.
#[derive(Debug)]
pub struct SelfTest {
    addresses: Vec<Address>,
    links: BTreeMap<LinkId, RelayName>,
    /// The neighbour that was asked last.
    last: Option<LinkId>,
    pending: Option<Pending>,
    /// What each neighbour may still ask of this relay.
    knocks: BTreeMap<LinkId, Bucket>,
    rng: StdRng,
    outputs: VecDeque<Ask>,
}

impl SelfTest {
    /// Nothing is known of `addresses`. `seed` makes labels: it must not be guessable.
    pub fn new(addresses: &[String], seed: [u8; 32], now: Instant) -> Self {
        let fresh = |address: &String| Address {
            view: AddressView {
                address: address.clone(),
                reachable: Reached::Unknown,
                since: None,
                by: None,
            },
            lost: 0,
            tries: 0,
            due: now,
        };
        Self {
            addresses: addresses.iter().take(limits::RELAY_ADDRESSES).map(fresh).collect(),
            links: BTreeMap::new(),
            last: None,
            pending: None,
            knocks: BTreeMap::new(),
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    /// What is known, in the order of advertising.
    pub fn views(&self) -> Vec<AddressView> {
        self.addresses.iter().map(|address| address.view.clone()).collect()
    }

    /// A neighbour can be asked.
    pub fn handle_up(&mut self, link: LinkId, name: RelayName, now: Instant) {
        self.links.insert(link, name);
        for address in &mut self.addresses {
            if address.view.reachable != Reached::Yes {
                address.tries = 0;
                address.due = address.due.min(now + SOON);
            }
        }
        self.ask(now);
    }

    /// A neighbour is gone.
    pub fn handle_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.knocks.remove(&link);
    }

    /// A neighbour says whether it knocked.
    pub fn handle_tried(&mut self, link: LinkId, tried: Tried, now: Instant) {
        let Some(pending) = &mut self.pending else { return };
        // Said once: who repeats it does not put off the end of the wait.
        if pending.sent || pending.link != link || pending.label != tried.label {
            return;
        }
        if tried.sent {
            pending.sent = true;
            pending.deadline = now + ARRIVAL;
        } else {
            self.give_up(now, 0);
        }
    }

    /// A knock that was expected came in.
    pub fn handle_knock(&mut self, label: Label, now: Instant, wall_ms: u64) {
        if self.pending.as_ref().is_some_and(|pending| pending.label == label)
            && let Some(pending) = self.pending.take()
        {
            self.found(&pending, Reached::Yes, now, wall_ms);
            self.ask(now);
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        if let Some(pending) = &self.pending
            && pending.deadline <= now
        {
            self.give_up(now, wall_ms);
        }
        self.ask(now);
    }

    /// When [`SelfTest::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.pending {
            Some(pending) => Some(pending.deadline),
            None if self.links.is_empty() => None,
            None => self.addresses.iter().map(|address| address.due).min(),
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Ask> {
        self.outputs.pop_front()
    }

    /// Whether a neighbour may have this relay knock once more.
    pub fn may_knock(&mut self, link: LinkId, now: Instant) -> bool {
        let burst = limits::KNOCKS_AT_ONCE;
        let bucket = self.knocks.entry(link).or_insert_with(|| Bucket::full(burst, now));
        bucket.take(limits::KNOCKS_PER_SECOND, burst, now)
    }

    /// Asks the next neighbour to try the address that is due, one at a time.
    fn ask(&mut self, now: Instant) {
        if self.pending.is_some() {
            return;
        }
        let due = self.addresses.iter().enumerate().filter(|(_, address)| address.due <= now);
        let Some(at) = due.min_by_key(|(at, address)| (address.due, *at)).map(|(at, _)| at) else {
            return;
        };
        let behind = self.last.and_then(|last| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.links.range((Excluded(last), Unbounded)).next()
        });
        let Some((&link, by)) = behind.or_else(|| self.links.first_key_value()) else { return };
        let label = Label::from_random(self.rng.next_u64());
        let (by, deadline) = (by.clone(), now + ANSWER);
        self.last = Some(link);
        self.pending = Some(Pending { label, address: at, link, by, sent: false, deadline });
        let address = self.addresses[at].view.address.clone();
        self.outputs.push_back(Ask::Try(link, TryAddress { address, label }));
    }

    /// The knock that is waited for did not come.
    fn give_up(&mut self, now: Instant, wall_ms: u64) {
        let Some(pending) = self.pending.take() else { return };
        self.outputs.push_back(Ask::Forget(pending.label));
        let Some(address) = self.addresses.get_mut(pending.address) else { return };
        if pending.sent {
            address.lost += 1;
            if address.lost >= LOST {
                return self.found(&pending, Reached::No, now, wall_ms);
            }
        }
        address.try_again(now);
    }

    fn found(&mut self, pending: &Pending, reached: Reached, now: Instant, wall_ms: u64) {
        let Some(address) = self.addresses.get_mut(pending.address) else { return };
        if address.view.reachable != reached {
            let (is, by) = (&address.view.address, &pending.by);
            match reached {
                Reached::No => {
                    tracing::warn!(address = is, %by, "advertised address not reachable from outside");
                }
                _ => tracing::info!(address = is, %by, "advertised address reachable from outside"),
            }
            address.view.since = Some(wall_ms);
        }
        address.view.reachable = reached;
        address.view.by = Some(pending.by.clone());
        match reached {
            Reached::Yes => {
                address.lost = 0;
                address.tries = 0;
                address.due = now + SELDOM;
            }
            _ => address.try_again(now),
        }
    }
}

impl Address {
    fn try_again(&mut self, now: Instant) {
        self.tries = self.tries.saturating_add(1);
        self.due = now + if self.tries < PATIENCE { SOON } else { SELDOM };
    }
}

impl Relay {
    /// A neighbour asks for a knock: done where it may ask for it.
    pub(super) fn handle_try_address(&mut self, link: LinkId, wanted: TryAddress, now: Instant) {
        let Some(peer) = self.peers.get(&link) else { return };
        let loopback = peer.address.ip().is_loopback();
        let TryAddress { address, label } = wanted;
        let advertised = self.directory.addresses_of(peer.relay).contains(&address);
        if advertised && self.selftest.may_knock(link, now) {
            self.outputs.push_back(Output::Knock { link, address, label, loopback });
        } else {
            let tried = ToPeer::Tried(Tried { label, sent: false });
            self.outputs.push_back(Output::ToPeer(link, tried));
        }
    }

    /// Does what the self-test asks for; whether there was something.
    pub(super) fn on_selftest(&mut self) -> bool {
        let Some(ask) = self.selftest.poll_output() else { return false };
        match ask {
            Ask::Try(link, wanted) => {
                self.outputs.push_back(Output::ExpectKnock(wanted.label));
                self.outputs.push_back(Output::ToPeer(link, ToPeer::TryAddress(wanted)));
            }
            Ask::Forget(label) => self.outputs.push_back(Output::ForgetKnock(label)),
        }
        true
    }
}

#[cfg(test)]
mod tests;
