//! Which handshakes begin at an endpoint, and how many at once.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connecting, Connection, Incoming};
use tasuki_proto::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// A handshake must be done within this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A handshake whose client does not go on for this long makes place for another.
const PLACE: Duration = Duration::from_millis(500);

/// Lets handshakes begin at one endpoint, [`limits::HANDSHAKES_AT_ONCE`] at once: those begun come to their end
/// before their clients give up, however many there are. Who does not go on with his is left aside, up to
/// [`limits::INCOMING_HANDSHAKES`] in all, so that a few stalled ones keep nobody out.
#[derive(Debug)]
pub(super) struct Admission {
    places: Arc<Semaphore>,
    under_way: Arc<Semaphore>,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits::HANDSHAKES_AT_ONCE)),
            under_way: Arc::new(Semaphore::new(limits::INCOMING_HANDSHAKES)),
        }
    }
}

/// A handshake that was let in.
#[derive(Debug)]
pub(super) struct Handshake {
    connecting: Connecting,
    place: OwnedSemaphorePermit,
    _under_way: OwnedSemaphorePermit,
}

impl Admission {
    /// An address first proves that it receives (QUIC Retry, RFC 9000, section 8.1.2): so a stranger with a forged
    /// address gets less than he sent, and makes nothing be remembered (invariant 4). Where there is no place the
    /// newcomer is not answered, and asks again by himself.
    pub(super) fn admit(&self, incoming: Incoming) -> Option<Handshake> {
        if !incoming.remote_address_validated() {
            // Where it gets lost, the newcomer asks again.
            let _ = incoming.retry();
            return None;
        }
        let place = self.places.clone().try_acquire_owned();
        let (Ok(place), Ok(under_way)) = (place, self.under_way.clone().try_acquire_owned()) else {
            incoming.ignore();
            return None;
        };
        Some(Handshake { connecting: incoming.accept().ok()?, place, _under_way: under_way })
    }
}

impl Handshake {
    /// The connection, unless the other side fails or takes too long.
    pub(super) async fn finish(mut self) -> Option<Connection> {
        if let Ok(done) = timeout(PLACE, &mut self.connecting).await {
            return done.ok();
        }
        drop(self.place);
        timeout(HANDSHAKE - PLACE, self.connecting).await.ok()?.ok()
    }
}
