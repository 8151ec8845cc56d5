//! What the screen asks the relay for, over its local socket.

use std::path::Path;

use anyhow::{Result, anyhow};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tasuki_proto::limits;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::model::{Answers, View, Wants};
use crate::cli::local;

/// Terminals that are read at once.
const PART: usize = 200;
/// Running sessions that are shown at most, and pages that are read for them at most: a page may be short.
const SESSIONS: usize = 2_000;
const PAGES: usize = 16;

/// Asks for all that the screen shows.
///
/// # Errors
/// As [`local::ask`].
pub(super) async fn ask(socket: &Path, wants: Wants) -> Result<Answers> {
    let get = |path: String| async move { local::ask(socket, "GET", &path, None).await };
    let status = get("/api/v1/status".to_owned()).await?;
    let summary = get("/api/v1/summary".to_owned()).await?;
    let (rows, next) = match wants.view {
        View::Node => (Vec::new(), None),
        View::Relays => list(socket, "/api/v1/relays?", usize::MAX, usize::MAX).await?,
        View::Terminals => {
            let mut path = format!("/api/v1/terminals?limit={PART}");
            let after = wants.after.as_deref().unwrap_or_default();
            for (name, value) in [("q", &*wants.text), ("state", wants.state), ("after", after)] {
                if !value.is_empty() {
                    path.push_str(&format!("&{name}={}", local::encoded(value)));
                }
            }
            let mut page = get(path).await?;
            (taken(&mut page), page["next"].as_str().map(str::to_owned))
        }
        View::Sessions => {
            let (mut rows, next) =
                list(socket, "/api/v1/sessions?state=active&", SESSIONS, PAGES).await?;
            rows.extend(list(socket, "/api/v1/sessions?state=calling&", SESSIONS, PAGES).await?.0);
            (rows, next)
        }
    };
    Ok(Answers { wants, status, summary, rows, next })
}

fn taken(page: &mut Value) -> Vec<Value> {
    match page["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// A list page by page, at most `most` rows and `pages` pages of it, and where it goes on.
async fn list(
    socket: &Path,
    path: &str,
    most: usize,
    pages: usize,
) -> Result<(Vec<Value>, Option<String>)> {
    let base = format!("{path}limit={}", limits::PAGE);
    let (mut url, mut rows, mut read) = (base.clone(), Vec::new(), 0);
    loop {
        let mut page = local::ask(socket, "GET", &url, None).await?;
        rows.append(&mut taken(&mut page));
        read += 1;
        match page["next"].as_str() {
            Some(next) if rows.len() < most && read < pages => {
                url = format!("{base}&after={}", local::encoded(next));
            }
            next => return Ok((rows, next.map(str::to_owned))),
        }
    }
}

/// The relay's stream of changes.
pub(super) struct Events {
    body: Incoming,
    /// Moves the bytes of `body`; it is polled beside it.
    connection: BoxFuture<'static, ()>,
}

impl Events {
    /// # Errors
    /// When the relay does not answer, or has no room for another stream.
    pub(super) async fn open(socket: &Path) -> Result<Self> {
        let open = async {
            let stream = UnixStream::connect(socket).await?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let mut connection = connection.map(drop).boxed();
            let request = Request::get("/api/v1/events")
                .header(header::HOST, "localhost")
                .body(Empty::<Bytes>::new())?;
            let response = tokio::select! {
                response = sender.send_request(request) => response?,
                () = &mut connection => return Err(anyhow!("the relay went away")),
            };
            if !response.status().is_success() {
                return Err(anyhow!("the relay has no room for another stream of events"));
            }
            Ok(Self { body: response.into_body(), connection })
        };
        timeout(limits::HTTP_ANSWER_TIME, open).await.map_err(|_| anyhow!("no answer"))?
    }

    /// Waits for news: how many changes; `None` when the stream ended. Loses nothing when it is dropped.
    pub(super) async fn next(&mut self) -> Option<usize> {
        let frame = tokio::select! {
            biased;
            frame = self.body.frame() => frame?.ok()?,
            () = &mut self.connection => return None,
        };
        Some(frame.data_ref().map_or(0, |data| changes(data)))
    }
}

/// How many changes a piece of the stream tells of. One whose head a piece cuts in two is not counted.
fn changes(piece: &[u8]) -> usize {
    let text = String::from_utf8_lossy(piece);
    let kinds = text.lines().filter_map(|line| line.strip_prefix("event: "));
    kinds.filter(|kind| *kind != "hello").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_and_comments_are_no_changes() {
        assert_eq!(changes(b": still here\n\n"), 0);
        assert_eq!(changes(b"id: 3-42\nevent: hello\ndata: {}\n\n"), 0);
        let two = b"id: 3-43\nevent: terminal\ndata: {}\n\nid: 3-44\nevent: resync\ndata: {}\n\n";
        assert_eq!(changes(two), 2);
    }
}
