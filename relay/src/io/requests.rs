//! Requests to the registrar: answered here where it is, and passed on along the route to it elsewhere.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::BoxFuture;
use quinn::{Connection, RecvStream, SendStream};
use tasuki_proto::codec::Envelope;
use tasuki_proto::enrolment::{read_answer, read_request, send};
use tasuki_proto::identity::{Clock, IdentityCell, KeyFingerprint};
use tasuki_proto::mesh::LinkStream;
use tasuki_proto::{Refusal, RefusalCode, RelayName, limits};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::registrar::{EnrolmentService, Gate, Registrar};
use crate::core::requests::Asker;

/// How long a neighbour may take with its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the registrar may take, the whole way there and back.
const ANSWER: Duration = Duration::from_secs(8);

type Ask = Box<dyn Fn(Envelope) -> BoxFuture<'static, Option<Envelope>> + Send + Sync>;

/// The way to the registrar.
#[derive(Debug, Default)]
pub struct Way {
    registrar: Option<Registrar>,
    /// Its name and the link towards it; the driver keeps them.
    name: ArcSwapOption<RelayName>,
    next: ArcSwapOption<Connection>,
}

impl Way {
    /// The registrar is here.
    pub fn here(registrar: Option<Registrar>) -> Arc<Self> {
        Arc::new(Self { registrar, ..Self::default() })
    }

    /// The registrar's name, and the link towards it; `None` while it cannot be reached.
    pub fn set_next(&self, name: Option<RelayName>, next: Option<Connection>) {
        self.name.store(name.map(Arc::new));
        self.next.store(next.map(Arc::new));
    }

    /// The registrar's name, where it is another relay and known.
    pub fn registrar_name(&self) -> Option<RelayName> {
        self.name.load().as_deref().cloned()
    }

    /// What is answered to what only the registrar can do.
    pub fn not_registrar(&self) -> Refusal {
        let detail = self.registrar_name().map_or_else(
            || "which relay is, is not known here yet".to_owned(),
            |name| format!("the registrar is {name}"),
        );
        Refusal::new(RefusalCode::NotRegistrar, detail)
    }

    /// Asks the registrar; the request may cross `hops` more links. `None` when it cannot be reached.
    async fn ask(&self, request: Envelope, hops: u8) -> Option<Envelope> {
        if let Some(registrar) = &self.registrar {
            return Some(registrar.answer(request).await);
        }
        let next = self.next.load_full()?;
        let hops = hops.checked_sub(1)?;
        let asked = async {
            let (mut to, mut from) = next.open_bi().await.ok()?;
            to.write_all(&[LinkStream::Request as u8, hops]).await.ok()?;
            send(&mut to, &request).await.ok()?;
            read_answer(&mut from).await.ok()?
        };
        timeout(ANSWER, asked).await.ok()?
    }
}

/// Serves newcomers and what neighbours pass on.
pub struct Requests {
    way: Arc<Way>,
    gate: Arc<Gate>,
    newcomers: EnrolmentService<Ask>,
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.way.fmt(f)
    }
}

impl Requests {
    /// Requests go this way; renewals are checked against the root in `cell`.
    pub fn new(way: Arc<Way>, cell: IdentityCell, clock: Clock) -> Self {
        let asked = way.clone();
        let ask: Ask = Box::new(move |request| {
            let way = asked.clone();
            Box::pin(async move { way.ask(request, limits::ROUTE_RELAYS as u8).await })
        });
        let gate = Arc::new(Gate::new(cell, clock));
        Self { way, newcomers: EnrolmentService::new(ask, gate.clone()), gate }
    }

    /// Serves a newcomer's connection until it is closed.
    pub async fn serve_connection(&self, connection: Connection) {
        self.newcomers.serve(connection).await;
    }

    /// Serves a stream of a link, behind its first byte. `peer` is the key of the relay at its other end.
    pub async fn serve_stream(
        &self,
        peer: KeyFingerprint,
        mut to: SendStream,
        mut from: RecvStream,
    ) {
        let asked = async {
            let hops = from.read_u8().await.ok()?;
            Some((hops, read_request(&mut from).await.ok()??))
        };
        let Ok(Some((hops, request))) = timeout(PATIENCE, asked).await else { return };
        let hops = hops.min(limits::ROUTE_RELAYS as u8);
        let ask = |request| self.way.ask(request, hops);
        let answer = self.gate.answer(Asker::Relay(peer), request, ask).await;
        let _ = send(&mut to, &answer).await;
    }

    /// What was refused since the start, by reason.
    pub fn refused(&self) -> [(&'static str, u64); 4] {
        self.gate.refused()
    }
}
