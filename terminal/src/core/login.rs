//! Which relay to attach to, when to try again (C1, architecture 6).
//!
//! **Tries.** Relays are tried one [`STAGGER`] after the other, at most [`TRIES`] at once, in an order that prefers
//! those that do not drain and failed least, at random among equals. The first that says Welcome is logged in to; when
//! it says LoggedIn the others are dropped. A try that takes longer than [`ATTACH_TIMEOUT`] failed.
//!
//! **Back-off.** Each relay has its own: it doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`] with each failure, is
//! never shorter than the relay's hint, has jitter, and begins anew only after an attachment that lasted
//! [`STABLE`]; so a relay that accepts and then drops is not hammered. Refusals that trying cannot cure (a revoked
//! key, say) wait [`BACKOFF_HOPELESS`]. It is tried for ever.
//!
//! **Epoch.** A log-in uses one more than the highest epoch that this process used or the relay knows. Whoever was told
//! to log in last is active: the older process is told `superseded`, or sees at its next Welcome that another process has
//! an epoch above its own, and is parked until its user says `login`. So two processes with one identity never fight.
//!
//! **Draining.** A relay that drains takes no attachment that another could have; one that stands there stays until the
//! relay ends it. This version keeps one attachment, the primary.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use tasuki_proto::control::RelayContact;
use tasuki_proto::limits;
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

/// From one try to the next while none said Welcome.
pub const STAGGER: Duration = Duration::from_millis(400);
/// Tries at once.
pub const TRIES: usize = 3;
/// How long a try may take. QUIC sends its first packet at 0, 1, 3 and 7 s, so a relay that comes back is met within
/// four seconds of that.
pub const ATTACH_TIMEOUT: Duration = Duration::from_millis(7_500);
/// The first wait for the same relay.
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest, where the relay gives no longer hint.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The wait after a refusal that trying cannot cure.
pub const BACKOFF_HOPELESS: Duration = Duration::from_secs(60);
/// How long an attachment lasts until its relay counts as good.
pub const STABLE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Relay {
    contact: RelayContact,
    /// Failures since it was last good.
    failures: u32,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Connecting.
    Attaching,
    /// Said Welcome; another try is ahead of it.
    Welcome,
    /// Was sent Login.
    LoggingIn,
    /// Said LoggedIn, at this time.
    LoggedIn(Instant),
}

#[derive(Debug)]
struct Try {
    relay: RelayName,
    stage: Stage,
    deadline: Instant,
}

/// The log-in of one terminal.
#[derive(Debug)]
pub struct Login {
    instance: u64,
    choice: RelayChoice,
    rng: SmallRng,
    /// Whether the user wants to be logged in.
    wanted: bool,
    /// Told to log in and not logged in since: takes over from whoever is.
    taking_over: bool,
    parked: Option<Refusal>,
    trouble: Option<Refusal>,
    /// The highest that this process used or saw.
    epoch: LoginEpoch,
    relay_by_name: BTreeMap<RelayName, Relay>,
    try_by_id: BTreeMap<AttachId, Try>,
    next_id: u64,
    next_try: Option<Instant>,
    shown: State,
    outputs: VecDeque<Output>,
}

impl Login {
    /// Not logged in and not trying: give it [`Input::Contacts`] and [`Input::Login`]. `instance` is chosen at random
    /// when the process starts and is not 0.
    pub fn new(instance: u64, choice: RelayChoice, rng: SmallRng) -> Self {
        Self {
            instance,
            choice,
            rng,
            wanted: false,
            taking_over: false,
            parked: None,
            trouble: None,
            epoch: LoginEpoch(0),
            relay_by_name: BTreeMap::new(),
            try_by_id: BTreeMap::new(),
            next_id: 0,
            next_try: None,
            shown: State::LoggedOut,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened; drain [`Login::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Timeout => {}
            Input::Contacts(contacts) => self.handle_contacts(contacts),
            Input::Welcome { attach, epoch, instance } => {
                self.handle_welcome(attach, epoch, instance, now);
            }
            Input::LoggedIn(attach) => self.handle_logged_in(attach, now),
            Input::Refused { attach, refusal, retry_after_ms } => {
                let hint = Duration::from_millis(retry_after_ms.into());
                self.handle_failure(attach, refusal, hint, now);
            }
            Input::Lost { attach, refusal } => {
                self.handle_failure(attach, refusal, Duration::ZERO, now);
            }
            Input::Login => self.handle_login(),
            Input::Logout => {
                self.wanted = false;
                self.parked = None;
                self.detach_all(RefusalCode::LoggedOut);
            }
        }
        self.try_relays(now);
        self.show();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_trying() {
            return None;
        }
        let deadlines = self.try_by_id.values().map(|t| t.deadline);
        let next = self.candidates().map(|relay| relay.not_before.max(self.next_try));
        let next = next.flatten().min().filter(|_| self.try_by_id.len() < TRIES);
        deadlines.chain(next).min()
    }

    /// Where the agent stands.
    pub fn state(&self) -> &State {
        &self.shown
    }

    /// The epoch of the present log-in, or of the last one.
    pub fn epoch(&self) -> LoginEpoch {
        self.epoch
    }

    fn handle_contacts(&mut self, contacts: Vec<RelayContact>) {
        // A mesh without relays cannot have said so.
        if contacts.is_empty() {
            return;
        }
        let mut before = std::mem::take(&mut self.relay_by_name);
        for contact in contacts {
            let name = contact.name.clone();
            let known = before.remove(&name).filter(|r| r.contact.addresses == contact.addresses);
            let (failures, not_before) =
                known.map_or((0, None), |relay| (relay.failures, relay.not_before));
            self.relay_by_name.insert(name, Relay { contact, failures, not_before });
        }
    }

    fn handle_login(&mut self) {
        if !self.wanted || self.parked.is_some() {
            self.wanted = true;
            self.taking_over = true;
            self.parked = None;
            self.trouble = None;
            for relay in self.relay_by_name.values_mut() {
                relay.not_before = None;
            }
            self.next_try = None;
        }
    }

    fn handle_welcome(&mut self, attach: AttachId, epoch: LoginEpoch, instance: u64, now: Instant) {
        let Some(attempt) = self.try_by_id.get_mut(&attach) else { return };
        if attempt.stage != Stage::Attaching {
            return;
        }
        if epoch.0 == u64::MAX {
            // No terminal ever gets there: the relay lies, and would lock this terminal out.
            self.outputs.push_back(Output::Detach { attach, code: RefusalCode::ProtocolError });
            let refusal = RefusalCode::ProtocolError.into();
            return self.handle_failure(attach, refusal, BACKOFF_HOPELESS, now);
        }
        attempt.stage = Stage::Welcome;
        let foreign = instance != 0 && instance != self.instance;
        if foreign && !self.taking_over && epoch > self.epoch {
            return self.park(RefusalCode::Superseded.into());
        }
        self.epoch = self.epoch.max(epoch);
        self.log_in_next();
    }

    /// Sends Login on the oldest try that said Welcome, unless one was sent.
    fn log_in_next(&mut self) {
        if self.try_by_id.values().any(|t| t.stage == Stage::LoggingIn) {
            return;
        }
        let waiting = self.try_by_id.iter_mut().find(|(_, t)| t.stage == Stage::Welcome);
        if let Some((&attach, attempt)) = waiting {
            attempt.stage = Stage::LoggingIn;
            // A welcome never says u64::MAX, so only this process could get there, one log-in at a time.
            self.epoch = LoginEpoch(self.epoch.0.saturating_add(1));
            let (epoch, role) = (self.epoch, AttachmentRole::Primary);
            self.outputs.push_back(Output::Login { attach, epoch, role });
        }
    }

    fn handle_logged_in(&mut self, attach: AttachId, now: Instant) {
        let Some(attempt) = self.try_by_id.get_mut(&attach) else { return };
        if attempt.stage != Stage::LoggingIn {
            return;
        }
        attempt.stage = Stage::LoggedIn(now);
        self.taking_over = false;
        self.trouble = None;
        let others: Vec<_> = self.try_by_id.keys().copied().filter(|id| *id != attach).collect();
        for attach in others {
            self.try_by_id.remove(&attach);
            let code = RefusalCode::EndedByCaller;
            self.outputs.push_back(Output::Detach { attach, code });
        }
    }

    fn handle_failure(&mut self, attach: AttachId, refusal: Refusal, hint: Duration, now: Instant) {
        let Some(attempt) = self.try_by_id.remove(&attach) else { return };
        if refusal.code == RefusalCode::Superseded {
            return self.park(refusal);
        }
        let lasted = match attempt.stage {
            Stage::LoggedIn(since) => now.saturating_duration_since(since),
            _ => Duration::ZERO,
        };
        if let Some(relay) = self.relay_by_name.get_mut(&attempt.relay) {
            relay.failures = if lasted >= STABLE { 0 } else { relay.failures.saturating_add(1) };
            let doubled = BACKOFF_MIN.saturating_mul(1 << relay.failures.min(8));
            let least = if is_hopeless(refusal.code) { BACKOFF_HOPELESS } else { Duration::ZERO };
            // The hint is the relay's: cut, so that nothing overflows.
            let wait = doubled.min(BACKOFF_MAX).max(hint.min(limits::PEER_DELAY)).max(least);
            relay.not_before = Some(now + wait.mul_f64(self.rng.random_range(0.75..1.25)));
        }
        if matches!(attempt.stage, Stage::LoggedIn(_)) {
            // All terminals of a relay lose it at the same moment.
            self.next_try = Some(now + STAGGER.mul_f64(self.rng.random_range(0.0..1.0)));
        }
        self.trouble = Some(refusal);
        self.log_in_next();
    }

    fn park(&mut self, refusal: Refusal) {
        self.parked = Some(refusal);
        self.detach_all(RefusalCode::Superseded);
    }

    /// Drops all tries, and ends the attachment with `code`.
    fn detach_all(&mut self, code: RefusalCode) {
        for (attach, attempt) in std::mem::take(&mut self.try_by_id) {
            let code = match attempt.stage {
                Stage::LoggedIn(_) | Stage::LoggingIn => code,
                Stage::Attaching | Stage::Welcome => RefusalCode::EndedByCaller,
            };
            self.outputs.push_back(Output::Detach { attach, code });
        }
    }

    fn is_trying(&self) -> bool {
        let logged_in = self.try_by_id.values().any(|t| matches!(t.stage, Stage::LoggedIn(_)));
        self.wanted && self.parked.is_none() && !logged_in
    }

    /// The relays that may be tried and are not.
    fn candidates(&self) -> impl Iterator<Item = &Relay> {
        let tried: BTreeSet<_> = self.try_by_id.values().map(|t| &t.relay).collect();
        self.relay_by_name.values().filter(move |relay| {
            let name = &relay.contact.name;
            let chosen = match &self.choice {
                RelayChoice::Auto => true,
                RelayChoice::Names(names) => names.contains(name),
            };
            chosen && !tried.contains(name)
        })
    }

    fn try_relays(&mut self, now: Instant) {
        if !self.is_trying() {
            return;
        }
        let late = self.try_by_id.iter().filter(|(_, t)| t.deadline <= now);
        for attach in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            let code = RefusalCode::Silent;
            self.outputs.push_back(Output::Detach { attach, code });
            self.handle_failure(attach, code.into(), Duration::ZERO, now);
        }
        if self.try_by_id.len() >= TRIES || self.next_try.is_some_and(|at| at > now) {
            return;
        }
        let ready = self.candidates().filter(|r| r.not_before.is_none_or(|at| at <= now));
        let order = |r: &&Relay| (r.contact.draining, r.failures);
        let Some(best) = ready.map(|r| order(&r)).min() else { return };
        let ready = self.candidates().filter(|r| r.not_before.is_none_or(|at| at <= now));
        let equals: Vec<_> =
            ready.filter(|r| order(r) == best).map(|r| r.contact.clone()).collect();
        let Some(relay) = equals.get(self.rng.random_range(0..equals.len())).cloned() else {
            return;
        };
        let attach = AttachId(self.next_id);
        self.next_id += 1;
        self.next_try = Some(now + STAGGER);
        self.try_by_id.insert(
            attach,
            Try {
                relay: relay.name.clone(),
                stage: Stage::Attaching,
                deadline: now + ATTACH_TIMEOUT,
            },
        );
        self.outputs.push_back(Output::Attach { attach, relay });
    }

    fn show(&mut self) {
        let logged_in = self.try_by_id.iter().find(|(_, t)| matches!(t.stage, Stage::LoggedIn(_)));
        let state = if !self.wanted {
            State::LoggedOut
        } else if let Some(refusal) = &self.parked {
            State::Parked(refusal.clone())
        } else if let Some((&attach, attempt)) = logged_in {
            State::LoggedIn { attach, relay: attempt.relay.clone() }
        } else {
            State::Connecting(self.trouble.clone())
        };
        if state != self.shown {
            self.shown = state.clone();
            self.outputs.push_back(Output::State(state));
        }
    }
}

/// Whether the same refusal will come until somebody does something.
fn is_hopeless(code: RefusalCode) -> bool {
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
    )
}

#[cfg(test)]
mod tests;
