//! HTTP/1.1 over the running relay's local socket.

use std::env::var_os;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tasuki_proto::limits;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Global;

/// The local socket's name in the data directory.
pub const SOCKET: &str = "relay.sock";
/// The system's data directory.
const SYSTEM_DATA: &str = "/var/lib/tasuki-relay";
/// How long a verb waits: longer than the relay may take, so that the relay's own reason is what is shown.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// The socket of the relay that a verb is about: that of `--data`; else of the user's own relay where it runs,
/// else of the system's.
pub async fn socket(global: &Global) -> PathBuf {
    if let Some(data) = &global.data {
        return data.join(SOCKET);
    }
    let home = var_os("XDG_DATA_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(var_os("HOME")?).join(".local/share")));
    if let Some(home) = home {
        let own = home.join("tasuki-relay").join(SOCKET);
        if UnixStream::connect(&own).await.is_ok() {
            return own;
        }
    }
    Path::new(SYSTEM_DATA).join(SOCKET)
}

/// Asks the relay behind `socket`; the status and the body, `null` where it is empty.
///
/// # Errors
/// One line: that no relay runs there, that this user may not ask it, or that it does not answer.
pub async fn call(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<Value>,
) -> Result<(u16, Value)> {
    let stream = UnixStream::connect(socket).await.map_err(|error| explain(socket, &error))?;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let request = request.body(Full::new(body)).context("the request is not sound")?;
    timeout(ANSWER_TIME, exchange(stream, request))
        .await
        .map_err(|_| anyhow!("the relay does not answer: see its log, or restart it"))?
        .context("the relay went away before it answered: see its log")
}

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<(u16, Value)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Owns the sender: when it is done, so is the connection.
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), limits::HTTP_REPLY_BYTES);
        let body = body.collect().await.map_err(|error| anyhow!(error))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    let (status, body) = answer?;
    let value = match body.as_ref() {
        b"" => Value::Null,
        text => serde_json::from_slice(text)
            .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(text))),
    };
    Ok((status, value))
}

fn explain(socket: &Path, error: &std::io::Error) -> anyhow::Error {
    let data = socket.parent().unwrap_or(socket).display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            anyhow!("no relay is running on {data}: start it with `tasuki-relay run`")
        }
        ErrorKind::PermissionDenied => {
            anyhow!(
                "this user may not ask the relay on {data}: use sudo, or join the group `tasuki`"
            )
        }
        _ => anyhow!("the relay on {data} cannot be asked: {error}"),
    }
}

/// Asks; anything but success is an error of the form `code: what: what to do`.
///
/// # Errors
/// As [`call`], and the relay's own refusal.
pub async fn ask(socket: &Path, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
    let (status, body) = call(socket, method, path, body).await?;
    if (200..300).contains(&status) {
        return Ok(body);
    }
    Err(refused(status, &body))
}

/// What a response says that is not a success.
pub(super) fn refused(status: u16, body: &Value) -> anyhow::Error {
    match (body["code"].as_str(), body["detail"].as_str()) {
        (Some(code), Some(detail)) => anyhow!("{code}: {detail}"),
        _ => anyhow!("the relay answered with status {status}: see its log"),
    }
}

/// Writes `value` so that it can stand in a query (RFC 3986, section 2.1).
pub(super) fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_says_whether_the_relay_runs() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET);
        let expected = format!(
            "no relay is running on {}: start it with `tasuki-relay run`",
            folder.path().display()
        );
        let error = call(&socket, "GET", "/healthz", None).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "no socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let error = call(&socket, "GET", "/healthz", None).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "a stale socket");
    }

    #[tokio::test]
    async fn a_relay_that_dies_under_way_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join(SOCKET);
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let (answer, _) = tokio::join!(call(&socket, "GET", "/healthz", None), async {
            drop(listener.accept().await)
        });
        let error = answer.unwrap_err().to_string();
        assert!(error.starts_with("the relay went away"), "{error}");
    }

    #[tokio::test]
    async fn the_socket_is_in_the_data_directory() {
        let global = Global { data: Some("/x".into()), ..Global::default() };
        assert_eq!(socket(&global).await, Path::new("/x/relay.sock"));
    }

    #[test]
    fn what_stands_in_a_query_is_encoded() {
        assert_eq!(encoded("a-b.c_d~Z9 &=%ä"), "a-b.c_d~Z9%20%26%3D%25%C3%A4");
    }
}
