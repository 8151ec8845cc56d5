//! Relays that lie about attachments and revocations.
