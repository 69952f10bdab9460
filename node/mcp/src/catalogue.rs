//! The tools of a capability under the names that models see.

use std::collections::{BTreeMap, BTreeSet};

use rmcp::model::{JsonObject, Tool};
use writ_common::{capability::Right, mcp::ToolName};
use writ_sdk::{Offer, OfferedTool};

/// What stands between a tool's and an action's name where no MCP server gave a name: `crm__read`.
const SEPARATOR: &str = "__";

/// Whether what a tool returns is an answer of an MCP server, or any JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Any JSON.
    Json,
    /// Content blocks, as an MCP server gave them.
    Mcp,
}

/// A tool behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) right: Right,
    pub(crate) shape: Shape,
}

/// The tools of a capability, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue {
    entries: BTreeMap<String, Entry>,
    /// Names that more than one tool has, or could be taken to have: offered to nobody.
    ambiguous: BTreeSet<String>,
    tools: Vec<Tool>,
}

impl Catalogue {
    /// The catalogue of an offer.
    pub(crate) fn new(offer: &Offer) -> Self {
        let mut by_look: BTreeMap<String, Vec<&OfferedTool>> = BTreeMap::new();
        for tool in &offer.tools {
            by_look.entry(look(&name_of(tool))).or_default().push(tool);
        }
        let mut catalogue = Self::default();
        for same in by_look.into_values() {
            match same.as_slice() {
                [tool] => catalogue.insert(tool),
                several => catalogue.ambiguous.extend(several.iter().map(|tool| name_of(tool))),
            }
        }
        // One order, whatever names look like: what has not changed is the same list.
        catalogue.tools.sort_by(|a, b| a.name.cmp(&b.name));
        catalogue
    }

    fn insert(&mut self, offered: &OfferedTool) {
        let name = name_of(offered);
        // The broker's word: what it signed is a contract's schema, which is an object.
        let schema: JsonObject = serde_json::from_str(&offered.schema).unwrap_or_default();
        let mut tool = Tool::default();
        tool.name = name.clone().into();
        tool.description = Some(offered.description.clone().into());
        tool.input_schema = schema.into();
        self.tools.push(tool);
        let shape = if offered.mcp.is_some() { Shape::Mcp } else { Shape::Json };
        self.entries.insert(name, Entry { right: offered.right.clone(), shape });
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub(crate) fn is_ambiguous(&self, name: &str) -> bool {
        self.ambiguous.contains(name)
    }

    /// The tools, by name.
    pub(crate) fn tools(&self) -> &[Tool] {
        &self.tools
    }
}

fn name_of(tool: &OfferedTool) -> String {
    tool.mcp
        .clone()
        .unwrap_or_else(|| format!("{}{SEPARATOR}{}", tool.right.resource.name(), tool.right.action.as_str()))
}

fn look(name: &str) -> String {
    ToolName::parse(name).map_or_else(|_| name.to_owned(), |name| name.look())
}

#[cfg(test)]
mod tests {
    use writ_common::{digest::Digest, policy::PolicyRevision};

    use super::*;

    fn offered(right: &str, mcp: Option<&str>) -> OfferedTool {
        OfferedTool {
            right: Right::parse(right).unwrap(),
            mcp: mcp.map(str::to_owned),
            description: String::new(),
            effect: "read".to_owned(),
            schema: r#"{"type":"object"}"#.to_owned(),
        }
    }

    fn catalogue(tools: Vec<OfferedTool>) -> Catalogue {
        let revision = PolicyRevision(Digest::of("test", &[]));
        Catalogue::new(&Offer { revision, tools })
    }

    #[test]
    fn tools_have_their_servers_name_or_ours() {
        let catalogue = catalogue(vec![
            offered("tool.crm:read", None),
            offered("tool.github:createissue", Some("createIssue")),
        ]);
        let names: Vec<&str> = catalogue.tools().iter().map(|tool| tool.name.as_ref()).collect();
        assert_eq!(names, ["createIssue", "crm__read"]);
        assert_eq!(catalogue.get("createIssue").map(|entry| entry.shape), Some(Shape::Mcp));
        assert_eq!(catalogue.get("tool.crm:read"), None);
    }

    #[test]
    fn m02_names_that_can_be_taken_for_one_another_are_offered_to_nobody() {
        let catalogue = catalogue(vec![
            offered("tool.a:x", Some("read_file")),
            offered("tool.b:y", Some("readFile")),
            offered("tool.c:z", Some("other")),
        ]);
        assert_eq!(catalogue.tools().len(), 1);
        assert!(catalogue.is_ambiguous("read_file") && catalogue.is_ambiguous("readFile"));
        assert!(catalogue.get("readFile").is_none());
    }
}
