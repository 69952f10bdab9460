//! Approvals: what a human has to say yes to, and how often that yes counts.
//!
//! A node that may do something only with an approval publishes an [`ApprovalRequest`]: exactly what would run. So does a
//! broker that may issue a right only with one: exactly what could be done, by whom and for how long.
//! Approvers answer it, each signed with a key of their own and bound to the digest of the request. Before the
//! node acts it claims the approval: one claim per approval, by compare-and-set on the bus, whichever node acts.
//! [`Approvals`] is the fold of all this; [`Approvals::weigh`] is the only way from it to an [`Approved`], and that
//! the only thing that discharges the obligation. DESIGN section 7.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    capability::Right,
    codec::{Message, decode},
    control::ControlState,
    digest::Digest,
    ids::{
        Action, AgentId, ApprovalId, BootId, NodeId, OperatorId, PartId, Resource, RoleId, TaskId, TenantId,
        UserId,
    },
    keys::{PublicKey, Purpose},
    label::{Label, Origins},
    policy::{PolicyRevision, PolicySet},
    reason::{Reason, ReasonCode},
    record::{RecordedSource, TraceRef},
    request::ARGUMENT_BYTES_MAX,
    signed::{Signable, Signed},
    subjects::Subject,
    time::{Millis, Timestamp},
    wire::{call_digest, right_digest},
};

/// Most approvals one obligation can ask for.
pub const APPROVERS_MAX: u8 = 16;
/// How long a request is open if policy does not say.
pub const LIFE: Millis = Millis::from_secs(3_600);
/// Longest a request can be open.
pub const LIFE_MAX: Millis = Millis::from_secs(7 * 86_400);
/// How long a request is remembered after its end, so that late comers are told so. The stream has it for longer.
const KEPT_AFTER_END: Millis = Millis::from_secs(86_400);
/// How far the clocks of an approver and a node may be apart.
pub const SKEW: Millis = Millis::from_secs(60);
/// Longest comment of an approver, in bytes.
pub const COMMENT_BYTES_MAX: usize = 1_024;
/// Most requests of one task that wait at once: a human who is asked too often stops reading.
pub const WAITING_PER_TASK_MAX: usize = 8;
/// Most requests on one user's authority that wait at once.
pub const WAITING_PER_USER_MAX: usize = 32;
/// Most approvals kept in memory; those that are settled make room.
const APPROVALS_MAX: usize = 4_096;
/// Most claims kept of approvals that are not.
const CLAIMS_MAX: usize = 65_536;
/// Most requests of which only that they ended is remembered.
const ENDED_MAX: usize = 65_536;
/// How long a claim that was not used keeps other calls off.
const CLAIM_LIFE: Millis = Millis::from_secs(120);

/// So many people with this role.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// The role, as approvers.toml gives it.
    pub role: RoleId,
    /// How many people.
    pub count: u8,
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.count {
            1 => write!(f, "1 approval by `{}`", self.role),
            count => write!(f, "{count} approvals by `{}`", self.role),
        }
    }
}

/// Needs in words, for people and models.
#[must_use]
pub fn in_words(needs: &[Need]) -> String {
    needs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// What policy asks for before something may be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalTerms {
    /// Who has to say yes; never empty, in the order of roles.
    pub needs: Vec<Need>,
    /// Roles in which the user of the task may approve what is done on their own authority.
    pub own: BTreeSet<RoleId>,
    /// How long it can be answered.
    pub life: Millis,
}

/// What a node or broker asks approvers, signed by it: exactly what would run, or could.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// Its id.
    pub id: ApprovalId,
    /// The node that asks, or the broker.
    pub node: NodeId,
    /// When.
    pub at: Timestamp,
    /// Until when it can be answered and used.
    pub expires: Timestamp,
    /// On whose authority.
    pub user: UserId,
    /// The task.
    pub task: TaskId,
    /// The agents, the one that was given the task first; the last makes the call.
    pub chain: Vec<AgentId>,
    /// To what.
    pub resource: Resource,
    /// What.
    pub action: Action,
    /// The arguments as canonical JSON: these bytes would run.
    pub arguments: String,
    /// The call digest: resource, action, arguments and task.
    pub call: Digest,
    /// Digest of the tool's contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<Digest>,
    /// The policy that asks for it.
    pub policy: PolicyRevision,
    /// The rules that allowed it, as `file:line`.
    pub rules: Vec<String>,
    /// The label of what the task has read so far.
    pub label: Label,
    /// The calls that brought each part of it in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: Origins,
    /// The arguments that decide who is affected, and what vouches for them, if outsiders had a say in the task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<RecordedSource>,
    /// Who has to say yes.
    pub needs: Vec<Need>,
    /// Where the trace of the call stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceRef>,
    /// That it is no call that waits, but a right: `resource` and `action` are the right, `arguments` the values it
    /// would be bound to, `call` the digest of all that, and `node` the broker that asks, with a key of the keyset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub right: Option<AskedRight>,
}

/// What else there is to a right that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AskedRight {
    /// The key that would hold it: the one that asks.
    pub holder: PublicKey,
    /// How long it could be used, from when it is issued.
    pub life: Millis,
    /// Why, in the words of the agent: nobody vouches for them.
    pub why: String,
}

impl ApprovalRequest {
    /// Whether it ended so long ago that nobody asks after it any more.
    fn is_forgotten(&self, now: Timestamp) -> bool {
        self.expires.after(KEPT_AFTER_END) <= now
    }

    /// The digest of what is shown: of the call, or of the right.
    #[must_use]
    pub fn shown(&self) -> Digest {
        match &self.right {
            None => call_digest(&self.resource, &self.action, &self.arguments, &self.task),
            Some(AskedRight { holder, life, .. }) => {
                let right = Right { resource: self.resource.clone(), action: self.action.clone() };
                right_digest(&right, &self.arguments, &self.task, holder, *life)
            }
        }
    }
}

impl Signable for ApprovalRequest {
    const PURPOSE: Purpose = Purpose::ApprovalRequest;
    const KIND: &'static str = "approval_request";
}

impl Message for Signed<ApprovalRequest> {
    const KIND: &'static str = "approval_request";
    const BYTES_MAX: usize = ARGUMENT_BYTES_MAX + 64 * 1024;
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApprovalDecision {
    /// It may be done.
    Granted,
    /// It may not.
    Refused,
}

/// What an approver says, signed with the approver's key. A later answer of the same person replaces it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalAnswer {
    /// The tenant.
    pub tenant: TenantId,
    /// Which request.
    pub approval: ApprovalId,
    /// Digest of the request as it was shown.
    pub request: Digest,
    /// Who answers.
    pub approver: OperatorId,
    /// When.
    pub at: Timestamp,
    /// Until when it counts.
    pub expires: Timestamp,
    /// Yes or no.
    pub decision: ApprovalDecision,
    /// Why, in the approver's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

impl Signable for ApprovalAnswer {
    const PURPOSE: Purpose = Purpose::Approval;
    const KIND: &'static str = "approval";
}

impl Message for Signed<ApprovalAnswer> {
    const KIND: &'static str = "approval";
    const BYTES_MAX: usize = 8 * 1024;
}

/// How far a claim has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClaimState {
    /// A call wants to use the approval.
    Claimed,
    /// That call is on record as allowed and about to run: the approval is used up.
    Used,
}

/// A node's word that it uses an approval for one call, or a broker's that it issues one right by it. Each follows the one before it by compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApprovalClaim {
    /// The tenant.
    pub tenant: TenantId,
    /// Which approval.
    pub approval: ApprovalId,
    /// The call that uses it.
    pub call_id: Digest,
    /// The node.
    pub node: NodeId,
    /// The node's run.
    pub boot: BootId,
    /// When.
    pub at: Timestamp,
    /// How far it has got.
    pub state: ClaimState,
}

impl Signable for ApprovalClaim {
    const PURPOSE: Purpose = Purpose::Claim;
    const KIND: &'static str = "claim";
}

impl Message for Signed<ApprovalClaim> {
    const KIND: &'static str = "claim";
    const BYTES_MAX: usize = 4 * 1024;
}

/// An approval that counts: made by [`Approvals::weigh`] alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Approved {
    id: ApprovalId,
    request: Digest,
    by: Vec<OperatorId>,
    terms: ApprovalTerms,
}

impl Approved {
    /// Which.
    #[must_use]
    pub fn id(&self) -> &ApprovalId {
        &self.id
    }

    /// Digest of the request.
    #[must_use]
    pub fn request(&self) -> Digest {
        self.request
    }

    /// Who said yes.
    #[must_use]
    pub fn by(&self) -> &[OperatorId] {
        &self.by
    }

    /// What it discharges.
    #[must_use]
    pub fn terms(&self) -> &ApprovalTerms {
        &self.terms
    }
}

/// Where a request stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// Enough people said yes.
    Granted(Approved),
    /// Not enough people have answered.
    Waiting {
        /// Who is still missing.
        missing: Vec<Need>,
        /// Answers that do not count, and why.
        unusable: Vec<Reason>,
    },
}

/// The call that wants to use an approval.
#[derive(Clone, Copy, Debug)]
pub struct ApprovedCall<'a> {
    /// On whose authority.
    pub user: &'a UserId,
    /// The task.
    pub task: &'a TaskId,
    /// The agents, the one that was given the task first.
    pub chain: &'a [AgentId],
    /// The call digest.
    pub call: Digest,
    /// Digest of the tool's contract.
    pub contract: Option<Digest>,
}

/// One approval as the stream tells it.
#[derive(Clone, Debug)]
pub struct Approval {
    signed: Signed<ApprovalRequest>,
    request: ApprovalRequest,
    part: PartId,
    answers: BTreeMap<OperatorId, Signed<ApprovalAnswer>>,
    claim: Option<(u64, Option<ApprovalClaim>)>,
}

impl Approval {
    /// What was asked. Whether an enrolled node asked it, [`Approval::check_request`] says.
    #[must_use]
    pub fn request(&self) -> &ApprovalRequest {
        &self.request
    }

    /// The digest answers are bound to.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.signed.digest()
    }

    /// The stream part it lives in.
    #[must_use]
    pub fn part(&self) -> &PartId {
        &self.part
    }

    /// The last claim, with its stream sequence; the claim is absent if it is not readable.
    #[must_use]
    pub fn claim(&self) -> Option<(u64, Option<&ApprovalClaim>)> {
        self.claim.as_ref().map(|(sequence, claim)| (*sequence, claim.as_ref()))
    }

    /// Whether it was used.
    #[must_use]
    pub fn is_used(&self) -> bool {
        self.claim.as_ref().is_some_and(|(_, claim)| is_used(claim.as_ref()))
    }

    /// Every answer, the last of each person, whether it counts or not.
    pub fn answers(&self) -> impl Iterator<Item = ApprovalAnswer> {
        self.answers.values().filter_map(|signed| signed.peek().ok())
    }

    /// Checks that whoever it names asked it: a node for calls, a broker, by a key of the keyset, for rights.
    ///
    /// # Errors
    /// `approval.signature`.
    pub fn check_request(&self, control: &ControlState) -> Result<(), Reason> {
        let request = &self.request;
        let node = control.nodes().get(&request.node);
        let opened = self.signed.open(|key| match request.right {
            None => node.is_some_and(|node| node.key == *key),
            Some(_) => {
                control.keyset().is_some_and(|keyset| keyset.is_active(key, &request.tenant, request.at))
            }
        });
        match opened {
            Err(error) if !crate::red::off("H11") => {
                Err(Reason::new(ReasonCode::ApprovalSignature).told("the request").noted(error))
            }
            _ => Ok(()),
        }
    }

    /// Checks that a call is exactly the one that was asked for, by the same agents for the same task.
    fn check_call(&self, call: &ApprovedCall<'_>) -> Result<(), Reason> {
        let request = &self.request;
        let differs = [
            (request.call != call.call, "another call: tool, action, arguments or task differ"),
            (request.task != *call.task, "another task"),
            (request.user != *call.user, "another user"),
            (request.chain != call.chain, "another chain of agents"),
            (request.contract != call.contract, "another contract of the tool"),
        ];
        match differs.into_iter().find(|(differs, _)| *differs) {
            Some((_, why)) if !crate::red::off("H02") => Err(Reason::new(ReasonCode::ApprovalBinding)
                .told(format_args!("the approval `{}` is for {why}", request.id))),
            _ => Ok(()),
        }
    }

    /// Why an answer does not count, if it does not.
    fn check_answer(
        &self,
        signed: &Signed<ApprovalAnswer>,
        terms: &ApprovalTerms,
        control: &ControlState,
        policy: &PolicySet,
        now: Timestamp,
    ) -> Result<ApprovalAnswer, Reason> {
        let claimed =
            signed.peek().map_err(|error| Reason::new(ReasonCode::ApprovalSignature).noted(error))?;
        let who = &claimed.approver;
        let told = |code: ReasonCode, why: String| Reason::new(code).told(format_args!("`{who}`: {why}"));
        let key = control.approver_key(who);
        let opened = signed.open(|signer| Some(signer) == key);
        let answer = match opened {
            Err(error) if !crate::red::off("H11") => {
                return Err(told(ReasonCode::ApprovalSignature, "not signed by the enrolled key".to_owned())
                    .noted(error));
            }
            Err(_) => claimed.clone(),
            Ok(answer) => answer,
        };
        if answer.tenant != self.request.tenant
            || answer.approval != self.request.id
            || (answer.request != self.digest() && !crate::red::off("H02"))
        {
            return Err(told(ReasonCode::ApprovalBinding, "answered another request".to_owned()));
        }
        let is_early = self.request.at.since(answer.at) > SKEW;
        let is_ahead = answer.at.since(now) > SKEW;
        if (now >= answer.expires || is_early || is_ahead) && !crate::red::off("H05") {
            let why = format!("answered at {}, good until {}", answer.at, answer.expires);
            return Err(told(ReasonCode::ApprovalExpired, why));
        }
        let entry = policy.inventory().approvers.get(who);
        let has_role =
            entry.is_some_and(|entry| terms.needs.iter().any(|need| entry.roles.contains(&need.role)));
        if !has_role && !crate::red::off("H04") {
            return Err(told(
                ReasonCode::ApprovalRole,
                format!("has not the role of {}", in_words(&terms.needs)),
            ));
        }
        Ok(answer)
    }

    /// The roles in which an approver's yes counts here: those asked for that they have, and where they are the
    /// user of the task, those in which policy lets users approve for themselves.
    fn roles_of(&self, who: &OperatorId, terms: &ApprovalTerms, policy: &PolicySet) -> BTreeSet<RoleId> {
        let asked = terms.needs.iter().map(|need| &need.role);
        let Some(entry) = policy.inventory().approvers.get(who) else {
            // Reached only where the check of roles is off.
            return asked.cloned().collect();
        };
        let is_own = entry.users.contains(self.request.user.subject()) && !crate::red::off("H03");
        asked
            .filter(|role| entry.roles.contains(*role) && (!is_own || terms.own.contains(*role)))
            .cloned()
            .collect()
    }
}

/// Why a message on an approval subject was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {why}")]
pub struct ApprovalFault {
    subject: String,
    why: String,
}

/// The fold of every approval subject of a tenant.
#[derive(Clone, Debug, Default)]
pub struct Approvals {
    known: BTreeMap<ApprovalId, Approval>,
    /// Claims of approvals that are not known, such as a request that has ended.
    claims: BTreeMap<ApprovalId, (u64, Option<ApprovalClaim>)>,
    /// Requests that were forgotten. The stream has them, so that the same cannot be asked for again.
    ended: BTreeSet<ApprovalId>,
}

impl Approvals {
    /// Takes a message of the stream. Signatures are judged when it is used: by the keys that count then.
    ///
    /// # Errors
    /// [`ApprovalFault`] for what is not readable or stands on another's subject; it changes nothing.
    pub fn take(
        &mut self,
        sequence: u64,
        subject: &str,
        payload: &[u8],
        now: Timestamp,
    ) -> Result<(), ApprovalFault> {
        if self.known.len() >= APPROVALS_MAX || self.claims.len() >= CLAIMS_MAX {
            self.make_room(now);
        }
        let fault = |why: String| ApprovalFault { subject: subject.to_owned(), why };
        let (tenant, parsed) = Subject::parse(subject).map_err(|error| fault(error.to_string()))?;
        match parsed {
            Subject::ApprovalRequest { part, approval } => {
                let signed: Signed<ApprovalRequest> =
                    decode(payload).map_err(|error| fault(error.to_string()))?;
                let request = signed.peek().map_err(|error| fault(error.to_string()))?;
                if request.tenant != tenant || request.id != approval {
                    return Err(fault("the request names another approval or tenant".to_owned()));
                }
                // What people see and what is compared with the call have to be the same.

                let shown = request.shown();
                let is_short = request.expires.since(request.at) <= LIFE_MAX;
                if (shown != request.call || !is_short) && !crate::red::off("H06-digest") {
                    return Err(fault(
                        "the request does not show the call it is for, or never ends".to_owned(),
                    ));
                }
                if request.is_forgotten(now) {
                    self.end([approval]);
                    return Ok(());
                }
                // The first counts: what was shown cannot be exchanged.
                if !self.known.contains_key(&approval) && self.known.len() < APPROVALS_MAX {
                    let claim = self.claims.remove(&approval);
                    let answers = BTreeMap::new();
                    self.known.insert(approval, Approval { signed, request, part, answers, claim });
                }
            }
            Subject::ApprovalAnswer { approval, approver, .. } => {
                let signed: Signed<ApprovalAnswer> =
                    decode(payload).map_err(|error| fault(error.to_string()))?;
                let answer = signed.peek().map_err(|error| fault(error.to_string()))?;
                if answer.tenant != tenant || answer.approval != approval || answer.approver != approver {
                    return Err(fault("the answer names another approval, approver or tenant".to_owned()));
                }
                if let Some(known) = self.known.get_mut(&approval) {
                    known.answers.insert(approver, signed);
                }
            }
            Subject::ApprovalClaim { approval, .. } => {
                let claim =
                    decode::<Signed<ApprovalClaim>>(payload).ok().and_then(|signed| signed.peek().ok());
                match self.known.get_mut(&approval) {
                    // Used is used, whatever a node says afterwards.
                    Some(known) if known.is_used() => {}
                    Some(known) if known.claim.as_ref().is_some_and(|(last, _)| *last >= sequence) => {}
                    Some(known) => known.claim = Some((sequence, claim)),
                    None if self.claims.get(&approval).is_some_and(|(_, known)| is_used(known.as_ref())) => {}
                    None if self.claims.len() < CLAIMS_MAX => {
                        self.claims.insert(approval, (sequence, claim));
                    }
                    None => {}
                }
            }
            // Of the same plane, and folded elsewhere.
            Subject::LabelAct { .. } => {}
            _ => return Err(fault("is about no approval".to_owned())),
        }
        Ok(())
    }

    /// Takes a claim of one's own as soon as it is acknowledged; the stream brings it once more.
    pub fn claimed(&mut self, sequence: u64, claim: ApprovalClaim) {
        if let Some(known) = self.known.get_mut(&claim.approval)
            && known.claim.as_ref().is_none_or(|(last, _)| *last < sequence)
        {
            known.claim = Some((sequence, Some(claim)));
        }
    }

    /// Forgets what ended long ago, and of what is settled everything but that it was used.
    fn make_room(&mut self, now: Timestamp) {
        self.prune(now);
        if self.known.len() < APPROVALS_MAX {
            return;
        }
        let waiting: BTreeSet<ApprovalId> =
            self.waiting(now).map(|approval| approval.request.id.clone()).collect();
        for (id, approval) in std::mem::take(&mut self.known) {
            // A call is being made with it, and is still to find it here.
            let is_under_way = matches!(approval.claim, Some((_, Some(_))))
                && !approval.is_used()
                && now < approval.request.expires;
            match approval.claim {
                _ if is_under_way || waiting.contains(&id) => drop(self.known.insert(id, approval)),
                claim => {
                    self.end([id.clone()]);
                    if let Some(claim) = claim.filter(|_| self.claims.len() < CLAIMS_MAX) {
                        self.claims.insert(id, claim);
                    }
                }
            }
        }
    }

    /// Remembers that requests ended; of very many, only the last ids in order.
    fn end(&mut self, ids: impl IntoIterator<Item = ApprovalId>) {
        self.ended.extend(ids);
        while self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
    }

    /// Forgets what ended long ago.
    pub fn prune(&mut self, now: Timestamp) {
        let forgotten = self.known.extract_if(.., |_, approval| approval.request.is_forgotten(now));
        let ended: Vec<_> = forgotten.map(|(id, _)| id).collect();
        self.end(ended);
        let (known, kept) = (&self.known, LIFE_MAX);
        self.claims.retain(|id, (_, claim)| {
            let at = claim.as_ref().map_or(now, |claim| claim.at);
            !known.contains_key(id) && at.after(kept).after(KEPT_AFTER_END) > now
        });
    }

    /// One approval.
    #[must_use]
    pub fn get(&self, id: &ApprovalId) -> Option<&Approval> {
        self.known.get(id)
    }

    /// Whether there was such a request once: it is not known any more, and cannot be made again.
    #[must_use]
    pub fn has_ended(&self, id: &ApprovalId) -> bool {
        self.ended.contains(id) && !self.known.contains_key(id)
    }

    /// Every approval, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (&ApprovalId, &Approval)> {
        self.known.iter()
    }

    /// Requests that nobody refused, that are not past their end, and that no call has claimed.
    pub fn waiting(&self, now: Timestamp) -> impl Iterator<Item = &Approval> {
        self.known.values().filter(move |approval| {
            approval.claim.is_none()
                && now < approval.request.expires
                && !approval.answers().any(|answer| answer.decision == ApprovalDecision::Refused)
        })
    }

    /// Whether there is room for another request of this task and user, besides those that are on their way.
    ///
    /// # Errors
    /// `approval.quota`.
    pub fn check_quota<'a>(
        &self,
        task: &TaskId,
        user: &UserId,
        on_their_way: impl Iterator<Item = &'a (TaskId, UserId)>,
        now: Timestamp,
    ) -> Result<(), Reason> {
        let waiting = self.waiting(now).map(|approval| (&approval.request.task, &approval.request.user));
        let (mut all, mut of_task, mut of_user) = (0, 0, 0);
        for (other_task, other_user) in waiting.chain(on_their_way.map(|(task, user)| (task, user))) {
            all += 1;
            of_task += usize::from(other_task == task);
            of_user += usize::from(other_user == user);
        }
        let is_over = of_task >= WAITING_PER_TASK_MAX || of_user >= WAITING_PER_USER_MAX;
        if (is_over || all >= APPROVALS_MAX) && !crate::red::off("H10") {
            return Err(Reason::new(ReasonCode::ApprovalQuota).told(format_args!(
                "{of_task} requests of this task and {of_user} of this user wait already"
            )));
        }
        Ok(())
    }

    /// Whether an approval allows a call now, under the policy and the keys of now.
    ///
    /// # Errors
    /// Why this call can never go ahead by it: unknown, expired, refused, or for another call.
    pub fn weigh(
        &self,
        id: &ApprovalId,
        call: &ApprovedCall<'_>,
        terms: &ApprovalTerms,
        control: &ControlState,
        policy: &PolicySet,
        now: Timestamp,
    ) -> Result<Standing, Reason> {
        let approval = self.known.get(id).ok_or(ReasonCode::ApprovalUnknown)?;
        approval.check_request(control)?;
        approval.check_call(call)?;
        let request = &approval.request;
        if now >= request.expires && !crate::red::off("H05") {
            return Err(Reason::new(ReasonCode::ApprovalExpired)
                .told(format_args!("the request ended at {}", request.expires)));
        }
        // A new revision that asks for the same goes on with the old request; one that asks for more does not.
        if request.needs != terms.needs && !crate::red::off("H02") {
            return Err(Reason::new(ReasonCode::ApprovalBinding).told(format_args!(
                "policy asks for {} now, and asked for {}",
                in_words(&terms.needs),
                in_words(&request.needs)
            )));
        }
        let mut unusable = Vec::new();
        let mut yes: Vec<(OperatorId, BTreeSet<RoleId>)> = Vec::new();
        for signed in approval.answers.values() {
            match approval.check_answer(signed, terms, control, policy, now) {
                Err(reason) => unusable.push(reason),
                Ok(answer) if answer.decision == ApprovalDecision::Refused => {
                    let why = if answer.comment.is_empty() { "" } else { ": " };
                    return Err(Reason::new(ReasonCode::ApprovalRefused)
                        .told(format_args!("by `{}`{why}{}", answer.approver, answer.comment)));
                }
                Ok(answer) => {
                    let roles = approval.roles_of(&answer.approver, terms, policy);
                    if roles.is_empty() {
                        unusable.push(Reason::new(ReasonCode::ApprovalSelf).told(format_args!(
                            "`{}` is the user on whose authority it would be done",
                            answer.approver
                        )));
                    } else {
                        yes.push((answer.approver, roles));
                    }
                }
            }
        }
        let missing = missing(&terms.needs, &yes);
        if !missing.is_empty() {
            return Ok(Standing::Waiting { missing, unusable });
        }
        Ok(Standing::Granted(Approved {
            id: id.clone(),
            request: approval.digest(),
            by: yes.into_iter().map(|(who, _)| who).collect(),
            terms: terms.clone(),
        }))
    }

    /// The sequence a claim for a call has to follow: 0 if it is the first.
    ///
    /// A claim that was not used can be taken over by the same call at once, and by another call after a while:
    /// whoever held it cannot use it any more, since that takes the same compare-and-set.
    ///
    /// # Errors
    /// `approval.consumed`.
    pub fn claimable(&self, id: &ApprovalId, call_id: &Digest, now: Timestamp) -> Result<u64, Reason> {
        let claim = self.known.get(id).and_then(|approval| approval.claim.as_ref());
        let Some((sequence, claim)) = claim else { return Ok(0) };
        let is_free = claim.as_ref().is_some_and(|claim| {
            claim.state == ClaimState::Claimed
                && (claim.call_id == *call_id || now.since(claim.at) > CLAIM_LIFE)
        });
        if is_free || crate::red::off("H01") {
            return Ok(*sequence);
        }
        let is_own = claim.as_ref().is_some_and(|claim| claim.call_id == *call_id);
        let by =
            if is_own { "by this very call; the audit stream has how that ended" } else { "by another call" };
        Err(Reason::new(ReasonCode::ApprovalConsumed).told(format_args!("`{id}` was used {by}")))
    }
}

fn is_used(claim: Option<&ApprovalClaim>) -> bool {
    claim.is_some_and(|claim| claim.state == ClaimState::Used)
}

/// Who is still missing if every person counts for one need only.
fn missing(needs: &[Need], yes: &[(OperatorId, BTreeSet<RoleId>)]) -> Vec<Need> {
    let slots: Vec<&RoleId> =
        needs.iter().flat_map(|need| std::iter::repeat_n(&need.role, usize::from(need.count))).collect();
    // A matching of people to slots, grown by augmenting paths (Kuhn).
    let mut taken = BTreeMap::new();
    for person in 0..yes.len() {
        place(person, yes, &slots, &mut taken, &mut BTreeSet::new());
    }
    let mut missing: BTreeMap<&RoleId, u8> = BTreeMap::new();
    for (_, role) in slots.iter().enumerate().filter(|(slot, _)| !taken.contains_key(slot)) {
        *missing.entry(role).or_default() += 1;
    }
    missing.into_iter().map(|(role, count)| Need { role: role.clone(), count }).collect()
}

fn place(
    person: usize,
    yes: &[(OperatorId, BTreeSet<RoleId>)],
    slots: &[&RoleId],
    taken: &mut BTreeMap<usize, usize>,
    tried: &mut BTreeSet<usize>,
) -> bool {
    let Some((_, roles)) = yes.get(person) else { return false };
    for (slot, role) in slots.iter().enumerate() {
        if !roles.contains(*role) || !tried.insert(slot) {
            continue;
        }
        let other = taken.get(&slot).copied();
        if other.is_none_or(|other| place(other, yes, slots, taken, tried)) {
            taken.insert(slot, person);
            return true;
        }
    }
    false
}
