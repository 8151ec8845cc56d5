//! How people read it: units, spans of time, colours, lines that fit.
#![allow(clippy::disallowed_methods, reason = "ages are shown by this machine's clock")]

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use tasuki_proto::text::escape;

/// Characters of a line.
pub(crate) const LINE: usize = 80;

/// What the text is written for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Whether it may have colours.
    pub(crate) colour: bool,
    /// ms since 1970.
    pub(crate) now_ms: u64,
}

impl Look {
    /// For standard output: colours on a terminal, unless the environment says `NO_COLOR` (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: std::io::stdout().is_terminal() && !unwanted, ..Self::plain() }
    }

    /// Without colours.
    pub(crate) fn plain() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { colour: false, now_ms: now.map_or(0, |now| now.as_millis() as u64) }
    }

    /// `text` in a colour.
    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        match paint.code() {
            Some(code) if self.colour => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    /// How long ago a time was, ms since 1970; a time of another clock that is ahead was just now.
    pub(crate) fn ago(self, then_ms: u64) -> String {
        span(self.now_ms.saturating_sub(then_ms) / 1000)
    }
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Paint {
    /// Nothing.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Not as it should be.
    Bad,
    /// Of less interest.
    Dim,
    /// A head.
    Head,
}

impl Paint {
    const fn code(self) -> Option<&'static str> {
        match self {
            Paint::Plain => None,
            Paint::Good => Some("32"),
            Paint::Warn => Some("33"),
            Paint::Bad => Some("31"),
            Paint::Dim => Some("2"),
            Paint::Head => Some("1"),
        }
    }

    /// What the state of a relay, a terminal or a session says.
    pub(crate) fn of_state(state: &str) -> Self {
        match state {
            "up" | "ready" | "logged-in" | "in-communication" | "active" | "yes" | "ok" => {
                Self::Good
            }
            "draining" | "calling" | "warning" => Self::Warn,
            "unreachable" | "bad" | "no" => Self::Bad,
            "logged-out" | "ended" | "unknown" => Self::Dim,
            _ => Self::Plain,
        }
    }
}

/// A span of time as people say it, two units at most.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A number of bytes as people say it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A time in µs as ms, with as many digits as are of interest.
pub(crate) fn milliseconds(us: f64) -> String {
    match us / 1000.0 {
        ms if ms < 0.995 => format!("{ms:.2} ms"),
        ms if ms < 99.95 => format!("{ms:.1} ms"),
        ms => format!("{ms:.0} ms"),
    }
}

/// Escapes what a screen could obey; line breaks, at which text is wrapped, become spaces.
fn escape_words(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join(" ")
}

/// Lines of at most [`LINE`] characters: `head` in a column of `width`, and beside it the words of `text`.
pub(crate) fn wrapped(head: &str, width: usize, text: &str) -> String {
    let room = LINE.saturating_sub(width).max(20);
    let (mut lines, mut line) = (Vec::new(), String::new());
    for word in escape_words(text).split_whitespace() {
        let mut letters: Vec<char> = word.chars().collect();
        while !letters.is_empty() {
            let used = line.chars().count();
            let gap = usize::from(used > 0);
            if used + gap + letters.len() > room && used > 0 {
                lines.push(std::mem::take(&mut line));
                continue;
            }
            if gap == 1 {
                line.push(' ');
            }
            // A word that is longer than a line goes on in the next one.
            line.extend(letters.drain(..letters.len().min(room)));
        }
    }
    lines.push(line);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        let head = if at == 0 { head } else { "" };
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}", format!("{head:<width$}{line}").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_spans_sizes_and_times() {
        assert_eq!([59, 3_725, 90_000].map(span), ["59s", "1h02m", "1d01h"]);
        assert_eq!([0, 999, 999_999].map(bytes), ["0 B", "999 B", "1.0 MB"]);
        assert_eq!([93.0, 1500.0, 250_000.0].map(milliseconds), ["0.09 ms", "1.5 ms", "250 ms"]);
    }

    #[test]
    fn text_is_wrapped_beside_its_head() {
        let text = format!("{} {}", "word ".repeat(30), "x".repeat(100));
        let lines = wrapped("why:", 8, &text);
        assert!(lines.lines().all(|line| line.chars().count() <= LINE), "{lines}");
        assert!(lines.starts_with("why:    word word"), "{lines}");
        assert!(lines.lines().skip(1).all(|line| line.starts_with("        ")), "{lines}");
        assert_eq!(lines.matches('x').count(), 100);
        assert_eq!(wrapped("a", 3, ""), "a\n");
        assert_eq!(wrapped("a", 3, "\u{1b}[31m"), "a  \\u{1b}[31m\n");
    }

    #[test]
    fn colours_only_where_they_are_wanted() {
        let look = Look { colour: true, now_ms: 0 };
        assert_eq!(look.paint(Paint::of_state("unreachable"), "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(look.paint(Paint::Plain, "x"), "x");
        assert_eq!(Look::plain().paint(Paint::Bad, "x"), "x");
    }
}
