//! A terminal: the core of paths that ships, and around it what its driver and its socket do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tasuki_proto::control::{End, ToRelay, ToTerminal};
use tasuki_proto::path::{PROBE_FRAME, Probe};
use tasuki_proto::session::Word;
use tasuki_proto::{Label, RefusalCode, RelayId, RelayName, SessionId, TerminalId};
use tasuki_terminal::core::calls::Opened;
use tasuki_terminal::core::candidates::candidates;
use tasuki_terminal::core::login::AttachId;
use tasuki_terminal::core::paths::{
    Config, DataCounts, Heard, Input, Output, PathId, Paths, Standing,
};

use super::check::Record;
use super::mesh::relay_name;
use super::world::{Body, Down, Event, Made, Payload, Stream, Up, World};

/// How often a terminal looks after its attachments, and says again what was not heard.
const TICK: Duration = Duration::from_millis(250);
/// Ticks from one look at the machine's interfaces to the next: 5 s.
const LOOK_AROUND: u64 = 20;
/// As the agent's connections have it.
const KEEP_ALIVE: Duration = Duration::from_secs(9);
const SILENT: Duration = Duration::from_secs(20);
/// How long a relay that is doubted may take to say that it lives.
const DOUBT: Duration = Duration::from_millis(1_500);
/// How long a try to attach may take.
const TRY: Duration = Duration::from_secs(2);
/// From one try to the next.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Attachments of a terminal.
const WANTED: usize = 2;
/// The largest packets worth a try, and those that are sent.
const MOST: u16 = 8_944;
const MTU: u16 = 1_444;

/// A try to attach, or an attachment.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) id: AttachId,
    pub(super) relay: usize,
    address: SocketAddr,
    since: Duration,
    pub(super) standing: bool,
    seen_as: Option<SocketAddr>,
    heard: Duration,
    doubted: Option<Duration>,
    /// It was replaced, and goes then.
    pub(super) leaves_at: Option<Duration>,
    /// The relays that drain, as its relay said last.
    pub(super) draining: Option<BTreeSet<RelayName>>,
    stream: Stream<ToRelay, ToTerminal>,
}

/// The way of a session's frames.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) to: SocketAddr,
    label_in: Label,
    label_out: Label,
}

/// A session at one of its ends.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) caller: bool,
    pub(super) peer: usize,
    pub(super) installed: BTreeMap<PathId, Way>,
    pub(super) current: PathId,
    also: Option<PathId>,
    epoch: u32,
    /// Direct frames carry it.
    listen: Option<Label>,
    watched: bool,
    words: Stream<Word, Word>,
    pub(super) busy: bool,
    recent: [Option<Body>; 2],
    pub(super) over: Option<RefusalCode>,
    pub(super) record: Record,
}

/// A terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) number: usize,
    pub(super) host: usize,
    pub(super) paths: Paths,
    /// Relays that it may attach to, in the order of preference.
    relays: Vec<usize>,
    pub(super) attachments: Vec<Attachment>,
    last_attach: u64,
    next_try: Duration,
    /// How often trying each relay came to nothing in a row.
    failures: BTreeMap<usize, usize>,
    /// Relays that drain, as those said last that are attached; those with an attachment are left.
    pub(super) draining: BTreeSet<RelayName>,
    pub(super) leave_at: Option<Duration>,
    pub(super) sessions: BTreeMap<SessionId, Open>,
    due: Option<Duration>,
    ticks: u64,
}

pub(super) fn name(terminal: usize) -> TerminalId {
    TerminalId::new(&format!("t{terminal}")).unwrap()
}

impl World {
    pub(super) fn add_terminal(&mut self, host: usize, relays: &[usize]) -> usize {
        let number = self.terminals.len();
        let paths = Paths::new(Config::default(), SmallRng::seed_from_u64(self.rng.random()));
        self.terminals.push(Terminal {
            number,
            host,
            paths,
            relays: relays.to_vec(),
            attachments: Vec::new(),
            last_attach: 0,
            next_try: Duration::ZERO,
            failures: BTreeMap::new(),
            draining: BTreeSet::new(),
            leave_at: None,
            sessions: BTreeMap::new(),
            due: None,
            ticks: 0,
        });
        let first = TICK.mul_f64(self.rng.random());
        self.at(first, Event::Tick(number));
        number
    }

    /// Whether a terminal has all the attachments that it wants.
    pub fn is_attached(&self, terminal: usize) -> bool {
        let terminal = &self.terminals[terminal];
        let standing = terminal.attachments.iter().filter(|one| one.standing).count();
        standing >= WANTED.min(terminal.relays.len())
    }

    /// A terminal calls another one; both are attached. Returns the number of the call.
    pub fn call(&mut self, caller: usize, callee: usize) -> usize {
        let nonce = self.made.len() as u64 + 1;
        let session = SessionId { edge: RelayId(1), nonce };
        let ends = [caller, callee];
        let primary = |terminal: usize| {
            let mut all = self.terminals[terminal].attachments.iter();
            let first = all.find(|one| one.standing).expect("attached");
            (first.relay, (terminal, first.id))
        };
        let seats = ends.map(primary);
        let opened = self.first_path(session, seats);
        let [a, b] = seats.map(|(relay, _)| self.mesh.address(relay, true).ip());
        let handshake = (self.net.distance(a, b) + Duration::from_millis(60)) * 2;
        for (opened, at) in opened.into_iter().zip([0, 1]) {
            self.open(ends[at], ends[1 - at], opened, seats[at].1.1);
        }
        self.made.push(Made { session, ends, rtt: handshake });
        self.at(handshake, Event::Proven(session));
        self.made.len() - 1
    }

    fn open(&mut self, terminal: usize, peer: usize, opened: Opened, attach: AttachId) {
        let attachment = self.attachment(terminal, attach).map(|one| one.address);
        let current = PathId::Relayed(tasuki_proto::Generation::CALL);
        let to = attachment.expect("attached");
        let way = Way { to, label_in: opened.label_in, label_out: opened.label_out };
        let open = Open {
            caller: opened.outgoing,
            peer,
            installed: BTreeMap::from([(current, way)]),
            current,
            also: None,
            epoch: 0,
            listen: None,
            watched: false,
            words: Stream::default(),
            busy: false,
            recent: [None, None],
            over: None,
            record: Record::default(),
        };
        self.terminals[terminal].sessions.insert(opened.session, open);
        self.give(terminal, Input::Opened { opened, attach });
    }

    pub(super) fn proven(&mut self, session: SessionId) {
        let Some(made) = self.made.iter().find(|made| made.session == session).copied() else {
            return;
        };
        for end in made.ends {
            self.give(end, Input::Proven { session, most: MOST, rtt: made.rtt });
            self.set_busy_end(end, session, true);
        }
    }

    /// Both ends of a call send data, or rest.
    pub fn set_busy(&mut self, call: usize, busy: bool) {
        let Made { session, ends, .. } = self.made[call];
        for end in ends {
            self.set_busy_end(end, session, busy);
        }
    }

    fn set_busy_end(&mut self, terminal: usize, session: SessionId, busy: bool) {
        let Some(open) = self.terminals[terminal].sessions.get_mut(&session) else { return };
        let begins = busy && !open.busy;
        open.busy = busy;
        if begins {
            self.at(self.pace, Event::Bulk { terminal, session });
        }
    }

    fn open_session(&mut self, terminal: usize, session: SessionId) -> Option<&mut Open> {
        self.terminals[terminal].sessions.get_mut(&session).filter(|open| open.over.is_none())
    }

    /// The next packet of a busy session.
    pub(super) fn bulk(&mut self, terminal: usize, session: SessionId) {
        let (now, pace) = (self.now, self.pace);
        let Some(open) = self.open_session(terminal, session).filter(|open| open.busy) else {
            return;
        };
        let body = Body::Bulk(open.record.sent(now));
        self.send_data(terminal, session, body);
        self.at(pace, Event::Bulk { terminal, session });
    }

    /// Sends a packet of the end-to-end connection by the path in use, and by a second one where data takes two.
    fn send_data(&mut self, terminal: usize, session: SessionId, body: Body) {
        let quiet = matches!(body, Body::Heard(_));
        let Some(open) = self.open_session(terminal, session) else { return };
        if !quiet {
            open.recent.swap(0, 1);
            open.recent[1] = Some(body.clone());
        }
        let begins = !quiet && std::mem::take(&mut open.watched);
        for id in [Some(open.current), open.also].into_iter().flatten() {
            self.send_frame(terminal, session, id, body.clone(), None);
        }
        if begins {
            self.give(terminal, Input::Busy(session));
        }
    }

    fn send_frame(
        &mut self,
        terminal: usize,
        session: SessionId,
        id: PathId,
        body: Body,
        hops: Option<u8>,
    ) {
        let Some(open) = self.open_session(terminal, session) else { return };
        let Some(way) = open.installed.get(&id).copied() else { return };
        let from_caller = open.caller;
        if !matches!(body, Body::Probe(..)) {
            self.check_use(terminal, session, id, way);
        }
        let payload = Payload::Frame { label: way.label_out, session, from_caller, body };
        self.send(terminal, way.to, payload, hops);
    }

    /// Sends what was sent last once more.
    fn resend(&mut self, terminal: usize, session: SessionId, id: PathId) {
        let Some(open) = self.open_session(terminal, session) else { return };
        for body in open.recent.clone().into_iter().flatten() {
            self.send_frame(terminal, session, id, body, None);
        }
    }

    /// A packet comes to a terminal.
    pub(super) fn arrived(&mut self, terminal: usize, from: SocketAddr, payload: Payload) {
        match payload {
            Payload::Down { attach, what } => self.heard_down(terminal, attach, what),
            Payload::Frame { label, session, from_caller, body } => {
                self.frame(terminal, from, label, (session, from_caller), body);
            }
            Payload::Up { .. } => {}
        }
    }

    /// The session that a label belongs to, and the path that a frame from there takes; as the socket's table has it.
    fn path_of(
        &self,
        terminal: usize,
        label: Label,
        from: SocketAddr,
    ) -> Option<(SessionId, Option<PathId>)> {
        let open = self.terminals[terminal].sessions.iter().filter(|(_, open)| open.over.is_none());
        for (session, open) in open {
            let mut ways = open.installed.iter().filter(|(_, way)| way.label_in == label);
            if open.listen == Some(label) {
                let found = ways.find(|(_, way)| way.to == from).map(|(id, _)| *id);
                return Some((*session, found));
            }
            if let Some((id, way)) = ways.next() {
                return (way.to == from).then_some((*session, Some(*id)));
            }
        }
        None
    }

    fn frame(
        &mut self,
        terminal: usize,
        from: SocketAddr,
        label: Label,
        sender: (SessionId, bool),
        body: Body,
    ) {
        let Some((session, id)) = self.path_of(terminal, label, from) else { return };
        let (now, at) = (self.now, self.instant());
        let Some(open) = self.open_session(terminal, session) else { return };
        if sender != (session, !open.caller) {
            let wrong = format!("{sender:?} came to t{terminal} as one of {session:?}");
            return self.wrong.push(wrong);
        }
        let (current, epoch) = (open.current, open.epoch);
        if let Body::Probe(probe, _) = body {
            if let Some(id) = id {
                // What the peer uses an answer of this end came back by.
                if probe.answer || probe.in_use {
                    open.record.answered(id);
                }
                if !probe.answer {
                    let (number, in_use) = (probe.number, id == current);
                    let answer =
                        Probe { number, echo: 0, epoch, answer: true, in_use, stalled: false };
                    self.send_frame(terminal, session, id, Body::Probe(answer, PROBE_FRAME), None);
                }
            }
            let heard = id.map_or(Heard::From(from), Heard::On);
            return self.give(terminal, Input::Heard { session, heard, probe, at });
        }
        // Data of strangers is no session's.
        let Some(id) = id else { return };
        let begins = !matches!(body, Body::Heard(_)) && std::mem::take(&mut open.watched);
        let mut words = None;
        match body {
            Body::Bulk(number) => open.record.arrived(number, id, now),
            Body::Heard(number) => open.words.heard(number),
            Body::Word(number, word) => words = Some(open.words.take(number, word)),
            Body::Probe(..) => {}
        }
        let expected = open.words.expected;
        if begins {
            self.give(terminal, Input::Busy(session));
        }
        if let Some(words) = words {
            self.send_data(terminal, session, Body::Heard(expected));
            words.into_iter().for_each(|word| self.heard_word(terminal, session, word));
        }
    }

    fn heard_word(&mut self, terminal: usize, session: SessionId, word: Word) {
        match word {
            Word::Addresses(said) => self.give(terminal, Input::PeerAddresses(session, said)),
            Word::Attachments(said) => self.give(terminal, Input::PeerAttachments(session, said)),
            Word::Nat(said) => self.give(terminal, Input::PeerNat(session, said.kind)),
            Word::Use(_) => {}
        }
    }

    /// Hands an input to the paths, and does what they say.
    pub(super) fn give(&mut self, terminal: usize, input: Input) {
        let at = self.instant();
        self.terminals[terminal].paths.handle(input, at);
        while let Some(output) = self.terminals[terminal].paths.poll_output() {
            if self.trace {
                self.print(terminal, &output);
            }
            self.perform(terminal, output);
        }
        let Some(due) = self.terminals[terminal].paths.poll_timeout() else { return };
        let due = due.duration_since(self.start).max(self.now);
        if self.terminals[terminal].due.is_none_or(|planned| due < planned) {
            self.terminals[terminal].due = Some(due);
            self.at(due - self.now, Event::Due(terminal));
        }
    }

    pub(super) fn due(&mut self, terminal: usize) {
        if self.terminals[terminal].due == Some(self.now) {
            self.terminals[terminal].due = None;
            self.give(terminal, Input::Timeout);
        }
    }

    fn perform(&mut self, terminal: usize, output: Output) {
        match output {
            Output::Say(attach, message) => self.say(terminal, attach, message),
            Output::Doubt(attach) => self.doubt(terminal, attach),
            Output::Failed { session, code } => self.fail(terminal, session, code),
            Output::Install { session, path, to, label_in, label_out } => {
                let way = Way { to, label_in, label_out };
                let Some(open) = self.open_session(terminal, session) else { return };
                open.installed.insert(path, way);
                self.tell_mtu(terminal, session);
            }
            Output::Probe { session, path, probe, length, hops } => {
                self.count_probe(terminal, session, path, length);
                self.send_frame(terminal, session, path, Body::Probe(probe, length), hops);
            }
            Output::Tell(session, word) => {
                let now = self.now;
                let Some(open) = self.open_session(terminal, session) else { return };
                let number = open.words.push(word.clone(), now);
                self.send_data(terminal, session, Body::Word(number, word));
            }
            Output::Use { session, path, epoch } => {
                let Some(open) = self.open_session(terminal, session) else { return };
                let back = epoch < open.epoch;
                (open.current, open.epoch) = (path, epoch);
                open.record.moves += 1;
                if back {
                    self.wrong.push(format!("t{terminal}: the epoch went back to {epoch}"));
                }
                self.resend(terminal, session, path);
            }
            Output::Duplicate { session, path } => {
                let Some(open) = self.open_session(terminal, session) else { return };
                open.also = path;
                if let Some(path) = path {
                    self.resend(terminal, session, path);
                }
            }
            output => self.note(terminal, output),
        }
    }

    /// What changes only what this terminal knows of a session.
    fn note(&mut self, terminal: usize, output: Output) {
        match output {
            Output::Remove { session, path } => {
                let Some(open) = self.open_session(terminal, session) else { return };
                open.installed.remove(&path);
                open.record.removed(path);
            }
            Output::Listen { session, label } => {
                let Some(open) = self.open_session(terminal, session) else { return };
                open.listen = Some(label);
            }
            Output::Measure(session) => self.measure(terminal, session),
            Output::Watch(session) => {
                self.tell_mtu(terminal, session);
                let Some(open) = self.open_session(terminal, session) else { return };
                open.watched = true;
            }
            _ => {}
        }
    }

    /// What became of the bulk data that a terminal sent; its peer is taken to acknowledge it at once.
    fn measure(&mut self, terminal: usize, session: SessionId) {
        let (at, bytes) = (self.instant(), u64::from(MTU));
        let Some(open) = self.open_session(terminal, session) else { return };
        let (peer, asked) = (open.peer, open.record.count_sent());
        let there = self.terminals[peer].sessions.get(&session);
        let acked = there.map_or(0, |open| open.record.count_arrived()) * bytes;
        let data = DataCounts { asked, acked, lost: 0 };
        self.terminals[terminal].paths.handle(Input::Data { session, data }, at);
    }

    fn tell_mtu(&mut self, terminal: usize, session: SessionId) {
        let at = self.instant();
        self.terminals[terminal].paths.handle(Input::Mtu { session, mtu: MTU }, at);
    }

    /// No path came back: the session ends here, and as far as relays can tell the peer, there.
    fn fail(&mut self, terminal: usize, session: SessionId, code: RefusalCode) {
        self.close(terminal, session, code);
        let standing = self.terminals[terminal].attachments.iter().filter(|one| one.standing);
        let attached: Vec<AttachId> = standing.map(|one| one.id).collect();
        for attach in attached {
            self.say(terminal, attach, ToRelay::End(End { session, code }));
        }
    }

    /// The caller ends a call.
    pub fn hang_up(&mut self, call: usize) {
        let Made { session, ends, .. } = self.made[call];
        self.fail(ends[0], session, RefusalCode::EndedByCaller);
    }

    /// A terminal forgets one of its attachments, as when its relay cuts it.
    pub fn detach(&mut self, terminal: usize, which: usize) {
        if let Some(id) = self.terminals[terminal].attachments.get(which).map(|one| one.id) {
            self.lost(terminal, id);
        }
    }

    fn close(&mut self, terminal: usize, session: SessionId, code: RefusalCode) {
        let Some(open) = self.open_session(terminal, session) else { return };
        open.over = Some(code);
        open.busy = false;
        self.give(terminal, Input::Closed(session));
    }

    fn attachment(&mut self, terminal: usize, id: AttachId) -> Option<&mut Attachment> {
        self.terminals[terminal].attachments.iter_mut().find(|one| one.id == id)
    }

    fn up(&mut self, terminal: usize, attach: AttachId, what: Up) {
        let Some(to) = self.attachment(terminal, attach).map(|one| one.address) else { return };
        self.send(terminal, to, Payload::Up { terminal, attach, what }, None);
    }

    fn say(&mut self, terminal: usize, attach: AttachId, message: ToRelay) {
        let now = self.now;
        let Some(attachment) = self.attachment(terminal, attach) else { return };
        let number = attachment.stream.push(message.clone(), now);
        self.up(terminal, attach, Up::Say(number, message));
    }

    fn doubt(&mut self, terminal: usize, attach: AttachId) {
        let until = self.now + DOUBT;
        let Some(attachment) = self.attachment(terminal, attach) else { return };
        attachment.doubted.get_or_insert(until);
        self.up(terminal, attach, Up::KeepAlive);
    }

    fn heard_down(&mut self, terminal: usize, attach: AttachId, what: Down) {
        let now = self.now;
        let Some(attachment) = self.attachment(terminal, attach) else { return };
        attachment.heard = now;
        attachment.doubted = None;
        match what {
            Down::Welcome(seen_as) => {
                attachment.standing = true;
                attachment.seen_as = Some(seen_as);
                let relay = attachment.relay;
                self.terminals[terminal].failures.remove(&relay);
                self.attachments_changed(terminal);
            }
            Down::Alive => {}
            Down::Heard(number) => attachment.stream.heard(number),
            Down::Challenge => self.up(terminal, attach, Up::Echo),
            Down::Reset => self.lost(terminal, attach),
            Down::Say(number, message) => {
                let messages = attachment.stream.take(number, *message);
                let expected = attachment.stream.expected;
                self.up(terminal, attach, Up::Heard(expected));
                for message in messages {
                    self.told(terminal, attach, message);
                }
            }
        }
    }

    fn told(&mut self, terminal: usize, attach: AttachId, message: ToTerminal) {
        match message {
            ToTerminal::Resuming(resuming) => {
                self.give(terminal, Input::Resuming { attach, resuming });
            }
            ToTerminal::Resumed(resumed) => self.give(terminal, Input::Resumed { attach, resumed }),
            ToTerminal::Relays(relays) => self.heard_of_relays(terminal, attach, &relays),
            ToTerminal::PathEnded(end) => self.give(terminal, Input::PathEnded(end)),
            ToTerminal::Ended(end) => self.close(terminal, end.session, end.code),
            _ => {}
        }
    }

    /// A terminal lets an attachment go.
    pub(super) fn bye(&mut self, terminal: usize, attach: AttachId) {
        self.up(terminal, attach, Up::Bye);
        self.terminals[terminal].attachments.retain(|one| one.id != attach);
        self.attachments_changed(terminal);
        self.agree_on_draining(terminal);
    }

    fn lost(&mut self, terminal: usize, attach: AttachId) {
        let next_try = self.now + TRY_AGAIN;
        let terminal_ = &mut self.terminals[terminal];
        let Some(at) = terminal_.attachments.iter().position(|one| one.id == attach) else {
            return;
        };
        let gone = terminal_.attachments.remove(at);
        *terminal_.failures.entry(gone.relay).or_default() += 1;
        terminal_.next_try = next_try;
        if gone.standing {
            self.attachments_changed(terminal);
        }
        self.agree_on_draining(terminal);
    }

    pub(super) fn attachments_changed(&mut self, terminal: usize) {
        let here = &self.terminals[terminal];
        let standing = here.attachments.iter().filter(|one| one.standing);
        let mut standing: Vec<&Attachment> = standing.collect();
        // The primary is one that stays.
        let drains = |one: &Attachment| here.draining.contains(&relay_name(one.relay));
        standing.sort_by_key(|one| (one.leaves_at.is_some(), drains(one)));
        let standing = standing.into_iter().map(|one| Standing {
            attach: one.id,
            relay: relay_name(one.relay),
            address: one.address,
            leaving: one.leaves_at.is_some(),
        });
        let standing = standing.collect();
        self.give(terminal, Input::Attachments(standing));
        self.look_around(terminal);
    }

    /// Looks where this machine may be reached.
    fn look_around(&mut self, terminal: usize) {
        let here = &self.terminals[terminal];
        let host = &self.net.hosts[here.host];
        let standing = here.attachments.iter().filter(|one| one.standing);
        let seen_as: Vec<SocketAddr> = standing.filter_map(|one| one.seen_as).collect();
        let found = candidates(host.port, &host.interfaces(), &seen_as, None);
        self.give(terminal, Input::Candidates(found));
    }

    pub(super) fn tick(&mut self, terminal: usize) {
        self.at(TICK, Event::Tick(terminal));
        if terminal == 0 {
            self.tick_relays(TICK);
        }
        self.terminals[terminal].ticks += 1;
        if self.terminals[terminal].ticks.is_multiple_of(LOOK_AROUND) {
            self.look_around(terminal);
        }
        self.look_after_attachments(terminal);
        let sessions: Vec<SessionId> = self.terminals[terminal].sessions.keys().copied().collect();
        for session in sessions {
            let now = self.now;
            let Some(open) = self.open_session(terminal, session) else { continue };
            for (number, word) in open.words.overdue(TICK, now) {
                self.send_data(terminal, session, Body::Word(number, word));
            }
        }
    }

    fn look_after_attachments(&mut self, terminal: usize) {
        let now = self.now;
        let (mut again, mut lost) = (Vec::new(), Vec::new());
        for one in &mut self.terminals[terminal].attachments {
            let dead = match one.standing {
                false => one.since + TRY <= now,
                true => one.heard + SILENT <= now || one.doubted.is_some_and(|until| until <= now),
            };
            if dead {
                lost.push(one.id);
                continue;
            }
            if !one.standing {
                again.push((one.id, Up::Hello));
            } else if one.heard + KEEP_ALIVE <= now || one.doubted.is_some() {
                again.push((one.id, Up::KeepAlive));
            }
            let overdue = one.stream.overdue(TICK, now).into_iter();
            again.extend(overdue.map(|(number, message)| (one.id, Up::Say(number, message))));
        }
        for (attach, what) in again {
            self.up(terminal, attach, what);
        }
        for attach in lost {
            self.lost(terminal, attach);
        }
        self.leave_draining(terminal);
        let here = &self.terminals[terminal];
        let leaves = here.leave_at.is_some_and(|at| at <= now);
        let counts = |one: &&Attachment| {
            let drains = here.draining.contains(&relay_name(one.relay));
            one.leaves_at.is_none() && !(leaves && drains)
        };
        let missing = here.attachments.iter().filter(counts).count() < WANTED;
        if missing && here.next_try <= now {
            self.attach(terminal);
        }
    }

    fn attach(&mut self, terminal: usize) {
        let now = self.now;
        let here = &self.terminals[terminal];
        let free = here
            .relays
            .iter()
            .enumerate()
            .filter(|(_, relay)| here.attachments.iter().all(|one| one.relay != **relay));
        let failures = |relay: &usize| here.failures.get(relay).copied().unwrap_or_default();
        // Beside an attachment that stands, a relay that drains is of no use.
        let alone = here.attachments.is_empty();
        let free = free.filter(|(_, relay)| alone || !here.draining.contains(&relay_name(**relay)));
        let best = free.min_by_key(|(n, relay)| (failures(relay), *n));
        let Some(relay) = best.map(|(_, relay)| *relay) else { return };
        let host = &self.net.hosts[here.host];
        let (v4, v6) = (host.v4.is_some(), host.v6.is_some());
        let address = self.mesh.address(relay, !v6 || (v4 && failures(&relay) % 2 == 1));
        let here = &mut self.terminals[terminal];
        here.last_attach += 1;
        let id = AttachId(here.last_attach);
        here.attachments.push(Attachment {
            id,
            relay,
            address,
            since: now,
            standing: false,
            seen_as: None,
            heard: now,
            doubted: None,
            leaves_at: None,
            draining: None,
            stream: Stream::default(),
        });
        self.up(terminal, id, Up::Hello);
    }
}
