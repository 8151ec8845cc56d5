//! The verbs of `tasuki-agent`, one file each.
//!
//! `run` is the daemon and `enroll` works on the data directory; every other verb asks the daemon over its unix
//! socket. Exit codes: 0 done, 1 refused or failed (one line on stderr, the code first), 2 wrong usage.

pub mod dial;
pub mod enroll;
pub mod forward;
pub mod lists;
pub mod ping;
pub mod run;
pub mod send;
pub mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tasuki_proto::identity::word_or_stdin;
use tasuki_proto::log::{self, LogFormat};
use tasuki_proto::text::escape;
use tasuki_proto::{ServiceName, TerminalId};

use crate::config::{self, ConfigErrors, RawConfig, SYSTEM_DATA};
use crate::io::ipc::client::{Client, ClientError};

/// The command line.
#[derive(Debug, Parser)]
#[command(
    name = "tasuki-agent",
    version,
    about = "The agent of a Tasuki terminal",
    after_help = "Example:\n  tasuki-agent run --expose ssh=tcp://127.0.0.1:22 --allow ssh=alice"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags that stand anywhere.
#[derive(Debug, Args)]
struct Global {
    /// The data directory
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// A TOML file with the same settings as the flags
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The log's level: error, warn, info, debug or trace
    #[arg(long, global = true, value_name = "LEVEL")]
    log: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make this machine a terminal of the mesh
    #[command(
        after_help = "Example:\n  tasuki-agent enroll tk1...\n  tasuki-agent enroll - < token.txt"
    )]
    Enroll {
        /// The one-time token that 'tasuki-relay token terminal NAME' printed; - reads it from standard input, so that
        /// other users of this machine do not see it
        token: String,
    },
    /// Run the daemon
    #[command(after_help = "Example:\n  tasuki-agent run --expose ssh=tcp://127.0.0.1:22 \
        --allow ssh=alice,bob --allow inbox=alice\n\nA service without --allow is open to nobody. \
        'inbox' takes files (see send) and needs no --expose; 'ping' answers every terminal of the \
        mesh unless --allow ping=... narrows it.")]
    Run(run::RunArgs),
    /// Show the agent's state
    #[command(after_help = "Example:\n  tasuki-agent status --json")]
    Status,
    /// List the terminals of the mesh
    #[command(after_help = "Example:\n  tasuki-agent ls --state logged-in plant")]
    Ls(lists::LsArgs),
    /// List this terminal's sessions
    #[command(after_help = "Example:\n  tasuki-agent sessions --json")]
    Sessions,
    /// Show which path each session takes, and why
    #[command(after_help = "Example:\n  tasuki-agent paths")]
    Paths,
    /// End a session
    #[command(after_help = "Example:\n  tasuki-agent end 00f3c1d2a4b5968700112233445566ff")]
    End {
        /// Its id, see 'sessions'
        session: String,
    },
    /// Forward a local port to another terminal's service, until Ctrl-C
    #[command(after_help = "Example:\n  tasuki-agent forward 127.0.0.1:2222 plant7/ssh\n  \
        tasuki-agent forward udp:127.0.0.1:5353 plant7/dns")]
    Forward(forward::ForwardArgs),
    /// Connect stdin and stdout to another terminal's service
    #[command(after_help = "Example:\n  ssh -o ProxyCommand='tasuki-agent dial %h/ssh' plant7")]
    Dial {
        /// Whose service, and which
        #[arg(value_name = "TARGET/SERVICE")]
        place: Place,
    },
    /// Measure round trips to another terminal
    #[command(after_help = "Example:\n  tasuki-agent ping plant7 -c 10")]
    Ping(ping::PingArgs),
    /// Send files to another terminal's inbox
    #[command(
        after_help = "Example:\n  tasuki-agent send a.iso b.pdf plant7:\n  tasuki-agent send \
        a.iso plant7:images\n\nAn interrupted file continues where it stopped when it is sent again."
    )]
    Send(send::SendArgs),
    /// End all sessions, log out and stay so
    #[command(after_help = "Example:\n  tasuki-agent logout")]
    Logout,
    /// Log in again
    #[command(after_help = "Example:\n  tasuki-agent login")]
    Login,
}

/// `TARGET/SERVICE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Whose.
    pub target: TerminalId,
    /// Which.
    pub service: ServiceName,
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let (target, service) =
            word.split_once('/').ok_or_else(|| format!("'{word}' is not TARGET/SERVICE"))?;
        Ok(Self {
            target: TerminalId::new(target).map_err(|error| error.to_string())?,
            service: ServiceName::new(service).map_err(|error| error.to_string())?,
        })
    }
}

/// What every verb that asks the daemon needs.
#[derive(Debug, Clone)]
pub struct VerbContext {
    /// Where a daemon may be, the user's own first.
    pub candidates: Vec<PathBuf>,
    /// Lists as JSON.
    pub json: bool,
}

impl VerbContext {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// When none runs.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.candidates)?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = Cli::parse().execute(&mut std::io::stdout());
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(ConfigErrors(lines)) = error.downcast_ref() {
                lines.iter().for_each(|line| eprintln!("error: {}", escape(line)));
                return ExitCode::from(2);
            }
            let output = match error.downcast_ref() {
                Some(ClientError::Output(error)) => Some(error),
                _ => error.downcast_ref::<std::io::Error>(),
            };
            // Who reads the output has enough, as `head`.
            if output.is_none_or(|error| error.kind() != std::io::ErrorKind::BrokenPipe) {
                eprintln!("error: {}", escape(&format!("{error:#}")));
            }
            ExitCode::from(1)
        }
    }
}

impl Cli {
    fn execute(self, out: &mut dyn Write) -> anyhow::Result<()> {
        let raw = match &self.global.config {
            Some(path) => RawConfig::read(path)?,
            None => RawConfig::default(),
        };
        let log = self.global.log.as_ref().or(raw.log.as_ref());
        let default = if matches!(self.verb, Verb::Run(_)) { "info" } else { "warn" };
        start_log(log.map_or(default, String::as_str))?;
        let root = config::is_root();
        let chosen = self.global.data.clone().or_else(|| raw.data.clone());
        let own = chosen.clone().or_else(|| config::own_data(root));
        let mut candidates: Vec<PathBuf> = own.clone().into_iter().collect();
        if chosen.is_none() && !root {
            candidates.push(PathBuf::from(SYSTEM_DATA));
        }
        let context = VerbContext { candidates, json: self.global.json || raw.json == Some(true) };
        let own_data =
            || own.context("no-data-directory: neither HOME nor XDG_DATA_HOME is set: use --data");
        match self.verb {
            Verb::Enroll { token } => {
                let data = own_data()?;
                block_on(async {
                    let token = word_or_stdin(&token).context("bad-token: standard input")?;
                    let id = enroll::enroll(&data, &token).await?;
                    println!("enrolled as {id}: start 'tasuki-agent run'");
                    Ok(())
                })
            }
            Verb::Run(args) => {
                let config = args.config(raw, own_data()?)?;
                block_on(crate::app::run(config))
            }
            Verb::Status => lists::status(&context, out),
            Verb::Ls(args) => lists::ls(&context, args, out),
            Verb::Sessions => lists::sessions(&context, out),
            Verb::Paths => lists::paths(&context, out),
            Verb::End { session } => lists::command(&context, lists::end(session)),
            Verb::Logout => lists::command(&context, lists::logout()),
            Verb::Login => lists::command(&context, lists::login()),
            Verb::Forward(args) => forward::run(&context, &args, out),
            Verb::Dial { place } => dial::run(&context, place),
            Verb::Ping(args) => ping::run(&context, args, out),
            Verb::Send(args) => send::run(&context, &args, out),
        }
    }
}

/// Runs a command line and gives what it printed.
#[cfg(test)]
pub(crate) fn run_line(words: &[String]) -> anyhow::Result<String> {
    let mut out = Vec::new();
    Cli::try_parse_from(words)?.execute(&mut out)?;
    Ok(String::from_utf8(out)?)
}

/// More of them would only wait for each other.
const MOST_THREADS: usize = 8;

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // The tasks of a session hand each other every packet: spread over all processors they cost a fifth more, and
    // take the time of the programs that they serve.
    let threads = std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.min(MOST_THREADS))
        .on_thread_start(tasuki_proto::net::run_in_batches)
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

fn start_log(level: &str) -> Result<(), ConfigErrors> {
    if let Some(error) = log::check(level) {
        return Err(ConfigErrors(vec![format!("log: {error}")]));
    }
    // Tests start it more than once in a process; the first one counts.
    let _ = log::start(level, LogFormat::Text);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_verb_shows_an_example() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let help = verb.render_help().to_string();
            assert!(help.contains("Example:"), "{}", verb.get_name());
        }
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [
            "tasuki-agent --data /d --json ls",
            "tasuki-agent ls --data /d --json",
            "tasuki-agent ls text --json --data /d",
        ] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json && cli.global.data.as_deref() == Some("/d".as_ref()), "{line}");
        }
        assert!(Cli::try_parse_from(["tasuki-agent", "dial", "plant7"]).is_err());
    }

    #[test]
    fn places() {
        let place: Place = "plant7/ssh".parse().unwrap();
        assert_eq!((place.target.as_str(), place.service.as_str()), ("plant7", "ssh"));
        assert!("plant7".parse::<Place>().is_err() && "A/ssh".parse::<Place>().is_err());
    }
}
