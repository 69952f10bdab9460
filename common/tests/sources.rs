//! What a grant pins, and which ids of a result the user has called by name.

use std::{collections::BTreeSet, sync::Arc};

use writ_common::{
    capability::{Grant, Narrowing, Right},
    datalog::{Body, Check, CheckKind, Predicate, Term},
    digest::Digest,
    epoch::Epoch,
    flow::ActionFlow,
    ids::{Action, AgentId, CapabilityId, FlowDomain, Resource, TaskId, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    label::Integrity,
    policy::{PolicyBundle, PolicySet},
    request::Arguments,
    source::Instruction,
    time::Timestamp,
};

const AGENTS: &str = "[[agent]]\nname = \"clerk\"\n";

const DIARY: &str = r#"
    resource = "tool.diary"

    [[action]]
    name = "search"
    effect = "read"
    returns = { tags = [], integrity = "untrusted" }
    field = [{ path = "/*/id", entity = "event_id", named_by = ["title"] }]
    schema = { type = "object", properties = { query = { type = "string" } } }

    [[action]]
    name = "add"
    effect = "internal"
    returns = { tags = [], integrity = "trusted" }
    field = [{ path = "/id", entity = "event_id", named_by = ["title"] }, { path = "/host", entity = "email" }]
    schema = { type = "object", properties = { title = { type = "string" } } }
"#;

#[expect(clippy::unwrap_used, reason = "what this test writes loads")]
fn flow(action: &str) -> Arc<ActionFlow> {
    let files = [
        ("agents.toml", AGENTS),
        ("rules.datalog", "allow if request(\"call\");"),
        ("tools/diary.toml", DIARY),
    ];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    let policy = PolicySet::load(&PolicyBundle(files)).unwrap().0;
    let contract = policy.contract(&Resource::parse("tool.diary").unwrap()).unwrap();
    contract.action(&Action::parse(action).unwrap()).unwrap().flow.clone()
}

#[expect(clippy::unwrap_used, reason = "what this test writes parses")]
fn named(query: &str, result: &str, instruction: &str) -> Vec<String> {
    let flow = flow("search");
    let arguments: Value = [("query", Value::from(query))].into_iter().collect();
    let result = Value::parse(result).unwrap();
    assert!(flow.vouched(&result).is_empty(), "outsiders write it");
    let found = flow.named(&arguments, &result, &Instruction::new(instruction));
    found.into_iter().map(|(entity, value)| format!("{entity} {value}")).collect()
}

const TWO: &str = r#"[{"id":"5","title":"Team lunch"},{"id":"6","title":"Budget review"}]"#;

#[test]
fn the_id_of_what_the_user_called_by_name_is_known() {
    assert_eq!(named("x", TWO, "Move the team lunch to Monday"), [r#"event_id "5""#]);
    assert_eq!(named("x", TWO, "Move 'Budget review' to Monday"), [r#"event_id "6""#]);
    // Found alone, by the user's own words.
    let one = r#"[{"id":"7","title":"Appointment"}]"#;
    assert_eq!(named("tooth doctor", one, "Move the tooth doctor to Monday"), [r#"event_id "7""#]);
}

#[test]
fn f09_a_record_that_an_outsider_adds_under_the_same_name_makes_both_unknown() {
    let twin = r#"[{"id":"5","title":"Team lunch"},{"id":"9","title":"team LUNCH"}]"#;
    assert!(named("x", twin, "Move the team lunch to Monday").is_empty());
    let both = "Move the team lunch and the budget review to Monday";
    assert!(named("x", TWO, both).is_empty());
    for (query, instruction) in [
        ("team lunch", "Tidy my diary"),
        ("lunch", "Move the lunch to Monday"),
        ("x", "Move the team lunches to Monday"),
        ("x", "Move 'my team lunch' to Monday"),
    ] {
        assert!(named(query, TWO, instruction).is_empty(), "{instruction}");
    }
    // The words of the search are the agent's, not the user's.
    let one = r#"[{"id":"7","title":"Appointment"}]"#;
    assert!(named("tooth doctor", one, "Tidy my diary").is_empty());
}

/// What the result of adding an event vouches for, where the tool itself knows who had a say in it.
#[expect(clippy::unwrap_used, reason = "what this test writes parses")]
fn sources(title: &str, own: Integrity, instruction: &str) -> Vec<String> {
    let flow = flow("add");
    let arguments = Arguments::new([("title", Value::from(title))].into_iter().collect());
    let result = Value::parse(r#"{"host":"ann@hall.example","id":"7","title":"Team lunch"}"#).unwrap();
    let found = flow.sources(&arguments, &result, own, Some(&Instruction::new(instruction)));
    let found: BTreeSet<String> =
        found.into_iter().map(|(entity, value)| format!("{entity} {value}")).collect();
    found.into_iter().collect()
}

#[test]
fn f04_what_outsiders_had_a_say_in_vouches_for_what_the_user_called_and_for_nothing_else() {
    let (host, id) = (r#"email "ann@hall.example""#, r#"event_id "7""#);
    let (called, other) = ("Add a team lunch", "Tidy my diary");
    assert_eq!(sources("Team lunch", Integrity::Trusted, called), [host, id]);
    assert_eq!(sources("Team lunch", Integrity::Trusted, other), [host, id]);
    assert_eq!(sources("Team lunch", Integrity::Untrusted, called), [id]);
    assert!(sources("Team lunch", Integrity::Untrusted, other).is_empty());
    // What the call itself said comes back from a tool that echoes, and is nobody's word but the agent's.
    assert_eq!(sources("for ann@hall.example", Integrity::Trusted, other), [id]);
    assert_eq!(sources("at 7", Integrity::Trusted, other), [host]);
}

#[expect(clippy::unwrap_used, reason = "what this test writes parses")]
fn right(text: &str) -> Right {
    Right::parse(text).unwrap()
}

#[expect(clippy::unwrap_used, reason = "what this test writes parses")]
fn grant(bounds: Vec<Check>) -> Grant {
    Grant {
        tenant: TenantId::parse("acme").unwrap(),
        user: UserId::parse("https://idp.example", "ada").unwrap(),
        agent: AgentId::parse("clerk").unwrap(),
        task: TaskId::parse("t-1").unwrap(),
        holder: PrivateKey::from_seed(&[1; 32]).public(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        instruction: Digest::plain(b""),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: BTreeSet::from([right("tool.mail:send"), right("tool.crm:read")]),
        expires: Timestamp::from_secs(1_800_000_000),
        min_epoch: Epoch { incarnation: 1, sequence: 1 },
        max_depth: 1,
        bounds,
    }
}

#[test]
fn a_grant_pins_what_every_way_to_call_demands() {
    let to = |address: &str| vec![("/to/0".to_owned(), Term::str(address))];
    let bounds =
        |ways: Vec<(Right, Vec<(String, Term)>)>| Narrowing::new().only_where(ways).checks().to_vec();
    let (send, read) = (right("tool.mail:send"), right("tool.crm:read"));
    let pinned = grant(bounds(vec![(send.clone(), to("a@x.example")), (read.clone(), Vec::new())]));
    assert_eq!(pinned.pins(&send), BTreeSet::from(["/to/0".to_owned()]));
    assert!(pinned.pins(&read).is_empty());
    let two = grant(bounds(vec![(send.clone(), to("a@x.example")), (send.clone(), to("b@x.example"))]));
    assert_eq!(two.pins(&send), BTreeSet::from(["/to/0".to_owned()]));
    let open = grant(bounds(vec![(send.clone(), to("a@x.example")), (send.clone(), Vec::new())]));
    assert!(open.pins(&send).is_empty());
    // `arg("/to/0", $any)` and `check all` settle nothing.
    let body = |term| Body {
        predicates: vec![Predicate::new("arg", [Term::str("/to/0"), term])],
        expressions: vec![],
    };
    let any = Check { kind: CheckKind::One, alternatives: vec![body(Term::var("any"))] };
    let all = Check { kind: CheckKind::All, alternatives: vec![body(Term::str("a@x.example"))] };
    assert!(grant(vec![any, all]).pins(&send).is_empty());
    assert!(grant(Vec::new()).pins(&send).is_empty());
}
