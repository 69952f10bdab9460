//! Findings in files, drawn for a terminal. Elsewhere they are written one by one as `file:line:column: …`, which
//! editors and scripts read.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use writ_common::diagnostic::{Diagnostic, Diagnostics, Severity};

use super::Colour;

/// Every finding with its line, what is meant in it underlined, and the help below.
#[must_use]
pub fn render(findings: &Diagnostics, colour: Colour) -> String {
    let renderer = match colour {
        Colour::On => Renderer::styled(),
        Colour::Off => Renderer::plain(),
    };
    let drawn: Vec<String> = findings.0.iter().map(|finding| renderer.render(&[group(finding)])).collect();
    drawn.join("\n\n")
}

fn group(finding: &Diagnostic) -> Group<'_> {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let titled = level.primary_title(finding.message.as_str());
    let group = if finding.line == 0 {
        titled.element(Origin::path(finding.file.as_str()))
    } else {
        let start = byte_of(&finding.excerpt, finding.column.saturating_sub(1));
        let end = byte_of(&finding.excerpt, finding.column.saturating_sub(1) + finding.width);
        let marked = AnnotationKind::Primary.span(start..end.max(start));
        let snippet = Snippet::source(finding.excerpt.as_str()).line_start(finding.line);
        titled.element(snippet.path(finding.file.as_str()).annotation(marked))
    };
    match &finding.help {
        Some(help) => group.element(Level::HELP.message(help.as_str())),
        None => group,
    }
}

/// Where the character with this number begins.
fn byte_of(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use writ_common::datalog::Span;

    use super::*;

    fn findings() -> Diagnostics {
        let text = "allow if depth(1);\ndeny if label(\"ä\"), resuorce(\"tool.crm\");\n";
        let start = text.find("resuorce").unwrap();
        let span = Span { start, end: start + 8 };
        let first = Diagnostic::at("a.datalog", text, span, "there is no predicate `resuorce`");
        Diagnostics(vec![
            first.help("did you mean `resource`?"),
            Diagnostic::in_file("b.datalogg", "this file is of no known kind").warning(),
        ])
    }

    #[test]
    fn findings_are_drawn_with_their_place() {
        let drawn = render(&findings(), Colour::Off);
        for part in [
            "error: there is no predicate `resuorce`",
            "a.datalog:2:21",
            "2 | deny if label(\"ä\"), resuorce(\"tool.crm\");",
            "|                     ^^^^^^^^",
            "help: did you mean `resource`?",
            "warning: this file is of no known kind",
            "b.datalogg",
        ] {
            assert!(drawn.contains(part), "{part}:\n{drawn}");
        }
        assert!(!drawn.contains('\u{1b}'), "{drawn}");
        assert!(render(&findings(), Colour::On).contains('\u{1b}'));
    }
}
