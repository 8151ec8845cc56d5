//! This relay's own rows: it is their only writer.

use std::time::Instant;

use tasuki_proto::record::{Draft, Record, RecordRef, Version};
use tasuki_proto::{Incarnation, limits};

use super::{Gossip, Output, Write};

impl Gossip {
    pub(super) fn write(&mut self, write: &Write, now: Instant) {
        let payload = write.payload.as_deref().unwrap_or_default();
        if write.key.len() > usize::from(u8::MAX) || payload.len() > limits::RECORD_PAYLOAD_BYTES {
            return;
        }
        let held = self.table.get(self.config.relay, write.kind, &write.key);
        if held.is_none_or(RecordRef::is_tombstone) && write.payload.is_none() {
            return;
        }
        let same = held.is_some_and(|row| {
            !row.is_tombstone()
                && write.payload.is_some()
                && row.payload() == payload
                && row.scope() == write.scope
                && row.lifetime_secs() == 0
                && write.lifetime_secs == 0
        });
        if same {
            return;
        }
        self.append(
            Draft {
                origin: self.config.relay,
                kind: write.kind,
                key: &write.key,
                version: Version::default(),
                wall_ms: write.wall_ms,
                scope: write.scope,
                lifetime_secs: write.lifetime_secs,
                tombstone: write.payload.is_none(),
                payload,
            },
            now,
        );
        self.spread(self.config.relay);
    }

    /// Gives the draft the next version and puts it into the table.
    fn append(&mut self, draft: Draft<'_>, now: Instant) {
        let mut version = self.table.watermark(self.config.relay);
        version.sequence += 1;
        let record = Record::new(&Draft { version, ..draft });
        self.put(&record, now);
        self.table.set_watermark(self.config.relay, version.sequence);
    }

    /// A peer knows this version of this relay's own rows. Where it comes from an earlier life that was newer than
    /// this relay remembers, this one moves above it.
    pub(super) fn hear_of_self(&mut self, version: Version, now: Instant) {
        if version <= self.table.watermark(self.config.relay) {
            return;
        }
        let above = Incarnation(version.incarnation.0 + 1);
        let rows: Vec<Record> = self
            .table
            .rows_between(self.config.relay, 0, u64::MAX)
            .map(RecordRef::to_record)
            .collect();
        self.outputs.push_back(Output::OwnIncarnation(above));
        self.begin_incarnation(self.config.relay, above);
        for row in rows {
            self.append(
                Draft {
                    origin: self.config.relay,
                    kind: row.kind(),
                    key: row.key(),
                    version: Version::default(),
                    wall_ms: row.wall_ms(),
                    scope: row.scope(),
                    lifetime_secs: row.lifetime_secs(),
                    tombstone: row.is_tombstone(),
                    payload: row.payload(),
                },
                now,
            );
        }
        self.spread(self.config.relay);
    }
}
