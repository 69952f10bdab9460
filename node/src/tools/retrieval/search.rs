//! Questions: `search` and `read`, over what the asker may see and over nothing else.
//!
//! Each question is one read transaction: classes, counts and texts are of one moment, and what an operator changed
//! before it holds (threat R02); nothing is remembered from one question to the next. First every class is asked
//! whether it admits the asker. From there on every statement that touches chunks is limited to the classes that do, and
//! of where words stand only what is in those chunks is kept, so that what is hidden is in no count, no score and no
//! order. A question takes longer the more chunks there are, hidden ones too; that is a covert channel Writ does not
//! close.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension as _, Transaction};
use writ_common::{digest::Digest, json::Value, label::Label};

use super::{
    access::{Asker, Class},
    catalogue::{damage_of, digest, text},
    rank::{Occurrences, Visible, rank},
    store::{ChunkId, DocumentId, Store, StoreError},
    words::words,
};

/// Most words of a query that count.
pub const QUERY_WORDS_MAX: usize = 32;
/// Most chunks of one answer; each has its place in the record's manifest.
pub const ANSWER_CHUNKS_MAX: usize = 32;
/// Most bytes of all texts of one answer.
pub const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// A chunk that is given to the asker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundChunk {
    /// Its name.
    pub id: ChunkId,
    /// Where its document came from.
    pub source: String,
    /// Its text.
    pub text: String,
    /// Plain SHA-256 of the text.
    pub digest: Digest,
    /// Its label.
    pub label: Label,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The chunks, best first, or in the order of the document.
    pub chunks: Vec<FoundChunk>,
    /// Chunks the asker may see that are not given because they are damaged.
    pub damaged: Vec<ChunkId>,
    /// Where the document goes on, if it was read in part.
    pub next: Option<ChunkId>,
}

impl Found {
    /// The join of what is given: one secret chunk makes the answer secret, one that outsiders wrote makes it
    /// untrusted (threats F12, M11).
    #[must_use]
    pub fn label(&self) -> Label {
        if writ_common::red::off("F12") {
            return self.chunks.first().map_or(Label::bottom(), |chunk| chunk.label.clone());
        }
        self.chunks.iter().fold(Label::bottom(), |label, chunk| label.join(&chunk.label))
    }

    /// The digests of the texts, in order.
    #[must_use]
    pub fn manifest(&self) -> Vec<Digest> {
        self.chunks.iter().map(|chunk| chunk.digest).collect()
    }

    /// As the caller gets it. Every chunk says what it is and where it is from.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let chunks = self.chunks.iter().map(|chunk| {
            let label: Value = [
                ("integrity", Value::from(chunk.label.integrity.as_str())),
                ("tags", Value::Array(chunk.label.names().into_iter().map(Value::from).collect())),
            ]
            .into_iter()
            .collect();
            [
                ("chunk", Value::from(chunk.id.to_string())),
                ("digest", Value::from(chunk.digest.to_string())),
                ("document", Value::from(chunk.id.document.to_string())),
                ("label", label),
                ("source", Value::from(chunk.source.as_str())),
                ("text", Value::from(chunk.text.as_str())),
            ]
            .into_iter()
            .collect()
        });
        let mut members = vec![("chunks", Value::Array(chunks.collect()))];
        if !self.damaged.is_empty() {
            let names = self.damaged.iter().map(|id| Value::from(id.to_string()));
            members.push(("damaged", Value::Array(names.collect())));
        }
        if let Some(next) = self.next {
            members.push(("next", Value::from(next.to_string())));
        }
        members.into_iter().collect()
    }
}

/// What is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A document from its first chunk on.
    Document(DocumentId),
    /// A document from this chunk on.
    From(ChunkId),
}

impl std::str::FromStr for Wanted {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some((document, position)) = text.split_once('#') else {
            return text.parse().map(Self::Document);
        };
        let (document, number) = (document.parse()?, position.parse::<u32>().ok());
        let position = number.filter(|number| number.to_string() == position);
        let position = position.ok_or("is no chunk: write the document, `#` and a number")?;
        Ok(Self::From(ChunkId { document, position }))
    }
}

/// The chunks that fit a query best, at most `limit`, of those the asker may see.
///
/// # Errors
/// [`StoreError::Database`].
pub fn search(store: &Store, asker: &Asker, query: &str, limit: usize) -> Result<Found, StoreError> {
    let ask = || {
        let question = Question::new(store, asker)?;
        let query_words: BTreeSet<String> = words(query).take(QUERY_WORDS_MAX).collect();
        let visible = question.visible(&store.embedder.embed(query))?;
        let mut occurrences = Vec::new();
        for word in &query_words {
            occurrences.push(question.occurrences(word, &visible)?);
        }
        let best = rank(&visible, &occurrences, store.embedder.similarity_min());
        let mut found = Found::default();
        let mut bytes = 0;
        for row in best {
            if found.chunks.len() == limit.min(ANSWER_CHUNKS_MAX) || found.damaged.len() == ANSWER_CHUNKS_MAX
            {
                break;
            }
            question.give(row, &mut found, &mut bytes)?;
            if bytes > ANSWER_BYTES_MAX {
                found.chunks.pop();
                break;
            }
        }
        Ok(found)
    };
    ask().map_err(|error| store.failed(error))
}

/// The chunks of a document, in order, of those the asker may see. A document with none is as one that is not there.
///
/// # Errors
/// [`StoreError::Database`].
pub fn read(store: &Store, asker: &Asker, wanted: Wanted) -> Result<Found, StoreError> {
    let (document, from) = match wanted {
        Wanted::Document(document) => (document, 0),
        Wanted::From(chunk) => (chunk.document, chunk.position),
    };
    let ask = || {
        let question = Question::new(store, asker)?;
        let mut statement = question.moment.prepare(
            "SELECT id, position FROM chunks WHERE document = ?1 AND position >= ?2 \
             AND class IN (SELECT value FROM json_each(?3)) ORDER BY position",
        )?;
        let mut rows = statement.query(rusqlite::params![document.as_bytes(), from, question.admitted])?;
        let mut found = Found::default();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let next = ChunkId { document, position: row.get(1)? };
            if found.chunks.len().max(found.damaged.len()) == ANSWER_CHUNKS_MAX {
                found.next = Some(next);
                break;
            }
            question.give(row.get(0)?, &mut found, &mut bytes)?;
            if bytes > ANSWER_BYTES_MAX {
                found.chunks.pop();
                found.next = Some(next);
                break;
            }
        }
        Ok(found)
    };
    ask().map_err(|error| store.failed(error))
}

/// One asker at one moment.
struct Question<'a> {
    moment: Transaction<'a>,
    classes: BTreeMap<i64, Label>,
    /// The rows of the classes that admit the asker, as a JSON array, which is how SQLite takes a list.
    admitted: String,
}

impl<'a> Question<'a> {
    fn new(store: &'a Store, asker: &Asker) -> rusqlite::Result<Self> {
        let moment = store.connection.unchecked_transaction()?;
        let mut classes = BTreeMap::new();
        {
            let mut statement = moment.prepare("SELECT id, digest, label, readers FROM classes")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (digest, label, readers): (Vec<u8>, String, String) =
                    (row.get(1)?, text(row, 2)?, text(row, 3)?);
                let class = Class::read(&digest, &label, &readers);
                if class.admits(asker) {
                    classes.insert(row.get(0)?, class.label);
                }
            }
        }
        let rows: Vec<String> = classes.keys().map(ToString::to_string).collect();
        let admitted = format!("[{}]", rows.join(","));
        Ok(Self { moment, classes, admitted })
    }

    /// Every chunk the asker may see, by row, with its similarity to the query.
    fn visible(&self, query: &super::embed::Vector) -> rusqlite::Result<Vec<Visible>> {
        let query = query.direction();
        let mut statement = self.moment.prepare(
            "SELECT id, document, position, words, vector FROM chunks \
             WHERE class IN (SELECT value FROM json_each(?1)) ORDER BY id",
        )?;
        let rows = statement.query_map([&self.admitted], |row| {
            let vector = row.get_ref(4)?;
            Ok(Visible {
                row: row.get(0)?,
                place: (row.get(1)?, row.get(2)?),
                words: row.get(3)?,
                similarity: query.similarity(vector.as_blob().unwrap_or_default()),
            })
        })?;
        rows.collect()
    }

    /// In which of the chunks the asker may see a word occurs, and how often. Both are in the order of rows, so that one
    /// pass over both finds what is in both; looking each chunk's class up would take longer than all the rest.
    fn occurrences(&self, word: &str, visible: &[Visible]) -> rusqlite::Result<Occurrences> {
        let mut statement = self.moment.prepare_cached(
            "SELECT chunk, times FROM occurrences WHERE term = (SELECT id FROM terms WHERE term = ?1) ORDER BY chunk",
        )?;
        let mut rows = statement.query([word])?;
        let mut visible = visible.iter().map(|chunk| chunk.row).peekable();
        let mut found = Occurrences::new();
        while let Some(row) = rows.next()? {
            let chunk: i64 = row.get(0)?;
            while visible.next_if(|row| *row < chunk).is_some() {}
            // Red: the counts of the whole index, as FTS5's bm25() has them.
            if visible.peek() == Some(&chunk) || writ_common::red::off("F12-counts") {
                found.push((chunk, row.get(1)?));
            }
        }
        Ok(found)
    }

    /// Adds a chunk to the answer, or to what is damaged.
    fn give(&self, row: i64, found: &mut Found, bytes: &mut usize) -> rusqlite::Result<()> {
        let given = self
            .moment
            .query_row(
                "SELECT document, position, class, chunks.digest, seal, text, source, classes.digest \
                 FROM chunks JOIN classes ON classes.id = chunks.class \
                 LEFT JOIN texts ON texts.chunk = chunks.id LEFT JOIN documents ON documents.id = chunks.document \
                 WHERE chunks.id = ?1 AND class IN (SELECT value FROM json_each(?2))",
                rusqlite::params![row, self.admitted],
                |row| {
                    let id = ChunkId { document: DocumentId::from_bytes(row.get(0)?), position: row.get(1)? };
                    let (stored, sealed) = (digest(row.get(3)?), digest(row.get(4)?));
                    let (text, source) = (text(row, 5)?, text(row, 6)?);
                    let class_digest: Vec<u8> = row.get(7)?;
                    let damage = damage_of(id, &source, &class_digest, &text, stored, sealed);
                    // A label that is not there is top, whatever made it go.
                    let label = self.classes.get(&row.get(2)?).cloned().unwrap_or_else(Label::top);
                    Ok((FoundChunk { id, source, text, digest: stored, label }, damage))
                },
            )
            .optional()?;
        match given {
            Some((chunk, None)) => {
                *bytes += chunk.text.len();
                found.chunks.push(chunk);
            }
            Some((chunk, Some(_))) => found.damaged.push(chunk.id),
            None => {}
        }
        Ok(())
    }
}
