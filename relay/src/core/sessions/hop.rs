//! What a relay holds of a session, and of each of its paths.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tasuki_proto::{Label, RelayName, ServiceName, SessionId, TerminalId};

use super::budget::Charge;
use super::{Counters, Forwarding, Neighbour};
use crate::core::admin::{SessionState, SessionView};

/// A session with a path over this relay.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) caller: TerminalId,
    pub(super) callee: TerminalId,
    pub(super) service: ServiceName,
    /// The relays of the path that was accepted last.
    pub(super) names: Vec<RelayName>,
    /// Its paths here, and those of them that are accepted.
    pub(super) hops: u32,
    pub(super) active: u32,
    /// Whether one of its terminals is attached here.
    pub(super) edge: bool,
    /// Whether a terminal attached here said that its data goes directly.
    pub(super) direct: bool,
    /// Whether a path of it ever was.
    pub(super) accepted: bool,
    /// Over all its paths here.
    pub(super) counters: Arc<Counters>,
    pub(super) started_ms: u64,
    /// Whose places it takes.
    pub(super) charge: Charge,
}

impl Session {
    /// A session without a path.
    pub(super) fn new(
        charge: Charge,
        service: ServiceName,
        names: Vec<RelayName>,
        started_ms: u64,
    ) -> Self {
        let (caller, callee) = charge.pair.clone();
        Self {
            caller,
            callee,
            service,
            names,
            hops: 0,
            active: 0,
            edge: false,
            direct: false,
            accepted: false,
            counters: Arc::default(),
            started_ms,
            charge,
        }
    }

    pub(super) fn state(&self) -> SessionState {
        if self.active == 0 { SessionState::Calling } else { SessionState::Active }
    }

    pub(super) fn view(&self, id: &SessionId) -> SessionView {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SessionView {
            id: id.to_string(),
            caller: self.caller.clone(),
            callee: self.callee.clone(),
            service: self.service.clone(),
            state: self.state(),
            started_at: self.started_ms,
            ended_at: None,
            reason: None,
            route: self.names.clone(),
            path: if self.direct { "direct" } else { "relayed" }.to_owned(),
            bytes_to_callee: read(&self.counters.to_callee.bytes),
            packets_to_callee: read(&self.counters.to_callee.packets),
            bytes_to_caller: read(&self.counters.to_caller.bytes),
            packets_to_caller: read(&self.counters.to_caller.packets),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Calling {
        deadline: Instant,
    },
    /// Labels of frames towards the callee: as they arrive, and as they leave.
    Active {
        in_from_caller: Label,
        out_to_callee: Label,
    },
}

/// One path of a session at this relay.
#[derive(Debug)]
pub(super) struct Hop {
    pub(super) prev: Neighbour,
    pub(super) next: Neighbour,
    pub(super) names: Vec<RelayName>,
    /// Frames towards the caller leave with it.
    pub(super) out_to_caller: Label,
    /// Given to `next`: frames towards the caller arrive with it.
    pub(super) in_from_callee: Label,
    pub(super) state: State,
    pub(super) counters: Arc<Counters>,
}

impl Hop {
    pub(super) fn is_active(&self) -> bool {
        matches!(self.state, State::Active { .. })
    }

    /// What the switch does for it, both ways, once it is accepted.
    pub(super) fn forwardings(&self) -> Option<[Forwarding; 2]> {
        let State::Active { in_from_caller, out_to_callee } = self.state else { return None };
        Some([
            Forwarding {
                label: in_from_caller,
                from: self.prev,
                to: self.next,
                label_out: out_to_callee,
                counters: self.counters.clone(),
                to_callee: true,
            },
            Forwarding {
                label: self.in_from_callee,
                from: self.next,
                to: self.prev,
                label_out: self.out_to_caller,
                counters: self.counters.clone(),
                to_callee: false,
            },
        ])
    }
}
