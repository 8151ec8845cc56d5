//! One TCP stream of iperf3 over a long or lossy line: real agents and a real relay on loopback, the relay behind a
//! forwarder that delays and loses packets.

use std::time::Duration;

use anyhow::{Result, ensure};
use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, RelaySpec, TerminalSpec};

use crate::Options;
use crate::bulk::RATE;
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags};
use crate::site::{Services, Site, iperf_from};

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    rounds: RoundFlags,
    /// The round trip from terminal to terminal, ms.
    #[arg(long, default_value_t = 100)]
    rtt: u64,
    /// The share of packets that is lost from terminal to terminal, each way, %.
    #[arg(long, default_value_t = 0.0)]
    loss: f64,
    /// Bits per second of the line, Mbit/s; nothing: as fast as the forwarder.
    #[arg(long)]
    rate: Option<u64>,
}

/// Seconds that are not counted: slow start, and the search for lanes.
const WARM: u64 = 5;

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    ensure!((0.0..=50.0).contains(&flags.loss), "--loss is a share in percent, 0 to 50");
    let seconds = options.secs.unwrap_or(10);
    let site = Site::new(false, 1)?;
    let services = Services::start(&site, true)?;
    // Each packet passes the line twice: to the relay and from it.
    let line = Impairment {
        delay: Duration::from_millis(flags.rtt) / 4,
        loss: 1.0 - (1.0 - flags.loss / 100.0).sqrt(),
        rate: flags.rate.map(|rate| rate * 1_000_000),
        queue_bytes: flags.rate.map_or(u64::MAX, |rate| rate * 1_000_000 / 8 * flags.rtt / 1_000),
        ..Impairment::NONE
    };
    let callee = TerminalSpec::new("callee")
        .flags(&["--direct", "never"])
        .offers("bulk", &format!("tcp://{}", services.bulk));
    let mesh = MeshSpec::new()
        .relay(RelaySpec::new("r1").behind(line))
        .terminal(callee)
        .terminal(TerminalSpec::new("caller").flags(&["--direct", "never"]))
        .start();
    let (forward, address) = mesh.terminal("caller").forward("callee/bulk");
    mesh.wait_state("caller", "in-communication", SOON);
    let mut figures = Figures::default();
    let mut rounds = 0;
    for round in flags.rounds.iter() {
        let moved = iperf_from(&site, address, seconds, WARM)?;
        let rate = moved.bits_per_second / 1e9;
        eprintln!("round {round} {rate:6.3} Gbit/s; {:?}", mesh.relay("r1").line().counts());
        figures.put(round, "tasuki", RATE, rate);
        rounds = round + 1;
    }
    drop(forward);
    let report = Report::default().with("rounds", rounds as f64).with("rtt_ms", flags.rtt as f64);
    Ok(figures.report(report.with("loss_percent", flags.loss)))
}
