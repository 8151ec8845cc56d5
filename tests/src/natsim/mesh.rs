//! The relays as terminals and their paths see them: they see mapped addresses, bind labels to addresses that were
//! proven, carry frames from relay to relay, and notice late what died.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::control::{PathEnd, Resumed, Resuming, ToRelay, ToTerminal};
use tasuki_proto::{Generation, Label, RefusalCode, RelayName, SessionId, control};
use tasuki_terminal::core::calls::Opened;
use tasuki_terminal::core::login::AttachId;

use super::drain::Drain;
use super::net::{Net, public};
use super::terminal::{Terminal, name};
use super::world::{Body, Down, Event, Payload, Stream, Up, World};

/// A relay forgets a terminal that it did not hear from for so long.
const SILENT: Duration = Duration::from_secs(20);
/// The others notice a dead relay, or a dead way between two, after this.
const NOTICED: Duration = Duration::from_secs(3);
/// The number of the first relay's public addresses.
const FIRST: u8 = 11;
const PORT: u16 = 4_433;

/// A terminal at a relay.
#[derive(Debug)]
struct Seat {
    /// Where frames to it go: the address that it proved last.
    current: SocketAddr,
    heard: Duration,
    stream: Stream<ToTerminal, ToRelay>,
}

#[derive(Debug)]
struct Relay {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    up: bool,
    seats: BTreeMap<(usize, AttachId), Seat>,
}

/// What a label at a relay stands for: one direction of a path.
#[derive(Debug, Clone)]
struct Leg {
    session: SessionId,
    generation: Generation,
    from: (usize, AttachId),
    to: (usize, AttachId),
    /// The relays, that of `from` first.
    route: Vec<usize>,
    /// With this label it goes on to the terminal.
    out: Label,
}

/// A path that the callee has not taken yet.
#[derive(Debug, Clone)]
struct Asked {
    caller: (usize, AttachId),
    callee: (usize, AttachId),
    route: Vec<usize>,
}

/// The relays and what they know.
#[derive(Debug)]
pub(super) struct Mesh {
    relays: Vec<Relay>,
    legs: BTreeMap<Label, Leg>,
    asked: BTreeMap<(SessionId, Generation), Asked>,
    /// Ways between relays that carry nothing, and those of which this is known.
    cut: BTreeSet<(usize, usize)>,
    known_cut: BTreeSet<(usize, usize)>,
    /// Tell terminals that their address changed.
    pub(super) tells_moves: bool,
    /// Whether each drains, and what it knows of the others.
    pub(super) drains: Vec<Drain>,
    /// The beginning of virtual time.
    pub(super) start: Instant,
}

pub(super) fn relay_name(relay: usize) -> RelayName {
    RelayName::new(&format!("r{}", relay + 1)).unwrap()
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Mesh {
    pub(super) fn new(relays: usize, net: &mut Net, start: Instant) -> Mesh {
        let drains = (0..relays).map(|_| Drain::new(relays)).collect();
        let relays = (0..relays).map(|n| {
            let (v4, v6) = public(FIRST + n as u8);
            net.place(v4.into(), None);
            net.place(v6.into(), Some(v4.into()));
            Relay { v4, v6, up: true, seats: BTreeMap::new() }
        });
        Mesh {
            relays: relays.collect(),
            legs: BTreeMap::new(),
            asked: BTreeMap::new(),
            cut: BTreeSet::new(),
            known_cut: BTreeSet::new(),
            tells_moves: false,
            drains,
            start,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.relays.len()
    }

    pub(super) fn relay_at(&self, ip: IpAddr) -> Option<usize> {
        self.relays
            .iter()
            .position(|relay| IpAddr::from(relay.v4) == ip || IpAddr::from(relay.v6) == ip)
    }

    pub(super) fn address(&self, relay: usize, v4: bool) -> SocketAddr {
        let relay = &self.relays[relay];
        let ip = if v4 { relay.v4.into() } else { IpAddr::from(relay.v6) };
        (ip, PORT).into()
    }

    pub(super) fn is_up(&self, relay: usize) -> bool {
        self.relays[relay].up
    }

    /// The relays of each direction of each path of a session.
    pub(super) fn routes_of(&self, session: SessionId) -> impl Iterator<Item = &Vec<usize>> {
        self.legs.values().filter(move |leg| leg.session == session).map(|leg| &leg.route)
    }

    /// Labels that stand for paths of this session.
    pub(super) fn labels(&self, session: SessionId) -> usize {
        self.legs.values().filter(|leg| leg.session == session).count()
    }

    /// Who is attached to a relay.
    pub(super) fn seats(&self, relay: usize) -> Vec<(usize, AttachId)> {
        self.relays[relay].seats.keys().copied().collect()
    }

    /// Nobody is attached to a relay any more; who was.
    pub(super) fn clear_seats(&mut self, relay: usize) -> Vec<(SocketAddr, AttachId)> {
        let seats = std::mem::take(&mut self.relays[relay].seats);
        seats.into_iter().map(|((_, attach), seat)| (seat.current, attach)).collect()
    }

    /// Whether a relay is on the path of a session.
    pub(super) fn carries(&self, relay: usize) -> bool {
        self.legs.values().any(|leg| leg.route.contains(&relay))
    }

    /// Where a terminal is attached: the epochs of log-ins tell which of its attachments stand.
    fn seats_of(&self, terminal: &Terminal) -> Vec<(usize, (usize, AttachId))> {
        let standing = terminal.attachments.iter().filter(|one| one.standing);
        let seats = standing.map(|one| (one.relay, (terminal.number, one.id)));
        seats
            .filter(|(relay, who)| {
                self.is_up(*relay) && self.relays[*relay].seats.contains_key(who)
            })
            .collect()
    }

    /// Whether two terminals are attached to relays that reach each other, over one in the middle at most.
    pub(super) fn reaches(&self, a: &Terminal, b: &Terminal) -> bool {
        let to = self.seats_of(b);
        self.seats_of(a).iter().any(|(from, _)| to.iter().any(|(to, _)| self.joins(*from, *to)))
    }

    /// Whether two relays reach each other, over one in the middle at most.
    fn joins(&self, from: usize, to: usize) -> bool {
        let middle = |m| self.passes(from, m) && self.passes(m, to);
        self.passes(from, to) || (0..self.relays.len()).any(middle)
    }

    pub(super) fn passes(&self, a: usize, b: usize) -> bool {
        a == b || (self.is_up(a) && self.is_up(b) && !self.cut.contains(&pair(a, b)))
    }

    pub(super) fn seems_to_pass(&self, a: usize, b: usize) -> bool {
        a == b || !self.known_cut.contains(&pair(a, b))
    }

    /// The way of a frame over these relays; `None` where it gets lost.
    fn way(&self, route: &[usize], net: &mut Net) -> Option<Duration> {
        let mut time = Duration::ZERO;
        for two in route.windows(2) {
            if !self.passes(two[0], two[1]) {
                return None;
            }
            time += net.takes(self.relays[two[0]].v4.into(), self.relays[two[1]].v4.into(), 0)?;
        }
        Some(time)
    }
}

impl World {
    /// A packet of a terminal comes to a relay.
    pub(super) fn at_relay(&mut self, relay: usize, from: SocketAddr, payload: Payload) {
        if !self.mesh.is_up(relay) {
            return;
        }
        match payload {
            Payload::Frame { label, session, from_caller, body } => {
                self.forward(relay, from, label, (session, from_caller, body));
            }
            Payload::Up { terminal, attach, what } => {
                self.heard_up(relay, from, (terminal, attach), what);
            }
            Payload::Down { .. } => {}
        }
    }

    pub(super) fn down(&mut self, relay: usize, to: SocketAddr, attach: AttachId, what: Down) {
        self.send_down(relay, to, Payload::Down { attach, what });
    }

    fn heard_up(&mut self, relay: usize, from: SocketAddr, who: (usize, AttachId), what: Up) {
        let now = self.now;
        let attach = who.1;
        if matches!(what, Up::Hello) {
            if self.mesh.is_draining(relay) && !self.mesh.relays[relay].seats.contains_key(&who) {
                return self.down(relay, from, attach, Down::Reset);
            }
            let is_new = !self.mesh.relays[relay].seats.contains_key(&who);
            let seat = Seat { current: from, heard: now, stream: Stream::default() };
            self.mesh.relays[relay].seats.entry(who).or_insert(seat);
            // The newest log-in of a terminal counts.
            let seats = self.mesh.relays[relay].seats.keys();
            let older = seats.filter(|other| other.0 == who.0 && other.1 < attach);
            for older in older.copied().collect::<Vec<_>>() {
                self.mesh.relays[relay].seats.remove(&older);
                self.seat_lost(older);
            }
            self.down(relay, from, attach, Down::Welcome(from));
            if is_new {
                let contacts = ToTerminal::Relays(self.mesh.contacts(relay));
                self.say_down(relay, who, contacts);
            }
            return;
        }
        let Some(seat) = self.mesh.relays[relay].seats.get_mut(&who) else {
            return self.down(relay, from, attach, Down::Reset);
        };
        seat.heard = now;
        // Its packets are authenticated; of a path that is new a round trip is wanted first.
        let elsewhere = seat.current != from;
        match what {
            Up::Echo => {
                seat.current = from;
                if elsewhere && self.mesh.tells_moves {
                    self.down(relay, from, attach, Down::Welcome(from));
                }
            }
            Up::KeepAlive => self.down(relay, from, attach, Down::Alive),
            Up::Heard(number) => seat.stream.heard(number),
            Up::Say(number, message) => {
                let messages = seat.stream.take(number, message);
                let expected = seat.stream.expected;
                self.down(relay, from, attach, Down::Heard(expected));
                for message in messages {
                    self.said_up(relay, who, message);
                }
            }
            Up::Bye => {
                self.mesh.relays[relay].seats.remove(&who);
                return self.seat_lost(who);
            }
            Up::Hello => {}
        }
        if elsewhere {
            self.down(relay, from, attach, Down::Challenge);
        }
    }

    /// Passes a frame on, if it comes from where its terminal is.
    fn forward(
        &mut self,
        relay: usize,
        from: SocketAddr,
        label: Label,
        (session, from_caller, body): (SessionId, bool, Body),
    ) {
        let Some(leg) = self.mesh.legs.get(&label).cloned() else { return };
        if leg.route.first() != Some(&relay) {
            return;
        }
        let Some(seat) = self.mesh.relays[relay].seats.get(&leg.from) else { return };
        if seat.current != from {
            return self.down(relay, from, leg.from.1, Down::Challenge);
        }
        let last = leg.route.last().copied().unwrap_or(relay);
        if let Some(time) = self.mesh.way(&leg.route, &mut self.net) {
            let payload = Payload::Frame { label: leg.out, session, from_caller, body };
            self.at(time, Event::Relayed { relay: last, to: leg.to, payload });
        }
    }

    pub(super) fn pass_down(&mut self, relay: usize, to: (usize, AttachId), payload: Payload) {
        if !self.mesh.is_up(relay) {
            return;
        }
        if let Some(seat) = self.mesh.relays[relay].seats.get(&to) {
            self.send_down(relay, seat.current, payload);
        }
    }

    /// What relays tell each other for a terminal arrives at its relay.
    pub(super) fn passed_on(
        &mut self,
        (from, to): (usize, usize),
        who: (usize, AttachId),
        message: ToTerminal,
    ) {
        if self.mesh.joins(from, to) {
            self.say_down(to, who, message);
        }
    }

    pub(super) fn say_down(&mut self, relay: usize, who: (usize, AttachId), message: ToTerminal) {
        let now = self.now;
        let Some(seat) = self.mesh.relays[relay].seats.get_mut(&who) else { return };
        let (number, to) = (seat.stream.push(message.clone(), now), seat.current);
        self.down(relay, to, who.1, Down::Say(number, Box::new(message)));
    }

    /// Tells a terminal something over these relays.
    fn tell(&mut self, route: (usize, usize), who: (usize, AttachId), message: ToTerminal) {
        let (from, to) = (self.mesh.relays[route.0].v4, self.mesh.relays[route.1].v4);
        let time = if route.0 == route.1 {
            Duration::ZERO
        } else {
            self.net.distance(from.into(), to.into())
        };
        let message = Box::new(message);
        self.at(time, Event::Between { relays: route, to: who, message });
    }

    fn said_up(&mut self, relay: usize, who: (usize, AttachId), message: ToRelay) {
        match message {
            ToRelay::Resume(resume) => self.resume(relay, who, resume),
            ToRelay::AcceptPath(accept) => self.accepted(relay, who, &accept),
            ToRelay::EndPath(end) => {
                self.mesh.asked.remove(&(end.session, end.generation));
                let path =
                    |leg: &Leg| leg.session == end.session && leg.generation == end.generation;
                self.end_legs(&path, Some(who.0), end.code);
            }
            ToRelay::End(end) => {
                self.mesh.asked.retain(|(session, _), _| *session != end.session);
                let legs = self.remove_legs(&|leg: &Leg| leg.session == end.session);
                for leg in legs.into_iter().filter(|leg| leg.from.0 == who.0) {
                    let ends = (relay, leg.route.last().copied().unwrap_or(relay));
                    self.tell(ends, leg.to, ToTerminal::Ended(end.clone()));
                }
            }
            _ => {}
        }
    }

    fn refuse(
        &mut self,
        relay: usize,
        who: (usize, AttachId),
        of: &control::Resume,
        code: RefusalCode,
    ) {
        let end = PathEnd { session: of.session, generation: of.generation, code };
        self.say_down(relay, who, ToTerminal::PathEnded(end));
    }

    fn resume(&mut self, relay: usize, who: (usize, AttachId), resume: control::Resume) {
        let callee = self.terminals.iter().position(|one| name(one.number) == resume.target);
        // As the directory tells it: the seats at relays that can be reached, those with the best way first.
        let way = callee.and_then(|callee| {
            let seats = self.mesh.seats_of(&self.terminals[callee]).into_iter();
            let ways = seats
                .filter_map(|(n, seat)| Some((self.mesh.route(relay, n, &resume.avoid)?, n, seat)));
            ways.min()
        });
        let Some(((_, _, route), last, callee)) = way else {
            return self.refuse(relay, who, &resume, RefusalCode::TargetLoggedOut);
        };
        let label = Label::from_random(self.rng.random());
        let leg = Leg {
            session: resume.session,
            generation: resume.generation,
            from: callee,
            to: who,
            route: route.iter().rev().copied().collect(),
            out: resume.label,
        };
        self.mesh.legs.insert(label, leg);
        let names = route.iter().copied().map(relay_name).collect();
        let resuming = Resuming {
            session: resume.session,
            generation: resume.generation,
            caller: name(who.0),
            label,
            route: names,
        };
        let asked = Asked { caller: who, callee, route: route.clone() };
        self.mesh.asked.insert((resume.session, resume.generation), asked);
        // What no route carries comes to nothing, and nobody says so.
        if self.mesh.way(&route, &mut self.net).is_some() {
            self.tell((relay, last), callee, ToTerminal::Resuming(resuming));
        }
    }

    fn accepted(&mut self, relay: usize, who: (usize, AttachId), accept: &control::AcceptPath) {
        let key = (accept.session, accept.generation);
        let Some(asked) = self.mesh.asked.remove(&key).filter(|asked| asked.callee == who) else {
            return;
        };
        let label = Label::from_random(self.rng.random());
        let leg = Leg {
            session: accept.session,
            generation: accept.generation,
            from: asked.caller,
            to: who,
            route: asked.route.clone(),
            out: accept.label,
        };
        self.mesh.legs.insert(label, leg);
        let resumed = Resumed {
            session: accept.session,
            generation: accept.generation,
            label,
            route: asked.route.iter().copied().map(relay_name).collect(),
        };
        let back: Vec<usize> = asked.route.iter().rev().copied().collect();
        if self.mesh.way(&back, &mut self.net).is_some() {
            let first = asked.route.first().copied().unwrap_or(relay);
            self.tell((relay, first), asked.caller, ToTerminal::Resumed(resumed));
        }
    }

    /// The first path of a session, over the terminals' first attachments: what both sides are told of it.
    pub(super) fn first_path(
        &mut self,
        session: SessionId,
        [caller, callee]: [(usize, (usize, AttachId)); 2],
    ) -> [Opened; 2] {
        let route = self.mesh.route(caller.0, callee.0, &[]);
        let route = route.map(|(_, _, route)| route).unwrap_or_default();
        let back: Vec<usize> = route.iter().rev().copied().collect();
        let inner = [(); 2].map(|()| Label::from_random(self.rng.random()));
        let outer = [(); 2].map(|()| Label::from_random(self.rng.random()));
        let generation = Generation::CALL;
        let names: Vec<RelayName> = route.iter().copied().map(relay_name).collect();
        for (ends, route, at) in [((caller.1, callee.1), route, 0), ((callee.1, caller.1), back, 1)]
        {
            let (from, to) = ends;
            let leg = Leg { session, generation, from, to, route, out: inner[1 - at] };
            self.mesh.legs.insert(outer[at], leg);
        }
        [(true, callee.1.0), (false, caller.1.0)].map(|(outgoing, peer)| {
            let at = usize::from(!outgoing);
            Opened {
                session,
                peer: name(peer),
                outgoing,
                label_in: inner[at],
                label_out: outer[at],
                service: tasuki_proto::ServiceName::new("echo").unwrap(),
                route: names.clone(),
                peer_address: None,
            }
        })
    }

    fn remove_legs(&mut self, which: &dyn Fn(&Leg) -> bool) -> Vec<Leg> {
        let gone: Vec<Label> =
            self.mesh.legs.iter().filter(|(_, leg)| which(leg)).map(|(label, _)| *label).collect();
        gone.into_iter().filter_map(|label| self.mesh.legs.remove(&label)).collect()
    }

    /// Ends paths, and tells both of their terminals but `not_to`.
    fn end_legs(&mut self, which: &dyn Fn(&Leg) -> bool, not_to: Option<usize>, code: RefusalCode) {
        for leg in self.remove_legs(which) {
            if Some(leg.to.0) == not_to {
                continue;
            }
            let end = PathEnd { session: leg.session, generation: leg.generation, code };
            if let Some(&last) = leg.route.last() {
                self.tell((last, last), leg.to, ToTerminal::PathEnded(end));
            }
        }
    }

    /// A relay lost a terminal.
    fn seat_lost(&mut self, who: (usize, AttachId)) {
        let ends = |leg: &Leg| leg.from == who || leg.to == who;
        self.end_legs(&ends, None, RefusalCode::RouteLost);
    }

    /// What relays do now and then: they say again what was not heard, and forget who is silent.
    pub(super) fn tick_relays(&mut self, wait: Duration) {
        let now = self.now;
        self.gossip();
        self.end_drained();
        for relay in 0..self.mesh.len() {
            if !self.mesh.is_up(relay) {
                continue;
            }
            let mut again = Vec::new();
            let mut silent = Vec::new();
            for (who, seat) in &mut self.mesh.relays[relay].seats {
                let overdue = seat.stream.overdue(wait, now);
                again.extend(overdue.into_iter().map(|say| (seat.current, who.1, say)));
                if seat.heard + SILENT <= now {
                    silent.push(*who);
                }
            }
            for (to, attach, (number, message)) in again {
                self.down(relay, to, attach, Down::Say(number, Box::new(message)));
            }
            for who in silent {
                self.mesh.relays[relay].seats.remove(&who);
                self.seat_lost(who);
            }
        }
    }

    /// Relays tell terminals when their address changed, or do not.
    pub fn tell_moves(&mut self, tell: bool) {
        self.mesh.tells_moves = tell;
    }

    /// A relay dies without a word, and with all that it knew.
    pub fn kill_relay(&mut self, relay: usize) {
        self.mesh.relays[relay].up = false;
        self.mesh.drains[relay].end_nothing();
        self.mesh.relays[relay].seats.clear();
        self.notice_later(relay, NOTICED);
    }

    /// A relay does nothing for a while, and knows everything when it goes on.
    pub fn freeze_relay(&mut self, relay: usize) {
        self.mesh.relays[relay].up = false;
        self.notice_later(relay, NOTICED);
    }

    /// A relay that was frozen goes on.
    pub fn thaw_relay(&mut self, relay: usize) {
        self.mesh.relays[relay].up = true;
        self.notice_later(relay, Duration::from_secs(1));
    }

    pub(super) fn notice_later(&mut self, relay: usize, after: Duration) {
        for other in (0..self.mesh.len()).filter(|other| *other != relay) {
            self.at(after, Event::Noticed(relay, other));
        }
    }

    /// A relay that died starts again.
    pub fn start_relay(&mut self, relay: usize) {
        self.mesh.relays[relay].up = true;
        self.mesh.forget_drains(relay);
        self.gossip();
        // The labels that it gave meant something to the process that died.
        self.remove_legs(&|leg: &Leg| leg.route.contains(&relay));
        self.notice_later(relay, Duration::from_secs(1));
    }

    /// Nothing passes between two relays any more.
    pub fn part_relays(&mut self, a: usize, b: usize) {
        self.mesh.cut.insert(pair(a, b));
        self.at(NOTICED, Event::Noticed(a, b));
    }

    /// Everything passes between two relays again.
    pub fn join_relays(&mut self, a: usize, b: usize) {
        self.mesh.cut.remove(&pair(a, b));
        self.at(Duration::from_secs(1), Event::Noticed(a, b));
    }

    /// Relays notice how it is between two of them.
    pub(super) fn noticed(&mut self, a: usize, b: usize) {
        if self.mesh.passes(a, b) {
            self.mesh.known_cut.remove(&pair(a, b));
            return;
        }
        if !self.mesh.known_cut.insert(pair(a, b)) {
            return;
        }
        let takes = |leg: &Leg| leg.route.windows(2).any(|two| pair(two[0], two[1]) == pair(a, b));
        self.end_legs(&takes, None, RefusalCode::RouteLost);
    }
}
