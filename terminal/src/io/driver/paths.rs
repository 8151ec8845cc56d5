//! What the driver does for the paths of sessions.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tasuki_proto::control::{PathEnd, Ping, ToRelay};
use tasuki_proto::path::NatKind;
use tasuki_proto::session::Word;
use tasuki_proto::{Generation, Refusal, RefusalCode, ServiceName, SessionId, TerminalId, limits};

use super::{AttachId, Driver, Order, login, wall_ms};
use crate::core::calls::{self, Opened, RequestId};
use crate::core::candidates::candidates;
use crate::core::nat;
use crate::core::paths::{Input, Output, Standing};
use crate::io::portmap::{PortMap, Wanted};
use crate::io::socket::SocketEvent;

/// How long a relay may take to say that it lives, or four round trips where they are longer.
const DOUBT: Duration = Duration::from_millis(1_500);

impl Driver {
    pub(super) fn handle_socket(&mut self, event: SocketEvent) {
        let (address, now) = match &event {
            SocketEvent::Heard { session, .. } => (*session, Instant::now()),
            SocketEvent::Busy(session) => (*session, Instant::now()),
        };
        let Some(session) = self.sessions.session_at(address) else { return };
        let input = match event {
            SocketEvent::Heard { heard, probe, at, .. } => {
                Input::Heard { session, heard, probe, at }
            }
            SocketEvent::Busy(_) => Input::Busy(session),
        };
        self.paths.handle(input, now);
    }

    pub(super) fn handle_word(&mut self, session: SessionId, word: Word, now: Instant) {
        match word {
            Word::Use(said) => {
                let using = said.using;
                self.calls.handle(calls::Input::PeerUse { session, using }, now);
            }
            Word::Addresses(addresses) => {
                self.paths.handle(Input::PeerAddresses(session, addresses), now);
            }
            Word::Attachments(attachments) => {
                self.paths.handle(Input::PeerAttachments(session, attachments), now);
            }
            Word::Nat(nat) => self.paths.handle(Input::PeerNat(session, nat.kind), now),
        }
    }

    pub(super) fn perform_paths(&mut self, output: Output) {
        match &output {
            Output::Install { session, path, to, .. } => {
                tracing::debug!(%session, ?path, %to, "path installed");
            }
            Output::Remove { session, path } => tracing::debug!(%session, ?path, "path removed"),
            Output::Use { session, path, epoch } => {
                tracing::debug!(%session, ?path, epoch, "path in use");
            }
            Output::Duplicate { session, path } => {
                tracing::debug!(%session, ?path, "second path in use");
            }
            Output::Say(attach, message) => tracing::debug!(?attach, ?message, "said of a path"),
            _ => {}
        }
        match output {
            Output::Say(attach, message) => self.say(attach, message),
            Output::Failed { session, code } => self.fail(session, code),
            Output::Doubt(attach) => self.doubt(attach),
            // When it comes to a choice between paths, what each carries is held against what is sent then.
            Output::Watch(session) | Output::Install { session, .. } => {
                if let Some(mtu) = self.sessions.mtu(session) {
                    self.paths.handle(Input::Mtu { session, mtu }, Instant::now());
                }
                self.sessions.direct(output, wall_ms());
            }
            Output::Measure(session) => {
                if let Some(data) = self.sessions.data(session) {
                    self.paths.handle(Input::Data { session, data }, Instant::now());
                }
            }
            Output::Changed(session) => {
                if let Some(info) = self.paths.info(session) {
                    tracing::info!(%session, why = info.why, "path changed");
                }
            }
            output => self.sessions.direct(output, wall_ms()),
        }
    }

    /// A path over an attachment went quiet, perhaps since its relay died: far sooner than its own idle time tells, it
    /// says whether it lives.
    fn doubt(&mut self, attach: AttachId) {
        if self.doubted.contains_key(&attach) {
            return;
        }
        let Some(connection) = self.attachments.get(&attach).and_then(|a| a.connection.as_ref())
        else {
            return;
        };
        let patience = DOUBT.max(connection.rtt() * 4);
        self.doubted.insert(attach, Instant::now() + patience);
        self.say(attach, ToRelay::Ping(Ping { number: attach.0 }));
    }

    /// Attachments whose relays did not answer are lost.
    pub(super) fn give_up_doubted(&mut self, now: Instant) {
        while let Some((&attach, _)) = self.doubted.iter().find(|(_, until)| **until <= now) {
            self.doubted.remove(&attach);
            let refusal = Refusal::from(RefusalCode::Silent);
            if let Some(attachment) = self.forget(attach, RefusalCode::Silent) {
                let _ = attachment.orders.try_send(Order::Close(RefusalCode::Silent));
                self.login.handle(login::Input::Lost { attach, refusal }, now);
            }
        }
    }

    /// What the calls said because of what this attachment brought.
    pub(super) fn perform_answers(&mut self, via: AttachId) {
        while let Some(output) = self.calls.poll_output() {
            self.perform_calls(output, Some(via));
        }
    }

    /// Installs the first path of a session.
    pub(super) fn open(&mut self, opened: Opened, via: Option<AttachId>) {
        let attach = via.or_else(|| self.primary());
        let relay = attach
            .and_then(|attach| self.attachments.get(&attach)?.connection.clone())
            .map(|connection| connection.remote_address());
        let (Some(attach), Some(relay)) = (attach, relay) else {
            return self.fail(opened.session, RefusalCode::RouteLost);
        };
        self.calling.insert(opened.session, attach);
        self.sessions.open(opened.clone(), relay, wall_ms());
        self.paths.handle(Input::Opened { opened, attach }, Instant::now());
    }

    /// A relay says that a path is gone: before its peer is proven, a call has no other.
    pub(super) fn path_ended(&mut self, end: PathEnd, now: Instant) {
        let is_call = end.generation == Generation::CALL;
        if is_call && !self.sessions.is_proven(end.session) {
            self.calling.remove(&end.session);
            self.calls.handle(calls::Input::Unreached(end.session), now);
        } else {
            self.paths.handle(Input::PathEnded(end), now);
        }
    }

    /// The attachments changed: calls that were under way over one that is gone are made again.
    pub(super) fn attachments_changed(&mut self) {
        let now = Instant::now();
        let standing = self.standing();
        let gone: Vec<SessionId> = self
            .calling
            .iter()
            .filter(|(_, attach)| standing.iter().all(|one| one.attach != **attach))
            .map(|(session, _)| *session)
            .collect();
        let any = !standing.is_empty();
        self.paths.handle(Input::Attachments(standing), now);
        // An attachment may be another one since the machine has another address.
        self.look.notify_one();
        self.find_candidates();
        for session in gone {
            self.calling.remove(&session);
            self.calls.handle(calls::Input::Unreached(session), now);
        }
        if any || self.is_off() {
            for (_, request, target, service) in std::mem::take(&mut self.waiting) {
                // One that was answered meanwhile has no user to give a session to.
                if self.answers.contains_key(&request) {
                    self.call(request, target, service);
                }
            }
        }
    }

    /// The primary first, those that are being left last.
    pub(super) fn standing_attachments(&self) -> Vec<AttachId> {
        let stand = match &self.state {
            login::State::LoggedIn { primary, standby } => {
                [Some(primary.attach), standby.as_ref().map(|standby| standby.attach)]
            }
            _ => [None, None],
        };
        let mut all: Vec<AttachId> = stand.into_iter().flatten().collect();
        all.extend(self.login.leaving());
        all.retain(|attach| self.attachments.contains_key(attach));
        all
    }

    fn standing(&self) -> Vec<Standing> {
        let leaving: Vec<AttachId> = self.login.leaving().collect();
        self.standing_attachments()
            .into_iter()
            .filter_map(|attach| {
                let attachment = self.attachments.get(&attach)?;
                let (_, relay) = attachment.relay.clone()?;
                let address = attachment.connection.as_ref()?.remote_address();
                Some(Standing { attach, relay, address, leaving: leaving.contains(&attach) })
            })
            .collect()
    }

    /// Looks where this machine may be reached.
    pub(super) fn find_candidates(&mut self) {
        if !self.settings.paths.direct {
            return;
        }
        let (local, seen_as) = (self.sessions.local_addr(), self.seen_as());
        // Without them every address that relays see looks like a NAT's, and a gateway would be asked for nothing.
        let Some(interfaces) = &self.interfaces else { return };
        let mapped = self.port_map.as_ref().and_then(PortMap::mapped);
        let found = candidates(local.port(), interfaces, &seen_as, mapped);
        let kind = nat::guess(interfaces, &seen_as);
        self.paths.handle(Input::Nat(kind), Instant::now());
        self.paths.handle(Input::Candidates(found), Instant::now());
        if let Some(port_map) = &self.port_map {
            let outer = nat::outer(interfaces, &seen_as).map(SocketAddr::ip);
            let outer: BTreeSet<IpAddr> = outer.filter(IpAddr::is_ipv4).collect();
            let wanted = if outer.is_empty() { None } else { Wanted::new(local.port(), outer) };
            port_map.want(wanted);
        }
    }

    /// The addresses that the relays of the attachments see.
    fn seen_as(&self) -> Vec<SocketAddr> {
        let all = self.standing_attachments().into_iter();
        all.filter_map(|attach| self.attachments.get(&attach)?.seen_as).collect()
    }

    /// What the relays' views say about the NAT.
    pub(super) fn nat(&self) -> NatKind {
        let interfaces = self.interfaces.as_ref();
        interfaces.map_or(NatKind::Unknown, |own| nat::guess(own, &self.seen_as()))
    }

    /// No relay is tried, by the user's wish or since another process took over.
    fn is_off(&self) -> bool {
        matches!(self.state, login::State::LoggedOut | login::State::Parked(_))
    }

    /// A call that no relay is there for waits for one, as long as a call may take.
    pub(super) fn wait_to_call(
        &mut self,
        request: RequestId,
        target: TerminalId,
        service: ServiceName,
    ) {
        if !self.is_off() && self.waiting.len() < limits::SESSIONS_PER_TERMINAL {
            let until = Instant::now() + limits::CALL_TIMEOUT;
            self.waiting.push_back((until, request, target, service));
        } else {
            self.refuse_call(request);
        }
    }

    fn refuse_call(&mut self, request: RequestId) {
        let refusal = self.not_attached();
        self.calls.handle(calls::Input::Done(request), Instant::now());
        self.answer(request, Err(refusal));
    }

    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        while let Some((until, request, ..)) = self.waiting.front()
            && *until <= now
        {
            let request = *request;
            self.waiting.pop_front();
            self.refuse_call(request);
        }
    }
}
