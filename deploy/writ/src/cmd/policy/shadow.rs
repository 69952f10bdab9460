//! `writ policy shadow`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use writ_broker::config::read_policies;
use writ_common::{
    policy::PolicySet,
    wire::{AdminReply, AdminWanted},
};

use super::super::Common;
use crate::exit::{Exit, Invalid};

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Shadow {
    /// The folder of the policy
    #[arg(group = "what")]
    folder: Option<PathBuf>,
    /// Ask no other policy any more
    #[arg(long, group = "what")]
    off: bool,
}

impl Shadow {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let bundle = match &self.folder {
            Some(folder) => {
                let bundle = read_policies(folder).map_err(Invalid)?;
                PolicySet::load(&bundle).map_err(Invalid)?;
                Some(bundle)
            }
            None => None,
        };
        let revision = bundle.as_ref().map(writ_common::policy::PolicyBundle::revision);
        let operator = common.operator().await?;
        let AdminReply::Done { epoch } = operator.ask(AdminWanted::ShadowPolicy { bundle }).await? else {
            bail!("an answer to another question");
        };
        let text = match revision {
            Some(revision) => format!(
                "policy {} is asked beside the one in force as of epoch {epoch}, and nothing is done by its answers\n\
                 next: writ audit tail; `writ policy shadow --off` ends it",
                revision.0.short()
            ),
            None => format!("no other policy is asked as of epoch {epoch}"),
        };
        common.say(text, &json!({"shadow": revision, "epoch": epoch}))?;
        Ok(Exit::Ok)
    }
}
