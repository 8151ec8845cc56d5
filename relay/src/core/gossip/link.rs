//! What is kept of a link: a cursor for each origin, and what waits to be said.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use tasuki_proto::RelayId;
use tasuki_proto::gossip::Head;
use tasuki_proto::record::Version;

/// How far the peer of a link is with one origin.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Everything up to this version the peer has, as it says, or is being sent.
    pub(super) at: Version,
    /// Everything up to this version the peer has, as a head proves that exists.
    pub(super) has: Version,
    /// The peer is told everything from 0, as it stood when the watermark was this; 0 where it is not.
    pub(super) retold_at: u64,
    /// The peer asked for rows; otherwise it gets heads.
    pub(super) eager: bool,
    /// In [`Link::rows`].
    pub(super) queued: bool,
    /// What was asked of the peer last, and when.
    pub(super) asked: Option<(Version, Instant)>,
    /// When the peer was last told to stop, unless it was asked since.
    pub(super) pruned: Option<Instant>,
}

impl Cursor {
    /// The peer has everything up to this version.
    pub(super) fn raise(&mut self, to: Version) {
        if to.incarnation > self.at.incarnation {
            self.retold_at = 0;
        }
        self.at = self.at.max(to);
    }
}

/// Something short to say about an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Want,
    /// Everything from 0.
    WantAll,
    Prune,
}

/// A link.
#[derive(Debug)]
pub(super) struct Link {
    /// The relay at the other end.
    pub(super) peer: RelayId,
    /// Messages with the network.
    pub(super) in_flight: usize,
    /// By origin; at most [`tasuki_proto::limits::GOSSIP_ORIGINS`].
    pub(super) cursors: BTreeMap<RelayId, Cursor>,
    /// Origins whose rows are to be sent, each once, in turn.
    pub(super) rows: VecDeque<RelayId>,
    /// Origins whose head is to be announced, and whether also where the peer is known to have as much.
    pub(super) marks: BTreeMap<RelayId, bool>,
    /// What is to be asked or told.
    pub(super) words: BTreeMap<RelayId, Word>,
    /// The latest head of each origin whose key is not known; at most [`tasuki_proto::limits::GOSSIP_HEADS_WAITING`].
    pub(super) waiting: BTreeMap<RelayId, Head>,
    /// When heads may go out again.
    pub(super) marks_from: Instant,
    /// The peer was asked for its own rows.
    pub(super) asked_for_own: bool,
}

impl Link {
    pub(super) fn new(peer: RelayId, now: Instant) -> Link {
        Link {
            peer,
            in_flight: 0,
            cursors: BTreeMap::new(),
            rows: VecDeque::new(),
            marks: BTreeMap::new(),
            words: BTreeMap::new(),
            waiting: BTreeMap::new(),
            marks_from: now,
            asked_for_own: false,
        }
    }

    pub(super) fn at(&self, origin: RelayId) -> Version {
        self.cursors.get(&origin).map_or_else(Version::default, |cursor| cursor.at)
    }

    pub(super) fn has(&self, origin: RelayId) -> Version {
        self.cursors.get(&origin).map_or_else(Version::default, |cursor| cursor.has)
    }
}
