//! Which address is tried next, and when: the decisions of RFC 8305 without sockets, clock or tasks.
//!
//! | event | what follows |
//! |---|---|
//! | a place's turn to be looked up; at most [`LOOKUPS`] at once | [`Output::LookUp`] |
//! | an address is known and no try began for [`Manner::stagger`] | [`Output::Start`] |
//! | a try fails | the next one starts at once |
//! | a try is older than [`Manner::each`] | [`Output::Cancel`], and the next one starts at once |
//! | an answer takes longer than [`Manner::look_up`] | [`Output::NoAnswer`]; the race no longer waits for it |
//! | nothing is under way, and nothing is left to try | [`Race::is_over`] |
//!
//! Untried addresses are ordered by: fresh answers before remembered ones, then the address's [`Standing`], then turns:
//! the first address of each place, then the second of each. Within a place the families alternate.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::memory::Standing;
use crate::limits;

/// How long a fresh answer is waited for while an earlier one is at hand.
pub const ANSWER_DELAY: Duration = Duration::from_millis(250);
/// Look-ups that one race waits for at once.
pub const LOOKUPS: usize = 8;

/// How patient a race is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// From the start of one try to the start of the next (RFC 8305, section 5: 250 ms).
    pub stagger: Duration,
    /// How long one try may take.
    pub each: Duration,
    /// How long the race waits for one look-up. The look-up itself goes on.
    pub look_up: Duration,
    /// Tries of one race; further addresses wait for the next race, in which those that failed come last.
    pub tries: usize,
    /// The age up to which a remembered answer serves; `None`: any age.
    pub keep: Option<Duration>,
}

impl Manner {
    /// One relay, which proves by its certificate who it is: remembered answers serve at any age.
    pub const RELAY: Manner = Manner {
        stagger: Duration::from_millis(250),
        each: Duration::from_secs(5),
        look_up: Duration::from_secs(15),
        tries: limits::TRIES_PER_DIAL,
        keep: None,
    };
    /// Any of several relays, for a request that somebody waits for.
    pub const ANY_RELAY: Manner = Manner {
        look_up: Duration::from_secs(60),
        tries: limits::TRIES_PER_REQUEST,
        ..Manner::RELAY
    };
    /// A service, which proves nothing: an address that its name had long ago may be somebody else's by now.
    pub const SERVICE: Manner = Manner {
        stagger: Duration::from_millis(250),
        each: limits::SERVICE_CONNECT_TIMEOUT,
        look_up: limits::SERVICE_LOOKUP_TIMEOUT,
        tries: limits::TRIES_PER_DIAL,
        keep: Some(Duration::from_secs(3600)),
    };
}

/// Something to dial: `HOST:PORT` of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What is reached there, by the caller's numbering. An address that two places of one target share is tried once.
    pub target: usize,
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Place {
    /// Reads `HOST:PORT`, also `[ADDRESS]:PORT`; `None` when it is neither.
    pub fn parse(target: usize, text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let place = Self { target, host: bare.to_owned(), port: port.parse().ok()? };
        (!place.host.is_empty()).then_some(place)
    }

    /// The address, when the host is one.
    pub fn address(&self) -> Option<SocketAddr> {
        let ip: std::net::IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip.to_canonical(), self.port))
    }
}

/// One try of a race; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TryId(pub usize);

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The look-up of a place ended; without addresses it failed.
    Found(usize, Vec<(SocketAddr, Standing)>),
    /// An earlier look-up of a place found this.
    Remembered(usize, Vec<(SocketAddr, Standing)>),
    /// A try ended, well or not.
    Ended(TryId),
    /// The time of [`Race::poll_timeout`] has come.
    Timeout,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Look the host of this place up; answer with [`Input::Found`] and, at once, [`Input::Remembered`].
    LookUp(usize),
    /// Connect.
    Start {
        /// Comes back with the result.
        id: TryId,
        /// To this place.
        place: usize,
        /// At this address.
        address: SocketAddr,
    },
    /// Give this try up: its time is over.
    Cancel(TryId),
    /// The look-up of this place is not waited for any longer.
    NoAnswer(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LookUp {
    /// Waits for its turn.
    Waits,
    Runs {
        since: Instant,
    },
    /// Failed, or took too long.
    Failed,
    Done,
}

#[derive(Debug)]
struct Spot {
    target: usize,
    look_up: LookUp,
    fresh: Vec<(SocketAddr, Standing)>,
    remembered: Vec<(SocketAddr, Standing)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_remembered: bool,
    standing: Standing,
    turn: usize,
    place: usize,
}

/// One dial, from its start until nothing is left to try.
#[derive(Debug)]
pub struct Race {
    manner: Manner,
    spots: Vec<Spot>,
    tried: BTreeSet<(usize, SocketAddr)>,
    deadlines: BTreeMap<TryId, Instant>,
    started: usize,
    next_start: Instant,
    outputs: VecDeque<Output>,
}

impl Race {
    /// Starts a race for `places`, the preferred ones first. `standing` says how an address did last.
    pub fn new(
        places: &[Place],
        manner: Manner,
        standing: impl Fn(SocketAddr) -> Standing,
        now: Instant,
    ) -> Self {
        let spot = |place: &Place| {
            let literal = place.address();
            Spot {
                target: place.target,
                look_up: if literal.is_some() { LookUp::Done } else { LookUp::Waits },
                fresh: literal.map(|address| (address, standing(address))).into_iter().collect(),
                remembered: Vec::new(),
            }
        };
        let mut race = Self {
            manner,
            spots: places.iter().map(spot).collect(),
            tried: BTreeSet::new(),
            deadlines: BTreeMap::new(),
            started: 0,
            next_start: now,
            outputs: VecDeque::new(),
        };
        race.advance(now);
        race
    }

    /// Takes in what happened; drain [`Race::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Found(place, addresses) => {
                let Some(spot) = self.spots.get_mut(place) else { return };
                spot.look_up = if addresses.is_empty() { LookUp::Failed } else { LookUp::Done };
                spot.fresh = alternate(addresses);
            }
            Input::Remembered(place, addresses) => {
                let Some(spot) = self.spots.get_mut(place) else { return };
                spot.remembered = alternate(addresses);
            }
            Input::Ended(id) => {
                if self.deadlines.remove(&id).is_some() {
                    self.next_start = now;
                }
            }
            Input::Timeout => {}
        }
        self.advance(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let tries = self.deadlines.values().copied();
        let look_ups = self.running().map(|(_, since)| since + self.manner.look_up);
        let next = self.best(None).map(|_| self.next_start);
        let delayed = self
            .running()
            .filter(|(at, _)| next.is_none() && self.may_start() && self.remembers_more(*at))
            .map(|(_, since)| (since + ANSWER_DELAY).max(self.next_start));
        tries.chain(look_ups).chain(delayed).chain(next).min()
    }

    /// Whether nothing is under way and nothing is left to try.
    pub fn is_over(&self) -> bool {
        let waits = |spot: &Spot| matches!(spot.look_up, LookUp::Waits | LookUp::Runs { .. });
        let may_come =
            self.may_start() && (self.spots.iter().any(waits) || self.best(None).is_some());
        self.outputs.is_empty() && self.deadlines.is_empty() && !may_come
    }

    /// Whether an earlier answer for this place holds an address that was not tried.
    fn remembers_more(&self, at: usize) -> bool {
        let spot = &self.spots[at];
        spot.remembered.iter().any(|(address, _)| !self.tried.contains(&(spot.target, *address)))
    }

    fn may_start(&self) -> bool {
        self.started < self.manner.tries
    }

    fn running(&self) -> impl Iterator<Item = (usize, Instant)> + '_ {
        self.spots.iter().enumerate().filter_map(|(at, spot)| match spot.look_up {
            LookUp::Runs { since } => Some((at, since)),
            LookUp::Waits | LookUp::Failed | LookUp::Done => None,
        })
    }

    fn advance(&mut self, now: Instant) {
        let late: Vec<_> =
            self.deadlines.iter().filter(|(_, due)| **due <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.deadlines.remove(&id);
            self.outputs.push_back(Output::Cancel(id));
            self.next_start = now;
        }
        let late: Vec<_> = self
            .running()
            .filter(|(_, since)| *since + self.manner.look_up <= now)
            .map(|(at, _)| at)
            .collect();
        for at in late {
            self.spots[at].look_up = LookUp::Failed;
            self.outputs.push_back(Output::NoAnswer(at));
        }
        self.look_up(now);
        if self.next_start <= now
            && let Some((place, address)) = self.best(Some(now))
        {
            let id = TryId(self.started);
            self.started += 1;
            self.tried.insert((self.spots[place].target, address));
            self.deadlines.insert(id, now + self.manner.each);
            self.next_start = now + self.manner.stagger;
            self.outputs.push_back(Output::Start { id, place, address });
        }
    }

    fn look_up(&mut self, now: Instant) {
        let mut running = self.running().count();
        if !self.may_start() {
            return;
        }
        for (at, spot) in self.spots.iter_mut().enumerate() {
            if running < LOOKUPS && spot.look_up == LookUp::Waits {
                spot.look_up = LookUp::Runs { since: now };
                self.outputs.push_back(Output::LookUp(at));
                running += 1;
            }
        }
    }

    /// The best address that was not tried. With a time, remembered ones count once their fresh answer is late; without,
    /// those count that may be tried whatever the time.
    fn best(&self, now: Option<Instant>) -> Option<(usize, SocketAddr)> {
        if !self.may_start() {
            return None;
        }
        let mut best: Option<(Rank, SocketAddr)> = None;
        for (place, spot) in self.spots.iter().enumerate() {
            let serves = match spot.look_up {
                LookUp::Failed | LookUp::Done => true,
                LookUp::Runs { since } => now.is_some_and(|now| since + ANSWER_DELAY <= now),
                LookUp::Waits => false,
            };
            let remembered = if serves { &spot.remembered[..] } else { &[] };
            for (is_remembered, list) in [(false, &spot.fresh[..]), (true, remembered)] {
                for (turn, &(address, standing)) in list.iter().enumerate() {
                    let rank = Rank { is_remembered, standing, turn, place };
                    if !self.tried.contains(&(spot.target, address))
                        && best.is_none_or(|(other, _)| rank < other)
                    {
                        best = Some((rank, address));
                    }
                }
            }
        }
        best.map(|(rank, address)| (rank.place, address))
    }
}

/// Puts the two families in turns, beginning with that of the first address (RFC 8305, section 4), each address once.
pub(super) fn alternate(addresses: Vec<(SocketAddr, Standing)>) -> Vec<(SocketAddr, Standing)> {
    let mut seen = BTreeSet::new();
    let unique: Vec<_> =
        addresses.into_iter().filter(|(address, _)| seen.insert(*address)).collect();
    let Some(&(first, _)) = unique.first() else { return unique };
    let (mut these, mut others): (VecDeque<_>, VecDeque<_>) =
        unique.into_iter().partition(|(address, _)| address.is_ipv4() == first.is_ipv4());
    let mut out = Vec::with_capacity(these.len() + others.len());
    while !(these.is_empty() && others.is_empty()) {
        out.extend(these.pop_front());
        out.extend(others.pop_front());
    }
    out
}
