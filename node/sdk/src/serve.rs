//! Serving other agents: calls arrive relayed by a node, with the capability they hand over.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use writ_bus::{Incoming, Service};
use writ_common::{
    capability::UnverifiedCapability,
    codec::{decode, encode},
    digest::Digest,
    ids::AgentId,
    json::Value,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Timestamp},
    wire::{AgentAnswer, AgentResult, Relay},
};

use crate::{Agent, Error, Task, spans::Span};

/// How old a relayed call may be.
const RELAY_AGE_MAX: Millis = Millis(60_000);

/// Calls taken lately: what is relayed twice is answered once.
#[derive(Default)]
struct Seen(Mutex<BTreeMap<Digest, Timestamp>>);

impl Seen {
    fn is_new(&self, call_id: Digest, now: Timestamp) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Older relays are refused by their age.
        seen.retain(|_, at| now.since(*at).0 <= 2 * RELAY_AGE_MAX.0);
        seen.insert(call_id, now).is_none()
    }
}

/// A call on this agent.
pub struct Invocation {
    /// The agent that called.
    pub caller: AgentId,
    /// What it wants done.
    pub input: Value,
    /// The task, with the authority that was handed over.
    pub task: Task,
}

/// An agent that listens for calls; it stops when dropped.
pub struct Server {
    worker: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

impl Server {
    /// Waits for good, or until the connection ends.
    pub async fn wait(mut self) {
        // An aborted worker has ended as well.
        drop((&mut self.worker).await);
    }
}

impl Agent {
    /// Answers calls of other agents with `handler`, many at a time.
    ///
    /// Only calls that a node of this tenant signed are taken, and only with a capability delegated to this very
    /// key. What the handler returns is signed and goes back through the node.
    ///
    /// # Errors
    /// [`Error::RefusedByBus`] if the server does not let this agent listen on its inbox.
    pub async fn serve<F, Fut>(&self, handler: F) -> Result<Server, Error>
    where
        F: Fn(Invocation) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, Error>> + Send,
    {
        let identity = self.identity();
        let subject = Subject::Inbox { agent: identity.agent.clone(), key: identity.holder.public().id() };
        let subject = subject.of(&identity.tenant);
        let mut inbox = Service::inbox(&self.shared.bus, &subject).await?;
        let agent = self.clone();
        let handler = Arc::new(handler);
        let seen = Arc::new(Seen::default());
        let worker = tokio::spawn(async move {
            while let Some(incoming) = inbox.next().await {
                let (agent, handler, seen) = (agent.clone(), Arc::clone(&handler), Arc::clone(&seen));
                tokio::spawn(async move { agent.answer(&incoming, handler.as_ref(), &seen).await });
            }
        });
        Ok(Server { worker })
    }

    async fn answer<F, Fut>(&self, incoming: &Incoming, handler: &F, seen: &Seen)
    where
        F: Fn(Invocation) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Value, Error>> + Send,
    {
        // What no node signed gets no answer at all.
        let Ok(relay) = self.open_relay(incoming.payload()).await else { return };
        let call_id = relay.call_id;
        if !seen.is_new(call_id, self.now()) {
            return;
        }
        let result = match self.invocation(relay, incoming) {
            Ok(invocation) => handler(invocation).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(value) => AgentResult::Done(value.to_string()),
            Err(error) => AgentResult::Failed(error.to_string()),
        };
        let answer = AgentAnswer { call_id, result };
        let payload = encode(&Signed::new(&answer, &self.identity().holder));
        // The node sees a lost answer as a time-out.
        drop(incoming.respond(payload, None).await);
    }

    async fn open_relay(&self, payload: &[u8]) -> Result<Relay, Error> {
        let bad = |why: String| Error::BadAnswer(why);
        let signed: Signed<Relay> = decode(payload).map_err(|error| bad(error.to_string()))?;
        let claimed = signed.peek().map_err(|error| bad(error.to_string()))?;
        if self.node_key(&claimed.node).is_none() {
            self.refresh_keys().await?;
        }
        let key = self.node_key(&claimed.node);
        let relay = signed.open(|signer| Some(*signer) == key).map_err(|error| bad(error.to_string()))?;
        let identity = self.identity();
        let is_ours = relay.tenant == identity.tenant && relay.key == identity.holder.public().id();
        if !is_ours || relay.at.distance(self.now()) > RELAY_AGE_MAX {
            return Err(bad("the call is not for this agent, or old".to_owned()));
        }
        Ok(relay)
    }

    fn invocation(&self, relay: Relay, incoming: &Incoming) -> Result<Invocation, Error> {
        let capability = UnverifiedCapability::parse(&relay.capability)
            .map_err(|reason| Error::BadAnswer(format!("the capability handed over: {reason}")))?;
        if *capability.chain().holder() != self.identity().holder.public() {
            return Err(writ_common::capability::ExtendError::NotHolder.into());
        }
        let input =
            Value::parse_canonical(&relay.input).map_err(|error| Error::BadAnswer(error.to_string()))?;
        let span = Span::invoke_remote(
            incoming.trace(),
            self.name().as_str(),
            capability.chain(),
            &capability.grant().task,
        );
        Ok(Invocation {
            caller: relay.caller,
            input,
            task: Task::handed_over(self.clone(), capability, span),
        })
    }
}
