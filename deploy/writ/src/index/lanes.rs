//! Messages of several parts in one order: those of a part as its stream has them, and parts against each other by when
//! the bus stored what comes next in each.
//!
//! What comes next depends on nothing but the messages themselves, so that a fill that was stopped anywhere goes on in
//! the same order.

use std::{collections::VecDeque, mem};

use anyhow::{Result, ensure};
use writ_bus::Tail;
use writ_common::{digest::Digest, ids::PartId, subjects::Subject, time::Timestamp};

use super::{
    export::ExportLane,
    fill::Filler,
    history::ControlHistory,
    source::{Raw, take_all},
};
use crate::{
    archive::{
        manifest::Class,
        read::{Archived, Item, Messages},
        store::Store,
    },
    operator::Operator,
};

/// Messages whose signatures are checked together.
const BATCH: usize = 4_096;
/// Messages of a part that are read at once while others wait: a stream's server is not kept waiting for long.
const CHUNK: usize = 8_192;

/// The messages of one part, from where the index stopped.
pub struct Lane<'a> {
    part: PartId,
    read: VecDeque<Raw>,
    /// Nothing that is not read yet was stored before.
    not_before: Timestamp,
    rest: Rest<'a>,
    is_read: bool,
}

enum Rest<'a> {
    Archive(ArchiveLane<'a>),
    Export(ExportLane),
    Stream(Box<StreamLane<'a>>),
}

impl<'a> Lane<'a> {
    /// A part that was put away. `last` is the message of it that was taken last, by sequence and plain SHA-256.
    #[must_use]
    pub fn of_archive(
        store: &'a Store,
        archived: &'a Archived,
        next: u64,
        last: Option<(u64, Digest)>,
    ) -> Self {
        let segments = archived.manifest.segments.iter();
        let not_before = segments.map(|segment| segment.from).min().unwrap_or_default();
        let rest = Rest::Archive(ArchiveLane { store, archived, messages: None, next, last });
        Self { not_before, ..Self::of(archived.manifest.part.clone(), rest) }
    }

    /// A part of an export.
    #[must_use]
    pub fn of_export(part: PartId, lane: ExportLane) -> Self {
        Self::of(part, Rest::Export(lane))
    }

    /// A part that has a stream, up to the message `last` and to what was stored at `until`.
    #[must_use]
    pub fn of_stream(
        operator: &'a Operator,
        part: PartId,
        next: u64,
        last: u64,
        until: Option<Timestamp>,
    ) -> Self {
        let lane = StreamLane {
            operator,
            part: part.clone(),
            next,
            last,
            until,
            answers: None,
            tail: None,
            is_alone: false,
        };
        Self::of(part, Rest::Stream(Box::new(lane)))
    }

    fn of(part: PartId, rest: Rest<'a>) -> Self {
        Self { part, read: VecDeque::new(), not_before: Timestamp::default(), rest, is_read: false }
    }

    fn earliest(&self) -> Timestamp {
        self.read.front().map_or(self.not_before, |raw| raw.at)
    }

    async fn read_on(&mut self) -> Result<()> {
        // From now on it is read as soon as nothing of it is left: clocks of servers step back.
        self.not_before = Timestamp::default();
        let read = match &mut self.rest {
            Rest::Archive(lane) => lane.read().await?,
            Rest::Export(lane) => lane.read(CHUNK)?,
            Rest::Stream(lane) => lane.read().await?,
        };
        self.is_read = read.is_empty();
        self.read.extend(read);
        Ok(())
    }

    /// The sequence before which everything was looked at, once it is read; none for an export, which does not say.
    fn end(&self) -> Option<u64> {
        match &self.rest {
            Rest::Archive(lane) => Some(lane.archived.manifest.stream.last.saturating_add(1)),
            Rest::Export(_) => None,
            Rest::Stream(lane) => Some(lane.last.saturating_add(1)),
        }
    }
}

/// Takes in all that is in some parts, in one order. Parts that were stored at the same moment come in the order given.
///
/// # Errors
/// If one of them cannot be read, or as [`Filler::take`].
pub async fn take_merged(
    filler: &mut Filler,
    mut lanes: Vec<Lane<'_>>,
    history: &ControlHistory,
) -> Result<()> {
    if let [Lane { rest: Rest::Stream(lane), .. }] = lanes.as_mut_slice() {
        lane.is_alone = true;
    }
    let mut batch = Vec::new();
    loop {
        let open = lanes.iter_mut().filter(|lane| !(lane.is_read && lane.read.is_empty()));
        let Some(lane) = open.min_by_key(|lane| lane.earliest()) else { break };
        match lane.read.pop_front() {
            Some(raw) => batch.push(raw),
            None => lane.read_on().await?,
        }
        if batch.len() >= BATCH {
            take_all(filler, &mem::take(&mut batch), history)?;
        }
    }
    take_all(filler, &batch, history)?;
    for lane in lanes {
        let end = lane.end();
        end.into_iter().for_each(|end| filler.say(&lane.part, None, Vec::new(), end));
    }
    Ok(())
}

/// Whether the index takes messages of a subject: records and approvers' answers.
fn is_wanted(subject: &str) -> bool {
    match Subject::parse(subject) {
        Ok((_, Subject::ApprovalAnswer { .. })) => true,
        // As the filter of a tail: what stands among the records and is none is a fault and not left out.
        _ => subject.split('.').nth(3) == Some("audit"),
    }
}

/// The messages of a part in an archive; one segment of each class is in memory.
struct ArchiveLane<'a> {
    store: &'a Store,
    archived: &'a Archived,
    messages: Option<Messages<'a>>,
    next: u64,
    last: Option<(u64, Digest)>,
}

impl ArchiveLane<'_> {
    async fn read(&mut self) -> Result<Vec<Raw>> {
        let (archived, store) = (self.archived, self.store);
        let classes = [Class::Content, Class::Records];
        let messages = self.messages.get_or_insert_with(|| archived.messages(store, &classes, None));
        let part = &archived.manifest.part;
        let mut read = Vec::new();
        while read.len() < CHUNK
            && let Some(item) = messages.next().await?
        {
            // What was deleted is told from the manifest.
            let Item::Message(message) = item else { continue };
            if let Some((sequence, digest)) = self.last
                && sequence == message.sequence
            {
                ensure!(
                    Digest::plain(&message.payload) == digest,
                    "the archive holds another message {part}#{sequence} than the index was made from; build it again \
                     with `--rebuild`, or name another folder with `--index`"
                );
            }
            if message.sequence >= self.next && is_wanted(&message.subject) {
                read.push(Raw {
                    part: part.clone(),
                    sequence: message.sequence,
                    at: message.at,
                    subject: message.subject,
                    payload: message.payload,
                });
            }
        }
        Ok(read)
    }
}

/// The messages of a part that has a stream.
struct StreamLane<'a> {
    operator: &'a Operator,
    part: PartId,
    next: u64,
    last: u64,
    until: Option<Timestamp>,
    /// Answers are few: they are read first, and put among the records as those come.
    answers: Option<VecDeque<Raw>>,
    /// A tail and how many messages wait in it; kept open only if nothing else is read in between.
    tail: Option<(Tail, u64)>,
    is_alone: bool,
}

impl StreamLane<'_> {
    async fn read(&mut self) -> Result<Vec<Raw>> {
        let mut answers = match self.answers.take() {
            Some(answers) => answers,
            None => self.read_answers().await?,
        };
        let mut read = Vec::new();
        while read.len() < CHUNK {
            let Some(record) = self.next_record().await? else { break };
            while let Some(answer) = answers.pop_front_if(|answer| answer.sequence < record.sequence) {
                read.push(answer);
            }
            self.next = record.sequence + 1;
            read.push(record);
        }
        if read.len() < CHUNK {
            let last = self.last;
            read.extend(answers.drain(..).filter(|answer| answer.sequence <= last));
        }
        if !self.is_alone {
            self.tail = None;
        }
        self.answers = Some(answers);
        Ok(read)
    }

    /// Whether a message is to be read now. What was stored after `until` is not, nor anything behind it: another part
    /// may have been given something before it that was not seen.
    fn takes(&mut self, sequence: u64, at: Timestamp) -> bool {
        if sequence <= self.last && self.until.is_some_and(|until| at > until) {
            self.last = sequence - 1;
        }
        sequence <= self.last
    }

    async fn read_answers(&mut self) -> Result<VecDeque<Raw>> {
        let mut answers = VecDeque::new();
        if self.next > self.last {
            return Ok(answers);
        }
        let mut tail = self.operator.approval_tail(&self.part, self.next).await?;
        let mut pending = tail.pending;
        while pending > 0 {
            let message = tail.next().await?;
            pending = message.pending;
            if !self.takes(message.sequence, message.at) {
                break;
            }
            if is_wanted(&message.subject) {
                answers.push_back(Raw::of(self.part.clone(), message));
            }
        }
        Ok(answers)
    }

    async fn next_record(&mut self) -> Result<Option<Raw>> {
        if self.next > self.last {
            return Ok(None);
        }
        let (mut tail, pending) = match self.tail.take() {
            Some(open) => open,
            None => {
                let tail = self.operator.audit_tail(&self.part, None, self.next).await?;
                let pending = tail.pending;
                (tail, pending)
            }
        };
        if pending == 0 {
            self.next = self.last + 1;
            return Ok(None);
        }
        let message = tail.next().await?;
        if !self.takes(message.sequence, message.at) {
            self.next = self.last + 1;
            return Ok(None);
        }
        self.tail = Some((tail, message.pending));
        Ok(Some(Raw::of(self.part.clone(), message)))
    }
}
