//! `writ policy check`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{super::Common, load};
use crate::exit::Exit;

#[derive(Args)]
pub struct Check {
    /// The folder
    folder: PathBuf,
}

impl Check {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let (policy, warnings) = load(&self.folder)?;
        let text = format!(
            "{warnings}{}{}: {} rules, {} agents, {} tools, revision {}",
            if warnings.0.is_empty() { "" } else { "\n" },
            self.folder.display(),
            policy.rules().len(),
            policy.inventory().agents.len(),
            policy.contracts().count(),
            policy.revision()
        );
        let findings: Vec<String> = warnings.0.iter().map(ToString::to_string).collect();
        common.say(
            text,
            &json!({"revision": policy.revision(), "rules": policy.rules().len(), "warnings": findings}),
        )?;
        Ok(Exit::Ok)
    }
}
