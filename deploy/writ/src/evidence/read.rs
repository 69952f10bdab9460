//! Reading an export for the verifier. Signatures are checked on every core; what is between records, on one.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use writ_common::{
    control::{ControlDocument, ControlState},
    digest::Digest,
    evidence::{Code, Finding, Opened, Report, Verifier, open},
    keys::PublicKey,
    policy::PolicyBundle,
    record::Record,
    signed::Signed,
    subjects::Subject,
    tlog::{SignedCheckpoint, Tree, tile_path},
    visible::visible,
};

use super::folder::{
    APPROVALS, ARCHIVE, CHECKPOINT, CONTROL, LOGS, Line, MANIFEST, Manifest, POLICIES, RECORDS,
};
use crate::cores::on_every_core;

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
    let (manifest, fault) = manifest(folder, against.root.is_some())?;
    let root = match against.root {
        Some(root) => root,
        None => PublicKey::parse(&manifest.root_key).context("`root_key` of export.json")?,
    };
    // What is not known asks for the most: everything must be there.
    let exported = manifest.time().unwrap_or_default();
    let mut verifier = Verifier::new(manifest.tenant.clone(), root, manifest.scope.clone().into(), exported);
    if let Some(fault) = fault {
        verifier.add(Finding::fault(Code::FileDigest, MANIFEST, visible(&fault)));
    }
    if against.root.is_none() {
        let text = "the root's key was taken from here: compare it with the one you know";
        verifier.add(Finding::warning(Code::RootFromExport, MANIFEST, text));
    }
    check_files(folder, &manifest, &mut verifier)?;
    control(folder, &mut verifier)?;
    let control = verifier.control().clone();
    each_record(folder, &control, |opened| {
        verifier.record(opened.map(|(_, opened, _)| opened));
        Ok(())
    })?;
    approvals(folder, &mut verifier)?;
    logs(folder, &mut verifier)?;
    archive(folder, &mut verifier)?;
    check_policies(folder, &mut verifier)?;
    if let Some(path) = &against.heads {
        for (number, note) in notes(&read(path)?).into_iter().enumerate() {
            verifier.kept(&format!("{} note {}", path.display(), number + 1), &note);
        }
    }
    if let Some(path) = &against.receipts {
        for (number, line) in read(path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match STANDARD.decode(line.trim()) {
                Ok(envelope) => verifier.receipt(number + 1, &envelope),
                Err(_) => verifier.bad_receipt(number + 1, "is not base64"),
            }
        }
    }
    Ok((manifest, verifier.finish()))
}

/// Whatever is in a file, as text: what is not readable is for the one who reads lines to say.
fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The manifest; without a readable one, and if the root is known, one that claims everything of the tenant of the
/// first control event, and what is wrong with it.
fn manifest(folder: &Path, has_root: bool) -> Result<(Manifest, Option<String>)> {
    let error = match Manifest::read(folder) {
        Ok(manifest) => return Ok((manifest, None)),
        Err(error) => error,
    };
    if !has_root || !folder.is_dir() {
        return Err(error);
    }
    let first = read(&folder.join(CONTROL)).ok().and_then(|text| {
        let (_, payload) = Line::parse(text.lines().next()?).ok()?;
        let signed = writ_common::codec::decode::<Signed<ControlDocument>>(&payload).ok()?;
        Some(signed.peek().ok()?.tenant)
    });
    match first {
        Some(tenant) => Ok((Manifest::of_everything(tenant), Some(format!("{error:#}")))),
        None => Err(error),
    }
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
                    verifier.add(Finding::fault(Code::FileDigest, visible(path), text));
                }
            }
        }
    }
    for path in manifest.files.keys().filter(|path| !there.contains(path)) {
        verifier.add(Finding::fault(
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

/// The policies that can be looked at are those that were put in force.
fn check_policies(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let path = folder.join(POLICIES);
    let mut shown: BTreeMap<String, PolicyBundle> = BTreeMap::new();
    let mut files = Vec::new();
    if path.is_dir() {
        files_below(&path, &path, &mut files)?;
    }
    for file in &files {
        if let Some((revision, name)) = file.split_once('/') {
            let text = read(&path.join(file))?;
            shown.entry(revision.to_owned()).or_default().0.insert(name.to_owned(), text);
        }
    }
    for revision in verifier.policies_used() {
        let name = revision.0.to_string();
        if !shown.contains_key(&name) {
            let text = "verdicts were given by it, and it is not here";
            verifier.add(Finding::fault(Code::FileDigest, format!("{POLICIES}/{name}"), text));
        }
    }
    for (name, bundle) in &shown {
        if bundle.revision().0.to_string() != *name {
            let text = "its files are not those it is named after";
            verifier.add(Finding::fault(Code::FileDigest, format!("{POLICIES}/{}", visible(name)), text));
        }
    }
    Ok(())
}

/// Reads the control stream of an export.
fn control(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let path = folder.join(CONTROL);
    let text = match read(&path) {
        Ok(text) => text,
        Err(error) => {
            verifier.add(Finding::fault(Code::ControlSignature, CONTROL, format!("{error:#}")));
            return Ok(());
        }
    };
    // Ticks of the freshness protocol stand in the same stream and say nothing.
    let tick = Subject::Tick.of(verifier.control().tenant());
    for (number, text) in text.lines().enumerate() {
        match Line::parse(text) {
            Ok((line, _)) if line.subject == tick => {}
            Ok((line, payload)) => verifier.control_event(line.sequence, &payload),
            Err(why) => {
                let place = format!("{CONTROL} line {}", number + 1);
                verifier.add(Finding::fault(Code::ControlSignature, place, visible(&why)));
            }
        }
    }
    Ok(())
}

/// Reads what approvers were asked and said. What is not readable is not there, and missed where it is needed.
fn approvals(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let path = folder.join(APPROVALS);
    if !path.is_file() {
        return Ok(());
    }
    let cannot = || format!("{} cannot be read", path.display());
    for line in BufReader::new(File::open(&path).with_context(cannot)?).split(b'\n') {
        let line = line.with_context(cannot)?;
        if let Ok((_, envelope)) = Line::parse(&String::from_utf8_lossy(&line)) {
            verifier.approval(&envelope);
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
    control: &ControlState,
    mut take: impl FnMut(Result<Read, Finding>) -> Result<()>,
) -> Result<()> {
    let path = folder.join(RECORDS);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) => return take(Err(Finding::fault(Code::RecordMalformed, RECORDS, error))),
    };
    let mut lines = BufReader::new(file).split(b'\n');
    let mut number = 0;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        for line in lines.by_ref().take(BATCH) {
            number += 1;
            let line = line.with_context(|| format!("{} line {number}", path.display()))?;
            batch.push((number, String::from_utf8_lossy(&line).into_owned()));
        }
        if batch.is_empty() {
            return Ok(());
        }
        on_every_core(&batch, |line| open_line(control, line))?.into_iter().try_for_each(&mut take)?;
    }
}

fn open_line(control: &ControlState, (number, text): &(usize, String)) -> Result<Read, Finding> {
    let (line, payload) = Line::parse(text).map_err(|why| {
        Finding::fault(Code::RecordMalformed, format!("{RECORDS} line {number}"), visible(&why))
    })?;
    let (opened, record) = open(control, line.sequence, Some(&line.subject), &payload)?;
    Ok((line.sequence, opened, record))
}

/// What is in a folder, in the order of the names; nothing if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut entries: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        entries.push(entry?.path());
    }
    entries.sort();
    Ok(entries)
}

/// Reads the manifests of parts that were put away.
fn archive(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    for path in entries(&folder.join(ARCHIVE))? {
        let (name, extension) = (path.file_stem().unwrap_or_default(), path.extension());
        if extension.is_some_and(|extension| extension == "json") {
            let bytes = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
            verifier.archive(&name.to_string_lossy(), &bytes);
        }
    }
    Ok(())
}

/// Reads the logs of an export.
fn logs(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    for log in entries(&folder.join(LOGS))? {
        let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What cannot be read is a note nobody signed.
        let note = read(&log.join(CHECKPOINT)).unwrap_or_default();
        let size = SignedCheckpoint::parse(&note).map_or(0, |read| read.checkpoint().size);
        verifier.checkpoint(&name, &note, tiles(&log, size));
    }
    Ok(())
}

/// The tree a log's tiles hold: the leaves from the lowest, and all above as they follow from those.
fn tiles(log: &Path, size: u64) -> Result<Tree, String> {
    let mut leaves = Tree::default();
    let mut number = 0;
    while number * TILE < size {
        let width = (size - number * TILE).min(TILE);
        let path = tile_path(0, number, u32::try_from(width).unwrap_or(0));
        let bytes = fs::read(log.join(&path)).map_err(|error| format!("{path}: {error}"))?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || hashes.len() as u64 != width {
            return Err(format!("{path} does not hold {width} hashes"));
        }
        hashes.iter().for_each(|hash| leaves.append(Digest::from_bytes(*hash)));
        number += 1;
    }
    for (path, bytes) in leaves.tiles(size).map_err(|error| error.to_string())? {
        if !fs::read(log.join(&path)).is_ok_and(|found| found == bytes) {
            return Err(format!("{path} does not follow from the tiles below it"));
        }
    }
    Ok(leaves)
}

/// Notes that stand one after the other, each up to its last signature.
#[must_use]
pub fn notes(text: &str) -> Vec<String> {
    let (mut notes, mut note) = (Vec::new(), String::new());
    let mut was_signature = false;
    for line in text.lines() {
        let is_signature = line.starts_with("— ");
        if was_signature && !is_signature {
            notes.push(std::mem::take(&mut note));
        }
        // Between two notes, empty lines mean nothing.
        if !note.is_empty() || !line.trim().is_empty() {
            note.push_str(line);
            note.push('\n');
        }
        was_signature = is_signature;
    }
    if !note.is_empty() {
        notes.push(note);
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_told_apart_and_nothing_is_lost() {
        let (one, two) = ("a\n1\nx\n\n— k s\n— w s\n", "b\n2\ny\nclosed\n\n— k s\n");
        assert_eq!(notes(&format!("{one}\n\n{two}")), [one, two]);
        assert_eq!(notes(&format!("{one}{two}garbage")), [one, two, "garbage\n"]);
        assert_eq!(notes(" \n\n"), [""; 0]);
    }
}
