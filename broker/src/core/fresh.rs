//! Freshness: answering nodes' challenges, and knowing when a revocation has reached every one of them.
//!
//! An answer is given after a tick that was published once the question had arrived has come back through the
//! stream: everything before it has then been applied here. One tick serves every question before it.

use std::collections::{BTreeMap, BTreeSet};

use writ_bus::{Fence, Store, StoreError, Stored};
use writ_common::{
    codec::decode,
    control::ControlEvent,
    entropy::draw,
    epoch::Epoch,
    fresh::{FreshAnswer, FreshQuestion},
    ids::NodeId,
    policy::PolicyRevision,
    reason::ReasonCode,
    signed::Signed,
    subjects::Subject,
    time::{Millis, Now},
};

use super::{Arrival, Broker, CallRef, Effect, Pending, control::ControlWrite, encode_signed};

/// At most four ticks a second.
const TICK_EVERY: Millis = Millis(250);
/// A tick that has not come back by then is given up.
const TICK_LOST_AFTER: Millis = Millis(3_000);
/// Longest a live node may decide by another policy than the one in force; they ask every second.
const POLICY_LAG_MAX: Millis = Millis(10_000);
/// How long the stream keeps a tick.
const TICK_TTL_SECS: u64 = 60;

pub(super) struct Freshness {
    /// Questions that wait for the next tick.
    waiting: Vec<(CallRef, [u8; 16])>,
    /// The tick under way with the questions it serves.
    under_way: Option<TickUnderWay>,
    last_tick: Option<Now>,
    nodes: BTreeMap<NodeId, Liveness>,
    started: Now,
}

struct TickUnderWay {
    id: [u8; 16],
    since: Now,
    serves: Vec<(CallRef, [u8; 16])>,
}

/// What a node was last heard to have.
#[derive(Clone, Copy)]
pub(super) struct Liveness {
    pub(super) applied: Epoch,
    pub(super) asked: Now,
    /// When it was last given a lease.
    answered: Option<Now>,
    /// Why it decides nothing, if it does not.
    pub(super) fault: Option<ReasonCode>,
    /// The policy it decides by.
    pub(super) policy: Option<PolicyRevision>,
    /// Why it did not take a later one.
    pub(super) policy_fault: Option<ReasonCode>,
    /// Since when it has been saying that it decides by another policy than the one in force.
    differs: Option<Now>,
    /// Whether an operator was told of that.
    is_told: bool,
}

impl Liveness {
    /// How long it has decided by another policy than the one in force, if that is longer than it takes to put one
    /// in force (threat P14).
    pub(super) fn behind(&self, now: Now) -> Option<Millis> {
        let since = now.monotonic.since(self.differs?.monotonic);
        (since > POLICY_LAG_MAX && !writ_common::red::off("P14")).then_some(since)
    }

    /// Whether it still asks: one that does not decides nothing for long.
    fn is_live(&self, now: Now) -> bool {
        now.monotonic.since(self.asked.monotonic) <= POLICY_LAG_MAX
    }
}

/// A revocation whose answer waits until no node can act under it any more.
pub(super) struct WaitingRevocation {
    pub(super) call: CallRef,
    pub(super) payload: Vec<u8>,
    epoch: Epoch,
    nodes: BTreeSet<NodeId>,
}

impl Freshness {
    pub(super) fn new(started: Now) -> Self {
        Self { waiting: Vec::new(), under_way: None, last_tick: None, nodes: BTreeMap::new(), started }
    }

    pub(super) fn liveness(&self, node: &NodeId) -> Option<Liveness> {
        self.nodes.get(node).copied()
    }

    /// Whether a node asked lately.
    pub(super) fn is_live(&self, node: &NodeId, now: Now) -> bool {
        self.nodes.get(node).is_some_and(|liveness| liveness.is_live(now))
    }

    /// Live nodes that have decided by another policy than the one in force for too long.
    pub(super) fn behind(&self, now: Now) -> usize {
        self.nodes.values().filter(|node| node.is_live(now) && node.behind(now).is_some()).count()
    }
}

impl Broker {
    pub(super) fn fresh_question(&mut self, call: CallRef, arrival: &Arrival, now: Now) {
        let question = decode::<Signed<FreshQuestion>>(&arrival.payload).ok().and_then(|signed| {
            let claimed = signed.peek().ok()?;
            let entry = self.control.nodes().get(&claimed.node)?;
            signed.open(|key| *key == entry.key).ok()
        });
        let Some(question) = question.filter(|question| question.tenant == self.setup.tenant) else {
            let code = ReasonCode::NodeKeyUnknown;
            return self.alarm(format!("{code}: a question for freshness that no enrolled node signed"));
        };
        if question.staleness > self.setup.staleness_max {
            // A revocation that waits would answer before this node has stopped.
            return self.alarm(format!(
                "{} goes on for {} without news and at most {} is allowed (staleness_seconds_max): it gets none",
                question.node, question.staleness, self.setup.staleness_max
            ));
        }
        let liveness = self.freshness.nodes.entry(question.node.clone()).or_insert(Liveness {
            applied: question.applied,
            asked: now,
            answered: None,
            fault: None,
            policy: None,
            policy_fault: None,
            differs: None,
            is_told: false,
        });
        liveness.fault = question.fault;
        liveness.policy = question.policy;
        liveness.policy_fault = question.policy_fault;
        liveness.applied = question.applied;
        liveness.asked = now;
        let in_force = self.control.activations().back().map(|one| one.revision);
        if question.policy == in_force {
            (liveness.differs, liveness.is_told) = (None, false);
        } else {
            liveness.differs.get_or_insert(now);
        }
        let untold = liveness.behind(now).filter(|_| !std::mem::replace(&mut liveness.is_told, true));
        if let Some(behind) = untold {
            let name =
                |revision: Option<PolicyRevision>| revision.map_or("none".to_owned(), |r| r.to_string());
            self.alarm(format!(
                "{} has decided by another policy for {behind} than the one in force: by {}, not {}; \
                 `writ doctor` says which nodes do",
                question.node,
                name(question.policy),
                name(in_force)
            ));
        }
        let known = self.control.nodes().get(&question.node).and_then(|entry| entry.boot.as_ref());
        if known != Some(&question.boot) {
            let event = ControlEvent::NodeBoot { node: question.node.clone(), boot: question.boot.clone() };
            let queued = self
                .control_queue
                .iter()
                .any(|write| matches!(write, ControlWrite::Own(own) if **own == event));
            if !queued {
                self.queue_control(ControlWrite::Own(Box::new(event)), now);
            }
        }
        self.freshness.waiting.push((call, question.nonce));
        self.finish_revocations(now);
        self.fresh_tick(now);
    }

    /// Publishes a tick if somebody waits for one and the last is long enough ago.
    pub(super) fn fresh_tick(&mut self, now: Now) {
        let lost = |tick: &TickUnderWay| now.monotonic.since(tick.since.monotonic) > TICK_LOST_AFTER;
        if self.freshness.under_way.as_ref().is_some_and(lost) {
            self.freshness.under_way = None;
        }
        let soon =
            self.freshness.last_tick.is_some_and(|last| now.monotonic.since(last.monotonic) < TICK_EVERY);
        if self.freshness.waiting.is_empty()
            || self.freshness.under_way.is_some()
            || soon
            || !self.control_read
        {
            return;
        }
        let id = draw(self.entropy.as_mut());
        let serves = std::mem::take(&mut self.freshness.waiting);
        self.freshness.under_way = Some(TickUnderWay { id, since: now, serves });
        self.freshness.last_tick = Some(now);
        let ticket = self.fresh_ticket();
        let store = Store {
            subject: Subject::Tick.of(&self.setup.tenant),
            payload: id.to_vec(),
            message_id: None,
            fence: Fence::None,
            ttl_secs: Some(TICK_TTL_SECS),
        };
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
        self.pending.insert(ticket, Pending::TickPublished);
    }

    pub(super) fn tick_published(&mut self, result: &Result<Stored, StoreError>) {
        if let Err(error) = result {
            self.freshness.under_way = None;
            self.alarm(format!("a tick was not taken: {error}"));
        }
    }

    /// A tick came back through the stream: everything before it has been applied.
    pub(super) fn ticked(&mut self, payload: &[u8], now: Now) {
        let ours = self.freshness.under_way.as_ref().is_some_and(|tick| tick.id == payload);
        if !ours {
            return;
        }
        let Some(tick) = self.freshness.under_way.take() else { return };
        for (call, nonce) in tick.serves {
            let answer = FreshAnswer {
                tenant: self.setup.tenant.clone(),
                nonce,
                epoch: self.control.epoch(),
                time: now.wall,
            };
            let payload = encode_signed(&answer, &self.setup.key);
            self.push(Effect::Reply(call, payload));
        }
        for liveness in self.freshness.nodes.values_mut() {
            liveness.answered = Some(now);
        }
        self.fresh_tick(now);
    }

    /// Answers an operator once every live node has applied this epoch or its lease ran out.
    pub(super) fn wait_for_nodes(&mut self, call: CallRef, payload: Vec<u8>, now: Now) {
        let waiting = WaitingRevocation {
            call,
            payload,
            epoch: self.control.epoch(),
            nodes: self.control.nodes().keys().cloned().collect(),
        };
        self.waiting_revocations.push(waiting);
        self.finish_revocations(now);
    }

    pub(super) fn finish_revocations(&mut self, now: Now) {
        let mut waiting = std::mem::take(&mut self.waiting_revocations);
        for revocation in &mut waiting {
            revocation.nodes.retain(|node| !self.is_settled(node, revocation.epoch, now));
        }
        let (done, rest) = waiting.into_iter().partition(|revocation| revocation.nodes.is_empty());
        self.waiting_revocations = rest;
        let done: Vec<WaitingRevocation> = done;
        for revocation in done {
            self.push(Effect::Reply(revocation.call, revocation.payload));
        }
    }

    /// Whether a node has applied the epoch, or can hold no lease from before it any more.
    ///
    /// A lease counts from the node's question, so it ends at the latest the longest bound after our last answer.
    /// After a restart every enrolled node may hold one that an earlier run gave.
    fn is_settled(&self, node: &NodeId, epoch: Epoch, now: Now) -> bool {
        let liveness = self.freshness.nodes.get(node);
        if liveness.is_some_and(|liveness| liveness.applied >= epoch) {
            return true;
        }
        let last_lease = liveness.and_then(|liveness| liveness.answered).unwrap_or(self.freshness.started);
        now.monotonic.since(last_lease.monotonic) > self.setup.staleness_max
    }
}
