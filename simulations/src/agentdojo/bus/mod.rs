//! The same traces over a real bus: one nats-server, one broker, one node, and agents with keys of their own.
//!
//! The suite's policy is the broker's. Every trace is a task that an orchestrator starts for a user, hands on to the
//! agent of each group of tools, and these make the calls with writ-sdk. The tools answer what the file says. Of a call
//! that is held, or whose right is missing, a human is asked over the bus, and says yes.

mod human;
mod tool;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use writ::{
    dev::{DevOptions, DevStack, nats_conf::CoreUser},
    run,
};
use writ_bus::{Bus, BusConfig, keyfile};
use writ_common::{
    capability::{Narrowing, Right},
    ids::{Resource, TaskId},
    json::Value,
    policy::PolicyBundle,
    reason::ReasonCode,
};
use writ_node::{
    inspect::Panel,
    serve::{NodeHandle, NodeSetup},
    tools::Tool,
};
use writ_sdk::{Agent, Error, Held, NewTask, Server, Task};

use self::{
    human::Human,
    tool::{Expected, Replayed, Stores},
};
use super::{
    contracts::{APPROVER, ORCHESTRATOR, USER, agent, as_list, kind, resource},
    mint::{self, Mint},
    replay::{Answer, INPUT, RIGHT_IS_MISSING, Replay, held_for, lacks_right},
    trace::{Attack, Call, UserTask},
    traces::{Leg, Trace},
};

/// The node.
const NODE: &str = "node-1";
/// How many traces are under way at the same time; fewer than a user may have requests for approval waiting.
const IN_FLIGHT: usize = 16;
/// How long a call may take with the answer of the human, and how often that is asked for.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_millis(20);
/// How long after a call is made again that could not be decided.
const UNDECIDED_PAUSE: Duration = Duration::from_millis(250);

/// Replays traces; what each call came to, leg by leg.
///
/// # Errors
/// If the set-up does not come up, a task is not started, or a call cannot be decided.
pub async fn run(replay: &Replay<'_>, traces: &[Trace<'_>]) -> Result<Vec<Vec<Vec<Answer>>>> {
    let stage = Stage::set(replay).await?;
    let replayed =
        stream::iter(traces).map(|trace| stage.trace(trace)).buffered(IN_FLIGHT).try_collect().await;
    stage.clear().await;
    replayed
}

/// A running set-up for one suite.
struct Stage<'a> {
    replay: &'a Replay<'a>,
    orchestrator: Agent,
    /// The agents that have tools.
    agents: BTreeMap<String, Agent>,
    servers: Vec<Server>,
    visitors: Visitors,
    tools: Arc<Replayed>,
    human: Human,
    node: NodeHandle,
    stack: DevStack,
    // Removed once everything that writes into it has stopped.
    _folder: tempfile::TempDir,
}

/// A task in the hands of an agent that was invoked, until it says that it is done.
struct Visit {
    task: Task,
    done: oneshot::Sender<()>,
}

/// Who waits for agents to be invoked, by task.
type Visitors = Arc<Mutex<BTreeMap<TaskId, mpsc::UnboundedSender<Visit>>>>;

/// A task of the orchestrator's with what its calls need.
struct Running<'a> {
    task: Task,
    /// What whoever makes a write may still do, by right.
    writes: Vec<(Right, Narrowing)>,
    rights: BTreeSet<Right>,
    visits: mpsc::UnboundedReceiver<Visit>,
    stores: Stores,
    attack: Option<&'a Attack>,
}

/// How a call of the SDK ended, as far as the report tells endings apart.
enum Called {
    Done,
    Denied {
        why: String,
        codes: BTreeSet<ReasonCode>,
    },
    /// Done, after a human said yes to it.
    Approved(String),
}

impl Called {
    fn answer(self) -> Answer {
        match self {
            Self::Done => Answer::Allowed,
            Self::Approved(why) => Answer::Held(why),
            Self::Denied { why, .. } => Answer::Denied(why),
        }
    }
}

impl<'a> Stage<'a> {
    async fn set(replay: &'a Replay<'a>) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let root = folder.path().join(".writ");
        write_policy(&root.join("policies"), &replay.files)?;
        let nodes = vec![NODE.to_owned()];
        let options = DevOptions { folder: root, port: None, servers: 1, nodes, start_core: false };
        let mut stack = DevStack::start(options).await?;
        stack.start_broker().await?;
        let names: Vec<String> = replay.groups().into_iter().map(agent).collect();
        for name in names.iter().map(String::as_str).chain([ORCHESTRATOR]) {
            stack.enroll(name, name).await.with_context(|| format!("agent `{name}`"))?;
        }
        let human = Human::new(stack.approver(APPROVER).await?);
        let tools = Arc::new(Replayed::new(stack.operator().await?).await?);
        let node = start_node(&stack, replay, &tools).await?;
        let visitors = Visitors::default();
        let (mut agents, mut servers) = (BTreeMap::new(), Vec::new());
        for name in names {
            let agent = stack.agent(&name).await?;
            servers.push(serve(&agent, Arc::clone(&visitors)).await?);
            agents.insert(name, agent);
        }
        let orchestrator = stack.agent(ORCHESTRATOR).await?;
        Ok(Self {
            replay,
            orchestrator,
            agents,
            servers,
            visitors,
            tools,
            human,
            node,
            stack,
            _folder: folder,
        })
    }

    async fn clear(self) {
        drop((self.servers, self.human));
        for agent in self.agents.into_values().chain([self.orchestrator]) {
            agent.close().await;
        }
        self.node.stop().await;
        self.stack.stop().await;
    }

    /// One trace: a task, and another one where a leg is of another.
    async fn trace(&self, trace: &Trace<'_>) -> Result<Vec<Vec<Answer>>> {
        let stores = Stores::default();
        let mut answers = Vec::new();
        let mut legs = trace.legs.as_slice();
        while let Some(first) = legs.first() {
            let more = legs.iter().skip(1).take_while(|leg| !leg.is_another).count();
            let (of_task, others) = legs.split_at(1 + more);
            legs = others;
            let task = self.replay.suite.tasks.get(first.task).context("there is no such task")?;
            let mut running = self.start(first.task, task, trace.attack, &stores).await?;
            let told = Box::pin(self.calls(&mut running, of_task)).await;
            let id = running.task.id();
            self.visitors.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            self.tools.forget(id);
            answers.extend(told.with_context(|| format!("task `{}`", first.task))?);
        }
        Ok(answers)
    }

    async fn start<'t>(
        &self,
        name: &str,
        task: &UserTask,
        attack: Option<&'t Attack>,
        stores: &Stores,
    ) -> Result<Running<'t>> {
        let mut new = NewTask::new(kind(name), self.stack.tokens.token_for(USER)?, &task.prompt);
        let mut writes = Vec::new();
        if self.replay.mint == Mint::Oracle {
            let wanted = mint::oracle(self.replay.suite, task, &self.replay.world.policy)?;
            new = new.rights(wanted.rights);
            writes = wanted.writes;
        }
        let mut trying = Trying::new();
        let task = loop {
            match self.orchestrator.start_task(new.clone()).await {
                Ok(task) => break task,
                Err(error) => self.again(&mut trying, error).await.context("the task is not started")?,
            }
        };
        let (sender, visits) = mpsc::unbounded_channel();
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner).insert(task.id().clone(), sender);
        let rights = task.capability().await?.rights().clone();
        let stores = Arc::clone(stores);
        Ok(Running { task, writes, rights, visits, stores, attack })
    }

    /// The calls of a task, in runs that one agent makes after it was invoked.
    async fn calls(&self, running: &mut Running<'_>, legs: &[Leg<'_>]) -> Result<Vec<Vec<Answer>>> {
        let calls: Vec<&Call> = legs.iter().flat_map(|leg| leg.calls.iter()).collect();
        let group = |call: &&Call| self.replay.suite.tools.get(&call.tool).map(|tool| tool.group.as_str());
        let mut answers = Vec::new();
        for run in calls.chunk_by(|a, b| group(a) == group(b)) {
            let group = run.first().and_then(group).context("a call of no tool")?;
            answers.extend(Box::pin(self.run(running, group, run)).await?);
        }
        let mut answers = answers.into_iter();
        Ok(legs.iter().map(|leg| answers.by_ref().take(leg.calls.len()).collect()).collect())
    }

    /// Has the agent of a group invoked, and the calls made by it.
    async fn run(&self, running: &mut Running<'_>, group: &str, calls: &[&Call]) -> Result<Vec<Answer>> {
        let is_write = |right: &Right| running.writes.iter().any(|(write, _)| write == right);
        let kept = self.replay.kept(group, &running.rights, is_write);
        let delegation = running.task.delegate(&agent(group), Narrowing::new().only(kept)).await?;
        let mut trying = Trying::new();
        loop {
            let (task, held) = (running.task.clone(), trying.held.clone());
            let invoking = async {
                match &held {
                    None => delegation.invoke(Value::from(INPUT)).await,
                    Some(held) => task.proceed(held).await,
                }
            };
            tokio::pin!(invoking);
            tokio::select! {
                Some(visit) = running.visits.recv() => {
                    let mut answers = Vec::new();
                    for call in calls {
                        answers.push(self.call(running, &visit.task, group, call).await?);
                    }
                    visit.done.send(()).map_err(|()| anyhow!("an agent that was invoked is gone"))?;
                    invoking.await.context("an agent was invoked, and its answer is lost")?;
                    let invoked = self.called(held.as_deref()).answer();
                    if let Some(first) = answers.first_mut() {
                        *first = std::mem::replace(first, Answer::Allowed).max(invoked);
                    }
                    return Ok(answers);
                }
                ended = &mut invoking => match ended {
                    Err(Error::Denied(denial)) => {
                        return Ok(calls.iter().map(|_| Answer::Denied(denial.to_string())).collect());
                    }
                    Err(error) => self.again(&mut trying, error).await.context("an agent is not invoked")?,
                    Ok(_) => bail!("an agent answered that was not asked"),
                },
            }
        }
    }

    /// One call, by whichever capability at hand lets it through.
    async fn call(&self, running: &Running<'_>, visiting: &Task, group: &str, call: &Call) -> Result<Answer> {
        let suite = self.replay.suite;
        let right = mint::right(suite, &call.tool)?;
        let tool = suite.tools.get(&call.tool).context("a call of no tool")?;
        let expected = Expected {
            arguments: Arc::clone(&call.arguments),
            result: as_list(&suite.seen(&call.result, running.attack)),
            group: group.to_owned(),
            writes: mint::writes(tool),
            domain: visiting.capability().await?.grant().domain.clone(),
            stores: Arc::clone(&running.stores),
        };
        self.tools.expect(running.task.id(), expected);
        let mut handed = Vec::new();
        for (_, narrowing) in running.writes.iter().filter(|(write, _)| *write == right) {
            let delegation = running.task.delegate(&agent(group), narrowing.clone()).await?;
            handed.push(Task::resume(visiting.agent(), delegation.capability().await?)?);
        }
        if handed.is_empty() {
            handed.push(visiting.clone());
        }
        let mut denied = Answer::Denied("no capability".to_owned());
        for task in handed {
            match self.try_call(&task, &right, &call.arguments).await? {
                Called::Denied { codes, .. } if lacks_right(self.replay.mint, &codes) => {
                    return self.with_right(running, &right, &call.arguments).await;
                }
                Called::Denied { why, .. } => denied = Answer::Denied(why),
                called => return Ok(called.answer()),
            }
        }
        Ok(denied)
    }

    /// Only a right is missing: the orchestrator asks for it, and makes the call itself.
    async fn with_right(&self, running: &Running<'_>, right: &Right, arguments: &Value) -> Result<Answer> {
        let mut trying = Trying::new();
        let requested = loop {
            match running.task.request_right(right.clone(), "a call of the task needs it").await {
                Ok(requested) => break requested,
                Err(Error::Denied(denial)) => return Ok(Answer::Denied(denial.to_string())),
                Err(error) => self.again(&mut trying, error).await.context("a right is not asked for")?,
            }
        };
        let wider = loop {
            match running.task.take_right(&requested).await {
                Ok(wider) => break wider,
                Err(error) => self.again(&mut trying, error).await.context("a right is not given")?,
            }
        };
        Ok(match self.try_call(&wider, right, arguments).await? {
            Called::Done | Called::Approved(_) => Answer::Held(RIGHT_IS_MISSING.to_owned()),
            denied @ Called::Denied { .. } => denied.answer(),
        })
    }

    /// Makes a call, and makes it again once a human said yes.
    async fn try_call(&self, task: &Task, right: &Right, arguments: &Value) -> Result<Called> {
        let mut trying = Trying::new();
        loop {
            let called = match &trying.held {
                None => task.call(right.resource.as_str(), right.action.as_str(), arguments.clone()).await,
                Some(held) => task.proceed(held).await,
            };
            match called {
                Ok(_) => return Ok(self.called(trying.held.as_deref())),
                Err(Error::Denied(denial)) => {
                    let codes = denial.reasons.iter().map(|reason| reason.code).collect();
                    return Ok(Called::Denied { why: denial.to_string(), codes });
                }
                Err(error) => self.again(&mut trying, error).await.with_context(|| right.to_string())?,
            }
        }
    }

    /// How a call ended that was done, held before or not.
    fn called(&self, held: Option<&Held>) -> Called {
        match held {
            None => Called::Done,
            Some(held) => Called::Approved(held_for(&self.human.saw(&held.approval))),
        }
    }

    /// Waits for the human, or for what could not be decided.
    ///
    /// # Errors
    /// Whatever trying again does not help with.
    async fn again(&self, trying: &mut Trying, error: Error) -> Result<()> {
        if trying.since.elapsed() > PATIENCE {
            let fault = self.human.fault().unwrap_or_else(|| "the human has no trouble".to_owned());
            return Err(anyhow::Error::from(error).context(fault));
        }
        match error {
            Error::Held(held) => trying.held = Some(held),
            Error::RightWaiting(_) => {}
            Error::CouldNotDecide(_) => tokio::time::sleep(UNDECIDED_PAUSE).await,
            error => return Err(error.into()),
        }
        tokio::time::sleep(ASK_EVERY).await;
        Ok(())
    }
}

/// A call until it is done or denied.
struct Trying {
    since: Instant,
    held: Option<Box<Held>>,
}

impl Trying {
    fn new() -> Self {
        Self { since: Instant::now(), held: None }
    }
}

/// Has whatever an agent is invoked for done by whoever waits for it.
async fn serve(agent: &Agent, visitors: Visitors) -> Result<Server> {
    let served = agent.serve(move |invocation| {
        let id = invocation.task.id();
        let visitor = visitors.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        async move {
            let (done, end) = oneshot::channel();
            let sent = visitor.map(|visitor| visitor.send(Visit { task: invocation.task, done }));
            let is_done = matches!(sent, Some(Ok(()))) && end.await.is_ok();
            if is_done {
                Ok(Value::from("done"))
            } else {
                Err(Error::BadAnswer("nobody waits for it".to_owned()))
            }
        }
    });
    Ok(served.await?)
}

fn write_policy(folder: &std::path::Path, files: &PolicyBundle) -> Result<()> {
    for (path, text) in &files.0 {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// A node as `writ node` would start it, with the suite's tools.
async fn start_node(stack: &DevStack, replay: &Replay<'_>, tools: &Arc<Replayed>) -> Result<NodeHandle> {
    let config = run::read_node_config(&stack.layout.node_config(NODE))?;
    let bus = Bus::connect(BusConfig {
        urls: config.bus_urls,
        user: keyfile::read_user(&config.bus_user_file)?,
        name: config.node.to_string(),
        inbox_prefix: CoreUser::Node(config.node.clone()).inbox_prefix(),
        ca_file: config.bus_ca_file,
    });
    let mut served = BTreeMap::new();
    for group in replay.groups() {
        let tool: Arc<dyn Tool> = Arc::clone(tools) as Arc<dyn Tool>;
        served.insert(Resource::parse(resource(group))?, tool);
    }
    let setup = NodeSetup {
        tenant: config.tenant,
        node: config.node,
        root: config.root,
        key: keyfile::read_key(&config.key_file)?,
        bus: bus.await?,
        journal: config.journal,
        sync: config.sync,
        journal_limits: config.journal_limits,
        fresh: config.fresh,
        tools: served,
        panel: Panel::open(&config.inspectors)?,
        http: config.http,
    };
    let mut node = Box::pin(writ_node::serve::start(setup)).await?;
    node.ready().await;
    Ok(node)
}
