//! Whether the store takes what is written, for those who have to know: the start, health, metrics, operators.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tasuki_proto::advice;

use super::StoreError;

/// What is wrong with a store, shared.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    trouble: Mutex<Option<String>>,
}

impl Health {
    pub(super) fn new(path: &Path) -> Self {
        Self(Arc::new(Inner { path: path.to_owned(), trouble: Mutex::default() }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Why the store takes nothing, with its path and what to do; `None` while it does.
    pub fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writing failed. What is wrong is logged when it begins, and when it becomes something else.
    pub(super) fn failed(&self, error: &StoreError) {
        let now = explain(&self.0.path, error);
        let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.as_ref() != Some(&now) {
            tracing::error!("the store cannot write: {now}");
            *trouble = Some(now);
        }
    }

    /// Something was written.
    pub(super) fn works(&self) {
        let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.take().is_some() {
            let path = self.0.path.display();
            tracing::info!(%path, "the store writes again");
        }
    }
}

/// `PATH: what: what to do`.
pub(super) fn explain(path: &Path, error: &StoreError) -> String {
    let path = path.display();
    let kind = |kind: std::io::ErrorKind| advice::file(&kind.into());
    match error {
        StoreError::Io(error) => format!("{path}: {error}: {}", advice::file(error)),
        StoreError::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) => {
            use rusqlite::ErrorCode as Code;
            use std::io::ErrorKind as Kind;
            let advice = match failure.code {
                Code::DiskFull => kind(Kind::StorageFull),
                Code::ReadOnly => kind(Kind::ReadOnlyFilesystem),
                Code::PermissionDenied => kind(Kind::PermissionDenied),
                Code::CannotOpen => "see whether its disk is full, and its owner and mode",
                Code::DatabaseBusy | Code::DatabaseLocked => {
                    "another process uses it: see whether a second relay or a verb hangs"
                }
                Code::DatabaseCorrupt | Code::NotADatabase => {
                    "it is damaged: restore a backup (docs/operations.md)"
                }
                _ => "see whether its disk is full (df), and the kernel's log",
            };
            format!("{path}: {error}: {advice}")
        }
        StoreError::Sqlite(_) => {
            format!("{path}: {error}: see whether its disk is full (df)")
        }
        other => format!("{path}: {other}"),
    }
}
