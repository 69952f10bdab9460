//! Approvals, as pure functions: who counts, for what, until when, and how often.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test may panic")]

use std::collections::BTreeSet;

use writ_common::{
    approval::{
        ApprovalAnswer, ApprovalClaim, ApprovalDecision, ApprovalRequest, ApprovalTerms, Approvals,
        ApprovedCall, AskedRight, ClaimState, LIFE, Need, Standing,
    },
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    digest::Digest,
    ids::{
        AgentId, ApprovalId, BootId, NodeId, OperatorId, PartId, Resource, RoleId, TaskId, TenantId, UserId,
    },
    keys::PrivateKey,
    keyset::{KeysetDocument, KeysetKey},
    label::Label,
    policy::{PolicyBundle, PolicySet},
    reason::ReasonCode,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Timestamp},
};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const ROOT: u8 = 1;
const BROKER: u8 = 2;
const NODE: u8 = 3;
const PEOPLE: [(&str, u8, &str, &str); 4] = [
    ("bob", 20, "finance", "bob"),
    ("carol", 21, "finance", "carol"),
    ("dave", 22, "legal", "dave"),
    ("erin", 23, "both", "erin"),
];

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn after(seconds: u64) -> Timestamp {
    NOW.after(Millis::from_secs(seconds))
}

/// An enrolled node and four approvers.
fn control() -> ControlState {
    let mut control = ControlState::new(tenant(), key(ROOT).public());
    let keyset = KeysetDocument {
        version: 1,
        issued_at: NOW,
        expires: after(86_400),
        keys: vec![KeysetKey {
            public: key(BROKER).public(),
            tenants: vec![tenant()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: after(86_400),
        }],
        withdrawn: Vec::new(),
    };
    let mut events = vec![
        ControlEvent::Keyset(Signed::new(&keyset, &key(ROOT))),
        ControlEvent::NodeKey {
            node: NodeId::parse("node-1").unwrap(),
            key: key(NODE).public(),
            connection: "N".to_owned(),
        },
    ];
    events.extend(PEOPLE.map(|(name, seed, ..)| ControlEvent::ApproverKey {
        approver: OperatorId::parse(name).unwrap(),
        key: Some(key(seed).public()),
    }));
    for event in events {
        apply(&mut control, event);
    }
    control
}

fn apply(control: &mut ControlState, event: ControlEvent) {
    let document = ControlDocument {
        tenant: tenant(),
        at: NOW,
        by: "broker".to_owned(),
        follows: control.epoch(),
        event,
    };
    control.apply(control.epoch().sequence + 1, &encode(&Signed::new(&document, &key(BROKER)))).unwrap();
}

fn bundle(rules: &str) -> PolicyBundle {
    let approvers: String = PEOPLE
        .iter()
        .map(|(name, _, role, user)| {
            let roles =
                if *role == "both" { "\"finance\", \"legal\"".to_owned() } else { format!("\"{role}\"") };
            format!("[[approver]]\nname = \"{name}\"\nroles = [{roles}]\nusers = [\"{user}\"]\n")
        })
        .collect();
    let rules = format!("allow if request(\"call\"), right($r, $a), resource($r), action($a);\n{rules}");
    let files = [("a.datalog", rules), ("agents.toml", String::new()), ("approvers.toml", approvers)];
    PolicyBundle(files.into_iter().map(|(path, text)| (path.to_owned(), text)).collect())
}

fn policy() -> PolicySet {
    PolicySet::load(&bundle("")).unwrap_or_else(|findings| panic!("{findings}")).0
}

fn need(role: &str, count: u8) -> Need {
    Need { role: RoleId::parse(role).unwrap(), count }
}

fn terms(needs: &[Need]) -> ApprovalTerms {
    ApprovalTerms { needs: needs.to_vec(), own: BTreeSet::new(), life: LIFE }
}

fn id() -> ApprovalId {
    ApprovalId::parse("ap-1").unwrap()
}

fn chain() -> Vec<AgentId> {
    ["planner", "payer"].map(|name| AgentId::parse(name).unwrap()).into()
}

fn request(needs: &[Need]) -> ApprovalRequest {
    ApprovalRequest {
        tenant: tenant(),
        id: id(),
        node: NodeId::parse("node-1").unwrap(),
        at: NOW,
        expires: after(3_600),
        user: UserId::parse("https://idp.example", "alice").unwrap(),
        task: TaskId::parse("t-1").unwrap(),
        chain: chain(),
        resource: Resource::parse("tool.pay").unwrap(),
        action: writ_common::ids::Action::parse("wire").unwrap(),
        arguments: "{\"amount\":100}".to_owned(),
        call: writ_common::wire::call_digest(
            &Resource::parse("tool.pay").unwrap(),
            &writ_common::ids::Action::parse("wire").unwrap(),
            "{\"amount\":100}",
            &TaskId::parse("t-1").unwrap(),
        ),
        contract: Some(Digest::plain(b"the contract")),
        policy: policy().revision(),
        rules: vec!["a.datalog:1".to_owned()],
        label: Label::bottom(),
        origins: Default::default(),
        sources: Vec::new(),
        needs: needs.to_vec(),
        trace: None,
        right: None,
    }
}

/// One request with its answers, as a node has read them.
struct Case {
    approvals: Approvals,
    control: ControlState,
    policy: PolicySet,
    request: ApprovalRequest,
    digest: Digest,
    next: u64,
}

impl Case {
    fn new(needs: &[Need]) -> Self {
        Self::asked_by(needs, NODE)
    }

    fn asked_by(needs: &[Need], seed: u8) -> Self {
        let request = request(needs);
        let signed = Signed::new(&request, &key(seed));
        let mut case = Self {
            approvals: Approvals::default(),
            control: control(),
            policy: policy(),
            digest: signed.digest(),
            request,
            next: 1,
        };
        let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id() };
        case.take(&subject, &encode(&signed));
        case
    }

    fn take(&mut self, subject: &Subject, bytes: &[u8]) {
        self.approvals.take(self.next, &subject.of(&tenant()), bytes, NOW).unwrap();
        self.next += 1;
    }

    fn answer(&mut self, who: &str) -> ApprovalAnswer {
        ApprovalAnswer {
            tenant: tenant(),
            approval: id(),
            request: self.digest,
            approver: OperatorId::parse(who).unwrap(),
            at: after(10),
            expires: after(600),
            decision: ApprovalDecision::Granted,
            comment: String::new(),
        }
    }

    fn send(&mut self, answer: &ApprovalAnswer) {
        let seed = PEOPLE.iter().find(|(name, ..)| *name == answer.approver.as_str()).unwrap().1;
        self.send_signed(answer, seed);
    }

    fn send_signed(&mut self, answer: &ApprovalAnswer, seed: u8) {
        let subject = Subject::ApprovalAnswer {
            part: PartId::first(),
            approval: id(),
            approver: answer.approver.clone(),
        };
        self.take(&subject, &encode(&Signed::new(answer, &key(seed))));
    }

    fn granted_by(mut self, people: &[&str]) -> Self {
        for who in people {
            let answer = self.answer(who);
            self.send(&answer);
        }
        self
    }

    fn claim(&mut self, call: &[u8], state: ClaimState, at: Timestamp) -> u64 {
        self.claim_of(id(), call, state, at)
    }

    fn claim_of(&mut self, approval: ApprovalId, call: &[u8], state: ClaimState, at: Timestamp) -> u64 {
        let claim = ApprovalClaim {
            tenant: tenant(),
            approval: approval.clone(),
            call_id: Digest::plain(call),
            node: NodeId::parse("node-1").unwrap(),
            boot: BootId::parse("b-1").unwrap(),
            at,
            state,
        };
        let subject = Subject::ApprovalClaim { part: PartId::first(), approval };
        self.take(&subject, &encode(&Signed::new(&claim, &key(NODE))));
        self.next - 1
    }

    fn weigh(
        &self,
        now: Timestamp,
        change: impl FnOnce(&mut ApprovalRequest),
    ) -> Result<Standing, ReasonCode> {
        let terms = terms(&self.request.needs);
        self.weigh_on(now, &terms, change)
    }

    fn weigh_on(
        &self,
        now: Timestamp,
        terms: &ApprovalTerms,
        change: impl FnOnce(&mut ApprovalRequest),
    ) -> Result<Standing, ReasonCode> {
        let mut asked = self.request.clone();
        change(&mut asked);
        let call = ApprovedCall {
            user: &asked.user,
            task: &asked.task,
            chain: &asked.chain,
            call: asked.call,
            contract: asked.contract,
        };
        let weighed = self.approvals.weigh(&id(), &call, terms, &self.control, &self.policy, now);
        weighed.map_err(|reason| reason.code())
    }

    fn unusable(&self) -> Vec<ReasonCode> {
        match self.weigh(after(20), |_| {}) {
            Ok(Standing::Waiting { unusable, .. }) => {
                unusable.iter().map(writ_common::reason::Reason::code).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn missing(&self) -> Vec<Need> {
        match self.weigh(after(20), |_| {}) {
            Ok(Standing::Waiting { missing, .. }) => missing,
            Ok(Standing::Granted(_)) => Vec::new(),
            Err(code) => panic!("{code}"),
        }
    }
}

#[test]
fn everybody_counts_once_and_for_one_need() {
    let finance = |count| need("finance", count);
    for (needs, people, missing) in [
        (vec![finance(1)], vec![], vec![finance(1)]),
        (vec![finance(1)], vec!["bob"], vec![]),
        (vec![finance(2)], vec!["bob", "bob"], vec![finance(1)]),
        (vec![finance(2)], vec!["bob", "erin"], vec![]),
        (vec![finance(1), need("legal", 1)], vec!["erin"], vec![need("legal", 1)]),
        // Erin could stand in for either; only one way of counting satisfies both.
        (vec![finance(1), need("legal", 1)], vec!["bob", "erin"], vec![]),
        (vec![finance(1), need("legal", 1)], vec!["dave", "erin"], vec![]),
        (vec![finance(2), need("legal", 1)], vec!["bob", "erin", "carol"], vec![]),
        (vec![finance(2), need("legal", 1)], vec!["bob", "carol"], vec![need("legal", 1)]),
    ] {
        let case = Case::new(&needs).granted_by(&people);
        assert_eq!(case.missing(), missing, "{needs:?} by {people:?}");
    }
}

#[test]
fn h02_an_approval_is_for_one_call_by_one_chain_in_one_task() {
    let case = || Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    assert!(matches!(case().weigh(after(20), |_| {}), Ok(Standing::Granted(_))));
    let changes: [fn(&mut ApprovalRequest); 5] = [
        |request| request.call = Digest::plain(b"another call"),
        |request| request.task = TaskId::parse("t-2").unwrap(),
        |request| request.user = UserId::parse("https://idp.example", "eve").unwrap(),
        |request| drop(request.chain.pop()),
        |request| request.contract = None,
    ];
    for change in changes {
        assert_eq!(case().weigh(after(20), change).unwrap_err(), ReasonCode::ApprovalBinding);
    }
    // Policy asks for more now than people were told; or an answer is about another request.
    let more = terms(&[need("finance", 2)]);
    assert_eq!(case().weigh_on(after(20), &more, |_| {}).unwrap_err(), ReasonCode::ApprovalBinding);
    let mut case = Case::new(&[need("finance", 1)]);
    let answer = ApprovalAnswer { request: Digest::plain(b"another"), ..case.answer("bob") };
    case.send(&answer);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalBinding]);
}

#[test]
fn h03_the_user_of_the_task_is_nobody_to_ask_unless_policy_says_so() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    case.request.user = UserId::parse("https://another.example", "bob").unwrap();
    let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id() };
    let signed = Signed::new(&case.request, &key(NODE));
    case.approvals = Approvals::default();
    case.digest = signed.digest();
    case.take(&subject, &encode(&signed));
    let answer = case.answer("bob");
    case.send(&answer);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalSelf]);
    let own = ApprovalTerms { own: [RoleId::parse("finance").unwrap()].into(), ..terms(&case.request.needs) };
    assert!(matches!(case.weigh_on(after(20), &own, |_| {}), Ok(Standing::Granted(_))));
}

#[test]
fn h03_a_key_that_an_agent_holds_approves_nothing() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    let event = ControlEvent::AgentKey {
        agent: AgentId::parse("payer").unwrap(),
        holder: key(20).public(),
        connection: "A".to_owned(),
        token: Digest::plain(b"token"),
    };
    apply(&mut case.control, event);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalSignature]);
}

#[test]
fn h04_roles_and_keys_are_those_of_now() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["dave"]);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalRole]);
    let answer = case.answer("bob");
    case.send(&answer);
    assert!(matches!(case.weigh(after(20), |_| {}), Ok(Standing::Granted(_))));
    let gone = ControlEvent::ApproverKey { approver: OperatorId::parse("bob").unwrap(), key: None };
    apply(&mut case.control, gone);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalSignature, ReasonCode::ApprovalRole]);
}

#[test]
fn h05_answers_and_requests_end_and_none_is_older_than_its_question() {
    let change: [fn(&mut ApprovalAnswer); 3] = [
        |answer| answer.expires = after(15),
        |answer| answer.at = Timestamp::from_secs(1_799_999_000),
        |answer| answer.at = after(500),
    ];
    for change in change {
        let mut case = Case::new(&[need("finance", 1)]);
        let mut answer = case.answer("bob");
        change(&mut answer);
        case.send(&answer);
        assert_eq!(case.unusable(), [ReasonCode::ApprovalExpired], "{answer:?}");
    }
    let mut case = Case::new(&[need("finance", 1)]);
    let answer = ApprovalAnswer { expires: after(9_999), ..case.answer("bob") };
    case.send(&answer);
    assert!(matches!(case.weigh(after(3_599), |_| {}), Ok(Standing::Granted(_))));
    assert_eq!(case.weigh(after(3_600), |_| {}).unwrap_err(), ReasonCode::ApprovalExpired);
}

#[test]
fn a_refusal_of_one_who_may_approve_is_final_and_of_others_nothing() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    let no = ApprovalAnswer { decision: ApprovalDecision::Refused, ..case.answer("dave") };
    case.send(&no);
    assert!(matches!(case.weigh(after(20), |_| {}), Ok(Standing::Granted(_))));
    let no = ApprovalAnswer { decision: ApprovalDecision::Refused, ..case.answer("carol") };
    case.send(&no);
    assert_eq!(case.weigh(after(20), |_| {}).unwrap_err(), ReasonCode::ApprovalRefused);
}

#[test]
fn h11_what_is_not_signed_by_the_right_key_does_not_count() {
    let mut case = Case::new(&[need("finance", 1)]);
    let answer = case.answer("bob");
    case.send_signed(&answer, 21);
    assert_eq!(case.unusable(), [ReasonCode::ApprovalSignature]);
    let forged = Case::asked_by(&[need("finance", 1)], 99).granted_by(&["bob"]);
    assert_eq!(forged.weigh(after(20), |_| {}).unwrap_err(), ReasonCode::ApprovalSignature);
}

#[test]
fn h01_a_claim_keeps_others_off_and_a_used_one_for_good() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    let (mine, other) = (Digest::plain(b"mine"), Digest::plain(b"other"));
    assert_eq!(case.approvals.claimable(&id(), &mine, NOW), Ok(0));
    let sequence = case.claim(b"mine", ClaimState::Claimed, NOW);
    assert_eq!(case.approvals.claimable(&id(), &mine, after(1)), Ok(sequence));
    let taken = case.approvals.claimable(&id(), &other, after(1)).unwrap_err();
    assert_eq!(taken.code(), ReasonCode::ApprovalConsumed);
    // Whoever claimed it and went away does not keep it for ever: taking over takes it from them.
    assert_eq!(case.approvals.claimable(&id(), &other, after(121)), Ok(sequence));
    case.claim(b"mine", ClaimState::Used, after(2));
    // A node that says otherwise afterwards changes nothing.
    case.claim(b"other", ClaimState::Claimed, after(3));
    for call in [mine, other] {
        let used = case.approvals.claimable(&id(), &call, after(9_999)).unwrap_err();
        assert_eq!(used.code(), ReasonCode::ApprovalConsumed);
    }
}

#[test]
fn of_very_many_approvals_the_one_that_a_call_is_being_made_with_is_kept() {
    let mut case = Case::new(&[need("finance", 1)]).granted_by(&["bob"]);
    let sequence = case.claim(b"mine", ClaimState::Claimed, NOW);
    // As many used ones as there is room for.
    let used = |number: u32| ApprovalId::parse(format!("ap-used-{number}")).unwrap();
    for number in 0..4_096 {
        let request = ApprovalRequest { id: used(number), ..case.request.clone() };
        let subject = Subject::ApprovalRequest { part: PartId::first(), approval: used(number) };
        case.take(&subject, &encode(&Signed::new(&request, &key(NODE))));
        case.claim_of(used(number), b"other", ClaimState::Used, NOW);
    }
    assert!(case.approvals.get(&used(0)).is_none(), "there was no need to make room");
    assert_eq!(case.approvals.claimable(&id(), &Digest::plain(b"mine"), NOW), Ok(sequence));
    assert!(case.approvals.get(&id()).is_some(), "the call under way finds no approval");
}

#[test]
fn a_request_that_ended_long_ago_is_not_asked_for_again() {
    let mut case = Case::new(&[need("finance", 1)]);
    let ends = case.approvals.get(&id()).unwrap().request().expires;
    let later = ends.after(Millis::from_secs(86_400));
    case.approvals.prune(Timestamp::from_millis(later.as_millis() - 1));
    assert!(case.approvals.get(&id()).is_some() && !case.approvals.has_ended(&id()));
    case.approvals.prune(later);
    assert!(case.approvals.get(&id()).is_none() && case.approvals.has_ended(&id()));
    // After a restart it is read once more.
    let signed = Signed::new(&request(&[need("finance", 1)]), &key(NODE));
    let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id() };
    let mut again = Approvals::default();
    again.take(1, &subject.of(&tenant()), &encode(&signed), later).unwrap();
    assert!(again.get(&id()).is_none() && again.has_ended(&id()));
    assert!(!Approvals::default().has_ended(&id()));
}

#[test]
fn what_stands_on_anothers_subject_is_not_taken() {
    let mut case = Case::new(&[need("finance", 1)]);
    let answer = case.answer("carol");
    let signed = encode(&Signed::new(&answer, &key(21)));
    let subject = Subject::ApprovalAnswer {
        part: PartId::first(),
        approval: id(),
        approver: OperatorId::parse("bob").unwrap(),
    };
    assert!(case.approvals.take(9, &subject.of(&tenant()), &signed, NOW).is_err());
    // The first request counts, whoever asks again.
    let other = ApprovalRequest { rules: Vec::new(), ..case.request.clone() };
    let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id() };
    case.take(&subject, &encode(&Signed::new(&other, &key(NODE))));
    assert_eq!(case.approvals.get(&id()).unwrap().request().rules.len(), 1);
    // What is shown has to be what the digest is of.
    let other = ApprovalRequest { arguments: "{\"amount\":1}".to_owned(), ..case.request.clone() };
    let forged = encode(&Signed::new(&other, &key(NODE)));
    let mut fresh = Approvals::default();
    assert!(fresh.take(1, &subject.of(&tenant()), &forged, NOW).is_err());
    assert_eq!(case.approvals.get(&id()).unwrap().request().arguments, "{\"amount\":100}");
}

#[test]
fn approvals_nobody_can_give_are_found_when_the_policy_is_loaded() {
    for (rule, expected) in [
        ("needs_approval(\"finanse\", 1) <- action(\"wire\");", "did you mean `finance`?"),
        (
            "needs_approval(\"legal\", 3) <- action(\"wire\");",
            "3 approvals by `legal` are asked for, and 2 can",
        ),
        ("source_approval(\"finanse\", 1) <- action(\"wire\");", "did you mean `finance`?"),
        ("needs_approval(\"legal\", 0) <- action(\"wire\");", "1 to 16 can be"),
        ("needs_approval(\"legal\") <- action(\"wire\");", "needs_approval"),
    ] {
        let findings = PolicySet::load(&bundle(rule)).unwrap_err().to_string();
        assert!(findings.contains(expected), "{rule}: {findings}");
    }
}

/// A right instead of a call: to wire, for payer's key, for two minutes.
fn right_request(
    seed: u8,
    change: impl FnOnce(&mut ApprovalRequest),
) -> (Approvals, Digest, ApprovalRequest) {
    let mut asked = ApprovalRequest {
        node: NodeId::parse("broker-1").unwrap(),
        right: Some(AskedRight {
            holder: key(30).public(),
            life: Millis::from_secs(120),
            why: "the bill is due".to_owned(),
        }),
        ..request(&[need("finance", 1)])
    };
    asked.call = asked.shown();
    change(&mut asked);
    let signed = Signed::new(&asked, &key(seed));
    let mut approvals = Approvals::default();
    let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id() };
    // What is not taken is not known.
    drop(approvals.take(1, &subject.of(&tenant()), &encode(&signed), NOW));
    let answer = ApprovalAnswer {
        tenant: tenant(),
        approval: id(),
        request: signed.digest(),
        approver: OperatorId::parse("bob").unwrap(),
        at: after(10),
        expires: after(600),
        decision: ApprovalDecision::Granted,
        comment: String::new(),
    };
    let subject =
        Subject::ApprovalAnswer { part: PartId::first(), approval: id(), approver: answer.approver.clone() };
    let bob = PEOPLE.iter().find(|(name, ..)| *name == "bob").unwrap().1;
    approvals.take(2, &subject.of(&tenant()), &encode(&Signed::new(&answer, &key(bob))), NOW).unwrap();
    let digest = asked.call;
    (approvals, digest, asked)
}

fn weigh_right(approvals: &Approvals, asked: &ApprovalRequest, call: Digest) -> Result<Standing, ReasonCode> {
    let call = ApprovedCall {
        user: &asked.user,
        task: &asked.task,
        chain: &asked.chain,
        call,
        contract: asked.contract,
    };
    let terms = terms(&asked.needs);
    let weighed = approvals.weigh(&id(), &call, &terms, &control(), &policy(), after(20));
    weighed.map_err(|reason| reason.code())
}

#[test]
fn h11_right_is_asked_for_by_a_key_of_the_keyset_and_a_call_by_a_node() {
    let (approvals, digest, asked) = right_request(BROKER, |_| {});
    assert!(matches!(weigh_right(&approvals, &asked, digest), Ok(Standing::Granted(_))));
    // A node asks for calls, not for rights; a broker for rights, not for calls.
    let (approvals, digest, asked) = right_request(NODE, |_| {});
    assert_eq!(weigh_right(&approvals, &asked, digest).unwrap_err(), ReasonCode::ApprovalSignature);
    let case = Case::asked_by(&[need("finance", 1)], BROKER).granted_by(&["bob"]);
    assert_eq!(case.weigh(after(20), |_| {}).unwrap_err(), ReasonCode::ApprovalSignature);
}

#[test]
fn h02_right_and_call_are_two_things_and_every_part_of_a_right_counts() {
    let (approvals, digest, asked) = right_request(BROKER, |_| {});
    let call = ApprovalRequest { right: None, ..asked.clone() }.shown();
    assert_eq!(weigh_right(&approvals, &asked, call).unwrap_err(), ReasonCode::ApprovalBinding);
    let changes: [fn(&mut ApprovalRequest); 6] = [
        |asked| asked.action = writ_common::ids::Action::parse("read").unwrap(),
        |asked| asked.resource = Resource::parse("tool.crm").unwrap(),
        |asked| asked.arguments = "{\"/amount\":100}".to_owned(),
        |asked| asked.task = TaskId::parse("t-2").unwrap(),
        |asked| asked.right.as_mut().unwrap().holder = key(31).public(),
        |asked| asked.right.as_mut().unwrap().life = Millis::from_secs(300),
    ];
    for change in changes {
        let mut other = asked.clone();
        change(&mut other);
        assert_ne!(other.shown(), digest);
        // Shown is what the digest is of, or it is not taken at all.
        let (approvals, ..) = right_request(BROKER, change);
        assert!(approvals.get(&id()).is_none());
    }
    // The reason is shown, and signed with the rest.
    let (approvals, ..) = right_request(BROKER, |asked| {
        asked.right.as_mut().unwrap().why = "another".to_owned();
    });
    assert!(approvals.get(&id()).is_some());
}
