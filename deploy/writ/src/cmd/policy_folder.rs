//! A policy folder that a command changes and puts in force: whole, checked beforehand, and put back if that fails.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use writ_broker::config::read_policies;
use writ_bus::SystemClock;
use writ_common::policy::{PolicyBundle, PolicyRevision, PolicySet};

use super::policy::activate::{check_cases, replace};
use crate::{exit::Invalid, operator::Operator};

/// A policy folder that is in force.
pub(super) struct PolicyFolder {
    pub(super) path: PathBuf,
    pub(super) bundle: PolicyBundle,
    pub(super) policy: PolicySet,
    present: PolicyRevision,
}

impl PolicyFolder {
    /// Reads a folder. What somebody has changed in it and not put in force is theirs to put in force.
    pub(super) async fn open(path: &Path, operator: &Operator) -> Result<Self> {
        let bundle = read_policies(path).map_err(Invalid)?;
        let (policy, _) = PolicySet::load(&bundle).map_err(Invalid)?;
        let control = operator.control().await?;
        let (_, active) =
            control.policy().context("no policy is in force; `writ policy activate` puts one")?;
        let present = active.revision();
        ensure!(
            bundle.revision() == present,
            "{0} is not the policy that is in force ({1}): `writ policy diff {0}` says what differs, `writ policy \
             activate {0}` puts it in force; or name the folder with `--policies`",
            path.display(),
            present.0.short()
        );
        Ok(Self { path: path.to_owned(), bundle, policy, present })
    }

    /// The folder with these files instead; `None` takes one out.
    pub(super) fn with(&self, changes: &BTreeMap<String, Option<String>>) -> PolicyBundle {
        let mut bundle = self.bundle.clone();
        for (path, text) in changes {
            match text {
                Some(text) => drop(bundle.0.insert(path.clone(), text.clone())),
                None => drop(bundle.0.remove(path)),
            }
        }
        bundle
    }

    /// Checks a changed policy as `writ policy activate` does.
    pub(super) fn check(&self, bundle: &PolicyBundle) -> Result<PolicySet> {
        let (policy, _) = PolicySet::load(bundle).map_err(Invalid)?;
        let observed = policy.check_observed(SystemClock::new().now().wall);
        if observed.has_errors() {
            return Err(Invalid(observed).into());
        }
        check_cases(&self.path, &policy)?;
        Ok(policy)
    }

    /// Writes the changes and puts them in force; if that fails, the folder is as it was.
    pub(super) async fn put_in_force(
        self,
        operator: &Operator,
        changes: &BTreeMap<String, Option<String>>,
    ) -> Result<PolicyRevision> {
        let bundle = self.with(changes);
        let revision = bundle.revision();
        if revision == self.present {
            return Ok(revision);
        }
        self.check(&bundle)?;
        self.write(changes)?;
        if let Err(error) = replace(operator, bundle, self.present).await {
            let before = changes.keys().map(|path| (path.clone(), self.bundle.0.get(path).cloned()));
            self.write(&before.collect())?;
            return Err(error.context("nothing was put in force, and the policy folder is as it was"));
        }
        Ok(revision)
    }

    fn write(&self, changes: &BTreeMap<String, Option<String>>) -> Result<()> {
        for (path, text) in changes {
            let file = self.path.join(path);
            let cannot = || format!("{} cannot be written", file.display());
            match text {
                Some(text) => {
                    if let Some(folder) = file.parent() {
                        fs::create_dir_all(folder).with_context(cannot)?;
                    }
                    fs::write(&file, text).with_context(cannot)?;
                }
                None if file.exists() => fs::remove_file(&file).with_context(cannot)?,
                None => {}
            }
        }
        Ok(())
    }
}
