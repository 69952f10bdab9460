//! Reading an export for the verifier. Signatures are checked on every core; what is between records, on one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use writ_common::{
    control::ControlState,
    digest::Digest,
    evidence::{Code, Finding, Opened, Report, Verifier, open},
    keys::PublicKey,
    record::Record,
    tlog::{SignedCheckpoint, tile_path},
    visible::visible,
};

use super::folder::{CHECKPOINT, CONTROL, LOGS, Line, MANIFEST, Manifest, RECORDS};

/// How many lines are opened at a time.
const BATCH: usize = 8_192;
/// Hashes in a whole tile.
const TILE: u64 = 256;

/// What an export is held to besides itself.
#[derive(Clone, Debug, Default)]
pub struct Against {
    /// The root's key; that of the export if absent.
    pub root: Option<PublicKey>,
    /// Receipts that were kept.
    pub receipts: Option<PathBuf>,
    /// Checkpoints that were kept.
    pub heads: Option<PathBuf>,
}

/// Verifies an export.
///
/// # Errors
/// If it cannot be read as one at all. What is wrong within is a finding.
pub fn verify(folder: &Path, against: &Against) -> Result<(Manifest, Report)> {
    let manifest = Manifest::read(folder)?;
    let root = match against.root {
        Some(root) => root,
        None => PublicKey::parse(&manifest.root_key).context("`root_key` of export.json")?,
    };
    let mut verifier =
        Verifier::new(manifest.tenant.clone(), root, manifest.scope.clone().into(), manifest.time()?);
    check_files(folder, &manifest, &mut verifier)?;
    control(folder, &mut verifier)?;
    each_record(folder, verifier.control().clone(), |opened| {
        verifier.record(opened.map(|(_, opened, _)| opened));
        Ok(())
    })?;
    logs(folder, &mut verifier)?;
    if let Some(path) = &against.heads {
        for (number, note) in notes(&read(path)?).into_iter().enumerate() {
            verifier.kept(&format!("{} note {}", path.display(), number + 1), &note);
        }
    }
    if let Some(path) = &against.receipts {
        for (number, line) in read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match STANDARD.decode(line.trim()) {
                Ok(envelope) => verifier.receipt(number + 1, &envelope),
                Err(_) => {
                    let place = format!("receipt {}", number + 1);
                    verifier.add(Finding::fault(Code::ReceiptSignature, place, "is not base64"));
                }
            }
        }
    }
    Ok((manifest, verifier.finish()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Compares the files with the manifest. Nothing rests on it: it says where something was damaged.
fn check_files(folder: &Path, manifest: &Manifest, verifier: &mut Verifier) -> Result<()> {
    let mut there = Vec::new();
    files_below(folder, folder, &mut there)?;
    for path in &there {
        match manifest.files.get(path) {
            _ if path == MANIFEST => {}
            None => verifier.add(Finding::warning(
                Code::FileDigest,
                visible(path),
                "is not listed in export.json",
            )),
            Some(digest) => {
                if file_digest(&folder.join(path))? != *digest {
                    let text = "is not the file export.json lists";
                    verifier.add(Finding::warning(Code::FileDigest, visible(path), text));
                }
            }
        }
    }
    for path in manifest.files.keys().filter(|path| !there.contains(path)) {
        verifier.add(Finding::warning(
            Code::FileDigest,
            visible(path),
            "is listed in export.json and not there",
        ));
    }
    Ok(())
}

fn files_below(root: &Path, folder: &Path, files: &mut Vec<String>) -> Result<()> {
    let cannot = || format!("{} cannot be read", folder.display());
    for entry in fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(cannot)?);
        if kind.is_dir() {
            files_below(root, &path, files)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            files.push(relative.to_string_lossy().into_owned());
        }
    }
    files.sort();
    Ok(())
}

fn file_digest(path: &Path) -> Result<Digest> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        let count = file.read(&mut buffer).with_context(cannot)?;
        match buffer.get(..count) {
            Some([]) | None => return Ok(Digest::from_bytes(hash.finalize().into())),
            Some(bytes) => hash.update(bytes),
        }
    }
}

/// Reads the control stream of an export.
fn control(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let path = folder.join(CONTROL);
    for (number, text) in read(&path)?.lines().enumerate() {
        match Line::parse(text) {
            Ok((line, payload)) => verifier.control_event(line.sequence, &payload),
            Err(why) => {
                let place = format!("{CONTROL} line {}", number + 1);
                verifier.add(Finding::fault(Code::ControlSignature, place, visible(&why)));
            }
        }
    }
    Ok(())
}

/// Control state as an export has it, for opening single records.
///
/// # Errors
/// If the file cannot be read.
pub fn control_of(file: &Path, mut state: ControlState) -> Result<ControlState> {
    for text in read(file)?.lines() {
        if let Ok((line, payload)) = Line::parse(text) {
            // What does not count is left out; the verifier of the whole export names it.
            drop(state.apply(line.sequence, &payload));
        }
    }
    Ok(state)
}

/// A record as it was opened: its stream sequence, what the verifier keeps, and the record.
pub type Read = (u64, Opened, Record);

/// Opens every record of an export, in the order of the file.
///
/// # Errors
/// If the file cannot be read, or what `take` says.
pub fn each_record(
    folder: &Path,
    control: ControlState,
    mut take: impl FnMut(Result<Read, Finding>) -> Result<()>,
) -> Result<()> {
    let path = folder.join(RECORDS);
    let file = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut lines = BufReader::new(file).lines();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut number = 0;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        for line in lines.by_ref().take(BATCH) {
            number += 1;
            batch.push((number, line.with_context(|| format!("{} line {number}", path.display()))?));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let share = batch.len().div_ceil(cores);
        let opened = thread::scope(|scope| {
            let parts: Vec<_> = batch
                .chunks(share)
                .map(|part| {
                    let control = &control;
                    scope.spawn(move || part.iter().map(|line| open_line(control, line)).collect::<Vec<_>>())
                })
                .collect();
            parts.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for part in opened {
            let part = part.map_err(|_| anyhow::anyhow!("a thread that checks signatures ended early"))?;
            part.into_iter().try_for_each(&mut take)?;
        }
    }
}

fn open_line(control: &ControlState, (number, text): &(usize, String)) -> Result<Read, Finding> {
    let (line, payload) = Line::parse(text).map_err(|why| {
        Finding::fault(Code::RecordMalformed, format!("{RECORDS} line {number}"), visible(&why))
    })?;
    let (opened, record) = open(control, line.sequence, &line.subject, &payload)?;
    Ok((line.sequence, opened, record))
}

/// Reads the logs of an export.
fn logs(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let path = folder.join(LOGS);
    if !path.is_dir() {
        return Ok(());
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("{} cannot be read", path.display()))? {
        folders.push(entry?.path());
    }
    folders.sort();
    for log in folders {
        let place = format!("{LOGS}/{}", log.file_name().unwrap_or_default().to_string_lossy());
        let note = match fs::read_to_string(log.join(CHECKPOINT)) {
            Ok(note) => note,
            Err(error) => {
                verifier.add(Finding::fault(Code::LogSignature, visible(&place), error));
                continue;
            }
        };
        let size = SignedCheckpoint::parse(&note).map_or(0, |read| read.checkpoint().size);
        let leaves = leaves(&log, size);
        verifier.checkpoint(&place, &note, leaves);
    }
    Ok(())
}

/// The hashes of a log's leaves from its lowest tiles; none if one is missing or has another width.
fn leaves(log: &Path, size: u64) -> Option<Vec<Digest>> {
    let mut leaves = Vec::new();
    let mut number = 0;
    while number * TILE < size {
        let width = (size - number * TILE).min(TILE);
        let bytes = fs::read(log.join(tile_path(0, number, u32::try_from(width).ok()?))).ok()?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || hashes.len() as u64 != width {
            return None;
        }
        leaves.extend(hashes.iter().copied().map(Digest::from_bytes));
        number += 1;
    }
    (size > 0).then_some(leaves)
}

/// Notes that stand one after the other.
#[must_use]
pub fn notes(text: &str) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.starts_with("writ-log/") {
            notes.push(String::new());
        }
        if let Some(note) = notes.last_mut() {
            note.push_str(line);
            note.push('\n');
        }
    }
    for note in &mut notes {
        let end = note.trim_end().len();
        note.truncate(end);
        note.push('\n');
    }
    notes
}

/// How many findings of each code there are.
#[must_use]
pub fn tally(report: &Report) -> BTreeMap<Code, usize> {
    let mut tally = BTreeMap::new();
    for finding in &report.findings {
        *tally.entry(finding.code).or_default() += 1;
    }
    tally
}
