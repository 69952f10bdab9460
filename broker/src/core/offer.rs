//! Telling agents what the tools look like that their capabilities give: descriptions and schemas as contracts of the
//! policy in force say, and of no other tool.

use writ_common::{
    capability::{Capability, Right, UnverifiedCapability},
    decide::{check_expiry, without_policy},
    ids::ResourceKind,
    mcp::offered_name,
    policy::PolicySet,
    reason::{Reason, ReasonCode},
    record::{What, Who},
    time::Now,
    verdict::Verdict,
    wire::{IssueAnswer, OfferedTool, OfferedTools, TOOLS_PAGE_BYTES_MAX, ToolsWanted},
};

use super::{Broker, issue::Asking};

impl Broker {
    pub(super) fn offer_tools(&mut self, asking: &Asking, wanted: &ToolsWanted, now: Now) {
        let answer = match (&self.policy, self.check_offered(asking, wanted, now)) {
            (Some(policy), Ok(capability)) => Ok(page(policy, &capability, wanted)),
            (None, Ok(_)) => Err(without_policy()),
            (_, Err(reason)) => Err(Verdict::deny(reason, None)),
        };
        match answer {
            Ok(offered) => self.answer(asking.back, IssueAnswer::Tools(offered)),
            Err(verdict) => {
                let who = Who {
                    caller: Some(asking.agent.clone()),
                    connection: asking.connection.clone(),
                    ..Who::default()
                };
                self.refuse(asking.back, &verdict, who, What::default(), now);
            }
        }
    }

    /// The capability has to be one that a node would take from this agent now.
    fn check_offered(&self, asking: &Asking, wanted: &ToolsWanted, now: Now) -> Result<Capability, Reason> {
        let keyset = self.control.keyset().ok_or(ReasonCode::KeysetExpired)?;
        let capability = UnverifiedCapability::parse(&wanted.capability)?.verify(keyset, now.wall)?;
        if capability.grant().tenant != self.setup.tenant {
            return Err(ReasonCode::TenantMismatch.into());
        }
        if *capability.chain().holder() != asking.holder || *capability.chain().caller() != asking.agent {
            return Err(ReasonCode::TokenHolderMismatch.into());
        }
        check_expiry(&capability, now.wall)?;
        self.control.check_revocation(&capability)?;
        self.control.check_keys(&capability)?;
        Ok(capability)
    }
}

/// The next page of what a capability gives.
fn page(policy: &PolicySet, capability: &Capability, wanted: &ToolsWanted) -> OfferedTools {
    let revision = policy.revision();
    if wanted.known.as_ref() == Some(&revision) {
        return OfferedTools { revision, tools: Vec::new(), more: false };
    }
    let rights =
        capability.rights().iter().filter(|right| wanted.after.as_ref().is_none_or(|after| *right > after));
    let mut rest = rights.filter_map(|right| offered(policy, right)).peekable();
    let mut tools: Vec<OfferedTool> = Vec::new();
    let mut bytes = 0;
    while let Some(tool) = rest.next_if(|next| tools.is_empty() || bytes + size(next) <= TOOLS_PAGE_BYTES_MAX)
    {
        bytes += size(&tool);
        tools.push(tool);
    }
    OfferedTools { revision, tools, more: rest.peek().is_some() }
}

fn size(tool: &OfferedTool) -> usize {
    tool.description.len() + tool.schema.len()
}

fn offered(policy: &PolicySet, right: &Right) -> Option<OfferedTool> {
    if right.resource.kind() != ResourceKind::Tool {
        return None;
    }
    let action = policy.contract(&right.resource)?.action(&right.action)?;
    Some(OfferedTool {
        right: right.clone(),
        mcp: action.mcp.as_ref().map(|tool| offered_name(right.action.as_str(), &tool.name)),
        description: action.description.clone(),
        effect: action.effect.as_str().to_owned(),
        schema: action.schema.to_string(),
    })
}
