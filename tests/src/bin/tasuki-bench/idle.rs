//! Idle terminals: what each costs the relay in memory, and all of them together in CPU (P7).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tasuki_tests::lab::Mesh;
use tasuki_tests::lab::mesh::Relay;
use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::wait::{POLL, SOON};

use crate::Options;
use crate::helper::{Helper, number};
use crate::ours::relay_for_a_crowd;
use crate::procs::cpu_seconds;
use crate::report::Report;
use crate::site::Site;

/// Making keys, certificates and accounts.
const REGISTER: Duration = Duration::from_secs(180);
/// How long everybody's log-in may take.
const ALL_IN: Duration = Duration::from_secs(300);
/// How long everybody's log-out may take.
pub(crate) const ALL_OUT: Duration = Duration::from_secs(90);
/// Memory has settled when it changes by less than a thousandth within this time; it is not waited for longer than
/// for this many of them.
const SETTLED: Duration = Duration::from_secs(3);
const SETTLINGS: usize = 10;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Logged-in terminals.
    #[arg(long, default_value_t = 20_000)]
    terminals: usize,
    /// UDP sockets that they share.
    #[arg(long, default_value_t = 32)]
    sockets: usize,
    /// Log-ins at once: few, so that what is measured is not a storm.
    #[arg(long, default_value_t = 64)]
    at_once: usize,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    // Two periods of keep-alive, and some.
    let quiet = Duration::from_secs(options.secs.unwrap_or(20));
    let site = Site::new(false, 1)?;
    let mesh = relay_for_a_crowd(&site);
    let mut herd = gather(&mesh, flags.terminals, flags.sockets, &[])?;
    let relay = mesh.relay("r1");
    let pid = [relay.pid().unwrap_or_default()];
    let before = settled(|| relay.rss());
    let cpu_before = cpu_seconds(&pid);
    let answer = log_in(&mut herd, flags.at_once, ALL_IN)?;
    eprintln!("{answer}");
    ensure!(number(&answer, "logged_in")? as usize == flags.terminals, "not everybody: {answer}");
    let login_cpu = cpu_seconds(&pid) - cpu_before;
    let after = settled(|| relay.rss());
    let quiet_before = cpu_seconds(&pid);
    let begun = Instant::now();
    std::thread::sleep(quiet);
    let cpu = (cpu_seconds(&pid) - quiet_before) / begun.elapsed().as_secs_f64();
    let alive = herd.ask("alive", SOON)?;
    eprintln!("{alive}");
    let terminals = flags.terminals as f64;
    let settled_at = relay.rss();
    herd.ask("leave", ALL_OUT)?;
    wait_logged_out(&mesh)?;
    let empty = settled(|| relay.rss());
    Ok(Report::default()
        .with("terminals", terminals)
        .with("rss_bytes_per_terminal", (after as f64 - before as f64) / terminals)
        .with("rss_after_quiet_bytes_per_terminal", (settled_at as f64 - before as f64) / terminals)
        .with("rss_before_bytes", before as f64)
        .with("rss_after_bytes", after as f64)
        .with("rss_after_log_out_bytes", empty as f64)
        .with("keep_alive_cpu_percent", cpu * 100.0)
        .with("keep_alive_cpu_us_per_terminal_per_s", cpu * 1e6 / terminals)
        .with("log_in_cpu_ms_per_terminal", login_cpu * 1000.0 / terminals)
        .with("log_ins_per_s", terminals / number(&answer, "all_in_s")?)
        .with("log_in_tries", number(&answer, "tries")?)
        .with("lost_attachments", number(&alive, "lost")?))
}

/// Lets a relay end by itself.
pub(crate) fn stop(relay: &Relay) -> Result<()> {
    relay.signal(Signal::Terminate);
    let begun = Instant::now();
    while relay.is_running() {
        ensure!(begun.elapsed() < SOON, "the relay {} does not stop", relay.name());
        std::thread::sleep(POLL);
    }
    // Nothing is left to kill, but its place is free for the next start.
    relay.kill();
    Ok(())
}

/// Registers terminals at the relay r1 of the mesh, which restarts for it. When that one dies, they know of `others`.
pub(crate) fn gather(
    mesh: &Mesh,
    terminals: usize,
    sockets: usize,
    others: &[&str],
) -> Result<Helper> {
    let relay = mesh.relay("r1");
    stop(relay)?;
    let (data, listen) = (relay.data().display().to_string(), relay.listen().to_string());
    let (terminals, sockets) = (terminals.to_string(), sockets.to_string());
    let arguments =
        ["--relay-data", &data, "--relay", &listen, "--count", &terminals, "--sockets", &sockets];
    let others = others
        .iter()
        .flat_map(|name| ["--other".to_owned(), format!("{name}={}", mesh.relay(name).listen())]);
    let arguments = arguments.into_iter().map(str::to_owned).chain(others);
    let mut herd = Helper::start("herd", arguments, None, &mesh.path("herd.log"))?;
    herd.hear(REGISTER)?;
    relay.start();
    Ok(herd)
}

/// Logs everybody in, so many at once; what the herd says of it.
pub(crate) fn log_in(herd: &mut Helper, at_once: usize, limit: Duration) -> Result<Value> {
    herd.ask(&format!("login {at_once} {}", limit.as_secs()), limit + SOON)
}

/// Waits until no terminal is logged in.
pub(crate) fn wait_logged_out(mesh: &Mesh) -> Result<()> {
    let begun = Instant::now();
    loop {
        let gone = mesh
            .relay("r1")
            .api
            .json("/api/v1/terminals?q=bench&state=logged-in&limit=1")
            .is_ok_and(|page| page["items"].as_array().is_some_and(Vec::is_empty));
        if gone {
            return Ok(());
        }
        ensure!(begun.elapsed() < ALL_OUT, "terminals that left are still logged in");
        std::thread::sleep(POLL * 5);
    }
}

/// A figure once it hardly changes.
fn settled(figure: impl Fn() -> u64) -> u64 {
    let mut last = figure();
    for _ in 0..SETTLINGS {
        std::thread::sleep(SETTLED);
        let next = figure();
        if next.abs_diff(last) * 1000 < last {
            return next;
        }
        last = next;
    }
    last
}
