//! The verifier: everything is put in, then it is asked what does not fit.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    approval::{Approvals, LetPass},
    archive::{NotHere, PutAway, Ranges, place},
    finding::{Code, Finding, Report},
    open::{Opened, Role},
    run::{Log, Run, standing},
};
use crate::{
    codec::decode,
    control::{ControlEvent, ControlFault, ControlState},
    epoch::Epoch,
    ids::{ApprovalId, PartId, TaskId, TenantId},
    keys::PublicKey,
    keyset::KeysetError,
    policy::PolicyRevision,
    record::{DecisionId, Origin, OutcomeStatus, Receipt},
    signed::Signed,
    time::Timestamp,
    tlog::{LogId, SignedCheckpoint, Tree},
    visible::visible,
};

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
    /// The latest time that is known: of the export, of a record, of a control event.
    now: Timestamp,
    /// Every state the control stream was in.
    epochs: BTreeSet<Epoch>,
    /// Every policy that was put in force, with the sequence of its event.
    policies: Vec<(u64, PolicyRevision)>,
    /// Every run the control stream says began, with the sequence of its event.
    boots: BTreeMap<LogId, u64>,
    runs: BTreeMap<LogId, Run>,
    put_away: PutAway,
    approvals: Approvals,
    kept: Vec<SignedCheckpoint>,
    receipts: Vec<(usize, Receipt)>,
    findings: Vec<Finding>,
}

impl Verifier {
    /// A verifier that trusts one root key.
    #[must_use]
    pub fn new(tenant: TenantId, root: PublicKey, scope: Scope, exported: Timestamp) -> Self {
        Self {
            control: ControlState::new(tenant, root),
            scope,
            now: exported,
            epochs: BTreeSet::from([Epoch::default()]),
            policies: Vec::new(),
            boots: BTreeMap::new(),
            runs: BTreeMap::new(),
            put_away: PutAway::default(),
            approvals: Approvals::default(),
            kept: Vec::new(),
            receipts: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// The control stream as put in so far: the keys records are opened against.
    #[must_use]
    pub fn control(&self) -> &ControlState {
        &self.control
    }

    /// Every policy by which a record here was decided and that was in force at some time.
    #[must_use]
    pub fn policies_used(&self) -> BTreeSet<PolicyRevision> {
        let active: BTreeSet<PolicyRevision> = self.policies.iter().map(|(_, revision)| *revision).collect();
        self.records().filter_map(|record| record.policy).filter(|policy| active.contains(policy)).collect()
    }

    /// A finding of the caller's own.
    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// The next event of the control stream.
    pub fn control_event(&mut self, sequence: u64, payload: &[u8]) {
        match self.control.apply(sequence, payload) {
            Ok(document) => {
                self.now = self.now.max(document.at);
                self.epochs.insert(self.control.epoch());
                self.approvals.control_event(sequence, &document.event, document.at, &self.control);
                let (origin, boot) = match document.event {
                    ControlEvent::Policy(bundle) => {
                        return self.policies.push((sequence, bundle.revision()));
                    }
                    ControlEvent::BrokerBoot { broker, boot, .. } => (Origin::Broker(broker), boot),
                    ControlEvent::NodeBoot { node, boot } => (Origin::Node(node), boot),
                    _ => return,
                };
                let log = LogId { tenant: self.control.tenant().clone(), origin, boot };
                self.boots.entry(log).or_insert(sequence);
            }
            Err(fault) => {
                let code = match fault {
                    ControlFault::Rollback { .. }
                    | ControlFault::OutOfOrder { .. }
                    | ControlFault::Keyset {
                        source: KeysetError::Rollback { .. } | KeysetError::Fork { .. },
                        ..
                    } => Code::ControlOrder,
                    _ => Code::ControlSignature,
                };
                let place = format!("control event {sequence}");
                self.findings.push(Finding::fault(code, place, visible(&fault.to_string())));
            }
        }
    }

    /// A record that was opened, or why it could not be.
    pub fn record(&mut self, opened: Result<Opened, Finding>) {
        let record = match opened {
            Ok(record) => record,
            Err(finding) => return self.findings.push(finding),
        };
        if let Some(subject) = &record.strange_subject {
            let text = format!("it is under `{subject}`");
            self.findings.push(Finding::fault(Code::RecordSubject, record.id(), text));
        }
        if let Scope::Task(task) = &self.scope
            && record.task.as_ref() != Some(task)
        {
            let text = format!("it is not of task {task}");
            self.findings.push(Finding::fault(Code::RecordSubject, record.id(), text));
        }
        self.now = self.now.max(record.at);
        self.runs.entry(record.log.clone()).or_default().take(record);
    }

    /// The newest checkpoint of a log as it stands in the folder of that log, with the tree of its tiles, or why there is
    /// none.
    pub fn checkpoint(&mut self, folder: &str, note: &str, tiles: Result<Tree, String>) {
        let checkpoint = match self.recorders(note) {
            Ok(checkpoint) if checkpoint.checkpoint().log.folder() == folder => checkpoint,
            Ok(checkpoint) => {
                let text = format!("it is the checkpoint of {}", checkpoint.checkpoint().log);
                return self.findings.push(Finding::fault(Code::LogSignature, visible(folder), text));
            }
            Err(why) => {
                return self.findings.push(Finding::fault(Code::LogSignature, visible(folder), why));
            }
        };
        let said = checkpoint.checkpoint();
        if !checkpoint.is_witnessed(&self.control) {
            let text = "no broker has cosigned its checkpoint";
            self.findings.push(Finding::fault(Code::LogUnwitnessed, &said.log, text));
        }
        let tiles = tiles.and_then(|tree| {
            let is_its = tree.size() == said.size && tree.root_at(said.size) == Ok(said.root);
            is_its.then_some(tree).ok_or_else(|| "its tiles do not lead to its root".to_owned())
        });
        if let Err(why) = &tiles {
            self.findings.push(Finding::fault(Code::LogTiles, &said.log, visible(why)));
        }
        let id = said.log.clone();
        self.runs.entry(id).or_default().log = Some(Log { checkpoint, tiles: tiles.ok() });
    }

    /// A checkpoint that was kept elsewhere; the cosignature need not have been kept.
    pub fn kept(&mut self, place: &str, note: &str) {
        match self.recorders(note) {
            Ok(kept) => self.kept.push(kept),
            Err(why) => self.findings.push(Finding::fault(Code::LogSignature, place, why)),
        }
    }

    /// The manifest of a part that was put away, by the name of its file without `.json`. The control stream has to be
    /// known before.
    pub fn archive(&mut self, name: &str, manifest: &[u8]) {
        let checkpoints = match self.put_away.take(name, manifest, &self.control) {
            Ok(checkpoints) => checkpoints,
            Err(finding) => return self.findings.push(finding),
        };
        for (log, note) in checkpoints {
            match self.recorders(&note) {
                Ok(kept) if kept.checkpoint().log == log => self.kept.push(kept),
                Ok(kept) => {
                    let text = format!("what it has for {log} is a checkpoint of {}", kept.checkpoint().log);
                    self.findings.push(Finding::fault(Code::LogSignature, place(name), text));
                }
                Err(why) => {
                    let text = format!("its checkpoint of {log}: {why}");
                    self.findings.push(Finding::fault(Code::LogSignature, place(name), text));
                }
            }
        }
    }

    /// A checkpoint that is its recorder's word, or why it is none.
    fn recorders(&self, note: &str) -> Result<SignedCheckpoint, String> {
        let note = SignedCheckpoint::parse(note).map_err(|error| visible(&error.to_string()))?;
        let log = &note.checkpoint().log;
        let why = || {
            format!("it is not signed by a record key of {} in tenant {}", log.origin, self.control.tenant())
        };
        if note.is_recorders(&self.control) { Ok(note) } else { Err(why()) }
    }

    /// What approvers were asked or said, as its envelope.
    pub fn approval(&mut self, envelope: &[u8]) {
        self.approvals.take(envelope);
    }

    /// A receipt somebody kept: its line, and its envelope.
    pub fn receipt(&mut self, line: usize, envelope: &[u8]) {
        let opened =
            decode::<Signed<Receipt>>(envelope).map_err(|error| error.to_string()).and_then(|signed| {
                let claimed = signed.peek().map_err(|error| error.to_string())?;
                let is_ours = |key: &_| {
                    claimed.tenant == *self.control.tenant()
                        && self.control.is_record_key(&claimed.id.origin, key)
                };
                signed.open(is_ours).map_err(|error| error.to_string())
            });
        match opened {
            Ok(receipt) => self.receipts.push((line, receipt)),
            Err(why) => self.bad_receipt(line, &why),
        }
    }

    /// A line of a file of receipts that holds none.
    pub fn bad_receipt(&mut self, line: usize, why: &str) {
        let place = format!("receipt {line}");
        self.findings.push(Finding::fault(Code::ReceiptSignature, place, visible(why)));
    }

    /// What does not fit.
    #[must_use]
    pub fn finish(mut self) -> Report {
        let mut findings = Vec::new();
        if self.scope == Scope::All {
            for log in self.put_away.logs() {
                self.runs.entry(log.clone()).or_default();
            }
        }
        let (none, nothing) = (Run::default(), Ranges::default());
        let not_here = self.put_away.not_here(&self.runs);
        findings.extend(self.put_away.check(&self.control, &self.scope, &not_here));
        for (id, run) in &self.runs {
            let away = self.put_away.of(id).filter(|_| self.scope == Scope::All).unwrap_or(&nothing);
            findings.extend(run.check(id, &self.scope, away, self.now));
            if run.log.is_some() && !run.is_closed() && self.has_later(id) {
                let text = "it was never closed, and its recorder has begun another run";
                findings.push(Finding::warning(Code::LogAbandoned, id, text));
            }
        }
        self.check_boots(&mut findings);
        self.check_intents(&not_here, &mut findings);
        self.records().for_each(|record| self.check_basis(record, &mut findings));
        for passed in self.records().filter_map(|record| record.let_pass.as_deref()) {
            self.approvals.check(&self.control, passed, &mut findings);
        }
        self.check_uses(&mut findings);
        self.check_receipts(&mut findings);
        for kept in &self.kept {
            let run = self.runs.get(&kept.checkpoint().log).unwrap_or(&none);
            findings.extend(run.check_kept(kept, &self.scope));
        }
        let runs = || self.runs.values().filter(|run| !run.positions.is_empty());
        let witnessed = |run: &Run| run.positions.range(..run.covered()).count() as u64;
        let mut report = Report {
            records: runs().map(|run| run.positions.len() as u64).sum(),
            runs: runs().count() as u64,
            witnessed: runs().map(witnessed).sum(),
            ..Report::default()
        };
        report.add(self.findings.into_iter().chain(findings));
        report
    }

    fn records(&self) -> impl Iterator<Item = &Opened> {
        self.runs.values().flat_map(Run::records)
    }

    /// Whether its recorder has begun a later run: by their events, or else by their names, which begin with the time.
    fn has_later(&self, id: &LogId) -> bool {
        self.runs.keys().chain(self.boots.keys()).any(|other| self.is_later(id, other))
    }

    fn is_later(&self, id: &LogId, other: &LogId) -> bool {
        let is_after = match (self.boots.get(id), self.boots.get(other)) {
            (Some(one), Some(other)) => one < other,
            _ => id.boot < other.boot,
        };
        other.origin == id.origin && is_after
    }

    /// Whether the outcome of an intent may be what was put away with its part: the place of a later record of the same
    /// recorder.
    fn may_be_put_away(&self, intent: &Opened, part: &PartId, not_here: &NotHere<'_>) -> bool {
        not_here.get(part).into_iter().flatten().any(|lacking| match *lacking.log == intent.log {
            true => lacking.last > intent.seq,
            false => self.is_later(&intent.log, lacking.log),
        })
    }

    /// Every run the control stream says began has left something.
    fn check_boots(&self, findings: &mut Vec<Finding>) {
        if self.scope != Scope::All {
            return;
        }
        for id in self.boots.keys().filter(|id| !self.runs.contains_key(id)) {
            let text = "the control stream says it began, and nothing of it is here";
            findings.push(match self.has_later(id) {
                true => Finding::warning(Code::LogUnwitnessed, id, text),
                false => Finding::note(Code::LogUnwitnessed, id, text),
            });
        }
    }

    fn log_of(&self, id: &DecisionId) -> LogId {
        LogId::of(self.control.tenant(), id)
    }

    fn standing(&self, id: &DecisionId) -> Option<&Opened> {
        standing(self.runs.get(&self.log_of(id))?.positions.get(&id.seq)?)
    }

    fn check_intents(&self, not_here: &NotHere<'_>, findings: &mut Vec<Finding>) {
        let mut ended = BTreeSet::new();
        for record in self.records() {
            let Role::Outcome { intent, call_id: call, .. } = &record.role else { continue };
            let intended = self.standing(intent);
            let stands = intended.is_some_and(|intended| {
                let is_it = matches!(&intended.role, Role::Intent(Some(id), _) | Role::Allowed(Some(id)) if id == call);
                is_it && intended.log.origin == record.log.origin
            });
            if stands {
                ended.insert(intent.clone());
            } else if intended.is_some() || !self.put_away.holds(&self.log_of(intent), intent.seq) {
                let text = format!("{} says how it ended, and nothing says that it was allowed", record.id());
                findings.push(Finding::fault(Code::RecordMissing, intent, text));
            }
        }
        for (log, run) in &self.runs {
            let is_over = run.is_closed() || self.has_later(log);
            for intent in run.records() {
                let Role::Intent(_, part) = &intent.role else { continue };
                let id = intent.id();
                if ended.contains(&id) {
                    continue;
                }
                findings.push(if !is_over {
                    Finding::note(Code::IntentOpen, id, "it was allowed, and may be under way")
                } else if self.may_be_put_away(intent, part, not_here) {
                    let text = "it was allowed, and how it ended may have been put away";
                    Finding::note(Code::IntentOpen, id, text)
                } else {
                    let text = "it was allowed, and nothing says how it ended";
                    Finding::fault(Code::IntentWithoutOutcome, id, text)
                });
            }
        }
    }

    /// The policy a verdict names was in force, at a state of the control stream that there was.
    fn check_basis(&self, record: &Opened, findings: &mut Vec<Finding>) {
        if let Some(epoch) = record.epoch.filter(|epoch| !self.epochs.contains(epoch)) {
            let text = format!("decided at control state {epoch}, which the control stream here never had");
            findings.push(Finding::fault(Code::ControlOrder, record.id(), text));
        }
        let Some(policy) = record.policy else { return };
        let until = record.epoch.unwrap_or_else(|| self.control.epoch()).sequence;
        let mut active = self.policies.iter().rev().filter(|(sequence, _)| *sequence <= until);
        // Who could not take the policy in force says so, and goes on with an earlier one.
        let is_any = record.has_policy_fault || record.epoch.is_none();
        let was_in_force = match is_any {
            true => active.any(|(_, revision)| *revision == policy),
            false => active.next().is_some_and(|(_, revision)| *revision == policy),
        };
        if !was_in_force {
            let text = format!("decided by policy {policy}, which was not in force then");
            findings.push(Finding::fault(Code::PolicyNeverActive, record.id(), text));
        }
    }

    /// What people let pass counts once: of the calls that name an approval, one ran; a run of a broker issued one right by
    /// it; and an act is used up before anything is allowed.
    fn check_uses(&self, findings: &mut Vec<Finding>) {
        let passed = self.records().filter_map(|record| Some((record.id(), record.let_pass.as_deref()?)));
        let passed: BTreeMap<DecisionId, &LetPass> = passed.collect();
        let (mut ran, mut not_run) = (BTreeSet::new(), BTreeSet::new());
        for record in self.records() {
            let Role::Outcome { intent, status, .. } = &record.role else { continue };
            match status {
                _ if !passed.contains_key(intent) => {}
                OutcomeStatus::Done | OutcomeStatus::Failed => drop(ran.insert(intent)),
                OutcomeStatus::NotRun => drop(not_run.insert(intent)),
                OutcomeStatus::UnknownOutcome => {}
            }
        }
        let mut uses: BTreeMap<(&ApprovalId, Option<LogId>), Vec<&DecisionId>> = BTreeMap::new();
        for (id, passed) in &passed {
            for act in passed.acts() {
                uses.entry((act, None)).or_default().push(id);
            }
            let used = match passed.approval() {
                Some((approval, true)) if !not_run.contains(id) => Some((approval, Some(self.log_of(id)))),
                Some((approval, false)) if ran.contains(id) => Some((approval, None)),
                _ => None,
            };
            used.into_iter().for_each(|used| uses.entry(used).or_default().push(id));
        }
        for ((id, _), by) in uses.iter().filter(|(_, by)| by.len() > 1) {
            let by: Vec<String> = by.iter().map(ToString::to_string).collect();
            let text = format!("it counts once, and let {} pass", by.join(" and "));
            findings.push(Finding::fault(Code::ApprovalReused, format!("approval {id}"), text));
        }
    }

    fn check_receipts(&self, findings: &mut Vec<Finding>) {
        for (line, receipt) in &self.receipts {
            let run = self.runs.get(&self.log_of(&receipt.id));
            let records = run.and_then(|run| run.positions.get(&receipt.id.seq));
            let is_there =
                records.is_some_and(|records| records.iter().any(|record| record.digest == receipt.record));
            let (id, place) = (&receipt.id, format!("receipt {line}"));
            if records.is_none() && self.put_away.holds(&self.log_of(id), id.seq) {
                let text = format!("record {id} was put away and is not here");
                findings.push(Finding::note(Code::RecordArchived, place, text));
            } else if !is_there {
                let text = format!("record {id} is not here, or is another");
                findings.push(Finding::fault(Code::ReceiptWithoutRecord, place, text));
            }
        }
    }
}
