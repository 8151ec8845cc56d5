//! What the relay's tasks tell its driver: one inbox, of one enum.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tasuki_proto::control::{ToRelay, ToTerminal};
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::identity::{KeyFingerprint, Peer, PublicKey};
use tasuki_proto::mesh::{LinkHello, ToPeer};
use tasuki_proto::record::Record;
use tasuki_proto::{Label, RefusalCode, RelayId, RelayName, SessionId, TerminalId, limits};
use tokio::sync::mpsc;

use super::http::AdminCall;
use crate::config::{Limits, Links};
use crate::core::admin::SessionView;
use crate::core::sessions::Asker;
use crate::core::shares::Shares;
use crate::core::{ConnId, LinkId};

/// What goes to a terminal's connection task.
#[derive(Debug)]
pub enum TerminalOrder {
    /// Say it. Boxed, since a queue keeps places for 32 orders, for each of 20,000 terminals (P7).
    Say(Box<ToTerminal>),
    /// As [`TerminalOrder::Say`]: what somebody wants of it.
    Offer(Box<(Asker, ToTerminal)>),
    /// Let what was said go out, then close with the code.
    Close(RefusalCode),
}

/// What waits for one terminal; its task counts down.
#[derive(Debug, Default)]
pub struct Waiting {
    answers: usize,
    offers: Shares<Asker>,
}

impl Waiting {
    /// An order is to wait; whether there is room.
    pub fn enter(&mut self, order: &TerminalOrder) -> bool {
        match order {
            TerminalOrder::Say(message) if !is_owed(message) => {
                self.answers += 1;
                self.answers <= limits::TERMINAL_QUEUE
            }
            TerminalOrder::Say(_) | TerminalOrder::Close(_) => true,
            TerminalOrder::Offer(offer) => {
                self.offers.try_take(&offer.0, limits::TERMINAL_OFFERS, offer.0.times())
            }
        }
    }

    /// An order that waited is carried out.
    pub fn leave(&mut self, order: &TerminalOrder) {
        match order {
            TerminalOrder::Say(message) if !is_owed(message) => self.answers -= 1,
            TerminalOrder::Say(_) | TerminalOrder::Close(_) => {}
            TerminalOrder::Offer(offer) => self.offers.give(&offer.0),
        }
    }
}

/// Whether a message says what became of a call, session or path that stood: there are no more of those than the terminal
/// has, and others decide how many come at once, so they do not count against it.
fn is_owed(message: &ToTerminal) -> bool {
    use ToTerminal::{Accepted, Ended, PathEnded, Resumed};
    matches!(message, Ended(_) | PathEnded(_) | Accepted(_) | Resumed(_))
}

/// A terminal whose identity is proven.
#[derive(Debug)]
pub struct TerminalUp {
    /// Its connection's number.
    pub conn: ConnId,
    /// Its id.
    pub terminal: TerminalId,
    /// What its certificate says.
    pub peer: Peer,
    /// The connection.
    pub connection: quinn::Connection,
    /// Its task's orders.
    pub orders: mpsc::Sender<TerminalOrder>,
    /// What waits of them.
    pub waiting: Arc<Mutex<Waiting>>,
}

/// A relay whose identity is proven, with both streams open and Hello exchanged.
#[derive(Debug)]
pub struct LinkUp {
    /// The link's number.
    pub link: LinkId,
    /// Its name.
    pub name: RelayName,
    /// What it said first.
    pub hello: LinkHello,
    /// Whether this relay dialled.
    pub dialled_here: bool,
    /// The handle that our challenges carry.
    pub handle: tasuki_proto::Label,
    /// The key it proved.
    pub key: KeyFingerprint,
    /// The issuer that certified it: its term and key.
    pub authority: Option<(tasuki_proto::Incarnation, [u8; 32])>,
    /// The connection.
    pub connection: quinn::Connection,
    /// Messages of the call stream.
    pub calls: mpsc::Sender<ToPeer>,
    /// Messages of the gossip stream.
    pub gossip: mpsc::Sender<GossipMessage>,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A terminal connected.
    TerminalUp(Box<TerminalUp>),
    /// It said something.
    Terminal(ConnId, ToRelay),
    /// It is gone.
    TerminalDown(ConnId),
    /// The neighbour with this handle proved to be at another address.
    Moved(tasuki_proto::Label, SocketAddr),
    /// A link stands.
    LinkUp(Box<LinkUp>),
    /// Dialling this relay came to nothing.
    DialFailed(RelayId),
    /// The peer said something on the call stream.
    Peer(LinkId, ToPeer),
    /// The peer said something on the gossip stream.
    Gossip(LinkId, GossipMessage),
    /// A gossip message was handed to the network.
    GossipSent(LinkId),
    /// A link's round-trip time, µs.
    LinkRtt(LinkId, u32),
    /// A link is gone, with the code that the peer closed it with.
    LinkDown(LinkId, Option<RefusalCode>),
    /// The registrar signed something, or the store restored it.
    Authority(Record),
    /// This relay's certificate was renewed: the term of its issuer, and the issuer's key.
    Renewed(tasuki_proto::Incarnation, PublicKey),
    /// An expected knock came in.
    Knocked(Label),
    /// A knock for a neighbour was sent, or could not be.
    KnockSent(LinkId, Label, bool),
    /// The settings were read again: which relays to link with, and the limits.
    Settings(Box<(Links, Limits)>),
    /// An operator asks.
    Admin(AdminCall),
    /// What the ledger has of a session: the operator's question, the session, whether it is to be explained, and what
    /// was found.
    FromLedger(u64, SessionId, bool, Option<Box<SessionView>>),
}
