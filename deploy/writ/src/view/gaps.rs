//! Whether records are missing: the numbers of every run have no holes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use writ_common::record::Record;

/// A hole in the numbers of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Who recorded.
    pub origin: String,
    /// The run.
    pub boot: String,
    /// The first missing number.
    pub from: u64,
    /// The last missing number.
    pub to: u64,
}

/// Every hole among these records. What comes after the last record of a run cannot be seen here.
#[must_use]
pub fn find<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<Gap> {
    let mut runs: BTreeMap<(String, String), BTreeSet<u64>> = BTreeMap::new();
    for record in records {
        let key = (record.id.origin.to_string(), record.id.boot.to_string());
        runs.entry(key).or_default().insert(record.id.seq);
    }
    let mut gaps = Vec::new();
    for ((origin, boot), seqs) in runs {
        let mut expected = 0;
        for seq in seqs {
            if seq > expected {
                gaps.push(Gap { origin: origin.clone(), boot: boot.clone(), from: expected, to: seq - 1 });
            }
            expected = seq + 1;
        }
    }
    gaps
}
