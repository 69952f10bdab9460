//! Writing an export.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Result, ensure};
use serde_json::json;
use writ_common::{
    control::ControlState,
    evidence::Word,
    ids::{ApprovalId, TaskId},
    keys::PublicKey,
    policy::PolicyRevision,
    record::{Record, RecordBody},
    subjects::{Subject, control_stream},
    tlog::{LogId, SignedCheckpoint},
};

use super::{
    folder::{
        APPROVALS, ARCHIVE, CHECKPOINT, CONTROL, FORMAT, FolderWriter, LOGS, Manifest, ManifestScope, RECORDS,
    },
    gather::{self, Gathered, Leaves, records},
};
use crate::{archive::store::Store, operator::Operator, view::records::to_json};

/// What is kept, for whoever finds the folder.
const READ_ME: &str = "Evidence of what AI agents did, and on whose authority, as `writ audit export` found it.\n\n\
    records.jsonl   the records in the order of the stream: sequence, subject, the signed bytes (base64), and\n                \
    what they say\n\
    approvals.jsonl what approvers were asked, arguments and all, and what they said; the same form\n\
    control.jsonl   the control stream: keysets signed by the offline root, every key that signs records, every\n                \
    policy that was put in force; the same form\n\
    logs/           of each run of a node or broker its newest checkpoint, signed by it and cosigned by a broker,\n                \
    and the hashes of all its records (C2SP tlog-tiles)\n\
    report.html     the same for reading and printing, of one task\n\
    archive/        the manifests of the parts of the audit stream that were put away, if there are any\n\
    policies/       the files of the policies by which the verdicts were given, by revision\n\
    export.json     what was exported, and the SHA-256 of every file\n\n\
    Check it, on any machine: `writ audit verify <this folder> --root <the offline root's public key>`. The key has\n\
    to come from somewhere else than from here. Format and rules: deploy/evidence.md of Writ.\n";

/// What came of it.
pub struct Written {
    /// The manifest.
    pub manifest: Manifest,
    /// Events of the control stream.
    pub events: u64,
    /// Logs with a checkpoint that the records here do not lead to.
    pub unproved: Vec<LogId>,
    /// Records nothing covers yet.
    pub uncovered: u64,
    /// Messages of parts that were put away which retention has removed since.
    pub removed: u64,
}

/// Writes everything, or everything of one task, into a new folder.
///
/// # Errors
/// If a stream cannot be read, the folder is there already, or there is nothing to write.
pub async fn export(
    operator: &Operator,
    root: PublicKey,
    task: Option<&TaskId>,
    archive: Option<&Store>,
    out: &Path,
) -> Result<Written> {
    let (_, policies) = operator.policies().await?;
    let mut folder = FolderWriter::create(out)?;
    let written = Box::pin(write(operator, root, task, archive, &policies, &mut folder)).await;
    // A folder that holds half of it must not look like evidence.
    match written {
        Ok(found) => finish(operator, root, task, found, folder).await,
        Err(error) => {
            drop(std::fs::remove_dir_all(out));
            Err(error)
        }
    }
}

struct Found {
    records: u64,
    faults: u64,
    revisions: Vec<String>,
    unproved: Vec<LogId>,
    uncovered: u64,
    events: u64,
    removed: u64,
}

type Policies = [(writ_common::control::Activation, writ_common::policy::PolicyBundle)];

async fn write(
    operator: &Operator,
    root: PublicKey,
    task: Option<&TaskId>,
    archive: Option<&Store>,
    policies: &Policies,
    folder: &mut FolderWriter,
) -> Result<Found> {
    let mut lines = folder.lines(RECORDS)?;
    let mut faults = 0;
    let mut revisions = BTreeMap::new();
    let mut logs: BTreeMap<LogId, u64> = BTreeMap::new();
    let mut named = BTreeSet::new();
    let gathered = records(operator, archive, |message, recorded| {
        let is_in = task.is_none() || subject_task(&message.subject) == task.cloned();
        if is_in {
            faults += u64::from(recorded.fault.is_some());
            if let Some(record) = recorded.record.as_ref() {
                let log = LogId::of(&record.tenant, &record.id);
                let end = logs.entry(log).or_default();
                *end = (*end).max(record.id.seq + 1);
                let revision = policy_of(record);
                let bundle = policies.iter().find(|(activation, _)| Some(activation.revision) == revision);
                revisions.extend(bundle.map(|(activation, bundle)| (activation.revision, bundle)));
                // What is not its recorder's word takes nothing else along.
                if let RecordBody::Verdict(verdicted) = &record.body
                    && recorded.fault.is_none()
                {
                    named.extend(verdicted.words().cloned());
                }
            }
            lines.message(to_json(recorded), &message.subject, &message.payload)?;
        }
        Ok(is_in)
    })
    .await?;
    let Gathered { heads, leaves, manifests, removed } = gathered;
    let records = folder.end(lines)?;
    for (part, manifest) in &manifests {
        folder.write(&format!("{ARCHIVE}/{part}.json"), manifest)?;
    }
    ensure!(
        records > 0,
        "the audit stream has no record{}",
        task.map(|task| format!(" of task {task}")).unwrap_or_default()
    );
    approvals(operator, archive, task.map(|task| (task, &named)), folder).await?;
    let events = control_events(operator, root, folder).await?;
    let is_in = |log: &LogId| task.is_none() || logs.contains_key(log);
    let mut unproved = Vec::new();
    for (log, head) in heads.iter().filter(|(log, _)| is_in(log)) {
        if !write_log(folder, log, head, leaves.get(log))? {
            unproved.push(log.clone());
        }
    }
    let covered = |log: &LogId| heads.get(log).map_or(0, |head| head.checkpoint().size);
    let uncovered = logs.iter().map(|(log, end)| end.saturating_sub(covered(log))).sum();
    for (revision, bundle) in &revisions {
        for (path, text) in &bundle.0 {
            folder.write(&format!("policies/{}/{path}", revision.0), text.as_bytes())?;
        }
    }
    folder.write("README", READ_ME.as_bytes())?;
    let revisions = revisions.keys().map(|revision: &PolicyRevision| revision.0.to_string()).collect();
    Ok(Found { records, faults, revisions, unproved, uncovered, events, removed })
}

async fn finish(
    operator: &Operator,
    root: PublicKey,
    task: Option<&TaskId>,
    found: Found,
    folder: FolderWriter,
) -> Result<Written> {
    let manifest = folder.finish(Manifest {
        format: FORMAT.to_owned(),
        tenant: operator.tenant().clone(),
        root_key: root.to_string(),
        exported_at: writ_bus::SystemClock::new().now().wall.to_string(),
        scope: task.map_or(ManifestScope::All(true), |task| ManifestScope::Task(task.clone())),
        records: found.records,
        faults: found.faults,
        policies: found.revisions,
        files: BTreeMap::new(),
    })?;
    let Found { unproved, uncovered, events, removed, .. } = found;
    Ok(Written { manifest, events, unproved, uncovered, removed })
}

/// Writes a checkpoint and its tiles; false if the records here do not lead to it.
fn write_log(
    folder: &mut FolderWriter,
    log: &LogId,
    head: &SignedCheckpoint,
    leaves: Option<&Leaves>,
) -> Result<bool> {
    let said = head.checkpoint();
    let name = format!("{LOGS}/{}", log.folder());
    folder.write(&format!("{name}/{CHECKPOINT}"), head.note().as_bytes())?;
    let none = Leaves::default();
    let Some(tree) = leaves.unwrap_or(&none).tree(said.size, &said.root) else { return Ok(false) };
    for (path, bytes) in tree.tiles(said.size)? {
        folder.write(&format!("{name}/{path}"), &bytes)?;
    }
    Ok(true)
}

/// The control stream. Each event names the one before it, so all are kept.
async fn control_events(operator: &Operator, root: PublicKey, folder: &mut FolderWriter) -> Result<u64> {
    let tenant = operator.tenant();
    let mut state = ControlState::new(tenant.clone(), root);
    let mut lines = folder.lines(CONTROL)?;
    let tail = operator.bus().tail(&control_stream(tenant), &Subject::Control.of(tenant), 1).await?;
    tail.try_drain(|message| {
        let fault = state.apply(message.sequence, &message.payload).err().map(|fault| fault.to_string());
        let said = json!({"sequence": message.sequence, "fault": fault});
        lines.message(said, &message.subject, &message.payload)
    })
    .await?;
    folder.end(lines)
}

/// What approvers were asked and said: of a task, or all of it. Its records name the approvals; one that names another
/// task's takes nothing of that along.
async fn approvals(
    operator: &Operator,
    archive: Option<&Store>,
    of: Option<(&TaskId, &BTreeSet<ApprovalId>)>,
    folder: &mut FolderWriter,
) -> Result<()> {
    let mut lines = folder.lines(APPROVALS)?;
    let mut others = BTreeSet::new();
    gather::approvals(operator, archive, |_, message| {
        let Ok((
            _,
            Subject::ApprovalRequest { approval: id, .. }
            | Subject::ApprovalAnswer { approval: id, .. }
            | Subject::LabelAct { act: id, .. },
        )) = Subject::parse(&message.subject)
        else {
            return Ok(());
        };
        let word = Word::read(&message.payload);
        if let Some((task, named)) = of {
            if word.as_ref().and_then(Word::task).is_some_and(|of| of != task) {
                others.insert(id.clone());
            }
            if !named.contains(&id) || others.contains(&id) {
                return Ok(());
            }
        }
        let said = word.map(|word| match word {
            Word::Request(request) => serde_json::to_value(request.said),
            Word::Answer(answer) => serde_json::to_value(answer.said),
            Word::Act(act) => serde_json::to_value(act.said),
        });
        let said = said.transpose()?;
        lines.message(json!({"sequence": message.sequence, "said": said}), &message.subject, &message.payload)
    })
    .await?;
    folder.end(lines)?;
    Ok(())
}

/// The task a message is filed under.
fn subject_task(subject: &str) -> Option<TaskId> {
    match Subject::parse(subject) {
        Ok((_, Subject::Audit { task, .. } | Subject::Restored { task, .. })) => task,
        _ => None,
    }
}

fn policy_of(record: &Record) -> Option<PolicyRevision> {
    match &record.body {
        RecordBody::Verdict(verdicted) => verdicted.basis.policy,
        RecordBody::Outcome(_) | RecordBody::Void(_) => None,
    }
}
