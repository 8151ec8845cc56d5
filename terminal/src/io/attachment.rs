//! The connection to a relay.
