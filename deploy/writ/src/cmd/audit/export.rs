//! `writ audit export`

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{
    report::{Page, checks},
    task_of,
};
use crate::{
    archive::store::Store,
    cmd::Common,
    evidence::{
        folder::REPORT,
        read::{Against, verify},
        write::{Written, export},
    },
    exit::Exit,
    view::report::Finding,
};

#[derive(Args)]
pub struct Export {
    /// A task's id, or `last`; everything of the tenant if absent
    #[arg(long)]
    task: Option<String>,
    /// Where parts of the audit stream were put away: a folder, or `s3://bucket/prefix`
    #[arg(long, value_name = "WHERE")]
    archive: Option<String>,
    /// New folder to write to; `evidence-<task>` or `evidence-<tenant>` if absent
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Export {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let root = common.profile()?.root;
        let task = match self.task {
            Some(task) => Some(task_of(task, &operator).await?),
            None => None,
        };
        let of = task.as_ref().map_or_else(|| operator.tenant().to_string(), ToString::to_string);
        let out = self.out.unwrap_or_else(|| PathBuf::from(format!("evidence-{of}")));
        let archive = self.archive.as_deref().map(Store::open).transpose()?;
        let Written { mut manifest, events, unproved, uncovered, removed } =
            export(&operator, root, task.as_ref(), archive.as_ref(), &out).await?;
        if let Some(task) = &task {
            // The report says what a verification of this very folder finds.
            let (_, report) = verify(&out, &Against { root: Some(root), ..Against::default() })?;
            let findings = Finding::of_report(&report);
            let page =
                Page::of(&operator, root, archive.as_ref(), task, &findings, &checks(task, &root)).await?;
            manifest.add(&out, REPORT, page.html.as_bytes())?;
        }
        let policies = match manifest.policies.len() {
            1 => "1 policy".to_owned(),
            count => format!("{count} policies"),
        };
        let what = task.as_ref().map(|task| format!(" of task {task}")).unwrap_or_default();
        let mut text = format!(
            "{}: {} records{what}, {events} events of the control stream, {policies}\n",
            out.display(),
            manifest.records
        );
        if manifest.faults > 0 {
            text += &format!(
                "{} records are not to be believed; records.jsonl says why (`fault`)\n",
                manifest.faults
            );
        }
        if removed > 0 {
            text += &format!("{removed} records were removed by retention; their hashes are here\n");
        }
        for log in &unproved {
            text += &format!(
                "the records of log {log} do not lead to its checkpoint; `writ audit verify` says more\n"
            );
        }
        if uncovered > 0 {
            text += &format!(
                "{uncovered} records are not covered by a witnessed checkpoint yet; export again in some seconds\n"
            );
        }
        text += &format!(
            "check it anywhere with `writ audit verify {} --root {}`; give the key by another way than the folder",
            out.display(),
            manifest.root_key
        );
        let unproved: Vec<String> = unproved.iter().map(ToString::to_string).collect();
        common.say(
            text,
            &json!({"folder": out, "export": manifest, "unproved": unproved, "uncovered": uncovered, "removed": removed}),
        )?;
        Ok(Exit::Ok)
    }
}
