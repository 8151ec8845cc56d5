//! TLS 1.3 configurations made from an [`IdentityCell`]: mutual by default, without tickets, resumption or early
//! data, so that every connection proves anew who its ends are.
//!
//! A server takes clients without a certificate in TLS, since a newcomer has none; whether one is needed depends
//! on the ALPN and is decided in [`identify_peer`](super::identify_peer). A certificate that *is* shown must be
//! sound.

use std::sync::Arc;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

use super::certificate::public_key_of;
use super::{Clock, IdentityCell, KeyFingerprint, NodeKey};
use crate::version::Alpn;

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// `rustls` refused it.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The root is no trust anchor.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// No cipher for QUIC's first packets.
    #[error("TLS: {0}")]
    Cipher(#[from] NoInitialCipherSuite),
}

/// ring, with the cheapest cipher of TLS 1.3 first: all are sound (RFC 8446, section 9.1), and a relay's terminals
/// spend a good part of their time in it. AES where the processor has it, else ChaCha20.
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let (aes, chacha) = (TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256);
    let [first, second] = if has_aes() { [aes, chacha] } else { [chacha, aes] };
    Arc::new(CryptoProvider {
        cipher_suites: vec![first, second, TLS13_AES_256_GCM_SHA384],
        ..rustls::crypto::ring::default_provider()
    })
}

/// Whether the processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn root_store(root: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, rustls::Error> {
    let mut store = RootCertStore::empty();
    store.add(root.clone())?;
    Ok(Arc::new(store))
}

/// Gives the current certificate to each handshake.
#[derive(Debug)]
struct Resolver {
    cell: IdentityCell,
}

/// What a handshake shows: made once for each identity, since to read a key costs as much as to sign with it.
#[derive(Debug)]
pub(super) struct Shown {
    /// Leaf and issuer.
    short: Arc<CertifiedKey>,
    /// The root as well, for newcomers, who know it by its fingerprint alone.
    with_root: Arc<CertifiedKey>,
}

impl Shown {
    pub(super) fn new(
        key: &NodeKey,
        chain: &[CertificateDer<'static>],
        root: &CertificateDer<'static>,
    ) -> Result<Self, rustls::Error> {
        let key = PrivatePkcs8KeyDer::from(key.pkcs8().to_vec());
        let key = rustls::crypto::ring::sign::any_eddsa_type(&key)?;
        let with_root = chain.iter().chain([root]).cloned().collect();
        Ok(Self {
            short: Arc::new(CertifiedKey::new(chain.to_vec(), Arc::clone(&key))),
            with_root: Arc::new(CertifiedKey::new(with_root, key)),
        })
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let newcomer =
            hello.alpn().is_some_and(|mut names| names.any(|n| n == Alpn::Enrolment.wire()));
        let identity = self.cell.get();
        let shown = identity.shown();
        Some(Arc::clone(if newcomer { &shown.with_root } else { &shown.short }))
    }
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.cell.get().shown().short))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Which root a server's chain must lead to.
#[derive(Debug)]
enum Trust {
    /// This one.
    Root(Arc<WebPkiServerVerifier>),
    /// One with this fingerprint, which the server shows itself.
    Pinned(KeyFingerprint),
}

/// The standard verifier, with alerts that tell a wrong name from a certificate that is not sound.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn standard(
        &self,
        shown: &[CertificateDer<'_>],
    ) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let fingerprint = match &self.trust {
            Trust::Root(verifier) => return Ok(Arc::clone(verifier)),
            Trust::Pinned(fingerprint) => fingerprint,
        };
        let root = shown
            .iter()
            .find(|c| public_key_of(c).is_ok_and(|key| KeyFingerprint::of(&key) == *fingerprint))
            .ok_or(CertificateError::UnknownIssuer)?;
        let store = root_store(&root.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(store, Arc::clone(&self.provider))
            .build()
            .map_err(|_| CertificateError::UnknownIssuer.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::Error::InvalidCertificate;
        self.standard(intermediates)?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| match error {
                InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => InvalidCertificate(CertificateError::ApplicationVerificationFailure),
                other => other,
            })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn client(
    trust: Trust,
    certificate: Option<&IdentityCell>,
    alpn: Alpn,
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(Verifier { trust, provider: provider() });
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some(cell) => builder.with_client_cert_resolver(Arc::new(Resolver { cell: cell.clone() })),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.wire().to_vec()];
    config.resumption = Resumption::disabled();
    // A server has one certificate; names of relays and terminals need not stand on the wire.
    config.enable_sni = false;
    Ok(config)
}

/// For a node that dials for `alpn`. The name to connect to is [`NodeName::dns_name`](super::NodeName::dns_name) of
/// whom it dials. On [`Alpn::Enrolment`] (renewal) it shows no certificate: the request itself is signed, and the
/// certificate may have expired.
///
/// # Errors
/// When the root is no trust anchor.
pub fn client_config(
    cell: &IdentityCell,
    alpn: Alpn,
    clock: &Clock,
) -> Result<ClientConfig, TlsError> {
    let roots = root_store(cell.get().root())?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider()).build()?;
    let shown = (alpn != Alpn::Enrolment).then_some(cell);
    client(Trust::Root(verifier), shown, alpn, clock)
}

/// For a newcomer that knows a root's fingerprint and the name of the relay that it dials; [`Alpn::Enrolment`].
///
/// # Errors
/// When `rustls` refuses the configuration.
pub fn newcomer_config(root: KeyFingerprint, clock: &Clock) -> Result<ClientConfig, TlsError> {
    client(Trust::Pinned(root), None, Alpn::Enrolment, clock)
}

/// For a node that is dialled for any of `alpns`.
///
/// # Errors
/// When the root is no trust anchor.
pub fn server_config(
    cell: &IdentityCell,
    alpns: &[Alpn],
    clock: &Clock,
) -> Result<ServerConfig, TlsError> {
    let roots = root_store(cell.get().root())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Resolver { cell: cell.clone() }));
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.wire().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// The certificate of this identity with its issuer, as it is at each handshake, for servers of other protocols.
pub fn shown_certificate(cell: &IdentityCell) -> Arc<dyn ResolvesServerCert> {
    Arc::new(Resolver { cell: cell.clone() })
}

/// A server for programs that are no nodes of a mesh, such as browsers: it asks for no certificate. The ALPN is left to the
/// caller.
///
/// # Errors
/// [`TlsError`], when rustls refuses it.
pub fn web_server_config(shown: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// [`client_config`] for quinn.
///
/// # Errors
/// As there.
pub fn quinn_client_config(
    cell: &IdentityCell,
    alpn: Alpn,
    clock: &Clock,
) -> Result<quinn::ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(client_config(cell, alpn, clock)?)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// [`newcomer_config`] for quinn.
///
/// # Errors
/// As there.
pub fn quinn_newcomer_config(
    root: KeyFingerprint,
    clock: &Clock,
) -> Result<quinn::ClientConfig, TlsError> {
    let crypto = QuicClientConfig::try_from(newcomer_config(root, clock)?)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}

/// [`server_config`] for quinn.
///
/// # Errors
/// As there.
pub fn quinn_server_config(
    cell: &IdentityCell,
    alpns: &[Alpn],
    clock: &Clock,
) -> Result<quinn::ServerConfig, TlsError> {
    let crypto = QuicServerConfig::try_from(server_config(cell, alpns, clock)?)?;
    Ok(quinn::ServerConfig::with_crypto(Arc::new(crypto)))
}
