//! How often direct paths were tried, and what came of it.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use tasuki_proto::path::NatKind;

use super::direct::Direct;

/// Since the agent's start. An attempt ends in a success or in a failure; a few are under way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct DirectCounts {
    /// Goes over the addresses of a peer, while the session had no direct path.
    pub attempts: u64,
    /// Goes that found one.
    pub successes: u64,
    /// Goes that found none, and those that did not begin.
    pub failures: DirectFailures,
    /// Direct paths that stood and went quiet.
    pub lost: u64,
    /// Probes to addresses that never answered which were not sent, since too many were.
    pub withheld: u64,
    /// What came of goes, by the kinds of NAT in front of this terminal and of its peer.
    #[serde(serialize_with = "as_list")]
    pub by_nat: BTreeMap<(NatKind, NatKind), DirectOutcomes>,
}

/// What came of goes over the addresses of peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DirectOutcomes {
    /// One answered.
    pub successes: u64,
    /// None did.
    pub failures: u64,
}

fn as_list<S: Serializer>(
    by_nat: &BTreeMap<(NatKind, NatKind), DirectOutcomes>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Row {
        nat: NatKind,
        peer_nat: NatKind,
        #[serde(flatten)]
        outcomes: DirectOutcomes,
    }
    let rows = by_nat.iter();
    serializer.collect_seq(rows.map(|(&(nat, peer_nat), &outcomes)| Row {
        nat,
        peer_nat,
        outcomes,
    }))
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
    /// A go is over.
    pub(super) fn went(&mut self, nats: (NatKind, NatKind), found: bool) {
        let outcomes = self.by_nat.entry(nats).or_default();
        if found {
            self.successes += 1;
            outcomes.successes += 1;
        } else {
            self.failures.no_answer += 1;
            outcomes.failures += 1;
        }
    }

    /// A session is over.
    pub(super) fn over(&mut self, direct: &Direct) {
        self.failures.session_over += u64::from(direct.trying);
    }
}
