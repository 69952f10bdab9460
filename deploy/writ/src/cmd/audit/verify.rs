//! `writ audit verify` and `writ audit heads`

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::Args;
use serde_json::json;
use writ_common::{
    evidence::{Report, Severity},
    keys::PublicKey,
    tlog::SignedCheckpoint,
};

use crate::{
    cmd::Common,
    evidence::{
        folder::{Manifest, ManifestScope},
        gather::heads,
        read::{Against, verify},
    },
    exit::Exit,
    view::colour,
};

/// Reads `ed25519:…`.
pub(super) fn root_key(text: &str) -> Result<PublicKey, String> {
    PublicKey::parse(text).map_err(|error| error.to_string())
}

#[derive(Args)]
pub struct Verify {
    /// The folder of an export
    export: PathBuf,
    /// The offline root's public key, from somewhere else than the export (`ed25519:…`)
    #[arg(long, value_parser = root_key)]
    root: Option<PublicKey>,
    /// Receipts that agents kept, one a line: each record they name has to be there
    #[arg(long, value_name = "FILE")]
    receipts: Option<PathBuf>,
    /// Checkpoints kept from earlier (`writ audit heads`): nothing of them may have changed since
    #[arg(long, value_name = "FILE")]
    heads: Option<PathBuf>,
}

impl Verify {
    /// Runs without broker, bus or profile.
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        let against = Against { root: self.root, receipts: self.receipts, heads: self.heads };
        let (manifest, report) = verify(&self.export, &against)?;
        common.say(text(common, &manifest, &report), &json!(report))?;
        Ok(if report.faults == 0 { Exit::Ok } else { Exit::Failure })
    }
}

fn text(common: &Common, manifest: &Manifest, report: &Report) -> String {
    let mut lines: Vec<String> = report
        .findings
        .iter()
        .map(|finding| {
            let paint = match finding.severity {
                Severity::Fault => colour::RED,
                Severity::Warning => colour::YELLOW,
                Severity::Note => colour::DIM,
            };
            common.colour().paint(paint, &finding.to_string())
        })
        .collect();
    let of = match &manifest.scope {
        ManifestScope::All(_) => format!("everything of tenant {}", manifest.tenant),
        ManifestScope::Task(task) => format!("task {task}"),
    };
    let (runs, records) = (report.runs, report.records);
    let verdict = match report.faults {
        0 => common.colour().paint(colour::GREEN, "nothing contradicts it"),
        1 => common.colour().paint(colour::RED, "1 fault"),
        count => common.colour().paint(colour::RED, &format!("{count} faults")),
    };
    lines.push(format!(
        "{of}, exported {}: {records} records of {runs} runs, {} of them under checkpoints: {verdict}",
        manifest.exported_at, report.witnessed
    ));
    lines.join("\n")
}

#[derive(Args)]
pub struct ShowHeads {}

impl ShowHeads {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let heads = heads(&operator).await?;
        let notes: Vec<&str> = heads.values().map(SignedCheckpoint::note).collect();
        let listed: Vec<_> = heads
            .values()
            .map(|head| {
                let said = head.checkpoint();
                json!({
                    "log": said.log.to_string(), "size": said.size, "root": said.root.to_string(),
                    "closed": said.is_closed, "checkpoint": head.note(),
                })
            })
            .collect();
        let text = notes.join("\n");
        if text.is_empty() {
            return Err(anyhow!("there is no checkpoint yet"));
        }
        common.say(text.trim_end().to_owned(), &json!(listed))?;
        Ok(Exit::Ok)
    }
}
