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
//! | 8 | 8 | number, chosen at random by the end that asks; an answer repeats it |
//! | 16 | 8 | echo: the latest number of the other end that arrived by this path; 0 for none, and in answers |
//! | 24 | 4 | the sender's path epoch |
//! | 28 | 1 | flags: 1 answer, 2 the sender's data takes this path, 4 its data stood still on the path before |
//! | 29 | 1 | 0 |
//! | 30 | 2 | length of the whole frame |
//! | 32 | 16 | the first bytes of HMAC-SHA256 over `"tasuki probe v2\0"`, the direction (1: from the caller, 2: from the callee), the kind of the path (1: relayed, 2: direct), its generation (4 bytes, 0 for a direct path) and bytes 8 to 31 |
//! | 48 | | zeros, up to the length that is to be proven |
//!
//! **What a probe proves.** The tag shows who made it and for which relayed path. NATs rewrite addresses, so the tag
//! of a direct path cannot name them. Instead each end trusts only what returns one of its own numbers, and sends each
//! number by one path only. An answer proves the path by which its number left; a question counts for a path only if
//! its echo is a number that left by that path. A copy, a reflection or a replay that arrives by another path returns
//! no such number, so it proves nothing there.
//!
//! **Epochs.** An end that moves its data to another path takes the next epoch and says so in probes on that path. The
//! other end follows a newer epoch there, once the probe counts for that path. Of equal epochs the caller's wins.

use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::frame::{self, FrameKind, HEAD};
use crate::id::{Generation, Label};

/// Bytes of a probe between its head and its tag.
const BODY: usize = 24;
/// The length of a probe without padding, and of every answer.
pub const PROBE_FRAME: usize = HEAD + BODY + 16;

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
    /// The number of the end that asks; its answer repeats it.
    pub number: u64,
    /// The latest number of the other end that arrived by this path; 0 for none, and in answers.
    pub echo: u64,
    /// The sender's path epoch.
    pub epoch: u32,
    /// Whether it is an answer.
    pub answer: bool,
    /// Whether the sender's data takes this path.
    pub in_use: bool,
    /// Whether the sender's data stood still on the path that it took before.
    pub stalled: bool,
}

/// Which path a probe is for, as both ends know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeOf {
    /// A path over relays.
    Relayed(Generation),
    /// A path from terminal to terminal.
    Direct,
}

impl ProbeOf {
    fn bytes(self) -> [u8; 5] {
        let (kind, generation) = match self {
            ProbeOf::Relayed(generation) => (1, generation.0),
            ProbeOf::Direct => (2, 0),
        };
        let [a, b, c, d] = generation.to_be_bytes();
        [kind, a, b, c, d]
    }
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

    fn tag(&self, from_caller: bool, of: ProbeOf, body: &[u8; BODY]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"tasuki probe v2\0");
        context.update(&[if from_caller { 1 } else { 2 }]);
        context.update(&of.bytes());
        context.update(body);
        let mut tag = [0; 16];
        tag.copy_from_slice(&context.sign().as_ref()[..16]);
        tag
    }

    /// Returns a probe of this end for path `of` as a frame of `length` bytes, at least [`PROBE_FRAME`] and at most
    /// 65,535.
    pub fn seal(&self, label: Label, of: ProbeOf, probe: Probe, length: usize) -> Vec<u8> {
        let length = length.clamp(PROBE_FRAME, usize::from(u16::MAX));
        let flags = [(probe.answer, 1), (probe.in_use, 2), (probe.stalled, 4)];
        let mut body = [0; BODY];
        body[..8].copy_from_slice(&probe.number.to_be_bytes());
        body[8..16].copy_from_slice(&probe.echo.to_be_bytes());
        body[16..20].copy_from_slice(&probe.epoch.to_be_bytes());
        body[20] = flags.into_iter().map(|(set, bit)| u8::from(set) * bit).sum();
        body[22..].copy_from_slice(&(length as u16).to_be_bytes());
        let mut out = vec![0; length];
        out[..HEAD].copy_from_slice(&frame::head(FrameKind::Probe, label));
        out[HEAD..HEAD + BODY].copy_from_slice(&body);
        out[HEAD + BODY..PROBE_FRAME].copy_from_slice(&self.tag(self.caller, of, &body));
        out
    }

    /// Returns the probe of the other end that a frame of path `of` holds; `None` when it is not one, whole and
    /// authentic. Compares the tag in constant time.
    pub fn open(&self, of: ProbeOf, frame: &[u8]) -> Option<Probe> {
        use subtle::ConstantTimeEq;
        let body: &[u8; BODY] = frame.get(HEAD..HEAD + BODY)?.try_into().ok()?;
        let tag = frame.get(HEAD + BODY..PROBE_FRAME)?;
        let length = u16::from_be_bytes([body[22], body[23]]);
        if usize::from(length) != frame.len() {
            return None;
        }
        if !bool::from(self.tag(!self.caller, of, body).ct_eq(tag)) {
            return None;
        }
        let (number, rest) = body.split_first_chunk::<8>()?;
        let (echo, rest) = rest.split_first_chunk::<8>()?;
        let (epoch, _) = rest.split_first_chunk::<4>()?;
        Some(Probe {
            number: u64::from_be_bytes(*number),
            echo: u64::from_be_bytes(*echo),
            epoch: u32::from_be_bytes(*epoch),
            answer: body[20] & 1 != 0,
            in_use: body[20] & 2 != 0,
            stalled: body[20] & 4 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: ProbeOf = ProbeOf::Relayed(Generation::CALL);

    fn probe() -> Probe {
        let (number, echo) = (0x0102_0304_0506_0708, 0x1112_1314_1516_1718);
        Probe { number, echo, epoch: 9, answer: false, in_use: true, stalled: false }
    }

    #[test]
    fn only_the_other_end_reads_a_probe() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        let label = Label::new(5).unwrap();
        for length in [0, PROBE_FRAME, 1_452] {
            let frame = caller.seal(label, FIRST, probe(), length);
            assert_eq!(frame.len(), length.max(PROBE_FRAME));
            assert_eq!(frame::parse(&frame), Some((FrameKind::Probe, label)));
            assert_eq!(callee.open(FIRST, &frame), Some(probe()));
            assert_eq!(caller.open(FIRST, &frame), None, "reflected");
            assert_eq!(PathKey::new(&[8; 32], false).open(FIRST, &frame), None, "another session");
        }
    }

    #[test]
    fn a_probe_of_one_path_is_none_of_another() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        let paths = [FIRST, ProbeOf::Relayed(Generation(1)), ProbeOf::Direct];
        for of in paths {
            let frame = caller.seal(Label::new(5).unwrap(), of, probe(), 0);
            for other in paths {
                assert_eq!(callee.open(other, &frame).is_some(), of == other, "{of:?} {other:?}");
            }
        }
    }

    #[test]
    fn every_flag_is_carried() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        for bits in 0..8_u8 {
            let [answer, in_use, stalled] = [1, 2, 4].map(|bit| bits & bit != 0);
            let sent = Probe { answer, in_use, stalled, ..probe() };
            let frame = caller.seal(Label::new(5).unwrap(), ProbeOf::Direct, sent, 0);
            assert_eq!(callee.open(ProbeOf::Direct, &frame), Some(sent));
        }
    }

    #[test]
    fn a_changed_or_cut_frame_is_no_probe() {
        let (caller, callee) = (PathKey::new(&[7; 32], true), PathKey::new(&[7; 32], false));
        let frame = caller.seal(Label::new(5).unwrap(), FIRST, probe(), 60);
        for at in HEAD..PROBE_FRAME {
            let mut changed = frame.clone();
            changed[at] ^= 1;
            assert_eq!(callee.open(FIRST, &changed), None, "byte {at}");
        }
        for length in 0..frame.len() {
            assert_eq!(callee.open(FIRST, &frame[..length]), None);
        }
        assert_eq!(callee.open(FIRST, &[frame.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn the_golden_vector_of_a_probe() {
        let frame = PathKey::new(&[7; 32], true).seal(Label::new(5).unwrap(), FIRST, probe(), 0);
        let hex: String = frame.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0400000000000005010203040506070811121314151617180000000902000030507dc99bccb920d2a11acee3a6a7f976"
        );
    }
}
