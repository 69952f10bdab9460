//! What adopting a server writes: the node's `[[tool]]` with its secrets in files, and entries of the inventory.

use std::{collections::BTreeMap, path::Path};

use writ_common::{
    digest::Digest,
    ids::{AgentId, Resource, RoleId},
    mcp::id_of,
};

use crate::mcp_clients::Connection;

/// A file of the operator's that holds a secret, with what goes into it.
pub type Secrets = BTreeMap<String, String>;

/// The resource a server's tools become actions of.
///
/// # Errors
/// Why its name will not do, in words.
pub fn resource_of(server: &str) -> Result<Resource, String> {
    let name = id_of(server);
    Resource::parse(format!("tool.{}", name.trim_matches('-')))
        .map_err(|_| format!("`{server}` makes no name of a tool; give the entry one of letters and digits"))
}

/// Which server it is: two entries with the same digest are the same one.
#[must_use]
pub fn connection_digest(connection: &Connection) -> String {
    // The derived form names every field; it is compared on one machine only, with itself.
    Digest::of("writ/adopt/connection", &[format!("{connection:?}").as_bytes()]).to_string()
}

/// A text in TOML: JSON's escapes are TOML's too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn table(entries: impl Iterator<Item = (String, String)>) -> String {
    let entries: Vec<String> =
        entries.map(|(name, text)| format!("{} = {}", quoted(&name), quoted(&text))).collect();
    format!("{{ {} }}", entries.join(", "))
}

/// Names that may become names of files.
fn check_names<'n>(what: &str, names: impl Iterator<Item = &'n String>) -> Result<(), String> {
    let is_plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    match names.into_iter().find(|name| !is_plain(name)) {
        Some(name) => Err(format!("`{name}` is no name of a {what}")),
        None => Ok(()),
    }
}

/// The `[[tool]]` of a server, and what its secrets are; their files are in `secrets`, a folder as the configuration
/// names it. Whatever stood in `env` or `headers` counts as a secret: nobody can tell which of it is.
///
/// # Errors
/// What cannot be kept, in words.
pub fn upstream(
    resource: &Resource,
    connection: &Connection,
    secrets: &Path,
) -> Result<(String, Secrets), String> {
    let mut text = format!("[[tool]]\nresource = \"{resource}\"\nkind = \"mcp\"\n");
    let file = |name: &str| secrets.join(name).display().to_string();
    let held = match connection {
        Connection::Stdio { command, args, folder, env } => {
            check_names("variable", env.keys())?;
            let args: Vec<String> = args.iter().map(|text| quoted(text)).collect();
            text += &format!("command = {}\nargs = [{}]\n", quoted(command), args.join(", "));
            text += &format!("folder = {}\n", quoted(&folder.display().to_string()));
            if !env.is_empty() {
                text +=
                    &format!("env_files = {}\n", table(env.keys().map(|name| (name.clone(), file(name)))));
            }
            env.clone()
        }
        Connection::Http { url, headers } => {
            check_names("header", headers.keys())?;
            text += &format!("url = {}\n", quoted(url));
            let files = headers.keys().map(|name| (name.clone(), file(&name.to_ascii_lowercase())));
            if !headers.is_empty() {
                text += &format!("header_files = {}\n", table(files));
            }
            headers.iter().map(|(name, text)| (name.to_ascii_lowercase(), text.clone())).collect()
        }
    };
    if let Some((name, _)) = held.iter().find(|(_, value)| value.contains(['\n', '\r', '\0'])) {
        return Err(format!("the value of `{name}` has more than one line"));
    }
    Ok((text, held))
}

/// A text with a block of ours in it, in place of the one that was there; without one if `body` is absent.
#[must_use]
pub fn with_block(text: &str, name: &str, body: Option<&str>) -> String {
    let (begin, end) = (format!("# >>> writ mcp adopt: {name}\n"), format!("# <<< writ mcp adopt: {name}\n"));
    let mut kept = text.to_owned();
    if let Some((before, rest)) = text.split_once(&begin)
        && let Some((_, after)) = rest.split_once(&end)
    {
        // The empty line before a block is ours too.
        kept = format!(
            "{}{after}",
            before.strip_suffix("\n\n").map_or(before.to_owned(), |head| format!("{head}\n"))
        );
    }
    match body {
        None => kept,
        Some(body) => {
            let between = if kept.is_empty() { "" } else { "\n" };
            let kept = if kept.is_empty() || kept.ends_with('\n') { kept } else { format!("{kept}\n") };
            format!("{kept}{between}{begin}{body}{end}")
        }
    }
}

/// The entry of an agent in agents.toml.
#[must_use]
pub fn agent_entry(agent: &AgentId, program: &str) -> String {
    format!(
        "[[agent]]\nname = \"{agent}\"\nowner = \"adopted\"\ndescription = {}\n",
        quoted(&format!("{program}, with the MCP servers it was configured with"))
    )
}

/// What a role may have that agent do, in roles.toml. The kind of task is the agent's own: rights of a kind are those of
/// every agent that may be given it.
#[must_use]
pub fn role_entry(role: &RoleId, agent: &AgentId, rights: &[String]) -> String {
    let rights: String = rights.iter().map(|right| format!("    \"{right}\",\n")).collect();
    format!(
        "[[role]]\nname = \"{role}\"\n\n[[role.task]]\nkind = \"{agent}\"\nagents = [\"{agent}\"]\nrights = [\n{rights}]\n"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn stdio(env: &[(&str, &str)]) -> Connection {
        Connection::Stdio {
            command: "npx".to_owned(),
            args: vec!["-y".to_owned(), "say \"hi\"\\".to_owned()],
            folder: PathBuf::from("/w"),
            env: env.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
        }
    }

    #[test]
    fn secrets_stand_in_files_and_not_in_the_configuration() {
        let tool = resource_of("GitHub MCP").unwrap();
        assert_eq!(tool.as_str(), "tool.github-mcp");
        let (text, secrets) =
            upstream(&tool, &stdio(&[("TOKEN", "s3cret")]), Path::new("upstreams/x")).unwrap();
        assert!(!text.contains("s3cret") && text.contains(r#"args = ["-y", "say \"hi\"\\"]"#), "{text}");
        assert!(text.contains(r#"env_files = { "TOKEN" = "upstreams/x/TOKEN" }"#), "{text}");
        assert_eq!(secrets, Secrets::from([("TOKEN".to_owned(), "s3cret".to_owned())]));
        let headers = BTreeMap::from([("Authorization".to_owned(), "Bearer x".to_owned())]);
        let http = Connection::Http { url: "https://x.example/mcp".to_owned(), headers };
        let (text, secrets) = upstream(&tool, &http, Path::new("s")).unwrap();
        assert!(text.contains(r#"header_files = { "Authorization" = "s/authorization" }"#), "{text}");
        assert_eq!(secrets.keys().collect::<Vec<_>>(), ["authorization"]);
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        let tool = resource_of("x").unwrap();
        for env in [("../../x", "a"), ("", "a"), ("A B", "a"), ("A", "two\nlines")] {
            assert!(upstream(&tool, &stdio(&[env]), Path::new("s")).is_err(), "{env:?}");
        }
        assert!(resource_of("日本").is_err());
    }

    #[test]
    fn a_block_is_put_in_replaced_and_taken_out_without_a_trace() {
        let before = "[[agent]]\nname = \"planner\"\n";
        let with = with_block(before, "claude", Some("a = 1\n"));
        assert_eq!(
            with,
            format!("{before}\n# >>> writ mcp adopt: claude\na = 1\n# <<< writ mcp adopt: claude\n")
        );
        let other = with_block(&with, "cursor", Some("b = 1\n"));
        let again = with_block(&other, "claude", Some("a = 2\n"));
        assert!(again.contains("a = 2") && !again.contains("a = 1") && again.contains("b = 1"), "{again}");
        let without = with_block(&with_block(&again, "claude", None), "cursor", None);
        assert_eq!(without, before);
        assert_eq!(with_block("", "x", Some("a = 1\n")).lines().count(), 3);
    }
}
