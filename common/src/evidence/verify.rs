//! The verifier: everything is put in, then it is asked what does not fit.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    finding::{Code, Finding, Report},
    open::{Opened, Role},
    run::{Log, Run},
};
use crate::{
    codec::decode,
    control::{ControlEvent, ControlFault, ControlState},
    digest::Digest,
    ids::{TaskId, TenantId},
    keys::PublicKey,
    policy::PolicyRevision,
    record::{DecisionId, Origin, Receipt},
    signed::Signed,
    time::{Millis, Timestamp},
    tlog::{LogId, SignedCheckpoint, WitnessName},
    visible::visible,
};

/// A clock may be so far from another's when it is asked which run is later.
const SKEW: Millis = Millis::from_secs(5);

/// What an export is said to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every record of the tenant.
    All,
    /// The records of one task.
    Task(TaskId),
}

/// Puts evidence together and finds what does not fit.
#[derive(Debug)]
pub struct Verifier {
    control: ControlState,
    scope: Scope,
    exported: Timestamp,
    /// Every policy that was put in force, with the sequence of its event.
    policies: Vec<(u64, PolicyRevision)>,
    runs: BTreeMap<LogId, Run>,
    kept: Vec<SignedCheckpoint>,
    receipts: Vec<(usize, Receipt)>,
    findings: Vec<Finding>,
    records: u64,
}

impl Verifier {
    /// A verifier that trusts one root key.
    #[must_use]
    pub fn new(tenant: TenantId, root: PublicKey, scope: Scope, exported: Timestamp) -> Self {
        Self {
            control: ControlState::new(tenant, root),
            scope,
            exported,
            policies: Vec::new(),
            runs: BTreeMap::new(),
            kept: Vec::new(),
            receipts: Vec::new(),
            findings: Vec::new(),
            records: 0,
        }
    }

    /// The control stream as put in so far: the keys records are opened against.
    #[must_use]
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// A finding of the caller's own.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The next event of the control stream.
    pub fn control_event(&mut self, sequence: u64, payload: &[u8]) {
        match self.control.apply(sequence, payload) {
            Ok(document) => {
                if let ControlEvent::Policy(bundle) = &document.event {
                    self.policies.push((sequence, bundle.revision()));
                }
            }
            Err(fault) => {
                let code = match fault {
                    ControlFault::Rollback { .. } | ControlFault::OutOfOrder { .. } => Code::ControlOrder,
                    _ => Code::ControlSignature,
                };
                let place = format!("control event {sequence}");
                self.findings.push(Finding::fault(code, place, visible(&fault.to_string())));
            }
        }
    }

    /// A record that was opened, or why it could not be.
    pub fn record(&mut self, opened: Result<Opened, Finding>) {
        match opened {
            Ok(record) => {
                let run = self.runs.entry(record.log.clone()).or_default();
                self.records += u64::from(run.take(record));
            }
            Err(finding) => self.findings.push(finding),
        }
    }

    /// The newest checkpoint of a log, with the hashes of its leaves if there are tiles.
    pub fn checkpoint(&mut self, place: &str, note: &str, leaves: Option<Vec<Digest>>) {
        let checkpoint = match SignedCheckpoint::parse(note) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                let text = visible(&error.to_string());
                return self.findings.push(Finding::fault(Code::LogSignature, place, text));
            }
        };
        if let Err(why) = self.check_note(&checkpoint, true) {
            return self.findings.push(Finding::fault(Code::LogSignature, place, why));
        }
        let id = checkpoint.checkpoint().log.clone();
        self.runs.entry(id).or_default().log = Some(Log { checkpoint, leaves });
    }

    /// A checkpoint that was kept elsewhere; of a node's the cosignature need not have been kept.
    pub fn kept(&mut self, place: &str, note: &str) {
        let read = SignedCheckpoint::parse(note).map_err(|error| visible(&error.to_string()));
        match read.and_then(|kept| self.check_note(&kept, false).map(|()| kept)) {
            Ok(kept) => self.kept.push(kept),
            Err(why) => self.findings.push(Finding::fault(Code::LogSignature, place, why)),
        }
    }

    fn check_note(&self, note: &SignedCheckpoint, needs_witness: bool) -> Result<(), String> {
        let log = &note.checkpoint().log;
        if log.tenant != *self.control.tenant() {
            return Err(format!("it is of tenant {}", log.tenant));
        }
        if !self.control.record_keys(&log.origin).any(|key| note.check(key).is_ok()) {
            return Err(format!("it is not signed by a record key of {}", log.origin));
        }
        let is_witnessed = self.control.brokers().keys().any(|broker| {
            let name = WitnessName(&log.tenant, broker);
            let origin = Origin::Broker(broker.clone());
            self.control.record_keys(&origin).any(|key| note.check_witness(&name, key).is_ok())
        });
        if needs_witness && matches!(log.origin, Origin::Node(_)) && !is_witnessed {
            return Err("no broker has cosigned it".to_owned());
        }
        Ok(())
    }

    /// A receipt somebody kept: its line, and its envelope.
    pub fn receipt(&mut self, line: usize, envelope: &[u8]) {
        let opened =
            decode::<Signed<Receipt>>(envelope).map_err(|error| error.to_string()).and_then(|signed| {
                let claimed = signed.peek().map_err(|error| error.to_string())?;
                let origin = &claimed.id.origin;
                signed.open(|key| self.control.is_record_key(origin, key)).map_err(|error| error.to_string())
            });
        match opened {
            Ok(receipt) => self.receipts.push((line, receipt)),
            Err(why) => {
                let place = format!("receipt {line}");
                self.findings.push(Finding::fault(Code::ReceiptSignature, place, visible(&why)));
            }
        }
    }

    /// What does not fit.
    #[must_use]
    pub fn finish(self) -> Report {
        let mut findings = Vec::new();
        for (id, run) in &self.runs {
            findings.extend(run.check(id, &self.scope, self.exported));
        }
        self.check_runs(&mut findings);
        self.check_intents(&mut findings);
        self.check_policies(&mut findings);
        self.check_receipts(&mut findings);
        for kept in &self.kept {
            let none = Run::default();
            let run = self.runs.get(&kept.checkpoint().log).unwrap_or(&none);
            // A log that has nothing to do with the task is not in its export.
            if self.scope == Scope::All || run.log.is_some() {
                findings.extend(run.check_kept(kept));
            }
        }
        let witnessed = |run: &Run| run.positions.range(..run.covered()).count() as u64;
        let mut report = Report {
            records: self.records,
            runs: self.runs.len() as u64,
            witnessed: self.runs.values().map(witnessed).sum(),
            ..Report::default()
        };
        report.add(self.findings.into_iter().chain(findings));
        report
    }

    /// A recorder begins a run after the one before has ended; one that never did has lost its disk, or hides it.
    fn check_runs(&self, findings: &mut Vec<Finding>) {
        for (id, run) in &self.runs {
            if !run.is_closed() && self.has_later_run(id, run) {
                let text = "it was never closed, although its recorder has begun another run";
                findings.push(Finding::warning(Code::LogAbandoned, id, text));
            }
        }
    }

    fn has_later_run(&self, id: &LogId, run: &Run) -> bool {
        let Some(last) = run.last_at() else { return false };
        self.runs.iter().any(|(other, later)| {
            other.origin == id.origin
                && other.boot != id.boot
                && later.last_at().is_some_and(|at| at > last.after(SKEW))
        })
    }

    fn check_intents(&self, findings: &mut Vec<Finding>) {
        let mut ended = BTreeSet::new();
        let mut intents: BTreeMap<DecisionId, &Run> = BTreeMap::new();
        for run in self.runs.values() {
            for records in run.positions.values() {
                let is_voided = records.iter().any(|record| record.is_void);
                for record in records {
                    match &record.role {
                        Role::Outcome(intent) => drop(ended.insert(intent.clone())),
                        Role::Intent if !is_voided => drop(intents.insert(record.id(), run)),
                        Role::Intent | Role::Other => {}
                    }
                }
            }
        }
        for intent in ended.iter().filter(|intent| !intents.contains_key(intent)) {
            let text = "it ended, and nothing says that it was allowed";
            findings.push(Finding::fault(Code::RecordMissing, intent, text));
        }
        for (id, run) in intents.iter().filter(|(id, _)| !ended.contains(id)) {
            let log = LogId {
                tenant: self.control.tenant().clone(),
                origin: id.origin.clone(),
                boot: id.boot.clone(),
            };
            findings.push(match run.is_closed() || self.has_later_run(&log, run) {
                true => Finding::fault(
                    Code::IntentWithoutOutcome,
                    id,
                    "it was allowed, and nothing says how it ended",
                ),
                false => Finding::note(Code::IntentOpen, id, "it was allowed and may be under way"),
            });
        }
    }

    fn check_policies(&self, findings: &mut Vec<Finding>) {
        let last = self.control.epoch().sequence;
        for record in self.runs.values().flat_map(|run| run.positions.values().flatten()) {
            let Some(basis) = record.basis else { continue };
            if basis.control > last {
                let text = format!("decided at control event {}, and there are {last}", basis.control);
                findings.push(Finding::fault(Code::ControlOrder, record.id(), text));
                continue;
            }
            let mut until = self.policies.iter().rev().filter(|(sequence, _)| *sequence <= basis.control);
            let was_in_force = match basis.has_fault {
                true => until.any(|(_, revision)| *revision == basis.policy),
                false => until.next().is_some_and(|(_, revision)| *revision == basis.policy),
            };
            if !was_in_force {
                let text = format!(
                    "decided by policy {}, which was not in force at control event {}",
                    basis.policy, basis.control
                );
                findings.push(Finding::fault(Code::PolicyNeverActive, record.id(), text));
            }
        }
    }

    fn check_receipts(&self, findings: &mut Vec<Finding>) {
        for (line, receipt) in &self.receipts {
            let log = LogId {
                tenant: receipt.tenant.clone(),
                origin: receipt.id.origin.clone(),
                boot: receipt.id.boot.clone(),
            };
            let run = self.runs.get(&log);
            let records = run.and_then(|run| run.positions.get(&receipt.id.seq));
            // A receipt is for what was prepared: it may have been voided since.
            let is_there =
                records.is_some_and(|records| records.iter().any(|record| record.prepared == receipt.record));
            if !is_there {
                let text = format!("record {} is not in the export, or is another", receipt.id);
                let place = format!("receipt {line}");
                findings.push(match self.scope {
                    Scope::All => Finding::fault(Code::ReceiptWithoutRecord, place, text),
                    // It may be of another task.
                    Scope::Task(_) => Finding::warning(Code::ReceiptWithoutRecord, place, text),
                });
            }
        }
    }
}
