//! What the stream was given by earlier runs, read back from their journals.

use std::collections::BTreeMap;

use writ_common::{
    ids::{BootId, PartId},
    recorder::Kept,
};

use crate::{
    JournalError,
    dir::{JournalDir, RunReader},
    entry::Entry,
    segment::State,
};

/// Most records held back until the one before them comes. Records are acknowledged nearly in order.
const HELD_RECORDS_MAX: usize = 16_384;

/// Every record of earlier runs that the stream has acknowledged, run after run, each in the order of its positions.
pub struct KeptRecords<'a> {
    dir: &'a JournalDir,
    runs: std::vec::IntoIter<BootId>,
    run: Option<(BootId, RunReader)>,
    /// Prepared, and not acknowledged so far.
    prepared: BTreeMap<u64, Vec<u8>>,
    /// Acknowledged, and waiting for its turn.
    held: BTreeMap<u64, (Option<PartId>, Vec<u8>)>,
    /// The position that is next; unknown before the first.
    expected: Option<u64>,
}

impl JournalDir {
    /// Every record of earlier runs that the stream has acknowledged.
    #[must_use]
    pub fn kept(&self) -> KeptRecords<'_> {
        let mut runs: Vec<BootId> = self
            .segments
            .iter()
            .filter(|segment| segment.state != State::Gone)
            .map(|segment| segment.boot.clone())
            .collect();
        runs.dedup();
        let runs = runs.into_iter();
        KeptRecords {
            dir: self,
            runs,
            run: None,
            prepared: BTreeMap::new(),
            held: BTreeMap::new(),
            expected: None,
        }
    }
}

impl KeptRecords<'_> {
    fn advance(&mut self) -> Result<Option<Kept>, JournalError> {
        loop {
            let Some((boot, reader)) = &mut self.run else {
                let Some(boot) = self.runs.next() else { return Ok(None) };
                let reader = RunReader::new(self.dir, &boot, State::Kept);
                self.prepared.clear();
                self.expected = None;
                self.run = Some((boot, reader));
                continue;
            };
            let is_due = |seq: &u64| self.expected.is_some_and(|expected| *seq <= expected);
            if self.held.first_key_value().is_some_and(|(seq, _)| is_due(seq))
                || self.held.len() > HELD_RECORDS_MAX
            {
                let boot = boot.clone();
                return Ok(self.release(boot));
            }
            match reader.next()? {
                Some(Entry::Prepared { seq, record, .. }) => {
                    // The first ones may have gone already.
                    self.expected.get_or_insert(seq);
                    self.prepared.insert(seq, record);
                }
                Some(Entry::Committed { seq, part, .. }) => {
                    if let Some(record) = self.prepared.remove(&seq) {
                        self.held.insert(seq, (part, record));
                    }
                }
                Some(Entry::Ended { .. } | Entry::Witnessed(_) | Entry::Closed { .. }) => {}
                None if !self.held.is_empty() => {
                    let boot = boot.clone();
                    return Ok(self.release(boot));
                }
                None => self.run = None,
            }
        }
    }

    fn release(&mut self, boot: BootId) -> Option<Kept> {
        let (seq, (part, record)) = self.held.pop_first()?;
        self.expected = self.expected.max(Some(seq + 1));
        Some(Kept { boot, seq, part, record })
    }
}

impl Iterator for KeptRecords<'_> {
    type Item = Result<Kept, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            // Nothing behind a fault counts.
            (self.run, self.runs) = (None, Vec::new().into_iter());
            self.held.clear();
        }
        next.transpose()
    }
}
