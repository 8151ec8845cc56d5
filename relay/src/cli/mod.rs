//! The verbs of `tasuki-relay`, one file each.
//!
//! Exit codes: 0 done; 1 refused or failed, with one line on stderr: what, why, what to do; 2 wrong usage.

pub mod act;
mod backup;
mod check;
mod init;
mod join;
pub mod local;
pub mod query;
mod run;
mod take;
mod token;
mod top;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tasuki_proto::identity::write_private;
use tasuki_proto::log::{self, LogFormat};
use tasuki_proto::text::escape;

use crate::config::{Layer, is_in_use};

/// A relay of a Tasuki mesh: joins machines behind NAT.
#[derive(Debug, Parser)]
#[command(
    name = "tasuki-relay",
    version,
    after_help = "Example: tasuki-relay init --name r1 --listen 0.0.0.0:4433 --advertise r1.example.net:4433"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that stand anywhere.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// The data directory [default: /var/lib/tasuki-relay, for an ordinary user $XDG_DATA_HOME/tasuki-relay]
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A TOML file with settings; flags win over it
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,quinn=debug
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How it is logged: text or json [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Machine-readable output
    #[arg(long, global = true)]
    pub json: bool,
}

impl Global {
    /// The flags as settings.
    fn layer(&self) -> Layer {
        Layer {
            data: self.data.clone(),
            log: self.log.clone(),
            log_format: self.log_format,
            ..Layer::default()
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a mesh, and this machine its first relay
    Init(init::InitArgs),
    /// Make a relay of an existing mesh, with a token from 'token relay'
    Join(join::JoinArgs),
    /// Make a one-time token, at the relay that 'init' made
    #[command(subcommand, after_help = "Example: tasuki-relay token terminal plant7")]
    Token(token::TokenVerb),
    /// Run the relay
    Run(run::RunArgs),
    /// Copy what the relay needs to live again into a new folder, also while it runs
    Backup(backup::BackupArgs),
    /// Make a data directory of what 'backup' copied
    Restore(backup::RestoreArgs),
    /// Make this relay the registrar, with the root key, when the registrar is gone for good
    BecomeRegistrar(take::TakeArgs),
    /// Check this machine, the data directory and the relay, and say what to do
    Check(check::CheckArgs),
    /// Show the mesh at a glance in this terminal, as it changes: relays, terminals, sessions, counters
    #[command(
        after_help = "Example: tasuki-relay top\nKeys:    1-4 or Tab change the view, / searches, ? shows all, q quits"
    )]
    Top,
    #[command(flatten)]
    Query(query::Query),
    #[command(flatten)]
    Act(act::Act),
}

/// Wrong usage that the parser of flags cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(&'static str);

const NO_NAME: Usage = Usage("no-name: a relay needs a name of its own: give it with --name");

/// The command line, for documentation.
pub fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match execute(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", escape(&format!("{error:#}").replace('\n', " ")));
            if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<()> {
    let Cli { global, verb } = cli;
    if let Verb::Run(args) = verb {
        return run::run(&global, args);
    }
    let format = global.log_format.unwrap_or_default();
    log::start(global.log.as_deref().unwrap_or("warn"), format)
        .map_err(|error| anyhow::anyhow!("--log: {error}"))?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        match verb {
            Verb::Init(args) => init::init(&global, args).await,
            Verb::Join(args) => join::join(&global, args).await,
            Verb::Token(verb) => token::token(&global, verb).await,
            Verb::Backup(args) => backup::backup(&global, &args),
            Verb::Restore(args) => backup::restore(&global, &args).await,
            Verb::BecomeRegistrar(args) => take::take(&global, args).await,
            Verb::Check(args) => check::run(&global, args).await,
            Verb::Top => top::run(&global).await,
            Verb::Query(query) => query::run(&global, query).await,
            Verb::Act(act) => act::run(&global, act).await,
            Verb::Run(_) => Ok(()),
        }
    })
}

/// Where a relay listens and is reached; kept in the data directory.
#[derive(Debug, Clone, Default, Args)]
struct AddressArgs {
    /// Where to listen, UDP [default: [::]:4433]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<std::net::SocketAddr>,
    /// Where others reach this relay; may be repeated [default: the address listened on, or where --listen is a
    /// wildcard the addresses from which this machine reaches other networks]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Vec<String>,
    /// Where to show the status, TCP; on other than loopback addresses with TLS and for who has the token of
    /// admin.token [default: 127.0.0.1:8433]
    #[arg(long, value_name = "ADDRESS")]
    status: Option<std::net::SocketAddr>,
}

impl AddressArgs {
    fn layer(self) -> Layer {
        Layer {
            listen: self.listen,
            advertise: Some(self.advertise).filter(|given| !given.is_empty()),
            status: self.status,
            ..Layer::default()
        }
    }
}

/// # Errors
/// When `data` belongs to a relay already.
fn refuse_in_use(data: &Path) -> anyhow::Result<()> {
    if is_in_use(data) {
        anyhow::bail!(
            "data-in-use: {}: it belongs to a relay already: give another --data, or remove it",
            data.display()
        );
    }
    Ok(())
}

/// Gives the files of `data` to the directory's owner, where root wrote into the directory of the daemon's user.
fn keep_owner(data: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(data)?;
    for file in std::fs::read_dir(data)? {
        let file = file?;
        let meta = file.metadata()?;
        if meta.uid() != owner.uid() && !meta.is_dir() {
            std::os::unix::fs::lchown(file.path(), Some(owner.uid()), Some(owner.gid()))?;
        }
    }
    Ok(())
}

/// Makes the token that actions over HTTP need.
fn write_admin_token(data: &Path) -> anyhow::Result<()> {
    let bytes: [u8; 24] = rand::random();
    let token = data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
    write_private(&data.join("admin.token"), format!("{token}\n").as_bytes())?;
    Ok(())
}
