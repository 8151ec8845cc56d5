//! What acts: sockets, tasks, clocks, files.
#![allow(clippy::disallowed_methods, reason = "this layer is where clocks and sockets belong")]

pub mod attachment;
pub mod congestion;
pub mod driver;
pub mod ipc;
mod portmap;
pub mod services;
pub mod socket;
pub mod transport;
mod turn;

#[cfg(test)]
pub(crate) mod testing;
