//! Messages as they come from streams, archives and exports, and what is to be believed of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use writ_bus::StoredMessage;
use writ_common::{
    approval::{ApprovalAnswer, ApprovalRequest},
    codec::decode,
    digest::Digest,
    evidence::is_its_subject,
    ids::PartId,
    keys::PublicKey,
    signed::Signed,
    subjects::{Subject, control_stream},
    time::Timestamp,
};

use super::{
    fill::{Content, Filler, Message},
    history::ControlHistory,
    row::Place,
};
use crate::{
    archive::store::Store,
    cores::on_every_core,
    evidence::gather::approvals,
    operator::{Operator, Recorded},
};

/// A message as it came.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The part of the audit stream it stands in.
    pub part: PartId,
    /// Sequence in that part's stream.
    pub sequence: u64,
    /// When the bus stored it; in an export, which does not say that, when its writer says it was made.
    pub at: Timestamp,
    /// Its subject, as far as it is known.
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl Raw {
    pub(super) fn of(part: PartId, message: StoredMessage) -> Self {
        let StoredMessage { subject, sequence, at, payload, pending: _ } = message;
        Self { part, sequence, at, subject, payload: payload.into() }
    }
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
    let place = Place { part: raw.part.clone(), sequence: raw.sequence };
    Message { place, digest: Digest::plain(&raw.payload), content }
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

/// What an answer says, whoever signed it.
pub(super) fn answer_in(payload: &[u8]) -> Option<ApprovalAnswer> {
    decode::<Signed<ApprovalAnswer>>(payload).ok()?.peek().ok()
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

/// What approvers were shown, and what they answered.
#[derive(Debug, Default)]
pub struct Said {
    /// Requests by their digests, which is how records and answers name them.
    pub requests: BTreeMap<Digest, ApprovalRequest>,
    /// Answers, as far as their keys were ever enrolled: part after part, in the order of its stream.
    pub answers: Vec<ApprovalAnswer>,
}

impl Said {
    /// Those to some requests.
    ///
    /// # Errors
    /// If a stream or the archive cannot be read.
    pub async fn to(
        requests: &BTreeSet<Digest>,
        operator: &Operator,
        archive: Option<&Store>,
        history: &ControlHistory,
    ) -> Result<Self> {
        let mut said = Self::default();
        if requests.is_empty() {
            return Ok(said);
        }
        approvals(operator, archive, |part, message| {
            said.take(requests, &Raw::of(part.clone(), message), history);
            Ok(())
        })
        .await?;
        Ok(said)
    }

    /// Takes a message if it is one of them.
    pub(super) fn take(&mut self, requests: &BTreeSet<Digest>, raw: &Raw, history: &ControlHistory) {
        match Subject::parse(&raw.subject) {
            Ok((_, Subject::ApprovalRequest { .. })) => {
                let signed = decode::<Signed<ApprovalRequest>>(&raw.payload).ok();
                let request = signed.and_then(|signed| Some((signed.digest(), signed.peek().ok()?)));
                self.requests.extend(request.filter(|(digest, _)| requests.contains(digest)));
            }
            Ok((_, Subject::ApprovalAnswer { .. })) => {
                // Its signature costs most, and is looked at last.
                if answer_in(&raw.payload).is_some_and(|answer| requests.contains(&answer.request))
                    && let Content::Answer(answer) = open_answer(raw, history)
                {
                    self.answers.push(*answer);
                }
            }
            _ => {}
        }
    }
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
