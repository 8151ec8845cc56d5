//! The rows of the connection-info table, held once for everybody (C4).
//!
//! Gossip writes it, [`crate::core::directory`] reads it. A row is kept verbatim in memory of the
//! table's own (`arena`). Two indexes lead to it: by the hash of its key, over all kinds and origins (so that one probe
//! finds a terminal's account and all its attachments), and per origin by sequence. The first is keyed with a secret, so
//! that nobody can choose keys that collide.
//!
//! Invariants: one row for each (origin, kind, key); one incarnation for each origin; the index by sequence holds
//! exactly the rows; the rows of an origin with a head, apart from those of this relay's own that are not signed yet, are
//! what that head stands for.

mod arena;
mod index;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use tasuki_proto::gossip::Head;
use tasuki_proto::record::{Record, RecordKind, RecordRef, Version};
use tasuki_proto::{Incarnation, RelayId};

use self::arena::{Address, Arena};
use self::index::Index;
use super::sum::Sum;

/// Rows of one key that are fetched side by side: an account and the attachments of most terminals.
const TOGETHER: usize = 8;

/// One origin's rows, and how far they are known.
#[derive(Debug)]
pub struct OriginRows {
    incarnation: Incarnation,
    /// This relay signs the origin's heads, so rows count before they are signed.
    signed_here: bool,
    /// The sequence of the last row that this relay wrote or loaded.
    written: u64,
    /// The highest sequence of a row whose lifetime ended.
    horizon: u64,
    by_sequence: BTreeMap<u64, Address>,
    /// Sequences of rows with a lifetime.
    mortal: BTreeSet<u64>,
    bytes: u64,
    /// Of the rows that the head stands for; where the heads are signed here, of all rows.
    sum: Sum,
    head: Option<Head>,
}

impl OriginRows {
    fn new(incarnation: Incarnation) -> OriginRows {
        OriginRows {
            incarnation,
            signed_here: false,
            written: 0,
            horizon: 0,
            by_sequence: BTreeMap::new(),
            mortal: BTreeSet::new(),
            bytes: 0,
            sum: Sum::new(),
            head: None,
        }
    }
}

/// All rows.
#[derive(Debug)]
pub struct Table {
    arena: Arena,
    by_key: Index,
    hasher: SipHasher13,
    origins: BTreeMap<RelayId, OriginRows>,
    live: usize,
}

impl Table {
    pub(super) fn new(seed: [u64; 2]) -> Table {
        Table {
            arena: Arena::new(),
            by_key: Index::new(),
            hasher: SipHasher13::new_with_keys(seed[0], seed[1]),
            origins: BTreeMap::new(),
            live: 0,
        }
    }

    /// The row of (origin, kind, key), tombstones included.
    pub fn get(&self, origin: RelayId, kind: RecordKind, key: &[u8]) -> Option<RecordRef<'_>> {
        self.address_of(origin, kind, key).map(|at| self.row(at))
    }

    /// The live rows of (kind, key), whoever wrote them; in no order that means anything. The key is not empty.
    pub fn live<'a>(
        &'a self,
        kind: RecordKind,
        key: &'a [u8],
    ) -> impl Iterator<Item = RecordRef<'a>> + 'a {
        self.of_key(key)
            .map(|at| self.row(at))
            .filter(move |row| row.kind() == kind && row.key() == key && !row.is_tombstone())
    }

    /// All live rows of a key, which is not empty, of whatever kind and writer; in no order that means anything.
    ///
    /// Rows lie about in memory. So the first `TOGETHER` are touched side by side, without a branch on what they hold,
    /// before the first is looked at: the processor waits for all of them at once.
    pub fn live_of_key<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = RecordRef<'a>> + 'a {
        let mut places = self.of_key(key);
        let mut first = [None; TOGETHER];
        for (place, at) in first.iter_mut().zip(&mut places) {
            self.arena.touch(at);
            *place = Some(at);
        }
        first
            .into_iter()
            .flatten()
            .chain(places)
            .map(|at| self.row(at))
            .filter(move |row| row.key() == key && !row.is_tombstone())
    }

    /// The latest wall-clock time of the tombstones of (kind, key), whoever wrote them; 0 where there is none. The key is
    /// not empty.
    pub fn last_tombstone(&self, kind: RecordKind, key: &[u8]) -> u64 {
        self.of_key(key)
            .map(|at| self.row(at))
            .filter(|row| row.kind() == kind && row.key() == key && row.is_tombstone())
            .map(RecordRef::wall_ms)
            .max()
            .unwrap_or(0)
    }

    /// The authority's live row of (kind, key).
    pub fn authority_row(&self, kind: RecordKind, key: &[u8]) -> Option<RecordRef<'_>> {
        self.get(RelayId::AUTHORITY, kind, key).filter(|row| !row.is_tombstone())
    }

    /// The rows of an origin behind `from`, up to `to`, ascending by sequence, tombstones included.
    pub fn rows_between(
        &self,
        origin: RelayId,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = RecordRef<'_>> + '_ {
        let range = (from < to).then_some(from + 1..=to);
        let rows = self.origins.get(&origin);
        rows.zip(range)
            .into_iter()
            .flat_map(|(rows, range)| rows.by_sequence.range(range))
            .map(|(_, at)| self.row(*at))
    }

    /// The row of an origin with this sequence.
    pub(super) fn at(&self, origin: RelayId, sequence: u64) -> Option<RecordRef<'_>> {
        let at = self.origins.get(&origin)?.by_sequence.get(&sequence)?;
        Some(self.row(*at))
    }

    /// All origins of which something is known, in order.
    pub fn origins(&self) -> impl Iterator<Item = RelayId> + '_ {
        self.origins.keys().copied()
    }

    /// How many origins are known.
    pub fn origin_count(&self) -> usize {
        self.origins.len()
    }

    /// Everything of this origin up to this version is here; zero where nothing is known.
    pub fn watermark(&self, origin: RelayId) -> Version {
        self.origins.get(&origin).map_or_else(Version::default, |rows| Version {
            incarnation: rows.incarnation,
            sequence: match &rows.head {
                _ if rows.signed_here => rows.written,
                Some(head) => head.version.sequence,
                None => 0,
            },
        })
    }

    /// The signed word on an origin's rows up to which they may be passed on.
    pub fn head(&self, origin: RelayId) -> Option<&Head> {
        self.origins.get(&origin)?.head.as_ref()
    }

    /// The highest sequence of an origin's rows whose lifetime ended.
    pub fn horizon(&self, origin: RelayId) -> u64 {
        self.origins.get(&origin).map_or(0, |rows| rows.horizon)
    }

    /// The sequence of the last row that was written or loaded here.
    pub(super) fn written(&self, origin: RelayId) -> u64 {
        self.origins.get(&origin).map_or(0, |rows| rows.written)
    }

    /// The sum, number and bytes of an origin's rows.
    pub(super) fn measure(&self, origin: RelayId) -> (Sum, u64, u64) {
        self.origins.get(&origin).map_or_else(
            || (Sum::new(), 0, 0),
            |rows| (rows.sum.clone(), rows.by_sequence.len() as u64, rows.bytes),
        )
    }

    /// The rows of an origin with a lifetime and a sequence up to `horizon`, ascending by sequence.
    pub(super) fn ended(
        &self,
        origin: RelayId,
        horizon: u64,
    ) -> impl Iterator<Item = RecordRef<'_>> + '_ {
        self.origins.get(&origin).into_iter().flat_map(move |rows| {
            let ended = rows.mortal.range(..=horizon);
            ended.filter_map(|sequence| Some(self.row(*rows.by_sequence.get(sequence)?)))
        })
    }

    /// Live rows.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether there is no live row.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// A hash over all rows that does not depend on their order: equal tables have equal hashes.
    pub fn hash(&self) -> u64 {
        self.origins.values().filter(|rows| !rows.by_sequence.is_empty()).fold(0, |hash, rows| {
            let digest = match &rows.head {
                Some(head) if !rows.signed_here => head.digest,
                _ => rows.sum.digest(),
            };
            let mut first = [0; 8];
            first.copy_from_slice(&digest[..8]);
            hash ^ u64::from_be_bytes(first)
        })
    }

    /// Rows of one origin, tombstones included.
    pub fn origin_len(&self, origin: RelayId) -> usize {
        self.origins.get(&origin).map_or(0, |rows| rows.by_sequence.len())
    }

    pub(super) fn knows(&self, origin: RelayId) -> bool {
        self.origins.contains_key(&origin)
    }

    pub(super) fn add_origin(&mut self, origin: RelayId) {
        self.origins.entry(origin).or_insert_with(|| OriginRows::new(Incarnation::default()));
    }

    /// The origin must have no rows.
    pub(super) fn remove_origin(&mut self, origin: RelayId) {
        let gone = self.origins.remove(&origin);
        debug_assert!(gone.is_none_or(|rows| rows.by_sequence.is_empty()));
    }

    /// Begins another life of an origin, which must have no rows. Its heads are signed elsewhere unless
    /// [`Table::sign_here`] follows.
    pub(super) fn begin_incarnation(&mut self, origin: RelayId, incarnation: Incarnation) {
        let before = self.origins.insert(origin, OriginRows::new(incarnation));
        debug_assert!(before.is_none_or(|rows| rows.by_sequence.is_empty()));
    }

    /// This relay signs the heads of this origin.
    pub(super) fn sign_here(&mut self, origin: RelayId) {
        self.add_origin(origin);
        if let Some(rows) = self.origins.get_mut(&origin) {
            let head = rows.head.map_or(0, |head| head.version.sequence);
            rows.signed_here = true;
            rows.written = rows.written.max(head);
        }
    }

    /// The rows of an origin are what this head stands for, and have this sum.
    pub(super) fn set_head(&mut self, head: Head, sum: Sum) {
        if let Some(rows) = self.origins.get_mut(&head.origin) {
            rows.written = rows.written.max(head.version.sequence);
            rows.horizon = head.horizon;
            rows.sum = sum;
            rows.head = Some(head);
        }
    }

    /// Everything of an origin up to this sequence ended its life, where it has one.
    pub(super) fn raise_horizon(&mut self, origin: RelayId, to: u64) {
        if let Some(rows) = self.origins.get_mut(&origin) {
            rows.horizon = rows.horizon.max(to);
        }
    }

    /// As [`Table::insert`], for rows that are written or loaded here: the origin's sum follows.
    pub(super) fn write(&mut self, record: &Record) -> Option<Record> {
        let old = self.insert(record);
        if let Some(rows) = self.origins.get_mut(&record.origin()) {
            rows.written = record.version().sequence;
            rows.sum.add(record.as_bytes());
            if let Some(old) = &old {
                rows.sum.remove(old.as_bytes());
            }
        }
        old
    }

    /// As [`Table::remove`]; the origin's sum follows.
    pub(super) fn remove_written(&mut self, origin: RelayId, sequence: u64) -> Option<Record> {
        let old = self.remove(origin, sequence)?;
        if let Some(rows) = self.origins.get_mut(&origin) {
            rows.sum.remove(old.as_bytes());
        }
        Some(old)
    }

    /// Puts a row in the place of the one with its origin, kind and key, which is returned. The caller has compared
    /// versions, and sees to the sum; the incarnation is the origin's.
    pub(super) fn insert(&mut self, record: &Record) -> Option<Record> {
        let (origin, version) = (record.origin(), record.version());
        let hash = self.hash_of(origin, record.key());
        self.live += usize::from(!record.is_tombstone());
        let held = self.address_of(origin, record.kind(), record.key());
        let old = held.map(|at| {
            let old = self.row(at).to_record();
            self.arena.take(at);
            self.live -= usize::from(!old.is_tombstone());
            old
        });
        let at = self.arena.put(record.as_bytes());
        match held {
            Some(before) => self.by_key.replace(hash, before, at),
            None => self.by_key.insert(hash, at),
        }
        self.add_origin(origin);
        if let Some(rows) = self.origins.get_mut(&origin) {
            if let Some(old) = &old {
                rows.by_sequence.remove(&old.version().sequence);
                rows.mortal.remove(&old.version().sequence);
                rows.bytes -= old.as_bytes().len() as u64;
            }
            rows.by_sequence.insert(version.sequence, at);
            rows.bytes += record.as_bytes().len() as u64;
            if record.lifetime_secs() > 0 {
                rows.mortal.insert(version.sequence);
            }
        }
        old
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, origin: RelayId, sequence: u64) -> Option<Record> {
        let rows = self.origins.get_mut(&origin)?;
        let at = rows.by_sequence.remove(&sequence)?;
        rows.mortal.remove(&sequence);
        let old = in_arena(&self.arena, at).to_record();
        rows.bytes -= old.as_bytes().len() as u64;
        self.by_key.remove(self.hash_of(origin, old.key()), at);
        self.arena.take(at);
        self.live -= usize::from(!old.is_tombstone());
        Some(old)
    }

    fn row(&self, at: Address) -> RecordRef<'_> {
        in_arena(&self.arena, at)
    }

    fn address_of(&self, origin: RelayId, kind: RecordKind, key: &[u8]) -> Option<Address> {
        self.by_key.get(self.hash_of(origin, key)).find(|at| {
            let row = self.row(*at);
            row.origin() == origin && row.kind() == kind && row.key() == key
        })
    }

    /// Where all rows of a key lie, and perhaps others.
    fn of_key(&self, key: &[u8]) -> impl Iterator<Item = Address> + '_ {
        self.by_key.get(self.hash_of(RelayId::AUTHORITY, key))
    }

    /// Rows of one key have one hash, whoever wrote them. Only those without a key, which every origin has and nobody
    /// asks for together, have one for each origin.
    fn hash_of(&self, origin: RelayId, key: &[u8]) -> u32 {
        let mut hasher = self.hasher;
        hasher.write(key);
        if key.is_empty() {
            hasher.write_u64(origin.0);
        }
        (hasher.finish() >> 32) as u32
    }
}

fn in_arena(arena: &Arena, at: Address) -> RecordRef<'_> {
    RecordRef::first(arena.at(at)).unwrap_or_else(|_| unreachable!("an index leads to a row"))
}
