//! Lets handshakes begin at an endpoint, as [`crate::core::admission`] decides.
#![allow(clippy::disallowed_methods, reason = "the decision is told the time")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use quinn::{Connecting, Connection, Incoming};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::core::admission::{self, Decision, HANDSHAKE, Number, PerAddress, Reason};

/// Lets handshakes begin at one endpoint.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    core: admission::Admission,
    /// Handshakes under way; who is sent a word gives up.
    waiting: HashMap<Number, oneshot::Sender<()>>,
}

/// Counts as one of its address' connections for as long as it lives.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Admission,
    number: Number,
}

/// A handshake that was let in.
#[derive(Debug)]
pub(super) struct Handshake {
    connecting: Connecting,
    admitted: Admitted,
    give_up: oneshot::Receiver<()>,
}

impl Admission {
    /// Nobody is there.
    pub fn new(per_address: PerAddress) -> Self {
        let core = admission::Admission::new(per_address);
        Self(Arc::new(Mutex::new(State { core, waiting: HashMap::new() })))
    }

    /// What one address may take from here on; what it has taken stays.
    pub fn set_per_address(&self, per_address: PerAddress) {
        self.lock().core.set_per_address(per_address);
    }

    /// How many handshakes are under way, and how many connections there are with them.
    pub fn len(&self) -> (usize, usize) {
        self.lock().core.len()
    }

    /// What was refused since the start, by reason.
    pub fn refused(&self) -> Vec<(Reason, u64)> {
        self.lock().core.refused().collect()
    }

    /// An address first proves that it receives (QUIC Retry, RFC 9000, section 8.1.2): so a stranger with a forged
    /// address gets less than he sent, makes nothing be remembered (invariant 4), and takes nothing from the address
    /// that he forged.
    pub(super) fn admit(&self, incoming: Incoming) -> Option<Handshake> {
        if !incoming.remote_address_validated() {
            // Where it gets lost, the newcomer asks again.
            let _ = incoming.retry();
            return None;
        }
        let (admitted, give_up) = match self.decide(incoming.remote_address()) {
            Ok(begun) => begun,
            Err(Decision::Refuse(_)) => {
                incoming.refuse();
                return None;
            }
            Err(_) => {
                incoming.ignore();
                return None;
            }
        };
        Some(Handshake { connecting: incoming.accept().ok()?, admitted, give_up })
    }

    fn decide(&self, from: SocketAddr) -> Result<(Admitted, oneshot::Receiver<()>), Decision> {
        let mut state = self.lock();
        match state.core.decide(from.ip().into(), Instant::now()) {
            Decision::Begin(number, instead) => {
                let other = instead.and_then(|other| state.waiting.remove(&other));
                let (ask, give_up) = oneshot::channel();
                state.waiting.insert(number, ask);
                drop(state);
                if let Some(other) = other {
                    let _ = other.send(());
                }
                Ok((Admitted { admission: self.clone(), number }, give_up))
            }
            refused => Err(refused),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admitted {
    fn over(&self, in_time: bool) {
        let mut state = self.admission.lock();
        state.waiting.remove(&self.number);
        match in_time {
            true => state.core.handle_over(self.number),
            false => state.core.handle_too_long(self.number),
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.waiting.remove(&self.number);
        state.core.handle_closed(self.number);
    }
}

impl Handshake {
    /// The connection, unless the other side fails, takes too long or makes room for another; and what counts it,
    /// which is to be kept as long as the connection.
    pub(super) async fn finish(self) -> Option<(Connection, Admitted)> {
        let Self { connecting, admitted, give_up } = self;
        tokio::select! {
            done = timeout(HANDSHAKE, connecting) => {
                admitted.over(done.is_ok());
                Some((done.ok()?.ok()?, admitted))
            }
            Ok(()) = give_up => None,
        }
    }
}
