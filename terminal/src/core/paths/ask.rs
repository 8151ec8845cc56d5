//! How the caller of a session gets relayed paths for it (architecture 5): a second one over other relays, and another
//! in the place of one that was lost. The callee takes what is offered.

use std::collections::{BTreeMap, BTreeSet};
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
/// How long the first answer may take while no path works; doubles with every fourth failure.
const ANSWER_LOST: Duration = Duration::from_millis(500);
/// The longest while no path works.
const BACKOFF_LOST: Duration = Duration::from_secs(1);

/// How long the callee's word on its attachments is waited for.
const WORD: Duration = Duration::from_secs(1);
/// How long a relay counts as doubtful after a path over it went quiet or a question over it was not answered.
const SHUNNED: Duration = Duration::from_secs(15);
/// What went quiet within this time of each other did so for the same reason.
pub(super) const LATELY: Duration = Duration::from_secs(1);
/// Questions for the same ends, until something is learnt or [`ASK_AGAIN`] is over.
const ASKED_MOST: u8 = 3;
/// What could not be had is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// A path over a relay that drains, since there was no other way, stays for this long until another is asked for; doubles
/// each time that there is still none.
const STAY_MIN: Duration = Duration::from_secs(1);
/// The longest.
const STAY_MAX: Duration = Duration::from_secs(60);

/// The ends of a relayed path: an attachment here, and a relay of the callee's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Ends {
    attach: AttachId,
    here: RelayName,
    there: RelayName,
}

impl Ends {
    /// How many relays two paths have in common, as far as their ends tell.
    fn shared(&self, other: &Ends) -> u32 {
        let theirs = [&other.here, &other.there];
        let twice = self.here == self.there;
        u32::from(theirs.contains(&&self.here)) + u32::from(!twice && theirs.contains(&&self.there))
    }
}

/// A path that was asked for.
#[derive(Debug, Clone)]
struct Pending {
    generation: Generation,
    ends: Ends,
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
    /// How often paths with these ends were asked for.
    asked: BTreeMap<Ends, u8>,
    /// When that is forgotten.
    again_at: Option<Instant>,
    /// Relays that are doubtful, and until when.
    shunned: BTreeMap<RelayName, Instant>,
    /// Questions since no path works.
    in_need: u32,
    /// How often the answer was a way over a relay that drains.
    stays: u32,
}

impl Ask {
    /// When there is something to do: each by itself, since one that is past and waits for another hides none.
    pub(super) fn due(&self) -> [Option<Instant>; 2] {
        let asked = self.pending.as_ref().map(|pending| pending.deadline).or(self.not_before);
        [asked, self.again_at]
    }

    /// Attachments changed, here or there: what could not be had may be had.
    pub(super) fn anew(&mut self) {
        self.asked.clear();
        self.failures = 0;
        self.stays = 0;
        self.not_before = None;
    }

    /// How long the only way is taken until it is asked for another: a link that is new is not in every route at once.
    fn stay(&mut self) -> Duration {
        let wait = STAY_MIN.saturating_mul(1 << self.stays.min(6)).min(STAY_MAX);
        self.stays = self.stays.saturating_add(1);
        wait
    }

    /// Relays began to drain: who was asked may not have known.
    pub(super) fn relays_drain(&mut self) {
        self.anew();
        if let Some(pending) = &mut self.pending {
            pending.drained = true;
        }
    }

    /// Nobody answers any more what was asked over an attachment that is gone.
    pub(super) fn forget_gone(&mut self, standing: &[Standing]) {
        let gone = |p: &mut Pending| standing.iter().all(|one| one.attach != p.ends.attach);
        self.pending.take_if(gone);
    }

    /// How many of the relays of these ends are doubtful.
    fn doubt(&self, ends: &Ends, now: Instant) -> u32 {
        let doubtful = |relay| self.shunned.get(relay).is_some_and(|until| *until > now);
        u32::from(doubtful(&ends.here)) + u32::from(doubtful(&ends.there))
    }

    /// No path works: nothing is waited for, and nobody whose relay is doubtful.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.not_before = None;
        self.in_need = 0;
        let pending = self.pending.take();
        self.pending = pending.filter(|pending| self.doubt(&pending.ends, now) == 0);
    }

    /// The callee is about to say where it is attached; one of an older kind does not.
    pub(super) fn wait_for_word(&mut self, now: Instant) {
        self.not_before = Some(now + WORD);
    }

    /// These relays are doubtful for a while.
    pub(super) fn shun<'a>(&mut self, relays: impl Iterator<Item = &'a RelayName>, now: Instant) {
        self.shunned.retain(|_, until| *until > now);
        self.shunned.extend(relays.take(limits::ROUTE_RELAYS).map(|r| (r.clone(), now + SHUNNED)));
    }

    /// A terminal of the session attached to these after they were found doubtful: they are back. What was asked of them
    /// before may never be answered, and tells nothing.
    pub(super) fn trust(&mut self, relays: &[RelayName]) {
        self.shunned.retain(|relay, _| !relays.contains(relay));
        let ends =
            |p: &mut Pending| relays.contains(&p.ends.here) || relays.contains(&p.ends.there);
        self.pending.take_if(ends);
    }

    /// A path was refused, or never worked.
    pub(super) fn failed(&mut self, now: Instant, rng: &mut SmallRng) {
        self.failures = self.failures.saturating_add(1);
        let wait = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8)).min(BACKOFF_MAX);
        self.not_before = Some(now + wait.mul_f64(rng.random_range(0.75..1.25)));
    }
}

impl Session {
    /// Takes in the answer to what was asked; one that comes too late is given back.
    pub(super) fn resumed(
        &mut self,
        attach: AttachId,
        resumed: control::Resumed,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        let generation = resumed.generation;
        let fits = |p: &mut Pending| p.generation == generation && p.ends.attach == attach;
        let asked = self.ask.pending.take_if(fits);
        let standing = t.standing.iter().find(|one| one.attach == attach);
        let (Some(asked), Some(standing)) = (asked, standing) else {
            let (session, code) = (self.id, RefusalCode::Moved);
            let end = control::PathEnd { session, generation, code };
            return t.out.push_back(Output::Say(attach, ToRelay::EndPath(end)));
        };
        let mut route = resumed.route;
        route.truncate(limits::ROUTE_RELAYS);
        let way = Way::Relayed { attach, route };
        let mut path = Path::new(way, standing.address, (asked.label, resumed.label), now);
        if self.can_leave(&path, t.draining, t) {
            let wait = if asked.drained { Duration::ZERO } else { self.ask.stay() };
            if !asked.drained && self.keep_like(&path, now + wait, t.draining) {
                let (session, code) = (self.id, RefusalCode::Moved);
                let end = control::PathEnd { session, generation, code };
                return t.out.push_back(Output::Say(attach, ToRelay::EndPath(end)));
            }
            path.leaves_at = Some(now + wait);
        }
        self.make_room(now, t);
        self.install(PathId::Relayed(generation), path, t);
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
        self.make_room(now, t);
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
            t.out.push_back(Output::Say(pending.ends.attach, ToRelay::EndPath(end)));
            self.shun([&pending.ends.here, &pending.ends.there], now);
            self.ask.failed(now, t.rng);
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
        if self.ask.again_at.take_if(|at| *at <= now).is_some() {
            self.ask.asked.clear();
        }
        let best = self.best_ends(now, t);
        let Some((ends, avoid)) = self.wanted(&best, now, t) else {
            self.drop_left(now, t);
            self.drop_surplus(&best, now, t);
            return;
        };
        if self.is_full() {
            // What data left a moment ago is still the peer's.
            if self.kept_until().is_some_and(|at| at > now) {
                return;
            }
            self.give_way(&best, t);
        }
        let times = self.ask.asked.entry(ends.clone()).or_default();
        *times = times.saturating_add(1);
        self.ask.again_at.get_or_insert(now + ASK_AGAIN);
        self.ask.in_need = self.ask.in_need.saturating_add(1);
        self.ask.last = Generation(self.ask.last.0.saturating_add(1));
        let (label, generation) = (Self::label(t), self.ask.last);
        let (attach, deadline) = (ends.attach, now + t.config.answer_time);
        self.ask.pending =
            Some(Pending { generation, ends, label, since: now, deadline, drained: false });
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

    /// Relays of a path or question that came to nothing are doubtful, but for those that a working path takes.
    pub(super) fn shun<'a>(
        &mut self,
        relays: impl IntoIterator<Item = &'a RelayName>,
        now: Instant,
    ) {
        let fine: Vec<RelayName> = self
            .paths
            .values()
            .filter(|path| path.works())
            .flat_map(|path| path.route().iter().cloned())
            .collect();
        self.ask.shun(relays.into_iter().filter(|relay| !fine.contains(relay)), now);
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

    /// The ends of the two paths that this session should have: at relays that do not drain where there are others, with
    /// as few relays in common as can be, away from doubtful ones, and where there is a choice with those of the path in
    /// use.
    fn best_ends(&self, now: Instant, t: &Terminal<'_>) -> Vec<Ends> {
        let known = self.paths.values().rev().find_map(|path| path.route().last());
        let known = known.or_else(|| self.opened.route.last());
        let theirs: Vec<&RelayName> = match &self.peer_relays[..] {
            [] => known.into_iter().collect(),
            relays => relays.iter().collect(),
        };
        let theirs = staying(theirs, |relay| t.draining.contains(*relay));
        let mine: Vec<&Standing> = t.standing.iter().filter(|one| !one.leaving).collect();
        let mine = staying(mine, |one| t.draining.contains(&one.relay));
        let all: Vec<Ends> = mine
            .iter()
            .flat_map(|one| {
                theirs.iter().map(|there| Ends {
                    attach: one.attach,
                    here: one.relay.clone(),
                    there: (*there).clone(),
                })
            })
            .collect();
        let alone = |ends: &Ends| {
            let current = self.paths.get(&self.current).is_some_and(|path| has_ends(path, ends));
            8 * self.ask.doubt(ends, now) + u32::from(!current)
        };
        let pairs =
            all.iter().enumerate().flat_map(|(n, a)| all[n + 1..].iter().map(move |b| (a, b)));
        let best = pairs.min_by_key(|(a, b)| 4 * a.shared(b) + alone(a) + alone(b));
        match best {
            Some((a, b)) => vec![a.clone(), b.clone()],
            None => all,
        }
    }

    /// Which ends one more path is to be asked for with, and which relays it should not take.
    fn wanted(
        &self,
        best: &[Ends],
        now: Instant,
        t: &Terminal<'_>,
    ) -> Option<(Ends, Vec<RelayName>)> {
        // A path that was not answered at once is none while no other works.
        let lost = self.paths.values().all(|path| !path.works());
        let doubtful =
            |relay: &RelayName| self.ask.shunned.get(relay).is_some_and(|until| *until > now);
        let young =
            |path: &Path| now < path.made + ANSWER_LOST && !path.route().iter().any(doubtful);
        let may_work = |path: &&Path| path.proven || !lost || young(path);
        let good: Vec<&Path> =
            self.good(t.standing).map(|(_, path)| path).filter(may_work).collect();
        let may_ask = |ends: &&Ends| {
            // While nothing works it is asked for ever.
            good.is_empty() || self.ask.asked.get(*ends).is_none_or(|times| *times < ASKED_MOST)
        };
        let missing = best
            .iter()
            .filter(|ends| good.iter().all(|path| !has_ends(path, ends)))
            .filter(may_ask)
            .min_by_key(|ends| (self.ask.doubt(ends, now), self.ask.asked.get(*ends)))?;
        let left = t.draining.iter().take(limits::ROUTE_RELAYS / 2).cloned();
        // What went quiet at an earlier time may be back, and be the only way: it is asked for with and without it.
        let lately = self.lost_since.filter(|_| self.ask.in_need.is_multiple_of(2));
        let since = lately.and_then(|lost| (lost + SHUNNED).checked_sub(LATELY));
        let shunned =
            self.ask.shunned.iter().filter(|(relay, until)| {
                doubtful(relay) && since.is_none_or(|since| **until >= since)
            });
        let shunned = shunned.map(|(relay, _)| relay.clone());
        let mut avoid: Vec<RelayName> = if good.is_empty() {
            // The ends too: their relays then know that the link between them may be dead.
            left.chain(shunned).collect()
        } else {
            let others = best.iter().filter(|ends| *ends != missing);
            let taken = others.flat_map(|ends| match good.iter().find(|p| has_ends(p, ends)) {
                Some(path) => path.route().to_vec(),
                None => vec![ends.here.clone(), ends.there.clone()],
            });
            let ends = |relay: &RelayName| *relay == missing.here || *relay == missing.there;
            left.chain(taken).chain(shunned).filter(|relay| !ends(relay)).collect()
        };
        let mut known = BTreeSet::new();
        avoid.retain(|relay| known.insert(relay.clone()));
        avoid.truncate(limits::ROUTE_RELAYS);
        Some((missing.clone(), avoid))
    }

    /// Before one more path is asked for, the caller gives up one that it does not want: the callee, to whom all look
    /// alike, might take one that is needed.
    fn give_way(&mut self, best: &[Ends], t: &mut Terminal<'_>) {
        let spare = self.paths.iter().filter(|(id, path)| {
            let wanted = best.iter().any(|ends| has_ends(path, ends));
            **id != self.current && !path.is_direct() && !wanted
        });
        let spare = spare.min_by_key(|(id, path)| (!self.is_leaving(path, t.standing), **id));
        if let Some(id) = spare.map(|(id, _)| *id) {
            self.give_up(id, RefusalCode::Moved, t);
        }
    }

    /// Once the paths that there should be are proven, others go; data that takes one of them moves first, and the peer's,
    /// which is under way there, arrives.
    fn drop_surplus(&mut self, best: &[Ends], now: Instant, t: &mut Terminal<'_>) {
        let good: Vec<(PathId, &Path)> = self.good(t.standing).collect();
        let kept: Vec<PathId> = best
            .iter()
            .filter_map(|ends| {
                let mut same = good.iter().filter(|(_, path)| path.proven && has_ends(path, ends));
                // Of two with the same ends the one in use, else the newer.
                same.clone().find(|(id, _)| *id == self.current).or(same.next_back())
            })
            .map(|(id, _)| *id)
            .collect();
        if kept.len() < best.len() || kept.is_empty() {
            self.surplus = false;
            return;
        }
        let surplus = good.iter().find(|(id, path)| path.proven && !kept.contains(id));
        match surplus.map(|(id, _)| *id) {
            Some(id) if id == self.current => self.surplus = true,
            Some(_) if self.kept_until().is_some_and(|at| at > now) => {}
            Some(id) => self.give_up(id, RefusalCode::Moved, t),
            None => self.surplus = false,
        }
    }
}

/// Those that stay, where there are any.
fn staying<T>(all: Vec<T>, leaves: impl Fn(&T) -> bool) -> Vec<T> {
    if all.iter().all(&leaves) { all } else { all.into_iter().filter(|one| !leaves(one)).collect() }
}

fn has_ends(path: &Path, ends: &Ends) -> bool {
    path.attach() == Some(ends.attach) && path.route().last() == Some(&ends.there)
}
