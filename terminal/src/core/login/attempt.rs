//! One relay from the dial to the end of its attachment, and what it costs to be attached to it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{LoginEpoch, RelayName};

use super::{ATTACH_TIMEOUT, PATIENCE};

/// Terminals at a relay that cost one µs, as on routes (`relay/src/core/routes.rs`).
const TERMINALS_PER_US: u64 = 16;
/// What a relay costs that drains, µs: more than any that does not.
const DRAINING_COST_US: u64 = 100_000_000;
/// A better relay costs at most this share of the other, in percent, ...
const BETTER_PERCENT: u64 = 70;
/// ... and this much less, µs: relays that are both near are equal.
const BETTER_US: u64 = 5_000;

/// Whether the cost `this` is so far below `other` that a change is worth it.
pub(super) fn is_better(this: u64, other: u64) -> bool {
    this.saturating_mul(100) < other.saturating_mul(BETTER_PERCENT)
        && this.saturating_add(BETTER_US) <= other
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Connecting.
    Attaching { begun: Instant },
    /// Said Welcome.
    Welcome { begun: Instant },
    /// Was sent its first Login.
    LoggingIn,
    /// Primary or standby.
    Standing { since: Instant },
    /// Was replaced, and stays until then.
    Leaving { until: Instant },
}

#[derive(Debug)]
pub(super) struct Try {
    pub(super) relay: RelayName,
    pub(super) stage: Stage,
    /// What the relay knows of it.
    pub(super) told: Option<(LoginEpoch, AttachmentRole)>,
    /// The relays that drain, as this one said last.
    pub(super) draining: Option<BTreeSet<RelayName>>,
    /// Takes longer than [`PATIENCE`].
    slow: bool,
    rtt_us: u64,
    terminals: u32,
}

impl Try {
    pub(super) fn new(relay: RelayName, now: Instant) -> Self {
        let stage = Stage::Attaching { begun: now };
        Self { relay, stage, told: None, draining: None, slow: false, rtt_us: 0, terminals: 0 }
    }

    /// Whether it never stood.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.stage, Stage::Standing { .. } | Stage::Leaving { .. })
    }

    pub(super) fn is_attaching(&self) -> bool {
        matches!(self.stage, Stage::Attaching { .. })
    }

    pub(super) fn is_welcome(&self) -> bool {
        matches!(self.stage, Stage::Welcome { .. })
    }

    /// Whether it leaves its place to another.
    pub(super) fn is_slow(&self) -> bool {
        self.slow
    }

    pub(super) fn welcomed(&mut self, rtt_us: u32, terminals: u32) {
        if let Stage::Attaching { begun } = self.stage {
            self.stage = Stage::Welcome { begun };
            (self.rtt_us, self.terminals) = (rtt_us.into(), terminals);
        }
    }

    /// The relay answered Login; whether that was the first.
    pub(super) fn logged_in(&mut self, told: (LoginEpoch, AttachmentRole), now: Instant) -> bool {
        self.told = Some(told);
        let first = self.stage == Stage::LoggingIn;
        if first {
            self.stage = Stage::Standing { since: now };
        }
        first
    }

    /// Another measurement of the round-trip time; it counts for a quarter.
    pub(super) fn measured(&mut self, rtt_us: u32) {
        self.rtt_us = (3 * self.rtt_us + u64::from(rtt_us)) / 4;
    }

    /// What it costs to be attached there, µs.
    pub(super) fn cost_us(&self, draining: bool) -> u64 {
        let draining = if draining { DRAINING_COST_US } else { 0 };
        self.rtt_us + u64::from(self.terminals) / TERMINALS_PER_US + draining
    }

    /// How long it stood.
    pub(super) fn stood(&self, now: Instant) -> Option<Duration> {
        match self.stage {
            Stage::Standing { since } => Some(now.saturating_duration_since(since)),
            _ => None,
        }
    }

    /// Time passes; whether it is over.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        match self.stage {
            Stage::Attaching { begun } | Stage::Welcome { begun } => {
                self.slow = begun + PATIENCE <= now;
                begun + ATTACH_TIMEOUT <= now
            }
            Stage::Leaving { until } => until <= now,
            Stage::LoggingIn | Stage::Standing { .. } => false,
        }
    }

    /// When [`Try::expire`] changes something.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Attaching { begun } | Stage::Welcome { begun } => {
                Some(begun + if self.slow { ATTACH_TIMEOUT } else { PATIENCE })
            }
            Stage::Leaving { until } => Some(until),
            Stage::LoggingIn | Stage::Standing { .. } => None,
        }
    }
}
