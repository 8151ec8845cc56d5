//! Where rows lie, by the hash of their key.
//!
//! An entry is 8 bytes, 32 bits of the hash beside the address, and stands at the place that the hash names or, where
//! that is taken, at the next free one. So the entries of one key stand side by side, mostly in one line of memory;
//! those of other keys are told apart without a look at their rows; growing reads no row.

use memmap2::MmapMut;

use super::arena::{Address, memory};

/// Bytes of an entry: the hash, and the address plus one; all zero where there is none.
const ENTRY: usize = 8;
/// Places of an index that never grew; a power of two.
const LEAST: usize = 512;
/// From so many bytes on the kernel is asked for large pages.
const LARGE: usize = 4 * 1024 * 1024;
/// Of four places so many have an entry before the index grows.
const FULL: usize = 3;

/// The index; see the module's documentation.
#[derive(Debug)]
pub(super) struct Index {
    /// Its places; a power of two.
    entries: MmapMut,
    len: usize,
}

impl Index {
    pub(super) fn new() -> Index {
        Index { entries: memory(LEAST * ENTRY, false), len: 0 }
    }

    /// Entries.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The addresses under a hash.
    pub(super) fn get(&self, hash: u32) -> impl Iterator<Item = Address> + '_ {
        self.entries_of(hash).map(|(_, address)| address)
    }

    /// Adds an address, which must not be there, under a hash.
    pub(super) fn insert(&mut self, hash: u32, address: Address) {
        if 4 * (self.len + 1) > FULL * self.places() {
            let bytes = 2 * self.entries.len();
            let larger = memory(bytes, bytes >= LARGE);
            let smaller = std::mem::replace(&mut self.entries, larger);
            for entry in smaller.chunks_exact(ENTRY) {
                if let Some((hash, address)) = read(entry) {
                    self.add(hash, address);
                }
            }
        }
        self.add(hash, address);
        self.len += 1;
    }

    /// Puts one address in the place of another.
    pub(super) fn replace(&mut self, hash: u32, old: Address, new: Address) {
        let found = self.entries_of(hash).find(|(_, address)| *address == old);
        if let Some((place, _)) = found {
            self.set(place, hash, new);
        }
    }

    /// Takes an address out.
    pub(super) fn remove(&mut self, hash: u32, address: Address) {
        let Some((mut gap, _)) = self.entries_of(hash).find(|(_, held)| *held == address) else {
            return;
        };
        self.len -= 1;
        // What stands behind only because places were taken moves up, so that a search may end at a free place.
        let mut place = self.after(gap);
        while let Some((hash, address)) = self.at(place) {
            if self.distance(self.home(hash), place) >= self.distance(gap, place) {
                self.set(gap, hash, address);
                gap = place;
            }
            place = self.after(place);
        }
        self.entries[gap * ENTRY..][..ENTRY].fill(0);
    }

    /// The entries under a hash: their places and addresses.
    fn entries_of(&self, hash: u32) -> impl Iterator<Item = (usize, Address)> + '_ {
        let mut place = self.home(hash);
        std::iter::from_fn(move || {
            let (found, at) = (self.at(place)?, place);
            place = self.after(place);
            Some((at, found))
        })
        .filter(move |(_, (other, _))| *other == hash)
        .map(|(place, (_, address))| (place, address))
    }

    fn add(&mut self, hash: u32, address: Address) {
        let mut place = self.home(hash);
        while self.at(place).is_some() {
            place = self.after(place);
        }
        self.set(place, hash, address);
    }

    fn places(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// Places are in the order of hashes.
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.places() as u64) >> 32) as usize
    }

    fn after(&self, place: usize) -> usize {
        (place + 1) & (self.places() - 1)
    }

    /// How many steps forward lead from one place to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.places() - 1)
    }

    fn at(&self, place: usize) -> Option<(u32, Address)> {
        read(&self.entries[place * ENTRY..][..ENTRY])
    }

    fn set(&mut self, place: usize, hash: u32, address: Address) {
        let entry = u64::from(hash) << 32 | u64::from(address + 1);
        self.entries[place * ENTRY..][..ENTRY].copy_from_slice(&entry.to_le_bytes());
    }
}

fn read(entry: &[u8]) -> Option<(u32, Address)> {
    let entry = u64::from_le_bytes(*entry.first_chunk()?);
    Some(((entry >> 32) as u32, (entry as Address).checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// Few hashes, at both ends, so that entries crowd and wrap around.
        #[test]
        fn it_holds_what_came_and_did_not_go(
            steps in prop::collection::vec((0..4_u8, 0..6_u32, any::<prop::sample::Index>()), 1..2000)
        ) {
            let mut index = Index::new();
            let mut held: BTreeMap<Address, u32> = BTreeMap::new();
            for (next, (what, hash, which)) in steps.into_iter().enumerate() {
                let next = next as Address;
                let hash = if hash < 3 { hash << 22 } else { u32::MAX - hash };
                let one = held.iter().nth(which.index(held.len().max(1))).map(|(a, h)| (*a, *h));
                match (what, one) {
                    (0, Some((address, hash))) => {
                        index.remove(hash, address);
                        held.remove(&address);
                    }
                    (1, Some((address, hash))) => {
                        index.replace(hash, address, next);
                        held.remove(&address);
                        held.insert(next, hash);
                    }
                    _ => {
                        index.insert(hash, next);
                        held.insert(next, hash);
                    }
                }
            }
            prop_assert_eq!(index.len(), held.len());
            for hash in held.values() {
                let mut found: Vec<Address> = index.get(*hash).collect();
                found.sort_unstable();
                let expected: Vec<Address> =
                    held.iter().filter(|(_, h)| *h == hash).map(|(a, _)| *a).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
