//! Messages of version 1: what agents, nodes and brokers say to each other.
//!
//! Wire types are plain data with their own serialisation. They become domain types where they are used, and
//! every one of them is accepted only in canonical form (see [`crate::codec`]).

use serde::{Deserialize, Serialize};

use crate::{
    approval::Need,
    capability::{CAPABILITY_BYTES_MAX, Right, UnverifiedCapability},
    codec::{Message, to_array_bytes},
    control::RevocationTarget,
    digest::Digest,
    epoch::Epoch,
    hold::LegalHold,
    ids::{
        Action, AgentId, ApprovalId, CapabilityId, HoldId, KeyId, NodeId, PartId, Resource, TaskId, TaskKind,
        TenantId,
    },
    keys::{BadSignature, PrivateKey, PublicKey, Purpose, Signature},
    keyset::KeysetDocument,
    label::Label,
    part::Archived,
    policy::{PolicyBundle, PolicyRevision},
    reason::{Advice, Reason, ReasonCode},
    record::{DecisionId, OutcomeStatus, Receipt},
    request::{ARGUMENT_BYTES_MAX, Arguments},
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
};

/// The digest of what is called: resource, action, canonical arguments and task. Not of nonce, time or trace.
///
/// Layout: SHA-256 under `writ/v1/call-digest` over the four texts, each preceded by its length.
#[must_use]
pub fn call_digest(resource: &Resource, action: &Action, arguments: &str, task: &TaskId) -> Digest {
    Digest::of(
        "writ/v1/call-digest",
        &[
            resource.as_str().as_bytes(),
            action.as_str().as_bytes(),
            arguments.as_bytes(),
            task.as_str().as_bytes(),
        ],
    )
}

/// The id of one logical call: SHA-256 over holder key and nonce. The bus lets only one intent with it through.
#[must_use]
pub fn call_id(holder: &PublicKey, nonce: &[u8; 16]) -> Digest {
    Digest::of("writ/v1/call-id", &[holder.as_bytes(), nonce])
}

/// The digest of a right that is asked for: the right, what its arguments are bound to, the task, and by which key it
/// would be held for how long.
///
/// Layout: SHA-256 under `writ/v1/right-digest` over the texts, the key's 32 bytes and the milliseconds as 8 bytes, most
/// significant first, each preceded by its length.
#[must_use]
pub fn right_digest(
    right: &Right,
    arguments: &str,
    task: &TaskId,
    holder: &PublicKey,
    life: Millis,
) -> Digest {
    Digest::of(
        "writ/v1/right-digest",
        &[
            right.resource.as_str().as_bytes(),
            right.action.as_str().as_bytes(),
            arguments.as_bytes(),
            task.as_str().as_bytes(),
            holder.as_bytes(),
            &life.0.to_be_bytes(),
        ],
    )
}

/// The id of one request for a right: SHA-256 over holder key and nonce. One approval bears it, and one capability
/// comes of that.
#[must_use]
pub fn right_id(holder: &PublicKey, nonce: &[u8; 16]) -> Digest {
    Digest::of("writ/v1/right-id", &[holder.as_bytes(), nonce])
}

/// What the holder of a capability signs for every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallProof<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The capability.
    pub capability: &'a CapabilityId,
    /// Stable id of the chain's last block.
    pub chain: Digest,
    /// The holder.
    pub holder: PublicKey,
    /// The resource: any node may serve it, no other resource may.
    pub audience: &'a Resource,
    /// Fresh random bytes; kept when a call is repeated after a lost answer.
    pub nonce: [u8; 16],
    /// When it was signed.
    pub issued_at: Timestamp,
    /// The control state the node must at least have seen.
    pub min_epoch: Epoch,
    /// What is called.
    pub call: Digest,
}

impl CallProof<'_> {
    /// The canonical bytes: a MessagePack array of the ten fields, epoch as two numbers.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        to_array_bytes(&(
            self.tenant.as_str(),
            self.capability.as_str(),
            serde_bytes::Bytes::new(self.chain.as_bytes()),
            serde_bytes::Bytes::new(self.holder.as_bytes()),
            self.audience.as_str(),
            serde_bytes::Bytes::new(&self.nonce),
            self.issued_at.as_millis(),
            self.min_epoch.incarnation,
            self.min_epoch.sequence,
            serde_bytes::Bytes::new(self.call.as_bytes()),
        ))
    }

    /// Signs with the holder's key.
    #[must_use]
    pub fn sign(&self, holder: &PrivateKey) -> Proof {
        Proof::Signature(holder.sign(Purpose::Call, &self.bytes()))
    }

    /// Checks a proof against the holder's key.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn check(&self, proof: &Proof) -> Result<(), BadSignature> {
        let Proof::Signature(signature) = proof;
        self.holder.verify(Purpose::Call, &self.bytes(), signature)
    }
}

/// How possession of the holder's key is proved. Later versions add session proofs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// An Ed25519 signature over [`CallProof::bytes`].
    Signature(Signature),
}

/// A call on a tool or an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The capability's bytes.
    #[serde(with = "serde_bytes")]
    pub capability: Vec<u8>,
    /// The task; the same as in the subject and in the capability.
    pub task: TaskId,
    /// What is called; the same as in the subject.
    pub resource: Resource,
    /// What is to be done.
    pub action: Action,
    /// The arguments as canonical JSON.
    pub arguments: String,
    /// Fresh random bytes.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// When it was signed.
    pub issued_at: Timestamp,
    /// The control state the node must at least have seen.
    pub min_epoch: Epoch,
    /// Possession of the holder's key.
    pub proof: Proof,
    /// For calls on agents: the longer chain that is handed over.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub handover: Option<Vec<u8>>,
    /// The approval it is made under; absent for the one that belongs to this very call, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalId>,
}

/// A call, to be signed by the holder of the capability.
#[derive(Clone, Copy, Debug)]
pub struct UnsignedCall<'a> {
    /// The capability.
    pub capability: &'a UnverifiedCapability,
    /// What is called.
    pub resource: &'a Resource,
    /// What is to be done.
    pub action: &'a Action,
    /// The arguments.
    pub arguments: &'a Arguments,
    /// For calls on agents: the longer chain that is handed over.
    pub handover: Option<&'a UnverifiedCapability>,
    /// Fresh random bytes; kept when a call is repeated after a lost answer.
    pub nonce: [u8; 16],
    /// The approval it is made under, if that was asked for by another call.
    pub approval: Option<&'a ApprovalId>,
    /// Now.
    pub issued_at: Timestamp,
}

impl UnsignedCall<'_> {
    /// The digest of what is called.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let task = &self.capability.grant().task;
        call_digest(self.resource, self.action, self.arguments.canonical(), task)
    }

    /// The call, with possession of `holder` proved. A node takes it only if that is the capability's holder.
    #[must_use]
    pub fn sign(&self, holder: &PrivateKey) -> Call {
        let grant = self.capability.grant();
        let proof = CallProof {
            tenant: &grant.tenant,
            capability: &grant.capability,
            chain: self.capability.chain_id(),
            holder: *self.capability.chain().holder(),
            audience: self.resource,
            nonce: self.nonce,
            issued_at: self.issued_at,
            min_epoch: grant.min_epoch,
            call: self.digest(),
        };
        Call {
            capability: self.capability.as_bytes().to_vec(),
            task: grant.task.clone(),
            resource: self.resource.clone(),
            action: self.action.clone(),
            arguments: self.arguments.canonical().to_owned(),
            nonce: self.nonce,
            issued_at: self.issued_at,
            min_epoch: grant.min_epoch,
            proof: proof.sign(holder),
            handover: self.handover.map(|handover| handover.as_bytes().to_vec()),
            approval: self.approval.cloned(),
        }
    }
}

impl Message for Call {
    const KIND: &'static str = "call";
    const BYTES_MAX: usize = 2 * CAPABILITY_BYTES_MAX + ARGUMENT_BYTES_MAX + 4 * 1024;
}

/// A cause as the caller is told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToldReason {
    /// The code.
    pub code: ReasonCode,
    /// The words.
    pub text: String,
    /// How a missing right could be had, where policy lets that be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<Box<Advice>>,
}

impl From<&Reason> for ToldReason {
    fn from(reason: &Reason) -> Self {
        let advice = reason.advice().cloned().map(Box::new);
        Self { code: reason.code(), text: reason.for_caller().to_owned(), advice }
    }
}

/// A node's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallReply {
    /// The node's word that the record exists; absent only where there is none yet (over quota).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Signed<Receipt>>,
    /// The answer.
    pub answer: Answer,
}

impl Message for CallReply {
    const KIND: &'static str = "call_reply";
    const BYTES_MAX: usize = 900 * 1024;
}

/// The ways a call is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It was not done.
    Denied {
        /// Why; never empty.
        reasons: Vec<ToldReason>,
    },
    /// It was done.
    Done {
        /// The result as canonical JSON.
        result: String,
        /// What it carries. The receipt binds it to the result.
        label: Label,
    },
    /// It was begun and did not end well.
    Failed {
        /// Why.
        reason: ToldReason,
        /// Whether the effect is known to be absent, known, or unknown.
        status: OutcomeStatus,
    },
    /// It may be done once people have said yes. Nothing was done.
    Held {
        /// The request for approval.
        approval: ApprovalId,
        /// Until when it can be answered and used.
        expires: Timestamp,
        /// Who still has to say yes.
        missing: Vec<Need>,
        /// Answers that do not count, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unusable: Vec<ToldReason>,
    },
    /// It was made before, and only that first call counts.
    Replayed {
        /// The record of the first call.
        first: DecisionId,
        /// How that ended, if that is known here.
        outcome: Option<OutcomeStatus>,
    },
}

impl Answer {
    /// The digest a receipt binds it by: SHA-256 under `writ/v1/answer` over its canonical bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of("writ/v1/answer", &[&crate::codec::to_bytes(self)])
    }
}

/// A question to the node that ran a call: what was its result?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FetchRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The task of the call.
    pub task: TaskId,
    /// The node asked.
    pub node: NodeId,
    /// The call.
    pub call_id: Digest,
    /// When it was signed.
    pub at: Timestamp,
}

impl Signable for FetchRequest {
    const PURPOSE: Purpose = Purpose::Fetch;
    const KIND: &'static str = "fetch";
}

impl Message for Signed<FetchRequest> {
    const KIND: &'static str = "fetch";
    const BYTES_MAX: usize = 4 * 1024;
}

/// A call handed on to an agent, signed by the node that allowed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// The tenant.
    pub tenant: TenantId,
    /// The node.
    pub node: NodeId,
    /// The record that allowed it.
    pub decision: DecisionId,
    /// The agent that called.
    pub caller: AgentId,
    /// The key it is meant for.
    pub key: KeyId,
    /// The task.
    pub task: TaskId,
    /// The call.
    pub call_id: Digest,
    /// When the node sent it.
    pub at: Timestamp,
    /// The input as canonical JSON.
    pub input: String,
    /// The capability handed over.
    #[serde(with = "serde_bytes")]
    pub capability: Vec<u8>,
}

impl Signable for Relay {
    const PURPOSE: Purpose = Purpose::Relay;
    const KIND: &'static str = "relay";
}

impl Message for Signed<Relay> {
    const KIND: &'static str = "relay";
    const BYTES_MAX: usize = CAPABILITY_BYTES_MAX + ARGUMENT_BYTES_MAX + 8 * 1024;
}

/// An agent's answer to a relayed call, signed by the key it was meant for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentAnswer {
    /// The call.
    pub call_id: Digest,
    /// What came of it.
    pub result: AgentResult,
}

/// What an agent made of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentResult {
    /// A result as canonical JSON.
    Done(String),
    /// An error in words.
    Failed(String),
}

impl Signable for AgentAnswer {
    const PURPOSE: Purpose = Purpose::Answer;
    const KIND: &'static str = "answer";
}

impl Message for Signed<AgentAnswer> {
    const KIND: &'static str = "answer";
    const BYTES_MAX: usize = 900 * 1024;
}

/// What an agent asks of a broker, signed by the key the capability is or shall be held by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The agent.
    pub agent: AgentId,
    /// When it was signed.
    pub at: Timestamp,
    /// Fresh random bytes, repeated in the answer.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// What is wanted.
    pub wanted: Wanted,
}

/// The things an agent can ask a broker for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Wanted {
    /// The keys of nodes and of the agents it may delegate to.
    Keys,
    /// A capability for a task that runs already.
    Renewal {
        /// The task.
        task: TaskId,
    },
    /// A right the task lacks, for some minutes, once people have said yes.
    Right(RightWanted),
    /// A task, and the capability for it.
    Task(NewTask),
    /// What the tools look like that a capability gives.
    Tools(ToolsWanted),
}

/// A question for the tools a capability gives. Nothing is told of others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolsWanted {
    /// The capability; whoever asks has to be its holder.
    #[serde(with = "serde_bytes")]
    pub capability: Vec<u8>,
    /// The policy whose answer the agent has already: under the same one nothing is told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<PolicyRevision>,
    /// The last right of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Right>,
}

/// Most bytes of descriptions and schemas in one page; a tool that is larger has a page of its own.
pub const TOOLS_PAGE_BYTES_MAX: usize = 256 * 1_024;

/// A page of the tools a capability gives, in the order of their rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedTools {
    /// The policy that says so.
    pub revision: PolicyRevision,
    /// The tools; none if the agent knows this policy's already.
    pub tools: Vec<OfferedTool>,
    /// Whether there is another page.
    pub more: bool,
}

/// An action of a tool, as an agent may know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferedTool {
    /// The right to it.
    pub right: Right,
    /// The name the MCP server behind it gives it, or the operator's; nothing where no MCP server is behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<String>,
    /// What it does, as the operator accepted it.
    pub description: String,
    /// What it amounts to: `read`, `internal`, `shared` or `egress`.
    pub effect: String,
    /// The JSON Schema of its arguments, as canonical JSON.
    pub schema: String,
}

/// Longest reason an agent can give for asking, in bytes.
pub const WHY_BYTES_MAX: usize = 1_024;
/// Most values a right can be bound to: each is a check of the capability.
pub const RIGHT_VALUES_MAX: usize = 16;
/// Most bytes of all of them, as canonical JSON.
pub const RIGHT_VALUES_BYTES_MAX: usize = 4 * 1_024;
/// Most bytes of one text among them, and of one JSON Pointer.
pub const RIGHT_VALUE_BYTES_MAX: usize = 1_024;

/// A right that is asked for. The agent the task was given to asks, with the key it was given to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RightWanted {
    /// The task.
    pub task: TaskId,
    /// The right: on a tool.
    pub right: Right,
    /// The values arguments must have, as a canonical JSON object from JSON Pointers to texts, whole numbers and
    /// booleans. What it does not name is free; `{}` names nothing.
    pub arguments: String,
    /// Why, in the agent's words. People are shown it as that.
    pub why: String,
    /// Names the request: sent again with the same one it finds the same approval.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
}

/// A task to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// The user's token.
    pub user_token: String,
    /// The kind of task.
    pub kind: TaskKind,
    /// What the user asked for, in their words.
    pub instruction: String,
    /// The rights wanted; all that policy grants if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rights: Option<Vec<Right>>,
    /// Repeating it with the same request returns the same task.
    pub idempotency_key: String,
}

impl Signable for IssueRequest {
    const PURPOSE: Purpose = Purpose::Issue;
    const KIND: &'static str = "issue";
}

impl Message for Signed<IssueRequest> {
    const KIND: &'static str = "issue";
    const BYTES_MAX: usize = 64 * 1024;
}

/// A broker's answer, signed by a keyset key, with the keyset to check it by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssueReply {
    /// The keyset, signed by the offline root; absent if the broker has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keyset: Option<Signed<KeysetDocument>>,
    /// The answer.
    pub issued: Signed<Issued>,
}

impl Message for IssueReply {
    const KIND: &'static str = "issue_reply";
}

/// What the broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issued {
    /// The tenant.
    pub tenant: TenantId,
    /// The request's nonce.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// The answer.
    pub answer: IssueAnswer,
}

impl Signable for Issued {
    const PURPOSE: Purpose = Purpose::Issued;
    const KIND: &'static str = "issued";
}

/// The ways a broker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IssueAnswer {
    /// A right may be had once people have said yes.
    Held {
        /// The request for approval.
        approval: ApprovalId,
        /// Until when it can be answered and used.
        expires: Timestamp,
        /// Who still has to say yes.
        missing: Vec<Need>,
        /// Answers that do not count, and why.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        unusable: Vec<ToldReason>,
    },
    /// Only keys were asked for.
    Keys(KnownKeys),
    /// Refused.
    Refused {
        /// Why; never empty.
        reasons: Vec<ToldReason>,
    },
    /// People said yes: the capability with the one right.
    Right {
        /// The approval it was issued by.
        approval: ApprovalId,
        /// The capability.
        #[serde(with = "serde_bytes")]
        capability: Vec<u8>,
    },
    /// A capability.
    Task(Box<IssuedTask>),
    /// Tools.
    Tools(OfferedTools),
}

/// A task with its capability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedTask {
    /// The task.
    pub task: TaskId,
    /// When the task ends; renewals do not go beyond it.
    pub deadline: Timestamp,
    /// The capability.
    #[serde(with = "serde_bytes")]
    pub capability: Vec<u8>,
    /// Keys the agent needs.
    pub keys: KnownKeys,
}

/// Keys a broker vouches for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownKeys {
    /// Control state as of which they are.
    pub epoch: Epoch,
    /// Nodes and the keys that sign their receipts.
    pub nodes: Vec<NodeKey>,
    /// Agents this one may delegate to, and their keys.
    pub delegates: Vec<DelegateKey>,
}

/// A node's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKey {
    /// The node.
    pub node: NodeId,
    /// The key.
    pub key: PublicKey,
}

/// A key of an agent that may be delegated to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelegateKey {
    /// The agent.
    pub agent: AgentId,
    /// The key.
    pub key: PublicKey,
}

/// An agent's request to have its keys enrolled, signed by the holder key it brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnrollRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// The join token, as the operator handed it out.
    pub token: String,
    /// The agent.
    pub agent: AgentId,
    /// The key that shall hold its capabilities.
    pub holder: PublicKey,
    /// The NATS user its connections shall authenticate as.
    pub connection: String,
    /// When it was signed.
    pub at: Timestamp,
}

impl Signable for EnrollRequest {
    const PURPOSE: Purpose = Purpose::Enroll;
    const KIND: &'static str = "enroll";
}

impl Message for Signed<EnrollRequest> {
    const KIND: &'static str = "enroll";
    const BYTES_MAX: usize = 4 * 1024;
}

/// The broker's answer to an enrollment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EnrollReply {
    /// Done.
    Enrolled {
        /// The key's id, which its inbox is named after.
        key: KeyId,
        /// The control state that knows it.
        epoch: Epoch,
    },
    /// Refused.
    Refused {
        /// Why.
        reason: ToldReason,
    },
}

impl Message for EnrollReply {
    const KIND: &'static str = "enroll_reply";
    const BYTES_MAX: usize = 4 * 1024;
}

/// The digest join tokens are known by.
#[must_use]
pub fn join_token_digest(token: &str) -> Digest {
    Digest::of("writ/v1/join-token", &[token.as_bytes()])
}

/// An operator's request to a broker, signed by the operator's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminRequest {
    /// The tenant.
    pub tenant: TenantId,
    /// When it was signed.
    pub at: Timestamp,
    /// Fresh random bytes; a request counts once.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// What is wanted.
    pub wanted: AdminWanted,
}

/// The things an operator can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminWanted {
    /// Puts a policy in force.
    ActivatePolicy {
        /// Its files.
        bundle: PolicyBundle,
        /// The revision that has to be in force until then, if the operator says so.
        expect: Option<PolicyRevision>,
    },
    /// The agents with their keys.
    Agents,
    /// A join token for an agent.
    Enroll {
        /// The agent.
        agent: AgentId,
        /// How long the token is good for.
        life: Millis,
    },
    /// Stops everything, or lets it go on.
    HaltAll {
        /// Whether the halt is on.
        on: bool,
    },
    /// Keeps something from being removed by retention, or no longer.
    LegalHold {
        /// The order's name.
        id: HoldId,
        /// The order; none to lift it.
        hold: Option<LegalHold>,
    },
    /// All of a sealed part is in an archive.
    PartArchived {
        /// The part.
        part: PartId,
        /// Where that is described.
        archived: Archived,
    },
    /// Isolates an agent, or lets it go.
    Quarantine {
        /// The agent.
        agent: AgentId,
        /// Whether it is isolated.
        on: bool,
    },
    /// Revokes something.
    Revoke {
        /// What.
        target: RevocationTarget,
        /// Answer only once no node can act under it any more.
        wait: bool,
    },
    /// Puts a policy in force again that was in force before.
    RollbackPolicy {
        /// Its files, as the control stream holds them.
        bundle: PolicyBundle,
        /// The revision that has to be in force until then, if the operator says so.
        expect: Option<PolicyRevision>,
    },
    /// Begins the next part of the audit stream.
    RotatePart,
    /// Has nothing more published to a part in which nothing lives; answered once no node can.
    SealPart {
        /// The part.
        part: PartId,
        /// Also if a run is open whose node or broker is away: what it did not publish comes as put back, or never.
        although_open: bool,
    },
    /// Has a policy asked beside the one in force, or none any more.
    ShadowPolicy {
        /// Its files; none to end it.
        bundle: Option<PolicyBundle>,
    },
    /// Brokers and nodes, and how recently they were heard from.
    Status,
    /// One task.
    Task {
        /// Which; the latest if absent.
        task: Option<TaskId>,
    },
    /// Withdraws a key of an agent.
    WithdrawKey {
        /// The agent.
        agent: AgentId,
        /// The key.
        key: KeyId,
    },
}

impl AdminWanted {
    /// Every action a policy may name for an operator.
    pub const ACTIONS: &[&str] = &[
        "activate",
        "agents",
        "archive",
        "end-halt",
        "enroll",
        "halt-all",
        "hold",
        "lift-hold",
        "quarantine",
        "release",
        "revoke",
        "rollback",
        "rotate",
        "shadow",
        "status",
        "task",
        "withdraw-key",
    ];

    /// The action a policy knows it by.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::ActivatePolicy { .. } => "activate",
            Self::Agents => "agents",
            Self::Enroll { .. } => "enroll",
            Self::HaltAll { on: true } => "halt-all",
            Self::HaltAll { on: false } => "end-halt",
            Self::LegalHold { hold: Some(_), .. } => "hold",
            Self::LegalHold { hold: None, .. } => "lift-hold",
            Self::PartArchived { .. } | Self::SealPart { .. } => "archive",
            Self::RotatePart => "rotate",
            Self::Quarantine { on: true, .. } => "quarantine",
            Self::Quarantine { on: false, .. } => "release",
            Self::Revoke { .. } => "revoke",
            Self::RollbackPolicy { .. } => "rollback",
            Self::ShadowPolicy { .. } => "shadow",
            Self::Status => "status",
            Self::Task { .. } => "task",
            Self::WithdrawKey { .. } => "withdraw-key",
        }
    }
}

impl Signable for AdminRequest {
    const PURPOSE: Purpose = Purpose::Admin;
    const KIND: &'static str = "admin";
}

impl Message for Signed<AdminRequest> {
    const KIND: &'static str = "admin";
    // A policy has to fit, with room for what the broker's event adds to it.
    const BYTES_MAX: usize = 880 * 1024;
}

/// A broker's answer to an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum AdminReply {
    /// The agents.
    Agents(Vec<AgentInfo>),
    /// It is in force as of this epoch.
    Done {
        /// The epoch.
        epoch: Epoch,
    },
    /// A join token; it is told this once.
    Enroll {
        /// The token.
        token: String,
        /// When it ends.
        expires: Timestamp,
    },
    /// Refused.
    Refused {
        /// Why; never empty.
        reasons: Vec<ToldReason>,
    },
    /// Brokers and nodes.
    Status(StatusInfo),
    /// A task.
    Task(Box<TaskInfo>),
}

impl Message for AdminReply {
    const KIND: &'static str = "admin_reply";
    const BYTES_MAX: usize = 900 * 1024;
}

/// An agent as the control plane knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentInfo {
    /// Its name.
    pub agent: AgentId,
    /// The team that answers for it.
    pub owner: String,
    /// What it is for.
    pub description: String,
    /// The agents it may delegate to.
    pub delegates_to: Vec<AgentId>,
    /// Its enrolled keys.
    pub keys: Vec<AgentKeyInfo>,
    /// Whether it is isolated.
    pub quarantined: bool,
}

/// A key of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentKeyInfo {
    /// The key's id.
    pub key: KeyId,
    /// The NATS user enrolled with it.
    pub connection: String,
}

/// The control plane's view of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatusInfo {
    /// Control state.
    pub epoch: Epoch,
    /// The policy in force.
    pub policy: Option<PolicyRevision>,
    /// The policy of the broker's own folder, which counts only while none was ever in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<PolicyRevision>,
    /// Whether everything is halted.
    pub halted: bool,
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
}

/// A node as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeInfo {
    /// Its name.
    pub node: NodeId,
    /// Its key.
    pub key: KeyId,
    /// What it has applied, if it was heard from.
    pub applied: Option<Epoch>,
    /// How long ago.
    pub heard: Option<Millis>,
    /// Why it decides nothing, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<ReasonCode>,
    /// The policy it decides by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRevision>,
    /// Why it did not take a later one, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_fault: Option<ReasonCode>,
    /// How long it has decided by another policy than the one in force, if for too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_behind: Option<Millis>,
}

/// A task as the broker knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskInfo {
    /// The task.
    pub task: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// On whose authority.
    pub user: crate::ids::UserId,
    /// The agent it was given to.
    pub agent: AgentId,
    /// Its capability.
    pub capability: CapabilityId,
    /// How often that was issued.
    pub serial: u64,
    /// The rights granted.
    pub rights: Vec<Right>,
    /// When it ends.
    pub deadline: Timestamp,
    /// Why it does not go on, if it does not.
    pub stopped: Option<ReasonCode>,
}
