//! One user's task, and the agents that may act in it from here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use rmcp::model::{CallToolResult, JsonObject, Tool};
use serde_json::json;
use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use writ_common::{
    capability::{Narrowing, Right},
    ids::{AgentId, ApprovalId, KeyId, Resource},
    json::Value,
    keys::PublicKey,
    reason::{Reason, ReasonCode},
};
use writ_sdk::{Agent, Error, Held, Identity, Labelled, Offer, OutcomeStatus, Task};

use crate::{
    answer,
    catalogue::{Catalogue, DELEGATE, Shape},
    held::{self, HeldCalls, HeldKey},
    presented::{self, Known, Standing},
};

/// How often the broker is asked whether another policy is in force, and at most, however often clients ask for tools.
const REFRESH_EVERY: Duration = Duration::from_secs(2);
const REFRESH_AT_MOST_EVERY: Duration = Duration::from_secs(1);
/// How long it is left alone once it cannot be asked.
const REFRESH_PAUSE_MAX: Duration = Duration::from_secs(60);
/// First pause between two questions whether people have answered, and the longest.
const ASK_EVERY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

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
    changed: watch::Sender<()>,
    held: Mutex<HeldCalls>,
    known: Mutex<Known>,
    patience: Duration,
    /// When the broker was asked last; one asks at a time.
    refreshed: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Listed {
    offer: Option<Offer>,
    catalogue: Arc<Catalogue>,
}

/// Other agents of this process, each connected when the first call comes for it.
struct Others(BTreeMap<KeyId, (Identity, OnceCell<Agent>)>);

impl Others {
    fn has(&self, key: &KeyId) -> bool {
        self.0.contains_key(key)
    }

    async fn agent(&self, key: &KeyId) -> Result<Option<Agent>, Error> {
        let Some((identity, connected)) = self.0.get(key) else { return Ok(None) };
        let agent = connected.get_or_try_init(|| Agent::connect(identity.clone())).await?;
        Ok(Some(agent.clone()))
    }

    /// The key of an agent that is here, out of those it has.
    fn key_of(&self, agent: &AgentId, keys: &[PublicKey]) -> Option<PublicKey> {
        let own = self.0.values().map(|(identity, _)| identity).filter(|identity| identity.agent == *agent);
        own.map(|identity| identity.holder.public()).find(|key| keys.contains(key))
    }
}

/// What a tool call came to.
#[derive(Clone)]
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
        let others = options.others.into_iter();
        let others = others.map(|one| (one.holder.public().id(), (one, OnceCell::new()))).collect();
        let shared = Shared {
            own: Mutex::new(Standing::new(task)),
            others: Others(others),
            catalogue: RwLock::default(),
            changed: watch::Sender::new(()),
            held: Mutex::default(),
            known: Mutex::default(),
            patience: options.patience,
            refreshed: tokio::sync::Mutex::default(),
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

    /// Asks again and again, for as long as somebody holds the gateway and the task lasts.
    fn keep_fresh(&self) {
        let shared = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let mut pause = REFRESH_EVERY;
            loop {
                tokio::time::sleep(pause).await;
                let Some(shared) = shared.upgrade() else { return };
                pause = match (Self { shared }).refresh().await {
                    Ok(()) => REFRESH_EVERY,
                    // A task that is over does not begin again, and each refusal is a record.
                    Err(Error::Denied(denial)) => {
                        tracing::info!("the tools are not listed any more: {denial}");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!("tools are not listed anew: {error}");
                        (pause * 2).min(REFRESH_PAUSE_MAX)
                    }
                };
            }
        });
    }

    /// Reads the tools anew if another policy is in force. Whoever asks while somebody else does, or right after, is
    /// told the same.
    async fn refresh(&self) -> Result<(), Error> {
        let mut refreshed = self.shared.refreshed.lock().await;
        if refreshed.is_some_and(|at| at.elapsed() < REFRESH_AT_MOST_EVERY) {
            return Ok(());
        }
        let task = self.task();
        // The broker would say no, and record it.
        if task.capability().await?.expires() <= task.agent().now() {
            return Ok(());
        }
        let known = self.listed(|listed| listed.offer.clone());
        let offered = task.offered_tools(known.as_ref()).await;
        *refreshed = Some(Instant::now());
        let Some(offer) = offered? else { return Ok(()) };
        let is_other = known.is_none_or(|known| known.tools != offer.tools);
        let catalogue = Arc::new(Catalogue::new(&offer));
        let mut listed = self.shared.catalogue.write().unwrap_or_else(PoisonError::into_inner);
        *listed = Listed { offer: Some(offer), catalogue };
        drop(listed);
        if is_other {
            self.shared.changed.send_replace(());
        }
        Ok(())
    }

    fn listed<T>(&self, read: impl FnOnce(&Listed) -> T) -> T {
        read(&self.shared.catalogue.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Says when the list of tools has become another one.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
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
    pub(crate) async fn call(&self, call: ToolCall<'_>) -> Outcome {
        match self.call_or_refuse(call).await {
            Ok(outcome) => outcome,
            Err(reason) => Outcome::Complete(answer::refused_here(reason.code(), reason.for_caller())),
        }
    }

    async fn call_or_refuse(&self, call: ToolCall<'_>) -> Result<Outcome, Reason> {
        let task = match self.standing(call.presented).await {
            Ok(standing) => standing?.task,
            Err(error) => return Ok(Outcome::Complete(answer::failed(&error))),
        };
        if call.name == DELEGATE {
            let arguments = read_arguments(call.arguments)?;
            return Ok(Outcome::Complete(self.delegate(&task, &arguments).await));
        }
        let entry = match self.entry(call.name) {
            Err(reason) if reason.code() == ReasonCode::ToolUnknown => {
                // The policy may have changed a moment ago.
                drop(self.refresh().await);
                self.entry(call.name)?
            }
            entry => entry?,
        };
        let arguments = match call.arguments {
            Some(arguments) => read_arguments(Some(&entry.without_nulls(arguments)))?,
            None => read_arguments(None)?,
        };
        let key = HeldKey {
            presented: call.presented.iter().map(|text| presented::digest(text)).collect(),
            agent: task.agent().name().clone(),
            right: entry.right.clone(),
            arguments: arguments.to_string(),
        };
        if let Some(approval) = call.state {
            let is_known = lock(&self.shared.held).has(&key, approval, task.agent().now());
            // Of what a client hands back nothing is believed but which approval it means.
            is_known.then_some(()).ok_or_else(|| {
                Reason::new(ReasonCode::ApprovalUnknown)
                    .told("no call with these arguments waits here under this `requestState`")
            })?;
        }
        Ok(self.make(&task, &key, arguments, entry.shape, call.cancelled).await)
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

    /// Makes a call, or goes on with the same one if it waits for people.
    async fn make(
        &self,
        task: &Task,
        key: &HeldKey,
        arguments: Value,
        shape: Shape,
        cancelled: &CancellationToken,
    ) -> Outcome {
        let known = lock(&self.shared.held).take(key, task.agent().now());
        match known {
            held::Stage::Again(held, news) => self.go_on(task, key, held, shape, cancelled, &news).await,
            held::Stage::Elsewhere(mut news) => match news.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(outcome)) => outcome.clone(),
                _ => Outcome::Complete(answer::failed(&Error::TimedOut)),
            },
            held::Stage::Fresh => {
                let (resource, action) = (key.right.resource.as_str(), key.right.action.as_str());
                match task.call_labelled(resource, action, arguments).await {
                    Err(Error::Held(held)) if self.shared.patience.is_zero() => {
                        lock(&self.shared.held).put(key.clone(), held.clone(), task.agent().now());
                        Outcome::Held(held)
                    }
                    Err(Error::Held(held)) => {
                        let news = lock(&self.shared.held).run(key, &held);
                        self.go_on(task, key, held, shape, cancelled, &news).await
                    }
                    made => Outcome::Complete(answer::of(made, shape)),
                }
            }
        }
    }

    /// Goes on with a call that was held. Until it is known what became of it, it stays the same call: a new one could
    /// be approved and done beside it.
    async fn go_on(
        &self,
        task: &Task,
        key: &HeldKey,
        mut held: Box<Held>,
        shape: Shape,
        cancelled: &CancellationToken,
        news: &watch::Sender<Option<Outcome>>,
    ) -> Outcome {
        let (begun, (mut pause, longest)) = (Instant::now(), ASK_EVERY);
        let outcome = loop {
            let made = task.proceed_labelled(&held).await;
            let waits = match &made {
                Err(Error::Held(still)) => {
                    held.clone_from(still);
                    true
                }
                made => !is_settled(made),
            };
            let left = self.shared.patience.saturating_sub(begun.elapsed());
            if waits && !left.is_zero() && !cancelled.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(pause.min(left)) => {}
                    () = cancelled.cancelled() => {}
                }
                pause = (pause * 3 / 2).min(longest);
                if !cancelled.is_cancelled() {
                    continue;
                }
            }
            let mut calls = lock(&self.shared.held);
            match waits {
                true => calls.put(key.clone(), held, task.agent().now()),
                false => calls.remove(key),
            }
            break match made {
                Err(Error::Held(held)) => Outcome::Held(held),
                made => Outcome::Complete(answer::of(made, shape)),
            };
        };
        news.send_replace(Some(outcome.clone()));
        outcome
    }

    /// The task a call is made in: the connection's, narrowed by each capability that came along, outermost first.
    ///
    /// # Errors
    /// Outside: the bus. Inside: why the capability does not count.
    async fn standing(&self, presented: &[String]) -> Result<Result<Standing, Reason>, Error> {
        let own = self.task().capability().await?.chain_id();
        let mut standing = {
            let mut kept = lock(&self.shared.own);
            kept.remember(own);
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
        let is_own = *holder == own.identity().holder.public();
        // Somebody else's capability is worth nothing here, whatever it says (threat T22).
        if !is_own && !self.shared.others.has(&holder.id()) {
            let to = capability.chain().caller();
            return Ok(Err(Reason::new(ReasonCode::TokenHolderMismatch)
                .told(format_args!("the capability was handed to a key of `{to}`, which is not here"))));
        }
        if let Err(reason) = standing.check_extends(&capability) {
            return Ok(Err(reason));
        }
        let chain = capability.chain_id();
        let known = lock(&self.shared.known).get(text);
        let mut narrower = match known {
            Some(known) => known,
            None => {
                let other = if is_own { None } else { self.shared.others.agent(&holder.id()).await? };
                Standing::new(Task::resume(other.as_ref().unwrap_or(own), capability)?)
            }
        };
        narrower.remember(chain);
        narrower.remember(narrower.task.capability().await?.chain_id());
        lock(&self.shared.known).put(text, narrower.clone());
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
        let (to, unknown) = read_delegation(arguments);
        if let Some(unknown) = unknown {
            return Ok(answer::refused_here(ReasonCode::ArgUnknown, &format!("`/{unknown}`")));
        }
        let Some(to) = to else {
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
        let narrowing = Narrowing::new().only(wanted.clone());
        // Of several keys the one that is here: nobody else could use the others.
        let agent = AgentId::parse(to)?;
        let here = self.shared.others.key_of(&agent, &task.agent().delegate_keys(&agent));
        let delegation = match here {
            Some(key) => task.delegate_to_key(agent, key, narrowing),
            None => task.delegate(to, narrowing).await?,
        };
        let capability = delegation.capability().await?;
        // Where the other agent is here as well, what it holds is renewed with ours.
        if let Some(agent) = self.shared.others.agent(&capability.chain().holder().id()).await? {
            let mut standing = Standing::new(delegation.accept(&agent, capability.clone())?);
            standing.remember(capability.chain_id());
            lock(&self.shared.known).put(&presented::write(&capability), standing);
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

/// A call of a tool, as it came.
pub(crate) struct ToolCall<'a> {
    pub(crate) name: &'a str,
    pub(crate) arguments: Option<&'a JsonObject>,
    /// The capabilities that came along, outermost first.
    pub(crate) presented: &'a [String],
    /// What the client hands back of a call that waits.
    pub(crate) state: Option<&'a ApprovalId>,
    /// Whether the client still wants to know.
    pub(crate) cancelled: &'a CancellationToken,
}

/// Whether it is known what became of a call. If it is not, the same call has to be made again, never another one.
fn is_settled(made: &Result<Labelled, Error>) -> bool {
    match made {
        Ok(_) | Err(Error::Denied(_)) => true,
        Err(Error::Failed { status, .. }) => *status != OutcomeStatus::UnknownOutcome,
        Err(_) => false,
    }
}

/// To whom a call of `writ_delegate` hands on, and the first member nobody declared.
fn read_delegation(arguments: &Value) -> (Option<&str>, Option<&str>) {
    let Value::Object(members) = arguments else { return (None, None) };
    let unknown = members.keys().find(|key| !["agent", "tools"].contains(&key.as_str()));
    (members.get("agent").and_then(Value::as_str), unknown.map(String::as_str))
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
