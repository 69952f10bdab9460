//! Fixtures the tests of this crate share: fixed keys and times, one grant with its chain, blocks no builder of
//! ours would write, and a policy with the control state to decide under.
#![allow(dead_code, reason = "every test binary uses a part of it")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

pub mod messages;
pub mod model;
pub mod policies;
pub mod programs;
pub mod random;
pub mod reference;
pub mod reference_flow;
pub mod scenarios;
pub mod scenarios_flow;

use std::collections::BTreeMap;

use biscuit_auth::{BlockBuilder, KeyPair, builder::Algorithm, format::schema};
use prost::Message as _;
use writ_common::{
    capability::{Capability, Grant, Narrowing, Right, UnverifiedCapability},
    codec::encode,
    control::{ControlDocument, ControlEvent, ControlState},
    decide::{Evidence, FlowEvidence, decide},
    diagnostic::Diagnostics,
    digest::Digest,
    epoch::Epoch,
    ids::{AgentId, CapabilityId, FlowDomain, TaskId, TenantId, UserId},
    keys::{PrivateKey, PublicKey},
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::Label,
    policy::{
        PolicyBundle, PolicySet,
        explain::{Explanation, explain},
    },
    reason::ReasonCode,
    request::{Arguments, Environment, Principal, Request},
    signed::Signed,
    time::{Millis, Timestamp},
    verdict::Verdict,
};

pub const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

pub const ROOT: u8 = 1;
pub const BROKER: u8 = 2;
pub const NODE: u8 = 3;
pub const PLANNER: u8 = 10;
pub const RESEARCHER: u8 = 11;
pub const MAILER: u8 = 12;
pub const WRITER: u8 = 13;

/// Every agent of the policy of [`World`] with its key.
pub const AGENTS: [(&str, u8); 4] =
    [("planner", PLANNER), ("researcher", RESEARCHER), ("mailer", MAILER), ("writer", WRITER)];

pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

pub fn tenant() -> TenantId {
    TenantId::parse("acme").unwrap()
}

pub fn agent(name: &str) -> AgentId {
    AgentId::parse(name).unwrap()
}

pub fn right(text: &str) -> Right {
    Right::parse(text).unwrap()
}

pub fn grant() -> Grant {
    Grant {
        tenant: tenant(),
        user: UserId::parse("https://idp.example", "alice").unwrap(),
        agent: agent("planner"),
        task: TaskId::parse("t-1").unwrap(),
        holder: key(PLANNER).public(),
        capability: CapabilityId::parse("c-1").unwrap(),
        serial: 1,
        instruction: Digest::plain(b"answer the customer"),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        rights: ["agent.researcher:invoke", "tool.crm:read", "tool.mail:draft"]
            .into_iter()
            .map(right)
            .collect(),
        expires: Timestamp::from_secs(1_800_000_300),
        min_epoch: Epoch { incarnation: 0, sequence: 7 },
        max_depth: 3,
        bounds: Vec::new(),
    }
}

pub fn keyset_document(keys: &[PublicKey]) -> KeysetDocument {
    KeysetDocument {
        version: 1,
        issued_at: NOW,
        expires: NOW.after(Millis::from_secs(86_400)),
        keys: keys
            .iter()
            .map(|public| KeysetKey {
                public: *public,
                tenants: vec![tenant()],
                max_ttl: Millis::from_secs(600),
                not_before: Timestamp::default(),
                not_after: NOW.after(Millis::from_secs(86_400)),
            })
            .collect(),
        withdrawn: vec![],
    }
}

pub fn signed_keyset(keys: &[PublicKey]) -> Signed<KeysetDocument> {
    Signed::new(&keyset_document(keys), &key(ROOT))
}

pub fn keyset_of(keys: &[PublicKey]) -> Keyset {
    Keyset::open(&signed_keyset(keys), &key(ROOT).public()).unwrap()
}

pub fn keyset() -> Keyset {
    keyset_of(&[key(BROKER).public()])
}

pub fn issued() -> UnverifiedCapability {
    grant().issue(&key(BROKER), &[50; 32]).unwrap()
}

/// planner -> researcher -> mailer, each keeping something back.
pub fn delegated() -> UnverifiedCapability {
    let narrowing = Narrowing::new().only([right("tool.crm:read"), right("tool.mail:draft")]);
    let to_researcher = issued()
        .delegate(&key(PLANNER), &agent("researcher"), &key(RESEARCHER).public(), &narrowing, &[51; 32])
        .unwrap();
    to_researcher
        .delegate(
            &key(RESEARCHER),
            &agent("mailer"),
            &key(MAILER).public(),
            &Narrowing::new().only([right("tool.mail:draft")]).until(Timestamp::from_secs(1_800_000_100)),
            &[52; 32],
        )
        .unwrap()
}

pub fn verify(bytes: &[u8]) -> Result<Capability, ReasonCode> {
    UnverifiedCapability::parse(bytes)
        .and_then(|capability| capability.verify(&keyset(), NOW))
        .map_err(|reason| reason.code())
}

pub fn schema(token: &UnverifiedCapability) -> schema::Biscuit {
    schema::Biscuit::decode(token.as_bytes()).unwrap()
}

pub fn biscuit_key(seed: u8) -> KeyPair {
    KeyPair::from(&biscuit_auth::PrivateKey::from_bytes(&[seed; 32], Algorithm::Ed25519).unwrap())
}

pub fn block(code: &str) -> BlockBuilder {
    BlockBuilder::new().code(code).unwrap()
}

/// Appends a block the holder signs, whatever is in it.
pub fn append(token: &UnverifiedCapability, holder: u8, block: BlockBuilder) -> Vec<u8> {
    append_payload(token, holder, &payload_of(token, block))
}

/// The bytes biscuit-auth would write for a block.
pub fn payload_of(token: &UnverifiedCapability, block: BlockBuilder) -> Vec<u8> {
    let token = biscuit_auth::UnverifiedBiscuit::from(token.as_bytes()).unwrap();
    let request = token.third_party_request().unwrap();
    let signed = request.create_block(&biscuit_key(ROOT).private(), block).unwrap();
    schema::ThirdPartyBlockContents::decode(signed.serialize().unwrap().as_slice()).unwrap().payload
}

/// Appends any bytes as a block, signed as they should be: what a holder can do who uses no library at all.
///
/// Biscuit specification, "Signature (third party blocks)", signature version 1.
pub fn append_payload(token: &UnverifiedCapability, holder: u8, payload: &[u8]) -> Vec<u8> {
    const VERSION: u32 = 1;
    let mut container = schema(token);
    let previous = container.blocks.last().unwrap_or(&container.authority).signature.clone();
    let version = VERSION.to_le_bytes();
    let external =
        [b"\0EXTERNAL\0\0VERSION\0".as_slice(), &version, b"\0PAYLOAD\0", payload, b"\0PREVSIG\0", &previous];
    let holder = biscuit_key(holder);
    let external = holder.sign(&external.concat()).unwrap().to_bytes().to_vec();
    let next = biscuit_key(90);
    let next_key = next.public().to_proto();
    let message = [
        b"\0BLOCK\0\0VERSION\0".as_slice(),
        &version,
        b"\0PAYLOAD\0",
        payload,
        b"\0ALGORITHM\0",
        &next_key.algorithm.to_le_bytes(),
        b"\0NEXTKEY\0",
        &next_key.key,
        b"\0PREVSIG\0",
        &previous,
        b"\0EXTERNALSIG\0",
        &external,
    ];
    let Some(schema::proof::Content::NextSecret(secret)) = &container.proof.content else {
        panic!("the token is sealed")
    };
    let secret = biscuit_auth::PrivateKey::from_bytes(secret, Algorithm::Ed25519).unwrap();
    let signature = KeyPair::from(&secret).sign(&message.concat()).unwrap().to_bytes().to_vec();
    container.blocks.push(schema::SignedBlock {
        block: payload.to_vec(),
        next_key,
        signature,
        external_signature: Some(schema::ExternalSignature {
            signature: external,
            public_key: holder.public().to_proto(),
        }),
        version: Some(VERSION),
    });
    container.proof.content = Some(schema::proof::Content::NextSecret(next.private().to_bytes().to_vec()));
    container.encode_to_vec()
}

/// A policy and a control state under which only the capability decides: every agent is enrolled, each may
/// delegate to each, and whatever the capability holds a right for is allowed.
pub struct World {
    pub policy: PolicySet,
    pub control: ControlState,
}

const CRM: &str = r#"
resource = "tool.crm"
[[action]]
name = "read"
effect = "read"
returns = { tags = [], integrity = "trusted" }
schema = { type = "object", properties = { table = { type = "string" }, limit = { type = "integer" }, dry = { type = "boolean" }, tags = { type = "array", items = { type = "string" } } } }
[[action]]
name = "write"
effect = "shared"
returns = { tags = [], integrity = "trusted" }
schema = { type = "object", properties = { table = { type = "string" }, amount = { type = "number" }, limit = { type = "integer" }, dry = { type = "boolean" } } }
scales = { "/amount" = 2 }
"#;

const MAIL: &str = r#"
resource = "tool.mail"
[[action]]
name = "draft"
effect = "internal"
returns = { tags = [], integrity = "trusted" }
schema = { type = "object", properties = { table = { type = "string" }, limit = { type = "integer" } } }
"#;

impl World {
    pub fn new() -> Self {
        Self::under(
            "allow if request(\"call\"), right($resource, $action), resource($resource), action($action);\n\
             may_delegate($from, $to) <- delegates($from, $to);\n",
        )
        .unwrap_or_else(|findings| panic!("the policy of the tests does not load: {findings}"))
    }

    /// The same under other rules.
    pub fn under(rules: &str) -> Result<Self, Diagnostics> {
        let names: Vec<String> = AGENTS.iter().map(|(name, _)| format!("{name:?}")).collect();
        let agents: String = AGENTS
            .iter()
            .map(|(name, _)| {
                format!(
                    "[[agent]]\nname = \"{name}\"\nowner = \"o\"\ndescription = \"d\"\ndelegates_to = [{}]\nclearance = [\"top\"]\n",
                    names.join(", ")
                )
            })
            .collect();
        let bundle: BTreeMap<String, String> = [
            ("agents.toml", agents.as_str()),
            ("base.datalog", rules),
            ("tools/crm.toml", CRM),
            ("tools/mail.toml", MAIL),
        ]
        .into_iter()
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .collect();
        let (policy, _) = PolicySet::load(&PolicyBundle(bundle))?;
        let mut control = ControlState::new(tenant(), key(ROOT).public());
        let keyset = ControlEvent::Keyset(signed_keyset(&[key(BROKER).public()]));
        let keys = AGENTS.iter().map(|(name, seed)| ControlEvent::AgentKey {
            agent: agent(name),
            holder: key(*seed).public(),
            connection: format!("nkey-{name}"),
            token: Digest::plain(name.as_bytes()),
        });
        for (sequence, event) in (1..).zip(std::iter::once(keyset).chain(keys)) {
            let event = control_event(control.epoch(), event);
            control.apply(sequence, &event).unwrap();
        }
        Ok(Self { policy, control })
    }

    /// Decides a call by whoever holds the capability.
    pub fn decide(&self, capability: &Capability, call: &Call) -> Verdict {
        self.decide_for(&capability.grant().tenant, capability, call)
    }

    /// Decides a call that arrived for a tenant.
    pub fn decide_for(&self, tenant: &TenantId, capability: &Capability, call: &Call) -> Verdict {
        self.ask(tenant, capability, call, |request, evidence| {
            decide(request, evidence, &self.policy, call.now)
        })
    }

    /// Decides it and tells why.
    pub fn explain(&self, capability: &Capability, call: &Call) -> Explanation {
        self.ask(&capability.grant().tenant, capability, call, |request, evidence| {
            explain(request, evidence, &self.policy, call.now)
        })
    }

    fn ask<T>(
        &self,
        tenant: &TenantId,
        capability: &Capability,
        call: &Call,
        answer: impl Fn(&Request, &Evidence<'_>) -> T,
    ) -> T {
        let grant = capability.grant();
        let request = Request {
            principal: Principal::Agent(capability.chain().caller().clone()),
            action: call.right.action.clone(),
            resource: call.right.resource.clone(),
            arguments: call.arguments.clone(),
            environment: Environment {
                tenant: tenant.clone(),
                task: Some(grant.task.clone()),
                task_kind: None,
            },
        };
        let evidence = Evidence {
            capability: Some(capability),
            control: &self.control,
            gate: None,
            handover: None,
            label: &call.label,
            flow: FlowEvidence::default(),
        };
        answer(&request, &evidence)
    }
}

/// What a call is decided on, beyond who makes it.
#[derive(Clone, Debug)]
pub struct Call {
    pub right: Right,
    pub arguments: Arguments,
    pub label: Label,
    pub now: Timestamp,
}

/// A control event as it stands in the stream.
pub fn control_event(follows: Epoch, event: ControlEvent) -> Vec<u8> {
    let document = ControlDocument { tenant: tenant(), at: NOW, by: "broker-1".to_owned(), follows, event };
    encode(&Signed::new(&document, &key(BROKER)))
}
