//! What a guard says of itself to probes and metrics.

use writ_common::{
    counts::Counts,
    time::{Millis, Now},
};

use super::Guard;

impl Guard {
    /// What is missing to decide now, each as `what: why`; nothing means ready.
    #[must_use]
    pub fn missing(&self, now: Now) -> Vec<String> {
        let fresh = || self.freshness.check(self.control.epoch(), false, now.monotonic);
        let policy = self.policy.is_none().then(|| "policy: none is loaded".to_owned());
        let checks = [
            ("streams", self.streams.check()),
            ("control state", self.control.check_readable()),
            ("freshness", fresh()),
        ];
        let faults = checks.into_iter().filter_map(|(what, checked)| {
            let reason = checked.err()?;
            Some(format!("{what}: {} ({})", reason.for_operator(), reason.code()))
        });
        policy.into_iter().chain(faults).collect()
    }

    /// What this run's verdicts came to.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        self.recorder.counts()
    }

    /// Requests for approval that wait for people.
    #[must_use]
    pub fn approvals_waiting(&self, now: Now) -> usize {
        self.approvals.waiting(now.wall).count()
    }

    /// How old the guard's knowledge of revocations is; none if the broker never answered.
    #[must_use]
    pub fn staleness(&self, now: Now) -> Option<Millis> {
        self.freshness.age(now.monotonic)
    }
}
