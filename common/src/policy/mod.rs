//! Policies: Datalog rules over a declared schema, an inventory of agents and roles, and tool contracts.
//!
//! A [`PolicyBundle`] is the files, a [`PolicySet`] is what they mean after every check. A set answers nothing
//! by itself: [`crate::decide`] asks it. Deny wins whatever the order, an empty set denies everything, and a set
//! with an error in it does not exist.

mod analyse;
mod arithmetic;
pub mod explain;
pub mod format;
mod inventory;
mod lex;
mod load;
mod observe;
mod parse;
pub(crate) mod prove;
pub mod schema;
mod teams;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub use inventory::{AgentEntry, Inventory, Memory, Quota, RoleTask};
pub(crate) use load::{ALLOW, DENY};
pub use observe::OBSERVE_MAX;
pub(crate) use observe::read_observe;
pub use parse::{Effect, Statement, StatementNode, parse, parse_fact};

use crate::{
    capability::engine::Program,
    contract::ToolContract,
    datalog::{Predicate, Rule},
    digest::Digest,
    ids::Resource,
};

/// Most bytes all files of a bundle may have together.
pub const BUNDLE_BYTES_MAX: usize = 512 * 1024;

/// The files of one policy revision, by path below the policy folder.
///
/// `*.datalog` are rules, `agents.toml` and `roles.toml` the inventory, `tools/*.toml` contracts; below
/// `teams/<team>/` stand a team's rules and contracts, confined to what is the team's. Anything else
/// is refused, so that a misnamed file cannot go unnoticed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyBundle(pub BTreeMap<String, String>);

impl PolicyBundle {
    /// The digest that names this content: SHA-256 over every path and text, in the order of paths.
    #[must_use]
    pub fn revision(&self) -> PolicyRevision {
        let parts: Vec<&[u8]> =
            self.0.iter().flat_map(|(path, text)| [path.as_bytes(), text.as_bytes()]).collect();
        PolicyRevision(Digest::of("writ/v1/policy", &parts))
    }
}

/// Names one policy content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyRevision(pub Digest);

impl fmt::Display for PolicyRevision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a deciding rule stands and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Path of its file.
    pub file: String,
    /// 1-based line.
    pub line: usize,
    /// Allow or deny.
    pub effect: Effect,
    /// The `///` text above it.
    pub message: Option<String>,
    /// The rule as text.
    pub text: String,
}

impl RuleInfo {
    /// `file:line`, as records name it.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// A rule as it was compiled, and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct SourceRule {
    /// What it derives; a deciding rule derives [`ALLOW`] or [`DENY`] with its position.
    pub(crate) rule: Rule,
    /// `file:line`
    pub(crate) place: String,
    /// The position of a deciding rule in [`PolicySet::rules`].
    pub(crate) decides: Option<usize>,
    /// The rule as text.
    pub(crate) text: String,
}

/// A bundle that was checked and compiled.
#[derive(Clone, Debug)]
pub struct PolicySet {
    pub(crate) revision: PolicyRevision,
    /// The rules, and the inventory as facts.
    pub(crate) program: Program,
    /// What the program was made from.
    pub(crate) sources: Vec<SourceRule>,
    /// The deciding rules; `writ_allow` and `writ_deny` facts hold positions in this list.
    pub(crate) rules: Vec<RuleInfo>,
    pub(crate) inventory: Inventory,
    /// What the tables state, for those who tell where a fact comes from.
    pub(crate) inventory_facts: Vec<Predicate>,
    pub(crate) contracts: BTreeMap<Resource, ToolContract>,
}

impl PolicySet {
    /// The digest of the bundle it was made from.
    #[must_use]
    pub fn revision(&self) -> PolicyRevision {
        self.revision
    }

    /// Agents and roles.
    #[must_use]
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The contract of a tool.
    #[must_use]
    pub fn contract(&self, resource: &Resource) -> Option<&ToolContract> {
        self.contracts.get(resource)
    }

    /// Every contract, by resource.
    pub fn contracts(&self) -> impl Iterator<Item = &ToolContract> {
        self.contracts.values()
    }

    /// The deciding rules, in the order of files and lines.
    #[must_use]
    pub fn rules(&self) -> &[RuleInfo] {
        &self.rules
    }
}
