//! Which relays to attach to, when to try again, which attachment is the primary (C1, architecture 6).
//!
//! **Two attachments.** The agent keeps two on different relays where it can: calls go out over the primary, the standby
//! takes over at once when the primary is lost. Each relay is a try from the dial to the end of its attachment, and
//! there is at most one a relay.
//!
//! **Tries.** While an attachment is missing, relays are tried one [`STAGGER`] after the other, at most [`TRIES`] that
//! are younger than [`PATIENCE`], in an order that prefers those that do not drain and failed least, at random among
//! equals. A try that takes longer than [`ATTACH_TIMEOUT`] failed.
//!
//! **Choice.** [`SETTLE`] after the first Welcome the cheapest relay becomes the primary and the next the standby; nobody
//! waits for a slower one. A cost is the round-trip time and a little for the relay's load; a relay that drains costs
//! more than any other. While both stand, another relay is looked at every [`SCOUT`]: it takes the standby's place where
//! it is clearly better, by 30 % and 5 ms. By the same rule, measured every [`MEASURE`], the two change their roles, at
//! most once in [`DWELL`]. What is replaced stays for [`GRACE`], so that sessions can move.
//!
//! **Draining.** Within [`DRAIN_JITTER`], at random, a primary whose relay drains becomes the standby, and a standby whose
//! relay drains is replaced as one that is missing, but stays until another stands. Where there is no other, it is not
//! left. Who drains is what the relays of the present attachments say ([`drains`]): the word of one that ended ends with
//! the attachment, since the others may never have heard of its drain, and then have nothing new to tell.
//!
//! **Back-off.** Each relay has its own: it doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`] with each failure, is
//! never shorter than the relay's hint, has jitter, and begins anew only after an attachment that lasted
//! [`STABLE`]; so a relay that accepts and then drops is not hammered. Refusals that trying cannot cure (a revoked
//! key, say) wait [`BACKOFF_HOPELESS`]. It is tried for ever.
//!
//! **Epoch.** It names the set of attachments that stand together. A set begins with one more than the highest epoch
//! that this process used or a relay knows. When one of the set is lost, the rest logs in again, on its connection, with
//! the next epoch: so the row of the lost one is void in every table, and its relay cuts it, should it be half alive. One
//! log-in is unanswered at a time, and none joins the set before all that stand are in its epoch: else a relay would hear
//! of the newer epoch first and cut what stands. Roles change within an epoch, the new primary first.
//!
//! **Two processes.** Whoever was told to log in last is active: the older process is told `superseded`, or sees at its
//! next Welcome that another process has an epoch above its own, and is parked until its user says `login` or the other
//! is gone ([`parked`]). So two processes with one identity never fight. `superseded` for an attachment of an older epoch
//! of this process only says that the relay heard of the newer one. A relay's word is not enough: it shows the other
//! process's log-in, which this terminal's own key signed ([`Claim`]). One that cannot is left alone for
//! [`BACKOFF_HOPELESS`], and nothing else follows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::SmallRng;
use tasuki_proto::control::RelayContact;
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{LoginEpoch, Refusal, RefusalCode, RelayName, limits};

use self::advance::Draining;
use self::attempt::{Stage, Try};
use self::loss::is_hopeless;
use self::parked::Parked;
use self::relays::Relays;
pub use self::relays::drains;

mod advance;
mod attempt;
mod loss;
pub mod parked;
mod relays;

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

/// Which log-in of this terminal a relay says that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// None.
    None,
    /// This one, and this terminal's own key signed it.
    Proven {
        /// Its epoch.
        epoch: LoginEpoch,
        /// The process that logged in.
        instance: u64,
    },
    /// One that this terminal's key did not sign.
    Forged,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The time of [`Login::poll_timeout`] has come.
    Timeout,
    /// The relays of the mesh, from disk.
    Contacts(Vec<RelayContact>),
    /// The relay of this attachment told of the relays of the mesh ([`tasuki_proto::control::Relays`]).
    Told(AttachId, Vec<RelayContact>),
    /// The relay answered Hello.
    Welcome {
        /// Which try.
        attach: AttachId,
        /// The highest log-in that it knows of this terminal.
        highest: Claim,
        /// Terminals attached to it.
        terminals: u32,
        /// The round-trip time to it, µs.
        rtt_us: u32,
    },
    /// The relay answered Login.
    LoggedIn(AttachId),
    /// The round-trip time to the relay of a standing attachment, µs; given before each [`Input::Timeout`].
    Rtt {
        /// Which attachment.
        attach: AttachId,
        /// How long.
        rtt_us: u32,
    },
    /// The relay refused, or ended the attachment with a reason. The connection is of no further use.
    Refused {
        /// Which try.
        attach: AttachId,
        /// Why.
        refusal: Refusal,
        /// The relay's hint when to come back, ms; 0: none.
        retry_after_ms: u32,
        /// With `superseded`: the log-in that took over.
        by: Claim,
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
    /// Say Login; on an attachment that stands too.
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
    /// Other relays drain than before: these.
    Draining(BTreeSet<RelayName>),
}

/// A standing attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// Which.
    pub attach: AttachId,
    /// To this relay.
    pub relay: RelayName,
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
        /// Calls go out over it.
        primary: Attached,
        /// Takes over when the primary is lost; `None` while no other relay is attached.
        standby: Option<Attached>,
    },
    /// Another process with this identity took over; this one waits until that one is gone, or the user says `login`.
    Parked(Refusal),
}

/// From one try to the next, on average.
pub const STAGGER: Duration = Duration::from_millis(30);
/// Tries at once that may still be quick.
pub const TRIES: usize = 3;
/// Tries at once, slow ones too.
pub const TRIES_IN_ALL: usize = 8;
/// A try that takes longer leaves its place to another, and goes on.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// From the first Welcome to the choice.
pub const SETTLE: Duration = Duration::from_millis(60);
/// How long a try may take, and an answer to Login. QUIC sends its first packet at 0, 1, 3 and 7 s, so a relay that comes
/// back is met within four seconds of that.
pub const ATTACH_TIMEOUT: Duration = Duration::from_millis(7_500);
/// The first wait for the same relay.
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// The longest, where the relay gives no longer hint.
pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// The wait after a refusal that trying cannot cure.
pub const BACKOFF_HOPELESS: Duration = Duration::from_secs(60);
/// How long an attachment lasts until its relay counts as good.
pub const STABLE: Duration = Duration::from_secs(10);
/// After the loss of all attachments the first try comes within this.
pub const HASTE: Duration = Duration::from_millis(400);
/// After the loss of one of two, the search for another begins between a quarter of this and this; also the least time
/// between two log-ins beside a standing primary, so that each relay hears of few changes a second
/// ([`tasuki_proto::limits::ROLE_CHANGES_PER_SECOND`]).
pub const CALM: Duration = Duration::from_secs(1);
/// How often another relay is looked at, on average.
pub const SCOUT: Duration = Duration::from_secs(600);
/// How often the costs of the two attachments are compared.
pub const MEASURE: Duration = Duration::from_secs(60);
/// The least time between two exchanges of the roles that nothing but costs asks for.
pub const DWELL: Duration = Duration::from_secs(600);
/// How long an attachment that was replaced stays.
pub const GRACE: Duration = Duration::from_secs(5);
/// A relay that drains is left within this, at random, since all its terminals leave it.
pub const DRAIN_JITTER: Duration = Duration::from_secs(5);

/// A Login that was not answered.
#[derive(Debug)]
struct Asked {
    attach: AttachId,
    epoch: LoginEpoch,
    role: AttachmentRole,
    deadline: Instant,
}

/// The log-in of one terminal.
#[derive(Debug)]
pub struct Login {
    instance: u64,
    rng: SmallRng,
    /// Whether the user wants to be logged in.
    wanted: bool,
    /// Told to log in, and not logged in for [`STABLE`] since: takes over from whoever is.
    taking_over: bool,
    parked: Option<Parked>,
    trouble: Option<Refusal>,
    /// Of the attachments that stand, or of the last that did; those that know an older one are told.
    epoch: LoginEpoch,
    /// The highest that a relay knew.
    seen: LoginEpoch,
    relays: Relays,
    try_by_id: BTreeMap<AttachId, Try>,
    primary: Option<AttachId>,
    standby: Option<AttachId>,
    asked: Option<Asked>,
    next_id: u64,
    next_try: Option<Instant>,
    /// No log-in beside a standing primary before this.
    calm_until: Option<Instant>,
    settle_at: Option<Instant>,
    draining: Draining,
    scout_at: Option<Instant>,
    measure_at: Option<Instant>,
    dwell_until: Option<Instant>,
    shown: State,
    shown_draining: BTreeSet<RelayName>,
    outputs: VecDeque<Output>,
}

impl Login {
    /// Not logged in and not trying: give it [`Input::Contacts`] and [`Input::Login`]. `instance` is chosen at random
    /// when the process starts and is not 0.
    pub fn new(instance: u64, choice: RelayChoice, rng: SmallRng) -> Self {
        Self {
            instance,
            rng,
            wanted: false,
            taking_over: false,
            parked: None,
            trouble: None,
            epoch: LoginEpoch(0),
            seen: LoginEpoch(0),
            relays: Relays::new(choice),
            try_by_id: BTreeMap::new(),
            primary: None,
            standby: None,
            asked: None,
            next_id: 0,
            next_try: None,
            calm_until: None,
            settle_at: None,
            draining: Draining::No,
            scout_at: None,
            measure_at: None,
            dwell_until: None,
            shown: State::LoggedOut,
            shown_draining: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Takes the highest epoch that an earlier process used: a relay that shows a log-in of that process then shows an old
    /// one. Only as far as relays that know of no log-in would follow.
    pub fn remember(&mut self, epoch: LoginEpoch) {
        self.epoch = self.epoch.max(epoch.min(LoginEpoch(limits::EPOCH_JUMP / 2)));
    }

    /// Takes in what happened; drain [`Login::poll_output`] afterwards.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Timeout => {}
            Input::Contacts(contacts) => self.relays.learn(contacts),
            Input::Told(attach, contacts) => self.handle_told(attach, contacts),
            Input::Welcome { attach, highest, .. } if self.parked.is_some() => {
                self.looked(attach, highest, now);
            }
            Input::Welcome { attach, highest, terminals, rtt_us } => {
                self.handle_welcome(attach, highest, (rtt_us, terminals), now);
            }
            Input::LoggedIn(attach) => self.handle_logged_in(attach, now),
            // The next time-out draws the conclusions, when all are measured.
            Input::Rtt { attach, rtt_us } => {
                if let Some(attempt) = self.try_by_id.get_mut(&attach) {
                    attempt.measured(rtt_us);
                }
                return;
            }
            Input::Refused { attach, refusal, .. } | Input::Lost { attach, refusal }
                if self.parked.is_some() =>
            {
                self.look_failed(attach, refusal.code, now);
            }
            Input::Refused { attach, refusal, by, .. }
                if refusal.code == RefusalCode::Superseded =>
            {
                self.handle_superseded(attach, refusal, by, now);
            }
            Input::Refused { attach, refusal, retry_after_ms, .. } => {
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
        if self.is_trying() {
            self.advance(now);
        } else if self.wanted {
            self.look(now);
        }
        self.show();
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.is_trying() {
            return self.poll_look();
        }
        let answer = self.asked.as_ref().map(|asked| asked.deadline);
        let settle = self.settle_at.filter(|_| self.asked.is_none());
        let settle = settle.map(|at| self.not_before_join(at));
        let tries = self.try_by_id.values().filter_map(Try::poll_timeout).min();
        let both = self.measure_at.into_iter().chain(self.scout_at).min();
        let drain = match self.draining {
            Draining::LeaveAt(at) => Some(at),
            Draining::No | Draining::Leave => None,
        };
        [answer, settle, tries, both, self.next_attach(), drain].into_iter().flatten().min()
    }

    /// The relays of the mesh, as far as they are known.
    pub fn relays(&self) -> Vec<RelayContact> {
        self.relays.known()
    }

    /// Where the agent stands.
    pub fn state(&self) -> &State {
        &self.shown
    }

    /// The attachments that were replaced and stand for a short while yet.
    pub fn leaving(&self) -> impl Iterator<Item = AttachId> + '_ {
        let leaves = |attempt: &Try| matches!(attempt.stage, Stage::Leaving { .. });
        self.try_by_id.iter().filter(move |(_, attempt)| leaves(attempt)).map(|(id, _)| *id)
    }

    /// The epoch of the present log-in, or of the last one.
    pub fn epoch(&self) -> LoginEpoch {
        self.epoch
    }

    fn handle_login(&mut self) {
        if !self.wanted || self.parked.is_some() {
            self.wanted = true;
            self.taking_over = true;
            self.parked = None;
            // A look that was under way.
            self.let_go(|_| true);
            self.trouble = None;
            self.relays.forgive();
            self.next_try = None;
        }
    }

    fn handle_told(&mut self, attach: AttachId, contacts: Vec<RelayContact>) {
        if let Some(attempt) = self.try_by_id.get_mut(&attach) {
            let draining = contacts.iter().filter(|relay| relay.draining);
            attempt.draining = Some(draining.map(|relay| relay.name.clone()).collect());
        }
        self.relays.learn(contacts);
    }

    fn handle_welcome(
        &mut self,
        attach: AttachId,
        highest: Claim,
        (rtt_us, terminals): (u32, u32),
        now: Instant,
    ) {
        let Some(attempt) = self.try_by_id.get_mut(&attach) else { return };
        if !attempt.is_attaching() {
            return;
        }
        // The relay lies, and would lock this terminal out: nobody gets to the highest epoch, and of this process no
        // relay can know one that it did not use.
        let (epoch, instance) = match highest {
            Claim::None => (LoginEpoch(0), 0),
            Claim::Proven { epoch, instance }
                if epoch.0 <= limits::EPOCH_MOST
                    && (instance != self.instance || epoch <= self.epoch) =>
            {
                (epoch, instance)
            }
            Claim::Proven { .. } | Claim::Forged => {
                let code = RefusalCode::ProtocolError;
                self.outputs.push_back(Output::Detach { attach, code });
                let refusal = Refusal::new(code, format!("{}: a log-in not ours", attempt.relay));
                return self.handle_failure(attach, refusal, BACKOFF_HOPELESS, now);
            }
        };
        attempt.welcomed(rtt_us, terminals);
        if instance != 0 && epoch > self.epoch {
            if !self.taking_over {
                self.seen = self.seen.max(epoch);
                return self.park(now);
            }
            self.seen = self.seen.max(epoch);
            if self.primary.is_some() || self.asked.is_some() {
                self.begin_epoch();
            }
        }
        self.seen = self.seen.max(epoch);
        self.settle_at.get_or_insert(now + SETTLE);
    }

    fn handle_logged_in(&mut self, attach: AttachId, now: Instant) {
        let Some(asked) = self.asked.take_if(|asked| asked.attach == attach) else { return };
        let Some(attempt) = self.try_by_id.get_mut(&attach) else { return };
        self.relays.proven(&attempt.relay);
        let joins = attempt.logged_in((asked.epoch, asked.role), now);
        if !joins {
            return;
        }
        self.trouble = None;
        if self.primary.is_none() {
            self.primary = Some(attach);
            return;
        }
        if let Some(replaced) = self.standby.replace(attach)
            && let Some(attempt) = self.try_by_id.get_mut(&replaced)
        {
            attempt.stage = Stage::Leaving { until: now + GRACE };
        }
        self.measure_at = Some(now + MEASURE);
        self.scout_at = Some(now + SCOUT.mul_f64(self.rng.random_range(0.75..1.25)));
        self.let_go(Try::is_open);
    }

    /// Drops all tries, and ends the attachments with `code`.
    fn detach_all(&mut self, code: RefusalCode) {
        for (attach, attempt) in std::mem::take(&mut self.try_by_id) {
            let code = if attempt.is_open() { RefusalCode::EndedByCaller } else { code };
            self.outputs.push_back(Output::Detach { attach, code });
        }
        (self.primary, self.standby, self.asked) = (None, None, None);
        (self.settle_at, self.draining) = (None, Draining::No);
        (self.measure_at, self.scout_at) = (None, None);
    }

    /// Drops these tries; nobody is to blame.
    fn let_go(&mut self, which: impl Fn(&Try) -> bool) {
        let gone = self.try_by_id.iter().filter(|(_, attempt)| which(attempt)).map(|(id, _)| *id);
        for attach in gone.collect::<Vec<_>>() {
            self.try_by_id.remove(&attach);
            self.asked.take_if(|asked| asked.attach == attach);
            self.outputs.push_back(Output::Detach { attach, code: RefusalCode::EndedByCaller });
        }
    }

    fn is_trying(&self) -> bool {
        self.wanted && self.parked.is_none()
    }

    fn attached(&self, attach: Option<AttachId>) -> Option<Attached> {
        let attach = attach?;
        let relay = self.try_by_id.get(&attach)?.relay.clone();
        Some(Attached { attach, relay })
    }

    fn show(&mut self) {
        let draining = self.relays.draining();
        if draining != self.shown_draining {
            self.shown_draining.clone_from(&draining);
            self.outputs.push_back(Output::Draining(draining));
        }
        let state = if !self.wanted {
            State::LoggedOut
        } else if let Some(parked) = &self.parked {
            State::Parked(parked.why.clone())
        } else if let Some(primary) = self.attached(self.primary) {
            State::LoggedIn { primary, standby: self.attached(self.standby) }
        } else {
            State::Connecting(self.trouble.clone())
        };
        if state != self.shown {
            self.shown = state.clone();
            self.outputs.push_back(Output::State(state));
        }
    }
}

#[cfg(test)]
mod tests;
