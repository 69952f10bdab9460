//! Recorded decisions, asked of a policy again.
//!
//! A record holds what was decided on, except content: digests of arguments, no keys. So the second answer has three
//! values: allowed, denied, or depending on something nobody recorded. What is known is decided as [`crate::decide`]
//! would; what is held fixed is the capability, so that only the policy makes a difference.

pub mod diff;
pub mod suggest;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    datalog::{Predicate, Term},
    decide::{ambient_facts, argument_facts},
    digest::Digest,
    ids::{AgentId, CapabilityId, OperatorId, ResourceKind, RoleId, TaskKind},
    label::Label,
    policy::{
        ALLOW, DENY, PolicySet,
        explain::{self, Explanation},
        prove::{Fault, Known, Model},
        schema,
    },
    reason::{Reason, ReasonCode},
    record::{DecisionId, Granted, Record, RecordBody, RecordedDecision, Verdicted},
    request::{Arguments, Environment, Principal, Request},
};

/// Every decision of a stretch of the audit stream.
#[derive(Default)]
pub struct History<'r> {
    past: Vec<Past<'r>>,
}

/// One recorded decision, with what other records say about its capability.
#[derive(Clone, Copy)]
pub struct Past<'r> {
    /// The record.
    pub record: &'r Record,
    /// What it says.
    pub verdicted: &'r Verdicted,
    /// What the capability was granted, if that is on record.
    pub granted: Option<&'r Granted>,
}

impl<'r> History<'r> {
    /// Puts records together. A record that was delivered twice counts once, and one that was voided not at all.
    pub fn new(records: impl IntoIterator<Item = &'r Record>) -> Self {
        let records: Vec<&Record> = records.into_iter().collect();
        let mut granted: BTreeMap<(&CapabilityId, u64), &Granted> = BTreeMap::new();
        let mut voided: BTreeSet<&DecisionId> = BTreeSet::new();
        for record in &records {
            match &record.body {
                RecordBody::Verdict(verdicted) => {
                    let named = verdicted.who.capability.as_ref().zip(verdicted.who.serial);
                    if let (Some(named), Some(grant)) = (named, &verdicted.granted) {
                        granted.insert(named, grant);
                    }
                }
                RecordBody::Void(_) => drop(voided.insert(&record.id)),
                RecordBody::Outcome(_) => {}
            }
        }
        let mut seen = BTreeSet::new();
        let past = records
            .into_iter()
            .filter_map(|record| match &record.body {
                RecordBody::Verdict(verdicted) => Some((record, verdicted.as_ref())),
                RecordBody::Outcome(_) | RecordBody::Void(_) => None,
            })
            .filter(|(record, _)| !voided.contains(&record.id) && seen.insert(&record.id))
            .map(|(record, verdicted)| {
                let named = verdicted.who.capability.as_ref().zip(verdicted.who.serial);
                let own = verdicted.granted.as_deref();
                Past { record, verdicted, granted: own.or_else(|| granted.get(&named?).copied()) }
            })
            .collect();
        Self { past }
    }

    /// Every decision, in the order of the stream.
    pub fn decisions(&self) -> impl Iterator<Item = Past<'r>> {
        self.past.iter().copied()
    }
}

/// A second answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// Which.
    pub answer: Answer,
    /// Causes of a denial.
    pub codes: BTreeSet<ReasonCode>,
    /// Places of the rules that decided.
    pub rules: Vec<String>,
    /// What nobody recorded, with the places of the rules that look at it.
    pub depends: Vec<(String, Vec<String>)>,
    /// For a start or renewal, the rights that would be granted.
    pub grants: Option<BTreeSet<String>>,
    /// Whether some rule allows it, and whether what else is asked of the policy is there, whatever is unknown.
    pub settled: (bool, bool),
}

/// Yes, no, or that it hangs on what nobody recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// It would be allowed.
    Allow,
    /// It would be denied.
    Deny,
    /// It depends.
    Depends,
}

impl Again {
    fn denied(code: ReasonCode) -> Self {
        Self {
            answer: Answer::Deny,
            codes: [code].into(),
            rules: Vec::new(),
            depends: Vec::new(),
            grants: None,
            settled: (false, false),
        }
    }
}

/// What kind of request a record is about.
enum Asked<'r> {
    Call { caller: &'r AgentId },
    Grant { agent: &'r AgentId, kind: TaskKind },
    Admin { operator: OperatorId },
}

impl<'r> Past<'r> {
    /// The decision that was recorded.
    #[must_use]
    pub fn decision(&self) -> Answer {
        match self.verdicted.decision {
            RecordedDecision::Allow | RecordedDecision::Hold => Answer::Allow,
            RecordedDecision::Deny => Answer::Deny,
        }
    }

    /// The kind of its task, if that is on record.
    #[must_use]
    pub fn task_kind(&self) -> Option<TaskKind> {
        if let Some(granted) = self.granted {
            return Some(granted.kind.clone());
        }
        let resource = self.verdicted.what.resource.as_ref()?;
        (resource.kind() == ResourceKind::Task).then(|| TaskKind::parse(resource.name()).ok()).flatten()
    }

    fn asked(&self) -> Result<Asked<'r>, String> {
        let (who, what) = (&self.verdicted.who, &self.verdicted.what);
        if let Some(operator) = &who.operator {
            let operator = OperatorId::parse(operator.as_str()).map_err(|error| error.to_string())?;
            return Ok(Asked::Admin { operator });
        }
        if self.verdicted.right.is_some() {
            return Err("a right that is asked for is for people to judge".to_owned());
        }
        let missing = |what: &str| format!("its record does not say {what}");
        let caller = who.caller.as_ref().ok_or_else(|| missing("who called"))?;
        let resource = what.resource.as_ref().ok_or_else(|| missing("on what"))?;
        if resource.kind() == ResourceKind::Task {
            let kind = self.task_kind().ok_or_else(|| missing("for which kind of task"))?;
            return Ok(Asked::Grant { agent: caller, kind });
        }
        Ok(Asked::Call { caller })
    }

    /// Whether the policy had a say in it, and so would have one again.
    ///
    /// # Errors
    /// Why asking again would tell nothing: what was refused for another cause is refused again.
    pub fn check_replayable(&self) -> Result<(), String> {
        let others: BTreeSet<&str> = self
            .verdicted
            .reasons
            .iter()
            .map(|reason| reason.code)
            .filter(|code| !is_of_policy(*code))
            .map(ReasonCode::as_str)
            .collect();
        if !others.is_empty() {
            let others: Vec<&str> = others.into_iter().collect();
            return Err(format!("refused for {}, whatever the policy", others.join(", ")));
        }
        self.asked().map(|_| ())
    }

    fn request(&self, asked: &Asked<'_>, arguments: Option<&Arguments>) -> Result<Request, String> {
        let (who, what) = (&self.verdicted.who, &self.verdicted.what);
        let principal = match asked {
            Asked::Call { caller } => Principal::Agent((*caller).clone()),
            Asked::Admin { operator } => Principal::Operator(operator.clone()),
            Asked::Grant { agent, .. } => Principal::User {
                user: who.user.clone().ok_or("its record does not say for which user")?,
                roles: self.roles(),
                agent: (*agent).clone(),
            },
        };
        Ok(Request {
            principal,
            action: what.action.clone().ok_or("its record does not say which action")?,
            resource: what.resource.clone().ok_or("its record does not say on what")?,
            arguments: arguments.cloned().unwrap_or_else(Arguments::none),
            environment: Environment {
                tenant: self.record.tenant.clone(),
                task: who.task.clone(),
                task_kind: match asked {
                    Asked::Grant { kind, .. } => Some(kind.clone()),
                    _ => None,
                },
            },
        })
    }

    /// Roles the user had, as far as they are on record.
    #[must_use]
    pub fn roles(&self) -> Vec<RoleId> {
        let roles = self.granted.into_iter().flat_map(|granted| &granted.roles);
        roles.filter_map(|role| RoleId::parse(role.as_str()).ok()).collect()
    }

    /// The arguments, if the record's digest gives them away: there were none.
    fn known_arguments(&self, given: Option<&Arguments>) -> Option<Arguments> {
        let none = Arguments::none();
        let is_none = self.verdicted.what.arguments == Some(none.digest());
        given.cloned().or_else(|| is_none.then_some(none))
    }

    /// Takes arguments for those of the record.
    ///
    /// # Errors
    /// If they are others: the record holds another digest, or none.
    pub fn check_arguments(&self, arguments: &Arguments) -> Result<(), String> {
        let given = arguments.digest();
        match self.verdicted.what.arguments {
            Some(recorded) if recorded == given || crate::red::off("A11") => Ok(()),
            Some(recorded) => Err(format!(
                "these are not the arguments of {}: their digest is {}, the record's is {}",
                self.record.id,
                given.short(),
                recorded.short()
            )),
            None => Err(format!("{} has no arguments on record", self.record.id)),
        }
    }

    /// The facts it was decided on, as far as they are on record.
    fn facts(
        &self,
        asked: &Asked<'_>,
        request: &Request,
        policy: &PolicySet,
        arguments: Option<&Arguments>,
    ) -> Result<Vec<Known>, Reason> {
        let who = &self.verdicted.who;
        let hops: Vec<(String, String)> =
            who.hops.iter().map(|hop| (hop.from.to_string(), hop.to.to_string())).collect();
        let is_call = matches!(asked, Asked::Call { .. });
        let (bottom, label) = (Label::bottom(), self.verdicted.basis.label.as_ref());
        // A broker decides without data, and so without a label.
        let label = if is_call { label } else { Some(&bottom) };
        let stated = |fact: Predicate| {
            let source = explain::ambient_source(&fact, is_call, &hops);
            Known::stated(fact, source)
        };
        let mut facts: Vec<Known> = ambient_facts(request, self.record.at, label.unwrap_or(&bottom))
            .into_iter()
            .map(stated)
            .collect();
        if label.is_none() {
            facts.retain(|fact| !matches!(fact.name.as_str(), "label" | "integrity"));
            facts.push(unknown("label"));
            facts.push(unknown("integrity"));
        }
        facts.extend(explain::inventory_facts(policy));
        match asked {
            Asked::Admin { .. } => {}
            Asked::Grant { .. } if self.granted.is_none() => facts.push(unknown("role")),
            Asked::Grant { .. } => {}
            Asked::Call { .. } => {
                facts.extend(self.chain_facts().into_iter().map(stated));
                facts.extend(self.authority_facts());
                facts.extend(self.argument_facts(request, policy, arguments)?);
            }
        }
        Ok(facts)
    }

    fn chain_facts(&self) -> Vec<Predicate> {
        let who = &self.verdicted.who;
        let number = |number: usize| Term::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        let hops = (1..).zip(&who.hops).map(|(depth, hop)| {
            Predicate::new("hop", [number(depth), Term::str(hop.from.as_str()), Term::str(hop.to.as_str())])
        });
        hops.chain([Predicate::new("depth", [number(who.hops.len())])]).collect()
    }

    /// What the authority block stated, as far as this record and that of its issue tell.
    fn authority_facts(&self) -> Vec<Known> {
        let (who, what) = (&self.verdicted.who, &self.verdicted.what);
        let stated =
            |name: &str, terms: Vec<Term>| Known::stated(Predicate::new(name, terms), explain::AUTHORITY);
        let mut facts = vec![stated("tenant", vec![Term::str(self.record.tenant.as_str())])];
        let mut one = |name: &str, terms: Option<Vec<Term>>| match terms {
            Some(terms) => facts.push(stated(name, terms)),
            None => facts.push(unknown(name)),
        };
        let number = |value: u64| vec![Term::Integer(i64::try_from(value).unwrap_or(i64::MAX))];
        let user = who.user.as_ref();
        one("user", user.map(|user| vec![Term::str(user.issuer()), Term::str(user.subject())]));
        one("agent", who.agent.as_ref().map(|agent| vec![Term::str(agent.as_str())]));
        one("task", who.task.as_ref().map(|task| vec![Term::str(task.as_str())]));
        one("capability", who.capability.as_ref().map(|id| vec![Term::str(id.as_str())]));
        one("serial", who.serial.map(number));
        one("domain", who.domain.as_ref().map(|domain| vec![Term::str(domain.to_string())]));
        let granted = self.granted;
        one("max_depth", granted.map(|granted| number(u64::from(granted.max_depth))));
        one("expires", granted.map(|granted| vec![Term::Date(granted.expires.as_secs())]));
        let instruction = granted.map(|granted| vec![Term::Bytes(granted.instruction.as_bytes().to_vec())]);
        one("instruction", instruction);
        // Records name keys by their fingerprint, and not the epoch a capability asks for.
        one("holder", None);
        one("min_epoch", None);
        let right = |resource: &str, action: &str| vec![Term::str(resource), Term::str(action)];
        if let Some(granted) = granted {
            let rights = granted.rights.iter();
            facts
                .extend(rights.map(|one| stated("right", right(one.resource.as_str(), one.action.as_str()))));
        } else {
            // Without the right, no rule would have been asked.
            if let (Some(resource), Some(action)) = (&what.resource, &what.action) {
                facts.push(stated("right", right(resource.as_str(), action.as_str())));
            }
            facts.push(unknown("right"));
        }
        facts
    }

    fn argument_facts(
        &self,
        request: &Request,
        policy: &PolicySet,
        arguments: Option<&Arguments>,
    ) -> Result<Vec<Known>, Reason> {
        let effect = match request.resource.kind() {
            ResourceKind::Agent => "internal",
            _ => {
                let contract = policy.contract(&request.resource);
                let action = contract.and_then(|contract| contract.action(&request.action));
                action.ok_or(ReasonCode::ToolUnknown)?.effect.as_str()
            }
        };
        let source = explain::contract_source(request.resource.as_str());
        let mut facts = vec![Known::stated(Predicate::new("effect", [Term::str(effect)]), source)];
        // Records say what was found, and not where.
        facts.extend([unknown("finding"), unknown("inspected")]);
        match self.known_arguments(arguments) {
            Some(arguments) => {
                let given = argument_facts(request, &arguments, policy)?;
                facts.extend(given.into_iter().map(|fact| Known::stated(fact, "arguments of the call")));
            }
            None => facts.push(unknown("arg")),
        }
        Ok(facts)
    }

    /// What the policy is asked for beside allow and deny.
    fn demands(&self, asked: &Asked<'_>) -> Vec<Predicate> {
        let pair =
            |name: &str, one: &str, other: &str| Predicate::new(name, [Term::str(one), Term::str(other)]);
        let who = &self.verdicted.who;
        match asked {
            Asked::Admin { .. } => Vec::new(),
            Asked::Grant { agent, kind } => vec![pair("may_run", agent.as_str(), kind.as_str())],
            Asked::Call { caller } => {
                let called = self.verdicted.what.resource.as_ref();
                let called = called.filter(|resource| resource.kind() == ResourceKind::Agent);
                let handed = called.map(|resource| pair("may_delegate", caller.as_str(), resource.name()));
                let hops =
                    who.hops.iter().map(|hop| pair("may_delegate", hop.from.as_str(), hop.to.as_str()));
                hops.chain(handed).collect()
            }
        }
    }

    /// Asks a policy again.
    ///
    /// # Errors
    /// Why that would tell nothing.
    pub fn again(&self, policy: &PolicySet, arguments: Option<&Arguments>) -> Result<Again, String> {
        self.check_replayable()?;
        let asked = self.asked()?;
        let request = self.request(&asked, arguments)?;
        let who = &self.verdicted.who;
        let registered = |agent: &AgentId| policy.inventory().agents.contains_key(agent);
        let mut agents: Vec<&AgentId> = who.hops.iter().map(|hop| &hop.to).collect();
        match &asked {
            Asked::Call { .. } => agents.extend(&who.agent),
            Asked::Grant { agent, .. } => agents.push(agent),
            Asked::Admin { .. } => {}
        }
        if !agents.into_iter().all(registered) {
            return Ok(Again::denied(ReasonCode::AgentUnknown));
        }
        let facts = match self.facts(&asked, &request, policy, arguments) {
            Ok(facts) => facts,
            Err(reason) => return Ok(Again::denied(reason.code())),
        };
        let mut again = conclude(policy, facts, &self.demands(&asked), matches!(asked, Asked::Grant { .. }));
        if again.answer != Answer::Deny
            && self.known_arguments(arguments).is_none()
            && let Some(contract) = self.changed_contract(policy)
        {
            again.answer = Answer::Depends;
            again.depends.push(("arguments, by the contract".to_owned(), vec![contract]));
        }
        Ok(again)
    }

    /// The tool whose contract is another than at the decision, so that its schema may refuse the arguments.
    fn changed_contract(&self, policy: &PolicySet) -> Option<String> {
        let resource = self.verdicted.what.resource.as_ref()?;
        let recorded: Digest = self.verdicted.what.contract?;
        let contract = policy.contract(resource)?;
        (contract.digest != recorded).then(|| format!("contract of {resource}"))
    }

    /// Tells why it was decided so, under the policy it was decided by.
    ///
    /// # Errors
    /// If it was another policy, or the record says too little.
    pub fn explain(&self, policy: &PolicySet, arguments: Option<&Arguments>) -> Result<Explanation, String> {
        let by = self.verdicted.basis.policy;
        if let Some(by) = by
            && by != policy.revision()
        {
            return Err(format!(
                "{} was decided under revision {by}, this folder is {}; look for the folder `writ policy check` says that revision of",
                self.record.id,
                policy.revision()
            ));
        }
        let decision = match self.decision() {
            Answer::Allow => "allow",
            _ => "deny",
        };
        let reasons = self.verdicted.reasons.clone();
        let of_rules = reasons.iter().all(|reason| explain::of_rules(reason.code));
        if by.is_none() || !of_rules {
            return Ok(Explanation::without_rules(decision, reasons));
        }
        if let Some(arguments) = arguments {
            self.check_arguments(arguments)?;
        }
        let asked = self.asked()?;
        let request = self.request(&asked, arguments)?;
        let facts = self
            .facts(&asked, &request, policy, arguments)
            .map_err(|reason| format!("its arguments do not fit the policy's contract: {reason}"))?;
        Ok(Explanation::of(policy, facts, &self.demands(&asked), decision, reasons))
    }
}

/// Whether a cause of refusal is the policy folder's: rules, inventory or contracts.
fn is_of_policy(code: ReasonCode) -> bool {
    explain::of_rules(code) && code != ReasonCode::TokenCheckFailed
        || matches!(code, ReasonCode::AgentUnknown | ReasonCode::ToolUnknown)
}

/// A declared predicate with values nobody recorded.
fn unknown(name: &str) -> Known {
    let terms = schema::find(name).map_or(0, |declared| declared.terms.len());
    Known::unknown(name, vec![None; terms])
}

fn conclude(policy: &PolicySet, facts: Vec<Known>, demands: &[Predicate], is_grant: bool) -> Again {
    let model = match Model::run(&policy.sources, facts) {
        Ok(model) => model,
        Err(Fault::Limit) => return Again::denied(ReasonCode::EngineLimit),
        Err(Fault::Condition { rule, .. }) => {
            let rules = policy.sources.get(rule).map(|source| source.place.clone());
            return Again { rules: rules.into_iter().collect(), ..Again::denied(ReasonCode::EngineError) };
        }
    };
    let fired = |name: &str, certainly: bool| -> Vec<String> {
        let positions: BTreeSet<usize> = model
            .of(name)
            .filter(|(_, fact)| fact.is_certain || !certainly)
            .filter_map(|(_, fact)| match fact.terms.as_slice() {
                [Some(Term::Integer(position))] => usize::try_from(*position).ok(),
                _ => None,
            })
            .collect();
        let rules = positions.into_iter().filter_map(|position| policy.rules.get(position));
        rules.map(crate::policy::RuleInfo::place).collect()
    };
    let there = |wanted: &Predicate| {
        model.of(&wanted.name).any(|(_, fact)| fact.is_certain && fact.is(&wanted.name, &wanted.terms))
    };
    let may_be =
        |wanted: &Predicate| model.of(&wanted.name).any(|(_, fact)| fact.may_be(&wanted.name, &wanted.terms));
    let (denied, allowed) = (fired(DENY, true), fired(ALLOW, true));
    let mut codes = BTreeSet::new();
    if demands.iter().any(|wanted| !may_be(wanted)) {
        codes.insert(if is_grant { ReasonCode::GrantNotAllowed } else { ReasonCode::DelegationNotAllowed });
    }
    if !denied.is_empty() {
        codes.insert(ReasonCode::PolicyDenied);
    } else if codes.is_empty() && fired(ALLOW, false).is_empty() {
        codes.insert(ReasonCode::PolicyNoMatch);
    }
    let grants = is_grant.then(|| {
        let rights = model.of("grant").filter(|(_, fact)| fact.is_certain);
        rights
            .filter_map(|(_, fact)| match fact.terms.as_slice() {
                [Some(Term::Str(resource)), Some(Term::Str(action))] => Some(format!("{resource}:{action}")),
                _ => None,
            })
            .collect()
    });
    let settled = (!allowed.is_empty(), demands.iter().all(there));
    let is_certain = settled == (true, true) && fired(DENY, false).is_empty() && model.doubtful.is_empty();
    let answer = match () {
        () if !codes.is_empty() => Answer::Deny,
        () if is_certain => Answer::Allow,
        () => Answer::Depends,
    };
    let depends = if answer == Answer::Depends { explain::unknowns(policy, &model) } else { Vec::new() };
    let rules = if denied.is_empty() { allowed } else { denied };
    Again { answer, codes, rules, depends, grants, settled }
}
