//! Relays that lie about the table.
