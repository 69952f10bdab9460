//! One run: its positions, its order, and its log.

use std::{cell::OnceCell, collections::BTreeMap};

use super::{
    archive::Ranges,
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
    /// The tree its tiles hold, if they lead to the checkpoint's root.
    pub(super) tiles: Option<Tree>,
}

/// What there is of a run.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// By position, every different record that claims it, in the order of the stream.
    pub(super) positions: BTreeMap<u64, Vec<Opened>>,
    pub(super) log: Option<Log>,
    /// The tree of its records, if they are needed and all there.
    tree: OnceCell<Tree>,
}

/// Whether more than one record was prepared at a position. A second signature under the same words is a second record
/// too: its leaf is another.
fn is_forked(records: &[Opened]) -> bool {
    let prepared = records.first().map(|record| record.prepared);
    records.iter().filter(|record| !record.is_void).count() > 1
        || records.iter().any(|record| Some(record.prepared) != prepared)
}

/// What counts at a position: a void rather than what it voids, the last of several, and of a fork the first.
pub(super) fn standing(records: &[Opened]) -> Option<&Opened> {
    let void = records.iter().rfind(|record| record.is_void);
    void.filter(|_| !is_forked(records)).or_else(|| records.first())
}

impl Run {
    /// Takes a record; the same one again is no news.
    pub(super) fn take(&mut self, record: Opened) {
        let at = self.positions.entry(record.seq).or_default();
        if at.iter().all(|known| known.leaf != record.leaf) {
            at.push(record);
        }
    }

    /// The records that count, in order.
    pub(super) fn records(&self) -> impl Iterator<Item = &Opened> {
        self.positions.values().filter_map(|records| standing(records))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.checkpoint.checkpoint().is_closed)
    }

    /// How many records the log's checkpoint covers.
    pub(super) fn covered(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.checkpoint.checkpoint().size)
    }

    /// One more than the last position that has a record here.
    fn end(&self) -> u64 {
        self.positions.last_key_value().map_or(0, |(last, _)| last.saturating_add(1))
    }

    /// The tree of its first records, as far as they are there without a hole.
    fn tree(&self) -> &Tree {
        self.tree.get_or_init(|| {
            let whole = self.positions.iter().enumerate().take_while(|(at, (seq, _))| *at as u64 == **seq);
            Tree::of(whole.filter_map(|(_, (_, records))| Some(standing(records)?.leaf)))
        })
    }

    /// Everything that is wrong with it by itself. `away` are the positions that were put away, `exported` is the latest
    /// time that is known.
    pub(super) fn check(
        &self,
        id: &LogId,
        scope: &Scope,
        away: &Ranges,
        exported: Timestamp,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        if *scope == Scope::All {
            for (from, to) in self.holes(away) {
                let text = format!("records {from} to {to} are missing");
                findings.push(Finding::fault(Code::RecordMissing, id, text));
            }
        }
        self.check_positions(id, &mut findings);
        if let Some(log) = &self.log {
            self.check_log(id, log, scope, away, &mut findings);
        }
        self.check_covered(id, away, exported, &mut findings);
        findings
    }

    /// Ranges of positions before the last that have no record here and were not put away.
    fn holes(&self, away: &Ranges) -> Vec<(u64, u64)> {
        let (mut holes, mut next) = (Vec::new(), 0);
        for seq in self.positions.keys() {
            if *seq > next {
                holes.push((next, seq - 1));
            }
            next = seq.saturating_add(1);
        }
        if away.end() > next {
            holes.push((next, away.end() - 1));
        }
        holes.into_iter().flat_map(|hole| away.outside(hole)).collect()
    }

    fn check_positions(&self, id: &LogId, findings: &mut Vec<Finding>) {
        let none = [Digest::from_bytes([0; 32])];
        let mut before: Option<(u64, &[Opened])> = None;
        for (seq, records) in &self.positions {
            let place = || format!("{id}/{seq}");
            if is_forked(records) {
                let text = format!("{} different records are at this position", records.len());
                findings.push(Finding::fault(Code::RecordFork, place(), text));
            }
            let expected: Option<Vec<Digest>> = match (seq, before) {
                (0, _) => Some(none.to_vec()),
                (_, Some((last, at))) if last + 1 == *seq => {
                    Some(at.iter().map(|record| record.prepared).collect())
                }
                _ => None,
            };
            let follows =
                |record: &Opened| expected.as_ref().is_none_or(|known| known.contains(&record.prev));
            if !records.iter().all(follows) {
                let text = "it names another record as the one before it";
                findings.push(Finding::fault(Code::RecordOrder, place(), text));
            }
            before = Some((*seq, records));
        }
    }

    fn check_log(&self, id: &LogId, log: &Log, scope: &Scope, away: &Ranges, findings: &mut Vec<Finding>) {
        let (said, end) = (log.checkpoint.checkpoint(), self.end().max(away.end()));
        if *scope == Scope::All && said.size > end {
            let text = format!("its checkpoint covers {} records, and there are {end}", said.size);
            findings.push(Finding::fault(Code::LogRolledBack, id, text));
        }
        if said.is_closed && end > said.size {
            let text = format!("it ended after {} records, and there are {end}", said.size);
            findings.push(Finding::fault(Code::LogAfterClose, id, text));
        }
        if let Some(tree) = &log.tiles {
            for (seq, records) in self.positions.range(..said.size) {
                if standing(records).map(|record| record.leaf) != tree.leaf(*seq) {
                    let text = "the log has another record at this position";
                    findings.push(Finding::fault(Code::LogFork, format!("{id}/{seq}"), text));
                }
            }
        } else if self.tree().size() >= said.size && self.tree().root_at(said.size) != Ok(said.root) {
            let text = format!("its first {} records do not lead to its root", said.size);
            findings.push(Finding::fault(Code::LogFork, id, text));
        }
    }

    fn check_covered(&self, id: &LogId, away: &Ranges, now: Timestamp, findings: &mut Vec<Finding>) {
        let beyond: Vec<&Opened> =
            self.positions.range(self.covered()..).filter_map(|(_, records)| standing(records)).collect();
        let here = beyond.iter().filter(|record| away.holds(record.seq)).count() as u64;
        let gone = away.count_from(self.covered()) - here;
        if (beyond.is_empty() && gone == 0) || self.is_closed() {
            return;
        }
        // What was put away is old.
        let is_young = gone == 0 && beyond.iter().all(|record| now.since(record.at) < WITNESSED_WITHIN);
        let text = format!("{} records are in no checkpoint", gone.saturating_add(beyond.len() as u64));
        findings.push(match (&self.log, is_young) {
            (_, true) => Finding::note(Code::LogUnwitnessed, id, text),
            (Some(_), false) => Finding::warning(Code::LogUnwitnessed, id, text),
            (None, false) => Finding::fault(Code::LogUnwitnessed, id, text),
        });
    }

    /// Holds the log to what was kept of it elsewhere.
    pub(super) fn check_kept(&self, kept: &SignedCheckpoint, scope: &Scope) -> Option<Finding> {
        let (said, id) = (kept.checkpoint(), &kept.checkpoint().log);
        // A run that has no part in the task is not in its export.
        if *scope != Scope::All && self.log.is_none() {
            return None;
        }
        let here = if *scope == Scope::All { self.end().max(self.covered()) } else { self.covered() };
        if said.size > here {
            let text =
                format!("a checkpoint kept elsewhere covers {} records, and there are {here}", said.size);
            return Some(Finding::fault(Code::LogRolledBack, id, text));
        }
        let tiles = self.log.as_ref().and_then(|log| log.tiles.as_ref());
        let tree = Some(self.tree()).filter(|tree| tree.size() >= said.size).or(tiles)?;
        if tree.size() < said.size || tree.root_at(said.size) == Ok(said.root) {
            return None;
        }
        let text = format!("a checkpoint kept elsewhere has another root of its first {} records", said.size);
        Some(Finding::fault(Code::LogFork, id, text))
    }
}
