//! What is written down of a run, and what must never happen in one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tasuki_proto::path::PROBE_FRAME;
use tasuki_proto::{RefusalCode, SessionId, limits};
use tasuki_terminal::core::paths::{DirectCounts, Output, PathId};

use super::net::is_private;
use super::terminal::{Open, Way};
use super::world::World;

/// Probes to an address that never answered: an opener and three rounds (D1).
const TRIES: u32 = 4;
/// Probes that one end of a session sends in a second at most: 20 each on the path in use and on a second one, 10 each on
/// other relayed paths, and all tries of all direct ones.
const PROBES_A_SECOND: usize = 40 + 10 * limits::PATHS_PER_SESSION + 4 * limits::DIRECT_PATHS;
const SECOND: Duration = Duration::from_secs(1);

/// What one end of a session did and saw.
#[derive(Debug, Default)]
pub(super) struct Record {
    sent: Vec<Duration>,
    /// How often each packet of the peer came.
    arrived: BTreeMap<u64, u32>,
    /// When the last one came, and by which path.
    last: Option<(Duration, PathId)>,
    gap: Duration,
    pub(super) moves: usize,
    answered: BTreeSet<PathId>,
    tries: BTreeMap<PathId, u32>,
    probes: VecDeque<Duration>,
    direct_tries: usize,
}

impl Record {
    /// One more packet leaves; returns its number.
    pub(super) fn sent(&mut self, now: Duration) -> u64 {
        self.sent.push(now);
        self.sent.len() as u64 - 1
    }

    pub(super) fn arrived(&mut self, number: u64, path: PathId, now: Duration) {
        *self.arrived.entry(number).or_default() += 1;
        if let Some((before, _)) = self.last {
            self.gap = self.gap.max(now - before);
        }
        self.last = Some((now, path));
    }

    /// Packets that left so far, and those of the peer that arrived, each once.
    pub(super) fn count_sent(&self) -> u64 {
        self.sent.len() as u64
    }

    pub(super) fn count_arrived(&self) -> u64 {
        self.arrived.len() as u64
    }

    pub(super) fn answered(&mut self, path: PathId) {
        self.answered.insert(path);
    }

    pub(super) fn removed(&mut self, path: PathId) {
        self.answered.remove(&path);
        self.tries.remove(&path);
    }
}

impl World {
    pub(super) fn count_probe(
        &mut self,
        terminal: usize,
        session: SessionId,
        path: PathId,
        length: usize,
    ) {
        let now = self.now;
        let Some(open) = self.terminals[terminal].sessions.get_mut(&session) else { return };
        let record = &mut open.record;
        record.probes.push_back(now);
        while record.probes.front().is_some_and(|at| *at + SECOND <= now) {
            record.probes.pop_front();
        }
        let many = record.probes.len();
        let unproven = length == PROBE_FRAME && !record.answered.contains(&path);
        let mut tries = 0;
        if matches!(path, PathId::Direct(_)) && unproven {
            record.direct_tries += 1;
            let counted = record.tries.entry(path).or_default();
            *counted += 1;
            tries = *counted;
        }
        if many > PROBES_A_SECOND {
            self.wrong.push(format!("t{terminal} sends {many} probes in a second at {now:?}"));
        }
        if tries > TRIES {
            self.wrong.push(format!("t{terminal}: {tries} probes on {path:?} without an answer"));
        }
    }

    /// A packet of the end-to-end connection leaves by this way: by a private address only to the peer, in its LAN.
    pub(super) fn check_use(&mut self, terminal: usize, session: SessionId, id: PathId, way: Way) {
        if !matches!(id, PathId::Direct(_)) || !is_private(way.to.ip()) {
            return;
        }
        let here = &self.terminals[terminal];
        let Some(open) = here.sessions.get(&session) else { return };
        let own = &self.net.hosts[here.host];
        let peer = &self.net.hosts[self.terminals[open.peer].host];
        if own.gateways != peer.gateways || !peer.interfaces().contains(&way.to.ip()) {
            let to = way.to;
            self.wrong.push(format!("t{terminal} sends data to {to}, which is not its peer"));
        }
    }

    pub(super) fn ends(&self, call: usize) -> Option<[&Open; 2]> {
        let made = self.made.get(call)?;
        let [a, b] = made.ends.map(|end| self.terminals[end].sessions.get(&made.session));
        Some([a?, b?])
    }

    fn both(&self, call: usize, test: impl Fn(&Open) -> bool) -> bool {
        self.ends(call).is_some_and(|ends| ends.into_iter().all(test))
    }

    /// Whether both ends send data directly, and hear each other's by the same path.
    pub fn is_direct(&self, call: usize) -> bool {
        self.both(call, |open| {
            let by = open.record.last.map(|(_, path)| path);
            matches!(open.current, PathId::Direct(_)) && by == Some(open.current)
        })
    }

    /// Whether both ends send data over the same relayed path, and hear each other's by it.
    pub fn is_relayed(&self, call: usize) -> bool {
        let current = self.ends(call).map(|[a, _]| a.current);
        self.both(call, |open| {
            let by = open.record.last.map(|(_, path)| path);
            let same = Some(open.current) == current && by == current;
            same && matches!(open.current, PathId::Relayed(_))
        })
    }

    /// Whether data came to both ends within this time, and the session lives at both.
    pub fn moves_data(&self, call: usize, within: Duration) -> bool {
        let since = self.now.saturating_sub(within);
        self.both(call, |open| {
            open.over.is_none() && open.record.last.is_some_and(|(at, _)| at >= since)
        })
    }

    /// What the session ended with at each of its ends.
    pub fn over(&self, call: usize) -> [Option<RefusalCode>; 2] {
        self.ends(call).map_or([None; 2], |ends| ends.map(|open| open.over))
    }

    /// How often either end moved its data, so far.
    pub fn moves(&self, call: usize) -> usize {
        self.ends(call).map_or(0, |ends| ends.iter().map(|open| open.record.moves).sum())
    }

    /// Probes that the ends sent to addresses that had not answered, so far.
    pub fn tries(&self, call: usize) -> usize {
        self.ends(call).map_or(0, |ends| ends.iter().map(|open| open.record.direct_tries).sum())
    }

    /// Whether relays could carry a call's data, as its terminals are attached.
    pub fn could_be_relayed(&self, call: usize) -> bool {
        let [a, b] = self.made[call].ends.map(|end| &self.terminals[end]);
        self.mesh.reaches(a, b)
    }

    /// Begins to look at stalls: what was before does not count.
    pub fn mark(&mut self, call: usize) {
        let now = self.now;
        for end in self.made[call].ends {
            let Some(open) = self.terminals[end].sessions.get_mut(&self.made[call].session) else {
                continue;
            };
            open.record.gap = Duration::ZERO;
            open.record.last = open.record.last.map(|(_, path)| (now, path));
        }
    }

    /// For how long nothing came to one of the ends since [`World::mark`], at most.
    pub fn stall(&self, call: usize) -> Duration {
        let since = |open: &Open| {
            let last = open.record.last.map_or(self.now, |(at, _)| at);
            open.record.gap.max(self.now - last)
        };
        self.ends(call)
            .map_or(Duration::ZERO, |ends| ends.into_iter().map(since).max().unwrap_or_default())
    }

    /// From the first to the last packet that left after `from`, was sent long enough ago, and never came.
    pub fn lost_since(&self, call: usize, from: Duration) -> Option<(Duration, Duration)> {
        let ends = self.ends(call)?;
        let until = self.now.saturating_sub(SECOND);
        let mut lost = Vec::new();
        for (sender, receiver) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let gone = sender.record.sent.iter().zip(0..).filter(|(at, number)| {
                **at >= from && **at < until && !receiver.record.arrived.contains_key(number)
            });
            lost.extend(gone.map(|(at, _)| *at));
        }
        Some((*lost.iter().min()?, *lost.iter().max()?))
    }

    /// The time since the beginning.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// How often a terminal tried direct paths, and what came of it.
    pub fn counts(&self, terminal: usize) -> DirectCounts {
        self.terminals[terminal].paths.counts()
    }

    /// How many paths the ends of a call know, relayed and direct; and how many labels the relays.
    pub fn known(&self, call: usize) -> ([usize; 2], usize) {
        let paths = self.ends(call).map_or([0; 2], |ends| ends.map(|open| open.installed.len()));
        (paths, self.mesh.labels(self.made[call].session))
    }

    /// What each end of each session does.
    pub fn state(&self) -> String {
        let mut lines = vec![format!("at {:?}", self.now)];
        for made in &self.made {
            for end in made.ends {
                let Some(open) = self.terminals[end].sessions.get(&made.session) else { continue };
                let info = self.terminals[end].paths.info(made.session);
                let why = info.map_or_else(String::new, |info| info.why);
                let (current, last, over) = (open.current, open.record.last, open.over);
                let ways: Vec<_> = open.installed.iter().map(|(id, way)| (id, way.to)).collect();
                lines.push(format!(
                    "t{end}: {current:?} ({why}), heard last {last:?}, over {over:?}, paths {ways:?}"
                ));
            }
        }
        lines.join("\n  ")
    }

    pub(super) fn print(&self, terminal: usize, output: &Output) {
        println!("{:?} t{terminal} {output:?}", self.now);
    }

    /// Whether nothing happened that must not.
    ///
    /// # Errors
    /// With all of it.
    pub fn check(&self) -> Result<(), String> {
        let most = limits::DIRECT_PATHS + limits::PATHS_PER_SESSION;
        let mut wrong = self.wrong.clone();
        for (call, _) in self.made.iter().enumerate() {
            let (paths, labels) = self.known(call);
            if paths.iter().any(|paths| *paths > most) || labels > 4 * limits::PATHS_PER_SESSION {
                wrong.push(format!("call {call}: {paths:?} paths, {labels} labels"));
            }
        }
        let copied = |open: &Open| open.record.arrived.values().any(|times| *times > 8);
        for (call, ends) in (0..self.made.len()).filter_map(|n| Some((n, self.ends(n)?))) {
            if ends.into_iter().any(copied) {
                wrong.push(format!("call {call}: a packet came more than eight times"));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("{}\n  {}", wrong.join("\n  "), self.state()))
        }
    }
}
