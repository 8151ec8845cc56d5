//! Frames: the packets of the data plane (architecture 7).
//!
//! A frame is 8 bytes and a payload. The first byte holds kind and class and stays below 0x40, so that it can
//! never be the first byte of a QUIC packet, whose fixed bit (0x40, RFC 9000, section 17) is always set here:
//! no endpoint of ours allows it to be greased (RFC 9287).
//!
//! | byte | bits | field |
//! |---|---|---|
//! | 0 | 7-6 | 0 |
//! | 0 | 5-4 | QoS class, reserved, 0 |
//! | 0 | 3-0 | kind |
//! | 1-7 | | label or handle, big endian |

use crate::id::Label;

/// The length of a frame's head in bytes.
pub const HEAD: usize = 8;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A packet of a session, by its label.
    Data = 1,
    /// "Prove that you are the neighbour with this handle, and that this address reaches you."
    Challenge = 2,
    /// The proof.
    Echo = 3,
    /// "Does this path carry frames, both ways?" ([`crate::path`]); relays forward it like data.
    Probe = 4,
    /// A relay shows another one that it is reached: the head alone, with the label that was asked for
    /// ([`crate::mesh::TryAddress`]). Never answered.
    Knock = 5,
}

/// Whether a datagram is a frame; otherwise it is a QUIC packet of a connection of our own.
#[inline]
pub fn is_frame(first_byte: u8) -> bool {
    first_byte < 0x40
}

/// The head of a frame.
#[inline]
pub fn head(kind: FrameKind, label: Label) -> [u8; HEAD] {
    let mut head = label.get().to_be_bytes();
    head[0] = kind as u8;
    head
}

/// Reads a frame's head; `None` when it is too short, of an unknown kind or carries no label. Class bits are
/// reserved and ignored.
#[inline]
pub fn parse(frame: &[u8]) -> Option<(FrameKind, Label)> {
    let head = frame.first_chunk::<HEAD>()?;
    let kind = match head[0] & 0xcf {
        1 => FrameKind::Data,
        2 => FrameKind::Challenge,
        3 => FrameKind::Echo,
        4 => FrameKind::Probe,
        5 => FrameKind::Knock,
        _ => return None,
    };
    let mut number = *head;
    number[0] = 0;
    Some((kind, Label::new(u64::from_be_bytes(number))?))
}

/// Writes another label into a frame, in place.
#[inline]
pub fn relabel(frame: &mut [u8], label: Label) {
    if let Some(head) = frame.first_chunk_mut::<HEAD>() {
        let class_and_kind = head[0];
        *head = label.get().to_be_bytes();
        head[0] = class_and_kind;
    }
}

/// In datagrams that the kernel joined, each `stride` bytes and the last perhaps shorter: where the run of frames
/// with the same head as the one at `at` ends.
///
/// # Panics
/// When there is no whole head at `at`.
#[inline]
pub fn run_end(bytes: &[u8], at: usize, stride: usize) -> usize {
    let head = &bytes[at..at + HEAD];
    let mut end = (at + stride).min(bytes.len());
    while bytes[end..].starts_with(head) {
        end = (end + stride).min(bytes.len());
    }
    end
}

/// A challenge and an echo are both this long: the reply is never larger than the request (invariant 4).
pub const PROOF_FRAME: usize = HEAD + 16 + 16;

/// A challenge: "handle" names the neighbour relation at the one who is challenged, `cookie` comes back.
pub fn challenge(handle: Label, cookie: [u8; 16]) -> [u8; PROOF_FRAME] {
    proof_frame(FrameKind::Challenge, handle, cookie, [0; 16])
}

/// The answer to a challenge.
pub fn echo(handle: Label, cookie: [u8; 16], key: &NeighbourKey) -> [u8; PROOF_FRAME] {
    proof_frame(FrameKind::Echo, handle, cookie, key.proof(handle, &cookie))
}

fn proof_frame(
    kind: FrameKind,
    handle: Label,
    cookie: [u8; 16],
    proof: [u8; 16],
) -> [u8; PROOF_FRAME] {
    let mut out = [0; PROOF_FRAME];
    out[..8].copy_from_slice(&head(kind, handle));
    out[8..24].copy_from_slice(&cookie);
    out[24..].copy_from_slice(&proof);
    out
}

/// Cookie and proof of a challenge or echo; `None` when its length is wrong.
pub fn parse_proof(frame: &[u8]) -> Option<([u8; 16], [u8; 16])> {
    let frame: &[u8; PROOF_FRAME] = frame.try_into().ok()?;
    let mut cookie = [0; 16];
    let mut proof = [0; 16];
    cookie.copy_from_slice(&frame[8..24]);
    proof.copy_from_slice(&frame[24..]);
    Some((cookie, proof))
}

/// What two neighbours share: exported from the TLS connection between them (RFC 8446, section 7.5), so only
/// they can answer a challenge.
#[derive(Clone)]
pub struct NeighbourKey(ring::hmac::Key);

impl NeighbourKey {
    /// The label under which both ends export the key's 32 bytes.
    pub const EXPORTER_LABEL: &'static [u8] = b"EXPORTER-tasuki-neighbour-v1";

    /// From exported keying material.
    pub fn new(material: &[u8; 32]) -> Self {
        Self(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, material))
    }

    fn tag(&self, handle: Label, cookie: &[u8; 16]) -> ring::hmac::Tag {
        let mut context = ring::hmac::Context::with_key(&self.0);
        context.update(b"tasuki echo v1\0");
        context.update(&handle.get().to_be_bytes());
        context.update(cookie);
        context.sign()
    }

    /// The proof that answers `cookie` for `handle`.
    pub fn proof(&self, handle: Label, cookie: &[u8; 16]) -> [u8; 16] {
        let mut out = [0; 16];
        out.copy_from_slice(&self.tag(handle, cookie).as_ref()[..16]);
        out
    }

    /// Whether `proof` answers `cookie` for `handle`; in constant time.
    pub fn verify(&self, handle: Label, cookie: &[u8; 16], proof: &[u8; 16]) -> bool {
        use subtle::ConstantTimeEq;
        self.proof(handle, cookie).ct_eq(proof).into()
    }
}

impl std::fmt::Debug for NeighbourKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NeighbourKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_golden_vector_of_a_frame() {
        let label = Label::new(0x0001_0203_0405_0607).unwrap();
        assert_eq!(head(FrameKind::Data, label), [1, 1, 2, 3, 4, 5, 6, 7]);
        let mut frame = vec![0x11, 1, 2, 3, 4, 5, 6, 7, 0xaa];
        assert_eq!(parse(&frame), Some((FrameKind::Data, label)));
        relabel(&mut frame, Label::new(9).unwrap());
        assert_eq!(frame, [0x11, 0, 0, 0, 0, 0, 0, 9, 0xaa]);
    }

    #[test]
    fn what_is_no_frame_is_not_parsed() {
        assert_eq!(parse(&[1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(parse(&[1, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(parse(&[0, 0, 0, 0, 0, 0, 0, 1]), None);
        assert_eq!(parse(&[0x41, 0, 0, 0, 0, 0, 0, 1]), None);
    }

    #[test]
    fn a_run_ends_where_the_head_differs() {
        let (a, b) = (Label::new(1).unwrap(), Label::new(2).unwrap());
        let frames = [a, a, b].map(|label| [&head(FrameKind::Data, label)[..], b"xx"].concat());
        let bytes = frames.concat();
        assert_eq!(run_end(&bytes, 0, 10), 20);
        assert_eq!(run_end(&bytes, 20, 10), 30);
        assert_eq!(run_end(&bytes[..29], 20, 10), 29);
        assert_eq!(run_end(&bytes[..18], 0, 10), 18, "a last frame without payload");
    }

    #[test]
    fn an_echo_proves_key_handle_and_cookie() {
        let (key, other) = (NeighbourKey::new(&[1; 32]), NeighbourKey::new(&[2; 32]));
        let (handle, cookie) = (Label::new(5).unwrap(), [7; 16]);
        let frame = echo(handle, cookie, &key);
        let (back, proof) = parse_proof(&frame).unwrap();
        assert_eq!(back, cookie);
        assert!(key.verify(handle, &cookie, &proof));
        assert!(!other.verify(handle, &cookie, &proof));
        assert!(!key.verify(Label::new(6).unwrap(), &cookie, &proof));
        assert!(!key.verify(handle, &[8; 16], &proof));
    }
}
