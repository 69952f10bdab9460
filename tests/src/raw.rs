//! Calls made by hand, with every part open to change.

use std::time::Duration;

use anyhow::Result;
use writ_bus::{Bus, SystemClock, SystemEntropy};
use writ_common::{
    capability::UnverifiedCapability,
    codec::{decode, encode},
    digest::Digest,
    entropy::draw,
    ids::{Action, AgentId, ApprovalId, Resource, TaskId},
    keys::PrivateKey,
    reason::ReasonCode,
    record::OutcomeStatus,
    request::Arguments,
    subjects::Subject,
    wire::{Answer, Call, CallProof, CallReply, UnsignedCall, call_digest, call_id},
};
use writ_sdk::{Agent, Value};

/// A signed call and the subject it is for.
#[derive(Clone, Debug)]
pub struct RawCall {
    /// The message; change it to break it.
    pub call: Call,
    /// The agent token of the subject.
    pub agent: AgentId,
    /// The task token of the subject.
    pub task: TaskId,
    /// The resource token of the subject.
    pub resource: Resource,
    tenant: writ_common::ids::TenantId,
    id: Digest,
}

/// How a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Done.
    Done(String),
    /// Refused, with the first code.
    Denied(ReasonCode),
    /// Begun and not finished well.
    Failed(ReasonCode, OutcomeStatus),
    /// Waiting for people.
    Held(ApprovalId),
    /// Made before.
    Replayed(Option<OutcomeStatus>),
}

impl RawCall {
    /// As the SDK would sign it for this agent.
    ///
    /// # Errors
    /// If a name is outside the grammar.
    pub fn new(
        agent: &Agent,
        capability: &UnverifiedCapability,
        resource: &str,
        action: &str,
        arguments: Value,
    ) -> Result<Self> {
        Self::signed_by(&agent.identity().holder, agent.name(), capability, resource, action, arguments)
    }

    /// Signed by any key.
    ///
    /// # Errors
    /// If a name is outside the grammar.
    pub fn signed_by(
        holder: &PrivateKey,
        agent: &AgentId,
        capability: &UnverifiedCapability,
        resource: &str,
        action: &str,
        arguments: Value,
    ) -> Result<Self> {
        let resource = Resource::parse(resource)?;
        let nonce = draw(&mut SystemEntropy);
        let unsigned = UnsignedCall {
            capability,
            resource: &resource,
            action: &Action::parse(action)?,
            arguments: &Arguments::new(arguments),
            handover: None,
            approval: None,
            nonce,
            issued_at: SystemClock::new().now().wall,
        };
        Ok(Self {
            call: unsigned.sign(holder),
            agent: agent.clone(),
            task: capability.grant().task.clone(),
            tenant: capability.grant().tenant.clone(),
            id: call_id(capability.chain().holder(), &nonce),
            resource,
        })
    }

    /// Signs what the call says now with a key, as somebody would who knows the format.
    pub fn resign(&mut self, holder: &PrivateKey, capability: &UnverifiedCapability) {
        let grant = capability.grant();
        let Call { resource, action, arguments, task, .. } = &self.call;
        let proof = CallProof {
            tenant: &grant.tenant,
            capability: &grant.capability,
            chain: capability.chain_id(),
            holder: holder.public(),
            audience: resource,
            nonce: self.call.nonce,
            issued_at: self.call.issued_at,
            min_epoch: self.call.min_epoch,
            call: call_digest(resource, action, arguments, task),
        };
        self.call.proof = proof.sign(holder);
    }

    /// The same, naming an approval another call was held for.
    #[must_use]
    pub fn under(mut self, approval: &ApprovalId) -> Self {
        self.call.approval = Some(approval.clone());
        self
    }

    /// The id of the logical call.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The subject it is sent to.
    #[must_use]
    pub fn subject(&self) -> String {
        let (agent, task, resource) = (self.agent.clone(), self.task.clone(), self.resource.clone());
        Subject::Call { agent, task, resource }.of(&self.tenant)
    }

    /// Its bytes.
    #[must_use]
    pub fn payload(&self) -> Vec<u8> {
        encode(&self.call)
    }

    /// Sends it over a connection.
    ///
    /// # Errors
    /// If the bus refuses or nobody answers.
    pub async fn send(&self, bus: &Bus) -> Result<Answered> {
        Self::send_bytes(bus, self.subject(), self.payload()).await
    }

    /// Sends any bytes as a call.
    ///
    /// # Errors
    /// If the bus refuses or nobody answers.
    pub async fn send_bytes(bus: &Bus, subject: String, payload: Vec<u8>) -> Result<Answered> {
        let reply = bus.request(subject, payload, None, Duration::from_secs(10)).await?;
        Ok(match decode::<CallReply>(&reply.payload)?.answer {
            Answer::Done { result, .. } => Answered::Done(result),
            Answer::Denied { reasons } => Answered::Denied(
                reasons.first().map(|reason| reason.code).ok_or_else(|| anyhow::anyhow!("no reason"))?,
            ),
            Answer::Failed { reason, status } => Answered::Failed(reason.code, status),
            Answer::Held { approval, .. } => Answered::Held(approval),
            Answer::Replayed { outcome, .. } => Answered::Replayed(outcome),
        })
    }
}
