//! What a decision needs beside the request: keys, control state, and capabilities that are really issued, handed on
//! and verified.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail};
use writ_common::{
    capability::{Capability, Grant, Narrowing, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    decide::{AGENT_HANDOVER, AGENT_INPUT, ASK, Evidence, FlowEvidence, ask_arguments, decide},
    digest::Digest,
    ids::{Action, AgentId, CapabilityId, FlowDomain, Resource, RoleId, TaskId, TaskKind, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::PolicySet,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    source::{Instruction, ResultSources},
    time::{Millis, Timestamp},
    verdict::{Decision, GrantBounds, Verdict},
};

use super::{
    contracts::{ORCHESTRATOR, ROLE, USER, kind},
    mint::Wanted,
};

/// When everything happens: a Monday morning.
const AT: &str = "2026-01-05T10:00:00Z";
/// Longer than any replayed task.
const LIFE: Millis = Millis::from_secs(86_400);
/// Most bytes of a grant with pins: what a block may hold, less what the names of real tasks take.
const GRANT_BYTES_MAX: usize = 7 * 1_024;

/// One suite under one policy.
pub struct World {
    /// The policy.
    pub policy: PolicySet,
    control: ControlState,
    keyset: Keyset,
    tenant: TenantId,
    user: UserId,
    now: Timestamp,
}

/// What is known of the flow of data at a call.
pub struct Known<'a> {
    /// The task label.
    pub label: &'a Label,
    /// What the user said.
    pub instruction: &'a Instruction,
    /// What trusted results named.
    pub results: &'a ResultSources,
}

fn key(name: &str) -> PrivateKey {
    PrivateKey::from_seed(Digest::of("writ/v1/replayed", &[name.as_bytes()]).as_bytes())
}

fn agent_key(agent: &AgentId) -> PrivateKey {
    key(&format!("agent {agent}"))
}

impl World {
    /// Enrols every agent of the inventory.
    ///
    /// # Errors
    /// Only if what is written here does not parse.
    pub fn new(policy: PolicySet) -> Result<Self> {
        let now = Timestamp::parse(AT).context("no time")?;
        let tenant = TenantId::parse("replay")?;
        let user = UserId::parse("https://idp.example", USER)?;
        let (root, broker) = (key("root"), key("broker"));
        let document = KeysetDocument {
            version: 1,
            issued_at: now,
            expires: now.after(LIFE).after(LIFE),
            keys: vec![KeysetKey {
                public: broker.public(),
                tenants: vec![tenant.clone()],
                max_ttl: LIFE,
                not_before: Timestamp::default(),
                not_after: now.after(LIFE).after(LIFE),
            }],
            withdrawn: Vec::new(),
        };
        let signed = Signed::new(&document, &root);
        let keyset = Keyset::open(&signed, &root.public())?;
        let mut control = ControlState::new(tenant.clone(), root.public());
        let enrolled = policy.inventory().agents.keys().map(|agent| ControlEvent::AgentKey {
            agent: agent.clone(),
            holder: agent_key(agent).public(),
            connection: format!("connection of {agent}"),
            token: Digest::plain(agent.as_str().as_bytes()),
        });
        for (sequence, event) in (1..).zip(std::iter::once(ControlEvent::Keyset(signed)).chain(enrolled)) {
            let follows = control.epoch();
            let document =
                ControlDocument { tenant: tenant.clone(), at: now, by: "broker".to_owned(), follows, event };
            control.apply(sequence, &encode(&Signed::new(&document, &broker)))?;
        }
        Ok(Self { policy, control, keyset, tenant, user, now })
    }

    /// Starts a task: the policy decides what may be granted, and the broker's key signs it.
    ///
    /// # Errors
    /// If the policy refuses the task or what is asked for.
    pub fn issue(&self, task: &str, prompt: &str, asked: Option<&BTreeSet<Right>>) -> Result<Issued> {
        let asks = asked.map(|rights| {
            ("rights", Value::Array(rights.iter().map(|right| Value::from(right.to_string())).collect()))
        });
        let verdict = self.ask(task, "issue", Arguments::new(asks.into_iter().collect()))?;
        let Some(granted) = verdict.grant_bounds() else {
            bail!("the task is not started: {}", reasons(&verdict));
        };
        let rights = asked.cloned().unwrap_or_else(|| granted.rights.clone());
        self.sign(task, prompt, rights, granted)
    }

    /// Whether a task may ask people for a right it lacks.
    ///
    /// # Errors
    /// Only if what is written here does not parse.
    pub fn may_ask_for(&self, task: &str, right: &Right) -> Result<bool> {
        Ok(self.ask(task, ASK, ask_arguments(right))?.decision() == Decision::Allow)
    }

    /// Whether a grant with what the oracle wants is within the profile.
    ///
    /// # Errors
    /// If the policy refuses the task or what is asked for.
    pub fn has_room_for(&self, task: &str, wanted: &Wanted) -> Result<bool> {
        let issued = self.issue(task, "", Some(&wanted.rights))?;
        let bounds = wanted.pins.bounds(&wanted.rights);
        let grant = Grant { bounds, ..issued.capability.grant().clone() };
        let room = self.signed(&grant).is_ok_and(|issued| issued.token.as_bytes().len() <= GRANT_BYTES_MAX);
        Ok(room)
    }

    /// What the policy says to the user.
    fn ask(&self, task: &str, action: &str, arguments: Arguments) -> Result<Verdict> {
        let task_kind = TaskKind::parse(kind(task))?;
        let request = Request {
            principal: Principal::User {
                user: self.user.clone(),
                roles: vec![RoleId::parse(ROLE)?],
                agent: AgentId::parse(ORCHESTRATOR)?,
            },
            resource: Resource::task(&task_kind),
            action: Action::parse(action)?,
            arguments,
            environment: Environment { tenant: self.tenant.clone(), task: None, task_kind: Some(task_kind) },
        };
        // A broker does not read task labels.
        let label = if action == ASK { Label::top() } else { Label::bottom() };
        let evidence = Evidence::new(&self.control, &label);
        Ok(decide(&request, &evidence, &self.policy, self.now))
    }

    /// What a task's capability would be if a human granted every right in `rights`.
    ///
    /// # Errors
    /// If it would be outside the profile.
    pub fn widened(&self, issued: &Issued, rights: BTreeSet<Right>) -> Result<Issued> {
        let grant = Grant { rights, bounds: Vec::new(), ..issued.capability.grant().clone() };
        self.signed(&grant)
    }

    fn sign(
        &self,
        task: &str,
        prompt: &str,
        rights: BTreeSet<Right>,
        granted: &GrantBounds,
    ) -> Result<Issued> {
        let agent = AgentId::parse(ORCHESTRATOR)?;
        let task = TaskId::parse(super::entities::id_of(task))?;
        let domain = FlowDomain::parse(&format!("p0.{task}"))?;
        let grant = Grant {
            tenant: self.tenant.clone(),
            user: self.user.clone(),
            agent: agent.clone(),
            task,
            holder: agent_key(&agent).public(),
            capability: CapabilityId::parse("c-replay")?,
            serial: 1,
            instruction: Digest::plain(prompt.as_bytes()),
            domain,
            bounds: granted.pins.bounds(&rights),
            rights,
            expires: Timestamp::from_secs(self.now.after(granted.capability_life).as_secs()),
            min_epoch: self.control.epoch(),
            max_depth: granted.max_depth,
        };
        self.signed(&grant)
    }

    fn signed(&self, grant: &Grant) -> Result<Issued> {
        let token = grant.issue(&key("broker"), &key("block 0").seed())?;
        let capability = self.verified(token.clone())?;
        Ok(Issued { token, capability, domain: grant.domain.clone() })
    }

    /// Hands a task on to another agent.
    ///
    /// # Errors
    /// If the chain would be refused.
    pub fn hand_on(&self, issued: &Issued, to: &str, narrowing: &Narrowing) -> Result<Capability> {
        let (from, to) = (issued.token.chain().caller(), AgentId::parse(to)?);
        let next = key("block 1").seed();
        let token =
            issued.token.delegate(&agent_key(from), &to, &agent_key(&to).public(), narrowing, &next)?;
        self.verified(token)
    }

    fn verified(&self, token: UnverifiedCapability) -> Result<Capability> {
        token.verify(&self.keyset, self.now).map_err(|reason| anyhow!("{}", reason.for_operator()))
    }

    /// Decides a call on a tool.
    pub fn call(
        &self,
        capability: &Capability,
        right: &Right,
        arguments: &Value,
        known: &Known<'_>,
    ) -> Verdict {
        self.decide(capability, right, arguments, None, known)
    }

    /// Decides a call on an agent that a chain is handed to.
    pub fn invoke(
        &self,
        capability: &Capability,
        handover: &Capability,
        input: &Value,
        known: &Known<'_>,
    ) -> Verdict {
        let called = Resource::agent(handover.chain().caller());
        let Ok(right) = Right::parse(&format!("{called}:invoke")) else {
            return Verdict::deny(writ_common::reason::ReasonCode::ToolUnknown, None);
        };
        let members =
            [(AGENT_INPUT, input.clone()), (AGENT_HANDOVER, handover.chain_id().to_string().into())];
        self.decide(capability, &right, &members.into_iter().collect(), Some(handover), known)
    }

    fn decide(
        &self,
        capability: &Capability,
        right: &Right,
        arguments: &Value,
        handover: Option<&Capability>,
        known: &Known<'_>,
    ) -> Verdict {
        // As a node reads them.
        let arguments = match Arguments::parse(&arguments.to_string()) {
            Ok(arguments) => arguments,
            Err(reason) => return Verdict::deny(reason, Some(self.policy.revision())),
        };
        let request = Request {
            principal: Principal::Agent(capability.chain().caller().clone()),
            resource: right.resource.clone(),
            action: right.action.clone(),
            arguments,
            environment: Environment {
                tenant: self.tenant.clone(),
                task: Some(capability.grant().task.clone()),
                task_kind: None,
            },
        };
        let evidence = Evidence {
            capability: Some(capability),
            control: &self.control,
            gate: None,
            handover,
            label: known.label,
            flow: FlowEvidence {
                instruction: Some(known.instruction),
                results: Some(known.results),
                ..FlowEvidence::default()
            },
        };
        decide(&request, &evidence, &self.policy, self.now)
    }
}

/// A task's capability, as its first agent holds it.
pub struct Issued {
    token: UnverifiedCapability,
    /// The same, verified.
    pub capability: Capability,
    /// The flow domain of the task.
    pub domain: FlowDomain,
}

/// A verdict's reasons in one line.
pub fn reasons(verdict: &Verdict) -> String {
    verdict.reasons().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
