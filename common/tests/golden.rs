//! Golden files: the format as data that any implementation can be held against (see `golden/README.md`).
//!
//! Every file is checked from its own content, as another implementation would, and then against what this one
//! writes today. `UPDATE_GOLDEN=1 cargo test -p writ-common --test golden` writes the files anew; a difference in
//! a file that was released is a change of format.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]
#![allow(clippy::disallowed_methods, reason = "reads and writes the golden files")]

mod support;

use biscuit_auth::{BiscuitBuilder, BlockBuilder, builder::Algorithm, format::schema};
use prost::Message as _;
use serde_json::{Value, json};
use support::{
    AGENTS, BROKER, MAILER, NODE, NOW, PLANNER, RESEARCHER, ROOT, agent, append, append_payload, biscuit_key,
    block, delegated, grant, issued, key, keyset_document, malleated, payload_of, right, schema, tenant,
};
use writ_common::{
    capability::{Capability, Link, Narrowing, UnverifiedCapability},
    codec::{self, CodecError, decode, encode, from_canonical, to_bytes},
    control::{ControlDocument, ControlEvent, RevocationTarget},
    digest::Digest,
    epoch::Epoch,
    fresh::{FreshAnswer, FreshQuestion},
    ids::{BootId, BrokerId, NodeId, PartId, TaskKind, TenantId},
    keys::{PrivateKey, PublicKey, Purpose},
    keyset::{Keyset, KeysetDocument},
    label::{Confidentiality, DomainLabel, Integrity, Label, Tag},
    policy::{PolicyBundle, PolicyRevision},
    reason::{Reason, ReasonCode},
    record::{
        Basis, DecisionId, Granted, Origin, Outcome, OutcomeStatus, Receipt, Record, RecordBody,
        RecordedDecision, RecordedReason, TraceRef, Verdicted, Void, What, Who,
    },
    request::Arguments,
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
    wire::{Answer, Call, CallProof, CallReply, Proof, ToldReason, UnsignedCall, call_digest, call_id},
};

fn path(file: &str) -> String {
    format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// Checks a file from its content, then that it is what would be written today.
fn check(file: &str, today: &Value, read: impl Fn(&Value)) {
    let mut text = serde_json::to_string_pretty(today).unwrap();
    text.push('\n');
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path(file), &text).unwrap();
    }
    let written = std::fs::read_to_string(path(file)).unwrap_or_default();
    read(&serde_json::from_str(&written).unwrap_or_else(|error| panic!("{file}: {error}")));
    assert!(written == text, "{file} is not what would be written today; see golden/README.md");
}

/// Bytes as the files hold them: hex, or `{"zeros": n}` where it is only their number that counts.
fn bytes(value: &Value) -> Vec<u8> {
    match value["zeros"].as_u64() {
        Some(zeros) => vec![0; usize::try_from(zeros).unwrap()],
        None => hex::decode(value.as_str().unwrap()).unwrap(),
    }
}

fn shown(bytes: &[u8]) -> Value {
    let zeros = bytes.len() > 4096 && bytes.iter().all(|byte| *byte == 0);
    if zeros { json!({ "zeros": bytes.len() }) } else { json!(hex::encode(bytes)) }
}

fn texts<T: ToString>(items: impl IntoIterator<Item = T>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

fn seed(value: &Value) -> PrivateKey {
    PrivateKey::from_seed(&bytes(value).try_into().unwrap())
}

// Capabilities

/// Everything a verified capability says.
fn said(capability: &Capability) -> Value {
    let (grant, chain) = (capability.grant(), capability.chain());
    let links: Vec<Value> = chain
        .links()
        .iter()
        .map(|link| match link {
            Link::Delegated(hop) => json!({
                "delegated": {
                    "depth": hop.depth,
                    "from": hop.from,
                    "to": hop.to,
                    "delegator": hop.delegator,
                    "key": hop.key,
                    "checks": texts(&hop.checks),
                    "gave_up": texts(&hop.gave_up),
                }
            }),
            Link::Narrowed(narrowed) => json!({
                "narrowed": {
                    "by": narrowed.by,
                    "key": narrowed.key,
                    "checks": texts(&narrowed.checks),
                    "gave_up": texts(&narrowed.gave_up),
                }
            }),
        })
        .collect();
    json!({
        "tenant": grant.tenant,
        "user": { "issuer": grant.user.issuer(), "subject": grant.user.subject() },
        "agent": grant.agent,
        "task": grant.task,
        "holder": grant.holder,
        "capability": grant.capability,
        "serial": grant.serial,
        "instruction": grant.instruction,
        "domain": grant.domain,
        "rights": texts(&grant.rights),
        "bounds": texts(&grant.bounds),
        "expires_ms": grant.expires,
        "min_epoch": grant.min_epoch,
        "max_depth": grant.max_depth,
        "issuer": capability.issuer(),
        "links": links,
        "chain_ids": capability.chain_ids(),
        "caller": chain.caller(),
        "holder_now": chain.holder(),
        "rights_left": texts(capability.rights()),
        "ends_ms": capability.expires(),
    })
}

fn case(name: &str, bytes: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.to_vec())
}

fn valid_capabilities() -> Vec<(String, Vec<u8>)> {
    let mut bounded = grant();
    bounded.bounds = Narrowing::new()
        .only_where([(right("tool.crm:read"), vec![("/table".to_owned(), "customers".into())])])
        .checks()
        .to_vec();
    let bounded = bounded.issue(&key(BROKER), &[50; 32]).unwrap();
    let all = "check if arg(\"/table\", $t), {\"customers\", \"orders\"}.contains($t) || !($t.length() > 3);\
               check all label($l), $l !== \"hr\" or integrity(\"trusted\"), time($n), $n < 2030-01-01T00:00:00Z;";
    let mut other_hint = schema(&delegated());
    other_hint.root_key_id = Some(7);
    vec![
        case("issued", issued().as_bytes()),
        case("issued with a bound on an argument", bounded.as_bytes()),
        case(
            "narrowed to one right",
            issued()
                .narrow(&key(PLANNER), &Narrowing::new().only([right("tool.crm:read")]), &[51; 32])
                .unwrap()
                .as_bytes(),
        ),
        case("narrowed by conditions of every form", &append(&issued(), PLANNER, block(all))),
        case("delegated twice, each time narrowed", delegated().as_bytes()),
        case("the same with another root key hint, which nobody signs", &other_hint.encode_to_vec()),
        case(
            "the same with an unknown field outside any block, which nobody signs",
            &[delegated().as_bytes(), &[0x78, 0x01]].concat(),
        ),
    ]
}

fn invalid_capabilities() -> Vec<(String, Vec<u8>)> {
    let whole = delegated();
    let with = |change: &dyn Fn(&mut schema::Biscuit)| {
        let mut token = schema(&whole);
        change(&mut token);
        token.encode_to_vec()
    };
    let code = |name: &str, code: &str| case(name, &append(&issued(), PLANNER, block(code)));
    let hop = |depth: u8, from: &str, to: &str, seed: u8| {
        format!(
            "delegate({depth}, \"{from}\", \"{to}\", hex:{});",
            hex::encode(key(seed).public().as_bytes())
        )
    };
    let library = || biscuit_auth::UnverifiedBiscuit::from(issued().as_bytes()).unwrap();
    let anonymous = library().append_with_keypair(&biscuit_key(51), block("check if resource($r);")).unwrap();
    let p256 = biscuit_auth::PrivateKey::from_bytes(&[7; 32], Algorithm::Secp256r1).unwrap();
    let p256 = BiscuitBuilder::new()
        .code("tenant(\"acme\");")
        .unwrap()
        .build_with_key_pair(
            &biscuit_key(BROKER),
            biscuit_auth::datalog::SymbolTable::new(),
            &biscuit_auth::KeyPair::from(&p256),
        )
        .unwrap();
    let mut long = grant();
    long.expires = NOW.after(Millis::from_secs(601));
    let mut foreign = grant();
    foreign.tenant = TenantId::parse("other").unwrap();
    let many = (0..15u8).fold(issued(), |token, _| {
        let bytes = append_payload(&token, PLANNER, &payload_of(&token, BlockBuilder::new()));
        UnverifiedCapability::parse(&bytes).unwrap()
    });
    let padded = [payload_of(&issued(), block("check if resource($r);")), vec![0x78, 1]].concat();
    let nested = (0..30).fold("$r === \"x\"".to_owned(), |inner, _| format!("({inner}) || $r === \"y\""));
    let cut = whole.as_bytes();
    vec![
        case("no bytes", &[]),
        case("cut short", &cut[..cut.len() - 1]),
        case("no capability at all", b"writ"),
        case("more than 16 KiB", &vec![0; 16 * 1024 + 1]),
        case("17 blocks", &append_payload(&many, PLANNER, &payload_of(&many, BlockBuilder::new()))),
        case(
            "issued by a key the keyset does not list",
            grant().issue(&key(77), &[50; 32]).unwrap().as_bytes(),
        ),
        case(
            "issued for a tenant the key does not serve",
            foreign.issue(&key(BROKER), &[50; 32]).unwrap().as_bytes(),
        ),
        case("lives longer than the key may grant", long.issue(&key(BROKER), &[50; 32]).unwrap().as_bytes()),
        case("last block taken off", &with(&|token| drop(token.blocks.pop()))),
        case("blocks in another order", &with(&|token| token.blocks.swap(0, 1))),
        case("a changed signature", &with(&|token| token.blocks[0].signature[0] ^= 1)),
        case(
            "a signature with the group order added (s + L)",
            &with(&|token| token.blocks[1].signature = malleated(&token.blocks[1].signature)),
        ),
        case(
            "a holder's signature with the group order added (s + L)",
            &with(&|token| {
                let external = token.blocks[1].external_signature.as_mut().unwrap();
                external.signature = malleated(&external.signature);
            }),
        ),
        case(
            "a holder that is a point of small order",
            &with(&|token| {
                token.blocks[0].external_signature.as_mut().unwrap().public_key.key =
                    [&[1][..], &[0; 31]].concat();
            }),
        ),
        case("sealed", &library().seal().unwrap().to_vec().unwrap()),
        case("a P-256 key", &p256.to_vec().unwrap()),
        case("a block nobody signed as holder", &anonymous.to_vec().unwrap()),
        case("a block of signature version 0", &with(&|token| token.blocks[0].version = None)),
        case("a block by somebody who does not hold it", &append(&issued(), MAILER, block("check if true;"))),
        case(
            "a delegation in the name of another agent",
            &append(&issued(), PLANNER, block(&hop(1, "researcher", "mailer", MAILER))),
        ),
        case(
            "a delegation that skips a depth",
            &append(&issued(), PLANNER, block(&hop(2, "planner", "mailer", MAILER))),
        ),
        case(
            "a delegation in a circle",
            &append(&whole, MAILER, block(&hop(3, "mailer", "planner", PLANNER))),
        ),
        case("two delegations in one block", &{
            let both = [hop(1, "planner", "mailer", MAILER), hop(1, "planner", "researcher", RESEARCHER)];
            append(&issued(), PLANNER, block(&both.concat()))
        }),
        code("a right of its own", "right(\"tool.crm\", \"write\");"),
        code("a time of its own", "time(2020-01-01T00:00:00Z);"),
        code("a rule", "right($r, \"write\") <- resource($r);"),
        code("a check about something else than the call", "check if right(\"tool.crm\", \"read\");"),
        code("a rejection", "reject if resource(\"tool.crm\");"),
        code("a regular expression", "check if resource($r), $r.matches(\"(a+)+b\");"),
        code("a lenient comparison", "check if resource($r), $r == \"x\";"),
        code("arithmetic", "check if arg(\"/a\", $x), $x + 1 === 2;"),
        code("a closure with parameters", "check if {1, 2}.any($x -> $x === 1);"),
        code("an external call", "check if resource($r), $r.extern::f();"),
        code("a scope", "check if resource($r) trusting previous;"),
        code("a predicate behind a list", "check if arg($p, $v), resource($r), $p === $r;"),
        code("a join of two lists", "check if arg($p, $v), arg($q, $w);"),
        code("too many operations", &format!("check if resource($r), {nested};")),
        code("a long text", &format!("check if resource(\"{}\");", "x".repeat(1025))),
        code("null", "check if resource(null);"),
        case("a field the block's schema does not know", &append_payload(&issued(), PLANNER, &padded)),
        case("a block that is no protobuf", &append_payload(&issued(), PLANNER, b"writ")),
    ]
}

fn capability_file() -> Value {
    let signed = support::signed_keyset(&[key(BROKER).public()]);
    let keyset = Keyset::open(&signed, &key(ROOT).public()).unwrap();
    let verify =
        |bytes: &[u8]| UnverifiedCapability::parse(bytes).and_then(|token| token.verify(&keyset, NOW));
    let valid: Vec<Value> = valid_capabilities()
        .into_iter()
        .map(|(name, bytes)| {
            let capability = verify(&bytes).unwrap_or_else(|reason| panic!("{name}: {reason}"));
            json!({ "name": name, "bytes": hex::encode(&bytes), "says": said(&capability) })
        })
        .collect();
    let invalid: Vec<Value> = invalid_capabilities()
        .into_iter()
        .map(|(name, bytes)| {
            let reason = verify(&bytes).err().unwrap_or_else(|| panic!("{name} is accepted"));
            json!({ "name": name, "bytes": shown(&bytes), "reason": reason.code() })
        })
        .collect();
    json!({
        "now_ms": NOW,
        "root": key(ROOT).public(),
        "keyset": hex::encode(encode(&signed)),
        "valid": valid,
        "invalid": invalid,
    })
}

#[test]
fn capabilities() {
    check("capabilities.json", &capability_file(), |file| {
        let root = PublicKey::parse(file["root"].as_str().unwrap()).unwrap();
        let signed: Signed<KeysetDocument> = decode(&bytes(&file["keyset"])).unwrap();
        let keyset = Keyset::open(&signed, &root).unwrap();
        let now = Timestamp::from_millis(file["now_ms"].as_u64().unwrap());
        let verify = |case: &Value| {
            UnverifiedCapability::parse(&bytes(&case["bytes"])).and_then(|token| token.verify(&keyset, now))
        };
        for case in file["valid"].as_array().unwrap() {
            let capability = verify(case).unwrap_or_else(|reason| panic!("{}: {reason}", case["name"]));
            assert_eq!(said(&capability), case["says"], "{}", case["name"]);
        }
        for case in file["invalid"].as_array().unwrap() {
            let reason = verify(case).err().unwrap_or_else(|| panic!("{} is accepted", case["name"]));
            assert_eq!(json!(reason.code()), case["reason"], "{}", case["name"]);
        }
    });
}

// Calls

struct CallCase {
    name: &'static str,
    capability: UnverifiedCapability,
    holder: u8,
    right: &'static str,
    arguments: &'static str,
    handover: Option<UnverifiedCapability>,
}

fn call_cases() -> Vec<CallCase> {
    let handover = issued()
        .delegate(
            &key(PLANNER),
            &agent("researcher"),
            &key(RESEARCHER).public(),
            &Narrowing::new(),
            &[51; 32],
        )
        .unwrap();
    let plain = |name, capability, holder, right, arguments| CallCase {
        name,
        capability,
        holder,
        right,
        arguments,
        handover: None,
    };
    vec![
        plain("by the first holder", issued(), PLANNER, "tool.crm:read", r#"{"sql":"SELECT 1"}"#),
        plain("without arguments", issued(), PLANNER, "tool.crm:read", "{}"),
        plain(
            "by the last of a chain",
            delegated(),
            MAILER,
            "tool.mail:draft",
            r#"{"amount":98.7,"body":"é😀\n","n":[1,-2,null,true],"to":["a@b.example"]}"#,
        ),
        CallCase {
            name: "on an agent, with the chain handed over",
            capability: issued(),
            holder: PLANNER,
            right: "agent.researcher:invoke",
            arguments: r#"{"input":"find the customer"}"#,
            handover: Some(handover),
        },
    ]
}

const NONCE: [u8; 16] = [0xa5; 16];

fn signed_call(case: &CallCase) -> Call {
    let right = right(case.right);
    let arguments = Arguments::parse(case.arguments).unwrap();
    let unsigned = UnsignedCall {
        capability: &case.capability,
        resource: &right.resource,
        action: &right.action,
        arguments: &arguments,
        handover: case.handover.as_ref(),
        nonce: NONCE,
        issued_at: NOW,
    };
    unsigned.sign(&key(case.holder))
}

/// The proof a call has to carry, from the call and its capability.
fn proof_of<'a>(call: &'a Call, capability: &'a UnverifiedCapability) -> CallProof<'a> {
    let grant = capability.grant();
    CallProof {
        tenant: &grant.tenant,
        capability: &grant.capability,
        chain: capability.chain_id(),
        holder: *capability.chain().holder(),
        audience: &call.resource,
        nonce: call.nonce,
        issued_at: call.issued_at,
        min_epoch: call.min_epoch,
        call: call_digest(&call.resource, &call.action, &call.arguments, &call.task),
    }
}

/// Ways to write the same call that are not the way.
fn call_variants() -> Vec<(&'static str, Vec<u8>)> {
    let good = encode(&signed_call(&call_cases()[0]));
    let replaced = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|window| window == from).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    let envelope = |body: &[u8]| [b"\x83\xa1v\x01\xa4kind\xa4call\xa4body".as_slice(), body].concat();
    vec![
        ("a byte behind the end", [good.as_slice(), &[0xc0]].concat()),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("no bytes", Vec::new()),
        ("version written in two bytes", replaced(b"\xa1v\x01", b"\xa1v\xcc\x01")),
        ("kind written with a long length", replaced(b"\xa4call", b"\xd9\x04call")),
        ("a text where bytes are due", replaced(b"\xa5nonce\xc4\x10", b"\xa5nonce\xd9\x10")),
        ("envelope with its fields in another order", {
            let body = &good[b"\x83\xa1v\x01\xa4kind\xa4call\xa4body".len()..];
            [b"\x83\xa4kind\xa4call\xa1v\x01\xa4body".as_slice(), body].concat()
        }),
        ("the version twice", [b"\x84\xa1v\x01".as_slice(), &good[1..]].concat()),
        ("an unknown field", [b"\x84".as_slice(), &good[1..], b"\xa1x\x01"].concat()),
        ("the envelope as an array", {
            let body = &good[b"\x83\xa1v\x01\xa4kind\xa4call\xa4body".len()..];
            [b"\x93\x01\xa4call".as_slice(), body].concat()
        }),
        ("an absent field written as nil", {
            let long = replaced(b"\x89\xaacapability", b"\x8a\xaacapability");
            [long.as_slice(), b"\xa8handover\xc0"].concat()
        }),
        ("another kind", replaced(b"\xa4call", b"\xa4cull")),
        ("version 2", replaced(b"\xa1v\x01", b"\xa1v\x02")),
        ("an id outside the grammar", replaced(b"\xa4task\xa3t-1", b"\xa4task\xa3t.1")),
        ("a task with a line break", replaced(b"\xa4task\xa3t-1", b"\xa4task\xa3t\n1")),
        ("nested 200 deep", envelope(&[vec![0x91; 200], vec![0x90]].concat())),
        ("an array that claims 4 GiB", envelope(&[0xdd, 0xff, 0xff, 0xff, 0xff])),
        ("a byte string that claims 4 GiB", envelope(b"\x81\xaacapability\xc6\xff\xff\xff\xff")),
        ("larger than a call may be", vec![0; <Call as codec::Message>::BYTES_MAX + 1]),
    ]
}

fn argument_cases() -> (Vec<&'static str>, Vec<&'static str>) {
    (
        vec![
            "{}",
            r#"{"":3,"a":{"b":[]},"z":2,"é":1}"#,
            r#"[0.5,-1,100,98.7]"#,
            "\"\\u001f\\n\\\"\\\\/\u{7f}\"",
        ],
        vec![
            "",
            "{",
            "{ }",
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            "1.0",
            "1e2",
            "-0",
            "01",
            "9223372036854775808",
            "1e400",
            "NaN",
            r#""\/""#,
            r#""\u00E9""#,
            r#""\ud800""#,
            "\"\n\"",
            "nul",
            "{} {}",
            "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        ],
    )
}

fn call_file() -> Value {
    let calls: Vec<Value> = call_cases()
        .iter()
        .map(|case| {
            let call = signed_call(case);
            let proof = proof_of(&call, &case.capability);
            let Proof::Signature(signature) = &call.proof;
            json!({
                "name": case.name,
                "holder_seed": hex::encode([case.holder; 32]),
                "capability": hex::encode(&call.capability),
                "handover": call.handover.as_ref().map(hex::encode),
                "tenant": proof.tenant,
                "capability_id": proof.capability,
                "chain_id": proof.chain,
                "holder": proof.holder,
                "task": call.task,
                "resource": call.resource,
                "action": call.action,
                "arguments": call.arguments,
                "nonce": hex::encode(call.nonce),
                "issued_at_ms": call.issued_at,
                "min_epoch": call.min_epoch,
                "call_digest": proof.call,
                "call_id": call_id(&proof.holder, &call.nonce),
                "proof_bytes": hex::encode(proof.bytes()),
                "signature": hex::encode(signature.as_bytes()),
                "bytes": hex::encode(encode(&call)),
            })
        })
        .collect();
    let refused: Vec<Value> = call_variants()
        .into_iter()
        .map(|(name, bytes)| {
            let error = decode::<Call>(&bytes).err().unwrap_or_else(|| panic!("{name} is accepted"));
            json!({ "name": name, "bytes": shown(&bytes), "reason": error.code() })
        })
        .collect();
    let (accepted, not_accepted) = argument_cases();
    let accepted = accepted
        .into_iter()
        .map(|text| json!({ "text": text, "digest": Arguments::parse(text).unwrap().digest() }));
    let not_accepted = not_accepted.into_iter().map(|text| {
        let reason = Arguments::parse(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
        json!({ "text": text, "reason": reason.code() })
    });
    json!({
        "calls": calls,
        "refused": refused,
        "arguments": { "accepted": accepted.collect::<Vec<_>>(), "refused": not_accepted.collect::<Vec<_>>() },
    })
}

#[test]
fn calls() {
    check("calls.json", &call_file(), |file| {
        for case in file["calls"].as_array().unwrap() {
            let name = &case["name"];
            let call: Call = decode(&bytes(&case["bytes"])).unwrap();
            assert_eq!(json!(hex::encode(encode(&call))), case["bytes"], "{name}");
            let capability = UnverifiedCapability::parse(&call.capability).unwrap();
            let proof = proof_of(&call, &capability);
            assert_eq!(proof.check(&call.proof), Ok(()), "{name}");
            let holder = seed(&case["holder_seed"]);
            let Proof::Signature(signature) = proof.sign(&holder);
            for (field, ours) in [
                ("arguments", json!(call.arguments)),
                ("call_digest", json!(proof.call)),
                ("call_id", json!(call_id(&holder.public(), &call.nonce))),
                ("proof_bytes", json!(hex::encode(proof.bytes()))),
                ("signature", json!(hex::encode(signature.as_bytes()))),
                ("holder", json!(holder.public())),
                ("chain_id", json!(capability.chain_id())),
                ("capability", json!(hex::encode(&call.capability))),
                ("issued_at_ms", json!(call.issued_at)),
                ("min_epoch", json!(call.min_epoch)),
            ] {
                assert_eq!(ours, case[field], "{name}: {field}");
            }
        }
        for case in file["refused"].as_array().unwrap() {
            let code = decode::<Call>(&bytes(&case["bytes"])).err().as_ref().map(CodecError::code);
            assert_eq!(json!(code), case["reason"], "{}", case["name"]);
        }
        for case in file["arguments"]["accepted"].as_array().unwrap() {
            let arguments = Arguments::parse(case["text"].as_str().unwrap()).unwrap();
            assert_eq!(json!(arguments.digest()), case["digest"], "{case}");
        }
        for case in file["arguments"]["refused"].as_array().unwrap() {
            let code = Arguments::parse(case["text"].as_str().unwrap()).err().map(|reason| reason.code());
            assert_eq!(json!(code), case["reason"], "{case}");
        }
    });
}

// Signed documents

/// A document with its signature.
fn document<T: Signable>(name: &str, value: &T, signer: u8) -> Value {
    let signed = Signed::new(value, &key(signer));
    let purpose = T::PURPOSE.prefix();
    let payload = signed.payload();
    json!({
        "name": name,
        "kind": T::KIND,
        "seed": hex::encode([signer; 32]),
        "value": value,
        "payload": hex::encode(payload),
        "signed_bytes": hex::encode([purpose.as_bytes(), payload].concat()),
        "signature": hex::encode(key(signer).sign(T::PURPOSE, payload).as_bytes()),
        "digest": signed.digest(),
    })
}

/// A document that travels by itself, with the envelope it travels in.
fn message<T: Signable>(name: &str, value: &T, signer: u8) -> Value
where
    Signed<T>: codec::Message,
{
    let mut case = document(name, value, signer);
    case["message"] = json!(hex::encode(encode(&Signed::new(value, &key(signer)))));
    case
}

fn check_document<T: Signable>(case: &Value) {
    let name = &case["name"];
    let payload = bytes(&case["payload"]);
    let value: T = from_canonical(T::KIND, &payload).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(json!(hex::encode(to_bytes(&value))), case["payload"], "{name}");
    let from_json: T = serde_json::from_value(case["value"].clone()).unwrap();
    assert_eq!(json!(hex::encode(to_bytes(&from_json))), case["payload"], "{name}: value");
    let signer = seed(&case["seed"]);
    assert_eq!(json!(Signed::new(&value, &signer).digest()), case["digest"], "{name}");
    let input = [T::PURPOSE.prefix().as_bytes(), &payload].concat();
    assert_eq!(json!(hex::encode(input)), case["signed_bytes"], "{name}");
    let signature = signer.sign(T::PURPOSE, &payload);
    assert_eq!(json!(hex::encode(signature.as_bytes())), case["signature"], "{name}");
}

fn check_messages<T: Signable>(file: &Value, section: &str)
where
    Signed<T>: codec::Message,
{
    let cases = file[section].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        check_document::<T>(case);
        let received: Signed<T> = decode(&bytes(&case["message"])).unwrap();
        assert_eq!(json!(received.digest()), case["digest"], "{}", case["name"]);
        assert!(received.open(|key| *key == seed(&case["seed"]).public()).is_ok(), "{}", case["name"]);
    }
}

fn decision_id(seq: u64) -> DecisionId {
    DecisionId {
        origin: Origin::Node(NodeId::parse("node-1").unwrap()),
        boot: BootId::parse("b-01").unwrap(),
        seq,
    }
}

fn verified(token: &UnverifiedCapability) -> Capability {
    token.clone().verify(&support::keyset(), NOW).unwrap()
}

fn records() -> Vec<(&'static str, Record)> {
    let capability = verified(&delegated());
    let call = signed_call(&call_cases()[2]);
    let id = call_id(capability.chain().holder(), &call.nonce);
    let what = What {
        resource: Some(call.resource.clone()),
        action: Some(call.action.clone()),
        arguments: Some(Digest::plain(call.arguments.as_bytes())),
        call: Some(call_digest(&call.resource, &call.action, &call.arguments, &call.task)),
        call_id: Some(id),
        contract: Some(Digest::plain(b"contract")),
        handover: None,
    };
    let basis = Basis {
        policy: Some(PolicyRevision(Digest::plain(b"policy"))),
        rules: vec!["base.datalog:4".to_owned()],
        epoch: Some(Epoch { incarnation: 0, sequence: 9 }),
        age: Some(Millis(120)),
        label_revision: Some(4),
        label: Some(Label {
            confidentiality: Confidentiality::Tags([Tag::parse("crm").unwrap()].into()),
            integrity: Integrity::Untrusted,
        }),
    };
    let reason = RecordedReason::from(
        &Reason::new(ReasonCode::RightMissing).told("`tool.crm:write` was not granted").noted("line\nbreak"),
    );
    let verdicted = |decision, reasons| Verdicted {
        decision,
        reasons,
        who: Who::of_capability(&capability, Some("UAGENT")),
        what: what.clone(),
        basis: basis.clone(),
        trace: Some(TraceRef {
            trace: "0af7651916cd43dd8448eb211c80319c".into(),
            span: "b7ad6b7169203331".into(),
        }),
        granted: None,
        count: 1,
    };
    let mut aggregated =
        verdicted(RecordedDecision::Deny, vec![RecordedReason::from(&Reason::new(ReasonCode::RequestQuota))]);
    aggregated.count = 40;
    (aggregated.who, aggregated.what, aggregated.basis, aggregated.trace) =
        (Who::default(), What::default(), Basis::default(), None);
    let mut issue = verdicted(RecordedDecision::Allow, Vec::new());
    issue.granted = Some(Box::new(Granted {
        kind: TaskKind::parse("customer-answer").unwrap(),
        rights: grant().rights.into_iter().collect(),
        max_depth: 3,
        expires: grant().expires,
        deadline: NOW.after(Millis::from_secs(3600)),
        key: key(PLANNER).public().id(),
        instruction: grant().instruction,
        idempotency: Digest::plain(b"idempotency"),
        asked: Digest::plain(b"asked"),
        roles: vec!["analyst".to_owned()],
        started: Epoch { incarnation: 0, sequence: 7 },
    }));
    let outcome = Outcome {
        intent: decision_id(0),
        call_id: id,
        task: Some(call.task.clone()),
        status: OutcomeStatus::Done,
        reason: None,
        result: Some(Digest::plain(b"{}")),
        result_bytes: Some(2),
        elapsed: Some(Millis(12)),
    };
    let void = Void {
        prepared: Digest::plain(b"prepared"),
        cause: RecordedReason::from(&Reason::new(ReasonCode::AuditUnavailable)),
        who: Who::of_capability(&capability, None),
        what: what.clone(),
    };
    let body = |verdicted| RecordBody::Verdict(Box::new(verdicted));
    let mut prev = Digest::from_bytes([0; 32]);
    [
        ("allowed call", body(verdicted(RecordedDecision::Allow, Vec::new()))),
        ("outcome", RecordBody::Outcome(Box::new(outcome))),
        ("denied call", body(verdicted(RecordedDecision::Deny, vec![reason]))),
        ("many denials over quota in one", body(aggregated)),
        ("void", RecordBody::Void(Box::new(void))),
        ("capability issued", body(issue)),
    ]
    .into_iter()
    .zip(0..)
    .map(|((name, body), seq)| {
        let record =
            Record { tenant: tenant(), id: decision_id(seq), prev, at: NOW, part: PartId::first(), body };
        prev = Signed::new(&record, &key(NODE)).digest();
        (name, record)
    })
    .collect()
}

fn receipts() -> Vec<(&'static str, Receipt, Answer)> {
    let records = records();
    let denied =
        ToldReason { code: ReasonCode::RightMissing, text: "`tool.crm:write` was not granted".to_owned() };
    [
        ("result", 0, Answer::Done { result: "{}".to_owned() }),
        ("denial", 2, Answer::Denied { reasons: vec![denied] }),
    ]
    .into_iter()
    .map(|(name, at, answer)| {
        let RecordBody::Verdict(verdicted) = &records[at].1.body else { panic!("no verdict") };
        let receipt = Receipt {
            tenant: tenant(),
            id: records[at].1.id.clone(),
            record: Signed::new(&records[at].1, &key(NODE)).digest(),
            call: verdicted.what.call,
            call_id: verdicted.what.call_id,
            answer: answer.digest(),
        };
        (name, receipt, answer)
    })
    .collect()
}

fn labels() -> Vec<(&'static str, DomainLabel)> {
    let tags = Confidentiality::Tags(["crm", "hr-salaries"].map(|tag| Tag::parse(tag).unwrap()).into());
    [
        ("initial", Label::bottom()),
        ("two tags, untrusted", Label { confidentiality: tags, integrity: Integrity::Untrusted }),
        ("top", Label::top()),
    ]
    .map(|(name, label)| (name, DomainLabel { tenant: tenant(), domain: grant().domain, label }))
    .into()
}

fn control_documents() -> Vec<(&'static str, ControlDocument)> {
    let (name, seed) = AGENTS[0];
    let agent = agent(name);
    let boot = BootId::parse("b-01").unwrap();
    let revoke = |target| ControlEvent::Revocation { target, until: NOW.after(Millis::from_secs(3600)) };
    let (one, other) = (key(PLANNER).public().id(), key(RESEARCHER).public().id());
    let capability = grant().capability;
    let hop =
        RevocationTarget::Hop { capability: capability.clone(), delegator: one.clone(), delegatee: other };
    let bundle = [("base.datalog".to_owned(), "allow if request(\"call\");\n".to_owned())];
    [
        ("keyset", ControlEvent::Keyset(support::signed_keyset(&[key(BROKER).public()]))),
        (
            "broker started",
            ControlEvent::BrokerBoot {
                broker: BrokerId::parse("broker-1").unwrap(),
                boot: boot.clone(),
                key: key(BROKER).public(),
            },
        ),
        ("policy", ControlEvent::Policy(PolicyBundle(bundle.into()))),
        (
            "node enrolled",
            ControlEvent::NodeKey {
                node: NodeId::parse("node-1").unwrap(),
                key: key(NODE).public(),
                connection: "UNODE".to_owned(),
            },
        ),
        ("node started", ControlEvent::NodeBoot { node: NodeId::parse("node-1").unwrap(), boot }),
        (
            "join token",
            ControlEvent::JoinToken {
                token: Digest::plain(b"token"),
                agent: agent.clone(),
                expires: NOW.after(Millis::from_secs(600)),
            },
        ),
        (
            "agent key",
            ControlEvent::AgentKey {
                agent: agent.clone(),
                holder: key(seed).public(),
                connection: "UAGENT".to_owned(),
                token: Digest::plain(b"token"),
            },
        ),
        ("quarantine", ControlEvent::Quarantine { agent: agent.clone(), on: true }),
        ("release", ControlEvent::Quarantine { agent: agent.clone(), on: false }),
        ("capability revoked", revoke(RevocationTarget::Capability(capability))),
        ("task revoked", revoke(RevocationTarget::Task(grant().task))),
        ("user revoked", revoke(RevocationTarget::User(grant().user))),
        ("agent revoked", revoke(RevocationTarget::Agent(agent.clone()))),
        ("key revoked", revoke(RevocationTarget::Holder(one.clone()))),
        ("hop revoked", revoke(hop)),
        ("agent key withdrawn", ControlEvent::AgentKeyWithdrawn { agent, key: one }),
        ("halt", ControlEvent::HaltAll { on: true }),
        ("recovered stream", ControlEvent::Incarnation { number: 1 }),
    ]
    .into_iter()
    .zip(0..)
    .map(|((name, event), sequence)| {
        let follows = Epoch { incarnation: 0, sequence };
        (name, ControlDocument { tenant: tenant(), at: NOW, by: "broker-1".to_owned(), follows, event })
    })
    .collect()
}

fn freshness() -> (FreshQuestion, FreshAnswer) {
    let epoch = Epoch { incarnation: 0, sequence: 9 };
    (
        FreshQuestion {
            tenant: tenant(),
            node: NodeId::parse("node-1").unwrap(),
            boot: BootId::parse("b-01").unwrap(),
            nonce: NONCE,
            applied: epoch,
            staleness: Millis::from_secs(60),
            fault: None,
        },
        FreshAnswer { tenant: tenant(), nonce: NONCE, epoch, time: NOW },
    )
}

fn document_file() -> Value {
    let (question, answer) = freshness();
    let receipts = receipts().into_iter().map(|(name, receipt, answer)| {
        let mut case = document(name, &receipt, NODE);
        case["answer"] = json!(hex::encode(to_bytes(&answer)));
        let reply = CallReply { receipt: Some(Signed::new(&receipt, &key(NODE))), answer };
        case["reply"] = json!(hex::encode(encode(&reply)));
        case
    });
    let purposes = [
        Purpose::Admin,
        Purpose::Answer,
        Purpose::Call,
        Purpose::Control,
        Purpose::Enroll,
        Purpose::Fetch,
        Purpose::Fresh,
        Purpose::Hello,
        Purpose::Issue,
        Purpose::Issued,
        Purpose::Keyset,
        Purpose::Label,
        Purpose::Receipt,
        Purpose::Record,
        Purpose::Relay,
    ];
    let records: Vec<Value> = records()
        .iter()
        .map(|(name, record)| {
            let mut case = message(name, record, NODE);
            case["message_id"] = json!(record.id.message_id());
            case
        })
        .collect();
    json!({
        "signing_prefixes": purposes.map(Purpose::prefix),
        "keysets": [message("keyset", &keyset_document(&[key(BROKER).public()]), ROOT)],
        "records": records,
        "receipts": receipts.collect::<Vec<_>>(),
        "labels": labels()
            .iter()
            .map(|(name, label)| message(name, label, BROKER))
            .collect::<Vec<_>>(),
        "control_events": control_documents()
            .iter()
            .map(|(name, event)| message(name, event, BROKER))
            .collect::<Vec<_>>(),
        "freshness_questions": [message("question", &question, NODE)],
        "freshness_answers": [message("answer", &answer, BROKER)],
    })
}

#[test]
fn documents() {
    check("documents.json", &document_file(), |file| {
        check_messages::<KeysetDocument>(file, "keysets");
        check_messages::<Record>(file, "records");
        check_messages::<DomainLabel>(file, "labels");
        check_messages::<ControlDocument>(file, "control_events");
        check_messages::<FreshQuestion>(file, "freshness_questions");
        check_messages::<FreshAnswer>(file, "freshness_answers");
        for case in file["receipts"].as_array().unwrap() {
            check_document::<Receipt>(case);
            let reply: CallReply = decode(&bytes(&case["reply"])).unwrap();
            assert_eq!(json!(reply.answer.digest()), case["value"]["answer"], "{}", case["name"]);
        }
        // Records of one run name the one before.
        let records = file["records"].as_array().unwrap();
        for pair in records.windows(2) {
            assert_eq!(pair[1]["value"]["prev"], pair[0]["digest"]);
        }
        for case in records {
            let id: DecisionId = serde_json::from_value(case["value"]["id"].clone()).unwrap();
            assert_eq!(json!(id.message_id()), case["message_id"]);
        }
    });
}
