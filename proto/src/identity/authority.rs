//! Root and issuer: the keys that sign certificates.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use ring::rand::SecureRandom;
use rustls_pki_types::CertificateDer;

use super::certificate::{IssuerFacts, REGISTRAR, TERM, public_key_of};
use super::node::{PemFile, pem_file};
use super::{IdentityError, KeyFingerprint, NodeKey, NodeName, name, write_private};
use crate::id::{Incarnation, MeshId, MeshName};

const DAY: u64 = 24 * 60 * 60;
/// How long a node's certificate is valid from the moment it is issued (architecture 3).
pub const LEAF_LIFE_SECS: u64 = 30 * DAY;
/// How long an issuer is valid. Longer than its leaves, since the root that certifies the next one is offline.
const ISSUER_LIFE_SECS: u64 = 365 * DAY;
/// The issuer is renewed, where the root is at hand, or complained about when less than this is left.
const ISSUER_RENEW_SECS: u64 = 90 * DAY;
/// Every certificate is valid from this long before it was made, for clocks that are behind.
const BACKDATE_SECS: u64 = 2 * DAY;

fn random_serial() -> Result<SerialNumber, IdentityError> {
    let mut serial = [0; 16];
    ring::rand::SystemRandom::new()
        .fill(&mut serial)
        .map_err(|_| IdentityError::Unsound("the system has no randomness to give"))?;
    serial[0] &= 0x7f; // positive (RFC 5280, section 4.1.2.2)
    Ok(SerialNumber::from_slice(&serial))
}

/// Parameters that all our certificates share.
fn params(
    common_name: &str,
    now_secs: u64,
    until_secs: u64,
) -> Result<CertificateParams, IdentityError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.serial_number = Some(random_serial()?);
    params.not_before = epoch + Duration::from_secs(now_secs.saturating_sub(BACKDATE_SECS));
    params.not_after = epoch + Duration::from_secs(until_secs);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca(mut params: CertificateParams, below: u8) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// The root of a mesh. It signs issuers and nothing else, and belongs offline.
#[derive(Debug)]
pub struct Root {
    key: NodeKey,
    certificate: CertificateDer<'static>,
}

impl Root {
    /// Its file's name in the registrar's data directory.
    pub const FILE: &'static str = "root.pem";

    /// Makes the root of a mesh.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate(mesh: &MeshName, now_secs: u64) -> Result<Self, IdentityError> {
        let key = NodeKey::generate()?;
        // A trust anchor's dates are not checked (RFC 5280, section 6.1.1 d): the key is what is pinned.
        // The id in the name tells the roots of two meshes of one name apart: chains are built by names.
        let name = format!("{mesh} root {}", key.fingerprint().mesh_id());
        let params = ca(params(&name, now_secs, now_secs + 100 * 365 * DAY)?, 1);
        let certificate = params.self_signed(key.rcgen())?.der().clone();
        Ok(Self { key, certificate })
    }

    /// Reads it from `dir`; `None` when it is not there.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        Self::read(&dir.join(Self::FILE))
    }

    /// Reads it from the file `path`; `None` when it is not there.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(file) = PemFile::read(path)? else { return Ok(None) };
        let [certificate] = <[_; 1]>::try_from(file.certificates)
            .map_err(|_| IdentityError::Unsound("root.pem does not hold one certificate"))?;
        if public_key_of(&certificate).ok() != Some(file.key.public()) {
            return Err(IdentityError::Unsound(
                "root.pem holds a key and a certificate that do not match",
            ));
        }
        Ok(Some(Self { key: file.key, certificate }))
    }

    /// Writes it to `dir` (0600).
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        write_private(&dir.join(Self::FILE), &pem_file(&self.key, [&self.certificate]))
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its key's fingerprint, which tokens pin.
    pub fn fingerprint(&self) -> KeyFingerprint {
        self.key.fingerprint()
    }

    /// Certifies an issuer with a key of its own; `term` is greater than that of every issuer before.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn issuer(
        &self,
        mesh: &MeshName,
        term: Incarnation,
        now_secs: u64,
    ) -> Result<Issuer, IdentityError> {
        self.certify(mesh, term, NodeKey::generate()?, now_secs)
    }

    /// Certifies `issuer` again: same key, same term, so that what it signed stands.
    ///
    /// # Errors
    /// When the certificate cannot be made, or `issuer` is of another mesh.
    pub fn renew(&self, issuer: &Issuer, now_secs: u64) -> Result<Issuer, IdentityError> {
        if issuer.root != self.certificate {
            return Err(IdentityError::Unsound("the root is that of another mesh"));
        }
        let key = NodeKey::from_pkcs8(issuer.key.pkcs8())?;
        self.certify(&issuer.mesh, issuer.term, key, now_secs)
    }

    fn certify(
        &self,
        mesh: &MeshName,
        term: Incarnation,
        key: NodeKey,
        now_secs: u64,
    ) -> Result<Issuer, IdentityError> {
        let until = now_secs + ISSUER_LIFE_SECS;
        let mut params = ca(params(&format!("{mesh} issuer"), now_secs, until)?, 0);
        params.distinguished_name.push(DnType::OrganizationalUnitName, format!("{TERM}{}", term.0));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(name::subtree(mesh))],
            excluded_subtrees: Vec::new(),
        });
        let root = rcgen::Issuer::from_ca_cert_der(&self.certificate, self.key.rcgen())?;
        let certificate = params.signed_by(key.rcgen(), &root)?.der().clone();
        Issuer::new(key, certificate, self.certificate.clone(), mesh.clone())
    }
}

/// What signs nodes' certificates and the authority's records. It lives on the relay with the registrar role and
/// nowhere else.
#[derive(Debug)]
pub struct Issuer {
    key: NodeKey,
    certificate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    mesh: MeshName,
    root_fingerprint: KeyFingerprint,
    term: Incarnation,
    not_after: u64,
}

impl Issuer {
    /// Its file's name in the registrar's data directory.
    pub const FILE: &'static str = "issuer.pem";

    fn new(
        key: NodeKey,
        certificate: CertificateDer<'static>,
        root: CertificateDer<'static>,
        mesh: MeshName,
    ) -> Result<Self, IdentityError> {
        let unsound = |_| IdentityError::Unsound("the issuer's certificate is not sound");
        let facts = IssuerFacts::read(&certificate).map_err(unsound)?;
        if facts.public_key != key.public() {
            return Err(IdentityError::Unsound("the issuer's key and certificate do not match"));
        }
        let root_fingerprint = KeyFingerprint::of(&public_key_of(&root).map_err(unsound)?);
        let IssuerFacts { term, not_after, .. } = facts;
        Ok(Self { key, certificate, root, mesh, root_fingerprint, term, not_after })
    }

    /// Reads it from `dir`; `None` when it is not there. `mesh` is the name in the node's own certificate.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(dir: &Path, mesh: &MeshName) -> Result<Option<Self>, IdentityError> {
        let Some(file) = PemFile::read(&dir.join(Self::FILE))? else { return Ok(None) };
        let [certificate, root] = <[_; 2]>::try_from(file.certificates).map_err(|_| {
            IdentityError::Unsound("issuer.pem does not hold two certificates, issuer and root")
        })?;
        Self::new(file.key, certificate, root, mesh.clone()).map(Some)
    }

    /// Writes it to `dir` (0600).
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let bytes = pem_file(&self.key, [&self.certificate, &self.root]);
        write_private(&dir.join(Self::FILE), &bytes)
    }

    /// Signs a certificate for `public_key` as `name`: leaf and issuer, in the order of TLS. It never outlives
    /// the issuer.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn certify(
        &self,
        name: &NodeName,
        public_key: &[u8; 32],
        registrar: bool,
        now_secs: u64,
        life_secs: u64,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        let until = now_secs.saturating_add(life_secs).min(self.not_after);
        let mut params = params(name.as_str(), now_secs, until)?;
        if registrar {
            params.distinguished_name.push(DnType::OrganizationalUnitName, REGISTRAR);
        }
        params.subject_alt_names = vec![SanType::DnsName(name.dns_name(&self.mesh).try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A terminal is server in a session that another one opens; a relay is both anyway.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.certificate, self.key.rcgen())?;
        let leaf = params.signed_by(&RawPublicKey(public_key), &issuer)?.der().clone();
        Ok(vec![leaf, self.certificate.clone()])
    }

    /// The key that signs the authority's records.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// Which issuer of the mesh: the incarnation of the authority's records.
    pub fn term(&self) -> Incarnation {
        self.term
    }

    /// The mesh's name.
    pub fn mesh(&self) -> &MeshName {
        &self.mesh
    }

    /// The mesh's id.
    pub fn mesh_id(&self) -> MeshId {
        self.root_fingerprint.mesh_id()
    }

    /// The root key's fingerprint, which tokens pin.
    pub fn root_fingerprint(&self) -> KeyFingerprint {
        self.root_fingerprint
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Valid until, s since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Whether it is time to have it certified again.
    pub fn wants_renewal(&self, now_secs: u64) -> bool {
        now_secs.saturating_add(ISSUER_RENEW_SECS) >= self.not_after
    }
}

/// An Ed25519 public key, for rcgen.
struct RawPublicKey<'a>(&'a [u8; 32]);

impl PublicKeyData for RawPublicKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}
