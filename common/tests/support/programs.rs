//! Random attenuation programs: blocks a holder may append, blocks nobody may, and calls to try them on.

use std::collections::BTreeSet;

use biscuit_auth::{BlockBuilder, format::schema};
use prost::Message as _;
use writ_common::{
    capability::{Narrowing, Right, UnverifiedCapability},
    datalog::{Binary, Body, Check, CheckKind, Expression, Node, Predicate, Term, Unary},
    json::{Number, Value},
    label::{Confidentiality, Integrity, Label, Tag},
    request::Arguments,
    time::Timestamp,
};

use super::{AGENTS, Call, NOW, PLANNER, agent, append_payload, key, payload_of, random::Random, right};

const RIGHTS: [&str; 4] = ["tool.crm:read", "tool.crm:write", "tool.mail:draft", "tool.mail:send"];
const RESOURCES: [&str; 3] = ["tool.crm", "tool.mail", "agent.mailer"];
const ACTIONS: [&str; 3] = ["read", "write", "draft"];
const TEXTS: [&str; 5] = ["customers", "orders", "cust", "vip", ""];
const PATHS: [&str; 6] = ["/table", "/limit", "/dry", "/amount", "/tags/0", "/tags/1"];
const TAGS: [&str; 3] = ["crm", "hr", "legal"];

/// A grant the programs start from, with a bound or two of its own.
pub fn grant(random: &mut Random) -> writ_common::capability::Grant {
    let mut grant = super::grant();
    grant.rights = RIGHTS[..3].iter().map(|text| right(text)).collect();
    if random.chance(50) {
        grant.bounds.push(check(random));
    }
    grant
}

/// What one step of a program brought about: bytes to verify, if there was anything to write.
pub fn step(random: &mut Random, token: &UnverifiedCapability) -> Option<Vec<u8>> {
    let holder = holder_seed(token);
    Some(match random.below(100) {
        0..40 => token.narrow(&key(holder), &narrowing(random), &[70; 32]).ok()?.as_bytes().to_vec(),
        40..60 => {
            let (name, seed) = random.one_of(&AGENTS);
            let (to, to_key) = (agent(name), key(seed).public());
            token
                .delegate(&key(holder), &to, &to_key, &narrowing(random), &[71; 32])
                .ok()?
                .as_bytes()
                .to_vec()
        }
        60..78 => {
            let code = hostile_code(random, token);
            let builder = BlockBuilder::new().code(&code).ok()?;
            append_payload(token, signer(random, holder), &payload_of(token, builder))
        }
        78..97 => {
            let own = token.narrow(&key(holder), &narrowing(random), &[70; 32]).ok()?;
            let payload = super::schema(&own).blocks.last()?.block.clone();
            append_payload(token, signer(random, holder), &mutated(random, &payload))
        }
        _ => {
            let anonymous = biscuit_auth::UnverifiedBiscuit::from(token.as_bytes()).ok()?;
            anonymous.append(BlockBuilder::new().code("check if true;").ok()?).ok()?.to_vec().ok()?
        }
    })
}

/// The seed of the key that holds it.
pub fn holder_seed(token: &UnverifiedCapability) -> u8 {
    let holder = token.chain().holder();
    AGENTS.iter().map(|(_, seed)| *seed).find(|seed| key(*seed).public() == *holder).unwrap_or(PLANNER)
}

/// Mostly the holder; now and then somebody else.
fn signer(random: &mut Random, holder: u8) -> u8 {
    if random.chance(95) { holder } else { random.one_of(&AGENTS).1 }
}

fn narrowing(random: &mut Random) -> Narrowing {
    let mut narrowing = Narrowing::new();
    if random.chance(30) {
        let kept: Vec<Right> = RIGHTS.iter().filter(|_| random.chance(75)).map(|text| right(text)).collect();
        narrowing = narrowing.only(kept);
    }
    if random.chance(15) {
        let kept: Vec<_> = (0..2)
            .map(|_| {
                let path = random.one_of(&PATHS);
                (right(random.one_of(&RIGHTS)), vec![(path.to_owned(), value_at(random, path))])
            })
            .chain([(right("tool.mail:draft"), Vec::new())])
            .collect();
        narrowing = narrowing.only_where(kept);
    }
    if random.chance(20) {
        narrowing = narrowing
            .until(Timestamp::from_secs(NOW.as_secs() + u64::from(random.one_of(&[0u8, 1, 90, 200]))));
    }
    for _ in 0..random.below(3) {
        narrowing = narrowing.check(check(random));
    }
    narrowing
}

fn value_at(random: &mut Random, path: &str) -> Term {
    match path {
        "/limit" => Term::Integer(random.one_of(&[0, 5, 100])),
        "/amount" => Term::Integer(random.one_of(&[150, 9870])),
        "/dry" => Term::Bool(random.chance(50)),
        _ => Term::str(random.one_of(&TEXTS)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Date,
    Any,
}

/// A check of the profile, of every form it allows (and now and then one with types that do not fit).
pub fn check(random: &mut Random) -> Check {
    let kind = if random.chance(75) { CheckKind::One } else { CheckKind::All };
    let alternatives = (0..=random.below(3)).map(|_| body(random)).collect();
    Check { kind, alternatives }
}

fn body(random: &mut Random) -> Body {
    let mut bound: Vec<(&str, Kind)> = Vec::new();
    let mut predicates = Vec::new();
    let mut lists = 0;
    for _ in 0..random.below(4) {
        predicates.push(match random.below(7) {
            0 => one(random, "resource", &RESOURCES, &mut bound, ("r", Kind::Text)),
            1 => one(random, "action", &ACTIONS, &mut bound, ("a", Kind::Text)),
            2 => one(random, "integrity", &["trusted", "untrusted"], &mut bound, ("i", Kind::Text)),
            3 => {
                bound.push(("t", Kind::Date));
                Predicate::new("time", [Term::var("t")])
            }
            4 if lists == 0 => {
                lists += 1;
                one(random, "label", &["public", "crm", "hr"], &mut bound, ("l", Kind::Text))
            }
            5 if lists == 0 => {
                lists += 1;
                bound.extend([("p", Kind::Text), ("w", Kind::Any)]);
                Predicate::new("arg", [Term::var("p"), Term::var("w")])
            }
            _ => {
                let path = random.one_of(&PATHS);
                let value = if random.chance(40) {
                    value_at(random, path)
                } else {
                    bound.push(("v", Kind::Any));
                    Term::var("v")
                };
                Predicate::new("arg", [Term::str(path), value])
            }
        });
    }
    let expressions = (0..random.below(3)).map(|_| expression(random, &bound, 2)).collect();
    Body { predicates, expressions }
}

fn one(
    random: &mut Random,
    name: &str,
    texts: &[&str],
    bound: &mut Vec<(&'static str, Kind)>,
    variable: (&'static str, Kind),
) -> Predicate {
    if random.chance(50) {
        return Predicate::new(name, [Term::str(random.one_of(texts))]);
    }
    bound.push(variable);
    Predicate::new(name, [Term::var(variable.0)])
}

fn expression(random: &mut Random, bound: &[(&str, Kind)], depth: usize) -> Expression {
    if depth > 0 && random.chance(30) {
        let left = expression(random, bound, depth - 1);
        return match random.below(3) {
            0 => Node::Unary(Unary::Not, Box::new(left)).into(),
            1 => Expression::binary(Binary::And, left, expression(random, bound, depth - 1)),
            _ => Expression::binary(Binary::Or, left, expression(random, bound, depth - 1)),
        };
    }
    if bound.is_empty() {
        return Term::Bool(random.chance(90)).into();
    }
    let (name, kind) = bound[random.below(bound.len())];
    let variable = Term::var(name);
    match kind {
        Kind::Date => {
            let op = random.one_of(&[
                Binary::LessThan,
                Binary::LessOrEqual,
                Binary::GreaterThan,
                Binary::GreaterOrEqual,
                Binary::NotEqual,
            ]);
            let at = NOW.as_secs() + u64::from(random.one_of(&[0u8, 1, 60, 200]));
            Expression::binary(op, variable, Term::Date(at))
        }
        Kind::Text => text_expression(random, variable),
        Kind::Any if random.chance(50) => text_expression(random, variable),
        Kind::Any => {
            let op =
                random.one_of(&[Binary::LessThan, Binary::GreaterOrEqual, Binary::Equal, Binary::NotEqual]);
            Expression::binary(op, variable, Term::Integer(random.one_of(&[0, 5, 100, 9870])))
        }
    }
}

fn text_expression(random: &mut Random, variable: Term) -> Expression {
    let words: Vec<&str> = RESOURCES.iter().chain(&ACTIONS).chain(&TEXTS).chain(&TAGS).copied().collect();
    let word = Term::str(random.one_of(&words));
    match random.below(6) {
        0 => Expression::binary(Binary::Equal, variable, word),
        1 => Expression::binary(Binary::NotEqual, variable, word),
        2 => {
            Expression::binary(Binary::StartsWith, variable, Term::str(random.one_of(&["tool.", "cust", ""])))
        }
        3 => Expression::binary(Binary::EndsWith, variable, Term::str(random.one_of(&["s", "crm", ""]))),
        4 => {
            let members: BTreeSet<Term> = (0..4).map(|_| Term::str(random.one_of(&words))).collect();
            Expression::binary(Binary::Contains, Term::Set(members), variable)
        }
        _ => {
            let length = Node::Unary(Unary::Length, Box::new(variable.into()));
            Expression::binary(Binary::LessThan, length, Term::Integer(random.one_of(&[0, 8, 20])))
        }
    }
}

/// Text of blocks that try to widen, stall or confuse.
fn hostile_code(random: &mut Random, token: &UnverifiedCapability) -> String {
    let depth = token.chain().depth();
    let (name, seed) = random.one_of(&AGENTS);
    let stolen = format!(
        "delegate({}, \"{}\", \"{name}\", hex:{});",
        random.one_of(&[depth, depth + 1, depth + 2]),
        token.chain().caller(),
        hex::encode(key(seed).public().as_bytes())
    );
    let parts = [
        "right(\"tool.crm\", \"write\");",
        "right(\"tool.mail\", \"send\");",
        "resource(\"tool.crm\");",
        "action(\"read\");",
        "arg(\"/table\", \"customers\");",
        "arg(\"/limit\", 5);",
        "time(2020-01-01T00:00:00Z);",
        "label(\"public\");",
        "integrity(\"trusted\");",
        "writ_allow(0);",
        "request(\"call\");",
        "may_delegate(\"planner\", \"writer\");",
        "expires(2100-01-01T00:00:00Z);",
        "right($r, $a) <- resource($r), action($a);",
        "writ_allow(0) <- true;",
        "time(2020-01-01T00:00:00Z) <- true;",
        "check if true;",
        "check if true or false;",
        "check if resource($r) or true;",
        "check all label($l), $l === \"public\" or true;",
        "check if right(\"tool.crm\", \"write\");",
        "check if resource($r) trusting previous;",
        "check if time($t), $t < 2100-01-01T00:00:00Z;",
        "reject if false;",
        "check if resource($r), $r.matches(\".*\");",
        "check if resource($r), $r == 1;",
        "check if {1}.any($x -> $x === 1);",
        "check if arg($p, $v), label($l);",
        &stolen,
    ];
    (0..=random.below(2)).map(|_| random.one_of(&parts)).collect()
}

/// A block's payload, changed in ways no builder would.
fn mutated(random: &mut Random, payload: &[u8]) -> Vec<u8> {
    if random.chance(10) {
        let mut bytes = payload.to_vec();
        if !bytes.is_empty() {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        return bytes;
    }
    let Ok(mut block) = schema::Block::decode(payload) else { return payload.to_vec() };
    for _ in 0..=random.below(2) {
        mutate(random, &mut block);
    }
    let mut bytes = block.encode_to_vec();
    if random.chance(3) {
        bytes.extend([0x78, 1]);
    }
    bytes
}

fn mutate(random: &mut Random, block: &mut schema::Block) {
    let symbol = |random: &mut Random| {
        u64::try_from(if random.chance(50) { random.below(30) } else { 1023 + random.below(9) }).unwrap()
    };
    match random.below(9) {
        0 => block.version = Some(u32::try_from(random.below(9)).unwrap()),
        1 if !block.symbols.is_empty() => {
            let (a, b) = (random.below(block.symbols.len()), random.below(block.symbols.len()));
            block.symbols.swap(a, b);
        }
        2 => block.symbols.push(random.one_of(&["read", "tool.crm", "right", "time"]).to_owned()),
        3 => {
            block.symbols.pop();
        }
        4 => block.scope.push(schema::Scope { content: Some(schema::scope::Content::ScopeType(1)) }),
        5 => {
            let mut rules: Vec<schema::Rule> = block.checks.iter().flat_map(|c| c.queries.clone()).collect();
            rules.truncate(1);
            block.rules = rules;
        }
        _ => {
            if block.checks.is_empty() {
                return;
            }
            let at = random.below(block.checks.len());
            let check = &mut block.checks[at];
            if random.chance(25) {
                check.kind = random.one_of(&[None, Some(0), Some(1), Some(2), Some(3)]);
            }
            let Some(query) = check.queries.last_mut() else { return };
            match random.below(6) {
                0 => query.head.name = symbol(random),
                1 => {
                    if let Some(predicate) = query.body.last_mut() {
                        predicate.name = symbol(random);
                    }
                }
                2 => {
                    if let Some(term) = query.body.last_mut().and_then(|predicate| predicate.terms.last_mut())
                    {
                        let index = symbol(random);
                        term.content = Some(match random.below(3) {
                            0 => schema::term::Content::Variable(u32::try_from(index).unwrap()),
                            1 => schema::term::Content::String(index),
                            _ => schema::term::Content::Integer(i64::try_from(index).unwrap()),
                        });
                    }
                }
                3 => {
                    query.body.pop();
                }
                4 => {
                    if let Some(expression) = query.expressions.last_mut() {
                        expression.ops.pop();
                    }
                }
                _ => {
                    let kinds = i32::try_from(random.below(30)).unwrap();
                    let ops = query.expressions.iter_mut().flat_map(|expression| &mut expression.ops);
                    for op in ops {
                        if let Some(schema::op::Content::Binary(binary)) = &mut op.content {
                            binary.kind = kinds;
                        }
                    }
                }
            }
        }
    }
}

/// A call, more often than not one the grant has a right for.
pub fn call(random: &mut Random) -> Call {
    let right = right(if random.chance(92) { random.one_of(&RIGHTS[..3]) } else { RIGHTS[3] });
    let mut members: Vec<(&str, Value)> = Vec::new();
    if random.chance(80) {
        members.push(("table", Value::from(random.one_of(&TEXTS))));
    }
    if random.chance(70) {
        members.push(("limit", Value::from(random.one_of(&[0i64, 5, 100]))));
    }
    if right.resource.as_str() == "tool.crm" {
        if random.chance(50) {
            members.push(("dry", Value::from(random.chance(50))));
        }
        if right.action.as_str() == "write" && random.chance(60) {
            let amount = Number::parse(random.one_of(&["1.5", "98.7", "100"])).unwrap();
            members.push(("amount", Value::Number(amount)));
        }
        if right.action.as_str() == "read" && random.chance(40) {
            let tags = (0..=random.below(2)).map(|_| Value::from(random.one_of(&TEXTS))).collect::<Vec<_>>();
            members.push(("tags", Value::from(tags)));
        }
    }
    let tags = TAGS.iter().filter(|_| random.chance(25)).map(|tag| Tag::parse(*tag).unwrap()).collect();
    let integrity = if random.chance(70) { Integrity::Trusted } else { Integrity::Untrusted };
    Call {
        right,
        arguments: Arguments::new(members.into_iter().collect()),
        label: Label { confidentiality: Confidentiality::Tags(tags), integrity },
        now: Timestamp::from_secs(NOW.as_secs() + u64::from(random.one_of(&[0u8, 0, 1, 60]))),
    }
}

/// The facts a check may ask about, as this call states them.
pub fn facts(call: &Call) -> Vec<Predicate> {
    let text = |name: &str, value: &str| Predicate::new(name, [Term::str(value)]);
    let mut facts = vec![
        text("resource", call.right.resource.as_str()),
        text("action", call.right.action.as_str()),
        text("integrity", call.label.integrity.as_str()),
        Predicate::new("time", [Term::Date(call.now.as_secs())]),
    ];
    facts.extend(call.label.names().into_iter().map(|name| text("label", name)));
    call.arguments.value().for_each_leaf(&mut |path, leaf| {
        let scale = if path == "/amount" { 2 } else { 0 };
        let value = match leaf {
            Value::String(text) => Term::str(text.as_str()),
            Value::Bool(value) => Term::Bool(*value),
            Value::Number(number) => Term::Integer(number.scaled(scale).unwrap()),
            Value::Null | Value::Array(_) | Value::Object(_) => return,
        };
        facts.push(Predicate::new("arg", [Term::str(path), value]));
    });
    facts
}
