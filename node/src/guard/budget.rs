//! Budgets: charged on the bus before the intent, given back if the call is known not to have run.
//!
//! Charges of one budget go one after the other: against other nodes the compare-and-set decides, and among the
//! calls of this one nobody has to lose it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use writ_bus::{Fence, StoreError, Stored};
use writ_common::{
    budget::{BudgetState, Charge, Charges, Spent, charged},
    ids::{BudgetId, PartId, TaskId},
    reason::{Reason, ReasonCode},
    record::{Basis, OutcomeStatus},
    subjects::Subject,
    time::{Millis, Now},
    verdict::Verdict,
};

use super::{CallRef, Effect, Guard, Pending, ToolFailure};

/// How often a charge is tried again after another node was faster.
const ATTEMPTS_MAX: u32 = 20;
/// Most budgets whose state is kept; beyond, they are read again.
const KNOWN_MAX: usize = 20_000;

/// One budget of one task.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BudgetKey {
    /// The stream part it lives in.
    pub part: PartId,
    /// The task.
    pub task: TaskId,
    /// The budget.
    pub budget: BudgetId,
}

/// Something to be done to a budget.
enum Change {
    /// A call takes from it.
    Charge(CallRef, Charge),
    /// What a call took comes back.
    Return(u64),
}

/// A budget while changes wait for it.
#[derive(Default)]
struct Queue {
    changes: VecDeque<Change>,
    is_busy: bool,
    /// Whether what was spent was read for the change at the front, and is not only remembered.
    is_read: bool,
    attempts: u32,
}

/// A call whose charges are being made.
struct Charging {
    verdict: Verdict,
    basis: Basis,
    /// Charges that are not made yet.
    left: Charges,
}

/// Everything this node knows of budgets.
#[derive(Default)]
pub(super) struct Budgets {
    known: BTreeMap<BudgetKey, (u64, u64)>,
    queues: BTreeMap<BudgetKey, Queue>,
    charging: BTreeMap<CallRef, Charging>,
}

impl Guard {
    /// Charges a call to the budgets policy says, and goes on with it once all are charged.
    pub(super) fn charge(
        &mut self,
        call: CallRef,
        verdict: Verdict,
        charges: &Charges,
        basis: Basis,
        now: Now,
    ) {
        let Some(known) = self.calls.get(&call).and_then(|flight| flight.known.as_ref()) else { return };
        if known.charged == *charges {
            // Decided once more, since the label moved under it.
            let verdict = verdict.spent(&Spent(charges));
            return self.prepare_intent(call, verdict, basis, now);
        }
        // Another policy may count differently.
        self.give_back(call, now);
        self.budgets.charging.insert(call, Charging { verdict, basis, left: charges.clone() });
        self.charge_next(call, now);
    }

    fn budget_key(&self, call: CallRef, budget: &BudgetId) -> Option<BudgetKey> {
        let known = self.calls.get(&call)?.known.as_ref()?;
        let (part, task) = (known.task_part().clone(), known.capability.grant().task.clone());
        Some(BudgetKey { part, task, budget: budget.clone() })
    }

    /// The next charge of a call; after the last the call goes on.
    fn charge_next(&mut self, call: CallRef, now: Now) {
        let Some(charging) = self.budgets.charging.get(&call) else { return };
        let next = charging.left.first_key_value().map(|(budget, charge)| (budget.clone(), *charge));
        if let Some((budget, charge)) = next {
            let Some(key) = self.budget_key(call, &budget) else { return };
            return self.queue_change(&key, Change::Charge(call, charge), now);
        }
        let Some(Charging { verdict, basis, .. }) = self.budgets.charging.remove(&call) else { return };
        let made =
            self.calls.get(&call).and_then(|flight| flight.known.as_ref()).map(|known| known.charged.clone());
        let verdict = verdict.spent(&Spent(&made.unwrap_or_default()));
        self.prepare_intent(call, verdict, basis, now);
    }

    fn queue_change(&mut self, key: &BudgetKey, change: Change, now: Now) {
        self.budgets.queues.entry(key.clone()).or_default().changes.push_back(change);
        self.next_change(key, now);
    }

    /// Begins the next change of a budget, unless one is under way. A loop: as many as there are can fail at once.
    fn next_change(&mut self, key: &BudgetKey, now: Now) {
        loop {
            let Some(queue) = self.budgets.queues.get_mut(key) else { return };
            if queue.is_busy {
                return;
            }
            let Some(change) = queue.changes.front() else {
                self.budgets.queues.remove(key);
                return;
            };
            let Some((sequence, spent)) = self.budgets.known.get(key).copied() else {
                queue.is_busy = true;
                queue.is_read = true;
                return self.push(Effect::ReadBudget(key.clone()));
            };
            let total = match change {
                Change::Charge(_, charge) => charged(&key.budget, spent, *charge),
                Change::Return(amount) => Ok(spent.saturating_sub(*amount)),
            };
            match total {
                Ok(total) => {
                    queue.is_busy = true;
                    return self.publish_change(key, sequence, total, now);
                }
                // Another node may have given back since: what was only remembered is read before anybody is refused.
                Err(_) if !queue.is_read => drop(self.budgets.known.remove(key)),
                Err(reason) => self.settle(key, Err(reason), now),
            }
        }
    }

    fn publish_change(&mut self, key: &BudgetKey, sequence: u64, total: u64, now: Now) {
        let state = BudgetState {
            tenant: self.config.tenant.clone(),
            task: key.task.clone(),
            budget: key.budget.clone(),
            spent: total,
            node: self.config.node.clone(),
            at: now.wall,
        };
        let subject =
            Subject::Budget { part: key.part.clone(), task: key.task.clone(), budget: key.budget.clone() };
        let mut store = self.fenced(&state, &subject, sequence);
        if writ_common::red::off("D07-fence") {
            store.fence = Fence::None;
        }
        let ticket = self.ticket(Pending::Charged(key.clone(), total));
        self.push(Effect::Publish { ticket, store, delay: Millis(0) });
    }

    /// What a budget's subject said.
    pub(super) fn budget_read(
        &mut self,
        key: &BudgetKey,
        found: Result<Option<(u64, Bytes)>, String>,
        now: Now,
    ) {
        let unavailable = |why: String| Reason::new(ReasonCode::BudgetUnavailable).noted(why);
        let state = match found {
            Ok(None) => Ok((0, 0)),
            Ok(Some((sequence, bytes))) => {
                BudgetState::open(&bytes, &self.config.tenant, &key.task, &key.budget, &self.control)
                    .map(|state| (sequence, state.spent))
            }
            Err(why) => Err(unavailable(why)),
        };
        if let Some(queue) = self.budgets.queues.get_mut(key) {
            queue.is_busy = false;
        }
        match state {
            Ok(state) => {
                if self.budgets.known.len() >= KNOWN_MAX {
                    self.budgets.known.clear();
                }
                self.budgets.known.insert(key.clone(), state);
                self.next_change(key, now);
            }
            Err(reason) => self.change_done(key, Err(reason), now),
        }
    }

    /// What the stream said about a change.
    pub(super) fn budget_charged(
        &mut self,
        key: &BudgetKey,
        total: u64,
        result: Result<Stored, StoreError>,
        now: Now,
    ) {
        let attempts = match self.budgets.queues.get_mut(key) {
            Some(queue) => {
                queue.is_busy = false;
                queue.attempts += 1;
                queue.attempts
            }
            None => 0,
        };
        match result {
            Ok(stored) => {
                self.streams.acknowledged(&key.part, stored.sequence);
                self.budgets.known.insert(key.clone(), (stored.sequence, total));
                self.change_done(key, Ok(()), now);
            }
            Err(error) => {
                // What is on the bus now is not known: it is read before the next change.
                self.budgets.known.remove(key);
                let again = matches!(error, StoreError::Fenced | StoreError::Busy) && attempts < ATTEMPTS_MAX;
                if again {
                    return self.next_change(key, now);
                }
                self.change_done(key, Err(Reason::new(ReasonCode::BudgetUnavailable).noted(error)), now);
            }
        }
    }

    fn change_done(&mut self, key: &BudgetKey, result: Result<(), Reason>, now: Now) {
        self.settle(key, result, now);
        self.next_change(key, now);
    }

    /// The change at the front is made, or cannot be.
    fn settle(&mut self, key: &BudgetKey, result: Result<(), Reason>, now: Now) {
        let Some(queue) = self.budgets.queues.get_mut(key) else { return };
        queue.attempts = 0;
        queue.is_read = false;
        let change = queue.changes.pop_front();
        match (change, result) {
            (Some(Change::Charge(call, charge)), Ok(())) => self.call_charged(call, key, charge, now),
            (Some(Change::Charge(call, _)), Err(reason)) => {
                if let Some(charging) = self.budgets.charging.remove(&call) {
                    let verdict = Verdict::deny(reason, charging.verdict.policy_revision());
                    self.deny(call, &verdict, charging.basis, now);
                }
            }
            // What is not given back stays spent: too little is allowed, never too much.
            (Some(Change::Return(amount)), Err(reason)) => self.alarm(format!(
                "{amount} of the budget `{}` of {} could not be given back: {}",
                key.budget,
                key.task,
                reason.for_operator()
            )),
            (Some(Change::Return(_)) | None, _) => {}
        }
    }

    fn call_charged(&mut self, call: CallRef, key: &BudgetKey, charge: Charge, now: Now) {
        match self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) {
            Some(known) => {
                known.charged.insert(key.budget.clone(), charge);
                if let Some(charging) = self.budgets.charging.get_mut(&call) {
                    charging.left.remove(&key.budget);
                }
                self.charge_next(call, now);
            }
            None => {
                self.budgets.charging.remove(&call);
                self.budgets
                    .queues
                    .entry(key.clone())
                    .or_default()
                    .changes
                    .push_back(Change::Return(charge.amount));
            }
        }
    }

    /// The result is there: what was set aside for its rows and not needed comes back.
    ///
    /// # Errors
    /// It has more rows than were paid for: it was run, and is kept back.
    pub(super) fn count_rows(&mut self, call: CallRef, result: &str, now: Now) -> Result<(), ToolFailure> {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else {
            return Ok(());
        };
        let mut unused = Vec::new();
        for (budget, charge) in &mut known.charged {
            let left = charge.left_over(budget, result);
            let left = left.map_err(|reason| ToolFailure { reason, status: OutcomeStatus::Done })?;
            charge.amount -= left;
            unused.extend((left > 0).then(|| (budget.clone(), left)));
        }
        for (budget, left) in unused {
            if let Some(key) = self.budget_key(call, &budget) {
                self.queue_change(&key, Change::Return(left), now);
            }
        }
        Ok(())
    }

    /// A call that was charged is known not to have run.
    pub(super) fn give_back(&mut self, call: CallRef, now: Now) {
        let Some(known) = self.calls.get_mut(&call).and_then(|flight| flight.known.as_mut()) else { return };
        for (budget, charge) in std::mem::take(&mut known.charged) {
            if let Some(key) = self.budget_key(call, &budget) {
                self.queue_change(&key, Change::Return(charge.amount), now);
            }
        }
    }
}
