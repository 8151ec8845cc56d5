//! How many of something may happen per second: a token bucket.

use std::time::{Duration, Instant};

/// Lets `per_second` events through on average, and as many in one burst.
#[derive(Debug, Clone)]
pub struct Budget {
    per_second: u32,
    tokens: f64,
    filled_at: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self { per_second, tokens: f64::from(per_second), filled_at: now }
    }

    /// Takes one; `false` when there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        let most = f64::from(self.per_second);
        self.tokens = (self.tokens + passed.as_secs_f64() * most).min(most);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        #[allow(clippy::disallowed_methods, reason = "any point in time does")]
        let start = Instant::now();
        let mut budget = Budget::new(10, start);
        assert_eq!((0..20).filter(|_| budget.take(start)).count(), 10);
        let later = start + Duration::from_millis(300);
        assert_eq!((0..20).filter(|_| budget.take(later)).count(), 3);
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..20).filter(|_| budget.take(much_later)).count(), 10);
        assert!(!budget.take(start));
    }
}
