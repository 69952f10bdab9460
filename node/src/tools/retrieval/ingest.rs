//! What operators do to a store: put documents in, replace them, take them out. Each is one transaction, and one entry
//! of the store's log.
//!
//! The log is a chain: an entry names the digest of the one before it, so that a missing or changed entry shows as long
//! as somebody kept a later digest (`writ documents list` prints the last). Whoever can write the file can write the
//! whole log anew; that is the owner of the file, and nobody else.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, Statement, Transaction, TransactionBehavior, params};
use writ_common::{digest::Digest, label::Label, time::Timestamp};

use super::{
    access::{Class, Readers},
    catalogue::text,
    chunk::chunks,
    store::{CHUNKS_MAX, CLASSES_MAX, ChunkId, DocumentId, Store, StoreError, seal},
    words::words,
};

/// Largest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest name of a source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 512;

/// A document to be put in.
#[derive(Clone, Debug)]
pub struct NewDocument {
    /// Where it comes from; the name it is known by. A document with the same source is replaced.
    pub source: String,
    /// Its text.
    pub text: String,
    /// What reading any chunk of it adds to a task's label.
    pub label: Label,
    /// Who may read it.
    pub readers: Readers,
}

/// What an ingest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingested {
    /// The document.
    pub id: DocumentId,
    /// Plain SHA-256 of its text.
    pub digest: Digest,
    /// How many chunks it has.
    pub chunks: usize,
    /// What that changed.
    pub change: Change,
}

/// What an operator's act changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There was none with this source.
    Added,
    /// There was one with another text, label or access list, or with damaged chunks.
    Replaced,
    /// The very same was there.
    Unchanged,
}

impl Change {
    /// The word for people and the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Who did what, for the log.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// When.
    pub at: Timestamp,
    /// Who, as the operating system knows them.
    pub by: &'a str,
}

impl Store {
    /// Puts a document in, in the place of one with the same source. What it says of readers holds from the next
    /// question on.
    ///
    /// # Errors
    /// [`StoreError::Document`] if it is empty, too large, or no name or text; [`StoreError::TooMuch`] if the store is full.
    pub fn ingest(&mut self, document: &NewDocument, act: Act<'_>) -> Result<Ingested, StoreError> {
        check(document)?;
        let NewDocument { source, text, label, readers } = document;
        let id = DocumentId::of(source);
        let digest = Digest::plain(text.as_bytes());
        let pieces = chunks(text);
        let (class, label, readers) = Class::write(label, readers).map_err(|error| StoreError::Document {
            source_name: source.clone(),
            why: format!("has a label or readers that cannot be written: {error}"),
        })?;
        let rows: Vec<_> = (0u32..)
            .zip(&pieces)
            .map(|(position, text)| {
                let chunk = ChunkId { document: id, position };
                let digest = Digest::plain(text.as_bytes());
                let terms: Vec<String> = words(text).collect();
                let seal = seal(chunk, source, class.as_bytes(), &digest);
                (position, terms, digest, seal, self.embedder.embed(text).to_bytes(), text)
            })
            .collect();
        let (path, embedded) = (self.path.clone(), pieces.len());
        let failed = |source| StoreError::Database { path: path.clone(), source };
        // Taken before anything is read, so that nobody writes between the look and the change.
        let change =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let write = |change: &Transaction<'_>| -> rusqlite::Result<Result<Change, StoreError>> {
            let seals: Vec<[u8; 32]> = rows.iter().map(|(_, _, _, seal, ..)| *seal.as_bytes()).collect();
            let before = document_digest(change, id)?;
            if before == Some(digest) && is_sound(change, id, &seals)? {
                return Ok(Ok(Change::Unchanged));
            }
            delete(change, id)?;
            let class_row = class_row(change, &class, &label, &readers)?;
            let counted = |table: &str| {
                change.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0))
            };
            if counted("chunks")?.saturating_add(i64::try_from(rows.len()).unwrap_or(i64::MAX)) > CHUNKS_MAX {
                return Ok(Err(StoreError::TooMuch(format!(
                    "a store has at most {CHUNKS_MAX} chunks: use another"
                ))));
            }
            if counted("classes")? > CLASSES_MAX {
                let why = format!("a store has at most {CLASSES_MAX} different pairs of label and readers");
                return Ok(Err(StoreError::TooMuch(why)));
            }
            let at = i64::try_from(act.at.as_millis()).unwrap_or(i64::MAX);
            let bytes = i64::try_from(text.len()).unwrap_or(i64::MAX);
            change.execute(
                "INSERT INTO documents VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![id.as_bytes(), source, digest.as_bytes(), bytes, at, act.by],
            )?;
            let mut chunk = change.prepare(
                "INSERT INTO chunks (document, position, class, words, digest, seal, vector) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            let mut text_row = change.prepare("INSERT INTO texts VALUES (?1, ?2)")?;
            let mut index = Index::new(change)?;
            for (position, terms, digest, seal, vector, text) in &rows {
                let row = chunk.insert(params![
                    id.as_bytes(),
                    position,
                    class_row,
                    i64::try_from(terms.len()).unwrap_or(i64::MAX),
                    digest.as_bytes(),
                    seal.as_bytes(),
                    vector
                ])?;
                text_row.execute(params![row, text])?;
                index.add(row, terms)?;
            }
            let done = if before.is_some() { Change::Replaced } else { Change::Added };
            record(change, act, done.as_str(), source, Some(&digest), class.as_bytes())?;
            Ok(Ok(done))
        };
        let done = write(&change).map_err(&failed)??;
        change.commit().map_err(&failed)?;
        Ok(Ingested { id, digest, chunks: embedded, change: done })
    }

    /// Takes a document out; its text and words are overwritten in the file. Returns its source, or `None` if there is
    /// no such document.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn remove(&mut self, id: DocumentId, act: Act<'_>) -> Result<Option<String>, StoreError> {
        let path = self.path.clone();
        let failed = |source| StoreError::Database { path: path.clone(), source };
        let change =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let write = |change: &Transaction<'_>| -> rusqlite::Result<Option<String>> {
            let source: Option<String> = change
                .query_row("SELECT source FROM documents WHERE id = ?1", [id.as_bytes()], |row| row.get(0))
                .optional()?;
            if let Some(source) = &source {
                delete(change, id)?;
                record(change, act, "removed", source, None, &[])?;
            }
            Ok(source)
        };
        let source = write(&change).map_err(&failed)?;
        change.commit().map_err(&failed)?;
        Ok(source)
    }
}

fn check(document: &NewDocument) -> Result<(), StoreError> {
    let NewDocument { source, text, .. } = document;
    let fault =
        |why: String| Err(StoreError::Document { source_name: source.escape_default().to_string(), why });
    if source.is_empty() || source.len() > SOURCE_BYTES_MAX || source.chars().any(char::is_control) {
        return fault(format!("is no name: 1 to {SOURCE_BYTES_MAX} bytes without control characters"));
    }
    if text.len() > DOCUMENT_BYTES_MAX {
        return fault(format!("has {} bytes, more than {DOCUMENT_BYTES_MAX}: split it", text.len()));
    }
    if text.contains('\0') {
        return fault("holds a zero byte, so it is no text".to_owned());
    }
    if words(text).next().is_none() {
        return fault("holds no word".to_owned());
    }
    Ok(())
}

fn document_digest(change: &Transaction<'_>, id: DocumentId) -> rusqlite::Result<Option<Digest>> {
    let found = change
        .query_row("SELECT digest FROM documents WHERE id = ?1", [id.as_bytes()], |row| {
            row.get::<_, Vec<u8>>(0)
        })
        .optional()?;
    // A damaged digest is another one.
    Ok(found.map(|bytes| Digest::from_bytes(bytes.try_into().unwrap_or([0; 32]))))
}

/// Whether the chunks are as they would be written now.
fn is_sound(change: &Transaction<'_>, id: DocumentId, seals: &[[u8; 32]]) -> rusqlite::Result<bool> {
    let mut statement = change.prepare(
        "SELECT chunks.seal, chunks.digest, texts.text, classes.digest, classes.label, classes.readers \
         FROM chunks JOIN texts ON texts.chunk = chunks.id JOIN classes ON classes.id = chunks.class \
         WHERE document = ?1 ORDER BY position",
    )?;
    let mut rows = statement.query([id.as_bytes()])?;
    let mut seals = seals.iter();
    while let Some(row) = rows.next()? {
        let (seal, digest): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let class: Vec<u8> = row.get(3)?;
        let (text, label, readers) = (text(row, 2)?, text(row, 4)?, text(row, 5)?);
        let is_expected = seals.next().is_some_and(|expected| expected.as_slice() == seal);
        let is_text = Digest::plain(text.as_bytes()).as_bytes().as_slice() == digest;
        if !is_expected || !is_text || Class::read(&class, &label, &readers).readers.is_none() {
            return Ok(false);
        }
    }
    Ok(seals.next().is_none())
}

/// The row of a class; one that was damaged is put right.
fn class_row(change: &Transaction<'_>, class: &Digest, label: &str, readers: &str) -> rusqlite::Result<i64> {
    change.query_row(
        "INSERT INTO classes (digest, label, readers) VALUES (?1, ?2, ?3) \
         ON CONFLICT (digest) DO UPDATE SET label = excluded.label, readers = excluded.readers RETURNING id",
        params![class.as_bytes(), label, readers],
        |row| row.get(0),
    )
}

fn delete(change: &Transaction<'_>, id: DocumentId) -> rusqlite::Result<()> {
    let mut statement = change.prepare(
        "SELECT DISTINCT term FROM occurrences WHERE chunk IN (SELECT id FROM chunks WHERE document = ?1)",
    )?;
    let terms = statement.query_map([id.as_bytes()], |row| row.get(0))?;
    let terms: Vec<i64> = terms.collect::<rusqlite::Result<_>>()?;
    // Chunks, texts and occurrences go with it, by their foreign keys.
    change.execute("DELETE FROM documents WHERE id = ?1", [id.as_bytes()])?;
    // A word that is left over would tell what was there.
    let mut left_over = change.prepare(
        "DELETE FROM terms WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM occurrences WHERE term = ?1)",
    )?;
    for term in terms {
        left_over.execute([term])?;
    }
    change.execute(
        "DELETE FROM classes WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE class = classes.id)",
        [],
    )?;
    Ok(())
}

/// The index while a document is written.
struct Index<'a> {
    change: &'a Transaction<'a>,
    clear: Statement<'a>,
    add: Statement<'a>,
    /// The rows of words that came up already.
    terms: BTreeMap<String, i64>,
}

impl<'a> Index<'a> {
    fn new(change: &'a Transaction<'a>) -> rusqlite::Result<Self> {
        let clear = change.prepare("DELETE FROM occurrences WHERE chunk = ?1")?;
        let add = change.prepare("INSERT INTO occurrences VALUES (?1, ?2, ?3)")?;
        Ok(Self { change, clear, add, terms: BTreeMap::new() })
    }

    /// How often each word stands in a chunk.
    fn add(&mut self, chunk: i64, words: &[String]) -> rusqlite::Result<()> {
        // Rows are used again. What a file that was meddled with still says of this one is not about this chunk.
        self.clear.execute([chunk])?;
        let mut times: BTreeMap<&str, u32> = BTreeMap::new();
        for word in words {
            *times.entry(word).or_default() += 1;
        }
        for (word, times) in times {
            let term = self.term(word)?;
            self.add.execute(params![term, chunk, times])?;
        }
        Ok(())
    }

    fn term(&mut self, word: &str) -> rusqlite::Result<i64> {
        if let Some(known) = self.terms.get(word) {
            return Ok(*known);
        }
        self.change
            .prepare_cached("INSERT INTO terms (term) VALUES (?1) ON CONFLICT DO NOTHING")?
            .execute([word])?;
        let mut statement = self.change.prepare_cached("SELECT id FROM terms WHERE term = ?1")?;
        let term = statement.query_row([word], |row| row.get(0))?;
        self.terms.insert(word.to_owned(), term);
        Ok(term)
    }
}

fn record(
    change: &Transaction<'_>,
    act: Act<'_>,
    what: &str,
    source: &str,
    document: Option<&Digest>,
    class: &[u8],
) -> rusqlite::Result<()> {
    let last: Option<(i64, Vec<u8>)> = change
        .query_row("SELECT sequence, digest FROM events ORDER BY sequence DESC LIMIT 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .optional()?;
    let (sequence, previous) = last.unwrap_or((0, vec![0; 32]));
    let sequence = sequence + 1;
    let at = i64::try_from(act.at.as_millis()).unwrap_or(i64::MAX);
    let document = document.map(|digest| digest.as_bytes().to_vec()).unwrap_or_default();
    let digest = event_digest(sequence, at, act.by, what, source, &document, class, &previous);
    change.execute(
        "INSERT INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![sequence, at, act.by, what, source, document, class, previous, digest.as_bytes()],
    )?;
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the columns of one row, in their order")]
pub(super) fn event_digest(
    sequence: i64,
    at: i64,
    by: &str,
    what: &str,
    source: &str,
    document: &[u8],
    class: &[u8],
    previous: &[u8],
) -> Digest {
    Digest::of(
        "writ/v1/document-event",
        &[
            &sequence.to_be_bytes(),
            &at.to_be_bytes(),
            by.as_bytes(),
            what.as_bytes(),
            source.as_bytes(),
            document,
            class,
            previous,
        ],
    )
}
