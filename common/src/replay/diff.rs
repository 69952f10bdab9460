//! What another policy would have answered to what was asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Again, Answer, History, Past};
use crate::{
    datalog::Rule,
    policy::{Effect, PolicySet, SourceRule},
    time::Timestamp,
};

/// Sample decisions each change names.
const SAMPLES_MAX: usize = 3;

/// What is compared with.
#[derive(Clone, Copy)]
pub enum Before<'p> {
    /// What was recorded; the policy in force tells which of what hangs on arguments is decided alike.
    Recorded {
        /// The policy in force.
        in_force: Option<&'p PolicySet>,
    },
    /// What this policy answers.
    Policy(&'p PolicySet),
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Decisions that were asked again.
    pub compared: u64,
    /// Those with the same answer.
    pub unchanged: u64,
    /// Those with another.
    pub changes: Vec<Change>,
    /// Those that hang on what nobody recorded.
    pub depends: Vec<Change>,
    /// Those that were not asked again, by why.
    pub left_out: BTreeMap<String, u64>,
}

/// Decisions that change alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The answer before.
    pub from: String,
    /// The answer after, or what it hangs on.
    pub to: String,
    /// The agent that asked, or the operator.
    pub agent: String,
    /// What was asked for.
    pub right: String,
    /// Places of the rules that make the difference.
    pub rules: Vec<String>,
    /// How many.
    pub count: u64,
    /// Some of them.
    pub samples: Vec<String>,
}

/// Asks `new` what was asked since, and compares.
#[must_use]
pub fn compare(
    history: &History<'_>,
    before: Before<'_>,
    new: &PolicySet,
    since: Option<Timestamp>,
) -> Comparison {
    let mut comparison = Comparison::default();
    let (mut changes, mut depends) = (Groups::default(), Groups::default());
    for past in history.decisions().filter(|past| since.is_none_or(|since| past.record.at >= since)) {
        let (was, now) = match (answer_before(&past, before), past.again(new, None)) {
            (Ok(was), Ok(now)) => (was, now),
            (Err(why), _) | (_, Err(why)) => {
                *comparison.left_out.entry(why).or_default() += 1;
                continue;
            }
        };
        comparison.compared += 1;
        let from = told(was.answer, &was.codes.iter().map(|code| code.as_str()).collect::<Vec<_>>());
        match difference(&past, &was, &now, before, new) {
            Difference::None => comparison.unchanged += 1,
            Difference::Answer(to, rules) => changes.add(&past, from, to, rules),
            Difference::Depends(to, rules) => depends.add(&past, from, to, rules),
        }
    }
    comparison.changes = changes.listed();
    comparison.depends = depends.listed();
    comparison
}

enum Difference {
    None,
    Answer(String, Vec<String>),
    Depends(String, Vec<String>),
}

fn answer_before(past: &Past<'_>, before: Before<'_>) -> Result<Again, String> {
    let recorded = || Again {
        answer: past.decision(),
        codes: past.verdicted.reasons.iter().map(|reason| reason.code).collect(),
        rules: past.verdicted.basis.rules.clone(),
        depends: Vec::new(),
        grants: past
            .verdicted
            .granted
            .as_ref()
            .map(|granted| granted.rights.iter().map(ToString::to_string).collect()),
        settled: (false, false),
    };
    past.check_replayable()?;
    match before {
        Before::Recorded { .. } => Ok(recorded()),
        Before::Policy(old) => match past.again(old, None)? {
            // Then the record knows more than can be found out again.
            again if again.answer == Answer::Depends && is_by(past, old) => {
                Ok(Again { grants: again.grants, ..recorded() })
            }
            again => Ok(again),
        },
    }
}

fn is_by(past: &Past<'_>, policy: &PolicySet) -> bool {
    past.verdicted.basis.policy == Some(policy.revision())
}

fn difference(past: &Past<'_>, was: &Again, now: &Again, before: Before<'_>, new: &PolicySet) -> Difference {
    let codes: Vec<&str> = now.codes.iter().map(|code| code.as_str()).collect();
    match (was.answer, now.answer) {
        (_, Answer::Depends) => {
            let old = match before {
                Before::Recorded { in_force } => in_force.filter(|policy| is_by(past, policy)),
                Before::Policy(old) => Some(old),
            };
            if old.is_some_and(|old| hangs_alike(past, old, now, new)) {
                return Difference::None;
            }
            let names: Vec<&str> = now.depends.iter().map(|(name, _)| name_of(name)).collect();
            let rules = now.depends.iter().flat_map(|(_, rules)| rules.clone()).collect();
            Difference::Depends(format!("depends on {}", names.join(", ")), rules)
        }
        (Answer::Depends, answer) => Difference::Depends(told(answer, &codes), now.rules.clone()),
        (Answer::Allow, Answer::Allow) => granted_otherwise(was, now, before),
        (was_answer, answer) if was_answer == answer => Difference::None,
        (_, answer) => {
            // Where no rule decides any more, those that did are what is missing.
            let rules = if now.rules.is_empty() { &was.rules } else { &now.rules };
            Difference::Answer(told(answer, &codes), rules.clone())
        }
    }
}

fn name_of(predicate: &str) -> &str {
    match predicate {
        "arg" => "arguments",
        "role" => "the user's roles, which records of refusals do not hold",
        other => other,
    }
}

fn told(answer: Answer, codes: &[&str]) -> String {
    match answer {
        Answer::Allow => "allow".to_owned(),
        Answer::Deny if codes.is_empty() => "deny".to_owned(),
        Answer::Deny => format!("deny {}", codes.join(", ")),
        Answer::Depends => "depends".to_owned(),
    }
}

fn granted_otherwise(was: &Again, now: &Again, before: Before<'_>) -> Difference {
    let (Some(was), Some(now)) = (&was.grants, &now.grants) else { return Difference::None };
    let lost: Vec<&str> = was.difference(now).map(String::as_str).collect();
    // A record holds what was asked for and granted; what more could have been had is not in it.
    let gained: Vec<&str> = match before {
        Before::Recorded { .. } => Vec::new(),
        Before::Policy(_) => now.difference(was).map(String::as_str).collect(),
    };
    if lost.is_empty() && gained.is_empty() {
        return Difference::None;
    }
    let part = |word: &str, rights: &[&str]| {
        if rights.is_empty() { String::new() } else { format!(", {word} {}", rights.join(", ")) }
    };
    Difference::Answer(format!("allow{}{}", part("without", &lost), part("with", &gained)), Vec::new())
}

/// Whether whatever was not recorded decides alike in both: what is certain is the same, and so is every rule and
/// every entry of the inventory that what is uncertain can come from.
fn hangs_alike(past: &Past<'_>, old: &PolicySet, now: &Again, new: &PolicySet) -> bool {
    let Ok(was) = past.again(old, None) else { return false };
    let contracts = past.verdicted.what.resource.as_ref().map(|resource| {
        let digest = |policy: &PolicySet| policy.contract(resource).map(|contract| contract.digest);
        (digest(old), digest(new))
    });
    let unknown: BTreeSet<&str> =
        was.depends.iter().chain(&now.depends).map(|(name, _)| name.as_str()).collect();
    was.answer == Answer::Depends
        && was.settled == now.settled
        && contracts.is_none_or(|(old, new)| old == new)
        && slice(old, &unknown) == slice(new, &unknown)
}

/// Every rule that looks at one of these predicates, through others or itself, with all that feeds it.
fn slice(policy: &PolicySet, unknown: &BTreeSet<&str>) -> BTreeSet<String> {
    let looks_at = |rule: &Rule, names: &BTreeSet<&str>| {
        rule.body.predicates.iter().any(|predicate| names.contains(predicate.name.as_str()))
    };
    let mut reached = unknown.clone();
    let mut rules: BTreeSet<usize> = BTreeSet::new();
    loop {
        let before = rules.len();
        for (index, source) in policy.sources.iter().enumerate() {
            if looks_at(&source.rule, &reached) && rules.insert(index) && source.decides.is_none() {
                reached.insert(&source.rule.head.name);
            }
        }
        if rules.len() == before {
            break;
        }
    }
    let mut asked: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = (rules.len(), asked.len());
        let bodies = rules.iter().filter_map(|index| policy.sources.get(*index));
        asked.extend(bodies.flat_map(|source| &source.rule.body.predicates).map(|one| one.name.as_str()));
        let feeding = policy.sources.iter().enumerate();
        rules.extend(
            feeding
                .filter(|(_, source)| asked.contains(source.rule.head.name.as_str()))
                .map(|(index, _)| index),
        );
        if (rules.len(), asked.len()) == before {
            break;
        }
    }
    let texts =
        rules.iter().filter_map(|index| policy.sources.get(*index)).map(|source| meaning(policy, source));
    let facts = policy.inventory_facts.iter().filter(|fact| asked.contains(fact.name.as_str()));
    texts.chain(facts.map(ToString::to_string)).collect()
}

/// A rule without its place.
fn meaning(policy: &PolicySet, source: &SourceRule) -> String {
    match source.decides.and_then(|position| policy.rules.get(position)).map(|info| info.effect) {
        Some(Effect::Allow) => format!("allow if {}", source.rule.body),
        Some(Effect::Deny) => format!("deny if {}", source.rule.body),
        None => source.rule.to_string(),
    }
}

/// Rules that are only in the old policy and only in the new one, each as place and text.
#[must_use]
pub fn changed_rules(old: &PolicySet, new: &PolicySet) -> (Vec<String>, Vec<String>) {
    let only_in = |one: &PolicySet, other: &PolicySet| {
        let known: BTreeSet<String> = other.sources.iter().map(|source| meaning(other, source)).collect();
        let missing = one.sources.iter().map(|source| (source, meaning(one, source)));
        missing
            .filter(|(_, meaning)| !known.contains(meaning))
            .map(|(source, meaning)| format!("{}  {meaning}", source.place))
            .collect()
    };
    (only_in(old, new), only_in(new, old))
}

/// Agent, right, from, to, rules.
type Alike = (String, String, String, String, Vec<String>);

#[derive(Default)]
struct Groups(BTreeMap<Alike, (u64, Vec<String>)>);

impl Groups {
    fn add(&mut self, past: &Past<'_>, from: String, to: String, rules: Vec<String>) {
        let (who, what) = (&past.verdicted.who, &past.verdicted.what);
        let agent = who.caller.as_ref().map(ToString::to_string).or_else(|| who.operator.clone());
        let resource = what.resource.as_ref().map(ToString::to_string).unwrap_or_default();
        let action = what.action.as_ref().map(ToString::to_string).unwrap_or_default();
        let key = (agent.unwrap_or_default(), format!("{resource}:{action}"), from, to, rules);
        let (count, samples) = self.0.entry(key).or_default();
        *count += past.verdicted.count;
        if samples.len() < SAMPLES_MAX {
            samples.push(past.record.id.to_string());
        }
    }

    fn listed(self) -> Vec<Change> {
        self.0
            .into_iter()
            .map(|((agent, right, from, to, rules), (count, samples))| Change {
                from,
                to,
                agent,
                right,
                rules,
                count,
                samples,
            })
            .collect()
    }
}
