//! Every setting of an agent's file, for people.

/// A key of the file of `--config`.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The key.
    pub key: &'static str,
    /// The flag that says the same, where there is one.
    pub flag: &'static str,
    /// What counts where nothing is said.
    pub default: &'static str,
    /// What it is for, its unit and its limits.
    pub what: &'static str,
}

/// All settings, in the order of the documentation.
pub const SETTINGS: [Setting; 16] = {
    const fn setting(
        key: &'static str,
        flag: &'static str,
        default: &'static str,
        what: &'static str,
    ) -> Setting {
        Setting { key, flag, default, what }
    }
    [
        setting(
            "data",
            "--data",
            "see [data directories](operations.md#data-directories)",
            "the data directory",
        ),
        setting(
            "log",
            "--log",
            "info",
            "what the daemon logs: error, warn, info, debug, trace, or a filter",
        ),
        setting("json", "--json", "false", "lists as JSON"),
        setting(
            "expose",
            "--expose",
            "none",
            "a table: `ssh = \"tcp://127.0.0.1:22\"`; what this terminal offers",
        ),
        setting(
            "allow",
            "--allow",
            "nobody",
            "a table: `ssh = [\"desk1\"]`, or `\"*\"` for every terminal of the mesh",
        ),
        setting(
            "relays",
            "--relays",
            "auto",
            "`auto`: attach to the relays that cost least; a list of names: to these and no others",
        ),
        setting(
            "direct",
            "--direct",
            "auto",
            "`auto` or `never`: whether sessions may go directly",
        ),
        setting(
            "direct-never",
            "--direct-never",
            "none",
            "a list of services whose sessions take no direct path",
        ),
        setting(
            "port-mapping",
            "--port-mapping",
            "auto",
            "`auto` or `never`: whether the gateway is asked for a port",
        ),
        setting(
            "keep-alive",
            "--keep-alive",
            "9",
            "s: how often an attachment is proven alive; at most half of `idle`",
        ),
        setting("idle", "--idle", "20", "s: how long an attachment may stay silent"),
        setting(
            "resume",
            "--resume",
            "60",
            "s: how long a session whose paths are all lost waits for another; at most 80",
        ),
        setting(
            "inbox-total",
            "--inbox-total",
            "1000000",
            "MB: how much the files in the inbox may take, of all senders",
        ),
        setting(
            "inbox-per-sender",
            "--inbox-per-sender",
            "250000",
            "MB: how much the files of one sender in the inbox may take",
        ),
        setting(
            "tcp-keep-alive",
            "--tcp-keep-alive",
            "60, or the system's `tcp_keepalive_time` if that is less",
            "s: after this much silence a TCP connection of a service or a forwarded port is asked, up to six times, whether its other end is still there; if nothing answers it ends after 2.5 times as long; 0: never; at most 32767",
        ),
        setting(
            "traces",
            "",
            "off",
            "a table: `endpoint = \"http://127.0.0.1:4318\"`; where traces of sessions go, over OTLP (HTTP, JSON)",
        ),
    ]
};
