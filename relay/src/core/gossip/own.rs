//! The rows that this relay signs: its own, and at the registrar the authority's.

use std::time::{Duration, Instant};

use tasuki_proto::gossip::Head;
use tasuki_proto::identity::Signer;
use tasuki_proto::record::{Draft, Record, RecordRef, Version};
use tasuki_proto::{Incarnation, RelayId, limits};

use super::{Gossip, Output, Timer, Write};

/// The least time between two moves above an earlier life.
const MOVE_INTERVAL: Duration = Duration::from_secs(1);

/// An origin whose heads are signed here.
#[derive(Debug)]
pub(super) struct Signed {
    signer: Signer,
    /// Rows were written since the last head.
    dirty: bool,
    /// The next head that nobody waits for comes no sooner.
    not_before: Instant,
}

impl Signed {
    pub(super) fn new(signer: Signer, now: Instant) -> Signed {
        Signed { signer, dirty: true, not_before: now }
    }
}

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
        self.publish(self.config.relay, now);
    }

    /// Gives the draft the next version and puts it into the table.
    fn append(&mut self, draft: Draft<'_>, now: Instant) {
        let mut version = self.table.watermark(self.config.relay);
        version.sequence += 1;
        let record = Record::new(&Draft { version, ..draft });
        if record.lifetime_secs() > 0 {
            let end = now + Duration::from_secs(u64::from(record.lifetime_secs()));
            self.own_ends.insert(version.sequence, end);
        }
        self.put_written(&record);
    }

    fn put_written(&mut self, record: &Record) {
        let old = self.table.write(record);
        self.outputs.push_back(Output::Changed { old, new: Some(record.clone()) });
        if let Some(signed) = self.signed.get_mut(&record.origin()) {
            signed.dirty = true;
        }
    }

    /// Rows were written: signs a head for them now or soon, and tells it. A burst of rows has few heads.
    pub(super) fn publish(&mut self, origin: RelayId, now: Instant) {
        let Some(signed) = self.signed.get(&origin).filter(|signed| signed.dirty) else { return };
        if now < signed.not_before {
            self.timers.start(Timer::Publish(origin), signed.not_before);
            return;
        }
        self.sign(origin, now);
    }

    /// Signs a head for all rows of an origin, where one is missing, and tells it: what is sent always leads to a head.
    pub(super) fn sign(&mut self, origin: RelayId, now: Instant) {
        let written = self.table.written(origin) > 0;
        if !written || !self.signed.get(&origin).is_some_and(|signed| signed.dirty) {
            return;
        }
        if origin == self.config.relay {
            self.end_lifetimes(now);
        }
        let (sum, rows, bytes) = self.table.measure(origin);
        let mut head = Head {
            origin,
            version: self.table.watermark(origin),
            horizon: self.table.horizon(origin),
            rows,
            bytes,
            digest: sum.digest(),
            signature: [0; 64],
        };
        let interval = self.config.head_interval;
        if let Some(signed) = self.signed.get_mut(&origin) {
            head.sign(&self.config.mesh, &signed.signer);
            signed.dirty = false;
            signed.not_before = now + interval;
        }
        self.timers.clear(Timer::Publish(origin));
        self.table.set_head(head, sum);
        self.spread(origin);
    }

    /// Discards own rows whose lifetime ended, in the order in which they were written: the horizon of the next head says
    /// up to where. So they end everywhere with the same head.
    fn end_lifetimes(&mut self, now: Instant) {
        let own = self.config.relay;
        while let Some(first) = self.own_ends.first_entry() {
            let replaced = self.table.at(own, *first.key()).is_none();
            if !replaced && *first.get() > now {
                return;
            }
            let sequence = first.remove_entry().0;
            if !replaced {
                let old = self.table.remove_written(own, sequence);
                self.outputs.push_back(Output::Changed { old, new: None });
                self.table.raise_horizon(own, sequence);
            }
        }
    }

    /// This relay has the authority's key of a term: it signs the authority's heads.
    pub(super) fn set_issuer(&mut self, term: Incarnation, signer: Signer, now: Instant) {
        let origin = RelayId::AUTHORITY;
        self.keys.set_term(term, signer.public());
        if self.table.watermark(origin).incarnation < term {
            self.begin_incarnation(origin, term);
        }
        self.table.sign_here(origin);
        self.signed.insert(origin, Signed::new(signer, now));
        self.sign(origin, now);
    }

    /// A record of the authority that needs no check.
    pub(super) fn take_authority(&mut self, record: &Record, now: Instant) {
        let (origin, version) = (RelayId::AUTHORITY, record.version());
        let known = self.table.watermark(origin);
        if record.origin() != origin
            || version.incarnation < known.incarnation
            || version.incarnation == known.incarnation
                && version.sequence <= self.table.written(origin)
        {
            return;
        }
        if version.incarnation > known.incarnation {
            self.begin_incarnation(origin, version.incarnation);
        }
        self.put_written(record);
        self.publish(origin, now);
    }

    /// The head under which the authority's records were kept. Where they are not all here, others tell them again.
    pub(super) fn take_authority_head(&mut self, head: Head) {
        let (sum, rows, bytes) = self.table.measure(RelayId::AUTHORITY);
        let proven = head.origin == RelayId::AUTHORITY
            && head.version.incarnation == self.table.watermark(RelayId::AUTHORITY).incarnation
            && (rows, bytes, sum.digest()) == (head.rows, head.bytes, head.digest)
            && self
                .keys
                .of(&head)
                .is_some_and(|key| (self.config.check)(&head, &self.config.mesh, key));
        if proven && !self.signed.contains_key(&RelayId::AUTHORITY) {
            self.table.set_head(head, sum);
            self.spread(RelayId::AUTHORITY);
        }
    }

    /// A peer has a head of this relay's own rows that is newer than they are: it comes from an earlier life that was
    /// newer than this relay remembers, or from another process with its key. This life moves above it.
    pub(super) fn hear_of_self(&mut self, version: Version, now: Instant) {
        if version <= self.table.watermark(self.config.relay) {
            return;
        }
        self.heard_self = self.heard_self.max(version);
        match self.moved_at {
            Some(moved) if now < moved + MOVE_INTERVAL => {
                self.timers.start(Timer::Move, moved + MOVE_INTERVAL);
            }
            _ => self.move_above(now),
        }
    }

    pub(super) fn move_above(&mut self, now: Instant) {
        let own = self.config.relay;
        if self.heard_self <= self.table.watermark(own) {
            return;
        }
        self.moved_at = Some(now);
        let above = Incarnation(self.heard_self.incarnation.0.saturating_add(1));
        let rows: Vec<Record> =
            self.table.rows_between(own, 0, u64::MAX).map(RecordRef::to_record).collect();
        self.outputs.push_back(Output::OwnIncarnation(above));
        self.begin_incarnation(own, above);
        self.own_ends.clear();
        for row in rows {
            self.append(
                Draft {
                    origin: own,
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
        self.sign(own, now);
    }
}
