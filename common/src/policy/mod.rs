//! Policies: Datalog rules over a declared schema, an inventory of agents and roles, and tool contracts.
//!
//! A [`PolicyBundle`] is the files, a [`PolicySet`] is what they mean after every check. A set answers nothing
//! by itself: [`crate::decide`] asks it. Deny wins whatever the order, an empty set denies everything, and a set
//! with an error in it does not exist.

mod analyse;
mod inventory;
mod lex;
mod load;
mod parse;
pub mod schema;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

pub use inventory::{AgentEntry, Inventory, Quota, RoleTask};
pub(crate) use load::{ALLOW, DENY};
pub use parse::{Effect, Statement, StatementNode, parse, parse_fact};

use crate::{
    capability::engine::Program, contract::ToolContract, datalog::Predicate, digest::Digest, ids::Resource,
};

/// Most bytes all files of a bundle may have together.
pub const BUNDLE_BYTES_MAX: usize = 512 * 1024;

/// The files of one policy revision, by path below the policy folder.
///
/// `*.datalog` are rules, `agents.toml` and `roles.toml` the inventory, `tools/*.toml` contracts. Anything else
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

/// A bundle that was checked and compiled.
#[derive(Clone, Debug)]
pub struct PolicySet {
    pub(crate) revision: PolicyRevision,
    pub(crate) program: Program,
    /// The deciding rules; `writ_allow` and `writ_deny` facts hold positions in this list.
    pub(crate) rules: Vec<RuleInfo>,
    pub(crate) inventory: Inventory,
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
