//! Writing a part into an archive: segments, leaf hashes, and the manifest last.
//!
//! Before the manifest is there, nothing counts: a run that was killed leaves files the next one finds the same, or
//! puts right. Everything is read back from the store and compared before the manifest is written. One run at a time
//! is meant to write a part; a second one finds its own bytes, or stops.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    pin::pin,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{Stream, TryStreamExt as _, stream};
use writ_bus::Tail;
use writ_common::{
    codec::decode,
    control::ControlState,
    digest::Digest,
    ids::{PartId, TenantId},
    record::{Record, RecordBody},
    signed::Signed,
    time::Timestamp,
    tlog::{LogId, leaf_hash},
    visible::visible,
};

use super::{
    folder,
    manifest::{ArchivedRun, ArchivedStream, Class, FORMAT, MANIFEST, Manifest, Segment, Verified},
    read::{Archived, Item},
    segment::{Added, Message, SegmentLimits, SegmentWriter},
    store::{Store, Taken},
};
use crate::operator::Recorded;

/// What has to be known of a part besides its messages.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// The tenant.
    pub tenant: TenantId,
    /// The part.
    pub part: PartId,
    /// When its stream was created.
    pub created: Timestamp,
    /// The last sequence its stream gave out.
    pub last: u64,
    /// When it was known that nothing comes any more.
    pub sealed_at: Timestamp,
    /// The newest signed checkpoint of every log.
    pub checkpoints: BTreeMap<LogId, String>,
    /// What a verification found.
    pub verified: Verified,
}

/// A part that is in the archive.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes, for the control stream.
    pub digest: Digest,
    /// Whether an earlier run had finished it, with the same messages.
    pub was_there: bool,
}

/// A record as a leaf of its run's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Whose log.
    pub log: LogId,
    /// At which position.
    pub position: u64,
    /// The leaf's hash.
    pub hash: Digest,
    /// The record's own digest.
    pub record: Digest,
    /// The record it is the void of, if it is one.
    pub voids: Option<Digest>,
}

impl Leaf {
    /// The leaf a message of the audit stream is; nothing if it is none, or not its recorder's word.
    #[must_use]
    pub fn of(message: &Message, control: &ControlState) -> Option<Self> {
        let opened = Recorded::open(message.sequence, &message.payload, control);
        let (Some(record), None) = (opened.record, opened.fault) else { return None };
        let signed: Signed<Record> = decode(&message.payload).ok()?;
        Some(Self {
            log: LogId::of(&record.tenant, &record.id),
            position: record.id.seq,
            hash: leaf_hash(&message.payload),
            record: signed.digest(),
            voids: match record.body {
                RecordBody::Void(void) => Some(void.prepared),
                RecordBody::Outcome(_) | RecordBody::Verdict(_) => None,
            },
        })
    }
}

/// The leaves of the runs in a part. Where several records claim a position, the rules are those of
/// `deploy/evidence.md`.
#[derive(Default)]
struct Leaves(BTreeMap<LogId, BTreeMap<u64, Kept>>);

struct Kept {
    hash: Digest,
    record: Digest,
    voids: Option<Digest>,
}

impl Leaves {
    /// Takes the leaf a message is, if it is one.
    fn take_from(&mut self, class: Class, message: &Message, leaf: impl Fn(&Message) -> Option<Leaf>) {
        if class == Class::Records
            && let Some(leaf) = leaf(message)
        {
            self.take(leaf);
        }
    }

    /// Of each run the ranges of its positions, and the bytes of its file.
    fn runs(&self) -> impl Iterator<Item = (&LogId, Vec<(u64, u64)>, Vec<u8>)> {
        self.0.iter().map(|(log, leaves)| {
            let bytes = leaves.values().flat_map(|kept| *kept.hash.as_bytes()).collect();
            (log, ranges(leaves.keys().copied()), bytes)
        })
    }

    fn take(&mut self, leaf: Leaf) {
        let Leaf { log, position, hash, record, voids } = leaf;
        let next = Kept { hash, record, voids };
        match self.0.entry(log).or_default().entry(position) {
            Entry::Vacant(vacant) => {
                vacant.insert(next);
            }
            Entry::Occupied(mut kept) => {
                let before = kept.get();
                let is_void_of_it = next.voids == Some(before.record);
                let is_later_void = next.voids.is_some() && next.voids == before.voids;
                // Anything else is a fork, of which the first in the stream counts.
                if is_void_of_it || is_later_void {
                    kept.insert(next);
                }
            }
        }
    }
}

/// Writes a part, whose messages come in the order of the stream.
///
/// If its manifest is there already, nothing is written: the messages are compared with the archive's.
///
/// # Errors
/// A message that is none of this part's or out of order; an archive with other messages; a store that cannot be
/// written, or does not give back what it was given.
pub async fn write_part(
    store: &Store,
    sealed: &Sealed,
    limits: &SegmentLimits,
    messages: impl Stream<Item = Result<Message>>,
    leaf: impl Fn(&Message) -> Option<Leaf>,
) -> Result<Written> {
    let archived = Archived::open(store, &sealed.tenant, &sealed.part, None).await?;
    let mut messages = pin!(in_order(sealed, messages));
    if let Some(archived) = archived {
        let leaves = compare(store, &archived, messages, leaf).await?;
        check_said(store, sealed, &archived, &leaves)?;
        return Ok(Written { digest: archived.digest, manifest: archived.manifest, was_there: true });
    }
    let mut writer = Writer::new(store, sealed, limits);
    let mut leaves = Leaves::default();
    while let Some((class, message)) = messages.try_next().await? {
        leaves.take_from(class, &message, &leaf);
        writer.take(class, &message).await?;
    }
    writer.finish(leaves).await
}

/// The messages with their classes, as long as they are what a stream can hold.
fn in_order<'a>(
    sealed: &'a Sealed,
    messages: impl Stream<Item = Result<Message>> + 'a,
) -> impl Stream<Item = Result<(Class, Message)>> + 'a {
    let mut before = 0;
    messages.and_then(move |message| {
        let Message { sequence, subject, .. } = &message;
        let class = Class::of(subject, &sealed.tenant, &sealed.part);
        let checked = if *sequence <= before || *sequence > sealed.last {
            let last = sealed.last;
            Err(anyhow::anyhow!(
                "message {sequence} comes behind {before}, and the last of the stream is {last}"
            ))
        } else {
            class.with_context(|| {
                let (tenant, part) = (&sealed.tenant, &sealed.part);
                format!(
                    "message {sequence} is on `{}`: none of part {part} of tenant {tenant}",
                    visible(subject)
                )
            })
        };
        before = *sequence;
        std::future::ready(checked.map(|class| (class, message)))
    })
}

/// The messages that wait in a tail, as an archive keeps them. For a whole part the tail is one of its stream from 1 on,
/// with the filter `writ.v1.<tenant>.>`.
pub fn waiting(tail: Tail) -> impl Stream<Item = Result<Message>> {
    let pending = tail.pending;
    stream::try_unfold((tail, pending), async |(mut tail, pending)| {
        if pending == 0 {
            return Ok(None);
        }
        let message = tail.next().await?;
        let pending = message.pending;
        Ok(Some((Message::from(message), (tail, pending))))
    })
}

/// What a manifest says of a part that is there already is what the stream says: whoever can write to the archive could
/// have put it there, and its digest is about to be signed.
fn check_said(store: &Store, sealed: &Sealed, archived: &Archived, leaves: &Leaves) -> Result<()> {
    let manifest = &archived.manifest;
    let runs = leaves.runs().map(|(log, positions, bytes)| (log, positions, Digest::plain(&bytes)));
    let said = manifest.runs.iter().map(|run| (&run.log, run.positions.clone(), run.leaves));
    let of_stream = (manifest.stream.created, manifest.stream.last);
    ensure!(
        runs.eq(said) && of_stream == (sealed.created, sealed.last),
        "{}: manifest.json says something else of the part's records than its stream; remove the folder, find out who put it \
         there, and archive again",
        store.name(&archived.folder())
    );
    Ok(())
}

/// Holds the messages of a stream to those of an archive, and returns their leaves.
async fn compare(
    store: &Store,
    archived: &Archived,
    mut messages: std::pin::Pin<&mut impl Stream<Item = Result<(Class, Message)>>>,
    leaf: impl Fn(&Message) -> Option<Leaf>,
) -> Result<Leaves> {
    let mut leaves = Leaves::default();
    let place = store.name(&archived.folder());
    let mut kept = archived.messages(store, &Class::ALL, None);
    loop {
        let given = messages.try_next().await?.map(|(class, message)| {
            leaves.take_from(class, &message, &leaf);
            message
        });
        let there = match kept.next().await? {
            Some(Item::Deleted(range)) => bail!(
                "{place} holds this part already, and retention deleted {} of it ({}): there is nothing to compare with",
                range.segment.name,
                range.rule
            ),
            Some(Item::Message(message)) => Some(message),
            None => None,
        };
        if given != there {
            let of = |message: Option<Message>| {
                message.map_or("nothing".to_owned(), |message| format!("message {}", message.sequence))
            };
            bail!(
                "{place} holds another part of this name: it has {} where the stream has {}; archive to another place",
                of(there),
                of(given)
            );
        }
        if given.is_none() {
            return Ok(leaves);
        }
    }
}

struct Writer<'a> {
    store: &'a Store,
    sealed: &'a Sealed,
    limits: &'a SegmentLimits,
    folder: String,
    open: BTreeMap<Class, SegmentWriter>,
    segments: Vec<Segment>,
    /// The files that belong to the part; what else lies there is of a run that was killed.
    files: BTreeSet<String>,
    messages: u64,
}

impl<'a> Writer<'a> {
    fn new(store: &'a Store, sealed: &'a Sealed, limits: &'a SegmentLimits) -> Self {
        Self {
            store,
            sealed,
            limits,
            folder: folder(&sealed.tenant, &sealed.part),
            open: Class::ALL.into_iter().map(|class| (class, SegmentWriter::new(class, 0))).collect(),
            segments: Vec::new(),
            files: BTreeSet::new(),
            messages: 0,
        }
    }

    async fn take(&mut self, class: Class, message: &Message) -> Result<()> {
        self.messages += 1;
        let writer = self.open.get_mut(&class).context("a class without a segment")?;
        if writer.add(message, self.limits)? == Added::Yes {
            return Ok(());
        }
        let mut next = SegmentWriter::new(class, writer.number().saturating_add(1));
        // The first message of a segment always fits.
        next.add(message, self.limits)?;
        let full = std::mem::replace(writer, next);
        self.seal(full).await
    }

    async fn seal(&mut self, writer: SegmentWriter) -> Result<()> {
        let Some((segment, bytes)) = writer.seal()? else { return Ok(()) };
        self.put(&segment.name, &bytes).await?;
        self.segments.push(segment);
        Ok(())
    }

    /// Puts a file, in the place of one that an earlier run left there.
    async fn put(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let key = format!("{}/{name}", self.folder);
        self.files.insert(key.clone());
        match self.store.put(&key, bytes).await {
            Err(error) if error.is::<Taken>() => {
                // Unless somebody finished the part meanwhile: then it is theirs.
                let manifest = Manifest::read(self.store, &self.sealed.tenant, &self.sealed.part).await?;
                ensure!(manifest.is_none(), "{error:#}; somebody else has just archived this part");
                self.store.delete(&key).await?;
                self.store.put(&key, bytes).await
            }
            done => done,
        }
    }

    async fn finish(mut self, leaves: Leaves) -> Result<Written> {
        for (_, writer) in std::mem::take(&mut self.open) {
            self.seal(writer).await?;
        }
        // By class and number: within a class they were sealed in order.
        self.segments.sort_by_key(|segment| segment.class);
        let mut runs = Vec::new();
        for (log, positions, bytes) in leaves.runs() {
            let run = ArchivedRun {
                positions,
                leaves: Digest::plain(&bytes),
                checkpoint: self.sealed.checkpoints.get(log).cloned(),
                log: log.clone(),
            };
            self.put(&run.leaves_file(), &bytes).await?;
            runs.push(run);
        }
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            tenant: self.sealed.tenant.clone(),
            part: self.sealed.part.clone(),
            stream: ArchivedStream {
                created: self.sealed.created,
                messages: self.messages,
                last: self.sealed.last,
            },
            sealed_at: self.sealed.sealed_at,
            segments: std::mem::take(&mut self.segments),
            runs,
            verified: self.sealed.verified.clone(),
        };
        for listed in self.store.list(Some(&self.folder)).await? {
            if !self.files.contains(&listed.key) {
                self.store.delete(&listed.key).await?;
            }
        }
        let key = format!("{}/{MANIFEST}", self.folder);
        let bytes = manifest.to_bytes()?;
        let manifest = Manifest::parse(&self.store.name(&key), &bytes)?;
        let archived = Archived::of(manifest, Digest::plain(&bytes));
        if let Some(damage) = archived.check(self.store).await?.into_iter().next() {
            bail!("the store does not give back what it was given: {damage}");
        }
        self.store.put(&key, &bytes).await?;
        Ok(Written { digest: archived.digest, manifest: archived.manifest, was_there: false })
    }
}

/// Rising positions as ranges with both ends.
fn ranges(positions: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for position in positions {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(position) => *last = position,
            _ => ranges.push((position, position)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use writ_common::{ids::BootId, record::Origin};

    use super::*;

    #[test]
    fn positions_become_ranges() {
        assert_eq!(ranges([].into_iter()), []);
        assert_eq!(ranges([0, 1, 2, 5, 7, 8].into_iter()), [(0, 2), (5, 5), (7, 8)]);
    }

    #[test]
    fn of_several_records_at_a_position_the_rules_say_which_is_the_leaf() {
        let digest = |text: &str| Digest::plain(text.as_bytes());
        let log = || LogId {
            tenant: TenantId::parse("acme").unwrap(),
            origin: Origin::Node("node-1".parse().unwrap()),
            boot: BootId::parse("b-1").unwrap(),
        };
        let leaf = |name: &str, voids: Option<&str>| Leaf {
            log: log(),
            position: 3,
            hash: digest(&format!("leaf of {name}")),
            record: digest(name),
            voids: voids.map(digest),
        };
        let kept = |leaves: &[Leaf]| {
            let mut all = Leaves::default();
            leaves.iter().cloned().for_each(|leaf| all.take(leaf));
            all.0[&log()][&3].hash
        };
        let of = |name: &str| digest(&format!("leaf of {name}"));
        let (allow, void, again) =
            (leaf("allow", None), leaf("void", Some("allow")), leaf("again", Some("allow")));
        // A record and its void, in either order: the void.
        assert_eq!(kept(&[allow.clone(), void.clone()]), of("void"));
        assert_eq!(kept(&[void.clone(), allow.clone()]), of("void"));
        // Several voids of one record: the last.
        assert_eq!(kept(&[allow.clone(), void.clone(), again.clone()]), of("again"));
        assert_eq!(kept(&[void, allow.clone(), again.clone()]), of("again"));
        // A fork: the first.
        assert_eq!(kept(&[allow.clone(), leaf("other", None)]), of("allow"));
        assert_eq!(kept(&[allow, leaf("other", Some("third"))]), of("allow"));
    }
}
