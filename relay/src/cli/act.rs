//! Verbs that act on the running relay.

use super::{Global, local};

/// Verbs that act on the running relay.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Act {
    /// Take no new terminals
    #[command(after_help = "Example: tasuki-relay drain")]
    Drain,
}

/// Runs a verb.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn run(global: &Global, act: Act) -> anyhow::Result<()> {
    let path = match act {
        Act::Drain => "/api/v1/drain",
    };
    println!("{}", local::call(&local::socket(global), "POST", path, None).await?.1);
    Ok(())
}
