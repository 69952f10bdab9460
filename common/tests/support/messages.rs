//! One random message of every kind there is on the wire.

use std::collections::BTreeMap;

use writ_common::{
    approval::{
        ApprovalAnswer, ApprovalClaim, ApprovalDecision, ApprovalRequest, AskedRight, ClaimState, Need,
    },
    capability::Right,
    codec::{CodecError, Message, decode, encode},
    control::{ControlDocument, ControlEvent, RevocationTarget},
    digest::Digest,
    epoch::Epoch,
    fresh::{FreshAnswer, FreshQuestion},
    hold::{Held, LegalHold},
    ids::{
        AgentId, ApprovalId, BootId, BrokerId, CapabilityId, FlowDomain, HoldId, KeyId, NodeId, OperatorId,
        PartId, RoleId, TaskId, TaskKind, UserId,
    },
    keys::{PublicKey, Signature},
    keyset::KeysetDocument,
    label::{Confidentiality, DomainLabel, Integrity, Label, Tag},
    part::{Archived, PartStage},
    policy::{PolicyBundle, PolicyRevision},
    reason::{Advice, ReasonCode},
    record::{
        Basis, DecisionId, Granted, Origin, Outcome, OutcomeStatus, Receipt, Record, RecordBody,
        RecordedApproval, RecordedDecision, RecordedHop, RecordedReason, RecordedRight, Shadowed, TraceRef,
        Verdicted, Void, What, Who,
    },
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
    wire::{
        AdminReply, AdminRequest, AdminWanted, AgentAnswer, AgentInfo, AgentKeyInfo, AgentResult, Answer,
        Call, CallReply, DelegateKey, EnrollReply, EnrollRequest, FetchRequest, IssueAnswer, IssueReply,
        IssueRequest, Issued, IssuedTask, KnownKeys, NewTask, NodeInfo, NodeKey, Proof, Relay, RightWanted,
        StatusInfo, TaskInfo, ToldReason, Wanted,
    },
};

use super::{key, random::Random, right, signed_keyset, tenant};

/// A message with the way to decode and encode it again.
pub struct Sample {
    pub kind: &'static str,
    pub bytes: Vec<u8>,
    recode: fn(&[u8]) -> Result<Vec<u8>, CodecError>,
}

impl Sample {
    fn of<T: Message>(message: &T) -> Self {
        Self { kind: T::KIND, bytes: encode(message), recode: |bytes| Ok(encode(&decode::<T>(bytes)?)) }
    }

    fn signed<T: Signable>(random: &mut Random, value: &T) -> Self
    where
        Signed<T>: Message,
    {
        Self::of(&Signed::new(value, &key(byte(random) | 1)))
    }

    /// Decodes and encodes again.
    ///
    /// # Errors
    /// The decoder's.
    pub fn recode(&self, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        (self.recode)(bytes)
    }
}

/// One message of every kind, and of every form a kind has.
pub fn all(random: &mut Random) -> Vec<Sample> {
    let mut all = vec![Sample::of(&call(random))];
    for answer in [
        Answer::Denied { reasons: vec![told(random), told(random)] },
        Answer::Done { result: text(random), label: label(random) },
        Answer::Failed { reason: told(random), status: status(random) },
        Answer::Held {
            approval: approval_id(random),
            expires: time(random),
            missing: needs(random),
            unusable: vec![told(random)],
        },
        Answer::Replayed { first: decision_id(random), outcome: maybe(random, status) },
    ] {
        let receipt = maybe(random, |random| Signed::new(&receipt(random), &key(7)));
        all.push(Sample::of(&CallReply { receipt, answer }));
    }
    let fetch = FetchRequest {
        tenant: tenant(),
        task: task(random),
        node: node(random),
        call_id: digest(random),
        at: time(random),
    };
    all.push(Sample::signed(random, &fetch));
    let relay = Relay {
        tenant: tenant(),
        node: node(random),
        decision: decision_id(random),
        caller: agent(random),
        key: key_id(random),
        task: task(random),
        call_id: digest(random),
        at: time(random),
        input: text(random),
        capability: bytes(random),
    };
    all.push(Sample::signed(random, &relay));
    for result in [AgentResult::Done(text(random)), AgentResult::Failed(text(random))] {
        let answer = AgentAnswer { call_id: digest(random), result };
        all.push(Sample::signed(random, &answer));
    }
    all.extend(approvals(random));
    all.extend(issuing(random));
    all.extend(administration(random));
    let question = FreshQuestion {
        tenant: tenant(),
        node: node(random),
        boot: boot(random),
        nonce: nonce(random),
        applied: epoch(random),
        staleness: Millis(random.next()),
        fault: maybe(random, |_| ReasonCode::StateRollback),
        policy: maybe(random, |random| PolicyRevision(digest(random))),
        policy_fault: maybe(random, |_| ReasonCode::PolicyInvalid),
    };
    all.push(Sample::signed(random, &question));
    let answer =
        FreshAnswer { tenant: tenant(), nonce: nonce(random), epoch: epoch(random), time: time(random) };
    all.push(Sample::signed(random, &answer));
    for _ in 0..3 {
        let record = record(random);
        all.push(Sample::signed(random, &record));
    }
    for event in control_events(random) {
        let document = ControlDocument {
            tenant: tenant(),
            at: time(random),
            by: text(random),
            follows: epoch(random),
            event,
        };
        all.push(Sample::signed(random, &document));
    }
    let label = DomainLabel {
        tenant: tenant(),
        domain: domain(random),
        label: label(random),
        origins: Default::default(),
        moved_to: maybe(random, |random| PartId::numbered(random.below(9))),
    };
    all.push(Sample::signed(random, &label));
    all.push(Sample::of(&keyset(random)));
    all
}

fn approvals(random: &mut Random) -> Vec<Sample> {
    let right = right_of(random);
    let request = ApprovalRequest {
        tenant: tenant(),
        id: approval_id(random),
        node: node(random),
        at: time(random),
        expires: time(random),
        user: user(random),
        task: task(random),
        chain: vec![agent(random), agent(random)],
        resource: right.resource,
        action: right.action,
        arguments: text(random),
        call: digest(random),
        contract: maybe(random, digest),
        policy: PolicyRevision(digest(random)),
        rules: vec![text(random)],
        label: label(random),
        origins: Default::default(),
        sources: Vec::new(),
        needs: needs(random),
        trace: maybe(random, |random| TraceRef { trace: text(random), span: text(random) }),
        right: maybe(random, |random| AskedRight {
            holder: public(random),
            life: Millis(random.next()),
            why: text(random),
        }),
    };
    let answer = ApprovalAnswer {
        tenant: tenant(),
        approval: approval_id(random),
        request: digest(random),
        approver: OperatorId::parse("bob").unwrap(),
        at: time(random),
        expires: time(random),
        decision: random.one_of(&[ApprovalDecision::Granted, ApprovalDecision::Refused]),
        comment: text(random),
    };
    let claim = ApprovalClaim {
        tenant: tenant(),
        approval: approval_id(random),
        call_id: digest(random),
        node: node(random),
        boot: boot(random),
        at: time(random),
        state: random.one_of(&[ClaimState::Claimed, ClaimState::Used]),
    };
    vec![Sample::signed(random, &request), Sample::signed(random, &answer), Sample::signed(random, &claim)]
}

fn issuing(random: &mut Random) -> Vec<Sample> {
    let mut all = Vec::new();
    let wanted = [
        Wanted::Keys,
        Wanted::Renewal { task: task(random) },
        Wanted::Right(RightWanted {
            task: task(random),
            right: right_of(random),
            arguments: text(random),
            why: text(random),
            nonce: nonce(random),
        }),
        Wanted::Task(NewTask {
            user_token: text(random),
            kind: TaskKind::parse("answer").unwrap(),
            instruction: text(random),
            rights: maybe(random, rights),
            idempotency_key: text(random),
        }),
    ];
    for wanted in wanted {
        let request = IssueRequest {
            tenant: tenant(),
            agent: agent(random),
            at: time(random),
            nonce: nonce(random),
            wanted,
        };
        all.push(Sample::signed(random, &request));
    }
    let task = IssuedTask {
        task: task(random),
        deadline: time(random),
        capability: bytes(random),
        keys: known_keys(random),
    };
    let answers = [
        IssueAnswer::Held {
            approval: approval_id(random),
            expires: time(random),
            missing: needs(random),
            unusable: vec![told(random)],
        },
        IssueAnswer::Keys(known_keys(random)),
        IssueAnswer::Refused { reasons: vec![told(random)] },
        IssueAnswer::Right { approval: approval_id(random), capability: bytes(random) },
        IssueAnswer::Task(Box::new(task)),
    ];
    for answer in answers {
        let issued = Issued { tenant: tenant(), nonce: nonce(random), answer };
        let keyset = maybe(random, keyset);
        all.push(Sample::of(&IssueReply { keyset, issued: Signed::new(&issued, &key(2)) }));
    }
    let enroll = EnrollRequest {
        tenant: tenant(),
        token: text(random),
        agent: agent(random),
        holder: public(random),
        connection: text(random),
        at: time(random),
    };
    all.push(Sample::signed(random, &enroll));
    all.push(Sample::of(&EnrollReply::Enrolled { key: key_id(random), epoch: epoch(random) }));
    all.push(Sample::of(&EnrollReply::Refused { reason: told(random) }));
    all
}

fn administration(random: &mut Random) -> Vec<Sample> {
    let mut all = Vec::new();
    let wanted = [
        AdminWanted::ActivatePolicy {
            bundle: PolicyBundle([(text(random), text(random))].into()),
            expect: maybe(random, |random| PolicyRevision(digest(random))),
        },
        AdminWanted::Agents,
        AdminWanted::Enroll { agent: agent(random), life: Millis(random.next()) },
        AdminWanted::HaltAll { on: random.chance(50) },
        AdminWanted::LegalHold { id: HoldId::parse("matter-1").unwrap(), hold: maybe(random, hold) },
        AdminWanted::PartArchived { part: PartId::first(), archived: archived(random) },
        AdminWanted::Quarantine { agent: agent(random), on: random.chance(50) },
        AdminWanted::Revoke { target: target(random), wait: random.chance(50) },
        AdminWanted::RollbackPolicy {
            bundle: PolicyBundle([(text(random), text(random))].into()),
            expect: maybe(random, |random| PolicyRevision(digest(random))),
        },
        AdminWanted::RotatePart,
        AdminWanted::SealPart { part: PartId::numbered(3), although_open: random.chance(50) },
        AdminWanted::Status,
        AdminWanted::Task { task: maybe(random, task) },
        AdminWanted::WithdrawKey { agent: agent(random), key: key_id(random) },
    ];
    for wanted in wanted {
        let request = AdminRequest { tenant: tenant(), at: time(random), nonce: nonce(random), wanted };
        all.push(Sample::signed(random, &request));
    }
    let agents = AgentInfo {
        agent: agent(random),
        owner: text(random),
        description: text(random),
        delegates_to: vec![agent(random)],
        keys: vec![AgentKeyInfo { key: key_id(random), connection: text(random) }],
        quarantined: random.chance(50),
    };
    let status = StatusInfo {
        epoch: epoch(random),
        policy: maybe(random, |random| PolicyRevision(digest(random))),
        configured: maybe(random, |random| PolicyRevision(digest(random))),
        halted: random.chance(50),
        nodes: vec![NodeInfo {
            node: node(random),
            key: key_id(random),
            applied: maybe(random, epoch),
            heard: maybe(random, |random| Millis(random.next())),
            fault: maybe(random, |_| ReasonCode::PolicyUnavailable),
            policy: maybe(random, |random| PolicyRevision(digest(random))),
            policy_fault: maybe(random, |_| ReasonCode::PolicyRollback),
            policy_behind: maybe(random, |random| Millis(random.next())),
        }],
    };
    let info = TaskInfo {
        task: task(random),
        kind: TaskKind::parse("answer").unwrap(),
        user: user(random),
        agent: agent(random),
        capability: capability(random),
        serial: random.next(),
        rights: rights(random),
        deadline: time(random),
        stopped: maybe(random, |random| random.one_of(ReasonCode::ALL)),
    };
    for reply in [
        AdminReply::Agents(vec![agents]),
        AdminReply::Done { epoch: epoch(random) },
        AdminReply::Enroll { token: text(random), expires: time(random) },
        AdminReply::Refused { reasons: vec![told(random)] },
        AdminReply::Status(status),
        AdminReply::Task(Box::new(info)),
    ] {
        all.push(Sample::of(&reply));
    }
    all
}

fn hold(random: &mut Random) -> LegalHold {
    let held = [Held::Everything, Held::Task(task(random)), Held::User(user(random))];
    LegalHold { on: random.one_of(&held), why: text(random) }
}

fn archived(random: &mut Random) -> Archived {
    Archived { manifest: digest(random), last: random.next() }
}

fn control_events(random: &mut Random) -> Vec<ControlEvent> {
    vec![
        ControlEvent::AgentKey {
            agent: agent(random),
            holder: public(random),
            connection: text(random),
            token: digest(random),
        },
        ControlEvent::AgentKeyWithdrawn { agent: agent(random), key: key_id(random) },
        ControlEvent::ApproverKey { approver: OperatorId::parse("bob").unwrap(), key: maybe(random, public) },
        ControlEvent::BrokerBoot {
            broker: BrokerId::parse("broker-1").unwrap(),
            boot: boot(random),
            key: public(random),
        },
        ControlEvent::ShadowPolicy(None),
        ControlEvent::HaltAll { on: random.chance(50) },
        ControlEvent::Incarnation { number: u32::from(byte(random)) },
        ControlEvent::JoinToken { token: digest(random), agent: agent(random), expires: time(random) },
        ControlEvent::Keyset(keyset(random)),
        ControlEvent::LegalHold { id: HoldId::parse("matter-1").unwrap(), hold: maybe(random, hold) },
        ControlEvent::NodeBoot { node: node(random), boot: boot(random) },
        ControlEvent::NodeKey { node: node(random), key: public(random), connection: text(random) },
        ControlEvent::Part {
            part: PartId::numbered(1),
            stage: random.one_of(&[
                PartStage::Current,
                PartStage::Shared,
                PartStage::Sealed,
                PartStage::Archived(Archived { manifest: Digest::from_bytes([5; 32]), last: 7 }),
            ]),
        },
        ControlEvent::Policy(PolicyBundle(BTreeMap::from([("base.datalog".to_owned(), text(random))]))),
        ControlEvent::Quarantine { agent: agent(random), on: random.chance(50) },
        ControlEvent::Revocation { target: target(random), until: time(random) },
    ]
}

/// A record of any class, with or without whatever is optional.
pub fn record(random: &mut Random) -> Record {
    let body = match random.below(3) {
        0 => RecordBody::Verdict(Box::new(Verdicted {
            decision: random.one_of(&[
                RecordedDecision::Allow,
                RecordedDecision::Deny,
                RecordedDecision::Hold,
            ]),
            reasons: (0..random.below(3)).map(|_| recorded_reason(random)).collect(),
            would_deny: (0..random.below(3)).map(|_| recorded_reason(random)).collect(),
            who: who(random),
            what: what(random),
            basis: basis(random),
            trace: maybe(random, |random| TraceRef { trace: text(random), span: text(random) }),
            granted: maybe(random, |random| Box::new(granted(random))),
            right: maybe(random, |random| {
                Box::new(RecordedRight {
                    right: right_of(random),
                    key: key_id(random),
                    expires: maybe(random, time),
                })
            }),
            approval: maybe(random, |random| Box::new(approval(random))),
            sources: Vec::new(),
            acts: Vec::new(),
            found: Vec::new(),
            shadow: maybe(random, |random| Box::new(shadowed(random))),
            count: random.one_of(&[1, 2, 300]),
        })),
        1 => RecordBody::Outcome(Box::new(Outcome {
            intent: decision_id(random),
            call_id: digest(random),
            task: maybe(random, task),
            status: status(random),
            reason: maybe(random, recorded_reason),
            result: maybe(random, digest),
            result_bytes: maybe(random, Random::next),
            label: maybe(random, label),
            found: Vec::new(),
            elapsed: maybe(random, |random| Millis(random.next())),
            manifest: (0..random.one_of(&[0, 3])).map(|_| digest(random)).collect(),
        })),
        _ => RecordBody::Void(Box::new(Void {
            prepared: digest(random),
            cause: recorded_reason(random),
            who: who(random),
            what: what(random),
        })),
    };
    Record {
        tenant: tenant(),
        id: decision_id(random),
        prev: digest(random),
        at: time(random),
        part: PartId::first(),
        body,
    }
}

fn who(random: &mut Random) -> Who {
    Who {
        task: maybe(random, task),
        user: maybe(random, user),
        agent: maybe(random, agent),
        caller: maybe(random, agent),
        operator: maybe(random, text),
        capability: maybe(random, capability),
        serial: maybe(random, Random::next),
        chain: maybe(random, digest),
        hops: (0..random.below(3))
            .map(|_| RecordedHop {
                from: agent(random),
                to: agent(random),
                key: key_id(random),
                id: digest(random),
                gave_up: if random.chance(50) { rights(random) } else { Vec::new() },
            })
            .collect(),
        holder: maybe(random, digest),
        issuer: maybe(random, digest),
        domain: maybe(random, domain),
        connection: maybe(random, text),
    }
}

fn what(random: &mut Random) -> What {
    What {
        resource: maybe(random, |random| right_of(random).resource),
        action: maybe(random, |random| right_of(random).action),
        arguments: maybe(random, digest),
        call: maybe(random, digest),
        call_id: maybe(random, digest),
        contract: maybe(random, digest),
        handover: maybe(random, digest),
    }
}

fn basis(random: &mut Random) -> Basis {
    Basis {
        policy: maybe(random, |random| PolicyRevision(digest(random))),
        policy_fault: maybe(random, |_| ReasonCode::PolicyInvalid),
        rules: (0..random.below(3)).map(|_| text(random)).collect(),
        epoch: maybe(random, epoch),
        age: maybe(random, |random| Millis(random.next())),
        label_revision: maybe(random, Random::next),
        label: maybe(random, label),
    }
}

fn shadowed(random: &mut Random) -> Shadowed {
    Shadowed {
        policy: PolicyRevision(digest(random)),
        decision: random.one_of(&[RecordedDecision::Allow, RecordedDecision::Deny, RecordedDecision::Hold]),
        reasons: vec![ReasonCode::PolicyDenied],
        rules: vec![text(random)],
        differs: random.chance(50),
    }
}

fn approval_id(random: &mut Random) -> ApprovalId {
    ApprovalId::of_call(&digest(random))
}

fn needs(random: &mut Random) -> Vec<Need> {
    let role = RoleId::parse("mail-approver").unwrap();
    (0..random.below(3)).map(|_| Need { role: role.clone(), count: byte(random) }).collect()
}

fn approval(random: &mut Random) -> RecordedApproval {
    RecordedApproval {
        id: approval_id(random),
        request: digest(random),
        needs: needs(random),
        by: (0..random.below(3)).map(|_| OperatorId::parse("bob").unwrap()).collect(),
        waited: maybe(random, |random| Millis(random.below(1_000_000) as u64)),
    }
}

fn granted(random: &mut Random) -> Granted {
    Granted {
        kind: TaskKind::parse("answer").unwrap(),
        rights: rights(random),
        max_depth: byte(random),
        expires: time(random),
        deadline: time(random),
        key: key_id(random),
        instruction: digest(random),
        idempotency: digest(random),
        asked: digest(random),
        roles: vec![text(random)],
        started: epoch(random),
    }
}

fn call(random: &mut Random) -> Call {
    let right = right_of(random);
    Call {
        capability: bytes(random),
        task: task(random),
        resource: right.resource,
        action: right.action,
        arguments: text(random),
        nonce: nonce(random),
        issued_at: time(random),
        min_epoch: epoch(random),
        proof: Proof::Signature(Signature::from_bytes([byte(random); 64])),
        handover: maybe(random, bytes),
        approval: maybe(random, approval_id),
    }
}

fn receipt(random: &mut Random) -> Receipt {
    Receipt {
        tenant: tenant(),
        id: decision_id(random),
        record: digest(random),
        call: maybe(random, digest),
        call_id: maybe(random, digest),
        answer: digest(random),
    }
}

fn keyset(random: &mut Random) -> Signed<KeysetDocument> {
    let keys: Vec<PublicKey> = (0..random.below(3)).map(|_| public(random)).collect();
    signed_keyset(&keys)
}

fn known_keys(random: &mut Random) -> KnownKeys {
    KnownKeys {
        epoch: epoch(random),
        nodes: vec![NodeKey { node: node(random), key: public(random) }],
        delegates: vec![DelegateKey { agent: agent(random), key: public(random) }],
    }
}

fn target(random: &mut Random) -> RevocationTarget {
    match random.below(6) {
        0 => RevocationTarget::Agent(agent(random)),
        1 => RevocationTarget::Capability(capability(random)),
        2 => RevocationTarget::Holder(key_id(random)),
        3 => RevocationTarget::Hop {
            capability: capability(random),
            delegator: key_id(random),
            delegatee: key_id(random),
        },
        4 => RevocationTarget::Task(task(random)),
        _ => RevocationTarget::User(user(random)),
    }
}

fn label(random: &mut Random) -> Label {
    let tags = ["crm", "hr", "legal"].into_iter().filter(|_| random.chance(50));
    let confidentiality = Confidentiality::Tags(tags.map(|tag| Tag::parse(tag).unwrap()).collect());
    Label {
        confidentiality: if random.chance(20) { Confidentiality::Top } else { confidentiality },
        integrity: random.one_of(&[Integrity::Trusted, Integrity::Untrusted]),
    }
}

fn decision_id(random: &mut Random) -> DecisionId {
    let origin = if random.chance(50) {
        Origin::Node(node(random))
    } else {
        Origin::Broker(BrokerId::parse("broker-1").unwrap())
    };
    DecisionId { origin, boot: boot(random), seq: random.next() >> random.below(64) }
}

fn recorded_reason(random: &mut Random) -> RecordedReason {
    RecordedReason { code: random.one_of(ReasonCode::ALL), told: text(random), noted: maybe(random, text) }
}

fn told(random: &mut Random) -> ToldReason {
    let advice = maybe(random, |random| {
        let granted_by = (0..random.below(3)).map(|_| text(random)).collect();
        Box::new(Advice { granted_by, approval: needs(random) })
    });
    ToldReason { code: random.one_of(ReasonCode::ALL), text: text(random), advice }
}

fn status(random: &mut Random) -> OutcomeStatus {
    random.one_of(&[
        OutcomeStatus::Done,
        OutcomeStatus::Failed,
        OutcomeStatus::NotRun,
        OutcomeStatus::UnknownOutcome,
    ])
}

fn maybe<T>(random: &mut Random, make: impl FnOnce(&mut Random) -> T) -> Option<T> {
    random.chance(50).then(|| make(random))
}

fn byte(random: &mut Random) -> u8 {
    u8::try_from(random.below(256)).unwrap()
}

fn bytes(random: &mut Random) -> Vec<u8> {
    (0..random.one_of(&[0, 3, 40, 300])).map(|_| byte(random)).collect()
}

fn text(random: &mut Random) -> String {
    (0..random.one_of(&[0, 3, 31, 32, 300])).map(|_| random.one_of(&['a', 'é', ' ', '"'])).collect()
}

fn nonce(random: &mut Random) -> [u8; 16] {
    [byte(random); 16]
}

fn digest(random: &mut Random) -> Digest {
    Digest::from_bytes([byte(random); 32])
}

fn epoch(random: &mut Random) -> Epoch {
    Epoch { incarnation: u32::from(byte(random)), sequence: random.next() >> random.below(64) }
}

fn time(random: &mut Random) -> Timestamp {
    Timestamp::from_millis(random.next() >> random.below(64))
}

fn public(random: &mut Random) -> PublicKey {
    key(byte(random)).public()
}

fn key_id(random: &mut Random) -> KeyId {
    public(random).id()
}

fn right_of(random: &mut Random) -> Right {
    right(random.one_of(&["tool.crm:read", "agent.mailer:invoke"]))
}

fn rights(random: &mut Random) -> Vec<Right> {
    (0..random.below(3)).map(|_| right_of(random)).collect()
}

fn name(random: &mut Random) -> String {
    format!("{}{}", random.one_of(&["a", "b-", "c_"]), random.below(100))
}

fn task(random: &mut Random) -> TaskId {
    TaskId::parse(name(random)).unwrap()
}

fn agent(random: &mut Random) -> AgentId {
    AgentId::parse(name(random)).unwrap()
}

fn node(random: &mut Random) -> NodeId {
    NodeId::parse(name(random)).unwrap()
}

fn boot(random: &mut Random) -> BootId {
    BootId::parse(name(random)).unwrap()
}

fn capability(random: &mut Random) -> CapabilityId {
    CapabilityId::parse(name(random)).unwrap()
}

fn domain(random: &mut Random) -> FlowDomain {
    FlowDomain::parse(&format!("p0.{}", name(random))).unwrap()
}

fn user(random: &mut Random) -> UserId {
    UserId::parse("https://idp.example", name(random)).unwrap()
}
