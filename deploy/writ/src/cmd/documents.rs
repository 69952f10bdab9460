//! `writ documents …`: what is in a document store.
//!
//! These work on the store's file, as its owner: whoever can write it decides who reads what. Every change is an entry
//! of the store's own log, with the user id of this process.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use writ_bus::SystemClock;
use writ_common::{
    label::{Confidentiality, Integrity, Label, Tag},
    visible::visible,
};
use writ_node::tools::retrieval::{
    Act, ChunkInfo, DOCUMENT_BYTES_MAX, DocumentId, DocumentInfo, NewDocument, Reader, Readers, Store,
};

use super::Common;
use crate::exit::Exit;

/// Most files of one folder.
const FILES_MAX: usize = 10_000;

/// Documents that agents may search, with who may read them
#[derive(Subcommand)]
pub enum Documents {
    /// Put texts into a store; one with the same source is replaced
    Ingest(Ingest),
    /// Every document with its label and readers, and whether the store is whole
    List(Which),
    /// One document with its chunks
    Show(Show),
    /// Take documents out
    Remove(Remove),
}

#[derive(Args)]
pub struct Ingest {
    /// Text files, or folders of them
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// The store's file; made if it is not there
    #[arg(long)]
    store: PathBuf,
    /// Confidentiality tags, separated by commas; `public` for none
    #[arg(long, value_parser = Tags::parse)]
    tags: Tags,
    /// Who may read it: `user:<issuer>|<subject>`, `user:*`, `agent:<name>`, `agent:*`, separated by commas
    #[arg(long, value_parser = ReaderList::parse)]
    readers: ReaderList,
    /// What sources are called, in front of the path within a folder; by default the name of the file or folder
    #[arg(long)]
    source: Option<String>,
    /// Written by people who answer for it: what it says may be believed
    #[arg(long)]
    trusted: bool,
}

#[derive(Args)]
pub struct Which {
    /// The store's file
    #[arg(long)]
    store: PathBuf,
}

#[derive(Args)]
pub struct Show {
    /// The document, as `list` names it, or its source
    document: String,
    /// The store's file
    #[arg(long)]
    store: PathBuf,
    /// Print the text of every chunk
    #[arg(long)]
    text: bool,
}

#[derive(Args)]
pub struct Remove {
    /// The documents, as `list` names them, or their sources
    #[arg(required = true)]
    documents: Vec<String>,
    /// The store's file
    #[arg(long)]
    store: PathBuf,
}

/// Tags as they stand on the command line.
#[derive(Clone, Debug)]
struct Tags(BTreeSet<Tag>);

impl Tags {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "public" {
            return Ok(Self(BTreeSet::new()));
        }
        let tags: Result<BTreeSet<Tag>, _> = text.split(',').map(|tag| Tag::parse(tag.trim())).collect();
        let tags = tags.map_err(|error| format!("{error}; `--tags public` alone is for no tag"))?;
        if tags.len() > writ_common::label::TAGS_MAX {
            return Err(format!("more than {} tags", writ_common::label::TAGS_MAX));
        }
        Ok(Self(tags))
    }
}

/// An access list as it stands on the command line.
#[derive(Clone, Debug)]
struct ReaderList(Readers);

impl ReaderList {
    fn parse(text: &str) -> Result<Self, String> {
        // A subject may hold a comma, so an entry ends only where the next one begins.
        let mut entries: Vec<String> = Vec::new();
        for piece in text.split(',') {
            let is_entry = ["user:", "agent:"].iter().any(|kind| piece.trim_start().starts_with(kind));
            match entries.last_mut() {
                Some(last) if !is_entry => {
                    last.push(',');
                    last.push_str(piece);
                }
                _ => entries.push(piece.trim().to_owned()),
            }
        }
        let readers: Result<Vec<Reader>, _> = entries.iter().map(|entry| entry.parse()).collect();
        Readers::new(&readers.map_err(|error| error.to_string())?)
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

impl Documents {
    pub(super) fn run(self, common: &Common) -> Result<Exit> {
        match self {
            Self::Ingest(ingest) => ingest.run(common),
            Self::List(which) => list(&which.store, common),
            Self::Show(show) => show.run(common),
            Self::Remove(remove) => remove.run(common),
        }
    }
}

impl Ingest {
    fn run(self, common: &Common) -> Result<Exit> {
        let is_trusted = self.trusted || writ_common::red::off("M11");
        let integrity = if is_trusted { Integrity::Trusted } else { Integrity::Untrusted };
        let label = Label { confidentiality: Confidentiality::Tags(self.tags.0), integrity };
        let mut files = Vec::new();
        let mut skipped = Vec::new();
        for path in &self.paths {
            let name = match &self.source {
                Some(source) => source.clone(),
                None => file_name(path)?,
            };
            collect(path, &name, true, &mut files, &mut skipped)?;
        }
        if files.is_empty() {
            bail!("there is no text file in what was named");
        }
        let mut store = Store::create(&self.store)?;
        let by = actor();
        let (mut lines, mut done) = (Vec::new(), Vec::new());
        for (path, source) in files {
            let text = match read_text(&path) {
                Ok(text) => text,
                Err(why) if self.paths.contains(&path) => bail!("{}: {why}", path.display()),
                Err(why) => {
                    skipped.push((path, why));
                    continue;
                }
            };
            let document =
                NewDocument { source, text, label: label.clone(), readers: self.readers.0.clone() };
            let act = Act { at: SystemClock::new().now().wall, by: &by };
            let ingested = store.ingest(&document, act).with_context(|| path.display().to_string())?;
            let change = ingested.change.as_str();
            lines.push(format!(
                "{change:<9} {}  {:>4} chunks  {}",
                ingested.id,
                ingested.chunks,
                visible(&document.source)
            ));
            done.push(json!({
                "change": change, "document": ingested.id.to_string(), "digest": ingested.digest.to_string(),
                "chunks": ingested.chunks, "source": document.source,
            }));
        }
        for (path, why) in &skipped {
            lines.push(format!("{:<9} {}: {why}", "skipped", visible(&path.display().to_string())));
        }
        let skipped: Vec<Value> =
            skipped.iter().map(|(path, why)| json!({"path": path, "why": why})).collect();
        let json = json!({
            "documents": done, "skipped": skipped, "label": label.to_string(), "readers": self.readers.0.to_string(),
        });
        common.say(lines.join("\n"), &json)?;
        Ok(Exit::Ok)
    }
}

fn list(file: &Path, common: &Common) -> Result<Exit> {
    let store = Store::open(file)?;
    let documents = store.documents()?;
    let manifest = store.manifest(&documents)?;
    let mut damaged = 0;
    let mut lines = Vec::new();
    for document in &documents {
        let faults = document.chunks.iter().filter(|chunk| chunk.damage.is_some()).count();
        damaged += faults;
        let note = if faults == 0 { String::new() } else { format!("  {faults} damaged: ingest it again") };
        lines.push(format!(
            "{}  {:>4} chunks  {}  {}  {}{note}",
            document.id,
            document.chunks.len(),
            visible(&document.source),
            seen_as(&document.chunks),
            read_by(&document.chunks),
        ));
    }
    lines.push(format!(
        "{} documents, {} chunks, {damaged} damaged; manifest {}",
        manifest.documents, manifest.chunks, manifest.digest
    ));
    let log = if manifest.log_is_whole { "whole" } else { "BROKEN: an entry is missing or was changed" };
    lines.push(format!("{} acts on record, {log}; last {}", manifest.events, manifest.log));
    let json = json!({
        "documents": documents.iter().map(|document| shown(document, false)).collect::<Vec<Value>>(),
        "chunks": manifest.chunks, "damaged": damaged, "manifest": manifest.digest.to_string(),
        "acts": manifest.events, "log": manifest.log.to_string(), "log_is_whole": manifest.log_is_whole,
    });
    common.say(lines.join("\n"), &json)?;
    Ok(if damaged == 0 && manifest.log_is_whole { Exit::Ok } else { Exit::Failure })
}

impl Show {
    fn run(self, common: &Common) -> Result<Exit> {
        let store = Store::open(&self.store)?;
        let document = store.document(named(&self.document))?;
        let document =
            document.with_context(|| format!("there is no document `{}`", visible(&self.document)))?;
        let mut lines = vec![
            format!("{}  {}", document.id, visible(&document.source)),
            format!("sha256   {}, {} bytes", document.digest, document.bytes),
            format!("put in   {} by {}", document.at, visible(&document.by)),
        ];
        for chunk in &document.chunks {
            let damage = chunk.damage.map(|why| format!("  DAMAGED: {why}")).unwrap_or_default();
            let readers = chunk.readers.as_ref().map_or("nobody".to_owned(), ToString::to_string);
            lines.push(format!(
                "#{:<4} {}  {}  {}{damage}",
                chunk.id.position,
                chunk.digest.short(),
                chunk.label,
                visible(&readers)
            ));
            if self.text {
                lines.extend(chunk.text.lines().map(|line| format!("      {}", visible(line))));
            }
        }
        common.say(lines.join("\n"), &shown(&document, self.text))?;
        let is_sound = document.chunks.iter().all(|chunk| chunk.damage.is_none());
        Ok(if is_sound { Exit::Ok } else { Exit::Failure })
    }
}

impl Remove {
    fn run(self, common: &Common) -> Result<Exit> {
        let mut store = Store::open_for_writing(&self.store)?;
        let by = actor();
        let (mut removed, mut missing) = (Vec::new(), Vec::new());
        for name in &self.documents {
            let act = Act { at: SystemClock::new().now().wall, by: &by };
            match store.remove(named(name), act)? {
                Some(source) => removed.push(source),
                None => missing.push(name.clone()),
            }
        }
        let mut lines: Vec<String> =
            removed.iter().map(|source| format!("removed  {}", visible(source))).collect();
        lines.extend(missing.iter().map(|name| format!("there is no document `{}`", visible(name))));
        common.say(lines.join("\n"), &json!({"removed": removed, "missing": missing}))?;
        Ok(if missing.is_empty() { Exit::Ok } else { Exit::Failure })
    }
}

/// A document by its name or its source.
fn named(text: &str) -> DocumentId {
    text.parse().unwrap_or_else(|_| DocumentId::of(text))
}

/// Who acts, for the log: what the operating system says, since a name could be anything.
fn actor() -> String {
    format!("uid:{}", rustix::process::geteuid().as_raw())
}

fn seen_as(chunks: &[ChunkInfo]) -> String {
    let labels: BTreeSet<String> = chunks.iter().map(|chunk| chunk.label.to_string()).collect();
    labels.into_iter().collect::<Vec<_>>().join(" | ")
}

fn read_by(chunks: &[ChunkInfo]) -> String {
    let lists: BTreeSet<String> = chunks
        .iter()
        .map(|chunk| chunk.readers.as_ref().map_or("nobody".to_owned(), ToString::to_string))
        .map(|readers| visible(&readers))
        .collect();
    lists.into_iter().collect::<Vec<_>>().join(" | ")
}

fn shown(document: &DocumentInfo, with_text: bool) -> Value {
    let chunks: Vec<Value> = document
        .chunks
        .iter()
        .map(|chunk| {
            json!({
                "chunk": chunk.id.to_string(), "digest": chunk.digest.to_string(),
                "tags": chunk.label.names(), "integrity": chunk.label.integrity.as_str(),
                "readers": chunk.readers.as_ref().map(ToString::to_string), "damage": chunk.damage,
                "text": with_text.then_some(&chunk.text),
            })
        })
        .collect();
    json!({
        "document": document.id.to_string(), "source": document.source, "digest": document.digest.to_string(),
        "bytes": document.bytes, "at": document.at.to_string(), "by": document.by, "chunks": chunks,
    })
}

fn file_name(path: &Path) -> Result<String> {
    let real = path.canonicalize().with_context(|| format!("{} is not there", path.display()))?;
    let name = real.file_name().and_then(|name| name.to_str());
    name.map(ToOwned::to_owned).with_context(|| format!("{} has no name; give `--source`", path.display()))
}

/// The files below a path, by name. Links are not followed: they could lead out of what was named.
fn collect(
    path: &Path,
    source: &str,
    is_named: bool,
    files: &mut Vec<(PathBuf, String)>,
    skipped: &mut Vec<(PathBuf, String)>,
) -> Result<()> {
    let metadata = fs::symlink_metadata(path).with_context(|| format!("{} is not there", path.display()))?;
    if metadata.is_file() {
        if files.len() == FILES_MAX {
            bail!("more than {FILES_MAX} files: name folders within");
        }
        files.push((path.to_owned(), source.to_owned()));
    } else if metadata.is_dir() {
        let items = fs::read_dir(path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let mut items = items.with_context(|| format!("{} cannot be read", path.display()))?;
        items.sort_by_key(fs::DirEntry::file_name);
        for item in items {
            match item.file_name().to_str() {
                Some(name) if name.starts_with('.') => {}
                Some(name) => collect(&item.path(), &format!("{source}/{name}"), false, files, skipped)?,
                None => skipped.push((item.path(), "its name is not UTF-8".to_owned())),
            }
        }
    } else if is_named {
        bail!("{} is neither a file nor a folder", path.display());
    } else {
        skipped.push((path.to_owned(), "is neither a file nor a folder".to_owned()));
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, String> {
    let size = fs::symlink_metadata(path).map_err(|error| error.to_string())?.len();
    if size > DOCUMENT_BYTES_MAX as u64 {
        return Err(format!("has {size} bytes, more than {DOCUMENT_BYTES_MAX}"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())?;
    if !text.chars().any(char::is_alphanumeric) || text.contains('\0') {
        return Err("holds no text".to_owned());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_and_tags_from_the_command_line() {
        let read = |text: &str| ReaderList::parse(text).map(|list| list.0.to_string());
        let whole =
            "user:https://idp.example:8443|kim, the first,user:https://idp.example|lou,agent:researcher";
        assert_eq!(
            read(whole).unwrap(),
            "user:https://idp.example|lou, user:https://idp.example:8443|kim, the first, agent:researcher"
        );
        assert_eq!(read("user:*, agent:*").unwrap(), "user:*, agent:*");
        for (text, why) in [
            ("agent:*", "no user may read it"),
            ("user:*", "no agent may read it"),
            ("everybody", "is no reader"),
            ("role:sales,user:*", "is no reader"),
            ("user:kim,agent:*", "`user:kim` names no user"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.contains(why), "{text}: {found}");
        }
        assert_eq!(Tags::parse("crm, hr").unwrap().0.len(), 2);
        assert!(Tags::parse("public").unwrap().0.is_empty());
        for text in ["", "public,crm", "top", "CRM"] {
            assert!(Tags::parse(text).is_err(), "{text}");
        }
    }
}
