//! Random worlds of `reference.rs` as the real thing: policies as text, capabilities with signatures, control state.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::{Deserialize, Serialize};
use writ_common::{
    capability::{self, Grant, Narrowing, UnverifiedCapability},
    codec::encode,
    control::{ControlEvent, ControlState, RevocationTarget},
    datalog::{Binary, Body, Check, CheckKind, Expression, Predicate, Term},
    decide::{Evidence, Gate, decide},
    digest::Digest,
    epoch::Epoch,
    ids::{Action, CapabilityId, OperatorId, Resource, RoleId, TaskId, TaskKind, TenantId, UserId},
    json,
    keys::Purpose,
    keyset::Keyset,
    label::{Integrity, Label},
    policy::{PolicyBundle, PolicySet},
    reason::{Reason, ReasonCode},
    request::{Arguments, Environment, Principal, Request},
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
    verdict::{Decision, GrantBounds},
};

use super::{
    BROKER, NOW, ROOT, agent, key,
    random::Random,
    reference::*,
    reference_flow::{Tables, Told},
    right, scenarios_flow, signed_keyset, tenant,
};

/// The last is in no agents.toml.
pub const NAMES: [Name; 5] = ["planner", "researcher", "mailer", "writer", "ghost"];
const USERS: [Name; 2] = ["alice", "bob"];
const TEAMS: [Name; 2] = ["sales", "legal"];
const ROLES: [Name; 3] = ["analyst", "clerk", "chief"];
const KINDS: [Name; 2] = ["answer", "bills"];
const OPERATORS: [Name; 2] = ["olga", "otto"];
pub const TAGS: [Name; 3] = ["crm", "hr", "legal"];
const RIGHTS: [Right; 6] = [
    ("tool.crm", "read"),
    ("tool.crm", "write"),
    ("tool.mail", "draft"),
    ("agent.mailer", "invoke"),
    ("agent.writer", "invoke"),
    ("agent.researcher", "invoke"),
];
/// Rights a capability may hold although no tool answers for them.
const UNKNOWN: [Right; 2] = [("agent.mailer", "stop"), ("tool.fax", "send")];
pub const TABLES: [Name; 4] = ["customers", "orders", "cust", "vip"];
const ISSUER: &str = "https://idp.example";

fn seed_of(agent: Name) -> u8 {
    40 + u8::try_from(NAMES.iter().position(|name| *name == agent).unwrap()).unwrap()
}

pub fn some<T: Copy + Ord>(random: &mut Random, all: &[T], percent: usize) -> std::collections::BTreeSet<T> {
    all.iter().copied().filter(|_| random.chance(percent)).collect()
}

/// What a body of a rule is about; the loader refuses names and paths that do not fit together.
#[derive(Clone, Copy)]
enum About {
    Anything,
    Call(Option<Right>),
    Task,
    Admin,
}

fn condition(random: &mut Random, about: About) -> Condition {
    let hours = || [0, 8, 12, 18];
    match (about, random.below(12)) {
        (_, 0) => Condition::HourFrom(random.one_of(&hours())),
        (_, 1) => Condition::WeekdayFrom(random.one_of(&[2, 6])),
        (_, 2) => Condition::Untrusted,
        (_, 3) => Condition::Tag(random.one_of(&["crm", "hr", "public", "top"])),
        (_, 4) => Condition::TagAmong(vec!["hr", "legal"]),
        (_, 5) => Condition::After(NOW.as_secs() - 86_400 * (random.next() % 5)),
        (About::Anything, _) => Condition::Kind(random.one_of(&["call", "issue", "renew", "admin"])),
        (About::Admin, 6..9) => Condition::Operator(random.one_of(&OPERATORS)),
        (About::Admin, _) => Condition::Action(random.one_of(&["revoke", "enroll"])),
        (_, 6) => Condition::Caller(random.one_of(&NAMES[..4])),
        (_, 7) => Condition::CallerNot(random.one_of(&NAMES[..4])),
        (_, 8) => match random.below(3) {
            0 => Condition::Team(random.one_of(&TEAMS)),
            1 => Condition::Reaches(random.one_of(&NAMES[..4])),
            _ => Condition::User(random.one_of(&USERS)),
        },
        (About::Task, 9) => Condition::Role(random.one_of(&ROLES)),
        (About::Task, 10) => Condition::TaskKind(random.one_of(&KINDS)),
        (About::Task, _) => Condition::MayRun,
        (About::Call(right), _) => match random.below(14) {
            0 => Condition::DepthAbove(random.one_of(&[0, 1])),
            1 => Condition::FirstAgent(random.one_of(&NAMES[..4])),
            2 => Condition::HopTo(random.one_of(&NAMES[..4])),
            3 => Condition::Blocked,
            4 if random.chance(15) => Condition::SomeArgAbove(50),
            5 => Condition::Region(random.one_of(&scenarios_flow::REGIONS)),
            6 => flow_condition(random),
            _ => argument_condition(random, right),
        },
    }
}

fn flow_condition(random: &mut Random) -> Condition {
    match random.below(4) {
        0 => Condition::Cleared(random.one_of(&["crm", "hr", "public", "top"])),
        1 => Condition::Guarded(random.one_of(&["id", "level"])),
        2 => Condition::Sourced(random.one_of(&scenarios_flow::SOURCES)),
        _ => Condition::Unsourced(random.one_of(&["id", "level"])),
    }
}

fn argument_condition(random: &mut Random, right: Option<Right>) -> Condition {
    let (table, limit) = match right {
        Some((resource, _)) if resource.starts_with("agent.") => ("/input/table", "/input/limit"),
        _ => ("/table", "/limit"),
    };
    match (right, random.below(8)) {
        (_, 0) => Condition::ArgIs(table, Value::Text(random.one_of(&TABLES))),
        (_, 1) => Condition::ArgStarts(table, "cust"),
        (_, 2) => Condition::ArgIs(limit, Value::Integer(random.one_of(&[0, 5, 7]))),
        (_, 3) => Condition::ArgTimes(limit, 4_611_686_018_427_387_904, 0),
        (_, 4) => Condition::Quotient(limit, random.one_of(&[10, 30])),
        (Some(("tool.crm", "read")), 5) => Condition::ArgIs("/dry", Value::Bool(true)),
        (Some(("tool.crm", "read")), 6) => Condition::ArgIs("/tags/0", Value::Text("vip")),
        (Some(("tool.crm", "write")), 5 | 6) => Condition::ArgAbove("/amount", 9_000),
        _ => Condition::ArgAbove(limit, random.one_of(&[1, 5, 60])),
    }
}

/// Conditions that can hold together: of those that say what one thing is, one each.
fn body(random: &mut Random, about: About, most: usize) -> Vec<Condition> {
    let mut body = Vec::new();
    match about {
        About::Anything => {}
        About::Call(None) => body.push(Condition::Kind("call")),
        About::Call(Some(right)) => {
            body.push(Condition::Resource(right.0));
            body.push(Condition::Action(right.1));
        }
        About::Task => body.push(Condition::Kind(random.one_of(&["issue", "renew"]))),
        About::Admin => body.push(Condition::Kind("admin")),
    }
    for _ in 0..=random.below(most) {
        let next = condition(random, about);
        let kind = std::mem::discriminant(&next);
        if body.iter().all(|known| std::mem::discriminant(known) != kind) {
            let at = random.below(body.len() + 1);
            body.insert(at, next);
        }
    }
    body
}

fn about(random: &mut Random) -> About {
    match random.below(10) {
        0 => About::Anything,
        1 => About::Admin,
        2 | 3 => About::Task,
        4 => About::Call(None),
        _ => About::Call(Some(random.one_of(&RIGHTS))),
    }
}

/// A rule that allows; it never leaves a request without an answer.
pub fn allowance(random: &mut Random) -> Statement {
    let body = vec![random.one_of(&[
        Condition::Kind("call"),
        Condition::Kind("issue"),
        Condition::Kind("admin"),
        Condition::HoldsRight,
        Condition::Caller("planner"),
    ])];
    Statement::Decide { allow: true, alternatives: vec![body] }
}

/// A rule that denies some calls.
pub fn denial(random: &mut Random) -> Statement {
    let right = random.one_of(&RIGHTS);
    Statement::Decide { allow: false, alternatives: vec![body(random, About::Call(Some(right)), 1)] }
}

fn statements(random: &mut Random, flow: &Tables, is_calm: bool) -> Vec<Statement> {
    let mut all = Vec::new();
    let decide = |allow, alternatives| Statement::Decide { allow, alternatives };
    if is_calm || random.chance(90) {
        all.push(decide(true, vec![vec![Condition::Kind("call"), Condition::HoldsRight]]));
    }
    if random.chance(90) {
        all.push(decide(true, vec![vec![Condition::Kind("issue")], vec![Condition::Kind("renew")]]));
    }
    all.push(decide(true, vec![vec![Condition::Kind("admin"), Condition::Operator("olga")]]));
    for _ in 0..if is_calm { random.below(2) } else { 2 + random.below(6) } {
        let alternatives = (0..=random.below(2)).map(|_| {
            let about = about(random);
            body(random, about, 3)
        });
        let alternatives = alternatives.collect();
        all.push(decide(random.chance(15), alternatives));
    }
    for _ in 0..3 + random.below(9) {
        let derived = scenarios_flow::derived(random);
        let right = random.chance(40).then(|| random.one_of(&RIGHTS));
        let conditions = match right {
            None if random.chance(80) => vec![Condition::Kind("call")],
            right => body(random, About::Call(right), 1),
        };
        if flow.can_be_asked(&derived) {
            all.push(Statement::Derive(derived, conditions));
        }
    }
    let task = |random: &mut Random| body(random, About::Task, 1);
    let mostly = |random: &mut Random| {
        if is_calm || random.chance(70) { Vec::new() } else { body(random, About::Call(None), 1) }
    };
    let conditions = mostly(random);
    all.push(Statement::MayDelegate(conditions));
    let conditions = mostly(random);
    all.push(Statement::MayDelegateOne(random.one_of(&NAMES[..4]), random.one_of(&NAMES[..4]), conditions));
    // May not ask about what it derives itself.
    all.push(Statement::MayRun(if random.chance(80) { Vec::new() } else { vec![Condition::User("alice")] }));
    all.push(Statement::Grant(if random.chance(70) { Vec::new() } else { task(random) }));
    for _ in 0..random.below(3) {
        let conditions = task(random);
        all.push(Statement::GrantOne(random.one_of(&RIGHTS), conditions));
        let conditions = task(random);
        let name = random.one_of(&["depth_limit", "task_seconds", "capability_seconds"]);
        all.push(Statement::Least(name, random.one_of(&[-1, 2, 3, 300, 900]), conditions));
    }
    all
}

/// A world from a random source. In every other one little is wrong but the flow of data.
pub fn world(random: &mut Random) -> World {
    let is_calm = random.chance(50);
    let rarely = |random: &mut Random, all: &[Name]| some(random, all, if is_calm { 0 } else { 4 });
    // A rule may only name a team that has an agent.
    let agents = NAMES[..4].iter().enumerate().map(|(at, name)| {
        let team = TEAMS.get(at).copied().unwrap_or_else(|| random.one_of(&TEAMS));
        (*name, (team, some(random, &NAMES[..4], if is_calm { 100 } else { 85 })))
    });
    let agents = agents.collect();
    let roles = ROLES.iter().map(|role| RoleTask {
        role,
        kind: random.one_of(&KINDS),
        agents: some(random, &NAMES[..4], 70),
        rights: some(random, &RIGHTS, 50),
    });
    let roles = roles.collect();
    let mut enrolled = some(random, &NAMES, if is_calm { 100 } else { 95 });
    enrolled.insert("planner");
    let mut revoked = std::collections::BTreeSet::new();
    if !is_calm && random.chance(60) {
        let (from, to) = (random.one_of(&NAMES), random.one_of(&NAMES));
        revoked.insert(random.one_of(&[
            Revoked::Agent(from),
            Revoked::Capability("c-2"),
            Revoked::Holder(to),
            Revoked::Hop("c-1", from, to),
            Revoked::Task("t-2"),
            Revoked::User("bob"),
        ]));
    }
    let flow = scenarios_flow::tables(random);
    World {
        agents,
        roles,
        statements: statements(random, &flow, is_calm),
        flow,
        enrolled,
        quarantined: rarely(random, &NAMES),
        revoked,
        is_halted: !is_calm && random.chance(4),
        is_unreadable: !is_calm && random.chance(4),
    }
}

fn link(random: &mut Random, chain: &Capability, hands_on: bool, now: u64) -> Link {
    let held = chain.holders();
    let free: Vec<Name> = NAMES.iter().copied().filter(|name| !held.contains(name)).collect();
    let bounds = (0..2).filter(|_| random.chance(12)).collect::<Vec<_>>();
    Link {
        to: hands_on.then(|| {
            // Rarely the one that is in no agents.toml.
            let known: Vec<Name> = free.iter().copied().filter(|name| *name != "ghost").collect();
            let is_unknown = known.is_empty() || random.chance(4);
            random.one_of(if is_unknown { &free } else { &known })
        }),
        keeps: random.chance(20).then(|| some(random, &[&RIGHTS[..], &UNKNOWN].concat(), 80)),
        until: random.chance(8).then(|| now + random.one_of(&[60, 200])),
        bounds: bounds
            .into_iter()
            .map(|_| match random.below(4) {
                0 => Bound::ArgBelow(random.one_of(&["/limit", "/limit", "/limit", "/table"]), 50),
                1 => Bound::ArgIs("/table", Value::Text(random.one_of(&TABLES[..2]))),
                2 => Bound::TagsWithin(vec!["public", "crm", "hr"]),
                _ => Bound::Trusted,
            })
            .collect(),
    }
}

/// A chain of up to three links; it begins at `now`.
pub fn chain(random: &mut Random, now: u64) -> Capability {
    let mut chain = Capability {
        id: random.one_of(&["c-1", "c-1", "c-1", "c-2"]),
        user: random.one_of(&USERS),
        task: random.one_of(&["t-1", "t-1", "t-1", "t-2"]),
        agent: random.one_of(&NAMES[..4]),
        rights: &some(random, &RIGHTS, 85) | &some(random, &UNKNOWN, 50),
        expires: now + 300,
        is_old: random.chance(50),
        links: Vec::new(),
    };
    for _ in 0..random.below(4) {
        let hands_on = random.chance(75);
        let link = link(random, &chain, hands_on, now);
        chain.links.push(link);
    }
    chain
}

fn arguments(random: &mut Random, right: Right) -> Vec<(Name, Argument)> {
    let number = |random: &mut Random| Value::Integer(random.one_of(&[0, 2, 5, 7, 40, 70]));
    let table = if random.chance(4) { GATED } else { random.one_of(&TABLES) };
    let mut given = Vec::new();
    if random.chance(70) || (right.1 == "write" && random.chance(85)) {
        given.push(("table", Argument::Plain(Value::Text(table))));
    }
    if random.chance(60) {
        given.push(("limit", Argument::Plain(number(random))));
    }
    match right {
        ("tool.crm", "read") => {
            if random.chance(50) {
                given.push(("dry", Argument::Plain(Value::Bool(random.chance(50)))));
            }
            if random.chance(30) {
                let tags = ["vip", "orders", "cust"].into_iter().filter(|_| random.chance(50)).collect();
                given.push(("tags", Argument::List(tags)));
            }
        }
        ("tool.crm", "write") if random.chance(70) => given.push((
            "amount",
            random.one_of(&[
                Argument::Decimal(9_870, 2),
                Argument::Decimal(15, 1),
                Argument::Plain(Value::Integer(95)),
            ]),
        )),
        _ => {}
    }
    // One fault at the most: which of two is named is nobody's promise.
    if random.chance(6) && (right.1 != "write" || given.iter().any(|(name, _)| *name == "table")) {
        given.retain(|(name, _)| *name != "limit" && *name != "amount");
        given.push(match random.below(3) {
            0 => ("size", Argument::Plain(Value::Bool(true))),
            1 if right.1 == "write" => ("amount", Argument::Decimal(98_765, 3)),
            _ => ("limit", Argument::Plain(Value::Text("many"))),
        });
    }
    given
}

/// A question to the world, with one of these chains if it is about a call.
pub fn case(random: &mut Random, chains: &[Capability], now: u64) -> Case {
    let mut case = Case {
        ask: Ask::Admin {
            operator: random.one_of(&OPERATORS),
            right: random.one_of(&[
                ("agent.mailer", "enroll"),
                ("agent.writer", "quarantine"),
                ("task.all", "revoke"),
            ]),
        },
        tenant: "acme",
        capability: None,
        tags: (!random.chance(3)).then(|| some(random, &TAGS, 25)),
        is_untrusted: random.chance(35),
        told: Told::default(),
        now: now + random.one_of(&[0, 0, 10, 100, 250]),
    };
    match random.below(100) {
        0..5 => {}
        5..25 => {
            case.ask = Ask::Task {
                renewal: random.chance(40),
                user: random.one_of(&USERS),
                roles: some(random, &ROLES, 50).into_iter().collect(),
                agent: if random.chance(4) { "ghost" } else { random.one_of(&NAMES[..4]) },
                kind: (!random.chance(2)).then(|| random.one_of(&KINDS)),
                asked: match random.below(12) {
                    0 => Asked::NoList,
                    1 => Asked::Nonsense,
                    2..5 => Asked::Rights(some(random, &RIGHTS, 20)),
                    _ => Asked::Everything,
                },
            };
        }
        _ => {
            let chain = random.one_of(chains);
            let holders = chain.holders();
            let mut held: Vec<Right> = chain.rights.iter().copied().collect();
            held.retain(|right| {
                chain.links.iter().all(|link| link.keeps.as_ref().is_none_or(|keeps| keeps.contains(right)))
            });
            // What can be called with it, and now and then what cannot: nothing is handed back to who had it before.
            let is_new =
                |right: &Right| holders.iter().all(|name| right.0.strip_prefix("agent.") != Some(*name));
            let useful: Vec<Right> =
                held.iter().copied().filter(|right| is_new(right) && !UNKNOWN.contains(right)).collect();
            let right = match random.below(20) {
                0 => random.one_of(&RIGHTS),
                1 if !held.is_empty() => random.one_of(&held),
                _ if !useful.is_empty() => random.one_of(&useful),
                _ => random.one_of(&RIGHTS),
            };
            let handover = handover(random, &chain, right, now);
            let arguments = arguments(random, right);
            case.told = scenarios_flow::told(random, right, &arguments, case.now);
            case.ask = Ask::Call {
                by: if random.chance(2) { "planner" } else { chain.holder() },
                task: if random.chance(2) { "t-3" } else { chain.task },
                right,
                arguments,
                handover,
            };
            case.tenant = if random.chance(1) { "globex" } else { "acme" };
            case.now = if random.chance(3) { now + 300 } else { case.now };
            case.capability = (!random.chance(1)).then_some(chain);
        }
    }
    case
}

fn handover(random: &mut Random, chain: &Capability, right: Right, now: u64) -> Option<Handover> {
    let agent = NAMES.iter().find(|name| right.0.strip_prefix("agent.") == Some(**name));
    let wanted = if agent.is_some() { 95 } else { 1 };
    if !random.chance(wanted) {
        return None;
    }
    let is_own = !random.chance(6);
    // Another's chain differs in its first block at least.
    let another = |random: &mut Random| Capability { is_old: !chain.is_old, ..self::chain(random, now) };
    let mut longer = if is_own { chain.clone() } else { another(random) };
    let mut last = link(random, &longer, true, now);
    if let Some(agent) = agent.filter(|agent| !longer.holders().contains(agent) && random.chance(95)) {
        last.to = Some(agent);
    }
    last.to?;
    longer.links.push(last);
    Some(Handover { chain: longer, is_own, is_named: !random.chance(4) })
}

// From here on: the same, for `decide()`.

impl Condition {
    /// Predicates and expressions; `at` keeps the variables of a body apart.
    fn text(&self, at: usize) -> (String, Option<String>) {
        let list =
            |items: &[Name]| items.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ");
        let plain = |text: String| (text, None);
        let arg =
            |path: &str, test: String| (format!("arg({path:?}, $v{at})"), Some(format!("$v{at}{test}")));
        match self {
            Self::Action(name) => plain(format!("action({name:?})")),
            Self::After(time) => (format!("time($t{at})"), Some(format!("$t{at} > {}", Term::Date(*time)))),
            Self::ArgAbove(path, least) => arg(path, format!(" > {least}")),
            Self::ArgIs(path, value) => plain(format!("arg({path:?}, {})", value.term())),
            Self::ArgStarts(path, prefix) => arg(path, format!(".starts_with({prefix:?})")),
            Self::ArgTimes(path, factor, least) => arg(path, format!(" * {factor} > {least}")),
            Self::Blocked => plain(format!("arg($p{at}, $v{at}), blocked($v{at})")),
            Self::Caller(name) => plain(format!("caller({name:?})")),
            Self::Cleared(tag) => plain(format!("caller($c{at}), clearance($c{at}, {tag:?})")),
            Self::CallerNot(name) => (format!("caller($c{at})"), Some(format!("$c{at} !== {name:?}"))),
            Self::DepthAbove(least) => (format!("depth($d{at})"), Some(format!("$d{at} > {least}"))),
            Self::Effect(name) => plain(format!("effect({name:?})")),
            Self::FirstAgent(name) => plain(format!("agent({name:?})")),
            Self::Guarded(entity) => plain(format!("guarded($g{at}, {entity:?})")),
            Self::HoldsRight => plain(format!("right($r{at}, $a{at}), resource($r{at}), action($a{at})")),
            Self::HopTo(name) => plain(format!("hop($d{at}, $f{at}, {name:?})")),
            Self::HourFrom(hour) => (format!("hour($h{at})"), Some(format!("$h{at} >= {hour}"))),
            Self::Kind(name) => plain(format!("request({name:?})")),
            Self::MayRun => plain(format!("caller($c{at}), task_kind($k{at}), may_run($c{at}, $k{at})")),
            Self::Operator(name) => plain(format!("operator({name:?})")),
            Self::Quotient(path, least) => {
                (format!("arg({path:?}, $v{at})"), Some(format!("100 / $v{at} > {least}")))
            }
            Self::Reaches(name) => plain(format!("caller($c{at}), reach($c{at}, {name:?})")),
            Self::Region(name) => plain(format!("caller($c{at}), region($c{at}, {name:?})")),
            Self::Resource(name) => plain(format!("resource({name:?})")),
            Self::Role(name) => plain(format!("role({name:?})")),
            Self::SomeArgAbove(least) => (format!("arg($p{at}, $v{at})"), Some(format!("$v{at} > {least}"))),
            Self::Sourced(source) => plain(format!("sourced($g{at}, $e{at}, {source:?})")),
            Self::Tag(name) => plain(format!("label({name:?})")),
            Self::TagAmong(names) => {
                (format!("label($l{at})"), Some(format!("{{{}}}.contains($l{at})", list(names))))
            }
            Self::TaskKind(name) => plain(format!("task_kind({name:?})")),
            Self::Team(name) => plain(format!("caller($c{at}), owner($c{at}, {name:?})")),
            Self::Unsourced(entity) => plain(format!("unsourced($g{at}, {entity:?})")),
            Self::Untrusted => plain("integrity(\"untrusted\")".to_owned()),
            Self::User(name) => plain(format!("user($i{at}, {name:?})")),
            Self::WeekdayFrom(day) => (format!("weekday($w{at})"), Some(format!("$w{at} >= {day}"))),
        }
    }
}

impl Value {
    fn term(self) -> Term {
        match self {
            Self::Bool(value) => Term::Bool(value),
            Self::Integer(value) => Term::Integer(value),
            Self::Text(text) => Term::str(text),
        }
    }
}

fn body_text(fixed: &str, conditions: &[Condition]) -> String {
    let parts: Vec<_> = conditions.iter().enumerate().map(|(at, condition)| condition.text(at)).collect();
    let fixed = (!fixed.is_empty()).then(|| fixed.to_owned());
    let predicates = fixed.into_iter().chain(parts.iter().map(|(predicate, _)| predicate.clone()));
    let all: Vec<String> = predicates.chain(parts.iter().filter_map(|(_, test)| test.clone())).collect();
    all.join(", ")
}

impl Statement {
    /// The statement in Datalog.
    pub fn text(&self) -> String {
        let rule = |head: String, fixed: &str, conditions: &[Condition]| {
            let body = body_text(fixed, conditions);
            if body.is_empty() { format!("{head};\n") } else { format!("{head} <- {body};\n") }
        };
        match self {
            Self::Decide { allow, alternatives } => {
                let bodies: Vec<String> = alternatives.iter().map(|body| body_text("", body)).collect();
                format!("{} if {};\n", if *allow { "allow" } else { "deny" }, bodies.join(" or "))
            }
            Self::Derive(derived, conditions) => rule(derived.text(), "", conditions),
            Self::Least(name, value, conditions) => rule(format!("{name}({value})"), "", conditions),
            Self::MayDelegate(conditions) => {
                rule("may_delegate($from, $to)".into(), "delegates($from, $to)", conditions)
            }
            Self::MayDelegateOne(from, to, conditions) => {
                rule(format!("may_delegate({from:?}, {to:?})"), "", conditions)
            }
            Self::MayRun(conditions) => rule(
                "may_run($agent, $kind)".into(),
                "role($role), role_runs($role, $agent, $kind)",
                conditions,
            ),
            Self::Grant(conditions) => rule(
                "grant($resource, $action)".into(),
                "role($role), task_kind($kind), role_right($role, $kind, $resource, $action)",
                conditions,
            ),
            Self::GrantOne((resource, action), conditions) => {
                rule(format!("grant({resource:?}, {action:?})"), "", conditions)
            }
        }
    }
}

impl World {
    /// The files beside the rules.
    pub fn tables(&self) -> BTreeMap<String, String> {
        let (mut agents, mut roles) = (self.flow.providers_text(), String::new());
        for (name, (owner, to)) in &self.agents {
            let to: Vec<Name> = to.iter().copied().collect();
            writeln!(
                agents,
                "[[agent]]\nname = {name:?}\nowner = {owner:?}\ndelegates_to = {to:?}\n{}",
                self.flow.agent_text(name)
            )
            .unwrap();
        }
        for task in &self.roles {
            let rights: Vec<String> = task.rights.iter().map(|(to, what)| format!("{to}:{what}")).collect();
            let agents: Vec<Name> = task.agents.iter().copied().collect();
            writeln!(
                roles,
                "[[role]]\nname = {:?}\n[[role.task]]\nkind = {:?}\nagents = {agents:?}\nrights = {rights:?}",
                task.role, task.kind
            )
            .unwrap();
        }
        // Names the rules may use have to exist, whatever the world has.
        for kind in KINDS {
            writeln!(
                roles,
                "[[role]]\nname = \"nobody\"\n[[role.task]]\nkind = {kind:?}\nagents = []\nrights = []"
            )
            .unwrap();
        }
        let mut files = self.flow.files();
        files.extend([("agents.toml".to_owned(), agents), ("roles.toml".to_owned(), roles)]);
        for ((resource, action), effect, declared, required) in CONTRACTS {
            let file = files
                .entry(format!("tools/{resource}.toml"))
                .or_insert_with(|| format!("resource = {resource:?}\n"));
            let properties: Vec<String> = declared
                .iter()
                .map(|(name, kind)| {
                    let kind = match kind {
                        Kind::Amount => "type = \"number\"",
                        Kind::Boolean => "type = \"boolean\"",
                        Kind::Integer => "type = \"integer\"",
                        Kind::Text => "type = \"string\"",
                        Kind::Texts => "type = \"array\", items = { type = \"string\" }",
                    };
                    format!("{name} = {{ {kind} }}")
                })
                .collect();
            let scales = if action == "write" { "scales = { \"/amount\" = 2 }\n" } else { "" };
            write!(
                file,
                "[[action]]\nname = {action:?}\neffect = {effect:?}\n{}{scales}schema = {{ type = \"object\", required = {required:?}, properties = {{ {} }} }}\n",
                self.flow.actions[&(resource, action)].text(),
                properties.join(", ")
            )
            .unwrap();
        }
        files
    }

    /// The policy, with the statements as they stand in one file.
    pub fn policy(&self) -> PolicySet {
        let text = self.statements.iter().map(Statement::text).collect();
        load(self.tables(), [("rules.datalog".to_owned(), text)])
    }

    /// The control state.
    pub fn control(&self) -> ControlState {
        let mut control = ControlState::new(tenant(), key(ROOT).public());
        let mut events = vec![ControlEvent::Keyset(signed_keyset(&[key(BROKER).public()]))];
        events.extend(self.enrolled.iter().map(|name| ControlEvent::AgentKey {
            agent: agent(name),
            holder: key(seed_of(name)).public(),
            connection: format!("nkey-{name}"),
            token: Digest::plain(name.as_bytes()),
        }));
        events.extend(
            self.quarantined.iter().map(|name| ControlEvent::Quarantine { agent: agent(name), on: true }),
        );
        events.extend(self.revoked.iter().map(|revoked| ControlEvent::Revocation {
            target: target(*revoked),
            until: NOW.after(Millis::from_secs(86_400)),
        }));
        events.extend(self.flow.events());
        if self.is_halted {
            events.push(ControlEvent::HaltAll { on: true });
        }
        for (sequence, event) in (1..).zip(events) {
            let event = super::control_event(control.epoch(), event);
            control.apply(sequence, &event).unwrap();
        }
        if self.is_unreadable {
            let document = Newer { what: "something of a later version".to_owned() };
            let sequence = control.epoch().sequence + 1;
            assert!(
                control.apply(sequence, &encode(&Envelope(Signed::new(&document, &key(BROKER))))).is_err()
            );
        }
        control
    }
}

/// What is derived beside the rules, for those that ask.
const OWN: &str = "blocked(\"orders\");\nblocked(7);\n\
    reach($from, $to) <- delegates($from, $to);\n\
    reach($from, $to) <- reach($from, $by), delegates($by, $to);\n";

/// Loads tables with rules; every statement of a world has to be one the loader takes.
pub fn load(
    mut files: BTreeMap<String, String>,
    rules: impl IntoIterator<Item = (String, String)>,
) -> PolicySet {
    files.extend(rules);
    files.insert("own.datalog".to_owned(), OWN.to_owned());
    match PolicySet::load(&PolicyBundle(files.clone())) {
        Ok((policy, _)) => policy,
        Err(findings) => panic!("a policy of the reference does not load: {findings}"),
    }
}

fn target(revoked: Revoked) -> RevocationTarget {
    let key_of = |name| key(seed_of(name)).public().id();
    match revoked {
        Revoked::Agent(name) => RevocationTarget::Agent(agent(name)),
        Revoked::Capability(id) => RevocationTarget::Capability(CapabilityId::parse(id).unwrap()),
        Revoked::Holder(name) => RevocationTarget::Holder(key_of(name)),
        Revoked::Hop(id, from, to) => RevocationTarget::Hop {
            capability: CapabilityId::parse(id).unwrap(),
            delegator: key_of(from),
            delegatee: key_of(to),
        },
        Revoked::Task(id) => RevocationTarget::Task(TaskId::parse(id).unwrap()),
        Revoked::User(name) => RevocationTarget::User(UserId::parse(ISSUER, name).unwrap()),
    }
}

fn rights(rights: &Rights) -> std::collections::BTreeSet<capability::Right> {
    rights.iter().map(|(resource, action)| right(&format!("{resource}:{action}"))).collect()
}

impl Bound {
    fn check(&self) -> Check {
        let (kind, predicate, expression) = match self {
            Self::ArgBelow(path, most) => (
                CheckKind::One,
                Predicate::new("arg", [Term::str(*path), Term::var("v")]),
                Some(Expression::binary(Binary::LessThan, Term::var("v"), Term::Integer(*most))),
            ),
            Self::ArgIs(path, value) => {
                (CheckKind::One, Predicate::new("arg", [Term::str(*path), value.term()]), None)
            }
            Self::TagsWithin(tags) => {
                let tags = Term::Set(tags.iter().copied().map(Term::str).collect());
                let among = Expression::binary(Binary::Contains, tags, Term::var("t"));
                (CheckKind::All, Predicate::new("label", [Term::var("t")]), Some(among))
            }
            Self::Trusted => (CheckKind::One, Predicate::new("integrity", [Term::str("trusted")]), None),
        };
        let body = Body { predicates: vec![predicate], expressions: expression.into_iter().collect() };
        Check { kind, alternatives: vec![body] }
    }
}

/// Signs the chain; it begins at `now`.
pub fn build(chain: &Capability, keyset: &Keyset, now: u64) -> capability::Capability {
    let grant = Grant {
        tenant: tenant(),
        user: UserId::parse(ISSUER, chain.user).unwrap(),
        agent: agent(chain.agent),
        task: TaskId::parse(chain.task).unwrap(),
        holder: key(seed_of(chain.agent)).public(),
        capability: CapabilityId::parse(chain.id).unwrap(),
        rights: rights(&chain.rights),
        expires: Timestamp::from_secs(chain.expires),
        min_epoch: Epoch { incarnation: 0, sequence: if chain.is_old { 1 } else { 1_000 } },
        max_depth: 15,
        ..super::grant()
    };
    let mut token: UnverifiedCapability = grant.issue(&key(BROKER), &[50; 32]).unwrap();
    let mut holder = chain.agent;
    for (at, link) in (51..).zip(&chain.links) {
        let mut narrowing = Narrowing::new();
        if let Some(keeps) = &link.keeps {
            narrowing = narrowing.only(rights(keeps));
        }
        if let Some(until) = link.until {
            narrowing = narrowing.until(Timestamp::from_secs(until));
        }
        narrowing = link.bounds.iter().fold(narrowing, |narrowing, bound| narrowing.check(bound.check()));
        let signer = key(seed_of(holder));
        token = match link.to {
            Some(to) => {
                holder = to;
                let public = key(seed_of(to)).public();
                token.delegate(&signer, &agent(to), &public, &narrowing, &[at; 32])
            }
            None => token.narrow(&signer, &narrowing, &[at; 32]),
        }
        .unwrap();
    }
    token.verify(keyset, Timestamp::from_secs(now)).unwrap()
}

/// Stands for a tool that looks at its arguments.
struct Guarding;

impl Gate for Guarding {
    fn admit(&self, action: &Action, arguments: &json::Value) -> Result<Vec<Predicate>, Reason> {
        match arguments.get("table").and_then(json::Value::as_str) {
            Some(GATED) => Err(ReasonCode::ArgEncoding.into()),
            _ => Ok(scenarios_flow::gate_facts(arguments, action.as_str() == "read")),
        }
    }
}

fn json_of(arguments: &[(Name, Argument)]) -> json::Value {
    let members = arguments.iter().map(|(name, argument)| {
        let text = match argument {
            Argument::Plain(Value::Bool(value)) => value.to_string(),
            Argument::Plain(Value::Integer(value)) => value.to_string(),
            Argument::Plain(Value::Text(text)) => format!("{text:?}"),
            Argument::Decimal(digits, decimals) => {
                let one = 10i64.pow(*decimals);
                format!("{}.{:0width$}", digits / one, digits % one, width = *decimals as usize)
            }
            Argument::List(items) => format!("{items:?}"),
        };
        (*name, json::Value::parse(&text).unwrap())
    });
    members.collect()
}

/// What `decide()` says to a case, in the words of the reference.
pub fn ask(
    case: &Case,
    policy: &PolicySet,
    control: &ControlState,
    built: Option<&capability::Capability>,
    handover: Option<&capability::Capability>,
) -> Answer {
    let confidentiality = scenarios_flow::confidentiality(&case.tags);
    let integrity = if case.is_untrusted { Integrity::Untrusted } else { Integrity::Trusted };
    let label = Label { confidentiality, integrity };
    let request = request(case, handover);
    let domain = built.map_or_else(|| super::grant().domain, |capability| capability.grant().domain.clone());
    let known = scenarios_flow::Known::of(case, &request, &domain);
    let evidence = Evidence {
        capability: built,
        control,
        gate: Some(&Guarding),
        handover,
        label: &label,
        flow: known.evidence(),
    };
    let verdict = decide(&request, &evidence, policy, Timestamp::from_secs(case.now));
    match verdict.decision() {
        Decision::Deny => {
            assert!(!verdict.reasons().is_empty(), "denied without a reason");
            Err(verdict.reasons().iter().map(Reason::code).collect())
        }
        Decision::Allow => Ok(match (&case.ask, verdict.grant_bounds()) {
            (Ask::Call { .. }, _) => Allowed::Call(scenarios_flow::terms(&verdict)),
            (_, Some(granted)) => Allowed::Task(bounds(granted)),
            _ => Allowed::Admin,
        }),
    }
}

fn bounds(bounds: &GrantBounds) -> Bounds {
    let name = |right: &capability::Right| {
        RIGHTS.iter().copied().find(|known| format!("{}:{}", known.0, known.1) == right.to_string()).unwrap()
    };
    let seconds = |life: Millis| life.0 / 1_000;
    let rights = bounds.rights.iter().map(name).collect();
    (rights, bounds.max_depth, seconds(bounds.task_life), seconds(bounds.capability_life))
}

fn request(case: &Case, handover: Option<&capability::Capability>) -> Request {
    let mut environment =
        Environment { tenant: TenantId::parse(case.tenant).unwrap(), task: None, task_kind: None };
    let (principal, right, arguments) = match &case.ask {
        Ask::Call { by, task, right, arguments, handover: described } => {
            environment.task = Some(TaskId::parse(*task).unwrap());
            let mut given = json_of(arguments);
            if right.0.starts_with("agent.") {
                let named = match (described, handover) {
                    (Some(described), Some(chain)) if described.is_named => chain.chain_id(),
                    _ => Digest::plain(b"another"),
                };
                let members = [("input", given), ("handover", json::Value::from(named.to_string()))];
                given = members.into_iter().collect();
            }
            (Principal::Agent(agent(by)), *right, given)
        }
        Ask::Task { renewal, user, roles, agent: by, kind, asked } => {
            environment.task_kind = kind.map(|kind| TaskKind::parse(kind).unwrap());
            let user = UserId::parse(ISSUER, *user).unwrap();
            let roles = roles.iter().map(|role| RoleId::parse(*role).unwrap()).collect();
            let resource = if *kind == Some("answer") { "task.answer" } else { "task.bills" };
            let list = |items: Vec<String>| {
                json::Value::Array(items.into_iter().map(|text| json::Value::from(text.as_str())).collect())
            };
            let asked = match asked {
                Asked::Everything => None,
                Asked::NoList => Some(json::Value::from("all")),
                Asked::Nonsense => Some(list(vec!["everything".to_owned()])),
                Asked::Rights(rights) => {
                    Some(list(rights.iter().map(|(to, what)| format!("{to}:{what}")).collect()))
                }
            };
            let arguments = asked.into_iter().map(|asked| ("rights", asked)).collect();
            let action = if *renewal { "renew" } else { "issue" };
            (Principal::User { user, roles, agent: agent(by) }, (resource, action), arguments)
        }
        Ask::Admin { operator, right } => {
            let arguments = json_of(&[]);
            (Principal::Operator(OperatorId::parse(*operator).unwrap()), *right, arguments)
        }
    };
    Request {
        principal,
        action: Action::parse(right.1).unwrap(),
        resource: Resource::parse(right.0).unwrap(),
        arguments: Arguments::new(arguments),
        environment,
    }
}

/// A control event of a later version.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Newer {
    what: String,
}

impl Signable for Newer {
    const PURPOSE: Purpose = Purpose::Control;
    const KIND: &'static str = "control";
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Envelope(Signed<Newer>);

impl writ_common::codec::Message for Envelope {
    const KIND: &'static str = "control";
    const BYTES_MAX: usize = 900 * 1024;
}
