//! The time that certificates are checked against.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

/// A node's clock for certificates: the latest of system clock, persisted high-water mark and build time, so that
/// a machine that starts in 1970 does not refuse the whole mesh, and one whose clock was set back does not accept
/// what had ended. Clones share the mark. It never decides an order (invariant 5).
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Seconds since 1970; `None` asks the system.
    manual: Option<AtomicU64>,
    /// Seconds since 1970.
    mark: AtomicU64,
}

fn built_secs() -> u64 {
    env!("TASUKI_BUILT_SECS").parse().unwrap_or(0)
}

impl Clock {
    /// The system's clock, never before `mark_secs`, the mark that was persisted last.
    pub fn system(mark_secs: u64) -> Self {
        Self(Arc::new(Inner { manual: None, mark: mark_secs.max(built_secs()).into() }))
    }

    /// A clock that stands until it is [set](Clock::set), for tests and simulations.
    pub fn manual(now_secs: u64) -> Self {
        Self(Arc::new(Inner { manual: Some(now_secs.into()), mark: 0.into() }))
    }

    /// Sets a manual clock; does nothing to the system's.
    pub fn set(&self, now_secs: u64) {
        if let Some(manual) = &self.0.manual {
            manual.store(now_secs, Ordering::Relaxed);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that others are given")]
    fn source_secs(&self) -> u64 {
        match &self.0.manual {
            Some(manual) => manual.load(Ordering::Relaxed),
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        }
    }

    /// Seconds since 1970.
    pub fn now_secs(&self) -> u64 {
        self.source_secs().max(self.0.mark.load(Ordering::Relaxed))
    }

    /// Seconds by which the system's clock is behind what is known to have passed; 0 when it is not. Worth a
    /// warning above a few minutes.
    pub fn behind_secs(&self) -> u64 {
        self.now_secs() - self.source_secs().min(self.now_secs())
    }

    /// Moves the mark to the present and returns it, to be persisted; about once an hour is enough.
    ///
    /// `not_after_secs` is the end of the node's own certificate: the mark never passes it, so that a clock that
    /// once was years ahead leaves a node that renews its certificate, not one that refuses everybody.
    pub fn advance_mark(&self, not_after_secs: u64) -> u64 {
        let mark = self.source_secs().min(not_after_secs);
        self.0.mark.fetch_max(mark, Ordering::Relaxed).max(mark)
    }
}

impl rustls::time_provider::TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.now_secs())))
    }
}
