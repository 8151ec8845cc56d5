//! Connection ids that say which endpoint they belong to, and that a restarted node can tell from garbage.
//!
//! A relay has one UDP port and two QUIC endpoints. The first byte of a connection id is the class, so the
//! socket's reader knows the endpoint. The rest is random and tagged with a keyed hash; the key is persisted,
//! so that after a restart packets of old connections are answered by a stateless reset at once (RFC 9000,
//! section 10.3) while garbage is not.

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::Rng;

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

/// Makes and checks connection ids of one class.
pub(super) struct ClassCids {
    class: CidClass,
    key: ring::hmac::Key,
}

impl ClassCids {
    pub(super) fn new(class: CidClass, key: &[u8; 32]) -> Self {
        Self { class, key: ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key) }
    }

    fn tag(&self, head: &[u8]) -> [u8; LENGTH - TAGGED] {
        let mut out = [0; LENGTH - TAGGED];
        out.copy_from_slice(&ring::hmac::sign(&self.key, head).as_ref()[..LENGTH - TAGGED]);
        out
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
        let good = cid.len() == LENGTH
            && cid[0] == self.class as u8
            && cid[TAGGED..] == self.tag(&cid[..TAGGED]);
        if good { Ok(()) } else { Err(InvalidCid) }
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
}
