//! A segment: messages of one class, one JSON line each, in the order of the stream, compressed by gzip.

use std::{
    io::{BufRead as _, BufReader, Cursor, Read as _, Take, Write as _},
    num::NonZeroU64,
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, GzBuilder, read::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize};
use writ_bus::StoredMessage;
use writ_common::{
    digest::Digest,
    ids::{PartId, TenantId},
    time::Timestamp,
};

use super::{
    Damage,
    manifest::{Class, Manifest, Segment, rfc3339},
};

/// A message of the stream as an archive keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its stream sequence.
    pub sequence: u64,
    /// When the server stored it, in whole milliseconds.
    pub at: Timestamp,
    /// Its subject.
    pub subject: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl From<StoredMessage> for Message {
    fn from(message: StoredMessage) -> Self {
        let StoredMessage { subject, sequence, at, payload, pending: _ } = message;
        Self { sequence, at, subject, payload: payload.into() }
    }
}

impl From<Message> for StoredMessage {
    fn from(message: Message) -> Self {
        let Message { sequence, at, subject, payload } = message;
        Self { subject, sequence, at, payload: payload.into(), pending: 0 }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    sequence: u64,
    #[serde(with = "rfc3339")]
    at: Timestamp,
    subject: String,
    payload: String,
}

/// When a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Before its lines would have more bytes.
    pub lines_bytes: usize,
    /// After so many messages.
    pub messages: u64,
}

impl Default for SegmentLimits {
    fn default() -> Self {
        Self { lines_bytes: 64 * 1024 * 1024, messages: 100_000 }
    }
}

/// Most bytes that are ever unpacked from one segment. One message may be larger than a segment is meant to be: NATS
/// takes 64 MiB at most, which are 86 MiB as a line.
const LINES_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Writes one segment.
pub struct SegmentWriter {
    class: Class,
    number: u32,
    encoder: GzEncoder<Vec<u8>>,
    lines_bytes: usize,
    spans: Option<Spans>,
}

struct Spans {
    messages: NonZeroU64,
    first: u64,
    last: u64,
    from: Timestamp,
    to: Timestamp,
}

impl SegmentWriter {
    /// An empty one.
    #[must_use]
    pub fn new(class: Class, number: u32) -> Self {
        // Without a time and a name the same messages are the same bytes, so that a second attempt finds its own.
        let encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
        Self { class, number, encoder, lines_bytes: 0, spans: None }
    }

    /// Its number within the class.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Adds a message, if it still fits.
    ///
    /// # Errors
    /// If it cannot be written as a line.
    pub fn add(&mut self, message: &Message, limits: &SegmentLimits) -> Result<Added> {
        let line = Line {
            sequence: message.sequence,
            at: message.at,
            subject: message.subject.clone(),
            payload: STANDARD.encode(&message.payload),
        };
        let mut line = serde_json::to_vec(&line)?;
        line.push(b'\n');
        let lines_bytes = self.lines_bytes.saturating_add(line.len());
        let spans = match &self.spans {
            None => Spans {
                messages: NonZeroU64::MIN,
                first: message.sequence,
                last: message.sequence,
                from: message.at,
                to: message.at,
            },
            Some(spans) if spans.messages.get() >= limits.messages || lines_bytes > limits.lines_bytes => {
                return Ok(Added::Full);
            }
            // A server's clock may be set back between two messages.
            Some(spans) => Spans {
                messages: spans.messages.saturating_add(1),
                first: spans.first,
                last: message.sequence,
                from: spans.from.min(message.at),
                to: spans.to.max(message.at),
            },
        };
        self.encoder.write_all(&line)?;
        (self.lines_bytes, self.spans) = (lines_bytes, Some(spans));
        Ok(Added::Yes)
    }

    /// What the manifest says of it, and its file; nothing if no message was added.
    ///
    /// # Errors
    /// If it cannot be compressed.
    pub fn seal(self) -> Result<Option<(Segment, Vec<u8>)>> {
        let Some(Spans { messages, first, last, from, to }) = self.spans else { return Ok(None) };
        let file = self.encoder.finish()?;
        let segment = Segment {
            class: self.class,
            name: Segment::file(self.class, self.number),
            digest: Digest::plain(&file),
            bytes: u64::try_from(file.len()).context("a segment's size")?,
            messages,
            first,
            last,
            from,
            to,
        };
        Ok(Some((segment, file)))
    }
}

/// What came of adding a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// It does not fit any more; it belongs into the next segment.
    Full,
    /// It is in.
    Yes,
}

/// Reads one segment, whose file is checked before the first message is handed out.
pub struct SegmentReader {
    file: String,
    tenant: TenantId,
    part: PartId,
    segment: Segment,
    lines: BufReader<Take<GzDecoder<Cursor<Vec<u8>>>>>,
    line: Vec<u8>,
    messages: u64,
    last: u64,
    from: Timestamp,
    to: Timestamp,
}

impl SegmentReader {
    /// Opens the bytes of a file as a segment the manifest speaks of; `file` is how the store names it.
    ///
    /// # Errors
    /// [`Damage`] if it is another one.
    pub fn open(file: String, manifest: &Manifest, segment: Segment, bytes: Vec<u8>) -> Result<Self, Damage> {
        let (is, listed) = (u64::try_from(bytes.len()).unwrap_or(u64::MAX), segment.bytes);
        if is != listed {
            return Err(Damage::of(file, format!("has {is} bytes instead of {listed}")));
        }
        let digest = Digest::plain(&bytes);
        if digest != segment.digest {
            let what =
                format!("is not the file that was written: its SHA-256 is {digest}, not {}", segment.digest);
            return Err(Damage::of(file, what));
        }
        // What is one byte more than the bound shows as too much, and never fills the memory.
        let lines = BufReader::new(GzDecoder::new(Cursor::new(bytes)).take(LINES_BYTES_MAX + 1));
        let (from, to) = (segment.to, segment.from);
        let (tenant, part) = (manifest.tenant.clone(), manifest.part.clone());
        Ok(Self { file, tenant, part, segment, lines, line: Vec::new(), messages: 0, last: 0, from, to })
    }

    /// The segment it reads.
    #[must_use]
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The next message; nothing at the end.
    ///
    /// # Errors
    /// [`Damage`] if the segment does not hold what the manifest says. What was handed out before is not to be
    /// relied on either.
    #[expect(clippy::should_implement_trait, reason = "it ends at the first error, as an iterator does not")]
    pub fn next(&mut self) -> Result<Option<Message>, Damage> {
        self.line.clear();
        let read = self.lines.read_until(b'\n', &mut self.line);
        let bytes = read.map_err(|error| self.damage(format!("cannot be unpacked ({error})")))?;
        if self.lines.get_ref().limit() == 0 {
            return Err(self.damage(format!("unpacks to more than {LINES_BYTES_MAX} bytes")));
        }
        if bytes == 0 {
            return self.check_end().map(|()| None);
        }
        let number = self.messages + 1;
        let line: Line = serde_json::from_slice(&self.line)
            .map_err(|error| self.damage(format!("line {number} is no message ({error})")))?;
        let payload = STANDARD.decode(&line.payload);
        let payload =
            payload.map_err(|_| self.damage(format!("the payload of line {number} is not base64")))?;
        let Segment { class, first, last, messages, .. } = self.segment;
        let is_next = if self.messages == 0 { line.sequence == first } else { line.sequence > self.last };
        if !is_next || line.sequence > last || number > messages.get() {
            let what = format!("line {number} is message {}, which does not belong there", line.sequence);
            return Err(self.damage(what));
        }
        if Class::of(&line.subject, &self.tenant, &self.part) != Some(class) {
            return Err(self.damage(format!("line {number} is no message of class {class} of this part")));
        }
        (self.messages, self.last) = (number, line.sequence);
        (self.from, self.to) = (self.from.min(line.at), self.to.max(line.at));
        Ok(Some(Message { sequence: line.sequence, at: line.at, subject: line.subject, payload }))
    }

    fn check_end(&self) -> Result<(), Damage> {
        let Segment { messages, last, from, to, .. } = self.segment;
        if self.messages != messages.get() || self.last != last {
            let what = format!(
                "ends with message {} after {} messages, and should with {last} after {messages}",
                self.last, self.messages
            );
            return Err(self.damage(what));
        }
        if (self.from, self.to) != (from, to) {
            let what = format!(
                "its messages are from {} to {}, and should be from {from} to {to}",
                self.from, self.to
            );
            return Err(self.damage(what));
        }
        Ok(())
    }

    fn damage(&self, what: String) -> Damage {
        Damage::of(&self.file, what)
    }
}
