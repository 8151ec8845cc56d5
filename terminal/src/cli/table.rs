//! Lists for people: columns that fit a screen.

use std::io::{self, Write};

use serde_json::Value;
use tasuki_proto::text::{escape, escape_json, shown};

/// Columns of a screen.
pub const WIDTH: usize = 80;

/// Prints rows under a head, every line at most [`WIDTH`] wide: the widest columns are cut.
///
/// # Errors
/// The writer's.
pub fn print(out: &mut dyn Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let widest = |column: usize| {
        let length = |cell: &String| escape(cell).chars().count();
        all.iter().filter_map(|row| row.get(column)).map(length).max()
    };
    let mut widths: Vec<usize> =
        (0..head.len()).map(|column| widest(column).unwrap_or(0)).collect();
    let room = WIDTH.saturating_sub(2 * head.len().saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > 1) else { break };
        *widest -= 1;
    }
    for row in all {
        let cells = row.iter().zip(&widths).map(|(cell, width)| fit(cell, *width));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn fit(cell: &str, width: usize) -> String {
    let cell = escape(cell);
    let length = cell.chars().count();
    if length <= width {
        return format!("{cell}{}", " ".repeat(width - length));
    }
    let cut: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// Prints a value as JSON, harmless on a screen whatever peers wrote into it.
///
/// # Errors
/// The writer's.
pub fn json(out: &mut dyn Write, value: &impl serde::Serialize) -> io::Result<()> {
    writeln!(out, "{}", escape_json(&serde_json::to_string_pretty(value)?))
}

/// A field of a JSON row as text: lists with commas, nothing for null.
pub fn text(row: &Value, field: &str) -> String {
    fn plain(value: &Value) -> String {
        match value {
            Value::Null => String::new(),
            Value::String(text) => shown(text, 200),
            Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        }
    }
    plain(&row[field])
}

/// A span of time as people say it, two units at most.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A number of bytes as people say it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_a_screen() {
        let rows = vec![
            vec!["a".repeat(63), "b".repeat(63), "ok".into()],
            vec!["é".repeat(63), "x".into(), "ok".into()],
        ];
        let mut out = Vec::new();
        print(&mut out, &["ID", "TYPE", "STATE"], &rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().skip(1).all(|line| line.ends_with("ok")), "{text}");
    }

    #[test]
    fn what_peers_say_cannot_steer_a_screen() {
        let evil = "\u{1b}]0;t\u{7}\u{9b}2J\u{202e}\u{200b}\r\n";
        let row = serde_json::json!({ "x": evil, "all": [evil] });
        let mut out = Vec::new();
        print(&mut out, &["A"], &[vec![evil.into()]]).unwrap();
        json(&mut out, &row).unwrap();
        let printed = String::from_utf8(out).unwrap() + &text(&row, "x") + &text(&row, "all");
        let harmful = |c| tasuki_proto::text::is_hazard(c) && c != '\n';
        assert!(!printed.contains(harmful), "{printed:?}");
        assert!(!text(&row, "x").contains('\n'));
    }

    #[test]
    fn people_read_spans_and_sizes() {
        assert_eq!(span(59), "59s");
        assert_eq!(span(3_725), "1h02m");
        assert_eq!(span(90_000), "1d01h");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_999), "1.0 MB");
    }
}
