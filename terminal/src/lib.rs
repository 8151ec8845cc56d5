//! The agent of a Tasuki terminal, as a library: `main` is thin.
//!
//! [`core`] decides and is pure; [`io`] acts; [`agent`] is the handle that programs and verbs use; [`app`] puts
//! the daemon together.

pub mod agent;
pub mod app;
pub mod cli;
pub mod config;
pub mod core;
pub mod io;
pub mod reference;
