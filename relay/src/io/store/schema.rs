//! The tables and their history.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// The version of the tables that this software writes (`PRAGMA user_version`).
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// What brings the tables from version n to n+1. Published ones never change.
const MIGRATIONS: &[&str] = &["
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT;

CREATE TABLE records (
    kind INTEGER NOT NULL,
    key BLOB NOT NULL,
    incarnation INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE head (                 -- at most one: proves the records
    id INTEGER PRIMARY KEY CHECK (id = 0),
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE tokens (
    id BLOB PRIMARY KEY,
    secret BLOB NOT NULL,
    terminal TEXT,                  -- NULL: for a relay
    expires_ms INTEGER NOT NULL,
    used_by BLOB                    -- fingerprint of the key that used it
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_terminal ON tokens (terminal) WHERE terminal IS NOT NULL;
CREATE INDEX tokens_by_expiry ON tokens (expires_ms);

CREATE TABLE certificates (
    key BLOB PRIMARY KEY,           -- fingerprint
    name TEXT NOT NULL,             -- 'relay NAME' or 'terminal NAME'
    not_before INTEGER NOT NULL,    -- s since 1970
    not_after INTEGER NOT NULL,
    chain BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_name ON certificates (name);

CREATE TABLE sessions (
    id BLOB PRIMARY KEY,
    caller TEXT NOT NULL,
    callee TEXT NOT NULL,
    service TEXT NOT NULL,
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER NOT NULL,
    code INTEGER NOT NULL,
    route TEXT NOT NULL,            -- names of relays, separated by commas
    bytes_to_callee INTEGER NOT NULL,
    packets_to_callee INTEGER NOT NULL,
    bytes_to_caller INTEGER NOT NULL,
    packets_to_caller INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_end ON sessions (ended_ms);
"];

/// Opens the file, or makes it, and migrates it.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    make_private(path)?;
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    migrate(&mut connection)?;
    Ok(connection)
}

/// Opens the file where nothing can be written: the disk is full, or read-only. What is there can be read, and writing
/// works once there is room. No other process can open it meanwhile.
pub(super) fn open_unwritable(path: &Path) -> Result<Connection, StoreError> {
    let exclusive = || {
        // The index of the log lies in memory then: the file for it would need room.
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        check_version(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(connection)
    };
    exclusive().or_else(|error: StoreError| {
        let log = path.with_extension("db-wal");
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            return Err(error);
        }
        // All is in the file itself, and nobody changes it.
        let name = path.to_str().ok_or(error)?;
        let name = name.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(format!("file:{name}?immutable=1"), flags)?;
        check_version(&connection)?;
        Ok(connection)
    })
}

fn check_version(connection: &Connection) -> Result<(), StoreError> {
    match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
        VERSION => Ok(()),
        other => Err(StoreError::Newer(other)),
    }
}

/// Writes a copy of the file `from`, as of one moment, to the file `to`, which is made.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
    // To read beside a writer takes the right to write: of the shared index.
    let connection = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    make_private(to)?;
    let to = to.to_str().ok_or_else(|| std::io::Error::other("the path is not UTF-8"))?;
    connection.execute("VACUUM INTO ?1", [to])?;
    Ok(std::fs::File::open(to)?.sync_all()?)
}

/// SQLite gives the files beside it (`-wal`, `-shm`) the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let done = usize::try_from(version)
        .ok()
        .filter(|done| *done <= MIGRATIONS.len())
        .ok_or(StoreError::Newer(version))?;
    // A full disk takes nothing, not even what is there already.
    if done == MIGRATIONS.len() {
        return Ok(());
    }
    for migration in &MIGRATIONS[done..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    Ok(transaction.commit()?)
}
