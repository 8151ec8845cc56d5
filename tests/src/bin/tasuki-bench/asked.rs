//! What questions to the status endpoint cost the sessions of the same relay: a bulk transfer and echoes through a relay
//! whose table has many terminals, with so many requests a second beside them and without, in turn.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, TerminalSpec};

use crate::Options;
use crate::flood::{Flood, Meter, sink};
use crate::http::Client;
use crate::idle::gather;
use crate::ours::relay_for_a_crowd;
use crate::procs::cpu_seconds;
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags, percentile};
use crate::side::{connect, echo};
use crate::site::{Services, Site};

/// Sides: without questions, and with them.
const QUIET: &str = "quiet";
const ASKED: &str = "asked";
/// Connections that ask, each its share.
const CLIENTS: u32 = 4;
/// Until the bulk transfer and the questions run evenly.
const RUN_IN: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Terminals in the table.
    #[arg(long, default_value_t = 100_000)]
    terminals: usize,
    /// Requests a second: a page of 100 from anywhere and a search over the whole table, in turn.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    #[command(flatten)]
    rounds: RoundFlags,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let time = Duration::from_secs(options.secs.unwrap_or(10));
    let site = Site::new(false, 1)?;
    let services = Services::start(&site, false)?;
    let mut mesh = relay_for_a_crowd(&site);
    // They have accounts and do not log in.
    drop(gather(&mesh, flags.terminals, 1, &[])?);
    let (sink, meter) = sink();
    let [bulk_to, echo_to] = [sink.address(), services.echo].map(|to| format!("tcp://{to}"));
    // Each with terminals of its own: what they share is the relay.
    for (name, service, to) in [("bulky", "bulk", bulk_to), ("quick", "echo", echo_to)] {
        let spec = |name: &str| TerminalSpec::new(name).flags(&["--direct", "never"]);
        mesh.add_terminal(spec(&format!("{name}-callee")).offers(service, &to));
        mesh.add_terminal(spec(&format!("{name}-caller")));
        for end in ["callee", "caller"] {
            mesh.wait_state(&format!("{name}-{end}"), "logged-in", SOON);
        }
    }
    let (bulk, bulk_at) = mesh.terminal("bulky-caller").forward("bulky-callee/bulk");
    let (echoes, echo_at) = mesh.terminal("quick-caller").forward("quick-callee/echo");
    let flood = Flood::start(bulk_at)?;
    meter.wait_for_first(SOON)?;
    let api = mesh.relay("r1").api.address;
    // The first look at each account checks its signature.
    Client::connect(api)?.get("/api/v1/terminals?q=no-such-terminal")?;

    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.rounds.iter() {
        let mut sides = [QUIET, ASKED];
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            let rate = if side == ASKED { flags.rate } else { 0 };
            let seed = options.seed ^ (round as u64) << 16;
            let mut put = |figure: &str, value| figures.put(round, side, figure, value);
            measure(&mesh, &meter, (echo_at, time), (rate, flags.terminals, seed), &mut put)
                .with_context(|| format!("round {round}, {side}"))?;
        }
        rounds = round + 1;
    }
    ensure!(flood.runs(), "the bulk transfer broke");
    drop((flood, bulk, echoes));
    let ours = [QUIET.to_owned(), ASKED.to_owned()];
    let report = Report::default()
        .with("terminals", flags.terminals as f64)
        .with("rate_per_s", f64::from(flags.rate))
        .with("rounds", rounds as f64);
    let mut report = figures.report(report);
    for (figure, name) in
        [("bulk_gbit_per_s", "bulk"), ("echo_p50_us", "echo_p50"), ("echo_p99_us", "echo_p99")]
    {
        report = figures.report_ratios(report, &ours, figure, name);
    }
    Ok(report)
}

/// One side of one round.
fn measure(
    mesh: &Mesh,
    meter: &Meter,
    (echo_at, time): (SocketAddr, Duration),
    (rate, terminals, seed): (u32, usize, u64),
    put: &mut dyn FnMut(&str, f64),
) -> Result<()> {
    let relay = mesh.relay("r1");
    let (api, pid) = (relay.api.address, [relay.pid().unwrap_or_default()]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..if rate == 0 { 0 } else { CLIENTS })
            .map(|n| {
                let over = &over;
                let seed = seed ^ u64::from(n);
                scope.spawn(move || {
                    ask(api, f64::from(rate) / f64::from(CLIENTS), terminals, seed, over)
                })
            })
            .collect();
        std::thread::sleep(RUN_IN);
        let (mut echoes, cpu) = (Ok(Vec::new()), cpu_seconds(&pid));
        let watched = meter.watch(|| echoes = timed_echoes(echo_at, time));
        let cpu = cpu_seconds(&pid) - cpu;
        over.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        let mut per_s = 0.0;
        for client in clients {
            let (times, elapsed) = client.join().map_err(|_| anyhow!("a client"))??;
            per_s += times.len() as f64 / elapsed.as_secs_f64();
            answers.extend(times);
        }
        let echoes = echoes?;
        let us = |share| percentile(&echoes, share) as f64 / 1e3;
        put("bulk_gbit_per_s", watched.gbit_per_s);
        put("echo_p50_us", us(0.5));
        put("echo_p99_us", us(0.99));
        put("relay_cpu_percent", cpu / time.as_secs_f64() * 100.0);
        eprintln!(
            "{rate} a second: bulk {:.2} Gbit/s, echo p50 {:.0} us, p99 {:.0} us",
            watched.gbit_per_s,
            us(0.5),
            us(0.99)
        );
        if rate > 0 {
            answers.sort_by(f64::total_cmp);
            put("requests_per_s", per_s);
            put("answer_p50_ms", percentile(&answers, 0.5));
            put("answer_p99_ms", percentile(&answers, 0.99));
        }
        Ok(())
    })
}

/// Asks so often a second until it is over; how long each answer took, ms, and how long it asked.
fn ask(
    api: SocketAddr,
    rate: f64,
    terminals: usize,
    seed: u64,
    over: &AtomicBool,
) -> Result<(Vec<f64>, Duration)> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut client = Client::connect(api)?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let due = Duration::from_secs_f64(times.len() as f64 / rate);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let number = rng.random_range(0..terminals);
        let path = match times.len() % 2 {
            0 => format!("/api/v1/terminals?limit=100&after=bench{number}"),
            _ => format!("/api/v1/terminals?limit=100&q={:04}", number % 10_000),
        };
        let sent = Instant::now();
        client.get(&path)?;
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok((times, begun.elapsed()))
}

/// Times of echoes, one after the other over one connection; ns, sorted.
fn timed_echoes(address: SocketAddr, time: Duration) -> Result<Vec<u64>> {
    let mut stream = connect(address).context("no connection")?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < time {
        let sent = Instant::now();
        echo(&mut stream).with_context(|| format!("echo {}", times.len()))?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    Ok(times)
}
