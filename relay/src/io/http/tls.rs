//! TLS of the status endpoint: version 1.3, no resumption, no client certificates (ADR 26).
//!
//! The certificate is the relay's own of the mesh, or comes from two files. Both are taken live: a renewed one is shown to
//! the next handshake.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tasuki_proto::identity::{IdentityCell, TlsError, shown_certificate, web_server_config};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often the files are looked at.
const LOOK_PERIOD: Duration = Duration::from_secs(5);

/// A certificate and its key, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those that lead from it to its root.
    pub certificate: PathBuf,
    /// Its key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
}

/// What the status endpoint shows.
#[derive(Debug, Clone)]
pub enum Certificate {
    /// The relay's own.
    Mesh(IdentityCell),
    /// Of these files.
    Files(CertificateFiles),
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be used.
    #[error("status certificate {path}: {why}")]
    File {
        /// Which.
        path: String,
        /// Why.
        why: String,
    },
    /// rustls refused.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Makes TLS streams.
#[derive(Clone)]
pub(super) struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads what is to be shown. Needs a tokio runtime: files are looked at again from time to time, as long as this
    /// lives.
    pub(super) fn new(certificate: &Certificate) -> Result<Self, CertificateError> {
        Self::looking(certificate, LOOK_PERIOD)
    }

    pub(super) fn looking(
        certificate: &Certificate,
        period: Duration,
    ) -> Result<Self, CertificateError> {
        let resolver = match certificate {
            Certificate::Mesh(cell) => shown_certificate(cell),
            Certificate::Files(files) => {
                let seen = files.stamp();
                let shown = Arc::new(Shown(ArcSwap::from_pointee(files.read()?)));
                tokio::spawn(look_again(Arc::downgrade(&shown), files.clone(), seen, period));
                shown
            }
        };
        let mut config = web_server_config(resolver)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// A handshake as the server.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.0.accept(stream).await
    }
}

/// The certificate of the files as it was read last.
#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Times, numbers and sizes of the two files.
type Stamp = [Option<(i64, i64, u64, u64)>; 2];

impl CertificateFiles {
    fn read(&self) -> Result<CertifiedKey, CertificateError> {
        let error = |path: &PathBuf, why: String| CertificateError::File {
            path: path.display().to_string(),
            why,
        };
        let pem = |path: &PathBuf| std::fs::read(path).map_err(|why| error(path, why.to_string()));
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&pem(&self.certificate)?)
                .collect::<Result<_, _>>()
                .map_err(|why| error(&self.certificate, format!("not sound PEM: {why}")))?;
        if chain.is_empty() {
            let why = "it holds no certificate: give one in PEM, with those it was signed with";
            return Err(error(&self.certificate, why.to_owned()));
        }
        let key = zeroize::Zeroizing::new(pem(&self.key)?);
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|why| error(&self.key, format!("it holds no key in PEM: {why}")))?;
        let provider: CryptoProvider = rustls::crypto::ring::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|why| {
            error(&self.key, format!("{why}: give the key of {}", self.certificate.display()))
        })
    }

    /// What changes when one of them is replaced or written.
    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|path| {
            let meta = std::fs::metadata(path).ok()?;
            Some((meta.mtime(), meta.mtime_nsec(), meta.ino(), meta.len()))
        })
    }
}

/// Reads the files again when they changed. What cannot be used, such as a certificate whose key is not there yet, leaves the
/// one before in its place.
async fn look_again(
    shown: Weak<Shown>,
    files: CertificateFiles,
    mut seen: Stamp,
    period: Duration,
) {
    loop {
        tokio::time::sleep(period).await;
        let Some(shown) = shown.upgrade() else { return };
        let stamp = files.stamp();
        if stamp == seen {
            continue;
        }
        seen = stamp;
        match files.read() {
            Ok(key) => {
                shown.0.store(Arc::new(key));
                tracing::info!(certificate = %files.certificate.display(), "status certificate read again");
            }
            Err(error) => tracing::warn!(%error, "the status certificate stays as it was"),
        }
    }
}
