//! What the links of a relay take in and put out.

use std::collections::BTreeSet;
use std::time::Instant;

use tasuki_proto::rows::LinksRow;
use tasuki_proto::{Incarnation, RefusalCode, RelayId, RelayName};

use crate::core::LinkId;

/// Whom to link with (`--links`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChoice {
    /// With what is known.
    Auto,
    /// With these, dialled and accepted; they need not exist yet.
    Names(BTreeSet<RelayName>),
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The time of [`super::Links::poll_timeout`] has come; also gives the first row.
    Timeout,
    /// A relay is known, or its addresses changed.
    Known {
        /// Its id.
        relay: RelayId,
        /// Its name.
        name: RelayName,
        /// Where it can be dialled: `HOST:PORT`, UDP.
        addresses: Vec<String>,
    },
    /// A relay is no part of the mesh: its link ends with this code.
    Gone(RelayId, RefusalCode),
    /// A dial failed. Each [`Output::Dial`] leads to this or to [`Input::Up`] with the same peer.
    DialFailed(RelayId),
    /// Both sides of a connection said their [`tasuki_proto::mesh::LinkHello`]; the peer is proven.
    Up {
        /// The connection.
        link: LinkId,
        /// The other end.
        peer: RelayId,
        /// Its name.
        name: RelayName,
        /// Whether this relay dialled.
        dialled_here: bool,
        /// What the peer said.
        incarnation: Incarnation,
        /// Which process of the peer it is.
        instance: u64,
    },
    /// A connection is over, with the code that the peer closed it with, where it did.
    Down(LinkId, Option<RefusalCode>),
    /// A measured round trip, µs.
    Rtt(LinkId, u32),
    /// Whether a path over confirmed links leads to a relay.
    Reachable(RelayId, bool),
    /// An operator changes whom to link with; links that are not wanted any more are closed.
    Choose(LinkChoice),
    /// An operator cuts the link with a relay; it may come back.
    Kick(RelayName),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Connect to a relay at any of its addresses.
    Dial {
        /// Whom to expect there.
        peer: RelayId,
        /// Its name.
        name: RelayName,
        /// Where.
        addresses: Vec<String>,
    },
    /// Close a connection. Nothing is expected of it afterwards.
    Close(LinkId, RefusalCode),
    /// Use this connection for gossip and calls with the peer; it takes the place of an earlier one.
    Accepted(LinkId, RelayId),
    /// Two processes have the identity of a neighbour: the link of one of them stays, the other is refused.
    Twins {
        /// Stays.
        kept: LinkId,
        /// Is closed with `superseded`.
        refused: LinkId,
    },
    /// A neighbour says that it is linked with another process that has this relay's identity. It is left alone for a
    /// while.
    GivenWay(RelayName),
    /// Write this row ([`tasuki_proto::record::RecordKind::LINKS`]).
    Announce(LinksRow),
}

/// A link as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo<'a> {
    /// The connection.
    pub link: LinkId,
    /// The other end.
    pub peer: RelayId,
    /// Its name.
    pub name: &'a RelayName,
    /// Smoothed round-trip time, µs; 0 before the first measurement.
    pub rtt_us: u32,
    /// Since when it stands.
    pub since: Instant,
}
