//! What is asked: who wants to do what to what, under which circumstances.

use crate::{
    capability::Right,
    digest::Digest,
    ids::{Action, AgentId, OperatorId, Resource, RoleId, TaskId, TaskKind, TenantId, UserId},
    json::{JsonError, JsonFault, Value},
    reason::{Reason, ReasonCode},
};

/// Most bytes of the canonical text of one call's arguments.
pub const ARGUMENT_BYTES_MAX: usize = 128 * 1024;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// An agent with a capability.
    Agent(AgentId),
    /// An operator of the control plane.
    Operator(OperatorId),
    /// A user, by an agent that asks for a capability on their behalf.
    User {
        /// The user the identity provider vouches for.
        user: UserId,
        /// The roles the user's claims map to.
        roles: Vec<RoleId>,
        /// The agent that asks, and that the capability would be given to.
        agent: AgentId,
    },
}

/// What the request is about, beyond principal, action and resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The tenant the request arrived for.
    pub tenant: TenantId,
    /// The task it names.
    pub task: Option<TaskId>,
    /// The kind of task, where a task is started or renewed.
    pub task_kind: Option<TaskKind>,
}

/// One question to [`crate::decide::decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub principal: Principal,
    /// What is to be done.
    pub action: Action,
    /// To what.
    pub resource: Resource,
    /// With which arguments.
    pub arguments: Arguments,
    /// Under which circumstances.
    pub environment: Environment,
}

impl Request {
    /// The right this request needs.
    #[must_use]
    pub fn right(&self) -> Right {
        Right { resource: self.resource.clone(), action: self.action.clone() }
    }
}

/// Arguments that were read once, strictly: the value that is checked is the value that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    value: Value,
    canonical: String,
}

impl Arguments {
    /// No arguments: `{}`.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Value::Object(std::collections::BTreeMap::new()))
    }

    /// From a value that is there already.
    #[must_use]
    pub fn new(value: Value) -> Self {
        Self { canonical: value.to_string(), value }
    }

    /// Reads canonical text from the wire.
    ///
    /// # Errors
    /// A [`Reason`] of the `arg.*` or `codec.*` group.
    pub fn parse(canonical: &str) -> Result<Self, Reason> {
        if canonical.len() > ARGUMENT_BYTES_MAX {
            return Err(Reason::new(ReasonCode::CodecTooLarge)
                .told(format_args!("{} bytes of arguments, at most {ARGUMENT_BYTES_MAX}", canonical.len())));
        }
        let value = Value::parse_canonical(canonical).map_err(|error| reason_of(&error))?;
        Ok(Self { value, canonical: canonical.to_owned() })
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The one text for it.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Plain SHA-256 of the canonical text: what records hold instead of the arguments.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::plain(self.canonical.as_bytes())
    }
}

fn reason_of(error: &JsonError) -> Reason {
    let code = match error.fault {
        JsonFault::DuplicateKey => ReasonCode::ArgDuplicateKey,
        JsonFault::Encoding | JsonFault::NotCanonical => ReasonCode::ArgEncoding,
        JsonFault::Number => ReasonCode::ArgNumber,
        JsonFault::Syntax => ReasonCode::CodecFormat,
        JsonFault::TooDeep => ReasonCode::CodecDepth,
    };
    Reason::new(code).told(format_args!("arguments: {error}"))
}
