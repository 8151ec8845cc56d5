//! Relays that drain, and end or not: what they say of themselves, how the others hear of it, and how terminals leave.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use tasuki_proto::control::{RelayContact, Relays, ToTerminal};
use tasuki_proto::rows::{LinkState, LinksRow, LoadRow};
use tasuki_proto::{RelayId, RelayName};
use tasuki_relay::core::routes::{self, Routes};
use tasuki_terminal::core::login::{AttachId, drains};

use super::mesh::{Mesh, relay_name};
use super::world::{Down, Event, World};

/// How long a relay that a terminal replaced keeps it.
const GRACE: Duration = Duration::from_secs(5);
/// A terminal leaves a relay that drains within this, at random.
const JITTER: Duration = Duration::from_secs(5);
/// A relay that ended to come back does so after this, at least and at most.
const BACK: std::ops::Range<u64> = 300..3_000;

/// What a relay says of itself: the newer row counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Row {
    version: u64,
    draining: bool,
}

/// When a relay that drains ends, at last, and whether it comes back.
#[derive(Debug, Clone, Copy)]
struct Ending {
    at: Duration,
    again: bool,
}

/// What is to become of one relay.
#[derive(Debug, Default)]
pub(super) struct Drain {
    ending: Option<Ending>,
    /// It ended, and starts then.
    starts_at: Option<Duration>,
    /// What it knows of all relays, itself included.
    table: Vec<Row>,
    /// Ended with nobody left, or at its deadline.
    ended: [usize; 2],
}

impl Drain {
    pub(super) fn new(relays: usize) -> Drain {
        Drain { table: vec![Row::default(); relays], ..Drain::default() }
    }

    /// What was to become of it is void.
    pub(super) fn end_nothing(&mut self) {
        (self.ending, self.starts_at) = (None, None);
    }
}

fn id(relay: usize) -> RelayId {
    RelayId(relay as u64 + 1)
}

impl Mesh {
    /// Whether a relay takes no new terminals.
    pub(super) fn is_draining(&self, relay: usize) -> bool {
        self.drains[relay].table[relay].draining
    }

    fn row(&mut self, relay: usize, draining: bool) {
        let own = &mut self.drains[relay].table[relay];
        *own = Row { version: own.version + 1, draining };
    }

    /// A relay that starts knows only that it takes terminals.
    pub(super) fn forget_drains(&mut self, relay: usize) {
        let version = self.drains[relay].table[relay].version;
        let count = self.drains.len();
        let drain = &mut self.drains[relay];
        drain.end_nothing();
        drain.table = vec![Row::default(); count];
        drain.table[relay].version = version;
        self.row(relay, false);
    }

    /// The relays as one of them tells its terminals.
    pub(super) fn contacts(&self, of: usize) -> Relays {
        let all = self.drains[of].table.iter().enumerate();
        let relays = all.map(|(relay, row)| RelayContact {
            name: relay_name(relay),
            addresses: vec![self.address(relay, true).to_string()],
            draining: row.draining,
        });
        Relays { relays: relays.collect(), more: false }
    }

    /// One round of gossip over the links that carry something; who learned of a relay that drains, or does no more.
    fn gossip(&mut self) -> Vec<usize> {
        let before: Vec<Vec<Row>> = self.drains.iter().map(|drain| drain.table.clone()).collect();
        let mut told = Vec::new();
        for relay in 0..before.len() {
            for (peer, said) in before.iter().enumerate() {
                if peer == relay || !self.is_up(relay) || !self.passes(relay, peer) {
                    continue;
                }
                for (known, said) in self.drains[relay].table.iter_mut().zip(said) {
                    if said.version > known.version {
                        *known = *said;
                    }
                }
            }
            let draining = |table: &[Row]| table.iter().map(|row| row.draining).collect::<Vec<_>>();
            if draining(&self.drains[relay].table) != draining(&before[relay]) {
                told.push(relay);
            }
        }
        told
    }

    /// The graph as a relay knows it, in the routes that ship.
    pub(super) fn routes(&self, of: usize) -> Routes {
        let mut routes = Routes::new(id(of));
        let now = self.start;
        for relay in 0..self.len() {
            let peers = (0..self.len()).filter(|peer| *peer != relay);
            let linked = peers.filter(|peer| self.seems_to_pass(relay, *peer));
            let links = linked.map(|peer| LinkState { peer: id(peer), rtt_us: 20_000 }).collect();
            routes.handle(routes::Input::Links(id(relay), LinksRow { links }), now);
            let draining = self.drains[of].table[relay].draining;
            let load = LoadRow { draining, terminals: 0 };
            routes.handle(routes::Input::Load(id(relay), load), now);
        }
        routes
    }

    /// The way from one relay to one of these, away from `avoid` as far as can be: how many of those it takes, its cost,
    /// and the relays.
    pub(super) fn route(
        &self,
        from: usize,
        to: usize,
        avoid: &[RelayName],
    ) -> Option<(usize, u64, Vec<usize>)> {
        let avoided = (0..self.len()).filter(|relay| avoid.contains(&relay_name(*relay)));
        let avoided = avoided.map(id).collect();
        let (shared, cost, route) = self.routes(from).route_apart(id(from), id(to), &avoided)?;
        Some((shared, cost, route.iter().map(|relay| relay.0 as usize - 1).collect()))
    }
}

impl World {
    /// A relay drains, and ends when nobody is left or this time is over, where it is given; some start `again`.
    pub fn drain_relay(&mut self, relay: usize, end_within: Option<Duration>, again: bool) {
        let at = end_within.map(|within| self.now + within);
        self.mesh.drains[relay].ending = at.map(|at| Ending { at, again });
        self.set_draining(relay, true);
    }

    /// A relay drains no more.
    pub fn undrain_relay(&mut self, relay: usize) {
        self.mesh.drains[relay].ending = None;
        self.set_draining(relay, false);
    }

    fn set_draining(&mut self, relay: usize, draining: bool) {
        if self.mesh.is_draining(relay) != draining {
            self.mesh.row(relay, draining);
            self.tell_contacts(relay);
            let wait = Duration::from_millis(self.rng.random_range(1..50));
            self.at(wait, Event::Gossip);
        }
    }

    /// Whether a relay is there, and does not drain.
    pub fn stays(&self, relay: usize) -> bool {
        self.mesh.is_up(relay) && !self.mesh.is_draining(relay)
    }

    /// Whether a relay is there.
    pub fn is_up(&self, relay: usize) -> bool {
        self.mesh.is_up(relay)
    }

    /// How often relays ended with nobody left, and at their deadline.
    pub fn ended(&self) -> [usize; 2] {
        let all = self.mesh.drains.iter().map(|drain| drain.ended);
        all.fold([0; 2], |sum, ended| [sum[0] + ended[0], sum[1] + ended[1]])
    }

    /// Relays tell each other what they know.
    pub(super) fn gossip(&mut self) {
        let told = self.mesh.gossip();
        if !told.is_empty() {
            self.at(Duration::from_millis(20), Event::Gossip);
        }
        told.into_iter().for_each(|relay| self.tell_contacts(relay));
    }

    fn tell_contacts(&mut self, relay: usize) {
        let contacts = self.mesh.contacts(relay);
        for who in self.mesh.seats(relay) {
            self.say_down(relay, who, ToTerminal::Relays(contacts.clone()));
        }
    }

    /// Relays whose time has come end.
    pub(super) fn end_drained(&mut self) {
        for relay in 0..self.mesh.len() {
            let Some(ending) = self.mesh.drains[relay].ending else { continue };
            let left = self.mesh.seats(relay).is_empty() && !self.mesh.carries(relay);
            if self.mesh.is_up(relay) && (left || ending.at <= self.now) {
                self.mesh.drains[relay].ended[usize::from(!left)] += 1;
                self.end_relay(relay, ending.again);
            }
        }
    }

    /// A relay ends, and says so to whom it knows.
    fn end_relay(&mut self, relay: usize, again: bool) {
        self.mesh.drains[relay].ending = None;
        for (to, attach) in self.mesh.clear_seats(relay) {
            self.down(relay, to, attach, Down::Reset);
        }
        self.kill_relay(relay);
        self.notice_later(relay, Duration::from_millis(40));
        if again {
            let wait = Duration::from_millis(self.rng.random_range(BACK));
            self.mesh.drains[relay].starts_at = Some(self.now + wait);
            self.at(wait, Event::Start(relay));
        }
    }

    /// A relay that ended comes back, unless something else happened to it.
    pub(super) fn start_again(&mut self, relay: usize) {
        if self.mesh.drains[relay].starts_at == Some(self.now) {
            self.start_relay(relay);
        }
    }

    /// Whether a path of a call takes a relay that drains.
    pub fn takes_draining(&self, call: usize) -> bool {
        let drains = |relay: &usize| self.mesh.is_draining(*relay);
        self.mesh.routes_of(self.made[call].session).flatten().any(drains)
    }

    /// A terminal heard of the relays that drain.
    pub(super) fn heard_of_relays(&mut self, terminal: usize, by: AttachId, relays: &Relays) {
        let draining = relays.relays.iter().filter(|relay| relay.draining);
        let draining = draining.map(|relay| relay.name.clone()).collect();
        let mut attachments = self.terminals[terminal].attachments.iter_mut();
        if let Some(one) = attachments.find(|one| one.id == by) {
            one.draining = Some(draining);
        }
        self.agree_on_draining(terminal);
    }

    /// Who drains is what the relays say that are attached; while none is, what was said last.
    pub(super) fn agree_on_draining(&mut self, terminal: usize) {
        let attachments = self.terminals[terminal].attachments.iter();
        let said: Vec<_> = attachments
            .filter_map(|one| Some((relay_name(one.relay), one.draining.clone()?)))
            .collect();
        if said.is_empty() {
            return;
        }
        let said: Vec<_> = said.iter().map(|(by, draining)| (by, draining)).collect();
        let all = (0..self.mesh.len()).map(relay_name);
        let draining: BTreeSet<RelayName> = all.filter(|relay| drains(relay, &said)).collect();
        self.terminals[terminal].draining.clone_from(&draining);
        self.give(terminal, tasuki_terminal::core::paths::Input::Draining(draining));
    }

    /// A terminal replaces attachments whose relays drain, each when another stands.
    pub(super) fn leave_draining(&mut self, terminal: usize) {
        let now = self.now;
        let drains = |relay: usize, world: &World| {
            world.terminals[terminal].draining.contains(&relay_name(relay))
        };
        let jitter = JITTER.mul_f64(self.rng.random_range(0.0..1.0));
        let here = &self.terminals[terminal];
        let any = here.attachments.iter().any(|one| one.standing && drains(one.relay, self));
        let leave_at = if any { Some(here.leave_at.unwrap_or(now + jitter)) } else { None };
        self.terminals[terminal].leave_at = leave_at;
        let over = self.terminals[terminal].attachments.iter();
        let over = over.filter(|one| one.leaves_at.is_some_and(|at| at <= now));
        let over: Vec<_> = over.map(|one| one.id).collect();
        for id in over {
            self.bye(terminal, id);
        }
        if leave_at.is_none_or(|at| at > now) {
            return;
        }
        let here = &self.terminals[terminal];
        let standing = |one: &&super::terminal::Attachment| one.standing && one.leaves_at.is_none();
        let count = here.attachments.iter().filter(standing).count();
        let stay = here.attachments.iter().filter(standing);
        let stay = stay.filter(|one| !drains(one.relay, self)).count();
        if count <= 2 || stay == 0 {
            return;
        }
        let replaced = here.attachments.iter().filter(standing);
        let replaced = replaced.filter(|one| drains(one.relay, self)).map(|one| one.id).next_back();
        let replaced =
            self.terminals[terminal].attachments.iter_mut().find(|one| Some(one.id) == replaced);
        if let Some(one) = replaced {
            one.leaves_at = Some(now + GRACE);
            self.attachments_changed(terminal);
        }
    }
}
