//! The paths of sessions (architecture 8, D1): two over relays where the mesh has them, direct ones where the NATs let
//! them, and which of them carries the data. Pure: time, randomness and what was heard come in.
//!
//! **Probes.** Every path is probed end to end ([`tasuki_proto::path`]): the one in use every [`HELLO`] while the session
//! moves data, others every [`STANDBY_PACE`], all of them every [`IDLE_PACE`] while it rests. A path is *suspect* after
//! three probes without an answer.
//!
//! **When the path in use is suspect**, data takes the best other path too, beginning with what was sent last; when that
//! one answers, or after a second, the data moves there. When the suspect one answers first, nothing moved. A path that
//! a relay says is lost is left at once.
//!
//! **A path that passes probes and drops data** is left too (`stall`): acknowledged data that makes no progress while data
//! is in flight is suspicion, whatever the probes say.
//!
//! **Proof.** A probe counts for a path only if it returns a number that this end sent by this path
//! ([`tasuki_proto::path`]): copies, reflections and replays prove nothing, and keep no path alive.
//!
//! **Epochs.** Each move takes the next epoch and is told in probes; who hears of a newer one follows, since only one
//! side may see the failure. Moves for a *better* path are the caller's alone, so that two opinions never fight.
//!
//! **Relayed paths.** The caller has two where it or the callee is attached twice (`ask`); the callee takes what comes.
//! A path that stays suspect for [`GIVE_UP`] while another works is given up, and another is asked for. While no path
//! works, paths are asked for until [`Config::resume_time`] is over: then the session ends, on both sides.
//!
//! **Draining** (`drain`). A path over a relay that begins to drain is left within [`DRAIN_JITTER`], at random, like one
//! over an attachment that is left: the data moves to a path that stays, the caller asks for another that keeps away from
//! that relay, and then gives up the one that was left.
//!
//! **Direct paths** (`direct`) are used once they are proven, if they are about as near as the relayed one, and left when
//! they go quiet or get worse; the relayed paths stay.
//!
//! **Packet sizes.** Padded probes show what each path carries. Packets that a path may not carry are not begun with while
//! another works, and a path that cannot carry what the session sends is taken only in need.

mod ask;
mod counts;
mod direct;
mod drain;
mod event;
mod health;
mod session;
mod stall;
mod targets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::frame::HEAD;
use tasuki_proto::path::NatKind;
use tasuki_proto::session::{Attachments, Nat, Word};
use tasuki_proto::{Generation, RefusalCode, RelayName, ServiceName, SessionId, limits};

pub use counts::{DirectCounts, DirectFailures, DirectOutcomes};
pub use event::{Candidate, DataCounts, Heard, Input, Output, PathId, PathInfo, Standing};
use session::{Session, Terminal};
use targets::Targets;

use crate::core::login::AttachId;

/// From one probe of the path in use to the next, while the session moves data.
pub const HELLO: Duration = Duration::from_millis(50);
/// A session that is younger has its first path and nothing else. Short calls cost no more than that; a bulk session may
/// lose its relay in its first tenth of a second.
pub const SETTLE: Duration = Duration::from_millis(50);
/// From one probe of another path to the next, while the session moves data.
pub const STANDBY_PACE: Duration = Duration::from_secs(1);
/// From one probe of any path to the next, while the session rests.
pub const IDLE_PACE: Duration = Duration::from_secs(10);
/// A session rests when it sent nothing for this long.
pub const BUSY: Duration = Duration::from_secs(5);
/// A path that is suspect for this long while another works is given up.
pub const GIVE_UP: Duration = Duration::from_secs(3);
/// How long data stays on a path at least before it moves to one that is merely better, and how long that one has to be.
pub const DWELL: Duration = Duration::from_secs(3);
/// Paths over a relay that drains are left within this time, at random.
pub const DRAIN_JITTER: Duration = Duration::from_secs(2);
/// Busy sessions of a terminal above which each is probed more seldom, so that all together send at most a thousand
/// probes a second.
const BUSY_SESSIONS: u32 = 50;
/// The length of a frame that every path is expected to carry: the 1,444 bytes of a packet, and its head.
const PLAIN_FRAME: usize = 1_444 + HEAD;

/// What does not change.
#[derive(Debug, Clone)]
pub struct Config {
    /// How long a session without a path waits for one.
    pub resume_time: Duration,
    /// How long the answer to one question for a path may take.
    pub answer_time: Duration,
    /// Whether this terminal takes direct paths.
    pub direct: bool,
    /// Sessions that were called for one of these, by either side, take none.
    pub never_direct: BTreeSet<ServiceName>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            resume_time: limits::RESUME_TIME,
            answer_time: Duration::from_secs(2),
            direct: true,
            never_direct: BTreeSet::new(),
        }
    }
}

/// The paths of all sessions of one terminal.
#[derive(Debug)]
pub struct Paths {
    config: Config,
    rng: SmallRng,
    standing: Vec<Standing>,
    candidates: Vec<Candidate>,
    nat: NatKind,
    /// Relays that drain.
    draining: BTreeSet<RelayName>,
    session_by_id: BTreeMap<SessionId, Session>,
    due: BTreeSet<(Instant, SessionId)>,
    busy: u32,
    counts: DirectCounts,
    targets: Targets,
    outputs: VecDeque<Output>,
}

impl Paths {
    /// No session, no attachment.
    pub fn new(config: Config, rng: SmallRng) -> Self {
        Self {
            config,
            rng,
            standing: Vec::new(),
            candidates: Vec::new(),
            nat: NatKind::Unknown,
            draining: BTreeSet::new(),
            session_by_id: BTreeMap::new(),
            due: BTreeSet::new(),
            busy: 0,
            counts: DirectCounts::default(),
            targets: Targets::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`Paths::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Attachments(standing) => self.handle_attachments(standing, now),
            Input::Candidates(candidates) => self.handle_candidates(candidates, now),
            Input::Nat(kind) => self.handle_nat(kind, now),
            Input::Draining(draining) => self.handle_draining(draining, now),
            Input::Opened { opened, attach } => {
                let standing = self.standing.iter().find(|one| one.attach == attach);
                let id = opened.session;
                match standing {
                    Some(standing) => {
                        let session = Session::new(opened, standing, &self.config, now);
                        self.session_by_id.insert(id, session);
                    }
                    None => {
                        let code = RefusalCode::RouteLost;
                        self.outputs.push_back(Output::Failed { session: id, code });
                    }
                }
            }
            Input::Proven { session, most, rtt } => {
                self.with(session, now, |s, _| s.set_proven(most, rtt, now));
            }
            Input::Closed(id) => {
                let Some(session) = self.session_by_id.remove(&id) else { return };
                self.busy -= u32::from(session.is_busy());
                self.counts.over(&session.direct);
                if let Some(due) = session.due {
                    self.due.remove(&(due, id));
                }
            }
            Input::Resuming { attach, resuming } => {
                let (id, generation) = (resuming.session, resuming.generation);
                if self.session_by_id.contains_key(&id) {
                    self.with(id, now, |s, t| s.take_path(attach, resuming, now, t));
                } else {
                    self.disown(attach, id, generation);
                }
            }
            Input::Resumed { attach, resumed } => {
                let (id, generation) = (resumed.session, resumed.generation);
                if self.session_by_id.contains_key(&id) {
                    self.with(id, now, |s, t| s.resumed(attach, resumed, now, t));
                } else {
                    self.disown(attach, id, generation);
                }
            }
            Input::PathEnded(end) => {
                self.with(end.session, now, |s, t| s.path_ended(&end, now, t));
            }
            Input::Heard { session, heard, probe, at } => {
                self.with(session, now, |s, t| s.heard(heard, probe, at, now, t));
            }
            Input::Busy(session) => self.with(session, now, |s, _| s.set_busy(now)),
            Input::Mtu { session, mtu } => self.with(session, now, |s, _| s.set_mtu(mtu)),
            Input::Data { session, data } => self.with(session, now, |s, t| {
                s.measured(data, now, t);
            }),
            Input::PeerAddresses(session, addresses) => {
                self.with(session, now, |s, t| s.peer_addresses(addresses, now, t));
            }
            Input::PeerAttachments(session, said) => {
                self.with(session, now, |s, t| {
                    let known = std::mem::take(&mut s.peer_relays);
                    s.peer_relays = said.relays.into_iter().take(2).collect();
                    s.ask.anew();
                    if known.is_empty() {
                        // The call's own path may take a relay that drains.
                        s.relays_drain(t.draining, now, t);
                        return;
                    }
                    let fresh = s.peer_relays.iter().filter(|relay| !known.contains(relay));
                    s.ask.trust(&fresh.cloned().collect::<Vec<_>>());
                });
            }
            Input::PeerNat(session, kind) => {
                self.with(session, now, |s, _| s.direct.peer_nat = kind);
            }
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

    /// The present path of a session.
    pub fn info(&self, session: SessionId) -> Option<PathInfo> {
        Some(self.session_by_id.get(&session)?.info(self.config.direct))
    }

    /// What was done for direct paths since the start.
    pub fn counts(&self) -> DirectCounts {
        self.counts.clone()
    }

    /// Runs `act` on a session, and then what is due there.
    fn with(
        &mut self,
        id: SessionId,
        now: Instant,
        act: impl FnOnce(&mut Session, &mut Terminal<'_>),
    ) {
        let Some(session) = self.session_by_id.get_mut(&id) else { return };
        let hello = HELLO * (self.busy / BUSY_SESSIONS + 1);
        let mut terminal = Terminal {
            config: &self.config,
            standing: &self.standing,
            candidates: &self.candidates,
            nat: self.nat,
            draining: &self.draining,
            hello,
            rng: &mut self.rng,
            counts: &mut self.counts,
            targets: &mut self.targets,
            out: &mut self.outputs,
        };
        let (before, was_busy) = (session.due, session.is_busy());
        act(session, &mut terminal);
        session.step(now, &mut terminal);
        match (was_busy, session.is_busy()) {
            (false, true) => self.busy += 1,
            (true, false) => self.busy = self.busy.saturating_sub(1),
            _ => {}
        }
        if before != session.due {
            if let Some(due) = before {
                self.due.remove(&(due, id));
            }
            if let Some(due) = session.due {
                self.due.insert((due, id));
            }
        }
    }

    /// A path came for a session that is over here: nobody keeps it.
    fn disown(&mut self, attach: AttachId, session: SessionId, generation: Generation) {
        let code = RefusalCode::UnknownSession;
        let end = control::PathEnd { session, generation, code };
        self.outputs.push_back(Output::Say(attach, ToRelay::EndPath(end)));
    }

    fn all(&self) -> Vec<SessionId> {
        self.session_by_id.keys().copied().collect()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let mut due = Vec::new();
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            due.push(id);
        }
        for id in due {
            self.with(id, now, |_, _| {});
            // A step that ended where it began was taken out above.
            if let Some(at) = self.session_by_id.get(&id).and_then(|session| session.due) {
                self.due.insert((at, id));
            }
        }
    }

    /// The relays of a terminal, as its peers are told.
    fn relays(&self) -> Vec<RelayName> {
        let stays = self.standing.iter().filter(|one| !one.leaving);
        stays.map(|one| one.relay.clone()).collect()
    }

    fn handle_attachments(&mut self, standing: Vec<Standing>, now: Instant) {
        if standing == self.standing {
            return;
        }
        let before = self.relays();
        let known = std::mem::replace(&mut self.standing, standing);
        let is_fresh = |one: &&Standing| known.iter().all(|other| other.attach != one.attach);
        let fresh: Vec<&Standing> = self.standing.iter().filter(is_fresh).collect();
        let relays = self.relays();
        let changed = before != relays;
        let fresh: Vec<RelayName> = fresh.into_iter().map(|one| one.relay.clone()).collect();
        for id in self.all() {
            let word = Word::Attachments(Attachments { relays: relays.clone() });
            self.with(id, now, |session, t| {
                let gone: Vec<PathId> = session
                    .paths
                    .iter()
                    .filter(|(_, path)| {
                        let attach = path.attach();
                        attach.is_some_and(|a| t.standing.iter().all(|one| one.attach != a))
                    })
                    .map(|(id, _)| *id)
                    .collect();
                for path in gone {
                    session.last_code = RefusalCode::RouteLost;
                    session.remove(path, t);
                }
                session.ask.forget_gone(t.standing);
                session.ask.trust(&fresh);
                if session.is_begun() {
                    session.ask.anew();
                }
                if changed && session.is_begun() {
                    t.out.push_back(Output::Tell(session.id, word));
                }
            });
        }
    }

    fn handle_draining(&mut self, draining: BTreeSet<RelayName>, now: Instant) {
        if draining == self.draining {
            return;
        }
        let newly: BTreeSet<RelayName> = draining.difference(&self.draining).cloned().collect();
        // Where one drains no more, others may be left that could not be.
        let ceased = self.draining.difference(&draining).next().is_some();
        let leave = if ceased { draining.clone() } else { newly };
        self.draining = draining;
        for id in self.all() {
            self.with(id, now, |session, t| session.relays_drain(&leave, now, t));
        }
    }

    fn handle_nat(&mut self, nat: NatKind, now: Instant) {
        if nat == self.nat {
            return;
        }
        self.nat = nat;
        for id in self.all() {
            self.with(id, now, |session, t| {
                if session.is_begun() && !session.relayed_only {
                    t.out.push_back(Output::Tell(session.id, Word::Nat(Nat { kind: nat })));
                }
            });
        }
    }

    fn handle_candidates(&mut self, candidates: Vec<Candidate>, now: Instant) {
        let candidates = if self.config.direct { candidates } else { Vec::new() };
        if candidates == self.candidates {
            return;
        }
        self.candidates = candidates;
        for id in self.all() {
            self.with(id, now, |session, t| {
                session.offer_addresses(t);
                session.try_addresses(now, t);
            });
        }
    }
}
