//! A relay that is left: it takes no new terminals, says so by gossip, and may end when nobody needs it any more.
//!
//! Nobody is sent away. Terminals hear that it drains and attach elsewhere, each at a time of its own; their sessions, and
//! those of others for which this relay is in the middle, move to other paths before the old ones are given up. What is
//! left at the deadline notices the end at once, since every connection is closed with a reason.

use std::time::{Duration, Instant};

use tasuki_proto::{Refusal, RefusalCode, limits};

use super::{Output, Relay};

impl Relay {
    /// Takes no new terminals, and ends as [`super::admin::AdminRequest::Drain`] says.
    pub(super) fn drain(&mut self, end_within: Option<Duration>, now: Instant) {
        self.login.set_draining(true);
        // Who tells the process to end has the last word.
        if let Some(within) = end_within.filter(|_| !self.stopping) {
            self.ends_at = Some(now + within.min(limits::DRAIN_TIME));
        }
        let (terminals, sessions) = (self.login.len(), self.sessions.len());
        tracing::info!(terminals, sessions, ends_within = ?end_within, "drains");
    }

    /// Takes terminals again, and stays.
    ///
    /// # Errors
    /// When the process was told to end.
    pub(super) fn undrain(&mut self) -> Result<(), Refusal> {
        if self.stopping {
            return Err(Refusal::new(RefusalCode::ShuttingDown, "the process was told to end"));
        }
        self.login.set_draining(false);
        tracing::info!("drains no more");
        self.ends_at = None;
        Ok(())
    }

    /// Drains for a moment and ends; at once where there is no other relay to go to.
    pub(super) fn stop(&mut self, within: Duration, now: Instant) {
        let others = self.routes.reachable().len() > 1;
        self.drain(Some(if others { within } else { Duration::ZERO }), now);
        self.stopping = true;
    }

    /// Ends when nobody is left, or the time is over.
    pub(super) fn end_when_left(&mut self, now: Instant) {
        let Some(at) = self.ends_at else { return };
        let left = self.login.is_empty() && self.sessions.is_empty();
        if left || at <= now {
            self.ends_at = None;
            let (terminals, sessions) = (self.login.len(), self.sessions.len());
            tracing::info!(terminals, sessions, "drained");
            self.outputs.push_back(Output::End);
        }
    }
}
