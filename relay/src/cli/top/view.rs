//! The model as a screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row, Table, TableState};
use serde_json::Value;
use tasuki_proto::text::escape;

use super::model::{Model, STATES, View, session_key};
use crate::cli::query::lists::{items, plain, relay_state};
use crate::cli::query::table::Cell;
use crate::cli::query::text::{Look, Paint, bytes, milliseconds, span};

/// Lines above the list, and below it: the marked row in full, and the keys.
const ABOVE: u16 = 4;
const BELOW: u16 = 3;

/// Rows of the list that a screen of this height has room for, below the list's head.
pub(super) fn room(height: u16) -> usize {
    usize::from(height.saturating_sub(ABOVE + BELOW + 1))
}

fn style(look: Look, paint: Paint) -> Style {
    let plain = Style::new();
    let (colour, modifier) = match paint {
        Paint::Plain => return plain,
        Paint::Good => (Some(Color::Green), Modifier::empty()),
        Paint::Warn => (Some(Color::Yellow), Modifier::empty()),
        Paint::Bad => (Some(Color::Red), Modifier::BOLD),
        Paint::Dim => (None, Modifier::DIM),
        Paint::Head => (None, Modifier::BOLD),
    };
    match colour.filter(|_| look.colour) {
        Some(colour) => plain.fg(colour).add_modifier(modifier),
        None => plain.add_modifier(modifier),
    }
}

/// Pieces of a line, each with what it says.
type Pieces = Vec<(Paint, String)>;

fn line(look: Look, pieces: Pieces) -> Line<'static> {
    let span = |(paint, text): (Paint, String)| {
        Span::styled(escape(&text).into_owned(), style(look, paint))
    };
    Line::from_iter(pieces.into_iter().map(span))
}

/// Draws the screen.
pub(super) fn draw(model: &Model, look: Look, frame: &mut Frame<'_>) {
    let [head, list, detail, keys] = Layout::vertical([
        Constraint::Length(ABOVE),
        Constraint::Min(0),
        Constraint::Length(BELOW - 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let mut lines: Vec<Line<'_>> = header(model).into_iter().map(|it| line(look, it)).collect();
    lines.push(tabs(model, look));
    frame.render_widget(Paragraph::new(lines), head);
    draw_list(model, look, frame, list);
    let detail_of = detail_of(model, look);
    let text: Vec<_> = detail_of.into_iter().map(|it| line(look, vec![(Paint::Dim, it)])).collect();
    frame.render_widget(Paragraph::new(text), detail);
    frame.render_widget(Paragraph::new(line(look, footer(model))), keys);
    if model.help {
        draw_help(look, frame);
    }
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Which relay, whether it is well, and the mesh in numbers.
fn header(model: &Model) -> [Pieces; 3] {
    let status = &model.status;
    let [mesh, name, version] = ["mesh", "name", "version"].map(|key| plain(&status[key]));
    let up = span(count(&status["uptime_s"]));
    let who = (Paint::Head, format!("tasuki {mesh}  relay {name}  {version}  up {up}  "));
    let well = match (&model.lost, &status["not_ready"], status["draining"] == true) {
        (Some(why), ..) => (Paint::Bad, format!("no answer: {why}")),
        (None, _, true) => match status["ends_in_s"].as_u64() {
            Some(ends) => (Paint::Warn, format!("draining, ends within {}", span(ends))),
            None => (Paint::Warn, "draining".to_owned()),
        },
        (None, Value::String(why), _) => (Paint::Warn, format!("not ready: {why}")),
        _ => (Paint::Good, "ready".to_owned()),
    };
    let terminals = &model.summary["terminals"];
    let mut states = vec![(Paint::Plain, "terminals".to_owned())];
    for state in &STATES[1..] {
        let number = count(&terminals[*state]);
        let paint = if number == 0 { Paint::Dim } else { Paint::of_state(state) };
        states.push((paint, format!("  {state} {number}")));
    }
    let relays = &model.summary["relays"];
    let (total, reachable) = (count(&relays["total"]), count(&relays["reachable"]));
    let draining = count(&relays["draining"]);
    let mut load = vec![(
        if reachable < total { Paint::Bad } else { Paint::Plain },
        format!("relays {reachable} of {total} up"),
    )];
    if draining > 0 {
        load.push((Paint::Warn, format!(", {draining} draining")));
    }
    let carried: f64 = ["bytes_to_callee", "bytes_to_caller"]
        .iter()
        .filter_map(|key| model.rate(&format!("forwarded {key}")))
        .sum();
    let [terminals, sessions] = ["terminals", "sessions"].map(|key| count(&status[key]));
    let here = format!("  here: terminals {terminals}, sessions {sessions}, {}", rate(carried));
    load.push((Paint::Plain, here));
    [vec![who, well], states, load]
}

/// Bytes a second.
fn rate(value: f64) -> String {
    format!("{}/s", bytes(value as u64))
}

fn tabs(model: &Model, look: Look) -> Line<'static> {
    let mut spans = Vec::new();
    for (at, view) in View::ALL.into_iter().enumerate() {
        let name = match view {
            View::Relays => "Relays",
            View::Terminals => "Terminals",
            View::Sessions => "Sessions",
            View::Node => "Counters",
        };
        let text = format!(" {} {name} ", at + 1);
        let marked = Style::new().add_modifier(Modifier::REVERSED);
        spans.push(Span::styled(text, if view == model.view { marked } else { Style::new() }));
    }
    let changes = format!("{:.0} changes/s", model.changes());
    let news = if model.live { &changes } else { "each second" };
    let lag = |key| model.status["gossip_lag_ms"][key].as_f64().unwrap_or(0.0);
    let news = format!("  {news}  gossip lag {:.0}/{:.0} ms", lag("p50"), lag("p99"));
    spans.push(Span::styled(news, style(look, Paint::Dim)));
    Line::from(spans)
}

fn draw_list(model: &Model, look: Look, frame: &mut Frame<'_>, area: Rect) {
    let (heads, widths): (&[&str], &[Constraint]) = match model.view {
        View::Relays => (
            &["RELAY", "STATE", "TERMINALS", "LINKS", "RTT", "VERSION", "CHANGED"],
            &[MIN, W11, W9, W6, W8, W9, W7],
        ),
        View::Terminals => (
            &["TERMINAL", "TYPE", "STATE", "SESSIONS", "RELAYS", "CHANGED"],
            &[MIN, W9, W16, W8, W16, W7],
        ),
        View::Sessions => (
            &["CALLER", "CALLEE/SERVICE", "STATE", "PATH", "RATE", "CARRIED", "AGE"],
            &[MIN, MIN, W7, W8, W11, W9, W7],
        ),
        View::Node => (&["COUNTER", "VALUE", "A SECOND"], &[MIN, W16, W16]),
    };
    let rows = model.rows();
    let place = model.place();
    // What is out of sight is not drawn.
    let height = usize::from(area.height.saturating_sub(1));
    let seen = rows.iter().skip(place.top).take(height);
    let row = |row: &&Value| {
        let cells = cells(model, row, look).into_iter();
        Row::new(
            cells
                .map(|cell| Span::styled(escape(&cell.text).into_owned(), style(look, cell.paint))),
        )
    };
    let head = Row::new(heads.iter().copied()).style(style(look, Paint::Head));
    let mark = Style::new().add_modifier(Modifier::REVERSED);
    let table = Table::new(seen.map(row), widths).header(head).row_highlight_style(mark);
    let selected = (!rows.is_empty()).then(|| place.selected.saturating_sub(place.top));
    let mut state = TableState::new().with_selected(selected);
    frame.render_stateful_widget(table, area, &mut state);
    if rows.is_empty() && area.height > 1 {
        let below = Rect { y: area.y + 1, height: 1, ..area };
        frame.render_widget(Paragraph::new(line(look, vec![(Paint::Dim, nothing(model))])), below);
    }
}

const MIN: Constraint = Constraint::Min(12);
const W6: Constraint = Constraint::Length(6);
const W7: Constraint = Constraint::Length(7);
const W8: Constraint = Constraint::Length(8);
const W9: Constraint = Constraint::Length(9);
const W11: Constraint = Constraint::Length(11);
const W16: Constraint = Constraint::Length(16);

fn nothing(model: &Model) -> String {
    let what = match model.view {
        View::Relays => "relay",
        View::Terminals => "terminal",
        View::Sessions => "running session over this relay",
        View::Node => "counter",
    };
    if model.filter().is_empty() && model.state().is_empty() {
        format!("no {what}")
    } else {
        format!("no {what} that the search finds (Esc ends it)")
    }
}

fn cells(model: &Model, row: &Value, look: Look) -> Vec<Cell> {
    let of = |key: &str| Cell::from(plain(&row[key]));
    let changed = || Cell::from(look.ago(count(&row["updated_at"])));
    match model.view {
        View::Relays => vec![
            of("name"),
            Cell::state(relay_state(row)),
            of("terminals"),
            items(&row["links"]).len().to_string().into(),
            round_trip(model, row).into(),
            of("version"),
            changed(),
        ],
        View::Terminals => {
            let relays = items(&row["attachments"]).iter().map(|one| plain(&one["relay"]));
            vec![
                of("id"),
                of("type"),
                Cell::state(&plain(&row["state"])),
                of("sessions"),
                relays.collect::<Vec<_>>().join(",").into(),
                changed(),
            ]
        }
        View::Sessions => {
            let carried = count(&row["bytes_to_callee"]) + count(&row["bytes_to_caller"]);
            vec![
                of("caller"),
                format!("{}/{}", plain(&row["callee"]), plain(&row["service"])).into(),
                Cell::state(&plain(&row["state"])),
                of("path"),
                model.rate(&session_key(row)).map_or("-".to_owned(), rate).into(),
                bytes(carried).into(),
                look.ago(count(&row["started_at"])).into(),
            ]
        }
        View::Node => {
            let name = plain(&row["counter"]);
            let rate = model.rate(&name).unwrap_or(0.0);
            let grows = name.starts_with("dropped") && rate > 0.0;
            let paint = if grows { Paint::Warn } else { Paint::Plain };
            vec![Cell { text: name, paint }, of("value"), format!("{rate:.1}").into()]
        }
    }
}

/// Between this relay and the one of `row`, where they are linked.
fn round_trip(model: &Model, row: &Value) -> String {
    let links = items(&model.status["links"]);
    match links.iter().find(|link| link["relay"] == row["name"]) {
        Some(link) => milliseconds(link["rtt_us"].as_f64().unwrap_or(0.0)),
        None if row["name"] == model.status["name"] => "here".to_owned(),
        None => "-".to_owned(),
    }
}

/// The marked row's rest, in two lines.
fn detail_of(model: &Model, look: Look) -> [String; 2] {
    let none = || [String::new(), String::new()];
    let Some(row) = model.selected() else { return none() };
    let joined = |list: &Value, of: &dyn Fn(&Value) -> String| {
        items(list).iter().map(of).collect::<Vec<_>>().join(", ")
    };
    match model.view {
        View::Relays => {
            let link = |link: &Value| {
                let rtt = milliseconds(link["rtt_us"].as_f64().unwrap_or(0.0));
                format!("{} {rtt}", plain(&link["relay"]))
            };
            [
                format!("links of {}: {}", plain(&row["name"]), joined(&row["links"], &link)),
                format!("addresses: {}", joined(&row["addresses"], &plain)),
            ]
        }
        View::Terminals => {
            let one = |one: &Value| {
                let since = look.ago(count(&one["since"]));
                let [role, relay, address] =
                    ["role", "relay", "address"].map(|key| plain(&one[key]));
                format!("{role} at {relay} from {address}, {since}")
            };
            let attributes = row["attributes"].as_object().into_iter().flatten();
            let attributes: Vec<_> = attributes.map(|(k, v)| format!("{k}={}", plain(v))).collect();
            [joined(&row["attachments"], &one), attributes.join(" ")]
        }
        View::Sessions => {
            let [there, back] =
                ["bytes_to_callee", "bytes_to_caller"].map(|key| bytes(count(&row[key])));
            let route = items(&row["route"]).iter().map(plain).collect::<Vec<_>>().join(" > ");
            [
                format!("session {}  over {route}", plain(&row["id"])),
                format!("{there} to {}, {back} back", plain(&row["callee"])),
            ]
        }
        View::Node => none(),
    }
}

fn footer(model: &Model) -> Pieces {
    let filter = model.filter();
    if model.typing {
        return vec![
            (Paint::Head, format!("/{filter}_")),
            (Paint::Dim, "  Enter keeps it, Esc ends it".to_owned()),
        ];
    }
    let mut out = Vec::new();
    if !filter.is_empty() {
        out.push((Paint::Warn, format!("/{filter}  ")));
    }
    if model.view == View::Terminals && !model.state().is_empty() {
        out.push((Paint::Warn, format!("only {}  ", model.state())));
    }
    let rows = model.rows().len();
    let at = if rows == 0 { 0 } else { model.place().selected + 1 };
    let (more, part) = (model.next.is_some(), model.part());
    out.push((
        Paint::Plain,
        match model.view {
            View::Terminals if more || part > 1 => {
                let more = if more { ", more below" } else { "" };
                format!("{at} of {rows} in part {part}{more}")
            }
            View::Sessions if more => format!("{at} of {rows}, not all of them"),
            _ => format!("{at} of {rows}"),
        },
    ));
    let state = if model.view == View::Terminals { "  s state" } else { "" };
    out.push((Paint::Dim, format!("   Tab 1-4 view  / search{state}  ? help  q quit")));
    out
}

const HELP: [&str; 13] = [
    "1 2 3 4, Tab     relays, terminals, sessions, counters",
    "Up Down, j k     to another row; below it says more",
    "PgUp PgDn        a page on; terminals: the next part",
    "Home End         to the first, to the last",
    "/                search: terminals by id in the whole",
    "                 mesh, other lists by what they show",
    "s                terminals of one state",
    "Esc              end the search, or quit",
    "q, Ctrl-C        quit",
    "",
    "RTT is that of this relay's own link. Gossip lag:",
    "median/99 %. Sessions: those over this relay, the",
    "busiest first. Any key closes this.",
];

fn draw_help(look: Look, frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (60.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let (x, y) = ((area.width - width) / 2, (area.height - height) / 2);
    let area = Rect { x, y, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" Help ").border_style(style(look, Paint::Dim));
    let text: Vec<Line<'_>> = HELP.iter().map(|text| Line::from(format!(" {text}"))).collect();
    frame.render_widget(Paragraph::new(text).block(block), area);
}
