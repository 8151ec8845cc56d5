//! Round-trip times that change rarely: smoothed, then said in steps.

/// The shortest time that is told apart, µs: below it the noise is larger.
const FLOOR_US: u32 = 100;

/// A smoothed round-trip time (RFC 6298, section 2: an eighth of each new one) and the step that is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rtt {
    smoothed_us: Option<u32>,
    step_us: Option<u32>,
}

impl Rtt {
    /// Takes in a measurement, µs.
    pub(super) fn measured(&mut self, us: u32) {
        let smoothed = match self.smoothed_us {
            None => us,
            Some(before) => ((u64::from(before) * 7 + u64::from(us)) / 8) as u32,
        };
        self.smoothed_us = Some(smoothed);
        let step = u64::from(self.step_us.unwrap_or(0));
        let seen = u64::from(smoothed.max(FLOOR_US));
        // A step holds until the time is a quarter away from it.
        if step == 0 || seen * 4 > step * 5 || seen * 5 < step * 4 {
            self.step_us = Some(on_grid(smoothed));
        }
    }

    /// The smoothed time, µs; 0 before the first measurement.
    pub(super) fn smoothed_us(&self) -> u32 {
        self.smoothed_us.unwrap_or(0)
    }

    /// What is said, µs.
    pub(super) fn step(&self) -> u32 {
        self.step_us.unwrap_or(FLOOR_US)
    }
}

/// The one of 100, 125, 156, ... µs (each a quarter more) that is next to `us`.
fn on_grid(us: u32) -> u32 {
    let mut step = FLOOR_US;
    while let Some(next) = step.checked_add(step / 4)
        && next - next / 8 <= us
    {
        step = next;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_a_quarter_apart_and_hold_against_noise() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.step(), FLOOR_US);
        rtt.measured(20_000);
        let first = rtt.step();
        assert!((18_000..=22_000).contains(&first), "{first}");
        for n in 0..1000_u32 {
            rtt.measured(if n % 2 == 0 { 18_000 } else { 22_000 });
            assert_eq!(rtt.step(), first);
        }
        for _ in 0..100 {
            rtt.measured(40_000);
        }
        assert!(rtt.step() > 30_000);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut rtt = Rtt::default();
        for us in [u32::MAX, 0, u32::MAX, u32::MAX, 0, 0, 1] {
            rtt.measured(us);
            assert!(rtt.step() >= FLOOR_US);
        }
    }
}
