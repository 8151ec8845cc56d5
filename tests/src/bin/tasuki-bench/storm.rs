//! A storm: thousands of terminals log in at once while one bulk transfer runs (P8).

use std::time::Duration;

use anyhow::{Result, ensure};
use tasuki_tests::lab::TerminalSpec;
use tasuki_tests::lab::wait::SOON;

use crate::Options;
use crate::flood::{Flood, sink};
use crate::helper::number;
use crate::idle::{ALL_OUT, gather, log_in, wait_logged_out};
use crate::ours::relay_for_a_crowd;
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags};
use crate::site::Site;

/// How long a storm may take; who is not in by then has failed.
const ALL_IN: Duration = Duration::from_secs(90);
const SIDE: &str = "storm";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    rounds: RoundFlags,
    /// Terminals that log in at once.
    #[arg(long, default_value_t = 10_000)]
    terminals: usize,
    /// UDP sockets that they share.
    #[arg(long, default_value_t = 32)]
    sockets: usize,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let calm = Duration::from_secs(options.secs.unwrap_or(5));
    let site = Site::new(false, 1)?;
    let mut mesh = relay_for_a_crowd(&site);
    let mut herd = gather(&mesh, flags.terminals, flags.sockets)?;
    let (sink, meter) = sink();
    mesh.add_terminal(
        TerminalSpec::new("callee")
            .flags(&["--direct", "never"])
            .offers("bulk", &format!("tcp://{}", sink.address())),
    );
    mesh.add_terminal(TerminalSpec::new("caller").flags(&["--direct", "never"]));
    mesh.wait_state("callee", "logged-in", SOON);
    mesh.wait_state("caller", "logged-in", SOON);
    let (_forward, address) = mesh.terminal("caller").forward("callee/bulk");
    let flood = Flood::start(address)?;
    meter.wait_for_first(SOON)?;
    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.rounds.iter() {
        let before = meter.watch(|| std::thread::sleep(calm));
        let mut answer = Ok(serde_json::Value::Null);
        let during = meter.watch(|| {
            answer = log_in(&mut herd, flags.terminals, ALL_IN);
        });
        let answer = answer?;
        ensure!(flood.runs(), "the bulk transfer broke during the storm");
        let alive = herd.ask("alive", SOON)?;
        let missing = flags.terminals as f64 - number(&answer, "logged_in")?;
        let mut put = |figure: &str, value| figures.put(round, SIDE, figure, value);
        put("undisturbed_gbit_per_s", before.gbit_per_s);
        put("bulk_gbit_per_s", during.gbit_per_s);
        put("bulk_ratio", during.gbit_per_s / before.gbit_per_s);
        put("bulk_longest_gap_ms", during.gap.as_secs_f64() * 1000.0);
        put("all_in_s", number(&answer, "all_in_s")?);
        put("log_in_p50_ms", number(&answer, "p50_ms")?);
        put("log_in_p99_ms", number(&answer, "p99_ms")?);
        put("log_in_tries", number(&answer, "tries")?);
        put("failed_log_ins", missing);
        put("relay_rss_mib", mesh.relay("r1").rss() as f64 / f64::from(1 << 20));
        put("lost_attachments", number(&alive, "lost")?);
        eprintln!(
            "round {round} bulk {:.2} Gbit/s, during the storm {:.2}, longest gap {:.0?}; {answer}",
            before.gbit_per_s, during.gbit_per_s, during.gap
        );
        herd.ask("leave", ALL_OUT)?;
        wait_logged_out(&mesh)?;
        rounds = round + 1;
    }
    drop(flood);
    let report =
        Report::default().with("rounds", rounds as f64).with("terminals", flags.terminals as f64);
    Ok(figures.report(report))
}
