//! Freshness: how a node knows that it has heard of every revocation.
//!
//! A node sends a nonce; the broker answers, signed, with the epoch it had applied after the nonce arrived. The
//! answer's age counts from the moment the node *sent* the nonce, on a clock that only moves forward, so neither
//! a slow network nor a changed wall clock makes a node believe it is fresher than it is.

use serde::{Deserialize, Serialize};

use crate::{
    codec::Message,
    epoch::Epoch,
    ids::{BootId, NodeId, TenantId},
    keys::Purpose,
    keyset::Keyset,
    policy::PolicyRevision,
    reason::{Reason, ReasonCode},
    signed::{Signable, Signed},
    time::{Millis, Monotonic, Now, Timestamp},
};

/// A node's question. Its signature also certifies the node's run: the broker records a boot it has not seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshQuestion {
    /// The tenant.
    pub tenant: TenantId,
    /// Who asks.
    pub node: NodeId,
    /// Its run.
    pub boot: BootId,
    /// Fresh random bytes.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// What the node has applied: its acknowledgement of everything up to there.
    pub applied: Epoch,
    /// The longest the node goes on deciding without an answer.
    pub staleness: Millis,
    /// Why the node decides nothing, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<ReasonCode>,
    /// The policy it decides by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyRevision>,
    /// Why it did not take a later policy, if there was one; it goes on with the last good one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_fault: Option<ReasonCode>,
}

impl Signable for FreshQuestion {
    const PURPOSE: Purpose = Purpose::Hello;
    const KIND: &'static str = "hello";
}

impl Message for Signed<FreshQuestion> {
    const KIND: &'static str = "hello";
    const BYTES_MAX: usize = 4 * 1024;
}

/// The broker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshAnswer {
    /// The tenant.
    pub tenant: TenantId,
    /// The question's nonce.
    #[serde(with = "crate::bytes32")]
    pub nonce: [u8; 16],
    /// Everything up to here was applied by the broker after the nonce arrived.
    pub epoch: Epoch,
    /// The broker's wall clock.
    pub time: Timestamp,
}

impl Signable for FreshAnswer {
    const PURPOSE: Purpose = Purpose::Fresh;
    const KIND: &'static str = "fresh";
}

impl Message for Signed<FreshAnswer> {
    const KIND: &'static str = "fresh";
    const BYTES_MAX: usize = 4 * 1024;
}

/// Bounds on staleness and clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshBounds {
    /// Oldest knowledge under which something with an effect may be done.
    pub effects: Millis,
    /// Oldest knowledge under which something may be read.
    pub reads: Millis,
    /// How far clocks may be apart.
    pub skew: Millis,
}

impl FreshBounds {
    /// The longest of both.
    #[must_use]
    pub fn longest(&self) -> Millis {
        self.effects.max(self.reads)
    }
}

impl Default for FreshBounds {
    fn default() -> Self {
        Self { effects: Millis::from_secs(5), reads: Millis::from_secs(60), skew: Millis::from_secs(5) }
    }
}

/// What a node knows about its own freshness.
#[derive(Clone, Debug)]
pub struct Freshness {
    bounds: FreshBounds,
    asked: Vec<([u8; 16], Monotonic)>,
    lease: Option<Lease>,
    last: Option<Now>,
    clock_fault: bool,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    epoch: Epoch,
    asked: Monotonic,
}

/// Most questions without an answer that are remembered.
const QUESTIONS_MAX: usize = 16;

impl Freshness {
    /// Knows nothing yet: everything is stale.
    #[must_use]
    pub fn new(bounds: FreshBounds) -> Self {
        Self { bounds, asked: Vec::new(), lease: None, last: None, clock_fault: false }
    }

    /// Notes that a question was sent now.
    pub fn asked(&mut self, nonce: [u8; 16], now: Now) {
        if self.asked.len() == QUESTIONS_MAX {
            self.asked.remove(0);
        }
        self.asked.push((nonce, now.monotonic));
    }

    /// Takes an answer, if a keyset key signed it and it answers a question of ours.
    ///
    /// # Errors
    /// `state.stale` for an answer that is not one; `clock.unsane` if the broker's clock is too far from ours.
    pub fn answered(
        &mut self,
        signed: &Signed<FreshAnswer>,
        keyset: &Keyset,
        tenant: &TenantId,
        now: Now,
    ) -> Result<Epoch, Reason> {
        let stale = || Reason::new(ReasonCode::StateStale);
        let answer = signed
            .open(|key| keyset.is_active(key, tenant, now.wall))
            .map_err(|error| stale().noted(error))?;
        let position = self.asked.iter().position(|(nonce, _)| *nonce == answer.nonce);
        let Some(position) = position.filter(|_| answer.tenant == *tenant) else {
            return Err(stale().noted("the answer belongs to no question of this node"));
        };
        let (_, asked) = self.asked.remove(position);
        // The broker read its clock somewhere between question and answer.
        let travelled = now.monotonic.since(asked);
        let apart = Millis(now.wall.distance(answer.time).0.saturating_sub(travelled.0));
        self.clock_fault = apart > self.bounds.skew && !crate::red::off("R05");
        if self.clock_fault {
            return Err(
                Reason::new(ReasonCode::ClockUnsane).noted(format_args!("{apart} from the broker's clock"))
            );
        }
        let newer = self.lease.is_none_or(|lease| asked > lease.asked);
        if newer {
            self.lease = Some(Lease { epoch: answer.epoch, asked });
        }
        Ok(answer.epoch)
    }

    /// Compares the two clocks since the last look; a step of the wall clock is a fault until the next answer.
    pub fn observe(&mut self, now: Now) {
        if let Some(last) = self.last {
            let moved = now.monotonic.since(last.monotonic);
            let expected = last.wall.after(moved);
            if expected.distance(now.wall) > self.bounds.skew && !crate::red::off("R05") {
                self.clock_fault = true;
            }
        }
        self.last = Some(now);
    }

    /// How old the node's knowledge is, if it has any.
    #[must_use]
    pub fn age(&self, now: Monotonic) -> Option<Millis> {
        self.lease.map(|lease| now.since(lease.asked))
    }

    /// Whether the node may decide now: a recent answer, everything in it applied, and a sane clock.
    ///
    /// # Errors
    /// `state.stale` or `clock.unsane`.
    pub fn check(&self, applied: Epoch, is_read: bool, now: Monotonic) -> Result<(), Reason> {
        if self.clock_fault {
            return Err(ReasonCode::ClockUnsane.into());
        }
        let stale = |note: String| Err(Reason::new(ReasonCode::StateStale).noted(note));
        let Some(lease) = self.lease else { return stale("the broker has not answered yet".to_owned()) };
        let bound = if is_read { self.bounds.reads } else { self.bounds.effects };
        let age = now.since(lease.asked);
        if age > bound && !crate::red::off("R03") {
            return stale(format!("last heard from the broker {age} ago, at most {bound} is allowed"));
        }
        if applied < lease.epoch {
            return stale(format!("epoch {} is known to exist and {applied} is applied", lease.epoch));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys::PrivateKey,
        keyset::{KeysetDocument, KeysetKey},
    };

    const SECOND: u64 = 1_000;

    struct Bench {
        broker: PrivateKey,
        keyset: Keyset,
        tenant: TenantId,
        fresh: Freshness,
    }

    fn bench() -> Bench {
        let (root, broker) = (PrivateKey::from_seed(&[1; 32]), PrivateKey::from_seed(&[2; 32]));
        let tenant = TenantId::parse("acme").unwrap();
        let document = KeysetDocument {
            version: 1,
            issued_at: Timestamp::default(),
            expires: Timestamp::from_secs(10_000),
            keys: vec![KeysetKey {
                public: broker.public(),
                tenants: vec![tenant.clone()],
                max_ttl: Millis::from_secs(300),
                not_before: Timestamp::default(),
                not_after: Timestamp::from_secs(10_000),
            }],
            withdrawn: vec![],
        };
        let keyset = Keyset::open(&Signed::new(&document, &root), &root.public()).unwrap();
        Bench { broker, keyset, tenant, fresh: Freshness::new(FreshBounds::default()) }
    }

    fn at(millis: u64) -> Now {
        Now {
            wall: Timestamp::from_millis(1_000_000 + millis),
            monotonic: Monotonic::from_millis(500 + millis),
        }
    }

    impl Bench {
        fn answer(
            &mut self,
            nonce: u8,
            sequence: u64,
            broker_wall: Timestamp,
            now: Now,
        ) -> Result<Epoch, Reason> {
            let answer = FreshAnswer {
                tenant: self.tenant.clone(),
                nonce: [nonce; 16],
                epoch: Epoch { incarnation: 0, sequence },
                time: broker_wall,
            };
            self.fresh.answered(&Signed::new(&answer, &self.broker), &self.keyset, &self.tenant, now)
        }

        fn code(&self, applied: u64, is_read: bool, now: Now) -> Option<ReasonCode> {
            let applied = Epoch { incarnation: 0, sequence: applied };
            self.fresh.check(applied, is_read, now.monotonic).err().map(|reason| reason.code())
        }
    }

    #[test]
    fn r03_age_counts_from_the_question() {
        let mut bench = bench();
        assert_eq!(bench.code(9, true, at(0)), Some(ReasonCode::StateStale));
        bench.fresh.asked([1; 16], at(0));
        // The answer took four seconds: it is four seconds old on arrival.
        bench.answer(1, 3, at(0).wall, at(4 * SECOND)).unwrap();
        assert_eq!(bench.code(3, false, at(5 * SECOND)), None);
        assert_eq!(bench.code(3, false, at(5 * SECOND + 1)), Some(ReasonCode::StateStale));
        assert_eq!(bench.code(3, true, at(60 * SECOND)), None);
        assert_eq!(bench.code(3, true, at(60 * SECOND + 1)), Some(ReasonCode::StateStale));
    }

    #[test]
    fn an_epoch_that_is_known_and_not_applied_is_stale() {
        let mut bench = bench();
        bench.fresh.asked([1; 16], at(0));
        bench.answer(1, 7, at(0).wall, at(10)).unwrap();
        assert_eq!(bench.code(6, true, at(20)), Some(ReasonCode::StateStale));
        assert_eq!(bench.code(7, true, at(20)), None);
    }

    #[test]
    fn answers_to_nobody_and_by_nobody_are_refused() {
        let mut bench = bench();
        assert!(bench.answer(1, 7, at(0).wall, at(10)).is_err());
        bench.fresh.asked([1; 16], at(0));
        bench.broker = PrivateKey::from_seed(&[3; 32]);
        assert!(bench.answer(1, 7, at(0).wall, at(10)).is_err());
    }

    #[test]
    fn r05_a_stepped_clock_denies_until_the_broker_confirms_it() {
        let mut bench = bench();
        bench.fresh.asked([1; 16], at(0));
        bench.answer(1, 1, at(0).wall, at(10)).unwrap();
        bench.fresh.observe(at(10));
        let back = Now { wall: Timestamp::from_millis(1), ..at(20) };
        bench.fresh.observe(back);
        assert_eq!(bench.code(1, true, back), Some(ReasonCode::ClockUnsane));
        bench.fresh.observe(at(30));
        bench.fresh.asked([2; 16], at(30));
        bench.answer(2, 1, at(30).wall, at(40)).unwrap();
        assert_eq!(bench.code(1, true, at(40)), None);
        bench.fresh.asked([3; 16], at(50));
        let far = Timestamp::from_millis(at(50).wall.as_millis() + 6_000);
        assert_eq!(bench.answer(3, 1, far, at(60)).unwrap_err().code(), ReasonCode::ClockUnsane);
        assert_eq!(bench.code(1, true, at(60)), Some(ReasonCode::ClockUnsane));
    }

    #[test]
    fn an_older_answer_does_not_replace_a_newer_one() {
        let mut bench = bench();
        bench.fresh.asked([1; 16], at(0));
        bench.fresh.asked([2; 16], at(1_000));
        bench.answer(2, 5, at(1_000).wall, at(1_010)).unwrap();
        bench.answer(1, 4, at(0).wall, at(1_020)).unwrap();
        assert_eq!(bench.fresh.age(at(1_020).monotonic), Some(Millis(20)));
    }
}
