//! Newcomers, and renewal of certificates (architecture 3).
//!
//! One request and its answer on the first bidirectional stream of a connection for
//! [`Alpn::Enrolment`](crate::version::Alpn::Enrolment), or on a link's
//! [`Request`](crate::mesh::LinkStream::Request) stream: any relay passes them on to the registrar, verbatim. The
//! request proves itself, so who carries it does not matter.
//!
//! | request | proven by | can be repeated, since |
//! |---|---|---|
//! | [`Enrol`] | HMAC under the token's secret, and the signing request's own signature | the same key gets the same certificate |
//! | [`Renew`] | a signature by the certificate's key | the key stays, and a fresh certificate is given again |

mod client;
mod contacts;
mod renewal;

pub use client::{EnrolError, Enrolled, PendingKey, enrol, renew};
pub use contacts::{load_relays, save_relays};
pub use renewal::keep_renewed;

use std::io;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::codec::Envelope;
use crate::control::RelayContact;
use crate::id::MeshId;
use crate::identity::{CertificateFacts, NodeName, TokenId, verify_chain_when_valid};
use crate::limits;
use crate::refusal::{Refusal, RefusalCode};

/// What a newcomer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// A PKCS#10 signing request. Only its key counts.
    pub signing_request: Vec<u8>,
    /// Who it wants to be.
    pub name: NodeName,
    /// A relay's advertised addresses: `HOST:PORT`, UDP; at most [`limits::RELAY_ADDRESSES`].
    pub addresses: Vec<String>,
}

/// Asks for a certificate with a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrol {
    /// Which token.
    pub token: TokenId,
    /// A [`Newcomer`], encoded: the proof is over exactly these bytes.
    pub newcomer: Vec<u8>,
    /// [`TokenSecret::prove`](crate::identity::TokenSecret::prove).
    pub proof: [u8; 32],
}

/// Asks for a certificate in the place of one that ends or has ended; the key stays.
///
/// It carries no time and no nonce: an answer is public, and to repeat the request gives nothing that was not
/// given before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Leaf and issuer, DER.
    pub chain: Vec<Vec<u8>>,
    /// Ed25519 over [`renewal_to_sign`], by the leaf's key.
    pub signature: Vec<u8>,
}

/// What a [`Renew`] for the certificate `leaf` (DER) signs.
pub fn renewal_to_sign(mesh: &MeshId, leaf: &[u8]) -> Vec<u8> {
    [b"tasuki renewal v1\0", &mesh.0[..], leaf].concat()
}

/// Checks that a node of the mesh under `root` made this request: its chain leads to the root, and its key signed.
///
/// # Errors
/// As [`verify_chain_when_valid`], or `bad-certificate` for a wrong signature.
pub fn verify_renewal(
    renew: &Renew,
    root: &CertificateDer<'_>,
    mesh: &MeshId,
    now_secs: u64,
) -> Result<CertificateFacts, RefusalCode> {
    let chain: Vec<CertificateDer<'_>> =
        renew.chain.iter().take(2).map(|der| der.as_slice().into()).collect();
    let facts = verify_chain_when_valid(&chain, root, now_secs)?;
    let leaf = chain.first().ok_or(RefusalCode::CertificateMissing)?;
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &facts.public_key)
        .verify(&renewal_to_sign(mesh, leaf), &renew.signature)
        .map_err(|_| RefusalCode::BadCertificate)?;
    Ok(facts)
}

/// A certificate, and where the mesh is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certified {
    /// Leaf and issuer, DER.
    pub chain: Vec<Vec<u8>>,
    /// The root, DER.
    pub root: Vec<u8>,
    /// Every relay that ever joined, ordered by name, as far as the answer holds them.
    pub relays: Vec<RelayContact>,
}

crate::messages! {
    /// What is asked of the registrar.
    pub enum ToRegistrar {
        /// A newcomer.
        1 => Enrol(Enrol),
        /// A certificate ends.
        2 => Renew(Renew),
    }
}

crate::messages! {
    /// What the registrar answers.
    pub enum FromRegistrar {
        /// A certificate.
        1 => Certified(Certified),
        /// None.
        2 => Refused(Refusal),
    }
}

/// Sends one request (or answer) and ends this direction of the stream.
///
/// # Errors
/// The stream's.
pub async fn send<W: AsyncWrite + Unpin>(stream: &mut W, envelope: &Envelope) -> io::Result<()> {
    stream.write_all(&envelope.to_bytes()).await?;
    stream.shutdown().await
}

/// Reads one request, as anybody may send it.
///
/// # Errors
/// The stream's, or `InvalidData` where it is larger than [`limits::ENROLMENT_MESSAGE_BYTES`].
pub async fn read_request<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Option<Envelope>> {
    Envelope::read(stream, limits::ENROLMENT_MESSAGE_BYTES).await
}

/// Reads one answer, from a relay that proved to be one.
///
/// # Errors
/// The stream's, or `InvalidData` where it is larger than [`limits::ENROLMENT_ANSWER_BYTES`].
pub async fn read_answer<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Option<Envelope>> {
    Envelope::read(stream, limits::ENROLMENT_ANSWER_BYTES).await
}
