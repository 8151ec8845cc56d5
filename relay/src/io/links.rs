//! Connections with other relays.
