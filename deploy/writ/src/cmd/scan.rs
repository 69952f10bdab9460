//! `writ scan`

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};

use writ_common::visible::visible;

use super::Common;
use crate::{
    exit::Exit,
    mcp_clients::{Client, ClientConfig, Entry, Folders, places},
    view::colour,
};

/// Which MCP servers are configured on this machine, and which of them are governed
///
/// Looks where Claude, Cursor, VS Code, Windsurf and Zed keep their configurations, and for such files in this folder
/// and those above it. Exit code 1 if one is not governed, or a file cannot be read.
#[derive(Args)]
pub struct Scan {
    /// Look into these files instead
    files: Vec<PathBuf>,
}

struct Found {
    file: PathBuf,
    client: Client,
    entry: Entry,
    is_governed: bool,
}

/// How it is reached, in a few words: the host, or the program. Nothing of its environment, and none of its arguments,
/// user names, paths and queries: they may be secret.
fn reached(entry: &Entry) -> String {
    if let Some(url) = entry.url().and_then(Value::as_str) {
        let host = reqwest::Url::parse(url).ok().filter(reqwest::Url::has_host);
        return host.map_or_else(|| "a URL".to_owned(), |url| url.origin().ascii_serialization());
    }
    let command = entry.started().0.unwrap_or_else(|| "nothing".to_owned());
    command.split_whitespace().next().unwrap_or_default().to_owned()
}

impl Scan {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let is_named = !self.files.is_empty();
        let files = if is_named {
            self.files
        } else {
            places(&Folders::of_this_process().context("neither `HOME` nor this folder can be told")?)
        };
        let writ = std::env::current_exe().unwrap_or_default();
        let (mut found, mut faults, mut seen) = (Vec::new(), Vec::new(), 0);
        for file in files {
            match read(&file) {
                Ok(Some(config)) => {
                    seen += usize::from(!config.entries.is_empty());
                    found.extend(config.entries.iter().map(|entry| Found {
                        file: config.file.clone(),
                        client: config.client,
                        entry: entry.clone(),
                        is_governed: entry.is_governed(&writ),
                    }));
                }
                Ok(None) if is_named => faults.push(format!("{}: there is no such file", file.display())),
                Ok(None) => {}
                Err(fault) => faults.push(fault),
            }
        }
        let open = found.iter().filter(|one| !one.is_governed && !one.entry.is_disabled()).count();
        let text = render(common, &found, &faults, (seen, open));
        let servers: Vec<Value> = found
            .iter()
            .map(|one| {
                json!({
                    "file": one.file, "client": one.client.name(), "name": one.entry.name,
                    "within": one.entry.within, "reached": reached(&one.entry), "governed": one.is_governed,
                    "disabled": one.entry.is_disabled(),
                })
            })
            .collect();
        common.say(text, &json!({"servers": servers, "not_governed": open, "faults": faults}))?;
        Ok(if open > 0 || !faults.is_empty() { Exit::Failure } else { Exit::Ok })
    }
}

/// A configuration, if there is one.
fn read(file: &Path) -> Result<Option<ClientConfig>, String> {
    match std::fs::read_to_string(file) {
        Ok(text) => ClientConfig::read(file, &text).map(Some).map_err(|fault| fault.to_string()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn render(common: &Common, found: &[Found], faults: &[String], (seen, open): (usize, usize)) -> String {
    let paint = common.colour();
    let mut text = String::new();
    let mut last: Option<&Path> = None;
    for one in found {
        if last != Some(&one.file) {
            text += &format!(
                "{}   {}\n",
                paint.paint(colour::BOLD, &one.file.display().to_string()),
                one.client.name()
            );
            last = Some(&one.file);
        }
        let (code, word) = match (one.is_governed, one.entry.is_disabled()) {
            (true, _) => (colour::GREEN, "governed"),
            (false, true) => (colour::DIM, "disabled"),
            (false, false) => (colour::RED, "NOT GOVERNED"),
        };
        // Of several projects in one file, the project tells two servers of one name apart.
        let project = match one.entry.within.as_slice() {
            [_, project, _] => format!("   for {}", visible(project)),
            _ => String::new(),
        };
        text += &format!(
            "  {} {:<20} {}{project}\n",
            paint.paint(code, &format!("{word:<12}")),
            visible(&one.entry.name),
            visible(&reached(&one.entry))
        );
    }
    faults.iter().for_each(|fault| text += &format!("{}\n", paint.paint(colour::RED, fault)));
    if found.is_empty() {
        return text + "no MCP server is configured in the places that are known";
    }
    let (servers, files) = (plural(found.len(), "server"), plural(seen, "file"));
    text += &format!("{servers} in {files}, {open} not governed");
    let open = found.iter().find(|one| !one.is_governed && !one.entry.is_disabled());
    if let Some(first) = open {
        text += &format!("\nnext: writ mcp adopt {}", first.file.display());
    }
    text
}
