//! Settings that are read again on SIGHUP, without a restart.
//!
//! Either all of the new settings count that can change in a running relay, or, where anything is wrong with them,
//! none: the old ones stay, and the log says everything that is wrong. What needs a restart is named in the log.

use std::path::PathBuf;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use crate::config::{ConfigErrors, Layer, RelayConfig};
use crate::io::event::Event;
use tasuki_proto::log::LogControl;

/// Where a relay's settings come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The flags that it was started with; they win over the file, also when that is read again.
    pub flags: Layer,
    /// The file of `--config`.
    pub file: Option<PathBuf>,
}

impl Source {
    /// The settings as they are at the moment.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(&self) -> Result<RelayConfig, ConfigErrors> {
        RelayConfig::resolve(self.flags.clone(), self.file.as_deref())
    }
}

/// Reads the settings of a running relay again whenever it is told to.
#[derive(Debug)]
pub struct Reloader {
    /// Where from.
    pub source: Source,
    /// The settings that count.
    pub running: RelayConfig,
    /// The log's level.
    pub log: LogControl,
}

impl Reloader {
    /// Reads the settings at each `hangup`, and tells the relay (and systemd, sd_notify(3)).
    pub async fn run(mut self, mut hangup: Signal, events: mpsc::Sender<Event>) {
        while hangup.recv().await.is_some() {
            let mut state = vec![sd_notify::NotifyState::Reloading];
            state.extend(sd_notify::NotifyState::monotonic_usec_now());
            let _ = sd_notify::notify(false, &state);
            if let Some(event) = self.reload()
                && events.send(event).await.is_err()
            {
                return;
            }
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        }
    }

    /// Reads the settings; what the relay is to be told, where something changed.
    fn reload(&mut self) -> Option<Event> {
        let wanted = match self.source.read() {
            Ok(wanted) => wanted,
            Err(errors) => {
                tracing::warn!(%errors, "the settings could not be read again: the old ones stay");
                return None;
            }
        };
        let changes = self.running.changes(&wanted);
        if !changes.at_restart.is_empty() {
            let settings = changes.at_restart.join(", ");
            tracing::warn!(%settings, "these settings changed and count after a restart only");
        }
        if changes.at_once.is_empty() {
            tracing::info!("settings read again: nothing changed that counts at once");
            return None;
        }
        if self.running.log != wanted.log
            && let Err(error) = self.log.set(&wanted.log)
        {
            tracing::warn!(%error, "the log's level stays");
        }
        let settings = changes.at_once.join(", ");
        self.running.log.clone_from(&wanted.log);
        self.running.links.clone_from(&wanted.links);
        self.running.limits = wanted.limits;
        tracing::info!(%settings, "settings read again");
        Some(Event::Settings(Box::new((wanted.links, wanted.limits))))
    }
}
