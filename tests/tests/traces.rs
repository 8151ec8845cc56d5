//! Traces of sessions, over OTLP, from real relays and agents to a collector.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tasuki_tests::lab::mesh::VERB;
use tasuki_tests::lab::process::run_with_input;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec, eventually};

/// Answers one request of OTLP, and keeps its spans, each with the name of who sent it.
fn collect(mut stream: TcpStream, spans: &Mutex<Vec<(String, Value)>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((field, value)) if field.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            Some(_) => {}
            None if line.starts_with("POST /v1/traces ") => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    let resource = &body["resourceSpans"][0];
    let who = resource["resource"]["attributes"][1]["value"]["stringValue"].as_str().unwrap();
    for span in resource["scopeSpans"][0]["spans"].as_array().unwrap() {
        spans.lock().unwrap().push((who.to_owned(), span.clone()));
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
}

/// What each relay and each agent on the way says of a session meets under the session's id.
#[test]
fn a_session_is_one_trace() {
    let spans = Arc::new(Mutex::new(Vec::new()));
    let kept = spans.clone();
    let collector = TcpService::start(None, move |stream| collect(stream, &kept));
    let echo = TcpService::echo(None);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traces.toml");
    let endpoint = format!("[traces]\nendpoint = \"http://{}\"\n", collector.address());
    std::fs::write(&file, endpoint).unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let flags = ["--config", file.to_str().unwrap(), "--direct", "never"];
    let mesh = MeshSpec::line(&["r1", "r2", "r3"])
        .each_relay(|relay: RelaySpec| relay.run_flags(&config))
        .terminal(TerminalSpec::new("desk1").at(&["r1"]).flags(&flags))
        .terminal(
            TerminalSpec::new("plant7")
                .at(&["r3"])
                .flags(&flags)
                .offers("echo", &format!("tcp://{}", echo.address())),
        )
        .start();
    let mut dial = mesh.terminal("desk1").command();
    let answer = run_with_input(dial.args(["dial", "plant7/echo"]), b"word", VERB);
    assert_eq!(answer.ok().stdout, b"word");
    let session = eventually("the session is over", SOON, || {
        let rows = mesh.relay("r1").sessions()?;
        let row = rows.iter().find(|row| row["state"] == "ended");
        row.map(|row| row["id"].as_str().unwrap().to_owned()).ok_or_else(|| format!("{rows:?}"))
    });
    let nodes = ["desk1", "plant7", "r1", "r2", "r3"];
    let mut found = eventually("a span of each", SOON, || {
        let spans = spans.lock().unwrap().clone();
        let of_it = spans.iter().filter(|(_, span)| span["traceId"] == session.as_str());
        let of_it: Vec<_> = of_it.cloned().collect();
        let has = |node: &&str| of_it.iter().any(|(who, _)| who == node);
        if nodes.iter().all(has) { Ok(of_it) } else { Err(format!("{spans:?}")) }
    });
    found.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(found.iter().map(|(who, _)| who.as_str()).collect::<Vec<_>>(), nodes);
    for (who, span) in &found {
        let is_root = who == "r1";
        assert_eq!(span["parentSpanId"].is_null(), is_root, "{who}");
        assert!(is_root || span["parentSpanId"] == found[2].1["spanId"], "{who}: {span}");
        let attributes = span["attributes"].to_string();
        assert!(attributes.contains("plant7") && attributes.contains("ended-by-"), "{attributes}");
    }
    let sent = r#"tasuki_trace_spans_total{outcome="sent"}"#;
    eventually("it counts as sent", SOON, || match mesh.relay("r1").api.metric(sent) {
        Some(1.0..) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually("the agent shows it", SOON, || {
        let status = mesh.terminal("desk1").verb(&["status", "--json"]).ok().json();
        match status["traces"]["sent"].as_u64() {
            Some(1..) => Ok(()),
            _ => Err(status.to_string()),
        }
    });
}
