//! The decision: one pure function, the same in broker and node.
//!
//! The order is from cheap to dear and from general to particular: is the capability for this tenant, task,
//! agent and time; is everybody in it enrolled and nobody revoked; does it hold the right; do the arguments fit
//! the contract and the tool's own gate; and only then Datalog, once, for the capability's checks, the chain's
//! delegations and the operator's rules. Nothing here reads a clock, a file or a socket.

mod ask;
mod flow;
mod inspected;

use std::collections::{BTreeMap, BTreeSet};

use flow::{Flow, Judged};
pub use flow::{FlowEvidence, UNTRUSTED};
pub use inspected::{ResultJudgement, judge_result, passes_checks};

use crate::{
    approval::{self, APPROVERS_MAX, ApprovalTerms, Need},
    budget::{Charge, Charges},
    capability::{Capability, Pins, Right, engine::World},
    contract::{ActionContract, ToolContract},
    control::ControlState,
    datalog::{Predicate, Term},
    digest::Digest,
    flow::FlowVerdict,
    ids::{Action, AgentId, BudgetId, Resource, ResourceKind, RoleId, TaskId, TenantId},
    json::Value,
    label::Label,
    mcp::UpstreamTool,
    policy::{Effect, PolicyRevision, PolicySet, RuleInfo},
    reason::{Advice, Reason, ReasonCode},
    request::{Arguments, Principal, Request},
    time::{Millis, Timestamp},
    verdict::{GrantBounds, Obligation, Verdict},
};

pub use ask::{ASK, EXTRA_LIFE_MAX, ask_arguments, bound_values};

/// A tool's own check of its arguments, pure: it may refuse, and it may state facts for the policy.
pub trait Gate {
    /// Looks at arguments that fit the contract.
    ///
    /// # Errors
    /// The tool's reason to refuse them.
    fn admit(&self, action: &Action, arguments: &Value) -> Result<Vec<Predicate>, Reason>;

    /// Compares the tool of an MCP server that the contract names with what is there now. A tool that is no MCP
    /// server's stands behind no contract that names one.
    ///
    /// # Errors
    /// `tool.digest_changed`, `tool.ambiguous`, `tool.unavailable` or `tool.unknown`.
    fn pinned(&self, tool: Option<&UpstreamTool>) -> Result<(), Reason> {
        tool.map_or(Ok(()), |tool| {
            Err(Reason::new(ReasonCode::ToolUnknown)
                .told(format_args!("no MCP server is behind this resource that could have `{}`", tool.name)))
        })
    }
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
    /// What else is known of the flow of data.
    pub flow: FlowEvidence<'a>,
}

impl<'a> Evidence<'a> {
    /// What is known of a request that no capability is made with: control state and a label.
    #[must_use]
    pub fn new(control: &'a ControlState, label: &'a Label) -> Self {
        Self { capability: None, control, gate: None, handover: None, label, flow: FlowEvidence::default() }
    }
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
        Principal::User { .. } if request.action.as_str() == ASK => {
            ask::decide(request, evidence, policy, now)
        }
        Principal::User { .. } => decide_issue(request, evidence, policy, now),
        Principal::Operator(_) => decide_admin(request, evidence, policy, now),
    };
    match answer {
        Ok(allowed) => {
            Verdict::allowed(request, evidence.capability, allowed.obligations, allowed.rules, revision)
                .observed(allowed.would_deny)
                .flowing(allowed.flow)
                .on(policy.contract(&request.resource).and_then(|contract| contract.action(&request.action)))
        }
        Err(refused) => Verdict::denied(refused.reasons, refused.rules, revision).flowing(*refused.flow),
    }
}

struct Allowed {
    flow: FlowVerdict,
    obligations: Vec<Obligation>,
    would_deny: Vec<Reason>,
    rules: Vec<String>,
}

struct Refused {
    flow: Box<FlowVerdict>,
    reasons: Vec<Reason>,
    rules: Vec<String>,
}

impl<R: Into<Reason>> From<R> for Refused {
    fn from(reason: R) -> Self {
        Self { flow: Box::default(), reasons: vec![reason.into()], rules: Vec::new() }
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
    let observed = policy.observed_in(&request.resource, caller, now);
    let right_missing = match check_right(capability, &request.right()) {
        Err(reason) if reason.code() == ReasonCode::RightMissing && !observed.is_empty() => Some(reason),
        Err(reason) if reason.code() == ReasonCode::RightMissing => {
            return Err(tell_who_grants(reason, request, evidence, policy, now).into());
        }
        checked => {
            checked?;
            None
        }
    };
    if evidence.handover.is_some()
        && request.resource.kind() != ResourceKind::Agent
        && !crate::red::off("D01")
    {
        return Err(Reason::new(ReasonCode::ArgUnknown)
            .told("only a call on an agent hands a chain over")
            .into());
    }
    let described = call_facts(request, capability, evidence, policy, now);
    let (facts, flow) = match (described, &right_missing) {
        // Whoever has no right learns nothing of the arguments, observed or not.
        (Err(_), Some(reason)) => return Err(reason.clone().into()),
        (described, _) => described?,
    };
    let mut world = World::run(Some(capability), &facts.joined(), &policy.program).map_err(Reason::from)?;

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
        reasons.extend(hops.into_iter().filter_map(|hop| {
            let pair = [Term::str(hop.from.as_str()), Term::str(hop.to.as_str())];
            let refused = !world.has("may_delegate", &pair);
            refused.then(|| {
                Reason::new(ReasonCode::DelegationNotAllowed)
                    .told(format_args!("`{}` may not delegate to `{}`", hop.from, hop.to))
            })
        }));
    }
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    reasons.splice(0..0, right_missing);
    let Judged { verdict: flows, reasons: against, vouching } =
        flow.judge(request, evidence, policy, &mut world, now)?;
    reasons.extend(against);
    let mut would_deny = Vec::new();
    if is_of_rules(&reasons) && may_be_observed(&mut world, &observed)? {
        would_deny = std::mem::take(&mut reasons);
    }
    // Whatever is observed: who has to be asked is asked, and what it costs is charged.
    let mut obligations = Vec::new();
    if reasons.is_empty() {
        obligations.extend(approval_terms(&mut world, &vouching)?.map(Obligation::Approval));
        let acts = flows.acts.clone();
        obligations.extend((!acts.is_empty()).then_some(Obligation::Acts(acts)));
        obligations.extend(charges(&mut world)?.map(Obligation::Budget));
    }
    match conclude(reasons, rules, obligations) {
        Ok(allowed) => Ok(Allowed { would_deny, flow: flows, ..allowed }),
        Err(refused) => Err(Refused { flow: Box::new(flows), ..refused }),
    }
}

/// Adds to a missing right who could grant it, where the policy lets that be told. Nothing is decided by it.
fn tell_who_grants(
    reason: Reason,
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Reason {
    let facts = ambient_facts(request, now, evidence.label);
    let Ok(mut world) = World::run(evidence.capability, &facts, &policy.program) else { return reason };
    let (wanted, action) = (Term::str(request.resource.as_str()), Term::str(request.action.as_str()));
    let who: BTreeSet<String> = world
        .facts("grantable", 3)
        .unwrap_or_default()
        .iter()
        .filter_map(|tuple| match tuple.as_slice() {
            [resource, asked, Term::Str(by)] if *resource == wanted && *asked == action => {
                Some(by.as_str().to_owned())
            }
            _ => None,
        })
        .collect();
    let approval = ask::needs(&mut world, &request.right()).unwrap_or_default();
    if who.is_empty() && approval.is_empty() {
        return reason;
    }
    reason.advised(Advice { granted_by: who.into_iter().collect(), approval })
}

/// Whether what is called or who calls is in observe mode, and the policy lets it be observed.
fn may_be_observed(world: &mut World, observed: &[Resource]) -> Result<bool, Refused> {
    if observed.is_empty() {
        return Ok(false);
    }
    let permitted = world.facts("may_observe", 1).map_err(Reason::from)?;
    let is_permitted = |resource: &Resource| {
        permitted.iter().any(|tuple| tuple.as_slice() == [Term::str(resource.as_str())])
    };
    Ok(observed.iter().any(is_permitted))
}

/// Whether nothing but rules, and what contracts and the inventory say of flow, stands against a call.
fn is_of_rules(reasons: &[Reason]) -> bool {
    use ReasonCode::{
        DeclassDigest, DeclassUnauthorised, FlowClearance, FlowIntegrity, FlowSink, PolicyDenied,
        PolicyNoMatch, RightMissing,
    };
    let is_of_rules = |reason: &Reason| {
        let code = reason.code();
        matches!(
            code,
            DeclassDigest
                | DeclassUnauthorised
                | FlowClearance
                | FlowIntegrity
                | FlowSink
                | PolicyDenied
                | PolicyNoMatch
                | RightMissing
        )
    };
    !reasons.is_empty() && reasons.iter().all(is_of_rules)
}

fn decide_issue(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<Allowed, Refused> {
    let Principal::User { roles, agent, .. } = &request.principal else {
        return Err(ReasonCode::AdminForbidden.into());
    };
    let kind = request.environment.task_kind.as_ref().ok_or(ReasonCode::GrantNotAllowed)?;
    evidence.control.check_readable()?;
    if evidence.control.is_halted() {
        return Err(ReasonCode::HaltAll.into());
    }
    check_agent(agent, evidence.control, policy)?;
    let facts = RequestFacts::ambient(ambient_facts(request, now, evidence.label)).joined();
    let mut world = World::run(None, &facts, &policy.program).map_err(Reason::from)?;

    let mut reasons = Vec::new();
    let may_run = world.facts("may_run", 2).map_err(Reason::from)?;
    let wanted = [Term::str(agent.as_str()), Term::str(kind.as_str())];
    if !may_run.iter().any(|tuple| tuple.as_slice() == wanted) {
        reasons.push(
            Reason::new(ReasonCode::GrantNotAllowed)
                .told(format_args!("`{agent}` may not do `{kind}` for this user"))
                .noted(format_args!("roles: {}", joined(roles.iter().map(RoleId::as_str)))),
        );
    }
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    let bounds = grant_bounds(&mut world)?;
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
    evidence.control.check_readable()?;
    let facts = RequestFacts::ambient(ambient_facts(request, now, evidence.label)).joined();
    let mut world = World::run(None, &facts, &policy.program).map_err(Reason::from)?;
    let mut reasons = Vec::new();
    let rules = apply_rules(&mut world, policy, &mut reasons)?;
    conclude(reasons, rules, Vec::new())
}

/// The facts a request is decided on, by where they come from; those of the capability's authority block are the
/// engine's to read.
pub(crate) struct RequestFacts {
    /// What the verifier says of the request.
    pub(crate) ambient: Facts,
    /// Arguments and effect, by the contract.
    pub(crate) contract: Facts,
    /// What the tool's own gate states.
    pub(crate) gate: Facts,
}

impl RequestFacts {
    fn ambient(ambient: Facts) -> Self {
        Self { ambient, contract: Vec::new(), gate: Vec::new() }
    }

    fn joined(self) -> Facts {
        let mut facts = self.ambient;
        facts.extend(self.contract);
        facts.extend(self.gate);
        facts
    }
}

/// The facts [`decide`] hands to the engine for this request; nothing is decided.
///
/// # Errors
/// The reasons for which it would be refused before any rule is asked.
pub(crate) fn facts_of(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<RequestFacts, Vec<Reason>> {
    let facts = match &request.principal {
        Principal::Agent(_) => match evidence.capability {
            Some(capability) => {
                call_facts(request, capability, evidence, policy, now).map(|(facts, _)| facts)
            }
            None => Err(ReasonCode::TokenMissing.into()),
        },
        Principal::User { .. } | Principal::Operator(_) => {
            Ok(RequestFacts::ambient(ambient_facts(request, now, evidence.label)))
        }
    };
    facts.map_err(|refused| refused.reasons)
}

/// The facts of any request that need no capability: who asks, for what, when, with which label.
pub(crate) fn ambient_facts(request: &Request, now: Timestamp, label: &Label) -> Facts {
    let kind = match &request.principal {
        Principal::Agent(_) => "call",
        Principal::User { .. } => request.action.as_str(),
        Principal::Operator(_) => "admin",
    };
    let mut facts = request_facts(request, kind, now, label);
    match &request.principal {
        Principal::Agent(caller) => facts.push(text("caller", caller.as_str())),
        Principal::User { user, roles, agent } => {
            facts.push(Predicate::new("user", [Term::str(user.issuer()), Term::str(user.subject())]));
            facts.push(text("user_kind", user.kind().as_str()));
            facts.push(text("tenant", request.environment.tenant.as_str()));
            facts.push(text("caller", agent.as_str()));
            facts.extend(request.environment.task_kind.iter().map(|kind| text("task_kind", kind.as_str())));
            facts.extend(roles.iter().map(|role| text("role", role.as_str())));
            facts.extend(ask::asked_fact(request));
        }
        Principal::Operator(operator) => {
            facts.push(text("tenant", request.environment.tenant.as_str()));
            facts.push(text("operator", operator.as_str()));
        }
    }
    facts
}

/// The facts of arguments: for a tool by its contract, which they must fit, for an agent as they are.
///
/// # Errors
/// A [`Reason`] of the `arg.*` group, or `tool.unknown`.
pub(crate) fn argument_facts(
    request: &Request,
    arguments: &Arguments,
    policy: &PolicySet,
) -> Result<Facts, Reason> {
    if request.resource.kind() == ResourceKind::Agent {
        return Ok(input_facts(arguments.value()));
    }
    let contract = policy.contract(&request.resource);
    let action = contract.and_then(|contract| contract.action(&request.action));
    let action = action.ok_or(ReasonCode::ToolUnknown)?;
    action.check(arguments.value())?;
    Ok(action.argument_facts(arguments.value()))
}

fn call_facts(
    request: &Request,
    capability: &Capability,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Result<(RequestFacts, Flow), Refused> {
    let (mut contract, gate, flow) = match request.resource.kind() {
        ResourceKind::Tool => check_tool(request, evidence, policy)?,
        ResourceKind::Agent => check_agent_call(request, capability, evidence, policy)?,
        ResourceKind::Node | ResourceKind::Policy | ResourceKind::Task => {
            return Err(ReasonCode::ToolUnknown.into());
        }
    };
    let mut ambient = ambient_facts(request, now, evidence.label);
    let (guarded, looked_for) = flow.facts();
    contract.extend(guarded);
    ambient.extend(looked_for);
    ambient.extend_from_slice(evidence.flow.findings);
    ambient.push(text("user_kind", capability.grant().user.kind().as_str()));
    ambient.push(Predicate::new("depth", [integer(capability.chain().depth())]));
    ambient.extend(capability.chain().hops().map(|hop| {
        Predicate::new(
            "hop",
            [integer(usize::from(hop.depth)), Term::str(hop.from.as_str()), Term::str(hop.to.as_str())],
        )
    }));
    Ok((RequestFacts { ambient, contract, gate }, flow))
}

fn conclude(
    reasons: Vec<Reason>,
    rules: Vec<String>,
    obligations: Vec<Obligation>,
) -> Result<Allowed, Refused> {
    if reasons.is_empty() {
        Ok(Allowed { flow: FlowVerdict::default(), obligations, rules, would_deny: Vec::new() })
    } else {
        Err(Refused { flow: Box::default(), reasons, rules })
    }
}

/// The call, the capability and the connection must speak of the same tenant, task and agent.
fn check_binding(
    capability: &Capability,
    tenant: &TenantId,
    task: Option<&TaskId>,
    caller: &AgentId,
) -> Result<(), Reason> {
    let grant = capability.grant();
    if grant.tenant != *tenant && !crate::red::off("D06") {
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
) -> Result<(Facts, Facts, Flow), Refused> {
    let unknown = || Reason::new(ReasonCode::ToolUnknown).told(format_args!("`{}`", request.right()));
    let contract: &ToolContract = policy.contract(&request.resource).ok_or_else(unknown)?;
    let action: &ActionContract = contract.action(&request.action).ok_or_else(unknown)?;
    // A tool that is not what was accepted is out of use, whatever it is asked.
    if let Some(gate) = evidence.gate
        && !crate::red::off("M01")
    {
        gate.pinned(action.mcp.as_ref())?;
    }
    let arguments = request.arguments.value();
    action.check(arguments)?;
    let gate_facts = match evidence.gate {
        Some(gate) => gate.admit(&request.action, arguments)?,
        None => Vec::new(),
    };
    let mut facts = action.argument_facts(arguments);
    facts.push(text("effect", action.effect.as_str()));
    let Principal::Agent(caller) = &request.principal else { return Err(unknown().into()) };
    let (right, arguments) = (request.right(), &request.arguments);
    let flow = Flow::of_tool(&action.flow, &right, caller, arguments, &gate_facts, evidence, policy)?;
    Ok((facts, gate_facts, flow))
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
) -> Result<(Facts, Facts, Flow), Refused> {
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
    let mut facts = input_facts(request.arguments.value());
    // A rule that looks at one argument must not be blind to it because there are so many.
    if facts.len() > crate::contract::ARGUMENT_LEAVES_MAX {
        return Err(Reason::new(ReasonCode::ArgInvalid)
            .told(format_args!("more than {} values", crate::contract::ARGUMENT_LEAVES_MAX))
            .into());
    }
    facts.push(text("effect", "internal"));
    let flow = Flow::of_agent(capability.chain().caller(), handover.chain().caller(), evidence, policy);
    Ok((facts, Vec::new(), flow))
}

/// What an agent is told, as facts.
fn input_facts(arguments: &Value) -> Facts {
    let mut facts = Vec::new();
    arguments.for_each_leaf(&mut |path, leaf| {
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
    facts
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
    ];
    if crate::red::off("T14") {
        facts.push(Predicate::new("time", [Term::Date(0)]));
    }
    if crate::red::off("T13") {
        facts.retain(|fact| fact.name != "time");
    }
    facts.extend(flow::label_facts(label));
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
    if denied.is_empty() && allowed.is_empty() && reasons.is_empty() && !crate::red::off("P15") {
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

/// Whose approval the policy asks for; `None` if nobody's.
fn approval_terms(world: &mut World, vouching: &[Vec<Term>]) -> Result<Option<ApprovalTerms>, Reason> {
    let derived = world.facts("needs_approval", 2)?;
    let derived = derived.iter().chain(vouching).filter_map(|tuple| match tuple.as_slice() {
        [name, count] => Some((name, count)),
        _ => None,
    });
    let needs = approval_needs(derived)?;
    if needs.is_empty() || crate::red::off("A14") {
        return Ok(None);
    }
    terms_of(world, needs).map(Some)
}

fn unmet(what: impl std::fmt::Display) -> Reason {
    Reason::new(ReasonCode::ApprovalUnavailable).told(what)
}

fn role_of(term: &Term) -> Result<RoleId, Reason> {
    match term {
        Term::Str(name) => RoleId::parse(name.as_str()).map_err(unmet),
        _ => Err(unmet("a role is a text")),
    }
}

/// Roles with numbers of people, as rules derived them; of each role the largest number counts.
fn approval_needs<'t>(derived: impl Iterator<Item = (&'t Term, &'t Term)>) -> Result<Vec<Need>, Reason> {
    let mut needs: BTreeMap<RoleId, u8> = BTreeMap::new();
    for (name, count) in derived {
        let role = role_of(name)?;
        // A number nobody can reach must not turn into one that is reached.
        let count = match count {
            Term::Integer(count) => u8::try_from(*count).ok().filter(|n| (1..=APPROVERS_MAX).contains(n)),
            _ => None,
        };
        let count = count.ok_or_else(|| {
            unmet(format_args!(
                "policy asks for a number of approvals by `{role}` outside 1 to {APPROVERS_MAX}"
            ))
        })?;
        let most = needs.entry(role).or_default();
        *most = count.max(*most);
    }
    Ok(needs.into_iter().map(|(role, count)| Need { role, count }).collect())
}

/// The terms of an approval, with what policy says besides about who and how long.
fn terms_of(world: &mut World, needs: Vec<Need>) -> Result<ApprovalTerms, Reason> {
    let own = world.facts("own_approval", 1)?;
    let own = own.iter().filter_map(|tuple| tuple.first()).map(role_of).collect::<Result<_, _>>()?;
    let open = world.facts("approval_seconds", 1)?;
    // Below zero is no time at all, and not the usual one.
    if open.iter().any(|tuple| matches!(tuple.as_slice(), [Term::Integer(seconds)] if *seconds < 0)) {
        return Err(unmet("policy derives a negative `approval_seconds`"));
    }
    let life = least(world, "approval_seconds")?.map_or(approval::LIFE, Millis::from_secs);
    Ok(ApprovalTerms { needs, own, life: life.min(approval::LIFE_MAX) })
}

/// What the call takes out of budgets of its task; `None` if nothing.
fn charges(world: &mut World) -> Result<Option<Charges>, Reason> {
    let unusable = |what: String| Reason::new(ReasonCode::BudgetUnavailable).told(what);
    let mut charges = Charges::new();
    let of = |world: &mut World, name| -> Result<Vec<Vec<Term>>, Reason> { Ok(world.facts(name, 3)?) };
    let (fixed, rows) = (of(world, "budget")?, of(world, "budget_rows")?);
    for (tuple, is_rows) in
        fixed.iter().map(|tuple| (tuple, false)).chain(rows.iter().map(|tuple| (tuple, true)))
    {
        let [name, limit, amount] = tuple.as_slice() else { continue };
        let Term::Str(name) = name else { return Err(unusable("the name of a budget is a text".to_owned())) };
        let budget = BudgetId::parse(name.as_str()).map_err(|error| unusable(error.to_string()))?;
        let number = |term: &Term, what: &str| {
            match term {
                Term::Integer(number) => u64::try_from(*number).ok(),
                _ => None,
            }
            .ok_or_else(|| unusable(format!("the {what} of `{budget}` is no number from 0 on")))
        };
        let (limit, amount) = (number(limit, "limit")?, number(amount, "amount")?);
        let charge = charges.entry(budget.clone()).or_insert(Charge { limit, amount: 0, rows: None });
        // Of several limits the least counts, and of several bounds on rows; of several amounts all.
        charge.limit = charge.limit.min(limit);
        match (is_rows, charge.rows) {
            (true, rows) => charge.rows = Some(rows.unwrap_or(u64::MAX).min(amount)),
            (false, _) => charge.amount = charge.amount.saturating_add(amount),
        }
    }
    for charge in charges.values_mut() {
        charge.amount = charge.amount.saturating_add(charge.rows.unwrap_or(0));
    }
    Ok((!charges.is_empty() && !crate::red::off("A15")).then_some(charges))
}

/// The least number derived for a predicate of one term.
fn least(world: &mut World, name: &str) -> Result<Option<u64>, Reason> {
    let values = world.facts(name, 1)?;
    Ok(values
        .iter()
        .filter_map(|tuple| match tuple.as_slice() {
            [Term::Integer(value)] => u64::try_from(*value).ok(),
            _ => None,
        })
        .min())
}

fn grant_bounds(world: &mut World) -> Result<GrantBounds, Reason> {
    let max_depth = least(world, "depth_limit")?.unwrap_or(0);
    let task_life = least(world, "task_seconds")?.map_or(TASK_LIFE, Millis::from_secs);
    let capability_life = least(world, "capability_seconds")?.map_or(CAPABILITY_LIFE, Millis::from_secs);
    let mut rights: BTreeSet<Right> = world
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
    let pins = pins(world, &mut rights)?;
    Ok(GrantBounds {
        rights,
        pins,
        max_depth: u8::try_from(max_depth).unwrap_or(u8::MAX),
        task_life,
        capability_life,
    })
}

/// The calls that rights are for. A right with a pin that means nothing is not granted: without it the right would be for
/// every call.
fn pins(world: &mut World, rights: &mut BTreeSet<Right>) -> Result<Pins, Reason> {
    let mut calls: BTreeMap<(Right, String), BTreeMap<String, Term>> = BTreeMap::new();
    for tuple in world.facts("pin", 5)? {
        let [Term::Str(resource), Term::Str(action), rest @ ..] = tuple.as_slice() else { continue };
        let parsed = Resource::parse(resource.as_str()).ok().zip(Action::parse(action.as_str()).ok());
        let Some((resource, action)) = parsed else { continue };
        let right = Right { resource, action };
        let pinned = match rest {
            [Term::Str(call), Term::Str(path), value @ (Term::Str(_) | Term::Integer(_) | Term::Bool(_))]
                if path.starts_with('/') =>
            {
                let call = calls.entry((right.clone(), call.as_str().to_owned())).or_default();
                // One argument has one value: a call with two can never be made.
                call.insert(path.as_str().to_owned(), value.clone()).is_none_or(|other| other == *value)
            }
            _ => false,
        };
        if !pinned {
            rights.remove(&right);
        }
    }
    let mut pins = Pins::default();
    for ((right, _), call) in calls {
        pins.insert(right, call);
    }
    Ok(pins)
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
    let mut world = World::run(None, &[], &policy.program)?;
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
