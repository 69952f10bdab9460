//! What a decision needs beside the request: keys, control state, and capabilities that are really issued, handed on
//! and verified.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, anyhow, bail};
use writ_common::{
    capability::{Capability, Grant, Narrowing, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    datalog::Check,
    decide::{AGENT_HANDOVER, AGENT_INPUT, Evidence, FlowEvidence, decide},
    digest::Digest,
    ids::{AgentId, CapabilityId, FlowDomain, Resource, RoleId, TaskId, TaskKind, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::PolicySet,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    source::{Instruction, ResultSources},
    time::{Millis, Timestamp},
    verdict::{GrantBounds, Verdict},
};

use super::contracts::{KIND, ORCHESTRATOR, ROLE};

/// When everything happens: a Monday morning.
const AT: &str = "2026-01-05T10:00:00Z";
/// Longer than any replayed task.
const LIFE: Millis = Millis::from_secs(86_400);

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
        let user = UserId::parse("https://idp.example", "user")?;
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
    pub fn issue(
        &self,
        task: &str,
        prompt: &str,
        asked: Option<&BTreeSet<Right>>,
        bounds: Vec<Check>,
    ) -> Result<Issued> {
        let agent = AgentId::parse(ORCHESTRATOR)?;
        let asks = asked.map(|rights| {
            ("rights", Value::Array(rights.iter().map(|right| Value::from(right.to_string())).collect()))
        });
        let request = Request {
            principal: Principal::User {
                user: self.user.clone(),
                roles: vec![RoleId::parse(ROLE)?],
                agent: agent.clone(),
            },
            resource: Resource::task(&TaskKind::parse(KIND)?),
            action: writ_common::ids::Action::parse("issue")?,
            arguments: Arguments::new(asks.into_iter().collect()),
            environment: Environment {
                tenant: self.tenant.clone(),
                task: None,
                task_kind: Some(TaskKind::parse(KIND)?),
            },
        };
        let label = Label::bottom();
        let evidence = Evidence {
            capability: None,
            control: &self.control,
            gate: None,
            handover: None,
            label: &label,
            flow: FlowEvidence::default(),
        };
        let verdict = decide(&request, &evidence, &self.policy, self.now);
        let Some(granted) = verdict.grant_bounds() else {
            bail!("the task is not started: {}", reasons(&verdict));
        };
        let rights = asked.cloned().unwrap_or_else(|| granted.rights.clone());
        self.sign(task, prompt, rights, bounds, granted)
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
        bounds: Vec<Check>,
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
            rights,
            expires: Timestamp::from_secs(self.now.after(granted.capability_life).as_secs()),
            min_epoch: self.control.epoch(),
            max_depth: granted.max_depth,
            bounds,
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
        self.decide(capability, right, arguments.clone(), None, known)
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
        self.decide(capability, &right, members.into_iter().collect(), Some(handover), known)
    }

    fn decide(
        &self,
        capability: &Capability,
        right: &Right,
        arguments: Value,
        handover: Option<&Capability>,
        known: &Known<'_>,
    ) -> Verdict {
        let request = Request {
            principal: Principal::Agent(capability.chain().caller().clone()),
            resource: right.resource.clone(),
            action: right.action.clone(),
            arguments: Arguments::new(arguments),
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
