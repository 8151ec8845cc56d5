//! Whether an offered file fits into the inbox, and which unfinished files make room for it. Pure.

use std::time::Duration;

use tasuki_proto::{Refusal, RefusalCode, TerminalId, limits};

/// How much the inbox may hold, finished and unfinished files together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Bytes of all senders.
    pub total: u64,
    /// Bytes of one sender.
    pub per_sender: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { total: limits::INBOX_BYTES, per_sender: limits::INBOX_BYTES_PER_SENDER }
    }
}

/// An unfinished file that no transfer writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// Its name in the folder of unfinished files.
    pub name: String,
    /// Who sent it; `None` when its name does not say.
    pub sender: Option<TerminalId>,
    /// Bytes that it takes on the disk.
    pub bytes: u64,
    /// How long ago it was last written to.
    pub age: Duration,
}

/// A file that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Who offers it.
    pub sender: TerminalId,
    /// Its size.
    pub size: u64,
    /// The name of what an earlier try left of it; that rest is not counted as one.
    pub rest: String,
    /// Bytes of it that are on the disk already.
    pub there: u64,
    /// Bytes of the sender's own finished file that it replaces.
    pub replaces: u64,
}

/// What the inbox holds and what the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Bytes that the disk has free for the agent.
    pub free: u64,
    /// Bytes of the whole disk.
    pub disk: u64,
    /// Bytes that transfers under way are still going to write.
    pub promised: u64,
    /// Transfers under way.
    pub running: usize,
    /// Transfers under way of the sender.
    pub running_of_sender: usize,
    /// Bytes of finished files and of transfers under way, of all senders.
    pub total: u64,
    /// As before, of the sender.
    pub of_sender: u64,
}

/// Bytes of the disk that the inbox leaves to others.
pub fn reserve(disk: u64) -> u64 {
    limits::INBOX_DISK_LEFT.min(disk / 20)
}

/// Which rests have to be removed so that the file fits. The sender's own go first, the oldest first; others only when
/// they are older than [`limits::REST_SAFE_TIME`], so that nobody can push out what another is about to continue.
///
/// # Errors
/// `inbox-full` when it does not fit whatever is removed, `busy` when there are too many unfinished files. Nothing is to
/// be removed then.
pub fn make_room(
    wish: &Wish,
    held: &Held,
    quota: &Quota,
    rests: &[Rest],
) -> Result<Vec<String>, Refusal> {
    let need = wish.size.saturating_sub(wish.there);
    let claimed = reserve(held.disk).saturating_add(held.promised);
    let is_own = |rest: &Rest| rest.sender.as_ref() == Some(&wish.sender);
    let mut order: Vec<&Rest> = rests.iter().filter(|rest| rest.name != wish.rest).collect();
    order.sort_by_key(|rest| (!is_own(rest), std::cmp::Reverse(rest.age)));
    let mut state = State {
        free: held.free,
        claimed,
        of_sender: held.of_sender.saturating_sub(wish.replaces).saturating_add(wish.size),
        total: held.total.saturating_sub(wish.replaces).saturating_add(wish.size),
        own: held.running_of_sender + 1,
        all: held.running + 1,
    };
    for rest in &order {
        state.all += 1;
        state.total = state.total.saturating_add(rest.bytes);
        if is_own(rest) {
            state.own += 1;
            state.of_sender = state.of_sender.saturating_add(rest.bytes);
        }
    }
    let mut removed = Vec::new();
    for rest in order {
        let own = is_own(rest);
        let wanted = state.misses(need, quota).is_some_and(|miss| own || miss.others_help());
        if !wanted || !own && rest.age < limits::REST_SAFE_TIME {
            continue;
        }
        state.free = state.free.saturating_add(rest.bytes);
        state.total = state.total.saturating_sub(rest.bytes);
        state.all -= 1;
        if own {
            state.own -= 1;
            state.of_sender = state.of_sender.saturating_sub(rest.bytes);
        }
        removed.push(rest.name.clone());
    }
    match state.misses(need, quota) {
        None => Ok(removed),
        Some(Miss::Disk) => Err(full(need, state.free.saturating_sub(claimed), "free on the disk")),
        Some(Miss::Sender) => {
            let left = quota.per_sender.saturating_sub(state.of_sender.saturating_sub(wish.size));
            Err(full(wish.size, left, "left for one sender"))
        }
        Some(Miss::Total) => {
            let left = quota.total.saturating_sub(state.total.saturating_sub(wish.size));
            Err(full(wish.size, left, "left in the inbox"))
        }
        Some(Miss::Count) => Err(Refusal::new(RefusalCode::Busy, "unfinished files")),
    }
}

/// What would be held with the file.
struct State {
    /// Bytes free on the disk, those included that others may claim: room that is owed has to be made good first.
    free: u64,
    /// Bytes of them that transfers under way are going to write or that the inbox leaves to others.
    claimed: u64,
    of_sender: u64,
    total: u64,
    own: usize,
    all: usize,
}

#[derive(Clone, Copy)]
enum Miss {
    Disk,
    Sender,
    Total,
    Count,
}

impl Miss {
    /// Whether removing another sender's rest can help.
    const fn others_help(self) -> bool {
        !matches!(self, Miss::Sender)
    }
}

impl State {
    fn misses(&self, need: u64, quota: &Quota) -> Option<Miss> {
        if self.of_sender > quota.per_sender {
            Some(Miss::Sender)
        } else if self.total > quota.total {
            Some(Miss::Total)
        } else if need.saturating_add(self.claimed) > self.free {
            Some(Miss::Disk)
        } else if self.own > limits::UNFINISHED_FILES_PER_SENDER
            || self.all > limits::UNFINISHED_FILES
        {
            Some(Miss::Count)
        } else {
            None
        }
    }
}

fn full(needed: u64, left: u64, where_: &str) -> Refusal {
    let [needed, left] = [needed, left].map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    Refusal::new(RefusalCode::InboxFull, format!("it needs {needed}, and {left} are {where_}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn peer(name: &str) -> TerminalId {
        TerminalId::new(name).unwrap()
    }

    fn wish(size: u64) -> Wish {
        Wish { sender: peer("a"), size, rest: "a.x.part".into(), there: 0, replaces: 0 }
    }

    fn rest(sender: &str, number: u32, bytes: u64, age: Duration) -> Rest {
        Rest { name: format!("{sender}.{number}.part"), sender: Some(peer(sender)), bytes, age }
    }

    const QUOTA: Quota = Quota { total: 1000, per_sender: 500 };

    fn held(free: u64) -> Held {
        Held { free, ..Held::default() }
    }

    #[test]
    fn a_file_that_does_not_fit_the_disk_is_refused_and_nothing_is_removed() {
        let rests = [rest("a", 1, 50, HOUR * 2)];
        assert_eq!(make_room(&wish(100), &held(100), &QUOTA, &rests), Ok(vec![]));
        assert_eq!(make_room(&wish(120), &held(100), &QUOTA, &rests).unwrap(), ["a.1.part"]);
        let refusal = make_room(&wish(151), &held(100), &QUOTA, &rests).unwrap_err();
        assert_eq!(refusal.code, RefusalCode::InboxFull);
        let busy = Held { promised: 60, ..held(100) };
        assert!(make_room(&wish(50), &busy, &QUOTA, &[]).is_err());
        let owed = Held { promised: 33, ..held(0) };
        assert!(make_room(&wish(50), &owed, &QUOTA, &rests).is_err());
        assert_eq!(make_room(&wish(17), &owed, &QUOTA, &rests).unwrap(), ["a.1.part"]);
        let continued = Wish { there: 90, ..wish(151) };
        assert_eq!(make_room(&continued, &held(100), &QUOTA, &[]), Ok(vec![]));
    }

    #[test]
    fn some_room_is_left_to_others() {
        let disk = Held { free: 100, disk: 1000, ..Held::default() };
        assert_eq!(reserve(1000), 50);
        assert!(make_room(&wish(50), &disk, &QUOTA, &[]).is_ok());
        assert!(make_room(&wish(51), &disk, &QUOTA, &[]).is_err());
        assert_eq!(reserve(1 << 50), limits::INBOX_DISK_LEFT);
    }

    #[test]
    fn own_rests_go_first_and_what_others_may_continue_stays() {
        let rests = [
            rest("b", 1, 100, HOUR / 2),
            rest("b", 2, 100, HOUR * 9),
            rest("a", 1, 100, HOUR / 9),
            rest("a", 2, 100, HOUR),
        ];
        let room = |size| make_room(&wish(size), &held(100), &QUOTA, &rests);
        assert_eq!(room(150).unwrap(), ["a.2.part"]);
        assert_eq!(room(300).unwrap(), ["a.2.part", "a.1.part"]);
        assert_eq!(room(400).unwrap(), ["a.2.part", "a.1.part", "b.2.part"]);
        assert!(room(401).is_err());
    }

    #[test]
    fn quotas_hold_in_total_and_for_each_sender() {
        let free = Held { free: 1 << 40, total: 900, of_sender: 450, ..Held::default() };
        assert!(make_room(&wish(50), &free, &QUOTA, &[]).is_ok());
        let refusal = make_room(&wish(51), &free, &QUOTA, &[]).unwrap_err();
        assert!(refusal.detail.contains("one sender"), "{refusal}");
        let full = Held { of_sender: 0, ..free };
        let refusal = make_room(&wish(101), &full, &QUOTA, &[]).unwrap_err();
        assert!(refusal.detail.contains("in the inbox"), "{refusal}");
        let replacing = Wish { replaces: 100, ..wish(150) };
        assert!(make_room(&replacing, &free, &QUOTA, &[]).is_ok());
        assert_eq!(refusal.code, RefusalCode::InboxFull);
    }

    #[test]
    fn unfinished_files_are_counted() {
        let free = Held { free: 1 << 40, ..Held::default() };
        let own: Vec<Rest> = (0..limits::UNFINISHED_FILES_PER_SENDER as u32)
            .map(|n| rest("a", n, 1, HOUR * n))
            .collect();
        let removed = make_room(&wish(1), &free, &QUOTA, &own).unwrap();
        assert_eq!(removed, [own.last().unwrap().name.clone()]);
        let busy =
            Held { running_of_sender: limits::UNFINISHED_FILES_PER_SENDER, running: 20, ..free };
        assert_eq!(make_room(&wish(1), &busy, &QUOTA, &[]).unwrap_err().code, RefusalCode::Busy);
    }

    proptest! {
        #[test]
        fn what_is_let_in_fits(
            size in 0..400_u64, free in 0..600_u64, promised in 0..100_u64, total in 0..900_u64,
            rests in proptest::collection::vec((0..2_u32, 0..200_u64, 0..5_u32), 0..20),
        ) {
            let rests: Vec<Rest> = rests.iter().enumerate().map(|(n, (who, bytes, age))| {
                rest(["a", "b"][*who as usize], n as u32, *bytes, HOUR / 2 * *age)
            }).collect();
            let held = Held { free, promised, total, of_sender: total / 2, ..Held::default() };
            if let Ok(removed) = make_room(&wish(size), &held, &QUOTA, &rests) {
                let gone: Vec<&Rest> = rests.iter().filter(|r| removed.contains(&r.name)).collect();
                let freed: u64 = gone.iter().map(|rest| rest.bytes).sum();
                prop_assert!(size + promised <= free + freed);
                let left: u64 = rests.iter().map(|rest| rest.bytes).sum::<u64>() - freed;
                prop_assert!(total + size + left <= QUOTA.total);
                for rest in gone {
                    prop_assert!(rest.sender == Some(peer("a")) || rest.age >= limits::REST_SAFE_TIME);
                }
            }
        }
    }
}
