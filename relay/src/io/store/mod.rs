//! What survives a restart (invariant 8): SQLite in the data directory, one connection, one thread.
//!
//! | table | holds |
//! |---|---|
//! | `meta` | own incarnation, clock's high-water mark, the authority's sequence |
//! | `records`, `head` | the authority's records, verbatim, and the head that proves them |
//! | `tokens`, `certificates` | at the registrar: what was handed out |
//! | `sessions` | the ledger: finished sessions |
//!
//! A **task** is a closure that runs within a transaction. Tasks that wait are committed together, so that many
//! of them cost one sync of the disk; each is answered only after that commit, and one that fails is undone alone.
//! WAL with `synchronous=FULL`: what was answered survives a power cut.

mod health;
mod ledger;
mod meta;
mod records;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tasuki_proto::limits;
use tokio::sync::{mpsc, oneshot};

pub use health::Health;
pub use ledger::{Counters, FinishedSession};
pub use meta::{Mark, clock_mark_of};
pub use schema::VERSION;
pub use tokens::{IssuedCertificate, StoredToken};

/// Its file's name in the data directory.
pub const FILE: &str = "relay.db";
/// Tasks that one commit takes at most.
const BATCH: usize = 256;
/// How often a store that takes nothing is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Free bytes of the disk below which it is tried whether the store still takes anything.
const LOW: u64 = 4 * 1024 * 1024;

/// Why the store did not do what was asked. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's, or the disk's behind it.
    #[error("store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The commit that the task was part of failed.
    #[error("store: the disk did not take what was written: {0}")]
    Commit(String),
    /// A row holds what this software never wrote.
    #[error("store: a row of table {0} is not sound")]
    Unsound(&'static str),
    /// Written by later software.
    #[error("store: its version is {0}, this software knows up to {VERSION}; run the newer one")]
    Newer(i64),
    /// Its thread is gone.
    #[error("store: closed")]
    Closed,
    /// Its file or thread could not be made.
    #[error("store: {0}")]
    Io(#[from] std::io::Error),
    /// It cannot be opened: path, what is wrong, what to do.
    #[error("store-failed: {0}")]
    Open(String),
}

/// What runs in the store's thread; gives what is to be done once the commit succeeded or failed.
type Task = Box<dyn FnOnce(&mut Connection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(bool)>;

/// A relay's store; clones share it. Dropping the last one ends its thread.
#[derive(Debug, Clone)]
pub struct Store {
    tasks: mpsc::Sender<Task>,
    health: Health,
}

impl Store {
    /// Opens the store in `dir`, or makes it there (0600), and brings it to [`VERSION`].
    ///
    /// # Errors
    /// When it cannot be opened, or was written by later software.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let opened = schema::open(&path).map_err(|error| match error {
            StoreError::Newer(_) => error,
            error => StoreError::Open(health::explain(&path, &error)),
        })?;
        Self::start(Opened { connection: Some(opened), unwritable: false }, Health::new(&path))
    }

    /// As [`Store::open`]; a store that is there and cannot be written to is opened all the same, to be read, and writes
    /// again once there is room. [`Store::health`] says what is wrong.
    ///
    /// # Errors
    /// As [`Store::open`], when it cannot be read either.
    pub fn open_for_run(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let error = match schema::open(&path) {
            Ok(opened) => {
                let opened = Opened { connection: Some(opened), unwritable: false };
                return Self::start(opened, Health::new(&path));
            }
            Err(error @ StoreError::Newer(_)) => return Err(error),
            Err(error) => error,
        };
        let connection = schema::open_unwritable(&path)
            .map_err(|_| StoreError::Open(health::explain(&path, &error)))?;
        let health = Health::new(&path);
        health.failed(&error);
        Self::start(Opened { connection: Some(connection), unwritable: true }, health)
    }

    fn start(opened: Opened, health: Health) -> Result<Self, StoreError> {
        let (tasks, inbox) = mpsc::channel(limits::STORE_QUEUE);
        let told = health.clone();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || work(opened, inbox, told))?;
        Ok(Self { tasks, health })
    }

    /// Whether it takes what is written.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Tries whether it still takes anything, while it does not or the disk is nearly full, until it is closed.
    pub async fn keep_trying(self) {
        let mut ticks = tokio::time::interval(RETRY);
        loop {
            ticks.tick().await;
            let free = rustix::fs::statvfs(self.health.path())
                .map_or(u64::MAX, |of| of.f_bavail.saturating_mul(of.f_frsize));
            if self.health.trouble().is_none() && free > LOW {
                continue;
            }
            // What is wrong is said by the thread.
            let _ = self.run(|rows| rows.try_to_write()).await;
            if self.tasks.is_closed() {
                return;
            }
        }
    }

    /// Copies the store of the data directory `from` into the folder `to`, which has none (0600): whole and as of one
    /// moment, also while a relay runs on it.
    ///
    /// # Errors
    /// When there is none, or the disk does not take the copy.
    pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        let to = to.join(FILE);
        schema::copy(&from.join(FILE), &to)
            .map_err(|error| StoreError::Open(health::explain(&to, &error)))
    }

    /// Runs `task` in a transaction and waits until its effect is on disk. Where it fails, or the future is
    /// dropped before the store took it, nothing changes.
    ///
    /// # Errors
    /// The task's own, or a [`StoreError`].
    pub async fn run<T, E>(
        &self,
        task: impl FnOnce(&Rows<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let health = self.health.clone();
        let task: Task = Box::new(move |connection| {
            let result = in_savepoint(connection, task);
            Box::new(move |committed| {
                let result = if committed || result.is_err() {
                    result
                } else {
                    Err(StoreError::Commit(health.trouble().unwrap_or_default()).into())
                };
                let _ = reply.send(result);
            })
        });
        self.tasks.send(task).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// The tables, within a transaction.
#[derive(Debug)]
pub struct Rows<'a> {
    connection: &'a Connection,
}

fn in_savepoint<T, E: From<StoreError>>(
    connection: &mut Connection,
    task: impl FnOnce(&Rows<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let savepoint = connection.savepoint().map_err(StoreError::from)?;
    let result = task(&Rows { connection: &savepoint });
    let closed = match &result {
        Ok(_) => savepoint.commit(),
        Err(_) => savepoint.finish(),
    };
    match closed {
        Ok(()) => result,
        Err(error) => Err(StoreError::from(error).into()),
    }
}

/// The file, and how it is open.
struct Opened {
    /// Gone only while it is opened anew.
    connection: Option<Connection>,
    /// Only to be read, as there was no room.
    unwritable: bool,
}

impl Opened {
    /// Opens it as usual when there is room again.
    fn heal(&mut self, path: &Path) {
        // Open like this, it lets nobody else in.
        drop(self.connection.take());
        match schema::open(path) {
            Ok(connection) => {
                *self = Self { connection: Some(connection), unwritable: false };
            }
            Err(_) => self.connection = schema::open_unwritable(path).ok(),
        }
    }
}

/// The store's thread.
fn work(mut opened: Opened, mut inbox: mpsc::Receiver<Task>, health: Health) {
    let mut tried = Instant::now();
    while let Some(first) = inbox.blocking_recv() {
        if (opened.unwritable || opened.connection.is_none()) && tried.elapsed() >= RETRY {
            opened.heal(health.path());
            tried = Instant::now();
        }
        // Without a connection the task is dropped, which answers that the store is closed.
        let Some(connection) = opened.connection.as_mut() else { continue };
        if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
            health.failed(&error.into());
            // What only reads can be answered all the same.
            let _ = connection.execute_batch("BEGIN");
            let changes = connection.total_changes();
            let answer = first(connection);
            let only_read = connection.total_changes() == changes;
            let _ = connection.execute_batch("ROLLBACK");
            answer(only_read);
            continue;
        }
        let changes = connection.total_changes();
        let mut answers = vec![first(connection)];
        // While the disk takes nothing, what only reads must not fail with what writes.
        let most = if health.trouble().is_some() { 1 } else { BATCH };
        while answers.len() < most
            && let Ok(task) = inbox.try_recv()
        {
            answers.push(task(connection));
        }
        let wrote = connection.total_changes() > changes;
        let committed = connection.execute_batch("COMMIT").inspect_err(|_| {
            let _ = connection.execute_batch("ROLLBACK");
        });
        let is_committed = committed.map_err(|error| health.failed(&error.into())).is_ok();
        // To read proves nothing.
        if is_committed && wrote {
            health.works();
        }
        for answer in answers {
            answer(is_committed || !wrote);
        }
    }
}
