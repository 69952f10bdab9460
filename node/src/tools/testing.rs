//! A real permit for tests: there is no other way to one than a verdict over a verified capability.

use writ_common::{
    capability::{Grant, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    decide::{Evidence, FlowEvidence, decide},
    digest::Digest,
    epoch::Epoch,
    ids::{Action, AgentId, CapabilityId, FlowDomain, Resource, TaskId, TenantId, UserId},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::{PolicyBundle, PolicySet},
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    time::{Millis, Timestamp},
    verdict::Permit,
};

pub(crate) fn permit(resource: &str, action: &str, arguments: &str) -> Permit {
    let (root, broker, holder) = ([1; 32], [2; 32], [3; 32]).into_keys();
    let tenant = TenantId::parse("acme").unwrap();
    let agent = AgentId::parse("tester").unwrap();
    let task = TaskId::parse("t-1").unwrap();
    let now = Timestamp::from_secs(1_000);
    let right = Right::parse(&format!("{resource}:{action}")).unwrap();
    let document = KeysetDocument {
        version: 1,
        issued_at: now,
        expires: now.after(Millis::from_secs(100)),
        keys: vec![KeysetKey {
            public: broker.public(),
            tenants: vec![tenant.clone()],
            max_ttl: Millis::from_secs(100),
            not_before: Timestamp::default(),
            not_after: now.after(Millis::from_secs(100)),
        }],
        withdrawn: vec![],
    };
    let keyset = Signed::new(&document, &root);
    let mut control = ControlState::new(tenant.clone(), root.public());
    let events = [
        ControlEvent::Keyset(keyset.clone()),
        ControlEvent::AgentKey {
            agent: agent.clone(),
            holder: holder.public(),
            connection: "U".into(),
            token: Digest::plain(b""),
        },
    ];
    for (sequence, event) in (1..).zip(events) {
        let document = ControlDocument {
            tenant: tenant.clone(),
            at: now,
            by: "test".into(),
            follows: control.epoch(),
            event,
        };
        control.apply(sequence, &encode(&Signed::new(&document, &broker))).unwrap();
    }
    let capability = Grant {
        tenant: tenant.clone(),
        user: UserId::parse("i", "s").unwrap(),
        agent: agent.clone(),
        task: task.clone(),
        holder: holder.public(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        instruction: Digest::plain(b""),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: [right].into(),
        expires: now.after(Millis::from_secs(50)),
        min_epoch: Epoch::default(),
        max_depth: 0,
        bounds: vec![],
    }
    .issue(&broker, &[4; 32])
    .unwrap();
    let keyset = Keyset::open(&keyset, &root.public()).unwrap();
    let capability =
        UnverifiedCapability::parse(capability.as_bytes()).unwrap().verify(&keyset, now).unwrap();
    let contract = format!(
        "resource = \"{resource}\"\n[[action]]\nname = \"{action}\"\neffect = \"read\"\nreturns = {{ tags = [], integrity = \"trusted\" }}\n\
         schema = {{ type = \"object\", additionalProperties = true }}\n"
    );
    let policy = PolicyBundle(
        [
            ("agents.toml".to_owned(), "[[agent]]\nname = \"tester\"\n".to_owned()),
            ("base.datalog".to_owned(), "allow if request(\"call\");".to_owned()),
            ("tools/tool.toml".to_owned(), contract),
        ]
        .into(),
    );
    let (policy, _) = PolicySet::load(&policy).unwrap();
    let request = Request {
        principal: Principal::Agent(agent),
        action: Action::parse(action).unwrap(),
        resource: Resource::parse(resource).unwrap(),
        arguments: Arguments::new(Value::parse(arguments).unwrap()),
        environment: Environment { tenant, task: Some(task), task_kind: None },
    };
    let evidence = Evidence {
        capability: Some(&capability),
        handover: None,
        control: &control,
        gate: None,
        label: &Label::bottom(),
        flow: FlowEvidence::default(),
    };
    let verdict = decide(&request, &evidence, &policy, now);
    let reasons = format!("{:?}", verdict.reasons());
    verdict.permit().unwrap_or_else(|| panic!("{reasons}"))
}

trait IntoKeys {
    fn into_keys(self) -> (PrivateKey, PrivateKey, PrivateKey);
}

impl IntoKeys for ([u8; 32], [u8; 32], [u8; 32]) {
    fn into_keys(self) -> (PrivateKey, PrivateKey, PrivateKey) {
        (PrivateKey::from_seed(&self.0), PrivateKey::from_seed(&self.1), PrivateKey::from_seed(&self.2))
    }
}
