//! Relay and relay: what travels on a link apart from [`crate::gossip`].
//!
//! The dialling relay opens one bidirectional stream for each [`LinkStream`] and begins it with that byte. On
//! the call stream both sides first say [`LinkHello`]. Further streams ([`LinkStream::Request`]) carry one
//! request to the registrar and its answer each (see [`crate::enrolment`]).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::control::{CallRefused, End, PathEnd};
use crate::id::{
    Generation, Incarnation, Label, RelayId, RelayName, ServiceName, SessionId, TerminalId,
};

/// What a stream of a link is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkStream {
    /// [`ToPeer`] messages.
    Calls = 1,
    /// [`crate::gossip`] messages; a link has [`crate::limits::GOSSIP_STREAMS`] of them.
    Gossip = 2,
    /// One request to the registrar; the second byte says how many more links it may cross.
    Request = 3,
}

impl LinkStream {
    /// The stream with this first byte.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Calls),
            2 => Some(Self::Gossip),
            3 => Some(Self::Request),
            _ => None,
        }
    }
}

/// The first message of both sides on a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkHello {
    /// The newest protocol that this side speaks ([`crate::version::PROTOCOL`]).
    pub protocol: u16,
    /// Its software's version, for people.
    pub software: String,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Which process it is: chosen at random when it started.
    pub instance: u64,
    /// The handle that its challenges will carry (see [`crate::frame::challenge`]).
    pub handle: Label,
    /// Where it can be dialled: `HOST:PORT`, UDP.
    pub addresses: Vec<String>,
}

/// A call on its way along its route (C8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedCall {
    /// Which session.
    pub session: SessionId,
    /// The relays on the way, from the caller's to the target's: at most
    /// [`crate::limits::ROUTE_RELAYS`], none of them twice.
    pub route: Vec<RelayId>,
    /// Their names, in the same order, for people.
    pub names: Vec<RelayName>,
    /// Who calls; the caller's relay vouches for it.
    pub caller: TerminalId,
    /// Whom.
    pub target: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// See [`crate::control::Call::tie_break`].
    pub tie_break: Option<u64>,
    /// Frames towards the caller, to the relay that sends this message, carry it.
    pub label: Label,
    /// The caller's address as its relay sees it (D2).
    pub caller_address: Option<SocketAddr>,
}

/// An accepted call on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedAccept {
    /// Which session.
    pub session: SessionId,
    /// Frames towards the target, to the relay that sends this message, carry it.
    pub label: Label,
    /// The target's address as its relay sees it (D2).
    pub callee_address: Option<SocketAddr>,
}

/// One more path of a session on its way along its route (see [`crate::control::Resume`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedResume {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// As [`RoutedCall::route`], but for its beginning: a path may begin at another relay than the call.
    pub route: Vec<RelayId>,
    /// Their names, in the same order, for people.
    pub names: Vec<RelayName>,
    /// Who asks; the caller's relay vouches for it.
    pub caller: TerminalId,
    /// The callee.
    pub target: TerminalId,
    /// What the call named.
    pub service: ServiceName,
    /// Frames towards the caller, to the relay that sends this message, carry it.
    pub label: Label,
}

/// A path that its callee took, on its way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutedResumed {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// Frames towards the callee, to the relay that sends this message, carry it.
    pub label: Label,
}

/// "Send a knock ([`crate::frame::FrameKind::Knock`]) with this label to this address of mine, from a socket that has
/// nothing to do with this link." Done only where the address stands in the asking relay's own row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TryAddress {
    /// `HOST:PORT`, UDP, as the asking relay advertises it.
    pub address: String,
    /// What the knock carries: random, so that its arrival proves who sent it.
    pub label: Label,
}

/// What came of a [`TryAddress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tried {
    /// The label that was asked for.
    pub label: Label,
    /// The knock was sent. Otherwise it could not be, or will not be: the address proves neither good nor bad.
    pub sent: bool,
}

/// "Another process with your identity wanted a link, from this address, and was refused." For people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// Where it is, as the sender sees it.
    pub address: SocketAddr,
}

crate::messages! {
    /// What a relay says to a neighbour on the call stream.
    pub enum ToPeer {
        /// The first message.
        1 => Hello(LinkHello),
        /// A call.
        2 => Call(RoutedCall),
        /// Its acceptance.
        3 => Accept(RoutedAccept),
        /// Its refusal.
        4 => Refuse(CallRefused),
        /// The end of a session, or of a call before it is answered.
        5 => End(End),
        /// One more path of a session.
        6 => Resume(RoutedResume),
        /// The callee took it.
        7 => Resumed(RoutedResumed),
        /// A path is refused, was lost, or is given up.
        8 => EndPath(PathEnd),
        /// "Is this address of mine reached?" (docs/adr/0029-knocks.md)
        9 => TryAddress(TryAddress),
        /// Whether a knock was sent.
        10 => Tried(Tried),
        /// Two processes have the receiver's identity.
        11 => Twin(Twin),
    }
}
