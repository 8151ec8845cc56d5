//! What relays hand over and this terminal checks itself: log-ins of its own identity, and revocations.

use std::sync::PoisonError;
use std::time::Instant;

use tasuki_proto::attest::{Attestation, Presence};
use tasuki_proto::control::{self, ToRelay, Welcome};
use tasuki_proto::identity::{KeyFingerprint, PublicKey, connection_authority};
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{LoginEpoch, Refusal, RefusalCode, RelayId, limits};

use super::super::attachment::Order;
use super::Driver;
use crate::core::calls;
use crate::core::login::{self, AttachId, Claim};
use crate::core::revoked::Forged;

impl Driver {
    /// Signs a log-in and says it.
    pub(super) fn say_login(&mut self, attach: AttachId, epoch: LoginEpoch, role: AttachmentRole) {
        let Some(attachment) = self.attachments.get(&attach) else { return };
        let identity = self.settings.identity.get();
        let mesh = identity.mesh_id();
        // The relay of this name, which it proved; not what it says that its id is.
        let relay = RelayId::of(&mesh, &attachment.name);
        let instance = self.context.instance;
        let said = Presence { relay, epoch, instance, role };
        self.settings.kept_epoch.send_if_modified(|kept| {
            let is_higher = epoch > *kept;
            *kept = epoch.max(*kept);
            is_higher
        });
        let signature = said.sign(&mesh, self.sessions.me(), identity.key()).signature;
        self.say(attach, ToRelay::Login(control::Login { epoch, role, signature }));
    }

    /// Which log-in of this terminal a relay shows.
    pub(super) fn claim(&self, attach: AttachId, said: Option<Attestation>) -> Claim {
        let Some(said) = said else { return Claim::None };
        let identity = self.settings.identity.get();
        let (id, key) = (self.sessions.me().as_str(), PublicKey(identity.key().public()));
        if said.is_signed_by(&identity.mesh_id(), id.as_bytes(), &key) {
            Claim::Proven { epoch: said.presence.epoch, instance: said.presence.instance }
        } else {
            let relay = self.attachments.get(&attach).map(|attachment| attachment.name.as_str());
            tracing::warn!(
                relay,
                "the relay shows a log-in that this terminal's key did not sign; its attachment ends"
            );
            Claim::Forged
        }
    }

    /// Returns whether a relay says that it is the one that was dialled.
    pub(super) fn is_dialled(&self, attach: AttachId, welcome: &Welcome) -> bool {
        let mesh = self.settings.identity.get().mesh_id();
        self.attachments.get(&attach).is_some_and(|attachment| {
            attachment.name == welcome.name && welcome.relay == RelayId::of(&mesh, &attachment.name)
        })
    }

    /// A relay says what cannot be: its attachment ends, and it is left alone for a while.
    pub(super) fn distrust(&mut self, attach: AttachId, what: &str, now: Instant) {
        let Some(attachment) = self.forget(attach, RefusalCode::ProtocolError) else { return };
        tracing::warn!(relay = %attachment.name, "the relay {what}; its attachment ends");
        if attachment.orders.try_send(Order::Close(RefusalCode::ProtocolError)).is_ok() {
            self.leaving.insert(attach);
        }
        let refusal =
            Refusal::new(RefusalCode::PeerNotProven, format!("relay {} {what}", attachment.name));
        self.login.handle(login::Input::Lost { attach, refusal }, now);
    }

    /// Takes the relays of the mesh, once the relay has named all of them.
    pub(super) fn handle_relays(&mut self, attach: AttachId, said: control::Relays, now: Instant) {
        let Some(attachment) = self.attachments.get_mut(&attach) else { return };
        let fits = attachment.told.len() + said.relays.len() <= limits::RELAYS
            && said.relays.iter().all(|relay| {
                relay.addresses.len() <= limits::RELAY_ADDRESSES
                    && relay.addresses.iter().all(|a| a.len() <= limits::RELAY_ADDRESS_BYTES)
            });
        if !fits {
            return self.distrust(attach, "names more relays or addresses than there may be", now);
        }
        attachment.told.extend(said.relays);
        if said.more {
            return;
        }
        let told = std::mem::take(&mut attachment.told);
        self.login.handle(login::Input::Told(attach, told), now);
        let known = self.login.relays();
        self.settings.kept_contacts.send_if_modified(|kept| {
            let changed = *kept != known;
            *kept = known;
            changed
        });
    }

    pub(super) fn handle_revoked(
        &mut self,
        attach: AttachId,
        revoked: control::Revoked,
        now: Instant,
    ) {
        let identity = self.settings.identity.get();
        let connection = self.attachments.get(&attach).and_then(|one| one.connection.clone());
        let shown = || connection_authority(&connection?, &identity);
        let left_out = self.revoked.left_out();
        let taken = revoked
            .records()
            .map_err(|_| Forged)
            .and_then(|records| self.revoked.take(records, identity.authority_key(), shown));
        match taken {
            Ok(new) => self.end_revoked(new, now),
            Err(Forged) => {
                self.distrust(attach, "hands over revocations of somebody else", now);
            }
        }
        let left_out = self.revoked.left_out() - left_out;
        if left_out > 0 {
            tracing::warn!(left_out, "there is no room for more revocations");
        }
        if self.revoked.is_waiting() {
            // The renewed certificate shows the key of the later term.
            self.settings.identity.renew_early();
        }
    }

    /// The certificate was renewed, perhaps by the issuer of a later term.
    pub(super) fn handle_renewed(&mut self) {
        if self.revoked.is_waiting() {
            let own = self.settings.identity.get().authority_key();
            let new = self.revoked.handle_renewed(own);
            self.end_revoked(new, Instant::now());
        }
    }

    /// Ends the sessions with these keys, and refuses them from now on.
    fn end_revoked(&mut self, new: Vec<KeyFingerprint>, now: Instant) {
        if new.is_empty() {
            return;
        }
        for session in self.sessions.with_keys(&new) {
            let code = RefusalCode::Revoked;
            self.calls.handle(calls::Input::End { session, code }, now);
        }
        self.context.revoked.write().unwrap_or_else(PoisonError::into_inner).extend(new);
        self.sessions.set_revoked(self.revoked.keys());
    }
}
