//! Memory for rows: slots of few sizes in large pieces of memory.
//!
//! A row lies in a slot of the smallest size that takes it, at most 16 bytes or an eighth larger than the row. A page
//! holds slots of one size; a page whose last row went serves any size again. So what rows of other sizes left behind
//! is at most one page a size and the gaps in pages that are in use, and a row costs neither a handle nor the
//! allocator's head. Memory is asked for in chunks, and after the first the kernel is asked for large pages: a look-up
//! reads a few rows anywhere in some hundred megabytes, and would else wait for the page tables as well.

use std::alloc::{Layout, handle_alloc_error};
use std::collections::BTreeSet;
use std::hint::black_box;

use memmap2::{Advice, MmapMut};
use tasuki_proto::record;

/// Bytes between two places where a row can begin.
const UNIT: usize = 16;
/// Bytes of a page: 128 KiB.
const PAGE: usize = record::LONGEST.next_power_of_two();
/// Bytes that are asked of the kernel at once; they take real memory where they are written.
const CHUNK: usize = 16 * 1024 * 1024;
/// Bytes that come from memory at once.
const LINE: usize = 64;
/// Chunks whose every place has an [`Address`] of its own: 64 GiB.
const CHUNKS: usize = (UNIT << 32) / CHUNK;

/// Where a row lies, in units from the first chunk's beginning.
pub(super) type Address = u32;

const NOWHERE: Address = Address::MAX;

#[derive(Debug, Clone)]
struct Page {
    /// Which of the sizes its slots have.
    size: usize,
    /// Slots with a row.
    live: usize,
    /// Slots that had a row at some time: the first so many.
    used: usize,
    /// The first of those without a row; each holds the address of the next.
    free: Address,
}

/// The memory.
#[derive(Debug)]
pub(super) struct Arena {
    chunks: Vec<MmapMut>,
    pages: Vec<Page>,
    /// Bytes of a slot, ascending.
    sizes: Vec<usize>,
    /// By size: pages in use that have a free slot.
    roomy: Vec<BTreeSet<usize>>,
    /// Pages without a row.
    empty: BTreeSet<usize>,
}

impl Arena {
    pub(super) fn new() -> Arena {
        let next = |size: &usize| Some(size + (size / 8 / UNIT * UNIT).max(UNIT));
        let sizes: Vec<usize> = std::iter::successors(Some(UNIT), next)
            .take_while(|size| *size <= PAGE / 2)
            .chain([PAGE])
            .collect();
        Arena {
            chunks: Vec::new(),
            pages: Vec::new(),
            roomy: vec![BTreeSet::new(); sizes.len()],
            sizes,
            empty: BTreeSet::new(),
        }
    }

    /// The bytes from a place on: those put there, and whatever follows.
    pub(super) fn at(&self, address: Address) -> &[u8] {
        let at = address as usize * UNIT;
        &self.chunks[at / CHUNK][at % CHUNK..]
    }

    /// Reads where a row's head ends and its content goes on, so that both are on their way from memory.
    pub(super) fn touch(&self, address: Address) {
        let bytes = self.at(address);
        black_box((bytes[0], bytes.get(LINE).copied()));
    }

    fn at_mut(&mut self, address: Address) -> &mut [u8] {
        let at = address as usize * UNIT;
        &mut self.chunks[at / CHUNK][at % CHUNK..]
    }

    /// Takes a row in; at most [`record::LONGEST`] bytes.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Address {
        let size = self.sizes.partition_point(|size| *size < bytes.len());
        let number = match self.roomy[size].first() {
            Some(number) => *number,
            None => self.open(size),
        };
        let (slot, page) = (self.sizes[size], &mut self.pages[number]);
        let free = page.free;
        let address = if free == NOWHERE {
            page.used += 1;
            ((number * PAGE + (page.used - 1) * slot) / UNIT) as Address
        } else {
            free
        };
        page.live += 1;
        if page.live == PAGE / slot {
            self.roomy[size].remove(&number);
        }
        if free != NOWHERE {
            self.pages[number].free = read(self.at(address));
        }
        self.at_mut(address)[..bytes.len()].copy_from_slice(bytes);
        address
    }

    /// Gives up the place of a row.
    pub(super) fn take(&mut self, address: Address) {
        let number = address as usize * UNIT / PAGE;
        let page = &mut self.pages[number];
        page.live -= 1;
        if page.live == 0 {
            self.roomy[page.size].remove(&number);
            self.empty.insert(number);
            return;
        }
        let next = std::mem::replace(&mut page.free, address);
        self.roomy[page.size].insert(number);
        self.at_mut(address)[..4].copy_from_slice(&next.to_le_bytes());
    }

    /// Makes an empty page one of this size.
    fn open(&mut self, size: usize) -> usize {
        if self.empty.is_empty() {
            self.grow();
        }
        let number = self.empty.pop_first().unwrap_or_else(|| unreachable!("the arena grew"));
        self.pages[number] = Page { size, live: 0, used: 0, free: NOWHERE };
        self.roomy[size].insert(number);
        number
    }

    fn grow(&mut self) {
        if self.chunks.len() == CHUNKS {
            handle_alloc_error(Layout::new::<[u8; CHUNK]>());
        }
        self.chunks.push(memory(CHUNK, !self.chunks.is_empty()));
        let from = self.pages.len();
        self.pages.resize(from + CHUNK / PAGE, Page { size: 0, live: 0, used: 0, free: NOWHERE });
        self.empty.extend(from..self.pages.len());
    }
}

/// So many bytes, all zero, in large pages or not. Without memory the process ends, as with any other allocation.
pub(super) fn memory(bytes: usize, large: bool) -> MmapMut {
    let memory = MmapMut::map_anon(bytes).unwrap_or_else(|_| {
        handle_alloc_error(Layout::array::<u8>(bytes).unwrap_or(Layout::new::<u8>()))
    });
    if large {
        // Where the kernel has no large pages, small ones do.
        let _ = memory.advise(Advice::HugePage);
    }
    memory
}

fn read(slot: &[u8]) -> Address {
    slot.first_chunk().map_or(NOWHERE, |bytes| Address::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of this length that tell their number.
    fn row(number: usize, length: usize) -> Vec<u8> {
        number.to_le_bytes().iter().copied().cycle().take(length).collect()
    }

    proptest! {
        #[test]
        fn rows_keep_their_bytes_whatever_comes_and_goes(
            steps in prop::collection::vec((any::<bool>(), 49..2000_usize, any::<prop::sample::Index>()), 1..400)
        ) {
            let mut arena = Arena::new();
            let mut held: Vec<(Address, Vec<u8>)> = Vec::new();
            for (number, (comes, length, which)) in steps.into_iter().enumerate() {
                if comes || held.is_empty() {
                    let bytes = row(number, length);
                    held.push((arena.put(&bytes), bytes));
                } else {
                    let (address, _) = held.swap_remove(which.index(held.len()));
                    arena.take(address);
                }
                for (address, bytes) in &held {
                    prop_assert_eq!(&arena.at(*address)[..bytes.len()], &bytes[..]);
                }
            }
            for (address, _) in held {
                arena.take(address);
            }
            prop_assert_eq!(arena.empty.len(), arena.pages.len());
            prop_assert!(arena.roomy.iter().all(BTreeSet::is_empty));
        }
    }

    #[test]
    fn no_size_wastes_more_than_an_eighth() {
        let arena = Arena::new();
        for pair in arena.sizes.windows(2).filter(|pair| pair[1] <= PAGE / 2) {
            assert!(pair[1] - pair[0] <= UNIT.max(pair[0] / 8), "{pair:?}");
        }
        assert_eq!(arena.sizes.last(), Some(&PAGE));
    }

    #[test]
    fn pages_of_one_size_serve_another_after_its_rows_went() {
        let mut arena = Arena::new();
        for length in [60, 100, 200, 1000, record::LONGEST] {
            let rows = 8 * PAGE / length;
            let held: Vec<Address> =
                (0..rows).map(|number| arena.put(&row(number, length))).collect();
            held.into_iter().for_each(|address| arena.take(address));
        }
        assert_eq!(arena.chunks.len(), 1);
    }
}
