//! What a collector gets, and what becomes of spans that none takes.
#![allow(clippy::disallowed_methods, reason = "tests read the clock")]

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::RelayId;

const SOON: Duration = Duration::from_secs(20);

fn span(place: Place, code: RefusalCode) -> Span {
    Span {
        session: SessionId { edge: RelayId(0x0102_0304_0506_0708), nonce: 0xa1b2 },
        place,
        began_ms: 1_790_000_000_123,
        ended_ms: 1_790_000_001_000,
        code,
        attributes: vec![
            ("tasuki.caller", json!("desk1")),
            ("tasuki.route", json!(["r1", "r2"])),
            ("tasuki.bytes_to_callee", json!(u64::MAX)),
        ],
    }
}

fn exporter(instance: &str) -> Exporter {
    Exporter {
        endpoint: "http://127.0.0.1:4318".parse().unwrap(),
        dialler: Dialler::default(),
        service: "tasuki-relay".to_owned(),
        instance: instance.to_owned(),
        counts: Arc::default(),
    }
}

/// Word by word what OTLP's JSON wants: ids as hexadecimal text, 64-bit numbers as decimal text.
#[test]
fn a_span_as_otlp() {
    let body = exporter("r1").body(&[span(Place::CallersRelay, RefusalCode::EndedByCaller)]);
    let text = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    let expected = json!({"resourceSpans": [{
        "resource": {"attributes": [
            text("service.name", "tasuki-relay"),
            text("service.instance.id", "r1"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ]},
        "scopeSpans": [{"scope": {"name": "tasuki"}, "spans": [{
            "traceId": "0102030405060708000000000000a1b2",
            "spanId": "000000000000a1b2",
            "name": "session",
            "kind": 1,
            "startTimeUnixNano": "1790000000123000000",
            "endTimeUnixNano": "1790000001000000000",
            "attributes": [
                text("tasuki.caller", "desk1"),
                json!({"key": "tasuki.route", "value": {"arrayValue": {"values": [
                    {"stringValue": "r1"}, {"stringValue": "r2"},
                ]}}}),
                json!({"key": "tasuki.bytes_to_callee", "value": {"intValue": "18446744073709551615"}}),
                text("tasuki.reason", "ended-by-caller"),
            ],
            "status": {"code": 1},
        }]}],
    }]});
    assert_eq!(body, expected);
}

/// What others saw hangs below the root, each under an id of its own; what was somebody's fault is an error.
#[test]
fn spans_of_one_session_hang_together() {
    let of = |instance: &str| {
        let body = exporter(instance).body(&[span(Place::Other, RefusalCode::NoAnswer)]);
        body["resourceSpans"][0]["scopeSpans"][0]["spans"][0].clone()
    };
    let (one, other) = (of("r2"), of("plant7"));
    for span in [&one, &other] {
        assert_eq!(span["traceId"], "0102030405060708000000000000a1b2");
        assert_eq!(span["parentSpanId"], "000000000000a1b2");
        assert_eq!(span["status"]["code"], 2);
        assert_eq!(span["spanId"].as_str().unwrap().len(), 16);
    }
    assert_ne!(one["spanId"], other["spanId"]);
    assert_eq!(one["spanId"], of("r2")["spanId"]);
}

#[test]
fn endpoints() {
    for (text, shown) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("http://[::1]:80/otlp", "http://[::1]:80/otlp/v1/traces"),
    ] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
    }
    for text in [
        "https://a:1",
        "a:1",
        "http://a",
        "http://:1",
        "http://a:0",
        "http://a:1/ b",
        "http://u@a:1",
    ] {
        let error = text.parse::<Endpoint>().unwrap_err();
        assert!(error.contains("write http://HOST:PORT"), "{text}: {error}");
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_collector_gets_what_was_noted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let traces = Traces::start(Some(endpoint), "tasuki-relay", "r1");
    for _ in 0..3 {
        traces.note(|| span(Place::Other, RefusalCode::EndedByCallee));
    }
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    let body = loop {
        stream.read_buf(&mut got).await.unwrap();
        let text = String::from_utf8_lossy(&got);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Ok(body) = serde_json::from_str::<Value>(body)
        {
            assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
            break body;
        }
    };
    let spans = &body["resourceSpans"][0]["scopeSpans"][0]["spans"];
    assert_eq!(spans.as_array().unwrap().len(), 3, "they go together");
    assert_eq!(traces.counts().sent(), 0, "not before it was answered");
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    until("they count as sent", || traces.counts().sent() == 3).await;
    assert_eq!(traces.counts().dropped(), 0);
}

/// Nobody waits for a collector that is not there, that refuses, or that hangs: what it does not take is counted.
#[tokio::test]
async fn a_bad_collector_costs_a_counted_drop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let start = || Traces::start(Some(format!("http://{address}").parse().unwrap()), "x", "y");
    let note = |traces: &Traces| traces.note(|| span(Place::Other, RefusalCode::EndedByCallee));

    let refused = start();
    note(&refused);
    let (mut stream, _) = listener.accept().await.unwrap();
    stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    until("a refusal is a drop", || refused.counts().dropped() == 1).await;
    drop(stream);

    // It takes the connection and says nothing, while more comes than may wait.
    let hangs = start();
    note(&hangs);
    let (_held, _) = listener.accept().await.unwrap();
    let begun = Instant::now();
    for _ in 0..limits::TRACE_QUEUE + 10 {
        note(&hangs);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waits");
    assert_eq!(hangs.counts().dropped(), 10);
    until("what it does not answer is dropped too", || hangs.counts().dropped() > 10).await;

    drop(listener);
    let missing = start();
    note(&missing);
    until("nobody is there", || missing.counts().dropped() == 1).await;
    assert_eq!(missing.counts().sent() + hangs.counts().sent() + refused.counts().sent(), 0);
}

/// Off, nothing is even made.
#[test]
fn off_costs_nothing() {
    let traces = Traces::start(None, "x", "y");
    traces.note(|| unreachable!("no span is made where none is wanted"));
    assert_eq!((traces.counts().sent(), traces.counts().dropped()), (0, 0));
}
