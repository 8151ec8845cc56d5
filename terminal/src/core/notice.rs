//! How often something that happens again and again is said.

use std::time::{Duration, Instant};

/// It is said again after this long at the earliest.
pub const AGAIN: Duration = Duration::from_secs(10);

/// Decides when to say that something happened: at once, then at most every [`AGAIN`].
#[derive(Debug, Clone, Default)]
pub struct Notice {
    said: Option<Instant>,
    unsaid: u64,
}

impl Notice {
    /// It happened once more. Returns how often since it was last said, when it is time to say so.
    pub fn handle(&mut self, now: Instant) -> Option<u64> {
        self.handle_times(1, now)
    }

    /// As [`Notice::handle`], for several times at once.
    pub fn handle_times(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.unsaid += times;
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < AGAIN) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_with_what_came_meanwhile() {
        #[allow(clippy::disallowed_methods, reason = "any point in time does")]
        let start = Instant::now();
        let mut notice = Notice::default();
        assert_eq!(notice.handle(start), Some(1));
        assert!((1..100).all(|ms| notice.handle(start + Duration::from_millis(ms)).is_none()));
        assert_eq!(notice.handle(start + AGAIN), Some(100));
        assert_eq!(notice.handle(start), None, "a clock that goes back");
    }
}
