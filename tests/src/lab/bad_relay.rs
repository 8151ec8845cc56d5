//! A relay that an enemy runs: it has a relay's real identity, and says by hand what an honest one never says.
//!
//! Towards terminals it is a server ([`BadRelay`]), towards relays a neighbour that dialled ([`BadLink`]).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tasuki_proto::attest::Attestation;
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{LoggedIn, ToRelay, ToTerminal, Welcome};
use tasuki_proto::gossip::{GossipMessage, Head, Rows, Want};
use tasuki_proto::identity::{Clock, Identity, IdentityCell, quinn_server_config};
use tasuki_proto::mesh::{LinkHello, LinkStream, ToPeer};
use tasuki_proto::record::RecordKind;
use tasuki_proto::version::{Alpn, PROTOCOL};
use tasuki_proto::{Incarnation, Label, RelayId, RelayName, limits};
use tasuki_relay::core::LinkId;
use tasuki_relay::core::gossip::{Config, Gossip, Input, Output, Write};
use tokio::sync::mpsc;
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
    gossip: Vec<SendStream>,
    heard: mpsc::Receiver<GossipMessage>,
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
        let (told, heard) = mpsc::channel(1024);
        for _ in 0..limits::GOSSIP_STREAMS {
            let opened = calls.connection.open_bi().await;
            let (mut send, receive) = opened.map_err(|e| e.to_string())?;
            let begun = send.write_all(&[LinkStream::Gossip as u8]).await;
            begun.map_err(|e| e.to_string())?;
            gossip.push(send);
            tokio::spawn(listen(receive, told.clone()));
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
            Some(ToPeer::Hello(_)) => Ok(BadLink { calls, gossip, heard, id }),
            other => Err(format!("{other:?}")),
        }
    }

    /// Sends a gossip message on the stream that it belongs to.
    ///
    /// # Errors
    /// When the link is gone, in words.
    pub async fn say(&mut self, message: &GossipMessage) -> Result<(), String> {
        let stream = self.gossip.get_mut(message.stream()).ok_or("no such stream")?;
        let sent = stream.write_all(&message.to_envelope().to_bytes()).await;
        sent.map_err(|e| e.to_string())
    }

    /// The first head of `origin` that the neighbour tells from here on.
    ///
    /// # Errors
    /// When none comes within ten seconds.
    pub async fn head_of(&mut self, origin: RelayId) -> Result<Head, String> {
        let found = async {
            loop {
                match self.heard.recv().await? {
                    GossipMessage::Heads(told) => {
                        if let Some(head) = told.heads.into_iter().find(|h| h.origin == origin) {
                            return Some(head);
                        }
                    }
                    GossipMessage::Rows(rows) if rows.head.origin == origin => {
                        return Some(rows.head);
                    }
                    _ => {}
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(10), found).await;
        found.ok().flatten().ok_or_else(|| format!("no head of {origin}"))
    }

    /// Waits until the neighbour has cut the link.
    ///
    /// # Errors
    /// When it has not within ten seconds.
    pub async fn cut(&self) -> Result<(), String> {
        let closed = tokio::time::timeout(Duration::from_secs(10), self.calls.connection.closed());
        closed.await.map(|_| ()).map_err(|_| "the link still stands".to_owned())
    }

    /// Whether the link stands.
    pub fn stands(&self) -> bool {
        self.calls.connection.close_reason().is_none()
    }
}

async fn listen(mut receive: RecvStream, told: mpsc::Sender<GossipMessage>) {
    while let Ok(Some(envelope)) = Envelope::read(&mut receive, limits::MESH_MESSAGE_BYTES).await {
        let Ok(Some(message)) = GossipMessage::from_envelope(&envelope) else { continue };
        // Nobody may listen any longer; the neighbour is read all the same.
        let _ = told.try_send(message);
    }
}

/// Writes rows in a relay's name and signs them with its key: what that relay may say of itself, true or not.
#[derive(Debug)]
pub struct Author {
    gossip: Gossip,
    told: u64,
}

impl Author {
    /// The relay with this data directory, in this life. What it signs counts as rows of `origin`, or as its own.
    ///
    /// # Panics
    /// When the directory holds no relay's identity.
    pub fn new(data: &Path, incarnation: Incarnation, origin: Option<RelayId>) -> Author {
        let identity = Identity::load(data).expect("a readable identity").expect("an identity");
        let name = identity.relay_name().expect("a relay's identity");
        let mesh = identity.mesh_id();
        let origin = origin.unwrap_or_else(|| RelayId::of(&mesh, name));
        let signer = identity.key().shared_signer();
        let config = Config::new(origin, incarnation, mesh, signer, [1, 2]);
        Author { gossip: Gossip::new(config, Instant::now()), told: 0 }
    }

    /// Writes a row; what its relay tells of it to neighbours that have all before it.
    ///
    /// # Panics
    /// When the row is too long for one.
    pub fn write(&mut self, kind: RecordKind, key: &[u8], payload: bytes::Bytes) -> GossipMessage {
        let write = Write {
            kind,
            key: bytes::Bytes::copy_from_slice(key),
            payload: Some(payload),
            lifetime_secs: 0,
            wall_ms: 1,
            scope: 0,
        };
        self.gossip.handle(Input::Write(write), Instant::now());
        GossipMessage::Rows(self.tell(self.told).pop().expect("the row"))
    }

    /// Everything behind a sequence, in as many messages as it takes.
    pub fn tell(&mut self, since: u64) -> Vec<Rows> {
        let (link, now, origin) = (LinkId(1), Instant::now(), self.gossip.id());
        let incarnation = self.gossip.incarnation();
        self.gossip.handle(Input::LinkUp(link, RelayId(1)), now);
        let want = Want { origin, incarnation, watermark: since };
        self.gossip.handle(Input::Message(link, GossipMessage::Want(want)), now);
        let mut told = Vec::new();
        while let Some(output) = self.gossip.poll_output() {
            if let Output::Send(link, message) = output {
                self.gossip.handle(Input::Sent(link), now);
                if let GossipMessage::Rows(rows) = message {
                    told.push(rows);
                }
            }
        }
        self.gossip.handle(Input::LinkDown(link), now);
        self.told = self.gossip.table().watermark(origin).sequence;
        told
    }
}
