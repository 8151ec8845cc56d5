//! One terminal of a mesh.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::disk::Disk;
use super::spec::TerminalSpec;
use super::{VERB, is_running, lock, signal};
use crate::lab::bins::Bins;
use crate::lab::netns::Namespace;
use crate::lab::process::{Done, Piped, Process, Signal, run};
use crate::lab::programs::{command_in, free_address, wait_for_listener, wait_until_bound};

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    pub(super) name: String,
    pub(super) relays: Option<String>,
    pub(super) run_flags: Vec<String>,
    pub(super) namespace: Option<Namespace>,
    pub(super) starts: bool,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
    pub(super) process: Mutex<Option<Process>>,
    program: Mutex<PathBuf>,
    /// Verbs that stay, counted for the names of their logs.
    pub(super) verbs: AtomicU32,
    /// Goes after the process.
    disk: Option<Disk>,
}

impl Terminal {
    pub(super) fn make(spec: TerminalSpec, token: &str, data: PathBuf, log: PathBuf) -> Terminal {
        let disk = spec.disk.map(|bytes| Disk::mount(&data, bytes));
        let terminal = Terminal {
            name: spec.name,
            relays: spec.relays,
            run_flags: spec.run_flags,
            namespace: spec.namespace,
            starts: spec.starts,
            data,
            log,
            process: Mutex::new(None),
            program: Mutex::new(spec.program.unwrap_or_else(|| Bins::find().agent.clone())),
            verbs: AtomicU32::new(0),
            disk,
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

    /// Its disk ([`TerminalSpec::disk`]).
    ///
    /// # Panics
    /// When it has none of its own.
    pub fn disk(&self) -> &Disk {
        self.disk.as_ref().expect("a terminal with a disk of its own")
    }

    /// `tasuki-agent` on its data directory.
    pub fn command(&self) -> Command {
        let program = self.program.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut command = command_in(self.namespace.as_ref(), program);
        command.arg("--data").arg(&self.data);
        command
    }

    /// Runs this program from here on.
    pub fn set_program(&self, program: &Path) {
        program.clone_into(&mut self.program.lock().unwrap_or_else(PoisonError::into_inner));
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

    /// The process id of its agent, where it runs.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.process).as_ref().map(Process::pid)
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
