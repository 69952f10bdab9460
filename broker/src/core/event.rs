//! What can happen to a broker, and what it wants done.

use std::sync::Arc;

use bytes::Bytes;
use writ_bus::{Attested, Store, StoreError, Stored, StreamFacts};
use writ_common::{
    control::ControlState,
    digest::Digest,
    ids::BootId,
    ids::PartId,
    record::Record,
    recorder::Prepared,
    time::Millis,
    trace::{SpanRecord, TraceContext},
};
use writ_journal::{Entry, Room};

use super::TaskEntry;
use crate::{jwks::KeySet, jwt::IssuerRef, oidc::KeySource};

/// Names a request while it is here; the driver's own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallRef(pub u64);

/// Names a write or publish while it is under way; the broker's own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its subject.
    pub subject: String,
    /// Who sent it, as the server says.
    pub attested: Attested,
    /// Its bytes.
    pub payload: Bytes,
    /// Where the sender's trace stands.
    pub trace: Option<TraceContext>,
}

/// Everything that can wake a broker.
#[derive(Debug)]
pub enum Event {
    /// A request of an agent, a node or an operator.
    Arrived(CallRef, Arrival),
    /// A control event of the stream.
    Control {
        /// Its sequence.
        sequence: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// A message about an approval.
    Approval {
        /// Its sequence.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// Its bytes.
        payload: Bytes,
    },
    /// Everything about approvals that was there at the start has been told.
    ApprovalsRead,
    /// The control stream has been read to where it ended when it was opened.
    ControlRead,
    /// A message of the heads stream.
    Head {
        /// Its sequence.
        sequence: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// The heads stream has been read to where it ended when it was opened.
    HeadsRead,
    /// The record at a sequence of the audit stream, if it could be read.
    RecordRead(Ticket, Option<Bytes>),
    /// A tick of the control stream.
    Ticked {
        /// Its bytes.
        payload: Bytes,
    },
    /// An issuer's keys were fetched, or why not.
    KeysFetched(IssuerRef, Result<KeySet, String>),
    /// What the stream of a part is now.
    AuditStream(PartId, StreamFacts),
    /// The stream of the next part is there, or cannot be made.
    PartMade(PartId, Result<(), String>),
    /// The labels of what outlives a task were carried over to this part, or why not.
    SharedMoved(PartId, Result<(), String>),
    /// How much room the journal has now.
    JournalRoom(Room),
    /// A journal write is done.
    Journalled(Ticket),
    /// A journal write failed.
    JournalFailed(Ticket, String),
    /// A publish was acknowledged, or not.
    Published(Ticket, Result<Stored, StoreError>),
    /// Tasks were written to the index, or not.
    Indexed(Ticket, Result<(), String>),
    /// Time has passed.
    Tick,
}

/// What a broker wants done.
#[derive(Debug)]
pub enum Effect {
    /// Report to the operator's log.
    Alarm(String),
    /// Fetch an issuer's keys and say what came of it.
    FetchKeys(IssuerRef, Arc<KeySource>),
    /// The log of an earlier run is closed: its journal may make room.
    Forget(BootId),
    /// Append to the journal, in the order of the effects.
    Journal(Option<Ticket>, Entry),
    /// Make the stream of a part, and say so by [`Event::PartMade`].
    MakePart(PartId),
    /// Carry the labels of what outlives a task over to another part, and say so by [`Event::SharedMoved`].
    MoveShared {
        /// Where they are.
        from: PartId,
        /// Where they are to be.
        to: PartId,
        /// Whose labels count.
        control: Box<ControlState>,
    },
    /// Publish to a stream after a delay.
    Publish {
        /// Whose acknowledgement it is.
        ticket: Ticket,
        /// What.
        store: Store,
        /// After how long.
        delay: Millis,
    },
    /// Write a task to the index and say when it is flushed.
    Index {
        /// Whose answer.
        ticket: Ticket,
        /// The task.
        task: Box<TaskEntry>,
        /// The part its record is in.
        part: PartId,
        /// Stream sequence of its record.
        sequence: u64,
    },
    /// Read the record at a sequence of the stream of a part.
    ReadRecord {
        /// Whose answer.
        ticket: Ticket,
        /// The part.
        part: PartId,
        /// Where.
        sequence: u64,
    },
    /// A record is in the audit stream: it may be told to others. Comes once for each record the stream has.
    Recorded(Arc<Record>, Digest),
    /// Add to the journal of an earlier run what became of something it left open. Comes before the run's
    /// [`Effect::Forget`].
    Resolve(BootId, Vec<Entry>),
    /// Answer a request.
    Reply(CallRef, Vec<u8>),
    /// Export a span.
    Span(Box<SpanRecord>),
}

impl Effect {
    pub(super) fn recorded(prepared: &Prepared) -> Self {
        Self::Recorded(Arc::clone(&prepared.record), prepared.digest)
    }
}
