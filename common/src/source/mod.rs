//! Trusted sources: where the value of a guarded argument may come from (DESIGN section 6).
//!
//! Once a task has read data that outsiders can write, an argument that says who or what is affected (a recipient, a
//! payee, a URL, the id of a record) may only hold a value that somebody trusted has named: the user in the
//! instruction, an operator in a directory outsiders cannot write, or a field of a trusted result. Values are compared
//! in the one canonical form of their entity type ([`canonical`]), whole and never by parts, so that no prefix, suffix
//! or look-alike of a trusted value is one.
//!
//! This is about integrity alone: a trusted source never says who may be told what. Nothing here reads a clock or a
//! file, and nothing here decides; `decide` asks [`Sources::find`].

mod address;
mod calendar;
mod directory;
mod entity;
mod instruction;
mod quantity;
mod results;
mod text;

use std::{collections::BTreeSet, fmt};

pub use self::{
    directory::{Directory, InvalidDirectory},
    entity::{VALUE_BYTES_MAX, canonical, canonical_text},
    instruction::{INSTRUCTION_BYTES_MAX, Instruction, Mention},
    results::{RESULT_SOURCES_MAX, ResultSources},
};
use crate::{
    ids::{EntityType, FlowDomain},
    json::Value,
};

/// Where the value of a guarded argument was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The operators' directory of this name holds it.
    Directory(String),
    /// The capability was granted for this value and no other.
    Grant,
    /// The user's instruction names it.
    Instruction,
    /// A trusted field of an earlier result holds it.
    Result,
}

/// As policies and records spell it: `instruction`, `directory:contacts`, `result`, `grant`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(name) => write!(f, "directory:{name}"),
            Self::Grant => f.write_str("grant"),
            Self::Instruction => f.write_str("instruction"),
            Self::Result => f.write_str("result"),
        }
    }
}

/// A sort of source that a contract may accept for an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKind {
    /// Directories outsiders cannot write.
    Directory,
    /// The authority block, if it pins the value: for how much, not for who. Who is affected takes a name that somebody
    /// gave, whatever was granted.
    Grant,
    /// The instruction, if it names one value of the type and no other.
    Instruction,
    /// The instruction, even if it names several values of the type: for arguments where mixing them up does no harm,
    /// or where the capability pins which one.
    InstructionAny,
    /// Trusted fields of earlier results in the same flow domain.
    Result,
}

impl SourceKind {
    /// The word contracts use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Grant => "grant",
            Self::Instruction => "instruction",
            Self::InstructionAny => "instruction-any",
            Self::Result => "result",
        }
    }

    /// Reads the word contracts use.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Directory, Self::Grant, Self::Instruction, Self::InstructionAny, Self::Result]
            .into_iter()
            .find(|kind| kind.as_str() == word)
    }
}

/// The sorts of source a contract accepts for one argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceKinds(BTreeSet<SourceKind>);

impl SourceKinds {
    /// Whether this sort of source counts.
    #[must_use]
    pub fn contains(&self, kind: SourceKind) -> bool {
        self.0.contains(&kind)
    }

    /// The same, and one more.
    #[must_use]
    pub fn with(mut self, kind: SourceKind) -> Self {
        self.0.insert(kind);
        self
    }

    /// The sorts, in the order of their words.
    pub fn iter(&self) -> impl Iterator<Item = SourceKind> + '_ {
        self.0.iter().copied()
    }
}

/// What a contract that says nothing accepts: all three, and of the instruction only what is unambiguous.
impl Default for SourceKinds {
    fn default() -> Self {
        Self([SourceKind::Directory, SourceKind::Instruction, SourceKind::Result].into())
    }
}

impl FromIterator<SourceKind> for SourceKinds {
    fn from_iter<I: IntoIterator<Item = SourceKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().collect())
    }
}

/// Everything trusted that may name a value for one call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The user's instruction, if its text is known here.
    pub instruction: Option<&'a Instruction>,
    /// The operators' directories.
    pub directories: &'a [Directory],
    /// The trusted values that results have brought into the call's flow domain.
    pub results: Option<&'a ResultSources>,
}

impl Sources<'_> {
    /// Where `value` was named as an entity of this type, among the sources that count.
    ///
    /// The instruction is asked first, then the directories in their order, then results. `None` also for whatever has
    /// no canonical form: too long, invisible characters, mixed alphabets, not of the type at all.
    #[must_use]
    pub fn find(
        &self,
        domain: &FlowDomain,
        entity: &EntityType,
        value: &Value,
        allowed: &SourceKinds,
    ) -> Option<Source> {
        let canonical = canonical(entity, value)?;
        let from_instruction = || {
            let mention = self.instruction?.names(entity, &canonical);
            let counts = match mention {
                Mention::Only => {
                    allowed.contains(SourceKind::Instruction) || allowed.contains(SourceKind::InstructionAny)
                }
                Mention::OneOfSeveral => allowed.contains(SourceKind::InstructionAny),
                Mention::None => false,
            };
            counts.then_some(Source::Instruction)
        };
        let from_directory = || {
            let directory = self.directories.iter().find(|directory| directory.names(entity, &canonical))?;
            allowed.contains(SourceKind::Directory).then(|| Source::Directory(directory.name().to_owned()))
        };
        let from_result = || {
            let held = self.results?.contains(domain, entity, &canonical);
            (held && allowed.contains(SourceKind::Result)).then_some(Source::Result)
        };
        from_instruction().or_else(from_directory).or_else(from_result)
    }
}

#[cfg(test)]
mod tests;
