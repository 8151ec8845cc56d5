//! Screens and keys, without a terminal.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use serde_json::{Value, json};

use super::model::{Act, Answers, Key, Model, View};
use super::view;
use crate::cli::query::text::Look;

const NOW: u64 = 1_790_000_000_000;

fn status() -> Value {
    json!({
        "name": "r1", "mesh": "lab", "version": "0.1.0", "uptime_s": 3725, "draining": false,
        "not_ready": null, "ends_in_s": null, "terminals": 2, "sessions": 2,
        "links": [{"relay": "r2", "rtt_us": 1500}],
        "forwarded": {"bytes_to_callee": 0, "bytes_to_caller": 0},
        "gossip_lag_ms": {"p50": 3.0, "p99": 12.0},
        "gossip": {"rows_received": 7}, "drops": {"no-label": 4, "address-rate": 0},
    })
}

fn summary() -> Value {
    json!({
        "terminals": {
            "total": 100_003, "logged-out": 1, "logged-in": 100_000, "in-communication": 2,
            "unreachable": 0,
        },
        "relays": {"total": 3, "reachable": 2, "draining": 1},
    })
}

fn relay(name: &str, reachable: bool, draining: bool) -> Value {
    json!({
        "name": name, "reachable": reachable, "draining": draining, "terminals": 2,
        "version": "0.1.0", "addresses": ["192.0.2.1:4433"], "updated_at": NOW - 61_000,
        "links": [{"relay": "r2", "rtt_us": 1500}, {"relay": "r3", "rtt_us": 12_000}],
    })
}

fn terminal(id: &str) -> Value {
    json!({
        "id": id, "type": "plc", "attributes": {"site": "7"}, "state": "logged-in", "sessions": 0,
        "updated_at": NOW - 5_000, "attachments": [
            {"relay": "r1", "role": "primary", "since": NOW - 5_000, "address": "198.51.100.7:40000"}
        ],
    })
}

fn session(id: &str, caller: &str, bytes: u64) -> Value {
    json!({
        "id": id, "caller": caller, "callee": "plant7", "service": "ssh", "state": "active",
        "path": "relayed", "route": ["r1", "r2"], "started_at": NOW - 90_000,
        "bytes_to_callee": bytes, "bytes_to_caller": 0,
    })
}

fn answers(model: &Model, rows: Vec<Value>) -> Answers {
    Answers { wants: model.wants(), status: status(), summary: summary(), rows, next: None }
}

/// A screen of `view` with these rows.
fn model(view: View, rows: Vec<Value>) -> Model {
    let mut model = Model::new();
    let at = View::ALL.iter().position(|it| *it == view).unwrap();
    model.handle_key(Key::Char(char::from(b'1' + at as u8)));
    model.handle_answers(answers(&model, rows), Duration::ZERO);
    model
}

fn press(model: &mut Model, keys: &str) -> Act {
    keys.chars().fold(Act::Show, |_, key| model.handle_key(Key::Char(key)))
}

fn drawn(model: &mut Model, width: u16, height: u16, colour: bool) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    model.set_room(view::room(height));
    let look = Look { colour, now_ms: NOW };
    terminal.draw(|frame| view::draw(model, look, frame)).unwrap();
    terminal
}

fn text(model: &mut Model, width: u16, height: u16) -> Vec<String> {
    let terminal = drawn(model, width, height, false);
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned()).collect()
}

/// What stands on a screen of 80x24, without empty lines.
fn show(model: &mut Model) -> Vec<String> {
    text(model, 80, 24).into_iter().filter(|line| !line.is_empty()).collect()
}

#[test]
fn relays_at_a_glance() {
    // By name, whatever the order of their ids.
    let rows = vec![relay("r3", false, false), relay("r1", true, false), relay("r2", true, true)];
    assert_eq!(
        show(&mut model(View::Relays, rows)),
        [
            "tasuki lab  relay r1  0.1.0  up 1h02m  ready",
            "terminals  in-communication 2  logged-in 100000  unreachable 0  logged-out 1",
            "relays 2 of 3 up, 1 draining  here: terminals 2, sessions 2, 0 B/s",
            " 1 Relays  2 Terminals  3 Sessions  4 Counters   each second  gossip lag 3/12 ms",
            "RELAY                    STATE       TERMINALS LINKS  RTT      VERSION   CHANGED",
            "r1                       up          2         2      here     0.1.0     1m01s",
            "r2                       draining    2         2      1.5 ms   0.1.0     1m01s",
            "r3                       unreachable 2         2      -        0.1.0     1m01s",
            "links of r1: r2 1.5 ms, r3 12.0 ms",
            "addresses: 192.0.2.1:4433",
            "1 of 3   Tab 1-4 view  / search  ? help  q quit",
        ]
    );
}

#[test]
fn terminals_and_what_is_known_of_the_marked_one() {
    let mut it = model(View::Terminals, vec![terminal("plant7"), terminal("plant8")]);
    assert_eq!(
        show(&mut it),
        [
            "tasuki lab  relay r1  0.1.0  up 1h02m  ready",
            "terminals  in-communication 2  logged-in 100000  unreachable 0  logged-out 1",
            "relays 2 of 3 up, 1 draining  here: terminals 2, sessions 2, 0 B/s",
            " 1 Relays  2 Terminals  3 Sessions  4 Counters   each second  gossip lag 3/12 ms",
            "TERMINAL            TYPE      STATE            SESSIONS RELAYS           CHANGED",
            "plant7              plc       logged-in        0        r1               5s",
            "plant8              plc       logged-in        0        r1               5s",
            "primary at r1 from 198.51.100.7:40000, 5s",
            "site=7",
            "1 of 2   Tab 1-4 view  / search  s state  ? help  q quit",
        ]
    );
}

#[test]
fn the_busiest_sessions_come_first() {
    let mut it = model(View::Sessions, vec![session("aa", "slow", 0), session("bb", "fast", 0)]);
    let rows = vec![session("aa", "slow", 1_000), session("bb", "fast", 8_000_000)];
    it.handle_answers(answers(&it, rows), Duration::from_secs(2));
    assert_eq!(
        show(&mut it),
        [
            "tasuki lab  relay r1  0.1.0  up 1h02m  ready",
            "terminals  in-communication 2  logged-in 100000  unreachable 0  logged-out 1",
            "relays 2 of 3 up, 1 draining  here: terminals 2, sessions 2, 0 B/s",
            " 1 Relays  2 Terminals  3 Sessions  4 Counters   each second  gossip lag 3/12 ms",
            "CALLER           CALLEE/SERVICE   STATE   PATH     RATE        CARRIED   AGE",
            "fast             plant7/ssh       active  relayed  4.0 MB/s    8.0 MB    1m30s",
            "slow             plant7/ssh       active  relayed  500 B/s     1.0 kB    1m30s",
            "session bb  over r1 > r2",
            "8.0 MB to plant7, 0 B back",
            "1 of 2   Tab 1-4 view  / search  ? help  q quit",
        ]
    );
}

#[test]
fn drops_by_reason() {
    let mut it = model(View::Node, vec![]);
    assert_eq!(
        show(&mut it),
        [
            "tasuki lab  relay r1  0.1.0  up 1h02m  ready",
            "terminals  in-communication 2  logged-in 100000  unreachable 0  logged-out 1",
            "relays 2 of 3 up, 1 draining  here: terminals 2, sessions 2, 0 B/s",
            " 1 Relays  2 Terminals  3 Sessions  4 Counters   each second  gossip lag 3/12 ms",
            "COUNTER                                        VALUE            A SECOND",
            "dropped no-label                               4                0.0",
            "gossip rows_received                           7                0.0",
            "1 of 2   Tab 1-4 view  / search  ? help  q quit",
        ]
    );
}

/// What does not fit is left out; nothing is drawn outside, however small the screen is.
#[test]
fn a_screen_of_any_size() {
    let rows: Vec<Value> = (0..50).map(|at| terminal(&format!("plant{at:02}"))).collect();
    for (width, height) in [(200, 60), (80, 24), (40, 10), (20, 5), (3, 2), (1, 1)] {
        let mut it = model(View::Terminals, rows.clone());
        press(&mut it, "?");
        text(&mut it, width, height);
        it.handle_key(Key::Escape);
        it.handle_key(Key::End);
        let lines = text(&mut it, width, height);
        let last = lines.iter().any(|line| line.starts_with("plant49"));
        assert_eq!(last, height >= 10, "{width}x{height}: {lines:?}");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let mut it = model(View::Relays, vec![relay("r3", false, false)]);
    let mut colours = |colour| {
        let terminal = drawn(&mut it, 80, 24, colour);
        let cells = terminal.backend().buffer().content().iter();
        cells.filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset).count()
    };
    assert_eq!(colours(false), 0);
    assert!(colours(true) > 0);
}

/// A terminal would obey what a peer put into a name.
#[test]
fn control_characters_are_not_shown() {
    let lines = text(&mut model(View::Terminals, vec![terminal("a\u{1b}[2Jb")]), 80, 24);
    assert!(lines.iter().any(|line| line.starts_with("a\\u{1b}[2Jb")), "{lines:?}");
}

#[test]
fn a_relay_that_is_not_well_says_why() {
    let mut it = model(View::Relays, vec![relay("r1", true, false)]);
    let head = |it: &mut Model| text(it, 80, 24)[0].clone();
    for (key, value, shown) in [
        ("not_ready", json!("the table has not arrived"), "not ready: the table has not arrived"),
        ("draining", json!(true), "draining"),
        ("ends_in_s", json!(90), "draining, ends within 1m30s"),
    ] {
        let mut answers = answers(&it, vec![]);
        answers.status["draining"] = json!(key == "ends_in_s");
        answers.status[key] = value;
        it.handle_answers(answers, Duration::from_secs(1));
        assert!(head(&mut it).ends_with(shown), "{}", head(&mut it));
    }
    it.handle_loss("no relay is running");
    assert!(head(&mut it).ends_with("no answer: no relay is running"), "{}", head(&mut it));
    let again = answers(&it, vec![]);
    it.handle_answers(again, Duration::from_secs(2));
    assert!(head(&mut it).ends_with("ready"), "{}", head(&mut it));
}

#[test]
fn keys_change_the_view_and_quit() {
    let mut it = Model::new();
    for (key, view) in [
        (Key::Char('3'), View::Sessions),
        (Key::Tab, View::Node),
        (Key::Tab, View::Relays),
        (Key::BackTab, View::Node),
        (Key::Char('2'), View::Terminals),
    ] {
        assert_eq!((it.handle_key(key), it.view, it.wants().view), (Act::Ask, view, view));
    }
    press(&mut it, "?");
    assert!(it.help);
    assert_eq!(press(&mut it, "q"), Act::Show, "any key closes the help");
    assert!(!it.help);
    for key in [Key::Char('q'), Key::Escape, Key::Interrupt] {
        assert_eq!(it.handle_key(key), Act::Quit);
    }
}

/// The relay searches terminals, in the whole table; other lists are searched here.
#[test]
fn a_search() {
    let mut it = model(View::Terminals, vec![terminal("plant7")]);
    assert_eq!(press(&mut it, "/"), Act::Show);
    assert_eq!(press(&mut it, "q1"), Act::Ask, "keys go into the search");
    assert_eq!(it.wants().text, "q1");
    assert_eq!(it.handle_key(Key::Backspace), Act::Ask);
    assert_eq!(it.handle_key(Key::Enter), Act::Show);
    let of_before = answers(&model(View::Terminals, vec![]), vec![terminal("other")]);
    it.handle_answers(of_before, Duration::from_secs(1));
    assert_eq!(it.rows()[0]["id"], "plant7", "an answer to another search is not shown");
    assert!(text(&mut it, 80, 24)[23].starts_with("/q  1 of 1"));
    assert_eq!(press(&mut it, "ss"), Act::Ask);
    assert_eq!((it.wants().state, &*it.wants().text), ("logged-in", "q"));
    assert_eq!(it.handle_key(Key::Escape), Act::Ask, "the search ends before the screen does");
    assert_eq!((it.wants().state, &*it.wants().text), ("logged-in", ""));
    press(&mut it, "/");
    press(&mut it, &"x".repeat(200));
    assert_eq!(it.wants().text.len(), tasuki_proto::limits::NAME_BYTES);

    let mut it = model(View::Relays, vec![relay("r1", true, false), relay("r2", true, false)]);
    press(&mut it, "/r2");
    assert_eq!(it.rows().len(), 1);
    assert_eq!(it.selected().unwrap()["name"], "r2");
    press(&mut it, "2");
    assert!(text(&mut it, 80, 24)[5].starts_with("no relay that the search finds"));
}

/// A list of terminals may be longer than what is read at once: it is read in parts, forth and back.
#[test]
fn a_long_list_is_read_in_parts() {
    let part = |it: &Model, from: usize, next: Option<&str>| {
        let rows = (from..from + 30).map(|at| terminal(&format!("t{at:03}"))).collect();
        Answers { next: next.map(str::to_owned), ..answers(it, rows) }
    };
    let mut it = model(View::Terminals, vec![]);
    it.set_room(view::room(24));
    let first = part(&it, 0, Some("t029"));
    it.handle_answers(first, Duration::from_secs(1));
    assert_eq!(it.handle_key(Key::PageDown), Act::Show);
    assert_eq!(it.selected().unwrap()["id"], "t016");
    assert_eq!(it.place().top, 1);
    assert_eq!(it.handle_key(Key::PageDown), Act::Show);
    assert_eq!(it.selected().unwrap()["id"], "t029");
    assert_eq!(it.handle_key(Key::Down), Act::Ask);
    assert_eq!(it.wants().after.as_deref(), Some("t029"));
    let second = part(&it, 30, None);
    it.handle_answers(second, Duration::from_secs(2));
    assert_eq!((it.selected().unwrap()["id"].as_str(), it.place().top), (Some("t030"), 0));
    assert!(text(&mut it, 80, 24)[23].starts_with("1 of 30 in part 2 "));
    it.handle_key(Key::End);
    assert_eq!(it.handle_key(Key::PageDown), Act::Show, "there is no more");
    it.handle_key(Key::Char('k'));
    assert_eq!(it.selected().unwrap()["id"], "t058");
    it.handle_key(Key::PageUp);
    it.handle_key(Key::PageUp);
    assert_eq!(it.handle_key(Key::Up), Act::Ask);
    assert_eq!(it.wants().after, None);
    let first = part(&it, 0, Some("t029"));
    it.handle_answers(first, Duration::from_secs(3));
    assert_eq!(it.selected().unwrap()["id"], "t029", "back at the end of the part before");
    it.handle_key(Key::Down);
    assert_eq!(it.handle_key(Key::Home), Act::Ask);
    assert_eq!(it.wants().after, None);
}

/// A counter that goes back was begun anew; readings that are close give no rate.
#[test]
fn rates() {
    let mut it = model(View::Node, vec![]);
    let mut read = |value: u64, ms| {
        let mut answers = answers(&it, vec![]);
        answers.status["drops"]["no-label"] = json!(value);
        it.handle_answers(answers, Duration::from_millis(ms));
        it.rate("dropped no-label")
    };
    assert_eq!(read(24, 2_000), Some(10.0));
    assert_eq!(read(1_000, 2_300), Some(10.0));
    assert_eq!(read(32, 4_000), Some(4.0));
    assert_eq!(read(0, 5_000), Some(0.0));
    it.handle_changes(12);
    let rows = vec![];
    it.handle_answers(answers(&it, rows), Duration::from_secs(8));
    assert_eq!(it.changes(), 4.0);
}
