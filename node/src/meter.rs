//! What a node counts and shows: numbers of the event loop, published for whoever asks over HTTP.

mod waits;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use writ_bus::{ConnectionState, StreamFacts};
use writ_common::{
    codec::decode,
    control::{ControlDocument, ControlEvent, RevocationTarget},
    ids::{PartId, Resource},
    signed::Signed,
    time::{Now, Timestamp},
};
use writ_journal::{Entry, Journal};
use writ_telemetry::{
    LogLosses, Snapshots,
    metrics::{DECISION_SECONDS, Exposition, Histogram, Kind, OutcomeCounts, RecordCounts, as_f64},
};

use crate::{
    guard::{Effect, Event, Guard},
    inspect::Panel,
    tools::Tool,
};
use waits::Waits;

/// How often numbers are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Upper bounds of how long a revocation takes to get here, in seconds.
const LAG_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// What revocations are aimed at.
const TARGETS: [&str; 6] = ["agent", "capability", "holder", "hop", "task", "user"];

type Tools = BTreeMap<Resource, Arc<dyn Tool>>;

/// What a node works with, beside its guard.
pub(crate) struct Around<'a> {
    /// Whether the bus is there.
    pub(crate) bus: ConnectionState,
    /// What it serves.
    pub(crate) tools: &'a Tools,
    /// Who looks at texts.
    pub(crate) panel: &'a Panel,
    /// Its journal.
    pub(crate) journal: &'a Journal,
    /// Log entries that did not leave.
    pub(crate) lost: LogLosses,
}

/// The numbers of one run; the event loop owns them.
pub(crate) struct Meter {
    started: Timestamp,
    decisions: Histogram,
    lag: Histogram,
    /// By target.
    revocations: [u64; 6],
    records: RecordCounts,
    outcomes: OutcomeCounts,
    waits: Waits,
    /// The control stream and the audit stream when they were looked at last.
    control: Option<StreamFacts>,
    parts: BTreeMap<PartId, Option<StreamFacts>>,
    snapshots: Option<Snapshots>,
    published: Option<Instant>,
}

impl Meter {
    /// Begins to count; without `snapshots` nobody is shown.
    pub(crate) fn new(snapshots: Option<Snapshots>, started: Timestamp) -> Self {
        Self {
            started,
            decisions: Histogram::new(DECISION_SECONDS),
            lag: Histogram::new(LAG_SECONDS),
            revocations: [0; 6],
            records: RecordCounts::default(),
            outcomes: OutcomeCounts::default(),
            waits: Waits::new(started),
            control: None,
            parts: BTreeMap::new(),
            snapshots,
            published: None,
        }
    }

    /// Takes what an event tells by itself, before the guard has it.
    pub(crate) fn saw(&mut self, event: &Event) {
        match event {
            Event::Approval { subject, payload, .. } => self.waits.take(subject, payload),
            Event::Streams { control, parts } => {
                (self.control, self.parts) = (Some(*control), parts.clone());
            }
            _ => {}
        }
    }

    /// Counts what one event led to, and how long the guard took for it.
    pub(crate) fn handled(&mut self, effects: &[Effect], took: Duration) {
        for effect in effects {
            if let Effect::Recorded(record, _) = effect {
                self.outcomes.count(record);
            }
        }
        let kinds = effects.iter().filter_map(|effect| match effect {
            Effect::Journal(_, Entry::Prepared { kind, .. }) => Some(*kind),
            _ => None,
        });
        self.records.count_event(kinds, took, &mut self.decisions);
    }

    /// Counts a revocation, and how long it took to get here. What was revoked before this run began tells nothing of
    /// that.
    pub(crate) fn control_event(&mut self, payload: &[u8], now: Now) {
        let document = decode::<Signed<ControlDocument>>(payload).ok().and_then(|signed| signed.peek().ok());
        let Some(ControlDocument { at, event: ControlEvent::Revocation { target, .. }, .. }) = document
        else {
            return;
        };
        for (name, count) in TARGETS.iter().zip(&mut self.revocations) {
            *count += u64::from(*name == target_of(&target));
        }
        if at >= self.started {
            self.lag.observe_time(now.wall.since(at).to_duration());
        }
    }

    /// Publishes, if it is time to.
    pub(crate) fn publish(&mut self, guard: &Guard, around: &Around<'_>, now: Now) {
        self.waits.end(now.wall);
        let Some(snapshots) = &self.snapshots else { return };
        let at = Instant::now();
        if self.published.is_some_and(|last| at.duration_since(last) < PUBLISH_EVERY) {
            return;
        }
        self.published = Some(at);
        let mut missing = guard.missing(now);
        if around.bus == ConnectionState::Disconnected {
            missing.insert(0, "bus: not connected".to_owned());
        }
        let mut text = self.text(guard, around, now);
        text.log_losses(around.lost);
        snapshots.publish(missing, text.into_text());
    }

    fn text(&self, guard: &Guard, around: &Around<'_>, now: Now) -> Exposition {
        let mut text = Exposition::default();
        text.run_start(self.started);
        text.counts(guard.counts());
        let help = "Time the guard took for what led to a verdict, without waiting for others.";
        text.histogram("writ_decision_duration_seconds", help, &self.decisions);
        text.records(&self.records.all(), guard.unacknowledged());
        text.outcomes(&self.outcomes);
        text.log(guard.unwitnessed(), guard.witness_refusals());
        // Parts come and go; the one that counts is the one in use.
        let part = self.parts.get(guard.control().parts().current()).copied().flatten();
        let streams = [("control", self.control), ("part", part)];
        let there =
            |(name, facts): (_, Option<StreamFacts>)| facts.map(|facts| (name, facts.bytes, facts.bytes_max));
        text.streams(&streams.into_iter().filter_map(there).collect::<Vec<_>>());
        text.journal(around.journal.open_bytes(), around.journal.bytes_max());
        let name = "writ_revocations_applied_total";
        text.family(name, Kind::Counter, "Revocations this run has applied, those from before it included.");
        for (target, count) in TARGETS.into_iter().zip(self.revocations) {
            text.sample(name, &[("target", target)], as_f64(count));
        }
        let help = "From the broker's decision to revoke until this node had applied it.";
        text.histogram("writ_revocation_lag_seconds", help, &self.lag);
        if let Some(age) = guard.staleness(now) {
            let help = "Age of what this node knows of revocations.";
            text.single(
                "writ_revocation_staleness_seconds",
                Kind::Gauge,
                help,
                age.to_duration().as_secs_f64(),
            );
        }
        text.control(guard.control());
        let waiting = guard.approvals_waiting(now) as u64;
        let help = "Requests for approval that wait for people.";
        text.single("writ_approvals_pending", Kind::Gauge, help, as_f64(waiting));
        self.waits.show(&mut text);
        let in_flight = guard.calls_in_flight() as u64;
        text.single("writ_calls_in_flight", Kind::Gauge, "Calls under way.", as_f64(in_flight));
        let connected = u64::from(around.bus == ConnectionState::Connected);
        text.single("writ_bus_connected", Kind::Gauge, "Whether there is a connection.", as_f64(connected));
        let away = around.tools.values().filter(|tool| !tool.is_available()).count() as u64;
        text.single("writ_tools_away", Kind::Gauge, "Tools whose server is not there.", as_f64(away));
        let name = "writ_inspector_answers_total";
        text.family(name, Kind::Counter, "What came of asking an inspector about one text or more.");
        for (inspector, answers) in around.panel.answers() {
            for (result, count) in answers {
                text.sample(name, &[("inspector", inspector.as_str()), ("result", result)], as_f64(count));
            }
        }
        text
    }
}

fn target_of(target: &RevocationTarget) -> &'static str {
    match target {
        RevocationTarget::Agent(_) => "agent",
        RevocationTarget::Capability(_) => "capability",
        RevocationTarget::Holder(_) => "holder",
        RevocationTarget::Hop { .. } => "hop",
        RevocationTarget::Task(_) => "task",
        RevocationTarget::User(_) => "user",
    }
}
