//! What the status endpoint and a newcomer cost the sessions of the same relay: a bulk transfer and echoes through a relay
//! whose table has many terminals, with nothing beside them, with so many requests a second, with as many to another relay
//! of the machine, with slow clients, and with a relay that takes the whole table, in turn.

mod newcomer;
mod questions;
mod slow;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use tasuki_tests::lab::process::Process;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, TerminalSpec};

use self::questions::Questions;
use crate::Options;
use crate::flood::{Flood, Meter, Watched, sink};
use crate::idle::gather;
use crate::ours::relay_for_a_crowd;
use crate::peers::SideFlags;
use crate::procs::{caught, cpu_seconds};
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags, percentile};
use crate::side::{connect, echo};
use crate::site::{Services, Site};

/// Sides: with nothing beside the sessions, with questions, with questions to a relay that carries nothing (what they
/// cost a machine that all share), with slow clients, with a relay that takes the table.
const QUIET: &str = "quiet";
const ASKED: &str = "asked";
const ELSEWHERE: &str = "elsewhere";
const SLOW: &str = "slow";
const SYNC: &str = "sync";
const SIDES: [&str; 5] = [QUIET, ASKED, ELSEWHERE, SLOW, SYNC];
/// Until the bulk transfer and what is beside it run evenly.
const RUN_IN: Duration = Duration::from_secs(1);
/// The least time that a newcomer is measured.
const LEAST: Duration = Duration::from_secs(1);

/// Figures by name.
type Named = Vec<(&'static str, f64)>;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Terminals in the table.
    #[arg(long, default_value_t = 100_000)]
    terminals: usize,
    /// Requests a second: a page of 100 from anywhere and a search over the whole table, in turn.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Slow clients, each with a connection: they send or read a byte each 100 ms, or read nothing.
    #[arg(long, default_value_t = 64)]
    slow_clients: usize,
    /// Write the bulk transfer at this pace, Gbit/s; as fast as it can unless given.
    #[arg(long, value_name = "GBIT", value_parser = pace)]
    pace: Option<f64>,
    #[command(flatten)]
    sides: SideFlags,
    #[command(flatten)]
    rounds: RoundFlags,
}

fn pace(text: &str) -> Result<f64, String> {
    let pace = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.001..=1000.0).contains(&pace) { Ok(pace) } else { Err("not 0.001 to 1000".to_owned()) }
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let mut sides: Vec<&str> = SIDES.into_iter().filter(|side| flags.sides.wants(side)).collect();
    ensure!(!sides.is_empty(), "no such side: they are {}", SIDES.join(", "));
    let names: Vec<String> = sides.iter().map(|side| (*side).to_owned()).collect();
    let scene = Scene::set(options, flags)?;
    let (mut figures, mut rounds) = (Figures::default(), 0);
    for round in flags.rounds.iter() {
        for side in &sides {
            let seed = options.seed ^ (round as u64) << 16;
            let mut put = |figure: &str, value| figures.put(round, side, figure, value);
            scene
                .measure(side, seed, &mut put)
                .with_context(|| format!("round {round}, {side}"))?;
        }
        // Every other round backwards, so that none is always the first.
        sides.reverse();
        rounds = round + 1;
    }
    ensure!(scene.flood.runs(), "the bulk transfer broke");
    drop(scene);
    let mut report = Report::default()
        .with("terminals", flags.terminals as f64)
        .with("rate_per_s", f64::from(flags.rate))
        .with("rounds", rounds as f64);
    if let Some(pace) = flags.pace {
        report = report.with("pace_gbit_per_s", pace);
    }
    report = figures.report(report);
    if names[0] == QUIET {
        for (figure, name) in
            [("bulk_gbit_per_s", "bulk"), ("echo_p50_us", "echo_p50"), ("echo_p99_us", "echo_p99")]
        {
            report = figures.report_ratios(report, &names, figure, name);
        }
    }
    Ok(report)
}

/// All that runs all the time. Fields end in this order: sessions before what carries them.
struct Scene {
    flood: Flood,
    _forwards: Vec<Process>,
    echo_at: SocketAddr,
    meter: Meter,
    mesh: Mesh,
    _sink: TcpService,
    _services: Services,
    _site: Site,
    flags: Flags,
    time: Duration,
}

impl Scene {
    /// A relay with accounts, a bulk transfer that runs, and a way for echoes.
    fn set(options: &Options, flags: &Flags) -> Result<Scene> {
        let site = Site::new(false, 1)?;
        let services = Services::start(&site, false)?;
        let mut mesh = relay_for_a_crowd(&site);
        // They have accounts and do not log in.
        drop(gather(&mesh, flags.terminals, 1, &[])?);
        if [SYNC, ELSEWHERE].iter().any(|side| flags.sides.wants(side)) {
            newcomer::join(&mut mesh)?;
        }
        let (sink, meter) = sink();
        let (bulk, bulk_at) = session(&mut mesh, "bulky", "bulk", sink.address());
        let (echoes, echo_at) = session(&mut mesh, "quick", "echo", services.echo);
        let flood = Flood::paced(bulk_at, flags.pace)?;
        meter.wait_for_first(SOON)?;
        Ok(Scene {
            flood,
            _forwards: vec![bulk, echoes],
            echo_at,
            meter,
            mesh,
            _sink: sink,
            _services: services,
            _site: site,
            flags: flags.clone(),
            time: Duration::from_secs(options.secs.unwrap_or(10)),
        })
    }

    /// One side of one round.
    fn measure(&self, side: &str, seed: u64, put: &mut dyn FnMut(&str, f64)) -> Result<()> {
        let pid = [self.mesh.relay("r1").pid().unwrap_or_default()];
        let over = AtomicBool::new(false);
        if side == ELSEWHERE {
            newcomer::take_table(&self.mesh)?;
            newcomer::check_table(&self.mesh)?;
        }
        let figures = std::thread::scope(|scope| -> Result<_> {
            let beside = || scope.spawn(|| caught(|| self.beside(side, seed, &over)));
            // A newcomer is measured from its start on.
            let early = (side != SYNC).then(beside);
            std::thread::sleep(RUN_IN);
            let beside = early.unwrap_or_else(beside);
            let (mut echoes, cpu, begun) = (Ok(Vec::new()), cpu_seconds(&pid), Instant::now());
            let watched = self.meter.watch(|| {
                echoes = timed_echoes(self.echo_at, || self.goes_on(side, begun, &beside));
            });
            let cpu = (cpu_seconds(&pid) - cpu) / begun.elapsed().as_secs_f64();
            over.store(true, Ordering::Relaxed);
            let more = beside.join().map_err(|_| anyhow!("what was beside it"))??;
            let mut figures = figures_of(&watched, &echoes?);
            figures.push(("relay_cpu_percent", cpu * 100.0));
            figures.extend(more);
            Ok(figures)
        })?;
        if [SYNC, ELSEWHERE].contains(&side) {
            newcomer::leave(&self.mesh)?;
        }
        let text: Vec<String> =
            figures.iter().map(|(figure, value)| format!("{figure} {value:.2}")).collect();
        eprintln!("{side}: {}", text.join(", "));
        figures.into_iter().for_each(|(figure, value)| put(figure, value));
        Ok(())
    }

    /// What runs beside the sessions until it is over, or by itself; what it says of itself.
    fn beside(&self, side: &str, seed: u64, over: &AtomicBool) -> Result<Named> {
        let asked = if side == ELSEWHERE { newcomer::NAME } else { "r1" };
        let api = self.mesh.relay(asked).api.address;
        let Flags { rate, terminals, slow_clients, .. } = self.flags;
        match side {
            ASKED | ELSEWHERE if rate > 0 => Questions { api, rate, terminals, seed }.ask(over),
            SLOW => Ok(slow::dawdle(api, slow_clients, over)),
            SYNC => newcomer::take_table(&self.mesh),
            _ => Ok(Vec::new()),
        }
    }

    /// Whether a measurement goes on that began then.
    fn goes_on(
        &self,
        side: &str,
        begun: Instant,
        beside: &ScopedJoinHandle<'_, Result<Named>>,
    ) -> bool {
        match side {
            SYNC => begun.elapsed() < LEAST || !beside.is_finished(),
            _ => begun.elapsed() < self.time,
        }
    }
}

/// A session of two terminals of its own: what sessions share is the relay, and no other that may come.
fn session(mesh: &mut Mesh, name: &str, service: &str, to: SocketAddr) -> (Process, SocketAddr) {
    let [caller, callee] = ["caller", "callee"].map(|end| format!("{name}-{end}"));
    let spec = |name: &str| TerminalSpec::new(name).at(&["r1"]).flags(&["--direct", "never"]);
    mesh.add_terminal(spec(&callee).offers(service, &format!("tcp://{to}")));
    mesh.add_terminal(spec(&caller));
    for end in [&callee, &caller] {
        mesh.wait_state(end, "logged-in", SOON);
    }
    mesh.terminal(&caller).forward(&format!("{callee}/{service}"))
}

/// What every side is measured by.
fn figures_of(watched: &Watched, echoes: &[u64]) -> Named {
    let us = |share| percentile(echoes, share) as f64 / 1e3;
    vec![
        ("bulk_gbit_per_s", watched.gbit_per_s),
        ("stall_ms", watched.stall.as_secs_f64() * 1e3),
        ("echo_p50_us", us(0.5)),
        ("echo_p99_us", us(0.99)),
    ]
}

/// Times of echoes, one after the other over one connection; ns, sorted.
fn timed_echoes(address: SocketAddr, goes_on: impl Fn() -> bool) -> Result<Vec<u64>> {
    let mut stream = connect(address).context("no connection")?;
    let mut times = Vec::new();
    while goes_on() {
        let sent = Instant::now();
        echo(&mut stream).with_context(|| format!("echo {}", times.len()))?;
        times.push(sent.elapsed().as_nanos() as u64);
    }
    times.sort_unstable();
    Ok(times)
}
