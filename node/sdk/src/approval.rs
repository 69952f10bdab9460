//! Calls that people have to approve first: held, waited for or put aside, and then made, once.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use writ_common::{
    approval::{Need, in_words},
    codec::{CodecError, Message, decode, encode},
    ids::{Action, ApprovalId, Resource, TaskId},
    json::Value,
    time::Timestamp,
    trace::TraceContext,
    wire::ToldReason,
};

use crate::{
    Error, Labelled, Task,
    call::{Logical, note},
    spans::Span,
};

/// First pause between two questions whether people have answered, and the longest.
pub(crate) const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A call that waits for people. Nothing was done yet.
///
/// It can be written down with [`Held::to_bytes`] and taken up again by another process of the same agent: the
/// node lets the call through once, however often and wherever it is made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The request for approval: what `writ approval show` takes.
    pub approval: ApprovalId,
    /// The task.
    pub task: TaskId,
    /// Until when it can be answered and used.
    pub expires: Timestamp,
    /// Who still has to say yes.
    pub missing: Vec<Need>,
    /// Answers that do not count, and why.
    pub unusable: Vec<ToldReason>,
    pub(crate) resource: Resource,
    pub(crate) action: Action,
    pub(crate) arguments: String,
    #[serde(with = "serde_bytes")]
    pub(crate) handover: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub(crate) nonce: Vec<u8>,
    /// Where the trace stood when the call was held, as a W3C `traceparent`.
    pub(crate) trace: Option<String>,
}

impl Message for Held {
    const KIND: &'static str = "held";
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` waits until {} for {}", self.approval, self.expires, in_words(&self.missing))?;
        self.unusable.iter().try_for_each(|reason| write!(f, "; {}: {}", reason.code, reason.text))
    }
}

impl Held {
    /// For keeping it while people take their time. It holds the arguments and no secret.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// What [`Held::to_bytes`] gave.
    ///
    /// # Errors
    /// [`CodecError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }

    fn trace_context(&self) -> Option<TraceContext> {
        self.trace.as_deref().and_then(TraceContext::parse)
    }
}

impl Task {
    /// Makes a held call again, once, in a trace of its own that names the one it was held in.
    ///
    /// # Errors
    /// [`Error::Held`] while people have not answered; [`Error::Denied`] if they said no, if it is too late, or if
    /// the approval was used.
    pub async fn proceed(&self, held: &Held) -> Result<Value, Error> {
        self.proceed_labelled(held).await.map(|labelled| labelled.value)
    }

    /// Makes a held call again and returns its result with the label the node released it under.
    ///
    /// # Errors
    /// As [`Task::proceed`].
    pub async fn proceed_labelled(&self, held: &Held) -> Result<Labelled, Error> {
        let span = Span::resume(held.action.as_str(), &held.approval, held.trace_context());
        let span = span.execute_tool(held.resource.name(), &self.id);
        let result = self.send(&self.logical(held)?, span.context()).await;
        note(&span, &result);
        result
    }

    /// Waits for people to answer, and makes the call as soon as they have said yes.
    ///
    /// # Errors
    /// As [`Task::proceed`]; [`Error::Held`] if they have not answered within `patience`.
    pub async fn wait_for_approval(&self, held: Held, patience: Duration) -> Result<Value, Error> {
        self.wait_for_approval_labelled(held, patience).await.map(|labelled| labelled.value)
    }

    /// Waits for people to answer, and returns the call's result with the label the node released it under.
    ///
    /// # Errors
    /// As [`Task::wait_for_approval`].
    pub async fn wait_for_approval_labelled(
        &self,
        mut held: Held,
        patience: Duration,
    ) -> Result<Labelled, Error> {
        let begun = Instant::now();
        let span = self.span.execute_tool(held.resource.name(), &self.id);
        let (mut pause, longest) = ASK_EVERY;
        let result = loop {
            tokio::time::sleep(pause.min(patience.saturating_sub(begun.elapsed()))).await;
            pause = (pause * 3 / 2).min(longest);
            match self.send(&self.logical(&held)?, span.context()).await {
                Err(Error::Held(still)) if begun.elapsed() < patience => held = *still,
                // A node or the bus may be away for a while; what was asked waits.
                Err(Error::NoNode(_) | Error::NotConnected | Error::CouldNotDecide(_))
                    if begun.elapsed() < patience => {}
                result => break result,
            }
        };
        note(&span, &result);
        result
    }

    fn logical(&self, held: &Held) -> Result<Logical, Error> {
        let unreadable = |why: &str| Error::BadAnswer(format!("the held call is not readable: {why}"));
        if held.task != self.id {
            return Err(unreadable("it belongs to another task"));
        }
        let arguments =
            Value::parse_canonical(&held.arguments).map_err(|error| unreadable(&error.to_string()))?;
        let handover = match held.handover.as_slice() {
            [] => None,
            bytes => Some(crate::agent::read_chain(bytes)?),
        };
        let nonce = held.nonce.as_slice().try_into().map_err(|_| unreadable("its nonce"))?;
        let mut logical = Logical::new(held.resource.clone(), held.action.clone(), arguments, handover);
        logical.nonce = nonce;
        logical.approval = Some(held.approval.clone());
        Ok(logical)
    }
}
