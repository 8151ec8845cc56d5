//! What a certificate says, and whether a chain leads to a root.

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::public_key_of_spki;
use super::{KeyFingerprint, NodeName};
use crate::id::{Incarnation, MeshName};
use crate::refusal::RefusalCode;

/// The organizational unit that marks the certificate of the relay with the registrar role.
pub(super) const REGISTRAR: &str = "registrar";
/// What stands before the term's number in an issuer's organizational unit.
pub(super) const TERM: &str = "term ";

/// What a node's certificate says. Whether it says so truly is for the chain's verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whose it is.
    pub name: NodeName,
    /// In which mesh.
    pub mesh: MeshName,
    /// The public key.
    pub public_key: [u8; 32],
    /// Whether it carries the registrar role.
    pub registrar: bool,
    /// Valid from, s since 1970.
    pub not_before: u64,
    /// Valid until, s since 1970.
    pub not_after: u64,
}

impl CertificateFacts {
    /// Reads a node's certificate.
    ///
    /// # Errors
    /// [`RefusalCode::BadCertificate`] when it does not hold exactly one name, an identity, and an Ed25519 key.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, RefusalCode> {
        let certificate = parse(certificate)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| RefusalCode::BadCertificate)?
            .ok_or(RefusalCode::BadCertificate)?;
        let [GeneralName::DNSName(dns_name)] = names.value.general_names[..] else {
            return Err(RefusalCode::BadCertificate);
        };
        let (name, mesh) = NodeName::from_dns_name(dns_name).ok_or(RefusalCode::BadCertificate)?;
        Ok(Self {
            name,
            mesh,
            public_key: public_key(&certificate)?,
            registrar: units(&certificate).any(|unit| unit == REGISTRAR),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
        })
    }

    /// The public key's fingerprint.
    pub fn key(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.public_key)
    }

    /// # Errors
    /// The code, where `now` is outside of the certificate's time.
    pub(super) fn check_time(&self, now_secs: u64) -> Result<(), RefusalCode> {
        if now_secs < self.not_before {
            Err(RefusalCode::CertificateNotYetValid)
        } else if now_secs > self.not_after {
            Err(RefusalCode::CertificateExpired)
        } else {
            Ok(())
        }
    }
}

/// What an issuer's certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IssuerFacts {
    /// Which issuer of the mesh; a higher one wins.
    pub(super) term: Incarnation,
    pub(super) public_key: [u8; 32],
    pub(super) not_after: u64,
}

impl IssuerFacts {
    pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Self, RefusalCode> {
        let certificate = parse(certificate)?;
        let term = units(&certificate)
            .find_map(|unit| unit.strip_prefix(TERM)?.parse().ok())
            .ok_or(RefusalCode::BadCertificate)?;
        Ok(Self {
            term: Incarnation(term),
            public_key: public_key(&certificate)?,
            not_after: seconds(certificate.validity().not_after.timestamp()),
        })
    }
}

/// The public key of any certificate.
pub(super) fn public_key_of(certificate: &CertificateDer<'_>) -> Result<[u8; 32], RefusalCode> {
    public_key(&parse(certificate)?)
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, RefusalCode> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(RefusalCode::BadCertificate),
    }
}

fn public_key(certificate: &X509Certificate<'_>) -> Result<[u8; 32], RefusalCode> {
    public_key_of_spki(certificate.public_key().raw).ok_or(RefusalCode::BadCertificate)
}

fn units<'a>(certificate: &'a X509Certificate<'_>) -> impl Iterator<Item = &'a str> {
    certificate.subject().iter_organizational_unit().filter_map(|unit| unit.as_str().ok())
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

/// Checks that `chain` (leaf, then issuers) was signed under `root` at a time when its leaf was valid: `now_secs`,
/// or the leaf's end where that is past. It serves renewal after expiry; TLS checks the time as well.
///
/// # Errors
/// `wrong-mesh` when the chain does not lead to `root`, `certificate-not-yet-valid`, or `bad-certificate`.
pub fn verify_chain_when_valid(
    chain: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now_secs: u64,
) -> Result<CertificateFacts, RefusalCode> {
    let (leaf, issuers) = chain.split_first().ok_or(RefusalCode::CertificateMissing)?;
    let facts = CertificateFacts::read(leaf)?;
    let at =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_secs.min(facts.not_after)));
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| RefusalCode::BadCertificate)?;
    webpki::EndEntityCert::try_from(leaf)
        .map_err(|_| RefusalCode::BadCertificate)?
        .verify_for_usage(
            &[webpki::ring::ED25519],
            &[anchor],
            issuers,
            at,
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::UnknownIssuer => RefusalCode::WrongMesh,
            webpki::Error::CertNotValidYet { .. } => RefusalCode::CertificateNotYetValid,
            webpki::Error::CertExpired { .. } => RefusalCode::CertificateExpired,
            _ => RefusalCode::BadCertificate,
        })?;
    Ok(facts)
}
