//! One run: its positions, its order, and its log.

use std::collections::BTreeMap;

use super::{
    finding::{Code, Finding},
    open::Opened,
    verify::Scope,
};
use crate::{
    digest::Digest,
    time::{Millis, Timestamp},
    tlog::{LogId, SignedCheckpoint, Tree},
};

/// How long a record may be without a checkpoint before somebody should ask why.
const WITNESSED_WITHIN: Millis = Millis::from_secs(10);

/// What an export says of a log.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) checkpoint: SignedCheckpoint,
    /// The hashes of its leaves, if there are tiles.
    pub(super) leaves: Option<Vec<Digest>>,
}

/// What there is of a run.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// By position, every different record that claims it.
    pub(super) positions: BTreeMap<u64, Vec<Opened>>,
    pub(super) log: Option<Log>,
}

impl Run {
    /// Takes a record; the same one again is no news.
    pub(super) fn take(&mut self, record: Opened) -> bool {
        let at = self.positions.entry(record.seq).or_default();
        let is_new = at.iter().all(|known| known.leaf != record.leaf);
        if is_new {
            at.push(record);
        }
        is_new
    }

    pub(super) fn is_closed(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.checkpoint.checkpoint().is_closed)
    }

    /// How many records the log's checkpoint covers.
    pub(super) fn covered(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.checkpoint.checkpoint().size)
    }

    /// The last time one of its records bears.
    pub(super) fn last_at(&self) -> Option<Timestamp> {
        self.positions.values().flatten().map(|record| record.at).max()
    }

    /// Everything that is wrong with it by itself.
    pub(super) fn check(&self, id: &LogId, scope: &Scope, exported: Timestamp) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.check_positions(id, scope, &mut findings);
        self.check_order(id, &mut findings);
        match &self.log {
            Some(log) => self.check_log(id, log, scope, &mut findings),
            None => {}
        }
        self.check_witnessed(id, exported, &mut findings);
        findings
    }

    fn check_positions(&self, id: &LogId, scope: &Scope, findings: &mut Vec<Finding>) {
        for (seq, records) in &self.positions {
            let mut others = records.iter().filter(|record| !record.is_void);
            let (first, second) = (others.next(), others.next());
            let prepared = records.first().map(|record| record.prepared);
            let is_one = records.iter().all(|record| Some(record.prepared) == prepared);
            // A record and its own void: somebody said both that it was and that it was not.
            let contradicts = second.is_some() || !is_one || (first.is_some() && records.len() > 1);
            if contradicts {
                let text = format!("{} different records are at this position", records.len());
                findings.push(Finding::fault(Code::RecordFork, format!("{id}/{seq}"), text));
            }
        }
        if *scope == Scope::All {
            let end = self.positions.last_key_value().map_or(0, |(last, _)| last + 1);
            let covered = self.covered();
            for (from, to) in self.holes(end.max(covered)) {
                let (code, text) = match from >= end {
                    true => (
                        Code::LogRolledBack,
                        format!("its checkpoint covers {covered} records and there are {end}"),
                    ),
                    false => (Code::RecordMissing, format!("records {from} to {to} are missing")),
                };
                findings.push(Finding::fault(code, id, text));
            }
        }
    }

    /// Ranges of positions without a record, up to an end.
    fn holes(&self, end: u64) -> Vec<(u64, u64)> {
        let (mut holes, mut next) = (Vec::new(), 0);
        for seq in self.positions.keys().copied().chain([end]) {
            if seq > next && next < end {
                holes.push((next, seq.min(end) - 1));
            }
            next = seq + 1;
        }
        holes
    }

    fn check_order(&self, id: &LogId, findings: &mut Vec<Finding>) {
        let mut before: Option<(u64, Digest)> = None;
        for (seq, records) in &self.positions {
            let expected = match (seq, before) {
                (0, _) => Some(Digest::from_bytes([0; 32])),
                (_, Some((last, prepared))) if last + 1 == *seq => Some(prepared),
                _ => None,
            };
            for record in records {
                if expected.is_some_and(|expected| expected != record.prev) {
                    let text = "it names another record as the one before it";
                    findings.push(Finding::fault(Code::RecordOrder, format!("{id}/{seq}"), text));
                }
            }
            before = records.first().map(|record| (*seq, record.prepared));
        }
    }

    fn check_log(&self, id: &LogId, log: &Log, scope: &Scope, findings: &mut Vec<Finding>) {
        let said = log.checkpoint.checkpoint();
        if let Some(leaves) = &log.leaves {
            let tree = Tree::of(leaves.iter().copied());
            if tree.root_at(said.size) != Ok(said.root) || tree.size() != said.size {
                let text = format!("the tiles do not lead to the root of its {} records", said.size);
                return findings.push(Finding::fault(Code::LogTiles, id, text));
            }
            for (seq, records) in self.positions.range(..said.size) {
                let leaf = tree.leaf(*seq);
                if records.iter().all(|record| Some(record.leaf) != leaf) {
                    let text = "the log has another record at this position";
                    findings.push(Finding::fault(Code::LogFork, format!("{id}/{seq}"), text));
                }
            }
        } else if *scope == Scope::All {
            let leaves = self.positions.range(..said.size).filter_map(|(_, records)| records.first());
            let tree = Tree::of(leaves.map(|record| record.leaf));
            if tree.size() == said.size && tree.root_at(said.size) != Ok(said.root) {
                let text = format!("the records do not lead to the root of its first {}", said.size);
                findings.push(Finding::fault(Code::LogFork, id, text));
            }
        } else {
            findings.push(Finding::fault(Code::LogTiles, id, "there are no tiles"));
        }
        if said.is_closed
            && let Some((seq, _)) = self.positions.range(said.size..).next()
        {
            let text = format!("it ended after {} records", said.size);
            findings.push(Finding::fault(Code::LogAfterClose, format!("{id}/{seq}"), text));
        }
    }

    fn check_witnessed(&self, id: &LogId, exported: Timestamp, findings: &mut Vec<Finding>) {
        let beyond: Vec<&Opened> =
            self.positions.range(self.covered()..).flat_map(|(_, records)| records).collect();
        let late = beyond.iter().filter(|record| exported.since(record.at) > WITNESSED_WITHIN).count();
        if late > 0 {
            let text = format!("{late} records are older than 10 s and no checkpoint covers them");
            findings.push(Finding::warning(Code::LogUnwitnessed, id, text));
        } else if !beyond.is_empty() {
            let text = format!("{} records are so new that no checkpoint covers them yet", beyond.len());
            findings.push(Finding::note(Code::LogUnwitnessed, id, text));
        }
    }

    /// Holds the log to what was kept of it elsewhere.
    pub(super) fn check_kept(&self, kept: &SignedCheckpoint) -> Option<Finding> {
        let (said, id) = (kept.checkpoint(), &kept.checkpoint().log);
        let leaves: Vec<Digest> = match self.log.as_ref().and_then(|log| log.leaves.as_ref()) {
            Some(leaves) => leaves.clone(),
            None => self.positions.values().filter_map(|at| at.first()).map(|record| record.leaf).collect(),
        };
        let tree = Tree::of(leaves);
        if tree.size() < said.size {
            let text = format!(
                "a checkpoint kept elsewhere covers {} records, this export {}",
                said.size,
                tree.size()
            );
            return Some(Finding::fault(Code::LogRolledBack, id, text));
        }
        let is_same = tree.root_at(said.size) == Ok(said.root);
        let text = format!("a checkpoint kept elsewhere has another root of its first {} records", said.size);
        (!is_same).then(|| Finding::fault(Code::LogFork, id, text))
    }
}
