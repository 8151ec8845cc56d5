//! What follows when a try fails, or an attachment is lost.

use std::time::{Duration, Instant};

use rand::Rng;
use tasuki_proto::limits;
use tasuki_proto::{LoginEpoch, Refusal, RefusalCode};

use super::attempt::Stage;
use super::{AttachId, BACKOFF_HOPELESS, CALM, Claim, HASTE, Login, STABLE};

impl Login {
    /// A relay says that another log-in took over. This process gives way to another one that this terminal's own key
    /// signed for. An attachment of an older epoch of this process is cut for its own sake; and without a proof the relay
    /// has failed, and nobody else.
    pub(super) fn handle_superseded(
        &mut self,
        attach: AttachId,
        refusal: Refusal,
        by: Claim,
        now: Instant,
    ) {
        let Some(attempt) = self.try_by_id.get(&attach) else { return };
        let told = attempt.told.map(|(epoch, _)| epoch);
        let asked = self.asked.as_ref().filter(|asked| asked.attach == attach);
        let own = told.or(asked.map(|asked| asked.epoch)).unwrap_or(self.epoch);
        match by {
            Claim::Proven { epoch, instance } if instance != self.instance && epoch >= own => {
                // The relay has ended it.
                self.try_by_id.remove(&attach);
                self.seen = self.seen.max(epoch.min(LoginEpoch(limits::EPOCH_MOST)));
                self.park(now);
            }
            Claim::Proven { instance, .. } if instance == self.instance => {
                self.handle_failure(attach, refusal, Duration::ZERO, now);
            }
            _ => {
                let detail = format!("{} shows no newer log-in", attempt.relay);
                let refusal = Refusal::new(RefusalCode::ProtocolError, detail);
                self.handle_failure(attach, refusal, BACKOFF_HOPELESS, now);
            }
        }
    }

    pub(super) fn handle_failure(
        &mut self,
        attach: AttachId,
        refusal: Refusal,
        hint: Duration,
        now: Instant,
    ) {
        let Some(attempt) = self.try_by_id.remove(&attach) else { return };
        self.asked.take_if(|asked| asked.attach == attach);
        let least = if is_hopeless(refusal.code) { BACKOFF_HOPELESS } else { Duration::ZERO };
        // The hint is the relay's: cut, so that nothing overflows.
        let wait = hint.min(limits::PEER_DELAY).max(least);
        let jitter = self.rng.random_range(0.75..1.25);
        if matches!(attempt.stage, Stage::Leaving { .. }) {
            return;
        }
        let stood = attempt.stood(now);
        self.relays.failed(
            &attempt.relay,
            stood.is_some_and(|stood| stood >= STABLE),
            wait,
            jitter,
            now,
        );
        self.trouble = Some(refusal);
        if stood.is_some_and(|stood| stood >= STABLE) {
            self.taking_over = false;
        }
        if stood.is_some() {
            self.handle_loss(attach, now);
        }
    }

    /// One of the set is gone.
    fn handle_loss(&mut self, attach: AttachId, now: Instant) {
        if self.primary == Some(attach) {
            self.primary = self.standby.take();
        } else {
            self.standby = None;
        }
        (self.measure_at, self.scout_at) = (None, None);
        // All terminals of a relay lose it at the same moment.
        if self.primary.is_none() {
            self.next_try = Some(now + HASTE.mul_f64(self.rng.random_range(0.0..1.0)));
            if self.asked.is_some() {
                self.begin_epoch();
            }
            return;
        }
        let calm = now + CALM.mul_f64(self.rng.random_range(0.25..1.0));
        (self.next_try, self.calm_until) = (Some(calm), Some(calm));
        // What is about to join the old epoch would be cut.
        self.let_go(|attempt| attempt.stage == Stage::LoggingIn);
        self.begin_epoch();
    }

    /// All that stand, and who joins them, get an epoch above all that were used or seen.
    pub(super) fn begin_epoch(&mut self) {
        // A welcome never says u64::MAX, so only this process could get there, one loss at a time.
        self.epoch = LoginEpoch(self.epoch.max(self.seen).0.saturating_add(1));
    }
}

/// Whether the same refusal will come until somebody does something.
pub(super) fn is_hopeless(code: RefusalCode) -> bool {
    matches!(
        code,
        RefusalCode::UnknownTerminal
            | RefusalCode::WrongMesh
            | RefusalCode::Revoked
            | RefusalCode::WrongRole
            | RefusalCode::WrongName
            | RefusalCode::CertificateMissing
            | RefusalCode::BadCertificate
            | RefusalCode::ProtocolTooOld
            | RefusalCode::PeerNotProven
    )
}
