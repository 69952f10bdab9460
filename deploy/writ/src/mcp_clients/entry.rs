//! What an entry says: how its server is reached, with variables and inputs put in as the client would.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{Client, Entry};

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// A program, spoken to over its standard input and output.
    Stdio {
        /// The program.
        command: String,
        /// What it is started with.
        args: Vec<String>,
        /// Where.
        folder: PathBuf,
        /// What its environment holds besides.
        env: BTreeMap<String, String>,
    },
    /// An address.
    Http {
        /// Which.
        url: String,
        /// Headers of every request.
        headers: BTreeMap<String, String>,
    },
}

/// What surrounds a configuration: what its variables stand for.
pub struct Surroundings<'s> {
    /// The folder the file belongs to: that of the project, or the person's own.
    pub folder: PathBuf,
    /// `$HOME`.
    pub home: PathBuf,
    /// Variables of this process.
    pub variable: &'s dyn Fn(&str) -> Option<String>,
    /// Reads a file an entry names.
    pub read: &'s dyn Fn(&Path) -> Result<String, String>,
}

impl Surroundings<'_> {
    /// The folder a configuration belongs to.
    #[must_use]
    pub fn folder_of(file: &Path, client: Client, home: &Path) -> PathBuf {
        let parent = file.parent().unwrap_or(Path::new("/"));
        match client {
            // A file of the person's, not of a project's.
            Client::ClaudeDesktop | Client::Windsurf => home.to_owned(),
            _ if file.file_name().is_some_and(|name| name == ".claude.json") => home.to_owned(),
            _ if parent.file_name().is_some_and(|name| name == "User" || name == "zed") => home.to_owned(),
            Client::Cursor | Client::VsCode | Client::Zed => {
                parent.parent().unwrap_or(Path::new("/")).to_owned()
            }
            Client::ClaudeCode | Client::Other => parent.to_owned(),
        }
    }
}

impl Entry {
    /// Whether nobody would start it.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.value.get("disabled") == Some(&Value::Bool(true))
            || self.value.get("enabled") == Some(&Value::Bool(false))
    }

    /// Where it is reached, by whichever key its client has for it.
    #[must_use]
    pub fn url(&self) -> Option<&Value> {
        ["url", "serverUrl", "httpUrl"].iter().find_map(|key| self.value.get(*key))
    }

    /// The program that is started and its arguments, in either form; nothing where they are no texts.
    #[must_use]
    pub fn started(&self) -> (Option<String>, Vec<String>) {
        let value = flattened(&self.value);
        let command = value.get("command").and_then(Value::as_str).map(str::to_owned);
        let arguments = value.get("args").and_then(Value::as_array).into_iter().flatten();
        (command, arguments.filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// How its server is reached.
    ///
    /// # Errors
    /// Why it cannot be said, in words, with what to do.
    pub fn connection(&self, client: Client, around: &Surroundings<'_>) -> Result<Connection, String> {
        let value = flattened(&self.value);
        if self.is_disabled() {
            return Err("it is disabled".to_owned());
        }
        if value.get("type").and_then(Value::as_str) == Some("sse") {
            return Err(
                "its transport is HTTP with SSE of 2024, which is not spoken here; many such servers have \
                        streamable HTTP at another address: write that, with `\"type\": \"http\"`"
                    .to_owned(),
            );
        }
        let expand = |text: &str| expanded(text, client, around);
        match (value.get("command"), self.url()) {
            (Some(command), None) => {
                let command = expand(&as_text("command", command)?)?;
                let args = value.get("args").map(|args| as_texts("args", args)).transpose()?;
                let args =
                    args.unwrap_or_default().iter().map(|text| expand(text)).collect::<Result<_, _>>()?;
                let folder = value.get("cwd").map(|folder| as_text("cwd", folder)).transpose()?;
                let folder = folder.map(|folder| expand(&folder)).transpose()?;
                let mut env = BTreeMap::new();
                if let Some(file) = value.get("envFile") {
                    let file = around.folder.join(expand(&as_text("envFile", file)?)?);
                    env.extend(env_file(&(around.read)(&file)?));
                }
                for (name, text) in as_table("env", value.get("env"))? {
                    env.insert(name, expand(&text)?);
                }
                let folder =
                    folder.map_or_else(|| around.folder.clone(), |folder| around.folder.join(folder));
                // A program of the project's is named from the folder it runs in.
                let is_path = command.contains('/') && !Path::new(&command).is_absolute();
                let command = match is_path {
                    true => folder.join(&command).display().to_string(),
                    false => command,
                };
                Ok(Connection::Stdio { command, args, folder, env })
            }
            (None, Some(url)) => {
                let url = expand(&as_text("url", url)?)?;
                let headers = as_table("headers", value.get("headers"))?;
                let headers = headers.into_iter().map(|(name, text)| Ok((name, expand(&text)?)));
                Ok(Connection::Http { url, headers: headers.collect::<Result<_, String>>()? })
            }
            (Some(_), Some(_)) => Err("it has both `command` and an address; take one out".to_owned()),
            (None, None) => Err("it has neither `command` nor `url`".to_owned()),
        }
    }
}

/// Zed's older form has what is started in an object of its own.
fn flattened(value: &Map<String, Value>) -> Map<String, Value> {
    let mut flat = value.clone();
    if let Some(Value::Object(nested)) = value.get("command") {
        flat.remove("command");
        let renamed = |key: &String| if key == "path" { "command".to_owned() } else { key.clone() };
        flat.extend(nested.iter().map(|(key, value)| (renamed(key), value.clone())));
    }
    flat
}

fn as_text(key: &str, value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is no text"))
}

fn as_texts(key: &str, value: &Value) -> Result<Vec<String>, String> {
    let items = value.as_array().ok_or_else(|| format!("`{key}` is no list"))?;
    items.iter().map(|item| as_text(key, item)).collect()
}

fn as_table(key: &str, value: Option<&Value>) -> Result<BTreeMap<String, String>, String> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(BTreeMap::new()) };
    let members = value.as_object().ok_or_else(|| format!("`{key}` is no object"))?;
    let member = |(name, value): (&String, &Value)| match value {
        Value::String(text) => Ok((name.clone(), text.clone())),
        // Some write numbers and booleans; a variable holds text.
        Value::Number(_) | Value::Bool(_) => Ok((name.clone(), value.to_string())),
        _ => Err(format!("`{key}.{name}` is no text")),
    };
    members.iter().map(member).collect()
}

/// `NAME=value` lines; `#` begins a comment line, quotes around a value are taken off.
fn env_file(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='));
    let unquoted = |value: &str| {
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        quoted.unwrap_or(value).to_owned()
    };
    pairs.map(|(name, value)| (name.trim().to_owned(), unquoted(value.trim()))).collect()
}

/// A text with what the client would put in for `${…}`.
fn expanded(text: &str, client: Client, around: &Surroundings<'_>) -> Result<String, String> {
    // Claude Desktop puts nothing in.
    if client == Client::ClaudeDesktop {
        return Ok(text.to_owned());
    }
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        done.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            done.push_str("${");
            rest = after;
            continue;
        };
        done.push_str(&value_of(name, client, around)?);
        rest = after;
    }
    done.push_str(rest);
    Ok(done)
}

fn value_of(name: &str, client: Client, around: &Surroundings<'_>) -> Result<String, String> {
    let variable = |name: &str| {
        (around.variable)(name).ok_or_else(|| {
            format!("it needs the variable `{name}`, which is not set here; set it and adopt again")
        })
    };
    let folder = around.folder.display().to_string();
    match name {
        "workspaceFolder" => return Ok(folder),
        "workspaceFolderBasename" => {
            let last = around.folder.file_name().and_then(|name| name.to_str());
            return Ok(last.unwrap_or_default().to_owned());
        }
        "userHome" => return Ok(around.home.display().to_string()),
        "pathSeparator" | "/" => return Ok("/".to_owned()),
        _ => {}
    }
    match name.split_once(':') {
        Some(("env", name)) => variable(name),
        Some(("input", name)) => Err(format!(
            "it asks the person in front of {} for `{name}`, and a node has nobody to ask; write \
             `${{env:{}}}` instead, set that variable and adopt again",
            client.name(),
            name.to_uppercase().replace(|letter: char| !letter.is_ascii_alphanumeric(), "_")
        )),
        // As in a shell: what stands behind `:-` counts if the variable is not set.
        Some((name, default)) if is_variable(name) && default.starts_with('-') => {
            let set = (around.variable)(name).filter(|value| !value.is_empty());
            Ok(set.unwrap_or_else(|| default.get(1..).unwrap_or_default().to_owned()))
        }
        None if is_variable(name) && matches!(client, Client::ClaudeCode | Client::Other) => variable(name),
        _ => Err(format!("nobody here knows what `${{{name}}}` stands for; write its value")),
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn connection(client: Client, value: Value) -> Result<Connection, String> {
        let variable = |name: &str| (name == "TOKEN").then(|| "s3cret".to_owned());
        let read = |file: &Path| match file.to_str() {
            Some("/w/.env") => Ok("# keys\nexport A=1\nB = \"two words\"\n\nC=x=y".to_owned()),
            _ => Err(format!("{} cannot be read", file.display())),
        };
        let around = Surroundings {
            folder: PathBuf::from("/w"),
            home: PathBuf::from("/home/a"),
            variable: &variable,
            read: &read,
        };
        let Value::Object(value) = value else { panic!("no object") };
        Entry { within: Vec::new(), name: "x".to_owned(), value }.connection(client, &around)
    }

    fn stdio(command: &str, args: &[&str], folder: &str, env: &[(&str, &str)]) -> Connection {
        Connection::Stdio {
            command: command.to_owned(),
            args: args.iter().map(|one| (*one).to_owned()).collect(),
            folder: PathBuf::from(folder),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn variables_are_what_the_client_puts_in() {
        let claude = json!({"command": "npx", "args": ["${TOKEN}", "${PORT:-8080}", "$HOME", "${"], "env": {"T": "Bearer ${TOKEN}"}});
        let expected = stdio("npx", &["s3cret", "8080", "$HOME", "${"], "/w", &[("T", "Bearer s3cret")]);
        assert_eq!(connection(Client::ClaudeCode, claude), Ok(expected));
        let code = json!({"command": "./run", "cwd": "${workspaceFolder}/src", "args": ["${userHome}${/}x", "${workspaceFolderBasename}"], "env": {"T": "${env:TOKEN}"}});
        let expected = stdio("/w/src/./run", &["/home/a/x", "w"], "/w/src", &[("T", "s3cret")]);
        assert_eq!(connection(Client::VsCode, code), Ok(expected));
        let desktop = json!({"command": "npx", "args": ["${TOKEN}"]});
        assert_eq!(connection(Client::ClaudeDesktop, desktop), Ok(stdio("npx", &["${TOKEN}"], "/w", &[])));
    }

    #[test]
    fn files_with_variables_and_zeds_older_form_are_read() {
        let code = json!({"command": "npx", "envFile": "${workspaceFolder}/.env", "env": {"A": "2"}});
        let env = [("A", "2"), ("B", "two words"), ("C", "x=y")];
        assert_eq!(connection(Client::VsCode, code), Ok(stdio("npx", &[], "/w", &env)));
        let zed = json!({"command": {"path": "npx", "args": ["x"], "env": {"N": 1}}, "settings": {}});
        assert_eq!(connection(Client::Zed, zed), Ok(stdio("npx", &["x"], "/w", &[("N", "1")])));
        let url = json!({"serverUrl": "https://x.example/mcp", "headers": {"Authorization": "Bearer ${env:TOKEN}"}});
        let headers = BTreeMap::from([("Authorization".to_owned(), "Bearer s3cret".to_owned())]);
        let expected = Connection::Http { url: "https://x.example/mcp".to_owned(), headers };
        assert_eq!(connection(Client::Windsurf, url), Ok(expected));
    }

    #[test]
    fn what_cannot_be_kept_meaningful_is_refused_with_a_way_out() {
        for (client, value, part) in [
            (
                Client::ClaudeCode,
                json!({"command": "x", "env": {"K": "${NOPE}"}}),
                "`NOPE`, which is not set",
            ),
            (Client::VsCode, json!({"command": "x", "env": {"K": "${input:api-key}"}}), "${env:API_KEY}"),
            (Client::VsCode, json!({"command": "x", "args": ["${file}"]}), "`${file}`"),
            (Client::Cursor, json!({"command": "x", "args": ["${TOKEN}"]}), "`${TOKEN}`"),
            (Client::ClaudeCode, json!({"type": "sse", "url": "https://x/sse"}), "streamable HTTP"),
            (Client::ClaudeCode, json!({"command": "x", "url": "https://x/"}), "both"),
            (Client::ClaudeCode, json!({"args": []}), "neither"),
            (Client::ClaudeCode, json!({"command": 5}), "`command` is no text"),
            (Client::ClaudeCode, json!({"command": "x", "args": "y"}), "`args` is no list"),
            (Client::ClaudeCode, json!({"command": "x", "env": {"K": []}}), "`env.K` is no text"),
            (Client::VsCode, json!({"command": "x", "envFile": "nope"}), "/w/nope"),
            (Client::Windsurf, json!({"command": "x", "disabled": true}), "disabled"),
        ] {
            let error = connection(client, value.clone()).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }

    #[test]
    fn a_file_belongs_to_a_project_or_to_a_person() {
        let home = Path::new("/home/a");
        for (file, folder) in [
            ("/w/.mcp.json", "/w"),
            ("/w/.vscode/mcp.json", "/w"),
            ("/w/.cursor/mcp.json", "/w"),
            ("/home/a/.claude.json", "/home/a"),
            ("/home/a/.config/Code/User/mcp.json", "/home/a"),
            ("/home/a/.config/Claude/claude_desktop_config.json", "/home/a"),
            ("/home/a/.config/zed/settings.json", "/home/a"),
            ("/w/app.json", "/w"),
        ] {
            let file = Path::new(file);
            assert_eq!(Surroundings::folder_of(file, Client::of(file), home), Path::new(folder), "{file:?}");
        }
    }
}
