//! What verifying says of evidence that is put together here, with keys anybody can know. Whole exports, good and bad,
//! are in tests/verifier, for this verifier and another one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{BROKER, NODE, NOW, control_event, key, signed_keyset, tenant};
use writ_common::{
    control::{ControlEvent, ControlState},
    digest::Digest,
    epoch::Epoch,
    evidence::{Code, Scope, Severity, Verifier, check_proof, open},
    ids::{BootId, BrokerId, NodeId, PartId},
    keys::PrivateKey,
    part::{Archived, PartStage},
    reason::{Reason, ReasonCode},
    record::{Basis, Origin, RecordBody, RecordedDecision, Verdicted, What, Who},
    recorder::Recorder,
    tlog::{Checkpoint, InclusionProof, LogId, SignedCheckpoint, Tree, WitnessName, leaf_hash},
    verdict::Verdict,
};

/// The witness's key: of a broker's records, not of its control events.
const WITNESS: u8 = 4;
const RECORDS: u64 = 5;

fn broker() -> BrokerId {
    BrokerId::parse("broker-1").unwrap()
}

fn node() -> Origin {
    Origin::Node(NodeId::parse("node-1").unwrap())
}

fn boot() -> BootId {
    BootId::parse("b-1").unwrap()
}

fn enrolled() -> Vec<ControlEvent> {
    vec![
        ControlEvent::Keyset(signed_keyset(&[key(BROKER).public()])),
        ControlEvent::BrokerBoot { broker: broker(), boot: boot(), key: key(WITNESS).public() },
        ControlEvent::NodeKey {
            node: NodeId::parse("node-1").unwrap(),
            key: key(NODE).public(),
            connection: "UNODE".to_owned(),
        },
    ]
}

/// The events as the stream has them.
fn stream(events: Vec<ControlEvent>) -> Vec<(u64, Vec<u8>)> {
    let signed = |(sequence, event)| {
        let follows = Epoch { incarnation: 0, sequence: sequence - 1 };
        (sequence, control_event(follows, event))
    };
    (1..).zip(events).map(signed).collect()
}

fn control() -> ControlState {
    let mut control = ControlState::new(tenant(), key(support::ROOT).public());
    for (sequence, event) in stream(enrolled()) {
        control.apply(sequence, &event).unwrap();
    }
    control
}

fn denial() -> RecordBody {
    let verdict = Verdict::deny(Reason::new(ReasonCode::PolicyDenied), None);
    RecordBody::Verdict(Box::new(Verdicted::new(
        RecordedDecision::Deny,
        &verdict,
        Who::default(),
        What::default(),
        Basis::default(),
    )))
}

/// Denials of one run, signed with this key.
fn envelopes(by: &PrivateKey) -> Vec<Vec<u8>> {
    let mut recorder = Recorder::new(tenant(), node(), boot(), by.clone());
    (0..RECORDS).map(|_| recorder.prepare(PartId::first(), denial(), NOW).bytes).collect()
}

fn log() -> LogId {
    LogId { tenant: tenant(), origin: node(), boot: boot() }
}

fn tree(envelopes: &[Vec<u8>]) -> Tree {
    Tree::of(envelopes.iter().map(|envelope| leaf_hash(envelope)))
}

/// The checkpoint of the first records.
fn checkpoint(tree: &Tree, size: u64, signer: &PrivateKey, witness: Option<&PrivateKey>) -> SignedCheckpoint {
    let root = tree.root_at(size).unwrap();
    let mut note =
        SignedCheckpoint::sign(Checkpoint { log: log(), size, root, is_closed: false }, signer).unwrap();
    if let Some(witness) = witness {
        note.cosign(&WitnessName(&tenant(), &broker()), witness, NOW).unwrap();
    }
    note
}

/// A proof of the record at position 2, over these leaves.
fn proof(envelopes: &[Vec<u8>], signer: &PrivateKey, witness: Option<&PrivateKey>) -> InclusionProof {
    let tree = tree(envelopes);
    let note = checkpoint(&tree, RECORDS, signer, witness);
    InclusionProof::of(&tree, 2, envelopes[2].clone(), note).unwrap()
}

fn codes(proof: &InclusionProof) -> Vec<Code> {
    let (report, record) = check_proof(proof, &control());
    let unread = [Code::RecordForged, Code::RecordChanged, Code::RecordMalformed];
    let codes: Vec<Code> = report.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(report.faults, codes.len());
    assert_eq!(record.is_none(), codes.iter().any(|code| unread.contains(code)));
    codes
}

#[test]
fn a_proof_holds_only_as_it_was_made() {
    let (node_key, witness, stranger) = (key(NODE), key(WITNESS), key(99));
    let records = envelopes(&node_key);
    let good = proof(&records, &node_key, Some(&witness));
    assert_eq!(codes(&good), []);
    assert_eq!(good.checkpoint.witness(&control()).unwrap(), (&broker(), NOW));

    assert_eq!(codes(&proof(&records, &stranger, Some(&witness))), [Code::LogSignature]);
    assert_eq!(codes(&proof(&records, &node_key, None)), [Code::LogUnwitnessed]);
    assert_eq!(codes(&proof(&records, &node_key, Some(&stranger))), [Code::LogUnwitnessed]);
    // The key that signs control events is not the one that signs records.
    assert_eq!(codes(&proof(&records, &node_key, Some(&key(BROKER)))), [Code::LogUnwitnessed]);
    assert_eq!(codes(&proof(&envelopes(&stranger), &node_key, Some(&witness))), [Code::RecordForged]);
    let other = InclusionProof { envelope: records[3].clone(), ..good.clone() };
    assert_eq!(codes(&other), [Code::LogFork, Code::LogFork]);
    // Where the leaves changed places, the path leads there, and the record says another position.
    let mut moved = records;
    moved.swap(2, 3);
    assert_eq!(codes(&proof(&moved, &node_key, Some(&witness))), [Code::LogFork]);
    let elsewhere = InclusionProof { position: RECORDS, ..good.clone() };
    assert_eq!(codes(&elsewhere), [Code::LogFork, Code::LogFork]);
    let mut wrong = good;
    wrong.path[0] = Digest::plain(b"another");
    assert_eq!(codes(&wrong), [Code::LogFork]);
}

#[test]
fn a_brokers_own_log_needs_no_witness_and_another_tenants_none_that_helps() {
    let control = control();
    let signed = |log: &str, by: u8| {
        let log = LogId::parse(log).unwrap();
        let checkpoint = Checkpoint { log, size: 0, root: Digest::plain(b""), is_closed: false };
        SignedCheckpoint::sign(checkpoint, &key(by)).unwrap()
    };
    let brokers = signed("writ-log/v1/acme/broker/broker-1/b-1", WITNESS);
    assert!(brokers.is_recorders(&control) && brokers.is_witnessed(&control));
    assert_eq!(brokers.witness(&control), None);
    assert!(!signed("writ-log/v1/acme/broker/broker-1/b-1", NODE).is_recorders(&control));
    assert!(!signed("writ-log/v1/globex/node/node-1/b-1", NODE).is_recorders(&control));
    let mut nodes = signed("writ-log/v1/acme/node/node-1/b-1", NODE);
    assert!(nodes.is_recorders(&control) && !nodes.is_witnessed(&control));
    nodes.cosign(&WitnessName(&tenant(), &broker()), &key(WITNESS), NOW).unwrap();
    assert!(nodes.is_witnessed(&control));
}

/// The manifest of part p0, in which these positions lay.
fn manifest(positions: &str, checkpoint: &SignedCheckpoint) -> String {
    format!(
        r#"{{"format": "writ-archive/1", "tenant": "acme", "part": "p0", "stream": {{"last": 9}},
            "runs": [{{"log": "{}", "positions": {positions}, "checkpoint": {}}}]}}"#,
        log(),
        serde_json::Value::from(checkpoint.note()),
    )
}

/// What is found where part p0 was put away with this manifest, and the records at these positions are here.
fn found(manifest: &str, envelopes: &[Vec<u8>], here: &[usize], logged: usize) -> Vec<(Severity, Code)> {
    let (p0, p1) = (PartId::first(), PartId::numbered(1));
    let put_away = Archived { manifest: Digest::plain(manifest.as_bytes()), last: 9 };
    let stages = [
        (&p1, PartStage::Current),
        (&p1, PartStage::Shared),
        (&p0, PartStage::Sealed),
        (&p0, PartStage::Archived(put_away)),
    ];
    let mut events = enrolled();
    events.extend(stages.map(|(part, stage)| ControlEvent::Part { part: part.clone(), stage }));
    let mut verifier = Verifier::new(tenant(), key(support::ROOT).public(), Scope::All, NOW);
    for (sequence, event) in stream(events) {
        verifier.control_event(sequence, &event);
    }
    let control = verifier.control().clone();
    for position in here {
        verifier.record(open(&control, 1, None, &envelopes[*position]).map(|(opened, _)| opened));
    }
    let tree = tree(&envelopes[..logged]);
    let note = checkpoint(&tree, tree.size(), &key(NODE), Some(&key(WITNESS)));
    verifier.checkpoint(&log().folder(), note.note(), Ok(tree));
    verifier.archive("p0", manifest.as_bytes());
    let findings = verifier.finish().findings;
    // The run of the broker that is announced left nothing, which has nothing to do with this.
    let of_run = findings.into_iter().filter(|finding| !finding.place.contains("broker"));
    of_run.map(|finding| (finding.severity, finding.code)).collect()
}

#[test]
fn what_was_put_away_is_not_missing_and_has_to_be_what_was_witnessed() {
    let records = envelopes(&key(NODE));
    let tree = tree(&records);
    let then = |size| checkpoint(&tree, size, &key(NODE), Some(&key(WITNESS)));
    let note = [(Severity::Note, Code::RecordArchived)];
    let logged = records.len();
    let fault = |code| (Severity::Fault, code);
    let listed = manifest("[[0, 1], [3, 3]]", &then(4));
    assert_eq!(found(&listed, &records, &[2, 4], logged), note);
    // Taken back from the archive.
    assert_eq!(found(&listed, &records, &[0, 1, 2, 3, 4], logged), []);
    // Not listed and not here: in the middle, and at the end.
    assert_eq!(found(&listed, &records, &[4], logged), [fault(Code::RecordMissing), note[0]]);
    assert_eq!(found(&listed, &records, &[2], logged), [fault(Code::LogRolledBack), note[0]]);
    // A log that has less, or other records, than were witnessed when the part was put away.
    let all = manifest("[[0, 4]]", &then(RECORDS));
    assert_eq!(found(&all, &records, &[], logged), note);
    let uncovered = (Severity::Warning, Code::LogUnwitnessed);
    assert_eq!(found(&all, &records, &[], 3), [fault(Code::LogRolledBack), uncovered, note[0]]);
    let mut others = records.clone();
    others.swap(0, 1);
    assert_eq!(found(&all, &others, &[], logged), [fault(Code::LogFork), note[0]]);
    // Another part's, and one that nobody signed.
    let foreign = listed.replace(r#""p0""#, r#""p1""#);
    let unsaid = [Code::ArchiveManifest, Code::RecordMissing, Code::RecordMissing].map(fault);
    assert_eq!(found(&foreign, &records, &[2, 4], logged), unsaid);
    let stranger = manifest("[[0, 1], [3, 3]]", &checkpoint(&tree, 4, &key(99), None));
    assert_eq!(found(&stranger, &records, &[2, 4], logged), [fault(Code::LogSignature), note[0]]);
}
