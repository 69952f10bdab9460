//! `writ policy fmt`

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::json;
use writ_broker::config::read_policies;
use writ_common::{diagnostic::Diagnostics, policy::format::format};

use super::super::Common;
use crate::exit::{Exit, Invalid};

#[derive(Args)]
pub struct Fmt {
    /// Policy folders
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Change nothing; fail if a file would be changed
    #[arg(long)]
    check: bool,
}

impl Fmt {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let mut findings = Diagnostics::default();
        let mut changed: Vec<(PathBuf, String)> = Vec::new();
        for folder in &self.folders {
            for (path, text) in read_policies(folder).map_err(Invalid)?.0 {
                if Path::new(&path).extension().is_none_or(|extension| extension != "datalog") {
                    continue;
                }
                let file = folder.join(&path);
                match format(&file.display().to_string(), &text) {
                    Ok(formatted) if formatted == text => {}
                    Ok(formatted) => changed.push((file, formatted)),
                    Err(found) => findings.0.extend(found.0),
                }
            }
        }
        // Nothing is written while a file cannot be read, so that a run is all or nothing.
        if findings.has_errors() {
            return Err(Invalid(findings).into());
        }
        if !self.check {
            for (file, text) in &changed {
                replace(file, text).with_context(|| format!("{} cannot be written", file.display()))?;
            }
        }
        let names: Vec<String> = changed.iter().map(|(file, _)| file.display().to_string()).collect();
        let word = if self.check { "would change" } else { "formatted" };
        let lines: Vec<String> = names.iter().map(|name| format!("{word} {name}")).collect();
        if !lines.is_empty() || !common.is_for_people() {
            common.say(lines.join("\n"), &json!({"changed": names, "written": !self.check}))?;
        }
        Ok(if self.check && !changed.is_empty() { Exit::Failure } else { Exit::Ok })
    }
}

/// Puts a new file in the place of another: a reader sees the old text or the new one.
fn replace(file: &Path, text: &str) -> Result<()> {
    // Through a link, what it leads to is replaced and not the link.
    let file = fs::canonicalize(file)?;
    let name = file.file_name().context("it has no name")?.to_string_lossy();
    let beside = file.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let written = write_beside(&file, &beside, text);
    if written.is_err() {
        drop(fs::remove_file(&beside));
    }
    written
}

fn write_beside(file: &Path, beside: &Path, text: &str) -> Result<()> {
    let mut new = fs::OpenOptions::new().write(true).create_new(true).open(beside)?;
    new.set_permissions(fs::metadata(file)?.permissions())?;
    new.write_all(text.as_bytes())?;
    new.sync_all()?;
    Ok(fs::rename(beside, file)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policies_in_the_repository_are_formatted() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies");
        let examples = fs::read_dir(root.join("examples")).unwrap().map(|item| item.unwrap().path());
        let mut seen = 0;
        for folder in examples.filter(|path| path.is_dir()).chain([root.clone()]) {
            for (path, text) in
                read_policies(&folder).unwrap().0.iter().filter(|(path, _)| path.ends_with(".datalog"))
            {
                let formatted = format(path, text).unwrap_or_else(|findings| panic!("{findings}"));
                assert_eq!(&formatted, text, "`writ policy fmt {}` formats {path}", folder.display());
                seen += 1;
            }
        }
        assert!(seen > 10, "{seen}");
    }
}
