//! A token bucket: so many at once, so many a second.

use std::time::{Duration, Instant};

/// How much somebody may do: up to a burst at once, and again as time passes.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    /// One that holds all of `burst`.
    pub fn full(burst: u32, now: Instant) -> Self {
        Self { left: f64::from(burst), at: now }
    }

    /// Takes one, where one is left after what `per_second` filled in since the last time.
    pub fn take(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.left = self.level(per_second, burst, now);
        self.at = self.at.max(now);
        let may = self.left >= 1.0;
        self.left -= if may { 1.0 } else { 0.0 };
        may
    }

    /// How long after the last look one is left again.
    pub fn wait(&self, per_second: u32) -> Duration {
        Duration::from_secs_f64((1.0 - self.left).max(0.0) / f64::from(per_second.max(1)))
    }

    /// Whether it says nothing that a new one does not say.
    pub fn is_full(&self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.level(per_second, burst, now) >= f64::from(burst)
    }

    fn level(&self, per_second: u32, burst: u32, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + since * f64::from(per_second)).min(f64::from(burst))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests need an instant to start from")]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::full(100, start);
        assert!(bucket.is_full(10, 100, start));
        assert_eq!((0..1000).filter(|_| bucket.take(10, 100, start)).count(), 100);
        assert!(bucket.take(10, 100, start + Duration::from_millis(101)));
        assert!(!bucket.take(10, 100, start + Duration::from_millis(101)));
        // A clock that stands still or goes back fills nothing.
        assert!(!bucket.take(10, 100, start));
        assert!(!bucket.is_full(10, 100, start + Duration::from_secs(9)));
        assert!(bucket.is_full(10, 100, start + Duration::from_secs(11)));
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| bucket.take(10, 100, later)).count(), 100);
    }
}
