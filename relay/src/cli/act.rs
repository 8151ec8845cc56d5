//! Verbs that act on the running relay.

use anyhow::{Result, bail};
use tasuki_proto::{RelayName, SessionId, TerminalId};

use super::{Global, local, query};

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
    /// Take no new terminals
    #[command(after_help = "Example: tasuki-relay drain")]
    Drain,
    /// Take terminals again
    #[command(after_help = "Example: tasuki-relay undrain")]
    Undrain,
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
        Act::Drain => ("/api/v1/drain".to_owned(), "draining".to_owned()),
        Act::Undrain => ("/api/v1/undrain".to_owned(), "takes terminals".to_owned()),
    };
    let answer = local::ask(&socket, "POST", &path, None).await?;
    query::print(out, &if global.json { format!("{answer}\n") } else { format!("{did}\n") })
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
