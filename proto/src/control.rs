//! Terminal and relay: one bidirectional stream, opened by the terminal, for the life of the attachment.
//!
//! ```text
//! terminal                         relay
//!    | Hello                         |
//!    |-----------------------------> |
//!    |                       Welcome | (or Refused, and the connection ends)
//!    | <-----------------------------|
//!    | Login                         |
//!    |-----------------------------> |
//!    |                      LoggedIn | (or Refused)
//!    | <-----------------------------|
//!    | Call, Accept, Refuse, End, List, Logout ...   Incoming, Accepted, CallRefused, Ended, Page, Relays ...
//!    | Resume, AcceptPath, EndPath, PathReport       Resuming, Resumed, PathEnded
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::attest::{Attestation, Signature};
use crate::codec::{self, DecodeError};
use crate::id::{
    Generation, Label, LoginEpoch, RelayId, RelayName, ServiceName, SessionId, TerminalId,
};
use crate::limits;
use crate::path::{NatKind, PathNews};
use crate::record::Record;
use crate::refusal::{Refusal, RefusalCode};
use crate::rows::AttachmentRole;
use crate::view::{TerminalFilter, TerminalView};

/// The first message of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest protocol that the terminal speaks ([`crate::version::PROTOCOL`]).
    pub protocol: u16,
    /// Its software's version, for people.
    pub software: String,
    /// Chosen at random when the agent's process started.
    pub instance: u64,
}

/// The relay's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol to speak.
    pub protocol: u16,
    /// The relay's software version, for people.
    pub software: String,
    /// The relay's id.
    pub relay: RelayId,
    /// The relay's name.
    pub name: RelayName,
    /// The highest log-in of this terminal that the relay's table holds, in the terminal's own words; `None` when it is
    /// logged in nowhere. It counts only if the terminal's own key signed it.
    pub highest: Option<Attestation>,
    /// The terminal's address as the relay sees it, v4-mapped addresses written as v4.
    pub address: SocketAddr,
    /// The handle that the relay's challenges will carry (see [`crate::frame::challenge`]).
    pub handle: Label,
    /// Terminals attached to the relay, two digits of it: what it costs to be one more of them.
    pub terminals: u32,
}

impl Welcome {
    /// The epoch of the highest log-in; 0 when there is none.
    pub fn epoch(&self) -> LoginEpoch {
        self.highest.map(|highest| highest.presence.epoch).unwrap_or_default()
    }
}

/// Logs in; on an attachment that is logged in: changes its epoch and role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Names the set of attachments that stand together: one more than the highest known, the same for all of the set,
    /// and one more again for what is left when one of them is lost.
    pub epoch: LoginEpoch,
    /// Primary or standby.
    pub role: AttachmentRole,
    /// The terminal's signature of this, the relay's id and its own instance ([`crate::attest::Presence`]). The relay
    /// checks it, and keeps it in its row.
    pub signature: Signature,
}

/// The attachment ends, or never begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// When to come back, ms; 0 leaves it to the terminal. Cut to [`crate::limits::PEER_DELAY`].
    pub retry_after_ms: u32,
    /// With [`RefusalCode::Superseded`]: the log-in that took over, in the terminal's own words. Without it, or if the
    /// terminal's own key did not sign it, the refusal says something of the relay only.
    pub by: Option<Attestation>,
}

/// Logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedIn {}

/// Logs out: every session of the terminal ends (C11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logout {}

/// Calls a terminal by its user id (C7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Made by the caller; its edge is the relay that this message goes to.
    pub session: SessionId,
    /// Whom.
    pub target: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// Decides when both call each other at the same time (D3); `None` loses against any.
    pub tie_break: Option<u64>,
    /// Frames to the caller carry it.
    pub label: Label,
}

/// A call arrives at its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incoming {
    /// Which session.
    pub session: SessionId,
    /// Who calls, as far as the relays know. What counts is the name proven in the end-to-end handshake.
    pub caller: TerminalId,
    /// What for.
    pub service: ServiceName,
    /// See [`Call::tie_break`].
    pub tie_break: Option<u64>,
    /// Frames from the target carry it.
    pub label: Label,
    /// The caller's address as its relay sees it (D2).
    pub caller_address: Option<SocketAddr>,
    /// The relays on the way, from the caller's to the target's.
    pub route: Vec<RelayName>,
}

/// The target accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Which session.
    pub session: SessionId,
    /// Frames to the target carry it.
    pub label: Label,
}

/// The caller hears that its call was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Which session.
    pub session: SessionId,
    /// Frames from the caller carry it.
    pub label: Label,
    /// The target's address as its relay sees it (D2).
    pub callee_address: Option<SocketAddr>,
    /// The relays on the way, from the caller's to the target's.
    pub route: Vec<RelayName>,
}

/// A call is refused: by the target, or on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRefused {
    /// Which session.
    pub session: SessionId,
    /// Why.
    pub refusal: Refusal,
    /// With [`RefusalCode::Merged`]: the call of the other side that takes its place.
    pub winner: Option<SessionId>,
}

/// A session ends (C10): told by a terminal, or told to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which session.
    pub session: SessionId,
    /// Why.
    pub code: RefusalCode,
}

/// The caller of a running session asks for one more relayed path to its callee (architecture 5): as a second one,
/// or in the place of one that was lost. Nothing ends the paths that there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Which session.
    pub session: SessionId,
    /// Greater than that of every path the session had.
    pub generation: Generation,
    /// The callee.
    pub target: TerminalId,
    /// What the call named.
    pub service: ServiceName,
    /// Frames to the caller by this path carry it.
    pub label: Label,
    /// Relays of the session's other path, to be kept away from where the mesh allows; at most
    /// [`crate::limits::ROUTE_RELAYS`].
    pub avoid: Vec<RelayName>,
}

/// A path arrives at the callee of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resuming {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// Who asks for it, as far as the relays know. What counts is the key that only the session's ends share.
    pub caller: TerminalId,
    /// Frames from the callee by this path carry it.
    pub label: Label,
    /// The relays on the way, from the caller's to the callee's.
    pub route: Vec<RelayName>,
}

/// The callee takes a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptPath {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// Frames to the callee by this path carry it.
    pub label: Label,
}

/// The caller hears that a path is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// Frames from the caller by this path carry it.
    pub label: Label,
    /// The relays on the way, from the caller's to the callee's.
    pub route: Vec<RelayName>,
}

/// A relayed path of a session is refused, was lost, or is given up; the session itself may go on over others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathEnd {
    /// Which session.
    pub session: SessionId,
    /// Which of its paths.
    pub generation: Generation,
    /// Why.
    pub code: RefusalCode,
}

/// How a session's data goes, for operators: relays do not see a direct path. Nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathReport {
    /// Which session.
    pub session: SessionId,
    /// What became of its direct path.
    pub news: PathNews,
    /// The NAT in front of the sender.
    pub nat: NatKind,
    /// The NAT in front of its peer, as that one says.
    pub peer_nat: NatKind,
}

/// The relay sees the terminal at another address than before (a NAT gave it another, or the terminal moved), proven by a
/// challenge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The address, v4-mapped ones written as v4.
    pub address: SocketAddr,
}

/// Asks whether the other side is there and reads; answered at once with the same number (C3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Comes back.
    pub number: u64,
}

/// Asks for a page of the table (C12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Comes back with the answer.
    pub request: u64,
    /// Which terminals.
    pub filter: TerminalFilter,
    /// Only terminals behind this one in the order of ids.
    pub after: Option<TerminalId>,
    /// At most this many, and at most [`crate::limits::PAGE`].
    pub limit: u16,
}

/// A page of the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The request it answers.
    pub request: u64,
    /// Ordered by id.
    pub items: Vec<TerminalView>,
    /// Ask for what is after this one; `None` at the end.
    pub next: Option<TerminalId>,
}

/// A relay of the mesh, for terminals and newcomers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayContact {
    /// Its name.
    pub name: RelayName,
    /// Where it can be dialled: `HOST:PORT`, UDP.
    pub addresses: Vec<String>,
    /// Takes no new attachments.
    pub draining: bool,
}

/// The relays of the mesh, all that ever joined; sent after log-in and when they change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relays {
    /// Ordered by name.
    pub relays: Vec<RelayContact>,
    /// The next message goes on with further ones.
    pub more: bool,
}

impl Relays {
    /// Puts all relays into as few messages as [`limits::CONTACT_BYTES_TOLD`] allows; one message where there are none.
    pub fn of(relays: &[RelayContact]) -> Vec<Relays> {
        let mut messages = vec![Relays { relays: Vec::new(), more: false }];
        let mut bytes = 0;
        for relay in relays {
            let length = codec::encode(relay).len();
            if bytes > 0 && bytes + length > limits::CONTACT_BYTES_TOLD {
                messages.push(Relays { relays: Vec::new(), more: false });
                bytes = 0;
            }
            bytes += length;
            if let Some(last) = messages.last_mut() {
                last.relays.push(relay.clone());
            }
        }
        let count = messages.len();
        for message in &mut messages[..count - 1] {
            message.more = true;
        }
        messages
    }
}

/// Keys that were revoked; sent after log-in (all) and when they change (the new ones).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Revoked {
    /// The authority's records ([`crate::record::RecordKind::REVOCATION`]), verbatim and one behind the other: a
    /// revocation counts only with the authority's signature.
    records: Vec<u8>,
}

impl Revoked {
    /// Puts records into as few messages as [`limits::REVOCATION_BYTES_TOLD`] allows.
    pub fn of(records: impl IntoIterator<Item = Record>) -> Vec<Revoked> {
        let mut messages: Vec<Revoked> = Vec::new();
        for record in records {
            let bytes = record.as_bytes();
            match messages.last_mut() {
                Some(last) if last.records.len() < limits::REVOCATION_BYTES_TOLD => {
                    last.records.extend_from_slice(bytes);
                }
                _ => messages.push(Revoked { records: bytes.to_vec() }),
            }
        }
        messages
    }

    /// The records.
    ///
    /// # Errors
    /// [`DecodeError`] when something else stands among them.
    pub fn records(self) -> Result<Vec<Record>, DecodeError> {
        let mut bytes = bytes::Bytes::from(self.records);
        let mut records = Vec::new();
        while !bytes.is_empty() {
            records.push(Record::take(&mut bytes)?);
        }
        Ok(records)
    }
}

crate::messages! {
    /// What a terminal says to its relay.
    pub enum ToRelay {
        /// The first message.
        1 => Hello(Hello),
        /// The second.
        2 => Login(Login),
        /// Log-out.
        3 => Logout(Logout),
        /// Call.
        4 => Call(Call),
        /// Accept a call.
        5 => Accept(Accept),
        /// Refuse a call.
        6 => Refuse(CallRefused),
        /// End a session, or withdraw a call.
        7 => End(End),
        /// List terminals.
        8 => List(List),
        /// One more path for a session.
        9 => Resume(Resume),
        /// Take a path.
        10 => AcceptPath(AcceptPath),
        /// Refuse a path, or give it up.
        11 => EndPath(PathEnd),
        /// Answered by Pong.
        12 => Ping(Ping),
        /// How a session's data goes.
        13 => PathReport(PathReport),
    }
}

crate::messages! {
    /// What a relay says to a terminal.
    pub enum ToTerminal {
        /// Answer to Hello.
        1 => Welcome(Welcome),
        /// Instead of Welcome or LoggedIn, or at any time before the relay cuts the attachment.
        2 => Refused(Refused),
        /// Answer to Login.
        3 => LoggedIn(LoggedIn),
        /// A call arrives.
        4 => Incoming(Incoming),
        /// A call of this terminal was accepted.
        5 => Accepted(Accepted),
        /// A call of this terminal was refused.
        6 => CallRefused(CallRefused),
        /// A session ended, or a call was withdrawn.
        7 => Ended(End),
        /// Answer to List.
        8 => Page(Page),
        /// The relays of the mesh.
        9 => Relays(Relays),
        /// Revoked keys.
        10 => Revoked(Revoked),
        /// A path arrives for a session of this terminal.
        11 => Resuming(Resuming),
        /// A path that this terminal asked for is there.
        12 => Resumed(Resumed),
        /// A path is refused, or was lost.
        13 => PathEnded(PathEnd),
        /// Answer to Ping.
        14 => Pong(Ping),
        /// The terminal's address changed.
        15 => Seen(Seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_relays_take_several_messages_and_each_fits() {
        assert_eq!(Relays::of(&[]).len(), 1);
        let relays: Vec<RelayContact> = (0..limits::RELAYS)
            .map(|n| RelayContact {
                name: RelayName::new(&format!("r{n:05}")).unwrap(),
                addresses: vec!["x".repeat(limits::RELAY_ADDRESS_BYTES); limits::RELAY_ADDRESSES],
                draining: false,
            })
            .collect();
        let told = Relays::of(&relays);
        assert!(told.len() > 1);
        let (last, others) = told.split_last().unwrap();
        assert!(!last.more && others.iter().all(|message| message.more));
        for message in &told {
            let bytes = ToTerminal::Relays(message.clone()).to_envelope().to_bytes().len();
            assert!(bytes <= limits::CONTROL_MESSAGE_BYTES, "{bytes}");
        }
        let again: Vec<RelayContact> = told.into_iter().flat_map(|m| m.relays).collect();
        assert_eq!(again, relays);
    }
}
