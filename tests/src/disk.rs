//! A disk of a few mebibytes: a file system in memory that one process has to itself.

use std::{
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context as _, Result};

/// Mounts the disk on `$1`, `$2` large, and becomes the program behind. Linux lets a user do so in namespaces of their
/// own, where it is not forbidden.
const SCRIPT: &str = "mount -t tmpfs -o size=\"$2\" tmpfs \"$1\" && shift 2 && exec \"$@\"";

/// The program and the first arguments that give what follows a small disk on `folder`; nothing where that is not
/// allowed.
///
/// # Errors
/// If it cannot be tried.
pub fn small_disk(folder: &Path, mebibytes: u64) -> Result<Option<Vec<String>>> {
    let folder = folder.to_str().context("a folder with another name")?;
    let namespaces = ["--user", "--map-root-user", "--mount"];
    let shell = ["sh", "-c", SCRIPT, "sh", folder];
    let mut arguments: Vec<String> = namespaces.iter().chain(&shell).map(|text| (*text).to_owned()).collect();
    arguments.push(format!("{mebibytes}m"));
    let tried = Command::new("unshare").args(&arguments).arg("true").output();
    Ok(tried.is_ok_and(|tried| tried.status.success()).then_some(arguments))
}

/// Runs a program that has a small disk on `folder`, which is also its last argument.
///
/// # Errors
/// If it does not start.
pub fn on_small_disk(
    folder: &Path,
    mebibytes: u64,
    program: &str,
    arguments: &[&str],
) -> Result<Option<Output>> {
    let Some(first) = small_disk(folder, mebibytes)? else { return Ok(None) };
    let mut command = Command::new("unshare");
    Ok(Some(command.args(first).arg(program).args(arguments).arg(folder).output()?))
}
