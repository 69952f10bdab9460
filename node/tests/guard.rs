//! The guard without a bus: every order of events, every clock.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use writ_bus::{Attested, Fence, StoreError, Stored, StreamFacts};
use writ_common::{
    capability::{Grant, Right, UnverifiedCapability},
    codec::{decode, encode},
    control::{ControlDocument, ControlEvent, RevocationTarget},
    datalog::Predicate,
    decide::Gate,
    digest::Digest,
    entropy::Entropy,
    epoch::Epoch,
    fresh::{FreshAnswer, FreshQuestion},
    ids::{
        Action, AgentId, BootId, CapabilityId, DetectorId, EntityType, FindingKind, FlowDomain, InspectorId,
        NodeId, PartId, Resource, TaskId, TenantId, UserId,
    },
    inspect::{Answer as Said, Direction, Failure, Finding, Inspection, Inspector, OnError, Severity},
    json::Value,
    keys::PrivateKey,
    keyset::{KeysetDocument, KeysetKey},
    label::{Confidentiality, DomainLabel, DomainSources, Integrity, Label, Origins, Tag},
    part::PartStage,
    policy::{PolicyBundle, PolicyRevision, PolicySet},
    reason::{Reason, ReasonCode},
    record::{OutcomeStatus, Record, RecordBody, RecordKind, Verdicted},
    request::Arguments,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Monotonic, Now, Timestamp},
    wire::{Answer, CallReply, FetchRequest, UnsignedCall, call_id},
};
use writ_journal::{Entry, Room, Unpublished, Unsettled};
use writ_node::guard::{
    Arrival, CallRef, Effect, Event, FoundSources, Guard, GuardConfig, Output, Ticket, ToolFailure,
};

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const CONNECTION: &str = "UPLANNER";

struct Counter(u8);

impl Entropy for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0 = self.0.wrapping_add(1);
        bytes.fill(self.0);
    }
}

struct AnyGate;

impl Gate for AnyGate {
    fn admit(&self, _: &Action, _: &Value) -> Result<Vec<Predicate>, Reason> {
        Ok(Vec::new())
    }
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn policies(folder: &Path, below: &str, into: &mut BTreeMap<String, String>) {
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = format!("{below}{}", path.file_name().unwrap().to_str().unwrap());
        // Worked examples are sets of their own.
        if path.ends_with("policies/examples") {
            continue;
        }
        if path.is_dir() {
            policies(&path, &format!("{name}/"), into);
        } else if name.ends_with(".toml") || name.ends_with(".datalog") {
            into.insert(name, fs::read_to_string(path).unwrap());
        }
    }
}

/// The policy of this repository, and one rule more.
fn shipped(rule: &str) -> PolicyBundle {
    let mut texts = BTreeMap::new();
    policies(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../policies")), "", &mut texts);
    texts.insert("more.datalog".to_owned(), rule.to_owned());
    PolicyBundle(texts)
}

const NOBODY_READS: &str = "/// nobody reads\ndeny if resource(\"tool.crm\");";

/// A guard with everything it needs to know, a stream that is asked by hand, and a clock.
struct Bench {
    guard: Guard,
    now: Now,
    control: u64,
    calls: u64,
    /// What the guard wants done and was not done yet.
    wants: Vec<Effect>,
    /// Every record that was prepared, in order.
    journal: Vec<Record>,
    /// The last record the journal says is in the stream: its sequence there, and the part if it is not its own.
    committed: Option<(u64, Option<PartId>)>,
    replies: BTreeMap<CallRef, Answer>,
    capability: UnverifiedCapability,
}

impl Bench {
    fn new() -> Self {
        Self::with(Vec::new())
    }

    fn with(inspectors: Vec<Inspector>) -> Self {
        let tenant = TenantId::parse("acme").unwrap();
        let boot = BootId::generate(START, [1; 10]);
        let mut config =
            GuardConfig::new(tenant, NodeId::parse("node-1").unwrap(), boot, key(1).public(), key(3));
        config.unacknowledged_max = 4;
        config.inspectors = inspectors;
        let gates = ["tool.crm", "tool.mail"].map(|name| {
            let gate: Arc<dyn Gate + Send + Sync> = Arc::new(AnyGate);
            (Resource::parse(name).unwrap(), gate)
        });
        let grant = Grant {
            tenant: TenantId::parse("acme").unwrap(),
            user: UserId::parse("https://idp.example", "alice").unwrap(),
            agent: AgentId::parse("planner").unwrap(),
            task: TaskId::parse("t-1").unwrap(),
            holder: key(4).public(),
            capability: CapabilityId::parse("c-1").unwrap(),
            serial: 1,
            instruction: Digest::plain(b"x"),
            domain: FlowDomain::parse("p0.t-1").unwrap(),
            rights: ["tool.crm:read", "tool.mail:draft"].map(|text| Right::parse(text).unwrap()).into(),
            expires: START.after(Millis::from_secs(300)),
            min_epoch: Epoch { incarnation: 0, sequence: 1 },
            max_depth: 3,
            bounds: Vec::new(),
        };
        let mut bench = Self {
            guard: Guard::new(config, gates.into_iter().collect(), Box::new(Counter(0))),
            now: Now { wall: START, monotonic: Monotonic::from_millis(1_000_000) },
            control: 0,
            calls: 0,
            wants: Vec::new(),
            journal: Vec::new(),
            committed: None,
            replies: BTreeMap::new(),
            capability: grant.issue(&key(2), &[9; 32]).unwrap(),
        };
        bench.learn();
        bench.refresh();
        bench
    }

    /// The control state of a small set-up.
    fn learn(&mut self) {
        let keyset = KeysetDocument {
            version: 1,
            issued_at: START,
            expires: START.after(Millis::from_secs(86_400)),
            keys: vec![KeysetKey {
                public: key(2).public(),
                tenants: vec![TenantId::parse("acme").unwrap()],
                max_ttl: Millis::from_secs(600),
                not_before: Timestamp::default(),
                not_after: START.after(Millis::from_secs(86_400)),
            }],
            withdrawn: Vec::new(),
        };
        self.control(ControlEvent::Keyset(Signed::new(&keyset, &key(1))));
        self.control(ControlEvent::Policy(shipped("")));
        self.control(ControlEvent::AgentKey {
            agent: AgentId::parse("planner").unwrap(),
            holder: key(4).public(),
            connection: CONNECTION.to_owned(),
            token: Digest::plain(b"token"),
        });
    }

    fn control(&mut self, event: ControlEvent) {
        let payload = self.signed_control(event, 2);
        self.control += 1;
        self.happen(Event::Control { sequence: self.control, payload });
    }

    /// What would be the next event, signed by this key.
    fn signed_control(&self, event: ControlEvent, signer: u8) -> Bytes {
        let document = ControlDocument {
            tenant: TenantId::parse("acme").unwrap(),
            at: self.now.wall,
            by: "broker-1".to_owned(),
            follows: Epoch { incarnation: 0, sequence: self.control },
            event,
        };
        Bytes::from(encode(&Signed::new(&document, &key(signer))))
    }

    /// A call that runs, and the policy its record names.
    fn read_under(&mut self, nonce: u8) -> Option<PolicyRevision> {
        let call = self.call(nonce);
        let (ticket, ..) = self.intent();
        self.published(ticket, stored(100 + u64::from(nonce)));
        self.take(|effect| matches!(effect, Effect::RunTool(..)));
        self.happen(Event::Finished(call, Ok("[]".to_owned().into())));
        self.last_verdict().basis.policy
    }

    fn last_verdict(&self) -> Verdicted {
        let verdicts = self.journal.iter().rev().find_map(|record| match &record.body {
            RecordBody::Verdict(verdicted) => Some(verdicted.as_ref().clone()),
            _ => None,
        });
        verdicts.unwrap()
    }

    /// The guard asks for freshness, and the broker answers.
    fn refresh(&mut self) {
        let question = self.ask();
        self.answer(&question, self.now.wall);
    }

    fn ask(&mut self) -> FreshQuestion {
        self.pass(Millis(1_100));
        let asked = self.take(|effect| matches!(effect, Effect::AskFresh(_)));
        let Effect::AskFresh(payload) = asked else { unreachable!() };
        decode::<Signed<FreshQuestion>>(&payload).unwrap().peek().unwrap()
    }

    fn answer(&mut self, question: &FreshQuestion, time: Timestamp) {
        let answer = FreshAnswer {
            tenant: question.tenant.clone(),
            nonce: question.nonce,
            epoch: Epoch { incarnation: 0, sequence: self.control },
            time,
        };
        self.happen(Event::Fresh(Bytes::from(encode(&Signed::new(&answer, &key(2))))));
    }

    /// Time passes, and the guard is told.
    fn pass(&mut self, by: Millis) {
        self.now = Now { wall: self.now.wall.after(by), monotonic: self.now.monotonic.after(by) };
        self.happen(Event::Tick);
    }

    /// Something happens. The journal writes at once; everything else waits to be looked at.
    fn happen(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.guard.handle(event, self.now) {
                match effect {
                    Effect::Journal(ticket, entry) => {
                        match entry {
                            Entry::Prepared { record, .. } => {
                                let record = decode::<Signed<Record>>(&record).unwrap();
                                self.journal.push(record.peek().unwrap());
                            }
                            Entry::Committed { stream, part, .. } => self.committed = Some((stream, part)),
                            _ => {}
                        }
                        events.extend(ticket.map(Event::Journalled));
                    }
                    Effect::Reply(call, payload) => {
                        let reply: CallReply = decode(&payload).unwrap();
                        self.replies.insert(call, reply.answer);
                    }
                    other => self.wants.push(other),
                }
            }
        }
    }

    fn take(&mut self, is_it: impl Fn(&Effect) -> bool) -> Effect {
        let position = self.wants.iter().position(is_it).unwrap();
        self.wants.remove(position)
    }

    fn wants(&self, is_it: impl Fn(&Effect) -> bool) -> bool {
        self.wants.iter().any(is_it)
    }

    fn runs_a_tool(&self) -> bool {
        self.wants(|effect| matches!(effect, Effect::RunTool(..)))
    }

    fn call(&mut self, nonce: u8) -> CallRef {
        self.call_with(nonce, "SELECT 1", "tool.crm", "read")
    }

    fn call_with(&mut self, nonce: u8, sql: &str, resource: &str, action: &str) -> CallRef {
        self.calls += 1;
        let call = CallRef(self.calls);
        let resource = Resource::parse(resource).unwrap();
        let arguments: Value = [("sql", Value::from(sql))].into_iter().collect();
        let unsigned = UnsignedCall {
            capability: &self.capability,
            resource: &resource,
            action: &Action::parse(action).unwrap(),
            arguments: &Arguments::new(arguments),
            handover: None,
            approval: None,
            nonce: [nonce; 16],
            issued_at: self.now.wall,
        };
        let payload = Bytes::from(encode(&unsigned.sign(&key(4))));
        let tenant = TenantId::parse("acme").unwrap();
        let (agent, task) = (AgentId::parse("planner").unwrap(), TaskId::parse("t-1").unwrap());
        let arrival = Arrival {
            subject: Subject::Call { agent, task, resource }.of(&tenant),
            attested: Attested::Agent { account: "AGENTS_acme".into(), user: CONNECTION.into() },
            payload,
            trace: None,
        };
        self.happen(Event::Arrived(call, arrival));
        call
    }

    /// A call whose tool has run.
    fn ran(&mut self, nonce: u8) -> CallRef {
        let call = self.call(nonce);
        let (ticket, ..) = self.intent();
        self.published(ticket, stored(8));
        self.take(|effect| matches!(effect, Effect::RunTool(..)));
        self.happen(Event::Finished(call, Ok("[]".to_owned().into())));
        call
    }

    /// The raised label on its way to the stream.
    fn raise(&mut self) -> (Ticket, Fence, DomainLabel) {
        let Effect::Publish { ticket, store, .. } = self.take(is_raise) else { unreachable!() };
        let raised = decode::<Signed<DomainLabel>>(&store.payload).unwrap().open(|_| true).unwrap();
        (ticket, store.fence, raised)
    }

    fn domain_label(&self, domain: &FlowDomain, label: &Label) -> DomainLabel {
        DomainLabel {
            tenant: TenantId::parse("acme").unwrap(),
            domain: domain.clone(),
            label: label.clone(),
            origins: Origins::new(),
            moved_to: None,
        }
    }

    /// What is read of the task label.
    fn label_is(&mut self, sequence: u64, label: &Label) {
        let Effect::ReadLabel(domain) = self.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
            unreachable!()
        };
        let payload = encode(&Signed::new(&self.domain_label(&domain, label), &key(2)));
        self.happen(Event::LabelRead(domain, Ok(Some((sequence, Bytes::from(payload))))));
    }

    /// The question for the kept result of a call.
    fn fetch(&mut self, nonce: u8) -> CallRef {
        self.calls += 1;
        let call = CallRef(self.calls);
        let tenant = TenantId::parse("acme").unwrap();
        let (agent, task) = (AgentId::parse("planner").unwrap(), TaskId::parse("t-1").unwrap());
        let node = NodeId::parse("node-1").unwrap();
        let request = FetchRequest {
            tenant: tenant.clone(),
            task: task.clone(),
            node: node.clone(),
            call_id: call_id(&key(4).public(), &[nonce; 16]),
            at: self.now.wall,
        };
        let arrival = Arrival {
            subject: Subject::Call { agent, task, resource: Resource::node(&node) }.of(&tenant),
            attested: Attested::Agent { account: "AGENTS_acme".into(), user: CONNECTION.into() },
            payload: Bytes::from(encode(&Signed::new(&request, &key(4)))),
            trace: None,
        };
        self.happen(Event::Arrived(call, arrival));
        call
    }

    /// The label of the task is read, if the guard wants to know it.
    fn label(&mut self) {
        if !self.wants(|effect| matches!(effect, Effect::ReadLabel(_))) {
            return;
        }
        let Effect::ReadLabel(domain) = self.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
            unreachable!()
        };
        let payload =
            Bytes::from(encode(&Signed::new(&self.domain_label(&domain, &Label::bottom()), &key(2))));
        self.happen(Event::LabelRead(domain, Ok(Some((7, payload)))));
    }

    /// The intent on its way to the stream.
    fn intent(&mut self) -> (Ticket, Fence, Option<String>) {
        self.label();
        let Effect::Publish { ticket, store, .. } = self.take(
            |effect| matches!(effect, Effect::Publish { store, .. } if store.subject.contains(".allow.")),
        ) else {
            unreachable!()
        };
        (ticket, store.fence, store.message_id)
    }

    /// What was looked for is not in the stream.
    fn not_found(&mut self) {
        let search = self.take(|effect| matches!(effect, Effect::Search { .. }));
        let Effect::Search { ticket, .. } = search else { unreachable!() };
        self.happen(Event::Searched(ticket, Ok(None)));
    }

    fn published(&mut self, ticket: Ticket, result: Result<Stored, StoreError>) {
        self.happen(Event::Published(ticket, result));
    }

    fn refused(&self, call: CallRef) -> ReasonCode {
        match &self.replies[&call] {
            Answer::Denied { reasons } => reasons[0].code,
            Answer::Failed { reason, .. } => reason.code,
            other => panic!("{other:?}"),
        }
    }

    fn kinds(&self) -> Vec<RecordKind> {
        self.journal.iter().map(Record::kind).collect()
    }
}

fn stored(sequence: u64) -> Result<Stored, StoreError> {
    Ok(Stored { sequence, duplicate: false })
}

#[test]
fn a_call_runs_after_its_intent_is_acknowledged_and_not_before() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    assert!(!bench.runs_a_tool());
    let (ticket, fence, _) = bench.intent();
    let label = Subject::Label(FlowDomain::parse("p0.t-1").unwrap()).of(&TenantId::parse("acme").unwrap());
    assert_eq!(fence, Fence::LastOn { subject: label, sequence: 7 });
    assert!(!bench.runs_a_tool(), "journalled, not acknowledged");
    bench.published(ticket, stored(8));
    assert!(bench.runs_a_tool());
    bench.happen(Event::Finished(call, Ok("[]".to_owned().into())));
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(9));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
    assert_eq!(bench.kinds(), [RecordKind::Allow, RecordKind::Outcome]);
}

#[test]
fn f11_nothing_is_released_before_the_task_label_covers_it() {
    let mut bench = Bench::new();
    let call = bench.ran(1);
    let (ticket, fence, raised) = bench.raise();
    assert_eq!(fence, Fence::LastOn { subject: label_subject(), sequence: 7 });
    assert_eq!(raised.label.to_string(), "{crm} trusted");
    assert_eq!(raised.origins["crm"].resource.as_str(), "tool.crm");
    assert!(!bench.replies.contains_key(&call), "the raise is not acknowledged");
    bench.published(ticket, stored(9));
    let Answer::Done { label, .. } = &bench.replies[&call] else { unreachable!("it is released") };
    assert_eq!(label.to_string(), "{crm} trusted");
    // The label covers the next result already: nothing is published for it.
    let call = bench.call(2);
    let (ticket, fence, _) = bench.intent();
    assert_eq!(fence, Fence::LastOn { subject: label_subject(), sequence: 9 });
    bench.published(ticket, stored(10));
    bench.happen(Event::Finished(call, Ok("[]".to_owned().into())));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
}

#[test]
fn f11_a_raise_that_another_node_was_faster_than_is_made_on_top_of_it() {
    let mut bench = Bench::new();
    let call = bench.ran(1);
    let (ticket, ..) = bench.raise();
    bench.published(ticket, Err(StoreError::Fenced));
    let other = Label {
        confidentiality: Confidentiality::Tags([Tag::parse("hr").unwrap()].into()),
        integrity: Integrity::Untrusted,
    };
    bench.label_is(12, &other);
    let (ticket, fence, raised) = bench.raise();
    assert_eq!(fence, Fence::LastOn { subject: label_subject(), sequence: 12 });
    assert_eq!(raised.label.to_string(), "{crm, hr} untrusted");
    bench.published(ticket, stored(13));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
}

#[test]
fn f11_part_a_label_that_moved_is_raised_where_it_went() {
    let mut bench = Bench::new();
    let call = bench.ran(1);
    let (ticket, ..) = bench.raise();
    bench.published(ticket, Err(StoreError::Fenced));
    let Effect::ReadLabel(domain) = bench.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
        unreachable!()
    };
    let next = PartId::numbered(1);
    let ended = DomainLabel { moved_to: Some(next.clone()), ..bench.domain_label(&domain, &Label::top()) };
    let payload = Bytes::from(encode(&Signed::new(&ended, &key(2))));
    bench.happen(Event::LabelRead(domain.clone(), Ok(Some((12, payload)))));
    // That what stands here covers it says nothing: where the domain lives now, nobody knows of this result yet.
    assert!(!bench.replies.contains_key(&call));
    bench.label_is(3, &Label::bottom());
    let there = FlowDomain { part: next, domain: domain.domain };
    let subject = format!("writ.v1.acme.label.{there}");
    let is_there =
        |effect: &Effect| matches!(effect, Effect::Publish { store, .. } if store.subject == subject);
    let Effect::Publish { ticket, store, .. } = bench.take(is_there) else { unreachable!() };
    assert_eq!(store.fence, Fence::LastOn { subject, sequence: 3 });
    let raised = decode::<Signed<DomainLabel>>(&store.payload).unwrap().open(|_| true).unwrap();
    assert_eq!(raised.domain, there);
    assert_eq!(raised.label.to_string(), "{crm} trusted");
    bench.published(ticket, stored(4));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
    // Nothing is decided on what is left behind.
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::StateStale);
}

#[test]
fn records_of_a_part_that_takes_nothing_stand_in_the_one_in_use() {
    let mut bench = Bench::new();
    let (p0, p1) = (PartId::first(), PartId::numbered(1));
    bench.control(ControlEvent::Part { part: p1.clone(), stage: PartStage::Current });
    bench.control(ControlEvent::Part { part: p1.clone(), stage: PartStage::Shared });
    // The task lives where it began.
    let call = bench.ran(1);
    let (ticket, fence, raised) = bench.raise();
    assert_eq!((&raised.domain.part, fence), (&p0, Fence::LastOn { subject: label_subject(), sequence: 7 }));
    bench.control(ControlEvent::Part { part: p0, stage: PartStage::Sealed });
    bench.published(ticket, stored(9));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
    let Effect::Publish { store, .. } = bench.take(|effect| matches!(effect, Effect::Publish { .. })) else {
        unreachable!()
    };
    assert!(store.subject.starts_with("writ.v1.acme.audit.p1.outcome."), "{}", store.subject);
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::AuditUnavailable);
}

#[test]
fn b08_part_of_a_record_that_came_too_late_the_journal_knows_where_it_stands() {
    let mut bench = Bench::new();
    let p1 = PartId::numbered(1);
    bench.control(ControlEvent::Part { part: p1.clone(), stage: PartStage::Current });
    bench.control(ControlEvent::Part { part: p1.clone(), stage: PartStage::Shared });
    bench.ran(1);
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(9));
    let is_publish = |effect: &Effect| matches!(effect, Effect::Publish { .. });
    let Effect::Publish { ticket, store, .. } = bench.take(is_publish) else { unreachable!() };
    assert!(store.subject.starts_with("writ.v1.acme.audit.p0.outcome."), "{}", store.subject);
    bench.control(ControlEvent::Part { part: PartId::first(), stage: PartStage::Sealed });
    bench.published(ticket, Err(StoreError::Busy));
    let Effect::Publish { ticket, store, .. } = bench.take(is_publish) else { unreachable!() };
    assert!(store.subject.starts_with("writ.v1.acme.audit.p1.restored."), "{}", store.subject);
    bench.published(ticket, stored(3));
    assert_eq!(bench.committed, Some((3, Some(p1))));
}

#[test]
fn f11_one_raise_takes_along_what_came_meanwhile() {
    let mut bench = Bench::new();
    let (first, second) = (bench.ran(1), bench.ran(2));
    let (ticket, ..) = bench.raise();
    assert!(!bench.wants(is_raise), "one at a time");
    bench.published(ticket, stored(20));
    assert!(!bench.wants(is_raise), "the second is covered by now");
    assert!([first, second].iter().all(|call| matches!(bench.replies[call], Answer::Done { .. })));
}

#[test]
fn a_result_whose_label_cannot_be_raised_is_kept_back_and_not_run_again() {
    let mut bench = Bench::new();
    let call = bench.ran(1);
    let (ticket, ..) = bench.raise();
    bench.published(ticket, Err(StoreError::Full));
    let Answer::Failed { reason, status } = &bench.replies[&call] else { unreachable!("it is kept back") };
    assert_eq!((reason.code, *status), (ReasonCode::FlowWithheld, OutcomeStatus::Done));
    assert_eq!(bench.kinds(), [RecordKind::Allow, RecordKind::Outcome]);
    // Asked for again, it is raised first, and then handed out.
    let again = bench.fetch(1);
    let (ticket, ..) = bench.raise();
    assert!(!bench.replies.contains_key(&again));
    bench.published(ticket, stored(30));
    let Answer::Done { result, label } = &bench.replies[&again] else { unreachable!("it is handed out") };
    assert_eq!((result.as_str(), label.to_string().as_str()), ("[]", "{crm} trusted"));
    assert!(!bench.runs_a_tool());
}

#[test]
fn what_a_tool_says_its_result_carries_is_for_those_who_are_cleared_for_it() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, stored(8));
    bench.take(|effect| matches!(effect, Effect::RunTool(..)));
    let secret = Label {
        confidentiality: Confidentiality::Tags([Tag::parse("secret").unwrap()].into()),
        integrity: Integrity::Trusted,
    };
    bench.happen(Event::Finished(call, Ok(Output { label: Some(secret), .."[]".to_owned().into() })));
    let Answer::Failed { reason, .. } = &bench.replies[&call] else { unreachable!("it is kept back") };
    assert_eq!(reason.code, ReasonCode::FlowWithheld);
    assert!(!bench.wants(is_raise), "nothing was told to anybody");
}

/// Released or kept back: what was read stands in the record. More than fits there is given to nobody.
#[test]
fn f09_what_the_user_called_by_name_is_known_from_the_first_result_on() {
    const FIELD: &str = r#"
[[action.field]]
path = "/rows/*/id"
entity = "customer_id"
integrity = "untrusted"
named_by = ["name"]
"#;
    let said = "Write to 'Ada Lovelace', please";
    let mut bench = Bench::new();
    let mut policy = shipped("");
    policy.0.get_mut("tools/crm.toml").unwrap().push_str(FIELD);
    bench.control(ControlEvent::Policy(policy));
    let mut grant = bench.capability.grant().clone();
    grant.instruction = Digest::plain(said.as_bytes());
    bench.capability = grant.issue(&key(2), &[9; 32]).unwrap();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, stored(8));
    bench.take(|effect| matches!(effect, Effect::RunTool(..)));
    let rows = r#"{"rows":[{"id":"c-7","name":"Ada Lovelace"},{"id":"c-8","name":"Eve"}]}"#;
    bench.happen(Event::Finished(call, Ok(rows.to_owned().into())));
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(9));
    // The task is trusted: until now nobody had to know what the user said.
    let read = bench.take(|effect| matches!(effect, Effect::ReadSources(..)));
    let Effect::ReadSources(domain, task) = read else { unreachable!() };
    assert!(!bench.replies.contains_key(&call), "what it vouches for is not put down");
    let found = FoundSources { instruction: Some(Bytes::from(said)), results: None };
    bench.happen(Event::SourcesRead(domain.clone(), task, Ok(found)));
    let subject = Subject::Sources(domain.clone()).of(&TenantId::parse("acme").unwrap());
    let Effect::Publish { ticket, store, .. } =
        bench.take(|effect| matches!(effect, Effect::Publish { store, .. } if store.subject == subject))
    else {
        unreachable!()
    };
    let sources = decode::<Signed<DomainSources>>(&store.payload).unwrap().open(|_| true).unwrap();
    let customer = EntityType::parse("customer_id").unwrap();
    assert!(sources.results.contains(&domain, &customer, "c-7"));
    assert!(!sources.results.contains(&domain, &customer, "c-8"));
    bench.published(ticket, stored(10));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
}

#[test]
fn the_record_lists_what_a_result_is_made_of() {
    for (pieces, acknowledged) in [(2, stored(12)), (2, Err(StoreError::Full)), (65, Err(StoreError::Full))] {
        let is_given = acknowledged.is_ok();
        let mut bench = Bench::new();
        let call = bench.call(1);
        let (ticket, ..) = bench.intent();
        bench.published(ticket, stored(8));
        bench.take(|effect| matches!(effect, Effect::RunTool(..)));
        let manifest: Vec<Digest> = (0..pieces).map(|piece: u8| Digest::plain(&[piece])).collect();
        let output = Output { manifest: manifest.clone(), ..r#"{"chunks":[]}"#.to_owned().into() };
        bench.happen(Event::Finished(call, Ok(output)));
        if pieces <= 64 {
            let (ticket, ..) = bench.raise();
            bench.published(ticket, acknowledged);
        }
        let outcomes = bench.journal.iter().filter_map(|record| match &record.body {
            RecordBody::Outcome(outcome) => Some(outcome.manifest.clone()),
            _ => None,
        });
        let expected = if pieces <= 64 { manifest } else { Vec::new() };
        assert_eq!(outcomes.collect::<Vec<_>>(), [expected]);
        assert_eq!(matches!(bench.replies[&call], Answer::Done { .. }), is_given);
    }
}

#[test]
fn f03_what_a_tool_says_of_its_failure_is_told_under_the_label_of_a_result() {
    for acknowledged in [stored(9), Err(StoreError::Full)] {
        let is_raised = acknowledged.is_ok();
        let mut bench = Bench::new();
        let call = bench.call(1);
        let (ticket, ..) = bench.intent();
        bench.published(ticket, stored(8));
        bench.take(|effect| matches!(effect, Effect::RunTool(..)));
        let reason = Reason::new(ReasonCode::ToolFailed).told("`ada@example.com` is no number");
        let failure = ToolFailure { reason, status: OutcomeStatus::Failed };
        bench.happen(Event::Finished(call, Err(failure)));
        let (ticket, _, raised) = bench.raise();
        assert_eq!(raised.label.to_string(), "{crm} trusted");
        assert!(!bench.replies.contains_key(&call), "the raise is not acknowledged");
        bench.published(ticket, acknowledged);
        let Answer::Failed { reason, .. } = &bench.replies[&call] else { unreachable!("it failed") };
        assert_eq!(reason.text.contains("ada@example.com"), is_raised, "{}", reason.text);
        let recorded = format!("{:?}", bench.journal);
        assert!(!recorded.contains("ada@example.com"), "records hold no content");
    }
}

#[test]
fn b07_a_label_that_does_not_stand_on_the_bus_covers_nothing() {
    let mut bench = Bench::new();
    let call = bench.ran(1);
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(20));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
    // Somebody writes a lower one: what was told stays told, and the next release writes it down again.
    let second = bench.call(2);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, Err(StoreError::Fenced));
    bench.label_is(21, &Label::bottom());
    let (ticket, ..) = bench.intent();
    bench.published(ticket, stored(22));
    bench.take(|effect| matches!(effect, Effect::RunTool(..)));
    bench.happen(Event::Finished(second, Ok("[]".to_owned().into())));
    let (ticket, fence, raised) = bench.raise();
    assert_eq!(fence, Fence::LastOn { subject: label_subject(), sequence: 21 });
    assert_eq!(raised.label.to_string(), "{crm} trusted");
    assert!(!bench.replies.contains_key(&second));
    bench.published(ticket, stored(23));
    assert!(matches!(bench.replies[&second], Answer::Done { .. }));
}

#[test]
fn f02_a_label_nobody_of_ours_signed_is_for_nobody() {
    let mut bench = Bench::new();
    bench.call(1);
    let Effect::ReadLabel(domain) = bench.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
        unreachable!()
    };
    let forged = bench.domain_label(&domain, &Label::bottom());
    let payload = Bytes::from(encode(&Signed::new(&forged, &key(99))));
    bench.happen(Event::LabelRead(domain, Ok(Some((7, payload)))));
    let basis = bench.last_verdict().basis;
    assert_eq!(basis.label, Some(Label::top()));
}

fn label_subject() -> String {
    Subject::Label(FlowDomain::parse("p0.t-1").unwrap()).of(&TenantId::parse("acme").unwrap())
}

fn is_raise(effect: &Effect) -> bool {
    matches!(effect, Effect::Publish { store, .. } if store.subject == label_subject())
}

#[test]
fn b09_an_intent_that_is_not_acknowledged_runs_nothing() {
    for error in [StoreError::Refused("x".into()), StoreError::Full] {
        let mut bench = Bench::new();
        let call = bench.call(1);
        let (ticket, ..) = bench.intent();
        bench.published(ticket, Err(error.clone()));
        assert!(!bench.runs_a_tool());
        let expected =
            if error == StoreError::Full { ReasonCode::AuditFull } else { ReasonCode::AuditUnavailable };
        assert_eq!(bench.refused(call), expected);
        assert_eq!(bench.kinds(), [RecordKind::Allow, RecordKind::Void], "the prepared intent is voided");
    }
}

#[test]
fn b09_of_an_intent_of_unknown_fate_the_stream_hears_the_truth() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let (ticket, _, intent_id) = bench.intent();
    bench.published(ticket, Err(StoreError::Unknown("timed out".into())));
    assert!(!bench.runs_a_tool());
    assert_eq!(bench.refused(call), ReasonCode::AuditUnavailable);
    // A void takes the intent's own id: whichever of both arrives first is the one that counts.
    let Effect::Publish { ticket, store, .. } = bench.take(|effect| matches!(effect, Effect::Publish { .. }))
    else {
        unreachable!()
    };
    assert!(store.subject.contains(".void."), "{}", store.subject);
    assert_eq!(store.message_id, intent_id);
    // Something with this id was there before. What? Not the void. The intent itself: it stands, and its end is recorded.
    bench.published(ticket, Ok(Stored { sequence: 8, duplicate: true }));
    bench.not_found();
    let Effect::Search { ticket, .. } = bench.take(|effect| matches!(effect, Effect::Search { .. })) else {
        unreachable!()
    };
    bench.happen(Event::Searched(ticket, Ok(Some(8))));
    let outcomes: Vec<_> = bench
        .journal
        .iter()
        .filter_map(|record| match &record.body {
            RecordBody::Outcome(outcome) => Some(outcome.status),
            RecordBody::Verdict(_) | RecordBody::Void(_) => None,
        })
        .collect();
    assert_eq!(outcomes, [OutcomeStatus::NotRun]);
    assert!(!bench.runs_a_tool());
}

#[test]
fn b09_a_void_whose_acknowledgement_was_lost_is_not_made_a_second_time() {
    let mut bench = Bench::new();
    let _call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, Err(StoreError::Unknown("timed out".into())));
    let void = |effect: &Effect| matches!(effect, Effect::Publish { .. });
    let Effect::Publish { ticket, store: first, .. } = bench.take(void) else { unreachable!() };
    bench.published(ticket, Err(StoreError::Unknown("timed out".into())));
    let Effect::Publish { ticket, store: again, .. } = bench.take(void) else { unreachable!() };
    assert_eq!(first, again, "byte for byte");
    bench.published(ticket, Ok(Stored { sequence: 8, duplicate: true }));
    let Effect::Search { ticket, record, .. } = bench.take(|effect| matches!(effect, Effect::Search { .. }))
    else {
        unreachable!()
    };
    assert_eq!(record, first.payload, "what is there is the void");
    bench.happen(Event::Searched(ticket, Ok(Some(8))));
    assert!(!bench.wants(void), "{:?}", bench.wants);
    assert!(!bench.kinds().contains(&RecordKind::Outcome));
}

#[test]
fn b09_an_id_that_somebody_else_used_is_no_proof_of_our_intent() {
    let mut bench = Bench::new();
    let _call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, Err(StoreError::Unknown("timed out".into())));
    let void = |effect: &Effect| matches!(effect, Effect::Publish { .. });
    let Effect::Publish { ticket, store: first, .. } = bench.take(void) else { unreachable!() };
    // Another node ran the caller's retry: its intent bears the same id.
    bench.published(ticket, Ok(Stored { sequence: 9, duplicate: true }));
    bench.not_found();
    let Effect::Search { ticket, .. } = bench.take(|effect| matches!(effect, Effect::Search { .. })) else {
        unreachable!()
    };
    bench.happen(Event::Searched(ticket, Ok(None)));
    let Effect::Publish { store: second, .. } = bench.take(void) else { unreachable!() };
    assert!(second.subject.contains(".void."), "{}", second.subject);
    assert_ne!(second.message_id, first.message_id, "under the record's own id, so that its place is filled");
    assert!(!bench.kinds().contains(&RecordKind::Outcome), "nothing is said about a call that was not ours");
}

#[test]
fn b09_a_stream_that_takes_nothing_stops_decisions() {
    let mut bench = Bench::new();
    for nonce in 1..=4 {
        let call = bench.call(nonce);
        let (ticket, ..) = bench.intent();
        bench.published(ticket, Err(StoreError::Unknown("timed out".into())));
        assert_eq!(bench.refused(call), ReasonCode::AuditUnavailable);
    }
    let before = bench.journal.len();
    let call = bench.call(5);
    assert_eq!(bench.refused(call), ReasonCode::AuditUnavailable);
    assert_eq!(bench.journal.len(), before, "there is nowhere to put another record");
}

#[test]
fn r10_a_journal_that_cannot_be_written_runs_nothing() {
    let mut bench = Bench::new();
    let call = bench.call_without_journal(1);
    assert_eq!(bench.refused(call), ReasonCode::AuditFull);
    assert!(!bench.runs_a_tool());
    let Effect::Publish { store, .. } = bench.take(|effect| matches!(effect, Effect::Publish { .. })) else {
        unreachable!()
    };
    assert!(store.subject.contains(".void."), "its place in the run is filled: {}", store.subject);
}

#[test]
fn r10_without_room_in_the_journal_nothing_new_is_let_through() {
    let mut bench = Bench::new();
    let under_way = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.happen(Event::JournalRoom(Room::Reserved));
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::AuditFull);
    // What was let through before is ended, and what is refused anyway is recorded for what it is.
    bench.published(ticket, stored(8));
    assert!(bench.runs_a_tool());
    bench.happen(Event::Finished(under_way, Ok("[]".to_owned().into())));
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(9));
    let call = bench.call_with(3, "SELECT 1", "tool.unknown", "read");
    assert_ne!(bench.refused(call), ReasonCode::AuditFull);
    let kinds = [RecordKind::Allow, RecordKind::Deny, RecordKind::Outcome, RecordKind::Deny];
    assert_eq!(bench.kinds(), kinds);
    bench.happen(Event::JournalRoom(Room::None));
    let call = bench.call(4);
    assert_eq!(bench.refused(call), ReasonCode::AuditFull);
    assert_eq!(bench.kinds(), kinds, "there is nowhere to put another record");
    bench.happen(Event::JournalRoom(Room::Enough));
    let _call = bench.call(5);
    let _intent = bench.intent();
}

impl Bench {
    /// A call whose intent cannot be written.
    fn call_without_journal(&mut self, nonce: u8) -> CallRef {
        let call = self.call(nonce);
        let Effect::ReadLabel(domain) = self.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
            unreachable!()
        };
        let tenant = TenantId::parse("acme").unwrap();
        let label = DomainLabel {
            tenant,
            domain: domain.clone(),
            label: Label::bottom(),
            origins: Default::default(),
            moved_to: None,
        };
        let payload = Bytes::from(encode(&Signed::new(&label, &key(2))));
        let mut failed = Vec::new();
        for effect in self.guard.handle(Event::LabelRead(domain, Ok(Some((7, payload)))), self.now) {
            if let Effect::Journal(Some(ticket), _) = effect {
                failed.push(ticket);
            }
        }
        assert_eq!(failed.len(), 1);
        for ticket in failed {
            self.happen(Event::JournalFailed(ticket, "No space left on device".to_owned()));
        }
        call
    }
}

#[test]
fn t02_a_call_the_stream_has_seen_is_not_run_again() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, Ok(Stored { sequence: 5, duplicate: true }));
    assert!(!bench.runs_a_tool());
    assert!(bench.wants(|effect| matches!(effect, Effect::ReadFirst(_, _, 5))));
    bench.happen(Event::FirstRead(call, Ok(None)));
    assert!(!bench.runs_a_tool());
    assert!(bench.replies.contains_key(&call));
}

#[test]
fn t02_a_repeat_while_the_first_is_under_way_is_not_run() {
    let mut bench = Bench::new();
    let _first = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, stored(8));
    drop(bench.take(|effect| matches!(effect, Effect::RunTool(..))));
    let second = bench.call(1);
    assert!(!bench.runs_a_tool());
    assert!(matches!(bench.replies[&second], Answer::Replayed { outcome: None, .. }));
}

#[test]
fn a_moved_label_has_the_call_decided_again() {
    let mut bench = Bench::new();
    let _call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.published(ticket, Err(StoreError::Fenced));
    assert!(!bench.runs_a_tool());
    assert!(bench.wants(|effect| matches!(effect, Effect::ReadLabel(_))), "the label is read anew");
}

#[test]
fn a_domain_without_a_label_is_denied() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let Effect::ReadLabel(domain) = bench.take(|effect| matches!(effect, Effect::ReadLabel(_))) else {
        unreachable!()
    };
    bench.happen(Event::LabelRead(domain, Ok(None)));
    assert_eq!(bench.refused(call), ReasonCode::LabelMissing);
    assert!(!bench.runs_a_tool());
}

#[test]
fn r01_a_revocation_that_arrives_before_the_acknowledgement_stops_the_call() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    let target = RevocationTarget::Task(TaskId::parse("t-1").unwrap());
    bench.control(ControlEvent::Revocation { target, until: START.after(Millis::from_secs(900)) });
    bench.published(ticket, stored(8));
    assert!(!bench.runs_a_tool());
    assert_eq!(bench.refused(call), ReasonCode::RevokedTask);
}

#[test]
fn r04_a_node_that_was_paused_does_not_act_when_it_wakes_up() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    // Stopped for a minute and a half while the acknowledgement was under way.
    let pause = Millis::from_secs(90);
    bench.now = Now { wall: bench.now.wall.after(pause), monotonic: bench.now.monotonic.after(pause) };
    bench.published(ticket, stored(8));
    assert!(!bench.runs_a_tool());
    assert_eq!(bench.refused(call), ReasonCode::StateStale);
    let last = bench.journal.last().unwrap();
    assert!(matches!(&last.body, RecordBody::Outcome(outcome) if outcome.status == OutcomeStatus::NotRun));
}

#[test]
fn r04_a_capability_that_expired_meanwhile_is_not_used() {
    let mut bench = Bench::new();
    bench.pass(Millis::from_secs(296));
    bench.refresh();
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    let pause = Millis::from_secs(4);
    bench.now = Now { wall: bench.now.wall.after(pause), monotonic: bench.now.monotonic.after(pause) };
    bench.published(ticket, stored(8));
    assert!(!bench.runs_a_tool());
    assert_eq!(bench.refused(call), ReasonCode::TokenExpired);
}

#[test]
fn r03_without_news_everything_is_denied_in_the_end() {
    let mut bench = Bench::new();
    bench.pass(Millis::from_secs(55));
    let _fine = bench.call(1);
    assert!(bench.wants(|effect| matches!(effect, Effect::ReadLabel(_))), "a read may be this old");
    let mut bench = Bench::new();
    bench.pass(Millis::from_secs(61));
    let call = bench.call(1);
    assert_eq!(bench.refused(call), ReasonCode::StateStale);
}

#[test]
fn r05_a_clock_that_jumps_is_noticed() {
    // An hour back, the capability itself would live too long.
    let (back, ahead) = (-3_600_000_i64, 3_600_000);
    for (jump, code) in [
        (-20_000, ReasonCode::ClockUnsane),
        (20_000, ReasonCode::ClockUnsane),
        (back, ReasonCode::TokenLifetime),
        (ahead, ReasonCode::ClockUnsane),
    ] {
        let mut bench = Bench::new();
        let wall = bench.now.wall.as_millis().checked_add_signed(jump).unwrap();
        bench.now.wall = Timestamp::from_millis(wall);
        bench.happen(Event::Tick);
        let call = bench.call(1);
        assert_eq!(bench.refused(call), code, "{jump}");
        assert!(!bench.runs_a_tool());
    }
}

#[test]
fn r05_a_clock_apart_from_the_brokers_is_noticed() {
    let mut bench = Bench::new();
    let question = bench.ask();
    bench.answer(&question, bench.now.wall.after(Millis::from_secs(60)));
    let call = bench.call(1);
    assert_eq!(bench.refused(call), ReasonCode::ClockUnsane);
}

#[test]
fn r05_an_answer_to_no_question_and_an_answer_by_nobody_are_no_news() {
    let mut bench = Bench::new();
    let question = bench.ask();
    bench.pass(Millis::from_secs(58));
    let mut replayed = question.clone();
    replayed.nonce = [0xee; 16];
    bench.answer(&replayed, bench.now.wall);
    let answer = FreshAnswer {
        tenant: question.tenant.clone(),
        nonce: question.nonce,
        epoch: Epoch { incarnation: 0, sequence: bench.control },
        time: bench.now.wall,
    };
    let forged = encode(&Signed::new(&answer, &key(77)));
    bench.happen(Event::Fresh(Bytes::from(forged)));
    bench.pass(Millis::from_secs(5));
    let call = bench.call(1);
    assert_eq!(bench.refused(call), ReasonCode::StateStale);
}

#[test]
fn r02_a_call_that_names_a_later_state_waits_for_it_and_not_for_ever() {
    let mut bench = Bench::new();
    bench.capability = later_grant(bench.control + 1);
    let call = bench.call(1);
    assert!(!bench.replies.contains_key(&call), "it waits a moment");
    bench.control(ControlEvent::HaltAll { on: false });
    bench.refresh();
    assert!(bench.wants(|effect| matches!(effect, Effect::ReadLabel(_))), "the state has come");

    let mut bench = Bench::new();
    bench.capability = later_grant(bench.control + 1);
    let call = bench.call(1);
    bench.pass(Millis::from_secs(3));
    assert_eq!(bench.refused(call), ReasonCode::StateStale);
}

fn later_grant(sequence: u64) -> UnverifiedCapability {
    let bench = Bench::new();
    let mut grant = bench.capability.grant().clone();
    grant.min_epoch = Epoch { incarnation: 0, sequence };
    grant.issue(&key(2), &[9; 32]).unwrap()
}

/// The facts of the first part, which is all there is.
fn first(facts: StreamFacts) -> BTreeMap<PartId, Option<StreamFacts>> {
    BTreeMap::from([(PartId::first(), Some(facts))])
}

#[test]
fn r07_streams_that_went_back_stop_everything() {
    let mut bench = Bench::new();
    let facts = |last_sequence| StreamFacts { created_ns: 1, last_sequence, bytes: 0, bytes_max: 0 };
    bench.happen(Event::Streams { control: facts(9), parts: first(facts(20)) });
    let call = bench.call(1);
    let (ticket, ..) = bench.intent();
    bench.happen(Event::Streams { control: facts(9), parts: first(facts(19)) });
    bench.published(ticket, stored(8));
    assert!(!bench.runs_a_tool(), "noticed between decision and act");
    assert_eq!(bench.refused(call), ReasonCode::StateRollback);
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::StateRollback);
}

#[test]
fn a_nearly_full_stream_begins_nothing() {
    let mut bench = Bench::new();
    let facts = |bytes| StreamFacts { created_ns: 1, last_sequence: 9, bytes, bytes_max: 100_000 };
    bench.happen(Event::Streams { control: facts(0), parts: first(facts(89_999)) });
    let _call = bench.call(1);
    let _intent = bench.intent();
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::AuditFull);
    assert_eq!(bench.kinds(), [RecordKind::Allow, RecordKind::Deny]);
}

#[test]
fn a18_what_an_earlier_run_left_open_is_looked_for_and_never_run() {
    let mut dead = Bench::new();
    let _call = dead.call(1);
    let (ticket, ..) = dead.intent();
    let record = dead.journal[0].clone();
    let envelope = encode(&Signed::new(&record, &key(3)));
    dead.published(ticket, stored(8));

    // The intent was acknowledged and nothing more is known.
    let mut bench = Bench::new();
    let unsettled = Unsettled { without_outcome: vec![(0, envelope.clone())], ..Unsettled::default() };
    bench.happen(Event::Recovered { boot: record.id.boot.clone(), unsettled });
    let outcome = bench.journal.last().unwrap();
    assert!(matches!(&outcome.body, RecordBody::Outcome(o) if o.status == OutcomeStatus::UnknownOutcome));
    assert!(!bench.runs_a_tool());

    // It was journalled and perhaps published: the stream is searched before anything is said about it.
    let mut bench = Bench::new();
    let unpublished = Unpublished {
        seq: 0,
        kind: RecordKind::Allow,
        subject: "writ.v1.acme.audit.p0.allow.t-1.node-1".to_owned(),
        message_id: "x".to_owned(),
        record: envelope,
    };
    let unsettled = Unsettled { unpublished: vec![unpublished], ..Unsettled::default() };
    bench.happen(Event::Recovered { boot: record.id.boot, unsettled });
    assert!(
        bench.wants(|effect| matches!(effect, Effect::Search { .. } | Effect::Publish { .. })),
        "{:?}",
        bench.wants
    );
    assert!(!bench.runs_a_tool());
}

#[test]
fn a18_a_void_of_an_earlier_run_whose_intent_was_stored_after_all_is_not_taken_for_it() {
    let mut dead = Bench::new();
    let _call = dead.call(1);
    let (ticket, ..) = dead.intent();
    let intent = dead.journal[0].clone();
    dead.published(ticket, Err(StoreError::Unknown("timed out".into())));
    let void = |effect: &Effect| matches!(effect, Effect::Publish { .. });
    let Effect::Publish { store, .. } = dead.take(void) else { unreachable!() };
    // The node died before the void was acknowledged.
    let unpublished = Unpublished {
        seq: 0,
        kind: RecordKind::Void,
        subject: store.subject.clone(),
        message_id: store.message_id.clone().unwrap(),
        record: store.payload.clone(),
    };
    let unsettled = Unsettled { unpublished: vec![unpublished], ..Unsettled::default() };
    let mut bench = Bench::new();
    bench.happen(Event::Recovered { boot: intent.id.boot.clone(), unsettled });
    let Effect::Publish { ticket, store: again, .. } = bench.take(void) else { unreachable!() };
    assert_eq!(again.payload, store.payload);
    bench.published(ticket, Ok(Stored { sequence: 8, duplicate: true }));
    let read = bench.take(|effect| matches!(effect, Effect::ReadRecord { .. }));
    let Effect::ReadRecord { ticket, sequence: 8, .. } = read else { unreachable!() };
    let stored = encode(&Signed::new(&intent, &key(3)));
    bench.happen(Event::RecordRead(ticket, Some(stored.into())));
    let outcome = bench.journal.last().unwrap();
    assert!(matches!(&outcome.body, RecordBody::Outcome(o) if o.intent == intent.id), "{:?}", outcome.body);
    assert!(!bench.runs_a_tool());
}

#[test]
fn b12_only_an_enrolled_connection_of_the_agent_counts() {
    let mut bench = Bench::new();
    let withdrawn = key(4).public().id();
    let agent = AgentId::parse("planner").unwrap();
    bench.control(ControlEvent::AgentKeyWithdrawn { agent, key: withdrawn });
    let call = bench.call(1);
    assert!(matches!(bench.refused(call), ReasonCode::ConnectionMismatch | ReasonCode::AgentKeyUnknown));
}

#[test]
fn the_halt_of_everything_is_for_everything() {
    let mut bench = Bench::new();
    bench.control(ControlEvent::HaltAll { on: true });
    bench.refresh();
    let call = bench.call(1);
    bench.label();
    assert_eq!(bench.refused(call), ReasonCode::HaltAll);
}

#[test]
fn a_withdrawn_broker_key_opens_nothing_more() {
    let mut bench = Bench::new();
    let keyset = KeysetDocument {
        version: 2,
        issued_at: START,
        expires: START.after(Millis::from_secs(86_400)),
        keys: vec![KeysetKey {
            public: key(22).public(),
            tenants: vec![TenantId::parse("acme").unwrap()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: START.after(Millis::from_secs(86_400)),
        }],
        withdrawn: vec![key(2).public()],
    };
    bench.control(ControlEvent::Keyset(Signed::new(&keyset, &key(1))));
    let call = bench.call(1);
    assert!(matches!(bench.refused(call), ReasonCode::TokenUnknownRoot | ReasonCode::KeysetExpired));
}

#[test]
fn a_policy_is_exchanged_between_two_calls() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_under(1), Some(shipped("").revision()));
    bench.control(ControlEvent::Policy(shipped(NOBODY_READS)));
    let call = bench.call(3);
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    assert_eq!(bench.last_verdict().basis.policy, Some(shipped(NOBODY_READS).revision()));
    let question = bench.ask();
    assert_eq!((question.policy, question.policy_fault), (Some(shipped(NOBODY_READS).revision()), None));
}

#[test]
fn a_call_that_waits_while_the_policy_changes_is_decided_by_the_new_one_alone() {
    let mut bench = Bench::new();
    let call = bench.call(1);
    assert!(bench.wants(|effect| matches!(effect, Effect::ReadLabel(_))));
    // The contract changes with the rules, so a mixture of both would show.
    let mut bundle = shipped(NOBODY_READS);
    let contract = bundle.0.get_mut("tools/crm.toml").unwrap();
    *contract = contract.replace("The customer database", "The customers");
    let revision = bundle.revision();
    bench.control(ControlEvent::Policy(bundle));
    bench.label();
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    let under_new = bench.last_verdict();
    assert_eq!(under_new.basis.policy, Some(revision));
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    assert_eq!(
        bench.last_verdict().what.contract,
        under_new.what.contract,
        "the contract is the new policy's too"
    );
}

#[test]
fn p06_a_broken_policy_leaves_the_last_good_one_in_force_and_is_told() {
    let mut bench = Bench::new();
    bench.control(ControlEvent::Policy(shipped("deny if resuorce(\"tool.crm\");")));
    let Effect::Alarm(alarm) = bench.take(|effect| matches!(effect, Effect::Alarm(_))) else {
        unreachable!()
    };
    assert!(alarm.contains("more.datalog:1:9") && alarm.contains("policy.invalid"), "{alarm}");
    bench.refresh();
    assert_eq!(bench.read_under(1), Some(shipped("").revision()));
    assert_eq!(
        bench.last_verdict().basis.policy_fault,
        Some(ReasonCode::PolicyInvalid),
        "and the record says so"
    );
    let question = bench.ask();
    assert_eq!(question.policy, Some(shipped("").revision()));
    assert_eq!(question.policy_fault, Some(ReasonCode::PolicyInvalid));
    assert!(bench.guard.is_ready(bench.now), "it decides");
    bench.control(ControlEvent::Policy(shipped(NOBODY_READS)));
    assert_eq!(bench.ask().policy_fault, None);
}

/// P13: what is not the broker's word, or is its word of another time, puts no policy in force.
#[test]
fn p13_an_unsigned_or_older_policy_is_not_taken() {
    let mut bench = Bench::new();
    let old = bench.signed_control(ControlEvent::Policy(shipped(NOBODY_READS)), 2);
    bench.control(ControlEvent::Policy(shipped("deny if depth($n), $n > 2;")));
    let in_force = shipped("deny if depth($n), $n > 2;").revision();
    let unsigned = bench.signed_control(ControlEvent::Policy(shipped(NOBODY_READS)), 9);
    for forged in [unsigned, old.clone()] {
        bench.control += 1;
        bench.happen(Event::Control { sequence: bench.control, payload: forged });
        let question = bench.ask();
        assert_eq!(
            (question.policy, question.policy_fault),
            (Some(in_force), Some(ReasonCode::PolicyRollback))
        );
        let Effect::Alarm(alarm) = bench.take(|effect| matches!(effect, Effect::Alarm(_))) else {
            unreachable!()
        };
        assert!(alarm.contains("policy.rollback"), "{alarm}");
    }
    // Not even in its old place.
    bench.happen(Event::Control { sequence: 3, payload: old });
    assert_eq!(bench.ask().policy, Some(in_force));
}

/// The shipped policy with nobody allowed to read, and the database in observe mode until then.
fn observing(until: Timestamp, permission: &str) -> PolicyBundle {
    let mut bundle = shipped(&format!("{NOBODY_READS}\n{permission}"));
    let contract = bundle.0.get_mut("tools/crm.toml").unwrap();
    *contract =
        contract.replacen("[[action]]", &format!("[observe]\nuntil = \"{}\"\n\n[[action]]", whole(until)), 1);
    bundle
}

fn whole(time: Timestamp) -> String {
    format!("{}Z", time.to_string().split('.').next().unwrap())
}

const OBSERVED: &str = "may_observe(\"tool.crm\") <- request(\"call\");";

#[test]
fn what_is_observed_goes_through_and_says_what_would_have_denied_it() {
    let mut bench = Bench::new();
    let until = START.after(Millis::from_secs(100));
    bench.control(ControlEvent::Policy(observing(until, OBSERVED)));
    bench.refresh();
    bench.read_under(1);
    let verdicted = bench.last_verdict();
    let would: Vec<(ReasonCode, &str)> =
        verdicted.would_deny.iter().map(|reason| (reason.code, reason.told.as_str())).collect();
    assert_eq!(would, [(ReasonCode::PolicyDenied, "nobody reads")]);
    assert!(verdicted.reasons.is_empty());
    assert_eq!(verdicted.basis.rules.len(), 1, "and which rule: {:?}", verdicted.basis.rules);
    // What is not a rule's answer is not observed.
    bench.control(ControlEvent::HaltAll { on: true });
    let call = bench.call(2);
    assert_eq!(bench.refused(call), ReasonCode::HaltAll);
    bench.control(ControlEvent::HaltAll { on: false });
    let call = bench.call_with(3, "DELETE FROM customers; --", "tool.crm", "drop");
    assert_eq!(bench.refused(call), ReasonCode::RightMissing, "no contract, no right, nothing learnt");
    // The day comes, and nobody has to do anything.
    bench.pass(Millis::from_secs(101));
    bench.refresh();
    let call = bench.call(4);
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    assert!(bench.last_verdict().would_deny.is_empty());
}

#[test]
fn nothing_is_observed_that_the_policy_does_not_let_be() {
    let mut bench = Bench::new();
    let until = START.after(Millis::from_secs(100));
    bench.control(ControlEvent::Policy(observing(until, "may_observe(\"tool.mail\") <- request(\"call\");")));
    let call = bench.call(1);
    bench.label();
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    // Without any such rule it is not even a policy.
    bench.control(ControlEvent::Policy(observing(until, "")));
    let Effect::Alarm(alarm) = bench.take(|effect| matches!(effect, Effect::Alarm(_))) else {
        unreachable!()
    };
    assert!(alarm.contains("no rule derives `may_observe`"), "{alarm}");
}

#[test]
fn an_observation_ends_within_ninety_days() {
    let policy = |days: u64| {
        let until = START.after(Millis::from_secs(days * 86_400));
        PolicySet::load(&observing(until, OBSERVED)).unwrap().0
    };
    assert_eq!(policy(90).check_observed(START).to_string(), "");
    let findings = policy(91).check_observed(START);
    assert!(findings.has_errors() && findings.to_string().contains("more than 90 days"), "{findings}");
    let over = policy(1).check_observed(START.after(Millis::from_secs(2 * 86_400)));
    assert!(!over.has_errors() && over.to_string().contains("it is enforced"), "{over}");
    let mut endless = observing(START, OBSERVED);
    let contract = endless.0.get_mut("tools/crm.toml").unwrap();
    *contract = contract.replace("until", "untill");
    let findings = PolicySet::load(&endless).unwrap_err().to_string();
    assert!(findings.contains("`observe.until` is missing"), "{findings}");
}

/// An inspector of every tool, in both directions.
fn looking() -> Inspector {
    Inspector {
        name: InspectorId::parse("dlp").unwrap(),
        directions: [Direction::ToolArguments, Direction::ToolResult].into(),
        resources: BTreeSet::new(),
        deadline: Millis(1_000),
        on_error: OnError::Deny,
        add_tags: BTreeMap::from([(FindingKind::parse("phone").unwrap(), Tag::parse("personal").unwrap())]),
    }
}

/// What it says: that it found something of these kinds, or why it says nothing.
fn said(found: Result<&[&str], Failure>) -> Box<Inspection> {
    let finding = |kind: &&str| Finding {
        path: "/rows/0/0".to_owned(),
        kind: FindingKind::parse(*kind).unwrap(),
        inspector: InspectorId::parse("dlp").unwrap(),
        detector: DetectorId::parse("test").unwrap(),
        severity: Severity::MAX,
        span: None,
    };
    let answers = found.map(|kinds| {
        let findings = kinds.iter().map(finding).collect();
        vec![Said { findings, add_tags: BTreeSet::new(), version: String::new() }]
    });
    let mut inspection = Inspection::default();
    inspection.add(&looking(), answers);
    Box::new(inspection)
}

impl Bench {
    /// What the guard wants to have looked at.
    fn looked_at(&mut self) -> (CallRef, Direction, Vec<String>) {
        let Effect::Inspect(call, inspect) = self.take(|effect| matches!(effect, Effect::Inspect(..))) else {
            unreachable!()
        };
        let parts = inspect.parts.iter().map(|part| format!("{}={}", part.path, part.text)).collect();
        (call, inspect.direction, parts)
    }

    /// A call that is let through, has run, and whose result is to be looked at.
    fn ran_inspected(&mut self, nonce: u8, result: &str) -> CallRef {
        let call = self.call(nonce);
        self.label();
        let (asked, direction, parts) = self.looked_at();
        assert_eq!((asked, direction, parts[0].as_str()), (call, Direction::ToolArguments, "/sql=SELECT 1"));
        self.happen(Event::Inspected(call, said(Ok(&[]))));
        let (ticket, ..) = self.intent();
        self.published(ticket, stored(8));
        self.take(|effect| matches!(effect, Effect::RunTool(..)));
        self.happen(Event::Finished(call, Ok(result.to_owned().into())));
        call
    }
}

#[test]
fn content_is_shown_to_inspectors_only_of_calls_that_nothing_else_refuses() {
    let mut bench = Bench::with(vec![looking()]);
    let call = bench.call_with(1, "SELECT 1", "tool.mail", "send");
    bench.label();
    assert!(!bench.wants(|effect| matches!(effect, Effect::Inspect(..))));
    assert_eq!(bench.refused(call), ReasonCode::RightMissing);
    let call = bench.call(2);
    assert!(bench.wants(|effect| matches!(effect, Effect::Inspect(..))));
    let is_intent = |effect: &Effect| matches!(effect, Effect::Publish { store, .. } if store.subject.contains(".allow."));
    assert!(!bench.wants(is_intent) && !bench.replies.contains_key(&call));
}

#[test]
fn m04_findings_in_arguments_are_there_when_the_rules_are_asked() {
    const NO_CARDS: &str =
        "/// no cards\ndeny if inspected(\"arguments\"), finding($path, \"card\", $detector, $severity);";
    let mut bench = Bench::with(vec![looking()]);
    bench.control(ControlEvent::Policy(shipped(NO_CARDS)));
    bench.refresh();
    let call = bench.call(1);
    bench.label();
    bench.looked_at();
    bench.happen(Event::Inspected(call, said(Ok(&["card"]))));
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    let found = bench.last_verdict().found;
    assert_eq!(
        (found[0].kind.as_str(), found[0].detector.as_str(), found[0].places),
        ("card", "dlp.test", 1)
    );
    // The same in a result is none of this rule's business.
    let call = bench.ran_inspected(2, r#"{"rows":[["x"]]}"#);
    bench.looked_at();
    bench.happen(Event::Inspected(call, said(Ok(&["card"]))));
    let (ticket, ..) = bench.raise();
    bench.published(ticket, stored(9));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
}

#[test]
fn m04_silence_of_an_inspector_refuses_the_call_or_keeps_its_result() {
    let gone = || said(Err(Failure::Unavailable("no answer".into())));
    let mut bench = Bench::with(vec![looking()]);
    let call = bench.call(1);
    bench.label();
    bench.looked_at();
    bench.happen(Event::Inspected(call, gone()));
    assert_eq!(bench.refused(call), ReasonCode::InspectUnavailable);
    assert!(!bench.runs_a_tool());
    let call = bench.ran_inspected(2, r#"{"rows":[["secret"]]}"#);
    let (_, direction, parts) = bench.looked_at();
    assert_eq!(
        (direction, parts),
        (Direction::ToolResult, vec!["/rows/0/0=secret".to_owned(), "=rows".to_owned()])
    );
    bench.happen(Event::Inspected(call, gone()));
    assert_eq!(bench.refused(call), ReasonCode::InspectUnavailable);
    // It was done, is not run again, and nobody is given it later.
    let again = bench.fetch(2);
    assert!(
        matches!(&bench.replies[&again], Answer::Failed { reason, .. } if reason.code == ReasonCode::InspectUnavailable)
    );
    assert!(!bench.runs_a_tool() && !bench.wants(is_raise));
}

#[test]
fn m04_withhold_what_a_rule_finds_in_a_result() {
    const NO_KEYS: &str =
        "/// keys stay\ndeny if inspected(\"result\"), finding($path, \"key\", $detector, $severity);";
    let mut bench = Bench::with(vec![looking()]);
    bench.control(ControlEvent::Policy(shipped(NO_KEYS)));
    bench.refresh();
    let call = bench.ran_inspected(1, r#"{"rows":[["k"]]}"#);
    bench.looked_at();
    bench.happen(Event::Inspected(call, said(Ok(&["key"]))));
    assert_eq!(bench.refused(call), ReasonCode::PolicyDenied);
    let Some(RecordBody::Outcome(outcome)) = bench.journal.last().map(|record| record.body.clone()) else {
        panic!("no outcome")
    };
    assert_eq!((outcome.status, outcome.result), (OutcomeStatus::Done, None));
    assert_eq!(outcome.found[0].kind.as_str(), "key");
}

#[test]
fn m04_tags_of_findings_are_in_the_label_before_a_result_is_released() {
    let mut bench = Bench::with(vec![looking()]);
    let more = shipped(
        "accepts(\"personal\") <- resource(\"tool.mail\");\nresult_tag(\"crm\") <- inspected(\"result\"), finding($path, \"email\", $detector, $severity);",
    );
    let PolicyBundle(mut texts) = more;
    let agents = texts["agents.toml"].replace("clearance = [\"crm\"]", "clearance = [\"crm\", \"personal\"]");
    texts.insert("agents.toml".to_owned(), agents);
    bench.control(ControlEvent::Policy(PolicyBundle(texts)));
    bench.refresh();
    let call = bench.ran_inspected(1, r#"{"rows":[["k"]]}"#);
    bench.looked_at();
    bench.happen(Event::Inspected(call, said(Ok(&["phone", "email"]))));
    let (ticket, _, raised) = bench.raise();
    assert_eq!(raised.label.names(), ["crm", "personal"]);
    bench.published(ticket, stored(9));
    assert!(matches!(bench.replies[&call], Answer::Done { .. }));
    // Who may not be told it is not told it, whatever the contract said.
    let mut bench = Bench::with(vec![looking()]);
    let call = bench.ran_inspected(1, r#"{"rows":[["k"]]}"#);
    bench.looked_at();
    bench.happen(Event::Inspected(call, said(Ok(&["phone"]))));
    assert_eq!(bench.refused(call), ReasonCode::FlowWithheld);
}
