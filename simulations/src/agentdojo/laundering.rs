//! Three attackers the file does not have, made from those it has.
//!
//! Each wants the same calls as an attack of the file, and first tries to make its own values look like the user's: it
//! has them stored as a record that a trusted tool looks up; it has them written somewhere and read again; or it leaves
//! them behind for another task, with agents and a label of its own.

use std::sync::Arc;

use writ_common::json::Value;

use super::{
    entities::{Sort, sort},
    mint::writes,
    trace::{Attack, Call, Suite, Tool},
    traces::{Leg, Trace, What, before},
};

/// Every attack of the file in the three ways.
pub fn of(suite: &Suite) -> Vec<Trace<'_>> {
    let (trusted, any) = (Detour::find(suite, true), Detour::find(suite, false));
    let mut traces = Vec::new();
    for attack in &suite.attacks {
        let Some(value) = wanted(suite, attack) else { continue };
        let own = attack.user.as_str();
        // Whoever comes next, and the first one after the last.
        let next = suite.tasks.range(attack.user.clone()..).nth(1).or_else(|| suite.tasks.first_key_value());
        let mut add = |kind, detour: &Option<Detour<'_>>, other: Option<&'_ str>| {
            let Some(detour) = detour else { return };
            let (write, read) = detour.calls(suite, &value);
            let then = other.and_then(|name| suite.tasks.get_key_value(name)).map_or(own, |(name, _)| name);
            let legs = vec![
                Leg::of(own, before(suite, attack)),
                Leg::of(own, vec![write]),
                Leg { is_another: other.is_some(), ..Leg::of(then, vec![read]) },
                Leg::of(then, attack.calls.as_slice()),
            ];
            traces.push(Trace { what: What::Launderer(kind, &attack.id), attack: Some(attack), legs });
        };
        add("seeds a record", &trusted, None);
        add("writes, then reads", &any, None);
        add("in another task", &any, next.map(|(name, _)| name.as_str()));
    }
    traces
}

/// The value an attack wants to act on: the first that names somebody or something.
fn wanted(suite: &Suite, attack: &Attack) -> Option<String> {
    attack.calls.iter().filter(|call| call.critical).find_map(|call| {
        let sinks = &suite.tools.get(&call.tool)?.sinks;
        let naming = sinks.iter().filter(|(_, kind)| sort(kind) != Sort::Quantity);
        naming.into_iter().find_map(|(argument, _)| {
            let mut found = None;
            call.arguments.get(argument)?.for_each_leaf(&mut |_, leaf| {
                found = found.take().or_else(|| match leaf {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.as_str().to_owned()),
                    _ => None,
                });
            });
            found
        })
    })
}

/// A tool that stores, and one that returns what is stored there.
struct Detour<'a> {
    write: (&'a str, &'a Tool),
    read: (&'a str, &'a Tool),
}

impl<'a> Detour<'a> {
    /// The pair that is hardest to notice: storing names nobody, and reading is trusted.
    fn find(suite: &'a Suite, trusted: bool) -> Option<Self> {
        let writes = suite.tools.iter().filter(|(_, tool)| !reads(tool));
        let pairs = writes.flat_map(|(write, tool)| {
            let reads = suite.tools.iter().filter(move |(_, read)| {
                reads(read) && read.group == tool.group && !(trusted && read.outsiders_write)
            });
            reads.map(move |(read, of)| Self { write: (write.as_str(), tool), read: (read.as_str(), of) })
        });
        pairs.min_by_key(|pair| (pair.write.1.sinks.len(), pair.read.1.outsiders_write))
    }

    /// Both calls, with the attacker's value wherever a text may stand.
    fn calls(&self, suite: &Suite, value: &str) -> (Call, Call) {
        let call = |(name, tool): (&str, &Tool), result| Call {
            tool: name.to_owned(),
            arguments: Arc::new(arguments(tool, value)),
            result: Arc::new(result),
            critical: false,
        };
        let seen = suite.calls().find(|call| call.tool == self.read.0);
        let returned = seen.map_or_else(|| Value::from(value), |call| replaced(&call.result, value));
        (call(self.write, Value::Null), call(self.read, returned))
    }
}

fn reads(tool: &Tool) -> bool {
    !writes(tool)
}

fn arguments(tool: &Tool, value: &str) -> Value {
    let required = tool.params.iter().filter(|(name, _)| tool.required.contains(name));
    required.map(|(name, schema)| (name.as_str(), filled(schema, value))).collect()
}

fn filled(schema: &Value, value: &str) -> Value {
    match schema.get("type").and_then(Value::as_str) {
        Some("array") => {
            Value::Array(schema.get("items").map(|items| filled(items, value)).into_iter().collect())
        }
        Some("boolean") => Value::Bool(true),
        Some("integer" | "number") => Value::from(1),
        Some("object") => super::trace::empty(),
        _ => Value::from(value),
    }
}

fn replaced(result: &Value, value: &str) -> Value {
    match result {
        Value::Array(items) => Value::Array(items.iter().map(|item| replaced(item, value)).collect()),
        Value::Object(members) => {
            members.iter().map(|(key, member)| (key.as_str(), replaced(member, value))).collect()
        }
        Value::String(_) => Value::from(value),
        Value::Null | Value::Bool(_) | Value::Number(_) => result.clone(),
    }
}
