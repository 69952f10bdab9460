//! What an action does to the flow of data: what may flow in, what its result carries, which arguments decide who is
//! affected, and who may be given the result.
//!
//! A contract says it per action, agents.toml per agent. What is not said counts as the worst: a result without a
//! declared label is top, an agent without a clearance may be given what is public, and what leaves the organisation
//! takes what is public.

use std::collections::BTreeSet;

use crate::{
    contract::Effect,
    datalog::{Predicate, Term},
    ids::{ApprovalId, EntityType},
    json::Value,
    label::{Confidentiality, Integrity, Label, TOP, Tag},
    pointer::Pattern,
    request::Arguments,
    settings::{Document, Section},
    source::{Instruction, Source, SourceKind, SourceKinds},
};

/// Most guarded arguments of one call; more are refused, since each has to be looked for.
pub const GUARDED_MAX: usize = 64;
/// Most values of one result that may count as sources later.
pub const SOURCES_OF_RESULT_MAX: usize = 256;

/// What a contract says of one action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActionFlow {
    /// What may flow into it.
    pub accepts: Confidentiality,
    /// What its result carries at least.
    pub returns: Label,
    /// Fields of the result that name something.
    pub fields: Vec<ResultField>,
    /// Arguments that decide who or what is affected.
    pub guards: Vec<ArgumentGuard>,
    /// What reading a column adds.
    pub columns: Vec<ColumnLabel>,
}

/// Fields of a result that name something of an entity type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultField {
    /// Where.
    pub path: Pattern,
    /// What the values there name.
    pub entity: EntityType,
    /// Whether outsiders could have written them.
    pub integrity: Integrity,
    /// Members beside the field that hold the name of what it identifies, such as the title of an event.
    pub named_by: Vec<String>,
}

/// Arguments that decide who or what is affected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentGuard {
    /// Where.
    pub argument: Pattern,
    /// What the values there name.
    pub entity: EntityType,
    /// What counts as a source for them.
    pub sources: SourceKinds,
}

/// What reading a column of a table adds to the result's label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnLabel {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// What it adds.
    pub label: Label,
}

/// A guarded argument of a call, and what vouches for its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardedArgument {
    /// Where it stands, as a JSON Pointer.
    pub path: String,
    /// What it names.
    pub entity: EntityType,
    /// What vouches for it; nothing, if it was looked for and not found.
    pub source: Option<Source>,
}

/// What a decision found out about the flow of data. Empty for requests that move none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowVerdict {
    /// What the result will carry at least.
    pub result: Label,
    /// Whether nothing but the contract's own word on results makes it less than trusted: no column, no rule.
    pub is_as_declared: bool,
    /// Whether the tool's gate says what will be read: then what stands where in the result is the caller's choice.
    pub is_query: bool,
    /// Whom it is for, as far as labels go.
    pub clearance: Label,
    /// The guarded arguments, if the task was untrusted so that they were looked at.
    pub arguments: Vec<GuardedArgument>,
    /// What people let pass, and has to be used up.
    pub acts: BTreeSet<ApprovalId>,
}

impl Default for FlowVerdict {
    fn default() -> Self {
        Self {
            result: Label::top(),
            is_as_declared: false,
            is_query: false,
            clearance: Label::bottom(),
            arguments: Vec::new(),
            acts: BTreeSet::new(),
        }
    }
}

impl FlowVerdict {
    /// The guarded arguments nothing vouches for.
    pub fn unsourced(&self) -> impl Iterator<Item = &GuardedArgument> {
        self.arguments.iter().filter(|argument| argument.source.is_none())
    }
}

impl ActionFlow {
    /// For calls on agents: what reaches them is checked against their clearance, and what they answer carries what
    /// their domain carries.
    #[must_use]
    pub fn of_agent() -> Self {
        Self {
            accepts: Confidentiality::Top,
            returns: Label::bottom(),
            fields: Vec::new(),
            guards: Vec::new(),
            columns: Vec::new(),
        }
    }

    pub(crate) const KEYS: [&str; 5] = ["accepts", "returns", "field", "guard", "column"];

    /// Reads what an `[[action]]` says of flow.
    pub(crate) fn read(
        document: &Document<'_>,
        section: &mut Section<'_, '_>,
        effect: Option<Effect>,
    ) -> Self {
        let accepts = match section.has("accepts") {
            true => read_tags(section, "accepts"),
            false if matches!(effect, Some(Effect::Read | Effect::Internal)) => Confidentiality::Top,
            false => Confidentiality::Tags(BTreeSet::new()),
        };
        let returns = match section.optional_table("returns") {
            None => {
                let message = "an action does not say what its results carry, so nobody may be told them";
                let finding = document.at(section.span(), message);
                let help =
                    "add `returns = { tags = [], integrity = \"untrusted\" }`, with the tags they carry";
                document.note(finding.help(help).warning());
                Label::top()
            }
            Some(mut table) => {
                if !table.has("tags") {
                    let finding =
                        document.at(table.span(), "`returns` does not say which tags a result carries");
                    document.note(finding.help("add `tags = []` if anybody may see it"));
                }
                let label = read_label(&mut table, Integrity::Untrusted);
                table.finish(&["tags", "integrity"]);
                label
            }
        };
        let mut fields = Vec::new();
        for mut table in section.tables("field") {
            let path = table.required("path", "\"/rows/*/email\"");
            let entity = table.required("entity", "\"email\"");
            let integrity = table.optional::<Integrity>("integrity").unwrap_or(returns.integrity);
            let named_by: Vec<String> = table.list("named_by");
            table.finish(&["path", "entity", "integrity", "named_by"]);
            let field = path.zip(entity);
            fields.extend(field.map(|(path, entity)| ResultField { path, entity, integrity, named_by }));
        }
        let mut guards = Vec::new();
        for mut table in section.tables("guard") {
            let argument = table.required("argument", "\"/to/*\"");
            let entity = table.required("entity", "\"email\"");
            let listed: Option<Vec<KindWord>> = table.has("sources").then(|| table.list("sources"));
            let listed = listed.map(|kinds| kinds.into_iter().map(|kind| kind.0).collect());
            let sources = listed.unwrap_or_default();
            table.finish(&["argument", "entity", "sources"]);
            let guard = argument.zip(entity);
            guards.extend(guard.map(|(argument, entity)| ArgumentGuard { argument, entity, sources }));
        }
        let mut columns = Vec::new();
        for mut table in section.tables("column") {
            let of = table.text("table", "\"customers\"");
            let column = table.text("column", "\"salary\"");
            let label = read_label(&mut table, Integrity::Trusted);
            table.finish(&["table", "column", "tags", "integrity"]);
            columns.extend(of.zip(column).map(|(table, column)| ColumnLabel { table, column, label }));
        }
        Self { accepts, returns, fields, guards, columns }
    }

    /// The canonical form, as a part of the contract's digest.
    pub(crate) fn canonical(&self) -> Value {
        let label = |label: &Label| Value::from(label.to_string());
        let fields = self.fields.iter().map(|field| {
            let parts = [
                ("entity", Value::from(field.entity.as_str())),
                ("integrity", Value::from(field.integrity.as_str())),
                ("named_by", Value::Array(field.named_by.iter().map(|name| name.as_str().into()).collect())),
                ("path", Value::from(field.path.as_str())),
            ];
            parts.into_iter().collect()
        });
        let guards = self.guards.iter().map(|guard| {
            let parts = [
                ("argument", Value::from(guard.argument.as_str())),
                ("entity", Value::from(guard.entity.as_str())),
                ("sources", Value::Array(guard.sources.iter().map(|kind| kind.as_str().into()).collect())),
            ];
            parts.into_iter().collect()
        });
        let columns = self.columns.iter().map(|column| {
            let parts = [
                ("column", Value::from(column.column.as_str())),
                ("label", label(&column.label)),
                ("table", Value::from(column.table.as_str())),
            ];
            parts.into_iter().collect()
        });
        let accepts = Label { confidentiality: self.accepts.clone(), integrity: Integrity::Untrusted };
        [
            ("accepts", label(&accepts)),
            ("columns", Value::Array(columns.collect())),
            ("fields", Value::Array(fields.collect())),
            ("guards", Value::Array(guards.collect())),
            ("returns", label(&self.returns)),
        ]
        .into_iter()
        .collect()
    }

    /// What the result will carry at least, by the contract and what the gate says will be read.
    #[must_use]
    pub fn declared(&self, gate: &[Predicate]) -> Label {
        self.returns.join(&self.of_columns(gate))
    }

    /// What the columns add that the gate says will be read.
    #[must_use]
    pub fn of_columns(&self, gate: &[Predicate]) -> Label {
        let read = |column: &&ColumnLabel| gate.iter().any(|fact| reads(fact, column));
        self.columns.iter().filter(read).fold(Label::bottom(), |label, column| label.join(&column.label))
    }

    /// The guarded arguments of a call: where, what it names, its value, and what may vouch for it.
    #[must_use]
    pub fn guarded<'a>(&'a self, arguments: &'a Value) -> Vec<(String, &'a ArgumentGuard, &'a Value)> {
        let of = |guard: &'a ArgumentGuard| {
            let places = guard.argument.find(arguments).into_iter();
            places.filter(|(_, value)| **value != Value::Null).map(move |(path, value)| (path, guard, value))
        };
        self.guards.iter().flat_map(of).collect()
    }

    /// The values of a result that later calls may take as a source, as they stand; bounded.
    #[must_use]
    pub fn vouched<'a>(&'a self, result: &'a Value) -> Vec<(&'a EntityType, &'a Value)> {
        // Where a narrower pattern says that outsiders write a place, a wider one does not make up for it.
        let tainted = |pointer: &str| {
            let of_outsiders = self.fields.iter().filter(|field| field.integrity == Integrity::Untrusted);
            of_outsiders.into_iter().any(|field| field.path.covers(pointer))
        };
        let trusted = self.fields.iter().filter(|field| field.integrity == Integrity::Trusted);
        let places = trusted.flat_map(|field| {
            field.path.find(result).into_iter().map(move |(path, value)| (path, &field.entity, value))
        });
        places
            .filter(|(path, ..)| !tainted(path))
            .map(|(_, entity, value)| (entity, value))
            .take(SOURCES_OF_RESULT_MAX)
            .collect()
    }

    /// Everything in a result that later calls may take as a source: what trusted fields hold, unless the call itself said
    /// it, since a tool may echo; and the ids of what the user called by name, where the instruction is known.
    ///
    /// `own` is the tool's own word. Where it knows that outsiders had a say in what it returns, no field is trusted, and
    /// ids go by the user's words as in any other result of outsiders.
    #[must_use]
    pub fn sources<'a>(
        &'a self,
        arguments: &Arguments,
        result: &'a Value,
        own: Integrity,
        instruction: Option<&Instruction>,
    ) -> Vec<(&'a EntityType, &'a Value)> {
        if self.fields.is_empty() {
            return Vec::new();
        }
        let said = |value: &Value| match value {
            Value::String(text) => arguments.canonical().contains(text.as_str()),
            other => arguments.canonical().contains(&other.to_string()),
        };
        let mut sources = match own {
            Integrity::Trusted => self.vouched(result),
            Integrity::Untrusted => Vec::new(),
        };
        sources.retain(|(_, value)| !said(value));
        sources.extend(instruction.into_iter().flat_map(|user| self.named(arguments.value(), result, user)));
        sources
    }

    /// The ids in a result, whoever wrote it, of what the user asked for by name; bounded as [`ActionFlow::vouched`].
    ///
    /// The id of a record counts if it is the only one of the result whose name the instruction calls, or if it is the
    /// only one at all and whatever was searched for stands in the instruction. An outsider can add a record of the
    /// same name: then there are two, and neither counts.
    #[must_use]
    pub fn named<'a>(
        &'a self,
        arguments: &Value,
        result: &'a Value,
        instruction: &Instruction,
    ) -> Vec<(&'a EntityType, &'a Value)> {
        let asked = asks_for(arguments, instruction);
        let mut found = Vec::new();
        for field in self.fields.iter().filter(|field| !field.named_by.is_empty()) {
            let places = field.path.find(result);
            let called: Vec<&(String, &Value)> =
                places.iter().filter(|(path, _)| is_called(path, result, field, instruction)).collect();
            match (called.as_slice(), places.as_slice()) {
                ([(_, value)], _) => found.push((&field.entity, *value)),
                ([], [(_, value)]) if asked => found.push((&field.entity, *value)),
                _ => {}
            }
        }
        found.truncate(SOURCES_OF_RESULT_MAX);
        found
    }
}

/// Whether a record is called by its name in the instruction.
fn is_called(path: &str, result: &Value, field: &ResultField, instruction: &Instruction) -> bool {
    let record = path.rsplit_once('/').map_or("", |(record, _)| record);
    field.named_by.iter().any(|name| {
        // A member's name needs no escaping that a pattern would not need as well.
        let place = Pattern::parse(&format!("{record}/{name}")).map(|place| place.find(result));
        place.is_ok_and(|found| {
            found.iter().any(|(_, value)| value.as_str().is_some_and(|name| instruction.calls(name)))
        })
    })
}

/// Whether every text of the arguments stands in the instruction, and there is one.
fn asks_for(arguments: &Value, instruction: &Instruction) -> bool {
    let (mut texts, mut strange) = (0, 0);
    arguments.for_each_leaf(&mut |_, leaf| {
        if let Value::String(text) = leaf {
            texts += 1;
            strange += usize::from(!instruction.calls(text));
        }
    });
    texts > 0 && strange == 0
}

/// Whether the gate of a tool says what a query reads.
pub(crate) fn is_query(gate: &[Predicate]) -> bool {
    gate.iter().any(|fact| matches!(fact.name.as_str(), "reads_column" | "reads_table"))
}

fn reads(fact: &Predicate, column: &ColumnLabel) -> bool {
    let is =
        |term: &Term, name: &str| matches!(term, Term::Str(text) if text.as_str().eq_ignore_ascii_case(name));
    match (fact.name.as_str(), fact.terms.as_slice()) {
        ("reads_column", [table, of]) => is(table, &column.table) && (is(of, &column.column) || is(of, "*")),
        _ => false,
    }
}

/// A list of tags; `top` among them is everything.
pub(crate) fn read_tags(section: &mut Section<'_, '_>, key: &str) -> Confidentiality {
    let words: Vec<TagWord> = section.list(key);
    let mut tags = BTreeSet::new();
    for word in words {
        match word {
            TagWord::Everything => return Confidentiality::Top,
            TagWord::Tag(tag) => drop(tags.insert(tag)),
        }
    }
    Confidentiality::Tags(tags)
}

fn read_label(section: &mut Section<'_, '_>, otherwise: Integrity) -> Label {
    let confidentiality = read_tags(section, "tags");
    Label { confidentiality, integrity: section.optional("integrity").unwrap_or(otherwise) }
}

struct KindWord(SourceKind);

impl std::str::FromStr for KindWord {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let kind = SourceKind::parse(text).map(Self);
        kind.ok_or("a source is directory, grant, instruction, instruction-any or result")
    }
}

enum TagWord {
    Everything,
    Tag(Tag),
}

impl std::str::FromStr for TagWord {
    type Err = crate::ids::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == TOP { Ok(Self::Everything) } else { Tag::parse(text).map(Self::Tag) }
    }
}
