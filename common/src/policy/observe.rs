//! Observe mode: the rules about one tool or agent are asked and not obeyed, until a date.
//!
//! For trying a stricter rule on real calls. It is never global and never without an end, it comes with a policy
//! revision that somebody put in force, and it counts only where a rule derives `may_observe`. Only answers of rules
//! are observed: who somebody is, what is revoked and what an argument looks like is never tried out.

use std::{collections::BTreeMap, str::FromStr};

use super::{Inventory, PolicySet};
use crate::{
    contract::ToolContract,
    diagnostic::{Diagnostic, Diagnostics},
    ids::{AgentId, Resource},
    settings::Section,
    time::{Millis, Timestamp},
};

/// The longest that anything may be observed, counted from when the policy is put in force.
pub const OBSERVE_MAX: Millis = Millis::from_secs(90 * 86_400);

struct Until(Timestamp);

impl FromStr for Until {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Timestamp::parse(text).map(Self).ok_or("a time in UTC is written as `2026-12-31T00:00:00Z`")
    }
}

/// `observe = { until = "…" }` of an agent or a contract.
pub(crate) fn read_observe(section: &mut Section<'_, '_>) -> Option<Timestamp> {
    let mut observe = section.optional_table("observe")?;
    let until: Option<Until> = observe.required("until", "\"2026-12-31T00:00:00Z\"");
    observe.finish(&["until"]);
    until.map(|until| until.0)
}

type Contracts = BTreeMap<Resource, ToolContract>;

fn observed<'a>(
    inventory: &'a Inventory,
    contracts: &'a Contracts,
) -> impl Iterator<Item = (Resource, Timestamp)> + 'a {
    let agents = inventory.agents.iter();
    let agents = agents.filter_map(|(name, entry)| Some((Resource::agent(name), entry.observe_until?)));
    let tools = contracts.iter().filter_map(|(name, contract)| Some((name.clone(), contract.observe_until?)));
    agents.chain(tools)
}

/// What would be observed if a rule let it.
pub(super) fn without_permission(inventory: &Inventory, contracts: &Contracts) -> Vec<Diagnostic> {
    let finding = |resource: &Resource| {
        Diagnostic::in_file("policies", format!("`{resource}` is in observe mode and no rule derives `may_observe`"))
            .help(format!("write `may_observe(\"{resource}\") <- resource($any);` where the platform's rules stand, or take `observe` out"))
    };
    observed(inventory, contracts).map(|(resource, _)| finding(&resource)).collect()
}

impl PolicySet {
    /// Every agent and tool in observe mode, and until when.
    pub fn observed(&self) -> impl Iterator<Item = (Resource, Timestamp)> + '_ {
        observed(&self.inventory, &self.contracts)
    }

    /// What of a call is in observe mode at this time: the tool, the caller, or both.
    pub(crate) fn observed_in(&self, resource: &Resource, caller: &AgentId, now: Timestamp) -> Vec<Resource> {
        let caller = Resource::agent(caller);
        let concerned = self.observed().filter(|(one, _)| one == resource || *one == caller);
        concerned.filter(|(_, until)| now < *until).map(|(one, _)| one).collect()
    }

    /// What may not be put in force now because it would be observed too long; what is over already is a warning.
    #[must_use]
    pub fn check_observed(&self, now: Timestamp) -> Diagnostics {
        let finding = |(resource, until): (Resource, Timestamp)| {
            let days = OBSERVE_MAX.0 / Millis::from_secs(86_400).0;
            if until <= now {
                let message =
                    format!("`{resource}` was to be observed until {until}, which is over: it is enforced");
                return Some(Diagnostic::in_file("policies", message).warning());
            }
            if until.since(now) <= OBSERVE_MAX {
                return None;
            }
            let message =
                format!("`{resource}` would be observed until {until}, which is more than {days} days");
            let latest = now.after(OBSERVE_MAX);
            Some(
                Diagnostic::in_file("policies", message)
                    .help(format!("`until` may be {latest} at the latest")),
            )
        };
        Diagnostics(self.observed().filter_map(finding).collect())
    }
}
