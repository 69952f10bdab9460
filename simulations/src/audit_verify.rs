//! How fast an export is verified, against checking its signatures alone, in the same run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::json;
use writ::evidence::{
    folder::{APPROVALS, CONTROL, FORMAT, FolderWriter, Manifest, ManifestScope, RECORDS},
    read::{Against, verify},
};
use writ_common::{codec::decode, record::Record, signed::Signed, subjects::Subject};

use crate::audit_index::generate::{BEGIN, DAYS, Stream};

/// Messages that are generated and written at once.
const BATCH: u64 = 8_192;
/// How many signatures are checked alone.
const ALONE: usize = 20_000;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    records: u64,
    bytes: u64,
    seconds: f64,
    records_per_second: f64,
    /// Decoding envelopes and checking their signatures, on one core and nothing else.
    signatures_per_second: f64,
    /// Records verified for each signature checked alone in the same time.
    ratio: f64,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        format!(
            "{} records, {:.0} MB of records.jsonl: verified in {:.1} s, {:.0}/s\n\
             signatures alone, on one core: {:.0}/s; verifying everything on all cores: {:.2} x that\n",
            self.records,
            Duration::from_millis(self.bytes / 1_000).as_secs_f64(),
            self.seconds,
            self.records_per_second,
            self.signatures_per_second,
            self.ratio
        )
    }
}

/// Writes an export of so many messages into a folder of its own, and verifies it. Its logs have no checkpoints: what
/// they would add is one hash a record, which is computed all the same. What approvers were shown is not generated, and found
/// missing.
///
/// # Errors
/// If it cannot be written, or is not read as it was written.
pub fn run(records: u64) -> Result<Report> {
    let parent = tempfile::Builder::new().prefix("writ-audit-verify-").tempdir()?;
    let folder = parent.path().join("export");
    let mut stream = Stream::new(1, records)?;
    let mut writer = FolderWriter::create(&folder)?;
    let tenant = stream.history.state.tenant().clone();
    let mut lines = writer.lines(CONTROL)?;
    for (number, payload) in stream.said.iter().enumerate() {
        lines.message(json!({"sequence": number + 1}), &Subject::Control.of(&tenant), payload)?;
    }
    writer.end(lines)?;
    let (mut lines, mut answers) = (writer.lines(RECORDS)?, writer.lines(APPROVALS)?);
    let mut alone = Vec::new();
    let mut left = records;
    while left > 0 {
        for raw in stream.take(usize::try_from(left.min(BATCH))?)? {
            let is_answer = matches!(Subject::parse(&raw.subject), Ok((_, Subject::ApprovalAnswer { .. })));
            let lines = if is_answer { &mut answers } else { &mut lines };
            lines.message(json!({"sequence": raw.sequence}), &raw.subject, &raw.payload)?;
            if !is_answer && alone.len() < ALONE {
                alone.push(raw.payload);
            }
        }
        left = left.saturating_sub(BATCH);
    }
    writer.end(lines)?;
    writer.end(answers)?;
    writer.finish(Manifest {
        root_key: stream.root.to_string(),
        exported_at: BEGIN.after(writ_common::time::Millis::from_secs(DAYS * 86_400)).to_string(),
        format: FORMAT.to_owned(),
        scope: ManifestScope::All(true),
        ..Manifest::of_everything(tenant)
    })?;

    let began = Instant::now();
    let mut good = 0_usize;
    for payload in &alone {
        let signed = decode::<Signed<Record>>(payload);
        good += usize::from(signed.is_ok_and(|signed| signed.open(|_| true).is_ok()));
    }
    let signatures_per_second = per_second(alone.len() as u64, began.elapsed());
    ensure!(good > alone.len() / 2, "the generated records do not verify");

    let bytes = std::fs::metadata(folder.join(RECORDS)).context("records.jsonl")?.len();
    let began = Instant::now();
    let (_, report) = verify(&folder, &Against { root: Some(stream.root), ..Against::default() })?;
    let took = began.elapsed();
    ensure!(report.records > records / 2, "{} of {records} messages were read", report.records);
    let records_per_second = per_second(records, took);
    Ok(Report {
        records,
        bytes,
        seconds: took.as_secs_f64(),
        records_per_second,
        signatures_per_second,
        ratio: records_per_second / signatures_per_second,
    })
}

fn per_second(count: u64, took: Duration) -> f64 {
    Duration::from_millis(count).as_secs_f64() * 1_000.0 / took.as_secs_f64()
}
