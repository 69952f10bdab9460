//! The authority block: what the broker grants.

use std::{collections::BTreeSet, fmt};

use super::block::Block;
use crate::{
    datalog::{Body, Check, CheckKind, Predicate, Term},
    digest::Digest,
    epoch::Epoch,
    ids::{Action, AgentId, CapabilityId, FlowDomain, Resource, TaskId, TenantId, UserId},
    keys::PublicKey,
    time::Timestamp,
};

/// One right: this action on this resource. Written `tool.crm:read`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Right {
    /// To what.
    pub resource: Resource,
    /// What may be done.
    pub action: Action,
}

impl Right {
    /// Parses `kind.name:action`.
    ///
    /// # Errors
    /// [`crate::ids::InvalidId`] if a part is missing or outside its grammar.
    pub fn parse(text: &str) -> Result<Self, crate::ids::InvalidId> {
        let (resource, action) = text
            .split_once(':')
            .ok_or_else(|| crate::ids::InvalidId::new("right", text, "is not `kind.name:action`"))?;
        Ok(Self { resource: Resource::parse(resource)?, action: Action::parse(action)? })
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.resource, self.action)
    }
}

impl TryFrom<String> for Right {
    type Error = crate::ids::InvalidId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Right> for String {
    fn from(right: Right) -> String {
        right.to_string()
    }
}

/// What the broker puts into the authority block: one user, one agent, one task, its rights and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The organisation.
    pub tenant: TenantId,
    /// On whose authority.
    pub user: UserId,
    /// The agent the task was given to.
    pub agent: AgentId,
    /// The task.
    pub task: TaskId,
    /// The key that must sign every use and every hand-over.
    pub holder: PublicKey,
    /// Names the capability through all its renewals.
    pub capability: CapabilityId,
    /// Counts the renewals, from 1.
    pub serial: u64,
    /// Plain SHA-256 of the user's instruction.
    pub instruction: Digest,
    /// The flow domain whose label the task's data join.
    pub domain: FlowDomain,
    /// What may be done.
    pub rights: BTreeSet<Right>,
    /// When it ends; whole seconds.
    pub expires: Timestamp,
    /// The control state a verifier must at least have seen.
    pub min_epoch: Epoch,
    /// How many hops it may be delegated.
    pub max_depth: u8,
    /// Bounds on arguments, in the same profile as the checks of later blocks.
    pub bounds: Vec<Check>,
}

impl Grant {
    /// The facts of the authority block, in the one order they are written in.
    pub(crate) fn facts(&self) -> Vec<Predicate> {
        let text = |name: &str, value: &str| Predicate::new(name, [Term::str(value)]);
        let int = |value: u64| Term::Integer(i64::try_from(value).unwrap_or(i64::MAX));
        let mut facts = vec![
            text("tenant", self.tenant.as_str()),
            Predicate::new("user", [Term::str(self.user.issuer()), Term::str(self.user.subject())]),
            text("agent", self.agent.as_str()),
            text("task", self.task.as_str()),
            Predicate::new("holder", [Term::Bytes(self.holder.as_bytes().to_vec())]),
            text("capability", self.capability.as_str()),
            Predicate::new("serial", [int(self.serial)]),
            Predicate::new("instruction", [Term::Bytes(self.instruction.as_bytes().to_vec())]),
            text("domain", &self.domain.to_string()),
            Predicate::new("expires", [Term::Date(self.expires.as_secs())]),
            Predicate::new(
                "min_epoch",
                [int(u64::from(self.min_epoch.incarnation)), int(self.min_epoch.sequence)],
            ),
            Predicate::new("max_depth", [int(u64::from(self.max_depth))]),
        ];
        facts.extend(self.rights.iter().map(|right| {
            Predicate::new("right", [Term::str(right.resource.as_str()), Term::str(right.action.as_str())])
        }));
        facts
    }

    /// The arguments of such a call that the bounds allow only certain values for, as JSON Pointers.
    ///
    /// Only the broker's own bounds: what a holder appends, it may have been talked into.
    #[must_use]
    pub fn pins(&self, right: &Right) -> BTreeSet<String> {
        let mut pinned = BTreeSet::new();
        for bound in self.bounds.iter().filter(|bound| bound.kind == CheckKind::One) {
            let applying = bound.alternatives.iter().filter(|body| applies(body, right)).map(pins_of);
            pinned.extend(applying.reduce(|a, b| a.intersection(&b).cloned().collect()).unwrap_or_default());
        }
        pinned
    }

    /// Reads the authority block; every fact exactly once, `right` any number of times, nothing else.
    pub(crate) fn from_block(block: Block) -> Result<Self, &'static str> {
        let mut facts = Facts(block.facts);
        let grant = Self {
            tenant: TenantId::parse(facts.text("tenant")?).map_err(|_| "has a malformed tenant")?,
            user: match facts.one("user")?.as_slice() {
                [Term::Str(issuer), Term::Str(subject)] => {
                    UserId::parse(issuer, subject).map_err(|_| "has a malformed user")?
                }
                _ => return Err("has a malformed user"),
            },
            agent: AgentId::parse(facts.text("agent")?).map_err(|_| "has a malformed agent")?,
            task: TaskId::parse(facts.text("task")?).map_err(|_| "has a malformed task")?,
            holder: PublicKey::from_bytes(&facts.bytes("holder")?).map_err(|_| "has a malformed holder")?,
            capability: CapabilityId::parse(facts.text("capability")?)
                .map_err(|_| "has a malformed capability id")?,
            serial: facts.integer("serial")?,
            instruction: Digest::from_bytes(
                facts.bytes("instruction")?.try_into().map_err(|_| "has a malformed instruction digest")?,
            ),
            domain: FlowDomain::parse(&facts.text("domain")?).map_err(|_| "has a malformed flow domain")?,
            expires: match facts.one("expires")?.as_slice() {
                [Term::Date(secs)] => Timestamp::from_secs(*secs),
                _ => return Err("has a malformed expiry"),
            },
            min_epoch: match facts.one("min_epoch")?.as_slice() {
                [Term::Integer(incarnation), Term::Integer(sequence)] => Epoch {
                    incarnation: u32::try_from(*incarnation).map_err(|_| "has a malformed epoch")?,
                    sequence: u64::try_from(*sequence).map_err(|_| "has a malformed epoch")?,
                },
                _ => return Err("has a malformed epoch"),
            },
            max_depth: u8::try_from(facts.integer("max_depth")?).map_err(|_| "has a malformed depth")?,
            rights: facts.rights()?,
            bounds: block.checks,
        };
        if facts.0.is_empty() {
            Ok(grant)
        } else {
            Err("holds a fact the format does not know, or one twice")
        }
    }
}

/// Whether an alternative of a bound can hold for a call under this right.
fn applies(body: &Body, right: &Right) -> bool {
    body.predicates.iter().all(|predicate| match (predicate.name.as_str(), predicate.terms.as_slice()) {
        ("resource", [Term::Str(name)]) => name.as_str() == right.resource.as_str(),
        ("action", [Term::Str(name)]) => name.as_str() == right.action.as_str(),
        _ => true,
    })
}

/// The arguments an alternative demands to be one value.
fn pins_of(body: &Body) -> BTreeSet<String> {
    let pinned = body.predicates.iter().filter_map(|predicate| {
        match (predicate.name.as_str(), predicate.terms.as_slice()) {
            ("arg", [Term::Str(path), value]) if !matches!(value, Term::Variable(_)) => Some(path.clone()),
            _ => None,
        }
    });
    pinned.collect()
}

struct Facts(Vec<Predicate>);

impl Facts {
    fn one(&mut self, name: &str) -> Result<Vec<Term>, &'static str> {
        let position = self.0.iter().position(|fact| fact.name == name).ok_or("lacks a fact")?;
        Ok(self.0.remove(position).terms)
    }

    fn text(&mut self, name: &str) -> Result<String, &'static str> {
        match self.one(name)?.as_slice() {
            [Term::Str(text)] => Ok(text.clone()),
            _ => Err("has a fact of the wrong type"),
        }
    }

    fn bytes(&mut self, name: &str) -> Result<Vec<u8>, &'static str> {
        match self.one(name)?.as_slice() {
            [Term::Bytes(bytes)] => Ok(bytes.clone()),
            _ => Err("has a fact of the wrong type"),
        }
    }

    fn integer(&mut self, name: &str) -> Result<u64, &'static str> {
        match self.one(name)?.as_slice() {
            [Term::Integer(value)] => u64::try_from(*value).map_err(|_| "has a negative number"),
            _ => Err("has a fact of the wrong type"),
        }
    }

    fn rights(&mut self) -> Result<BTreeSet<Right>, &'static str> {
        let (rights, rest) = std::mem::take(&mut self.0).into_iter().partition(|fact| fact.name == "right");
        self.0 = rest;
        let rights: Vec<Predicate> = rights;
        let count = rights.len();
        let set = rights
            .into_iter()
            .map(|fact| match fact.terms.as_slice() {
                [Term::Str(resource), Term::Str(action)] => Ok(Right {
                    resource: Resource::parse(resource.as_str()).map_err(|_| "has a malformed right")?,
                    action: Action::parse(action.as_str()).map_err(|_| "has a malformed right")?,
                }),
                _ => Err("has a malformed right"),
            })
            .collect::<Result<BTreeSet<_>, _>>()?;
        if set.len() == count { Ok(set) } else { Err("holds a right twice") }
    }
}
