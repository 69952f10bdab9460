//! Where messages come from: the streams of a part, or the files of an export.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use writ_bus::Tail;
use writ_common::{
    approval::ApprovalAnswer,
    codec::decode,
    digest::Digest,
    evidence::is_its_subject,
    ids::{PartId, TenantId},
    keys::PublicKey,
    signed::Signed,
    subjects::{Subject, control_stream, part_stream},
};

use super::{
    Index, Source,
    fill::{Content, Filler, Message},
    history::ControlHistory,
};
use crate::{
    cores::on_every_core,
    evidence::folder::Line,
    operator::{Operator, Recorded},
};

/// Messages whose signatures are checked together.
const BATCH: usize = 4_096;

/// A message as it came.
#[derive(Clone, Debug)]
pub struct Raw {
    /// Stream sequence.
    pub sequence: u64,
    /// Its subject, as far as it is known.
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Opens messages against the keys of the control stream, on every core there is.
///
/// # Errors
/// If a thread that does so ends early.
pub fn open_all(raws: &[Raw], history: &ControlHistory) -> Result<Vec<Message>> {
    on_every_core(raws, |raw| open(raw, history))
}

fn open(raw: &Raw, history: &ControlHistory) -> Message {
    let content = match Subject::parse(&raw.subject) {
        Ok((_, Subject::ApprovalAnswer { .. })) => open_answer(raw, history),
        _ => open_record(raw, history),
    };
    Message { sequence: raw.sequence, digest: Digest::plain(&raw.payload), content }
}

fn open_record(raw: &Raw, history: &ControlHistory) -> Content {
    let recorded = Recorded::open(raw.sequence, &raw.payload, &history.state);
    match (recorded.record, recorded.fault) {
        (Some(record), None) if record.tenant != *history.state.tenant() => {
            Content::Fault(format!("is a record of tenant `{}`", record.tenant))
        }
        // What a node signed for one place says nothing at another: it would be found under the wrong task.
        (Some(record), None) if !is_its_subject(&record, &raw.subject) => {
            Content::Fault(format!("stands on a subject that is not its own: {}", raw.subject))
        }
        (Some(record), None) => Content::Record(Box::new(record)),
        (_, fault) => Content::Fault(fault.unwrap_or_else(|| "is not a record".to_owned())),
    }
}

fn open_answer(raw: &Raw, history: &ControlHistory) -> Content {
    let signed: Signed<ApprovalAnswer> = match decode(&raw.payload) {
        Ok(signed) => signed,
        Err(error) => return Content::Fault(error.to_string()),
    };
    let Ok(claimed) = signed.peek() else { return Content::Fault("is not an answer".to_owned()) };
    match signed.open(|key| history.is_approver_key(&claimed.approver, key)) {
        Ok(answer) if answer.tenant == *history.state.tenant() => Content::Answer(Box::new(answer)),
        Ok(answer) => Content::Fault(format!("is an answer of tenant `{}`", answer.tenant)),
        Err(error) => Content::Fault(format!("an answer in the name of `{}`: {error}", claimed.approver)),
    }
}

/// Reads the control stream.
///
/// # Errors
/// If it cannot be read.
pub async fn history(operator: &Operator, root: PublicKey) -> Result<ControlHistory> {
    let tenant = operator.tenant();
    let mut history = ControlHistory::new(tenant.clone(), root);
    let mut tail = operator.bus().tail(&control_stream(tenant), &Subject::Control.of(tenant), 1).await?;
    let mut pending = tail.pending;
    while pending > 0 {
        let message = tail.next().await?;
        pending = message.pending;
        history.take(message.sequence, &message.payload);
    }
    Ok(history)
}

/// What approvers answered, as far as their keys were ever enrolled, in the order of the stream.
///
/// # Errors
/// If the stream cannot be read.
pub async fn answers(operator: &Operator, history: &ControlHistory) -> Result<Vec<ApprovalAnswer>> {
    let mut answers = Vec::new();
    let mut tail = operator.approval_tail(&PartId::first(), 1).await?;
    let mut pending = tail.pending;
    while pending > 0 {
        let message = tail.next().await?;
        pending = message.pending;
        if !matches!(Subject::parse(&message.subject), Ok((_, Subject::ApprovalAnswer { .. }))) {
            continue;
        }
        if let Content::Answer(answer) =
            open_answer(&raw(message.sequence, message.subject, &message.payload), history)
        {
            answers.push(*answer);
        }
    }
    Ok(answers)
}

/// What the audit stream is now.
///
/// # Errors
/// If it cannot be reached, or there is none.
pub async fn stream_source(operator: &Operator) -> Result<(Source, u64)> {
    let name = part_stream(operator.tenant(), &PartId::first());
    let facts = operator.bus().stream_facts(&name).await?;
    let facts =
        facts.with_context(|| format!("there is no stream `{name}`; a broker makes it when it starts"))?;
    Ok((Source::Stream { name, created: facts.created_ns.to_string() }, facts.last_sequence))
}

/// Takes in what the stream holds beyond the index.
///
/// # Errors
/// If the stream went back behind the index or holds something else there, or one of the two cannot be read.
pub async fn fill_from_stream(
    index: Index,
    operator: &Operator,
    history: &ControlHistory,
    last: u64,
) -> Result<Index> {
    check_goes_on(&index, operator, last).await?;
    let mut filler = Filler::new(index)?;
    let from = filler.next();
    if from > last {
        return Ok(filler.finish()?);
    }
    // Answers are few; records are read as they come and the two are put in one order.
    let mut answers = Vec::new();
    let mut tail = operator.approval_tail(&PartId::first(), from).await?;
    let mut pending = tail.pending;
    while pending > 0 {
        let message = tail.next().await?;
        pending = message.pending;
        let is_answer = matches!(Subject::parse(&message.subject), Ok((_, Subject::ApprovalAnswer { .. })));
        if is_answer && message.sequence <= last {
            answers.push(raw(message.sequence, message.subject, &message.payload));
        }
    }
    let mut answers = answers.into_iter().peekable();
    let mut batch = Vec::new();
    let mut tail: Tail = operator.audit_tail(&PartId::first(), None, from).await?;
    let mut pending = tail.pending;
    while pending > 0 {
        let message = tail.next().await?;
        pending = message.pending;
        if message.sequence > last {
            break;
        }
        while let Some(answer) = answers.next_if(|answer| answer.sequence < message.sequence) {
            batch.push(answer);
        }
        batch.push(raw(message.sequence, message.subject, &message.payload));
        if batch.len() >= BATCH {
            take_all(&mut filler, &std::mem::take(&mut batch), history)?;
        }
    }
    batch.extend(answers);
    take_all(&mut filler, &batch, history)?;
    Ok(filler.finish()?)
}

fn raw(sequence: u64, subject: String, payload: &[u8]) -> Raw {
    Raw { sequence, subject, payload: payload.to_vec() }
}

/// Opens messages and takes them in.
///
/// # Errors
/// As [`Filler::take`] and [`open_all`].
pub fn take_all(filler: &mut Filler, raws: &[Raw], history: &ControlHistory) -> Result<()> {
    for message in open_all(raws, history)? {
        filler.take(message)?;
    }
    Ok(())
}

/// A stream that was put back to an earlier state and grew on looks as if it went on. The last message that was taken
/// has to be there, byte for byte.
async fn check_goes_on(index: &Index, operator: &Operator, last: u64) -> Result<()> {
    let position = index.position();
    let Some((sequence, digest)) = position.last else { return Ok(()) };
    if sequence > last {
        let why =
            format!("holds messages up to #{sequence}, and the stream ends at #{last}: the stream went back");
        return Err(index.other_source(why).into());
    }
    let Source::Stream { name, .. } = &position.source else { return Ok(()) };
    let message = operator.bus().message_at(name, sequence).await?;
    if message.is_none_or(|message| Digest::plain(&message.payload) != digest) {
        let why = format!(
            "holds another message #{sequence} than the stream: the stream was put back to an earlier state"
        );
        return Err(index.other_source(why).into());
    }
    Ok(())
}

/// Every message of a file of an export.
fn lines(file: &Path, mut take: impl FnMut(Raw) -> Result<()>) -> Result<()> {
    let name = file.display().to_string();
    let opened = File::open(file).with_context(|| format!("{name} cannot be read"))?;
    for (number, line) in BufReader::new(opened).lines().enumerate() {
        let line = line.with_context(|| format!("{name} cannot be read"))?;
        if line.trim().is_empty() {
            continue;
        }
        let place = || format!("{name}:{}", number + 1);
        let (line, payload) =
            Line::parse(&line).map_err(|why| anyhow!("{}: no line of an export: {why}", place()))?;
        take(Raw { sequence: line.sequence, subject: line.subject, payload })?;
    }
    Ok(())
}

/// Reads the control stream of an export.
///
/// # Errors
/// If the file cannot be read, or none of it counts under this root.
pub fn export_history(folder: &Path, tenant: TenantId, root: PublicKey) -> Result<ControlHistory> {
    let mut history = ControlHistory::new(tenant, root);
    let file = folder.join("control.jsonl");
    lines(&file, |raw| {
        history.take(raw.sequence, &raw.payload);
        Ok(())
    })?;
    ensure!(
        history.state.keyset().is_some(),
        "{} holds no keyset that the root {root} signed for tenant `{}`; give the root's key and the tenant with \
         `--root` and `--tenant`",
        file.display(),
        history.state.tenant()
    );
    Ok(history)
}

/// What an export is, as the source of an index.
///
/// # Errors
/// If its records cannot be read.
pub fn export_source(folder: &Path) -> Result<Source> {
    let file = folder.join("records.jsonl");
    let bytes = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(Source::Export { records: Digest::plain(&bytes) })
}

/// Takes in the records of an export, if that was not done.
///
/// # Errors
/// If the export or the index cannot be read.
pub fn fill_from_export(index: Index, folder: &Path, history: &ControlHistory) -> Result<Index> {
    let mut filler = Filler::new(index)?;
    let from = filler.next();
    let mut batch = Vec::new();
    lines(&folder.join("records.jsonl"), |raw| {
        if raw.sequence >= from {
            batch.push(raw);
        }
        if batch.len() >= BATCH {
            take_all(&mut filler, &std::mem::take(&mut batch), history)?;
        }
        Ok(())
    })?;
    take_all(&mut filler, &batch, history)?;
    Ok(filler.finish()?)
}
