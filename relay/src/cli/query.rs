//! Verbs that show what the running relay knows.

mod explain;
pub(crate) mod lists;
pub(crate) mod table;
pub(crate) mod text;

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tasuki_proto::text::escape_json;
use tasuki_proto::{ServiceName, SessionId, TerminalId, limits};

use self::table::{Cell, Table};
use self::text::Look;
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
    /// Say why a call works or does not: by which rule, over which route; or what became of a session
    #[command(after_help = "Examples: tasuki-relay explain laptop plant7 ssh\n          \
                      tasuki-relay explain --session 5d1c0c2f1d3b7a6e0123456789abcdef")]
    Explain {
        /// Who would call
        #[arg(required_unless_present = "session")]
        caller: Option<TerminalId>,
        /// Whom
        #[arg(required_unless_present = "session")]
        target: Option<TerminalId>,
        /// What for
        service: Option<ServiceName>,
        /// A running or ended session, or a call that failed; 'sessions' lists them
        #[arg(long, value_name = "ID", conflicts_with_all = ["caller", "target", "service"])]
        session: Option<SessionId>,
    },
}

/// Runs a verb and prints what it finds.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn run(global: &Global, query: Query) -> Result<()> {
    unless_unread(show_as(global, query, Look::of_stdout(), &mut std::io::stdout()).await)
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

/// Runs a verb and writes what it finds to `out`, without colours.
#[cfg(test)]
pub(crate) async fn show(global: &Global, query: Query, out: Out<'_>) -> Result<()> {
    show_as(global, query, Look::plain(), out).await
}

async fn show_as(global: &Global, query: Query, look: Look, out: Out<'_>) -> Result<()> {
    let socket = local::socket(global).await;
    let json = global.json;
    let list = |path, row| List { socket: &socket, json, look, path, row };
    match query {
        Query::Status => {
            let status = local::ask(&socket, "GET", "/api/v1/status", None).await?;
            print(out, &if json { pretty(&status) } else { lists::status(&status, look) })
        }
        Query::Relays => {
            list("/api/v1/relays", lists::relay).show(lists::RELAY, &[], None, out).await
        }
        Query::Terminals { state, kind, query } => {
            let filter = [("state", state), ("type", kind), ("q", query)];
            let list = list("/api/v1/terminals", lists::terminal);
            list.show(lists::TERMINAL, &filter, None, out).await
        }
        Query::Sessions { state } => {
            let detail = Some(lists::session_detail as fn(&Value) -> String);
            let list = list("/api/v1/sessions", lists::session);
            list.show(lists::SESSION, &[("state", state)], detail, out).await
        }
        Query::Explain { caller, target, service, session } => {
            let path = match (session, caller, target) {
                (None, Some(caller), Some(target)) => {
                    let service = service.map(|service| format!("&service={service}"));
                    let service = service.unwrap_or_default();
                    format!("/api/v1/explain?from={caller}&to={target}{service}")
                }
                (session, ..) => {
                    let session = session.map(|id| id.to_string()).unwrap_or_default();
                    format!("/api/v1/explain?session={session}")
                }
            };
            let explanation = local::ask(&socket, "GET", &path, None).await?;
            print(out, &if json { pretty(&explanation) } else { explain::text(&explanation, look) })
        }
    }
}

/// A list of the status endpoint, and how a row of it is shown.
struct List<'a> {
    socket: &'a Path,
    json: bool,
    look: Look,
    path: &'static str,
    row: fn(&Value, Look) -> Vec<Cell>,
}

impl List<'_> {
    /// Prints the whole list: as a table, each row with its detail where there is one, or as one JSON array, page by
    /// page so that its length does not matter.
    async fn show(
        &self,
        heads: &'static [&'static str],
        filter: &[(&str, Option<String>)],
        detail: Option<fn(&Value) -> String>,
        out: Out<'_>,
    ) -> Result<()> {
        let mut table = Table::new(heads, self.look);
        let mut before = "[\n";
        each_page(self.socket, self.path, filter, &mut |items| {
            if self.json {
                for item in items {
                    write!(out, "{before}  {}", escape_json(&item.to_string()))?;
                    before = ",\n";
                }
                return Ok(());
            }
            let rows: Vec<_> = items.iter().map(|item| (self.row)(item, self.look)).collect();
            let Some(detail) = detail else { return print(out, &table.lines(&rows)) };
            table.fit(&rows);
            print(out, &table.lines(&[]))?;
            items
                .iter()
                .zip(rows)
                .try_for_each(|(item, row)| print(out, &(table.lines(&[row]) + &detail(item))))
        })
        .await?;
        match (self.json, before) {
            (false, _) => Ok(()),
            (true, "[\n") => print(out, "[]\n"),
            (true, _) => print(out, "\n]\n"),
        }
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
    escape_json(&format!("{value:#}\n")).into_owned()
}
