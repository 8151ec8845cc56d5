//! Runs the core: inputs in, outputs performed.
