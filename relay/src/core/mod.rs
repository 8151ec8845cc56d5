//! What a relay decides: pure, without clock, socket, task, lock or randomness of its own.
//!
//! Every core has one shape: `handle(input, now)`, `poll_output()`, `poll_timeout()`.

pub mod admin;
pub mod directory;
pub mod gossip;
pub mod links;
pub mod login;
pub mod routes;
pub mod sessions;

/// A link, by a number that the driver never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A terminal's connection, by a number that the driver never uses twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);
