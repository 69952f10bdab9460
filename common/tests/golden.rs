//! Golden files: bytes that must stay what they are, as data another implementation can run. See golden/README.md.
//!
//! `UPDATE_GOLDEN=1` writes them anew. A change in them is a change of a format.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a failed test may panic; tests read files"
)]

mod support;

use std::{fs, path::PathBuf};

use serde_json::{Value as Json, json};
use support::{
    BROKER, NODE, NOW, PLANNER, ROOT, control_event, delegated, issued, key, keyset, signed_keyset,
};
use writ_common::{
    capability::UnverifiedCapability,
    codec::{decode, encode},
    control::ControlEvent,
    digest::Digest,
    epoch::Epoch,
    hold::{Held, LegalHold},
    ids::{Action, BootId, FlowDomain, HoldId, NodeId, PartId, Resource},
    json::Value,
    keys::{PublicKey, Purpose},
    label::{DomainLabel, Label},
    part::{Archived, PartStage},
    reason::{Reason, ReasonCode},
    record::{
        Basis, DecisionId, Origin, Outcome, OutcomeStatus, Record, RecordBody, RecordedDecision,
        RecordedReason, Verdicted, What, Who,
    },
    recorder::{Prepared, Recorder},
    request::Arguments,
    signed::Signed,
    time::Millis,
    wire::{Answer, Call, CallProof, CallReply, Proof, UnsignedCall, call_digest, call_id},
};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compares with the file, or writes it; returns what the file says.
fn golden(name: &str, current: &Json) -> Json {
    let path = path(name);
    let text = format!("{}\n", serde_json::to_string_pretty(current).unwrap());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "{name}: a format has changed");
    current.clone()
}

fn unhex(value: &Json) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn text<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn read_as(capability: &UnverifiedCapability) -> Json {
    let (grant, chain) = (capability.grant(), capability.chain());
    json!({
        "tenant": grant.tenant, "task": grant.task, "capability": grant.capability, "serial": grant.serial,
        "user": [grant.user.issuer(), grant.user.subject()],
        "domain": grant.domain.to_string(),
        "expires_ms": capability.expires().as_millis(),
        "caller": chain.caller(),
        "holder": hex::encode(chain.holder().as_bytes()),
        "hops": chain.hops().map(|hop| json!({
            "from": hop.from, "to": hop.to, "key": hex::encode(hop.key.as_bytes()),
            "kept_back": text(&hop.gave_up),
        })).collect::<Vec<_>>(),
        "rights": text(capability.rights()),
        "chain_ids": text(capability.chain_ids()),
    })
}

#[test]
fn capabilities() {
    let (one, two) = (issued(), delegated());
    let case = |name: &str, bytes: &[u8]| {
        let expected = match support::verify(bytes) {
            Ok(_) => json!({"reads_as": read_as(&UnverifiedCapability::parse(bytes).unwrap())}),
            Err(code) => json!({"refused": code}),
        };
        json!({"name": name, "bytes": hex::encode(bytes), "expected": expected})
    };
    let mut flipped = two.as_bytes().to_vec();
    let last = flipped.len() - 70;
    flipped[last] ^= 1;
    let mut padded = one.as_bytes().to_vec();
    padded.extend([0x78, 0x01]);
    let rule = support::block("right($r, $a) <- resource($r), action($a);");
    let regex = support::block("check if action($a), $a.matches(\"r.*\");");
    let foreign = one.narrow(&key(PLANNER), &writ_common::capability::Narrowing::new(), &[53; 32]).unwrap();
    let current = json!({
        "root_public_key": hex::encode(key(ROOT).public().as_bytes()),
        "keyset": hex::encode(encode(&signed_keyset(&[key(BROKER).public()]))),
        "now_ms": NOW.as_millis(),
        "cases": [
            case("issued", one.as_bytes()),
            case("delegated twice, narrowed each time", two.as_bytes()),
            case("narrowed by nothing", foreign.as_bytes()),
            case("cut short", &one.as_bytes()[..one.as_bytes().len() - 1]),
            case("a flipped bit in the last signature", &flipped),
            case("an unknown protobuf field", &padded),
            case("a block with a rule", &support::append(&one, PLANNER, rule)),
            case("a block with a regular expression", &support::append(&one, PLANNER, regex)),
            case("a block by somebody who is not the holder", &support::append(&one, BROKER, support::block("check if true;"))),
        ],
    });
    let file = golden("capabilities.json", &current);
    // The file alone says what to expect.
    let root = PublicKey::parse(&format!("ed25519:{}", file["root_public_key"].as_str().unwrap())).unwrap();
    let keyset = writ_common::keyset::Keyset::open(&decode(&unhex(&file["keyset"])).unwrap(), &root).unwrap();
    for case in file["cases"].as_array().unwrap() {
        let read = UnverifiedCapability::parse(&unhex(&case["bytes"]))
            .and_then(|capability| capability.clone().verify(&keyset, NOW).map(|_| capability));
        match read {
            Ok(capability) => {
                assert_eq!(case["expected"]["reads_as"], read_as(&capability), "{}", case["name"]);
            }
            Err(reason) => assert_eq!(case["expected"]["refused"], json!(reason.code()), "{}", case["name"]),
        }
    }
}

#[test]
fn calls() {
    let capability = delegated();
    let holder = key(support::MAILER);
    let resource = Resource::parse("tool.mail").unwrap();
    let action = Action::parse("draft").unwrap();
    let arguments: Value =
        [("to", Value::Array(vec!["ada@example.com".into()])), ("subject", "Gr\u{fc}\u{df}e".into())]
            .into_iter()
            .collect();
    let arguments = Arguments::new(arguments);
    let unsigned = UnsignedCall {
        capability: &capability,
        resource: &resource,
        action: &action,
        arguments: &arguments,
        handover: None,
        approval: None,
        nonce: [7; 16],
        issued_at: NOW,
    };
    let call = unsigned.sign(&holder);
    let grant = capability.grant();
    let digest = call_digest(&resource, &action, arguments.canonical(), &grant.task);
    let proof = CallProof {
        tenant: &grant.tenant,
        capability: &grant.capability,
        chain: capability.chain_id(),
        holder: holder.public(),
        audience: &resource,
        nonce: [7; 16],
        issued_at: NOW,
        min_epoch: grant.min_epoch,
        call: digest,
    };
    let Proof::Signature(signature) = &call.proof;
    let envelope = encode(&call);
    let mut trailing = envelope.clone();
    trailing.push(0xc0);
    let refused = |bytes: &[u8]| decode::<Call>(bytes).unwrap_err().to_string();
    let current = json!({
        "holder_seed": hex::encode(*holder.seed()),
        "capability": hex::encode(capability.as_bytes()),
        "resource": resource, "action": action, "arguments": arguments.canonical(), "task": grant.task,
        "nonce": hex::encode([7; 16]), "issued_at_ms": NOW.as_millis(),
        "call_digest": digest.to_string(),
        "call_id": call_id(&holder.public(), &[7; 16]).to_string(),
        "proof_prefix": Purpose::Call.prefix(),
        "proof_bytes": hex::encode(proof.bytes()),
        "signature": serde_json::to_value(signature).unwrap(),
        "envelope": hex::encode(&envelope),
        "refused": [
            {"name": "trailing bytes", "bytes": hex::encode(&trailing), "why": refused(&trailing)},
            {"name": "cut short", "bytes": hex::encode(&envelope[..40]), "why": refused(&envelope[..40])},
        ],
    });
    let file = golden("calls.json", &current);
    let read: Call = decode(&unhex(&file["envelope"])).unwrap();
    assert_eq!(read, call);
    proof.check(&read.proof).unwrap();
}

fn show(prepared: &Prepared) -> Json {
    json!({
        "id": prepared.id.to_string(), "subject": prepared.subject, "message_id": prepared.message_id,
        "prev": prepared.prev.to_string(), "digest": prepared.digest.to_string(),
        "envelope": hex::encode(&prepared.bytes),
    })
}

#[test]
fn records() {
    let capability = delegated().verify(&keyset(), NOW).unwrap();
    let origin = Origin::Node(NodeId::parse("node-1").unwrap());
    let boot = BootId::generate(NOW, [1; 10]);
    let tenant = support::tenant();
    let mut recorder = Recorder::new(tenant.clone(), origin.clone(), boot.clone(), key(NODE));
    let who = Who::of_capability(&capability, Some("UMAILER"));
    let what = What {
        resource: Some(Resource::parse("tool.mail").unwrap()),
        action: Some(Action::parse("draft").unwrap()),
        arguments: Some(Digest::plain(b"{}")),
        call_id: Some(Digest::plain(b"call")),
        ..What::default()
    };
    let verdicted = |decision, reasons: Vec<RecordedReason>| {
        let (who, what) = (who.clone(), what.clone());
        let basis = Basis { epoch: Some(Epoch { incarnation: 0, sequence: 9 }), ..Basis::default() };
        let body = Verdicted {
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
        };
        RecordBody::Verdict(Box::new(body))
    };
    let reason = RecordedReason::from(&Reason::new(ReasonCode::RequestReplayed).noted("first: node-2"));
    let allow = recorder.prepare(PartId::first(), verdicted(RecordedDecision::Allow, Vec::new()), NOW);
    let outcome = Outcome {
        intent: allow.id.clone(),
        call_id: Digest::plain(b"call"),
        task: who.task.clone(),
        status: OutcomeStatus::Done,
        reason: None,
        result: Some(Digest::plain(b"{}")),
        result_bytes: Some(2),
        label: None,
        found: Vec::new(),
        elapsed: Some(Millis(3)),
        manifest: Vec::new(),
    };
    let outcome = recorder.prepare(PartId::first(), RecordBody::Outcome(Box::new(outcome)), NOW);
    let deny =
        recorder.prepare(PartId::first(), verdicted(RecordedDecision::Deny, vec![reason.clone()]), NOW);
    let voided = recorder.prepare(PartId::first(), verdicted(RecordedDecision::Allow, Vec::new()), NOW);
    let void = recorder.void(&voided, reason, who, what.clone(), NOW);
    let answer = Answer::Done { result: "{}".to_owned(), label: Label::bottom() };
    let receipt = Some(recorder.receipt(&allow, &what, &answer));
    let reply = CallReply { receipt, answer };
    let id = DecisionId { origin, boot, seq: 0 };
    let current = json!({
        "node_seed": hex::encode(*key(NODE).seed()),
        "message_id_of_the_first": id.message_id().to_string(),
        "records": [show(&allow), show(&outcome), show(&deny), show(&void)],
        "reply_to_the_first": hex::encode(encode(&reply)),
    });
    let file = golden("records.json", &current);
    let mut before = Digest::from_bytes([0; 32]);
    for shown in &file["records"].as_array().unwrap()[..3] {
        let signed: Signed<Record> = decode(&unhex(&shown["envelope"])).unwrap();
        let record = signed.open(|signer| *signer == key(NODE).public()).unwrap();
        assert_eq!((record.prev, &record.tenant), (before, &tenant), "each names the one before");
        before = signed.digest();
        assert_eq!(json!(before.to_string()), shown["digest"]);
    }
}

#[test]
fn control_and_labels() {
    let events = [
        ControlEvent::Keyset(signed_keyset(&[key(BROKER).public()])),
        ControlEvent::HaltAll { on: true },
        ControlEvent::Quarantine { agent: support::agent("mailer"), on: true },
        ControlEvent::Part { part: PartId::numbered(1), stage: PartStage::Current },
        ControlEvent::Part { part: PartId::numbered(1), stage: PartStage::Shared },
        ControlEvent::Part { part: PartId::first(), stage: PartStage::Sealed },
        ControlEvent::Part {
            part: PartId::first(),
            stage: PartStage::Archived(Archived { manifest: Digest::plain(b"manifest"), last: 42 }),
        },
        ControlEvent::LegalHold {
            id: HoldId::parse("matter-42").unwrap(),
            hold: Some(LegalHold { on: Held::Everything, why: "asked for by the court".to_owned() }),
        },
    ];
    let mut state = writ_common::control::ControlState::new(support::tenant(), key(ROOT).public());
    let mut shown = Vec::new();
    for (sequence, event) in (1..).zip(events) {
        let bytes = control_event(state.epoch(), event);
        state.apply(sequence, &bytes).unwrap();
        shown.push(
            json!({"sequence": sequence, "bytes": hex::encode(bytes), "epoch": state.epoch().to_string()}),
        );
    }
    let label = DomainLabel {
        tenant: support::tenant(),
        domain: FlowDomain::parse("p0.t-1").unwrap(),
        label: Label::bottom(),
        origins: Default::default(),
        moved_to: None,
    };
    let current = json!({
        "root_public_key": hex::encode(key(ROOT).public().as_bytes()),
        "events": shown,
        "label": hex::encode(encode(&Signed::new(&label, &key(BROKER)))),
    });
    let file = golden("control.json", &current);
    let mut state = writ_common::control::ControlState::new(support::tenant(), key(ROOT).public());
    for event in file["events"].as_array().unwrap() {
        state.apply(event["sequence"].as_u64().unwrap(), &unhex(&event["bytes"])).unwrap();
        assert_eq!(json!(state.epoch().to_string()), event["epoch"]);
    }
    assert!(state.is_halted());
}
