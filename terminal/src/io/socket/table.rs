//! The paths of sessions as the socket knows them: the driver programs them, packets follow them.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use tasuki_proto::Label;
use tasuki_proto::path::{PathKey, Probe};

use crate::core::paths::{Heard, PathId};

/// The way of a session's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// A relay, or the other terminal itself, as the kernel writes its address.
    pub to: SocketAddr,
    /// Frames to this terminal carry it.
    pub label_in: Label,
    /// Frames from this terminal carry it.
    pub label_out: Label,
}

/// What the socket tells the driver.
#[derive(Debug)]
pub enum SocketEvent {
    /// A probe of a session's peer; where it asked, it was answered.
    Heard {
        /// The session's virtual address.
        session: SocketAddr,
        /// By which way.
        heard: Heard,
        /// What it said.
        probe: Probe,
        /// When.
        at: Instant,
    },
    /// A session sends or receives data, for the first time since it was last watched.
    Busy(SocketAddr),
}

/// How the packets of a session leave, and what is known of its paths.
pub(super) struct Leaving {
    pub(super) id: PathId,
    pub(super) path: Path,
    /// Data takes this path too.
    pub(super) also: Option<Path>,
    pub(super) epoch: u32,
    pub(super) paths: Vec<(PathId, Path)>,
    /// Authenticates probes, once the peer is proven.
    pub(super) key: Option<PathKey>,
    /// Direct frames to this terminal carry it.
    pub(super) direct_in: Option<Label>,
    /// Longer packets than this do not leave, bytes.
    pub(super) ceiling: usize,
    /// Bytes sent, over all its paths.
    pub(super) sent: AtomicU64,
    /// It sent or received data since it was last watched.
    pub(super) busy: Arc<AtomicBool>,
    /// The last two packets, the older one first.
    recent: Mutex<[Vec<u8>; 2]>,
}

impl Leaving {
    fn new(id: PathId, path: Path) -> Self {
        Self {
            id,
            path,
            also: None,
            epoch: 0,
            paths: vec![(id, path)],
            key: None,
            direct_in: None,
            ceiling: usize::MAX,
            sent: AtomicU64::new(0),
            busy: Arc::new(AtomicBool::new(true)),
            recent: Mutex::default(),
        }
    }

    fn path(&self, id: PathId) -> Option<Path> {
        self.paths.iter().find(|(known, _)| *known == id).map(|(_, path)| *path)
    }

    /// Keeps the last of packets that left: `stride` bytes each with heads of `head` bytes, the last perhaps shorter.
    pub(super) fn remember(&self, frames: &[u8], stride: usize, head: usize) {
        let last = frames.len().saturating_sub(1) / stride * stride;
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let keep = |slot: &mut Vec<u8>, frame: &[u8]| {
            slot.clear();
            slot.extend_from_slice(frame.get(head..).unwrap_or_default());
        };
        if last >= stride {
            keep(&mut recent[0], &frames[last - stride..last]);
        } else {
            recent.swap(0, 1);
        }
        keep(&mut recent[1], &frames[last..]);
    }

    pub(super) fn recent(&self) -> [Vec<u8>; 2] {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a label of an arriving frame stands for.
#[derive(Debug, Clone)]
pub(super) struct Arriving {
    pub(super) session: SocketAddr,
    /// As in [`Leaving`].
    pub(super) busy: Arc<AtomicBool>,
    from: From,
}

/// Where its frames come from.
#[derive(Debug, Clone)]
enum From {
    /// One path, by way of this address alone.
    By(PathId, SocketAddr),
    /// The direct paths of a session.
    Direct(Vec<(PathId, SocketAddr)>),
}

impl Arriving {
    /// The path that a frame from `source` takes.
    pub(super) fn path_from(&self, source: SocketAddr) -> Option<PathId> {
        match &self.from {
            From::By(id, to) => (*to == source).then_some(*id),
            From::Direct(from) => {
                from.iter().find(|(_, address)| *address == source).map(|(id, _)| *id)
            }
        }
    }

    /// Whether frames of strangers may carry it: those of a peer at an address that it did not name.
    pub(super) fn is_direct(&self) -> bool {
        matches!(self.from, From::Direct(_))
    }
}

/// The paths of all sessions. Any thread may read while the driver writes; no guard leaves a method, but to `with`.
#[derive(Default)]
pub(super) struct Table {
    arriving_by_label: DashMap<Label, Arriving, FxBuildHasher>,
    leaving_by_session: DashMap<SocketAddr, Leaving, FxBuildHasher>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.leaving_by_session.len()
    }

    pub(super) fn with<T>(
        &self,
        session: SocketAddr,
        act: impl FnOnce(&Leaving) -> T,
    ) -> Option<T> {
        self.leaving_by_session.get(&session).map(|leaving| act(&leaving))
    }

    fn change(&self, session: SocketAddr, act: impl FnOnce(&mut Leaving)) {
        if let Some(mut leaving) = self.leaving_by_session.get_mut(&session) {
            act(&mut leaving);
        }
    }

    pub(super) fn arriving<T>(&self, label: Label, act: impl FnOnce(&Arriving) -> T) -> Option<T> {
        self.arriving_by_label.get(&label).map(|arriving| act(&arriving))
    }

    /// The first path of a session takes its data.
    pub(super) fn add(&self, session: SocketAddr, id: PathId, path: Path) {
        let known = self.with(session, |_| ()).is_some();
        if known {
            self.change(session, |leaving| {
                leaving.paths.retain(|(other, _)| *other != id);
                leaving.paths.push((id, path));
            });
        } else {
            self.leaving_by_session.insert(session, Leaving::new(id, path));
        }
        match id {
            PathId::Relayed(_) => {
                self.arrive(session, path.label_in, From::By(id, path.to));
            }
            PathId::Direct(_) => {
                if let Some(mut arriving) = self.arriving_by_label.get_mut(&path.label_in)
                    && let From::Direct(from) = &mut arriving.from
                {
                    from.retain(|(other, _)| *other != id);
                    from.push((id, path.to));
                }
            }
        }
    }

    /// Direct frames with this label belong to the session.
    pub(super) fn listen(&self, session: SocketAddr, label: Label) {
        self.change(session, |leaving| leaving.direct_in = Some(label));
        self.arrive(session, label, From::Direct(Vec::new()));
    }

    fn arrive(&self, session: SocketAddr, label: Label, from: From) {
        if let Some(busy) = self.with(session, |leaving| leaving.busy.clone()) {
            self.arriving_by_label.insert(label, Arriving { session, busy, from });
        }
    }

    pub(super) fn remove(&self, session: SocketAddr, id: PathId) {
        let Some(Some(path)) = self.with(session, |leaving| leaving.path(id)) else { return };
        self.change(session, |leaving| leaving.paths.retain(|(other, _)| *other != id));
        if matches!(id, PathId::Relayed(_)) {
            self.arriving_by_label.remove(&path.label_in);
        } else if let Some(mut arriving) = self.arriving_by_label.get_mut(&path.label_in)
            && let From::Direct(from) = &mut arriving.from
        {
            from.retain(|(other, _)| *other != id);
        }
    }

    pub(super) fn close(&self, session: SocketAddr) {
        let Some((_, leaving)) = self.leaving_by_session.remove(&session) else { return };
        let labels = leaving.paths.iter().map(|(_, path)| path.label_in);
        for label in labels.chain(leaving.direct_in) {
            self.arriving_by_label.remove(&label);
        }
    }

    /// Data takes this path; returns it.
    pub(super) fn use_path(&self, session: SocketAddr, id: PathId, epoch: u32) -> Option<Path> {
        let path = self.with(session, |leaving| leaving.path(id)).flatten()?;
        self.change(session, |leaving| {
            (leaving.id, leaving.path, leaving.epoch) = (id, path, epoch)
        });
        Some(path)
    }

    /// Data takes this path too; returns it.
    pub(super) fn duplicate(&self, session: SocketAddr, id: Option<PathId>) -> Option<Path> {
        let path = id.and_then(|id| self.with(session, |leaving| leaving.path(id)).flatten());
        self.change(session, |leaving| leaving.also = path);
        path
    }

    pub(super) fn set_key(&self, session: SocketAddr, key: PathKey) {
        self.change(session, |leaving| leaving.key = Some(key));
    }

    pub(super) fn set_ceiling(&self, session: SocketAddr, bytes: usize) {
        self.change(session, |leaving| leaving.ceiling = bytes);
    }

    pub(super) fn watch(&self, session: SocketAddr) {
        self.with(session, |leaving| leaving.busy.store(false, Ordering::Relaxed));
    }
}

/// `address` as the kernel writes it on a socket bound to `local`.
pub(super) fn as_kernel(address: SocketAddr, local: SocketAddr) -> SocketAddr {
    match (address.ip(), local) {
        (IpAddr::V4(v4), SocketAddr::V6(_)) => {
            SocketAddrV6::new(v4.to_ipv6_mapped(), address.port(), 0, 0).into()
        }
        _ => address,
    }
}
