//! Records: what auditors read, and what everything can be proved from.
//!
//! Every verdict is one record, of a node or of a broker. Records of one run (`boot`) are numbered without holes
//! and each names the digest of the one prepared before it, so that a missing or exchanged record shows. A record
//! holds digests of arguments and results, never the content, never a capability's bytes, never a secret.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    approval::Need,
    capability::{Capability, Right},
    codec::Message,
    digest::Digest,
    epoch::Epoch,
    flow::GuardedArgument,
    ids::{
        Action, AgentId, ApprovalId, BootId, BrokerId, CapabilityId, EntityType, FindingKind, FlowDomain,
        InvalidId, KeyId, NodeId, OperatorId, PartId, Resource, TaskId, TaskKind, TenantId, UserId,
    },
    keys::Purpose,
    label::Label,
    policy::PolicyRevision,
    reason::{Reason, ReasonCode},
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
    verdict::{Decision, Verdict},
};

/// Who recorded it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A broker, about its own verdicts.
    Broker(BrokerId),
    /// A node.
    Node(NodeId),
}

impl Origin {
    /// The name without its kind, as it stands in subjects.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Broker(broker) => broker.as_str(),
            Self::Node(node) => node.as_str(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names one record: who, in which run, the how-manieth. Written `node-1/b-01k…/17`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionId {
    /// Who recorded it.
    pub origin: Origin,
    /// The run.
    pub boot: BootId,
    /// The position in the run, from 0.
    pub seq: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.origin, self.boot, self.seq)
    }
}

impl DecisionId {
    /// The message id the record is published under, unless it is an ALLOW: SHA-256 over origin, boot and seq.
    #[must_use]
    pub fn message_id(&self) -> Digest {
        self.digest_in("writ/v1/record-id")
    }

    /// The message id the record is put back under after the stream has lost it, whatever it was published under.
    #[must_use]
    pub fn restored_id(&self) -> Digest {
        self.digest_in("writ/v1/restored-id")
    }

    fn digest_in(&self, context: &str) -> Digest {
        Digest::of(
            context,
            &[self.origin.name().as_bytes(), self.boot.as_str().as_bytes(), &self.seq.to_be_bytes()],
        )
    }
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The tenant.
    pub tenant: TenantId,
    /// Its name.
    pub id: DecisionId,
    /// Digest of the record prepared before it in this run; zeros for the first.
    pub prev: Digest,
    /// When it was prepared, by the recorder's wall clock.
    pub at: Timestamp,
    /// The stream part it belongs to.
    pub part: PartId,
    /// What happened.
    pub body: RecordBody,
}

impl Signable for Record {
    const PURPOSE: Purpose = Purpose::Record;
    const KIND: &'static str = "record";
}

impl Message for Signed<Record> {
    const KIND: &'static str = "record";
    const BYTES_MAX: usize = 64 * 1024;
}

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RecordBody {
    /// How an allowed call ended.
    Outcome(Box<Outcome>),
    /// What was decided. For an allowed call it is the intent to act, recorded before acting.
    Verdict(Box<Verdicted>),
    /// That the record prepared at this position was never the case.
    Void(Box<Void>),
}

/// The class of a record, and the token of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// Something may be done; for a node, the intent to do it.
    Allow,
    /// It may not.
    Deny,
    /// It may once a human has said yes.
    Hold,
    /// How an allowed call ended.
    Outcome,
    /// A prepared record was never the case.
    Void,
}

impl RecordKind {
    /// The subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
            Self::Outcome => "outcome",
            Self::Void => "void",
        }
    }

    /// Reads the subject token.
    ///
    /// # Errors
    /// [`InvalidId`] for any other word.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        Ok(match text {
            "allow" => Self::Allow,
            "deny" => Self::Deny,
            "hold" => Self::Hold,
            "outcome" => Self::Outcome,
            "void" => Self::Void,
            _ => {
                return Err(InvalidId::new(
                    "record kind",
                    text,
                    "is none of allow, deny, hold, outcome, void",
                ));
            }
        })
    }
}

impl Record {
    /// Its class.
    #[must_use]
    pub fn kind(&self) -> RecordKind {
        match &self.body {
            RecordBody::Outcome(_) => RecordKind::Outcome,
            RecordBody::Verdict(verdicted) => verdicted.decision.into(),
            RecordBody::Void(_) => RecordKind::Void,
        }
    }

    /// The task it is about, if that is known.
    #[must_use]
    pub fn task(&self) -> Option<&TaskId> {
        match &self.body {
            RecordBody::Outcome(outcome) => outcome.task.as_ref(),
            RecordBody::Verdict(verdicted) => verdicted.who.task.as_ref(),
            RecordBody::Void(void) => void.who.task.as_ref(),
        }
    }
}

/// The three things a verdict can come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordedDecision {
    /// Allowed, with nothing left to discharge.
    Allow,
    /// Denied.
    Deny,
    /// Allowed, and waiting for a human.
    Hold,
}

impl From<RecordedDecision> for RecordKind {
    fn from(decision: RecordedDecision) -> Self {
        match decision {
            RecordedDecision::Allow => Self::Allow,
            RecordedDecision::Deny => Self::Deny,
            RecordedDecision::Hold => Self::Hold,
        }
    }
}

/// A cause as records keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedReason {
    /// The code.
    pub code: ReasonCode,
    /// What the caller was told.
    pub told: String,
    /// What only the record says; absent if there is no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noted: Option<String>,
}

impl From<&Reason> for RecordedReason {
    fn from(reason: &Reason) -> Self {
        let (told, noted) = (reason.for_caller(), reason.for_operator());
        Self { code: reason.code(), told: told.to_owned(), noted: (noted != told).then(|| noted.to_owned()) }
    }
}

/// One hand-over, as records keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedHop {
    /// The agent that handed it on.
    pub from: AgentId,
    /// The agent it was handed to.
    pub to: AgentId,
    /// The key it was handed to.
    pub key: KeyId,
    /// Stable id of the chain up to here.
    pub id: Digest,
    /// Rights that were kept back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gave_up: Vec<Right>,
}

/// On whose authority, through which hands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// The agent the task was given to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// The agent that made the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<AgentId>,
    /// An operator, for requests to the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
    /// The capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capability: Option<CapabilityId>,
    /// Its renewal count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
    /// Stable id of the whole chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Digest>,
    /// The hand-overs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hops: Vec<RecordedHop>,
    /// Fingerprint of the key that proved possession.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Digest>,
    /// Fingerprint of the keyset key that signed the capability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<Digest>,
    /// The flow domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<FlowDomain>,
    /// The NATS user the request came over, as the server attests it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
}

impl Who {
    /// Everything a verified capability says.
    #[must_use]
    pub fn of_capability(capability: &Capability, connection: Option<&str>) -> Self {
        let (grant, chain) = (capability.grant(), capability.chain());
        Self {
            task: Some(grant.task.clone()),
            user: Some(grant.user.clone()),
            agent: Some(grant.agent.clone()),
            caller: Some(chain.caller().clone()),
            operator: None,
            capability: Some(grant.capability.clone()),
            serial: Some(grant.serial),
            chain: Some(capability.chain_id()),
            hops: chain
                .hops()
                .map(|hop| RecordedHop {
                    from: hop.from.clone(),
                    to: hop.to.clone(),
                    key: hop.key.id(),
                    id: hop.id,
                    gave_up: hop.gave_up.iter().cloned().collect(),
                })
                .collect(),
            holder: Some(chain.holder().fingerprint()),
            issuer: Some(capability.issuer().fingerprint()),
            domain: Some(grant.domain.clone()),
            connection: connection.map(str::to_owned),
        }
    }
}

/// What was to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct What {
    /// To what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
    /// What.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// Plain SHA-256 of the canonical arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Digest>,
    /// The call digest: resource, action, arguments and task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Digest>,
    /// The call id: holder key and nonce. The intent to act is published under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<Digest>,
    /// Digest of the tool's contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<Digest>,
    /// Stable id of the chain handed to an agent with the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handover: Option<Digest>,
}

/// What the decision was based on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// The policy that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRevision>,
    /// Why a later policy was not taken: this one is the last good one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_fault: Option<ReasonCode>,
    /// The rules that decided, as `file:line`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// The control state it was decided at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<Epoch>,
    /// How old the knowledge of that state was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<Millis>,
    /// Stream sequence of the task label that was seen; the intent is fenced on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_revision: Option<u64>,
    /// That label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
}

/// Where the trace of the request continues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRef {
    /// W3C trace id, 32 hex digits. Navigation, not evidence: the caller chose it.
    pub trace: String,
    /// Span id, 16 hex digits.
    pub span: String,
}

/// What the broker granted, in records of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Granted {
    /// The kind of task.
    pub kind: TaskKind,
    /// The rights.
    pub rights: Vec<Right>,
    /// How deep it may be delegated.
    pub max_depth: u8,
    /// When the capability ends.
    pub expires: Timestamp,
    /// When the task ends.
    pub deadline: Timestamp,
    /// Key the capability was issued to.
    pub key: KeyId,
    /// Plain SHA-256 of the user's instruction.
    pub instruction: Digest,
    /// Digest of the idempotency key, with user and agent.
    pub idempotency: Digest,
    /// Digest of what was asked for, so that the same key for something else is noticed.
    pub asked: Digest,
    /// The roles the user had.
    pub roles: Vec<String>,
    /// Control state when the task was started.
    pub started: Epoch,
}

/// A right that a task asked for beyond what it holds, in records of the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedRight {
    /// The right.
    pub right: Right,
    /// Key that asked, and that alone could use it.
    pub key: KeyId,
    /// When the extra capability ends, if one was issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdicted {
    /// What it came to.
    pub decision: RecordedDecision,
    /// Why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<RecordedReason>,
    /// What would have denied it if the tool or agent were not in observe mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub would_deny: Vec<RecordedReason>,
    /// On whose authority.
    pub who: Who,
    /// To do what.
    pub what: What,
    /// On what basis.
    pub basis: Basis,
    /// Where the trace continues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceRef>,
    /// What was granted, if a capability was issued or renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Box<Granted>>,
    /// The right that was asked for, if one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<Box<RecordedRight>>,
    /// The approval it waits for, or was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Box<RecordedApproval>>,
    /// The arguments that decide who is affected, and what vouched for them, if outsiders had a say in the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<RecordedSource>,
    /// What inspectors found in the arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<RecordedFinding>,
    /// What people let pass, and this call used up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acts: Vec<RecordedAct>,
    /// What the policy in the shadow would have answered, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Box<Shadowed>>,
    /// How many alike verdicts this record stands for; more than one only over quota.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
}

/// What a policy that is only asked would have answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadowed {
    /// The policy.
    pub policy: PolicyRevision,
    /// Its answer.
    pub decision: RecordedDecision,
    /// Why not, or why not yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<ReasonCode>,
    /// The rules that decided, as `file:line`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// Whether that is another answer, or one for other reasons, than the policy in force gave.
    pub differs: bool,
}

impl Shadowed {
    /// Compares what the shadow would have answered with what was.
    #[must_use]
    pub fn of(shadow: &Verdict, active: &Verdict) -> Option<Self> {
        let answer = |verdict: &Verdict| match verdict.decision() {
            Decision::Deny => RecordedDecision::Deny,
            Decision::Allow if verdict.approval().is_some() => RecordedDecision::Hold,
            Decision::Allow => RecordedDecision::Allow,
        };
        let reasons = |verdict: &Verdict| {
            let codes: BTreeSet<ReasonCode> = verdict.reasons().iter().map(Reason::code).collect();
            codes
        };
        let differs = answer(shadow) != answer(active)
            || reasons(shadow) != reasons(active)
            || shadow.obligations() != active.obligations();
        Some(Self {
            policy: shadow.policy_revision()?,
            decision: answer(shadow),
            reasons: reasons(shadow).into_iter().collect(),
            rules: shadow.rules().to_vec(),
            differs,
        })
    }
}

/// An approval, as records keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedApproval {
    /// Which.
    pub id: ApprovalId,
    /// Digest of the request: what the approvers saw.
    pub request: Digest,
    /// Who had to say yes.
    pub needs: Vec<Need>,
    /// Who said yes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<OperatorId>,
    /// How long the call had waited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<Millis>,
}

/// What a person let pass, as records keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedAct {
    /// The act; the stream holds it and its use.
    pub id: ApprovalId,
    /// Who said so.
    pub by: OperatorId,
    /// `declassified` with tags, or `endorsed`.
    pub what: String,
}

/// A guarded argument, as records keep it: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSource {
    /// Where it stands, as a JSON Pointer.
    pub path: String,
    /// What it names.
    pub entity: EntityType,
    /// What vouched for it; absent if nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// What was found by one detector, as records keep it: neither the text nor its place, whose names can be somebody's
/// words too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedFinding {
    /// What sort of thing.
    pub kind: FindingKind,
    /// By which detector, as `inspector.detector`.
    pub detector: String,
    /// How bad at worst, 0 to 100.
    pub severity: u8,
    /// In how many places.
    pub places: u64,
}

impl From<&GuardedArgument> for RecordedSource {
    fn from(argument: &GuardedArgument) -> Self {
        Self {
            path: argument.path.clone(),
            entity: argument.entity.clone(),
            source: argument.source.as_ref().map(ToString::to_string),
        }
    }
}

fn one() -> u64 {
    1
}

fn is_one(count: &u64) -> bool {
    *count == 1
}

impl Verdicted {
    /// The approval and the acts it names.
    pub fn words(&self) -> impl Iterator<Item = &ApprovalId> {
        let approval = self.approval.iter().map(|approval| &approval.id);
        approval.chain(self.acts.iter().map(|act| &act.id))
    }

    /// A record of a verdict; `decision` says whether an allowance has to wait.
    #[must_use]
    pub fn new(
        decision: RecordedDecision,
        verdict: &Verdict,
        who: Who,
        what: What,
        mut basis: Basis,
    ) -> Self {
        basis.policy = verdict.policy_revision();
        basis.rules = verdict.rules().to_vec();
        let reasons = verdict.reasons().iter().map(RecordedReason::from).collect();
        let would_deny = verdict.would_deny().iter().map(RecordedReason::from).collect();
        Self {
            decision,
            reasons,
            would_deny,
            who,
            what,
            basis,
            trace: None,
            granted: None,
            right: None,
            approval: None,
            sources: verdict.flow().arguments.iter().map(RecordedSource::from).collect(),
            found: Vec::new(),
            acts: Vec::new(),
            shadow: None,
            count: 1,
        }
    }
}

/// That a prepared record was never the case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Void {
    /// Digest of the record that was prepared at this position.
    pub prepared: Digest,
    /// Why it came to nothing.
    pub cause: RecordedReason,
    /// On whose authority.
    pub who: Who,
    /// To do what.
    pub what: What,
}

/// How an allowed call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The record that allowed it.
    pub intent: DecisionId,
    /// Its call id.
    pub call_id: Digest,
    /// The task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// How it ended.
    pub status: OutcomeStatus,
    /// The cause, if it did not end well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<RecordedReason>,
    /// Plain SHA-256 of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Digest>,
    /// Size of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_bytes: Option<u64>,
    /// What the result carried when it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Label>,
    /// What inspectors found in the result.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<RecordedFinding>,
    /// How long it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elapsed: Option<Millis>,
    /// Digests of the pieces of content the result is made of; at most [`MANIFEST_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifest: Vec<Digest>,
}

impl Outcome {
    /// How something ended, and nothing else of it.
    #[must_use]
    pub fn of(intent: DecisionId, call_id: Digest, task: Option<TaskId>, status: OutcomeStatus) -> Self {
        Self {
            intent,
            call_id,
            task,
            status,
            reason: None,
            result: None,
            result_bytes: None,
            label: None,
            found: Vec::new(),
            elapsed: None,
            manifest: Vec::new(),
        }
    }
}

/// Most pieces of content one result is made of, as records list them.
pub const MANIFEST_MAX: usize = 64;

/// How an allowed call can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeStatus {
    /// It ran and gave its result.
    Done,
    /// It ran and reported an error.
    Failed,
    /// It was allowed and then not begun: known to have had no effect.
    NotRun,
    /// Nobody knows whether it ran.
    UnknownOutcome,
}

impl OutcomeStatus {
    /// The word in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::NotRun => "not_run",
            Self::UnknownOutcome => "unknown_outcome",
        }
    }
}

/// A node's signed word to a caller: this record exists. Callers keep it, so that a node that leaves a record out
/// can be caught.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The tenant.
    pub tenant: TenantId,
    /// The record.
    pub id: DecisionId,
    /// Its digest.
    pub record: Digest,
    /// The call digest it answers; absent if the call could not be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Digest>,
    /// The call id it answers; absent if the call could not be read that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<Digest>,
    /// Digest of the answer that comes with it.
    pub answer: Digest,
}

impl Message for Signed<Receipt> {
    const KIND: &'static str = "receipt";
    const BYTES_MAX: usize = 4 * 1024;
}

impl Signable for Receipt {
    const PURPOSE: Purpose = Purpose::Receipt;
    const KIND: &'static str = "receipt";
}
