//! What the paths of a terminal take in and put out.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tasuki_proto::control::{self, ToRelay};
use tasuki_proto::path::{NatKind, Probe, ProbeOf};
use tasuki_proto::session::{Addresses, Attachments, Word};
use tasuki_proto::{Generation, Label, RefusalCode, RelayName, SessionId};

use crate::core::calls::Opened;
use crate::core::login::AttachId;

/// A path of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathId {
    /// Over relays.
    Relayed(Generation),
    /// From terminal to terminal; the number means nothing to the other side.
    Direct(u32),
}

impl PathId {
    /// What the probes of this path are bound to.
    pub fn probe_of(self) -> ProbeOf {
        match self {
            PathId::Relayed(generation) => ProbeOf::Relayed(generation),
            PathId::Direct(_) => ProbeOf::Direct,
        }
    }
}

/// An attachment that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Which.
    pub attach: AttachId,
    /// To this relay.
    pub relay: RelayName,
    /// At this address, as the kernel writes it.
    pub address: SocketAddr,
    /// It will be let go soon: nothing is begun over it, and what runs over it moves.
    pub leaving: bool,
}

/// An address by which this terminal may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The address, canonical.
    pub address: SocketAddr,
    /// Whether an interface of this machine has it; otherwise a relay saw it.
    pub local: bool,
}

/// Where a probe came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// By a path that is installed.
    On(PathId),
    /// Directly, from an address that stands for no path; canonical.
    From(SocketAddr),
}

/// Running totals of one session's data, as its end-to-end connection counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataCounts {
    /// Frames sent that the peer has to acknowledge.
    pub asked: u64,
    /// Bytes of packets that were sent since the last move to another path and were acknowledged.
    pub acked: u64,
    /// Bytes of packets that were sent since the last move and count as lost.
    pub lost: u64,
}

/// What happens to the paths of a terminal.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The time of [`super::Paths::poll_timeout`] has come.
    Timeout,
    /// The attachments that stand, the primary first.
    Attachments(Vec<Standing>),
    /// The addresses of this terminal; none: it takes no direct path.
    Candidates(Vec<Candidate>),
    /// The NAT in front of this terminal, for what is counted and told.
    Nat(NatKind),
    /// The relays of the mesh that drain, all of them.
    Draining(BTreeSet<RelayName>),
    /// A session has its first path.
    Opened {
        /// What the call agreed on.
        opened: Opened,
        /// The attachment that the call came or went by.
        attach: AttachId,
    },
    /// Its peer is proven, so both ends have the key of probes.
    Proven {
        /// Which session.
        session: SessionId,
        /// The largest QUIC packets worth a try, bytes.
        most: u16,
        /// The round-trip time of the first path, as the handshake shows it.
        rtt: Duration,
    },
    /// It is over.
    Closed(SessionId),
    /// A relay brings a further path of a session that the peer called.
    Resuming {
        /// By this attachment.
        attach: AttachId,
        /// What it said.
        resuming: control::Resuming,
    },
    /// A path that was asked for is there.
    Resumed {
        /// By this attachment.
        attach: AttachId,
        /// What it said.
        resumed: control::Resumed,
    },
    /// A path is refused, or was lost.
    PathEnded(control::PathEnd),
    /// A probe of the peer arrived; it was answered.
    Heard {
        /// Of this session.
        session: SessionId,
        /// By this way.
        heard: Heard,
        /// What it said.
        probe: Probe,
        /// When.
        at: Instant,
    },
    /// The session sends data, for the first time since [`Output::Watch`].
    Busy(SessionId),
    /// The largest packets that the session sends at present, bytes.
    Mtu {
        /// Which session.
        session: SessionId,
        /// QUIC packets, without the head of frames.
        mtu: u16,
    },
    /// What became of the data that this terminal sent since it moved to the path in use; the answer to
    /// [`Output::Measure`].
    Data {
        /// Which session.
        session: SessionId,
        /// The counts.
        data: DataCounts,
    },
    /// The peer said where it may be reached directly.
    PeerAddresses(SessionId, Addresses),
    /// The peer said where it is attached.
    PeerAttachments(SessionId, Attachments),
    /// The peer said what it is behind.
    PeerNat(SessionId, NatKind),
}

/// What the driver has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Say this to the relay.
    Say(AttachId, ToRelay),
    /// A path exists: its frames are taken.
    Install {
        /// Of this session.
        session: SessionId,
        /// Its name.
        path: PathId,
        /// Frames go to this address.
        to: SocketAddr,
        /// Frames to this terminal carry it.
        label_in: Label,
        /// Frames from this terminal carry it.
        label_out: Label,
    },
    /// A path is gone.
    Remove {
        /// Of this session.
        session: SessionId,
        /// Its name.
        path: PathId,
    },
    /// Data takes this path; what was sent last is sent again on it.
    Use {
        /// Of this session.
        session: SessionId,
        /// The path.
        path: PathId,
        /// The path epoch that begins.
        epoch: u32,
    },
    /// Data takes this path too, beginning with what was sent last; or only one again.
    Duplicate {
        /// Of this session.
        session: SessionId,
        /// The second path.
        path: Option<PathId>,
    },
    /// Send a probe.
    Probe {
        /// Of this session.
        session: SessionId,
        /// By this path.
        path: PathId,
        /// What it says.
        probe: Probe,
        /// The length of the frame, bytes.
        length: usize,
        /// It is to be discarded after so many hops; `None`: to arrive.
        hops: Option<u8>,
    },
    /// Packets longer than this are not sent, but as they were already; `None`: whatever QUIC finds.
    Ceiling {
        /// Of this session.
        session: SessionId,
        /// QUIC packets, bytes.
        bytes: Option<u16>,
    },
    /// Direct frames with this label belong to the session.
    Listen {
        /// Which.
        session: SessionId,
        /// The label.
        label: Label,
    },
    /// Say [`Input::Busy`] when the session sends data next, and [`Input::Mtu`] now.
    Watch(SessionId),
    /// Say [`Input::Data`] now.
    Measure(SessionId),
    /// A path over this attachment went quiet: see whether its relay answers.
    Doubt(AttachId),
    /// Tell the peer, end to end.
    Tell(SessionId, Word),
    /// No path came back in time: the session ends.
    Failed {
        /// Which.
        session: SessionId,
        /// What the last path ended with.
        code: RefusalCode,
    },
    /// Data moved, or will for a reason that is another: something to show.
    Changed(SessionId),
}

/// The present path of a session, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct PathInfo {
    /// Whether data goes directly.
    pub direct: bool,
    /// The relays that carry the data, or would, from this terminal's to the peer's.
    pub relays: Vec<RelayName>,
    /// Round-trip time by probes, µs.
    pub rtt_us: Option<u64>,
    /// Share of probes without an answer, 0 to 1, over the last ones.
    pub loss: f64,
    /// Relayed paths that stand.
    pub relayed_paths: usize,
    /// Why this path.
    pub why: String,
}
