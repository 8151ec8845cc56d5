//! Calls all the time: each ends with its echo, or with a code; while all is calm, with its echo.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_tests::lab::Mesh;
use tasuki_tests::lab::wait::POLL;

use super::Names;

/// A call that takes longer hangs: longer than a session without a path waits for one.
const HANGS: Duration = Duration::from_secs(100);
/// From the end of its stdout to that of a verb.
const SAYS_WHY: Duration = Duration::from_secs(10);
/// From one call to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// What callers share with the script.
pub(super) struct Callers {
    names: Names,
    stop: AtomicBool,
    /// Even while all is calm; one more with each change.
    weather: AtomicU64,
    made: AtomicU64,
    refused: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Callers {
    /// All is calm.
    pub(super) fn new(names: &Names) -> Callers {
        Callers {
            names: names.clone(),
            stop: AtomicBool::new(false),
            weather: AtomicU64::new(0),
            made: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            wrong: Mutex::default(),
        }
    }

    /// Something is struck, or everything is mended.
    pub(super) fn weather_changes(&self) {
        self.weather.fetch_add(1, Ordering::SeqCst);
    }

    /// No further calls.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Calls made, calls refused with a code, and what went wrong.
    pub(super) fn counts(&self) -> (u64, u64, Vec<String>) {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (self.made.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed), wrong)
    }

    /// Calls until told to stop.
    pub(super) fn run(&self, mesh: &Mesh, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (all, callers) = (&self.names.terminals, &self.names.terminals[self.names.paired..]);
        while !self.stop.load(Ordering::Relaxed) {
            let from = &callers[rng.random_range(0..callers.len())];
            let to = &all[rng.random_range(0..all.len())];
            if from != to {
                let before = self.weather.load(Ordering::SeqCst);
                let result = call(mesh, from, to, rng.random());
                let calm =
                    before.is_multiple_of(2) && self.weather.load(Ordering::SeqCst) == before;
                self.count(result, calm);
                std::thread::sleep(PAUSE);
            }
        }
    }

    fn count(&self, result: Result<(), Failure>, calm: bool) {
        self.made.fetch_add(1, Ordering::Relaxed);
        let wrong = match result {
            Ok(()) => return,
            Err(Failure::Coded(text)) if calm => format!("while all was calm: {text}"),
            Err(Failure::Coded(_)) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(Failure::Other(text)) => text,
        };
        eprintln!("WRONG: {wrong}");
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(wrong);
    }
}

enum Failure {
    /// It ended, and said why.
    Coded(String),
    /// It hung, or brought what was not sent.
    Other(String),
}

/// One call with a session of its own, or one that stands: eight bytes there and back.
fn call(mesh: &Mesh, from: &str, to: &str, number: u64) -> Result<(), Failure> {
    let mut dial = mesh.terminal(from).dial(&format!("{to}/echo"));
    let sent = number.to_be_bytes();
    // Where it ended already, its stdout says so.
    let _ = dial.write(&sent);
    let heard = dial.read_exact(sent.len(), HANGS);
    // It closes its stdout before it says why.
    let ended = heard.is_err() && {
        let begun = Instant::now();
        while dial.process().status().is_none() && begun.elapsed() < SAYS_WHY {
            std::thread::sleep(POLL);
        }
        dial.process().status().is_some()
    };
    let what = format!("{from} calls {to}: ");
    match heard {
        Ok(heard) if heard == sent => Ok(()),
        Ok(heard) => Err(Failure::Other(format!("{what}{heard:?} for {sent:?}"))),
        Err(error) if !ended => Err(Failure::Other(format!("{what}no end: {error}"))),
        Err(error) => {
            let said = dial.stderr();
            let line = said.lines().last().unwrap_or_default();
            let text = format!("{what}{line} ({error})");
            Err(if line.is_empty() { Failure::Other(text) } else { Failure::Coded(text) })
        }
    }
}
