//! The files of the node that adopted servers go behind.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use writ_bus::keyfile;
use writ_common::ids::Resource;

use crate::{
    adopt::{
        manifest::replace,
        texts::{Secrets, with_block},
    },
    dev::upstreams,
};

/// How long `writ dev` may take to start its node with other servers: each may take half a minute to be there.
const TAKE_UP_TIMEOUT: Duration = Duration::from_secs(90);

/// Where a node's servers stand.
pub(super) enum NodeFiles {
    /// In the folder of `writ dev`, which takes them up while it runs.
    Development(PathBuf),
    /// In a node's writ.toml, which the node reads when it starts.
    File(PathBuf),
}

impl NodeFiles {
    fn base(&self) -> PathBuf {
        match self {
            Self::Development(root) => root.clone(),
            Self::File(file) => file.parent().unwrap_or(Path::new("/")).to_owned(),
        }
    }

    /// The folder of a server's secrets, as the node's configuration names it.
    pub(super) fn secrets(resource: &Resource) -> PathBuf {
        PathBuf::from("upstreams").join(resource.name())
    }

    fn secrets_folder(&self, resource: &Resource) -> PathBuf {
        self.base().join(Self::secrets(resource))
    }

    fn upstream_file(root: &Path, resource: &Resource) -> PathBuf {
        upstreams::folder(root).join(format!("{}.toml", resource.name()))
    }

    /// Puts a server there: its secrets first.
    pub(super) fn put(&self, resource: &Resource, upstream: &str, secrets: &Secrets) -> Result<()> {
        let folder = self.secrets_folder(resource);
        for (name, value) in secrets {
            keyfile::make_private_folder(&folder)?;
            let file = folder.join(name);
            if file.exists() {
                fs::remove_file(&file).with_context(|| file.display().to_string())?;
            }
            keyfile::write_secret(&file, value)?;
        }
        match self {
            Self::Development(root) => {
                keyfile::make_private_folder(&upstreams::folder(root))?;
                replace(&Self::upstream_file(root, resource), upstream.as_bytes())
            }
            Self::File(file) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                replace(file, with_block(&text, resource.as_str(), Some(upstream)).as_bytes())
            }
        }
    }

    /// Takes a server out, with its secrets.
    pub(super) fn remove(&self, resource: &Resource) -> Result<()> {
        match self {
            Self::Development(root) => {
                let file = Self::upstream_file(root, resource);
                if file.exists() {
                    fs::remove_file(&file).with_context(|| file.display().to_string())?;
                }
            }
            Self::File(file) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                let without = with_block(&text, resource.as_str(), None);
                if without != text {
                    replace(file, without.as_bytes())?;
                }
            }
        }
        let folder = self.secrets_folder(resource);
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    }

    /// Waits until `writ dev` serves what is there.
    pub(super) async fn wait(&self, resources: &[&Resource]) -> Result<()> {
        let Self::Development(root) = self else { return Ok(()) };
        let folder = upstreams::folder(root);
        let wanted = upstreams::digest(&upstreams::read(&folder)?);
        let began = Instant::now();
        loop {
            if let Some(taken_up) = upstreams::taken_up(&folder).filter(|one| one.digest == wanted) {
                let fault = resources.iter().find_map(|resource| taken_up.left_out.get(resource.name()));
                return match fault {
                    Some(why) => bail!("the node does not take it: {why}"),
                    None => Ok(()),
                };
            }
            if began.elapsed() > TAKE_UP_TIMEOUT {
                let seconds = TAKE_UP_TIMEOUT.as_secs();
                bail!(
                    "`writ dev` has not taken up the servers after {seconds} s; is it running, and of this version?"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
