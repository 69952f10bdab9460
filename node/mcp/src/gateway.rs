//! One user's task, and the agents that may act in it from here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use rmcp::model::{CallToolResult, JsonObject, Tool};
use serde_json::json;
use tokio::sync::watch;
use writ_common::{
    capability::{Narrowing, Right},
    ids::{AgentId, KeyId, Resource},
    json::Value,
    reason::{Reason, ReasonCode},
    time::Timestamp,
};
use writ_sdk::{Agent, Error, Held, Identity, Labelled, Offer, Task};

use crate::{
    answer,
    catalogue::{Catalogue, Shape},
    held::{HeldCalls, HeldKey},
    presented::{self, Known, Standing},
};

/// How often the broker is asked whether another policy is in force.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
/// The tool by which an agent hands a part of its task to another one.
pub(crate) const DELEGATE: &str = "writ_delegate";

/// What a gateway is made with.
#[derive(Clone, Debug, Default)]
pub struct GatewayOptions {
    /// Offer these resources only; everything the capability gives if empty. What is left out is given up, not hidden.
    pub only: BTreeSet<Resource>,
    /// Identities of other agents that run here: a capability handed to one of them may come with a call.
    pub others: Vec<Identity>,
    /// How long a held call waits for people before it is answered as held.
    pub patience: Duration,
}

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The broker or the bus.
    #[error(transparent)]
    Sdk(#[from] Error),
    /// The listener.
    #[error("{address}: {source}")]
    Listen {
        /// Where it was to listen.
        address: String,
        /// Why it cannot.
        source: std::io::Error,
    },
    /// A setting has no meaning.
    #[error("{0}")]
    Setting(String),
}

/// A task behind an MCP server. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    own: Mutex<Standing>,
    others: Others,
    catalogue: RwLock<Listed>,
    changed: watch::Sender<u64>,
    held: Mutex<HeldCalls>,
    known: Mutex<Known>,
    patience: Duration,
    refresher: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(refresher) = lock(&self.refresher).take() {
            refresher.abort();
        }
    }
}

#[derive(Default)]
struct Listed {
    offer: Option<Offer>,
    catalogue: Arc<Catalogue>,
}

/// Other agents of this process, connected when the first call comes for one.
struct Others {
    identities: BTreeMap<KeyId, Identity>,
    connected: tokio::sync::Mutex<BTreeMap<KeyId, Agent>>,
}

impl Others {
    async fn agent(&self, key: &KeyId) -> Result<Option<Agent>, Error> {
        let Some(identity) = self.identities.get(key) else { return Ok(None) };
        let mut connected = self.connected.lock().await;
        if let Some(agent) = connected.get(key) {
            return Ok(Some(agent.clone()));
        }
        let agent = Agent::connect(identity.clone()).await?;
        connected.insert(key.clone(), agent.clone());
        Ok(Some(agent))
    }
}

/// What a tool call came to.
pub(crate) enum Outcome {
    /// A result, or a refusal in the form of one.
    Complete(CallToolResult),
    /// People have to approve it first.
    Held(Box<Held>),
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gateway {
    /// Puts a task behind an MCP server, and asks the broker what its tools look like.
    ///
    /// # Errors
    /// [`GatewayError`]: the broker refuses or is not reached, or nothing of what was asked for is offered.
    pub async fn new(task: Task, options: GatewayOptions) -> Result<Self, GatewayError> {
        let task = match options.only.is_empty() {
            true => task,
            false => {
                let rights = task.rights().await?;
                let kept: Vec<Right> =
                    rights.into_iter().filter(|right| options.only.contains(&right.resource)).collect();
                if kept.is_empty() {
                    let only: Vec<&str> = options.only.iter().map(Resource::as_str).collect();
                    return Err(GatewayError::Setting(format!(
                        "the task has no right on {}; `writ capability inspect` shows what it has",
                        only.join(", ")
                    )));
                }
                task.narrow(Narrowing::new().only(kept))
            }
        };
        let identities = options.others.into_iter().map(|one| (one.holder.public().id(), one)).collect();
        let shared = Shared {
            own: Mutex::new(Standing::new(task)),
            others: Others { identities, connected: tokio::sync::Mutex::default() },
            catalogue: RwLock::default(),
            changed: watch::Sender::new(0),
            held: Mutex::default(),
            known: Mutex::default(),
            patience: options.patience,
            refresher: Mutex::default(),
        };
        let gateway = Self { shared: Arc::new(shared) };
        gateway.refresh().await?;
        gateway.keep_fresh();
        Ok(gateway)
    }

    /// The task.
    #[must_use]
    pub fn task(&self) -> Task {
        lock(&self.shared.own).task.clone()
    }

    /// Asks again and again, for as long as somebody holds the gateway.
    fn keep_fresh(&self) {
        let shared = Arc::downgrade(&self.shared);
        let worker = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH_EVERY).await;
                let Some(shared) = shared.upgrade() else { return };
                // What cannot be asked for now is asked for the next time.
                if let Err(error) = (Self { shared }).refresh().await {
                    tracing::debug!("tools are not listed anew: {error}");
                }
            }
        });
        *lock(&self.shared.refresher) = Some(worker.abort_handle());
    }

    /// Reads the tools anew if another policy is in force.
    async fn refresh(&self) -> Result<(), Error> {
        let known = self.listed(|listed| listed.offer.clone());
        let Some(offer) = self.task().offered_tools(known.as_ref()).await? else { return Ok(()) };
        let is_other = known.is_none_or(|known| known.tools != offer.tools);
        let catalogue = Arc::new(Catalogue::new(&offer));
        let mut listed = self.shared.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        *listed = Listed { offer: Some(offer), catalogue };
        drop(listed);
        if is_other {
            self.shared.changed.send_modify(|times| *times += 1);
        }
        Ok(())
    }

    fn listed<T>(&self, read: impl FnOnce(&Listed) -> T) -> T {
        read(&self.shared.catalogue.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says when the list of tools has become another one.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// The tools as they are now, as far as a capability that came along gives them; as they were last if the broker
    /// cannot be asked.
    pub(crate) async fn tools(&self, presented: &[String]) -> Vec<Tool> {
        if let Err(error) = self.refresh().await {
            tracing::warn!("tools are listed as they were: {error}");
        }
        let catalogue = self.listed(|listed| Arc::clone(&listed.catalogue));
        let (task, rights) = if presented.is_empty() {
            (self.task(), None)
        } else {
            let Ok(Ok(Standing { task, .. })) = self.standing(presented).await else { return Vec::new() };
            let Ok(rights) = task.rights().await else { return Vec::new() };
            (task, Some(rights))
        };
        let is_given = |tool: &&Tool| {
            let right = catalogue.get(&tool.name).map(|entry| &entry.right);
            rights.as_ref().is_none_or(|rights| right.is_some_and(|right| rights.contains(right)))
        };
        let mut tools: Vec<Tool> = catalogue.tools().iter().filter(is_given).cloned().collect();
        let delegates = task.agent().delegates();
        if !delegates.is_empty() {
            tools.push(delegate_tool(&delegates));
        }
        tools
    }

    /// Calls a tool under the capability of the connection, or under a narrower one that came along.
    pub(crate) async fn call(
        &self,
        name: &str,
        arguments: Option<&JsonObject>,
        presented: &[String],
        state: Option<&str>,
    ) -> Outcome {
        match self.call_or_refuse(name, arguments, presented, state).await {
            Ok(outcome) => outcome,
            Err(reason) => Outcome::Complete(answer::refused_here(reason.code(), reason.for_caller())),
        }
    }

    async fn call_or_refuse(
        &self,
        name: &str,
        arguments: Option<&JsonObject>,
        presented: &[String],
        state: Option<&str>,
    ) -> Result<Outcome, Reason> {
        let task = match self.standing(presented).await {
            Ok(standing) => standing?.task,
            Err(error) => return Ok(Outcome::Complete(answer::failed(&error))),
        };
        let arguments = read_arguments(arguments)?;
        if name == DELEGATE {
            return Ok(Outcome::Complete(self.delegate(&task, &arguments).await));
        }
        let entry = match self.entry(name) {
            Err(reason) if reason.code() == ReasonCode::ToolUnknown => {
                // The policy may have changed a moment ago.
                drop(self.refresh().await);
                self.entry(name)?
            }
            entry => entry?,
        };
        let key = HeldKey {
            agent: task.agent().name().clone(),
            right: entry.right.clone(),
            arguments: arguments.to_string(),
        };
        if let Some(state) = state {
            self.check_state(&key, state)?;
        }
        Ok(self.make(&task, &key, arguments, entry.shape).await)
    }

    fn entry(&self, name: &str) -> Result<crate::catalogue::Entry, Reason> {
        self.listed(|listed| match listed.catalogue.get(name) {
            Some(entry) => Ok(entry.clone()),
            None if listed.catalogue.is_ambiguous(name) => {
                let told = format!("more than one tool is called `{name}`, or could be taken for it");
                Err(Reason::new(ReasonCode::ToolAmbiguous).told(told))
            }
            None => Err(Reason::new(ReasonCode::ToolUnknown)
                .told(format_args!("this task has no tool `{}`", writ_common::visible::visible(name)))),
        })
    }

    /// What a client hands back of a call that waits names the approval, and nothing is believed of it beyond that.
    fn check_state(&self, key: &HeldKey, state: &str) -> Result<(), Reason> {
        let approval = writ_common::ids::ApprovalId::parse(state);
        let is_known = approval.is_ok_and(|approval| lock(&self.shared.held).has(key, &approval));
        is_known.then_some(()).ok_or_else(|| {
            Reason::new(ReasonCode::ApprovalUnknown)
                .told("no call with these arguments waits here under this `requestState`")
        })
    }

    /// Makes a call, or goes on with the same one if it waits for people.
    async fn make(&self, task: &Task, key: &HeldKey, arguments: Value, shape: Shape) -> Outcome {
        let waiting = lock(&self.shared.held).take(key, now());
        let made: Result<Labelled, Error> = match waiting {
            Some(held) => task.proceed_labelled(&held).await,
            None => {
                let (resource, action) = (key.right.resource.as_str(), key.right.action.as_str());
                task.call_labelled(resource, action, arguments).await
            }
        };
        let made = match made {
            Err(Error::Held(held)) if !self.shared.patience.is_zero() => {
                task.wait_for_approval_labelled(*held, self.shared.patience).await
            }
            made => made,
        };
        if let Err(Error::Held(held)) = made {
            lock(&self.shared.held).put(key.clone(), (*held).clone(), now());
            return Outcome::Held(held);
        }
        Outcome::Complete(answer::of(made, shape))
    }

    /// The task a call is made in: the connection's, narrowed by each capability that came along, outermost first.
    ///
    /// # Errors
    /// Outside: the bus. Inside: why the capability does not count.
    async fn standing(&self, presented: &[String]) -> Result<Result<Standing, Reason>, Error> {
        let own = self.task().capability().await?.chain_id();
        let mut standing = {
            let mut kept = lock(&self.shared.own);
            kept.is_at(own);
            kept.clone()
        };
        for text in presented {
            standing = match self.narrower(&standing, text).await? {
                Ok(narrower) => narrower,
                Err(reason) => return Ok(Err(reason)),
            };
        }
        Ok(Ok(standing))
    }

    async fn narrower(&self, standing: &Standing, text: &str) -> Result<Result<Standing, Reason>, Error> {
        let capability = match presented::read(text) {
            Ok(capability) => capability,
            Err(reason) => return Ok(Err(reason)),
        };
        let own = standing.task.agent();
        let holder = capability.chain().holder();
        let agent = if *holder == own.identity().holder.public() {
            Some(own.clone())
        } else {
            self.shared.others.agent(&holder.id()).await?
        };
        // Somebody else's capability is worth nothing here, whatever it says (threat T22).
        let Some(agent) = agent else {
            let to = capability.chain().caller();
            return Ok(Err(Reason::new(ReasonCode::TokenHolderMismatch)
                .told(format_args!("the capability was handed to a key of `{to}`, which is not here"))));
        };
        if let Err(reason) = standing.check_extends(&capability) {
            return Ok(Err(reason));
        }
        let chain = capability.chain_id();
        let known = lock(&self.shared.known).get(&chain);
        let mut narrower = match known {
            Some(known) => known,
            None => Standing::new(Task::resume(&agent, capability)?),
        };
        narrower.is_at(chain);
        narrower.is_at(narrower.task.capability().await?.chain_id());
        lock(&self.shared.known).put(chain, narrower.clone());
        Ok(Ok(narrower))
    }

    /// Hands a part of a task to another agent, as the tool `writ_delegate`.
    async fn delegate(&self, task: &Task, arguments: &Value) -> CallToolResult {
        match self.try_delegate(task, arguments).await {
            Ok(result) => result,
            Err(error) => answer::failed(&error),
        }
    }

    async fn try_delegate(&self, task: &Task, arguments: &Value) -> Result<CallToolResult, Error> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str);
        let Some(to) = text("agent") else {
            return Ok(answer::refused_here(ReasonCode::ArgMissing, "`/agent`: to whom"));
        };
        let wanted = match self.wanted(arguments) {
            Ok(wanted) => wanted,
            Err(reason) => return Ok(answer::refused_here(reason.code(), reason.for_caller())),
        };
        let own = task.rights().await?;
        if let Some(beyond) = wanted.iter().find(|right| !own.contains(right)) {
            let why = format!("`{beyond}` is not this agent's to hand on");
            return Ok(answer::refused_here(ReasonCode::DelegationWidening, &why));
        }
        let delegation = task.delegate(to, Narrowing::new().only(wanted.clone())).await?;
        let capability = delegation.capability().await?;
        // Where the other agent is here as well, what it holds is renewed with ours.
        if let Some(agent) = self.shared.others.agent(&capability.chain().holder().id()).await? {
            let mut standing = Standing::new(delegation.accept(&agent).await?);
            standing.is_at(capability.chain_id());
            lock(&self.shared.known).put(capability.chain_id(), standing);
        }
        let rights: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        Ok(CallToolResult::structured(json!({
            "agent": to,
            "capability": presented::write(&capability),
            "expires": capability.expires().to_string(),
            "rights": rights,
        })))
    }

    /// The rights named by a call of `writ_delegate`: as rights, or as the names of tools.
    fn wanted(&self, arguments: &Value) -> Result<Vec<Right>, Reason> {
        let missing = || Reason::new(ReasonCode::ArgMissing).told("`/tools`: what is handed on");
        let Some(Value::Array(named)) = arguments.get("tools") else { return Err(missing()) };
        let right = |name: &Value| {
            let name = name.as_str().ok_or_else(missing)?;
            match self.entry(name) {
                Ok(entry) => Ok(entry.right),
                Err(unknown) => Right::parse(name).map_err(|_| unknown),
            }
        };
        let rights: Vec<Right> = named.iter().map(right).collect::<Result<_, _>>()?;
        if rights.is_empty() { Err(missing()) } else { Ok(rights) }
    }
}

/// An MCP call without arguments is one with none.
fn read_arguments(arguments: Option<&JsonObject>) -> Result<Value, Reason> {
    let text = arguments.map_or_else(|| Ok("{}".to_owned()), serde_json::to_string);
    let invalid = |error: &dyn std::fmt::Display| Reason::new(ReasonCode::ArgInvalid).told(error);
    Value::parse(&text.map_err(|error| invalid(&error))?).map_err(|error| invalid(&error))
}

fn delegate_tool(delegates: &[AgentId]) -> Tool {
    let names: Vec<&str> = delegates.iter().map(AgentId::as_str).collect();
    let schema = json!({
        "type": "object",
        "required": ["agent", "tools"],
        "additionalProperties": false,
        "properties": {
            "agent": {"type": "string", "enum": names, "description": "the agent that goes on"},
            "tools": {
                "type": "array", "items": {"type": "string"}, "minItems": 1,
                "description": "the tools it may use, by their names here"
            },
        },
    });
    let mut tool = Tool::default();
    tool.name = DELEGATE.into();
    tool.description = Some(
        "Hands a part of this task to another agent: returns a capability for the tools named and for no others, \
         which that agent's calls carry in `_meta[\"dev.writ/capability\"]` or in the header `Writ-Capability`."
            .into(),
    );
    if let serde_json::Value::Object(schema) = schema {
        tool.input_schema = schema.into();
    }
    tool
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
