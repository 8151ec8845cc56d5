//! Connections of strangers: so many at once, and whoever waits for nothing makes room.
//!
//! A connection is *idle* while it has asked for nothing, or has its answer. When the room is full, the oldest idle
//! connection of the source that has most of them is given up for the next one. So a source that holds many connections
//! open loses its own, and one that has few keeps them; where all are at work, the next one is refused.

use std::collections::BTreeMap;

/// A connection, by a number that is never used twice; the later one has the higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(u64);

/// What becomes of a connection that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// It is in. The other one is given up for it.
    In(Seat, Option<Seat>),
    /// There is no room.
    Full,
}

#[derive(Debug)]
struct Guest<S> {
    source: S,
    idle: bool,
}

/// The connections of one door.
#[derive(Debug)]
pub struct Room<S> {
    most: usize,
    next: u64,
    guests: BTreeMap<Seat, Guest<S>>,
    made_room: u64,
    refused: u64,
}

impl<S: Ord + Clone> Room<S> {
    /// Nobody is in; at most `most` may be.
    pub fn new(most: usize) -> Self {
        Self { most, next: 1, guests: BTreeMap::new(), made_room: 0, refused: 0 }
    }

    /// A connection comes in; it is idle.
    pub fn enter(&mut self, source: S) -> Entry {
        let mut given_up = None;
        if self.guests.len() >= self.most {
            let Some(oldest) = self.oldest_of_most() else {
                self.refused += 1;
                return Entry::Full;
            };
            self.made_room += 1;
            self.guests.remove(&oldest);
            given_up = Some(oldest);
        }
        let seat = Seat(self.next);
        self.next += 1;
        self.guests.insert(seat, Guest { source, idle: true });
        Entry::In(seat, given_up)
    }

    /// The oldest idle connection of the source that has most idle ones.
    fn oldest_of_most(&self) -> Option<Seat> {
        let idle = || self.guests.iter().filter(|(_, guest)| guest.idle);
        let mut counts: BTreeMap<&S, usize> = BTreeMap::new();
        for (_, guest) in idle() {
            *counts.entry(&guest.source).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        let of_most = |source: &S| counts.get(source) == Some(&most);
        idle().find(|(_, guest)| of_most(&guest.source)).map(|(seat, _)| *seat)
    }

    /// A connection has something to do, or has nothing to do again; whether it is in.
    pub fn set_idle(&mut self, seat: Seat, idle: bool) -> bool {
        self.guests.get_mut(&seat).map(|guest| guest.idle = idle).is_some()
    }

    /// A connection is gone.
    pub fn leave(&mut self, seat: Seat) {
        self.guests.remove(&seat);
    }

    /// How many connections are in that belong to `source`.
    pub fn of(&self, source: &S) -> usize {
        self.guests.values().filter(|guest| guest.source == *source).count()
    }

    /// How many of them are at work.
    pub fn busy_of(&self, source: &S) -> usize {
        let busy = |guest: &&Guest<S>| !guest.idle && guest.source == *source;
        self.guests.values().filter(busy).count()
    }

    /// Connections that made room for another one, and those that were refused, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (self.made_room, self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(room: &mut Room<u8>, source: u8) -> (Seat, Option<Seat>) {
        match room.enter(source) {
            Entry::In(seat, other) => (seat, other),
            Entry::Full => panic!("there is room"),
        }
    }

    #[test]
    fn who_holds_most_open_makes_room() {
        let mut room = Room::new(4);
        let (few, _) = enter(&mut room, 1);
        let many: Vec<Seat> = (0..3).map(|_| enter(&mut room, 2).0).collect();
        let (third, given_up) = enter(&mut room, 3);
        assert_eq!(given_up, Some(many[0]));
        // The same source loses its own oldest one, and none that is at work.
        assert!(room.set_idle(many[1], false) && !room.set_idle(many[0], false));
        assert_eq!(enter(&mut room, 2).1, Some(few), "all have one idle: the first source");
        for seat in [many[2], third] {
            room.set_idle(seat, false);
        }
        let (last, given_up) = enter(&mut room, 4);
        assert!(given_up.is_some());
        room.set_idle(last, false);
        assert_eq!(room.enter(5), Entry::Full);
        assert_eq!(room.counts(), (3, 1));
        room.leave(last);
        assert_eq!(enter(&mut room, 5).1, None);
        assert_eq!((room.of(&4), room.of(&5)), (0, 1));
        assert_eq!((room.busy_of(&2), room.busy_of(&5)), (2, 0));
    }

    #[test]
    fn a_flood_never_reaches_who_has_one() {
        let mut room = Room::new(64);
        let (honest, _) = enter(&mut room, 1);
        for _ in 0..10_000 {
            enter(&mut room, 2);
        }
        assert!(room.set_idle(honest, false));
        assert!(room.guests.len() == 64);
    }
}
