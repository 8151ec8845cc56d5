//! The newcomer's side, and the side of a node whose certificate ends.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;

use super::{
    Certified, Enrol, FromRegistrar, Newcomer, Renew, ToRegistrar, read_answer, renewal_to_sign,
    send,
};
use crate::codec::{self, Envelope};
use crate::control::RelayContact;
use crate::dial::{Dialler, Manner, Place, Problem};
use crate::identity::{
    Clock, Identity, IdentityError, KeyFingerprint, NodeKey, NodeName, Ours, TlsError, Token,
    connection_refusal, identify_peer, make_private_dir, quinn_newcomer_config, write_private,
};
use crate::limits;
use crate::net::CidClass;
use crate::refusal::{Refusal, RefusalCode};
use crate::version::Alpn;

/// How long the registrar may take, with relays in between.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the last packets to the relays may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// Why there is no certificate. Each shows as one line.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The registrar, or a relay in its place, said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No relay answered; says what happened at each address.
    #[error(
        "no relay could be reached ({0}); see whether one of them runs and whether UDP gets through"
    )]
    Unreachable(String),
    /// The answer, or an own file, is not sound.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// This machine cannot send.
    #[error("no UDP socket: {0}")]
    Socket(#[from] std::io::Error),
    /// TLS could not be set up.
    #[error(transparent)]
    Tls(#[from] crate::identity::TlsError),
}

/// A certificate of one's own, and the relays of the mesh.
#[derive(Debug)]
pub struct Enrolled {
    /// The identity, not yet on disk.
    pub identity: Identity,
    /// Every relay that ever joined.
    pub relays: Vec<RelayContact>,
}

/// A newcomer's key, on disk before it is used, so that a request whose answer got lost is repeated with the same
/// key and the token is not burnt.
#[derive(Debug)]
pub struct PendingKey {
    path: PathBuf,
    pkcs8: zeroize::Zeroizing<Vec<u8>>,
}

impl PendingKey {
    const FILE: &'static str = "pending.key";

    /// Takes the key left by an earlier try in `dir`, or makes one.
    ///
    /// # Errors
    /// The file system's.
    pub fn load_or_make(dir: &Path) -> Result<Self, IdentityError> {
        make_private_dir(dir)?;
        let path = dir.join(Self::FILE);
        if let Ok(pkcs8) = std::fs::read(&path)
            && NodeKey::from_pkcs8(&pkcs8).is_ok()
        {
            return Ok(Self { path, pkcs8: pkcs8.into() });
        }
        let pkcs8 = zeroize::Zeroizing::new(NodeKey::generate()?.pkcs8().to_vec());
        write_private(&path, &pkcs8)?;
        Ok(Self { path, pkcs8 })
    }

    /// The key.
    ///
    /// # Errors
    /// Never for a key that was loaded or made.
    pub fn key(&self) -> Result<NodeKey, IdentityError> {
        NodeKey::from_pkcs8(&self.pkcs8)
    }

    /// Removes the file, once the identity is saved.
    pub fn forget(self) {
        let _ = std::fs::remove_file(self.path);
    }
}

/// Enrols as `name` with `token` through the relay of the token that answers first, at whichever of its addresses.
/// `addresses` are a relay's own; a terminal has none.
///
/// # Errors
/// [`EnrolError`]. A refusal that trying again cannot change ends the search.
pub async fn enrol(
    token: &Token,
    key: NodeKey,
    name: &NodeName,
    addresses: Vec<String>,
    clock: &Clock,
) -> Result<Enrolled, EnrolError> {
    let newcomer = codec::encode(&Newcomer {
        signing_request: key.signing_request()?,
        name: name.clone(),
        addresses,
    });
    let proof = token.secret.prove(&token.root.mesh_id(), &token.id, &newcomer);
    let request = ToRegistrar::Enrol(Enrol { token: token.id, newcomer, proof });
    let ours = Ours { role: name.role(), mesh: &token.mesh };
    let dialler = Dialler::default();
    let way = (&token.relays[..], &dialler);
    let certified = ask(&request.to_envelope(), way, token.root, &ours, clock).await?;
    let (chain, root) = certificates(&certified);
    let identity = Identity::new(key, chain, root)?;
    if identity.root_fingerprint() != token.root
        || identity.name() != name
        || *identity.mesh() != token.mesh
    {
        return Err(
            IdentityError::Unsound("the answer holds a certificate for somebody else").into()
        );
    }
    Ok(Enrolled { identity, relays: certified.relays })
}

/// Renews `identity` through any of `relays`; also when its certificate has ended.
///
/// # Errors
/// As [`enrol`].
pub async fn renew(
    identity: &Identity,
    relays: &[RelayContact],
    dialler: &Dialler,
    clock: &Clock,
) -> Result<Enrolled, EnrolError> {
    let leaf = identity.chain().first().map_or(&[][..], |leaf| leaf);
    let signed = renewal_to_sign(&identity.mesh_id(), leaf);
    let request = ToRegistrar::Renew(Renew {
        chain: identity.chain().iter().map(|c| c.to_vec()).collect(),
        signature: identity.key().signer().sign(&signed).as_ref().to_vec(),
    });
    let pinned = identity.root_fingerprint();
    let way = (relays, dialler);
    let certified = ask(&request.to_envelope(), way, pinned, &identity.ours(), clock).await?;
    let (chain, _) = certificates(&certified);
    Ok(Enrolled { identity: identity.renewed(chain)?, relays: certified.relays })
}

fn certificates(certified: &Certified) -> (Vec<CertificateDer<'static>>, CertificateDer<'static>) {
    let chain = certified.chain.iter().cloned().map(CertificateDer::from).collect();
    (chain, certified.root.clone().into())
}

/// How to reach a relay without a certificate. Its first packets say for which of the relay's endpoints they are; with
/// a connection id at random one in 256 would go to the one for links, which knows no newcomers.
fn dialling(root: KeyFingerprint, clock: &Clock) -> Result<quinn::ClientConfig, TlsError> {
    let mut config = quinn_newcomer_config(root, clock)?;
    config.initial_dst_cid_provider(Arc::new(|| crate::net::initial(CidClass::Terminals)));
    Ok(config)
}

/// A socket that reaches v6 and v4 addresses, or v4 alone where the machine has no v6.
fn endpoint() -> std::io::Result<quinn::Endpoint> {
    let dual = || {
        let v6 = socket2::Domain::IPV6;
        let socket = socket2::Socket::new(v6, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
        socket.set_only_v6(false)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into())?;
        Ok::<UdpSocket, std::io::Error>(socket.into())
    };
    let socket = dual().or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut config = quinn::EndpointConfig::default();
    // A relay tells QUIC from frames by the fixed bit (architecture 7).
    config.grease_quic_bit(false);
    quinn::Endpoint::new(config, None, socket, Arc::new(quinn::TokioRuntime))
}

/// Asks the relays, whichever answer first, until one gives an answer that counts.
async fn ask(
    request: &Envelope,
    (relays, dialler): (&[RelayContact], &Dialler),
    root: KeyFingerprint,
    ours: &Ours<'_>,
    clock: &Clock,
) -> Result<Certified, EnrolError> {
    let mut endpoint = endpoint()?;
    endpoint.set_default_client_config(dialling(root, clock)?);
    let (places, mut failures) = places(relays);
    let targets: Vec<usize> = places.iter().map(|place| place.target).collect();
    let by_place = |place: usize| &relays[targets[place]];
    let connecting = |place: usize, address| {
        connect(endpoint.clone(), by_place(place).clone(), address, ours, clock)
    };
    let mut race = dialler.dial(places, Manner::ANY_RELAY, connecting);
    let mut refused = None;
    while let Some((place, connection)) = race.next().await {
        let answer = tokio::time::timeout(ANSWER, exchange(&connection, request)).await;
        connection.close(0_u32.into(), b"");
        match answer.unwrap_or_else(|_| Err(Failure::Unreachable("no answer".into()))) {
            Ok(certified) => {
                drop(race);
                let _ = tokio::time::timeout(FAREWELL, endpoint.wait_idle()).await;
                return Ok(certified);
            }
            Err(Failure::Handshake(refusal)) => refused = Some(refusal),
            Err(Failure::Refused(refusal)) if refusal.code.retry_helps() => {
                refused = Some(refusal);
            }
            Err(Failure::Refused(refusal)) => return Err(refusal.into()),
            Err(Failure::Unreachable(why)) => {
                let at = crate::net::canonical(connection.remote_address());
                failures.push(format!("{} at {at}: {why}", by_place(place).name));
            }
        }
    }
    for failure in race.take_failures() {
        let (name, at) = (&by_place(failure.place).name, race.shown(&failure));
        match failure.problem {
            Problem::Failed(Failure::Handshake(refusal) | Failure::Refused(refusal)) => {
                refused.get_or_insert(refusal);
            }
            Problem::Failed(Failure::Unreachable(why)) => {
                failures.push(format!("{name} at {at}: {why}"));
            }
            problem @ (Problem::LookUp(_) | Problem::SlowLookUp | Problem::Silent) => {
                failures.push(format!("{name} at {at}: {problem}"));
            }
        }
    }
    Err(refused.map_or_else(|| unreached(failures), EnrolError::Refused))
}

/// All addresses of all relays, and what is none.
fn places(relays: &[RelayContact]) -> (Vec<Place>, Vec<String>) {
    let (mut places, mut unusable) = (Vec::new(), Vec::new());
    for (target, relay) in relays.iter().enumerate() {
        for address in relay.addresses.iter().take(limits::RELAY_ADDRESSES) {
            match Place::parse(target, address) {
                Some(place) => places.push(place),
                None => unusable.push(format!("{} at {address}: not HOST:PORT", relay.name)),
            }
        }
    }
    (places, unusable)
}

/// Names the first failures.
fn unreached(mut failures: Vec<String>) -> EnrolError {
    const SHOWN: usize = 8;
    if failures.is_empty() {
        failures.push("no relay is known here".to_owned());
    }
    let more = failures.len().saturating_sub(SHOWN);
    failures.truncate(SHOWN);
    if more > 0 {
        failures.push(format!("and {more} more"));
    }
    EnrolError::Unreachable(failures.join("; "))
}

#[derive(Debug)]
enum Failure {
    /// The registrar's word; another relay would pass on the same.
    Refused(Refusal),
    /// Who answers there is not who should; somebody else may at the next address.
    Handshake(Refusal),
    Unreachable(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(refusal) | Failure::Handshake(refusal) => refusal.fmt(f),
            Failure::Unreachable(why) => f.write_str(why),
        }
    }
}

fn unreachable(error: impl std::fmt::Display) -> Failure {
    Failure::Unreachable(error.to_string())
}

/// A connection with `relay` at `address`, once the relay proved who it is.
async fn connect(
    endpoint: quinn::Endpoint,
    relay: RelayContact,
    address: SocketAddr,
    ours: &Ours<'_>,
    clock: &Clock,
) -> Result<quinn::Connection, Failure> {
    let name = NodeName::Relay(relay.name.clone());
    let connecting = endpoint.connect(address, &name.dns_name(ours.mesh)).map_err(unreachable)?;
    let connection = connecting.await.map_err(|error| failure(&error, address))?;
    let chain = crate::identity::connection_chain(&connection);
    let nobody = |_: &KeyFingerprint| false;
    identify_peer(Alpn::Enrolment, &chain, ours, Some(&name), &nobody, clock.now_secs())
        .map_err(|code| Failure::Handshake(Refusal::new(code, relay.name.as_str())))?;
    Ok(connection)
}

/// A handshake that failed for a reason that has a code is a refusal; all else is an address that does not answer.
fn failure(error: &quinn::ConnectionError, at: impl std::fmt::Display) -> Failure {
    match connection_refusal(error) {
        Some(code) => Failure::Handshake(Refusal::new(code, format!("relay at {at}"))),
        None => unreachable(error),
    }
}

async fn exchange(
    connection: &quinn::Connection,
    request: &Envelope,
) -> Result<Certified, Failure> {
    let exchange = async {
        let (mut to, mut from) = connection.open_bi().await?;
        send(&mut to, request).await?;
        read_answer(&mut from).await
    };
    let envelope = match exchange.await {
        Ok(Some(envelope)) => envelope,
        Ok(None) => return Err(Failure::Unreachable("closed without an answer".into())),
        Err(error) => {
            let closed = connection.close_reason();
            return Err(closed.map_or_else(
                || unreachable(error),
                |reason| failure(&reason, connection.remote_address()),
            ));
        }
    };
    match FromRegistrar::from_envelope(&envelope) {
        Ok(Some(FromRegistrar::Certified(certified))) => Ok(certified),
        Ok(Some(FromRegistrar::Refused(refusal))) => Err(Failure::Refused(refusal)),
        Ok(None) | Err(_) => Err(Failure::Refused(Refusal::new(
            RefusalCode::ProtocolError,
            "the relay's answer cannot be understood",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::class_of;

    #[test]
    fn the_message_names_the_first_addresses_and_counts_the_rest() {
        let many = (0..20).map(|n| format!("r1 at 192.0.2.{n}:4433: no answer")).collect();
        let line = unreached(many).to_string();
        assert!(line.contains("192.0.2.7:") && !line.contains("192.0.2.8:"), "{line}");
        assert!(line.contains("and 12 more"), "{line}");
        assert!(unreached(Vec::new()).to_string().contains("no relay is known"));
    }

    #[tokio::test]
    async fn first_packets_are_for_the_endpoint_of_newcomers() {
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        relay.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let mut endpoint = endpoint().unwrap();
        let config = dialling(KeyFingerprint([7; 32]), &Clock::system(0)).unwrap();
        endpoint.set_default_client_config(config);
        let mut packet = [0; 2048];
        for _ in 0..600 {
            let connecting = endpoint.connect(relay.local_addr().unwrap(), "r1.test").unwrap();
            let relay = relay.try_clone().unwrap();
            let length = tokio::task::spawn_blocking(move || {
                let length = relay.recv(&mut packet).unwrap();
                (length, packet)
            });
            let (length, packet) = length.await.unwrap();
            assert_eq!(class_of(&packet[..length]), CidClass::Terminals);
            drop(connecting);
        }
    }
}
