//! A configuration file as text: its entries, and the same text with some of them rewritten.

use std::path::{Path, PathBuf};

use jsonc_parser::{
    ParseOptions,
    cst::{CstInputValue, CstObject, CstObjectProp, CstRootNode},
};
use serde_json::{Map, Value};

use super::Client;

/// Keys that say how a server is reached; a rewritten entry has its own `command` and `args` in their place.
const CONNECTION_KEYS: [&str; 9] =
    ["args", "command", "cwd", "env", "envFile", "headers", "httpUrl", "serverUrl", "url"];

/// A configuration file of an MCP client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Where it is.
    pub file: PathBuf,
    /// Whose it is.
    pub client: Client,
    /// Its entries, in their order.
    pub entries: Vec<Entry>,
    text: String,
}

/// One server of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The keys of the objects it is in.
    pub within: Vec<String>,
    /// Its name.
    pub name: String,
    /// What stands there.
    pub value: Map<String, Value>,
}

/// A file that is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct Unreadable {
    /// Which.
    pub file: PathBuf,
    /// What is wrong with it, and where.
    pub why: String,
}

impl ClientConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Unreadable`] with the line, for text that is no JSON as that client takes it, or a name that is there twice.
    pub fn read(file: &Path, text: &str) -> Result<Self, Unreadable> {
        let fault = |why: String| Unreadable { file: file.to_owned(), why };
        let client = Client::of(file);
        let root = parse(client, text).map_err(fault)?;
        let mut entries: Vec<Entry> = Vec::new();
        for (within, servers) in server_objects(client, &root) {
            for property in servers.properties() {
                let name = name_of(&property).ok_or_else(|| fault("a key is not readable".to_owned()))?;
                let at = || format!("`{}.{name}`", within.join("."));
                let value = property.value().and_then(|value| value.to_serde_value());
                let Some(Value::Object(value)) = value else {
                    return Err(fault(format!("{} is no object", at())));
                };
                if entries.iter().any(|known| known.within == within && known.name == name) {
                    // Which of the two counts depends on the client.
                    return Err(fault(format!("{} is there twice; take one out", at())));
                }
                entries.push(Entry { within: within.clone(), name, value });
            }
        }
        Ok(Self { file: file.to_owned(), client, entries, text: text.to_owned() })
    }

    /// The text as it was read.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text with some entries reached by another command. Whatever else stands in it, stays: other keys of those
    /// entries, comments, the order, the form.
    ///
    /// # Errors
    /// [`Unreadable`] if an entry is not there.
    pub fn rewritten(&self, writ: &str, changed: &[(Entry, Vec<String>)]) -> Result<String, Unreadable> {
        let fault = |why: String| Unreadable { file: self.file.clone(), why };
        let root = parse(self.client, &self.text).map_err(fault)?;
        let objects = server_objects(self.client, &root);
        for (entry, arguments) in changed {
            let found =
                objects.iter().find(|(within, _)| *within == entry.within).and_then(|(_, servers)| {
                    let named = |property: &CstObjectProp| name_of(property).as_deref() == Some(&entry.name);
                    servers.properties().into_iter().find(named)?.object_value()
                });
            let object = found.ok_or_else(|| fault(format!("there is no entry `{}`", entry.name)))?;
            rewrite(&object, writ, arguments);
        }
        Ok(root.to_string())
    }
}

fn parse(client: Client, text: &str) -> Result<CstRootNode, String> {
    let lenient = client.takes_comments();
    let options = ParseOptions {
        allow_comments: lenient,
        allow_trailing_commas: lenient,
        allow_loose_object_property_names: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    // Comments are part of the tree in any case, so who takes none is asked first.
    if !lenient && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let why = error.to_string();
        let why = why.split(" at line ").next().unwrap_or_default();
        let (line, column) = (error.line(), error.column());
        return Err(format!(
            "line {line}, column {column}: it is no JSON (this client takes no comments and no trailing commas): {why}"
        ));
    }
    let root = CstRootNode::parse(text, &options).map_err(|error| {
        let (line, column) = (error.line_display(), error.column_display());
        format!("line {line}, column {column}: it is no JSON: {}", error.kind())
    })?;
    match root.object_value() {
        Some(_) => Ok(root),
        None => Err("it is no JSON object".to_owned()),
    }
}

fn name_of(property: &CstObjectProp) -> Option<String> {
    property.name()?.decoded_value().ok()
}

/// The objects with an entry for each server.
fn server_objects(client: Client, root: &CstRootNode) -> Vec<(Vec<String>, CstObject)> {
    let mut found = Vec::new();
    let Some(top) = root.object_value() else { return found };
    for path in client.server_maps() {
        let mut reached = vec![(Vec::new(), top.clone())];
        for key in *path {
            let step = |(within, object): (Vec<String>, CstObject)| {
                let below = object.properties().into_iter().filter_map(move |property| {
                    let name = name_of(&property)?;
                    let below = property.object_value().filter(|_| *key == "*" || *key == name)?;
                    Some(([within.clone(), vec![name]].concat(), below))
                });
                below.collect::<Vec<_>>()
            };
            reached = reached.into_iter().flat_map(step).collect();
        }
        found.extend(reached);
    }
    found
}

fn rewrite(object: &CstObject, writ: &str, arguments: &[String]) {
    let arguments = || CstInputValue::Array(arguments.iter().map(|text| text.as_str().into()).collect());
    // Zed once had an object there, with the program's own arguments and environment.
    let nested = object.get("command").and_then(|command| command.object_value());
    if let Some(command) = nested {
        let mut fields = vec![("path".to_owned(), writ.into()), ("args".to_owned(), arguments())];
        let kept = command.properties().into_iter().filter_map(|property| {
            let name = name_of(&property).filter(|name| !["args", "env", "path"].contains(&name.as_str()))?;
            let value = property.value()?.to_serde_value()?;
            Some((name, input(&value)))
        });
        fields.extend(kept);
        if let Some(property) = object.get("command") {
            property.set_value(CstInputValue::Object(fields));
        }
    } else {
        put(object, "command", writ.into());
        put(object, "args", arguments());
    }
    for key in CONNECTION_KEYS.iter().filter(|key| !["args", "command"].contains(key)) {
        if let Some(property) = object.get(key) {
            property.remove();
        }
    }
    if let Some(kind) = object.get("type") {
        kind.set_value("stdio".into());
    }
}

/// Sets a key where it stands; a new one goes where the server was named before.
fn put(object: &CstObject, key: &str, value: CstInputValue) {
    if let Some(property) = object.get(key) {
        property.set_value(value);
        return;
    }
    let properties = object.properties();
    let is_connection = |property: &CstObjectProp| {
        name_of(property).is_some_and(|name| CONNECTION_KEYS.contains(&name.as_str()))
    };
    let first = properties.iter().position(is_connection);
    let after_command =
        properties.iter().position(|property| name_of(property).as_deref() == Some("command"));
    let at = match (key, after_command) {
        ("args", Some(command)) => command + 1,
        _ => first.unwrap_or(0),
    };
    object.insert(at, key, value);
}

fn input(value: &Value) -> CstInputValue {
    match value {
        Value::Null => CstInputValue::Null,
        Value::Bool(value) => CstInputValue::Bool(*value),
        Value::Number(number) => CstInputValue::Number(number.to_string()),
        Value::String(text) => CstInputValue::String(text.clone()),
        Value::Array(items) => CstInputValue::Array(items.iter().map(input).collect()),
        Value::Object(members) => {
            CstInputValue::Object(members.iter().map(|(key, value)| (key.clone(), input(value))).collect())
        }
    }
}

impl Entry {
    /// Whether it runs `writ mcp` already; `writ` is this program.
    #[must_use]
    pub fn is_governed(&self, writ: &Path) -> bool {
        // Whoever has an address besides may well be reached by that.
        if self.url().is_some() {
            return false;
        }
        let (command, arguments) = self.started();
        let command = PathBuf::from(command.unwrap_or_default());
        // By its bare name it is what PATH has; by a path it has to be this very program, whatever it is called.
        let is_writ = command == writ
            || command == Path::new("writ")
            || matches!((command.canonicalize(), writ.canonicalize()), (Ok(one), Ok(own)) if one == own);
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        is_writ && matches!(words.as_slice(), ["--profile", _, "mcp", ..] | ["mcp", ..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adopted(file: &str, text: &str) -> String {
        let config = ClientConfig::read(Path::new(file), text).unwrap();
        let changed: Vec<(Entry, Vec<String>)> = config
            .entries
            .iter()
            .map(|entry| {
                (entry.clone(), vec!["mcp".to_owned(), "--only".to_owned(), format!("tool.{}", entry.name)])
            })
            .collect();
        config.rewritten("/opt/writ", &changed).unwrap()
    }

    #[test]
    fn an_entry_keeps_its_name_its_place_and_every_other_key() {
        let text = r#"{
  "theme": "dark",
  "mcpServers": {
    "time": {
      "disabled": false,
      "command": "uvx",
      "args": ["mcp-server-time", "--local-timezone=UTC"],
      "env": { "TOKEN": "s3cret" },
      "autoApprove": ["get_current_time"]
    }
  },
  "numbers": [1.0, 1e3]
}
"#;
        let expected = r#"{
  "theme": "dark",
  "mcpServers": {
    "time": {
      "disabled": false,
      "command": "/opt/writ",
      "args": ["mcp", "--only", "tool.time"],
      "autoApprove": ["get_current_time"]
    }
  },
  "numbers": [1.0, 1e3]
}
"#;
        assert_eq!(adopted("/w/.mcp.json", text), expected);
    }

    #[test]
    fn comments_and_trailing_commas_stay_where_the_client_takes_them() {
        let text = "// mine\n{\n\t\"servers\": {\n\t\t/* remote */\n\t\t\"docs\": {\n\t\t\t\"type\": \"http\", // kind\n\t\t\t\"url\": \"https://docs.example/mcp\",\n\t\t\t\"headers\": {\"Authorization\": \"Bearer x\"},\n\t\t},\n\t},\n\t\"inputs\": [],\n}\n";
        let expected = "// mine\n{\n\t\"servers\": {\n\t\t/* remote */\n\t\t\"docs\": {\n\t\t\t\"type\": \"stdio\", // kind\n\t\t\t\"command\": \"/opt/writ\",\n\t\t\t\"args\": [\"mcp\", \"--only\", \"tool.docs\"],\n\t\t},\n\t},\n\t\"inputs\": [],\n}\n";
        assert_eq!(adopted("/w/.vscode/mcp.json", text), expected);
        for (text, line) in [("{}\n// mine\n", "line 2"), ("{\"a\": 1,}", "line 1")] {
            assert!(ClientConfig::read(Path::new("/w/.vscode/mcp.json"), text).is_ok());
            let error = ClientConfig::read(Path::new("/w/.mcp.json"), text).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains("no comments"), "{error}");
        }
    }

    #[test]
    fn every_form_of_entry_is_found() {
        let names = |file: &str, text: &str| {
            let config = ClientConfig::read(Path::new(file), text).unwrap();
            config.entries.iter().map(|entry| entry.name.clone()).collect::<Vec<_>>().join(" ")
        };
        let projects = r#"{"mcpServers":{"a":{}},"projects":{"/w":{"mcpServers":{"b":{}},"x":1},"/v":{}}}"#;
        assert_eq!(names("/h/.claude.json", projects), "a b");
        assert_eq!(names("/h/Code/User/settings.json", r#"{"mcp":{"servers":{"c":{}}}}"#), "c");
        assert_eq!(names("/h/zed/settings.json", r#"{"context_servers":{"d":{}}} // end"#), "d");
        assert_eq!(names("/w/app.json", r#"{"servers":{"e":{}}}"#), "e");
        assert_eq!(names("/w/app.json", r#"{"other":{}}"#), "");
        let zed = r#"{"context_servers":{"d":{"command":{"path":"npx","args":["x"],"env":{"K":"v"}},"settings":{}}}}"#;
        let text = adopted("/h/zed/settings.json", zed);
        let value: Value = serde_json::from_str(&text).unwrap();
        let entry = &value["context_servers"]["d"];
        assert_eq!(entry["command"]["path"], "/opt/writ");
        assert!(entry["command"].get("env").is_none() && entry.get("settings").is_some(), "{text}");
    }

    #[test]
    fn what_is_no_configuration_is_told_with_its_place() {
        for (text, part) in [
            ("{\n  \"mcpServers\": {\n    \"a\": {\"command\": }\n", "line 3"),
            ("[]", "no JSON object"),
            (r#"{"mcpServers":{"a":"x"}}"#, "`mcpServers.a` is no object"),
            (r#"{"mcpServers":{"a":{},"a":{}}}"#, "`mcpServers.a` is there twice"),
        ] {
            let error = ClientConfig::read(Path::new("/w/.mcp.json"), text).unwrap_err().to_string();
            assert!(error.starts_with("/w/.mcp.json: ") && error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn what_runs_writ_is_governed() {
        let governed = |value: &str| {
            let text = format!(r#"{{"mcpServers":{{"a":{value}}}}}"#);
            let config = ClientConfig::read(Path::new("/w/.mcp.json"), &text).unwrap();
            config.entries[0].is_governed(Path::new("/target/writ-under-test"))
        };
        assert!(governed(r#"{"command":"writ","args":["mcp","--agent","a"]}"#));
        assert!(!governed(r#"{"command":"/elsewhere/writ","args":["mcp","--agent","a"]}"#));
        assert!(!governed(r#"{"command":"writ","args":["doctor","mcp"]}"#));
        assert!(!governed(r#"{"command":"writ","args":["mcp"],"url":"https://x.example/mcp"}"#));
        assert!(governed(r#"{"command":"/target/writ-under-test","args":["--profile","p","mcp"]}"#));
        assert!(!governed(r#"{"command":"writ","args":["doctor"]}"#));
        assert!(!governed(r#"{"command":"npx","args":["mcp"]}"#));
        assert!(!governed(r#"{"url":"https://x.example/mcp"}"#));
    }
}
