//! Labels: what data may be told to whom, and whether it may be believed.
//!
//! A lattice (Denning 1976; tags as in FIDES, arXiv 2505.23643): `join` goes up, towards "fewer may see it" and
//! "nobody should believe it". Whatever is missing or cannot be verified counts as [`Label::top`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    codec::Message,
    ids::{Action, AgentId, FlowDomain, InvalidId, PartId, Resource, TenantId},
    keys::Purpose,
    record::DecisionId,
    signed::{Signable, Signed},
    source::ResultSources,
    time::Timestamp,
};

/// The word for no tags.
const PUBLIC: &str = "public";
/// The word for all of them.
pub(crate) const TOP: &str = "top";
/// Most confidentiality tags of one label; more collapse to top.
pub const TAGS_MAX: usize = 64;

/// A confidentiality tag: `crm`, `hr-salaries`. `public` is the absence of tags and no tag itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

impl Tag {
    /// Parses a tag in the id grammar.
    ///
    /// # Errors
    /// [`InvalidId`] if it is outside the grammar or one of the reserved words `public` and `top`.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidId> {
        let text = text.into();
        if matches!(text.as_str(), PUBLIC | TOP) {
            return Err(InvalidId::new("tag", &text, "is reserved"));
        }
        // The shared grammar, under another name in the error.
        Action::parse(text.as_str()).map_err(|error| InvalidId::new("tag", &text, error.why))?;
        Ok(Self(text))
    }

    /// The tag's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::parse(text)
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> String {
        tag.0
    }
}

/// Who may see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidentiality {
    /// Those cleared for every one of these tags; with no tags, everybody.
    Tags(#[serde(deserialize_with = "bounded")] BTreeSet<Tag>),
    /// Nobody: unknown, unverifiable, or too many tags.
    Top,
}

impl Confidentiality {
    /// Whether data with these tags may be told to whoever is cleared for the others.
    #[must_use]
    pub fn flows_to(&self, cleared: &Self) -> bool {
        match (self, cleared) {
            (Self::Tags(data), Self::Tags(cleared)) => data.is_subset(cleared),
            (_, Self::Top) => true,
            (Self::Top, Self::Tags(_)) => false,
        }
    }

    /// The tags that whoever is cleared for the others is not cleared for; `top` if it is everything.
    #[must_use]
    pub fn beyond<'a>(&'a self, cleared: &Self) -> Vec<&'a str> {
        match (self, cleared) {
            (_, Self::Top) => Vec::new(),
            (Self::Top, Self::Tags(_)) => vec![TOP],
            (Self::Tags(data), Self::Tags(cleared)) => {
                let beyond = data.iter().filter(|tag| !cleared.contains(*tag));
                beyond.map(Tag::as_str).collect()
            }
        }
    }

    /// What both are cleared for.
    #[must_use]
    pub fn meet(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Top, other) | (other, Self::Top) => other.clone(),
            (Self::Tags(a), Self::Tags(b)) => Self::Tags(a.intersection(b).cloned().collect()),
        }
    }

    /// The tags as policies see them: `public` for none, `top` for all.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Tags(tags) if tags.is_empty() => vec![PUBLIC],
            Self::Tags(tags) => tags.iter().map(Tag::as_str).collect(),
            Self::Top => vec![TOP],
        }
    }
}

/// More tags than any join leaves are no label of ours; unreadable counts as top.
fn bounded<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<Tag>, D::Error> {
    let tags = BTreeSet::deserialize(deserializer)?;
    if tags.len() > TAGS_MAX {
        return Err(serde::de::Error::custom("a label has at most 64 tags"));
    }
    Ok(tags)
}

/// Whether it may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// Written by the system or by people who answer for it.
    Trusted,
    /// Somebody outside could have written it.
    Untrusted,
}

/// A label: confidentiality and integrity together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Who may see it.
    pub confidentiality: Confidentiality,
    /// Whether it may be believed.
    pub integrity: Integrity,
}

impl Label {
    /// Public and trusted: what a task starts with.
    #[must_use]
    pub fn bottom() -> Self {
        Self { confidentiality: Confidentiality::Tags(BTreeSet::new()), integrity: Integrity::Trusted }
    }

    /// For nobody and not to be believed: what anything unknown counts as.
    #[must_use]
    pub fn top() -> Self {
        Self { confidentiality: Confidentiality::Top, integrity: Integrity::Untrusted }
    }

    /// The least label that is at least both.
    #[must_use]
    pub fn join(&self, other: &Self) -> Self {
        use Confidentiality::{Tags, Top};
        let confidentiality = match (&self.confidentiality, &other.confidentiality) {
            (Tags(a), Tags(b)) => {
                let union: BTreeSet<Tag> = a.union(b).cloned().collect();
                if union.len() > TAGS_MAX { Top } else { Tags(union) }
            }
            _ => Top,
        };
        Self { confidentiality, integrity: self.integrity.max(other.integrity) }
    }

    /// Whether data with this label may go where `other` is the most that may arrive.
    #[must_use]
    pub fn flows_to(&self, other: &Self) -> bool {
        self.confidentiality.flows_to(&other.confidentiality) && self.integrity <= other.integrity
    }

    /// The tags as policies see them: `public` for none, `top` for all.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.confidentiality.names()
    }
}

impl std::str::FromStr for Integrity {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "trusted" => Ok(Self::Trusted),
            "untrusted" => Ok(Self::Untrusted),
            _ => Err("integrity is trusted or untrusted"),
        }
    }
}

impl Integrity {
    /// The word policies use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::Untrusted => "untrusted",
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}} {}", self.names().join(", "), self.integrity.as_str())
    }
}

/// The call that brought something into a flow domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelOrigin {
    /// Its record.
    pub decision: DecisionId,
    /// What was called.
    pub resource: Resource,
    /// What was done.
    pub action: Action,
    /// Who was given the result.
    pub agent: AgentId,
    /// When.
    pub at: Timestamp,
}

impl fmt::Display for LabelOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} by `{}`, {}", self.resource, self.action, self.agent, self.decision)
    }
}

/// For each tag, and for `untrusted`, the call that brought it in first.
pub type Origins = BTreeMap<String, LabelOrigin>;

/// The label of a flow domain, as it stands on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainLabel {
    /// The tenant.
    pub tenant: TenantId,
    /// The domain and the part it lives in.
    pub domain: FlowDomain,
    /// The join of everything the domain's agents were given.
    pub label: Label,
    /// Where that came from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: Origins,
    /// The part the domain's label went to; nothing is decided on what stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<PartId>,
}

impl DomainLabel {
    /// The join with what stands in another part.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let mut origins = other.origins.clone();
        origins.extend(self.origins.clone());
        Self { label: self.label.join(&other.label), origins, ..self.clone() }
    }

    /// The domain once a result with this label was released in it: what is new has this origin.
    #[must_use]
    pub fn raised(&self, by: &Label, origin: &LabelOrigin) -> Self {
        let label = self.label.join(by);
        let mut origins = self.origins.clone();
        let known = self.label.names();
        let new_tags = label.names().into_iter().filter(|tag| *tag != PUBLIC && !known.contains(tag));
        for tag in new_tags {
            origins.entry(tag.to_owned()).or_insert_with(|| origin.clone());
        }
        if label.integrity != self.label.integrity {
            let word = label.integrity.as_str().to_owned();
            origins.entry(word).or_insert_with(|| origin.clone());
        }
        Self { label, origins, ..self.clone() }
    }
}

/// What results of a flow domain vouch for, as it stands on the bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainSources {
    /// The tenant.
    pub tenant: TenantId,
    /// The domain.
    pub domain: FlowDomain,
    /// The values trusted fields of results held.
    pub results: ResultSources,
}

impl Signable for DomainSources {
    const PURPOSE: Purpose = Purpose::Sources;
    const KIND: &'static str = "sources";
}

impl Message for Signed<DomainSources> {
    const KIND: &'static str = "sources";
    const BYTES_MAX: usize = 64 * 1024;
}

impl Signable for DomainLabel {
    const PURPOSE: Purpose = Purpose::Label;
    const KIND: &'static str = "label";
}

impl Message for Signed<DomainLabel> {
    const KIND: &'static str = "label";
    const BYTES_MAX: usize = 64 * 1024;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn label() -> impl Strategy<Value = Label> {
        let tags = proptest::collection::btree_set("[a-e]", 0..4).prop_map(|tags| {
            Confidentiality::Tags(tags.into_iter().map(|tag| Tag::parse(tag).unwrap()).collect())
        });
        let confidentiality = prop_oneof![9 => tags, 1 => Just(Confidentiality::Top)];
        let integrity = prop_oneof![Just(Integrity::Trusted), Just(Integrity::Untrusted)];
        (confidentiality, integrity)
            .prop_map(|(confidentiality, integrity)| Label { confidentiality, integrity })
    }

    proptest! {
        #[test]
        fn join_is_a_least_upper_bound(a in label(), b in label(), c in label()) {
            let joined = a.join(&b);
            prop_assert_eq!(&joined, &b.join(&a));
            prop_assert_eq!(a.join(&b.join(&c)), joined.join(&c));
            prop_assert_eq!(&a.join(&a), &a);
            prop_assert_eq!(&a.join(&Label::bottom()), &a);
            prop_assert_eq!(a.join(&Label::top()), Label::top());
            prop_assert!(a.flows_to(&joined) && b.flows_to(&joined));
            if a.flows_to(&c) && b.flows_to(&c) {
                prop_assert!(joined.flows_to(&c));
            }
        }

        #[test]
        fn flows_to_is_a_partial_order(a in label(), b in label(), c in label()) {
            prop_assert!(a.flows_to(&a));
            if a.flows_to(&b) && b.flows_to(&a) {
                prop_assert_eq!(&a, &b);
            }
            if a.flows_to(&b) && b.flows_to(&c) {
                prop_assert!(a.flows_to(&c));
            }
        }
    }

    #[test]
    fn f10_too_many_tags_are_top() {
        let many = |range: std::ops::Range<usize>| Label {
            confidentiality: Confidentiality::Tags(
                range.map(|index| Tag::parse(format!("t{index}")).unwrap()).collect(),
            ),
            integrity: Integrity::Trusted,
        };
        assert_eq!(many(0..40).join(&many(40..80)).confidentiality, Confidentiality::Top);
        let read =
            |label: &Label| crate::codec::from_canonical::<Label>("label", &crate::codec::to_bytes(label));
        assert_eq!(read(&many(0..TAGS_MAX)), Ok(many(0..TAGS_MAX)));
        assert!(read(&many(0..TAGS_MAX + 1)).is_err());
        assert!(Tag::parse("public").is_err());
    }
}
