//! The verbs' end of the socket: plain blocking calls, since a verb does one thing.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{Failure, Request, kind, socket_path};

/// Bytes of an answer; a list of a large mesh is the largest.
const ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon was found.
    #[error("agent-not-running: no daemon answers on {}: start 'tasuki-agent run'", .0.display())]
    NotRunning(PathBuf),
    /// A daemon's socket was found and may not be used.
    #[error(
        "permission-denied: {} is not open to this user: join the group 'tasuki', or use sudo",
        .0.display()
    )]
    Denied(PathBuf),
    /// The daemon went away, or is of another version.
    #[error("agent-lost: {}: see its log, and whether 'tasuki-agent run' still runs, in the same version", why(.0))]
    Lost(io::Error),
    /// Where a stream's bytes go took no more.
    #[error("output-failed: {0}: what standard output leads to takes no more")]
    Output(io::Error),
    /// The daemon refused or failed.
    #[error("{}", .0.message)]
    Failed(Failure),
}

/// What the error says about the daemon.
fn why(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            "the agent ended or hung up before its answer".to_owned()
        }
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
            "the agent does not run any more".to_owned()
        }
        ErrorKind::InvalidData => "its answer is not understood".to_owned(),
        _ => error.to_string(),
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        ClientError::Lost(error)
    }
}

/// What comes from the daemon.
#[derive(Debug)]
pub enum Reply {
    /// On the way.
    Event(serde_json::Value),
    /// The result.
    Result(serde_json::Value),
    /// Bytes of a stream.
    Data(Vec<u8>),
    /// The end of the stream's direction.
    End,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the first of these data directories with a daemon.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] or [`ClientError::Denied`].
    pub fn connect(candidates: &[PathBuf]) -> Result<Self, ClientError> {
        let mut denied = None;
        for data in candidates {
            let path = socket_path(data);
            match UnixStream::connect(&path) {
                Ok(stream) => return Ok(Self { stream, path }),
                Err(error) if error.kind() == ErrorKind::PermissionDenied => denied = Some(path),
                Err(_) => {}
            }
        }
        let first = candidates.first().map(|data| socket_path(data)).unwrap_or_default();
        Err(denied.map_or(ClientError::NotRunning(first), ClientError::Denied))
    }

    /// Another connection to the same daemon.
    ///
    /// # Errors
    /// When it is gone.
    pub fn again(&self) -> Result<Self, ClientError> {
        Ok(Self { stream: UnixStream::connect(&self.path)?, path: self.path.clone() })
    }

    /// Where the daemon is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends the request.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn send(&mut self, request: &Request) -> Result<(), ClientError> {
        let json = serde_json::to_vec(request).map_err(io::Error::from)?;
        Ok(write_envelope(&mut self.stream, kind::REQUEST, &json)?)
    }

    /// Waits for the daemon's next word.
    ///
    /// # Errors
    /// [`ClientError::Failed`] when it is a failure; [`ClientError::Lost`] when the daemon is gone.
    pub fn hear(&mut self) -> Result<Reply, ClientError> {
        let (kind, body) = read_envelope(&mut self.stream)?;
        let json = |body: &[u8]| serde_json::from_slice(body).map_err(io::Error::from);
        Ok(match kind {
            kind::EVENT => Reply::Event(json(&body)?),
            kind::RESULT => Reply::Result(json(&body)?),
            kind::DATA => Reply::Data(body),
            kind::END => Reply::End,
            kind::FAILURE => {
                let failure = serde_json::from_slice(&body).map_err(io::Error::from)?;
                return Err(ClientError::Failed(failure));
            }
            _ => return Err(io::Error::from(ErrorKind::InvalidData).into()),
        })
    }

    /// Sends the request and waits for its result; `on_event` sees what comes before.
    ///
    /// # Errors
    /// As [`Client::hear`].
    pub fn ask<E: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut on_event: impl FnMut(E),
    ) -> Result<serde_json::Value, ClientError> {
        self.send(request)?;
        loop {
            match self.hear()? {
                Reply::Event(event) => {
                    on_event(serde_json::from_value(event).map_err(io::Error::from)?);
                }
                Reply::Result(result) => return Ok(result),
                Reply::Data(_) | Reply::End => {
                    return Err(io::Error::from(ErrorKind::InvalidData).into());
                }
            }
        }
    }

    /// Sends the request and waits for its result.
    ///
    /// # Errors
    /// As [`Client::hear`].
    pub fn get(&mut self, request: &Request) -> Result<serde_json::Value, ClientError> {
        self.ask::<serde_json::Value>(request, |_| {})
    }

    /// The writing end for a stream's bytes.
    ///
    /// # Errors
    /// When the system has no more files.
    pub fn data_writer(&self) -> Result<DataWriter, ClientError> {
        Ok(DataWriter { stream: self.stream.try_clone()?, buffer: Vec::new() })
    }
}

/// Sends a stream's bytes.
#[derive(Debug)]
pub struct DataWriter {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl DataWriter {
    /// Sends what `source` gives until its end, then ends the direction.
    ///
    /// # Errors
    /// The source's, or when the daemon is gone.
    pub fn copy_from(&mut self, source: &mut impl Read) -> io::Result<()> {
        const HEAD: usize = 6;
        self.buffer.resize(HEAD + super::DATA_BYTES, 0);
        loop {
            let count = match source.read(&mut self.buffer[HEAD..]) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if count == 0 {
                return self.end();
            }
            self.buffer[..HEAD].copy_from_slice(&head(kind::DATA, count));
            self.stream.write_all(&self.buffer[..HEAD + count])?;
        }
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        bytes
            .chunks(super::DATA_BYTES)
            .try_for_each(|chunk| write_envelope(&mut self.stream, kind::DATA, chunk))
    }

    /// Ends the direction.
    ///
    /// # Errors
    /// When the daemon is gone.
    pub fn end(&mut self) -> io::Result<()> {
        write_envelope(&mut self.stream, kind::END, &[])
    }
}

fn head(kind: u16, length: usize) -> [u8; 6] {
    let (kind, length) = (kind.to_be_bytes(), (length as u32).to_be_bytes());
    [kind[0], kind[1], length[0], length[1], length[2], length[3]]
}

fn write_envelope(stream: &mut UnixStream, kind: u16, body: &[u8]) -> io::Result<()> {
    let mut whole = Vec::with_capacity(6 + body.len());
    whole.extend_from_slice(&head(kind, body.len()));
    whole.extend_from_slice(body);
    stream.write_all(&whole)
}

fn read_envelope(stream: &mut UnixStream) -> io::Result<(u16, Vec<u8>)> {
    let mut head = [0; 6];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize;
    if length > ANSWER_BYTES {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((u16::from_be_bytes([head[0], head[1]]), body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_agent_is_told_in_words_that_people_know() {
        for kind in [ErrorKind::UnexpectedEof, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset] {
            let line = ClientError::Lost(kind.into()).to_string();
            assert!(line.starts_with("agent-lost: the agent ended or hung up"), "{line}");
        }
        let gone = ClientError::Lost(ErrorKind::ConnectionRefused.into()).to_string();
        assert!(gone.contains("does not run any more"), "{gone}");
    }
}
