//! Whose signature the authority's rows must carry, and which of them were checked.
//!
//! A signature costs about 30 µs, a table of a million accounts half a minute. So a row is checked when it is used
//! for the first time, before it takes the place of another, and otherwise in the background in order of sequence;
//! what is not checked is neither used nor passed on nor persisted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tasuki_proto::record::RecordRef;
use tasuki_proto::{Incarnation, MeshId};

use crate::core::LinkId;

/// Keys and memory of checks.
#[derive(Debug)]
pub(super) struct Authority {
    mesh: MeshId,
    keys: BTreeMap<Incarnation, [u8; 32]>,
    /// Everything up to this sequence is checked.
    prefix: u64,
    /// Checked ones behind it.
    checked: BTreeSet<u64>,
    /// A row was used whose signature does not hold.
    refuted: Option<u64>,
    /// Which link brought what lies behind the prefix: up to which sequence, ascending.
    sources: VecDeque<(u64, LinkId)>,
}

impl Authority {
    pub(super) fn new(mesh: MeshId) -> Authority {
        Authority {
            mesh,
            keys: BTreeMap::new(),
            prefix: 0,
            checked: BTreeSet::new(),
            refuted: None,
            sources: VecDeque::new(),
        }
    }

    pub(super) fn set_key(&mut self, term: Incarnation, key: [u8; 32]) {
        // Of two issuers of one term, made by mistake, the first counts.
        self.keys.entry(term).or_insert(key);
    }

    pub(super) fn has_key(&self, term: Incarnation) -> bool {
        self.keys.contains_key(&term)
    }

    pub(super) fn prefix(&self) -> u64 {
        self.prefix
    }

    pub(super) fn refuted(&self) -> Option<u64> {
        self.refuted
    }

    pub(super) fn is_checked(&self, sequence: u64) -> bool {
        sequence <= self.prefix || self.checked.contains(&sequence)
    }

    /// Checks a signature and remembers nothing.
    pub(super) fn verify(&self, row: RecordRef<'_>) -> bool {
        self.keys
            .get(&row.version().incarnation)
            .is_some_and(|key| row.is_signed_by(&self.mesh, key))
    }

    /// Checks a signature unless that was done.
    pub(super) fn is_genuine(&mut self, row: RecordRef<'_>) -> bool {
        let sequence = row.version().sequence;
        if self.is_checked(sequence) {
            return true;
        }
        let genuine = self.verify(row);
        if genuine {
            self.checked.insert(sequence);
        } else if self.has_key(row.version().incarnation) {
            self.refuted = Some(sequence);
        }
        genuine
    }

    pub(super) fn mark_checked(&mut self, sequence: u64) {
        if sequence > self.prefix {
            self.checked.insert(sequence);
        }
    }

    /// The next row in order holds.
    pub(super) fn advance(&mut self, sequence: u64) {
        self.prefix = sequence;
        while self.checked.first().is_some_and(|first| *first <= sequence) {
            self.checked.pop_first();
        }
        while self.sources.front().is_some_and(|(to, _)| *to <= sequence) {
            self.sources.pop_front();
        }
    }

    pub(super) fn came_from(&mut self, link: LinkId, to: u64) {
        match self.sources.back_mut() {
            Some((last, source)) if *source == link => *last = (*last).max(to),
            _ => self.sources.push_back((to, link)),
        }
    }

    pub(super) fn source_of(&self, sequence: u64) -> Option<LinkId> {
        self.sources.iter().find(|(to, _)| *to >= sequence).map(|(_, link)| *link)
    }

    /// Everything behind the prefix was dropped.
    pub(super) fn forget_unchecked(&mut self) {
        self.checked.clear();
        self.sources.clear();
        self.refuted = None;
    }

    pub(super) fn begin_term(&mut self) {
        self.prefix = 0;
        self.forget_unchecked();
    }
}
