//! What a measurement found.

use serde_json::{Map, Value};

/// Figures by name; the unit stands at the end of the name.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Map<String, Value>,
    failure: Option<String>,
}

impl Report {
    /// Adds a figure; fractions are rounded to three digits.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: f64) -> Report {
        let rounded = (value * 1000.0).round() / 1000.0;
        let value =
            if rounded.fract() == 0.0 { Value::from(rounded as i64) } else { rounded.into() };
        self.figures.insert(name.to_owned(), value);
        self
    }

    /// Adds words.
    #[must_use]
    pub(crate) fn with_text(mut self, name: &str, text: &str) -> Report {
        self.figures.insert(name.to_owned(), text.into());
        self
    }

    /// Adds what is so or not.
    #[must_use]
    pub(crate) fn with_flag(mut self, name: &str, value: bool) -> Report {
        self.figures.insert(name.to_owned(), value.into());
        self
    }

    /// What was measured is printed all the same, but the program ends with an error.
    #[must_use]
    pub(crate) fn failed(self, why: String) -> Report {
        let report = self.with_text("errors", &why);
        Report { failure: Some(why), ..report }
    }

    /// Why the measurement failed, where it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Prints it.
    pub(crate) fn print(&self, json: bool) {
        let width = self.figures.keys().map(String::len).max().unwrap_or(0);
        for (name, value) in &self.figures {
            match value {
                Value::String(text) => println!("{name:<width$} {text}"),
                value => println!("{name:<width$} {value}"),
            }
        }
        if json {
            println!("{}", Value::Object(self.figures.clone()));
        }
    }
}
