//! Reaching a name that has several addresses, of which some may be dead (RFC 8305). Relays and agents dial everything by
//! this module: relays, the services behind a terminal, the collector of traces.
//!
//! - [`race`] decides, in pure code: which address is tried next, when the next try begins beside those under way, and
//!   when there is nothing left to try.
//! - [`memory`] remembers, in pure code: the last answer of each look-up, and how each address did.
//! - [`Dialler`] acts: it looks names up, connects, and tells both how it went.
//!
//! **Look-ups run beside connections.** A look-up never ends with the dial that asked for it: its answer comes into the
//! memory however late it is, and the next dial uses it. A dial that finds an earlier answer waits
//! [`race::ANSWER_DELAY`] for a fresh one; when a look-up fails, the last good answer serves.
//!
//! **Each try has its own time.** Families alternate, names of one relay take turns, the next try begins
//! [`Manner::stagger`] after the last one or as soon as one fails. Addresses that failed lately come last, those that
//! worked last time come first.

mod act;
pub mod memory;
pub mod race;

pub use act::{Answer, Dialler, Dialling, Failure, Problem, Unreached};
pub use race::{Manner, Place};

#[cfg(test)]
mod tests;
