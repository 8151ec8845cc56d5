//! Forwards frames by their label: no decryption, no allocation per packet, no await (architecture 7).
//!
//! The core programs the [`Table`]; the switch never asks the core. One thread a socket receives in batches,
//! writes the next label in place and sends runs of one label with one system call. What is no frame is a QUIC
//! packet for one of the relay's own endpoints and goes to that endpoint's inbox.
//!
//! A label counts only from the neighbour that it was given to: [`Neighbour`] holds the addresses that this
//! neighbour has proven. A valid label from another address is not forwarded but answered, at a bounded rate,
//! by a challenge to that address; the echo proves it with a key that only the neighbour has.

mod forward;
mod neighbour;
mod pace;
mod table;
mod worker;

pub use forward::{Batch, Drops, Forwarder, Sink, Traffic};
pub use neighbour::{Address, Neighbour};
pub use pace::Pace;
pub use table::{Entry, Heard, Table};
pub use worker::{Moved, Switch};

#[cfg(test)]
mod tests;
