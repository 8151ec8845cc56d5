//! What the payloads of records hold. Each is one bincode struct in section 1; what comes later gets a
//! section of its own (see [`crate::codec`]).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::attest::{Attestation, Presence, Signature};
use crate::codec::{self, DecodeError, SectionWriter};
use crate::id::{LoginEpoch, RelayId, RelayName};
use crate::identity::PublicKey;

/// `row` as a record's payload.
pub fn payload<T: Serialize>(row: &T) -> bytes::Bytes {
    SectionWriter::new().with(1, row).finish()
}

/// The row that a record's payload holds.
///
/// # Errors
/// [`DecodeError`] when the payload does not hold such a row.
pub fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, DecodeError> {
    codec::required(payload, 1)
}

/// The type that an account's payload says ([`AccountRow::kind`]), without the rest of it: lists look at each of a
/// hundred thousand accounts.
///
/// # Errors
/// [`DecodeError`] when the payload does not begin with a key and a type.
pub fn type_of_account(payload: &[u8]) -> Result<String, DecodeError> {
    let (_, kind): (Option<PublicKey>, String) =
        codec::leading(codec::section(payload, 1)?.ok_or(DecodeError::Missing)?)?;
    Ok(kind)
}

/// The key that an account's payload says ([`AccountRow::key`]), without the rest of it: each look-up of a terminal
/// needs it.
///
/// # Errors
/// [`DecodeError`] when the payload does not begin with one.
pub fn key_of_account(payload: &[u8]) -> Result<Option<PublicKey>, DecodeError> {
    codec::leading(codec::section(payload, 1)?.ok_or(DecodeError::Missing)?)
}

/// The static part of a relay ([`crate::record::RecordKind::RELAY`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRow {
    /// Its name.
    pub name: RelayName,
    /// Where it can be dialled: `HOST:PORT`, UDP.
    pub addresses: Vec<String>,
    /// Whether it has the registrar role. For people: what counts is its certificate.
    pub registrar: bool,
    /// The version of its software.
    pub software: String,
}

/// One live link, as one of its ends sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinkState {
    /// The other end.
    pub peer: RelayId,
    /// Round-trip time in µs, in steps of 25 % so that it does not change with every packet.
    pub rtt_us: u32,
}

/// A relay's live links ([`crate::record::RecordKind::LINKS`]), ordered by peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LinksRow {
    /// The links. One counts only when its other end lists it too.
    pub links: Vec<LinkState>,
}

/// A relay's load ([`crate::record::RecordKind::LOAD`]), in coarse steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoadRow {
    /// Takes no new attachments.
    pub draining: bool,
    /// Attached terminals, rounded to two digits.
    pub terminals: u32,
}

/// Which of a terminal's attachments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachmentRole {
    /// The one that calls arrive over.
    Primary,
    /// The one that takes over.
    Standby,
}

/// A terminal's attachment to one relay ([`crate::record::RecordKind::ATTACHMENT`], key: the terminal's id).
///
/// Role, epoch and instance are the terminal's word and carry its signature; the rest is the relay's. Log-out leaves a
/// tombstone with a lifetime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentRow {
    /// Primary or standby.
    pub role: AttachmentRole,
    /// Which log-in; the highest is current.
    pub epoch: LoginEpoch,
    /// Which process of the agent, chosen at random at its start.
    pub instance: u64,
    /// The terminal's address as the relay sees it.
    pub address: SocketAddr,
    /// Since when, ms since 1970 by the relay's clock.
    pub since_ms: u64,
    /// Sessions in communication over this attachment (C4: "in communication with N").
    pub sessions: u32,
    /// The terminal's signature of [`AttachmentRow::presence`], as it came with the log-in.
    pub signature: Signature,
}

impl AttachmentRow {
    /// What the terminal says in the row of `relay`.
    pub fn presence(&self, relay: RelayId) -> Presence {
        Presence { relay, epoch: self.epoch, instance: self.instance, role: self.role }
    }

    /// What the terminal says in the row of `relay`, with its signature.
    pub fn attestation(&self, relay: RelayId) -> Attestation {
        Attestation { presence: self.presence(relay), signature: self.signature }
    }
}

/// A registered terminal ([`crate::record::RecordKind::ACCOUNT`], key: its id; C2, C4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountRow {
    /// The key enrolled last; `None` while the token is not used. It signs what the terminal says of itself.
    pub key: Option<PublicKey>,
    /// user terminal, printer, camera, PLC, ...: a word for people and filters.
    pub kind: String,
    /// Attributes, at most [`crate::limits::ATTRIBUTES`].
    pub attributes: BTreeMap<String, String>,
    /// Groups it belongs to.
    pub groups: Vec<String>,
    /// When it was registered, ms since 1970.
    pub registered_ms: u64,
}

/// A relay that joined ([`crate::record::RecordKind::RELAY_ACCOUNT`], key: its name).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayAccountRow {
    /// The key enrolled last. It signs what the relay says of itself.
    pub key: PublicKey,
    /// The addresses it advertised when it joined: `HOST:PORT`, UDP.
    pub addresses: Vec<String>,
    /// Whether it has the registrar role.
    pub registrar: bool,
    /// When it joined, ms since 1970.
    pub registered_ms: u64,
}

/// A revoked key ([`crate::record::RecordKind::REVOCATION`], key: the key's fingerprint).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationRow {
    /// The name that the key stood for.
    pub name: String,
    /// When, ms since 1970.
    pub revoked_ms: u64,
}
