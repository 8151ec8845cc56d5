//! What follows from the state of a log-in and the time: who is told what, who joins, who is tried.

use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::control::RelayContact;
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{RefusalCode, RelayName};

use super::attempt::{Stage, Try, is_better};
use super::{
    ATTACH_TIMEOUT, Asked, AttachId, CALM, DRAIN_JITTER, DWELL, Login, MEASURE, Output, SCOUT,
    STABLE, STAGGER, TRIES, TRIES_IN_ALL, drains,
};

/// Whether relays with an attachment drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draining {
    /// None does.
    No,
    /// They are left from then on.
    LeaveAt(Instant),
    /// They are left as soon as there is another.
    Leave,
}

impl Login {
    /// Everything that follows from the state and the time.
    pub(super) fn advance(&mut self, now: Instant) {
        self.expire(now);
        self.agree_on_draining();
        let is_good = |attempt: &Try| attempt.stood(now).is_some_and(|stood| stood >= STABLE);
        if self.taking_over && self.try_by_id.values().any(is_good) {
            self.taking_over = false;
        }
        self.notice_draining(now);
        self.exchange_roles(now);
        self.tell_standing(now);
        self.choose(now);
        self.try_relays(now);
    }

    /// What took too long failed; what was replaced goes.
    fn expire(&mut self, now: Instant) {
        let over = self.try_by_id.iter_mut().filter_map(|(&attach, attempt)| {
            let code = match attempt.stage {
                Stage::Leaving { .. } => RefusalCode::EndedByCaller,
                _ => RefusalCode::Silent,
            };
            attempt.expire(now).then_some((attach, code))
        });
        let mut over: Vec<_> = over.collect();
        let unanswered = self.asked.as_ref().filter(|asked| asked.deadline <= now);
        over.extend(unanswered.map(|asked| (asked.attach, RefusalCode::Silent)));
        for (attach, code) in over {
            self.outputs.push_back(Output::Detach { attach, code });
            self.handle_failure(attach, code.into(), Duration::ZERO, now);
        }
    }

    /// Who drains is what the relays say that are attached; while none is, what was said last.
    fn agree_on_draining(&mut self) {
        let said = self.try_by_id.values();
        let said: Vec<_> =
            said.filter_map(|attempt| Some((&attempt.relay, attempt.draining.as_ref()?))).collect();
        if !said.is_empty() {
            self.relays.set_draining(|relay| drains(relay, &said));
        }
    }

    fn cost(&self, attach: Option<AttachId>) -> Option<u64> {
        let attempt = self.try_by_id.get(&attach?)?;
        Some(attempt.cost_us(self.relays.is_draining(&attempt.relay)))
    }

    fn drains(&self, attach: Option<AttachId>) -> bool {
        attach
            .and_then(|attach| self.try_by_id.get(&attach))
            .is_some_and(|attempt| self.relays.is_draining(&attempt.relay))
    }

    fn notice_draining(&mut self, now: Instant) {
        let drains = self.drains(self.primary) || self.drains(self.standby);
        self.draining = match self.draining {
            _ if !drains => Draining::No,
            Draining::No => {
                let wait = DRAIN_JITTER.mul_f64(self.rng.random_range(0.0..1.0));
                Draining::LeaveAt(now + wait)
            }
            Draining::LeaveAt(at) if at <= now => Draining::Leave,
            waits => waits,
        };
    }

    /// Primary and standby change places where that is clearly better.
    fn exchange_roles(&mut self, now: Instant) {
        let (Some(primary), Some(standby)) = (self.cost(self.primary), self.cost(self.standby))
        else {
            return;
        };
        let drains = self.draining == Draining::Leave
            && self.drains(self.primary)
            && !self.drains(self.standby);
        let measured = self.measure_at.is_some_and(|at| at <= now);
        if measured {
            self.measure_at = Some(now + MEASURE);
        }
        let may = measured && self.dwell_until.is_none_or(|until| until <= now);
        if drains || (may && is_better(standby, primary)) {
            std::mem::swap(&mut self.primary, &mut self.standby);
            self.dwell_until = Some(now + DWELL);
        }
    }

    /// Tells the relays of standing attachments their epoch and role, one after the other, the primary's first.
    fn tell_standing(&mut self, now: Instant) {
        if self.asked.is_some() {
            return;
        }
        let roles =
            [(self.primary, AttachmentRole::Primary), (self.standby, AttachmentRole::Standby)];
        for (attach, role) in roles {
            let Some(attach) = attach else { continue };
            let told = self.try_by_id.get(&attach).and_then(|attempt| attempt.told);
            if told != Some((self.epoch, role)) {
                return self.ask(attach, role, now);
            }
        }
    }

    fn ask(&mut self, attach: AttachId, role: AttachmentRole, now: Instant) {
        let epoch = self.epoch;
        self.asked = Some(Asked { attach, epoch, role, deadline: now + ATTACH_TIMEOUT });
        self.outputs.push_back(Output::Login { attach, epoch, role });
    }

    /// When who said Welcome may join, having waited until `at`.
    pub(super) fn not_before_join(&self, at: Instant) -> Instant {
        self.calm_until.filter(|_| self.primary.is_some()).map_or(at, |until| at.max(until))
    }

    /// Logs in to the cheapest relay that said Welcome, when it is time and there is a place for it.
    fn choose(&mut self, now: Instant) {
        let Some(settle_at) = self.settle_at else { return };
        if self.asked.is_some() {
            return;
        }
        let waiting = self.try_by_id.iter().filter(|(_, attempt)| attempt.is_welcome());
        let cheapest = waiting.map(|(&attach, _)| (self.cost(Some(attach)), attach)).min();
        let Some((Some(cost), attach)) = cheapest else {
            self.settle_at = None;
            return;
        };
        let all_said =
            !self.try_by_id.values().any(Try::is_attaching) && self.ready(now).is_empty();
        let at = if all_said { now } else { settle_at };
        if self.not_before_join(at) > now {
            return;
        }
        let role =
            if self.primary.is_none() { AttachmentRole::Primary } else { AttachmentRole::Standby };
        let has_place = match self.cost(self.standby) {
            None => true,
            Some(standby) => is_better(cost, standby),
        };
        if !has_place {
            self.settle_at = None;
            return self.let_go(Try::is_welcome);
        }
        if self.primary.is_none() {
            self.begin_epoch();
        }
        if let Some(attempt) = self.try_by_id.get_mut(&attach) {
            attempt.stage = Stage::LoggingIn;
        }
        if self.primary.is_some() {
            self.calm_until = Some(now + CALM / 4);
        }
        self.ask(attach, role, now);
    }

    /// Whether a relay is needed: an attachment is missing, or one is to be left.
    fn needs_relay(&self) -> bool {
        self.primary.is_none()
            || self.standby.is_none()
            || (self.draining == Draining::Leave && self.drains(self.standby))
    }

    fn has_place_for_try(&self) -> bool {
        let open = || self.try_by_id.values().filter(|attempt| attempt.is_open());
        open().count() < TRIES_IN_ALL && open().filter(|attempt| !attempt.is_slow()).count() < TRIES
    }

    fn is_free(&self, relay: &RelayName) -> bool {
        self.try_by_id.values().all(|attempt| attempt.relay != *relay)
    }

    /// Relays that may be tried at `now`. Beside a standing primary only those that do not drain are of use.
    fn ready(&self, now: Instant) -> Vec<&RelayContact> {
        self.relays.ready(|relay| self.is_free(relay), self.primary.is_some(), now)
    }

    /// When the next relay is tried, as far as that is a matter of time alone.
    pub(super) fn next_attach(&self) -> Option<Instant> {
        if !self.needs_relay() || !self.has_place_for_try() {
            return None;
        }
        let ready = self.relays.next_ready(|relay| self.is_free(relay), self.primary.is_some())?;
        ready.max(self.next_try)
    }

    fn try_relays(&mut self, now: Instant) {
        let scouts = self.scout_at.is_some_and(|at| at <= now);
        if scouts {
            self.scout_at = Some(now + SCOUT.mul_f64(self.rng.random_range(0.75..1.25)));
        }
        let early = self.next_try.is_some_and(|at| at > now);
        let needs = self.needs_relay() && !early && self.has_place_for_try();
        if !needs && !scouts {
            return;
        }
        let pick = self.rng.random::<u32>() as usize;
        let ready = self.ready(now);
        let Some(relay) = ready.get(pick % ready.len().max(1)).copied().cloned() else { return };
        let attach = AttachId(self.next_id);
        self.next_id += 1;
        self.next_try = Some(now + STAGGER.mul_f64(self.rng.random_range(0.5..1.5)));
        self.try_by_id.insert(attach, Try::new(relay.name.clone(), now));
        self.outputs.push_back(Output::Attach { attach, relay });
    }
}
