//! The questions auditors ask, each answered from a few lists.

use std::collections::BTreeMap;

use serde::Serialize;
use writ_common::{
    capability::Right,
    control::{Activation, RevocationTarget},
    ids::{AgentId, CapabilityId, KeyId, OperatorId, TaskId},
    label::Integrity,
    policy::PolicySet,
    time::Timestamp,
};

use super::{
    Index, IndexError, Page, Refusal, Refusals, Term, Window,
    history::{Change, ControlHistory},
    row::{Row, RowKind},
    term::is_about_approval,
};

/// Which page of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Paging {
    /// After the row of this ordinal.
    pub after: Option<u64>,
    /// Most rows.
    pub limit: usize,
}

/// What of a user's to show.
#[derive(Clone, Copy, Debug)]
pub struct OfUser<'a> {
    /// A `sub`, or `iss/sub`.
    pub user: &'a str,
    /// Only where this agent had a hand in it.
    pub agent: Option<&'a AgentId>,
    /// Only this.
    pub right: Option<&'a Right>,
}

/// What was asked for and answered on a user's authority.
///
/// # Errors
/// [`IndexError`].
pub fn of_user(index: &Index, asked: OfUser<'_>, window: Window, paging: Paging) -> Result<Page, IndexError> {
    let Some((issuer, subject)) = find_user(index, asked.user)? else { return Ok(Page::default()) };
    let mut terms = vec![Term::User(subject)];
    terms.extend(asked.agent.map(Term::Agent));
    terms.extend(asked.right.map(|right| Term::Target(&right.resource, &right.action)));
    index.page(&terms, window, paging.after, paging.limit, |row| is_of(row, issuer))
}

fn is_of(row: &Row, issuer: Option<&str>) -> bool {
    issuer.is_none_or(|issuer| row.user.as_ref().is_some_and(|user| user.issuer() == issuer))
}

/// Both parts may hold slashes: the first way to read the text that somebody goes by.
fn find_user<'a>(index: &Index, text: &'a str) -> Result<Option<(Option<&'a str>, &'a str)>, IndexError> {
    let whole = std::iter::once((None, text));
    let split = text.match_indices('/').filter_map(|(at, _)| {
        let (issuer, rest) = text.split_at_checked(at)?;
        Some((Some(issuer), rest.strip_prefix('/')?))
    });
    for (issuer, subject) in whole.chain(split) {
        let mut is_known = false;
        index.visit(&[Term::User(subject)], Window::default(), None, |row| {
            is_known = is_of(row, issuer);
            !is_known
        })?;
        if is_known {
            return Ok(Some((issuer, subject)));
        }
    }
    Ok(None)
}

/// Reads a label as people write it: tags, `trusted` or `untrusted`, with or without braces and commas.
#[must_use]
pub fn label_terms(text: &str) -> Vec<Term<'_>> {
    let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '{' | '}'));
    words
        .filter(|word| !word.is_empty())
        .map(|word| match word {
            "trusted" => Term::Integrity(Integrity::Trusted),
            "untrusted" => Term::Integrity(Integrity::Untrusted),
            tag => Term::Tag(tag),
        })
        .collect()
}

/// What data with this label had to do with a row.
#[must_use]
pub fn part_in_flow(row: &Row) -> &'static str {
    match row.kind {
        RowKind::Outcome => "came in",
        RowKind::Allow => "went to",
        RowKind::Hold => "held before",
        RowKind::Deny | RowKind::Void => "kept from",
        RowKind::Granted | RowKind::Refused => "",
    }
}

/// Results that carried everything the label names, and calls under a task label that held it.
///
/// # Errors
/// [`IndexError`].
pub fn touched(
    index: &Index,
    label: &[Term<'_>],
    window: Window,
    paging: Paging,
) -> Result<Page, IndexError> {
    index.page(label, window, paging.after, paging.limit, |row| row.label.is_some())
}

/// What people approved, refused or let pass; with `asked_too`, also what they were asked and have not answered.
///
/// # Errors
/// [`IndexError`].
pub fn approvals(
    index: &Index,
    by: Option<&OperatorId>,
    asked_too: bool,
    window: Window,
    paging: Paging,
) -> Result<Page, IndexError> {
    let term = by.map_or(Term::Approvals, Term::Approver);
    let wanted = |row: &Row| is_about_approval(row) && (asked_too || row.kind != RowKind::Hold);
    index.page(&[term], window, paging.after, paging.limit, wanted)
}

/// The call an answer is about: an answer names its request only.
///
/// # Errors
/// [`IndexError`].
pub fn asked_call(index: &Index, row: &Row) -> Result<Option<Row>, IndexError> {
    let Some(approval) = &row.approval else { return Ok(None) };
    let mut found = None;
    index.visit(&[Term::Approval(&approval.id)], Window::default(), None, |row| {
        if row.kind.is_verdict() {
            found = Some(row.clone());
        }
        found.is_none()
    })?;
    Ok(found)
}

/// Calls that ran although something would have denied them.
///
/// # Errors
/// [`IndexError`].
pub fn observed(
    index: &Index,
    agent: Option<&AgentId>,
    window: Window,
    paging: Paging,
) -> Result<Page, IndexError> {
    let terms: Vec<Term<'_>> = std::iter::once(Term::Observed).chain(agent.map(Term::Agent)).collect();
    index.page(&terms, window, paging.after, paging.limit, |row| row.kind.is_verdict())
}

/// How often something was refused in one stretch of days and in the one before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rise {
    /// What, and by whom.
    #[serde(flatten)]
    pub refusal: Refusal,
    /// In the last stretch.
    pub now: u64,
    /// In the one before.
    pub before: u64,
}

impl Rise {
    /// By how many more.
    #[must_use]
    pub fn by(&self) -> i128 {
        i128::from(self.now) - i128::from(self.before)
    }
}

/// The refusals of the `days` days that end with the day `last`, against the `days` days before them: what rose most
/// comes first. Days are those of UTC, counted from 1970.
///
/// # Errors
/// [`IndexError`].
pub fn denials(index: &Index, last: u64, days: u64) -> Result<Vec<Rise>, IndexError> {
    let sum = |end: u64| -> Result<Refusals, IndexError> {
        let mut summed = Refusals::new();
        for day in (end + 1).saturating_sub(days)..=end {
            for (refusal, count) in index.refusals(day)? {
                *summed.entry(refusal).or_default() += count;
            }
        }
        Ok(summed)
    };
    let now = sum(last)?;
    let mut before = match last.checked_sub(days) {
        Some(end) => sum(end)?,
        None => Refusals::new(),
    };
    let mut rises: Vec<Rise> = now
        .into_iter()
        .map(|(refusal, now)| {
            let before = before.remove(&refusal).unwrap_or_default();
            Rise { refusal, now, before }
        })
        .collect();
    rises.extend(before.into_iter().map(|(refusal, before)| Rise { refusal, now: 0, before }));
    rises.sort_by(|one, other| other.by().cmp(&one.by()).then_with(|| one.refusal.cmp(&other.refusal)));
    Ok(rises)
}

/// An agent that held a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Which.
    pub agent: AgentId,
    /// The key it held it with.
    pub key: KeyId,
    /// Who handed it on; none for the agent it was granted to.
    pub from: Option<AgentId>,
    /// When it was first seen with it: granted, or in a call.
    pub first_seen: Timestamp,
    /// When it was last seen with it.
    pub last_seen: Timestamp,
    /// Whether something had ended it at the moment that is asked about.
    pub ended_by: Option<String>,
}

/// A capability that held a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The grant.
    pub grant: Row,
    /// Who held it, the agent it was granted to first.
    pub holders: Vec<Holder>,
}

/// A role that may have a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowed {
    /// The role of the user.
    pub role: String,
    /// In which kind of task.
    pub kind: String,
    /// Given to which agents.
    pub agents: Vec<String>,
}

/// Who could do something at a moment, and by whose authority.
#[derive(Clone, Debug, Default)]
pub struct WhoCan {
    /// Capabilities that held the right.
    pub holdings: Vec<Holding>,
    /// The policy in force.
    pub policy: Option<Activation>,
    /// Who may be granted it by that policy's roles.
    pub allowed: Vec<Allowed>,
    /// That everything was stopped, and by whom.
    pub halted_by: Option<String>,
}

/// Who held a right at a moment: as granted, and as handed on as far as a call shows it.
///
/// # Errors
/// [`IndexError`].
pub fn who_can(
    index: &Index,
    history: &ControlHistory,
    right: &Right,
    at: Timestamp,
    agent: Option<&AgentId>,
) -> Result<WhoCan, IndexError> {
    let window = Window { alive_at: Some(at), ..Window::default() };
    let mut grants: BTreeMap<Option<CapabilityId>, Row> = BTreeMap::new();
    index.visit(&[Term::Grant(&right.resource, &right.action)], window, None, |row| {
        if row.kind == RowKind::Allow {
            // A renewal takes the place of what it renews.
            let newer = grants.get(&row.capability).is_none_or(|known| known.serial <= row.serial);
            if newer {
                grants.insert(row.capability.clone(), row.clone());
            }
        }
        true
    })?;
    let mut answer = WhoCan { halted_by: history.halt_at(at).map(said), ..WhoCan::default() };
    for grant in grants.into_values() {
        let mut holders = holders_of(index, &grant, right, at)?;
        for holder in &mut holders {
            holder.holder.ended_by = ended_by(history, &grant, holder, at);
        }
        let holders: Vec<Holder> = holders.into_iter().map(|seen| seen.holder).collect();
        if agent.is_none_or(|agent| holders.iter().any(|holder| holder.agent == *agent)) {
            answer.holdings.push(Holding { grant, holders });
        }
    }
    if let Some((activation, bundle)) = history.policy_at(at) {
        answer.policy = Some(activation.clone());
        if let Ok((policy, _)) = PolicySet::load(bundle) {
            answer.allowed = allowed(&policy, right, agent);
        }
    }
    Ok(answer)
}

fn said<T>(change: &Change<T>) -> String {
    format!("{} by {}, control event #{}", change.at, change.by, change.sequence)
}

fn allowed(policy: &PolicySet, right: &Right, agent: Option<&AgentId>) -> Vec<Allowed> {
    let inventory = policy.inventory();
    let tasks = inventory.roles.iter().flat_map(|(role, tasks)| tasks.iter().map(move |task| (role, task)));
    tasks
        .filter(|(_, task)| task.rights.contains(right))
        .filter(|(_, task)| agent.is_none_or(|agent| task.agents.contains(agent)))
        .map(|(role, task)| Allowed {
            role: role.to_string(),
            kind: task.kind.to_string(),
            agents: task.agents.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

/// A holder with the hands it came through: agents and keys, its own last.
struct Seen {
    holder: Holder,
    agents: Vec<AgentId>,
    keys: Vec<KeyId>,
}

/// The agent a capability was granted to, and those it was handed on to by the moment `at`.
fn holders_of(index: &Index, grant: &Row, right: &Right, at: Timestamp) -> Result<Vec<Seen>, IndexError> {
    let (Some(agent), Some(granted)) = (&grant.agent, &grant.granted) else { return Ok(Vec::new()) };
    let first = Holder {
        agent: agent.clone(),
        key: granted.key.clone(),
        from: None,
        first_seen: grant.at,
        last_seen: grant.at,
        ended_by: None,
    };
    let mut seen = vec![Seen { holder: first, agents: vec![agent.clone()], keys: vec![granted.key.clone()] }];
    let Some(task) = &grant.task else { return Ok(seen) };
    let window = Window { to: Some(at.after(writ_common::time::Millis(1))), ..Window::default() };
    index.visit(&[Term::Task(task)], window, None, |row| {
        // A void says no more than a refusal does of whose hands the capability was in: its chain was verified too.
        if row.kind.is_verdict() && row.capability == grant.capability {
            look_at(row, right, &mut seen);
        }
        true
    })?;
    Ok(seen)
}

fn look_at(row: &Row, right: &Right, seen: &mut Vec<Seen>) {
    let Some(first) = seen.first() else { return };
    let (mut agents, mut keys) = (first.agents.clone(), first.keys.clone());
    let mut note = |agents: &[AgentId], keys: &[KeyId]| match seen.iter_mut().find(|known| known.keys == keys)
    {
        Some(known) => known.holder.last_seen = known.holder.last_seen.max(row.at),
        None => {
            let (Some(agent), Some(key)) = (agents.last(), keys.last()) else { return };
            let from = agents.len().checked_sub(2).and_then(|at| agents.get(at)).cloned();
            let (first_seen, last_seen) = (row.at, row.at);
            let holder = Holder {
                agent: agent.clone(),
                key: key.clone(),
                from,
                first_seen,
                last_seen,
                ended_by: None,
            };
            seen.push(Seen { holder, agents: agents.to_vec(), keys: keys.to_vec() });
        }
    };
    note(&agents, &keys);
    for hop in &row.hops {
        if hop.kept_back.contains(right) {
            return;
        }
        agents.push(hop.to.clone());
        keys.push(hop.key.clone());
        note(&agents, &keys);
    }
}

/// What had ended it: a revocation, or the isolation of one of the agents it came through.
fn ended_by(history: &ControlHistory, grant: &Row, seen: &Seen, at: Timestamp) -> Option<String> {
    let isolated = seen.agents.iter().find_map(|agent| history.quarantine_at(agent, at));
    if let Some(change) = isolated {
        return Some(format!("agent `{}` isolated {}", change.what.0, said(change)));
    }
    let covers = |change: &Change<RevocationTarget>| match &change.what {
        RevocationTarget::Agent(agent) => grant.at <= change.at && seen.agents.contains(agent),
        RevocationTarget::Capability(id) => {
            let own = grant.capability.as_ref();
            own == Some(id) || own.and_then(CapabilityId::beside).as_ref() == Some(id)
        }
        RevocationTarget::Holder(key) => seen.keys.contains(key),
        RevocationTarget::Hop { capability, delegator, delegatee } => {
            let pairs = seen.keys.iter().zip(seen.keys.iter().skip(1));
            grant.capability.as_ref() == Some(capability)
                && pairs.into_iter().any(|(from, to)| from == delegator && to == delegatee)
        }
        RevocationTarget::Task(task) => grant.task.as_ref() == Some(task),
        RevocationTarget::User(user) => grant.at <= change.at && grant.user.as_ref() == Some(user),
    };
    let change = history.revocations.iter().find(|change| change.at <= at && covers(change))?;
    let what = match &change.what {
        RevocationTarget::Agent(agent) => format!("agent `{agent}`"),
        RevocationTarget::Capability(id) => format!("capability {id}"),
        RevocationTarget::Holder(key) => format!("key {key}"),
        RevocationTarget::Hop { .. } => "this hand-over".to_owned(),
        RevocationTarget::Task(task) => format!("task {task}"),
        RevocationTarget::User(user) => format!("user {}", user.subject()),
    };
    Some(format!("{what} revoked {}", said(change)))
}

/// Every row of a task.
///
/// # Errors
/// [`IndexError`].
pub fn of_task(index: &Index, task: &TaskId) -> Result<Vec<Row>, IndexError> {
    let mut rows = Vec::new();
    index.visit(&[Term::Task(task)], Window::default(), None, |row| {
        rows.push(row.clone());
        true
    })?;
    Ok(rows)
}
