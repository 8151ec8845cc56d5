//! What a terminal decides: pure, without clock, socket, task, lock or randomness of its own.
//!
//! Every core has one shape: `handle(input, now)`, `poll_output()`, `poll_timeout()`.

pub mod access;
pub mod budget;
pub mod calls;
pub mod candidates;
pub mod flows;
pub mod handshakes;
pub mod inbox;
pub mod login;
pub mod nat;
pub mod notice;
pub mod paths;
pub mod pieces;
pub mod retry;
pub mod revoked;
pub mod shares;
pub mod transfer;
pub mod unanswered;
