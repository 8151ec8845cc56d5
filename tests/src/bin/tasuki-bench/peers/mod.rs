//! Other systems, in the same rounds as ours. What is not installed is named as missing.

mod iroh;
mod rathole;
pub(crate) mod splice;
mod ssh;

use std::path::PathBuf;

use anyhow::Result;

use crate::procs::caught;
use crate::side::Side;
use crate::site::{Services, Site};

/// A folder with programs that are not in `PATH`.
const FOLDER: &str = "TASUKI_BENCH_PEERS";

/// Which sides take part.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SideFlags {
    /// Measure these sides and no others, by the names that the figures begin with.
    #[arg(long, value_delimiter = ',')]
    sides: Vec<String>,
}

impl SideFlags {
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.sides.is_empty() || self.sides.iter().any(|side| side == name)
    }
}

/// Peers that run, and those that cannot.
#[derive(Default)]
pub(crate) struct Peers {
    pub(crate) sides: Vec<Side>,
    /// Each with the reason.
    pub(crate) missing: Vec<(String, String)>,
}

impl Peers {
    /// Starts every peer that is wanted and installed.
    pub(crate) fn start(site: &Site, services: &Services, flags: &SideFlags) -> Peers {
        let mut peers = Peers::default();
        if flags.wants("no_tunnel") {
            peers.sides.push(no_tunnel(site, services));
        }
        let starts: [(&str, Start); 7] = [
            ("splice", splice::start),
            ("ssh_r", |site, services| ssh::start(site, services, false)),
            ("ssh_rl", |site, services| ssh::start(site, services, true)),
            ("rathole", |site, services| rathole::start(site, services, rathole::Transport::Plain)),
            ("rathole_tls", |site, services| {
                rathole::start(site, services, rathole::Transport::Tls)
            }),
            ("rathole_noise", |site, services| {
                rathole::start(site, services, rathole::Transport::Noise)
            }),
            ("iroh", iroh::start),
        ];
        for (name, start) in starts.into_iter().filter(|(name, _)| flags.wants(name)) {
            let started = caught(|| {
                let side = start(site, services)?;
                side.wait(site).map(|()| side)
            });
            match started {
                Ok(side) => peers.sides.push(side),
                Err(why) => {
                    eprintln!("MISSING: {name}: {why:#}");
                    peers.missing.push((name.to_owned(), format!("{why:#}")));
                }
            }
        }
        peers
    }
}

type Start = fn(&Site, &Services) -> Result<Side>;

/// The services as they are, without anything between.
fn no_tunnel(site: &Site, services: &Services) -> Side {
    let at = |port| (site.callee_ip(), port).into();
    Side {
        name: "no_tunnel".into(),
        bulk: at(services.bulk.port()),
        echo: at(services.echo.port()),
        udp: None,
        terminals: None,
        relays: Vec::new(),
        ends: Vec::new(),
        _keep: Vec::new(),
    }
}

/// Where a peer's program is: in the folder that `TASUKI_BENCH_PEERS` names, or in `PATH`.
///
/// # Errors
/// When it is not installed.
fn program(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    folder
        .into_iter()
        .chain(std::env::split_paths(&path))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| anyhow::anyhow!("{name} is neither in PATH nor in ${FOLDER}"))
}
