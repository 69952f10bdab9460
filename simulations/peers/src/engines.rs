//! The three engines behind one trait.

use std::{collections::BTreeMap, str::FromStr as _, sync::Arc};

use cedar_policy as cedar;
use regorus::{languages::rego::compiler::Compiler, rvm::vm::RegoVM};
use writ_common::{
    capability::{Capability, Grant, Right},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    decide::{Evidence, FlowEvidence, decide},
    digest::Digest,
    epoch::Epoch,
    ids::{AgentId, CapabilityId, FlowDomain, TaskId, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::{PolicyBundle, PolicySet},
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    time::{Millis, Timestamp},
    verdict::Decision,
};

use crate::policy::{AGENTS, Policy, Question};

pub trait Engine {
    type Request;
    fn request(&self, question: &Question) -> Self::Request;
    fn allows(&mut self, request: &Self::Request) -> bool;
}

/// Midnight of Monday, 2027-01-04 (UTC).
const MONDAY: u64 = 1_799_020_800;

pub struct Writ {
    policy: PolicySet,
    control: ControlState,
    keyset: Keyset,
    tools: usize,
}

pub struct WritRequest {
    request: Request,
    capability: Capability,
    now: Timestamp,
}

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

impl Writ {
    pub fn load(policy: &Policy) -> Self {
        let mut files = BTreeMap::from([("rules.datalog".to_owned(), policy.datalog())]);
        let agents = AGENTS.map(|name| format!("[[agent]]\nname = \"{name}\"\n")).concat();
        files.insert("agents.toml".to_owned(), agents);
        for tool in 0..policy.tools {
            let amount = "scales = { \"/amount\" = 2 }\nschema = { type = \"object\", properties = { amount = { type = \"number\" } } }\n";
            let text = format!(
                "resource = \"tool.t{tool}\"\n[[action]]\nname = \"wire\"\neffect = \"egress\"\nreturns = {{ tags = [], integrity = \"trusted\" }}\n{amount}\
                 [[action]]\nname = \"read\"\neffect = \"read\"\nreturns = {{ tags = [], integrity = \"trusted\" }}\n{amount}"
            );
            files.insert(format!("tools/t{tool}.toml"), text);
        }
        let policy_set = PolicySet::load(&PolicyBundle(files)).unwrap_or_else(|findings| panic!("{findings}")).0;
        let (keyset, signed) = keyset();
        let mut control = ControlState::new(tenant(), key(1).public());
        let enrolled = AGENTS.iter().zip(10..).map(|(name, seed)| ControlEvent::AgentKey {
            agent: AgentId::parse(*name).unwrap(),
            holder: key(seed).public(),
            connection: format!("U{seed}"),
            token: Digest::plain(name.as_bytes()),
        });
        for (sequence, event) in (1..).zip(std::iter::once(ControlEvent::Keyset(signed)).chain(enrolled)) {
            let document = ControlDocument {
                tenant: tenant(),
                at: Timestamp::from_secs(MONDAY),
                by: "bench".into(),
                follows: control.epoch(),
                event,
            };
            control.apply(sequence, &encode(&Signed::new(&document, &key(2)))).unwrap();
        }
        Self { policy: policy_set, control, keyset, tools: policy.tools }
    }
}

fn keyset() -> (Keyset, Signed<KeysetDocument>) {
    let later = Timestamp::from_secs(MONDAY + 30 * 86_400);
    let document = KeysetDocument {
        version: 1,
        issued_at: Timestamp::from_secs(MONDAY),
        expires: later,
        keys: vec![KeysetKey {
            public: key(2).public(),
            tenants: vec![tenant()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: later,
        }],
        withdrawn: Vec::new(),
    };
    let signed = Signed::new(&document, &key(1));
    (Keyset::open(&signed, &key(1).public()).unwrap(), signed)
}

fn right(question: &Question) -> String {
    format!("tool.t{}:{}", question.tool, question.action)
}

/// The rights of the agent: those on a few tools, and with them the one in question or not.
fn rights(question: &Question, tools: usize) -> Vec<String> {
    let others = (0..tools.min(3)).filter(|tool| *tool != question.tool).map(|tool| format!("tool.t{tool}:wire"));
    others.chain(question.has_right.then(|| right(question))).collect()
}

impl Engine for Writ {
    type Request = WritRequest;

    fn request(&self, question: &Question) -> WritRequest {
        let now = Timestamp::from_secs(MONDAY + (question.weekday - 1) * 86_400 + question.hour * 3_600);
        let agent = AgentId::parse(question.agent).unwrap();
        let seed = if question.agent == AGENTS[0] { 10 } else { 11 };
        let grant = Grant {
            tenant: tenant(),
            user: UserId::parse("https://idp.example", question.user).unwrap(),
            agent: agent.clone(),
            task: TaskId::parse("t-1").unwrap(),
            holder: key(seed).public(),
            capability: CapabilityId::parse("c-1").unwrap(),
            serial: 1,
            instruction: Digest::plain(b"pay the bill"),
            domain: FlowDomain::parse("p0.t-1").unwrap(),
            rights: rights(question, self.tools).iter().map(|text| Right::parse(text).unwrap()).collect(),
            expires: now.after(Millis::from_secs(300)),
            min_epoch: Epoch::default(),
            max_depth: 0,
            bounds: Vec::new(),
        };
        let capability = grant.issue(&key(2), &[50; 32]).unwrap().verify(&self.keyset, now).unwrap();
        let wanted = Right::parse(&right(question)).unwrap();
        let amount = Value::parse(&format!("{}.{:02}", question.cents / 100, question.cents % 100)).unwrap();
        let request = Request {
            principal: Principal::Agent(agent),
            action: wanted.action,
            resource: wanted.resource,
            arguments: Arguments::new([("amount", amount)].into_iter().collect()),
            environment: Environment {
                tenant: tenant(),
                task: Some(TaskId::parse("t-1").unwrap()),
                task_kind: None,
            },
        };
        WritRequest { request, capability, now }
    }

    fn allows(&mut self, asked: &WritRequest) -> bool {
        let label = Label::bottom();
        let evidence = Evidence {
            capability: Some(&asked.capability),
            control: &self.control,
            gate: None,
            handover: None,
            label: &label, flow: FlowEvidence::default(),
        };
        decide(&asked.request, &evidence, &self.policy, asked.now).decision() == Decision::Allow
    }
}

pub struct Cedar {
    policies: cedar::PolicySet,
    entities: cedar::Entities,
    authorizer: cedar::Authorizer,
    tools: usize,
}

impl Cedar {
    pub fn load(policy: &Policy) -> Self {
        Self {
            policies: cedar::PolicySet::from_str(&policy.cedar()).unwrap(),
            entities: cedar::Entities::empty(),
            authorizer: cedar::Authorizer::new(),
            tools: policy.tools,
        }
    }
}

impl Engine for Cedar {
    type Request = cedar::Request;

    fn request(&self, question: &Question) -> cedar::Request {
        let uid = |kind: &str, name: &str| cedar::EntityUid::from_str(&format!("{kind}::\"{name}\"")).unwrap();
        let text = |text: &str| cedar::RestrictedExpression::new_string(text.to_owned());
        let number = |number: u64| cedar::RestrictedExpression::new_long(i64::try_from(number).unwrap());
        let rights = rights(question, self.tools).iter().map(|right| text(right)).collect::<Vec<_>>();
        let context = cedar::Context::from_pairs([
            ("user".to_owned(), text(question.user)),
            ("cents".to_owned(), cedar::RestrictedExpression::new_long(question.cents)),
            ("hour".to_owned(), number(question.hour)),
            ("weekday".to_owned(), number(question.weekday)),
            ("right".to_owned(), text(&right(question))),
            ("rights".to_owned(), cedar::RestrictedExpression::new_set(rights)),
        ])
        .unwrap();
        cedar::Request::new(
            uid("Agent", question.agent),
            uid("Action", question.action),
            uid("Tool", &format!("t{}", question.tool)),
            context,
            None,
        )
        .unwrap()
    }

    fn allows(&mut self, request: &cedar::Request) -> bool {
        let answer = self.authorizer.is_authorized(request, &self.policies, &self.entities);
        answer.decision() == cedar::Decision::Allow
    }
}

fn input(question: &Question, tools: usize) -> regorus::Value {
    let rights = rights(question, tools);
    let text = format!(
        "{{\"user\": {:?}, \"agent\": {:?}, \"resource\": \"tool.t{}\", \"action\": {:?}, \"cents\": {}, \"hour\": {}, \"weekday\": {}, \"right\": {:?}, \"rights\": {rights:?}}}",
        question.user,
        question.agent,
        question.tool,
        question.action,
        question.cents,
        question.hour,
        question.weekday,
        right(question)
    );
    regorus::Value::from_json_str(&text).unwrap()
}

/// The interpreter of regorus.
pub struct Rego {
    engine: regorus::Engine,
    tools: usize,
}

impl Rego {
    pub fn load(policy: &Policy) -> Self {
        let mut engine = regorus::Engine::new();
        engine.add_policy("writ.rego".to_owned(), policy.rego()).unwrap();
        Self { engine, tools: policy.tools }
    }
}

impl Engine for Rego {
    type Request = regorus::Value;

    fn request(&self, question: &Question) -> regorus::Value {
        input(question, self.tools)
    }

    fn allows(&mut self, request: &regorus::Value) -> bool {
        self.engine.set_input(request.clone());
        self.engine.eval_rule("data.writ.allow".to_owned()).unwrap() == regorus::Value::from(true)
    }
}

/// The virtual machine of regorus, on a compiled program.
pub struct RegoCompiled {
    machine: RegoVM,
    tools: usize,
}

impl RegoCompiled {
    pub fn load(policy: &Policy) -> Self {
        let mut engine = regorus::Engine::new();
        engine.add_policy("writ.rego".to_owned(), policy.rego()).unwrap();
        let entry = "data.writ.allow";
        let compiled = engine.compile_with_entrypoint(&Arc::from(entry)).unwrap();
        let program = Compiler::compile_from_policy(&compiled, &[entry]).unwrap();
        let mut machine = RegoVM::new();
        machine.load_program(program);
        Self { machine, tools: policy.tools }
    }
}

impl Engine for RegoCompiled {
    type Request = regorus::Value;

    fn request(&self, question: &Question) -> regorus::Value {
        input(question, self.tools)
    }

    fn allows(&mut self, request: &regorus::Value) -> bool {
        self.machine.set_input(request.clone());
        self.machine.execute().unwrap() == regorus::Value::from(true)
    }
}
