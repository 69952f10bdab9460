//! `writ.toml` of a node: read whole, every fault at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
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
use writ_journal::{JournalLimits, Sync};

use crate::{
    inspect::{InspectorSettings, read_inspector},
    tools::{
        FilesSettings, HttpSettings, PostgresServer, PostgresSettings, RetrievalSettings, SmtpSecurity,
        SmtpSettings, ToolKind,
        http_target::{Host, Reach},
        read_mcp,
        retrieval::ANSWER_CHUNKS_MAX,
    },
};

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
    /// Bounds of the journal.
    pub journal_limits: JournalLimits,
    /// Server addresses.
    pub bus_urls: Vec<String>,
    /// The NATS user's seed.
    pub bus_user_file: PathBuf,
    /// Root certificate for TLS.
    pub bus_ca_file: Option<PathBuf>,
    /// Where it answers probes and shows its numbers, if anywhere.
    pub http: Option<SocketAddr>,
    /// Bounds on staleness and clocks.
    pub fresh: FreshBounds,
    /// What it serves.
    pub tools: BTreeMap<Resource, ToolKind>,
    /// Who looks at texts on the way.
    pub inspectors: Vec<InspectorSettings>,
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
        let sync: Option<Sync> = node.optional("sync");
        let fresh = read_fresh(node.table("freshness"));
        node.finish(&["name", "root_key", "key_file", "journal", "sync", "freshness"]);
        let journal_limits = JournalLimits::read(root.table("journal"));
        let mut bus = root.table("bus");
        let bus_urls: Vec<String> = bus.list("urls");
        if bus_urls.is_empty() {
            let finding = document.at(bus.span(), "`bus.urls` is missing");
            document.note(finding.help("add `urls = [\"nats://127.0.0.1:4222\"]` under `[bus]`"));
        }
        let bus_user_file = bus.text("user_file", "\"node.nkey\"").map(path);
        let bus_ca_file = bus.optional_text("ca_file").map(path);
        bus.finish(&["urls", "user_file", "ca_file"]);
        let mut http_section = root.table("http");
        let http = http_section.optional("listen");
        http_section.finish(&["listen"]);
        let mut tools = BTreeMap::new();
        for mut section in root.tables("tool") {
            let span = section.span();
            let resource: Option<Resource> = section.required("resource", "\"tool.crm\"");
            let Some((resource, kind)) = resource.zip(read_tool(&document, section, base)) else { continue };
            check_resource(&document, span, &resource, &tools);
            tools.insert(resource, kind);
        }
        let mut inspectors: Vec<InspectorSettings> = Vec::new();
        for section in root.tables("inspector") {
            let known = inspectors.iter().map(|one| one.inspector.name.clone()).collect();
            inspectors.extend(read_inspector(&document, section, base, &known));
        }
        check_deadlines(&document, &fresh, &inspectors);
        root.finish(&["tenant", "node", "journal", "bus", "http", "tool", "inspector"]);
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
                sync: sync.unwrap_or(Sync::Kernel),
                journal_limits,
                bus_urls,
                bus_user_file: bus_user_file?,
                bus_ca_file,
                http,
                fresh,
                tools,
                inspectors,
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

/// An inspection delays a call, and the stream has to remember it for so much longer.
fn check_deadlines(document: &Document<'_>, fresh: &FreshBounds, inspectors: &[InspectorSettings]) {
    let slowest = inspectors.iter().map(|one| one.inspector.deadline.0).max().unwrap_or_default();
    let longest = CALL_AGE_MAX.0 + 2 * fresh.skew.0 + fresh.longest().0;
    if slowest > 0 && longest <= REPLAY_MEMORY.0 && longest + slowest > REPLAY_MEMORY.0 {
        let message = format!(
            "with its inspection a call could act {} after it was signed, and the stream remembers calls for \
             {REPLAY_MEMORY} only",
            Millis(longest + slowest)
        );
        let help = "make `deadline_ms` of the inspectors, or the times of `[node.freshness]`, shorter";
        document.note(document.at(Span::default(), message).help(help));
    }
}

fn read_tool(document: &Document<'_>, mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    const KINDS: [&str; 8] = ["files", "http", "maildir", "mcp", "postgres", "retrieval", "smtp", "sqlite"];
    let span = section.span_of("kind");
    let kind = section.text("kind", "\"sqlite\"");
    match kind.as_deref() {
        Some("files") => read_files(section, base),
        Some("http") => read_http(section, base),
        Some("maildir") => {
            let folder = section.text("folder", "\"drafts\"").map(|path| base.join(path));
            let outbox = section.optional_text("outbox").map(|path| base.join(path));
            let from = section.text("from", "\"support@example.com\"");
            let tool = folder.zip(from).map(|(folder, from)| ToolKind::Maildir { folder, outbox, from });
            section.finish(&["resource", "kind", "folder", "outbox", "from"]);
            tool
        }
        Some("mcp") => read_mcp(section, base),
        Some("postgres") => read_postgres(section, base),
        Some("retrieval") => {
            let file = section.text("file", "\"documents.db\"").map(|path| base.join(path));
            let chunks_max = section.optional_integer("chunks_max", 1..=ANSWER_CHUNKS_MAX as u64);
            let timeout = section.optional_integer("timeout_seconds", 1..=600).unwrap_or(10);
            section.finish(&["resource", "kind", "file", "chunks_max", "timeout_seconds"]);
            file.map(|file| {
                let timeout = Millis::from_secs(timeout);
                ToolKind::Retrieval(RetrievalSettings { file, chunks_max: count(chunks_max, 8), timeout })
            })
        }
        Some("smtp") => read_smtp(section, base),
        Some("sqlite") => {
            let file = section.text("file", "\"crm.db\"").map(|path| base.join(path));
            let rows_max = section.optional_integer("rows_max", 1..=100_000);
            let timeout = section.optional_integer("timeout_seconds", 1..=600).unwrap_or(10);
            section.finish(&["resource", "kind", "file", "rows_max", "timeout_seconds"]);
            file.map(|file| ToolKind::Sqlite {
                file,
                rows_max: count(rows_max, 1_000),
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

fn read_files(mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    let root = section.text("root", "\"reports\"").map(|path| base.join(path));
    let is_writable = section.optional_bool("writable").unwrap_or(false);
    let bytes_max = section.optional_integer("bytes_max", 1..=512 * 1024);
    let entries_max = section.optional_integer("entries_max", 1..=5_000);
    section.finish(&["resource", "kind", "root", "writable", "bytes_max", "entries_max"]);
    Some(ToolKind::Files(FilesSettings {
        root: root?,
        is_writable,
        bytes_max: count(bytes_max, 256 * 1024),
        entries_max: count(entries_max, 1_000),
    }))
}

fn read_http(mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    let public: Vec<PublicHost> = section.list("hosts");
    let loopback: Vec<LoopbackHost> = section.list("loopback_hosts");
    let hosts: Vec<Host> = public
        .into_iter()
        .map(|PublicHost(host)| host)
        .chain(loopback.into_iter().map(|LoopbackHost(host)| host))
        .collect();
    if !section.has("hosts") && !section.has("loopback_hosts") {
        let document = section.document();
        let finding = document.at(section.span(), "`tool.hosts` is missing");
        document.note(finding.help("add `hosts = [\"api.example.com\"]`: the hosts that may be reached"));
    }
    let ca_file = section.optional_text("ca_file").map(|path| base.join(path));
    let bytes_max = section.optional_integer("bytes_max", 1..=512 * 1024);
    let timeout = section.optional_integer("timeout_seconds", 1..=120).unwrap_or(10);
    section.finish(&[
        "resource",
        "kind",
        "hosts",
        "loopback_hosts",
        "ca_file",
        "bytes_max",
        "timeout_seconds",
    ]);
    let bytes_max = count(bytes_max, 256 * 1024);
    Some(ToolKind::Http(HttpSettings { hosts, ca_file, bytes_max, timeout: Millis::from_secs(timeout) }))
}

fn read_postgres(mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    let span = section.span();
    let host: Option<LocalHost> = section.optional("host");
    let socket = section.optional_text("socket").map(|path| base.join(path));
    if section.has("host") == section.has("socket") {
        let document = section.document();
        let finding = document.at(span, "either `tool.host` or `tool.socket` says where the server is");
        document.note(finding.help("add `socket = \"/var/run/postgresql\"` or `host = \"127.0.0.1\"`"));
    }
    let port = section.optional_integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
    let database = section.text("database", "\"crm\"");
    let user = section.text("user", "\"crm_reader\"");
    let password_file = section.optional_text("password_file").map(|path| base.join(path));
    let schema = section.optional("schema").map_or_else(|| "public".to_owned(), |SchemaName(name)| name);
    let rows_max = section.optional_integer("rows_max", 1..=100_000);
    let timeout = section.optional_integer("timeout_seconds", 1..=600).unwrap_or(10);
    section.finish(&[
        "resource",
        "kind",
        "host",
        "socket",
        "port",
        "database",
        "user",
        "password_file",
        "schema",
        "rows_max",
        "timeout_seconds",
    ]);
    let server = match (host, socket) {
        (Some(LocalHost(address)), None) => PostgresServer::Loopback(address),
        (None, Some(folder)) => PostgresServer::Socket(folder),
        _ => return None,
    };
    Some(ToolKind::Postgres(PostgresSettings {
        server,
        port: port.unwrap_or(5432),
        database: database?,
        user: user?,
        password_file,
        schema,
        rows_max: count(rows_max, 1_000),
        timeout: Millis::from_secs(timeout),
    }))
}

struct LocalHost(IpAddr);

impl std::str::FromStr for LocalHost {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = if text == "localhost" { Some(Ipv4Addr::LOCALHOST.into()) } else { text.parse().ok() };
        let address = address.filter(IpAddr::is_loopback).map(Self);
        address.ok_or(
            "must be `127.0.0.1`, `::1` or `localhost`: there is no TLS to PostgreSQL, so the server has to be on this \
             machine; reach another one through a tunnel or proxy that ends here",
        )
    }
}

struct SchemaName(String);

impl std::str::FromStr for SchemaName {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_system = text.starts_with("pg_") || text == "information_schema";
        if text.is_empty() || text.len() > 63 || text.contains(['.', '"', '\0']) || is_system {
            return Err(
                "must be the name of one schema of data, as PostgreSQL keeps it (`public`), without quotes",
            );
        }
        Ok(Self(text.to_owned()))
    }
}

fn read_smtp(mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    let span = section.span();
    let host = section.text("host", "\"smtp.example.com\"");
    let security = section.optional("security").unwrap_or(SmtpSecurity::Tls);
    let port = section.optional_integer("port", 1..=65_535).and_then(|port| u16::try_from(port).ok());
    let from = section.text("from", "\"support@example.com\"");
    let user = section.optional_text("user");
    let password_file = section.optional_text("password_file").map(|path| base.join(path));
    let ca_file = section.optional_text("ca_file").map(|path| base.join(path));
    let timeout = section.optional_integer("timeout_seconds", 1..=120).unwrap_or(30);
    let document = section.document();
    if user.is_some() != password_file.is_some() {
        let finding = document.at(span, "`tool.user` and `tool.password_file` go together");
        document.note(finding.help("the password stands in a file of its own, with mode 0600"));
    }
    let is_local = matches!(host.as_deref(), Some("localhost" | "127.0.0.1" | "::1") | None);
    if security == SmtpSecurity::None && (!is_local || user.is_some()) {
        let message = "without TLS only a server on this machine is spoken to, and without a password";
        document.note(document.at(span, message).help("set `security` to `tls` or `starttls`"));
    }
    section.finish(&[
        "resource",
        "kind",
        "host",
        "port",
        "security",
        "from",
        "user",
        "password_file",
        "ca_file",
        "timeout_seconds",
    ]);
    Some(ToolKind::Smtp(SmtpSettings {
        host: host?,
        port: port.unwrap_or_else(|| security.port()),
        security,
        from: from?,
        login: user.zip(password_file),
        ca_file,
        timeout: Millis::from_secs(timeout),
    }))
}

struct PublicHost(Host);

impl std::str::FromStr for PublicHost {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Host::parse(text, Reach::Public).map(Self)
    }
}

struct LoopbackHost(Host);

impl std::str::FromStr for LoopbackHost {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Host::parse(text, Reach::Loopback).map(Self)
    }
}

fn count(number: Option<u64>, default: usize) -> usize {
    number.and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
}

struct PublicKeyText(PublicKey);

impl std::str::FromStr for PublicKeyText {
    type Err = writ_common::keys::InvalidKey;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        PublicKey::parse(text).map(Self)
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
        assert_eq!((config.sync, config.journal_limits), (Sync::Always, JournalLimits::new(2_048, 7)));
        let bounded = format!("{GOOD}\n[journal]\nmebibytes_max = 64\nkeep_days = 1\n");
        assert_eq!(read(&bounded).unwrap().journal_limits, JournalLimits::new(64, 1));
        let error = read(&bounded.replace("64", "31")).unwrap_err().to_string();
        assert!(error.contains("mebibytes_max"), "{error}");
        assert_eq!(config.key_file, Path::new("/etc/writ/node.key"));
        assert_eq!(names(&config.tools), ["tool.crm", "tool.mail"].into());
    }

    #[test]
    fn tools_with_their_settings() {
        let tools = r#"
        [[tool]]
        resource = "tool.files"
        kind = "files"
        root = "reports"
        writable = true
        [[tool]]
        resource = "tool.web"
        kind = "http"
        hosts = ["api.example.com", "files.example.com:8443"]
        loopback_hosts = ["127.0.0.1:8080"]
        [[tool]]
        resource = "tool.letters"
        kind = "smtp"
        host = "smtp.example.com"
        security = "starttls"
        from = "support@example.com"
        user = "support"
        password_file = "smtp.password"
        [[tool]]
        resource = "tool.orders"
        kind = "postgres"
        socket = "run"
        database = "shop"
        user = "reader"
        schema = "Sales"
        [[tool]]
        resource = "tool.documents"
        kind = "retrieval"
        file = "documents.db"
        chunks_max = 5
        "#;
        let config = read(&format!("{GOOD}{tools}")).unwrap_or_else(|findings| panic!("{findings}"));
        let kinds: Vec<String> = config.tools.values().map(|kind| format!("{kind:?}")).collect();
        let whole = kinds.join("\n");
        for expected in [
            "root: \"/etc/writ/reports\", is_writable: true",
            "name: \"files.example.com\", port: 8443, reach: Public",
            "name: \"127.0.0.1\", port: 8080, reach: Loopback",
            "port: 587, security: StartTls",
            "/etc/writ/smtp.password",
            "Socket(\"/etc/writ/run\"), port: 5432, database: \"shop\"",
            "file: \"/etc/writ/documents.db\", chunks_max: 5, timeout: Millis(10000)",
        ] {
            assert!(whole.contains(expected), "{expected} not in\n{whole}");
        }
        for (from, to, expected) in [
            ("\"api.example.com\"", "\"https://api.example.com\"", "a host is a name in small letters"),
            ("\"127.0.0.1:8080\"", "\"10.0.0.1:8080\"", "not an address"),
            ("hosts = [\"api.example.com\", \"files.example.com:8443\"]", "", ""),
            ("\"starttls\"", "\"none\"", "only a server on this machine"),
            ("\"starttls\"", "\"ssl\"", "must be `tls`, `starttls`"),
            ("password_file = \"smtp.password\"", "password = \"x\"", "unknown key `tool.password`"),
            ("user = \"support\"", "", "go together"),
            ("root = \"reports\"", "folder = \"x\"", "`tool.root` is missing"),
            ("socket = \"run\"", "", "either `tool.host` or `tool.socket`"),
            ("socket = \"run\"", "socket = \"run\"\nhost = \"::1\"", "either `tool.host` or `tool.socket`"),
            ("socket = \"run\"", "host = \"10.0.0.5\"", "the server has to be on this machine"),
            ("socket = \"run\"", "host = \"db.example.com\"", "the server has to be on this machine"),
            ("chunks_max = 5", "chunks_max = 33", "from 1 to 32"),
            ("\"Sales\"", "\"pg_catalog\"", "one schema of data"),
            ("\"Sales\"", "\"a,b\\\".c\"", "one schema of data"),
        ] {
            let found = read(&format!("{GOOD}{}", tools.replacen(from, to, 1)));
            let found = found.err().map(|findings| findings.to_string()).unwrap_or_default();
            assert!(found.contains(expected), "{to}: {found}");
        }
    }

    #[test]
    fn mcp_servers_with_their_settings() {
        let tools = r#"
        [[tool]]
        resource = "tool.github"
        kind = "mcp"
        command = "npx"
        args = ["-y", "server"]
        env = { MODE = "read" }
        env_files = { GITHUB_TOKEN = "github.token" }
        env_inherit = ["SSL_CERT_FILE"]
        timeout_seconds = 20
        [[tool]]
        resource = "tool.search"
        kind = "mcp"
        url = "https://search.example.com/mcp"
        header_files = { Authorization = "search.token" }
        [[tool]]
        resource = "tool.beside"
        kind = "mcp"
        url = "http://127.0.0.1:9000/mcp"
        "#;
        let config = read(&format!("{GOOD}{tools}")).unwrap_or_else(|findings| panic!("{findings}"));
        let whole = format!("{:?}", config.tools);
        for expected in [
            "command: \"npx\", args: [\"-y\", \"server\"], folder: \"/etc/writ\"",
            "\"GITHUB_TOKEN\": File(\"/etc/writ/github.token\"), \"MODE\": Text(\"read\"), \"SSL_CERT_FILE\": Inherited",
            "timeout: Millis(20000), start_timeout: Millis(30000), bytes_max: 262144",
            "\"authorization\": \"/etc/writ/search.token\"",
        ] {
            assert!(whole.contains(expected), "{expected} not in\n{whole}");
        }
        for (from, to, expected) in [
            ("command = \"npx\"", "", "either `tool.command` or `tool.url`"),
            (
                "command = \"npx\"",
                "command = \"npx\"\nurl = \"https://x/\"",
                "either `tool.command` or `tool.url`",
            ),
            ("MODE = \"read\"", "MODE = 5", "`tool.env.MODE` must be a text"),
            ("MODE = \"read\"", "GITHUB_TOKEN = \"x\"", "the variable `GITHUB_TOKEN` is set twice"),
            ("MODE = \"read\"", "\"A=B\" = \"x\"", "`A=B` is no name of a variable"),
            ("env_inherit", "env_inherits", "did you mean `env_inherit`?"),
            ("timeout_seconds = 20", "timeout_seconds = 0", "from 1 to 600"),
            ("https://search", "http://search", "`http://` is for servers on this machine only"),
            ("https://search", "https://user:word@search", "credentials stand in `header_files`"),
            ("Authorization =", "Mcp-Session-Id =", "no header to be set here"),
            ("http://127.0.0.1", "http://127.0.0.1.example.com", "on this machine only"),
        ] {
            let found = read(&format!("{GOOD}{}", tools.replacen(from, to, 1)));
            let found = found.err().map(|findings| findings.to_string()).unwrap_or_default();
            assert!(found.contains(expected), "{to}: {found}");
        }
    }

    #[test]
    fn t02_an_inspection_is_no_longer_than_the_stream_remembers_a_call() {
        let inspector = "[[inspector]]\nname = \"x\"\nkind = \"builtin\"\ndirections = [\"tool_args\"]\ndeadline_ms = 10000\n";
        assert!(read(&format!("{GOOD}{inspector}")).is_ok());
        let slower = GOOD.replace("[bus]", "[node.freshness]\nreads_seconds = 61\n[bus]");
        assert!(read(&slower).is_ok());
        let findings = read(&format!("{slower}{inspector}")).unwrap_err().to_string();
        assert!(findings.contains("the stream remembers calls for"), "{findings}");
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
