//! What operators are answered.

use std::collections::BTreeMap;
use std::time::Instant;

use tasuki_proto::view::TerminalView;
use tasuki_proto::{Refusal, RefusalCode, RelayId, RelayName, SessionId, TerminalId, version};

use super::admin::{AdminReply, AdminRequest, ForwardedView, LinkView, Percentiles, StatusView};
use super::directory::Lookup;
use super::sessions;
use super::{Output, Relay, links, login};

impl Relay {
    pub(super) fn handle_admin(
        &mut self,
        ticket: u64,
        request: AdminRequest,
        now: Instant,
        wall_ms: u64,
    ) {
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(Box::new(self.status(now, wall_ms))),
            AdminRequest::Relays => AdminReply::Relays(self.directory.relays()),
            AdminRequest::Terminals { filter, after, limit } => {
                let table = self.gossip.table();
                let (items, next) = self.directory.list(table, &filter, after.as_ref(), limit);
                AdminReply::Terminals(items, next)
            }
            AdminRequest::Terminal(id) => match self.terminal_view(&id) {
                Some(view) => AdminReply::Terminal(Box::new(view)),
                None => refused(RefusalCode::UnknownTarget, id.as_str()),
            },
            AdminRequest::Sessions { state, after, limit } => {
                let (items, next) = self.sessions.page(state, after, limit);
                AdminReply::Sessions(items, next)
            }
            AdminRequest::Session(id) => return self.handle_ask_session(ticket, id, false),
            AdminRequest::ExplainSession(id) => return self.handle_ask_session(ticket, id, true),
            AdminRequest::Summary { after } => self.summary(after.as_ref()),
            AdminRequest::TerminalHistory(id) => self.terminal_history(&id),
            AdminRequest::RelayHistory(name) => self.relay_history(&name),
            AdminRequest::Changes(after) => AdminReply::Changes(Box::new(self.changed(after))),
            AdminRequest::EndSession(id) => self.end_session(id, now, wall_ms),
            AdminRequest::KickTerminal(id) => self.kick_terminal(id, now, wall_ms),
            AdminRequest::KickRelay(name) => self.kick_relay(name, now),
            AdminRequest::Drain(end_within) => {
                self.drain(end_within, now);
                AdminReply::Done
            }
            AdminRequest::Undrain => match self.undrain() {
                Ok(()) => AdminReply::Done,
                Err(refusal) => AdminReply::Refused(refusal),
            },
            AdminRequest::Explain { caller, target, service } => {
                let explanation = self.explain(&caller, &target, service.as_ref());
                AdminReply::Explanation(Box::new(explanation))
            }
        };
        // Whoever hears that it is done hears it behind what is to be kept of it.
        self.settle(now, wall_ms);
        self.outputs.push_back(Output::Reply(ticket, Box::new(reply)));
    }

    pub(super) fn terminal_view(&mut self, id: &TerminalId) -> Option<TerminalView> {
        self.directory.terminal_view(self.gossip.table(), id)
    }

    fn status(&self, now: Instant, wall_ms: u64) -> StatusView {
        let mut links: Vec<LinkView> = self
            .link_by_relay
            .values()
            .filter_map(|link| self.peers.get(link))
            .map(|peer| LinkView {
                relay: peer.name.clone(),
                rtt_us: peer.rtt_us,
                address: peer.address.to_string(),
                since: peer.since_ms,
            })
            .collect();
        links.sort_by(|a, b| a.relay.cmp(&b.relay));
        let mut lags: Vec<u32> = self.lag_ms.iter().copied().collect();
        lags.sort_unstable();
        let at = |share: f64| {
            let index = (lags.len() as f64 * share) as usize;
            lags.get(index.min(lags.len().saturating_sub(1))).copied().map_or(0.0, f64::from)
        };
        StatusView {
            id: self.own.to_string(),
            name: self.config.name.clone(),
            mesh: self.config.mesh.to_string(),
            version: version::SOFTWARE.to_owned(),
            incarnation: self.gossip.incarnation().0,
            uptime_s: wall_ms.saturating_sub(self.config.started_ms) / 1000,
            registrar: self.config.registrar,
            draining: self.login.is_draining(),
            ends_in_s: self.ends_at.map(|at| at.saturating_duration_since(now).as_secs()),
            not_ready: self.not_ready(),
            links,
            twins: self.twins.views(now),
            reachable_from_outside: self.selftest.views(),
            terminals: self.login.len(),
            sessions: self.sessions.len(),
            forwarded: ForwardedView::default(),
            certificate_until: 0,
            renewal: None,
            renewal_failures: 0,
            labels: 0,
            connections: 0,
            handshakes: 0,
            handshakes_refused: 0,
            table: self.directory.table_view(self.gossip.table()),
            gossip_lag_ms: Percentiles { p50: at(0.5), p99: at(0.99) },
            gossip: self
                .gossip
                .counters()
                .by_name()
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            direct: self.sessions.direct(),
            drops: self.drops(),
        }
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let forged = ("attachments-forged", self.directory.forged_attachments());
        let refused = self.login.refused().into_iter().chain(self.sessions.refused());
        let all = refused.chain([forged]);
        all.map(|(reason, count)| (reason.to_owned(), count)).collect()
    }

    /// Why this relay takes no terminals, where it does not.
    fn not_ready(&self) -> Option<String> {
        if self.login.is_draining() {
            return Some("draining".to_owned());
        }
        if self.has_given_way() {
            let why = "another process with this relay's identity is linked in its place";
            return Some(why.to_owned());
        }
        if self.links.is_cut_off() {
            return Some("linked with none of the relays that it should be".to_owned());
        }
        if self.directory.account_of_relay(self.own).is_none() {
            return Some("the table has not arrived".to_owned());
        }
        None
    }

    fn end_session(&mut self, id: SessionId, now: Instant, wall_ms: u64) -> AdminReply {
        if !self.sessions.contains(&id) {
            return AdminReply::Refused(self.unknown_session(&id));
        }
        self.sessions.handle(sessions::Input::EndByOperator(id), now, wall_ms);
        AdminReply::Done
    }

    fn kick_terminal(&mut self, id: TerminalId, now: Instant, wall_ms: u64) -> AdminReply {
        if self.login.conn_of(&id).is_some() {
            self.login.handle(login::Input::Kick(id), now, wall_ms);
            return AdminReply::Done;
        }
        match self.terminal_view(&id) {
            None => refused(RefusalCode::UnknownTarget, id.as_str()),
            Some(view) if view.attachments.is_empty() => {
                refused(RefusalCode::TargetLoggedOut, id.as_str())
            }
            Some(view) => {
                let relays = view.attachments.iter().map(|attachment| attachment.relay.as_str());
                let relays = relays.collect::<Vec<_>>().join(" and ");
                let detail = format!("{id} is attached to {relays}: run it there");
                refused(RefusalCode::BadRequest, &detail)
            }
        }
    }

    fn kick_relay(&mut self, name: RelayName, now: Instant) -> AdminReply {
        if !self.link_by_relay.contains_key(&self.id_of(&name)) {
            return refused(RefusalCode::BadRequest, &format!("there is no link with {name}"));
        }
        self.links.handle(links::Input::Kick(name), now);
        AdminReply::Done
    }
}

impl Relay {
    /// The relay that a terminal is attached to.
    pub(super) fn where_is(
        &mut self,
        terminal: &TerminalId,
        unknown: RefusalCode,
    ) -> Result<RelayId, Refusal> {
        let code = match self.directory.lookup(self.gossip.table(), terminal) {
            Lookup::At(location) => return Ok(location.relay),
            Lookup::Unknown => unknown,
            Lookup::NotYetKnown => RefusalCode::NotYetKnown,
            Lookup::LoggedOut => RefusalCode::TargetLoggedOut,
            Lookup::Unreachable => RefusalCode::TargetUnreachable,
        };
        Err(Refusal::new(code, terminal.as_str()))
    }
}

pub(super) fn refused(code: RefusalCode, detail: &str) -> AdminReply {
    AdminReply::Refused(Refusal::new(code, detail))
}
