//! Every reason for a refusal or an end, as one enum shared by the wire, logs, metrics and people.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::Escaped;

macro_rules! codes {
    ($($(#[$doc:meta])* $value:literal $name:ident $word:literal $advice:literal;)+) => {
        /// Why something was refused, or ended. The number stands on the wire and never changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum RefusalCode {
            $($(#[$doc])* $name,)+
            /// A code that a newer peer sent.
            Other(u16),
        }

        impl RefusalCode {
            /// All codes that this build knows.
            pub const ALL: &'static [RefusalCode] = &[$(RefusalCode::$name),+];

            /// The number on the wire.
            pub const fn value(self) -> u16 {
                match self { $(RefusalCode::$name => $value,)+ RefusalCode::Other(value) => value }
            }

            /// The code with this number.
            pub const fn from_value(value: u16) -> RefusalCode {
                match value { $($value => RefusalCode::$name,)+ other => RefusalCode::Other(other) }
            }

            /// The code as one word, for scripts and metrics.
            pub const fn word(self) -> &'static str {
                match self { $(RefusalCode::$name => $word,)+ RefusalCode::Other(_) => "other" }
            }

            /// What happened and what to do, for people: one line.
            pub const fn advice(self) -> &'static str {
                match self {
                    $(RefusalCode::$name => $advice,)+
                    RefusalCode::Other(_) => "the peer gave a reason that this version does not know; update this side",
                }
            }
        }
    };
}

codes! {
    // Ends that are nobody's fault.
    /// The caller ended it.
    1 EndedByCaller "ended-by-caller" "the caller ended the session";
    /// The callee ended it.
    2 EndedByCallee "ended-by-callee" "the callee ended the session";
    /// An operator ended it.
    3 EndedByOperator "ended-by-operator" "an operator ended the session";
    /// The terminal logged out (C11).
    4 LoggedOut "logged-out" "the terminal logged out";
    /// Two calls met and became one session (D3).
    5 Merged "merged" "both sides called at the same time; the other call became the session";
    /// The node is shutting down.
    6 ShuttingDown "shutting-down" "the node is shutting down; it is tried again by itself";

    // Calls (C7, C8).
    /// No such terminal.
    20 UnknownTarget "unknown-target" "no terminal of this mesh has that id; 'tasuki-agent ls' lists them";
    /// The terminal has no attachment.
    21 TargetLoggedOut "target-logged-out" "the terminal is registered but not logged in; start its agent";
    /// The terminal's relays cannot be reached.
    22 TargetUnreachable "target-unreachable" "the terminal's relays cannot be reached from here; see 'tasuki-relay relays'";
    /// No answer in time.
    23 NoAnswer "no-answer" "the terminal did not answer in time; see whether its agent hangs";
    /// Not exposed there.
    24 ServiceNotExposed "service-not-exposed" "the terminal does not expose that service; add --expose there";
    /// Not allowed there.
    25 CallerNotAllowed "caller-not-allowed" "the service is not open to this terminal; add --allow there";
    /// The user at the target said no.
    26 TargetRefused "target-refused" "the terminal refused the call";
    /// At a limit.
    27 Busy "busy" "a limit on calls or sessions is reached; end some, or try again later";
    /// No route of at most 16 relays.
    28 HopLimit "hop-limit" "the route is longer than 16 relays; add links";
    /// The terminal called itself.
    29 SelfCall "self-call" "a terminal cannot call itself";
    /// The caller gave up.
    30 CallWithdrawn "call-withdrawn" "the caller gave up before the answer";
    /// The other side is not who it should be.
    31 PeerNotProven "peer-not-proven" "the other side did not prove to be the terminal that was called";
    /// The route was lost.
    32 RouteLost "route-lost" "a relay or a link on the way died; call again";
    /// The other terminal's attachment was lost.
    33 PeerLost "peer-lost" "the other terminal lost its relay or died; call again";
    /// Nothing came end to end for too long.
    34 SessionTimeout "session-timeout" "nothing came from the other terminal for too long; call again";
    /// No such session.
    35 UnknownSession "unknown-session" "no session has that id; 'sessions' lists them";
    /// The service behind the terminal does not answer.
    36 ServiceDown "service-down" "the terminal cannot reach the service behind it; see whether it runs";
    /// A session gave up this way of its packets; others carry it.
    37 Moved "moved" "the session goes on over other relays";

    // Log-in (C2).
    /// Not registered.
    40 UnknownTerminal "unknown-terminal" "this terminal is not registered; enrol it with a new token";
    /// Certificate of another mesh.
    41 WrongMesh "wrong-mesh" "the certificate belongs to another mesh; enrol again with a token of this one";
    /// Revoked key.
    42 Revoked "revoked" "this identity was revoked; ask the operator for a new token and enrol again";
    /// Certificate is over.
    43 CertificateExpired "certificate-expired" "the certificate has expired; it is renewed when a relay is reached, check the clock";
    /// Certificate is not yet valid.
    44 CertificateNotYetValid "certificate-not-yet-valid" "the certificate is not yet valid; check the clock of this machine";
    /// Not a certificate of the expected kind.
    45 WrongRole "wrong-role" "the certificate is for another role; use the data directory of this kind of node";
    /// Not the expected name.
    46 WrongName "wrong-name" "the peer is not the one that was expected; check addresses and names";
    /// No certificate.
    47 CertificateMissing "certificate-missing" "the peer showed no certificate";
    /// Anything else that is wrong with a certificate.
    48 BadCertificate "bad-certificate" "the certificate is not sound";
    /// Too old.
    49 ProtocolTooOld "protocol-too-old" "this software is too old for the peer; update it";
    /// The account has not arrived at this relay.
    50 NotYetKnown "not-yet-known" "the relay does not know this terminal yet; it is tried again by itself";
    /// A newer log-in took over.
    51 Superseded "superseded" "another agent logged in with this identity; stop one of the two, or enrol it under its own name";
    /// No new attachments.
    52 Draining "draining" "the relay takes no new terminals; another one is tried by itself";
    /// Over a limit.
    53 Overloaded "overloaded" "the relay is at its limit; it is tried again by itself";
    /// Cut by an operator.
    54 Kicked "kicked" "an operator cut the connection";
    /// Never read.
    55 TooSlow "too-slow" "the peer did not read its messages in time";
    /// Broke the protocol.
    56 ProtocolError "protocol-error" "the peer broke the protocol; see its log";
    /// No keep-alive came back.
    57 Silent "silent" "nothing was heard for too long";
    /// A relay dialled with a name that another relay has, or the link is not wanted.
    58 LinkNotWanted "link-not-wanted" "the relay is told not to link with this one; see --links";
    /// Both dialled; the other connection stays.
    59 DuplicateLink "duplicate-link" "both relays dialled; the other connection stays";

    // Enrolment.
    /// No such token.
    70 TokenUnknown "token-unknown" "the token is not known; ask for a new one";
    /// Used before, by another key.
    71 TokenUsed "token-used" "the token was used before; ask for a new one";
    /// Too late.
    72 TokenExpired "token-expired" "the token has expired; ask for a new one";
    /// The proof does not fit.
    73 TokenProof "token-proof" "the token's proof does not fit; copy the whole token";
    /// For another kind of node.
    74 TokenKind "token-kind" "the token is for another kind of node";
    /// The name is taken.
    75 NameTaken "name-taken" "that name is taken in this mesh; choose another";
    /// The registrar cannot be reached.
    76 RegistrarUnreachable "registrar-unreachable" "the relay with the registrar role cannot be reached; start it and try again";
    /// Not the registrar.
    77 NotRegistrar "not-registrar" "this relay is not the registrar; run the command there";
    /// A request that cannot be understood.
    78 BadRequest "bad-request" "the request is not sound";
    /// The store failed.
    79 StoreFailed "store-failed" "the relay could not write to its disk; see its log";

    // Files.
    /// A file of that name is there.
    90 FileExists "file-exists" "the inbox has a file of that name; use --overwrite or another folder";
    /// Not a name or folder that an inbox takes.
    91 BadFileName "bad-file-name" "use plain names, without '..', a leading '.' or '/', at most 255 bytes each";
    /// The content is not what was announced.
    92 FileCorrupt "file-corrupt" "the file's hash does not fit, it changed while it was sent; send it again";
    /// The receiver could not write.
    93 InboxFailed "inbox-failed" "the other terminal could not write the file; see its disk and its log";
    /// The sender's file did not keep still while it was sent.
    94 FileChanged "file-changed" "the file kept changing while it was sent; send it again when nothing writes to it, or send a copy";
    /// No room for it, by the disk or by a quota.
    95 InboxFull "inbox-full" "the other terminal has no room for the file; make room there, or raise its inbox settings";
}

impl RefusalCode {
    /// Whether trying again without any change can help.
    pub const fn retry_helps(self) -> bool {
        matches!(
            self,
            Self::ShuttingDown
                | Self::TargetLoggedOut
                | Self::TargetUnreachable
                | Self::NoAnswer
                | Self::ServiceDown
                | Self::Busy
                | Self::RouteLost
                | Self::PeerLost
                | Self::SessionTimeout
                | Self::NotYetKnown
                | Self::Draining
                | Self::Overloaded
                | Self::RegistrarUnreachable
        )
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RefusalCode::Other(value) => write!(f, "other-{value}"),
            code => f.write_str(code.word()),
        }
    }
}

impl Serialize for RefusalCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RefusalCode {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u16::deserialize(deserializer).map(RefusalCode::from_value)
    }
}

/// A refusal as it is shown: the code, and a detail where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// Names the thing it is about; empty where the code says all. At most a few hundred characters.
    pub detail: String,
}

impl Refusal {
    /// A refusal about `detail`.
    pub fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl From<RefusalCode> for Refusal {
    fn from(code: RefusalCode) -> Self {
        Self { code, detail: String::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            write!(f, "{}: {}", self.code, self.code.advice())
        } else {
            // A peer may have written the detail.
            let detail = Escaped(&self.detail);
            write!(f, "{}: {detail}: {}", self.code, self.code.advice())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_cannot_steer_a_screen() {
        let refusal = Refusal::new(RefusalCode::Busy, "\u{1b}[2J\u{202e}x\n");
        let text = refusal.to_string();
        assert!(text.starts_with("busy: \\u{1b}[2J\\u{202e}x\\n: "), "{text}");
    }

    #[test]
    fn numbers_and_words_are_unique_and_come_back() {
        let mut words = std::collections::BTreeSet::new();
        for &code in RefusalCode::ALL {
            assert_eq!(RefusalCode::from_value(code.value()), code);
            assert!(words.insert(code.word()), "{code} stands twice");
            assert!(!code.advice().is_empty());
        }
        assert_eq!(RefusalCode::from_value(60_000), RefusalCode::Other(60_000));
    }
}
