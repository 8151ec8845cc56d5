//! The log: on standard error, as text or JSON, with a level that can change while the relay runs.

use std::io::IsTerminal;
use std::str::FromStr;

use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

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

/// The filter that a text stands for. A word alone is a level: as the name of a module, which the filter would take it
/// for, a misspelt level would silence the log.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const ADVICE: &str = "write a level such as info, or info,quinn=debug";
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let mut words = filter.split(',').filter(|word| !word.contains(['=', '[', ']', '{', '}']));
    if let Some(word) = words.find(|word| !is_level(word.trim())) {
        return Err(format!("'{word}' is no level: {ADVICE}"));
    }
    EnvFilter::try_new(filter).map_err(|error| format!("{error}: {ADVICE}"))
}

/// What is wrong with a filter, where something is.
pub fn check(filter: &str) -> Option<String> {
    parse(filter).err()
}

/// Starts the log of this process.
///
/// # Errors
/// When the filter is not sound, or the process has a log already.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<LogControl> {
    let filter = parse(filter).map_err(|error| anyhow::anyhow!("--log: {error}"))?;
    let (filter, control) = reload::Layer::new(filter);
    let ansi = std::io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(LogControl(control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_an_error() {
        for good in ["info", "WARN", "info,quinn=debug", "off,tasuki_relay[a{b=c}]=trace"] {
            assert_eq!(check(good), None, "{good}");
        }
        for bad in ["inof", "", "info,,", "quinn=loud", "info,quinn"] {
            assert!(check(bad).is_some(), "{bad}");
        }
    }
}
