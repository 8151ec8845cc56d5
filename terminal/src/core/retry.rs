//! When to call again after a session ended or a call was refused.

use std::time::Duration;

use tasuki_proto::RefusalCode;

/// The first wait.
const FIRST: Duration = Duration::from_millis(100);
/// The longest wait where trying again can help by itself.
const MOST: Duration = Duration::from_secs(5);
/// The wait where somebody has to change something first.
const SLOW: Duration = Duration::from_secs(30);
/// A session that lived this long counts as a success: waits begin small again (a peer that accepts and drops at
/// once must not be called in a tight loop).
const STABLE: Duration = Duration::from_secs(10);

/// What to do after a refused call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Wait and call again.
    Again(Duration),
    /// Trying again cannot help, and it never worked.
    GiveUp,
}

/// Decides for one forwarded port.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    ever_worked: bool,
    failures: u32,
}

impl Retry {
    /// A call worked and its session lived for `lived`; the wait before the next call. `jitter` is random, 0 to 1.
    pub fn handle_end(&mut self, lived: Duration, jitter: f64) -> Duration {
        self.ever_worked = true;
        if lived >= STABLE {
            self.failures = 0;
        }
        self.wait(jitter)
    }

    /// A call was refused. `jitter` is random, 0 to 1.
    pub fn handle_refusal(&mut self, code: RefusalCode, jitter: f64) -> Verdict {
        match (code.retry_helps(), self.ever_worked) {
            (true, _) => Verdict::Again(self.wait(jitter)),
            (false, true) => Verdict::Again(SLOW.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)),
            (false, false) => Verdict::GiveUp,
        }
    }

    fn wait(&mut self, jitter: f64) -> Duration {
        let most = FIRST.saturating_mul(1 << self.failures.min(16)).min(MOST);
        self.failures = self.failures.saturating_add(1);
        most.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_refusal_for_good_gives_up_and_later_ones_do_not() {
        let mut retry = Retry::default();
        assert_eq!(retry.handle_refusal(RefusalCode::UnknownTarget, 0.5), Verdict::GiveUp);
        assert!(matches!(
            retry.handle_refusal(RefusalCode::TargetLoggedOut, 0.5),
            Verdict::Again(_)
        ));
        assert_eq!(retry.handle_refusal(RefusalCode::UnknownTarget, 0.5), Verdict::GiveUp);
        retry.handle_end(Duration::ZERO, 0.5);
        assert_eq!(retry.handle_refusal(RefusalCode::UnknownTarget, 1.0), Verdict::Again(SLOW));
    }

    #[test]
    fn waits_grow_to_a_cap_and_shrink_after_a_stable_session() {
        let mut retry = Retry::default();
        let waits: Vec<_> = (0..40).map(|_| retry.handle_end(Duration::ZERO, 1.0)).collect();
        assert_eq!(waits[0], FIRST);
        assert_eq!(waits[1], FIRST * 2);
        assert_eq!(waits[39], MOST);
        assert_eq!(retry.handle_end(STABLE, 0.0), FIRST / 2);
    }
}
