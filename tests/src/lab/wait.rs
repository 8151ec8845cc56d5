//! Waiting for a state, with a deadline.

use std::time::{Duration, Instant};

/// Between two looks.
pub const POLL: Duration = Duration::from_millis(20);
/// For what takes a moment: generous, since a debug build shares two cores with other tests.
pub const SOON: Duration = Duration::from_secs(20);

/// Looks every [`POLL`] until `probe` gives `Ok`.
///
/// # Panics
/// With `what` and the last reason, when `limit` is over.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(reason) if start.elapsed() >= limit => {
                panic!("{what}: not within {limit:?}; last: {reason}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Runs `action` and says how long it took.
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = action();
    (value, start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_waited_for() {
        let mut looks = 0;
        let value = eventually("three looks", SOON, || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err(format!("{looks}")) }
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "last: never")]
    fn what_never_comes_fails_with_its_reason() {
        eventually::<()>("a wonder", Duration::from_millis(30), || Err("never".into()));
    }
}
