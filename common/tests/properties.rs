//! What must hold for every input: nothing appended ever widens, and everything has one form.
//!
//! The generators are seeded. A failure names its seed; `WRIT_SEED=<seed> WRIT_PROGRAMS=1` runs that case alone.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]
#![allow(clippy::print_stdout, reason = "says how much was tried")]
#![allow(
    clippy::disallowed_methods,
    reason = "how many cases to run, and from which seed, is given from outside"
)]

mod support;

use std::collections::BTreeMap;

use support::{
    BROKER, World, key, keyset, messages, model,
    programs::{self},
    random::Random,
};
use writ_common::{
    capability::{Capability, UnverifiedCapability},
    codec::{from_canonical, to_bytes},
    json::{Number, Value},
    keyset::Keyset,
    label::{Confidentiality, Integrity, Label, TAGS_MAX, Tag},
    reason::{Class, ReasonCode},
    verdict::Decision,
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Steps in one program: every step is a capability that is held against the one it was made from.
const STEPS: u64 = 10;
/// Calls every new capability is tried on.
const CALLS: usize = 3;

#[derive(Default)]
struct Tally {
    steps: u64,
    refused: BTreeMap<ReasonCode, u64>,
    accepted: u64,
    allowed: u64,
    narrowed: u64,
    undecided: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.accepted += other.accepted;
        self.allowed += other.allowed;
        self.narrowed += other.narrowed;
        self.undecided += other.undecided;
        for (code, count) in other.refused {
            *self.refused.entry(code).or_default() += count;
        }
    }
}

struct Held {
    token: UnverifiedCapability,
    capability: Capability,
}

fn hold(bytes: &[u8], keyset: &Keyset) -> Result<Held, ReasonCode> {
    let token = UnverifiedCapability::parse(bytes).map_err(|reason| reason.code())?;
    let capability = token.clone().verify(keyset, support::NOW).map_err(|reason| reason.code())?;
    Ok(Held { token, capability })
}

/// Grows a tree of capabilities from one grant and compares each with its parent.
fn explore(world: &World, keyset: &Keyset, seed: u64, steps: u64) -> Tally {
    let mut random = Random(seed);
    let root = programs::grant(&mut random).issue(&key(BROKER), &[50; 32]).unwrap();
    let mut tree = vec![hold(root.as_bytes(), keyset).unwrap()];
    let mut tally = Tally::default();
    while tally.steps < steps {
        tally.steps += 1;
        // Mostly the newest: long chains are where one block could undo another.
        let at = if random.chance(70) { tree.len() - 1 } else { random.below(tree.len()) };
        let parent = &tree[at];
        let Some(bytes) = programs::step(&mut random, &parent.token) else { continue };
        let child = match hold(&bytes, keyset) {
            Ok(child) => child,
            Err(code) => {
                *tally.refused.entry(code).or_default() += 1;
                continue;
            }
        };
        tally.accepted += 1;
        assert_eq!(child.capability.grant(), parent.capability.grant(), "seed {seed}: another grant");
        assert!(parent.token.is_extended_by(&child.token), "seed {seed}: not an extension");
        assert!(child.capability.rights().is_subset(parent.capability.rights()), "seed {seed}: more rights");
        assert!(child.capability.expires() <= parent.capability.expires(), "seed {seed}: a longer life");
        for _ in 0..CALLS {
            let call = programs::call(&mut random);
            let verdict = world.decide(&child.capability, &call);
            let allowed = verdict.decision() == Decision::Allow;
            let parents = world.decide(&parent.capability, &call);
            let parent_allowed = parents.decision() == Decision::Allow;
            if !allowed {
                let could_not = verdict.reasons().iter().any(|r| r.code().class() == Class::CouldNotDecide);
                tally.undecided += u64::from(could_not);
                tally.narrowed += u64::from(parent_allowed);
                continue;
            }
            tally.allowed += 1;
            assert!(
                parent_allowed,
                "seed {seed}, step {}: {:?} is allowed {call:?}, its parent is not: {:?}",
                tally.steps,
                child.capability,
                parents.reasons()
            );
            let facts = programs::facts(&call);
            let bounds = child.capability.grant().bounds.iter();
            for check in bounds.chain(child.capability.chain().checks().map(|(_, check)| check)) {
                assert!(
                    model::holds(check, &facts),
                    "seed {seed}, step {}: {call:?} is allowed against `{check}`",
                    tally.steps
                );
            }
        }
        tree.push(child);
    }
    tally
}

/// D08: whatever is appended to a capability, it allows nothing its parent does not, and every condition on
/// the way is met by every call that is allowed.
///
/// `WRIT_PROGRAMS` is how many capabilities are tried, 10,000 by default.
#[test]
fn d08_nothing_appended_ever_widens() {
    let wanted = setting("WRIT_PROGRAMS", 10_000);
    let first = setting("WRIT_SEED", 1);
    let trees = wanted.div_ceil(STEPS);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().min(8)) as u64;
    let (world, keyset) = (World::new(), keyset());
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| {
                let (world, keyset) = (&world, &keyset);
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    for tree in (worker..trees).step_by(usize::try_from(workers).unwrap()) {
                        tally.add(explore(world, keyset, first + tree, STEPS));
                    }
                    tally
                })
            })
            .collect();
        for worker in workers {
            tally.add(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    println!(
        "{} steps: {} accepted, refused {:?}; calls: {} allowed, {} narrowed away, {} undecided",
        tally.steps, tally.accepted, tally.refused, tally.allowed, tally.narrowed, tally.undecided
    );
    if wanted >= 1_000 {
        // The programs must be worth running: enough of everything.
        assert!(tally.accepted > wanted / 3 && tally.allowed > wanted / 4 && tally.narrowed > wanted / 20);
        for code in [
            ReasonCode::TokenBlockShape,
            ReasonCode::TokenThirdParty,
            ReasonCode::DelegationSignature,
            ReasonCode::DelegationDepth,
        ] {
            assert!(tally.refused.get(&code).is_some_and(|count| *count > 0), "no program met {code}");
        }
    }
}

/// One change of the kinds that matter to MessagePack.
fn disturb(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    let at = random.below(changed.len());
    let byte = changed[at];
    match random.below(8) {
        0 => changed[at] ^= 1 << random.below(8),
        1 => changed.truncate(at),
        2 => changed.push(0xc0),
        3 => {
            changed.remove(at);
        }
        4 => changed.insert(at, u8::try_from(random.below(256)).unwrap()),
        // A small integer, short text or small map written long: the same value in other bytes.
        _ => {
            let long: Vec<u8> = match byte {
                0..=0x7f => vec![0xcc, byte],
                0x80..=0x8f => vec![0xde, 0, byte & 0x0f],
                0x90..=0x9f => vec![0xdc, 0, byte & 0x0f],
                0xa0..=0xbf => vec![0xd9, byte & 0x1f],
                0xc4 => vec![0xc5, 0],
                0xcc => vec![0xcd, 0],
                0xcd => vec![0xce, 0, 0],
                0xce => vec![0xcf, 0, 0, 0, 0],
                0xd9 => vec![0xda, 0],
                other => vec![other, other],
            };
            changed.splice(at..=at, long);
        }
    }
    changed
}

/// A07: a message has one encoding; any other bytes are refused or are the encoding of what they decode to.
#[test]
fn a07_every_message_has_one_encoding() {
    let rounds = setting("WRIT_MESSAGES", 12);
    let (mut refused, mut other_messages) = (0u64, 0u64);
    for round in 0..rounds {
        let mut random = Random(setting("WRIT_SEED", 1) + round);
        for sample in messages::all(&mut random) {
            let again = sample.recode(&sample.bytes);
            assert_eq!(again.as_ref(), Ok(&sample.bytes), "{} does not round-trip", sample.kind);
            for _ in 0..40 {
                let changed = disturb(&mut random, &sample.bytes);
                match sample.recode(&changed) {
                    Ok(bytes) => {
                        assert_eq!(bytes, changed, "seed {round}: {} has two encodings", sample.kind);
                        other_messages += u64::from(bytes != sample.bytes);
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    println!("{refused} changed messages refused, {other_messages} were other messages");
    assert!(refused > 0 && other_messages > 0);
}

/// A07: the same for the payload inside a signature, which may be signed by somebody hostile.
#[test]
fn a07_every_signed_payload_has_one_encoding() {
    let mut random = Random(setting("WRIT_SEED", 1));
    for _ in 0..10 {
        let payload = to_bytes(&messages::record(&mut random));
        for _ in 0..200 {
            let changed = disturb(&mut random, &payload);
            if let Ok(record) = from_canonical::<writ_common::record::Record>("record", &changed) {
                assert_eq!(to_bytes(&record), changed);
            }
        }
    }
}

fn json(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => Value::Bool(random.chance(50)),
        2 => Value::Number(number(random)),
        3 => Value::String(text(random)),
        4 => Value::Array((0..random.below(4)).map(|_| json(random, depth - 1)).collect()),
        _ => (0..random.below(4)).map(|_| (text(random), json(random, depth - 1))).collect(),
    }
}

fn number(random: &mut Random) -> Number {
    loop {
        let digits = |random: &mut Random, most: usize| -> String {
            (0..=random.below(most))
                .map(|_| char::from(b'0' + u8::try_from(random.below(10)).unwrap()))
                .collect()
        };
        let sign = if random.chance(30) { "-" } else { "" };
        let fraction = if random.chance(50) { format!(".{}", digits(random, 8)) } else { String::new() };
        let exponent = if random.chance(20) { format!("e-{}", random.below(12)) } else { String::new() };
        let whole = digits(random, 12);
        let whole = whole.trim_start_matches('0');
        let whole = if whole.is_empty() { "0" } else { whole };
        if let Ok(number) = Number::parse(&format!("{sign}{whole}{fraction}{exponent}")) {
            return number;
        }
    }
}

fn text(random: &mut Random) -> String {
    const CHARACTERS: [char; 14] =
        ['a', 'b', '"', '\\', '/', '\u{0}', '\u{1f}', '\n', '\u{7f}', 'é', '\u{2028}', '😀', '~', '\u{e000}'];
    (0..random.below(6)).map(|_| random.one_of(&CHARACTERS)).collect()
}

/// The same value, written with white space and escapes that are allowed but not canonical.
fn written_loosely(random: &mut Random, value: &Value) -> String {
    let space = |random: &mut Random| random.one_of(&["", " ", "\n\t", "\r"]);
    let string = |random: &mut Random, text: &str| {
        let mut units = [0; 2];
        let escaped: String = text
            .chars()
            .map(|c| {
                if random.chance(60) || matches!(c, '"' | '\\') || c < ' ' {
                    c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04X}")).collect()
                } else {
                    c.to_string()
                }
            })
            .collect();
        format!("\"{escaped}\"")
    };
    let body = match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| written_loosely(random, item)).collect();
            format!("[{}{}]", space(random), items.join(","))
        }
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .rev()
                .map(|(key, member)| format!("{}:{}", string(random, key), written_loosely(random, member)))
                .collect();
            format!("{{{}{}}}", members.join(","), space(random))
        }
        Value::String(text) => string(random, text),
        Value::Number(number) if random.chance(50) && number.as_str().contains('.') => {
            format!("{}0", number.as_str())
        }
        other => other.to_string(),
    };
    format!("{}{body}{}", space(random), space(random))
}

/// A06: a value has one text; any other text is refused where canonical text is due.
#[test]
fn a06_every_value_has_one_text() {
    let mut random = Random(setting("WRIT_SEED", 1));
    let mut loose = 0;
    for round in 0..3_000 {
        let value = json(&mut random, 4);
        let canonical = value.to_string();
        assert_eq!(Value::parse_canonical(&canonical).as_ref(), Ok(&value), "round {round}");
        let written = written_loosely(&mut random, &value);
        assert_eq!(Value::parse(&written).as_ref(), Ok(&value), "round {round}: {written}");
        loose += usize::from(written != canonical);
        assert_eq!(
            Value::parse_canonical(&written).is_ok(),
            written == canonical,
            "round {round}: {written}"
        );
        let changed = disturb(&mut random, canonical.as_bytes());
        let Ok(changed) = String::from_utf8(changed) else { continue };
        if let Ok(value) = Value::parse_canonical(&changed) {
            assert_eq!(value.to_string(), changed, "round {round}");
        }
    }
    assert!(loose > 1_000);
}

fn label(random: &mut Random, most: usize) -> Label {
    let confidentiality = if random.chance(5) {
        Confidentiality::Top
    } else {
        let count = random.below(most);
        let tags = (0..count).map(|_| Tag::parse(format!("t{}", random.below(100))).unwrap());
        Confidentiality::Tags(tags.collect())
    };
    Label { confidentiality, integrity: random.one_of(&[Integrity::Trusted, Integrity::Untrusted]) }
}

/// F10: the laws of the lattice hold across the limit on tags too, where a join goes to the top.
#[test]
fn f10_the_lattice_keeps_its_laws_where_labels_grow_too_large() {
    let mut random = Random(setting("WRIT_SEED", 1));
    let mut tops = 0;
    for _ in 0..2_000 {
        let (a, b, c) =
            (label(&mut random, TAGS_MAX), label(&mut random, TAGS_MAX), label(&mut random, TAGS_MAX));
        let joined = a.join(&b);
        tops += usize::from(joined.confidentiality == Confidentiality::Top);
        assert_eq!(joined, b.join(&a));
        assert_eq!(a.join(&b.join(&c)), joined.join(&c));
        assert_eq!(a.join(&a), a);
        assert!(a.flows_to(&joined) && b.flows_to(&joined) && a.flows_to(&Label::top()));
        if a.flows_to(&c) && b.flows_to(&c) {
            assert!(joined.flows_to(&c));
        }
    }
    assert!(tops > 100);
}
