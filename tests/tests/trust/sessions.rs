//! Terminals that exhaust other terminals or relays.
