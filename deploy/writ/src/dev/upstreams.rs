//! MCP servers beside the sample tools of a development set-up: one file each in `upstreams/`, which outlives the
//! node's configuration, since that is written anew at every start.
//!
//! `writ mcp adopt` puts them there and takes them out. What was taken up is said in a file of its own, so that it can
//! wait until the node serves them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use writ_common::{diagnostic::Diagnostic, digest::Digest};
use writ_node::config::NodeConfig;

/// Where they begin in a node's configuration.
const MARK: &str = "\n# From `upstreams/`; changed there.\n";
/// What was taken up.
const TAKEN_UP: &str = ".taken-up.json";

/// What the node serves of the folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenUp {
    /// Digest of the files.
    pub digest: String,
    /// Files that were left out, and why.
    pub left_out: BTreeMap<String, String>,
}

/// The folder of a set-up's upstreams.
#[must_use]
pub fn folder(root: &Path) -> PathBuf {
    root.join("upstreams")
}

/// Every file, by its name without `.toml`.
///
/// # Errors
/// If the folder is there and cannot be read.
pub fn read(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    if !folder.exists() {
        return Ok(found);
    }
    for item in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = item?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".toml"));
        if let Some(name) = name {
            // One that is gone again meanwhile is not there.
            if let Ok(text) = fs::read_to_string(&path) {
                found.insert(name.to_owned(), text);
            }
        }
    }
    Ok(found)
}

/// What [`TakenUp::digest`] says of these files.
#[must_use]
pub fn digest(files: &BTreeMap<String, String>) -> String {
    let parts: Vec<&[u8]> =
        files.iter().flat_map(|(name, text)| [name.as_bytes(), text.as_bytes()]).collect();
    Digest::of("writ/dev/upstreams", &parts).to_string()
}

/// What was taken up last.
#[must_use]
pub fn taken_up(folder: &Path) -> Option<TakenUp> {
    serde_json::from_str(&fs::read_to_string(folder.join(TAKEN_UP)).ok()?).ok()
}

/// Says what was taken up.
///
/// # Errors
/// If it cannot be written.
pub fn say_taken_up(folder: &Path, taken_up: &TakenUp) -> Result<()> {
    let file = folder.join(TAKEN_UP);
    let new = folder.join(format!("{TAKEN_UP}.new"));
    fs::write(&new, serde_json::to_string_pretty(taken_up)?).context("upstreams")?;
    fs::rename(&new, &file).with_context(|| file.display().to_string())
}

/// A node's configuration with every upstream in it that can be read, and why the others are not: one that cannot be
/// read takes no other with it.
#[must_use]
pub fn combine(
    config: &Path,
    text: &str,
    files: &BTreeMap<String, String>,
) -> (String, BTreeMap<String, String>) {
    let own = text.split(MARK).next().unwrap_or_default();
    let mut whole = own.to_owned();
    let mut left_out = BTreeMap::new();
    let base = config.parent().unwrap_or(Path::new("."));
    for (name, upstream) in files {
        let mark = if whole.contains(MARK) { "\n" } else { MARK };
        let more = format!("{whole}{mark}{upstream}");
        match NodeConfig::read(&format!("upstreams/{name}.toml"), &more, base, &BTreeMap::new()) {
            Ok(_) => whole = more,
            Err(findings) => {
                let lines = findings.0.iter().map(Diagnostic::in_one_line);
                left_out.insert(name.clone(), lines.collect::<Vec<_>>().join("; "));
            }
        }
    }
    (whole, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "tenant = \"acme\"\n[node]\nname = \"node-1\"\nroot_key = \"ed25519:d2e2c4e5a1078aa9a4bac335f4bf82413c88826eaa777c88717791596ab48220\"\nkey_file = \"k\"\njournal = \"j\"\n[bus]\nurls = [\"nats://127.0.0.1:4222\"]\nuser_file = \"u\"\n";

    fn tool(name: &str) -> String {
        format!("[[tool]]\nresource = \"tool.{name}\"\nkind = \"sqlite\"\nfile = \"x.db\"\n")
    }

    #[test]
    fn an_upstream_that_cannot_be_read_takes_no_other_with_it() {
        let mut files =
            BTreeMap::from([("a".to_owned(), tool("a")), ("b".to_owned(), "[[tool]\n".to_owned())]);
        files.insert("c".to_owned(), tool("c"));
        let (text, left_out) = combine(Path::new("/w/node-1.toml"), NODE, &files);
        let config = NodeConfig::read("node-1.toml", &text, Path::new("/w"), &BTreeMap::new()).unwrap();
        assert_eq!(config.tools.len(), 2);
        assert_eq!(left_out.keys().collect::<Vec<_>>(), ["b"]);
        // Again, without them: what the node had before is all there is.
        let (text, _) = combine(Path::new("/w/node-1.toml"), &text, &BTreeMap::new());
        assert_eq!(text, NODE);
    }

    #[test]
    fn what_was_taken_up_is_said() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(&folder.path().join("nope")).unwrap(), BTreeMap::new());
        fs::write(folder.path().join("a.toml"), "x").unwrap();
        fs::write(folder.path().join("notes.md"), "x").unwrap();
        let files = read(folder.path()).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a"]);
        let said = TakenUp { digest: digest(&files), left_out: BTreeMap::new() };
        say_taken_up(folder.path(), &said).unwrap();
        assert_eq!(taken_up(folder.path()), Some(said));
        assert_eq!(read(folder.path()).unwrap(), files, "it is no upstream itself");
    }
}
