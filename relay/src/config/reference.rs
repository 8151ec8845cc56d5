//! Every setting of a relay's file, for people.

use super::{LISTEN, STATUS};
use tasuki_proto::limits;

/// A key of the file of `--config`.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// The flag that says the same, where there is one.
    pub flag: &'static str,
    /// What counts where nothing is said.
    pub default: String,
    /// Whether SIGHUP takes a new value.
    pub reloads: bool,
    /// What it is for, its unit and its limits.
    pub what: &'static str,
}

/// All settings, in the order of the documentation.
pub fn settings() -> Vec<Setting> {
    let setting = |key, flag, default: &str, what| Setting {
        key,
        flag,
        default: default.to_owned(),
        reloads: false,
        what,
    };
    let reloaded = |key, flag, default: &str, what| Setting {
        reloads: true,
        ..setting(key, flag, default, what)
    };
    let number = |number: u32| number.to_string();
    vec![
        setting(
            "data",
            "--data",
            "see [data directories](operations.md#data-directories)",
            "the data directory",
        ),
        reloaded(
            "log",
            "--log",
            "info",
            "what is logged: off, error, warn, info, debug, trace, or a filter such as `info,quinn=debug`",
        ),
        setting(
            "log_format",
            "--log-format",
            "text",
            "how it is logged: `text` or `json`, one object a line",
        ),
        setting(
            "name",
            "--name",
            "",
            "the relay's name, for `init` and `join`: 1 to 63 of a-z, 0-9, `-`",
        ),
        setting("mesh", "--mesh", "mesh", "the mesh's name, for `init`"),
        setting("listen", "--listen", &LISTEN.to_string(), "where to listen, UDP"),
        setting(
            "advertise",
            "--advertise",
            "the address listened on; of a wildcard: the addresses from which this machine reaches other networks",
            "where others reach this relay: 1 to 8 of `HOST:PORT`, UDP",
        ),
        setting("status", "--status", &STATUS.to_string(), "where to show the status, TCP"),
        setting(
            "status_cert",
            "--status-cert",
            "the relay's certificate of the mesh",
            "the certificate of the status endpoint, PEM; read again when the file changes",
        ),
        setting(
            "status_key",
            "--status-key",
            "",
            "its private key, PEM; read again when the file changes",
        ),
        reloaded(
            "links",
            "--links",
            "auto",
            "`auto`: link with the relays that are learned of; a list of names: with these and no others",
        ),
        setting(
            "keep_alive_s",
            "",
            "9",
            "s: how often a connection is proven alive; at least 1, at most half of `idle_s`",
        ),
        setting("idle_s", "", "20", "s: how long a connection may stay silent"),
        setting(
            "stop_s",
            "--stop-time",
            "5",
            "s: how long SIGTERM lets terminals and sessions leave, at most; 0: not at all",
        ),
        reloaded(
            "terminals",
            "",
            "100000",
            "attached terminals; further ones are refused with `overloaded`",
        ),
        reloaded(
            "sessions",
            "",
            &limits::SESSIONS_PER_RELAY.to_string(),
            "sessions over this relay, not above the default; further ones are refused with `busy`",
        ),
        reloaded(
            "session_mbit_s",
            "",
            "none",
            "Mbit/s of one session in each direction through this relay, at least 1; a tenth of a second's may come at once",
        ),
        reloaded(
            "address_connections",
            "--address-connections",
            &number(limits::CONNECTIONS_PER_ADDRESS),
            "connections of one remote address (an IPv4 address, or an IPv6 /64)",
        ),
        reloaded(
            "address_handshakes",
            "--address-handshakes",
            &number(limits::HANDSHAKES_PER_ADDRESS),
            "handshakes under way of one remote address",
        ),
        reloaded(
            "address_rate",
            "--address-rate",
            &number(limits::CONNECTS_PER_SECOND_AND_ADDRESS),
            "new connections per second of one remote address, on average",
        ),
        reloaded(
            "address_burst",
            "--address-burst",
            &number(limits::CONNECTS_AT_ONCE_PER_ADDRESS),
            "new connections at once of one remote address",
        ),
        setting(
            "traces",
            "",
            "off",
            "a table: `endpoint = \"http://127.0.0.1:4318\"`; where traces of sessions go, over OTLP (HTTP, JSON)",
        ),
    ]
}
