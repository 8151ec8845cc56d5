//! The authority's records, verbatim: each relay keeps them, so that a mesh that starts again knows its accounts
//! and revocations without its registrar.

use rusqlite::{OptionalExtension, params};
use tasuki_proto::gossip::Head;
use tasuki_proto::record::{Record, RecordKind};

use super::{Rows, Store, StoreError};

fn record(bytes: Vec<u8>) -> Result<Record, StoreError> {
    Record::from_bytes(bytes.into()).map_err(|_| StoreError::Unsound("records"))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Rows<'_> {
    /// Keeps `record` where its version is greater than that of the one held (C6); says whether it was.
    ///
    /// # Errors
    /// The store's.
    pub fn put_record(&self, record: &Record) -> Result<bool, StoreError> {
        let version = record.version();
        let mut insert = self.connection.prepare_cached(
            "INSERT INTO records (kind, key, incarnation, sequence, bytes)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (kind, key) DO UPDATE
             SET incarnation = excluded.incarnation, sequence = excluded.sequence,
                 bytes = excluded.bytes
             WHERE (excluded.incarnation, excluded.sequence) > (incarnation, sequence)",
        )?;
        let changed = insert.execute(params![
            record.kind().0,
            record.key(),
            number(version.incarnation.0),
            number(version.sequence),
            &record.as_bytes()[..],
        ])?;
        Ok(changed > 0)
    }

    /// Keeps the head that proves the authority's records.
    ///
    /// # Errors
    /// The store's.
    pub fn put_head(&self, head: &Head) -> Result<(), StoreError> {
        let mut insert =
            self.connection.prepare_cached("INSERT OR REPLACE INTO head VALUES (0, ?1)")?;
        insert.execute([&head.to_bytes()[..]])?;
        Ok(())
    }

    /// The record of `kind` with `key`.
    ///
    /// # Errors
    /// The store's.
    pub fn record(&self, kind: RecordKind, key: &[u8]) -> Result<Option<Record>, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT bytes FROM records WHERE kind = ?1 AND key = ?2")?;
        query.query_row(params![kind.0, key], |row| row.get(0)).optional()?.map(record).transpose()
    }

    /// All records of `kind`, ordered by key.
    ///
    /// # Errors
    /// The store's.
    pub fn records_of(&self, kind: RecordKind) -> Result<Vec<Record>, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT bytes FROM records WHERE kind = ?1 ORDER BY key")?;
        let found = query.query_map([kind.0], |row| row.get(0))?;
        found.map(|bytes| record(bytes?)).collect()
    }
}

impl Store {
    /// Keeps those of `records` that are newer than what is held, and the head that proves them.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_records(
        &self,
        records: Vec<Record>,
        head: Option<Head>,
    ) -> Result<(), StoreError> {
        if records.is_empty() && head.is_none() {
            return Ok(());
        }
        self.run(move |rows| {
            records.iter().try_for_each(|r| rows.put_record(r).map(drop))?;
            head.map_or(Ok(()), |head| rows.put_head(&head))
        })
        .await
    }

    /// The head that was kept last.
    ///
    /// # Errors
    /// The store's.
    pub async fn head(&self) -> Result<Option<Head>, StoreError> {
        self.run(|rows| {
            let mut query = rows.connection.prepare("SELECT bytes FROM head")?;
            let bytes: Option<Vec<u8>> = query.query_row([], |row| row.get(0)).optional()?;
            let head = bytes.map(|bytes| Head::from_bytes(&bytes)).transpose();
            head.map_err(|_| StoreError::Unsound("head"))
        })
        .await
    }

    /// All records, for the start.
    ///
    /// # Errors
    /// The store's.
    pub async fn records(&self) -> Result<Vec<Record>, StoreError> {
        self.run(|rows| {
            let mut query = rows
                .connection
                .prepare("SELECT bytes FROM records ORDER BY incarnation, sequence")?;
            let found = query.query_map([], |row| row.get(0))?;
            found.map(|bytes| record(bytes?)).collect()
        })
        .await
    }
}
