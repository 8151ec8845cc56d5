//! A mesh of real processes: relays and agents on loopback, or each in its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::bins::Bins;
use super::forwarder::{Forwarder, Impairment};
use super::http::StatusApi;
use super::netns::Namespace;
use super::process::{Done, Piped, Process, Signal, error_lines, run, tail};
use super::programs::{command_in, free_address, free_port, wait_for_listener};
use super::wait::{POLL, SOON, eventually};

/// For a verb that answers at once.
pub const VERB: Duration = Duration::from_secs(20);
/// Flags with which an agent keeps its attachment alive every second and gives it up after three of silence.
pub const QUICK_SILENCE: [&str; 4] = ["--keep-alive", "1", "--idle", "3"];

/// A relay to be started.
#[derive(Debug, Clone)]
pub struct RelaySpec {
    name: String,
    links: Option<String>,
    init_flags: Vec<String>,
    run_flags: Vec<String>,
    line: Option<Impairment>,
    host: Option<(Namespace, IpAddr)>,
}

impl RelaySpec {
    /// A relay on loopback that links with what it finds.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            links: None,
            init_flags: Vec::new(),
            run_flags: Vec::new(),
            line: None,
            host: None,
        }
    }

    /// Links with these and no others.
    pub fn links(mut self, names: &[&str]) -> Self {
        self.links = Some(names.join(","));
        self
    }

    /// More flags for `init` or `join`.
    pub fn init_flags(mut self, flags: &[&str]) -> Self {
        self.init_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// More flags for `run`.
    pub fn run_flags(mut self, flags: &[&str]) -> Self {
        self.run_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// Everybody reaches this relay over a line like this only; see [`Relay::line`].
    pub fn behind(mut self, line: Impairment) -> Self {
        self.line = Some(line);
        self
    }

    /// In a namespace that has this address, on the usual ports.
    pub fn on(mut self, namespace: &Namespace, address: impl Into<IpAddr>) -> Self {
        self.host = Some((namespace.clone(), address.into()));
        self
    }
}

/// A terminal to be enrolled and started.
#[derive(Debug, Clone)]
pub struct TerminalSpec {
    name: String,
    relays: Option<String>,
    token_flags: Vec<String>,
    run_flags: Vec<String>,
    namespace: Option<Namespace>,
    starts: bool,
}

impl TerminalSpec {
    /// A terminal on loopback that chooses its relays by itself.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            relays: None,
            token_flags: Vec::new(),
            run_flags: Vec::new(),
            namespace: None,
            starts: true,
        }
    }

    /// Attaches to these relays and no others.
    pub fn at(mut self, relays: &[&str]) -> Self {
        self.relays = Some(relays.join(","));
        self
    }

    /// Exposes a service at a `tcp://` or `udp://` address to everybody.
    pub fn offers(self, service: &str, url: &str) -> Self {
        self.flags(&["--expose", &format!("{service}={url}"), "--allow", &format!("{service}=*")])
    }

    /// More flags for `run`.
    pub fn flags(mut self, flags: &[&str]) -> Self {
        self.run_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// More flags for `token terminal`.
    pub fn token_flags(mut self, flags: &[&str]) -> Self {
        self.token_flags.extend(flags.iter().map(|&f| f.to_owned()));
        self
    }

    /// Notices a silent relay, and is noticed when silent, within a few seconds ([`QUICK_SILENCE`]).
    pub fn quick_silence(self) -> Self {
        self.flags(&QUICK_SILENCE)
    }

    /// In a namespace.
    pub fn on(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// Enrolled, but its agent is not started.
    pub fn stays_off(mut self) -> Self {
        self.starts = false;
        self
    }
}

/// What a mesh is made of. The first relay is the registrar.
#[derive(Debug, Clone, Default)]
pub struct MeshSpec {
    relays: Vec<RelaySpec>,
    terminals: Vec<TerminalSpec>,
    expected_errors: Vec<String>,
}

impl MeshSpec {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Each relay is linked with the next.
    pub fn line(names: &[&str]) -> Self {
        let links: Vec<_> = names.windows(2).map(|pair| (pair[0], pair[1])).collect();
        Self::linked(names, &links)
    }

    /// A line whose ends are linked too.
    pub fn ring(names: &[&str]) -> Self {
        let next = names.iter().cycle().skip(1);
        let links: Vec<_> = names.iter().copied().zip(next.copied()).collect();
        Self::linked(names, &links)
    }

    /// Each relay is linked with the first.
    pub fn star(names: &[&str]) -> Self {
        let links: Vec<_> = names[1..].iter().map(|&name| (names[0], name)).collect();
        Self::linked(names, &links)
    }

    fn linked(names: &[&str], links: &[(&str, &str)]) -> Self {
        let neighbours = |name: &str| -> Vec<&str> {
            let peers = links.iter().filter_map(|&(a, b)| match name {
                _ if name == a => Some(b),
                _ if name == b => Some(a),
                _ => None,
            });
            peers.collect::<BTreeSet<_>>().into_iter().collect()
        };
        let relays = names.iter().map(|&name| match &neighbours(name)[..] {
            // A relay alone has nobody to name.
            [] => RelaySpec::new(name),
            peers => RelaySpec::new(name).links(peers),
        });
        Self { relays: relays.collect(), ..Self::default() }
    }

    /// With this relay too.
    pub fn relay(mut self, relay: RelaySpec) -> Self {
        self.relays.push(relay);
        self
    }

    /// With every relay changed so.
    pub fn each_relay(mut self, change: impl FnMut(RelaySpec) -> RelaySpec) -> Self {
        self.relays = self.relays.into_iter().map(change).collect();
        self
    }

    /// With this terminal too.
    pub fn terminal(mut self, terminal: TerminalSpec) -> Self {
        self.terminals.push(terminal);
        self
    }

    /// ERROR lines with this text do not fail the test.
    pub fn expect_error(mut self, text: &str) -> Self {
        self.expected_errors.push(text.to_owned());
        self
    }

    /// Makes the mesh, starts everything, and waits until every table shows every started terminal.
    ///
    /// # Panics
    /// When that does not come to pass.
    pub fn start(self) -> Mesh {
        let folder = tempfile::Builder::new().prefix("tsk").tempdir().expect("a folder");
        let mut mesh = Mesh {
            relays: BTreeMap::new(),
            terminals: BTreeMap::new(),
            expected_errors: self.expected_errors,
            folder,
        };
        std::fs::create_dir(mesh.path("logs")).expect("our own folder");
        for spec in self.relays {
            mesh.add_relay(spec);
        }
        mesh.wait_for_links();
        for spec in self.terminals {
            mesh.add_terminal(spec);
        }
        let started: Vec<String> = mesh
            .terminals
            .values()
            .filter(|t| t.is_running())
            .map(|terminal| terminal.name.clone())
            .collect();
        for name in started {
            mesh.wait_state(&name, "logged-in", SOON);
        }
        mesh
    }
}

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
            for (name, log) in self.logs() {
                eprintln!("---- the end of {name} ----\n{}", tail(&log));
            }
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

/// A relay.
#[derive(Debug)]
pub struct Relay {
    name: String,
    spec: RelaySpec,
    registrar: bool,
    data: PathBuf,
    log: PathBuf,
    listen: SocketAddr,
    line: Option<Forwarder>,
    /// Its status endpoint.
    pub api: StatusApi,
    process: Mutex<Option<Process>>,
}

impl Relay {
    fn make(spec: RelaySpec, token: Option<&str>, data: PathBuf, log: PathBuf) -> Relay {
        let (listen, status) = match &spec.host {
            Some((_, address)) => {
                ((*address, 4433).into(), SocketAddr::from(([127, 0, 0, 1], 8433)))
            }
            None => (free_address(), free_address()),
        };
        let namespace = spec.host.as_ref().map(|(namespace, _)| namespace.clone());
        let line = spec.line.map(|impairment| {
            let at = SocketAddr::new(listen.ip(), free_port());
            let line = match &namespace {
                Some(namespace) => Forwarder::start_in(namespace, at, listen, 1),
                None => Forwarder::start(at, listen, 1),
            };
            let line = line.expect("a free port");
            line.set_both(impairment);
            line
        });
        let advertise = line.as_ref().map_or(listen, Forwarder::address);
        let mut command = command_in(namespace.as_ref(), &Bins::find().relay);
        command.arg("--data").arg(&data);
        match token {
            None => command.args(["init", "--mesh", "lab"]),
            Some(token) => command.args(["join", token]),
        };
        command.args(["--name", &spec.name, "--listen", &listen.to_string()]);
        command.args(["--advertise", &advertise.to_string(), "--status", &status.to_string()]);
        run(command.args(&spec.init_flags), VERB).ok();
        let api = StatusApi { address: status, namespace };
        let (name, registrar) = (spec.name.clone(), token.is_none());
        Relay { name, spec, registrar, data, log, listen, line, api, process: Mutex::new(None) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Where it listens for QUIC.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// The line in front of it ([`RelaySpec::behind`]).
    ///
    /// # Panics
    /// When there is none.
    pub fn line(&self) -> &Forwarder {
        self.line.as_ref().expect("a relay with a line in front")
    }

    fn command(&self) -> Command {
        let mut command = command_in(self.api.namespace.as_ref(), &Bins::find().relay);
        command.arg("--data").arg(&self.data);
        command
    }

    /// Starts its process and waits for `/healthz`; how long that took.
    ///
    /// # Panics
    /// When it runs already, ends at once or does not become healthy.
    pub fn start(&self) -> Duration {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut command = self.command();
        command.args(["run", "--log", "info"]);
        if let Some(links) = &self.spec.links {
            command.args(["--links", links]);
        }
        command.args(&self.spec.run_flags);
        let process = Process::spawn(&self.name, &mut command, &self.log);
        *lock(&self.process) = Some(process);
        let start = Instant::now();
        eventually(&format!("{} is healthy", self.name), SOON, || {
            assert!(self.is_running(), "{} ended:\n{}", self.name, tail(&self.log));
            match self.api.get("/healthz") {
                Ok(response) if response.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        start.elapsed()
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        is_running(&self.process)
    }

    /// kill -9.
    pub fn kill(&self) {
        *lock(&self.process) = None;
    }

    /// Sends a signal.
    pub fn signal(&self, which: Signal) {
        signal(&self.process, which);
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        lock(&self.process).as_ref().map_or(0, Process::rss)
    }

    /// Runs a verb of `tasuki-relay` on its data directory.
    pub fn verb(&self, arguments: &[&str]) -> Done {
        run(self.command().args(arguments), VERB)
    }

    /// The table's row of a terminal.
    ///
    /// # Errors
    /// When there is none, or the relay does not answer.
    pub fn row(&self, terminal: &str) -> Result<Value, String> {
        self.api.json(&format!("/api/v1/terminals/{terminal}"))
    }

    /// The relay's row of a relay.
    ///
    /// # Errors
    /// When there is none, or the relay does not answer.
    pub fn relay_row(&self, name: &str) -> Result<Value, String> {
        let rows = self.api.items("/api/v1/relays")?;
        rows.into_iter().find(|r| r["name"] == name).ok_or_else(|| format!("no relay {name}"))
    }

    /// All sessions that it was an edge of or passed on.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub fn sessions(&self) -> Result<Vec<Value>, String> {
        self.api.items("/api/v1/sessions")
    }

    /// Those that are called or active.
    ///
    /// # Errors
    /// When the relay does not answer.
    pub fn running_sessions(&self) -> Result<Vec<Value>, String> {
        let all = self.sessions()?;
        Ok(all.into_iter().filter(|session| session["state"] != "ended").collect())
    }
}

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    name: String,
    relays: Option<String>,
    run_flags: Vec<String>,
    namespace: Option<Namespace>,
    starts: bool,
    data: PathBuf,
    log: PathBuf,
    process: Mutex<Option<Process>>,
    /// Verbs that stay, counted for the names of their logs.
    verbs: AtomicU32,
}

impl Terminal {
    fn make(spec: TerminalSpec, token: &str, data: PathBuf, log: PathBuf) -> Terminal {
        let terminal = Terminal {
            name: spec.name,
            relays: spec.relays,
            run_flags: spec.run_flags,
            namespace: spec.namespace,
            starts: spec.starts,
            data,
            log,
            process: Mutex::new(None),
            verbs: AtomicU32::new(0),
        };
        terminal.verb(&["enroll", token]).ok();
        terminal
    }

    /// Its user id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `tasuki-agent` on its data directory.
    pub fn command(&self) -> Command {
        let mut command = command_in(self.namespace.as_ref(), &Bins::find().agent);
        command.arg("--data").arg(&self.data);
        command
    }

    /// Starts its agent.
    ///
    /// # Panics
    /// When it runs already.
    pub fn start(&self) {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut command = self.command();
        command.args(["run", "--log", "info"]);
        if let Some(relays) = &self.relays {
            command.args(["--relays", relays]);
        }
        command.args(&self.run_flags);
        let process = Process::spawn(&self.name, &mut command, &self.log);
        *lock(&self.process) = Some(process);
    }

    /// Whether its agent runs.
    pub fn is_running(&self) -> bool {
        is_running(&self.process)
    }

    /// kill -9.
    pub fn kill(&self) {
        *lock(&self.process) = None;
    }

    /// Sends a signal to its agent.
    pub fn signal(&self, which: Signal) {
        signal(&self.process, which);
    }

    /// Resident memory of its agent in bytes.
    pub fn rss(&self) -> u64 {
        lock(&self.process).as_ref().map_or(0, Process::rss)
    }

    /// What its agent has logged so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs a verb of `tasuki-agent`.
    pub fn verb(&self, arguments: &[&str]) -> Done {
        self.verb_within(arguments, VERB)
    }

    /// Runs a verb that may take up to `limit`.
    pub fn verb_within(&self, arguments: &[&str], limit: Duration) -> Done {
        run(self.command().args(arguments), limit)
    }

    /// A verb's list in JSON, whether it stands bare or under `items`.
    ///
    /// # Panics
    /// When the verb fails or prints no list.
    pub fn list(&self, verb: &str) -> Vec<Value> {
        let json = self.verb(&[verb, "--json"]).ok().json();
        let list = json.as_array().or_else(|| json["items"].as_array());
        list.unwrap_or_else(|| panic!("{verb} prints no list: {json}")).clone()
    }

    /// Starts `dial` to `TARGET/SERVICE`, its stdin and stdout in the test's hands.
    pub fn dial(&self, target: &str) -> Piped {
        let mut command = self.command();
        command.args(["dial", target]);
        let name = format!("{} dials {target}", self.name);
        let number = self.verbs.fetch_add(1, Ordering::Relaxed);
        let log = self.log.with_file_name(format!("{}-dial-{number}.log", self.name));
        Piped::spawn(&name, &mut command, &log)
    }

    /// Starts `forward` from a free TCP port of loopback to `TARGET/SERVICE`, and waits until it listens.
    pub fn forward(&self, target: &str) -> (Process, SocketAddr) {
        let listen = free_address();
        let process = self.start_forward(&listen.to_string(), target);
        wait_until_bound(&process, "tcp", listen.port());
        (process, listen)
    }

    /// Starts `forward udp:` from a free port of loopback to `TARGET/SERVICE`, and waits until it listens.
    pub fn forward_udp(&self, target: &str) -> (Process, SocketAddr) {
        let listen = free_address();
        let process = self.start_forward(&format!("udp:{listen}"), target);
        wait_until_bound(&process, "udp", listen.port());
        (process, listen)
    }

    fn start_forward(&self, listen: &str, target: &str) -> Process {
        let mut command = self.command();
        command.args(["forward", listen, target]);
        let name = format!("{} forwards to {target}", self.name);
        let number = self.verbs.fetch_add(1, Ordering::Relaxed);
        let log = self.log.with_file_name(format!("{}-forward-{number}.log", self.name));
        Process::spawn(&name, &mut command, &log)
    }

    /// Waits until something listens in this terminal's network.
    pub fn wait_for_listener(&self, address: SocketAddr) {
        wait_for_listener(address, self.namespace.as_ref(), &self.log);
    }

    /// In which namespace it is.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }
}

/// Waits until a socket is bound to `port` in the network of `process`: not by connecting, which would be a
/// connection, and not by binding, which would take the port away.
fn wait_until_bound(process: &Process, protocol: &str, port: u16) {
    eventually(&format!("{} listens", process.name()), SOON, || {
        let tables = [protocol.to_owned(), format!("{protocol}6")];
        let bound = tables.iter().any(|table| {
            let path = format!("/proc/{}/net/{table}", process.pid());
            // After a line's number stands the local address, port last; a TCP socket listens in state 0A.
            std::fs::read_to_string(path).unwrap_or_default().lines().skip(1).any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let here = words.get(1).is_some_and(|w| w.ends_with(&format!(":{port:04X}")));
                here && (protocol == "udp" || words.get(3) == Some(&"0A"))
            })
        });
        if bound { Ok(()) } else { Err(process.output()) }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_port_is_seen_without_touching_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut sleeper = Command::new("sleep");
        let process = Process::spawn("sleep", sleeper.arg("100"), &log);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
        wait_until_bound(&process, "tcp", tcp.local_addr().expect("bound").port());
        wait_until_bound(&process, "udp", udp.local_addr().expect("bound").port());
    }

    #[test]
    fn topologies_name_their_links() {
        let links = |spec: MeshSpec| -> Vec<String> {
            spec.relays.into_iter().map(|relay| relay.links.unwrap_or_default()).collect()
        };
        assert_eq!(links(MeshSpec::line(&["a"])), [""]);
        assert_eq!(links(MeshSpec::line(&["a", "b", "c"])), ["b", "a,c", "b"]);
        assert_eq!(links(MeshSpec::ring(&["a", "b", "c", "d"])), ["b,d", "a,c", "b,d", "a,c"]);
        assert_eq!(links(MeshSpec::star(&["a", "b", "c"])), ["b,c", "a", "a"]);
    }
}
