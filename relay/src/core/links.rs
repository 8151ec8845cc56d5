//! Which relays to link with, and what to say about it (architecture 5).
//!
//! **Whom.** Told names: these and no others, in both directions. Otherwise every relay that is known, as long as the
//! mesh has at most [`limits::FULL_MESH_RELAYS`]; beyond, [`NEAR`] with the shortest round trips, [`FAR`] at random,
//! and [`LOST`] of those that no path leads to, so that parts of the mesh find each other again. A wish stays until
//! another is better by a quarter. Links that others dialled are kept, up to [`limits::LINKS`].
//!
//! **When.** The relay with the lower id dials at once, the other [`YIELD`] later if there is no link by then. After a
//! failure or a loss the wait doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], with jitter, and begins anew only
//! after a link that lasted [`STABLE`].
//!
//! **Two connections with one peer.** Both sides decide alike, by this table:
//!
//! | the incarnations that the peer said | dialled by | stays |
//! |---|---|---|
//! | differ | any | the one with the higher: the peer restarted |
//! | equal | different sides | the one that the lower relay id dialled |
//! | equal | the same side | the later: its dialler gave up on the earlier |
//!
//! The other is closed with `duplicate-link`, which counts as no failure.
//!
//! **Two processes with one identity** (a copy of a data directory that runs). Each start has a number of its own, which
//! both sides say. A process with a higher incarnation than the linked one takes its place, since a restart looks like
//! that. Should the one that was replaced come back, or one with no higher incarnation, while another process is linked,
//! there are two: the linked one stays, the other is closed with `superseded`, and both are told. Who is closed so comes
//! back after [`GIVE_WAY_MIN`], doubling up to [`GIVE_WAY_MAX`]. So the newest process stays, at each neighbour alike, and
//! the other takes its place once it is gone.
//!
//! **What is said.** A lost link counts at once. One that comes up is used for gossip and calls at once and announced
//! after a stable time: none for the first, then doubling with each loss within [`CALM`] of its beginning, up to
//! [`SETTLE_MAX`]; [`SETTLE_MIN`] where the peer restarted, since that says nothing of the line. Round-trip times are smoothed (RFC 6298, section 2) and said in steps of 25 %, at most every
//! [`RTT_HOLD`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom;
use tasuki_proto::limits;
use tasuki_proto::rows::{LinkState, LinksRow};
use tasuki_proto::{Incarnation, RefusalCode, RelayId, RelayName};

use super::LinkId;

mod event;
mod rtt;
#[cfg(test)]
mod tests;

pub use event::{Input, LinkChoice, LinkInfo, Output};
use rtt::Rtt;

/// In a large mesh: links with the nearest relays.
pub const NEAR: usize = 3;
/// In a large mesh: links with relays at random.
pub const FAR: usize = 3;
/// In a large mesh: relays tried at a time of those that no path leads to.
pub const LOST: usize = 2;
/// How long the higher relay id waits for the lower one to dial.
pub const YIELD: Duration = Duration::from_millis(200);
/// The first wait after a failure.
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The first wait after a neighbour preferred another process with this relay's identity.
pub const GIVE_WAY_MIN: Duration = Duration::from_secs(5);
/// The longest.
pub const GIVE_WAY_MAX: Duration = Duration::from_secs(300);
/// How long a link lasts until its peer counts as good.
pub const STABLE: Duration = Duration::from_secs(10);
/// A link that is lost earlier flaps.
pub const CALM: Duration = Duration::from_secs(60);
/// The first stable time of a link that flapped.
pub const SETTLE_MIN: Duration = Duration::from_secs(1);
/// The longest.
pub const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Between two rows that differ in round-trip times only.
pub const RTT_HOLD: Duration = Duration::from_secs(5);
/// In a large mesh: how long a link that this relay dialled and does not wish for stays.
pub const PRUNE: Duration = Duration::from_secs(60);
/// In a large mesh: how often the wishes are looked through.
pub const REVIEW: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Link {
    id: LinkId,
    dialled_here: bool,
    incarnation: Incarnation,
    instance: u64,
    since: Instant,
    /// From when on it is announced.
    announce_at: Instant,
    rtt: Rtt,
}

/// All about one relay.
#[derive(Debug, Clone)]
struct Peer {
    name: RelayName,
    addresses: Vec<String>,
    link: Option<Link>,
    dialling: bool,
    dial_at: Option<Instant>,
    failures: u32,
    flaps: u32,
    /// Processes that a newer one took the place of.
    replaced: VecDeque<u64>,
    /// How often in a row it preferred another process with this relay's identity.
    given_way: u32,
    /// The greatest that it had on a link.
    incarnation: Option<Incarnation>,
    /// Its last round-trip time, µs.
    last_rtt_us: Option<u32>,
    reachable: bool,
    unwished_since: Option<Instant>,
}

/// The links of one relay.
#[derive(Debug)]
pub struct Links {
    me: RelayId,
    choice: LinkChoice,
    rng: SmallRng,
    peer_by_id: BTreeMap<RelayId, Peer>,
    peer_by_link: BTreeMap<LinkId, RelayId>,
    /// In a large mesh: the wishes of the last review.
    near: BTreeSet<RelayId>,
    far: BTreeSet<RelayId>,
    lost: BTreeSet<RelayId>,
    review_at: Option<Instant>,
    announced: Option<LinksRow>,
    rtt_said_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl Links {
    /// No links yet.
    pub fn new(me: RelayId, choice: LinkChoice, rng: SmallRng) -> Self {
        Self {
            me,
            choice,
            rng,
            peer_by_id: BTreeMap::new(),
            peer_by_link: BTreeMap::new(),
            near: BTreeSet::new(),
            far: BTreeSet::new(),
            lost: BTreeSet::new(),
            review_at: None,
            announced: None,
            rtt_said_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`Links::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Timeout => {}
            Input::Known { relay, name, addresses } => {
                self.handle_known(relay, name, addresses, now);
            }
            Input::Gone(relay, code) => self.handle_gone(relay, code),
            Input::DialFailed(peer) => self.handle_dial_failed(peer, now),
            Input::Up { link, peer, name, dialled_here, incarnation, instance } => {
                let process = (incarnation, instance);
                self.handle_up((link, peer), name, dialled_here, process, now);
            }
            Input::Down(link, code) => self.handle_down(link, code, now),
            Input::Rtt(link, us) => self.handle_rtt(link, us),
            Input::Reachable(relay, reachable) => {
                if let Some(peer) = self.peer_by_id.get_mut(&relay) {
                    peer.reachable = reachable;
                    if reachable {
                        peer.failures = 0;
                    }
                    self.review_at = self.review_at.map(|_| now);
                }
            }
            Input::Choose(choice) => self.handle_choose(choice, now),
            Input::Kick(name) => self.handle_kick(&name, now),
        }
        self.review(now);
        self.dial(now);
        self.announce(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let dials = self
            .peer_by_id
            .iter()
            .filter(|(id, peer)| peer.is_idle() && self.is_wished(**id, peer))
            .filter_map(|(_, peer)| peer.dial_at);
        let announced = self.announced.as_ref();
        let links = self.peer_by_id.iter().filter_map(|(id, peer)| Some((id, peer.link.as_ref()?)));
        let said = |id| announced.and_then(|row| said_rtt(row, id));
        let news = links.filter_map(|(&id, link)| match said(id) {
            None => Some(link.announce_at),
            Some(step) if link.rtt.step() == step => None,
            Some(_) => self.rtt_said_at.and_then(|at| at.checked_add(RTT_HOLD)),
        });
        dials.chain(news).chain(self.review_at).min()
    }

    /// The connection with a relay.
    pub fn link_with(&self, peer: RelayId) -> Option<LinkId> {
        Some(self.peer_by_id.get(&peer)?.link.as_ref()?.id)
    }

    /// All connections in use, ordered by peer.
    pub fn links(&self) -> impl Iterator<Item = LinkInfo<'_>> {
        self.peer_by_id.iter().filter_map(|(&id, peer)| {
            let link = peer.link.as_ref()?;
            let rtt_us = link.rtt.smoothed_us();
            Some(LinkInfo { link: link.id, peer: id, name: &peer.name, rtt_us, since: link.since })
        })
    }

    /// Whether this relay wishes for links and has none of them (readyz). A peer that is down does not make it unfit
    /// for terminals as long as another one is there.
    pub fn is_cut_off(&self) -> bool {
        let wished = || self.peer_by_id.iter().filter(|(id, peer)| self.is_wished(**id, peer));
        wished().next().is_some() && wished().all(|(_, peer)| peer.link.is_none())
    }

    /// Whether a neighbour preferred another process with this relay's identity, and there was no link with it since.
    pub fn has_given_way(&self) -> bool {
        self.peer_by_id.values().any(|peer| peer.given_way > 0)
    }

    fn handle_known(
        &mut self,
        relay: RelayId,
        name: RelayName,
        mut addresses: Vec<String>,
        now: Instant,
    ) {
        if relay == self.me || relay == RelayId::AUTHORITY {
            return;
        }
        addresses.truncate(limits::RELAY_ADDRESSES);
        let first = now + self.first_wait(relay);
        let is_full = self.peer_by_id.len() >= limits::RELAYS;
        match self.peer_by_id.get_mut(&relay) {
            Some(peer) if peer.addresses == addresses => {}
            Some(peer) => {
                peer.addresses = addresses;
                peer.failures = 0;
                peer.dial_at = Some(first);
            }
            None if is_full => {}
            None => {
                self.peer_by_id.insert(relay, Peer::new(name, addresses, first));
                // The first look at a mesh that came to be large is at once.
                self.review_at = None;
            }
        }
    }

    fn handle_gone(&mut self, relay: RelayId, code: RefusalCode) {
        let Some(peer) = self.peer_by_id.remove(&relay) else { return };
        if let Some(link) = peer.link {
            self.peer_by_link.remove(&link.id);
            self.outputs.push_back(Output::Close(link.id, code));
        }
        self.review_at = None;
    }

    fn handle_dial_failed(&mut self, relay: RelayId, now: Instant) {
        let wait = self.failure_wait(relay);
        if let Some(peer) = self.peer_by_id.get_mut(&relay) {
            peer.dialling = false;
            peer.dial_at = Some(now + wait);
        }
        // Another one of those that are lost may do better.
        if self.lost.remove(&relay) {
            self.review_at = Some(now);
        }
    }

    fn handle_up(
        &mut self,
        (id, relay): (LinkId, RelayId),
        name: RelayName,
        dialled_here: bool,
        (incarnation, instance): (Incarnation, u64),
        now: Instant,
    ) {
        let known = self.peer_by_id.contains_key(&relay);
        let refusal = if !self.may_link(relay, &name) {
            Some(RefusalCode::LinkNotWanted)
        } else if !dialled_here && self.peer_by_link.len() >= limits::LINKS
            || !known && self.peer_by_id.len() >= limits::RELAYS
        {
            Some(RefusalCode::Overloaded)
        } else {
            None
        };
        if let Some(code) = refusal {
            if dialled_here && let Some(peer) = self.peer_by_id.get_mut(&relay) {
                peer.dialling = false;
            }
            self.outputs.push_back(Output::Close(id, code));
            return;
        }
        let lower_dials = self.me < relay;
        let peer = self.peer_by_id.entry(relay).or_insert_with(|| Peer::new(name, Vec::new(), now));
        peer.dialling &= !dialled_here;
        if peer.incarnation.is_some_and(|before| before < incarnation) {
            peer.flaps = peer.flaps.min(1);
        }
        peer.incarnation = peer.incarnation.max(Some(incarnation));
        let mut announce_at = now + peer.settle();
        if let Some(old) = &peer.link {
            let is_other = old.instance != instance;
            if is_other && (incarnation <= old.incarnation || peer.replaced.contains(&instance)) {
                self.outputs.push_back(Output::Twins { kept: old.id, refused: id });
                self.outputs.push_back(Output::Close(id, RefusalCode::Superseded));
                return;
            }
            if is_other {
                if peer.replaced.len() == limits::PROCESSES_REMEMBERED {
                    peer.replaced.pop_front();
                }
                peer.replaced.push_back(old.instance);
            }
            let later_stays = match incarnation.cmp(&old.incarnation) {
                std::cmp::Ordering::Equal if old.dialled_here == dialled_here => true,
                std::cmp::Ordering::Equal => dialled_here == lower_dials,
                order => order.is_gt(),
            };
            if !later_stays {
                self.outputs.push_back(Output::Close(id, RefusalCode::DuplicateLink));
                return;
            }
            self.outputs.push_back(Output::Close(old.id, RefusalCode::DuplicateLink));
            self.peer_by_link.remove(&old.id);
            // The neighbour was there all the time, or restarted: it needs no second stable time.
            announce_at = announce_at.min(old.announce_at);
        }
        let rtt = Rtt::default();
        peer.replaced.retain(|replaced| *replaced != instance);
        let since = now;
        peer.link = Some(Link { id, dialled_here, incarnation, instance, since, announce_at, rtt });
        peer.unwished_since = None;
        self.peer_by_link.insert(id, relay);
        self.outputs.push_back(Output::Accepted(id, relay));
    }

    fn handle_down(&mut self, id: LinkId, code: Option<RefusalCode>, now: Instant) {
        // One that was replaced is not missed.
        let Some(relay) = self.peer_by_link.remove(&id) else { return };
        let duplicate = code == Some(RefusalCode::DuplicateLink);
        let Some(peer) = self.peer_by_id.get_mut(&relay) else { return };
        let Some(link) = peer.link.take() else { return };
        let lasted = now.saturating_duration_since(link.since);
        if duplicate {
            // The peer has another one; should that be a mistake, this relay dials in a moment.
            peer.dial_at = Some(now + 2 * YIELD);
            return;
        }
        if lasted >= STABLE {
            (peer.failures, peer.given_way) = (0, 0);
        }
        peer.flaps = if lasted >= CALM { 0 } else { peer.flaps.saturating_add(1) };
        let mut wait = self.failure_wait(relay);
        if let Some(peer) = self.peer_by_id.get_mut(&relay) {
            if code == Some(RefusalCode::Superseded) {
                wait = GIVE_WAY_MIN.saturating_mul(1 << peer.given_way.min(8)).min(GIVE_WAY_MAX);
                wait = wait.mul_f64(self.rng.random_range(0.75..1.25));
                peer.given_way = peer.given_way.saturating_add(1);
                self.outputs.push_back(Output::GivenWay(peer.name.clone()));
            }
            peer.dial_at = Some(now + wait);
        }
    }

    fn handle_rtt(&mut self, id: LinkId, us: u32) {
        let relay = self.peer_by_link.get(&id);
        if let Some(peer) = relay.and_then(|relay| self.peer_by_id.get_mut(relay))
            && let Some(link) = &mut peer.link
        {
            link.rtt.measured(us);
            peer.last_rtt_us = Some(link.rtt.smoothed_us());
        }
    }

    fn handle_kick(&mut self, name: &RelayName, now: Instant) {
        let Some(peer) = self.peer_by_id.values().find(|peer| peer.name == *name) else { return };
        let Some(id) = peer.link.as_ref().map(|link| link.id) else { return };
        self.outputs.push_back(Output::Close(id, RefusalCode::Kicked));
        self.handle_down(id, Some(RefusalCode::Kicked), now);
    }

    fn handle_choose(&mut self, choice: LinkChoice, now: Instant) {
        self.choice = choice;
        self.review_at = None;
        let linked = self.peer_by_id.iter().filter_map(|(id, peer)| {
            let link = peer.link.as_ref()?;
            (!self.may_link(*id, &peer.name)).then_some(link.id)
        });
        for id in linked.collect::<Vec<_>>() {
            self.outputs.push_back(Output::Close(id, RefusalCode::LinkNotWanted));
            self.handle_down(id, Some(RefusalCode::LinkNotWanted), now);
        }
    }

    /// The wait before a relay's first dial.
    fn first_wait(&self, relay: RelayId) -> Duration {
        if self.me < relay { Duration::ZERO } else { YIELD }
    }

    /// Counts a failure; how long to wait.
    fn failure_wait(&mut self, relay: RelayId) -> Duration {
        let jitter = self.rng.random_range(0.75..1.25);
        let Some(peer) = self.peer_by_id.get_mut(&relay) else { return BACKOFF_MAX };
        let wait = BACKOFF_MIN.saturating_mul(1 << peer.failures.min(8)).min(BACKOFF_MAX);
        peer.failures = peer.failures.saturating_add(1);
        wait.mul_f64(jitter)
    }

    fn may_link(&self, relay: RelayId, name: &RelayName) -> bool {
        relay != self.me
            && match &self.choice {
                LinkChoice::Auto => true,
                LinkChoice::Names(names) => names.contains(name),
            }
    }

    /// Whether the mesh is too large to link with everybody.
    fn is_large(&self) -> bool {
        self.choice == LinkChoice::Auto && self.peer_by_id.len() >= limits::FULL_MESH_RELAYS
    }

    fn is_wished(&self, relay: RelayId, peer: &Peer) -> bool {
        if self.is_large() {
            [&self.near, &self.far, &self.lost].iter().any(|set| set.contains(&relay))
        } else {
            self.may_link(relay, &peer.name)
        }
    }

    /// In a large mesh: renews the wishes where they are not met or others are clearly better, and closes what this
    /// relay dialled and has not wished for in a while.
    fn review(&mut self, now: Instant) {
        if !self.is_large() {
            self.review_at = None;
            return;
        }
        if self.review_at.is_some_and(|at| at > now) {
            return;
        }
        self.review_at = Some(now + REVIEW);
        let peers = &self.peer_by_id;
        self.near = nearest(peers, &self.near);
        self.far.retain(|id| peers.get(id).is_some_and(Peer::is_promising));
        // A link that joined two parts of the mesh takes the place of another, else it went again.
        let linked = |id: &&RelayId| peers.get(id).is_some_and(|p| p.link.is_some());
        let joined: BTreeSet<_> = self.lost.iter().filter(linked).copied().collect();
        while self.far.union(&joined).count() > FAR
            && let Some(other) = self.far.difference(&joined).copied().choose(&mut self.rng)
        {
            self.far.remove(&other);
        }
        self.far.extend(joined);
        let others = peers.iter().filter(|(id, p)| {
            p.is_promising() && !self.near.contains(id) && !self.far.contains(id)
        });
        let missing = FAR.saturating_sub(self.far.len());
        let far = others.map(|(id, _)| *id).choose_multiple(&mut self.rng, missing);
        self.far.extend(far);
        self.lost.retain(|id| peers.get(id).is_some_and(|p| p.link.is_none() && !p.reachable));
        let others = peers.iter().filter(|(id, p)| {
            p.link.is_none() && !p.reachable && !p.addresses.is_empty() && !self.lost.contains(id)
        });
        let missing = LOST.saturating_sub(self.lost.len());
        let lost = others.map(|(id, _)| *id).choose_multiple(&mut self.rng, missing);
        self.lost.extend(lost);
        self.prune(now);
    }

    fn prune(&mut self, now: Instant) {
        let wished: BTreeSet<_> = self.near.union(&self.far).copied().collect();
        for (id, peer) in &mut self.peer_by_id {
            let Some(link) = peer.link.as_ref().filter(|link| link.dialled_here) else { continue };
            if wished.contains(id) {
                peer.unwished_since = None;
            } else if now.saturating_duration_since(*peer.unwished_since.get_or_insert(now))
                >= PRUNE
            {
                self.outputs.push_back(Output::Close(link.id, RefusalCode::LinkNotWanted));
                self.peer_by_link.remove(&link.id);
                peer.link = None;
                peer.unwished_since = None;
            }
        }
    }

    fn dial(&mut self, now: Instant) {
        let due = self.peer_by_id.iter().filter(|(id, peer)| {
            peer.is_idle() && peer.dial_at.is_some_and(|at| at <= now) && self.is_wished(**id, peer)
        });
        for peer in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(row) = self.peer_by_id.get_mut(&peer) else { continue };
            row.dialling = true;
            let (name, addresses) = (row.name.clone(), row.addresses.clone());
            self.outputs.push_back(Output::Dial { peer, name, addresses });
        }
    }

    /// Writes the row where it says something that the last one did not.
    fn announce(&mut self, now: Instant) {
        let said = self.announced.as_ref();
        let mut links = Vec::new();
        let mut rtt_moved = false;
        let mut members_moved = said.is_none();
        for (&peer, row) in &self.peer_by_id {
            let before = said.and_then(|row| said_rtt(row, peer));
            let Some(link) =
                row.link.as_ref().filter(|link| before.is_some() || link.announce_at <= now)
            else {
                members_moved |= before.is_some();
                continue;
            };
            let rtt_us = link.rtt.step();
            members_moved |= before.is_none();
            rtt_moved |= before.is_some_and(|before| before != rtt_us);
            links.push(LinkState { peer, rtt_us });
        }
        members_moved |= said.is_some_and(|row| row.links.len() != links.len());
        let held = self.rtt_said_at.is_some_and(|at| now.saturating_duration_since(at) < RTT_HOLD);
        if members_moved || rtt_moved && !held {
            if rtt_moved || self.rtt_said_at.is_none() {
                self.rtt_said_at = Some(now);
            }
            let row = LinksRow { links };
            self.announced = Some(row.clone());
            self.outputs.push_back(Output::Announce(row));
        }
    }
}

/// Failures in a row after which a wish of a large mesh goes to another relay.
const GIVE_UP: u32 = 3;

impl Peer {
    fn new(name: RelayName, addresses: Vec<String>, dial_at: Instant) -> Self {
        Self {
            name,
            addresses,
            link: None,
            dialling: false,
            dial_at: Some(dial_at),
            failures: 0,
            flaps: 0,
            replaced: VecDeque::new(),
            given_way: 0,
            incarnation: None,
            last_rtt_us: None,
            reachable: false,
            unwished_since: None,
        }
    }

    /// Could be dialled.
    fn is_idle(&self) -> bool {
        self.link.is_none() && !self.dialling && !self.addresses.is_empty()
    }

    /// Worth a wish in a large mesh.
    fn is_promising(&self) -> bool {
        self.link.is_some() || self.failures < GIVE_UP && !self.addresses.is_empty()
    }

    /// How long a link that comes up has to last until it is announced.
    fn settle(&self) -> Duration {
        match self.flaps {
            0 => Duration::ZERO,
            n => SETTLE_MIN.saturating_mul(1 << (n - 1).min(16)).min(SETTLE_MAX),
        }
    }
}

fn said_rtt(row: &LinksRow, peer: RelayId) -> Option<u32> {
    let at = row.links.binary_search_by_key(&peer, |link| link.peer).ok()?;
    Some(row.links[at].rtt_us)
}

/// The [`NEAR`] relays with the shortest known round trips; one of `before` counts for a quarter less.
fn nearest(peers: &BTreeMap<RelayId, Peer>, before: &BTreeSet<RelayId>) -> BTreeSet<RelayId> {
    let mut known: Vec<_> = peers
        .iter()
        .filter(|(_, p)| p.is_promising())
        .filter_map(|(id, p)| {
            let rtt = u64::from(p.last_rtt_us?);
            Some((if before.contains(id) { rtt * 3 } else { rtt * 4 }, *id))
        })
        .collect();
    known.sort_unstable();
    known.into_iter().take(NEAR).map(|(_, id)| id).collect()
}
