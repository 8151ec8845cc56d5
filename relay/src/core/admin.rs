//! What operators ask and what they are shown: the status endpoint and the relay's own verbs are built on this.
//!
//! Views are computed by the core on request and are plain data; a page looks at a bounded number of rows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tasuki_proto::identity::RenewalTrouble;
use tasuki_proto::path::{NatKind, PathNews};
use tasuki_proto::view::{TerminalFilter, TerminalState, TerminalView};
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
    /// Counts over a part of the terminals, behind `after`.
    Summary {
        /// Behind this one.
        after: Option<TerminalId>,
    },
    /// What became of a terminal.
    TerminalHistory(TerminalId),
    /// What became of a relay.
    RelayHistory(RelayName),
    /// What changed after this number; without one, only the number of the latest change.
    Changes(Option<u64>),
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
    /// To [`AdminRequest::Summary`]; the next part begins behind this terminal.
    Summary(Box<Summary>, Option<TerminalId>),
    /// To [`AdminRequest::TerminalHistory`] and [`AdminRequest::RelayHistory`], newest first.
    History(Vec<HistoryView>),
    /// To [`AdminRequest::RelayHistory`]: this mesh has no such relay.
    UnknownRelay(RelayName),
    /// To [`AdminRequest::Changes`].
    Changes(Box<Changed>),
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
    /// Relays of which two processes were seen lately, this one among them; ordered by name.
    pub twins: Vec<TwinView>,
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
    /// Why the certificate is not renewed, when that is due and fails.
    pub renewal: Option<RenewalTrouble>,
    /// Renewals that failed since the start.
    pub renewal_failures: u64,
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
    /// What callers attached here said of direct paths. A caller with two attachments tells both relays.
    pub direct: Vec<DirectView>,
}

/// Two processes with the identity of one relay: a copy of its data directory runs somewhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TwinView {
    /// The relay.
    pub relay: RelayName,
    /// What was seen.
    pub what: String,
    /// When it was seen last, ms since 1970.
    pub seen_at: u64,
}

/// How often a direct path came, went, or was not to be had between two kinds of NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirectView {
    /// In front of the caller.
    pub nat: NatKind,
    /// In front of the callee.
    pub peer_nat: NatKind,
    /// What became of it.
    pub news: PathNews,
    /// How often.
    pub count: u64,
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
    /// `direct` or `relayed`, as a terminal attached here says; `relayed` at relays between.
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

/// Counts over the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// Terminals by state.
    pub terminals: TerminalCounts,
    /// Terminals by type.
    pub types: BTreeMap<String, u64>,
    /// Relays.
    pub relays: RelayCounts,
}

/// Terminals by state. Those that wait for the check of their account's signature are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TerminalCounts {
    /// All.
    pub total: u64,
    /// Without an attachment.
    pub logged_out: u64,
    /// Attached, no session.
    pub logged_in: u64,
    /// Attached, with a session.
    pub in_communication: u64,
    /// Attached to relays that cannot be reached.
    pub unreachable: u64,
}

impl TerminalCounts {
    /// Counts one.
    pub fn add(&mut self, state: TerminalState) {
        self.total += 1;
        *match state {
            TerminalState::LoggedOut => &mut self.logged_out,
            TerminalState::LoggedIn => &mut self.logged_in,
            TerminalState::InCommunication => &mut self.in_communication,
            TerminalState::Unreachable => &mut self.unreachable,
        } += 1;
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            total: self.total + other.total,
            logged_out: self.logged_out + other.logged_out,
            logged_in: self.logged_in + other.logged_in,
            in_communication: self.in_communication + other.in_communication,
            unreachable: self.unreachable + other.unreachable,
        }
    }
}

/// Relays by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct RelayCounts {
    /// All that ever joined.
    pub total: u64,
    /// A path over confirmed links leads to them.
    pub reachable: u64,
    /// Take no new terminals.
    pub draining: u64,
}

/// An event in the history of a terminal or relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryView {
    /// When, ms since 1970 by the clock of the relay that told of it.
    pub at: u64,
    /// What happened, in one word.
    pub what: String,
    /// Where, as what; for people.
    pub detail: String,
}

/// What changed, each row once and as it is.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Changed {
    /// Which life of this relay the numbers belong to.
    pub incarnation: u64,
    /// All changes up to this number were looked at.
    pub upto: u64,
    /// Something between the number asked for and `upto` is not known.
    pub missed: bool,
    /// Further changes wait.
    pub more: bool,
    /// The rows, each with the number of its latest change, ascending.
    pub rows: Vec<(u64, ChangedRow)>,
}

/// A row that changed.
#[derive(Debug, Clone, PartialEq)]
pub enum ChangedRow {
    /// A terminal.
    Terminal(Box<TerminalView>),
    /// A relay.
    Relay(Box<RelayView>),
    /// A session.
    Session(Box<SessionView>),
    /// There is no such row any longer.
    Gone(RowKind, String),
}

/// Which list a row stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RowKind {
    /// Terminals.
    Terminal,
    /// Relays.
    Relay,
    /// Sessions.
    Session,
}

/// Which relay an id belongs to, for views that show names.
pub type NameOf<'a> = &'a dyn Fn(RelayId) -> Option<RelayName>;
