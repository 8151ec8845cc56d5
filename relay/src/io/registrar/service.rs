//! Serves newcomers on any relay: at the registrar from the registrar itself, elsewhere by passing the request on.

use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tasuki_proto::codec::Envelope;
use tasuki_proto::enrolment::{FromRegistrar, read_request, send};
use tasuki_proto::{RefusalCode, limits};
use tokio::sync::Semaphore;

use crate::core::bucket::Bucket;

/// How long a newcomer may take to ask, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the registrar may take; less than the newcomer waits.
const ANSWER: Duration = Duration::from_secs(8);

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
    connections: Semaphore,
    /// A burst is what a second gives.
    rate: Mutex<Bucket>,
}

impl<A, F> EnrolmentService<A>
where
    A: Fn(Envelope) -> F,
    F: Future<Output = Option<Envelope>>,
{
    /// A service whose answers come from `ask`.
    pub fn new(ask: A) -> Self {
        Self {
            ask,
            connections: Semaphore::new(limits::ENROLMENT_CONNECTIONS),
            rate: Mutex::new(Bucket::full(limits::ENROLMENTS_PER_SECOND, Instant::now())),
        }
    }

    /// Serves one connection for [`Alpn::Enrolment`](tasuki_proto::version::Alpn::Enrolment): one request, one
    /// answer. Returns when it is closed.
    pub async fn serve(&self, connection: quinn::Connection) {
        let close = |code: RefusalCode| connection.close(u32::from(code.value()).into(), b"");
        let Ok(_slot) = self.connections.try_acquire() else {
            return close(RefusalCode::Overloaded);
        };
        let asked = async {
            let (to, mut from) = connection.accept_bi().await.ok()?;
            Some((to, read_request(&mut from).await.ok()??))
        };
        let Ok(Some((mut to, request))) = tokio::time::timeout(PATIENCE, asked).await else {
            return close(RefusalCode::BadRequest);
        };
        let answer = self.answer(request).await;
        let told = async {
            if send(&mut to, &answer).await.is_ok() {
                connection.closed().await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, told).await;
        connection.close(0_u32.into(), b"");
    }

    async fn answer(&self, request: Envelope) -> Envelope {
        let within = {
            let mut rate = self.rate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let most = limits::ENROLMENTS_PER_SECOND;
            rate.take(most, most, Instant::now())
        };
        let refused = |code: RefusalCode| FromRegistrar::Refused(code.into()).to_envelope();
        if !within {
            return refused(RefusalCode::Overloaded);
        }
        let answer = tokio::time::timeout(ANSWER, (self.ask)(request)).await;
        answer.ok().flatten().unwrap_or_else(|| refused(RefusalCode::RegistrarUnreachable))
    }
}
