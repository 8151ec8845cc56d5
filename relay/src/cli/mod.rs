//! The verbs of `tasuki-relay`, one file each.

pub mod act;
pub mod local;
pub mod query;

use std::path::PathBuf;

/// Flags that stand anywhere.
#[derive(Debug, Clone, Default)]
pub struct Global {
    /// The data directory.
    pub data: Option<PathBuf>,
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// What is logged.
    pub log: Option<String>,
    /// Machine-readable output.
    pub json: bool,
}

/// Runs the command line.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
