//! Two terminals and the relays between them, small enough to explore every interleaving (D3, D4).
//!
//! The terminals are the real [`Calls`]. The relays are one hop state a session: pending, established, gone; what
//! comes for a session that is gone is dropped. Messages of one session and direction keep their order, as on one
//! route; sessions overtake each other at will, as on different routes. Within budgets a message is repeated, or lost
//! (then the relays notice in the end and say so to both), timers fire early, handshakes fail, local users are done,
//! and sessions are ended.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::{Label, Refusal, RefusalCode, RelayId, ServiceName, SessionId, TerminalId};
use tasuki_terminal::core::calls::{Calls, Input, Output, RequestId, SessionState};

/// What is tried.
#[derive(Debug, Clone, Default)]
pub struct Scenario {
    /// The tie-breaks of the calls that each side makes, at any moment.
    pub calls: [Vec<Option<u64>>; 2],
    /// The tie-break of fresh calls.
    pub redial_tie: Option<u64>,
    /// The side whose access rules refuse everything.
    pub closed: [bool; 2],
    /// How often each kind of trouble may strike.
    pub budget: Budget,
}

/// How often each kind of trouble may strike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Messages delivered twice.
    pub repeats: u8,
    /// Messages lost with their route.
    pub losses: u8,
    /// Timers that fire while messages are under way, those of the relays included.
    pub timers: u8,
    /// Handshakes that fail.
    pub failures: u8,
    /// Users that are done, before or after they were answered.
    pub dones: u8,
    /// Sessions ended by a command.
    pub ends: u8,
    /// Attachments lost.
    pub detaches: u8,
}

/// What an exploration saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// Different states.
    pub states: usize,
    /// Transitions between them.
    pub transitions: usize,
    /// Different states in which nothing moves any longer.
    pub ends: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Msg {
    Call { tie_break: Option<u64>, label: Label },
    Accept { label: Label },
    Refuse { code: RefusalCode, winner: Option<SessionId> },
    End { code: RefusalCode },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Hop {
    Pending,
    Established,
    Gone,
}

/// What the relays know of a session, and its messages under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Relayed {
    caller: usize,
    hop: Hop,
    /// A route died; both sides hear of it.
    broken: bool,
    to_relay: [VecDeque<Msg>; 2],
    to_terminal: [VecDeque<Msg>; 2],
    /// The call reached its target.
    arrived: bool,
    /// Answered or offered somewhere.
    proven: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Open {
    label_in: Label,
    proven: bool,
    closed: bool,
    /// What the peer says of its use, under way.
    use_in: VecDeque<bool>,
    /// The last of it that arrived; at first that the caller uses it.
    told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asked {
    Waiting,
    Given(SessionId),
    Over,
}

#[derive(Debug, Clone)]
struct Side {
    calls: Calls,
    now: Instant,
    /// Calls of the scenario that were made.
    made: usize,
    next: u64,
    labels: BTreeSet<Label>,
    open: BTreeMap<SessionId, Open>,
    asked: BTreeMap<RequestId, Asked>,
}

#[derive(Debug, Clone)]
struct World {
    sides: [Side; 2],
    relays: BTreeMap<SessionId, Relayed>,
    /// Calls of different sides of which each began before the other arrived.
    crossing: BTreeSet<(SessionId, SessionId)>,
    budget: Budget,
    /// Something happened that can make a call fail.
    troubled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Call(usize),
    ToRelay(SessionId, usize),
    ToTerminal(SessionId, usize),
    Repeat(SessionId, usize),
    Lose(SessionId, usize),
    Break(SessionId),
    RelayTimer(SessionId),
    Prove(SessionId, usize),
    FailProof(SessionId, usize),
    Dead(SessionId, usize),
    Use(SessionId, usize),
    Done(usize, RequestId),
    End(SessionId, usize),
    Detach(usize),
    Timer(usize),
}

fn name(side: usize) -> TerminalId {
    TerminalId::new(["a", "b"][side]).expect("a name")
}

fn service() -> ServiceName {
    ServiceName::new("ssh").expect("a name")
}

/// Explores every interleaving of `scenario`.
///
/// # Errors
/// What is wrong, and the trace that leads there.
pub fn explore(scenario: &Scenario) -> Result<Seen, String> {
    let first = World::new(scenario);
    let mut seen = Seen::default();
    let mut known = HashSet::from([fingerprint(&first)]);
    // Breadth first, so that a trace is as short as can be: each state with its predecessor and step.
    let mut trail: Vec<(usize, Option<Step>)> = vec![(0, None)];
    let mut front = VecDeque::from([(0, first)]);
    while let Some((at, world)) = front.pop_front() {
        seen.states += 1;
        let steps = world.steps(scenario);
        if !steps.iter().any(|step| step.is_progress()) {
            seen.ends += 1;
            world.check_end().map_err(|wrong| trace(&trail, at, None, &wrong))?;
        }
        for step in steps {
            seen.transitions += 1;
            let mut next = world.clone();
            next.apply(step, scenario)
                .and_then(|()| next.check())
                .map_err(|wrong| trace(&trail, at, Some(step), &wrong))?;
            if known.insert(fingerprint(&next)) {
                trail.push((at, Some(step)));
                front.push_back((trail.len() - 1, next));
            }
        }
    }
    Ok(seen)
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    world.hash(&mut hasher);
    hasher.finish()
}

fn trace(trail: &[(usize, Option<Step>)], at: usize, last: Option<Step>, wrong: &str) -> String {
    let mut steps: Vec<Step> = last.into_iter().collect();
    let mut at = at;
    while let (before, Some(step)) = trail[at] {
        steps.push(step);
        at = before;
    }
    steps.reverse();
    let lines = steps.iter().map(|step| format!("  {step:?}\n"));
    format!("{wrong}, after\n{}", lines.collect::<String>())
}

impl Step {
    /// Whether it happens by itself in the end, without trouble or a wish.
    fn is_progress(self) -> bool {
        !matches!(
            self,
            Step::Repeat(..)
                | Step::Lose(..)
                | Step::RelayTimer(_)
                | Step::FailProof(..)
                | Step::Done(..)
                | Step::End(..)
                | Step::Detach(_)
        )
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for side in &self.sides {
            side.calls.hash(state);
            (side.now, side.made, side.next).hash(state);
            (&side.labels, &side.open, &side.asked).hash(state);
        }
        (&self.relays, &self.crossing, self.budget, self.troubled).hash(state);
    }
}

impl World {
    fn new(scenario: &Scenario) -> Self {
        let now = Instant::now();
        let side = |side| Side {
            calls: Calls::new(name(side)),
            now,
            made: 0,
            next: 0,
            labels: BTreeSet::new(),
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
        };
        Self {
            sides: [side(0), side(1)],
            relays: BTreeMap::new(),
            crossing: BTreeSet::new(),
            budget: scenario.budget,
            troubled: scenario.closed != [false; 2],
        }
    }

    /// Everything that can happen.
    fn steps(&self, scenario: &Scenario) -> Vec<Step> {
        let mut steps = Vec::new();
        for (side, s) in self.sides.iter().enumerate() {
            if s.made < scenario.calls[side].len() {
                steps.push(Step::Call(side));
            }
            if self.budget.dones > 0 {
                let held = s.asked.iter().filter(|(_, asked)| **asked != Asked::Over);
                steps.extend(held.map(|(request, _)| Step::Done(side, *request)));
            }
            if self.budget.ends > 0 {
                steps.extend(s.calls.sessions().map(|info| Step::End(info.session, side)));
            }
            if self.budget.detaches > 0 {
                steps.push(Step::Detach(side));
            }
        }
        for (&id, relayed) in &self.relays {
            self.message_steps(id, relayed, &mut steps);
            for side in 0..2 {
                self.session_steps(id, side, &mut steps);
            }
        }
        // A timer is long: by itself it fires when nothing else moves.
        let quiet = !steps.iter().any(|step| step.is_progress());
        if quiet || self.budget.timers > 0 {
            for (side, s) in self.sides.iter().enumerate() {
                if s.calls.poll_timeout().is_some() {
                    steps.push(Step::Timer(side));
                }
            }
        }
        steps
    }

    fn message_steps(&self, id: SessionId, relayed: &Relayed, steps: &mut Vec<Step>) {
        for side in 0..2 {
            if !relayed.to_relay[side].is_empty() {
                steps.push(Step::ToRelay(id, side));
            }
            if !relayed.to_terminal[side].is_empty() {
                steps.push(Step::ToTerminal(id, side));
                if self.budget.repeats > 0 {
                    steps.push(Step::Repeat(id, side));
                }
                if self.budget.losses > 0 {
                    steps.push(Step::Lose(id, side));
                }
            }
        }
        if relayed.broken && relayed.hop != Hop::Gone {
            steps.push(Step::Break(id));
        }
        if relayed.hop == Hop::Pending && self.budget.timers > 0 {
            steps.push(Step::RelayTimer(id));
        }
    }

    fn session_steps(&self, id: SessionId, side: usize, steps: &mut Vec<Step>) {
        let Some(mine) = self.sides[side].open.get(&id).filter(|open| !open.closed) else { return };
        let peer = self.sides[1 - side].open.get(&id);
        if !mine.use_in.is_empty() && mine.proven {
            steps.push(Step::Use(id, side));
        }
        if peer.is_some_and(|peer| peer.closed) {
            steps.push(Step::Dead(id, side));
        }
        if !mine.proven {
            // The client is through first (RFC 9001, section 4.1).
            let client = self.relays[&id].caller == side;
            let ready = peer.is_some_and(|peer| if client { !peer.closed } else { peer.proven });
            if ready {
                steps.push(Step::Prove(id, side));
            }
            if self.budget.failures > 0 {
                steps.push(Step::FailProof(id, side));
            }
        }
    }

    fn apply(&mut self, step: Step, scenario: &Scenario) -> Result<(), String> {
        match step {
            Step::Call(side) => {
                let tie_break = scenario.calls[side][self.sides[side].made];
                self.sides[side].made += 1;
                let request = RequestId(self.sides[side].next + 100);
                self.sides[side].asked.insert(request, Asked::Waiting);
                self.call(side, request, tie_break, scenario)
            }
            Step::ToRelay(id, side) => {
                let relayed = self.relays.get_mut(&id).expect("it has a message");
                let msg = relayed.to_relay[side].pop_front().expect("it has a message");
                relayed.pass_on(side, msg);
                Ok(())
            }
            Step::ToTerminal(id, side) => {
                let relayed = self.relays.get_mut(&id).expect("it has a message");
                let msg = relayed.to_terminal[side].pop_front().expect("it has a message");
                self.deliver(id, side, msg, scenario)
            }
            Step::Repeat(id, side) => {
                self.budget.repeats -= 1;
                let msg = self.relays[&id].to_terminal[side][0].clone();
                self.deliver(id, side, msg, scenario)
            }
            Step::Lose(id, side) => {
                self.budget.losses -= 1;
                self.troubled = true;
                let relayed = self.relays.get_mut(&id).expect("it has a message");
                relayed.to_terminal[side].pop_front();
                relayed.broken = true;
                Ok(())
            }
            Step::Break(id) => {
                let relayed = self.relays.get_mut(&id).expect("it is broken");
                relayed.end_both(RefusalCode::RouteLost);
                Ok(())
            }
            Step::RelayTimer(id) => {
                self.budget.timers -= 1;
                self.troubled = true;
                let relayed = self.relays.get_mut(&id).expect("it is pending");
                relayed.end_both(RefusalCode::NoAnswer);
                Ok(())
            }
            Step::Prove(id, side) => {
                if let Some(open) = self.sides[side].open.get_mut(&id) {
                    open.proven = true;
                }
                self.feed(side, Input::Proven(id), scenario)
            }
            Step::FailProof(id, side) => {
                self.budget.failures -= 1;
                self.troubled = true;
                let code = RefusalCode::PeerNotProven;
                self.feed(side, Input::Failed { session: id, code }, scenario)
            }
            Step::Dead(id, side) => {
                let code = RefusalCode::PeerLost;
                self.feed(side, Input::Failed { session: id, code }, scenario)
            }
            Step::Use(id, side) => {
                let open = self.sides[side].open.get_mut(&id).expect("it is open");
                let using = open.use_in.pop_front().expect("it has a word");
                open.told = using;
                self.feed(side, Input::PeerUse { session: id, using }, scenario)
            }
            Step::Done(side, request) => {
                self.budget.dones -= 1;
                self.troubled = true;
                self.sides[side].asked.insert(request, Asked::Over);
                self.feed(side, Input::Done(request), scenario)
            }
            Step::End(session, side) => {
                self.budget.ends -= 1;
                self.troubled = true;
                let code = RefusalCode::EndedByOperator;
                self.feed(side, Input::End { session, code }, scenario)
            }
            Step::Detach(side) => {
                self.budget.detaches -= 1;
                self.troubled = true;
                for relayed in self.relays.values_mut() {
                    relayed.detach(side);
                }
                self.feed(side, Input::Detached(RefusalCode::RouteLost), scenario)
            }
            Step::Timer(side) => {
                // When nothing else moves it is free. Without trouble nobody should have to wait for it.
                if !self.troubled && self.budget.timers == 0 {
                    return Err("only a timer gets any further".into());
                }
                self.budget.timers = self.budget.timers.saturating_sub(1);
                self.troubled = true;
                let s = &mut self.sides[side];
                s.now = s.calls.poll_timeout().expect("a timer runs");
                self.feed(side, Input::Timeout, scenario)
            }
        }
    }

    fn label(&mut self, side: usize) -> Label {
        let s = &mut self.sides[side];
        s.next += 1;
        let label = Label::from_random(s.next);
        s.labels.insert(label);
        label
    }

    fn call(
        &mut self,
        side: usize,
        request: RequestId,
        tie_break: Option<u64>,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let label = self.label(side);
        let session = SessionId { edge: RelayId(side as u64 + 1), nonce: self.sides[side].next };
        let (target, service) = (name(1 - side), service());
        for (&other, relayed) in &self.relays {
            if relayed.caller != side && !relayed.arrived {
                self.crossing.insert((other, session));
            }
        }
        let input = Input::Call { request, session, target, service, tie_break, label };
        self.feed(side, input, scenario)
    }

    fn deliver(
        &mut self,
        session: SessionId,
        side: usize,
        msg: Msg,
        scenario: &Scenario,
    ) -> Result<(), String> {
        let input = match msg {
            Msg::Call { tie_break, label } => {
                self.relays.get_mut(&session).expect("it was called").arrived = true;
                let call = control::Incoming {
                    session,
                    caller: name(1 - side),
                    service: service(),
                    tie_break,
                    label,
                    caller_address: None,
                    route: Vec::new(),
                };
                let refusal = Refusal::from(RefusalCode::CallerNotAllowed);
                let verdict = if scenario.closed[side] { Err(refusal) } else { Ok(()) };
                Input::Incoming { call, verdict, label: self.label(side) }
            }
            Msg::Accept { label } => {
                let (callee_address, route) = (None, Vec::new());
                Input::Accepted(control::Accepted { session, label, callee_address, route })
            }
            Msg::Refuse { code, winner } => {
                let refusal = code.into();
                Input::CallRefused(control::CallRefused { session, refusal, winner })
            }
            Msg::End { code } => Input::Ended(control::End { session, code }),
        };
        self.feed(side, input, scenario)
    }

    /// Gives a terminal an input and does, as its driver, what it asks for.
    fn feed(&mut self, side: usize, input: Input, scenario: &Scenario) -> Result<(), String> {
        let now = self.sides[side].now;
        self.sides[side].calls.handle(input, now);
        while let Some(output) = self.sides[side].calls.poll_output() {
            self.perform(side, output, scenario)?;
        }
        Ok(())
    }

    fn perform(&mut self, side: usize, output: Output, scenario: &Scenario) -> Result<(), String> {
        let s = &mut self.sides[side];
        match output {
            Output::Send(message) => self.send(side, message)?,
            Output::Open(opened) => {
                let open = Open {
                    label_in: opened.label_in,
                    proven: false,
                    closed: false,
                    use_in: VecDeque::new(),
                    told: !opened.outgoing,
                };
                if s.open.insert(opened.session, open).is_some() {
                    return Err(format!("{:?} was opened twice", opened.session));
                }
            }
            Output::Close { session, label_in, .. } => {
                let open = s.open.get_mut(&session).filter(|open| !open.closed);
                let open = open.ok_or("a session was closed that is not open")?;
                if open.label_in != label_in || !s.labels.remove(&label_in) {
                    return Err("a close carries another label".into());
                }
                open.closed = true;
                for asked in s.asked.values_mut().filter(|asked| **asked == Asked::Given(session)) {
                    *asked = Asked::Over;
                }
            }
            Output::Free(label) => {
                if !s.labels.remove(&label) {
                    return Err("a label was freed twice".into());
                }
            }
            Output::Answer { request, result } => {
                if s.asked.get(&request) != Some(&Asked::Waiting) {
                    return Err(format!("{request:?} was answered twice, or after it was done"));
                }
                if result.is_err() && !self.troubled {
                    return Err(format!("{request:?} failed without any trouble: {result:?}"));
                }
                let asked = result.as_ref().map_or(Asked::Over, |session| Asked::Given(*session));
                s.asked.insert(request, asked);
                if let Ok(session) = result {
                    self.mark_proven(side, session)?;
                }
            }
            Output::Redial { request, .. } => {
                // With several calls of one side a merge can end in a call that was itself merged.
                if !self.troubled && scenario.calls.iter().all(|calls| calls.len() == 1) {
                    return Err(format!("{request:?} needs a fresh call without any trouble"));
                }
                self.call(side, request, scenario.redial_tie, scenario)?;
            }
            Output::Offer(session) => self.mark_proven(side, session)?,
            Output::Use { session, using } => {
                if let Some(peer) = self.sides[1 - side].open.get_mut(&session)
                    && !peer.closed
                {
                    peer.use_in.push_back(using);
                }
            }
        }
        Ok(())
    }

    fn mark_proven(&mut self, side: usize, session: SessionId) -> Result<(), String> {
        let open = self.sides[side].open.get(&session);
        if open.is_none_or(|open| open.closed || !open.proven) {
            return Err(format!("{session:?} was handed out and is not proven"));
        }
        if let Some(relayed) = self.relays.get_mut(&session) {
            relayed.proven = true;
        }
        Ok(())
    }

    fn send(&mut self, side: usize, message: ToRelay) -> Result<(), String> {
        let (session, msg) = match message {
            ToRelay::Call(call) => {
                (call.session, Msg::Call { tie_break: call.tie_break, label: call.label })
            }
            ToRelay::Accept(accept) => (accept.session, Msg::Accept { label: accept.label }),
            ToRelay::Refuse(refused) => {
                let code = refused.refusal.code;
                (refused.session, Msg::Refuse { code, winner: refused.winner })
            }
            ToRelay::End(end) => {
                let told = self.sides[side].open.get(&end.session).is_some_and(|open| open.told);
                let by_users =
                    [RefusalCode::EndedByCaller, RefusalCode::EndedByCallee].contains(&end.code);
                if told && by_users {
                    return Err(format!("{:?} was ended although the peer uses it", end.session));
                }
                (end.session, Msg::End { code: end.code })
            }
            other => return Err(format!("an unexpected message: {other:?}")),
        };
        let fresh = Relayed {
            caller: side,
            hop: Hop::Gone,
            broken: false,
            to_relay: Default::default(),
            to_terminal: Default::default(),
            arrived: false,
            proven: false,
        };
        let relayed = self.relays.entry(session).or_insert(fresh);
        if matches!(msg, Msg::Call { .. }) {
            relayed.hop = Hop::Pending;
        }
        relayed.to_relay[side].push_back(msg);
        Ok(())
    }

    /// What holds in every state.
    fn check(&self) -> Result<(), String> {
        for (side, s) in self.sides.iter().enumerate() {
            let mut labels = 0;
            for info in s.calls.sessions() {
                labels += 1;
                let open = s.open.get(&info.session).is_some_and(|open| !open.closed);
                if open != (info.state != SessionState::Calling) {
                    return Err(format!("{:?}: path and state disagree", info.session));
                }
            }
            if labels != s.labels.len() {
                return Err(format!("{} labels for {labels} sessions", s.labels.len()));
            }
            let open = s.open.values().filter(|open| !open.closed).count();
            let opened = s.calls.sessions().filter(|i| i.state != SessionState::Calling).count();
            if open != opened {
                return Err(format!("side {side} holds {open} paths for {opened} sessions"));
            }
            let asked = s.asked.values().filter(|asked| **asked != Asked::Over).count();
            if asked != s.calls.requests() {
                return Err(format!("{asked} users for {} requests", s.calls.requests()));
            }
        }
        for (one, other) in &self.crossing {
            let proven = |id| self.relays.get(id).is_some_and(|relayed| relayed.proven);
            if proven(one) && proven(other) {
                return Err(format!("two sessions of crossing calls: {one:?} and {other:?}"));
            }
        }
        Ok(())
    }

    /// What holds when nothing moves any longer.
    fn check_end(&self) -> Result<(), String> {
        for s in &self.sides {
            if s.asked.values().any(|asked| *asked == Asked::Waiting) {
                return Err("a request was never answered".into());
            }
        }
        let sessions = |side: usize| {
            let of = self.sides[side].calls.sessions();
            of.map(|info| (info.session, info.state)).collect::<Vec<_>>()
        };
        let both = sessions(0);
        if both != sessions(1) {
            return Err(format!("the sides disagree: {both:?} and {:?}", sessions(1)));
        }
        for &(id, state) in &both {
            if state != SessionState::Live || self.relays[&id].hop != Hop::Established {
                return Err(format!("{id:?} is half open: {state:?}"));
            }
            let given = Asked::Given(id);
            if !self.sides.iter().any(|s| s.asked.values().any(|asked| *asked == given)) {
                return Err(format!("{id:?} goes on and nobody uses it"));
            }
        }
        let held = self.relays.iter().filter(|(_, relayed)| relayed.hop != Hop::Gone);
        if held.count() != both.len() {
            return Err("the relays hold a session that nobody has".into());
        }
        let calls: usize = self.sides.iter().map(|s| s.made).sum();
        if !self.troubled && calls == 2 && !self.crossing.is_empty() && both.len() != 1 {
            return Err(format!("two calls that crossed became {} sessions", both.len()));
        }
        Ok(())
    }
}

impl Relayed {
    fn pass_on(&mut self, from: usize, msg: Msg) {
        let to = 1 - from;
        match (&msg, self.hop) {
            (_, Hop::Gone) => return,
            (Msg::Call { .. }, Hop::Pending) => {}
            (Msg::Accept { .. }, Hop::Pending) => self.hop = Hop::Established,
            (Msg::Refuse { .. }, Hop::Pending) | (Msg::End { .. }, _) => self.hop = Hop::Gone,
            _ => return,
        }
        self.to_terminal[to].push_back(msg);
    }

    /// The relays give a session up, and say so to both.
    fn end_both(&mut self, code: RefusalCode) {
        self.hop = Hop::Gone;
        for queue in &mut self.to_terminal {
            queue.push_back(Msg::End { code });
        }
    }

    /// One side is gone: what was under way to and from it is lost, the other is told.
    fn detach(&mut self, side: usize) {
        self.to_relay[side].clear();
        self.to_terminal[side].clear();
        if self.hop != Hop::Gone {
            self.hop = Hop::Gone;
            self.to_terminal[1 - side].push_back(Msg::End { code: RefusalCode::PeerLost });
        }
    }
}
