//! Processes that never outlive their owner.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{PoisonError, RwLock, mpsc};
use std::time::{Duration, Instant};

use super::sys;
use super::wait::{POLL, eventually};

/// Until it runs its program, a new process has copies of all descriptors of this one. Who binds a port to see whether it
/// is free takes this to write: else a copy may hold the port a moment longer.
pub(super) static STARTS: RwLock<()> = RwLock::new(());
/// Lines of a process' log that are shown when a test fails.
const TAIL_LINES: usize = 40;

/// A signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Please end.
    Terminate,
    /// Dies without a word.
    Kill,
    /// Hangs.
    Stop,
    /// Goes on.
    Continue,
    /// Reads its settings again.
    Hangup,
}

impl Signal {
    const fn number(self) -> i32 {
        match self {
            Signal::Interrupt => sys::SIGINT,
            Signal::Terminate => sys::SIGTERM,
            Signal::Kill => sys::SIGKILL,
            Signal::Stop => sys::SIGSTOP,
            Signal::Continue => sys::SIGCONT,
            Signal::Hangup => sys::SIGHUP,
        }
    }
}

/// A running program with its log. Dropping it kills it with everything in its process group; so does the end
/// of the thread that started it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; stdout and stderr are appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Process {
        let out = append(log);
        let err = out.try_clone().expect("a descriptor");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        Process { name: name.to_owned(), child: start(name, command), log: log.to_owned() }
    }

    /// Its name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, once it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        eventually(&what, limit, || self.status().ok_or_else(|| "it runs".to_owned()))
    }

    /// Sends a signal to its process group.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            // The group may end by itself at this very moment.
            let _ = sys::signal_group(self.child.id(), signal.number());
        }
    }

    /// Kills it without a word and reaps it.
    pub fn kill(&mut self) {
        kill(&mut self.child);
    }

    /// What it has written so far.
    pub fn output(&self) -> String {
        read_log(&self.log)
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        rss(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running program that the test talks to: stdin and stdout are pipes, stderr goes to a log.
#[derive(Debug)]
pub struct Piped {
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: mpsc::Receiver<Vec<u8>>,
    pending: Vec<u8>,
    at_end: bool,
}

impl Piped {
    /// Starts `command`; stderr is appended to `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Piped {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(append(log));
        let mut child = start(name, command);
        let stdin = child.stdin.take();
        let mut out = child.stdout.take().expect("stdout is a pipe");
        let (chunks, stdout) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                if chunks.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let process = Process { name: name.to_owned(), child, log: log.to_owned() };
        Piped { process, stdin, stdout, pending: Vec::new(), at_end: false }
    }

    /// Writes to its stdin.
    ///
    /// # Errors
    /// When it has closed its stdin, or is gone.
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        stdin.write_all(bytes)?;
        stdin.flush()
    }

    /// Closes its stdin; its stdout can still be read.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Takes its stdin, for writing from another thread.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Reads exactly `count` bytes of its stdout.
    ///
    /// # Errors
    /// When they do not come within `limit`, or its stdout ends before.
    pub fn read_exact(&mut self, count: usize, limit: Duration) -> Result<Vec<u8>, String> {
        self.fill(count, limit)?;
        if self.pending.len() < count {
            return Err(format!("stdout ended after {} of {count} bytes", self.pending.len()));
        }
        let rest = self.pending.split_off(count);
        Ok(std::mem::replace(&mut self.pending, rest))
    }

    /// Reads its stdout to the end.
    ///
    /// # Errors
    /// When the end does not come within `limit`.
    pub fn read_to_end(&mut self, limit: Duration) -> Result<Vec<u8>, String> {
        self.fill(usize::MAX, limit)?;
        Ok(std::mem::take(&mut self.pending))
    }

    fn fill(&mut self, count: usize, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        while self.pending.len() < count && !self.at_end {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.pending.extend_from_slice(&chunk),
                Err(mpsc::RecvTimeoutError::Disconnected) => self.at_end = true,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!("{} bytes of stdout in {limit:?}", self.pending.len()));
                }
            }
        }
        Ok(())
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.process.output()
    }
}

/// What a command that ended left behind.
#[derive(Debug, Clone)]
pub struct Done {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    /// Its stdout.
    pub stdout: Vec<u8>,
    /// Its stderr.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Done {
    /// Its stdout as text, without white space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its stdout as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("JSON on stdout: {e}: {self:?}"))
    }

    /// Itself, when the exit code is 0.
    ///
    /// # Panics
    /// When it is another.
    pub fn ok(self) -> Done {
        assert_eq!(self.code, 0, "{}\n{}", self.text(), self.stderr);
        self
    }
}

/// Runs `command` to its end, with `input` as its stdin.
///
/// # Panics
/// When it cannot be started, or still runs after `limit` (it is killed then).
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Done {
    let name = format!("{command:?}");
    let start_time = Instant::now();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&name, command);
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let input = input.to_vec();
    // A program that does not read its input closes the pipe: that is its right.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
    let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
    let status = loop {
        match child.try_wait().expect("our own child") {
            Some(status) => break status,
            None if start_time.elapsed() >= limit => {
                kill(&mut child);
                let (out, err) = (stdout.recv().unwrap_or_default(), stderr.recv());
                panic!(
                    "{name} still ran after {limit:?}\n{}\n{}",
                    String::from_utf8_lossy(&out),
                    String::from_utf8_lossy(&err.unwrap_or_default())
                );
            }
            None => std::thread::sleep(POLL / 4),
        }
    };
    let took = start_time.elapsed();
    // What the program left running in its group would keep the pipes open.
    let _ = sys::signal_group(child.id(), sys::SIGKILL);
    let _ = feeder.join();
    Done {
        code: status.code().unwrap_or(-1),
        stdout: stdout.recv().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr.recv().unwrap_or_default()).into_owned(),
        took,
    }
}

/// Runs `command` to its end with an empty stdin.
///
/// # Panics
/// As [`run_with_input`].
pub fn run(command: &mut Command, limit: Duration) -> Done {
    run_with_input(command, &[], limit)
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (done, result) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = done.send(bytes);
    });
    result
}

fn start(name: &str, command: &mut Command) -> Child {
    command.env("NO_COLOR", "1").env("LC_ALL", "C");
    let _starts = STARTS.read().unwrap_or_else(PoisonError::into_inner);
    sys::owned(command).spawn().unwrap_or_else(|e| panic!("{name} cannot be started: {e}"))
}

fn kill(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        let _ = sys::signal_group(child.id(), sys::SIGKILL);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn append(log: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap_or_else(|e| panic!("{}: {e}", log.display()))
}

fn read_log(log: &Path) -> String {
    std::fs::read(log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
}

/// Resident memory of a process in bytes; 0 when it is gone.
pub fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .map_or(0, |kib: u64| kib * 1024)
}

/// The last lines of a log, for a failing test.
pub fn tail(log: &Path) -> String {
    let text = read_log(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Lines of a log that say that something is broken: of level ERROR, or from a panic.
pub fn error_lines(log: &Path) -> Vec<String> {
    read_log(log)
        .lines()
        .filter(|line| {
            let head = line.get(..60).unwrap_or(line);
            head.split_whitespace().any(|word| word == "ERROR")
                || line.contains("\"level\":\"ERROR\"")
                || line.contains("panicked at")
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_gives_code_output_and_errors() {
        let done = run_with_input(&mut sh("cat; echo bad >&2; exit 3"), b"hello", LIMIT);
        assert_eq!((done.code, done.text().as_str(), done.stderr.as_str()), (3, "hello", "bad\n"));
    }

    #[test]
    fn a_dropped_process_takes_its_children_along() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let process = Process::spawn("parent", &mut sh("sleep 1000 & echo $!; wait"), &log);
        let grandchild: u32 = eventually("the pid", LIMIT, || {
            process.output().trim().parse().map_err(|_| "none".to_owned())
        });
        let alive = || Path::new(&format!("/proc/{grandchild}/cwd")).read_link().is_ok();
        assert!(alive());
        drop(process);
        eventually("its end", LIMIT, || if alive() { Err("alive".into()) } else { Ok(()) });
    }

    #[test]
    fn a_process_dies_with_the_thread_that_panicked() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let inner = log.clone();
        let joined = std::thread::spawn(move || {
            let process = Process::spawn("child", &mut sh("exec sleep 1000"), &inner);
            let pid = process.pid();
            std::mem::forget(process);
            std::panic::resume_unwind(Box::new(pid));
        })
        .join();
        let pid = *joined.unwrap_err().downcast::<u32>().unwrap();
        eventually("its end", LIMIT, || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie is dead: its parent, this test, forgot it on purpose.
            if stat.is_empty() || stat.contains(") Z ") { Ok(()) } else { Err(stat) }
        });
    }

    #[test]
    fn half_closed_pipes_are_read_to_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut cat = Piped::spawn("cat", &mut sh("cat; echo end; echo log >&2"), &log);
        cat.write(b"abc").unwrap();
        assert_eq!(cat.read_exact(2, LIMIT).unwrap(), b"ab");
        assert!(cat.read_exact(2, Duration::from_millis(50)).is_err());
        cat.close_stdin();
        assert_eq!(cat.read_to_end(LIMIT).unwrap(), b"cend\n");
        assert!(cat.process().wait(LIMIT).success());
        assert_eq!(cat.stderr(), "log\n");
    }

    #[test]
    fn errors_are_found_by_their_level() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z  INFO tasuki: no ERROR_WORD here\n\
             2026-01-01T00:00:00Z ERROR tasuki: broken\n\
             thread 'main' panicked at src/x.rs:1:1\n",
        )
        .unwrap();
        assert_eq!(error_lines(&log).len(), 2);
    }
}
