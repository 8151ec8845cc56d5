//! The ids of all terminals as text, so that a search is one look through long pieces of memory.

use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use tasuki_proto::{TerminalId, limits};

/// Behind each id. It comes before everything that an id may hold, so that text and ids have one order.
const END: u8 = b'\n';
/// Bytes of a block, which are what an insertion or a removal moves at most; one that would grow beyond is split first.
const BLOCK_BYTES: usize = 16 * 1024;

/// Ids in order, in blocks. Two neighbouring blocks are together about half as long as one may be, or longer.
#[derive(Debug)]
pub(super) struct Names {
    /// At least one; where there are several, none is empty.
    blocks: Vec<String>,
}

impl Names {
    /// No ids.
    pub(super) fn new() -> Names {
        Names { blocks: vec![String::new()] }
    }

    /// Puts an id where it belongs, unless it is there.
    pub(super) fn insert(&mut self, id: &TerminalId) {
        let id = id.as_str();
        let mut number = self.block_of(id);
        if self.blocks[number].len() + id.len() + 1 > BLOCK_BYTES {
            let block = &mut self.blocks[number];
            let behind = block.split_off(begin(block, block.len() / 2));
            block.shrink_to_fit();
            self.blocks.insert(number + 1, behind);
            number = self.block_of(id);
        }
        let block = &mut self.blocks[number];
        let at = place(block, |other| other < id);
        if first(&block[at..]) != id {
            block.insert(at, char::from(END));
            block.insert_str(at, id);
        }
    }

    /// Takes an id out, if it is there.
    pub(super) fn remove(&mut self, id: &TerminalId) {
        let id = id.as_str();
        let number = self.block_of(id);
        let block = &mut self.blocks[number];
        let at = place(block, |other| other < id);
        if first(&block[at..]) == id {
            block.drain(at..=at + id.len());
            self.join(number);
            self.join(number.saturating_sub(1));
        }
    }

    /// Makes one block of this one and the next where both are short.
    fn join(&mut self, number: usize) {
        let Some([one, next]) = self.blocks.get_mut(number..number + 2) else { return };
        if one.is_empty() || next.is_empty() || one.len() + next.len() <= BLOCK_BYTES / 2 {
            one.push_str(next);
            self.blocks.remove(number + 1);
        }
    }

    /// The block in which an id stands or would stand.
    fn block_of(&self, id: &str) -> usize {
        self.blocks.partition_point(|block| first(block) <= id).saturating_sub(1)
    }

    /// The ids behind `after` that contain `text`, in order.
    pub(super) fn search<'a>(&'a self, text: &'a str, after: Option<&TerminalId>) -> Search<'a> {
        let number = after.map_or(0, |after| self.block_of(after.as_str()));
        // What spans two ids is in none.
        let blocks = if text.as_bytes().contains(&END) { &[] } else { &self.blocks[number..] };
        let at = match (after, blocks.first()) {
            (Some(after), Some(block)) => place(block, |id| id <= after.as_str()),
            _ => 0,
        };
        Search { finder: Finder::new(text), blocks, at, left: limits::SEARCH_BYTES }
    }
}

/// Goes through the ids that contain a text. It ends where there are no more, or when it has looked at
/// [`limits::SEARCH_BYTES`] and is through with a block.
pub(super) struct Search<'a> {
    finder: Finder<'a>,
    /// The block that is looked at, and those behind it.
    blocks: &'a [String],
    /// The end of what was looked at in this block: there an id begins, or the block ends.
    at: usize,
    /// Bytes that may still be looked at.
    left: usize,
}

impl<'a> Search<'a> {
    /// The last id that was looked at; `None` if it is the last of all. To be asked after [`Iterator::next`].
    pub(super) fn reached(&self) -> Option<&'a str> {
        let block = self.blocks.first()?;
        let more = self.at < block.len() || self.blocks.len() > 1;
        block[..self.at].lines().next_back().filter(|_| more)
    }
}

impl<'a> Iterator for Search<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let block = self.blocks.first()?;
            let rest = &block[self.at..];
            let hit = self.finder.find(rest.as_bytes()).filter(|hit| *hit < rest.len());
            if let Some(hit) = hit {
                let begin = begin(rest, hit);
                let id = first(&rest[begin..]);
                self.at += begin + id.len() + 1;
                return Some(id);
            }
            self.at = block.len();
            self.left = self.left.saturating_sub(block.len());
            if self.left == 0 || self.blocks.len() == 1 {
                return None;
            }
            self.blocks = &self.blocks[1..];
            self.at = 0;
        }
    }
}

/// The first id of a text; an empty word where it is empty.
fn first(text: &str) -> &str {
    &text[..memchr(END, text.as_bytes()).unwrap_or(text.len())]
}

/// Where in a text the id begins whose part or end stands at `at`.
fn begin(text: &str, at: usize) -> usize {
    memrchr(END, &text.as_bytes()[..at]).map_or(0, |end| end + 1)
}

/// Where in a block the first id begins that does not come `before`, or the block ends.
fn place(block: &str, before: impl Fn(&str) -> bool) -> usize {
    let (mut low, mut high) = (0, block.len());
    while low < high {
        let middle = begin(block, low.midpoint(high));
        let id = first(&block[middle..]);
        if before(id) {
            low = middle + id.len() + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Bound;

    use rand::rngs::StdRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Short ones, long ones, many that begin alike.
    fn random_id(rng: &mut StdRng) -> TerminalId {
        let number: u32 = rng.random_range(0..3_000);
        let name = match rng.random_range(0..4) {
            0 => format!("{number:b}"),
            1 => format!("terminal-{number:06}"),
            2 => format!("{}-{number}", "a".repeat(rng.random_range(1..58))),
            _ => format!("plant-{}-{number:x}", number % 7),
        };
        TerminalId::new(&name).unwrap()
    }

    fn random_text(rng: &mut StdRng, ids: &BTreeSet<TerminalId>) -> String {
        let known: Vec<&TerminalId> = ids.iter().collect();
        let id = known.choose(rng).map_or("a", |id| id.as_str());
        let from = rng.random_range(0..id.len());
        match rng.random_range(0..8) {
            0 => String::new(),
            1 => ["\n", "a\nb", "A", "ä", "0\n"].choose(rng).unwrap().to_string(),
            2 => random_id(rng).to_string(),
            3 => format!("{id}\n"),
            _ => id[from..rng.random_range(from + 1..=id.len())].to_owned(),
        }
    }

    fn is_sound(names: &Names, ids: &BTreeSet<TerminalId>) {
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        assert_eq!(names.blocks.concat(), text);
        assert!(names.blocks.iter().all(|block| block.len() <= BLOCK_BYTES));
        assert!(names.blocks.len() == 1 || names.blocks.iter().all(|block| !block.is_empty()));
        let pairs = names.blocks.windows(2).map(|pair| pair[0].len() + pair[1].len());
        assert!(pairs.min().is_none_or(|least| least > BLOCK_BYTES / 2 - limits::NAME_BYTES));
    }

    /// Searches page by page, each page of at most `limit` ids and through about `bytes`.
    fn agrees(
        names: &Names,
        ids: &BTreeSet<TerminalId>,
        text: &str,
        mut after: Option<TerminalId>,
        (limit, bytes): (usize, usize),
    ) {
        loop {
            let behind =
                (after.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
            let all = ids.range::<TerminalId, _>(behind);
            let mut expected = all.map(TerminalId::as_str).filter(|id| id.contains(text));
            let mut search = names.search(text, after.as_ref());
            search.left = bytes;
            let found: Vec<&str> = search.by_ref().take(limit).collect();
            let reached = search.reached();
            let same: Vec<&str> = expected.by_ref().take(found.len()).collect();
            assert_eq!(found, same, "{text:?} behind {after:?}");
            let Some(reached) = reached else {
                assert_eq!(expected.next(), None, "{text:?} behind {after:?}");
                return;
            };
            assert!(expected.next().is_none_or(|id| id > reached), "{text:?} behind {after:?}");
            if found.len() == limit {
                assert_eq!(found.last(), Some(&reached), "{text:?} behind {after:?}");
            }
            let reached = TerminalId::new(reached).unwrap();
            assert!(Some(&reached) > after.as_ref() && Some(&reached) < ids.last());
            assert!(ids.contains(&reached));
            after = Some(reached);
        }
    }

    #[test]
    fn searches_find_what_a_look_at_each_id_finds() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut names, mut ids) = (Names::new(), BTreeSet::new());
        let mut most = 0;
        for step in 0..24_000 {
            // It grows, then nearly all go.
            let id = random_id(&mut rng);
            if rng.random_bool(if step < 12_000 { 0.9 } else { 0.02 }) {
                names.insert(&id);
                ids.insert(id);
            } else {
                let id = ids.range(&id..).next().unwrap_or(&id).clone();
                names.remove(&id);
                ids.remove(&id);
            }
            most = most.max(names.blocks.len());
            if step % 60 == 0 {
                is_sound(&names, &ids);
                let text = random_text(&mut rng, &ids);
                let after = match rng.random_range(0..5) {
                    0 => None,
                    1 => Some(TerminalId::new("0").unwrap()),
                    2 => Some(TerminalId::new("z").unwrap()),
                    3 => ids.range(random_id(&mut rng)..).next().cloned(),
                    _ => Some(random_id(&mut rng)),
                };
                let limit = *[1, 7, 100, usize::MAX].choose(&mut rng).unwrap();
                let bytes =
                    *[BLOCK_BYTES + 1, 40_000, limits::SEARCH_BYTES].choose(&mut rng).unwrap();
                agrees(&names, &ids, &text, after, (limit.max(ids.len() / 50), bytes));
            }
        }
        assert!(
            most > 8 && names.blocks.len() < most,
            "{most} blocks, then {}",
            names.blocks.len()
        );
        for id in &ids {
            names.remove(id);
        }
        is_sound(&names, &BTreeSet::new());
        agrees(&names, &BTreeSet::new(), "", None, (1, limits::SEARCH_BYTES));
    }

    fn numbered(numbers: std::ops::Range<u32>) -> impl Iterator<Item = TerminalId> {
        numbers.map(|number| TerminalId::new(&format!("terminal-{number:06}")).unwrap())
    }

    #[test]
    fn blocks_that_most_ids_left_become_one() {
        for backwards in [false, true] {
            let mut names = Names::new();
            numbered(0..10_000).for_each(|id| names.insert(&id));
            let (left, mut gone): (Vec<_>, Vec<_>) =
                numbered(0..10_000).partition(|id| id.as_str().ends_with("50"));
            if backwards {
                gone.reverse();
            }
            gone.iter().for_each(|id| names.remove(id));
            is_sound(&names, &left.into_iter().collect());
            assert_eq!(names.blocks.len(), 1);
        }
    }

    #[test]
    fn a_search_stops_behind_the_block_in_which_it_has_looked_at_enough() {
        let mut names = Names::new();
        numbered(0..100_000).for_each(|id| names.insert(&id));
        let mut after = None;
        let mut pages = 0;
        loop {
            let mut search = names.search("nobody", after.as_ref());
            assert_eq!(search.next(), None);
            assert_eq!(search.next(), None, "also when asked again");
            pages += 1;
            let Some(reached) = search.reached() else { break };
            after = Some(TerminalId::new(reached).unwrap());
        }
        assert_eq!(pages, 2, "of 1.6 MB");
    }
}
