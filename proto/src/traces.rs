//! Traces of sessions for a collector, over OTLP (ADR 33): HTTP with JSON, as OpenTelemetry's protocol says in
//! "OTLP/HTTP", version 1.
//!
//! The trace of a session is the session's id, so what relays and terminals say of one session meets at the collector
//! and nothing of it crosses the wire. The caller's relay has the root span, whose id is the lower half of the
//! session's.
//!
//! Whoever notes a span never waits: the queue is bounded ([`limits::TRACE_QUEUE`]), and what finds it full, or a
//! collector that does not take it, is counted as dropped.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use ring::digest;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::dial::{self, Dialler};
use crate::{RefusalCode, SessionId, limits};

/// How long spans gather after the first of a batch.
const GATHER: Duration = Duration::from_secs(1);
/// After a failure the next batch waits this long, then twice as long, up to the most.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What is read of a collector's answer.
const ANSWER_BYTES: usize = 64 * 1024;

/// Where a collector takes traces: `http://HOST:PORT`, with a path before `/v1/traces` where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    host: String,
    path: String,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const ADVICE: &str =
            "write http://HOST:PORT; a collector on this machine or beside it speaks TLS to others";
        let rest = text.strip_prefix("http://").ok_or_else(|| format!("'{text}': {ADVICE}"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty());
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
        let is_plain = |c: char| c.is_ascii_graphic() && !"@?#\"<>\\".contains(c);
        if port.is_none_or(|port| port == 0) || !text.chars().all(is_plain) {
            return Err(format!("'{text}': {ADVICE}"));
        }
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { host: host.to_owned(), path: format!("{path}/v1/traces") })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.host, self.path)
    }
}

/// The table `[traces]` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// Where they go.
    pub endpoint: Endpoint,
}

/// Who says what a span says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The relay of the caller: the root span.
    CallersRelay,
    /// Any other node.
    Other,
}

/// What one node saw of a session.
#[derive(Debug, Clone)]
pub struct Span {
    /// Which session.
    pub session: SessionId,
    /// Where it was seen.
    pub place: Place,
    /// When it began, ms since 1970.
    pub began_ms: u64,
    /// When it was over, ms since 1970.
    pub ended_ms: u64,
    /// How it ended.
    pub code: RefusalCode,
    /// What else is known: text, numbers and lists of text.
    pub attributes: Vec<(&'static str, Value)>,
}

/// How many spans went where since the start.
#[derive(Debug, Default)]
pub struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Taken by the collector.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lost: the queue was full, or the collector did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What became of spans since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    /// Taken by the collector.
    pub sent: u64,
    /// Lost: the queue was full, or the collector did not take them.
    pub dropped: u64,
}

/// Takes spans, where they are wanted.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    queue: Option<mpsc::Sender<Span>>,
    counts: Arc<Counts>,
}

impl Traces {
    /// Spans go to `endpoint`, in the name of `service` (the program) and `instance` (this node); without an endpoint
    /// nowhere. To be called within the runtime, which does the sending.
    pub fn start(endpoint: Option<Endpoint>, service: &str, instance: &str) -> Self {
        let Some(endpoint) = endpoint else { return Self::default() };
        let (queue, waiting) = mpsc::channel(limits::TRACE_QUEUE);
        let counts = Arc::new(Counts::default());
        let (service, instance) = (service.to_owned(), instance.to_owned());
        let dialler = Dialler::default();
        let exporter = Exporter { endpoint, dialler, service, instance, counts: counts.clone() };
        tokio::spawn(exporter.run(waiting));
        Self { queue: Some(queue), counts }
    }

    /// What became of spans.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// The same to be shown; none where no collector is told.
    pub fn shown(&self) -> Option<Shown> {
        let shown = Shown { sent: self.counts.sent(), dropped: self.counts.dropped() };
        self.queue.is_some().then_some(shown)
    }

    /// Notes a span, which is made only where it is wanted.
    pub fn note(&self, span: impl FnOnce() -> Span) {
        if let Some(queue) = &self.queue
            && queue.try_send(span()).is_err()
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Exporter {
    endpoint: Endpoint,
    dialler: Dialler,
    service: String,
    instance: String,
    counts: Arc<Counts>,
}

impl Exporter {
    async fn run(self, mut waiting: mpsc::Receiver<Span>) {
        let (mut batch, mut pause) = (Vec::new(), PAUSE);
        while waiting.recv_many(&mut batch, limits::TRACE_BATCH).await > 0 {
            sleep(GATHER).await;
            while batch.len() < limits::TRACE_BATCH
                && let Ok(span) = waiting.try_recv()
            {
                batch.push(span);
            }
            let body = Bytes::from(self.body(&batch).to_string());
            let answer = self.post(body).await;
            let count = batch.len() as u64;
            batch.clear();
            match answer {
                Ok(()) => {
                    self.counts.sent.fetch_add(count, Ordering::Relaxed);
                    if pause > PAUSE {
                        tracing::info!(endpoint = %self.endpoint, "the collector takes traces again");
                    }
                    pause = PAUSE;
                }
                Err(error) => {
                    self.counts.dropped.fetch_add(count, Ordering::Relaxed);
                    if pause == PAUSE {
                        tracing::warn!(endpoint = %self.endpoint, error, "the collector takes no traces: they are dropped");
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn post(&self, body: Bytes) -> Result<(), String> {
        let place = dial::Place::parse(0, &self.endpoint.host).ok_or("not HOST:PORT")?;
        let stream = self.dialler.tcp(place).await.map_err(|error| error.to_string())?;
        let answer = timeout(limits::TRACE_TIME, post(&self.endpoint, stream, body)).await;
        answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    /// `ExportTraceServiceRequest`, in JSON.
    fn body(&self, spans: &[Span]) -> Value {
        let resource = [
            ("service.name", json!(self.service)),
            ("service.instance.id", json!(self.instance)),
            ("service.version", json!(env!("CARGO_PKG_VERSION"))),
        ];
        let spans: Vec<_> = spans.iter().map(|span| self.span(span)).collect();
        json!({"resourceSpans": [{
            "resource": {"attributes": attributes(&resource)},
            "scopeSpans": [{"scope": {"name": "tasuki"}, "spans": spans}],
        }]})
    }

    fn span(&self, span: &Span) -> Value {
        let root = span.session.nonce;
        let id = match span.place {
            Place::CallersRelay => root,
            Place::Other => self.own_id(span.session),
        };
        let mut attributes = attributes(&span.attributes);
        attributes
            .push(json!({"key": "tasuki.reason", "value": {"stringValue": span.code.word()}}));
        let mut out = json!({
            "traceId": span.session.to_string(),
            "spanId": format!("{id:016x}"),
            "name": "session",
            "kind": 1,
            "startTimeUnixNano": nanoseconds(span.began_ms),
            "endTimeUnixNano": nanoseconds(span.ended_ms.max(span.began_ms)),
            "attributes": attributes,
            "status": status(span.code),
        });
        if span.place == Place::Other {
            out["parentSpanId"] = json!(format!("{root:016x}"));
        }
        out
    }

    /// The id of this node's span of a session: never zero, which stands for none.
    fn own_id(&self, session: SessionId) -> u64 {
        let digest =
            digest::digest(&digest::SHA256, format!("{session} {}", self.instance).as_bytes());
        let first = digest.as_ref().first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(first).max(1)
    }
}

/// 64-bit numbers are text in JSON (protobuf's mapping).
fn nanoseconds(ms: u64) -> String {
    (u128::from(ms) * 1_000_000).to_string()
}

/// Ends that are nobody's fault are no errors.
fn status(code: RefusalCode) -> Value {
    const FAULTS: u16 = 20;
    if code.value() < FAULTS {
        json!({"code": 1})
    } else {
        json!({"code": 2, "message": code.advice()})
    }
}

fn attributes(pairs: &[(&'static str, Value)]) -> Vec<Value> {
    let pair = |(key, value): &(&'static str, Value)| json!({"key": key, "value": any(value)});
    pairs.iter().map(pair).collect()
}

/// `AnyValue`.
fn any(value: &Value) -> Value {
    match value {
        Value::Bool(value) => json!({"boolValue": value}),
        Value::Number(value) => json!({"intValue": value.to_string()}),
        Value::Array(values) => {
            json!({"arrayValue": {"values": values.iter().map(any).collect::<Vec<_>>()}})
        }
        Value::String(value) => json!({"stringValue": value}),
        other => json!({"stringValue": other.to_string()}),
    }
}

async fn post(
    endpoint: &Endpoint,
    stream: tokio::net::TcpStream,
    body: Bytes,
) -> Result<(), String> {
    let request = Request::post(&endpoint.path)
        .header(header::HOST, &endpoint.host)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Owns the sender: when it is done, so is the connection.
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let _ = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            Ok::<_, hyper::Error>(status)
        };
        tokio::join!(answer, connection).0
    };
    let status = exchange.await.map_err(|error| error.to_string())?;
    if status.is_success() { Ok(()) } else { Err(format!("the collector answers {status}")) }
}

#[cfg(test)]
mod tests;
