//! What the tools look like that a task's capability gives, as the broker vouches for it.

use writ_common::{
    policy::PolicyRevision,
    wire::{IssueAnswer, OfferedTool, ToolsWanted, Wanted},
};

use crate::{Error, Task};

/// Most pages that are read of one list.
const PAGES_MAX: usize = 64;

/// The tools a capability gives under a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The policy that says so.
    pub revision: PolicyRevision,
    /// The tools, in the order of their rights.
    pub tools: Vec<OfferedTool>,
}

impl Task {
    /// The tools this task's capability gives, with descriptions and schemas; nothing if the policy in force is still
    /// the one of `known`.
    ///
    /// # Errors
    /// [`Error::Denied`] with the broker's reasons, or why the broker was not reached.
    pub async fn offered_tools(&self, known: Option<&Offer>) -> Result<Option<Offer>, Error> {
        let capability = self.capability().await?.as_bytes().to_vec();
        let mut tools: Vec<OfferedTool> = Vec::new();
        let mut revision: Option<PolicyRevision> = None;
        for _ in 0..PAGES_MAX {
            let wanted = Wanted::Tools(ToolsWanted {
                capability: capability.clone(),
                known: known.filter(|_| tools.is_empty()).map(|offer| offer.revision),
                after: tools.last().map(|tool| tool.right.clone()),
            });
            let page = match self.agent.ask_broker(wanted, self.span.context()).await? {
                IssueAnswer::Tools(page) => page,
                IssueAnswer::Refused { reasons } => return Err(Error::refused(reasons)),
                _ => return Err(Error::BadAnswer("something else where tools were asked for".to_owned())),
            };
            if tools.is_empty() && known.is_some_and(|offer| offer.revision == page.revision) {
                return Ok(None);
            }
            if revision.is_some_and(|first| first != page.revision) {
                // The policy changed between two pages: what was read is of the old one.
                tools.clear();
                revision = None;
                continue;
            }
            revision = Some(page.revision);
            tools.extend(page.tools);
            if !page.more {
                return Ok(Some(Offer { revision: page.revision, tools }));
            }
        }
        Err(Error::BadAnswer("a list of tools without end".to_owned()))
    }
}
