//! What goes into and comes out of a relay's sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tasuki_proto::control::{self, CallRefused, End, PathEnd, PathReport, ToTerminal};
use tasuki_proto::mesh::{RoutedCall, RoutedResume, ToPeer};
use tasuki_proto::{
    Generation, Label, Refusal, RefusalCode, RelayId, RelayName, SessionId, TerminalId,
};

use super::Asker;
use crate::core::admin::SessionView;
use crate::core::{ConnId, LinkId};

/// One relayed path of a session, as this relay holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId {
    /// The session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
}

/// Who is next to this relay on a session's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Neighbour {
    /// Another relay.
    Link(LinkId),
    /// An attached terminal.
    Terminal(ConnId),
}

/// Packets and bytes of one session in one direction; the switch counts, the core reads.
#[derive(Debug, Default)]
pub struct Counter {
    /// Frames forwarded.
    pub packets: AtomicU64,
    /// Their bytes, heads included.
    pub bytes: AtomicU64,
    /// When its token bucket will be full again, ns of the switch's clock.
    pub due_ns: AtomicU64,
}

/// Both directions of a session through this relay.
#[derive(Debug, Default)]
pub struct Counters {
    /// From caller to callee.
    pub to_callee: Counter,
    /// From callee to caller.
    pub to_caller: Counter,
}

/// What the switch does with frames that carry a label.
#[derive(Debug, Clone)]
pub struct Forwarding {
    /// The label of arriving frames.
    pub label: Label,
    /// The only neighbour they may come from.
    pub from: Neighbour,
    /// Where they go.
    pub to: Neighbour,
    /// The label they leave with.
    pub label_out: Label,
    /// Where they are counted.
    pub counters: Arc<Counters>,
    /// Whether they go from caller to callee.
    pub to_callee: bool,
}

/// Where a call goes from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The whole route, from the caller's relay to the target's.
    pub route: Vec<RelayId>,
    /// Its relays' names, in the same order.
    pub names: Vec<RelayName>,
    /// The neighbour that comes next: a link, or the target's own connection.
    pub next: Neighbour,
}

/// What happens to calls and sessions.
#[derive(Debug)]
pub enum Input {
    /// A terminal attached here calls. `place` was looked up in the table (C7).
    Call {
        /// Its connection.
        from: ConnId,
        /// Its proven id.
        caller: TerminalId,
        /// Its address as seen here.
        address: SocketAddr,
        /// What it said.
        call: control::Call,
        /// Where the target is.
        place: Result<Place, Refusal>,
    },
    /// A call arrives over a link, and was checked against its route.
    Routed {
        /// The link.
        from: LinkId,
        /// What arrived.
        call: RoutedCall,
        /// The next neighbour.
        next: Result<Neighbour, Refusal>,
    },
    /// The caller of a session, attached here, asks for one more path. `place` was looked up in the table.
    Resume {
        /// Its connection.
        from: ConnId,
        /// Its proven id.
        caller: TerminalId,
        /// What it said.
        resume: control::Resume,
        /// Where the callee is.
        place: Result<Place, Refusal>,
    },
    /// A path arrives over a link, and was checked against its route.
    RoutedResume {
        /// The link.
        from: LinkId,
        /// What arrived.
        resume: RoutedResume,
        /// The next neighbour.
        next: Result<Neighbour, Refusal>,
    },
    /// The next neighbour accepts a call, or takes a path.
    Accept {
        /// Who says so.
        from: Neighbour,
        /// Which path of which session.
        hop: HopId,
        /// Frames towards the callee carry it on the next hop.
        label: Label,
        /// The callee's address as its relay sees it.
        address: Option<SocketAddr>,
    },
    /// The next neighbour refuses.
    Refuse {
        /// Who says so.
        from: Neighbour,
        /// What it said.
        refused: CallRefused,
    },
    /// A neighbour ends a session or withdraws a call.
    End {
        /// Who says so.
        from: Neighbour,
        /// What it said.
        end: End,
    },
    /// A neighbour refuses a path, lost it, or gives it up.
    EndPath {
        /// Who says so.
        from: Neighbour,
        /// What it said.
        end: PathEnd,
    },
    /// A terminal attached here says how a session's data goes.
    PathReport {
        /// Its connection.
        from: ConnId,
        /// What it said.
        report: PathReport,
    },
    /// A neighbour is gone, and every path over it. Where the code says that it is gone for good, the sessions end.
    Lost(Neighbour, RefusalCode),
    /// A neighbour is reached over another connection; its sessions go on.
    Moved {
        /// The connection that was.
        from: Neighbour,
        /// The one that is.
        to: Neighbour,
    },
    /// The next neighbour had no room for an offer: [`Output::OfferTerminal`], [`Output::OfferPeer`].
    NoRoom(HopId),
    /// An operator ends a session.
    EndByOperator(SessionId),
}

/// What is to be done. In this order: a label is installed before anybody hears of it.
#[derive(Debug)]
pub enum Output {
    /// Say it to a terminal.
    ToTerminal(ConnId, ToTerminal),
    /// Say it to a relay.
    ToPeer(LinkId, ToPeer),
    /// Say it to a terminal if it has room for what this one wants of it; else answered by [`Input::NoRoom`].
    OfferTerminal(ConnId, (HopId, Asker), ToTerminal),
    /// As [`Output::OfferTerminal`], to a relay.
    OfferPeer(LinkId, HopId, ToPeer),
    /// Program the switch.
    Install(Forwarding),
    /// Program the switch.
    Remove(Label),
    /// A terminal attached here is in this many sessions (C4, C8).
    Communicating(ConnId, u32),
    /// A session or call is over. `edge` is set where this relay is the caller's or the callee's.
    Finished(Box<Finished>),
}

/// A session that is over, for the ledger.
#[derive(Debug, Clone)]
pub struct Finished {
    /// What it was.
    pub view: SessionView,
    /// Its id.
    pub session: SessionId,
    /// How it ended.
    pub code: RefusalCode,
    /// Whether one of its terminals is attached here.
    pub edge: bool,
}
