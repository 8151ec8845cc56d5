//! Key pairs and their fingerprints.

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ED25519};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::IdentityError;

/// The SHA-256 of a public key (its SubjectPublicKeyInfo in DER). Revocation is by this.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyFingerprint(pub [u8; 32]);

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The key's fingerprint.
    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.0)
    }

    /// Returns whether `signature` is this key's Ed25519 signature of `message` (RFC 8032).
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

/// Signs what is not a certificate, each under a domain string of its own. Clones share the key; `Debug` shows the
/// fingerprint alone.
#[derive(Clone)]
pub struct Signer {
    key: Arc<Ed25519KeyPair>,
    public: PublicKey,
}

impl Signer {
    /// The signer of a key made from a seed, for simulators and tests.
    ///
    /// # Panics
    /// Never: every seed makes a key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(seed)
            .unwrap_or_else(|_| unreachable!("32 bytes are a seed"));
        let mut public = [0; 32];
        public.copy_from_slice(key.public_key().as_ref());
        Self { key: Arc::new(key), public: PublicKey(public) }
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Returns the Ed25519 signature of `message` (RFC 8032). Equal messages have equal signatures.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.key.sign(message).as_ref());
        out
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public.fingerprint())
    }
}

/// What stands before an Ed25519 public key in its SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_HEAD: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

impl KeyFingerprint {
    /// The fingerprint of the Ed25519 public key `key`.
    pub fn of(key: &[u8; 32]) -> Self {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(&SPKI_HEAD);
        hash.update(key);
        Self::from_digest(&hash.finish())
    }

    fn from_digest(digest: &ring::digest::Digest) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }

    /// The mesh whose root has this fingerprint.
    pub fn mesh_id(&self) -> crate::MeshId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[..16]);
        crate::MeshId(id)
    }
}

impl fmt::Display for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for KeyFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An Ed25519 public key out of its SubjectPublicKeyInfo; `None` for every other kind of key.
pub(super) fn public_key_of_spki(spki: &[u8]) -> Option<[u8; 32]> {
    spki.strip_prefix(&SPKI_HEAD)?.try_into().ok()
}

/// A node's, issuer's or root's key pair. Its `Debug` shows the fingerprint alone.
pub struct NodeKey {
    pkcs8: Zeroizing<Vec<u8>>,
    rcgen: KeyPair,
    ring: Arc<Ed25519KeyPair>,
    public: [u8; 32],
}

impl NodeKey {
    /// Makes a key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, IdentityError> {
        Self::from_pkcs8(&KeyPair::generate_for(&PKCS_ED25519)?.serialize_der())
    }

    /// Reads a key in PKCS#8.
    ///
    /// # Errors
    /// When it is not an Ed25519 key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, IdentityError> {
        let unsound = || IdentityError::Unsound("the private key is not an Ed25519 key in PKCS#8");
        let ring = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| unsound())?;
        let rcgen = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.into(), &PKCS_ED25519)
            .map_err(|_| unsound())?;
        let public = ring.public_key().as_ref().try_into().map_err(|_| unsound())?;
        Ok(Self { pkcs8: pkcs8.to_vec().into(), rcgen, ring: Arc::new(ring), public })
    }

    /// The key in PKCS#8, for a file with mode 0600 or for TLS.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub(super) fn rcgen(&self) -> &KeyPair {
        &self.rcgen
    }

    /// The public key.
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// The public key's fingerprint.
    pub fn fingerprint(&self) -> KeyFingerprint {
        KeyFingerprint::of(&self.public)
    }

    /// For signing what is not a certificate, under a domain string of its own.
    pub fn signer(&self) -> &Ed25519KeyPair {
        &self.ring
    }

    /// As [`NodeKey::signer`], to be handed on.
    pub fn shared_signer(&self) -> Signer {
        Signer { key: Arc::clone(&self.ring), public: PublicKey(self.public) }
    }

    /// A certificate signing request (RFC 2986): proves possession of the key and asks for nothing else.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.rcgen)?.der().to_vec())
    }

    /// The public key of a signing request whose signature holds; its other contents are ignored, so that a
    /// newcomer cannot ask for a name, a role or a use.
    pub fn requested(csr: &[u8]) -> Option<[u8; 32]> {
        use rcgen::PublicKeyData;
        let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).ok()?;
        if *csr.public_key.algorithm() != PKCS_ED25519 {
            return None;
        }
        csr.public_key.der_bytes().try_into().ok()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.fingerprint())
    }
}
