//! The relay's status endpoint, as a client.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::netns::Namespace;

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer larger than this is a mistake.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A relay's status endpoint, in a namespace or on this machine's loopback.
#[derive(Debug, Clone)]
pub struct StatusApi {
    /// Where it listens.
    pub address: SocketAddr,
    /// In which namespace.
    pub namespace: Option<Namespace>,
}

impl StatusApi {
    /// Asks for `path`.
    ///
    /// # Errors
    /// When nobody answers, or what comes is not HTTP.
    pub fn get(&self, path: &str) -> io::Result<Response> {
        self.request("GET", path, None)
    }

    /// Posts to `path`, with `token` as the bearer token.
    ///
    /// # Errors
    /// As [`StatusApi::get`].
    pub fn post(&self, path: &str, token: Option<&str>) -> io::Result<Response> {
        self.request("POST", path, token)
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> io::Result<Response> {
        let address = self.address;
        let mut stream = match &self.namespace {
            None => TcpStream::connect_timeout(&address, TIMEOUT)?,
            Some(namespace) => namespace.enter(|| TcpStream::connect_timeout(&address, TIMEOUT))?,
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let bearer = token.map_or(String::new(), |t| format!("Authorization: Bearer {t}\r\n"));
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: 0\r\n{bearer}\r\n"
        )?;
        let mut bytes = Vec::new();
        stream.take(MAX_BYTES).read_to_end(&mut bytes)?;
        parse(&bytes).ok_or_else(|| io::Error::other("not HTTP"))
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// When there is none, in words.
    pub fn json(&self, path: &str) -> Result<Value, String> {
        let response = self.get(path).map_err(|e| format!("{path}: {e}"))?;
        if response.status != 200 {
            let text = String::from_utf8_lossy(&response.body).into_owned();
            return Err(format!("{path}: {} {text}", response.status));
        }
        serde_json::from_slice(&response.body).map_err(|e| format!("{path}: {e}"))
    }

    /// All items of the list at `path`, page after page.
    ///
    /// # Errors
    /// As [`StatusApi::json`].
    pub fn items(&self, path: &str) -> Result<Vec<Value>, String> {
        let joint = if path.contains('?') { '&' } else { '?' };
        let mut items = Vec::new();
        let mut after = None::<String>;
        loop {
            let cursor = after.map_or(String::new(), |a| format!("&after={a}"));
            let mut page = self.json(&format!("{path}{joint}limit=1000{cursor}"))?;
            let list = page["items"].as_array_mut().ok_or_else(|| format!("{path}: no items"))?;
            items.append(list);
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => return Ok(items),
            }
        }
    }

    /// The sum of all samples of a metric; `None` when it is not offered.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let response = self.get("/metrics").ok()?;
        let text = String::from_utf8(response.body).ok()?;
        let samples: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        if samples.is_empty() { None } else { Some(samples.iter().sum()) }
    }
}

fn parse(bytes: &[u8]) -> Option<Response> {
    let split = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..split]).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let body = &bytes[split + 4..];
    let chunked = head.lines().any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("transfer-encoding:") && line.contains("chunked")
    });
    Some(Response { status, body: if chunked { unchunk(body)? } else { body.to_vec() } })
}

fn unchunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    loop {
        let end = body.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&body[..end]).ok()?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        body = body.get(end + 2..)?;
        if size == 0 {
            return Some(out);
        }
        out.extend_from_slice(body.get(..size)?);
        body = body.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_and_in_chunks() {
        let whole = parse(b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno").unwrap();
        assert_eq!((whole.status, whole.body.as_slice()), (503, &b"no"[..]));
        let chunks =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunks).unwrap().body, b"abcd");
        assert!(parse(b"HTTP/1.1 200").is_none());
    }
}
