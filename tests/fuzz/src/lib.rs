//! What must hold of any bytes. The fuzzer looks for bytes of which it does not; the usual tests replay its corpus.

use writ_common::{
    capability::UnverifiedCapability,
    codec::{Message, decode, encode},
    control::ControlDocument,
    json::Value,
    policy::{PolicyBundle, PolicySet},
    record::Record,
    signed::Signed,
    wire::{AgentAnswer, Call, CallReply, EnrollRequest, IssueReply, IssueRequest, Relay},
};

/// Capabilities: read without a panic, and what is read is the whole of it.
pub fn capability(data: &[u8]) {
    let Ok(read) = UnverifiedCapability::parse(data) else { return };
    assert_eq!(read.as_bytes(), data);
    assert!(
        read.rights().iter().all(|right| read.grant().rights.contains(right)),
        "a block widened the grant"
    );
    assert!(read.expires() <= read.grant().expires, "a block lengthened the grant");
}

fn canonical<T: Message>(data: &[u8]) {
    if let Ok(message) = decode::<T>(data) {
        assert_eq!(encode(&message), data, "two encodings of one message");
    }
}

/// Messages: what is accepted has no other encoding.
pub fn envelope(data: &[u8]) {
    canonical::<Call>(data);
    canonical::<CallReply>(data);
    canonical::<IssueReply>(data);
    canonical::<Signed<AgentAnswer>>(data);
    canonical::<Signed<ControlDocument>>(data);
    canonical::<Signed<EnrollRequest>>(data);
    canonical::<Signed<IssueRequest>>(data);
    canonical::<Signed<Record>>(data);
    canonical::<Signed<Relay>>(data);
}

/// Texts: arguments have one form, and policies are read or refused with places that exist.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(value) = Value::parse(text) {
        let written = value.to_string();
        assert_eq!(Value::parse_canonical(&written).as_ref(), Ok(&value));
    }
    let files = [("base.datalog".to_owned(), text.to_owned())];
    if let Err(findings) = PolicySet::load(&PolicyBundle(files.into_iter().collect())) {
        let _shown = findings.to_string();
    }
}
