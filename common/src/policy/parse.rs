//! Policy text to statements.
//!
//! The grammar is Biscuit's Datalog (specification, section "Grammar") within the subset of
//! [`crate::datalog`], with two additions: a `///` comment above a rule is the rule's message, and there is no
//! `check` in a policy file (capabilities carry checks, policies carry rules).

use super::lex::{Token, tokens};
use crate::{
    datalog::{Binary, Body, Expression, Node, Predicate, Rule, Span, Term, Unary},
    diagnostic::{Diagnostic, Diagnostics, suggest},
};

/// One statement of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What it says.
    pub node: StatementNode,
    /// The `///` comment above it: what the caller is told when it decides.
    pub message: Option<String>,
    /// Where it stands, without the comment and the semicolon.
    pub span: Span,
}

impl Statement {
    /// What has to hold for it: one body, or the alternatives of a deciding rule.
    #[must_use]
    pub fn bodies(&self) -> &[Body] {
        match &self.node {
            StatementNode::Decide(_, bodies) => bodies,
            StatementNode::Derive(rule) => std::slice::from_ref(&rule.body),
        }
    }
}

/// The kinds of statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatementNode {
    /// `allow if …` or `deny if …`
    Decide(Effect, Vec<Body>),
    /// `head <- body`, or a bare fact
    Derive(Rule),
}

/// What a deciding rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// `allow if`
    Allow,
    /// `deny if`
    Deny,
}

/// Reads one file. Statements that parse are returned even if others do not.
#[must_use]
pub fn parse(file: &str, text: &str) -> (Vec<Statement>, Diagnostics) {
    let mut findings = Diagnostics::default();
    let tokens = match tokens(text) {
        Ok(tokens) => tokens,
        Err(error) => {
            findings.push(Diagnostic::at(file, text, error.span, error.message));
            return (Vec::new(), findings);
        }
    };
    let mut parser = Parser { file, text, tokens: &tokens, at: 0 };
    let mut statements = Vec::new();
    while parser.at < tokens.len() {
        match parser.statement() {
            Ok(Some(statement)) => statements.push(statement),
            Ok(None) => {}
            Err(finding) => {
                findings.push(*finding);
                parser.skip_statement();
            }
        }
    }
    (statements, findings)
}

/// Reads one fact, such as `reads_table("orders")`.
///
/// # Errors
/// What it is instead.
pub fn parse_fact(text: &str) -> Result<Predicate, String> {
    let told = |finding: &Diagnostic| match &finding.help {
        Some(help) => format!("{}: {help}", finding.message),
        None => finding.message.clone(),
    };
    let tokens = tokens(text).map_err(|error| error.message)?;
    let mut parser = Parser { file: "fact", text, tokens: &tokens, at: 0 };
    let fact = parser.predicate().map_err(|finding| told(&finding))?;
    if parser.peek().is_some() {
        return parser.expected("nothing behind the fact").map_err(|finding: Box<Diagnostic>| told(&finding));
    }
    Ok(fact)
}

type Parsed<T> = Result<T, Box<Diagnostic>>;

struct Parser<'a> {
    file: &'a str,
    text: &'a str,
    tokens: &'a [(Token, Span)],
    at: usize,
}

/// Deepest nesting of brackets in an expression.
const NESTING_MAX: usize = 32;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    /// Where the next token stands; the end of the text if there is none.
    fn span(&self) -> Span {
        let end = Span { start: self.text.trim_end().len(), end: self.text.len() };
        self.tokens.get(self.at).map_or(end, |(_, span)| *span)
    }

    fn last_span(&self) -> Span {
        self.at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(Span::default(), |(_, span)| *span)
    }

    fn fail<T>(&self, message: impl std::fmt::Display) -> Parsed<T> {
        Err(Box::new(Diagnostic::at(self.file, self.text, self.span(), message)))
    }

    fn expected<T>(&self, what: &str) -> Parsed<T> {
        let found = self.peek().map_or("the end of the file".to_owned(), Token::describe);
        self.fail(format!("expected {what}, found {found}"))
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Token::Sign(found)) if *found == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Some(Token::Word(found)) if found == word)
    }

    fn eat_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn sign(&mut self, sign: &str) -> Parsed<()> {
        if self.eat_sign(sign) { Ok(()) } else { self.expected(&format!("`{sign}`")) }
    }

    /// Goes on after the next semicolon, or at what can only be the start of another statement.
    fn skip_statement(&mut self) {
        while let Some(token) = self.peek() {
            match token {
                Token::Sign(";") => {
                    self.at += 1;
                    return;
                }
                Token::Doc(_) => return,
                Token::Word(word) if matches!(word.as_str(), "allow" | "deny") => return,
                _ => self.at += 1,
            }
        }
    }

    fn statement(&mut self) -> Parsed<Option<Statement>> {
        let mut message = Vec::new();
        while let Some(Token::Doc(line)) = self.peek() {
            message.push(line.as_str());
            self.at += 1;
        }
        if self.peek().is_none() {
            return Ok(None);
        }
        let start = self.span();
        let node = if self.is_word("allow") || self.is_word("deny") {
            let effect = if self.eat_word("allow") { Effect::Allow } else { Effect::Deny };
            self.at += usize::from(effect == Effect::Deny);
            if !self.eat_word("if") {
                return self.expected("`if`");
            }
            StatementNode::Decide(effect, self.alternatives()?)
        } else if self.is_word("check") {
            let finding =
                Diagnostic::at(self.file, self.text, start, "a policy file holds rules, not checks")
                    .help("capabilities carry checks; here write `deny if …`");
            return Err(Box::new(finding));
        } else {
            let head = self.predicate()?;
            let body = if self.eat_sign("<-") { self.body()? } else { Body::default() };
            StatementNode::Derive(Rule { head, body })
        };
        let span = start.to(self.last_span());
        if !self.eat_sign(";") {
            let place = Span { start: span.end.saturating_sub(1), end: span.end };
            let found = self.peek().map_or("the end of the file".to_owned(), Token::describe);
            let finding =
                Diagnostic::at(self.file, self.text, place, format!("expected `,` or `;`, found {found}"))
                    .help("elements of a rule are separated by `,`; a rule ends with `;`");
            return Err(Box::new(finding));
        }
        let message = (!message.is_empty()).then(|| message.join(" "));
        Ok(Some(Statement { node, message, span }))
    }

    fn alternatives(&mut self) -> Parsed<Vec<Body>> {
        let mut bodies = vec![self.body()?];
        while self.eat_word("or") {
            bodies.push(self.body()?);
        }
        Ok(bodies)
    }

    fn body(&mut self) -> Parsed<Body> {
        let mut body = Body::default();
        loop {
            // A word with a bracket behind it is a predicate; everything else is an expression.
            let is_predicate = matches!(self.peek(), Some(Token::Word(_)))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Sign("("), _)));
            if is_predicate {
                body.predicates.push(self.predicate()?);
            } else {
                body.expressions.push(self.expression(0, 0)?);
            }
            if !self.eat_sign(",") {
                break;
            }
        }
        // `true` alone is the empty body.
        if let ([], [Expression { node: Node::Term(Term::Bool(true)), .. }]) =
            (body.predicates.as_slice(), body.expressions.as_slice())
        {
            body.expressions.clear();
        }
        Ok(body)
    }

    fn predicate(&mut self) -> Parsed<Predicate> {
        let start = self.span();
        let Some(Token::Word(name)) = self.peek() else {
            return self.expected("a rule, for example `deny if resource(\"tool.mail\");`");
        };
        self.at += 1;
        self.sign("(")?;
        let mut terms = Vec::new();
        if !self.eat_sign(")") {
            loop {
                terms.push(self.term(true)?);
                if self.eat_sign(")") {
                    break;
                }
                self.sign(",")?;
            }
        }
        Ok(Predicate { name: name.clone(), terms, span: start.to(self.last_span()) })
    }

    fn term(&mut self, variables: bool) -> Parsed<Term> {
        let term = match self.peek() {
            Some(Token::Variable(name)) if variables => Term::Variable(name.clone()),
            Some(Token::Text(text)) => Term::Str(text.clone()),
            Some(Token::Integer(value)) => Term::Integer(*value),
            Some(Token::Date(secs)) => Term::Date(*secs),
            Some(Token::Bytes(bytes)) => Term::Bytes(bytes.clone()),
            Some(Token::Word(word)) if word == "true" => Term::Bool(true),
            Some(Token::Word(word)) if word == "false" => Term::Bool(false),
            Some(Token::Word(word)) => {
                let finding = Diagnostic::at(
                    self.file,
                    self.text,
                    self.span(),
                    format!("`{word}` is neither a text nor a variable"),
                )
                .help(format!("write `\"{word}\"` or `${word}`"));
                return Err(Box::new(finding));
            }
            Some(Token::Sign("-")) => {
                self.at += 1;
                return match self.peek() {
                    Some(Token::Integer(value)) => {
                        self.at += 1;
                        Ok(Term::Integer(value.saturating_neg()))
                    }
                    _ => self.expected("a number after `-`"),
                };
            }
            Some(Token::Sign("{")) => return self.set(),
            _ => return self.expected("a value"),
        };
        self.at += 1;
        Ok(term)
    }

    fn set(&mut self) -> Parsed<Term> {
        self.sign("{")?;
        let mut members = std::collections::BTreeSet::new();
        if self.eat_sign(",") {
            self.sign("}")?;
            return Ok(Term::Set(members));
        }
        loop {
            members.insert(self.term(false)?);
            if self.eat_sign("}") {
                return Ok(Term::Set(members));
            }
            self.sign(",")?;
        }
    }

    /// Precedence climbing over the strengths of [`Binary::notation`].
    fn expression(&mut self, strength: u8, depth: usize) -> Parsed<Expression> {
        if depth > NESTING_MAX {
            return self.fail("this expression is nested more than 32 deep");
        }
        let mut left = self.unary(depth)?;
        while let Some((op, binds)) = self.infix()? {
            if binds <= strength {
                break;
            }
            self.at += 1;
            let right = self.expression(binds, depth + 1)?;
            let span = left.span.to(right.span);
            left = Expression { node: Node::Binary(op, Box::new(left), Box::new(right)), span };
        }
        Ok(left)
    }

    fn infix(&self) -> Parsed<Option<(Binary, u8)>> {
        let Some(Token::Sign(sign)) = self.peek() else { return Ok(None) };
        Ok(Some(match *sign {
            "||" => (Binary::Or, 1),
            "&&" => (Binary::And, 2),
            "===" => (Binary::Equal, 3),
            "==" if crate::red::off("P10") => (Binary::Equal, 3),
            "!==" => (Binary::NotEqual, 3),
            "<" => (Binary::LessThan, 3),
            "<=" => (Binary::LessOrEqual, 3),
            ">" => (Binary::GreaterThan, 3),
            ">=" => (Binary::GreaterOrEqual, 3),
            "+" => (Binary::Add, 4),
            "-" => (Binary::Subtract, 4),
            "*" => (Binary::Multiply, 5),
            "/" => (Binary::Divide, 5),
            "==" | "!=" => {
                let strict = if *sign == "==" { "===" } else { "!==" };
                let message = format!("`{sign}` compares values of different types without complaint");
                let finding = Diagnostic::at(self.file, self.text, self.span(), message)
                    .help(format!("write `{strict}`; `\"1\" != 1` would be true"));
                return Err(Box::new(finding));
            }
            _ => return Ok(None),
        }))
    }

    fn unary(&mut self, depth: usize) -> Parsed<Expression> {
        let start = self.span();
        if self.eat_sign("!") {
            if depth > NESTING_MAX {
                return self.fail("this expression is nested more than 32 deep");
            }
            let operand = self.unary(depth + 1)?;
            let span = start.to(operand.span);
            return Ok(Expression { node: Node::Unary(Unary::Not, Box::new(operand)), span });
        }
        let mut value = if self.eat_sign("(") {
            let inner = self.expression(0, depth + 1)?;
            self.sign(")")?;
            inner
        } else {
            let term = self.term(true)?;
            Expression { node: Node::Term(term), span: start.to(self.last_span()) }
        };
        while self.eat_sign(".") {
            value = self.method(start, value, depth)?;
        }
        Ok(value)
    }

    fn method(&mut self, start: Span, receiver: Expression, depth: usize) -> Parsed<Expression> {
        let Some(Token::Word(name)) = self.peek() else { return self.expected("a method name") };
        let op = match name.as_str() {
            "length" => None,
            "contains" => Some(Binary::Contains),
            "ends_with" => Some(Binary::EndsWith),
            "intersection" => Some(Binary::Intersection),
            "starts_with" => Some(Binary::StartsWith),
            "union" => Some(Binary::Union),
            "matches" => {
                let finding = Diagnostic::at(
                    self.file,
                    self.text,
                    self.span(),
                    "regular expressions are not part of the policy language",
                )
                .help("use `starts_with`, `ends_with`, `contains` or a set");
                return Err(Box::new(finding));
            }
            _ => {
                let known = ["contains", "ends_with", "intersection", "length", "starts_with", "union"];
                let finding =
                    Diagnostic::at(self.file, self.text, self.span(), format!("there is no method `{name}`"));
                let otherwise = format!("there are {}", known.join(", "));
                return Err(Box::new(finding.help(suggest(name, known, &otherwise))));
            }
        };
        self.at += 1;
        self.sign("(")?;
        let node = match op {
            None => Node::Unary(Unary::Length, Box::new(receiver)),
            Some(op) => Node::Binary(op, Box::new(receiver), Box::new(self.expression(0, depth + 1)?)),
        };
        self.sign(")")?;
        Ok(Expression { node, span: start.to(self.last_span()) })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn show(statement: &Statement) -> String {
        let message = statement.message.as_ref().map_or(String::new(), |message| format!("/// {message}\n"));
        let text = match &statement.node {
            StatementNode::Decide(effect, bodies) => {
                let effect = if *effect == Effect::Allow { "allow" } else { "deny" };
                let bodies: Vec<String> = bodies.iter().map(ToString::to_string).collect();
                format!("{effect} if {}", bodies.join(" or "))
            }
            StatementNode::Derive(rule) => rule.to_string(),
        };
        format!("{message}{text};")
    }

    fn check(text: &str, expected: &Expect) {
        let (statements, findings) = parse("p.datalog", text);
        let mut shown: Vec<String> = statements.iter().map(show).collect();
        if !findings.0.is_empty() {
            shown.push(findings.to_string());
        }
        expected.assert_eq(&shown.join("\n"));
    }

    #[test]
    fn statements_read_and_write_back() {
        check(
            r#"// a comment
               /// nobody writes to the CRM
               deny if resource("tool.crm"), action($a), $a !== "read" or action("drop");
               allow if true; /* done */
               may_delegate($f, $t) <- delegates($f, $t), {"a", "b"}.contains($t) && !($f.length() < 3 + 1 * 2);
               limit(-5, 2026-01-31T12:00:00Z, hex:0aff, "q\"\u{e9}");"#,
            &expect![[r#"
                /// nobody writes to the CRM
                deny if resource("tool.crm"), action($a), $a !== "read" or action("drop");
                allow if true;
                may_delegate($f, $t) <- delegates($f, $t), {"a", "b"}.contains($t) && !($f.length() < 3 + 1 * 2);
                limit(-5, 2026-01-31T12:00:00Z, hex:0aff, "q\"é") <- true;"#]],
        );
    }

    #[test]
    fn what_is_written_parses_to_the_same_tree() {
        let text = "a($x) <- b($x), ($x + 1) * 2 > 3 - (4 - 5), $x < 3 || $x > 4 && !($x === 5);";
        let (first, _) = parse("p", text);
        let (second, findings) = parse("p", &first.iter().map(show).collect::<String>());
        assert!(findings.0.is_empty());
        assert_eq!(first, second);
    }

    #[test]
    fn faults_have_places_and_advice() {
        check(
            "deny if resource(tool), action(\"x\")\nallow if $a == 1;\ndeny if $x.matches(\"y\");\ncheck if true;",
            &expect![[r#"
                p.datalog:1:18: error: `tool` is neither a text nor a variable
                 1 | deny if resource(tool), action("x")
                   |                  ^^^^
                   help: write `"tool"` or `$tool`
                p.datalog:2:13: error: `==` compares values of different types without complaint
                 2 | allow if $a == 1;
                   |             ^^
                   help: write `===`; `"1" != 1` would be true
                p.datalog:3:12: error: regular expressions are not part of the policy language
                 3 | deny if $x.matches("y");
                   |            ^^^^^^^
                   help: use `starts_with`, `ends_with`, `contains` or a set
                p.datalog:4:1: error: a policy file holds rules, not checks
                 4 | check if true;
                   | ^^^^^
                   help: capabilities carry checks; here write `deny if …`"#]],
        );
    }

    #[test]
    fn a_missing_comma_is_found_where_it_is_missing() {
        check(
            "deny if resource(\"tool.mail\") action(\"send\");",
            &expect![[r#"
                p.datalog:1:29: error: expected `,` or `;`, found `action`
                 1 | deny if resource("tool.mail") action("send");
                   |                             ^
                   help: elements of a rule are separated by `,`; a rule ends with `;`"#]],
        );
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        let (_, findings) = parse("p", "a(2026-04-31T00:00:00Z);");
        assert!(findings.has_errors());
    }

    #[test]
    fn hostile_nesting_ends_in_a_finding() {
        let text = format!("a() <- {}1{};", "(".repeat(10_000), ")".repeat(10_000));
        assert!(parse("p", &text).1.has_errors());
        let text = format!("a() <- {}true;", "!".repeat(10_000));
        assert!(parse("p", &text).1.has_errors());
    }
}
