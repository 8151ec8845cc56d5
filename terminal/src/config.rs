//! What the operator wants: flags and a TOML file, checked together, all errors at once.

#![allow(clippy::disallowed_methods, reason = "this is where the environment is read, once")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use tasuki_proto::session::{INBOX, PING};
use tasuki_proto::traces::{self, TracesConfig};
use tasuki_proto::{RelayName, ServiceName, TerminalId, limits};

use crate::core::access::{AccessRules, Allowed};
use crate::core::inbox::Quota;

/// The data directory of the system's daemon.
pub const SYSTEM_DATA: &str = "/var/lib/tasuki-agent";
/// How often an attachment is proven alive, unless configured.
pub const KEEP_ALIVE: Duration = Duration::from_secs(9);
/// How long an attachment may stay silent, unless configured: a dead agent shows within 30 s.
pub const IDLE: Duration = Duration::from_secs(20);

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A stream per connection.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// As it stands in addresses.
    pub const fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Where an exposed service is: `tcp://HOST:PORT` or `udp://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What it speaks.
    pub protocol: Protocol,
    /// A name or an address, without brackets; a name is looked up for each connection.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{}://{open}{}{close}:{}", self.protocol.word(), self.host, self.port)
    }
}

impl FromStr for Endpoint {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let bad = || format!("'{word}' is not tcp://HOST:PORT or udp://HOST:PORT");
        let (protocol, rest) = match word.split_once("://") {
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            _ => return Err(bad()),
        };
        let (host, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(bad)?,
            None if host.contains(':') => return Err(bad()),
            None => host,
        };
        let port: u16 = port.parse().map_err(|_| bad())?;
        if host.is_empty() || port == 0 || host.contains(['/', ' ']) {
            return Err(bad());
        }
        Ok(Self { protocol, host: host.to_owned(), port })
    }
}

/// Which relays to attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayChoice {
    /// Any.
    Auto,
    /// These and no others, also such that do not exist yet.
    Only(Vec<RelayName>),
}

/// A session ends after 90 s of silence whatever happens (architecture 7), so waiting longer helps nobody.
const RESUME_MOST: Duration = Duration::from_secs(80);

/// Whether sessions may take a direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// Where it works.
    Auto,
    /// Always relayed.
    Never,
}

/// A daemon's configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where identity, socket and inbox are.
    pub data: PathBuf,
    /// Exposed services.
    pub exposed: BTreeMap<ServiceName, Endpoint>,
    /// Who may use what.
    pub access: AccessRules,
    /// Which relays.
    pub relays: RelayChoice,
    /// Direct paths.
    pub direct: Direct,
    /// Services whose sessions take none, called from here or by others.
    pub never_direct: BTreeSet<ServiceName>,
    /// Whether the gateway may be asked for a port.
    pub port_mapping: bool,
    /// Period of an attachment's keep-alive.
    pub keep_alive: Duration,
    /// Silence after which an attachment is given up.
    pub idle: Duration,
    /// How long a session whose paths are all lost waits for another.
    pub resume: Duration,
    /// How much the inbox may hold.
    pub inbox: Quota,
    /// Where traces go.
    pub traces: Option<traces::Endpoint>,
    /// Silence after which a TCP connection of a service or a forwarded port is asked whether its other end is there;
    /// zero: never; `None`: as usual.
    pub tcp_keep_alive: Option<Duration>,
}

/// Linux takes no longer silence before a question.
const TCP_KEEP_ALIVE_MOST: u64 = 32_767;

/// The configuration as it is written: in a file, and by flags.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    /// The data directory.
    pub data: Option<PathBuf>,
    /// The log's level or filter.
    pub log: Option<String>,
    /// Lists as JSON.
    pub json: Option<bool>,
    /// `NAME = "tcp://HOST:PORT"`.
    #[serde(default)]
    pub expose: BTreeMap<String, String>,
    /// `NAME = ["USER", ...]` or `NAME = "*"`.
    #[serde(default)]
    pub allow: BTreeMap<String, OneOrMany>,
    /// `"auto"` or names.
    pub relays: Option<OneOrMany>,
    /// `"auto"` or `"never"`.
    pub direct: Option<String>,
    /// Names of services.
    pub direct_never: Option<OneOrMany>,
    /// `"auto"` or `"never"`.
    pub port_mapping: Option<String>,
    /// Seconds between an attachment's keep-alives.
    pub keep_alive: Option<u64>,
    /// Seconds of silence after which an attachment is given up.
    pub idle: Option<u64>,
    /// Seconds that a session waits for a path after all of its paths were lost.
    pub resume: Option<u64>,
    /// MB of all files in the inbox.
    pub inbox_total: Option<u64>,
    /// MB of one sender's files in the inbox.
    pub inbox_per_sender: Option<u64>,
    /// Seconds of silence after which a TCP connection is asked whether its other end is there.
    pub tcp_keep_alive: Option<u64>,
    /// `endpoint = "http://HOST:PORT"`.
    pub traces: Option<TracesConfig>,
}

/// A word or a list of words.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One; commas separate several.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    fn words(&self) -> Vec<&str> {
        match self {
            OneOrMany::One(word) => word.split(',').map(str::trim).collect(),
            OneOrMany::Many(words) => words.iter().map(String::as_str).collect(),
        }
    }
}

/// Everything that is wrong with a configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigErrors(pub Vec<String>);

impl RawConfig {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, or has a key that is not known.
    pub fn read(path: &Path) -> Result<Self, ConfigErrors> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigErrors(vec![format!("{}: {error}", path.display())]))?;
        Self::parse(&text).map_err(|error| {
            ConfigErrors(error.0.iter().map(|e| format!("{}: {e}", path.display())).collect())
        })
    }

    /// Reads TOML text.
    ///
    /// # Errors
    /// As [`RawConfig::read`].
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].matches('\n').count() + 1);
            let line = line.map_or_else(String::new, |line| format!("line {line}: "));
            ConfigErrors(vec![format!("{line}{}", error.message())])
        })
    }

    /// Adds a flag `--expose NAME=ENDPOINT`; it stands above the file's entry of that name.
    ///
    /// # Errors
    /// When there is no `=`.
    pub fn add_expose(&mut self, flag: &str) -> Result<(), String> {
        let (name, endpoint) = flag
            .split_once('=')
            .ok_or_else(|| format!("--expose '{flag}': write NAME=tcp://HOST:PORT"))?;
        self.expose.insert(name.to_owned(), endpoint.to_owned());
        Ok(())
    }

    /// Adds a flag `--allow NAME=USER,...`; it stands above the file's entry of that name.
    ///
    /// # Errors
    /// When there is no `=`.
    pub fn add_allow(&mut self, flag: &str) -> Result<(), String> {
        let (name, users) = flag
            .split_once('=')
            .ok_or_else(|| format!("--allow '{flag}': write NAME=USER,... or NAME=*"))?;
        self.allow.insert(name.to_owned(), OneOrMany::One(users.to_owned()));
        Ok(())
    }

    /// Checks everything.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn check(&self, data: PathBuf) -> Result<Config, ConfigErrors> {
        let mut errors = Vec::new();
        let exposed = self.check_exposed(&mut errors);
        let allowed = self.check_allowed(&exposed, &mut errors);
        let relays = self.check_relays(&mut errors);
        let direct = match is_auto("direct", self.direct.as_deref(), &mut errors) {
            true => Direct::Auto,
            false => Direct::Never,
        };
        let never_direct = self.check_never_direct(&mut errors);
        let port_mapping = is_auto("port-mapping", self.port_mapping.as_deref(), &mut errors);
        let keep_alive = self.keep_alive.map_or(KEEP_ALIVE, Duration::from_secs);
        let idle = self.idle.map_or(IDLE, Duration::from_secs);
        if keep_alive.is_zero() || idle < keep_alive.saturating_mul(2) {
            errors.push(format!(
                "keep-alive {} and idle {}: idle must be at least twice keep-alive, which is at least 1",
                keep_alive.as_secs(),
                idle.as_secs()
            ));
        }
        if idle > Duration::from_secs(600) {
            errors.push(format!("idle {}: at most 600", idle.as_secs()));
        }
        let resume = self.resume.map_or(limits::RESUME_TIME, Duration::from_secs);
        if resume > RESUME_MOST {
            errors.push(format!("resume {}: at most {}", resume.as_secs(), RESUME_MOST.as_secs()));
        }
        let inbox = self.check_quota(&mut errors);
        if let Some(time) = self.tcp_keep_alive.filter(|time| *time > TCP_KEEP_ALIVE_MOST) {
            errors.push(format!("tcp-keep-alive {time}: at most {TCP_KEEP_ALIVE_MOST}"));
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let access = AccessRules { exposed: exposed.keys().cloned().collect(), allowed };
        Ok(Config {
            data,
            exposed,
            access,
            relays,
            direct,
            never_direct,
            port_mapping,
            keep_alive,
            idle,
            resume,
            inbox,
            traces: self.traces.clone().map(|traces| traces.endpoint),
            tcp_keep_alive: self.tcp_keep_alive.map(Duration::from_secs),
        })
    }

    fn check_quota(&self, errors: &mut Vec<String>) -> Quota {
        let most = Quota::default();
        let mut bytes = |key: &str, mb: Option<u64>, unless: u64| {
            if mb == Some(0) {
                errors.push(format!(
                    "{key} 0: at least 1 (MB); without --allow inbox=... nobody sends"
                ));
            }
            mb.map_or(unless, |mb| mb.saturating_mul(1_000_000))
        };
        let total = bytes("inbox-total", self.inbox_total, most.total);
        let per_sender = bytes("inbox-per-sender", self.inbox_per_sender, most.per_sender);
        Quota { total, per_sender: per_sender.min(total) }
    }

    fn check_exposed(&self, errors: &mut Vec<String>) -> BTreeMap<ServiceName, Endpoint> {
        let mut exposed = BTreeMap::new();
        for (name, endpoint) in &self.expose {
            let service = match ServiceName::new(name) {
                Ok(service) if matches!(name.as_str(), PING | INBOX) => {
                    errors.push(format!("expose {service}: that name is the agent's own"));
                    continue;
                }
                Ok(service) => service,
                Err(error) => {
                    errors.push(format!("expose: {error}"));
                    continue;
                }
            };
            match endpoint.parse() {
                Ok(endpoint) => drop(exposed.insert(service, endpoint)),
                Err(error) => errors.push(format!("expose {service}: {error}")),
            }
        }
        exposed
    }

    fn check_allowed(
        &self,
        exposed: &BTreeMap<ServiceName, Endpoint>,
        errors: &mut Vec<String>,
    ) -> BTreeMap<ServiceName, Allowed> {
        let mut allowed = BTreeMap::new();
        for (name, users) in &self.allow {
            let service = match ServiceName::new(name) {
                Ok(service) => service,
                Err(error) => {
                    errors.push(format!("allow: {error}"));
                    continue;
                }
            };
            // A misspelt name would leave the service that was meant closed.
            if !matches!(name.as_str(), PING | INBOX) && !self.expose.contains_key(name) {
                let all: Vec<&str> = exposed.keys().map(ServiceName::as_str).collect();
                let all = [&all[..], &[INBOX, PING]].concat().join(", ");
                errors.push(format!("allow {service}: it is not exposed; there are: {all}"));
            }
            let words = users.words();
            if words == ["*"] {
                allowed.insert(service, Allowed::Everybody);
                continue;
            }
            let mut terminals = BTreeSet::new();
            for word in words {
                match TerminalId::new(word) {
                    Ok(terminal) => drop(terminals.insert(terminal)),
                    Err(error) => errors.push(format!("allow {service}: {error}")),
                }
            }
            allowed.insert(service, Allowed::Terminals(terminals));
        }
        allowed
    }

    fn check_never_direct(&self, errors: &mut Vec<String>) -> BTreeSet<ServiceName> {
        let mut services = BTreeSet::new();
        for word in self.direct_never.iter().flat_map(OneOrMany::words) {
            match ServiceName::new(word) {
                Ok(service) => drop(services.insert(service)),
                Err(error) => errors.push(format!("direct-never: {error}")),
            }
        }
        services
    }

    fn check_relays(&self, errors: &mut Vec<String>) -> RelayChoice {
        let words = match &self.relays {
            None => return RelayChoice::Auto,
            Some(relays) if relays.words() == ["auto"] => return RelayChoice::Auto,
            Some(relays) => relays.words(),
        };
        let mut names = Vec::new();
        for word in words {
            match RelayName::new(word) {
                Ok(name) => names.push(name),
                Err(error) => errors.push(format!("relays: {error}")),
            }
        }
        if names.is_empty() && errors.is_empty() {
            errors.push("relays: name at least one, or write auto".to_owned());
        }
        RelayChoice::Only(names)
    }
}

/// Whether `key` says auto, as it does where nothing is said, or never.
fn is_auto(key: &str, value: Option<&str>, errors: &mut Vec<String>) -> bool {
    match value {
        None | Some("auto") => true,
        Some("never") => false,
        Some(other) => {
            errors.push(format!("{key} '{other}': write auto or never"));
            true
        }
    }
}

/// The data directory of this user's own daemon; the system's for root.
pub fn own_data(is_root: bool) -> Option<PathBuf> {
    if is_root {
        return Some(PathBuf::from(SYSTEM_DATA));
    }
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join("tasuki-agent"))
}

/// Whether this process belongs to the machine's administrator.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Config, ConfigErrors> {
        RawConfig::parse(text).and_then(|raw| raw.check("/x".into()))
    }

    #[test]
    fn a_whole_file() {
        let config = check(
            r#"
            relays = ["r1", "r2"]
            direct = "never"
            direct-never = ["ssh", "dns"]
            port-mapping = "never"
            inbox-total = 10
            inbox-per-sender = 50
            keep-alive = 2
            idle = 6
            [expose]
            ssh = "tcp://127.0.0.1:22"
            dns = "udp://[::1]:53"
            [allow]
            ssh = ["alice", "bob"]
            dns = "*"
            inbox = "alice,bob"
            "#,
        )
        .unwrap();
        let ssh = ServiceName::new("ssh").unwrap();
        assert_eq!(config.exposed[&ssh].to_string(), "tcp://127.0.0.1:22");
        let dns = ServiceName::new("dns").unwrap();
        assert_eq!(config.exposed[&dns].to_string(), "udp://[::1]:53");
        assert_eq!(config.access.allowed[&dns], Allowed::Everybody);
        assert_eq!(config.direct, Direct::Never);
        assert!(config.never_direct.len() == 2 && !config.port_mapping);
        assert!(matches!(&config.relays, RelayChoice::Only(names) if names.len() == 2));
        assert_eq!(config.keep_alive, Duration::from_secs(2));
        assert_eq!(config.inbox, Quota { total: 10_000_000, per_sender: 10_000_000 });
        let alice = TerminalId::new("alice").unwrap();
        assert!(config.access.check(&alice, &ServiceName::new("inbox").unwrap()).is_ok());
    }

    #[test]
    fn all_errors_are_told_at_once() {
        let errors = check(
            r#"
            relays = "R1"
            direct = "maybe"
            direct-never = "No"
            port-mapping = "yes"
            keep-alive = 10
            idle = 10
            inbox-total = 0
            [expose]
            ssh = "127.0.0.1:22"
            ping = "tcp://127.0.0.1:7"
            Bad = "tcp://h:1"
            [allow]
            vnc = "*"
            ssh = ["Alice"]
            "#,
        )
        .unwrap_err();
        assert_eq!(errors.0.len(), 11, "{errors:#?}");
    }

    #[test]
    fn unknown_keys_are_errors_with_their_line() {
        let errors = check("relays = \"auto\"\nrelay = 1\n").unwrap_err();
        assert!(errors.0[0].starts_with("line 2: unknown field `relay`"), "{errors}");
    }

    #[test]
    fn flags_stand_above_the_file() {
        let mut raw = RawConfig::parse("[expose]\nssh = \"tcp://a:1\"\n").unwrap();
        raw.add_expose("ssh=tcp://b:2").unwrap();
        raw.add_allow("ssh=x,y").unwrap();
        assert!(raw.add_expose("ssh").is_err() && raw.add_allow("ssh").is_err());
        let config = raw.check("/x".into()).unwrap();
        assert_eq!(config.exposed.values().next().unwrap().host, "b");
    }

    #[test]
    fn endpoints() {
        for good in ["tcp://127.0.0.1:22", "udp://[::1]:53", "tcp://nas.lan:445"] {
            assert_eq!(good.parse::<Endpoint>().unwrap().to_string(), good);
        }
        for bad in
            ["127.0.0.1:22", "tcp://::1:22", "tcp://h", "tcp://h:0", "tcp://:1", "http://h:1"]
        {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
