//! Reading an archived part: its messages in the order of the stream, its leaf hashes, and whether all of it is still
//! what was written.
//!
//! What retention deleted is told as such. What is gone or changed otherwise is [`Damage`], and never a shorter answer.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Result, bail};
use writ_common::{
    digest::Digest,
    ids::{PartId, TenantId},
    visible::visible,
};

use super::{
    Damage, folder,
    manifest::{ArchivedRun, Class, DELETED, Deletions, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Segment},
    retain::is_due,
    segment::{Message, SegmentReader},
    store::{Read, Store},
};

/// A part that is in an archive.
#[derive(Clone, Debug)]
pub struct Archived {
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes.
    pub digest: Digest,
    /// What retention deleted of it.
    pub deletions: Deletions,
}

/// What comes next in a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Messages that retention deleted; they would have begun here.
    Deleted(DeletedRange),
    /// A message.
    Message(Message),
}

/// Messages that retention deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedRange {
    /// What they were: class, count, sequences, times.
    pub segment: Segment,
    /// When they were deleted, RFC 3339.
    pub at: String,
    /// By which rule.
    pub rule: String,
}

impl Archived {
    /// A part as its manifest says, of which nothing is deleted.
    pub(super) fn of(manifest: Manifest, digest: Digest) -> Self {
        Self { manifest, digest, deletions: Deletions::default() }
    }

    /// Opens a part; nothing if the archive has none of that name. `digest` is what the control stream says of its
    /// manifest, where that is known.
    ///
    /// # Errors
    /// [`Damage`] of the manifest, or of the list of what was deleted; or the store cannot be read.
    pub async fn open(
        store: &Store,
        tenant: &TenantId,
        part: &PartId,
        digest: Option<&Digest>,
    ) -> Result<Option<Self>> {
        let Some((manifest, is)) = Manifest::read(store, tenant, part).await? else { return Ok(None) };
        if let Some(digest) = digest
            && *digest != is
        {
            let name = store.name(&format!("{}/{MANIFEST}", folder(tenant, part)));
            let what = format!("its SHA-256 is {is}, and the control stream says {digest}");
            return Err(Damage::of_manifest(name, what).into());
        }
        let deletions = Deletions::read(store, &manifest).await?;
        Ok(Some(Self { manifest, digest: is, deletions }))
    }

    /// Every part in an archive that has a manifest, and every folder of one that has none: it was never finished.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(store: &Store) -> Result<(Vec<(TenantId, PartId)>, Vec<String>)> {
        let (mut parts, mut folders) = (BTreeSet::new(), BTreeSet::new());
        for listed in store.list(None).await? {
            let names: Vec<&str> = listed.key.split('/').collect();
            let [tenant, part, rest @ ..] = names.as_slice() else { continue };
            let (Ok(tenant), Ok(part)) = (TenantId::parse(*tenant), PartId::parse(*part)) else { continue };
            if rest == [MANIFEST] {
                parts.insert((tenant, part));
            } else {
                folders.insert((tenant, part));
            }
        }
        let unfinished = folders.difference(&parts).map(|(tenant, part)| folder(tenant, part)).collect();
        Ok((parts.into_iter().collect(), unfinished))
    }

    /// The bytes of its manifest, as they stand in the store.
    ///
    /// # Errors
    /// [`Damage`] if they are not what was read before; or the store cannot be read.
    pub async fn manifest_bytes(&self, store: &Store) -> Result<Vec<u8>> {
        let key = format!("{}/{MANIFEST}", self.folder());
        let bytes = store.get(&key, MANIFEST_BYTES_MAX).await?.unwrap_or_default();
        if Digest::plain(&bytes) != self.digest {
            return Err(Damage::of_manifest(store.name(&key), "was changed while it was read").into());
        }
        Ok(bytes)
    }

    /// Its folder in the store.
    #[must_use]
    pub fn folder(&self) -> String {
        folder(&self.manifest.tenant, &self.manifest.part)
    }

    /// The messages of some classes, and of those the ones whose subject fits a filter of NATS (`*` is one token, `>`
    /// at the end is one or more), in the order of the stream. One segment of each class is in memory at a time.
    #[must_use]
    pub fn messages<'a>(
        &'a self,
        store: &'a Store,
        classes: &[Class],
        filter: Option<&'a str>,
    ) -> Messages<'a> {
        let classes: BTreeSet<Class> = classes.iter().copied().collect();
        let lanes = classes.into_iter().map(|class| Lane {
            left: self.manifest.of_class(class).collect(),
            open: None,
            next: None,
        });
        Messages { archived: self, store, filter, lanes: lanes.collect() }
    }

    /// The leaf hashes of a run, each with its position.
    ///
    /// # Errors
    /// [`Damage`]; or the store cannot be read.
    pub async fn leaves(&self, store: &Store, run: &ArchivedRun) -> Result<Vec<(u64, Digest)>> {
        let key = format!("{}/{}", self.folder(), run.leaves_file());
        let name = store.name(&key);
        let listed = run.count().saturating_mul(32);
        let bytes = match store.read(&key, listed).await? {
            Read::Whole(bytes) => bytes,
            Read::Nothing => return Err(Damage::of(name, "is not there").into()),
            Read::Larger => return Err(Damage::of(name, format!("has more than {listed} bytes")).into()),
        };
        let digest = Digest::plain(&bytes);
        if digest != run.leaves {
            let what =
                format!("is not the file that was written: its SHA-256 is {digest}, not {}", run.leaves);
            return Err(Damage::of(name, what).into());
        }
        let (hashes, rest) = bytes.as_chunks::<32>();
        let positions = run.positions.iter().flat_map(|(first, last)| *first..=*last);
        if !rest.is_empty() || u64::try_from(hashes.len()) != Ok(run.count()) {
            let what = format!("has {} bytes instead of {listed}", bytes.len());
            return Err(Damage::of(name, what).into());
        }
        Ok(positions.zip(hashes.iter().map(|hash| Digest::from_bytes(*hash))).collect())
    }

    /// Reads everything and names what is not as it was written.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn check(&self, store: &Store) -> Result<Vec<Damage>> {
        let mut damages = Vec::new();
        let mut take = |error: anyhow::Error| match error.downcast::<Damage>() {
            Ok(damage) => {
                damages.push(damage);
                Ok(())
            }
            Err(error) => Err(error),
        };
        for segment in &self.manifest.segments {
            if let Some(deletion) = self.deletions.of(segment) {
                if !is_due(segment, deletion) {
                    let what = format!(
                        "says that {} was deleted at {} by `{}`, which did not allow it yet",
                        segment.name,
                        deletion.at,
                        visible(&deletion.rule)
                    );
                    take(Damage::of(store.name(&format!("{}/{DELETED}", self.folder())), what).into())?;
                }
                continue;
            }
            if let Err(error) = self.check_segment(store, segment).await {
                take(error)?;
            }
        }
        for run in &self.manifest.runs {
            if let Err(error) = self.leaves(store, run).await {
                take(error)?;
            }
        }
        let names = self.manifest.segments.iter().map(|segment| segment.name.clone());
        let leaves = self.manifest.runs.iter().map(ArchivedRun::leaves_file);
        let own = [MANIFEST.to_owned(), DELETED.to_owned()];
        let known: BTreeSet<String> =
            names.chain(leaves).chain(own).map(|name| format!("{}/{name}", self.folder())).collect();
        for listed in store.list(Some(&self.folder())).await? {
            if !known.contains(&listed.key) {
                damages.push(Damage {
                    file: store.name(&listed.key),
                    what: "is not listed in manifest.json".to_owned(),
                    remedy: "it is none of this archive's files; find out whose it is",
                });
            }
        }
        Ok(damages)
    }

    async fn check_segment(&self, store: &Store, segment: &Segment) -> Result<()> {
        let mut reader = self.segment(store, segment).await?;
        while reader.next()?.is_some() {}
        Ok(())
    }

    /// Opens a segment, whose file is read and checked.
    ///
    /// # Errors
    /// [`Damage`]; or the store cannot be read.
    pub async fn segment(&self, store: &Store, segment: &Segment) -> Result<SegmentReader> {
        let key = format!("{}/{}", self.folder(), segment.name);
        let name = store.name(&key);
        let bytes = match store.read(&key, segment.bytes_max()).await? {
            Read::Whole(bytes) => bytes,
            Read::Nothing => {
                return Err(Damage::of(name, "is not there, and was not deleted by retention").into());
            }
            Read::Larger => {
                return Err(
                    Damage::of(name, format!("has more than the {} bytes it had", segment.bytes)).into()
                );
            }
        };
        Ok(SegmentReader::open(name, &self.manifest, segment.clone(), bytes)?)
    }
}

/// The messages of an archived part; see [`Archived::messages`].
pub struct Messages<'a> {
    archived: &'a Archived,
    store: &'a Store,
    filter: Option<&'a str>,
    lanes: Vec<Lane<'a>>,
}

/// The segments of one class.
struct Lane<'a> {
    left: VecDeque<&'a Segment>,
    open: Option<SegmentReader>,
    next: Option<(u64, Item)>,
}

impl Messages<'_> {
    /// The next message, or what was deleted in its place; nothing at the end.
    ///
    /// # Errors
    /// [`Damage`]; or the store cannot be read.
    pub async fn next(&mut self) -> Result<Option<Item>> {
        loop {
            for lane in &mut self.lanes {
                if lane.next.is_none() {
                    lane.next = lane.advance(self.archived, self.store).await?;
                }
            }
            let waiting = self.lanes.iter_mut().filter(|lane| lane.next.is_some());
            let first = waiting.min_by_key(|lane| lane.next.as_ref().map(|(sequence, _)| *sequence));
            match first.and_then(|lane| lane.next.take()) {
                Some((_, Item::Message(message))) if !self.wants(&message.subject) => {}
                Some((_, item)) => return Ok(Some(item)),
                None => return Ok(None),
            }
        }
    }

    fn wants(&self, subject: &str) -> bool {
        self.filter.is_none_or(|filter| fits(filter, subject))
    }
}

impl Lane<'_> {
    async fn advance(&mut self, archived: &Archived, store: &Store) -> Result<Option<(u64, Item)>> {
        loop {
            if let Some(reader) = &mut self.open {
                if let Some(message) = reader.next()? {
                    return Ok(Some((message.sequence, Item::Message(message))));
                }
                self.open = None;
            }
            let Some(segment) = self.left.pop_front() else { return Ok(None) };
            if let Some(deletion) = archived.deletions.of(segment) {
                let range = DeletedRange {
                    segment: segment.clone(),
                    at: deletion.at.to_string(),
                    rule: deletion.rule.clone(),
                };
                return Ok(Some((segment.first, Item::Deleted(range))));
            }
            self.open = Some(archived.segment(store, segment).await?);
        }
    }
}

/// Whether a subject fits a filter, as NATS means it.
fn fits(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Opens a part that has to be there.
///
/// # Errors
/// If it is not; or as [`Archived::open`].
pub async fn open(
    store: &Store,
    tenant: &TenantId,
    part: &PartId,
    digest: Option<&Digest>,
) -> Result<Archived> {
    let Some(archived) = Archived::open(store, tenant, part, digest).await? else {
        let name = store.name(&folder(tenant, part));
        bail!("{name} holds no archived part: there is no {MANIFEST}");
    };
    Ok(archived)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_mean_what_they_mean_to_nats() {
        let subject = "writ.v1.acme.audit.p0.deny.t-1.node-1";
        for filter in [subject, "writ.v1.acme.audit.p0.>", "writ.v1.acme.audit.p0.*.t-1.*", ">"] {
            assert!(fits(filter, subject), "{filter}");
        }
        for filter in
            ["writ.v1.acme.audit.p0", "writ.v1.acme.audit.p0.*.t-1.*.>", "writ.v1.acme.audit.p0.*", ""]
        {
            assert!(!fits(filter, subject), "{filter}");
        }
    }
}
