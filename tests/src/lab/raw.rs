//! A peer that speaks the wire by hand, with the identity of a real one: to say what an honest peer never says.
//!
//! It trusts whatever server it meets; what is tested is the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tasuki_proto::attest::{Attestation, Presence};
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{Hello, Login, ToRelay, ToTerminal};
use tasuki_proto::id::{LoginEpoch, RelayId};
use tasuki_proto::identity::Identity;
use tasuki_proto::limits::CONTROL_MESSAGE_BYTES;
use tasuki_proto::net::{CidClass, client_config};
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::version::{Alpn, PROTOCOL};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The process that a terminal of this module says it is.
pub const INSTANCE: u64 = 1;

/// The certificate chain and key of the node whose data directory this is.
///
/// # Panics
/// When the directory holds none.
pub fn identity_in(data: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let path = data.join("identity.pem");
    let pem = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let mut certificates = certificates.expect("sound PEM");
    // Leaf, issuer, root; the root is not sent.
    certificates.truncate(2);
    (certificates, PrivateKeyDer::from_pem_slice(&pem).expect("a key"))
}

/// A QUIC client with the identity in `data`, or with none.
///
/// # Panics
/// When no socket is free.
pub fn endpoint(data: Option<&Path>, alpn: Alpn) -> Endpoint {
    endpoint_at(Ipv4Addr::LOCALHOST, data, alpn)
}

/// As [`endpoint`], at an address of this machine: every address of 127.0.0.0/8 is one.
///
/// # Panics
/// When no socket is free.
pub fn endpoint_at(from: Ipv4Addr, data: Option<&Path>, alpn: Alpn) -> Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)));
    let mut tls = match data.map(identity_in) {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).expect("a fitting key"),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.wire().to_vec()];
    let crypto = QuicClientConfig::try_from(tls).expect("a cipher for first packets");
    let mut settings = quinn::EndpointConfig::default();
    settings.grease_quic_bit(false);
    let socket = std::net::UdpSocket::bind((from, 0)).expect("a socket");
    let runtime = quinn::default_runtime().expect("called within tokio");
    let mut endpoint = Endpoint::new(settings, None, socket, runtime).expect("an endpoint");
    let class = if alpn == Alpn::Link { CidClass::Links } else { CidClass::Terminals };
    // As small as a terminal's: quinn gives a connection up whose stream holds more than 1,024 pieces that nobody reads,
    // and a peer that is to be silent must not end by itself.
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window((64_u32 * 1024).into());
    endpoint.set_default_client_config(client_config(Arc::new(crypto), class, transport));
    endpoint
}

/// One stream of a connection, as envelopes.
#[derive(Debug)]
pub struct RawStream {
    /// The connection.
    pub connection: Connection,
    /// To the peer.
    pub send: SendStream,
    /// From the peer.
    pub receive: RecvStream,
    _endpoint: Endpoint,
}

impl RawStream {
    /// Dials and opens a bidirectional stream.
    ///
    /// # Errors
    /// Why the connection could not be made, in words.
    pub async fn connect(
        address: SocketAddr,
        server_name: &str,
        data: &Path,
        alpn: Alpn,
    ) -> Result<RawStream, String> {
        let endpoint = endpoint(Some(data), alpn);
        let connecting =
            endpoint.connect(address, server_name).map_err(|e| format!("connect: {e}"))?;
        let connection = within(connecting).await?.map_err(|e| format!("handshake: {e}"))?;
        let (send, receive) =
            connection.open_bi().await.map_err(|e| format!("open a stream: {e}"))?;
        Ok(RawStream { connection, send, receive, _endpoint: endpoint })
    }

    /// Sends an envelope.
    ///
    /// # Errors
    /// When the connection is gone, in words.
    pub async fn say(&mut self, envelope: &Envelope) -> Result<(), String> {
        let sent = self.send.write_all(&envelope.to_bytes()).await;
        sent.map_err(|e| self.why_closed(&e.to_string()))
    }

    /// Sends raw bytes.
    ///
    /// # Errors
    /// When the connection is gone, in words.
    pub async fn say_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let sent = self.send.write_all(bytes).await;
        sent.map_err(|e| self.why_closed(&e.to_string()))
    }

    /// The next envelope.
    ///
    /// # Errors
    /// When none comes in time, or the connection ends, in words.
    pub async fn hear(&mut self) -> Result<Envelope, String> {
        let read = within(Envelope::read(&mut self.receive, CONTROL_MESSAGE_BYTES)).await?;
        match read {
            Ok(Some(envelope)) => Ok(envelope),
            Ok(None) => Err(self.why_closed("the stream ended")),
            Err(error) => Err(self.why_closed(&error.to_string())),
        }
    }

    /// The next message of a relay to a terminal; unknown kinds are passed over.
    ///
    /// # Errors
    /// As [`RawStream::hear`].
    pub async fn hear_relay(&mut self) -> Result<ToTerminal, String> {
        loop {
            let envelope = self.hear().await?;
            if let Some(message) =
                ToTerminal::from_envelope(&envelope).map_err(|e| e.to_string())?
            {
                return Ok(message);
            }
        }
    }

    fn why_closed(&self, otherwise: &str) -> String {
        let reason = self.connection.close_reason();
        reason.map_or_else(|| otherwise.to_owned(), |r| format!("{r:?}"))
    }
}

/// A log-in that the terminal in `data` signs with its key.
///
/// # Panics
/// When the directory holds no terminal's identity.
pub fn attest(data: &Path, relay: RelayId, epoch: LoginEpoch, instance: u64) -> Attestation {
    let identity = Identity::load(data).expect("a readable identity").expect("an identity");
    let id = identity.terminal_id().expect("a terminal's identity");
    let role = AttachmentRole::Primary;
    let presence = Presence { relay, epoch, instance, role };
    presence.sign(&identity.mesh_id(), id, identity.key())
}

/// The message of such a log-in.
///
/// # Panics
/// As [`attest`].
pub fn login(data: &Path, relay: RelayId, epoch: LoginEpoch, instance: u64) -> Login {
    let signed = attest(data, relay, epoch, instance);
    Login { epoch, role: signed.presence.role, signature: signed.signature }
}

/// Connects to a relay as the terminal in `data`, says Hello with `protocol`, and gives the relay's answer.
///
/// # Errors
/// When there is no answer, in words.
pub async fn hello(
    relay: SocketAddr,
    server_name: &str,
    data: &Path,
    protocol: u16,
) -> Result<(RawStream, ToTerminal), String> {
    let mut stream = RawStream::connect(relay, server_name, data, Alpn::Attachment).await?;
    let hello = Hello { protocol, software: "raw".into(), instance: INSTANCE };
    stream.say(&ToRelay::Hello(hello).to_envelope()).await?;
    let answer = stream.hear_relay().await?;
    Ok((stream, answer))
}

/// As [`hello`], and logs in.
///
/// # Errors
/// When it is refused, or there is no answer, in words.
pub async fn log_in(
    relay: SocketAddr,
    server_name: &str,
    data: &Path,
) -> Result<RawStream, String> {
    let (mut stream, answer) = hello(relay, server_name, data, PROTOCOL).await?;
    let ToTerminal::Welcome(welcome) = answer else { return Err(format!("{answer:?}")) };
    let login = login(data, welcome.relay, LoginEpoch(welcome.epoch().0 + 1), INSTANCE);
    stream.say(&ToRelay::Login(login).to_envelope()).await?;
    loop {
        match stream.hear_relay().await? {
            ToTerminal::LoggedIn(_) => return Ok(stream),
            ToTerminal::Refused(refused) => return Err(refused.refusal.to_string()),
            _ => {}
        }
    }
}

/// An envelope of a kind that nobody knows.
pub fn unknown_message() -> Envelope {
    Envelope { kind: 0xeffe, body: BytesMut::from(&b"from a later version"[..]).freeze() }
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(TIMEOUT, future).await.map_err(|_| format!("nothing in {TIMEOUT:?}"))
}

/// Takes any server's certificate; signatures are checked.
#[derive(Debug)]
struct TrustAnybody(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
