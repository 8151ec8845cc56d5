//! What the core programs: labels, and the handles of neighbours.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dashmap::DashMap;
use rustc_hash::FxBuildHasher;
use tasuki_proto::Label;
use tasuki_proto::frame::NeighbourKey;

use super::neighbour::{Address, Neighbour};
use super::pace::Pace;
use crate::core::sessions::{Counter, Counters};

/// What happens to frames with a label.
#[derive(Debug)]
pub struct Entry {
    /// The only neighbour they may come from.
    pub from: Arc<Neighbour>,
    /// Where they go.
    pub to: Arc<Neighbour>,
    /// The label they leave with.
    pub label_out: Label,
    /// Where they are counted.
    pub counters: Arc<Counters>,
    /// Whether they go from caller to callee.
    pub to_callee: bool,
}

impl Entry {
    pub(super) fn count(&self, packets: usize, bytes: usize) {
        let counter = self.counter();
        counter.packets.fetch_add(packets as u64, Ordering::Relaxed);
        counter.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Its direction of its session.
    pub(super) fn counter(&self) -> &Counter {
        if self.to_callee { &self.counters.to_callee } else { &self.counters.to_caller }
    }
}

/// Hears that an expected knock came in; must not wait.
pub type Heard = Box<dyn FnOnce() + Send + Sync>;

/// The label table. Any thread may read while the driver writes.
#[derive(Default)]
pub struct Table {
    /// How fast a session may be.
    pub pace: Pace,
    entries: DashMap<Label, Arc<Entry>, FxBuildHasher>,
    /// Neighbours by the handle that our challenges to them carry.
    ours: DashMap<Label, Arc<Neighbour>, FxBuildHasher>,
    /// Those of them whose connection hints at an address that is not proven.
    hinted: DashMap<Label, Arc<Neighbour>, FxBuildHasher>,
    /// Keys by the handle that other relays' challenges to us carry.
    theirs: DashMap<Label, NeighbourKey, FxBuildHasher>,
    /// Who hears of an expected knock, by its label; the self-test expects one at a time.
    knocks: DashMap<Label, Heard, FxBuildHasher>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Table {
    /// Frames with `label` are forwarded.
    pub fn install(&self, label: Label, entry: Entry) {
        self.entries.insert(label, Arc::new(entry));
    }

    /// Frames with `label` are dropped.
    pub fn remove(&self, label: Label) {
        self.entries.remove(&label);
    }

    /// What happens to frames with `label`.
    pub fn entry(&self, label: Label) -> Option<Arc<Entry>> {
        self.entries.get(&label).map(|entry| Arc::clone(&entry))
    }

    /// How many labels are installed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no label is installed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Echoes for this neighbour's handle are taken; the address that it was made with is challenged.
    pub fn add_neighbour(&self, neighbour: Arc<Neighbour>) {
        self.hinted.insert(neighbour.handle(), neighbour.clone());
        self.ours.insert(neighbour.handle(), neighbour);
    }

    /// They are not taken any more.
    pub fn remove_neighbour(&self, handle: Label) {
        self.ours.remove(&handle);
        self.hinted.remove(&handle);
    }

    /// A neighbour's connection says that it is at `hint`: challenged soon, where that is news.
    pub fn hint(&self, neighbour: &Arc<Neighbour>, hint: Address) {
        if neighbour.set_hint(hint) {
            self.hinted.insert(neighbour.handle(), neighbour.clone());
        }
    }

    pub(super) fn neighbour(&self, handle: Label) -> Option<Arc<Neighbour>> {
        self.ours.get(&handle).map(|neighbour| Arc::clone(&neighbour))
    }

    /// The hints that are due for a challenge.
    pub(super) fn due_hints(&self) -> Vec<(Arc<Neighbour>, Address)> {
        let mut due = Vec::new();
        self.hinted.retain(|_, neighbour| match neighbour.due_hint() {
            Some(hint) => {
                due.push((neighbour.clone(), hint));
                true
            }
            None => false,
        });
        due
    }

    /// Challenges with another relay's `handle` are answered with `key`.
    pub fn add_challenger(&self, handle: Label, key: NeighbourKey) {
        self.theirs.insert(handle, key);
    }

    /// They are not answered any more.
    pub fn remove_challenger(&self, handle: Label) {
        self.theirs.remove(&handle);
    }

    /// The first knock with `label` is told to `heard`.
    pub fn expect_knock(&self, label: Label, heard: Heard) {
        self.knocks.insert(label, heard);
    }

    /// It is not expected any more.
    pub fn forget_knock(&self, label: Label) {
        self.knocks.remove(&label);
    }

    pub(super) fn take_knock(&self, label: Label) -> Option<Heard> {
        self.knocks.remove(&label).map(|(_, heard)| heard)
    }

    pub(super) fn challenger(&self, handle: Label) -> Option<NeighbourKey> {
        self.theirs.get(&handle).map(|key| key.clone())
    }
}
