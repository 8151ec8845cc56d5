//! Everything at once for minutes: a bulk transfer, echoes, new connections, new sessions, log-ins and log-outs. It
//! shows whether figures stay as they are, memory stays bounded, and nothing fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tasuki_tests::lab::TerminalSpec;
use tasuki_tests::lab::wait::{POLL, SOON};

use crate::Options;
use crate::call::{left_over, start as start_callers};
use crate::flood::{Flood, sink};
use crate::helper::{Helper, number};
use crate::idle::{ALL_OUT, gather, log_in};
use crate::ours::relay_for_a_crowd;
use crate::report::Report;
use crate::rounds::Figures;
use crate::side::{connect, echo, echo_once};
use crate::site::{Services, Site};

const SIDE: &str = "mixed";
/// Parts of the whole time; each is one value of every figure.
const PARTS: u32 = 6;
/// Callers at once, and for how long each time, ms.
const CALLS: &str = "2 1000";
/// How long everybody's log-in may take while the machine is busy.
const ALL_IN: Duration = Duration::from_secs(90);
/// New connections wait this long between each other: the rest of the load is to get its share.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Terminals that log in and out again.
    #[arg(long, default_value_t = 500)]
    terminals: usize,
}

/// What was done and what failed since the start.
#[derive(Debug, Default)]
struct Counts {
    echoes: AtomicU64,
    connections: AtomicU64,
    sessions: AtomicU64,
    log_ins: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

impl Counts {
    fn note(&self, counter: &AtomicU64, done: bool) {
        if done { counter } else { &self.failed }.fetch_add(1, Ordering::Relaxed);
    }

    fn runs(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let part = Duration::from_secs(options.secs.unwrap_or(480)) / PARTS;
    let site = Site::new(false, 1)?;
    let services = Services::start(&site, false)?;
    let mut mesh = relay_for_a_crowd(&site);
    let herd = gather(&mesh, flags.terminals, 8, &[])?;
    let callers = start_callers(&site, &mut mesh, 1)?.callers;
    let (sink, meter) = sink();
    mesh.add_terminal(
        TerminalSpec::new("callee")
            .flags(&["--direct", "never"])
            .offers("bulk", &format!("tcp://{}", sink.address()))
            .offers("echo", &format!("tcp://{}", services.echo)),
    );
    mesh.add_terminal(TerminalSpec::new("caller").flags(&["--direct", "never"]));
    mesh.wait_state("callee", "logged-in", SOON);
    mesh.wait_state("caller", "logged-in", SOON);
    let (bulk, bulk_at) = mesh.terminal("caller").forward("callee/bulk");
    let (echoes, echo_at) = mesh.terminal("caller").forward("callee/echo");
    let flood = Flood::start(bulk_at)?;
    meter.wait_for_first(SOON)?;

    let counts = Arc::new(Counts::default());
    let workers = start(&counts, echo_at, callers, (herd, flags.terminals));
    let mut figures = Figures::default();
    for round in 0..PARTS as usize {
        let before = read(&counts);
        let begun = Instant::now();
        let bulk = meter.watch(|| std::thread::sleep(part));
        let (after, time) = (read(&counts), begun.elapsed().as_secs_f64());
        let mut put = |figure: &str, value| figures.put(round, SIDE, figure, value);
        put("bulk_gbit_per_s", bulk.gbit_per_s);
        put("bulk_longest_gap_ms", bulk.gap.as_secs_f64() * 1000.0);
        let names = ["echoes_per_s", "connections_per_s", "sessions_per_s", "log_ins_per_s"];
        for (n, name) in names.into_iter().enumerate() {
            put(name, (after[n] - before[n]) / time);
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        put("relay_rss_mib", mib(mesh.relay("r1").rss()));
        put("caller_rss_mib", mib(mesh.terminal("caller").rss()));
        put("callee_rss_mib", mib(mesh.terminal("callee").rss()));
        eprintln!(
            "part {round} bulk {:.2} Gbit/s, relay {:.1} MiB, done {after:?}",
            bulk.gbit_per_s,
            mib(mesh.relay("r1").rss())
        );
    }
    counts.over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a worker failed"))??;
    }
    ensure!(flood.runs(), "the bulk transfer broke");
    drop((flood, bulk, echoes));
    let growth = figures.change(SIDE, "relay_rss_mib").context("too few parts")?;
    let (sessions, labels) = left_over(&mesh);
    Ok(figures.report(
        Report::default()
            .with("failed", counts.failed.load(Ordering::Relaxed) as f64)
            .with("sessions_left", sessions)
            .with("labels_left", labels)
            .with("relay_rss_growth_mib", growth),
    ))
}

/// One turn of a worker.
type Turn = Box<dyn FnMut(&Counts) -> Result<()> + Send>;

/// The threads that make the load, until the counts say that it is over.
fn start(
    counts: &Arc<Counts>,
    echo_at: SocketAddr,
    mut callers: Helper,
    (mut herd, terminals): (Helper, usize),
) -> Vec<JoinHandle<Result<()>>> {
    let worker = |mut turn: Turn| {
        let counts = counts.clone();
        std::thread::spawn(move || {
            while counts.runs() {
                turn(&counts)?;
            }
            Ok(())
        })
    };
    let mut stream = None;
    let echoes = worker(Box::new(move |counts| {
        if stream.is_none() {
            stream = connect(echo_at).ok();
        }
        let done = stream.as_mut().is_some_and(|stream| echo(stream).is_ok());
        if !done {
            // The next try has a connection of its own.
            stream = None;
            std::thread::sleep(POLL);
        }
        counts.note(&counts.echoes, done);
        Ok(())
    }));
    let connections = worker(Box::new(move |counts| {
        counts.note(&counts.connections, echo_once(echo_at).is_ok());
        std::thread::sleep(PAUSE);
        Ok(())
    }));
    let sessions = worker(Box::new(move |counts| {
        let answer = callers.ask(CALLS, ALL_IN)?;
        let made = number(&answer, "sessions_per_s")? * number(&answer, "elapsed_s")?;
        counts.sessions.fetch_add(made.round() as u64, Ordering::Relaxed);
        fail(counts, number(&answer, "failed")?, &answer);
        Ok(())
    }));
    let log_ins = worker(Box::new(move |counts| {
        let answer = log_in(&mut herd, terminals, ALL_IN)?;
        let made = number(&answer, "logged_in")?;
        counts.log_ins.fetch_add(made as u64, Ordering::Relaxed);
        let left = herd.ask("leave", ALL_OUT)?;
        fail(counts, terminals as f64 - made + number(&left, "alive")?, &answer);
        Ok(())
    }));
    vec![echoes, connections, sessions, log_ins]
}

/// Counts and shows what a helper says that failed.
fn fail(counts: &Counts, failed: f64, answer: &Value) {
    if failed > 0.0 {
        eprintln!("FAILED: {answer}");
        counts.failed.fetch_add(failed as u64, Ordering::Relaxed);
    }
}

fn read(counts: &Counts) -> [f64; 4] {
    [&counts.echoes, &counts.connections, &counts.sessions, &counts.log_ins]
        .map(|counter| counter.load(Ordering::Relaxed) as f64)
}
