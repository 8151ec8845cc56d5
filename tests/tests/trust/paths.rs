//! Observers and relays on the path of a session.
