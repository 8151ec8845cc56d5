//! The relay of a Tasuki mesh, as a library: tests, simulator and measurements use it; `main` is thin.
//!
//! [`core`] decides and is pure; [`switch`] forwards packets; [`io`] acts; [`app`] puts them together.

pub mod app;
pub mod cli;
pub mod config;
pub mod core;
pub mod io;
pub mod reload;
pub mod switch;
