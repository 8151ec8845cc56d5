//! The rows of the connection-info table, held once for everybody (C4).
//!
//! Gossip writes it, [`crate::core::directory`] reads it. A row is kept as the verbatim [`Record`] in an allocation
//! of its own exact size. Two indexes lead to it: by the hash of its key, over all kinds and origins (so that one
//! probe finds a terminal's account and all its attachments), and per origin by sequence.
//!
//! Invariants: one row for each (origin, kind, key); one incarnation for each origin; the index by sequence holds
//! exactly the rows.

use std::collections::BTreeMap;
use std::hash::Hasher;

use bytes::Bytes;
use hashbrown::HashTable;
use rustc_hash::FxHasher;
use tasuki_proto::record::{Record, RecordKind, Version};
use tasuki_proto::{Incarnation, RelayId};

use super::authority::Authority;

/// Rows in one page of the slab: growing it never copies rows.
const PAGE: usize = 4096;
/// Rows of one key that are fetched side by side: an account and the attachments of most terminals.
const TOGETHER: usize = 8;

/// One origin's rows, and how far they are known.
#[derive(Debug, Default)]
pub struct OriginRows {
    incarnation: Incarnation,
    watermark: u64,
    horizon: u64,
    by_sequence: BTreeMap<u64, u32>,
}

/// All rows.
#[derive(Debug)]
pub struct Table {
    pages: Vec<Vec<Option<Record>>>,
    used: u32,
    free: Vec<u32>,
    by_key: HashTable<u32>,
    seed: usize,
    origins: BTreeMap<RelayId, OriginRows>,
    live: usize,
    hash: u64,
    pub(super) authority: Authority,
}

impl Table {
    pub(super) fn new(seed: u64, authority: Authority) -> Table {
        Table {
            pages: Vec::new(),
            used: 0,
            free: Vec::new(),
            by_key: HashTable::new(),
            seed: seed as usize,
            origins: BTreeMap::new(),
            live: 0,
            hash: 0,
            authority,
        }
    }

    /// The row of (origin, kind, key), tombstones included.
    pub fn get(&self, origin: RelayId, kind: RecordKind, key: &[u8]) -> Option<&Record> {
        self.slot_of(origin, kind, key).map(|slot| self.row(slot))
    }

    /// The live rows of (kind, key), whoever wrote them; in no order that means anything.
    pub fn live<'a>(
        &'a self,
        kind: RecordKind,
        key: &'a [u8],
    ) -> impl Iterator<Item = &'a Record> + 'a {
        self.by_key
            .iter_hash(hash_of(self.seed, key))
            .map(|slot| self.row(*slot))
            .filter(move |row| row.kind() == kind && row.key() == key && !row.is_tombstone())
    }

    /// All live rows of a key, of whatever kind and writer; in no order that means anything.
    ///
    /// Rows lie about in memory. So the heads of the first `TOGETHER` are fetched side by side, without a branch on
    /// what they hold, before the first is looked at: the processor waits for all of them at once.
    pub fn live_of_key<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Record> + 'a {
        let mut slots = self.by_key.iter_hash(hash_of(self.seed, key));
        let mut first = [None; TOGETHER];
        for (place, slot) in first.iter_mut().zip(&mut slots) {
            let row = self.row(*slot);
            *place = Some((row, row.is_tombstone(), row.key().len()));
        }
        let rest =
            slots.map(|slot| self.row(*slot)).map(|row| (row, row.is_tombstone(), row.key().len()));
        first
            .into_iter()
            .flatten()
            .chain(rest)
            .filter(move |(row, dead, length)| !dead && *length == key.len() && row.key() == key)
            .map(|(row, _, _)| row)
    }

    /// The latest wall-clock time of the tombstones of (kind, key), whoever wrote them; 0 where there is none.
    pub fn last_tombstone(&self, kind: RecordKind, key: &[u8]) -> u64 {
        self.by_key
            .iter_hash(hash_of(self.seed, key))
            .map(|slot| self.row(*slot))
            .filter(|row| row.kind() == kind && row.key() == key && row.is_tombstone())
            .map(Record::wall_ms)
            .max()
            .unwrap_or(0)
    }

    /// The authority's live row of (kind, key), its signature checked: at first use, then remembered. A row whose
    /// signature does not hold is as good as absent, and is dropped soon after.
    pub fn authority_row(&mut self, kind: RecordKind, key: &[u8]) -> Option<&Record> {
        let slot = self.slot_of(RelayId::AUTHORITY, kind, key)?;
        let row = self.pages[slot as usize / PAGE][slot as usize % PAGE].as_ref()?;
        (!row.is_tombstone() && self.authority.is_genuine(row)).then_some(row)
    }

    /// Whether reading this row of the authority would have to check its signature first.
    pub fn is_unchecked(&self, row: &Record) -> bool {
        row.origin() == RelayId::AUTHORITY && !self.authority.is_checked(row.version().sequence)
    }

    /// The rows of an origin behind `from`, up to `to`, ascending by sequence, tombstones included.
    pub fn rows_between(
        &self,
        origin: RelayId,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = &Record> + '_ {
        let range = (from < to).then_some(from + 1..=to);
        let rows = self.origins.get(&origin);
        rows.zip(range)
            .into_iter()
            .flat_map(|(rows, range)| rows.by_sequence.range(range))
            .map(|(_, slot)| self.row(*slot))
    }

    /// The row of an origin with this sequence.
    pub(super) fn at(&self, origin: RelayId, sequence: u64) -> Option<&Record> {
        let slot = self.origins.get(&origin)?.by_sequence.get(&sequence)?;
        Some(self.row(*slot))
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
        let hash = hash_of(self.seed, record.key());
        // A slice would keep the whole message that brought it.
        let own = copy_of(record);
        self.count(&own, true);
        let old = match self.slot_of(origin, record.kind(), record.key()) {
            Some(slot) => {
                let old = self.pages[slot as usize / PAGE][slot as usize % PAGE].replace(own);
                if let (Some(old), Some(rows)) = (&old, self.origins.get_mut(&origin)) {
                    rows.by_sequence.remove(&old.version().sequence);
                    rows.by_sequence.insert(version.sequence, slot);
                }
                old
            }
            None => {
                let slot = self.take_slot(own);
                let (pages, seed) = (&self.pages, self.seed);
                self.by_key.insert_unique(hash, slot, |slot| {
                    hash_of(seed, in_pages(pages, *slot).map_or(&[], Record::key))
                });
                self.origins.entry(origin).or_default().by_sequence.insert(version.sequence, slot);
                None
            }
        };
        if let Some(old) = &old {
            self.count(old, false);
        }
        old
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, origin: RelayId, sequence: u64) -> Option<Record> {
        let slot = self.origins.get_mut(&origin)?.by_sequence.remove(&sequence)?;
        let hash = hash_of(self.seed, self.row(slot).key());
        if let Ok(entry) = self.by_key.find_entry(hash, |other| *other == slot) {
            entry.remove();
        }
        let old = self.pages[slot as usize / PAGE][slot as usize % PAGE].take()?;
        self.free.push(slot);
        self.count(&old, false);
        Some(old)
    }

    /// Checks up to `budget` signatures of the authority's rows, in order of sequence. Gives the rows that hold, and
    /// the sequence of the first that does not.
    pub(super) fn check_authority(&mut self, budget: usize) -> (Vec<Record>, Option<u64>) {
        let Some(rows) = self.origins.get(&RelayId::AUTHORITY) else { return (Vec::new(), None) };
        let mut good = Vec::new();
        let mut left = budget;
        for (sequence, slot) in rows.by_sequence.range(self.authority.prefix() + 1..) {
            let Some(row) = in_pages(&self.pages, *slot) else { continue };
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
            good.push(copy_of(row));
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

    fn row(&self, slot: u32) -> &Record {
        self.pages[slot as usize / PAGE][slot as usize % PAGE]
            .as_ref()
            .unwrap_or_else(|| unreachable!("an index leads to a row"))
    }

    fn slot_of(&self, origin: RelayId, kind: RecordKind, key: &[u8]) -> Option<u32> {
        self.by_key
            .find(hash_of(self.seed, key), |slot| {
                let row = self.row(*slot);
                row.origin() == origin && row.kind() == kind && row.key() == key
            })
            .copied()
    }

    fn take_slot(&mut self, record: Record) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.pages[slot as usize / PAGE][slot as usize % PAGE] = Some(record);
            return slot;
        }
        let slot = self.used;
        if slot as usize / PAGE == self.pages.len() {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        self.pages[slot as usize / PAGE].push(Some(record));
        self.used += 1;
        slot
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

fn in_pages(pages: &[Vec<Option<Record>>], slot: u32) -> Option<&Record> {
    pages[slot as usize / PAGE][slot as usize % PAGE].as_ref()
}

/// The record in memory of its own.
fn copy_of(record: &Record) -> Record {
    Record::from_bytes(Bytes::copy_from_slice(record.as_bytes()))
        .unwrap_or_else(|_| unreachable!("a record's bytes are a record"))
}

fn hash_of(seed: usize, key: &[u8]) -> u64 {
    let mut hasher = FxHasher::with_seed(seed);
    hasher.write(key);
    hasher.finish()
}

/// The same at every relay and in every version of the software.
fn digest_of(record: &Record) -> u64 {
    let digest = ring::digest::digest(&ring::digest::SHA256, record.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_ref()[..8]);
    u64::from_be_bytes(first)
}
