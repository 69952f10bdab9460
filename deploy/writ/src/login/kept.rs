//! The file a login is kept in: private, replaced as a whole.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use writ_bus::keyfile;

use super::{TokenKind, Wanted};

/// A login as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The issuer.
    pub issuer: String,
    /// The client.
    pub client_id: String,
    /// Where tokens are refreshed.
    pub token_endpoint: String,
    /// Where they are revoked, if anywhere.
    pub revocation_endpoint: Option<String>,
    /// The scopes that were asked for.
    pub scope: String,
    /// For whom the token is.
    pub audience: Option<String>,
    /// Which of the issuer's tokens it is.
    pub kind: TokenKind,
    /// The user, by the issuer's name for them.
    pub subject: String,
    /// The token the broker is given.
    pub token: String,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// What another one is had for.
    pub refresh_token: Option<String>,
}

impl Login {
    /// Whether the token is good for that many seconds more.
    #[must_use]
    pub fn is_good_for(&self, seconds: u64, now: u64) -> bool {
        now.saturating_add(seconds) < self.expires
    }

    /// What was asked for.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            issuer: self.issuer.clone(),
            client_id: self.client_id.clone(),
            scopes: Vec::new(),
            audience: self.audience.clone(),
            token: self.kind,
        }
    }
}

/// Where the login that goes with a profile is.
#[must_use]
pub fn file_of(profile: &Path) -> PathBuf {
    profile.with_extension("login.json")
}

/// The login, if there is one.
///
/// # Errors
/// A file that others can read, or that is none of ours.
pub fn load(file: &Path) -> Result<Option<Login>> {
    if !file.exists() {
        return Ok(None);
    }
    let text = keyfile::read_secret(file)?;
    let login = serde_json::from_str(&text);
    Ok(Some(login.with_context(|| format!("{} is no login; `writ logout` removes it", file.display()))?))
}

/// Keeps a login; a reader sees the old one or the new one.
///
/// # Errors
/// If the file cannot be written.
pub fn save(file: &Path, login: &Login) -> Result<()> {
    let cannot = || format!("{} cannot be written", file.display());
    let new = file.with_extension(format!("json.{}", std::process::id()));
    drop(fs::remove_file(&new));
    keyfile::write_secret(&new, &serde_json::to_string_pretty(login)?)?;
    fs::rename(&new, file).with_context(cannot)
}

fn lock(file: &Path) -> Result<File> {
    let path = file.with_extension("lock");
    let lock = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    lock.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
    Ok(lock)
}

/// Keeps others from refreshing, logging in and logging out until it is dropped, waited for without keeping a thread of the
/// runtime.
///
/// # Errors
/// If it cannot be had.
pub async fn locked(file: &Path) -> Result<File> {
    let file = file.to_owned();
    tokio::task::spawn_blocking(move || lock(&file)).await?
}

/// Forgets a login.
///
/// # Errors
/// If the file cannot be removed.
pub fn forget(file: &Path) -> Result<()> {
    // The lock's file stays: whoever waits for it holds that very file open.
    fs::remove_file(file).with_context(|| format!("{} cannot be removed", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn k01_a_login_is_private_and_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = file_of(&folder.path().join("operator.toml"));
        assert!(load(&file).unwrap().is_none());
        let mut login = Login {
            issuer: "https://login.example".to_owned(),
            client_id: "writ-cli".to_owned(),
            token_endpoint: "https://login.example/token".to_owned(),
            revocation_endpoint: None,
            scope: "openid".to_owned(),
            audience: None,
            kind: TokenKind::Id,
            subject: "alice".to_owned(),
            token: "a.b.c".to_owned(),
            expires: 100,
            refresh_token: None,
        };
        save(&file, &login).unwrap();
        login.expires = 200;
        save(&file, &login).unwrap();
        assert_eq!(load(&file).unwrap(), Some(login.clone()));
        assert!(login.is_good_for(30, 100) && !login.is_good_for(30, 170));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "{}").unwrap();
        assert!(format!("{:#}", load(&file).unwrap_err()).contains("writ logout"));
    }
}
