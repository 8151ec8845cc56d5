//! Serves newcomers on any relay: at the registrar from the registrar itself, elsewhere by passing the request on.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tasuki_proto::codec::Envelope;
use tasuki_proto::enrolment::{FromRegistrar, ToRegistrar, read_request, send, verify_renewal};
use tasuki_proto::identity::{Clock, IdentityCell};
use tasuki_proto::{RefusalCode, limits};
use tokio::sync::oneshot;

use crate::core::admission::Source;
use crate::core::requests::{Asker, Kind, Requests};
use crate::core::room::{Entry, Room, Seat};

/// How long a newcomer may take to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the registrar may take; less than the newcomer waits.
const ANSWER: Duration = Duration::from_secs(8);

/// Who may ask the registrar through this relay: one for newcomers and for neighbour relays.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    cell: IdentityCell,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    room: Room<Source>,
    /// Connections that are in; who is sent a word makes room.
    waiting: HashMap<Seat, oneshot::Sender<()>>,
    requests: Requests,
}

/// A connection's place; given back when it is dropped.
struct Place<'a>(&'a Gate, Seat);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.room.leave(self.1);
        state.waiting.remove(&self.1);
    }
}

/// A request that is being answered.
struct Asking<'a>(&'a Gate, Asker, Kind);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.lock().requests.handle_done(self.1, self.2);
    }
}

impl Gate {
    /// Renewals are checked against the root in `cell`.
    pub fn new(cell: IdentityCell, clock: Clock) -> Self {
        let state = State {
            room: Room::new(limits::ENROLMENT_CONNECTIONS),
            waiting: HashMap::new(),
            requests: Requests::default(),
        };
        Self { state: Mutex::new(state), cell, clock }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, source: Source) -> Option<(Place<'_>, oneshot::Receiver<()>)> {
        let mut state = self.lock();
        let Entry::In(seat, other) = state.room.enter(source) else { return None };
        if let Some(other) = other.and_then(|other| state.waiting.remove(&other)) {
            let _ = other.send(());
        }
        let (told, make_room) = oneshot::channel();
        state.waiting.insert(seat, told);
        Some((Place(self, seat), make_room))
    }

    /// Whether a request may go to the registrar, for as long as what is returned is kept.
    fn admit(&self, asker: Asker, request: &Envelope) -> Result<Asking<'_>, RefusalCode> {
        if !self.lock().requests.may_look(asker, Instant::now()) {
            return Err(RefusalCode::Overloaded);
        }
        let kind = match ToRegistrar::from_envelope(request) {
            Ok(Some(ToRegistrar::Renew(renew))) => {
                let (own, now) = (self.cell.get(), self.clock.now_secs());
                Kind::Renewal(verify_renewal(&renew, own.root(), &own.mesh_id(), now)?.key())
            }
            _ => Kind::Enrolment,
        };
        let may = self.lock().requests.begin(asker, kind, Instant::now());
        if may { Ok(Asking(self, asker, kind)) } else { Err(RefusalCode::Overloaded) }
    }

    /// The answer of `ask`, or a refusal without having asked.
    pub async fn answer<F: Future<Output = Option<Envelope>>>(
        &self,
        asker: Asker,
        request: Envelope,
        ask: impl FnOnce(Envelope) -> F,
    ) -> Envelope {
        let refused = |code: RefusalCode| FromRegistrar::Refused(code.into()).to_envelope();
        let _asking = match self.admit(asker, &request) {
            Ok(asking) => asking,
            Err(code) => return refused(code),
        };
        let answer = tokio::time::timeout(ANSWER, ask(request)).await;
        answer.ok().flatten().unwrap_or_else(|| refused(RefusalCode::RegistrarUnreachable))
    }

    /// What was refused since the start, by reason.
    pub fn refused(&self) -> [(&'static str, u64); 4] {
        let state = self.lock();
        let (made_room, full) = state.room.counts();
        let [enrolments, renewals] = state.requests.refused();
        [("enrolment-made-room", made_room), ("enrolment-connections", full), enrolments, renewals]
    }
}

/// Answers enrolment connections. `A` sends a request to the registrar and gives its answer, or `None` where it
/// cannot be reached:
///
/// ```text
/// at the registrar   |request| { let r = registrar.clone(); async move { Some(r.answer(request).await) } }
/// elsewhere          |request| links.ask_registrar(request)
/// ```
#[derive(Debug)]
pub struct EnrolmentService<A> {
    ask: A,
    gate: Arc<Gate>,
}

impl<A, F> EnrolmentService<A>
where
    A: Fn(Envelope) -> F,
    F: Future<Output = Option<Envelope>>,
{
    /// A service whose answers come from `ask`, for those that `gate` lets in.
    pub fn new(ask: A, gate: Arc<Gate>) -> Self {
        Self { ask, gate }
    }

    /// Serves one connection for [`Alpn::Enrolment`](tasuki_proto::version::Alpn::Enrolment): one request, one
    /// answer. Returns when it is closed.
    pub async fn serve(&self, connection: quinn::Connection) {
        let close = |code: RefusalCode| connection.close(u32::from(code.value()).into(), b"");
        let source = Source::from(connection.remote_address().ip());
        let Some((place, make_room)) = self.gate.enter(source) else {
            return close(RefusalCode::Overloaded);
        };
        tokio::select! {
            code = self.converse(&connection, source, place.1) => close(code),
            Ok(()) = make_room => close(RefusalCode::Overloaded),
        }
    }

    /// Takes the request and gives the answer; returns the code to close with.
    async fn converse(
        &self,
        connection: &quinn::Connection,
        source: Source,
        seat: Seat,
    ) -> RefusalCode {
        let asked = async {
            let (to, mut from) = connection.accept_bi().await.ok()?;
            Some((to, read_request(&mut from).await.ok()??))
        };
        let asked = tokio::time::timeout(limits::ENROLMENT_REQUEST_TIME, asked).await;
        let Ok(Some((mut to, request))) = asked else { return RefusalCode::BadRequest };
        self.gate.lock().room.set_idle(seat, false);
        let answer = self.gate.answer(Asker::Address(source), request, &self.ask).await;
        self.gate.lock().room.set_idle(seat, true);
        let told = async {
            if send(&mut to, &answer).await.is_ok() {
                connection.closed().await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, told).await;
        RefusalCode::Other(0)
    }
}
