//! Why a request is answered as it is: the rules that decided, where every fact they used comes from, and for a
//! denial the allow rule that came nearest.
//!
//! The verdict itself is always [`decide`]'s; a second, naive evaluation of the same rules over the same facts tells
//! how it came about (see `prove.rs`).

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    ALLOW, DENY, Effect, PolicySet, RuleInfo,
    prove::{Bindings, Fault, From, Known, Model, evaluate, filled, filled_predicate, unify, value_of},
    schema::{self, Provider},
};
use crate::{
    datalog::{Body, Expression, Node, Predicate, Term},
    decide::{ASK, Evidence, RequestFacts, decide, facts_of},
    reason::{Reason, ReasonCode},
    record::RecordedReason,
    request::{Principal, Request},
    time::Timestamp,
    verdict::Decision,
};

/// Deepest proof that is told; below it, facts are named without their own proof.
const PROOF_DEPTH_MAX: usize = 8;
/// Most facts of one explanation.
const PROOF_FACTS_MAX: usize = 400;
/// How far the search for what is missing follows rules that derive it.
const LACK_DEPTH_MAX: usize = 3;
/// Most steps of one search for the nearest rule.
const SEARCH_STEPS_MAX: usize = 200_000;

/// Why a request is answered as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// For a denial, every cause.
    pub reasons: Vec<RecordedReason>,
    /// The rules that decided.
    pub rules: Vec<Fired>,
    /// What Writ itself asks of the policy for such a request, beyond allow and deny.
    pub demands: Vec<Demand>,
    /// For a denial, the allow rule that came nearest.
    pub nearest: Option<Nearest>,
    /// A condition that could not be evaluated.
    pub fault: Option<Unevaluated>,
    /// What nobody recorded and rules look at.
    pub unknown: Vec<Unknown>,
}

/// A rule, where it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleText {
    /// `file:line`
    pub place: String,
    /// Its `///` message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The rule.
    pub text: String,
}

/// A deciding rule that fired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fired {
    /// `allow` or `deny`.
    pub effect: &'static str,
    /// The rule.
    pub rule: RuleText,
    /// The facts it used.
    pub facts: Vec<Proof>,
    /// Its conditions, with the values they were evaluated on.
    pub conditions: Vec<String>,
}

/// A fact and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// The fact.
    pub fact: String,
    /// Who states it, or the place of the rule that derives it.
    pub source: String,
    /// The rule that derives it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What it was derived from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<Proof>,
    /// The conditions of that rule, with their values.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<String>,
}

/// A fact Writ asks the policy for, and the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// The fact.
    pub fact: String,
    /// How it is derived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// If it is not, the rule that came nearest to deriving it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// A rule that did not fire, or did and was overruled, and what stood in its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// The rule.
    pub rule: RuleText,
    /// What it lacks; empty if it fired.
    pub lacks: Vec<Lack>,
    /// The deny rules that overrule it, each with what it fired on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overruled_by: Vec<Overruling>,
}

/// A deny rule in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overruling {
    /// `file:line`
    pub place: String,
    /// What would have to be different for it not to fire.
    pub because: Vec<String>,
}

/// What a rule lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// No such fact.
    Fact {
        /// The fact, as far as its terms are known.
        fact: String,
        /// Who would state it.
        stated_by: String,
        /// If rules derive it, the one that came nearest.
        #[serde(skip_serializing_if = "Option::is_none")]
        nearest: Option<Box<Nearest>>,
    },
    /// A condition that does not hold.
    Condition {
        /// As the rule says it.
        condition: String,
        /// With its values.
        values: String,
        /// Why it has no value, if it has none.
        #[serde(skip_serializing_if = "Option::is_none")]
        fault: Option<String>,
    },
}

/// A condition nobody can evaluate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unevaluated {
    /// The rule.
    pub rule: RuleText,
    /// The condition with its values.
    pub condition: String,
    /// Why.
    pub why: String,
}

/// What a rule looks at and nobody recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// The predicate.
    pub predicate: String,
    /// Places of the rules that may decide by it.
    pub rules: Vec<String>,
}

/// Decides a request and tells why.
#[must_use]
pub fn explain(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    now: Timestamp,
) -> Explanation {
    let verdict = decide(request, evidence, policy, now);
    let decision = match verdict.decision() {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    };
    let reasons: Vec<RecordedReason> = verdict.reasons().iter().map(RecordedReason::from).collect();
    let Ok(facts) = facts_of(request, evidence, policy, now) else {
        return Explanation::without_rules(decision, reasons);
    };
    let known = known_facts(request, evidence, policy, facts);
    let demands = demands(request, evidence);
    // Rules are told only if they were asked: a refusal that comes before them has nothing to do with them.
    let were_asked = verdict.reasons().iter().map(Reason::code).all(of_rules);
    if !were_asked {
        return Explanation::without_rules(decision, reasons);
    }
    Explanation::of(policy, known, &demands, decision, reasons)
}

/// Whether a refusal with this code is (also) the rules' answer.
pub(crate) fn of_rules(code: ReasonCode) -> bool {
    matches!(
        code,
        ReasonCode::DelegationNotAllowed
            | ReasonCode::EngineError
            | ReasonCode::EngineLimit
            | ReasonCode::EngineTimeout
            | ReasonCode::GrantNotAllowed
            | ReasonCode::PolicyDenied
            | ReasonCode::PolicyNoMatch
            | ReasonCode::TokenCheckFailed
    )
}

/// What `decide` asks the policy beside allow and deny: each as predicate and terms.
fn demands(request: &Request, evidence: &Evidence<'_>) -> Vec<Predicate> {
    let pair = |name: &str, one: &str, other: &str| Predicate::new(name, [Term::str(one), Term::str(other)]);
    match &request.principal {
        Principal::Agent(_) => {
            let own = evidence.capability.into_iter().flat_map(|capability| capability.chain().hops());
            let depth = evidence.capability.map_or(0, |capability| capability.chain().depth());
            let handed = evidence.handover.into_iter().flat_map(|chain| chain.chain().hops().skip(depth));
            own.chain(handed).map(|hop| pair("may_delegate", hop.from.as_str(), hop.to.as_str())).collect()
        }
        Principal::User { agent, .. } if request.action.as_str() != ASK => {
            let kind = request.environment.task_kind.iter();
            kind.map(|kind| pair("may_run", agent.as_str(), kind.as_str())).collect()
        }
        Principal::User { .. } | Principal::Operator(_) => Vec::new(),
    }
}

fn known_facts(
    request: &Request,
    evidence: &Evidence<'_>,
    policy: &PolicySet,
    facts: RequestFacts,
) -> Vec<Known> {
    let hops: Vec<(String, String)> = evidence
        .capability
        .into_iter()
        .flat_map(|capability| capability.chain().hops())
        .map(|hop| (hop.from.to_string(), hop.to.to_string()))
        .collect();
    let has_capability = evidence.capability.is_some();
    let ambient = facts.ambient.into_iter().map(|fact| {
        let source = ambient_source(&fact, has_capability, &hops);
        Known::stated(fact, source)
    });
    let contract = facts.contract.into_iter().map(|fact| {
        let source = match fact.name.as_str() {
            "arg" => "arguments of the call".to_owned(),
            _ => contract_source(request.resource.as_str()),
        };
        Known::stated(fact, source)
    });
    let gate =
        facts.gate.into_iter().map(|fact| Known::stated(fact, format!("gate of {}", request.resource)));
    let authority = evidence.capability.into_iter().flat_map(|capability| {
        let facts = capability.grant().facts().into_iter();
        facts.map(|fact| Known::stated(fact, AUTHORITY))
    });
    ambient.chain(contract).chain(gate).chain(authority).chain(inventory_facts(policy)).collect()
}

/// The source of what the authority block states.
pub(crate) const AUTHORITY: &str = "capability, authority block";

pub(crate) fn contract_source(resource: &str) -> String {
    match resource.strip_prefix("agent.") {
        Some(_) => "calls on agents are internal".to_owned(),
        None => format!("contract of {resource}"),
    }
}

pub(crate) fn inventory_facts(policy: &PolicySet) -> impl Iterator<Item = Known> {
    policy.inventory_facts.iter().map(|fact| {
        let place = policy.inventory.place(&fact.to_string()).unwrap_or("inventory");
        Known::stated(fact.clone(), place)
    })
}

/// Where a fact about the request itself comes from.
pub(crate) fn ambient_source(fact: &Predicate, has_capability: bool, hops: &[(String, String)]) -> String {
    let hop = |number: usize| match number.checked_sub(1).and_then(|index| hops.get(index)) {
        Some((from, to)) => format!("capability, hop {number}: `{from}` handed it to `{to}`"),
        None => AUTHORITY.to_owned(),
    };
    match (fact.name.as_str(), fact.terms.first()) {
        ("hop", Some(Term::Integer(number))) => hop(usize::try_from(*number).unwrap_or(0)),
        ("caller" | "depth", _) if has_capability => hop(hops.len()),
        ("label" | "integrity", _) => "task label".to_owned(),
        ("time" | "hour" | "weekday", _) => "clock at the decision".to_owned(),
        ("role" | "user", _) => "the user's token".to_owned(),
        ("operator", _) => "signature of the request".to_owned(),
        _ => "the request".to_owned(),
    }
}

impl Explanation {
    pub(crate) fn without_rules(decision: &'static str, reasons: Vec<RecordedReason>) -> Self {
        Self {
            decision,
            reasons,
            rules: Vec::new(),
            demands: Vec::new(),
            nearest: None,
            fault: None,
            unknown: Vec::new(),
        }
    }

    /// Tells how these facts lead to this decision.
    pub(crate) fn of(
        policy: &PolicySet,
        known: Vec<Known>,
        demands: &[Predicate],
        decision: &'static str,
        reasons: Vec<RecordedReason>,
    ) -> Self {
        let mut told = Self::without_rules(decision, reasons);
        let model = match Model::run(&policy.sources, known) {
            Ok(model) => model,
            Err(Fault::Limit) => return told,
            Err(Fault::Condition { rule, condition, why }) => {
                told.fault = policy.sources.get(rule).map(|_| Unevaluated {
                    rule: rule_text(policy, rule),
                    condition,
                    why: why.to_owned(),
                });
                return told;
            }
        };
        let teller = Teller { policy, model: &model };
        let denied = teller.fired(DENY);
        let allowed = teller.fired(ALLOW);
        told.demands = demands.iter().map(|fact| teller.demand(fact)).collect();
        // What is asked for beside the rules and missing is the nearest thing by itself.
        let is_missing = told.demands.iter().any(|demand| demand.proof.is_none());
        if decision == "deny" && !(is_missing && denied.is_empty()) {
            told.nearest = teller
                .nearest_allow()
                .map(|nearest| Nearest { overruled_by: denied.iter().map(overruling).collect(), ..nearest });
        }
        told.rules = if denied.is_empty() { allowed } else { denied };
        told.unknown = teller.unknown();
        told
    }
}

/// What a deny rule fired on, without what only says which request it is about.
fn overruling(fired: &Fired) -> Overruling {
    let about = ["request(", "resource(", "action("];
    let telling = fired.facts.iter().filter(|fact| !about.iter().any(|name| fact.fact.starts_with(name)));
    let mut because: Vec<String> = telling.map(|fact| fact.fact.clone()).collect();
    because.extend(fired.conditions.iter().cloned());
    if because.is_empty() {
        because = fired.facts.iter().map(|fact| fact.fact.clone()).collect();
    }
    Overruling { place: fired.rule.place.clone(), because }
}

fn rule_text(policy: &PolicySet, rule: usize) -> RuleText {
    let Some(source) = policy.sources.get(rule) else {
        return RuleText { place: String::new(), message: None, text: String::new() };
    };
    let info: Option<&RuleInfo> = source.decides.and_then(|position| policy.rules.get(position));
    RuleText {
        place: source.place.clone(),
        message: info.and_then(|info| info.message.clone()),
        text: source.text.clone(),
    }
}

struct Teller<'a> {
    policy: &'a PolicySet,
    model: &'a Model<'a>,
}

impl Teller<'_> {
    /// The deciding rules that certainly fired, in their order.
    fn fired(&self, name: &str) -> Vec<Fired> {
        let mut fired: Vec<(i64, &Known)> = self
            .model
            .of(name)
            .filter(|(_, fact)| fact.is_certain)
            .filter_map(|(_, fact)| match fact.terms.as_slice() {
                [Some(Term::Integer(position))] => Some((*position, fact)),
                _ => None,
            })
            .collect();
        fired.sort_by_key(|(position, _)| *position);
        let mut left = PROOF_FACTS_MAX;
        fired
            .into_iter()
            .filter_map(|(_, fact)| {
                let From::Rule { rule, facts, conditions } = &fact.from else { return None };
                Some(Fired {
                    effect: if name == ALLOW { "allow" } else { "deny" },
                    rule: rule_text(self.policy, *rule),
                    facts: facts.iter().filter_map(|fact| self.proof(*fact, 0, &mut left)).collect(),
                    conditions: conditions.clone(),
                })
            })
            .collect()
    }

    fn proof(&self, fact: usize, depth: usize, left: &mut usize) -> Option<Proof> {
        *left = left.checked_sub(1)?;
        let fact = self.model.facts.get(fact)?;
        let (source, rule, from, conditions) = match &fact.from {
            From::Stated(source) => (source.clone(), None, &[][..], Vec::new()),
            From::Rule { rule, facts, conditions } => {
                let rule = self.policy.sources.get(*rule)?;
                (rule.place.clone(), Some(rule.text.clone()), facts.as_slice(), conditions.clone())
            }
        };
        let facts = if depth < PROOF_DEPTH_MAX {
            from.iter().filter_map(|fact| self.proof(*fact, depth + 1, left)).collect()
        } else {
            Vec::new()
        };
        Some(Proof { fact: fact.text(), source, rule, facts, conditions })
    }

    fn demand(&self, wanted: &Predicate) -> Demand {
        let found = self.model.of(&wanted.name).find(|(_, fact)| fact.is(&wanted.name, &wanted.terms));
        let mut left = PROOF_FACTS_MAX;
        let proof = found.and_then(|(index, _)| self.proof(index, 0, &mut left));
        let nearest = if proof.is_some() { None } else { self.nearest_deriving(wanted, 0) };
        Demand { fact: wanted.to_string(), proof, nearest }
    }

    fn nearest_allow(&self) -> Option<Nearest> {
        let allowing = self.policy.sources.iter().enumerate().filter(|(_, source)| {
            let info = source.decides.and_then(|position| self.policy.rules.get(position));
            info.is_some_and(|info| info.effect == Effect::Allow)
        });
        let started = allowing.map(|(rule, _)| (rule, BTreeMap::new()));
        self.nearest(started, 0)
    }

    fn nearest_deriving(&self, wanted: &Predicate, depth: usize) -> Option<Nearest> {
        let started = self.policy.sources.iter().enumerate().filter_map(|(rule, source)| {
            let head = &source.rule.head;
            if head.name != wanted.name {
                return None;
            }
            // Variables of what is wanted are free, like values nobody recorded.
            let terms = wanted.terms.iter().map(|term| value_of(term, &BTreeMap::new()));
            let (mut bound, _) =
                unify(head, &Known::unknown(&wanted.name, terms.collect()), &BTreeMap::new())?;
            bound.retain(|_, value| value.is_some());
            Some((rule, bound))
        });
        self.nearest(started, depth)
    }

    fn nearest<'b>(
        &'b self,
        started: impl Iterator<Item = (usize, Bindings<'b>)>,
        depth: usize,
    ) -> Option<Nearest> {
        let mut best: Option<(Candidate<'b>, usize)> = None;
        let mut steps = SEARCH_STEPS_MAX;
        for (rule, bindings) in started {
            let Some(source) = self.policy.sources.get(rule) else { continue };
            let mut search = Search { model: self.model, body: &source.rule.body, best: None, steps };
            search.walk(0, bindings, Vec::new(), Cost::default());
            steps = search.steps;
            if let Some(found) = search.best
                && best.as_ref().is_none_or(|(best, _)| found.cost < best.cost)
            {
                best = Some((found, rule));
            }
        }
        let (candidate, rule) = best?;
        let body = &self.policy.sources.get(rule)?.rule.body;
        Some(Nearest {
            rule: rule_text(self.policy, rule),
            lacks: self.lacks(body, &candidate, depth),
            overruled_by: Vec::new(),
        })
    }

    fn lacks(&self, body: &Body, candidate: &Candidate<'_>, depth: usize) -> Vec<Lack> {
        let facts = candidate.skipped.iter().filter_map(|position| body.predicates.get(*position));
        let facts = facts.map(|predicate| {
            let wanted = filled_predicate(predicate, &candidate.bindings);
            let is_derived = self.policy.sources.iter().any(|source| source.rule.head.name == wanted.name);
            let nearest = (is_derived && depth < LACK_DEPTH_MAX)
                .then(|| self.nearest_deriving(&wanted, depth + 1))
                .flatten()
                .map(Box::new);
            Lack::Fact { fact: wanted.to_string(), stated_by: stated_by(&wanted.name).to_owned(), nearest }
        });
        let conditions = body.expressions.iter().filter(|one| !is_moot(one, &candidate.bindings));
        let conditions = conditions.filter_map(|one| {
            let fault = match evaluate(one, &candidate.bindings) {
                Ok(Some(Term::Bool(true))) => return None,
                Ok(Some(Term::Bool(false))) => None,
                Ok(Some(_)) => Some("it is neither true nor false".to_owned()),
                Ok(None) => Some("a value in it was not recorded".to_owned()),
                Err(why) => Some(why.to_owned()),
            };
            let values = filled(one, &candidate.bindings);
            Some(Lack::Condition { condition: one.to_string(), values, fault })
        });
        facts.chain(conditions).collect()
    }

    /// Predicates with facts nobody recorded, and the rules that may decide by them.
    fn unknown(&self) -> Vec<Unknown> {
        unknowns(self.policy, self.model)
            .into_iter()
            .map(|(predicate, rules)| Unknown { predicate, rules })
            .collect()
    }
}

/// The deciding and demanded conclusions that hang on facts nobody recorded: predicate, and places of the rules that
/// look at it.
pub(crate) fn unknowns(policy: &PolicySet, model: &Model<'_>) -> Vec<(String, Vec<String>)> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut todo: Vec<usize> = Vec::new();
    for (index, fact) in model.facts.iter().enumerate() {
        let counts = matches!(fact.name.as_str(), ALLOW | DENY | "may_delegate" | "may_run" | "grant");
        if counts && !fact.is_certain {
            todo.push(index);
        }
    }
    let mut seen = vec![false; model.facts.len()];
    while let Some(index) = todo.pop() {
        let Some(fact) = model.facts.get(index) else { continue };
        let From::Rule { rule, facts, .. } = &fact.from else { continue };
        for used in facts {
            let Some(known) = model.facts.get(*used).filter(|known| !known.is_certain) else { continue };
            if matches!(known.from, From::Stated(_)) {
                let places = found.entry(known.name.clone()).or_default();
                let place = policy.sources.get(*rule).map(|source| source.place.clone());
                places.extend(place.filter(|place| !places.contains(place)));
            } else if let Some(seen) = seen.get_mut(*used)
                && !std::mem::replace(seen, true)
            {
                todo.push(*used);
            }
        }
    }
    for rule in &model.doubtful {
        let Some(source) = policy.sources.get(*rule) else { continue };
        for predicate in &source.rule.body.predicates {
            if model
                .of(&predicate.name)
                .any(|(_, known)| matches!(known.from, From::Stated(_)) && !known.is_certain)
            {
                let places = found.entry(predicate.name.clone()).or_default();
                if !places.contains(&source.place) {
                    places.push(source.place.clone());
                }
            }
        }
    }
    found.into_iter().collect()
}

/// Who would state a fact of this name.
fn stated_by(name: &str) -> &'static str {
    match schema::find(name).map(|declared| declared.provider) {
        Some(Provider::Capability) => "the capability",
        Some(Provider::Contract) => "the tool's contract",
        Some(Provider::Gate) => "the tool's gate",
        Some(Provider::Inspector) => "an inspector",
        Some(Provider::Inventory) => "agents.toml or roles.toml",
        Some(Provider::Request) => "the request",
        Some(Provider::Policy) | None => "a rule",
    }
}

/// How much a rule lacks. A rule about another kind of request is far away whatever else it lacks; of two that lack
/// the same number, the one is nearer that lacks what somebody could grant, and not what the request says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    other_kinds: usize,
    lacking: usize,
    of_request: usize,
}

struct Candidate<'b> {
    cost: Cost,
    bindings: Bindings<'b>,
    /// Predicates of the body without a fact.
    skipped: Vec<usize>,
}

/// Branch and bound over the ways to match a body, where a predicate may also be left without a fact.
struct Search<'b> {
    model: &'b Model<'b>,
    body: &'b Body,
    best: Option<Candidate<'b>>,
    steps: usize,
}

impl<'b> Search<'b> {
    fn walk(&mut self, at: usize, bindings: Bindings<'b>, skipped: Vec<usize>, cost: Cost) {
        let Some(steps) = self.steps.checked_sub(1) else { return };
        self.steps = steps;
        if self.best.as_ref().is_some_and(|best| best.cost <= cost) {
            return;
        }
        let Some(predicate) = self.body.predicates.get(at) else {
            let unmet = self.body.expressions.iter().filter(|one| {
                is_moot(one, &bindings) || evaluate(one, &bindings) != Ok(Some(Term::Bool(true)))
            });
            let cost = Cost { lacking: cost.lacking + unmet.count(), ..cost };
            if self.best.as_ref().is_none_or(|best| cost < best.cost) {
                self.best = Some(Candidate { cost, bindings, skipped });
            }
            return;
        };
        for (_, fact) in self.model.of(&predicate.name).filter(|(_, fact)| fact.is_certain) {
            if let Some((bound, _)) = unify(predicate, fact, &bindings) {
                self.walk(at + 1, bound, skipped.clone(), cost);
            }
        }
        let is_of_request =
            schema::find(&predicate.name).is_some_and(|declared| declared.provider == Provider::Request);
        let cost = Cost {
            other_kinds: cost.other_kinds + usize::from(predicate.name == "request"),
            lacking: cost.lacking + 1,
            of_request: cost.of_request + usize::from(is_of_request),
        };
        let skipped = skipped.into_iter().chain([at]).collect();
        self.walk(at + 1, bindings, skipped, cost);
    }
}

/// Whether a condition is about a variable that nothing was found for.
fn is_moot(expression: &Expression, bindings: &Bindings<'_>) -> bool {
    let mut moot = false;
    expression.walk(&mut |part| {
        if let Node::Term(Term::Variable(name)) = &part.node {
            moot |= !bindings.contains_key(name.as_str());
        }
    });
    moot
}
