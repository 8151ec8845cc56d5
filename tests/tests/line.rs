//! Congestion control over long, lossy and short lines, in virtual time.
#![allow(clippy::unwrap_used, reason = "tests act")]

use std::time::Duration;

use tasuki_tests::linesim::{Control, Flow, Line, run};

use Control::{Cubic, Ours};

const SEED: u64 = 1;

/// A line of so many Mbit/s, whose queue holds what it sends in so long.
fn line(mbit: u64, rtt_us: u64, queue_ms: u64, loss: f64) -> Line {
    let rate = mbit * 1_000_000;
    let queue = rate / 8 * queue_ms / 1_000;
    Line { rate, rtt: Duration::from_micros(rtt_us), queue, loss, seed: SEED }
}

/// The rates of the flows as shares of the line, from the fifth second to the 25th.
fn shares(line: Line, controls: &[Control]) -> Vec<f64> {
    let flows = run(line, controls, 5, 20);
    for flow in &flows {
        assert_eq!(flow.ended, None);
    }
    let shares: Vec<f64> = flows.iter().map(|flow| flow.rate / line.rate as f64).collect();
    println!("{line:?} {controls:?}: {shares:.2?}");
    shares
}

#[test]
fn losses_by_chance_are_not_taken_for_congestion() {
    for (mbit, loss) in [(100, 0.001), (100, 0.01), (20, 0.01)] {
        let line = line(mbit, 50_000, 50, loss);
        let (ours, cubic) = (shares(line, &[Ours])[0], shares(line, &[Cubic])[0]);
        assert!(ours >= 0.75, "{ours}");
        // The line is one on which it matters.
        assert!(cubic <= 0.5 * ours, "{cubic}");
    }
}

#[test]
fn without_such_losses_it_is_cubic() {
    for line in [line(100, 50_000, 50, 0.0), line(20, 20_000, 300, 0.0), line(100, 50_000, 5, 0.0)]
    {
        let (ours, cubic) = (shares(line, &[Ours])[0], shares(line, &[Cubic])[0]);
        assert!((0.9..1.2).contains(&(ours / cubic)), "{ours} {cubic}");
    }
}

#[test]
fn it_shares_a_line_with_cubic_and_with_its_like() {
    for line in [line(100, 50_000, 50, 0.0), line(100, 50_000, 5, 0.0), line(20, 20_000, 300, 0.0)]
    {
        let with_cubic = shares(line, &[Cubic, Ours]);
        // The one that came first, and the late one, which a deep queue holds back.
        assert!(with_cubic[0] >= 0.2 && with_cubic[1] >= 0.1, "{with_cubic:?}");
        let (alike, cubics) = (shares(line, &[Ours, Ours]), shares(line, &[Cubic, Cubic]));
        let least = |shares: &[f64]| shares.iter().copied().fold(1.0, f64::min);
        assert!(least(&alike) >= 0.8 * least(&cubics), "{alike:?} {cubics:?}");
    }
}

/// A line without a queue that loses what is too much, as a policer does.
#[test]
fn many_losses_are_congestion() {
    let line = line(100, 50_000, 50, 0.05);
    let (ours, cubic) = (shares(line, &[Ours])[0], shares(line, &[Cubic])[0]);
    assert!(ours <= 6.0 * cubic, "{ours} {cubic}");
}

#[test]
fn near_peers_do_not_fill_the_queue_between_them() {
    let line = line(1_000, 200, 20, 0.0);
    let [ours, cubic] =
        [Ours, Cubic].map(|control| -> Flow { run(line, &[control], 1, 2).remove(0) });
    assert!(ours.rate >= 0.9 * line.rate as f64, "{}", ours.rate);
    assert!(ours.rtt <= cubic.rtt * 6 / 10, "{:?} {:?}", ours.rtt, cubic.rtt);
}

/// A stream's window leaves no room for the gaps at which quinn gives a connection up (architecture 7).
#[test]
fn a_queue_that_overflows_at_full_speed_ends_no_connection() {
    for seed in 1..4 {
        let line = Line { seed, ..line(400, 80_000, 10, 0.0) };
        let flows = run(line, &[Ours, Ours], 1, 6);
        assert!(flows.iter().all(|flow| flow.ended.is_none()), "{flows:?}");
    }
}
