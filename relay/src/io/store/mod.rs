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

mod ledger;
mod meta;
mod records;
mod schema;
#[cfg(test)]
mod tests;
mod tokens;

use std::path::Path;

use rusqlite::Connection;
use tasuki_proto::limits;
use tokio::sync::{mpsc, oneshot};

pub use ledger::{Counters, FinishedSession};
pub use meta::{Mark, clock_mark_of};
pub use schema::VERSION;
pub use tokens::{IssuedCertificate, StoredToken};

/// Its file's name in the data directory.
pub const FILE: &str = "relay.db";
/// Tasks that one commit takes at most.
const BATCH: usize = 256;

/// Why the store did not do what was asked. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's, or the disk's behind it.
    #[error("store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The commit that the task was part of failed.
    #[error("store: the disk did not take what was written")]
    Commit,
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
}

/// What runs in the store's thread; gives what is to be done once the commit succeeded or failed.
type Task = Box<dyn FnOnce(&mut Connection) -> Answer + Send>;
type Answer = Box<dyn FnOnce(bool)>;

/// A relay's store; clones share it. Dropping the last one ends its thread.
#[derive(Debug, Clone)]
pub struct Store {
    tasks: mpsc::Sender<Task>,
}

impl Store {
    /// Opens the store in `dir`, or makes it there (0600), and brings it to [`VERSION`].
    ///
    /// # Errors
    /// When it cannot be opened, or was written by later software.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let connection = schema::open(&dir.join(FILE))?;
        let (tasks, inbox) = mpsc::channel(limits::STORE_QUEUE);
        std::thread::Builder::new().name("store".into()).spawn(move || work(connection, inbox))?;
        Ok(Self { tasks })
    }

    /// Copies the store of the data directory `from` into the folder `to`, which has none (0600): whole and as of one
    /// moment, also while a relay runs on it.
    ///
    /// # Errors
    /// When there is none, or the disk does not take the copy.
    pub fn copy(from: &Path, to: &Path) -> Result<(), StoreError> {
        schema::copy(&from.join(FILE), &to.join(FILE))
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
        let task: Task = Box::new(move |connection| {
            let result = in_savepoint(connection, task);
            Box::new(move |committed| {
                let result = if committed || result.is_err() {
                    result
                } else {
                    Err(StoreError::Commit.into())
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

/// The store's thread.
fn work(mut connection: Connection, mut inbox: mpsc::Receiver<Task>) {
    while let Some(first) = inbox.blocking_recv() {
        if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
            tracing::error!(%error, "the store cannot begin a transaction");
            first(&mut connection)(false);
            continue;
        }
        let mut answers = vec![first(&mut connection)];
        while answers.len() < BATCH
            && let Ok(task) = inbox.try_recv()
        {
            answers.push(task(&mut connection));
        }
        let committed = connection.execute_batch("COMMIT").inspect_err(|error| {
            tracing::error!(%error, "the store cannot write");
            let _ = connection.execute_batch("ROLLBACK");
        });
        for answer in answers {
            answer(committed.is_ok());
        }
    }
}
