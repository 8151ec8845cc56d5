//! What the screen shows, from the relay's answers and from keys. No terminal, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tasuki_proto::limits;

use crate::cli::query::lists::plain;

/// Readings of a counter that are closer than this say nothing of its rate.
const CLOSE: Duration = Duration::from_millis(900);
/// How the name of a session's counter begins.
const SESSION: &str = "session ";

/// A key, as far as it means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Tab,
    BackTab,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Ctrl-C.
    Interrupt,
}

/// What is to be done behind a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Draw.
    Show,
    /// Draw, and ask the relay, since other rows are wanted.
    Ask,
    /// End.
    Quit,
}

/// What the lower part of the screen shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum View {
    #[default]
    Relays,
    Terminals,
    Sessions,
    Node,
}

impl View {
    /// All of them, in the order of their keys `1` to `4`.
    pub(super) const ALL: [Self; 4] = [Self::Relays, Self::Terminals, Self::Sessions, Self::Node];
}

/// States that terminals are filtered by; the first is none.
pub(super) const STATES: [&str; 5] =
    ["", "in-communication", "logged-in", "unreachable", "logged-out"];

/// The rows that are to be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wants {
    pub(super) view: View,
    /// Text that a terminal's id contains.
    pub(super) text: String,
    /// One of [`STATES`].
    pub(super) state: &'static str,
    /// The terminal behind which the rows begin.
    pub(super) after: Option<String>,
}

/// What the relay answered.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    pub(super) wants: Wants,
    pub(super) status: Value,
    pub(super) summary: Value,
    /// Rows of the view that was wanted.
    pub(super) rows: Vec<Value>,
    /// Where the list goes on.
    pub(super) next: Option<String>,
}

/// Where somebody is in a list.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    pub(super) selected: usize,
    /// The first row that is seen.
    pub(super) top: usize,
}

/// A counter's value and when it was read.
type Reading = (Duration, u64);

/// What the screen shows.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) view: View,
    /// What each view is searched for.
    filters: [String; 4],
    places: [Place; 4],
    /// Whether keys go into the search.
    pub(super) typing: bool,
    pub(super) help: bool,
    state: usize,
    /// Where the parts of the list of terminals before this one began.
    before: Vec<Option<String>>,
    after: Option<String>,
    /// Where the list that is shown goes on.
    pub(super) next: Option<String>,
    /// Whether the next answer is shown from its end.
    to_end: bool,
    pub(super) status: Value,
    pub(super) summary: Value,
    rows: [Vec<Value>; 4],
    /// Why the relay did not answer, where it did not.
    pub(super) lost: Option<String>,
    /// Whether the relay tells of changes as they happen.
    pub(super) live: bool,
    /// Changes that it told of since the last answer.
    changes: u64,
    /// By what is counted: the last reading, and the rate a second that came of it.
    rates: BTreeMap<String, (Reading, f64)>,
    /// Rows that the screen has room for.
    room: usize,
}

impl Model {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { room: 10, ..Self::default() }
    }

    fn at(&self) -> usize {
        self.view as usize
    }

    /// What this view is searched for.
    pub(super) fn filter(&self) -> &str {
        &self.filters[self.at()]
    }

    /// The state that terminals are filtered by, or nothing.
    pub(super) fn state(&self) -> &'static str {
        STATES[self.state]
    }

    /// Where in the list somebody is, within the rows that are shown.
    pub(super) fn place(&self) -> Place {
        self.places[self.at()]
    }

    /// Which part of the list of terminals is shown, from 1.
    pub(super) fn part(&self) -> usize {
        self.before.len() + 1
    }

    /// What is to be asked for.
    pub(super) fn wants(&self) -> Wants {
        match self.view {
            View::Terminals => Wants {
                view: self.view,
                text: self.filter().to_owned(),
                state: self.state(),
                after: self.after.clone(),
            },
            view => Wants { view, ..Wants::default() },
        }
    }

    /// The rows of this view that the search leaves. The relay searches terminals itself.
    pub(super) fn rows(&self) -> Vec<&Value> {
        let filter = self.filter();
        let has = |row: &Value, keys: &[&str]| {
            filter.is_empty() || keys.iter().any(|key| plain(&row[key]).contains(filter))
        };
        let keys: &[&str] = match self.view {
            View::Relays => &["name", "version"],
            View::Terminals => return self.rows[self.at()].iter().collect(),
            View::Sessions => &["caller", "callee", "service", "route", "path", "id"],
            View::Node => &["counter"],
        };
        self.rows[self.at()].iter().filter(|row| has(row, keys)).collect()
    }

    /// The row that the mark is on.
    pub(super) fn selected(&self) -> Option<&Value> {
        self.rows().get(self.place().selected).copied()
    }

    /// A rate a second by its name, where it was read twice.
    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        self.rates.get(name).map(|(_, rate)| *rate)
    }

    /// Changes a second.
    pub(super) fn changes(&self) -> f64 {
        self.rate("changes").unwrap_or(0.0)
    }

    /// The screen has room for so many rows.
    pub(super) fn set_room(&mut self, room: usize) {
        self.room = room;
        self.settle();
    }

    /// The relay told of changes.
    pub(super) fn handle_changes(&mut self, changes: usize) {
        self.changes += changes as u64;
    }

    /// The relay did not answer; what it said before stays.
    pub(super) fn handle_loss(&mut self, why: &str) {
        self.lost = Some(why.to_owned());
    }

    /// What the relay answered, `now` since the screen began. Rows of a view that was left meanwhile count for it all the
    /// same; rows of another search do not.
    pub(super) fn handle_answers(&mut self, answers: Answers, now: Duration) {
        let Answers { wants, status, summary, mut rows, next } = answers;
        (self.status, self.summary, self.lost) = (status, summary, None);
        self.count("changes", now, self.changes);
        for key in ["bytes_to_callee", "bytes_to_caller"] {
            let value = self.status["forwarded"][key].as_u64().unwrap_or(0);
            self.count(&format!("forwarded {key}"), now, value);
        }
        self.take_counters(now);
        if wants != self.wants() {
            return self.settle();
        }
        match wants.view {
            View::Node => {}
            View::Sessions => self.take_sessions(rows, now),
            View::Relays => {
                rows.sort_by_cached_key(|row| plain(&row["name"]));
                self.rows[View::Relays as usize] = rows;
            }
            View::Terminals => self.rows[View::Terminals as usize] = rows,
        }
        self.next = next;
        if std::mem::take(&mut self.to_end) {
            self.places[self.view as usize].selected = usize::MAX;
        }
        self.settle();
    }

    /// Drops and gossip as rows of one list.
    fn take_counters(&mut self, now: Duration) {
        let mut rows = Vec::new();
        for (group, label) in [("drops", "dropped"), ("gossip", "gossip")] {
            let counters = self.status[group].as_object().cloned().unwrap_or_default();
            for (name, value) in counters {
                let value = value.as_u64().unwrap_or(0);
                let name = format!("{label} {name}");
                self.count(&name, now, value);
                if value > 0 || group == "gossip" {
                    rows.push(serde_json::json!({ "counter": name, "value": value }));
                }
            }
        }
        self.rows[View::Node as usize] = rows;
    }

    /// Sessions, those that carry most first.
    fn take_sessions(&mut self, mut rows: Vec<Value>, now: Duration) {
        for row in &rows {
            let bytes = ["bytes_to_callee", "bytes_to_caller"];
            let bytes: u64 = bytes.iter().filter_map(|key| row[key].as_u64()).sum();
            self.count(&session_key(row), now, bytes);
        }
        // What ended is forgotten.
        let known: BTreeSet<String> = rows.iter().map(session_key).collect();
        self.rates.retain(|name, _| !name.starts_with(SESSION) || known.contains(name));
        let rate = |row: &Value| self.rates.get(&session_key(row)).map_or(0.0, |(_, rate)| *rate);
        rows.sort_by(|one, other| {
            rate(other)
                .total_cmp(&rate(one))
                .then_with(|| plain(&one["id"]).cmp(&plain(&other["id"])))
        });
        // A mark that was moved stays on its session, wherever that goes.
        let marked = self.selected().filter(|_| self.place().selected > 0);
        let id = marked.map(|row| row["id"].clone());
        self.rows[View::Sessions as usize] = rows;
        if let Some(at) = id.and_then(|id| self.rows().iter().position(|row| row["id"] == id)) {
            self.places[View::Sessions as usize].selected = at;
        }
    }

    /// Reads a counter. Readings that are close say nothing of a rate; one that went back was begun anew.
    fn count(&mut self, name: &str, now: Duration, value: u64) {
        let rate = match self.rates.get(name) {
            Some(((at, _), _)) if now.saturating_sub(*at) < CLOSE => return,
            Some(((at, before), _)) => {
                value.saturating_sub(*before) as f64 / now.saturating_sub(*at).as_secs_f64()
            }
            None => 0.0,
        };
        self.rates.insert(name.to_owned(), ((now, value), rate));
    }

    /// Keeps the mark on a row and in sight.
    fn settle(&mut self) {
        let (rows, room) = (self.rows().len(), self.room.max(1));
        let place = &mut self.places[self.view as usize];
        place.selected = place.selected.min(rows.saturating_sub(1));
        place.top = place.top.min(rows.saturating_sub(room));
        place.top = place.top.clamp((place.selected + 1).saturating_sub(room), place.selected);
    }

    /// A key.
    pub(super) fn handle_key(&mut self, key: Key) -> Act {
        let act = match key {
            Key::Interrupt => Act::Quit,
            _ if self.help => {
                self.help = false;
                Act::Show
            }
            _ if self.typing => self.handle_typing(key),
            Key::Char('q') => Act::Quit,
            Key::Char('?') => {
                self.help = true;
                Act::Show
            }
            Key::Char('/') => {
                self.typing = true;
                Act::Show
            }
            Key::Char('s') if self.view == View::Terminals => {
                self.state = (self.state + 1) % STATES.len();
                self.search()
            }
            Key::Char(digit @ '1'..='4') => self.open(digit as usize - '1' as usize),
            Key::Tab => self.open(self.at() + 1),
            Key::BackTab => self.open(self.at() + View::ALL.len() - 1),
            Key::Escape if !self.filter().is_empty() => {
                self.filters[self.view as usize].clear();
                self.search()
            }
            Key::Escape => Act::Quit,
            key => self.handle_move(key),
        };
        self.settle();
        act
    }

    fn open(&mut self, at: usize) -> Act {
        self.view = View::ALL[at % View::ALL.len()];
        self.next = None;
        Act::Ask
    }

    /// Another search begins at the start of the list.
    fn search(&mut self) -> Act {
        self.places[self.view as usize] = Place::default();
        if self.view != View::Terminals {
            return Act::Show;
        }
        self.before.clear();
        self.after = None;
        Act::Ask
    }

    fn handle_typing(&mut self, key: Key) -> Act {
        let filter = &mut self.filters[self.view as usize];
        match key {
            Key::Char(c) if filter.len() + c.len_utf8() <= limits::NAME_BYTES => filter.push(c),
            Key::Backspace if filter.is_empty() => self.typing = false,
            Key::Backspace => drop(filter.pop()),
            Key::Enter => {
                self.typing = false;
                return Act::Show;
            }
            Key::Escape => {
                self.typing = false;
                filter.clear();
            }
            Key::Up | Key::Down | Key::PageUp | Key::PageDown => return self.handle_move(key),
            _ => return Act::Show,
        }
        self.search()
    }

    fn handle_move(&mut self, key: Key) -> Act {
        let (rows, page) = (self.rows().len(), self.room.max(1));
        let end = rows.saturating_sub(1);
        let place = self.places[self.view as usize];
        let selected = match key {
            Key::Char('k') | Key::Up if place.selected == 0 => return self.turn_back(),
            Key::PageUp if place.selected == 0 => return self.turn_back(),
            Key::Char('j') | Key::Down | Key::PageDown if place.selected >= end => {
                return self.turn();
            }
            Key::Char('k') | Key::Up => place.selected - 1,
            Key::Char('j') | Key::Down => place.selected + 1,
            Key::PageUp => place.selected.saturating_sub(page),
            Key::PageDown => place.selected + page,
            Key::Home if self.before.is_empty() => 0,
            Key::Home => return self.search(),
            Key::End => end,
            _ => return Act::Show,
        };
        self.places[self.view as usize].selected = selected.min(end);
        Act::Show
    }

    /// To the part of the list behind this one.
    fn turn(&mut self) -> Act {
        let Some(next) = self.next.take().filter(|_| self.view == View::Terminals) else {
            return Act::Show;
        };
        self.before.push(self.after.replace(next));
        self.places[self.view as usize] = Place::default();
        Act::Ask
    }

    /// To the end of the part before this one.
    fn turn_back(&mut self) -> Act {
        if self.view != View::Terminals {
            return Act::Show;
        }
        let Some(before) = self.before.pop() else { return Act::Show };
        self.after = before;
        self.next = None;
        self.to_end = true;
        Act::Ask
    }
}

/// The name of a session's rate.
pub(super) fn session_key(row: &Value) -> String {
    format!("{SESSION}{}", plain(&row["id"]))
}
