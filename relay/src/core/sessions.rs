//! Calls and sessions: labels installed hop by hop, ends, refusals (architecture 7; C7 to C11, C13).
//!
//! Each relay on a route holds one `Hop` a session, between two neighbours: `prev` towards the caller and
//! `next` towards the callee. A call travels along its route and leaves at each hop the label that frames
//! *towards the caller* shall carry; the acceptance travels back and leaves the labels *towards the callee*:
//!
//! ```text
//! caller            r1                r2                callee
//!   | Call(a) ------>| Call(b) ------->| Incoming(c) ----->|     c -> b -> a: frames towards the caller
//!   |<-- Accepted(z) |<----- Accept(y) |<------- Accept(x) |     z -> y -> x: frames towards the callee
//! ```
//!
//! | state | event | what happens |
//! |---|---|---|
//! | none | call that can go on | `Calling`, passed on to `next` |
//! | none | call that cannot | refused towards `prev` with its code |
//! | none | accept, refuse, end | dropped: it crossed an end |
//! | `Calling` | accept from `next` | both labels installed, then passed on: `Active` |
//! | `Calling` | refuse from `next` | passed on, gone |
//! | `Calling` | end from `prev` (withdrawn) | passed on, gone |
//! | `Calling` | time-out | `no-answer` to `prev`, `call-withdrawn` to `next`, gone |
//! | `Active` | end from either | passed to the other, labels removed, gone |
//! | any | neighbour lost | the other side is told, labels removed, gone |
//!
//! What comes from a neighbour that is not the hop's `prev` or `next` is dropped: nobody ends what is not his.
//! Labels are 56 random bits, so one returns within two minutes only with negligible probability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustc_hash::FxHashMap;
use tasuki_proto::control::{self, CallRefused, End, ToTerminal};
use tasuki_proto::mesh::{RoutedAccept, RoutedCall, ToPeer};
use tasuki_proto::{
    Label, Refusal, RefusalCode, RelayId, RelayName, ServiceName, SessionId, TerminalId, limits,
};

use super::admin::{SessionState, SessionView};
use super::{ConnId, LinkId};

/// Who is next to this relay on a session's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Neighbour {
    /// Another relay.
    Link(LinkId),
    /// An attached terminal.
    Terminal(ConnId),
}

/// Packets and bytes of one session in one direction; the switch counts, the core reads.
#[derive(Debug, Default)]
pub struct Counter {
    /// Frames forwarded.
    pub packets: AtomicU64,
    /// Their bytes, heads included.
    pub bytes: AtomicU64,
}

/// Both directions of a session through this relay.
#[derive(Debug, Default)]
pub struct Counters {
    /// From caller to callee.
    pub to_callee: Counter,
    /// From callee to caller.
    pub to_caller: Counter,
}

/// What the switch does with frames that carry a label.
#[derive(Debug, Clone)]
pub struct Forwarding {
    /// The label of arriving frames.
    pub label: Label,
    /// The only neighbour they may come from.
    pub from: Neighbour,
    /// Where they go.
    pub to: Neighbour,
    /// The label they leave with.
    pub label_out: Label,
    /// Where they are counted.
    pub counters: Arc<Counters>,
    /// Whether they go from caller to callee.
    pub to_callee: bool,
}

/// Where a call goes from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The whole route, from the caller's relay to the target's.
    pub route: Vec<RelayId>,
    /// Its relays' names, in the same order.
    pub names: Vec<RelayName>,
    /// The neighbour that comes next: a link, or the target's own connection.
    pub next: Neighbour,
}

/// What happens to calls and sessions.
#[derive(Debug)]
pub enum Input {
    /// A terminal attached here calls. `place` was looked up in the table (C7).
    Call {
        /// Its connection.
        from: ConnId,
        /// Its proven id.
        caller: TerminalId,
        /// Its address as seen here.
        address: SocketAddr,
        /// What it said.
        call: control::Call,
        /// Where the target is.
        place: Result<Place, Refusal>,
    },
    /// A call arrives over a link, and was checked against its route.
    Routed {
        /// The link.
        from: LinkId,
        /// What arrived.
        call: RoutedCall,
        /// The next neighbour.
        next: Result<Neighbour, Refusal>,
    },
    /// The next neighbour accepts.
    Accept {
        /// Who says so.
        from: Neighbour,
        /// Which session.
        session: SessionId,
        /// Frames towards the callee carry it on the next hop.
        label: Label,
        /// The callee's address as its relay sees it.
        address: Option<SocketAddr>,
    },
    /// The next neighbour refuses.
    Refuse {
        /// Who says so.
        from: Neighbour,
        /// What it said.
        refused: CallRefused,
    },
    /// A neighbour ends a session or withdraws a call.
    End {
        /// Who says so.
        from: Neighbour,
        /// What it said.
        end: End,
    },
    /// A neighbour is gone, and every session over it.
    Lost(Neighbour, RefusalCode),
    /// A neighbour is reached over another connection; its sessions go on.
    Moved {
        /// The connection that was.
        from: Neighbour,
        /// The one that is.
        to: Neighbour,
    },
    /// An operator ends a session.
    EndByOperator(SessionId),
}

/// What is to be done. In this order: a label is installed before anybody hears of it.
#[derive(Debug)]
pub enum Output {
    /// Say it to a terminal.
    ToTerminal(ConnId, ToTerminal),
    /// Say it to a relay.
    ToPeer(LinkId, ToPeer),
    /// Program the switch.
    Install(Forwarding),
    /// Program the switch.
    Remove(Label),
    /// A terminal attached here is in this many sessions (C4, C8).
    Communicating(ConnId, u32),
    /// A session or call is over. `edge` is set where this relay is the caller's or the callee's.
    Finished(Box<Finished>),
}

/// A session that is over, for the ledger.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What it was.
    pub view: SessionView,
    /// Its id.
    pub session: SessionId,
    /// How it ended.
    pub code: RefusalCode,
    /// Whether one of its terminals is attached here.
    pub edge: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Calling {
        deadline: Instant,
    },
    /// Labels of frames towards the callee: as they arrive, and as they leave.
    Active {
        in_from_caller: Label,
        out_to_callee: Label,
    },
}

/// One session at this relay.
#[derive(Debug)]
struct Hop {
    caller: TerminalId,
    callee: TerminalId,
    service: ServiceName,
    names: Vec<RelayName>,
    prev: Neighbour,
    next: Neighbour,
    /// Frames towards the caller leave with it.
    out_to_caller: Label,
    /// Given to `next`: frames towards the caller arrive with it.
    in_from_callee: Label,
    state: State,
    counters: Arc<Counters>,
    started_ms: u64,
}

/// A relay adds this to the terminals' own time-out, so that the caller's terminal is the one that gives up.
const MARGIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct PerTerminal {
    calling: u32,
    active: u32,
    /// Calls begun in the second that started at `since`.
    recent: u32,
    since: Option<Instant>,
}

/// All calls and sessions over this relay.
#[derive(Debug)]
pub struct Sessions {
    own: RelayId,
    most: usize,
    hops: BTreeMap<SessionId, Hop>,
    deadlines: BTreeSet<(Instant, SessionId)>,
    sessions_by_neighbour: FxHashMap<Neighbour, BTreeSet<SessionId>>,
    terminals: FxHashMap<ConnId, PerTerminal>,
    ended: BTreeMap<SessionId, SessionView>,
    ended_order: VecDeque<SessionId>,
    rng: StdRng,
    outputs: VecDeque<Output>,
}

impl Sessions {
    /// No sessions, and at most `most`. `seed` makes labels: it must not be guessable.
    pub fn new(own: RelayId, most: usize, seed: [u8; 32]) -> Self {
        Self {
            own,
            most,
            hops: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            sessions_by_neighbour: FxHashMap::default(),
            terminals: FxHashMap::default(),
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
        }
    }

    /// Takes what happened. `wall_ms` is for people: ms since 1970.
    pub fn handle(&mut self, input: Input, now: Instant, wall_ms: u64) {
        match input {
            Input::Call { from, caller, address, call, place } => {
                self.handle_call(from, caller, address, call, place, now, wall_ms);
            }
            Input::Routed { from, call, next } => {
                self.handle_routed(from, call, next, now, wall_ms)
            }
            Input::Accept { from, session, label, address } => {
                self.handle_accept(from, session, label, address);
            }
            Input::Refuse { from, refused } => self.handle_refuse(from, refused, wall_ms),
            Input::End { from, end } => self.handle_end(from, end, wall_ms),
            Input::Lost(neighbour, code) => {
                for session in self.sessions_by_neighbour.remove(&neighbour).unwrap_or_default() {
                    self.finish(session, code, Some(neighbour), None, wall_ms);
                }
                if let Neighbour::Terminal(conn) = neighbour {
                    self.terminals.remove(&conn);
                }
            }
            Input::Moved { from, to } => self.handle_moved(from, to),
            Input::EndByOperator(session) => {
                self.finish(session, RefusalCode::EndedByOperator, None, None, wall_ms);
            }
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        while let Some(&(deadline, session)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.finish(session, RefusalCode::NoAnswer, None, None, wall_ms);
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Sessions::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Calls and sessions over this relay.
    pub fn len(&self) -> usize {
        self.hops.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    /// Whether a session runs, or is called, over this relay.
    pub fn contains(&self, session: &SessionId) -> bool {
        self.hops.contains_key(session)
    }

    /// A running or ended session.
    pub fn view(&self, session: &SessionId) -> Option<SessionView> {
        let running = self.hops.get(session).map(|hop| hop.view(session));
        running.or_else(|| self.ended.get(session).cloned())
    }

    /// A page of running and ended sessions, ordered by id.
    pub fn page(
        &self,
        state: Option<SessionState>,
        after: Option<SessionId>,
        limit: usize,
    ) -> (Vec<SessionView>, Option<SessionId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        let mut running = self.hops.range(bounds).map(|(id, hop)| (*id, hop.view(id))).peekable();
        let mut ended = self.ended.range(bounds).map(|(id, view)| (*id, view.clone())).peekable();
        let mut items = Vec::new();
        loop {
            let take_running = match (running.peek(), ended.peek()) {
                (Some(a), Some(b)) => a.0 <= b.0,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => return (items.into_iter().map(|(_, v)| v).collect(), None),
            };
            let next = if take_running { running.next() } else { ended.next() };
            if let Some((id, view)) = next
                && state.is_none_or(|wanted| wanted == view.state)
            {
                if items.len() == limit {
                    let last = items.last().map(|(id, _)| *id);
                    return (items.into_iter().map(|(_, v)| v).collect(), last);
                }
                items.push((id, view));
            }
        }
    }

    fn fresh_label(&mut self) -> Label {
        Label::from_random(self.rng.next_u64())
    }

    #[allow(clippy::too_many_arguments, reason = "one call, taken apart by handle")]
    fn handle_call(
        &mut self,
        from: ConnId,
        caller: TerminalId,
        address: SocketAddr,
        call: control::Call,
        place: Result<Place, Refusal>,
        now: Instant,
        wall_ms: u64,
    ) {
        let session = call.session;
        let checked = self.admit(from, &caller, &call, now).and(place);
        let place = match checked {
            Ok(place) => place,
            Err(refusal) => {
                self.refuse(Neighbour::Terminal(from), session, refusal, None);
                return;
            }
        };
        let routed = RoutedCall {
            session,
            route: place.route,
            names: place.names,
            caller,
            target: call.target,
            service: call.service,
            tie_break: call.tie_break,
            label: call.label,
            caller_address: Some(address),
        };
        self.pass_on(Neighbour::Terminal(from), place.next, routed, now, wall_ms);
    }

    /// The limits and rules for a call of a terminal attached here.
    fn admit(
        &mut self,
        from: ConnId,
        caller: &TerminalId,
        call: &control::Call,
        now: Instant,
    ) -> Result<(), Refusal> {
        let terminal = self.terminals.entry(from).or_default();
        if terminal.since.is_none_or(|since| now >= since + Duration::from_secs(1)) {
            terminal.since = Some(now);
            terminal.recent = 0;
        }
        terminal.recent = terminal.recent.saturating_add(1);
        if terminal.recent > limits::CALLS_PER_SECOND
            || (terminal.calling + terminal.active) as usize >= limits::SESSIONS_PER_TERMINAL
            || self.hops.len() >= self.most
        {
            return Err(RefusalCode::Busy.into());
        }
        if call.session.edge != self.own || self.hops.contains_key(&call.session) {
            return Err(RefusalCode::BadRequest.into());
        }
        if *caller == call.target {
            return Err(RefusalCode::SelfCall.into());
        }
        Ok(())
    }

    fn handle_routed(
        &mut self,
        from: LinkId,
        call: RoutedCall,
        next: Result<Neighbour, Refusal>,
        now: Instant,
        wall_ms: u64,
    ) {
        let session = call.session;
        let full = self.hops.len() >= self.most;
        let checked = if self.hops.contains_key(&session) {
            // The same session again, perhaps over another link: the first one stays.
            Err(RefusalCode::BadRequest.into())
        } else if full {
            Err(RefusalCode::Busy.into())
        } else {
            next
        };
        match checked {
            Ok(next) => self.pass_on(Neighbour::Link(from), next, call, now, wall_ms),
            Err(refusal) => self.refuse(Neighbour::Link(from), session, refusal, None),
        }
    }

    /// Makes the hop and tells the next neighbour.
    fn pass_on(
        &mut self,
        prev: Neighbour,
        next: Neighbour,
        call: RoutedCall,
        now: Instant,
        wall_ms: u64,
    ) {
        let session = call.session;
        let in_from_callee = self.fresh_label();
        let deadline = now + limits::CALL_TIMEOUT + MARGIN;
        self.hops.insert(
            session,
            Hop {
                caller: call.caller.clone(),
                callee: call.target.clone(),
                service: call.service.clone(),
                names: call.names.clone(),
                prev,
                next,
                out_to_caller: call.label,
                in_from_callee,
                state: State::Calling { deadline },
                counters: Arc::default(),
                started_ms: wall_ms,
            },
        );
        self.deadlines.insert((deadline, session));
        for neighbour in [prev, next] {
            self.sessions_by_neighbour.entry(neighbour).or_default().insert(session);
            if let Neighbour::Terminal(conn) = neighbour {
                self.terminals.entry(conn).or_default().calling += 1;
            }
        }
        self.outputs.push_back(match next {
            Neighbour::Link(link) => {
                Output::ToPeer(link, ToPeer::Call(RoutedCall { label: in_from_callee, ..call }))
            }
            Neighbour::Terminal(conn) => Output::ToTerminal(
                conn,
                ToTerminal::Incoming(control::Incoming {
                    session,
                    caller: call.caller,
                    service: call.service,
                    tie_break: call.tie_break,
                    label: in_from_callee,
                    caller_address: call.caller_address,
                    route: call.names,
                }),
            ),
        });
    }

    fn handle_accept(
        &mut self,
        from: Neighbour,
        session: SessionId,
        label: Label,
        address: Option<SocketAddr>,
    ) {
        let in_from_caller = self.fresh_label();
        let Some(hop) = self.hops.get_mut(&session) else { return };
        let State::Calling { deadline } = hop.state else { return };
        if hop.next != from {
            return;
        }
        hop.state = State::Active { in_from_caller, out_to_callee: label };
        self.deadlines.remove(&(deadline, session));
        let (prev, next, route) = (hop.prev, hop.next, hop.names.clone());
        self.outputs.extend(hop.forwardings().into_iter().flatten().map(Output::Install));
        self.outputs.push_back(match prev {
            Neighbour::Link(link) => Output::ToPeer(
                link,
                ToPeer::Accept(RoutedAccept {
                    session,
                    label: in_from_caller,
                    callee_address: address,
                }),
            ),
            Neighbour::Terminal(conn) => Output::ToTerminal(
                conn,
                ToTerminal::Accepted(control::Accepted {
                    session,
                    label: in_from_caller,
                    callee_address: address,
                    route,
                }),
            ),
        });
        for neighbour in [prev, next] {
            if let Neighbour::Terminal(conn) = neighbour {
                let terminal = self.terminals.entry(conn).or_default();
                terminal.calling = terminal.calling.saturating_sub(1);
                terminal.active += 1;
                self.outputs.push_back(Output::Communicating(conn, terminal.active));
            }
        }
    }

    fn handle_refuse(&mut self, from: Neighbour, refused: CallRefused, wall_ms: u64) {
        let Some(hop) = self.hops.get(&refused.session) else { return };
        if hop.next != from || !matches!(hop.state, State::Calling { .. }) {
            return;
        }
        let (session, code) = (refused.session, refused.refusal.code);
        self.finish(session, code, Some(from), Some(refused), wall_ms);
    }

    fn handle_moved(&mut self, from: Neighbour, to: Neighbour) {
        let sessions = self.sessions_by_neighbour.remove(&from).unwrap_or_default();
        for session in &sessions {
            let Some(hop) = self.hops.get_mut(session) else { continue };
            for end in [&mut hop.prev, &mut hop.next] {
                if *end == from {
                    *end = to;
                }
            }
            self.outputs.extend(hop.forwardings().into_iter().flatten().map(Output::Install));
        }
        self.sessions_by_neighbour.entry(to).or_default().extend(sessions);
    }

    fn handle_end(&mut self, from: Neighbour, end: End, wall_ms: u64) {
        let Some(hop) = self.hops.get(&end.session) else { return };
        if hop.prev != from && hop.next != from {
            return;
        }
        self.finish(end.session, end.code, Some(from), None, wall_ms);
    }

    /// Ends a session at this relay: tells the neighbours (but not `told`), removes labels, counts, remembers.
    fn finish(
        &mut self,
        session: SessionId,
        code: RefusalCode,
        told: Option<Neighbour>,
        refused: Option<CallRefused>,
        wall_ms: u64,
    ) {
        let Some(hop) = self.hops.remove(&session) else { return };
        let was_active = match hop.state {
            State::Calling { deadline } => {
                self.deadlines.remove(&(deadline, session));
                false
            }
            State::Active { in_from_caller, .. } => {
                self.outputs.push_back(Output::Remove(in_from_caller));
                self.outputs.push_back(Output::Remove(hop.in_from_callee));
                true
            }
        };
        if told != Some(hop.next) {
            // Whatever the reason, a call that was not answered is withdrawn where it rings.
            let code = if !was_active && code == RefusalCode::NoAnswer {
                RefusalCode::CallWithdrawn
            } else {
                code
            };
            self.tell_end(hop.next, session, code);
        }
        if told != Some(hop.prev) {
            match refused {
                _ if was_active => self.tell_end(hop.prev, session, code),
                Some(refused) => self.refuse(hop.prev, session, refused.refusal, refused.winner),
                None => self.refuse(hop.prev, session, code.into(), None),
            }
        }
        for neighbour in [hop.prev, hop.next] {
            self.forget_neighbour(neighbour, &session, was_active);
        }
        let mut view = hop.view(&session);
        view.state = SessionState::Ended;
        view.ended_at = Some(wall_ms);
        view.reason = Some(code.to_string());
        let edge = [hop.prev, hop.next].iter().any(|n| matches!(n, Neighbour::Terminal(_)));
        self.remember(session, view.clone());
        self.outputs.push_back(Output::Finished(Box::new(Finished { view, session, code, edge })));
    }

    fn forget_neighbour(&mut self, neighbour: Neighbour, session: &SessionId, was_active: bool) {
        if let Some(sessions) = self.sessions_by_neighbour.get_mut(&neighbour) {
            sessions.remove(session);
            if sessions.is_empty() {
                self.sessions_by_neighbour.remove(&neighbour);
            }
        }
        let Neighbour::Terminal(conn) = neighbour else { return };
        let Some(terminal) = self.terminals.get_mut(&conn) else { return };
        if was_active {
            terminal.active = terminal.active.saturating_sub(1);
            self.outputs.push_back(Output::Communicating(conn, terminal.active));
        } else {
            terminal.calling = terminal.calling.saturating_sub(1);
        }
    }

    fn remember(&mut self, session: SessionId, view: SessionView) {
        if self.ended.insert(session, view).is_none() {
            self.ended_order.push_back(session);
        }
        while self.ended_order.len() > limits::ENDED_SESSIONS_SHOWN_BY_RELAY {
            if let Some(oldest) = self.ended_order.pop_front() {
                self.ended.remove(&oldest);
            }
        }
    }

    fn tell_end(&mut self, to: Neighbour, session: SessionId, code: RefusalCode) {
        let end = End { session, code };
        self.outputs.push_back(match to {
            Neighbour::Link(link) => Output::ToPeer(link, ToPeer::End(end)),
            Neighbour::Terminal(conn) => Output::ToTerminal(conn, ToTerminal::Ended(end)),
        });
    }

    fn refuse(
        &mut self,
        to: Neighbour,
        session: SessionId,
        refusal: Refusal,
        winner: Option<SessionId>,
    ) {
        let refused = CallRefused { session, refusal, winner };
        self.outputs.push_back(match to {
            Neighbour::Link(link) => Output::ToPeer(link, ToPeer::Refuse(refused)),
            Neighbour::Terminal(conn) => Output::ToTerminal(conn, ToTerminal::CallRefused(refused)),
        });
    }
}

impl Hop {
    /// What the switch does for it, both ways, once it is accepted.
    fn forwardings(&self) -> Option<[Forwarding; 2]> {
        let State::Active { in_from_caller, out_to_callee } = self.state else { return None };
        Some([
            Forwarding {
                label: in_from_caller,
                from: self.prev,
                to: self.next,
                label_out: out_to_callee,
                counters: self.counters.clone(),
                to_callee: true,
            },
            Forwarding {
                label: self.in_from_callee,
                from: self.next,
                to: self.prev,
                label_out: self.out_to_caller,
                counters: self.counters.clone(),
                to_callee: false,
            },
        ])
    }

    fn view(&self, id: &SessionId) -> SessionView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionView {
            id: id.to_string(),
            caller: self.caller.clone(),
            callee: self.callee.clone(),
            service: self.service.clone(),
            state: match self.state {
                State::Calling { .. } => SessionState::Calling,
                State::Active { .. } => SessionState::Active,
            },
            started_at: self.started_ms,
            ended_at: None,
            reason: None,
            route: self.names.clone(),
            path: "relayed".to_owned(),
            bytes_to_callee: read(&self.counters.to_callee.bytes),
            packets_to_callee: read(&self.counters.to_callee.packets),
            bytes_to_caller: read(&self.counters.to_caller.bytes),
            packets_to_caller: read(&self.counters.to_caller.packets),
        }
    }
}

#[cfg(test)]
mod tests;
