//! The file: one SQLite database with documents, chunks, their index, and what was done to it.
//!
//! It is opened in two ways. The node opens it read-only and asks one question per transaction; the operator's
//! commands open it for writing, one transaction per document. SQLite locks the file between them, in rollback-journal
//! mode, in which a reader needs no right to write anything.

use std::{
    fmt,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags, OptionalExtension as _, limits::Limit};
use writ_common::digest::Digest;

use super::embed::{Embedder, HashedGrams};

/// Most chunks of one store.
pub const CHUNKS_MAX: i64 = 100_000;
/// Most pairs of label and access list in one store.
pub const CLASSES_MAX: i64 = 4_096;
/// How long one operator's command waits for another to be done with the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a question waits for an operator's command; each document is written by itself.
const ASK_BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many of SQLite's steps pass between two looks at the clock.
const STEPS_PER_LOOK: i32 = 10_000;
/// "WRIT" in ASCII: what tells a document store from other SQLite files.
const APPLICATION_ID: i32 = 0x5752_4954;
const VERSION: i32 = 2;

/// `terms` and `occurrences` are the index: how often a word stands in a chunk, which is what ranking over the visible
/// chunks needs, and no more. FTS5 keeps places instead, and counting those of common words took longer than everything
/// else. A class stands in `chunks` alone, so that there is one truth about who may see what. Text stands apart from what
/// is ranked by, so that ranking reads no page of it.
const SCHEMA: &str = "
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE classes (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    label TEXT NOT NULL,
    readers TEXT NOT NULL
) STRICT;
CREATE TABLE documents (
    id BLOB PRIMARY KEY,
    source TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    at INTEGER NOT NULL,
    by TEXT NOT NULL
) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY,
    document BLOB NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    class INTEGER NOT NULL REFERENCES classes (id),
    words INTEGER NOT NULL,
    digest BLOB NOT NULL,
    seal BLOB NOT NULL,
    vector BLOB NOT NULL,
    UNIQUE (document, position)
) STRICT;
CREATE INDEX chunks_by_class ON chunks (class);
CREATE TABLE texts (
    chunk INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
    text TEXT NOT NULL
) STRICT;
CREATE TABLE terms (
    id INTEGER PRIMARY KEY,
    term TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE occurrences (
    term INTEGER NOT NULL REFERENCES terms (id),
    chunk INTEGER NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    times INTEGER NOT NULL,
    PRIMARY KEY (term, chunk)
) STRICT, WITHOUT ROWID;
CREATE INDEX occurrences_by_chunk ON occurrences (chunk);
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    by TEXT NOT NULL,
    what TEXT NOT NULL,
    source TEXT NOT NULL,
    document BLOB NOT NULL,
    class BLOB NOT NULL,
    previous BLOB NOT NULL,
    digest BLOB NOT NULL
) STRICT;
";

/// Why something could not be done with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite.
    #[error("{}: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Not a file that may be used.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// A bound would be passed.
    #[error("{0}")]
    TooMuch(String),
    /// A document or its name is not what it has to be.
    #[error("`{source_name}` {why}")]
    Document {
        /// Which.
        source_name: String,
        /// Why.
        why: String,
    },
}

/// A document: the first 128 bits of the digest of its source's name, written `d-<32 hex digits>`. It tells nothing of
/// how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentId([u8; 16]);

impl DocumentId {
    /// Of the document with this source.
    #[must_use]
    pub fn of(source: &str) -> Self {
        let digest = Digest::of("writ/v1/document", &[source.as_bytes()]);
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(digest.as_bytes()) {
            *to = *from;
        }
        Self(bytes)
    }

    /// From a row.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// For a row.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d-{}", hex::encode(self.0))
    }
}

impl FromStr for DocumentId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.strip_prefix("d-").and_then(|digits| hex::decode(digits).ok());
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        // One spelling of a name, so that comparing texts compares names.
        bytes.filter(|id| id.to_string() == text).ok_or("is no document: write `d-` and 32 hex digits")
    }
}

/// A chunk: its document and its place in it, written `d-…#0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChunkId {
    /// The document.
    pub document: DocumentId,
    /// The place, from 0.
    pub position: u32,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.document, self.position)
    }
}

/// What ties a chunk's text to its document, place and class.
pub(super) fn seal(id: ChunkId, source: &str, class: &[u8], text: &Digest) -> Digest {
    Digest::of(
        "writ/v1/chunk",
        &[id.document.as_bytes(), &id.position.to_be_bytes(), source.as_bytes(), class, text.as_bytes()],
    )
}

/// An open store.
pub struct Store {
    pub(super) path: PathBuf,
    pub(super) connection: Connection,
    pub(super) embedder: Box<dyn Embedder>,
    /// Device and inode of the file it is.
    file: (u64, u64),
}

impl Store {
    /// Opens a store for asking. The file is never written.
    ///
    /// # Errors
    /// [`StoreError`] if it is no store, was made with another embedder, or others than its owner could write it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        store.connection.busy_timeout(ASK_BUSY_TIMEOUT).map_err(|error| store.failed(error))?;
        store.check_kind()?;
        Ok(store)
    }

    /// Opens a store for writing.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_for_writing(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        store.check_kind()?;
        store
            .connection
            .execute_batch("PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA synchronous = FULL;")
            .map_err(|error| store.failed(error))?;
        Ok(store)
    }

    /// Makes a store if there is none, with mode 0600, and opens it for writing.
    ///
    /// # Errors
    /// As [`Store::open`], and if the file cannot be made.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match made {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(StoreError::File { path: path.to_owned(), why: error.to_string() }),
        }
        let mut store = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let embedder = store.embedder.name();
        let prepared = (|| {
            // Of two processes that make the same store, the second finds it made.
            let change =
                store.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            if change.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))? == 0 {
                change.execute_batch(SCHEMA)?;
                change.pragma_update(None, "application_id", APPLICATION_ID)?;
                change.pragma_update(None, "user_version", VERSION)?;
                change.execute("INSERT INTO settings VALUES ('embedder', ?1)", [embedder])?;
            }
            change.commit()
        })();
        prepared.map_err(|error| store.failed(error))?;
        drop(store);
        Self::open_for_writing(path)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let failed = |source| StoreError::Database { path: path.to_owned(), source };
        let file = check_file(path)?;
        // SQLite takes a path with a link anywhere in it for a link.
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let connection = Connection::open_with_flags(real, flags).map_err(failed)?;
        let prepare = || {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;")?;
            connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)
        };
        prepare().map_err(failed)?;
        Ok(Self { path: path.to_owned(), connection, embedder: Box::new(HashedGrams), file })
    }

    /// The store that the path names now: another one, if the file was replaced since. A node that went on with a file
    /// that was taken away would not hear of what changed (threat R02).
    pub(super) fn current(self) -> Result<Self, StoreError> {
        let is_same = check_file(&self.path)? == self.file || writ_common::red::off("R02-file");
        if is_same { Ok(self) } else { Self::open(&self.path) }
    }

    /// Lets no statement run past this moment.
    pub(super) fn stop_at(&mut self, deadline: Instant) -> Result<(), StoreError> {
        let look = move || Instant::now() >= deadline;
        let set = self.connection.progress_handler(STEPS_PER_LOOK, Some(look));
        set.map_err(|error| self.failed(error))
    }

    fn check_kind(&self) -> Result<(), StoreError> {
        let number = |name: &str| {
            self.connection
                .pragma_query_value(None, name, |row| row.get::<_, i32>(0))
                .map_err(|error| self.failed(error))
        };
        let no_store = |why: String| StoreError::File { path: self.path.clone(), why };
        if number("application_id")? != APPLICATION_ID {
            return Err(no_store("is no document store; make one with `writ documents ingest`".to_owned()));
        }
        let version = number("user_version")?;
        if version != VERSION {
            return Err(no_store(format!(
                "is a document store of version {version}, and this reads {VERSION}: ingest its documents into a new store"
            )));
        }
        let made_with: Option<String> = self
            .connection
            .query_row("SELECT value FROM settings WHERE name = 'embedder'", [], |row| row.get(0))
            .optional()
            .map_err(|error| self.failed(error))?;
        let made_with = made_with.unwrap_or_default();
        if made_with != self.embedder.name() {
            let why = format!(
                "has vectors of `{made_with}`, and this makes `{}`: ingest its documents into a new store",
                self.embedder.name()
            );
            return Err(no_store(why));
        }
        Ok(())
    }

    pub(super) fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }
}

/// Whoever can write the file decides who reads what, so only its owner may. Returns device and inode.
fn check_file(path: &Path) -> Result<(u64, u64), StoreError> {
    let fault = |why: String| Err(StoreError::File { path: path.to_owned(), why });
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return fault(error.to_string()),
    };
    if !metadata.is_file() {
        return fault("is no regular file".to_owned());
    }
    if metadata.mode() & 0o022 != 0 && !writ_common::red::off("F12-mode") {
        let mode = metadata.mode() & 0o7777;
        return fault(format!(
            "has mode {mode:04o}, so others can change who reads what; repair it with `chmod go-w {}`",
            path.display()
        ));
    }
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn f12_mode_a_store_that_others_can_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("documents.db");
        drop(Store::create(&file).unwrap());
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert!(Store::open(&file).is_ok());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
        let why = Store::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains("has mode 0620") && why.contains("chmod go-w"), "{why}");
        assert!(Store::open_for_writing(&file).is_err());
    }

    #[test]
    fn files_that_are_no_store_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("documents.db");
        assert!(Store::open(&file).is_err());
        assert!(Store::open(folder.path()).is_err());
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let why = Store::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains("is no document store"), "{why}");
        std::fs::remove_file(&file).unwrap();
        drop(Store::create(&file).unwrap());
        let link = folder.path().join("link.db");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(Store::open(&link).is_err());
        let changed = Connection::open(&file).unwrap();
        changed.execute_batch("UPDATE settings SET value = 'other-model'").unwrap();
        let why = Store::open(&file).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(why.contains("vectors of `other-model`"), "{why}");
    }

    #[test]
    fn a_reader_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("documents.db");
        drop(Store::create(&file).unwrap());
        let store = Store::open(&file).unwrap();
        assert!(store.connection.execute("DELETE FROM documents", []).is_err());
    }

    #[test]
    fn names_have_one_spelling() {
        let id = DocumentId::of("wiki/leave.md");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().to_uppercase().parse::<DocumentId>().is_err());
        assert!("d-00".parse::<DocumentId>().is_err());
        assert_eq!(ChunkId { document: id, position: 3 }.to_string(), format!("{id}#3"));
    }
}
