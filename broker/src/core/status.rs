//! What a broker says of itself to probes and metrics.

use writ_common::{
    counts::Counts,
    time::{Millis, Now},
};

use super::Broker;

impl Broker {
    /// What is missing to decide, each as `what: why`; nothing means ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.control_read {
            missing.push("control stream: not read to its end yet".to_owned());
        }
        if let Err(reason) = self.control.check_readable() {
            missing.push(format!("control state: {} ({})", reason.for_operator(), reason.code()));
        }
        if self.policy.is_none() {
            missing.push("policy: none is loaded".to_owned());
        }
        missing
    }

    /// What this run's verdicts came to.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        self.recorder.counts()
    }

    /// Live nodes that have decided by another policy than the one in force for too long.
    #[must_use]
    pub fn nodes_behind(&self, now: Now) -> usize {
        self.freshness.behind(now)
    }

    /// Issuers whose keys are fetched, with the age of those held.
    #[must_use]
    pub fn key_ages(&self, now: Now) -> Vec<(String, Option<Millis>)> {
        self.identity.key_ages(now)
    }

    /// Records the stream has not acknowledged yet.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }
}
