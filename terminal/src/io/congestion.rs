//! Congestion control of a session by path (architecture 7, "Congestion").
//!
//! quinn keeps one window for a connection; under it the packets of a session may change from one path to another. So
//! each path has a Cubic (RFC 8312) of its own: a path that is returned to goes on from what it was, another begins
//! anew, and what becomes of a packet counts for the path that was current when it was sent. [`CurrentPath`] is set by
//! whoever directs the session's packets; quinn builds its controller from [`PathControllers`].
//!
//! Invariants: at most [`limits::SESSION_PATHS`] paths are remembered, the one left longest ago is forgotten first; news
//! of a path that is forgotten changes nothing.

#[cfg(test)]
mod tests;
mod window;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};
use quinn_proto::RttEstimator;
use tasuki_proto::limits;
use tokio::sync::watch;

use self::window::Window;
use super::socket::Path;

/// Switches that are remembered. Packets are acknowledged or lost within a few round trips; what was sent before the
/// earliest of these counts for nobody.
const SWITCHES: usize = 16;

/// Which path was current since when.
#[derive(Debug, Clone, Default)]
struct Switches {
    /// The latest, in order.
    latest: VecDeque<(Instant, Path)>,
    /// How many there ever were.
    count: usize,
}

impl Switches {
    fn current(&self) -> Option<Path> {
        self.latest.back().map(|(_, path)| *path)
    }

    /// The path of what was sent at that time.
    fn at(&self, sent: Instant) -> Option<Path> {
        self.latest.iter().rev().find(|(since, _)| *since <= sent).map(|(_, path)| *path)
    }

    /// The paths that became current since there were so many switches.
    fn since(&self, count: usize) -> impl Iterator<Item = Path> + '_ {
        let old = self.latest.len().saturating_sub(self.count - count);
        self.latest.iter().skip(old).map(|(_, path)| *path)
    }

    /// Whether it was a switch.
    fn switch(&mut self, path: Path, now: Instant) -> bool {
        if self.current() == Some(path) {
            return false;
        }
        if self.latest.len() == SWITCHES {
            self.latest.pop_front();
        }
        self.latest.push_back((now, path));
        self.count += 1;
        true
    }
}

/// The path of one session's packets, as its congestion control is told.
#[derive(Debug, Default)]
pub struct CurrentPath {
    switches: watch::Sender<Switches>,
    progress: Arc<Progress>,
}

/// Bytes of packets that were sent since the latest switch, running totals.
#[derive(Debug, Default)]
struct Progress {
    acked: AtomicU64,
    lost: AtomicU64,
}

impl CurrentPath {
    /// What is sent from `now` on takes this path.
    pub fn switch(&self, path: Path, now: Instant) {
        self.switches.send_if_modified(|switches| switches.switch(path, now));
    }

    /// What is sent at present takes it; `None` before the first.
    pub fn get(&self) -> Option<Path> {
        self.switches.borrow().current()
    }

    /// Bytes that were acknowledged and lost, of packets that were sent since the latest switch; running totals.
    pub fn progress(&self) -> (u64, u64) {
        let Progress { acked, lost } = &*self.progress;
        (acked.load(Ordering::Relaxed), lost.load(Ordering::Relaxed))
    }

    /// What quinn builds the controller of this session's connection from.
    pub fn controllers(&self) -> Arc<PathControllers> {
        Arc::new(PathControllers {
            switches: self.switches.subscribe(),
            progress: self.progress.clone(),
            config: Arc::default(),
        })
    }
}

/// Builds the controller of one session's connection.
#[derive(Debug)]
pub struct PathControllers {
    switches: watch::Receiver<Switches>,
    progress: Arc<Progress>,
    config: Arc<CubicConfig>,
}

impl ControllerFactory for PathControllers {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let mut told = self.switches.clone();
        told.mark_changed();
        let fresh = Fresh { config: self.config.clone(), mtu: current_mtu };
        let first = fresh.window(now);
        Box::new(PathController {
            told,
            progress: self.progress.clone(),
            switches: Switches::default(),
            fresh,
            first,
            paths: VecDeque::new(),
        })
    }
}

/// What the controller of a path begins with.
#[derive(Debug, Clone)]
struct Fresh {
    config: Arc<CubicConfig>,
    mtu: u16,
}

impl Fresh {
    fn window(&self, now: Instant) -> Window {
        Window::new(Cubic::new(self.config.clone(), now, self.mtu), now, self.mtu)
    }
}

/// A path that is remembered.
#[derive(Debug, Clone)]
struct Remembered {
    path: Path,
    window: Window,
    /// Something sent over it since it became current was acknowledged.
    answers: bool,
}

/// The controller of one connection; see the module's documentation.
#[derive(Debug, Clone)]
struct PathController {
    told: watch::Receiver<Switches>,
    progress: Arc<Progress>,
    /// What was told, as far as it was taken in.
    switches: Switches,
    fresh: Fresh,
    /// Stands for the path that is current and was not met yet.
    first: Window,
    /// The current one first, then by how long ago each was left.
    paths: VecDeque<Remembered>,
}

impl PathController {
    /// Takes in the latest switches.
    fn catch_up(&mut self, now: Instant) {
        if !self.told.has_changed().unwrap_or_default() {
            return;
        }
        let before = self.switches.count;
        self.switches = self.told.borrow_and_update().clone();
        for path in self.switches.since(before) {
            let known = self.paths.iter().position(|one| one.path == path);
            let window = match known.and_then(|at| self.paths.remove(at)) {
                Some(one) => one.window,
                None => self.fresh.window(now),
            };
            self.paths.push_front(Remembered { path, window, answers: false });
        }
        self.paths.truncate(limits::SESSION_PATHS);
    }

    /// The path that a packet took which was sent at that time.
    fn path_of(&mut self, now: Instant, sent: Instant) -> Option<&mut Remembered> {
        self.catch_up(now);
        let path = self.switches.at(sent)?;
        self.paths.iter_mut().find(|one| one.path == path)
    }

    /// Whether what was sent at that time took the path that is current.
    fn is_latest(&mut self, now: Instant, sent: Instant) -> bool {
        self.catch_up(now);
        self.switches.latest.back().is_none_or(|(since, _)| *since <= sent)
    }

    fn current(&self) -> &Window {
        let told = self.told.has_changed().unwrap_or_default();
        let path = if told { self.told.borrow().current() } else { self.switches.current() };
        let one = self.paths.iter().find(|one| Some(one.path) == path);
        one.map_or(&self.first, |one| &one.window)
    }
}

impl Controller for PathController {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &RttEstimator,
    ) {
        if self.is_latest(now, sent) {
            self.progress.acked.fetch_add(bytes, Ordering::Relaxed);
        }
        if let Some(one) = self.path_of(now, sent) {
            one.answers = true;
            one.window.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    /// Of several packets that were lost `sent` is the latest. Losses of the path before may be among them, so that
    /// their time says nothing of a path that has not answered yet: there it is no persistent congestion.
    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        if self.is_latest(now, sent) {
            self.progress.lost.fetch_add(lost_bytes, Ordering::Relaxed);
        }
        if let Some(one) = self.path_of(now, sent) {
            let persistent = is_persistent_congestion && one.answers;
            one.window.on_congestion_event(now, sent, persistent, lost_bytes);
        }
    }

    /// quinn finds one MTU for the connection, whatever the path.
    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.fresh.mtu = new_mtu;
        self.first.on_mtu_update(new_mtu);
        self.paths.iter_mut().for_each(|one| one.window.on_mtu_update(new_mtu));
    }

    fn window(&self) -> u64 {
        self.current().window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.current().cubic().metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.first.cubic().initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
