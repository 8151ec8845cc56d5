//! How fast a session may be: a token bucket for each of its directions (GCRA, ITU-T I.371), in one word.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What a bucket holds, ns at the session's rate.
const DEPTH_NS: u64 = 100_000_000;
/// And at least so many bytes: what the kernel joins is one burst.
const DEPTH_BYTES: u64 = 64 * 1024;

/// The rate that each direction of each session may have; at first there is none that they may not.
#[derive(Debug, Default)]
pub struct Pace(AtomicU32);

impl Pace {
    /// From now on `mbit_s` (10^6 bits a second, heads of frames included), or as fast as it goes.
    pub fn set(&self, mbit_s: Option<u32>) {
        self.0.store(mbit_s.unwrap_or(0), Ordering::Relaxed);
    }

    /// How many of `bytes`, in frames of `stride`, may pass now; they are taken from the bucket. `due_ns` is the bucket: when
    /// it will be full again. Probes find as much room again behind an empty bucket, or a path that is as busy as it may be
    /// would seem dead. Threads that take from one bucket at the same moment may let a few more pass.
    #[inline]
    pub(super) fn take(
        &self,
        due_ns: &AtomicU64,
        (bytes, stride): (usize, usize),
        probe: bool,
        now_ns: u64,
    ) -> usize {
        let frames = (bytes as u64, stride as u64);
        match self.0.load(Ordering::Relaxed) {
            0 => bytes,
            mbit_s => take(due_ns, mbit_s.into(), frames, probe, now_ns) as usize,
        }
    }
}

fn take(
    due_ns: &AtomicU64,
    mbit_s: u64,
    (bytes, stride): (u64, u64),
    probe: bool,
    now_ns: u64,
) -> u64 {
    // A byte takes 8,000 ns at one megabit a second.
    let time = |bytes: u64| bytes * 8_000 / mbit_s;
    let full = due_ns.load(Ordering::Relaxed).max(now_ns);
    let depth = DEPTH_NS.max(time(DEPTH_BYTES)) << u32::from(probe);
    let room = (now_ns + depth).saturating_sub(full);
    let fits = room.saturating_mul(mbit_s) / 8_000;
    let passes = if bytes <= fits { bytes } else { fits / stride * stride };
    due_ns.store(full + time(passes), Ordering::Relaxed);
    passes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What passes of `offered` bytes in frames of 1,000, given each millisecond for a second.
    fn passed(pace: &Pace, due_ns: &AtomicU64, offered: usize, from_ms: u64) -> usize {
        (from_ms..from_ms + 1_000)
            .map(|ms| pace.take(due_ns, (offered, 1_000), false, ms * 1_000_000))
            .sum()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (pace, due_ns) = (Pace::default(), AtomicU64::new(0));
        assert_eq!(passed(&pace, &due_ns, 64_000, 1), 64_000_000);
        pace.set(Some(80));
        // 10,000 bytes a millisecond, and what the bucket held: a tenth of a second's.
        assert_eq!(passed(&pace, &due_ns, 64_000, 2_000), 11_000_000 - 10_000);
        assert_eq!(passed(&pace, &due_ns, 64_000, 3_000), 10_000_000);
        // Less than the rate passes whole, and what is left over is kept for no longer than the bucket is deep.
        assert_eq!(passed(&pace, &due_ns, 5_000, 4_000), 5_000_000);
        assert_eq!(passed(&pace, &due_ns, 64_000, 9_000), 11_000_000 - 10_000);
        pace.set(None);
        assert_eq!(passed(&pace, &due_ns, 64_000, 10_000), 64_000_000);
    }

    #[test]
    fn a_slow_session_gets_a_joined_burst_and_whole_frames() {
        let (pace, due_ns) = (Pace::default(), AtomicU64::new(0));
        pace.set(Some(1));
        let take = |bytes, probe, now| pace.take(&due_ns, (bytes, 1_000), probe, now);
        assert_eq!((take(64_000, false, 1), take(64_000, false, 2)), (64_000, 1_000));
        assert_eq!(take(64_000, false, 3), 0);
        // Probes still pass, but not for ever.
        assert_eq!((take(64_000, true, 4), take(64_000, true, 5)), (64_000, 2_000));
        assert_eq!((take(1_000, true, 6), take(64_000, false, 7)), (0, 0));
        // The largest rate divides by no zero and overflows nowhere.
        pace.set(Some(u32::MAX));
        assert_eq!(take(64_000, false, u64::MAX / 4), 64_000);
    }
}
