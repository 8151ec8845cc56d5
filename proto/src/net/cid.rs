//! Connection ids that say which endpoint they belong to, and that a restarted node can tell from garbage.
//!
//! A relay has one UDP port and two QUIC endpoints. The first byte of a connection id is the class, so the
//! socket's reader knows the endpoint. The rest is random and tagged with a keyed hash; the key is persisted,
//! so that after a restart packets of old connections are answered by a stateless reset at once (RFC 9000,
//! section 10.3) while garbage is not. The socket's reader checks the tag too, before a packet waits for its endpoint: so
//! packets that a stranger made up take no place from those of connections.
//!
//! The hash is SipHash-2-4, which is made for short inputs under a secret key and costs some tens of nanoseconds.

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::Rng;
use siphasher::sip::SipHasher24;

const LENGTH: usize = 12;
const TAGGED: usize = 7;

/// Which endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CidClass {
    /// Relay to relay.
    Links = 1,
    /// Terminals and newcomers.
    Terminals = 2,
}

/// The class of a QUIC packet, from its destination connection id (RFC 8999: long headers carry its length,
/// short ones hold our own). Anything unknown belongs to [`CidClass::Terminals`].
pub fn class_of(packet: &[u8]) -> CidClass {
    let first = match packet.first() {
        Some(byte) if byte & 0x80 != 0 => {
            packet.get(5).filter(|&&length| length > 0).and(packet.get(6))
        }
        _ => packet.get(1),
    };
    if first == Some(&(CidClass::Links as u8)) { CidClass::Links } else { CidClass::Terminals }
}

/// What a QUIC packet is to the endpoint that it came to, judged without the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It carries a connection id that the endpoint issued; the number is the same for all packets of one connection id
    /// and cannot be chosen.
    Issued(u64),
    /// It may begin a connection.
    Begins,
    /// It has a short header and a connection id that nobody issued: a stateless reset (RFC 9000, section 10.3), or made up.
    Reset,
    /// No endpoint has a use for it.
    MadeUp,
}

/// A datagram that begins a connection has at least this many bytes (RFC 9000, section 14.1).
const FIRST_DATAGRAM: usize = 1_200;
/// The shortest stateless reset (RFC 9000, section 10.3).
const SHORTEST_RESET: usize = 21;

/// Makes and checks connection ids of one class.
#[derive(Clone)]
pub(super) struct ClassCids {
    class: CidClass,
    hasher: SipHasher24,
}

impl std::fmt::Debug for ClassCids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClassCids").field("class", &self.class).finish_non_exhaustive()
    }
}

impl ClassCids {
    pub(super) fn new(class: CidClass, key: &[u8; 32]) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&key[..16]);
        Self { class, hasher: SipHasher24::new_with_key(&half) }
    }

    fn tag(&self, head: &[u8]) -> [u8; LENGTH - TAGGED] {
        let mut out = [0; LENGTH - TAGGED];
        out.copy_from_slice(&self.hasher.hash(head).to_le_bytes()[..LENGTH - TAGGED]);
        out
    }

    /// The tag as a number, if this endpoint issued the id.
    fn issued(&self, cid: &[u8]) -> Option<u64> {
        if cid.len() != LENGTH || cid[0] != self.class as u8 {
            return None;
        }
        let (head, tag) = cid.split_at(TAGGED);
        let good = tag == self.tag(head);
        good.then(|| tag.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// Judges a datagram by the connection id of its first packet. Costs one short hash.
    pub(super) fn standing(&self, packet: &[u8]) -> Standing {
        let is_long = packet.first().is_some_and(|first| first & 0x80 != 0);
        if !is_long {
            return match packet.get(1..=LENGTH).and_then(|cid| self.issued(cid)) {
                Some(number) => Standing::Issued(number),
                None if packet.len() >= SHORTEST_RESET => Standing::Reset,
                None => Standing::MadeUp,
            };
        }
        let cid = packet.get(5).and_then(|&length| packet.get(6..6 + usize::from(length)));
        if let Some(number) = cid.and_then(|cid| self.issued(cid)) {
            return Standing::Issued(number);
        }
        // Of version 1 (RFC 9000, section 17.2) only an Initial packet begins a connection; of others the endpoint says
        // that it does not speak them.
        let is_initial = packet[0] & 0x30 == 0 || packet.get(1..5) != Some(&[0, 0, 0, 1]);
        if packet.len() >= FIRST_DATAGRAM && is_initial && cid.is_some() {
            Standing::Begins
        } else {
            Standing::MadeUp
        }
    }
}

impl ConnectionIdGenerator for ClassCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; LENGTH];
        rand::rng().fill(&mut bytes[..TAGGED]);
        bytes[0] = self.class as u8;
        let tag = self.tag(&bytes[..TAGGED]);
        bytes[TAGGED..].copy_from_slice(&tag);
        ConnectionId::new(&bytes)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.issued(cid).is_some() { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The first destination connection id of a client, which the server's reader sorts by class.
pub(crate) fn initial(class: CidClass) -> ConnectionId {
    let mut bytes = [0; LENGTH];
    rand::rng().fill(&mut bytes[..]);
    bytes[0] = class as u8;
    ConnectionId::new(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_recognised_by_class_and_key() {
        let mut links = ClassCids::new(CidClass::Links, &[1; 32]);
        let cid = links.generate_cid();
        assert!(links.validate(&cid).is_ok());
        assert!(ClassCids::new(CidClass::Links, &[2; 32]).validate(&cid).is_err());
        assert!(ClassCids::new(CidClass::Terminals, &[1; 32]).validate(&cid).is_err());
        let short = [&[0x40][..], &cid].concat();
        assert_eq!(class_of(&short), CidClass::Links);
        let long = [&[0xc0, 0, 0, 0, 1, 12][..], &initial(CidClass::Terminals)].concat();
        assert_eq!(class_of(&long), CidClass::Terminals);
        assert_eq!(class_of(&[]), CidClass::Terminals);
        assert_eq!(class_of(&[0xc0, 0, 0, 0, 1, 0]), CidClass::Terminals);
    }

    /// A datagram that begins with `first` and a version, and has a destination connection id.
    fn long(first: u8, version: u8, cid: &[u8], length: usize) -> Vec<u8> {
        let mut packet = vec![first, 0, 0, 0, version, cid.len() as u8];
        packet.extend_from_slice(cid);
        packet.resize(length.max(packet.len()), 0);
        packet
    }

    #[test]
    fn only_packets_with_an_issued_id_belong_to_a_connection() {
        let mut cids = ClassCids::new(CidClass::Terminals, &[1; 32]);
        let (own, foreign) =
            (cids.generate_cid(), ClassCids::new(CidClass::Terminals, &[2; 32]).generate_cid());
        let short = |cid: &[u8], rest: usize| [&[0x40][..], cid, &vec![9; rest]].concat();
        let Standing::Issued(number) = cids.standing(&short(&own, 30)) else { unreachable!() };
        // Retry, Handshake and Initial packets that carry it belong to the same connection, however short.
        for first in [0xc0, 0xe0, 0xf0] {
            assert_eq!(cids.standing(&long(first, 1, &own, 60)), Standing::Issued(number));
        }
        assert_eq!(cids.standing(&long(0x80, 0, &own, 20)), Standing::Issued(number));
        // Made up: short headers, and everything long that cannot begin a connection.
        assert_eq!(cids.standing(&short(&foreign, 30)), Standing::Reset);
        assert_eq!(cids.standing(&short(&foreign, 3)), Standing::MadeUp);
        let chosen = initial(CidClass::Terminals);
        assert_eq!(cids.standing(&long(0xc0, 1, &chosen, 1_200)), Standing::Begins);
        assert_eq!(cids.standing(&long(0xe0, 7, &chosen, 1_200)), Standing::Begins);
        for (first, length) in [(0xc0, 1_199), (0xe0, 1_200), (0xd0, 1_400), (0xf0, 1_400)] {
            assert_eq!(cids.standing(&long(first, 1, &chosen, length)), Standing::MadeUp);
        }
        for cut in 0..20 {
            let packet = long(0xc0, 1, &own, 60);
            assert!(matches!(
                cids.standing(&packet[..cut]),
                Standing::MadeUp | Standing::Issued(_)
            ));
        }
    }

    #[test]
    fn tags_fit_one_key_and_one_class() {
        let mut cids = ClassCids::new(CidClass::Links, &[3; 32]);
        for _ in 0..1_000 {
            let mut cid = cids.generate_cid().to_vec();
            let at = rand::rng().random_range(0..LENGTH);
            cid[at] ^= 1 << rand::rng().random_range(0..8);
            assert!(cids.validate(&ConnectionId::new(&cid)).is_err());
        }
    }
}
