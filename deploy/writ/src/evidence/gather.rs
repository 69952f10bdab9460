//! Reading the streams for evidence: heads first, then records until the heads cover what is asked for.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use writ_bus::StoredMessage;
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::PartId,
    subjects::{filter, heads_stream},
    tlog::{Head, LogId, SignedCheckpoint, Tree, leaf_hash},
};

use crate::operator::{Operator, Recorded};

/// How often, and how many times, the heads are read again for records that were just made.
const LOOK_AGAIN: Duration = Duration::from_millis(400);
const LOOKS_MAX: usize = 10;

/// The hashes of a run's leaves as the stream has them.
#[derive(Clone, Debug, Default)]
pub struct Leaves(BTreeMap<u64, Vec<Digest>>);

impl Leaves {
    /// Takes a record's envelope.
    pub fn take(&mut self, position: u64, envelope: &[u8]) {
        let leaf = leaf_hash(envelope);
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

/// Every record, and heads that cover those that matter, if they come to do so in time.
///
/// # Errors
/// If a stream cannot be read, or what `take` says: it is handed every message once and returns whether the record
/// is one that matters.
pub async fn records(
    operator: &Operator,
    mut take: impl FnMut(&StoredMessage, &Recorded) -> Result<bool>,
) -> Result<(BTreeMap<LogId, SignedCheckpoint>, BTreeMap<LogId, Leaves>)> {
    let control = operator.control().await?;
    let mut leaves: BTreeMap<LogId, Leaves> = BTreeMap::new();
    let mut matter: BTreeMap<LogId, u64> = BTreeMap::new();
    let mut read: BTreeMap<PartId, u64> = BTreeMap::new();
    for look in 0.. {
        let heads = heads(operator).await?;
        for part in control.parts().live() {
            let next = read.entry(part.clone()).or_insert(1);
            let tail = operator.audit_tail(part, None, *next).await?;
            tail.try_drain::<anyhow::Error>(|message| {
                *next = message.sequence + 1;
                let recorded = Recorded::open(message.sequence, &message.payload, &control);
                let matters = take(&message, &recorded)?;
                // What is not its recorder's word is no leaf of its log.
                if let (Some(record), None) = (&recorded.record, &recorded.fault) {
                    let log = LogId::of(operator.tenant(), &record.id);
                    leaves.entry(log.clone()).or_default().take(record.id.seq, &message.payload);
                    if matters {
                        let end = matter.entry(log).or_default();
                        *end = (*end).max(record.id.seq + 1);
                    }
                }
                Ok(())
            })
            .await?;
        }
        let covered = |log: &LogId| heads.get(log).map_or(0, |head| head.checkpoint().size);
        let is_covered = matter.iter().all(|(log, end)| covered(log) >= *end);
        if is_covered || look == LOOKS_MAX {
            return Ok((heads, leaves));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok((BTreeMap::new(), leaves))
}
