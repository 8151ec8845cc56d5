//! Rows that wait for their proof: what a link tells of an origin, until it leads to the origin's signed head.

use std::collections::BTreeMap;
use std::time::Instant;

use tasuki_proto::gossip::Head;
use tasuki_proto::record::{Record, RecordKind};

use super::sum::Sum;
use super::table::Table;
use crate::core::LinkId;

/// What names a row among those of its origin.
type Key = (RecordKind, bytes::Bytes);

fn key_of(record: &Record) -> Key {
    (record.kind(), record.as_bytes().slice_ref(record.key()))
}

fn has_ended(row: &Record, horizon: u64) -> bool {
    row.lifetime_secs() > 0 && row.version().sequence <= horizon
}

/// Rows of one origin from one link.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) link: LinkId,
    /// What the rows lead to, as the latest message said.
    pub(super) head: Head,
    /// Told from 0: what is held and not told is gone. Otherwise the rows join on to what is held.
    pub(super) whole: bool,
    /// Told up to this sequence.
    pub(super) reached: u64,
    pub(super) began: Instant,
    rows: BTreeMap<Key, Record>,
    /// Of the set that there would be.
    sum: Sum,
    count: u64,
    bytes: u64,
}

/// Rows that are proven and not yet in the table.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) link: LinkId,
    pub(super) head: Head,
    pub(super) whole: bool,
    pub(super) sum: Sum,
    pub(super) rows: BTreeMap<Key, Record>,
}

impl Stage {
    /// Begins with what is held of the origin, or with nothing where everything is told.
    pub(super) fn new(link: LinkId, head: Head, whole: bool, table: &Table, now: Instant) -> Stage {
        let (sum, count, bytes) =
            if whole { (Sum::new(), 0, 0) } else { table.measure(head.origin) };
        let reached = 0;
        Stage { link, head, whole, reached, began: now, rows: BTreeMap::new(), sum, count, bytes }
    }

    /// Adds rows. Returns how many of them are held already.
    pub(super) fn add(&mut self, records: Vec<Record>, table: &Table) -> u64 {
        let origin = self.head.origin;
        let held_to = if self.whole { 0 } else { table.watermark(origin).sequence };
        let mut stale = 0;
        for record in records {
            if record.version().sequence <= held_to {
                stale += 1;
                continue;
            }
            self.sum.add(record.as_bytes());
            self.count += 1;
            self.bytes += record.as_bytes().len() as u64;
            let key = key_of(&record);
            let staged = self.rows.insert(key, record.clone());
            let held = if self.whole || staged.is_some() {
                staged
            } else {
                table.get(origin, record.kind(), record.key()).map(|row| row.to_record())
            };
            if let Some(held) = held {
                self.take_out(held.as_bytes());
            }
        }
        stale
    }

    fn take_out(&mut self, row: &[u8]) {
        self.sum.remove(row);
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.len() as u64);
    }

    /// Returns whether these are more rows than the head stands for: then the link makes them up. A row that a later
    /// message replaces may be longer than the one that is in the head's bytes.
    pub(super) fn is_too_much(&self) -> bool {
        self.rows.len() as u64 > self.head.rows
            || self.bytes > self.head.bytes.saturating_mul(2).saturating_add(1 << 20)
    }

    /// Returns the rows if they are what the head stands for.
    pub(super) fn prove(mut self, table: &Table) -> Option<Proven> {
        let horizon = self.head.horizon;
        // Told before their life ended, by what the head says.
        let late: Vec<Record> =
            self.rows.values().filter(|row| has_ended(row, horizon)).cloned().collect();
        for row in late {
            self.take_out(row.as_bytes());
            self.rows.remove(&key_of(&row));
        }
        if !self.whole {
            let ended: Vec<Record> = table
                .ended(self.head.origin, self.head.horizon)
                .map(|row| row.to_record())
                .filter(|row| !self.rows.contains_key(&key_of(row)))
                .collect();
            for row in ended {
                self.take_out(row.as_bytes());
            }
        }
        let head = self.head;
        let fits = (self.count, self.bytes) == (head.rows, head.bytes);
        (fits && self.sum.digest() == head.digest).then_some(Proven {
            link: self.link,
            head,
            whole: self.whole,
            sum: self.sum,
            rows: self.rows,
        })
    }
}

impl Proven {
    /// Returns the sequences of rows that are held and are not among the current ones.
    pub(super) fn gone(&self, table: &Table) -> Vec<u64> {
        let origin = self.head.origin;
        if !self.whole {
            return table.ended(origin, self.head.horizon).map(|r| r.version().sequence).collect();
        }
        table
            .rows_between(origin, 0, u64::MAX)
            .filter(|row| {
                let key = (row.kind(), bytes::Bytes::copy_from_slice(row.key()));
                !self.rows.contains_key(&key)
            })
            .map(|row| row.version().sequence)
            .collect()
    }
}
