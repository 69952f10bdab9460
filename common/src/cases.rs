//! Cases: what a policy must answer, decided as a broker and a node would, without either.
//!
//! A case about a call begins where a call does: the user's task is started under the same policy, the capability
//! it comes to is handed along the chain, and only then the call is decided. So a right that no role has cannot be
//! tested by mistake. Keys are made up. Tools' own gates are not asked: what they would state stands in the case, and
//! is held against the schema.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::Deserialize;

use crate::{
    approval::in_words,
    capability::{Capability, Grant, Narrowing, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    datalog::Predicate,
    decide::{AGENT_HANDOVER, AGENT_INPUT, ASK, Evidence, FlowEvidence, Gate, ask_arguments, decide},
    digest::Digest,
    ids::{
        Action, AgentId, BudgetId, CapabilityId, EntityType, FlowDomain, OperatorId, Resource, ResourceKind,
        RoleId, TaskId, TaskKind, TenantId, UserId,
    },
    json::Value,
    keys::{PrivateKey, PublicKey},
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::{Confidentiality, Integrity, Label, Tag},
    policy::{
        PolicySet, RuleInfo,
        explain::{Explanation, explain},
        parse_fact,
        schema::check_gate_fact,
    },
    reason::{Reason, ReasonCode},
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    source::{Instruction, ResultSources},
    time::{Millis, Timestamp},
    verdict::{Decision, GrantBounds, Verdict},
};

fn domain() -> Result<FlowDomain, String> {
    FlowDomain::parse("p0.t-case").map_err(nonsense)
}

/// One line of `cases.yaml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows, in words.
    pub name: String,
    /// What is asked. Exactly one of `call`, `start`, `renew`, `ask` and `admin`: a right such as `tool.crm:read`.
    pub call: Option<Right>,
    /// See `call`: a task is started; its kind is `task`.
    #[serde(default)]
    pub start: bool,
    /// See `call`: the capability of a task is renewed.
    #[serde(default)]
    pub renew: bool,
    /// See `call`: the task is started, and asks for a right it lacks.
    pub ask: Option<Right>,
    /// See `call`: what an operator asks for, as `agent.mailer:enroll`.
    pub admin: Option<Right>,
    /// The operator, for `admin`.
    pub operator: Option<OperatorId>,
    /// The agents, the one that was given the task first; the last makes the call.
    #[serde(default)]
    pub chain: Vec<AgentId>,
    /// Roles of the user.
    #[serde(default)]
    pub roles: Vec<RoleId>,
    /// The kind of task.
    pub task: Option<TaskKind>,
    /// The user's name at the identity provider.
    #[serde(default = "anybody")]
    pub user: String,
    /// The tenant.
    pub tenant: Option<TenantId>,
    /// What every hop of the chain keeps; everything if absent.
    pub keeps: Option<BTreeSet<Right>>,
    /// The arguments; for a call on an agent, its input.
    #[serde(default)]
    pub arguments: serde_json::Map<String, serde_json::Value>,
    /// What the tool's gate and inspectors state about the arguments, as `reads_table("orders")`.
    #[serde(default)]
    pub facts: Vec<String>,
    /// Rights a `start` asks for; whatever policy grants if absent.
    pub asks: Option<BTreeSet<Right>>,
    /// When, in UTC: `2026-01-05T10:00:00Z`, a Monday, if absent.
    pub at: Option<String>,
    /// Tags of the task label; `top` for one nobody knows.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Whether the task has read untrusted data.
    #[serde(default)]
    pub untrusted: bool,
    /// What the user asked for, in their words: values it names may be trusted.
    #[serde(default)]
    pub instruction: String,
    /// Values that trusted results of the task named, by entity type.
    #[serde(default)]
    pub results: BTreeMap<EntityType, BTreeSet<String>>,
    /// What the answer must be.
    pub expect: Expected,
    /// For `deny`: exactly these reasons, if there are any here.
    #[serde(default)]
    pub reasons: BTreeSet<ReasonCode>,
    /// For `deny`: a text that one of the reasons must hold.
    pub says: Option<String>,
    /// For a `start` that is allowed: exactly these rights.
    pub grants: Option<BTreeSet<Right>>,
    /// For `allow` or `hold`: exactly these amounts out of these budgets.
    pub charges: Option<BTreeMap<BudgetId, u64>>,
    /// For `hold`: exactly so many people of these roles.
    pub approvals: Option<BTreeMap<RoleId, u8>>,
}

fn anybody() -> String {
    "somebody".to_owned()
}

/// What a case expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// It may be done.
    Allow,
    /// It may not.
    Deny,
    /// It may be done once people have said yes.
    Hold,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the answer was, in one line.
    pub answer: String,
    /// Why the case fails; empty if it holds.
    pub faults: Vec<String>,
    /// Rules that decided, as `file:line`.
    pub rules: BTreeSet<String>,
}

/// When a case happens that does not say: a Monday morning.
const AT: &str = "2026-01-05T10:00:00Z";
/// Longest life of a capability in a case.
const LIFE_MAX: Millis = Millis::from_secs(366 * 86_400);

/// Rules of a policy that none of the outcomes was decided by.
#[must_use]
pub fn without_case<'p>(policy: &'p PolicySet, outcomes: &[Outcome]) -> Vec<&'p RuleInfo> {
    let fired: BTreeSet<&String> = outcomes.iter().flat_map(|outcome| &outcome.rules).collect();
    policy.rules().iter().filter(|rule| !fired.contains(&rule.place())).collect()
}

impl Case {
    /// Decides the case under a policy, and compares.
    #[must_use]
    pub fn run(&self, policy: &PolicySet) -> Outcome {
        let mut outcome = Outcome { answer: String::new(), faults: Vec::new(), rules: BTreeSet::new() };
        match self.decide(policy, &mut outcome.rules, &|_, _, _| {}) {
            Ok(verdict) => self.compare(&verdict, &mut outcome),
            Err(fault) => {
                fault.as_str().clone_into(&mut outcome.answer);
                outcome.faults.push(fault);
            }
        }
        outcome
    }

    /// Decides the case under a policy, and tells why; `expect` and what goes with it is not looked at. If the task is
    /// not even started, that is what is told.
    ///
    /// # Errors
    /// Why the case itself makes no sense, or cannot be brought about.
    pub fn explain(&self, policy: &PolicySet) -> Result<Explanation, String> {
        let told = RefCell::new(None);
        let look = |request: &Request, evidence: &Evidence<'_>, now| {
            told.replace(Some(explain(request, evidence, policy, now)));
        };
        let answer = self.decide(policy, &mut BTreeSet::new(), &look);
        match (told.into_inner(), answer) {
            (Some(told), Ok(_)) => Ok(told),
            (Some(told), Err(_)) if told.decision == "deny" => Ok(told),
            (_, Err(fault)) => Err(fault),
            (None, Ok(_)) => Err("the case asks for nothing".to_owned()),
        }
    }

    fn compare(&self, verdict: &Verdict, outcome: &mut Outcome) {
        outcome.rules.extend(verdict.rules().iter().cloned());
        let codes: BTreeSet<ReasonCode> = verdict.reasons().iter().map(Reason::code).collect();
        let needs = verdict.approval().map(|terms| &terms.needs);
        outcome.answer = match verdict.decision() {
            Decision::Allow if let Some(needs) = needs => {
                format!("hold for {} [{}]", in_words(needs), verdict.rules().join(", "))
            }
            Decision::Allow => format!("allow [{}]", verdict.rules().join(", ")),
            Decision::Deny => {
                let reasons: Vec<String> = verdict.reasons().iter().map(ToString::to_string).collect();
                format!("deny: {}", reasons.join("; "))
            }
        };
        let came = match verdict.decision() {
            Decision::Allow if needs.is_some() => Expected::Hold,
            Decision::Allow => Expected::Allow,
            Decision::Deny => Expected::Deny,
        };
        let faults = &mut outcome.faults;
        if came != self.expect {
            faults.push(format!("the answer is {}", outcome.answer));
            return;
        }
        if !self.reasons.is_empty() && self.reasons != codes {
            faults.push(format!("denied for {}, not for {}", listed(&codes), listed(&self.reasons)));
        }
        if let Some(says) = &self.says
            && !verdict.reasons().iter().any(|reason| reason.to_string().contains(says.as_str()))
        {
            faults.push(format!("no reason says \"{says}\": {}", outcome.answer));
        }
        if let Some(charges) = &self.charges {
            let came: BTreeMap<BudgetId, u64> = verdict
                .charges()
                .into_iter()
                .flatten()
                .map(|(budget, charge)| (budget.clone(), charge.amount))
                .collect();
            if *charges != came {
                faults.push(format!("it takes {came:?} out of budgets, not {charges:?}"));
            }
        }
        if let (Some(approvals), Some(needs)) = (&self.approvals, needs) {
            let came: BTreeMap<RoleId, u8> =
                needs.iter().map(|need| (need.role.clone(), need.count)).collect();
            if *approvals != came {
                faults.push(format!("the answer is {}", outcome.answer));
            }
        }
        if let (Some(grants), Some(bounds)) = (&self.grants, bounds(verdict))
            && *grants != bounds.rights
        {
            faults.push(format!("grants {}, not {}", listed(&bounds.rights), listed(grants)));
        }
    }

    /// # Errors
    /// Why the case itself makes no sense, or cannot be brought about.
    fn decide(
        &self,
        policy: &PolicySet,
        rules: &mut BTreeSet<String>,
        look: &Look<'_>,
    ) -> Result<Verdict, String> {
        let asked = [self.call.is_some(), self.start, self.renew, self.ask.is_some(), self.admin.is_some()];
        if asked.iter().filter(|asked| **asked).count() != 1 {
            return Err(
                "a case has exactly one of `call: <right>`, `start: true`, `renew: true`, `ask: <right>` and `admin: <right>`".into()
            );
        }
        if self.expect != Expected::Hold && self.approvals.is_some() {
            return Err("`approvals` are about a hold, and the case expects none".into());
        }
        if self.expect != Expected::Deny && (!self.reasons.is_empty() || self.says.is_some()) {
            return Err("`reasons` and `says` are about a denial, and the case expects none".into());
        }
        let is_call_on_tool =
            self.call.as_ref().is_some_and(|call| call.resource.kind() == ResourceKind::Tool);
        if !self.facts.is_empty() && !is_call_on_tool {
            return Err(
                "`facts` are what a tool's gate or an inspector states, and the case calls no tool".into()
            );
        }
        let stage = Stage::set(self, policy, look)?;
        if let Some(admin) = &self.admin {
            let operator = self.operator.clone().ok_or("an `admin` case needs an `operator`")?;
            return Ok(stage.ask(Principal::Operator(operator), admin, Arguments::none(), None, None));
        }
        let kind = self.task.as_ref().ok_or("the case needs `task`, the kind of task")?;
        let [first, others @ ..] = self.chain.as_slice() else {
            return Err(
                "the case needs `chain`, a list of agents, the one that is given the task first".into()
            );
        };
        if self.renew {
            return Ok(stage.start("renew", first, kind));
        }
        let started = stage.start("issue", first, kind);
        if self.start {
            return Ok(started);
        }
        rules.extend(started.rules().iter().cloned());
        let Some(bounds) = bounds(&started) else {
            let reasons: Vec<String> = started.reasons().iter().map(ToString::to_string).collect();
            return Err(format!("the task is not even started: {}", reasons.join("; ")));
        };
        if let Some(right) = &self.ask {
            return stage.request(first, kind, right);
        }
        let mut token = stage.issue(first, bounds)?;
        let mut holder = first;
        for next in others {
            token = stage.hand_on(&token, holder, next)?;
            holder = next;
        }
        let Some(call) = &self.call else { return Err("the case asks for nothing".to_owned()) };
        stage.call(holder, token, call)
    }
}

fn listed<T: ToString>(items: &BTreeSet<T>) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
}

fn bounds(verdict: &Verdict) -> Option<&GrantBounds> {
    verdict.grant_bounds()
}

/// Called with everything that is decided on the way.
type Look<'l> = dyn Fn(&Request, &Evidence<'_>, Timestamp) + 'l;

/// Everything a decision needs and a case does not say.
struct Stage<'a> {
    case: &'a Case,
    policy: &'a PolicySet,
    look: &'a Look<'a>,
    control: ControlState,
    keyset: Keyset,
    tenant: TenantId,
    user: UserId,
    label: Label,
    instruction: Instruction,
    results: ResultSources,

    gate: Stated,
    now: Timestamp,
}

/// A gate that lets everything through and states what the case says.
struct Stated(Vec<Predicate>);

impl Stated {
    fn read(facts: &[String]) -> Result<Self, String> {
        let read = |text: &String| {
            let fact =
                parse_fact(text).map_err(|fault| format!("`{text}` in `facts` is no fact: {fault}"))?;
            check_gate_fact(&fact).map_err(|fault| format!("`facts`: {fault}"))?;
            Ok(fact)
        };
        facts.iter().map(read).collect::<Result<_, String>>().map(Self)
    }
}

impl Gate for Stated {
    fn admit(&self, _action: &Action, _arguments: &Value) -> Result<Vec<Predicate>, Reason> {
        Ok(self.0.clone())
    }
}

fn key(name: &str) -> PrivateKey {
    PrivateKey::from_seed(Digest::of("writ/v1/case", &[name.as_bytes()]).as_bytes())
}

fn agent_key(agent: &AgentId) -> PrivateKey {
    key(&format!("agent {agent}"))
}

fn nonsense(error: impl std::fmt::Display) -> String {
    format!("the case makes no sense: {error}")
}

impl<'a> Stage<'a> {
    fn set(case: &'a Case, policy: &'a PolicySet, look: &'a Look<'a>) -> Result<Self, String> {
        let at = case.at.as_deref().unwrap_or(AT);
        let now = Timestamp::parse(at)
            .ok_or_else(|| format!("`at` is `{at}`, not a time like {AT} (UTC, whole seconds)"))?;
        let tenant = match &case.tenant {
            Some(tenant) => tenant.clone(),
            None => TenantId::parse("acme").map_err(nonsense)?,
        };
        let user = UserId::parse("https://idp.example", &case.user).map_err(nonsense)?;
        let tags = case.tags.iter().map(|tag| Tag::parse(tag.as_str()).map_err(nonsense));
        let label = Label {
            confidentiality: match case.tags.contains(crate::label::TOP) {
                true => Confidentiality::Top,
                false => Confidentiality::Tags(tags.collect::<Result<_, _>>()?),
            },
            integrity: if case.untrusted { Integrity::Untrusted } else { Integrity::Trusted },
        };
        let (root, broker) = (key("root"), key("broker"));
        let (signed, keyset) = keyset(&root, &broker.public(), &tenant, now)?;
        let mut control = ControlState::new(tenant.clone(), root.public());
        let enrolled = policy.inventory().agents.keys().map(|agent| ControlEvent::AgentKey {
            agent: agent.clone(),
            holder: agent_key(agent).public(),
            connection: format!("connection of {agent}"),
            token: Digest::plain(agent.as_str().as_bytes()),
        });
        for (sequence, event) in (1..).zip(std::iter::once(ControlEvent::Keyset(signed)).chain(enrolled)) {
            let document = ControlDocument {
                tenant: tenant.clone(),
                at: now,
                by: "broker".to_owned(),
                follows: control.epoch(),
                event,
            };
            let bytes = encode(&Signed::new(&document, &broker));
            control.apply(sequence, &bytes).map_err(nonsense)?;
        }
        let gate = Stated::read(&case.facts)?;
        let instruction = Instruction::new(&case.instruction);
        let mut results = ResultSources::default();
        let domain = domain()?;
        for (entity, values) in &case.results {
            values.iter().for_each(|value| results.insert(&domain, entity, &Value::from(value.as_str())));
        }
        Ok(Self { case, policy, look, control, keyset, tenant, user, label, instruction, results, gate, now })
    }

    fn ask(
        &self,
        principal: Principal,
        right: &Right,
        arguments: Arguments,
        capability: Option<&Capability>,
        handover: Option<&Capability>,
    ) -> Verdict {
        let request = Request {
            principal,
            action: right.action.clone(),
            resource: right.resource.clone(),
            arguments,
            environment: Environment {
                tenant: self.tenant.clone(),
                task: capability.map(|capability| capability.grant().task.clone()),
                task_kind: capability.is_none().then(|| self.case.task.clone()).flatten(),
            },
        };
        let clean = Label::bottom();
        let evidence = Evidence {
            capability,
            control: &self.control,
            gate: Some(&self.gate),
            handover,
            // A task starts with nothing, whatever it will hold.
            label: if capability.is_some() { &self.label } else { &clean },
            flow: FlowEvidence {
                instruction: Some(&self.instruction),
                results: Some(&self.results),
                ..FlowEvidence::default()
            },
        };
        (self.look)(&request, &evidence, self.now);
        decide(&request, &evidence, self.policy, self.now)
    }

    fn start(&self, action: &str, agent: &AgentId, kind: &TaskKind) -> Verdict {
        let principal =
            Principal::User { user: self.user.clone(), roles: self.case.roles.clone(), agent: agent.clone() };
        let Ok(action) = Action::parse(action) else { return crate::decide::without_policy() };
        let asked = self.case.asks.as_ref().map(|rights| {
            let rights = rights.iter().map(|right| Value::from(right.to_string())).collect();
            ("rights", Value::Array(rights))
        });
        let arguments = Arguments::new(asked.into_iter().collect());
        self.ask(principal, &Right { resource: Resource::task(kind), action }, arguments, None, None)
    }

    fn request(&self, agent: &AgentId, kind: &TaskKind, right: &Right) -> Result<Verdict, String> {
        let principal =
            Principal::User { user: self.user.clone(), roles: self.case.roles.clone(), agent: agent.clone() };
        let asking = Right { resource: Resource::task(kind), action: Action::parse(ASK).map_err(nonsense)? };
        Ok(self.ask(principal, &asking, ask_arguments(right), None, None))
    }

    fn issue(&self, agent: &AgentId, bounds: &GrantBounds) -> Result<UnverifiedCapability, String> {
        let rights = self.case.asks.clone().unwrap_or_else(|| bounds.rights.clone());
        let grant = Grant {
            tenant: self.tenant.clone(),
            user: self.user.clone(),
            agent: agent.clone(),
            task: TaskId::parse("t-case").map_err(nonsense)?,
            holder: agent_key(agent).public(),
            capability: CapabilityId::parse("c-case").map_err(nonsense)?,
            serial: 1,
            instruction: Digest::plain(self.case.name.as_bytes()),
            domain: domain()?,
            bounds: bounds.pins.bounds(&rights),
            rights,
            expires: Timestamp::from_secs(self.now.after(bounds.capability_life).as_secs()),
            min_epoch: self.control.epoch(),
            max_depth: bounds.max_depth,
        };
        grant.issue(&key("broker"), &key("block 0").seed()).map_err(nonsense)
    }

    fn hand_on(
        &self,
        token: &UnverifiedCapability,
        from: &AgentId,
        to: &AgentId,
    ) -> Result<UnverifiedCapability, String> {
        let narrowing = match &self.case.keeps {
            Some(rights) => Narrowing::new().only(rights.iter().cloned()),
            None => Narrowing::new(),
        };
        let next = key(&format!("block {}", token.chain().depth() + 1));
        token
            .delegate(&agent_key(from), to, &agent_key(to).public(), &narrowing, &next.seed())
            .map_err(|error| format!("`{from}` cannot delegate to `{to}`: {error}"))
    }

    fn call(&self, caller: &AgentId, token: UnverifiedCapability, call: &Right) -> Result<Verdict, String> {
        let verify = |token: UnverifiedCapability| {
            token.verify(&self.keyset, self.now).map_err(|reason| nonsense(reason.for_operator()))
        };
        let text = serde_json::Value::Object(self.case.arguments.clone()).to_string();
        let given = Value::parse(&text).map_err(|error| format!("`arguments`: {error}"))?;
        let principal = Principal::Agent(caller.clone());
        if call.resource.kind() != ResourceKind::Agent {
            let capability = verify(token)?;
            return Ok(self.ask(principal, call, Arguments::new(given), Some(&capability), None));
        }
        let to = AgentId::parse(call.resource.name()).map_err(nonsense)?;
        let handover = verify(self.hand_on(&token, caller, &to)?)?;
        let capability = verify(token)?;
        let members = BTreeMap::from([
            (AGENT_INPUT, given),
            (AGENT_HANDOVER, Value::from(handover.chain_id().to_string())),
        ]);
        let arguments = Arguments::new(members.into_iter().collect());
        Ok(self.ask(principal, call, arguments, Some(&capability), Some(&handover)))
    }
}

fn keyset(
    root: &PrivateKey,
    broker: &PublicKey,
    tenant: &TenantId,
    now: Timestamp,
) -> Result<(Signed<KeysetDocument>, Keyset), String> {
    let ends = now.after(LIFE_MAX).after(LIFE_MAX);
    let document = KeysetDocument {
        version: 1,
        issued_at: now,
        expires: ends,
        keys: vec![KeysetKey {
            public: *broker,
            tenants: vec![tenant.clone()],
            max_ttl: LIFE_MAX,
            not_before: Timestamp::default(),
            not_after: ends,
        }],
        withdrawn: Vec::new(),
    };
    let signed = Signed::new(&document, root);
    let keyset = Keyset::open(&signed, &root.public()).map_err(nonsense)?;
    Ok((signed, keyset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicyBundle;

    fn policy(extra: &str) -> PolicySet {
        let rules = format!(
            "allow if request(\"call\"), right($r, $a), resource($r), action($a);\n\
             allow if request(\"issue\"), caller($agent), task_kind($kind), may_run($agent, $kind);\n\
             allow if request(\"admin\"), operator(\"bob\");\n\
             may_run($agent, $kind) <- role($role), role_runs($role, $agent, $kind);\n\
             grant($r, $a) <- role($role), task_kind($kind), role_right($role, $kind, $r, $a);\n\
             may_delegate($from, $to) <- delegates($from, $to);\n\
             depth_limit(2) <- request(\"issue\");\n{extra}"
        );
        let agents = "[[agent]]\nname = \"planner\"\nowner = \"o\"\ndelegates_to = [\"payer\"]\n[[agent]]\nname = \"payer\"\nowner = \"o\"\n";
        let roles = "[[role]]\nname = \"clerk\"\n[[role.task]]\nkind = \"bills\"\nagents = [\"planner\"]\nrights = [\"tool.pay:wire\", \"agent.payer:invoke\"]\n";
        let approvers = "[[approver]]\nname = \"bob\"\nroles = [\"finance\"]\nusers = [\"bob\"]\n[[approver]]\nname = \"erin\"\nroles = [\"finance\"]\nusers = [\"erin\"]\n";
        let pay = "resource = \"tool.pay\"\n[[action]]\nname = \"wire\"\neffect = \"egress\"\nreturns = { tags = [], integrity = \"trusted\" }\nscales = { \"/amount\" = 2 }\nschema = { type = \"object\", properties = { amount = { type = \"number\" } } }\n";
        let bundle = [
            ("a.datalog", rules.as_str()),
            ("agents.toml", agents),
            ("approvers.toml", approvers),
            ("roles.toml", roles),
            ("tools/pay.toml", pay),
        ];
        let bundle = bundle.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        PolicySet::load(&PolicyBundle(bundle)).unwrap().0
    }

    fn case(text: &str) -> Case {
        serde_json::from_str(text).unwrap()
    }

    fn faults(text: &str) -> Vec<String> {
        let policy = policy("deny if resource(\"tool.pay\"), arg(\"/amount\", $a), $a > 1000;\n");
        case(text).run(&policy).faults
    }

    #[test]
    fn a_case_that_holds_has_no_fault() {
        for text in [
            r#"{"name":"a","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":9.5},"expect":"allow"}"#,
            r#"{"name":"b","call":"tool.pay:wire","chain":["planner","payer"],"roles":["clerk"],"task":"bills","arguments":{"amount":10.01},"expect":"deny","reasons":["policy.denied"]}"#,
            r#"{"name":"c","call":"tool.pay:wire","chain":["planner","payer"],"keeps":["agent.payer:invoke"],"roles":["clerk"],"task":"bills","expect":"deny","reasons":["delegation.widening"]}"#,
            r#"{"name":"d","call":"agent.payer:invoke","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"x":1},"expect":"allow"}"#,
            r#"{"name":"e","start":true,"chain":["planner"],"roles":["clerk"],"task":"bills","expect":"allow","grants":["tool.pay:wire","agent.payer:invoke"]}"#,
            r#"{"name":"f","start":true,"chain":["payer"],"roles":["clerk"],"task":"bills","expect":"deny","reasons":["grant.not_allowed"]}"#,
            r#"{"name":"g","admin":"agent.payer:enroll","operator":"bob","expect":"allow"}"#,
            r#"{"name":"h","admin":"agent.payer:enroll","operator":"eve","expect":"deny"}"#,
        ] {
            assert_eq!(faults(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn a_case_that_does_not_hold_says_what_came_instead() {
        for (text, expected) in [
            (
                r#"{"name":"a","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":9.5},"expect":"deny"}"#,
                "the answer is allow [a.datalog:1]",
            ),
            (
                r#"{"name":"b","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":99},"expect":"allow"}"#,
                "the answer is deny: policy.denied",
            ),
            (
                r#"{"name":"c","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":99},"expect":"deny","reasons":["right.missing"]}"#,
                "denied for policy.denied, not for right.missing",
            ),
            (
                r#"{"name":"d","call":"tool.pay:wire","chain":["planner"],"task":"bills","expect":"deny"}"#,
                "the task is not even started: grant.not_allowed",
            ),
            (
                r#"{"name":"e","start":true,"chain":["planner"],"roles":["clerk"],"task":"bills","expect":"allow","grants":[]}"#,
                "grants agent.payer:invoke, tool.pay:wire, not nothing",
            ),
            (r#"{"name":"f","chain":["planner"],"expect":"allow"}"#, "exactly one of"),
            (
                r#"{"name":"g","call":"tool.pay:wire","chain":["payer","planner"],"roles":["clerk"],"task":"bills","expect":"deny"}"#,
                "the task is not even started",
            ),
            (
                r#"{"name":"h","start":true,"chain":["planner"],"roles":["clerk"],"task":"bills","at":"monday","expect":"allow"}"#,
                "not a time like",
            ),
            (
                r#"{"name":"i","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":99},"expect":"deny","says":"two people"}"#,
                "no reason says",
            ),
        ] {
            let found = faults(text);
            assert!(found.iter().any(|fault| fault.contains(expected)), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_a_gate_would_state_is_held_against_the_schema() {
        let policy =
            policy("deny if resource(\"tool.pay\"), reads_table($table), !{\"bills\"}.contains($table);\n");
        let run = |facts: &str, expect: &str| {
            let text = format!(
                r#"{{"name":"a","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","facts":{facts},"expect":"{expect}"}}"#
            );
            case(&text).run(&policy).faults.join("; ")
        };
        assert_eq!(run(r#"["reads_table(\"bills\")"]"#, "allow"), "");
        assert_eq!(run(r#"["reads_table(\"bills\")", "reads_table(\"users\")"]"#, "deny"), "");
        for (facts, expected) in [
            (r#"["reads_tabel(\"x\")"]"#, "did you mean `reads_table`?"),
            (r#"["role(\"admin\")"]"#, "no gate or inspector states `role`"),
            (r#"["reads_table(1)"]"#, "should be `reads_table(name: text)`"),
            (r#"["reads_table(\"a\", \"b\")"]"#, "should be `reads_table(name: text)`"),
            (r#"["reads_table($x)"]"#, "should be `reads_table(name: text)`"),
            (r#"["reads_table"]"#, "is no fact"),
            (r#"["reads_table(\"x\"), role(\"y\")"]"#, "expected nothing behind the fact"),
        ] {
            let fault = run(facts, "allow");
            assert!(fault.contains(expected), "{facts}: {fault}");
        }
        let start = r#"{"name":"a","start":true,"chain":["planner"],"roles":["clerk"],"task":"bills","facts":["reads_table(\"x\")"],"expect":"allow"}"#;
        assert!(case(start).run(&policy).faults.join("").contains("the case calls no tool"));
    }

    #[test]
    fn whoever_lacks_a_right_is_told_who_grants_it_if_policy_says_so() {
        let text = r#"{"name":"a","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","asks":["agent.payer:invoke"],"arguments":{"amount":1},"expect":"deny","reasons":["right.missing"],"says":"the finance lead can grant it"}"#;
        let told =
            policy("grantable(\"tool.pay\", \"wire\", \"the finance lead\") <- caller(\"planner\");\n");
        assert_eq!(case(text).run(&told).faults, Vec::<String>::new());
        let others =
            policy("grantable(\"tool.pay\", \"wire\", \"the finance lead\") <- caller(\"payer\");\n");
        assert!(case(text).run(&others).faults[0].contains("no reason says"), "told to somebody else");
    }

    #[test]
    fn a_right_is_asked_for_where_a_rule_says_so_and_by_whose_approval() {
        let run = |rules: &str, rest: &str| {
            let text = format!(
                r#"{{"name":"a","ask":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills",{rest}}}"#
            );
            case(&text).run(&policy(rules)).faults.join("; ")
        };
        let one = "may_request(\"tool.pay\", \"wire\", \"finance\", 1) <- role(\"clerk\");\n";
        let two = "may_request(\"tool.pay\", \"wire\", \"finance\", 2) <- asked(\"tool.pay\", $any);\n";
        let deny = "/// not today\ndeny if request(\"ask\"), weekday(1);\n";
        assert_eq!(run(one, r#""expect":"hold","approvals":{"finance":1}"#), "");
        assert_eq!(run(&format!("{one}{two}"), r#""expect":"hold","approvals":{"finance":2}"#), "");
        assert_eq!(run("", r#""expect":"deny","reasons":["right.not_requestable"]"#), "");
        // Deny wins, and no rule about calls is meant.
        assert_eq!(run(&format!("{one}{deny}"), r#""expect":"deny","says":"not today""#), "");
        let calls = "deny if resource(\"tool.pay\"), action(\"wire\");\n";
        assert_eq!(run(&format!("{one}{calls}"), r#""expect":"hold""#), "");
    }

    #[test]
    fn a_request_for_approval_that_is_open_for_less_than_no_time_holds_nothing() {
        let rules = "may_request(\"tool.pay\", \"wire\", \"finance\", 1) <- role(\"clerk\");\n\
                     approval_seconds(-5) <- request(\"ask\");\n";
        let text = r#"{"name":"a","ask":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","expect":"deny","reasons":["approval.unavailable"]}"#;
        assert_eq!(case(text).run(&policy(rules)).faults, Vec::<String>::new());
    }

    #[test]
    fn rules_that_no_case_fired_are_known() {
        let policy = policy("deny if resource(\"tool.pay\"), arg(\"/amount\", $a), $a > 1000;\n");
        let text = r#"{"name":"a","call":"tool.pay:wire","chain":["planner"],"roles":["clerk"],"task":"bills","arguments":{"amount":1},"expect":"allow"}"#;
        let outcomes = [case(text).run(&policy)];
        let places: Vec<String> = without_case(&policy, &outcomes).iter().map(|rule| rule.place()).collect();
        assert_eq!(places, ["a.datalog:3", "a.datalog:8"]);
    }
}
