//! A connected agent.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use writ_bus::{Bus, BusError, SystemClock, SystemEntropy};
use writ_common::{
    capability::{Right, UnverifiedCapability},
    codec::{decode, encode},
    entropy::draw,
    ids::{AgentId, NodeId, TaskKind},
    keys::PublicKey,
    keyset::Keyset,
    reason::ReasonCode,
    signed::Signed,
    subjects::Subject,
    time::Timestamp,
    trace::TraceContext,
    wire::{IssueAnswer, IssueReply, IssueRequest, IssuedTask, KnownKeys, NewTask as WireTask, Wanted},
};

use crate::{Error, Identity, Task, receipts::Receipts, spans::Span};

/// How long a broker may take; one that ended meanwhile never answers.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request is sent again after that.
const REPEATS_MAX: u32 = 2;

/// A connection with an identity. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Agent {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) bus: Bus,
    pub(crate) clock: SystemClock,
    keys: Mutex<Keys>,
    pub(crate) receipts: Receipts,
}

#[derive(Default)]
struct Keys {
    nodes: BTreeMap<NodeId, PublicKey>,
    delegates: BTreeMap<AgentId, Vec<PublicKey>>,
}

/// A task to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    kind: String,
    user_token: String,
    instruction: String,
    rights: Option<Vec<Right>>,
    idempotency_key: Option<String>,
}

impl NewTask {
    /// A kind of task the policy knows, the user's token, and what the user asked for in their words.
    #[must_use]
    pub fn new(
        kind: impl Into<String>,
        user_token: impl Into<String>,
        instruction: impl Into<String>,
    ) -> Self {
        Self {
            kind: kind.into(),
            user_token: user_token.into(),
            instruction: instruction.into(),
            rights: None,
            idempotency_key: None,
        }
    }

    /// Asks for these rights only, instead of all that policy grants.
    #[must_use]
    pub fn rights(mut self, rights: impl IntoIterator<Item = Right>) -> Self {
        self.rights = Some(rights.into_iter().collect());
        self
    }

    /// Starting with the same key and the same content again returns the same task.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }
}

impl Agent {
    /// Connects, and learns the keys of the nodes and of the agents this one may delegate to.
    ///
    /// # Errors
    /// [`Error`]: no connection, an identity that is not enrolled, a broker that does not answer.
    pub async fn connect(identity: Identity) -> Result<Self, Error> {
        let bus = Bus::connect(identity.bus_config()).await?;
        let clock = SystemClock::new();
        let shared = Shared { identity, bus, clock, keys: Mutex::default(), receipts: Receipts::default() };
        let agent = Self { shared: Arc::new(shared) };
        agent.refresh_keys().await?;
        Ok(agent)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &AgentId {
        &self.shared.identity.agent
    }

    /// Its identity.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Keeps every receipt from now on, one base64 envelope a line, at the end of a file that only its owner may read:
    /// `writ audit verify --receipts` finds a record that a node left out.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn keep_receipts(&self, file: &Path) -> std::io::Result<()> {
        self.shared.receipts.keep_in(file)
    }

    /// Starts a task on a user's authority. The task renews its capability by itself.
    ///
    /// # Errors
    /// [`Error::Denied`] with the broker's reasons, or why the broker was not reached.
    pub async fn start_task(&self, new: NewTask) -> Result<Task, Error> {
        let kind = TaskKind::parse(new.kind)?;
        let span = Span::task(kind.as_str());
        let mut entropy = SystemEntropy;
        // A key of our own makes a repeated request after a lost answer return the same task.
        let key = new
            .idempotency_key
            .unwrap_or_else(|| draw::<16>(&mut entropy).iter().map(|byte| format!("{byte:02x}")).collect());
        let wanted = Wanted::Task(WireTask {
            user_token: new.user_token,
            kind,
            instruction: new.instruction,
            rights: new.rights,
            idempotency_key: key,
        });
        let issued = self.ask_for_task(wanted, span.context()).await?;
        let capability = read_capability(&issued)?;
        span.about_task(&issued.task);
        Ok(Task::started(self.clone(), issued.task, issued.deadline, capability, span))
    }

    pub(crate) async fn ask_for_task(
        &self,
        wanted: Wanted,
        trace: Option<TraceContext>,
    ) -> Result<IssuedTask, Error> {
        match self.ask_broker(wanted, trace).await? {
            IssueAnswer::Task(issued) => {
                self.learn(&issued.keys);
                Ok(*issued)
            }
            IssueAnswer::Refused { reasons } => Err(Error::denied(reasons, None)),
            _ => Err(Error::BadAnswer("something else where a task was asked for".to_owned())),
        }
    }

    /// Asks the broker for the keys of nodes and delegates again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn refresh_keys(&self) -> Result<(), Error> {
        match self.ask_broker(Wanted::Keys, None).await? {
            IssueAnswer::Keys(keys) => {
                self.learn(&keys);
                Ok(())
            }
            IssueAnswer::Refused { reasons } => Err(Error::denied(reasons, None)),
            _ => Err(Error::BadAnswer("something else where keys were asked for".to_owned())),
        }
    }

    fn learn(&self, known: &KnownKeys) {
        let mut keys = self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.nodes = known.nodes.iter().map(|node| (node.node.clone(), node.key)).collect();
        keys.delegates.clear();
        for delegate in &known.delegates {
            keys.delegates.entry(delegate.agent.clone()).or_default().push(delegate.key);
        }
    }

    pub(crate) fn node_key(&self, node: &NodeId) -> Option<PublicKey> {
        self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner).nodes.get(node).copied()
    }

    /// The keys of an agent this one may delegate to, as last heard.
    #[must_use]
    pub fn delegate_keys(&self, agent: &AgentId) -> Vec<PublicKey> {
        let keys = self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.delegates.get(agent).cloned().unwrap_or_default()
    }

    /// The agents this one may delegate to and that have a key, as last heard.
    #[must_use]
    pub fn delegates(&self) -> Vec<AgentId> {
        let keys = self.shared.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.delegates.keys().cloned().collect()
    }

    /// The time, by the clock that what it signs goes by.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now().wall
    }

    /// Sends a signed request to the broker and checks the answer down to the pinned root.
    pub(crate) async fn ask_broker(
        &self,
        wanted: Wanted,
        trace: Option<TraceContext>,
    ) -> Result<IssueAnswer, Error> {
        let identity = &self.shared.identity;
        let mut entropy = SystemEntropy;
        let request = IssueRequest {
            tenant: identity.tenant.clone(),
            agent: identity.agent.clone(),
            at: self.now(),
            nonce: draw(&mut entropy),
            wanted,
        };
        let subject = Subject::Issue { agent: identity.agent.clone() }.of(&identity.tenant);
        let payload = encode(&Signed::new(&request, &identity.holder));
        let reply = self.request_patiently(&subject, payload, trace.as_ref()).await?;
        let bad = |error: &dyn std::fmt::Display| Error::BadAnswer(error.to_string());
        let reply: IssueReply = decode(&reply.payload).map_err(|error| bad(&error))?;
        let keyset = reply.keyset.ok_or_else(|| bad(&"the broker sent no keyset"))?;
        let keyset = Keyset::open(&keyset, &identity.root).map_err(|error| bad(&error))?;
        let now = self.now();
        if !keyset.is_current(now) {
            return Err(bad(&format!(
                "{}: the keyset ended at {}",
                ReasonCode::KeysetExpired,
                keyset.document().expires
            )));
        }
        let issued = reply
            .issued
            .open(|key| keyset.is_active(key, &identity.tenant, now))
            .map_err(|error| bad(&error))?;
        if issued.nonce != request.nonce || issued.tenant != identity.tenant {
            return Err(bad(&"it answers another request"));
        }
        Ok(issued.answer)
    }

    /// A broker that is just starting has nobody listening for a moment, and one that ended on the way is asked
    /// again: requests are answered the same however often they arrive.
    async fn request_patiently(
        &self,
        subject: &str,
        payload: Vec<u8>,
        trace: Option<&TraceContext>,
    ) -> Result<writ_bus::Reply, Error> {
        let (mut left, mut repeats) = (50, REPEATS_MAX);
        loop {
            let asked = self.shared.bus.request(subject.to_owned(), payload.clone(), trace, BROKER_TIMEOUT);
            match asked.await {
                Err(BusError::NoResponders(_)) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(BusError::TimedOut(_)) if repeats > 0 => repeats -= 1,
                Err(BusError::NoResponders(subject)) => {
                    return Err(Error::Bus(BusError::NoResponders(subject)));
                }
                other => return Ok(other?),
            }
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        self.shared.bus.close().await;
    }
}

pub(crate) fn read_capability(issued: &IssuedTask) -> Result<UnverifiedCapability, Error> {
    read_chain(&issued.capability)
}

pub(crate) fn read_chain(bytes: &[u8]) -> Result<UnverifiedCapability, Error> {
    UnverifiedCapability::parse(bytes).map_err(|reason| Error::BadAnswer(format!("the capability: {reason}")))
}
