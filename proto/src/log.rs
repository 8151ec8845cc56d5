//! The log of both programs: on standard error, as text or JSON, with a level that can change while they run.
//!
//! Values that peers chose are [escaped](crate::text) here, so that no call of `tracing` has to think of it.

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;

use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FormatFields, debug_fn};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::text;

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("write text or json".to_owned()),
        }
    }
}

/// Changes what is logged.
#[derive(Debug, Clone)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

impl LogControl {
    /// Logs what `filter` says from here on.
    ///
    /// # Errors
    /// What is wrong with the filter.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        self.0.reload(parse(filter)?).map_err(|error| error.to_string())
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
const ADVICE: &str = "write off, error, warn, info, debug or trace, or a level with exceptions such as info,quinn=debug";

/// The crates of both programs that log. A filter for any other changes nothing, so its name is a typo.
const CRATES: [&str; 22] = [
    "axum",
    "crab_nat",
    "h2",
    "hyper",
    "hyper_util",
    "igd_next",
    "mio",
    "quinn",
    "quinn_proto",
    "quinn_udp",
    "rcgen",
    "ring",
    "rusqlite",
    "rustls",
    "socket2",
    "tasuki_agent",
    "tasuki_proto",
    "tasuki_relay",
    "tasuki_terminal",
    "tokio",
    "tokio_rustls",
    "tower",
];

/// The filter that a text stands for. A word alone is a level, and a module is one that exists: what is misspelt would
/// silence the log.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    for word in filter.split(',') {
        if !word.contains(['=', '[', ']', '{', '}']) {
            if !is_level(word.trim()) {
                return Err(format!("'{}' is no level: {ADVICE}", text::escape(word)));
            }
        } else if let Some((module, _)) = word.split_once(['=', '['])
            // Commas stand between the fields of a span, too.
            && !filter.contains('{')
            && !is_crate(module.trim())
        {
            let module = text::escape(module);
            return Err(format!("'{module}' is no module that logs: {ADVICE}"));
        }
    }
    EnvFilter::try_new(filter).map_err(|error| format!("{error}: {ADVICE}"))
}

fn is_crate(module: &str) -> bool {
    module.is_empty() || CRATES.contains(&module.split("::").next().unwrap_or_default())
}

/// What is wrong with a filter, where something is.
pub fn check(filter: &str) -> Option<String> {
    parse(filter).err()
}

/// Starts the log of this process.
///
/// # Errors
/// What is wrong with the filter, or that the process has a log already.
pub fn start(filter: &str, format: LogFormat) -> Result<LogControl, String> {
    let (filter, control) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let ansi = io::stderr().is_terminal();
            let lines = fmt::layer().with_writer(io::stderr).with_ansi(ansi);
            registry.with(lines.fmt_fields(escaped_fields())).try_init()
        }
        LogFormat::Json => {
            let lines = fmt::layer().json().flatten_event(true);
            registry.with(lines.with_writer(EscapedJson(io::stderr))).try_init()
        }
    };
    started.map_err(|error| error.to_string())?;
    Ok(LogControl(control))
}

/// Fields of events and spans, with their values escaped.
fn escaped_fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        use std::fmt::Write as _;
        if field.name() != "message" {
            write!(writer, "{}=", field.name().trim_start_matches("r#"))?;
        }
        write!(text::EscapeTo(writer), "{value:?}")
    })
    .delimited(" ")
}

/// Standard error, with what a screen could obey escaped within the strings of JSON.
#[derive(Debug, Clone, Copy)]
struct EscapedJson<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for EscapedJson<M> {
    type Writer = EscapedJson<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        EscapedJson(self.0.make_writer())
    }
}

impl<W: Write> Write for EscapedJson<W> {
    /// An event comes in one piece.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(json) => self.0.write_all(text::escape_json(json).as_bytes())?,
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_misspelt_level_or_module_is_an_error() {
        for good in [
            "info",
            "WARN",
            "info,quinn=debug",
            "tasuki_relay::core=trace",
            "off,tasuki_relay[a{b=c}]=trace",
        ] {
            assert_eq!(check(good), None, "{good}");
        }
        for bad in [
            "inof",
            "warning",
            "verbose",
            "",
            "info,,",
            "quinn=loud",
            "info,quinn",
            "info,qiunn=debug",
        ] {
            assert!(check(bad).is_some(), "{bad}");
        }
        assert!(check("warning").is_some_and(|error| error.contains("error, warn, info, debug")));
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Kept {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    const EVIL: &str = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}gpj\u{200b}\n2026 ERROR forged";

    #[test]
    fn what_peers_say_is_escaped_in_events_and_spans() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines.fmt_fields(escaped_fields()));
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("session", software = EVIL);
            let _inside = span.enter();
            tracing::info!(refusal = %EVIL, name = EVIL, debug = ?EVIL, number = 7, "peer {EVIL}");
        });
        let text = kept.text();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.trim_end().contains(text::is_hazard), "{text:?}");
        assert!(text.contains("refusal=\\u{1b}]0;owned") && text.contains("number=7"), "{text}");
    }

    #[test]
    fn what_peers_say_is_escaped_in_json() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = fmt::layer().json().flatten_event(true);
        let lines = lines.with_writer(EscapedJson(move || writer.clone()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            tracing::info!(refusal = %EVIL, "heard");
        });
        let text = kept.text();
        assert!(!text.trim_end().contains(text::is_hazard), "{text:?}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["refusal"], EVIL);
    }
}
