//! `run`: the daemon.

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
    #[command(flatten)]
    addresses: AddressArgs,
}

pub(super) fn run(global: &Global, args: RunArgs) -> anyhow::Result<()> {
    let flags = Layer { links: args.links, ..args.addresses.layer() };
    let config = RelayConfig::resolve(flags.or(global.layer()), global.config.as_deref())?;
    start_log(&config.log)?;
    tokio::runtime::Runtime::new()?.block_on(crate::app::run(config))
}
