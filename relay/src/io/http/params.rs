//! What a request's path and query say, checked.

use std::str::FromStr;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::value::{Error as WordError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use tasuki_proto::limits;
use tasuki_proto::{RefusalCode, RelayName, SessionId, TerminalId};

use super::problem::Problem;

/// Rows of a page when the request does not say.
const DEFAULT_LIMIT: usize = 100;

/// The query's parameters, decoded. Their number and size are bounded by [`limits::HTTP_HEADER_BYTES`].
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::try_from_uri(&parts.uri)
            .map_err(|error| Problem::bad_request(format!("the query is not sound: {error}")))?;
        Ok(Self(pairs))
    }
}

impl Params {
    /// Refuses every parameter that is not one of `names`, and any given twice.
    pub(super) fn only(self, names: &[&str]) -> Result<Self, Problem> {
        for (at, (name, _)) in self.0.iter().enumerate() {
            if !names.contains(&name.as_str()) {
                let allowed = match names {
                    [] => "it takes none".to_owned(),
                    names => format!("use {}", names.join(", ")),
                };
                let name = shown(name);
                return Err(Problem::bad_request(format!("no parameter '{name}' here: {allowed}")));
            }
            if self.0[..at].iter().any(|(earlier, _)| earlier == name) {
                let name = shown(name);
                return Err(Problem::bad_request(format!("'{name}' stands twice: give it once")));
            }
        }
        Ok(self)
    }

    /// The value of `name`, made by `parse`, whose error says what is allowed.
    pub(super) fn value<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let Some((_, value)) = self.0.iter().find(|(key, _)| key == name) else {
            return Ok(None);
        };
        parse(value)
            .map(Some)
            .map_err(|allowed| Problem::bad_request(format!("parameter '{name}': {allowed}")))
    }

    /// The value of `name`, which has to be there.
    pub(super) fn required<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Problem> {
        self.value(name, parse)?
            .ok_or_else(|| Problem::bad_request(format!("parameter '{name}' is missing: add it")))
    }

    /// Rows of a page.
    pub(super) fn limit(&self) -> Result<usize, Problem> {
        let parse = |value: &str| match value.parse() {
            Ok(limit) if (1..=limits::PAGE).contains(&limit) => Ok(limit),
            _ => Err(format!("use a whole number from 1 to {}", limits::PAGE)),
        };
        Ok(self.value("limit", parse)?.unwrap_or(DEFAULT_LIMIT))
    }
}

/// What a client sent, cut and escaped to be shown.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// A name or an id.
pub(super) fn id<T: FromStr<Err: ToString>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

/// One of the words of an enum.
pub(super) fn word<T: DeserializeOwned>(value: &str) -> Result<T, String> {
    let deserializer: StrDeserializer<'_, WordError> = value.into_deserializer();
    T::deserialize(deserializer).map_err(|error| error.to_string())
}

/// Any text of at most `bytes`.
pub(super) fn text(bytes: usize) -> impl FnOnce(&str) -> Result<String, String> {
    move |value| {
        let fits = value.len() <= bytes;
        if fits { Ok(value.to_owned()) } else { Err(format!("use at most {bytes} bytes")) }
    }
}

/// What a path can name. A word that can name nothing is a name that nobody has.
pub(super) trait Nameable: FromStr<Err: ToString> {
    /// The code for one that does not exist, and where to look.
    const UNKNOWN: (&'static str, &'static str);
}

impl Nameable for TerminalId {
    const UNKNOWN: (&'static str, &'static str) =
        (RefusalCode::UnknownTarget.word(), RefusalCode::UnknownTarget.advice());
}

impl Nameable for SessionId {
    const UNKNOWN: (&'static str, &'static str) =
        (RefusalCode::UnknownSession.word(), RefusalCode::UnknownSession.advice());
}

impl Nameable for RelayName {
    const UNKNOWN: (&'static str, &'static str) =
        ("unknown-relay", "no relay of this mesh has that name; 'tasuki-relay relays' lists them");
}

/// 404 for a name that nobody has.
pub(super) fn unknown<T: Nameable>(what: &str) -> Problem {
    let (code, advice) = T::UNKNOWN;
    Problem::new(StatusCode::NOT_FOUND, code, format!("{}: {advice}", shown(what)))
}

/// The one name in a request's path.
pub(super) struct Named<T>(pub(super) T);

impl<S: Send + Sync, T: Nameable> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(word) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| unknown::<T>("the name in the path is not UTF-8"))?;
        word.parse().map(Named).map_err(|_| unknown::<T>(&word))
    }
}
