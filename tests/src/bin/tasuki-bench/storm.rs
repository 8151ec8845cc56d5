//! A storm: thousands of terminals log in at once while one bulk transfer runs (P8); or, after the death of their relay,
//! at its two neighbours, which carry the transfer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;
use tasuki_tests::lab::TerminalSpec;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::wait::SOON;

use crate::Options;
use crate::flood::{Flood, Watched, sink};
use crate::helper::number;
use crate::idle::{ALL_OUT, gather, log_in, wait_logged_out};
use crate::ours::{relay_for_a_crowd, relays_for_a_crowd};
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags, percentile};
use crate::side;
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
    /// Kill the relay of all of them, so that they log in again at the two others, between which the transfer runs.
    #[arg(long)]
    after_death: bool,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    if flags.after_death {
        return after_death(options, flags);
    }
    let calm = Duration::from_secs(options.secs.unwrap_or(5));
    let site = Site::new(false, 1)?;
    let mut mesh = relay_for_a_crowd(&site);
    let mut herd = gather(&mesh, flags.terminals, flags.sockets, &[])?;
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

/// The least share of its rate that the transfer keeps while terminals of a dead relay log in elsewhere.
const KEPT: f64 = 0.4;
/// Until then terminals notice that their relay is gone: it was silent for so long.
const NOTICED: Duration = Duration::from_secs(45);

/// Three relays; the first one is killed, to which all terminals are attached.
fn after_death(options: &Options, flags: &Flags) -> Result<Report> {
    let calm = Duration::from_secs(options.secs.unwrap_or(5));
    let mut mesh = relays_for_a_crowd(&["r1", "r2", "r3"]);
    let mut herd = gather(&mesh, flags.terminals, flags.sockets, &["r2", "r3"])?;
    let (sink, meter) = sink();
    let echo = TcpService::echo(None);
    let spec = TerminalSpec::new("callee").at(&["r3"]).flags(&["--direct", "never"]);
    let spec = spec.offers("bulk", &format!("tcp://{}", sink.address()));
    mesh.add_terminal(spec.offers("echo", &format!("tcp://{}", echo.address())));
    mesh.add_terminal(TerminalSpec::new("caller").at(&["r2"]).flags(&["--direct", "never"]));
    mesh.wait_state("callee", "logged-in", SOON);
    mesh.wait_state("caller", "logged-in", SOON);
    let (_forward, address) = mesh.terminal("caller").forward("callee/bulk");
    let (_forward_echo, echo_at) = mesh.terminal("caller").forward("callee/echo");
    let (mut figures, mut rounds, mut errors) = (Figures::default(), 0, Vec::new());
    for round in flags.rounds.iter() {
        mesh.wait_for_links();
        let answer = log_in(&mut herd, 64, ALL_IN * 3)?;
        ensure!(number(&answer, "logged_in")? as usize == flags.terminals, "not all: {answer}");
        mesh.wait_tables_equal(SOON);
        let flood = Flood::start(address)?;
        meter.wait_for_first(SOON)?;
        let before = meter.watch(|| std::thread::sleep(calm));
        let pinger = Pinger::start(echo_at);
        herd.ask("anew", SOON)?;
        mesh.relay("r1").kill();
        let killed = Instant::now();
        let (mut lost, mut answer) = (Ok(Value::Null), Ok(Value::Null));
        let quiet = meter.watch(|| {
            lost = herd.ask(&format!("lost {}", NOTICED.as_secs()), NOTICED + SOON);
        });
        lost?;
        let during = meter.watch(|| {
            answer = herd.ask(&format!("again {}", ALL_IN.as_secs()), ALL_IN + SOON);
        });
        let back = killed.elapsed();
        let (answer, pinged) = (answer?, pinger.stop());
        ensure!(flood.runs(), "the bulk transfer broke during the storm");
        drop(flood);
        let storm = AfterDeath { before, quiet, during, back, answer, pinged };
        errors.extend(storm.put(&mut figures, round, flags.terminals)?);
        herd.ask("leave", ALL_OUT)?;
        mesh.relay("r1").start();
        wait_logged_out(&mesh)?;
        rounds = round + 1;
    }
    let report =
        Report::default().with("rounds", rounds as f64).with("terminals", flags.terminals as f64);
    let report = figures.report(report);
    if errors.is_empty() { Ok(report) } else { Ok(report.failed(errors.join("; "))) }
}

/// What came of one round.
struct AfterDeath {
    before: Watched,
    /// From the kill on until the first terminal noticed.
    quiet: Watched,
    during: Watched,
    back: Duration,
    answer: Value,
    pinged: Pinged,
}

impl AfterDeath {
    /// Notes the figures; what is wrong with them.
    fn put(self, figures: &mut Figures, round: usize, terminals: usize) -> Result<Option<String>> {
        let AfterDeath { before, quiet, during, back, answer, pinged } = self;
        let missing = terminals as f64 - number(&answer, "logged_in")?;
        let ratio = during.gbit_per_s / before.gbit_per_s;
        let gap = quiet.gap.max(during.gap);
        let mut put = |figure: &str, value| figures.put(round, "after_death", figure, value);
        put("undisturbed_gbit_per_s", before.gbit_per_s);
        put("bulk_gbit_per_s", during.gbit_per_s);
        put("bulk_ratio", ratio);
        put("bulk_longest_gap_ms", gap.as_secs_f64() * 1000.0);
        put("all_back_s", back.as_secs_f64());
        put("storm_s", number(&answer, "all_in_s")?);
        put("log_in_p50_ms", number(&answer, "p50_ms")?);
        put("log_in_p99_ms", number(&answer, "p99_ms")?);
        put("log_in_tries", number(&answer, "tries")?);
        put("failed_log_ins", missing);
        put("echo_p50_ms", percentile(&pinged.times_ms, 0.5));
        put("echo_p99_ms", percentile(&pinged.times_ms, 0.99));
        put("echo_max_ms", percentile(&pinged.times_ms, 1.0));
        put("failed_echoes", f64::from(u8::from(pinged.broken)));
        eprintln!(
            "round {round} bulk {:.2} Gbit/s, during the storm {:.2}, longest gap {gap:.0?}, all back after {back:.1?}; \
             {answer}",
            before.gbit_per_s, during.gbit_per_s
        );
        let wrong = missing > 0.0 || ratio < KEPT || pinged.broken;
        Ok(wrong.then(|| {
            let broken = pinged.broken;
            format!("round {round}: {missing} failed, ratio {ratio:.2}, echo broken: {broken}")
        }))
    }
}

/// Echoes over one connection, one after the other, a hundred a second at most.
struct Pinger {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Pinged>,
}

/// How long each took, sorted, and whether one did not come back.
#[derive(Debug, Default)]
struct Pinged {
    times_ms: Vec<f64>,
    broken: bool,
}

impl Pinger {
    fn start(address: SocketAddr) -> Pinger {
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = std::thread::spawn(move || {
            let mut pinged = Pinged::default();
            let Ok(mut stream) = side::connect(address) else {
                return Pinged { broken: true, ..pinged };
            };
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                if side::echo(&mut stream).is_err() {
                    pinged.broken = true;
                    break;
                }
                pinged.times_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
                std::thread::sleep(Duration::from_millis(10));
            }
            pinged.times_ms.sort_by(f64::total_cmp);
            pinged
        });
        Pinger { over, thread }
    }

    fn stop(self) -> Pinged {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(Pinged { broken: true, ..Pinged::default() })
    }
}
