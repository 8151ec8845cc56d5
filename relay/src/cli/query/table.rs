//! Tables for people: columns as wide as needed, lines of at most [`LINE`] characters.

use tasuki_proto::text::escape;

use super::text::{LINE, Look, Paint};

/// Characters between columns.
const GAP: usize = 2;
/// Characters that a column keeps when room is short.
const LEAST: usize = 6;

/// What stands in a column of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    pub(crate) text: String,
    pub(crate) paint: Paint,
}

impl Cell {
    /// A state, in its colour.
    pub(crate) fn state(word: &str) -> Self {
        Self { text: word.to_owned(), paint: Paint::of_state(word) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, paint: Paint::Plain }
    }
}

/// A table that is printed page by page; its columns only grow.
pub(crate) struct Table {
    heads: &'static [&'static str],
    widths: Vec<usize>,
    began: bool,
    look: Look,
}

impl Table {
    /// With these columns. The first names the row and is cut last.
    pub(crate) fn new(heads: &'static [&'static str], look: Look) -> Self {
        let widths = heads.iter().map(|head| head.len()).collect();
        Self { heads, widths, began: false, look }
    }

    /// These rows as lines, below the heads where they are the first. Control characters, which a terminal
    /// would obey, are escaped; what does not fit is cut.
    pub(crate) fn lines(&mut self, rows: &[Vec<Cell>]) -> String {
        self.fit(rows);
        let mut out = String::new();
        if !std::mem::replace(&mut self.began, true) {
            let head = |head: &&str| Cell { text: (*head).to_owned(), paint: Paint::Head };
            let heads: Vec<Cell> = self.heads.iter().map(head).collect();
            self.line(&heads, &mut out);
        }
        rows.iter().for_each(|row| self.line(row, &mut out));
        out
    }

    /// Makes the columns wide enough for these rows, as far as there is room.
    pub(crate) fn fit(&mut self, rows: &[Vec<Cell>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(escape(&cell.text).chars().count());
            }
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        let room = LINE - GAP * (self.widths.len() - 1);
        let mut excess = self.widths.iter().sum::<usize>().saturating_sub(room);
        while excess > 0 {
            let widest = self.widths.iter_mut().skip(1).max().filter(|width| **width > LEAST);
            let Some(width) = widest else { break };
            *width -= 1;
            excess -= 1;
        }
        self.widths[0] -= excess.min(self.widths[0]);
    }

    fn line(&self, cells: &[Cell], out: &mut String) {
        let last = cells.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
        for (at, (cell, &width)) in cells.iter().zip(&self.widths).take(last + 1).enumerate() {
            let text = fitted(&cell.text, width);
            out.push_str(&self.look.paint(cell.paint, &text));
            if at < last {
                let gap = width + GAP - text.chars().count();
                out.extend(std::iter::repeat_n(' ', gap));
            }
        }
        out.push('\n');
    }
}

/// `text` in at most `width` characters.
pub(crate) fn fitted(text: &str, width: usize) -> String {
    let text = escape(text);
    if text.chars().count() <= width {
        return text.into_owned();
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<Cell> {
        cells.iter().map(|cell| (*cell).to_owned().into()).collect()
    }

    #[test]
    fn columns_line_up_over_pages() {
        let mut table = Table::new(&["ID", "STATE"], Look::plain());
        assert_eq!(table.lines(&[row(&["plant7", "up"])]), "ID      STATE\nplant7  up\n");
        assert_eq!(table.lines(&[row(&["a", "\u{1b}[31m"])]), "a       \\u{1b}[31m\n");
    }

    #[test]
    fn no_line_is_longer_than_80_characters() {
        let mut table = Table::new(&["A", "B", "C", "D"], Look::plain());
        let long = "ä".repeat(63);
        for cells in [["x", &long, &long, &long], [&long, &long, &long, &long], ["", "", "", ""]] {
            let lines = table.lines(&[row(&cells)]);
            assert!(lines.lines().all(|line| line.chars().count() <= LINE), "{lines}");
        }
        let id = "0".repeat(32);
        let lines = Table::new(&["A", "B", "C"], Look::plain()).lines(&[row(&[&id, &long, &long])]);
        assert!(lines.contains(&id), "an id is cut last: {lines}");
    }

    #[test]
    fn colours_take_no_room() {
        let rows = [vec![Cell::state("up"), "x".to_owned().into()]];
        let mut table = Table::new(&["STATE", "B"], Look { colour: true, now_ms: 0 });
        assert!(table.lines(&rows).ends_with("\u{1b}[32mup\u{1b}[0m     x\n"));
    }
}
