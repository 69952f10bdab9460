//! Admission: how many requests a sender may make, counted before anything is decoded, by nodes and brokers alike.

use std::collections::BTreeMap;

use crate::{
    control::ControlState,
    policy::{PolicySet, Quota},
    time::{Millis, Monotonic},
};

/// A token bucket per sender.
#[derive(Debug, Default)]
pub struct Admission {
    buckets: BTreeMap<String, Bucket>,
    last_taken: Option<Monotonic>,
}

#[derive(Debug)]
struct Bucket {
    /// Tokens in thousandths.
    milli_tokens: u64,
    refilled: Monotonic,
    refused: u64,
}

/// How often refusals over quota are recorded.
const RECORD_EVERY: Millis = Millis(1_000);
/// Most senders remembered; the least recently refilled one is forgotten first.
const SENDERS_MAX: usize = 10_000;

impl Admission {
    /// Takes a token of `sender`, if it has one.
    #[must_use]
    pub fn admit(&mut self, sender: &str, quota: Quota, now: Monotonic) -> bool {
        let full = u64::from(quota.burst) * 1_000;
        if self.buckets.len() >= SENDERS_MAX && !self.buckets.contains_key(sender) {
            let oldest = self.buckets.iter().min_by_key(|(_, bucket)| bucket.refilled);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.buckets.remove(&oldest);
            }
        }
        let bucket = self.buckets.entry(sender.to_owned()).or_insert(Bucket {
            milli_tokens: full,
            refilled: now,
            refused: 0,
        });
        let Millis(elapsed) = now.since(bucket.refilled);
        let refill = elapsed.saturating_mul(u64::from(quota.per_second));
        bucket.milli_tokens = bucket.milli_tokens.saturating_add(refill).min(full);
        bucket.refilled = now;
        match bucket.milli_tokens.checked_sub(1_000) {
            Some(left) => {
                bucket.milli_tokens = left;
                true
            }
            None => {
                bucket.refused += 1;
                false
            }
        }
    }

    /// Counts a request that was refused for everybody's sake.
    pub fn refuse(&mut self, sender: &str) {
        if let Some(bucket) = self.buckets.get_mut(sender) {
            bucket.refused += 1;
        }
    }

    /// How many requests of whom were refused since the last time this was told; nothing before a second is over.
    #[must_use]
    pub fn take_refused(&mut self, now: Monotonic) -> Vec<(String, u64)> {
        if self.last_taken.is_some_and(|last| now.since(last) < RECORD_EVERY) {
            return Vec::new();
        }
        self.last_taken = Some(now);
        self.buckets
            .iter_mut()
            .filter(|(_, bucket)| bucket.refused > 0)
            .map(|(sender, bucket)| (sender.clone(), std::mem::take(&mut bucket.refused)))
            .collect()
    }
}

/// The quota of whoever authenticates as `connection`: that of its agent, or the usual one.
#[must_use]
pub fn quota_of(control: &ControlState, policy: Option<&PolicySet>, connection: &str) -> Quota {
    let agent = control.agent_of_connection(connection).map(|(agent, _)| agent);
    let entry = policy.zip(agent).and_then(|(policy, agent)| policy.inventory().agents.get(agent));
    entry.map(|entry| entry.quota).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let quota = Quota { per_second: 2, burst: 3 };
        let mut admission = Admission::default();
        let at = Monotonic::from_millis;
        let admitted = |admission: &mut Admission, now, count: usize| {
            (0..count).filter(|_| admission.admit("a", quota, at(now))).count()
        };
        assert_eq!(admitted(&mut admission, 0, 10), 3);
        assert_eq!(admitted(&mut admission, 499, 10), 0);
        assert_eq!(admitted(&mut admission, 500, 10), 1);
        assert_eq!(admitted(&mut admission, 10_000, 10), 3);
        assert!(admission.admit("b", quota, at(0)));
        assert_eq!(admission.take_refused(at(10_000)), [("a".to_owned(), 33)]);
        assert_eq!(admission.take_refused(at(11_000)), []);
        assert_eq!(admitted(&mut admission, 11_000, 10), 2);
        assert_eq!(admission.take_refused(at(11_999)), [], "once a second");
        assert_eq!(admission.take_refused(at(12_000)), [("a".to_owned(), 8)]);
    }
}
