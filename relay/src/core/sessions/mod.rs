//! Calls and sessions: labels installed hop by hop, ends, refusals (architecture 5 and 7; C7 to C11, C13).
//!
//! A session has one or more relayed *paths*, numbered by its caller: the call makes path 0, each `Resume` one more.
//! Each relay on a path's route holds one `Hop` of it, between two neighbours: `prev` towards the caller and
//! `next` towards the callee. A call or resume travels along its route and leaves at each hop the label that
//! frames *towards the caller* shall carry; the acceptance travels back and leaves the labels *towards the callee*:
//!
//! ```text
//! caller            r1                r2                callee
//!   | Call(a) ------>| Call(b) ------->| Incoming(c) ----->|     c -> b -> a: frames towards the caller
//!   |<-- Accepted(z) |<----- Accept(y) |<------- Accept(x) |     z -> y -> x: frames towards the callee
//! ```
//!
//! | state | event | what happens |
//! |---|---|---|
//! | none | call or resume that can go on | `Calling`, passed on to `next` |
//! | none | call or resume that cannot | refused towards `prev` with its code |
//! | none | accept, refuse, end | dropped: it crossed an end |
//! | `Calling` | accept from `next` | both labels installed, then passed on: `Active` |
//! | `Calling` | refuse from `next` | passed on, gone |
//! | `Calling` | end from `prev` (withdrawn) | passed on, gone |
//! | `Calling` | time-out | `no-answer` to `prev`, `call-withdrawn` to `next`, gone |
//! | `Active` | end of the path from either | passed to the other, labels removed, gone |
//! | any | neighbour lost | the other side is told that this *path* ended, labels removed, gone |
//! | any | end of the session from either | each of its paths: passed to the other, labels removed, gone |
//! | any | neighbour gone for good (log-out, revocation, ...) | as the end of its sessions |
//!
//! A relay never ends a session because a path of it broke: its terminals do, who may have others (invariant 7). Here a
//! session is over when its last path is; where it comes back, it is one again.
//!
//! What comes from a neighbour that is not the hop's `prev` or `next` is dropped: nobody ends what is not his.
//! Labels are 56 random bits, so one returns within two minutes only with negligible probability.

mod budget;
mod event;
mod hop;
mod resume;
mod shown;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustc_hash::FxHashMap;
use tasuki_proto::control::{self, CallRefused, End, PathEnd, PathReport, ToTerminal};
use tasuki_proto::mesh::{RoutedAccept, RoutedCall, RoutedResumed, ToPeer};
use tasuki_proto::path::{NatKind, PathNews};
use tasuki_proto::{
    Generation, Label, Refusal, RefusalCode, RelayId, RelayName, ServiceName, SessionId,
    TerminalId, limits,
};

use super::admin::{DirectView, SessionView};
use super::bucket::Bucket;
use super::{ConnId, LinkId};
pub use budget::Asker;
use budget::{Budget, Charge};
pub use event::{Counter, Counters, Finished, Forwarding, HopId, Input, Neighbour, Output, Place};
use hop::{Hop, Session, State};
use shown::RefusalLog;

/// A relay adds this to the terminals' own time-out, so that the caller's terminal is the one that gives up.
const MARGIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct PerTerminal {
    calling: u32,
    /// Accepted sessions, with the number of their paths over this terminal's connection.
    active: BTreeMap<SessionId, u32>,
}

impl PerTerminal {
    fn active(&self) -> u32 {
        u32::try_from(self.active.len()).unwrap_or(u32::MAX)
    }
}

/// How a hop ends.
#[derive(Debug)]
struct Ending {
    code: RefusalCode,
    /// Whether the session ends with it, on both sides.
    session: bool,
    /// The neighbour that knows.
    told: Option<Neighbour>,
    /// What the callee's side said to the call.
    refused: Option<CallRefused>,
}

/// All calls and sessions over this relay.
#[derive(Debug)]
pub struct Sessions {
    own: RelayId,
    most: usize,
    session_by_id: BTreeMap<SessionId, Session>,
    hop_by_id: BTreeMap<HopId, Hop>,
    deadlines: BTreeSet<(Instant, HopId)>,
    hops_by_neighbour: FxHashMap<Neighbour, BTreeSet<HopId>>,
    terminals: FxHashMap<ConnId, PerTerminal>,
    budget: Budget,
    ended: BTreeMap<SessionId, SessionView>,
    ended_order: VecDeque<SessionId>,
    /// What callers attached here said of direct paths, by their NAT, their peer's, and what became of it.
    direct: BTreeMap<(NatKind, NatKind, PathNews), u64>,
    /// Calls refused here that the ledger still takes.
    refused_kept: Option<Bucket>,
    refusals: RefusalLog,
    rng: StdRng,
    outputs: VecDeque<Output>,
    /// Sessions whose view changed, for those who watch.
    changed: VecDeque<SessionId>,
}

impl Sessions {
    /// No sessions, and at most `most`. `seed` makes labels: it must not be guessable.
    pub fn new(own: RelayId, most: usize, seed: [u8; 32]) -> Self {
        Self {
            own,
            most,
            session_by_id: BTreeMap::new(),
            hop_by_id: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            hops_by_neighbour: FxHashMap::default(),
            terminals: FxHashMap::default(),
            budget: Budget::default(),
            ended: BTreeMap::new(),
            ended_order: VecDeque::new(),
            direct: BTreeMap::new(),
            refused_kept: None,
            refusals: RefusalLog::default(),
            rng: StdRng::from_seed(seed),
            outputs: VecDeque::new(),
            changed: VecDeque::new(),
        }
    }

    /// Takes what happened. `wall_ms` is for people: ms since 1970.
    pub fn handle(&mut self, input: Input, now: Instant, wall_ms: u64) {
        match input {
            Input::Call { from, caller, address, call, place } => {
                self.handle_call(from, caller, address, call, place, now, wall_ms);
            }
            Input::Routed { from, call, next } => {
                self.handle_routed(from, call, next, now, wall_ms);
            }
            Input::Resume { from, caller, resume, place } => {
                self.handle_resume(from, caller, resume, place, now, wall_ms);
            }
            Input::RoutedResume { from, resume, next } => {
                self.handle_routed_resume(from, resume, next, now, wall_ms);
            }
            Input::Accept { from, hop, label, address } => {
                self.handle_accept(from, hop, label, address);
            }
            Input::Refuse { from, refused } => self.handle_refuse(from, refused, wall_ms),
            Input::End { from, end } => self.handle_end(from, end, wall_ms),
            Input::EndPath { from, end } => self.handle_end_path(from, &end, wall_ms),
            Input::PathReport { from, report } => self.handle_path_report(from, &report),
            Input::Lost(neighbour, code) => self.handle_lost(neighbour, code, wall_ms),
            Input::Moved { from, to } => self.handle_moved(from, to),
            Input::NoRoom(hop) => self.handle_no_room(hop, wall_ms),
            Input::EndByOperator(session) => {
                self.end_session(session, RefusalCode::EndedByOperator, None, wall_ms);
            }
        }
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant, wall_ms: u64) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            let code = RefusalCode::NoAnswer;
            let session = id.generation == Generation::CALL;
            self.remove(id, Ending { code, session, told: None, refused: None }, wall_ms);
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next session that came, changed or went, counters aside.
    pub fn poll_changed(&mut self) -> Option<SessionId> {
        self.changed.pop_front()
    }

    /// When [`Sessions::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// How many sessions there may be from here on; those that are stay.
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    /// Calls and sessions over this relay.
    pub fn len(&self) -> usize {
        self.session_by_id.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.session_by_id.is_empty()
    }

    /// Whether a session runs, or is called, over this relay.
    pub fn contains(&self, session: &SessionId) -> bool {
        self.session_by_id.contains_key(session)
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
        let asker = Asker::Terminal(caller.clone());
        let checked = self.admit(&asker, &caller, &call, now).and(place).and_then(|place| {
            let charge = Charge::new(asker, place.next, &caller, &call.target);
            self.check_room(&charge).map(|()| (place, charge))
        });
        let (place, charge) = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                self.remember_refused(&caller, &call, refusal.code, now, wall_ms);
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
        self.pass_on(Neighbour::Terminal(from), place.next, (routed, charge), now, wall_ms);
    }

    /// The rate and rules for a call of a terminal attached here.
    fn admit(
        &mut self,
        asker: &Asker,
        caller: &TerminalId,
        call: &control::Call,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.check_rate(asker, (caller, &call.target), now)?;
        if call.session.edge != self.own || self.session_by_id.contains_key(&call.session) {
            return Err(RefusalCode::BadRequest.into());
        }
        if *caller == call.target {
            return Err(RefusalCode::SelfCall.into());
        }
        Ok(())
    }

    /// The rates of whoever asks, and of the pair.
    fn check_rate(
        &mut self,
        asker: &Asker,
        pair: (&TerminalId, &TerminalId),
        now: Instant,
    ) -> Result<(), Refusal> {
        if self.budget.may_ask(asker, pair, now) { Ok(()) } else { Err(RefusalCode::Busy.into()) }
    }

    /// The places of whoever asks, of the callee, of the pair and of this relay.
    fn check_room(&mut self, charge: &Charge) -> Result<(), Refusal> {
        if self.budget.has_room(charge, self.most) { Ok(()) } else { Err(RefusalCode::Busy.into()) }
    }

    /// Calls and paths refused as `busy` since the start, by the reason under which operators see them.
    pub fn refused(&self) -> [(&'static str, u64); 3] {
        let budget::Refused { rate, share, queue } = self.budget.refused;
        [("calls-over-rate", rate), ("sessions-over-share", share), ("callee-queue-full", queue)]
    }

    /// The next neighbour has too much to read: it is not told of the call or path.
    fn handle_no_room(&mut self, id: HopId, wall_ms: u64) {
        let Some(hop) = self.hop_by_id.get(&id).filter(|hop| !hop.is_active()) else { return };
        self.budget.refused.queue += 1;
        let (session, told) = (id.generation == Generation::CALL, Some(hop.next));
        let ending = Ending { code: RefusalCode::Busy, session, told, refused: None };
        self.remove(id, ending, wall_ms);
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
        let asker = Asker::Link(from);
        let checked = if self.session_by_id.contains_key(&session) {
            // The same session again, perhaps over another link: the first one stays.
            Err(RefusalCode::BadRequest.into())
        } else {
            self.check_rate(&asker, (&call.caller, &call.target), now).and(next)
        };
        let checked = checked.and_then(|next| {
            let charge = Charge::new(asker, next, &call.caller, &call.target);
            self.check_room(&charge).map(|()| (next, charge))
        });
        match checked {
            Ok((next, charge)) => {
                self.pass_on(Neighbour::Link(from), next, (call, charge), now, wall_ms);
            }
            Err(refusal) => self.refuse(Neighbour::Link(from), session, refusal, None),
        }
    }

    /// Makes the session and the hop of its call, and tells the next neighbour.
    fn pass_on(
        &mut self,
        prev: Neighbour,
        next: Neighbour,
        (call, charge): (RoutedCall, Charge),
        now: Instant,
        wall_ms: u64,
    ) {
        let id = HopId { session: call.session, generation: Generation::CALL };
        let asker = charge.asker.clone();
        let who = (&call.service, Some(charge));
        let label = self.add_hop(id, (prev, next), (call.label, &call.names), who, now, wall_ms);
        self.outputs.push_back(match next {
            Neighbour::Link(link) => {
                Output::OfferPeer(link, id, ToPeer::Call(RoutedCall { label, ..call }))
            }
            Neighbour::Terminal(conn) => Output::OfferTerminal(
                conn,
                (id, asker),
                ToTerminal::Incoming(control::Incoming {
                    session: call.session,
                    caller: call.caller,
                    service: call.service,
                    tie_break: call.tie_break,
                    label,
                    caller_address: call.caller_address,
                    route: call.names,
                }),
            ),
        });
    }

    /// Makes a hop that waits for its answer, and its session if it comes with what that is charged to; returns the label
    /// of frames towards the caller for the next neighbour.
    fn add_hop(
        &mut self,
        id: HopId,
        (prev, next): (Neighbour, Neighbour),
        (out_to_caller, names): (Label, &[RelayName]),
        (service, charge): (&ServiceName, Option<Charge>),
        now: Instant,
        wall_ms: u64,
    ) -> Label {
        let in_from_callee = self.fresh_label();
        let deadline = now + limits::CALL_TIMEOUT + MARGIN;
        self.ended.remove(&id.session);
        self.changed.push_back(id.session);
        if let Some(charge) = charge {
            self.budget.take(&charge);
            let session = Session::new(charge, service.clone(), names.to_vec(), wall_ms);
            self.session_by_id.insert(id.session, session);
        }
        let counters = self.session_by_id.get_mut(&id.session).map(|session| {
            session.hops += 1;
            session.edge |= [prev, next].iter().any(|n| matches!(n, Neighbour::Terminal(_)));
            session.counters.clone()
        });
        let hop = Hop {
            prev,
            next,
            names: names.to_vec(),
            out_to_caller,
            in_from_callee,
            state: State::Calling { deadline },
            counters: counters.unwrap_or_default(),
        };
        self.hop_by_id.insert(id, hop);
        self.deadlines.insert((deadline, id));
        for neighbour in [prev, next] {
            self.hops_by_neighbour.entry(neighbour).or_default().insert(id);
            if let Neighbour::Terminal(conn) = neighbour {
                self.terminals.entry(conn).or_default().calling += 1;
            }
        }
        in_from_callee
    }

    fn handle_accept(
        &mut self,
        from: Neighbour,
        id: HopId,
        label: Label,
        address: Option<SocketAddr>,
    ) {
        let in_from_caller = self.fresh_label();
        let Some(hop) = self.hop_by_id.get_mut(&id) else { return };
        let State::Calling { deadline } = hop.state else { return };
        if hop.next != from {
            return;
        }
        hop.state = State::Active { in_from_caller, out_to_callee: label };
        self.deadlines.remove(&(deadline, id));
        let (prev, next, route) = (hop.prev, hop.next, hop.names.clone());
        self.outputs.extend(hop.forwardings().into_iter().flatten().map(Output::Install));
        if let Some(session) = self.session_by_id.get_mut(&id.session) {
            session.active += 1;
            session.accept(&id.session);
            session.names.clone_from(&route);
            self.changed.push_back(id.session);
        }
        self.outputs.push_back(accepted(prev, id, in_from_caller, address, route));
        for neighbour in [prev, next] {
            if let Neighbour::Terminal(conn) = neighbour {
                let terminal = self.terminals.entry(conn).or_default();
                terminal.calling = terminal.calling.saturating_sub(1);
                *terminal.active.entry(id.session).or_default() += 1;
                self.outputs.push_back(Output::Communicating(conn, terminal.active()));
            }
        }
    }

    fn handle_refuse(&mut self, from: Neighbour, refused: CallRefused, wall_ms: u64) {
        let id = HopId { session: refused.session, generation: Generation::CALL };
        let Some(hop) = self.hop_by_id.get(&id) else { return };
        if hop.next != from || !matches!(hop.state, State::Calling { .. }) {
            return;
        }
        let code = refused.refusal.code;
        let ending = Ending { code, session: true, told: Some(from), refused: Some(refused) };
        self.remove(id, ending, wall_ms);
    }

    fn handle_moved(&mut self, from: Neighbour, to: Neighbour) {
        let hops = self.hops_by_neighbour.remove(&from).unwrap_or_default();
        self.move_charges(from, to, &hops);
        for id in &hops {
            let Some(hop) = self.hop_by_id.get_mut(id) else { continue };
            for end in [&mut hop.prev, &mut hop.next] {
                if *end == from {
                    *end = to;
                }
            }
            self.outputs.extend(hop.forwardings().into_iter().flatten().map(Output::Install));
        }
        self.hops_by_neighbour.entry(to).or_default().extend(hops);
    }

    /// What was charged to a link is charged to the one that takes its place.
    fn move_charges(&mut self, from: Neighbour, to: Neighbour, hops: &BTreeSet<HopId>) {
        let (Neighbour::Link(from), Neighbour::Link(to)) = (from, to) else { return };
        self.budget.handle_moved(from, to);
        for id in hops {
            let Some(session) = self.session_by_id.get_mut(&id.session) else { continue };
            if session.charge.asker == Asker::Link(from) {
                self.budget.give(&session.charge);
                session.charge.asker = Asker::Link(to);
                self.budget.take(&session.charge);
            }
        }
    }

    fn handle_end(&mut self, from: Neighbour, end: End, wall_ms: u64) {
        let own = self.hops_of(end.session).any(|(_, hop)| hop.prev == from || hop.next == from);
        if own {
            self.end_session(end.session, end.code, Some(from), wall_ms);
        }
    }

    /// Only what is shown and counted changes: a terminal that lies deceives about its own session.
    fn handle_path_report(&mut self, from: ConnId, report: &PathReport) {
        let from = Neighbour::Terminal(from);
        let active = self.hops_of(report.session).filter(|(_, hop)| hop.is_active());
        let own = active.map(|(_, hop)| hop).find(|hop| hop.prev == from || hop.next == from);
        let Some(caller) = own.map(|hop| hop.prev == from) else { return };
        let Some(session) = self.session_by_id.get_mut(&report.session) else { return };
        let direct = report.news == PathNews::Direct;
        if std::mem::replace(&mut session.direct, direct) != direct {
            self.changed.push_back(report.session);
        }
        if caller {
            *self.direct.entry((report.nat, report.peer_nat, report.news)).or_default() += 1;
        }
    }

    /// What callers attached here said of direct paths since the start.
    pub fn direct(&self) -> Vec<DirectView> {
        let counts = self.direct.iter();
        counts
            .map(|(&(nat, peer_nat, news), &count)| DirectView { nat, peer_nat, news, count })
            .collect()
    }

    fn handle_lost(&mut self, neighbour: Neighbour, code: RefusalCode, wall_ms: u64) {
        let for_good = is_for_good(code);
        // That somebody logged in with its identity is the lost terminal's affair, not that of whom it spoke with.
        let code = if code == RefusalCode::Superseded { RefusalCode::PeerLost } else { code };
        for id in self.hops_by_neighbour.remove(&neighbour).unwrap_or_default() {
            if for_good {
                self.end_session(id.session, code, Some(neighbour), wall_ms);
            } else {
                // A call that was not answered has no other path.
                let session = id.generation == Generation::CALL
                    && self.hop_by_id.get(&id).is_some_and(|hop| !hop.is_active());
                let ending = Ending { code, session, told: Some(neighbour), refused: None };
                self.remove(id, ending, wall_ms);
            }
        }
        if let Neighbour::Terminal(conn) = neighbour {
            self.terminals.remove(&conn);
        }
    }

    fn hops_of(&self, session: SessionId) -> impl Iterator<Item = (HopId, &Hop)> {
        let first = HopId { session, generation: Generation(0) };
        let last = HopId { session, generation: Generation(u32::MAX) };
        self.hop_by_id.range(first..=last).map(|(id, hop)| (*id, hop))
    }

    /// Ends a session with all its paths.
    fn end_session(
        &mut self,
        session: SessionId,
        code: RefusalCode,
        told: Option<Neighbour>,
        wall_ms: u64,
    ) {
        let hops: Vec<HopId> = self.hops_of(session).map(|(id, _)| id).collect();
        for id in hops {
            let ending = Ending { code, session: true, told, refused: None };
            self.remove(id, ending, wall_ms);
        }
    }

    /// Removes a hop: tells the neighbours (but not the one that knows) and removes labels; with its last hop the
    /// session is counted and remembered.
    fn remove(&mut self, id: HopId, ending: Ending, wall_ms: u64) {
        let Some(hop) = self.hop_by_id.remove(&id) else { return };
        let was_active = hop.is_active();
        match hop.state {
            State::Calling { deadline } => {
                self.deadlines.remove(&(deadline, id));
            }
            State::Active { in_from_caller, .. } => {
                self.outputs.push_back(Output::Remove(in_from_caller));
                self.outputs.push_back(Output::Remove(hop.in_from_callee));
            }
        }
        self.tell(id, &hop, &ending);
        for neighbour in [hop.prev, hop.next] {
            self.forget_neighbour(neighbour, id, was_active);
        }
        let Some(session) = self.session_by_id.get_mut(&id.session) else { return };
        self.changed.push_back(id.session);
        session.hops -= 1;
        session.active -= u32::from(was_active);
        if session.hops > 0 {
            return;
        }
        let Some(session) = self.session_by_id.remove(&id.session) else { return };
        self.budget.give(&session.charge);
        self.finish(id.session, &session, ending.code, wall_ms);
    }

    /// Tells both neighbours how a hop ended.
    fn tell(&mut self, id: HopId, hop: &Hop, ending: &Ending) {
        let (code, was_active) = (ending.code, hop.is_active());
        if ending.told != Some(hop.next) {
            // Whatever the reason, a call that was not answered is withdrawn where it rings.
            let code = if !was_active && code == RefusalCode::NoAnswer {
                RefusalCode::CallWithdrawn
            } else {
                code
            };
            self.tell_end(hop.next, id, code, ending.session);
        }
        if ending.told == Some(hop.prev) {
            return;
        }
        let is_call = id.generation == Generation::CALL && !was_active;
        match &ending.refused {
            _ if !is_call => self.tell_end(hop.prev, id, code, ending.session),
            Some(refused) => {
                let (refusal, winner) = (refused.refusal.clone(), refused.winner);
                self.refuse(hop.prev, id.session, refusal, winner);
            }
            None => self.refuse(hop.prev, id.session, of_target(code).into(), None),
        }
    }

    fn forget_neighbour(&mut self, neighbour: Neighbour, id: HopId, was_active: bool) {
        if let Some(hops) = self.hops_by_neighbour.get_mut(&neighbour) {
            hops.remove(&id);
            if hops.is_empty() {
                self.hops_by_neighbour.remove(&neighbour);
            }
        }
        let Neighbour::Terminal(conn) = neighbour else { return };
        let Some(terminal) = self.terminals.get_mut(&conn) else { return };
        if !was_active {
            terminal.calling = terminal.calling.saturating_sub(1);
            return;
        }
        if let Some(paths) = terminal.active.get_mut(&id.session) {
            *paths -= 1;
            if *paths == 0 {
                terminal.active.remove(&id.session);
                self.outputs.push_back(Output::Communicating(conn, terminal.active()));
            }
        }
    }

    fn tell_end(&mut self, to: Neighbour, id: HopId, code: RefusalCode, session_ends: bool) {
        let session = id.session;
        self.outputs.push_back(if session_ends {
            let end = End { session, code };
            match to {
                Neighbour::Link(link) => Output::ToPeer(link, ToPeer::End(end)),
                Neighbour::Terminal(conn) => Output::ToTerminal(conn, ToTerminal::Ended(end)),
            }
        } else {
            let end = PathEnd { session, generation: id.generation, code };
            match to {
                Neighbour::Link(link) => Output::ToPeer(link, ToPeer::EndPath(end)),
                Neighbour::Terminal(conn) => Output::ToTerminal(conn, ToTerminal::PathEnded(end)),
            }
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

/// Whether a neighbour that is gone with this code does not come back to its sessions.
fn is_for_good(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::LoggedOut
            | RefusalCode::Superseded
            | RefusalCode::Revoked
            | RefusalCode::Kicked
    )
}

/// What a caller hears whose call rang at an attachment that ended with this code: not what its own attachment would.
fn of_target(code: RefusalCode) -> RefusalCode {
    match code {
        // Another one of it stands, or is about to.
        RefusalCode::Superseded => RefusalCode::PeerLost,
        RefusalCode::LoggedOut | RefusalCode::Kicked => RefusalCode::TargetLoggedOut,
        RefusalCode::Revoked => RefusalCode::UnknownTarget,
        code => code,
    }
}

/// What an acceptance says to the neighbour before.
fn accepted(
    prev: Neighbour,
    id: HopId,
    label: Label,
    address: Option<SocketAddr>,
    route: Vec<RelayName>,
) -> Output {
    let HopId { session, generation } = id;
    let is_call = generation == Generation::CALL;
    match prev {
        Neighbour::Link(link) if is_call => {
            let accept = RoutedAccept { session, label, callee_address: address };
            Output::ToPeer(link, ToPeer::Accept(accept))
        }
        Neighbour::Link(link) => {
            let resumed = RoutedResumed { session, generation, label };
            Output::ToPeer(link, ToPeer::Resumed(resumed))
        }
        Neighbour::Terminal(conn) if is_call => {
            let accepted = control::Accepted { session, label, callee_address: address, route };
            Output::ToTerminal(conn, ToTerminal::Accepted(accepted))
        }
        Neighbour::Terminal(conn) => {
            let resumed = control::Resumed { session, generation, label, route };
            Output::ToTerminal(conn, ToTerminal::Resumed(resumed))
        }
    }
}

#[cfg(test)]
mod tests;
