//! What was adopted, so that it can be undone: one file per configuration.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use writ_common::{
    digest::Digest,
    ids::{AgentId, Resource, RoleId},
};

/// One configuration that was adopted, or is being.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format.
    pub version: u32,
    /// The configuration.
    pub file: PathBuf,
    /// Its SHA-256 before and after.
    pub before: String,
    /// See `before`.
    pub after: String,
    /// The program's name.
    pub program: String,
    /// The agent that stands for it.
    pub agent: AgentId,
    /// The role whose users may have it work.
    pub role: RoleId,
    /// Whether the agent had no identity before.
    pub made_identity: bool,
    /// Whether the agent was in agents.toml already.
    pub knows_agent: bool,
    /// The servers.
    pub servers: Vec<Adopted>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// The entry's name.
    pub entry: String,
    /// What it became.
    pub resource: Resource,
    /// Which server it is.
    pub connection: String,
    /// Its contract, below the policy folder.
    pub contract: String,
    /// Its rules.
    pub rules: String,
    /// A right for each of its tools.
    pub rights: Vec<String>,
}

/// The folder of manifests beside a profile.
pub struct Manifests {
    folder: PathBuf,
}

/// SHA-256 of a text.
#[must_use]
pub fn digest(text: &str) -> String {
    Digest::plain(text.as_bytes()).to_string()
}

/// Where the original of a configuration is kept.
#[must_use]
pub fn backup_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".writ-backup");
    PathBuf::from(name)
}

impl Manifests {
    /// Beside a profile.
    #[must_use]
    pub fn beside(profile: &Path) -> Self {
        Self { folder: profile.with_file_name("adopted") }
    }

    /// Where an agent's identity is made, before it is one.
    #[must_use]
    pub fn aside(&self, agent: &str) -> PathBuf {
        self.folder.join(format!("{agent}.identity"))
    }

    fn path(&self, file: &Path) -> PathBuf {
        let name = Digest::plain(file.as_os_str().as_encoded_bytes()).short();
        self.folder.join(format!("{name}.json"))
    }

    /// Every manifest.
    ///
    /// # Errors
    /// A file that is none.
    pub fn all(&self) -> Result<Vec<Manifest>> {
        let mut all = Vec::new();
        if !self.folder.exists() {
            return Ok(all);
        }
        for item in fs::read_dir(&self.folder)? {
            let path = item?.path();
            if path.extension().is_some_and(|end| end == "json") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let manifest: Manifest = serde_json::from_str(&text)
                    .with_context(|| format!("{} says nothing sensible", path.display()))?;
                all.push(manifest);
            }
        }
        all.sort_by(|one, other| one.file.cmp(&other.file));
        Ok(all)
    }

    /// Keeps one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, manifest: &Manifest) -> Result<()> {
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        replace(&self.path(&manifest.file), serde_json::to_string_pretty(manifest)?.as_bytes())
    }

    /// Forgets one.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn forget(&self, manifest: &Manifest) -> Result<()> {
        let path = self.path(&manifest.file);
        if path.exists() {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

/// Puts a file in place of another: a reader sees the one or the other, whole. Its mode stays.
///
/// # Errors
/// If it cannot be written.
pub fn replace(file: &Path, bytes: &[u8]) -> Result<()> {
    let cannot = || format!("{} cannot be written", file.display());
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    new.write_all(bytes).and_then(|()| new.as_file().sync_all()).with_context(cannot)?;
    if let Ok(before) = fs::metadata(file) {
        fs::set_permissions(new.path(), before.permissions()).with_context(cannot)?;
    }
    new.persist(file).with_context(cannot)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&file, b"new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(replace(&folder.path().join("nope/a"), b"x").is_err());
    }

    #[test]
    fn manifests_are_kept_by_the_file_they_are_about() {
        let folder = tempfile::tempdir().unwrap();
        let manifests = Manifests::beside(&folder.path().join("operator.toml"));
        assert!(manifests.all().unwrap().is_empty());
        let mut manifest = Manifest {
            version: 1,
            file: PathBuf::from("/w/.mcp.json"),
            before: digest("a"),
            after: digest("b"),
            program: "Claude Code".to_owned(),
            agent: AgentId::parse("claude").unwrap(),
            role: RoleId::parse("analyst").unwrap(),
            made_identity: true,
            knows_agent: false,
            servers: Vec::new(),
        };
        manifests.save(&manifest).unwrap();
        manifest.after = digest("c");
        manifests.save(&manifest).unwrap();
        assert_eq!(manifests.all().unwrap(), [manifest.clone()]);
        manifests.forget(&manifest).unwrap();
        assert!(manifests.all().unwrap().is_empty());
    }
}
