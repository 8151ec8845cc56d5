//! Two terminals that call each other at the same instant, again and again (D3, D4): over one relay, and over three.
//! Calls that meet are exactly one session, for both; anything else ends the measurement.

use std::time::Instant;

use anyhow::Result;
use tasuki_tests::lab::crossed::Crossed;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{MeshSpec, TerminalSpec};

use crate::report::Report;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// How often they call each other, over each route.
    #[arg(long, default_value_t = 1_000)]
    calls: u32,
}

pub(crate) fn run(flags: &Flags) -> Result<Report> {
    let mut report = Report::default().with("calls", f64::from(flags.calls));
    for relays in [&["r1"][..], &["r1", "r2", "r3"]] {
        let mesh = MeshSpec::line(relays)
            .terminal(TerminalSpec::new("a").stays_off())
            .terminal(TerminalSpec::new("b").stays_off())
            .start();
        let ends = [relays[0], relays[relays.len() - 1]];
        let crossed = Crossed::start(&mesh, ["a", "b"], ends, [true; 2])?;
        let begun = Instant::now();
        let met = crossed.meet(flags.calls)?;
        let each = begun.elapsed().as_secs_f64() * 1000.0 / f64::from(flags.calls.max(1));
        mesh.wait_no_sessions(SOON);
        let n = relays.len();
        report = report.with(&format!("over_{n}_relays_ms"), each);
        report = report.with(&format!("over_{n}_relays_met"), f64::from(met));
    }
    Ok(report)
}
