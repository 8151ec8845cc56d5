//! Connections with terminals.
