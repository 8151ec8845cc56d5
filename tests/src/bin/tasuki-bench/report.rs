//! What a measurement found.

use serde_json::{Map, Value};

/// Figures by name; the unit stands at the end of the name.
#[derive(Debug, Default)]
pub(crate) struct Report(Map<String, Value>);

impl Report {
    /// Adds a figure; fractions are rounded to three digits.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: f64) -> Report {
        let rounded = (value * 1000.0).round() / 1000.0;
        let value =
            if rounded.fract() == 0.0 { Value::from(rounded as i64) } else { rounded.into() };
        self.0.insert(name.to_owned(), value);
        self
    }

    /// Adds words.
    #[must_use]
    pub(crate) fn with_text(mut self, name: &str, text: &str) -> Report {
        self.0.insert(name.to_owned(), text.into());
        self
    }

    /// Prints it.
    pub(crate) fn print(&self, json: bool) {
        let width = self.0.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &self.0 {
            match value {
                Value::String(text) => println!("{name:<width$} {text}"),
                value => println!("{name:<width$} {value}"),
            }
        }
        if json {
            println!("{}", Value::Object(self.0.clone()));
        }
    }
}
