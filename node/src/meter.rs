//! What a node counts and shows: numbers of the event loop, published for whoever asks over HTTP.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use writ_bus::ConnectionState;
use writ_common::{
    codec::decode,
    control::{ControlDocument, ControlEvent},
    ids::Resource,
    signed::Signed,
    time::{Now, Timestamp},
};
use writ_journal::Entry;
use writ_telemetry::{
    LogLosses, Snapshots,
    metrics::{DECISION_SECONDS, Exposition, Histogram, Kind, RecordCounts, as_f64},
};

use crate::{
    guard::{Effect, Guard},
    tools::Tool,
};

/// How often numbers are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// Upper bounds of how long a revocation takes to get here, in seconds.
const LAG_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

type Tools = BTreeMap<Resource, Arc<dyn Tool>>;

/// The numbers of one run; the event loop owns them.
pub(crate) struct Meter {
    started: Timestamp,
    decisions: Histogram,
    lag: Histogram,
    records: RecordCounts,
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
            records: RecordCounts::default(),
            snapshots,
            published: None,
        }
    }

    /// Counts what one event led to, and how long the guard took for it.
    pub(crate) fn handled(&mut self, effects: &[Effect], took: Duration) {
        let kinds = effects.iter().filter_map(|effect| match effect {
            Effect::Journal(_, Entry::Prepared { kind, .. }) => Some(*kind),
            _ => None,
        });
        self.records.count_event(kinds, took, &mut self.decisions);
    }

    /// Counts how long a revocation took to get here. What was revoked before this run began tells nothing.
    pub(crate) fn control_event(&mut self, payload: &[u8], now: Now) {
        let document = decode::<Signed<ControlDocument>>(payload).ok().and_then(|signed| signed.peek().ok());
        if let Some(document) = document
            && document.at >= self.started
            && matches!(document.event, ControlEvent::Revocation { .. })
        {
            self.lag.observe_time(now.wall.since(document.at).to_duration());
        }
    }

    /// Publishes, if it is time to.
    pub(crate) fn publish(
        &mut self,
        guard: &Guard,
        bus: ConnectionState,
        tools: &Tools,
        lost: LogLosses,
        now: Now,
    ) {
        let Some(snapshots) = &self.snapshots else { return };
        let at = Instant::now();
        if self.published.is_some_and(|last| at.duration_since(last) < PUBLISH_EVERY) {
            return;
        }
        self.published = Some(at);
        let mut missing = guard.missing(now);
        if bus == ConnectionState::Disconnected {
            missing.insert(0, "bus: not connected".to_owned());
        }
        let mut text = self.text(guard, bus, tools, now);
        text.log_losses(lost);
        snapshots.publish(missing, text.into_text());
    }

    fn text(&self, guard: &Guard, bus: ConnectionState, tools: &Tools, now: Now) -> Exposition {
        let mut text = Exposition::default();
        text.counts(guard.counts());
        let help = "Time the guard took for what led to a verdict, without waiting for others.";
        text.histogram("writ_decision_duration_seconds", help, &self.decisions);
        text.records(&self.records.all(), guard.unacknowledged());
        text.log(guard.unwitnessed(), guard.witness_refusals());
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
        let generation = guard.control().policy().map_or(0, |(sequence, _)| sequence);
        let help = "Control stream sequence of the policy in force; 0 without one.";
        text.single("writ_policy_generation", Kind::Gauge, help, as_f64(generation));
        let help = "Control stream sequence applied last.";
        text.single("writ_control_sequence", Kind::Gauge, help, as_f64(guard.control().epoch().sequence));
        let waiting = guard.approvals_waiting(now) as u64;
        let help = "Requests for approval that wait for people.";
        text.single("writ_approvals_pending", Kind::Gauge, help, as_f64(waiting));
        let in_flight = guard.calls_in_flight() as u64;
        text.single("writ_calls_in_flight", Kind::Gauge, "Calls under way.", as_f64(in_flight));
        let connected = u64::from(bus == ConnectionState::Connected);
        text.single("writ_bus_connected", Kind::Gauge, "Whether there is a connection.", as_f64(connected));
        let away = tools.values().filter(|tool| !tool.is_available()).count() as u64;
        text.single("writ_tools_away", Kind::Gauge, "Tools whose server is not there.", as_f64(away));
        text
    }
}
