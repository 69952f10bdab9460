//! `writ config …`

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use writ_broker::config::read_policies;
use writ_bus::keyfile;
use writ_common::policy::PolicySet;

use super::Common;
use crate::{
    exit::{Exit, Invalid},
    run,
};

/// Configuration files
#[derive(Subcommand)]
pub enum Config {
    /// Check a broker's or a node's writ.toml, with the files it names
    Check(Check),
}

#[derive(Args)]
pub struct Check {
    /// The file
    #[arg(default_value = "writ.toml")]
    file: PathBuf,
}

impl Config {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let Self::Check(Check { file }) = self;
        // A broker's file has a `[broker]` table, a node's has a `[node]` table.
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let is_broker = text.lines().any(|line| line.trim_start().starts_with("[broker]"));
        let what = if is_broker {
            let config = run::read_broker_config(&file)?;
            let bundle = read_policies(&config.policies).map_err(Invalid)?;
            PolicySet::load(&bundle).map_err(Invalid)?;
            for key in [&config.key_file, &config.record_key_file] {
                keyfile::read_key(key)?;
            }
            keyfile::read_user(&config.bus_user_file)?;
            run::check_broker_files(&config)?;
            format!("broker {} of tenant {}", config.broker, config.tenant)
        } else {
            let config = run::read_node_config(&file)?;
            keyfile::read_key(&config.key_file)?;
            keyfile::read_user(&config.bus_user_file)?;
            format!("node {} of tenant {} with {} tools", config.node, config.tenant, config.tools.len())
        };
        common.say(format!("{}: {what}", file.display()), &json!({"file": file, "is": what}))?;
        Ok(Exit::Ok)
    }
}
