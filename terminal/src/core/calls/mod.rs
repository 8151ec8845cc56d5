//! Calls as the terminal sees them, glare included (C7 to C10, D3, D4): a pure table of states.
//!
//! **Sessions.** What each state does with each event; an event that is not in the table is ignored there.
//!
//! | state | event | action | next |
//! |---|---|---|---|
//! | - | a local call | say Call | calling |
//! | - | a call arrives, and a larger call of ours to its caller is calling | refuse with `merged` and ours as the winner | - |
//! | - | a call arrives that the rules refuse | refuse with their code | - |
//! | - | a call arrives otherwise | open, accept; every own call to its caller that is calling ends with `merged`, its requests wait for this session | proving |
//! | - | accepted | say End: whoever accepted it must not keep it | - |
//! | calling | accepted | open | proving |
//! | calling | refused with `merged` and a winner | its requests wait for the winner | - |
//! | calling | refused since a relay or attachment on the way was lost | its requests call afresh | - |
//! | calling | refused otherwise | its requests fail | - |
//! | calling | 10 s | say End, `no-answer` | - |
//! | proving | the peer is proven | its requests are answered; offered, where the peer uses it | live |
//! | calling, proving | its way is lost | say End, close, its requests call afresh | - |
//! | proving | the proof fails, or 10 s | say End, close, `peer-not-proven` | - |
//! | live | the connection dies | say End, close | - |
//! | any | its last local user is done, and the peer does not use it | say End, close | - |
//! | any | ended by a local command | say End, close, its requests fail | - |
//! | any | ended by the relay | close | - |
//! | any | the attachment is gone | close, all requests fail | - |
//!
//! **Requests.** A local user's request waits for one session at a time: that of its own call, or the one that its
//! call was merged into (whose messages may still be under way: it is awaited). When that session is proven the
//! request is answered with it. When its *own* call fails, it fails with that code. When the session it was merged
//! into comes to nothing, it is called afresh, at most [`limits::REDIALS`] times and within
//! [`limits::CALL_TIMEOUT`] of its beginning; then it fails with `no-answer`.
//!
//! **Which call is larger** (D3, D4): by tie-break value, a missing one being smallest; where these are equal, by
//! the caller's name. Both sides compute the same order, and between calls of different callers it is strict.
//!
//! **Who ends a shared session.** Local requests are its users here. The caller's side ends it when its last user is
//! done, unless the peer uses it too, which is so after a merge: then it tells the peer, end to end
//! ([`Output::Use`]), and whoever is done last ends it. So no user's end cuts another's session. docs/adr has why.

mod event;
mod finished;
mod outcome;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::limits;
use tasuki_proto::session::PING;
use tasuki_proto::{Label, Refusal, RefusalCode, ServiceName, SessionId, TerminalId};

pub use event::{Input, Opened, Output, RequestId, SessionInfo, SessionState};
use finished::Finished;

/// Orders calls between two terminals.
type Rank<'a> = (Option<u64>, &'a TerminalId);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    peer: TerminalId,
    service: ServiceName,
    outgoing: bool,
    tie_break: Option<u64>,
    /// Frames to this terminal carry it.
    label: Label,
    state: SessionState,
    /// When it fails unless its state changes; `None` while it is live.
    deadline: Option<Instant>,
    /// The requests that wait for it or were answered with it.
    users: BTreeSet<RequestId>,
    /// Whether the peer has, or may have, users of its own.
    peer_uses: bool,
    offered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Request {
    target: TerminalId,
    service: ServiceName,
    /// Until when it may still be called.
    deadline: Instant,
    redials: u8,
    /// When it is called afresh, after its way was lost more than once.
    again_at: Option<Instant>,
    /// The session of its latest call.
    own: SessionId,
    /// The session that it waits for or was answered with; `None` between [`Output::Redial`] and the call.
    on: Option<SessionId>,
    answered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Due {
    Session(SessionId),
    Request(RequestId),
    Again(RequestId),
}

/// What becomes of requests whose session is gone before they were answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Those whose own call it was fail; others call afresh.
    Redial,
    /// All call afresh.
    Again,
    /// All fail.
    Fail,
}

/// All calls and sessions of one terminal.
///
/// At most [`limits::SESSIONS_PER_TERMINAL`] sessions, calls included; beyond, calls both ways are refused with
/// `busy`.
#[derive(Debug, Clone)]
pub struct Calls {
    me: TerminalId,
    session_by_id: BTreeMap<SessionId, Session>,
    request_by_id: BTreeMap<RequestId, Request>,
    /// Own calls without an answer, by whom they call.
    calling_by_peer: BTreeMap<TerminalId, BTreeSet<SessionId>>,
    /// Requests that wait for a call that has not arrived.
    awaiting_by_winner: BTreeMap<SessionId, BTreeSet<RequestId>>,
    finished: Finished,
    due: BTreeSet<(Instant, Due)>,
    outputs: VecDeque<Output>,
}

impl Calls {
    /// No calls yet, of the terminal `me`.
    pub fn new(me: TerminalId) -> Self {
        Self {
            me,
            session_by_id: BTreeMap::new(),
            request_by_id: BTreeMap::new(),
            calling_by_peer: BTreeMap::new(),
            awaiting_by_winner: BTreeMap::new(),
            finished: Finished::default(),
            due: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`Calls::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Call { request, session, target, service, tie_break, label } => {
                self.handle_call(request, session, (target, service), tie_break, label, now);
            }
            Input::Done(request) => self.handle_done(request, now),
            Input::Incoming { call, verdict, label } => {
                self.handle_incoming(call, verdict, label, now);
            }
            Input::Accepted(accepted) => self.handle_accepted(accepted, now),
            Input::CallRefused(refused) => self.handle_call_refused(refused, now),
            Input::Ended(end) => self.handle_ended(&end, now),
            Input::Unreached(session) => {
                self.end(session, RefusalCode::RouteLost, true, Then::Again, now);
            }
            Input::Proven(session) => self.handle_proven(session, now),
            Input::Failed { session, code } => {
                self.end(session, code, true, Then::Redial, now);
            }
            Input::PeerUse { session, using } => self.handle_peer_use(session, using, now),
            Input::End { session, code } => self.end(session, code, true, Then::Fail, now),
            Input::Detached(code) => self.handle_detached(code, now),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// All sessions, ordered by id.
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo<'_>> {
        self.session_by_id.iter().map(|(&session, s)| SessionInfo {
            session,
            peer: &s.peer,
            service: &s.service,
            outgoing: s.outgoing,
            state: s.state,
        })
    }

    /// Requests that have no session and no refusal yet, or whose session is not over.
    pub fn requests(&self) -> usize {
        self.request_by_id.len()
    }

    fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, due)) = self.due.first()
            && at <= now
        {
            self.due.remove(&(at, due));
            match due {
                Due::Request(request) => self.fail(request, RefusalCode::NoAnswer.into()),
                Due::Again(request) => self.call_again(request),
                Due::Session(id) => {
                    let calling = self
                        .session_by_id
                        .get(&id)
                        .is_some_and(|s| s.state == SessionState::Calling);
                    let code = match calling {
                        true => RefusalCode::NoAnswer,
                        false => RefusalCode::PeerNotProven,
                    };
                    self.end(id, code, true, Then::Redial, now);
                }
            }
        }
    }

    fn handle_call(
        &mut self,
        request: RequestId,
        id: SessionId,
        (target, service): (TerminalId, ServiceName),
        tie_break: Option<u64>,
        label: Label,
        now: Instant,
    ) {
        if self.request_by_id.get(&request).is_some_and(|r| r.on.is_some()) {
            self.outputs.push_back(Output::Free(label));
            return;
        }
        // A request that stands in the table called before: its deadline and its count go on.
        let (deadline, redials) = self
            .take_request(request)
            .map_or((now + limits::CALL_TIMEOUT, 0), |r| (r.deadline, r.redials));
        let refusal = if target == self.me {
            Some(RefusalCode::SelfCall)
        } else if self.is_full() || self.is_known(&id) {
            Some(RefusalCode::Busy)
        } else {
            None
        };
        if let Some(code) = refusal {
            self.outputs.push_back(Output::Free(label));
            self.outputs.push_back(Output::Answer { request, result: Err(code.into()) });
            return;
        }
        self.outputs.push_back(Output::Send(ToRelay::Call(control::Call {
            session: id,
            target: target.clone(),
            service: service.clone(),
            tie_break,
            label,
        })));
        self.due.insert((deadline, Due::Session(id)));
        self.calling_by_peer.entry(target.clone()).or_default().insert(id);
        self.session_by_id.insert(
            id,
            Session {
                peer: target.clone(),
                service: service.clone(),
                outgoing: true,
                tie_break,
                label,
                state: SessionState::Calling,
                deadline: Some(deadline),
                users: BTreeSet::from([request]),
                peer_uses: false,
                offered: false,
            },
        );
        let request_row = Request {
            target,
            service,
            deadline,
            redials,
            again_at: None,
            own: id,
            on: Some(id),
            answered: false,
        };
        self.request_by_id.insert(request, request_row);
    }

    fn handle_done(&mut self, request: RequestId, now: Instant) {
        let Some(on) = self.take_request(request).and_then(|r| r.on) else { return };
        let Some(session) = self.session_by_id.get(&on) else { return };
        if !session.users.is_empty() {
            return;
        }
        match (session.state, session.peer_uses) {
            (SessionState::Live, true) => {
                self.outputs.push_back(Output::Use { session: on, using: false });
            }
            // The peer's users wait for it, or it is the peer's own.
            (_, true) => {}
            (SessionState::Calling, false) => {
                self.end(on, RefusalCode::CallWithdrawn, true, Then::Fail, now);
            }
            (_, false) => self.end(on, self.ended_here(on), true, Then::Fail, now),
        }
    }

    fn handle_incoming(
        &mut self,
        call: control::Incoming,
        verdict: Result<(), Refusal>,
        label: Label,
        now: Instant,
    ) {
        let id = call.session;
        if self.is_known(&id) {
            self.outputs.push_back(Output::Free(label));
            return;
        }
        let larger = self.largest_calling(&call.caller);
        let larger = larger.filter(|(rank, _)| *rank > (call.tie_break, &call.caller));
        let refusal = if call.caller == self.me {
            Some((RefusalCode::SelfCall.into(), None))
        } else if let Some((_, winner)) = larger {
            Some((RefusalCode::Merged.into(), Some(winner)))
        } else if let Err(refusal) = verdict {
            Some((refusal, None))
        } else if self.is_full() || self.is_full_for(&call.caller, &call.service) {
            Some((RefusalCode::Busy.into(), None))
        } else {
            None
        };
        if let Some((refusal, winner)) = refusal {
            self.outputs.push_back(Output::Free(label));
            self.outputs.push_back(Output::Send(ToRelay::Refuse(control::CallRefused {
                session: id,
                refusal,
                winner,
            })));
            if let Some(winner) = winner.and_then(|w| self.session_by_id.get_mut(&w)) {
                winner.peer_uses = true;
            }
            self.finish(id, winner, now);
        } else {
            self.accept(call, label, now);
        }
    }

    fn accept(&mut self, call: control::Incoming, label: Label, now: Instant) {
        let id = call.session;
        let deadline = now + limits::PROOF_TIMEOUT;
        self.outputs.push_back(Output::Open(Opened {
            session: id,
            peer: call.caller.clone(),
            outgoing: false,
            label_in: label,
            label_out: call.label,
            service: call.service.clone(),
            route: call.route,
            peer_address: call.caller_address,
        }));
        self.outputs
            .push_back(Output::Send(ToRelay::Accept(control::Accept { session: id, label })));
        self.due.insert((deadline, Due::Session(id)));
        self.session_by_id.insert(
            id,
            Session {
                peer: call.caller.clone(),
                service: call.service,
                outgoing: false,
                tie_break: call.tie_break,
                label,
                state: SessionState::Proving,
                deadline: Some(deadline),
                users: BTreeSet::new(),
                peer_uses: true,
                offered: false,
            },
        );
        // Own calls that are still calling lost against it, else it had been refused.
        for lost in self.calling_by_peer.get(&call.caller).cloned().unwrap_or_default() {
            self.say_end(lost, RefusalCode::Merged);
            self.replace(lost, id, now);
        }
        for request in self.awaiting_by_winner.remove(&id).unwrap_or_default() {
            self.wait_for(request, id, now);
        }
    }

    fn handle_accepted(&mut self, accepted: control::Accepted, now: Instant) {
        let id = accepted.session;
        let Some(session) = self.session_by_id.get_mut(&id) else {
            let merged = self.finished.is_merged(&id);
            let code = if merged { RefusalCode::Merged } else { RefusalCode::UnknownSession };
            self.say_end(id, code);
            return;
        };
        if session.state != SessionState::Calling {
            return;
        }
        session.state = SessionState::Proving;
        let deadline = now + limits::PROOF_TIMEOUT;
        if let Some(old) = session.deadline.replace(deadline) {
            self.due.remove(&(old, Due::Session(id)));
        }
        self.due.insert((deadline, Due::Session(id)));
        self.outputs.push_back(Output::Open(Opened {
            session: id,
            peer: session.peer.clone(),
            outgoing: true,
            label_in: session.label,
            label_out: accepted.label,
            service: session.service.clone(),
            route: accepted.route,
            peer_address: accepted.callee_address,
        }));
        let peer = session.peer.clone();
        self.not_calling(&peer, id);
    }

    fn handle_call_refused(&mut self, refused: control::CallRefused, now: Instant) {
        let id = refused.session;
        if self.session_by_id.get(&id).is_none_or(|s| s.state != SessionState::Calling) {
            return;
        }
        match refused.winner.filter(|_| refused.refusal.code == RefusalCode::Merged) {
            Some(winner) => self.replace(id, winner, now),
            None => {
                let mut refusal = refused.refusal;
                if let Some((end, _)) = refusal.detail.char_indices().nth(limits::REFUSAL_DETAIL) {
                    refusal.detail.truncate(end);
                }
                // A relay on the way died, or is about to leave: others may know another.
                let then = match refusal.code {
                    RefusalCode::RouteLost | RefusalCode::PeerLost => Then::Again,
                    _ => Then::Redial,
                };
                self.remove(id, refusal, then, now);
            }
        }
    }

    fn handle_ended(&mut self, end: &control::End, now: Instant) {
        if self.session_by_id.contains_key(&end.session) {
            self.end(end.session, end.code, false, Then::Redial, now);
        } else {
            self.finish(end.session, None, now);
        }
    }

    fn handle_proven(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.session_by_id.get_mut(&id) else { return };
        if session.state != SessionState::Proving {
            return;
        }
        session.state = SessionState::Live;
        if let Some(deadline) = session.deadline.take() {
            self.due.remove(&(deadline, Due::Session(id)));
        }
        let using = !session.users.is_empty();
        if !using && !session.peer_uses {
            self.end(id, self.ended_here(id), true, Then::Fail, now);
            return;
        }
        for &request in &session.users {
            if let Some(r) = self.request_by_id.get_mut(&request) {
                r.answered = true;
            }
            self.outputs.push_back(Output::Answer { request, result: Ok(id) });
        }
        // The other side takes it that the caller uses a session and the callee does not.
        if using != session.outgoing {
            self.outputs.push_back(Output::Use { session: id, using });
        }
        self.offer(id);
    }

    fn handle_peer_use(&mut self, id: SessionId, using: bool, now: Instant) {
        let Some(session) = self.session_by_id.get_mut(&id) else { return };
        session.peer_uses = using;
        if session.state != SessionState::Live {
            return;
        }
        if !using && session.users.is_empty() {
            self.end(id, self.ended_here(id), true, Then::Fail, now);
        } else {
            self.offer(id);
        }
    }

    fn handle_detached(&mut self, code: RefusalCode, now: Instant) {
        let sessions: Vec<_> = self.session_by_id.keys().copied().collect();
        for session in sessions {
            self.end(session, code, false, Then::Fail, now);
        }
        let requests: Vec<_> = self.request_by_id.keys().copied().collect();
        for request in requests {
            self.fail(request, code.into());
        }
    }

    /// Gives a live session that the peer uses to the services, once.
    fn offer(&mut self, id: SessionId) {
        if let Some(session) = self.session_by_id.get_mut(&id)
            && session.peer_uses
            && !session.offered
        {
            session.offered = true;
            self.outputs.push_back(Output::Offer(id));
        }
    }

    /// The largest of the own calls to `peer` that have no answer.
    fn largest_calling(&self, peer: &TerminalId) -> Option<(Rank<'_>, SessionId)> {
        let calls = self.calling_by_peer.get(peer)?;
        calls
            .iter()
            .filter_map(|id| Some((self.session_by_id.get(id)?.tie_break, *id)))
            .max()
            .map(|(tie_break, id)| ((tie_break, &self.me), id))
    }

    fn is_full(&self) -> bool {
        self.session_by_id.len() >= limits::SESSIONS_PER_TERMINAL
    }

    /// Whether a peer has as many sessions here as one may have, all told or for pings.
    fn is_full_for(&self, peer: &TerminalId, service: &ServiceName) -> bool {
        let called = || self.session_by_id.values().filter(|session| !session.outgoing);
        let its = called().filter(|session| session.peer == *peer).count();
        let is_ping = |session: &&Session| session.service.as_str() == PING;
        let pings = || called().filter(is_ping);
        its >= limits::SESSIONS_PER_PEER
            || (service.as_str() == PING
                && (pings().count() >= limits::PING_SESSIONS
                    || pings().filter(|session| session.peer == *peer).count()
                        >= limits::PING_SESSIONS_PER_PEER))
    }

    fn is_known(&self, id: &SessionId) -> bool {
        self.session_by_id.contains_key(id) || self.finished.contains(id)
    }

    fn ended_here(&self, id: SessionId) -> RefusalCode {
        match self.session_by_id.get(&id) {
            Some(session) if !session.outgoing => RefusalCode::EndedByCallee,
            _ => RefusalCode::EndedByCaller,
        }
    }

    fn say_end(&mut self, session: SessionId, code: RefusalCode) {
        self.outputs.push_back(Output::Send(ToRelay::End(control::End { session, code })));
    }

    fn not_calling(&mut self, peer: &TerminalId, id: SessionId) {
        if let Some(calls) = self.calling_by_peer.get_mut(peer) {
            calls.remove(&id);
            if calls.is_empty() {
                self.calling_by_peer.remove(peer);
            }
        }
    }
}

/// Over all that decides; outputs are expected to be drained.
impl Hash for Calls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.me.hash(state);
        self.session_by_id.hash(state);
        self.request_by_id.hash(state);
        self.awaiting_by_winner.hash(state);
        self.finished.hash(state);
        self.outputs.len().hash(state);
    }
}
