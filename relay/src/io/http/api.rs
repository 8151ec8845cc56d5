//! The routes of the status endpoint (interfaces: "Status endpoint").

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tasuki_proto::view::TerminalFilter;
use tasuki_proto::{RefusalCode, RelayName, ServiceName, SessionId, TerminalId, limits};
use tokio::time::{Instant, timeout};

use super::metrics::{self, Exposition, MetricSource};
use super::params::{Named, Params, id, text, word};
use super::problem::Problem;
use super::{Node, Service};
use crate::core::admin::{AdminReply, AdminRequest, RelayView, SessionView, StatusView};

/// Rows that the core is asked for at once: bounds what a page holds beyond [`limits::HTTP_PAGE_BYTES`].
const CHUNK: usize = 250;

type Asked = State<Arc<Service>>;
type Answer = Result<Response, Problem>;

/// All routes, with those of `extra`.
pub(super) fn routes(service: Service, extra: Router) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(prometheus))
        .route("/api/v1/status", get(status))
        .route("/api/v1/relays", get(relays))
        .route("/api/v1/relays/{name}/kick", post(kick_relay))
        .route("/api/v1/relays/{name}/revoke", post(revoke_relay))
        .route("/api/v1/terminals", get(terminals))
        .route("/api/v1/terminals/{name}", get(terminal))
        .route("/api/v1/terminals/{name}/kick", post(kick_terminal))
        .route("/api/v1/terminals/{name}/revoke", post(revoke_terminal))
        .route("/api/v1/sessions", get(sessions))
        .route("/api/v1/sessions/{id}", get(session))
        .route("/api/v1/sessions/{id}/end", post(end_session))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/drain", post(drain))
        .route("/api/v1/undrain", post(undrain))
        .with_state(Arc::new(service))
        .merge(extra)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(limits::HTTP_BODY_BYTES))
}

async fn no_such_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    let detail =
        format!("{path}: there is no such path; see the documentation of the status endpoint");
    Problem::new(StatusCode::NOT_FOUND, "unknown-path", detail)
}

async fn wrong_method() -> Problem {
    let detail = "the path takes another method: see the Allow header field";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", detail)
}

impl Service {
    /// The core's answer; a refusal, silence or the relay's end is a problem.
    async fn ask(&self, request: AdminRequest) -> Result<AdminReply, Problem> {
        match timeout(limits::HTTP_ANSWER_TIME, self.admin.ask(request)).await {
            Ok(Some(AdminReply::Refused(refusal))) => Err(refusal.into()),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => Err(RefusalCode::ShuttingDown.into()),
            Err(_) => Err(RefusalCode::Overloaded.into()),
        }
    }

    async fn ask_status(&self) -> Result<Box<StatusView>, Problem> {
        match self.ask(AdminRequest::Status).await? {
            AdminReply::Status(view) => Ok(view),
            _ => Err(mismatch()),
        }
    }

    /// Lets the core carry a command out.
    async fn act(&self, request: AdminRequest) -> Answer {
        tracing::info!(?request, "operator");
        match self.ask(request).await? {
            AdminReply::Done => Ok(done()),
            _ => Err(mismatch()),
        }
    }

    async fn revoke(&self, node: Node) -> Answer {
        tracing::info!(?node, "operator revokes");
        self.revoker.revoke(node).await?;
        Ok(done())
    }
}

fn done() -> Response {
    Json(serde_json::json!({ "done": true })).into_response()
}

/// The core answered another question.
fn mismatch() -> Problem {
    tracing::error!("the core's answer does not fit its question");
    let detail = "the relay's parts do not fit together: report this as a bug";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
}

async fn healthz(State(service): Asked) -> Result<&'static str, Problem> {
    service.ask_status().await?;
    Ok("ok\n")
}

async fn readyz(State(service): Asked) -> Result<&'static str, Problem> {
    match service.ask_status().await?.not_ready {
        None => Ok("ok\n"),
        Some(why) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", why)),
    }
}

async fn prometheus(State(service): Asked) -> Answer {
    let mut out = Exposition::default();
    service.ask_status().await?.collect(&mut out);
    for source in &service.metrics {
        source.collect(&mut out);
    }
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], out.finish()).into_response())
}

async fn status(State(service): Asked, params: Params) -> Answer {
    params.only(&[])?;
    Ok(Json(service.ask_status().await?).into_response())
}

async fn relays(State(service): Asked, params: Params) -> Answer {
    let params = params.only(&["limit", "after"])?;
    let limit = params.limit()?;
    let after = params.value("after", text(limits::NAME_BYTES))?;
    let AdminReply::Relays(mut relays) = service.ask(AdminRequest::Relays).await? else {
        return Err(mismatch());
    };
    relays.sort_by(|one, other| one.id.cmp(&other.id));
    let mut rest =
        relays.iter().filter(|relay| after.as_ref().is_none_or(|after| relay.id > *after));
    let mut page = Page::default();
    let mut last: Option<&RelayView> = None;
    for relay in rest.by_ref().take(limit) {
        page.push(relay)?;
        last = Some(relay);
    }
    let more = rest.next().is_some();
    Ok(page.finish(last.filter(|_| more).map(|relay| relay.id.clone())))
}

async fn terminals(State(service): Asked, params: Params) -> Answer {
    let params = params.only(&["state", "type", "q", "limit", "after"])?;
    let filter = TerminalFilter {
        state: params.value("state", word)?,
        kind: params.value("type", text(limits::ATTRIBUTE_BYTES))?,
        text: params.value("q", text(limits::NAME_BYTES))?,
    };
    let request = |after, limit| AdminRequest::Terminals { filter: filter.clone(), after, limit };
    let rows = |reply| match reply {
        AdminReply::Terminals(rows, next) => Some((rows, next)),
        _ => None,
    };
    let after: Option<TerminalId> = params.value("after", id)?;
    gather(&service, params.limit()?, after, request, rows).await
}

async fn terminal(State(service): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    match service.ask(AdminRequest::Terminal(name.0)).await? {
        AdminReply::Terminal(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

async fn sessions(State(service): Asked, params: Params) -> Answer {
    let params = params.only(&["state", "limit", "after"])?;
    let state = params.value("state", word)?;
    let request = |after, limit| AdminRequest::Sessions { state, after, limit };
    let rows = |reply| match reply {
        AdminReply::Sessions(rows, next) => Some((rows, next)),
        _ => None,
    };
    let after: Option<SessionId> = params.value("after", id)?;
    gather::<SessionView, _>(&service, params.limit()?, after, request, rows).await
}

async fn session(State(service): Asked, params: Params, session: Named<SessionId>) -> Answer {
    params.only(&[])?;
    match service.ask(AdminRequest::Session(session.0)).await? {
        AdminReply::Session(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

async fn explain(State(service): Asked, params: Params) -> Answer {
    let params = params.only(&["from", "to", "service", "session"])?;
    let request = match params.value::<SessionId>("session", id)? {
        Some(session) => {
            params.only(&["session"])?;
            AdminRequest::ExplainSession(session)
        }
        None => AdminRequest::Explain {
            caller: params.required::<TerminalId>("from", id)?,
            target: params.required::<TerminalId>("to", id)?,
            service: params.value::<ServiceName>("service", id)?,
        },
    };
    match service.ask(request).await? {
        AdminReply::Explanation(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

async fn end_session(State(service): Asked, params: Params, session: Named<SessionId>) -> Answer {
    params.only(&[])?;
    service.act(AdminRequest::EndSession(session.0)).await
}

async fn kick_terminal(State(service): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    service.act(AdminRequest::KickTerminal(name.0)).await
}

async fn kick_relay(State(service): Asked, params: Params, name: Named<RelayName>) -> Answer {
    params.only(&[])?;
    service.act(AdminRequest::KickRelay(name.0)).await
}

async fn revoke_terminal(State(service): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    service.revoke(Node::Terminal(name.0)).await
}

async fn revoke_relay(State(service): Asked, params: Params, name: Named<RelayName>) -> Answer {
    params.only(&[])?;
    service.revoke(Node::Relay(name.0)).await
}

async fn drain(State(service): Asked, params: Params) -> Answer {
    let params = params.only(&["end_within_s"])?;
    let end_within = params.value("end_within_s", drain_time)?;
    service.act(AdminRequest::Drain(end_within)).await
}

fn drain_time(word: &str) -> Result<Duration, String> {
    let most = limits::DRAIN_TIME.as_secs();
    match word.parse() {
        Ok(secs) if (1..=most).contains(&secs) => Ok(Duration::from_secs(secs)),
        _ => Err(format!("use a whole number from 1 to {most}")),
    }
}

async fn undrain(State(service): Asked, params: Params) -> Answer {
    params.only(&[])?;
    service.act(AdminRequest::Undrain).await
}

/// A page of `limit` rows out of the core's bounded pages. It ends early, with a cursor, when the search takes
/// longer than [`limits::HTTP_LIST_TIME`] or the page is full ([`limits::HTTP_PAGE_BYTES`]).
async fn gather<T: Serialize, K: ToString>(
    service: &Service,
    limit: usize,
    mut after: Option<K>,
    request: impl Fn(Option<K>, usize) -> AdminRequest,
    rows: impl Fn(AdminReply) -> Option<(Vec<T>, Option<K>)>,
) -> Answer {
    let until = Instant::now() + limits::HTTP_LIST_TIME;
    let mut page = Page::default();
    loop {
        let want = (limit - page.rows).min(CHUNK);
        let reply = service.ask(request(after, want)).await?;
        let (found, next) = rows(reply).ok_or_else(mismatch)?;
        for row in &found {
            page.push(row)?;
        }
        let full = page.rows >= limit || page.items.len() >= limits::HTTP_PAGE_BYTES;
        if next.is_none() || full || Instant::now() >= until {
            return Ok(page.finish(next.map(|next| next.to_string())));
        }
        after = next;
    }
}

/// A page under way: rows as JSON, so that it is never held twice.
#[derive(Default)]
struct Page {
    items: Vec<u8>,
    rows: usize,
}

impl Page {
    fn push(&mut self, row: &impl Serialize) -> Result<(), Problem> {
        self.items.extend_from_slice(if self.rows == 0 { b"{\"items\":[" } else { b"," });
        self.rows += 1;
        serde_json::to_writer(&mut self.items, row).map_err(|_| mismatch())
    }

    fn finish(mut self, next: Option<String>) -> Response {
        if self.rows == 0 {
            self.items.extend_from_slice(b"{\"items\":[");
        }
        let tail = format!("],\"next\":{}}}", serde_json::Value::from(next));
        self.items.extend_from_slice(tail.as_bytes());
        ([(header::CONTENT_TYPE, "application/json")], self.items).into_response()
    }
}
