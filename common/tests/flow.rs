//! The flow plane of `decide`: clearances, sinks, guarded arguments and their sources.

use writ_common::{
    cases::Case,
    policy::{PolicyBundle, PolicySet},
};

const RULES: &str = r#"
    allow if request("call"), right($r, $a), resource($r), action($a);
    allow if request("issue"), caller($agent), task_kind($kind), may_run($agent, $kind);
    may_run($agent, $kind) <- role($role), role_runs($role, $agent, $kind);
    grant($r, $a) <- role($role), task_kind($kind), role_right($role, $kind, $r, $a);
    may_delegate($from, $to) <- delegates($from, $to);
    depth_limit(2) <- request("issue");
"#;

const AGENTS: &str = r#"
    [[provider]]
    name = "far-away"
    region = "elsewhere"
    clearance = ["crm"]

    [[agent]]
    name = "clerk"
    delegates_to = ["helper"]
    clearance = ["crm", "hr"]

    [[agent]]
    name = "helper"

    [[agent]]
    name = "abroad"
    clearance = ["crm", "hr"]
    provider = "far-away"
"#;

const ROLES: &str = r#"
    [[role]]
    name = "staff"
    [[role.task]]
    kind = "work"
    agents = ["abroad", "clerk", "helper"]
    rights = ["agent.helper:invoke", "tool.crm:read", "tool.crm:dump", "tool.crm:sql", "tool.mail:send", "tool.pay:wire"]
"#;

const CRM: &str = r#"
    resource = "tool.crm"

    [[action]]
    name = "read"
    effect = "read"
    returns = { tags = ["crm"], integrity = "trusted" }
    schema = { type = "object" }

    [[action]]
    name = "dump"
    effect = "read"
    schema = { type = "object" }

    [[action]]
    name = "sql"
    effect = "read"
    returns = { tags = ["crm"], integrity = "trusted" }
    schema = { type = "object" }
    [[action.column]]
    table = "staff"
    column = "salary"
    tags = ["hr"]
"#;

const MAIL: &str = r#"
    resource = "tool.mail"

    [[action]]
    name = "send"
    effect = "egress"
    accepts = ["crm"]
    returns = { tags = [], integrity = "trusted" }
    guard = [{ argument = "/to/*", entity = "email" }]
    schema = { type = "object", properties = { to = { type = "array", items = { type = "string" } } } }
"#;

const PAY: &str = r#"
    resource = "tool.pay"

    [[action]]
    name = "wire"
    effect = "egress"
    returns = { tags = [], integrity = "trusted" }
    guard = [{ argument = "/payee", entity = "iban", sources = ["directory"] }]
    schema = { type = "object", properties = { payee = { type = "string" } } }
"#;

const DIRECTORIES: &str = r#"
    [[directory]]
    name = "colleagues"
    entity = "email"
    domains = ["corp.example"]

    [[directory]]
    name = "contacts"
    entity = "email"
    values = ["stranger@elsewhere.example"]
    outsiders_write = true
"#;

const APPROVERS: &str = r#"
    [[approver]]
    name = "bob"
    roles = ["voucher"]
    users = ["bob"]
"#;

#[expect(clippy::unwrap_used, reason = "what these tests write loads")]
fn policy(extra: &str) -> PolicySet {
    let rules = format!("{RULES}{extra}");
    let files = [
        ("agents.toml", AGENTS),
        ("approvers.toml", APPROVERS),
        ("directories.toml", DIRECTORIES),
        ("roles.toml", ROLES),
        ("rules.datalog", &rules),
        ("tools/crm.toml", CRM),
        ("tools/mail.toml", MAIL),
        ("tools/pay.toml", PAY),
    ];
    let files = files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
    PolicySet::load(&PolicyBundle(files)).unwrap().0
}

/// Runs a call of `chain` and returns what is wrong with the expectation.
#[expect(clippy::unwrap_used, reason = "what these tests write parses")]
fn faults(extra: &str, call: &str, chain: &str, rest: &str) -> Vec<String> {
    let text =
        format!(r#"{{"name":"x","call":"{call}","chain":[{chain}],"roles":["staff"],"task":"work",{rest}}}"#);
    let case: Case = serde_json::from_str(&text).unwrap();
    case.run(&policy(extra)).faults
}

fn holds(call: &str, chain: &str, rest: &str) {
    assert_eq!(faults("", call, chain, rest), Vec::<String>::new(), "{call} by {chain}: {rest}");
}

const CLERK: &str = r#""clerk""#;

#[test]
fn an_agent_is_told_only_what_it_and_the_provider_of_its_model_are_cleared_for() {
    holds("tool.crm:read", CLERK, r#""expect":"allow""#);
    holds("tool.crm:read", r#""abroad""#, r#""expect":"allow""#);
    let denied = r#""expect":"deny","reasons":["flow.clearance"],"says":"may not be told `crm`""#;
    holds("tool.crm:read", r#""helper""#, denied);
    let denied = r#""expect":"deny","reasons":["flow.clearance"],"says":"may not be told `hr`","facts":["reads_column(\"staff\", \"salary\")"]"#;
    holds("tool.crm:sql", r#""abroad""#, denied);
}

#[test]
fn f01_a_result_without_a_declared_label_is_for_nobody() {
    let denied = r#""expect":"deny","reasons":["flow.clearance"],"says":"`top`""#;
    holds("tool.crm:dump", CLERK, denied);
}

#[test]
fn m10_what_a_column_carries_is_the_contracts_word_whatever_is_selected() {
    for fact in [r#"reads_column(\"staff\", \"salary\")"#, r#"reads_column(\"STAFF\", \"*\")"#] {
        let denied = format!(r#""expect":"deny","reasons":["flow.clearance"],"facts":["{fact}"]"#);
        holds("tool.crm:sql", r#""abroad""#, &denied);
        holds("tool.crm:sql", CLERK, &format!(r#""expect":"allow","facts":["{fact}"]"#));
    }
    holds("tool.crm:sql", r#""abroad""#, r#""expect":"allow","facts":["reads_column(\"staff\", \"name\")"]"#);
}

#[test]
fn another_agent_is_told_nothing_the_task_holds_beyond_its_clearance() {
    holds("agent.helper:invoke", CLERK, r#""expect":"allow""#);
    let denied = r#""tags":["crm"],"expect":"deny","reasons":["flow.clearance"],"says":"`helper` may not be told `crm`""#;
    holds("agent.helper:invoke", CLERK, denied);
}

#[test]
fn f03_data_reaches_only_what_takes_it() {
    holds("tool.mail:send", CLERK, r#""tags":["crm"],"expect":"allow""#);
    let denied = r#""tags":["crm","hr"],"expect":"deny","reasons":["flow.sink"],"says":"does not take `hr`""#;
    holds("tool.mail:send", CLERK, denied);
    // What leaves the organisation and does not say otherwise takes what is public.
    let denied = r#""tags":["crm"],"expect":"deny","reasons":["flow.sink"],"says":"does not take `crm`""#;
    holds("tool.pay:wire", CLERK, denied);
    holds("tool.pay:wire", CLERK, r#""expect":"allow""#);
}

#[test]
fn a_rule_can_widen_what_an_action_takes_and_raise_what_a_result_carries() {
    let rest = r#""tags":["hr"],"arguments":{"to":["ada@corp.example"]},"expect":"allow""#;
    let widened = r#"accepts("hr") <- arg($p, "ada@corp.example");"#;
    assert_eq!(faults(widened, "tool.mail:send", CLERK, rest), Vec::<String>::new());
    assert_ne!(faults("", "tool.mail:send", CLERK, rest), Vec::<String>::new());
    let raised = r#"result_tag("secret") <- resource("tool.crm");"#;
    let denied = r#""expect":"deny","reasons":["flow.clearance"],"says":"`secret`""#;
    assert_eq!(faults(raised, "tool.crm:read", CLERK, denied), Vec::<String>::new());
    // What is no tag is everything.
    let raised = r#"result_tag("No Tag") <- resource("tool.crm");"#;
    let denied = r#""expect":"deny","reasons":["flow.clearance"],"says":"`top`""#;
    assert_eq!(faults(raised, "tool.crm:read", CLERK, denied), Vec::<String>::new());
}

#[test]
fn f09_once_outsiders_had_a_say_a_guarded_argument_needs_a_source() {
    let to = |address: &str, rest: &str| format!(r#""arguments":{{"to":["{address}"]}},{rest}"#);
    // Nothing untrusted was read: whoever the agent writes to is the user's business.
    holds("tool.mail:send", CLERK, &to("eve@evil.example", r#""expect":"allow""#));
    let denied = r#""untrusted":true,"expect":"deny","reasons":["flow.integrity"],"says":"`/to/0` (email)""#;
    holds("tool.mail:send", CLERK, &to("eve@evil.example", denied));
    let named = r#""untrusted":true,"instruction":"Write to Eve@Evil.example, please.","expect":"allow""#;
    holds("tool.mail:send", CLERK, &to("eve@evil.example", named));
    let known = r#""untrusted":true,"expect":"allow""#;
    holds("tool.mail:send", CLERK, &to("ada@corp.example", known));
    let read = r#""untrusted":true,"results":{"email":["eve@evil.example"]},"expect":"allow""#;
    holds("tool.mail:send", CLERK, &to("eve@evil.example", read));
    // An address book that outsiders fill by writing vouches for nobody.
    holds("tool.mail:send", CLERK, &to("stranger@elsewhere.example", denied));
    // Two of them, and only one has a source.
    let both = r#""arguments":{"to":["ada@corp.example","eve@evil.example"]},"untrusted":true,"expect":"deny","reasons":["flow.integrity"],"says":"`/to/1`""#;
    holds("tool.mail:send", CLERK, both);
}

#[test]
fn f09_only_the_sources_a_contract_names_count() {
    let pay = r#""arguments":{"payee":"DE89370400440532013000"},"untrusted":true"#;
    let denied = format!(
        r#"{pay},"instruction":"Pay DE89 3704 0044 0532 0130 00","expect":"deny","reasons":["flow.integrity"]"#
    );
    holds("tool.pay:wire", CLERK, &denied);
}

#[test]
fn a_right_that_is_pinned_is_for_these_calls_only() {
    let pins = r#"
        pin("tool.mail", "send", "1", "/to/0", "ann@hall.example") <- task_kind("work");
        pin("tool.mail", "send", "1", "/to/1", "bob@hall.example") <- task_kind("work");
        pin("tool.mail", "send", "2", "/to/0", "cy@hall.example") <- task_kind("work");
    "#;
    let check = |to: &str, expected: &str| {
        let rest = format!(r#""arguments":{{"to":{to}}},{expected}"#);
        assert_eq!(faults(pins, "tool.mail:send", CLERK, &rest), Vec::<String>::new(), "{to}");
    };
    let (allowed, refused) = (r#""expect":"allow""#, r#""expect":"deny","reasons":["token.check_failed"]"#);
    check(r#"["ann@hall.example","bob@hall.example"]"#, allowed);
    check(r#"["cy@hall.example"]"#, allowed);
    // Values of one call go together, and none of them may be missing.
    check(r#"["ann@hall.example","cy@hall.example"]"#, refused);
    check(r#"["ann@hall.example"]"#, refused);
    check(r#"["bob@hall.example"]"#, refused);
    check("[]", refused);
    // Another agent holds no more than it was given.
    let handed =
        r#""arguments":{"to":["eve@evil.example"]},"expect":"deny","reasons":["token.check_failed"]"#;
    assert_eq!(faults(pins, "tool.mail:send", r#""clerk","helper""#, handed), Vec::<String>::new());
    // What is not pinned is as it was.
    assert_eq!(faults(pins, "tool.crm:read", CLERK, r#""expect":"allow""#), Vec::<String>::new());
}

#[test]
fn of_several_whom_the_instruction_names_the_pinned_one_is_meant() {
    let pin = r#"pin("tool.mail", "send", "1", "/to/0", "ann@hall.example") <- task_kind("work");"#;
    let named = |to: &str, rest: &str| {
        format!(
            r#""arguments":{{"to":["{to}"]}},"untrusted":true,"instruction":"Tell ann@hall.example, not bob@hall.example",{rest}"#
        )
    };
    let unpinned = named("ann@hall.example", r#""expect":"deny","reasons":["flow.integrity"]"#);
    holds("tool.mail:send", CLERK, &unpinned);
    let pinned = named("ann@hall.example", r#""expect":"allow""#);
    assert_eq!(faults(pin, "tool.mail:send", CLERK, &pinned), Vec::<String>::new());
    let other = named("bob@hall.example", r#""expect":"deny","reasons":["token.check_failed"]"#);
    assert_eq!(faults(pin, "tool.mail:send", CLERK, &other), Vec::<String>::new());
}

#[test]
fn a_pin_that_means_nothing_takes_the_right_away() {
    let start = |pin: &str| {
        let grants = r#""tool.crm:read","tool.crm:dump","tool.crm:sql","tool.mail:send","tool.pay:wire""#;
        let (kept, lost) =
            (format!("\"agent.helper:invoke\",{grants}"), grants.replace(",\"tool.mail:send\"", ""));
        let grants = |rights: &str| {
            let text = format!(
                r#"{{"name":"x","start":true,"chain":[{CLERK}],"roles":["staff"],"task":"work","expect":"allow","grants":[{rights}]}}"#
            );
            let case: Case = serde_json::from_str(&text).unwrap();
            case.run(&policy(pin)).faults.is_empty()
        };
        (grants(&kept), grants(&format!("\"agent.helper:invoke\",{lost}")))
    };
    assert_eq!(start(""), (true, false));
    assert_eq!(
        start(r#"pin("tool.mail", "send", "1", "/to/0", "a@b.example") <- task_kind("work");"#),
        (true, false)
    );
    // A path that is none, and an argument that would need two values at once.
    assert_eq!(
        start(r#"pin("tool.mail", "send", "1", "to", "a@b.example") <- task_kind("work");"#),
        (false, true)
    );
    let two = r#"
        pin("tool.mail", "send", "1", "/to/0", "a@b.example") <- task_kind("work");
        pin("tool.mail", "send", "1", "/to/0", "c@d.example") <- task_kind("work");
    "#;
    assert_eq!(start(two), (false, true));
}

#[test]
fn people_can_vouch_where_the_policy_says_who() {
    let vouched = r#"source_approval("voucher", 1) <- resource("tool.mail");"#;
    let held = r#""arguments":{"to":["eve@evil.example"]},"untrusted":true,"expect":"hold","approvals":{"voucher":1}"#;
    assert_eq!(faults(vouched, "tool.mail:send", CLERK, held), Vec::<String>::new());
    let sourced = r#""arguments":{"to":["ada@corp.example"]},"untrusted":true,"expect":"allow""#;
    assert_eq!(faults(vouched, "tool.mail:send", CLERK, sourced), Vec::<String>::new());
    // A source never replaces clearance.
    let denied = r#""tags":["hr"],"arguments":{"to":["ada@corp.example"]},"untrusted":true,"expect":"deny","reasons":["flow.sink"]"#;
    assert_eq!(faults(vouched, "tool.mail:send", CLERK, denied), Vec::<String>::new());
}

#[test]
fn rules_see_what_vouches_for_what() {
    let rule = "/// not on a stranger's word\ndeny if sourced($p, $e, \"result\");";
    let denied = r#""arguments":{"to":["eve@evil.example"]},"untrusted":true,"results":{"email":["eve@evil.example"]},"expect":"deny","reasons":["policy.denied"],"says":"stranger""#;
    assert_eq!(faults(rule, "tool.mail:send", CLERK, denied), Vec::<String>::new());
    let rule = "/// crm stays near\ndeny if caller($a), region($a, \"elsewhere\"), label(\"crm\");";
    let denied = r#""tags":["crm"],"expect":"deny","reasons":["policy.denied"]"#;
    assert_eq!(faults(rule, "tool.mail:send", r#""abroad""#, denied), Vec::<String>::new());
}

#[test]
fn f04_what_is_written_into_a_tool_does_not_come_out_clean() {
    let wash = r#"
        resource = "tool.notes"
        [[action]]
        name = "write"
        effect = "internal"
        returns = { tags = [], integrity = "trusted" }
        schema = { type = "object" }
        [[action]]
        name = "read"
        effect = "read"
        returns = { tags = ["crm"], integrity = "untrusted" }
        schema = { type = "object" }
    "#;
    let warnings = |contract: &str| {
        let files = [
            ("rules.datalog", RULES),
            ("agents.toml", AGENTS),
            ("roles.toml", ROLES),
            ("tools/crm.toml", CRM),
        ];
        let files = files.into_iter().chain([
            ("tools/mail.toml", MAIL),
            ("tools/pay.toml", PAY),
            ("tools/notes.toml", contract),
        ]);
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned())).collect();
        PolicySet::load(&PolicyBundle(files)).unwrap().1.to_string()
    };
    let said = warnings(wash);
    assert!(said.contains("tools/notes.toml") && said.contains("`tool.notes:write` takes data"), "{said}");
    let told = wash.replacen("effect = \"internal\"", "effect = \"internal\"\naccepts = [\"crm\"]", 1);
    assert!(!warnings(&told).contains("tool.notes"));
}

#[test]
fn f10_what_denies_for_a_tag_denies_for_a_label_nobody_knows() {
    let rule = "/// nothing of people\ndeny if resource(\"tool.crm\"), label(\"hr\");";
    let read = |tags: &str, expected: &str| {
        let rest = format!(r#""tags":[{tags}],"expect":{expected}"#);
        assert_eq!(faults(rule, "tool.crm:read", CLERK, &rest), Vec::<String>::new(), "{tags}");
    };
    read(r#""crm""#, r#""allow""#);
    read(r#""hr""#, r#""deny","says":"nothing of people""#);
    read(r#""top""#, r#""deny","says":"nothing of people""#);
}
