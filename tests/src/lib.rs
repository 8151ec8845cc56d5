//! Simulator, laboratory of real processes and namespaces, and measurements.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

pub mod glare;
pub mod lab;
pub mod linesim;
pub mod natsim;
pub mod sim;
