//! What the index keeps of one record: enough to answer and to name the record, not the record.

use std::fmt;

use serde::{Deserialize, Serialize};
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision},
    capability::Right,
    digest::Digest,
    ids::{
        Action, AgentId, ApprovalId, CapabilityId, KeyId, OperatorId, PartId, Resource, RoleId, TaskId,
        TaskKind, UserId,
    },
    label::Label,
    policy::PolicyRevision,
    reason::ReasonCode,
    record::{
        DecisionId, Granted, Outcome, OutcomeStatus, Record, RecordBody, RecordKind, RecordedReason,
        Verdicted, What, Who,
    },
    time::{Millis, Timestamp},
};

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowKind {
    /// A verdict that allowed.
    Allow,
    /// A verdict that denied.
    Deny,
    /// A call that waits for people.
    Hold,
    /// How an allowed call ended.
    Outcome,
    /// A prepared record that was never the case: a refusal.
    Void,
    /// An approver said yes.
    Granted,
    /// An approver said no.
    Refused,
}

impl RowKind {
    /// The word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Hold => "hold",
            Self::Outcome => "outcome",
            Self::Void => "void",
            Self::Granted => "granted",
            Self::Refused => "refused",
        }
    }

    /// Whether it is an answer to a request for something to be done.
    #[must_use]
    pub fn is_verdict(self) -> bool {
        matches!(self, Self::Allow | Self::Deny | Self::Hold | Self::Void)
    }

    /// Whether something was not done because of it.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Deny | Self::Void)
    }
}

impl From<RecordKind> for RowKind {
    fn from(kind: RecordKind) -> Self {
        match kind {
            RecordKind::Allow => Self::Allow,
            RecordKind::Deny => Self::Deny,
            RecordKind::Hold => Self::Hold,
            RecordKind::Outcome => Self::Outcome,
            RecordKind::Void => Self::Void,
        }
    }
}

/// A cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Its code.
    pub code: ReasonCode,
    /// What the caller was told, cut to [`TOLD_CHARS_MAX`] characters.
    pub told: String,
}

/// Most characters of a cause that are kept; the record has all of them.
pub const TOLD_CHARS_MAX: usize = 240;

impl From<&RecordedReason> for Cause {
    fn from(reason: &RecordedReason) -> Self {
        let mut told: String = reason.told.chars().take(TOLD_CHARS_MAX).collect();
        if told.len() < reason.told.len() {
            told.push('…');
        }
        Self { code: reason.code, told }
    }
}

/// A hand-over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowHop {
    /// To whom.
    pub to: AgentId,
    /// To which key.
    pub key: KeyId,
    /// What was kept back.
    pub kept_back: Vec<Right>,
}

/// What was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowGrant {
    /// The kind of task; none for a right beyond those of the task.
    pub kind: Option<TaskKind>,
    /// The rights.
    pub rights: Vec<Right>,
    /// When the capability ends.
    pub expires: Timestamp,
    /// When the task ends; none for a right beyond those of the task.
    pub deadline: Option<Timestamp>,
    /// The roles the user had.
    pub roles: Vec<String>,
    /// Key it was issued to.
    pub key: KeyId,
    /// Plain SHA-256 of the user's instruction.
    pub instruction: Option<Digest>,
}

/// An approval that was asked for, given or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowApproval {
    /// Which.
    pub id: ApprovalId,
    /// Digest of the request: what the approvers saw.
    pub request: Digest,
    /// Who had to say yes.
    pub needs: Vec<(RoleId, u8)>,
    /// Who said yes; for an answer, who answered.
    pub by: Vec<OperatorId>,
    /// How long the call had waited.
    pub waited: Option<Millis>,
    /// The approver's words, for an answer.
    pub comment: String,
}

/// What a person let pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowAct {
    /// The act.
    pub id: ApprovalId,
    /// Who.
    pub by: OperatorId,
    /// What.
    pub what: String,
}

/// How an allowed call ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Where the outcome stands, or the void that replaces the record.
    pub place: Place,
    /// When.
    pub at: Timestamp,
    /// How; none if the record was voided.
    pub status: Option<OutcomeStatus>,
    /// Why, if it did not end well.
    pub code: Option<ReasonCode>,
    /// What the result carried.
    pub label: Option<Label>,
}

impl Ended {
    /// The word for people.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.status.map_or("voided", OutcomeStatus::as_str)
    }
}

/// Where a message stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The part of the audit stream.
    pub part: PartId,
    /// The sequence in that part's stream.
    pub sequence: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.part, self.sequence)
    }
}

/// One record, or one answer of an approver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its number in this index: sequences come again in every part, this does not.
    pub ordinal: u64,
    /// Where it stands.
    pub place: Place,
    /// When it was written, by the writer's clock.
    pub at: Timestamp,
    /// What it is about.
    pub kind: RowKind,
    /// The record's name; none for an answer.
    pub id: Option<DecisionId>,
    /// The task.
    pub task: Option<TaskId>,
    /// On whose authority.
    pub user: Option<UserId>,
    /// The agent the task was given to.
    pub agent: Option<AgentId>,
    /// The hand-overs.
    pub hops: Vec<RowHop>,
    /// The agent that made the call.
    pub caller: Option<AgentId>,
    /// An operator, for requests to the control plane.
    pub operator: Option<String>,
    /// The capability.
    pub capability: Option<CapabilityId>,
    /// Its renewal count.
    pub serial: Option<u64>,
    /// To what.
    pub resource: Option<Resource>,
    /// What.
    pub action: Option<Action>,
    /// Plain SHA-256 of the canonical arguments.
    pub arguments: Option<Digest>,
    /// Why not.
    pub causes: Vec<Cause>,
    /// What would have denied it if it were not observed.
    pub would_deny: Vec<Cause>,
    /// The task label a verdict was given under; for an outcome, what the result carried.
    pub label: Option<Label>,
    /// The policy that was asked.
    pub policy: Option<PolicyRevision>,
    /// The rules that decided, as `file:line`.
    pub rules: Vec<String>,
    /// What was granted.
    pub granted: Option<RowGrant>,
    /// The approval.
    pub approval: Option<RowApproval>,
    /// What people let pass.
    pub acts: Vec<RowAct>,
    /// How many alike verdicts it stands for.
    pub count: u64,
    /// For an allowed call, how it ended, once that is on record.
    pub ended: Option<Ended>,
    /// For an outcome, the record that allowed it, and how it ended.
    pub outcome: Option<(DecisionId, OutcomeStatus)>,
}

impl Row {
    fn empty(ordinal: u64, place: Place, at: Timestamp, kind: RowKind) -> Self {
        Self {
            ordinal,
            place,
            at,
            kind,
            id: None,
            task: None,
            user: None,
            agent: None,
            hops: Vec::new(),
            caller: None,
            operator: None,
            capability: None,
            serial: None,
            resource: None,
            action: None,
            arguments: None,
            causes: Vec::new(),
            would_deny: Vec::new(),
            label: None,
            policy: None,
            rules: Vec::new(),
            granted: None,
            approval: None,
            acts: Vec::new(),
            count: 1,
            ended: None,
            outcome: None,
        }
    }

    /// What is kept of a record.
    #[must_use]
    pub fn of_record(ordinal: u64, place: Place, record: &Record) -> Self {
        let mut row = Self::empty(ordinal, place, record.at, record.kind().into());
        row.id = Some(record.id.clone());
        match &record.body {
            RecordBody::Outcome(outcome) => row.take_outcome(outcome),
            RecordBody::Verdict(verdicted) => row.take_verdict(verdicted),
            RecordBody::Void(void) => {
                row.take_who(&void.who);
                row.take_what(&void.what);
                row.causes = vec![Cause::from(&void.cause)];
            }
        }
        row
    }

    /// What is kept of an approver's answer.
    #[must_use]
    pub fn of_answer(ordinal: u64, place: Place, answer: &ApprovalAnswer) -> Self {
        let kind = match answer.decision {
            ApprovalDecision::Granted => RowKind::Granted,
            ApprovalDecision::Refused => RowKind::Refused,
        };
        let mut row = Self::empty(ordinal, place, answer.at, kind);
        row.approval = Some(RowApproval {
            id: answer.approval.clone(),
            request: answer.request,
            needs: Vec::new(),
            by: vec![answer.approver.clone()],
            waited: None,
            comment: answer.comment.clone(),
        });
        row
    }

    fn take_who(&mut self, who: &Who) {
        self.task.clone_from(&who.task);
        self.user.clone_from(&who.user);
        self.agent.clone_from(&who.agent);
        self.caller.clone_from(&who.caller);
        self.operator.clone_from(&who.operator);
        self.capability.clone_from(&who.capability);
        self.serial = who.serial;
        let hops = who.hops.iter();
        self.hops = hops
            .map(|hop| RowHop { to: hop.to.clone(), key: hop.key.clone(), kept_back: hop.gave_up.clone() })
            .collect();
    }

    fn take_what(&mut self, what: &What) {
        self.resource.clone_from(&what.resource);
        self.action.clone_from(&what.action);
        self.arguments = what.arguments;
    }

    fn take_verdict(&mut self, verdicted: &Verdicted) {
        self.take_who(&verdicted.who);
        self.take_what(&verdicted.what);
        self.causes = verdicted.reasons.iter().map(Cause::from).collect();
        self.would_deny = verdicted.would_deny.iter().map(Cause::from).collect();
        self.label.clone_from(&verdicted.basis.label);
        self.policy = verdicted.basis.policy;
        self.rules.clone_from(&verdicted.basis.rules);
        self.count = verdicted.count;
        self.granted = verdicted.granted.as_deref().map(of_granted);
        if let Some(asked) = &verdicted.right {
            // A right that was asked for is what the request is about; it is granted once it has an end.
            self.resource = Some(asked.right.resource.clone());
            self.action = Some(asked.right.action.clone());
            if let Some(expires) = asked.expires {
                self.granted = Some(RowGrant {
                    kind: None,
                    rights: vec![asked.right.clone()],
                    expires,
                    deadline: None,
                    roles: Vec::new(),
                    key: asked.key.clone(),
                    instruction: None,
                });
            }
        }
        self.approval = verdicted.approval.as_deref().map(|approval| RowApproval {
            id: approval.id.clone(),
            request: approval.request,
            needs: approval.needs.iter().map(|need| (need.role.clone(), need.count)).collect(),
            by: approval.by.clone(),
            waited: approval.waited,
            comment: String::new(),
        });
        let acts = verdicted.acts.iter();
        self.acts = acts
            .map(|act| RowAct { id: act.id.clone(), by: act.by.clone(), what: act.what.clone() })
            .collect();
    }

    fn take_outcome(&mut self, outcome: &Outcome) {
        self.task.clone_from(&outcome.task);
        self.outcome = Some((outcome.intent.clone(), outcome.status));
        self.causes = outcome.reason.iter().map(Cause::from).collect();
        self.label.clone_from(&outcome.label);
    }

    /// Takes from the verdict what an outcome does not say of itself: whose call it was, and what.
    pub(super) fn complete_from(&mut self, intent: &Self) {
        self.user.clone_from(&intent.user);
        self.agent.clone_from(&intent.agent);
        self.hops.clone_from(&intent.hops);
        self.caller.clone_from(&intent.caller);
        self.capability.clone_from(&intent.capability);
        self.serial = intent.serial;
        self.resource.clone_from(&intent.resource);
        self.action.clone_from(&intent.action);
        self.arguments = intent.arguments;
        self.policy = intent.policy;
    }

    /// What an outcome or void says of the record it ends.
    pub(super) fn as_end(&self) -> Ended {
        Ended {
            place: self.place.clone(),
            at: self.at,
            status: self.outcome.as_ref().map(|(_, status)| *status),
            code: self.causes.first().map(|cause| cause.code),
            label: self.outcome.as_ref().and(self.label.clone()),
        }
    }

    /// The agents, the one the task was given to first.
    pub fn chain(&self) -> impl Iterator<Item = &AgentId> {
        self.agent.iter().chain(self.hops.iter().map(|hop| &hop.to))
    }

    /// `tool.crm:read`, as far as it is known.
    #[must_use]
    pub fn target(&self) -> String {
        let resource = self.resource.as_ref().map(ToString::to_string);
        let action = self.action.as_ref().map(ToString::to_string);
        match (resource, action) {
            (Some(resource), Some(action)) => format!("{resource}:{action}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => "?".to_owned(),
        }
    }

    /// Whether the agent is in the chain, made the call, or is what was called.
    #[must_use]
    pub fn involves(&self, agent: &AgentId) -> bool {
        self.chain().any(|one| one == agent) || self.caller.as_ref() == Some(agent)
    }

    /// Whether an allowed call has no outcome on record: nobody knows from here whether it ran.
    #[must_use]
    pub fn is_open(&self) -> bool {
        // What a broker grants, revokes or renews is done with the record itself.
        let is_call =
            matches!(self.id.as_ref().map(|id| &id.origin), Some(writ_common::record::Origin::Node(_)));
        self.kind == RowKind::Allow && is_call && self.ended.is_none()
    }
}

fn of_granted(granted: &Granted) -> RowGrant {
    RowGrant {
        kind: Some(granted.kind.clone()),
        rights: granted.rights.clone(),
        expires: granted.expires,
        deadline: Some(granted.deadline),
        roles: granted.roles.clone(),
        key: granted.key.clone(),
        instruction: Some(granted.instruction),
    }
}
