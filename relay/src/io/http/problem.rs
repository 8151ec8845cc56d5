//! Errors as `application/problem+json` (RFC 9457).

use std::fmt::Display;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tasuki_proto::{Refusal, RefusalCode};

/// An error of the status endpoint. Of the type `about:blank`, so its title is the status' own (RFC 9457,
/// section 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    title: &'static str,
    code: String,
    detail: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// `code` is one word for scripts; `detail` says what happened and what to do, in one line.
    pub fn new(status: StatusCode, code: impl Display, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { status, title, code: code.to_string(), detail: detail.into() }
    }

    /// 400, with what is allowed.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, RefusalCode::BadRequest, detail)
    }
}

/// The status of a response that carries this code.
fn status_of(code: RefusalCode) -> StatusCode {
    use RefusalCode as Code;
    match code {
        Code::UnknownTarget | Code::UnknownTerminal | Code::UnknownSession => StatusCode::NOT_FOUND,
        Code::BadRequest => StatusCode::BAD_REQUEST,
        Code::StoreFailed => StatusCode::INTERNAL_SERVER_ERROR,
        Code::ShuttingDown | Code::Overloaded | Code::Busy | Code::RegistrarUnreachable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::CONFLICT,
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let advice = refusal.code.advice();
        let detail = match refusal.detail.as_str() {
            "" => advice.to_owned(),
            detail => format!("{detail}: {advice}"),
        };
        Self::new(status_of(refusal.code), refusal.code, detail)
    }
}

impl From<RefusalCode> for Problem {
    fn from(code: RefusalCode) -> Self {
        Refusal::from(code).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 6750, section 3.
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"tasuki\""),
            );
        }
        response
    }
}
