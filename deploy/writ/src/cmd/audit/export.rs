//! `writ audit export`

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::{Value, json};
use writ_bus::Tail;
use writ_common::{
    control::ControlState,
    digest::Digest,
    policy::PolicyRevision,
    record::{Record, RecordBody},
    subjects::{Subject, control_stream},
    visible::visible,
};

use super::task_of;
use crate::{
    cmd::Common,
    exit::Exit,
    operator::{Operator, Recorded},
    view::records,
};

/// What is kept, for whoever finds the folder.
const READ_ME: &str = "What the audit stream holds of one task, as `writ audit export` found it.\n\n\
    records.jsonl   the task's records in the order of the stream: sequence, subject, the signed bytes (base64),\n                \
    and what they say\n\
    control.jsonl   the control stream up to the last record: keysets signed by the root, every key that signs\n                \
    records, every policy that was put in force; the same form\n\
    policies/       the files of the policies by which the task's verdicts were given, by revision\n\
    export.json     what was exported, from where, with the SHA-256 of both files\n\n\
    The signatures are in the bytes. Whoever has the root's public key from elsewhere can follow them from\n\
    there; that nothing was left out of the stream is not shown by this folder.\n";

#[derive(Args)]
pub struct Export {
    /// The task's id, or `last`
    #[arg(long)]
    task: String,
    /// New folder to write to; `evidence-<task>` if absent
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Messages of a stream, line by line.
struct Lines {
    text: Vec<u8>,
    count: usize,
}

impl Lines {
    fn add(&mut self, line: &Value) -> Result<()> {
        serde_json::to_writer(&mut self.text, line)?;
        self.text.push(b'\n');
        self.count += 1;
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest::plain(&self.text)
    }
}

async fn read(mut tail: Tail, mut take: impl FnMut(u64, &str, &[u8]) -> Result<()>) -> Result<()> {
    let mut pending = tail.pending;
    while pending > 0 {
        let message = tail.next().await?;
        pending = message.pending;
        take(message.sequence, &message.subject, &message.payload)?;
    }
    Ok(())
}

/// The policy a record was decided by, and how far the control stream had got.
fn basis(record: &Record) -> (Option<PolicyRevision>, u64) {
    let RecordBody::Verdict(verdicted) = &record.body else { return (None, 0) };
    (verdicted.basis.policy, verdicted.basis.epoch.map_or(0, |epoch| epoch.sequence))
}

impl Export {
    pub(super) async fn run(self, common: &Common) -> Result<Exit> {
        let operator = common.operator().await?;
        let root = common.profile()?.root;
        let task = task_of(self.task, &operator).await?;
        let out = self.out.unwrap_or_else(|| PathBuf::from(format!("evidence-{task}")));
        ensure!(
            !out.exists(),
            "{} is there already; evidence goes into a new folder (`--out`)",
            out.display()
        );
        let (control, policies) = operator.policies().await?;
        let (mut lines, mut needed, mut revisions) = (empty(), 0, BTreeMap::new());
        let mut faults = 0;
        read(operator.audit_tail(Some(&task), 1).await?, |sequence, subject, payload| {
            let recorded = Recorded::open(sequence, payload, &control);
            faults += usize::from(recorded.fault.is_some());
            if let Some(record) = &recorded.record {
                let (policy, epoch) = basis(record);
                needed = needed.max(epoch);
                let bundle = policies.iter().find(|(activation, _)| Some(activation.revision) == policy);
                revisions.extend(bundle.map(|(activation, bundle)| (activation.revision, bundle)));
            }
            let mut line = records::to_json(&recorded);
            add_bytes(&mut line, subject, payload);
            lines.add(&line)
        })
        .await?;
        ensure!(lines.count > 0, "the audit stream has no record of task {task}");
        let foundation =
            control_lines(&operator, needed, ControlState::new(operator.tenant().clone(), root)).await?;
        let now = writ_bus::SystemClock::new().now().wall;
        let short: Vec<String> = revisions.keys().map(|revision| revision.0.to_string()).collect();
        let summary = json!({
            "task": task, "tenant": operator.tenant(), "exported_at": now.to_string(),
            "root_key": root.to_string(), "policies": short,
            "records": {"count": lines.count, "sha256": lines.digest(), "faults": faults},
            "control": {"count": foundation.count, "sha256": foundation.digest()},
        });
        make(&out)?;
        write(&out.join("README"), READ_ME.as_bytes())?;
        write(&out.join("records.jsonl"), &lines.text)?;
        write(&out.join("control.jsonl"), &foundation.text)?;
        for (revision, bundle) in &revisions {
            for (path, text) in &bundle.0 {
                // The names are a policy's, and who put it in force may be who is under suspicion.
                let named = Path::new(path);
                ensure!(
                    named.components().all(|part| matches!(part, Component::Normal(_))),
                    "a file of policy {} is called `{}`, which is not written",
                    revision.0.short(),
                    visible(path)
                );
                write(&out.join("policies").join(revision.0.to_string()).join(named), text.as_bytes())?;
            }
        }
        write(&out.join("export.json"), format!("{summary:#}\n").as_bytes())?;
        let mut text = format!(
            "{}: {} records of task {task}, {} events of the control stream, {}\n",
            out.display(),
            lines.count,
            foundation.count,
            match revisions.len() {
                1 => "1 policy".to_owned(),
                count => format!("{count} policies"),
            }
        );
        if faults > 0 {
            text += &format!("{faults} records are not to be believed; records.jsonl says why (`fault`)\n");
        }
        text += "README in it says what is what. Nothing in it is checked again; the root's public key is in the \
                 operator's profile";
        common.say(text, &json!({"folder": out, "export": summary}))?;
        Ok(Exit::Ok)
    }
}

fn empty() -> Lines {
    Lines { text: Vec::new(), count: 0 }
}

fn add_bytes(line: &mut Value, subject: &str, payload: &[u8]) {
    if let Some(line) = line.as_object_mut() {
        line.insert("subject".to_owned(), subject.into());
        line.insert("payload".to_owned(), STANDARD.encode(payload).into());
    }
}

/// The control stream as far as the records rest on it. Each event names the one before it, so all are kept.
async fn control_lines(operator: &Operator, until: u64, mut state: ControlState) -> Result<Lines> {
    let mut lines = empty();
    let tenant = operator.tenant();
    let tail = operator.bus().tail(&control_stream(tenant), &Subject::Control.of(tenant), 1).await?;
    read(tail, |sequence, subject, payload| {
        if sequence > until {
            return Ok(());
        }
        let applied = state.apply(sequence, payload);
        let fault = applied.as_ref().err().map(ToString::to_string);
        let mut line = json!({"sequence": sequence, "fault": fault});
        add_bytes(&mut line, subject, payload);
        lines.add(&line)
    })
    .await?;
    Ok(lines)
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = file.parent() {
        make(folder)?;
    }
    let cannot = || format!("{} cannot be written", file.display());
    let mut new = fs::OpenOptions::new().write(true).create_new(true).open(file).with_context(cannot)?;
    new.write_all(bytes).and_then(|()| new.sync_all()).with_context(cannot)
}
