//! A terminal of the mesh that an enemy runs, and a relay that one runs: they log in like honest ones, then ask for all that
//! they can get, and count what they are told.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{RecvStream, SendStream};
use tasuki_proto::codec::Envelope;
use tasuki_proto::control::{Call, End, List, Resume, ToRelay, ToTerminal};
use tasuki_proto::id::{
    Generation, Incarnation, Label, RelayId, RelayName, ServiceName, SessionId, TerminalId,
};
use tasuki_proto::limits::{CONTROL_MESSAGE_BYTES, GOSSIP_STREAMS, MESH_MESSAGE_BYTES};
use tasuki_proto::mesh::{LinkHello, LinkStream, RoutedCall, ToPeer};
use tasuki_proto::version::{Alpn, PROTOCOL};
use tasuki_proto::{MeshId, RefusalCode};

use super::raw::{self, RawStream};

/// What a bad peer was told.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Calls and paths refused with `busy`.
    pub busy: u64,
    /// Calls and paths refused otherwise.
    pub refused: u64,
    /// Calls and paths accepted.
    pub accepted: u64,
    /// Calls and paths offered to it.
    pub offered: u64,
    /// Sessions ended, or calls withdrawn.
    pub ended: u64,
    /// Pages of lists.
    pub pages: u64,
    /// The connection ended.
    pub cut: bool,
}

type Shared = Arc<Mutex<Tally>>;

fn count(tally: &Shared, add: impl FnOnce(&mut Tally)) {
    add(&mut tally.lock().unwrap_or_else(PoisonError::into_inner));
}

fn count_code(tally: &mut Tally, code: RefusalCode) {
    match code {
        RefusalCode::Busy => tally.busy += 1,
        _ => tally.refused += 1,
    }
}

/// A name, as tests write it.
///
/// # Panics
/// When it is none.
pub fn terminal(name: &str) -> TerminalId {
    TerminalId::new(name).expect("a name")
}

fn service() -> ServiceName {
    ServiceName::new("echo").expect("a name")
}

fn label() -> Label {
    Label::from_random(rand::random())
}

/// A terminal that is logged in. It reads what it is told, unless it was told not to, and answers nothing.
#[derive(Debug)]
pub struct BadTerminal {
    /// Its connection.
    pub connection: quinn::Connection,
    send: SendStream,
    unread: Option<RecvStream>,
    tally: Shared,
    edge: RelayId,
    next: u64,
}

impl BadTerminal {
    /// Logs in as the terminal whose data directory this is, at the relay `name` with the id `edge`.
    ///
    /// # Errors
    /// When it is refused, in words.
    pub async fn log_in(
        (address, name, edge): (SocketAddr, &str, RelayId),
        data: &Path,
    ) -> Result<Self, String> {
        let server = format!("{name}.relay.lab.tasuki");
        let RawStream { connection, send, receive, .. } =
            raw::log_in(address, &server, data).await?;
        let (tally, unread) = (Shared::default(), Some(receive));
        let mut this = Self { connection, send, unread, tally, edge, next: rand::random() };
        this.read();
        Ok(this)
    }

    /// Begins to read, on a task of its own.
    fn read(&mut self) {
        let Some(mut receive) = self.unread.take() else { return };
        let tally = self.tally.clone();
        tokio::spawn(async move {
            while let Ok(Some(envelope)) = Envelope::read(&mut receive, CONTROL_MESSAGE_BYTES).await
            {
                let Ok(Some(message)) = ToTerminal::from_envelope(&envelope) else { continue };
                count(&tally, |tally| match message {
                    ToTerminal::CallRefused(refused) => count_code(tally, refused.refusal.code),
                    ToTerminal::PathEnded(end) => count_code(tally, end.code),
                    ToTerminal::Accepted(_) | ToTerminal::Resumed(_) => tally.accepted += 1,
                    ToTerminal::Incoming(_) | ToTerminal::Resuming(_) => tally.offered += 1,
                    ToTerminal::Ended(_) => tally.ended += 1,
                    ToTerminal::Page(_) => tally.pages += 1,
                    _ => {}
                });
            }
            count(&tally, |tally| tally.cut = true);
        });
    }

    /// What it was told so far.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what it was told is enough; gives it.
    ///
    /// # Errors
    /// What it was told when `limit` is over, in words.
    pub async fn wait(
        &self,
        limit: Duration,
        enough: impl Fn(&Tally) -> bool,
    ) -> Result<Tally, String> {
        let begun = Instant::now();
        loop {
            let tally = self.tally();
            if enough(&tally) {
                return Ok(tally);
            }
            if begun.elapsed() > limit {
                return Err(format!("not within {limit:?}: {tally:?}"));
            }
            tokio::time::sleep(super::wait::POLL).await;
        }
    }

    fn session(&mut self) -> SessionId {
        self.next = self.next.wrapping_add(1);
        SessionId { edge: self.edge, nonce: self.next }
    }

    async fn say_all(&mut self, messages: Vec<ToRelay>) -> Result<(), String> {
        let bytes: Vec<u8> =
            messages.iter().flat_map(|message| message.to_envelope().to_bytes()).collect();
        self.send.write_all(&bytes).await.map_err(|error| error.to_string())
    }

    /// Calls `target`, `calls` times at once; each is withdrawn at once where `withdraws`.
    ///
    /// # Errors
    /// When it is cut.
    pub async fn call(
        &mut self,
        target: &str,
        calls: usize,
        withdraws: bool,
    ) -> Result<(), String> {
        let mut messages = Vec::new();
        for _ in 0..calls {
            let session = self.session();
            messages.push(ToRelay::Call(Call {
                session,
                target: terminal(target),
                service: service(),
                tie_break: None,
                label: label(),
            }));
            if withdraws {
                let code = RefusalCode::CallWithdrawn;
                messages.push(ToRelay::End(End { session, code }));
            }
        }
        self.say_all(messages).await
    }

    /// Asks for a path to `target`, for so many sessions that never were.
    ///
    /// # Errors
    /// When it is cut.
    pub async fn resume(&mut self, target: &str, sessions: usize) -> Result<(), String> {
        let messages = (0..sessions).map(|_| {
            ToRelay::Resume(Resume {
                session: self.session(),
                generation: Generation(1),
                target: terminal(target),
                service: service(),
                label: label(),
                avoid: Vec::new(),
            })
        });
        let messages = messages.collect();
        self.say_all(messages).await
    }

    /// Asks for so many pages.
    ///
    /// # Errors
    /// When it is cut.
    pub async fn list(&mut self, pages: u64) -> Result<(), String> {
        let list =
            |request| List { request, filter: Default::default(), after: None, limit: u16::MAX };
        self.say_all((0..pages).map(|request| ToRelay::List(list(request))).collect()).await
    }
}

/// A relay by hand, linked with an honest one.
#[derive(Debug)]
pub struct BadRelay {
    /// Its connection.
    pub connection: quinn::Connection,
    send: SendStream,
    tally: Shared,
    route: [(RelayId, RelayName); 2],
    next: u64,
    _gossip: Vec<(SendStream, RecvStream)>,
}

impl BadRelay {
    /// Links with the relay `to` at `address` as the relay `own`, whose data directory this is and which does not run.
    ///
    /// # Errors
    /// When it is refused, in words.
    ///
    /// # Panics
    /// When a name is none.
    pub async fn link(
        mesh: MeshId,
        (address, to): (SocketAddr, &str),
        (own, data): (&str, &Path),
    ) -> Result<Self, String> {
        let server = format!("{to}.relay.lab.tasuki");
        let mut link = RawStream::connect(address, &server, data, Alpn::Link).await?;
        link.say_bytes(&[LinkStream::Calls as u8]).await?;
        let mut gossip = Vec::new();
        for _ in 0..GOSSIP_STREAMS {
            let mut stream = link.connection.open_bi().await.map_err(|e| e.to_string())?;
            let begun = stream.0.write_all(&[LinkStream::Gossip as u8]).await;
            begun.map_err(|error| error.to_string())?;
            gossip.push(stream);
        }
        let hello = LinkHello {
            protocol: PROTOCOL,
            software: "raw".into(),
            incarnation: Incarnation(u64::from(u32::MAX)),
            instance: 1,
            handle: label(),
            addresses: vec!["127.0.0.1:9".into()],
        };
        link.say(&ToPeer::Hello(hello).to_envelope()).await?;
        link.hear().await?;
        let RawStream { connection, send, mut receive, .. } = link;
        let tally = Shared::default();
        let told = tally.clone();
        tokio::spawn(async move {
            while let Ok(Some(envelope)) = Envelope::read(&mut receive, MESH_MESSAGE_BYTES).await {
                let Ok(Some(message)) = ToPeer::from_envelope(&envelope) else { continue };
                count(&told, |tally| match message {
                    ToPeer::Refuse(refused) => count_code(tally, refused.refusal.code),
                    ToPeer::EndPath(end) => count_code(tally, end.code),
                    ToPeer::Accept(_) | ToPeer::Resumed(_) => tally.accepted += 1,
                    ToPeer::End(_) => tally.ended += 1,
                    _ => {}
                });
            }
            count(&told, |tally| tally.cut = true);
        });
        let route = [own, to].map(|name| {
            let name = RelayName::new(name).expect("a name");
            (RelayId::of(&mesh, &name), name)
        });
        Ok(Self { connection, send, tally, route, next: 1, _gossip: gossip })
    }

    /// What it was told so far.
    pub fn tally(&self) -> Tally {
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins so many calls to `target`, each in the name of another terminal that it makes up.
    ///
    /// # Errors
    /// When it is cut.
    pub async fn call(&mut self, target: &str, calls: usize) -> Result<(), String> {
        let mut bytes = Vec::new();
        for _ in 0..calls {
            self.next += 1;
            let call = RoutedCall {
                session: SessionId { edge: self.route[0].0, nonce: self.next },
                route: self.route.iter().map(|(id, _)| *id).collect(),
                names: self.route.iter().map(|(_, name)| name.clone()).collect(),
                caller: terminal(&format!("made-up-{}", self.next)),
                target: terminal(target),
                service: service(),
                tie_break: None,
                label: label(),
                caller_address: None,
            };
            bytes.extend_from_slice(&ToPeer::Call(call).to_envelope().to_bytes());
        }
        self.send.write_all(&bytes).await.map_err(|error| error.to_string())
    }
}
