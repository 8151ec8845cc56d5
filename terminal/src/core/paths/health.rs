//! What probes tell of one path.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tasuki_proto::{Label, RelayName};

use crate::core::login::AttachId;

/// Probes that wait for their answer; the oldest counts as lost.
const WAITING: usize = 32;
/// Probes without an answer that make a path suspect.
pub(super) const MISSES: usize = 3;
/// Weight of the latest probe in the share of losses.
const LOSS_WEIGHT: f64 = 1.0 / 16.0;
/// What a round trip may take that was never measured.
const UNKNOWN_RTT: Duration = Duration::from_millis(300);
/// Tries to pass a padded probe before its length counts as too long.
const LENGTH_TRIES: u8 = 4;
/// A length that was too long is tried again after this.
const LENGTH_AGAIN: Duration = Duration::from_secs(5);
/// Numbers of the latest probes by a path; the peer's questions return one of them.
const NUMBERS: usize = 32;
/// An answer that took longer says nothing about the path as it is.
const LATE: Duration = Duration::from_secs(10);

/// Which way a path's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    Relayed {
        attach: AttachId,
        /// From the caller's relay to the callee's.
        route: Vec<RelayName>,
    },
    Direct,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    number: u64,
    at: Instant,
}

/// A padded probe that is under way.
#[derive(Debug, Clone, Copy)]
struct Padded {
    number: u64,
    length: usize,
    tries: u8,
    at: Instant,
}

/// One path of a session: how it is reached, and how it does.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) way: Way,
    pub(super) to: SocketAddr,
    pub(super) label_in: Label,
    pub(super) label_out: Label,
    pub(super) made: Instant,
    /// A probe of ours was answered: it carries frames both ways.
    pub(super) proven: bool,
    /// Answers so far.
    pub(super) answers: u32,
    /// Probes sent, but for padded ones.
    pub(super) tries: u32,
    waiting: VecDeque<Sent>,
    /// The latest numbers that left by this path, answered or not.
    numbers: VecDeque<u64>,
    /// The number of the peer's latest question by this path; 0 before the first.
    pub(super) heard: u64,
    /// Data stood still on it: until then it is used only in need.
    pub(super) distrusted_until: Option<Instant>,
    /// How often data stood still on it.
    pub(super) strikes: u32,
    last_sent: Option<Instant>,
    /// When the latest probe was sent that has its answer.
    pub(super) answered_of: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    pub(super) loss: f64,
    /// The longest frame that is proven, bytes.
    pub(super) length: usize,
    padded: Option<Padded>,
    /// A length that did not pass, and when it was tried last.
    too_long: Option<(usize, Instant)>,
    pub(super) suspect_since: Option<Instant>,
    /// From then on it is left: a relay on it drains.
    pub(super) leaves_at: Option<Instant>,
    /// That time has come.
    pub(super) leaving: bool,
    /// What its relay was told: that the session's data goes directly.
    pub(super) told_direct: bool,
}

impl Path {
    pub(super) fn new(
        way: Way,
        to: SocketAddr,
        (label_in, label_out): (Label, Label),
        now: Instant,
    ) -> Self {
        Self {
            way,
            to,
            label_in,
            label_out,
            made: now,
            proven: false,
            answers: 0,
            tries: 0,
            waiting: VecDeque::new(),
            numbers: VecDeque::new(),
            heard: 0,
            distrusted_until: None,
            strikes: 0,
            last_sent: None,
            answered_of: None,
            rtt: None,
            loss: 0.0,
            length: 0,
            padded: None,
            too_long: None,
            suspect_since: None,
            leaves_at: None,
            leaving: false,
            told_direct: false,
        }
    }

    pub(super) fn works(&self) -> bool {
        self.proven && self.suspect_since.is_none()
    }

    pub(super) fn is_direct(&self) -> bool {
        self.way == Way::Direct
    }

    pub(super) fn attach(&self) -> Option<AttachId> {
        match &self.way {
            Way::Relayed { attach, .. } => Some(*attach),
            Way::Direct => None,
        }
    }

    pub(super) fn route(&self) -> &[RelayName] {
        match &self.way {
            Way::Relayed { route, .. } => route,
            Way::Direct => &[],
        }
    }

    pub(super) fn sent(&mut self, number: u64, now: Instant) {
        if self.waiting.len() == WAITING {
            self.waiting.pop_front();
            self.count(true);
        }
        self.waiting.push_back(Sent { number, at: now });
        self.left_by(number);
        self.tries = self.tries.saturating_add(1);
        self.last_sent = Some(now);
    }

    fn left_by(&mut self, number: u64) {
        if self.numbers.len() == NUMBERS {
            self.numbers.pop_front();
        }
        self.numbers.push_back(number);
    }

    /// Takes a question of the peer; whether it returns a number that left by this path, so that it is no copy from
    /// another one.
    pub(super) fn asked(&mut self, number: u64, echo: u64) -> bool {
        self.heard = number;
        self.numbers.contains(&echo)
    }

    /// Whether the data of a session is better off elsewhere.
    pub(super) fn is_distrusted(&self, now: Instant) -> bool {
        self.distrusted_until.is_some_and(|until| until > now)
    }

    /// Takes an answer; whether it is one to a probe of ours.
    pub(super) fn answered(&mut self, number: u64, at: Instant) -> bool {
        if let Some(padded) = self.padded.filter(|padded| padded.number == number) {
            self.padded = None;
            self.length = self.length.max(padded.length);
            return true;
        }
        let Some(place) = self.waiting.iter().position(|sent| sent.number == number) else {
            return false;
        };
        if self.proven {
            for _ in 0..place {
                self.count(true);
            }
            self.count(false);
        }
        let sent = self.waiting[place].at;
        self.waiting.drain(..=place);
        if at > sent + LATE {
            return false;
        }
        let sample = at.saturating_duration_since(sent);
        self.rtt = Some(self.rtt.map_or(sample, |rtt| (rtt * 7 + sample) / 8));
        self.answered_of = self.answered_of.max(Some(sent));
        self.answers = self.answers.saturating_add(1);
        self.proven = true;
        self.suspect_since = None;
        true
    }

    fn count(&mut self, lost: bool) {
        self.loss += (f64::from(u8::from(lost)) - self.loss) * LOSS_WEIGHT;
    }

    fn rtt_or_unknown(&self) -> Duration {
        self.rtt.unwrap_or(UNKNOWN_RTT)
    }

    /// From when on the oldest probe without an answer is worth a closer look.
    pub(super) fn doubt_at(&self, hello: Duration) -> Option<Instant> {
        let oldest = self.waiting.front()?;
        Some(oldest.at + self.rtt_or_unknown().mul_f64(1.5) + hello)
    }

    /// From when on the path is suspect.
    fn suspect_at(&self, hello: Duration) -> Option<Instant> {
        let oldest = self.waiting.front().filter(|_| self.waiting.len() >= MISSES)?;
        let least = hello * MISSES as u32;
        Some(oldest.at + least.max(self.rtt_or_unknown().mul_f64(1.5) + hello * 2))
    }

    /// Looks whether it became suspect.
    pub(super) fn check(&mut self, hello: Duration, now: Instant) {
        if self.proven
            && self.suspect_since.is_none()
            && self.suspect_at(hello).is_some_and(|at| at <= now)
        {
            self.suspect_since = Some(now);
        }
    }

    /// When [`Path::check`] may find something.
    pub(super) fn check_at(&self, hello: Duration) -> Option<Instant> {
        if self.suspect_since.is_some() || !self.proven {
            return None;
        }
        self.suspect_at(hello).or_else(|| self.doubt_at(hello))
    }

    /// When the next probe is due, at this pace.
    pub(super) fn probe_at(&self, pace: Duration) -> Instant {
        self.last_sent.map_or(self.made, |sent| sent + pace)
    }

    /// The next probe is due at once, unless one left a moment ago.
    pub(super) fn hurry_after(&mut self, pause: Duration, now: Instant) {
        self.last_sent.take_if(|sent| *sent + pause <= now);
    }

    /// The next probe is due at once.
    pub(super) fn hurry(&mut self) {
        self.last_sent = None;
    }

    /// This process stood still: what waits did not.
    pub(super) fn forgive(&mut self, late: Duration) {
        for sent in &mut self.waiting {
            sent.at += late;
        }
    }

    /// The length of a padded probe to send: the first of these that is neither proven nor was tried in vain.
    pub(super) fn length_to_try(&mut self, lengths: &[usize], now: Instant) -> Option<usize> {
        if !self.works() {
            return None;
        }
        if let Some(padded) = &self.padded {
            if self.length_at().is_some_and(|at| at > now) {
                return None;
            }
            if padded.tries >= LENGTH_TRIES {
                self.too_long = Some((padded.length, now));
                self.padded = None;
            }
        }
        self.too_long.take_if(|(_, at)| now >= *at + LENGTH_AGAIN);
        let too_long = self.too_long.map_or(usize::MAX, |(length, _)| length);
        lengths.iter().copied().find(|&length| self.length < length && length < too_long)
    }

    /// When a padded probe may be due again.
    pub(super) fn length_at(&self) -> Option<Instant> {
        let padded = self.padded.as_ref()?;
        Some(padded.at + self.rtt_or_unknown() * 2 + Duration::from_millis(100))
    }

    pub(super) fn sent_padded(&mut self, number: u64, length: usize, now: Instant) {
        let before = self.padded.filter(|padded| padded.length == length);
        let tries = before.map_or(1, |padded| padded.tries + 1);
        self.padded = Some(Padded { number, length, tries, at: now });
        self.left_by(number);
    }
}
