//! NATS subjects: built and parsed here and nowhere else.
//!
//! `writ.v1.<tenant>.<plane>.<ids…>`, every token at a fixed position. Ids are parsed types, so no subject can be
//! built that means something else.

use std::fmt;

use crate::{
    ids::{
        AgentId, ApprovalId, BudgetId, DomainId, FlowDomain, InspectorId, InvalidId, KeyId, NodeId,
        OperatorId, PartId, Resource, TaskId, TenantId,
    },
    record::RecordKind,
    tlog::LogId,
};

/// A subject of this protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An operator's request: `admin`.
    Admin,
    /// An approver's answer: `approval.<part>.<id>.answer.<approver>`.
    ApprovalAnswer {
        /// Stream part.
        part: PartId,
        /// The approval.
        approval: ApprovalId,
        /// Who answers; their connection may publish under no other name.
        approver: OperatorId,
    },
    /// A use of an approval: `claim.<part>.approval.<id>`.
    ApprovalClaim {
        /// Stream part.
        part: PartId,
        /// The approval.
        approval: ApprovalId,
    },
    /// A request for approval: `approval.<part>.<id>.request`.
    ApprovalRequest {
        /// Stream part.
        part: PartId,
        /// The approval.
        approval: ApprovalId,
    },
    /// A record: `audit.<part>.<kind>.<task or _>.<origin>`.
    Audit {
        /// Stream part.
        part: PartId,
        /// Class of the record.
        kind: RecordKind,
        /// The task, if known.
        task: Option<TaskId>,
        /// Name of the node or broker.
        origin: String,
    },
    /// What was spent of a budget: `claim.<part>.budget.<task>.<budget>`.
    Budget {
        /// Stream part.
        part: PartId,
        /// The task.
        task: TaskId,
        /// The budget.
        budget: BudgetId,
    },
    /// A call: `call.<agent>.<task>.<resource>`.
    Call {
        /// The agent that calls; its connection may publish under no other.
        agent: AgentId,
        /// The task.
        task: TaskId,
        /// What is called.
        resource: Resource,
    },
    /// A control event: `control.event`.
    Control,
    /// An enrollment: `enroll`.
    Enroll,
    /// A freshness question: `fresh`.
    Fresh,
    /// The newest checkpoint of a log: `head.<kind>.<name>.<run>`.
    Head(LogId),
    /// A call handed on to an agent: `inbox.<agent>.<key id>`.
    Inbox {
        /// The agent.
        agent: AgentId,
        /// The key it was delegated to.
        key: KeyId,
    },
    /// A question for an inspector: `inspect.<inspector>`.
    Inspect(InspectorId),
    /// A person's word on one call: `approval.<part>.<id>.act.<approver>`.
    LabelAct {
        /// Stream part.
        part: PartId,
        /// The act.
        act: ApprovalId,
        /// Who says so; their connection may publish under no other name.
        by: OperatorId,
    },
    /// What the user asked for: `label.<part>.<task>.instruction`.
    Instruction {
        /// Stream part.
        part: PartId,
        /// The task.
        task: TaskId,
    },
    /// A request for a capability: `issue.<agent>`.
    Issue {
        /// The agent that asks.
        agent: AgentId,
    },
    /// A task label: `label.<part>.<domain>`.
    Label(FlowDomain),
    /// A record put back after the stream had lost it: `audit.<part>.restored.<task or _>.<origin>`. It is evidence, as
    /// it was signed; nothing acts on it.
    Restored {
        /// Stream part.
        part: PartId,
        /// The task, if known.
        task: Option<TaskId>,
        /// Name of the node or broker.
        origin: String,
    },
    /// What results of a flow domain vouch for: `label.<part>.<domain>.sources`.
    Sources(FlowDomain),
    /// A heartbeat of the control stream: `control.tick`.
    Tick,
    /// A node's request to cosign a checkpoint: `witness.<node>`.
    Witness(NodeId),
}

impl Subject {
    /// The subject's text for a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.{self}")
    }

    /// The part of the audit stream it belongs to, if it belongs to one.
    #[must_use]
    pub fn part(&self) -> Option<&PartId> {
        match self {
            Self::ApprovalAnswer { part, .. }
            | Self::ApprovalClaim { part, .. }
            | Self::ApprovalRequest { part, .. }
            | Self::Audit { part, .. }
            | Self::Budget { part, .. }
            | Self::Instruction { part, .. }
            | Self::LabelAct { part, .. }
            | Self::Restored { part, .. } => Some(part),
            Self::Label(domain) | Self::Sources(domain) => Some(&domain.part),
            Self::Admin
            | Self::Call { .. }
            | Self::Control
            | Self::Enroll
            | Self::Fresh
            | Self::Head(_)
            | Self::Inbox { .. }
            | Self::Inspect(_)
            | Self::Issue { .. }
            | Self::Tick
            | Self::Witness(_) => None,
        }
    }

    /// Reads a subject.
    ///
    /// # Errors
    /// [`InvalidId`] for anything that is not exactly of one of the known forms.
    pub fn parse(text: &str) -> Result<(TenantId, Self), InvalidId> {
        let unknown = || InvalidId::new("subject", text, "is of no known form");
        let tokens: Vec<&str> = text.split('.').collect();
        let ["writ", "v1", tenant, rest @ ..] = tokens.as_slice() else { return Err(unknown()) };
        let tenant = TenantId::parse(*tenant)?;
        let subject = match rest {
            ["admin"] => Self::Admin,
            ["approval", part, approval, "answer", approver] => Self::ApprovalAnswer {
                part: PartId::parse(*part)?,
                approval: ApprovalId::parse(*approval)?,
                approver: OperatorId::parse(*approver)?,
            },
            ["approval", part, act, "act", by] => Self::LabelAct {
                part: PartId::parse(*part)?,
                act: ApprovalId::parse(*act)?,
                by: OperatorId::parse(*by)?,
            },
            ["approval", part, approval, "request"] => {
                Self::ApprovalRequest { part: PartId::parse(*part)?, approval: ApprovalId::parse(*approval)? }
            }
            ["claim", part, "budget", task, budget] => Self::Budget {
                part: PartId::parse(*part)?,
                task: TaskId::parse(*task)?,
                budget: BudgetId::parse(*budget)?,
            },
            ["claim", part, "approval", approval] => {
                Self::ApprovalClaim { part: PartId::parse(*part)?, approval: ApprovalId::parse(*approval)? }
            }
            ["audit", part, "restored", task, origin] => Self::Restored {
                part: PartId::parse(*part)?,
                task: task_of(task)?,
                origin: NodeId::parse(*origin)?.as_str().to_owned(),
            },
            ["audit", part, kind, task, origin] => Self::Audit {
                part: PartId::parse(*part)?,
                kind: RecordKind::parse(kind)?,
                task: task_of(task)?,
                origin: NodeId::parse(*origin)?.as_str().to_owned(),
            },
            ["call", agent, task, kind, name] => Self::Call {
                agent: AgentId::parse(*agent)?,
                task: TaskId::parse(*task)?,
                resource: Resource::parse(format!("{kind}.{name}"))?,
            },
            ["control", "event"] => Self::Control,
            ["control", "tick"] => Self::Tick,
            ["enroll"] => Self::Enroll,
            ["fresh"] => Self::Fresh,
            ["head", kind, name, boot] => {
                Self::Head(LogId::parse(&format!("writ-log/v1/{tenant}/{kind}/{name}/{boot}"))?)
            }
            ["inbox", agent, key] => Self::Inbox { agent: AgentId::parse(*agent)?, key: KeyId::parse(*key)? },
            ["inspect", inspector] => Self::Inspect(InspectorId::parse(*inspector)?),
            ["issue", agent] => Self::Issue { agent: AgentId::parse(*agent)? },
            ["label", part, domain] => {
                Self::Label(FlowDomain { part: PartId::parse(*part)?, domain: DomainId::parse(*domain)? })
            }
            ["label", part, task, "instruction"] => {
                Self::Instruction { part: PartId::parse(*part)?, task: TaskId::parse(*task)? }
            }
            ["label", part, domain, "sources"] => {
                Self::Sources(FlowDomain { part: PartId::parse(*part)?, domain: DomainId::parse(*domain)? })
            }
            ["witness", node] => Self::Witness(NodeId::parse(*node)?),
            _ => return Err(unknown()),
        };
        Ok((tenant, subject))
    }
}

fn task_of(token: &str) -> Result<Option<TaskId>, InvalidId> {
    if token == "_" { Ok(None) } else { TaskId::parse(token).map(Some) }
}

/// The part after the tenant.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Admin => f.write_str("admin"),
            Self::ApprovalAnswer { part, approval, approver } => {
                write!(f, "approval.{part}.{approval}.answer.{approver}")
            }
            Self::ApprovalClaim { part, approval } => write!(f, "claim.{part}.approval.{approval}"),
            Self::ApprovalRequest { part, approval } => write!(f, "approval.{part}.{approval}.request"),
            Self::Audit { part, kind, task, origin } => {
                let task = task.as_ref().map_or("_", TaskId::as_str);
                write!(f, "audit.{part}.{}.{task}.{origin}", kind.as_str())
            }
            Self::Budget { part, task, budget } => write!(f, "claim.{part}.budget.{task}.{budget}"),
            Self::Call { agent, task, resource } => write!(f, "call.{agent}.{task}.{resource}"),
            Self::Control => f.write_str("control.event"),
            Self::Enroll => f.write_str("enroll"),
            Self::Fresh => f.write_str("fresh"),
            Self::Head(log) => write!(f, "head.{}.{}.{}", log.kind(), log.origin, log.boot),
            Self::Inbox { agent, key } => write!(f, "inbox.{agent}.{key}"),
            Self::Inspect(inspector) => write!(f, "inspect.{inspector}"),
            Self::Issue { agent } => write!(f, "issue.{agent}"),
            Self::Instruction { part, task } => write!(f, "label.{part}.{task}.instruction"),
            Self::Label(domain) => write!(f, "label.{}.{}", domain.part, domain.domain),
            Self::LabelAct { part, act, by } => write!(f, "approval.{part}.{act}.act.{by}"),
            Self::Restored { part, task, origin } => {
                let task = task.as_ref().map_or("_", TaskId::as_str);
                write!(f, "audit.{part}.restored.{task}.{origin}")
            }
            Self::Sources(domain) => write!(f, "label.{}.{}.sources", domain.part, domain.domain),
            Self::Tick => f.write_str("control.tick"),
            Self::Witness(node) => write!(f, "witness.{node}"),
        }
    }
}

/// Wildcard subjects to subscribe to or to give permission for.
pub mod filter {
    use crate::ids::{PartId, Resource, TaskId, TenantId};

    /// Every call on a resource, whichever agent and task.
    #[must_use]
    pub fn calls_on(tenant: &TenantId, resource: &Resource) -> String {
        format!("writ.v1.{tenant}.call.*.*.{resource}")
    }

    /// Every call on any agent.
    #[must_use]
    pub fn agent_calls(tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.call.*.*.agent.*")
    }

    /// Every request for a capability.
    #[must_use]
    pub fn issues(tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.issue.*")
    }

    /// Every request for approval and every answer of a part.
    #[must_use]
    pub fn approvals(tenant: &TenantId, part: &PartId) -> String {
        format!("writ.v1.{tenant}.approval.{part}.>")
    }

    /// Every use of an approval of a part.
    #[must_use]
    pub fn approval_claims(tenant: &TenantId, part: &PartId) -> String {
        format!("writ.v1.{tenant}.claim.{part}.approval.*")
    }

    /// Every task label of a part.
    #[must_use]
    pub fn labels(tenant: &TenantId, part: &PartId) -> String {
        format!("writ.v1.{tenant}.label.{part}.*")
    }

    /// Every record of a part.
    #[must_use]
    pub fn audit(tenant: &TenantId, part: &PartId) -> String {
        format!("writ.v1.{tenant}.audit.{part}.>")
    }

    /// Every record of a part that is of a task.
    #[must_use]
    pub fn records_of_task(tenant: &TenantId, part: &PartId, task: &TaskId) -> String {
        format!("writ.v1.{tenant}.audit.{part}.*.{task}.*")
    }

    /// Every record of a part that a node or broker of this name has published, those put back included.
    #[must_use]
    pub fn records_of(tenant: &TenantId, part: &PartId, origin: &str) -> String {
        format!("writ.v1.{tenant}.audit.{part}.*.*.{origin}")
    }

    /// Every record of a part that a node or broker of this name has put back.
    #[must_use]
    pub fn restored_by(tenant: &TenantId, part: &PartId, origin: &str) -> String {
        format!("writ.v1.{tenant}.audit.{part}.restored.*.{origin}")
    }

    /// The control stream.
    #[must_use]
    pub fn control(tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.control.>")
    }

    /// The newest checkpoint of every log.
    #[must_use]
    pub fn heads(tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.head.>")
    }

    /// Every node's requests to cosign.
    #[must_use]
    pub fn witness(tenant: &TenantId) -> String {
        format!("writ.v1.{tenant}.witness.*")
    }

    /// Everything that lives in the stream of a part: labels, records, approvals and claims.
    #[must_use]
    pub fn part(tenant: &TenantId, part: &PartId) -> Vec<String> {
        ["approval", "audit", "claim", "label"]
            .into_iter()
            .map(|plane| format!("writ.v1.{tenant}.{plane}.{part}.>"))
            .collect()
    }
}

/// The stream part a record's subject belongs to.
#[must_use]
pub fn audit_part(subject: &str) -> Option<PartId> {
    match Subject::parse(subject) {
        Ok((_, Subject::Audit { part, .. } | Subject::Restored { part, .. })) => Some(part),
        _ => None,
    }
}

/// Name of the JetStream stream of a part.
#[must_use]
pub fn part_stream(tenant: &TenantId, part: &PartId) -> String {
    format!("WRIT_{tenant}_{part}")
}

/// Name of the JetStream stream of the newest checkpoints.
#[must_use]
pub fn heads_stream(tenant: &TenantId) -> String {
    format!("WRIT_{tenant}_heads")
}

/// Name of the JetStream stream of control events.
#[must_use]
pub fn control_stream(tenant: &TenantId) -> String {
    format!("WRIT_{tenant}_control")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subjects_round_trip() {
        for text in [
            "writ.v1.acme.admin",
            "writ.v1.acme.approval.p0.ap-1.act.bob",
            "writ.v1.acme.approval.p0.ap-1.answer.bob",
            "writ.v1.acme.approval.p0.ap-1.request",
            "writ.v1.acme.claim.p0.approval.ap-1",
            "writ.v1.acme.claim.p0.budget.t-1.cents",
            "writ.v1.acme.audit.p0.allow.t-1.node-1",
            "writ.v1.acme.audit.p0.deny._.broker-1",
            "writ.v1.acme.audit.p0.restored._.broker-1",
            "writ.v1.acme.audit.p0.restored.t-1.node-1",
            "writ.v1.acme.call.planner.t-1.tool.crm",
            "writ.v1.acme.call.planner.t-1.agent.researcher",
            "writ.v1.acme.call.planner.t-1.node.node-1",
            "writ.v1.acme.control.event",
            "writ.v1.acme.control.tick",
            "writ.v1.acme.enroll",
            "writ.v1.acme.fresh",
            "writ.v1.acme.head.node.node-1.b-1",
            "writ.v1.acme.inbox.mailer.0a0b",
            "writ.v1.acme.inspect.dlp",
            "writ.v1.acme.issue.planner",
            "writ.v1.acme.label.p0.t-1",
            "writ.v1.acme.label.p0.t-1.instruction",
            "writ.v1.acme.label.p0.t-1.sources",
            "writ.v1.acme.witness.node-1",
        ] {
            let (tenant, subject) = Subject::parse(text).unwrap();
            assert_eq!(subject.of(&tenant), text);
        }
    }

    #[test]
    fn b11_nothing_else_parses() {
        for text in [
            "",
            "writ.v1.acme",
            "writ.v2.acme.admin",
            "writ.v1.*.admin",
            "writ.v1.acme.call.planner.t-1.tool.crm.extra",
            "writ.v1.acme.call.planner.t-1.tool.>",
            "writ.v1.acme.call.*.t-1.tool.crm",
            "writ.v1.acme.call.plan ner.t-1.tool.crm",
            "writ.v1.acme.call.planner\r\nPUB.t-1.tool.crm",
            "writ.v1.acme.audit.p0.maybe.t-1.n",
        ] {
            assert!(Subject::parse(text).is_err(), "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_is_what_it_prints(text in "writ\\.v1\\.[a-z]{1,3}(\\.[a-z_*>]{0,5}){0,6}") {
            if let Ok((tenant, subject)) = Subject::parse(&text) {
                prop_assert_eq!(subject.of(&tenant), text);
            }
        }
    }
}
