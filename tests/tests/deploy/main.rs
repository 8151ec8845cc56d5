//! What `deploy/` ships: units, example configurations, alert rules and a dashboard, each held against the programs.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

mod backup;
mod examples;
mod images;
mod notify;
mod prometheus;
mod registrar;
mod units;
mod words;

use std::path::PathBuf;

use tasuki_tests::lab::bins::workspace;

/// A file below `deploy/`.
fn shipped(name: &str) -> PathBuf {
    workspace().join("deploy").join(name)
}

/// Its text.
fn text(name: &str) -> String {
    let path = shipped(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
