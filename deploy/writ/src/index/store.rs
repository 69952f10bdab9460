//! Pages on disk: sled, trusted with nothing.
//!
//! sled 0.34 can lose a suffix without a word after a flipped bit, and unflushed writes on `kill -9`. So every page
//! carries a checksum over itself and its key, and its parent holds its digest: a page that is lost, changed, or an
//! older one than its parent knows, is found when it is read. The root of that tree is the [`Position`], kept in sled
//! and once more in a small anchor file beside it. A page that is not reached by a question is not read for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, DirBuilder, File},
    io::{Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use writ_common::{
    digest::Digest,
    ids::{PartId, TenantId},
    keys::PublicKey,
    time::Timestamp,
};

use crate::archive::manifest::Class;

/// Why the index gives no answer.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It does not hold what it was given.
    #[error("the index in {} is damaged: {why}; build it again with `--rebuild`", path.display())]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// The operating system or sled refused.
    #[error("the index in {}: {why}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// It was made from something else than what is asked about.
    #[error("the index in {} {why}; build it again with `--rebuild`, or name another folder with `--index`", path.display())]
    OtherSource {
        /// The folder.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
}

/// What an index was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The audit stream of a tenant, in as many parts as it has. When the stream of each was created stands with the
    /// part, since parts come and go.
    Streams {
        /// The tenant.
        tenant: TenantId,
        /// The offline root its keys rest on.
        root: PublicKey,
    },
    /// The records of an export.
    Export {
        /// Plain SHA-256 of its `records.jsonl`.
        records: Digest,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Streams { tenant, root } => {
                write!(f, "the audit stream of `{tenant}` under the root {root}")
            }
            Self::Export { records } => write!(f, "an export with records {}", records.short()),
        }
    }
}

/// What was taken in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Messages, of whatever worth.
    pub messages: u64,
    /// Rows: believed records and approvers' answers, each once.
    pub rows: u64,
    /// Messages that are not to be believed.
    pub faults: u64,
    /// Second copies of a record.
    pub copies: u64,
}

/// How far a part was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRead {
    /// When its stream was created; unknown for an export.
    pub created: Option<Timestamp>,
    /// Sequence of the first message that was not looked at.
    pub next: u64,
    /// The last message that was taken, by sequence and plain SHA-256.
    pub last: Option<(u64, Digest)>,
    /// What retention had deleted when the part was read from an archive.
    pub deleted: Vec<Deleted>,
}

impl Default for PartRead {
    fn default() -> Self {
        Self { created: None, next: 1, last: None, deleted: Vec::new() }
    }
}

/// Messages of one class that retention had deleted before they were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// What they were.
    pub class: Class,
    /// How many.
    pub messages: u64,
    /// When the earliest was stored.
    pub from: Timestamp,
    /// When the latest was stored.
    pub to: Timestamp,
}

/// How far the index has got: the root of its pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Layout of the pages.
    pub format: u32,
    /// What it was made from.
    pub source: Source,
    /// How often it was written: what orders it against its anchor.
    pub writes: u64,
    /// Ordinal of the first message that was not taken.
    pub next: u64,
    /// How far each part was read.
    pub parts: BTreeMap<PartId, PartRead>,
    /// Parts that were put away before they were read to their end, and were not to be had when others were read.
    pub left_out: BTreeSet<PartId>,
    /// What was taken in.
    pub taken: Taken,
    /// Digest of the page everything else hangs below.
    pub top: Option<Digest>,
}

/// The layout of this build; others are built again.
pub const FORMAT: u32 = 2;
const POSITION_KEY: &[u8] = b"\0position";
/// Largest page, unpacked: what a damaged length must not exceed.
const PAGE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// How often and how long another command's lock is waited for.
const OPEN_TRIES_MAX: u32 = 100;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// Pages of an index.
pub(super) struct Pages {
    path: PathBuf,
    db: sled::Db,
}

/// A page as it is stored, and what its parent says of it.
pub(super) struct Packed {
    sealed: Vec<u8>,
    pub(super) digest: Digest,
}

impl Pages {
    /// Opens the folder; makes it if there is none.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Position>), IndexError> {
        let io = |why: String| IndexError::Io { path: path.to_owned(), why };
        // Records name people: nobody else's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|error| io(error.to_string()))?;
        let db = open_sled(&path.join("pages")).map_err(|error| match error {
            sled::Error::Io(error) if error.kind() == std::io::ErrorKind::Other => {
                io(format!("another command is using it ({error})"))
            }
            sled::Error::Io(error) => io(error.to_string()),
            error => IndexError::Damaged { path: path.to_owned(), why: error.to_string() },
        })?;
        let pages = Self { path: path.to_owned(), db };
        let position = pages.read_position()?;
        Ok((pages, position))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn damaged(&self, why: impl Into<String>) -> IndexError {
        IndexError::Damaged { path: self.path.clone(), why: why.into() }
    }

    fn io(&self, error: impl fmt::Display) -> IndexError {
        IndexError::Io { path: self.path.clone(), why: error.to_string() }
    }

    fn read_position(&self) -> Result<Option<Position>, IndexError> {
        let stored = self.db.get(POSITION_KEY).map_err(|error| self.damaged(error.to_string()))?;
        let stored = match stored {
            Some(sealed) => Some(self.position_of(POSITION_KEY, &sealed, "its position")?),
            None => None,
        };
        let anchor = match fs::read(self.anchor_path()) {
            Ok(sealed) => Some(self.position_of(b"anchor", &sealed, "its anchor")?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.io(error)),
        };
        match (stored, anchor) {
            (None, None) if self.db.is_empty() => Ok(None),
            (None, _) => Err(self.damaged("it has no position")),
            // A kill between flush and anchor leaves the index ahead: that is as it should be.
            (Some(stored), Some(anchor)) if stored.writes > anchor.writes || stored == anchor => {
                Ok(Some(stored))
            }
            (Some(stored), Some(anchor)) => Err(self.damaged(format!(
                "it was written {} times and its anchor says {}{}",
                stored.writes,
                anchor.writes,
                if stored.writes == anchor.writes { " and something else" } else { "" }
            ))),
            (Some(stored), None) if stored.writes == 1 => Ok(Some(stored)),
            (Some(_), None) => Err(self.damaged("its anchor is gone")),
        }
    }

    fn position_of(&self, key: &[u8], sealed: &[u8], what: &str) -> Result<Position, IndexError> {
        let payload = unseal(key, sealed).and_then(|packed| inflate(packed).ok());
        let payload = payload.ok_or_else(|| self.damaged(format!("{what} does not fit its checksum")))?;
        let position: Position =
            rmp_serde::from_slice(&payload).map_err(|error| self.damaged(format!("{what}: {error}")))?;
        if position.format != FORMAT {
            return Err(IndexError::OtherSource {
                path: self.path.clone(),
                why: format!("is of layout {}, this build reads {FORMAT}", position.format),
            });
        }
        Ok(position)
    }

    fn anchor_path(&self) -> PathBuf {
        self.path.join("anchor")
    }

    /// Reads a page that its parent knows by this digest; `what` names it in errors.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        key: &[u8],
        digest: &Digest,
        what: impl FnOnce() -> String,
    ) -> Result<T, IndexError> {
        let fault = |why: &str| self.damaged(format!("{} {why}", what()));
        let found = self.db.get(key);
        let sealed = match found {
            Ok(Some(sealed)) => sealed,
            Ok(None) => return Err(fault("is missing")),
            Err(error) => return Err(fault(&format!("is not readable ({error})"))),
        };
        let Some(packed) = unseal(key, &sealed) else { return Err(fault("does not fit its checksum")) };
        if page_digest(key, &sealed) != *digest {
            return Err(fault("is not the one that was written last"));
        }
        let Ok(payload) = inflate(packed) else { return Err(fault("cannot be unpacked")) };
        rmp_serde::from_slice(&payload).map_err(|error| fault(&format!("cannot be read ({error})")))
    }

    /// Packs a page.
    pub(super) fn pack<T: Serialize>(&self, key: &[u8], page: &T) -> Result<Packed, IndexError> {
        let payload = rmp_serde::to_vec(page).map_err(|error| self.io(error))?;
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        let packed = encoder.write_all(&payload).and_then(|()| encoder.finish());
        let sealed = seal(key, &packed.map_err(|error| self.io(error))?);
        Ok(Packed { digest: page_digest(key, &sealed), sealed })
    }

    /// Writes pages and the position above them, flushed, then moves the anchor.
    pub(super) fn write(&self, pages: Vec<(Vec<u8>, Packed)>, position: &Position) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for (key, page) in pages {
            batch.insert(key, page.sealed);
        }
        batch.insert(POSITION_KEY, self.pack(POSITION_KEY, position)?.sealed);
        self.db.apply_batch(batch).map_err(|error| self.io(error))?;
        self.db.flush().map_err(|error| self.io(error))?;
        let anchor = self.pack(b"anchor", position)?;
        self.write_anchor(&anchor.sealed).map_err(|error| self.io(error))
    }

    fn write_anchor(&self, sealed: &[u8]) -> std::io::Result<()> {
        let new = self.path.join("anchor.new");
        let mut file = File::create(&new)?;
        file.write_all(sealed)?;
        file.sync_all()?;
        fs::rename(&new, self.anchor_path())?;
        File::open(&self.path)?.sync_all()
    }
}

/// Opens sled. Another question may have it open for a moment, and sled gives its lock back a little after it is closed.
fn open_sled(path: &Path) -> Result<sled::Db, sled::Error> {
    let mut tries = 0;
    loop {
        match sled::Config::default().path(path).flush_every_ms(None).open() {
            Err(sled::Error::Io(error))
                if error.kind() == std::io::ErrorKind::Other && tries < OPEN_TRIES_MAX =>
            {
                tries += 1;
                std::thread::sleep(OPEN_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Removes an index, so that it is built again. What else is in the folder stays.
///
/// # Errors
/// [`IndexError::Io`].
pub fn remove(path: &Path) -> Result<(), IndexError> {
    for name in ["pages", "anchor", "anchor.new"] {
        let target = path.join(name);
        let removed = if target.is_dir() { fs::remove_dir_all(&target) } else { fs::remove_file(&target) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(IndexError::Io { path: target, why: error.to_string() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn inflate(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut payload = Vec::new();
    DeflateDecoder::new(packed).take(PAGE_BYTES_MAX).read_to_end(&mut payload)?;
    Ok(payload)
}

/// Checksum over key and content, then the content: a page under another key does not verify.
fn seal(key: &[u8], packed: &[u8]) -> Vec<u8> {
    let mut sealed = checksum(key, packed).to_le_bytes().to_vec();
    sealed.extend_from_slice(packed);
    sealed
}

fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (crc, packed) = sealed.split_first_chunk::<4>()?;
    (checksum(key, packed) == u32::from_le_bytes(*crc)).then_some(packed)
}

fn checksum(key: &[u8], packed: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), packed)
}

fn page_digest(key: &[u8], sealed: &[u8]) -> Digest {
    Digest::of("writ/v1/audit-index", &[key, sealed])
}
