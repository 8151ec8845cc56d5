//! `run`: the daemon.

use std::time::Duration;

use clap::Args;

use super::{AddressArgs, Global, start_log};
use crate::config::{Layer, Links, RelayConfig};

/// Runs the relay on a data directory that 'init' or 'join' made.
#[derive(Debug, Args)]
#[command(after_help = "Example: tasuki-relay run --links r2,r3")]
pub(super) struct RunArgs {
    /// auto: link with the relays that are configured or learned of; names: with these and no others
    #[arg(long, value_name = "auto|NAME,...")]
    links: Option<Links>,
    /// How long SIGTERM lets terminals and sessions leave, at most, before the relay ends; 0: not at all [default: 5]
    #[arg(long, value_name = "SECS")]
    stop_time: Option<u32>,
    #[command(flatten)]
    addresses: AddressArgs,
}

pub(super) fn run(global: &Global, args: RunArgs) -> anyhow::Result<()> {
    let stop = args.stop_time.map(|secs| Duration::from_secs(secs.into()));
    let flags = Layer { links: args.links, stop, ..args.addresses.layer() };
    let config = RelayConfig::resolve(flags.or(global.layer()), global.config.as_deref())?;
    start_log(&config.log)?;
    tokio::runtime::Runtime::new()?.block_on(crate::app::run(config))
}
