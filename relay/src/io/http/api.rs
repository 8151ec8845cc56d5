//! The routes of the status endpoint (interfaces: "Status endpoint").

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tasuki_proto::view::TerminalFilter;
use tasuki_proto::{RefusalCode, RelayName, ServiceName, SessionId, TerminalId, limits};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::console;
use super::door::{self, Door, Rules, Shows};
use super::events::{self, Wanted};
use super::metrics::{self, Exposition, MetricSource};
use super::openapi;
use super::params::{Named, Params, id, text, unknown, word};
use super::problem::Problem;
use super::serve::Lifetime;
use super::{Node, Service};
use crate::core::admin::{AdminReply, AdminRequest, RelayView, SessionView, StatusView, Summary};

/// Rows that the core is asked for at once: bounds what a page holds beyond [`limits::HTTP_PAGE_BYTES`].
const CHUNK: usize = 250;

/// How old the counts over all terminals may be that are shown.
const SUMMARY_AGE: Duration = Duration::from_secs(2);

type Asked = State<Arc<Api>>;
type Answer = Result<Response, Problem>;

/// All routes, with those of `extra`, each behind the door.
pub(super) fn routes(service: Service, extra: Router, door: Door, time: Duration) -> Router {
    let door = Arc::new(door);
    let guard = |shows| {
        let rules = Rules { door: door.clone(), shows, time };
        middleware::from_fn_with_state(rules, door::guard)
    };
    let api = Arc::new(Api { service, summary: Mutex::default() });
    let open = open().with_state(api.clone()).method_not_allowed_fallback(wrong_method);
    let data = data()
        .with_state(api)
        .merge(extra)
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method);
    open.layer(guard(Shows::Nothing))
        .merge(data.layer(guard(Shows::Data)))
        .layer(DefaultBodyLimit::max(limits::HTTP_BODY_BYTES))
}

/// What shows nothing of the mesh, and can so be read from everywhere.
fn open() -> Router<Arc<Api>> {
    console::routes().route("/healthz", get(healthz)).route("/readyz", get(readyz))
}

/// What does.
fn data() -> Router<Arc<Api>> {
    Router::new()
        .route("/metrics", get(prometheus))
        .route("/api/v1/openapi.json", get(description))
        .route("/api/v1/status", get(status))
        .route("/api/v1/relays", get(relays))
        .route("/api/v1/relays/{name}/history", get(relay_history))
        .route("/api/v1/relays/{name}/kick", post(kick_relay))
        .route("/api/v1/relays/{name}/revoke", post(revoke_relay))
        .route("/api/v1/terminals", get(terminals))
        .route("/api/v1/terminals/{name}", get(terminal))
        .route("/api/v1/terminals/{name}/history", get(terminal_history))
        .route("/api/v1/terminals/{name}/kick", post(kick_terminal))
        .route("/api/v1/terminals/{name}/revoke", post(revoke_terminal))
        .route("/api/v1/sessions", get(sessions))
        .route("/api/v1/sessions/{id}", get(session))
        .route("/api/v1/sessions/{id}/end", post(end_session))
        .route("/api/v1/summary", get(summary))
        .route("/api/v1/events", get(watch))
        .route("/api/v1/explain", get(explain))
        .route("/api/v1/login", post(log_in))
        .route("/api/v1/drain", post(drain))
        .route("/api/v1/undrain", post(undrain))
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

/// What the routes share.
struct Api {
    service: Service,
    /// The counts over the mesh, and when they were made.
    summary: Mutex<Option<(Instant, Arc<Summary>)>>,
}

impl Api {
    /// The core's answer; a refusal, silence or the relay's end is a problem.
    async fn ask(&self, request: AdminRequest) -> Result<AdminReply, Problem> {
        match timeout(limits::HTTP_ANSWER_TIME, self.service.admin.ask(request)).await {
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

    /// What keeps the relay from all that it should do, beside what the core knows.
    fn trouble(&self) -> Option<String> {
        self.service.metrics.iter().find_map(|source| source.trouble())
    }

    /// As the core sees it, and whether the rest of the relay is well.
    async fn status(&self) -> Result<Box<StatusView>, Problem> {
        let mut view = self.ask_status().await?;
        view.not_ready = view.not_ready.take().or_else(|| self.trouble());
        Ok(view)
    }

    /// The counts, gathered part by part, or those of a moment ago.
    async fn summary(&self) -> Result<Arc<Summary>, Problem> {
        let mut held = self.summary.lock().await;
        if let Some((made, summary)) = &*held
            && made.elapsed() < SUMMARY_AGE
        {
            return Ok(summary.clone());
        }
        let mut whole = Summary::default();
        let mut after = None;
        loop {
            let AdminReply::Summary(part, next) = self.ask(AdminRequest::Summary { after }).await?
            else {
                return Err(mismatch());
            };
            whole = Summary { terminals: whole.terminals.plus(part.terminals), ..*part };
            after = next;
            if after.is_none() {
                break;
            }
        }
        let summary = Arc::new(whole);
        *held = Some((Instant::now(), summary.clone()));
        Ok(summary)
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
        self.service.revoker.revoke(node).await?;
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

async fn healthz(State(api): Asked) -> Result<String, Problem> {
    api.ask_status().await?;
    // The process works, and to start it again would not help.
    Ok(api.trouble().map_or_else(|| "ok\n".to_owned(), |why| format!("ok, but {why}\n")))
}

async fn readyz(State(api): Asked) -> Result<&'static str, Problem> {
    match api.status().await?.not_ready {
        None => Ok("ok\n"),
        Some(why) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", why)),
    }
}

async fn prometheus(State(api): Asked) -> Answer {
    let mut out = Exposition::default();
    api.status().await?.collect(&mut out);
    for source in &api.service.metrics {
        source.collect(&mut out);
    }
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], out.finish()).into_response())
}

async fn description(params: Params) -> Answer {
    params.only(&[])?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, openapi::DOCUMENT.as_slice()).into_response())
}

async fn status(State(api): Asked, params: Params) -> Answer {
    params.only(&[])?;
    Ok(Json(api.status().await?).into_response())
}

async fn relays(State(api): Asked, params: Params) -> Answer {
    let params = params.only(&["limit", "after"])?;
    let limit = params.limit()?;
    let after = params.value("after", text(limits::NAME_BYTES))?;
    let AdminReply::Relays(mut relays) = api.ask(AdminRequest::Relays).await? else {
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

async fn terminals(State(api): Asked, params: Params) -> Answer {
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
    gather(&api, params.limit()?, after, request, rows).await
}

async fn terminal(State(api): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    match api.ask(AdminRequest::Terminal(name.0)).await? {
        AdminReply::Terminal(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

async fn sessions(State(api): Asked, params: Params) -> Answer {
    let params = params.only(&["state", "limit", "after"])?;
    let state = params.value("state", word)?;
    let request = |after, limit| AdminRequest::Sessions { state, after, limit };
    let rows = |reply| match reply {
        AdminReply::Sessions(rows, next) => Some((rows, next)),
        _ => None,
    };
    let after: Option<SessionId> = params.value("after", id)?;
    gather::<SessionView, _>(&api, params.limit()?, after, request, rows).await
}

async fn session(State(api): Asked, params: Params, session: Named<SessionId>) -> Answer {
    params.only(&[])?;
    match api.ask(AdminRequest::Session(session.0)).await? {
        AdminReply::Session(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

async fn summary(State(api): Asked, params: Params) -> Answer {
    params.only(&[])?;
    Ok(Json(&*api.summary().await?).into_response())
}

async fn watch(State(api): Asked, params: Params, request: Request) -> Answer {
    let params = params.only(&["types"])?;
    let wanted = Wanted::new(params.value("types", events::kinds)?, request.headers());
    let response = api.service.events.watch(wanted).await?;
    if let Some(lifetime) = request.extensions().get::<Lifetime>() {
        lifetime.extend();
    }
    Ok(response)
}

async fn terminal_history(State(api): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    history(api.ask(AdminRequest::TerminalHistory(name.0)).await?)
}

async fn relay_history(State(api): Asked, params: Params, name: Named<RelayName>) -> Answer {
    params.only(&[])?;
    history(api.ask(AdminRequest::RelayHistory(name.0)).await?)
}

/// All of it at once: a history is short.
fn history(reply: AdminReply) -> Answer {
    let items = match reply {
        AdminReply::History(items) => items,
        AdminReply::UnknownRelay(name) => return Err(unknown::<RelayName>(name.as_str())),
        _ => return Err(mismatch()),
    };
    let mut page = Page::default();
    items.iter().try_for_each(|item| page.push(item))?;
    Ok(page.finish(None))
}

async fn explain(State(api): Asked, params: Params) -> Answer {
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
    match api.ask(request).await? {
        AdminReply::Explanation(view) => Ok(Json(view).into_response()),
        _ => Err(mismatch()),
    }
}

/// Changes nothing: who gets here has shown the token, which is what a log-in form wants to know.
async fn log_in(params: Params) -> Answer {
    params.only(&[])?;
    Ok(done())
}

async fn end_session(State(api): Asked, params: Params, session: Named<SessionId>) -> Answer {
    params.only(&[])?;
    api.act(AdminRequest::EndSession(session.0)).await
}

async fn kick_terminal(State(api): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    api.act(AdminRequest::KickTerminal(name.0)).await
}

async fn kick_relay(State(api): Asked, params: Params, name: Named<RelayName>) -> Answer {
    params.only(&[])?;
    api.act(AdminRequest::KickRelay(name.0)).await
}

async fn revoke_terminal(State(api): Asked, params: Params, name: Named<TerminalId>) -> Answer {
    params.only(&[])?;
    api.revoke(Node::Terminal(name.0)).await
}

async fn revoke_relay(State(api): Asked, params: Params, name: Named<RelayName>) -> Answer {
    params.only(&[])?;
    api.revoke(Node::Relay(name.0)).await
}

async fn drain(State(api): Asked, params: Params) -> Answer {
    let params = params.only(&["end_within_s"])?;
    let end_within = params.value("end_within_s", drain_time)?;
    api.act(AdminRequest::Drain(end_within)).await
}

fn drain_time(word: &str) -> Result<Duration, String> {
    let most = limits::DRAIN_TIME.as_secs();
    match word.parse() {
        Ok(secs) if (1..=most).contains(&secs) => Ok(Duration::from_secs(secs)),
        _ => Err(format!("use a whole number from 1 to {most}")),
    }
}

async fn undrain(State(api): Asked, params: Params) -> Answer {
    params.only(&[])?;
    api.act(AdminRequest::Undrain).await
}

/// A page of `limit` rows out of the core's bounded pages. It ends early, with a cursor, when the search takes
/// longer than [`limits::HTTP_LIST_TIME`] or the page is full ([`limits::HTTP_PAGE_BYTES`]).
async fn gather<T: Serialize, K: ToString>(
    api: &Api,
    limit: usize,
    mut after: Option<K>,
    request: impl Fn(Option<K>, usize) -> AdminRequest,
    rows: impl Fn(AdminReply) -> Option<(Vec<T>, Option<K>)>,
) -> Answer {
    let until = Instant::now() + limits::HTTP_LIST_TIME;
    let mut page = Page::default();
    loop {
        let want = (limit - page.rows).min(CHUNK);
        let reply = api.ask(request(after, want)).await?;
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
