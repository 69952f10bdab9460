//! An audit stream as it could have been: signed records of a broker and some nodes over some months, from a seed.

use std::collections::{BTreeSet, VecDeque};

use anyhow::{Context as _, Result};
use writ::index::{history::ControlHistory, source::Raw};
use writ_common::{
    approval::{ApprovalAnswer, ApprovalDecision, Need},
    capability::Right,
    codec::encode,
    control::{ControlDocument, ControlEvent, RevocationTarget},
    digest::Digest,
    epoch::Epoch,
    ids::{
        Action, AgentId, ApprovalId, BootId, BrokerId, CapabilityId, FlowDomain, KeyId, NodeId, OperatorId,
        PartId, Resource, RoleId, TaskId, TaskKind, TenantId, UserId,
    },
    keys::{PrivateKey, PublicKey},
    keyset::{KeysetDocument, KeysetKey},
    label::{Confidentiality, Integrity, Label, Tag},
    policy::PolicyRevision,
    reason::ReasonCode,
    record::{
        Basis, DecisionId, Granted, Origin, Outcome, OutcomeStatus, RecordBody, RecordedApproval,
        RecordedDecision, RecordedHop, RecordedReason, Verdicted, What, Who,
    },
    recorder::{Prepared, Recorder},
    signed::Signed,
    subjects::Subject,
    time::{Millis, Timestamp},
};

/// 2026-01-01.
pub const BEGIN: Timestamp = Timestamp::from_secs(1_767_225_600);
/// Over how many days the records are spread.
pub const DAYS: u64 = 90;
const TASKS_AT_ONCE: u64 = 40;
const CODES: [ReasonCode; 6] = [
    ReasonCode::PolicyDenied,
    ReasonCode::RightMissing,
    ReasonCode::FlowSink,
    ReasonCode::TokenHolderMismatch,
    ReasonCode::StateStale,
    ReasonCode::AuditFull,
];

/// A generator of numbers: splitmix64 (Steele, Lea and Flood, 2014).
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Result<T> {
        let at = usize::try_from(self.below(from.len() as u64))?;
        from.get(at).cloned().context("nothing to pick from")
    }

    fn random(&mut self) -> [u8; 10] {
        let (one, two) = (self.next().to_be_bytes(), self.next().to_be_bytes());
        let mut random = [0; 10];
        for (place, byte) in random.iter_mut().zip(one.into_iter().chain(two)) {
            *place = byte;
        }
        random
    }

    fn key(&mut self) -> PrivateKey {
        let mut seed = [0; 32];
        for chunk in seed.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_be_bytes());
        }
        PrivateKey::from_seed(&seed)
    }
}

#[derive(Clone)]
struct Tool {
    right: Right,
    /// What its results carry.
    gives: Label,
}

/// A task that goes on.
struct Going {
    /// Where it began, and where its records are.
    part: PartId,
    who: Who,
    rights: Vec<Right>,
    key: KeyId,
    label: Label,
    /// Calls until it ends.
    left: u64,
    /// What a human said yes to.
    approved: Option<RecordedApproval>,
}

/// The stream, message by message.
pub struct Stream {
    dice: Dice,
    /// The key everything rests on.
    pub root: PublicKey,
    /// The control stream as it was written, from sequence 1.
    pub said: Vec<Vec<u8>>,
    /// What it says: all of them are enrolled in it.
    pub history: ControlHistory,
    broker: Recorder,
    nodes: Vec<Recorder>,
    approver: (OperatorId, PrivateKey),
    stranger: PrivateKey,
    /// Who has tasks.
    pub users: Vec<UserId>,
    /// Who acts.
    pub agents: Vec<AgentId>,
    tools: Vec<Tool>,
    tasks: Vec<Going>,
    outcomes: VecDeque<(PartId, Outcome)>,
    answers: VecDeque<(PartId, ApprovalId, Digest)>,
    policy: PolicyRevision,
    at: Timestamp,
    step: Millis,
    /// The last sequence of each part; tasks begin in the last one.
    parts: Vec<(PartId, u64)>,
    tenant: TenantId,
}

impl Stream {
    /// A stream from a seed, of which `records` messages span [`DAYS`] days.
    ///
    /// # Errors
    /// If a name of ours is none.
    pub fn new(seed: u64, records: u64) -> Result<Self> {
        let mut dice = Dice::new(seed);
        let tenant = TenantId::parse("acme")?;
        let (root, issuer, stranger) = (dice.key(), dice.key(), dice.key());
        let broker = BrokerId::parse("broker-1")?;
        let mut events = vec![ControlEvent::Keyset(keyset(&root, &issuer, &tenant))];
        let boot = |dice: &mut Dice| BootId::generate(BEGIN, dice.random());
        let (broker_boot, broker_key) = (boot(&mut dice), dice.key());
        let recorder = Recorder::new(
            tenant.clone(),
            Origin::Broker(broker.clone()),
            broker_boot.clone(),
            broker_key.clone(),
        );
        events.push(ControlEvent::BrokerBoot { broker, boot: broker_boot, key: broker_key.public() });
        let mut nodes = Vec::new();
        for number in 1..=4 {
            let (node, key) = (NodeId::parse(format!("node-{number}"))?, dice.key());
            let origin = Origin::Node(node.clone());
            nodes.push(Recorder::new(tenant.clone(), origin, boot(&mut dice), key.clone()));
            events.push(ControlEvent::NodeKey { node, key: key.public(), connection: format!("U{number}") });
        }
        let approver = (OperatorId::parse("bob")?, dice.key());
        events
            .push(ControlEvent::ApproverKey { approver: approver.0.clone(), key: Some(approver.1.public()) });
        let mut history = ControlHistory::new(tenant.clone(), root.public());
        let mut said = Vec::new();
        for event in events {
            said.push(say(&mut history, &issuer, BEGIN, event));
        }
        let users = (0..1_000).map(|n| UserId::parse("https://idp.example", format!("user-{n}")));
        let agents = (0..40).map(|n| AgentId::parse(format!("agent-{n}")));
        let agents = agents.collect::<Result<Vec<_>, _>>()?;
        for number in 0..20 {
            let at =
                BEGIN.after(Millis(dice.below(DAYS * 86_400_000) / 20 + number * DAYS * 86_400_000 / 20));
            let target = RevocationTarget::Agent(dice.pick(&agents)?);
            let event = ControlEvent::Revocation { target, until: at.after(Millis::from_secs(3_600)) };
            said.push(say(&mut history, &issuer, at, event));
        }
        let mut tools = Vec::new();
        for number in 0..60 {
            let resource = Resource::parse(format!("tool.t-{number}"))?;
            let right = Right {
                resource,
                action: Action::parse(["read", "write", "send"].get(number % 3).copied().unwrap_or("read"))?,
            };
            let tag: BTreeSet<Tag> = match number % 5 {
                0 | 1 => BTreeSet::new(),
                _ => [Tag::parse(format!("tag-{}", number % 20))?].into(),
            };
            let integrity = if number % 7 == 0 { Integrity::Untrusted } else { Integrity::Trusted };
            tools.push(Tool {
                right,
                gives: Label { confidentiality: Confidentiality::Tags(tag), integrity },
            });
        }
        Ok(Self {
            dice,
            root: root.public(),
            said,
            history,
            broker: recorder,
            nodes,
            approver,
            stranger,
            users: users.collect::<Result<_, _>>()?,
            agents,
            tools,
            tasks: Vec::new(),
            outcomes: VecDeque::new(),
            answers: VecDeque::new(),
            policy: PolicyRevision(Digest::plain(b"policy")),
            at: BEGIN,
            step: Millis((DAYS * 86_400_000 / records.max(1)).max(1)),
            parts: vec![(PartId::first(), 0)],
            tenant,
        })
    }

    /// Begins the next part: what begins from now on is in it, and what goes on stays where it is.
    pub fn rotate(&mut self) {
        self.parts.push((PartId::numbered(self.parts.len()), 0));
    }

    /// Whether there is more than one part.
    pub fn has_rotated(&self) -> bool {
        self.parts.len() > 1
    }

    /// The next messages.
    ///
    /// # Errors
    /// If a name of ours is none.
    pub fn take(&mut self, count: usize) -> Result<Vec<Raw>> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> Result<Raw> {
        self.at = self.at.after(Millis(self.step.0 / 2 + self.dice.below(self.step.0 + 1)));
        let die = self.dice.below(1_000);
        if die < 10
            && let Some((part, approval, request)) = self.answers.pop_front()
        {
            return Ok(self.answer(&part, approval, request));
        }
        if die < 450
            && let Some((part, outcome)) = self.outcomes.pop_front()
        {
            return self.by_node(&part, RecordBody::Outcome(Box::new(outcome)), die == 449);
        }
        if self.tasks.len() as u64 <= self.dice.below(TASKS_AT_ONCE) {
            return self.start();
        }
        self.act()
    }

    fn current(&self) -> PartId {
        self.parts.last().map_or_else(PartId::first, |(part, _)| part.clone())
    }

    fn raw(&mut self, part: &PartId, subject: String, payload: Vec<u8>) -> Raw {
        // Labels and claims stand between records.
        let more = 1 + self.dice.below(2);
        let known = self.parts.iter_mut().find(|(known, _)| known == part);
        let sequence = known.map_or(more, |(_, sequence)| {
            *sequence += more;
            *sequence
        });
        Raw { part: part.clone(), sequence, at: self.at, subject, payload }
    }

    fn by_broker(&mut self, part: &PartId, body: RecordBody) -> Raw {
        let Prepared { subject, bytes, .. } = self.broker.prepare(part.clone(), body, self.at);
        self.raw(part, subject, bytes)
    }

    fn by_node(&mut self, part: &PartId, body: RecordBody, is_forged: bool) -> Result<Raw> {
        let at = usize::try_from(self.dice.below(self.nodes.len() as u64))?;
        let node = self.nodes.get_mut(at).context("a node")?;
        let (origin, boot) = (node.origin().clone(), node.boot().clone());
        let stamp = self.at;
        let prepared = if is_forged {
            let mut stranger = Recorder::new(self.tenant.clone(), origin, boot, self.stranger.clone());
            stranger.prepare(part.clone(), body, stamp)
        } else {
            node.prepare(part.clone(), body, stamp)
        };
        Ok(self.raw(part, prepared.subject, prepared.bytes))
    }

    fn start(&mut self) -> Result<Raw> {
        let (part, task) = (self.current(), TaskId::generate(self.at, self.dice.random()));
        let agent = self.dice.pick(&self.agents)?;
        let key = self.dice.key().public();
        let mut rights = Vec::new();
        for _ in 0..=self.dice.below(6) {
            rights.push(self.dice.pick(&self.tools)?.right);
        }
        rights.sort();
        rights.dedup();
        let who = Who {
            domain: Some(FlowDomain::parse(&format!("{part}.{task}"))?),
            task: Some(task),
            user: Some(self.dice.pick(&self.users)?),
            agent: Some(agent.clone()),
            caller: Some(agent),
            capability: Some(CapabilityId::generate(self.at, self.dice.random())),
            serial: Some(1),
            holder: Some(key.fingerprint()),
            ..Who::default()
        };
        let left = 4 + self.dice.below(12);
        let going = Going {
            part: part.clone(),
            who,
            rights,
            key: key.id(),
            label: Label::bottom(),
            left,
            approved: None,
        };
        let body = self.grant(&going)?;
        self.tasks.push(going);
        Ok(self.by_broker(&part, body))
    }

    fn grant(&self, going: &Going) -> Result<RecordBody> {
        let kind = TaskKind::parse("answer")?;
        let what = What {
            resource: Some(Resource::task(&kind)),
            action: Some(Action::parse(if going.who.serial == Some(1) { "issue" } else { "renew" })?),
            ..What::default()
        };
        let mut verdicted = self.verdict(RecordedDecision::Allow, going, what);
        verdicted.granted = Some(Box::new(Granted {
            kind,
            rights: going.rights.clone(),
            max_depth: 3,
            expires: self.at.after(Millis::from_secs(300)),
            deadline: self.at.after(Millis::from_secs(3_600)),
            key: going.key.clone(),
            instruction: Digest::plain(b"instruction"),
            idempotency: Digest::plain(b"idempotency"),
            asked: Digest::plain(b"asked"),
            roles: vec!["analyst".to_owned()],
            started: Epoch::default(),
        }));
        Ok(RecordBody::Verdict(Box::new(verdicted)))
    }

    fn verdict(&self, decision: RecordedDecision, going: &Going, what: What) -> Verdicted {
        Verdicted {
            decision,
            reasons: Vec::new(),
            would_deny: Vec::new(),
            who: going.who.clone(),
            what,
            basis: Basis {
                policy: Some(self.policy),
                rules: vec!["rules.datalog:12".to_owned()],
                label: Some(going.label.clone()),
                label_revision: Some(1),
                ..Basis::default()
            },
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

    /// Something happens in one of the tasks.
    fn act(&mut self) -> Result<Raw> {
        let at = usize::try_from(self.dice.below(self.tasks.len() as u64))?;
        let mut going = self.tasks.swap_remove(at);
        going.left = going.left.saturating_sub(1);
        let die = self.dice.below(100);
        if die < 6 {
            going.who.serial = going.who.serial.map(|serial| serial + 1);
            let body = self.grant(&going)?;
            let part = going.part.clone();
            self.tasks.push(going);
            return Ok(self.by_broker(&part, body));
        }
        if die < 14 && going.who.hops.len() < 3 {
            let from = going.who.caller.clone().context("a caller")?;
            let to = self.dice.pick(&self.agents)?;
            let gave_up =
                if self.dice.below(2) == 0 { vec![self.dice.pick(&going.rights)?] } else { Vec::new() };
            let key = self.dice.key().public().id();
            let id = Digest::plain(&self.dice.random());
            going.who.hops.push(RecordedHop { from, to: to.clone(), key, id, gave_up });
            going.who.caller = Some(to);
        }
        let right = self.dice.pick(&going.rights)?;
        let tool = self.tools.iter().find(|tool| tool.right == right).cloned().context("its tool")?;
        let arguments = Digest::plain(&self.dice.random());
        let what = What {
            resource: Some(right.resource),
            action: Some(right.action),
            arguments: Some(arguments),
            call: Some(arguments),
            call_id: Some(Digest::plain(&self.dice.random())),
            ..What::default()
        };
        let raw = self.call(&mut going, what, &tool, die)?;
        if going.left > 0 {
            self.tasks.push(going);
        }
        Ok(raw)
    }

    fn call(&mut self, going: &mut Going, what: What, tool: &Tool, die: u64) -> Result<Raw> {
        let denied = |code: ReasonCode| {
            vec![RecordedReason { code, told: format!("{} says no to that", code.as_str()), noted: None }]
        };
        let call_id = what.call_id.context("a call id")?;
        let is_later = self.at.as_secs() > BEGIN.as_secs() + (DAYS - 7) * 86_400;
        // One cause rises in the last week.
        let code =
            if is_later && die.is_multiple_of(2) { ReasonCode::FlowSink } else { self.dice.pick(&CODES)? };
        if (86..95).contains(&die) {
            let mut verdicted = self.verdict(RecordedDecision::Deny, going, what);
            verdicted.reasons = denied(code);
            // What is not let through belongs to no part.
            return self.by_node(&self.current(), RecordBody::Verdict(Box::new(verdicted)), false);
        }
        if die >= 97 {
            let id = ApprovalId::of_call(&call_id);
            let request = Digest::plain(&self.dice.random());
            let needs = vec![Need { role: RoleId::parse("payer")?, count: 1 }];
            let approval = RecordedApproval { id: id.clone(), request, needs, by: Vec::new(), waited: None };
            let mut verdicted = self.verdict(RecordedDecision::Hold, going, what);
            verdicted.approval = Some(Box::new(approval.clone()));
            self.answers.push_back((going.part.clone(), id, request));
            let by = vec![self.approver.0.clone()];
            going.approved = Some(RecordedApproval { by, waited: Some(Millis(60_000)), ..approval });
            return self.by_node(&self.current(), RecordBody::Verdict(Box::new(verdicted)), false);
        }
        let mut verdicted = self.verdict(RecordedDecision::Allow, going, what);
        verdicted.approval = going.approved.take().map(Box::new);
        if die == 96 {
            verdicted.would_deny = denied(code);
        }
        let raw = self.by_node(&going.part, RecordBody::Verdict(Box::new(verdicted)), false)?;
        // Some never say how they ended.
        if self.dice.below(500) > 0 {
            going.label = going.label.join(&tool.gives);
            let intent = self.last_of(&raw)?;
            let elapsed = Some(Millis(self.dice.below(900)));
            let outcome = Outcome {
                intent,
                call_id,
                task: going.who.task.clone(),
                status: if self.dice.below(20) == 0 { OutcomeStatus::Failed } else { OutcomeStatus::Done },
                reason: None,
                result: Some(Digest::plain(&self.dice.random())),
                result_bytes: Some(100),
                label: Some(tool.gives.clone()),
                found: Vec::new(),
                elapsed,
                manifest: Vec::new(),
            };
            self.outcomes.push_back((going.part.clone(), outcome));
        }
        Ok(raw)
    }

    /// The record a message is: the last one of the node it names.
    fn last_of(&self, raw: &Raw) -> Result<DecisionId> {
        let (_, subject) = Subject::parse(&raw.subject)?;
        let Subject::Audit { origin, .. } = subject else { anyhow::bail!("a record's subject") };
        let node = self.nodes.iter().find(|node| node.origin().name() == origin).context("its node")?;
        let next = node.next_id();
        Ok(DecisionId { seq: next.seq.saturating_sub(1), ..next })
    }

    fn answer(&mut self, part: &PartId, approval: ApprovalId, request: Digest) -> Raw {
        let (approver, key) = self.approver.clone();
        let granted = self.dice.below(3) > 0;
        let answer = ApprovalAnswer {
            tenant: self.tenant.clone(),
            approval: approval.clone(),
            request,
            approver: approver.clone(),
            at: self.at,
            expires: self.at.after(Millis::from_secs(600)),
            decision: if granted { ApprovalDecision::Granted } else { ApprovalDecision::Refused },
            comment: "as discussed".to_owned(),
        };
        let subject = Subject::ApprovalAnswer { part: part.clone(), approval, approver };
        let (subject, payload) = (subject.of(&self.tenant), encode(&Signed::new(&answer, &key)));
        self.raw(part, subject, payload)
    }
}

fn keyset(root: &PrivateKey, issuer: &PrivateKey, tenant: &TenantId) -> Signed<KeysetDocument> {
    let key = KeysetKey {
        public: issuer.public(),
        tenants: vec![tenant.clone()],
        max_ttl: Millis::from_secs(3_600),
        not_before: Timestamp::default(),
        not_after: Timestamp::from_secs(10_000_000_000),
    };
    let document = KeysetDocument {
        version: 1,
        issued_at: BEGIN,
        expires: Timestamp::from_secs(10_000_000_000),
        keys: vec![key],
        withdrawn: Vec::new(),
    };
    Signed::new(&document, root)
}

fn say(history: &mut ControlHistory, issuer: &PrivateKey, at: Timestamp, event: ControlEvent) -> Vec<u8> {
    let follows = history.state.epoch();
    let tenant = history.state.tenant().clone();
    let document = ControlDocument { tenant, at, by: "ops".to_owned(), follows, event };
    let payload = encode(&Signed::new(&document, issuer));
    history.take(follows.sequence + 1, &payload);
    payload
}
