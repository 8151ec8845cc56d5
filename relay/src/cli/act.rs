//! Verbs that act on the running relay.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tasuki_proto::text::escape_json;
use tasuki_proto::{RefusalCode, RelayName, SessionId, TerminalId, limits};
use tokio::net::UnixStream;

use super::{Global, local, query, token};

/// How often a relay that drains is asked who is left.
const LOOK: Duration = Duration::from_millis(500);
/// So often it may say that it is about to end: ten seconds.
const ENDS: u32 = 20;

/// Verbs that act on the running relay.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Act {
    /// Cut a terminal's or a relay's connections; it may come back
    #[command(after_help = "Example: tasuki-relay kick plant7")]
    Kick(Name),
    /// Revoke a terminal's or a relay's identity for ever, in the whole mesh
    #[command(after_help = "Example: tasuki-relay revoke plant7")]
    Revoke(Name),
    /// End a session on both sides
    #[command(after_help = "Example: tasuki-relay end 5be0c3b1a2d4f60700000000deadbeef")]
    End {
        /// The session's id; `tasuki-relay sessions` lists them
        session: SessionId,
    },
    /// Take no new terminals, and let those that are here move to other relays, with their sessions
    #[command(after_help = "Example: tasuki-relay drain --exit --deadline 10m")]
    Drain(Drain),
    /// Take terminals again
    #[command(after_help = "Example: tasuki-relay undrain")]
    Undrain,
}

/// Whether the relay ends, and when.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Drain {
    /// End the relay when no terminal and no session is left, and show until then how many are
    #[arg(long)]
    exit: bool,
    /// End it after this time at the latest: a number and s, m, h or d
    #[arg(long, default_value = "5m", value_parser = deadline, requires = "exit", value_name = "TIME")]
    deadline: Duration,
}

fn deadline(word: &str) -> Result<Duration, String> {
    let time = token::duration(word)?;
    if time > limits::DRAIN_TIME {
        return Err(format!("'{word}' is more than {} h", limits::DRAIN_TIME.as_secs() / 3600));
    }
    Ok(time)
}

/// Whom a verb is about.
#[derive(Debug, Clone, clap::Args)]
pub struct Name {
    /// A terminal's id, or a relay's name
    name: TerminalId,
    /// NAME is a terminal, also where a relay is called the same
    #[arg(long, conflicts_with = "relay")]
    terminal: bool,
    /// NAME is a relay, also where a terminal is called the same
    #[arg(long)]
    relay: bool,
}

/// Runs a verb and prints what it did.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn run(global: &Global, act: Act) -> Result<()> {
    query::unless_unread(perform(global, act, &mut std::io::stdout()).await)
}

/// Runs a verb and writes what it did to `out`.
pub(crate) async fn perform(global: &Global, act: Act, out: query::Out<'_>) -> Result<()> {
    let socket = local::socket(global).await;
    let (path, did) = match act {
        Act::Kick(name) => {
            (format!("{}/kick", name.path(&socket).await?), format!("kicked {}", name.name))
        }
        Act::Revoke(name) => {
            (format!("{}/revoke", name.path(&socket).await?), format!("revoked {}", name.name))
        }
        Act::End { session } => {
            (format!("/api/v1/sessions/{session}/end"), format!("ended {session}"))
        }
        Act::Drain(how) => return drain(&socket, how, global.json, out).await,
        Act::Undrain => ("/api/v1/undrain".to_owned(), "takes terminals".to_owned()),
    };
    let answer = local::ask(&socket, "POST", &path, None).await?;
    query::print(
        out,
        &if global.json {
            format!("{}\n", escape_json(&answer.to_string()))
        } else {
            format!("{did}\n")
        },
    )
}

/// Drains, and says who is left; where the relay is to end, until it has.
async fn drain(socket: &Path, how: Drain, json: bool, out: query::Out<'_>) -> Result<()> {
    let path = match how.exit {
        true => format!("/api/v1/drain?end_within_s={}", how.deadline.as_secs()),
        false => "/api/v1/drain".to_owned(),
    };
    let life = local::ask(socket, "GET", "/api/v1/status", None).await?["incarnation"].clone();
    local::ask(socket, "POST", &path, None).await?;
    let (mut shown, mut ends) = (Value::Null, 0);
    loop {
        let status = match local::ask(socket, "GET", "/api/v1/status", None).await {
            Ok(status) if status["incarnation"] == life => status,
            Err(error) if UnixStream::connect(socket).await.is_ok() => {
                // It still answers and its core does not: it is about to be gone.
                let is_ending = error.to_string().starts_with(RefusalCode::ShuttingDown.word());
                ends += 1;
                if how.exit && is_ending && ends < ENDS {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                return Err(error);
            }
            // It is gone, or another one runs in its place.
            _ if json => return query::print(out, &format!("{}\n", json!({"ended": true}))),
            _ => return query::print(out, "ended\n"),
        };
        let left = json!({"terminals": status["terminals"], "sessions": status["sessions"]});
        if left != shown {
            let line = match json {
                true => left.to_string(),
                false => format!(
                    "draining: {} terminals, {} sessions",
                    left["terminals"], left["sessions"]
                ),
            };
            query::print(out, &format!("{line}\n"))?;
            shown = left;
        }
        if !how.exit {
            return Ok(());
        }
        if status["draining"] != true {
            bail!("undrained: somebody told the relay to stay: drain it again to end it");
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Name {
    /// The path of the one that is meant.
    async fn path(&self, socket: &std::path::Path) -> Result<String> {
        let (terminal, relay) = match (self.terminal, self.relay) {
            (false, false) => {
                (is_terminal(socket, &self.name).await?, is_relay(socket, &self.name).await?)
            }
            given => given,
        };
        match (terminal, relay) {
            (true, false) => Ok(format!("/api/v1/terminals/{}", self.name)),
            (false, true) => Ok(format!("/api/v1/relays/{}", self.name)),
            (true, true) => bail!(
                "ambiguous-name: {}: a terminal and a relay have it: add --terminal or --relay",
                self.name
            ),
            (false, false) => bail!(
                "unknown-name: {}: no terminal or relay of this mesh has it; 'tasuki-relay terminals' and \
                 'tasuki-relay relays' list them",
                self.name
            ),
        }
    }
}

async fn is_terminal(socket: &std::path::Path, name: &TerminalId) -> Result<bool> {
    let (status, body) =
        local::call(socket, "GET", &format!("/api/v1/terminals/{name}"), None).await?;
    match status {
        200 => Ok(true),
        404 => Ok(false),
        _ => Err(local::refused(status, &body)),
    }
}

async fn is_relay(socket: &std::path::Path, name: &TerminalId) -> Result<bool> {
    // Both kinds of names are DNS labels.
    let name = RelayName::new(name.as_str())?;
    let mut found = false;
    query::each_page(socket, "/api/v1/relays", &[], &mut |rows| {
        found |= rows.iter().any(|row| row["name"] == name.as_str());
        Ok(())
    })
    .await?;
    Ok(found)
}
