//! How fast the auditors' index is built and answers, against reading everything, in the same run.

#[cfg(test)]
mod archived_tests;
pub mod generate;
#[cfg(test)]
mod tests;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use writ::index::{
    Index, Source, Window,
    fill::Filler,
    questions::{self, OfUser, Paging},
    row::Row,
    source::take_all,
};
use writ_common::{
    capability::Right,
    ids::{AgentId, TenantId},
    time::{Millis, Timestamp},
};

use generate::{BEGIN, DAYS, Stream};

/// Messages that are generated and taken at once.
const BATCH: u64 = 8_192;
/// How often each question is asked; the median counts.
const TIMES: usize = 5;
/// Rows of a page.
const LIMIT: usize = 100;

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    records: u64,
    build_seconds: f64,
    records_per_second: f64,
    index_bytes: u64,
    open_ms: f64,
    /// Reading every row of the index.
    scan_ms: f64,
    questions: Vec<Asked>,
}

#[derive(Debug, Serialize)]
struct Asked {
    question: &'static str,
    rows: usize,
    ms: f64,
    /// How many times as long reading everything takes.
    scan_ratio: f64,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} messages, signatures checked: built in {:.1} s, {:.0}/s; {:.0} MB on disk; opened in {:.1} ms\n\
             reading every row takes {:.0} ms\n",
            self.records,
            self.build_seconds,
            self.records_per_second,
            Duration::from_millis(self.index_bytes / 1_000).as_secs_f64(),
            self.open_ms,
            self.scan_ms
        );
        for asked in &self.questions {
            text += &format!(
                "{:<44} {:>5} rows  {:>9.2} ms  {:>7.0} times faster\n",
                asked.question, asked.rows, asked.ms, asked.scan_ratio
            );
        }
        text
    }
}

/// Builds an index of so many messages in a folder of its own, and asks.
///
/// # Errors
/// If the index does not take or give them.
pub fn run(records: u64) -> Result<Report> {
    let folder = tempfile::Builder::new().prefix("writ-audit-index-").tempdir()?;
    let mut stream = Stream::new(1, records)?;
    let source = Source::Streams { tenant: TenantId::parse("acme")?, root: stream.root };
    let mut filler = Filler::new(Index::open(folder.path(), &source)?)?;
    let (mut building, mut left) = (Duration::ZERO, records);
    while left > 0 {
        // A new part, beside which the old one goes on, as it is where a stream becomes full.
        if left <= records / 2 && !stream.has_rotated() {
            stream.rotate();
        }
        let raws = stream.take(usize::try_from(left.min(BATCH))?)?;
        left = left.saturating_sub(BATCH);
        let began = Instant::now();
        take_all(&mut filler, &raws, &stream.history)?;
        building += began.elapsed();
    }
    let began = Instant::now();
    drop(filler.finish()?);
    building += began.elapsed();
    let began = Instant::now();
    let index = Index::open(folder.path(), &source)?;
    let open_ms = millis(began.elapsed());
    ensure!(index.position().taken.messages == records, "messages were lost");
    let began = Instant::now();
    let mut rows = 0u64;
    index.each_row(|_| rows += 1)?;
    let scan_ms = millis(began.elapsed());
    ensure!(rows == index.position().taken.rows, "rows were lost");
    let questions = ask(&index, &stream, scan_ms)?;
    let seconds = building.as_secs_f64();
    let count = Duration::from_millis(records).as_secs_f64() * 1_000.0;
    Ok(Report {
        records,
        build_seconds: seconds,
        records_per_second: count / seconds,
        index_bytes: bytes_of(folder.path())?,
        open_ms,
        scan_ms,
        questions,
    })
}

fn ask(index: &Index, stream: &Stream, scan_ms: f64) -> Result<Vec<Asked>> {
    let first = Paging { after: None, limit: LIMIT };
    let day = |number: u64| BEGIN.after(Millis::from_secs(number * 86_400));
    let week = Window { from: Some(day(40)), to: Some(day(47)), alive_at: None };
    let user = stream.users.get(17).context("a user")?.subject().to_owned();
    let agent: &AgentId = stream.agents.get(7).context("an agent")?;
    let asked = |agent| OfUser { user: &user, agent, right: None };
    let (right, at) = some_grant(index)?;
    let last = day(DAYS - 1).as_secs() / 86_400;
    let tag = questions::label_terms("tag-7");
    let untrusted = questions::label_terms("untrusted, tag-12");
    let mut questions = Vec::new();
    let mut timed = |question, answer: &dyn Fn() -> Result<usize>| -> Result<()> {
        let mut took = Vec::new();
        let mut rows = 0;
        for _ in 0..TIMES {
            let began = Instant::now();
            rows = answer()?;
            took.push(millis(began.elapsed()));
        }
        took.sort_by(f64::total_cmp);
        let ms = took.get(TIMES / 2).copied().unwrap_or_default();
        questions.push(Asked { question, rows, ms, scan_ratio: scan_ms / ms });
        Ok(())
    };
    let none = Window::default();
    timed("user: first page", &|| Ok(questions::of_user(index, asked(None), none, first)?.rows.len()))?;
    timed("user: one week of three months", &|| {
        Ok(questions::of_user(index, asked(None), week, first)?.rows.len())
    })?;
    timed("user and agent", &|| Ok(questions::of_user(index, asked(Some(agent)), none, first)?.rows.len()))?;
    timed("who-can, in the middle", &|| {
        Ok(questions::who_can(index, &stream.history, &right, at, None)?.holdings.len())
    })?;
    timed("label: one tag, first page", &|| Ok(questions::touched(index, &tag, none, first)?.rows.len()))?;
    timed("label: one tag, one week", &|| Ok(questions::touched(index, &tag, week, first)?.rows.len()))?;
    timed("label: untrusted and a tag, one week", &|| {
        Ok(questions::touched(index, &untrusted, week, first)?.rows.len())
    })?;
    timed("approvals: first page", &|| {
        Ok(questions::approvals(index, None, false, none, first)?.rows.len())
    })?;
    timed("observed: one week", &|| Ok(questions::observed(index, None, week, first)?.rows.len()))?;
    timed("denials: last week against the one before", &|| Ok(questions::denials(index, last, 7)?.len()))?;
    Ok(questions)
}

/// A right somewhere in the middle, and a moment at which somebody held it.
fn some_grant(index: &Index) -> Result<(Right, Timestamp)> {
    let granted = |row: &Row| row.granted.as_ref().and_then(|granted| granted.rights.first().cloned());
    for ordinal in index.position().next / 2..index.position().next {
        if let Some(row) = index.row(ordinal)?
            && let Some(right) = granted(&row)
        {
            return Ok((right, row.at));
        }
    }
    anyhow::bail!("nothing was granted")
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1_000.0
}

fn bytes_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for item in std::fs::read_dir(folder)? {
        let item = item?;
        let meta = item.metadata()?;
        bytes += if meta.is_dir() { bytes_of(&item.path())? } else { meta.len() };
    }
    Ok(bytes)
}
