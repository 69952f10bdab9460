//! What a record costs on the way of a call: made and signed, journalled, taken into the log's tree, published with an
//! acknowledgement; against the last alone, with as many bytes, in the same run.

use std::{
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Serialize;
use writ_common::{
    codec::decode,
    ids::{BootId, NodeId, PartId, TenantId},
    keys::PrivateKey,
    record::{Origin, Record, RecordBody, RecordKind},
    recorder::{Prepared, Recorder},
    signed::Signed,
    time::{Monotonic, Timestamp},
    tlog::{LogId, RunLog},
};
use writ_journal::{Entry, JournalDir, JournalLimits, Settles, Sync};

use super::{Bench, baseline};
use crate::audit_index::generate::Stream;

/// How many records each part is measured with, and how many where each is flushed to the disk.
const RECORDS: u64 = 5_000;
const FLUSHED: u64 = 300;

/// Microseconds a record.
#[derive(Debug, Serialize)]
pub struct Report {
    bytes: usize,
    make_us: f64,
    journal_us: f64,
    journal_flushed_us: f64,
    tree_us: f64,
    publish_ack_us: f64,
    /// All of it by the publish alone, with the journal in the kernel's hands.
    ratio: f64,
    /// The same with the journal on the disk.
    flushed_ratio: f64,
}

impl Report {
    /// Aligned columns.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let rows = [
            ("make and sign", self.make_us),
            ("journal, kernel", self.journal_us),
            ("journal, disk", self.journal_flushed_us),
            ("tree and checkpoints", self.tree_us),
            ("publish_ack p50", self.publish_ack_us),
        ];
        for (name, value) in rows {
            // Writing into a string does not fail.
            writeln!(text, "{name:<28} {value:>10.1}").unwrap_or_default();
        }
        text + &format!(
            "a record of {} bytes: {:.2} x a bare publish, {:.2} x with the journal on the disk\n",
            self.bytes, self.ratio, self.flushed_ratio
        )
    }
}

/// Measures each part.
///
/// # Errors
/// If the set-up does not come up, or a disk does not take the journal.
pub async fn run(during: Duration) -> Result<Report> {
    let temporary = tempfile::tempdir().context("no temporary folder")?;
    let bench = Bench::start(temporary.path().join(".writ"), 1).await?;
    let publish_ack_us = baseline::publish_ack(&bench.folder, during).await?.p50_us;
    bench.stop()?;
    let (make_us, made) = make()?;
    let bytes = made.first().map_or(0, |prepared| prepared.bytes.len());
    let journal_us = journal(&temporary.path().join("kernel"), Sync::Kernel, &made)?;
    let flushed = made.get(..usize::try_from(FLUSHED)?).context("records")?;
    let journal_flushed_us = journal(&temporary.path().join("disk"), Sync::Always, flushed)?;
    let tree_us = tree(&made)?;
    let rest = make_us + tree_us + publish_ack_us;
    Ok(Report {
        bytes,
        make_us,
        journal_us,
        journal_flushed_us,
        tree_us,
        publish_ack_us,
        ratio: (rest + journal_us) / publish_ack_us,
        flushed_ratio: (rest + journal_flushed_us) / publish_ack_us,
    })
}

fn micros(took: Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e6 / Duration::from_millis(count as u64).as_secs_f64() / 1e3
}

/// ALLOW records as nodes make them.
fn make() -> Result<(f64, Vec<Prepared>)> {
    let mut bodies = Vec::new();
    let mut stream = Stream::new(1, 100_000)?;
    while bodies.len() < 100 {
        for raw in stream.take(1_000)? {
            let record = decode::<Signed<Record>>(&raw.payload).ok().and_then(|signed| signed.peek().ok());
            let intent = record.filter(|record| {
                record.kind() == RecordKind::Allow && matches!(record.id.origin, Origin::Node(_))
            });
            bodies.extend(intent.map(|record| record.body));
        }
    }
    let mut recorder = Recorder::new(
        TenantId::parse("acme")?,
        Origin::Node(NodeId::parse("node-1")?),
        BootId::parse("b-1")?,
        PrivateKey::from_seed(&[1; 32]),
    );
    let bodies: Vec<RecordBody> = bodies.iter().cycle().take(usize::try_from(RECORDS)?).cloned().collect();
    let began = Instant::now();
    let made: Vec<Prepared> = bodies
        .into_iter()
        .map(|body| recorder.prepare(PartId::first(), body, Timestamp::from_secs(1)))
        .collect();
    Ok((micros(began.elapsed(), made.len()), made))
}

/// Each record prepared and committed, in a write of its own.
fn journal(folder: &std::path::Path, sync: Sync, made: &[Prepared]) -> Result<f64> {
    let dir = JournalDir::open(folder, JournalLimits::new(2_048, 7))?;
    let mut journal = dir.create(&BootId::parse("b-1")?, sync, Settles::OnOutcome)?;
    let began = Instant::now();
    for prepared in made {
        let seq = prepared.id.seq;
        let entry = Entry::Prepared {
            seq,
            kind: prepared.kind,
            subject: prepared.subject.clone(),
            message_id: prepared.message_id.clone(),
            ends: None,
            record: prepared.bytes.clone(),
        };
        journal.append(&[entry])?;
        if sync == Sync::Kernel {
            journal.append(&[Entry::Committed { seq, stream: seq + 1, part: None }])?;
        }
    }
    Ok(micros(began.elapsed(), made.len()))
}

/// Every leaf, and a checkpoint every 256.
fn tree(made: &[Prepared]) -> Result<f64> {
    let key = PrivateKey::from_seed(&[1; 32]);
    let mut log = RunLog::new(LogId::parse("writ-log/v1/acme/node/node-1/b-1")?);
    let mut now = 0;
    let began = Instant::now();
    for prepared in made {
        log.prepared(prepared.id.seq, &prepared.bytes, false);
        log.committed(prepared.id.seq);
        if prepared.id.seq % 256 == 255 {
            now += 1_000;
            black_box(log.own(Monotonic::from_millis(now), &key));
            log.own_published(true);
        }
    }
    Ok(micros(began.elapsed(), made.len()))
}
