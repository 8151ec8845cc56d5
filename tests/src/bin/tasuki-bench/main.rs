//! Measurements: `tasuki-bench NAME [--json] [--secs N] [--seed N]`; `tasuki-bench list` names them.
//!
//! Each prints what it measured, one figure a line; with `--json` the last line of stdout is one flat object.
#![allow(clippy::disallowed_methods, reason = "measurements read the clock")]

mod asked;
mod bench;
mod bulk;
mod call;
mod caller;
mod chaos;
mod connect;
mod echo;
mod failover;
mod flood;
mod glare;
mod gossip;
mod helper;
mod herd;
mod http;
mod idle;
mod line;
mod mixed;
mod nat;
mod ours;
mod peers;
mod procs;
mod report;
mod rounds;
mod side;
mod site;
mod storm;
mod table;
mod versions;
mod wan;

use anyhow::{Result, bail};
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
    /// How long to measure, in seconds: each side in each round; of virtual time, where time is simulated.
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
    /// One TCP stream of iperf3, and what it costs (P1, P2, P3).
    Bulk(bench::Flags),
    /// Round trips of 64 bytes over one TCP connection (P3, P4).
    Echo(echo::Flags),
    /// New TCP connections, each with one echo (P5).
    Connect(bench::Flags),
    /// New sessions: call, accept, handshake, first byte (P6).
    Call(call::Flags),
    /// Idle terminals: memory and keep-alive (P7).
    Idle(idle::Flags),
    /// Thousands log in at once while a bulk transfer runs (P8).
    Storm(storm::Flags),
    /// All of it at once for minutes: stable figures, no failures, no growth.
    Mixed(mixed::Flags),
    /// The relay that carries a bulk transfer dies or hangs, again and again: stalls, nothing lost (P12).
    Failover(failover::Flags),
    /// Relays and agents die, hang, drain and restart by a script while everything runs: nothing is lost.
    Chaos(chaos::Flags),
    /// Which path a call takes between NATs of each kind, and how soon it is direct.
    Nat(nat::Flags),
    /// Relays and agents of another build beside those of this one: calls, a rolling upgrade under a transfer.
    Versions(versions::Flags),
    /// Two terminals call each other at the same instant: exactly one session each time (D3, D4).
    Glare(glare::Flags),
    /// Calls, for `call`.
    #[command(hide = true)]
    Caller(caller::Flags),
    /// Terminals, for `idle` and `storm`.
    #[command(hide = true)]
    Herd(herd::Flags),
    /// Hands TCP connections on, for `connect` and its like.
    #[command(hide = true)]
    Splice(peers::splice::Flags),
    /// Gossip of 50 relays in the simulator: copies of an update, convergence, a healed partition (P9, P10).
    Gossip(gossip::Flags),
    /// One TCP stream over a long or lossy line: real agents and a real relay.
    Wan(wan::Flags),
    /// One and two flows over long, lossy and short lines, in virtual time.
    Line,
    /// A table of a million rows: memory, look-ups, a newcomer (P11).
    Table(table::Flags),
    /// The status endpoint of a mesh of 100,000 terminals: pages, searches, requests per second.
    Http(http::Flags),
    /// A bulk transfer and echoes through a relay that answers questions, bears slow clients or fills another's table.
    Asked(asked::Flags),
}

const NAMES: [&str; 18] = [
    "bulk", "echo", "connect", "call", "idle", "storm", "mixed", "failover", "chaos", "versions",
    "nat", "glare", "gossip", "line", "table", "http", "asked", "wan",
];

fn main() -> Result<()> {
    let Cli { verb, options } = Cli::parse();
    let json = options.json;
    let report = match verb {
        Verb::List => {
            NAMES.iter().for_each(|name| println!("{name}"));
            return Ok(());
        }
        Verb::Caller(flags) => return caller::run(&flags),
        Verb::Herd(flags) => return herd::run(&flags),
        Verb::Splice(flags) => return peers::splice::run(&flags),
        Verb::Call(flags) => procs::guarded(move || call::run(&options, &flags))?,
        Verb::Idle(flags) => procs::guarded(move || idle::run(&options, &flags))?,
        Verb::Mixed(flags) => procs::guarded(move || mixed::run(&options, &flags))?,
        Verb::Storm(flags) => procs::guarded(move || storm::run(&options, &flags))?,
        Verb::Failover(flags) => procs::guarded(move || failover::run(&options, &flags))?,
        Verb::Chaos(flags) => procs::guarded(move || chaos::run(&options, &flags))?,
        Verb::Nat(flags) => procs::guarded(move || nat::run(&options, &flags))?,
        Verb::Versions(flags) => procs::guarded(move || versions::run(&options, &flags))?,
        Verb::Glare(flags) => procs::guarded(move || glare::run(&flags))?,
        Verb::Gossip(flags) => gossip::run(&options, &flags)?,
        Verb::Wan(flags) => procs::guarded(move || wan::run(&options, &flags))?,
        Verb::Line => line::run_all(&options)?,
        Verb::Table(flags) => table::run(&options, &flags)?,
        Verb::Asked(flags) => procs::guarded(move || asked::run(&options, &flags))?,
        Verb::Http(flags) => http::run(&options, &flags)?,
        Verb::Bulk(flags) => procs::guarded(move || bulk::run(&options, &flags))?,
        Verb::Echo(flags) => procs::guarded(move || echo::run(&options, &flags))?,
        Verb::Connect(flags) => procs::guarded(move || connect::run(&options, &flags))?,
    };
    report.print(json);
    match report.failure() {
        Some(why) => bail!("{why}"),
        None => Ok(()),
    }
}
