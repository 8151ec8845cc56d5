//! `run`: the daemon.

use std::path::PathBuf;

use clap::Args;

use crate::config::{Config, ConfigErrors, OneOrMany, RawConfig};

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Offer a service: NAME=tcp://HOST:PORT or NAME=udp://HOST:PORT
    #[arg(long, value_name = "NAME=ADDRESS")]
    expose: Vec<String>,
    /// Who may use it: NAME=USER,... or NAME=* for every terminal of the mesh
    #[arg(long, value_name = "NAME=USER,...")]
    allow: Vec<String>,
    /// Attach to one of these relays and no other; auto: of all
    #[arg(long, value_name = "auto|NAME,...")]
    relays: Option<String>,
    /// Whether sessions may take a direct path: auto or never
    #[arg(long, value_name = "auto|never")]
    direct: Option<String>,
    /// Services whose sessions never take a direct path, called from here or by others
    #[arg(long, value_name = "SERVICE,...")]
    direct_never: Option<String>,
    /// Whether the gateway is asked for a port (UPnP, NAT-PMP, PCP), where there is a NAT: auto or never
    #[arg(long, value_name = "auto|never")]
    port_mapping: Option<String>,
    /// Seconds between keep-alives of the attachments
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,
    /// Seconds of silence after which an attachment is given up
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// Seconds that a session whose paths are all lost waits for another one, at most 80; 60 unless given.
    #[arg(long, value_name = "SECONDS")]
    resume: Option<u64>,
    /// MB that all files in the inbox may take; 1000000 unless given
    #[arg(long, value_name = "MB")]
    inbox_total: Option<u64>,
    /// MB that the files of one sender in the inbox may take; 250000 unless given
    #[arg(long, value_name = "MB")]
    inbox_per_sender: Option<u64>,
    /// Seconds of silence after which a TCP connection of a service or a forwarded port is asked whether its other end is
    /// there, 0 for never; 60 unless given, or what the system says if that is less
    #[arg(long, value_name = "SECONDS")]
    tcp_keep_alive: Option<u64>,
}

impl RunArgs {
    /// The file's settings with the flags above them, checked.
    pub(crate) fn config(self, mut raw: RawConfig, data: PathBuf) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        for flag in &self.expose {
            errors.extend(raw.add_expose(flag).err());
        }
        for flag in &self.allow {
            errors.extend(raw.add_allow(flag).err());
        }
        raw.relays = self.relays.map(OneOrMany::One).or(raw.relays);
        raw.direct = self.direct.or(raw.direct);
        raw.direct_never = self.direct_never.map(OneOrMany::One).or(raw.direct_never);
        raw.port_mapping = self.port_mapping.or(raw.port_mapping);
        raw.keep_alive = self.keep_alive.or(raw.keep_alive);
        raw.idle = self.idle.or(raw.idle);
        raw.resume = self.resume.or(raw.resume);
        raw.inbox_total = self.inbox_total.or(raw.inbox_total);
        raw.inbox_per_sender = self.inbox_per_sender.or(raw.inbox_per_sender);
        raw.tcp_keep_alive = self.tcp_keep_alive.or(raw.tcp_keep_alive);
        match raw.check(data) {
            Ok(config) if errors.is_empty() => Ok(config),
            Ok(_) => Err(ConfigErrors(errors)),
            Err(ConfigErrors(more)) => {
                errors.extend(more);
                Err(ConfigErrors(errors))
            }
        }
    }
}
