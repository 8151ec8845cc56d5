//! What the comparisons have in common: the sides, started once, measured in turn.

use anyhow::{Result, ensure};

use crate::ours::{DIRECT, Ours, name};
use crate::peers::{Peers, SideFlags};
use crate::procs::caught;
use crate::report::Report;
use crate::rounds::RoundFlags;
use crate::side::Side;
use crate::site::{Services, Site};

/// What every comparison takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) rounds: RoundFlags,
    #[command(flatten)]
    pub(crate) sides: SideFlags,
    /// Relays on the route; a side for each.
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u64).range(1..=16))]
    pub(crate) relays: Vec<u64>,
    /// In namespaces with an MTU of 1500 instead of on loopback.
    #[arg(long)]
    pub(crate) netns: bool,
}

/// All sides of a comparison, running.
pub(crate) struct Bench {
    pub(crate) site: Site,
    pub(crate) ours: Ours,
    pub(crate) peers: Peers,
    errors: Vec<String>,
    /// Ends last.
    _services: Services,
}

impl Bench {
    /// Starts everything that takes part.
    pub(crate) fn start(flags: &Flags, iperf: bool) -> Result<Bench> {
        let mut routes: Vec<usize> = flags.relays.iter().map(|n| *n as usize).collect();
        routes.sort_unstable();
        routes.dedup();
        let site = Site::new(flags.netns, *routes.last().unwrap_or(&1))?;
        let services = Services::start(&site, iperf)?;
        routes.retain(|n| flags.sides.wants(&name(*n)));
        let ours = Ours::start(&site, &services, &routes, flags.sides.wants(DIRECT))?;
        let peers = Peers::start(&site, &services, &flags.sides);
        Ok(Bench { site, ours, peers, errors: Vec::new(), _services: services })
    }

    /// Measures every side once, in turn; every other round backwards, so that none is always the first. What fails
    /// is said, and named in the report.
    pub(crate) fn round(
        &mut self,
        round: usize,
        mut measure: impl FnMut(&Site, &Side) -> Result<()>,
    ) {
        let mut sides: Vec<&Side> = self.ours.sides.iter().chain(&self.peers.sides).collect();
        if round % 2 == 1 {
            sides.reverse();
        }
        for side in sides {
            if let Err(error) = caught(|| measure(&self.site, side)) {
                eprintln!("FAILED: {}: {error:#}", side.name);
                self.errors.push(format!("{}: {error:#}", side.name));
            }
        }
    }

    /// The names of our sides.
    pub(crate) fn ours(&self) -> Vec<String> {
        self.ours.sides.iter().map(|side| side.name.clone()).collect()
    }

    /// What took part, what is missing, what failed; to be completed with the figures. Ends everything.
    pub(crate) fn finish(self, rounds: usize) -> Result<Report> {
        let missing: Vec<&str> = self.peers.missing.iter().map(|(name, _)| name.as_str()).collect();
        let mut report = Report::default()
            .with("rounds", rounds as f64)
            .with_text("missing_peers", &missing.join(","));
        for (name, why) in &self.peers.missing {
            report = report.with_text(&format!("missing_{name}"), why);
        }
        if let Some(path) = &self.ours.no_direct {
            report = report.with_text("missing_figures", &format!("{DIRECT}: {path}"));
        }
        if !self.errors.is_empty() {
            report = report.with_text("errors", &self.errors.join("; "));
        }
        let lost = |side: &&Side| {
            self.errors.iter().filter(|e| e.starts_with(&side.name)).count() >= rounds
        };
        ensure!(
            !self.ours.sides.iter().any(|side| lost(&side)),
            "nothing measured: {:?}",
            self.errors
        );
        Ok(report)
    }
}
