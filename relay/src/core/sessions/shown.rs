//! What is shown of sessions: running ones, those that are over, lines of the log.

use std::time::Instant;

use tasuki_proto::control;
use tasuki_proto::{RefusalCode, ServiceName, SessionId, TerminalId, limits};

use super::{Finished, Neighbour, Output, Session, Sessions};
use crate::core::ConnId;
use crate::core::admin::{SessionState, SessionView};
use crate::core::bucket::Bucket;

/// Lines about calls that were not accepted, in the log of one second.
const REFUSALS_SAID: u32 = 20;

/// Says in the log that calls were refused, not without bound: what repeats in a loop would bury the rest.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    /// s since 1970.
    second: u64,
    said: u32,
    unsaid: u64,
}

impl RefusalLog {
    pub(super) fn say(&mut self, view: &SessionView, wall_ms: u64) {
        if self.second != wall_ms / 1000 {
            self.second = wall_ms / 1000;
            self.said = 0;
        }
        if self.said == REFUSALS_SAID {
            self.unsaid += 1;
            return;
        }
        self.said += 1;
        let SessionView { id, caller, callee, service, .. } = view;
        let (code, unsaid) = (view.reason.as_deref().unwrap_or("-"), self.unsaid);
        tracing::info!(session = id, %caller, %callee, %service, code, unsaid, "call refused");
        self.unsaid = 0;
    }
}

impl Session {
    /// Its first path was accepted.
    pub(super) fn accept(&mut self, id: &SessionId) {
        if std::mem::replace(&mut self.accepted, true) || !self.edge {
            return;
        }
        let (caller, callee, service) = (&self.caller, &self.callee, &self.service);
        tracing::info!(session = %id, %caller, %callee, %service, "call accepted");
    }

    pub(super) fn ended_view(
        &self,
        id: &SessionId,
        code: RefusalCode,
        wall_ms: u64,
    ) -> SessionView {
        SessionView {
            state: SessionState::Ended,
            ended_at: Some(wall_ms),
            reason: Some(code.to_string()),
            ..self.view(id)
        }
    }
}

impl Sessions {
    /// The last path of a session over this relay is gone.
    pub(super) fn finish(
        &mut self,
        id: SessionId,
        session: &Session,
        code: RefusalCode,
        wall_ms: u64,
    ) {
        let view = session.ended_view(&id, code, wall_ms);
        if session.edge && session.accepted {
            let SessionView { caller, callee, service, .. } = &view;
            tracing::info!(session = %id, %caller, %callee, %service, %code, "session ended");
        } else if session.edge {
            self.refusals.say(&view, wall_ms);
        }
        self.remember(id, view.clone());
        let finished = Finished { view, session: id, code, edge: session.edge };
        self.outputs.push_back(Output::Finished(Box::new(finished)));
    }

    /// A running or ended session.
    pub fn view(&self, session: &SessionId) -> Option<SessionView> {
        let running = self.session_by_id.get(session).map(|one| one.view(session));
        running.or_else(|| self.ended.get(session).cloned())
    }

    /// The last call from one terminal to another that this relay has in mind, for this service where one is given.
    /// Of running ones it looks at those of the connection `of` alone, which are bounded.
    pub fn last_between(
        &self,
        of: Option<ConnId>,
        caller: &TerminalId,
        callee: &TerminalId,
        service: Option<&ServiceName>,
    ) -> Option<SessionView> {
        let hops = of.and_then(|conn| self.hops_by_neighbour.get(&Neighbour::Terminal(conn)));
        let running = hops.into_iter().flatten().filter_map(|hop| {
            let session = self.session_by_id.get(&hop.session)?;
            Some((hop.session, session))
        });
        let is_it = |a: &TerminalId, b: &TerminalId, s: &ServiceName| {
            a == caller && b == callee && service.is_none_or(|service| service == s)
        };
        let running = running
            .filter(|(_, session)| is_it(&session.caller, &session.callee, &session.service))
            .max_by_key(|(_, session)| session.started_ms)
            .map(|(id, session)| session.view(&id));
        let ended = self.ended.values();
        let ended = ended
            .filter(|view| is_it(&view.caller, &view.callee, &view.service))
            .max_by_key(|view| view.started_at)
            .cloned();
        running.into_iter().chain(ended).max_by_key(|view| view.started_at)
    }

    /// A page of running and ended sessions, ordered by id, and behind which the next begins. Looks at no more than
    /// [`limits::PAGE_SCAN`] of them, so it may hold fewer than `limit` although more follow.
    pub fn page(
        &self,
        state: Option<SessionState>,
        after: Option<SessionId>,
        limit: usize,
    ) -> (Vec<SessionView>, Option<SessionId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let bounds = (after.map_or(Unbounded, Excluded), Unbounded);
        let mut running = self.session_by_id.range(bounds).peekable();
        let mut ended = self.ended.range(bounds).peekable();
        let mut items = Vec::new();
        let mut last = None;
        for _ in 0..limits::PAGE_SCAN {
            let running_next = match (running.peek(), ended.peek()) {
                (Some((one, _)), Some((other, _))) => one < other,
                (one, _) => one.is_some(),
            };
            if running_next {
                let Some((id, session)) = running.next() else { break };
                last = Some(*id);
                if state.is_none_or(|wanted| wanted == session.state()) {
                    items.push(session.view(id));
                }
            } else {
                let Some((id, view)) = ended.next() else { break };
                last = Some(*id);
                if state.is_none_or(|wanted| wanted == SessionState::Ended) {
                    items.push(view.clone());
                }
            }
            if items.len() == limit {
                break;
            }
        }
        let more = running.peek().is_some() || ended.peek().is_some();
        (items, last.filter(|_| more))
    }

    /// A call that was refused here, before it went anywhere, is shown as one that ended; the ledger takes no more of
    /// them than [`limits::REFUSED_CALLS_KEPT_PER_SECOND`].
    pub(super) fn remember_refused(
        &mut self,
        caller: &TerminalId,
        call: &control::Call,
        code: RefusalCode,
        now: Instant,
        wall_ms: u64,
    ) {
        let id = call.session;
        let is_known = self.session_by_id.contains_key(&id) || self.ended.contains_key(&id);
        if id.edge != self.own || is_known {
            return;
        }
        let view = SessionView {
            id: id.to_string(),
            caller: caller.clone(),
            callee: call.target.clone(),
            service: call.service.clone(),
            state: SessionState::Ended,
            started_at: wall_ms,
            ended_at: Some(wall_ms),
            reason: Some(code.to_string()),
            route: Vec::new(),
            path: "relayed".to_owned(),
            bytes_to_callee: 0,
            packets_to_callee: 0,
            bytes_to_caller: 0,
            packets_to_caller: 0,
        };
        self.refusals.say(&view, wall_ms);
        self.remember(id, view.clone());
        let (rate, burst) =
            (limits::REFUSED_CALLS_KEPT_PER_SECOND, limits::REFUSED_CALLS_KEPT_AT_ONCE);
        let kept = self.refused_kept.get_or_insert_with(|| Bucket::full(burst, now));
        if kept.take(rate, burst, now) {
            let finished = Finished { view, session: id, code, edge: true };
            self.outputs.push_back(Output::Finished(Box::new(finished)));
        }
    }

    fn remember(&mut self, session: SessionId, view: SessionView) {
        self.changed.push_back(session);
        if self.ended.insert(session, view).is_none() {
            self.ended_order.push_back(session);
        }
        while self.ended_order.len() > limits::ENDED_SESSIONS_SHOWN_BY_RELAY {
            if let Some(oldest) = self.ended_order.pop_front()
                && self.ended.remove(&oldest).is_some()
            {
                self.changed.push_back(oldest);
            }
        }
    }
}
