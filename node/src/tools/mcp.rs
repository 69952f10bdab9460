//! Settings of an MCP server behind a node: pure data and its reader. What connects to it is writ-upstream, a crate
//! of its own, so that nodes without MCP servers are built without a client for them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use reqwest::{Url, header::HeaderName};
use writ_common::{json::Value, settings::Section, time::Millis};

use super::ToolKind;

/// Largest result of a call, in bytes; what is larger has no room in one message of the bus.
pub const RESULT_BYTES_MAX: u64 = 512 * 1024;

/// Headers the protocol sets by itself, and those that say where a body ends.
const RESERVED_HEADERS: [&str; 9] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "last-event-id",
    "transfer-encoding",
    "upgrade",
];

/// An MCP server, and how long it may take for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpSettings {
    /// What is started or connected to.
    pub server: McpServer,
    /// How long a call may take.
    pub timeout: Millis,
    /// How long the server may take until its tools are listed.
    pub start_timeout: Millis,
    /// Largest result of a call, in bytes of JSON.
    pub bytes_max: usize,
}

/// Where an MCP server is (MCP 2025-11-25, Transports).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum McpServer {
    /// A program the node starts and speaks to over its standard input and output.
    Stdio {
        /// The program, by its path or by a name to be found in `PATH`.
        command: PathBuf,
        /// What it is started with.
        args: Vec<String>,
        /// Where it is started.
        folder: PathBuf,
        /// What its environment holds besides `PATH`, `HOME`, `LANG` and `TMPDIR`.
        env: BTreeMap<String, EnvValue>,
    },
    /// A server that is there already: streamable HTTP.
    Http {
        /// Its endpoint: https, or http on this machine.
        url: Url,
        /// Headers of every request, each in a private file.
        header_files: BTreeMap<String, PathBuf>,
        /// Certificates to trust instead of the system's.
        ca_file: Option<PathBuf>,
    },
}

/// Where a variable of a child's environment comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvValue {
    /// It stands in the configuration.
    Text(String),
    /// A private file holds it.
    File(PathBuf),
    /// The node's own environment holds it, if it does.
    Inherited,
}

/// Reads `[[tool]] kind = "mcp"`.
pub(crate) fn read_mcp(mut section: Section<'_, '_>, base: &Path) -> Option<ToolKind> {
    const COMMON: [&str; 5] = ["resource", "kind", "timeout_seconds", "start_seconds", "bytes_max"];
    let span = section.span();
    let timeout = section.optional_integer("timeout_seconds", 1..=600).unwrap_or(60);
    let start_timeout = section.optional_integer("start_seconds", 1..=600).unwrap_or(30);
    let bytes_max = section.optional_integer("bytes_max", 1..=RESULT_BYTES_MAX).unwrap_or(256 * 1024);
    if section.has("command") == section.has("url") {
        let document = section.document();
        let finding = document.at(span, "either `tool.command` or `tool.url` says which MCP server it is");
        document.note(finding.help("add `command = \"npx\"` with `args`, or `url = \"https://…/mcp\"`"));
    }
    let server = if section.has("url") {
        let server = read_http(&mut section, base);
        section.finish(&[COMMON.as_slice(), &["url", "header_files", "ca_file"]].concat());
        server
    } else {
        let server = read_stdio(&mut section, base);
        let keys = ["command", "args", "folder", "env", "env_files", "env_inherit"];
        section.finish(&[COMMON.as_slice(), &keys].concat());
        server
    };
    Some(ToolKind::Mcp(McpSettings {
        server: server?,
        timeout: Millis::from_secs(timeout),
        start_timeout: Millis::from_secs(start_timeout),
        bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
    }))
}

fn read_stdio(section: &mut Section<'_, '_>, base: &Path) -> Option<McpServer> {
    // A name without a folder is looked for in PATH; everything else is relative to writ.toml.
    let command = section.optional_text("command").map(|command| match command.contains('/') {
        true => base.join(command),
        false => PathBuf::from(command),
    });
    let args: Vec<String> = section.list("args");
    let folder = section.optional_text("folder").map_or_else(|| base.to_owned(), |path| base.join(path));
    let texts = read_texts(section, "env").into_iter().map(|(name, text)| (name, EnvValue::Text(text)));
    let mut env: BTreeMap<String, EnvValue> = texts.collect();
    let files = read_texts(section, "env_files").into_iter();
    let files: Vec<_> = files.map(|(name, file)| (name, EnvValue::File(base.join(file)))).collect();
    let inherited: Vec<String> = section.list("env_inherit");
    let inherited = inherited.into_iter().map(|name| (name, EnvValue::Inherited));
    let document = section.document();
    for (name, value) in files.into_iter().chain(inherited) {
        if env.insert(name.clone(), value).is_some() {
            let finding = document.at(section.span(), format!("the variable `{name}` is set twice"));
            document.note(finding.help("name it in one of `env`, `env_files` and `env_inherit`"));
        }
    }
    for name in env.keys().filter(|name| !is_variable(name)) {
        let finding = document.at(section.span(), format!("`{name}` is no name of a variable"));
        document.note(finding.help("letters, digits and `_`, not beginning with a digit"));
    }
    Some(McpServer::Stdio { command: command?, args, folder, env })
}

fn read_http(section: &mut Section<'_, '_>, base: &Path) -> Option<McpServer> {
    let url: Option<Endpoint> = section.optional("url");
    let ca_file = section.optional_text("ca_file").map(|path| base.join(path));
    let mut header_files = BTreeMap::new();
    let document = section.document();
    for (name, file) in read_texts(section, "header_files") {
        let lower = name.to_ascii_lowercase();
        let reserved = RESERVED_HEADERS.contains(&lower.as_str()) || lower.starts_with("mcp-");
        if reserved || HeaderName::try_from(lower.as_str()).is_err() {
            let finding = document.at(section.span(), format!("`{name}` is no header to be set here"));
            document.note(finding.help("such as `Authorization`; those of the protocol are set by the node"));
        }
        if header_files.insert(lower, base.join(file)).is_some() {
            document.note(document.at(section.span(), format!("the header `{name}` is set twice")));
        }
    }
    Some(McpServer::Http { url: url?.0, header_files, ca_file })
}

/// A table whose values are texts.
fn read_texts(section: &mut Section<'_, '_>, key: &str) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for (name, span, value) in section.free_table(key) {
        match value {
            Value::String(text) => texts.push((name, text)),
            _ => {
                let document = section.document();
                document.note(document.at(span, format!("`tool.{key}.{name}` must be a text")));
            }
        }
    }
    texts
}

fn is_variable(name: &str) -> bool {
    let rest = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    rest && name.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

struct Endpoint(Url);

impl std::str::FromStr for Endpoint {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|error| format!("`{text}` is no URL: {error}"))?;
        let is_loopback = match url.host_str() {
            Some("localhost" | "[::1]") => true,
            Some(host) => host.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback()),
            None => false,
        };
        if !(url.scheme() == "https" || (url.scheme() == "http" && is_loopback)) {
            return Err(
                "must begin with `https://`; `http://` is for servers on this machine only".to_owned()
            );
        }
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            let why = "must have no user, password or fragment; credentials stand in `header_files`";
            return Err(why.to_owned());
        }
        Ok(Self(url))
    }
}
