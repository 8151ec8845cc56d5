//! How many of something may happen per second: a token bucket.

use std::time::{Duration, Instant};

/// Lets `per_second` events through on average, and as many in one burst.
#[derive(Debug, Clone)]
pub struct Budget {
    per_second: f64,
    most: f64,
    tokens: f64,
    filled_at: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(per_second: u32, now: Instant) -> Self {
        Self::with_burst(f64::from(per_second), per_second, now)
    }

    /// A full bucket that lets one event through each `period` on average, and `burst` at once.
    pub fn slow(period: Duration, burst: u32, now: Instant) -> Self {
        Self::with_burst(1.0 / period.as_secs_f64(), burst, now)
    }

    /// A full bucket that lets `per_second` events through on average, and `burst` at once.
    pub fn with_burst(per_second: f64, burst: u32, now: Instant) -> Self {
        let most = f64::from(burst);
        Self { per_second, most, tokens: most, filled_at: now }
    }

    /// Whether it is full, as at the beginning.
    pub fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens + passed * self.per_second >= self.most
    }

    /// Takes one; `false` when there is none left.
    pub fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.most);
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
        let mut slow = Budget::slow(Duration::from_secs(2), 3, start);
        assert_eq!((0..9).filter(|_| slow.take(start)).count(), 3);
        assert!(!slow.is_full(start + Duration::from_secs(5)));
        assert!(slow.is_full(start + Duration::from_secs(6)));
        assert_eq!((0..9).filter(|_| slow.take(start + Duration::from_secs(2))).count(), 1);
    }
}
