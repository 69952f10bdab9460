//! A task: a capability, kept alive.

use std::sync::Arc;

use tokio::sync::Mutex;
use writ_bus::SystemEntropy;
use writ_common::{
    capability::{Narrowing, Right, UnverifiedCapability},
    entropy::draw,
    ids::TaskId,
    reason::ReasonCode,
    time::{Millis, Timestamp},
    wire::{ToldReason, Wanted},
};

use crate::{Agent, Delegation, Error, agent::read_capability, spans::Span};

/// A task and what may be done in it. Cheap to clone.
#[derive(Clone)]
pub struct Task {
    pub(crate) agent: Agent,
    pub(crate) id: TaskId,
    source: Arc<Source>,
    steps: Arc<Steps>,
    pub(crate) span: Span,
}

/// Where a task's capability comes from.
struct Source {
    current: Mutex<Current>,
    renewal: Renewal,
    /// The task's root span, so that it ends after everything below it.
    _task_span: Option<Span>,
}

/// A refusal to renew, with what is to be known first: without the capability nothing goes on.
fn expired(at: Timestamp, error: Error) -> Error {
    let Error::Denied(mut denial) = error else { return error };
    let code = ReasonCode::TokenExpired;
    let text = format!("the capability ended at {at} and was not renewed");
    denial.reasons.insert(0, ToldReason { code, text, advice: None });
    Error::Denied(denial)
}

/// Who keeps a capability alive.
enum Renewal {
    /// The broker, until then.
    Broker(Timestamp),
    /// The delegator, who is in this process.
    Delegator(Box<Delegation>),
    /// Nobody here: it was handed over.
    Nobody,
}

struct Current {
    root: UnverifiedCapability,
    issued: Timestamp,
}

/// What was given up on top of the source, in order.
#[derive(Default)]
struct Steps {
    narrowings: Vec<Narrowing>,
    /// The source's capability with all of it given up, by the serial it was made from: made anew after a renewal.
    made: Mutex<Option<(u64, UnverifiedCapability)>>,
}

impl Task {
    pub(crate) fn started(
        agent: Agent,
        id: TaskId,
        deadline: Timestamp,
        root: UnverifiedCapability,
        task_span: Span,
    ) -> Self {
        let span = task_span.invoke_agent(agent.name().as_str(), root.chain(), &id);
        let current = Current { root, issued: agent.now() };
        let source = Source {
            current: Mutex::new(current),
            renewal: Renewal::Broker(deadline),
            _task_span: Some(task_span),
        };
        Self { agent, id, source: Arc::new(source), steps: Arc::default(), span }
    }

    pub(crate) fn handed_over(agent: Agent, root: UnverifiedCapability, span: Span) -> Self {
        let id = root.grant().task.clone();
        let current = Current { root, issued: agent.now() };
        let source = Source { current: Mutex::new(current), renewal: Renewal::Nobody, _task_span: None };
        Self { agent, id, source: Arc::new(source), steps: Arc::default(), span }
    }

    /// A task that was delegated within this process.
    pub(crate) fn accepted(
        agent: Agent,
        delegation: Delegation,
        root: UnverifiedCapability,
        span: &Span,
    ) -> Self {
        let id = root.grant().task.clone();
        let span = span.invoke_agent(agent.name().as_str(), root.chain(), &id);
        let current = Current { root, issued: agent.now() };
        let renewal = Renewal::Delegator(Box::new(delegation));
        let source = Source { current: Mutex::new(current), renewal, _task_span: None };
        Self { agent, id, source: Arc::new(source), steps: Arc::default(), span }
    }

    /// A task from a capability kept elsewhere, say in a file; the agent must be its holder.
    ///
    /// # Errors
    /// [`Error::Extend`] if another key holds it.
    pub fn resume(agent: &Agent, capability: UnverifiedCapability) -> Result<Self, Error> {
        if *capability.chain().holder() != agent.identity().holder.public() {
            return Err(writ_common::capability::ExtendError::NotHolder.into());
        }
        let id = capability.grant().task.clone();
        let span = Span::task("resumed").invoke_agent(agent.name().as_str(), capability.chain(), &id);
        // Only what the broker gave to this agent itself can be renewed; it knows until when.
        let renewal = match capability.chain().links() {
            [] => Renewal::Broker(Timestamp::from_millis(u64::MAX)),
            _ => Renewal::Nobody,
        };
        let current = Current { root: capability, issued: agent.now() };
        let source = Source { current: Mutex::new(current), renewal, _task_span: None };
        Ok(Self { agent: agent.clone(), id, source: Arc::new(source), steps: Arc::default(), span })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &TaskId {
        &self.id
    }

    /// The agent it belongs to.
    #[must_use]
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The same task with less authority; the original keeps its own.
    #[must_use]
    pub fn narrow(&self, narrowing: Narrowing) -> Self {
        let mut narrowings = self.steps.narrowings.clone();
        narrowings.push(narrowing);
        Self { steps: Arc::new(Steps { narrowings, made: Mutex::default() }), ..self.clone() }
    }

    /// Its present capability, renewed first if it is about to end.
    ///
    /// # Errors
    /// [`Error`] if it has to be renewed and the broker refuses or is not reached.
    pub async fn capability(&self) -> Result<UnverifiedCapability, Error> {
        let mut current = self.source.current.lock().await;
        let now = self.agent.now();
        // What it was made from is a prefix of it.
        if let Renewal::Delegator(delegation) = &self.source.renewal
            && !current.root.chain_ids().contains(&delegation.parent().await?)
        {
            current.root = delegation.capability().await?;
        }
        if self.is_due(&current, now) {
            match self.renew(&mut current).await {
                // What is still good goes on being used; the next call tries again.
                Err(_) if current.root.expires() > now => {}
                Err(error) => return Err(expired(current.root.expires(), error)),
                Ok(()) => {}
            }
        }
        self.narrowed(&current.root).await
    }

    /// The rights it holds, as far as resource and action decide it.
    ///
    /// # Errors
    /// As [`Task::capability`].
    pub async fn rights(&self) -> Result<Vec<Right>, Error> {
        Ok(self.capability().await?.rights().iter().cloned().collect())
    }

    /// When a third of its life is left, or less than a minute of a long one.
    fn is_due(&self, current: &Current, now: Timestamp) -> bool {
        let Renewal::Broker(until) = self.source.renewal else { return false };
        let expires = current.root.expires();
        let life = expires.since(current.issued);
        let margin = Millis((life.0 / 3).min(60_000));
        expires < until && expires.since(now) <= margin
    }

    async fn renew(&self, current: &mut Current) -> Result<(), Error> {
        let wanted = Wanted::Renewal { task: self.id.clone() };
        let issued = self.agent.ask_for_task(wanted, self.span.context()).await?;
        current.root = read_capability(&issued)?;
        current.issued = self.agent.now();
        Ok(())
    }

    async fn narrowed(&self, root: &UnverifiedCapability) -> Result<UnverifiedCapability, Error> {
        if self.steps.narrowings.is_empty() {
            return Ok(root.clone());
        }
        let mut made = self.steps.made.lock().await;
        let serial = root.grant().serial;
        if let Some((known, capability)) = made.as_ref()
            && *known == serial
        {
            return Ok(capability.clone());
        }
        let holder = &self.agent.identity().holder;
        let mut capability = root.clone();
        for narrowing in &self.steps.narrowings {
            capability = capability.narrow(holder, narrowing, &draw(&mut SystemEntropy))?;
        }
        *made = Some((serial, capability.clone()));
        Ok(capability)
    }
}
