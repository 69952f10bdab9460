//! Handing parts of a task to other agents. The hand-over itself needs no broker and no connection.

use writ_bus::SystemEntropy;
use writ_common::{
    capability::{ExtendError, Narrowing, UnverifiedCapability},
    decide::{AGENT_HANDOVER, AGENT_INPUT},
    digest::Digest,
    entropy::draw,
    ids::{Action, AgentId, Resource},
    json::Value,
    keys::PublicKey,
};

use crate::{
    Agent, Error, Task,
    call::{Logical, note},
};

/// A decision to delegate: to whom, by which key, giving up what. It is carried out anew for every call, so that
/// a renewal of the delegator's capability reaches the other agent.
#[derive(Clone)]
pub struct Delegation {
    task: Task,
    to: AgentId,
    key: PublicKey,
    narrowing: Narrowing,
}

impl Task {
    /// Delegates to an agent the broker vouches for, giving up what `narrowing` says.
    ///
    /// # Errors
    /// [`Error::NoSuchDelegate`] if the agent has no enrolled key or policy does not let this one delegate to it.
    pub async fn delegate(&self, to: &str, narrowing: Narrowing) -> Result<Delegation, Error> {
        let to = AgentId::parse(to)?;
        let mut keys = self.agent.delegate_keys(&to);
        if keys.is_empty() {
            // It may have enrolled since.
            self.agent.refresh_keys().await?;
            keys = self.agent.delegate_keys(&to);
        }
        // Replicas have keys of their own: any of them will do, and different ones share the work.
        let [choice] = draw::<1>(&mut SystemEntropy);
        let key = keys.get(usize::from(choice) % keys.len().max(1)).copied();
        let key = key.ok_or_else(|| Error::NoSuchDelegate(to.to_string()))?;
        Ok(self.delegate_to_key(to, key, narrowing))
    }

    /// Delegates to a key that was learnt in another way, without asking anybody.
    #[must_use]
    pub fn delegate_to_key(&self, to: AgentId, key: PublicKey, narrowing: Narrowing) -> Delegation {
        Delegation { task: self.clone(), to, key, narrowing }
    }
}

impl Delegation {
    /// The capability as the other agent gets it.
    ///
    /// # Errors
    /// [`Error::Extend`] if the hop is too deep, goes in a circle or leaves the profile.
    pub async fn capability(&self) -> Result<UnverifiedCapability, Error> {
        let capability = Box::pin(self.task.capability()).await?;
        let checks = self.narrowing.checks().iter().map(ToString::to_string).collect();
        let from = self.task.agent.name().as_str();
        let span = self.task.span.delegate(from, self.to.as_str(), checks, &self.task.id);
        let holder = &self.task.agent.identity().holder;
        let next = draw(&mut SystemEntropy);
        let extended = capability.delegate(holder, &self.to, &self.key, &self.narrowing, &next);
        let extended = extended.map_err(Error::from);
        note(&span, &extended);
        extended
    }

    /// The task as the other agent has it, where that agent is in this process, from what [`Delegation::capability`]
    /// gave: the capability is handed over anew whenever the delegator's is another one, so that a renewal reaches it.
    ///
    /// # Errors
    /// [`Error::Extend`] if `agent` does not hold the capability.
    pub fn accept(&self, agent: &Agent, capability: UnverifiedCapability) -> Result<Task, Error> {
        if agent.identity().holder.public() != *capability.chain().holder() {
            return Err(ExtendError::NotHolder.into());
        }
        Ok(Task::accepted(agent.clone(), self.clone(), capability, &self.task.span))
    }

    /// What the delegator's capability is now: what is handed over is made from it.
    pub(crate) async fn parent(&self) -> Result<Digest, Error> {
        Ok(Box::pin(self.task.capability()).await?.chain_id())
    }

    /// Calls the agent through a node, handing the capability over, and returns its answer.
    ///
    /// # Errors
    /// As [`Task::call`].
    pub async fn invoke(&self, input: Value) -> Result<Value, Error> {
        let handover = self.capability().await?;
        let arguments: Value =
            [(AGENT_HANDOVER, Value::from(handover.chain_id().to_string())), (AGENT_INPUT, input)]
                .into_iter()
                .collect();
        let logical =
            Logical::new(Resource::agent(&self.to), Action::parse("invoke")?, arguments, Some(handover));
        let labelled = self.task.send(&logical, self.task.span.context()).await?;
        Ok(labelled.value)
    }
}
