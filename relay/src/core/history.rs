//! What became of terminals and relays, as this relay saw it since its start: for people.
//!
//! Each event takes a fixed number of bytes. A name keeps its latest [`limits::HISTORY_PER_NAME`] events, all names
//! together [`limits::HISTORY`]; the oldest make room.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use tasuki_proto::rows::AttachmentRole;
use tasuki_proto::{RelayId, RelayName, TerminalId, limits};

use super::admin::HistoryView;

/// Of whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Whose {
    Terminal(TerminalId),
    Relay(RelayId),
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Registered,
    AccountChanged,
    AccountRemoved,
    LoggedIn(RelayId, AttachmentRole),
    LoggedOut(RelayId),
    RoleChanged(RelayId, AttachmentRole),
    Communicates(RelayId, u32),
    CommunicatesNot(RelayId),
    Moved(RelayId, SocketAddr),
    Started,
    Changed,
    Forgotten,
    Linked(RelayId),
    LinkLost(RelayId),
    Draining,
    DrainingEnded,
    Reachable,
    Unreachable,
}

impl What {
    /// One word for scripts, and the rest for people.
    fn shown(self, name_of: impl Fn(RelayId) -> Option<RelayName>) -> (&'static str, String) {
        let name = |relay: RelayId| {
            name_of(relay).map_or_else(|| format!("relay {relay}"), |name| name.to_string())
        };
        let role = |role| match role {
            AttachmentRole::Primary => "primary",
            AttachmentRole::Standby => "standby",
        };
        let none = String::new;
        match self {
            Self::Registered => ("registered", none()),
            Self::AccountChanged => ("account-changed", none()),
            Self::AccountRemoved => ("account-removed", none()),
            Self::LoggedIn(at, as_) => ("logged-in", format!("at {} as {}", name(at), role(as_))),
            Self::LoggedOut(at) => ("logged-out", format!("from {}", name(at))),
            Self::RoleChanged(at, to) => ("role-changed", format!("{} at {}", role(to), name(at))),
            Self::Communicates(at, 1) => {
                ("in-communication", format!("1 session over {}", name(at)))
            }
            Self::Communicates(at, sessions) => {
                ("in-communication", format!("{sessions} sessions over {}", name(at)))
            }
            Self::CommunicatesNot(at) => {
                ("communication-ended", format!("no session over {}", name(at)))
            }
            Self::Moved(at, to) => ("moved", format!("to {to} at {}", name(at))),
            Self::Started => ("started", none()),
            Self::Changed => ("changed", "its addresses or its version".to_owned()),
            Self::Forgotten => ("forgotten", "its own row is gone".to_owned()),
            Self::Linked(with) => ("linked", format!("with {}", name(with))),
            Self::LinkLost(with) => ("link-lost", format!("with {}", name(with))),
            Self::Draining => ("draining", none()),
            Self::DrainingEnded => ("draining-ended", none()),
            Self::Reachable => ("reachable", none()),
            Self::Unreachable => ("unreachable", none()),
        }
    }
}

#[derive(Debug)]
struct Event {
    whose: Whose,
    at: u64,
    what: What,
}

/// Events by name, in the order in which they were seen.
#[derive(Debug, Default)]
pub(super) struct History {
    event_by_number: BTreeMap<u64, Event>,
    numbers_by_name: FxHashMap<Whose, VecDeque<u64>>,
    next: u64,
}

impl History {
    /// Notes what happened at `at`, ms since 1970.
    pub(super) fn note(&mut self, whose: Whose, at: u64, what: What) {
        if self.event_by_number.len() == limits::HISTORY
            && let Some((_, oldest)) = self.event_by_number.pop_first()
            && let Some(numbers) = self.numbers_by_name.get_mut(&oldest.whose)
        {
            numbers.pop_front();
            if numbers.is_empty() {
                self.numbers_by_name.remove(&oldest.whose);
            }
        }
        let numbers = self.numbers_by_name.entry(whose.clone()).or_default();
        if numbers.len() == limits::HISTORY_PER_NAME
            && let Some(oldest) = numbers.pop_front()
        {
            self.event_by_number.remove(&oldest);
        }
        numbers.push_back(self.next);
        self.event_by_number.insert(self.next, Event { whose, at, what });
        self.next += 1;
    }

    /// What is known of a name, newest first by the time at which it happened.
    pub(super) fn of(
        &self,
        whose: &Whose,
        name_of: impl Fn(RelayId) -> Option<RelayName>,
    ) -> Vec<HistoryView> {
        let numbers = self.numbers_by_name.get(whose).into_iter().flatten().rev();
        let events = numbers.filter_map(|number| self.event_by_number.get(number));
        let mut items: Vec<HistoryView> = events
            .map(|event| {
                let (what, detail) = event.what.shown(&name_of);
                HistoryView { at: event.at, what: what.to_owned(), detail }
            })
            .collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.at));
        items
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whose(number: usize) -> Whose {
        Whose::Terminal(TerminalId::new(&format!("t{number}")).unwrap())
    }

    fn of(history: &History, number: usize) -> Vec<(u64, String)> {
        let items = history.of(&whose(number), |_| RelayName::new("r1").ok());
        items.into_iter().map(|item| (item.at, format!("{} {}", item.what, item.detail))).collect()
    }

    #[test]
    fn the_newest_comes_first_and_a_name_keeps_so_many() {
        let mut history = History::default();
        history.note(whose(2), 1, What::LoggedIn(RelayId(1), AttachmentRole::Primary));
        for at in 0..=limits::HISTORY_PER_NAME as u64 {
            history.note(whose(1), at, What::LoggedOut(RelayId(1)));
        }
        let items = of(&history, 1);
        assert_eq!(items.len(), limits::HISTORY_PER_NAME);
        assert_eq!(items[0], (limits::HISTORY_PER_NAME as u64, "logged-out from r1".to_owned()));
        assert_eq!(items.last().unwrap().0, 1, "the oldest made room");
        assert_eq!(of(&history, 2), [(1, "logged-in at r1 as primary".to_owned())]);
        assert_eq!(of(&history, 3), []);
    }

    #[test]
    fn all_names_together_keep_so_many() {
        let mut history = History::default();
        for number in 0..limits::HISTORY + 5 {
            history.note(whose(number), number as u64, What::Registered);
        }
        assert_eq!(history.event_by_number.len(), limits::HISTORY);
        assert_eq!(history.numbers_by_name.len(), limits::HISTORY);
        assert_eq!(of(&history, 4), []);
        assert_eq!(of(&history, 5).len(), 1);
    }
}
