//! A second authorizer: what the documentation promises, over a world of plain Rust values.
//!
//! It knows no Datalog. A [`World`] is tables and rules of a few families; each rule can say itself in Datalog (for
//! `decide()`) and whether it fires (for this file). Nothing here is shared with `decide.rs` or an engine, so that
//! the two only agree where both are right. `support/scenarios.rs` makes worlds and asks both.

use std::collections::{BTreeMap, BTreeSet};

use writ_common::reason::ReasonCode;

use super::reference_flow::{Derived, Sourced, Tables, Terms, Told, column_read};

pub type Name = &'static str;
/// Resource and action.
pub type Right = (Name, Name);
pub type Rights = BTreeSet<Right>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Text(Name),
}

/// An argument as a caller writes it.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    Plain(Value),
    /// A number with so many decimals: 9870 with 2 is 98.70.
    Decimal(i64, u32),
    List(Vec<Name>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Amount,
    Boolean,
    Integer,
    Text,
    Texts,
}

/// What a tool can do: right, effect, arguments, and which of them it needs.
pub type Contract = (Right, Name, &'static [(Name, Kind)], &'static [Name]);

pub const CONTRACTS: [Contract; 3] = [
    (
        ("tool.crm", "read"),
        "read",
        &[("table", Kind::Text), ("limit", Kind::Integer), ("dry", Kind::Boolean), ("tags", Kind::Texts)],
        &[],
    ),
    (
        ("tool.crm", "write"),
        "shared",
        &[("table", Kind::Text), ("limit", Kind::Integer), ("amount", Kind::Amount)],
        &["table"],
    ),
    (("tool.mail", "draft"), "internal", &[("table", Kind::Text), ("limit", Kind::Integer)], &[]),
];

/// What the tools' own gate of these tests refuses.
pub const GATED: Name = "secrets";
/// What the policies of these tests call `blocked`.
pub const BLOCKED: [Value; 2] = [Value::Text("orders"), Value::Integer(7)];

/// One condition of a rule. Those over lists hold if they do for one element.
#[derive(Clone, Debug)]
pub enum Condition {
    Action(Name),
    After(u64),
    ArgAbove(Name, i64),
    ArgIs(Name, Value),
    ArgStarts(Name, Name),
    ArgTimes(Name, i64, i64),
    Blocked,
    Caller(Name),
    CallerNot(Name),
    Cleared(Name),
    DepthAbove(i64),
    Effect(Name),
    FirstAgent(Name),
    Guarded(Name),
    HoldsRight,
    HopTo(Name),
    HourFrom(i64),
    Kind(Name),
    MayRun,
    Operator(Name),
    Quotient(Name, i64),
    Reaches(Name),
    Region(Name),
    Resource(Name),
    Role(Name),
    SomeArgAbove(i64),
    Sourced(Name),
    Tag(Name),
    TagAmong(Vec<Name>),
    TaskKind(Name),
    Team(Name),
    Unsourced(Name),
    Untrusted,
    User(Name),
    WeekdayFrom(i64),
}

/// One statement of a policy.
#[derive(Clone, Debug)]
pub enum Statement {
    Decide {
        allow: bool,
        alternatives: Vec<Vec<Condition>>,
    },
    /// What the flow plane reads, under conditions.
    Derive(Derived, Vec<Condition>),
    /// The least counts: hops, seconds of a task, seconds of a capability.
    Least(Name, i64, Vec<Condition>),
    /// `delegates` of the inventory, under conditions.
    MayDelegate(Vec<Condition>),
    /// One pair of agents, under conditions.
    MayDelegateOne(Name, Name, Vec<Condition>),
    /// `role_runs` of the inventory, under conditions.
    MayRun(Vec<Condition>),
    /// `role_right` of the inventory, under conditions.
    Grant(Vec<Condition>),
    /// One right, under conditions.
    GrantOne(Right, Vec<Condition>),
}

pub struct RoleTask {
    pub role: Name,
    pub kind: Name,
    pub agents: BTreeSet<Name>,
    pub rights: Rights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revoked {
    Agent(Name),
    Capability(Name),
    Holder(Name),
    Hop(Name, Name, Name),
    Task(Name),
    User(Name),
}

#[derive(Default)]
pub struct World {
    /// Agent, team, and whom it may delegate to.
    pub agents: BTreeMap<Name, (Name, BTreeSet<Name>)>,
    pub roles: Vec<RoleTask>,
    pub statements: Vec<Statement>,
    pub flow: Tables,
    /// Agents whose keys are enrolled.
    pub enrolled: BTreeSet<Name>,
    pub quarantined: BTreeSet<Name>,
    pub revoked: BTreeSet<Revoked>,
    pub is_halted: bool,
    pub is_unreadable: bool,
}

/// A condition of a capability.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    ArgBelow(Name, i64),
    ArgIs(Name, Value),
    TagsWithin(Vec<Name>),
    Trusted,
}

/// One appended block.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Whom it was handed to; `None` if it was only narrowed.
    pub to: Option<Name>,
    pub keeps: Option<Rights>,
    pub until: Option<u64>,
    pub bounds: Vec<Bound>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Capability {
    pub id: Name,
    pub user: Name,
    pub task: Name,
    pub agent: Name,
    pub rights: Rights,
    pub expires: u64,
    /// Before anything was revoked.
    pub is_old: bool,
    pub links: Vec<Link>,
}

#[derive(Clone, Debug)]
pub enum Asked {
    Everything,
    NoList,
    Nonsense,
    Rights(Rights),
}

#[derive(Clone, Debug)]
pub enum Ask {
    Call { by: Name, task: Name, right: Right, arguments: Vec<(Name, Argument)>, handover: Option<Handover> },
    Task { renewal: bool, user: Name, roles: Vec<Name>, agent: Name, kind: Option<Name>, asked: Asked },
    Admin { operator: Name, right: Right },
}

/// The longer chain of a call on an agent.
#[derive(Clone, Debug)]
pub struct Handover {
    pub chain: Capability,
    /// Made from the caller's own capability.
    pub is_own: bool,
    /// The arguments name it.
    pub is_named: bool,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub ask: Ask,
    pub tenant: Name,
    pub capability: Option<Capability>,
    /// `None` is top.
    pub tags: Option<BTreeSet<Name>>,
    pub is_untrusted: bool,
    pub told: Told,
    pub now: u64,
}

/// The most a capability may hold: rights, depth, seconds of the task, seconds of itself.
pub type Bounds = (Rights, u8, u64, u64);
pub type Answer = Result<Allowed, BTreeSet<ReasonCode>>;

/// What is allowed, and on which terms.
#[derive(Debug, PartialEq, Eq)]
pub enum Allowed {
    Admin,
    Call(Terms),
    Task(Bounds),
}

impl Capability {
    fn hops(&self) -> Vec<(Name, Name)> {
        let holders = self.holders();
        holders.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }

    pub fn holders(&self) -> Vec<Name> {
        std::iter::once(self.agent).chain(self.links.iter().filter_map(|link| link.to)).collect()
    }

    pub fn holder(&self) -> Name {
        self.holders().pop().unwrap()
    }
}

impl Case {
    pub fn handover(&self) -> Option<&Handover> {
        if let Ask::Call { handover, .. } = &self.ask { handover.as_ref() } else { None }
    }
}

impl Statement {
    /// Everything it asks about.
    pub fn conditions(&self) -> Vec<&Condition> {
        match self {
            Self::Decide { alternatives, .. } => alternatives.iter().flatten().collect(),
            Self::Derive(_, conditions)
            | Self::Least(_, _, conditions)
            | Self::MayDelegate(conditions)
            | Self::MayDelegateOne(_, _, conditions)
            | Self::MayRun(conditions)
            | Self::Grant(conditions)
            | Self::GrantOne(_, conditions) => conditions.iter().collect(),
        }
    }
}

/// What conditions are about.
#[derive(Default)]
pub struct Facts<'a> {
    pub kind: Name,
    pub right: Right,
    pub caller: Option<Name>,
    pub user: Option<Name>,
    pub roles: &'a [Name],
    pub task_kind: Option<Name>,
    pub operator: Option<Name>,
    pub effect: Option<Name>,
    pub capability: Option<&'a Capability>,
    pub arguments: Vec<(String, Value)>,
    /// The types of guarded arguments.
    pub guarded: Vec<Name>,
    pub sourced: Vec<Sourced>,
    pub tags: Vec<Name>,
    pub is_untrusted: bool,
    pub now: u64,
    pub may_run: BTreeSet<(Name, Name)>,
}

/// What an expression came to; `Err` if it has no value.
pub type Held = Result<bool, ()>;

impl World {
    pub fn decide(&self, case: &Case) -> Answer {
        let mut facts = Facts {
            tags: match &case.tags {
                None => vec!["top"],
                Some(tags) if tags.is_empty() => vec!["public"],
                Some(tags) => tags.iter().copied().collect(),
            },
            is_untrusted: case.is_untrusted,
            now: case.now,
            ..Facts::default()
        };
        match &case.ask {
            Ask::Admin { operator, right } => {
                facts.kind = "admin";
                (facts.right, facts.operator) = (*right, Some(*operator));
                self.readable().map_err(one)?;
                self.rules(&facts, BTreeSet::new())?;
                Ok(Allowed::Admin)
            }
            Ask::Task { renewal, user, roles, agent, kind, asked } => {
                let kind = kind.ok_or_else(|| one(ReasonCode::GrantNotAllowed))?;
                self.task(&mut facts, *renewal, user, roles, agent, kind, asked)
            }
            Ask::Call { .. } => self.call(&mut facts, case),
        }
    }

    fn readable(&self) -> Result<(), ReasonCode> {
        if self.is_unreadable { Err(ReasonCode::StateStale) } else { Ok(()) }
    }

    #[allow(clippy::too_many_arguments, reason = "they are the fields of one request")]
    fn task<'a>(
        &'a self,
        facts: &mut Facts<'a>,
        renewal: bool,
        user: Name,
        roles: &'a [Name],
        agent: Name,
        kind: Name,
        asked: &Asked,
    ) -> Answer {
        self.readable().map_err(one)?;
        if self.is_halted {
            return Err(one(ReasonCode::HaltAll));
        }
        if !self.agents.contains_key(agent) {
            return Err(one(ReasonCode::AgentUnknown));
        }
        if self.quarantined.contains(agent) {
            return Err(one(ReasonCode::AgentQuarantined));
        }
        facts.kind = if renewal { "renew" } else { "issue" };
        facts.right = (if kind == "answer" { "task.answer" } else { "task.bills" }, facts.kind);
        (facts.user, facts.roles, facts.caller, facts.task_kind) =
            (Some(user), roles, Some(agent), Some(kind));
        self.derive_may_run(facts).map_err(one)?;
        let mut codes = BTreeSet::new();
        if !facts.may_run.contains(&(agent, kind)) {
            codes.insert(ReasonCode::GrantNotAllowed);
        }
        let codes = match self.rules(facts, codes) {
            Err(codes) if codes.contains(&ReasonCode::EngineError) => return Err(codes),
            Err(codes) => codes,
            Ok(()) => BTreeSet::new(),
        };
        let bounds = self.bounds(facts);
        let beyond = match asked {
            Asked::Everything => false,
            Asked::NoList => return Err(one(ReasonCode::ArgInvalid)),
            Asked::Nonsense => return Err(one(ReasonCode::IdSyntax)),
            Asked::Rights(rights) => !rights.is_subset(&bounds.0),
        };
        let widening = beyond.then_some(ReasonCode::DelegationWidening);
        let codes: BTreeSet<ReasonCode> = codes.into_iter().chain(widening).collect();
        if codes.is_empty() { Ok(Allowed::Task(bounds)) } else { Err(codes) }
    }

    fn bounds(&self, facts: &Facts<'_>) -> Bounds {
        let least = |wanted: Name| {
            let holds = |conditions: &Vec<Condition>| self.holds(conditions, facts) == Ok(true);
            let derived = self.statements.iter().filter_map(|statement| match statement {
                Statement::Least(name, value, conditions) if *name == wanted && holds(conditions) => {
                    u64::try_from(*value).ok()
                }
                _ => None,
            });
            derived.min()
        };
        let mut rights = Rights::new();
        for statement in &self.statements {
            match statement {
                Statement::Grant(conditions) if self.holds(conditions, facts) == Ok(true) => {
                    let tasks = self.roles.iter().filter(|task| {
                        facts.roles.contains(&task.role) && facts.task_kind == Some(task.kind)
                    });
                    rights.extend(tasks.flat_map(|task| &task.rights));
                }
                Statement::GrantOne(right, conditions) if self.holds(conditions, facts) == Ok(true) => {
                    rights.insert(*right);
                }
                _ => {}
            }
        }
        let depth = u8::try_from(least("depth_limit").unwrap_or(0)).unwrap_or(u8::MAX);
        (rights, depth, least("task_seconds").unwrap_or(3_600), least("capability_seconds").unwrap_or(300))
    }

    fn call<'a>(&'a self, facts: &mut Facts<'a>, case: &'a Case) -> Answer {
        let Ask::Call { by, task, right, arguments, handover } = &case.ask else { unreachable!() };
        let capability = case.capability.as_ref().ok_or_else(|| one(ReasonCode::TokenMissing))?;
        self.may_use(capability, case, by, task, *right).map_err(one)?;
        if handover.is_some() && !right.0.starts_with("agent.") {
            return Err(one(ReasonCode::ArgUnknown));
        }
        let called = match right.0.strip_prefix("agent.") {
            Some(agent) => self.call_on_agent(capability, agent, right.1, arguments, handover.as_ref()),
            None => call_on_tool(*right, arguments),
        };
        let (effect, values) = called.map_err(one)?;
        facts.kind = "call";
        (facts.right, facts.caller, facts.user) = (*right, Some(*by), Some(capability.user));
        (facts.effect, facts.arguments, facts.capability) = (Some(effect), values, Some(capability));

        self.look_at_arguments(facts, &case.told);

        let mut codes = BTreeSet::new();
        for link in &capability.links {
            let kept = link.keeps.as_ref().is_none_or(|keeps| keeps.contains(right));
            for bound in &link.bounds {
                if !bound.holds(facts).map_err(|()| one(ReasonCode::EngineError))? {
                    codes.insert(ReasonCode::TokenCheckFailed);
                }
            }
            assert!(kept, "found before");
        }
        let handed = handover.iter().map(|handover| *handover.chain.hops().last().unwrap());
        let delegations = self.delegations(facts).map_err(one)?;
        if capability.hops().into_iter().chain(handed).any(|hop| !delegations.contains(&hop)) {
            codes.insert(ReasonCode::DelegationNotAllowed);
        }
        let ruled = self.rules(facts, codes);
        if let Err(codes) = &ruled
            && codes.contains(&ReasonCode::EngineError)
        {
            return Err(codes.clone());
        }
        match (ruled, self.flows(facts, case, capability, column_read(*right, arguments))) {
            (Ok(()), flows) => flows.map(Allowed::Call),
            (Err(codes), Ok(_)) => Err(codes),
            (Err(codes), Err(against)) => Err(&codes | &against),
        }
    }

    /// What comes before contract and rules.
    fn may_use(
        &self,
        capability: &Capability,
        case: &Case,
        by: Name,
        task: Name,
        right: Right,
    ) -> Result<(), ReasonCode> {
        let ends = capability.links.iter().filter_map(|link| link.until).chain([capability.expires]).min();
        if case.tenant != "acme" {
            return Err(ReasonCode::TenantMismatch);
        }
        if task != capability.task {
            return Err(ReasonCode::TaskMismatch);
        }
        if by != capability.holder() {
            return Err(ReasonCode::AgentMismatch);
        }
        if Some(case.now) >= ends {
            return Err(ReasonCode::TokenExpired);
        }
        self.readable()?;
        self.in_force(capability)?;
        if !capability.rights.contains(&right) {
            return Err(ReasonCode::RightMissing);
        }
        if capability
            .links
            .iter()
            .any(|link| link.keeps.as_ref().is_some_and(|keeps| !keeps.contains(&right)))
        {
            return Err(ReasonCode::DelegationWidening);
        }
        Ok(())
    }

    /// Nobody halted, revoked or isolated it, and everybody in it is known.
    fn in_force(&self, capability: &Capability) -> Result<(), ReasonCode> {
        let is = |target: Revoked| self.revoked.contains(&target);
        if self.is_halted {
            return Err(ReasonCode::HaltAll);
        }
        if is(Revoked::Capability(capability.id)) {
            return Err(ReasonCode::Revoked);
        }
        if is(Revoked::Task(capability.task)) {
            return Err(ReasonCode::RevokedTask);
        }
        if is(Revoked::User(capability.user)) && capability.is_old {
            return Err(ReasonCode::RevokedUser);
        }
        for agent in capability.holders() {
            if self.quarantined.contains(agent) {
                return Err(ReasonCode::AgentQuarantined);
            }
            if is(Revoked::Agent(agent)) && capability.is_old {
                return Err(ReasonCode::RevokedAgent);
            }
            if is(Revoked::Holder(agent)) {
                return Err(ReasonCode::RevokedHolder);
            }
        }
        if capability.hops().into_iter().any(|(from, to)| is(Revoked::Hop(capability.id, from, to))) {
            return Err(ReasonCode::RevokedHop);
        }
        if capability.holders().iter().any(|agent| !self.agents.contains_key(agent)) {
            return Err(ReasonCode::AgentUnknown);
        }
        if capability.holders().iter().any(|agent| !self.enrolled.contains(agent)) {
            return Err(ReasonCode::AgentKeyUnknown);
        }
        Ok(())
    }

    fn call_on_agent(
        &self,
        capability: &Capability,
        agent: &str,
        action: Name,
        arguments: &[(Name, Argument)],
        handover: Option<&Handover>,
    ) -> Result<(Name, Vec<(String, Value)>), ReasonCode> {
        if action != "invoke" {
            return Err(ReasonCode::ToolUnknown);
        }
        let Some(handover) = handover else { return Err(ReasonCode::ArgMissing) };
        if handover.chain.user != capability.user {
            return Err(ReasonCode::UserMismatch);
        }
        if !handover.is_own || !handover.is_named {
            return Err(ReasonCode::DelegationSignature);
        }
        if handover.chain.holder() != agent {
            return Err(ReasonCode::AgentMismatch);
        }
        self.in_force(&handover.chain)?;
        let mut values = flattened("/input/", arguments, true);
        // A digest, which no rule here compares with anything.
        values.push(("/handover".to_owned(), Value::Text("?")));
        Ok(("internal", values))
    }

    fn derive_may_run(&self, facts: &mut Facts<'_>) -> Result<(), ReasonCode> {
        for statement in &self.statements {
            let Statement::MayRun(conditions) = statement else { continue };
            let runs = self.roles.iter().filter(|task| facts.roles.contains(&task.role));
            let runs: Vec<_> =
                runs.flat_map(|task| task.agents.iter().map(|agent| (*agent, task.kind))).collect();
            if !runs.is_empty() && self.holds(conditions, facts).map_err(|()| ReasonCode::EngineError)? {
                facts.may_run.extend(runs);
            }
        }
        Ok(())
    }

    fn delegations(&self, facts: &Facts<'_>) -> Result<BTreeSet<(Name, Name)>, ReasonCode> {
        let mut pairs = BTreeSet::new();
        for statement in &self.statements {
            let (found, conditions): (Vec<(Name, Name)>, _) = match statement {
                Statement::MayDelegate(conditions) => (self.delegates().collect(), conditions),
                Statement::MayDelegateOne(from, to, conditions) => (vec![(*from, *to)], conditions),
                _ => continue,
            };
            if !found.is_empty() && self.holds(conditions, facts).map_err(|()| ReasonCode::EngineError)? {
                pairs.extend(found);
            }
        }
        Ok(pairs)
    }

    fn delegates(&self) -> impl Iterator<Item = (Name, Name)> {
        self.agents.iter().flat_map(|(from, (_, to))| to.iter().map(|to| (*from, *to)))
    }

    fn reaches(&self, from: Name, to: Name) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(agent) = open.pop() {
            let next = self.delegates().filter(|(from, _)| *from == agent).map(|(_, to)| to);
            open.extend(next.filter(|agent| seen.insert(*agent)));
        }
        seen.contains(to)
    }

    /// Adds what the rules have to say to what was found before them.
    fn rules(&self, facts: &Facts<'_>, mut codes: BTreeSet<ReasonCode>) -> Result<(), BTreeSet<ReasonCode>> {
        let (mut allowed, mut denied, mut has_no_value) = (false, false, false);
        for statement in &self.statements {
            let held: Vec<Held> = match statement {
                Statement::Decide { alternatives, allow } => {
                    let unknown = alternatives.iter().filter(|_| !allow).filter_map(|body| at_top(body));
                    let bodies = alternatives.iter().cloned().chain(unknown);
                    bodies.map(|body| self.holds(&body, facts)).collect()
                }
                Statement::Grant(conditions) => {
                    let any = self.roles.iter().any(|task| {
                        facts.roles.contains(&task.role)
                            && facts.task_kind == Some(task.kind)
                            && !task.rights.is_empty()
                    });
                    if any { vec![self.holds(conditions, facts)] } else { Vec::new() }
                }
                Statement::MayRun(conditions) => {
                    let any = self
                        .roles
                        .iter()
                        .any(|task| facts.roles.contains(&task.role) && !task.agents.is_empty());
                    if any { vec![self.holds(conditions, facts)] } else { Vec::new() }
                }
                Statement::MayDelegate(conditions) if self.delegates().next().is_some() => {
                    vec![self.holds(conditions, facts)]
                }
                Statement::MayDelegate(_) => Vec::new(),
                Statement::MayDelegateOne(_, _, conditions)
                | Statement::Derive(_, conditions)
                | Statement::GrantOne(_, conditions)
                | Statement::Least(_, _, conditions) => vec![self.holds(conditions, facts)],
            };
            has_no_value |= held.contains(&Err(()));
            match statement {
                Statement::Decide { allow: true, .. } => allowed |= held.contains(&Ok(true)),
                Statement::Decide { allow: false, .. } => denied |= held.contains(&Ok(true)),
                _ => {}
            }
        }
        if has_no_value {
            return Err(one(ReasonCode::EngineError));
        }
        if denied {
            codes.insert(ReasonCode::PolicyDenied);
        }
        if codes.is_empty() && !allowed {
            codes.insert(ReasonCode::PolicyNoMatch);
        }
        if codes.is_empty() { Ok(()) } else { Err(codes) }
    }

    /// Whether all conditions hold together. One without anything to hold for makes the others void; conditions are
    /// tried in their order, and one that is reached and has no value leaves the whole without one.
    pub fn holds(&self, conditions: &[Condition], facts: &Facts<'_>) -> Held {
        let results: Vec<Vec<Held>> =
            conditions.iter().map(|condition| self.results(condition, facts)).collect();
        if results.iter().any(Vec::is_empty) {
            return Ok(false);
        }
        for result in results {
            if result.contains(&Err(())) {
                return Err(());
            }
            if !result.contains(&Ok(true)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One result for everything the condition can be about.
    fn results(&self, condition: &Condition, facts: &Facts<'_>) -> Vec<Held> {
        let given = |is: bool| if is { vec![Ok(true)] } else { Vec::new() };
        let at = |path: &str, test: &dyn Fn(Value) -> Held| -> Vec<Held> {
            facts.arguments.iter().filter(|(at, _)| at == path).map(|(_, value)| test(*value)).collect()
        };
        let integer = |value: Value| if let Value::Integer(value) = value { Ok(value) } else { Err(()) };
        match condition {
            Condition::Action(action) => given(facts.right.1 == *action),
            Condition::After(time) => vec![Ok(facts.now > *time)],
            Condition::ArgAbove(path, least) => at(path, &|value| Ok(integer(value)? > *least)),
            Condition::ArgIs(path, wanted) => {
                given(facts.arguments.iter().any(|(at, value)| at == path && value == wanted))
            }
            Condition::ArgStarts(path, prefix) => at(path, &|value| match value {
                Value::Text(text) => Ok(text.starts_with(prefix)),
                _ => Err(()),
            }),
            Condition::ArgTimes(path, factor, least) => {
                at(path, &|value| Ok(integer(value)?.checked_mul(*factor).ok_or(())? > *least))
            }
            Condition::Blocked => given(facts.arguments.iter().any(|(_, value)| BLOCKED.contains(value))),
            Condition::Caller(agent) => given(facts.caller == Some(agent)),
            Condition::CallerNot(agent) => facts.caller.iter().map(|caller| Ok(caller != agent)).collect(),
            Condition::Cleared(_)
            | Condition::Guarded(_)
            | Condition::Region(_)
            | Condition::Sourced(_)
            | Condition::Unsourced(_) => given(self.flow_holds(condition, facts)),
            Condition::DepthAbove(least) => facts
                .capability
                .iter()
                .map(|capability| Ok(i64::try_from(capability.hops().len()).unwrap() > *least))
                .collect(),
            Condition::Effect(effect) => given(facts.effect == Some(effect)),
            Condition::FirstAgent(agent) => given(facts.capability.is_some_and(|of| of.agent == *agent)),
            Condition::HoldsRight => {
                given(facts.capability.is_some_and(|capability| capability.rights.contains(&facts.right)))
            }
            Condition::HopTo(agent) => given(
                facts
                    .capability
                    .is_some_and(|capability| capability.hops().iter().any(|hop| hop.1 == *agent)),
            ),
            Condition::HourFrom(hour) => {
                vec![Ok(i64::try_from(facts.now / 3_600 % 24).unwrap() >= *hour)]
            }
            Condition::Kind(kind) => given(facts.kind == *kind),
            Condition::MayRun => {
                let wanted = facts.caller.zip(facts.task_kind);
                given(wanted.is_some_and(|wanted| facts.may_run.contains(&wanted)))
            }
            Condition::Operator(operator) => given(facts.operator == Some(operator)),
            Condition::Quotient(path, least) => {
                at(path, &|value| Ok(100i64.checked_div(integer(value)?).ok_or(())? > *least))
            }
            Condition::Reaches(to) => given(facts.caller.is_some_and(|caller| self.reaches(caller, to))),
            Condition::Resource(resource) => given(facts.right.0 == *resource),
            Condition::Role(role) => given(facts.roles.contains(role)),
            Condition::SomeArgAbove(least) => {
                facts.arguments.iter().map(|(_, value)| Ok(integer(*value)? > *least)).collect()
            }
            Condition::Tag(tag) => given(facts.tags.contains(tag)),
            Condition::TagAmong(tags) => facts.tags.iter().map(|tag| Ok(tags.contains(tag))).collect(),
            Condition::TaskKind(kind) => given(facts.task_kind == Some(kind)),
            Condition::Team(team) => {
                let owner = facts.caller.and_then(|caller| self.agents.get(caller));
                given(owner.is_some_and(|(owner, _)| owner == team))
            }
            Condition::Untrusted => given(facts.is_untrusted),
            Condition::User(user) => given(facts.user == Some(user)),
            // 1970-01-01 was a Thursday.
            Condition::WeekdayFrom(day) => {
                vec![Ok(i64::try_from((facts.now / 86_400 + 3) % 7 + 1).unwrap() >= *day)]
            }
        }
    }
}

impl Bound {
    fn holds(&self, facts: &Facts<'_>) -> Held {
        let at = |path: Name| facts.arguments.iter().find(|(at, _)| at == path).map(|(_, value)| *value);
        match self {
            Self::ArgBelow(path, most) => match at(path) {
                Some(Value::Integer(value)) => Ok(value < *most),
                Some(_) => Err(()),
                None => Ok(false),
            },
            Self::ArgIs(path, value) => Ok(at(path) == Some(*value)),
            Self::TagsWithin(tags) => Ok(facts.tags.iter().all(|tag| tags.contains(tag))),
            Self::Trusted => Ok(!facts.is_untrusted),
        }
    }
}

fn one(code: ReasonCode) -> BTreeSet<ReasonCode> {
    BTreeSet::from([code])
}

fn call_on_tool(
    right: Right,
    arguments: &[(Name, Argument)],
) -> Result<(Name, Vec<(String, Value)>), ReasonCode> {
    let contract = CONTRACTS.iter().find(|(of, ..)| *of == right);
    let Some((_, effect, declared, required)) = contract else { return Err(ReasonCode::ToolUnknown) };
    let mut fault = None;
    for (name, argument) in arguments {
        let Some((_, kind)) = declared.iter().find(|(known, _)| known == name) else {
            return Err(ReasonCode::ArgUnknown);
        };
        match (kind, argument) {
            (Kind::Amount, Argument::Decimal(_, decimals)) if *decimals > 2 => {
                fault = Some(ReasonCode::ArgNumber);
            }
            (Kind::Amount, Argument::Decimal(..) | Argument::Plain(Value::Integer(_)))
            | (Kind::Boolean, Argument::Plain(Value::Bool(_)))
            | (Kind::Integer, Argument::Plain(Value::Integer(_)))
            | (Kind::Text, Argument::Plain(Value::Text(_)))
            | (Kind::Texts, Argument::List(_)) => {}
            _ => return Err(ReasonCode::ArgInvalid),
        }
    }
    if required.iter().any(|name| arguments.iter().all(|(given, _)| given != name)) {
        return Err(ReasonCode::ArgMissing);
    }
    if let Some(fault) = fault {
        return Err(fault);
    }
    if arguments.iter().any(|(name, value)| *name == "table" && *value == Argument::Plain(Value::Text(GATED)))
    {
        return Err(ReasonCode::ArgEncoding);
    }
    Ok((effect, flattened("/", arguments, false)))
}

/// Every value with its JSON Pointer. To an agent nothing has a scale, and what is no integer is text.
fn flattened(below: &str, arguments: &[(Name, Argument)], to_agent: bool) -> Vec<(String, Value)> {
    let mut values = Vec::new();
    for (name, argument) in arguments {
        let path = format!("{below}{name}");
        match argument {
            Argument::Plain(Value::Integer(units)) if *name == "amount" && !to_agent => {
                values.push((path, Value::Integer(units * 100)));
            }
            Argument::Plain(value) => values.push((path, *value)),
            Argument::Decimal(..) if to_agent => values.push((path, Value::Text("?"))),
            Argument::Decimal(digits, decimals) => {
                values.push((path, Value::Integer(digits * 10i64.pow(2 - decimals))));
            }
            Argument::List(items) => values.extend(
                items.iter().enumerate().map(|(index, item)| (format!("{path}/{index}"), Value::Text(item))),
            ),
        }
    }
    values
}

/// What denies for a tag denies where the tags are not known.
fn at_top(body: &[Condition]) -> Option<Vec<Condition>> {
    let is_tag =
        |condition: &Condition| matches!(condition, Condition::Tag(tag) if !["public", "top"].contains(tag));
    let swapped = |condition: &Condition| {
        if is_tag(condition) { Condition::Tag("top") } else { condition.clone() }
    };
    body.iter().any(is_tag).then(|| body.iter().map(swapped).collect())
}
