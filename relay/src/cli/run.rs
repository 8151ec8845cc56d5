//! `run`: the daemon.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tasuki_proto::log;

use super::{AddressArgs, Global};
use crate::config::{Layer, Links};
use crate::reload::{Reloader, Source};

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
    /// The certificate that the status endpoint shows, in PEM, with those it was signed with; read again when it
    /// changes [default: on loopback none, elsewhere the relay's own]
    #[arg(long, value_name = "FILE", requires = "status_key")]
    status_cert: Option<PathBuf>,
    /// The key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "status_cert")]
    status_key: Option<PathBuf>,
    #[command(flatten)]
    addresses: AddressArgs,
    #[command(flatten)]
    per_address: PerAddressArgs,
}

/// What one remote address may take: an IPv4 address, or an IPv6 /64.
#[derive(Debug, Args)]
struct PerAddressArgs {
    /// Connections from one remote address; terminals behind one NAT share it [default: 4096]
    #[arg(long, value_name = "N")]
    address_connections: Option<u32>,
    /// Handshakes under way from one remote address [default: 512]
    #[arg(long, value_name = "N")]
    address_handshakes: Option<u32>,
    /// New connections per second from one remote address, on average [default: 256]
    #[arg(long, value_name = "N")]
    address_rate: Option<u32>,
    /// New connections at once from one remote address [default: 1024]
    #[arg(long, value_name = "N")]
    address_burst: Option<u32>,
}

pub(super) fn run(global: &Global, args: RunArgs) -> anyhow::Result<()> {
    let most = args.per_address;
    let stop = args.stop_time.map(|secs| Duration::from_secs(secs.into()));
    let flags = Layer {
        links: args.links,
        stop,
        status_cert: args.status_cert,
        status_key: args.status_key,
        address_connections: most.address_connections,
        address_handshakes: most.address_handshakes,
        address_rate: most.address_rate,
        address_burst: most.address_burst,
        ..args.addresses.layer()
    };
    let source = Source { flags: flags.or(global.layer()), file: global.config.clone() };
    let running = source.read()?;
    let log = log::start(&running.log, running.log_format)
        .map_err(|error| anyhow::anyhow!("--log: {error}"))?;
    tasuki_proto::net::allow_files();
    let reloader = Reloader { source, running, log };
    tokio::runtime::Runtime::new()?.block_on(crate::app::run(reloader))
}
