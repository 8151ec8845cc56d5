//! What the wire is called, and its history.
//!
//! | protocol | since | what changed |
//! |---|---|---|
//! | 1 | 0.1.0 | the first. Before its release: knocks (frame kind 5, `TryAddress`, `Tried`), lanes and pauses (`Begin` kinds 6, 7), datagrams in pieces (integers of eight bytes), probes bound to their path (frame kind 4), signed heads of origins (gossip kinds 1 and 3), signed log-ins (`Login`, `Welcome`, `Refused`, attachment rows), revocations as records, the public key in accounts, and the process in `LinkHello` with `Twin` |
//!
//! Kinds and sections that an older peer skips do not raise the protocol.
//!
//! A change to the wire touches this file, a golden vector and an ADR in one commit.

/// The protocol that this build speaks.
pub const PROTOCOL: u16 = 1;
/// The oldest protocol that this build still understands; an older peer is refused with `protocol-too-old`.
pub const PROTOCOL_MIN: u16 = 1;
/// The software's version, for people.
pub const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// What a QUIC connection is for; its name is negotiated in the TLS handshake (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// Relay to relay.
    Link,
    /// Terminal to relay.
    Attachment,
    /// Terminal to terminal, end to end.
    Session,
    /// A newcomer without a certificate to a relay.
    Enrolment,
}

impl Alpn {
    /// All of them.
    pub const ALL: [Alpn; 4] = [Alpn::Link, Alpn::Attachment, Alpn::Session, Alpn::Enrolment];

    /// The name on the wire.
    pub const fn wire(self) -> &'static [u8] {
        match self {
            Alpn::Link => b"tasuki-link",
            Alpn::Attachment => b"tasuki-attachment",
            Alpn::Session => b"tasuki-session",
            Alpn::Enrolment => b"tasuki-enrolment",
        }
    }

    /// The one with this name on the wire.
    pub fn from_wire(name: &[u8]) -> Option<Alpn> {
        Self::ALL.into_iter().find(|alpn| alpn.wire() == name)
    }
}
