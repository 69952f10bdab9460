//! From what a server lists to a contract that an operator reads, and from a changed listing to a changed contract.
//!
//! Nothing here decides: it writes files. Every tool is proposed as what is hardest to be wrong about: it leaves the
//! trust domain, outsiders wrote what it returns, and a person approves each call. What a server says of its tools
//! (`readOnlyHint` and the like) is shown to the operator and counts for nothing. Its texts stand in the contract,
//! for agents to read; no rule is made of them (threat M03).

use std::collections::{BTreeMap, BTreeSet};

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table};
use writ_common::{
    contract::ToolContract,
    datalog::{Body, Predicate, Rule, Term},
    diagnostic::{Diagnostic, Diagnostics},
    digest::Digest,
    ids::{Action, Resource, RoleId},
    json::Value,
    label::Tag,
    mcp::{ToolName, id_of, offered_name},
    policy::{PolicyBundle, PolicySet},
    visible::deceptive,
};

use crate::{
    listing::{ListedTool, Listing},
    schema::{ContractSchema, add_scales, for_contract, plain_lines, shown, to_table},
    text::{bounded, cut},
};

/// Longest description taken into a contract, in characters.
pub const DESCRIPTION_CHARS_MAX: usize = 4_000;

/// What an operator decides beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProposeOptions {
    /// Actions by the tools they are to be of, where the tool's own name will not do.
    pub renames: BTreeMap<String, String>,
    /// Who approves calls; without one nobody can, and calls are denied.
    pub approver: Option<RoleId>,
    /// The tags every result carries.
    pub tags: Vec<Tag>,
}

/// A contract and rules for the tools of a server, to be read before they are put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Where the contract goes, below the policy folder.
    pub contract_path: String,
    /// The whole contract; actions that were there already stand in it as they were.
    pub contract: String,
    /// Where the rules go.
    pub rules_path: String,
    /// The whole file of rules.
    pub rules: String,
    /// The actions that are new.
    pub added: Vec<Action>,
    /// What the operator should know.
    pub remarks: Vec<Remark>,
}

impl Proposal {
    /// The bundle with the proposal in it.
    #[must_use]
    pub fn applied_to(&self, bundle: &PolicyBundle) -> PolicyBundle {
        let mut bundle = bundle.clone();
        bundle.0.insert(self.contract_path.clone(), self.contract.clone());
        bundle.0.insert(self.rules_path.clone(), self.rules.clone());
        bundle
    }
}

/// Something about one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// The tool's name, as it may be shown.
    pub tool: String,
    /// Whether the tool is left out because of it.
    pub is_refused: bool,
    /// What.
    pub text: String,
    /// How to repair it, where something can be done.
    pub help: Option<String>,
}

/// What changed about a tool in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolChange {
    /// The action it is.
    pub action: Action,
    /// Whether the server lists it no longer.
    pub is_gone: bool,
    /// Description and schema, line by line: what goes with `-`, what comes with `+`.
    pub diff: Vec<String>,
    /// What should be looked at.
    pub remarks: Vec<String>,
}

/// A contract with pins brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// Where it stands, below the policy folder.
    pub contract_path: String,
    /// The whole contract, changed in nothing but pins, descriptions and schemas.
    pub contract: String,
    /// What changed.
    pub changes: Vec<ToolChange>,
}

/// Proposes a contract for what a server lists. Tools that the policy's contract of the resource names already are
/// left as they are.
///
/// # Errors
/// The findings of a policy that is not sound, or a contract that is not readable.
pub fn propose(
    resource: &Resource,
    listing: &Listing,
    policy: &PolicyBundle,
    options: &ProposeOptions,
) -> Result<Proposal, Diagnostics> {
    let (set, _) = PolicySet::load(policy)?;
    let known = contract_file(resource, policy);
    let contract_path =
        known.as_ref().map_or_else(|| format!("tools/{}.toml", resource.name()), |(path, _)| path.clone());
    let mut document = match &known {
        Some((path, text)) => parse_document(path, text)?,
        None => fresh_document(resource),
    };
    let mut import = Import {
        options,
        listing,
        mine: set.contract(resource),
        looks: looks_of(&set, resource),
        actions: BTreeSet::new(),
        remarks: Vec::new(),
    };
    let mut added = Vec::new();
    for tool in listing.tools() {
        let Some((action, name)) = import.admitted(tool) else { continue };
        let Some(table) = import.action(tool, &action, &name) else { continue };
        tables_of(&mut document).ok_or_else(|| no_tables(&contract_path))?.push(table);
        import.actions.insert(action.clone());
        added.push(action);
    }
    for name in options.renames.keys().filter(|name| listing.named(name).next().is_none()) {
        import.refuse(name, "is named in `--rename` and not listed by the server", None);
    }
    let rules_path = format!("imported/{}.datalog", resource.name());
    let before = policy.0.get(&rules_path).map(String::as_str).unwrap_or_default();
    let rules = rules_for(before, resource, &added, options.approver.as_ref());
    let contract = document.to_string();
    Ok(Proposal { contract_path, contract, rules_path, rules, added, remarks: import.remarks })
}

/// Brings the pins of a contract up to date with what a server lists: of the actions named, or of all that changed.
/// Everything else in the file stays as the operator wrote it.
///
/// # Errors
/// Findings: no contract of the resource, or an action it has not.
pub fn accept(
    resource: &Resource,
    listing: &Listing,
    policy: &PolicyBundle,
    actions: &BTreeSet<Action>,
) -> Result<Acceptance, Diagnostics> {
    let one = |finding: Diagnostic| Diagnostics(vec![finding]);
    let Some((contract_path, text)) = contract_file(resource, policy) else {
        let finding = Diagnostic::in_file("tools", format!("there is no contract of `{resource}`"));
        return Err(one(finding.help(format!("`writ tools import {resource}` proposes one"))));
    };
    let (contract, _) = ToolContract::parse(&contract_path, &text)?;
    if let Some(stranger) = actions.iter().find(|action| contract.action(action).is_none()) {
        let names: Vec<&str> = contract.actions.keys().map(Action::as_str).collect();
        let finding = Diagnostic::in_file(&contract_path, format!("`{resource}` has no action `{stranger}`"));
        return Err(one(finding.help(format!("there are {}", names.join(", ")))));
    }
    let mut document = parse_document(&contract_path, &text)?;
    let mut changed = Vec::new();
    for (action, declared) in &contract.actions {
        let Some(pin) = &declared.mcp else { continue };
        if !actions.is_empty() && !actions.contains(action) {
            continue;
        }
        let Some(tool) = listing.named(pin.name.as_str()).next() else {
            changed.push(ToolChange {
                action: action.clone(),
                is_gone: true,
                diff: Vec::new(),
                remarks: Vec::new(),
            });
            continue;
        };
        if tool.digest == pin.digest {
            continue;
        }
        let table = table_of(&mut document, action).ok_or_else(|| no_tables(&contract_path))?;
        let (description, mut remarks) = description_of(tool);
        let schema = for_contract(tool.value.get("inputSchema"));
        let before = described(&declared.description, &declared.schema);
        write_tool(table, tool.digest, &description, &schema);
        remarks.extend(schema.remarks);
        remarks.extend(hints(tool));
        // As it will be read, with its objects closed, so that the two can be compared.
        let written = document.to_string();
        let (after, _) = ToolContract::parse(&contract_path, &written)?;
        let after =
            after.action(action).map(|now| described(&now.description, &now.schema)).unwrap_or_default();
        let mut diff = crate::diff::lines(&before, &after);
        if diff.is_empty() {
            diff.push(
                "nothing an agent is shown: name, title, annotations or the result's schema".to_owned(),
            );
        }
        changed.push(ToolChange { action: action.clone(), is_gone: false, diff, remarks });
    }
    Ok(Acceptance { contract_path, contract: document.to_string(), changes: changed })
}

fn no_tables(path: &str) -> Diagnostics {
    let finding = Diagnostic::in_file(path, "its actions are not written as `[[action]]` tables");
    Diagnostics(vec![finding.help("write them so, and try again")])
}

fn described(description: &str, schema: &Value) -> String {
    let schema: serde_json::Value = serde_json::from_str(&schema.to_string()).unwrap_or_default();
    format!("{}\n{}", description, serde_json::to_string_pretty(&schema).unwrap_or_default())
}

struct Import<'a> {
    options: &'a ProposeOptions,
    listing: &'a Listing,
    /// The contract the resource has already.
    mine: Option<&'a ToolContract>,
    /// Looks of every tool that agents are offered already, with whose it is.
    looks: BTreeMap<String, String>,
    actions: BTreeSet<Action>,
    remarks: Vec<Remark>,
}

impl Import<'_> {
    fn remark(&mut self, tool: &str, text: impl Into<String>) {
        let tool = bounded(tool);
        self.remarks.push(Remark { tool, is_refused: false, text: text.into(), help: None });
    }

    fn refuse(&mut self, tool: &str, text: impl Into<String>, help: Option<String>) {
        self.remarks.push(Remark { tool: bounded(tool), is_refused: true, text: text.into(), help });
    }

    /// Whether a tool can be an action, and by which name.
    fn admitted(&mut self, tool: &ListedTool) -> Option<(Action, ToolName)> {
        let rename =
            |to: &str| Some(format!("`--rename '{}={to}'` gives it a name of its own", bounded(&tool.name)));
        let name = match ToolName::parse(&tool.name) {
            Ok(name) => name,
            Err(why) => {
                // It could not be pinned under that name; another name for the action does not help.
                self.refuse(&tool.name, format!("is left out: {why}"), None);
                return None;
            }
        };
        let known = |declared: &ToolContract| {
            declared.actions.values().any(|action| action.mcp.as_ref().is_some_and(|pin| pin.name == name))
        };
        if self.mine.is_some_and(known) {
            return None;
        }
        let alike = self.listing.taken_for(&name);
        if !alike.is_empty() && !writ_common::red::off("M02-import") {
            let text = format!("is left out: the server lists `{}` besides", alike.join("`, `"));
            self.refuse(&tool.name, text, Some("have the server list one of them".to_owned()));
            return None;
        }
        let wanted = self.options.renames.get(&tool.name).cloned();
        let wanted = wanted.unwrap_or_else(|| id_of(&tool.name));
        let action = match Action::parse(&wanted) {
            Ok(action) => action,
            Err(error) => {
                self.refuse(&tool.name, format!("is left out: {error}"), rename("name"));
                return None;
            }
        };
        let is_taken =
            self.actions.contains(&action) || self.mine.is_some_and(|mine| mine.action(&action).is_some());
        if is_taken {
            self.refuse(
                &tool.name,
                format!("is left out: there is an action `{action}` already"),
                rename("name"),
            );
            return None;
        }
        let look = ToolName::parse(&offered_name(action.as_str(), &name)).map(|offered| offered.look());
        let look = look.unwrap_or_default();
        if let Some(other) = self.looks.get(&look)
            && !writ_common::red::off("M02-import")
        {
            let text = format!("is left out: agents could take it for `{other}`");
            self.refuse(&tool.name, text, rename("name"));
            return None;
        }
        self.looks.insert(look, action.to_string());
        Some((action, name))
    }

    /// The `[[action]]` of a tool.
    fn action(&mut self, tool: &ListedTool, action: &Action, name: &ToolName) -> Option<Table> {
        let (description, remarks) = description_of(tool);
        let schema = for_contract(tool.value.get("inputSchema"));
        let mut table = Table::new();
        table.insert("name", toml_edit::value(action.as_str()));
        // The same for all, whatever the server says of it.
        let effect = if writ_common::red::off("M05") { "read" } else { "egress" };
        table.insert("effect", toml_edit::value(effect));
        table.insert("accepts", Item::Value(toml_edit::Array::new().into()));
        let tags = self.options.tags.iter().map(Tag::as_str).collect::<toml_edit::Array>();
        let returns = [("tags", tags.into()), ("integrity", toml_edit::Value::from("untrusted"))];
        table.insert("returns", Item::Value(returns.into_iter().collect::<InlineTable>().into()));
        let pin = [("tool", name.as_str().into()), ("digest", toml_edit::Value::from(""))];
        table.insert("mcp", Item::Value(pin.into_iter().collect::<InlineTable>().into()));
        write_tool(&mut table, tool.digest, &description, &schema);
        // One tool with a schema nobody can check must not keep the others out.
        let mut alone = DocumentMut::new();
        alone.insert("resource", toml_edit::value("tool.import"));
        tables_of(&mut alone)?.push(table.clone());
        if let Err(findings) = ToolContract::parse("import", &alone.to_string()) {
            let why = findings.0.first().map(|finding| cut(&finding.message, 200)).unwrap_or_default();
            self.refuse(&tool.name, format!("is left out: {why}"), None);
            return None;
        }
        for text in remarks.into_iter().chain(schema.remarks).chain(hints(tool)) {
            self.remark(&tool.name, text);
        }
        Some(table)
    }
}

/// A tool's description as agents will read it, and what is odd about it.
fn description_of(tool: &ListedTool) -> (String, Vec<String>) {
    let of = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let text = of(&tool.value, "description").or_else(|| of(&tool.value, "title")).unwrap_or_default();
    let mut remarks = deceptive(&plain_lines(&text));
    remarks.iter_mut().for_each(|remark| *remark = format!("its description {}", bounded(remark)));
    let mut kept: String = text.chars().take(DESCRIPTION_CHARS_MAX).collect();
    if kept.len() < text.len() {
        kept.push('…');
        remarks.push(format!("its description is cut after {DESCRIPTION_CHARS_MAX} characters"));
    }
    (shown(&kept), remarks)
}

/// What a tool says of its own effects (MCP 2025-11-25, `ToolAnnotations`), for the operator and for nobody else.
fn hints(tool: &ListedTool) -> Option<String> {
    let annotations = tool.value.get("annotations")?;
    let known = ["destructiveHint", "idempotentHint", "openWorldHint", "readOnlyHint"];
    let said: Vec<String> = known
        .iter()
        .filter_map(|key| match annotations.get(key)? {
            Value::Bool(value) => Some(format!("{key} {value}")),
            _ => None,
        })
        .collect();
    (!said.is_empty()).then(|| format!("its server says: {} (taken as no more than that)", said.join(", ")))
}

/// Puts what is pinned, and what agents are shown, into an action.
fn write_tool(table: &mut Table, digest: Digest, description: &str, schema: &ContractSchema) {
    let pin = table.get_mut("mcp").and_then(Item::as_table_like_mut);
    if let Some(pin) = pin {
        pin.insert("digest", toml_edit::value(digest.to_string()));
    }
    table.insert("description", toml_edit::value(description));
    if !schema.scales.is_empty() {
        let scales = table.entry("scales").or_insert_with(|| Item::Table(Table::new()));
        if let Some(inline) = scales.as_inline_table().cloned() {
            *scales = Item::Table(inline.into_table());
        }
        if let Some(scales) = scales.as_table_mut() {
            add_scales(scales, &schema.scales);
        }
    }
    table.insert("schema", Item::Table(to_table(&schema.schema)));
}

/// Looks of every tool agents are offered, of this resource and of all others.
fn looks_of(set: &PolicySet, resource: &Resource) -> BTreeMap<String, String> {
    let offered = set.contracts().flat_map(|contract| {
        contract.actions.iter().filter_map(move |(action, declared)| {
            let name = offered_name(action.as_str(), &declared.mcp.as_ref()?.name);
            let whose = match contract.resource == *resource {
                true => action.to_string(),
                false => format!("{}:{action}", contract.resource),
            };
            Some((ToolName::parse(&name).ok()?.look(), whose))
        })
    });
    offered.collect()
}

/// The contract file of a resource, wherever it stands.
fn contract_file(resource: &Resource, policy: &PolicyBundle) -> Option<(String, String)> {
    let of = |(path, text): (&String, &String)| {
        let (contract, _) = ToolContract::parse(path, text).ok()?;
        (contract.resource == *resource).then(|| (path.clone(), text.clone()))
    };
    let contracts = policy.0.iter().filter(|(path, _)| path.ends_with(".toml") && path.contains("tools/"));
    contracts.into_iter().find_map(of)
}

fn parse_document(path: &str, text: &str) -> Result<DocumentMut, Diagnostics> {
    text.parse().map_err(|error: toml_edit::TomlError| {
        Diagnostics(vec![Diagnostic::in_file(path, error.message().to_owned())])
    })
}

fn fresh_document(resource: &Resource) -> DocumentMut {
    let mut document = DocumentMut::new();
    document.insert("resource", toml_edit::value(resource.as_str()));
    if let Some(mut key) = document.key_mut("resource") {
        key.leaf_decor_mut().set_prefix(
            "# Proposed by `writ tools import`: read it before it is put in force. As it stands, every tool is taken for one\n\
             # that sends data away, takes only what is public, and returns what outsiders wrote and anybody may see. Say\n\
             # what each really does: `effect`, `accepts`, the tags of `returns`, and which arguments to `guard`.\n",
        );
    }
    document.insert("description", toml_edit::value("Tools of an MCP server."));
    document
}

/// The `[[action]]` tables; `None` where the file writes them as something else.
fn tables_of(document: &mut DocumentMut) -> Option<&mut ArrayOfTables> {
    let item = document.entry("action").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    if !item.is_array_of_tables() {
        // Contracts may write `action = [{ … }]`; tables cannot follow that.
        *item = Item::ArrayOfTables(std::mem::take(item).into_array_of_tables().ok()?);
    }
    item.as_array_of_tables_mut()
}

fn table_of<'d>(document: &'d mut DocumentMut, action: &Action) -> Option<&'d mut Table> {
    let is_it = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(action.as_str());
    tables_of(document)?.iter_mut().find(is_it)
}

/// The file of rules with one more rule per new action: somebody approves each call, or nobody may make it.
fn rules_for(before: &str, resource: &Resource, added: &[Action], approver: Option<&RoleId>) -> String {
    let mut text = before.to_owned();
    if text.is_empty() {
        text.push_str(
            "// Proposed by `writ tools import`: a person approves every call of a tool that nobody has looked at yet.\n\
             // Take a rule out once you have said in the contract what its tool does.\n",
        );
    }
    let added = if writ_common::red::off("M12") { &[] } else { added };
    for action in added {
        let body = Body {
            predicates: vec![
                Predicate::new("resource", [Term::str(resource.as_str())]),
                Predicate::new("action", [Term::str(action.as_str())]),
            ],
            ..Body::default()
        };
        text.push_str(&match approver {
            Some(role) => {
                let head = Predicate::new("needs_approval", [Term::str(role.as_str()), Term::Integer(1)]);
                format!("{};\n", Rule { head, body })
            }
            None => format!("/// there is nobody yet who could approve it\ndeny if {body};\n"),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource() -> Resource {
        Resource::parse("tool.files").unwrap()
    }

    fn listing(tools: &[&str]) -> Listing {
        Listing::new(tools.iter().map(|text| Value::parse(text).unwrap()).collect())
    }

    fn bundle(more: &[(&str, &str)]) -> PolicyBundle {
        let files = [
            ("agents.toml", "[[agent]]\nname = \"tester\"\n"),
            ("approvers.toml", "[[approver]]\nname = \"bob\"\nroles = [\"lead\"]\nusers = [\"bob\"]\n"),
            ("base.datalog", "allow if request(\"call\");\n"),
        ];
        let files = files.iter().chain(more);
        PolicyBundle(files.map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }

    fn options() -> ProposeOptions {
        ProposeOptions { approver: Some(RoleId::parse("lead").unwrap()), ..ProposeOptions::default() }
    }

    const READ: &str = r#"{"annotations":{"readOnlyHint":true},"description":"Reads a file.\nAll of it.","inputSchema":{"properties":{"at":{"type":"number"},"path":{"type":"string"}},"required":["path"],"type":"object"},"name":"read_file"}"#;

    fn refusals(proposal: &Proposal) -> Vec<String> {
        let refused = proposal.remarks.iter().filter(|remark| remark.is_refused);
        refused.map(|remark| format!("{} {}", remark.tool, remark.text)).collect()
    }

    #[test]
    fn m12_what_is_imported_is_taken_for_the_worst_and_hints_grant_nothing() {
        let bundle = bundle(&[]);
        let proposal = propose(&resource(), &listing(&[READ]), &bundle, &options()).unwrap();
        assert_eq!(proposal.contract_path, "tools/files.toml");
        let (set, findings) = PolicySet::load(&proposal.applied_to(&bundle)).unwrap();
        assert_eq!(findings.to_string(), "");
        let contract = set.contract(&resource()).unwrap();
        let action = contract.action(&Action::parse("read_file").unwrap()).unwrap();
        assert_eq!(action.effect.as_str(), "egress");
        assert_eq!(action.description, "Reads a file.\nAll of it.");
        assert_eq!(action.scales.get("/at"), Some(&6));
        assert_eq!(action.mcp.as_ref().unwrap().digest, listing(&[READ]).tools()[0].digest);
        let rule = "needs_approval(\"lead\", 1) <- resource(\"tool.files\"), action(\"read_file\");";
        assert!(proposal.rules.contains(rule), "{}", proposal.rules);
        let said = &proposal.remarks[0].text;
        assert_eq!(said, "its server says: readOnlyHint true (taken as no more than that)");
        // With nobody to approve, nobody calls.
        let alone = ProposeOptions::default();
        let proposal = propose(&resource(), &listing(&[READ]), &bundle, &alone).unwrap();
        PolicySet::load(&proposal.applied_to(&bundle)).unwrap();
        let rule = "deny if resource(\"tool.files\"), action(\"read_file\");";
        assert!(proposal.rules.contains(rule), "{}", proposal.rules);
    }

    #[test]
    fn m02_import_refuses_names_that_can_be_taken_for_one_another() {
        let other = "resource = \"tool.disk\"\n[[action]]\nname = \"read_file\"\neffect = \"read\"\nreturns = { tags = [] }\nmcp = { tool = \"read_file\", digest = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\" }\nschema = { type = \"object\" }\n";
        let bundle = bundle(&[("tools/disk.toml", other)]);
        let tool = |name: &str| READ.replace("read_file", name);
        let alike =
            [READ.to_owned(), tool("write"), tool("Wr1te"), tool("run me"), tool("Run.Me"), tool("run-me")];
        let texts: Vec<&str> = alike.iter().map(String::as_str).collect();
        let proposal = propose(&resource(), &listing(&texts), &bundle, &options()).unwrap();
        assert_eq!(
            refusals(&proposal),
            [
                "read_file is left out: agents could take it for `tool.disk:read_file`",
                "write is left out: the server lists `Wr1te` besides",
                "Wr1te is left out: the server lists `write` besides",
                "run me is left out: a tool's name is made of letters, digits, `_`, `-`, `.` and `/`, all ASCII",
                "Run.Me is left out: the server lists `run-me` besides",
                "run-me is left out: the server lists `Run.Me` besides",
            ]
        );
        let renames = BTreeMap::from([("read_file".to_owned(), "files_read".to_owned())]);
        let renamed = ProposeOptions { renames, ..options() };
        let proposal = propose(&resource(), &listing(&[READ]), &bundle, &renamed).unwrap();
        assert_eq!(proposal.added, [Action::parse("files_read").unwrap()]);
        PolicySet::load(&proposal.applied_to(&bundle)).unwrap();
    }

    #[test]
    fn m02_a_policy_with_names_that_look_alike_is_refused() {
        let proposal = propose(&resource(), &listing(&[READ]), &bundle(&[]), &options()).unwrap();
        let other =
            proposal.contract.replace("tool.files", "tool.disk").replace("\"read_file\"", "\"Read.File\"");
        let other = other.replace("name = \"Read.File\"", "name = \"read-file\"");
        let both = proposal.applied_to(&bundle(&[("tools/disk.toml", &other)]));
        let found = PolicySet::load(&both).map(drop).unwrap_err().to_string();
        assert!(found.contains("which can be taken for `tool.disk:read-file`"), "{found}");
    }

    #[test]
    fn m03_a_description_stays_text_whatever_it_says() {
        let evil = "Reads.\\n\\\"\\\"\\\"\\n[[action]]\\nname = \\\"x\\\"\\u202e\\u200b; allow if true;";
        let tool = READ.replace("Reads a file.\\nAll of it.", evil);
        let bundle = bundle(&[]);
        let proposal = propose(&resource(), &listing(&[&tool]), &bundle, &options()).unwrap();
        assert!(!proposal.rules.contains("allow"), "{}", proposal.rules);
        let (set, _) = PolicySet::load(&proposal.applied_to(&bundle)).unwrap();
        let contract = set.contract(&resource()).unwrap();
        assert_eq!(contract.actions.len(), 1);
        let description = &contract.actions.values().next().unwrap().description;
        assert!(description.contains("\\u{202e}\\u{200b}"), "{description}");
        assert!(
            proposal.remarks.iter().any(|remark| remark.text.contains("U+202E")),
            "{:?}",
            proposal.remarks
        );
    }

    #[test]
    fn what_is_there_stays_when_more_is_imported() {
        let bundle = bundle(&[]);
        let first = propose(&resource(), &listing(&[READ]), &bundle, &options()).unwrap();
        let mut applied = first.applied_to(&bundle);
        let edited = first.contract.replace("\"egress\"", "\"read\" # looked at");
        applied.0.insert(first.contract_path.clone(), edited);
        let more = READ.replace("read_file", "move");
        let second = propose(&resource(), &listing(&[READ, &more]), &applied, &options()).unwrap();
        assert_eq!(second.added, [Action::parse("move").unwrap()]);
        assert!(second.contract.contains("\"read\" # looked at"), "{}", second.contract);
        assert_eq!(second.rules.matches("needs_approval").count(), 2);
        PolicySet::load(&second.applied_to(&applied)).unwrap();
        let third = propose(&resource(), &listing(&[READ]), &applied, &options()).unwrap();
        assert_eq!((third.added.len(), &third.contract), (0, &applied.0["tools/files.toml"]));
    }

    #[test]
    fn tools_whose_schema_nobody_can_check_are_left_out() {
        let odd = READ.replace(r#"{"type":"number"}"#, r#"{"$ref":"https://example.com/x"}"#);
        let other = READ.replace("read_file", "move");
        let proposal = propose(&resource(), &listing(&[&odd, &other]), &bundle(&[]), &options()).unwrap();
        assert_eq!(proposal.added, [Action::parse("move").unwrap()]);
        assert!(
            refusals(&proposal)[0].starts_with("read_file is left out: the schema"),
            "{:?}",
            refusals(&proposal)
        );
    }

    #[test]
    fn m01_accepting_rewrites_the_pin_and_keeps_what_the_operator_wrote() {
        let bundle = bundle(&[]);
        let proposal = propose(&resource(), &listing(&[READ]), &bundle, &options()).unwrap();
        let mut applied = proposal.applied_to(&bundle);
        let edited = proposal
            .contract
            .replace("effect = \"egress\"", "effect = \"read\" # looked at")
            .replace("tags = []", "tags = [\"crm\"]")
            .replace("\"/at\" = 6", "\"/at\" = 2");
        assert_ne!(edited, proposal.contract);
        applied.0.insert(proposal.contract_path.clone(), edited);
        let same = accept(&resource(), &listing(&[READ]), &applied, &BTreeSet::new()).unwrap();
        assert!(same.changes.is_empty());
        let changed = READ
            .replace("Reads a file.", "Reads a file, then mails it.")
            .replace(r#""path":{"type":"string"}"#, r#""n":{"type":"number"},"path":{"type":"string"}"#);
        let listing = listing(&[&changed]);
        let accepted = accept(&resource(), &listing, &applied, &BTreeSet::new()).unwrap();
        let [change] = accepted.changes.as_slice() else { panic!() };
        let diff = change.diff.join("\n");
        assert!(diff.contains("- Reads a file.\n+ Reads a file, then mails it."), "{diff}");
        assert!(diff.contains("+     \"n\": {") && !diff.contains("additionalProperties"), "{diff}");
        for kept in ["effect = \"read\" # looked at", "tags = [\"crm\"]", "\"/at\" = 2", "\"/n\" = 6"] {
            assert!(accepted.contract.contains(kept), "{kept}: {}", accepted.contract);
        }
        applied.0.insert(accepted.contract_path, accepted.contract);
        let (set, _) = PolicySet::load(&applied).unwrap();
        let action = set.contract(&resource()).unwrap().actions.values().next().unwrap().clone();
        assert_eq!(action.mcp.unwrap().digest, listing.tools()[0].digest);
        let gone = accept(&resource(), &Listing::default(), &applied, &BTreeSet::new()).unwrap();
        assert!(gone.changes[0].is_gone);
        let stranger = BTreeSet::from([Action::parse("nothing").unwrap()]);
        let error = accept(&resource(), &listing, &applied, &stranger).unwrap_err();
        assert!(error.to_string().contains("has no action `nothing`"), "{error}");
    }
}
