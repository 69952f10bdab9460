//! `writ audit report`

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use writ_common::{
    approval::ApprovalRequest,
    ids::{PartId, TaskId, TenantId},
    keys::PublicKey,
    record::{Origin, RecordBody},
    subjects::{Subject, filter, part_stream},
};

use super::{asked::now, task_of};
use crate::{
    archive::{manifest::Class, store::Store},
    cmd::Common,
    evidence::gather::away,
    exit::Exit,
    index::source::{self, Said},
    operator::{Operator, Recorded},
    view::report::{Finding, ReportInput, render},
};

#[derive(Args)]
pub struct Report {
    /// The task's id, or `last`
    task: String,
    /// Where parts of the audit stream were put away: a folder, or `s3://bucket/prefix`
    #[arg(long, value_name = "WHERE")]
    archive: Option<String>,
    /// New file to write to; `report-<task>.html` if absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A report as it is written.
pub(super) struct Page {
    pub(super) html: String,
    verdicts: usize,
    faults: usize,
}

impl Page {
    /// Writes a task down, with what a verification of its evidence found.
    pub(super) async fn of(
        operator: &Operator,
        root: PublicKey,
        archive: Option<&Store>,
        task: &TaskId,
        findings: &[Finding],
        checks: &[(String, String)],
    ) -> Result<Self> {
        let history = source::history(operator, root).await?;
        let mut recorded = Vec::new();
        let of_task = |tenant: &TenantId, part: &PartId| filter::records_of_task(tenant, part, task);
        away(operator, archive, Class::Records, of_task, |_, message| {
            recorded.push(Recorded::open(message.sequence, &message.payload, &history.state));
            Ok(())
        })
        .await?;
        recorded.extend(operator.records(Some(task)).await?);
        let hint = match archive {
            None if !history.state.parts().archived().is_empty() => {
                "; if it was put away, say where with `--archive`"
            }
            _ => "",
        };
        ensure!(!recorded.is_empty(), "the audit stream has no record of task {task}{hint}");
        let instruction = instruction(operator, task).await?;
        let believed = recorded.iter().filter(|one| one.fault.is_none());
        let verdicts = believed.filter_map(|one| match &one.record.as_ref()?.body {
            RecordBody::Verdict(verdicted) => Some(verdicted),
            _ => None,
        });
        let asked = verdicts.filter_map(|one| Some(one.approval.as_ref()?.request)).collect();
        let mut said = Said::to(&asked, operator, archive, &history).await?;
        // A record that names another task's approval takes nothing of that along.
        let is_others = |request: &ApprovalRequest| request.task != *task;
        said.answers.retain(|answer| !said.requests.get(&answer.request).is_some_and(is_others));
        said.requests.retain(|_, request| !is_others(request));
        let named: Vec<&Origin> =
            recorded.iter().filter_map(|one| Some(&one.record.as_ref()?.id.origin)).collect();
        let enrolled = history.record_keys.iter().filter(|change| named.contains(&&change.what.0));
        let mut keys: Vec<_> = enrolled.map(|change| change.what.clone()).collect();
        keys.dedup();
        let (from, made_at) = (format!("the audit stream of `{}`", operator.tenant()), now());
        let html = render(&ReportInput {
            tenant: operator.tenant(),
            task,
            made_at,
            source: &from,
            root: &root,
            recorded: &recorded,
            instruction: instruction.as_deref(),
            requests: &said.requests,
            answers: &said.answers,
            policies: &history.policies,
            keys: &keys,
            findings,
            checks,
        });
        let verdicts = recorded.iter().filter_map(|one| one.record.as_ref());
        let verdicts = verdicts.filter(|record| matches!(record.body, RecordBody::Verdict(_))).count();
        let faults = recorded.iter().filter(|one| one.fault.is_some()).count();
        Ok(Self { html, verdicts, faults })
    }
}

impl Report {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let root = common.profile()?.root;
        let operator = common.operator().await?;
        let task = task_of(self.task, &operator).await?;
        let archive = self.archive.as_deref().map(Store::open).transpose()?;
        let Page { html, verdicts, faults } =
            Page::of(&operator, root, archive.as_ref(), &task, &[], &checks(&task, &root)).await?;
        let out = self.out.unwrap_or_else(|| PathBuf::from(format!("report-{task}.html")));
        // It names people and what they did: for its owner's eyes, and never in the place of another file.
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&out);
        let written =
            opened.and_then(|mut file| file.write_all(html.as_bytes()).and_then(|()| file.sync_all()));
        written.with_context(|| {
            format!("{} cannot be written; it has to be a new file (`--out`)", out.display())
        })?;
        let mut text = format!("{}: {verdicts} verdicts of task {task}", out.display());
        if faults > 0 {
            text += &format!("\n{faults} records are not to be believed; the report says why");
        }
        common.say(text, &json!({"file": out, "task": task, "verdicts": verdicts, "faults": faults}))?;
        operator.close().await;
        Ok(Exit::Ok)
    }
}

/// What the user asked for, while the stream has it. The report compares it with the digest on record.
async fn instruction(operator: &Operator, task: &TaskId) -> Result<Option<String>> {
    for part in operator.control().await?.parts().live() {
        let stream = part_stream(operator.tenant(), part);
        let subject = Subject::Instruction { part: part.clone(), task: task.clone() }.of(operator.tenant());
        if let Some(message) = operator.bus().last_on(&stream, &subject).await? {
            return Ok(String::from_utf8(message.payload.to_vec()).ok());
        }
    }
    Ok(None)
}

/// What can be checked, and how.
pub(super) fn checks(task: &TaskId, root: &PublicKey) -> Vec<(String, String)> {
    [
        (
            "The records are these, signed by these keys, and in the logs that were witnessed",
            format!("writ audit export --task {task}, then writ audit verify evidence-{task} --root {root}"),
        ),
        ("They say what stands here", format!("writ audit chain {task}")),
        (
            "No record of anybody is missing",
            format!("writ audit export, then writ audit verify … --root {root}"),
        ),
        ("A rule is the one that was in force", "writ policy show <revision> --files".to_owned()),
    ]
    .map(|(claim, command)| (claim.to_owned(), command))
    .to_vec()
}
