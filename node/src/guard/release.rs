//! From a result to an answer: its label, the raise before the release, and what it vouches for.
//!
//! A result leaves the node only after its label is part of the task label on the bus, and only to an agent that is
//! cleared for it. If that cannot be brought about the outcome is `done` and the result is kept back: it is not run
//! again, and can be asked for once more.

use writ_common::{
    capability::Capability,
    digest::Digest,
    flow::ActionFlow,
    ids::{AgentId, DomainId, FlowDomain, ResourceKind},
    inspect::Direction,
    json::Value,
    label::{Integrity, Label, LabelOrigin},
    policy::Memory,
    reason::{Reason, ReasonCode},
    record::{Outcome, OutcomeStatus, RecordBody, RecordedFinding},
    request::Arguments,
    source::{Instruction, ResultSources},
    time::{Millis, Now},
    verdict::{Permit, Verdict},
    wire::{Answer, CallReply},
};

use super::{
    CallRef, Guard, Purpose, ToolFailure,
    event::Output,
    kept::Withheld,
    labels::{Waiter, Wanted},
};

/// What a decision said about the flow of data, for when the call is done.
#[derive(Debug)]
pub(super) struct Flowing {
    /// What the result carries at least.
    pub(super) result: Label,
    /// What the caller may be told.
    pub(super) clearance: Label,
    /// Whether it is released whatever it carries, since the tool or agent is observed.
    pub(super) is_observed: bool,
    /// The contract's word on the fields of the result.
    pub(super) contract: Option<std::sync::Arc<ActionFlow>>,
    /// For a call on an agent with a memory of its own: the domain its answer comes from.
    pub(super) memory: Option<FlowDomain>,
    /// The result, while it is looked at and its label is raised.
    pub(super) output: Option<Output>,
    /// What it is made of, for the record, released or kept back.
    pub(super) manifest: Vec<Digest>,
    /// What inspectors and rules about what they found add to its label.
    pub(super) found: Label,
    /// How the tool or agent failed, while what it says about that is treated as a result.
    pub(super) failure: Option<ToolFailure>,
    /// The label the intent was fenced on: what the arguments may hold.
    pub(super) told: Label,
    /// Whether the result may vouch for later arguments at all.
    vouches: bool,
    /// The tool's own word on it.
    own: Integrity,
    /// What inspectors found in it, for the record.
    pub(super) seen: Vec<RecordedFinding>,
}

impl Default for Flowing {
    fn default() -> Self {
        Self {
            result: Label::top(),
            clearance: Label::bottom(),
            is_observed: false,
            contract: None,
            memory: None,
            output: None,
            manifest: Vec::new(),
            found: Label::bottom(),
            failure: None,
            told: Label::top(),
            vouches: false,
            own: Integrity::Untrusted,
            seen: Vec::new(),
        }
    }
}

impl Flowing {
    pub(super) fn of(verdict: &Verdict, contract: Option<std::sync::Arc<ActionFlow>>) -> Self {
        let flow = verdict.flow();
        Self {
            result: flow.result.clone(),
            clearance: flow.clearance.clone(),
            is_observed: verdict.would_deny().iter().any(|reason| reason.code() == ReasonCode::FlowClearance),
            contract,
            vouches: flow.is_as_declared && !flow.is_query,
            ..Self::default()
        }
    }

    /// Whether what the result vouches for depends on what the user called by its name.
    fn goes_by_names(&self) -> bool {
        let named = |contract: &ActionFlow| contract.fields.iter().any(|field| !field.named_by.is_empty());
        self.vouches && self.failure.is_none() && self.contract.as_deref().is_some_and(named)
    }

    /// The values of a result that later calls may take as a source. None, if something made the whole of it less
    /// trusted than the contract says (a column, a rule, a finding), and none of a query, where the caller chooses what
    /// stands where. `instruction` is what the user said, if it is known here.
    fn vouched(
        &self,
        domain: &FlowDomain,
        text: &str,
        arguments: &Arguments,
        instruction: Option<&Instruction>,
    ) -> ResultSources {
        let mut sources = ResultSources::default();
        let Some(contract) = &self.contract else { return sources };
        if contract.fields.is_empty() || !self.vouches || self.found.integrity != Integrity::Trusted {
            return sources;
        }
        let Ok(value) = Value::parse_canonical(text) else { return sources };
        for (entity, value) in contract.sources(arguments, &value, self.own, instruction) {
            sources.insert(domain, entity, value);
        }
        sources
    }
}

impl Guard {
    /// The domain of calls by this agent: the task's, unless it remembers from one task to the next.
    pub(super) fn domain_of(&self, agent: &AgentId, task: &FlowDomain) -> FlowDomain {
        let inventory = self.policy.as_ref().map(|policy| policy.inventory());
        let memory = inventory.and_then(|inventory| inventory.agents.get(agent)).map(|entry| entry.memory);
        match memory {
            Some(Memory::Shared) => {
                let part = self.control.parts().shared().clone();
                FlowDomain { part, domain: DomainId::of_agent(agent) }
            }
            Some(Memory::Task) | None => task.clone(),
        }
    }

    /// Hands a call on, once the agent's own domain carries what it will be told.
    pub(super) fn relay_raised(&mut self, call: CallRef, permit: Permit, now: Now) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let Some(handover) = &known.handover else { return };
        let own = known.domain.clone();
        let domain = self.domain_of(handover.chain().caller(), &handover.grant().domain);
        // What was decided on, and what inspectors found in the message itself.
        let found = known.inspected.as_ref().map(|inspection| inspection.label());
        let told = &known.flowing.told;
        let by = found.as_ref().map_or_else(|| told.clone(), |found| told.join(found));
        if domain == own && by == *told {
            return self.relay(call, &permit, now);
        }
        let origin = self.origin_of(call, now);
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.flowing.memory = (domain != own).then(|| domain.clone());
        }
        self.raise(
            &domain,
            Wanted { by, origin, confirm: false, waiter: Waiter::Relay(call, Box::new(permit)) },
            now,
        );
    }

    /// A tool or agent gave a result: find out what it carries.
    pub(super) fn release(&mut self, call: CallRef, output: Output, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        let declared = known.flowing.result.clone();
        let own = output.label.clone().unwrap_or_else(Label::bottom);
        known.flowing.own = own.integrity;
        known.flowing.manifest = output.manifest.clone();
        known.flowing.output = Some(output);
        if known.request.resource.kind() == ResourceKind::Agent {
            // What the agent knows may have grown while it worked, at whichever node.
            let domain = known.flowing.memory.clone().unwrap_or_else(|| known.domain.clone());
            let waiter = Waiter::Answer(call);
            let wanted = Wanted { by: Label::bottom(), origin: None, confirm: true, waiter };
            return self.raise(&domain, wanted, now);
        }
        self.release_as(call, &declared.join(&own), now);
    }

    /// The label of a result is known: raise the task label by it, if the caller may be told it at all.
    pub(super) fn release_as(&mut self, call: CallRef, label: &Label, now: Now) {
        let cleared = self.calls.get(&call).and_then(|flight| flight.known.as_ref()).and_then(|known| {
            // Another policy may have come while it ran.
            let policy = self.policy.as_ref()?;
            Some(policy.inventory().clearance(known.capability.chain().caller()).confidentiality)
        });
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        let label = &label.join(&known.flowing.found);
        let Some(output) = &mut known.flowing.output else { return };
        output.label = Some(label.clone());
        if let Some(cleared) = cleared {
            let clearance = &mut known.flowing.clearance.confidentiality;
            *clearance = clearance.meet(&cleared);
        }
        let beyond = label.confidentiality.beyond(&known.flowing.clearance.confidentiality);
        if !beyond.is_empty() && !known.flowing.is_observed && !writ_common::red::off("F03-clearance") {
            let told = format!("the caller may not be told `{}`", beyond.join("`, `"));
            let reason = Reason::new(ReasonCode::FlowWithheld).told(told);
            known.flowing.output = None;
            let failure = match known.flowing.failure.take() {
                Some(failure) => untold(&failure),
                None => withheld(reason),
            };
            return self.conclude(call, Err(failure), now);
        }
        let domain = known.domain.clone();
        let origin = self.origin_of(call, now);
        self.raise(
            &domain,
            Wanted { by: label.clone(), origin, confirm: false, waiter: Waiter::Release(call) },
            now,
        );
    }

    fn origin_of(&self, call: CallRef, now: Now) -> Option<LabelOrigin> {
        let known = self.calls.get(&call)?.known.as_ref()?;
        Some(LabelOrigin {
            decision: known.intent.as_ref()?.id.clone(),
            resource: known.request.resource.clone(),
            action: known.request.action.clone(),
            agent: known.capability.chain().caller().clone(),
            at: now.wall,
        })
    }

    /// The task label covers the result: remember what it vouches for, then let it go.
    pub(super) fn vouch(&mut self, call: CallRef, now: Now) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let Some(output) = &known.flowing.output else { return };
        let domain = known.capability.grant().domain.clone();
        let instruction = self.sources.instruction(&known.capability.grant().instruction);
        // Its label may have been trusted until now, so that nobody had to know what the user said.
        if instruction.is_none() && !known.sources_read && known.flowing.goes_by_names() {
            return self.read_sources(call);
        }
        let arguments = &known.request.arguments;
        let vouched = match known.flowing.failure {
            Some(_) => ResultSources::default(),
            None => known.flowing.vouched(&domain, &output.text, arguments, instruction.as_deref()),
        };
        self.remember(&domain, vouched, call, now);
    }

    /// Everything about the result is on the bus: answer with it.
    pub(super) fn let_go(&mut self, call: CallRef, now: Now) {
        let known = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut());
        let Some(known) = known else { return };
        let Some(output) = known.flowing.output.take() else { return };
        let result = known.flowing.failure.take().map_or(Ok(output), Err);
        self.conclude(call, result, now);
    }

    /// The label could not be raised: the result stays here, to be asked for again.
    pub(super) fn withhold(&mut self, call: CallRef, reason: &Reason, now: Now) {
        let origin = self.origin_of(call, now);
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let Some(known) = flight.known.as_mut() else { return };
        let Some(output) = known.flowing.output.take() else { return };
        if let Some(failure) = known.flowing.failure.take() {
            return self.conclude(call, Err(untold(&failure)), now);
        }
        // Without a label nobody knows what it carries, and it is not handed out later either.
        if let (Some(intent), Some(origin), Some(label)) =
            (known.intent.clone(), origin, output.label.clone())
        {
            let (domain, what, call_id) = (known.domain.clone(), flight.what.clone(), known.call_id);
            let kept = Withheld {
                text: output.text,
                label,
                domain,
                origin,
                intent,
                what,
                capability: known.capability.clone(),
                manifest: output.manifest,
            };
            self.kept.withhold(&call_id, kept);
        }
        self.conclude(call, Err(withheld(reason.clone())), now);
    }

    /// Tries once more to raise the label for a result that was kept back.
    pub(super) fn ask_again(&mut self, call: CallRef, call_id: &Digest, now: Now) {
        let Some(withheld) = self.kept.withheld(call_id) else { return };
        let (domain, by) = (withheld.domain.clone(), withheld.label.clone());
        let origin = Some(withheld.origin.clone());
        self.raise(
            &domain,
            Wanted { by, origin, confirm: false, waiter: Waiter::Fetch(call, *call_id) },
            now,
        );
    }

    /// Hands out a result that was kept back until now, if its caller may still be told it.
    pub(super) fn hand_out(&mut self, call: CallRef, call_id: &Digest, now: Now) {
        let Some(Withheld { text, label, intent, what, capability, manifest, .. }) =
            self.kept.take_withheld(call_id)
        else {
            return self.reply_unrecorded(call, &ReasonCode::CallUnknown.into());
        };
        if let Err(reason) = self.may_be_told(&capability, &label, now) {
            return self.reply_unrecorded(call, &reason);
        }
        let outcome = Outcome {
            intent: intent.id.clone(),
            call_id: *call_id,
            task: Some(capability.grant().task.clone()),
            status: OutcomeStatus::Done,
            reason: None,
            result: Some(Digest::plain(text.as_bytes())),
            result_bytes: Some(text.len() as u64),
            label: Some(label.clone()),
            found: Vec::new(),
            manifest,
            elapsed: None,
        };
        let part = self.control.parts().for_record(&intent.record.part);
        let prepared =
            Box::new(self.recorder.prepare(part, RecordBody::Outcome(Box::new(outcome)), now.wall));
        let message_id = prepared.message_id.clone();
        self.journal(None, &prepared, &message_id, None);
        self.publish_record(prepared, message_id, Purpose::Record, Millis(0));
        let bytes = text.len();
        let answer = Answer::Done { result: text, label };
        let receipt = self.recorder.receipt(&intent, &what, &answer);
        let reply = CallReply { receipt: Some(receipt), answer };
        self.kept.finish(call_id, OutcomeStatus::Done, reply.clone(), bytes);
        self.reply(call, &reply);
    }

    /// A result that is given away later than it was decided is given away under what holds then.
    fn may_be_told(&self, capability: &Capability, label: &Label, now: Now) -> Result<(), Reason> {
        writ_common::decide::check_expiry(capability, now.wall)?;
        self.freshness.check(self.control.epoch(), true, now.monotonic)?;
        self.streams.check()?;
        self.control.check_readable()?;
        self.control.check_revocation(capability)?;
        self.control.check_keys(capability)?;
        let policy = self.policy.as_ref().ok_or(ReasonCode::PolicyUnavailable)?;
        let cleared = policy.inventory().clearance(capability.chain().caller());
        match label.confidentiality.beyond(&cleared.confidentiality).as_slice() {
            [] => Ok(()),
            beyond => {
                let told = format!("the caller may not be told `{}`", beyond.join("`, `"));
                Err(Reason::new(ReasonCode::FlowWithheld).told(told))
            }
        }
    }

    /// What a tool or agent says of its failure is content like any result: it is told under the same label.
    pub(super) fn release_failure(&mut self, call: CallRef, failure: ToolFailure, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        let direction = Direction::from(&known.request.resource);
        if self.config.inspectors.iter().any(|one| one.is_asked(direction, &known.request.resource)) {
            // Nobody has looked at it.
            return self.conclude(call, Err(untold(&failure)), now);
        }
        known.flowing.failure = Some(failure);
        self.release(call, Output::from("null".to_owned()), now);
    }

    /// It was allowed and then not begun.
    pub(super) fn not_run(&mut self, call: CallRef, reason: Reason, now: Now) {
        self.finished(call, Err(ToolFailure { reason, status: OutcomeStatus::NotRun }), now);
    }
}

pub(super) fn withheld(reason: Reason) -> ToolFailure {
    ToolFailure { reason, status: OutcomeStatus::Done }
}

/// The failure without the words of whoever failed.
fn untold(failure: &ToolFailure) -> ToolFailure {
    ToolFailure { reason: Reason::new(failure.reason.code()), status: failure.status }
}
