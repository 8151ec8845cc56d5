//! What the daemons tell systemd: the test plays the socket of `NOTIFY_SOCKET` (sd_notify(3)).

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tasuki_tests::lab::bins::Bins;
use tasuki_tests::lab::process::{Process, Signal, run};
use tasuki_tests::lab::programs::free_address;
use tasuki_tests::lab::wait::SOON;

const VERB: Duration = Duration::from_secs(20);
/// `WATCHDOG_USEC`: a sign of life each third of it.
const WATCHDOG_US: &str = "600000";

/// The manager's side of a daemon that it started. It takes what comes at once, as systemd does: the socket holds few
/// messages, and a daemon waits where it is full.
struct Manager {
    messages: mpsc::Receiver<String>,
    path: PathBuf,
    heard: Vec<String>,
}

impl Manager {
    fn new(path: PathBuf) -> Manager {
        let socket = UnixDatagram::bind(&path).unwrap();
        let (hear, messages) = mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = socket.recv(&mut buffer) {
                if hear.send(String::from_utf8_lossy(&buffer[..count]).into_owned()).is_err() {
                    return;
                }
            }
        });
        Manager { messages, path, heard: Vec::new() }
    }

    /// Starts a daemon as systemd does: the process that it watches is named to it.
    fn start(&self, name: &str, daemon: &Command, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]);
        command.arg(daemon.get_program()).args(daemon.get_args());
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", WATCHDOG_US);
        Process::spawn(name, &mut command, log)
    }

    /// Waits for a message, and takes those before it.
    fn wait_for(&mut self, wanted: &str, process: &Process) {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {wanted}: {:?}\n{}", self.heard, process.output());
            let Ok(text) = self.messages.recv_timeout(left) else { continue };
            let found = text.lines().any(|line| line == wanted);
            self.heard.push(text);
            if found {
                return;
            }
        }
    }

    /// Follows a daemon that is ready to its end.
    fn follow(&mut self, mut process: Process) {
        self.wait_for("WATCHDOG=1", &process);
        self.wait_for("WATCHDOG=1", &process);
        process.signal(Signal::Terminate);
        self.wait_for("STOPPING=1", &process);
        let status = process.wait(SOON);
        assert!(status.success(), "{status}\n{}", process.output());
        assert_eq!(self.heard[0], "READY=1\n", "{:?}", self.heard);
    }
}

#[test]
fn systemd_hears_that_they_are_ready_alive_and_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let relay = |arguments: &[&str]| {
        let mut command = Command::new(&Bins::find().relay);
        command.arg("--data").arg(path("r1")).args(arguments);
        command
    };
    let agent = |arguments: &[&str]| {
        let mut command = Command::new(&Bins::find().agent);
        command.arg("--data").arg(path("t1")).args(arguments);
        command
    };
    let (listen, status) = (free_address().to_string(), free_address().to_string());
    run(&mut relay(&["init", "--name", "r1", "--listen", &listen, "--status", &status]), VERB).ok();

    let mut of_relay = Manager::new(path("relay.notify"));
    let running = of_relay.start("relay", &relay(&["run"]), &path("relay.log"));
    of_relay.wait_for("READY=1", &running);
    // Ready means that it answers.
    let token = run(&mut relay(&["token", "terminal", "t1"]), VERB).ok().text();
    run(&mut agent(&["enroll", &token]), VERB).ok();
    let mut of_agent = Manager::new(path("agent.notify"));
    let attached = of_agent.start("agent", &agent(&["run"]), &path("agent.log"));
    of_agent.wait_for("READY=1", &attached);
    of_agent.follow(attached);
    of_relay.follow(running);
}
