//! What is asked: who wants to do what to what, under which circumstances.

use unicode_normalization::is_nfc;

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
        if !canonical.is_ascii() {
            check_texts(&value).map_err(|(path, fault)| {
                Reason::new(ReasonCode::ArgEncoding).told(format_args!("`{path}` {fault}"))
            })?;
        }
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

/// One spelling per text (threat A05): what looks the same is the same to a rule, and nothing that is written for a
/// model alone, or shown to a person in another order, gets through. Says where it is and what is wrong with it.
fn check_texts(value: &Value) -> Result<(), (String, &'static str)> {
    match value {
        Value::String(text) => check_text(text).map_err(|fault| (String::new(), fault)),
        Value::Array(items) => items.iter().enumerate().try_for_each(|(index, item)| {
            check_texts(item).map_err(|(path, fault)| (format!("/{index}{path}"), fault))
        }),
        Value::Object(members) => members.iter().try_for_each(|(key, member)| {
            let within = |(path, fault)| (format!("/{key}{path}"), fault);
            check_text(key).map_err(|fault| within((String::new(), fault)))?;
            check_texts(member).map_err(within)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if crate::red::off("A05") {
        return Ok(());
    }
    if text.contains(is_misleading) {
        return Err("has characters that re-order others, or that nobody sees");
    }
    // Composed (Unicode TR 15, form C): a letter with its accent is one character where there is one.
    if !is_nfc(text) {
        return Err("is not in Unicode normalization form C");
    }
    Ok(())
}

/// Embeddings, overrides and isolates of writing direction, and tag characters: none is needed to write a language.
fn is_misleading(character: char) -> bool {
    matches!(u32::from(character), 0x202a..=0x202e | 0x2066..=0x2069 | 0xe0000..=0xe007f)
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
