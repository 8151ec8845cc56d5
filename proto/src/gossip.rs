//! Relay and relay: the messages that spread the table (architecture 4, C5, C6).
