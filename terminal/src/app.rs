//! Puts the daemon together.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::agent::Upper;
use crate::config::{self, Config};
use crate::io::driver;
use crate::io::ipc::server::IpcListener;
use crate::io::services::Services;

/// Accepted sessions that wait to be served.
const INCOMING: usize = 64;
/// How long the log-out at the end may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs the daemon until SIGTERM or Ctrl-C, then logs out.
///
/// # Errors
/// When the data directory is not usable, in use, or without an identity.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ipc = IpcListener::bind(&config.data, config::is_root()).map_err(|error| {
        let data = config.data.display();
        match error.kind() {
            ErrorKind::ResourceBusy => anyhow::anyhow!(
                "already-running: another agent runs on {data}: stop it, or use another --data"
            ),
            ErrorKind::NotFound => anyhow::anyhow!(
                "not-enrolled: {data} does not exist: run 'tasuki-agent enroll TOKEN' first"
            ),
            _ => anyhow::anyhow!("data-not-usable: {data}: {error}: check owner and mode"),
        }
    })?;
    let access = Arc::new(config.access.clone());
    let (sessions, incoming) = mpsc::channel(INCOMING);
    let upper = Upper { access: access.clone(), incoming: sessions };
    let agent = driver::start(&config, upper).await.context("the agent could not start")?;
    let services = Services::new(access, config.exposed.clone(), config.data.join("inbox"));
    let serve_verbs = ipc.serve(agent.clone(), services.clone());
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
    tracing::info!(data = %config.data.display(), "running");
    tokio::select! {
        () = serve_verbs => {}
        () = services.run(incoming) => tracing::warn!("the agent is gone"),
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("Ctrl-C"),
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    if tokio::time::timeout(FAREWELL, agent.logout()).await.is_err() {
        tracing::warn!("the relays did not confirm the log-out in time");
    }
    Ok(())
}
