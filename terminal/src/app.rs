//! Puts the daemon together.

use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tasuki_proto::advice;
use tasuki_proto::control::RelayContact;
use tasuki_proto::dial::Dialler;
use tasuki_proto::enrolment::{Enrolled, keep_renewed, load_relays, save_relays};
use tasuki_proto::identity::{Clock, Identity, IdentityCell, write_private};
use tasuki_proto::net::Periods;
use tasuki_proto::traces::Traces;
use tasuki_proto::{LoginEpoch, limits};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::agent::{Agent, Upper};
use crate::config::{self, Config, Direct, RelayChoice};
use crate::core::{login, paths};
use crate::io::driver;
use crate::io::ipc::server::IpcListener;
use crate::io::services::{KeepAlive, Services};

/// The time that has surely passed, s since 1970, in the data directory.
const CLOCK_MARK: &str = "clock.mark";
/// The highest epoch of a log-in that was used, in the data directory.
const EPOCH_MARK: &str = "login.epoch";
/// How often the clock's mark is kept.
const MARK_PERIOD: Duration = Duration::from_secs(3600);
/// How long to wait before what the disk did not take is kept again.
const KEEP_AGAIN: Duration = Duration::from_secs(60);
/// How long the log-out at the end may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs the daemon until SIGTERM or Ctrl-C, then logs out.
///
/// # Errors
/// When the data directory is not usable, in use, or without an identity.
pub async fn run(config: Config) -> anyhow::Result<()> {
    tasuki_proto::net::allow_files();
    if let Some(why) = advice::foreign_owner(&config.data) {
        anyhow::bail!(why);
    }
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
            _ => anyhow::anyhow!("data-not-usable: {data}: {error}: {}", advice::file(&error)),
        }
    })?;
    let access = Arc::new(config.access.clone());
    let (sessions, incoming) = mpsc::channel(limits::ACCEPTED_SESSIONS_QUEUE);
    let upper = Upper { access: access.clone(), incoming: sessions };
    let agent = driver::start(lower_half(&config)?, upper).context("the agent could not start")?;
    let keep_alive = KeepAlive::new(config.tcp_keep_alive);
    let inbox = (config.data.join("inbox"), config.inbox);
    let services = Services::new(access, config.exposed.clone(), inbox, keep_alive);
    let serve_verbs = ipc.serve(agent.clone(), services.clone());
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "systemd was not told");
    }
    tokio::spawn(keep_watchdog(agent.clone()));
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

/// What log-in, calls and sessions need: the identity that `enroll` left, and the relays known last.
fn lower_half(config: &Config) -> anyhow::Result<driver::Settings> {
    let data = config.data.clone();
    let identity = Identity::load(&data)?.with_context(|| {
        format!("not-enrolled: {}: run 'tasuki-agent enroll TOKEN' first", data.display())
    })?;
    let mark = data.join(CLOCK_MARK);
    let kept = std::fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
    let (cell, clock) = (IdentityCell::new(identity), Clock::system(kept.unwrap_or(0)));
    tokio::spawn(keep_mark(mark, clock.clone(), cell.clone()));
    let (renewed, renewing_clock) = (cell.clone(), clock.clone());
    let renewing = data.clone();
    let dialler = Dialler::default();
    let renewing_dialler = dialler.clone();
    tokio::spawn(async move {
        let keep = |enrolled: &Enrolled| enrolled.identity.save(&renewing);
        let relays = || vec![load_relays(&renewing).unwrap_or_default()];
        keep_renewed(&renewed, &renewing_clock, &renewing_dialler, relays, keep).await;
    });
    let contacts = load_relays(&data)?;
    let (kept_contacts, keeping) = watch::channel(contacts.clone());
    tokio::spawn(keep_contacts(data, keeping));
    let mark = config.data.join(EPOCH_MARK);
    let kept = std::fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
    let (kept_epoch, keeping) = watch::channel(LoginEpoch(kept.unwrap_or(0)));
    tokio::spawn(keep_epoch(mark, keeping));
    let name = cell.get().terminal_id().map(ToString::to_string).unwrap_or_default();
    Ok(driver::Settings {
        traces: Traces::start(config.traces.clone(), "tasuki-agent", &name),
        identity: cell,
        clock,
        dialler,
        contacts,
        relays: match &config.relays {
            RelayChoice::Auto => login::RelayChoice::Auto,
            RelayChoice::Only(names) => login::RelayChoice::Names(names.iter().cloned().collect()),
        },
        periods: Periods { keep_alive: config.keep_alive, idle: config.idle },
        paths: paths::Config {
            resume_time: config.resume,
            direct: config.direct == Direct::Auto,
            never_direct: config.never_direct.clone(),
            ..paths::Config::default()
        },
        port_mapping: config.port_mapping,
        listen: (Ipv6Addr::UNSPECIFIED, 0).into(),
        kept_contacts,
        kept_epoch,
        overheard: None,
    })
}

/// Tells systemd that the agent answers, three times in each period that it asks for (`WatchdogSec`).
async fn keep_watchdog(agent: Agent) {
    let mut period_us = 0;
    if !sd_notify::watchdog_enabled(false, &mut period_us) {
        return;
    }
    let mut ticks = tokio::time::interval(Duration::from_micros((period_us / 3).max(1000)));
    while agent.status().await.is_ok() {
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
        ticks.tick().await;
    }
}

/// Writes the relays for the next start. The disk may take its time: nothing waits for it.
async fn keep_contacts(data: PathBuf, mut contacts: watch::Receiver<Vec<RelayContact>>) {
    while contacts.changed().await.is_ok() {
        loop {
            let (relays, data) = (contacts.borrow_and_update().clone(), data.clone());
            match tokio::task::spawn_blocking(move || save_relays(&data, &relays)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the relays could not be kept for the next start yet");
                    tokio::time::sleep(KEEP_AGAIN).await;
                }
                Err(_) => return,
            }
        }
    }
}

/// Writes the epoch for the next start. A disk that fails costs no log-in.
async fn keep_epoch(path: PathBuf, mut epoch: watch::Receiver<LoginEpoch>) {
    while epoch.changed().await.is_ok() {
        let (used, path) = (epoch.borrow_and_update().0, path.clone());
        let write = move || write_private(&path, format!("{used}\n").as_bytes());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(%error, "the epoch of the log-in could not be kept");
        }
    }
}

async fn keep_mark(path: PathBuf, clock: Clock, cell: IdentityCell) {
    loop {
        let mark = clock.advance_mark(cell.get().not_after());
        let path = path.clone();
        let write = move || write_private(&path, format!("{mark}\n").as_bytes());
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(%error, "the clock's mark could not be kept");
        }
        tokio::time::sleep(MARK_PERIOD).await;
    }
}
