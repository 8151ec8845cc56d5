//! Verbs that show what the running relay knows.

mod table;

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tasuki_proto::{ServiceName, TerminalId, limits};

use self::table::Table;
use super::{Global, local};

/// Where a verb writes.
pub(crate) type Out<'a> = &'a mut (dyn Write + Send);

/// Verbs that show what the running relay knows.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Query {
    /// Show this relay: links, table, what it is doing
    #[command(after_help = "Example: tasuki-relay status")]
    Status,
    /// List the relays of the mesh
    #[command(after_help = "Example: tasuki-relay relays --json")]
    Relays,
    /// List the terminals of the mesh
    #[command(after_help = "Example: tasuki-relay terminals --state logged-in --type camera")]
    Terminals {
        /// Only those in this state
        #[arg(long, value_parser = ["logged-out", "logged-in", "in-communication", "unreachable"])]
        state: Option<String>,
        /// Only those of this type
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Only those whose id contains this text
        #[arg(short, long = "query", value_name = "TEXT")]
        query: Option<String>,
    },
    /// List the sessions over this relay, running and ended
    #[command(after_help = "Example: tasuki-relay sessions --state active")]
    Sessions {
        /// Only those in this state
        #[arg(long, value_parser = ["calling", "active", "ended"])]
        state: Option<String>,
    },
    /// Say whether a call would work, by which rule, over which route
    #[command(after_help = "Example: tasuki-relay explain laptop plant7 ssh")]
    Explain {
        /// Who would call
        caller: TerminalId,
        /// Whom
        target: TerminalId,
        /// What for
        service: Option<ServiceName>,
    },
}

/// Runs a verb and prints what it finds.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn run(global: &Global, query: Query) -> Result<()> {
    unless_unread(show(global, query, &mut std::io::stdout()).await)
}

/// A reader that has seen enough is no error, as with other tools.
pub(super) fn unless_unread(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Runs a verb and writes what it finds to `out`.
pub(crate) async fn show(global: &Global, query: Query, out: Out<'_>) -> Result<()> {
    let socket = local::socket(global).await;
    let json = global.json;
    match query {
        Query::Status => {
            let status = local::ask(&socket, "GET", "/api/v1/status", None).await?;
            print(out, &if json { pretty(&status) } else { status_text(&status) })
        }
        Query::Relays => {
            let heads = &["RELAY", "STATE", "VERSION", "TERMINALS", "LINKS", "ADDRESSES"];
            list(&socket, json, out, "/api/v1/relays", &[], heads, relay_row).await
        }
        Query::Terminals { state, kind, query } => {
            let filter = [("state", state), ("type", kind), ("q", query)];
            let heads = &["TERMINAL", "TYPE", "STATE", "SESSIONS", "RELAYS"];
            list(&socket, json, out, "/api/v1/terminals", &filter, heads, terminal_row).await
        }
        Query::Sessions { state } => {
            let heads = &["SESSION", "CALLER", "CALLEE", "SERVICE", "STATE"];
            list(&socket, json, out, "/api/v1/sessions", &[("state", state)], heads, session_row)
                .await
        }
        Query::Explain { caller, target, service } => {
            let service = service.map(|service| format!("&service={service}")).unwrap_or_default();
            let path = format!("/api/v1/explain?from={caller}&to={target}{service}");
            let explanation = local::ask(&socket, "GET", &path, None).await?;
            print(out, &if json { pretty(&explanation) } else { explanation_text(&explanation) })
        }
    }
}

/// Prints a whole list: as a table, or as one JSON array, page by page so that its length does not matter.
async fn list(
    socket: &Path,
    json: bool,
    out: Out<'_>,
    path: &str,
    filter: &[(&str, Option<String>)],
    heads: &'static [&'static str],
    row: fn(&Value) -> Vec<String>,
) -> Result<()> {
    let mut table = Table::new(heads);
    let mut before = "[\n";
    each_page(socket, path, filter, &mut |items| {
        if !json {
            let rows: Vec<_> = items.iter().map(row).collect();
            return print(out, &table.lines(&rows));
        }
        for item in items {
            write!(out, "{before}  {item}")?;
            before = ",\n";
        }
        Ok(())
    })
    .await?;
    match (json, before) {
        (false, _) => Ok(()),
        (true, "[\n") => print(out, "[]\n"),
        (true, _) => print(out, "\n]\n"),
    }
}

/// Hands over every page of a list, the last one too where it is empty.
pub(super) async fn each_page(
    socket: &Path,
    path: &str,
    filter: &[(&str, Option<String>)],
    take: &mut (dyn FnMut(&[Value]) -> Result<()> + Send),
) -> Result<()> {
    let mut base = format!("{path}?limit={}", limits::PAGE);
    for (name, value) in filter {
        if let Some(value) = value {
            base.push_str(&format!("&{name}={}", local::encoded(value)));
        }
    }
    let mut url = base.clone();
    loop {
        let page = local::ask(socket, "GET", &url, None).await?;
        take(page["items"].as_array().map_or(&[], Vec::as_slice))?;
        let Some(next) = page["next"].as_str() else { return Ok(()) };
        url = format!("{base}&after={}", local::encoded(next));
    }
}

pub(super) fn print(out: Out<'_>, text: &str) -> Result<()> {
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// A value as a cell: text without quotes, nothing as `-`.
fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// `key` of each element of a list, joined; `-` for an empty one.
fn joined(list: &Value, of: impl Fn(&Value) -> String) -> String {
    match list.as_array().map(Vec::as_slice) {
        None | Some([]) => "-".to_owned(),
        Some(items) => items.iter().map(of).collect::<Vec<_>>().join(","),
    }
}

fn relay_row(row: &Value) -> Vec<String> {
    let state = match (row["reachable"] == true, row["draining"] == true) {
        (false, _) => "unreachable",
        (true, true) => "draining",
        (true, false) => "up",
    };
    vec![
        cell(&row["name"]),
        state.to_owned(),
        cell(&row["version"]),
        cell(&row["terminals"]),
        joined(&row["links"], |link| cell(&link["relay"])),
        joined(&row["addresses"], cell),
    ]
}

fn terminal_row(row: &Value) -> Vec<String> {
    vec![
        cell(&row["id"]),
        cell(&row["type"]),
        cell(&row["state"]),
        cell(&row["sessions"]),
        joined(&row["attachments"], |attachment| cell(&attachment["relay"])),
    ]
}

fn session_row(row: &Value) -> Vec<String> {
    let state = match &row["reason"] {
        Value::String(reason) => reason.clone(),
        _ => cell(&row["state"]),
    };
    vec![cell(&row["id"]), cell(&row["caller"]), cell(&row["callee"]), cell(&row["service"]), state]
}

fn status_text(status: &Value) -> String {
    let mut facts = Table::new(&["RELAY", ""]);
    let state = match (&status["not_ready"], status["draining"] == true) {
        (Value::String(why), _) => format!("not ready: {why}"),
        (_, true) => "draining".to_owned(),
        _ => "ready".to_owned(),
    };
    let table = &status["table"];
    let lag = &status["gossip_lag_ms"];
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    let counters = |map: &Value| {
        let pairs = map.as_object().into_iter().flatten();
        pairs.map(|(key, number)| format!("{key} {number}")).collect::<Vec<_>>().join(", ")
    };
    let mut out = facts.lines(&[
        fact("name", cell(&status["name"])),
        fact("mesh", cell(&status["mesh"])),
        fact("id", cell(&status["id"])),
        fact("version", cell(&status["version"])),
        fact("state", state),
        fact("registrar", cell(&status["registrar"])),
        fact("incarnation", cell(&status["incarnation"])),
        fact("uptime", format!("{} s", status["uptime_s"])),
        fact("terminals", cell(&status["terminals"])),
        fact("sessions", cell(&status["sessions"])),
        fact(
            "table",
            format!(
                "{} rows, {} relays, {} terminals, hash {}",
                table["rows"],
                table["relays"],
                table["terminals"],
                cell(&table["hash"])
            ),
        ),
        fact("gossip lag", format!("p50 {} ms, p99 {} ms", lag["p50"], lag["p99"])),
        fact("gossip", counters(&status["gossip"])),
        fact("drops", counters(&status["drops"])),
    ]);
    let links: Vec<_> = status["links"].as_array().into_iter().flatten().collect();
    if !links.is_empty() {
        let row = |link: &&Value| {
            vec![
                cell(&link["relay"]),
                format!("{:.1} ms", link["rtt_us"].as_f64().unwrap_or(0.0) / 1000.0),
                cell(&link["address"]),
            ]
        };
        out.push('\n');
        let rows: Vec<_> = links.iter().map(row).collect();
        out.push_str(&Table::new(&["LINK", "RTT", "ADDRESS"]).lines(&rows));
    }
    out
}

fn explanation_text(explanation: &Value) -> String {
    let verdict = match &explanation["code"] {
        Value::String(code) if explanation["allowed"] != true => format!("refused with {code}"),
        _ if explanation["allowed"] == true => "allowed".to_owned(),
        _ => "refused".to_owned(),
    };
    let route = match explanation["route"].as_array().map(Vec::as_slice) {
        None | Some([]) => "none".to_owned(),
        Some(relays) => relays.iter().map(cell).collect::<Vec<_>>().join(" -> "),
    };
    format!("{verdict}\nwhy:   {}\nroute: {route}\n", cell(&explanation["why"]))
}
