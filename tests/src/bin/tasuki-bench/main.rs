//! Measurements: `tasuki-bench NAME [--json] [--secs N] [--seed N]`; `tasuki-bench list` names them.
//!
//! Each prints what it measured, one figure a line; with `--json` the last line of stdout is one flat object.
#![allow(clippy::disallowed_methods, reason = "measurements read the clock")]

mod gossip;
mod report;
mod table;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Measures Tasuki.
#[derive(Debug, Parser)]
#[command(name = "tasuki-bench", after_help = "Example: tasuki-bench gossip --json --secs 10")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    options: Options,
}

/// What every measurement takes.
#[derive(Debug, Clone, Args)]
struct Options {
    /// Print one flat JSON object as the last line.
    #[arg(long, global = true)]
    json: bool,
    /// How long to measure, in seconds (of virtual time, where time is simulated).
    #[arg(long, global = true)]
    secs: Option<u64>,
    /// Decides what is random.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Name the measurements.
    List,
    /// Gossip of 50 relays in the simulator: copies of an update, convergence, a healed partition (P9, P10).
    Gossip(gossip::Flags),
    /// A table of a million rows: memory, look-ups, a newcomer (P11).
    Table(table::Flags),
}

const NAMES: [&str; 2] = ["gossip", "table"];

fn main() -> Result<()> {
    let cli = Cli::parse();
    let report = match &cli.verb {
        Verb::List => {
            NAMES.iter().for_each(|name| println!("{name}"));
            return Ok(());
        }
        Verb::Gossip(flags) => gossip::run(&cli.options, flags)?,
        Verb::Table(flags) => table::run(&cli.options, flags)?,
    };
    report.print(cli.options.json);
    Ok(())
}
