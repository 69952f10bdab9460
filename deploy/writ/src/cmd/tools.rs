//! `writ tools …`

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use writ_common::{contract::ToolContract, ids::Resource, policy::PolicySet};

use super::Common;
use crate::exit::{Exit, Invalid};

/// Tools and their contracts, as the policy in force declares them
#[derive(Subcommand)]
pub enum Tools {
    /// Every tool with its actions
    List,
    /// One tool with the schema of every action
    Show(Which),
}

#[derive(Args)]
pub struct Which {
    /// The tool, for example `tool.crm`
    tool: Resource,
}

fn to_json(contract: &ToolContract) -> Value {
    let actions: serde_json::Map<String, Value> = contract
        .actions
        .iter()
        .map(|(name, action)| {
            let schema: Value = serde_json::from_str(&action.schema.to_string()).unwrap_or_default();
            let value = json!({
                "effect": action.effect.as_str(), "description": action.description, "schema": schema,
            });
            (name.to_string(), value)
        })
        .collect();
    json!({
        "resource": contract.resource, "description": contract.description,
        "digest": contract.digest, "actions": actions,
    })
}

impl Tools {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let control = common.operator().await?.control().await?;
        let (_, bundle) = control.policy().context("no policy is in force")?;
        let (policy, _) = PolicySet::load(bundle).map_err(Invalid)?;
        match self {
            Self::List => {
                let lines: Vec<String> = policy
                    .contracts()
                    .flat_map(|contract| {
                        contract.actions.iter().map(|(name, action)| {
                            let right = format!("{}:{name}", contract.resource);
                            format!("{right:<28} {:<9} {}", action.effect.as_str(), action.description)
                        })
                    })
                    .collect();
                let all: Vec<Value> = policy.contracts().map(to_json).collect();
                common.say(lines.join("\n"), &all.into())?;
            }
            Self::Show(Which { tool }) => {
                let contract = policy.contract(&tool).with_context(|| {
                    let names: Vec<&str> = policy.contracts().map(|known| known.resource.as_str()).collect();
                    format!("there is no tool `{tool}`; there are {}", names.join(", "))
                })?;
                let shown = to_json(contract);
                common.say(serde_json::to_string_pretty(&shown)?, &shown)?;
            }
        }
        Ok(Exit::Ok)
    }
}
