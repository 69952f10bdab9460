//! Tool contracts: what a tool can do, what its arguments look like, and what its actions amount to.
//!
//! A contract is a TOML file beside the policies. Its argument schemas are JSON Schema 2020-12, checked by the
//! `jsonschema` crate with all resolvers off; objects are closed unless the schema says otherwise, so an
//! argument nobody declared is refused.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jsonschema::{
    Draft, Validator,
    error::{ValidationError, ValidationErrorKind},
};

use crate::{
    datalog::{Predicate, Span, Term},
    diagnostic::{Diagnostic, Diagnostics},
    digest::Digest,
    flow::ActionFlow,
    ids::{Action, Resource, ResourceKind},
    json::Value,
    mcp::UpstreamTool,
    pointer::Pattern,
    reason::{Reason, ReasonCode},
    settings::{Document, Section},
    time::Timestamp,
};

/// Most leaves the arguments of one call may have; each becomes a fact.
pub const ARGUMENT_LEAVES_MAX: usize = 512;

/// What a tool offers.
#[derive(Clone, Debug)]
pub struct ToolContract {
    /// The resource it stands for.
    pub resource: Resource,
    /// What it is, for people.
    pub description: String,
    /// The team that answers for it.
    pub owner: String,
    /// Until when rules about it are asked and not obeyed.
    pub observe_until: Option<Timestamp>,
    /// What can be done with it.
    pub actions: BTreeMap<Action, ActionContract>,
    /// Digest of the contract's canonical form; a changed contract is a changed tool.
    pub digest: Digest,
}

/// One action of a tool.
#[derive(Clone)]
pub struct ActionContract {
    /// What it does, for people.
    pub description: String,
    /// What it amounts to.
    pub effect: Effect,
    /// The schema of its arguments, as written.
    pub schema: Value,
    /// Decimals after the point that numbers at these JSON Pointers may have; `*` is any one member or element.
    pub scales: BTreeMap<String, u8>,
    /// What flows in, and what comes out.
    pub flow: Arc<ActionFlow>,
    /// The tool of an MCP server that does it, where one does.
    pub mcp: Option<UpstreamTool>,
    /// The scales whose pointers have a wildcard.
    scale_patterns: Vec<(Pattern, u8)>,
    validator: Arc<Validator>,
}

impl fmt::Debug for ActionContract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActionContract").field("effect", &self.effect).finish_non_exhaustive()
    }
}

/// What an action amounts to, from harmless to irrevocable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Changes nothing.
    Read,
    /// Changes something only the user's own organisation sees, and can undo.
    Internal,
    /// Changes something other people rely on.
    Shared,
    /// Leaves the trust domain: sends, pays, publishes.
    Egress,
}

impl Effect {
    /// The word policies use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Internal => "internal",
            Self::Shared => "shared",
            Self::Egress => "egress",
        }
    }
}

impl std::str::FromStr for Effect {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "read" => Ok(Self::Read),
            "internal" => Ok(Self::Internal),
            "shared" => Ok(Self::Shared),
            "egress" => Ok(Self::Egress),
            _ => Err("an effect is one of read, internal, shared, egress"),
        }
    }
}

impl ToolContract {
    /// Reads a contract file by itself.
    ///
    /// # Errors
    /// Every finding, if one of them is an error. Warnings come back with the contract.
    pub fn parse(file: &str, text: &str) -> Result<(Self, Diagnostics), Diagnostics> {
        let mut findings = Diagnostics::default();
        match Self::read(file, text, &mut findings) {
            Some(contract) if !findings.has_errors() => Ok((contract, findings)),
            _ => Err(findings),
        }
    }

    /// Reads a contract file.
    pub(crate) fn read(file: &str, text: &str, findings: &mut Diagnostics) -> Option<Self> {
        let overrides = BTreeMap::new();
        let document = Document::new(file, text, &overrides);
        let mut root = document.root();
        let resource: Option<Resource> = root.required("resource", "\"tool.crm\"");
        let description = root.optional_text("description").unwrap_or_default();
        let owner = root.optional_text("owner").unwrap_or_default();
        let observe_until = crate::policy::read_observe(&mut root);
        if let Some(resource) = resource.as_ref().filter(|resource| resource.kind() != ResourceKind::Tool) {
            let span = root.span_of("resource");
            document.note(
                document.at(span, format!("`{resource}` is no tool")).help("tools are named `tool.<name>`"),
            );
        }
        let mut actions = BTreeMap::new();
        for section in root.tables("action") {
            if let Some((name, action)) = ActionContract::read(&document, section) {
                actions.insert(name, action);
            }
        }
        root.finish(&["resource", "description", "owner", "observe", "action"]);
        let read = document.into_findings();
        let sound = !read.has_errors();
        findings.0.extend(read.0);
        if actions.is_empty() && sound {
            findings.push(
                Diagnostic::in_file(file, "the contract declares no action")
                    .help("add an `[[action]]` with `name`, `effect` and `schema`"),
            );
            return None;
        }
        let resource = resource.filter(|_| sound)?;
        let digest = contract_digest(&resource, &description, &actions);
        Some(Self { resource, description, owner, observe_until, actions, digest })
    }

    /// The contract of one action.
    #[must_use]
    pub fn action(&self, action: &Action) -> Option<&ActionContract> {
        self.actions.get(action)
    }
}

fn contract_digest(
    resource: &Resource,
    description: &str,
    actions: &BTreeMap<Action, ActionContract>,
) -> Digest {
    let actions: Value = actions
        .iter()
        .map(|(name, action)| {
            let scales: Value =
                action.scales.iter().map(|(path, scale)| (path, Value::from(i64::from(*scale)))).collect();
            let pinned = action.mcp.as_ref().map(|tool| {
                let fields = [("digest", tool.digest.to_string()), ("tool", tool.name.to_string())];
                ("mcp", fields.into_iter().map(|(key, text)| (key, Value::from(text))).collect())
            });
            let fields = [
                ("description", Value::from(action.description.as_str())),
                ("effect", Value::from(action.effect.as_str())),
                ("flow", action.flow.canonical()),
                ("scales", scales),
                ("schema", action.schema.clone()),
            ];
            (name.as_str(), fields.into_iter().chain(pinned).collect())
        })
        .collect();
    let whole: Value = [
        ("actions", actions),
        ("description", Value::from(description)),
        ("resource", Value::from(resource.as_str())),
    ]
    .into_iter()
    .collect();
    Digest::of("writ/v1/contract", &[whole.to_string().as_bytes()])
}

impl ActionContract {
    fn read(document: &Document<'_>, mut section: Section<'_, '_>) -> Option<(Action, Self)> {
        let name: Option<Action> = section.required("name", "\"read\"");
        let effect: Option<Effect> = section.required("effect", "\"read\"");
        let description = section.optional_text("description").unwrap_or_default();
        let flow = ActionFlow::read(document, &mut section, effect);
        let mcp = UpstreamTool::read(&mut section);
        let schema_span = section.span_of("schema");
        let mut schema: Value =
            section.free_table("schema").into_iter().map(|(key, _, value)| (key, value)).collect();
        let (scales, scale_patterns) = read_scales(document, &mut section);
        let keys = ["name", "effect", "description", "mcp", "schema", "scales"];
        section.finish(&[keys.as_slice(), &ActionFlow::KEYS].concat());
        close_objects(&mut schema);
        let validator = compile(document, schema_span, &schema)?;
        Some((
            name?,
            Self {
                description,
                effect: effect?,
                schema,
                scales,
                flow: Arc::new(flow),
                mcp,
                scale_patterns,
                validator: Arc::new(validator),
            },
        ))
    }

    /// Checks arguments against the schema, and their numbers against the scales.
    ///
    /// # Errors
    /// A [`Reason`] of the `arg.*` group naming the place.
    pub fn check(&self, arguments: &Value) -> Result<(), Reason> {
        if crate::red::off("A12") {
            return Ok(());
        }
        let mut fault = None;
        let mut leaves = 0;
        arguments.for_each_leaf(&mut |path, leaf| {
            leaves += 1;
            if let Value::Number(number) = leaf {
                let scale = self.scale_of(path);
                if number.scaled(scale).is_none() && !crate::red::off("A10") {
                    fault.get_or_insert_with(|| {
                        Reason::new(ReasonCode::ArgNumber)
                            .told(format_args!("`{path}` has more than {scale} decimals or is out of range"))
                    });
                }
            }
        });
        if leaves > ARGUMENT_LEAVES_MAX {
            return Err(Reason::new(ReasonCode::ArgInvalid)
                .told(format_args!("more than {ARGUMENT_LEAVES_MAX} values in the arguments")));
        }
        let instance = to_serde(arguments);
        if let Some(error) = self.validator.iter_errors(&instance).next() {
            return Err(reason_of(&error));
        }
        fault.map_or(Ok(()), Err)
    }

    /// The scale of the number at a plain pointer: its own entry goes before those with a wildcard, and of those the
    /// first in the order of their texts.
    fn scale_of(&self, path: &str) -> u8 {
        let matching = || self.scale_patterns.iter().find(|(pattern, _)| pattern.names(path));
        self.scales.get(path).copied().or_else(|| matching().map(|(_, scale)| *scale)).unwrap_or(0)
    }

    /// The arguments as facts `arg(path, value)`; only for arguments that were checked.
    pub(crate) fn argument_facts(&self, arguments: &Value) -> Vec<Predicate> {
        let mut facts = Vec::new();
        arguments.for_each_leaf(&mut |path, leaf| {
            let value = match leaf {
                Value::Bool(value) => Term::Bool(*value),
                Value::Number(number) => {
                    let scale = self.scale_of(path);
                    // A number that was not checked becomes text, which no numeric rule matches.
                    number.scaled(scale).map_or_else(|| Term::str(number.as_str()), Term::Integer)
                }
                Value::String(text) => Term::str(text.as_str()),
                Value::Null | Value::Array(_) | Value::Object(_) => return,
            };
            facts.push(Predicate::new("arg", [Term::str(path), value]));
        });
        facts
    }
}

fn read_scales(
    document: &Document<'_>,
    section: &mut Section<'_, '_>,
) -> (BTreeMap<String, u8>, Vec<(Pattern, u8)>) {
    let (mut scales, mut patterns) = (BTreeMap::new(), Vec::new());
    for (path, span, value) in section.free_table("scales") {
        let scale = match &value {
            Value::Number(number) => number.as_i64().filter(|scale| (0..=12).contains(scale)),
            _ => None,
        };
        match (scale.and_then(|scale| u8::try_from(scale).ok()), Pattern::parse(&path)) {
            (Some(scale), Ok(pattern)) => {
                if path.split('/').any(|token| token == "*") {
                    patterns.push((pattern, scale));
                }
                scales.insert(path, scale);
            }
            (None, _) => document.note(document.at(span, "a scale is a whole number from 0 to 12")),
            (_, Err(error)) => document.note(document.at(span, error)),
        }
    }
    patterns.sort();
    (scales, patterns)
}

/// Closes every object that lists its properties and does not say whether there may be others.
fn close_objects(schema: &mut Value) {
    match schema {
        Value::Object(members) => {
            members.values_mut().for_each(close_objects);
            let open = ["additionalProperties", "unevaluatedProperties"];
            let is_object = members.get("type").is_some_and(|kind| kind.as_str() == Some("object"))
                || members.get("properties").is_some_and(|properties| matches!(properties, Value::Object(_)));
            if is_object && open.iter().all(|key| !members.contains_key(*key)) {
                members.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
}

fn compile(document: &Document<'_>, span: Span, schema: &Value) -> Option<Validator> {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        let finding = document.at(span, "the schema of an action's arguments must describe an object");
        document.note(finding.help("add `type = \"object\"` and `properties`"));
        return None;
    }
    match jsonschema::options().with_draft(Draft::Draft202012).build(&to_serde(schema)) {
        Ok(validator) => Some(validator),
        Err(error) => {
            document.note(document.at(span, format!("the schema is not valid JSON Schema: {error}")));
            None
        }
    }
}

fn reason_of(error: &ValidationError<'_>) -> Reason {
    let path = error.instance_path().to_string();
    match error.kind() {
        ValidationErrorKind::AdditionalProperties { unexpected }
        | ValidationErrorKind::UnevaluatedProperties { unexpected } => {
            Reason::new(ReasonCode::ArgUnknown).told(format_args!("`{path}/{}`", unexpected.join("`, `")))
        }
        ValidationErrorKind::Required { property } => Reason::new(ReasonCode::ArgMissing)
            .told(format_args!("`{path}/{}`", property.as_str().unwrap_or_default())),
        _ => Reason::new(ReasonCode::ArgInvalid).told(format_args!(
            "`{}`: {}",
            if path.is_empty() { "/" } else { &path },
            error.masked_with("the value")
        )),
    }
}

/// To the JSON type of the schema library. Its floats only serve range checks; facts are made from the exact text.
fn to_serde(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Json::from(integer),
            None => number.as_str().parse::<f64>().map_or(Json::Null, Json::from),
        },
        Value::String(text) => Json::String(text.clone()),
        Value::Array(items) => Json::Array(items.iter().map(to_serde).collect()),
        Value::Object(members) => {
            Json::Object(members.iter().map(|(key, member)| (key.clone(), to_serde(member))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = r#"
        resource = "tool.payments"
        [[action]]
        name = "wire"
        effect = "egress"
        returns = { tags = [], integrity = "trusted" }
        [action.scales]
        "/amount" = 2
        [action.schema]
        type = "object"
        required = ["payee", "amount"]
        [action.schema.properties]
        payee = { type = "string", minLength = 3 }
        amount = { type = "number", exclusiveMinimum = 0 }
        note = { type = "object", properties = { text = { type = "string" } } }
    "#;

    fn wire() -> ActionContract {
        let mut findings = Diagnostics::default();
        let contract = ToolContract::read("payments.toml", CONTRACT, &mut findings);
        assert_eq!(findings.to_string(), "");
        contract.unwrap().actions.remove(&Action::parse("wire").unwrap()).unwrap()
    }

    fn check(arguments: &str) -> Option<String> {
        let arguments = Value::parse(arguments).unwrap();
        wire().check(&arguments).err().map(|reason| reason.to_string())
    }

    #[test]
    fn a12_arguments_are_closed_and_typed() {
        assert_eq!(check(r#"{"payee":"DE12","amount":98.7}"#), None);
        for (arguments, expected) in [
            (r#"{"payee":"DE12","amount":1,"bcc":"x"}"#, "arg.unknown: `/bcc`"),
            (r#"{"payee":"DE12","amount":1,"note":{"x":1}}"#, "arg.unknown: `/note/x`"),
            (r#"{"payee":"DE12"}"#, "arg.missing: `/amount`"),
            (
                r#"{"payee":"DE12","amount":98.765}"#,
                "arg.number: `/amount` has more than 2 decimals or is out of range",
            ),
        ] {
            assert_eq!(check(arguments).as_deref(), Some(expected));
        }
        for arguments in [
            r#"{"payee":"DE12","amount":"1"}"#,
            r#"{"payee":"DE","amount":1}"#,
            r#"{"payee":"DE12","amount":0}"#,
            r#"[]"#,
        ] {
            assert!(check(arguments).unwrap().starts_with("arg.invalid"), "{arguments}");
        }
    }

    #[test]
    fn refusals_do_not_repeat_the_value() {
        let told = check(r#"{"payee":"x7","amount":1}"#).unwrap();
        assert!(!told.contains("x7"), "{told}");
    }

    #[test]
    fn decimals_become_scaled_integers() {
        let arguments = Value::parse(r#"{"payee":"DE12","amount":98.7}"#).unwrap();
        let facts: Vec<String> = wire().argument_facts(&arguments).iter().map(ToString::to_string).collect();
        assert_eq!(facts, [r#"arg("/amount", 9870)"#, r#"arg("/payee", "DE12")"#]);
    }

    #[test]
    fn a_scale_with_a_wildcard_is_for_every_element() {
        let text =
            CONTRACT.replace("\"/amount\" = 2", "\"/lines/*/price\" = 2\n\"/lines/0/price\" = 3").replace(
                "amount = { type = \"number\", exclusiveMinimum = 0 }",
                "amount = { type = \"number\" }\nlines = { type = \"array\" }",
            );
        let mut findings = Diagnostics::default();
        let contract = ToolContract::read("payments.toml", &text, &mut findings);
        assert_eq!(findings.to_string(), "");
        let wire = contract.unwrap().actions.remove(&Action::parse("wire").unwrap()).unwrap();
        let arguments = r#"{"payee":"DE12","amount":1,"lines":[{"price":1.234},{"price":5.6}]}"#;
        let arguments = Value::parse(arguments).unwrap();
        wire.check(&arguments).unwrap();
        let facts: Vec<String> = wire.argument_facts(&arguments).iter().map(ToString::to_string).collect();
        assert_eq!(
            facts.get(1..3).unwrap(),
            [r#"arg("/lines/0/price", 1234)"#, r#"arg("/lines/1/price", 560)"#]
        );
        let finer =
            Value::parse(r#"{"payee":"DE12","amount":1,"lines":[{"price":1},{"price":1.234}]}"#).unwrap();
        assert_eq!(wire.check(&finer).unwrap_err().code(), ReasonCode::ArgNumber);
        let below = Value::parse(r#"{"payee":"DE12","amount":1,"lines":[{"price":{"x":1.5}}]}"#).unwrap();
        assert_eq!(wire.check(&below).unwrap_err().code(), ReasonCode::ArgNumber);
        let broken = CONTRACT.replace("\"/amount\" = 2", "\"amount\" = 2");
        assert!(ToolContract::read("payments.toml", &broken, &mut findings).is_none());
    }

    #[test]
    fn broken_contracts_are_named_with_their_place() {
        let mut findings = Diagnostics::default();
        let text = "resource = \"agent.x\"\n[[action]]\nname = \"Read\"\neffect = \"reed\"\nreturns = { tags = [] }\nschema = { type = \"strin\" }\n";
        assert!(ToolContract::read("x.toml", text, &mut findings).is_none());
        let lines: Vec<usize> = findings.0.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [1, 3, 4, 6], "{findings}");
    }
}
