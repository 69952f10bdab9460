//! Directories: what operators know to be right.

use std::collections::BTreeSet;

use super::{address, canonical_text};
use crate::ids::{EntityType, InvalidId};

/// The entities operators vouch for: own mailboxes, known payees, the organisation's hosts.
///
/// One that outsiders can write to, such as contacts collected from received mail, is shown to people and is no
/// trusted source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    name: String,
    entity: EntityType,
    values: BTreeSet<String>,
    domains: BTreeSet<String>,
    outsiders_write: bool,
}

/// Why something is no directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDirectory {
    /// The name is outside the id grammar.
    #[error(transparent)]
    Name(#[from] InvalidId),
    /// A domain that is no host name.
    #[error("directory `{directory}`: `{domain}` is no domain name")]
    NoDomain {
        /// The directory.
        directory: String,
        /// The offending text.
        domain: String,
    },
    /// A value that is not of the directory's entity type.
    #[error("directory `{directory}`: `{value}` is no `{entity}`")]
    NoEntity {
        /// The directory.
        directory: String,
        /// The entity type it should have.
        entity: EntityType,
        /// The offending text.
        value: String,
    },
}

impl Directory {
    /// Brings every value and domain to canonical form. A domain covers its own mailboxes and hosts, not those below it.
    ///
    /// # Errors
    /// [`InvalidDirectory`] names the first value, domain or name that is not what it should be.
    pub fn new(
        name: &str,
        entity: EntityType,
        values: impl IntoIterator<Item = impl AsRef<str>>,
        domains: impl IntoIterator<Item = impl AsRef<str>>,
        outsiders_write: bool,
    ) -> Result<Self, InvalidDirectory> {
        // The shared grammar, under another name in the error.
        EntityType::parse(name).map_err(|error| InvalidId::new("directory", name, error.why))?;
        let value = |text: &str| {
            canonical_text(&entity, text).ok_or_else(|| InvalidDirectory::NoEntity {
                directory: name.to_owned(),
                entity: entity.clone(),
                value: text.to_owned(),
            })
        };
        let domain = |text: &str| {
            address::host(text).ok_or_else(|| InvalidDirectory::NoDomain {
                directory: name.to_owned(),
                domain: text.to_owned(),
            })
        };
        Ok(Self {
            values: values.into_iter().map(|text| value(text.as_ref())).collect::<Result<_, _>>()?,
            domains: domains.into_iter().map(|text| domain(text.as_ref())).collect::<Result<_, _>>()?,
            name: name.to_owned(),
            entity,
            outsiders_write,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it lists.
    #[must_use]
    pub fn entity(&self) -> &EntityType {
        &self.entity
    }

    /// Whether people outside can add to it, so that it proves nothing.
    #[must_use]
    pub fn outsiders_write(&self) -> bool {
        self.outsiders_write
    }

    /// Whether it lists this value, whoever may have written it there: for people to see.
    #[must_use]
    pub fn lists(&self, entity: &EntityType, canonical: &str) -> bool {
        let addressed = matches!(entity.as_str(), "email" | "host" | "url");
        let in_domain = || address::host_of(canonical).is_some_and(|host| self.domains.contains(host));
        *entity == self.entity && (self.values.contains(canonical) || (addressed && in_domain()))
    }

    /// Whether it vouches for this value, given in its canonical form.
    #[must_use]
    pub fn names(&self, entity: &EntityType, canonical: &str) -> bool {
        (!self.outsiders_write || crate::red::off("M11-directory")) && self.lists(entity, canonical)
    }
}
