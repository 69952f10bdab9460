//! The flow plane of the second authorizer, from "Where data may go" in policies/README.md: who may be told a result,
//! what an action takes, and what vouches for the arguments that decide who is affected.
//!
//! Its values are plain words, compared as they are: what `source/` knows of spellings has tests of its own.

use std::collections::{BTreeMap, BTreeSet};

use writ_common::reason::ReasonCode;

use super::reference::{Argument, Capability, Case, Condition, Facts, Name, Right, Statement, Value, World};

/// Tags of data, or those somebody is cleared for; `None` is top: everything.
pub type Tags = Option<BTreeSet<Name>>;
/// Tags, and whether outsiders had a say.
pub type Label = (Tags, bool);
/// A guarded argument that was looked at: where, what it names, and what vouches for it.
pub type Sourced = (String, Name, Option<String>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Directory,
    Instruction,
    InstructionAny,
    Result,
}

pub struct Guard {
    /// `/table`, or `/tags/*`.
    pub argument: Name,
    pub entity: Name,
    /// `None` if the contract does not say.
    pub sorts: Option<Vec<Sort>>,
}

pub struct Column {
    pub table: Name,
    pub column: Name,
    pub label: Label,
}

/// What one action of a contract says of flow.
#[derive(Default)]
pub struct Action {
    pub accepts: Option<Tags>,
    pub returns: Option<Label>,
    pub guards: Vec<Guard>,
    pub columns: Vec<Column>,
}

pub struct Directory {
    pub name: Name,
    pub entity: Name,
    pub values: BTreeSet<Name>,
    pub outsiders_write: bool,
}

pub struct Approver {
    pub roles: BTreeSet<Name>,
    pub users: BTreeSet<Name>,
    pub has_key: bool,
}

/// What the inventory and the contracts say of flow.
#[derive(Default)]
pub struct Tables {
    pub clearances: BTreeMap<Name, Tags>,
    /// Region and clearance.
    pub providers: BTreeMap<Name, (Name, Tags)>,
    pub provider_of: BTreeMap<Name, Name>,
    pub actions: BTreeMap<Right, Action>,
    pub directories: Vec<Directory>,
    pub approvers: BTreeMap<Name, Approver>,
}

/// What a rule derives for the flow plane.
#[derive(Clone, Copy, Debug)]
pub enum Derived {
    Accepts(Name),
    MayDeclassify(Name, Name),
    MayEndorse(Name, Name),
    NeedsApproval(Name, u8),
    ResultTag(Name),
    ResultUntrusted,
    SourceApproval(Name, u8),
}

/// A person's word on a call.
#[derive(Clone, Debug)]
pub struct Act {
    pub by: Name,
    /// Whose key signed it.
    pub signer: Name,
    /// `None` if it vouches for arguments.
    pub declassifies: Option<BTreeSet<Name>>,
    pub right: Right,
    /// Whether it is for this very call.
    pub is_for_call: bool,
    pub expires: u64,
}

/// What is known of a task beside its label.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// What the user's instruction names, if there is one.
    pub instruction: Option<Vec<Name>>,
    /// Values of trusted fields of earlier results, by type.
    pub results: Vec<(Name, Name)>,
    pub acts: Vec<Act>,
}

/// What an allowed call comes with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Whose approval it takes, and how many.
    pub needs: BTreeMap<String, u8>,
    /// What the result carries, by tags; `None` is top.
    pub tags: Option<BTreeSet<String>>,
    pub is_untrusted: bool,
    /// The acts it uses up, by their place.
    pub acts: BTreeSet<usize>,
    pub sources: BTreeSet<(String, String, Option<String>)>,
}

/// What `tags` has beyond `most`; nothing of top can be named.
fn beyond(tags: &Tags, most: &Tags) -> BTreeSet<Name> {
    match (tags, most) {
        (_, None) => BTreeSet::new(),
        (None, Some(_)) => BTreeSet::from(["top"]),
        (Some(tags), Some(most)) => tags - most,
    }
}

fn joined((tags, untrusted): &Label, (others, also): &Label) -> Label {
    (tags.as_ref().zip(others.as_ref()).map(|(tags, others)| tags | others), *untrusted || *also)
}

/// The column the gate of these tests says a call reads.
pub fn column_read(right: Right, arguments: &[(Name, Argument)]) -> Option<(Name, Name)> {
    let given = |wanted| arguments.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let Some(Argument::Plain(Value::Text(table))) = given("table").filter(|_| right.1 == "read") else {
        return None;
    };
    let all = given("dry") == Some(&Argument::Plain(Value::Bool(true)));
    Some((table, if all { "*" } else { "name" }))
}

impl World {
    /// What an agent may be told: its own clearance, as far as its provider's goes.
    pub fn cleared(&self, agent: Name) -> Tags {
        let own = self.flow.clearances.get(agent).cloned().unwrap_or_else(|| Some(BTreeSet::new()));
        let provider = self.flow.provider_of.get(agent).and_then(|name| self.flow.providers.get(name));
        match (own, provider.and_then(|(_, tags)| tags.clone())) {
            (None, provider) => provider,
            (own, None) => own,
            (Some(own), Some(provider)) => Some(&own & &provider),
        }
    }

    pub fn region(&self, agent: Name) -> Option<Name> {
        self.flow
            .provider_of
            .get(agent)
            .and_then(|name| self.flow.providers.get(name))
            .map(|(region, _)| *region)
    }

    /// The guarded arguments of a call on a tool, and what vouches for each if outsiders had a say in the task.
    pub fn look_at_arguments(&self, facts: &mut Facts<'_>, told: &Told) {
        let Some(action) = self.flow.actions.get(&facts.right) else { return };
        for guard in &action.guards {
            for (path, value) in &facts.arguments {
                let is_guarded = match guard.argument.strip_suffix('*') {
                    Some(folder) => path.starts_with(folder),
                    None => path == guard.argument,
                };
                if is_guarded {
                    facts.guarded.push(guard.entity);
                    if facts.is_untrusted {
                        let source = self.source(guard, *value, told);
                        facts.sourced.push((path.clone(), guard.entity, source));
                    }
                }
            }
        }
    }

    fn source(&self, guard: &Guard, value: Value, told: &Told) -> Option<String> {
        let value = match value {
            Value::Text(text) => text.to_owned(),
            Value::Integer(number) => number.to_string(),
            Value::Bool(_) => return None,
        };
        let counts = |sort| match &guard.sorts {
            Some(sorts) => sorts.contains(&sort),
            None => sort != Sort::InstructionAny,
        };
        let named: BTreeSet<Name> = told.instruction.iter().flatten().copied().collect();
        if named.contains(value.as_str())
            && (counts(Sort::InstructionAny) || (counts(Sort::Instruction) && named.len() == 1))
        {
            return Some("instruction".to_owned());
        }
        let lists = |directory: &&Directory| {
            directory.entity == guard.entity
                && !directory.outsiders_write
                && directory.values.contains(value.as_str())
        };
        let directory = self.flow.directories.iter().find(lists).filter(|_| counts(Sort::Directory));
        if let Some(directory) = directory {
            return Some(format!("directory:{}", directory.name));
        }
        let is_known = told.results.iter().any(|(entity, known)| *entity == guard.entity && *known == value);
        (is_known && counts(Sort::Result)).then(|| "result".to_owned())
    }

    /// What rules derived, one after the other.
    fn derived<'a>(&'a self, facts: &'a Facts<'_>) -> impl Iterator<Item = Derived> + 'a {
        self.statements.iter().filter_map(|statement| match statement {
            Statement::Derive(derived, conditions) if self.holds(conditions, facts) == Ok(true) => {
                Some(*derived)
            }
            _ => None,
        })
    }

    /// What the result of a call carries at least.
    fn result(&self, facts: &Facts<'_>, held: &Label, read: Option<(Name, Name)>) -> Label {
        let action = self.flow.actions.get(&facts.right);
        let mut label = match action {
            // An agent has no contract; its answer carries what it was told.
            None => held.clone(),
            Some(action) => action.returns.clone().unwrap_or((None, true)),
        };
        let columns = action.into_iter().flat_map(|action| &action.columns);
        for column in columns {
            let (is_table, name) = read.map_or((false, ""), |(table, name)| (table == column.table, name));
            if is_table && (name == "*" || name == column.column) {
                label = joined(&label, &column.label);
            }
        }
        for derived in self.derived(facts) {
            match derived {
                Derived::ResultTag("top") => label.0 = None,
                Derived::ResultTag(tag) => label = joined(&label, &(Some(BTreeSet::from([tag])), false)),
                Derived::ResultUntrusted => label.1 = true,
                _ => {}
            }
        }
        label
    }

    /// What an action takes.
    fn takes(&self, facts: &Facts<'_>, action: &Action) -> Tags {
        let leaves = matches!(facts.effect, Some("shared" | "egress"));
        let otherwise = if leaves { Some(BTreeSet::new()) } else { None };
        let mut tags = action.accepts.clone().unwrap_or(otherwise)?;
        tags.extend(self.derived(facts).filter_map(|derived| match derived {
            Derived::Accepts(tag) => Some(tag),
            _ => None,
        }));
        Some(tags)
    }

    /// What speaks against counting an act, if it is about this right at all.
    fn act_fault(&self, act: &Act, user: Name, now: u64) -> Option<ReasonCode> {
        if !act.is_for_call {
            return Some(ReasonCode::DeclassDigest);
        }
        let approver = self.flow.approvers.get(act.by);
        let is_signed = approver.is_some_and(|approver| approver.has_key) && act.signer == act.by;
        let is_own = approver.is_some_and(|approver| approver.users.contains(user));
        (!is_signed || is_own || act.expires <= now).then_some(ReasonCode::DeclassUnauthorised)
    }

    fn may_declassify(&self, facts: &Facts<'_>, act: &Act, tag: Name) -> bool {
        let roles = &self.flow.approvers[act.by].roles;
        self.derived(facts).any(|derived| match derived {
            Derived::MayDeclassify(role, may) => roles.contains(role) && may == tag,
            _ => false,
        })
    }

    fn may_endorse(&self, facts: &Facts<'_>, act: &Act, entity: Name) -> bool {
        let roles = &self.flow.approvers[act.by].roles;
        self.derived(facts).any(|derived| match derived {
            Derived::MayEndorse(role, may) => roles.contains(role) && may == entity,
            _ => false,
        })
    }

    /// What stands against a call by the flow plane, or what it comes with.
    pub fn flows(
        &self,
        facts: &Facts<'_>,
        case: &Case,
        capability: &Capability,
        read: Option<(Name, Name)>,
    ) -> Result<Terms, BTreeSet<ReasonCode>> {
        let held: Label = (case.tags.clone(), case.is_untrusted);
        let result = self.result(facts, &held, read);
        let mut codes = BTreeSet::new();
        let caller = facts.caller.map(|caller| self.cleared(caller)).unwrap();
        let called = facts.right.0.strip_prefix("agent.");
        let may_not_be_told = called.is_some_and(|called| !beyond(&held.0, &self.cleared(called)).is_empty());
        if !beyond(&result.0, &caller).is_empty() || may_not_be_told {
            codes.insert(ReasonCode::FlowClearance);
        }
        let mut used = BTreeSet::new();
        let acts: Vec<(usize, &Act)> =
            case.told.acts.iter().enumerate().filter(|(_, act)| act.right == facts.right).collect();
        if let Some(action) = self.flow.actions.get(&facts.right) {
            let mut left = beyond(&held.0, &self.takes(facts, action));
            if !left.is_empty() {
                let mut faults = BTreeSet::new();
                for (at, act) in &acts {
                    let Some(tags) = &act.declassifies else { continue };
                    if let Some(fault) = self.act_fault(act, capability.user, case.now) {
                        faults.insert(fault);
                        continue;
                    }
                    for tag in tags {
                        if !self.may_declassify(facts, act, tag) {
                            faults.insert(ReasonCode::DeclassUnauthorised);
                        } else if left.remove(tag) {
                            used.insert(*at);
                        }
                    }
                }
                if !left.is_empty() {
                    codes.insert(ReasonCode::FlowSink);
                    codes.extend(faults);
                }
            }
        }
        let unsourced: BTreeSet<Name> = facts
            .sourced
            .iter()
            .filter(|(.., source)| source.is_none())
            .map(|(_, entity, _)| *entity)
            .collect();
        let mut needs: BTreeMap<String, u8> = BTreeMap::new();
        let mut need = |role: Name, people: u8| {
            let most = needs.entry(role.to_owned()).or_default();
            *most = people.max(*most);
        };
        if !unsourced.is_empty() {
            let mut faults = BTreeSet::new();
            let vouching = acts.iter().filter(|(_, act)| act.declassifies.is_none()).find(|(_, act)| {
                let fault = self.act_fault(act, capability.user, case.now).or_else(|| {
                    let may = |entity: &Name| self.may_endorse(facts, act, entity);
                    (!unsourced.iter().all(may)).then_some(ReasonCode::DeclassUnauthorised)
                });
                faults.extend(fault);
                fault.is_none()
            });
            let asked: Vec<(Name, u8)> = self
                .derived(facts)
                .filter_map(|derived| match derived {
                    Derived::SourceApproval(role, people) => Some((role, people)),
                    _ => None,
                })
                .collect();
            match vouching {
                Some((at, _)) => drop(used.insert(*at)),
                None if asked.is_empty() => {
                    codes.insert(ReasonCode::FlowIntegrity);
                    codes.extend(faults);
                }
                None => asked.into_iter().for_each(|(role, people)| need(role, people)),
            }
        }
        if !codes.is_empty() {
            return Err(codes);
        }
        for derived in self.derived(facts) {
            if let Derived::NeedsApproval(role, people) = derived {
                need(role, people);
            }
        }
        let sources = facts.sourced.iter().cloned();
        Ok(Terms {
            needs,
            tags: result.0.map(|tags| tags.into_iter().map(str::to_owned).collect()),
            is_untrusted: result.1,
            acts: used,
            sources: sources.map(|(path, entity, source)| (path, entity.to_owned(), source)).collect(),
        })
    }

    /// The conditions that are about flow.
    pub(super) fn flow_holds(&self, condition: &Condition, facts: &Facts<'_>) -> bool {
        match condition {
            Condition::Cleared(tag) => facts.caller.is_some_and(|caller| match self.cleared(caller) {
                None => *tag == "top",
                Some(tags) if tags.is_empty() => *tag == "public",
                Some(tags) => tags.contains(tag),
            }),
            Condition::Guarded(entity) => facts.guarded.contains(entity),
            Condition::Region(region) => facts.caller.and_then(|caller| self.region(caller)) == Some(*region),
            Condition::Sourced(source) => {
                facts.sourced.iter().any(|(.., found)| found.as_deref() == Some(*source))
            }
            Condition::Unsourced(entity) => {
                facts.sourced.iter().any(|(_, of, found)| of == entity && found.is_none())
            }
            _ => unreachable!(),
        }
    }
}
