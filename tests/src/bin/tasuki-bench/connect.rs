//! New TCP connections through each side, each with one echo: eight at once, and one at a time (P5).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Options;
use crate::bench::{Bench, Flags};
use crate::report::Report;
use crate::rounds::Figures;
use crate::side::{Side, echo_once};
use crate::site::Site;

const AT_ONCE: usize = 8;

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let time = Duration::from_secs(options.secs.unwrap_or(4));
    let mut bench = Bench::start(flags, false)?;
    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.rounds.iter() {
        bench.round(round, |site, side| {
            for (at_once, figure) in [(AT_ONCE, "8_connections_per_s"), (1, "1_connections_per_s")]
            {
                let (rate, failed) = connections(site, side, at_once, time);
                eprintln!(
                    "round {round} {:<18} {at_once} at once: {rate:.0}/s, {failed} failed",
                    side.name
                );
                ensure!(rate > 0.0, "no connection of {failed} came to anything");
                figures.put(round, &side.name, figure, rate);
                let name = figure.replace("connections_per_s", "failed_connections");
                figures.put(round, &side.name, &name, failed as f64);
            }
            Ok(())
        });
        rounds = round + 1;
    }
    let ours = bench.ours();
    let mut report = figures.report(bench.finish(rounds)?);
    report = figures.report_ratios(report, &ours, "8_connections_per_s", "8_connections");
    report = figures.report_ratios(report, &ours, "1_connections_per_s", "1_connections");
    Ok(report)
}

/// Connections a second, and how many failed.
fn connections(site: &Site, side: &Side, at_once: usize, time: Duration) -> (f64, u64) {
    let (made, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let begun = Instant::now();
    site.at_caller(|| {
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while begun.elapsed() < time {
                        match echo_once(side.echo) {
                            Ok(()) => made.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                    }
                });
            }
        });
    });
    let rate = made.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    (rate, failed.load(Ordering::Relaxed))
}
