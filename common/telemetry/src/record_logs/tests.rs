use std::sync::{Condvar, Mutex};

use opentelemetry_sdk::{error::OTelSdkError, logs::InMemoryLogExporter};
use writ_common::{
    ids::{BootId, NodeId, PartId, TenantId},
    keys::PrivateKey,
    reason::{Reason, ReasonCode},
    record::{Basis, Origin, RecordBody, RecordedDecision, TraceRef, Verdicted, What, Who},
    recorder::{Prepared, Recorder},
    time::Timestamp,
    verdict::Verdict,
};

use super::*;

const AT: Timestamp = Timestamp::from_secs(1_800_000_000);

fn denials(count: usize) -> Vec<Prepared> {
    let mut recorder = Recorder::new(
        TenantId::parse("acme").unwrap(),
        Origin::Node(NodeId::parse("node-1").unwrap()),
        BootId::generate(AT, [1; 10]),
        PrivateKey::from_seed(&[3; 32]),
    );
    let verdict = Verdict::deny(Reason::new(ReasonCode::RightMissing), None);
    let mut denied =
        Verdicted::new(RecordedDecision::Deny, &verdict, Who::default(), What::default(), Basis::default());
    denied.trace = Some(TraceRef { trace: "0a".repeat(16), span: "0b".repeat(8) });
    let mut next = || recorder.prepare(PartId::first(), RecordBody::Verdict(Box::new(denied.clone())), AT);
    (0..count).map(|_| next()).collect()
}

fn logs_to(exporter: impl LogExporter + 'static, queue_max: usize) -> RecordLogs {
    RecordLogs::to(exporter, queue_max, Resource::builder().build(), LogBody::Text)
}

#[test]
fn a_denial_leaves_as_a_warning_with_its_time_and_trace() {
    let exporter = InMemoryLogExporter::default();
    let logs = logs_to(exporter.clone(), 8);
    let prepared = denials(1).remove(0);
    logs.emit(&prepared.record, &prepared.digest);
    logs.0.as_ref().unwrap().provider.force_flush().unwrap();
    let emitted = exporter.get_emitted_logs().unwrap();
    let entry = &emitted[0].record;
    assert_eq!((emitted.len(), entry.event_name()), (1, Some("writ.verdict")));
    assert_eq!(entry.severity_number(), Some(Severity::Warn));
    assert_eq!(entry.timestamp(), Some(to_system_time(AT)));
    let trace = entry.trace_context().unwrap();
    assert_eq!((trace.trace_id, trace.span_id), (TraceId::from_bytes([10; 16]), SpanId::from_bytes([11; 8])));
    let id = AnyValue::from(prepared.id.to_string());
    assert!(entry.attributes_iter().any(|(name, value)| name.as_str() == "writ.record.id" && *value == id));
    assert_eq!(logs.losses(), LogLosses::default());
}

#[test]
fn without_an_exporter_nothing_is_done() {
    let prepared = denials(1).remove(0);
    let logs = RecordLogs::default();
    logs.emit(&prepared.record, &prepared.digest);
    logs.shutdown();
    assert_eq!(logs.losses(), LogLosses::default());
}

/// Takes nothing before it is let go, and then refuses it or not.
#[derive(Clone, Debug, Default)]
struct Stuck {
    gate: Arc<(Mutex<bool>, Condvar)>,
    taken: Arc<AtomicUsize>,
    refuses: bool,
}

impl Stuck {
    fn let_go(&self) {
        *self.gate.0.lock().unwrap() = true;
        self.gate.1.notify_all();
    }
}

impl LogExporter for Stuck {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        drop(self.gate.1.wait_while(self.gate.0.lock().unwrap(), |open| !*open).unwrap());
        if self.refuses {
            return Err(OTelSdkError::InternalFailure("no".to_owned()));
        }
        self.taken.fetch_add(batch.iter().count(), Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_collector_that_stands_still_holds_nobody_up_and_what_is_dropped_is_counted() {
    let exporter = Stuck::default();
    let logs = logs_to(exporter.clone(), 16);
    for prepared in denials(200) {
        logs.emit(&prepared.record, &prepared.digest);
    }
    let dropped = logs.losses().queue_full;
    // One batch may be with the exporter, one queue full of entries waits.
    assert!((200 - 32..=200 - 16).contains(&dropped), "{dropped}");
    exporter.let_go();
    logs.shutdown();
    assert_eq!(
        exporter.taken.load(Ordering::SeqCst) as u64 + dropped,
        200,
        "each either left or was counted"
    );
    assert_eq!(logs.losses(), LogLosses { queue_full: dropped, not_exported: 0 });
}

#[test]
fn what_a_collector_refuses_is_counted() {
    let exporter = Stuck { refuses: true, ..Stuck::default() };
    exporter.let_go();
    let logs = logs_to(exporter, 64);
    for prepared in denials(5) {
        logs.emit(&prepared.record, &prepared.digest);
    }
    logs.shutdown();
    assert_eq!(logs.losses(), LogLosses { queue_full: 0, not_exported: 5 });
}
