//! Why a call works or does not, and what became of one (issue: operators know why a call failed).
//!
//! What decides on a call, in this order, and who knows it:
//!
//! | what | known to |
//! |---|---|
//! | where caller and target are ([`Decider::Caller`], [`Decider::Target`]) | every relay, by its table |
//! | whether a route of at most 16 relays leads there ([`Decider::Route`]) | every relay, by the links of all |
//! | whether the target offers the service to the caller ([`Decider::TargetAgent`]) | the target's agent alone |
//!
//! So an explanation says what relays know, and for the rest how the last such call ended.

mod direct;
#[cfg(test)]
mod tests;

use serde::Serialize;
use tasuki_proto::view::TerminalView;
use tasuki_proto::{Refusal, RefusalCode, RelayId, RelayName, ServiceName, SessionId, TerminalId};

use super::admin::{AdminReply, SessionState, SessionView};
use super::{Output, Relay};
use direct::Seen;

/// Why a call would or would not work; or what became of one, where a session was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Explanation {
    /// Whether the relays would carry the call to its target.
    pub allowed: bool,
    /// The code that the call would be refused with; of a session that is over: the one that it ended with.
    pub code: Option<String>,
    /// Which state or rule decides.
    pub why: String,
    /// What to do about it; empty where there is nothing to do.
    pub advice: String,
    /// Who or what decides.
    pub decided_by: Decider,
    /// What the call is for, where that was said.
    pub service: Option<ServiceName>,
    /// The caller, as the table shows it; `None` where the table does not.
    pub caller: Option<TerminalView>,
    /// The target, likewise.
    pub callee: Option<TerminalView>,
    /// The route it would take; of a session: the one that it takes, or took last.
    pub route: Vec<RelayName>,
    /// The links of the route, from the caller's relay on.
    pub hops: Vec<Hop>,
    /// Their round-trip times together, µs; `None` where one of them is not linked.
    pub rtt_us: Option<u64>,
    /// Whether the terminals could reach each other without relays.
    pub direct: Option<Direct>,
    /// The session that was asked about.
    pub session: Option<SessionView>,
    /// The last call like this one that this relay has seen.
    pub last_call: Option<SessionView>,
}

/// Who or what decides on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decider {
    /// The caller's state.
    Caller,
    /// The target's state.
    Target,
    /// Whether there is a route.
    Route,
    /// The target's agent, by its `--expose` and `--allow`.
    #[default]
    TargetAgent,
    /// It is decided: the session's code says how.
    Session,
}

/// A link of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// The end that is nearer to the caller.
    pub from: RelayName,
    /// The other end.
    pub to: RelayName,
    /// Round-trip time in µs, in steps of 25 %; `None` where the two are not linked at the moment.
    pub rtt_us: Option<u32>,
    /// Whether the relay at the far end takes no new terminals.
    pub draining: bool,
}

/// Whether two terminals can reach each other without relays, as far as relays know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Direct {
    /// How likely it is.
    pub possible: Possible,
    /// What that is judged by.
    pub why: String,
}

/// How likely a direct path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Possible {
    /// Nothing that relays see speaks against it.
    Likely,
    /// What relays see is not enough to say.
    Unknown,
    /// What relays see speaks against it.
    Unlikely,
}

impl Relay {
    /// Explains a call between two terminals.
    pub(super) fn explain(
        &mut self,
        caller: &TerminalId,
        target: &TerminalId,
        service: Option<&ServiceName>,
    ) -> Explanation {
        let seen = [caller, target].map(|id| Seen::of(&self.places_of(id)));
        let mut out = Explanation {
            service: service.cloned(),
            caller: self.terminal_view(caller),
            callee: self.terminal_view(target),
            last_call: self.last_call(caller, target, service),
            ..Explanation::default()
        };
        let refuse = |out: Explanation, decided_by, refusal: Refusal| {
            let who = Who { caller, callee: target, service };
            let (why, advice) = who.about(refusal.code, decided_by);
            let code = Some(refusal.code.to_string());
            Explanation { code, why, advice, decided_by, ..out }
        };
        let caller_at = match self.where_is(caller, RefusalCode::UnknownTerminal) {
            Ok(relay) => relay,
            Err(refusal) => return refuse(out, Decider::Caller, refusal),
        };
        if caller == target {
            return refuse(out, Decider::Target, RefusalCode::SelfCall.into());
        }
        let target_at = match self.where_is(target, RefusalCode::UnknownTarget) {
            Ok(relay) => relay,
            Err(refusal) => return refuse(out, Decider::Target, refusal),
        };
        out.direct = Some(direct::judge([(caller, &seen[0]), (target, &seen[1])]));
        let Some(route) = self.routes.route(caller_at, target_at) else {
            // Both relays can be reached from here, so a way leads there: it is too long.
            return refuse(out, Decider::Route, RefusalCode::HopLimit.into());
        };
        out.allowed = true;
        out.set_route(self, &route);
        out.why = match service {
            Some(service) => format!(
                "both are logged in and a route leads there; whether {target} offers {service} to {caller} is \
                 decided by its own --expose and --allow, which relays do not know"
            ),
            None => format!(
                "both are logged in and a route leads there; what {target} offers to {caller} is decided by its \
                 own --expose and --allow, which relays do not know"
            ),
        };
        out
    }

    /// Answers about a session that this relay has in mind; asks the ledger about others.
    pub(super) fn handle_ask_session(&mut self, ticket: u64, session: SessionId, explain: bool) {
        match self.sessions.view(&session) {
            Some(view) => self.answer_session(ticket, session, explain, Some(view)),
            None => self.outputs.push_back(Output::AskLedger { ticket, session, explain }),
        }
    }

    /// Answers about a session, `found` here or in the ledger.
    pub(super) fn answer_session(
        &mut self,
        ticket: u64,
        session: SessionId,
        explain: bool,
        found: Option<SessionView>,
    ) {
        let reply = match found {
            Some(view) if explain => AdminReply::Explanation(Box::new(self.explain_session(view))),
            Some(view) => AdminReply::Session(Box::new(view)),
            None => AdminReply::Refused(self.unknown_session(&session)),
        };
        self.outputs.push_back(Output::Reply(ticket, Box::new(reply)));
    }

    /// That there is no such session here, and where it may be known.
    pub(super) fn unknown_session(&self, session: &SessionId) -> Refusal {
        let detail = match self.directory.name_of(session.edge) {
            Some(edge) if session.edge != self.own => {
                format!("{session} began at relay {edge}, and did not come by here: ask there")
            }
            Some(_) => format!("{session} began here, and is too old or never was"),
            None => session.to_string(),
        };
        Refusal::new(RefusalCode::UnknownSession, detail)
    }

    /// What became of a session, and what would become of the same call.
    fn explain_session(&mut self, session: SessionView) -> Explanation {
        let (caller, callee, service) =
            (session.caller.clone(), session.callee.clone(), session.service.clone());
        let mut out = self.explain(&caller, &callee, Some(&service));
        if out.last_call.as_ref().is_some_and(|last| last.id == session.id) {
            out.last_call = None;
        }
        let route: Vec<RelayId> = session.route.iter().map(|name| self.id_of(name)).collect();
        out.set_route(self, &route);
        out.route.clone_from(&session.route);
        let who = Who { caller: &caller, callee: &callee, service: Some(&service) };
        out.decided_by = Decider::Session;
        (out.code, out.why, out.advice) = match (&session.reason, session.state) {
            (Some(word), _) => {
                let code = RefusalCode::ALL.iter().find(|code| code.word() == word);
                let code = code.copied().unwrap_or(RefusalCode::Other(0));
                let (why, advice) = who.about(code, Decider::Session);
                (Some(word.clone()), why, advice)
            }
            (None, SessionState::Calling) => (
                None,
                format!("{callee} was called and has not answered yet"),
                "wait up to 10 s".to_owned(),
            ),
            (None, _) => (
                None,
                format!("the session runs; {callee} took the call"),
                "'tasuki-agent paths' at either terminal says which way it takes, and why"
                    .to_owned(),
            ),
        };
        out.session = Some(session);
        out
    }

    /// Where relays see a terminal: which relay, and the address there.
    fn places_of(&self, terminal: &TerminalId) -> Vec<std::net::SocketAddr> {
        let locations = self.directory.locations(self.gossip.table(), terminal);
        locations.into_iter().map(|location| location.address).collect()
    }

    fn last_call(
        &self,
        caller: &TerminalId,
        callee: &TerminalId,
        service: Option<&ServiceName>,
    ) -> Option<SessionView> {
        let conn = self.login.conn_of(caller).or_else(|| self.login.conn_of(callee));
        self.sessions.last_between(conn, caller, callee, service)
    }
}

impl Explanation {
    fn set_route(&mut self, relay: &Relay, route: &[RelayId]) {
        let name = |id: &RelayId| relay.directory.name_of(*id);
        self.route = route.iter().filter_map(name).collect();
        self.hops = route
            .windows(2)
            .filter_map(|pair| {
                Some(Hop {
                    from: name(&pair[0])?,
                    to: name(&pair[1])?,
                    rtt_us: relay.routes.link_rtt_us(pair[0], pair[1]),
                    draining: relay.directory.load(pair[1]).draining,
                })
            })
            .collect();
        self.rtt_us = self.hops.iter().map(|hop| hop.rtt_us.map(u64::from)).sum();
    }
}

/// Whose call it is.
struct Who<'a> {
    caller: &'a TerminalId,
    callee: &'a TerminalId,
    service: Option<&'a ServiceName>,
}

impl Who<'_> {
    /// What a code means for this call, and what to do about it, with names where the code's own advice has none.
    fn about(&self, code: RefusalCode, decider: Decider) -> (String, String) {
        let Self { caller, callee, .. } = self;
        let service = self.service.map_or("SERVICE", ServiceName::as_str);
        let terminal = if decider == Decider::Caller { caller } else { callee };
        let (means, to_do) = code.advice().split_once("; ").unwrap_or((code.advice(), ""));
        let (means, to_do) = (means.to_owned(), to_do.to_owned());
        match code {
            RefusalCode::UnknownTarget | RefusalCode::UnknownTerminal => (
                format!("no terminal of this mesh is called {terminal}"),
                "'tasuki-relay terminals' lists them; 'tasuki-relay token terminal NAME' registers one".to_owned(),
            ),
            RefusalCode::TargetLoggedOut => (
                format!("{terminal} is registered but not logged in"),
                format!("start its agent; on {terminal}, 'tasuki-agent status' says why it does not log in"),
            ),
            RefusalCode::TargetUnreachable => (
                format!("{terminal} is attached to relays that cannot be reached from here"),
                "see 'tasuki-relay relays' for what is down, and start it or mend its network".to_owned(),
            ),
            RefusalCode::NoAnswer => (
                format!("{callee} did not answer within 10 s"),
                format!("see whether the agent of {callee} hangs: on it, 'tasuki-agent status'"),
            ),
            RefusalCode::ServiceNotExposed => (
                format!("{callee} does not offer {service}"),
                format!(
                    "on {callee}: run the agent with --expose {service}=tcp://HOST:PORT --allow {service}={caller}"
                ),
            ),
            RefusalCode::CallerNotAllowed => (
                format!("{callee} does not open {service} to {caller}"),
                format!("on {callee}: run the agent with --allow {service}={caller}"),
            ),
            RefusalCode::Busy => (
                "a limit on calls or sessions was met, at a terminal or a relay on the way".to_owned(),
                format!(
                    "see how many sessions {caller} and {callee} have ('tasuki-relay terminals'), end some, or call \
                     again later"
                ),
            ),
            RefusalCode::HopLimit => (
                "every route between their relays is longer than 16 relays".to_owned(),
                "add links: see --links of 'tasuki-relay run'".to_owned(),
            ),
            RefusalCode::PeerNotProven => (
                format!("the other side did not prove to be {callee} within 10 s"),
                format!("see the agents' logs on {caller} and {callee}; a lossy way can cause it too: call again"),
            ),
            RefusalCode::ServiceDown => (
                format!("{callee} cannot reach what is behind {service}"),
                format!("on {callee}: see whether the service runs at the address given with --expose"),
            ),
            _ => (means, to_do),
        }
    }
}
