//! `explain`: one call, or one session.

use serde_json::Value;

use super::lists::{items, plain};
use super::text::{Look, Paint, bytes, milliseconds, span, wrapped};

/// Characters of the column of heads.
const HEADS: usize = 10;

/// What was explained, for people.
pub(super) fn text(it: &Value, look: Look) -> String {
    let mut out = String::new();
    let mut line = |head: &str, text: &str| {
        if !text.is_empty() {
            out.push_str(&wrapped(head, HEADS, text));
        }
    };
    let session = &it["session"];
    if session.is_object() {
        line("session", &plain(&session["id"]));
        line("call", &who(session));
        line("when", &when(session, look));
    }
    line("why", &plain(&it["why"]));
    line("do", it["advice"].as_str().unwrap_or_default());
    line("route", &route(it));
    if session.is_object() {
        line("carried", &carried(session));
    }
    for (head, key) in [("caller", "caller"), ("target", "callee")] {
        line(head, &terminal(&it[key], look));
    }
    let direct = &it["direct"];
    if direct.is_object() {
        line("direct", &format!("{}: {}", plain(&direct["possible"]), plain(&direct["why"])));
    }
    let last = &it["last_call"];
    if last.is_object() {
        let id = plain(&last["id"]);
        line("last call", &format!("{}, {} (explain --session {id})", when(last, look), who(last)));
    }
    format!("{}\n{out}", verdict(it, look))
}

fn verdict(it: &Value, look: Look) -> String {
    let code = it["code"].as_str();
    let (paint, text) = match (it["session"].is_object(), code, it["allowed"] == true) {
        (true, Some(code), _) => (Paint::Plain, format!("ended with {code}")),
        (true, None, _) => (Paint::of_state("active"), plain(&it["session"]["state"])),
        (false, _, true) => (Paint::Good, "allowed".to_owned()),
        (false, Some(code), false) => (Paint::Bad, format!("refused with {code}")),
        (false, None, false) => (Paint::Bad, "refused".to_owned()),
    };
    look.paint(paint, &text)
}

fn who(session: &Value) -> String {
    let [caller, callee, service] = ["caller", "callee", "service"].map(|key| plain(&session[key]));
    format!("{caller} -> {callee}/{service}")
}

fn when(session: &Value, look: Look) -> String {
    let began = session["started_at"].as_u64().unwrap_or(0);
    let ago = look.ago(began);
    match (session["ended_at"].as_u64(), &session["reason"]) {
        (Some(ended), reason) => {
            let lasted = span(ended.saturating_sub(began) / 1000);
            format!("called {ago} ago, over after {lasted} with {}", plain(reason))
        }
        _ => format!("called {ago} ago, {}", plain(&session["state"])),
    }
}

fn carried(session: &Value) -> String {
    let of = |key: &str| bytes(session[key].as_u64().unwrap_or(0));
    let [there, back] = ["bytes_to_callee", "bytes_to_caller"].map(of);
    format!("{there} to {}, {back} back, through this relay", plain(&session["callee"]))
}

/// `r1 -> 0.4 ms -> r2 -> 12 ms -> r3 (12.4 ms)`.
fn route(it: &Value) -> String {
    let names = items(&it["route"]);
    let Some(first) = names.first() else { return "none".to_owned() };
    let mut out = plain(first);
    for hop in items(&it["hops"]) {
        let rtt = hop["rtt_us"].as_f64().map_or("not linked".to_owned(), milliseconds);
        let draining = if hop["draining"] == true { " (draining)" } else { "" };
        out.push_str(&format!(" -[{rtt}]-> {}{draining}", plain(&hop["to"])));
    }
    match it["rtt_us"].as_f64() {
        Some(rtt) if names.len() > 2 => format!("{out}, {} in all", milliseconds(rtt)),
        _ => out,
    }
}

fn terminal(row: &Value, look: Look) -> String {
    if !row.is_object() {
        return "not in the table".to_owned();
    }
    let mut out = format!("{}, {}", plain(&row["id"]), plain(&row["state"]));
    for one in items(&row["attachments"]) {
        let since = look.ago(one["since"].as_u64().unwrap_or(0));
        let [role, relay, address] = ["role", "relay", "address"].map(|key| plain(&one[key]));
        out.push_str(&format!("; {role} at {relay} from {address}, {since}"));
    }
    out
}
