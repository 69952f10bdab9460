//! The one way to write a policy file.
//!
//! Every statement on one line, or one element per line if it is longer than [`LINE_CHARS_MAX`]; facts of a body
//! before its conditions; at most one empty line between statements. Comments stay where they are. A statement with
//! a comment inside is left as it was written: where such a comment belongs is known only to who wrote it.

use super::{
    Effect, Statement, StatementNode,
    lex::{Token, tokens},
    parse,
};
use crate::{
    datalog::{Body, Span},
    diagnostic::{Diagnostic, Diagnostics},
};

/// Longest line a statement is written on.
pub const LINE_CHARS_MAX: usize = 120;
const INDENT: &str = "    ";

/// Formats one file.
///
/// # Errors
/// The findings of a file that does not parse.
pub fn format(file: &str, text: &str) -> Result<String, Diagnostics> {
    let text = text.replace("\r\n", "\n");
    let (statements, findings) = parse(file, &text);
    if findings.has_errors() {
        return Err(findings);
    }
    let mut writer = Writer { out: String::new(), blank_wanted: false };
    let mut at = 0;
    for statement in &statements {
        writer.trivia(text.get(at..statement.span.start).unwrap_or(""));
        let end = semicolon(&text, statement.span.end);
        let whole = Span { start: statement.span.start, end };
        writer.line(&written(&text, statement, whole));
        at = end + 1;
    }
    writer.trivia(text.get(at..).unwrap_or(""));
    let formatted = writer.out;
    // Formatting must never change what is decided, whatever the file.
    if parse(file, &formatted).0 != statements {
        let finding =
            Diagnostic::in_file(file, "this file cannot be formatted without changing what it means");
        return Err(Diagnostics(vec![finding.help("please report it with the file; it was left as it is")]));
    }
    Ok(formatted)
}

/// Where the semicolon after a statement stands.
fn semicolon(text: &str, from: usize) -> usize {
    let rest = text.get(from..).unwrap_or("");
    let mut at = 0;
    for piece in Pieces(rest) {
        match piece {
            Piece::Other => break,
            Piece::Blank(text) | Piece::Doc(text) | Piece::Line(text) | Piece::Block(text) => {
                at += text.len();
            }
        }
    }
    from + at
}

fn written(text: &str, statement: &Statement, whole: Span) -> String {
    let source = text.get(whole.start..whole.end).unwrap_or("");
    if has_comment(source) {
        // Not `lines`: behind a comment, the semicolon has to stay on a line of its own.
        let lines: Vec<&str> = source.split('\n').map(str::trim_end).collect();
        return format!("{};", lines.join("\n"));
    }
    let line = one_line(statement);
    if line.chars().count() <= LINE_CHARS_MAX { line } else { broken(statement) }
}

fn has_comment(source: &str) -> bool {
    let Ok(tokens) = tokens(source) else { return true };
    let mut at = 0;
    for (token, span) in &tokens {
        let gap = source.get(at..span.start).unwrap_or("");
        if !gap.trim().is_empty() || matches!(token, Token::Doc(_)) {
            return true;
        }
        at = span.end;
    }
    !source.get(at..).unwrap_or("").trim().is_empty()
}

fn word(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow if",
        Effect::Deny => "deny if",
    }
}

fn one_line(statement: &Statement) -> String {
    match &statement.node {
        StatementNode::Decide(effect, bodies) => {
            let bodies: Vec<String> = bodies.iter().map(ToString::to_string).collect();
            format!("{} {};", word(*effect), bodies.join(" or "))
        }
        StatementNode::Derive(rule) if is_empty(&rule.body) => format!("{};", rule.head),
        StatementNode::Derive(rule) => format!("{rule};"),
    }
}

fn is_empty(body: &Body) -> bool {
    body.predicates.is_empty() && body.expressions.is_empty()
}

fn broken(statement: &Statement) -> String {
    let elements = |body: &Body| {
        let predicates = body.predicates.iter().map(ToString::to_string);
        let all: Vec<String> = predicates.chain(body.expressions.iter().map(ToString::to_string)).collect();
        if all.is_empty() {
            format!("{INDENT}true")
        } else {
            format!("{INDENT}{}", all.join(&format!(",\n{INDENT}")))
        }
    };
    match &statement.node {
        StatementNode::Decide(effect, bodies) => {
            let bodies: Vec<String> = bodies.iter().map(elements).collect();
            format!("{}\n{};", word(*effect), bodies.join("\nor\n"))
        }
        StatementNode::Derive(rule) if is_empty(&rule.body) => format!("{};", rule.head),
        StatementNode::Derive(rule) => format!("{} <-\n{};", rule.head, elements(&rule.body)),
    }
}

struct Writer {
    out: String,
    /// An empty line stood here, and is written if something follows.
    blank_wanted: bool,
}

impl Writer {
    fn line(&mut self, line: &str) {
        if self.blank_wanted && !self.out.is_empty() {
            self.out.push('\n');
        }
        self.blank_wanted = false;
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// What stands between statements.
    fn trivia(&mut self, text: &str) {
        // A comment behind a statement stays on its line.
        let mut is_behind = !self.out.is_empty();
        let mut is_after_doc = false;
        for piece in Pieces(text) {
            match piece {
                Piece::Blank(blank) => {
                    let lines = blank.matches('\n').count();
                    is_behind &= lines == 0;
                    // The message belongs to the rule below it.
                    self.blank_wanted |= lines > 1 && !is_after_doc;
                    continue;
                }
                Piece::Doc(doc) => {
                    self.line(format!("/// {}", doc.get(3..).unwrap_or("").trim()).trim_end());
                }
                Piece::Line(comment) | Piece::Block(comment) if is_behind => {
                    self.out.pop();
                    self.out.push(' ');
                    self.line(comment.trim_end());
                }
                Piece::Line(comment) => self.line(comment.trim_end()),
                Piece::Block(comment) => {
                    let lines: Vec<&str> = comment.lines().map(str::trim_end).collect();
                    self.line(&lines.join("\n"));
                }
                Piece::Other => {}
            }
            is_behind = false;
            is_after_doc = matches!(piece, Piece::Doc(_));
        }
    }
}

/// A stretch of text without statements, piece by piece.
struct Pieces<'a>(&'a str);

#[derive(Clone, Copy)]
enum Piece<'a> {
    Blank(&'a str),
    Doc(&'a str),
    Line(&'a str),
    Block(&'a str),
    Other,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let rest = self.0;
        if rest.is_empty() {
            return None;
        }
        let to_line_end = rest.find('\n').unwrap_or(rest.len());
        let blank = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let (length, make): (usize, fn(&'a str) -> Piece<'a>) = if blank > 0 {
            (blank, Piece::Blank)
        } else if rest.starts_with("///") {
            (to_line_end, Piece::Doc)
        } else if rest.starts_with("//") {
            (to_line_end, Piece::Line)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), Piece::Block)
        } else {
            (rest.len(), |_| Piece::Other)
        };
        let (piece, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(make(piece))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, expected: &Expect) {
        let formatted = format("p.datalog", text).unwrap_or_else(|findings| panic!("{findings}"));
        expected.assert_eq(&formatted);
        assert_eq!(format("p.datalog", &formatted).as_ref(), Ok(&formatted));
    }

    #[test]
    fn statements_are_written_one_way_and_comments_stay() {
        check(
            "\n\n//what this is\n\n\n\n///  nobody  \n\ndeny if   $a!==\"read\",resource(\"tool.crm\") ,action( $a ); // why\nown(\"x\")<-true; /* two */ own(\"y\");\n\n\n// the end",
            &expect![[r#"
                //what this is

                /// nobody
                deny if resource("tool.crm"), action($a), $a !== "read"; // why
                own("x"); /* two */
                own("y");

                // the end
            "#]],
        );
    }

    #[test]
    fn long_statements_are_broken() {
        check(
            "deny if resource(\"tool.customers\"), action(\"write\"), team_of_origin($one), team_of_caller($other), $one !== $other or depth($n), $n > 2;\nfar($first, $last) <- delegates($first, $second), delegates($second, $third), delegates($third, $last), $first !== $last;",
            &expect![[r#"
                deny if
                    resource("tool.customers"),
                    action("write"),
                    team_of_origin($one),
                    team_of_caller($other),
                    $one !== $other
                or
                    depth($n),
                    $n > 2;
                far($first, $last) <-
                    delegates($first, $second),
                    delegates($second, $third),
                    delegates($third, $last),
                    $first !== $last;
            "#]],
        );
    }

    #[test]
    fn a_statement_with_a_comment_inside_is_left_alone() {
        check(
            "deny if\n  depth($n),  // how deep   \n  $n>2 /* too deep */ ;\n  allow   if depth(1);\ndeny if depth(9) // far\n  ;",
            &expect![[r#"
                deny if
                  depth($n),  // how deep
                  $n>2 /* too deep */;
                allow if depth(1);
                deny if depth(9) // far
                ;
            "#]],
        );
    }

    #[test]
    fn a_file_that_does_not_parse_is_left_to_its_author() {
        assert!(format("p.datalog", "deny if resource(tool);").is_err());
        assert_eq!(format("p.datalog", ""), Ok(String::new()));
    }
}
