//! The answer, and the one thing that comes of a good one: a permit.

use std::collections::BTreeSet;

use crate::{
    act::Acts,
    approval::{ApprovalTerms, Approved},
    budget::{Charges, Spent},
    capability::{Capability, Pins, Right},
    contract::ActionContract,
    digest::Digest,
    flow::FlowVerdict,
    ids::{Action, AgentId, ApprovalId, Resource, TaskId, UserId},
    label::Label,
    mcp::UpstreamTool,
    policy::PolicyRevision,
    reason::{Class, Reason},
    request::{Arguments, Principal, Request},
    time::{Millis, Timestamp},
};

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may be done, once every obligation is discharged.
    Allow,
    /// It may not, or nobody could say.
    Deny,
}

/// What has to be done or kept to, or else the answer is no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obligation {
    /// What people let pass has to be used up first.
    Acts(BTreeSet<ApprovalId>),
    /// People have to say yes first.
    Approval(ApprovalTerms),
    /// Budgets of the task have to be charged first.
    Budget(Charges),
    /// Whatever capability is issued must stay within these bounds.
    GrantWithin(GrantBounds),
}

/// The most a capability may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantBounds {
    /// Its rights.
    pub rights: BTreeSet<Right>,
    /// The calls that some of them are for.
    pub pins: Pins,
    /// How deep it may be delegated.
    pub max_depth: u8,
    /// How long the task may live.
    pub task_life: Millis,
    /// How long one capability may live.
    pub capability_life: Millis,
}

/// The answer to a [`Request`], whichever process gave it.
///
/// Only [`crate::decide::decide`] makes an allowing one; anybody can refuse.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    decision: Decision,
    reasons: Vec<Reason>,
    would_deny: Vec<Reason>,
    obligations: Vec<Obligation>,
    rules: Vec<String>,
    policy_revision: Option<PolicyRevision>,
    flow: Box<FlowVerdict>,
    /// What an allowance permits, until somebody takes it.
    permit: Option<Permit>,
}

impl Verdict {
    /// A denial for one cause.
    #[must_use]
    pub fn deny(reason: impl Into<Reason>, policy_revision: Option<PolicyRevision>) -> Self {
        Self::denied(vec![reason.into()], Vec::new(), policy_revision)
    }

    /// A denial for several causes.
    #[must_use]
    pub fn denied(reasons: Vec<Reason>, rules: Vec<String>, policy_revision: Option<PolicyRevision>) -> Self {
        Self {
            decision: Decision::Deny,
            reasons,
            would_deny: Vec::new(),
            obligations: Vec::new(),
            rules,
            policy_revision,
            flow: Box::default(),
            permit: None,
        }
    }

    pub(crate) fn allowed(
        request: &Request,
        capability: Option<&Capability>,
        obligations: Vec<Obligation>,
        rules: Vec<String>,
        policy_revision: Option<PolicyRevision>,
    ) -> Self {
        // Users and operators are answered; only agents act.
        let permit = match &request.principal {
            Principal::Agent(caller) => Some(Permit {
                resource: request.resource.clone(),
                action: request.action.clone(),
                arguments: request.arguments.clone(),
                clearance: Label::bottom(),
                caller: Some(caller.clone()),
                task: request.environment.task.clone(),
                user: capability.map(|capability| capability.grant().user.clone()),
                agents: capability.map(agents_of).unwrap_or_default(),
                upstream: None,
            }),
            Principal::User { .. } | Principal::Operator(_) => None,
        };
        Self {
            decision: Decision::Allow,
            reasons: Vec::new(),
            would_deny: Vec::new(),
            obligations,
            rules,
            policy_revision,
            flow: Box::default(),
            permit,
        }
    }

    /// The same, allowed only because the tool or agent is observed.
    pub(crate) fn observed(self, would_deny: Vec<Reason>) -> Self {
        Self { would_deny, ..self }
    }

    /// The same, with what was found out about the flow of data.
    pub(crate) fn flowing(mut self, flow: FlowVerdict) -> Self {
        if let Some(permit) = &mut self.permit {
            permit.clearance = flow.clearance.clone();
        }
        Self { flow: Box::new(flow), ..self }
    }

    /// The same, for a tool whose contract says which tool of an MCP server it is.
    pub(crate) fn on(mut self, action: Option<&ActionContract>) -> Self {
        if let Some(permit) = &mut self.permit {
            permit.upstream = action.and_then(|action| action.mcp.clone());
        }
        self
    }

    /// What was found out about the flow of data, as far as the decision got.
    #[must_use]
    pub fn flow(&self) -> &FlowVerdict {
        &self.flow
    }

    /// Yes or no.
    #[must_use]
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Why: for a denial every cause that was found, for an allowance nothing.
    #[must_use]
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// What would have denied it if the tool or agent were not in observe mode.
    #[must_use]
    pub fn would_deny(&self) -> &[Reason] {
        &self.would_deny
    }

    /// What has to be done or kept to.
    #[must_use]
    pub fn obligations(&self) -> &[Obligation] {
        &self.obligations
    }

    /// What approval it takes, if it takes one.
    #[must_use]
    pub fn approval(&self) -> Option<&ApprovalTerms> {
        self.obligations.iter().find_map(|obligation| match obligation {
            Obligation::Approval(terms) => Some(terms),
            _ => None,
        })
    }

    /// The bounds of what may be granted, if something may.
    #[must_use]
    pub fn grant_bounds(&self) -> Option<&GrantBounds> {
        self.obligations.iter().find_map(|obligation| match obligation {
            Obligation::GrantWithin(bounds) => Some(bounds),
            _ => None,
        })
    }

    /// What it takes out of budgets, if it takes something.
    #[must_use]
    pub fn charges(&self) -> Option<&Charges> {
        self.obligations.iter().find_map(|obligation| match obligation {
            Obligation::Budget(charges) => Some(charges),
            _ => None,
        })
    }

    /// What people let pass and has to be used up, if there is something.
    #[must_use]
    pub fn acts(&self) -> Option<&BTreeSet<ApprovalId>> {
        self.obligations.iter().find_map(|obligation| match obligation {
            Obligation::Acts(acts) => Some(acts),
            _ => None,
        })
    }

    /// Discharges the obligation to use up what people let pass, if all of it was used by this very call.
    #[must_use]
    pub fn acted(mut self, acts: &Acts, call_id: &Digest, now: Timestamp) -> Self {
        self.obligations.retain(|obligation| match obligation {
            Obligation::Acts(ids) => !ids.iter().all(|id| acts.is_claimed_by(id, call_id, now)),
            _ => true,
        });
        self
    }

    /// Discharges the obligation to charge budgets, if these very charges were made.
    #[must_use]
    pub fn spent(mut self, spent: &Spent<'_>) -> Self {
        self.obligations
            .retain(|obligation| !matches!(obligation, Obligation::Budget(charges) if charges == spent.0));
        self
    }

    /// Discharges the obligation to have it approved, if that was on the very same terms.
    #[must_use]
    pub fn discharged(mut self, approved: &Approved) -> Self {
        self.obligations.retain(
            |obligation| !matches!(obligation, Obligation::Approval(terms) if terms == approved.terms()),
        );
        self
    }

    /// The rules that decided, as `file:line`.
    #[must_use]
    pub fn rules(&self) -> &[String] {
        &self.rules
    }

    /// The policy that was asked, if there was one.
    #[must_use]
    pub fn policy_revision(&self) -> Option<PolicyRevision> {
        self.policy_revision
    }

    /// The cause that is told first: one that could not be decided goes before one that was.
    #[must_use]
    pub fn main_reason(&self) -> Option<&Reason> {
        let undecided = self.reasons.iter().find(|reason| reason.code().class() == Class::CouldNotDecide);
        undecided.or_else(|| self.reasons.first())
    }

    /// The permit to do exactly what was asked, once; `None` for a denial, or while an obligation is left.
    #[must_use]
    pub fn permit(self) -> Option<Permit> {
        if self.decision == Decision::Deny || !self.obligations.is_empty() { None } else { self.permit }
    }
}

/// The permission to do one thing once. Tools take it by value; only an allowing verdict makes one.
///
/// It owns the arguments that were checked, so that nothing else can be run under it (threat A11), and nobody else
/// can make one or spend it twice:
///
/// ```compile_fail,E0451
/// # use writ_common::{ids::{Action, Resource}, request::Arguments, verdict::Permit};
/// fn forge(resource: Resource, action: Action, arguments: Arguments) -> Permit {
///     Permit { resource, action, arguments, ..todo!() }
/// }
/// ```
///
/// ```compile_fail,E0382
/// # use writ_common::verdict::Permit;
/// # fn run(permit: Permit) {}
/// fn twice(permit: Permit) {
///     run(permit);
///     run(permit);
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
pub struct Permit {
    resource: Resource,
    action: Action,
    arguments: Arguments,
    clearance: Label,
    caller: Option<AgentId>,
    task: Option<TaskId>,
    user: Option<UserId>,
    agents: Vec<AgentId>,
    upstream: Option<UpstreamTool>,
}

fn agents_of(capability: &Capability) -> Vec<AgentId> {
    capability.chain().holders().map(|(agent, _)| agent.clone()).collect()
}

impl Permit {
    /// What the caller may be told.
    #[must_use]
    pub fn clearance(&self) -> &Label {
        &self.clearance
    }

    /// Who calls.
    #[must_use]
    pub fn caller(&self) -> Option<&AgentId> {
        self.caller.as_ref()
    }

    /// Every agent the capability went through, the caller last.
    #[must_use]
    pub fn agents(&self) -> &[AgentId] {
        &self.agents
    }

    /// Which tool of the MCP server behind the resource, and as what it was accepted.
    #[must_use]
    pub fn upstream(&self) -> Option<&UpstreamTool> {
        self.upstream.as_ref()
    }

    /// For which task.
    #[must_use]
    pub fn task(&self) -> Option<&TaskId> {
        self.task.as_ref()
    }

    /// On whose authority.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// To what.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// What may be done.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// With these arguments and no others.
    #[must_use]
    pub fn arguments(&self) -> &Arguments {
        &self.arguments
    }

    /// Digest of the arguments, for comparing with the record.
    #[must_use]
    pub fn arguments_digest(&self) -> Digest {
        self.arguments.digest()
    }
}
