//! What is fuzzed: every reader of bytes or text that somebody hostile may have written.
//!
//! Each function takes any bytes and panics if a promise is broken; refusing is always right. The targets call them
//! under libFuzzer (`cargo +nightly fuzz run <target>` in `tests/`), and `common/tests/corpus.rs` calls the same
//! functions on the corpus in every test run. A crash that was found becomes a file of the corpus.

use writ_common::{
    capability::UnverifiedCapability,
    codec::{Message, decode, encode},
    control::ControlDocument,
    fresh::{FreshAnswer, FreshQuestion},
    json::Value,
    keys::PrivateKey,
    keyset::{Keyset, KeysetDocument, KeysetKey},
    label::DomainLabel,
    policy,
    record::Record,
    signed::{Signable, Signed},
    time::{Millis, Timestamp},
    wire,
};

/// A capability: whatever is read and verifies can be looked at, extended and read again.
pub fn capability(bytes: &[u8]) {
    let Ok(token) = UnverifiedCapability::parse(bytes) else { return };
    let (grant, chain) = (token.grant(), token.chain());
    assert!(chain.depth() <= usize::from(grant.max_depth));
    assert!(token.rights().is_subset(&grant.rights));
    assert!(token.expires() <= grant.expires);
    assert_eq!(token.chain_ids().len(), chain.links().len() + 1);
    // Text that is told to people must not fail either.
    let _ = format!("{token:?}");
    chain.checks().for_each(|(_, check)| drop(check.to_string()));

    let again = UnverifiedCapability::parse(token.as_bytes()).expect("what was read is read again");
    assert_eq!(again.chain_ids(), token.chain_ids());
    // The keyset trusts the key of the golden files, so that their signatures are reached and passed.
    let (root, broker) = (PrivateKey::from_seed(&[1; 32]), PrivateKey::from_seed(&[2; 32]));
    let now = Timestamp::from_secs(1_800_000_000);
    let document = KeysetDocument {
        version: 1,
        issued_at: now,
        expires: now.after(Millis::from_secs(86_400)),
        keys: vec![KeysetKey {
            public: broker.public(),
            tenants: vec![grant.tenant.clone()],
            max_ttl: Millis::from_secs(600),
            not_before: Timestamp::default(),
            not_after: now.after(Millis::from_secs(86_400)),
        }],
        withdrawn: Vec::new(),
    };
    let keyset = Keyset::open(&Signed::new(&document, &root), &root.public()).expect("signed by the root");
    if let Ok(capability) = token.clone().verify(&keyset, now) {
        assert_eq!(capability.issuer(), &broker.public());
        assert_eq!(capability.chain_ids(), token.chain_ids());
    }
}

/// Every message: what is accepted is written back as the same bytes.
pub fn envelope(bytes: &[u8]) {
    message::<wire::Call>(bytes);
    message::<wire::CallReply>(bytes);
    message::<wire::IssueReply>(bytes);
    message::<wire::EnrollReply>(bytes);
    message::<wire::AdminReply>(bytes);
    signed::<wire::FetchRequest>(bytes);
    signed::<wire::Relay>(bytes);
    signed::<wire::AgentAnswer>(bytes);
    signed::<wire::IssueRequest>(bytes);
    signed::<wire::EnrollRequest>(bytes);
    signed::<wire::AdminRequest>(bytes);
    signed::<FreshQuestion>(bytes);
    signed::<FreshAnswer>(bytes);
    signed::<Record>(bytes);
    signed::<ControlDocument>(bytes);
    signed::<DomainLabel>(bytes);
    signed::<KeysetDocument>(bytes);
}

fn message<T: Message>(bytes: &[u8]) -> Option<T> {
    let message: T = decode(bytes).ok()?;
    assert_eq!(encode(&message), bytes, "a `{}` with two encodings", T::KIND);
    Some(message)
}

fn signed<T: Signable>(bytes: &[u8])
where
    Signed<T>: Message,
{
    let Some(signed) = message::<Signed<T>>(bytes) else { return };
    if let Ok(value) = signed.peek() {
        assert_eq!(
            writ_common::codec::to_bytes(&value),
            signed.payload(),
            "a `{}` with two payloads",
            T::KIND
        );
    }
    let _ = signed.open(|_| true);
}

/// JSON text: what is read is written in one way, and read from there as the same value.
pub fn json(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(value) = Value::parse(text) else { return };
    let canonical = value.to_string();
    assert_eq!(Value::parse_canonical(&canonical).as_ref(), Ok(&value), "{canonical}");
    assert_eq!(Value::parse_canonical(text).is_ok(), canonical == text);
    value.for_each_leaf(&mut |path, leaf| assert!(path.is_empty() || path.starts_with('/'), "{path} {leaf}"));
}

/// Policy text: a statement that is read and printed is read from there as the same statement.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (statements, findings) = policy::parse("fuzzed.datalog", text);
    drop(findings.to_string());
    for statement in statements {
        let policy::StatementNode::Derive(rule) = statement.node else { continue };
        let printed = format!("{rule};");
        let (again, findings) = policy::parse("printed.datalog", &printed);
        assert!(!findings.has_errors(), "{printed}\n{findings}");
        assert!(
            matches!(again.as_slice(), [one] if one.node == policy::StatementNode::Derive(rule.clone())),
            "{printed}"
        );
    }
}
