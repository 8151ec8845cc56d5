//! A mesh of real processes: relays and agents on loopback, or each in its namespace.

mod disk;
mod relay;
mod spec;
mod terminal;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub use self::disk::Disk;
pub use self::relay::Relay;
pub use self::spec::{MeshSpec, RelaySpec, TerminalSpec};
pub use self::terminal::Terminal;
use super::process::{Process, Signal, error_lines, tail};
use super::wait::{POLL, SOON, eventually};

/// For a verb that answers at once.
pub const VERB: Duration = Duration::from_secs(20);
/// Flags with which an agent keeps its attachment alive every second and gives it up after three of silence.
pub const QUICK_SILENCE: [&str; 6] = ["--keep-alive", "1", "--idle", "3", "--resume", "3"];

/// A running mesh. Dropping it ends every process; an ERROR line in a log that was not declared fails the test
/// then, and a failing test gets the last lines of every log.
#[derive(Debug)]
pub struct Mesh {
    relays: BTreeMap<String, Relay>,
    terminals: BTreeMap<String, Terminal>,
    expected_errors: Vec<String>,
    folder: TempDir,
}

impl Mesh {
    /// A path in the mesh's own folder, which goes away with it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join("logs").join(format!("{name}.log"))
    }

    /// The relay of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn relay(&self, name: &str) -> &Relay {
        self.relays.get(name).unwrap_or_else(|| panic!("no relay {name}"))
    }

    /// The terminal of that name.
    ///
    /// # Panics
    /// When there is none.
    pub fn terminal(&self, name: &str) -> &Terminal {
        self.terminals.get(name).unwrap_or_else(|| panic!("no terminal {name}"))
    }

    /// All relays whose process runs.
    pub fn running_relays(&self) -> impl Iterator<Item = &Relay> {
        self.relays.values().filter(|relay| relay.is_running())
    }

    /// The relay that made the mesh.
    ///
    /// # Panics
    /// When there is none.
    pub fn registrar(&self) -> &Relay {
        self.relays.values().find(|r| r.registrar).expect("the first relay is the registrar")
    }

    /// Makes and starts a relay: `init` for the first, `token relay` and `join` for others.
    pub fn add_relay(&mut self, spec: RelaySpec) {
        let name = spec.name.clone();
        let token = (!self.relays.is_empty())
            .then(|| self.registrar().verb(&["token", "relay"]).ok().text());
        let relay = Relay::make(spec, token.as_deref(), self.path(&name), self.log(&name));
        relay.start();
        self.relays.insert(name, relay);
    }

    /// Registers, enrols and starts a terminal.
    pub fn add_terminal(&mut self, spec: TerminalSpec) {
        let name = spec.name.clone();
        let token = self.token(&name, &spec.token_flags);
        let terminal = Terminal::make(spec, &token, self.path(&name), self.log(&name));
        if terminal.starts {
            terminal.start();
        }
        self.terminals.insert(name, terminal);
    }

    /// A token for a terminal.
    pub fn token(&self, name: &str, flags: &[String]) -> String {
        let mut arguments = vec!["token", "terminal", name];
        arguments.extend(flags.iter().map(String::as_str));
        let token = self.registrar().verb(&arguments).ok().text();
        assert!(
            token.starts_with(|c: char| c.is_ascii_alphabetic())
                && !token.contains(char::is_whitespace),
            "a token is one word that begins with a letter: {token:?}"
        );
        token
    }

    /// Waits until each relay has the links that `--links` names, both ends running.
    pub fn wait_for_links(&self) {
        let names: BTreeSet<String> = self.running_relays().map(|r| r.name.clone()).collect();
        for relay in self.running_relays() {
            let Some(links) = &relay.spec.links else { continue };
            let wanted: BTreeSet<&str> = links.split(',').filter(|n| names.contains(*n)).collect();
            eventually(&format!("the links of {}", relay.name), SOON, || {
                let status = relay.api.json("/api/v1/status")?;
                let rows = status["links"].as_array().cloned().unwrap_or_default();
                let have: BTreeSet<&str> =
                    rows.iter().filter_map(|row| row["relay"].as_str()).collect();
                if have == wanted { Ok(()) } else { Err(format!("{have:?}, not {wanted:?}")) }
            });
        }
    }

    /// Waits until the table of each running relay satisfies `probe`; how long the last one took.
    ///
    /// # Panics
    /// When that is not so within `limit`.
    pub fn wait_everywhere(
        &self,
        what: &str,
        limit: Duration,
        mut probe: impl FnMut(&Relay) -> Result<(), String>,
    ) -> Duration {
        let start = Instant::now();
        let mut open: Vec<&Relay> = self.running_relays().collect();
        loop {
            let mut reasons = Vec::new();
            open.retain(|relay| match probe(relay) {
                Ok(()) => false,
                Err(reason) => {
                    reasons.push(format!("{}: {reason}", relay.name));
                    true
                }
            });
            let elapsed = start.elapsed();
            if open.is_empty() {
                return elapsed;
            }
            assert!(elapsed < limit, "{what}: not within {limit:?}: {reasons:?}");
            std::thread::sleep(POLL);
        }
    }

    /// Waits until every running relay's table shows `terminal` in `state`; how long that took.
    pub fn wait_state(&self, terminal: &str, state: &str, limit: Duration) -> Duration {
        let what = format!("{terminal} is {state} in every table");
        self.wait_everywhere(&what, limit, |relay| {
            let row = relay.row(terminal)?;
            if row["state"] == state { Ok(()) } else { Err(row.to_string()) }
        })
    }

    /// Waits until the tables of all running relays are equal: the same hash, and the same rows byte for byte.
    pub fn wait_tables_equal(&self, limit: Duration) -> Duration {
        let start = Instant::now();
        eventually("equal tables", limit, || {
            let mut views = BTreeMap::new();
            for relay in self.running_relays() {
                let status = relay.api.json("/api/v1/status")?;
                let hash = status["table"]["hash"].as_str().unwrap_or_default().to_owned();
                let rows = |path| relay.api.get(path).map(|r| r.body).map_err(|e| e.to_string());
                let terminals = rows("/api/v1/terminals?limit=1000")?;
                let relays = rows("/api/v1/relays")?;
                views.insert(relay.name.clone(), (hash, terminals, relays));
            }
            let first = views.values().next().ok_or("no relay runs")?;
            if !first.0.is_empty() && views.values().all(|view| view == first) {
                return Ok(());
            }
            let text = |view: &(String, Vec<u8>, Vec<u8>)| {
                let [a, b] = [&view.1, &view.2].map(|bytes| String::from_utf8_lossy(bytes));
                format!("{} {a} {b}", view.0)
            };
            Err(views.iter().map(|(n, view)| format!("\n{n}: {}", text(view))).collect())
        });
        start.elapsed()
    }

    /// Waits until no relay carries a session any more and every hop has given back what it held (C10).
    pub fn wait_no_sessions(&self, limit: Duration) -> Duration {
        self.wait_everywhere("no sessions", limit, |relay| {
            let running: Vec<Value> = relay.running_sessions()?;
            let status = relay.api.json("/api/v1/status")?;
            // Where the metric is offered, labels are gone too, but for those that rest.
            let labels = relay.api.metric("tasuki_switch_labels").unwrap_or(0.0);
            if running.is_empty() && status["sessions"] == 0 && labels == 0.0 {
                Ok(())
            } else {
                Err(format!("{} sessions, {labels} labels: {running:?}", status["sessions"]))
            }
        })
    }

    /// Prints the last lines of every log to stderr, as a failing test does by itself.
    pub fn show_logs(&self) {
        for (name, log) in self.logs() {
            eprintln!("---- the end of {name} ----\n{}", tail(&log));
        }
    }

    fn logs(&self) -> Vec<(String, PathBuf)> {
        let mut logs: Vec<_> = std::fs::read_dir(self.path("logs"))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
            .collect();
        logs.sort();
        logs
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        self.terminals.values().for_each(Terminal::kill);
        self.relays.values().for_each(Relay::kill);
        if failing {
            self.show_logs();
            return;
        }
        let expected = |line: &String| self.expected_errors.iter().any(|e| line.contains(e));
        let errors: Vec<String> = self
            .logs()
            .iter()
            .flat_map(|(name, log)| {
                let lines = error_lines(log).into_iter().filter(|line| !expected(line));
                lines.map(move |line| format!("{name}: {line}"))
            })
            .collect();
        assert!(errors.is_empty(), "errors in the logs:\n{}", errors.join("\n"));
    }
}

fn lock(slot: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_running(slot: &Mutex<Option<Process>>) -> bool {
    lock(slot).as_mut().is_some_and(|process| process.status().is_none())
}

fn signal(slot: &Mutex<Option<Process>>, signal: Signal) {
    if let Some(process) = lock(slot).as_mut() {
        process.signal(signal);
    }
}
