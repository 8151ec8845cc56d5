//! Long and lossy lines in virtual time: what congestion control makes of them, and how it shares them.

use std::time::Duration;

use anyhow::Result;
use tasuki_tests::linesim::{Control, Line, run};

use crate::Options;
use crate::report::Report;

/// Mbit/s, round trip in ms, what the queue holds in ms, lost by chance.
const LINES: [(u64, u64, u64, f64); 11] = [
    (100, 50, 50, 0.0),
    (100, 50, 50, 0.001),
    (100, 50, 50, 0.01),
    (100, 50, 5, 0.0),
    (20, 50, 50, 0.001),
    (20, 50, 50, 0.01),
    (20, 20, 300, 0.0),
    (300, 10, 10, 0.01),
    (400, 80, 80, 0.001),
    (1_000, 100, 100, 0.0),
    (1_000, 1, 5, 0.0),
];

/// What shares each line.
const FLOWS: [(&str, &[Control]); 4] = [
    ("cubic", &[Control::Cubic]),
    ("tasuki", &[Control::Ours]),
    ("cubic_and_tasuki", &[Control::Cubic, Control::Ours]),
    ("two_tasuki", &[Control::Ours, Control::Ours]),
];

pub(crate) fn run_all(options: &Options) -> Result<Report> {
    let seconds = options.secs.unwrap_or(25);
    let mut report = Report::default();
    for (mbit, rtt, queue, loss) in LINES {
        let rate = mbit * 1_000_000;
        let line = Line {
            rate,
            rtt: Duration::from_millis(rtt),
            queue: rate / 8 * queue / 1_000,
            loss,
            seed: options.seed,
        };
        let name = format!("{mbit}mbit_{rtt}ms_queue{queue}ms_loss{}ppm", (loss * 1e6) as u64);
        for (flows, controls) in FLOWS {
            for (n, flow) in run(line, controls, seconds / 5, seconds).iter().enumerate() {
                let of = if controls.len() > 1 { format!("_{}", n + 1) } else { String::new() };
                report = report.with(&format!("{name}_{flows}{of}_mbit_per_s"), flow.rate / 1e6);
                anyhow::ensure!(flow.ended.is_none(), "{name}, {flows}: {:?}", flow.ended);
            }
        }
    }
    Ok(report)
}
