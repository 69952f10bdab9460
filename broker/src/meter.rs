//! What a broker counts and shows: numbers of the event loop, published for whoever asks over HTTP.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;
use writ_bus::{ConnectionState, StreamFacts};
use writ_common::{
    ids::PartId,
    time::{Now, Timestamp},
};
use writ_journal::{Entry, Journal};
use writ_telemetry::{
    LogLosses, Snapshots,
    metrics::{DECISION_SECONDS, Exposition, Histogram, Kind, OutcomeCounts, RecordCounts, as_f64},
};

use crate::core::{Broker, Effect, Event};

/// How often numbers are published.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);

/// What a broker works with, beside its core.
pub(crate) struct Around<'a> {
    /// Whether the bus is there.
    pub(crate) bus: ConnectionState,
    /// Why the index cannot be written, if it cannot.
    pub(crate) index_fault: Option<&'a str>,
    /// Its journal.
    pub(crate) journal: &'a Journal,
    /// Log entries that did not leave.
    pub(crate) lost: LogLosses,
}

/// The numbers of one run; the event loop owns them.
pub(crate) struct Meter {
    started: Timestamp,
    decisions: Histogram,
    records: RecordCounts,
    outcomes: OutcomeCounts,
    /// The audit stream when it was looked at last.
    parts: BTreeMap<PartId, StreamFacts>,
    /// Capabilities of new tasks, and renewed ones.
    issued: [u64; 2],
    /// Fetches of issuers' keys that worked, and that did not.
    fetches: [u64; 2],
    snapshots: Option<Snapshots>,
    published: Option<Instant>,
}

impl Meter {
    /// Begins to count; without `snapshots` nobody is shown.
    pub(crate) fn new(snapshots: Option<Snapshots>, started: Timestamp) -> Self {
        Self {
            started,
            decisions: Histogram::new(DECISION_SECONDS),
            records: RecordCounts::default(),
            outcomes: OutcomeCounts::default(),
            parts: BTreeMap::new(),
            issued: [0; 2],
            fetches: [0; 2],
            snapshots,
            published: None,
        }
    }

    /// Takes what an event tells by itself, before the core has it.
    pub(crate) fn saw(&mut self, event: &Event) {
        match event {
            Event::AuditStream(part, facts) => drop(self.parts.insert(part.clone(), *facts)),
            Event::KeysFetched(_, fetched) => {
                let [worked, failed] = &mut self.fetches;
                *(if fetched.is_ok() { worked } else { failed }) += 1;
            }
            _ => {}
        }
    }

    /// Counts what one event led to, and how long the core took for it.
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

    /// Counts a capability whose task is in the index.
    pub(crate) fn issued(&mut self, serial: u64) {
        let [first, renewed] = &mut self.issued;
        *(if serial == 1 { first } else { renewed }) += 1;
    }

    /// Publishes, if it is time to.
    pub(crate) fn publish(&mut self, broker: &Broker, around: &Around<'_>, now: Now) {
        let Some(snapshots) = &self.snapshots else { return };
        let at = Instant::now();
        if self.published.is_some_and(|last| at.duration_since(last) < PUBLISH_EVERY) {
            return;
        }
        self.published = Some(at);
        let mut missing = broker.missing();
        missing.extend(around.index_fault.map(|why| format!("index: {why}")));
        if around.bus == ConnectionState::Disconnected {
            missing.insert(0, "bus: not connected".to_owned());
        }
        let mut text = self.text(broker, around, now);
        text.log_losses(around.lost);
        snapshots.publish(missing, text.into_text());
    }

    fn text(&self, broker: &Broker, around: &Around<'_>, now: Now) -> Exposition {
        let mut text = Exposition::default();
        text.run_start(self.started);
        text.counts(broker.counts());
        let help = "Time the broker took for what led to a verdict, without waiting for others.";
        text.histogram("writ_decision_duration_seconds", help, &self.decisions);
        let name = "writ_tokens_issued_total";
        text.family(name, Kind::Counter, "Capabilities issued, for new tasks and renewed.");
        for (kind, count) in ["issue", "renew"].into_iter().zip(self.issued) {
            text.sample(name, &[("kind", kind)], as_f64(count));
        }
        let name = "writ_issuer_key_fetches_total";
        text.family(name, Kind::Counter, "Attempts to fetch the keys of users' issuers.");
        for (outcome, count) in ["ok", "failed"].into_iter().zip(self.fetches) {
            text.sample(name, &[("outcome", outcome)], as_f64(count));
        }
        let name = "writ_issuer_keys_age_seconds";
        text.family(name, Kind::Gauge, "Age of an issuer's keys; absent if there are none yet.");
        for (issuer, age) in broker.key_ages(now) {
            if let Some(age) = age {
                text.sample(name, &[("issuer", &issuer)], age.to_duration().as_secs_f64());
            }
        }
        text.records(&self.records.all(), broker.unacknowledged());
        text.outcomes(&self.outcomes);
        text.log(broker.unwitnessed(), broker.witness_refusals());
        let current = self.parts.get(broker.control().parts().current());
        let part = current.map(|facts| ("part", facts.bytes, facts.bytes_max));
        text.streams(part.as_slice());
        text.journal(around.journal.open_bytes(), around.journal.bytes_max());
        text.control(broker.control());
        let help = "Live nodes that have decided by another policy than the one in force for more than 10 s.";
        text.single(
            "writ_nodes_on_another_policy",
            Kind::Gauge,
            help,
            as_f64(broker.nodes_behind(now) as u64),
        );
        let connected = u64::from(around.bus == ConnectionState::Connected);
        text.single("writ_bus_connected", Kind::Gauge, "Whether there is a connection.", as_f64(connected));
        text
    }
}
