//! The relay that carries a bulk transfer dies or hangs, again and again, and the transfer goes on (P12).
//!
//! Each byte is checked where it arrives, and so is the longest time without one, from a strike until everything is
//! back and `--secs` more have passed. The figures of the first case bear their plain names, those of further ones
//! the name of their case before it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tasuki_tests::lab::forwarder::Impairment;
use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::transfer::{Receiver, Sender};
use tasuki_tests::lab::wait::SOON;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually, paths};

use crate::Options;
use crate::procs::caught;
use crate::report::Report;
use crate::rounds::percentile;

/// A transfer that stands still for longer is broken.
const BROKEN: Duration = Duration::from_secs(30);
/// Bytes that show that a transfer goes on: more than lies in buffers on the way.
const GOES_ON: u64 = 16 * 1024 * 1024;
/// For how long a relay hangs.
const HANG: Duration = Duration::from_secs(3);
/// A case begins no further round after this time, so that all of them end in ten minutes.
const CASE: Duration = Duration::from_secs(125);

/// What is struck, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Case {
    /// kill -9 of a relay that the terminals are attached to, two each.
    Edge,
    /// kill -9 of a relay between those that the terminals are attached to; there is another.
    Middle,
    /// As edge, but the relay hangs (SIGSTOP) and goes on after a while.
    EdgeHang,
    /// As middle, but the relay hangs and goes on after a while.
    MiddleHang,
}

impl Case {
    const fn name(self) -> &'static str {
        match self {
            Case::Edge => "edge",
            Case::Middle => "middle",
            Case::EdgeHang => "edge_hang",
            Case::MiddleHang => "middle_hang",
        }
    }

    const fn hangs(self) -> bool {
        matches!(self, Case::EdgeHang | Case::MiddleHang)
    }

    const fn in_the_middle(self) -> bool {
        matches!(self, Case::Middle | Case::MiddleHang)
    }
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// How often a relay is struck in each case.
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Relays that are all linked with each other, where those at the edge are struck.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=8))]
    relays: u64,
    /// Everybody reaches each relay with this delay one way, in milliseconds.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1000))]
    delay: u64,
    /// What is struck, and how.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "edge,middle,edge-hang,middle-hang"
    )]
    cases: Vec<Case>,
}

/// What came of a case.
#[derive(Debug, Default)]
struct Outcome {
    /// The longest time without a byte after each strike, in milliseconds.
    stalls_ms: Vec<f64>,
    strikes: usize,
    restarts: usize,
    /// How long each return of everything took, in milliseconds.
    returns_ms: Vec<f64>,
    bytes: u64,
    seconds: f64,
    whole: bool,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let mut report = Report::default();
    let mut errors = Vec::new();
    for (number, case) in flags.cases.iter().enumerate() {
        let mut outcome = Outcome::default();
        if let Err(error) = caught(|| strike_again(*case, options, flags, &mut outcome)) {
            eprintln!("FAILED: {}: {error:#}", case.name());
            errors.push(format!("{}: {error:#}", case.name()));
            outcome.whole = false;
        }
        // The figures of the first case are the measurement's own.
        let prefix = if number == 0 { String::new() } else { format!("{}_", case.name()) };
        report = outcome.report(report, &prefix);
    }
    if errors.is_empty() { Ok(report) } else { Ok(report.failed(errors.join("; "))) }
}

impl Outcome {
    fn report(self, report: Report, prefix: &str) -> Report {
        let sorted = |values: &[f64]| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted
        };
        let (stalls, returns) = (sorted(&self.stalls_ms), sorted(&self.returns_ms));
        let all: Vec<String> = self.stalls_ms.iter().map(|stall| format!("{stall:.0}")).collect();
        let name = |figure: &str| format!("{prefix}{figure}");
        // Where no round was survived there is no stall to speak of, not one of 0 ms.
        let report = match (stalls.last(), returns.last()) {
            (Some(stall), Some(back)) => report
                .with(&name("stall_p50_ms"), percentile(&stalls, 0.5))
                .with(&name("stall_p90_ms"), percentile(&stalls, 0.9))
                .with(&name("stall_max_ms"), *stall)
                .with_text(&name("stalls_ms"), &all.join(","))
                .with(&name("all_back_max_ms"), *back),
            _ => report,
        };
        report
            .with(&name("kills"), self.strikes as f64)
            .with(&name("restarts"), self.restarts as f64)
            .with(&name("gbit_per_s"), self.bytes as f64 * 8e-9 / self.seconds.max(1e-3))
            .with_flag(&name("hash_equal"), self.whole)
    }
}

/// One transfer from beginning to end, with a relay struck in each round.
fn strike_again(case: Case, options: &Options, flags: &Flags, outcome: &mut Outcome) -> Result<()> {
    let calm = Duration::from_secs(options.secs.unwrap_or(1));
    let mut rng = StdRng::seed_from_u64(options.seed);
    let receiver = Receiver::start(None, options.seed);
    let mesh = start(case, flags, &receiver);
    wait_all_back(&mesh, case);
    let (_forward, address) = mesh.terminal("caller").forward("callee/bulk");
    let sender = Sender::start(None, address, options.seed, u64::MAX)?;
    let begun = Instant::now();
    let struck = (|| {
        goes_on(&receiver)?;
        for round in 0..flags.rounds {
            if begun.elapsed() > CASE {
                eprintln!("{}: no time for more than {round} rounds", case.name());
                break;
            }
            let stall = strike(&mesh, case, &receiver, calm, &mut rng, outcome)
                .with_context(|| format!("round {round} of seed {}", options.seed))?;
            eprintln!("{} round {round}: {stall}", case.name());
        }
        anyhow::Ok(())
    })();
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome.bytes = receiver.seen().bytes;
    let done = struck.and_then(|()| {
        sender.finish(&receiver, BROKEN).map(drop).map_err(|e| anyhow!("at the end: {e}"))
    });
    if done.is_err() {
        mesh.show_logs();
        for (name, peer) in [("caller", "callee"), ("callee", "caller")] {
            eprintln!("paths of {name}: {:?}", paths::row(mesh.terminal(name), peer));
        }
    }
    outcome.whole = done.is_ok();
    done
}

/// The mesh of a case, with a caller and a callee that never take a direct path.
fn start(case: Case, flags: &Flags, receiver: &Receiver) -> Mesh {
    let terminal = |name: &str| TerminalSpec::new(name).flags(&["--direct", "never"]);
    let caller = terminal("caller");
    let callee = terminal("callee").offers("bulk", &format!("tcp://{}", receiver.address()));
    let (links, caller, callee) = if case.in_the_middle() {
        let outer = ["left", "right"].map(|name| (name.to_owned(), "upper,lower".to_owned()));
        let inner = ["upper", "lower"].map(|name| (name.to_owned(), "left,right".to_owned()));
        (outer.into_iter().chain(inner).collect(), caller.at(&["left"]), callee.at(&["right"]))
    } else {
        let names: Vec<String> = (1..=flags.relays).map(|n| format!("r{n}")).collect();
        let others = |name: &String| {
            let others: Vec<&str> =
                names.iter().filter(|other| *other != name).map(String::as_str).collect();
            (name.clone(), others.join(","))
        };
        (names.iter().map(others).collect::<Vec<_>>(), caller, callee)
    };
    let line = Impairment::delayed(Duration::from_millis(flags.delay));
    let relays = links.iter().map(|(name, others)| {
        let relay = RelaySpec::new(name).links(&[others]);
        if flags.delay > 0 { relay.behind(line) } else { relay }
    });
    let spec = relays.fold(MeshSpec::new(), MeshSpec::relay);
    spec.terminal(callee).terminal(caller).start()
}

/// Strikes a relay that carries the transfer, waits until the transfer goes on and everything is back; how long the
/// transfer stood still, with the name of the relay.
fn strike(
    mesh: &Mesh,
    case: Case,
    receiver: &Receiver,
    calm: Duration,
    rng: &mut StdRng,
    outcome: &mut Outcome,
) -> Result<String> {
    let route = route(mesh)?;
    let victim = match (case.in_the_middle(), &route[..]) {
        (true, [_, middle, _]) => middle,
        (true, _) => bail!("no relay in the middle of {route:?}"),
        (false, _) => &route[rng.random_range(0..route.len())],
    };
    let relay = mesh.relay(victim);
    receiver.mark();
    outcome.strikes += 1;
    if case.hangs() {
        relay.signal(Signal::Stop);
        std::thread::sleep(HANG);
        goes_on(receiver).with_context(|| format!("while {victim} of {route:?} hangs"))?;
        relay.signal(Signal::Continue);
    } else {
        relay.kill();
        goes_on(receiver).with_context(|| format!("after kill -9 of {victim} of {route:?}"))?;
        relay.start();
        outcome.restarts += 1;
    }
    let back = wait_all_back(mesh, case);
    std::thread::sleep(calm);
    goes_on(receiver).with_context(|| format!("after {victim} of {route:?} is back"))?;
    let stall = receiver.seen().longest_gap.as_secs_f64() * 1000.0;
    outcome.stalls_ms.push(stall);
    outcome.returns_ms.push(back.as_secs_f64() * 1000.0);
    Ok(format!("{victim} of {route:?}, stall {stall:.0} ms, all back after {back:.1?}"))
}

fn goes_on(receiver: &Receiver) -> Result<()> {
    receiver.wait_for_more(GOES_ON, BROKEN).map_err(|error| anyhow!("the transfer: {error}"))
}

/// The relays that carry the transfer.
fn route(mesh: &Mesh) -> Result<Vec<String>> {
    let row = paths::row(mesh.terminal("caller"), "callee").map_err(|e| anyhow!(e))?;
    let route = paths::relays(&row);
    ensure!(row["path"] == "relayed" && !route.is_empty(), "not relayed: {row}");
    Ok(route)
}

/// Waits until every link stands, both terminals have all their attachments, and every table knows of these and no
/// others; how long that took. Panics when that is not so soon.
fn wait_all_back(mesh: &Mesh, case: Case) -> Duration {
    let begun = Instant::now();
    let wanted = if case.in_the_middle() { 1 } else { 2 };
    let attached = |row: &Value| match row["attachments"].as_array().map_or(0, Vec::len) {
        count if count == wanted => Ok(()),
        _ => Err(format!("not {wanted} attachments: {row}")),
    };
    mesh.wait_for_links();
    for name in ["caller", "callee"] {
        let what = format!("{name} has all attachments");
        eventually(&what, SOON, || {
            let done = mesh.terminal(name).verb(&["status", "--json"]);
            let status = serde_json::from_slice(&done.stdout);
            attached(&status.map_err(|e| format!("{e}: {}", done.stderr))?)
        });
        // An agent may take a relay that died for one that it is attached to; the relay itself does not, once it
        // is back.
        mesh.wait_everywhere(&what, SOON, |relay| attached(&relay.row(name)?));
    }
    begun.elapsed()
}
