//! What can go wrong, told apart by what the caller can do about it.

use std::fmt;

use crate::{Held, RequestedRight};
use writ_bus::{BusError, keyfile::KeyFileError};
use writ_common::{
    capability::ExtendError,
    diagnostic::Diagnostics,
    ids::InvalidId,
    reason::{Advice, Class, ReasonCode},
    record::{DecisionId, OutcomeStatus, Receipt},
    wire::ToldReason,
};

/// A refusal, with the words meant for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Every cause; never empty.
    pub reasons: Vec<ToldReason>,
    /// The node's word that the refusal is on record, if it came that far.
    pub receipt: Option<Receipt>,
}

impl Denial {
    /// The code of the first cause.
    #[must_use]
    pub fn code(&self) -> Option<ReasonCode> {
        self.reasons.first().map(|reason| reason.code)
    }

    /// Who could grant what is missing, and whose approval it takes to have [`crate::Task::request_right`] come to
    /// something; nothing if policy tells neither.
    #[must_use]
    pub fn advice(&self) -> Option<&Advice> {
        self.reasons.iter().find_map(|reason| reason.advice.as_deref())
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, reason) in self.reasons.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            write!(f, "{separator}{}: {}", reason.code, reason.text)?;
        }
        Ok(())
    }
}

/// Why something an agent asked for did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An answer does not verify: a wrong key, another call, another result.
    #[error("the answer does not verify: {0}")]
    BadAnswer(String),
    /// The bus, in a way of its own.
    #[error(transparent)]
    Bus(BusError),
    /// Something could not be decided: stale, unreachable or broken state. Trying again may help.
    #[error("could not decide: {0}")]
    CouldNotDecide(Box<Denial>),
    /// A rule, a limit or a proof said no. Trying again does not help.
    #[error("denied: {0}")]
    Denied(Box<Denial>),
    /// The capability cannot be narrowed or delegated like that.
    #[error(transparent)]
    Extend(#[from] ExtendError),
    /// It was begun and did not end well.
    #[error("{}: {} ({})", .reason.code, .reason.text, .status.as_str())]
    Failed {
        /// Why.
        reason: ToldReason,
        /// Whether it had its effect.
        status: OutcomeStatus,
    },
    /// People have to approve it first. Nothing was done; [`crate::Task::wait_for_approval`] waits for them.
    #[error("held: {0}")]
    Held(Box<Held>),
    /// A name is outside the grammar of names.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// The identity's folder is not usable.
    #[error("{0}")]
    Identity(String),
    /// No node serves this resource.
    #[error("no node serves `{0}`")]
    NoNode(String),
    /// The agent has no key that may be delegated to.
    #[error("`{0}` has no enrolled key, or may not be delegated to by this agent")]
    NoSuchDelegate(String),
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
    /// The NATS server does not allow it: the agent's permissions and its name do not fit.
    #[error("NATS does not allow this agent to use `{0}`")]
    RefusedByBus(String),
    /// People have not answered yet whether the task may have a right; [`crate::Task::wait_for_right`] waits for them.
    #[error("waiting: {0}")]
    RightWaiting(Box<RequestedRight>),
    /// Somebody made this very call before.
    #[error("the call was made before, as {first}")]
    Replayed {
        /// The record of the first.
        first: DecisionId,
        /// How that ended, if it is known.
        outcome: Option<OutcomeStatus>,
    },
    /// Nobody answered in time, however often the call was sent: whether it was done is unknown here, and on
    /// record. A new call is another call.
    #[error("no answer in time")]
    TimedOut,
}

impl Error {
    pub(crate) fn denied(reasons: Vec<ToldReason>, receipt: Option<Receipt>) -> Self {
        let undecided = reasons.iter().any(|reason| reason.code.class() == Class::CouldNotDecide);
        let denial = Box::new(Denial { reasons, receipt });
        if undecided { Self::CouldNotDecide(denial) } else { Self::Denied(denial) }
    }

    /// A refusal without a receipt.
    #[must_use]
    pub fn refused(reasons: Vec<ToldReason>) -> Self {
        Self::denied(reasons, None)
    }

    /// The code of the first cause, if it was refused.
    #[must_use]
    pub fn code(&self) -> Option<ReasonCode> {
        match self {
            Self::Denied(denial) | Self::CouldNotDecide(denial) => denial.code(),
            Self::Failed { reason, .. } => Some(reason.code),
            Self::Held(_) | Self::RightWaiting(_) => Some(ReasonCode::ApprovalNeeded),
            Self::Replayed { .. } => Some(ReasonCode::RequestReplayed),
            _ => None,
        }
    }
}

impl From<BusError> for Error {
    fn from(error: BusError) -> Self {
        match error {
            BusError::NotConnected => Self::NotConnected,
            BusError::Refused(subject) => Self::RefusedByBus(subject),
            BusError::TimedOut(_) => Self::TimedOut,
            other => Self::Bus(other),
        }
    }
}

impl From<KeyFileError> for Error {
    fn from(error: KeyFileError) -> Self {
        Self::Identity(error.to_string())
    }
}

impl From<Diagnostics> for Error {
    fn from(findings: Diagnostics) -> Self {
        Self::Identity(findings.to_string())
    }
}
