//! One task replayed call by call: who decides, what the task has been told by then, and what stands in the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use writ_common::{
    capability::{Capability, Narrowing, Right},
    ids::EntityType,
    json::Value,
    label::{Integrity, Label},
    policy::{PolicyBundle, PolicySet},
    reason::{Reason, ReasonCode},
    source::{Instruction, ResultSources},
    verdict::{Decision, Verdict},
};

use super::{
    contracts::{agent, as_list, resource},
    entities::words,
    mint::{self, Mint},
    trace::{Attack, Call, Effect, Suite, UserTask},
    world::{Issued, Known, World, reasons},
};

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
    files: &'a PolicyBundle,
    mint: Mint,
    world: Option<World>,
}

/// What a user's task is made with.
pub struct Session<'a> {
    world: Holder<'a>,
    mint: Mint,
    suite: &'a Suite,
    instruction: Instruction,
    issued: Issued,
    /// Everything the tools can do, to see what stands against a call beside a missing right.
    wide: Option<Issued>,
    /// What each agent holds for reading, and where nothing is known of the task for everything.
    agents: BTreeMap<String, Capability>,
    /// What is held for each write.
    writes: Vec<(Right, Capability)>,
}

enum Holder<'a> {
    Shared(&'a World),
    Own(Box<World>),
}

impl Holder<'_> {
    fn get(&self) -> &World {
        match self {
            Self::Shared(world) => world,
            Self::Own(world) => world,
        }
    }
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
    /// Loads the policy of a suite. Where words of the prompt are facts, there is one policy per task.
    ///
    /// # Errors
    /// What is wrong with the policy, with the place.
    pub fn new(suite: &'a Suite, files: &'a PolicyBundle, mint: Mint) -> Result<Self> {
        let world = match mint {
            Mint::Rules => None,
            Mint::Oracle | Mint::Suite => Some(World::new(load(files)?)?),
        };
        Ok(Self { suite, files, mint, world })
    }

    /// Starts a user's task and hands it on to every agent.
    ///
    /// # Errors
    /// If the policy does not let it start, or a chain would be refused.
    pub fn start(&'a self, name: &str, task: &UserTask) -> Result<Session<'a>> {
        let holder = match &self.world {
            Some(world) => Holder::Shared(world),
            None => {
                let mut files = self.files.clone();
                files.0.insert("words.datalog".to_owned(), said(&task.prompt));
                Holder::Own(Box::new(World::new(load(&files)?)?))
            }
        };
        let world = holder.get();
        let groups: BTreeSet<&str> = self.suite.tools.values().map(|tool| tool.group.as_str()).collect();
        let mut agents = BTreeMap::new();
        let mut writes = Vec::new();
        let (issued, wide) = match self.mint {
            Mint::Oracle => {
                let wanted = mint::oracle(self.suite, task, &world.policy)?;
                // Too many writes for one block's bounds are still exact where each is handed on.
                let bounded = world.issue(name, &task.prompt, Some(&wanted.rights), wanted.bounds);
                let issued = match bounded {
                    Ok(issued) => issued,
                    Err(_) => world.issue(name, &task.prompt, Some(&wanted.rights), Vec::new())?,
                };
                for (right, narrowing) in wanted.writes {
                    let agent = agent_of(right.resource.name(), &groups);
                    writes.push((right, world.hand_on(&issued, &agent, &narrowing)?));
                }
                (issued, None)
            }
            Mint::Rules | Mint::Suite => {
                let issued = world.issue(name, &task.prompt, None, Vec::new())?;
                let all = super::contracts::rights(self.suite);
                let all =
                    all.iter().map(|right| Right::parse(right)).collect::<Result<BTreeSet<Right>, _>>()?;
                let wide = world.widened(&issued, all)?;
                (issued, Some(wide))
            }
        };
        for group in &groups {
            let own =
                issued.capability.rights().iter().filter(|right| right.resource.as_str() == resource(group));
            let kept: BTreeSet<Right> = match self.mint {
                // What is written is handed on call by call.
                Mint::Oracle => {
                    own.filter(|right| !writes.iter().any(|(write, _)| write == *right)).cloned().collect()
                }
                Mint::Rules | Mint::Suite => own.cloned().collect(),
            };
            let capability = world.hand_on(&issued, &agent(group), &Narrowing::new().only(kept))?;
            agents.insert((*group).to_owned(), capability);
        }
        let instruction = Instruction::new(&task.prompt);
        Ok(Session {
            mint: self.mint,
            suite: self.suite,
            instruction,
            issued,
            wide,
            agents,
            writes,
            world: holder,
        })
    }
}

impl Session<'_> {
    /// Replays calls one after another, and tells what each came to.
    pub fn run(&self, calls: &[Call], attack: Option<&Attack>, state: &mut State) -> Vec<Answer> {
        calls.iter().map(|call| self.step(call, attack, state)).collect()
    }

    /// One call: the agent it takes is invoked, the call is decided, and what it returns is told to the task. A human
    /// who is asked says yes.
    fn step(&self, call: &Call, attack: Option<&Attack>, state: &mut State) -> Answer {
        let Ok(right) = mint::right(self.suite, &call.tool) else {
            return Answer::Denied(format!("no right is called `{}`", call.tool));
        };
        let Some(tool) = self.suite.tools.get(&call.tool) else {
            return Answer::Denied(format!("there is no tool `{}`", call.tool));
        };
        let mut answer = Answer::Allowed;
        if state.at.as_deref() != Some(tool.group.as_str()) {
            let Some(handover) = self.agents.get(&tool.group) else {
                return Answer::Denied(format!("no agent has the tools of `{}`", tool.group));
            };
            let known =
                Known { label: &state.label, instruction: &self.instruction, results: &state.results };
            let world = self.world.get();
            let verdict = world.invoke(&self.issued.capability, handover, &Value::from("go on"), &known);
            answer = self.answer(&verdict, || None);
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
        let result = self.suite.seen(&call.result, attack);
        self.tell(call, &right, &verdict, &result, state);
        answer
    }

    /// The best answer that any capability at hand gets.
    fn decide(&self, call: &Call, right: &Right, state: &State) -> (Answer, Verdict) {
        let world = self.world.get();
        let known = Known { label: &state.label, instruction: &self.instruction, results: &state.results };
        let group = self.suite.tools.get(&call.tool).map_or("", |tool| tool.group.as_str());
        let writes = self.writes.iter().filter(|(write, _)| write == right).map(|(_, capability)| capability);
        let others = self.agents.get(group).filter(|_| !self.writes.iter().any(|(write, _)| write == right));
        let judged = writes.chain(others).map(|capability| {
            let verdict = world.call(capability, right, &call.arguments, &known);
            let answer = self.answer(&verdict, || {
                // Only a right is missing: a human could grant it. Whatever else stands against the call still would.
                let wide = self.wide.as_ref()?;
                let rights = Narrowing::new().only([right.clone()]);
                let capability = world.hand_on(wide, capability.chain().caller().as_str(), &rights).ok()?;
                Some(world.call(&capability, right, &call.arguments, &known))
            });
            (answer, verdict)
        });
        let best = judged.min_by(|(a, _), (b, _)| a.cmp(b));
        best.unwrap_or_else(|| {
            (Answer::Denied("no capability".to_owned()), Verdict::deny(ReasonCode::TokenMissing, None))
        })
    }

    fn answer(&self, verdict: &Verdict, granted: impl FnOnce() -> Option<Verdict>) -> Answer {
        match verdict.decision() {
            Decision::Allow if verdict.approval().is_some() => {
                let unsourced: Vec<String> =
                    verdict.flow().unsourced().map(|one| format!("{} ({})", one.path, one.entity)).collect();
                let why = if unsourced.is_empty() {
                    "a rule asks for approval".to_owned()
                } else {
                    unsourced.join(", ")
                };
                Answer::Held(why)
            }
            Decision::Allow => Answer::Allowed,
            Decision::Deny => {
                let codes: BTreeSet<ReasonCode> = verdict.reasons().iter().map(Reason::code).collect();
                let lacks_right = self.mint != Mint::Oracle && codes == [ReasonCode::RightMissing].into();
                let with_right = if lacks_right { granted() } else { None };
                match with_right {
                    Some(verdict) if verdict.decision() == Decision::Allow => {
                        Answer::Held("the right is missing".to_owned())
                    }
                    Some(verdict) => Answer::Denied(reasons(&verdict)),
                    None => Answer::Denied(reasons(verdict)),
                }
            }
        }
    }

    /// What a result does to the task: its label joins, and what it vouches for is remembered.
    fn tell(&self, call: &Call, right: &Right, verdict: &Verdict, result: &Value, state: &mut State) {
        let Some(tool) = self.suite.tools.get(&call.tool) else { return };
        let policy = &self.world.get().policy;
        let contract = policy.contract(&right.resource).and_then(|contract| contract.action(&right.action));
        let Some(contract) = contract else { return };
        // The label of a held call's verdict is as good as that of an allowed one; of a refused one for lack of a right
        // the contract's word is what is left.
        let declared = match verdict.decision() {
            Decision::Allow => verdict.flow().result.clone(),
            Decision::Deny => contract.flow.declared(&[]),
        };
        if tool.effect != Effect::Read && tool.effect != Effect::ReadEgress {
            let store = state.stores.entry(tool.group.clone()).or_insert_with(Label::bottom);
            *store = store.join(&state.label);
        }
        let kept = state.stores.get(&tool.group).cloned().unwrap_or_else(Label::bottom);
        let label = declared.join(&kept);
        let domain = &self.issued.domain;
        let result = &as_list(result);
        // What an untrusted task has written is no source, whichever tool returns it.
        if kept.integrity == Integrity::Trusted {
            for (entity, value) in contract.flow.vouched(result) {
                state.results.insert(domain, entity, value);
            }
        }
        let named: Vec<(&EntityType, &Value)> =
            contract.flow.named(&call.arguments, result, &self.instruction);
        for (entity, value) in named {
            state.results.insert(domain, entity, value);
        }
        state.label = state.label.join(&label);
    }
}

fn agent_of(name: &str, groups: &BTreeSet<&str>) -> String {
    let group = groups.iter().find(|group| resource(group) == format!("tool.{name}"));
    agent(group.copied().unwrap_or(name))
}

/// The words of a prompt as facts.
fn said(prompt: &str) -> String {
    let lines: BTreeSet<String> = prompt
        .split(|c: char| !c.is_alphanumeric())
        .flat_map(|word| [word.to_lowercase(), words(word).join("")])
        .collect();
    // A prompt without words says nothing, and the predicate is there all the same.
    lines.into_iter().filter(|word| word.is_ascii()).map(|word| format!("word(\"{word}\");\n")).collect()
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
