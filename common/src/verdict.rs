//! The answer, and the one thing that comes of a good one: a permit.

use std::collections::BTreeSet;

use crate::{
    capability::Right,
    digest::Digest,
    ids::{Action, Resource},
    policy::PolicyRevision,
    reason::{Class, Reason},
    request::{Arguments, Request},
    time::Millis,
};

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be done, once every obligation is discharged.
    Allow,
    /// It may not, or nobody could say.
    Deny,
}

/// What has to be done or kept to, or else the answer is no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obligation {
    /// Whatever capability is issued must stay within these bounds.
    GrantWithin(GrantBounds),
}

/// The most a capability may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantBounds {
    /// Its rights.
    pub rights: BTreeSet<Right>,
    /// How deep it may be delegated.
    pub max_depth: u8,
    /// How long the task may live.
    pub task_life: Millis,
    /// How long one capability may live.
    pub capability_life: Millis,
}

/// The answer to a [`Request`], whichever process gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Yes or no.
    pub decision: Decision,
    /// Why: for a denial every cause that was found, for an allowance nothing.
    pub reasons: Vec<Reason>,
    /// What has to be done or kept to.
    pub obligations: Vec<Obligation>,
    /// The rules that decided, as `file:line`.
    pub rules: Vec<String>,
    /// The policy that was asked, if there was one.
    pub policy_revision: Option<PolicyRevision>,
}

impl Verdict {
    /// A denial for one cause.
    #[must_use]
    pub fn deny(reason: impl Into<Reason>, policy_revision: Option<PolicyRevision>) -> Self {
        Self {
            decision: Decision::Deny,
            reasons: vec![reason.into()],
            obligations: Vec::new(),
            rules: Vec::new(),
            policy_revision,
        }
    }

    /// The cause that is told first: one that could not be decided goes before one that was.
    #[must_use]
    pub fn main_reason(&self) -> Option<&Reason> {
        let undecided = self.reasons.iter().find(|reason| reason.code().class() == Class::CouldNotDecide);
        undecided.or_else(|| self.reasons.first())
    }

    /// Turns an allowance into the permit to do exactly what was asked.
    ///
    /// # Errors
    /// Gives the verdict back if it denies, or if an obligation on acting is left.
    pub fn permit(self, request: &Request) -> Result<Permit, Box<Self>> {
        if self.decision == Decision::Deny || !self.obligations.is_empty() {
            return Err(Box::new(self));
        }
        Ok(Permit {
            resource: request.resource.clone(),
            action: request.action.clone(),
            arguments: request.arguments.clone(),
        })
    }
}

/// The permission to do one thing once. Tools take it by value; only an allowing verdict makes one.
///
/// It owns the arguments that were checked, so that nothing else can be run under it (threat A11).
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    resource: Resource,
    action: Action,
    arguments: Arguments,
}

impl Permit {
    /// To what.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// What may be done.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// With these arguments and no others.
    #[must_use]
    pub fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// Digest of the arguments, for comparing with the record.
    #[must_use]
    pub fn arguments_digest(&self) -> Digest {
        self.arguments.digest()
    }
}
