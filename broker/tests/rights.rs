//! Rights that a task asks for, without a bus: two brokers and one stream, in every order of what can happen.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use writ_broker::{
    core::{Arrival, Broker, BrokerSetup, CallRef, Effect, Event, TaskEntry, Ticket},
    jwks::KeySet,
    jwt::{IdentityProvider, IssuerRef, Unverified, VerifiedUser},
    oidc::KeySource,
};
use writ_bus::{Attested, Fence, Store, StoreError, Stored};
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision, ApprovalRequest},
    capability::{Right, UnverifiedCapability},
    codec::{decode, encode},
    control::{ControlDocument, ControlEvent, RevocationTarget},
    digest::Digest,
    entropy::Entropy,
    epoch::Epoch,
    ids::{
        AgentId, ApprovalId, BootId, BrokerId, CapabilityId, FlowDomain, OperatorId, PartId, RoleId, TaskId,
        TaskKind, TenantId, UserId,
    },
    keys::PrivateKey,
    keyset::{KeysetDocument, KeysetKey},
    policy::PolicyBundle,
    reason::ReasonCode,
    record::{OutcomeStatus, Record, RecordBody, RecordKind},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Monotonic, Now, Timestamp},
    wire::{IssueAnswer, IssueReply, IssueRequest, RightWanted, Wanted, right_id},
};
use writ_journal::{Entry, Unsettled};

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const CONNECTION: &str = "UPLANNER";
const RULES: &str = "allow if request(\"admin\"), operator($name);\n\
                     may_request(\"tool.pay\", \"wire\", \"finance\", 1) <- role(\"clerk\");\n\
                     may_request(\"tool.pay\", \"read\", \"finance\", 1) <- role(\"clerk\");\n\
                     capability_seconds(3600) <- request(\"ask\");\n";

struct Counter(u8);

impl Entropy for Counter {
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0 = self.0.wrapping_add(1);
        bytes.fill(self.0);
    }
}

/// No task is started here.
struct Nobody;

impl IdentityProvider for Nobody {
    fn verify(&mut self, _: &str, _: Now) -> Result<VerifiedUser, Unverified> {
        panic!("no token is verified")
    }

    fn due(&mut self, _: Now) -> Vec<(IssuerRef, Arc<KeySource>)> {
        Vec::new()
    }

    fn fetched(&mut self, _: IssuerRef, _: Option<KeySet>) {}

    fn key_ages(&self, _: Now) -> Vec<(String, Option<Millis>)> {
        Vec::new()
    }
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

fn bundle() -> PolicyBundle {
    let files = [
        ("a.datalog", RULES),
        ("agents.toml", "[[agent]]\nname = \"planner\"\nowner = \"o\"\n"),
        ("approvers.toml", "[[approver]]\nname = \"bob\"\nroles = [\"finance\"]\nusers = [\"bob\"]\n"),
        (
            "roles.toml",
            "[[role]]\nname = \"clerk\"\n[[role.task]]\nkind = \"bills\"\nagents = [\"planner\"]\nrights = []\n",
        ),
        (
            "tools/pay.toml",
            "resource = \"tool.pay\"\n[[action]]\nname = \"wire\"\neffect = \"egress\"\nreturns = { tags = [], integrity = \"trusted\" }\nschema = { type = \"object\" }\n[[action]]\nname = \"scan\"\neffect = \"read\"\nschema = { type = \"object\" }\n[[action]]\nname = \"read\"\neffect = \"read\"\nreturns = { tags = [], integrity = \"trusted\" }\nschema = { type = \"object\" }\n",
        ),
    ];
    PolicyBundle(files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect())
}

fn task() -> TaskEntry {
    TaskEntry {
        task: TaskId::parse("t-1").unwrap(),
        kind: TaskKind::parse("bills").unwrap(),
        user: UserId::parse("https://idp.example", "alice").unwrap(),
        roles: vec![RoleId::parse("clerk").unwrap()],
        agent: AgentId::parse("planner").unwrap(),
        key: key(4).public().id(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: vec![],
        max_depth: 3,
        deadline: START.after(Millis::from_secs(3_600)),
        started: Epoch { incarnation: 0, sequence: 1 },
        instruction: Digest::plain(b""),
        idempotency: Digest::plain(b"once"),
        asked: Digest::plain(b""),
    }
}

fn keyset() -> Signed<KeysetDocument> {
    let ends = START.after(Millis::from_secs(86_400));
    let document = KeysetDocument {
        version: 1,
        issued_at: START,
        expires: ends,
        keys: vec![KeysetKey {
            public: key(2).public(),
            tenants: vec![tenant()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: ends,
        }],
        withdrawn: Vec::new(),
    };
    Signed::new(&document, &key(1))
}

/// The stream, with the server's fences and message ids.
#[derive(Default)]
struct Stream {
    messages: Vec<(String, Vec<u8>)>,
    ids: BTreeMap<String, u64>,
}

impl Stream {
    fn store(&mut self, store: &Store) -> Result<Stored, StoreError> {
        let known = store.message_id.as_ref().and_then(|id| self.ids.get(id));
        if let Some(sequence) = known {
            return Ok(Stored { sequence: *sequence, duplicate: true });
        }
        if let Fence::LastOn { subject, sequence } = &store.fence {
            let last = self.messages.iter().rposition(|(known, _)| known == subject);
            if last.map_or(0, |last| last as u64 + 1) != *sequence {
                return Err(StoreError::Fenced);
            }
        }
        self.messages.push((store.subject.clone(), store.payload.clone()));
        let sequence = self.messages.len() as u64;
        self.ids.extend(store.message_id.clone().map(|id| (id, sequence)));
        Ok(Stored { sequence, duplicate: false })
    }
}

/// A broker whose journal works and whose publishes wait to be let through.
struct Bench {
    broker: Broker,
    now: Now,
    control: u64,
    /// How much of the stream it has been told.
    told: usize,
    calls: u64,
    wants: Vec<(Ticket, Store)>,
    journal: Vec<Record>,
    replies: BTreeMap<CallRef, IssueAnswer>,
}

impl Bench {
    fn new(name: &str) -> Self {
        let setup = BrokerSetup {
            tenant: tenant(),
            broker: BrokerId::parse(name).unwrap(),
            boot: BootId::generate(START, [1; 10]),
            root: key(1).public(),
            keyset: keyset(),
            key: key(2),
            record_key: key(5),
            policy: bundle(),
            nodes: BTreeMap::new(),
            operators: BTreeMap::new(),
            approvers: BTreeMap::new(),
            request_age_max: Millis::from_secs(30),
            skew: Millis::from_secs(5),
            staleness_max: Millis::from_secs(60),
            is_recovered: false,
            parts: writ_common::part::Parts::default(),
        };
        let now = Now { wall: START, monotonic: Monotonic::from_millis(1_000_000) };
        let broker = Broker::new(setup, Box::new(Nobody), Box::new(Counter(0)), vec![task()], now);
        let mut bench = Self {
            broker,
            now,
            control: 0,
            told: 0,
            calls: 0,
            wants: Vec::new(),
            journal: Vec::new(),
            replies: BTreeMap::new(),
        };
        bench.control(ControlEvent::Keyset(keyset()));
        bench.control(ControlEvent::Policy(bundle()));
        bench.control(ControlEvent::AgentKey {
            agent: AgentId::parse("planner").unwrap(),
            holder: key(4).public(),
            connection: CONNECTION.to_owned(),
            token: Digest::plain(b"token"),
        });
        let bob = OperatorId::parse("bob").unwrap();
        bench.control(ControlEvent::ApproverKey { approver: bob, key: Some(key(20).public()) });
        bench.happen(Event::ApprovalsRead);
        bench
    }

    fn control(&mut self, event: ControlEvent) {
        let document = ControlDocument {
            tenant: tenant(),
            at: self.now.wall,
            by: "broker broker-1".to_owned(),
            follows: Epoch { incarnation: 0, sequence: self.control },
            event,
        };
        self.control += 1;
        let payload = Bytes::from(encode(&Signed::new(&document, &key(2))));
        self.happen(Event::Control { sequence: self.control, payload });
    }

    fn happen(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.broker.handle(event, self.now) {
                match effect {
                    Effect::Journal(ticket, entry) => {
                        if let Entry::Prepared { record, .. } = entry {
                            let record = decode::<Signed<Record>>(&record).unwrap();
                            self.journal.push(record.peek().unwrap());
                        }
                        events.extend(ticket.map(Event::Journalled));
                    }
                    Effect::Reply(call, payload) => {
                        let reply: IssueReply = decode(&payload).unwrap();
                        self.replies.insert(call, reply.issued.open(|_| true).unwrap().answer);
                    }
                    Effect::Publish { ticket, store, .. } => self.wants.push((ticket, store)),
                    Effect::Alarm(text) => panic!("{text}"),
                    _ => {}
                }
            }
        }
    }

    /// Tells what the stream has about approvals and was not told yet.
    fn follow(&mut self, stream: &Stream) {
        let news: Vec<(u64, String, Vec<u8>)> = (1u64..)
            .zip(&stream.messages)
            .skip(self.told)
            .map(|(sequence, (subject, payload))| (sequence, subject.clone(), payload.clone()))
            .filter(|(_, subject, _)| subject.contains(".approval."))
            .collect();
        self.told = stream.messages.len();
        for (sequence, subject, payload) in news {
            self.happen(Event::Approval { sequence, subject, payload: Bytes::from(payload) });
        }
    }

    /// Lets the next publish through that begins so, and says what came of it.
    fn publish(&mut self, stream: &mut Stream, subject: &str) -> Result<Stored, StoreError> {
        let (ticket, store) = self.take(subject);
        let result = stream.store(&store);
        self.happen(Event::Published(ticket, result.clone()));
        result
    }

    fn take(&mut self, subject: &str) -> (Ticket, Store) {
        let subject = format!("writ.v1.acme.{subject}");
        let wanted: Vec<&String> = self.wants.iter().map(|(_, store)| &store.subject).collect();
        let position = self.wants.iter().position(|(_, store)| store.subject.starts_with(&subject));
        let position = position.unwrap_or_else(|| panic!("{subject} is not among {wanted:?}"));
        self.wants.remove(position)
    }

    fn ask(&mut self, nonce: u8) -> CallRef {
        self.ask_for(nonce, "tool.pay:wire")
    }

    fn ask_for(&mut self, nonce: u8, right: &str) -> CallRef {
        self.calls += 1;
        let call = CallRef(self.calls);
        let agent = AgentId::parse("planner").unwrap();
        let request = IssueRequest {
            tenant: tenant(),
            agent: agent.clone(),
            at: self.now.wall,
            nonce: [u8::try_from(self.calls).unwrap(); 16],
            wanted: Wanted::Right(RightWanted {
                task: task().task,
                right: Right::parse(right).unwrap(),
                arguments: "{}".to_owned(),
                why: "the bill is due".to_owned(),
                nonce: [nonce; 16],
            }),
        };
        let arrival = Arrival {
            subject: Subject::Issue { agent }.of(&tenant()),
            attested: Attested::Agent { account: "AGENTS_acme".into(), user: CONNECTION.into() },
            payload: Bytes::from(encode(&Signed::new(&request, &key(4)))),
            trace: None,
        };
        self.happen(Event::Arrived(call, arrival));
        call
    }

    fn capability(&self, call: CallRef) -> Option<Vec<u8>> {
        match self.replies.get(&call) {
            Some(IssueAnswer::Right { capability, .. }) => Some(capability.clone()),
            _ => None,
        }
    }

    fn refused(&self, call: CallRef) -> Option<ReasonCode> {
        match self.replies.get(&call) {
            Some(IssueAnswer::Refused { reasons }) => Some(reasons[0].code),
            _ => None,
        }
    }

    fn kinds(&self) -> Vec<RecordKind> {
        self.journal.iter().map(Record::kind).collect()
    }
}

fn approval(nonce: u8) -> ApprovalId {
    ApprovalId::of_call(&right_id(&key(4).public(), &[nonce; 16]))
}

/// Bob says yes to what stands in the stream.
fn grant(stream: &mut Stream, nonce: u8) {
    let id = approval(nonce);
    let subject = Subject::ApprovalRequest { part: PartId::first(), approval: id.clone() }.of(&tenant());
    let (_, payload) = stream.messages.iter().find(|(known, _)| *known == subject).unwrap();
    let asked = decode::<Signed<ApprovalRequest>>(payload).unwrap();
    let approver = OperatorId::parse("bob").unwrap();
    let answer = ApprovalAnswer {
        tenant: tenant(),
        approval: id.clone(),
        request: asked.digest(),
        approver: approver.clone(),
        at: START,
        expires: START.after(Millis::from_secs(600)),
        decision: ApprovalDecision::Granted,
        comment: String::new(),
    };
    let subject = Subject::ApprovalAnswer { part: PartId::first(), approval: id, approver };
    let store = Store {
        subject: subject.of(&tenant()),
        payload: encode(&Signed::new(&answer, &key(20))),
        message_id: None,
        fence: Fence::None,
        ttl_secs: None,
    };
    stream.store(&store).unwrap();
}

/// A request that bob said yes to, which these brokers have heard of.
fn granted<const N: usize>(names: [&str; N]) -> (Stream, [Bench; N]) {
    let mut stream = Stream::default();
    let mut first = Bench::new("broker-0");
    let call = first.ask(7);
    assert!(first.replies.is_empty(), "nobody is told before people are asked");
    first.publish(&mut stream, "approval.").unwrap();
    assert!(matches!(first.replies[&call], IssueAnswer::Held { .. }));
    grant(&mut stream, 7);
    let benches = names.map(|name| {
        let mut bench = Bench::new(name);
        bench.follow(&stream);
        bench
    });
    (stream, benches)
}

/// Lets everything through that one request still needs.
fn finish(bench: &mut Bench, stream: &mut Stream) {
    while !bench.wants.is_empty() {
        let (ticket, store) = bench.wants.remove(0);
        let result = stream.store(&store);
        bench.happen(Event::Published(ticket, result));
    }
}

#[test]
fn h01_right_leaves_after_record_and_use_and_is_the_same_for_whoever_lost_the_answer() {
    let (mut stream, [mut broker]) = granted(["broker-1"]);
    let call = broker.ask(7);
    broker.publish(&mut stream, "claim.").unwrap();
    assert!(broker.capability(call).is_none());
    broker.publish(&mut stream, "audit.p0.allow.").unwrap();
    assert!(broker.capability(call).is_none());
    // While that is under way, asking again brings nothing about.
    let impatient = broker.ask(7);
    assert!(matches!(broker.replies[&impatient], IssueAnswer::Held { .. }));
    broker.publish(&mut stream, "claim.").unwrap();
    let capability = broker.capability(call).unwrap();
    let again = broker.ask(7);
    assert_eq!(broker.capability(again).unwrap(), capability);
    let read = UnverifiedCapability::parse(&capability).unwrap();
    let expected = CapabilityId::parse("c-1").unwrap().extra(&approval(7)).unwrap();
    assert_eq!((&read.grant().capability, read.grant().max_depth), (&expected, 0));
    assert_eq!(read.expires(), START.after(Millis::from_secs(300)));
    assert_eq!(broker.kinds(), [RecordKind::Allow]);
    // Another broker, or the next run of this one, does not have it any more and gives no second.
    let mut next = Bench::new("broker-1");
    next.follow(&stream);
    let late = next.ask(7);
    assert_eq!(next.refused(late), Some(ReasonCode::ApprovalConsumed));
}

#[test]
fn d01_right_that_no_rule_lets_be_asked_for_is_refused_and_nobody_is_asked() {
    let mut broker = Bench::new("broker-1");
    let call = broker.ask_for(9, "tool.pay:scan");
    assert_eq!(broker.refused(call), Some(ReasonCode::RightNotRequestable));
    assert_eq!(broker.kinds(), [RecordKind::Deny]);
    assert!(broker.wants.iter().all(|(_, store)| store.subject.contains(".audit.")));
}

#[test]
fn h02_right_of_another_kind_is_not_had_by_the_same_approval() {
    let (_, [mut broker]) = granted(["broker-1"]);
    let other = broker.ask_for(7, "tool.pay:read");
    assert_eq!(broker.refused(other), Some(ReasonCode::ApprovalBinding));
    assert!(broker.wants.iter().all(|(_, store)| store.subject.contains(".audit.")));
}

#[test]
fn h09_right_of_two_brokers_that_claim_at_once_one_gets_it() {
    let (mut stream, [mut one, mut two]) = granted(["broker-1", "broker-2"]);
    let (first, second) = (one.ask(7), two.ask(7));
    one.publish(&mut stream, "claim.").unwrap();
    // The second has not heard of it.
    let lost = two.publish(&mut stream, "claim.");
    finish(&mut two, &mut stream);
    finish(&mut one, &mut stream);
    let given = one.capability(first).into_iter().chain(two.capability(second)).count();
    assert_eq!((lost, given), (Err(StoreError::Fenced), 1));
    assert_eq!(two.refused(second), Some(ReasonCode::ApprovalConsumed));
}

#[test]
fn h09_right_that_another_broker_took_over_is_not_handed_out() {
    let (mut stream, [mut one, mut two]) = granted(["broker-1", "broker-2"]);
    let first = one.ask(7);
    one.publish(&mut stream, "claim.").unwrap();
    one.publish(&mut stream, "audit.p0.allow.").unwrap();
    // The same agent asks another broker, which has heard of the claim and goes on with it.
    two.follow(&stream);
    let second = two.ask(7);
    finish(&mut two, &mut stream);
    assert!(two.capability(second).is_some());
    let used = one.publish(&mut stream, "claim.");
    assert_eq!((used, one.capability(first)), (Err(StoreError::Fenced), None));
    assert_eq!(one.refused(first), Some(ReasonCode::ApprovalConsumed));
    let Some(RecordBody::Outcome(outcome)) = one.journal.last().map(|record| &record.body) else {
        panic!("that nothing left is not on record")
    };
    assert_eq!(outcome.status, OutcomeStatus::NotRun);
}

#[test]
fn h07_right_that_a_killed_broker_had_claimed_is_given_by_the_next_one() {
    for steps in [&["claim."][..], &["claim.", "audit.p0.allow."][..]] {
        let (mut stream, [mut killed]) = granted(["broker-1"]);
        killed.ask(7);
        for step in steps {
            killed.publish(&mut stream, step).unwrap();
        }
        let mut next = Bench::new("broker-1");
        next.follow(&stream);
        let call = next.ask(7);
        finish(&mut next, &mut stream);
        assert!(next.capability(call).is_some(), "{steps:?}");
    }
}

#[test]
fn r04_right_of_a_task_that_is_revoked_meanwhile_is_not_handed_out() {
    let (mut stream, [mut broker]) = granted(["broker-1"]);
    let call = broker.ask(7);
    broker.publish(&mut stream, "claim.").unwrap();
    let target = RevocationTarget::Task(task().task);
    broker.control(ControlEvent::Revocation { target, until: START.after(Millis::from_secs(3_600)) });
    finish(&mut broker, &mut stream);
    assert_eq!(broker.refused(call), Some(ReasonCode::RevokedTask));
    assert_eq!(broker.kinds(), [RecordKind::Allow, RecordKind::Outcome]);
}

#[test]
fn h12_right_whose_steps_are_not_acknowledged_is_not_given() {
    // Asking people: the hold is voided, and whoever asks is told.
    let mut broker = Bench::new("broker-1");
    let call = broker.ask(7);
    let (ticket, _) = broker.take("approval.");
    broker.happen(Event::Published(ticket, Err(StoreError::Full)));
    assert_eq!(broker.refused(call), Some(ReasonCode::ApprovalUnavailable));
    assert_eq!(broker.kinds(), [RecordKind::Hold, RecordKind::Void]);
    // The record of the issue.
    let (mut stream, [mut broker]) = granted(["broker-1"]);
    let call = broker.ask(7);
    broker.publish(&mut stream, "claim.").unwrap();
    let (ticket, _) = broker.take("audit.p0.allow.");
    // The alarm is for the operator.
    let effects = broker.broker.handle(Event::Published(ticket, Err(StoreError::Full)), broker.now);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Alarm(_))));
    assert!(broker.capability(call).is_none());
    // The use: sent again once, and the stream says that it was ours.
    let (mut stream, [mut broker]) = granted(["broker-1"]);
    let call = broker.ask(7);
    broker.publish(&mut stream, "claim.").unwrap();
    broker.publish(&mut stream, "audit.p0.allow.").unwrap();
    let (ticket, store) = broker.take("claim.");
    stream.store(&store).unwrap();
    broker.happen(Event::Published(ticket, Err(StoreError::Unknown("timed out".to_owned()))));
    assert!(broker.capability(call).is_none());
    assert!(broker.publish(&mut stream, "claim.").unwrap().duplicate);
    assert!(broker.capability(call).is_some());
}

#[test]
fn h12_right_whose_record_stands_although_nobody_heard_so_came_to_nothing() {
    let (mut stream, [mut bench]) = granted(["broker-1"]);
    let call = bench.ask(7);
    bench.publish(&mut stream, "claim.").unwrap();
    let (ticket, store) = bench.take("audit.p0.allow.");
    let stored = stream.store(&store).unwrap();
    let intent = bench.journal.last().unwrap().id.clone();
    let now = bench.now;
    let lost = Event::Published(ticket, Err(StoreError::Unknown("timed out".to_owned())));
    let mut events = vec![lost];
    let mut outcomes = Vec::new();
    while let Some(event) = events.pop() {
        for effect in bench.broker.handle(event, now) {
            match effect {
                // The void bears the id of the record, which the stream has.
                Effect::Publish { ticket, store, .. } if store.subject.contains(".void.") => {
                    events.push(Event::Published(ticket, stream.store(&store)));
                }
                Effect::ReadRecord { ticket, sequence, .. } => {
                    assert_eq!(sequence, stored.sequence);
                    events.push(Event::RecordRead(ticket, Some(Bytes::from(store.payload.clone()))));
                }
                Effect::Journal(ticket, entry) => {
                    if let Entry::Prepared { record, .. } = entry {
                        let record = decode::<Signed<Record>>(&record).unwrap().peek().unwrap();
                        if let RecordBody::Outcome(outcome) = record.body {
                            outcomes.push((record.part, outcome.intent, outcome.status));
                        }
                    }
                    events.extend(ticket.map(Event::Journalled));
                }
                _ => {}
            }
        }
    }
    assert_eq!(outcomes, [(PartId::first(), intent, OutcomeStatus::NotRun)]);
    assert!(bench.capability(call).is_none());
}

#[test]
fn another_record_under_a_voids_id_is_said_once_and_the_void_waits_until_the_id_is_forgotten() {
    // An earlier run of this broker issued, and was killed before the stream had said anything.
    let (_, [mut killed]) = granted(["broker-1"]);
    killed.ask(7);
    let mut before = Stream::default();
    killed.publish(&mut before, "claim.").unwrap();
    let (_, intent) = killed.take("audit.p0.allow.");
    let mut next = Bench::new("broker-1");
    let (broker, now) = (&mut next.broker, next.now);
    let run = killed.journal.last().unwrap().id.boot.clone();
    let mut effects = broker.recover(run, &Unsettled::default(), std::slice::from_ref(&intent.payload), now);
    // Its id is taken, and what is stored there is not its record, however often it is looked at.
    let (mut alarms, mut reads, mut delays) = (0, 0, Vec::new());
    for _ in 0..20 {
        let events = effects.drain(..).filter_map(|effect| match effect {
            Effect::Publish { ticket, store, delay } => {
                assert_eq!(store.message_id, intent.message_id);
                delays.push(delay);
                Some(Event::Published(ticket, Ok(Stored { sequence: 3, duplicate: true })))
            }
            Effect::ReadRecord { ticket, sequence: 3, .. } => {
                reads += 1;
                Some(Event::RecordRead(ticket, Some(Bytes::from_static(b"something else"))))
            }
            Effect::Alarm(text) => {
                assert!(text.contains("record 3 of the audit stream"), "{text}");
                alarms += 1;
                None
            }
            _ => None,
        });
        let events: Vec<Event> = events.collect();
        effects = events.into_iter().flat_map(|event| broker.handle(event, now)).collect();
    }
    assert_eq!((alarms, reads), (1, 10));
    // At once the first time, and then only when the stream may have forgotten the id.
    assert_eq!(delays[0], Millis(0));
    assert!(delays[1..].iter().all(|delay| *delay >= Millis::from_secs(120)), "{delays:?}");
    // By then the void is taken.
    let Some(Effect::Publish { ticket, store, .. }) = effects.pop() else { panic!("nothing is sent") };
    assert_eq!(decode::<Signed<Record>>(&store.payload).unwrap().peek().unwrap().kind(), RecordKind::Void);
    let effects = broker.handle(Event::Published(ticket, Ok(Stored { sequence: 9, duplicate: false })), now);
    let committed =
        |effect: &Effect| matches!(effect, Effect::Journal(_, Entry::Committed { stream: 9, .. }));
    assert!(effects.iter().any(committed));
    assert_eq!(broker.unacknowledged(), 0);
}
