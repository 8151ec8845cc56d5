//! New sessions: call, accept, end-to-end handshake, first byte; over one relay or several (P6). The callers are
//! agents in a process of their own, the callees are `tasuki-agent`s.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tasuki_tests::lab::wait::{POLL, SOON};
use tasuki_tests::lab::{Mesh, TerminalSpec};

use crate::Options;
use crate::helper::{Helper, number};
use crate::ours::{name, relays_in_line};
use crate::procs::cpu_seconds;
use crate::report::Report;
use crate::rounds::{Figures, RoundFlags};
use crate::site::Site;

const AT_ONCE: usize = 8;
/// Agents that call, and that are called: more than one, so that none of them is what is measured.
const CALLERS: usize = 4;
const CALLEES: usize = 2;

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    rounds: RoundFlags,
    /// Relays on the route; a side for each.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=16))]
    relays: Vec<u64>,
    /// In namespaces with an MTU of 1500 instead of on loopback.
    #[arg(long)]
    netns: bool,
}

/// One route.
pub(crate) struct Side {
    name: String,
    relays: Vec<u32>,
    pub(crate) callers: Helper,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    let time = Duration::from_secs(options.secs.unwrap_or(5));
    let most = flags.relays.iter().max().map_or(1, |most| *most as usize);
    let site = Site::new(flags.netns, most)?;
    let mut mesh = relays_in_line(&site, most);
    let mut sides = Vec::new();
    for relays in &flags.relays {
        sides.push(start(&site, &mut mesh, *relays as usize)?);
    }
    let (mut figures, mut rounds, mut errors) = (Figures::default(), 0, Vec::new());
    for round in flags.rounds.iter() {
        for side in &mut sides {
            measure(round, side, time, &mut figures, &mut errors)?;
        }
        rounds = round + 1;
    }
    let (sessions, labels) = left_over(&mesh);
    ensure!(
        sessions == 0.0 && labels == 0.0,
        "{sessions} sessions and {labels} labels are left at the relays after {SOON:?}"
    );
    let mut report = Report::default()
        .with("rounds", rounds as f64)
        .with("sessions_left", sessions)
        .with("labels_left", labels);
    if !errors.is_empty() {
        report = report.with_text("errors", &errors.join("; "));
    }
    Ok(figures.report(report))
}

/// Callers at the first relay of a mesh and callees at the last of the route.
pub(crate) fn start(site: &Site, mesh: &mut Mesh, relays: usize) -> Result<Side> {
    let far = format!("r{relays}");
    let add = |mesh: &mut Mesh, spec: TerminalSpec, callee: bool| {
        let at = if callee { &site.callee } else { &site.caller };
        mesh.add_terminal(match at {
            Some(namespace) => spec.on(namespace),
            None => spec,
        });
    };
    let callees: Vec<String> = (0..CALLEES).map(|n| format!("callee-{relays}-{n}")).collect();
    for name in &callees {
        add(mesh, TerminalSpec::new(name).at(&[&far]), true);
        mesh.wait_state(name, "logged-in", SOON);
    }
    let callers: Vec<String> = (0..CALLERS).map(|n| format!("caller-{relays}-{n}")).collect();
    for name in &callers {
        add(mesh, TerminalSpec::new(name).stays_off(), false);
    }
    let data: Vec<String> =
        callers.iter().map(|name| mesh.path(name).display().to_string()).collect();
    let log = mesh.path(&format!("callers-{relays}.log"));
    let arguments = ["--data", &data.join(","), "--targets", &callees.join(","), "--relay", "r1"];
    let mut callers = Helper::start("caller", arguments, site.caller.as_ref(), &log)?;
    callers.hear(SOON)?;
    let relays: Vec<String> = (1..=relays).map(|n| format!("r{n}")).collect();
    let pids = relays.iter().filter_map(|name| mesh.relay(name).pid()).collect();
    Ok(Side { name: name(relays.len()), relays: pids, callers })
}

fn measure(
    round: usize,
    side: &mut Side,
    time: Duration,
    figures: &mut Figures,
    errors: &mut Vec<String>,
) -> Result<()> {
    for at_once in [AT_ONCE, 1] {
        let before = cpu_seconds(&side.relays);
        let command = format!("{at_once} {}", time.as_millis());
        let answer = side.callers.ask(&command, time + Duration::from_secs(60))?;
        let cost = cpu_seconds(&side.relays) - before;
        let rate = number(&answer, "sessions_per_s")?;
        let (p50, p99) = (number(&answer, "p50_ms")?, number(&answer, "p99_ms")?);
        let failed = number(&answer, "failed")?;
        ensure!(rate > 0.0, "{}: no call came to anything: {answer}", side.name);
        let mut put = |figure: &str, value| {
            figures.put(round, &side.name, &format!("{at_once}_{figure}"), value);
        };
        put("sessions_per_s", rate);
        put("p50_ms", p50);
        put("p99_ms", p99);
        put("failed_calls", failed);
        put("relay_cpu_ms_per_session", cost * 1000.0 / (rate * time.as_secs_f64()));
        eprintln!(
            "round {round} {:<18} {at_once} at once: {rate:.0} sessions/s, p50 {p50:.2} ms, p99 {p99:.2} ms, \
             {failed} failed",
            side.name
        );
        if failed > 0.0 {
            errors.push(format!("{}: {failed} failed: {}", side.name, answer["errors"]));
        }
    }
    Ok(())
}

/// Sessions and labels that the relays still hold, once they had time to let them go. Not a number where a relay does
/// not show them.
pub(crate) fn left_over(mesh: &Mesh) -> (f64, f64) {
    let begun = Instant::now();
    loop {
        let sum = |name: &str| -> f64 {
            mesh.running_relays().map(|relay| relay.api.metric(name).unwrap_or(f64::NAN)).sum()
        };
        let (sessions, labels) = (sum("tasuki_sessions"), sum("tasuki_switch_labels"));
        if sessions == 0.0 && labels == 0.0 || begun.elapsed() > SOON {
            return (sessions, labels);
        }
        std::thread::sleep(POLL);
    }
}
