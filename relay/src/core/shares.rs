//! Places that many want: each takes a share, and nothing is taken from anybody.
//!
//! Whoever asks may hold at most `times` as many places as are free. With 1, one asker that wants everything gets half of all
//! places, and each that comes after it half of what is left; with 3, three quarters. So no single asker, and no few of them
//! together, take the last place.

use std::collections::BTreeMap;

/// Who holds how many places.
#[derive(Debug)]
pub struct Shares<K> {
    held_by_key: BTreeMap<K, usize>,
    all: usize,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self { held_by_key: BTreeMap::new(), all: 0 }
    }
}

impl<K: Ord + Clone> Shares<K> {
    /// Whether `key` may take one more of `most` places, holding no more than `times` as many as are free.
    pub fn has_room(&self, key: &K, most: usize, times: usize) -> bool {
        let free = most.saturating_sub(self.all);
        free > 0 && self.held(key) < free.saturating_mul(times)
    }

    /// Takes a place, whether there is room or not.
    pub fn take(&mut self, key: &K) {
        self.all += 1;
        match self.held_by_key.get_mut(key) {
            Some(held) => *held += 1,
            None => drop(self.held_by_key.insert(key.clone(), 1)),
        }
    }

    /// Takes a place if there is room.
    pub fn try_take(&mut self, key: &K, most: usize, times: usize) -> bool {
        let room = self.has_room(key, most, times);
        if room {
            self.take(key);
        }
        room
    }

    /// Gives a place back.
    pub fn give(&mut self, key: &K) {
        let Some(held) = self.held_by_key.get_mut(key) else { return };
        *held -= 1;
        self.all -= 1;
        if *held == 0 {
            self.held_by_key.remove(key);
        }
    }

    /// How many places `key` holds.
    pub fn held(&self, key: &K) -> usize {
        self.held_by_key.get(key).copied().unwrap_or(0)
    }

    /// Whether nobody holds a place.
    pub fn is_empty(&self) -> bool {
        self.all == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_leaves_half_and_many_leave_some() {
        let mut shares = Shares::default();
        while shares.try_take(&1, 100, 1) {}
        assert_eq!(shares.held(&1), 50);
        for greedy in 2..6 {
            while shares.try_take(&greedy, 100, 1) {}
            assert!(shares.held(&greedy) >= 1, "{greedy} found nothing");
        }
        shares.give(&1);
        assert!(shares.try_take(&99, 100, 1));
        let mut wide = Shares::default();
        while wide.try_take(&1, 100, 3) {}
        assert_eq!(wide.held(&1), 75);
        assert!(wide.try_take(&2, 100, 3));
        // A single place is somebody's.
        assert!(Shares::default().try_take(&1, 1, 1));
        assert!(!Shares::default().try_take(&1, 0, 3));
    }

    #[test]
    fn what_is_given_back_is_forgotten() {
        let mut shares = Shares::default();
        for key in 0..5 {
            shares.take(&key);
            shares.take(&key);
        }
        for key in 0..5 {
            shares.give(&key);
            shares.give(&key);
            shares.give(&key);
        }
        assert!(shares.is_empty() && shares.held_by_key.is_empty());
    }
}
