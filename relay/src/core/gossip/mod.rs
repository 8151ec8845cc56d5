//! Gossip: how every relay comes to hold the whole table (architecture 4; C4 to C6).
//!
//! # How it works
//!
//! The table is a set of rows. Each row has one writer, its *origin*: a relay, or the authority. An origin numbers
//! its updates 1, 2, 3, ... within an *incarnation* (one life of the origin; for the authority: the issuer's term),
//! so its rows form a log in which a later update of a key takes the earlier one away. That one order carries
//! everything:
//!
//! - **Head.** An origin signs a digest of all its current rows, whenever it tells of new ones ([`Head`]). A relay takes
//!   rows only if they lead from what it holds to a head: then nobody on the way changed a row, added one or left one out.
//!   So every relay holds of each origin exactly the rows of one of its heads, its *watermark*. What is not newer is
//!   dropped and goes no further (C6), so no loop lives, whatever the topology.
//! - **Cursor.** Per link and origin a relay keeps how far the peer is: what it was sent, or said that it has, or
//!   sent itself (that is the split horizon). There is no queue: whenever the link can take a message, the current
//!   rows between cursor and watermark are read from the table. So a slow link costs a number, a storm on one row
//!   costs one send, a newcomer is a cursor at zero, and repair is the same as normal operation.
//! - **Absence deletes.** A deletion is a tombstone with a lifetime. The origin discards it when that ends, and the
//!   *horizon* in its next head says up to where. A relay that is below the horizon is told everything from 0, and drops
//!   what it holds and was not told; the head proves that this was all.
//! - **Stages.** Rows that fill several messages wait until the last one proves them (`stage.rs`). They are no more than
//!   the head says, and other links are asked when the one that tells them takes too long.
//! - **Who is to blame.** Rows from 0 that do not fit their head cost the link that brought them. Rows behind a watermark
//!   may also fail to fit since the origin signed two different heads for one version; so they are asked for from 0 first.
//! - **Few copies** (Plumtree). Rows go only over links that asked for them (`Want`); over all others go
//!   heads, at most [`Config::announce_interval`] apart. A relay asks one link per origin (its *parent* for that
//!   origin: the origin itself where it is a neighbour, else whoever announced first), asks another when something
//!   announced did not come within [`Config::graft_delay`], and tells a link whose rows came second to stop
//!   (`Prune`). So the parents of one origin form a tree that follows latency and mends itself.
//! - **Batches form by themselves**: at most [`Config::sends_in_flight`] messages of a link are with the network, and an
//!   origin signs heads at least [`Config::head_interval`] apart; what changes meanwhile goes into the next.
//! - **Streams.** What is said of one origin arrives in order; between origins, and between announcements and rows,
//!   there is no order. So a link spreads its messages over several streams by origin ([`GossipMessage::stream`]), and
//!   a lost packet delays the origins of one stream instead of all that pass the link.
//! - **Forgetting.** An origin that cannot be reached for [`Config::silence`] is dropped as a whole, watermark
//!   included. For as long again only something newer than what was dropped brings it back, so that relays that
//!   drop it at different times do not hand it to each other forever. An origin is dropped at once when its key is
//!   revoked or replaced ([`Input::RelayKey`]).
//! - **Restart.** An origin that hears of a head of its own that is newer than its life moves above it and
//!   writes its rows again. A greater incarnation voids all rows of smaller ones.
//! - **Keys.** The authority's key of a term is proven by certificates, a relay's stands in its account, which is a row
//!   of the authority. A head whose key is not known waits for it.
//!
//! # How to drive it
//!
//! [`Gossip::handle`] takes an [`Input`]; then [`Gossip::poll_output`] is drained, and [`Gossip::poll_timeout`] says
//! when to call with [`Input::Tick`]. Each [`Output::Send`] is answered with [`Input::Sent`] as soon as the network has
//! taken the message (not when the peer has it). [`Gossip::table`] shows the rows; a [`Output::Changed`] tells of each
//! change to them in order.

mod forget;
mod keys;
mod link;
mod own;
mod receive;
mod send;
mod stage;
mod sum;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tasuki_proto::gossip::{GossipMessage, Head};
use tasuki_proto::identity::{PublicKey, Signer};
use tasuki_proto::record::{Record, RecordKind, Version};
use tasuki_proto::{Incarnation, MeshId, RefusalCode, RelayId};

use self::keys::Keys;
use self::link::Link;
use self::own::Signed;
use self::stage::{Proven, Stage};
use self::table::Table;
use self::timers::Timers;
use crate::core::LinkId;

/// How gossip behaves. [`Config::new`] gives values that suit a mesh of up to some hundred relays.
#[derive(Debug, Clone)]
pub struct Config {
    /// This relay.
    pub relay: RelayId,
    /// Its incarnation: greater than that of every earlier life that is remembered.
    pub incarnation: Incarnation,
    /// The mesh, for the authority's signatures.
    pub mesh: MeshId,
    /// The key of the table's index, which nobody else knows: so nobody can choose rows that collide.
    pub seed: [u64; 2],
    /// Signs this relay's heads; the key stands in its account.
    pub signer: Signer,
    /// Checks a head's signature: [`Head::is_signed_by`]. A simulator of many relays checks each head once.
    pub check: fn(&Head, &MeshId, &PublicKey) -> bool,
    /// The least time between two heads of one origin that are signed here, unless somebody asks for rows.
    pub head_interval: Duration,
    /// Messages of one link that may be with the network at once. More hides the driver's latency, fewer make larger
    /// batches.
    pub sends_in_flight: usize,
    /// The time between two messages of heads on one link.
    pub announce_interval: Duration,
    /// How long something announced may fail to come from the parent before another link is asked. Longer than the
    /// difference between two paths of the mesh, or copies are paid for nothing.
    pub graft_delay: Duration,
    /// How long a link that was asked may take before the next one is asked; and how often the same is said to one
    /// link. Several times the largest round-trip time.
    pub ask_again: Duration,
    /// The time between two tellings of all heads on one link: repairs what nothing else does.
    pub refresh: Duration,
    /// How long an origin may be unreachable before it is forgotten. Tombstones should not live longer.
    pub silence: Duration,
}

impl Config {
    /// The configuration of a relay, with defaults for the rest.
    pub fn new(
        relay: RelayId,
        incarnation: Incarnation,
        mesh: MeshId,
        signer: Signer,
        seed: [u64; 2],
    ) -> Config {
        Config {
            relay,
            incarnation,
            mesh,
            seed,
            signer,
            check: Head::is_signed_by,
            head_interval: Duration::from_millis(25),
            sends_in_flight: 4,
            announce_interval: Duration::from_millis(50),
            graft_delay: Duration::from_millis(150),
            ask_again: Duration::from_secs(1),
            refresh: Duration::from_secs(60),
            silence: Duration::from_secs(3600),
        }
    }
}

/// A change to one of this relay's own rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What it is about.
    pub kind: RecordKind,
    /// Which one of its kind; at most 255 bytes.
    pub key: Bytes,
    /// Sections ([`tasuki_proto::rows::payload`]), at most [`tasuki_proto::limits::RECORD_PAYLOAD_BYTES`]; `None`
    /// leaves a tombstone, which should have a lifetime.
    pub payload: Option<Bytes>,
    /// Seconds until holders forget it; 0: never.
    pub lifetime_secs: u32,
    /// ms since 1970, for people.
    pub wall_ms: u64,
    /// 0: the whole mesh.
    pub scope: u32,
}

/// What happens to gossip.
#[derive(Debug, Clone)]
pub enum Input {
    /// A link to this relay stands; its gossip streams are open.
    LinkUp(LinkId, RelayId),
    /// A link is gone.
    LinkDown(LinkId),
    /// A message came.
    Message(LinkId, GossipMessage),
    /// The network took the earliest message of this link that was not reported yet.
    Sent(LinkId),
    /// This relay writes one of its rows. A write that changes nothing and has no lifetime is left out.
    Write(Write),
    /// A record of the authority, made by the registrar on this relay or persisted here earlier; trusted. In
    /// ascending order of version.
    Authority(Record),
    /// The head that was persisted beside the authority's records ([`Output::AuthorityHead`]), after all of them.
    AuthorityHead(Head),
    /// The authority's public key in this term, proven by certificates.
    AuthorityKey(Incarnation, PublicKey),
    /// This relay is the registrar, and has the authority's key of this term. After all persisted records.
    Issuer(Incarnation, Signer),
    /// The key in the account of a relay; `None` without an account, or once the key is revoked.
    RelayKey(RelayId, Option<PublicKey>),
    /// The relays that can be reached. Until the first, all count as reachable.
    Reachable(BTreeSet<RelayId>),
    /// The time of [`Gossip::poll_timeout`] has come.
    Tick,
}

/// What gossip wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this over the stream of that link that [`GossipMessage::stream`] names, then report [`Input::Sent`].
    Send(LinkId, GossipMessage),
    /// A row came (`old` is `None`), was replaced, or went (`new` is `None`). Tombstones come and go like rows.
    Changed {
        /// What was there.
        old: Option<Record>,
        /// What is there.
        new: Option<Record>,
    },
    /// A proven row of the authority: persist it.
    Verified(Record),
    /// The head that proves all rows of the authority that were given out before it: persist it after them.
    AuthorityHead(Head),
    /// A link has records of the authority of this term, whose key is not known here. Said every 10 s at most.
    UnknownTerm(Incarnation),
    /// Persist this incarnation before sending anything further: a newer life of this relay was heard of.
    OwnIncarnation(Incarnation),
    /// The peer broke the protocol: end the link.
    Cut(LinkId, RefusalCode),
}

/// How often something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Rows in messages that came.
    pub received: u64,
    /// Rows that were newer than what was held.
    pub applied: u64,
    /// Rows that were not, and went no further (C6).
    pub stale: u64,
    /// Rows in messages sent.
    pub sent: u64,
    /// Messages of rows sent.
    pub rows_messages: u64,
    /// Messages of heads sent.
    pub head_messages: u64,
    /// Requests for rows because an announcement was not followed by them.
    pub grafts: u64,
    /// All requests for rows.
    pub wants: u64,
    /// Links told to send watermarks only.
    pub prunes: u64,
    /// Rows of origins that were forgotten as a whole.
    pub forgotten: u64,
    /// Versions that jump too far ([`tasuki_proto::limits::VERSION_JUMP`]).
    pub version_jumps: u64,
    /// Messages about an origin beyond [`tasuki_proto::limits::GOSSIP_ORIGINS`].
    pub origin_limit: u64,
    /// Heads that stand for more rows or bytes than their origin may have.
    pub over_budget: u64,
    /// Heads of origins whose key is not known.
    pub unknown_keys: u64,
    /// Heads whose signature does not hold; the link is cut.
    pub forged: u64,
    /// Rows that do not fit the head they came with.
    pub unproven: u64,
    /// Heads that an origin signed beside another one for the same version.
    pub equivocations: u64,
    /// Messages that broke the protocol.
    pub malformed: u64,
}

impl Counters {
    /// Each counter by its name, for the status endpoint and metrics.
    pub fn by_name(&self) -> [(&'static str, u64); 18] {
        [
            ("received", self.received),
            ("applied", self.applied),
            ("stale", self.stale),
            ("sent", self.sent),
            ("rows_messages", self.rows_messages),
            ("head_messages", self.head_messages),
            ("grafts", self.grafts),
            ("wants", self.wants),
            ("prunes", self.prunes),
            ("forgotten", self.forgotten),
            ("version_jumps", self.version_jumps),
            ("origin_limit", self.origin_limit),
            ("over_budget", self.over_budget),
            ("unknown_keys", self.unknown_keys),
            ("forged", self.forged),
            ("unproven", self.unproven),
            ("equivocations", self.equivocations),
            ("malformed", self.malformed),
        ]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Heads may go out on this link.
    Announce(LinkId),
    /// All heads go out on this link.
    Refresh(LinkId),
    /// Something announced has not come.
    Graft(RelayId),
    /// This origin was unreachable for long enough.
    Silence(RelayId),
    /// A forgotten origin's version need not be remembered any more.
    Grave(RelayId),
    /// The next proven rows of this origin have their turn.
    Apply(RelayId),
    /// A head of this origin may be signed again.
    Publish(RelayId),
    /// This relay may move above an earlier life again.
    Move,
}

/// What is known about the way an origin's rows take to this relay.
#[derive(Debug)]
struct Route {
    /// Rows of this origin are expected over this link.
    parent: Option<LinkId>,
    /// The newest head whose signature was checked.
    newest: Option<Head>,
    /// What a link is telling.
    stage: Option<Stage>,
    /// How long it may take.
    patience: Duration,
    /// What has its turn to go into the table.
    proven: Option<Proven>,
    /// This link told more meanwhile.
    missed: Option<LinkId>,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            parent: None,
            newest: None,
            stage: None,
            patience: receive::PATIENCE,
            proven: None,
            missed: None,
        }
    }
}

/// The gossip core; see the module's documentation.
#[derive(Debug)]
pub struct Gossip {
    config: Config,
    table: Table,
    routes: BTreeMap<RelayId, Route>,
    links: BTreeMap<LinkId, Link>,
    /// Links that may have something to send.
    stirred: BTreeSet<LinkId>,
    timers: Timers<Timer>,
    keys: Keys,
    /// Origins whose heads are signed here.
    signed: BTreeMap<RelayId, Signed>,
    /// When the lives of own rows end, by sequence.
    own_ends: BTreeMap<u64, Instant>,
    /// The newest head of this relay itself that a peer had.
    heard_self: Version,
    /// When this relay last moved above it.
    moved_at: Option<Instant>,
    reachable: Option<BTreeSet<RelayId>>,
    /// Forgotten origins: nothing up to this version brings them back.
    graves: BTreeMap<RelayId, Version>,
    /// When an unknown term of the authority was told last.
    term_told: Option<Instant>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Gossip {
    /// A relay's gossip, with an empty table.
    pub fn new(config: Config, now: Instant) -> Gossip {
        let mut table = Table::new(config.seed);
        table.begin_incarnation(config.relay, config.incarnation);
        table.sign_here(config.relay);
        let mut keys = Keys::default();
        keys.set_relay(config.relay, Some(config.signer.public()));
        let own = Signed::new(config.signer.clone(), now);
        Gossip {
            table,
            routes: BTreeMap::new(),
            links: BTreeMap::new(),
            stirred: BTreeSet::new(),
            timers: Timers::new(),
            keys,
            signed: BTreeMap::from([(config.relay, own)]),
            own_ends: BTreeMap::new(),
            heard_self: Version::default(),
            moved_at: None,
            reachable: None,
            graves: BTreeMap::new(),
            term_told: None,
            outputs: VecDeque::new(),
            counters: Counters::default(),
            config,
        }
    }

    /// Takes an input.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.run_timers(now);
        match input {
            Input::LinkUp(link, peer) => self.link_up(link, peer, now),
            Input::LinkDown(link) => self.link_down(link, now),
            Input::Message(link, message) => self.handle_message(link, message, now),
            Input::Sent(link) => {
                if let Some(state) = self.links.get_mut(&link) {
                    state.in_flight = state.in_flight.saturating_sub(1);
                    self.stirred.insert(link);
                }
            }
            Input::Write(write) => self.write(&write, now),
            Input::Authority(record) => self.take_authority(&record, now),
            Input::AuthorityHead(head) => self.take_authority_head(head),
            Input::AuthorityKey(term, key) => {
                self.keys.set_term(term, key);
                self.recall(RelayId::AUTHORITY, now);
            }
            Input::Issuer(term, signer) => self.set_issuer(term, signer, now),
            Input::RelayKey(relay, key) => self.set_relay_key(relay, key, now),
            Input::Reachable(relays) => self.set_reachable(relays, now),
            Input::Tick => {}
        }
        self.pump(now);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Gossip::handle`] with [`Input::Tick`], where nothing else comes before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The rows.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// This relay.
    pub fn id(&self) -> RelayId {
        self.config.relay
    }

    /// The incarnation that this relay lives in.
    pub fn incarnation(&self) -> Incarnation {
        self.table.watermark(self.config.relay).incarnation
    }

    /// What happened how often.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Announce(link) => {
                    self.stirred.insert(link);
                }
                Timer::Refresh(link) => self.refresh(link, now),
                Timer::Graft(origin) => self.graft(origin, now),
                Timer::Silence(origin) => self.forget(origin, now),
                Timer::Grave(origin) => {
                    self.graves.remove(&origin);
                }
                Timer::Apply(origin) => self.apply(origin, now),
                Timer::Publish(origin) => self.publish(origin, now),
                Timer::Move => self.move_above(now),
            }
        }
    }
}
