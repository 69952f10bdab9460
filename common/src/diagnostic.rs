//! What is wrong with a file, where, and what to write instead.

use std::fmt;

use crate::datalog::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; something in it is probably not meant.
    Warning,
}

/// One finding in a configuration or policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file as the user named it.
    pub file: String,
    /// 1-based line; 0 if the file as a whole is meant.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// How many characters are meant.
    pub width: usize,
    /// The line itself.
    pub excerpt: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A finding at a place in a text.
    #[must_use]
    pub fn at(file: &str, text: &str, span: Span, message: impl fmt::Display) -> Self {
        let start = floor(text, span.start);
        let end = floor(text, span.end).max(start);
        let before = text.get(..start).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let excerpt = text.get(line_start..).unwrap_or("").lines().next().unwrap_or("");
        let marked = text.get(start..end).unwrap_or("").lines().next().unwrap_or("");
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: text.get(line_start..start).unwrap_or("").chars().count() + 1,
            width: marked.chars().count().max(1),
            excerpt: excerpt.to_owned(),
            message: message.to_string(),
            help: None,
        }
    }

    /// A finding about a file as a whole.
    #[must_use]
    pub fn in_file(file: &str, message: impl fmt::Display) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            width: 0,
            excerpt: String::new(),
            message: message.to_string(),
            help: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Self {
        self.help = Some(help.to_string());
        self
    }

    /// As one line: place, message and help, without the excerpt.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let place = match self.line {
            0 => self.file.clone(),
            line => format!("{}:{line}:{}", self.file, self.column),
        };
        let help = self.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("{place}: {}{help}", self.message)
    }

    /// Makes it a warning.
    #[must_use]
    pub fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }
}

fn floor(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// `file:line:column: error: message`, the line with carets under it, and the help.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        if self.line == 0 {
            write!(f, "{}: {severity}: {}", self.file, self.message)?;
        } else {
            write!(f, "{}:{}:{}: {severity}: {}", self.file, self.line, self.column, self.message)?;
            let margin = self.line.to_string().len();
            write!(f, "\n {} | {}", self.line, self.excerpt.replace('\t', " "))?;
            let carets = "^".repeat(self.width.min(60));
            write!(f, "\n {:margin$} | {:indent$}{carets}", "", "", indent = self.column.saturating_sub(1))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n   help: {help}")?;
        }
        Ok(())
    }
}

/// Every finding about a set of files, so that nobody has to repair them one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Whether anything refuses the files.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Adds a finding.
    pub fn push(&mut self, finding: Diagnostic) {
        self.0.push(finding);
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// The candidate closest to `word`, if one is close enough to be what was meant.
#[must_use]
pub fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// The help for a word that is not known: the candidate that was probably meant, or else `otherwise`.
#[must_use]
pub fn suggest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>, otherwise: &str) -> String {
    closest(word, candidates).map_or_else(|| otherwise.to_owned(), |near| format!("did you mean `{near}`?"))
}

/// Optimal string alignment distance: insertions, deletions, substitutions and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&row, j) + usize::from(from != to)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_points_at_its_place() {
        let text = "first\nsecönd wrogn word\n";
        let start = text.find("wrogn").unwrap();
        let finding = Diagnostic::at("a.toml", text, Span { start, end: start + 5 }, "no such word")
            .help("did you mean `wrong`?");
        assert_eq!(
            finding.to_string(),
            "a.toml:2:8: error: no such word\n 2 | secönd wrogn word\n   |        ^^^^^\n   help: did you mean `wrong`?"
        );
    }

    #[test]
    fn spans_outside_the_text_do_no_harm() {
        let finding = Diagnostic::at("a", "é", Span { start: 1, end: 900 }, "x");
        assert_eq!((finding.line, finding.column), (1, 1));
    }

    #[test]
    fn suggestions_are_close_or_absent() {
        let words = ["resource", "action", "right"];
        assert_eq!(closest("resuorce", words), Some("resource"));
        assert_eq!(closest("acton", words), Some("action"));
        assert_eq!(closest("budget", words), None);
    }
}
