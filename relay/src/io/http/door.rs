//! Who may ask: the one place that decides whether a request is let in (lessons: a dashboard that accepted any
//! password; routing on one header and checking the password of another).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::digest;
use subtle::ConstantTimeEq;
use tasuki_proto::RefusalCode;
use tasuki_proto::limits;

use super::problem::Problem;
use super::serve::Origin;

/// The bearer token that actions need (`admin.token` in the data directory). Only its SHA-256 is kept.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

/// An admin token that would be too easy to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the admin token is shorter than {} characters", AdminToken::MIN)]
pub struct WeakToken;

impl AdminToken {
    /// Characters of the shortest token that is taken.
    pub const MIN: usize = 16;

    /// The token in `text`, which may end in a line break.
    ///
    /// # Errors
    /// [`WeakToken`] when it is shorter than [`AdminToken::MIN`], so that an empty file does not open the door.
    pub fn new(text: &str) -> Result<Self, WeakToken> {
        let text = text.trim();
        if text.len() < Self::MIN {
            return Err(WeakToken);
        }
        Ok(Self(sha256(text.as_bytes())))
    }

    /// In constant time: what is compared are digests of one length.
    fn is(&self, offered: &[u8]) -> bool {
        self.0.ct_eq(&sha256(offered)).into()
    }
}

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken")
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// Where a request comes in.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// A loopback address: anybody on this machine, and any web page that one of its browsers shows.
    Loopback(AdminToken),
    /// Any other address, over TLS: everybody.
    Network(AdminToken),
    /// The socket in the data directory: who can open it may act.
    Local,
}

/// What a path shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shows {
    /// Nothing of the mesh: whether the process works, the console's files.
    Nothing,
    /// Anything else.
    Data,
}

impl Door {
    /// The token comes before everything else of a request: path, host, body.
    fn check(&self, request: &Request, shows: Shows) -> Result<(), Problem> {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match self {
            Door::Local => {}
            Door::Loopback(token) => {
                if !reads {
                    check_token(token, request.headers())?;
                }
                check_host(request.uri(), request.headers())?;
            }
            Door::Network(token) => {
                // Whatever name a page of a stranger's site gives this address, it has no token.
                if !reads || shows == Shows::Data {
                    check_token(token, request.headers())?;
                }
                if only(request.headers(), header::HOST).is_none() {
                    return Err(wrong_host("the request needs one Host header field"));
                }
            }
        }
        check_length(request.headers())
    }
}

/// Every method that can change anything needs the token, whether its path exists or not.
fn check_token(token: &AdminToken, headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |what: &str| {
        let detail = format!(
            "{what}: send 'Authorization: Bearer' with the content of admin.token in the relay's data directory"
        );
        Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    };
    match only(headers, header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes())) {
        Some(offered) if token.is(offered) => Ok(()),
        Some(_) => Err(refused("the token is wrong")),
        None => Err(refused("this needs the admin token")),
    }
}

/// The header field's value, where there is exactly one.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The token of `Bearer TOKEN` (RFC 6750, section 2.1; the scheme in any case, RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Against DNS rebinding: a page of a stranger's site, whose name was made to point here, says that name.
fn check_host(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let host = only(headers, header::HOST)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| wrong_host("the request needs one Host header field"))?;
    // A request target in absolute form overrides the field (RFC 9112, section 3.2.2): both have to fit.
    let target = uri.authority().map(axum::http::uri::Authority::as_str);
    if std::iter::once(host).chain(target).all(is_loopback_host) {
        Ok(())
    } else {
        Err(wrong_host("this endpoint is for this machine only and has no such name"))
    }
}

fn wrong_host(what: &str) -> Problem {
    let detail = format!("{what}: use localhost, 127.0.0.1 or [::1] on this machine");
    Problem::new(StatusCode::MISDIRECTED_REQUEST, "wrong-host", detail)
}

/// Whether `HOST` or `HOST:PORT` is `localhost` or the literal of a loopback address.
fn is_loopback_host(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else { return false };
            let Ok(address) = host.parse::<Ipv6Addr>() else { return false };
            return IpAddr::V6(address).to_canonical().is_loopback() && is_port(port);
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let named = host.eq_ignore_ascii_case("localhost");
    let literal = host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    (named || literal) && is_port(port)
}

/// Nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

/// A body that says that it is too large is not waited for.
fn check_length(headers: &HeaderMap) -> Result<(), Problem> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    match length.and_then(|length| length.parse::<usize>().ok()) {
        Some(length) if length > limits::HTTP_BODY_BYTES => {
            let detail =
                format!("the body is too large: send at most {} bytes", limits::HTTP_BODY_BYTES);
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail))
        }
        _ => Ok(()),
    }
}

/// What [`guard`] goes by.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) door: Arc<Door>,
    pub(super) shows: Shows,
    /// For a request, until its response begins.
    pub(super) time: Duration,
}

/// Lets a request in or not, and bounds the time that it takes.
pub(super) async fn guard(
    State(Rules { door, shows, time }): State<Rules>,
    request: Request,
    next: Next,
) -> Response {
    let action = Action::of(&request);
    let mut response = match door.check(&request, shows) {
        Err(problem) => problem.into_response(),
        Ok(()) => match tokio::time::timeout(time, next.run(request)).await {
            Ok(response) => response,
            Err(_) => too_slow(time).into_response(),
        },
    };
    if let Some(action) = action {
        action.log(response.status());
    }
    let headers = response.headers_mut();
    // What is of the mesh is not kept; files that are the same for everybody say otherwise themselves.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A request that may change something, for the log: whoever holds the token or may open the local socket acts in the
/// operator's name, so what was done is told with where it came from.
struct Action {
    method: Method,
    path: String,
    from: Option<Origin>,
}

impl Action {
    /// Characters of a path that are told.
    const PATH: usize = 200;

    fn of(request: &Request) -> Option<Self> {
        let method = request.method().clone();
        if matches!(method, Method::GET | Method::HEAD) {
            return None;
        }
        let path = request.uri().path().chars().take(Self::PATH).collect();
        Some(Self { method, path, from: request.extensions().get().copied() })
    }

    fn log(self, status: StatusCode) {
        let Self { method, path, from } = self;
        let from = from.map_or_else(|| "-".to_owned(), |from| from.to_string());
        let status = status.as_u16();
        if status == StatusCode::UNAUTHORIZED.as_u16() {
            // Anybody can send these.
            return tracing::debug!(%method, %path, %from, status, "action refused");
        }
        tracing::info!(%method, %path, %from, status, "action taken");
    }
}

fn too_slow(time: Duration) -> Problem {
    let detail =
        format!("the request was not complete and answered within {time:?}: send it again");
    Problem::new(StatusCode::REQUEST_TIMEOUT, RefusalCode::TooSlow, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_a_host() {
        for good in [
            "localhost",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:8433",
            "127.8.9.1",
            "[::1]",
            "[::1]:8433",
        ] {
            assert!(is_loopback_host(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:127",
            "10.0.0.1",
            "::1",
            "[::1",
            "[::2]",
            "[::1]x",
            "localhost:",
            "localhost:x",
            "localhost:80:80",
            "user@localhost",
            "0.0.0.0",
            "127.1",
            "localhost:99999",
        ] {
            assert!(!is_loopback_host(bad), "{bad}");
        }
    }

    #[test]
    fn a_token_is_one_whole_word_of_some_length() {
        assert_eq!(AdminToken::new("").unwrap_err(), WeakToken);
        assert_eq!(AdminToken::new(" \n  \t             ").unwrap_err(), WeakToken);
        let token = AdminToken::new("0123456789abcdef\n").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        for wrong in [&b""[..], b"0123456789abcde", b"0123456789abcdeg", b"0123456789abcdef0"] {
            assert!(!token.is(wrong));
        }
        assert_eq!(format!("{token:?}"), "AdminToken");
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER  abc "), Some(&b"abc"[..]));
        for bad in [&b"Basic abc"[..], b"Bearerabc", b"Bearer", b"", b"abc"] {
            assert_eq!(bearer(bad), None);
        }
    }
}
