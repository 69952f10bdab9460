//! The flow plane of a call: who may be told its result, where the task's data may go, and what vouches for the
//! arguments that decide who is affected.
//!
//! Three questions, in the order of DESIGN section 6. A result is for agents that are cleared for its label, since
//! telling an agent something tells its model's provider. Data reaches an action that accepts the task's label. And
//! once a task was told things by outsiders, every guarded argument needs a source outsiders cannot write.

use std::collections::BTreeSet;

use super::{Evidence, Facts, text};
use crate::{
    act::{self, ActKind, LabelAct, OpenAct},
    capability::{Right, engine::World},
    datalog::{Predicate, Term},
    digest::Digest,
    flow::{ActionFlow, ArgumentGuard, FlowVerdict, GUARDED_MAX, GuardedArgument, is_query},
    ids::{AgentId, ApprovalId, FlowDomain},
    json::Value,
    label::{Confidentiality, Integrity, Label, Origins, Tag},
    policy::PolicySet,
    reason::{Reason, ReasonCode},
    request::{Arguments, Request},
    signed::Signed,
    source::{Instruction, ResultSources, Source, SourceKind, Sources},
    time::Timestamp,
};

/// What is known of the flow of data, beyond the task's label.
#[derive(Clone, Copy, Default)]
pub struct FlowEvidence<'a> {
    /// What people have let pass in this task and nobody has used yet.
    pub acts: &'a [Signed<LabelAct>],
    /// The digest of the call.
    pub call: Option<Digest>,
    /// What inspectors found in the arguments, as facts.
    pub findings: &'a [Predicate],
    /// What the user asked for, in their words.
    pub instruction: Option<&'a Instruction>,
    /// Which call brought which part of the label in.
    pub origins: Option<&'a Origins>,
    /// What trusted results of the flow domain named.
    pub results: Option<&'a ResultSources>,
}

/// What came of asking.
pub(super) struct Judged {
    pub(super) verdict: FlowVerdict,
    /// What stands against the call.
    pub(super) reasons: Vec<Reason>,
    /// Who has to vouch for arguments that nothing else vouches for, as the rules derived it.
    pub(super) vouching: Vec<Vec<Term>>,
}

/// What people let pass.
#[derive(Default)]
struct Passed {
    acts: BTreeSet<ApprovalId>,
    /// Acts that do not count, and why.
    complaints: Vec<Reason>,
    is_enough: bool,
}

/// The acts of one kind that people said of this call, in their order: opened, or why one does not count.
fn acts_of<'a>(
    kind: fn(&ActKind) -> bool,
    request: &'a Request,
    evidence: &'a Evidence<'a>,
    policy: &'a PolicySet,
    now: Timestamp,
) -> impl Iterator<Item = Result<OpenAct, Reason>> + 'a {
    let of_this_right = move |act: &LabelAct| {
        act.resource == request.resource && act.action == request.action && kind(&act.kind)
    };
    let open = move |signed: &Signed<LabelAct>| {
        let act = signed.peek().ok().filter(of_this_right)?;
        if evidence.flow.call != Some(act.call) && !crate::red::off("F08") {
            let told = format!("what `{}` let pass has another content", act.by);
            return Some(Err(Reason::new(ReasonCode::DeclassDigest).told(told)));
        }
        let user = &evidence.capability?.grant().user;
        Some(act::open(signed, evidence.control, &policy.inventory, user, now))
    };
    evidence.flow.acts.iter().filter_map(open)
}

/// A call as the flow plane sees it, before the rules were asked.
pub(super) struct Flow {
    accepts: Option<Confidentiality>,
    declared: Label,
    /// What columns add to it.
    columns: Label,
    is_query: bool,
    /// What the caller may be told.
    clearance: Label,
    /// For a call on an agent: its name and what it may be told.
    told: Option<(AgentId, Label)>,
    guarded: Vec<(String, String)>,
    arguments: Vec<GuardedArgument>,
}

impl Flow {
    /// A call on a tool.
    pub(super) fn of_tool(
        action: &ActionFlow,
        right: &Right,
        caller: &AgentId,
        arguments: &Arguments,
        gate: &[Predicate],
        evidence: &Evidence<'_>,
        policy: &PolicySet,
    ) -> Result<Self, Reason> {
        let found = action.guarded(arguments.value());
        if found.len() > GUARDED_MAX {
            let told = format!("{} values decide who is affected, at most {GUARDED_MAX} can be", found.len());
            return Err(Reason::new(ReasonCode::ArgInvalid).told(told));
        }
        let guarded = found.iter().map(|(path, guard, _)| (path.clone(), guard.entity.to_string())).collect();
        let domain = evidence.capability.map(|capability| &capability.grant().domain);
        let looked_at = evidence.label.integrity == Integrity::Untrusted && !crate::red::off("F09");
        let arguments = match domain {
            Some(domain) if looked_at => {
                let sources = Sources {
                    instruction: evidence.flow.instruction,
                    directories: &policy.inventory.directories,
                    results: evidence.flow.results,
                };
                let pinned = evidence.capability.map(|capability| capability.grant().pins(right));
                let look = |(path, guard, value): (String, &ArgumentGuard, &Value)| {
                    let pinned = pinned.as_ref().is_some_and(|paths| paths.contains(&path));
                    let source = look_for(value, guard, pinned, &sources, domain);
                    GuardedArgument { path, entity: guard.entity.clone(), source }
                };
                found.into_iter().map(look).collect()
            }
            _ => Vec::new(),
        };
        Ok(Self {
            accepts: Some(action.accepts.clone()),
            declared: action.declared(gate),
            columns: action.of_columns(gate),
            is_query: is_query(gate),
            clearance: policy.inventory.clearance(caller),
            told: None,
            guarded,
            arguments,
        })
    }

    /// A call on an agent: it is told what the task holds, and what it answers carries that.
    pub(super) fn of_agent(
        caller: &AgentId,
        called: &AgentId,
        evidence: &Evidence<'_>,
        policy: &PolicySet,
    ) -> Self {
        Self {
            accepts: None,
            declared: evidence.label.clone(),
            columns: Label::bottom(),
            is_query: false,
            clearance: policy.inventory.clearance(caller),
            told: Some((called.clone(), policy.inventory.clearance(called))),
            guarded: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// The guarded arguments, and what vouches for them.
    pub(super) fn facts(&self) -> (Facts, Facts) {
        let pair =
            |name: &str, path: &str, entity: &str| Predicate::new(name, [Term::str(path), Term::str(entity)]);
        let guarded = self.guarded.iter().map(|(path, entity)| pair("guarded", path, entity)).collect();
        let looked_for = self.arguments.iter().map(|argument| {
            let (path, entity) = (argument.path.as_str(), argument.entity.as_str());
            match &argument.source {
                None => pair("unsourced", path, entity),
                Some(source) => {
                    let terms = [Term::str(path), Term::str(entity), Term::str(source.to_string())];
                    Predicate::new("sourced", terms)
                }
            }
        });
        (guarded, looked_for.collect())
    }

    /// The guarded arguments nothing vouches for.
    fn missing(&self) -> impl Iterator<Item = &GuardedArgument> {
        self.arguments.iter().filter(|argument| argument.source.is_none())
    }

    /// What stands against the call, once the rules were asked.
    pub(super) fn judge(
        self,
        request: &Request,
        evidence: &Evidence<'_>,
        policy: &PolicySet,
        world: &mut World<'_>,
        now: Timestamp,
    ) -> Result<Judged, Reason> {
        let added = added(world)?;
        let result = self.declared.join(&added);
        let is_as_declared = self.columns.join(&added).integrity == Integrity::Trusted;
        let mut reasons = Vec::new();
        let mut acts = BTreeSet::new();
        if !crate::red::off("F03-clearance") {
            let beyond = result.confidentiality.beyond(&self.clearance.confidentiality);
            if !beyond.is_empty() {
                let told = format!("the caller may not be told {}", with_origins(&beyond, evidence));
                reasons.push(Reason::new(ReasonCode::FlowClearance).told(told));
            }
            if let Some((agent, clearance)) = &self.told {
                let beyond = evidence.label.confidentiality.beyond(&clearance.confidentiality);
                if !beyond.is_empty() {
                    let told = format!("`{agent}` may not be told {}", with_origins(&beyond, evidence));
                    reasons.push(Reason::new(ReasonCode::FlowClearance).told(told));
                }
            }
        }
        if let Some(accepts) = &self.accepts
            && !crate::red::off("F03")
        {
            let accepts = widened(accepts, world)?;
            let beyond = evidence.label.confidentiality.beyond(&accepts);
            if !beyond.is_empty() {
                let passed = self.declassified(request, evidence, policy, world, now, &beyond)?;
                acts.extend(passed.acts);
                if !passed.is_enough {
                    let told =
                        format!("`{}` does not take {}", request.right(), with_origins(&beyond, evidence));
                    reasons.push(Reason::new(ReasonCode::FlowSink).told(told));
                    reasons.extend(passed.complaints);
                }
            }
        }
        let mut vouching = Vec::new();
        if self.missing().next().is_some() {
            let passed = self.endorsed(request, evidence, policy, world, now)?;
            acts.extend(passed.acts);
            if !passed.is_enough {
                vouching = world.facts("source_approval", 2).map_err(Reason::from)?;
                if vouching.is_empty() {
                    reasons.push(self.unsourced(evidence));
                    reasons.extend(passed.complaints);
                }
            }
        }
        let verdict = FlowVerdict {
            result,
            is_as_declared,
            is_query: self.is_query,
            clearance: self.clearance,
            arguments: self.arguments,
            acts,
        };
        Ok(Judged { verdict, reasons, vouching })
    }

    /// Whether people let every one of these tags pass, for this very call.
    fn declassified(
        &self,
        request: &Request,
        evidence: &Evidence<'_>,
        policy: &PolicySet,
        world: &mut World<'_>,
        now: Timestamp,
        beyond: &[&str],
    ) -> Result<Passed, Reason> {
        let permitted = world.facts("may_declassify", 2).map_err(Reason::from)?;
        let mut left: BTreeSet<&str> = beyond.iter().copied().collect();
        let mut passed = Passed::default();
        let is_declassifying: fn(&ActKind) -> bool = |kind| matches!(kind, ActKind::Declassify { .. });
        for opened in acts_of(is_declassifying, request, evidence, policy, now) {
            let opened = match opened {
                Ok(opened) => opened,
                Err(complaint) => {
                    passed.complaints.push(complaint);
                    continue;
                }
            };
            let ActKind::Declassify { tags } = &opened.act.kind else { continue };
            for tag in tags {
                if !opened.may(&permitted, tag.as_str()) {
                    let told = format!("`{}` may not declassify `{tag}`", opened.act.by);
                    passed.complaints.push(Reason::new(ReasonCode::DeclassUnauthorised).told(told));
                } else if left.remove(tag.as_str()) {
                    passed.acts.insert(opened.act.id.clone());
                }
            }
        }
        passed.is_enough = left.is_empty();
        Ok(passed)
    }

    /// Whether a person vouches for the arguments nothing else vouches for, in this very call.
    fn endorsed(
        &self,
        request: &Request,
        evidence: &Evidence<'_>,
        policy: &PolicySet,
        world: &mut World<'_>,
        now: Timestamp,
    ) -> Result<Passed, Reason> {
        let permitted = world.facts("may_endorse", 2).map_err(Reason::from)?;
        let mut passed = Passed::default();
        for opened in acts_of(|kind| *kind == ActKind::Endorse, request, evidence, policy, now) {
            let opened = match opened {
                Ok(opened) => opened,
                Err(complaint) => {
                    passed.complaints.push(complaint);
                    continue;
                }
            };
            let beyond = self.missing().find(|argument| !opened.may(&permitted, argument.entity.as_str()));
            let Some(GuardedArgument { entity, .. }) = beyond else {
                passed.acts.insert(opened.act.id);
                passed.is_enough = true;
                break;
            };
            let told = format!("`{}` may not endorse an argument of type `{entity}`", opened.act.by);
            passed.complaints.push(Reason::new(ReasonCode::DeclassUnauthorised).told(told));
        }
        Ok(passed)
    }

    /// What is said where arguments have no source and the policy names nobody who could vouch for them.
    fn unsourced(&self, evidence: &Evidence<'_>) -> Reason {
        let missing: Vec<String> =
            self.missing().map(|one| format!("`{}` ({})", one.path, one.entity)).collect();
        let origin = origin_of(UNTRUSTED, evidence);
        let told = format!(
            "nothing vouches for {}, and outsiders had a say in this task{origin}",
            missing.join(", ")
        );
        Reason::new(ReasonCode::FlowIntegrity).told(told)
    }
}

/// What the policy adds to the label of a result.
pub(super) fn added(world: &mut World<'_>) -> Result<Label, Reason> {
    let tags: Option<BTreeSet<Tag>> =
        world.facts("result_tag", 1).map_err(Reason::from)?.iter().map(|tuple| tag_of(tuple)).collect();
    let levels = world.facts("result_integrity", 1).map_err(Reason::from)?;
    let is_trusted = levels.iter().all(|tuple| tuple.as_slice() == [Term::str(Integrity::Trusted.as_str())]);
    // One outside the grammar is everything, which nothing takes and nobody may be told.
    let confidentiality = tags.map_or(Confidentiality::Top, Confidentiality::Tags);
    let integrity = if is_trusted { Integrity::Trusted } else { Integrity::Untrusted };
    // Too many collapse as in any join.
    Ok(Label::bottom().join(&Label { confidentiality, integrity }))
}

/// The tag a rule derived, if it is one.
fn tag_of(tuple: &[Term]) -> Option<Tag> {
    match tuple {
        [Term::Str(tag)] => Tag::parse(tag.as_str()).ok(),
        _ => None,
    }
}

/// What vouches for a value. One that the grant pins was settled before anybody outside had a say: of several the
/// instruction names it is the one that is meant.
fn look_for(
    value: &Value,
    guard: &ArgumentGuard,
    pinned: bool,
    sources: &Sources<'_>,
    domain: &FlowDomain,
) -> Option<Source> {
    if !pinned {
        return sources.find(domain, &guard.entity, value, &guard.sources);
    }
    let mut counting = guard.sources.clone();
    if counting.contains(SourceKind::Instruction) {
        counting = counting.with(SourceKind::InstructionAny);
    }
    let found = sources.find(domain, &guard.entity, value, &counting);
    found.or_else(|| counting.contains(SourceKind::Grant).then_some(Source::Grant))
}

/// The word for what outsiders had a say in, where origins are kept.
pub const UNTRUSTED: &str = "untrusted";

/// What the contract accepts and the policy adds; of what is added, only tags that are ones count.
fn widened(accepts: &Confidentiality, world: &mut World<'_>) -> Result<Confidentiality, Reason> {
    let Confidentiality::Tags(own) = accepts else { return Ok(Confidentiality::Top) };
    let added = world.facts("accepts", 1).map_err(Reason::from)?;
    let added = added.iter().filter_map(|tuple| tag_of(tuple));
    Ok(Confidentiality::Tags(own.iter().cloned().chain(added).collect()))
}

/// Tags, each with the call that brought it in, if that is known.
fn with_origins(tags: &[&str], evidence: &Evidence<'_>) -> String {
    let told: Vec<String> = tags.iter().map(|tag| format!("`{tag}`{}", origin_of(tag, evidence))).collect();
    told.join(", ")
}

fn origin_of(what: &str, evidence: &Evidence<'_>) -> String {
    let origin = evidence.flow.origins.and_then(|origins| origins.get(what));
    origin.map_or_else(String::new, |origin| format!(" (from {origin})"))
}

/// The label of the task, as facts.
pub(super) fn label_facts(label: &Label) -> Facts {
    let tags = label.names().into_iter().map(|tag| text("label", tag));
    std::iter::once(text("integrity", label.integrity.as_str())).chain(tags).collect()
}
