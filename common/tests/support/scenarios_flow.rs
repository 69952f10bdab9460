//! Random worlds of `reference_flow.rs`, and the same as the real thing: tables as text, acts with signatures.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use writ_common::{
    act::{ActKind, LabelAct},
    control::ControlEvent,
    datalog::{Predicate, Term},
    decide::FlowEvidence,
    digest::Digest,
    ids::{ApprovalId, EntityType, FlowDomain, OperatorId, TaskId},
    json,
    keys::PrivateKey,
    label::{Confidentiality, Integrity, Tag},
    request::Request,
    signed::Signed,
    source::{Instruction, ResultSources},
    time::Timestamp,
    verdict::Verdict,
    wire::call_digest,
};

use super::{
    key,
    random::Random,
    reference::{Argument, CONTRACTS, Case, Contract, Name, Right, Value},
    reference_flow::{
        Act, Action, Approver, Column, Derived, Directory, Guard, Label, Sort, Tables, Tags, Terms, Told,
    },
    scenarios::{NAMES, TABLES, TAGS, some},
    tenant,
};

/// What arguments name, and what may vouch for it.
const ENTITIES: [Name; 2] = ["id", "level"];
const NUMBERS: [Name; 4] = ["0", "5", "7", "40"];
const ROLES: [Name; 2] = ["lead", "officer"];
/// The first two are users as well, and the last has no key.
const APPROVERS: [Name; 4] = ["alice", "bob", "carol", "dave"];
/// Keys of approvers begin here.
const APPROVER_KEYS: u8 = 60;
pub const REGIONS: [Name; 2] = ["near", "far"];
pub const SOURCES: [Name; 3] = ["instruction", "directory:known", "result"];

fn tags(random: &mut Random, top: usize, each: usize) -> Tags {
    (!random.chance(top)).then(|| some(random, &TAGS, each))
}

fn label(random: &mut Random, top: usize, each: usize) -> Label {
    (tags(random, top, each), random.chance(30))
}

fn action(random: &mut Random, (right, _, declared, _): &Contract) -> Action {
    let is_declared = |name: &str| declared.iter().any(|(known, _)| *known == name);
    let mut guards = Vec::new();
    for (name, argument, entity) in [
        ("table", "/table", "id"),
        ("limit", "/limit", "level"),
        ("tags", "/tags/*", "id"),
        ("dry", "/dry", "level"),
    ] {
        if is_declared(name) && random.chance(if name == "dry" { 5 } else { 45 }) {
            let all = [Sort::Directory, Sort::Instruction, Sort::InstructionAny, Sort::Result];
            let sorts = random.chance(50).then(|| all.into_iter().filter(|_| random.chance(60)).collect());
            guards.push(Guard { argument, entity, sorts });
        }
    }
    let mut columns = Vec::new();
    if right.1 == "read" {
        for (table, column) in [("customers", "name"), ("orders", "salary"), ("vip", "name")] {
            if random.chance(60) {
                columns.push(Column { table, column, label: label(random, 5, 30) });
            }
        }
    }
    Action {
        accepts: random.chance(75).then(|| tags(random, 25, 60)),
        returns: (!random.chance(8)).then(|| label(random, 3, 20)),
        guards,
        columns,
    }
}

fn value(random: &mut Random, entity: Name) -> Name {
    if entity == "id" { random.one_of(&TABLES) } else { random.one_of(&NUMBERS) }
}

/// What inventory and contracts say of flow.
pub fn tables(random: &mut Random) -> Tables {
    let providers = REGIONS.map(|region| (region, (region, tags(random, 30, 75))));
    let provider_of = NAMES[..4].iter().filter_map(|name| {
        let provider = random.one_of(&REGIONS);
        random.chance(50).then_some((*name, provider))
    });
    let provider_of = provider_of.collect();
    let clearances = NAMES[..4].iter().map(|name| (*name, tags(random, 45, 80))).collect();
    let actions = CONTRACTS.iter().map(|contract| (contract.0, action(random, contract))).collect();
    let mut directory = |name, entity, outsiders_write| Directory {
        name,
        entity,
        values: (0..2).map(|_| value(random, entity)).collect(),
        outsiders_write,
    };
    let directories = vec![
        directory("contacts", "id", true),
        directory("known", "id", false),
        directory("numbers", "level", false),
    ];
    let approvers = APPROVERS.map(|name| {
        let users = BTreeSet::from([name]);
        let roles =
            if name == "carol" || random.chance(60) { ROLES.into() } else { [random.one_of(&ROLES)].into() };
        (name, Approver { roles, users, has_key: name != "dave" })
    });
    Tables {
        clearances,
        providers: providers.into(),
        provider_of,
        actions,
        directories,
        approvers: approvers.into(),
    }
}

/// Something for the flow plane to read.
pub fn derived(random: &mut Random) -> Derived {
    let (role, entity, tag) = (random.one_of(&ROLES), random.one_of(&ENTITIES), random.one_of(&TAGS));
    let people = u8::try_from(1 + random.below(2)).unwrap();
    match random.below(16) {
        0..3 => Derived::Accepts(tag),
        3..8 => Derived::MayDeclassify(role, tag),
        8..11 => Derived::MayEndorse(role, entity),
        11 => Derived::NeedsApproval(role, 1),
        12 => Derived::ResultTag(if random.chance(20) { "top" } else { tag }),
        13 => Derived::ResultUntrusted,
        // How many there are of a role is up to chance; one there always is.
        _ => Derived::SourceApproval(role, people),
    }
}

/// What is known of a task in which `right` is called with `arguments`; often enough it names what they do.
pub fn told(random: &mut Random, right: Right, arguments: &[(Name, Argument)], now: u64) -> Told {
    let mut given: Vec<(Name, Name)> = Vec::new();
    for (_, argument) in arguments {
        match argument {
            Argument::Plain(Value::Text(text)) => given.push(("id", text)),
            Argument::Plain(Value::Integer(number)) => {
                let name = NUMBERS.iter().find(|name| **name == number.to_string());
                given.extend(name.map(|name| ("level", *name)));
            }
            Argument::List(items) => given.extend(items.iter().map(|item| ("id", *item))),
            _ => {}
        }
    }
    let mut named = |most: usize| {
        let count = random.below(most + 1);
        let one = |_| match given.is_empty() || random.chance(30) {
            true => {
                let entity = random.one_of(&ENTITIES);
                (entity, value(random, entity))
            }
            false => random.one_of(&given),
        };
        (0..count).map(one).collect::<Vec<_>>()
    };
    let (named, results) = (named(2), named(2));
    let instruction: Vec<Name> = named.into_iter().map(|(_, value)| value).collect();
    let count = if random.chance(75) { 1 + random.below(3) } else { 0 };
    let acts = (0..count).map(|_| {
        let by = if random.chance(50) { "carol" } else { random.one_of(&APPROVERS) };
        Act {
            by,
            signer: if random.chance(5) { random.one_of(&APPROVERS) } else { by },
            declassifies: random.chance(60).then(|| some(random, &TAGS, 90)),
            right: if random.chance(5) { ("tool.crm", "read") } else { right },
            is_for_call: !random.chance(7),
            expires: if random.chance(5) { now } else { now + 600 },
        }
    });
    let acts = acts.collect();
    Told { instruction: (!random.chance(20)).then_some(instruction), results, acts }
}

// From here on: the same, for `decide()`.

fn key_of(approver: Name) -> PrivateKey {
    let at = APPROVERS.iter().position(|name| *name == approver).unwrap();
    key(APPROVER_KEYS + u8::try_from(at).unwrap())
}

fn tags_text(tags: &Tags) -> String {
    let words: Vec<Name> = tags.as_ref().map_or_else(|| vec!["top"], |tags| tags.iter().copied().collect());
    format!("{words:?}")
}

fn label_text((tags, is_untrusted): &Label) -> String {
    let integrity = if *is_untrusted { "untrusted" } else { "trusted" };
    format!("tags = {}, integrity = {integrity:?}", tags_text(tags))
}

impl Action {
    /// The keys of an action's contract.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(accepts) = &self.accepts {
            writeln!(text, "accepts = {}", tags_text(accepts)).unwrap();
        }
        if let Some(returns) = &self.returns {
            writeln!(text, "returns = {{ {} }}", label_text(returns)).unwrap();
        }
        let guards = self.guards.iter().map(|Guard { argument, entity, sorts }| {
            let word = |sort: &Sort| match sort {
                Sort::Directory => "directory",
                Sort::Instruction => "instruction",
                Sort::InstructionAny => "instruction-any",
                Sort::Result => "result",
            };
            let sorts: Option<Vec<Name>> = sorts.as_ref().map(|sorts| sorts.iter().map(word).collect());
            let sorts = sorts.map_or_else(String::new, |sorts| format!(", sources = {sorts:?}"));
            format!("{{ argument = {argument:?}, entity = {entity:?}{sorts} }}")
        });
        writeln!(text, "guard = [{}]", guards.collect::<Vec<_>>().join(", ")).unwrap();
        let columns = self.columns.iter().map(|Column { table, column, label }| {
            format!("{{ table = {table:?}, column = {column:?}, {} }}", label_text(label))
        });
        writeln!(text, "column = [{}]", columns.collect::<Vec<_>>().join(", ")).unwrap();
        text
    }
}

impl Tables {
    /// `[[provider]]`s of agents.toml.
    pub fn providers_text(&self) -> String {
        let text = |(name, (region, tags)): (&Name, &(Name, Tags))| {
            format!("[[provider]]\nname = {name:?}\nregion = {region:?}\nclearance = {}\n", tags_text(tags))
        };
        self.providers.iter().map(text).collect()
    }

    /// What an agent's entry says of flow.
    pub fn agent_text(&self, agent: Name) -> String {
        let provider = self.provider_of.get(agent).map(|name| format!("provider = {name:?}\n"));
        format!("clearance = {}\n{}", tags_text(&self.clearances[agent]), provider.unwrap_or_default())
    }

    /// directories.toml and approvers.toml.
    pub fn files(&self) -> BTreeMap<String, String> {
        let directories = self.directories.iter().map(|Directory { name, entity, values, outsiders_write }| {
            format!(
                "[[directory]]\nname = {name:?}\nentity = {entity:?}\nvalues = {:?}\noutsiders_write = {outsiders_write}\n",
                values.iter().collect::<Vec<_>>()
            )
        });
        let approvers = self.approvers.iter().map(|(name, Approver { roles, users, .. })| {
            let (roles, users) = (roles.iter().collect::<Vec<_>>(), users.iter().collect::<Vec<_>>());
            format!("[[approver]]\nname = {name:?}\nroles = {roles:?}\nusers = {users:?}\n")
        });
        BTreeMap::from([
            ("directories.toml".to_owned(), directories.collect()),
            ("approvers.toml".to_owned(), approvers.collect()),
        ])
    }

    /// Whose key is enrolled.
    pub fn events(&self) -> impl Iterator<Item = ControlEvent> + '_ {
        let with_key = self.approvers.iter().filter(|(_, approver)| approver.has_key);
        with_key.map(|(name, _)| ControlEvent::ApproverKey {
            approver: OperatorId::parse(*name).unwrap(),
            key: Some(key_of(name).public()),
        })
    }
}

impl Derived {
    /// The head of its rule.
    pub fn text(&self) -> String {
        match self {
            Self::Accepts(tag) => format!("accepts({tag:?})"),
            Self::MayDeclassify(role, tag) => format!("may_declassify({role:?}, {tag:?})"),
            Self::MayEndorse(role, entity) => format!("may_endorse({role:?}, {entity:?})"),
            Self::NeedsApproval(role, people) => format!("needs_approval({role:?}, {people})"),
            Self::ResultTag(tag) => format!("result_tag({tag:?})"),
            Self::ResultUntrusted => "result_integrity(\"untrusted\")".to_owned(),
            Self::SourceApproval(role, people) => format!("source_approval({role:?}, {people})"),
        }
    }
}

/// What the gate of these tests states.
pub fn gate_facts(arguments: &json::Value, is_read: bool) -> Vec<Predicate> {
    let table = arguments.get("table").and_then(json::Value::as_str).filter(|_| is_read);
    let all = arguments.get("dry") == Some(&json::Value::Bool(true));
    let fact =
        |table| Predicate::new("reads_column", [Term::str(table), Term::str(if all { "*" } else { "name" })]);
    table.map(fact).into_iter().collect()
}

pub fn confidentiality(tags: &Tags) -> Confidentiality {
    match tags {
        None => Confidentiality::Top,
        Some(tags) => Confidentiality::Tags(tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect()),
    }
}

/// What is known of a task, for `decide()`.
pub struct Known {
    pub acts: Vec<Signed<LabelAct>>,
    pub call: Digest,
    pub instruction: Option<Instruction>,
    pub results: ResultSources,
}

impl Known {
    pub fn of(case: &Case, request: &Request, domain: &FlowDomain) -> Self {
        let task = request.environment.task.clone().unwrap_or_else(|| TaskId::parse("t-1").unwrap());
        let call = call_digest(&request.resource, &request.action, request.arguments.canonical(), &task);
        let instruction = case.told.instruction.as_ref().map(|named| {
            let named: Vec<String> = named.iter().map(|name| format!("{name:?}")).collect();
            Instruction::new(&format!("please look after {} today", named.join(" and ")))
        });
        let mut results = ResultSources::default();
        for (entity, value) in &case.told.results {
            results.insert(domain, &EntityType::parse(*entity).unwrap(), &json::Value::from(*value));
        }
        let acts = case.told.acts.iter().enumerate().map(|(at, act)| {
            let of = |tags: &BTreeSet<Name>| tags.iter().map(|tag| Tag::parse(*tag).unwrap()).collect();
            let right = super::right(&format!("{}:{}", act.right.0, act.right.1));
            let document = LabelAct {
                tenant: tenant(),
                id: ApprovalId::parse(format!("a-{at}")).unwrap(),
                kind: act
                    .declassifies
                    .as_ref()
                    .map_or(ActKind::Endorse, |tags| ActKind::Declassify { tags: of(tags) }),
                task: task.clone(),
                resource: right.resource,
                action: right.action,
                call: if act.is_for_call { call } else { Digest::plain(b"another") },
                by: OperatorId::parse(act.by).unwrap(),
                at: Timestamp::from_secs(case.now - 60),
                expires: Timestamp::from_secs(act.expires),
                why: "as agreed".to_owned(),
            };
            Signed::new(&document, &key_of(act.signer))
        });
        Self { acts: acts.collect(), call, instruction, results }
    }

    pub fn evidence(&self) -> FlowEvidence<'_> {
        FlowEvidence {
            acts: &self.acts,
            call: Some(self.call),
            instruction: self.instruction.as_ref(),
            results: Some(&self.results),
            ..FlowEvidence::default()
        }
    }
}

/// The terms of an allowed call.
pub fn terms(verdict: &Verdict) -> Terms {
    let needs = verdict.approval().into_iter().flat_map(|terms| &terms.needs);
    let flow = verdict.flow();
    let place = |id: &ApprovalId| id.as_str().strip_prefix("a-").unwrap().parse().unwrap();
    Terms {
        needs: needs.map(|need| (need.role.to_string(), need.count)).collect(),
        tags: match &flow.result.confidentiality {
            Confidentiality::Top => None,
            Confidentiality::Tags(tags) => Some(tags.iter().map(ToString::to_string).collect()),
        },
        is_untrusted: flow.result.integrity == Integrity::Untrusted,
        acts: flow.acts.iter().map(place).collect(),
        sources: flow
            .arguments
            .iter()
            .map(|one| {
                (one.path.clone(), one.entity.to_string(), one.source.as_ref().map(ToString::to_string))
            })
            .collect(),
    }
}

impl Tables {
    /// Whether enough people have the role, so that the loader takes the rule.
    pub fn can_be_asked(&self, derived: &Derived) -> bool {
        let (Derived::NeedsApproval(role, people) | Derived::SourceApproval(role, people)) = derived else {
            return true;
        };
        let has = |approver: &&Approver| approver.roles.contains(role);
        self.approvers.values().filter(has).count() >= usize::from(*people)
    }
}
