//! Which relay to attach to, when to try again (architecture 6).

use std::collections::BTreeSet;
use std::time::Instant;

use rand::rngs::SmallRng;
use tasuki_proto::control::RelayContact;
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{LoginEpoch, Refusal, RefusalCode, RelayName};

/// One try to attach and, where it works, the attachment; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachId(pub u64);

/// Which relays may be attached to (`--relays`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayChoice {
    /// All.
    Auto,
    /// These; they need not exist yet.
    Names(BTreeSet<RelayName>),
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The time of [`Login::poll_timeout`] has come.
    Timeout,
    /// The relays of the mesh: from disk at the start, later from [`tasuki_proto::control::Relays`].
    Contacts(Vec<RelayContact>),
    /// The relay answered Hello.
    Welcome {
        /// Which try.
        attach: AttachId,
        /// The highest log-in epoch that it knows of this terminal.
        epoch: LoginEpoch,
        /// The process that this epoch belongs to; 0: none.
        instance: u64,
    },
    /// The relay answered Login.
    LoggedIn(AttachId),
    /// The relay refused, or ended the attachment with a reason. The connection is of no further use.
    Refused {
        /// Which try.
        attach: AttachId,
        /// Why.
        refusal: Refusal,
        /// The relay's hint when to come back, ms; 0: none.
        retry_after_ms: u32,
    },
    /// The relay was not reached, or the connection broke.
    Lost {
        /// Which try.
        attach: AttachId,
        /// Why.
        refusal: Refusal,
    },
    /// The local user wants to be logged in.
    Login,
    /// The local user wants to be logged out (C11).
    Logout,
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Connect to this relay (any of its addresses) and say Hello.
    Attach {
        /// Comes back with the result.
        attach: AttachId,
        /// The relay.
        relay: RelayContact,
    },
    /// Say Login.
    Login {
        /// On this connection.
        attach: AttachId,
        /// With this epoch.
        epoch: LoginEpoch,
        /// As this.
        role: AttachmentRole,
    },
    /// Close the connection and expect nothing of it. With [`RefusalCode::LoggedOut`] say Logout before.
    Detach {
        /// Which.
        attach: AttachId,
        /// Why.
        code: RefusalCode,
    },
    /// The state changed.
    State(State),
}

/// Where the agent stands, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// By the user's wish.
    LoggedOut,
    /// Trying; the last thing that went wrong.
    Connecting(Option<Refusal>),
    /// Attached.
    LoggedIn {
        /// The primary attachment.
        attach: AttachId,
        /// To this relay.
        relay: RelayName,
    },
    /// Another process with this identity took over; nothing is tried until the user says `login`.
    Parked(Refusal),
}

/// The log-in of one terminal.
#[derive(Debug)]
pub struct Login {
    instance: u64,
    choice: RelayChoice,
    rng: SmallRng,
}

impl Login {
    /// Not logged in and not trying: give it [`Input::Contacts`] and [`Input::Login`]. `instance` is chosen at random
    /// when the process starts and is not 0.
    pub fn new(instance: u64, choice: RelayChoice, rng: SmallRng) -> Self {
        Self { instance, choice, rng }
    }

    /// Takes in what happened; drain [`Login::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        let _ = (input, now, &self.rng, self.instance, &self.choice);
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        None
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}
