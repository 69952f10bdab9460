//! What an export is on disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use writ_common::{
    digest::Digest,
    evidence::Scope,
    ids::{TaskId, TenantId},
    time::Timestamp,
    visible::visible,
};

/// The format's name.
pub const FORMAT: &str = "writ-export/1";
/// The manifest.
pub const MANIFEST: &str = "export.json";
/// The control stream.
pub const CONTROL: &str = "control.jsonl";
/// The records.
pub const RECORDS: &str = "records.jsonl";
/// What approvers were asked and said.
pub const APPROVALS: &str = "approvals.jsonl";
/// The folder of the logs.
pub const LOGS: &str = "logs";
/// The folder of the manifests of parts that were put away.
pub const ARCHIVE: &str = "archive";
/// The folder of the policies.
pub const POLICIES: &str = "policies";
/// The same for reading and printing.
pub const REPORT: &str = "report.html";
/// A log's newest checkpoint in its folder.
pub const CHECKPOINT: &str = "checkpoint";

/// What is said of an export. Nothing is believed because it stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The offline root's public key, as the exporter knew it.
    pub root_key: String,
    /// When, RFC 3339.
    pub exported_at: String,
    /// Of what.
    pub scope: ManifestScope,
    /// How many records.
    #[serde(default)]
    pub records: u64,
    /// How many of them are not to be believed.
    #[serde(default)]
    pub faults: u64,
    /// The policies by which the verdicts were given.
    #[serde(default)]
    pub policies: Vec<String>,
    /// SHA-256 of every other file, in hex.
    pub files: BTreeMap<String, Digest>,
}

/// Of what an export is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ManifestScope {
    /// Everything, always true.
    All(bool),
    /// One task.
    Task(TaskId),
}

impl From<ManifestScope> for Scope {
    fn from(scope: ManifestScope) -> Self {
        match scope {
            ManifestScope::All(_) => Self::All,
            ManifestScope::Task(task) => Self::Task(task),
        }
    }
}

impl Manifest {
    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// If it is none of this format.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} cannot be read: is it the folder of an export?", path.display()))?;
        let manifest: Self =
            serde_json::from_str(&text).with_context(|| format!("{} is no manifest", path.display()))?;
        ensure!(
            manifest.format == FORMAT,
            "{}: format `{}` is not known here; this writ reads `{FORMAT}`",
            path.display(),
            visible(&manifest.format)
        );
        Ok(manifest)
    }

    /// What has to be assumed of an export whose manifest cannot be read.
    #[must_use]
    pub fn of_everything(tenant: TenantId) -> Self {
        Self {
            format: FORMAT.to_owned(),
            tenant,
            root_key: String::new(),
            exported_at: String::new(),
            scope: ManifestScope::All(true),
            records: 0,
            faults: 0,
            policies: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    /// Adds a file to an export that is written, and lists it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
        let writer = FolderWriter { folder: folder.to_owned(), files: BTreeMap::new() };
        let (mut file, path) = writer.open(name)?;
        let cannot = || format!("{} cannot be written", path.display());
        file.write_all(bytes).and_then(|()| file.sync_all()).with_context(cannot)?;
        self.files.insert(name.to_owned(), Digest::plain(bytes));
        // In one step, so that there is a whole manifest at any time.
        let (manifest, next) = (folder.join(MANIFEST), folder.join("export.json.next"));
        fs::write(&next, format!("{:#}\n", serde_json::to_value(&*self)?)).with_context(cannot)?;
        fs::rename(&next, &manifest).with_context(|| format!("{} cannot be written", manifest.display()))
    }

    /// When it was exported.
    ///
    /// # Errors
    /// If it does not say so.
    pub fn time(&self) -> Result<Timestamp> {
        Timestamp::read(&self.exported_at)
            .with_context(|| format!("`exported_at` is `{}`, which is no time", visible(&self.exported_at)))
    }
}

/// A line of `control.jsonl` or `records.jsonl`.
#[derive(Debug, Deserialize)]
pub struct Line {
    /// Stream sequence.
    pub sequence: u64,
    /// Subject.
    pub subject: String,
    payload: String,
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<(Self, Vec<u8>), String> {
        let line: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let payload = STANDARD.decode(&line.payload).map_err(|_| "`payload` is not base64".to_owned())?;
        Ok((line, payload))
    }
}

/// Writes an export: every file once, digested as it is written.
pub struct FolderWriter {
    folder: PathBuf,
    files: BTreeMap<String, Digest>,
}

impl FolderWriter {
    /// Makes the folder.
    ///
    /// # Errors
    /// If it is there already, or cannot be made.
    pub fn create(folder: &Path) -> Result<Self> {
        ensure!(
            !folder.exists(),
            "{} is there already; evidence goes into a new folder (`--out`)",
            folder.display()
        );
        make(folder)?;
        Ok(Self { folder: folder.to_owned(), files: BTreeMap::new() })
    }

    fn open(&self, path: &str) -> Result<(File, PathBuf)> {
        // Names may come from what is exported, and who wrote that may be who is under suspicion.
        let is_plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_plain {
            bail!("a file would be called `{}`, which is not written", visible(path));
        }
        let file = self.folder.join(path);
        if let Some(parent) = file.parent() {
            make(parent)?;
        }
        let opened = fs::OpenOptions::new().write(true).create_new(true).open(&file);
        Ok((opened.with_context(|| format!("{} cannot be written", file.display()))?, file))
    }

    /// Writes a file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, path: &str, bytes: &[u8]) -> Result<()> {
        let (mut file, name) = self.open(path)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("{} cannot be written", name.display()))?;
        self.files.insert(path.to_owned(), Digest::plain(bytes));
        Ok(())
    }

    /// Begins a file of lines.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn lines(&self, path: &str) -> Result<LinesWriter> {
        let (file, name) = self.open(path)?;
        Ok(LinesWriter {
            path: path.to_owned(),
            name,
            file: BufWriter::new(file),
            hash: Sha256::new(),
            count: 0,
        })
    }

    /// Ends a file of lines.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn end(&mut self, lines: LinesWriter) -> Result<u64> {
        let LinesWriter { path, name, file, hash, count } = lines;
        let cannot = || format!("{} cannot be written", name.display());
        let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
        file.sync_all().with_context(cannot)?;
        self.files.insert(path, Digest::from_bytes(hash.finalize().into()));
        Ok(count)
    }

    /// Writes the manifest, last.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<Manifest> {
        manifest.files = std::mem::take(&mut self.files);
        let text = format!("{:#}\n", serde_json::to_value(&manifest)?);
        self.write(MANIFEST, text.as_bytes())?;
        Ok(manifest)
    }
}

/// A file of JSON, one value a line.
pub struct LinesWriter {
    path: String,
    name: PathBuf,
    file: BufWriter<File>,
    hash: Sha256,
    count: u64,
}

impl LinesWriter {
    /// Adds a message of a stream: what a reader says of it, and its subject and bytes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn message(&mut self, mut said: Value, subject: &str, payload: &[u8]) -> Result<()> {
        if let Some(line) = said.as_object_mut() {
            line.insert("subject".to_owned(), subject.into());
            line.insert("payload".to_owned(), STANDARD.encode(payload).into());
        }
        let mut text = serde_json::to_vec(&said)?;
        text.push(b'\n');
        self.hash.update(&text);
        self.count += 1;
        self.file.write_all(&text).with_context(|| format!("{} cannot be written", self.name.display()))
    }
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))
}
