//! What becomes of sessions that are over, and of the requests that waited for them.

use std::time::{Duration, Instant};

use tasuki_proto::limits;
use tasuki_proto::{Refusal, RefusalCode, SessionId};

use super::finished::Trace;
use super::{Calls, Due, Output, Request, RequestId, Session, SessionState, Then};

/// The wait before a call whose way was lost twice is made again; then twice that, and so on.
const REDIAL_PAUSE: Duration = Duration::from_millis(50);

impl Calls {
    /// Ends a session, told to the relay or by it.
    pub(super) fn end(
        &mut self,
        id: SessionId,
        code: RefusalCode,
        tell: bool,
        then: Then,
        now: Instant,
    ) {
        if tell && self.session_by_id.contains_key(&id) {
            self.say_end(id, code);
        }
        self.remove(id, code.into(), then, now);
    }

    /// Removes a session, with its label or path, and does with its requests what is to be done.
    pub(super) fn remove(&mut self, id: SessionId, refusal: Refusal, then: Then, now: Instant) {
        let Some(session) = self.take_session(id, refusal.code) else { return };
        self.finish(id, None, now);
        for request in session.users {
            match self.request_by_id.get(&request) {
                None => {}
                // The one who holds the session learns it by its close.
                Some(r) if r.answered => {
                    self.request_by_id.remove(&request);
                }
                Some(r) if then == Then::Fail || (then == Then::Redial && r.own == id) => {
                    self.fail(request, refusal.clone());
                }
                Some(_) if then == Then::Again => self.redial_later(request, now),
                Some(_) => self.redial(request, now),
            }
        }
    }

    /// An own call is merged: what waited for it waits for `winner`.
    pub(super) fn replace(&mut self, id: SessionId, winner: SessionId, now: Instant) {
        let Some(session) = self.take_session(id, RefusalCode::Merged) else { return };
        self.finish(id, Some(winner), now);
        for request in session.users {
            self.wait_for(request, winner, now);
        }
    }

    /// Takes a session out of the table, and frees its label or closes its path.
    pub(super) fn take_session(&mut self, id: SessionId, code: RefusalCode) -> Option<Session> {
        let session = self.session_by_id.remove(&id)?;
        if let Some(deadline) = session.deadline {
            self.due.remove(&(deadline, Due::Session(id)));
        }
        if session.state == SessionState::Calling {
            self.not_calling(&session.peer, id);
            self.outputs.push_back(Output::Free(session.label));
        } else {
            let label_in = session.label;
            self.outputs.push_back(Output::Close { session: id, label_in, code });
        }
        Some(session)
    }

    /// Remembers that a session is over; what awaited it goes on from there.
    pub(super) fn finish(&mut self, id: SessionId, instead: Option<SessionId>, now: Instant) {
        self.finished.insert(id, instead);
        for request in self.awaiting_by_winner.remove(&id).unwrap_or_default() {
            self.wait_for(request, id, now);
        }
    }

    /// Lets a request that has no answer wait for `winner`, or for what became of it.
    pub(super) fn wait_for(&mut self, request: RequestId, winner: SessionId, now: Instant) {
        let Some(r) = self.request_by_id.get_mut(&request) else { return };
        let at = match self.finished.trace(winner) {
            Trace::At(at) => at,
            Trace::Over => return self.redial(request, now),
        };
        match self.session_by_id.get_mut(&at) {
            // A winner with somebody else can only be a lie.
            Some(session) if session.peer != r.target => self.redial(request, now),
            Some(session) => {
                r.on = Some(at);
                self.due.remove(&(r.deadline, Due::Request(request)));
                let first = session.users.is_empty();
                session.users.insert(request);
                if session.state == SessionState::Live {
                    r.answered = true;
                    self.outputs.push_back(Output::Answer { request, result: Ok(at) });
                    if first {
                        self.outputs.push_back(Output::Use { session: at, using: true });
                    }
                }
            }
            None => {
                r.on = Some(at);
                self.due.insert((r.deadline, Due::Request(request)));
                self.awaiting_by_winner.entry(at).or_default().insert(request);
            }
        }
    }

    /// Calls afresh for a request that has no answer, or fails it where it was tried long or often enough.
    pub(super) fn redial(&mut self, request: RequestId, now: Instant) {
        let Some(r) = self.request_by_id.get_mut(&request) else { return };
        if now >= r.deadline || r.redials >= limits::REDIALS {
            return self.fail(request, RefusalCode::NoAnswer.into());
        }
        r.redials += 1;
        r.on = None;
        self.due.insert((r.deadline, Due::Request(request)));
        self.outputs.push_back(Output::Redial {
            request,
            target: r.target.clone(),
            service: r.service.clone(),
        });
    }

    /// As [`Calls::redial`], for a way that was lost: at once the first time, then later each time, since the relays need a
    /// moment to learn of it.
    fn redial_later(&mut self, request: RequestId, now: Instant) {
        let Some(r) = self.request_by_id.get_mut(&request) else { return };
        let at = now + REDIAL_PAUSE.saturating_mul((1 << r.redials.min(8)) - 1);
        if at >= r.deadline {
            return self.fail(request, RefusalCode::RouteLost.into());
        }
        r.redials = r.redials.saturating_add(1);
        r.on = None;
        r.again_at = Some(at);
        self.due.insert((r.deadline, Due::Request(request)));
        self.due.insert((at, Due::Again(request)));
        if at <= now {
            self.due.remove(&(at, Due::Again(request)));
            self.call_again(request);
        }
    }

    pub(super) fn call_again(&mut self, request: RequestId) {
        let Some(r) = self.request_by_id.get_mut(&request) else { return };
        r.again_at = None;
        let (target, service) = (r.target.clone(), r.service.clone());
        self.outputs.push_back(Output::Redial { request, target, service });
    }

    /// Answers a request that has no answer with a refusal.
    pub(super) fn fail(&mut self, request: RequestId, refusal: Refusal) {
        if self.take_request(request).is_some_and(|r| !r.answered) {
            self.outputs.push_back(Output::Answer { request, result: Err(refusal) });
        }
    }

    /// Takes a request out of the table and out of everything that knows it.
    pub(super) fn take_request(&mut self, request: RequestId) -> Option<Request> {
        let r = self.request_by_id.remove(&request)?;
        self.due.remove(&(r.deadline, Due::Request(request)));
        if let Some(at) = r.again_at {
            self.due.remove(&(at, Due::Again(request)));
        }
        if let Some(on) = r.on {
            if let Some(session) = self.session_by_id.get_mut(&on) {
                session.users.remove(&request);
            }
            if let Some(waiting) = self.awaiting_by_winner.get_mut(&on) {
                waiting.remove(&request);
                if waiting.is_empty() {
                    self.awaiting_by_winner.remove(&on);
                }
            }
        }
        Some(r)
    }
}
