//! An export as the source of an index: its control stream, and its records and what approvers answered, part by part.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io::{BufRead as _, BufReader, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use sha2::{Digest as _, Sha256};
use writ_common::{
    codec::decode,
    digest::Digest,
    ids::{PartId, TenantId},
    keys::PublicKey,
    record::Record,
    signed::Signed,
    time::Timestamp,
};

use super::{
    Index, Source,
    fill::Filler,
    history::ControlHistory,
    lanes::{Lane, take_merged},
    source::{Raw, Said, answer_in},
    streams::NotRead,
};
use crate::{
    archive,
    evidence::folder::{APPROVALS, ARCHIVE, CONTROL, Line, Manifest, ManifestScope, RECORDS},
};

/// The records of an export: one pass over the file has been made.
pub struct Export {
    folder: PathBuf,
    file: PathBuf,
    records: Digest,
    /// Where the lines of each part stand.
    parts: BTreeMap<PartId, VecDeque<Stretch>>,
    /// What approvers answered, in the order of each part's stream.
    answers: BTreeMap<PartId, VecDeque<Raw>>,
}

/// Lines of one part that follow each other.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    /// Number of the first line, from 1.
    line: u64,
    /// Where it begins and the last one ends, in bytes.
    from: u64,
    to: u64,
}

/// Reads the control stream of an export.
///
/// # Errors
/// If the file cannot be read, or none of it counts under this root.
pub fn history(folder: &Path, tenant: TenantId, root: PublicKey) -> Result<ControlHistory> {
    let mut history = ControlHistory::new(tenant, root);
    let file = folder.join(CONTROL);
    each_line(&file, |number, text, _| {
        let (line, payload) = parse(&file, number, text)?;
        history.take(line.sequence, &payload);
        Ok(())
    })?;
    ensure!(
        history.state.keyset().is_some(),
        "{} holds no keyset that the root {root} signed for tenant `{}`; give the root's key and the tenant with \
         `--root` and `--tenant`",
        file.display(),
        history.state.tenant()
    );
    Ok(history)
}

/// Every line of a file that is not empty: its number from 1, its text, and where it begins and ends.
fn each_line(file: &Path, mut take: impl FnMut(u64, &str, (u64, u64)) -> Result<()>) -> Result<()> {
    let cannot = || format!("{} cannot be read", file.display());
    let mut reader = BufReader::new(File::open(file).with_context(cannot)?);
    let (mut text, mut from) = (String::new(), 0);
    for number in 1.. {
        text.clear();
        let bytes = u64::try_from(reader.read_line(&mut text).with_context(cannot)?)?;
        if bytes == 0 {
            break;
        }
        if !text.trim().is_empty() {
            take(number, &text, (from, from + bytes))?;
        }
        from += bytes;
    }
    Ok(())
}

fn parse(file: &Path, number: u64, text: &str) -> Result<(Line, Vec<u8>)> {
    Line::parse(text).map_err(|why| anyhow!("{}:{number}: no line of an export: {why}", file.display()))
}

/// The part a subject names. The rest of it may be anything: what is no record is taken as such.
fn part_of(subject: &str) -> Option<PartId> {
    PartId::parse(subject.split('.').nth(4)?).ok()
}

impl Export {
    /// Looks through the records of an export.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let file = folder.join(RECORDS);
        let mut parts: BTreeMap<PartId, VecDeque<Stretch>> = BTreeMap::new();
        let (mut hash, mut before) = (Sha256::new(), PartId::first());
        each_line(&file, |number, text, (from, to)| {
            hash.update(text.as_bytes());
            let subject: Subject = serde_json::from_str(text)
                .map_err(|why| anyhow!("{}:{number}: no line of an export: {why}", file.display()))?;
            let part = part_of(&subject.subject).unwrap_or_else(|| before.clone());
            let stretches = parts.entry(part.clone()).or_default();
            match stretches.back_mut().filter(|_| part == before) {
                Some(stretch) => stretch.to = to,
                None => stretches.push_back(Stretch { line: number, from, to }),
            }
            before = part;
            Ok(())
        })?;
        let mut answers: BTreeMap<PartId, VecDeque<Raw>> = BTreeMap::new();
        words(folder, |raw| {
            if let Some(answer) = answer_in(&raw.payload) {
                hash.update(&raw.payload);
                parts.entry(raw.part.clone()).or_default();
                answers.entry(raw.part.clone()).or_default().push_back(Raw { at: answer.at, ..raw });
            }
        })?;
        for answers in answers.values_mut() {
            answers.make_contiguous().sort_by_key(|raw| raw.sequence);
        }
        let records = Digest::from_bytes(hash.finalize().into());
        Ok(Self { folder: folder.to_owned(), file, records, parts, answers })
    }

    /// What it is, as the source of an index.
    #[must_use]
    pub fn source(&self) -> Source {
        Source::Export { records: self.records }
    }

    /// Takes in its records, as far as that was not done.
    ///
    /// # Errors
    /// If the export or the index cannot be read.
    pub async fn fill(&self, index: Index, history: &ControlHistory) -> Result<Index> {
        let mut filler = Filler::new(index)?;
        let mut lanes = Vec::new();
        for (part, stretches) in &self.parts {
            let lane = ExportLane {
                part: part.clone(),
                file: self.file.clone(),
                reader: BufReader::new(
                    File::open(&self.file)
                        .with_context(|| format!("{} cannot be read", self.file.display()))?,
                ),
                at: 0,
                stretches: stretches.clone(),
                answers: self.answers.get(part).cloned().unwrap_or_default(),
                next: filler.part(part).next,
            };
            lanes.push(Lane::of_export(part.clone(), lane));
        }
        take_merged(&mut filler, lanes, history).await?;
        Ok(filler.finish()?)
    }

    /// The parts that were put away and of which it lacks records. An export of one task lacks most of them by intent.
    ///
    /// # Errors
    /// If the export's manifests or the index cannot be read.
    pub fn not_read(&self, index: &Index, history: &ControlHistory) -> Result<Vec<NotRead>> {
        if matches!(Manifest::read(&self.folder), Ok(Manifest { scope: ManifestScope::Task(_), .. })) {
            return Ok(Vec::new());
        }
        let mut not_read = Vec::new();
        for (part, said) in history.state.parts().archived() {
            let file = self.folder.join(ARCHIVE).join(format!("{part}.json"));
            let manifest = std::fs::read(&file).ok().filter(|bytes| Digest::plain(bytes) == said.manifest);
            let Some(manifest) = manifest else {
                if !self.parts.contains_key(part) {
                    let why = "the export holds neither its records nor its manifest".to_owned();
                    not_read.push(NotRead { part: part.clone(), messages: None, why });
                }
                continue;
            };
            let manifest = archive::manifest::Manifest::parse(&file.display().to_string(), &manifest)?;
            let mut lacking = 0;
            for run in &manifest.runs {
                lacking += index.lacks(&run.log.origin, &run.log.boot, &run.positions)?;
            }
            if lacking > 0 {
                let why =
                    "the export does not hold them; ask the archive, or export with `--archive`".to_owned();
                not_read.push(NotRead { part: part.clone(), messages: Some(lacking), why });
            }
        }
        Ok(not_read)
    }
}

/// What is read of a line to find its part.
#[derive(serde::Deserialize)]
struct Subject {
    subject: String,
}

/// The records of one part of an export.
pub struct ExportLane {
    part: PartId,
    file: PathBuf,
    reader: BufReader<File>,
    /// Where the reader is.
    at: u64,
    stretches: VecDeque<Stretch>,
    /// Answers that come between its records, or behind them.
    answers: VecDeque<Raw>,
    next: u64,
}

impl ExportLane {
    /// The next ones, so many at most; none at the end.
    pub(super) fn read(&mut self, count: usize) -> Result<Vec<Raw>> {
        let name = self.file.display().to_string();
        let cannot = || format!("{name} cannot be read");
        let (mut read, mut text) = (Vec::new(), String::new());
        while read.len() < count
            && let Some(stretch) = self.stretches.front_mut()
        {
            if stretch.from >= stretch.to {
                self.stretches.pop_front();
                continue;
            }
            if self.at != stretch.from {
                self.reader.seek(SeekFrom::Start(stretch.from)).with_context(cannot)?;
            }
            text.clear();
            let bytes = u64::try_from(self.reader.read_line(&mut text).with_context(cannot)?)?;
            ensure!(bytes > 0, "{} became shorter while it was read", self.file.display());
            let number = stretch.line;
            stretch.line += 1;
            stretch.from += bytes;
            self.at = stretch.from;
            if text.trim().is_empty() {
                continue;
            }
            let (line, payload) = parse(&self.file, number, &text)?;
            read.extend(self.answers_before(Some(line.sequence)));
            if line.sequence >= self.next {
                read.push(Raw {
                    part: self.part.clone(),
                    sequence: line.sequence,
                    at: made_at(&payload),
                    subject: line.subject,
                    payload,
                });
            }
        }
        if self.stretches.is_empty() {
            read.extend(self.answers_before(None));
        }
        Ok(read)
    }

    /// The next answers before a sequence, or all that are left.
    fn answers_before(&mut self, sequence: Option<u64>) -> Vec<Raw> {
        let is_before = |raw: &Raw| sequence.is_none_or(|sequence| raw.sequence < sequence);
        let count = self.answers.iter().take_while(|raw| is_before(raw)).count();
        self.answers.drain(..count).filter(|raw| raw.sequence >= self.next).collect()
    }
}

/// What approvers were asked and said, as an export has it; nothing if it is of an older writ.
fn words(folder: &Path, mut take: impl FnMut(Raw)) -> Result<()> {
    let file = folder.join(APPROVALS);
    if !file.is_file() {
        return Ok(());
    }
    each_line(&file, |number, text, _| {
        let (line, payload) = parse(&file, number, text)?;
        let part = part_of(&line.subject).unwrap_or_else(PartId::first);
        take(Raw { part, sequence: line.sequence, at: Timestamp::default(), subject: line.subject, payload });
        Ok(())
    })
}

/// What approvers were shown and answered, to some requests.
///
/// # Errors
/// If the file cannot be read.
pub fn said(folder: &Path, requests: &BTreeSet<Digest>, history: &ControlHistory) -> Result<Said> {
    let mut said = Said::default();
    words(folder, |raw| said.take(requests, &raw, history))?;
    Ok(said)
}

/// When a record says it was made; nothing is believed because of that, it only gets a place among the others.
fn made_at(payload: &[u8]) -> Timestamp {
    let signed: Option<Signed<Record>> = decode(payload).ok();
    signed.and_then(|signed| signed.peek().ok()).map_or_else(Timestamp::default, |record| record.at)
}
