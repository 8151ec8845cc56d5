//! One relay of a mesh.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::disk::Disk;
use super::spec::RelaySpec;
use super::{VERB, is_running, lock, signal};
use crate::lab::bins::Bins;
use crate::lab::forwarder::Forwarder;
use crate::lab::http::StatusApi;
use crate::lab::process::{Done, Process, Signal, run, tail};
use crate::lab::programs::{command_in, free_address, free_port};
use crate::lab::wait::{SOON, eventually};

/// A relay's configuration with the periods of [`super::QUICK_SILENCE`].
const QUICK_SILENCE_FILE: &str = "keep_alive_s = 1\nidle_s = 3\n";

/// A relay.
#[derive(Debug)]
pub struct Relay {
    pub(super) name: String,
    pub(super) spec: RelaySpec,
    pub(super) registrar: bool,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
    pub(super) listen: SocketAddr,
    pub(super) line: Option<Forwarder>,
    /// Its status endpoint.
    pub api: StatusApi,
    pub(super) process: Mutex<Option<Process>>,
    program: Mutex<PathBuf>,
    /// Goes after the process.
    disk: Option<Disk>,
}

impl Relay {
    pub(super) fn make(spec: RelaySpec, token: Option<&str>, data: PathBuf, log: PathBuf) -> Relay {
        let (listen, status) = match &spec.host {
            Some((_, address)) => {
                ((*address, 4433).into(), SocketAddr::from(([127, 0, 0, 1], 8433)))
            }
            None => (free_address(), free_address()),
        };
        let namespace = spec.host.as_ref().map(|(namespace, _)| namespace.clone());
        let disk = spec.disk.map(|bytes| Disk::mount(&data, bytes));
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
        let program = spec.program.clone().unwrap_or_else(|| Bins::find().relay.clone());
        let advertise = line.as_ref().map_or(listen, Forwarder::address);
        let mut command = command_in(namespace.as_ref(), &program);
        command.arg("--data").arg(&data);
        match token {
            None => command.args(["init", "--mesh", "lab"]),
            Some(token) => command.args(["join", token]),
        };
        let bind = match spec.other_family {
            Some(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), listen.port()),
            None => listen,
        };
        command.args(["--name", &spec.name, "--listen", &bind.to_string()]);
        command.args(["--advertise", &advertise.to_string(), "--status", &status.to_string()]);
        if let Some(address) = spec.other_family {
            command.args(["--advertise", &SocketAddr::new(address, listen.port()).to_string()]);
        }
        run(command.args(&spec.init_flags), VERB).ok();
        let api = StatusApi { address: status, namespace };
        let (name, registrar) = (spec.name.clone(), token.is_none());
        let (process, program) = (Mutex::new(None), Mutex::new(program));
        Relay { name, spec, registrar, data, log, listen, line, api, process, program, disk }
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

    /// Its disk ([`RelaySpec::disk`]).
    ///
    /// # Panics
    /// When it has none of its own.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a relay with a disk of its own")
    }

    /// What it has logged so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn command(&self) -> Command {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = command_in(self.api.namespace.as_ref(), program);
        command.arg("--data").arg(&self.data);
        command
    }

    /// Runs this program from its next start on.
    pub fn set_program(&self, program: &Path) {
        program.clone_into(&mut self.program.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Starts its process and waits for `/healthz`; how long that took.
    ///
    /// # Panics
    /// When it runs already, ends at once or does not become healthy.
    pub fn start(&self) -> Duration {
        assert!(!self.is_running(), "{} runs already", self.name);
        let mut command = self.command();
        command.args(["run", "--log", "info"]);
        if let Some(links) = self.spec.links.as_deref().filter(|links| !links.is_empty()) {
            command.args(["--links", links]);
        }
        if self.spec.quick_silence {
            let config = self.data.with_extension("toml");
            std::fs::write(&config, QUICK_SILENCE_FILE).expect("our own folder");
            command.arg("--config").arg(config);
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

    /// The process id, where it runs.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.process).as_ref().map(Process::pid)
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
