//! The paths of one session: which carries its data, and what is done to have a second one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::frame::HEAD;
use tasuki_proto::path::{NatKind, PROBE_FRAME, Probe};
use tasuki_proto::session::{Attachments, Word};
use tasuki_proto::{Generation, Label, RefusalCode, RelayName, SessionId, limits};

use super::ask::{Ask, LATELY};
use super::counts::DirectCounts;
use super::direct::Direct;
use super::event::{Candidate, Heard, Output, PathId, PathInfo, Standing};
use super::health::{Path, Way};
use super::stall::Stall;
use super::targets::Targets;
use super::{BUSY, Config, DWELL, GIVE_UP, IDLE_PACE, PLAIN_FRAME, SETTLE, STANDBY_PACE};
use crate::core::calls::Opened;

/// Probes of a relayed path that never answered, and after how many it is given up.
const UNPROVEN_PACE: Duration = Duration::from_millis(100);
const UNPROVEN_TRIES: u32 = 30;
/// How long data goes over two paths at most until it goes over one.
const BOTH: Duration = Duration::from_secs(1);
/// The pace of probes of a suspect path once it was suspect for [`BOTH`].
const LOST_PACE: Duration = Duration::from_millis(500);

/// Why data takes the path that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The call's own.
    First,
    /// The one before went quiet, or was lost.
    Failover,
    /// The peer moved its data here.
    Followed,
    /// It is direct, and proven both ways.
    Direct,
    /// The direct one got worse.
    DirectWorse,
    /// A relay on the one before is being left.
    Leaving,
    /// The one before shared relays with the other path of the session.
    Apart,
    /// Data stood still on the one before, though probes were answered.
    Stalled,
}

/// What a session's paths need to know of the terminal.
pub(super) struct Terminal<'a> {
    pub(super) config: &'a Config,
    pub(super) standing: &'a [Standing],
    pub(super) candidates: &'a [Candidate],
    pub(super) nat: NatKind,
    pub(super) draining: &'a BTreeSet<RelayName>,
    /// The pace of probes of a path in use.
    pub(super) hello: Duration,
    pub(super) counts: &'a mut DirectCounts,
    pub(super) targets: &'a mut Targets,
    pub(super) rng: &'a mut SmallRng,
    pub(super) out: &'a mut VecDeque<Output>,
}

/// The paths of one session.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) opened: Opened,
    pub(super) proven: bool,
    /// Not before then anything is done: a session that is over at once costs nothing more.
    begins: Option<Instant>,
    pub(super) paths: BTreeMap<PathId, Path>,
    pub(super) current: PathId,
    epoch: u32,
    duplicate: Option<PathId>,
    pub(super) stall: Stall,
    busy_until: Option<Instant>,
    pub(super) lost_since: Option<Instant>,
    /// What the path ended with that was lost last.
    pub(super) last_code: RefusalCode,
    /// QUIC packets: as large as sent at present, and as large as worth a try.
    mtu: u16,
    most: u16,
    ceiling: Option<u16>,
    pub(super) why: Why,
    pub(super) moved_at: Option<Instant>,
    /// The path that data took before.
    pub(super) left: Option<PathId>,
    /// Another path was better since then.
    better_since: Option<(PathId, Instant)>,
    pub(super) peer_relays: Vec<RelayName>,
    /// The path in use shares relays with the other where two that do not could be had, and both of these stand.
    pub(super) surplus: bool,
    pub(super) ask: Ask,
    pub(super) direct: Direct,
    /// Takes no direct path, and offers none.
    pub(super) relayed_only: bool,
    pub(super) due: Option<Instant>,
}

impl Session {
    pub(super) fn new(opened: Opened, standing: &Standing, config: &Config, now: Instant) -> Self {
        let relayed_only = !config.direct || config.never_direct.contains(&opened.service);
        let path = PathId::Relayed(Generation::CALL);
        let way = Way::Relayed { attach: standing.attach, route: opened.route.clone() };
        let labels = (opened.label_in, opened.label_out);
        let mut first = Path::new(way, standing.address, labels, now);
        // The handshake will have run over it.
        first.proven = true;
        Self {
            id: opened.session,
            opened,
            proven: false,
            begins: None,
            paths: BTreeMap::from([(path, first)]),
            current: path,
            epoch: 0,
            duplicate: None,
            stall: Stall::default(),
            busy_until: None,
            lost_since: None,
            last_code: RefusalCode::RouteLost,
            mtu: 0,
            most: 0,
            ceiling: None,
            why: Why::First,
            moved_at: None,
            left: None,
            better_since: None,
            peer_relays: Vec::new(),
            surplus: false,
            ask: Ask::default(),
            direct: Direct::default(),
            relayed_only,
            due: None,
        }
    }

    pub(super) fn is_caller(&self) -> bool {
        self.opened.outgoing
    }

    /// Whether it sent data a short while ago.
    pub(super) fn is_busy(&self) -> bool {
        self.busy_until.is_some()
    }

    pub(super) fn set_busy(&mut self, now: Instant) {
        self.busy_until = Some(now + BUSY);
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = mtu;
    }

    pub(super) fn set_proven(&mut self, most: u16, rtt: Duration, now: Instant) {
        self.proven = true;
        if let Some(path) = self.paths.get_mut(&self.current) {
            path.rtt.get_or_insert(rtt);
        }
        self.most = most;
        self.begins = Some(now + SETTLE);
    }

    /// Begins with what [`SETTLE`] held back.
    fn begin(&mut self, now: Instant, t: &mut Terminal<'_>) {
        t.out.push_back(Output::Watch(self.id));
        let stays = t.standing.iter().filter(|one| !one.leaving);
        let relays = stays.map(|one| one.relay.clone()).collect();
        t.out.push_back(Output::Tell(self.id, Word::Attachments(Attachments { relays })));
        self.offer_addresses(t);
        self.try_addresses(now, t);
        self.ask.wait_for_word(now);
    }

    /// Whether the peer hears what this terminal says of itself.
    pub(super) fn is_begun(&self) -> bool {
        self.proven && self.begins.is_none()
    }

    /// Takes in a path and shows it to the driver.
    pub(super) fn install(&mut self, id: PathId, path: Path, t: &mut Terminal<'_>) {
        t.out.push_back(Output::Install {
            session: self.id,
            path: id,
            to: path.to,
            label_in: path.label_in,
            label_out: path.label_out,
        });
        self.paths.insert(id, path);
    }

    /// Forgets a path; its peer and its relays know, or are told by the caller of this.
    pub(super) fn remove(&mut self, id: PathId, t: &mut Terminal<'_>) -> Option<Path> {
        let path = self.paths.remove(&id)?;
        if self.duplicate == Some(id) {
            self.duplicate = None;
            t.out.push_back(Output::Duplicate { session: self.id, path: None });
        }
        t.out.push_back(Output::Remove { session: self.id, path: id });
        Some(path)
    }

    /// Gives a relayed path up, and says so along it.
    pub(super) fn give_up(&mut self, id: PathId, code: RefusalCode, t: &mut Terminal<'_>) {
        let Some(path) = self.remove(id, t) else { return };
        if let (PathId::Relayed(generation), Some(attach)) = (id, path.attach()) {
            let end = control::PathEnd { session: self.id, generation, code };
            t.out.push_back(Output::Say(attach, ToRelay::EndPath(end)));
        }
    }

    /// The label of the peer that direct frames to it carry.
    pub(super) fn direct_path(&self, to: SocketAddr, now: Instant) -> Option<Path> {
        let (own, peer) = (self.direct.label?, self.direct.peer.as_ref()?.label);
        Some(Path::new(Way::Direct, to, (own, peer), now))
    }

    pub(super) fn heard(
        &mut self,
        heard: Heard,
        probe: Probe,
        at: Instant,
        now: Instant,
        t: &mut Terminal<'_>,
    ) {
        let id = match heard {
            Heard::On(id) => id,
            Heard::From(address) => match self.direct.path_to(&self.paths, address) {
                Some(id) => id,
                // An address that the peer did not name: its NAT made it (RFC 8445, section 7.2.5.3.1).
                None => {
                    if !self.relayed_only
                        && !probe.answer
                        && self.direct.may_come_from(address, t.candidates, now)
                        && let Some(mut path) = self.direct_path(address, now)
                        && let Some(id) = self.direct.room(&self.paths)
                    {
                        // Its own packet came in: nothing is to be opened.
                        path.tries = 1;
                        self.install(id, path, t);
                    }
                    return;
                }
            },
        };
        let Some(path) = self.paths.get_mut(&id) else { return };
        let counts = match probe.answer {
            true => path.answered(probe.number, at),
            false => path.asked(probe.number, probe.echo),
        };
        if !counts {
            // It may be a copy: the peer's answer to a probe by this path will tell.
            if probe.in_use && id != self.current {
                path.hurry_after(t.hello, now);
            }
            return;
        }
        let newer = probe.epoch > self.epoch
            || (probe.epoch == self.epoch && !self.opened.outgoing && self.epoch > 0);
        if probe.in_use && newer && id != self.current {
            // The peer's probe returned a number that left by this path, so it carries frames both ways.
            path.proven = true;
            if probe.stalled {
                self.distrust(self.current, now);
            }
            self.go(id, probe.epoch, Why::Followed, now, t);
        } else if probe.in_use && id == self.current {
            self.epoch = self.epoch.max(probe.epoch);
        }
    }

    /// Moves the data to another path.
    fn go(&mut self, id: PathId, epoch: u32, why: Why, now: Instant, t: &mut Terminal<'_>) {
        // Whoever moved may know that this one is dead.
        if let Some(left) = self.paths.get_mut(&self.current) {
            left.hurry();
        }
        self.left = Some(self.current);
        self.current = id;
        self.surplus = false;
        self.epoch = epoch;
        self.why = why;
        self.moved_at = Some(now);
        self.better_since = None;
        self.stall.moved();
        if self.duplicate.take().is_some() {
            t.out.push_back(Output::Duplicate { session: self.id, path: None });
        }
        t.out.push_back(Output::Use { session: self.id, path: id, epoch });
        t.out.push_back(Output::Changed(self.id));
        // The peer hears of it by a probe.
        if let Some(path) = self.paths.get_mut(&id) {
            path.hurry();
        }
    }

    pub(super) fn move_to(&mut self, id: PathId, why: Why, now: Instant, t: &mut Terminal<'_>) {
        self.go(id, self.epoch.saturating_add(1), why, now, t);
    }

    /// Whether a path takes a relay that drains, or ends at one that a terminal leaves, or has left.
    pub(super) fn is_leaving(&self, path: &Path, standing: &[Standing]) -> bool {
        let Some(attach) = path.attach() else { return false };
        let mine = standing.iter().find(|one| one.attach == attach);
        let theirs = if self.is_caller() { path.route().last() } else { path.route().first() };
        path.leaving
            || mine.is_none_or(|one| one.leaving)
            || (!self.peer_relays.is_empty()
                && theirs.is_some_and(|relay| !self.peer_relays.contains(relay)))
    }

    /// Does what is due.
    pub(super) fn step(&mut self, now: Instant, t: &mut Terminal<'_>) {
        if !self.proven {
            self.due = None;
            return;
        }
        if let Some(at) = self.begins {
            if at > now {
                self.due = Some(at);
                return;
            }
            self.begins = None;
            self.begin(now, t);
        }
        if let Some(due) = self.due {
            let late = now.saturating_duration_since(due);
            if late > t.hello {
                self.paths.values_mut().for_each(|path| path.forgive(late));
                self.stall.forgive(late);
            }
        }
        if self.busy_until.is_some_and(|until| until <= now) {
            self.busy_until = None;
            t.out.push_back(Output::Watch(self.id));
        }
        self.check_paths(now, t);
        self.notice_leaving(now);
        self.leave_stalled(now, t);
        self.keep_current(now, t);
        self.drop_dead(now, t);
        if self.is_caller() {
            self.choose(now, t);
            self.ask_for_paths(now, t);
        }
        self.step_direct(now, t);
        self.report(t);
        self.send_probes(now, t);
        self.set_ceiling(t);
        self.due = self.next_due(t.hello, t.config, now);
    }

    /// Looks which paths became suspect; where others work, so are the relays that only these take.
    fn check_paths(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let mut quiet = Vec::new();
        for path in self.paths.values_mut() {
            let before = path.suspect_since;
            path.check(t.hello, now);
            if before.is_none() && path.suspect_since.is_some() {
                quiet.extend_from_slice(path.route());
                t.out.extend(path.attach().map(Output::Doubt));
            }
        }
        if !quiet.is_empty() && self.paths.values().any(Path::works) {
            self.shun(&quiet, now);
        }
    }

    /// Whether this path could carry the packets that the session sends.
    fn fits(&self, path: &Path) -> bool {
        path.length >= usize::from(self.mtu) + HEAD
    }

    /// The best path that works, but for the current one: one whose packets fit, then the nearest.
    pub(super) fn best_other(&self, standing: &[Standing], now: Instant) -> Option<PathId> {
        self.paths
            .iter()
            .filter(|(id, path)| **id != self.current && path.works())
            .min_by_key(|(_, path)| {
                let leaves = self.is_leaving(path, standing);
                (path.is_distrusted(now), leaves, !self.fits(path), path.rtt)
            })
            .map(|(id, _)| *id)
    }

    /// All paths went quiet: what those have in common that worked a moment ago is doubtful.
    fn shun_common(&mut self, now: Instant) {
        let worked = |path: &Path| path.suspect_since.is_some_and(|since| now < since + LATELY);
        let relayed = self.paths.values().filter(|path| !path.is_direct() && worked(path));
        let relayed: Vec<&Path> = relayed.collect();
        let Some((first, rest)) = relayed.split_first() else { return };
        let in_all = |relay: &&RelayName| rest.iter().all(|path| path.route().contains(relay));
        let common: Vec<RelayName> = first.route().iter().filter(in_all).cloned().collect();
        self.shun(&common, now);
    }

    /// How long it waits while no path works. The caller gives up first.
    fn patience(&self, config: &Config) -> Duration {
        let more = if self.is_caller() { Duration::ZERO } else { Duration::from_secs(2) };
        config.resume_time + more
    }

    /// Leaves a current path that does not work.
    fn keep_current(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let current = self.paths.get(&self.current);
        if current.is_some_and(Path::works) {
            self.lost_since = None;
            if self.duplicate.take().is_some() {
                t.out.push_back(Output::Duplicate { session: self.id, path: None });
            }
            return;
        }
        let suspect_since = current.and_then(|path| path.suspect_since);
        let Some(other) = self.best_other(t.standing, now) else {
            if self.lost_since.is_none() {
                self.shun_common(now);
                self.ask.hurry(now);
            }
            let since = *self.lost_since.get_or_insert(now);
            if now >= since + self.patience(t.config) {
                t.out.push_back(Output::Failed { session: self.id, code: self.last_code });
            }
            return;
        };
        self.lost_since = None;
        let path = &self.paths[&other];
        let answered_since = path.answered_of > suspect_since;
        let long_enough = suspect_since.is_none_or(|since| now >= since + BOTH);
        if answered_since || long_enough {
            self.move_to(other, Why::Failover, now, t);
        } else if self.duplicate != Some(other) {
            self.duplicate = Some(other);
            t.out.push_back(Output::Duplicate { session: self.id, path: Some(other) });
            if let Some(path) = self.paths.get_mut(&other) {
                path.hurry();
            }
        }
    }

    /// Gives up paths that do not work while others do, and such as never did.
    fn drop_dead(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let others_work = self.paths.get(&self.current).is_some_and(Path::works);
        let dead: Vec<PathId> = self
            .paths
            .iter()
            .filter(|(id, path)| {
                let unproven = !path.proven && self.is_hopeless(path, now);
                let quiet = path.suspect_since.is_some_and(|since| now >= since + GIVE_UP);
                **id != self.current && (unproven || (quiet && others_work))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in dead {
            let relays = self.paths.get(&id).map(|path| path.route().to_vec()).unwrap_or_default();
            self.shun(&relays, now);
            let never = self.paths.get(&id).is_some_and(|path| !path.proven);
            if never && self.is_caller() && !matches!(id, PathId::Direct(_)) {
                self.ask.failed(now, t.rng);
            }
            let code = if never { RefusalCode::NoAnswer } else { RefusalCode::Moved };
            if matches!(id, PathId::Direct(_)) && !never {
                self.direct.lost(now);
                t.counts.lost += 1;
            }
            self.give_up(id, code, t);
        }
    }

    /// Whether a path without any answer was tried often enough.
    fn is_hopeless(&self, path: &Path, now: Instant) -> bool {
        let pace = self.unproven_pace(path);
        let most = if path.is_direct() { super::direct::ROUNDS + 1 } else { UNPROVEN_TRIES };
        path.tries >= most && path.probe_at(pace) <= now
    }

    fn unproven_pace(&self, path: &Path) -> Duration {
        if !path.is_direct() {
            return UNPROVEN_PACE;
        }
        let relayed = self.paths.values().filter(|path| !path.is_direct());
        super::direct::pace(
            path.tries,
            relayed.filter_map(|path| path.rtt).min().unwrap_or_default(),
        )
    }

    /// The caller moves the data to a better path, without haste.
    fn choose(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let Some(current) = self.paths.get(&self.current).filter(|path| path.works()) else {
            return;
        };
        let leaving = self.is_leaving(current, t.standing);
        let found = self.paths.iter().find_map(|(id, path)| {
            if *id == self.current || !path.works() || path.answers < 2 || !self.fits(path) {
                return None;
            }
            if self.is_leaving(path, t.standing) || path.is_distrusted(now) {
                return None;
            }
            let (mine, theirs) = (current.rtt.unwrap_or_default(), path.rtt.unwrap_or_default());
            if leaving {
                return Some((*id, Why::Leaving, Duration::ZERO));
            }
            if self.surplus && !path.is_direct() {
                return Some((*id, Why::Apart, Duration::ZERO));
            }
            let near = theirs <= mine.mul_f64(1.25) + Duration::from_millis(5);
            if path.is_direct() && !current.is_direct() && near && path.loss < 0.1 {
                return Some((*id, Why::Direct, Duration::ZERO));
            }
            let far = mine > theirs.mul_f64(2.0) + Duration::from_millis(20);
            let lossy = current.loss > 0.2 && path.loss < 0.05;
            if current.is_direct() && !path.is_direct() && (far || lossy) {
                return Some((*id, Why::DirectWorse, DWELL));
            }
            None
        });
        let Some((id, why, hold)) = found else {
            self.better_since = None;
            return;
        };
        let since = match self.better_since {
            Some((known, since)) if known == id => since,
            _ => now,
        };
        self.better_since = Some((id, since));
        // To part the two relayed paths of a young session says nothing of a direct one.
        let parted = (self.why, why) == (Why::Apart, Why::Direct);
        let dwelt = self.moved_at.is_none_or(|at| now >= at + DWELL);
        let rested = dwelt || parted || why == Why::Leaving;
        if rested && now >= since + hold {
            self.move_to(id, why, now, t);
        }
    }

    fn pace(&self, id: PathId, path: &Path, hello: Duration, now: Instant) -> Duration {
        if !path.proven {
            return self.unproven_pace(path);
        }
        if id == self.current && self.stall.waits() {
            return hello;
        }
        if let Some(since) = path.suspect_since {
            return if now >= since + BOTH { LOST_PACE } else { hello };
        }
        if path.doubt_at(hello).is_some_and(|at| at <= now) {
            return hello;
        }
        let young = path.answers < 3;
        match self.is_busy() {
            _ if young => UNPROVEN_PACE,
            true if id == self.current || self.duplicate == Some(id) => hello,
            true => STANDBY_PACE,
            false => IDLE_PACE,
        }
    }

    fn probe(&self, number: u64, id: PathId) -> Probe {
        let in_use = id == self.current;
        Probe {
            number,
            echo: self.paths.get(&id).map_or(0, |path| path.heard),
            epoch: self.epoch,
            answer: false,
            in_use,
            stalled: in_use && self.why == Why::Stalled,
        }
    }

    fn send_probes(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let lengths = [PLAIN_FRAME, usize::from(self.most) + HEAD];
        let ids: Vec<PathId> = self.paths.keys().copied().collect();
        for id in ids {
            let pace = self.pace(id, &self.paths[&id], t.hello, now);
            let (plain, padded) = (t.rng.random(), t.rng.random());
            let (plain_probe, padded_probe) = (self.probe(plain, id), self.probe(padded, id));
            let Some(path) = self.paths.get_mut(&id) else { continue };
            let session = self.id;
            if path.probe_at(pace) <= now {
                let opens = path.is_direct() && path.tries == 0;
                path.sent(plain, now);
                let (probe, length) = (plain_probe, PROBE_FRAME);
                let hops = opens.then_some(super::direct::OPENER_HOPS);
                let is_stranger = path.is_direct() && !path.proven;
                if is_stranger && !t.targets.may_probe(path.to.ip(), now) {
                    t.counts.withheld += 1;
                    continue;
                }
                if id == self.current {
                    t.out.push_back(Output::Measure(session));
                }
                t.out.push_back(Output::Probe { session, path: id, probe, length, hops });
            }
            if let Some(length) = path.length_to_try(&lengths, now) {
                path.sent_padded(padded, length, now);
                let (probe, hops) = (padded_probe, None);
                t.out.push_back(Output::Probe { session, path: id, probe, length, hops });
            }
        }
    }

    /// Packets that a path may not carry are not sent while another may have to take over.
    fn set_ceiling(&mut self, t: &mut Terminal<'_>) {
        let working: Vec<&Path> = self.paths.values().filter(|path| path.works()).collect();
        let least = working.iter().filter(|path| self.fits(path)).map(|path| path.length).min();
        let ceiling = match least {
            Some(least) if working.len() > 1 => {
                u16::try_from(least.saturating_sub(HEAD)).ok().map(|bytes| bytes.max(self.mtu))
            }
            _ => None,
        };
        if ceiling != self.ceiling {
            self.ceiling = ceiling;
            t.out.push_back(Output::Ceiling { session: self.id, bytes: ceiling });
        }
    }

    /// What is due at `now` was done, or is not to be.
    fn next_due(&self, hello: Duration, config: &Config, now: Instant) -> Option<Instant> {
        let mut due = vec![self.busy_until, self.direct.due()];
        due.extend(self.ask.due());
        for (id, path) in &self.paths {
            due.push(Some(path.probe_at(self.pace(*id, path, hello, now))));
            due.push(path.check_at(hello));
            due.push(path.length_at());
            due.push(path.suspect_since.map(|at| at + BOTH));
            due.push(path.leaves_at.filter(|_| !path.leaving));
        }
        due.push(self.lost_since.map(|since| since + self.patience(config)));
        due.push(self.drop_left_at());
        due.push(self.kept_until());
        if let (Some((_, since)), Some(moved)) = (self.better_since, self.moved_at) {
            due.push(Some((since + DWELL).max(moved + DWELL)));
        }
        due.into_iter().flatten().filter(|at| *at > now).min()
    }

    pub(super) fn info(&self, t_direct: bool) -> PathInfo {
        let current = self.paths.get(&self.current);
        let relayed = current.filter(|path| !path.is_direct()).or_else(|| {
            let works = |path: &&Path| !path.is_direct() && path.works();
            self.paths.values().find(works)
        });
        let mut relays = relayed.map(|path| path.route().to_vec()).unwrap_or_default();
        if !self.is_caller() {
            relays.reverse();
        }
        PathInfo {
            direct: current.is_some_and(Path::is_direct),
            relays,
            rtt_us: current
                .and_then(|path| path.rtt)
                .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            loss: current.map_or(0.0, |path| path.loss),
            relayed_paths: self.paths.values().filter(|path| !path.is_direct()).count(),
            why: self.explain(t_direct),
        }
    }

    fn explain(&self, direct_allowed: bool) -> String {
        let works = self.paths.get(&self.current).is_some_and(Path::works);
        if !works {
            return "no path works; one is asked for".to_owned();
        }
        let how = match self.why {
            Why::Direct => return "direct: probes were answered both ways".to_owned(),
            Why::First => "the path of the call",
            Why::Failover => "the path before went quiet or was lost",
            Why::Followed => "the other terminal moved here",
            Why::DirectWorse => "the direct path got worse",
            Why::Leaving => "a relay on the path before is being left",
            Why::Stalled => "data stood still on the path before",
            Why::Apart => "the path before shared relays with the second one",
        };
        if self.paths.get(&self.current).is_some_and(Path::is_direct) {
            return format!("direct: {how}");
        }
        if direct_allowed && self.relayed_only {
            return format!(
                "relayed: {how}; direct paths are off for this service (--direct-never)"
            );
        }
        format!("relayed: {how}; {}", self.direct.explain(direct_allowed, &self.paths))
    }

    pub(super) fn label(t: &mut Terminal<'_>) -> Label {
        Label::from_random(t.rng.random())
    }

    /// How many relayed paths there are.
    pub(super) fn relayed(&self) -> usize {
        self.paths.values().filter(|path| !path.is_direct()).count()
    }

    /// Whether it has as many relayed paths as it should, and none of them went quiet.
    pub(super) fn is_full(&self) -> bool {
        let quiet = |path: &Path| !path.is_direct() && path.suspect_since.is_some();
        self.relayed() >= limits::PATHS_PER_SESSION - 1 && !self.paths.values().any(quiet)
    }

    /// Makes room for one more relayed path, so that a relay never sees too many. Which of them are needed the caller knows;
    /// what it gave up may come to the callee after the next one, so the callee keeps one more. The peer's data still takes
    /// what the caller's left a moment ago.
    pub(super) fn make_room(&mut self, now: Instant, t: &mut Terminal<'_>) {
        let most = limits::PATHS_PER_SESSION - usize::from(self.is_caller());
        let kept = self.is_caller() && self.kept_until().is_some_and(|at| at > now);
        let kept = self.left.filter(|_| kept);
        while self.relayed() >= most {
            let oldest = self
                .paths
                .iter()
                .filter(|(id, path)| **id != self.current && !path.is_direct())
                .min_by_key(|(id, path)| {
                    let leaves = self.is_leaving(path, t.standing);
                    (path.works(), kept == Some(**id), !leaves, **id)
                })
                .map(|(id, _)| *id);
            match oldest {
                Some(id) => self.give_up(id, RefusalCode::Moved, t),
                None => return,
            }
        }
    }
}
