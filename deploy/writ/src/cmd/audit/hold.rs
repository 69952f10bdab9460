//! `writ audit hold`

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use writ_common::{
    hold::{Held, LegalHold},
    ids::HoldId,
    wire::{AdminReply, AdminWanted},
};

use crate::{cmd::Common, exit::Exit, view::table::Table};

/// Legal holds
#[derive(Subcommand)]
pub enum Hold {
    /// Keep something until the hold is lifted
    Add(Add),
    /// Lift a hold: retention may remove what it kept
    Lift(Lift),
    /// The holds in force
    List,
}

#[derive(Args)]
pub struct Add {
    /// The hold's name, such as that of the matter
    id: HoldId,
    /// What to keep: `everything`, `task:<id>` or `user:<issuer>/<subject>`
    on: Held,
    /// Why, for the record
    #[arg(long)]
    why: String,
}

#[derive(Args)]
pub struct Lift {
    /// The hold's name
    id: HoldId,
}

impl Hold {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let (id, hold) = match self {
            Self::Add(Add { id, on, why }) => (id, Some(LegalHold { on, why })),
            Self::Lift(Lift { id }) => (id, None),
            Self::List => {
                let holds = operator.control().await?.holds().clone();
                let mut table = Table::new(&["hold", "on", "why"]);
                for (id, hold) in &holds {
                    table.push([id.to_string(), hold.on.to_string(), hold.why.clone()]);
                }
                let text = if holds.is_empty() { "nothing is held\n".to_owned() } else { table.to_text() };
                let shown: Vec<_> = holds
                    .iter()
                    .map(|(id, hold)| json!({"id": id, "on": hold.on.to_string(), "why": hold.why}))
                    .collect();
                common.say(text, &json!({"holds": shown}))?;
                return Ok(Exit::Ok);
            }
        };
        let wanted = AdminWanted::LegalHold { id: id.clone(), hold: hold.clone() };
        let AdminReply::Done { epoch } = operator.ask(wanted).await? else {
            bail!("an answer to another question");
        };
        let text = match &hold {
            Some(hold) => format!("{id}: {} is held as of epoch {epoch}", hold.on),
            None => format!("{id} is lifted as of epoch {epoch}"),
        };
        let on = hold.as_ref().map(|hold| hold.on.to_string());
        common.say(text, &json!({"id": id, "on": on, "epoch": epoch}))?;
        operator.close().await;
        Ok(Exit::Ok)
    }
}
