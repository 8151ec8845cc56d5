//! A part of a measurement that runs in a process of its own: the bench itself with a hidden verb. It reads one
//! command a line and answers each with one line of JSON.

use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;
use tasuki_tests::lab::netns::Namespace;
use tasuki_tests::lab::process::Piped;
use tasuki_tests::lab::programs::command_in;

/// An answer that is longer is a mistake.
const LINE_BYTES: usize = 64 * 1024;

/// The other end. Dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Helper(Piped);

impl Helper {
    /// Starts this program with a hidden verb.
    pub(crate) fn start<A: AsRef<OsStr>>(
        verb: &str,
        arguments: impl IntoIterator<Item = A>,
        namespace: Option<&Namespace>,
        log: &Path,
    ) -> Result<Helper> {
        let mut command: Command = command_in(namespace, std::env::current_exe()?);
        command.arg(verb).args(arguments);
        Ok(Helper(Piped::spawn(verb, &mut command, log)))
    }

    /// Says a command.
    pub(crate) fn say(&mut self, command: &str) -> Result<()> {
        self.0.write(format!("{command}\n").as_bytes()).with_context(|| self.0.stderr())
    }

    /// Waits for an answer.
    pub(crate) fn hear(&mut self, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let byte =
                self.0.read_exact(1, left).map_err(|e| anyhow!("{e}\n{}", self.0.stderr()))?;
            if byte == b"\n" {
                return Ok(serde_json::from_slice(&line)?);
            }
            ensure!(line.len() < LINE_BYTES, "a line without an end");
            line.extend(byte);
        }
    }

    /// A command and its answer.
    pub(crate) fn ask(&mut self, command: &str, limit: Duration) -> Result<Value> {
        self.say(command)?;
        self.hear(limit)
    }
}

/// A number of an answer.
pub(crate) fn number(answer: &Value, name: &str) -> Result<f64> {
    answer[name].as_f64().with_context(|| format!("no {name} in {answer}"))
}

/// The helper's side: a line of JSON.
pub(crate) fn answer(value: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// The helper's side: the next command; `None` when there is nobody left to give one.
pub(crate) fn command() -> Result<Option<String>> {
    let mut line = String::new();
    let count = std::io::stdin().lock().read_line(&mut line)?;
    Ok((count > 0).then(|| line.trim().to_owned()))
}
