//! `check`: whether this machine, this data directory and this relay are fit, one line for each question.
//!
//! Works with the relay running or not: what only a running relay knows is asked over its socket. Nothing is changed;
//! the disk is tried with a file that is removed again, and ports are tried only where no relay of this directory runs.

mod data;
mod machine;
mod network;

use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tasuki_proto::text::escape_json;

use super::query::lists::{items, plain};
use super::query::text::{Look, Paint, wrapped};
use super::query::{Out, print, unless_unread};
use super::{Global, local};
use crate::config::RelayConfig;

/// Flags of `check`.
#[derive(Debug, Clone, Copy, Args)]
#[command(after_help = "Example: tasuki-relay check --config /etc/tasuki/relay.toml")]
pub(super) struct CheckArgs {}

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It cannot be said.
    Unknown,
    /// The relay works, but not as well as it could.
    Warning,
    /// The relay does not work, or not for long.
    Bad,
}

impl Level {
    const fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Unknown => "unknown",
            Level::Warning => "warning",
            Level::Bad => "bad",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at.
    pub(super) check: &'static str,
    /// How good it is.
    pub(super) level: Level,
    /// What was found.
    pub(super) what: String,
    /// What to do; empty where there is nothing to do.
    pub(super) advice: String,
}

impl Finding {
    fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, what: what.into(), advice: String::new() }
    }

    fn new(
        check: &'static str,
        level: Level,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check, level, what: what.into(), advice: advice.into() }
    }
}

/// The relay of the data directory, where it runs.
struct Running {
    status: Value,
    /// Its process.
    pid: Option<i32>,
}

/// Runs all checks and prints what they found.
///
/// # Errors
/// When something is bad.
pub(super) async fn run(global: &Global, _: CheckArgs) -> Result<()> {
    let findings = match RelayConfig::resolve(global.layer(), global.config.as_deref()) {
        Ok(config) => all(&config).await,
        Err(errors) => {
            let advice = "mend the file or the flags; nothing else was checked";
            vec![Finding::new("settings", Level::Bad, errors.0.join("; "), advice)]
        }
    };
    let out = &mut std::io::stdout();
    unless_unread(report(&findings, global.json, Look::of_stdout(), out))?;
    match findings.iter().filter(|finding| finding.level == Level::Bad).count() {
        0 => Ok(()),
        bad => anyhow::bail!("not-fit: {bad} of {} checks are bad: see above", findings.len()),
    }
}

async fn all(config: &RelayConfig) -> Vec<Finding> {
    let running = running(&config.data).await;
    let mut out = vec![Finding::ok("settings", format!("data in {}", config.data.display()))];
    out.push(match &running {
        Some(running) => {
            let [name, version] = ["name", "version"].map(|key| running.status[key].as_str());
            let state = running.status["not_ready"].as_str();
            let what = format!("{} runs, version {}", name.unwrap_or("-"), version.unwrap_or("-"));
            match state {
                None => Finding::ok("relay", what),
                Some(why) => {
                    let advice = "see 'tasuki-relay status', and its log";
                    Finding::new(
                        "relay",
                        Level::Warning,
                        format!("{what}; not ready: {why}"),
                        advice,
                    )
                }
            }
        }
        None => Finding::ok("relay", "does not run at the moment"),
    });
    out.extend(twins(running.as_ref().map(|running| &running.status)));
    out.extend(data::checks(&config.data));
    out.extend(running.as_ref().map(|running| data::renewal(&running.status, data::now_secs())));
    out.extend(machine::checks(running.as_ref().and_then(|running| running.pid)));
    out.extend(network::checks(config, running.as_ref().map(|running| &running.status)).await);
    out
}

/// Whether two processes have the identity of one relay, as the running relay saw it.
fn twins(status: Option<&Value>) -> Vec<Finding> {
    let name = "identity";
    let Some(status) = status else { return Vec::new() };
    let seen = items(&status["twins"]);
    if seen.is_empty() {
        return vec![Finding::ok(name, "no relay was seen twice")];
    }
    let own = plain(&status["name"]);
    seen.iter()
        .map(|twin| {
            let [relay, what] = ["relay", "what"].map(|key| plain(&twin[key]));
            let level = if relay == own { Level::Bad } else { Level::Warning };
            Finding::new(
                name,
                level,
                format!("two processes run as {relay}: {what}"),
                "a copy of its data directory runs: stop one of them, and join it under its own name",
            )
        })
        .collect()
}

/// The relay that answers on the data directory's socket.
async fn running(data: &Path) -> Option<Running> {
    let socket = data.join(local::SOCKET);
    let status = local::ask(&socket, "GET", "/api/v1/status", None).await.ok()?;
    let stream = tokio::net::UnixStream::connect(&socket).await.ok()?;
    Some(Running { status, pid: stream.peer_cred().ok()?.pid() })
}

fn report(findings: &[Finding], json: bool, look: Look, out: Out<'_>) -> Result<()> {
    if json {
        let text = serde_json::to_string_pretty(findings)?;
        return print(out, &format!("{}\n", escape_json(&text)));
    }
    for finding in findings {
        print(out, &lines(finding, look))?;
    }
    Ok(())
}

/// A finding as lines of at most 80 characters.
fn lines(finding: &Finding, look: Look) -> String {
    const WIDTH: usize = 24;
    let word = finding.level.word();
    let paint = match finding.level {
        Level::Ok => Paint::Good,
        Level::Unknown => Paint::Dim,
        Level::Warning => Paint::Warn,
        Level::Bad => Paint::Bad,
    };
    let text = wrapped(&format!("{word:<9}{:<15}", finding.check), WIDTH, &finding.what);
    let text = text.replacen(word, &look.paint(paint, word), 1);
    if finding.advice.is_empty() {
        return text;
    }
    text + &wrapped("", WIDTH, &format!("-> {}", finding.advice))
}

#[cfg(test)]
mod tests;
