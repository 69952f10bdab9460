//! The decision: one pure function, the same in broker and node.
//!
//! The order is from cheap to dear and from general to particular: is the capability for this tenant, task,
//! agent and time; is everybody in it enrolled and nobody revoked; does it hold the right; do the arguments fit
//! the contract and the tool's own gate; and only then Datalog, once, for the capability's checks, the chain's
//! delegations and the operator's rules. Nothing here reads a clock, a file or a socket.

use std::collections::BTreeSet;

use crate::{
    capability::{Capability, Right, engine::World},
    contract::{ActionContract, ToolContract},
    control::ControlState,
    datalog::{Predicate, Term},
    digest::Digest,
    ids::{Action, AgentId, Resource, ResourceKind, TaskId, TenantId},
    json::Value,
    label::Label,
    policy::{Effect, PolicyRevision, PolicySet, RuleInfo},
    reason::{Reason, ReasonCode},
    request::{Arguments, Principal, Request},
    time::{Millis, Timestamp},
    verdict::{GrantBounds, Obligation, Verdict},
};

/// A tool's own check of its arguments, pure: it may refuse, and it may state facts for the policy.
pub trait Gate {
    /// Looks at arguments that fit the contract.
    ///
    /// # Errors
    /// The tool's reason to refuse them.
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason>;
}

/// What is known, beyond the request itself.
#[derive(Clone, Copy)]
pub struct Evidence<'a> {
    /// The capability the request is made with; users and operators have none.
    pub capability: Option<&'a Capability>,
    /// Control state as of the epoch the decision is made at.
    pub control: &'a ControlState,
    /// The tool's own gate, where there is one.
    pub gate: Option<&'a dyn Gate>,
    /// For a call on an agent: the longer chain that is handed over.
    pub handover: Option<&'a Capability>,
    /// The label of the flow domain.
    pub label: &'a Label,
}

/// Longest lives and depth if policy derives no bound of its own.
const TASK_LIFE: Millis = Millis::from_secs(3_600);
const CAPABILITY_LIFE: Millis = Millis::from_secs(300);

/// Decides a request.
///
/// An allowance may carry obligations; [`Verdict::permit`] is the only way from it to an effect.
#[must_use]
pub fn decide(request: &Request, evidence: &Evidence<'_>, policy: &PolicySet, now: Timestamp) -> Verdict {
    let revision = Some(policy.revision());
    let answer = match &request.principal {
        Principal::Agent(caller) => decide_call(request, caller, evidence, policy, now),
        Principal::User { .. } => decide_issue(request, evidence, policy, now),
        Principal::Operator(_) => decide_admin(request, evidence, policy, now),
    };
    match answer {
        Ok(allowed) => Verdict::allowed(request, allowed.obligations, allowed.rules, revision),
        Err(refused) => Verdict::denied(refused.reasons, refused.rules, revision),
    }
}

struct Allowed {
    obligations: Vec<Obligation>,
    rules: Vec<String>,
}

struct Refused {
    reasons: Vec<Reason>,
    rules: Vec<String>,
}

impl<R: Into<Reason>> From<R> for Refused {
    fn from(reason: R) -> Self {
        Self { reasons: vec![reason.into()], rules: Vec::new() }
    }
}

fn decide_call(
    request: &Request,
    caller: &AgentId,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<Allowed, Refused> {
    let capability = evidence.capability.ok_or(ReasonCode::TokenMissing)?;
    check_binding(capability, &request.environment.tenant, request.environment.task.as_ref(), caller)?;
    check_expiry(capability, now)?;
    evidence.control.check_readable()?;
    if !crate::red::off("R01") {
        evidence.control.check_revocation(capability)?;
    }
    check_agents(capability, evidence.control, policy)?;
    check_right(capability, &request.right())?;
    if evidence.handover.is_some()
        && request.resource.kind() != ResourceKind::Agent
        && !crate::red::off("D01")
    {
        return Err(Reason::new(ReasonCode::ArgUnknown)
            .told("only a call on an agent hands a chain over")
            .into());
    }
    let (contract_facts, gate_facts) = match request.resource.kind() {
        ResourceKind::Tool => check_tool(request, evidence, policy)?,
        ResourceKind::Agent => check_agent_call(request, capability, evidence, policy)?,
        ResourceKind::Node | ResourceKind::Task => return Err(ReasonCode::ToolUnknown.into()),
    };
    let mut facts = request_facts(request, "call", now, evidence.label);
    facts.push(text("caller", caller.as_str()));
    facts.push(text("user_kind", capability.grant().user.kind().as_str()));
    facts.push(Predicate::new("depth", [integer(capability.chain().depth())]));
    facts.extend(capability.chain().hops().map(|hop| {
        Predicate::new(
            "hop",
            [integer(usize::from(hop.depth)), Term::str(hop.from.as_str()), Term::str(hop.to.as_str())],
        )
    }));
    facts.extend(contract_facts);
    facts.extend(gate_facts);
    facts.extend_from_slice(&policy.inventory_facts);
    let mut world = World::run(Some(capability), &facts, &policy.program).map_err(Reason::from)?;

    let mut reasons: Vec<Reason> = Vec::new();
    if !crate::red::off("D08") {
        let failed = world.failed_checks().iter();
        // Red: only the newest block's conditions count, so that appending an empty one takes off the others.
        let newest = capability.chain().links().len();
        let failed = failed.filter(|failed| failed.block == newest || !crate::red::off("D08-newest"));
        reasons.extend(failed.map(|failed| {
            let carrier = carrier_of(capability, failed.block);
            Reason::new(ReasonCode::TokenCheckFailed)
                .told(format_args!("a condition added by {carrier} does not hold: {}", failed.check))
        }));
    }
    // The caller's own hops, and the one it makes now.
    let depth = capability.chain().depth();
    let handed = evidence.handover.into_iter().flat_map(|handover| handover.chain().hops().skip(depth));
    let hops: Vec<_> = capability.chain().hops().chain(handed).collect();
    if !hops.is_empty() && !crate::red::off("D01") {
        let allowed = world.facts("may_delegate", 2).map_err(Reason::from)?;
        reasons.extend(hops.into_iter().filter_map(|hop| {
            let pair = [Term::str(hop.from.as_str()), Term::str(hop.to.as_str())];
            let refused = !allowed.iter().any(|tuple| tuple.as_slice() == pair);
            refused.then(|| {
                Reason::new(ReasonCode::DelegationNotAllowed)
                    .told(format_args!("`{}` may not delegate to `{}`", hop.from, hop.to))
            })
        }));
    }
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    conclude(reasons, rules, Vec::new())
}

fn decide_issue(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<Allowed, Refused> {
    let Principal::User { user, roles, agent } = &request.principal else {
        return Err(ReasonCode::AdminForbidden.into());
    };
    let kind = request.environment.task_kind.as_ref().ok_or(ReasonCode::GrantNotAllowed)?;
    evidence.control.check_readable()?;
    if evidence.control.is_halted() {
        return Err(ReasonCode::HaltAll.into());
    }
    check_agent(agent, evidence.control, policy)?;
    let mut facts = request_facts(request, request.action.as_str(), now, evidence.label);
    facts.push(Predicate::new("user", [Term::str(user.issuer()), Term::str(user.subject())]));
    facts.push(text("user_kind", user.kind().as_str()));
    facts.push(text("tenant", request.environment.tenant.as_str()));
    facts.push(text("caller", agent.as_str()));
    facts.push(text("task_kind", kind.as_str()));
    facts.extend(roles.iter().map(|role| text("role", role.as_str())));
    facts.extend_from_slice(&policy.inventory_facts);
    let mut world = World::run(None, &facts, &policy.program).map_err(Reason::from)?;

    let mut reasons = Vec::new();
    let may_run = world.facts("may_run", 2).map_err(Reason::from)?;
    let wanted = [Term::str(agent.as_str()), Term::str(kind.as_str())];
    if !may_run.iter().any(|tuple| tuple.as_slice() == wanted) {
        reasons.push(
            Reason::new(ReasonCode::GrantNotAllowed)
                .told(format_args!("`{agent}` may not do `{kind}` for this user"))
                .noted(format_args!("roles: {}", joined(roles.iter().map(crate::ids::RoleId::as_str)))),
        );
    }
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    let bounds = grant_bounds(&mut world).map_err(Reason::from)?;
    if let Some(asked) = asked_rights(&request.arguments)? {
        let beyond: BTreeSet<&Right> = asked.difference(&bounds.rights).collect();
        if !beyond.is_empty() {
            reasons.push(Reason::new(ReasonCode::DelegationWidening).told(format_args!(
                "not within the grant: {}",
                joined(beyond.iter().map(ToString::to_string))
            )));
        }
    }
    conclude(reasons, rules, vec![Obligation::GrantWithin(bounds)])
}

fn decide_admin(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<Allowed, Refused> {
    let Principal::Operator(operator) = &request.principal else {
        return Err(ReasonCode::AdminForbidden.into());
    };
    evidence.control.check_readable()?;
    let mut facts = request_facts(request, "admin", now, evidence.label);
    facts.push(text("tenant", request.environment.tenant.as_str()));
    facts.push(text("operator", operator.as_str()));
    facts.extend_from_slice(&policy.inventory_facts);
    let mut world = World::run(None, &facts, &policy.program).map_err(Reason::from)?;
    let mut reasons = Vec::new();
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    conclude(reasons, rules, Vec::new())
}

fn conclude(
    reasons: Vec<Reason>,
    rules: Vec<String>,
    obligations: Vec<Obligation>,
) -> Result<Allowed, Refused> {
    if reasons.is_empty() { Ok(Allowed { obligations, rules }) } else { Err(Refused { reasons, rules }) }
}

/// The call, the capability and the connection must speak of the same tenant, task and agent.
fn check_binding(
    capability: &Capability,
    tenant: &TenantId,
    task: Option<&TaskId>,
    caller: &AgentId,
) -> Result<(), Reason> {
    let grant = capability.grant();
    if grant.tenant != *tenant {
        return Err(ReasonCode::TenantMismatch.into());
    }
    if Some(&grant.task) != task && !crate::red::off("T23") {
        return Err(ReasonCode::TaskMismatch.into());
    }
    if capability.chain().caller() != caller {
        return Err(Reason::new(ReasonCode::AgentMismatch)
            .told(format_args!("the capability was handed to `{}`", capability.chain().caller())));
    }
    Ok(())
}

/// Expiry of the grant and of every plain bound on time; also done again right before acting.
///
/// # Errors
/// `token.expired`.
pub fn check_expiry(capability: &Capability, now: Timestamp) -> Result<(), Reason> {
    let expires = capability.expires();
    if now >= expires && !crate::red::off("T12") {
        return Err(Reason::new(ReasonCode::TokenExpired).told(format_args!("it ended at {expires}")));
    }
    Ok(())
}

fn check_agents(capability: &Capability, control: &ControlState, policy: &PolicySet) -> Result<(), Reason> {
    for (agent, _) in capability.chain().holders() {
        check_registered(agent, policy)?;
    }
    control.check_keys(capability)
}

fn check_agent(agent: &AgentId, control: &ControlState, policy: &PolicySet) -> Result<(), Reason> {
    check_registered(agent, policy)?;
    if control.is_quarantined(agent) {
        return Err(Reason::new(ReasonCode::AgentQuarantined).told(format_args!("agent `{agent}`")));
    }
    Ok(())
}

fn check_registered(agent: &AgentId, policy: &PolicySet) -> Result<(), Reason> {
    if policy.inventory.agents.contains_key(agent) {
        return Ok(());
    }
    Err(Reason::new(ReasonCode::AgentUnknown).told(format_args!("agent `{agent}`")))
}

/// The right must have been granted and must have survived every narrowing on the way.
fn check_right(capability: &Capability, right: &Right) -> Result<(), Reason> {
    if capability.rights().contains(right) || crate::red::off("T11") {
        return Ok(());
    }
    if !capability.grant().rights.contains(right) {
        return Err(Reason::new(ReasonCode::RightMissing).told(format_args!("`{right}` was not granted")));
    }
    let chain = capability.chain();
    let given_up_by = chain.links().iter().find_map(|link| match link {
        crate::capability::Link::Delegated(hop) if hop.gave_up.contains(right) => {
            Some(format!("`{}` kept it back when delegating to `{}`", hop.from, hop.to))
        }
        crate::capability::Link::Narrowed(narrowed) if narrowed.gave_up.contains(right) => {
            Some(format!("`{}` gave it up", narrowed.by))
        }
        _ => None,
    });
    let given_up_by = given_up_by.unwrap_or_else(|| "a bound of the grant excludes it".to_owned());
    Err(Reason::new(ReasonCode::DelegationWidening).told(format_args!("`{right}`: {given_up_by}")))
}

type Facts = Vec<Predicate>;

fn check_tool(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
) -> Result<(Facts, Facts), Refused> {
    let unknown = || Reason::new(ReasonCode::ToolUnknown).told(format_args!("`{}`", request.right()));
    let contract: &ToolContract = policy.contract(&request.resource).ok_or_else(unknown)?;
    let action: &ActionContract = contract.action(&request.action).ok_or_else(unknown)?;
    let arguments = request.arguments.value();
    action.check(arguments)?;
    let gate_facts = match evidence.gate {
        Some(gate) => gate.admit(&request.action, arguments)?,
        None => Vec::new(),
    };
    let mut facts = action.argument_facts(arguments);
    facts.push(text("effect", action.effect.as_str()));
    Ok((facts, gate_facts))
}

/// Arguments of `agent.<name>:invoke`: the input for the agent, and the id of the chain handed over with it.
pub const AGENT_INPUT: &str = "input";
/// See [`AGENT_INPUT`].
pub const AGENT_HANDOVER: &str = "handover";

fn check_agent_call(
    request: &Request,
    capability: &Capability,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
) -> Result<(Facts, Facts), Refused> {
    if request.action.as_str() != "invoke" {
        return Err(Reason::new(ReasonCode::ToolUnknown)
            .told(format_args!("agents have one action, `invoke`, not `{}`", request.action))
            .into());
    }
    let Value::Object(members) = request.arguments.value() else {
        return Err(Reason::new(ReasonCode::ArgInvalid).told("the arguments must be an object").into());
    };
    if let Some(extra) = members.keys().find(|key| ![AGENT_INPUT, AGENT_HANDOVER].contains(&key.as_str())) {
        return Err(Reason::new(ReasonCode::ArgUnknown).told(format_args!("`/{extra}`")).into());
    }
    let named = handover_of(&request.arguments)?;
    let handover = evidence
        .handover
        .ok_or_else(|| Reason::new(ReasonCode::ArgMissing).told("no chain is handed over"))?;
    check_handover(request, capability, handover, named)?;
    evidence.control.check_revocation(handover)?;
    check_agents(handover, evidence.control, policy)?;
    let mut facts = Vec::new();
    request.arguments.value().for_each_leaf(&mut |path, leaf| {
        let value = match leaf {
            Value::String(text) => Term::str(text.as_str()),
            Value::Bool(value) => Term::Bool(*value),
            Value::Number(number) => {
                number.as_i64().map_or_else(|| Term::str(number.as_str()), Term::Integer)
            }
            _ => return,
        };
        facts.push(Predicate::new("arg", [Term::str(path), value]));
    });
    // A rule that looks at one argument must not be blind to it because there are so many.
    if facts.len() > crate::contract::ARGUMENT_LEAVES_MAX {
        return Err(Reason::new(ReasonCode::ArgInvalid)
            .told(format_args!("more than {} values", crate::contract::ARGUMENT_LEAVES_MAX))
            .into());
    }
    facts.push(text("effect", "internal"));
    Ok((facts, Vec::new()))
}

/// The chain id an agent call names as handed over.
///
/// # Errors
/// `arg.missing` or `arg.invalid`.
pub fn handover_of(arguments: &Arguments) -> Result<Digest, Reason> {
    let named = arguments.value().get(AGENT_HANDOVER).and_then(Value::as_str);
    let named = named.ok_or_else(|| Reason::new(ReasonCode::ArgMissing).told("`/handover`"))?;
    Digest::parse(named)
        .map_err(|fault| Reason::new(ReasonCode::ArgInvalid).told(format_args!("`/handover` {fault}")))
}

/// What is handed over must be this capability, delegated once more, to the agent that is called.
fn check_handover(
    request: &Request,
    capability: &Capability,
    handover: &Capability,
    named: Digest,
) -> Result<(), Reason> {
    if handover.grant().user != capability.grant().user && !crate::red::off("T24") {
        return Err(ReasonCode::UserMismatch.into());
    }
    let extends = handover.chain_ids().starts_with(capability.chain_ids())
        && handover.chain().depth() == capability.chain().depth() + 1;
    if handover.chain_id() != named || !extends {
        return Err(Reason::new(ReasonCode::DelegationSignature)
            .told("the chain handed over is not the caller's own, delegated once more"));
    }
    if handover.chain().caller().as_str() != request.resource.name() {
        return Err(Reason::new(ReasonCode::AgentMismatch)
            .told(format_args!("the chain is handed to `{}`", handover.chain().caller())));
    }
    Ok(())
}

fn text(name: &str, value: &str) -> Predicate {
    Predicate::new(name, [Term::str(value)])
}

fn integer(value: usize) -> Term {
    Term::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

fn joined<T: AsRef<str>>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.as_ref().to_owned()).collect::<Vec<_>>().join(", ")
}

/// The facts that describe any request. There is exactly one `time`: with two, an expired check passes.
fn request_facts(request: &Request, kind: &str, now: Timestamp, label: &Label) -> Vec<Predicate> {
    let mut facts = vec![
        text("request", kind),
        text("resource", request.resource.as_str()),
        text("action", request.action.as_str()),
        Predicate::new("time", [Term::Date(now.as_secs())]),
        Predicate::new("hour", [Term::Integer(now.hour().cast_signed())]),
        Predicate::new("weekday", [Term::Integer(now.weekday().cast_signed())]),
        text("integrity", label.integrity.as_str()),
    ];
    if crate::red::off("T14") {
        facts.push(Predicate::new("time", [Term::Date(0)]));
    }
    if crate::red::off("T13") {
        facts.retain(|fact| fact.name != "time");
    }
    facts.extend(label.names().into_iter().map(|tag| text("label", tag)));
    facts
}

/// Every deny rule that fires is a reason; without one, some allow rule has to fire.
fn apply_rules(
    world: &mut World,
    policy: &PolicySet,
    reasons: &mut Vec<Reason>,
) -> Result<Vec<String>, Refused> {
    let denied = fired(world, policy, Effect::Deny)?;
    let allowed = fired(world, policy, Effect::Allow)?;
    reasons.extend(denied.iter().map(|rule| {
        let reason =
            Reason::new(ReasonCode::PolicyDenied).noted(format_args!("{}: {}", rule.place(), rule.text));
        match &rule.message {
            Some(message) => reason.told(message),
            None => reason,
        }
    }));
    if denied.is_empty() && allowed.is_empty() && reasons.is_empty() {
        reasons.push(ReasonCode::PolicyNoMatch.into());
    }
    let deciding = if denied.is_empty() { allowed } else { denied };
    Ok(deciding.into_iter().map(RuleInfo::place).collect())
}

fn fired<'a>(world: &mut World, policy: &'a PolicySet, effect: Effect) -> Result<Vec<&'a RuleInfo>, Refused> {
    if !policy.rules.iter().any(|rule| rule.effect == effect) {
        return Ok(Vec::new());
    }
    let name = match effect {
        Effect::Allow => crate::policy::ALLOW,
        Effect::Deny => crate::policy::DENY,
    };
    let positions = world.facts(name, 1).map_err(Reason::from)?;
    Ok(positions
        .iter()
        .filter_map(|tuple| match tuple.as_slice() {
            [Term::Integer(position)] => policy.rules.get(usize::try_from(*position).ok()?),
            _ => None,
        })
        .collect())
}

fn grant_bounds(world: &mut World) -> Result<GrantBounds, crate::capability::engine::EngineFault> {
    let mut least = |name: &str| -> Result<Option<u64>, crate::capability::engine::EngineFault> {
        let values = world.facts(name, 1)?;
        Ok(values
            .iter()
            .filter_map(|tuple| match tuple.as_slice() {
                [Term::Integer(value)] => u64::try_from(*value).ok(),
                _ => None,
            })
            .min())
    };
    let max_depth = least("depth_limit")?.unwrap_or(0);
    let task_life = least("task_seconds")?.map_or(TASK_LIFE, Millis::from_secs);
    let capability_life = least("capability_seconds")?.map_or(CAPABILITY_LIFE, Millis::from_secs);
    let rights = world
        .facts("grant", 2)?
        .iter()
        .filter_map(|tuple| match tuple.as_slice() {
            // A derived right outside the grammar can never be used; leaving it out grants nothing.
            [Term::Str(resource), Term::Str(action)] => Some(Right {
                resource: Resource::parse(resource.as_str()).ok()?,
                action: Action::parse(action.as_str()).ok()?,
            }),
            _ => None,
        })
        .collect();
    Ok(GrantBounds {
        rights,
        max_depth: u8::try_from(max_depth).unwrap_or(u8::MAX),
        task_life,
        capability_life,
    })
}

/// The rights an issue request asks for by name; `None` if it takes what policy grants.
fn asked_rights(arguments: &Arguments) -> Result<Option<BTreeSet<Right>>, Reason> {
    let Some(asked) = arguments.value().get("rights") else { return Ok(None) };
    let Value::Array(items) = asked else {
        return Err(Reason::new(ReasonCode::ArgInvalid).told("`/rights` must be a list"));
    };
    items
        .iter()
        .map(|item| {
            let text = item.as_str().unwrap_or_default();
            Right::parse(text).map_err(|error| Reason::new(ReasonCode::IdSyntax).told(error))
        })
        .collect::<Result<BTreeSet<_>, _>>()
        .map(Some)
}

fn carrier_of(capability: &Capability, block: usize) -> String {
    let link = block.checked_sub(1).and_then(|index| capability.chain().links().get(index));
    match link {
        None => "the broker".to_owned(),
        Some(crate::capability::Link::Delegated(hop)) => format!("`{}`", hop.from),
        Some(crate::capability::Link::Narrowed(narrowed)) => format!("`{}`", narrowed.by),
    }
}

/// Every delegation policy allows between agents, whatever the request: what keys a broker hands out.
///
/// # Errors
/// The engine's reason, if it could not say.
pub fn delegations(policy: &PolicySet) -> Result<BTreeSet<(AgentId, AgentId)>, Reason> {
    let mut world = World::run(None, &policy.inventory_facts, &policy.program)?;
    let pairs = world.facts("may_delegate", 2)?;
    Ok(pairs
        .iter()
        .filter_map(|tuple| match tuple.as_slice() {
            [Term::Str(from), Term::Str(to)] => {
                Some((AgentId::parse(from.as_str()).ok()?, AgentId::parse(to.as_str()).ok()?))
            }
            _ => None,
        })
        .collect())
}

/// Names the policy a process without one would have used: none.
#[must_use]
pub fn without_policy() -> Verdict {
    Verdict::deny(ReasonCode::PolicyUnavailable, None::<PolicyRevision>)
}
