//! What the calls of a terminal take in and put out.

use std::net::SocketAddr;

use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::{Label, Refusal, RefusalCode, RelayName, ServiceName, SessionId, TerminalId};

/// A local user's wish for a session, by a number that the driver never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What happens to the calls of a terminal.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The time of [`super::Calls::poll_timeout`] has come.
    Timeout,
    /// A local user wants a session, or the driver carries out [`Output::Redial`]. All but the request, the
    /// target and the service is fresh: it stood in no earlier call.
    Call {
        /// Comes back with the answer.
        request: RequestId,
        /// The call's session; its edge is the relay that the terminal is attached to.
        session: SessionId,
        /// Whom.
        target: TerminalId,
        /// What for.
        service: ServiceName,
        /// At random; `None` loses against any (D3).
        tie_break: Option<u64>,
        /// Frames to this terminal will carry it.
        label: Label,
    },
    /// The local user of this request needs no session, or no longer the one it was given.
    Done(RequestId),
    /// A call arrives.
    Incoming {
        /// The call.
        call: control::Incoming,
        /// What the access rules say to its caller and service.
        verdict: Result<(), Refusal>,
        /// Fresh; frames to this terminal will carry it where the call is accepted.
        label: Label,
    },
    /// The relay says that a call of this terminal was accepted.
    Accepted(control::Accepted),
    /// The relay says that a call of this terminal was refused.
    CallRefused(control::CallRefused),
    /// The relay says that a session ended.
    Ended(control::End),
    /// The way of a call, or of a session that is not proven yet, was lost: it is called again.
    Unreached(SessionId),
    /// The end-to-end handshake proved the peer.
    Proven(SessionId),
    /// The end-to-end handshake failed, or the end-to-end connection died or was closed.
    Failed {
        /// Which session.
        session: SessionId,
        /// Why.
        code: RefusalCode,
    },
    /// The peer said, end to end, whether it has users of its own in a session of ours (see [`Output::Use`]).
    PeerUse {
        /// Which session.
        session: SessionId,
        /// Whether it has.
        using: bool,
    },
    /// Somebody here ends a session for all its users (C10).
    End {
        /// Which session.
        session: SessionId,
        /// Why.
        code: RefusalCode,
    },
    /// The attachment is gone, by loss or log-out (C11): every session ends with this code.
    Detached(RefusalCode),
}

/// What the driver has to do. Every label that came in with an input goes out again exactly once: in
/// [`Output::Free`], or in the [`Output::Close`] of the session whose [`Output::Open`] carried it.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Say this to the relay.
    Send(ToRelay),
    /// Install the relayed path of a session. Its caller begins the end-to-end handshake as QUIC client, its
    /// callee expects it.
    Open(Opened),
    /// Remove the path of an opened session, close its connection with the code, tell its holders.
    Close {
        /// Which session.
        session: SessionId,
        /// The label that frames to this terminal carried.
        label_in: Label,
        /// Why.
        code: RefusalCode,
    },
    /// A label that went into no path is not needed.
    Free(Label),
    /// Answer the local user: the session, proven, or the refusal.
    Answer {
        /// Which request.
        request: RequestId,
        /// The session. Several requests may be given the same one.
        result: Result<SessionId, Refusal>,
    },
    /// The call that the request waited for is gone for a reason that was not its own: call again, at once, with
    /// [`Input::Call`] for the same request.
    Redial {
        /// Which request.
        request: RequestId,
        /// Whom.
        target: TerminalId,
        /// What for.
        service: ServiceName,
    },
    /// A proven session that the other side uses: give it to the services.
    Offer(SessionId),
    /// Tell the peer, end to end and reliably, whether this terminal has users of its own in the session.
    Use {
        /// Which session.
        session: SessionId,
        /// Whether it has.
        using: bool,
    },
}

/// The path of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Which session.
    pub session: SessionId,
    /// Who has to prove itself in the handshake.
    pub peer: TerminalId,
    /// Whether this terminal called.
    pub outgoing: bool,
    /// Frames to this terminal carry it.
    pub label_in: Label,
    /// Frames from this terminal carry it.
    pub label_out: Label,
    /// What the call named.
    pub service: ServiceName,
    /// From the caller's relay to the callee's.
    pub route: Vec<RelayName>,
    /// The peer's address as its relay sees it (D2).
    pub peer_address: Option<SocketAddr>,
}

/// What a session does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// This terminal called and was not answered.
    Calling,
    /// Accepted; the end-to-end handshake is under way.
    Proving,
    /// The peer is proven.
    Live,
}

/// A session as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo<'a> {
    /// Its id.
    pub session: SessionId,
    /// The other terminal.
    pub peer: &'a TerminalId,
    /// What the call named.
    pub service: &'a ServiceName,
    /// Whether this terminal called.
    pub outgoing: bool,
    /// What it does.
    pub state: SessionState,
}
