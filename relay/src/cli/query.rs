//! Verbs that show what the running relay knows.

use super::{Global, local};

/// Verbs that show what the running relay knows.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Query {
    /// Show this relay: links, table, what it is doing
    #[command(after_help = "Example: tasuki-relay status")]
    Status,
}

/// Runs a verb and prints what it finds.
///
/// # Errors
/// One line: `code: what: what to do`.
pub async fn run(global: &Global, query: Query) -> anyhow::Result<()> {
    let path = match query {
        Query::Status => "/api/v1/status",
    };
    println!("{}", local::call(&local::socket(global), "GET", path, None).await?.1);
    Ok(())
}
