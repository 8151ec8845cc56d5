//! What a node keeps on disk about itself, and the current one, shared.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::Serialize;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::certificate::{IssuerFacts, public_key_of};
use super::files::file_error;
use super::tls::Shown;
use super::{
    CertificateFacts, IdentityError, KeyFingerprint, NodeKey, NodeName, Ours, Role,
    make_private_dir, verify_chain_when_valid, write_private,
};
use crate::id::{Incarnation, MeshId, MeshName, RelayName, TerminalId};
use crate::refusal::{Refusal, RefusalCode};

/// A key and certificates in one PEM file, so that they change together.
pub(super) struct PemFile {
    pub(super) key: NodeKey,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

impl PemFile {
    /// `None` when the file is not there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(path)(error)),
        };
        let unsound = |_| IdentityError::Unsound("a file with keys does not hold sound PEM");
        let key = PrivatePkcs8KeyDer::from_pem_slice(&bytes).map_err(unsound)?;
        let key = NodeKey::from_pkcs8(key.secret_pkcs8_der())?;
        let certificates =
            CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(unsound)?;
        Ok(Some(Self { key, certificates }))
    }
}

/// The contents of such a file.
pub(super) fn pem_file<'a>(
    key: &NodeKey,
    certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>,
) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    pem_block(&mut text, "PRIVATE KEY", key.pkcs8());
    for certificate in certificates {
        pem_block(&mut text, "CERTIFICATE", certificate);
    }
    Zeroizing::new(text.as_bytes().to_vec())
}

fn pem_block(out: &mut String, label: &str, der: &[u8]) {
    let base64 = Zeroizing::new(data_encoding::BASE64.encode(der));
    let _ = writeln!(out, "-----BEGIN {label}-----");
    for line in base64.as_bytes().chunks(64) {
        let _ = writeln!(out, "{}", String::from_utf8_lossy(line));
    }
    let _ = writeln!(out, "-----END {label}-----");
}

/// A node's own identity: key, certificate, and the root it trusts. Never changes; a renewed one takes its place
/// in the [`IdentityCell`].
#[derive(Debug)]
pub struct Identity {
    key: NodeKey,
    facts: CertificateFacts,
    issuer: IssuerFacts,
    /// Leaf and issuer.
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    root_fingerprint: KeyFingerprint,
    shown: Shown,
}

impl Identity {
    /// Its file's name in the data directory: key, leaf, issuer, root.
    pub const FILE: &'static str = "identity.pem";

    /// Puts an identity together.
    ///
    /// # Errors
    /// When the chain (leaf, issuer) does not belong to the key or does not lead to the root. An expired one is
    /// accepted: it can still be renewed.
    pub fn new(
        key: NodeKey,
        chain: Vec<CertificateDer<'static>>,
        root: CertificateDer<'static>,
    ) -> Result<Self, IdentityError> {
        let unsound =
            |_| IdentityError::Unsound("the certificate does not lead to the mesh's root");
        let facts = verify_chain_when_valid(&chain, &root, u64::MAX).map_err(unsound)?;
        let [_, issuer] = &chain[..] else {
            return Err(IdentityError::Unsound("the chain is not a leaf and its issuer"));
        };
        let issuer = IssuerFacts::read(issuer).map_err(unsound)?;
        if facts.public_key != key.public() {
            return Err(IdentityError::Unsound("the certificate belongs to another key"));
        }
        let root_fingerprint = KeyFingerprint::of(&public_key_of(&root).map_err(unsound)?);
        let shown = Shown::new(&key, &chain, &root)
            .map_err(|_| IdentityError::Unsound("the key does not serve for TLS"))?;
        Ok(Self { key, facts, issuer, chain, root, root_fingerprint, shown })
    }

    /// Reads it from a data directory; `None` when it has none.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(mut file) = PemFile::read(&dir.join(Self::FILE))? else { return Ok(None) };
        let root = file
            .certificates
            .pop()
            .ok_or(IdentityError::Unsound("identity.pem holds no certificate"))?;
        Self::new(file.key, file.certificates, root).map(Some)
    }

    /// Writes it to a data directory (0700, the file 0600), whole or not at all.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        make_private_dir(dir)?;
        let bytes = pem_file(&self.key, self.chain.iter().chain([&self.root]));
        write_private(&dir.join(Self::FILE), &bytes)
    }

    /// The same key with a renewed chain.
    ///
    /// # Errors
    /// As [`Identity::new`], and when the chain is for another name.
    pub fn renewed(&self, chain: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        let key = NodeKey::from_pkcs8(self.key.pkcs8())?;
        let renewed = Self::new(key, chain, self.root.clone())?;
        if renewed.facts.name != self.facts.name || renewed.facts.mesh != self.facts.mesh {
            return Err(IdentityError::Unsound("the renewed certificate is for another name"));
        }
        Ok(renewed)
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Role and name.
    pub fn name(&self) -> &NodeName {
        &self.facts.name
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.facts.name.role()
    }

    /// The name, where it is a relay.
    pub fn relay_name(&self) -> Option<&RelayName> {
        match &self.facts.name {
            NodeName::Relay(name) => Some(name),
            NodeName::Terminal(_) => None,
        }
    }

    /// The id, where it is a terminal.
    pub fn terminal_id(&self) -> Option<&TerminalId> {
        match &self.facts.name {
            NodeName::Terminal(id) => Some(id),
            NodeName::Relay(_) => None,
        }
    }

    /// The mesh's name.
    pub fn mesh(&self) -> &MeshName {
        &self.facts.mesh
    }

    /// The mesh's id.
    pub fn mesh_id(&self) -> MeshId {
        self.root_fingerprint.mesh_id()
    }

    /// What [`identify_peer`](super::identify_peer) needs to know of this node.
    pub fn ours(&self) -> Ours<'_> {
        Ours { role: self.role(), mesh: &self.facts.mesh }
    }

    /// Whether the certificate carries the registrar role.
    pub fn is_registrar(&self) -> bool {
        self.facts.registrar
    }

    /// The node's key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// The key's fingerprint.
    pub fn fingerprint(&self) -> KeyFingerprint {
        self.facts.key()
    }

    /// Leaf and issuer, in the order of TLS.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root key's fingerprint, which tokens pin.
    pub fn root_fingerprint(&self) -> KeyFingerprint {
        self.root_fingerprint
    }

    /// Which term the issuer of this node's certificate has, and the public key that signs the authority's
    /// records of that incarnation.
    pub fn authority_key(&self) -> (Incarnation, [u8; 32]) {
        (self.issuer.term, self.issuer.public_key)
    }

    /// Valid from, s since 1970.
    pub fn not_before(&self) -> u64 {
        self.facts.not_before
    }

    /// Valid until, s since 1970.
    pub fn not_after(&self) -> u64 {
        self.facts.not_after
    }

    /// When it is time to renew, s since 1970: two thirds of the certificate's life.
    pub fn renew_at(&self) -> u64 {
        self.facts.not_after - (self.facts.not_after.saturating_sub(self.facts.not_before)) / 3
    }
}

/// A node's current identity. Clones share it; TLS configurations made from it use a renewed certificate from the
/// next handshake on.
#[derive(Debug, Clone)]
pub struct IdentityCell(Arc<Cell>);

#[derive(Debug)]
struct Cell {
    current: watch::Sender<Arc<Identity>>,
    early: Notify,
    trouble: Mutex<Option<RenewalTrouble>>,
    failures: AtomicU64,
}

/// Why a certificate that should be renewed is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RenewalTrouble {
    /// Since when renewals fail, s since 1970.
    pub since: u64,
    /// Renewals that failed since then.
    pub tries: u64,
    /// The last failure: what, why, what to do.
    pub why: String,
}

/// What a node says of itself once its certificate ended: nobody lets it in, and why it was not renewed.
pub fn locked_out(
    not_after: u64,
    trouble: Option<&RenewalTrouble>,
    now_secs: u64,
) -> Option<Refusal> {
    if now_secs <= not_after {
        return None;
    }
    let hours = (now_secs - not_after) / 3600;
    let ago = match hours {
        0 => "less than an hour ago".to_owned(),
        1..48 => format!("{hours} h ago"),
        _ => format!("{} days ago", hours / 24),
    };
    let why = trouble.map_or_else(
        || "a renewal is under way".to_owned(),
        |trouble| format!("it could not be renewed: {}", trouble.why),
    );
    let detail = format!("this node's certificate ended {ago}; {why}");
    Some(Refusal::new(RefusalCode::CertificateExpired, detail))
}

impl IdentityCell {
    /// A cell that holds `identity`.
    pub fn new(identity: Identity) -> Self {
        let current = watch::Sender::new(Arc::new(identity));
        let (early, trouble, failures) = (Notify::new(), Mutex::default(), AtomicU64::new(0));
        Self(Arc::new(Cell { current, early, trouble, failures }))
    }

    /// The current identity.
    pub fn get(&self) -> Arc<Identity> {
        Arc::clone(&self.0.current.borrow())
    }

    /// Puts a [renewed](Identity::renewed) identity in the place of the current one.
    pub fn renew(&self, renewed: Identity) {
        *self.trouble() = None;
        self.0.current.send_replace(Arc::new(renewed));
    }

    /// Notes that a renewal failed, and why.
    pub fn renewal_failed(&self, why: String, now_secs: u64) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
        let mut trouble = self.trouble();
        let (since, tries) = trouble.as_ref().map_or((now_secs, 0), |t| (t.since, t.tries));
        *trouble = Some(RenewalTrouble { since, tries: tries + 1, why });
    }

    /// Why the certificate is not renewed, when it is due and that fails.
    pub fn renewal_trouble(&self) -> Option<RenewalTrouble> {
        self.trouble().clone()
    }

    /// Renewals that failed since the start of the program.
    pub fn renewal_failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<RenewalTrouble>> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells of renewals.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Identity>> {
        self.0.current.subscribe()
    }

    /// Has the certificate renewed before its time: a newer issuer was heard of. Asking twice is asking once.
    pub fn renew_early(&self) {
        self.0.early.notify_one();
    }

    /// Waits until somebody asks for that.
    pub(crate) async fn asked_early(&self) {
        self.0.early.notified().await;
    }
}
