//! Two processes with one relay's identity, for people: a copy of a data directory runs somewhere else.
//!
//! The neighbours decide which of the two they stay linked with ([`super::links`]); here is what this relay saw of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tasuki_proto::{RelayName, limits};

use super::admin::TwinView;

/// How long it is shown after it was seen last: longer than the back-off of the one that gives way.
const SHOWN: Duration = Duration::from_secs(15 * 60);
/// What is seen again within this time is not logged again.
const QUIET: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Twin {
    what: String,
    seen: Instant,
    seen_ms: u64,
    logged: Instant,
}

/// The relays of which two processes were seen, at most [`limits::TWINS_SHOWN`].
#[derive(Debug, Default)]
pub(super) struct Twins {
    twin_by_name: BTreeMap<RelayName, Twin>,
}

impl Twins {
    /// Notes that two processes have the identity of `name`; returns whether that is worth a line in the log.
    pub(super) fn note(
        &mut self,
        name: RelayName,
        what: String,
        now: Instant,
        wall_ms: u64,
    ) -> bool {
        let before = self.twin_by_name.remove(&name).map(|twin| twin.logged);
        let is_news = before.is_none_or(|at| now.saturating_duration_since(at) >= QUIET);
        if self.twin_by_name.len() >= limits::TWINS_SHOWN {
            let oldest = self.twin_by_name.iter().min_by_key(|(_, twin)| twin.seen);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.twin_by_name.remove(&oldest);
            }
        }
        let logged = before.filter(|_| !is_news).unwrap_or(now);
        self.twin_by_name.insert(name, Twin { what, seen: now, seen_ms: wall_ms, logged });
        is_news
    }

    /// What was seen lately, ordered by name.
    pub(super) fn views(&self, now: Instant) -> Vec<TwinView> {
        let lately = |twin: &Twin| now.saturating_duration_since(twin.seen) < SHOWN;
        self.twin_by_name
            .iter()
            .filter(|(_, twin)| lately(twin))
            .map(|(name, twin)| TwinView {
                relay: name.clone(),
                what: twin.what.clone(),
                seen_at: twin.seen_ms,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_are_shown_for_a_while_logged_once_a_minute_and_bounded() {
        #[allow(clippy::disallowed_methods, reason = "only differences are used")]
        let begun = Instant::now();
        let mut twins = Twins::default();
        let mut note = |name: &str, after: u64| {
            let at = begun + Duration::from_secs(after);
            twins.note(RelayName::new(name).unwrap(), "what".to_owned(), at, after)
        };
        assert!(note("r2", 0));
        assert!(!note("r2", 59));
        assert!(note("r2", 60));
        assert!(!note("r2", 61));
        for number in 0..limits::TWINS_SHOWN {
            note(&format!("x{number}"), 62);
        }
        let shown = twins.views(begun + Duration::from_secs(70));
        assert_eq!(shown.len(), limits::TWINS_SHOWN);
        assert!(shown.iter().all(|twin| twin.relay.as_str() != "r2"), "the oldest made room");
        assert_eq!(twins.views(begun + Duration::from_secs(62) + SHOWN), []);
    }
}
