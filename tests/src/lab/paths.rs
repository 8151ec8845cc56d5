//! Which path a session takes, as `tasuki-agent paths --json` shows it.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::mesh::Terminal;
use super::wait::POLL;

/// A possible direct path stands within this time of the session (interfaces).
pub const DIRECT_WITHIN: Duration = Duration::from_secs(5);

/// The row of the session with `peer`.
///
/// # Errors
/// When there is none, or the agent does not answer.
pub fn row(terminal: &Terminal, peer: &str) -> Result<Value, String> {
    let done = terminal.verb(&["paths", "--json"]);
    let rows: Value =
        serde_json::from_slice(&done.stdout).map_err(|e| format!("{e}: {}", done.stderr))?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.into_iter()
        .find(|row| row["peer"] == peer)
        .ok_or_else(|| format!("no session with {peer}"))
}

/// The names of the relays that a row of `paths` has, in their order.
pub fn relays(row: &Value) -> Vec<String> {
    let names = row["relays"].as_array().into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

/// Waits until the session with `peer` takes a path of this kind ("direct", "relayed"); how long that took.
///
/// # Errors
/// What the row says instead when `limit` is over.
pub fn wait_for(
    terminal: &Terminal,
    peer: &str,
    kind: &str,
    limit: Duration,
) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        let row = row(terminal, peer);
        if row.as_ref().is_ok_and(|row| row["path"] == kind) {
            return Ok(begun.elapsed());
        }
        if begun.elapsed() >= limit {
            let instead = row.map_or_else(|error| error, |row| row.to_string());
            return Err(format!("not {kind} within {limit:?}: {instead}"));
        }
        std::thread::sleep(POLL);
    }
}
