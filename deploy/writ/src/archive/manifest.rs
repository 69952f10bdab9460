//! What an archived part consists of (`manifest.json`), and what retention deleted of it (`deleted.json`).
//!
//! The manifest is written last and never changed: its SHA-256 stands in the control stream. `deleted.json` is nobody's
//! signed word: it tells what was meant to go from what is lost, and proves nothing.

use std::{fmt, num::NonZeroU64};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use writ_common::{
    digest::Digest,
    evidence::{ARCHIVE_FORMAT, Report, Severity},
    ids::{PartId, TenantId},
    time::Timestamp,
    tlog::LogId,
    visible::visible,
};

use super::{Damage, folder, store::Store};

/// The format's name.
pub const FORMAT: &str = ARCHIVE_FORMAT;
/// The format's name of the list of what was deleted.
pub const DELETED_FORMAT: &str = "writ-archive-deleted/1";
/// The manifest's file.
pub const MANIFEST: &str = "manifest.json";
/// The file with what was deleted.
pub const DELETED: &str = "deleted.json";
/// The folder of the leaf hashes.
pub const LEAVES: &str = "leaves";
/// Most bytes of a manifest, and of the list of what was deleted.
pub(super) const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Most bytes of a segment's file: gzip makes what it cannot compress a little larger.
const SEGMENT_BYTES_MAX: u64 = 160 * 1024 * 1024;

/// What kind of message a segment holds; each has a retention of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// What people wrote and saw: instructions, requests for approval, answers.
    Content,
    /// The records.
    Records,
    /// Labels and claims.
    State,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Content, Self::Records, Self::State];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Records => "records",
            Self::State => "state",
        }
    }

    /// The class of a message by its subject; nothing for one that is none of this part's.
    #[must_use]
    pub fn of(subject: &str, tenant: &TenantId, part: &PartId) -> Option<Self> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["writ", "v1", of, plane, in_part, rest @ ..] = tokens.as_slice() else { return None };
        if *of != tenant.as_str() || *in_part != part.as_str() {
            return None;
        }
        // By position and not by `Subject::parse`: what a later version publishes in these planes has a class too.
        match (*plane, rest) {
            ("audit", _) => Some(Self::Records),
            ("approval", _) | ("label", [_, "instruction"]) => Some(Self::Content),
            ("claim" | "label", _) => Some(Self::State),
            _ => None,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The manifest of an archived part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The part.
    pub part: PartId,
    /// The stream it was.
    pub stream: ArchivedStream,
    /// When it was known that nothing comes any more.
    #[serde(with = "rfc3339")]
    pub sealed_at: Timestamp,
    /// The segments, by class and number.
    pub segments: Vec<Segment>,
    /// The runs with records here.
    pub runs: Vec<ArchivedRun>,
    /// What a verification found before it was put away.
    pub verified: Verified,
}

/// The stream a part was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedStream {
    /// When it was created.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// How many messages it had.
    pub messages: u64,
    /// Sequence of its last message.
    pub last: u64,
}

/// A segment: some messages of one class, one JSON line each, compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// Its class.
    pub class: Class,
    /// Its file.
    pub name: String,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// How many messages.
    pub messages: NonZeroU64,
    /// Stream sequence of the first.
    pub first: u64,
    /// Stream sequence of the last.
    pub last: u64,
    /// When the earliest was stored.
    #[serde(with = "rfc3339")]
    pub from: Timestamp,
    /// When the latest was stored.
    #[serde(with = "rfc3339")]
    pub to: Timestamp,
}

/// A run with records in the part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedRun {
    /// Its log.
    #[serde(with = "writ_common::tlog::as_origin_line")]
    pub log: LogId,
    /// Its positions here, as ranges with both ends.
    pub positions: Vec<(u64, u64)>,
    /// SHA-256 of its file of leaf hashes.
    pub leaves: Digest,
    /// The newest signed checkpoint of the log then; nothing if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verified {
    /// How many faults.
    pub faults: usize,
    /// How many warnings.
    pub warnings: usize,
    /// The findings.
    pub findings: Vec<ArchivedFinding>,
}

/// A finding, as an archive keeps it. The codes are those of `deploy/evidence.md` at that time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedFinding {
    /// `fault`, `warning` or `note`.
    pub severity: String,
    /// What kind it is.
    pub code: String,
    /// Where.
    #[serde(rename = "where")]
    pub place: String,
    /// What, in words.
    pub text: String,
}

impl From<&Report> for Verified {
    fn from(report: &Report) -> Self {
        let findings = report.findings.iter().map(|finding| ArchivedFinding {
            severity: match finding.severity {
                Severity::Fault => "fault".to_owned(),
                Severity::Warning => "warning".to_owned(),
                Severity::Note => "note".to_owned(),
            },
            code: finding.code.to_string(),
            place: finding.place.clone(),
            text: finding.text.clone(),
        });
        Self { faults: report.faults, warnings: report.warnings, findings: findings.collect() }
    }
}

impl Segment {
    /// The file of a class's segment of this number.
    #[must_use]
    pub fn file(class: Class, number: u32) -> String {
        format!("{class}-{number:06}.jsonl.gz")
    }

    /// Most bytes its file may be read with.
    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes.min(SEGMENT_BYTES_MAX)
    }
}

impl ArchivedRun {
    /// How many positions it has here; as many hashes has its file.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.positions
            .iter()
            .map(|(first, last)| last.saturating_sub(*first).saturating_add(1))
            .fold(0, u64::saturating_add)
    }

    /// Whether it has this position here.
    #[must_use]
    pub fn has(&self, position: u64) -> bool {
        let at = self.positions.partition_point(|(_, last)| *last < position);
        self.positions.get(at).is_some_and(|(first, _)| *first <= position)
    }

    /// Its file of leaf hashes.
    #[must_use]
    pub fn leaves_file(&self) -> String {
        format!("{LEAVES}/{}", self.log.folder())
    }
}

impl Manifest {
    /// Its bytes as they are written; their SHA-256 is what the control stream says.
    ///
    /// # Errors
    /// If it is none that would be read again.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest; `file` is how the store names it.
    ///
    /// # Errors
    /// [`Damage`] says what in it cannot be.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, Damage> {
        let damage = |what: String| Damage::of_manifest(file, what);
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| damage(format!("is no manifest of an archive ({error})")))?;
        if manifest.format != FORMAT {
            let format = visible(&manifest.format);
            return Err(damage(format!("is of format `{format}`; this writ reads `{FORMAT}`")));
        }
        manifest.check().map_err(damage)?;
        Ok(manifest)
    }

    /// Reads the manifest of a part, and its digest; nothing if there is none.
    ///
    /// # Errors
    /// [`Damage`]; or the store cannot be read.
    pub async fn read(store: &Store, tenant: &TenantId, part: &PartId) -> Result<Option<(Self, Digest)>> {
        let key = format!("{}/{MANIFEST}", folder(tenant, part));
        let Some(bytes) = store.get(&key, MANIFEST_BYTES_MAX).await? else { return Ok(None) };
        let manifest = Self::parse(&store.name(&key), &bytes)?;
        if manifest.tenant != *tenant || manifest.part != *part {
            let (tenant, part) = (&manifest.tenant, &manifest.part);
            let what = format!("is that of part {part} of tenant {tenant}");
            return Err(Damage::of_manifest(store.name(&key), what).into());
        }
        Ok(Some((manifest, Digest::plain(&bytes))))
    }

    /// Its segments of a class, in order.
    pub fn of_class(&self, class: Class) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.class == class)
    }

    fn check(&self) -> Result<(), String> {
        let mut messages: u64 = 0;
        for class in Class::ALL {
            let mut after = 0;
            for (number, segment) in (0..).zip(self.of_class(class)) {
                let name = visible(&segment.name);
                if segment.name != Segment::file(class, number) {
                    return Err(format!("has `{name}` where {} belongs", Segment::file(class, number)));
                }
                let span = segment.last.saturating_sub(segment.first).saturating_add(1);
                let is_sane = segment.first > after
                    && segment.first <= segment.last
                    && segment.last <= self.stream.last
                    && segment.messages.get() <= span
                    && segment.from <= segment.to
                    && segment.bytes <= SEGMENT_BYTES_MAX;
                if !is_sane {
                    return Err(format!("says of {name} what cannot be (sequences, times or sizes)"));
                }
                after = segment.last;
                messages = messages.saturating_add(segment.messages.get());
            }
        }
        if messages != self.stream.messages {
            let said = self.stream.messages;
            return Err(format!("has {messages} messages in its segments and says the stream had {said}"));
        }
        let mut before: Option<&LogId> = None;
        for run in &self.runs {
            if run.log.tenant != self.tenant || before.is_some_and(|before| *before >= run.log) {
                return Err(format!("has run {} in the wrong place", run.log));
            }
            before = Some(&run.log);
            let mut next = 0;
            for (first, last) in &run.positions {
                // Ranges that touch would be one.
                if first > last || *first < next || *last == u64::MAX {
                    return Err(format!("has positions of run {} that are in no order", run.log));
                }
                next = last.saturating_add(2);
            }
            if run.positions.is_empty() {
                return Err(format!("has no position of run {}", run.log));
            }
        }
        Ok(())
    }
}

/// What retention deleted of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletions {
    /// [`DELETED_FORMAT`].
    pub format: String,
    /// Each segment, in the order of deletion.
    pub deleted: Vec<Deletion>,
}

/// A segment that retention deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// Its file.
    pub name: String,
    /// SHA-256 of that, as the manifest says.
    pub digest: Digest,
    /// When.
    #[serde(with = "rfc3339")]
    pub at: Timestamp,
    /// By which rule: `records 400d`.
    pub rule: String,
}

impl Default for Deletions {
    fn default() -> Self {
        Self { format: DELETED_FORMAT.to_owned(), deleted: Vec::new() }
    }
}

impl Deletions {
    /// Reads what was deleted of a part.
    ///
    /// # Errors
    /// [`Damage`]; or the store cannot be read.
    pub async fn read(store: &Store, manifest: &Manifest) -> Result<Self> {
        let key = format!("{}/{DELETED}", folder(&manifest.tenant, &manifest.part));
        let Some(bytes) = store.get(&key, MANIFEST_BYTES_MAX).await? else { return Ok(Self::default()) };
        let damage = |what: String| Damage {
            file: store.name(&key),
            what,
            remedy: "put it back from a copy of the archive: without it nobody knows what was meant to be deleted",
        };
        let deletions: Self =
            serde_json::from_slice(&bytes).map_err(|error| damage(format!("is no such list ({error})")))?;
        if deletions.format != DELETED_FORMAT {
            let format = visible(&deletions.format);
            return Err(damage(format!("is of format `{format}`; this writ reads `{DELETED_FORMAT}`")).into());
        }
        let is_of = |deletion: &Deletion| {
            manifest
                .segments
                .iter()
                .any(|segment| segment.name == deletion.name && segment.digest == deletion.digest)
        };
        match deletions.deleted.iter().find(|deletion| !is_of(deletion)) {
            Some(other) => {
                Err(damage(format!("lists `{}`, which the manifest does not", visible(&other.name))).into())
            }
            None => Ok(deletions),
        }
    }

    /// Writes the list.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn write(&self, store: &Store, manifest: &Manifest) -> Result<()> {
        let key = format!("{}/{DELETED}", folder(&manifest.tenant, &manifest.part));
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        store.replace(&key, &bytes).await
    }

    /// The deletion of a segment.
    #[must_use]
    pub fn of(&self, segment: &Segment) -> Option<&Deletion> {
        self.deleted.iter().find(|deletion| deletion.name == segment.name)
    }
}

/// Times as people read them.
pub(super) mod rfc3339 {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use writ_common::{time::Timestamp, visible::visible};

    pub(in super::super) fn serialize<S: Serializer>(
        at: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::read(&text).ok_or_else(|| D::Error::custom(format!("`{}` is no time", visible(&text))))
    }
}
