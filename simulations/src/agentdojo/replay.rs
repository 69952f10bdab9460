//! One task replayed call by call: who decides, what the task has been told by then, and what stands in the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use writ_common::{
    capability::{Capability, Narrowing, Right},
    json::Value,
    label::Label,
    policy::{PolicyBundle, PolicySet},
    reason::{Reason, ReasonCode},
    request::Arguments,
    source::{Instruction, ResultSources},
    verdict::{Decision, Verdict},
};

use super::{
    contracts::{self, agent, as_list, resource},
    mint::{self, Mint},
    trace::{Attack, Call, Suite, UserTask},
    traces::{Leg, Trace},
    world::{Issued, Known, World, reasons},
};

/// What an agent is told when it is invoked.
pub const INPUT: &str = "go on";

/// What a call comes to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// It is done.
    Allowed,
    /// A human is asked.
    Held(String),
    /// It is refused.
    Denied(String),
}

/// A suite under one policy.
pub struct Replay<'a> {
    /// The suite.
    pub suite: &'a Suite,
    /// How its capabilities come about.
    pub mint: Mint,
    /// The whole policy: what describes the suite, the rules, and what the mint adds.
    pub files: PolicyBundle,
    /// The same, loaded, with everything a decision needs.
    pub world: World,
}

/// What a user's task is made with.
struct Session<'a> {
    name: &'a str,
    replay: &'a Replay<'a>,
    instruction: Instruction,
    issued: Issued,
    /// Everything the tools can do, to see what stands against a call beside a missing right.
    wide: Option<Issued>,
    /// What each agent holds for reading, and where nothing is known of the task for everything.
    agents: BTreeMap<String, Capability>,
    /// What is held for each write.
    writes: Vec<(Right, Capability)>,
}

/// What a task has been told so far, and what it has left behind in tools.
#[derive(Clone)]
pub struct State {
    label: Label,
    results: ResultSources,
    /// What tools keep carries the label of the task that wrote it: by group, since a file does not say more.
    stores: BTreeMap<String, Label>,
    /// The agent that was invoked last.
    at: Option<String>,
}

impl State {
    /// A task that was told nothing.
    pub fn new() -> Self {
        Self { label: Label::bottom(), results: ResultSources::default(), stores: BTreeMap::new(), at: None }
    }

    /// Another task, told nothing, among the same tools.
    pub fn of_another_task(&self) -> Self {
        Self { stores: self.stores.clone(), ..Self::new() }
    }
}

impl<'a> Replay<'a> {
    /// Loads the policy of a suite.
    ///
    /// # Errors
    /// What is wrong with the policy, with the place.
    pub fn new(suite: &'a Suite, rules: &PolicyBundle, mint: Mint) -> Result<Self> {
        let mut files = contracts::files(suite)?;
        files.0.extend(rules.0.clone());
        let mut world = World::new(load(&files)?)?;
        if mint == Mint::Oracle {
            files.0.insert("pins.datalog".to_owned(), mint::rules_of_pins(suite, &world)?);
            world = World::new(load(&files)?)?;
        }
        Ok(Self { suite, mint, files, world })
    }

    /// Replays traces in process.
    ///
    /// # Errors
    /// If the policy does not let a task start, or a chain would be refused.
    pub fn run(&self, traces: &[Trace<'_>]) -> Result<Vec<Vec<Vec<Answer>>>> {
        let mut sessions = BTreeMap::new();
        for (name, task) in &self.suite.tasks {
            sessions.insert(name.as_str(), self.start(name, task)?);
        }
        let one = |trace: &Trace<'_>| {
            let mut state = State::new();
            let leg = |leg: &Leg<'_>| {
                if leg.is_another {
                    state = state.of_another_task();
                }
                let session = sessions.get(leg.task);
                session.map(|session| session.run(&leg.calls, trace.attack, &mut state)).unwrap_or_default()
            };
            trace.legs.iter().map(leg).collect()
        };
        Ok(traces.iter().map(one).collect())
    }

    /// Starts a user's task and hands it on to every agent.
    fn start(&'a self, name: &'a str, task: &UserTask) -> Result<Session<'a>> {
        let world = &self.world;
        let mut agents = BTreeMap::new();
        let mut writes = Vec::new();
        let (issued, wide) = match self.mint {
            Mint::Oracle => {
                let wanted = mint::oracle(self.suite, task, &world.policy)?;
                let issued = world.issue(name, &task.prompt, Some(&wanted.rights))?;
                for (right, narrowing) in wanted.writes {
                    let agent = self.agent_of(&right);
                    writes.push((right, world.hand_on(&issued, &agent, &narrowing)?));
                }
                (issued, None)
            }
            Mint::Rules | Mint::Suite => {
                let issued = world.issue(name, &task.prompt, None)?;
                let all = contracts::rights(self.suite);
                let all =
                    all.iter().map(|right| Right::parse(right)).collect::<Result<BTreeSet<Right>, _>>()?;
                let wide = world.widened(&issued, all)?;
                (issued, Some(wide))
            }
        };
        for group in self.groups() {
            let is_write = |right: &Right| writes.iter().any(|(write, _)| write == right);
            let kept = self.kept(group, issued.capability.rights(), is_write);
            let capability = world.hand_on(&issued, &agent(group), &Narrowing::new().only(kept))?;
            agents.insert(group.to_owned(), capability);
        }
        let instruction = Instruction::new(&task.prompt);
        Ok(Session { name, replay: self, instruction, issued, wide, agents, writes })
    }

    /// The groups of tools.
    pub fn groups(&self) -> BTreeSet<&'a str> {
        self.suite.tools.values().map(|tool| tool.group.as_str()).collect()
    }

    /// The agent that has the tool of a right.
    pub fn agent_of(&self, right: &Right) -> String {
        let group = self.groups().into_iter().find(|group| resource(group) == right.resource.as_str());
        agent(group.unwrap_or_else(|| right.resource.name()))
    }

    /// What the agent of a group holds beside what it is handed for each write.
    pub fn kept(
        &self,
        group: &str,
        rights: &BTreeSet<Right>,
        is_write: impl Fn(&Right) -> bool,
    ) -> BTreeSet<Right> {
        let own = rights.iter().filter(|right| right.resource.as_str() == resource(group));
        own.filter(|right| !is_write(right)).cloned().collect()
    }
}

/// Whether a refusal for these causes is one that a human could lift by granting the right.
pub fn lacks_right(mint: Mint, codes: &BTreeSet<ReasonCode>) -> bool {
    mint != Mint::Oracle && *codes == [ReasonCode::RightMissing].into()
}

/// What is said of a call that waits for its right.
pub const RIGHT_IS_MISSING: &str = "the right is missing";

/// What is said of a held call, by the arguments nothing vouches for.
pub fn held_for(unsourced: &[String]) -> String {
    if unsourced.is_empty() { "a rule asks for approval".to_owned() } else { unsourced.join(", ") }
}

impl Session<'_> {
    /// Replays calls one after another, and tells what each came to.
    pub fn run(&self, calls: &[Call], attack: Option<&Attack>, state: &mut State) -> Vec<Answer> {
        calls.iter().map(|call| self.step(call, attack, state)).collect()
    }

    /// One call: the agent it takes is invoked, the call is decided, and what it returns is told to the task. A human
    /// who is asked says yes.
    fn step(&self, call: &Call, attack: Option<&Attack>, state: &mut State) -> Answer {
        let suite = self.replay.suite;
        let Ok(right) = mint::right(suite, &call.tool) else {
            return Answer::Denied(format!("no right is called `{}`", call.tool));
        };
        let Some(tool) = suite.tools.get(&call.tool) else {
            return Answer::Denied(format!("there is no tool `{}`", call.tool));
        };
        let mut answer = Answer::Allowed;
        if state.at.as_deref() != Some(tool.group.as_str()) {
            let Some(handover) = self.agents.get(&tool.group) else {
                return Answer::Denied(format!("no agent has the tools of `{}`", tool.group));
            };
            let known =
                Known { label: &state.label, instruction: &self.instruction, results: &state.results };
            let input = Value::from(INPUT);
            let verdict = self.replay.world.invoke(&self.issued.capability, handover, &input, &known);
            answer = answer_to(&verdict);
            if matches!(answer, Answer::Denied(_)) {
                return answer;
            }
            state.at = Some(tool.group.clone());
        }
        let (called, verdict) = self.decide(call, &right, state);
        answer = answer.max(called);
        if matches!(answer, Answer::Denied(_)) {
            return answer;
        }
        let result = suite.seen(&call.result, attack);
        self.tell(call, &right, &verdict, &result, state);
        answer
    }

    /// The best answer that any capability at hand gets, and the verdict under which the call is then made.
    fn decide(&self, call: &Call, right: &Right, state: &State) -> (Answer, Verdict) {
        let known = Known { label: &state.label, instruction: &self.instruction, results: &state.results };
        let group = self.replay.suite.tools.get(&call.tool).map_or("", |tool| tool.group.as_str());
        let writes = self.writes.iter().filter(|(write, _)| write == right).map(|(_, capability)| capability);
        let others = self.agents.get(group).filter(|_| !self.writes.iter().any(|(write, _)| write == right));
        let judged = writes.chain(others).map(|capability| {
            let verdict = self.replay.world.call(capability, right, &call.arguments, &known);
            let codes = verdict.reasons().iter().map(Reason::code).collect();
            match verdict.decision() {
                Decision::Deny if lacks_right(self.replay.mint, &codes) => {
                    self.with_right(call, right, &known).unwrap_or_else(|| (answer_to(&verdict), verdict))
                }
                _ => (answer_to(&verdict), verdict),
            }
        });
        let best = judged.min_by(|(a, _), (b, _)| a.cmp(b));
        best.unwrap_or_else(|| {
            (Answer::Denied("no capability".to_owned()), Verdict::deny(ReasonCode::TokenMissing, None))
        })
    }

    /// Only a right is missing. If it may be asked for, a human grants it; whatever else stands against the call still
    /// does.
    fn with_right(&self, call: &Call, right: &Right, known: &Known<'_>) -> Option<(Answer, Verdict)> {
        let world = &self.replay.world;
        if !world.may_ask_for(self.name, right).unwrap_or(false) {
            return None;
        }
        let rights = Narrowing::new().only([right.clone()]);
        let capability = world.hand_on(self.wide.as_ref()?, &self.replay.agent_of(right), &rights).ok()?;
        let verdict = world.call(&capability, right, &call.arguments, known);
        let answer = match verdict.decision() {
            Decision::Allow => Answer::Held(RIGHT_IS_MISSING.to_owned()),
            Decision::Deny => Answer::Denied(reasons(&verdict)),
        };
        Some((answer, verdict))
    }

    /// What a result does to the task: its label joins, and what it vouches for is remembered.
    fn tell(&self, call: &Call, right: &Right, verdict: &Verdict, result: &Value, state: &mut State) {
        let Some(tool) = self.replay.suite.tools.get(&call.tool) else { return };
        let policy = &self.replay.world.policy;
        let contract = policy.contract(&right.resource).and_then(|contract| contract.action(&right.action));
        let Some(contract) = contract else { return };
        if mint::writes(tool) {
            let store = state.stores.entry(tool.group.clone()).or_insert_with(Label::bottom);
            *store = store.join(&state.label);
        }
        let kept = state.stores.get(&tool.group).cloned().unwrap_or_else(Label::bottom);
        let flow = verdict.flow();
        if flow.is_as_declared {
            let arguments = Arguments::new((*call.arguments).clone());
            let result = &as_list(result);
            // What an untrusted task has written is no source, whichever tool returns it.
            let own = kept.integrity;
            for (entity, value) in contract.flow.sources(&arguments, result, own, Some(&self.instruction)) {
                state.results.insert(&self.issued.domain, entity, value);
            }
        }
        state.label = state.label.join(&flow.result).join(&kept);
    }
}

fn answer_to(verdict: &Verdict) -> Answer {
    match verdict.decision() {
        Decision::Allow if verdict.approval().is_some() => {
            let unsourced: Vec<String> =
                verdict.flow().unsourced().map(|one| format!("{} ({})", one.path, one.entity)).collect();
            Answer::Held(held_for(&unsourced))
        }
        Decision::Allow => Answer::Allowed,
        Decision::Deny => Answer::Denied(reasons(verdict)),
    }
}

/// # Errors
/// What the loader found.
fn load(files: &PolicyBundle) -> Result<PolicySet> {
    match PolicySet::load(files) {
        Ok((policy, _)) => Ok(policy),
        Err(findings) => anyhow::bail!("the policy does not load:\n{findings}"),
    }
}

/// The rules of a folder, or those that come with this program, with the file of one way of minting.
///
/// # Errors
/// If a file cannot be read.
pub fn rules(folder: Option<&Path>, mint: Mint) -> Result<PolicyBundle> {
    let mut files = BTreeMap::new();
    let Some(folder) = folder else {
        let own = [
            ("base.datalog", include_str!("policy/base.datalog")),
            ("flow.datalog", include_str!("policy/flow.datalog")),
        ];
        let minting = match mint {
            Mint::Oracle => include_str!("policy/mint/oracle.datalog"),
            Mint::Rules => include_str!("policy/mint/rules.datalog"),
            Mint::Suite => include_str!("policy/mint/suite.datalog"),
        };
        files.extend(own.map(|(name, text)| (name.to_owned(), text.to_owned())));
        files.insert("mint.datalog".to_owned(), minting.to_owned());
        return Ok(PolicyBundle(files));
    };
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "datalog") {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            files.insert(name, read(&path)?);
        }
    }
    let minting = folder.join("mint").join(format!("{}.datalog", mint.as_str()));
    files.insert("mint.datalog".to_owned(), read(&minting)?);
    Ok(PolicyBundle(files))
}
