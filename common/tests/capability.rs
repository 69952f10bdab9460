//! Capabilities from outside: issue, narrow, delegate, verify, and every way in which that is refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use std::collections::BTreeSet;

use biscuit_auth::{BiscuitBuilder, BlockBuilder, KeyPair, builder::Algorithm};
use prost::Message as _;
use support::{
    BROKER, MAILER, NOW, PLANNER, RESEARCHER, ROOT, agent, append, biscuit_key, block, delegated, grant,
    issued, key, keyset, keyset_document, keyset_of, right, schema, verify,
};
use writ_common::{
    capability::{ExtendError, Link, Narrowing, UnverifiedCapability},
    datalog::Term,
    ids::TenantId,
    keyset::{Keyset, KeysetDocument},
    reason::ReasonCode,
    signed::Signed,
    time::{Millis, Timestamp},
};

#[test]
fn what_was_granted_is_what_is_read() {
    let capability = verify(issued().as_bytes()).unwrap();
    assert_eq!(capability.grant(), &grant());
    assert_eq!(capability.issuer(), &key(BROKER).public());
    assert_eq!(capability.chain().holder(), &key(PLANNER).public());
}

#[test]
fn the_chain_tells_who_handed_what_to_whom_and_what_each_gave_up() {
    let capability = verify(delegated().as_bytes()).unwrap();
    let chain = capability.chain();
    let hops: Vec<String> = chain
        .hops()
        .map(|hop| {
            let gave_up: Vec<String> = hop.gave_up.iter().map(ToString::to_string).collect();
            format!("{} {}->{} gave up {}", hop.depth, hop.from, hop.to, gave_up.join(" "))
        })
        .collect();
    assert_eq!(
        hops,
        [
            "1 planner->researcher gave up agent.researcher:invoke",
            "2 researcher->mailer gave up tool.crm:read"
        ]
    );
    assert_eq!(capability.rights(), &BTreeSet::from([right("tool.mail:draft")]));
    assert_eq!(chain.caller(), &agent("mailer"));
    assert_eq!(chain.holder(), &key(MAILER).public());
    assert_eq!(capability.expires(), Timestamp::from_secs(1_800_000_100));
}

#[test]
fn narrowing_keeps_the_holder_and_the_depth() {
    let narrowed =
        issued().narrow(&key(PLANNER), &Narrowing::new().only([right("tool.crm:read")]), &[51; 32]).unwrap();
    let capability = verify(narrowed.as_bytes()).unwrap();
    assert_eq!(capability.chain().depth(), 0);
    assert!(matches!(capability.chain().links(), [Link::Narrowed(_)]));
    assert_eq!(capability.rights(), &BTreeSet::from([right("tool.crm:read")]));
    assert!(issued().is_extended_by(&narrowed));
    assert!(!narrowed.is_extended_by(&issued()));
}

#[test]
fn only_the_holder_can_append() {
    let refused = issued().narrow(&key(MAILER), &Narrowing::new(), &[51; 32]).unwrap_err();
    assert_eq!(refused, ExtendError::NotHolder);
}

#[test]
fn keeping_nothing_is_a_condition_that_never_holds() {
    let narrowed = issued().narrow(&key(PLANNER), &Narrowing::new().only([]), &[51; 32]).unwrap();
    assert!(narrowed.rights().is_empty());
}

/// T04, T05: what Biscuit does not sign changes neither what a capability says nor its identity.
#[test]
fn t04_t05_unsigned_parts_change_nothing() {
    let original = verify(delegated().as_bytes()).unwrap();
    // An unknown protobuf field (number 15, varint 1).
    let padded = [delegated().as_bytes(), &[0x78, 0x01]].concat();
    let mut other_hint = biscuit_auth::format::schema::Biscuit::decode(delegated().as_bytes()).unwrap();
    other_hint.root_key_id = Some(7);
    for bytes in [padded, other_hint.encode_to_vec()] {
        let capability = verify(&bytes).unwrap();
        assert_ne!(capability.as_bytes(), original.as_bytes());
        assert_eq!(capability.chain_ids(), original.chain_ids());
        assert_eq!(UnverifiedCapability::chain_id_of(&bytes), Ok(original.chain_id()));
        assert_eq!(capability.grant(), original.grant());
        assert_eq!(capability.issuer(), original.issuer());
    }
}

/// T06: a flipped bit is refused or changes nothing that counts.
#[test]
fn t06_every_bit_flip_is_refused_or_harmless() {
    let token = delegated();
    let original = verify(token.as_bytes()).unwrap();
    let mut harmless = 0;
    // Every byte, one of its bits: an eighth of all flips per run, all of them over eight runs.
    for index in 0..token.as_bytes().len() {
        let mut bytes = token.as_bytes().to_vec();
        bytes[index] ^= 1 << (index % 8);
        if let Ok(capability) = verify(&bytes) {
            assert_eq!(capability.grant(), original.grant(), "byte {index}");
            assert_eq!(capability.chain(), original.chain(), "byte {index}");
            harmless += 1;
        }
    }
    // The root key hint: a tag, which may become an unknown field, and five bytes of varint.
    assert!(harmless <= 8, "{harmless} flips verified");
}

/// T07: every truncation is refused.
#[test]
fn t07_every_truncation_is_refused() {
    let token = delegated();
    for length in 0..token.as_bytes().len() {
        assert!(verify(&token.as_bytes()[..length]).is_err(), "{length} bytes verified");
    }
}

/// T08: taking the last block off the child's token does not give the parent's.
#[test]
fn t08_stripping_a_block_is_refused() {
    let mut token = schema(&delegated());
    token.blocks.pop();
    assert_eq!(verify(&token.encode_to_vec()).unwrap_err(), ReasonCode::TokenSignature);
}

/// T09: blocks in another order, or from another token of the same root.
#[test]
fn t09_reordered_and_spliced_blocks_are_refused() {
    let mut reordered = schema(&delegated());
    reordered.blocks.swap(0, 1);
    assert_eq!(verify(&reordered.encode_to_vec()).unwrap_err(), ReasonCode::DelegationSignature);

    let other = grant().issue(&key(BROKER), &[60; 32]).unwrap();
    let other = other.narrow(&key(PLANNER), &Narrowing::new(), &[61; 32]).unwrap();
    let mut spliced = schema(&issued().narrow(&key(PLANNER), &Narrowing::new(), &[51; 32]).unwrap());
    spliced.blocks = schema(&other).blocks;
    assert_eq!(verify(&spliced.encode_to_vec()).unwrap_err(), ReasonCode::TokenSignature);
}

/// T10, T11, T12, P01, P02, P05: whatever an appended block may not hold.
#[test]
fn t10_t11_t12_p01_p02_p05_blocks_outside_the_profile_are_refused_before_any_engine() {
    let join: String = (0..5).map(|i| format!("f($a{i}), ")).collect();
    let facts: String = (0..30).map(|i| format!("f({i}); ")).collect();
    for (code, why) in [
        ("right(\"tool.crm\", \"write\");", "another fact"),
        ("right($r, \"write\") <- resource($r);", "a rule"),
        ("time(2020-01-01T00:00:00Z);", "a time of its own"),
        ("check if resource($r), $r.matches(\"(a+)+b\");", "a regular expression"),
        ("check if resource($r), $r == \"x\";", "a lenient comparison"),
        ("check if right(\"tool.crm\", \"read\");", "something else than ambient facts"),
        ("check if {1, 2}.any($x -> $x === 1);", "a closure with parameters"),
        ("check if arg($p, $v), arg($q, $w), label($l);", "a join of lists"),
        ("check if arg($p, $v), resource($r), $p === \"\";", "a list that others follow"),
        ("reject if resource(\"tool.crm\");", "reject"),
        ("check if resource($r) trusting previous;", "a scope"),
        ("check if resource($r), $r.extern::f();", "an external call"),
        ("check if arg(\"/a\", $x), $x + 1 === 2;", "arithmetic"),
        (&format!("{facts} g($a0) <- {join} true;"), "a join that takes minutes"),
        ("check if resource(null);", "null"),
    ] {
        let builder = BlockBuilder::new().code(code).unwrap_or_else(|error| panic!("{code}: {error:?}"));
        let bytes = append(&issued(), PLANNER, builder);
        assert_eq!(verify(&bytes).unwrap_err(), ReasonCode::TokenBlockShape, "{why}: {code}");
    }
    let scoped = block("check if resource($r);").scope(biscuit_auth::builder::Scope::Previous);
    assert_eq!(verify(&append(&issued(), PLANNER, scoped)).unwrap_err(), ReasonCode::TokenBlockShape);
    let long = format!("check if resource(\"{}\");", "x".repeat(2_000));
    assert_eq!(verify(&append(&issued(), PLANNER, block(&long))).unwrap_err(), ReasonCode::TokenBlockShape);
    let many: String = (0..40).map(|_| "check if resource($r);").collect();
    assert_eq!(verify(&append(&issued(), PLANNER, block(&many))).unwrap_err(), ReasonCode::TokenBlockShape);
}

/// T15: version 1 knows no sealed capabilities.
#[test]
fn t15_sealed_tokens_are_refused() {
    let sealed = biscuit_auth::UnverifiedBiscuit::from(issued().as_bytes()).unwrap().seal().unwrap();
    assert_eq!(verify(&sealed.to_vec().unwrap()).unwrap_err(), ReasonCode::TokenSealed);
}

/// T16: a key that is unknown, withdrawn, or of another environment.
#[test]
fn t16_other_roots_are_unknown() {
    let token = UnverifiedCapability::parse(issued().as_bytes()).unwrap();
    let other = keyset_of(&[key(77).public()]);
    assert_eq!(token.clone().verify(&other, NOW).unwrap_err().code(), ReasonCode::TokenUnknownRoot);
    let late = NOW.after(Millis::from_secs(90_000));
    assert_eq!(token.verify(&keyset(), late).unwrap_err().code(), ReasonCode::KeysetExpired);
}

/// T17: anonymous blocks, and blocks signed by somebody who does not hold the capability.
#[test]
fn t17_d04_blocks_by_others_are_refused() {
    let token = biscuit_auth::UnverifiedBiscuit::from(issued().as_bytes()).unwrap();
    let anonymous = token.append(block("check if resource($r);")).unwrap().to_vec().unwrap();
    assert_eq!(verify(&anonymous).unwrap_err(), ReasonCode::TokenThirdParty);
    let stranger = append(&issued(), MAILER, block("check if resource($r);"));
    assert_eq!(verify(&stranger).unwrap_err(), ReasonCode::DelegationSignature);
    let forged = BlockBuilder::new()
        .code(format!(
            "delegate(1, \"researcher\", \"mailer\", hex:{});",
            hex::encode(key(MAILER).public().as_bytes())
        ))
        .unwrap();
    let forged = append(&issued(), PLANNER, forged);
    assert_eq!(verify(&forged).unwrap_err(), ReasonCode::DelegationSignature);
}

/// T18: P-256 anywhere is refused, since its signatures can be given a second form.
#[test]
fn t18_p256_is_refused() {
    let p256 = KeyPair::new_with_algorithm(Algorithm::Secp256r1);
    let token = BiscuitBuilder::new().code("tenant(\"acme\");").unwrap();
    let token = token
        .build_with_key_pair(&biscuit_key(BROKER), biscuit_auth::datalog::SymbolTable::new(), &p256)
        .unwrap();
    assert_eq!(verify(&token.to_vec().unwrap()).unwrap_err(), ReasonCode::TokenAlgorithm);
}

/// T21: bounds on bytes and blocks hold before any signature is looked at.
#[test]
fn t21_bounds() {
    assert_eq!(verify(&vec![0; 16 * 1024 + 1]).unwrap_err(), ReasonCode::TokenTooLarge);
    let mut token = issued();
    for index in 0..15 {
        let narrowed = token.narrow(&key(PLANNER), &Narrowing::new(), &[100 + index; 32]);
        token = narrowed.unwrap();
    }
    assert!(verify(token.as_bytes()).is_ok());
    let refused = token.narrow(&key(PLANNER), &Narrowing::new(), &[99; 32]).unwrap_err();
    assert!(matches!(refused, ExtendError::Refused(reason) if reason.code() == ReasonCode::TokenTooLarge));
}

/// D02: depth and cycles.
#[test]
fn d02_depth_and_cycles() {
    let circle = issued()
        .delegate(
            &key(PLANNER),
            &agent("researcher"),
            &key(RESEARCHER).public(),
            &Narrowing::new(),
            &[51; 32],
        )
        .unwrap()
        .delegate(&key(RESEARCHER), &agent("planner"), &key(PLANNER).public(), &Narrowing::new(), &[52; 32])
        .unwrap_err();
    assert!(matches!(circle, ExtendError::Refused(reason) if reason.code() == ReasonCode::DelegationCycle));
    let mut shallow = grant();
    shallow.max_depth = 0;
    let deep = shallow
        .issue(&key(BROKER), &[50; 32])
        .unwrap()
        .delegate(&key(PLANNER), &agent("mailer"), &key(MAILER).public(), &Narrowing::new(), &[51; 32])
        .unwrap_err();
    assert!(matches!(deep, ExtendError::Refused(reason) if reason.code() == ReasonCode::DelegationDepth));
}

/// K03: a key cannot issue for other tenants or longer than its keyset entry says.
#[test]
fn k03_a_key_is_held_to_its_bounds() {
    let mut long = grant();
    long.expires = NOW.after(Millis::from_secs(601));
    let token = long.issue(&key(BROKER), &[50; 32]).unwrap();
    assert_eq!(verify(token.as_bytes()).unwrap_err(), ReasonCode::TokenLifetime);
    let mut foreign = grant();
    foreign.tenant = TenantId::parse("other").unwrap();
    let token = foreign.issue(&key(BROKER), &[50; 32]).unwrap();
    assert_eq!(verify(token.as_bytes()).unwrap_err(), ReasonCode::TokenUnknownRoot);
}

#[test]
fn an_authority_block_holds_exactly_what_the_format_says() {
    let good = "tenant(\"acme\"); user(\"i\", \"s\"); agent(\"a\"); task(\"t\"); capability(\"c\"); serial(1); \
                domain(\"p0.t\"); max_depth(1); min_epoch(0, 1); expires(2026-12-01T00:00:00Z);";
    let holder = format!("holder(hex:{});", hex::encode(key(PLANNER).public().as_bytes()));
    let instruction = format!("instruction(hex:{});", hex::encode([0; 32]));
    let build = |code: &str| {
        let token = BiscuitBuilder::new().code(code).unwrap().build(&biscuit_key(BROKER)).unwrap();
        UnverifiedCapability::parse(&token.to_vec().unwrap()).map_err(|reason| reason.to_string())
    };
    let whole = format!("{good}{holder}{instruction}");
    assert!(build(&whole).is_ok());
    for (code, fault) in [
        (format!("{whole} admin(true);"), "does not know"),
        (format!("{whole} agent(\"b\");"), "or one twice"),
        (format!("{good}{holder}"), "lacks a fact"),
        (whole.replace("agent(\"a\")", "agent(\"A\")"), "malformed agent"),
        (whole.replace("serial(1)", "serial(\"1\")"), "wrong type"),
        (whole.replace("serial(1)", "serial(-1)"), "negative"),
    ] {
        let error = build(&code).unwrap_err();
        assert!(error.starts_with("token.block_shape") && error.contains(fault), "{fault}: {error}");
    }
}

#[test]
fn arguments_can_be_fixed_on_the_way() {
    let narrowing = Narrowing::new()
        .only_where([(right("tool.crm:read"), vec![("/table".to_owned(), Term::from("customers"))])]);
    let narrowed = issued().narrow(&key(PLANNER), &narrowing, &[51; 32]).unwrap();
    assert_eq!(narrowed.rights(), &BTreeSet::from([right("tool.crm:read")]));
    let Link::Narrowed(link) = &narrowed.chain().links()[0] else { panic!("not a narrowing") };
    assert_eq!(
        link.checks[0].to_string(),
        "check if resource(\"tool.crm\"), action(\"read\"), arg(\"/table\", \"customers\")"
    );
}

/// K12: neither a capability nor what is inside it prints a secret or its own bytes.
#[test]
fn k12_capabilities_do_not_print_themselves() {
    let token = delegated();
    let Some(biscuit_auth::format::schema::proof::Content::NextSecret(secret)) = schema(&token).proof.content
    else {
        panic!("no secret")
    };
    let decimal = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    for shown in [format!("{token:?}"), format!("{:?}", verify(token.as_bytes()).unwrap())] {
        assert!(!shown.contains(&hex::encode(&secret)) && !shown.contains(&decimal(&secret)), "{shown}");
        assert!(!shown.contains(&decimal(&token.as_bytes()[..32])), "{shown}");
    }
}

/// K02: two broker keys overlap, then the old one is withdrawn, whatever list it still stands in.
#[test]
fn k02_old_and_new_key_overlap_until_the_old_one_is_withdrawn() {
    let (by_old, by_new) = (issued(), grant().issue(&key(78), &[50; 32]).unwrap());
    let mut document = keyset_document(&[key(BROKER).public(), key(78).public()]);
    let code = |token: &UnverifiedCapability, document: &KeysetDocument| {
        let keyset = Keyset::open(&Signed::new(document, &key(ROOT)), &key(ROOT).public()).unwrap();
        token.clone().verify(&keyset, NOW).err().map(|reason| reason.code())
    };
    assert_eq!((code(&by_old, &document), code(&by_new, &document)), (None, None));
    document.withdrawn.push(key(BROKER).public());
    assert_eq!(code(&by_old, &document), Some(ReasonCode::TokenUnknownRoot));
    assert_eq!(code(&by_new, &document), None);
}
