//! Reading the streams for evidence: heads first, then records until the heads cover what is asked for.

use std::{cell::RefCell, collections::BTreeMap, time::Duration};

use anyhow::{Result, bail};
use writ_bus::StoredMessage;
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::{PartId, TenantId},
    subjects::{filter, heads_stream, part_stream},
    tlog::{Head, LogId, SignedCheckpoint, Tree, leaf_hash},
};

use crate::{
    archive::{
        manifest::Class,
        read::{Archived, Item, open},
        segment::Message,
        store::Store,
    },
    operator::{Operator, Recorded},
};

/// How often, and how many times, the heads are read again for records that were just made.
const LOOK_AGAIN: Duration = Duration::from_millis(400);
const LOOKS_MAX: usize = 10;

/// The hashes of a run's leaves as the stream has them.
#[derive(Clone, Debug, Default)]
pub struct Leaves(BTreeMap<u64, Vec<Digest>>);

impl Leaves {
    /// Takes a record's envelope.
    pub fn take(&mut self, position: u64, envelope: &[u8]) {
        self.put(position, leaf_hash(envelope));
    }

    /// Takes a leaf's hash.
    pub fn put(&mut self, position: u64, leaf: Digest) {
        let at = self.0.entry(position).or_default();
        if !at.contains(&leaf) {
            at.push(leaf);
        }
    }

    /// The tree of the first `size` leaves, if its root is this one. Where more than one record claims a position
    /// (a void that was made again after a crash), the last or the first is the one in the log.
    #[must_use]
    pub fn tree(&self, size: u64, root: &Digest) -> Option<Tree> {
        let of = |pick: fn(&[Digest]) -> Option<&Digest>| {
            let leaves = self.0.range(..size).filter_map(|(_, at)| pick(at)).copied();
            let tree = Tree::of(leaves);
            (tree.size() == size && tree.root_at(size) == Ok(*root)).then_some(tree)
        };
        of(<[Digest]>::last).or_else(|| of(<[Digest]>::first))
    }
}

/// The newest checkpoint of every log, as the stream has it; who signed it is for the verifier to say.
///
/// # Errors
/// If the stream cannot be read.
pub async fn heads(operator: &Operator) -> Result<BTreeMap<LogId, SignedCheckpoint>> {
    let tenant = operator.tenant();
    let tail = operator.bus().tail(&heads_stream(tenant), &filter::heads(tenant), 1).await?;
    let mut heads = BTreeMap::new();
    tail.drain(|message| {
        let head = decode::<Head>(&message.payload).ok();
        let note = head.and_then(|head| SignedCheckpoint::parse(&head.checkpoint).ok());
        heads.extend(note.map(|note| (note.checkpoint().log.clone(), note)));
    })
    .await?;
    Ok(heads)
}

/// What was read for evidence, beside the records.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The newest checkpoint of every log.
    pub heads: BTreeMap<LogId, SignedCheckpoint>,
    /// The leaves of every log.
    pub leaves: BTreeMap<LogId, Leaves>,
    /// The manifests of the parts that were put away, as they stand in the archive.
    pub manifests: BTreeMap<PartId, Vec<u8>>,
    /// How many messages retention has removed.
    pub removed: u64,
}

/// Every record of every part, those in the archive first, and heads that cover those that matter, if they come to do so in
/// time.
///
/// # Errors
/// If a stream or the archive cannot be read, parts were put away and no archive is given, or what `take` says: it is
/// handed every message once and returns whether the record is one that matters.
pub async fn records(
    operator: &Operator,
    archive: Option<&Store>,
    mut take: impl FnMut(&StoredMessage, &Recorded) -> Result<bool>,
) -> Result<Gathered> {
    let control = operator.control().await?;
    let mut gathered = Gathered::default();
    let matter: RefCell<BTreeMap<LogId, u64>> = RefCell::default();
    let mut each = |message: &StoredMessage, leaves: &mut BTreeMap<LogId, Leaves>| {
        let recorded = Recorded::open(message.sequence, &message.payload, &control);
        let matters = take(message, &recorded)?;
        // What is not its recorder's word is no leaf of its log.
        if let (Some(record), None) = (&recorded.record, &recorded.fault) {
            let log = LogId::of(operator.tenant(), &record.id);
            leaves.entry(log.clone()).or_default().take(record.id.seq, &message.payload);
            if matters {
                let mut matter = matter.borrow_mut();
                let end = matter.entry(log).or_default();
                *end = (*end).max(record.id.seq + 1);
            }
        }
        anyhow::Ok(())
    };
    let away: Vec<&PartId> = control.parts().archived().keys().collect();
    match archive {
        None if !away.is_empty() => bail!(
            "{} of the audit stream {} put away; say where with `--archive <folder or s3://bucket/prefix>`",
            away.iter().map(|part| part.as_str()).collect::<Vec<_>>().join(", "),
            if away.len() == 1 { "was" } else { "were" }
        ),
        None => {}
        Some(store) => {
            for (part, archived) in control.parts().archived() {
                let part = open(store, operator.tenant(), part, Some(&archived.manifest)).await?;
                read_archived(store, &part, &mut gathered, &mut each).await?;
            }
        }
    }
    let mut read: BTreeMap<PartId, u64> = BTreeMap::new();
    let mut parts: Vec<PartId> = control.parts().live().cloned().collect();
    // Nothing comes behind what was put away; if something did, and the stream is still there, it is evidence too.
    for (part, archived) in control.parts().archived() {
        let stream = part_stream(operator.tenant(), part);
        if operator
            .bus()
            .stream_facts(&stream)
            .await?
            .is_some_and(|facts| facts.last_sequence > archived.last)
        {
            read.insert(part.clone(), archived.last + 1);
            parts.push(part.clone());
        }
    }
    for look in 0.. {
        gathered.heads = heads(operator).await?;
        for part in &parts {
            let next = read.entry(part.clone()).or_insert(1);
            let tail = operator.audit_tail(part, None, *next).await?;
            tail.try_drain::<anyhow::Error>(|message| {
                *next = message.sequence + 1;
                each(&message, &mut gathered.leaves)
            })
            .await?;
        }
        let covered = |log: &LogId| gathered.heads.get(log).map_or(0, |head| head.checkpoint().size);
        let is_covered = matter.borrow().iter().all(|(log, end)| covered(log) >= *end);
        if is_covered || look == LOOKS_MAX {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(gathered)
}

/// Reads what a filter names of a class in every part that was put away; nothing without an archive.
///
/// # Errors
/// If the archive cannot be read, or holds something else than the control stream says; or what `take` says.
pub async fn away(
    operator: &Operator,
    archive: Option<&Store>,
    class: Class,
    filter: impl Fn(&TenantId, &PartId) -> String,
    mut take: impl FnMut(&PartId, Message) -> Result<()>,
) -> Result<()> {
    let Some(store) = archive else { return Ok(()) };
    for (part, archived) in operator.control().await?.parts().archived() {
        let filter = filter(operator.tenant(), part);
        let archived = open(store, operator.tenant(), part, Some(&archived.manifest)).await?;
        let mut messages = archived.messages(store, &[class], Some(&filter));
        while let Some(item) = messages.next().await? {
            if let Item::Message(message) = item {
                take(part, message)?;
            }
        }
    }
    Ok(())
}

/// What approvers were asked and said, requests, answers and acts: part after part, those in the archive first.
///
/// # Errors
/// If a stream or the archive cannot be read, or what `take` says.
pub async fn approvals(
    operator: &Operator,
    archive: Option<&Store>,
    mut take: impl FnMut(&PartId, StoredMessage) -> Result<()>,
) -> Result<()> {
    away(operator, archive, Class::Content, filter::approvals, |part, message| take(part, message.into()))
        .await?;
    for part in operator.control().await?.parts().live() {
        let tail = operator.approval_tail(part, 1).await?;
        tail.try_drain(|message| take(part, message)).await?;
    }
    Ok(())
}

/// The records of a part that was put away, and the hashes of those that retention has removed.
async fn read_archived(
    store: &Store,
    part: &Archived,
    gathered: &mut Gathered,
    each: &mut impl FnMut(&StoredMessage, &mut BTreeMap<LogId, Leaves>) -> Result<()>,
) -> Result<()> {
    let mut messages = part.messages(store, &[Class::Records], None);
    while let Some(item) = messages.next().await? {
        match item {
            Item::Message(message) => each(&message.into(), &mut gathered.leaves)?,
            Item::Deleted(range) => gathered.removed += range.segment.messages.get(),
        }
    }
    for run in &part.manifest.runs {
        let leaves = gathered.leaves.entry(run.log.clone()).or_default();
        for (position, hash) in part.leaves(store, run).await? {
            leaves.put(position, hash);
        }
    }
    gathered.manifests.insert(part.manifest.part.clone(), part.manifest_bytes(store).await?);
    Ok(())
}
