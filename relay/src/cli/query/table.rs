//! Tables for people: columns as wide as needed, lines of at most 80 characters.

/// Characters of a line.
const LINE: usize = 80;
/// Characters between columns.
const GAP: usize = 2;
/// Characters that a column keeps when room is short.
const LEAST: usize = 6;

/// A table that is printed page by page; its columns only grow.
pub(super) struct Table {
    heads: &'static [&'static str],
    widths: Vec<usize>,
    began: bool,
}

impl Table {
    /// With these columns. The first names the row and is cut last.
    pub(super) fn new(heads: &'static [&'static str]) -> Self {
        let widths = heads.iter().map(|head| head.len()).collect();
        Self { heads, widths, began: false }
    }

    /// These rows as lines, below the heads where they are the first. Control characters, which a terminal
    /// would obey, are replaced; what does not fit is cut.
    pub(super) fn lines(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        self.shrink();
        let mut out = String::new();
        if !std::mem::replace(&mut self.began, true) {
            let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
            self.line(&heads, &mut out);
        }
        rows.iter().for_each(|row| self.line(row, &mut out));
        out
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

    fn line(&self, cells: &[String], out: &mut String) {
        let mut line = String::new();
        for (cell, &width) in cells.iter().zip(&self.widths) {
            let cell = fitted(cell, width);
            line.push_str(&format!("{cell:<width$}{:GAP$}", ""));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

fn fitted(cell: &str, width: usize) -> String {
    let plain = |c: char| if c.is_control() { '?' } else { c };
    if cell.chars().count() <= width {
        return cell.chars().map(plain).collect();
    }
    cell.chars().take(width.saturating_sub(1)).map(plain).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_line_up_over_pages() {
        let mut table = Table::new(&["ID", "STATE"]);
        assert_eq!(table.lines(&[row(&["plant7", "up"])]), "ID      STATE\nplant7  up\n");
        assert_eq!(table.lines(&[row(&["a", "\u{1b}[31m"])]), "a       ?[31m\n");
    }

    #[test]
    fn no_line_is_longer_than_80_characters() {
        let mut table = Table::new(&["A", "B", "C", "D"]);
        let long = "ä".repeat(63);
        for cells in [["x", &long, &long, &long], [&long, &long, &long, &long], ["", "", "", ""]] {
            let lines = table.lines(&[row(&cells)]);
            assert!(lines.lines().all(|line| line.chars().count() <= LINE), "{lines}");
        }
        let id = "0".repeat(32);
        let lines = Table::new(&["A", "B", "C"]).lines(&[row(&[&id, &long, &long])]);
        assert!(lines.contains(&id), "an id is cut last: {lines}");
    }
}
