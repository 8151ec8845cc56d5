//! Faults that users of comparable systems reported, tried on the shipped programs: each test shows the right behaviour.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests act")]

mod dialling;
mod files;
mod limits;
mod twins;
