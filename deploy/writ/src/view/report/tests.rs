use std::collections::BTreeMap;

use writ_common::{
    approval::Need,
    capability::Right,
    control::Activation,
    epoch::Epoch,
    ids::{
        AgentId, ApprovalId, BootId, BrokerId, KeyId, NodeId, OperatorId, PartId, Resource, RoleId, TaskKind,
        UserId,
    },
    keys::PrivateKey,
    label::Integrity,
    reason::ReasonCode,
    record::{Basis, Granted, RecordedApproval, RecordedHop, Void, What, Who},
    time::Millis,
};

use super::*;

const HOSTILE: &str = "</td><script>alert(1)</script>\"'&\u{202e}\u{0}";

fn at(secs: u64) -> Timestamp {
    Timestamp::from_secs(1_790_000_000 + secs)
}

fn id(origin: Origin, seq: u64) -> DecisionId {
    DecisionId { origin, boot: BootId::parse("b-1").unwrap(), seq }
}

fn node(seq: u64) -> DecisionId {
    id(Origin::Node(NodeId::parse("node-1").unwrap()), seq)
}

fn task() -> TaskId {
    TaskId::parse("t-1").unwrap()
}

fn who(hops: &[&str]) -> Who {
    let mut from = AgentId::parse("planner").unwrap();
    let mut walked = Vec::new();
    for to in hops {
        let to = AgentId::parse(*to).unwrap();
        walked.push(RecordedHop {
            from: from.clone(),
            to: to.clone(),
            key: KeyId::parse("0a").unwrap(),
            id: Digest::plain(b"hop"),
            gave_up: vec![Right::parse("tool.crm:write").unwrap()],
        });
        from = to;
    }
    Who {
        task: Some(task()),
        user: Some(UserId::parse("https://idp.example", "<b>alice</b>").unwrap()),
        agent: Some(AgentId::parse("planner").unwrap()),
        caller: Some(from),
        hops: walked,
        ..Who::default()
    }
}

fn verdict(decision: RecordedDecision, who: Who, target: &str) -> Verdicted {
    let right = Right::parse(target).unwrap();
    let what = What { resource: Some(right.resource), action: Some(right.action), ..What::default() };
    let basis = Basis {
        policy: Some(bundle().revision()),
        rules: vec!["base.datalog:2".to_owned()],
        label: Some(Label { integrity: Integrity::Untrusted, ..Label::bottom() }),
        ..Basis::default()
    };
    let reasons = match decision {
        RecordedDecision::Deny => {
            let told = HOSTILE.to_owned();
            vec![RecordedReason { code: ReasonCode::PolicyDenied, told, noted: Some(HOSTILE.to_owned()) }]
        }
        _ => Vec::new(),
    };
    Verdicted {
        decision,
        reasons,
        would_deny: Vec::new(),
        who,
        what,
        basis,
        trace: None,
        granted: None,
        right: None,
        approval: None,
        sources: Vec::new(),
        found: Vec::new(),
        acts: Vec::new(),
        shadow: None,
        count: 1,
    }
}

fn recorded(sequence: u64, id: DecisionId, body: RecordBody) -> Recorded {
    let record = Record {
        tenant: TenantId::parse("acme").unwrap(),
        id,
        prev: Digest::plain(b""),
        at: at(sequence),
        part: PartId::first(),
        body,
    };
    Recorded { sequence, record: Some(record), fault: None }
}

fn bundle() -> PolicyBundle {
    let text = format!("// {HOSTILE}\nallow if request(\"call\"); // {HOSTILE}\n");
    PolicyBundle(BTreeMap::from([("base.datalog".to_owned(), text)]))
}

fn approval(by: &[&str]) -> RecordedApproval {
    RecordedApproval {
        id: ApprovalId::parse("a-1").unwrap(),
        request: Digest::plain(b"request"),
        needs: vec![Need { role: RoleId::parse("payer").unwrap(), count: 1 }],
        by: by.iter().map(|name| OperatorId::parse(*name).unwrap()).collect(),
        waited: Some(Millis(5)),
    }
}

fn story(instruction: &str) -> Vec<Recorded> {
    let broker = Origin::Broker(BrokerId::parse("broker-1").unwrap());
    let verdicted = |one: Verdicted| RecordBody::Verdict(Box::new(one));
    let kind = TaskKind::parse("answer").unwrap();
    let mut grant = verdict(RecordedDecision::Allow, who(&[]), "tool.crm:read");
    grant.what = What { resource: Some(Resource::task(&kind)), ..What::default() };
    grant.granted = Some(Box::new(Granted {
        kind,
        rights: vec![Right::parse("tool.crm:read").unwrap()],
        max_depth: 2,
        expires: at(100),
        deadline: at(1_000),
        key: KeyId::parse("0b").unwrap(),
        instruction: Digest::plain(instruction.as_bytes()),
        idempotency: Digest::plain(b""),
        asked: Digest::plain(b""),
        roles: vec![HOSTILE.to_owned()],
        started: Epoch::default(),
    }));
    let mut hold = verdict(RecordedDecision::Hold, who(&["mailer"]), "tool.mail:send");
    hold.approval = Some(Box::new(approval(&[])));
    let mut used = verdict(RecordedDecision::Allow, who(&["mailer"]), "tool.mail:send");
    used.approval = Some(Box::new(approval(&["bob"])));
    let outcome = Outcome {
        intent: node(1),
        call_id: Digest::plain(b""),
        task: Some(task()),
        status: OutcomeStatus::Failed,
        reason: Some(RecordedReason { code: ReasonCode::ToolFailed, told: HOSTILE.to_owned(), noted: None }),
        result: None,
        result_bytes: None,
        label: Some(Label::top()),
        found: Vec::new(),
        elapsed: Some(Millis(12)),
        manifest: Vec::new(),
    };
    let void = Void {
        prepared: Digest::plain(b""),
        cause: RecordedReason { code: ReasonCode::AuditUnavailable, told: HOSTILE.to_owned(), noted: None },
        who: who(&[]),
        what: What::default(),
    };
    vec![
        recorded(1, id(broker, 0), verdicted(grant)),
        recorded(2, node(0), verdicted(verdict(RecordedDecision::Deny, who(&["mailer"]), "tool.crm:read"))),
        recorded(3, node(1), verdicted(verdict(RecordedDecision::Allow, who(&["mailer"]), "tool.crm:read"))),
        recorded(4, node(2), RecordBody::Outcome(Box::new(outcome))),
        recorded(5, node(3), verdicted(hold)),
        recorded(6, node(4), verdicted(used)),
        recorded(7, node(5), RecordBody::Void(Box::new(void))),
        Recorded { sequence: 8, record: None, fault: Some(HOSTILE.to_owned()) },
    ]
}

fn report(recorded: &[Recorded], instruction: Option<&str>, findings: &[Finding]) -> String {
    let key = PrivateKey::from_seed(&[1; 32]).public();
    let (tenant, task) = (TenantId::parse("acme").unwrap(), task());
    let activation =
        Activation { sequence: 3, at: at(0), by: HOSTILE.to_owned(), revision: bundle().revision() };
    let answer = ApprovalAnswer {
        tenant: tenant.clone(),
        approval: ApprovalId::parse("a-1").unwrap(),
        request: Digest::plain(b"request"),
        approver: OperatorId::parse("bob").unwrap(),
        at: at(6),
        expires: at(60),
        decision: ApprovalDecision::Granted,
        comment: HOSTILE.to_owned(),
    };
    render(&ReportInput {
        tenant: &tenant,
        task: &task,
        made_at: at(50),
        source: HOSTILE,
        root: &key,
        recorded,
        instruction,
        requests: &BTreeMap::new(),
        answers: &[answer],
        policies: &[(activation, bundle())],
        keys: &[(Origin::Node(NodeId::parse("node-1").unwrap()), key)],
        findings,
        checks: &[(HOSTILE.to_owned(), HOSTILE.to_owned())],
    })
}

/// Every element that is opened is closed, in order, and none is one that does something or loads something.
fn check_structure(html: &str) {
    let void = ["meta", "br", "rect", "path", "!doctype"];
    let known = [
        "html", "head", "title", "style", "body", "section", "h1", "h2", "p", "table", "thead", "tbody",
        "tr", "th", "td", "code", "pre", "small", "span", "div", "figure", "svg", "g", "text",
    ];
    let mut open: Vec<&str> = Vec::new();
    for piece in html.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag ends");
        let name = tag.split(|c: char| c.is_whitespace() || c == '/').find(|part| !part.is_empty()).unwrap();
        for attribute in ["src=", "href=", "onload", "onclick", "javascript:"] {
            assert!(!tag.contains(attribute), "<{tag}>");
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "…{piece}");
        } else if !void.contains(&name) {
            assert!(known.contains(&name) || (name == "title" && open.contains(&"g")), "<{tag}>");
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn nothing_of_a_record_is_markup() {
    let html = report(
        &story(HOSTILE),
        Some(HOSTILE),
        &[Finding { severity: Severity::Bad, text: HOSTILE.to_owned() }],
    );
    check_structure(&html);
    assert!(!html.contains("<script") && !html.contains("<b>"), "{html}");
    assert!(!html.contains('\u{202e}') && !html.contains('\u{0}'), "what hides is shown");
    assert!(html.contains("&lt;script&gt;alert(1)"));
    // A user's issuer is told as text; nothing is loaded from anywhere.
    assert!(!html.contains("url(") && !html.contains("@import"));
}

#[test]
fn a_reader_finds_who_what_why_and_how_it_ended() {
    let asked = "Where is my order?\nNot urgent.";
    let html = report(&story(asked), Some(asked), &[]);
    check_structure(&html);
    for part in [
        "<pre>Where is my order?\nNot urgent.</pre>",
        "was given a task of the kind answer. 2 calls were allowed, 2 refused, 1 had to wait",
        "It was begun and failed in 12 ms.",
        "How it ended is not on record.",
        "It was about to be allowed, and then was not.",
        "Approved by bob.",
        "1 approval by `payer`",
        "all but 1 right",
        "everything but <code>tool.crm:write</code>",
        "Record #8 is not to be believed",
        "allow if request",
        "signed 6 records here",
        "was kept from",
        "came from",
        "Of 1 allowed call it is not on record how it ended.",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains(ReasonCode::PolicyDenied.page().meaning.split('\'').next().unwrap()));
}

#[test]
fn an_instruction_that_is_not_the_recorded_one_is_not_shown() {
    let html = report(&story("the real one"), Some("a different wish"), &[]);
    assert!(!html.contains("a different wish") && html.contains(&Digest::plain(b"the real one").to_string()));
}

#[test]
fn what_came_twice_is_told_once_and_no_records_make_a_report_that_says_so() {
    let mut twice = story("x");
    let copy = Recorded { sequence: 9, ..twice[1].clone() };
    twice.push(copy);
    let without_number = |html: String| html.matches("class=\"v bad\">refused").count();
    assert_eq!(without_number(report(&twice, None, &[])), without_number(report(&story("x"), None, &[])));
    let html = report(&[], None, &[]);
    check_structure(&html);
    assert!(html.contains("No grant of this task is among the records."));
}
