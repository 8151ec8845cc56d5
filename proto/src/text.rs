//! Text from others is data: how it may be shown.
//!
//! A peer chooses the text of its refusals, the names of its files, its software version and more. On a screen such
//! text could move the cursor, change the title, write to the clipboard or reorder what stands beside it. [`escape`]
//! is the one function that decides what is harmless; every edge uses it: log, output of verbs, pages, file names.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

/// Whether a screen could obey `c`, or show nothing where it stands: control characters (C0, DEL, C1), characters that
/// change the direction of text, characters without width, separators of lines and paragraphs.
pub fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' // soft hyphen
            | '\u{34f}' // combining grapheme joiner
            | '\u{61c}' // Arabic letter mark
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' // Hangul fillers
            | '\u{17b4}' | '\u{17b5}' // Khmer inherent vowels
            | '\u{180b}'..='\u{180f}' // Mongolian selectors
            | '\u{200b}'..='\u{200f}' // without width, direction marks
            | '\u{2028}'..='\u{202e}' // separators, embeddings, overrides
            | '\u{2060}'..='\u{206f}' // joiner, invisible operators, isolates
            | '\u{fe00}'..='\u{fe0f}' // variation selectors
            | '\u{feff}' // byte order mark
            | '\u{fff0}'..='\u{fffb}' // unassigned, interlinear annotation
            | '\u{1bca0}'..='\u{1bca3}' // shorthand format controls
            | '\u{1d173}'..='\u{1d17a}' // musical format controls
            | '\u{e0000}'..='\u{e0fff}' // tags, variation selectors
        )
}

/// The text with every [hazard](is_hazard) written as Rust writes it (`\n`, `\u{1b}`). Escaping twice changes nothing.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hazard) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_hazard(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// As [`escape`], of the first `chars` characters.
pub fn shown(text: &str, chars: usize) -> String {
    let end = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    escape(&text[..end]).into_owned()
}

/// A value as it may be shown: what its `Display` writes, escaped while it is written.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(EscapeTo(f), "{}", self.0)
    }
}

/// Escapes what is written through it.
#[derive(Debug)]
pub struct EscapeTo<W>(pub W);

impl<W: fmt::Write> fmt::Write for EscapeTo<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write_str(&escape(text))
    }
}

/// JSON text with every [hazard](is_hazard) inside its strings written as `\uXXXX`: the same value, harmless on a
/// screen. Line breaks between the values stay.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    // Within a string JSON has no bare control character below U+0020; between values only white space.
    let hazard = |c: char| is_hazard(c) && !matches!(c, '\n' | '\r' | '\t');
    if !json.contains(hazard) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 32);
    for c in json.chars() {
        if hazard(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_bidi_and_zero_width_characters_are_escaped() {
        assert_eq!(escape("a\u{1b}[2Jé\n"), "a\\u{1b}[2Jé\\n");
        assert_eq!(escape("\u{7f}\u{9b}31m"), "\\u{7f}\\u{9b}31m");
        assert_eq!(escape("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(
            escape("a\u{200b}b\u{feff}\u{2066}\u{e0041}"),
            "a\\u{200b}b\\u{feff}\\u{2066}\\u{e0041}"
        );
        assert!(matches!(escape("plain, 日本語, עברית, 🎽"), Cow::Borrowed(_)));
        assert_eq!(shown("aaaa", 2), "aa");
        assert_eq!(Escaped("x\u{7}").to_string(), "x\\u{7}");
    }

    #[test]
    fn json_keeps_its_value() {
        let value =
            serde_json::json!({ "a": "\u{9b}31m \u{202e} \u{e0041} \u{7f}", "b": [1, "é\n"] });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = escape_json(&text);
        assert!(!escaped.contains(|c| is_hazard(c) && c != '\n'), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }

    proptest! {
        #[test]
        fn nothing_harmful_is_left(text: String) {
            let once = escape(&text).into_owned();
            prop_assert!(!once.contains(is_hazard));
            prop_assert_eq!(escape(&once), &once[..]);
            let json = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(serde_json::from_str::<String>(&escape_json(&json)).unwrap(), text);
        }
    }
}
