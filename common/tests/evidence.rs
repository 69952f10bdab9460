//! What verifying says of evidence that is put together here, with keys anybody can know. Whole exports, good and bad,
//! are in tests/verifier, for this verifier and another one.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a failed test may panic")]

mod support;

use support::{BROKER, NODE, NOW, control_event, key, signed_keyset, tenant};
use writ_common::{
    control::{ControlEvent, ControlState},
    digest::Digest,
    epoch::Epoch,
    evidence::{Code, check_proof},
    ids::{BootId, BrokerId, NodeId, PartId},
    keys::PrivateKey,
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

fn control() -> ControlState {
    let mut control = ControlState::new(tenant(), key(support::ROOT).public());
    let events = [
        ControlEvent::Keyset(signed_keyset(&[key(BROKER).public()])),
        ControlEvent::BrokerBoot { broker: broker(), boot: boot(), key: key(WITNESS).public() },
        ControlEvent::NodeKey {
            node: NodeId::parse("node-1").unwrap(),
            key: key(NODE).public(),
            connection: "UNODE".to_owned(),
        },
    ];
    for (sequence, event) in (1..).zip(events) {
        let follows = Epoch { incarnation: 0, sequence: sequence - 1 };
        control.apply(sequence, &control_event(follows, event)).unwrap();
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
    let mut recorder = Recorder::new(tenant(), node(), boot(), PartId::first(), by.clone());
    (0..RECORDS).map(|_| recorder.prepare(denial(), NOW).bytes).collect()
}

/// A proof of the record at position 2, over these leaves.
fn proof(envelopes: &[Vec<u8>], signer: &PrivateKey, witness: Option<&PrivateKey>) -> InclusionProof {
    let tree = Tree::of(envelopes.iter().map(|envelope| leaf_hash(envelope)));
    let checkpoint = Checkpoint {
        log: LogId { tenant: tenant(), origin: node(), boot: boot() },
        size: RECORDS,
        root: tree.root_at(RECORDS).unwrap(),
        is_closed: false,
    };
    let mut note = SignedCheckpoint::sign(checkpoint, signer).unwrap();
    if let Some(witness) = witness {
        note.cosign(&WitnessName(&tenant(), &broker()), witness, NOW).unwrap();
    }
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
