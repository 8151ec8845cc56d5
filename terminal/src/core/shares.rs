//! What each peer of a terminal may hold of something that all of them share.

use std::collections::BTreeMap;

use tasuki_proto::TerminalId;

/// An amount that peers share: each may hold up to a limit of its own, and all together up to another one.
#[derive(Debug)]
pub struct Shares {
    each: u64,
    all: u64,
    held_by_peer: BTreeMap<TerminalId, u64>,
    held: u64,
}

impl Shares {
    /// Nothing is held.
    pub const fn new(each: u64, all: u64) -> Self {
        Self { each, all, held_by_peer: BTreeMap::new(), held: 0 }
    }

    /// What `peer` may still take.
    fn left(&self, peer: &TerminalId) -> u64 {
        let held = self.held_by_peer.get(peer).copied().unwrap_or_default();
        (self.each - held.min(self.each)).min(self.all - self.held.min(self.all))
    }

    /// Takes `wanted` for a peer; whether that much was left.
    pub fn take(&mut self, peer: &TerminalId, wanted: u64) -> bool {
        let enough = self.left(peer) >= wanted;
        if enough {
            *self.held_by_peer.entry(peer.clone()).or_default() += wanted;
            self.held += wanted;
        }
        enough
    }

    /// Takes `wanted` for a peer, or a quarter of what is left where that is less: later ones get less, never nothing.
    pub fn take_part(&mut self, peer: &TerminalId, wanted: u64) -> u64 {
        let part = wanted.min(self.left(peer) / 4);
        if self.take(peer, part) { part } else { 0 }
    }

    /// Gives back what was taken.
    pub fn give(&mut self, peer: &TerminalId, amount: u64) {
        if let Some(held) = self.held_by_peer.get_mut(peer) {
            *held = held.saturating_sub(amount);
            if *held == 0 {
                self.held_by_peer.remove(peer);
            }
        }
        self.held = self.held.saturating_sub(amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_limit_and_so_have_all() {
        let [a, b, c] = ["a", "b", "c"].map(|name| TerminalId::new(name).unwrap());
        let mut shares = Shares::new(3, 5);
        assert_eq!((0..9).filter(|_| shares.take(&a, 1)).count(), 3);
        assert_eq!((0..9).filter(|_| shares.take(&b, 1)).count(), 2);
        assert!(!shares.take(&c, 1));
        shares.give(&a, 3);
        assert!(shares.take(&c, 3));
        shares.give(&b, 2);
        shares.give(&c, 3);
        assert_eq!((shares.held, shares.held_by_peer.len()), (0, 0));
    }

    #[test]
    fn parts_get_smaller_and_fit() {
        let a = TerminalId::new("a").unwrap();
        let mut shares = Shares::new(1_000, 5_000);
        let parts: Vec<u64> = (0..50).map(|_| shares.take_part(&a, 200)).collect();
        assert_eq!(parts[..2], [200, 200]);
        assert!(parts.is_sorted_by(|x, y| x >= y) && parts.iter().sum::<u64>() <= 1_000);
    }
}
