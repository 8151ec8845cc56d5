//! For how long the other end of a TCP connection has answered nothing while something was sent to it.

use std::time::{Duration, Instant};

/// What was seen of one connection.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unanswered {
    since: Option<Instant>,
}

impl Unanswered {
    /// It was looked at: whether something waits for an answer and was sent again. Returns whether that has been so, each
    /// time that it was looked at, for `limit`.
    pub fn handle(&mut self, is_unanswered: bool, limit: Duration, now: Instant) -> bool {
        if !is_unanswered {
            self.since = None;
            return false;
        }
        now.saturating_duration_since(*self.since.get_or_insert(now)) >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_begins_it_anew() {
        #[allow(clippy::disallowed_methods, reason = "any point in time does")]
        let start = Instant::now();
        let (limit, at) = (Duration::from_secs(10), |s| start + Duration::from_secs(s));
        let mut seen = Unanswered::default();
        assert!(!seen.handle(false, limit, at(0)));
        assert!(!seen.handle(true, limit, at(20)));
        assert!(!seen.handle(true, limit, at(29)));
        assert!(!seen.handle(false, limit, at(30)));
        assert!(!seen.handle(true, limit, at(31)));
        assert!(seen.handle(true, limit, at(41)));
    }
}
