//! The registrar's verbs over the local socket: tokens and revocations.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tasuki_proto::identity::TokenFor;
use tasuki_proto::{Refusal, RefusalCode, TerminalId};

use super::{Registrar, TOKEN_LIFE, TokenOrder};

/// `POST /local/v1/tokens`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    /// For this terminal; without it for a relay.
    terminal: Option<TerminalId>,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    #[serde(default)]
    groups: Vec<String>,
    ttl_s: Option<u64>,
}

/// `POST /local/v1/revoke`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {
    name: String,
}

struct Problem(Refusal);

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Refusal { code, detail } = self.0;
        let status = match code {
            RefusalCode::BadRequest => StatusCode::BAD_REQUEST,
            RefusalCode::UnknownTarget => StatusCode::NOT_FOUND,
            RefusalCode::StoreFailed => StatusCode::INTERNAL_SERVER_ERROR,
            RefusalCode::ShuttingDown | RefusalCode::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        let advice = code.advice();
        let detail =
            if detail.is_empty() { advice.to_owned() } else { format!("{detail}: {advice}") };
        let body = json!({
            "status": status.as_u16(), "title": status.canonical_reason(),
            "code": code.to_string(), "detail": detail,
        });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}

async fn tokens(
    State(registrar): State<Registrar>,
    Json(order): Json<Order>,
) -> Result<Json<Value>, Problem> {
    let token = registrar
        .make_token(TokenOrder {
            made_for: order.terminal.map_or(TokenFor::Relay, TokenFor::Terminal),
            kind: order.kind.unwrap_or_else(|| "user".to_owned()),
            attributes: order.attributes,
            groups: order.groups,
            life: order.ttl_s.map_or(TOKEN_LIFE, Duration::from_secs),
        })
        .await?;
    Ok(Json(json!({ "token": *token })))
}

async fn revoke(
    State(registrar): State<Registrar>,
    Json(revocation): Json<Revocation>,
) -> Result<Json<Value>, Problem> {
    let keys = registrar.revoke_name(&revocation.name).await?;
    Ok(Json(json!({ "revoked": keys })))
}

/// `/local/v1/tokens` and `/local/v1/revoke` at the registrar.
pub fn local_routes(registrar: Registrar) -> Router {
    Router::new()
        .route("/local/v1/tokens", post(tokens))
        .route("/local/v1/revoke", post(revoke))
        .with_state(registrar)
}

/// The same elsewhere: refused.
pub fn refusing_routes(refusal: impl Fn() -> Refusal + Clone + Send + Sync + 'static) -> Router {
    let refuse = move || {
        let refusal = refusal();
        async { Problem(refusal) }
    };
    Router::new()
        .route("/local/v1/tokens", post(refuse.clone()))
        .route("/local/v1/revoke", post(refuse))
}
