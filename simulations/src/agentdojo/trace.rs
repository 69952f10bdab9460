//! Reading a trace file: suites of tools, tasks and attacks, as `data/README.md` beside the file describes it.
//!
//! Nothing of a suite is known here but its form.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use flate2::read::GzDecoder;
use writ_common::json::Value;

/// Largest file, in bytes after decompression.
const BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Every suite of a file.
pub type Suites = BTreeMap<String, Suite>;

/// Tools, and what is done with them.
pub struct Suite {
    /// The tools by name.
    pub tools: BTreeMap<String, Tool>,
    /// What operators know: entries of texts or lists.
    pub directories: BTreeMap<String, Value>,
    /// What users ask for.
    pub tasks: BTreeMap<String, Arc<UserTask>>,
    /// What goes wrong.
    pub attacks: Vec<Attack>,
    vectors: BTreeMap<String, String>,
    goals: BTreeMap<String, String>,
    payload: String,
    marker: (String, String),
}

/// A tool and the labels the file gives it.
pub struct Tool {
    /// Its parameters: name to JSON Schema.
    pub params: BTreeMap<String, Value>,
    /// Those that must be there.
    pub required: Vec<String>,
    /// What it amounts to.
    pub effect: Effect,
    /// The tools one agent has.
    pub group: String,
    /// Whether it destroys.
    pub destructive: bool,
    /// Arguments that say who or what is affected, and the entity type of each.
    pub sinks: BTreeMap<String, String>,
    /// Whether outsiders can write into what it returns.
    pub outsiders_write: bool,
    /// The tag of what it returns; none for what is public.
    pub tag: Option<String>,
}

/// What a tool amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It reads.
    Read,
    /// It reads, and an argument leaves.
    ReadEgress,
    /// It changes what is the user's own.
    Internal,
    /// It changes what others see.
    Shared,
    /// Something leaves.
    Egress,
}

/// A task and the calls that solve it.
pub struct UserTask {
    /// What the user says.
    pub prompt: String,
    /// What is called.
    pub calls: Vec<Call>,
}

/// One call as it was made, and what it returned.
#[derive(Clone)]
pub struct Call {
    /// The tool.
    pub tool: String,
    /// The arguments; `null` is absent.
    pub arguments: Arc<Value>,
    /// The result, with marks where an outsider's text stands.
    pub result: Arc<Value>,
    /// Whether the attack needs it.
    pub critical: bool,
}

/// A task that goes wrong at some point.
pub struct Attack {
    /// Names it: task, injection and the places it was put.
    pub id: String,
    /// The task.
    pub user: String,
    /// What was injected, by its id.
    pub injection: String,
    /// How many calls of the task come first.
    pub prefix: usize,
    /// Where it was put.
    pub vectors: BTreeSet<String>,
    /// What is called then.
    pub calls: Vec<Call>,
}

/// Reads a file, gzipped or not.
///
/// # Errors
/// What is missing or not of the form, and where.
pub fn read(path: &Path) -> Result<Suites> {
    let open = || File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let mut text = String::new();
    let mut start = [0; 2];
    let is_gzip = open()?.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b];
    let read = match is_gzip {
        true => GzDecoder::new(open()?).take(BYTES_MAX).read_to_string(&mut text),
        false => open()?.take(BYTES_MAX).read_to_string(&mut text),
    };
    read.with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no trace file", path.display()))
}

/// Reads the text of a file.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<Suites> {
    let file = Value::parse(text)?;
    let blobs = blobs(&file)?;
    let meta = file.get("meta");
    let word = |name: &str, otherwise: &str| {
        meta.and_then(|meta| meta.get(name)).and_then(Value::as_str).unwrap_or(otherwise).to_owned()
    };
    let (payload, marker) = (word("payload_template", "{goal}"), word("marker", "⟦inj:<vector>⟧"));
    let marker = marker.split_once("<vector>").map(|(a, b)| (a.to_owned(), b.to_owned()));
    let marker = marker.context("`meta.marker` has no `<vector>`")?;
    let mut suites = BTreeMap::new();
    for (name, suite) in members(&file, "suites")? {
        let reader = Reader { blobs: &blobs };
        let read = reader.suite(suite, &payload, &marker).with_context(|| format!("suite `{name}`"))?;
        suites.insert(name.clone(), read);
    }
    Ok(suites)
}

impl Suite {
    /// A result as the agent saw it, with the outsiders' texts where their marks are.
    pub fn seen(&self, result: &Value, attack: Option<&Attack>) -> Value {
        match result {
            Value::String(text) => Value::String(self.filled(text, attack)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.seen(item, attack)).collect()),
            Value::Object(fields) => fields
                .iter()
                .map(|(key, value)| (self.filled(key, attack), self.seen(value, attack)))
                .collect(),
            other => other.clone(),
        }
    }

    fn filled(&self, text: &str, attack: Option<&Attack>) -> String {
        let (before, after) = (&self.marker.0, &self.marker.1);
        let mut pieces = text.split(before.as_str());
        let mut filled = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let Some((vector, rest)) = piece.split_once(after.as_str()) else {
                filled.push_str(before);
                filled.push_str(piece);
                continue;
            };
            let attacked = attack.filter(|attack| attack.vectors.contains(vector));
            match attacked.and_then(|attack| self.goals.get(&attack.injection)) {
                Some(goal) => filled.push_str(&self.payload.replace("{goal}", goal)),
                None => filled.push_str(self.vectors.get(vector).map_or("", String::as_str)),
            }
            filled.push_str(rest);
        }
        filled
    }

    /// Every call of the file, of tasks and of attacks.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        let of_tasks = self.tasks.values().flat_map(|task| &task.calls);
        of_tasks.chain(self.attacks.iter().flat_map(|attack| &attack.calls))
    }
}

struct Reader<'a> {
    blobs: &'a BTreeMap<String, Arc<Value>>,
}

impl Reader<'_> {
    fn suite(&self, suite: &Value, payload: &str, marker: &(String, String)) -> Result<Suite> {
        let mut tools = BTreeMap::new();
        for (name, tool) in members(suite, "tools")? {
            tools.insert(name.clone(), read_tool(tool).with_context(|| format!("tool `{name}`"))?);
        }
        let mut tasks = BTreeMap::new();
        for (name, task) in members(suite, "user_tasks")? {
            let calls = self.calls(list(task, "calls")?).with_context(|| format!("task `{name}`"))?;
            tasks
                .insert(name.clone(), Arc::new(UserTask { prompt: text(task, "prompt")?.to_owned(), calls }));
        }
        let mut attacks = Vec::new();
        let mut ids = BTreeSet::new();
        for attack in list(suite, "attacks")? {
            let mut attack = self.attack(attack)?;
            if !tasks.contains_key(&attack.user) {
                bail!("attack `{}`: there is no task `{}`", attack.id, attack.user);
            }
            let (id, mut count) = (attack.id.clone(), 1);
            while !ids.insert(attack.id.clone()) {
                count += 1;
                attack.id = format!("{id}#{count}");
            }
            attacks.push(attack);
        }
        if let Some(call) = tasks
            .values()
            .flat_map(|task| &task.calls)
            .chain(attacks.iter().flat_map(|a| &a.calls))
            .find(|call| !tools.contains_key(&call.tool))
        {
            bail!("there is no tool `{}`", call.tool);
        }
        loosen(&mut tools, &tasks);
        let texts = |name: &str, field: &str| -> Result<BTreeMap<String, String>> {
            let all = members(suite, name)?.iter();
            Ok(all
                .map(|(id, one)| {
                    (id.clone(), one.get(field).and_then(Value::as_str).unwrap_or_default().to_owned())
                })
                .collect())
        };
        Ok(Suite {
            tools,
            directories: members(suite, "directories").cloned().unwrap_or_default(),
            tasks,
            attacks,
            vectors: texts("vectors", "default")?,
            goals: texts("injection_tasks", "goal")?,
            payload: payload.to_owned(),
            marker: marker.clone(),
        })
    }

    fn attack(&self, attack: &Value) -> Result<Attack> {
        let (user, injection) = (text(attack, "user")?.to_owned(), text(attack, "inj")?.to_owned());
        let vectors = texts(list(attack, "vectors")?);
        let id = [user.as_str(), injection.as_str()].into_iter().chain(vectors.iter().map(String::as_str));
        let id = id.collect::<Vec<_>>().join("/");
        let prefix = attack.get("prefix").and_then(number).context("an attack has no `prefix`")?;
        let calls = match attack.get("seq") {
            Some(Value::String(key)) => self.blob(key)?,
            Some(inline) => Arc::new(inline.clone()),
            None => bail!("attack `{id}` has no `seq`"),
        };
        let Value::Array(calls) = calls.as_ref() else { bail!("`seq` of attack `{id}` is no list") };
        let calls = self.calls(calls).with_context(|| format!("attack `{id}`"))?;
        Ok(Attack { id, user, injection, prefix, vectors: vectors.into_iter().collect(), calls })
    }

    fn calls(&self, calls: &[Value]) -> Result<Vec<Call>> {
        let call = |call: &Value| {
            let arguments = match call.get("args") {
                Some(Value::String(key)) => self.blob(key)?,
                Some(inline) => Arc::new(inline.clone()),
                None => Arc::new(empty()),
            };
            let result = match call.get("ret") {
                // A text that is no key is the result itself.
                Some(Value::String(key)) if self.blobs.contains_key(key) => self.blob(key)?,
                Some(inline) => Arc::new(inline.clone()),
                None => Arc::new(Value::Null),
            };
            let critical = call.get("critical") == Some(&Value::Bool(true));
            Ok(Call {
                tool: text(call, "tool")?.to_owned(),
                arguments: Arc::new(present(&arguments)),
                result,
                critical,
            })
        };
        calls.iter().map(call).collect()
    }

    fn blob(&self, key: &str) -> Result<Arc<Value>> {
        self.blobs.get(key).cloned().with_context(|| format!("there is no blob `{key}`"))
    }
}

fn read_tool(tool: &Value) -> Result<Tool> {
    let labels = tool.get("labels").context("it has no `labels`")?;
    let effect = match text(labels, "effect")? {
        "read" => Effect::Read,
        "read_egress" => Effect::ReadEgress,
        "internal" => Effect::Internal,
        "shared" => Effect::Shared,
        "egress" => Effect::Egress,
        other => bail!("`{other}` is no effect"),
    };
    let sinks = members(labels, "sink_args")?.iter();
    let sinks =
        sinks.filter_map(|(name, entity)| Some((name.clone(), entity.as_str()?.to_owned()))).collect();
    let params = tool.get("params").context("it has no `params`")?;
    // Some write the whole schema, some only its properties.
    let is_schema = params.get("type").and_then(Value::as_str) == Some("object");
    let (params, required) = match params.get("properties").filter(|_| is_schema) {
        Some(properties) => (properties, params.get("required").or_else(|| tool.get("required"))),
        None => (params, tool.get("required")),
    };
    let Value::Object(params) = params else { bail!("`params` is no object") };
    let required = match required {
        Some(Value::Array(names)) => texts(names),
        _ => Vec::new(),
    };
    Ok(Tool {
        params: params.clone(),
        required,
        effect,
        group: text(labels, "group")?.to_owned(),
        destructive: labels.get("destructive") == Some(&Value::Bool(true)),
        sinks,
        outsiders_write: text(labels, "ret_i")? != "T",
        tag: Some(text(labels, "ret_c")?.to_owned()).filter(|tag| tag != "public"),
    })
}

/// Where a file's own ground truth does not keep to a tool's schema, the schema is not what the tool goes by.
fn loosen(tools: &mut BTreeMap<String, Tool>, tasks: &BTreeMap<String, Arc<UserTask>>) {
    for call in tasks.values().flat_map(|task| &task.calls) {
        let (Some(tool), Value::Object(arguments)) = (tools.get_mut(&call.tool), call.arguments.as_ref())
        else {
            continue;
        };
        tool.required.retain(|name| arguments.contains_key(name));
        for (name, value) in arguments {
            if !tool.params.get(name).is_some_and(|schema| admits(schema, value)) {
                tool.params.insert(name.clone(), empty());
            }
        }
    }
}

/// Whether a schema's types, at the top, admit a value.
fn admits(schema: &Value, value: &Value) -> bool {
    let fits = |kind: &str| match value {
        Value::Null => kind == "null",
        Value::Bool(_) => kind == "boolean",
        Value::Number(number) => kind == "number" || (kind == "integer" && number.as_i64().is_some()),
        Value::String(_) => kind == "string",
        Value::Array(_) => kind == "array",
        Value::Object(_) => kind == "object",
    };
    match (schema.get("anyOf").or_else(|| schema.get("oneOf")), schema.get("type")) {
        (Some(Value::Array(alternatives)), _) => alternatives.iter().any(|schema| admits(schema, value)),
        (_, Some(Value::String(kind))) => fits(kind),
        (_, Some(Value::Array(kinds))) => kinds.iter().filter_map(Value::as_str).any(fits),
        _ => true,
    }
}

fn blobs(file: &Value) -> Result<BTreeMap<String, Arc<Value>>> {
    Ok(members(file, "blobs")?.iter().map(|(key, value)| (key.clone(), Arc::new(value.clone()))).collect())
}

fn members<'a>(value: &'a Value, name: &str) -> Result<&'a BTreeMap<String, Value>> {
    match value.get(name) {
        Some(Value::Object(members)) => Ok(members),
        _ => bail!("`{name}` is missing, or no object"),
    }
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a [Value]> {
    match value.get(name) {
        Some(Value::Array(items)) => Ok(items),
        _ => bail!("`{name}` is missing, or no list"),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value.get(name).and_then(Value::as_str).with_context(|| format!("`{name}` is missing, or no text"))
}

fn texts(values: &[Value]) -> Vec<String> {
    values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn number(value: &Value) -> Option<usize> {
    match value {
        Value::Number(number) => usize::try_from(number.as_i64()?).ok(),
        _ => None,
    }
}

/// An object without members.
pub fn empty() -> Value {
    Value::Object(BTreeMap::new())
}

/// Without members that are `null`: the same as absent.
fn present(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let members = members.iter().filter(|(_, value)| **value != Value::Null);
            members.map(|(key, value)| (key.as_str(), present(value))).collect()
        }
        other => other.clone(),
    }
}
