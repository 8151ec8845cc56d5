//! The rows of the connection-info table, held once for everybody (C4).
//!
//! Gossip writes it, [`crate::core::directory`] reads it. A row is kept verbatim in memory of the
//! table's own (`arena`). Two indexes lead to it: by the hash of its key, over all kinds and origins (so that one probe
//! finds a terminal's account and all its attachments), and per origin by sequence.
//!
//! Invariants: one row for each (origin, kind, key); one incarnation for each origin; the index by sequence holds
//! exactly the rows.

mod arena;
mod index;

use std::collections::BTreeMap;
use std::hash::Hasher;

use rustc_hash::FxHasher;
use tasuki_proto::record::{Record, RecordKind, RecordRef, Version};
use tasuki_proto::{Incarnation, RelayId};

use self::arena::{Address, Arena};
use self::index::Index;
use super::authority::Authority;

/// Rows of one key that are fetched side by side: an account and the attachments of most terminals.
const TOGETHER: usize = 8;
/// An odd number near 2^64 divided by the golden ratio: takes what all bits of a hash say into its upper ones.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// One origin's rows, and how far they are known.
#[derive(Debug, Default)]
pub struct OriginRows {
    incarnation: Incarnation,
    watermark: u64,
    horizon: u64,
    by_sequence: BTreeMap<u64, Address>,
}

/// All rows.
#[derive(Debug)]
pub struct Table {
    arena: Arena,
    by_key: Index,
    seed: usize,
    origins: BTreeMap<RelayId, OriginRows>,
    live: usize,
    hash: u64,
    pub(super) authority: Authority,
}

impl Table {
    pub(super) fn new(seed: u64, authority: Authority) -> Table {
        Table {
            arena: Arena::new(),
            by_key: Index::new(),
            seed: seed as usize,
            origins: BTreeMap::new(),
            live: 0,
            hash: 0,
            authority,
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

    /// The authority's live row of (kind, key), its signature checked: at first use, then remembered. A row whose
    /// signature does not hold is as good as absent, and is dropped soon after.
    pub fn authority_row(&mut self, kind: RecordKind, key: &[u8]) -> Option<RecordRef<'_>> {
        let at = self.address_of(RelayId::AUTHORITY, kind, key)?;
        let row = in_arena(&self.arena, at);
        (!row.is_tombstone() && self.authority.is_genuine(row)).then_some(row)
    }

    /// Whether reading this row of the authority would have to check its signature first.
    pub fn is_unchecked(&self, row: RecordRef<'_>) -> bool {
        row.origin() == RelayId::AUTHORITY && !self.authority.is_checked(row.version().sequence)
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
            sequence: rows.watermark,
        })
    }

    /// The highest sequence that was discarded at the end of a lifetime.
    pub fn horizon(&self, origin: RelayId) -> u64 {
        self.origins.get(&origin).map_or(0, |rows| rows.horizon)
    }

    /// How far an origin's rows may be passed on: rows of the authority only as far as their signatures are checked,
    /// and never further than a row that proves it.
    pub fn ready(&self, origin: RelayId) -> u64 {
        let Some(rows) = self.origins.get(&origin) else { return 0 };
        if origin == RelayId::AUTHORITY {
            self.authority.prefix().min(rows.by_sequence.last_key_value().map_or(0, |(s, _)| *s))
        } else {
            rows.watermark
        }
    }

    /// Live rows.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Rows, tombstones included.
    pub(super) fn row_count(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is no live row.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// A hash over all live rows that does not depend on their order: equal tables have equal hashes.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Rows of one origin, tombstones included.
    pub fn origin_len(&self, origin: RelayId) -> usize {
        self.origins.get(&origin).map_or(0, |rows| rows.by_sequence.len())
    }

    pub(super) fn knows(&self, origin: RelayId) -> bool {
        self.origins.contains_key(&origin)
    }

    pub(super) fn add_origin(&mut self, origin: RelayId) {
        self.origins.entry(origin).or_default();
    }

    /// The origin must have no rows.
    pub(super) fn remove_origin(&mut self, origin: RelayId) {
        let gone = self.origins.remove(&origin);
        debug_assert!(gone.is_none_or(|rows| rows.by_sequence.is_empty()));
    }

    /// Begins another life of an origin, which must have no rows.
    pub(super) fn begin_incarnation(&mut self, origin: RelayId, incarnation: Incarnation) {
        let rows = self.origins.entry(origin).or_default();
        debug_assert!(rows.by_sequence.is_empty());
        *rows = OriginRows { incarnation, ..OriginRows::default() };
        if origin == RelayId::AUTHORITY {
            self.authority.begin_term();
        }
    }

    pub(super) fn set_watermark(&mut self, origin: RelayId, to: u64) {
        if let Some(rows) = self.origins.get_mut(&origin) {
            rows.watermark = to;
        }
    }

    pub(super) fn raise_horizon(&mut self, origin: RelayId, to: u64) {
        if let Some(rows) = self.origins.get_mut(&origin) {
            rows.horizon = rows.horizon.max(to);
        }
    }

    /// Puts a row in the place of the one with its origin, kind and key, which is returned. The caller has compared
    /// versions; the incarnation is the origin's.
    pub(super) fn insert(&mut self, record: &Record) -> Option<Record> {
        let (origin, version) = (record.origin(), record.version());
        let hash = hash_of(self.seed, origin, record.key());
        self.count(record, true);
        let held = self.address_of(origin, record.kind(), record.key());
        let old = held.map(|at| {
            let old = self.row(at).to_record();
            self.arena.take(at);
            self.count(&old, false);
            old
        });
        let at = self.arena.put(record.as_bytes());
        match held {
            Some(before) => self.by_key.replace(hash, before, at),
            None => self.by_key.insert(hash, at),
        }
        let rows = self.origins.entry(origin).or_default();
        if let Some(old) = &old {
            rows.by_sequence.remove(&old.version().sequence);
        }
        rows.by_sequence.insert(version.sequence, at);
        old
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, origin: RelayId, sequence: u64) -> Option<Record> {
        let at = self.origins.get_mut(&origin)?.by_sequence.remove(&sequence)?;
        let old = self.row(at).to_record();
        self.by_key.remove(hash_of(self.seed, origin, old.key()), at);
        self.arena.take(at);
        self.count(&old, false);
        Some(old)
    }

    /// Checks up to `budget` signatures of the authority's rows, in order of sequence. Gives the rows that hold, and
    /// the sequence of the first that does not.
    pub(super) fn check_authority(&mut self, budget: usize) -> (Vec<Record>, Option<u64>) {
        let Some(rows) = self.origins.get(&RelayId::AUTHORITY) else { return (Vec::new(), None) };
        let mut good = Vec::new();
        let mut left = budget;
        for (sequence, at) in rows.by_sequence.range(self.authority.prefix() + 1..) {
            let row = in_arena(&self.arena, *at);
            if !self.authority.is_checked(*sequence) {
                if left == 0 {
                    return (good, None);
                }
                left -= 1;
                if !self.authority.verify(row) {
                    return (good, Some(*sequence));
                }
            }
            self.authority.advance(*sequence);
            good.push(row.to_record());
        }
        (good, None)
    }

    /// Whether rows of the authority wait for [`Table::check_authority`].
    pub(super) fn has_unchecked(&self) -> bool {
        self.origins.get(&RelayId::AUTHORITY).is_some_and(|rows| {
            self.authority.has_key(rows.incarnation)
                && rows
                    .by_sequence
                    .last_key_value()
                    .is_some_and(|(s, _)| *s > self.authority.prefix())
        })
    }

    fn row(&self, at: Address) -> RecordRef<'_> {
        in_arena(&self.arena, at)
    }

    fn address_of(&self, origin: RelayId, kind: RecordKind, key: &[u8]) -> Option<Address> {
        self.by_key.get(hash_of(self.seed, origin, key)).find(|at| {
            let row = self.row(*at);
            row.origin() == origin && row.kind() == kind && row.key() == key
        })
    }

    /// Where all rows of a key lie, and perhaps others.
    fn of_key(&self, key: &[u8]) -> impl Iterator<Item = Address> + '_ {
        self.by_key.get(hash_of(self.seed, RelayId::AUTHORITY, key))
    }

    fn count(&mut self, record: &Record, comes: bool) {
        if record.is_tombstone() {
            return;
        }
        let digest = digest_of(record);
        if comes {
            self.live += 1;
            self.hash = self.hash.wrapping_add(digest);
        } else {
            self.live -= 1;
            self.hash = self.hash.wrapping_sub(digest);
        }
    }
}

fn in_arena(arena: &Arena, at: Address) -> RecordRef<'_> {
    RecordRef::first(arena.at(at)).unwrap_or_else(|_| unreachable!("an index leads to a row"))
}

/// Rows of one key have one hash, whoever wrote them. Only those without a key, which every origin has and nobody asks
/// for together, have one for each origin.
fn hash_of(seed: usize, origin: RelayId, key: &[u8]) -> u32 {
    let mut hasher = FxHasher::with_seed(seed);
    hasher.write(key);
    if key.is_empty() {
        hasher.write_u64(origin.0);
    }
    (hasher.finish().wrapping_mul(SPREAD) >> 32) as u32
}

/// The same at every relay and in every version of the software.
fn digest_of(record: &Record) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, record.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(first)
}
