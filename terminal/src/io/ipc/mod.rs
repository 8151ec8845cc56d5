//! The daemon's unix socket, and what verbs and daemon say to each other on it.
//!
//! A verb sends one [`Request`]; the daemon answers with any number of events and one result or failure. A
//! `dial` then carries data both ways. Everything is an [`Envelope`](tasuki_proto::codec::Envelope) whose kind
//! says what the body is: JSON, or bytes. Whoever hangs up ends what the request began.

pub mod client;
pub mod server;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tasuki_proto::view::TerminalFilter;
use tasuki_proto::{Refusal, ServiceName, TerminalId};

/// The kinds of envelopes.
pub mod kind {
    /// A request, JSON.
    pub const REQUEST: u16 = 1;
    /// An event on the way, JSON.
    pub const EVENT: u16 = 2;
    /// The result, JSON; after it nothing but data comes.
    pub const RESULT: u16 = 3;
    /// The failure, JSON; nothing comes after it.
    pub const FAILURE: u16 = 4;
    /// Bytes of a stream.
    pub const DATA: u16 = 5;
    /// The end of one direction of a stream.
    pub const END: u16 = 6;
}

/// Bytes that one envelope of data holds at most.
pub const DATA_BYTES: usize = 256 * 1024;

/// The socket of the daemon with this data directory.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join("agent.sock")
}

/// What a verb asks of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The agent's state.
    Status {},
    /// The terminals of the mesh.
    List {
        /// Which.
        filter: TerminalFilter,
    },
    /// Its sessions.
    Sessions {},
    /// Their paths.
    Paths {},
    /// Ends a session.
    End {
        /// Its id.
        session: String,
    },
    /// Logs out and stays so.
    Logout {},
    /// Logs in again.
    Login {},
    /// Forwards a local port for as long as the connection stands.
    Forward {
        /// UDP instead of TCP.
        udp: bool,
        /// The local port.
        listen: SocketAddr,
        /// Whose service.
        target: TerminalId,
        /// Which.
        service: ServiceName,
    },
    /// Opens a stream to a service and carries its bytes.
    Dial {
        /// Whose service.
        target: TerminalId,
        /// Which.
        service: ServiceName,
    },
    /// Round trips.
    Ping {
        /// With whom.
        target: TerminalId,
        /// How many.
        count: u32,
    },
    /// Opens a session for [`Request::Stream`]; it stands for as long as the connection.
    Session {
        /// With whom.
        target: TerminalId,
        /// What for.
        service: ServiceName,
    },
    /// Opens a stream in that session; the verb says itself what it is for, and reads the answer.
    Stream {
        /// The session's id.
        session: String,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The code as one word.
    pub code: String,
    /// The whole line, the code first.
    pub message: String,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code.to_string(), message: refusal.to_string() }
    }
}

/// What `forward` tells on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum ForwardNews {
    /// The port is open.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// The session is there.
    Connected {},
    /// There is none.
    Waiting {
        /// Why.
        why: String,
        /// Until the next call, ms.
        retry_ms: u64,
    },
    /// A connection was refused by the other terminal.
    Refused {
        /// Why.
        why: String,
    },
    /// A limit was reached.
    Limit {
        /// Its name, and what came of it.
        why: String,
    },
}

/// One answered or lost ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PingNews {
    /// Which, from 1.
    pub sequence: u32,
    /// Its round trip in µs; `None` when it got lost.
    pub rtt_us: Option<u64>,
    /// The path of the session then: `relayed` or `direct`.
    pub path: String,
}

/// The result of `ping`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PingResult {
    /// With whom.
    pub target: TerminalId,
    /// Tries.
    pub sent: u32,
    /// Answers.
    pub received: u32,
    /// Round trips.
    pub rtt_us: RoundTrips,
    /// `relayed` or `direct`.
    pub path: String,
}

/// Round trips in µs; 0 where none came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RoundTrips {
    /// The shortest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl RoundTrips {
    /// Of these, by the nearest rank.
    pub fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let rank = |percent: usize| {
            let at = (all.len() * percent).div_ceil(100).saturating_sub(1);
            all.get(at).copied().unwrap_or(0)
        };
        Self { min: rank(0), p50: rank(50), p99: rank(99), max: rank(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_round_trips() {
        assert_eq!(RoundTrips::of(vec![]), RoundTrips::default());
        assert_eq!(
            RoundTrips::of((1..=200).rev().collect()),
            RoundTrips { min: 1, p50: 100, p99: 198, max: 200 }
        );
        assert_eq!(RoundTrips::of(vec![7]), RoundTrips { min: 7, p50: 7, p99: 7, max: 7 });
    }
}
