//! What acts: sockets, tasks, clocks, files.
#![allow(clippy::disallowed_methods, reason = "this layer is where clocks and sockets belong")]

mod admission;
pub mod driver;
pub mod endpoint;
pub mod event;
pub mod http;
pub mod links;
mod reading;
pub mod registrar;
pub mod requests;
mod selftest;
pub mod store;
pub mod terminals;
