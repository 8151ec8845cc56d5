//! A relay that an enemy runs: it has a relay's real identity, and says by hand what an honest one never says.
//!
//! Towards terminals it is a server ([`BadRelay`]), towards relays a neighbour that dialled ([`BadLink`]).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tasuki_proto::attest::Attestation;
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{LoggedIn, ToRelay, ToTerminal, Welcome};
use tasuki_proto::gossip::GossipMessage;
use tasuki_proto::identity::{Clock, Identity, IdentityCell, quinn_server_config};
use tasuki_proto::mesh::{LinkHello, LinkStream, ToPeer};
use tasuki_proto::version::{Alpn, PROTOCOL};
use tasuki_proto::{Incarnation, Label, RelayId, RelayName, limits};
use tokio::task::JoinHandle;

use super::raw::RawStream;

/// What it says to a terminal's message.
pub type Script = dyn Fn(&Honest, ToRelay) -> Vec<ToTerminal> + Send + Sync;

/// What an honest relay would say.
#[derive(Debug, Clone)]
pub struct Honest {
    id: RelayId,
    name: RelayName,
    address: SocketAddr,
}

impl Honest {
    /// To this message; `highest` goes into the Welcome.
    pub fn answer(&self, message: &ToRelay, highest: Option<Attestation>) -> Vec<ToTerminal> {
        match message {
            ToRelay::Hello(hello) => vec![ToTerminal::Welcome(Welcome {
                protocol: hello.protocol.min(PROTOCOL),
                software: "bad".to_owned(),
                relay: self.id,
                name: self.name.clone(),
                highest,
                address: self.address,
                handle: Label::from_random(7),
                terminals: 1,
            })],
            ToRelay::Login(_) => vec![ToTerminal::LoggedIn(LoggedIn {})],
            ToRelay::Ping(ping) => vec![ToTerminal::Pong(ping.clone())],
            _ => Vec::new(),
        }
    }
}

/// A server that terminals attach to.
#[derive(Debug)]
pub struct BadRelay {
    endpoint: Endpoint,
    task: JoinHandle<()>,
    logins: Arc<AtomicUsize>,
}

impl BadRelay {
    /// Takes the place of the relay with this data directory, whose process must have ended. Call it within tokio.
    ///
    /// # Panics
    /// When the address is taken, or the directory holds no relay's identity.
    pub fn start(at: SocketAddr, data: &Path, script: Box<Script>) -> BadRelay {
        let identity = Identity::load(data).expect("a readable identity").expect("an identity");
        let name = identity.relay_name().expect("a relay's identity").clone();
        let honest = Honest { id: RelayId::of(&identity.mesh_id(), &name), name, address: at };
        let cell = IdentityCell::new(identity);
        let server = quinn_server_config(&cell, &[Alpn::Attachment], &Clock::system(0));
        let mut settings = quinn::EndpointConfig::default();
        settings.grease_quic_bit(false);
        let socket = std::net::UdpSocket::bind(at).expect("the address of a relay that ended");
        let runtime = quinn::default_runtime().expect("called within tokio");
        let server = server.expect("a sound identity");
        let endpoint = Endpoint::new(settings, Some(server), socket, runtime).expect("an endpoint");
        let (script, logins): (Arc<Script>, _) = (script.into(), Arc::new(AtomicUsize::new(0)));
        let (accepting, counted) = (endpoint.clone(), logins.clone());
        let task = tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let (script, honest, logins) = (script.clone(), honest.clone(), counted.clone());
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else { return };
                    serve(connection, &honest, &*script, &logins).await;
                });
            }
        });
        BadRelay { endpoint, task, logins }
    }

    /// How often terminals logged in or changed their role.
    pub fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }
}

impl Drop for BadRelay {
    fn drop(&mut self) {
        self.endpoint.close(0_u32.into(), b"");
        self.task.abort();
    }
}

async fn serve(connection: Connection, honest: &Honest, script: &Script, logins: &AtomicUsize) {
    let Ok((mut send, mut receive)) = connection.accept_bi().await else { return };
    while let Ok(Some(envelope)) = Envelope::read(&mut receive, limits::CONTROL_MESSAGE_BYTES).await
    {
        let Ok(Some(message)) = ToRelay::from_envelope(&envelope) else { continue };
        let is_login = matches!(message, ToRelay::Login(_));
        for answer in script(honest, message) {
            if send.write_all(&answer.to_envelope().to_bytes()).await.is_err() {
                return;
            }
        }
        logins.fetch_add(usize::from(is_login), Ordering::Relaxed);
    }
}

/// A link with a relay, dialled with the identity of another one.
#[derive(Debug)]
pub struct BadLink {
    calls: RawStream,
    gossip: Vec<(SendStream, RecvStream)>,
    /// Its own id.
    pub id: RelayId,
}

impl BadLink {
    /// Dials `relay` as the relay with this data directory, and says Hello as a process that just started.
    ///
    /// # Errors
    /// Why there is no link, in words.
    pub async fn connect(
        relay: SocketAddr,
        server_name: &str,
        data: &Path,
        (incarnation, instance): (Incarnation, u64),
    ) -> Result<BadLink, String> {
        let identity = Identity::load(data).map_err(|e| e.to_string())?.ok_or("no identity")?;
        let name = identity.relay_name().ok_or("no relay's identity")?;
        let id = RelayId::of(&identity.mesh_id(), name);
        let mut calls = RawStream::connect(relay, server_name, data, Alpn::Link).await?;
        calls.say_bytes(&[LinkStream::Calls as u8]).await?;
        let mut gossip = Vec::new();
        for _ in 0..limits::GOSSIP_STREAMS {
            let opened = calls.connection.open_bi().await;
            let mut stream = opened.map_err(|e| e.to_string())?;
            let begun = stream.0.write_all(&[LinkStream::Gossip as u8]).await;
            begun.map_err(|e| e.to_string())?;
            gossip.push(stream);
        }
        let hello = LinkHello {
            protocol: PROTOCOL,
            software: "bad".into(),
            incarnation,
            instance,
            handle: Label::from_random(7),
            addresses: Vec::new(),
        };
        calls.say(&ToPeer::Hello(hello).to_envelope()).await?;
        let answer = ToPeer::from_envelope(&calls.hear().await?).map_err(|e| e.to_string())?;
        match answer {
            Some(ToPeer::Hello(_)) => Ok(BadLink { calls, gossip, id }),
            other => Err(format!("{other:?}")),
        }
    }

    /// Sends a gossip message on the stream that it belongs to.
    ///
    /// # Errors
    /// When the link is gone, in words.
    pub async fn say(&mut self, message: &GossipMessage) -> Result<(), String> {
        let stream = self.gossip.get_mut(message.stream()).ok_or("no such stream")?;
        let sent = stream.0.write_all(&message.to_envelope().to_bytes()).await;
        sent.map_err(|e| e.to_string())
    }

    /// Whether the link stands.
    pub fn stands(&self) -> bool {
        self.calls.connection.close_reason().is_none()
    }
}
