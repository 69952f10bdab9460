//! The schema a server gives for a tool's arguments, as a contract can hold it.
//!
//! TOML has no null, descriptions may hide things, and numbers need a scale. What changes the meaning is said.

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{Array, InlineTable, Item, Table};
use writ_common::{
    json::{Number, Value},
    visible::{deceptive, visible},
};

/// Decimals after the point that are allowed where a schema says `number` and no more.
const SCALE: i64 = 6;
/// Most places of one schema that get a scale.
const SCALES_MAX: usize = 256;
/// How many references of a schema are followed on the way to a number.
const REFERENCES_MAX: usize = 8;

/// Keys of a schema whose values are data, and may hold anything.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];
/// Keys of a schema whose values are members by the user's own names.
const NAMED: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// A schema for a contract.
#[derive(Debug, Default)]
pub(crate) struct ContractSchema {
    pub(crate) schema: Members,
    /// Where numbers may stand, as pointers with wildcards.
    pub(crate) scales: BTreeSet<String>,
    /// What is different from the server's, or should be looked at.
    pub(crate) remarks: Vec<String>,
}

/// An object.
pub(crate) type Members = BTreeMap<String, Value>;

/// Makes a contract's schema of a tool's `inputSchema`.
pub(crate) fn for_contract(input: Option<&Value>) -> ContractSchema {
    let mut made = ContractSchema::default();
    let Some(Value::Object(members)) = input else {
        made.schema.insert("type".to_owned(), "object".into());
        made.remarks.push("it has no schema: it takes no arguments as proposed".to_owned());
        return made;
    };
    made.scales = scales(&Value::Object(members.clone()));
    let Value::Object(mut schema) = tidy(&Value::Object(members.clone()), "", &mut made.remarks) else {
        return made;
    };
    // The draft is fixed; a URL here would only be something to resolve.
    schema.remove("$schema");
    schema.remove("$id");
    schema.entry("type".to_owned()).or_insert_with(|| "object".into());
    made.schema = schema;
    made
}

/// The schema without nulls, and with what hides made visible in what is shown.
fn tidy(schema: &Value, at: &str, remarks: &mut Vec<String>) -> Value {
    let Value::Object(members) = schema else { return without_null(schema, at, remarks) };
    let mut tidied = BTreeMap::new();
    for (key, member) in members {
        let place = format!("{at}/{key}");
        let member = match (key.as_str(), member) {
            ("const", Value::Null) => {
                tidied.insert("type".to_owned(), "null".into());
                continue;
            }
            ("default", Value::Null) => continue,
            ("description" | "title" | "$comment", Value::String(text)) => {
                remarks.extend(
                    deceptive(&plain_lines(text)).into_iter().map(|what| format!("`{place}` {what}")),
                );
                Value::String(shown(text))
            }
            (key, member) if DATA.contains(&key) => without_null(member, &place, remarks),
            (key, Value::Object(named)) if NAMED.contains(&key) => {
                let each = named.iter().map(|(name, schema)| {
                    remarks.extend(
                        deceptive(name).into_iter().map(|what| format!("the name at `{place}` {what}")),
                    );
                    (name.clone(), tidy(schema, &format!("{place}/{name}"), remarks))
                });
                each.collect()
            }
            (_, Value::Array(items)) => {
                let kept = items.iter().filter(|item| **item != Value::Null);
                Value::Array(kept.map(|item| tidy(item, &place, remarks)).collect())
            }
            (_, Value::Null) => {
                remarks.push(format!("`{place}` is null and left out"));
                continue;
            }
            (_, member) => tidy(member, &place, remarks),
        };
        tidied.insert(key.clone(), member);
    }
    let is_object = tidied.get("type").and_then(Value::as_str) == Some("object");
    let is_said =
        ["properties", "additionalProperties", "patternProperties", "$ref", "unevaluatedProperties"];
    if is_object && !at.is_empty() && !is_said.iter().any(|key| tidied.contains_key(*key)) {
        remarks.push(format!(
            "`{at}` takes no members as proposed; add `additionalProperties = true` there if it has to"
        ));
    }
    Value::Object(tidied)
}

fn without_null(value: &Value, at: &str, remarks: &mut Vec<String>) -> Value {
    match value {
        Value::Array(items) => {
            let kept: Vec<Value> = items
                .iter()
                .filter(|item| **item != Value::Null)
                .map(|item| without_null(item, at, remarks))
                .collect();
            if kept.len() < items.len() {
                remarks.push(format!("`{at}` has a null that a contract cannot hold; it is left out"));
            }
            Value::Array(kept)
        }
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, member)| **member != Value::Null);
            kept.map(|(key, member)| (key.clone(), without_null(member, at, remarks))).collect()
        }
        Value::String(text) => {
            remarks.extend(deceptive(text).into_iter().map(|what| format!("a value at `{at}` {what}")));
            value.clone()
        }
        other => other.clone(),
    }
}

/// The text as people and models may see it: line feeds and tabs stay, everything else that hides is escaped.
pub(crate) fn shown(text: &str) -> String {
    let lines = text.lines().map(|line| line.split('\t').map(visible).collect::<Vec<_>>().join("\t"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The text without line feeds and tabs, which hide nothing.
pub(crate) fn plain_lines(text: &str) -> String {
    text.replace(['\n', '\r', '\t'], " ")
}

/// Where numbers with decimals may stand, by JSON Pointers with `*` for elements.
pub(crate) fn scales(schema: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    numbers(schema, schema, "", REFERENCES_MAX, &mut found);
    found
}

fn numbers(root: &Value, schema: &Value, at: &str, references: usize, found: &mut BTreeSet<String>) {
    if found.len() >= SCALES_MAX {
        return;
    }
    let Value::Object(members) = schema else {
        // `true` takes anything, numbers too.
        if *schema == Value::Bool(true) && !at.is_empty() {
            found.insert(at.to_owned());
        }
        return;
    };
    let names = |kind: &str| match members.get("type") {
        Some(Value::String(text)) => text == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one.as_str() == Some(kind)),
        _ => false,
    };
    let is_open = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const", "properties", "items"];
    let takes_anything = !is_open.iter().any(|key| members.contains_key(*key));
    if !at.is_empty() && (names("number") || takes_anything) {
        found.insert(at.to_owned());
    }
    if let Some(Value::Object(properties)) = members.get("properties") {
        for (name, property) in properties {
            let name = name.replace('~', "~0").replace('/', "~1");
            numbers(root, property, &format!("{at}/{name}"), references, found);
        }
    }
    for key in ["items", "additionalProperties", "unevaluatedProperties"] {
        // An absent or a bare `true` says nothing of numbers that a scale for every name could be about.
        if let Some(below @ Value::Object(_)) = members.get(key) {
            numbers(root, below, &format!("{at}/*"), references, found);
        }
    }
    if let Some(Value::Object(patterns)) = members.get("patternProperties") {
        for below in patterns.values() {
            numbers(root, below, &format!("{at}/*"), references, found);
        }
    }
    if let Some(Value::Array(items)) = members.get("prefixItems") {
        for (index, item) in items.iter().enumerate() {
            numbers(root, item, &format!("{at}/{index}"), references, found);
        }
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        if let Some(Value::Array(branches)) = members.get(key) {
            branches.iter().for_each(|branch| numbers(root, branch, at, references, found));
        }
    }
    if let Some(target) = members.get("$ref").and_then(Value::as_str)
        && let Some(left) = references.checked_sub(1)
        && let Some(referred) = referred(root, target)
    {
        numbers(root, referred, at, left, found);
    }
}

fn referred<'v>(root: &'v Value, target: &str) -> Option<&'v Value> {
    let mut tokens = target.strip_prefix('#')?.split('/').skip(1);
    tokens.try_fold(root, |value, token| value.get(&token.replace("~1", "/").replace("~0", "~")))
}

/// The table of scales, besides those that are there.
pub(crate) fn add_scales(table: &mut Table, scales: &BTreeSet<String>) {
    for pointer in scales.iter().filter(|pointer| writ_common::pointer::Pattern::parse(pointer).is_ok()) {
        if !table.contains_key(pointer) {
            table.insert(pointer, toml_edit::value(SCALE));
        }
    }
}

/// A schema as a table, its properties a line each.
pub(crate) fn to_table(schema: &BTreeMap<String, Value>) -> Table {
    let mut table = Table::new();
    for (key, member) in schema {
        match member {
            Value::Object(members) if NAMED.contains(&key.as_str()) && !members.is_empty() => {
                let mut named = Table::new();
                for (name, member) in members {
                    named.insert(name, Item::Value(to_toml(member)));
                }
                table.insert(key, Item::Table(named));
            }
            _ => drop(table.insert(key, Item::Value(to_toml(member)))),
        }
    }
    table
}

/// A value without nulls as TOML, with numbers digit for digit.
fn to_toml(value: &Value) -> toml_edit::Value {
    match value {
        Value::Null => "".into(),
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number_to_toml(number),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_toml).collect::<Array>().into(),
        Value::Object(members) => members
            .iter()
            .map(|(key, member)| (key.as_str(), to_toml(member)))
            .collect::<InlineTable>()
            .into(),
    }
}

fn number_to_toml(number: &Number) -> toml_edit::Value {
    // The text itself, where TOML reads it as it stands: it keeps the digits, which a float would not.
    number.as_str().parse().unwrap_or_else(|_| number.as_str().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(schema: &str) -> ContractSchema {
        for_contract(Some(&Value::parse(schema).unwrap()))
    }

    fn written(made: &ContractSchema) -> String {
        let mut document = toml_edit::DocumentMut::new();
        document.insert("schema", Item::Table(to_table(&made.schema)));
        document.to_string()
    }

    fn pointers(schema: &str) -> String {
        made(schema).scales.into_iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn numbers_get_a_scale_wherever_they_may_stand() {
        for (schema, expected) in [
            (
                r#"{"properties":{"a":{"type":"number"},"b":{"type":"integer"},"c/d":{"type":["number","null"]}}}"#,
                "/a /c~1d",
            ),
            (
                r#"{"properties":{"lines":{"type":"array","items":{"type":"object","properties":{"price":{"type":"number"}}}}}}"#,
                "/lines/*/price",
            ),
            (r#"{"properties":{"at":{"prefixItems":[{"type":"string"},{"type":"number"}]}}}"#, "/at /at/1"),
            (
                r##"{"$defs":{"m":{"type":"number"}},"properties":{"x":{"$ref":"#/$defs/m"},"y":{"anyOf":[{"type":"string"},{"$ref":"#/$defs/m"}]}}}"##,
                "/x /y",
            ),
            (r#"{"properties":{"m":{"type":"object","additionalProperties":{"type":"number"}}}}"#, "/m/*"),
            (r#"{"properties":{"any":{},"yes":true}}"#, "/any /yes"),
            (
                r##"{"$defs":{"t":{"properties":{"t":{"$ref":"#/$defs/t"},"n":{"type":"number"}}}},"properties":{"t":{"$ref":"#/$defs/t"}}}"##,
                "/t/n /t/t/n /t/t/t/n /t/t/t/t/n /t/t/t/t/t/n /t/t/t/t/t/t/n /t/t/t/t/t/t/t/n /t/t/t/t/t/t/t/t/n",
            ),
        ] {
            assert_eq!(pointers(schema), expected, "{schema}");
        }
    }

    #[test]
    fn what_toml_cannot_hold_is_left_out_and_said() {
        let made = made(
            r#"{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"a":{"default":null,"enum":["x",null],"type":["string","null"]},"b":{"const":null},"n":{"maximum":0.10000000000000000555,"type":"number"}},"type":"object"}"#,
        );
        let text = written(&made);
        assert!(text.contains(r#"a = { enum = ["x"], type = ["string", "null"] }"#), "{text}");
        assert!(text.contains(r#"b = { type = "null" }"#), "{text}");
        assert!(text.contains("maximum = 0.10000000000000000555"), "{text}");
        assert!(!text.contains("schema#"), "{text}");
        assert_eq!(
            made.remarks,
            ["`/properties/a/enum` has a null that a contract cannot hold; it is left out"]
        );
    }

    #[test]
    fn m03_what_hides_in_descriptions_is_shown() {
        let made = made(
            "{\"properties\":{\"q\":{\"description\":\"a\u{200b}b\\nc\",\"type\":\"string\"}},\"type\":\"object\"}",
        );
        let text = written(&made);
        assert!(text.contains("u{200b}") && !text.contains('\u{200b}'), "{text}");
        assert_eq!(made.remarks.len(), 1, "{:?}", made.remarks);
        assert!(made.remarks[0].contains("U+200B"), "{:?}", made.remarks);
    }
}
