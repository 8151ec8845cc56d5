//! Everything fails, by a script that the seed decides, while transfers run and calls are made; and nothing is lost.
//!
//! Relays and terminals are processes. Half of the terminals are in pairs with a transfer each, of which every byte is
//! checked; the others call all the time. A *round* strikes one or two nodes (kill -9, a hang, SIGTERM, drains; with
//! `--netns` partitions too), lets that last for some seconds, and mends it. Then
//!
//! - a transfer between agents that lived goes on within the resume time, with every byte the right one;
//! - one of a killed agent has ended, and its peer says with which code; it begins anew;
//! - once every terminal has two attachments again, calls work.
//!
//! At the end every transfer is whole, all tables are equal, every terminal has two attachments, no relay has a session or
//! a label, nobody has more descriptors than at the beginning, and no process is there that should not be.

mod calls;
mod check;
mod load;
mod script;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tasuki_tests::lab::netns::{Namespace, Wan};
use tasuki_tests::lab::process::Signal;
use tasuki_tests::lab::programs::TcpService;
use tasuki_tests::lab::{Mesh, MeshSpec, RelaySpec, TerminalSpec, eventually};

use self::calls::Callers;
use self::load::Load;
use self::script::{Blow, Round, Strike};
use crate::Options;
use crate::procs::caught;
use crate::report::Report;

/// Who makes calls at the same time.
const CALLERS: u64 = 2;
/// How long a process may take that was told to end or to drain.
const ENDS: Duration = Duration::from_secs(20);
/// The time in which everything is as before after a round, and at the end: that of a session without a path, and
/// what a debug build takes on a loaded machine.
const MENDED: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    /// How long rounds go on, in minutes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Relays, all linked with each other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(3..=8))]
    relays: u64,
    /// Terminals: half of them in pairs with a transfer.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(8..=60))]
    terminals: u64,
    /// Each node in a network namespace, and partitions among the strikes.
    #[arg(long)]
    netns: bool,
}

/// Who is there.
#[derive(Debug, Clone)]
struct Names {
    relays: Vec<String>,
    terminals: Vec<String>,
    /// How many of the terminals are in pairs with a transfer: the first ones.
    paired: usize,
}

impl Names {
    fn new(relays: u64, terminals: u64) -> Names {
        Names {
            relays: (1..=relays).map(|n| format!("r{n}")).collect(),
            terminals: (1..=terminals).map(|n| format!("t{n:02}")).collect(),
            paired: terminals as usize / 4 * 2,
        }
    }

    fn is_relay(&self, name: &str) -> bool {
        self.relays.iter().any(|relay| relay == name)
    }
}

/// A place for each node, and the internet between them.
struct Site {
    places: BTreeMap<String, (Namespace, Ipv4Addr)>,
    wan: Wan,
}

impl Site {
    fn new(names: &Names) -> Result<Site> {
        let wan =
            Wan::new("chaos with partitions").context("no namespaces here: leave out --netns")?;
        let relays = names.relays.iter().zip(11..);
        let terminals = names.terminals.iter().zip(101..);
        let place = |(name, octet): (&String, u8)| {
            (name.clone(), (wan.host(name, octet), Wan::address(octet)))
        };
        let places = relays.chain(terminals).map(place).collect();
        Ok(Site { places, wan })
    }

    fn place(&self, name: &str) -> Option<&Namespace> {
        self.places.get(name).map(|(namespace, _)| namespace)
    }

    /// What passes between a node and about half of the others is lost.
    fn partition(&self, node: &str, rng: &mut StdRng) {
        let Some((_, here)) = self.places.get(node) else { return };
        for (name, (_, there)) in &self.places {
            if name != node && rng.random_bool(0.5) {
                self.wan.block((*here).into(), (*there).into());
            }
        }
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    rounds: usize,
    strikes: BTreeMap<&'static str, usize>,
    stalls_ms: Vec<f64>,
    bytes: u64,
    anew: usize,
}

/// The mesh and all that it carries.
struct Chaos<'a> {
    mesh: &'a Mesh,
    names: &'a Names,
    site: Option<&'a Site>,
    callers: &'a Callers,
    loads: &'a mut [Load],
    outcome: Outcome,
    begun: Instant,
}

pub(crate) fn run(options: &Options, flags: &Flags) -> Result<Report> {
    println!("seed {}", options.seed);
    let names = Names::new(flags.relays, flags.terminals);
    let site = flags.netns.then(|| Site::new(&names)).transpose()?;
    let mut loads: Vec<Load> = names.terminals[..names.paired]
        .chunks(2)
        .map(|pair| {
            let place = |name: &str| site.as_ref().and_then(|site| site.place(name));
            Load::new((&pair[0], &pair[1]), (place(&pair[0]), place(&pair[1])), options.seed)
        })
        .collect();
    let (mesh, _echoes) = start(&names, site.as_ref(), &loads);
    let callers = Callers::new(&names);
    let mut chaos = Chaos {
        mesh: &mesh,
        names: &names,
        site: site.as_ref(),
        callers: &callers,
        loads: &mut loads,
        outcome: Outcome::default(),
        begun: Instant::now(),
    };
    let mut result = caught(|| chaos.all(options.seed, Duration::from_secs(flags.minutes * 60)));
    if result.is_err() {
        mesh.show_logs();
    }
    let outcome = chaos.outcome;
    drop(loads);
    // An ERROR line in a log is a failure too.
    result = result.and(caught(|| {
        drop(mesh);
        Ok(())
    }));
    Ok(outcome.report(options.seed, &callers, result))
}

impl Outcome {
    fn report(mut self, seed: u64, callers: &Callers, result: Result<()>) -> Report {
        let (made, refused, wrong) = callers.counts();
        self.stalls_ms.sort_by(f64::total_cmp);
        let mut report = Report::default()
            .with("seed", seed as f64)
            .with("rounds", self.rounds as f64)
            .with("calls", made as f64)
            .with("calls_refused", refused as f64)
            .with("calls_wrong", wrong.len() as f64)
            .with("transfers_anew", self.anew as f64)
            .with("bytes", self.bytes as f64)
            .with("stall_max_ms", self.stalls_ms.last().copied().unwrap_or_default())
            .with_flag("whole", result.is_ok() && wrong.is_empty());
        for (strike, count) in self.strikes {
            report = report.with(&format!("strikes_{strike}"), count as f64);
        }
        match result {
            Err(error) => report.failed(format!("seed {seed}: {error:#}")),
            Ok(()) if wrong.is_empty() => report,
            Ok(()) => report.failed(format!("seed {seed}: {}", wrong.join("; "))),
        }
    }
}

/// The mesh; every other pair takes direct paths.
fn start(names: &Names, site: Option<&Site>, loads: &[Load]) -> (Mesh, Vec<TcpService>) {
    let mut spec = MeshSpec::new();
    for name in &names.relays {
        let others: Vec<&str> =
            names.relays.iter().filter(|other| *other != name).map(String::as_str).collect();
        let relay = RelaySpec::new(name).links(&others).quick_silence();
        spec = spec.relay(match site.and_then(|site| site.places.get(name)) {
            Some((namespace, address)) => relay.on(namespace, *address),
            None => relay,
        });
    }
    let mut echoes = Vec::new();
    for (number, name) in names.terminals.iter().enumerate() {
        let place = site.and_then(|site| site.place(name));
        if echoes.is_empty() || place.is_some() {
            echoes.push(TcpService::echo(place));
        }
        let echo = &echoes[echoes.len() - 1];
        // A dead attachment is noticed soon; a session waits its whole time, which is longer than any strike lasts.
        let mut terminal = TerminalSpec::new(name)
            .flags(&["--keep-alive", "1", "--idle", "3"])
            .offers("echo", &format!("tcp://{}", echo.address()));
        if let Some(load) = loads.iter().find(|load| load.to == *name) {
            terminal = terminal.offers("bulk", &load.url());
        }
        if number % 4 < 2 {
            terminal = terminal.flags(&["--direct", "never"]);
        }
        spec = spec.terminal(match place {
            Some(place) => terminal.on(place),
            None => terminal,
        });
    }
    (spec.start(), echoes)
}

impl Chaos<'_> {
    /// Rounds for so long, and what has to be so afterwards.
    fn all(&mut self, seed: u64, time: Duration) -> Result<()> {
        check::all_attached(self.mesh, self.names);
        let descriptors = check::descriptors(self.mesh, self.names);
        self.loads.iter_mut().try_for_each(|load| load.begin(self.mesh))?;
        self.begun = Instant::now();
        let (mesh, callers) = (self.mesh, self.callers);
        std::thread::scope(|scope| {
            for number in 0..CALLERS {
                scope.spawn(move || callers.run(mesh, seed ^ number << 32));
            }
            let done = caught(|| self.rounds(seed, time));
            callers.stop();
            done
        })?;
        self.say("all is mended; the end");
        for load in self.loads.iter_mut() {
            self.outcome.bytes += load.finish(MENDED)?;
        }
        check::nothing_left(self.mesh, self.names, &descriptors)
    }

    fn say(&self, what: &str) {
        println!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn rounds(&mut self, seed: u64, time: Duration) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        while self.begun.elapsed() < time {
            let round = script::next(&mut rng, self.names, self.site.is_some());
            let blows: Vec<String> = round.blows.iter().map(Blow::to_string).collect();
            let what = format!("{} for {:.1?}", blows.join(", "), round.lasts);
            self.say(&what);
            self.round(&round, &mut rng).context(what)?;
            self.outcome.rounds += 1;
        }
        Ok(())
    }

    fn round(&mut self, round: &Round, rng: &mut StdRng) -> Result<()> {
        self.callers.weather_changes();
        for load in self.loads.iter() {
            load.stall();
        }
        for blow in &round.blows {
            *self.outcome.strikes.entry(blow.strike.name()).or_default() += 1;
            self.strike(blow, rng);
        }
        std::thread::sleep(round.lasts);
        round.blows.iter().try_for_each(|blow| self.mend(blow))?;
        let mended = Instant::now();
        let stall = self.loads_go_on(round)?;
        check::all_attached(self.mesh, self.names);
        self.say(&format!("  all back {:.1?} later, stall {stall:.1?}", mended.elapsed()));
        self.callers.weather_changes();
        std::thread::sleep(round.calm);
        Ok(())
    }

    fn strike(&self, blow: &Blow, rng: &mut StdRng) {
        let signal = match blow.strike {
            Strike::Kill if self.names.is_relay(&blow.node) => {
                return self.mesh.relay(&blow.node).kill();
            }
            Strike::Kill => return self.mesh.terminal(&blow.node).kill(),
            Strike::Hang => Signal::Stop,
            Strike::Terminate => Signal::Terminate,
            Strike::DrainAndEnd | Strike::DrainAndStay => {
                self.mesh.relay(&blow.node).verb(&["drain"]).ok();
                return;
            }
            Strike::Partition => {
                if let Some(site) = self.site {
                    site.partition(&blow.node, rng);
                }
                return;
            }
        };
        self.signal(&blow.node, signal);
    }

    fn signal(&self, node: &str, signal: Signal) {
        if self.names.is_relay(node) {
            self.mesh.relay(node).signal(signal);
        } else {
            self.mesh.terminal(node).signal(signal);
        }
    }

    fn mend(&self, blow: &Blow) -> Result<()> {
        let node = blow.node.as_str();
        match blow.strike {
            Strike::Kill => {}
            Strike::Hang => {
                self.signal(node, Signal::Continue);
                return Ok(());
            }
            Strike::Terminate => self.wait_for_end(node),
            Strike::DrainAndEnd => {
                let drained = self.mesh.relay(node).verb(&["drain", "--exit", "--deadline", "10s"]);
                ensure!(drained.code == 0, "drain of {node}: {}", drained.stderr);
                self.wait_for_end(node);
            }
            Strike::DrainAndStay => {
                self.mesh.relay(node).verb(&["undrain"]).ok();
                return Ok(());
            }
            Strike::Partition => {
                if let Some(site) = self.site {
                    site.wan.allow();
                }
                return Ok(());
            }
        }
        if self.names.is_relay(node) {
            self.mesh.relay(node).start();
        } else {
            let terminal = self.mesh.terminal(node);
            terminal.start();
            // A verb finds no agent before, and does not wait for one.
            eventually(&format!("{node} answers"), ENDS, || match terminal.verb(&["status"]) {
                done if done.code == 0 => Ok(()),
                done => Err(done.stderr),
            });
        }
        Ok(())
    }

    fn wait_for_end(&self, node: &str) {
        eventually(&format!("the end of {node}"), ENDS, || {
            let runs = match self.names.is_relay(node) {
                true => self.mesh.relay(node).is_running(),
                false => self.mesh.terminal(node).is_running(),
            };
            if runs { Err("it runs".to_owned()) } else { Ok(()) }
        });
    }

    /// Transfers between agents that lived go on; others have ended, and begin anew. How long one of the former stood
    /// still at most since the round began.
    fn loads_go_on(&mut self, round: &Round) -> Result<Duration> {
        let died: Vec<&str> = round
            .blows
            .iter()
            .filter(|blow| !blow.strike.leaves_alive())
            .map(|blow| blow.node.as_str())
            .collect();
        let mut longest = Duration::ZERO;
        self.loads.iter_mut().for_each(Load::expect_more);
        for load in self.loads.iter_mut() {
            if died.contains(&load.from.as_str()) || died.contains(&load.to.as_str()) {
                load.has_ended(self.mesh, &died, MENDED)?;
                load.begin(self.mesh)?;
                self.outcome.anew += 1;
            } else {
                load.goes_on(MENDED)?;
                // What stood still with one of its own agents says nothing of the mesh.
                let hung = round.blows.iter().any(|b| b.node == load.from || b.node == load.to);
                if !hung {
                    let stall = load.stall();
                    longest = longest.max(stall);
                    self.outcome.stalls_ms.push(stall.as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(longest)
    }
}
