//! Tools of MCP servers: how a contract names one, what pins it, and which names could be taken for one another.
//!
//! A server is one resource, and each of its tools an action of it. The contract says by which name the server knows
//! the tool and what it said of it when an operator accepted it. Whatever a server says later counts for nothing: it
//! is compared with the pin, and a difference takes the tool out of use (threat M01).

use std::{collections::BTreeMap, fmt};

use crate::{
    contract::ToolContract, diagnostic::Diagnostic, digest::Digest, ids::Resource, json::Value,
    settings::Section,
};

/// Longest name of a tool, in bytes.
pub const TOOL_NAME_BYTES_MAX: usize = 128;

/// What of a listed tool is pinned: all that a model is shown of it, and what it says of its own effects.
pub const PINNED: [&str; 6] = ["annotations", "description", "inputSchema", "name", "outputSchema", "title"];

/// A tool as its MCP server names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ToolName(String);

impl ToolName {
    /// Checks a name: 1 to 128 of `A-Z a-z 0-9 _ - . /`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte);
        if text.is_empty() || text.len() > TOOL_NAME_BYTES_MAX {
            return Err("a tool's name has 1 to 128 characters");
        }
        if !text.bytes().all(allowed) {
            return Err("a tool's name is made of letters, digits, `_`, `-`, `.` and `/`, all ASCII");
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is left of a name when everything is taken away that a reader, or a model, could overlook: case,
    /// separators, and characters that resemble another one.
    #[must_use]
    pub fn look(&self) -> String {
        let letters = self.0.chars().filter(char::is_ascii_alphanumeric).map(|letter| {
            match letter.to_ascii_lowercase() {
                '0' => 'o',
                '1' | 'i' => 'l',
                '5' => 's',
                other => other,
            }
        });
        letters.collect::<String>().replace("rn", "m").replace("vv", "w")
    }
}

impl fmt::Display for ToolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for ToolName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// What a contract says of the tool behind an action: which one it is, and how it looked when it was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTool {
    /// The server's own name of it.
    pub name: ToolName,
    /// What it was when an operator accepted it, by [`tool_digest`].
    pub digest: Digest,
}

impl UpstreamTool {
    /// `mcp = { tool = "…", digest = "…" }` of an action.
    pub(crate) fn read(action: &mut Section<'_, '_>) -> Option<Self> {
        let mut section = action.optional_table("mcp")?;
        let name: Option<ToolName> = section.required("tool", "\"create_issue\"");
        let digest: Option<DigestText> =
            section.required("digest", "\"…\", as `writ tools import` writes it");
        section.finish(&["tool", "digest"]);
        Some(Self { name: name?, digest: digest?.0 })
    }
}

struct DigestText(Digest);

impl std::str::FromStr for DigestText {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Digest::parse(text).map(Self)
    }
}

/// The digest of a tool as a server lists it (MCP, `Tool` of `tools/list`): name, title, description, schemas and
/// annotations. Members the server adds beyond those, such as `_meta`, reach no model and are left out.
#[must_use]
pub fn tool_digest(listed: &Value) -> Digest {
    let pinned: Value = PINNED.iter().filter_map(|key| Some((*key, listed.get(key)?.clone()))).collect();
    Digest::of("writ/v1/mcp-tool", &[pinned.to_string().as_bytes()])
}

/// Tools that could be taken for one another: the same name, or one that looks the same, on two servers or twice on
/// one (threat M02).
pub(crate) fn look_alikes(contracts: &BTreeMap<Resource, ToolContract>) -> Vec<Diagnostic> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut findings = Vec::new();
    for (resource, contract) in contracts {
        for (action, declared) in &contract.actions {
            let Some(tool) = &declared.mcp else { continue };
            let offered = offered_name(action.as_str(), &tool.name);
            let right = format!("{resource}:{action}");
            let Ok(name) = ToolName::parse(&offered) else { continue };
            if let Some(other) = seen.get(&name.look()) {
                let message =
                    format!("`{right}` is offered as `{offered}`, which can be taken for `{other}`");
                let help =
                    "give the action a name of its own, which is then what agents see, or leave the tool out";
                findings.push(Diagnostic::in_file("tools", message).help(help));
            } else {
                seen.insert(name.look(), right);
            }
        }
    }
    findings
}

/// The name agents see: the server's own, unless the operator named the action otherwise.
#[must_use]
pub fn offered_name(action: &str, tool: &ToolName) -> String {
    if action == id_of(tool.as_str()) { tool.to_string() } else { action.to_owned() }
}

/// A name in the grammar of ids, as far as its letters go: lower case, and `-` for what that grammar has not.
#[must_use]
pub fn id_of(tool: &str) -> String {
    let lower = tool.chars().map(|letter| match letter.to_ascii_lowercase() {
        letter @ ('a'..='z' | '0'..='9' | '_' | '-') => letter,
        _ => '-',
    });
    lower.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ToolName {
        ToolName::parse(text).unwrap()
    }

    #[test]
    fn m02_names_that_look_alike_have_one_look() {
        for (a, b) in [
            ("read_file", "Read-File"),
            ("read_file", "readFile"),
            ("list_orders", "1ist_orders"),
            ("send_invoice", "send_1nv0ice"),
            ("form.get", "forrn_get"),
        ] {
            assert_eq!(name(a).look(), name(b).look(), "{a} {b}");
        }
        assert_ne!(name("read_file").look(), name("read_files").look());
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for text in ["", "read file", "rеad", "a\u{200b}b", &"x".repeat(129)] {
            assert!(ToolName::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn m01_whatever_a_model_is_shown_is_pinned() {
        let tool = |change: &str, to: &str| {
            let text = r#"{"annotations":{"readOnlyHint":true},"description":"d","inputSchema":{"type":"object"},"name":"n","outputSchema":{"type":"object"},"title":"t"}"#;
            tool_digest(&Value::parse(&text.replacen(change, to, 1)).unwrap())
        };
        let same = tool("", "");
        for (change, to) in [
            ("true", "false"),
            (r#""d""#, r#""d ""#),
            (r#"{"type":"object"}"#, r#"{"type":"object","properties":{}}"#),
            (r#""n""#, r#""m""#),
            (r#","outputSchema":{"type":"object"}"#, ""),
            (r#""t""#, r#""u""#),
        ] {
            assert_ne!(tool(change, to), same, "{change}");
        }
        assert_eq!(tool(r#""title""#, r#""_meta":{"x":1},"title""#), same);
    }

    #[test]
    fn agents_see_the_servers_name_or_the_operators() {
        assert_eq!(offered_name("createissue", &name("createIssue")), "createIssue");
        assert_eq!(offered_name("repo-issue-create", &name("repo/issue.create")), "repo/issue.create");
        assert_eq!(offered_name("gh_search", &name("search")), "gh_search");
    }
}
