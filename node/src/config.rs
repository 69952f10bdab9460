//! `writ.toml` of a node: read whole, every fault at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use writ_common::{
    datalog::Span,
    diagnostic::Diagnostics,
    fresh::FreshBounds,
    ids::{NodeId, Resource, ResourceKind, TenantId},
    keys::PublicKey,
    settings::{Document, Section},
    time::Millis,
};
use writ_journal::Sync;

use crate::tools::ToolKind;

/// A node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The tenant it serves.
    pub tenant: TenantId,
    /// Its name.
    pub node: NodeId,
    /// The pinned offline root.
    pub root: PublicKey,
    /// The key that signs records and receipts.
    pub key_file: PathBuf,
    /// The journal's folder.
    pub journal: PathBuf,
    /// When a journal write counts as written.
    pub sync: Sync,
    /// Server addresses.
    pub bus_urls: Vec<String>,
    /// The NATS user's seed.
    pub bus_user_file: PathBuf,
    /// Root certificate for TLS.
    pub bus_ca_file: Option<PathBuf>,
    /// Bounds on staleness and clocks.
    pub fresh: FreshBounds,
    /// What it serves.
    pub tools: BTreeMap<Resource, ToolKind>,
}

impl NodeConfig {
    /// Reads a configuration. Relative paths are relative to `base`.
    ///
    /// # Errors
    /// Every finding.
    pub fn read(
        file: &str,
        text: &str,
        base: &Path,
        overrides: &BTreeMap<String, String>,
    ) -> Result<Self, Diagnostics> {
        let document = Document::new(file, text, overrides);
        let mut root = document.root();
        let path = |text: String| base.join(text);
        let tenant: Option<TenantId> = root.required("tenant", "\"acme\"");
        let mut node = root.table("node");
        let name: Option<NodeId> = node.required("name", "\"node-1\"");
        let root_key: Option<PublicKeyText> = node.required("root_key", "\"ed25519:…\"");
        let key_file = node.text("key_file", "\"node.key\"").map(path);
        let journal = node.text("journal", "\"journal\"").map(path);
        let sync: Option<SyncText> = node.optional("sync");
        let fresh = read_fresh(node.table("freshness"));
        node.finish(&["name", "root_key", "key_file", "journal", "sync", "freshness"]);
        let mut bus = root.table("bus");
        let bus_urls: Vec<String> = bus.list("urls");
        if bus_urls.is_empty() {
            let finding = document.at(bus.span(), "`bus.urls` is missing");
            document.note(finding.help("add `urls = [\"nats://127.0.0.1:4222\"]` under `[bus]`"));
        }
        let bus_user_file = bus.text("user_file", "\"node.nkey\"").map(path);
        let bus_ca_file = bus.optional_text("ca_file").map(path);
        bus.finish(&["urls", "user_file", "ca_file"]);
        let mut tools = BTreeMap::new();
        for mut section in root.tables("tool") {
            let span = section.span();
            let resource: Option<Resource> = section.required("resource", "\"tool.crm\"");
            let Some((resource, kind)) = resource.zip(read_tool(&document, section, base)) else { continue };
            check_resource(&document, span, &resource, &tools);
            tools.insert(resource, kind);
        }
        root.finish(&["tenant", "node", "bus", "tool"]);
        let findings = document.into_findings();
        if findings.has_errors() {
            return Err(findings);
        }
        let complete = || {
            Some(Self {
                tenant: tenant?,
                node: name?,
                root: root_key?.0,
                key_file: key_file?,
                journal: journal?,
                sync: sync.map_or(Sync::Kernel, |sync| sync.0),
                bus_urls,
                bus_user_file: bus_user_file?,
                bus_ca_file,
                fresh,
                tools,
            })
        };
        complete().ok_or(findings)
    }
}

fn check_resource(
    document: &Document<'_>,
    span: Span,
    resource: &Resource,
    known: &BTreeMap<Resource, ToolKind>,
) {
    if resource.kind() != ResourceKind::Tool {
        document.note(
            document.at(span, format!("`{resource}` is no tool")).help("tools are named `tool.<name>`"),
        );
    }
    if known.contains_key(resource) {
        document.note(document.at(span, format!("`{resource}` is configured twice")));
    }
}

/// How old a call may be when it arrives.
const CALL_AGE_MAX: Millis = Millis::from_secs(30);
/// How long the stream surely remembers a call: its window of duplicates less time on the way.
const REPLAY_MEMORY: Millis = Millis::from_secs(110);

fn read_fresh(mut section: Section<'_, '_>) -> FreshBounds {
    let default = FreshBounds::default();
    let mut seconds = |key: &str, default: Millis| {
        section.optional_integer(key, 1..=3_600).map_or(default, Millis::from_secs)
    };
    let bounds = FreshBounds {
        effects: seconds("effects_seconds", default.effects),
        reads: seconds("reads_seconds", default.reads),
        skew: seconds("skew_seconds", default.skew),
    };
    let longest = CALL_AGE_MAX.0 + 2 * bounds.skew.0 + bounds.longest().0;
    if longest > REPLAY_MEMORY.0 {
        let document = section.document();
        let message = format!(
            "a call could act {} after it was signed, and the stream remembers calls for {REPLAY_MEMORY} only",
            Millis(longest)
        );
        let help = format!("{CALL_AGE_MAX} + 2 x skew + the longer of effects and reads must not be more");
        document.note(document.at(section.span(), message).help(help));
    }
    section.finish(&["effects_seconds", "reads_seconds", "skew_seconds"]);
    bounds
}

fn read_tool(document: &Document<'_>, mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    const KINDS: [&str; 2] = ["maildir", "sqlite"];
    let span = section.span_of("kind");
    let kind = section.text("kind", "\"sqlite\"");
    match kind.as_deref() {
        Some("maildir") => {
            let folder = section.text("folder", "\"drafts\"").map(|path| base.join(path));
            let outbox = section.optional_text("outbox").map(|path| base.join(path));
            let from = section.text("from", "\"support@example.com\"");
            let tool = folder.zip(from).map(|(folder, from)| ToolKind::Maildir { folder, outbox, from });
            section.finish(&["resource", "kind", "folder", "outbox", "from"]);
            tool
        }
        Some("sqlite") => {
            let file = section.text("file", "\"crm.db\"").map(|path| base.join(path));
            let rows_max = section.optional_integer("rows_max", 1..=100_000).unwrap_or(1_000);
            let timeout = section.optional_integer("timeout_seconds", 1..=600).unwrap_or(10);
            section.finish(&["resource", "kind", "file", "rows_max", "timeout_seconds"]);
            file.map(|file| ToolKind::Sqlite {
                file,
                rows_max: usize::try_from(rows_max).unwrap_or(usize::MAX),
                timeout: Millis::from_secs(timeout),
            })
        }
        Some(other) => {
            let finding = document.at(span, format!("there is no tool of kind `{other}`"));
            let otherwise = format!("there are {}", KINDS.join(", "));
            document.note(finding.help(writ_common::diagnostic::suggest(other, KINDS, &otherwise)));
            None
        }
        None => None,
    }
}

struct PublicKeyText(PublicKey);

impl std::str::FromStr for PublicKeyText {
    type Err = writ_common::keys::InvalidKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PublicKey::parse(text).map(Self)
    }
}

struct SyncText(Sync);

impl std::str::FromStr for SyncText {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "always" => Ok(Self(Sync::Always)),
            "kernel" => Ok(Self(Sync::Kernel)),
            _ => Err("must be `always` (survives power loss) or `kernel` (survives the process)"),
        }
    }
}

/// The resources a node serves, for messages.
#[must_use]
pub fn names(tools: &BTreeMap<Resource, ToolKind>) -> BTreeSet<&str> {
    tools.keys().map(Resource::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NodeConfig, Diagnostics> {
        NodeConfig::read("writ.toml", text, Path::new("/etc/writ"), &BTreeMap::new())
    }

    const GOOD: &str = r#"
        tenant = "acme"
        [node]
        name = "node-1"
        root_key = "ed25519:d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
        key_file = "node.key"
        journal = "journal"
        sync = "always"
        [bus]
        urls = ["nats://127.0.0.1:4222"]
        user_file = "node.nkey"
        [[tool]]
        resource = "tool.crm"
        kind = "sqlite"
        file = "crm.db"
        [[tool]]
        resource = "tool.mail"
        kind = "maildir"
        folder = "/var/mail/drafts"
        from = "support@example.com"
    "#;

    #[test]
    fn a_whole_configuration() {
        let config = read(GOOD).unwrap();
        assert_eq!(config.sync, Sync::Always);
        assert_eq!(config.key_file, Path::new("/etc/writ/node.key"));
        assert_eq!(names(&config.tools), ["tool.crm", "tool.mail"].into());
    }

    #[test]
    fn every_fault_at_once() {
        let text = GOOD
            .replace("tenant = \"acme\"", "tenant = \"Acme\"")
            .replace("kind = \"sqlite\"", "kind = \"sqlit\"")
            .replace("sync = \"always\"", "sync = \"sometimes\"")
            .replace("urls = [\"nats://127.0.0.1:4222\"]", "url = \"x\"");
        let findings = read(&text).unwrap_err().to_string();
        for expected in [
            "tenant `Acme` may only hold",
            "`node.sync`: must be `always`",
            "`bus.urls` is missing",
            "unknown key `bus.url`",
            "did you mean `sqlite`?",
        ] {
            assert!(findings.contains(expected), "{expected} not in\n{findings}");
        }
    }
}
