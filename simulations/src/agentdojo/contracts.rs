//! Contracts, inventory and directories of a suite, as a policy bundle.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::Result;
use toml::{Table, Value as Toml};
use writ_common::{json::Value, policy::PolicyBundle};

use super::{
    directories::{self, Listed},
    entities::{self, Entity, Sort, id_of, sort, words},
    trace::{Effect, Suite, Tool},
};

/// The agent that is given every task.
pub const ORCHESTRATOR: &str = "orchestrator";
/// The role of the user, as the development set-up's identity provider has it.
pub const ROLE: &str = "analyst";
/// The user whose tasks these are.
pub const USER: &str = "alice";
/// Who approves, one of the approvers of a development set-up.
pub const APPROVER: &str = "bob";
/// What they approve as.
pub const OWNER: &str = "owner";
/// Decimals of a number argument.
pub const SCALE: u8 = 6;
/// Deepest structure of an argument or result that is looked into.
const DEPTH_MAX: usize = 6;

/// The resource of a tool's group.
pub fn resource(group: &str) -> String {
    format!("tool.{}", id_of(group))
}

/// The agent that has the tools of a group.
pub fn agent(group: &str) -> String {
    let id = id_of(group);
    if id == ORCHESTRATOR { format!("{id}_") } else { id }
}

/// The kind of a user's task. Each is of a kind of its own, so that rules can grant what this one needs.
pub fn kind(task: &str) -> String {
    id_of(task)
}

/// Every right that calls of the suite's tools and agents need.
pub fn rights(suite: &Suite) -> BTreeSet<String> {
    let tools = suite.tools.iter().map(|(name, tool)| format!("{}:{}", resource(&tool.group), id_of(name)));
    let agents = suite.tools.values().map(|tool| format!("agent.{}:invoke", agent(&tool.group)));
    tools.chain(agents).collect()
}

/// The files that describe a suite; rules are not among them.
pub fn files(suite: &Suite) -> Result<PolicyBundle> {
    let entities = entities::of(suite)?;
    let directories = directories::of(suite, &entities)?;
    let shapes = Shapes::of(suite);
    let mut groups: BTreeMap<&str, Vec<Toml>> = BTreeMap::new();
    for (name, tool) in &suite.tools {
        let fields = fields(name, suite, &shapes, &entities, &directories);
        let action = action(name, tool, &shapes, fields);
        groups.entry(tool.group.as_str()).or_default().push(Toml::Table(action));
    }
    let mut files = BTreeMap::new();
    for (group, actions) in &groups {
        let contract =
            table([("resource", resource(group).into()), ("action", Toml::Array(actions.clone()))]);
        files.insert(format!("tools/{}.toml", id_of(group)), toml::to_string(&contract)?);
    }
    let agents: Vec<String> = groups.keys().map(|group| agent(group)).collect();
    files.insert("agents.toml".to_owned(), toml::to_string(&inventory(&agents))?);
    let everything: Vec<Toml> = rights(suite).into_iter().map(Toml::from).collect();
    let tasks = suite.tasks.keys().map(|task| {
        Toml::Table(table([
            ("kind", kind(task).into()),
            ("agents", Toml::Array(vec![ORCHESTRATOR.into()])),
            ("rights", Toml::Array(everything.clone())),
        ]))
    });
    let role = table([("name", ROLE.into()), ("task", Toml::Array(tasks.collect()))]);
    files.insert("roles.toml".to_owned(), toml::to_string(&named("role", vec![role]))?);
    let approver = table([
        ("name", APPROVER.into()),
        ("roles", Toml::Array(vec![OWNER.into()])),
        ("users", Toml::Array(vec![APPROVER.into()])),
    ]);
    files.insert("approvers.toml".to_owned(), toml::to_string(&named("approver", vec![approver]))?);
    let listed: Vec<Table> = directories.iter().map(directory).collect();
    files.insert("directories.toml".to_owned(), toml::to_string(&named("directory", listed))?);
    files.insert("suite.datalog".to_owned(), facts(suite));
    Ok(PolicyBundle(files))
}

/// What rules may want to know of tools and has no predicate of its own, as facts.
fn facts(suite: &Suite) -> String {
    let mut lines = BTreeSet::new();
    for (name, tool) in &suite.tools {
        let (resource, action) = (resource(&tool.group), id_of(name));
        lines.insert(format!("tool(\"{resource}\", \"{action}\");"));
        if tool.destructive {
            lines.insert(format!("destroys(\"{resource}\", \"{action}\");"));
        }
        if tool.sinks.is_empty() {
            lines.insert(format!("names_nobody(\"{resource}\", \"{action}\");"));
        }
        if tool.effect == Effect::Read {
            lines.insert(format!("only_reads(\"{resource}\", \"{action}\");"));
        }
        for word in words(name).into_iter().chain(words(&tool.group)) {
            lines.insert(format!("tool_word(\"{resource}\", \"{action}\", \"{word}\");"));
        }
    }
    // The words of a task's prompt are facts where it is started.
    for (name, task) in &suite.tasks {
        let said = task.prompt.split(|c: char| !c.is_alphanumeric());
        let said: BTreeSet<String> = said
            .flat_map(|word| [word.to_lowercase(), words(word).join("")])
            .filter(|word| word.is_ascii())
            .collect();
        lines.extend(said.iter().map(|word| format!("word(\"{word}\") <- task_kind(\"{}\");", kind(name))));
    }
    // The operator of the set-up enrols the agents.
    lines.insert("allow if request(\"admin\"), operator($name);".to_owned());
    // Every predicate is there in every suite, so that rules may speak of it.
    for none in
        ["destroys(\"\", \"\");", "names_nobody(\"\", \"\");", "only_reads(\"\", \"\");", "word(\"\");"]
    {
        lines.insert(none.to_owned());
    }
    lines.into_iter().collect::<Vec<_>>().join("\n") + "\n"
}

fn inventory(agents: &[String]) -> Table {
    let quota = || Toml::Table(table([("per_second", 1_000_000.into()), ("burst", 1_000_000.into())]));
    let entry = |name: &str, to: Vec<Toml>| {
        table([
            ("name", name.into()),
            ("delegates_to", Toml::Array(to)),
            ("clearance", Toml::Array(vec!["top".into()])),
            ("quota", quota()),
        ])
    };
    let to = agents.iter().map(|agent| Toml::from(agent.as_str())).collect();
    let first = entry(ORCHESTRATOR, to);
    named(
        "agent",
        std::iter::once(first).chain(agents.iter().map(|agent| entry(agent, Vec::new()))).collect(),
    )
}

fn directory(listed: &Listed) -> Table {
    let list = |texts: &[String]| Toml::Array(texts.iter().map(|text| text.as_str().into()).collect());
    table([
        ("name", listed.name.as_str().into()),
        ("entity", listed.entity.as_str().into()),
        ("values", list(&listed.values)),
        ("domains", list(&listed.domains)),
        ("outsiders_write", listed.outsiders_write.into()),
    ])
}

fn action(name: &str, tool: &Tool, shapes: &Shapes, fields: Vec<Table>) -> Table {
    let effect = match tool.effect {
        Effect::Read => "read",
        Effect::Internal => "internal",
        Effect::Shared => "shared",
        Effect::ReadEgress | Effect::Egress => "egress",
    };
    let tags = tool.tag.iter().map(|tag| Toml::from(id_of(tag))).collect();
    let integrity = if tool.outsiders_write { "untrusted" } else { "trusted" };
    let returns = table([("tags", Toml::Array(tags)), ("integrity", integrity.into())]);
    let properties = tool.params.iter().map(|(name, schema)| (name.clone(), schema_of(schema))).collect();
    let schema = table([
        ("type", "object".into()),
        ("properties", Toml::Table(properties)),
        ("required", Toml::Array(tool.required.iter().map(|name| name.as_str().into()).collect())),
    ]);
    let scales =
        tool.params.iter().filter(|(_, schema)| !has_type(Some(schema), &["string", "array", "object"]));
    let scales = scales.map(|(name, _)| (format!("/{name}"), Toml::from(i64::from(SCALE)))).collect();
    table([
        ("name", id_of(name).into()),
        ("effect", effect.into()),
        ("returns", Toml::Table(returns)),
        ("guard", Toml::Array(guards(name, tool, shapes).into_iter().map(Toml::Table).collect())),
        ("field", Toml::Array(fields.into_iter().map(Toml::Table).collect())),
        ("scales", Toml::Table(scales)),
        ("schema", Toml::Table(schema)),
    ])
}

/// Where the values of guarded arguments stand: in the argument itself, in a list, or in the members of listed
/// objects that are called as what they name.
fn guards(name: &str, tool: &Tool, shapes: &Shapes) -> Vec<Table> {
    let mut guards = Vec::new();
    // Reading affects nobody.
    let sinks = tool.sinks.iter().filter(|_| tool.effect != Effect::Read);
    for (argument, kind) in sinks {
        let kind = id_of(kind);
        let mut sources = vec!["instruction", "directory", "result"];
        // How much is settled once it is granted; who is not.
        if sort(&kind) == Sort::Quantity {
            sources.push("grant");
        }
        let seen = shapes.arguments.get(name).into_iter().flatten();
        let below = format!("/{argument}/");
        let here = format!("/{argument}");
        let nested: BTreeSet<&str> =
            seen.filter(|(path, _)| path.starts_with(&below)).map(|(path, _)| path.as_str()).collect();
        let called: Vec<&str> = nested
            .iter()
            .filter(|path| path.rsplit('/').next().is_some_and(|key| words(key) == words(&kind)))
            .copied()
            .collect();
        let mut paths: BTreeSet<String> = match called.as_slice() {
            [] => nested.iter().map(|path| (*path).to_owned()).collect(),
            called => called.iter().map(|path| (*path).to_owned()).collect(),
        };
        if paths.is_empty()
            || has_type(tool.params.get(argument), &["string", "number", "integer", "boolean"])
        {
            paths.insert(here);
        }
        // Elements of a list that are no texts have no source at all.
        if has_type(tool.params.get(argument), &["array"]) {
            paths.remove(&format!("/{argument}"));
            if called.is_empty() {
                paths.insert(format!("/{argument}/*"));
            }
        }
        guards.extend(paths.iter().map(|path| {
            table([
                ("argument", path.as_str().into()),
                ("entity", kind.as_str().into()),
                ("sources", Toml::Array(sources.iter().copied().map(Toml::from).collect())),
            ])
        }));
    }
    guards
}

/// Members that hold the name of a record.
const NAMES: [&str; 6] = ["title", "name", "filename", "file_name", "subject", "label"];

/// Fields of results that name something: of trusted results whatever has the type, of others the ids of records that
/// have a name.
fn fields(
    name: &str,
    suite: &Suite,
    shapes: &Shapes,
    entities: &[Entity],
    directories: &[Listed],
) -> Vec<Table> {
    let mut found = Vec::new();
    let (Some(leaves), Some(tool)) = (shapes.results.get(name), suite.tools.get(name)) else { return found };
    for (path, values) in leaves {
        let key = path.rsplit('/').find(|token| *token != "*").unwrap_or_default();
        let record = path.rsplit_once('/').map_or("", |(record, _)| record);
        for entity in entities {
            let holds = match entity.sort() {
                Sort::Shaped => values.iter().any(|value| entity.fits(value)),
                Sort::Id => is_id(key, entity) && is_about(name, tool, entity, suite),
                Sort::Quantity => !key.is_empty() && entity.is_called(key),
                Sort::Word if key.is_empty() => names_results(name, entity, entities),
                Sort::Word => {
                    let by_tool = NAMES.contains(&key) && names_results(name, entity, entities);
                    by_tool || entity.is_called(key)
                }
            };
            if !holds {
                continue;
            }
            let names: Vec<&str> =
                NAMES.into_iter().filter(|name| leaves.contains_key(&format!("{record}/{name}"))).collect();
            let collected =
                directories.iter().filter(|listed| listed.outsiders_write && listed.entity == entity.kind);
            let collected: BTreeSet<&str> =
                collected.flat_map(|listed| &listed.values).map(String::as_str).collect();
            // What a lookup in a list that outsiders fill finds is no better than the list.
            let filled =
                values.iter().any(|value| value.as_str().is_some_and(|text| collected.contains(text)));
            let trusted = !tool.outsiders_write && !filled;
            if !trusted && (entity.sort() != Sort::Id || names.is_empty()) {
                continue;
            }
            found.push(table([
                ("path", path.as_str().into()),
                ("entity", entity.kind.as_str().into()),
                ("integrity", if trusted { "trusted" } else { "untrusted" }.into()),
                ("named_by", Toml::Array(names.into_iter().map(Toml::from).collect())),
            ]));
        }
    }
    found
}

/// Whether a key is that of an id of this type: `id`, or the type's own name.
fn is_id(key: &str, entity: &Entity) -> bool {
    words(key) == ["id"] || words(key) == words(entity.kind.as_str())
}

/// Whether a tool returns what an id of this type can be of: tools that take one are in its group, or speak of the same
/// things after the verb.
fn is_about(name: &str, tool: &Tool, entity: &Entity, suite: &Suite) -> bool {
    let things = |name: &str| words(name).into_iter().skip(1).collect::<BTreeSet<String>>();
    let kind = |named: &String| id_of(named) == entity.kind.as_str();
    let mut taking = suite.tools.iter().filter(|(_, other)| other.sinks.values().any(kind));
    taking.any(|(other, of)| of.group == tool.group || !things(other).is_disjoint(&things(name)))
}

/// Whether the first thing that a tool's name speaks of is of this type: `get_users_in_channel` returns users.
fn names_results(tool: &str, entity: &Entity, entities: &[Entity]) -> bool {
    let first = words(tool).into_iter().find(|word| entities.iter().any(|entity| entity.is_meant_by(word)));
    first.is_some_and(|word| entity.is_meant_by(&word))
}

/// What arguments and results look like in the file: patterns of leaves, with the values seen there.
struct Shapes {
    arguments: BTreeMap<String, BTreeMap<String, BTreeSet<Value>>>,
    results: BTreeMap<String, BTreeMap<String, BTreeSet<Value>>>,
}

impl Shapes {
    fn of(suite: &Suite) -> Self {
        let mut shapes = Self { arguments: BTreeMap::new(), results: BTreeMap::new() };
        let mut seen = BTreeSet::new();
        for call in suite.calls() {
            let arguments = shapes.arguments.entry(call.tool.clone()).or_default();
            leaves(&call.arguments, String::new(), arguments);
            if seen.insert((call.tool.as_str(), Arc::as_ptr(&call.result))) {
                let found = shapes.results.entry(call.tool.clone()).or_default();
                leaves(&as_list(&call.result), String::new(), found);
            }
        }
        shapes
    }
}

/// A result as a structure: of a text its lines, each without a heading before it or a mark of a list.
pub fn as_list(result: &Value) -> Value {
    let Value::String(text) = result else { return result.clone() };
    let lines = text.lines().map(|line| {
        let line = line.rsplit_once(": ").map_or(line, |(_, rest)| rest);
        line.trim().trim_start_matches(['-', '*']).trim()
    });
    Value::Array(lines.filter(|line| !line.is_empty()).map(Value::from).collect())
}

fn leaves(value: &Value, path: String, found: &mut BTreeMap<String, BTreeSet<Value>>) {
    if path.matches('/').count() > DEPTH_MAX {
        return;
    }
    match value {
        Value::Null => {}
        Value::Array(items) => items.iter().for_each(|item| leaves(item, format!("{path}/*"), found)),
        Value::Object(members) => members.iter().for_each(|(key, member)| {
            leaves(member, format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), found);
        }),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            found.entry(path).or_default().insert(value.clone());
        }
    }
}

fn has_type(schema: Option<&Value>, wanted: &[&str]) -> bool {
    let Some(schema) = schema else { return false };
    let is = |schema: &Value| match schema.get("type") {
        Some(Value::String(kind)) => wanted.contains(&kind.as_str()),
        Some(Value::Array(kinds)) => {
            kinds.iter().filter_map(Value::as_str).any(|kind| wanted.contains(&kind))
        }
        _ => false,
    };
    let alternatives = ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(key));
    let mut alternatives =
        alternatives.filter_map(|list| if let Value::Array(list) = list { Some(list) } else { None });
    is(schema) || alternatives.any(|list| list.iter().any(is))
}

/// A schema as TOML, which has no null; what only explains is left out.
fn schema_of(schema: &Value) -> Toml {
    match schema {
        Value::Object(members) => {
            let explains = |key: &str| matches!(key, "default" | "description" | "title" | "examples");
            // A file has no definitions to refer to: what a reference stood for is not checked.
            let kept = members
                .iter()
                .filter(|(key, value)| !explains(key) && *key != "$ref" && **value != Value::Null);
            Toml::Table(kept.map(|(key, value)| (key.clone(), schema_of(value))).collect())
        }
        Value::Array(items) => {
            Toml::Array(items.iter().filter(|item| **item != Value::Null).map(schema_of).collect())
        }
        Value::String(text) => Toml::String(text.clone()),
        Value::Bool(value) => Toml::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Toml::Integer(integer),
            None => number.as_str().parse().map_or(Toml::Integer(0), Toml::Float),
        },
        Value::Null => Toml::Boolean(true),
    }
}

fn table<const N: usize>(entries: [(&str, Toml); N]) -> Table {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn named(name: &str, tables: Vec<Table>) -> Table {
    table([(name, Toml::Array(tables.into_iter().map(Toml::Table).collect()))])
}
