//! Tables, for people and as CSV. What comes from records is shown for what it is.

use writ_common::visible::visible;

/// A table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// What each column holds.
    pub columns: Vec<&'static str>,
    /// The cells, as they came.
    pub rows: Vec<Vec<String>>,
}

/// Widest cell of a table for people, in characters; CSV and JSON have all of it.
const CELL_CHARS_MAX: usize = 100;

impl Table {
    /// A table without rows.
    #[must_use]
    pub fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn push<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table for people: columns beside each other, two spaces between.
    #[must_use]
    pub fn to_text(&self) -> String {
        let shown = |cell: &String| {
            let cell = visible(cell);
            let cut: String = cell.chars().take(CELL_CHARS_MAX).collect();
            if cut.len() < cell.len() { format!("{cut}…") } else { cut }
        };
        let head: Vec<String> = self.columns.iter().map(|name| name.to_uppercase()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(shown).collect());
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells =
                line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// The table as CSV (RFC 4180), every cell quoted.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let head: Vec<String> = self.columns.iter().map(|name| csv_cell(name)).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(|cell| csv_cell(cell)).collect::<Vec<_>>());
        std::iter::once(head).chain(rows).map(|cells| cells.join(",") + "\r\n").collect()
    }
}

/// A cell: what is not seen is escaped, quotes are doubled, and what a spreadsheet would take for a formula begins
/// with an apostrophe (OWASP, "CSV injection").
fn csv_cell(text: &str) -> String {
    let text = visible(text);
    // Spreadsheets look behind leading spaces too.
    let is_formula = text.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    let guard = if is_formula { "'" } else { "" };
    format!("\"{guard}{}\"", text.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_quoted_and_never_a_formula() {
        for (cell, written) in [
            ("plain", "\"plain\""),
            ("a,b", "\"a,b\""),
            ("say \"no\"", "\"say \"\"no\"\"\""),
            ("=HYPERLINK(\"http://x\")", "\"'=HYPERLINK(\"\"http://x\"\")\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("  =1", "\"'  =1\""),
            ("\t=1", "\"\\u{9}=1\""),
            ("two\r\nlines", "\"two\\u{d}\\u{a}lines\""),
            ("＝1", "\"'＝1\""),
            ("", "\"\""),
        ] {
            assert_eq!(csv_cell(cell), written, "{cell:?}");
        }
    }

    #[test]
    fn tables_line_up_and_hide_nothing() {
        let mut table = Table::new(&["who", "what"]);
        table.push(["a".to_owned(), "x".to_owned()]);
        table.push(["longer".to_owned(), "b\u{202e}c".to_owned()]);
        assert_eq!(table.to_text(), "WHO     WHAT\na       x\nlonger  b\\u{202e}c\n");
        assert_eq!(table.to_csv(), "\"who\",\"what\"\r\n\"a\",\"x\"\r\n\"longer\",\"b\\u{202e}c\"\r\n");
    }
}
