//! `writ halt --all`

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use writ_common::wire::{AdminReply, AdminWanted};

use super::Common;
use crate::exit::Exit;

/// Stop everything, or let it go on
#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Halt {
    /// Deny every call of every agent from now on
    #[arg(long, group = "what")]
    all: bool,
    /// End the halt
    #[arg(long, group = "what")]
    end: bool,
}

impl Halt {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let AdminReply::Done { epoch } = operator.ask(AdminWanted::HaltAll { on: !self.end }).await? else {
            bail!("an answer to another question");
        };
        let state = if self.end { "the halt has ended" } else { "everything is halted" };
        common.say(format!("{state} as of epoch {epoch}"), &json!({"halted": !self.end, "epoch": epoch}))?;
        Ok(Exit::Ok)
    }
}
