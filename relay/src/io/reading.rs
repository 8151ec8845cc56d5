//! How fast one peer is read.
#![allow(clippy::disallowed_methods, reason = "the rate is told the time")]

use std::time::Instant;

use crate::core::bucket::Bucket;

/// Pauses the reader of one peer that says more than it may per second: its messages wait at the peer, and nobody else
/// waits for them.
#[derive(Debug)]
pub(super) struct Reading {
    per_second: u32,
    bucket: Bucket,
}

impl Reading {
    /// So many messages per second, on average and in a burst.
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second, bucket: Bucket::full(per_second, Instant::now()) }
    }

    /// Waits until one more message may be handed over.
    pub(super) async fn pause(&mut self) {
        let rate = self.per_second;
        while !self.bucket.take(rate, rate, Instant::now()) {
            tokio::time::sleep(self.bucket.wait(rate)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_burst_passes_and_then_the_rate() {
        let mut reading = Reading::new(1_000);
        let start = Instant::now();
        for _ in 0..1_000 {
            reading.pause().await;
        }
        let burst = start.elapsed();
        for _ in 0..100 {
            reading.pause().await;
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(95), "{burst:?}, then {took:?}");
    }
}
