//! What is in a store, for operators: everything, whoever may read it, and whether it is whole.

use rusqlite::OptionalExtension as _;
use writ_common::{digest::Digest, label::Label, time::Timestamp};

use super::{
    access::{Class, Readers},
    ingest::event_digest,
    store::{ChunkId, DocumentId, Store, StoreError, seal},
};

/// A document, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentInfo {
    /// Its name.
    pub id: DocumentId,
    /// Where it came from.
    pub source: String,
    /// Plain SHA-256 of the text that was put in.
    pub digest: Digest,
    /// Size of that text.
    pub bytes: u64,
    /// When it was put in.
    pub at: Timestamp,
    /// By whom.
    pub by: String,
    /// Its chunks, in order.
    pub chunks: Vec<ChunkInfo>,
}

/// A chunk, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkInfo {
    /// Its name.
    pub id: ChunkId,
    /// Plain SHA-256 of its text.
    pub digest: Digest,
    /// Its label; top if it cannot be read.
    pub label: Label,
    /// Who may read it; nobody if that cannot be read.
    pub readers: Option<Readers>,
    /// Its text.
    pub text: String,
    /// What is wrong with it, if something is; such a chunk is not given to anybody.
    pub damage: Option<&'static str>,
}

/// A whole store in two digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// How many documents.
    pub documents: usize,
    /// How many chunks.
    pub chunks: usize,
    /// Over all documents and chunks with their labels and access lists: two stores with the same one hold the same.
    pub digest: Digest,
    /// How many acts the log holds.
    pub events: u64,
    /// The digest of the last of them; zeros if there is none.
    pub log: Digest,
    /// Whether every entry follows from the one before it.
    pub log_is_whole: bool,
}

impl Store {
    /// Every document, by source.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn documents(&self) -> Result<Vec<DocumentInfo>, StoreError> {
        let read = || {
            // One transaction, so that the list is of one moment.
            let moment = self.connection.unchecked_transaction()?;
            let mut statement = moment.prepare("SELECT id FROM documents ORDER BY source")?;
            let ids =
                statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<[u8; 16]>>>()?;
            ids.into_iter()
                .filter_map(|id| self.read_document(DocumentId::from_bytes(id)).transpose())
                .collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| self.failed(error))
    }

    /// One document, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn document(&self, id: DocumentId) -> Result<Option<DocumentInfo>, StoreError> {
        self.read_document(id).map_err(|error| self.failed(error))
    }

    /// The manifest of these documents and the log.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn manifest(&self, documents: &[DocumentInfo]) -> Result<Manifest, StoreError> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for document in documents {
            parts.push(document.id.as_bytes().to_vec());
            parts.push(document.digest.as_bytes().to_vec());
            for chunk in &document.chunks {
                let readers = chunk.readers.as_ref().map(ToString::to_string).unwrap_or_default();
                parts.push(chunk.digest.as_bytes().to_vec());
                parts.push(chunk.label.to_string().into_bytes());
                parts.push(readers.into_bytes());
            }
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let (events, log, log_is_whole) = self.read_log().map_err(|error| self.failed(error))?;
        Ok(Manifest {
            documents: documents.len(),
            chunks: documents.iter().map(|document| document.chunks.len()).sum(),
            digest: Digest::of("writ/v1/document-store", &parts),
            events,
            log,
            log_is_whole,
        })
    }

    fn read_document(&self, id: DocumentId) -> rusqlite::Result<Option<DocumentInfo>> {
        let found = self
            .connection
            .query_row(
                "SELECT source, digest, bytes, at, by FROM documents WHERE id = ?1",
                [id.as_bytes()],
                |row| {
                    Ok(DocumentInfo {
                        id,
                        source: row.get(0)?,
                        digest: digest(row.get(1)?),
                        bytes: row.get::<_, i64>(2)?.cast_unsigned(),
                        at: Timestamp::from_millis(row.get::<_, i64>(3)?.cast_unsigned()),
                        by: row.get(4)?,
                        chunks: Vec::new(),
                    })
                },
            )
            .optional()?;
        let Some(mut document) = found else { return Ok(None) };
        // Left joins: a chunk whose text or class is gone is damaged, and not missing.
        let mut statement = self.connection.prepare(
            "SELECT position, chunks.digest, seal, text, classes.digest, label, readers FROM chunks \
             LEFT JOIN texts ON texts.chunk = chunks.id LEFT JOIN classes ON classes.id = chunks.class \
             WHERE document = ?1 ORDER BY position",
        )?;
        let mut rows = statement.query([id.as_bytes()])?;
        while let Some(row) = rows.next()? {
            let chunk = ChunkId { document: id, position: row.get(0)? };
            let (stored, sealed) = (digest(row.get(1)?), digest(row.get(2)?));
            let class_digest: Vec<u8> = row.get::<_, Option<_>>(4)?.unwrap_or_default();
            let (text, label, readers) = (text(row, 3)?, text(row, 5)?, text(row, 6)?);
            let class = Class::read(&class_digest, &label, &readers);
            let damage = if class.readers.is_none() {
                Some("its label or access list cannot be read")
            } else {
                damage_of(chunk, &document.source, &class_digest, &text, stored, sealed)
            };
            let Class { label, readers } = class;
            document.chunks.push(ChunkInfo { id: chunk, digest: stored, label, readers, text, damage });
        }
        Ok(Some(document))
    }

    fn read_log(&self) -> rusqlite::Result<(u64, Digest, bool)> {
        let mut statement = self.connection.prepare(
            "SELECT sequence, at, by, what, source, document, class, previous, digest FROM events ORDER BY sequence",
        )?;
        let mut rows = statement.query([])?;
        let (mut events, mut last, mut is_whole) = (0u64, Digest::from_bytes([0; 32]), true);
        while let Some(row) = rows.next()? {
            events += 1;
            let sequence: i64 = row.get(0)?;
            let (by, what, source): (String, String, String) = (row.get(2)?, row.get(3)?, row.get(4)?);
            let (document, class, previous): (Vec<u8>, Vec<u8>, Vec<u8>) =
                (row.get(5)?, row.get(6)?, row.get(7)?);
            let expected =
                event_digest(sequence, row.get(1)?, &by, &what, &source, &document, &class, &previous);
            let stored = digest(row.get(8)?);
            is_whole &=
                previous == last.as_bytes() && stored == expected && sequence.cast_unsigned() == events;
            last = stored;
        }
        Ok((events, last, is_whole))
    }
}

/// What is wrong with a chunk, if something is.
pub(super) fn damage_of(
    id: ChunkId,
    source: &str,
    class: &[u8],
    text: &str,
    digest: Digest,
    sealed: Digest,
) -> Option<&'static str> {
    if writ_common::red::off("F12-digest") {
        return None;
    }
    if Digest::plain(text.as_bytes()) != digest {
        return Some("its text is not the one that was put in");
    }
    (seal(id, source, class, &digest) != sealed)
        .then_some("its document, source or class is not the one it was put in with")
}

/// A digest from a row; one of another length equals none.
pub(super) fn digest(bytes: Vec<u8>) -> Digest {
    Digest::from_bytes(bytes.try_into().unwrap_or([0; 32]))
}

/// A text from a row, empty if it is gone. Bytes that are no text are replaced, so that its digest is another one; as an
/// error they would make every question fail that comes by.
pub(super) fn text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    let bytes = row.get_ref(column)?.as_bytes_or_null().unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned())
}
