//! Rights a task lacks: asked for, waited for, and used for some minutes.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use writ_bus::SystemEntropy;
use writ_common::{
    approval::{Need, in_words},
    capability::{Right, UnverifiedCapability},
    codec::{CodecError, Message, decode, encode},
    entropy::draw,
    ids::{ApprovalId, TaskId},
    json::Value,
    time::Timestamp,
    trace::TraceContext,
    wire::{IssueAnswer, RightWanted, ToldReason, Wanted},
};

use crate::{Error, Task, agent::read_chain, approval::ASK_EVERY, call::note, spans::Span};

/// A right that was asked for. People have not answered yet, or the answer has not been fetched.
///
/// It can be written down with [`RequestedRight::to_bytes`] and taken up again by another process of the same agent:
/// one capability comes of it, however often it is asked after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestedRight {
    /// The request for approval: what `writ approval show` takes.
    pub approval: ApprovalId,
    /// The task.
    pub task: TaskId,
    /// The right.
    pub right: Right,
    /// Until when it can be answered and used.
    pub expires: Timestamp,
    /// Who still has to say yes.
    pub missing: Vec<Need>,
    /// Answers that do not count, and why.
    pub unusable: Vec<ToldReason>,
    arguments: String,
    why: String,
    #[serde(with = "serde_bytes")]
    nonce: Vec<u8>,
    /// Where the trace stood when it was asked for, as a W3C `traceparent`.
    trace: Option<String>,
}

impl Message for RequestedRight {
    const KIND: &'static str = "requested_right";
}

impl std::fmt::Display for RequestedRight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { approval, right, expires, missing, .. } = self;
        write!(f, "`{right}` waits as `{approval}` until {expires}")?;
        if !missing.is_empty() {
            write!(f, " for {}", in_words(missing))?;
        }
        self.unusable.iter().try_for_each(|reason| write!(f, "; {}: {}", reason.code, reason.text))
    }
}

impl RequestedRight {
    /// For keeping it while people take their time. It holds no secret.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// What [`RequestedRight::to_bytes`] gave.
    ///
    /// # Errors
    /// [`CodecError`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

impl Task {
    /// Asks people for a right the task lacks, where policy derives `may_request` for it. `why` is shown to them.
    ///
    /// Only the agent a task was given to can ask. What a delegated agent lacks, the agent above it asks for and does.
    ///
    /// # Errors
    /// [`Error::Denied`] if it cannot be asked for.
    pub async fn request_right(&self, right: Right, why: &str) -> Result<RequestedRight, Error> {
        self.request_right_for(right, [], why).await
    }

    /// As [`Task::request_right`], for calls whose arguments have these values only: JSON Pointers (RFC 6901) with
    /// texts, whole numbers and booleans. What is not named is free. The less is asked for, the easier people say yes.
    ///
    /// # Errors
    /// As [`Task::request_right`].
    pub async fn request_right_for(
        &self,
        right: Right,
        values: impl IntoIterator<Item = (&str, Value)>,
        why: &str,
    ) -> Result<RequestedRight, Error> {
        let members = values.into_iter().map(|(path, value)| (path.to_owned(), value)).collect();
        let wanted = RightWanted {
            task: self.id.clone(),
            right,
            arguments: Value::Object(members).to_string(),
            why: why.to_owned(),
            nonce: draw(&mut SystemEntropy),
        };
        let trace = self.span.context();
        match self.ask_for_right(wanted.clone(), trace).await? {
            Asked::Waiting(requested) => Ok(*requested),
            // Asked twice on the way, and answered in between: it is there to be fetched.
            Asked::Granted(approval, capability) => {
                let expires = capability.expires();
                Ok(requested(wanted, (approval, expires), (Vec::new(), Vec::new()), trace))
            }
        }
    }

    /// Fetches a right that was asked for: the same task with that right and no other, for some minutes. It cannot be
    /// renewed and cannot be delegated.
    ///
    /// # Errors
    /// [`Error::RightWaiting`] while people have not answered; [`Error::Denied`] if they said no, if it is too late, or
    /// if it was fetched before and the broker does not remember.
    pub async fn take_right(&self, requested: &RequestedRight) -> Result<Self, Error> {
        let held_in = requested.trace.as_deref().and_then(TraceContext::parse);
        let span = Span::resume(&requested.right.to_string(), &requested.approval, held_in);
        let result = self.fetch_right(requested, span.context()).await;
        note(&span, &result);
        result
    }

    /// Waits for people to answer, and fetches the right as soon as they have said yes.
    ///
    /// # Errors
    /// As [`Task::take_right`]; [`Error::RightWaiting`] if they have not answered within `patience`.
    pub async fn wait_for_right(
        &self,
        mut requested: RequestedRight,
        patience: Duration,
    ) -> Result<Self, Error> {
        let begun = Instant::now();
        let (mut pause, longest) = ASK_EVERY;
        loop {
            tokio::time::sleep(pause.min(patience.saturating_sub(begun.elapsed()))).await;
            pause = (pause * 3 / 2).min(longest);
            match self.fetch_right(&requested, self.span.context()).await {
                Err(Error::RightWaiting(still)) if begun.elapsed() < patience => requested = *still,
                // A broker or the bus may be away for a while; what was asked waits.
                Err(Error::Bus(_) | Error::TimedOut | Error::NotConnected | Error::CouldNotDecide(_))
                    if begun.elapsed() < patience => {}
                result => return result,
            }
        }
    }

    async fn fetch_right(
        &self,
        requested: &RequestedRight,
        trace: Option<TraceContext>,
    ) -> Result<Self, Error> {
        let unreadable = |why: &str| Error::BadAnswer(format!("the right asked for is not readable: {why}"));
        if requested.task != self.id {
            return Err(unreadable("it belongs to another task"));
        }
        let wanted = RightWanted {
            task: self.id.clone(),
            right: requested.right.clone(),
            arguments: requested.arguments.clone(),
            why: requested.why.clone(),
            nonce: requested.nonce.as_slice().try_into().map_err(|_| unreadable("its nonce"))?,
        };
        match self.ask_for_right(wanted, trace).await? {
            Asked::Waiting(still) => {
                let still = RequestedRight { trace: requested.trace.clone(), ..*still };
                Err(Error::RightWaiting(Box::new(still)))
            }
            Asked::Granted(_, capability) => {
                Ok(Self::handed_over(self.agent.clone(), *capability, self.span.clone()))
            }
        }
    }

    async fn ask_for_right(&self, wanted: RightWanted, trace: Option<TraceContext>) -> Result<Asked, Error> {
        match self.agent.ask_broker(Wanted::Right(wanted.clone()), trace).await? {
            IssueAnswer::Held { approval, expires, missing, unusable } => Ok(Asked::Waiting(Box::new(
                requested(wanted, (approval, expires), (missing, unusable), trace),
            ))),
            IssueAnswer::Right { approval, capability } => {
                let capability = read_chain(&capability)?;
                let (grant, own) = (capability.grant(), self.agent.identity().holder.public());
                let is_meant = grant.task == wanted.task
                    && grant.holder == own
                    && grant.rights.iter().eq([&wanted.right]);
                match is_meant {
                    true => Ok(Asked::Granted(approval, Box::new(capability))),
                    false => Err(Error::BadAnswer("another right than was asked for".to_owned())),
                }
            }
            IssueAnswer::Refused { reasons } => Err(Error::refused(reasons)),
            IssueAnswer::Keys(_) | IssueAnswer::Task(_) | IssueAnswer::Tools(_) => {
                Err(Error::BadAnswer("something else where a right was asked for".to_owned()))
            }
        }
    }
}

/// How a request for a right was answered.
enum Asked {
    Waiting(Box<RequestedRight>),
    Granted(ApprovalId, Box<UnverifiedCapability>),
}

fn requested(
    wanted: RightWanted,
    (approval, expires): (ApprovalId, Timestamp),
    (missing, unusable): (Vec<Need>, Vec<ToldReason>),
    trace: Option<TraceContext>,
) -> RequestedRight {
    RequestedRight {
        approval,
        task: wanted.task,
        right: wanted.right,
        expires,
        missing,
        unusable,
        arguments: wanted.arguments,
        why: wanted.why,
        nonce: wanted.nonce.to_vec(),
        trace: trace.map(|trace| trace.to_string()),
    }
}
