//! What an operator can set: flags, the TOML file, and what `init` or `join` left in the data directory.
//!
//! Each is a [`Layer`]; of several the first that says something counts. All errors are reported together.

#![allow(clippy::disallowed_methods, reason = "this is where the environment is read, once")]

pub mod reference;

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tasuki_proto::traces::{Endpoint, TracesConfig};
use tasuki_proto::{MeshName, RelayName, limits};

use crate::core::admission::PerAddress;
use crate::core::links::LinkChoice;
use crate::io::http::CertificateFiles;
use crate::io::registrar::is_address;
use tasuki_proto::log::{self, LogFormat};

/// The system's data directory.
const SYSTEM_DATA: &str = "/var/lib/tasuki-relay";
/// What `init` and `join` leave in the data directory.
const NODE_FILE: &str = "node.toml";
/// Where a relay listens unless told otherwise.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::UNSPECIFIED), 4433);
/// Where a relay shows its status unless told otherwise.
const STATUS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8433);

/// Which relays to link with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Links {
    /// With those that are learned of.
    #[default]
    Auto,
    /// With these and no others, dialled and accepted; they need not exist yet.
    Names(BTreeSet<RelayName>),
}

impl Links {
    /// As the core takes it.
    pub fn choice(&self) -> LinkChoice {
        match self {
            Self::Auto => LinkChoice::Auto,
            Self::Names(names) => LinkChoice::Names(names.clone()),
        }
    }
}

impl FromStr for Links {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        if word == "auto" {
            return Ok(Self::Auto);
        }
        let names = word.split(',').map(|name| RelayName::new(name.trim()));
        let names: Result<_, _> = names.collect();
        Ok(Self::Names(names.map_err(|error| format!("{error}: write auto, or names of relays"))?))
    }
}

/// One source of settings; `None` leaves it to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// The relay's name, for `init` and `join`.
    pub name: Option<RelayName>,
    /// The mesh's name, for `init`.
    pub mesh: Option<MeshName>,
    /// The data directory.
    pub data: Option<PathBuf>,
    /// What is logged.
    pub log: Option<String>,
    /// How it is logged.
    pub log_format: Option<LogFormat>,
    /// Where to listen, UDP.
    pub listen: Option<SocketAddr>,
    /// Where others reach this relay: `HOST:PORT`, UDP.
    pub advertise: Option<Vec<String>>,
    /// Where to show the status, TCP.
    pub status: Option<SocketAddr>,
    /// The certificate that the status endpoint shows, in PEM.
    pub status_cert: Option<PathBuf>,
    /// Its key.
    pub status_key: Option<PathBuf>,
    /// Which relays to link with.
    pub links: Option<Links>,
    /// How often a connection is proven alive.
    pub keep_alive: Option<Duration>,
    /// How long a connection may stay silent.
    pub idle: Option<Duration>,
    /// How long SIGTERM drains at most.
    pub stop: Option<Duration>,
    /// Attached terminals at most.
    pub terminals: Option<usize>,
    /// Sessions at most.
    pub sessions: Option<usize>,
    /// Mbit/s of one session in one direction.
    pub session_mbit_s: Option<u32>,
    /// Connections of one address.
    pub address_connections: Option<u32>,
    /// Handshakes under way of one address.
    pub address_handshakes: Option<u32>,
    /// Connections that one address begins per second.
    pub address_rate: Option<u32>,
    /// Connections that one address begins at once.
    pub address_burst: Option<u32>,
    /// Where traces go.
    pub traces: Option<TracesConfig>,
}

/// Everything that is wrong with the settings, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bad-configuration: {}", self.0.join("; "))
    }
}

impl std::error::Error for ConfigErrors {}

/// Takes values out of a TOML table and notes what is wrong with them.
struct Reader<'a> {
    table: toml::Table,
    source: String,
    errors: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn note(&mut self, key: &str, error: impl fmt::Display) {
        let error = error.to_string();
        let error = error.trim_end().replace('\n', " ");
        self.errors.push(format!("{}: {key}: {error}", self.source));
    }

    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        debug_assert!(reference::settings().iter().any(|one| one.key == key), "{key}");
        match self.table.remove(key)?.try_into() {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(key, error);
                None
            }
        }
    }

    fn seconds(&mut self, key: &str) -> Option<Duration> {
        self.take::<u32>(key).map(|secs| Duration::from_secs(secs.into()))
    }

    fn links(&mut self) -> Option<Links> {
        if let Some(toml::Value::Array(names)) = self.table.get("links") {
            if names.is_empty() {
                self.table.remove("links");
                self.note(
                    "links",
                    "an empty list would link with no relay: write \"auto\", or names",
                );
                return None;
            }
            return self.take("links").map(Links::Names);
        }
        match self.take::<String>("links")?.parse() {
            Ok(links) => Some(links),
            Err(error) => {
                self.note("links", error);
                None
            }
        }
    }

    fn finish(mut self) {
        for key in std::mem::take(&mut self.table).keys() {
            self.note(key, "there is no such setting");
        }
    }
}

impl Layer {
    /// Reads a TOML text; notes what is wrong in `errors` under the name `source`.
    fn from_toml(text: &str, source: &str, errors: &mut Vec<String>) -> Layer {
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                let error = error.to_string().trim_end().replace('\n', " ");
                errors.push(format!("{source}: {error}"));
                return Layer::default();
            }
        };
        let mut reader = Reader { table, source: source.to_owned(), errors };
        let layer = Layer {
            name: reader.take("name"),
            mesh: reader.take("mesh"),
            data: reader.take("data"),
            log: reader.take("log"),
            log_format: reader.take("log_format"),
            listen: reader.take("listen"),
            advertise: reader.take("advertise"),
            status: reader.take("status"),
            status_cert: reader.take("status_cert"),
            status_key: reader.take("status_key"),
            links: reader.links(),
            keep_alive: reader.seconds("keep_alive_s"),
            idle: reader.seconds("idle_s"),
            stop: reader.seconds("stop_s"),
            terminals: reader.take("terminals"),
            sessions: reader.take("sessions"),
            session_mbit_s: reader.take("session_mbit_s"),
            address_connections: reader.take("address_connections"),
            address_handshakes: reader.take("address_handshakes"),
            address_rate: reader.take("address_rate"),
            address_burst: reader.take("address_burst"),
            traces: reader.take("traces"),
        };
        reader.finish();
        layer
    }

    fn read(path: &Path, must_be: bool, errors: &mut Vec<String>) -> Layer {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::from_toml(&text, &path.display().to_string(), errors),
            Err(error) if error.kind() == ErrorKind::NotFound && !must_be => Layer::default(),
            Err(error) => {
                errors.push(format!("{}: {error}", path.display()));
                Layer::default()
            }
        }
    }

    /// This layer, and `lower` where it says nothing.
    #[must_use]
    pub fn or(self, lower: Layer) -> Layer {
        Layer {
            name: self.name.or(lower.name),
            mesh: self.mesh.or(lower.mesh),
            data: self.data.or(lower.data),
            log: self.log.or(lower.log),
            log_format: self.log_format.or(lower.log_format),
            listen: self.listen.or(lower.listen),
            advertise: self.advertise.or(lower.advertise),
            status: self.status.or(lower.status),
            status_cert: self.status_cert.or(lower.status_cert),
            status_key: self.status_key.or(lower.status_key),
            links: self.links.or(lower.links),
            keep_alive: self.keep_alive.or(lower.keep_alive),
            idle: self.idle.or(lower.idle),
            stop: self.stop.or(lower.stop),
            terminals: self.terminals.or(lower.terminals),
            sessions: self.sessions.or(lower.sessions),
            session_mbit_s: self.session_mbit_s.or(lower.session_mbit_s),
            address_connections: self.address_connections.or(lower.address_connections),
            address_handshakes: self.address_handshakes.or(lower.address_handshakes),
            address_rate: self.address_rate.or(lower.address_rate),
            address_burst: self.address_burst.or(lower.address_burst),
            traces: self.traces.or(lower.traces),
        }
    }

    fn per_address(&self, errors: &mut Vec<String>) -> PerAddress {
        let mut take = |key: &str, given: Option<u32>, default: u32| {
            if given == Some(0) {
                errors.push(format!("{key}: it must be at least 1"));
            }
            given.unwrap_or(default)
        };
        let PerAddress { connections, handshakes, per_second, burst } = PerAddress::default();
        PerAddress {
            connections: take("address_connections", self.address_connections, connections),
            handshakes: take("address_handshakes", self.address_handshakes, handshakes),
            per_second: take("address_rate", self.address_rate, per_second),
            burst: take("address_burst", self.address_burst, burst),
        }
    }

    /// What `init` and `join` leave in the data directory, so that `run` needs no flags.
    pub fn node_toml(&self) -> String {
        let mut table = toml::Table::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        };
        put("name", self.name.as_ref().map(ToString::to_string));
        put("mesh", self.mesh.as_ref().map(ToString::to_string));
        put("listen", self.listen.map(|address| address.to_string()));
        put("status", self.status.map(|address| address.to_string()));
        if let Some(advertise) = &self.advertise {
            table.insert("advertise".to_owned(), advertise.clone().into());
        }
        table.to_string()
    }

    /// Writes [`Layer::node_toml`] into the data directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, data: &Path) -> Result<(), tasuki_proto::identity::IdentityError> {
        tasuki_proto::identity::write_private(&data.join(NODE_FILE), self.node_toml().as_bytes())
    }
}

/// Whether `data` belongs to a relay already.
pub fn is_in_use(data: &Path) -> bool {
    use tasuki_proto::identity::{Identity, Issuer, Root};
    [Identity::FILE, Root::FILE, Issuer::FILE, NODE_FILE, crate::io::store::FILE]
        .iter()
        .any(|file| data.join(file).exists())
}

/// The data directory where none is given: the system's for root, the user's own otherwise.
pub fn default_data() -> PathBuf {
    // /proc/self belongs to the effective user (proc(5)).
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    let home = std::env::var_os("XDG_DATA_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share")));
    match home.filter(|_| !is_root) {
        Some(home) => home.join("tasuki-relay"),
        None => PathBuf::from(SYSTEM_DATA),
    }
}

/// A running relay's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayConfig {
    /// The data directory.
    pub data: PathBuf,
    /// What is logged, as [`tasuki_proto::log`] takes it.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Where to listen, UDP.
    pub listen: SocketAddr,
    /// Where others reach this relay: `HOST:PORT`, UDP.
    pub advertise: Vec<String>,
    /// Where to show the status, TCP.
    pub status: SocketAddr,
    /// The certificate that it shows, where it is not the relay's own.
    pub status_certificate: Option<CertificateFiles>,
    /// Which relays to link with.
    pub links: Links,
    /// Periods.
    pub periods: Periods,
    /// Limits.
    pub limits: Limits,
    /// Where traces go.
    pub traces: Option<Endpoint>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// How often attachments are proven alive, and links at least; less than half of [`Periods::idle`].
    pub keep_alive: Duration,
    /// How long they may stay silent; links at most 6 s. Below 30 s, so that a dead agent shows as logged out within them.
    pub idle: Duration,
    /// How long SIGTERM lets terminals and sessions leave at most; zero: not at all.
    pub stop: Duration,
}

/// How much the relay takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attached terminals; further ones are refused with `overloaded`.
    pub terminals: usize,
    /// Sessions over this relay; further ones are refused with `busy`.
    pub sessions: usize,
    /// How fast a session may be in each direction, Mbit/s; what is more is dropped with `over-rate`.
    pub session_mbit_s: Option<u32>,
    /// What one address may take of each endpoint.
    pub per_address: PerAddress,
}

/// What differs between two settings, by the keys of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What a running relay takes.
    pub at_once: Vec<&'static str>,
    /// What counts after a restart only.
    pub at_restart: Vec<&'static str>,
}

/// Puts flags, the file given with `--config` and the data directory's settings together.
///
/// # Errors
/// Everything that is wrong with any of them.
pub fn layers(flags: Layer, file: Option<&Path>) -> Result<(PathBuf, Layer), ConfigErrors> {
    let mut errors = Vec::new();
    let found = collect(flags, file, &mut errors);
    check(errors).map(|()| found)
}

fn collect(flags: Layer, file: Option<&Path>, errors: &mut Vec<String>) -> (PathBuf, Layer) {
    let file = file.map(|file| Layer::read(file, true, errors)).unwrap_or_default();
    let above = flags.or(file);
    let data = above.data.clone().unwrap_or_else(default_data);
    let node = Layer::read(&data.join(NODE_FILE), false, errors);
    (data, above.or(node))
}

fn check(errors: Vec<String>) -> Result<(), ConfigErrors> {
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
}

impl RelayConfig {
    /// What `wanted` has that this has not.
    pub fn changes(&self, wanted: &Self) -> Changes {
        let (old, new) = (&self.limits, &wanted.limits);
        let (old_most, new_most) = (&old.per_address, &new.per_address);
        let named = |pairs: &[(&'static str, bool)]| {
            pairs.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect()
        };
        Changes {
            at_once: named(&[
                ("log", self.log != wanted.log),
                ("links", self.links != wanted.links),
                ("terminals", old.terminals != new.terminals),
                ("sessions", old.sessions != new.sessions),
                ("session_mbit_s", old.session_mbit_s != new.session_mbit_s),
                ("address_connections", old_most.connections != new_most.connections),
                ("address_handshakes", old_most.handshakes != new_most.handshakes),
                ("address_rate", old_most.per_second != new_most.per_second),
                ("address_burst", old_most.burst != new_most.burst),
            ]),
            at_restart: named(&[
                ("data", self.data != wanted.data),
                ("log_format", self.log_format != wanted.log_format),
                ("listen", self.listen != wanted.listen),
                ("advertise", self.advertise != wanted.advertise),
                ("status", self.status != wanted.status),
                ("status_cert", self.status_certificate != wanted.status_certificate),
                ("keep_alive_s", self.periods.keep_alive != wanted.periods.keep_alive),
                ("idle_s", self.periods.idle != wanted.periods.idle),
                ("stop_s", self.periods.stop != wanted.periods.stop),
                ("traces", self.traces != wanted.traces),
            ]),
        }
    }

    /// The settings that result from flags, configuration file and data directory.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn resolve(flags: Layer, file: Option<&Path>) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let (data, layer) = collect(flags, file, &mut errors);
        let listen = layer.listen.unwrap_or(LISTEN);
        let per_address = layer.per_address(&mut errors);
        let advertise = advertised(listen, layer.advertise, &mut errors);
        let periods = Periods {
            keep_alive: layer.keep_alive.unwrap_or(Duration::from_secs(9)),
            idle: layer.idle.unwrap_or(Duration::from_secs(20)),
            stop: layer.stop.unwrap_or(Duration::from_secs(5)),
        };
        if periods.keep_alive.is_zero() || periods.keep_alive * 2 > periods.idle {
            errors.push("keep_alive_s: it must be at least 1 and at most half of idle_s".into());
        }
        let limits = Limits {
            terminals: layer.terminals.unwrap_or(100_000),
            sessions: layer.sessions.unwrap_or(limits::SESSIONS_PER_RELAY),
            session_mbit_s: layer.session_mbit_s,
            per_address,
        };
        if limits.session_mbit_s == Some(0) {
            errors.push("session_mbit_s: it must be at least 1; leave it out for no limit".into());
        }
        if limits.sessions > limits::SESSIONS_PER_RELAY {
            errors.push(format!("sessions: at most {}", limits::SESSIONS_PER_RELAY));
        }
        let status_certificate = match (layer.status_cert, layer.status_key) {
            (Some(certificate), Some(key)) => Some(CertificateFiles { certificate, key }),
            (None, None) => None,
            _ => {
                errors.push("status_cert and status_key: give both or none".into());
                None
            }
        };
        let log = layer.log.unwrap_or_else(|| "info".to_owned());
        errors.extend(log::check(&log).map(|error| format!("log: {error}")));
        check(errors)?;
        Ok(Self {
            data,
            log,
            log_format: layer.log_format.unwrap_or_default(),
            listen,
            advertise,
            status: layer.status.unwrap_or(STATUS),
            status_certificate,
            links: layer.links.unwrap_or_default(),
            periods,
            limits,
            traces: layer.traces.map(|traces| traces.endpoint),
        })
    }
}

/// The settings of a relay that `init` or `join` makes: complete, so that `run` needs no flags.
///
/// # Errors
/// Everything that is wrong with them.
pub fn first_settings(layer: Layer) -> Result<Layer, ConfigErrors> {
    let mut errors = Vec::new();
    let listen = layer.listen.unwrap_or(LISTEN);
    let advertise = advertised(listen, layer.advertise, &mut errors);
    check(errors)?;
    Ok(Layer {
        name: layer.name,
        mesh: layer.mesh,
        listen: Some(listen),
        advertise: Some(advertise),
        status: Some(layer.status.unwrap_or(STATUS)),
        ..Layer::default()
    })
}

/// What others dial: what was given; else the address listened on; else, where that is all of them, the addresses
/// from which this machine reaches other networks.
fn advertised(
    listen: SocketAddr,
    given: Option<Vec<String>>,
    errors: &mut Vec<String>,
) -> Vec<String> {
    if let Some(given) = given {
        if given.is_empty() || given.len() > limits::RELAY_ADDRESSES {
            errors.push(format!("advertise: give 1 to {} addresses", limits::RELAY_ADDRESSES));
        }
        for address in given.iter().filter(|address| !is_address(address)) {
            errors.push(format!("advertise: '{address}' is not HOST:PORT"));
        }
        return given;
    }
    if listen.port() == 0 {
        errors.push("advertise: it must be given where the port is chosen by the system".into());
    }
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let mut found = Vec::new();
    found.extend(outbound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), "192.0.2.1:9"));
    if listen.is_ipv6() {
        found.extend(outbound(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), "[2001:db8::1]:9"));
    }
    if found.is_empty() {
        errors.push(format!(
            "advertise: this machine has no route to other networks, so {listen} says nothing about where others \
             reach it; give --advertise HOST:PORT, or a --listen address of its own"
        ));
    }
    found.into_iter().map(|ip| SocketAddr::new(ip, listen.port()).to_string()).collect()
}

/// The address that packets to `remote` would leave from. Nothing is sent: connecting a UDP socket looks up the
/// route alone. The remotes are documentation addresses (RFC 5737, RFC 3849).
fn outbound(local: SocketAddr, remote: &str) -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind(local).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(text: &str) -> Vec<String> {
        let mut errors = Vec::new();
        Layer::from_toml(text, "f", &mut errors);
        errors
    }

    #[test]
    fn all_errors_of_a_file_are_reported_together() {
        let errors =
            errors_of("listen = 7\nlinks = \"auto,A\"\ncolour = 1\nidle_s = -1\nsmell = 2\n");
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert!(errors.iter().all(|error| error.starts_with("f: ") && !error.contains('\n')));
        assert_eq!(errors_of("listen = ").len(), 1);
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("relay.toml");
        let data = dir.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(
            &file,
            "listen = \"127.0.0.1:1\"\nstatus = \"127.0.0.1:2\"\nlinks = [\"r2\"]\n",
        )
        .unwrap();
        let node = Layer {
            listen: Some("127.0.0.1:7".parse().unwrap()),
            status: Some("127.0.0.1:7".parse().unwrap()),
            advertise: Some(vec!["r1.example:4433".into()]),
            ..Layer::default()
        };
        node.save(&data).unwrap();
        let flags = Layer {
            data: Some(data.clone()),
            listen: Some("127.0.0.1:3".parse().unwrap()),
            ..Layer::default()
        };
        let config = RelayConfig::resolve(flags, Some(&file)).unwrap();
        assert_eq!(config.listen, "127.0.0.1:3".parse().unwrap());
        assert_eq!(config.status, "127.0.0.1:2".parse().unwrap());
        assert_eq!(config.advertise, ["r1.example:4433"]);
        assert_eq!(config.links, "r2".parse().unwrap());
        assert_eq!(config.periods.keep_alive, Duration::from_secs(9));
    }

    #[test]
    fn settings_that_do_not_fit_together_are_reported_together() {
        let flags = Layer {
            data: Some("/nonexistent".into()),
            advertise: Some(vec!["nowhere".into(), "h:0".into()]),
            keep_alive: Some(Duration::from_secs(20)),
            address_burst: Some(0),
            session_mbit_s: Some(0),
            ..Layer::default()
        };
        assert_eq!(RelayConfig::resolve(flags, None).unwrap_err().0.len(), 5);
    }

    #[test]
    fn changes_say_what_counts_at_once_and_what_after_a_restart() {
        let config = |text: &str| {
            let mut errors = Vec::new();
            let layer = Layer::from_toml(text, "f", &mut errors);
            let flags = Layer {
                data: Some("/nonexistent".into()),
                advertise: Some(vec!["h:1".into()]),
                ..layer
            };
            RelayConfig::resolve(flags, None).unwrap()
        };
        let old = config("");
        assert_eq!(old.changes(&old), Changes::default());
        let all = "log = \"debug\"\nlinks = [\"r2\"]\nterminals = 1\nsessions = 1\nsession_mbit_s = 1\n\
            address_connections = 1\naddress_handshakes = 1\naddress_rate = 1\naddress_burst = 1\n\
            log_format = \"json\"\nlisten = \"[::1]:1\"\nstatus = \"[::1]:1\"\nkeep_alive_s = 1\n\
            idle_s = 7\nstop_s = 1\nstatus_cert = \"c\"\nstatus_key = \"k\"\n";
        let changes = old.changes(&config(all));
        for setting in reference::settings() {
            let key = &setting.key;
            assert!(!setting.reloads || changes.at_once.contains(key), "{key}");
            assert!(setting.reloads || !changes.at_once.contains(key), "{key}");
            let found = errors_of(&format!("{key} = {{ no = \"such\" }}"));
            assert!(!found[0].contains("no such setting"), "{found:?}");
        }
        let named = changes.at_once.len() + changes.at_restart.len();
        // The certificate and its key are one.
        assert_eq!(named, all.lines().count() - 1, "{changes:?}");
        assert!(
            RelayConfig::resolve(Layer { log: Some("infoo=,".into()), ..Layer::default() }, None)
                .unwrap_err()
                .to_string()
                .contains("log: ")
        );
    }

    #[test]
    fn a_specific_listen_address_is_advertised() {
        let mut errors = Vec::new();
        let listen = "127.0.0.1:4433".parse().unwrap();
        assert_eq!(advertised(listen, None, &mut errors), ["127.0.0.1:4433"]);
        assert!(errors.is_empty());
        advertised("127.0.0.1:0".parse().unwrap(), None, &mut errors);
        assert_eq!(errors.len(), 1);
    }

    #[test]
    fn what_init_leaves_is_read_again() {
        let layer = first_settings(Layer {
            name: Some(RelayName::new("r1").unwrap()),
            mesh: Some(MeshName::new("m").unwrap()),
            listen: Some("127.0.0.1:4433".parse().unwrap()),
            ..Layer::default()
        })
        .unwrap();
        let mut errors = Vec::new();
        assert_eq!(Layer::from_toml(&layer.node_toml(), "f", &mut errors), layer);
        assert!(errors.is_empty(), "{errors:?}");
    }
}
