//! What rows are found by, and the lists of rows kept for it.
//!
//! A term has one list: the ordinals of its rows, rising. Full stretches of it are pages of their own; the rest
//! stands in the head, and heads stand in buckets. So a term that is not there is as provable as one that is.

use serde::{Deserialize, Serialize};
use writ_common::{
    digest::Digest,
    ids::{Action, AgentId, ApprovalId, OperatorId, Resource, TaskId},
    label::Integrity,
    time::Timestamp,
};

use super::row::{Row, RowKind};

/// Ordinals per page of a list.
pub(super) const POSTINGS_PER_PAGE: usize = 256;
/// How many buckets heads are spread over.
pub(super) const BUCKETS: usize = 1_024;

/// What rows are found by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term<'a> {
    /// A user's `sub`.
    User(&'a str),
    /// An agent of the chain, the caller, or the agent that was called.
    Agent(&'a AgentId),
    /// A task.
    Task(&'a TaskId),
    /// What was to be done.
    Target(&'a Resource, &'a Action),
    /// Grants that hold this right.
    Grant(&'a Resource, &'a Action),
    /// A tag of the task label or of a result.
    Tag(&'a str),
    /// A task label or result of this integrity.
    Integrity(Integrity),
    /// Everything people were asked or answered.
    Approvals,
    /// What one person answered or let pass.
    Approver(&'a OperatorId),
    /// One approval.
    Approval(&'a ApprovalId),
    /// What ran only because it is observed.
    Observed,
}

impl Term<'_> {
    /// The bytes it is kept under: a kind, then parts, each after its length, so that no two terms share them.
    pub(super) fn key(&self) -> Vec<u8> {
        let (kind, parts): (u8, Vec<&str>) = match self {
            Self::User(subject) => (b'u', vec![subject]),
            Self::Agent(agent) => (b'a', vec![agent.as_str()]),
            Self::Task(task) => (b't', vec![task.as_str()]),
            Self::Target(resource, action) => (b'r', vec![resource.as_str(), action.as_str()]),
            Self::Grant(resource, action) => (b'g', vec![resource.as_str(), action.as_str()]),
            Self::Tag(tag) => (b'l', vec![tag]),
            Self::Integrity(integrity) => (b'i', vec![integrity.as_str()]),
            Self::Approvals => (b'p', Vec::new()),
            Self::Approver(approver) => (b'b', vec![approver.as_str()]),
            Self::Approval(id) => (b'y', vec![id.as_str()]),
            Self::Observed => (b'o', Vec::new()),
        };
        let mut key = vec![kind];
        for part in parts {
            key.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            key.extend_from_slice(part.as_bytes());
        }
        key
    }
}

/// In which bucket a term's head stands.
pub(super) fn bucket_of(key: &[u8]) -> usize {
    usize::try_from(crc32c::crc32c(key)).unwrap_or(0) % BUCKETS
}

/// Every term a row is found by.
pub(super) fn keys_of(row: &Row) -> Vec<Vec<u8>> {
    let mut terms: Vec<Term<'_>> = Vec::new();
    let about_call = row.kind.is_verdict();
    if about_call && let Some(user) = &row.user {
        terms.push(Term::User(user.subject()));
    }
    if about_call {
        terms.extend(row.chain().chain(&row.caller).map(Term::Agent));
    }
    let called =
        row.resource.as_ref().filter(|resource| resource.kind() == writ_common::ids::ResourceKind::Agent);
    let called = called.and_then(|resource| AgentId::parse(resource.name()).ok()).filter(|_| about_call);
    terms.extend(called.iter().map(Term::Agent));
    terms.extend(row.task.iter().map(Term::Task));
    if about_call && let (Some(resource), Some(action)) = (&row.resource, &row.action) {
        terms.push(Term::Target(resource, action));
    }
    let granted = row.granted.iter().flat_map(|granted| &granted.rights);
    terms.extend(granted.map(|right| Term::Grant(&right.resource, &right.action)));
    if let Some(label) = &row.label {
        terms.extend(label.names().into_iter().map(Term::Tag));
        terms.push(Term::Integrity(label.integrity));
    }
    if is_about_approval(row) {
        terms.push(Term::Approvals);
    }
    if let Some(approval) = &row.approval {
        terms.push(Term::Approval(&approval.id));
        terms.extend(approval.by.iter().map(Term::Approver));
    }
    terms.extend(row.acts.iter().map(|act| Term::Approver(&act.by)));
    if !row.would_deny.is_empty() {
        terms.push(Term::Observed);
    }
    let mut keys: Vec<Vec<u8>> = terms.iter().map(Term::key).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Whether people were asked, answered, or let something pass.
pub(super) fn is_about_approval(row: &Row) -> bool {
    let is_answer = matches!(row.kind, RowKind::Granted | RowKind::Refused);
    // A call that was refused for what people said, or did not say in time.
    let by_cause =
        row.kind.is_refusal() && row.causes.iter().any(|cause| cause.code.as_str().starts_with("approval."));
    is_answer || by_cause || row.approval.is_some() || !row.acts.is_empty()
}

/// What is known of a page of rows or of a list without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PageInfo {
    /// The lowest ordinal in it.
    pub first: u64,
    /// The highest.
    pub last: u64,
    /// How many rows.
    pub count: u64,
    /// Times of its rows.
    pub span: Span,
    /// Digest of the page.
    pub digest: Digest,
}

/// From when to when rows are, and until when what they grant counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    pub from: Timestamp,
    pub to: Timestamp,
    pub until: Timestamp,
}

impl Span {
    pub(super) fn of(row: &Row) -> Self {
        let until = row.granted.as_ref().map_or(row.at, |granted| granted.expires.max(row.at));
        Self { from: row.at, to: row.at, until }
    }

    pub(super) fn join(self, other: Self) -> Self {
        Self {
            from: self.from.min(other.from),
            to: self.to.max(other.to),
            until: self.until.max(other.until),
        }
    }
}

/// The list of a term.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// Full pages, in order.
    pub pages: Vec<PageInfo>,
    /// What is not yet a page, each as its distance from the one before it.
    pub tail: Vec<u64>,
    /// Times of the rows of the tail.
    pub span: Option<Span>,
}

impl Head {
    /// How many rows the list has.
    pub(super) fn len(&self) -> u64 {
        self.pages.iter().map(|page| page.count).sum::<u64>() + self.tail.len() as u64
    }
}

/// Rising numbers as distances: small numbers are short in `MessagePack`.
pub(super) fn to_distances(ordinals: &[u64]) -> Vec<u64> {
    let mut before = 0;
    ordinals.iter().map(|ordinal| ordinal.wrapping_sub(std::mem::replace(&mut before, *ordinal))).collect()
}

/// The inverse of [`to_distances`].
pub(super) fn from_distances(distances: &[u64]) -> Vec<u64> {
    let mut at = 0u64;
    distances
        .iter()
        .map(|distance| {
            at = at.wrapping_add(*distance);
            at
        })
        .collect()
}
