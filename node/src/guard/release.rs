//! From a result to an answer: its label, the raise before the release, and what it vouches for.
//!
//! A result leaves the node only after its label is part of the task label on the bus, and only to an agent that is
//! cleared for it. If that cannot be brought about the outcome is `done` and the result is kept back: it is not run
//! again, and can be asked for once more.

use writ_common::{
    digest::Digest,
    flow::ActionFlow,
    ids::{AgentId, DomainId, FlowDomain, ResourceKind},
    json::Value,
    label::{Label, LabelOrigin},
    policy::Memory,
    reason::{Reason, ReasonCode},
    record::{OutcomeStatus, RecordedFinding},
    source::{Instruction, ResultSources},
    time::Now,
    verdict::{Permit, Verdict},
    wire::{Answer, CallReply},
};

use super::{
    CallRef, Guard, ToolFailure,
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
            is_observed: !verdict.would_deny().is_empty(),
            contract,
            memory: None,
            output: None,
            manifest: Vec::new(),
            found: Label::bottom(),
            seen: Vec::new(),
        }
    }

    /// The values of a result that later calls may take as a source. None, if something made the whole of it less
    /// trusted than the contract says: a column that was read, a rule, or the tool itself.
    /// `asked` is what the call was given and what the user said, for the ids of what they called by name.
    fn vouched(
        &self,
        domain: &FlowDomain,
        label: &Label,
        text: &str,
        asked: Option<(&Value, &Instruction)>,
    ) -> ResultSources {
        let mut sources = ResultSources::default();
        let Some(contract) = &self.contract else { return sources };
        if contract.fields.is_empty() || label.integrity != contract.returns.integrity {
            return sources;
        }
        let Ok(value) = Value::parse_canonical(text) else { return sources };
        let named = asked.map(|(arguments, instruction)| contract.named(arguments, &value, instruction));
        for (entity, value) in contract.vouched(&value).into_iter().chain(named.unwrap_or_default()) {
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
            Some(Memory::Shared) => FlowDomain { part: task.part.clone(), domain: DomainId::of_agent(agent) },
            Some(Memory::Task) | None => task.clone(),
        }
    }

    /// Hands a call on, once the agent's own domain carries what it will be told.
    pub(super) fn relay_raised(&mut self, call: CallRef, permit: Permit, now: Now) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        let Some(handover) = &known.handover else { return };
        let own = known.domain.clone();
        let domain = self.domain_of(handover.chain().caller(), &handover.grant().domain);
        if domain == own {
            return self.relay(call, &permit, now);
        }
        let by = self.labels.get(&own).map_or_else(Label::top, |(_, known)| known.label.clone());
        let origin = self.origin_of(call, now);
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.flowing.memory = Some(domain.clone());
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
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        let label = &label.join(&known.flowing.found);
        let Some(output) = &mut known.flowing.output else { return };
        output.label = Some(label.clone());
        let beyond = label.confidentiality.beyond(&known.flowing.clearance.confidentiality);
        if !beyond.is_empty() && !known.flowing.is_observed && !writ_common::red::off("F03-clearance") {
            let told = format!("the caller may not be told `{}`", beyond.join("`, `"));
            let reason = Reason::new(ReasonCode::FlowWithheld).told(told);
            known.flowing.output = None;
            return self.conclude(call, Err(withheld(reason)), now);
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
        let label = output.label.clone().unwrap_or_else(Label::top);
        let domain = known.domain.clone();
        let instruction = self.sources.instruction(&known.capability.grant().instruction);
        let asked = instruction.as_deref().map(|instruction| (known.request.arguments.value(), instruction));
        let vouched = known.flowing.vouched(&domain, &label, &output.text, asked);
        self.remember(&domain, vouched, call, now);
    }

    /// Everything about the result is on the bus: answer with it.
    pub(super) fn let_go(&mut self, call: CallRef, now: Now) {
        let known = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut());
        let Some(output) = known.and_then(|known| known.flowing.output.take()) else { return };
        self.conclude(call, Ok(output), now);
    }

    /// The label could not be raised: the result stays here, to be asked for again.
    pub(super) fn withhold(&mut self, call: CallRef, reason: &Reason, now: Now) {
        let Some(flight) = self.calls.get_mut(&call) else { return };
        let Some(known) = flight.known.as_mut() else { return };
        let Some(output) = known.flowing.output.take() else { return };
        if let Some(intent) = known.intent.clone() {
            let origin = LabelOrigin {
                decision: intent.id.clone(),
                resource: known.request.resource.clone(),
                action: known.request.action.clone(),
                agent: known.capability.chain().caller().clone(),
                at: now.wall,
            };
            let (domain, what, call_id) = (known.domain.clone(), flight.what.clone(), known.call_id);
            let label = output.label.clone().unwrap_or_else(Label::top);
            let kept = Withheld { text: output.text, label, domain, origin, intent, what };
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

    /// Hands out a result that was kept back until now.
    pub(super) fn hand_out(&mut self, call: CallRef, call_id: &Digest) {
        let Some(Withheld { text, label, intent, what, .. }) = self.kept.take_withheld(call_id) else {
            return self.reply_unrecorded(call, &ReasonCode::CallUnknown.into());
        };
        let bytes = text.len();
        let answer = Answer::Done { result: text, label };
        let receipt = self.recorder.receipt(&intent, &what, &answer);
        let reply = CallReply { receipt: Some(receipt), answer };
        self.kept.finish(call_id, OutcomeStatus::Done, reply.clone(), bytes);
        self.reply(call, &reply);
    }

    /// It was allowed and then not begun.
    pub(super) fn not_run(&mut self, call: CallRef, reason: Reason, now: Now) {
        self.finished(call, Err(ToolFailure { reason, status: OutcomeStatus::NotRun }), now);
    }
}

pub(super) fn withheld(reason: Reason) -> ToolFailure {
    ToolFailure { reason, status: OutcomeStatus::Done }
}
