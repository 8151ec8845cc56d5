//! One TCP stream of iperf3 through each side, and what it costs the processes in the middle and at the ends
//! (P1, P2, P3).

use anyhow::Result;

use crate::Options;
use crate::bench::{Bench, Flags};
use crate::procs::cpu_seconds;
use crate::report::Report;
use crate::rounds::Figures;
use crate::site::iperf;

pub(crate) const RATE: &str = "gbit_per_s";
const RELAY_COST: &str = "relay_cpu_s_per_gb";
const ENDS_COST: &str = "ends_cpu_s_per_gb";

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let seconds = options.secs.unwrap_or(5);
    let mut bench = Bench::start(flags, true)?;
    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.rounds.iter() {
        bench.round(round, |site, side| {
            let before = [&side.relays, &side.ends].map(|pids| cpu_seconds(pids));
            let moved = iperf(site, side.bulk, seconds)?;
            let after = [&side.relays, &side.ends].map(|pids| cpu_seconds(pids));
            let rate = moved.bits_per_second / 1e9;
            let cost = |n: usize| (after[n] - before[n]) / (moved.bytes / 1e9);
            figures.put(round, &side.name, RATE, rate);
            if !side.relays.is_empty() {
                figures.put(round, &side.name, RELAY_COST, cost(0));
                figures.put(round, &side.name, ENDS_COST, cost(1));
            }
            let (relay, ends) = (cost(0), cost(1));
            eprintln!(
                "round {round} {:<18} {rate:6.2} Gbit/s, CPU-s per GB: relay {relay:.3}, ends {ends:.3}",
                side.name
            );
            Ok(())
        });
        rounds = round + 1;
    }
    let ours = bench.ours();
    let mut report = figures.report(bench.finish(rounds)?);
    report = figures.report_ratios(report, &ours, RATE, "rate");
    report = figures.report_ratios(report, &ours, RELAY_COST, "relay_cpu");
    Ok(report)
}
