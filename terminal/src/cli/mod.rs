//! The verbs of `tasuki-agent`, one file each.

pub mod enroll;

/// Runs the command line.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
