//! What can happen to a guard, and what it wants done.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use writ_bus::{Attested, Store, StoreError, Stored, StreamFacts};
use writ_common::{
    digest::Digest,
    ids::{BootId, FlowDomain, PartId, TaskId},
    inspect::Inspection,
    label::Label,
    reason::Reason,
    record::{OutcomeStatus, Record},
    recorder::Prepared,
    time::Millis,
    trace::{SpanRecord, TraceContext},
    verdict::Permit,
};
use writ_journal::{Entry, Room, Unsettled};

use super::{BudgetKey, FoundSources, Inspect, StreamPins};
use crate::tools::ToolOutput;

/// Names a request while it is here; the driver's own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallRef(pub u64);

/// Names a write or publish while it is under way; the guard's own choice.
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

/// Everything that can wake a guard.
#[derive(Debug)]
pub enum Event {
    /// A call or a question for a kept result.
    Arrived(CallRef, Arrival),
    /// A message of the control stream.
    Control {
        /// Its sequence.
        sequence: u64,
        /// Its bytes.
        payload: Bytes,
    },
    /// A message about approvals: a request, an answer or a claim.
    Approval {
        /// Its sequence.
        sequence: u64,
        /// Its subject.
        subject: String,
        /// Its bytes.
        payload: Bytes,
    },
    /// What was spent of a budget was read: its stream sequence and bytes.
    BudgetRead(BudgetKey, Result<Option<(u64, Bytes)>, String>),
    /// Every message about approvals was read that was there when this run began.
    ApprovalsRead,
    /// What the streams are now.
    Streams {
        /// The control stream.
        control: StreamFacts,
        /// The stream of each part there is or was; none if it has none.
        parts: BTreeMap<PartId, Option<StreamFacts>>,
    },
    /// How much room the journal has now.
    JournalRoom(Room),
    /// An earlier run's journal was read.
    Recovered {
        /// The run.
        boot: BootId,
        /// What it left open.
        unsettled: Unsettled,
    },
    /// The broker's answer to a question for freshness.
    Fresh(Bytes),
    /// A journal write is done.
    Journalled(Ticket),
    /// A journal write failed.
    JournalFailed(Ticket, String),
    /// Inspectors have looked at the arguments of a call, or at its result.
    Inspected(CallRef, Box<Inspection>),
    /// A task label was read: its stream sequence and bytes.
    LabelRead(FlowDomain, Result<Option<(u64, Bytes)>, String>),
    /// What may vouch for arguments of a task was read.
    SourcesRead(FlowDomain, TaskId, Result<FoundSources, String>),
    /// A publish was acknowledged, or not.
    Published(Ticket, Result<Stored, StoreError>),
    /// The stream was searched for a record of ours; its sequence if it is there.
    Searched(Ticket, Result<Option<u64>, String>),
    /// The record of the first of two equal calls was read.
    FirstRead(CallRef, Result<Option<Bytes>, String>),
    /// A tool or an agent is done.
    Finished(CallRef, Result<Output, ToolFailure>),
    /// The record at a sequence of the audit stream, if it could be read.
    RecordRead(Ticket, Option<Bytes>),
    /// The broker's answer to a request to cosign a run's checkpoint, if there was one.
    Witnessed(BootId, Option<Bytes>),
    /// Time has passed.
    Tick,
}

/// What came of a tool or agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The result as canonical JSON.
    pub text: String,
    /// What the tool itself knows of its label, beyond its contract.
    pub label: Option<Label>,
    /// Digests of the pieces of content it is made of.
    pub manifest: Vec<Digest>,
}

impl From<String> for Output {
    fn from(text: String) -> Self {
        Self { text, label: None, manifest: Vec::new() }
    }
}

impl From<ToolOutput> for Output {
    fn from(output: ToolOutput) -> Self {
        let ToolOutput { value, label, manifest } = output;
        Self { text: value.to_string(), label, manifest }
    }
}

/// How a tool or agent failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolFailure {
    /// Why.
    pub reason: Reason,
    /// Whether its effect is known.
    pub status: OutcomeStatus,
}

/// What a guard wants done. Effects of one event are independent of each other unless their kind says otherwise.
#[derive(Debug)]
pub enum Effect {
    /// Report to the operator's log.
    Alarm(String),
    /// Ask the broker for freshness and hand its answer back as [`Event::Fresh`].
    AskFresh(Vec<u8>),
    /// The log of an earlier run is closed: its journal may make room.
    Forget(BootId),
    /// Have inspectors look at texts, and hand what they say back as [`Event::Inspected`].
    Inspect(CallRef, Box<Inspect>),
    /// Append to the journal, in the order of the effects, and say when it counts as written. A ticket is absent
    /// where nothing waits for it.
    Journal(Option<Ticket>, Entry),
    /// Keep what is known of the streams across restarts.
    Pin(StreamPins),
    /// Publish to a stream after a delay.
    Publish {
        /// Whose acknowledgement it is.
        ticket: Ticket,
        /// What.
        store: Store,
        /// After how long.
        delay: Millis,
    },
    /// Read what was spent of a budget.
    ReadBudget(BudgetKey),
    /// Read the last label of a domain.
    ReadLabel(FlowDomain),
    /// Read what may vouch for arguments: what the results of a domain named, and the instruction of a task.
    ReadSources(FlowDomain, TaskId),
    /// Read the message at a sequence of a part, for a call that was made before.
    ReadFirst(CallRef, PartId, u64),
    /// Read the record at a sequence of a part.
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
    /// Answer a request.
    Reply(CallRef, Vec<u8>),
    /// Add to the journal of an earlier run what became of something it left open. Comes before the run's
    /// [`Effect::Forget`].
    Resolve(BootId, Vec<Entry>),
    /// Run a tool under a permit.
    RunTool(CallRef, Permit),
    /// Hand a call on to an agent.
    Relay {
        /// Whose call.
        call: CallRef,
        /// The agent's inbox.
        subject: String,
        /// The signed message.
        payload: Vec<u8>,
        /// Where the trace stands.
        trace: Option<TraceContext>,
        /// How long to wait for the answer.
        timeout: Millis,
    },
    /// Search the stream for a record of ours by subject and position.
    Search {
        /// Whose answer.
        ticket: Ticket,
        /// The subject it would be on.
        subject: String,
        /// Its bytes.
        record: Vec<u8>,
    },
    /// Export a span.
    Span(Box<SpanRecord>),
    /// Ask the broker to cosign a run's checkpoint, and hand its answer back as [`Event::Witnessed`].
    Witness(BootId, Vec<u8>),
}

impl Effect {
    pub(super) fn recorded(prepared: &Prepared) -> Self {
        Self::Recorded(Arc::clone(&prepared.record), prepared.digest)
    }
}
