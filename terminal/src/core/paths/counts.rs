//! How often direct paths were tried, and what came of it.

use serde::Serialize;

use super::direct::Direct;

/// Since the agent's start. An attempt ends in a success or in a failure; a few are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DirectCounts {
    /// Goes over the addresses of a peer, while the session had no direct path.
    pub attempts: u64,
    /// Goes that found one.
    pub successes: u64,
    /// Goes that found none, and those that did not begin.
    pub failures: DirectFailures,
    /// Direct paths that stood and went quiet.
    pub lost: u64,
}

/// Why there was no direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DirectFailures {
    /// No address of the peer answered.
    pub no_answer: u64,
    /// The session ended first.
    pub session_over: u64,
    /// Not begun: no address of the peer can be tried from here.
    pub no_address: u64,
    /// Not begun: the peer takes no direct path.
    pub peer_never: u64,
}

impl DirectCounts {
    /// A session is over.
    pub(super) fn over(&mut self, direct: &Direct) {
        self.failures.session_over += u64::from(direct.trying);
    }
}
