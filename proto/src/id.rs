//! Ids are types: none of them can be given where another is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// Why a word is not a name. Names are DNS labels: 1 to 63 of `a-z`, `0-9` and `-`, no `-` at either end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a name: use 1 to 63 of a-z, 0-9 and '-', and no '-' at either end")]
pub struct NameError(String);

fn check_name(word: &str) -> Result<SmolStr, NameError> {
    let bytes = word.as_bytes();
    let good = !bytes.is_empty()
        && bytes.len() <= crate::limits::NAME_BYTES
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-';
    if good {
        Ok(SmolStr::new(word))
    } else {
        // What a peer sends is cut before it is shown.
        Err(NameError(word.chars().take(80).flat_map(char::escape_default).collect()))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "SmolStr", into = "SmolStr")]
        pub struct $name(SmolStr);

        impl $name {
            /// Checks `word` and makes a name of it.
            ///
            /// # Errors
            /// [`NameError`] when `word` is not a DNS label in lower case.
            pub fn new(word: &str) -> Result<Self, NameError> {
                check_name(word).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(word: &str) -> Result<Self, NameError> {
                Self::new(word)
            }
        }

        impl TryFrom<SmolStr> for $name {
            type Error = NameError;
            fn try_from(word: SmolStr) -> Result<Self, NameError> {
                Self::new(&word)
            }
        }

        impl From<$name> for SmolStr {
            fn from(name: $name) -> SmolStr {
                name.0
            }
        }
    };
}

name!(
    /// A terminal's user id: the word others call it by (C7). Unique in the mesh.
    TerminalId
);
name!(
    /// A relay's name. Unique in the mesh.
    RelayName
);
name!(
    /// The name of a service that a terminal offers, for example `ssh`.
    ServiceName
);
name!(
    /// The name of a mesh, a part of every identity in it.
    MeshName
);

/// Which mesh: the first 16 bytes of the SHA-256 of the root certificate's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshId(pub [u8; 16]);

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which of a session's relayed paths, counted by its caller: 0 is the call's own, each `Resume` makes one more.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation(pub u32);

impl Generation {
    /// The path of the call itself.
    pub const CALL: Generation = Generation(0);
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A relay's stable id, made from the mesh id and the relay's name, so that it needs no agreement.
///
/// It also names the origin of records; [`RelayId::AUTHORITY`] is the origin of what the authority signs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RelayId(pub u64);

impl RelayId {
    /// The origin of the rows that the authority writes. No relay has this id.
    pub const AUTHORITY: RelayId = RelayId(0);

    /// The id of the relay called `name` in `mesh`.
    pub fn of(mesh: &MeshId, name: &RelayName) -> RelayId {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(b"tasuki relay id v1\0");
        hash.update(&mesh.0);
        hash.update(name.as_str().as_bytes());
        let digest = hash.finish();
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_ref()[..8]);
        RelayId(u64::from_be_bytes(first).max(1))
    }
}

impl fmt::Display for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for RelayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which life of an origin: grows with every start, is persisted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Incarnation(pub u64);

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which log-in of a terminal: the agent uses one more than the highest that a relay knows.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct LoginEpoch(pub u64);

/// A session, by the caller's edge relay and a random number that the caller chose.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId {
    /// The relay to which the caller was attached when it called.
    pub edge: RelayId,
    /// Chosen at random by the caller.
    pub nonce: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.edge.0, self.nonce)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = NameError;
    fn from_str(word: &str) -> Result<Self, NameError> {
        let bad = || NameError(word.chars().take(80).flat_map(char::escape_default).collect());
        if word.len() != 32 || !word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let part = |s: &str| u64::from_str_radix(s, 16).map_err(|_| bad());
        Ok(SessionId { edge: RelayId(part(&word[..16])?), nonce: part(&word[16..])? })
    }
}

/// The number at the front of a frame that the next hop looks up: 56 random bits, never zero.
///
/// Chosen by the one who will look it up. Knowing it is not enough to use it: it is bound to a neighbour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(u64);

impl Label {
    /// The largest label.
    pub const MAX: u64 = (1 << 56) - 1;

    /// A label from 1 to [`Label::MAX`].
    pub const fn new(value: u64) -> Option<Label> {
        if value == 0 || value > Self::MAX { None } else { Some(Label(value)) }
    }

    /// A label from random bits; the eight highest are dropped.
    pub const fn from_random(bits: u64) -> Label {
        let value = bits & Self::MAX;
        Label(if value == 0 { 1 } else { value })
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u64::deserialize(deserializer)?;
        Label::new(value).ok_or_else(|| serde::de::Error::custom("label out of range"))
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "plant7", "x-1", &"a".repeat(63)] {
            assert!(TerminalId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a b", "ä", &"a".repeat(64)] {
            assert!(TerminalId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_decoded_name_is_checked() {
        let bytes = crate::codec::encode(&SmolStr::new("Not A Name"));
        assert!(crate::codec::decode::<TerminalId>(&bytes).is_err());
    }

    #[test]
    fn session_ids_round_trip_as_text() {
        let id = SessionId { edge: RelayId(7), nonce: u64::MAX };
        assert_eq!(id.to_string().parse::<SessionId>().as_ref(), Ok(&id));
        assert!("xyz".parse::<SessionId>().is_err());
        assert!("+000000000000007ffffffffffffffff".parse::<SessionId>().is_err());
    }
}
