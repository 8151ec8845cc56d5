//! The one place that decides who a peer is.
//!
//! `rustls` checks that a chain leads to the mesh's root, that its dates are right and that the peer holds the
//! key. It does not check who a *client* is, and knows nothing of roles, protocols and revocations: that is here,
//! on every side, after every handshake, and whenever a revocation arrives.

use quinn::ConnectionError;
use quinn::crypto::rustls::HandshakeData;
use rustls_pki_types::CertificateDer;

use super::certificate::IssuerFacts;
use super::{CertificateFacts, Identity, KeyFingerprint, NodeName, Role, verify_chain_when_valid};
use crate::id::{Incarnation, MeshName, RelayName, TerminalId};
use crate::refusal::RefusalCode;
use crate::version::Alpn;

/// Who is at the other end, proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Role and name.
    pub name: NodeName,
    /// The key it proved to hold.
    pub key: KeyFingerprint,
    /// When its certificate ends, s since 1970; the connection is cut then.
    pub not_after: u64,
    /// Whether its certificate carries the registrar role.
    pub registrar: bool,
}

impl Peer {
    /// The relay's name; `None` for a terminal.
    pub fn relay(&self) -> Option<&RelayName> {
        match &self.name {
            NodeName::Relay(name) => Some(name),
            NodeName::Terminal(_) => None,
        }
    }

    /// The terminal's id; `None` for a relay.
    pub fn terminal(&self) -> Option<&TerminalId> {
        match &self.name {
            NodeName::Terminal(id) => Some(id),
            NodeName::Relay(_) => None,
        }
    }
}

/// What counts of this side: its role (for a newcomer, the one it will have) and its mesh.
#[derive(Debug, Clone, Copy)]
pub struct Ours<'a> {
    /// This side's role.
    pub role: Role,
    /// This side's mesh.
    pub mesh: &'a MeshName,
}

/// Which role the peer of a node with role `ours` has on a connection for `alpn`; `None`: that node has no
/// business there. On an enrolment connection only the newcomer asks, and its peer is a relay.
const fn peer_role(alpn: Alpn, ours: Role) -> Option<Role> {
    match (alpn, ours) {
        (Alpn::Link, Role::Relay) => Some(Role::Relay),
        (Alpn::Attachment, Role::Relay) => Some(Role::Terminal),
        (Alpn::Attachment, Role::Terminal) => Some(Role::Relay),
        (Alpn::Session, Role::Terminal) => Some(Role::Terminal),
        (Alpn::Enrolment, _) => Some(Role::Relay),
        (Alpn::Link, Role::Terminal) | (Alpn::Session, Role::Relay) => None,
    }
}

/// Decides who the peer of a finished handshake is.
///
/// `chain` is what the peer showed in a TLS handshake under a configuration of this module, so its way to the
/// root is verified. `expected` is who was dialled, or who was announced; `None` takes anybody of the right role.
/// `now_secs` is by [`Clock`](super::Clock).
///
/// # Errors
/// `certificate-missing`, `bad-certificate` (not exactly one name, or not an identity), `wrong-mesh`,
/// `wrong-role`, `wrong-name`, `certificate-expired`, `certificate-not-yet-valid`, `revoked`: the first that
/// applies, in this order.
pub fn identify_peer(
    alpn: Alpn,
    chain: &[CertificateDer<'_>],
    ours: &Ours<'_>,
    expected: Option<&NodeName>,
    revoked: &dyn Fn(&KeyFingerprint) -> bool,
    now_secs: u64,
) -> Result<Peer, RefusalCode> {
    let leaf = chain.first().ok_or(RefusalCode::CertificateMissing)?;
    let facts = CertificateFacts::read(leaf)?;
    if facts.mesh != *ours.mesh {
        return Err(RefusalCode::WrongMesh);
    }
    if peer_role(alpn, ours.role) != Some(facts.name.role()) {
        return Err(RefusalCode::WrongRole);
    }
    if expected.is_some_and(|expected| *expected != facts.name) {
        return Err(RefusalCode::WrongName);
    }
    facts.check_time(now_secs)?;
    let key = facts.key();
    if revoked(&key) {
        return Err(RefusalCode::Revoked);
    }
    Ok(Peer {
        name: facts.name,
        key,
        not_after: facts.not_after,
        // The role is a relay's; the word in a terminal's certificate would mean nothing.
        registrar: facts.registrar && peer_role(alpn, ours.role) == Some(Role::Relay),
    })
}

/// What a connection was made for.
///
/// # Errors
/// [`RefusalCode::ProtocolError`] when its handshake is not done, or agreed on none of ours.
pub fn connection_alpn(connection: &quinn::Connection) -> Result<Alpn, RefusalCode> {
    connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| Alpn::from_wire(data.protocol.as_deref()?))
        .ok_or(RefusalCode::ProtocolError)
}

/// [`identify_peer`] for a connection whose handshake is done.
///
/// # Errors
/// As [`identify_peer`] and [`connection_alpn`].
pub fn identify_connection(
    connection: &quinn::Connection,
    ours: &Identity,
    expected: Option<&NodeName>,
    revoked: &dyn Fn(&KeyFingerprint) -> bool,
    now_secs: u64,
) -> Result<(Alpn, Peer), RefusalCode> {
    let alpn = connection_alpn(connection)?;
    let chain = connection_chain(connection);
    let peer = identify_peer(alpn, &chain, &ours.ours(), expected, revoked, now_secs)?;
    Ok((alpn, peer))
}

/// The term of the issuer that certified the peer of a finished handshake, and that issuer's public key: how a node
/// learns of a newer issuer than its own. `None` where the chain is not a leaf and its issuer, under this node's root.
pub fn connection_authority(
    connection: &quinn::Connection,
    ours: &Identity,
) -> Option<(Incarnation, [u8; 32])> {
    let chain = connection_chain(connection);
    // TLS takes any chain in which some issuer fits; here it is to be this one.
    let [_, issuer] = &chain[..] else { return None };
    verify_chain_when_valid(&chain, ours.root(), u64::MAX).ok()?;
    let facts = IssuerFacts::read(issuer).ok()?;
    Some((facts.term, facts.public_key))
}

/// The certificates that the peer showed; none when it showed none.
pub(crate) fn connection_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .map_or_else(Vec::new, |chain| *chain)
}

/// The code for people behind a connection that failed or ended: the TLS alert (RFC 8446, section 6.2) that either
/// side sent, or the code that the peer closed it with. `None` where it says nothing about who is who.
pub fn connection_refusal(error: &ConnectionError) -> Option<RefusalCode> {
    let transport = match error {
        ConnectionError::TransportError(error) => u64::from(error.code),
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::ApplicationClosed(close) => {
            return u16::try_from(close.error_code.into_inner())
                .ok()
                .filter(|code| *code != 0)
                .map(RefusalCode::from_value);
        }
        _ => return None,
    };
    // RFC 9001, section 4.8: 0x100 and the alert.
    let alert = transport.checked_sub(0x100).filter(|alert| *alert <= 0xff)?;
    Some(match alert {
        44 => RefusalCode::Revoked,
        45 => RefusalCode::CertificateExpired,
        48 => RefusalCode::WrongMesh,
        49 => RefusalCode::WrongName,
        116 => RefusalCode::CertificateMissing,
        42 | 43 | 46 | 50 | 51 => RefusalCode::BadCertificate,
        _ => RefusalCode::ProtocolError,
    })
}
