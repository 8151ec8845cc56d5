//! How the caller of a session gets relayed paths for it (architecture 5): a second one over other relays, and another
//! in the place of one that was lost. The callee takes what is offered.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::{Generation, Label, RefusalCode, RelayName, limits};

use super::event::{Output, PathId, Standing};
use super::health::{Path, Way};
use super::session::{Session, Terminal};
use crate::core::login::AttachId;

/// The first wait after a path was refused or never worked; doubles each time.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// The longest.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the first answer may take while no path works; then another attachment is asked. Doubles with each
/// fourth failure.
const ANSWER_LOST: Duration = Duration::from_millis(500);
/// The longest while no path works.
const BACKOFF_LOST: Duration = Duration::from_secs(1);

/// A path that was asked for.
#[derive(Debug, Clone)]
struct Pending {
    generation: Generation,
    attach: AttachId,
    label: Label,
    since: Instant,
    deadline: Instant,
    /// Relays began to drain since it was asked for.
    drained: bool,
}

/// What the caller asks for.
#[derive(Debug, Default)]
pub(super) struct Ask {
    /// The highest generation that was used.
    last: Generation,
    pending: Option<Pending>,
    failures: u32,
    not_before: Option<Instant>,
    /// Nothing came back over this attachment when it was asked last.
    silent: Option<AttachId>,
    /// Two paths that share an end were tried to be parted, and nothing was learnt since.
    parted: bool,
}

impl Ask {
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.deadline).or(self.not_before)
    }

    /// Attachments changed, here or there: what could not be had may be had.
    pub(super) fn anew(&mut self) {
        self.parted = false;
        self.failures = 0;
        self.not_before = None;
        self.silent = None;
    }

    /// Relays began to drain: who was asked may not have known.
    pub(super) fn relays_drain(&mut self) {
        self.anew();
        if let Some(pending) = &mut self.pending {
            pending.drained = true;
        }
    }

    /// A path was refused, or never worked.
    pub(super) fn failed(&mut self, now: Instant, rng: &mut SmallRng) {
        self.failures = self.failures.saturating_add(1);
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8)).min(BACKOFF_MAX);
        self.not_before = Some(now + wait.mul_f64(rng.random_range(0.75..1.25)));
    }
}

impl Session {
    /// Takes in the answer to what was asked.
    pub(super) fn resumed(
        &mut self,
        resumed: control::Resumed,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        let id = PathId::Relayed(resumed.generation);
        let asked = self.ask.pending.take_if(|p| p.generation == resumed.generation);
        let end =
            |code| control::PathEnd { session: self.id, generation: resumed.generation, code };
        let Some(asked) = asked else { return };
        let Some(standing) = t.standing.iter().find(|one| one.attach == asked.attach) else {
            let end = end(RefusalCode::RouteLost);
            return t.out.push_back(Output::Say(asked.attach, ToRelay::EndPath(end)));
        };
        let mut route = resumed.route;
        route.truncate(limits::ROUTE_RELAYS);
        let way = Way::Relayed { attach: asked.attach, route };
        self.ask.silent = None;
        let mut path = Path::new(way, standing.address, (asked.label, resumed.label), now);
        if asked.drained && self.can_leave(&path, t.draining, t) {
            path.leaves_at = Some(now);
        }
        self.make_room(t);
        self.install(id, path, t);
    }

    /// A relay refused what was asked, or ended a path.
    pub(super) fn path_ended(
        &mut self,
        end: &control::PathEnd,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        if self.ask.pending.take_if(|p| p.generation == end.generation).is_some() {
            if end.code == RefusalCode::UnknownSession {
                // The callee's own word: for it the session is over.
                t.out.push_back(Output::Failed { session: self.id, code: RefusalCode::PeerLost });
            }
            return self.ask.failed(now, t.rng);
        }
        self.last_code = end.code;
        self.remove(PathId::Relayed(end.generation), t);
    }

    /// Takes a path that the caller asked for.
    pub(super) fn take_path(
        &mut self,
        attach: AttachId,
        resuming: control::Resuming,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        let generation = resuming.generation;
        let standing = t.standing.iter().find(|one| one.attach == attach);
        let fits =
            !self.is_caller() && resuming.caller == self.opened.peer && generation > self.ask.last;
        let Some(standing) = standing.filter(|_| fits) else {
            let code = RefusalCode::BadRequest;
            let end = control::PathEnd { session: self.id, generation, code };
            return t.out.push_back(Output::Say(attach, ToRelay::EndPath(end)));
        };
        self.ask.last = generation;
        let label = Self::label(t);
        let mut route = resuming.route;
        route.truncate(limits::ROUTE_RELAYS);
        let way = Way::Relayed { attach, route };
        let path = Path::new(way, standing.address, (label, resuming.label), now);
        self.make_room(t);
        self.install(PathId::Relayed(generation), path, t);
        let accept = control::AcceptPath { session: self.id, generation, label };
        t.out.push_back(Output::Say(attach, ToRelay::AcceptPath(accept)));
    }

    /// Asks for a path where one is missing.
    pub(super) fn ask_for_paths(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let lost = self.paths.values().all(|path| !path.works());
        if let Some(pending) = self.ask.pending.as_mut().filter(|_| lost) {
            let wait = ANSWER_LOST.saturating_mul(1 << (self.ask.failures / 4).min(8));
            pending.deadline = pending.deadline.min(pending.since + wait);
        }
        if let Some(pending) = self.ask.pending.take_if(|p| p.deadline <= now) {
            let (session, generation) = (self.id, pending.generation);
            let end = control::PathEnd { session, generation, code: RefusalCode::NoAnswer };
            t.out.push_back(Output::Say(pending.attach, ToRelay::EndPath(end)));
            self.ask.failed(now, t.rng);
            let other = self.ask.silent.replace(pending.attach) != Some(pending.attach);
            if lost && other {
                self.ask.not_before = None;
            }
        }
        if let Some(at) = self.ask.not_before {
            let latest = now + BACKOFF_LOST;
            if lost && at > latest {
                self.ask.not_before = Some(latest);
            }
            if at > now {
                return;
            }
            self.ask.not_before = None;
        }
        if self.ask.pending.is_some() {
            return;
        }
        let Some((attach, avoid)) = self.wanted(now, t) else {
            self.drop_left(now, t);
            self.drop_surplus(t);
            return;
        };
        self.ask.last = Generation(self.ask.last.0.saturating_add(1));
        let (label, generation) = (Self::label(t), self.ask.last);
        let deadline = now + t.config.answer_time;
        self.ask.pending =
            Some(Pending { generation, attach, label, since: now, deadline, drained: false });
        t.out.push_back(Output::Say(
            attach,
            ToRelay::Resume(control::Resume {
                session: self.id,
                generation,
                target: self.opened.peer.clone(),
                service: self.opened.service.clone(),
                label,
                avoid,
            }),
        ));
    }

    /// Relayed paths that will do: not suspect, and not over a relay that is being left.
    fn good<'a>(&'a self, standing: &'a [Standing]) -> impl Iterator<Item = (PathId, &'a Path)> {
        self.paths
            .iter()
            .filter(|(_, path)| {
                !path.is_direct()
                    && path.suspect_since.is_none()
                    && !self.is_leaving(path, standing)
            })
            .map(|(id, path)| (*id, path))
    }

    /// Over which attachment one more path is to be asked for, and which relays it should not take.
    fn wanted(&mut self, now: Instant, t: &Terminal<'_>) -> Option<(AttachId, Vec<RelayName>)> {
        let usable = usable(t);
        let first = *usable.first()?;
        let peers = self.peer_relays.iter().filter(|relay| !t.draining.contains(*relay)).count();
        // A path that was not answered at once is none while no other works.
        let lost = self.paths.values().all(|path| !path.works());
        let may_work = |path: &Path| path.proven || !lost || now < path.made + ANSWER_LOST;
        let good: Vec<(PathId, &Path)> =
            self.good(t.standing).filter(|(_, path)| may_work(path)).collect();
        let apart = |path: &Path| {
            let other = usable.iter().copied().find(|attach| Some(*attach) != path.attach());
            (other.unwrap_or(first), avoided(t.draining, path.route()))
        };
        match &good[..] {
            [] => {
                // Away from what went quiet, where there is another way: most likely from what all quiet paths share.
                let quiet: Vec<&Path> = self.paths.values().filter(|p| !p.is_direct()).collect();
                let (all, shared) = relays_of(&quiet);
                let suspect = if shared.is_empty() || (self.ask.failures / 2) % 2 == 1 {
                    &all
                } else {
                    &shared
                };
                let used = |attach| quiet.iter().any(|path| path.attach() == Some(attach));
                let by = usable.iter().copied();
                let at_suspect = |attach| {
                    let mut standing = t.standing.iter().filter(|one| one.attach == attach);
                    standing.any(|one| suspect.contains(&one.relay))
                };
                let by =
                    by.min_by_key(|by| (self.ask.silent == Some(*by), at_suspect(*by), used(*by)));
                Some((by.unwrap_or(first), avoided(t.draining, suspect)))
            }
            [(_, path)] if usable.len() > 1 || peers > 1 => Some(apart(path)),
            [(_, a), (_, b)] if !self.ask.parted => {
                let here = usable.len() > 1 && a.attach() == b.attach();
                let there = peers > 1 && a.route().last() == b.route().last();
                let both_known = a.proven && b.proven;
                if both_known && (here || there) {
                    let wanted = apart(a);
                    self.ask.parted = true;
                    return Some(wanted);
                }
                None
            }
            _ => None,
        }
    }

    /// Of more than two good paths the current one stays, and the one that shares least with it.
    fn drop_surplus(&mut self, t: &mut Terminal<'_>) {
        let good: Vec<(PathId, &Path)> = self.good(t.standing).collect();
        if good.len() <= 2 || good.iter().any(|(_, path)| !path.proven) {
            return;
        }
        let kept =
            if good.iter().any(|(id, _)| *id == self.current) { self.current } else { good[0].0 };
        let kept_route =
            self.paths.get(&kept).map(|path| path.route().to_vec()).unwrap_or_default();
        let shared =
            |path: &Path| path.route().iter().filter(|relay| kept_route.contains(relay)).count();
        let worst = good
            .iter()
            .filter(|(id, _)| *id != kept)
            .max_by_key(|(_, path)| (shared(path), path.rtt))
            .map(|(id, _)| *id);
        if let Some(id) = worst {
            self.give_up(id, RefusalCode::Moved, t);
        }
    }
}

/// The attachments over which paths are asked for: such as stay, where there are any.
fn usable(t: &Terminal<'_>) -> Vec<AttachId> {
    let usable = |draining: bool| -> Vec<AttachId> {
        let standing = t.standing.iter().filter(|one| !one.leaving);
        let fit = standing.filter(|one| draining || !t.draining.contains(&one.relay));
        fit.map(|one| one.attach).collect()
    };
    let stay = usable(false);
    if stay.is_empty() { usable(true) } else { stay }
}

/// The relays that any of these paths takes, and those that every one does.
fn relays_of(paths: &[&Path]) -> (BTreeSet<RelayName>, BTreeSet<RelayName>) {
    let all: BTreeSet<RelayName> = paths.iter().flat_map(|path| path.route()).cloned().collect();
    let in_every = |relay: &&RelayName| paths.iter().all(|path| path.route().contains(relay));
    let shared = all.iter().filter(in_every).cloned().collect();
    (all, shared)
}

/// The relays that a path should not take: those that drain, and those that others take.
fn avoided<'a>(
    draining: &'a BTreeSet<RelayName>,
    routes: impl IntoIterator<Item = &'a RelayName>,
) -> Vec<RelayName> {
    let draining = draining.iter().take(limits::ROUTE_RELAYS / 2);
    draining.chain(routes).take(limits::ROUTE_RELAYS).cloned().collect()
}
