//! Reads TOML by hand: every fault at once, each with its place, and no key unread.
//!
//! A derived deserialiser stops at the first fault and knows nothing of places across files. Here a [`Document`]
//! hands out [`Section`]s; a section is asked for its keys one by one, notes what is wrong and goes on; what
//! nobody asked for is an unknown key.

use std::{cell::RefCell, collections::BTreeMap, fmt::Display, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::{
    datalog::Span,
    diagnostic::{Diagnostic, Diagnostics, closest, suggest},
    json::{Number, Value},
};

/// One TOML text with the findings about it.
pub struct Document<'a> {
    file: &'a str,
    text: &'a str,
    overrides: &'a BTreeMap<String, String>,
    findings: RefCell<Vec<Diagnostic>>,
}

/// A table of a document, being read.
pub struct Section<'d, 'a> {
    document: &'d Document<'a>,
    /// Dotted path from the root, for overrides; empty at the root.
    path: String,
    /// Where the table stands, for what is missing.
    span: Span,
    entries: Vec<Entry<'a>>,
    /// One of a list of tables: no override can say which of them it means.
    is_item: bool,
}

struct Entry<'a> {
    key: String,
    key_span: Span,
    value: Spanned<DeValue<'a>>,
    read: bool,
}

fn to_span(range: &std::ops::Range<usize>) -> Span {
    Span { start: range.start, end: range.end }
}

impl<'a> Document<'a> {
    /// Parses a text; syntax errors are findings already.
    ///
    /// `overrides` holds values that go before the file's, keyed by dotted path (`bus.url`).
    #[must_use]
    pub fn new(file: &'a str, text: &'a str, overrides: &'a BTreeMap<String, String>) -> Self {
        Self { file, text, overrides, findings: RefCell::default() }
    }

    /// The top table.
    #[must_use]
    pub fn root(&self) -> Section<'_, 'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let span = error.span().map_or(Span::default(), |range| to_span(&range));
            self.note(Diagnostic::at(self.file, self.text, span, error.message()));
        }
        self.section(String::new(), Span::default(), table.into_inner())
    }

    fn section(&self, path: String, span: Span, table: DeTable<'a>) -> Section<'_, 'a> {
        let entries = table
            .into_iter()
            .map(|(key, value)| Entry {
                key_span: to_span(&key.span()),
                key: key.into_inner().into_owned(),
                value,
                read: false,
            })
            .collect();
        Section { document: self, path, span, entries, is_item: false }
    }

    /// Adds a finding.
    pub fn note(&self, finding: Diagnostic) {
        self.findings.borrow_mut().push(finding);
    }

    /// A finding at a place in this document.
    #[must_use]
    pub fn at(&self, span: Span, message: impl Display) -> Diagnostic {
        Diagnostic::at(self.file, self.text, span, message)
    }

    /// Every finding, in the order of their places.
    #[must_use]
    pub fn into_findings(self) -> Diagnostics {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| (finding.line, finding.column));
        Diagnostics(findings)
    }
}

impl<'d, 'a> Section<'d, 'a> {
    /// The document this is part of.
    #[must_use]
    pub fn document(&self) -> &'d Document<'a> {
        self.document
    }

    /// Where the section stands.
    #[must_use]
    pub fn span(&self) -> Span {
        self.span
    }

    fn dotted(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn override_of(&self, key: &str) -> Option<&'d str> {
        if self.is_item {
            return None;
        }
        self.document.overrides.get(&self.dotted(key)).map(String::as_str)
    }

    /// A finding about a key's value, which may come from the environment.
    fn fault(&self, key: &str, span: Span, message: impl Display) {
        let finding = match self.override_of(key) {
            Some(_) => self.document.at(span, format!("{message} (set by {})", variable(&self.dotted(key)))),
            None => self.document.at(span, message),
        };
        self.document.note(finding);
    }

    fn take(&mut self, key: &str) -> Option<Spanned<DeValue<'a>>> {
        let entry = self.entries.iter_mut().find(|entry| entry.key == key)?;
        entry.read = true;
        let range = entry.value.span();
        Some(Spanned::new(range, std::mem::replace(entry.value.get_mut(), DeValue::Boolean(false))))
    }

    /// Where a key's value stands, read or not; the section itself if it is absent.
    #[must_use]
    pub fn span_of(&self, key: &str) -> Span {
        self.entries
            .iter()
            .find(|entry| entry.key == key)
            .map_or(self.span, |entry| to_span(&entry.value.span()))
    }

    fn wrong_type(&self, key: &str, span: Span, expected: &str, found: &str) {
        self.fault(key, span, format!("`{}` must be {expected}, not {found}", self.dotted(key)));
    }

    fn missing(&self, key: &str, example: &str) {
        let message = format!("`{}` is missing", self.dotted(key));
        self.document.note(self.document.at(self.span, message).help(format!("add `{key} = {example}`")));
    }

    /// A text that may be absent.
    pub fn optional_text(&mut self, key: &str) -> Option<String> {
        if let Some(text) = self.override_of(key) {
            self.take(key);
            return Some(text.to_owned());
        }
        let value = self.take(key)?;
        let span = to_span(&value.span());
        match value.into_inner() {
            DeValue::String(text) => Some(text.into_owned()),
            other => {
                self.wrong_type(key, span, "a text", other.type_str());
                None
            }
        }
    }

    /// A text that has to be there; `example` is shown if it is not.
    pub fn text(&mut self, key: &str, example: &str) -> Option<String> {
        if self.has(key) {
            return self.optional_text(key);
        }
        self.missing(key, example);
        None
    }

    /// Whether the key is set, in the file or by an override.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| entry.key == key) || self.override_of(key).is_some()
    }

    /// A text that parses as `T`, which may be absent.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, key: &str) -> Option<T> {
        let span = self.span_of(key);
        let text = self.optional_text(key)?;
        self.parsed(key, span, &text)
    }

    /// A text that parses as `T` and has to be there.
    pub fn required<T: FromStr<Err: Display>>(&mut self, key: &str, example: &str) -> Option<T> {
        let span = self.span_of(key);
        let text = self.text(key, example)?;
        self.parsed(key, span, &text)
    }

    fn parsed<T: FromStr<Err: Display>>(&self, key: &str, span: Span, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(key, span, format!("`{}`: {error}", self.dotted(key)));
                None
            }
        }
    }

    /// A list of texts that each parse as `T`; absent means empty. An override separates them by commas.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &str) -> Vec<T> {
        if let Some(text) = self.override_of(key) {
            let span = self.span_of(key);
            self.take(key);
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            return items.filter_map(|item| self.parsed(key, span, item)).collect();
        }
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = to_span(&value.span());
        let DeValue::Array(items) = value.into_inner() else {
            self.wrong_type(key, span, "a list of texts", "something else");
            return Vec::new();
        };
        let mut list = Vec::new();
        for item in items {
            let span = to_span(&item.span());
            match item.into_inner() {
                DeValue::String(text) => list.extend(self.parsed::<T>(key, span, &text)),
                other => self.wrong_type(key, span, "a list of texts", other.type_str()),
            }
        }
        list
    }

    /// A whole number within bounds, which may be absent.
    pub fn optional_integer(&mut self, key: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let span = self.span_of(key);
        let value = if let Some(text) = self.override_of(key) {
            self.take(key);
            text.parse::<u64>().ok()
        } else {
            match self.take(key)?.into_inner() {
                DeValue::Integer(integer) => u64::from_str_radix(integer.as_str(), integer.radix()).ok(),
                other => {
                    self.wrong_type(key, span, "a whole number", other.type_str());
                    return None;
                }
            }
        };
        match value {
            Some(value) if range.contains(&value) => Some(value),
            _ => {
                let message =
                    format!("`{}` must be from {} to {}", self.dotted(key), range.start(), range.end());
                self.fault(key, span, message);
                None
            }
        }
    }

    /// A truth value, which may be absent.
    pub fn optional_bool(&mut self, key: &str) -> Option<bool> {
        let span = self.span_of(key);
        if let Some(text) = self.override_of(key) {
            let value = text.parse().ok();
            self.take(key);
            if value.is_none() {
                self.wrong_type(key, span, "true or false", "something else");
            }
            return value;
        }
        match self.take(key)?.into_inner() {
            DeValue::Boolean(value) => Some(value),
            other => {
                self.wrong_type(key, span, "true or false", other.type_str());
                None
            }
        }
    }

    /// A table; an absent one reads as empty, so that overrides and defaults work without it.
    pub fn table(&mut self, key: &str) -> Section<'d, 'a> {
        self.optional_table(key).unwrap_or_else(|| {
            let path = self.dotted(key);
            self.document.section(path, self.span, DeTable::new())
        })
    }

    /// A table that may be absent altogether.
    pub fn optional_table(&mut self, key: &str) -> Option<Section<'d, 'a>> {
        let path = self.dotted(key);
        let value = self.take(key)?;
        let span = to_span(&value.span());
        Some(match value.into_inner() {
            DeValue::Table(table) => self.document.section(path, span, table),
            other => {
                self.wrong_type(key, span, "a table", other.type_str());
                self.document.section(path, span, DeTable::new())
            }
        })
    }

    /// A list of tables (`[[key]]`); absent means empty.
    pub fn tables(&mut self, key: &str) -> Vec<Section<'d, 'a>> {
        let path = self.dotted(key);
        let below = format!("{path}.");
        for dotted in self.document.overrides.keys().filter(|dotted| dotted.starts_with(&below)) {
            let message = format!("{} sets nothing: `{path}` is a list of tables", variable(dotted));
            self.document.note(self.document.at(self.span_of(key), message));
        }
        let Some(value) = self.take(key) else { return Vec::new() };
        let span = to_span(&value.span());
        let DeValue::Array(items) = value.into_inner() else {
            self.wrong_type(key, span, "a list of tables", "something else");
            return Vec::new();
        };
        let mut tables = Vec::new();
        for item in items {
            let span = to_span(&item.span());
            match item.into_inner() {
                DeValue::Table(table) => {
                    let section = self.document.section(path.clone(), span, table);
                    tables.push(Section { is_item: true, ..section });
                }
                other => self.wrong_type(key, span, "a list of tables", other.type_str()),
            }
        }
        tables
    }

    /// A table whose keys are the user's own, as (key, where it stands, value); absent means empty.
    pub fn free_table(&mut self, key: &str) -> Vec<(String, Span, Value)> {
        let section = self.table(key);
        let document = section.document;
        let mut pairs = Vec::new();
        for entry in section.entries {
            let span = to_span(&entry.value.span());
            match to_json(entry.value.get_ref()) {
                Some(value) => pairs.push((entry.key, span, value)),
                None => document.note(document.at(span, "a date or a number out of range cannot stand here")),
            }
        }
        pairs
    }

    /// Notes every key nobody asked for, and every override that sets none.
    pub fn finish(self, known: &[&str]) {
        let all = format!("known here: {}", known.join(", "));
        for dotted in self.document.overrides.keys().filter(|_| !self.is_item) {
            let below = if self.path.is_empty() {
                Some(dotted.as_str())
            } else {
                dotted.strip_prefix(&format!("{}.", self.path))
            };
            let Some((key, rest)) = below.map(|below| below.split_once('.').unwrap_or((below, ""))) else {
                continue;
            };
            // Another program's section may be set in the same environment; one that is nearly ours is a slip.
            let is_strange = rest.is_empty() || closest(key, known.iter().copied()).is_some();
            if !known.contains(&key) && is_strange {
                let finding = self.document.at(self.span, format!("{} sets nothing", variable(dotted)));
                self.document.note(finding.help(suggest(key, known.iter().copied(), &all)));
            }
        }
        for entry in self.entries.iter().filter(|entry| !entry.read) {
            let name = self.dotted(&entry.key);
            let finding = self.document.at(entry.key_span, format!("unknown key `{name}`"));
            self.document.note(finding.help(suggest(&entry.key, known.iter().copied(), &all)));
        }
    }
}

/// The environment variable that sets a dotted path.
fn variable(dotted: &str) -> String {
    format!("WRIT_{}", dotted.replace('.', "__").to_uppercase())
}

/// TOML to JSON; `None` for what JSON or exact numbers cannot hold.
fn to_json(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(integer) => {
            Value::from(i64::from_str_radix(integer.as_str(), integer.radix()).ok()?)
        }
        DeValue::Float(float) => Value::Number(Number::parse(float.as_str()).ok()?),
        DeValue::Boolean(value) => Value::from(*value),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| to_json(item.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(key, value)| Some((key.get_ref().to_string(), to_json(value.get_ref())?)))
                .collect::<Option<_>>()?,
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_reported_at_once_with_its_place() {
        let text = "tenant = 5\ncolour = \"red\"\n[bus]\nurl = \"nats://x\"\nretries = 900\nurll = 1\n";
        let overrides = BTreeMap::new();
        let document = Document::new("writ.toml", text, &overrides);
        let mut root = document.root();
        assert_eq!(root.text("tenant", "\"acme\""), None);
        assert_eq!(root.text("name", "\"n1\""), None);
        let mut bus = root.table("bus");
        assert_eq!(bus.text("url", "\"nats://127.0.0.1:4222\"").as_deref(), Some("nats://x"));
        assert_eq!(bus.optional_integer("retries", 0..=10), None);
        bus.finish(&["url", "retries"]);
        root.finish(&["tenant", "name", "bus"]);
        let findings = document.into_findings();
        let messages: Vec<&str> = findings.0.iter().map(|f| f.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "`name` is missing",
                "`tenant` must be a text, not integer",
                "unknown key `colour`",
                "`bus.retries` must be from 0 to 10",
                "unknown key `bus.urll`",
            ]
        );
        assert_eq!(findings.0[4].help.as_deref(), Some("did you mean `url`?"));
        assert_eq!((findings.0[3].line, findings.0[3].column), (5, 11));
    }

    #[test]
    fn overrides_go_before_the_file() {
        let overrides = BTreeMap::from([("bus.url".to_owned(), "nats://y".to_owned())]);
        let document = Document::new("writ.toml", "[bus]\nurl = \"nats://x\"\n", &overrides);
        let mut root = document.root();
        assert_eq!(root.table("bus").text("url", "").as_deref(), Some("nats://y"));
        root.finish(&[]);
        assert!(!document.into_findings().has_errors());
    }

    #[test]
    fn overrides_that_set_nothing_or_something_wrong_are_named() {
        let set = |path: &str, value: &str| (path.to_owned(), value.to_owned());
        let overrides = BTreeMap::from([
            set("bus.urls", "nats://a, nats://b"),
            set("bus.retrys", "1"),
            set("bus.retries", "many"),
            set("buss.urls", "x"),
            set("other.thing", "x"),
            set("tool.file", "x"),
        ]);
        let document = Document::new("writ.toml", "[[tool]]\nfile = \"y\"\n", &overrides);
        let mut root = document.root();
        let mut bus = root.table("bus");
        assert_eq!(bus.list::<String>("urls"), ["nats://a", "nats://b"]);
        assert_eq!(bus.optional_integer("retries", 0..=9), None);
        bus.finish(&["urls", "retries"]);
        for mut tool in root.tables("tool") {
            assert_eq!(tool.text("file", "").as_deref(), Some("y"));
            tool.finish(&["file"]);
        }
        root.finish(&["bus", "tool"]);
        let findings = document.into_findings();
        let mut messages: Vec<&str> = findings.0.iter().map(|finding| finding.message.as_str()).collect();
        messages.sort_unstable();
        assert_eq!(
            messages,
            [
                "WRIT_BUSS__URLS sets nothing",
                "WRIT_BUS__RETRYS sets nothing",
                "WRIT_TOOL__FILE sets nothing: `tool` is a list of tables",
                "`bus.retries` must be from 0 to 9 (set by WRIT_BUS__RETRIES)",
            ]
        );
    }

    #[test]
    fn syntax_errors_are_findings_too() {
        let overrides = BTreeMap::new();
        let document = Document::new("writ.toml", "a = \nb = 'x\n", &overrides);
        let _ = document.root();
        assert!(document.into_findings().0.len() >= 2);
    }
}
