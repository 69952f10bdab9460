//! Inspectors, between a call and its decision, and between a result and its release.
//!
//! Arguments are looked at once everything but the rules has let the call pass, so that nobody is shown the content of
//! calls that come to nothing, and before the rules are asked, so that they see what was found. A result is looked at
//! before its label is raised, so that what was found is in the label, in the record and in the task label. A result
//! that could not be looked at is dropped: the call is done, is not run again, and nobody is given it.

use std::borrow::Cow;

use writ_common::{
    datalog::Predicate,
    decide::{Evidence, FlowEvidence, judge_result, passes_checks},
    ids::{AgentId, Resource, TaskId, UserId},
    inspect::{Direction, Inspection, Part, parts_of},
    json::Value,
    label::{DomainLabel, Label},
    reason::{Reason, ReasonCode},
    record::RecordedFinding,
    time::Now,
    trace::TraceContext,
    verdict::Verdict,
};

use super::{
    CallRef, Effect, Guard,
    call::{InFlight, Known},
    event::Output,
    release::withheld,
};

/// Texts to be looked at, and what goes with them.
#[derive(Clone, Debug)]
pub struct Inspect {
    /// Which way they go.
    pub direction: Direction,
    /// On what.
    pub resource: Resource,
    /// On whose authority.
    pub user: UserId,
    /// The agent that calls.
    pub agent: AgentId,
    /// The task.
    pub task: TaskId,
    /// The task's tags.
    pub labels: Vec<String>,
    /// The texts.
    pub parts: Vec<Part>,
    /// Where the trace stands.
    pub trace: Option<TraceContext>,
}

/// How far the inspection of arguments is.
pub(super) enum Looked {
    /// Inspectors have been asked; the call goes on when they answered.
    Asked,
    /// They could not be asked, and that denies.
    Failed(Box<Verdict>),
    /// All there is to know is known.
    Known,
}

/// The label and the facts a call is decided with, after what was found in its arguments.
pub(super) fn seen_in_arguments<'l>(
    inspected: Option<&Inspection>,
    standing: &'l Label,
) -> (Cow<'l, Label>, Vec<Predicate>) {
    match inspected {
        Some(inspection) => {
            (Cow::Owned(standing.join(&inspection.label())), inspection.evidence("arguments"))
        }
        None => (Cow::Borrowed(standing), Vec::new()),
    }
}

/// What the record of a call says was found in its arguments.
pub(super) fn found_in_arguments(flight: &InFlight) -> Vec<RecordedFinding> {
    let inspected = flight.known.as_ref().and_then(|known| known.inspected.as_ref());
    inspected.map_or_else(Vec::new, |inspection| inspection.recorded())
}

impl Guard {
    fn is_inspected(&self, direction: Direction, resource: &Resource) -> bool {
        self.config.inspectors.iter().any(|inspector| inspector.is_asked(direction, resource))
    }

    /// Has the arguments of a call looked at, if somebody is to and has not.
    pub(super) fn inspect_arguments(&mut self, call: CallRef, standing: &DomainLabel, now: Now) -> Looked {
        let Some(flight) = self.calls.get(&call) else { return Looked::Known };
        let (Some(known), Some(policy)) = (&flight.known, &self.policy) else { return Looked::Known };
        let resource = &known.request.resource;
        let direction = Direction::towards(resource);
        if !self.is_inspected(direction, resource) {
            return Looked::Known;
        }
        if let Some(inspection) = &known.inspected {
            return match inspection.failures() {
                [] => Looked::Known,
                failures => {
                    let revision = Some(policy.revision());
                    Looked::Failed(Box::new(Verdict::denied(failures.to_vec(), Vec::new(), revision)))
                }
            };
        }
        let evidence = Evidence {
            capability: Some(&known.capability),
            handover: known.handover.as_deref(),
            control: &self.control,
            gate: self.gates.get(resource).map(|gate| gate.as_ref() as _),
            label: &standing.label,
            flow: FlowEvidence::default(),
        };
        if !passes_checks(&known.request, &evidence, policy, now.wall) {
            // The decision says why.
            return Looked::Known;
        }
        let parts = parts_of(known.request.arguments.value());
        let inspect = inspect_of(known, flight, direction, &standing.label, parts);
        self.push(Effect::Inspect(call, Box::new(inspect)));
        Looked::Asked
    }

    /// Has a result looked at, if somebody is to; then, or at once, it is released.
    pub(super) fn inspect_result(&mut self, call: CallRef, output: Output, now: Now) {
        let Some(flight) = self.calls.get(&call) else { return };
        let Some(known) = &flight.known else { return };
        let resource = &known.request.resource;
        let direction = Direction::from(resource);
        if !self.is_inspected(direction, resource) {
            return self.release(call, output, now);
        }
        let Ok(value) = Value::parse_canonical(&output.text) else {
            let reason = Reason::new(ReasonCode::InspectInvalid).noted("the result is no canonical JSON");
            return self.conclude(call, Err(withheld(reason)), now);
        };
        let label = known.flowing.result.clone();
        let inspect = inspect_of(known, flight, direction, &label, parts_of(&value));
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.flowing.manifest.clone_from(&output.manifest);
            known.flowing.output = Some(output);
        }
        self.push(Effect::Inspect(call, Box::new(inspect)));
    }

    /// Inspectors are done with the arguments of a call, or with its result.
    pub(super) fn inspected(&mut self, call: CallRef, inspection: Inspection, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        match known.flowing.output.take() {
            Some(output) => self.result_inspected(call, output, &inspection, now),
            None => {
                known.inspected = Some(Box::new(inspection));
                // From the start: time has passed, and news may have come.
                self.decide_call(call, now);
            }
        }
    }

    fn result_inspected(&mut self, call: CallRef, output: Output, inspection: &Inspection, now: Now) {
        if let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            known.flowing.seen = inspection.recorded();
        }
        if let Some(reason) = inspection.failures().first() {
            return self.conclude(call, Err(withheld(reason.clone())), now);
        }
        match self.judged(call, inspection, now) {
            Ok(label) => {
                let known = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut());
                if let Some(known) = known {
                    known.flowing.found = label.join(&inspection.label());
                }
                self.release(call, output, now);
            }
            Err(reason) => self.conclude(call, Err(withheld(reason)), now),
        }
    }

    /// What the rules say about a result that was looked at.
    ///
    /// # Errors
    /// Why it is withheld.
    fn judged(&self, call: CallRef, inspection: &Inspection, now: Now) -> Result<Label, Reason> {
        let lost = || Reason::new(ReasonCode::PolicyUnavailable);
        let known = self.calls.get(&call).and_then(|flight| flight.known.as_ref()).ok_or_else(lost)?;
        let policy = self.policy.as_ref().ok_or_else(lost)?;
        let standing = self.labels.get(&known.domain).map(|(_, standing)| standing);
        let top = Label::top();
        let instruction = self.sources.instruction(&known.capability.grant().instruction);
        let results = self.sources.results(&known.capability.grant().domain);
        let evidence = Evidence {
            capability: Some(&known.capability),
            handover: known.handover.as_deref(),
            control: &self.control,
            gate: self.gates.get(&known.request.resource).map(|gate| gate.as_ref() as _),
            label: standing.map_or(&top, |standing| &standing.label),
            flow: FlowEvidence {
                instruction: instruction.as_deref(),
                results: results.as_deref(),
                ..FlowEvidence::default()
            },
        };
        let findings = inspection.evidence("result");
        let judgement = judge_result(&known.request, &evidence, &findings, policy, now.wall)?;
        match judgement.withheld.into_iter().next() {
            Some(reason) if !writ_common::red::off("M04-withhold") => Err(reason),
            _ => Ok(judgement.label),
        }
    }
}

fn inspect_of(
    known: &Known,
    flight: &InFlight,
    direction: Direction,
    label: &Label,
    parts: Vec<Part>,
) -> Inspect {
    let grant = known.capability.grant();
    Inspect {
        direction,
        resource: known.request.resource.clone(),
        user: grant.user.clone(),
        agent: known.capability.chain().caller().clone(),
        task: grant.task.clone(),
        labels: label.names().into_iter().map(str::to_owned).collect(),
        parts,
        trace: flight.trace,
    }
}
