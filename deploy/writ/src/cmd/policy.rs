//! `writ policy …`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use writ_broker::config::read_policies;
use writ_common::policy::PolicySet;

use super::Common;
use crate::exit::{Exit, Invalid};

/// Policies
#[derive(Subcommand)]
pub enum Policy {
    /// Check a policy folder: every finding with file, line and column
    Check(Check),
}

#[derive(Args)]
pub struct Check {
    /// The folder
    folder: PathBuf,
}

impl Policy {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let Self::Check(Check { folder }) = self;
        let bundle = read_policies(&folder).map_err(Invalid)?;
        let (policy, warnings) = PolicySet::load(&bundle).map_err(Invalid)?;
        let text = format!(
            "{warnings}{}{}: {} rules, {} agents, {} tools, revision {}",
            if warnings.0.is_empty() { "" } else { "\n" },
            folder.display(),
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
