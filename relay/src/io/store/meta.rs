//! Single numbers that only grow.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};
use tasuki_proto::Incarnation;

use super::{FILE, Rows, Store, StoreError};

/// A number of the table `meta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// This relay's incarnation.
    Incarnation,
    /// The clock's high-water mark, s since 1970.
    Clock,
    /// The authority's last sequence, at the registrar.
    AuthoritySequence,
}

impl Mark {
    const fn name(self) -> &'static str {
        match self {
            Mark::Incarnation => "incarnation",
            Mark::Clock => "clock",
            Mark::AuthoritySequence => "authority sequence",
        }
    }
}

impl Rows<'_> {
    /// The number; 0 when it was never raised.
    ///
    /// # Errors
    /// The store's.
    pub fn mark(&self, mark: Mark) -> Result<u64, StoreError> {
        let mut query = self
            .connection
            .prepare_cached("SELECT coalesce((SELECT value FROM meta WHERE name = ?1), 0)")?;
        let value: i64 = query.query_row([mark.name()], |row| row.get(0))?;
        u64::try_from(value).map_err(|_| StoreError::Unsound("meta"))
    }

    /// Raises the number to `value`; one that is greater already stays. Gives the number.
    ///
    /// # Errors
    /// The store's.
    pub fn raise(&self, mark: Mark, value: u64) -> Result<u64, StoreError> {
        let mut update = self.connection.prepare_cached(
            "INSERT INTO meta (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
        )?;
        update.execute(params![mark.name(), i64::try_from(value).unwrap_or(i64::MAX)])?;
        self.mark(mark)
    }

    /// Writes something that was not there before.
    ///
    /// # Errors
    /// The store's, when the disk takes nothing.
    pub(super) fn try_to_write(&self) -> Result<(), StoreError> {
        let mut update = self.connection.prepare_cached(
            "INSERT INTO meta (name, value) VALUES ('tried', 1)
             ON CONFLICT (name) DO UPDATE SET value = (value + 1) % 1000000",
        )?;
        update.execute([])?;
        Ok(())
    }

    /// Adds one and gives the sum.
    ///
    /// # Errors
    /// The store's.
    pub fn next(&self, mark: Mark) -> Result<u64, StoreError> {
        self.raise(mark, self.mark(mark)?.saturating_add(1))
    }
}

/// The clock's high-water mark of the store in `dir`, s since 1970, whether a relay has it open or not. Writes nothing.
///
/// # Errors
/// The store's.
pub fn clock_mark_of(dir: &Path) -> Result<u64, StoreError> {
    let connection = Connection::open_with_flags(dir.join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    Rows { connection: &connection }.mark(Mark::Clock)
}

impl Store {
    /// The incarnation for this start: one more than that of the last.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin_incarnation(&self) -> Result<Incarnation, StoreError> {
        self.run(|rows| rows.next(Mark::Incarnation)).await.map(Incarnation)
    }

    /// As [`Store::begin_incarnation`]; where nothing can be written, one above all that were ever begun so: the seconds
    /// since 1970 of this start are added. It is kept as soon as there is room ([`Store::keep_incarnation`]).
    ///
    /// # Errors
    /// When the store cannot be read either.
    pub async fn begin_incarnation_anyhow(&self, now_secs: u64) -> Result<Incarnation, StoreError> {
        match self.begin_incarnation().await {
            Ok(incarnation) => Ok(incarnation),
            Err(_) => {
                let last = self.run(|rows| rows.mark(Mark::Incarnation)).await?;
                Ok(Incarnation(last.saturating_add(1).saturating_add(now_secs)))
            }
        }
    }

    /// Keeps this start's incarnation, however long the disk takes nothing.
    pub async fn keep_incarnation(self, incarnation: Incarnation) {
        while self.raise_incarnation(incarnation).await.is_err() && !self.tasks.is_closed() {
            tokio::time::sleep(super::RETRY).await;
        }
    }

    /// Keeps an incarnation that the core moved to, above one that it heard of itself.
    ///
    /// # Errors
    /// The store's.
    pub async fn raise_incarnation(&self, heard: Incarnation) -> Result<Incarnation, StoreError> {
        self.run(move |rows| rows.raise(Mark::Incarnation, heard.0)).await.map(Incarnation)
    }

    /// The clock's high-water mark, s since 1970.
    ///
    /// # Errors
    /// The store's.
    pub async fn clock_mark(&self) -> Result<u64, StoreError> {
        self.run(|rows| rows.mark(Mark::Clock)).await
    }

    /// Keeps the clock's high-water mark, s since 1970.
    ///
    /// # Errors
    /// The store's.
    pub async fn raise_clock_mark(&self, secs: u64) -> Result<u64, StoreError> {
        self.run(move |rows| rows.raise(Mark::Clock, secs)).await
    }
}
