//! What of an archived part may go: segments of which every message is older than its class is kept for, and of which
//! nothing is held.
//!
//! `deleted.json` is written before anything is deleted, so that nothing is gone that is not listed. What a run that was
//! killed had listed and not deleted is decided anew by the next one: it may be held by now. In doubt a segment is kept,
//! and said to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::Result;
use writ_common::{
    codec::decode,
    evidence::Word,
    hold::Held,
    ids::{ApprovalId, DomainId, TaskId, UserId},
    record::{Record, RecordBody, Who},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Timestamp},
};

use super::{
    Damage,
    manifest::{Class, Deletion, Deletions, Segment},
    read::Archived,
    segment::Message,
    store::Store,
};
use crate::span;

/// How long messages are kept, counted from when the server stored them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// What people wrote and saw.
    pub content: Millis,
    /// Records.
    pub records: Millis,
    /// Labels and claims.
    pub state: Millis,
}

impl Retention {
    /// Of a class.
    #[must_use]
    pub fn of(&self, class: Class) -> Millis {
        match class {
            Class::Content => self.content,
            Class::Records => self.records,
            Class::State => self.state,
        }
    }

    /// The rule for a class, as `deleted.json` has it.
    #[must_use]
    pub fn rule(&self, class: Class) -> String {
        format!("{class} {}", span::text(self.of(class)))
    }
}

/// Why a segment stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Something in it is held.
    Held(String),
    /// It cannot be told whether something in it is held.
    InDoubt(String),
    /// Not all of it is old enough; it will be then.
    Young(Timestamp),
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(what) => write!(f, "held: {what}"),
            Self::InDoubt(why) => write!(f, "kept in doubt: {why}"),
            Self::Young(until) => write!(f, "kept until {until}"),
        }
    }
}

/// What becomes of the segments of a part that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What goes.
    pub delete: Vec<Segment>,
    /// What stays, and why.
    pub keep: Vec<(Segment, Keep)>,
}

/// The plan for a part. `stays` says of segments that are old enough why they stay all the same.
#[must_use]
pub fn plan(
    archived: &Archived,
    retention: &Retention,
    now: Timestamp,
    stays: &BTreeMap<String, Keep>,
) -> Plan {
    let mut plan = Plan::default();
    for segment in &archived.manifest.segments {
        if archived.deletions.of(segment).is_some() {
            continue;
        }
        let until = segment.to.after(retention.of(segment.class));
        if until >= now {
            plan.keep.push((segment.clone(), Keep::Young(until)));
        } else if let Some(why) = stays.get(&segment.name) {
            plan.keep.push((segment.clone(), why.clone()));
        } else {
            plan.delete.push(segment.clone());
        }
    }
    plan
}

/// Whether a deletion is one its own rule allowed.
#[must_use]
pub(super) fn is_due(segment: &Segment, deletion: &Deletion) -> bool {
    let Some((class, length)) = deletion.rule.split_once(' ') else { return false };
    class == segment.class.as_str()
        && span::parse(length).is_some_and(|length| segment.to.after(length) < deletion.at)
}

/// Makes the plan for a part: what is old enough is read where something is held. What was listed as deleted and is
/// still there counts as not deleted from here on.
///
/// # Errors
/// If the store cannot be read. What is damaged is no error; it is kept.
pub async fn look(
    store: &Store,
    archived: &mut Archived,
    retention: &Retention,
    holds: &[Held],
    now: Timestamp,
) -> Result<Plan> {
    let there = there(store, archived).await?;
    archived.deletions.deleted.retain(|one| !there.contains(&one.name));
    let archived = &*archived;
    let due = plan(archived, retention, now, &BTreeMap::new()).delete;
    let stays = if due.is_empty() { BTreeMap::new() } else { stays(store, archived, &due, holds).await? };
    Ok(plan(archived, retention, now, &stays))
}

/// The files of a part that are there.
async fn there(store: &Store, archived: &Archived) -> Result<BTreeSet<String>> {
    let folder = format!("{}/", archived.folder());
    let files = store.list(Some(&archived.folder())).await?.into_iter();
    Ok(files.filter_map(|file| file.key.strip_prefix(&folder).map(str::to_owned)).collect())
}

/// Does what a plan says.
///
/// # Errors
/// If the store cannot be written.
pub async fn carry_out(
    store: &Store,
    archived: &Archived,
    plan: &Plan,
    retention: &Retention,
    now: Timestamp,
) -> Result<()> {
    // Another run may have deleted something meanwhile; what is there is not deleted, whoever listed it.
    let before = Deletions::read(store, &archived.manifest).await?;
    let there = there(store, archived).await?;
    let mut deletions = before.clone();
    deletions.deleted.retain(|one| !there.contains(&one.name));
    let due: Vec<&Segment> = plan.delete.iter().filter(|segment| there.contains(&segment.name)).collect();
    deletions.deleted.extend(due.iter().map(|segment| Deletion {
        name: segment.name.clone(),
        digest: segment.digest,
        at: now,
        rule: retention.rule(segment.class),
    }));
    if deletions != before {
        deletions.write(store, &archived.manifest).await?;
    }
    for segment in due {
        store.delete(&format!("{}/{}", archived.folder(), segment.name)).await?;
    }
    Ok(())
}

/// Which of these segments stay because something is held.
async fn stays(
    store: &Store,
    archived: &Archived,
    due: &[Segment],
    holds: &[Held],
) -> Result<BTreeMap<String, Keep>> {
    if holds.is_empty() {
        return Ok(BTreeMap::new());
    }
    let all = |why: &Keep| due.iter().map(|segment| (segment.name.clone(), why.clone())).collect();
    if holds.contains(&Held::Everything) {
        return Ok(all(&Keep::Held(Held::Everything.to_string())));
    }
    let known = match Known::read(store, archived, holds).await? {
        Ok(known) => known,
        Err(why) => return Ok(all(&Keep::InDoubt(why))),
    };
    let mut stays = BTreeMap::new();
    for segment in due {
        if let Some(why) = look_into(store, archived, segment, &known).await? {
            stays.insert(segment.name.clone(), why);
        }
    }
    Ok(stays)
}

/// The first reason for which a segment stays.
async fn look_into(
    store: &Store,
    archived: &Archived,
    segment: &Segment,
    known: &Known<'_>,
) -> Result<Option<Keep>> {
    let found = async {
        let mut reader = archived.segment(store, segment).await?;
        let mut doubt = None;
        while let Some(message) = reader.next()? {
            match known.why(&message) {
                Some(held @ Keep::Held(_)) => return Ok(Some(held)),
                Some(why) => doubt = doubt.or(Some(why)),
                None => {}
            }
        }
        anyhow::Ok(doubt)
    };
    match found.await {
        Err(error) => match error.downcast::<Damage>() {
            Ok(damage) => Ok(Some(Keep::InDoubt(damage.to_string()))),
            Err(error) => Err(error),
        },
        found => found,
    }
}

/// Whose a part's tasks are, and which tasks its domains and approvals belong to, as its records and requests say.
/// Signatures are not asked for: what only claims to be held stays too.
struct Known<'a> {
    holds: &'a [Held],
    users: BTreeMap<TaskId, BTreeSet<UserId>>,
    domains: BTreeMap<DomainId, BTreeSet<TaskId>>,
    approvals: BTreeMap<ApprovalId, BTreeSet<TaskId>>,
}

impl<'a> Known<'a> {
    /// Reads the part; what of it is deleted or damaged is no error where only tasks are held, since their messages
    /// mostly name them. Users are named by records alone: without all of those, nothing is known of any.
    async fn read(store: &Store, archived: &Archived, holds: &'a [Held]) -> Result<Result<Self, String>> {
        let of_user = holds.iter().any(|held| matches!(held, Held::User(_)));
        let mut known =
            Self { holds, users: BTreeMap::new(), domains: BTreeMap::new(), approvals: BTreeMap::new() };
        for class in [Class::Records, Class::Content] {
            for segment in archived.manifest.of_class(class) {
                let read = match archived.deletions.of(segment) {
                    Some(deletion) => Err(format!("{} was deleted by `{}`", segment.name, deletion.rule)),
                    None => known.take_segment(store, archived, segment).await?,
                };
                if let Err(why) = read
                    && of_user
                    && class == Class::Records
                {
                    return Ok(Err(format!(
                        "a user is held, and whose tasks these are cannot be told: {why}"
                    )));
                }
            }
        }
        Ok(Ok(known))
    }

    async fn take_segment(
        &mut self,
        store: &Store,
        archived: &Archived,
        segment: &Segment,
    ) -> Result<Result<(), String>> {
        let mut read = async || {
            let mut reader = archived.segment(store, segment).await?;
            while let Some(message) = reader.next()? {
                self.take(&message);
            }
            anyhow::Ok(())
        };
        match read().await {
            Ok(()) => Ok(Ok(())),
            Err(error) => error.downcast::<Damage>().map(|damage| Err(damage.to_string())),
        }
    }

    fn take(&mut self, message: &Message) {
        if let Some(record) = record_of(message) {
            let who = who_of(&record);
            if let Some(task) = record.task() {
                let users = self.users.entry(task.clone()).or_default();
                users.extend(who.and_then(|who| who.user.clone()));
                if let Some(domain) = who.and_then(|who| who.domain.clone()) {
                    self.domains.entry(domain.domain).or_default().insert(task.clone());
                }
                if let RecordBody::Verdict(verdicted) = &record.body {
                    for id in verdicted.words() {
                        self.approvals.entry(id.clone()).or_default().insert(task.clone());
                    }
                }
            }
            return;
        }
        match Word::read(&message.payload) {
            Some(Word::Request(request)) => {
                let request = request.said;
                self.users.entry(request.task.clone()).or_default().insert(request.user);
                self.approvals.entry(request.id).or_default().insert(request.task);
            }
            Some(Word::Act(act)) => {
                self.approvals.entry(act.said.id).or_default().insert(act.said.task);
            }
            Some(Word::Answer(_)) | None => {}
        }
    }

    /// Why a message stays, if it does.
    fn why(&self, message: &Message) -> Option<Keep> {
        let doubt = |what: &str| Some(Keep::InDoubt(format!("{what} (message {})", message.sequence)));
        let Ok((_, subject)) = Subject::parse(&message.subject) else {
            return doubt("a message of a kind not known here");
        };
        match subject {
            Subject::Audit { task, .. } | Subject::Restored { task, .. } => match record_of(message) {
                Some(record) => {
                    let user = who_of(&record).and_then(|who| who.user.as_ref());
                    let of_user = user.and_then(|user| self.user(user));
                    let tasks = task.iter().chain(record.task()).map(|task| self.task(task, message));
                    // A record without a task is its user's alone, and one without a user nobody's.
                    of_user.or_else(|| tasks.flatten().next())
                }
                None => task
                    .and_then(|task| self.task(&task, message))
                    .or_else(|| doubt("a record that cannot be read")),
            },
            Subject::Budget { task, .. } | Subject::Instruction { task, .. } => self.task(&task, message),
            Subject::Label(domain) | Subject::Sources(domain) => {
                let of_tasks = self.domains.get(&domain.domain);
                // Most domains are one task's and bear its id.
                let same = TaskId::parse(domain.domain.as_str()).ok();
                let same = same.filter(|task| self.users.contains_key(task) || self.is_held(task));
                if of_tasks.is_none() && same.is_none() {
                    return doubt("a flow domain whose tasks no record here names");
                }
                let tasks = of_tasks.into_iter().flatten().chain(&same);
                tasks.filter_map(|task| self.task(task, message)).next()
            }
            Subject::ApprovalAnswer { approval, .. }
            | Subject::ApprovalClaim { approval, .. }
            | Subject::ApprovalRequest { approval, .. }
            | Subject::LabelAct { act: approval, .. } => match self.approvals.get(&approval) {
                Some(tasks) => tasks.iter().find_map(|task| self.task(task, message)),
                None => doubt("an approval whose task nothing here names"),
            },
            _ => doubt("a message of a kind not known here"),
        }
    }

    fn is_held(&self, task: &TaskId) -> bool {
        self.holds.iter().any(|held| matches!(held, Held::Task(held) if held == task))
    }

    fn user(&self, user: &UserId) -> Option<Keep> {
        let held = self.holds.iter().find(|held| matches!(held, Held::User(held) if held == user));
        held.map(|held| Keep::Held(held.to_string()))
    }

    /// Why what belongs to a task stays, if it does.
    fn task(&self, task: &TaskId, message: &Message) -> Option<Keep> {
        if self.is_held(task) {
            return Some(Keep::Held(Held::Task(task.clone()).to_string()));
        }
        if !self.holds.iter().any(|held| matches!(held, Held::User(_))) {
            return None;
        }
        match self.users.get(task) {
            Some(users) if !users.is_empty() => users.iter().find_map(|user| self.user(user)),
            _ => Some(Keep::InDoubt(format!(
                "a user is held, and no record here says whose task {task} is (message {})",
                message.sequence
            ))),
        }
    }
}

/// The record a message is, whoever signed it.
fn record_of(message: &Message) -> Option<Record> {
    decode::<Signed<Record>>(&message.payload).ok()?.peek().ok()
}

/// On whose authority; outcomes name only their task.
fn who_of(record: &Record) -> Option<&Who> {
    match &record.body {
        RecordBody::Outcome(_) => None,
        RecordBody::Verdict(verdicted) => Some(&verdicted.who),
        RecordBody::Void(void) => Some(&void.who),
    }
}
