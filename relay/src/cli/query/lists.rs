//! The rows of relays, terminals and sessions, and this relay's status.

use serde_json::Value;
use tasuki_proto::text::escape;

use super::table::{Cell, Table};
use super::text::{Look, Paint, bytes, milliseconds, span, wrapped};

/// A value as text without quotes, nothing as `-`. What a screen could obey is escaped.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text).into_owned(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

pub(crate) fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// Each element of a list, joined; `-` for an empty one.
fn joined(list: &Value, of: impl Fn(&Value) -> String) -> Cell {
    match items(list) {
        [] => "-".to_owned().into(),
        items => items.iter().map(of).collect::<Vec<_>>().join(",").into(),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

pub(crate) fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Columns of [`relay`].
pub(super) const RELAY: &[&str] = &["RELAY", "STATE", "VERSION", "TERMINALS", "LINKS", "ADDRESSES"];

/// What a relay does, in one word.
pub(crate) fn relay_state(row: &Value) -> &'static str {
    match (row["reachable"] == true, row["draining"] == true) {
        (false, _) => "unreachable",
        (true, true) => "draining",
        (true, false) => "up",
    }
}

pub(super) fn relay(row: &Value, _: Look) -> Vec<Cell> {
    vec![
        plain(&row["name"]).into(),
        Cell::state(relay_state(row)),
        plain(&row["version"]).into(),
        plain(&row["terminals"]).into(),
        joined(&row["links"], |link| plain(&link["relay"])),
        joined(&row["addresses"], plain),
    ]
}

/// Columns of [`terminal`].
pub(super) const TERMINAL: &[&str] =
    &["TERMINAL", "TYPE", "STATE", "SESSIONS", "RELAYS", "CHANGED"];

pub(super) fn terminal(row: &Value, look: Look) -> Vec<Cell> {
    // The primary first.
    let mut attachments: Vec<&Value> = items(&row["attachments"]).iter().collect();
    attachments.sort_by_key(|attachment| attachment["role"] != "primary");
    let relays: Vec<String> = attachments.iter().map(|one| plain(&one["relay"])).collect();
    vec![
        plain(&row["id"]).into(),
        plain(&row["type"]).into(),
        Cell::state(&plain(&row["state"])),
        plain(&row["sessions"]).into(),
        if relays.is_empty() { "-".to_owned() } else { relays.join(",") }.into(),
        look.ago(count(&row["updated_at"])).into(),
    ]
}

/// Columns of [`session`].
pub(super) const SESSION: &[&str] = &["SESSION", "STATE", "AGE", "THERE", "BACK"];

pub(super) fn session(row: &Value, look: Look) -> Vec<Cell> {
    let state = plain(&row["state"]);
    let paint = Paint::of_state(&state);
    let text = row["reason"].as_str().map_or(state, str::to_owned);
    let began = count(&row["started_at"]);
    vec![
        plain(&row["id"]).into(),
        Cell { text, paint },
        look.ago(began).into(),
        bytes(count(&row["bytes_to_callee"])).into(),
        bytes(count(&row["bytes_to_caller"])).into(),
    ]
}

/// Who called whom over which relays: an id leaves no room for it in its own line, and `end` needs all of the id.
pub(super) fn session_detail(row: &Value) -> String {
    let route = items(&row["route"]).iter().map(plain).collect::<Vec<_>>().join(" > ");
    let over = if route.is_empty() { route } else { format!(" over {route}") };
    let [caller, callee, service] = ["caller", "callee", "service"].map(|key| plain(&row[key]));
    super::table::fitted(&format!("  {caller} -> {callee}/{service}{over}"), super::text::LINE)
        + "\n"
}

/// This relay.
pub(super) fn status(status: &Value, look: Look) -> String {
    let state = match (&status["not_ready"], status["draining"] == true) {
        (Value::String(why), _) => look.paint(Paint::Warn, &format!("not ready: {}", escape(why))),
        (_, true) => look.paint(Paint::Warn, "draining"),
        _ => look.paint(Paint::Good, "ready"),
    };
    let (table, lag) = (&status["table"], &status["gossip_lag_ms"]);
    let mut out = String::new();
    let mut fact = |name: &str, value: String| out.push_str(&wrapped(name, 12, &value));
    let registrar = if status["registrar"] == true { ", the registrar" } else { "" };
    let [name, mesh] = ["name", "mesh"].map(|key| plain(&status[key]));
    fact("relay", format!("{name} of mesh {mesh}{registrar}"));
    out.push_str(&format!("{:<12}{state}\n", "state"));
    let mut fact = |name: &str, value: String| out.push_str(&wrapped(name, 12, &value));
    for twin in items(&status["twins"]) {
        let [relay, what] = ["relay", "what"].map(|key| plain(&twin[key]));
        fact("twins", look.paint(Paint::Warn, &format!("two processes run as {relay}: {what}")));
    }
    if let Some(ends) = status["ends_in_s"].as_u64() {
        fact("ends", format!("within {}", span(ends)));
    }
    fact(
        "version",
        format!("{}, incarnation {}", plain(&status["version"]), status["incarnation"]),
    );
    fact("up", span(count(&status["uptime_s"])));
    fact("terminals", plain(&status["terminals"]));
    fact("sessions", plain(&status["sessions"]));
    fact(
        "table",
        format!(
            "{} rows: {} relays, {} terminals; hash {}",
            table["rows"],
            table["relays"],
            table["terminals"],
            plain(&table["hash"])
        ),
    );
    let until = count(&status["certificate_until"]);
    fact("certificate", certificate(until, &status["renewal"], look.now_ms / 1000));
    fact("gossip lag", format!("median {} ms, 99 % below {} ms", lag["p50"], lag["p99"]));
    fact("gossip", counters(&status["gossip"], |_| true));
    fact("dropped", counters(&status["drops"], |number| number > 0));
    out.push_str(&status_links(status, look));
    out.push_str(&status_addresses(status, look));
    out
}

/// How long the certificate lasts and, when it is not renewed, why; times in s since 1970.
pub(crate) fn certificate(until: u64, renewal: &Value, now: u64) -> String {
    let lasts = match now > until {
        true => {
            format!("ended {} ago: no relay and no terminal lets this relay in", span(now - until))
        }
        false => format!("for another {}", span(until - now)),
    };
    match renewal["since"].as_u64() {
        None => lasts,
        Some(since) => {
            let (tries, why) = (count(&renewal["tries"]), plain(&renewal["why"]));
            let since = span(now.saturating_sub(since));
            format!("{lasts}; renewals fail for {since}, {tries} so far: {why}")
        }
    }
}

fn status_addresses(status: &Value, look: Look) -> String {
    let addresses = items(&status["reachable_from_outside"]);
    if addresses.is_empty() {
        return String::new();
    }
    let row = |row: &Value| {
        let since = row["since"].as_u64();
        vec![
            plain(&row["address"]).into(),
            Cell::state(&plain(&row["reachable"])),
            since.map_or("-".to_owned(), |since| look.ago(since)).into(),
            plain(&row["by"]).into(),
        ]
    };
    let rows: Vec<_> = addresses.iter().map(row).collect();
    let heads = &["ADVERTISED", "REACHED FROM OUTSIDE", "SINCE", "BY"];
    format!("\n{}", Table::new(heads, look).lines(&rows))
}

fn counters(map: &Value, shows: impl Fn(u64) -> bool) -> String {
    let pairs = map.as_object().into_iter().flatten();
    let pairs = pairs.filter(|(_, number)| shows(count(number)));
    let text = pairs.map(|(key, number)| format!("{key} {number}")).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "nothing".to_owned() } else { text }
}

fn status_links(status: &Value, look: Look) -> String {
    let links = items(&status["links"]);
    if links.is_empty() {
        return String::new();
    }
    let row = |link: &Value| {
        vec![
            plain(&link["relay"]).into(),
            milliseconds(number(&link["rtt_us"])).into(),
            look.ago(count(&link["since"])).into(),
            plain(&link["address"]).into(),
        ]
    };
    let rows: Vec<_> = links.iter().map(row).collect();
    format!("\n{}", Table::new(&["LINK", "RTT", "SINCE", "ADDRESS"], look).lines(&rows))
}
