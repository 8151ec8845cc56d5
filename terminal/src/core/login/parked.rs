//! Another process with this identity took over: this one waits until that one is gone.
//!
//! A parked process holds no attachment. It looks now and then, and ever more seldom: it says Hello to a relay, hears which
//! log-in of this terminal the relay knows, and closes the connection. Once `LOOKS` relays in a row, different ones where
//! it can, know of no other process, it logs in again, and takes over from nobody: should another process be there after
//! all, it is parked again. So the newest process wins, and nobody stays away because of one that was tried out and
//! switched off.

use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::{Refusal, RefusalCode, RelayName};

use super::attempt::Try;
use super::{AttachId, Claim, Login, Output, is_hopeless};

/// From parking to the first look, on average; each further one comes after twice the time.
pub const LOOK_MIN: Duration = Duration::from_secs(15);
/// The longest time between two looks, on average.
pub const LOOK_MAX: Duration = Duration::from_secs(120);
/// From a look that found nobody to the one that confirms it.
pub const LOOK_AGAIN: Duration = Duration::from_secs(8);
/// Looks in a row that find nobody before this process comes back.
const LOOKS: u32 = 2;

/// A process that was superseded.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) why: Refusal,
    wait: Duration,
    look_at: Instant,
    looking: Option<AttachId>,
    /// Where it looked last.
    last: Option<RelayName>,
    /// Looks in a row that found nobody.
    absent: u32,
}

impl Login {
    /// Gives way to another process.
    pub(super) fn park(&mut self, now: Instant) {
        let detail = "this agent comes back by itself once the other is gone";
        let why = Refusal::new(RefusalCode::Superseded, detail);
        let look_at = now + LOOK_MIN.mul_f64(self.rng.random_range(0.75..1.25));
        let (wait, looking, last, absent) = (LOOK_MIN, None, None, 0);
        self.parked = Some(Parked { why, wait, look_at, looking, last, absent });
        self.detach_all(RefusalCode::Superseded);
    }

    /// When a parked process has something to do.
    pub(super) fn poll_look(&self) -> Option<Instant> {
        let parked = self.parked.as_ref().filter(|_| self.wanted)?;
        let look = parked.looking.is_none().then_some(parked.look_at);
        self.try_by_id.values().filter_map(Try::poll_timeout).chain(look).min()
    }

    /// Looks when it is time, at a relay where it did not look last.
    pub(super) fn look(&mut self, now: Instant) {
        let late = self
            .try_by_id
            .iter_mut()
            .find_map(|(&attach, attempt)| attempt.expire(now).then_some(attach));
        if let Some(attach) = late {
            self.outputs.push_back(Output::Detach { attach, code: RefusalCode::Silent });
            self.look_failed(attach, RefusalCode::Silent, now);
        }
        let Some(parked) = &mut self.parked else { return };
        if parked.looking.is_some() || parked.look_at > now {
            return;
        }
        let ready = self.relays.ready(|relay| Some(relay) != parked.last.as_ref(), false, now);
        let ready = if ready.is_empty() { self.relays.ready(|_| true, false, now) } else { ready };
        let pick = self.rng.random::<u32>() as usize;
        let Some(relay) = ready.get(pick % ready.len().max(1)).copied().cloned() else {
            parked.look_at = now + LOOK_AGAIN;
            return;
        };
        let attach = AttachId(self.next_id);
        self.next_id += 1;
        parked.looking = Some(attach);
        parked.last = Some(relay.name.clone());
        self.try_by_id.insert(attach, Try::new(relay.name.clone(), now));
        self.outputs.push_back(Output::Attach { attach, relay });
    }

    /// A relay said which log-in it knows.
    pub(super) fn looked(&mut self, attach: AttachId, claim: Claim, now: Instant) {
        if self.parked.as_ref().is_none_or(|parked| parked.looking != Some(attach)) {
            return;
        }
        self.outputs.push_back(Output::Detach { attach, code: RefusalCode::EndedByCaller });
        let is_there = match claim {
            Claim::Forged => return self.look_failed(attach, RefusalCode::PeerNotProven, now),
            Claim::None => false,
            Claim::Proven { epoch, instance } => {
                self.seen = self.seen.max(epoch);
                instance != self.instance && epoch >= self.epoch
            }
        };
        self.try_by_id.remove(&attach);
        let Some(parked) = &mut self.parked else { return };
        parked.looking = None;
        if is_there {
            parked.absent = 0;
            parked.wait = (parked.wait * 2).min(LOOK_MAX);
            parked.look_at = now + parked.wait.mul_f64(self.rng.random_range(0.75..1.25));
            return;
        }
        parked.absent += 1;
        parked.look_at = now + LOOK_AGAIN.mul_f64(self.rng.random_range(0.75..1.25));
        if parked.absent >= LOOKS {
            self.parked = None;
            (self.trouble, self.next_try) = (None, None);
        }
    }

    /// A look came to nothing: that says nothing of the other process.
    pub(super) fn look_failed(&mut self, attach: AttachId, code: RefusalCode, now: Instant) {
        let Some(attempt) = self.try_by_id.remove(&attach) else { return };
        let jitter = self.rng.random_range(0.75..1.25);
        let least = if is_hopeless(code) { super::BACKOFF_HOPELESS } else { Duration::ZERO };
        self.relays.failed(&attempt.relay, false, least, jitter, now);
        if let Some(parked) = &mut self.parked
            && parked.looking == Some(attach)
        {
            parked.looking = None;
            parked.look_at = now + LOOK_AGAIN.mul_f64(jitter);
        }
    }
}
