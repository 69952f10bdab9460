//! From an allowing verdict to an effect and its outcome.
//!
//! The intent is published with the fence on the task label and under the call's own id. Its acknowledgement is
//! the check: the label is still the one that was decided on, and no other node has let the same call through.

use bytes::Bytes;
use writ_bus::{Fence, Store, StoreError, Stored};
use writ_common::{
    codec::{decode, encode},
    digest::Digest,
    ids::{Resource, ResourceKind},
    json::Value,
    keys::PublicKey,
    label::Label,
    reason::{Reason, ReasonCode},
    record::{Basis, MANIFEST_MAX, Outcome, OutcomeStatus, Record, RecordBody, RecordedDecision, Verdicted},
    recorder::Prepared,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now},
    trace::{SpanKind, SpanRecord, attribute, span},
    verdict::{Permit, Verdict},
    wire::{AgentAnswer, AgentResult, Answer, CallReply, Relay, ToldReason},
};

use super::{
    CallRef, Effect, Guard, Output, Pending, Purpose, ToolFailure,
    call::{LABEL_ATTEMPTS_MAX, REPLY_BYTES_MAX, agent_input, denied, failed, recorded, trace_ref},
    inspect::found_in_arguments,
    kept::Kept,
    recovery::OldIntent,
};

/// How often a publish is tried again after the stream said it was busy.
const BUSY_ATTEMPTS_MAX: u32 = 6;

impl Guard {
    /// Writes the intent to the journal.
    pub(super) fn prepare_intent(&mut self, call: CallRef, verdict: Verdict, basis: Basis, now: Now) {
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let (trace, arrived) = (flight.trace, flight.arrived);
        let revision = basis.label_revision.unwrap_or(0);
        let told = basis.label.clone().unwrap_or_else(Label::top);
        let mut recorded =
            Verdicted::new(RecordedDecision::Allow, &verdict, flight.who.clone(), flight.what.clone(), basis);
        recorded.trace = trace_ref(trace);
        recorded.shadow = flight.shadow.take();
        recorded.found = found_in_arguments(flight);
        let held = flight.known.as_ref().and_then(|known| known.held.as_ref());
        recorded.acts = self.acts.recorded(&verdict.flow().acts);
        recorded.approval = held.map(|held| Box::new(held.approval.clone()));
        self.span_of_verdict(&recorded, trace, arrived, now);
        // With its fence, which the server checks in the same stream.
        let Some(part) =
            self.calls.get(&call).and_then(|flight| Some(flight.known.as_ref()?.domain.part.clone()))
        else {
            return;
        };
        let prepared =
            Box::new(self.recorder.prepare(part, RecordBody::Verdict(Box::new(recorded)), now.wall));
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        known.flowing.told = told;
        known.permit = verdict.permit();
        known.label_revision = revision;
        known.intent = Some(prepared.clone());
        let kept = Kept {
            holder: *known.capability.chain().holder(),
            task: known.capability.grant().task.clone(),
            decision: prepared.id.clone(),
            status: None,
            reply: None,
            bytes: 0,
            withheld: None,
        };
        let (call_id, message_id) = (known.call_id, known.call_id.to_string());
        if !writ_common::red::off("T02-cache") {
            self.kept.begin(call_id, kept);
        }
        let ticket = self.ticket(Pending::IntentWritten(call));
        self.journal(Some(ticket), &prepared, &message_id, None);
    }

    /// The intent is in the journal: publish it.
    pub(super) fn publish_intent(&mut self, call: CallRef) {
        let delay = Millis(0);
        self.send_intent(call, delay);
    }

    fn send_intent(&mut self, call: CallRef, delay: Millis) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let Some(intent) = &known.intent else { return };
        let fence = match writ_common::red::off("F11-fence") {
            true => Fence::None,
            false => Fence::LastOn {
                subject: Subject::Label(known.domain.clone()).of(&self.config.tenant),
                sequence: known.label_revision,
            },
        };
        let is_red = writ_common::red::off("T02") || writ_common::red::off("A16");
        let message_id = if is_red { intent.message_id.clone() } else { known.call_id.to_string() };
        let store = Store {
            subject: intent.subject.clone(),
            payload: intent.bytes.clone(),
            message_id: Some(message_id),
            fence,
            ttl_secs: None,
        };
        self.streams.sent(&intent.record.part, store.payload.len());
        let ticket = self.ticket(Pending::IntentPublished(call));
        self.push(Effect::Publish { ticket, store, delay });
    }

    /// What the stream said about an intent.
    pub(super) fn intent_published(&mut self, call: CallRef, result: Result<Stored, StoreError>, now: Now) {
        match result {
            Ok(Stored { sequence, duplicate: false }) => self.intent_stored(call, sequence, now),
            Ok(Stored { sequence, duplicate: true }) => {
                // Somebody let this call through before: another node, or an earlier run of this one.
                let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else {
                    return;
                };
                let (call_id, part) = (known.call_id, known.domain.part.clone());
                self.kept.forget(&call_id);
                self.push(Effect::ReadFirst(call, part, sequence));
            }
            Err(StoreError::Fenced) => self.label_moved(call, now),
            Err(StoreError::Busy) => self.stream_busy(call, now),
            Err(StoreError::Full) => self.abandon(call, &ReasonCode::AuditFull.into(), now),
            Err(StoreError::Refused(why)) => {
                self.abandon(call, &Reason::new(ReasonCode::AuditUnavailable).noted(why), now);
            }
            Err(StoreError::Unknown(_)) if writ_common::red::off("B09") => {
                // Red: acts without knowing that the intent is on record.
                self.intent_stored(call, 0, now);
            }
            Err(StoreError::Unknown(why)) => self.unknown_fate(call, &why, now),
        }
    }

    /// The intent is on record. One last look at time and revocation, and it runs.
    fn intent_stored(&mut self, call: CallRef, sequence: u64, now: Now) {
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let Some(known) = flight.known.as_mut() else { return };
        let Some(intent) = known.intent.clone() else { return };
        known.began = Some(now);
        let mut permit = known.permit.take();
        self.committed(&intent, &intent.subject, sequence);
        if let Err(failure) = self.last_look(call, now) {
            return self.finished(call, Err(failure), now);
        }
        if self.use_approval(call, &mut permit, now) {
            return;
        }
        self.act(call, permit, now);
    }

    /// Runs what the call holds the permit for.
    pub(super) fn run(&mut self, call: CallRef, now: Now) {
        let known = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut());
        let permit = known.and_then(|known| known.permit.take());
        self.act(call, permit, now);
    }

    fn act(&mut self, call: CallRef, permit: Option<Permit>, now: Now) {
        match permit {
            Some(permit) if permit.resource().kind() == ResourceKind::Agent => {
                self.relay_raised(call, permit, now);
            }
            Some(permit) => self.push(Effect::RunTool(call, permit)),
            None => {
                let reason = Reason::new(ReasonCode::AuditUnavailable).noted("the permit is gone");
                self.finished(call, Err(ToolFailure { reason, status: OutcomeStatus::NotRun }), now);
            }
        }
    }

    /// What may have changed since the decision: time, news, revocations. Asked when the intent is acknowledged,
    /// and again by the driver right before it acts.
    ///
    /// # Errors
    /// Why the call must not run after all.
    pub fn last_look(&self, call: CallRef, now: Now) -> Result<(), ToolFailure> {
        let known = self.calls.get(&call).and_then(|flight| flight.known.as_ref());
        let Some(known) = known else {
            let reason = Reason::new(ReasonCode::AuditUnavailable).noted("the call is gone");
            return Err(ToolFailure { reason, status: OutcomeStatus::NotRun });
        };
        let chains = || [Some(&known.capability), known.handover.as_ref()].into_iter().flatten();
        let still = chains()
            .try_for_each(|chain| writ_common::decide::check_expiry(chain, now.wall))
            .and_then(|()| self.freshness.check(self.control.epoch(), known.is_read, now.monotonic))
            .and_then(|()| self.streams.check())
            .and_then(|()| self.control.check_readable())
            .and_then(|()| chains().try_for_each(|chain| self.control.check_revocation(chain)))
            .and_then(|()| chains().try_for_each(|chain| self.control.check_keys(chain)));
        match still {
            Err(reason) if !writ_common::red::off("R04") => {
                Err(ToolFailure { reason, status: OutcomeStatus::NotRun })
            }
            _ => Ok(()),
        }
    }

    /// Hands the call on to the agent, at the very key it was delegated to.
    pub(super) fn relay(&mut self, call: CallRef, permit: &Permit, now: Now) {
        let Some(flight) = self.calls.get(&call) else { return };
        let Some(known) = &flight.known else { return };
        let (Some(handover), Some(intent)) = (&known.handover, &known.intent) else { return };
        let key = handover.chain().holder().id();
        let message = Relay {
            tenant: self.config.tenant.clone(),
            node: self.config.node.clone(),
            decision: intent.id.clone(),
            caller: known.capability.chain().caller().clone(),
            key: key.clone(),
            task: known.capability.grant().task.clone(),
            call_id: known.call_id,
            at: now.wall,
            input: agent_input(permit.arguments()),
            capability: handover.as_bytes().to_vec(),
        };
        let agent = handover.chain().caller().clone();
        let life = handover.expires().since(now.wall);
        let effect = Effect::Relay {
            call,
            subject: Subject::Inbox { agent, key }.of(&self.config.tenant),
            payload: encode(&Signed::new(&message, &self.config.key)),
            trace: flight.trace,
            timeout: self.config.relay_timeout.min(life),
        };
        self.push(effect);
    }

    /// Reads what an agent answered; only the key the call was meant for can answer it.
    fn open_answer(bytes: &[u8], key: &PublicKey, call_id: Digest) -> Result<String, ToolFailure> {
        let failed = |text: String| ToolFailure {
            reason: Reason::new(ReasonCode::ToolFailed).told(text),
            status: OutcomeStatus::UnknownOutcome,
        };
        let answer = decode::<Signed<AgentAnswer>>(bytes)
            .map_err(|error| failed(format!("the agent's answer: {error}")))?
            .open(|signer| signer == key)
            .map_err(|error| failed(format!("the agent's answer: {error}")))?;
        if answer.call_id != call_id {
            return Err(failed("the agent answered another call".to_owned()));
        }
        match answer.result {
            AgentResult::Done(result) => Ok(result),
            AgentResult::Failed(text) => Err(ToolFailure {
                reason: Reason::new(ReasonCode::ToolFailed).told(text),
                status: OutcomeStatus::Failed,
            }),
        }
    }

    /// A relayed call came back: the bytes are checked before they count as a result.
    pub fn agent_answered(&self, call: CallRef, bytes: &Bytes) -> Result<String, ToolFailure> {
        let known = self.calls.get(&call).and_then(|flight| flight.known.as_ref());
        let lost = || ToolFailure {
            reason: Reason::new(ReasonCode::ToolFailed).told("the call is not known any more"),
            status: OutcomeStatus::UnknownOutcome,
        };
        let known = known.ok_or_else(lost)?;
        let handover = known.handover.as_ref().ok_or_else(lost)?;
        Self::open_answer(bytes, handover.chain().holder(), known.call_id)
    }

    /// The tool or agent is done: record how it ended.
    pub(super) fn finished(&mut self, call: CallRef, result: Result<Output, ToolFailure>, now: Now) {
        let output = match result {
            Ok(output) => output,
            Err(failure) if failure.status == OutcomeStatus::NotRun => {
                return self.conclude(call, Err(failure), now);
            }
            Err(failure) => return self.release_failure(call, failure, now),
        };
        match check_result(&output).and_then(|()| self.count_rows(call, &output.text, now)) {
            Ok(()) => self.inspect_result(call, output, now),
            // In our own words, and with nothing of the result in them.
            Err(failure) => self.conclude(call, Err(failure), now),
        }
    }

    /// Records how a call ended, and answers.
    pub(super) fn conclude(&mut self, call: CallRef, result: Result<Output, ToolFailure>, now: Now) {
        if matches!(&result, Err(ToolFailure { status: OutcomeStatus::NotRun, .. })) {
            self.give_back(call, now);
        }
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let Some(known) = &flight.known else { return };
        let Some(intent) = known.intent.clone() else { return };
        let began = known.began.unwrap_or(now);
        let (status, reason, digest, bytes) = match &result {
            Ok(Output { text, .. }) => {
                (OutcomeStatus::Done, None, Some(Digest::plain(text.as_bytes())), Some(text.len() as u64))
            }
            Err(failure) => (failure.status, Some(recorded(&for_the_record(failure))), None, None),
        };
        let outcome = Outcome {
            intent: intent.id.clone(),
            call_id: known.call_id,
            task: flight.who.task.clone(),
            status,
            reason,
            result: digest,
            result_bytes: bytes,
            label: result.as_ref().ok().and_then(|output| output.label.clone()),
            found: known.flowing.seen.clone(),
            elapsed: Some(now.monotonic.since(began.monotonic)),
            manifest: known.flowing.manifest.clone(),
        };
        let answer = match result {
            Ok(Output { text, label, .. }) => {
                Answer::Done { result: text, label: label.unwrap_or_else(Label::top) }
            }
            Err(ToolFailure { reason, status: OutcomeStatus::NotRun }) => {
                Answer::Denied { reasons: vec![ToldReason::from(&reason)] }
            }
            Err(failure) => failed(&failure.reason, failure.status),
        };
        flight.reply = Some(CallReply { receipt: None, answer });
        let trace = flight.trace;
        if status != OutcomeStatus::NotRun && known.request.resource.kind() == ResourceKind::Tool {
            let span = run_span(&known.request.resource, &outcome, trace, began, now);
            self.push(Effect::Span(Box::new(span)));
        }
        let seq = intent.id.seq;
        let part = self.control.parts().for_record(&intent.record.part);
        let prepared =
            Box::new(self.recorder.prepare(part, RecordBody::Outcome(Box::new(outcome)), now.wall));
        let message_id = prepared.message_id.clone();
        let ticket = self.fresh_ticket();
        self.journal(Some(ticket), &prepared, &message_id, Some(seq));
        self.pending.insert(ticket, Pending::OutcomeWritten(call, prepared));
    }

    /// The outcome is in the journal, or cannot be: answer, and publish it either way.
    pub(super) fn outcome_written(&mut self, call: CallRef, prepared: Box<Prepared>) {
        self.answer_outcome(call);
        let message_id = prepared.message_id.clone();
        self.publish_record(prepared, message_id, Purpose::Record, Millis(0));
    }

    fn answer_outcome(&mut self, call: CallRef) {
        let Some(flight) = self.calls.remove(&call) else { return };
        let (Some(known), Some(reply)) = (flight.known, flight.reply) else { return };
        let Some(intent) = &known.intent else { return };
        let (bytes, status) = match &reply.answer {
            Answer::Done { result, .. } => (result.len(), OutcomeStatus::Done),
            Answer::Failed { status, .. } => (0, *status),
            Answer::Denied { .. } | Answer::Held { .. } | Answer::Replayed { .. } => {
                (0, OutcomeStatus::NotRun)
            }
        };
        let receipt = self.recorder.receipt(intent, &flight.what, &reply.answer);
        let reply = CallReply { receipt: Some(receipt), ..reply };
        self.kept.finish(&known.call_id, status, reply.clone(), bytes);
        self.reply(call, &reply);
    }

    /// The label is not the one that was decided on: void this intent, read the label, decide again.
    fn label_moved(&mut self, call: CallRef, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        known.label_attempts += 1;
        let (attempts, domain, call_id) = (known.label_attempts, known.domain.clone(), known.call_id);
        self.labels.forget(&domain);
        self.kept.forget(&call_id);
        if attempts > LABEL_ATTEMPTS_MAX {
            return self.abandon(call, &ReasonCode::LabelMoved.into(), now);
        }
        self.void_and_go_on(call, &ReasonCode::LabelMoved.into(), now);
        self.wait_for_label(call, &domain);
    }

    /// Records that an intent came to nothing, and leaves the call open.
    fn void_and_go_on(&mut self, call: CallRef, reason: &Reason, now: Now) {
        let Some(void) = self.void_of(call, reason, now) else { return };
        let message_id = void.message_id.clone();
        self.journal(None, &void, &message_id, None);
        self.publish_record(void, message_id, Purpose::Record, Millis(0));
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.intent = None;
            known.permit = None;
        }
    }

    pub(super) fn void_of(&self, call: CallRef, reason: &Reason, now: Now) -> Option<Box<Prepared>> {
        let flight = self.calls.get(&call)?;
        let intent = flight.known.as_ref()?.intent.as_ref()?;
        let (who, what) = (flight.who.clone(), flight.what.clone());
        Some(Box::new(self.recorder.void(intent, recorded(reason), who, what, now.wall)))
    }

    fn stream_busy(&mut self, call: CallRef, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        known.busy_attempts += 1;
        let attempts = known.busy_attempts;
        if attempts > BUSY_ATTEMPTS_MAX {
            let reason = Reason::new(ReasonCode::AuditUnavailable).noted("the stream stayed busy");
            return self.abandon(call, &reason, now);
        }
        let [jitter] = writ_common::entropy::draw::<1>(self.entropy.as_mut());
        let delay = Millis((1u64 << attempts.min(6)) + u64::from(jitter % 8));
        self.send_intent(call, delay);
    }

    /// The intent is definitely not on record: void it under an id of its own, and deny.
    pub(super) fn abandon(&mut self, call: CallRef, reason: &Reason, now: Now) {
        self.give_back(call, now);
        let Some(void) = self.void_of(call, reason, now) else { return };
        let Some(flight) = self.calls.get_mut(&call) else { return };
        if flight.reply.is_none() {
            flight.reply = Some(denied(std::slice::from_ref(reason)));
        }
        if let Some(call_id) = flight.known.as_ref().map(|known| known.call_id) {
            self.kept.forget(&call_id);
        }
        self.write_final(call, void, None);
    }

    /// Nobody knows whether the intent is on record: deny, and void it under its own id. If it was stored, the
    /// void shows as a duplicate; if it was not, a late copy of it will.
    fn unknown_fate(&mut self, call: CallRef, why: &str, now: Now) {
        let reason = Reason::new(ReasonCode::AuditUnavailable).noted(why);
        let Some(void) = self.void_of(call, &reason, now) else { return };
        self.give_back(call, now);
        let Some(flight) = self.calls.remove(&call) else { return };
        let Some(known) = flight.known else { return };
        let Some(intent) = known.intent else { return };
        self.kept.forget(&known.call_id);
        let message_id = known.call_id.to_string();
        self.journal(None, &void, &message_id, None);
        let old = OldIntent {
            prepared: intent,
            call_id: known.call_id,
            who: flight.who,
            what: flight.what,
            void: Some(void.clone()),
            contested: false,
            since: now,
        };
        self.publish_record(void, message_id, Purpose::VoidUnknown(Box::new(old)), Millis(100));
        self.reply(call, &denied(&[reason]));
    }

    /// The record of the first of two equal calls.
    pub(super) fn first_read(&mut self, call: CallRef, found: Result<Option<Bytes>, String>, now: Now) {
        let first = found.ok().flatten().and_then(|bytes| {
            let record = decode::<Signed<Record>>(&bytes).ok()?.peek().ok()?;
            // A void under this call's id means: it was given up, and can be made again under a new nonce.
            let outcome = matches!(record.body, RecordBody::Void(_)).then_some(OutcomeStatus::NotRun);
            Some((record.id, outcome))
        });
        if let Some(flight) = self.calls.get_mut(&call)
            && let Some((first, outcome)) = first
        {
            flight.reply = Some(CallReply { receipt: None, answer: Answer::Replayed { first, outcome } });
        }
        self.abandon(call, &ReasonCode::RequestReplayed.into(), now);
    }

    /// An intent of unknown fate turned out to be on record: it was not run, and the stream has to say so.
    pub(super) fn intent_stands(&mut self, intent: &OldIntent, sequence: u64, now: Now) {
        let is_own = intent.prepared.id.boot == self.config.boot;
        if is_own {
            let message_id = intent.call_id.to_string();
            self.journal(None, &intent.prepared, &message_id, None);
            self.committed(&intent.prepared, &intent.prepared.subject, sequence);
        } else {
            self.resolved(&intent.prepared, &intent.prepared.subject, sequence);
        }
        let status = if is_own { OutcomeStatus::NotRun } else { OutcomeStatus::UnknownOutcome };
        self.record_outcome_of(&intent.prepared, intent.call_id, intent.who.task.clone(), status, now);
        self.settled(&intent.prepared.id.boot);
    }

    pub(super) fn record_outcome_of(
        &mut self,
        intent: &Prepared,
        call_id: Digest,
        task: Option<writ_common::ids::TaskId>,
        status: OutcomeStatus,
        now: Now,
    ) {
        let part = self.control.parts().for_record(&intent.record.part);
        let intent = &intent.id;
        let outcome = Outcome::of(intent.clone(), call_id, task, status);
        let prepared =
            Box::new(self.recorder.prepare(part, RecordBody::Outcome(Box::new(outcome)), now.wall));
        let message_id = prepared.message_id.clone();
        let ends = (intent.boot == self.config.boot).then_some(intent.seq);
        self.journal(None, &prepared, &message_id, ends);
        self.publish_record(prepared, message_id, Purpose::Record, Millis(0));
        if intent.boot != self.config.boot {
            let ended = vec![writ_journal::Entry::Ended { seq: intent.seq }];
            self.push(Effect::Resolve(intent.boot.clone(), ended));
        }
    }
}

/// What a tool or agent says of its failure may be content, which records never hold.
fn for_the_record(failure: &ToolFailure) -> Reason {
    match failure.reason.code() {
        ReasonCode::ToolFailed => Reason::new(ReasonCode::ToolFailed),
        _ => failure.reason.clone(),
    }
}

/// A result that cannot be sent or is no JSON is a failure of the tool, not of the caller.
fn check_result(output: &Output) -> Result<(), ToolFailure> {
    let text = output.text.as_str();
    let failure = |code: ReasonCode, told: String| ToolFailure {
        reason: Reason::new(code).told(told),
        status: OutcomeStatus::Failed,
    };
    if text.len() > REPLY_BYTES_MAX {
        let told = format!("{} bytes, at most {REPLY_BYTES_MAX}", text.len());
        return Err(failure(ReasonCode::ToolResultTooLarge, told));
    }
    // What does not fit into the record was not given to anybody.
    if output.manifest.len() > MANIFEST_MAX {
        let told = format!("made of {} pieces, at most {MANIFEST_MAX}", output.manifest.len());
        return Err(failure(ReasonCode::ToolResultTooLarge, told));
    }
    Value::parse_canonical(text)
        .map(drop)
        .map_err(|error| failure(ReasonCode::ToolFailed, format!("the result is no canonical JSON: {error}")))
}

fn run_span(
    resource: &Resource,
    outcome: &Outcome,
    parent: Option<writ_common::trace::TraceContext>,
    start: Now,
    end: Now,
) -> SpanRecord {
    let task = outcome.task.as_ref().map(ToString::to_string).unwrap_or_default();
    SpanRecord {
        name: span::run(resource.name()),
        kind: SpanKind::Internal,
        parent,
        start: start.wall,
        end: end.wall,
        attributes: vec![
            (attribute::OPERATION_NAME, "execute_tool".into()),
            (attribute::OPENINFERENCE_KIND, "TOOL".into()),
            (attribute::TOOL_NAME, resource.name().into()),
            (attribute::OUTCOME, outcome.status.as_str().into()),
            (attribute::SESSION_ID, task.as_str().into()),
            (attribute::TASK, task.into()),
        ],
        error: outcome.reason.as_ref().map(|reason| reason.code.to_string()),
    }
}
