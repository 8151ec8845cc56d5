//! What operators ask and what they are shown: the status endpoint and the relay's own verbs are built on this.
//!
//! Views are computed by the core on request and are plain data; a page looks at a bounded number of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tasuki_proto::view::{TerminalFilter, TerminalView};
use tasuki_proto::{Refusal, RelayId, RelayName, ServiceName, SessionId, TerminalId};

pub use super::explain::Explanation;
use super::selftest::AddressView;

/// A question or a command. Commands come from somebody who was allowed to give them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRequest {
    /// This relay.
    Status,
    /// Every relay of the mesh.
    Relays,
    /// A page of terminals behind `after`; looks at no more than a few thousand rows, so a page may hold fewer
    /// than `limit` rows (even none) and still have a `next`.
    Terminals {
        /// Which.
        filter: TerminalFilter,
        /// Behind this one.
        after: Option<TerminalId>,
        /// At most this many.
        limit: usize,
    },
    /// One terminal.
    Terminal(TerminalId),
    /// A page of the sessions that this relay is an edge of or passes on, running and ended.
    Sessions {
        /// In this state.
        state: Option<SessionState>,
        /// Behind this one.
        after: Option<SessionId>,
        /// At most this many.
        limit: usize,
    },
    /// One session.
    Session(SessionId),
    /// Ends a session.
    EndSession(SessionId),
    /// Cuts a terminal's attachments here and elsewhere; it may come back.
    KickTerminal(TerminalId),
    /// Cuts this relay's link with another; it may come back.
    KickRelay(RelayName),
    /// Takes no new terminals; with a time, at most [`tasuki_proto::limits::DRAIN_TIME`], ends the process when none is
    /// left, and no session, or when the time is over.
    Drain(Option<Duration>),
    /// Takes terminals again, and stays.
    Undrain,
    /// May A call B, by which rule, over which route.
    Explain {
        /// The caller.
        caller: TerminalId,
        /// The target.
        target: TerminalId,
        /// What for.
        service: Option<ServiceName>,
    },
    /// What became of a session, running or ended, also one that is in the ledger only.
    ExplainSession(SessionId),
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AdminReply {
    /// To [`AdminRequest::Status`].
    Status(Box<StatusView>),
    /// To [`AdminRequest::Relays`], ordered by name.
    Relays(Vec<RelayView>),
    /// To [`AdminRequest::Terminals`], ordered by id.
    Terminals(Vec<TerminalView>, Option<TerminalId>),
    /// To [`AdminRequest::Terminal`].
    Terminal(Box<TerminalView>),
    /// To [`AdminRequest::Sessions`], ordered by id.
    Sessions(Vec<SessionView>, Option<SessionId>),
    /// To [`AdminRequest::Session`].
    Session(Box<SessionView>),
    /// To [`AdminRequest::Explain`] and [`AdminRequest::ExplainSession`].
    Explanation(Box<Explanation>),
    /// A command was carried out.
    Done,
    /// It was not.
    Refused(Refusal),
}

/// A value's median and 99th percentile.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Percentiles {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// This relay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: RelayName,
    /// The mesh's name.
    pub mesh: String,
    /// The software's version.
    pub version: String,
    /// Its incarnation.
    pub incarnation: u64,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// Whether it has the registrar role.
    pub registrar: bool,
    /// Takes no new terminals.
    pub draining: bool,
    /// Seconds until it ends at the latest, where it was told to.
    pub ends_in_s: Option<u64>,
    /// `Ok` when it takes terminals; otherwise why not (readyz).
    pub not_ready: Option<String>,
    /// Its links, ordered by name.
    pub links: Vec<LinkView>,
    /// Its advertised addresses, and whether other relays reach them.
    pub reachable_from_outside: Vec<AddressView>,
    /// Terminals attached here.
    pub terminals: usize,
    /// Sessions that run over this relay.
    pub sessions: usize,
    /// What the switch forwarded since the start.
    pub forwarded: ForwardedView,
    /// Until when this relay's certificate is valid, s since 1970.
    pub certificate_until: u64,
    /// Labels that the switch forwards: two for each accepted session.
    pub labels: usize,
    /// QUIC connections of terminals, newcomers and relays that they dialled, handshakes included.
    pub connections: usize,
    /// Handshakes under way.
    pub handshakes: usize,
    /// Handshakes that were not begun, or were given up; `drops` says why.
    pub handshakes_refused: u64,
    /// The table.
    pub table: TableView,
    /// ms from an update's wall-clock time at its origin to its arrival here, over the last updates: as good as
    /// the clocks agree.
    pub gossip_lag_ms: Percentiles,
    /// Counters of gossip: updates received, applied, stale, sent.
    pub gossip: BTreeMap<String, u64>,
    /// What was dropped or refused, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Frames of sessions that a relay forwarded since its start, heads included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ForwardedView {
    /// Packets from callers to callees.
    pub packets_to_callee: u64,
    /// Their bytes.
    pub bytes_to_callee: u64,
    /// Packets from callees to callers.
    pub packets_to_caller: u64,
    /// Their bytes.
    pub bytes_to_caller: u64,
}

/// One of this relay's links.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LinkView {
    /// The relay at the other end.
    pub relay: RelayName,
    /// Round-trip time, µs.
    pub rtt_us: u32,
    /// The address at the other end.
    pub address: String,
    /// Since when, ms since 1970.
    pub since: u64,
}

/// The size of the table and a hash over it: equal tables have equal hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct TableView {
    /// All rows.
    pub rows: usize,
    /// Relays.
    pub relays: usize,
    /// Accounts of terminals.
    pub terminals: usize,
    /// Over all rows, in any order; 16 hex digits.
    pub hash: String,
}

/// A relay of the mesh, byte for byte the same at every relay once gossip has settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelayView {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: RelayName,
    /// Where it can be dialled.
    pub addresses: Vec<String>,
    /// The version of its software; empty where it was never heard.
    pub version: String,
    /// Whether it has the registrar role.
    pub registrar: bool,
    /// A path over links that both ends confirm leads to it.
    pub reachable: bool,
    /// Takes no new terminals.
    pub draining: bool,
    /// Attached terminals.
    pub terminals: usize,
    /// Its links, ordered by name.
    pub links: Vec<RelayLinkView>,
    /// When one of its own rows last changed, ms since 1970 by its clock.
    pub updated_at: u64,
}

/// A link of some relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RelayLinkView {
    /// The other end.
    pub relay: RelayName,
    /// Round-trip time in µs, in steps.
    pub rtt_us: u32,
}

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionState {
    /// Called, not answered.
    Calling,
    /// Accepted.
    Active,
    /// Refused, or over.
    Ended,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// Its id.
    pub id: String,
    /// Who called.
    pub caller: TerminalId,
    /// Whom.
    pub callee: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// What it does.
    pub state: SessionState,
    /// ms since 1970.
    pub started_at: u64,
    /// ms since 1970.
    pub ended_at: Option<u64>,
    /// The code it ended with.
    pub reason: Option<String>,
    /// The relays on its way, from the caller's to the callee's.
    pub route: Vec<RelayName>,
    /// `relayed`, as far as this relay knows.
    pub path: String,
    /// Bytes from caller to callee through this relay.
    pub bytes_to_callee: u64,
    /// Packets from caller to callee through this relay.
    pub packets_to_callee: u64,
    /// Bytes from callee to caller through this relay.
    pub bytes_to_caller: u64,
    /// Packets from callee to caller through this relay.
    pub packets_to_caller: u64,
}

/// Which relay an id belongs to, for views that show names.
pub type NameOf<'a> = &'a dyn Fn(RelayId) -> Option<RelayName>;
