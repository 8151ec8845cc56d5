//! The world: what is under way, in the order of virtual time, and what tests do to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::control::{ToRelay, ToTerminal};
use tasuki_proto::path::{PROBE_FRAME, Probe};
use tasuki_proto::session::Word;
use tasuki_proto::{Label, SessionId};
use tasuki_terminal::core::login::AttachId;

use super::kind::NatKind;
use super::mesh::Mesh;
use super::net::{LIFE, Left, Line, Net};
use super::terminal::Terminal;

/// What a UDP packet holds.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    /// A frame of a session. Who does not have its key cannot read or make it: the session and the direction stand for
    /// that.
    Frame { label: Label, session: SessionId, from_caller: bool, body: Body },
    /// What a terminal says to a relay on an attachment.
    Up { terminal: usize, attach: AttachId, what: Up },
    /// What a relay says to a terminal.
    Down { attach: AttachId, what: Down },
}

/// What a frame holds.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Probe(Probe, usize),
    /// Packets of the end-to-end connection.
    Bulk(u64),
    Word(u64, Word),
    /// All words before this number are there.
    Heard(u64),
}

#[derive(Debug, Clone)]
pub(super) enum Up {
    /// Asks to be attached.
    Hello,
    /// Asks whether the relay is there.
    KeepAlive,
    Say(u64, ToRelay),
    /// All that the relay said before this number is there.
    Heard(u64),
    /// Lets the attachment go.
    Bye,
    /// Answers a challenge: this address is the terminal's.
    Echo,
}

#[derive(Debug, Clone)]
pub(super) enum Down {
    Welcome(SocketAddr),
    Alive,
    Say(u64, Box<ToTerminal>),
    Heard(u64),
    Challenge,
    /// The relay knows nothing of this attachment.
    Reset,
}

impl Payload {
    fn length(&self) -> usize {
        match self {
            Payload::Frame { body: Body::Probe(_, length), .. } => *length,
            Payload::Frame { body: Body::Bulk(_), .. } => 1_452,
            _ => PROBE_FRAME,
        }
    }
}

/// What waits for its time.
#[derive(Debug)]
pub(super) enum Event {
    /// A packet comes out of the internet.
    Packet { from: SocketAddr, to: SocketAddr, payload: Payload },
    /// It comes to a machine.
    At { host: usize, from: SocketAddr, payload: Payload },
    /// A frame comes to the last relay of its path, for the other terminal.
    Relayed { relay: usize, to: (usize, AttachId), payload: Payload },
    /// Relays tell each other something for a terminal of the second.
    Between { relays: (usize, usize), to: (usize, AttachId), message: Box<ToTerminal> },
    /// The others notice that a relay, or the way between two, is gone.
    Noticed(usize, usize),
    /// Relays tell each other which of them drain.
    Gossip,
    /// A relay that ended starts again.
    Start(usize),
    /// The end-to-end handshake of a session is over.
    Proven(SessionId),
    /// What is due at a terminal's paths.
    Due(usize),
    /// What a terminal does all the time.
    Tick(usize),
    /// The next packet of a busy session.
    Bulk { terminal: usize, session: SessionId },
}

/// A call that was made, and its ends: caller and callee.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    pub(super) session: SessionId,
    pub(super) ends: [usize; 2],
    /// What the handshake shows of the first path.
    pub(super) rtt: Duration,
}

/// Terminals with the cores that ship, relays, NATs and the ways between them.
///
/// A run is a function of its seed. What must never happen is noted as it happens, and [`World::check`] tells it.
#[derive(Debug)]
pub struct World {
    pub(super) start: Instant,
    pub(super) now: Duration,
    pub(super) net: Net,
    pub(super) mesh: Mesh,
    pub(super) terminals: Vec<Terminal>,
    pub(super) made: Vec<Made>,
    pub(super) rng: SmallRng,
    pub(super) wrong: Vec<String>,
    /// How often a busy session sends a packet, each way.
    pub(super) pace: Duration,
    /// Print what happens to paths.
    pub(super) trace: bool,
    events: BTreeMap<(Duration, u64), Event>,
    count: u64,
}

impl World {
    /// Relays with public addresses of both families, and nobody else.
    #[allow(clippy::disallowed_methods, reason = "only the beginning of virtual time")]
    pub fn new(seed: u64, relays: usize) -> World {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut net = Net::new(SmallRng::seed_from_u64(rng.random()));
        let start = Instant::now();
        let mesh = Mesh::new(relays, &mut net, start);
        World {
            start,
            now: Duration::ZERO,
            net,
            mesh,
            terminals: Vec::new(),
            made: Vec::new(),
            rng,
            wrong: Vec::new(),
            pace: Duration::from_millis(20),
            trace: std::env::var_os("TASUKI_NAT_TRACE").is_some(),
            events: BTreeMap::new(),
            count: 0,
        }
    }

    /// Jitter and loss of every way from here on.
    pub fn impair(&mut self, jitter: Duration, loss: f64) {
        (self.net.plain.jitter, self.net.plain.loss) = (jitter, loss);
    }

    /// Busy sessions send a packet each way every `pace`.
    pub fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    /// Terminals of one place, each attached to these relays in this order of preference, as many as they are.
    pub fn home(&mut self, kind: NatKind, octet: u8, relays: &[&[usize]]) -> Vec<usize> {
        let hosts = self.net.home(kind, octet, relays.len());
        let all = hosts.into_iter().zip(relays);
        all.map(|(host, relays)| self.add_terminal(host, relays)).collect()
    }

    /// A terminal at a place of its own.
    pub fn terminal(&mut self, kind: NatKind, octet: u8, relays: &[usize]) -> usize {
        self.home(kind, octet, &[relays])[0]
    }

    pub(super) fn at(&mut self, delay: Duration, event: Event) {
        self.count += 1;
        self.events.insert((self.now + delay, self.count), event);
    }

    pub(super) fn instant(&self) -> Instant {
        self.start + self.now
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((&(at, count), _)) = self.events.first_key_value()
            && at <= until
        {
            let Some(event) = self.events.remove(&(at, count)) else { break };
            self.now = at;
            self.take(event);
        }
        self.now = until;
    }

    /// Runs until `done`, and says how long it took.
    ///
    /// # Errors
    /// With the state of all sessions, when it is not done in time.
    pub fn run_until(
        &mut self,
        most: Duration,
        mut done: impl FnMut(&World) -> bool,
    ) -> Result<Duration, String> {
        let begun = self.now;
        while !done(self) {
            if self.now >= begun + most {
                return Err(format!("not within {most:?}: {}", self.state()));
            }
            self.run(Duration::from_millis(10));
        }
        Ok(self.now - begun)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Packet { from, to, payload } => match self.mesh.relay_at(to.ip()) {
                Some(relay) => self.at_relay(relay, from, payload),
                None => {
                    if let Some(host) = self.net.enter(from, to, self.now) {
                        self.at_host(host, from, payload);
                    }
                }
            },
            Event::At { host, from, payload } => self.at_host(host, from, payload),
            Event::Relayed { relay, to, payload } => self.pass_down(relay, to, payload),
            Event::Between { relays, to, message } => self.passed_on(relays, to, *message),
            Event::Noticed(a, b) => self.noticed(a, b),
            Event::Gossip => self.gossip(),
            Event::Start(relay) => self.start_again(relay),
            Event::Proven(session) => self.proven(session),
            Event::Due(terminal) => self.due(terminal),
            Event::Tick(terminal) => self.tick(terminal),
            Event::Bulk { terminal, session } => self.bulk(terminal, session),
        }
    }

    /// A terminal sends a packet, to be discarded after so many hops where they are given.
    pub(super) fn send(
        &mut self,
        terminal: usize,
        to: SocketAddr,
        payload: Payload,
        hops: Option<u8>,
    ) {
        let host = self.terminals[terminal].host;
        let size = (payload.length(), hops.unwrap_or(LIFE));
        match self.net.leave(host, to, size, self.now) {
            Left::Near(host, from, time) => self.at(time, Event::At { host, from, payload }),
            Left::Far(from, time) => self.at(time, Event::Packet { from, to, payload }),
            Left::Lost => {}
        }
    }

    /// A relay sends a packet from its address of the right family.
    pub(super) fn send_down(&mut self, relay: usize, to: SocketAddr, payload: Payload) {
        let from = self.mesh.address(relay, to.is_ipv4());
        if let Some(time) = self.net.takes(from.ip(), to.ip(), payload.length()) {
            self.at(time, Event::Packet { from, to, payload });
        }
    }

    fn at_host(&mut self, host: usize, from: SocketAddr, payload: Payload) {
        let at = self.terminals.iter().position(|terminal| terminal.host == host);
        if let Some(terminal) = at {
            self.arrived(terminal, from, payload);
        }
    }

    /// Nothing passes from one terminal directly to another any more, one way.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.change_line(from, to, |line| line.loss = 1.0);
    }

    /// The direct way from one terminal to another loses this share.
    pub fn lose(&mut self, from: usize, to: usize, share: f64) {
        self.change_line(from, to, |line| line.loss = share);
    }

    /// The direct way from one terminal to another gets so much longer.
    pub fn slow(&mut self, from: usize, to: usize, more: Duration) {
        self.change_line(from, to, |line| line.delay += more);
    }

    /// Ways that were changed are as they were.
    pub fn heal(&mut self) {
        self.net.lines.clear();
    }

    fn change_line(&mut self, from: usize, to: usize, change: impl Fn(&mut Line)) {
        for from in self.public_addresses(from) {
            for to in self.public_addresses(to) {
                let mut line = self.net.line(from, to);
                change(&mut line);
                self.net.lines.insert((from, to), line);
            }
        }
    }

    /// By which addresses the internet knows a terminal's place.
    fn public_addresses(&self, terminal: usize) -> BTreeSet<IpAddr> {
        let host = &self.net.hosts[self.terminals[terminal].host];
        match host.gateways.last() {
            Some(last) => BTreeSet::from([self.net.gateways[*last].external.into()]),
            None => host.interfaces(),
        }
    }

    /// The NATs of a terminal forget all mappings.
    pub fn restart_nat(&mut self, terminal: usize) {
        for gateway in self.gateways(terminal) {
            self.net.gateways[gateway].restart();
        }
    }

    /// The NATs of a terminal forget all mappings and give other ports.
    pub fn rebind_nat(&mut self, terminal: usize) {
        for gateway in self.gateways(terminal) {
            self.net.gateways[gateway].rebind();
        }
    }

    fn gateways(&self, terminal: usize) -> Vec<usize> {
        self.net.hosts[self.terminals[terminal].host].gateways.clone()
    }

    /// A terminal goes to another place: another network, another address, the same socket.
    pub fn roam(&mut self, terminal: usize, kind: NatKind, octet: u8) {
        let Some(there) = self.net.home(kind, octet, 1).first().copied() else { return };
        // The machine itself stays; the one that was made for its addresses is nobody.
        let host = self.terminals[terminal].host;
        self.net.hosts.swap(host, there);
        self.net.hosts.truncate(there);
    }
}

/// Messages that are to arrive, each once and in order: one side's part of a reliable stream each way.
#[derive(Debug)]
pub(super) struct Stream<Out, In> {
    next: u64,
    waiting: VecDeque<(u64, Out, Duration)>,
    /// The first number that has not come in.
    pub(super) expected: u64,
    early: BTreeMap<u64, In>,
}

impl<Out, In> Default for Stream<Out, In> {
    fn default() -> Self {
        Self { next: 0, waiting: VecDeque::new(), expected: 0, early: BTreeMap::new() }
    }
}

impl<Out: Clone, In> Stream<Out, In> {
    /// Takes one more; returns its number.
    pub(super) fn push(&mut self, message: Out, now: Duration) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.push_back((number, message, now));
        number
    }

    /// All before this one are there.
    pub(super) fn heard(&mut self, number: u64) {
        self.waiting.retain(|(waiting, ..)| *waiting >= number);
    }

    /// What to send again.
    pub(super) fn overdue(&mut self, wait: Duration, now: Duration) -> Vec<(u64, Out)> {
        let due = self.waiting.iter_mut().filter(|(_, _, at)| *at + wait <= now);
        due.map(|(number, message, at)| {
            *at = now;
            (*number, message.clone())
        })
        .collect()
    }

    /// Takes what came in; returns what is in order.
    pub(super) fn take(&mut self, number: u64, message: In) -> Vec<In> {
        if number >= self.expected {
            self.early.insert(number, message);
        }
        let mut ready = Vec::new();
        while let Some(message) = self.early.remove(&self.expected) {
            ready.push(message);
            self.expected += 1;
        }
        ready
    }
}
