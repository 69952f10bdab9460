//! Numbers in the Prometheus text format (version 0.0.4), built by hand: a dozen families need no registry.
//!
//! What an event loop counts, it owns; nothing here is shared or locked. Labels come from closed lists (verdicts,
//! planes, reason codes, issuers of the configuration), never from a request.

use std::{fmt::Write as _, time::Duration};

use writ_common::{
    control::ControlState,
    counts::Counts,
    reason::{Class, ReasonCode},
    record::{OutcomeStatus, Record, RecordBody, RecordKind},
    time::Timestamp,
};

use crate::LogLosses;

/// The content type of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of decision times in seconds: 10 µs to 100 ms.
pub const DECISION_SECONDS: &[f64] =
    &[1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 1e-1];
/// Upper bounds of how many times a capability was handed on.
pub const CHAIN_DEPTHS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0];

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until the process ends.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The text, as it is built.
#[derive(Debug, Default)]
pub struct Exposition(String);

impl Exposition {
    /// Begins a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(name, kind, help);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _written = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// One number of a family.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let labels = labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value)));
            let _written = write!(self.0, "{{{}}}", labels.collect::<Vec<_>>().join(","));
        }
        let _written = writeln!(self.0, " {value}");
    }

    /// A family with one sample.
    pub fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A histogram, with its head.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let mut total = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            total += count;
            self.sample(&format!("{name}_bucket"), &[("le", &bound.to_string())], as_f64(total));
        }
        total += histogram.above;
        self.sample(&format!("{name}_bucket"), &[("le", "+Inf")], as_f64(total));
        self.sample(&format!("{name}_sum"), &[], histogram.sum);
        self.sample(&format!("{name}_count"), &[], as_f64(total));
    }

    /// What a recorder counted: decisions, chain depths.
    pub fn counts(&mut self, counts: &Counts) {
        let name = "writ_decisions_total";
        self.family(name, Kind::Counter, "Verdicts on record, by verdict, plane and reason code.");
        for ((kind, code), count) in counts.decisions() {
            let plane = code.map_or("", |code| code.plane().as_str());
            let labels = [
                ("verdict", kind.as_str()),
                ("plane", plane),
                ("reason", code.map_or("", ReasonCode::as_str)),
                ("error_type", code.map_or("", error_type)),
            ];
            self.sample(name, &labels, as_f64(count));
        }
        let mut depths = Histogram::new(CHAIN_DEPTHS);
        for (depth, count) in counts.depths().iter().zip(0_u32..).map(|(count, depth)| (depth, *count)) {
            depths.observe_many(f64::from(depth), count);
        }
        self.histogram(
            "writ_chain_depth",
            "How many times the capabilities of decided calls were handed on.",
            &depths,
        );
    }

    /// How far the logs are witnessed.
    pub fn log(&mut self, unwitnessed: u64, refused: u64) {
        let help = "Records of this run and earlier ones that no checkpoint in the heads stream covers yet.";
        self.single("writ_log_leaves_unwitnessed", Kind::Gauge, help, as_f64(unwitnessed));
        let help = "Checkpoints that were refused: by the witness here, or there.";
        self.single("writ_log_witness_refused_total", Kind::Counter, help, as_f64(refused));
    }

    /// Records by their class.
    pub fn records(&mut self, records: &[(RecordKind, u64)], unacknowledged: usize) {
        let name = "writ_audit_records_total";
        self.family(name, Kind::Counter, "Records prepared for the audit stream, by class.");
        for (kind, count) in records {
            self.sample(name, &[("kind", kind.as_str())], as_f64(*count));
        }
        let help = "Records the audit stream has not acknowledged yet.";
        self.single("writ_audit_unacked", Kind::Gauge, help, as_f64(unacknowledged as u64));
    }

    /// How the calls ended whose outcomes are on record.
    pub fn outcomes(&mut self, outcomes: &OutcomeCounts) {
        let name = "writ_outcomes_total";
        self.family(
            name,
            Kind::Counter,
            "Outcomes the audit stream has acknowledged, by how the call ended.",
        );
        for (status, count) in STATUSES.iter().zip(outcomes.0) {
            self.sample(name, &[("status", status.as_str())], as_f64(count));
        }
    }

    /// When this run began.
    pub fn run_start(&mut self, started: Timestamp) {
        let help = "When this run began, in seconds since 1970.";
        self.single("writ_run_start_timestamp_seconds", Kind::Gauge, help, in_seconds(started));
    }

    /// What control state says, and what of it ends.
    pub fn control(&mut self, control: &ControlState) {
        let generation = control.policy().map_or(0, |(sequence, _)| sequence);
        let help = "Control stream sequence of the policy in force; 0 without one.";
        self.single("writ_policy_generation", Kind::Gauge, help, as_f64(generation));
        let help = "Control stream sequence applied last.";
        self.single("writ_control_sequence", Kind::Gauge, help, as_f64(control.epoch().sequence));
        let name = "writ_keyset_expires_timestamp_seconds";
        self.family(name, Kind::Gauge, "When the keyset ends, in seconds since 1970; absent without one.");
        if let Some(keyset) = control.keyset() {
            self.sample(name, &[], in_seconds(keyset.document().expires));
        }
        let help = "Whether everything is halted: 1 or 0.";
        self.single("writ_halted", Kind::Gauge, help, as_f64(u64::from(control.is_halted())));
        let quarantined = control.agents().filter(|(agent, _)| control.is_quarantined(agent)).count();
        let help = "Enrolled agents in quarantine.";
        self.single("writ_agents_quarantined", Kind::Gauge, help, as_f64(quarantined as u64));
    }

    /// How full streams are: what each is, the bytes it holds, and the bytes it may hold (0 without a limit).
    pub fn streams(&mut self, streams: &[(&str, u64, u64)]) {
        let name = "writ_stream_bytes";
        self.family(name, Kind::Gauge, "Bytes a stream holds, when it was looked at last.");
        for (stream, bytes, _) in streams {
            self.sample(name, &[("stream", stream)], as_f64(*bytes));
        }
        let name = "writ_stream_bytes_max";
        self.family(name, Kind::Gauge, "Bytes a stream may hold; 0 without a limit.");
        for (stream, _, bytes_max) in streams {
            self.sample(name, &[("stream", stream)], as_f64(*bytes_max));
        }
    }

    /// How full the journal is: bytes that cannot be removed yet, and bytes there may be.
    pub fn journal(&mut self, bytes: u64, bytes_max: u64) {
        let help =
            "Bytes of the journal that cannot be removed, because something in them is not settled yet.";
        self.single("writ_journal_bytes", Kind::Gauge, help, as_f64(bytes));
        let help = "Bytes the journal may have.";
        self.single("writ_journal_bytes_max", Kind::Gauge, help, as_f64(bytes_max));
    }

    /// Log entries that did not leave.
    pub fn log_losses(&mut self, losses: LogLosses) {
        let name = "writ_otlp_logs_dropped_total";
        let help =
            "Records that did not leave this process as logs; they are in the audit stream all the same.";
        self.family(name, Kind::Counter, help);
        for (cause, count) in [("queue_full", losses.queue_full), ("not_exported", losses.not_exported)] {
            self.sample(name, &[("cause", cause)], as_f64(count));
        }
    }

    /// The whole text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}

/// `error.type` of a reason: only what could not be decided is an error, a rule that says no is not.
fn error_type(code: ReasonCode) -> &'static str {
    match code.class() {
        Class::CouldNotDecide => "could_not_decide",
        Class::Denied => "",
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A count as the format has it: a float, exact up to 2^53.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "the format has floats only; 2^53 events take centuries")]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

/// A time as the format has it: seconds since 1970.
fn in_seconds(at: Timestamp) -> f64 {
    Duration::from_millis(at.as_millis()).as_secs_f64()
}

/// Counts by upper bounds.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    above: u64,
    sum: f64,
}

impl Histogram {
    /// Empty, with these upper bounds.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()], above: 0, sum: 0.0 }
    }

    /// Counts one value.
    pub fn observe(&mut self, value: f64) {
        self.observe_many(value, 1);
    }

    /// Counts a time, in seconds.
    pub fn observe_time(&mut self, took: Duration) {
        self.observe(took.as_secs_f64());
    }

    fn observe_many(&mut self, value: f64, times: u64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound);
        match bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            Some(count) => *count += times,
            None => self.above += times,
        }
        self.sum += value * as_f64(times);
    }
}

/// Records by class, counted where they are written.
#[derive(Clone, Debug, Default)]
pub struct RecordCounts([u64; 5]);

const KINDS: [RecordKind; 5] =
    [RecordKind::Allow, RecordKind::Deny, RecordKind::Hold, RecordKind::Outcome, RecordKind::Void];

impl RecordCounts {
    /// Counts the records of one event, and for each decision among them its share of the time the event took.
    pub fn count_event(
        &mut self,
        kinds: impl Iterator<Item = RecordKind>,
        took: Duration,
        decisions: &mut Histogram,
    ) {
        let mut decided: u32 = 0;
        for kind in kinds {
            self.count(kind);
            decided += u32::from(matches!(kind, RecordKind::Allow | RecordKind::Deny | RecordKind::Hold));
        }
        for _ in 0..decided {
            decisions.observe_time(took / decided);
        }
    }

    fn count(&mut self, kind: RecordKind) {
        for (counted, count) in KINDS.iter().zip(&mut self.0) {
            *count += u64::from(*counted == kind);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> [(RecordKind, u64); 5] {
        let mut all = KINDS.map(|kind| (kind, 0));
        for ((_, to), from) in all.iter_mut().zip(self.0) {
            *to = from;
        }
        all
    }
}

const STATUSES: [OutcomeStatus; 4] =
    [OutcomeStatus::Done, OutcomeStatus::Failed, OutcomeStatus::NotRun, OutcomeStatus::UnknownOutcome];

/// Outcomes by how the call ended, counted once the stream has them.
#[derive(Clone, Debug, Default)]
pub struct OutcomeCounts([u64; 4]);

impl OutcomeCounts {
    /// Counts a record the stream has, if it is an outcome.
    pub fn count(&mut self, record: &Record) {
        let RecordBody::Outcome(outcome) = &record.body else { return };
        for (status, count) in STATUSES.iter().zip(&mut self.0) {
            *count += u64::from(*status == outcome.status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_bounds_are_inclusive() {
        let mut histogram = Histogram::new(&[0.001, 0.01]);
        for value in [0.001, 0.002, 0.5] {
            histogram.observe(value);
        }
        let mut text = Exposition::default();
        text.histogram("h", "of something", &histogram);
        assert_eq!(
            text.into_text(),
            "# HELP h of something\n# TYPE h histogram\nh_bucket{le=\"0.001\"} 1\nh_bucket{le=\"0.01\"} 2\n\
             h_bucket{le=\"+Inf\"} 3\nh_sum 0.503\nh_count 3\n"
        );
    }

    #[test]
    fn label_values_cannot_end_their_quotes() {
        let mut text = Exposition::default();
        text.family("m", Kind::Gauge, "two\nlines");
        text.sample("m", &[("issuer", "https://a\"} 1\nx{b=\"\\")], 1.5);
        assert_eq!(
            text.into_text(),
            "# HELP m two\\nlines\n# TYPE m gauge\nm{issuer=\"https://a\\\"} 1\\nx{b=\\\"\\\\\"} 1.5\n"
        );
    }
}
