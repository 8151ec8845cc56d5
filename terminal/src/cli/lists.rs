//! The verbs that ask one question or give one command: `status`, `ls`, `sessions`, `paths`, `end`, `logout`,
//! `login`.

#![allow(clippy::disallowed_methods, reason = "ages are shown by this machine's clock")]

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;
use tasuki_proto::view::{TerminalFilter, TerminalState};

use super::VerbContext;
use super::table::{self, bytes, span, text};
use crate::io::ipc::Request;

/// Flags of `ls`.
#[derive(Debug, Default, Args)]
pub struct LsArgs {
    /// Only terminals in this state: logged-out, logged-in, in-communication or unreachable
    #[arg(long, value_parser = state)]
    state: Option<TerminalState>,
    /// Only terminals of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only terminals whose id contains this
    text: Option<String>,
}

fn state(word: &str) -> Result<TerminalState, String> {
    serde_json::from_value(Value::from(word)).map_err(|_| {
        format!("'{word}': write logged-out, logged-in, in-communication or unreachable")
    })
}

fn json(out: &mut dyn Write, value: &Value) -> anyhow::Result<()> {
    Ok(table::json(out, value)?)
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// How long ago a time of a row was, in s; the time is ms since 1970.
fn age(row: &Value, field: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64);
    row[field].as_u64().map_or_else(String::new, |then| span(now.saturating_sub(then) / 1000))
}

fn milliseconds(row: &Value, field: &str) -> String {
    format!("{:.1} ms", row[field].as_f64().unwrap_or(0.0) / 1000.0)
}

/// `status`.
pub(crate) fn status(context: &VerbContext, out: &mut dyn Write) -> anyhow::Result<()> {
    let status = context.client()?.get(&Request::Status {})?;
    if context.json {
        return json(out, &status);
    }
    writeln!(out, "terminal   {} of mesh {}", text(&status, "id"), text(&status, "mesh"))?;
    let why = text(&status, "why");
    let why = if why.is_empty() { why } else { format!(": {why}") };
    writeln!(out, "state      {}{why}", text(&status, "state"))?;
    writeln!(out, "sessions   {}", text(&status, "sessions"))?;
    let mapped = text(&status, "mapped");
    let mapped = if mapped.is_empty() { mapped } else { format!(", mapped port {mapped}") };
    writeln!(out, "nat        {}{mapped}", text(&status, "nat"))?;
    let direct = &status["direct"];
    let [tried, found, lost] = ["attempts", "successes", "lost"].map(|field| text(direct, field));
    writeln!(out, "direct     {tried} attempts, {found} found a path, {lost} paths lost")?;
    if let [Some(sent), Some(dropped)] =
        ["sent", "dropped"].map(|field| status["traces"][field].as_u64())
    {
        writeln!(out, "traces     {sent} sent, {dropped} dropped")?;
    }
    let inbox = &status["inbox"];
    if inbox.is_object() {
        let size = |field: &str| bytes(inbox[field].as_u64().unwrap_or(0));
        let [files, rests] = ["received", "unfinished"].map(|field| text(inbox, field));
        let [whole, part] = ["received_bytes", "unfinished_bytes"].map(size);
        writeln!(
            out,
            "inbox      {files} files, {whole}; {rests} unfinished, {part}, removed first"
        )?;
    }
    let reached = status["limits"].as_object();
    for (name, count) in reached.into_iter().flatten().filter(|(_, count)| **count != 0) {
        writeln!(out, "limit      {name}: {count}")?;
    }
    writeln!(out, "version    {}", text(&status, "version"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let until = status["certificate_until"].as_u64().unwrap_or(0);
    writeln!(out, "certified  {}", certified(until, &status["renewal"], now))?;
    let attachments: Vec<Vec<String>> = rows(&status["attachments"])
        .iter()
        .map(|row| {
            let [relay, role, address, seen] =
                ["relay", "role", "address", "seen_as"].map(|field| text(row, field));
            vec![relay, role, address, seen, milliseconds(row, "rtt_us"), age(row, "since")]
        })
        .collect();
    if !attachments.is_empty() {
        writeln!(out)?;
        table::print(out, &["RELAY", "ROLE", "ADDRESS", "SEEN AS", "RTT", "SINCE"], &attachments)?;
    }
    Ok(())
}

/// How long the certificate lasts and, when it is not renewed, why; times in s since 1970.
fn certified(until: u64, renewal: &Value, now: u64) -> String {
    let lasts = match now > until {
        true => format!("ended {} ago: no relay lets this terminal in", span(now - until)),
        false => format!("for another {}", span(until - now)),
    };
    match renewal["since"].as_u64() {
        None => lasts,
        Some(since) => {
            let (tries, why) = (text(renewal, "tries"), text(renewal, "why"));
            let since = span(now.saturating_sub(since));
            format!("{lasts}; renewals fail for {since}, {tries} so far: {why}")
        }
    }
}

/// `ls`.
pub(crate) fn ls(context: &VerbContext, args: LsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let filter = TerminalFilter { state: args.state, kind: args.kind, text: args.text };
    let list = context.client()?.get(&Request::List { filter })?;
    if context.json {
        return json(out, &list);
    }
    let cells = |row: &Value| {
        let relays: Vec<String> =
            rows(&row["attachments"]).iter().map(|one| text(one, "relay")).collect();
        let [id, kind, state, sessions] =
            ["id", "type", "state", "sessions"].map(|field| text(row, field));
        vec![id, kind, state, sessions, relays.join(","), age(row, "updated_at")]
    };
    let cells: Vec<_> = rows(&list).iter().map(cells).collect();
    Ok(table::print(out, &["ID", "TYPE", "STATE", "SESSIONS", "RELAYS", "CHANGED"], &cells)?)
}

/// `sessions`.
pub(crate) fn sessions(context: &VerbContext, out: &mut dyn Write) -> anyhow::Result<()> {
    let list = context.client()?.get(&Request::Sessions {})?;
    if context.json {
        return json(out, &list);
    }
    // An id does not fit beside the rest, and 'end' needs all of it: a session takes two lines.
    for row in rows(&list) {
        let [id, caller, callee, service, state, reason] =
            ["id", "caller", "callee", "service", "state", "reason"].map(|field| text(row, field));
        let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
        let carried = ["bytes_to_callee", "bytes_to_caller"]
            .map(|field| bytes(row[field].as_u64().unwrap_or(0)));
        writeln!(out, "{id}  {state}{reason}, {} ago", age(row, "started_at"))?;
        writeln!(out, "  {caller} -> {callee}/{service}")?;
        writeln!(out, "  {} there, {} back, {}", carried[0], carried[1], text(row, "path"))?;
    }
    Ok(())
}

/// `paths`.
pub(crate) fn paths(context: &VerbContext, out: &mut dyn Write) -> anyhow::Result<()> {
    let list = context.client()?.get(&Request::Paths {})?;
    if context.json {
        return json(out, &list);
    }
    let cells = |row: &Value| {
        let [peer, service, path, relays, why] =
            ["peer", "service", "path", "relays", "why"].map(|field| text(row, field));
        vec![peer, service, path, relays, milliseconds(row, "rtt_us"), age(row, "since"), why]
    };
    let cells: Vec<_> = rows(&list).iter().map(cells).collect();
    let head = ["PEER", "SERVICE", "PATH", "RELAYS", "RTT", "SINCE", "WHY"];
    Ok(table::print(out, &head, &cells)?)
}

/// What `end` asks.
pub(crate) fn end(session: String) -> Request {
    Request::End { session }
}

/// What `logout` asks.
pub(crate) fn logout() -> Request {
    Request::Logout {}
}

/// What `login` asks.
pub(crate) fn login() -> Request {
    Request::Login {}
}

/// A verb without an answer but "done".
pub(crate) fn command(context: &VerbContext, request: Request) -> anyhow::Result<()> {
    context.client()?.get(&request)?;
    Ok(())
}
