//! Gossip: how every relay comes to hold the whole table (architecture 4; C4 to C6).
//!
//! # How it works
//!
//! The table is a set of rows. Each row has one writer, its *origin*: a relay, or the authority. An origin numbers
//! its updates 1, 2, 3, ... within an *incarnation* (one life of the origin; for the authority: the issuer's term),
//! so its rows form a log in which a later update of a key takes the earlier one away. That one order carries
//! everything:
//!
//! - **Watermark.** A relay knows of each origin a sequence up to which it has *everything* that is still current.
//!   Accepting only what is behind the watermark is the accept rule (C6): older rows and repeated ones are dropped
//!   and go no further, so no loop lives, whatever the topology.
//! - **Cursor.** Per link and origin a relay keeps how far the peer is: what it was sent, or said that it has, or
//!   sent itself (that is the split horizon). There is no queue: whenever the link can take a message, the current
//!   rows between cursor and watermark are read from the table. So a slow link costs a number, a storm on one row
//!   costs one send, a newcomer is a cursor at zero, and repair is the same as normal operation.
//! - **Absence deletes.** A deletion is a tombstone with a lifetime. When the last holder discards it, nobody can
//!   tell of it any more; so the holder remembers the highest sequence discarded, the origin's *horizon*. Who is
//!   below the horizon is told everything from 0, and drops what it holds and was not told.
//! - **Few copies** (Plumtree). Rows go only over links that asked for them (`Want`); over all others go
//!   watermarks, at most [`Config::announce_interval`] apart. A relay asks one link per origin (its *parent* for that
//!   origin: the origin itself where it is a neighbour, else whoever announced first), asks another when something
//!   announced did not come within [`Config::graft_delay`], and tells a link whose rows came second to stop
//!   (`Prune`). So the parents of one origin form a tree that follows latency and mends itself.
//! - **Batches form by themselves**: at most [`Config::sends_in_flight`] messages of a link are with the network;
//!   what changes meanwhile goes into the next.
//! - **Streams.** What is said of one origin arrives in order; between origins, and between announcements and rows,
//!   there is no order. So a link spreads its messages over several streams by origin ([`GossipMessage::stream`]), and
//!   a lost packet delays the origins of one stream instead of all that pass the link.
//! - **Forgetting.** An origin that cannot be reached for [`Config::silence`] is dropped as a whole, watermark
//!   included. For as long again only something newer than what was dropped brings it back, so that relays that
//!   drop it at different times do not hand it to each other for ever.
//! - **Restart.** An origin that hears of a life of itself that is newer than the one it lives moves above it and
//!   writes its rows again. A greater incarnation voids all rows of smaller ones.
//! - **The authority's rows** are signed; see `authority.rs` for when signatures are checked.
//!
//! # How to drive it
//!
//! [`Gossip::handle`] takes an [`Input`]; then [`Gossip::poll_output`] is drained, and [`Gossip::poll_timeout`] says
//! when to call with [`Input::Tick`]. Each [`Output::Send`] is answered with [`Input::Sent`] as soon as the network has
//! taken the message (not when the peer has it). [`Gossip::table`] shows the rows; a [`Output::Changed`] tells of each
//! change to them in order.

mod authority;
mod forget;
mod link;
mod own;
mod receive;
mod send;
pub mod table;
#[cfg(test)]
mod tests;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::record::{Record, RecordKind, Version};
use tasuki_proto::{Incarnation, MeshId, RefusalCode, RelayId};

use self::authority::Authority;
use self::link::Link;
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
    /// Any number that strangers do not know; keeps them from choosing keys that collide in the table's index.
    pub seed: u64,
    /// Messages of one link that may be with the network at once. More hides the driver's latency, fewer make larger
    /// batches.
    pub sends_in_flight: usize,
    /// The time between two messages of watermarks on one link.
    pub announce_interval: Duration,
    /// How long something announced may fail to come from the parent before another link is asked. Longer than the
    /// difference between two paths of the mesh, or copies are paid for nothing.
    pub graft_delay: Duration,
    /// How long a link that was asked may take before the next one is asked; and how often the same is said to one
    /// link. Several times the largest round-trip time.
    pub ask_again: Duration,
    /// The time between two messages with all watermarks on one link: repairs what nothing else does.
    pub refresh: Duration,
    /// How long an origin may be unreachable before it is forgotten. Tombstones should not live longer.
    pub silence: Duration,
    /// Signatures of the authority checked at once ...
    pub checks: usize,
    /// ... and the time until the next so many.
    pub check_interval: Duration,
}

impl Config {
    /// The configuration of a relay, with defaults for the rest.
    pub fn new(relay: RelayId, incarnation: Incarnation, mesh: MeshId, seed: u64) -> Config {
        Config {
            relay,
            incarnation,
            mesh,
            seed,
            sends_in_flight: 4,
            announce_interval: Duration::from_millis(50),
            graft_delay: Duration::from_millis(150),
            ask_again: Duration::from_secs(1),
            refresh: Duration::from_secs(60),
            silence: Duration::from_secs(3600),
            checks: 64,
            check_interval: Duration::from_millis(10),
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
    /// The authority's public key (Ed25519) in this term, proven by certificates.
    AuthorityKey(Incarnation, [u8; 32]),
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
    ///
    /// Rows of the authority show here before their signature is checked; read them with
    /// [`Table::authority_row`] before use.
    Changed {
        /// What was there.
        old: Option<Record>,
        /// What is there.
        new: Option<Record>,
    },
    /// The signature of this row of the authority holds, and so do all before it: persist it. In ascending order.
    Verified(Record),
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
    /// Messages of watermarks sent.
    pub watermark_messages: u64,
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
    /// Messages with rows of the authority in a term whose key is not known.
    pub unknown_terms: u64,
    /// Rows of the authority whose signature does not hold.
    pub forged: u64,
    /// Messages that broke the protocol.
    pub malformed: u64,
}

impl Counters {
    /// Each counter by its name, for the status endpoint and metrics.
    pub fn by_name(&self) -> [(&'static str, u64); 15] {
        [
            ("received", self.received),
            ("applied", self.applied),
            ("stale", self.stale),
            ("sent", self.sent),
            ("rows_messages", self.rows_messages),
            ("watermark_messages", self.watermark_messages),
            ("grafts", self.grafts),
            ("wants", self.wants),
            ("prunes", self.prunes),
            ("forgotten", self.forgotten),
            ("version_jumps", self.version_jumps),
            ("origin_limit", self.origin_limit),
            ("unknown_terms", self.unknown_terms),
            ("forged", self.forged),
            ("malformed", self.malformed),
        ]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Watermarks may go out on this link.
    Announce(LinkId),
    /// All watermarks go out on this link.
    Refresh(LinkId),
    /// Something announced has not come.
    Graft(RelayId),
    /// This origin was unreachable for long enough.
    Silence(RelayId),
    /// A forgotten origin's version need not be remembered any more.
    Grave(RelayId),
    /// Lifetimes end.
    Lifetimes,
    /// Signatures are to be checked.
    Check,
}

/// What is known about the way an origin's rows take to this relay.
#[derive(Debug, Default)]
struct Route {
    /// Rows of this origin are expected over this link.
    parent: Option<LinkId>,
    /// The origin is being told from 0 because this relay was below the horizon.
    retelling: Option<Retelling>,
}

/// Rows told again from 0; what is absent goes at the end.
#[derive(Debug)]
struct Retelling {
    link: LinkId,
    /// Told up to here.
    reached: u64,
    /// Sequences of rows that were held and not told.
    absent: Vec<u64>,
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
    lifetimes: BTreeMap<Instant, Vec<(RelayId, u64)>>,
    lifetime_count: usize,
    /// Lifetimes end in steps of a second from here.
    epoch: Instant,
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
        let mut table = Table::new(config.seed, Authority::new(config.mesh));
        table.begin_incarnation(config.relay, config.incarnation);
        Gossip {
            table,
            routes: BTreeMap::new(),
            links: BTreeMap::new(),
            stirred: BTreeSet::new(),
            timers: Timers::new(),
            lifetimes: BTreeMap::new(),
            lifetime_count: 0,
            epoch: now,
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
            Input::AuthorityKey(term, key) => {
                self.table.authority.set_key(term, key);
                self.check_authority(now);
                self.look_for_missing(RelayId::AUTHORITY, now);
            }
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

    /// The rows, for reads that check signatures at first use.
    pub fn table_mut(&mut self) -> &mut Table {
        &mut self.table
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
                Timer::Lifetimes => self.end_lifetimes(now),
                Timer::Check => self.check_authority(now),
            }
        }
    }

    /// Whether this version of an origin is newer than what this relay has.
    fn is_newer(&self, origin: RelayId, version: Version) -> bool {
        version > self.table.watermark(origin)
    }
}
