//! Disks that are not as disks usually are: one of a few mebibytes, a file system in memory that one process has to
//! itself; and one after the power was lost.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};

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

/// What `power_loss.py` ends with where the kernel or the file system does not say what is written.
const CANNOT_TELL: i32 = 3;

/// Folders whose machine is going to lose its power.
pub struct PowerLoss {
    folders: Vec<PathBuf>,
    then: PathBuf,
}

impl PowerLoss {
    /// Has everything in the folders written to the disk, and remembers it in `then`; nothing where it cannot be told what
    /// is written. Whoever writes into them stands still meanwhile.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn note(then: PathBuf, folders: Vec<PathBuf>) -> Result<Option<Self>> {
        let noted = Self { folders, then };
        Ok(noted.script("note", None)?.map(|_| noted))
    }

    /// Copies the folders into `to` as they would be had the power been lost now, and returns how many bytes were on no
    /// disk. Whoever writes into them stands still meanwhile.
    ///
    /// # Errors
    /// If they cannot be copied.
    pub fn cut(&self, to: &Path) -> Result<u64> {
        let said = self.script("cut", Some(to))?.context("what is written could be told before")?;
        Ok(said.trim().parse()?)
    }

    fn script(&self, verb: &str, to: Option<&Path>) -> Result<Option<String>> {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("power_loss.py"), verb]).arg(&self.then).args(to);
        let output = command.args(&self.folders).output()?;
        if output.status.code() == Some(CANNOT_TELL) {
            return Ok(None);
        }
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(Some(String::from_utf8(output.stdout)?))
    }
}
