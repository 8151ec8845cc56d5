//! What a relay decides: pure, without clock, socket, task, lock or randomness of its own.
//!
//! Every core has one shape: `handle(input, now)`, `poll_output()`, `poll_timeout()`. [`Relay`] owns the others and
//! turns the output of one into the input of another; they never call each other. The whole flow:
//!
//! ```text
//! links ---- which connections stay ----> gossip, routes (our LINKS row), sessions (lost links)
//! gossip --- rows that changed ---------> directory, routes (LINKS and LOAD rows), store (authority's rows)
//! routes --- relays within reach -------> directory, gossip
//! directory  newer log-in, revoked key -> login;  relays known -> links, terminals
//! login ---- row, gone ------------------> gossip, sessions
//! sessions - labels, messages -----------> switch, links, terminals;  in communication -> login
//! all ------ which rows changed ---------> changes, history (for operators; nothing comes back)
//! ```

pub mod admin;
pub mod admission;
mod answers;
pub mod bucket;
mod changes;
pub mod directory;
mod drain;
pub mod explain;
pub mod gossip;
mod history;
pub mod links;
pub mod lists;
pub mod login;
mod news;
pub mod requests;
pub mod room;
pub mod routes;
pub mod selftest;
pub mod sessions;
pub mod shares;
mod twins;
mod wiring;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tasuki_proto::control::{RelayContact, ToRelay, ToTerminal};
use tasuki_proto::gossip::{GossipMessage, Head};
use tasuki_proto::identity::{KeyFingerprint, PublicKey, Signer};
use tasuki_proto::mesh::{ToPeer, Tried};
use tasuki_proto::record::Record;
use tasuki_proto::{
    Incarnation, Label, MeshId, MeshName, RefusalCode, RelayId, RelayName, SessionId, TerminalId,
};

use admin::{AdminReply, AdminRequest, SessionView};
use directory::Directory;
use gossip::Gossip;
use links::Links;
use lists::Lists;
use login::Login;
use routes::Routes;
use selftest::SelfTest;
use sessions::{Asker, Finished, Forwarding, HopId, Sessions};

/// A link, by a number that the driver never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A terminal's connection, by a number that the driver never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// What a relay is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name.
    pub name: RelayName,
    /// Its mesh.
    pub mesh: MeshName,
    /// Its mesh's id.
    pub mesh_id: MeshId,
    /// Where it can be dialled: `HOST:PORT`, UDP.
    pub addresses: Vec<String>,
    /// Whether its certificate carries the registrar role.
    pub registrar: bool,
    /// Which life of it this is; persisted, greater than all before.
    pub incarnation: Incarnation,
    /// The authority's key for records, and the term that it belongs to.
    pub authority: (Incarnation, PublicKey),
    /// Signs what this relay says of itself; the key is that of its certificate.
    pub signer: Signer,
    /// Which relays it links with.
    pub links: links::LinkChoice,
    /// Attached terminals; further ones are refused with `overloaded`.
    pub terminals: usize,
    /// Sessions over this relay; further ones are refused with `busy`.
    pub sessions: usize,
    /// For labels and jitter: must not be guessable.
    pub seed: [u8; 32],
    /// ms since 1970 at the start, for people.
    pub started_ms: u64,
}

/// What happens to a relay.
#[derive(Debug)]
pub enum Input {
    /// Time passes: [`Relay::poll_timeout`] said when.
    Timeout,
    /// The relays known from an earlier life, until the table tells more.
    Contacts(Vec<RelayContact>),
    /// A terminal proved its identity.
    TerminalUp {
        /// Its connection.
        conn: ConnId,
        /// Who it is.
        terminal: TerminalId,
        /// With which key.
        key: KeyFingerprint,
        /// From where, canonical.
        address: SocketAddr,
        /// The handle of challenges to it.
        handle: Label,
    },
    /// It said something.
    Terminal(ConnId, ToRelay),
    /// It is gone.
    TerminalDown(ConnId),
    /// It proved to be at another address, canonical.
    TerminalMoved(ConnId, SocketAddr),
    /// A relay proved its identity and said Hello.
    LinkUp {
        /// The link.
        link: LinkId,
        /// The relay's name.
        name: RelayName,
        /// The key it proved.
        key: KeyFingerprint,
        /// Whether this relay dialled.
        dialled_here: bool,
        /// Which life of the relay.
        incarnation: Incarnation,
        /// Which process of it.
        instance: u64,
        /// The address at the other end, canonical.
        address: SocketAddr,
    },
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
    /// The authority signed something here, or the store restored it.
    Authority(Record),
    /// The head under which the store kept the authority's records, after all of them.
    AuthorityHead(Head),
    /// The key of an issuer that the root certified: its term's records can be checked.
    AuthorityKey(Incarnation, PublicKey),
    /// This relay is the registrar, with the issuer's key of this term.
    Issuer(Incarnation, Signer),
    /// An operator asks; the answer carries the number.
    Admin(u64, AdminRequest),
    /// An expected knock came in.
    Knocked(Label),
    /// A knock for a neighbour was sent, or could not be.
    KnockSent(LinkId, Label, bool),
    /// An operator changed settings. What is above a limit already stays.
    Settings {
        /// Which relays to link with.
        links: links::LinkChoice,
        /// Attached terminals at most.
        terminals: usize,
        /// Sessions at most.
        sessions: usize,
    },
    /// What the ledger has of a session; answers [`Output::AskLedger`].
    FromLedger {
        /// The operator's question.
        ticket: u64,
        /// Which session.
        session: SessionId,
        /// Whether it is to be explained.
        explain: bool,
        /// What was found.
        found: Option<SessionView>,
    },
    /// What was offered did not fit: [`Output::OfferTerminal`], [`Output::OfferPeer`].
    NoRoom(HopId),
    /// The process is to end, within this time; answered by [`Output::End`].
    Stop(Duration),
}

/// What is to be done. In this order: a label is installed before anybody hears of it.
#[derive(Debug)]
pub enum Output {
    /// Say it to a terminal.
    ToTerminal(ConnId, ToTerminal),
    /// Cut a terminal's connection after what was said has gone out.
    CloseTerminal(ConnId, RefusalCode),
    /// Say it to a relay on the call stream.
    ToPeer(LinkId, ToPeer),
    /// Offer a call or path to a terminal, of whose places for offers ([`tasuki_proto::limits::TERMINAL_OFFERS`]) whoever asks
    /// has a share left; else answered by [`Input::NoRoom`].
    OfferTerminal(ConnId, (HopId, Asker), ToTerminal),
    /// As [`Output::OfferTerminal`], to a relay ([`tasuki_proto::limits::LINK_OFFERS`]).
    OfferPeer(LinkId, HopId, ToPeer),
    /// Say it to a relay on the gossip stream; answered by [`Input::GossipSent`].
    Gossip(LinkId, GossipMessage),
    /// Cut a link.
    CloseLink(LinkId, RefusalCode),
    /// Dial a relay; answered by [`Input::LinkUp`] or [`Input::DialFailed`].
    Dial {
        /// Whom.
        relay: RelayId,
        /// Its name.
        name: RelayName,
        /// Where: `HOST:PORT`, to be tried in this order.
        addresses: Vec<String>,
    },
    /// Program the switch.
    Install(Forwarding),
    /// Program the switch.
    Remove(Label),
    /// Keep a row of the authority (invariant 8).
    Persist(Record),
    /// Keep the head that proves all rows of the authority before it.
    PersistHead(Head),
    /// There are records of an issuer whose key is not known here: a renewed certificate shows it.
    UnknownTerm(Incarnation),
    /// This relay's incarnation moved; keep it, and say it in Hello.
    Incarnation(Incarnation),
    /// Who the registrar is, and the link over which requests to it leave; `None`: it cannot be reached, or is here.
    Registrar(Option<RelayName>, Option<LinkId>),
    /// The relays of the mesh, for the next start.
    Contacts(Vec<RelayContact>),
    /// A key is revoked: nobody who shows it is let in.
    Revoked(KeyFingerprint),
    /// A session is over, for the ledger.
    Finished(Box<Finished>),
    /// Tell when a knock with this label comes in ([`Input::Knocked`]).
    ExpectKnock(Label),
    /// It is not expected any more.
    ForgetKnock(Label),
    /// Send a knock for a neighbour from a socket of its own; answered by [`Input::KnockSent`].
    Knock {
        /// The neighbour.
        link: LinkId,
        /// Where to: `HOST:PORT`, one of its own addresses.
        address: String,
        /// What the knock carries.
        label: Label,
        /// Whether to loopback addresses only; otherwise never to one.
        loopback: bool,
    },
    /// An operator asks about a session that this relay has forgotten; answered by [`Input::FromLedger`].
    AskLedger {
        /// The operator's question.
        ticket: u64,
        /// Which session.
        session: SessionId,
        /// Whether it is to be explained.
        explain: bool,
    },
    /// An operator's answer.
    Reply(u64, Box<AdminReply>),
    /// The process may end: what was to leave has left, or its time is over.
    End,
}

/// A link that counts.
#[derive(Debug)]
struct Peer {
    relay: RelayId,
    name: RelayName,
    key: KeyFingerprint,
    incarnation: Incarnation,
    address: SocketAddr,
    since_ms: u64,
    rtt_us: u32,
}

/// One relay.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    own: RelayId,
    gossip: Gossip,
    directory: Directory,
    links: Links,
    routes: Routes,
    login: Login,
    sessions: Sessions,
    lists: Lists,
    selftest: SelfTest,
    peers: BTreeMap<LinkId, Peer>,
    link_by_relay: BTreeMap<RelayId, LinkId>,
    /// Sessions of links that were closed as duplicates wait here for the link that stays.
    orphan_by_relay: BTreeMap<RelayId, wiring::Orphan>,
    contacts_changed: bool,
    /// Terminals were not told of the last change.
    contacts_untold: bool,
    contacts_rate: bucket::Bucket,
    /// When a change that waits is told.
    contacts_due: Option<Instant>,
    /// The relays of the mesh, as terminals were told last.
    contacts: Vec<RelayContact>,
    /// The registrar and the link towards it, as the driver was told last.
    registrar: (Option<RelayName>, Option<LinkId>),
    load: wiring::Load,
    /// When the process ends at the latest, where it was told to.
    ends_at: Option<Instant>,
    /// The process was told to end, and will.
    stopping: bool,
    lag_ms: VecDeque<u32>,
    changes: changes::Changes,
    history: history::History,
    twins: twins::Twins,
    outputs: VecDeque<Output>,
}

impl Relay {
    /// This relay's id.
    pub fn id(&self) -> RelayId {
        self.own
    }

    /// Takes what happened. `wall_ms` is for people: ms since 1970.
    pub fn handle(&mut self, input: Input, now: Instant, wall_ms: u64) {
        match input {
            Input::Timeout => self.handle_timeout(now, wall_ms),
            Input::Contacts(contacts) => self.learn_contacts(&contacts, now),
            Input::TerminalUp { conn, terminal, key, address, handle } => {
                let up = login::Input::Connected { conn, terminal, key, address, handle };
                self.login.handle(up, now, wall_ms);
            }
            Input::Terminal(conn, message) => self.handle_terminal(conn, message, now, wall_ms),
            Input::TerminalDown(conn) => {
                self.lists.handle_gone(conn);
                self.login.handle(login::Input::Closed(conn), now, wall_ms);
            }
            Input::TerminalMoved(conn, address) => {
                self.login.handle(login::Input::Moved(conn, address), now, wall_ms);
            }
            Input::LinkUp { link, name, key, dialled_here, incarnation, instance, address } => {
                let peer = self.id_of(&name);
                let seen = Peer {
                    relay: peer,
                    name: name.clone(),
                    key,
                    incarnation,
                    address,
                    since_ms: wall_ms,
                    rtt_us: 0,
                };
                self.peers.insert(link, seen);
                let up = links::Input::Up { link, peer, name, dialled_here, incarnation, instance };
                self.links.handle(up, now);
            }
            Input::DialFailed(relay) => {
                self.links.handle(links::Input::DialFailed(relay), now);
            }
            Input::Peer(link, message) => self.handle_peer(link, message, now, wall_ms),
            Input::Gossip(link, message) => {
                if self.peers.contains_key(&link) {
                    self.gossip.handle(gossip::Input::Message(link, message), now);
                }
            }
            Input::GossipSent(link) => self.gossip.handle(gossip::Input::Sent(link), now),
            Input::LinkRtt(link, us) => {
                if let Some(peer) = self.peers.get_mut(&link) {
                    peer.rtt_us = us;
                }
                self.links.handle(links::Input::Rtt(link, us), now);
            }
            Input::LinkDown(link, code) => {
                self.links.handle(links::Input::Down(link, code), now);
                if code == Some(RefusalCode::DuplicateLink) {
                    self.orphan_link(link, now);
                }
                self.lose_link(link, now, wall_ms);
            }
            Input::Authority(record) => {
                self.gossip.handle(gossip::Input::Authority(record), now);
            }
            Input::AuthorityHead(head) => {
                self.gossip.handle(gossip::Input::AuthorityHead(head), now);
            }
            Input::AuthorityKey(term, key) => {
                self.gossip.handle(gossip::Input::AuthorityKey(term, key), now);
            }
            Input::Issuer(term, signer) => {
                self.gossip.handle(gossip::Input::Issuer(term, signer), now);
            }
            Input::Admin(ticket, request) => self.handle_admin(ticket, request, now, wall_ms),
            Input::Knocked(label) => self.selftest.handle_knock(label, now, wall_ms),
            Input::KnockSent(link, label, sent) => {
                let tried = ToPeer::Tried(Tried { label, sent });
                self.outputs.push_back(Output::ToPeer(link, tried));
            }
            Input::Settings { links, terminals, sessions } => {
                self.login.set_most(terminals);
                self.sessions.set_most(sessions);
                self.links.handle(links::Input::Choose(links), now);
            }
            Input::FromLedger { ticket, session, explain, found } => {
                self.answer_session(ticket, session, explain, found);
            }
            Input::NoRoom(hop) => {
                self.sessions.handle(sessions::Input::NoRoom(hop), now, wall_ms);
            }
            Input::Stop(within) => self.stop(within, now),
        }
        self.settle(now, wall_ms);
        self.end_when_left(now);
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] wants to be given.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [
            self.lists.poll_timeout(),
            self.gossip.poll_timeout(),
            self.links.poll_timeout(),
            self.login.poll_timeout(),
            self.sessions.poll_timeout(),
            self.load.poll_timeout(),
            self.selftest.poll_timeout(),
            self.ends_at,
            self.contacts_due,
            self.orphan_by_relay.values().map(|orphan| orphan.until).min(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The id of the relay called `name` in this mesh.
    pub fn id_of(&self, name: &RelayName) -> RelayId {
        RelayId::of(&self.config.mesh_id, name)
    }
}
