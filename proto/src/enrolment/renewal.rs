//! Keeps a node's certificate from ending.

use std::time::Duration;

use super::{EnrolError, Enrolled, renew};
use crate::control::RelayContact;
use crate::dial::Dialler;
use crate::identity::{Clock, Identity, IdentityCell};

/// How often the clock is looked at; a machine that slept notices within this time.
const LOOK: Duration = Duration::from_secs(600);
/// How long to wait after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// The longest wait once the certificate has ended: until a renewal works the node is of no use.
const RETRY_LOCKED_OUT: Duration = Duration::from_secs(120);

/// Renews the certificate in `cell` at two thirds of its life, through any of the relays that `relays` gives, for
/// as long as it runs; also before, when [`IdentityCell::renew_early`] asks for it. `keep` writes what came of it to disk.
/// While the disk takes nothing it is used all the same, and kept later: a node with a full disk must not lock itself out.
///
/// `relays` gives groups: those of a later group are asked only when none of the earlier ones answers.
///
/// A refusal is logged and tried again like any other failure: an account can be made to stand again. A failure stays in
/// the cell ([`IdentityCell::renewal_trouble`]) until a renewal works.
pub async fn keep_renewed(
    cell: &IdentityCell,
    clock: &Clock,
    dialler: &Dialler,
    relays: impl Fn() -> Vec<Vec<RelayContact>>,
    keep: impl Fn(&Enrolled) -> Result<(), crate::identity::IdentityError>,
) {
    let (mut retry, mut early) = (RETRY.0, false);
    let mut unkept: Option<Enrolled> = None;
    loop {
        if unkept.take_if(|renewed| keep(renewed).is_ok()).is_some() {
            tracing::info!("the renewed certificate was kept");
        }
        let identity = cell.get();
        let left = due(&identity).saturating_sub(clock.now_secs());
        if left > 0 && !early {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(left).min(LOOK)) => {}
                () = cell.asked_early() => early = true,
            }
            continue;
        }
        let renewed = renew_by_groups(&identity, &relays(), dialler, clock).await;
        match renewed.and_then(|enrolled| keep_or_hold(&identity, enrolled, &keep, &mut unkept)) {
            // The registrar gave what is there already: its clock is behind, or this one ahead.
            Ok(renewed) if due(&renewed) <= clock.now_secs() => {
                let why = "the renewed certificate is due again: check the clocks of this machine \
                           and of the registrar";
                tracing::warn!("{why}");
                cell.renew(renewed);
                cell.renewal_failed(why.to_owned(), clock.now_secs());
                early = false;
                tokio::time::sleep(LOOK).await;
            }
            Ok(renewed) => {
                tracing::info!(until = renewed.not_after(), "the certificate was renewed");
                cell.renew(renewed);
                retry = RETRY.0;
                if std::mem::take(&mut early) {
                    // What is heard may be a lie: the registrar is not asked more often than this.
                    tokio::time::sleep(retry).await;
                }
            }
            Err(error) => {
                log(&error, &identity, clock);
                cell.renewal_failed(error.to_string(), clock.now_secs());
                tokio::time::sleep(retry).await;
                let is_locked_out = identity.not_after() < clock.now_secs();
                retry = (retry * 2).min(if is_locked_out { RETRY_LOCKED_OUT } else { RETRY.1 });
            }
        }
    }
}

/// Writes what was renewed to disk; where that fails `unkept` holds it for another try.
fn keep_or_hold(
    own: &Identity,
    enrolled: Enrolled,
    keep: impl Fn(&Enrolled) -> Result<(), crate::identity::IdentityError>,
    unkept: &mut Option<Enrolled>,
) -> Result<Identity, EnrolError> {
    let Err(error) = keep(&enrolled) else { return Ok(enrolled.identity) };
    tracing::warn!(%error, "the renewed certificate could not be kept; it is used, and kept later");
    let renewed = own.renewed(enrolled.identity.chain().to_vec())?;
    *unkept = Some(enrolled);
    Ok(renewed)
}

async fn renew_by_groups(
    identity: &Identity,
    groups: &[Vec<RelayContact>],
    dialler: &Dialler,
    clock: &Clock,
) -> Result<Enrolled, EnrolError> {
    let mut last = None;
    for group in groups {
        if group.is_empty() {
            continue;
        }
        match renew(identity, group, dialler, clock).await {
            Ok(enrolled) => return Ok(enrolled),
            Err(error) => {
                tracing::debug!(%error, "no renewal through this group of relays");
                // The first failure says more: the last group is the relay itself.
                last.get_or_insert(error);
            }
        }
    }
    match last {
        Some(error) => Err(error),
        None => renew(identity, &[], dialler, clock).await,
    }
}

/// Two thirds of the life, and up to a twelfth more, by the key: a thousand machines enrolled on one morning do
/// not all come back on one morning.
fn due(identity: &Identity) -> u64 {
    let life = identity.not_after().saturating_sub(identity.not_before());
    let spread = u64::from(identity.fingerprint().0[0]) * (life / 12) / 256;
    identity.renew_at() + spread
}

fn log(error: &EnrolError, identity: &Identity, clock: &Clock) {
    match identity.not_after().saturating_sub(clock.now_secs()) {
        0 => tracing::error!(
            %error,
            "the certificate has ended and could not be renewed: this node is locked out until a renewal works; it is tried on"
        ),
        left => tracing::warn!(%error, seconds_left = left, "the certificate could not be renewed"),
    }
}
