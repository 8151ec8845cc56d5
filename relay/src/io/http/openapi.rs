//! The description of the status endpoint (OpenAPI 3.1). Tests hold it against the routes, their parameters and their
//! answers, field by field: nothing of it can be forgotten or outlive what it describes.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tasuki_proto::{limits, version};

/// What a route answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A line of text.
    Text,
    /// Prometheus text.
    Metrics,
    /// Server-sent events.
    Events,
    /// This schema.
    One(&'static str),
    /// A page of rows of this schema.
    List(&'static str),
    /// `{"done": true}`.
    Done,
    /// The description.
    Description,
}

/// A route.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    summary: &'static str,
    /// Names and meanings.
    pub(super) query: &'static [(&'static str, &'static str)],
    pub(super) answer: Answer,
}

const fn get(path: &'static str, summary: &'static str, answer: Answer) -> Operation {
    Operation { method: "get", path, summary, query: &[], answer }
}

const fn post(path: &'static str, summary: &'static str) -> Operation {
    Operation { method: "post", path, summary, query: &[], answer: Answer::Done }
}

impl Operation {
    const fn asks(self, query: &'static [(&'static str, &'static str)]) -> Self {
        Self { query, ..self }
    }

    /// The name in its path, where it has one.
    fn named(&self) -> Option<&'static str> {
        let (_, rest) = self.path.split_once('{')?;
        rest.split_once('}').map(|(name, _)| name)
    }
}

const LIMIT: (&str, &str) = ("limit", "rows of the page, 1 to 1000; 100 unless given");
const AFTER: (&str, &str) = ("after", "the cursor `next` of the page before");

/// Every route, but for the console's files.
pub(super) const OPERATIONS: &[Operation] = &[
    get("/healthz", "Whether the process works", Answer::Text),
    get("/readyz", "Whether this relay takes terminals", Answer::Text),
    get("/metrics", "Metrics for Prometheus", Answer::Metrics),
    get("/api/v1/openapi.json", "This description", Answer::Description),
    get("/api/v1/status", "This relay", Answer::One("StatusView")),
    get("/api/v1/summary", "Counts over the mesh, at most two seconds old", Answer::One("Summary")),
    get("/api/v1/relays", "Every relay of the mesh, ordered by id", Answer::List("RelayView"))
        .asks(&[LIMIT, AFTER]),
    get(
        "/api/v1/relays/{name}/history",
        "What became of a relay, newest first, as this relay saw it since its start",
        Answer::List("HistoryView"),
    ),
    post("/api/v1/relays/{name}/kick", "Cut this relay's link with another; it may come back"),
    post("/api/v1/relays/{name}/revoke", "Cut a relay off for good; at the registrar"),
    get("/api/v1/terminals", "Every terminal, ordered by id", Answer::List("TerminalView")).asks(&[
        ("state", "`logged-out`, `logged-in`, `in-communication` or `unreachable`"),
        ("type", "of this type"),
        ("q", "whose id contains this text"),
        LIMIT,
        AFTER,
    ]),
    get("/api/v1/terminals/{name}", "One terminal", Answer::One("TerminalView")),
    get(
        "/api/v1/terminals/{name}/history",
        "What became of a terminal, newest first, as this relay saw it since its start",
        Answer::List("HistoryView"),
    ),
    post("/api/v1/terminals/{name}/kick", "Cut a terminal's attachment here; it may come back"),
    post("/api/v1/terminals/{name}/revoke", "Cut a terminal off for good; at the registrar"),
    get("/api/v1/sessions", "Sessions over this relay, ordered by id", Answer::List("SessionView"))
        .asks(&[("state", "`calling`, `active` or `ended`"), LIMIT, AFTER]),
    get("/api/v1/sessions/{id}", "One session", Answer::One("SessionView")),
    post("/api/v1/sessions/{id}/end", "End a session"),
    get(
        "/api/v1/events",
        "Changes as they happen. Events: `hello` (`relay`, `incarnation`, `seq`), `terminal`, `relay` and `session` (the whole \
         row), `gone` (`kind`, `id`), `resync` (`why`: read the lists again). `Last-Event-ID` resumes",
        Answer::Events,
    )
    .asks(&[("types", "a comma-separated list of `terminal`, `relay` and `session`; all unless given")]),
    get(
        "/api/v1/explain",
        "May A call B, by what, and over which route; or what became of a session or failed call",
        Answer::One("Explanation"),
    )
    .asks(&[
        ("from", "the caller; with `to`"),
        ("to", "the target; with `from`"),
        ("service", "what for"),
        ("session", "instead of all others: this session"),
    ]),
    post("/api/v1/login", "Whether the token is right; nothing else happens"),
    post("/api/v1/drain", "Take no new terminals").asks(&[(
        "end_within_s",
        "end the process when nobody is left, or after so many seconds",
    )]),
    post("/api/v1/undrain", "Take terminals again"),
];

/// The description as JSON.
pub(super) static DOCUMENT: LazyLock<Vec<u8>> =
    LazyLock::new(|| document().to_string().into_bytes());

pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = described(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tasuki relay",
            "version": version::SOFTWARE,
            "description": "On a loopback address reading is free; actions, and on any other address everything but \
                            health, need the content of `admin.token` as a bearer token.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn described(operation: &Operation) -> Value {
    let named = operation.named();
    let text = || json!({"type": "string"});
    let mut parameters: Vec<Value> = named
        .iter()
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": text()}))
        .collect();
    for (name, meaning) in operation.query {
        let schema = match *name {
            "limit" => json!({"type": "integer", "minimum": 1, "maximum": limits::PAGE}),
            "end_within_s" => {
                json!({"type": "integer", "minimum": 1, "maximum": limits::DRAIN_TIME.as_secs()})
            }
            _ => text(),
        };
        parameters.push(json!({
            "name": name, "in": "query", "required": false, "description": meaning, "schema": schema,
        }));
    }
    let problem = |what: &str| {
        let schema = json!({"$ref": "#/components/schemas/Problem"});
        json!({"description": what, "content": {"application/problem+json": {"schema": schema}}})
    };
    let mut responses = json!({
        "200": success(operation.answer),
        "401": problem("The token is missing or wrong"),
        "421": problem("On a loopback address: the Host is not of this machine"),
        "503": problem("The relay is busy or goes down"),
    });
    let health = operation.answer == Answer::Text;
    if !health && operation.answer != Answer::Metrics {
        responses["400"] = problem("A parameter is not known here, or its value is not sound");
    }
    if named.is_some() {
        responses["404"] = problem("There is nothing of this name");
    }
    if operation.method == "post" {
        responses["409"] = problem("It cannot be done in this state, or not at this relay");
    }
    // Whoever reads on a loopback address needs no token.
    let security = match (operation.method, health) {
        ("post", _) => json!([{"token": []}]),
        (_, true) => json!([]),
        _ => json!([{}, {"token": []}]),
    };
    json!({
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
        "security": security,
    })
}

fn success(answer: Answer) -> Value {
    let text = || json!({"type": "string"});
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let (kind, schema) = match answer {
        Answer::Text | Answer::Metrics => ("text/plain", text()),
        Answer::Events => ("text/event-stream", text()),
        Answer::One(name) => ("application/json", reference(name)),
        Answer::Done => ("application/json", reference("Done")),
        Answer::Description => ("application/json", json!({"type": "object"})),
        Answer::List(name) => {
            let next =
                json!({"type": ["string", "null"], "description": "cursor of the next page"});
            let items = json!({"type": "array", "items": reference(name)});
            let page = json!({
                "type": "object",
                "required": ["items", "next"],
                "properties": {"items": items, "next": next},
            });
            ("application/json", page)
        }
    };
    json!({"description": "Done", "content": {kind: {"schema": schema}}})
}

/// A field: its name, its type (see [`typed`]), what it is.
type Field = (&'static str, &'static str, &'static str);

/// The kinds of NAT.
const NAT: &str = "unknown|none|endpoint-independent|endpoint-dependent";

/// What answers are made of. Every field is always there.
const SCHEMAS: &[(&str, &[Field])] = &[
    (
        "StatusView",
        &[
            ("id", "text", "this relay's id"),
            ("name", "text", "its name"),
            ("mesh", "text", "the mesh's name"),
            ("version", "text", "the software's version"),
            ("incarnation", "number", "which life of it: grows with every start"),
            ("uptime_s", "number", "seconds since its start"),
            ("registrar", "bool", "whether it has the registrar role"),
            ("draining", "bool", "takes no new terminals"),
            ("ends_in_s", "number?", "seconds until it ends at the latest, where it was told to"),
            ("not_ready", "text?", "why it takes no terminals, where it does not"),
            ("links", "[LinkView]", "its links, ordered by name"),
            ("twins", "[TwinView]", "relays of which two processes were seen lately"),
            ("reachable_from_outside", "[AddressView]", "its advertised addresses"),
            ("terminals", "number", "terminals attached here"),
            ("sessions", "number", "sessions that run over this relay"),
            ("forwarded", "ForwardedView", "what it forwarded since its start, heads included"),
            ("certificate_until", "number", "how long its certificate is valid, s since 1970"),
            ("renewal", "RenewalTrouble?", "why the certificate is not renewed, when that fails"),
            ("renewal_failures", "number", "renewals that failed since its start"),
            ("labels", "number", "labels that the switch forwards"),
            ("connections", "number", "QUIC connections, handshakes included"),
            ("handshakes", "number", "handshakes under way"),
            ("handshakes_refused", "number", "handshakes not begun or given up; `drops` says why"),
            ("table", "TableView", "the table"),
            ("gossip_lag_ms", "Percentiles", "ms from an update at its origin to its arrival here"),
            ("gossip", "counts", "updates received, applied, stale, sent"),
            ("drops", "counts", "what was dropped or refused, by reason"),
            ("direct", "[DirectView]", "what callers attached here said of direct paths"),
        ],
    ),
    (
        "TwinView",
        &[
            ("relay", "text", "the relay whose identity two processes have"),
            ("what", "text", "what was seen of them"),
            ("seen_at", "number", "when it was seen last, ms since 1970"),
        ],
    ),
    (
        "AddressView",
        &[
            ("address", "text", "HOST:PORT, as advertised"),
            ("reachable", "yes|no|unknown", "whether a packet of another relay came in"),
            ("since", "number?", "since when that is so, ms since 1970"),
            ("by", "text?", "the relay that tried last"),
        ],
    ),
    (
        "RenewalTrouble",
        &[
            ("since", "number", "since when renewals fail, s since 1970"),
            ("tries", "number", "renewals that failed since then"),
            ("why", "text", "the last failure: what, why, what to do"),
        ],
    ),
    (
        "ForwardedView",
        &[
            ("packets_to_callee", "number", "packets from callers to callees"),
            ("bytes_to_callee", "number", "their bytes"),
            ("packets_to_caller", "number", "packets from callees to callers"),
            ("bytes_to_caller", "number", "their bytes"),
        ],
    ),
    (
        "DirectView",
        &[
            ("nat", NAT, "what the caller is behind"),
            ("peer_nat", NAT, "what the callee is behind"),
            ("news", "direct|relayed|no-direct", "what became of the direct path"),
            ("count", "number", "how often"),
        ],
    ),
    (
        "LinkView",
        &[
            ("relay", "text", "the relay at the other end"),
            ("rtt_us", "number", "round-trip time, µs"),
            ("address", "text", "the address at the other end"),
            ("since", "number", "ms since 1970"),
        ],
    ),
    (
        "TableView",
        &[
            ("rows", "number", "all rows"),
            ("relays", "number", "relays"),
            ("terminals", "number", "accounts of terminals"),
            ("hash", "text", "over all rows: equal tables have equal hashes"),
        ],
    ),
    ("Percentiles", &[("p50", "real", "median"), ("p99", "real", "99th percentile")]),
    (
        "Summary",
        &[
            ("terminals", "TerminalCounts", "terminals by state"),
            ("types", "counts", "terminals by type"),
            ("relays", "RelayCounts", "relays"),
        ],
    ),
    (
        "TerminalCounts",
        &[
            ("total", "number", "all"),
            ("logged-out", "number", "without an attachment"),
            ("logged-in", "number", "attached, no session"),
            ("in-communication", "number", "attached, with a session"),
            ("unreachable", "number", "attached to relays that cannot be reached"),
        ],
    ),
    (
        "RelayCounts",
        &[
            ("total", "number", "all that ever joined"),
            ("reachable", "number", "a path over confirmed links leads to them"),
            ("draining", "number", "take no new terminals"),
        ],
    ),
    (
        "RelayView",
        &[
            ("id", "text", "its id"),
            ("name", "text", "its name"),
            ("addresses", "[text]", "where it can be dialled"),
            ("version", "text", "the version of its software; empty where it was never heard"),
            ("registrar", "bool", "whether it has the registrar role"),
            ("reachable", "bool", "a path over links that both ends confirm leads to it"),
            ("draining", "bool", "takes no new terminals"),
            ("terminals", "number", "attached terminals"),
            ("links", "[RelayLinkView]", "its links, ordered by name"),
            ("updated_at", "number", "when one of its own rows last changed, ms since 1970"),
        ],
    ),
    (
        "RelayLinkView",
        &[("relay", "text", "the other end"), ("rtt_us", "number", "round-trip time in steps, µs")],
    ),
    (
        "TerminalView",
        &[
            ("id", "text", "its user id"),
            ("type", "text", "user, printer, camera, ..."),
            ("attributes", "texts", "attributes"),
            ("state", "logged-out|logged-in|in-communication|unreachable", "what it does"),
            ("sessions", "number", "sessions in communication"),
            ("attachments", "[AttachmentView]", "its current attachments, ordered by relay name"),
            ("updated_at", "number", "when the row last changed, ms since 1970"),
        ],
    ),
    (
        "AttachmentView",
        &[
            ("relay", "text", "to which relay"),
            ("role", "primary|standby", "which of its attachments"),
            ("since", "number", "ms since 1970 by the relay's clock"),
            ("address", "text", "the terminal's address as the relay sees it"),
        ],
    ),
    (
        "SessionView",
        &[
            ("id", "text", "its id"),
            ("caller", "text", "who called"),
            ("callee", "text", "whom"),
            ("service", "text", "what for"),
            ("state", "calling|active|ended", "what it does"),
            ("started_at", "number", "ms since 1970"),
            ("ended_at", "number?", "ms since 1970"),
            ("reason", "text?", "the code it ended with"),
            ("route", "[text]", "the relays on its way, from the caller's to the callee's"),
            (
                "path",
                "direct|relayed",
                "as a terminal attached here says; `relayed` at relays between",
            ),
            ("bytes_to_callee", "number", "bytes from caller to callee through this relay"),
            ("packets_to_callee", "number", "packets from caller to callee through this relay"),
            ("bytes_to_caller", "number", "bytes from callee to caller through this relay"),
            ("packets_to_caller", "number", "packets from callee to caller through this relay"),
        ],
    ),
    (
        "HistoryView",
        &[
            ("at", "number", "ms since 1970 by the clock of the relay that told of it"),
            ("what", "text", "what happened, in one word"),
            ("detail", "text", "where, as what; for people"),
        ],
    ),
    (
        "Explanation",
        &[
            ("allowed", "bool", "whether the relays would carry the call to its target"),
            ("code", "text?", "the code it would be refused with, or ended with"),
            ("why", "text", "which state or rule decides"),
            ("advice", "text", "what to do; empty where there is nothing to do"),
            ("decided_by", "caller|target|route|target-agent|session", "who or what decides"),
            ("service", "text?", "what the call is for, where that was said"),
            ("caller", "TerminalView?", "the caller, as the table shows it"),
            ("callee", "TerminalView?", "the target, likewise"),
            ("route", "[text]", "the route it would take, or took last"),
            ("hops", "[HopView]", "the links of the route, from the caller's relay on"),
            ("rtt_us", "number?", "their round-trip times together, µs"),
            (
                "direct",
                "DirectOdds?",
                "whether the terminals could reach each other without relays",
            ),
            ("session", "SessionView?", "the session that was asked about"),
            ("last_call", "SessionView?", "the last call like this one that this relay has seen"),
        ],
    ),
    (
        "HopView",
        &[
            ("from", "text", "the end that is nearer to the caller"),
            ("to", "text", "the other end"),
            ("rtt_us", "number?", "round-trip time in steps, µs; null where they are not linked"),
            ("draining", "bool", "whether the relay at the far end takes no new terminals"),
        ],
    ),
    (
        "DirectOdds",
        &[
            ("possible", "likely|unknown|unlikely", "how likely it is"),
            ("why", "text", "what that is judged by"),
        ],
    ),
    ("Done", &[("done", "bool", "true")]),
    (
        "Problem",
        &[
            ("status", "number", "the status code"),
            ("title", "text", "what it stands for"),
            ("code", "text", "one word for scripts"),
            ("detail", "text", "what, why, what to do"),
        ],
    ),
];

fn schemas() -> Value {
    let object = |fields: &[Field]| {
        let names: Vec<_> = fields.iter().map(|(name, ..)| *name).collect();
        let properties: Map<String, Value> = fields
            .iter()
            .map(|(name, kind, meaning)| {
                let mut schema = typed(kind);
                schema["description"] = (*meaning).into();
                ((*name).to_owned(), schema)
            })
            .collect();
        json!({"type": "object", "required": names, "properties": properties})
    };
    SCHEMAS.iter().map(|(name, fields)| ((*name).to_owned(), object(fields))).collect()
}

/// `text`, `number` (whole, not negative), `real` or `bool`, with `?` where it may be null; `counts` and `texts` are maps;
/// `[T]` is a list of T, `a|b` one of some words, anything else the name of a schema.
fn typed(kind: &str) -> Value {
    if let Some(kind) = kind.strip_suffix('?') {
        let mut schema = typed(kind);
        if schema["$ref"].is_string() {
            return json!({"anyOf": [schema, {"type": "null"}]});
        }
        schema["type"] = json!([schema["type"], "null"]);
        return schema;
    }
    if let Some(item) = kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
        return json!({"type": "array", "items": typed(item)});
    }
    match kind {
        "text" => json!({"type": "string"}),
        "number" => json!({"type": "integer", "minimum": 0}),
        "real" => json!({"type": "number"}),
        "bool" => json!({"type": "boolean"}),
        "counts" => json!({"type": "object", "additionalProperties": typed("number")}),
        "texts" => json!({"type": "object", "additionalProperties": typed("text")}),
        words if words.contains('|') => {
            json!({"type": "string", "enum": words.split('|').collect::<Vec<_>>()})
        }
        name => json!({"$ref": format!("#/components/schemas/{name}")}),
    }
}
