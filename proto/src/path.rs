//! Probes: how the two ends of a session learn that a path works (architecture 8).
//!
//! A probe is a frame of its own kind with the label of the path that it is to prove; relays forward it like data.
//! The end that hears one answers it at once, by the same path, with the same number. So an answer proves both
//! directions. Both are authenticated with a key that only the two ends have, exported from their TLS connection, and
//! a direction, so that neither relays nor strangers can make or reflect one.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 8 | head of the frame, kind 4 |
//! | 8 | 8 | number, chosen at random |
//! | 16 | 4 | the sender's path epoch |
//! | 20 | 1 | flags: 1 answer, 2 the sender's data takes this path |
//! | 21 | 1 | 0 |
//! | 22 | 2 | length of the whole frame |
//! | 24 | 16 | the first bytes of HMAC-SHA256 over `"tasuki probe v1\0"`, the direction (1: from the caller, 2: from the callee) and bytes 8 to 23 |
//! | 40 | | zeros, up to the length that is to be proven |
//!
//! **Epochs.** Whoever moves its data to another path takes the next epoch and says so in probes on that path; who hears
//! of a newer one there follows. Of equal ones the caller's counts.

use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameKind, HEAD};
use crate::id::Label;

/// The length of a probe without padding, and of every answer.
pub const PROBE_FRAME: usize = HEAD + 16 + 16;

/// How the NAT in front of a terminal maps its port (RFC 4787, section 4.1), as far as two relays can tell.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum NatKind {
    /// There are not two relays of one family to compare.
    #[default]
    Unknown,
    /// Relays see an address of the machine itself.
    None,
    /// Two relays see the same address and port.
    EndpointIndependent,
    /// Two relays see different ports or addresses.
    EndpointDependent,
}

impl NatKind {
    /// All of them.
    pub const ALL: [NatKind; 4] =
        [NatKind::Unknown, NatKind::None, NatKind::EndpointIndependent, NatKind::EndpointDependent];

    /// In words, JSON and metrics.
    pub fn word(self) -> &'static str {
        match self {
            NatKind::Unknown => "unknown",
            NatKind::None => "none",
            NatKind::EndpointIndependent => "endpoint-independent",
            NatKind::EndpointDependent => "endpoint-dependent",
        }
    }
}

/// What became of a session's direct path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PathNews {
    /// Its data goes directly.
    Direct,
    /// Its data goes by relays again.
    Relayed,
    /// Every address of the peer was tried and none answered.
    NoDirect,
}

impl PathNews {
    /// All of them.
    pub const ALL: [PathNews; 3] = [PathNews::Direct, PathNews::Relayed, PathNews::NoDirect];

    /// In words and metrics.
    pub fn word(self) -> &'static str {
        match self {
            PathNews::Direct => "direct",
            PathNews::Relayed => "relayed",
            PathNews::NoDirect => "no-direct",
        }
    }
}

/// What a probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Comes back with the answer.
    pub number: u64,
    /// The sender's path epoch.
    pub epoch: u32,
    /// Whether it is an answer.
    pub answer: bool,
    /// Whether the sender's data takes this path.
    pub in_use: bool,
}

/// What the ends of a session share about paths, and which of them this is.
#[derive(Clone)]
pub struct PathKey {
    key: hmac::Key,
    caller: bool,
}

impl std::fmt::Debug for PathKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PathKey")
    }
}

impl PathKey {
    /// The label under which both ends export the key's 32 bytes (RFC 8446, section 7.5).
    pub const EXPORTER_LABEL: &'static [u8] = b"EXPORTER-tasuki-path-v1";

    /// From exported keying material, at the caller or at the callee.
    pub fn new(material: &[u8; 32], caller: bool) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, material), caller }
    }

    fn tag(&self, from_caller: bool, body: &[u8; 16]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"tasuki probe v1\0");
        context.update(&[if from_caller { 1 } else { 2 }]);
        context.update(body);
        let mut tag = [0; 16];
        tag.copy_from_slice(&context.sign().as_ref()[..16]);
        tag
    }

    /// A probe of this end as a frame of `length` bytes, at least [`PROBE_FRAME`] and at most 65,535.
    pub fn seal(&self, label: Label, probe: Probe, length: usize) -> Vec<u8> {
        let length = length.clamp(PROBE_FRAME, usize::from(u16::MAX));
        let mut body = [0; 16];
        body[..8].copy_from_slice(&probe.number.to_be_bytes());
        body[8..12].copy_from_slice(&probe.epoch.to_be_bytes());
        body[12] = u8::from(probe.answer) | (u8::from(probe.in_use) << 1);
        body[14..].copy_from_slice(&(length as u16).to_be_bytes());
        let mut out = vec![0; length];
        out[..HEAD].copy_from_slice(&frame::head(FrameKind::Probe, label));
        out[HEAD..HEAD + 16].copy_from_slice(&body);
        out[HEAD + 16..PROBE_FRAME].copy_from_slice(&self.tag(self.caller, &body));
        out
    }

    /// The probe of the other end that a frame holds; `None` when it is not one, whole and authentic. In constant time
    /// over the tag.
    pub fn open(&self, frame: &[u8]) -> Option<Probe> {
        use subtle::ConstantTimeEq;
        let body: &[u8; 16] = frame.get(HEAD..HEAD + 16)?.try_into().ok()?;
        let tag = frame.get(HEAD + 16..PROBE_FRAME)?;
        let length = u16::from_be_bytes([body[14], body[15]]);
        if usize::from(length) != frame.len() {
            return None;
        }
        if !bool::from(self.tag(!self.caller, body).ct_eq(tag)) {
            return None;
        }
        let (number, rest) = body.split_first_chunk::<8>()?;
        let (epoch, _) = rest.split_first_chunk::<4>()?;
        Some(Probe {
            number: u64::from_be_bytes(*number),
            epoch: u32::from_be_bytes(*epoch),
            answer: body[12] & 1 != 0,
            in_use: body[12] & 2 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe { number: 0x0102_0304_0506_0708, epoch: 9, answer: false, in_use: true }
    }

    #[test]
    fn only_the_other_end_reads_a_probe() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        let label = Label::new(5).unwrap();
        for length in [0, PROBE_FRAME, 1_452] {
            let frame = caller.seal(label, probe(), length);
            assert_eq!(frame.len(), length.max(PROBE_FRAME));
            assert_eq!(frame::parse(&frame), Some((FrameKind::Probe, label)));
            assert_eq!(callee.open(&frame), Some(probe()));
            assert_eq!(caller.open(&frame), None, "reflected");
            assert_eq!(PathKey::new(&[8; 32], false).open(&frame), None, "another session");
        }
    }

    #[test]
    fn what_was_changed_or_cut_is_no_probe() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        let frame = caller.seal(Label::new(5).unwrap(), probe(), 60);
        for at in HEAD..PROBE_FRAME {
            let mut changed = frame.clone();
            changed[at] ^= 1;
            assert_eq!(callee.open(&changed), None, "byte {at}");
        }
        for length in 0..frame.len() {
            assert_eq!(callee.open(&frame[..length]), None);
        }
        assert_eq!(callee.open(&[frame.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn the_golden_vector_of_a_probe() {
        let frame = PathKey::new(&[7; 32], true).seal(Label::new(5).unwrap(), probe(), 0);
        let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "04000000000000050102030405060708000000090200002852fa7dd0463015e5a9aeff7a7ae49186"
        );
    }
}
