//! Puts a running relay together: identity, store, core, switch, endpoints, status endpoint.

use crate::config::RelayConfig;

/// Runs the relay until it is told to stop.
///
/// # Errors
/// When the data directory holds no identity.
pub async fn run(config: RelayConfig) -> anyhow::Result<()> {
    anyhow::bail!("not-built: {}: this build has no daemon", config.data.display())
}
